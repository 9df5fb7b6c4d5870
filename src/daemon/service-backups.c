/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Dirty bitmaps, and the backups that are made by them. */
#include "base/error.h"
#include "daemon/request.h"
#include "daemon/service-internal.h"
#include "daemon/service-new.h"
#include "job/backup-serve.h"
#include "job/backup.h"
#include "job/bitmap.h"
#include "job/disk-job.h"

#define ASK_MS 20000
#define MIB_MAX 1000000

/* --- Bitmaps --- */

JsonArray *
dr_service_bitmaps(DrService *service, const char *name, const char *disk, GError **error)
{
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  DrQmp *qmp = vm ? dr_vm_take(vm, "drover bitmap", DR_LEASE_MS, error) : NULL;
  g_autoptr(DrDisks) disks = qmp ? dr_disks_read(qmp, dr_vm_record(vm)->cwd, error) : NULL;

  if (qmp)
    dr_vm_give(vm, qmp);
  return disks ? dr_bitmaps_list(disks, disk, error) : NULL;
}

static gboolean
add(DrQmp *qmp, const DrDisks *disks, JsonObject *request, GError **error)
{
  DrBitmapAdd new = { .disk = dr_json_str(request, "disk", ""),
                      .name = dr_json_str(request, "bitmap", ""),
                      .granularity = dr_json_int(request, "granularity", 0),
                      .disabled = dr_json_bool(request, "disabled", FALSE),
                      .transient = dr_json_bool(request, "transient", FALSE) };

  return dr_bitmap_add(qmp, disks, &new, error);
}

static gboolean
merge(DrQmp *qmp, const DrDisks *disks, JsonObject *request, GError **error)
{
  g_auto(GStrv) from = dr_json_strv(dr_json_arr(request, "from"));

  return dr_bitmap_merge(qmp, disks, dr_json_str(request, "disk", ""), dr_json_str(request, "bitmap", ""),
                         (const char *const *)from, error);
}

static gboolean
change(DrQmp *qmp, const DrDisks *disks, const char *what, JsonObject *request, GError **error)
{
  const char *disk = dr_json_str(request, "disk", ""), *bitmap = dr_json_str(request, "bitmap", "");

  if (g_str_equal(what, "add"))
    return add(qmp, disks, request, error);
  if (g_str_equal(what, "merge"))
    return merge(qmp, disks, request, error);
  if (g_str_equal(what, "remove"))
    return dr_bitmap_remove(qmp, disks, disk, bitmap, error);
  return dr_bitmap_enable(qmp, disks, disk, bitmap, g_str_equal(what, "enable"), error);
}

static gboolean
check_request(const char *what, JsonObject *request, GError **error)
{
  static const DrMember adds[] = { { "disk", DR_MEMBER_TEXT },
                                   { "bitmap", DR_MEMBER_TEXT },
                                   { "granularity", DR_MEMBER_NUMBER, 1, G_MAXINT64 },
                                   { "disabled", DR_MEMBER_FLAG },
                                   { "transient", DR_MEMBER_FLAG },
                                   { NULL } };
  static const DrMember merges[] = {
    { "disk", DR_MEMBER_TEXT }, { "bitmap", DR_MEMBER_TEXT }, { "from", DR_MEMBER_TEXTS }, { NULL }
  };
  static const DrMember others[] = { { "disk", DR_MEMBER_TEXT }, { "bitmap", DR_MEMBER_TEXT }, { NULL } };
  gboolean merging = g_str_equal(what, "merge");
  JsonArray *from;

  if (!dr_request_check(request, g_str_equal(what, "add") ? adds : merging ? merges : others, error))
    return FALSE;
  from = dr_json_arr(request, "from");
  if (merging && (!from || json_array_get_length(from) == 0))
    return dr_error_set(error, DR_ERROR_INVALID, "name the bitmaps that are to be merged");
  return (dr_json_str(request, "disk", NULL) && dr_json_str(request, "bitmap", NULL)) ||
         dr_error_set(error, DR_ERROR_INVALID, "name the disk and its bitmap");
}

