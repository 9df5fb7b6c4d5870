/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* VMs: the lease on the monitor, and the watches of the main loop. The record's JSON form is in record.c. */
#include "vm/vm.h"
#include "base/address.h"
#include "base/error.h"
#include "base/fd.h"
#include "qemu/spawn.h"
#include "vm/console.h"
#include "vm/record.h"

#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define EXIT_FILE_WAIT_MS 1000 /* the keeper writes it right after waitpid(2) */

struct DrVm {
  gatomicrefcount refs;
  DrHost *host;
  GMutex lock;
  GCond given; /* the monitor was given back */
  DrVmRecord record;
  DrQmp *qmp;      /* while nobody has it and it stays connected */
  char *holder;    /* who has it */
  GSource *events; /* watches `qmp` */
  GSource *end;    /* watches the process */
  int pidfd;
  DrConsole *console;
  gint64 job;        /* 0: none; DR_VM_ENDING */
  gboolean aside;    /* see dr_vm_set_aside() */
  gboolean detached; /* it is no VM of ours any more */
  gboolean unsaved;  /* the last attempt to write the record failed */
};

DrVm *
dr_vm_new(DrHost *host, const char *name)
{
  DrVm *vm = g_new0(DrVm, 1);

  g_atomic_ref_count_init(&vm->refs);
  g_mutex_init(&vm->lock);
  g_cond_init(&vm->given);
  vm->host = host;
  vm->pidfd = -1;
  vm->record.name = g_strdup(name);
  vm->record.boot_id = g_strdup(dr_boot_id());
  vm->record.state = g_strdup("starting");
  return vm;
}

DrVm *
dr_vm_from_record(DrHost *host, const char *name, JsonObject *object)
{
  DrVm *vm = dr_vm_new(host, name);

  dr_vm_record_read(&vm->record, object);
  return vm;
}

DrVm *
dr_vm_ref(DrVm *vm)
{
  g_atomic_ref_count_inc(&vm->refs);
  return vm;
}

static void
unwatch(GSource **source)
{
  if (!*source)
    return;
  g_source_destroy(*source);
  g_clear_pointer(source, g_source_unref);
}

static gboolean
free_console(gpointer console)
{
  dr_console_free(console);
  return G_SOURCE_REMOVE;
}

void
dr_vm_unref(DrVm *vm)
{
  if (!vm || !g_atomic_ref_count_dec(&vm->refs))
    return;
  unwatch(&vm->events);
  unwatch(&vm->end);
  if (vm->pidfd >= 0)
    close(vm->pidfd);
  dr_qmp_free(vm->qmp);
  if (vm->console) /* its callbacks may be under way on the main loop, this thread need not be it */
    g_main_context_invoke(vm->host->context, free_console, vm->console);
  dr_vm_record_clear(&vm->record);
  g_free(vm->holder);
  g_mutex_clear(&vm->lock);
  g_cond_clear(&vm->given);
  g_free(vm);
}

const char *
dr_vm_name(DrVm *vm)
{
  return vm->record.name;
}

DrHost *
dr_vm_host(DrVm *vm)
{
  return vm->host;
}

DrVmRecord *
dr_vm_record(DrVm *vm)
{
  return &vm->record;
}

void
dr_vm_lock(DrVm *vm)
{
  g_mutex_lock(&vm->lock);
}

void
dr_vm_unlock(DrVm *vm)
{
  g_mutex_unlock(&vm->lock);
}

gboolean
dr_vm_check_name(const char *name, GError **error)
{
  return dr_name_check(name, "a VM", error);
}

gboolean
dr_vm_save(DrVm *vm, GError **error)
{
  g_autoptr(JsonObject) object = NULL;
  gboolean saved, gone;

  dr_vm_lock(vm);
  object = dr_vm_record_write(&vm->record);
  gone = vm->detached;
  dr_vm_unlock(vm);
  if (gone)
    return TRUE; /* forgotten meanwhile: it must not come back */
  saved = dr_store_put_vm(vm->host->store, vm->record.name, object, error);
  if (saved && !vm->record.borrowed)
    dr_vm_record_keep(vm->host, vm->record.name, object);
  dr_vm_lock(vm);
  vm->unsaved = !saved;
  dr_vm_unlock(vm);
  return saved;
}

