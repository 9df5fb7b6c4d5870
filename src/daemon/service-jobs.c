/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What takes longer: jobs, and what is asked of them. */
#include "base/error.h"
#include "daemon/request.h"
#include "daemon/service-internal.h"
#include "job/preflight.h"
#include "job/stats.h"
#include "job/upgrade.h"

#define WAIT_MAX_MS 60000

/* --- Jobs --- */

/* The VMs that a request is about; unknown names fail it before anything has begun. */
static GPtrArray *
named_vms(DrService *service, JsonObject *request, GError **error)
{
  g_auto(GStrv) names = dr_json_strv(dr_json_arr(request, "vms"));
  g_autoptr(GPtrArray) vms = NULL;

  if (dr_json_bool(request, "all", FALSE)) {
    vms = dr_service_all(service);
    for (guint i = vms->len; i-- > 0;)
      if (!dr_vm_job(vms->pdata[i]) && !dr_vm_check(vms->pdata[i]))
        g_ptr_array_remove_index(vms, i);
    return g_steal_pointer(&vms);
  }
  if (!names || !names[0]) {
    dr_error_set(error, DR_ERROR_INVALID, "name the VMs, or say that all are meant");
    return NULL;
  }
  vms = g_ptr_array_new_with_free_func((GDestroyNotify)dr_vm_unref);
  for (char **name = names; *name; name++) {
    DrVm *vm = dr_service_find(service, *name, error);

    if (!vm)
      return NULL;
    if (g_ptr_array_find(vms, vm, NULL)) {
      dr_error_set(error, DR_ERROR_INVALID, "VM '%s' is named twice", *name);
      dr_vm_unref(vm);
      return NULL;
    }
    g_ptr_array_add(vms, vm);
  }
  return g_steal_pointer(&vms);
}

static gboolean
check_upgrade_request(JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "vms", DR_MEMBER_TEXTS },
                                      { "all", DR_MEMBER_FLAG },
                                      { "qemu", DR_MEMBER_TEXT },
                                      { "memory", DR_MEMBER_TEXT },
                                      { "parallel", DR_MEMBER_NUMBER, 1, 64 },
                                      { NULL } };
  DrMemoryMode mode;
  const char *qemu = dr_json_str(request, "qemu", NULL);

  if (!dr_request_check(request, members, error))
    return FALSE;
  if (!dr_memory_mode_parse(dr_json_str(request, "memory", "auto"), &mode, error))
    return FALSE;
  if (qemu && !g_path_is_absolute(qemu))
    return dr_error_set(error, DR_ERROR_INVALID, "the QEMU binary '%s' is not an absolute path", qemu);
  if (dr_json_bool(request, "all", FALSE) && dr_json_arr(request, "vms"))
    return dr_error_set(error, DR_ERROR_INVALID, "name the VMs, or say that all are meant, not both");
  return TRUE;
}

static gboolean
none_busy(GPtrArray *vms, GError **error)
{
  for (guint i = 0; i < vms->len; i++)
    if (!dr_vm_is_free(vms->pdata[i], error))
      return FALSE;
  return TRUE;
}

/* Those of a batch that were made before one could not be: nothing of it begins. */
static void
drop_jobs(GPtrArray *batch)
{
  g_autoptr(GError) error =
      g_error_new(DR_ERROR, DR_ERROR_CANCELLED, "another job of the same request could not be made");

  for (guint i = 0; i < batch->len; i++)
    dr_job_end(batch->pdata[i], error);
}

GPtrArray *
dr_service_requested(DrService *service, JsonObject *request, GError **error)
{
  g_autoptr(GPtrArray) vms = named_vms(service, request, error);

  return vms && none_busy(vms, error) ? g_steal_pointer(&vms) : NULL;
}

