/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tells the words that launch a QEMU from the QEMU. */
#include "argv/launcher.h"
#include "base/error.h"

#include <string.h>

static const char *
base_name(const char *word)
{
  const char *slash = strrchr(word, '/');

  return slash ? slash + 1 : word;
}

static gboolean
is_qemu(const char *word)
{
  static const char *const names[] = { "qemu-kvm", "kvm", "qemu", NULL };
  const char *name = base_name(word);

  return g_str_has_prefix(name, "qemu-system-") || g_strv_contains(names, name);
}

/* ld-linux-x86-64.so.2, ld-2.31.so, ld-musl-x86_64.so.1 */
static gboolean
is_ld_so(const char *word)
{
  const char *name = base_name(word);

  return g_str_has_prefix(name, "ld-") && strstr(name, ".so");
}

/* Launchers whose own arguments are not read: the program is found by its name. */
static gboolean
is_other_launcher(const char *word)
{
  static const char *const names[] = {
    "cgexec",      "chpst",   "chroot",  "chrt",    "daemonize", "doas",     "gdb",
    "ionice",      "ip",      "nice",    "nohup",   "nsenter",   "numactl",  "prlimit",
    "runuser",     "setarch", "setpriv", "setsid",  "stdbuf",    "strace",   "sudo",
    "systemd-run", "taskset", "time",    "timeout", "unshare",   "valgrind", NULL,
  };

  return g_strv_contains(names, base_name(word));
}

/* Index of the first word behind the options of ld.so (glibc 2.31 to 2.42), from 1. */
static guint
skip_ld_so(const char *const *words)
{
  static const char *const with_value[] = {
    "--library-path",      "--inhibit-rpath",        "--audit", "--preload", "--argv0",
    "--glibc-hwcaps-mask", "--glibc-hwcaps-prepend", NULL,
  };
  guint i = 1;

  while (words[i] && g_str_has_prefix(words[i], "--")) {
    if (g_strv_contains(with_value, words[i]) && words[i + 1])
      i++;
    i++;
  }
  return i;
}

/* The same behind env's options and assignments (coreutils 9). */
static guint
skip_env(const char *const *words)
{
  static const char *const with_value[] = { "-u", "--unset", "-C", "--chdir", NULL };
  guint i = 1;

  while (words[i] && (words[i][0] == '-' || strchr(words[i], '='))) {
    if (g_strv_contains(with_value, words[i]) && words[i + 1])
      i++;
    i++;
  }
  return i;
}

static guint
skip_to_qemu(const char *const *words)
{
  guint i = 1;

  while (words[i] && !is_qemu(words[i]))
    i++;
  return i;
}

gboolean
dr_launcher_find_program(const char *const *words, guint *ret_index, GError **error)
{
  guint at = 0, skipped;

  for (;;) {
    const char *const *rest = words + at;

    if (is_ld_so(rest[0]))
      skipped = skip_ld_so(rest);
    else if (g_str_equal(base_name(rest[0]), "env"))
      skipped = skip_env(rest);
    else if (is_other_launcher(rest[0]))
      skipped = skip_to_qemu(rest);
    else
      break;
    if (!rest[skipped])
      return dr_error_set(error, DR_ERROR_INVALID, "no program behind '%s'", rest[0]);
    at += skipped;
  }
  *ret_index = at;
  return TRUE;
}
