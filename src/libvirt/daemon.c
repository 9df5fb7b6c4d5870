/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Finding, stopping and starting libvirt's daemon. While it is away the lock on its driver.pid is ours. */
#include "libvirt/daemon.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"
#include "libvirt/daemon-internal.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#define MAPS_MAX (16 * 1024 * 1024)
#define POLL_MS 10
#define GRACE_MS 3000      /* after the deadline, before SIGKILL */
#define KILL_MS 5000       /* SIGKILL has been sent */
#define SUPERVISOR_MS 2000 /* in which a supervisor has started it again */
#define SETTLE_MS 300      /* it still has the lock then: what can fail in its driver comes after the lock */
#define FORKED_MS 3000     /* what was started has ended, the daemon that it forked has not taken the lock */
#define TRIES 3

struct DrLibvirtDaemon {
  char *state_dir;
  char *program; /* "libvirtd" */
  DrProcId id;
  DrDaemonUnit *unit; /* either this … */
  DrDaemonHand *hand; /* … or that */
  char *name;
  int lock_fd; /* -1: the lock is not ours */
};

void
dr_libvirt_daemon_free(DrLibvirtDaemon *daemon)
{
  if (!daemon)
    return;
  if (daemon->lock_fd >= 0)
    dr_driver_lock_give(daemon->state_dir, daemon->lock_fd);
  dr_daemon_unit_free(daemon->unit);
  dr_daemon_hand_free(daemon->hand);
  g_free(daemon->state_dir);
  g_free(daemon->program);
  g_free(daemon->name);
  g_free(daemon);
}

const char *
dr_libvirt_daemon_name(const DrLibvirtDaemon *daemon)
{
  return daemon->name;
}

pid_t
dr_libvirt_daemon_pid(const DrLibvirtDaemon *daemon)
{
  return daemon->id.pid;
}

static char *
make_name(const DrLibvirtDaemon *daemon)
{
  if (!daemon->unit)
    return g_strdup_printf("%s, pid %d", daemon->program, (int)daemon->id.pid);
  if (daemon->unit->user < 0)
    return g_strdup(daemon->unit->unit);
  return g_strdup_printf("%s of user %" G_GINT64_FORMAT, daemon->unit->unit, daemon->unit->user);
}

/* --- Finding it --- */

/* The program of a process by its path, also when a package has put a newer one there since. NULL: it cannot be seen. (transfer full) */
static char *
program_of(const char *pid)
{
  g_autofree char *link = g_strdup_printf("/proc/%s/exe", pid);
  char target[PATH_MAX];
  gssize n = readlink(link, target, sizeof target - 1);

  if (n < 0)
    return NULL;
  target[n] = '\0';
  if (g_str_has_suffix(target, " (deleted)"))
    target[n - (gssize)strlen(" (deleted)")] = '\0';
  return g_strdup(target);
}

/* By its usual names; under another (a wrapped one, one below valgrind) libvirt's library is mapped in it. */
static gboolean
is_libvirts(const char *pid, const char *program)
{
  g_autofree char *path = g_strdup_printf("/proc/%s/maps", pid);
  g_autofree char *maps = NULL;

  if (!strcmp(program, "libvirtd") || !strcmp(program, "virtqemud"))
    return TRUE;
  maps = dr_file_read(path, MAPS_MAX, NULL, NULL);
  return maps && strstr(maps, "/libvirt.so");
}

/* What holds the lock may be anything, and is stopped only if it is libvirt's daemon. *ret_path (transfer full). */
static gboolean
check_program(const DrProcId *id, const char *state_dir, char **ret_path, GError **error)
{
  g_autofree char *pid = g_strdup_printf("%d", (int)id->pid);
  g_autofree char *path = program_of(pid), *own = program_of("self");
  g_autofree char *program = path ? g_path_get_basename(path) : NULL;
  g_autofree char *us = g_path_get_basename(own ? own : "");

  if (!path && !dr_proc_alive(id))
    return dr_error_set(error, DR_ERROR_NOT_FOUND, "libvirt's daemon, pid %s, has just ended", pid);
  if (!path) {
    dr_error_set(error, DR_ERROR_IO, "cannot see which program process %s is", pid);
    return dr_error_remedy(error, "run droverd as root");
  }
  if (!strcmp(program, us) || !strcmp(program, "drover-libvirt")) {
    dr_error_set(error, DR_ERROR_BUSY, "another drover, pid %s, works on the domains of '%s'", pid,
                 state_dir);
    return dr_error_remedy(error, "wait until it has ended, then try again");
  }
  if (!is_libvirts(pid, program)) {
    dr_error_set(error, DR_ERROR_REFUSED,
                 "the lock on '%s/driver.pid' is held by %s, pid %s, which is no daemon of libvirt's",
                 state_dir, program, pid);
    return dr_error_remedy(error, "end it, and start libvirt's daemon");
  }
  *ret_path = g_steal_pointer(&path);
  return TRUE;
}

