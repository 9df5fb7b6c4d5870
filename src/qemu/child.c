/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Fork and exec out of a process with many threads. */
#include "qemu/child.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* From here to become(): between fork and exec of a process whose other threads may hold any lock. Only
 * async-signal-safe calls, no memory allocation, no GLib. */

static int
reset_signals(void)
{
  struct sigaction action = { .sa_handler = SIG_DFL };
  sigset_t none;

  for (int i = 1; i < NSIG; i++)
    sigaction(i, &action, NULL); /* those of SIGKILL, SIGSTOP and the C library's own fail, which is right */
  sigemptyset(&none);
  return sigprocmask(SIG_SETMASK, &none, NULL);
}

/* First all go above the highest wanted number, or one that is put in its place could overwrite one still to be moved. */
static int
place_fds(const DrChild *child, int *high)
{
  for (guint i = 0; i < child->n_fds; i++)
    if ((high[i] = fcntl(child->fds[i], F_DUPFD_CLOEXEC, child->n_fds)) < 0)
      return -1;
  for (guint i = 0; i < child->n_fds; i++)
    if (dup2(high[i], i) < 0)
      return -1;
  return close_range(child->n_fds, ~0U, CLOSE_RANGE_CLOEXEC);
}

static G_NORETURN void
become(const DrChild *child, int *high, pid_t parent, int status_fd)
{
  int err;

  /* Above the numbers that place_fds() fills. */
  status_fd = fcntl(status_fd, F_DUPFD_CLOEXEC, child->n_fds);
  if (status_fd < 0 || setsid() < 0 || reset_signals() < 0 || chdir("/") < 0)
    goto failed;
  if (child->dies_with_us && prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
    goto failed;
  if (child->dies_with_us && getppid() != parent)
    _exit(127); /* it died before the line above */
  if (place_fds(child, high) == 0)
    execve(child->path, child->argv, child->envp);
failed:
  err = errno;
  if (write(status_fd, &err, sizeof err) < 0)
    _exit(126);
  _exit(127);
}

/* 0 when the pipe ended without a word: exec closed it. */
static int
read_status(int fd)
{
  int err = 0;
  gssize n;

  do
    n = read(fd, &err, sizeof err);
  while (n < 0 && errno == EINTR);
  return n == sizeof err ? err : 0;
}

static int
fork_child(const DrChild *child, const int *status, int *high, pid_t *ret_pid)
{
  pid_t parent = getpid(), pid;
  sigset_t all, before;
  int err;

  /* No handler of ours may run in the child. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pid = fork();
  err = errno;
  if (pid == 0)
    become(child, high, parent, status[1]);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  *ret_pid = pid;
  return pid < 0 ? err : 0;
}

int
dr_child_start(const DrChild *child, pid_t *ret_pid)
{
  g_autofree int *high = g_new(int, child->n_fds);
  dr_autofd int read_end = -1;
  int status[2], err;

  if (pipe2(status, O_CLOEXEC) < 0)
    return errno;
  read_end = status[0];
  err = fork_child(child, status, high, ret_pid);
  close(status[1]);
  if (err)
    return err;
  err = read_status(read_end);
  if (err)
    while (waitpid(*ret_pid, NULL, 0) < 0 && errno == EINTR)
      ;
  return err;
}

gboolean
dr_exec_error(const char *path, int err, GError **error)
{
  struct stat status;
  gboolean there = stat(path, &status) == 0;

  if (err == ENOENT && !there) {
    dr_error_set(error, DR_ERROR_NOT_FOUND, "cannot run '%s': there is no such file", path);
    return dr_error_remedy(error, "give the path of a qemu-system-* binary that is installed on this host");
  }
  if (err == ENOENT) {
    dr_error_set(error, DR_ERROR_INVALID, "cannot run '%s': its interpreter or dynamic loader is missing",
                 path);
    return dr_error_remedy(error, "look at its first line, or at `readelf -l %s | grep interpreter`", path);
  }
  if (there && S_ISDIR(status.st_mode)) {
    dr_error_set(error, DR_ERROR_INVALID, "cannot run '%s': it is a directory", path);
    return dr_error_remedy(error, "give the path of the binary in it");
  }
  if (err == ENOEXEC) {
    dr_error_set(error, DR_ERROR_INVALID,
                 "cannot run '%s': it is neither a program for this machine nor a script", path);
    return dr_error_remedy(error, "a wrapper script must begin with a line like #!/bin/sh");
  }
  dr_error_set(error, DR_ERROR_INVALID, "cannot run '%s': %s", path, g_strerror(err));
  if (err == EACCES)
    return dr_error_remedy(error,
                           "make it executable (chmod +x), on a file system that is not mounted noexec");
  return FALSE;
}

static gboolean
is_program(const char *path)
{
  return g_file_test(path, G_FILE_TEST_IS_REGULAR) && access(path, X_OK) == 0;
}

char *
dr_find_program(const char *name, const char *path, const char *cwd, GError **error)
{
  g_auto(GStrv) dirs =
      g_strsplit(path ? path : "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", ":", -1);

  if (strchr(name, '/'))
    return g_canonicalize_filename(name, cwd);
  for (guint i = 0; dirs[i] && name[0]; i++) {
    g_autofree char *dir = g_canonicalize_filename(dirs[i][0] ? dirs[i] : ".", cwd);
    g_autofree char *file = g_build_filename(dir, name, NULL);

    if (is_program(file))
      return g_steal_pointer(&file);
  }
  dr_error_set(error, DR_ERROR_NOT_FOUND, "cannot run '%s': it is in no directory of PATH", name);
  dr_error_remedy(error, "install it, or give its whole path");
  return NULL;
}
