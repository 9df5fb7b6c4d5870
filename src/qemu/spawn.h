/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The one place that starts a QEMU.
 *
 * QEMU must outlive droverd, and its exit status must be known even when nobody was there to see it. So droverd starts
 * `drover-keeper` (72 KiB each where many run, nothing but libc), which starts QEMU as its child in a session of its own,
 * waits, and writes the status to a file. */
#pragma once
#include "qemu/world.h"

typedef struct {
  const char *vm; /* nullable: the name of the VM, for its control group (qemu/scope.h) */
  char **argv;    /* argv[0] is the program: a path, or a name looked up in PATH of envp */
  char **envp;    /* A=B */
  const char *cwd;
  const char *log_path;  /* stdout and stderr are appended here, unless 1 and 2 are among `numbers` */
  const DrWorld *world;  /* nullable: it is started as that process was, and no keeper stays beside it */
  const char *exit_path; /* absolute; written atomically by the keeper when QEMU ends:
                            {"pid":N,"start":T,"exit":N|null,"signal":N|null,"core":B,"time":S} */
  const int *fds;        /* our descriptors to hand down … */
  const int *
      numbers; /* … as these numbers (3 and above, with a world also 1 and 2; must not collide with each other) */
  guint n_fds;
} DrSpawn;

/* Starts it. All other descriptors are closed in the child, signals are reset, stdin is /dev/null. An exec that fails
 * (no such file, not executable, bad interpreter) is reported as DR_ERROR_NOT_FOUND or DR_ERROR_INVALID here and leaves
 * nothing behind. *ret_id is QEMU's own process, not the keeper's (of a wrapper script that does not exec QEMU: the
 * script's). Afterwards we have no child, and the keeper none of the descriptors. When we die before this returns, the
 * keeper kills the QEMU that nobody knows of. DR_ERROR_TIMEOUT: exec took 10 s; what then starts is killed likewise. */
gboolean dr_spawn(const DrSpawn *spawn, DrProcId *ret_id, GError **error);

/* Reads an exit file. FALSE with NOT_FOUND when there is none. *ret_status: as a person reads it, (transfer full):
 * "exited with status 1", "was killed by signal 9 (Killed)". */
gboolean dr_spawn_read_exit(const char *exit_path, const DrProcId *id, char **ret_status, GError **error);

/* The last lines of a log, at most `max` bytes, for an error message; "" if there is none. (transfer full) */
char *dr_log_tail(const char *log_path, goffset from, gsize max);
