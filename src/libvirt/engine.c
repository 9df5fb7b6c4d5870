/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See engine.h. */
#include "libvirt/engine.h"
#include "base/error.h"
#include "base/fd.h"
#include "job/upgrade-internal.h"
#include "libvirt/journal.h"
#include "vm/start.h"

#include <string.h>

#define WAIT_MS (2 * 60 * 60 * 1000) /* a copy of all RAM has its own limits */
#define LOOK_MS 1000
#define MONITOR_MS 10000

struct DrLibvirtEngine {
  DrHost host;
  DrJobs *jobs;
  GHashTable *vms; /* by the name that the VM has here */
};

DrLibvirtEngine *
dr_libvirt_engine_new(const char *dir, const char *run_dir, const char *cache_dir, GError **error)
{
  DrLibvirtEngine *engine = g_new0(DrLibvirtEngine, 1);

  engine->host.state_dir = g_build_filename(dir, "engine", NULL);
  engine->host.run_dir = g_strdup(run_dir);
  engine->host.cache_dir = g_strdup(cache_dir);
  engine->host.events = dr_events_new();
  engine->host.context = g_main_context_new(); /* nobody runs it: nothing of it is needed */
  engine->vms = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)dr_vm_unref);
  if (!dr_mkdir(engine->host.state_dir, 0700, error) || !dr_mkdir(cache_dir, 0700, error))
    return NULL;
  engine->host.store = dr_store_open(engine->host.state_dir, error);
  if (!engine->host.store)
    return NULL;
  /* After a boot no domain is left: libvirt's daemon need not be away for the disk. */
  dr_store_relax(engine->host.store);
  engine->jobs = dr_jobs_new(&engine->host);
  return engine;
}

void
dr_libvirt_engine_on_commit(DrLibvirtEngine *engine,
                            void (*on_commit)(const char *vm, int pid, gpointer data), gpointer data)
{
  engine->host.on_commit = on_commit;
  engine->host.on_commit_data = data;
}

void
dr_libvirt_engine_remove(const char *dir, const char *run_dir)
{
  g_autofree char *engine = g_build_filename(dir, "engine", NULL);
  g_autofree char *vms = g_build_filename(run_dir, "vms", NULL);

  dr_remove_tree(engine);
  dr_remove_tree(vms);
}

/* --- Where each is --- */

/* What its time and its pause went to; not its samples, which are many. */
static void
note_times(DrLibvirtEngine *engine, JsonObject *domain, gint64 job)
{
  g_autoptr(JsonObject) report = dr_jobs_report(engine->jobs, job, NULL);

  if (!report)
    return;
  json_object_remove_member(report, "samples");
  json_object_remove_member(report, "job");
  json_object_set_object_member(domain, "report", json_object_ref(report));
}

/* What became of it, as its record tells: the record has the new process from the commit on. */
static void
note_end(DrLibvirtEngine *engine, JsonObject *domain, gint64 job)
{
  DrVm *vm = g_hash_table_lookup(engine->vms, dr_json_str(domain, "vm", ""));
  g_autoptr(JsonObject) shown = job ? dr_jobs_show(engine->jobs, job, NULL) : NULL;
  JsonObject *error = shown ? dr_json_obj(shown, "error") : NULL;
  pid_t pid = vm ? dr_vm_record(vm)->id.pid : (pid_t)dr_json_int(domain, "pid_before", 0);
  gboolean lives = vm ? dr_vm_check(vm) : TRUE;
  gboolean moved = pid != dr_json_int(domain, "pid_before", 0);

  json_object_set_string_member(domain, "state", !lives ? "lost" : moved ? "moved" : "stayed");
  json_object_set_int_member(domain, "pid", pid);
  json_object_set_null_member(domain, "note");
  if (shown)
    json_object_set_object_member(domain, "job", json_object_ref(shown));
  if (job)
    note_times(engine, domain, job);
  if (error && (!moved || !lives))
    json_object_set_object_member(domain, "error", json_object_ref(error));
}

