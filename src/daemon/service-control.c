/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is done to one VM at once: pause, resume, QMP, console, stop, forget. */
#include "base/error.h"
#include "base/fd.h"
#include "daemon/request.h"
#include "daemon/service-internal.h"
#include "vm/console.h"

#include <poll.h>
#include <string.h>
#include <unistd.h>

#define STOP_DEFAULT_S 60
#define LOOK_MS 1000
#define STOP_MAX_S 86400

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
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  DrQmp *qmp;
  gboolean done;

  if (!vm)
    return NULL;
  qmp = dr_vm_take(vm, command, DR_LEASE_MS, error);
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
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  g_autoptr(JsonNode) answer = NULL;
  JsonObject *object;
  DrQmp *qmp;

  if (!vm || !check_command(command, name, error))
    return NULL;
  qmp = dr_vm_take(vm, "drover qmp", DR_LEASE_MS, error);
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
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  g_autofree char *path = NULL;
  DrVmRecord *record;
  int fd;

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
  fd = dr_console_attach(dr_vm_console(vm), error);
  if (fd < 0 ||
      dr_console_ensure(dr_vm_console(vm), path, error)) /* in this order: it is let go without a reader */
    return fd;
  close(fd);
  return -1;
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
  DrQmp *qmp = dr_vm_take(vm, "drover stop", DR_LEASE_MS, error);
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
  DrQmp *qmp = dr_vm_take(vm, "drover stop", DR_LEASE_MS, error);
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
stop_gently(DrService *service, DrVm *vm, const DrProcId *id, gint64 seconds, GError **error)
{
  DrDeadline deadline = dr_deadline_in(seconds * 1000);

  if (!can_see_the_button(vm, error) || !ask_to_stop(vm, "system_powerdown", error))
    return FALSE;
  do {
    if (has_powered_off(vm))
      ask_to_stop(vm, "quit", NULL);
    if (wait_end(id, MIN(deadline, dr_deadline_in(LOOK_MS))))
      return TRUE;
    if (g_atomic_int_get(&service->ending))
      return dr_error_set(error, DR_ERROR_CANCELLED,
                          "droverd ends; the guest of VM '%s' was asked to power down", dr_vm_name(vm));
  } while (!dr_deadline_passed(deadline));
  dr_error_set(error, DR_ERROR_TIMEOUT, "the guest of VM '%s' was asked to power down and has not in %d s",
               dr_vm_name(vm), (int)seconds);
  return dr_error_remedy(error, "wait longer (--timeout), or pull the plug: drover stop %s --force",
                         dr_vm_name(vm));
}

/* Whoever waits for a guest to power down sees that it has ended, and so does a job on its disks. */
static gboolean
takes_over(DrVm *vm, JsonObject *request)
{
  return (dr_json_bool(request, "force", FALSE) && dr_vm_job(vm) == DR_VM_ENDING) || dr_vm_is_aside(vm);
}

static gboolean
stop_claimed(DrService *service, DrVm *vm, JsonObject *request, GError **error)
{
  gint64 seconds = dr_json_int(request, "timeout", STOP_DEFAULT_S);
  DrProcId id;

  if (!is_running(vm, error))
    return FALSE;
  dr_vm_lock(vm);
  id = dr_vm_record(vm)->id;
  dr_vm_unlock(vm);
  return dr_json_bool(request, "force", FALSE) ? stop_by_force(vm, &id, error)
                                               : stop_gently(service, vm, &id, seconds, error);
}

JsonObject *
dr_service_stop(DrService *service, const char *name, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "force", DR_MEMBER_FLAG },
                                      { "timeout", DR_MEMBER_NUMBER, 1, STOP_MAX_S },
                                      { NULL } };
  g_autoptr(DrVm) vm =
      dr_request_check(request, members, error) ? dr_service_find(service, name, error) : NULL;
  g_autoptr(GError) local = NULL;
  gboolean done, over = FALSE;

  /* No job may begin meanwhile: it would put another process in the place of the one that is being ended. */
  if (!vm || (!(over = takes_over(vm, request)) && !dr_vm_claim(vm, DR_VM_ENDING, error)))
    return NULL;
  done = stop_claimed(service, vm, request, error);
  dr_vm_check(vm);
  if (!dr_vm_save(vm, &local)) /* where it has ended, it has: the next droverd will see it, too */
    g_warning("%s", local->message);
  if (!over)
    dr_vm_release(vm);
  return done ? dr_vm_json(vm, FALSE) : NULL;
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
  dr_remove_tree(run_dir);
  dr_remove_tree(state_dir);
}

void
dr_service_drop(DrService *service, DrVm *vm)
{
  g_autoptr(GError) error = NULL;

  g_autoptr(DrVm) registered = dr_service_find(service, dr_vm_name(vm), NULL);

  dr_vm_detach(vm);
  if (registered != vm)
    return; /* the name is another one's by now */
  if (!dr_store_drop_vm(service->host->store, dr_vm_name(vm), &error))
    g_warning("%s", error->message);
  remove_directories(service, dr_vm_name(vm), FALSE); /* before somebody else may take the name */
  dr_service_remove(service, dr_vm_name(vm));
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
  remove_directories(service, name, lives); /* before somebody else may take the name */
  dr_service_remove(service, name);
  return TRUE;
}

gboolean
dr_service_forget(DrService *service, const char *name, gboolean force, GError **error)
{
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  gboolean done;

  if (!vm || !dr_vm_claim(vm, DR_VM_ENDING, error))
    return FALSE;
  done = forget_claimed(service, vm, force, error);
  dr_vm_release(vm);
  return done;
}
