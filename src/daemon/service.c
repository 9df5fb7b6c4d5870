/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The registry of VMs and what can be done with each. */
#include "base/error.h"
#include "base/fd.h"
#include "daemon/request.h"
#include "daemon/service-new.h"
#include "job/inventory.h"
#include "job/preflight.h"
#include "job/upgrade.h"
#include "vm/console.h"
#include "vm/start.h"

#include <poll.h>
#include <signal.h>
#include <string.h>

#define LEASE_MS 5000
#define STOP_DEFAULT_S 60
#define LOOK_MS 1000
#define STOP_MAX_S 86400
#define WAIT_MAX_MS 60000
#define MAX_VMS 1000

struct DrService {
  DrHost *host;
  GMutex lock;
  GMutex adopting;    /* two adoptions of one QEMU must see each other */
  GHashTable *vms;    /* name -> DrVm */
  GHashTable *coming; /* set of names that are being started or adopted */
  DrJobs *jobs;
  gint64 started_us;
};

/* --- The registry --- */

static DrVm *
find(DrService *service, const char *name, GError **error)
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

/* All of them, by name. (transfer full) */
static GPtrArray *
all(DrService *service)
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

/* Reserves a name while a VM is made under it. */
static gboolean
reserve(DrService *service, const char *name, GError **error)
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

/* Ends the reservation; takes the VM (nullable) in. Returns its long form. */
static JsonObject *
settle(DrService *service, const char *name, DrVm *vm)
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
  g_autoptr(GPtrArray) vms = all(service);

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
                                      { NULL } };
  const char *name = dr_json_str(request, "name", NULL);
  g_autoptr(DrVm) vm = NULL;

  if (!dr_request_check(request, members, error) || !reserve(service, name, error))
    return NULL;
  vm = dr_vm_run(service->host, request, error);
  return settle(service, name, vm);
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

  if (!dr_request_check(request, members, error) || !reserve(service, name, error))
    return NULL;
  locker = g_mutex_locker_new(&service->adopting);
  vm = adopt_new(service, name, request, error);
  return settle(service, name, vm);
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
dr_service_list(DrService *service, GError **error)
{
  g_autoptr(GPtrArray) vms = all(service);
  JsonArray *array = json_array_new();

  for (guint i = 0; i < vms->len; i++) {
    refresh_borrowed(vms->pdata[i]);
    json_array_add_object_element(array, dr_vm_json(vms->pdata[i], FALSE));
  }
  return array;
}

static void
add_inventory(DrVm *vm, JsonObject *object)
{
  static const char *const members[] = { "memory", "disks", "nics" };
  DrQmp *qmp = dr_vm_job(vm) ? NULL : dr_vm_take(vm, "drover show", LEASE_MS, NULL);
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
  g_autoptr(DrVm) vm = find(service, name, error);
  JsonObject *object;

  if (!vm)
    return NULL;
  refresh_borrowed(vm);
  object = dr_vm_json(vm, TRUE);
  add_inventory(vm, object);
  return object;
}

/* --- Pause, resume, QMP --- */

static gboolean
is_running(DrVm *vm, GError **error)
{
  DrVmRecord *record = dr_vm_record(vm);

  if (dr_vm_check(vm))
    return TRUE;
  dr_vm_lock(vm);
  dr_error_set(error, DR_ERROR_NOT_FOUND, "VM '%s' does not run: it %s", record->name,
               record->exit_text ? record->exit_text : "has ended");
  dr_vm_unlock(vm);
  return dr_error_remedy(error, "drover show %s names its log", dr_vm_name(vm));
}

static JsonObject *
simple_command(DrService *service, const char *name, const char *command, GError **error)
{
  g_autoptr(DrVm) vm = find(service, name, error);
  DrQmp *qmp;
  gboolean done;

  if (!vm)
    return NULL;
  qmp = dr_vm_take(vm, command, LEASE_MS, error);
  if (!qmp)
    return NULL;
  done = dr_qmp_do(qmp, command, NULL, error);
  if (done)
    dr_vm_refresh(vm, qmp);
  dr_vm_give(vm, qmp);
  return done ? dr_vm_json(vm, FALSE) : NULL;
}

