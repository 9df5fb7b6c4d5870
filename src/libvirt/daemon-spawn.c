/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Fork and exec of libvirt's daemon as it was: its control groups, namespaces, limits, user, directory, files.
 *
 * dr_child_start() starts programs of ours, as we are. A daemon that somebody started by hand must not get what droverd has: the domains
 * that it starts inherit its limits and its place in the out-of-memory order. */
#include "base/error.h"
#include "base/fd.h"
#include "libvirt/daemon-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define FIRST_FD 3

typedef enum {
  STEP_NONE,
  STEP_BEGIN,
  STEP_NAMESPACE,
  STEP_USER,
  STEP_EXEC,
} Step;

typedef struct {
  int step;
  int err;
} Failure;

typedef struct {
  const DrDaemonHand *hand;
  const int *cgroups;
  guint n_cgroups;
  char oom[16];
  gboolean is_root;
  int status_fd;
} Launch;

/* From here to become(): between fork and exec of a process whose other threads may hold any lock. No memory allocation, no GLib. */

static int
reset_signals(void)
{
  struct sigaction action = { .sa_handler = SIG_DFL };
  sigset_t none;

  for (int i = 1; i < NSIG; i++)
    sigaction(i, &action, NULL);
  sigemptyset(&none);
  return sigprocmask(SIG_SETMASK, &none, NULL);
}

/* What is missing of these makes it a daemon in another place, not none. */
static void
take_place(const Launch *launch)
{
  int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  gssize n = 0;

  for (guint i = 0; i < launch->n_cgroups; i++)
    n |= write(launch->cgroups[i], "0", 1); /* "0": the one that writes */
  if (fd >= 0)
    n |= write(fd, launch->oom, strlen(launch->oom));
  for (int i = 0; i < RLIM_NLIMITS; i++)
    n |= setrlimit(i, &launch->hand->limits[i]);
  umask(launch->hand->mask);
  (void)n;
}

static gboolean
enter_namespaces(const DrDaemonHand *hand)
{
  for (guint i = 0; i < DR_DAEMON_NAMESPACES; i++)
    if (hand->namespace_fds[i] >= 0 && setns(hand->namespace_fds[i], dr_daemon_namespaces[i].type) < 0)
      return FALSE;
  return TRUE;
}

static gboolean
become_user(const Launch *launch)
{
  const DrDaemonHand *hand = launch->hand;

  return !launch->is_root ||
         (setgroups(hand->n_groups, hand->groups) == 0 && setresgid(hand->gid, hand->gid, hand->gid) == 0 &&
          setresuid(hand->uid, hand->uid, hand->uid) == 0);
}

/* As the daemon's user, whose file it may be; what cannot be opened any more is not worth a daemon. */
static gboolean
place_stdio(const DrDaemonHand *hand)
{
  for (int i = 0; i < 3; i++) {
    int flags = i ? O_WRONLY | O_APPEND | O_NOCTTY : O_RDONLY | O_NOCTTY;
    int fd = hand->stdio[i] ? open(hand->stdio[i], flags) : -1;

    if (fd < 0)
      fd = open("/dev/null", O_RDWR);
    if (fd < 0 || (fd != i && dup2(fd, i) < 0))
      return FALSE;
    if (fd > 2)
      close(fd);
  }
  return TRUE;
}

static G_NORETURN void
become(const Launch *launch)
{
  const DrDaemonHand *hand = launch->hand;
  Failure failure = { STEP_BEGIN, 0 };
  int status_fd = fcntl(launch->status_fd, F_DUPFD_CLOEXEC, FIRST_FD);

  if (status_fd < 0 || setsid() < 0 || reset_signals() < 0)
    goto failed;
  take_place(launch);
  failure.step = STEP_NAMESPACE;
  if (!enter_namespaces(hand))
    goto failed;
  failure.step = STEP_USER;
  if (!become_user(launch))
    goto failed;
  failure.step = STEP_EXEC;
  if (chdir(hand->cwd) < 0 && chdir("/") < 0)
    goto failed;
  if (place_stdio(hand) && close_range(FIRST_FD, ~0U, CLOSE_RANGE_CLOEXEC) == 0)
    execve(hand->path, hand->argv, hand->envp);
failed:
  failure.err = errno;
  _exit(write(status_fd, &failure, sizeof failure) < 0 ? 126 : 127);
}

static int
fork_child(const Launch *launch, pid_t *ret_pid)
{
  sigset_t all, before;
  int err;

  /* No handler of ours may run in the child. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  *ret_pid = fork();
  err = errno;
  if (*ret_pid == 0)
    become(launch);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return *ret_pid < 0 ? err : 0;
}

/* No step when the pipe ended without a word: exec closed it. */
static Failure
read_failure(int fd)
{
  Failure failure = { STEP_NONE, 0 };
  gssize n;

  do
    n = read(fd, &failure, sizeof failure);
  while (n < 0 && errno == EINTR);
  return n == sizeof failure ? failure : (Failure){ STEP_NONE, 0 };
}

static gboolean
fail(const DrDaemonHand *hand, Failure failure, GError **error)
{
  switch ((Step)failure.step) {
  case STEP_NONE:
    return TRUE;
  case STEP_BEGIN:
    break;
  case STEP_NAMESPACE:
    return dr_error_set_errno(error, failure.err, "cannot enter the namespaces that '%s' was in", hand->path);
  case STEP_USER:
    return dr_error_set_errno(error, failure.err, "cannot become user %d for '%s'", (int)hand->uid,
                              hand->path);
  case STEP_EXEC:
    return dr_error_set_errno(error, failure.err, "cannot run '%s'", hand->path);
  }
  return dr_error_set_errno(error, failure.err, "cannot start a process for '%s'", hand->path);
}

gboolean
dr_daemon_spawn(const DrDaemonHand *hand, const int *cgroups, guint n_cgroups, pid_t *ret_pid, GError **error)
{
  Launch launch = { .hand = hand, .cgroups = cgroups, .n_cgroups = n_cgroups, .is_root = geteuid() == 0 };
  dr_autofd int read_end = -1;
  Failure failure;
  int status[2], err;

  g_snprintf(launch.oom, sizeof launch.oom, "%d", hand->oom_score);
  if (pipe2(status, O_CLOEXEC) < 0)
    return dr_error_set_errno(error, errno, "cannot start '%s'", hand->path);
  read_end = status[0];
  launch.status_fd = status[1];
  err = fork_child(&launch, ret_pid);
  close(status[1]);
  if (err)
    return dr_error_set_errno(error, err, "cannot start '%s'", hand->path);
  failure = read_failure(read_end);
  if (failure.step != STEP_NONE)
    while (waitpid(*ret_pid, NULL, 0) < 0 && errno == EINTR)
      ;
  return fail(hand, failure, error);
}
