/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The disks of a VM: what they are, and the jobs on them. */
#include "base/error.h"
#include "daemon/request.h"
#include "daemon/service-internal.h"
#include "daemon/service-new.h"
#include "job/backup-serve.h"
#include "job/backup.h"
#include "job/disk-copy.h"
#include "job/disk-job.h"
#include "job/disk-merge.h"
#include "job/disk-pull.h"
#include "job/disk-stream.h"
#include "job/disk.h"
#include "job/revert.h"
#include "job/snapshot.h"

#define ASK_MS 20000

/* --- Looking --- */

JsonArray *
dr_service_disks(DrService *service, const char *name, GError **error)
{
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  DrQmp *qmp = vm ? dr_vm_take(vm, "drover disk", DR_LEASE_MS, error) : NULL;
  g_autoptr(DrDisks) disks = qmp ? dr_disks_read(qmp, dr_vm_record(vm)->cwd, error) : NULL;

  if (qmp)
    dr_vm_give(vm, qmp);
  return disks ? dr_disks_json(disks) : NULL;
}

/* --- Jobs --- */

JsonArray *
dr_service_start_disk(DrService *service, const char *name, const char *kind, JsonObject *request,
                      DrJobFunc run, GError **error)
{
  g_autoptr(GPtrArray) vms = g_ptr_array_new_with_free_func((GDestroyNotify)dr_vm_unref);
  DrVm *vm = dr_service_find(service, name, error);

  if (!vm)
    return NULL;
  g_ptr_array_add(vms, vm);
  return dr_vm_is_free(vm, error) ? dr_service_start_jobs(service, kind, vms, request, run, 1, error) : NULL;
}

JsonArray *
dr_service_disk_copy(DrService *service, const char *name, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "copies", DR_MEMBER_ANY },
                                      { "format", DR_MEMBER_TEXT },
                                      { "sync", DR_MEMBER_TEXT },
                                      { "reuse_external", DR_MEMBER_FLAG },
                                      { "bandwidth", DR_MEMBER_NUMBER, 1, DR_MIB_MAX },
                                      { "granularity", DR_MEMBER_NUMBER, 512, 67108864 },
                                      { "buf_size", DR_MEMBER_NUMBER, 1, 1073741824 },
                                      { "synchronous_writes", DR_MEMBER_FLAG },
                                      { "then", DR_MEMBER_TEXT },
                                      { "timeout", DR_MEMBER_NUMBER, 1, 31536000 },
                                      { NULL } };

  if (!dr_request_check(request, members, error) || !dr_disk_copy_check(request, error))
    return NULL;
  return dr_service_start_disk(service, name, "disk-copy", request, dr_disk_copy_run, error);
}

JsonArray *
dr_service_disk_pull(DrService *service, const char *name, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "disk", DR_MEMBER_TEXT },
                                      { "base", DR_MEMBER_TEXT },
                                      { "bandwidth", DR_MEMBER_NUMBER, 1, DR_MIB_MAX },
                                      { NULL } };

  if (!dr_request_check(request, members, error))
    return NULL;
  if (!dr_json_str(request, "disk", NULL)) {
    dr_error_set(error, DR_ERROR_INVALID, "name the disk");
    return NULL;
  }
  return dr_service_start_disk(service, name, "disk-pull", request, dr_disk_pull_run, error);
}

JsonObject *
dr_service_disk_ask(DrService *service, const char *name, const char *what, JsonObject *params,
                    GError **error)
{
  static const DrMember members[] = { { "mib", DR_MEMBER_NUMBER, 0, DR_MIB_MAX }, { NULL } };
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  g_autoptr(DrMailbox) box = vm ? dr_disk_job_find(name) : NULL;

  if (!vm || !dr_request_check(params, members, error))
    return NULL;
  if (box)
    return dr_mailbox_ask(box, what, params, ASK_MS, error);
  dr_error_set(error, DR_ERROR_REFUSED, "no disk of VM '%s' is being copied, pulled or merged", name);
  dr_error_remedy(error, "drover jobs shows what is under way");
  return NULL;
}

/* --- Snapshots --- */

