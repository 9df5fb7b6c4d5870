/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover doctor: libvirt, its daemon, its domains, and what drover needs to put a new QEMU beneath them. Nothing connects to it: that would start
 * a daemon that only waits behind its sockets. */
#include "base/error.h"
#include "base/fd.h"
#include "cli/doctor.h"
#include "libvirt/daemon.h"
#include "libvirt/versions.h"
#include "qemu/tool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define VERSION_MS 5000
#define VERSION_MAX 4096
#define FILE_MAX (16 * 1024 * 1024)
#define ASKED_MAX 8 /* QEMU binaries whose version is looked at */
#define HELPER "drover-libvirt"

static gboolean
exists(const DrDoctor *d, const char *path)
{
  g_autofree char *full = dr_doctor_path(d, path);

  return access(full, F_OK) == 0;
}

/* The words behind `before` in what `program --version` says, up to a space or a line's end. (transfer full) (nullable) */
static char *
version_of(const char *program, const char *before)
{
  const char *const argv[] = { program, "--version", NULL };
  g_autofree char *said = dr_tool_run(argv, VERSION_MAX, VERSION_MS, NULL);
  const char *at = said ? strstr(said, before) : NULL;

  return at ? g_strndup(at + strlen(before), strcspn(at + strlen(before), " \n(")) : NULL;
}

/* --- The daemon --- */

/* Of the program that runs: a package may have put a newer one in its place since. */
static void
check_version(DrDoctor *d, const DrLibvirtDaemon *daemon)
{
  g_autofree char *program = g_strdup_printf("/proc/%d/exe", (int)dr_libvirt_daemon_pid(daemon));
  g_autofree char *version = version_of(program, "(libvirt) ");

  if (version && dr_libvirt_is_tested(dr_libvirt_version_number(version)))
    dr_doctor_ok(d, "libvirt-version",
                 "libvirt %s is among those that drover was tried with (" DR_LIBVIRT_TESTED ")", version);
  else if (version)
    dr_doctor_note(d, "libvirt-version",
                   "drover upgrade --untested-libvirt goes on; try it on a domain that you can spare",
                   "libvirt %s is not among those that drover was tried with (" DR_LIBVIRT_TESTED
                   "): its domains are not upgraded without --untested-libvirt",
                   version);
  else
    dr_doctor_note(d, "libvirt-version", "virsh version tells it", "%s does not tell its version",
                   dr_libvirt_daemon_name(daemon));
}

/* Returns: whether there is one, or something in its place. */
static gboolean
check_daemon(DrDoctor *d, const char *uri, const char *dir)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(DrLibvirtDaemon) daemon = dr_libvirt_daemon_find(dir, &error);

  if (daemon) {
    dr_doctor_ok(d, "libvirt", "%s has the domains of %s", dr_libvirt_daemon_name(daemon), uri);
    check_version(d, daemon);
    return TRUE;
  }
  if (g_error_matches(error, DR_ERROR, DR_ERROR_NOT_FOUND))
    return FALSE;
  if (g_error_matches(error, DR_ERROR, DR_ERROR_BUSY))
    dr_doctor_note(d, "libvirt", NULL, "libvirt's daemon is away: %s", error->message);
  else
    dr_doctor_note(d, "libvirt", dr_error_get_remedy(error),
                   "which daemon has the domains of %s cannot be told: %s", uri, error->message);
  return TRUE;
}

/* --- Domains: of their status files and the command lines of their QEMUs, as text --- */

typedef struct {
  guint running, copied, unreadable;
  GHashTable *versions; /* of QEMU binaries, by device and inode; value NULL: not known */
} Domains;

/* "<domstatus state='running' … pid='4711'>"; 0: it is no such file. */
static pid_t
pid_of(const char *status)
{
  const char *element = strstr(status, "<domstatus");
  const char *pid = element ? strstr(element, " pid='") : NULL;

  return pid && pid < element + strcspn(element, ">") ? (pid_t)atoi(pid + strlen(" pid='")) : 0;
}