gboolean
dr_vm_is_saved(DrVm *vm)
{
  gboolean saved;

  dr_vm_lock(vm);
  saved = !vm->unsaved;
  dr_vm_unlock(vm);
  return saved;
}

static void
publish(DrVm *vm)
{
  JsonObject *event = json_object_new();

  json_object_set_string_member(event, "type", "vm");
  json_object_set_int_member(event, "time_ms", g_get_real_time() / 1000);
  json_object_set_object_member(event, "vm", dr_vm_json(vm, FALSE));
  dr_events_publish(vm->host->events, event);
}

static gboolean
set_state_locked(DrVm *vm, const char *state)
{
  if (g_strcmp0(vm->record.state, state) == 0)
    return FALSE;
  g_free(vm->record.state);
  vm->record.state = g_strdup(state);
  return TRUE;
}

void
dr_vm_set_state(DrVm *vm, const char *state)
{
  gboolean changed;

  dr_vm_lock(vm);
  changed = set_state_locked(vm, state);
  dr_vm_unlock(vm);
  if (changed)
    publish(vm);
}

/* --- Events of an idle monitor --- */

/* Takes what has happened into the state. Called with the lock held; TRUE if the state changed. */
static gboolean
absorb_events(DrVm *vm, DrQmp *qmp)
{
  gboolean changed = FALSE;
  DrQmpEvent *event;

  while ((event = dr_qmp_pop_event(qmp))) {
    if (g_str_equal(event->name, "STOP"))
      changed |= set_state_locked(vm, "paused");
    else if (g_str_equal(event->name, "RESUME"))
      changed |= set_state_locked(vm, "running");
    dr_qmp_event_free(event);
  }
  return changed;
}

static gboolean
on_events(int fd, GIOCondition condition, gpointer data)
{
  DrVm *vm = data;
  gboolean changed = FALSE;

  dr_vm_lock(vm);
  if (vm->qmp && dr_qmp_fd(vm->qmp) == fd) {
    gboolean alive = dr_qmp_read_some(vm->qmp);

    changed = absorb_events(vm, vm->qmp);
    if (!alive) {
      g_clear_pointer(&vm->qmp, dr_qmp_free);
      unwatch(&vm->events);
    }
  }
  dr_vm_unlock(vm);
  if (changed)
    publish(vm);
  return G_SOURCE_CONTINUE;
}

static void
watch_events_locked(DrVm *vm)
{
  vm->events = g_unix_fd_source_new(dr_qmp_fd(vm->qmp), G_IO_IN | G_IO_HUP);
  g_source_set_callback(vm->events, G_SOURCE_FUNC(on_events), dr_vm_ref(vm), (GDestroyNotify)dr_vm_unref);
  g_source_attach(vm->events, vm->host->context);
}

/* --- The lease --- */

static gboolean
lease_locked(DrVm *vm, const char *who, DrDeadline deadline, GError **error)
{
  while (vm->holder)
    if (!g_cond_wait_until(&vm->given, &vm->lock, deadline)) {
      dr_error_set(error, DR_ERROR_BUSY, "VM '%s' is busy: %s talks to its QEMU", vm->record.name,
                   vm->holder);
      return dr_error_remedy(error, "try again when that is over (drover jobs)");
    }
  if (vm->detached)
    return dr_error_set(error, DR_ERROR_NOT_FOUND, "VM '%s' has been forgotten", vm->record.name);
  vm->holder = g_strdup(who);
  unwatch(&vm->events);
  return TRUE;
}

