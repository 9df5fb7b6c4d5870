/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The registry of VMs: how they come in, what is shown of them, and what an earlier droverd left. */
#include "base/error.h"
#include "base/notify.h"
#include "daemon/libvirt-helper.h"
#include "daemon/request.h"
#include "daemon/service-internal.h"
#include "daemon/service-libvirt.h"
#include "daemon/service-net.h"
#include "daemon/service-new.h"
#include "job/inventory.h"
#include "job/job-metrics.h"
#include "job/revert.h"
#include "job/upgrade.h"
#include "vm/start.h"

#include <string.h>
#include <unistd.h>

#define MAX_VMS 1000

/* --- The registry --- */

DrVm *
dr_service_find(DrService *service, const char *name, GError **error)
{
  DrVm *vm;

  g_mutex_lock(&service->lock);
  vm = g_hash_table_lookup(service->vms, name);
  if (vm)
    dr_vm_ref(vm);
  g_mutex_unlock(&service->lock);
  if (!vm) {
    dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no VM called '%.80s'", name);
    dr_error_remedy(error, "drover list shows the VMs of this host");
  }
  return vm;
}

static gint
by_name(gconstpointer a, gconstpointer b)
{
  return strcmp(dr_vm_name(*(DrVm *const *)a), dr_vm_name(*(DrVm *const *)b));
}

GPtrArray *
dr_service_all(DrService *service)
{
  GPtrArray *vms = g_ptr_array_new_with_free_func((GDestroyNotify)dr_vm_unref);
  GHashTableIter iter;
  gpointer vm;

  g_mutex_lock(&service->lock);
  g_hash_table_iter_init(&iter, service->vms);
  while (g_hash_table_iter_next(&iter, NULL, &vm))
    g_ptr_array_add(vms, dr_vm_ref(vm));
  g_mutex_unlock(&service->lock);
  g_ptr_array_sort(vms, by_name);
  return vms;
}

void
dr_service_remove(DrService *service, const char *name)
{
  g_mutex_lock(&service->lock);
  g_hash_table_remove(service->vms, name);
  g_mutex_unlock(&service->lock);
}

gboolean
dr_service_reserve(DrService *service, const char *name, GError **error)
{
  gboolean taken, full;

  if (!dr_vm_check_name(name, error))
    return FALSE;
  g_mutex_lock(&service->lock);
  taken = g_hash_table_contains(service->vms, name) || g_hash_table_contains(service->coming, name);
  full = g_hash_table_size(service->vms) + g_hash_table_size(service->coming) >= MAX_VMS;
  if (!taken && !full)
    g_hash_table_add(service->coming, g_strdup(name));
  g_mutex_unlock(&service->lock);
  if (full)
    return dr_error_set(error, DR_ERROR_BUSY, "drover keeps at most %d VMs a host", MAX_VMS);
  if (!taken)
    return TRUE;
  dr_error_set(error, DR_ERROR_EXISTS, "the name '%s' is taken", name);
  return dr_error_remedy(
      error, "choose another one, or drop the old VM from drover's books: drover forget %s", name);
}

static void
publish(DrService *service, DrVm *vm)
{
  JsonObject *event = json_object_new();

  json_object_set_string_member(event, "type", "vm");
  json_object_set_int_member(event, "time_ms", g_get_real_time() / 1000);
  json_object_set_object_member(event, "vm", dr_vm_json(vm, FALSE));
  dr_events_publish(service->host->events, event);
}

JsonObject *
dr_service_settle(DrService *service, const char *name, DrVm *vm)
{
  JsonObject *object = vm ? dr_vm_json(vm, TRUE) : NULL;

  g_mutex_lock(&service->lock);
  g_hash_table_remove(service->coming, name);
  if (vm)
    g_hash_table_insert(service->vms, g_strdup(name), dr_vm_ref(vm));
  g_mutex_unlock(&service->lock);
  if (vm)
    publish(service, vm);
  return object;
}

void
dr_service_unreserve(DrService *service, const char *name)
{
  g_mutex_lock(&service->lock);
  g_hash_table_remove(service->coming, name);
  g_mutex_unlock(&service->lock);
}

static gboolean
is_same(DrVm *vm, const DrProcId *id, const char *qmp)
{
  DrVmRecord *record = dr_vm_record(vm);
  gboolean same;

  dr_vm_lock(vm);
  same = (record->id.pid == id->pid && record->id.start_time == id->start_time) ||
         (qmp && g_strcmp0(record->qmp_path, qmp) == 0);
  same = same && !g_str_equal(record->state, "stopped");
  dr_vm_unlock(vm);
  return same;
}