JsonArray *
dr_service_snapshots(DrService *service, const char *name, GError **error)
{
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);

  return vm ? dr_store_load_snapshots(service->host->store, name, error) : NULL;
}

/* By the clock, where the user has not named it. */
static void
name_snapshot(JsonObject *request)
{
  g_autoptr(GDateTime) now = g_date_time_new_now_local();
  g_autofree char *name = g_date_time_format(now, "%Y%m%d-%H%M%S");

  if (!dr_json_str(request, "name", NULL))
    json_object_set_string_member(request, "name", name);
}

JsonArray *
dr_service_snapshot_create(DrService *service, const char *name, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "name", DR_MEMBER_TEXT },
                                      { "disks", DR_MEMBER_TEXTS },
                                      { "quiesce", DR_MEMBER_FLAG },
                                      { "memory", DR_MEMBER_FLAG },
                                      { "memory_file", DR_MEMBER_TEXT },
                                      { "description", DR_MEMBER_TEXT },
                                      { NULL } };

  if (!dr_request_check(request, members, error))
    return NULL;
  name_snapshot(request);
  return dr_snapshot_check(request, error)
             ? dr_service_start_disk(service, name, "disk-snapshot", request, dr_snapshot_run, error)
             : NULL;
}

static gboolean
names_snapshot(JsonObject *request, GError **error)
{
  return dr_json_str(request, "snapshot", NULL) != NULL ||
         dr_error_set(error, DR_ERROR_INVALID, "name the snapshot");
}

JsonArray *
dr_service_snapshot_merge(DrService *service, const char *name, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "snapshot", DR_MEMBER_TEXT },
                                      { "up", DR_MEMBER_FLAG },
                                      { "delete", DR_MEMBER_FLAG },
                                      { "disks", DR_MEMBER_TEXTS },
                                      { "bandwidth", DR_MEMBER_NUMBER, 1, DR_MIB_MAX },
                                      { NULL } };

  if (!dr_request_check(request, members, error) || !names_snapshot(request, error))
    return NULL;
  return dr_service_start_disk(service, name, "disk-merge", request, dr_disk_merge_run, error);
}

JsonArray *
dr_service_snapshot_revert(DrService *service, const char *name, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "snapshot", DR_MEMBER_TEXT },
                                      { "discard", DR_MEMBER_FLAG },
                                      { NULL } };

  if (!dr_request_check(request, members, error) || !names_snapshot(request, error))
    return NULL;
  return dr_service_start_disk(service, name, "snapshot-revert", request, dr_revert_run, error);
}

JsonObject *
dr_service_snapshot_forget(DrService *service, const char *name, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "snapshot", DR_MEMBER_TEXT }, { NULL } };
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  g_autoptr(JsonObject) record = NULL;
  const char *snapshot = dr_json_str(request, "snapshot", NULL);

  if (!vm || !dr_request_check(request, members, error) || !names_snapshot(request, error) ||
      !dr_vm_is_free(vm, error))
    return NULL;
  record = dr_snapshot_load(vm, snapshot, error);
  if (!record || !dr_store_drop_snapshot(service->host->store, name, snapshot, error))
    return NULL;
  return g_steal_pointer(&record);
}

/* --- After a restart --- */

gboolean
dr_service_recover_disk(DrJob *job, GError **error)
{
  static const struct {
    const char *kind;
    DrJobFunc recover;
  } kinds[] = { { "disk-copy", dr_disk_copy_recover },     { "disk-backup", dr_backup_recover },
                { "disk-serve", dr_backup_serve_recover }, { "disk-pull", dr_disk_pull_recover },
                { "disk-stream", dr_disk_stream_recover }, { "disk-snapshot", dr_snapshot_recover },
                { "disk-merge", dr_disk_merge_recover } };

  for (guint i = 0; i < G_N_ELEMENTS(kinds); i++)
    if (g_str_equal(dr_job_kind(job), kinds[i].kind))
      return kinds[i].recover(job, error);
  return dr_error_set(error, DR_ERROR_UNSUPPORTED, "this droverd knows no job of kind '%s'",
                      dr_job_kind(job));
}
