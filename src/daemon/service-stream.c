/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* VMs that are started on disks which live elsewhere.
 *
 * Their job is on record with the VM until it is made: a droverd that is killed in between leaves a guest that has not begun, and the next one
 * makes the job. */
#include "base/error.h"
#include "daemon/service-internal.h"
#include "job/disk-stream.h"
#include "job/stream-plan.h"
#include "job/stream-source.h"
#include "vm/start.h"

#include <string.h>

#define BEGIN_MS 20000
#define REQUEST_MAX 1048576

gboolean
dr_service_check_stream(JsonObject *request, GError **error)
{
  JsonNode *node = json_object_get_member(request, "stream");

  if (node && !JSON_NODE_HOLDS_NULL(node))
    return dr_stream_check(dr_json_arr(request, "stream"), error);
  if (!json_object_has_member(request, "bandwidth"))
    return TRUE;
  dr_error_set(error, DR_ERROR_INVALID, "a bandwidth is for disks that are streamed, and none is");
  return dr_error_remedy(error, "say which, by --stream");
}

static gboolean
prepare(DrVmRecord *record, DrArgv *argv, gpointer data, GError **error)
{
  DrStreamPlan *plan = data;
  g_autoptr(JsonObject) request = NULL;

  if (!dr_stream_plan_make(plan, argv, record->cwd, error))
    return FALSE;
  request = dr_stream_plan_request(plan);
  record->stream = dr_json_print_object(request, FALSE);
  return TRUE;
}

/* --- The job --- */

static gboolean
forget(DrVm *vm, GError **error)
{
  dr_vm_lock(vm);
  g_clear_pointer(&dr_vm_record(vm)->stream, g_free);
  dr_vm_unlock(vm);
  return dr_vm_save(vm, error);
}

static char *
make_job(DrService *service, DrVm *vm, GError **error)
{
  g_autoptr(JsonObject) request = dr_json_parse_object(dr_vm_record(vm)->stream, -1, REQUEST_MAX, error);
  g_autoptr(GPtrArray) vms = g_ptr_array_new();
  g_autoptr(JsonArray) jobs = NULL;

  g_ptr_array_add(vms, vm);
  if (request)
    jobs = dr_service_start_jobs(service, "disk-stream", vms, request, dr_disk_stream_run, 1, error);
  return jobs ? g_strdup(dr_json_str(json_array_get_object_element(jobs, 0), "id", "")) : NULL;
}

/* A guest whose disks cannot be pulled is no reason not to run it. */
static void
run_anyway(DrVm *vm)
{
  g_autoptr(JsonObject) request = dr_json_parse_object(dr_vm_record(vm)->stream, -1, REQUEST_MAX, NULL);
  DrQmp *qmp = dr_vm_take(vm, "drover run", DR_LEASE_MS, NULL);
  g_autoptr(JsonObject) status = qmp ? dr_qmp_call_object(qmp, "query-status", NULL, NULL) : NULL;

  if (!qmp)
    return;
  if (request && dr_json_bool(request, "run", FALSE) && status &&
      g_str_equal(dr_json_str(status, "status", ""), "prelaunch"))
    dr_qmp_do(qmp, "cont", NULL, NULL);
  dr_vm_refresh(vm, qmp);
  dr_vm_give(vm, qmp);
}

static void
note(DrVm *vm, const GError *error)
{
  dr_vm_lock(vm);
  g_free(dr_vm_record(vm)->note);
  dr_vm_record(vm)->note =
      g_strdup_printf("its disks are not pulled: %s; do it by drover disk pull", error->message);
  dr_vm_unlock(vm);
  g_warning("VM '%s': %s", dr_vm_name(vm), dr_vm_record(vm)->note);
}

/* (nullable): its number */
static char *
begin(DrService *service, DrVm *vm)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(GError) unsaved = NULL;
  char *job = make_job(service, vm, &error);

  if (!job) {
    run_anyway(vm);
    note(vm, error);
  }
  if (!forget(vm, &unsaved)) /* the next droverd sees that there is a job, or was one */
    g_warning("VM '%s': %s", dr_vm_name(vm), unsaved->message);
  return job;
}

/* The guest begins when the job has begun to pull. */
static void
await_begin(DrService *service, const char *job)
{
  static const char *const before[] = { "queued", "preflight", "begin", NULL };
  DrDeadline deadline = dr_deadline_in(BEGIN_MS);

  while (!dr_deadline_passed(deadline)) {
    g_autoptr(JsonObject) shown = dr_service_job(service, job, NULL);

    if (!shown || !g_strv_contains(before, dr_json_str(shown, "stage", "")) ||
        !(g_str_equal(dr_json_str(shown, "state", ""), "running") ||
          g_str_equal(dr_json_str(shown, "state", ""), "queued")))
      return;
    g_usleep(2000);
  }
}

DrVm *
dr_service_run_stream(DrService *service, JsonObject *request, GError **error)
{
  JsonArray *streams = dr_json_arr(request, "stream");
  g_autoptr(DrStreamPlan) plan =
      streams ? dr_stream_plan_new(streams, dr_json_int(request, "bandwidth", 0)) : NULL;
  g_autoptr(DrVm) vm = dr_vm_run(service->host, request, plan ? prepare : NULL, plan, error);
  g_autofree char *job = NULL;

  if (plan && !vm) {
    dr_stream_plan_undo(plan);
    dr_stream_explain(error);
  }
  if (!plan || !vm)
    return g_steal_pointer(&vm);
  job = begin(service, vm);
  if (job)
    await_begin(service, job);
  return g_steal_pointer(&vm);
}

void
dr_service_take_up_streams(DrService *service)
{
  g_autoptr(GPtrArray) vms = dr_service_all(service);

  for (guint i = 0; i < vms->len; i++) {
    DrVm *vm = vms->pdata[i];
    g_autofree char *job = NULL;

    if (!dr_vm_record(vm)->stream)
      continue;
    if (dr_vm_job(vm) || g_str_equal(dr_vm_record(vm)->state, "stopped"))
      forget(vm, NULL);
    else
      job = begin(service, vm);
  }
}