/* One QEMU under two names would be upgraded twice. `qmp`, nullable: the path of its monitor. */
static gboolean
is_new(DrService *service, const DrProcId *id, const char *qmp, GError **error)
{
  g_autoptr(GPtrArray) vms = dr_service_all(service);

  for (guint i = 0; i < vms->len; i++) {
    const char *name = dr_vm_name(vms->pdata[i]);

    if (!is_same(vms->pdata[i], id, qmp))
      continue;
    dr_error_set(error, DR_ERROR_EXISTS, "pid %d is under drover already, as VM '%s'",
                 dr_vm_record(vms->pdata[i])->id.pid, name);
    return dr_error_remedy(error, "use it under that name, or drop it there first: drover forget %s --force",
                           name);
  }
  return TRUE;
}

/* Before its monitor is looked at, which is ours then and would only seem to be held by somebody else. */
static gboolean
is_new_request(DrService *service, JsonObject *request, GError **error)
{
  const char *qmp = dr_json_str(request, "qmp", NULL);
  DrProcId id = { 0 };

  if (!qmp && !dr_proc_identify((pid_t)dr_json_int(request, "pid", 0), &id, NULL))
    return TRUE; /* the adoption itself will say so */
  return is_new(service, &id, qmp, error);
}

static DrVm *
adopt_new(DrService *service, const char *name, JsonObject *request, GError **error)
{
  g_autoptr(DrVm) vm =
      is_new_request(service, request, error) ? dr_vm_adopt(service->host, request, error) : NULL;

  if (!vm || is_new(service, &dr_vm_record(vm)->id, NULL, error))
    return g_steal_pointer(&vm);
  dr_vm_detach(vm);
  dr_store_drop_vm(service->host->store, name, NULL);
  dr_host_remove_empty(service->host, name);
  return NULL;
}

JsonObject *
dr_service_run(DrService *service, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "name", DR_MEMBER_TEXT },
                                      { "argv", DR_MEMBER_TEXTS },
                                      { "cwd", DR_MEMBER_TEXT },
                                      { "env", DR_MEMBER_TEXTS },
                                      { "memory", DR_MEMBER_TEXT },
                                      { "hugetlb", DR_MEMBER_FLAG },
                                      { "stream", DR_MEMBER_ANY },
                                      { "bandwidth", DR_MEMBER_NUMBER, 1, DR_MIB_MAX },
                                      { NULL } };
  const char *name = dr_json_str(request, "name", NULL);
  g_autoptr(DrVm) vm = NULL;

  if (!dr_request_check(request, members, error) || !dr_service_check_stream(request, error) ||
      !dr_service_reserve(service, name, error))
    return NULL;
  vm = dr_service_run_stream(service, request, error);
  return dr_service_settle(service, name, vm);
}

JsonObject *
dr_service_adopt(DrService *service, JsonObject *request, GError **error)
{
  static const DrMember members[] = {
    { "name", DR_MEMBER_TEXT }, { "pid", DR_MEMBER_NUMBER, 1, G_MAXINT }, { "qmp", DR_MEMBER_TEXT }, { NULL }
  };
  const char *name = dr_json_str(request, "name", NULL);
  g_autoptr(GMutexLocker) locker = NULL;
  g_autoptr(DrVm) vm = NULL;

  if (!dr_request_check(request, members, error) || !dr_service_reserve(service, name, error))
    return NULL;
  locker = g_mutex_locker_new(&service->adopting);
  vm = adopt_new(service, name, request, error);
  return dr_service_settle(service, name, vm);
}

/* --- Looking --- */

/* A borrowed monitor tells nothing by itself: its VM's state is asked for, unless it is busy. */
static void
refresh_borrowed(DrVm *vm)
{
  DrQmp *qmp;

  if (!dr_vm_record(vm)->borrowed || dr_vm_job(vm))
    return;
  qmp = dr_vm_take(vm, "a look at its state", 500, NULL);
  if (!qmp)
    return;
  dr_vm_refresh(vm, qmp);
  dr_vm_give(vm, qmp);
}

JsonArray *
dr_service_list(DrService *service, gboolean fresh, GError **error)
{
  g_autoptr(GPtrArray) vms = dr_service_all(service);
  JsonArray *array = json_array_new();

  for (guint i = 0; i < vms->len; i++) {
    if (fresh)
      refresh_borrowed(vms->pdata[i]);
    json_array_add_object_element(array, dr_vm_json(vms->pdata[i], FALSE));
  }
  return array;
}