JsonObject *
dr_service_pause(DrService *service, const char *name, GError **error)
{
  return simple_command(service, name, "stop", error);
}

JsonObject *
dr_service_resume(DrService *service, const char *name, GError **error)
{
  return simple_command(service, name, "cont", error);
}

/* What would take the guest out of drover's hands without its knowing. */
static gboolean
is_allowed(const char *command, const char *name, GError **error)
{
  if (!g_str_equal(command, "quit") && !g_str_equal(command, "q") &&
      !g_str_equal(command, "qmp_capabilities") && !g_str_has_prefix(command, "migrate"))
    return TRUE;
  dr_error_set(error, DR_ERROR_REFUSED, "'%s' would take VM '%s' out of drover's hands", command, name);
  return dr_error_remedy(
      error, "use drover stop or drover upgrade, or drover forget it first and use your own monitor");
}

/* The same by the human monitor, whose commands have the same names but for "q". */
static gboolean
line_is_allowed(JsonObject *arguments, const char *name, GError **error)
{
  const char *line = dr_json_str(arguments, "command-line", "");
  g_autofree char *word = NULL;

  line += strspn(line, " \t");
  word = g_strndup(line, strcspn(line, " \t"));
  return is_allowed(word, name, error);
}

static gboolean
check_command(JsonObject *command, const char *name, GError **error)
{
  static const DrMember members[] = {
    { "execute", DR_MEMBER_TEXT }, { "arguments", DR_MEMBER_OBJECT }, { "id", DR_MEMBER_ANY }, { NULL }
  };
  const char *execute = dr_json_str(command, "execute", NULL);

  if (!dr_request_check(command, members, error))
    return FALSE;
  if (!execute)
    return dr_error_set(error, DR_ERROR_INVALID, "a QMP command is an object with \"execute\"");
  return is_allowed(execute, name, error) &&
         (!g_str_equal(execute, "human-monitor-command") ||
          line_is_allowed(dr_json_obj(command, "arguments"), name, error));
}

JsonObject *
dr_service_qmp(DrService *service, const char *name, JsonObject *command, GError **error)
{
  JsonObject *arguments = dr_json_obj(command, "arguments");
  JsonNode *id = json_object_get_member(command, "id");
  g_autoptr(DrVm) vm = find(service, name, error);
  g_autoptr(JsonNode) answer = NULL;
  JsonObject *object;
  DrQmp *qmp;

  if (!vm || !check_command(command, name, error))
    return NULL;
  qmp = dr_vm_take(vm, "drover qmp", LEASE_MS, error);
  if (!qmp)
    return NULL;
  answer = dr_qmp_call(qmp, dr_json_str(command, "execute", NULL),
                       arguments ? json_object_ref(arguments) : NULL, DR_QMP_TIMEOUT_MS, error);
  dr_vm_give(vm, qmp);
  if (!answer)
    return NULL;
  object = json_object_new();
  json_object_set_member(object, "return", g_steal_pointer(&answer));
  if (id)
    json_object_set_member(object, "id", json_node_copy(id));
  return object;
}

int
dr_service_console(DrService *service, const char *name, GError **error)
{
  g_autoptr(DrVm) vm = find(service, name, error);
  g_autofree char *path = NULL;
  DrVmRecord *record;

  if (!vm || !is_running(vm, error))
    return -1;
  record = dr_vm_record(vm);
  dr_vm_lock(vm);
  path = g_strdup(record->console_path);
  dr_vm_unlock(vm);
  if (!path) {
    dr_error_set(error, DR_ERROR_UNSUPPORTED, "VM '%s' has no console: its serial port goes elsewhere", name);
    dr_error_remedy(
        error, "drover show %s tells where (-serial); start it without -serial, or with -serial stdio", name);
    return -1;
  }
  if (!dr_console_ensure(dr_vm_console(vm), path, error))
    return -1;
  return dr_console_attach(dr_vm_console(vm), error);
}

