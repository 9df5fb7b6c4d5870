/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Fork and exec out of a process with many threads; for spawn.c and caps.c. */
#pragma once
#include <glib.h>
#include <sys/types.h>

typedef struct {
  const char *path; /* what to execute; no look-up */
  char *const *argv;
  char *const *envp;
  const int *fds; /* our descriptors; they become 0, 1, … n_fds - 1, and it gets no others */
  guint n_fds;
  gboolean
      dies_with_us; /* SIGKILLed when the calling THREAD ends: for a child that must not outlive its use */
} DrChild;

/* Starts it in a session of its own, in "/", with default signals. Returns 0, or the errno of what failed (exec too,
 * and then no child is left). The caller reaps *ret_pid. */
int dr_child_start(const DrChild *child, pid_t *ret_pid);

/* What an errno of execve(2) means for the file at `path`: DR_ERROR_NOT_FOUND or DR_ERROR_INVALID with a remedy. */
gboolean dr_exec_error(const char *path, int err, GError **error);

/* The program for argv[0]: itself when it has a slash (a relative one begins at `cwd`), else the first executable of that
 * name in `path` (a PATH; NULL: the system's default). NULL with DR_ERROR_NOT_FOUND. (transfer full) */
char *dr_find_program(const char *name, const char *path, const char *cwd, GError **error);