/* (transfer none) (nullable) */
static const char *
qemu_version(Domains *domains, const char *program)
{
  g_autofree char *key = NULL;
  struct stat file;

  if (stat(program, &file) < 0)
    return NULL;
  key = g_strdup_printf("%llu:%llu", (unsigned long long)file.st_dev, (unsigned long long)file.st_ino);
  if (!g_hash_table_contains(domains->versions, key) && g_hash_table_size(domains->versions) < ASKED_MAX)
    g_hash_table_insert(domains->versions, g_strdup(key), version_of(program, "version "));
  return g_hash_table_lookup(domains->versions, key);
}

static gboolean
is_shared(const char *object)
{
  return strstr(object, "\"share\":true") || strstr(object, ",share=on") || strstr(object, ",share=yes");
}

/* As check.c decides it: all RAM in shared files, none of them a memfd that QEMU sends anyhow. */
static gboolean
is_copied(Domains *domains, const char *words, gsize len, const char *program)
{
  gboolean any = FALSE, all = TRUE, memfd = FALSE;
  const char *before = "";

  for (const char *word = words; word < words + len; before = word, word += strlen(word) + 1) {
    if (strcmp(before, "-object") != 0 || !strstr(word, "memory-backend-"))
      continue;
    any = TRUE;
    all &= is_shared(word);
    memfd |= strstr(word, "memory-backend-memfd") != NULL;
  }
  return !any || !all || (memfd && dr_qemu_sends_memfd(qemu_version(domains, program)));
}

static void
look_at_domain(const DrDoctor *d, Domains *domains, const char *file)
{
  g_autofree char *status = dr_file_read(file, FILE_MAX, NULL, NULL);
  pid_t pid = status ? pid_of(status) : 0;
  g_autofree char *proc = g_strdup_printf("%s/proc/%d", d->root, (int)pid);
  g_autofree char *cmdline = g_strconcat(proc, "/cmdline", NULL);
  g_autofree char *program = g_strconcat(proc, "/exe", NULL);
  g_autofree char *words = NULL;
  gsize len = 0;

  if (!status)
    domains->unreadable++;
  if (pid <= 0)
    return;
  words = dr_file_read(cmdline, FILE_MAX, &len, NULL);
  if (!words || len == 0) /* it has ended */
    return;
  domains->running++;
  domains->copied += is_copied(domains, words, len, program);
}

static void
tell_domains(DrDoctor *d, const char *uri, const Domains *domains)
{
  const char *s = domains->running == 1 ? "" : "s";

  if (domains->unreadable)
    dr_doctor_note(d, "libvirt-domains", "run drover doctor as root",
                   "this user may not read %u of the status files of %s: how an upgrade would move their RAM "
                   "cannot be told",
                   domains->unreadable, uri);
  if (domains->copied)
    dr_doctor_note(d, "libvirt-domains",
                   "nothing, if there is room: it is so only once for each. Never: <memoryBacking> with a "
                   "shared file on a tmpfs, see the how-to \"Upgrade QEMU below libvirt\"",
                   "%u of %u running domain%s of %s would have RAM copied by an upgrade, and need it twice "
                   "meanwhile",
                   domains->copied, domains->running, s, uri);
  else if (domains->running)
    dr_doctor_ok(d, "libvirt-domains", "%u domain%s of %s: an upgrade would copy no RAM", domains->running, s,
                 uri);
}

/* Returns: whether there are any. */
static gboolean
check_domains(DrDoctor *d, const char *uri, const char *path)
{
  g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
  g_autoptr(GHashTable) versions = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
  Domains domains = { .versions = versions };
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    g_autofree char *file = g_build_filename(path, name, NULL);

    if (g_str_has_suffix(name, ".xml"))
      look_at_domain(d, &domains, file);
  }
  tell_domains(d, uri, &domains);
  return domains.running > 0 || domains.unreadable > 0;
}

/* --- drover's part --- */

/* As the droverd that runs says, which starts it; else installed, or in the build tree as seen from src/cli. */
static gboolean
has_helper(const DrDoctor *d)
{
  g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
  g_autofree char *bin = g_path_get_dirname(self ? self : "/");
  g_autofree char *built = g_build_filename(bin, "../libvirt", HELPER, NULL);

  if (d->version && json_object_has_member(d->version, "libvirt"))
    return dr_json_bool(d->version, "libvirt", FALSE);
  return access(DROVER_LIBEXECDIR "/" HELPER, X_OK) == 0 || access(built, X_OK) == 0;
}