static void
add_inventory(DrVm *vm, JsonObject *object)
{
  static const char *const members[] = { "memory", "disks", "nics" };
  DrQmp *qmp = dr_vm_job(vm) ? NULL : dr_vm_take(vm, "drover show", DR_LEASE_MS, NULL);
  g_autoptr(DrInventory) inventory = qmp ? dr_inventory_read(qmp, NULL) : NULL;
  g_autoptr(JsonObject) details = inventory ? dr_inventory_json(inventory) : json_object_new();

  if (qmp)
    dr_vm_give(vm, qmp);
  for (guint i = 0; i < G_N_ELEMENTS(members); i++) {
    JsonNode *node = json_object_get_member(details, members[i]);

    if (node)
      json_object_set_member(object, members[i], json_node_copy(node));
    else
      json_object_set_null_member(object, members[i]);
  }
}

JsonObject *
dr_service_show(DrService *service, const char *name, GError **error)
{
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  JsonObject *object;

  if (!vm)
    return NULL;
  refresh_borrowed(vm);
  object = dr_vm_json(vm, TRUE);
  add_inventory(vm, object);
  return object;
}

JsonObject *
dr_service_version(DrService *service, GError **error)
{
  guint vms;

  g_mutex_lock(&service->lock);
  vms = g_hash_table_size(service->vms);
  g_mutex_unlock(&service->lock);
  return dr_json("{'version': <%s>, 'host': <%s>, 'run_dir': <%s>, 'state_dir': <%s>, 'uptime_s': <%x>, "
                 "'vms': <%x>, 'jobs': <%x>, 'pid': <%i>, 'libvirt': <%b>}",
                 DROVER_VERSION, g_get_host_name(), service->host->run_dir, service->host->state_dir,
                 (g_get_monotonic_time() - service->started_us) / G_USEC_PER_SEC, (gint64)vms,
                 (gint64)dr_jobs_active(service->jobs), (int)getpid(), dr_libvirt_helper_installed());
}

/* --- Start and end --- */

static gboolean
load_vms(DrService *service, GError **error)
{
  g_autoptr(JsonObject) records = dr_store_load_vms(service->host->store, error);
  g_autoptr(GList) names = NULL;

  if (!records)
    return FALSE;
  names = json_object_get_members(records);
  for (GList *name = names; name; name = name->next) {
    DrVm *vm =
        dr_vm_from_record(service->host, name->data, json_object_get_object_member(records, name->data));

    g_hash_table_insert(service->vms, g_strdup(name->data), vm);
  }
  return TRUE;
}

/* Takes up a job of an earlier droverd: claims its VM, so that nobody else touches it before its guest is found. */
static void
take_up(DrService *service, const DrJobRow *row, GPtrArray *batch)
{
  DrVm *vm = g_hash_table_lookup(service->vms, row->vm);
  DrJob *job = vm ? dr_jobs_resume(service->jobs, row, vm, NULL) : NULL;

  if (!job) {
    /* Its VM was forgotten; or it was made, and could not begin, while another job had the VM; or the VM has left for
     * another host. */
    gboolean gone = g_str_equal(row->kind, "migrate") && g_str_equal(row->stage, "commit");

    if (!gone)
      json_object_set_object_member(
          row->record, "error",
          dr_json("{'code': <'closed'>, 'message': <'droverd ended before it began'>, "
                  "'remedy': <'start it again'>}"));
    dr_job_metrics_ended(row->kind, gone ? "succeeded" : "failed", row->record);
    dr_store_put_job(service->host->store, row->id, gone ? "succeeded" : "failed", row->stage, row->record,
                     NULL);
    return;
  }
  g_message("job %" G_GINT64_FORMAT ": an earlier droverd left it unfinished", row->id);
  dr_vm_reserve(vm, "the recovery of a job");
  g_ptr_array_add(batch, job);
}

static gboolean
recover(DrJob *job, GError **error)
{
  gboolean done;

  if (g_str_has_prefix(dr_job_kind(job), "disk-")) {
    dr_vm_give(dr_job_vm(job), NULL); /* it runs where it did: nothing is to be found out about that */
    dr_vm_attach(dr_job_vm(job));
    return dr_service_recover_disk(job, error);
  }
  if (!g_str_equal(dr_job_kind(job), "upgrade") && !g_str_equal(dr_job_kind(job), "snapshot-revert"))
    return dr_service_recover_move(job, error);
  done = g_str_equal(dr_job_kind(job), "upgrade") ? dr_upgrade_recover(job, error)
                                                  : dr_revert_recover(job, error);
  dr_vm_attach(dr_job_vm(job));
  return done;
}