/* TRUE: it has ended. What it waits for meanwhile (a QEMU that does not answer) is told by its VM's note. */
static gboolean
wait_for(DrLibvirtEngine *engine, gint64 id, JsonObject *domain, GFunc tell, gpointer data)
{
  DrDeadline deadline = dr_deadline_in(WAIT_MS);
  DrVm *vm = g_hash_table_lookup(engine->vms, dr_json_str(domain, "vm", ""));

  while (!dr_deadline_passed(deadline)) {
    g_autofree char *note = NULL;

    if (dr_jobs_wait_gone(engine->jobs, id, LOOK_MS))
      return TRUE;
    if (!vm)
      continue;
    dr_vm_lock(vm);
    note = g_strdup(dr_vm_record(vm)->note);
    dr_vm_unlock(vm);
    if (g_strcmp0(note, dr_json_str(domain, "note", NULL)) != 0) {
      json_object_set_string_member(domain, "note", note);
      tell(domain, data);
    }
  }
  return FALSE;
}

static gboolean
endless(GError **error)
{
  dr_error_set(error, DR_ERROR_TIMEOUT, "the upgrade of a domain does not come to an end");
  return dr_error_remedy(
      error, "see what it waits for (drover upgrade --libvirt); a QEMU that hangs for good is to be killed");
}

/* --- Upgrade --- */

static DrVm *
adopt(DrLibvirtEngine *engine, JsonObject *domain, GError **error)
{
  const char *name = dr_json_str(domain, "vm", "");
  DrProcId id = { .pid = (pid_t)dr_json_int(domain, "pid_before", 0),
                  .start_time = (guint64)dr_json_int(domain, "start_time", 0) };
  DrVm *vm = dr_vm_adopt_foreign(&engine->host, name, &id, dr_json_str(domain, "monitor", ""),
                                 dr_json_str(domain, "log_file", ""), error);

  if (vm)
    g_hash_table_insert(engine->vms, g_strdup(name), vm);
  return vm;
}

static gboolean
run_job(DrJob *job, GError **error)
{
  return dr_vm_describe_foreign(dr_job_vm(job), error) && dr_upgrade_run(job, error);
}

/* The emulator is always named: what stands on the command line may be what a wrapper script has become. */
static DrJob *
add_job(DrLibvirtEngine *engine, JsonObject *domain, const char *memory, GError **error)
{
  g_autoptr(JsonObject) request = json_object_new();
  DrVm *vm = adopt(engine, domain, error);

  json_object_set_string_member(request, "qemu", dr_json_str(domain, "emulator", NULL));
  json_object_set_string_member(request, "memory", memory);
  return vm ? dr_jobs_add(engine->jobs, "upgrade", vm, request, error) : NULL;
}

gboolean
dr_libvirt_engine_upgrade(DrLibvirtEngine *engine, JsonArray *domains, const char *memory, guint parallel,
                          GFunc on_end, gpointer data, GError **error)
{
  guint n = json_array_get_length(domains);
  g_autofree gint64 *ids = g_new0(gint64, n + 1);
  GPtrArray *batch = g_ptr_array_new_with_free_func((GDestroyNotify)dr_job_unref);

  for (guint i = 0; i < n; i++) {
    JsonObject *domain = json_array_get_object_element(domains, i);
    g_autoptr(GError) local = NULL;
    DrJob *job;

    if (!g_str_equal(dr_json_str(domain, "state", ""), "waiting"))
      continue;
    job = add_job(engine, domain, memory, &local);
    if (job) {
      ids[i] = dr_job_id(job);
      json_object_set_string_member(domain, "state", "moving");
      g_ptr_array_add(batch, job);
    } else {
      json_object_set_string_member(domain, "state", "stayed");
      dr_libvirt_put_error(domain, local);
    }
  }
  dr_jobs_run(engine->jobs, batch, run_job, parallel);
  for (guint i = 0; i < n; i++) {
    JsonObject *domain = json_array_get_object_element(domains, i);

    if (!ids[i])
      continue;
    if (!wait_for(engine, ids[i], domain, on_end, data))
      return endless(error);
    note_end(engine, domain, ids[i]);
    on_end(domain, data);
  }
  return TRUE;
}