/* What it is afterwards; of one that was removed what it had been. */
static JsonObject *
show(const DrDisks *disks, JsonObject *request, GError **error)
{
  const DrDisk *disk = dr_disks_find(disks, dr_json_str(request, "disk", ""), error);

  return disk ? dr_bitmap_find(disks, disk, dr_json_str(request, "bitmap", ""), error) : NULL;
}

static JsonObject *
change_it(DrVm *vm, DrQmp *qmp, const char *what, JsonObject *request, GError **error)
{
  const char *cwd = dr_vm_record(vm)->cwd;
  g_autoptr(DrDisks) before = dr_disks_read(qmp, cwd, error), after = NULL;

  if (!before || !change(qmp, before, what, request, error))
    return NULL;
  if (g_str_equal(what, "remove"))
    return show(before, request, error);
  after = dr_disks_read(qmp, cwd, error);
  return after ? show(after, request, error) : NULL;
}

JsonObject *
dr_service_bitmap_change(DrService *service, const char *name, const char *what, JsonObject *request,
                         GError **error)
{
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  g_autoptr(JsonObject) bitmap = NULL;
  DrQmp *qmp;

  if (!vm || !check_request(what, request, error) || !dr_vm_is_free(vm, error))
    return NULL;
  qmp = dr_vm_take(vm, "drover bitmap", DR_LEASE_MS, error);
  if (!qmp)
    return NULL;
  bitmap = change_it(vm, qmp, what, request, error);
  dr_vm_give(vm, qmp);
  /* What was written while it was not there, or did not record, is not in it: no file that is on record fits it any more. */
  if (bitmap && !g_str_equal(what, "merge") &&
      !dr_store_drop_backup(service->host->store, name, dr_json_str(bitmap, "name", ""),
                            dr_json_str(bitmap, "disk", ""), error))
    return NULL;
  return g_steal_pointer(&bitmap);
}

/* --- Backups --- */

JsonArray *
dr_service_backups(DrService *service, const char *name, GError **error)
{
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);

  return vm ? dr_store_load_backups(service->host->store, name, error) : NULL;
}

JsonArray *
dr_service_backup_create(DrService *service, const char *name, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "target", DR_MEMBER_TEXT },
                                      { "disks", DR_MEMBER_TEXTS },
                                      { "incremental", DR_MEMBER_TEXT },
                                      { "bitmap", DR_MEMBER_TEXT },
                                      { "format", DR_MEMBER_TEXT },
                                      { "onto", DR_MEMBER_TEXTS },
                                      { "bandwidth", DR_MEMBER_NUMBER, 1, MIB_MAX },
                                      { "quiesce", DR_MEMBER_FLAG },
                                      { "scratch", DR_MEMBER_TEXT },
                                      { NULL } };

  if (!dr_request_check(request, members, error) || !dr_backup_check(request, error))
    return NULL;
  return dr_service_start_disk(service, name, "disk-backup", request, dr_backup_run, error);
}

JsonArray *
dr_service_backup_serve(DrService *service, const char *name, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "disks", DR_MEMBER_TEXTS },
                                      { "incremental", DR_MEMBER_TEXT },
                                      { "bitmap", DR_MEMBER_TEXT },
                                      { "listen", DR_MEMBER_TEXT },
                                      { "quiesce", DR_MEMBER_FLAG },
                                      { "scratch", DR_MEMBER_TEXT },
                                      { NULL } };

  if (!dr_request_check(request, members, error) || !dr_backup_serve_check(request, error))
    return NULL;
  return dr_service_start_disk(service, name, "disk-serve", request, dr_backup_serve_run, error);
}

JsonObject *
dr_service_backup_finish(DrService *service, const char *name, JsonObject *params, GError **error)
{
  static const DrMember members[] = { { "success", DR_MEMBER_FLAG }, { NULL } };
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  g_autoptr(DrMailbox) box = vm ? dr_disk_job_find(name) : NULL;

  if (!vm || !dr_request_check(params, members, error))
    return NULL;
  if (box)
    return dr_mailbox_ask(box, "finish", params, ASK_MS, error);
  dr_error_set(error, DR_ERROR_REFUSED, "no disk of VM '%s' is being served", name);
  dr_error_remedy(error, "drover backup serve %s serves them", name);
  return NULL;
}