static DrQmp *
connect_monitor(DrVm *vm, DrDeadline deadline, GError **error)
{
  g_autofree char *path = NULL;
  DrQmp *qmp;

  dr_vm_lock(vm);
  path = g_strdup(vm->record.qmp_path);
  dr_vm_unlock(vm);
  qmp = dr_qmp_connect(path, FALSE, deadline, error);
  if (!qmp)
    g_prefix_error(error, "VM '%s': ", vm->record.name);
  return qmp;
}

static void
not_running_locked(DrVm *vm, GError **error)
{
  dr_error_set(error, DR_ERROR_NOT_FOUND, "VM '%s' does not run: it %s", vm->record.name,
               vm->record.exit_text ? vm->record.exit_text : "has ended");
  dr_error_remedy(error, "drover show %s names its log", vm->record.name);
}

/* A monitor that cannot be reached is no news where its QEMU has ended a moment ago. */
static DrQmp *
connect_if_it_runs(DrVm *vm, DrDeadline deadline, GError **error)
{
  g_autoptr(GError) local = NULL;
  DrQmp *qmp = connect_monitor(vm, deadline, &local);

  if (qmp)
    return qmp;
  if (dr_vm_check(vm)) {
    g_propagate_error(error, g_steal_pointer(&local));
    return NULL;
  }
  dr_vm_lock(vm);
  not_running_locked(vm, error);
  dr_vm_unlock(vm);
  return NULL;
}

DrQmp *
dr_vm_take(DrVm *vm, const char *who, int timeout_ms, GError **error)
{
  DrDeadline deadline = dr_deadline_in(timeout_ms);
  DrQmp *qmp = NULL;
  gboolean leased;

  dr_vm_lock(vm);
  if (g_str_equal(vm->record.state, "stopped")) {
    not_running_locked(vm, error);
    dr_vm_unlock(vm);
    return NULL;
  }
  leased = lease_locked(vm, who, deadline, error);
  if (leased)
    qmp = g_steal_pointer(&vm->qmp);
  dr_vm_unlock(vm);
  if (!leased)
    return NULL;
  if (!qmp)
    qmp = connect_if_it_runs(vm, deadline, error);
  if (!qmp)
    dr_vm_give(vm, NULL);
  return qmp;
}

void
dr_vm_reserve(DrVm *vm, const char *who)
{
  dr_vm_lock(vm);
  vm->holder = g_strdup(who);
  dr_vm_unlock(vm);
}

void
dr_vm_give(DrVm *vm, DrQmp *qmp)
{
  gboolean changed = FALSE;

  dr_vm_lock(vm);
  if (qmp) {
    dr_qmp_set_cancel_fd(qmp, -1);
    changed = absorb_events(vm, qmp);
  }
  if (qmp && !vm->record.borrowed && !vm->detached && !dr_qmp_closed(qmp)) {
    vm->qmp = qmp;
    watch_events_locked(vm);
  } else {
    dr_qmp_free(qmp);
  }
  g_clear_pointer(&vm->holder, g_free);
  g_cond_signal(&vm->given);
  dr_vm_unlock(vm);
  if (changed)
    publish(vm);
}

/* With the lock held. */
static gboolean
is_free_locked(DrVm *vm, GError **error)
{
  if (vm->job == 0)
    return TRUE;
  if (vm->job == DR_VM_ENDING) {
    dr_error_set(error, DR_ERROR_BUSY, "VM '%s' is being stopped or forgotten", vm->record.name);
    return dr_error_remedy(error, "wait for that, or pull the plug: drover stop %s --force", vm->record.name);
  }
  dr_error_set(error, DR_ERROR_BUSY, "VM '%s' has job %" G_GINT64_FORMAT " under way", vm->record.name,
               vm->job);
  return dr_error_remedy(error, "wait for it: drover watch %" G_GINT64_FORMAT, vm->job);
}

gboolean
dr_vm_is_free(DrVm *vm, GError **error)
{
  gboolean free_now;

  dr_vm_lock(vm);
  free_now = is_free_locked(vm, error);
  dr_vm_unlock(vm);
  return free_now;
}

