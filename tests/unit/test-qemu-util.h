/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the tests of src/qemu/ share: a directory that vanishes, the QEMUs of this machine, waiting with a deadline. */
#pragma once
#include "base/deadline.h"
#include "base/error.h"
#include "base/fd.h"
#include "qemu/spawn.h"
#include "qmp/qmp.h"

#include <ftw.h>
#include <stdio.h>

#define WAIT_MS 20000 /* for things that take milliseconds, on a machine that is busy */

static inline int
tmp_remove_one(const char *path, const struct stat *status, int type, struct FTW *ftw)
{
  return remove(path);
}

static inline void
tmp_free(char *dir)
{
  nftw(dir, tmp_remove_one, 16, FTW_DEPTH | FTW_PHYS);
  g_free(dir);
}

static inline void
tmp_clear(char **dir)
{
  if (*dir)
    tmp_free(*dir);
}
#define auto_tmp __attribute__((cleanup(tmp_clear)))

static inline char *
tmp_new(void)
{
  g_autoptr(GError) error = NULL;
  char *dir = g_dir_make_tmp("drover-test-XXXXXX", &error);

  g_assert_no_error(error);
  return dir;
}

static inline char *
tmp_file(const char *dir, const char *name, const char *text, int mode)
{
  g_autoptr(GError) error = NULL;
  char *path = g_build_filename(dir, name, NULL);

  g_file_set_contents_full(path, text, -1, G_FILE_SET_CONTENTS_NONE, mode, &error);
  g_assert_no_error(error);
  return path;
}

/* build/qemu/VERSION/qemu-system-x86_64 of the repository, looked for upwards from `from`. */
static inline char *
qemu_fetched(const char *from, const char *version)
{
  g_autofree char *dir = g_strdup(from);

  while (dir[0] && dir[1]) {
    g_autofree char *path = g_build_filename(dir, "build", "qemu", version, "qemu-system-x86_64", NULL);
    char *parent;

    if (access(path, X_OK) == 0)
      return g_steal_pointer(&path);
    parent = g_path_get_dirname(dir);
    g_free(dir);
    dir = parent;
  }
  return NULL;
}

/* The binary of a version: "7.2" is the installed one. NULL: not on this machine. */
static inline char *
qemu_find(const char *version)
{
  g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
  g_autofree char *dir = g_path_get_dirname(self);
  g_autofree char *cwd = g_get_current_dir();
  char *found;

  if (g_str_equal(version, "7.2"))
    return g_find_program_in_path("qemu-system-x86_64");
  found = qemu_fetched(dir, version);
  return found ? found : qemu_fetched(cwd, version);
}

/* Waits until something is true, looking each millisecond. */
#define wait_until(condition)                                                                                \
  G_STMT_START                                                                                               \
  {                                                                                                          \
    DrDeadline deadline_ = dr_deadline_in(WAIT_MS);                                                          \
    while (!(condition)) {                                                                                   \
      if (dr_deadline_passed(deadline_))                                                                     \
        g_error("%s:%d: in vain: %s", __FILE__, __LINE__, #condition);                                       \
      g_usleep(1000);                                                                                        \
    }                                                                                                        \
  }                                                                                                          \
  G_STMT_END

/* A message that names the trouble and a remedy: every error that a user may see has both. */
static inline void
assert_error(GError **error, DrErrorCode code, const char *words)
{
  g_assert_nonnull(*error);
  g_test_message("%s [%s]", (*error)->message, dr_error_get_remedy(*error));
  g_assert_error(*error, DR_ERROR, (int)code);
  if (!strstr((*error)->message, words))
    g_error("'%s' is not in: %s", words, (*error)->message);
  g_clear_error(error);
}

/* A QEMU of a test: started by dr_spawn() in `dir`, killed at the end. */
typedef struct {
  DrProcId id;
  DrQmp *qmp;
  char *log;
  char *exit_path;
} TestQemu;

static inline void
test_qemu_free(TestQemu *qemu)
{
  g_autofree char *status = NULL;

  dr_proc_kill(&qemu->id, WAIT_MS, NULL);
  /* The keeper is the last one to write into the directory. */
  wait_until(dr_spawn_read_exit(qemu->exit_path, &qemu->id, &status, NULL));
  dr_qmp_free(qemu->qmp);
  g_free(qemu->log);
  g_free(qemu->exit_path);
  g_free(qemu);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TestQemu, test_qemu_free)

/* `words`: separated by blanks, behind those that every test's QEMU gets. */
static inline TestQemu *
test_qemu_start(const char *binary, const char *dir, const char *words, const int *fds, const int *numbers,
                guint n_fds)
{
  static guint serial;
  TestQemu *qemu = g_new0(TestQemu, 1);
  g_autofree char *socket = g_strdup_printf("%s/qmp%u", dir, ++serial);
  g_autofree char *line = g_strdup_printf(
      "%s -S -nodefaults -display none -accel tcg -qmp unix:%s,server=on,wait=off %s", binary, socket, words);
  g_auto(GStrv) argv = g_strsplit(line, " ", -1);
  g_auto(GStrv) envp = g_get_environ();
  g_autoptr(GError) error = NULL;

  qemu->log = g_strdup_printf("%s/log%u", dir, serial);
  qemu->exit_path = g_strdup_printf("%s/exit%u", dir, serial);
  DrSpawn spawn = { .argv = argv,
                    .envp = envp,
                    .cwd = dir,
                    .log_path = qemu->log,
                    .exit_path = qemu->exit_path,
                    .fds = fds,
                    .numbers = numbers,
                    .n_fds = n_fds };
  dr_spawn(&spawn, &qemu->id, &error);
  g_assert_no_error(error);
  /* Not for the whole time at once: a QEMU that ends at once never listens. */
  for (DrDeadline deadline = dr_deadline_in(WAIT_MS); !qemu->qmp && !dr_deadline_passed(deadline);) {
    g_clear_error(&error);
    qemu->qmp = dr_qmp_connect(socket, TRUE, dr_deadline_in(200), &error);
    if (!qemu->qmp && !dr_proc_alive(&qemu->id))
      break;
  }
  if (!qemu->qmp) {
    g_autofree char *tail = dr_log_tail(qemu->log, 0, 2000);

    g_test_message("%s: %s; %s", line, error->message, tail);
    test_qemu_free(qemu);
    return NULL;
  }
  return qemu;
}