/* A job whose journal cannot be read may have changed hands already: nothing is guessed. */
static gboolean
journals_are_readable(DrService *service, GPtrArray *rows, GError **error)
{
  for (guint i = 0; i < rows->len; i++) {
    const DrJobRow *row = rows->pdata[i];
    g_autoptr(JsonArray) journal = dr_store_load_journal(service->host->store, row->id, error);

    if (journal)
      continue;
    g_prefix_error(error, "job %" G_GINT64_FORMAT " (%s of VM '%s') is unfinished: ", row->id, row->kind,
                   row->vm);
    return dr_error_remedy(
        error, "put a copy of the state file back; its VM runs on as it is, under one of the QEMUs that "
               "have its name in their command line");
  }
  return TRUE;
}

/* Of a VM at most one had begun: those first. */
static gboolean
recover_jobs(DrService *service, GError **error)
{
  static const char *const states[] = { "running", "queued" };
  g_autoptr(GPtrArray) rows = dr_store_list_jobs(service->host->store, TRUE, 10000, error);
  g_autoptr(GPtrArray) batch = g_ptr_array_new_with_free_func((GDestroyNotify)dr_job_unref);

  if (!rows || !journals_are_readable(service, rows, error))
    return FALSE;
  for (guint n = 0; n < G_N_ELEMENTS(states); n++)
    for (guint i = 0; i < rows->len; i++)
      if (g_str_equal(((DrJobRow *)rows->pdata[i])->state, states[n]))
        take_up(service, rows->pdata[i], batch);
  if (batch->len)
    dr_jobs_recover(service->jobs, g_steal_pointer(&batch), recover);
  return TRUE;
}

DrService *
dr_service_new(DrHost *host, const DrConfig *config, GError **error)
{
  DrService *service = g_new0(DrService, 1);
  g_autoptr(GPtrArray) vms = NULL;

  service->host = host;
  host->service = service;
  g_mutex_init(&service->lock);
  g_mutex_init(&service->adopting);
  service->vms = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)dr_vm_unref);
  service->coming = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  service->jobs = dr_jobs_new(host);
  service->started_us = g_get_monotonic_time();
  service->libvirt = dr_service_libvirt_new(
      host); /* first: what an earlier droverd left may have stopped libvirt's daemon */
  if (!dr_service_open_net(service, config, error) || !load_vms(service, error) ||
      !recover_jobs(service, error)) {
    dr_service_free(service, 0);
    return NULL;
  }
  vms = dr_service_all(service);
  for (guint i = 0; i < vms->len; i++)
    if (!dr_vm_job(vms->pdata[i])) {
      dr_notify("EXTEND_TIMEOUT_USEC=30000000"); /* a QEMU that does not greet costs 5 s */
      dr_vm_attach(vms->pdata[i]);
    }
  dr_service_take_up_streams(service);
  if (!dr_service_listen(service, error)) {
    dr_service_free(service, 0);
    return NULL;
  }
  return service;
}

void
dr_service_end_waits(DrService *service)
{
  g_atomic_int_set(&service->ending, TRUE);
}

gboolean
dr_service_free(DrService *service, int grace_ms)
{
  DrDeadline deadline = dr_deadline_in(grace_ms);
  g_autoptr(GPtrArray) vms = NULL;

  while (dr_jobs_passing(service->jobs) && !dr_deadline_passed(deadline))
    g_usleep(10000);
  dr_service_libvirt_free(g_steal_pointer(&service->libvirt), deadline);
  if (dr_jobs_active(service->jobs)) {
    g_warning("%u jobs are still under way; the next droverd settles them", dr_jobs_active(service->jobs));
    return FALSE; /* their threads use all of this until the process ends */
  }
  dr_service_close_net(service);
  vms = dr_service_all(service);
  for (guint i = 0; i < vms->len; i++)
    dr_vm_detach(vms->pdata[i]);
  g_clear_pointer(&vms, g_ptr_array_unref);
  g_hash_table_unref(service->vms);
  g_hash_table_unref(service->coming);
  dr_jobs_free(service->jobs);
  g_mutex_clear(&service->lock);
  g_mutex_clear(&service->adopting);
  g_free(service);
  return TRUE;
}