/* --- Recovery --- */

static gboolean
load(DrLibvirtEngine *engine, GError **error)
{
  g_autoptr(JsonObject) records = dr_store_load_vms(engine->host.store, error);
  g_autoptr(GList) names = records ? json_object_get_members(records) : NULL;

  for (GList *name = names; name; name = name->next)
    g_hash_table_insert(
        engine->vms, g_strdup(name->data),
        dr_vm_from_record(&engine->host, name->data, json_object_get_object_member(records, name->data)));
  return records != NULL;
}

/* The last job of each VM, by the VM's name; those that had not ended go on. */
static GHashTable *
run_recovery(DrLibvirtEngine *engine, GError **error)
{
  g_autoptr(GPtrArray) rows = dr_store_list_jobs(engine->host.store, FALSE, 10000, error);
  g_autoptr(GHashTable) last = rows ? g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free) : NULL;
  g_autoptr(GPtrArray) batch = g_ptr_array_new_with_free_func((GDestroyNotify)dr_job_unref);

  for (guint i = 0; rows && i < rows->len; i++) {
    const DrJobRow *row = rows->pdata[i];
    DrVm *vm = g_hash_table_lookup(engine->vms, row->vm);
    gboolean open = g_str_equal(row->state, "running") || g_str_equal(row->state, "queued");
    DrJob *job = open && vm ? dr_jobs_resume(engine->jobs, row, vm, NULL) : NULL;

    if (!g_hash_table_contains(last, row->vm))
      g_hash_table_insert(last, g_strdup(row->vm), g_memdup2(&row->id, sizeof row->id));
    if (!job)
      continue;
    dr_vm_reserve(vm, "the recovery of a job");
    g_ptr_array_add(batch, job);
  }
  if (!last)
    return NULL;
  dr_jobs_recover(engine->jobs, g_steal_pointer(&batch), dr_upgrade_recover);
  return g_steal_pointer(&last);
}

gboolean
dr_libvirt_engine_recover(DrLibvirtEngine *engine, JsonArray *domains, GFunc tell, gpointer data,
                          GError **error)
{
  g_autoptr(GHashTable) jobs = load(engine, error) ? run_recovery(engine, error) : NULL;

  for (guint i = 0; jobs && i < json_array_get_length(domains); i++) {
    JsonObject *domain = json_array_get_object_element(domains, i);
    const char *state = dr_json_str(domain, "state", "");
    const gint64 *job = g_hash_table_lookup(jobs, dr_json_str(domain, "vm", ""));

    if (job && !wait_for(engine, *job, domain, tell, data))
      return endless(error);
    if (!g_strv_contains((const char *const[]){ "refused", "patched", "done", NULL }, state))
      note_end(engine, domain, job ? *job : 0);
  }
  return jobs != NULL;
}

DrQmp *
dr_libvirt_engine_take(DrLibvirtEngine *engine, JsonObject *domain, DrProcId *ret_id, GError **error)
{
  DrVm *vm = g_hash_table_lookup(engine->vms, dr_json_str(domain, "vm", ""));
  DrQmp *qmp;

  if (!vm) {
    dr_error_set(error, DR_ERROR_INTERNAL, "domain '%s' is not in the run's state file",
                 dr_json_str(domain, "name", "?"));
    return NULL;
  }
  *ret_id = dr_vm_record(vm)->id;
  qmp = dr_qmp_connect(dr_vm_record(vm)->qmp_path, FALSE, dr_deadline_in(MONITOR_MS), error);
  if (!qmp || dr_upgrade_answers_for(qmp, ret_id))
    return qmp;
  dr_qmp_free(qmp);
  dr_error_set(error, DR_ERROR_INTERNAL,
               "another process than the QEMU of domain '%s' (pid %d) answers at its monitor",
               dr_json_str(domain, "name", "?"), ret_id->pid);
  return NULL;
}
