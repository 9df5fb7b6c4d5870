/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover doctor: droverd's directories. */
#include "cli/doctor.h"
#include "cli/render.h"

#include <errno.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define LITTLE ((guint64)100 << 20) /* the state file, and a log for each VM */
#define TOO_LITTLE ((guint64)4 << 20)
#define SOCKET_PATH 107                  /* of sockaddr_un, without the NUL */
#define LONGEST_SOCKET "/migration.9999" /* as vm/start.c has it */
#define NAME_LONGEST 63

/* Itself, or the nearest one above it that is there. (transfer full) */
static char *
existing(const char *dir)
{
  char *path = g_strdup(dir);

  while (access(path, F_OK) < 0 && (errno == ENOENT || errno == ENOTDIR) && strlen(path) > 1) {
    char *parent = g_path_get_dirname(path);

    g_free(path);
    path = parent;
  }
  return path;
}

static void
check_space(DrDoctor *d, const char *what, const char *dir)
{
  static const char remedy[] =
      "make room on that file system, or choose another with droverd --state-dir and --run-dir";
  g_autofree char *path = existing(dir);
  struct statvfs fs;
  guint64 left;
  g_autofree char *text = NULL;

  if (statvfs(path, &fs) < 0) {
    dr_doctor_blocker(d, "room", remedy, "cannot look at the %s directory %s: %s", what, dir,
                      g_strerror(errno));
    return;
  }
  left = (guint64)fs.f_bavail * fs.f_frsize;
  text = dr_render_bytes((double)left);
  if (left < TOO_LITTLE || (fs.f_files && fs.f_favail == 0))
    dr_doctor_blocker(d, "room", remedy, "the %s directory %s has no room: %s%s", what, dir, text,
                      fs.f_files && fs.f_favail == 0 ? ", and no inode" : "");
  else if (left < LITTLE)
    dr_doctor_warning(d, "room", remedy, "the %s directory %s has little room: %s", what, dir, text);
  else
    dr_doctor_ok(d, "room", "the %s directory %s has %s", what, dir, text);
}

/* Only where this user would run droverd: a running one has shown that it may. */
static void
check_writable(DrDoctor *d, const char *what, const char *dir)
{
  g_autofree char *path = existing(dir);

  if (d->version)
    return;
  if (!g_file_test(path, G_FILE_TEST_IS_DIR))
    dr_doctor_blocker(d, "directory", "remove it, or choose another directory (droverd --help)",
                      "the %s directory %s cannot be made: %s is no directory", what, dir, path);
  else if (access(path, W_OK | X_OK) < 0)
    dr_doctor_blocker(d, "directory",
                      "run droverd as another user, or choose another directory (droverd --help)",
                      "droverd could not write to the %s directory %s: %s", what, dir, g_strerror(errno));
  else
    dr_doctor_ok(d, "directory", "droverd could write to the %s directory %s", what, dir);
}

/* RUN_DIR/vms/NAME/migration.N is the longest socket of a VM. */
static void
check_length(DrDoctor *d, const char *run_dir)
{
  int left = SOCKET_PATH - 1 - (int)(strlen(run_dir) + strlen("/vms/") + strlen(LONGEST_SOCKET));

  if (left < 1)
    dr_doctor_blocker(d, "run-path", "choose a shorter one with droverd --run-dir",
                      "the run directory's path is too long for the sockets in it: %s", run_dir);
  else if (left < NAME_LONGEST)
    dr_doctor_note(d, "run-path", "choose a shorter one with droverd --run-dir",
                   "the run directory's path is long: VMs' names have %d characters at the most: %s", left,
                   run_dir);
  else
    dr_doctor_ok(d, "run-path", "the run directory's path leaves room for every VM's name");
}

void
dr_doctor_check_room(DrDoctor *d)
{
  const char *state = dr_json_str(d->version, "state_dir", d->config.state_dir);
  const char *run = dr_json_str(d->version, "run_dir", d->config.run_dir);

  if (!state || !run)
    return; /* the configuration is broken, and no droverd says */
  check_space(d, "state", state);
  check_space(d, "run", run);
  check_writable(d, "state", state);
  check_writable(d, "run", run);
  check_length(d, run);
}
