/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover doctor: QEMU and its programs. */
#include "cli/doctor.h"
#include "qemu/tool.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERSION_MS 5000
#define VERSION_MAX 4096
#define BINARIES_MAX 32
#define QEMU_MAJOR 5 /* 5.2 is the oldest that a VM can come from */
#define QEMU_MINOR 2

/* --- Which --- */

static gboolean
is_qemu_name(const char *name)
{
  return g_str_has_prefix(name, "qemu-system-") || g_str_equal(name, "qemu-kvm") || g_str_equal(name, "kvm");
}

/* By what they lead to, as /bin is /usr/bin. */
static void
add_binary(GPtrArray *binaries, GHashTable *known, const char *path)
{
  char *real = realpath(path, NULL);

  if (real && access(real, X_OK) == 0 && !g_file_test(real, G_FILE_TEST_IS_DIR) &&
      g_hash_table_add(known, g_strdup(real)))
    g_ptr_array_add(binaries, g_strdup(path));
  free(real);
}

/* A pattern may take in any program; only what is called as a QEMU is started. */
static void
add_matching(GPtrArray *binaries, GHashTable *known, const char *pattern)
{
  gboolean exact = !pattern[strcspn(pattern, "*?[")];
  glob_t found = { 0 };

  if (glob(pattern, 0, NULL, &found) == 0)
    for (gsize i = 0; i < found.gl_pathc; i++) {
      g_autofree char *name = g_path_get_basename(found.gl_pathv[i]);

      if (exact || is_qemu_name(name))
        add_binary(binaries, known, found.gl_pathv[i]);
    }
  globfree(&found);
}

/* Those of PATH, then those that peers may have started. */
static GPtrArray *
find_binaries(const DrDoctor *d)
{
  GPtrArray *binaries = g_ptr_array_new_with_free_func(g_free);
  g_autoptr(GHashTable) known = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  g_auto(GStrv) dirs = g_strsplit(g_getenv("PATH") ? g_getenv("PATH") : "", ":", -1);

  for (char **dir = dirs; *dir; dir++) {
    g_autofree char *pattern = g_build_filename(*dir, "*", NULL);

    if (g_path_is_absolute(*dir))
      add_matching(binaries, known, pattern);
  }
  for (char **pattern = d->config.qemu_binaries; pattern && *pattern; pattern++)
    add_matching(binaries, known, *pattern);
  return binaries;
}

/* --- Asking them --- */

/* "QEMU emulator version 7.2.22 (Debian …)\nCopyright …" */
static gboolean
parse_version(const char *said, int *ret_major, int *ret_minor, char **ret_version)
{
  static const char begin[] = "QEMU emulator version ";
  const char *version = g_str_has_prefix(said, begin) ? said + strlen(begin) : NULL;

  if (!version || sscanf(version, "%d.%d", ret_major, ret_minor) != 2)
    return FALSE;
  *ret_version = g_strndup(version, strcspn(version, " \n"));
  return TRUE;
}

/* Returns: whether it can be used. */
static gboolean
check_binary(DrDoctor *d, const char *path)
{
  const char *const argv[] = { path, "-version", NULL };
  g_autoptr(GError) error = NULL;
  g_autofree char *said = dr_tool_run(argv, VERSION_MAX, VERSION_MS, &error);
  g_autofree char *version = NULL;
  int major = 0, minor = 0;

  if (!said || !parse_version(said, &major, &minor, &version)) {
    dr_doctor_warning(d, "qemu-broken", "install it anew, or take it out of PATH and of binaries= in [qemu]",
                      "%s does not tell its version: %s", path, error ? error->message : "it is no QEMU");
    return FALSE;
  }
  if (major < QEMU_MAJOR || (major == QEMU_MAJOR && minor < QEMU_MINOR)) {
    dr_doctor_warning(d, "qemu-old", "install a newer one", "%s is QEMU %s; drover knows %d.%d and later",
                      path, version, QEMU_MAJOR, QEMU_MINOR);
    return FALSE;
  }
  dr_doctor_ok(d, "qemu", "%s is QEMU %s", path, version);
  if (d->config_read && d->config.listen_port && !dr_config_allows_binary(&d->config, path))
    dr_doctor_note(d, "qemu-not-allowed", "add it to binaries= in [qemu] of droverd.conf",
                   "%s is not among those that a peer may have started: no VM can come here under it", path);
  return TRUE;
}

static void
check_tool(DrDoctor *d, const char *name)
{
  const char *const argv[] = { name, "--version", NULL };
  g_autoptr(GError) error = NULL;
  g_autofree char *said = dr_tool_run(argv, VERSION_MAX, VERSION_MS, &error);

  if (said)
    dr_doctor_ok(d, "qemu-img", "%.*s", (int)strcspn(said, "\n"), said);
  else
    dr_doctor_warning(d, "qemu-img", "install it (package qemu-utils)",
                      "%s does not run: disks cannot be streamed, fetched behind a VM, or reverted: %s", name,
                      error->message);
}

static void
check_storage_daemon(DrDoctor *d)
{
  const char *const argv[] = { "qemu-storage-daemon", "--version", NULL };
  g_autofree char *said = dr_tool_run(argv, VERSION_MAX, VERSION_MS, NULL);

  if (said)
    dr_doctor_ok(d, "qemu-storage-daemon", "%.*s", (int)strcspn(said, "\n"), said);
  else
    dr_doctor_note(d, "qemu-storage-daemon", "install it (package qemu-system-common)",
                   "there is no qemu-storage-daemon: no move with --copy-storage-postcopy from here");
}

void
dr_doctor_check_qemu(DrDoctor *d)
{
  g_autoptr(GPtrArray) binaries = find_binaries(d);
  guint usable = 0;

  for (guint i = 0; i < MIN(binaries->len, BINARIES_MAX); i++)
    usable += check_binary(d, binaries->pdata[i]);
  if (binaries->len > BINARIES_MAX)
    dr_doctor_note(d, "qemu-many", NULL, "%u more QEMUs were found and not asked",
                   binaries->len - BINARIES_MAX);
  if (usable == 0)
    dr_doctor_blocker(
        d, "qemu", "install one (package qemu-system-x86), or name it in binaries= in [qemu] of droverd.conf",
        "no QEMU that drover can use is in PATH or in binaries=");
  check_tool(d, "qemu-img");
  check_storage_daemon(d);
}
