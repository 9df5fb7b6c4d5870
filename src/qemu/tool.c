/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Runs a program and reads what it says, for at most so long. */
#include "qemu/tool.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/fd.h"
#include "qemu/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#define STDERR_MAX 65536
#define END_MS 5000

struct DrTool {
  const char *name;
  pid_t pid;
  int fds[2]; /* what it writes to stdout and stderr; -1: closed */
  GString *texts[2];
  gsize max[2];
  int pidfd; /* of dr_tool_start(); -1 */
};

static gboolean
start(DrTool *tool, const char *path, const char *const *argv, GError **error)
{
  dr_autofd int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  dr_autofd int out = -1, err = -1;
  g_auto(GStrv) envp = g_get_environ();
  int both[2], failed;

  if (null_fd < 0 || pipe2(both, O_CLOEXEC) < 0)
    return dr_error_set_errno(error, errno, "cannot run '%s'", path);
  tool->fds[0] = both[0];
  out = both[1];
  if (pipe2(both, O_CLOEXEC) < 0)
    return dr_error_set_errno(error, errno, "cannot run '%s'", path);
  tool->fds[1] = both[0];
  err = both[1];
  failed = dr_child_start(&(DrChild){ .path = path,
                                      .argv = (char *const *)argv,
                                      .envp = envp,
                                      .fds = (int[]){ null_fd, out, err },
                                      .n_fds = 3,
                                      .dies_with_us = TRUE },
                          &tool->pid);
  return failed == 0 || dr_exec_error(path, failed, error);
}

/* What is there of one of the two. */
static gboolean
take(DrTool *tool, guint i, GError **error)
{
  char buffer[16384];
  gssize n = read(tool->fds[i], buffer, sizeof buffer);

  if (n < 0 && errno == EINTR)
    return TRUE;
  if (n <= 0) {
    close(dr_fd_steal(&tool->fds[i]));
    return TRUE;
  }
  if (tool->texts[i]->len + (gsize)n <= tool->max[i])
    g_string_append_len(tool->texts[i], buffer, n);
  else if (i == 0)
    return dr_error_set(error, DR_ERROR_IO, "%s prints more than %zu bytes", tool->name, tool->max[0]);
  return TRUE;
}

static gboolean
too_late(const DrTool *tool, GError **error)
{
  return dr_error_set(error, DR_ERROR_TIMEOUT, "%s did not end in time", tool->name);
}

static gboolean
read_all(DrTool *tool, DrDeadline deadline, GError **error)
{
  while (tool->fds[0] >= 0 || tool->fds[1] >= 0) {
    struct pollfd fds[] = { { .fd = tool->fds[0], .events = POLLIN },
                            { .fd = tool->fds[1], .events = POLLIN } };

    if (poll(fds, 2, dr_deadline_left(deadline)) == 0)
      return too_late(tool, error);
    for (guint i = 0; i < 2; i++)
      if (fds[i].revents && !take(tool, i, error))
        return FALSE;
  }
  return TRUE;
}

/* The last line that has something on it: what a program says at its end is why it ends. */
static char *
last_line(const GString *text)
{
  g_autofree char *valid = g_utf8_make_valid(text->str, (gssize)text->len);
  g_auto(GStrv) lines = g_strsplit_set(valid, "\r\n", -1);

  for (guint i = g_strv_length(lines); i-- > 0;)
    if (*g_strstrip(lines[i]))
      return g_strdup(lines[i]);
  return g_strdup("it gave no reason");
}

static gboolean
ended_well(DrTool *tool, DrDeadline deadline, GError **error)
{
  dr_autofd int pidfd = pidfd_open(tool->pid, 0);
  struct pollfd end = { .fd = pidfd, .events = POLLIN };
  g_autofree char *line = NULL;
  int status;

  if (pidfd < 0 || poll(&end, 1, dr_deadline_left(deadline)) <= 0)
    return too_late(tool, error);
  if (waitpid(tool->pid, &status, WNOHANG) == tool->pid)
    tool->pid = 0;
  else
    return too_late(tool, error);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
    return TRUE;
  line = last_line(tool->texts[1]);
  return dr_error_set(error, DR_ERROR_IO, "%s", line);
}

/* One that does not end even so waits for a disk that hangs, and is left to the kernel. */
static void
end(DrTool *tool)
{
  dr_autofd int pidfd = pidfd_open(tool->pid, 0);
  struct pollfd ended = { .fd = pidfd, .events = POLLIN };

  kill(-tool->pid, SIGKILL); /* its session */
  if (pidfd >= 0)
    poll(&ended, 1, END_MS);
  waitpid(tool->pid, NULL, WNOHANG);
}

static void
clear(DrTool *tool)
{
  if (tool->pid > 0)
    end(tool);
  dr_fd_cleanup(&tool->pidfd);
  for (guint i = 0; i < 2; i++) {
    dr_fd_cleanup(&tool->fds[i]);
    g_string_free(tool->texts[i], TRUE);
  }
}

char *
dr_tool_run(const char *const *argv, gsize max, int timeout_ms, GError **error)
{
  DrDeadline deadline = dr_deadline_in(timeout_ms);
  g_autofree char *path = dr_find_program(argv[0], g_getenv("PATH"), "/", error);
  DrTool tool = { .name = argv[0],
                  .fds = { -1, -1 },
                  .texts = { g_string_new(NULL), g_string_new(NULL) },
                  .max = { max, STDERR_MAX },
                  .pidfd = -1 };
  char *said = NULL;

  if (path && start(&tool, path, argv, error) && read_all(&tool, deadline, error) &&
      ended_well(&tool, deadline, error))
    said = g_strndup(tool.texts[0]->str, tool.texts[0]->len);
  clear(&tool);
  return said;
}

DrTool *
dr_tool_start(const char *const *argv, GError **error)
{
  g_autofree char *path = dr_find_program(argv[0], g_getenv("PATH"), "/", error);
  g_autoptr(DrTool) tool = g_new0(DrTool, 1);

  *tool = (DrTool){ .name = g_intern_string(argv[0]),
                    .fds = { -1, -1 },
                    .texts = { g_string_new(NULL), g_string_new(NULL) },
                    .max = { STDERR_MAX, STDERR_MAX },
                    .pidfd = -1 };
  if (!path || !start(tool, path, argv, error))
    return NULL;
  tool->pidfd = pidfd_open(tool->pid, 0);
  if (tool->pidfd >= 0)
    return g_steal_pointer(&tool);
  dr_error_set_errno(error, errno, "cannot watch '%s'", path);
  return NULL;
}

int
dr_tool_fd(const DrTool *tool)
{
  return tool->pidfd;
}

gboolean
dr_tool_end(DrTool *tool, GError **error)
{
  DrDeadline deadline = dr_deadline_in(END_MS);

  return read_all(tool, deadline, error) && ended_well(tool, deadline, error);
}

void
dr_tool_free(DrTool *tool)
{
  if (!tool)
    return;
  clear(tool);
  g_free(tool);
}