static gboolean
look(DrLibvirtDaemon *daemon, const char *path, GError **error)
{
  if (!dr_daemon_unit_find(daemon->id.pid, &daemon->unit, error))
    return FALSE;
  if (!daemon->unit && !(daemon->hand = dr_daemon_hand_find(daemon->id.pid, path, error)))
    return FALSE;
  /* What was read of a pid is of this process only if that has not ended meanwhile. */
  return dr_proc_alive(&daemon->id) || dr_error_set(error, DR_ERROR_NOT_FOUND, "%s, pid %d, has just ended",
                                                    daemon->program, (int)daemon->id.pid);
}

DrLibvirtDaemon *
dr_libvirt_daemon_find(const char *state_dir, GError **error)
{
  g_autoptr(DrLibvirtDaemon) daemon = g_new0(DrLibvirtDaemon, 1);
  g_autofree char *path = NULL;

  daemon->lock_fd = -1;
  daemon->state_dir = g_strdup(state_dir);
  if (!dr_driver_lock_holder(state_dir, &daemon->id, error) ||
      !check_program(&daemon->id, state_dir, &path, error))
    return NULL;
  daemon->program = g_path_get_basename(path);
  if (!look(daemon, path, error))
    return NULL;
  daemon->name = make_name(daemon);
  return g_steal_pointer(&daemon);
}

/* --- JSON --- */

JsonObject *
dr_libvirt_daemon_write(const DrLibvirtDaemon *daemon)
{
  JsonObject *object =
      dr_json("{'state-dir': <%s>, 'program': <%s>, 'pid': <%x>, 'start': <%x>}", daemon->state_dir,
              daemon->program, (gint64)daemon->id.pid, (gint64)daemon->id.start_time);

  if (daemon->unit)
    json_object_set_object_member(object, "systemd", dr_daemon_unit_write(daemon->unit));
  else
    json_object_set_object_member(object, "by-hand", dr_daemon_hand_write(daemon->hand));
  return object;
}

DrLibvirtDaemon *
dr_libvirt_daemon_read(JsonObject *object, GError **error)
{
  g_autoptr(DrLibvirtDaemon) daemon = g_new0(DrLibvirtDaemon, 1);
  JsonObject *unit = dr_json_obj(object, "systemd"), *hand = dr_json_obj(object, "by-hand");

  daemon->lock_fd = -1;
  daemon->state_dir = g_strdup(dr_json_str(object, "state-dir", NULL));
  daemon->program = g_strdup(dr_json_str(object, "program", NULL));
  daemon->id = (DrProcId){ .pid = (pid_t)dr_json_int(object, "pid", 0),
                           .start_time = (guint64)dr_json_int(object, "start", 0) };
  if (!daemon->state_dir || !daemon->program || daemon->id.pid <= 0 || (!unit && !hand)) {
    dr_error_set(error, DR_ERROR_INVALID, "what was written of libvirt's daemon is incomplete");
    return NULL;
  }
  if (unit ? !(daemon->unit = dr_daemon_unit_read(unit, error))
           : !(daemon->hand = dr_daemon_hand_read(hand, error)))
    return NULL;
  daemon->name = make_name(daemon);
  return g_steal_pointer(&daemon);
}

/* --- Stopping it --- */

static gboolean
has_ended(int pidfd, DrDeadline deadline)
{
  struct pollfd end = { .fd = pidfd, .events = POLLIN };
  int got;

  do
    got = poll(&end, 1, dr_deadline_left(deadline));
  while (got < 0 && errno == EINTR);
  return got > 0;
}