gboolean
dr_vm_claim(DrVm *vm, gint64 job, GError **error)
{
  gboolean claimed;

  dr_vm_lock(vm);
  claimed = is_free_locked(vm, error);
  if (claimed)
    vm->job = job;
  dr_vm_unlock(vm);
  return claimed;
}

void
dr_vm_set_aside(DrVm *vm)
{
  dr_vm_lock(vm);
  vm->aside = TRUE;
  dr_vm_unlock(vm);
}

gboolean
dr_vm_is_aside(DrVm *vm)
{
  gboolean aside;

  dr_vm_lock(vm);
  aside = vm->job != 0 && vm->aside;
  dr_vm_unlock(vm);
  return aside;
}

void
dr_vm_release(DrVm *vm)
{
  dr_vm_lock(vm);
  vm->job = 0;
  vm->aside = FALSE;
  dr_vm_unlock(vm);
}

gint64
dr_vm_job(DrVm *vm)
{
  gint64 job;

  dr_vm_lock(vm);
  job = vm->job;
  dr_vm_unlock(vm);
  return job;
}

void
dr_vm_refresh(DrVm *vm, DrQmp *qmp)
{
  g_autoptr(JsonObject) status = dr_qmp_call_object(qmp, "query-status", NULL, NULL);

  if (status)
    dr_vm_set_state(vm, dr_json_bool(status, "running", FALSE) ? "running" : "paused");
}

/* --- The end of the process --- */

static void
read_exit(DrVm *vm, const char *exit_path, const DrProcId *id, char **ret_text)
{
  DrDeadline deadline = dr_deadline_in(EXIT_FILE_WAIT_MS);

  if (!exit_path) {
    *ret_text = g_strdup("ended; its status went to whoever started it");
    return;
  }
  while (!dr_spawn_read_exit(exit_path, id, ret_text, NULL)) {
    if (dr_deadline_passed(deadline)) {
      *ret_text = g_strdup("ended; its keeper left no status");
      return;
    }
    g_usleep(5000); /* waits for the file, bounded by the deadline */
  }
}

/* Those that its QEMU may leave: the ones that drover renamed, which QEMU knows under another name, and drover's own, which a
 * QEMU that was killed did not remove. (transfer full) */
static char **
sockets_locked(DrVm *vm)
{
  g_autofree char *own = g_strdup_printf("%s/vms/%s/", vm->host->run_dir, vm->record.name);
  g_autoptr(GStrvBuilder) paths = g_strv_builder_new();

  if (vm->record.public_sockets)
    g_strv_builder_addv(paths, (const char **)vm->record.public_sockets);
  if (vm->record.qmp_path && !vm->record.borrowed)
    g_strv_builder_add(paths, vm->record.qmp_path);
  if (vm->record.console_path && g_str_has_prefix(vm->record.console_path, own))
    g_strv_builder_add(paths, vm->record.console_path);
  return g_strv_builder_end(paths);
}

/* Unless somebody listens there by now. */
static void
remove_sockets(char **paths)
{
  for (char **path = paths; path && *path; path++) {
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    dr_autofd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    g_strlcpy(address.sun_path, *path, sizeof address.sun_path);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno == ECONNREFUSED)
      unlink(*path);
  }
}