JsonArray *
dr_service_start_jobs(DrService *service, const char *kind, GPtrArray *vms, JsonObject *request,
                      DrJobFunc run, guint parallel, GError **error)
{
  g_autoptr(GPtrArray) batch = g_ptr_array_new_with_free_func((GDestroyNotify)dr_job_unref);
  JsonArray *array;

  for (guint i = 0; i < vms->len; i++) {
    DrJob *job = dr_jobs_add(service->jobs, kind, vms->pdata[i], request, error);

    if (!job) {
      drop_jobs(batch);
      return NULL;
    }
    g_ptr_array_add(batch, job);
  }
  array = json_array_new();
  for (guint i = 0; i < batch->len; i++)
    json_array_add_object_element(array, dr_job_json(batch->pdata[i]));
  if (batch->len)
    dr_jobs_run(service->jobs, g_steal_pointer(&batch), run, parallel);
  return array;
}

JsonArray *
dr_service_upgrade(DrService *service, JsonObject *request, GError **error)
{
  g_autoptr(GPtrArray) vms =
      check_upgrade_request(request, error) ? dr_service_requested(service, request, error) : NULL;

  if (!vms)
    return NULL;
  return dr_service_start_jobs(service, "upgrade", vms, request, dr_upgrade_run,
                               (guint)dr_json_int(request, "parallel", 1), error);
}

static JsonObject *
failed_report(DrVm *vm, const GError *error)
{
  g_autoptr(DrFindings) findings = dr_findings_new();
  JsonObject *report = json_object_new();

  dr_findings_add(findings, DR_FINDING_BLOCKER, dr_error_code_name(error), dr_error_get_remedy(error), "%s",
                  error->message);
  json_object_set_string_member(report, "vm", dr_vm_name(vm));
  json_object_set_boolean_member(report, "ok", FALSE);
  json_object_set_array_member(report, "findings", dr_findings_json(findings));
  return report;
}

JsonArray *
dr_service_check_all(GPtrArray *vms, JsonObject *request, DrServiceCheck check, GError **error)
{
  JsonArray *array = json_array_new();

  for (guint i = 0; i < vms->len; i++) {
    g_autoptr(GError) local = NULL;
    JsonObject *report = check(vms->pdata[i], request, &local);

    json_array_add_object_element(array, report ? report : failed_report(vms->pdata[i], local));
  }
  return array;
}

JsonArray *
dr_service_upgrade_check(DrService *service, JsonObject *request, GError **error)
{
  g_autoptr(GPtrArray) vms =
      check_upgrade_request(request, error) ? dr_service_requested(service, request, error) : NULL;

  return vms ? dr_service_check_all(vms, request, dr_upgrade_check, error) : NULL;
}

JsonArray *
dr_service_jobs(DrService *service, GError **error)
{
  return dr_jobs_list(service->jobs, error);
}

static gboolean
parse_id(const char *text, gint64 *ret_id, GError **error)
{
  guint64 id;

  if (!g_ascii_string_to_unsigned(text, 10, 1, G_MAXINT64, &id, NULL)) {
    dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no job '%s'", text);
    return dr_error_remedy(error, "drover jobs lists them");
  }
  *ret_id = (gint64)id;
  return TRUE;
}

JsonObject *
dr_service_job(DrService *service, const char *text, GError **error)
{
  gint64 id;

  return parse_id(text, &id, error) ? dr_jobs_show(service->jobs, id, error) : NULL;
}

JsonObject *
dr_service_job_wait(DrService *service, const char *text, int timeout_ms, GError **error)
{
  gint64 id;

  return parse_id(text, &id, error)
             ? dr_jobs_wait(service->jobs, id, CLAMP(timeout_ms, 0, WAIT_MAX_MS), error)
             : NULL;
}

JsonObject *
dr_service_job_cancel(DrService *service, const char *text, GError **error)
{
  gint64 id;

  return parse_id(text, &id, error) ? dr_jobs_cancel(service->jobs, id, error) : NULL;
}

JsonObject *
dr_service_report(DrService *service, const char *text, GError **error)
{
  gint64 id;

  return parse_id(text, &id, error) ? dr_jobs_report(service->jobs, id, error) : NULL;
}

JsonObject *
dr_service_stats(DrService *service, const char *kind, GError **error)
{
  return dr_stats(service->host->store, kind, error);
}