/* Domains do not depend on it, and it writes its files under other names first: killing it loses nothing of theirs. */
static gboolean
end_process(const DrLibvirtDaemon *daemon, DrDeadline deadline, GError **error)
{
  g_autoptr(GError) local = NULL;
  dr_autofd int pidfd = dr_proc_open(&daemon->id, &local);

  if (pidfd < 0 && g_error_matches(local, DR_ERROR, DR_ERROR_NOT_FOUND))
    return TRUE;
  if (pidfd < 0) {
    g_propagate_error(error, g_steal_pointer(&local));
    return FALSE;
  }
  if (pidfd_send_signal(pidfd, SIGTERM, NULL, 0) < 0 && errno != ESRCH)
    return dr_error_set_errno(error, errno, "cannot stop %s", daemon->name);
  if (has_ended(pidfd, deadline) || has_ended(pidfd, dr_deadline_in(GRACE_MS)))
    return TRUE;
  g_warning("%s does not end, and is killed", daemon->name);
  return dr_proc_kill(&daemon->id, KILL_MS, error);
}

/* What systemd does not stop in time ends as one that was started by hand does. */
static gboolean
stop_one(const DrLibvirtDaemon *daemon, DrDeadline deadline, GError **error)
{
  g_autoptr(GError) local = NULL;

  if (daemon->unit && !dr_daemon_unit_stop(daemon->unit, deadline, &local) &&
      !g_error_matches(local, DR_ERROR, DR_ERROR_TIMEOUT)) {
    g_propagate_prefixed_error(error, g_steal_pointer(&local), "cannot stop %s: ", daemon->name);
    return FALSE;
  }
  return end_process(daemon, deadline, error);
}

/* One that was started again meanwhile, in whatever way. */
static gboolean
stop_holder(const DrLibvirtDaemon *daemon, DrDeadline deadline, GError **error)
{
  g_autoptr(GError) local = NULL;
  g_autoptr(DrLibvirtDaemon) other = dr_libvirt_daemon_find(daemon->state_dir, &local);

  if (other)
    return stop_one(other, deadline, error);
  if (g_error_matches(local, DR_ERROR, DR_ERROR_NOT_FOUND))
    return TRUE;
  g_propagate_error(error, g_steal_pointer(&local));
  return FALSE;
}

static gboolean
not_in_time(const DrLibvirtDaemon *daemon, GError **error)
{
  dr_error_set(error, DR_ERROR_TIMEOUT, "cannot keep %s stopped: somebody starts it again and again",
               daemon->program);
  return dr_error_remedy(error, "stop what starts it, then try again");
}

gboolean
dr_libvirt_daemon_stop(DrLibvirtDaemon *daemon, DrDeadline deadline, GError **error)
{
  if (daemon->lock_fd >= 0)
    return TRUE;
  if (!stop_one(daemon, deadline, error))
    return FALSE;
  for (;;) {
    if (!dr_driver_lock_take(daemon->state_dir, &daemon->lock_fd, error))
      return FALSE;
    if (daemon->lock_fd >= 0)
      return TRUE;
    if (dr_deadline_passed(deadline))
      return not_in_time(daemon, error);
    if (!stop_holder(daemon, deadline, error))
      return FALSE;
    g_usleep(POLL_MS * 1000);
  }
}

/* --- Starting it --- */

/* What holds the lock now, if that is libvirt's daemon. */
static gboolean
holder(const DrLibvirtDaemon *daemon, DrProcId *ret_id)
{
  g_autofree char *path = NULL;

  return dr_driver_lock_holder(daemon->state_dir, ret_id, NULL) &&
         check_program(ret_id, daemon->state_dir, &path, NULL);
}

/* *child: what we have started, 0: nothing, or it has been reaped. Waits until one is there and stays; no longer than FORKED_MS for one that
 * a child of ours has left behind. */
static gboolean
wait_up(const DrLibvirtDaemon *daemon, pid_t *child, DrDeadline deadline, DrProcId *ret_id)
{
  DrProcId before = { 0 };
  DrDeadline settled = 0;

  for (;;) {
    DrProcId id = { 0 };
    gboolean there = holder(daemon, &id);

    if (there && id.pid == before.pid && id.start_time == before.start_time && dr_deadline_passed(settled)) {
      *ret_id = id;
      return TRUE;
    }
    if (there && (id.pid != before.pid || id.start_time != before.start_time))
      settled = dr_deadline_in(SETTLE_MS);
    before = id;
    if (*child > 0 && waitpid(*child, NULL, WNOHANG) == *child) {
      *child = 0;
      deadline = MIN(deadline, dr_deadline_in(FORKED_MS));
    }
    if (!there && dr_deadline_passed(deadline))
      return FALSE;
    g_usleep(POLL_MS * 1000);
  }
}