static void
check_helper(DrDoctor *d)
{
  if (has_helper(d))
    dr_doctor_ok(d, "libvirt-helper", HELPER " is installed: libvirt's domains can be upgraded");
  else
    dr_doctor_note(
        d, "libvirt-helper",
        "install the package drover-libvirt, or build drover where libvirt-dev and libxml2-dev are",
        HELPER " is not installed: libvirt's domains cannot be upgraded");
}

/* Whether a process has DIR/lock: journal.c takes it by flock(2). By the number of its file alone, as some file systems (btrfs, overlays) have
 * another device here than in stat(2). */
static gboolean
is_under_way(const DrDoctor *d, const char *lock)
{
  g_autofree char *text = dr_doctor_read(d, "/proc/locks");
  g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);
  struct stat file;

  for (char **line = lines; stat(lock, &file) == 0 && *line; line++) {
    unsigned long long inode = 0;
    int pid = 0;

    if (sscanf(*line, "%*u: FLOCK %*s %*s %d %*x:%*x:%llu", &pid, &inode) == 2 && inode == file.st_ino) {
      g_autofree char *path = g_strdup_printf("/proc/%d/comm", pid);
      g_autofree char *name = dr_doctor_read(d, path);

      if (g_strcmp0(name, HELPER) == 0)
        return TRUE;
    }
  }
  return FALSE;
}

/* libvirt/journal.h */
static void
check_run(DrDoctor *d)
{
  const char *state_dir = dr_json_str(d->version, "state_dir", d->config.state_dir);
  g_autofree char *dir = g_build_filename(state_dir ? state_dir : "/", "libvirt", NULL);
  g_autofree char *file = g_build_filename(dir, "run.json", NULL);
  g_autofree char *lock = g_build_filename(dir, "lock", NULL);
  g_autofree char *text = dr_file_read(file, 4 * FILE_MAX, NULL, NULL);
  g_autoptr(JsonObject) run = text ? dr_json_parse_object(text, -1, 4 * FILE_MAX, NULL) : NULL;
  const char *state = run ? dr_json_str(run, "state", "?") : "done";

  if (g_str_equal(state, "done"))
    return;
  if (is_under_way(d, lock))
    dr_doctor_note(d, "libvirt-run", NULL,
                   "libvirt's domains are being upgraded just now (%s): its daemon is away for some seconds",
                   state);
  else
    dr_doctor_warning(d, "libvirt-run", "start droverd anew: it brings the run to its end",
                      "an upgrade of libvirt's domains ended at '%s' and was not brought to its end (%s)",
                      state, file);
}

/* Returns: whether there is anything of that libvirt. */
static gboolean
check_driver(DrDoctor *d, const char *uri, const char *dir, gboolean waits)
{
  gboolean has_daemon = check_daemon(d, uri, dir), has_domains = check_domains(d, uri, dir);

  if (!has_daemon && (has_domains || waits))
    dr_doctor_note(d, "libvirt", "systemctl start libvirtd, or virtqemud",
                   "no daemon has the domains of %s just now%s", uri,
                   waits ? "; one whose socket is systemd's is started when somebody asks" : "");
  return has_daemon || has_domains || waits;
}

void
dr_doctor_check_libvirt(DrDoctor *d)
{
  g_autofree char *system = dr_doctor_path(d, "/run/libvirt/qemu");
  g_autofree char *own = g_build_filename(g_get_user_runtime_dir(), "libvirt/qemu/run", NULL);
  g_autofree char *session = dr_doctor_path(d, own);
  gboolean waits = exists(d, "/run/libvirt/libvirt-sock") || exists(d, "/run/libvirt/virtqemud-sock");
  gboolean of_system = check_driver(d, "qemu:///system", system, waits);
  gboolean of_session = check_driver(d, "qemu:///session", session, /* waits= */ FALSE);

  if (of_system || of_session)
    check_helper(d);
  else
    dr_doctor_ok(d, "libvirt", "libvirt does not run");
  check_run(d);
}