/* --- Stop, forget --- */

static gboolean
wait_end(const DrProcId *id, DrDeadline deadline)
{
  dr_autofd int fd = dr_proc_open(id, NULL);
  struct pollfd end = { .fd = fd, .events = POLLIN };

  return fd < 0 || poll(&end, 1, dr_deadline_left(deadline)) > 0;
}

static gboolean
ask_to_stop(DrVm *vm, const char *command, GError **error)
{
  DrQmp *qmp = dr_vm_take(vm, "drover stop", LEASE_MS, error);
  gboolean done;

  if (!qmp)
    return FALSE;
  done = dr_qmp_do(qmp, command, NULL, error);
  dr_vm_give(vm, dr_qmp_closed(qmp) ? (dr_qmp_free(qmp), NULL) : qmp);
  return done;
}

static gboolean
stop_by_force(DrVm *vm, const DrProcId *id, GError **error)
{
  ask_to_stop(vm, "quit", NULL); /* flushes the disks; a QEMU that does not listen is killed */
  return wait_end(id, dr_deadline_in(5000)) || dr_proc_kill(id, 30000, error);
}

/* "running", "paused", "shutdown" … (transfer full) */
static char *
status_of(DrVm *vm, GError **error)
{
  DrQmp *qmp = dr_vm_take(vm, "drover stop", LEASE_MS, error);
  g_autoptr(JsonObject) status = NULL;

  if (!qmp)
    return NULL;
  status = dr_qmp_call_object(qmp, "query-status", NULL, error);
  dr_vm_give(vm, qmp);
  return status ? g_strdup(dr_json_str(status, "status", "?")) : NULL;
}

/* A guest whose vCPUs stand still sees no power button. One that has powered off under -no-shutdown only needs its QEMU to
 * end. */
static gboolean
can_see_the_button(DrVm *vm, GError **error)
{
  g_autofree char *status = status_of(vm, error);

  if (!status || g_str_equal(status, "running") || g_str_equal(status, "shutdown"))
    return status != NULL;
  dr_error_set(error, DR_ERROR_REFUSED, "the guest of VM '%s' cannot power down: it is %s", dr_vm_name(vm),
               status);
  return dr_error_remedy(error,
                         "let it run first (drover resume %s), or pull the plug: drover stop %s --force",
                         dr_vm_name(vm), dr_vm_name(vm));
}

static gboolean
has_powered_off(DrVm *vm)
{
  g_autofree char *status = status_of(vm, NULL);

  return status && g_str_equal(status, "shutdown");
}

static gboolean
stop_gently(DrVm *vm, const DrProcId *id, gint64 seconds, GError **error)
{
  DrDeadline deadline = dr_deadline_in(seconds * 1000);

  if (!can_see_the_button(vm, error) || !ask_to_stop(vm, "system_powerdown", error))
    return FALSE;
  do {
    if (has_powered_off(vm))
      ask_to_stop(vm, "quit", NULL);
    if (wait_end(id, MIN(deadline, dr_deadline_in(LOOK_MS))))
      return TRUE;
  } while (!dr_deadline_passed(deadline));
  dr_error_set(error, DR_ERROR_TIMEOUT, "the guest of VM '%s' was asked to power down and has not in %d s",
               dr_vm_name(vm), (int)seconds);
  return dr_error_remedy(error, "wait longer (--timeout), or pull the plug: drover stop %s --force",
                         dr_vm_name(vm));
}

static gboolean
stop_claimed(DrVm *vm, JsonObject *request, GError **error)
{
  gint64 seconds = dr_json_int(request, "timeout", STOP_DEFAULT_S);
  DrProcId id;

  if (!is_running(vm, error))
    return FALSE;
  dr_vm_lock(vm);
  id = dr_vm_record(vm)->id;
  dr_vm_unlock(vm);
  return dr_json_bool(request, "force", FALSE) ? stop_by_force(vm, &id, error)
                                               : stop_gently(vm, &id, seconds, error);
}