static gboolean
wait_there(const DrLibvirtDaemon *daemon, int timeout_ms, DrProcId *ret_id)
{
  pid_t none = 0;

  return wait_up(daemon, &none, dr_deadline_in(timeout_ms), ret_id);
}

/* Stopped first: one that systemd started in vain, or does not yet call stopped, is in a state from which it would refuse to start a socket.
 * That it calls the service started means nothing: libvirtd 9.0 says so before it begins with its drivers. */
static gboolean
launch_unit(const DrLibvirtDaemon *daemon, DrDeadline deadline, GError **error)
{
  DrProcId id;

  if (!dr_daemon_unit_stop(daemon->unit, deadline, error) ||
      !dr_daemon_unit_start(daemon->unit, deadline, error))
    return FALSE;
  if (wait_there(daemon, dr_deadline_left(deadline), &id))
    return TRUE;
  return dr_error_set(error, DR_ERROR_TIMEOUT, "it did not take the lock on '%s/driver.pid'",
                      daemon->state_dir);
}

static gboolean
launch_hand(const DrLibvirtDaemon *daemon, DrDeadline deadline, GError **error)
{
  pid_t child = 0;
  DrProcId id;

  if (!dr_daemon_hand_start(daemon->hand, &child, error))
    return FALSE;
  if (wait_up(daemon, &child, deadline, &id))
    return TRUE;
  return dr_error_set(error, DR_ERROR_TIMEOUT,
                      child ? "it did not take the lock on '%s/driver.pid'"
                            : "it ended without having taken the lock on '%s/driver.pid'",
                      daemon->state_dir);
}

static gboolean
fail_start(const DrLibvirtDaemon *daemon, const GError *cause, GError **error)
{
  g_autofree char *command =
      daemon->unit ? dr_daemon_unit_command(daemon->unit) : dr_daemon_hand_command(daemon->hand);

  dr_error_set(error, DR_ERROR_ATTENTION, "cannot start %s again: %s", daemon->name,
               cause ? cause->message : "there was no time");
  if (daemon->hand && daemon->hand->uid != geteuid())
    return dr_error_remedy(error, "start it as user %d: %s", (int)daemon->hand->uid, command);
  return dr_error_remedy(error, "start it: %s", command);
}

/* Several times: one that somebody started while the lock was ours may be about to end just now, with its own pid file still locked. */
static gboolean
launch(const DrLibvirtDaemon *daemon, DrDeadline deadline, GError **error)
{
  g_autoptr(GError) cause = NULL;

  for (int i = 0; i < TRIES && (i == 0 || !dr_deadline_passed(deadline)); i++) {
    g_clear_error(&cause);
    if (daemon->unit ? launch_unit(daemon, deadline, &cause) : launch_hand(daemon, deadline, &cause))
      return TRUE;
    if (!g_error_matches(cause, DR_ERROR, DR_ERROR_TIMEOUT) && daemon->hand)
      break; /* there is no such program any more, or no such namespace */
  }
  return fail_start(daemon, cause, error);
}

/* Its sockets, too, and those that need it: they may be missing where an earlier drover ended halfway. */
static void
complete_unit(const DrLibvirtDaemon *daemon, const DrProcId *id, DrDeadline deadline)
{
  g_autoptr(DrDaemonUnit) unit = NULL;
  g_autoptr(GError) local = NULL;

  if (!daemon->unit || !dr_daemon_unit_find(id->pid, &unit, NULL) || !unit ||
      strcmp(unit->unit, daemon->unit->unit) != 0)
    return; /* somebody started it in another way */
  if (!dr_daemon_unit_start(daemon->unit, deadline, &local))
    g_warning("%s runs, but not all that belongs to it: %s", daemon->name, local->message);
}

gboolean
dr_libvirt_daemon_start(DrLibvirtDaemon *daemon, DrDeadline deadline, GError **error)
{
  gboolean supervised = daemon->hand && daemon->hand->parent.pid > 0 && dr_proc_alive(&daemon->hand->parent);
  DrProcId id;

  if (daemon->lock_fd >= 0)
    dr_driver_lock_give(daemon->state_dir, dr_fd_steal(&daemon->lock_fd));
  if (!wait_there(daemon, supervised ? SUPERVISOR_MS : 0, &id))
    return launch(daemon, deadline, error);
  complete_unit(daemon, &id, deadline);
  return TRUE;
}