gboolean
dr_vm_check(DrVm *vm)
{
  g_autofree char *exit_path = NULL;
  g_autofree char *text = NULL;
  g_auto(GStrv) sockets = NULL;
  DrProcId id;
  gboolean current, was_stopped, same;

  dr_vm_lock(vm);
  id = vm->record.id;
  exit_path = g_strdup(vm->record.exit_path);
  sockets = sockets_locked(vm);
  was_stopped = g_str_equal(vm->record.state, "stopped");
  current = g_strcmp0(vm->record.boot_id, dr_boot_id()) == 0;
  dr_vm_unlock(vm);
  if (was_stopped)
    return FALSE;
  if (current && dr_proc_alive(&id))
    return TRUE;
  if (current)
    read_exit(vm, exit_path, &id, &text);
  else
    text = g_strdup("ended with the host: it was rebooted");

  dr_vm_lock(vm);
  same = vm->record.id.pid == id.pid && vm->record.id.start_time == id.start_time;
  if (same) {
    set_state_locked(vm, "stopped");
    g_free(vm->record.exit_text);
    vm->record.exit_text = g_steal_pointer(&text);
    unwatch(&vm->events);
    g_clear_pointer(&vm->qmp, dr_qmp_free);
  }
  dr_vm_unlock(vm);
  if (!same)
    return dr_vm_check(vm); /* another QEMU has taken its place meanwhile */
  remove_sockets(sockets);
  if (vm->console)
    dr_console_end(vm->console);
  publish(vm);
  return FALSE;
}

void
dr_vm_note_end(DrVm *vm)
{
  g_autoptr(GError) error = NULL;
  gboolean known;

  dr_vm_lock(vm);
  known = g_str_equal(vm->record.state, "stopped");
  dr_vm_unlock(vm);
  if (known || dr_vm_check(vm))
    return;
  if (!dr_vm_save(vm, &error))
    g_warning("%s", error->message);
  g_message("VM '%s' %s", vm->record.name, vm->record.exit_text ? vm->record.exit_text : "ended");
}

static void
note_end(GTask *task, gpointer object, gpointer data, GCancellable *cancellable)
{
  dr_vm_note_end(data);
}

static gboolean
on_end(int fd, GIOCondition condition, gpointer data)
{
  DrVm *vm = data;
  gboolean ours;

  dr_vm_lock(vm);
  ours =
      fd == vm->pidfd && vm->job == 0; /* a job finds out by itself; at its end dr_vm_note_end() is called */
  dr_vm_unlock(vm);
  if (ours) {
    g_autoptr(GTask) task = g_task_new(NULL, NULL, NULL, NULL);

    g_task_set_task_data(task, dr_vm_ref(vm), (GDestroyNotify)dr_vm_unref);
    g_task_run_in_thread(task, note_end);
  }
  return G_SOURCE_REMOVE;
}

gboolean
dr_vm_watch(DrVm *vm, GError **error)
{
  DrProcId id;
  int fd;

  dr_vm_lock(vm);
  id = vm->record.id;
  dr_vm_unlock(vm);
  fd = dr_proc_open(&id, error);
  if (fd < 0)
    return FALSE;
  dr_vm_lock(vm);
  unwatch(&vm->end);
  if (vm->pidfd >= 0)
    close(vm->pidfd);
  vm->pidfd = fd;
  vm->end = g_unix_fd_source_new(fd, G_IO_IN);
  g_source_set_callback(vm->end, G_SOURCE_FUNC(on_end), dr_vm_ref(vm), (GDestroyNotify)dr_vm_unref);
  g_source_attach(vm->end, vm->host->context);
  dr_vm_unlock(vm);
  return TRUE;
}

DrConsole *
dr_vm_console(DrVm *vm)
{
  dr_vm_lock(vm);
  if (!vm->console)
    vm->console = dr_console_new(vm->host->context);
  dr_vm_unlock(vm);
  return vm->console;
}

JsonObject *
dr_vm_json(DrVm *vm, gboolean all)
{
  JsonObject *object;

  dr_vm_lock(vm);
  object = dr_vm_record_show(&vm->record, vm->job, all);
  dr_vm_unlock(vm);
  return object;
}

void
dr_vm_detach(DrVm *vm)
{
  dr_vm_lock(vm);
  unwatch(&vm->events);
  unwatch(&vm->end);
  g_clear_pointer(&vm->qmp, dr_qmp_free);
  vm->unsaved = FALSE;
  vm->detached = TRUE;
  dr_vm_unlock(vm);
  if (vm->console)
    dr_console_end(vm->console);
}