JsonObject *
dr_service_stop(DrService *service, const char *name, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "force", DR_MEMBER_FLAG },
                                      { "timeout", DR_MEMBER_NUMBER, 1, STOP_MAX_S },
                                      { NULL } };
  g_autoptr(DrVm) vm = dr_request_check(request, members, error) ? find(service, name, error) : NULL;
  g_autoptr(GError) local = NULL;
  gboolean done;

  /* No job may begin meanwhile: it would put another process in the place of the one that is being ended. */
  if (!vm || !dr_vm_claim(vm, DR_VM_ENDING, error))
    return NULL;
  done = stop_claimed(vm, request, error);
  dr_vm_check(vm);
  if (!dr_vm_save(vm, &local)) /* where it has ended, it has: the next droverd will see it, too */
    g_warning("%s", local->message);
  dr_vm_release(vm);
  return done ? dr_vm_json(vm, FALSE) : NULL;
}

static void
remove_tree(const char *path)
{
  g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    g_autofree char *file = g_build_filename(path, name, NULL);

    unlink(file);
  }
  rmdir(path);
}

static void
remove_directories(DrService *service, const char *name, gboolean lives)
{
  g_autofree char *run_dir = g_build_filename(service->host->run_dir, "vms", name, NULL);
  g_autofree char *state_dir = g_build_filename(service->host->state_dir, "vms", name, NULL);

  if (lives) { /* its QEMU may still have its sockets and its log there */
    dr_host_remove_empty(service->host, name);
    return;
  }
  remove_tree(run_dir);
  remove_tree(state_dir);
}

static gboolean
forget_claimed(DrService *service, DrVm *vm, gboolean force, GError **error)
{
  const char *name = dr_vm_name(vm);
  gboolean lives = dr_vm_check(vm);

  if (lives && !dr_vm_record(vm)->borrowed && !force) {
    dr_error_set(error, DR_ERROR_REFUSED, "VM '%s' runs, and would run on without anybody to look after it",
                 name);
    return dr_error_remedy(error, "stop it first (drover stop %s), or forget it all the same: --force", name);
  }
  if (!dr_store_drop_vm(service->host->store, name, error))
    return FALSE;
  dr_vm_detach(vm);
  g_mutex_lock(&service->lock);
  g_hash_table_remove(service->vms, name);
  g_mutex_unlock(&service->lock);
  remove_directories(service, name, lives);
  return TRUE;
}

gboolean
dr_service_forget(DrService *service, const char *name, gboolean force, GError **error)
{
  g_autoptr(DrVm) vm = find(service, name, error);
  gboolean done;

  if (!vm || !dr_vm_claim(vm, DR_VM_ENDING, error))
    return FALSE;
  done = forget_claimed(service, vm, force, error);
  dr_vm_release(vm);
  return done;
}

/* --- Jobs --- */

/* The VMs that a request is about; unknown names fail it before anything has begun. */
static GPtrArray *
requested_vms(DrService *service, JsonObject *request, GError **error)
{
  g_auto(GStrv) names = dr_json_strv(dr_json_arr(request, "vms"));
  g_autoptr(GPtrArray) vms = NULL;

  if (dr_json_bool(request, "all", FALSE)) {
    vms = all(service);
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
    DrVm *vm = find(service, *name, error);

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

JsonArray *
dr_service_upgrade(DrService *service, JsonObject *request, GError **error)
{
  g_autoptr(GPtrArray) vms =
      check_upgrade_request(request, error) ? requested_vms(service, request, error) : NULL;
  g_autoptr(GPtrArray) batch = g_ptr_array_new_with_free_func((GDestroyNotify)dr_job_unref);
  JsonArray *array;

  if (!vms || !none_busy(vms, error))
    return NULL;
  for (guint i = 0; i < vms->len; i++) {
    DrJob *job = dr_jobs_add(service->jobs, "upgrade", vms->pdata[i], request, error);

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
    dr_jobs_run(service->jobs, g_steal_pointer(&batch), dr_upgrade_run,
                (guint)dr_json_int(request, "parallel", 1));
  return array;
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
dr_service_upgrade_check(DrService *service, JsonObject *request, GError **error)
{
  g_autoptr(GPtrArray) vms =
      check_upgrade_request(request, error) ? requested_vms(service, request, error) : NULL;
  JsonArray *array;

  if (!vms || !none_busy(vms, error))
    return NULL;
  array = json_array_new();
  for (guint i = 0; i < vms->len; i++) {
    g_autoptr(GError) local = NULL;
    JsonObject *report = dr_upgrade_check(vms->pdata[i], request, &local);

    json_array_add_object_element(array, report ? report : failed_report(vms->pdata[i], local));
  }
  return array;
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
dr_service_version(DrService *service, GError **error)
{
  guint vms;

  g_mutex_lock(&service->lock);
  vms = g_hash_table_size(service->vms);
  g_mutex_unlock(&service->lock);
  return dr_json(
      "{'version': <%s>, 'run_dir': <%s>, 'state_dir': <%s>, 'uptime_s': <%x>, 'vms': <%x>, 'jobs': <%x>}",
      DROVER_VERSION, service->host->run_dir, service->host->state_dir,
      (g_get_monotonic_time() - service->started_us) / G_USEC_PER_SEC, (gint64)vms,
      (gint64)dr_jobs_active(service->jobs));
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
    /* Its VM was forgotten; or it was made, and could not begin, while another job had the VM. */
    dr_store_put_job(service->host->store, row->id, "failed", row->stage, row->record, NULL);
    return;
  }
  g_message("job %" G_GINT64_FORMAT ": an earlier droverd left it unfinished", row->id);
  dr_vm_reserve(vm, "the recovery of an upgrade");
  g_ptr_array_add(batch, job);
}

static gboolean
recover(DrJob *job, GError **error)
{
  gboolean done = dr_upgrade_recover(job, error);

  dr_vm_attach(dr_job_vm(job));
  return done;
}

/* Of a VM at most one had begun: those first. */
static gboolean
recover_jobs(DrService *service, GError **error)
{
  static const char *const states[] = { "running", "queued" };
  g_autoptr(GPtrArray) rows = dr_store_list_jobs(service->host->store, TRUE, 10000, error);
  g_autoptr(GPtrArray) batch = g_ptr_array_new_with_free_func((GDestroyNotify)dr_job_unref);

  if (!rows)
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
dr_service_new(DrHost *host, GError **error)
{
  DrService *service = g_new0(DrService, 1);
  g_autoptr(GPtrArray) vms = NULL;

  service->host = host;
  g_mutex_init(&service->lock);
  g_mutex_init(&service->adopting);
  service->vms = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)dr_vm_unref);
  service->coming = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  service->jobs = dr_jobs_new(host);
  service->started_us = g_get_monotonic_time();
  if (!load_vms(service, error) || !recover_jobs(service, error)) {
    dr_service_free(service, 0);
    return NULL;
  }
  vms = all(service);
  for (guint i = 0; i < vms->len; i++)
    if (!dr_vm_job(vms->pdata[i]))
      dr_vm_attach(vms->pdata[i]);
  return service;
}

gboolean
dr_service_free(DrService *service, int grace_ms)
{
  DrDeadline deadline = dr_deadline_in(grace_ms);
  g_autoptr(GPtrArray) vms = NULL;

  while (dr_jobs_active(service->jobs) && !dr_deadline_passed(deadline))
    g_usleep(10000);
  if (dr_jobs_active(service->jobs)) {
    g_warning("%u jobs are still under way; the next droverd settles them", dr_jobs_active(service->jobs));
    return FALSE; /* their threads use all of this until the process ends */
  }
  vms = all(service);
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
