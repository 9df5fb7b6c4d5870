/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The checks, in the order in which a person would ask. */
#include "job/preflight.h"
#include "base/error.h"
#include "base/fd.h"
#include "job/blockers.h"
#include "job/memory-promise.h"
#include "job/preflight-cpu.h"
#include "job/preflight-host.h"
#include "job/preflight-unversioned.h"
#include "job/tap-queues.h"
#include "qemu/tool.h"
#include "vm/describe.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A memory-backend-memfd counts as a named shared file, and is left out of the stream, only up to here; a newer source
 * sends it, and a destination on memory-backend-file refuses it (QEMU 8.1, RAM_NAMED_FILE). */
#define MEMFD_IGNORED_BEFORE DR_QEMU(8, 1)
/* TCG loses dirty bits where a TLB entry spans more than the page (QEMU-NOTES; mended in 9.0). */
#define TCG_DIRTY_FIXED DR_QEMU(9, 0)
#define TCG_ALIGNMENT (256 * 1024)
#define RIGHTS_MS 5000

static const char *const mode_names[] = {
  [DR_MEMORY_AUTO] = "auto",
  [DR_MEMORY_SHARED] = "shared",
  [DR_MEMORY_COPY] = "copy",
  [DR_MEMORY_POSTCOPY] = "postcopy",
};

const char *
dr_memory_mode_name(DrMemoryMode mode)
{
  return mode_names[mode];
}

gboolean
dr_memory_mode_parse(const char *name, DrMemoryMode *ret_mode, GError **error)
{
  for (guint i = 0; i < G_N_ELEMENTS(mode_names); i++) {
    if (g_str_equal(mode_names[i], name)) {
      *ret_mode = i;
      return TRUE;
    }
  }
  return dr_error_set(error, DR_ERROR_INVALID, "'%s' is no memory mode: auto, shared, copy or postcopy",
                      name);
}

void
dr_preflight_free(DrPreflight *preflight)
{
  if (!preflight)
    return;
  dr_findings_free(preflight->findings);
  g_free(preflight->binary);
  g_clear_pointer(&preflight->caps, dr_caps_unref);
  g_clear_pointer(&preflight->inventory, dr_inventory_free);
  g_free(preflight->machine);
  g_clear_pointer(&preflight->truth, dr_argv_free);
  g_clear_pointer(&preflight->ram, g_ptr_array_unref);
  g_clear_pointer(&preflight->needs, g_ptr_array_unref);
  g_clear_pointer(&preflight->to_make, g_ptr_array_unref);
  g_free(preflight->reason);
  dr_memory_give_back(preflight->promised);
  g_free(preflight);
}

static void G_GNUC_PRINTF(4, 5)
    block(DrPreflight *p, const char *code, const char *remedy, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list ap;

  va_start(ap, format);
  text = g_strdup_vprintf(format, ap);
  va_end(ap);
  dr_findings_add(p->findings, DR_FINDING_BLOCKER, code, remedy, "%s", text);
}

/* --- The binary --- */

static void
check_binary(DrPreflight *p, DrVm *vm, const char *qemu)
{
  const char *const *launcher = dr_argv_launcher(p->truth);
  g_autoptr(GError) error = NULL;

  p->keep_program = qemu == NULL;
  p->binary = dr_describe_program(qemu ? qemu : dr_argv_program(p->truth), dr_vm_record(vm));
  if (!qemu && launcher[0]) {
    block(p, "launcher", "name a QEMU binary or a wrapper script: --qemu PATH",
          "the VM was started through '%s', which cannot be asked what it can do", launcher[0]);
    return;
  }
  p->caps = dr_caps_get(p->binary, dr_vm_host(vm)->cache_dir, &error);
  if (!p->caps) {
    g_autofree char *code = g_strdup_printf("qemu-%s", dr_error_code_name(error));
    const char *remedy = dr_error_get_remedy(error);

    block(p, code, remedy ? remedy : "name another one: --qemu PATH", "%s", error->message);
  }
}

/* -run-with of which an older QEMU has an option for each key that it knows. */
static void
split_run_with(DrPreflight *p, DrOpt *opt)
{
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
  const char *user = opts ? dr_opts_get(opts, "user") : NULL;

  if (!user || dr_opts_n(opts) != 1)
    return; /* check_known_options() says that it is not known */
  dr_argv_insert_before(p->truth, opt, "runas", user);
  dr_argv_remove(p->truth, opt);
}

/* Options that the new QEMU has under another name; p->needs go by position. */
static void
rename_options(DrPreflight *p, DrQemuVersions bit)
{
  static const struct {
    const char *old, *option, *value; /* the old one's value, if it has one, goes behind */
  } renamed[] = { { "no-acpi", "machine", "acpi=off" },
                  { "no-hpet", "machine", "hpet=off" },
                  { "runas", "run-with", "user=" } };

  g_autoptr(GPtrArray) unknown = dr_argv_unknown_to(p->truth, bit);

  for (guint n = 0; n < unknown->len; n++) {
    DrOpt *opt = unknown->pdata[n];

    if (g_str_equal(opt->info->name, "run-with")) {
      split_run_with(p, opt);
      continue;
    }
    for (guint i = 0; i < G_N_ELEMENTS(renamed); i++) {
      g_autofree char *value = g_strconcat(renamed[i].value, opt->value, NULL);

      if (!g_str_equal(opt->info->name, renamed[i].old))
        continue;
      dr_argv_insert_before(p->truth, opt, renamed[i].option, value);
      dr_argv_remove(p->truth, opt);
      break;
    }
  }
}

static void
check_known_options(DrPreflight *p)
{
  int number = p->caps->version_number;
  DrQemuVersions bit = dr_option_version_bit(number / 1000000, number / 1000 % 1000);
  g_autoptr(GPtrArray) unknown = NULL;

  rename_options(p, bit);
  unknown = dr_argv_unknown_to(p->truth, bit);

  for (guint i = 0; i < unknown->len; i++) {
    const DrOpt *opt = unknown->pdata[i];

    block(p, "option", opt->info->successor ? opt->info->successor : "drop that option from the command line",
          "option '%s' is not known to %s %s", opt->spelling, p->binary, p->caps->version);
  }
}

static void
check_devices(DrPreflight *p)
{
  if (!p->caps->devices)
    return; /* it did not tell; at its start it will say what it lacks */
  for (DrOpt *opt = NULL; (opt = dr_argv_next(p->truth, "device", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *driver = opts ? dr_opts_get(opts, "driver") : NULL;

    /* Aliases (virtio-blk for virtio-blk-pci) are not among the types: QEMU itself will say if it does not know one. */
    if (driver && !g_hash_table_contains(p->caps->devices, driver) && !g_str_has_prefix(driver, "virtio-"))
      block(p, "device", "use a QEMU build that has it (is its module package installed?)",
            "device '%s' is not known to %s %s", driver, p->binary, p->caps->version);
  }
}

static void
check_known(DrPreflight *p)
{
  if (!p->caps)
    return;
  if (p->machine && !g_hash_table_contains(p->caps->machines, p->machine))
    block(p, "machine-type",
          "choose a QEMU that still has it, or restart the guest with a newer machine type",
          "machine type '%s' is not known to %s %s", p->machine, p->binary, p->caps->version);
  if (p->kvm && !p->caps->kvm)
    block(p, "kvm", "check /dev/kvm and the new QEMU's build",
          "the guest runs under KVM, which %s cannot use here", p->binary);
  check_known_options(p);
  check_devices(p);
}

/* --- The guest's state --- */

static gboolean
check_state(DrPreflight *p, DrQmp *source, GError **error)
{
  g_autoptr(JsonObject) status = dr_qmp_call_object(source, "query-status", NULL, error);
  g_autoptr(JsonObject) migration = NULL;
  const char *name, *moving;

  if (!status)
    return FALSE;
  migration = dr_qmp_call_object(source, "query-migrate", NULL, error);
  if (!migration)
    return FALSE;
  p->was_running = dr_json_bool(status, "running", FALSE);
  name = dr_json_str(status, "status", "?");
  if (!g_str_equal(name, "running") && !g_str_equal(name, "paused") && !g_str_equal(name, "prelaunch"))
    block(p, "state", "bring it to 'running' or 'paused' first", "the guest's state is '%s'", name);
  moving = dr_json_str(migration, "status", "none");
  if (g_strv_contains((const char *const[]){ "setup", "active", "pre-switchover", "device", "postcopy-active",
                                             "postcopy-paused", "postcopy-recover", "cancelling", NULL },
                      moving))
    block(p, "migration", "wait for it, or migrate_cancel it",
          "another migration of this QEMU is under way (%s)", moving);
  return TRUE;
}

/* --- Files --- */

static void
check_file(DrPreflight *p, DrVm *vm, const char *option, const char *path)
{
  g_autofree char *full = g_canonicalize_filename(path, dr_vm_record(vm)->cwd);

  if (p->to_make && g_ptr_array_find_with_equal_func(p->to_make, full, g_str_equal, NULL))
    return;
  if (access(full, R_OK) < 0)
    block(p, "file", "put the file back: the new QEMU opens it at its start", "-%s %s: %s", option, full,
          g_strerror(errno));
}

static void
check_files(DrPreflight *p, DrVm *vm)
{
  static const char *const whole[] = { "kernel", "initrd", "bios",  "dtb",    "hda", "hdb",
                                       "hdc",    "hdd",    "cdrom", "pflash", "fda", "fdb" };

  for (guint i = 0; i < G_N_ELEMENTS(whole); i++)
    for (DrOpt *opt = NULL; (opt = dr_argv_next(p->truth, whole[i], opt));)
      /* A bare firmware name is looked up in QEMU's own directories; a protocol prefix is no path. */
      if (opt->value && *opt->value && (strchr(opt->value, '/') || !g_str_equal(whole[i], "bios")) &&
          !strstr(opt->value, "://") && !strchr(opt->value, ':'))
        check_file(p, vm, whole[i], opt->value);
  for (DrOpt *opt = NULL; (opt = dr_argv_next(p->truth, "drive", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *file = opts ? dr_opts_get(opts, "file") : NULL;

    if (file && *file && !strchr(file, ':') && !g_str_has_prefix(file, "/dev/fd"))
      check_file(p, vm, "drive", file);
  }
}

/* --- Rights --- */

static gboolean
is_same(const struct stat *a, const struct stat *b)
{
  return (a->st_dev == b->st_dev && a->st_ino == b->st_ino) ||
         (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode) && a->st_rdev == b->st_rdev);
}

/* Whether the process has that file, a name in its own mount namespace, open for writing by whatever name. */
static gboolean
is_written(pid_t pid, const GPtrArray *open_fds, const char *file)
{
  g_autofree char *there = g_strdup_printf("/proc/%d/root%s", pid, file);
  struct stat wanted, st;

  if (stat(there, &wanted) < 0)
    return FALSE;
  for (guint i = 0; i < open_fds->len; i++) {
    const DrProcFd *fd = open_fds->pdata[i];
    g_autofree char *link = g_strdup_printf("/proc/%d/fd/%d", pid, fd->fd);
    g_autofree char *path = g_strdup_printf("/proc/%d/fdinfo/%d", pid, fd->fd);
    g_autofree char *info = NULL;
    const char *flags;

    if (stat(link, &st) < 0 || !is_same(&st, &wanted))
      continue;
    info = dr_file_read(path, 4096, NULL, NULL);
    flags = info ? strstr(info, "flags:") : NULL;
    if (flags && (g_ascii_strtoull(flags + strlen("flags:"), NULL, 8) & O_ACCMODE) == O_RDWR)
      return TRUE;
  }
  return FALSE;
}

/* "-w FILE" or "-r FILE" for each. */
static void
add_tests(GPtrArray *words, DrVm *vm, const GPtrArray *files)
{
  pid_t pid = dr_vm_record(vm)->id.pid;
  g_autoptr(GPtrArray) open_fds = dr_proc_fds(pid, NULL);

  for (guint i = 0; i < files->len; i++) {
    const char *how = open_fds && is_written(pid, open_fds, files->pdata[i]) ? "-w" : "-r";

    g_ptr_array_add(words, g_strdup(how));
    g_ptr_array_add(words, g_strdup(files->pdata[i]));
  }
}

/* The process's supplementary groups, "--groups=1,2". (transfer full) */
static char *
groups_of(pid_t pid)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/status", pid);
  g_autofree char *text = dr_file_read(path, 65536, NULL, NULL);
  const char *line = text ? strstr(text, "\nGroups:") : NULL;
  g_autofree char *groups =
      line ? g_strndup(line + strlen("\nGroups:"), strcspn(line + strlen("\nGroups:"), "\n")) : NULL;

  if (!groups || !*g_strstrip(groups))
    return g_strdup("--clear-groups");
  g_strdelimit(groups, " ", ',');
  return g_strconcat("--groups=", groups, NULL);
}

void
dr_preflight_ask_rights(DrPreflight *p, const char *const *launcher, uid_t uid, const GPtrArray *tests)
{
  static const char script[] = "while [ $# -gt 0 ]; do test \"$1\" \"$2\" || echo \"$2\"; shift 2; done";
  g_autoptr(GStrvBuilder) all = g_strv_builder_new();
  g_auto(GStrv) words = NULL;
  g_autoptr(GError) error = NULL;
  g_autofree char *refused = NULL;

  g_strv_builder_addv(all, (const char **)launcher);
  g_strv_builder_add_many(all, "sh", "-c", script, "sh", NULL);
  for (guint i = 0; i < tests->len; i++)
    g_strv_builder_add(all, tests->pdata[i]);
  words = g_strv_builder_end(all);
  refused = dr_tool_run((const char *const *)words, 65536, RIGHTS_MS, &error);
  if (!refused)
    block(p, "image-rights", "see whether the file systems of the images answer, and what setpriv(1) says",
          "it cannot be told whether user %u, as which the QEMU runs, may open its images: %s", (guint)uid,
          error->message);
  else if (*g_strstrip(refused))
    block(p, "image-rights",
          "give it to that user (chown); on shared storage libvirt must not change owners "
          "(dynamic_ownership of qemu.conf)",
          "user %u, as which the QEMU runs, may not open its image: %s", (guint)uid, refused);
}

/* A QEMU opens its images anew when it is told to run. One that has another user than ours may not get them again, not even to take the guest
 * back: somebody has given one away meanwhile (libvirt on the host that a domain has left), or it had more rights when it began (-runas). Asked
 * as its user; of libvirt's also in its mount namespace, whose /dev has nodes of its own. */
void
dr_preflight_image_rights(DrPreflight *p, DrVm *vm)
{
  gboolean foreign = dr_vm_record(vm)->foreign;
  pid_t pid = dr_vm_record(vm)->id.pid;
  g_autoptr(GPtrArray) files = dr_inventory_files(p->inventory, dr_vm_record(vm)->cwd);
  g_autoptr(GPtrArray) tests = g_ptr_array_new_with_free_func(g_free);
  g_autofree char *proc = g_strdup_printf("/proc/%d", pid), *reuid = NULL, *regid = NULL, *groups = NULL,
                  *mount = NULL;
  const char *const *launcher;
  struct stat st;

  if (geteuid() != 0 || files->len == 0 || stat(proc, &st) < 0 || st.st_uid == 0)
    return;
  mount = g_strdup_printf("--mount=/proc/%d/ns/mnt", pid);
  reuid = g_strdup_printf("--reuid=%u", (guint)st.st_uid);
  regid = g_strdup_printf("--regid=%u", (guint)st.st_gid);
  groups = groups_of(pid);
  add_tests(tests, vm, files);
  launcher = (const char *const[]){ "nsenter", mount, "--", "setpriv", reuid, regid, groups, "--", NULL };
  dr_preflight_ask_rights(p, foreign ? launcher : launcher + 3, st.st_uid, tests);
}

/* --- RAM --- */

static gboolean
block_is_shareable(const DrRamBlock *ram, int source_version, char **ret_why)
{
  if (ram->kind == DR_RAM_ANONYMOUS) {
    *ret_why = g_strdup_printf("RAM block '%s' is private memory", ram->id);
    return FALSE;
  }
  if (ram->kind == DR_RAM_SHARED_MEMFD && source_version >= MEMFD_IGNORED_BEFORE) {
    *ret_why = g_strdup_printf(
        "RAM block '%s' is a memory-backend-memfd, which QEMU 8.1 and newer always send", ram->id);
    return FALSE;
  }
  if (ram->fd >= 0)
    return TRUE;
  if (ram->path)
    *ret_why = g_strdup_printf("RAM block '%s' is on file '%s', and the VM's QEMU has another file open",
                               ram->id, ram->path);
  else
    *ret_why = g_strdup_printf("the pages of RAM block '%s' cannot be found for sure", ram->id);
  return FALSE;
}

static guint64
ram_size(const DrPreflight *p)
{
  guint64 size = 0;

  for (guint i = 0; i < p->ram->len; i++)
    size += ((DrRamBlock *)p->ram->pdata[i])->size;
  return size;
}

static void
warn_tcg(DrPreflight *p, int source_version)
{
  guint64 size = dr_inventory_memory(p->inventory);

  if (p->mode == DR_MEMORY_SHARED || p->kvm || source_version >= TCG_DIRTY_FIXED || size % TCG_ALIGNMENT != 0)
    return;
  dr_findings_add(
      p->findings, DR_FINDING_WARNING, "tcg-aligned-ram",
      "give the guest 8 KiB more (-m 262152k), run it under KVM, or with RAM that is shared from its start",
      "a TCG guest with RAM of a multiple of 256 KiB under a QEMU before 9.0: QEMU can lose dirty pages "
      "while "
      "RAM is copied, and the guest would run on with wrong memory");
}

static gboolean
take_memory(DrPreflight *p, guint64 *ret_free)
{
  guint64 size = ram_size(p);

  if (!dr_memory_promise(size, ret_free))
    return FALSE;
  p->promised = size;
  return TRUE;
}

void
dr_preflight_promise(DrPreflight *p, const char *where)
{
  guint64 available;

  if (!take_memory(p, &available))
    dr_findings_add(p->findings, DR_FINDING_BLOCKER, "memory", "free some memory there",
                    "the guest needs %" G_GUINT64_FORMAT " MiB, and %" G_GUINT64_FORMAT " MiB are free on %s",
                    (ram_size(p) + DR_MEMORY_SPARE) >> 20, available >> 20, where);
}

/* Decides between copy and post-copy for RAM that has to move. */
static void
choose_move(DrPreflight *p, const char *why)
{
  guint64 size = ram_size(p);
  guint64 available;

  if (take_memory(p, &available)) {
    p->mode = DR_MEMORY_COPY;
    p->reason =
        g_strdup_printf("%s; %" G_GUINT64_FORMAT " MiB are free for a copy of %" G_GUINT64_FORMAT " MiB", why,
                        available >> 20, size >> 20);
  } else {
    p->mode = DR_MEMORY_POSTCOPY;
    p->reason = g_strdup_printf("%s; only %" G_GUINT64_FORMAT " MiB are free for a copy of %" G_GUINT64_FORMAT
                                " MiB, so its pages move one by one",
                                why, available >> 20, size >> 20);
  }
}

/* The new QEMU has the rights of the old one, which need not be ours. */
static gboolean
may_use_userfaultfd(DrVm *vm)
{
  g_autofree char *path = g_strdup_printf("/proc/%d", dr_vm_record(vm)->id.pid);
  struct stat st;

  return stat(path, &st) == 0 && dr_memory_has_userfaultfd(st.st_uid);
}

static void
check_mode(DrPreflight *p, DrVm *vm)
{
  guint64 available;

  if (p->mode == DR_MEMORY_COPY && !p->promised && !take_memory(p, &available))
    block(p, "memory", "use --memory postcopy, which needs no second chunk, or wait for the copies under way",
          "a copy needs %" G_GUINT64_FORMAT " MiB, and %" G_GUINT64_FORMAT " MiB are free",
          (ram_size(p) + DR_MEMORY_SPARE) >> 20, available >> 20);
  if (p->mode == DR_MEMORY_POSTCOPY && !may_use_userfaultfd(vm))
    block(p, "userfaultfd",
          "set vm.unprivileged_userfaultfd=1 (sysctl), or run droverd as root where the QEMU is root's, too",
          "post-copy needs userfaultfd, which the new QEMU may not use");
}

static void
decide_memory(DrPreflight *p, DrVm *vm, DrMemoryMode wanted, int source_version)
{
  g_autofree char *why = NULL;
  gboolean shareable = p->ram->len > 0;

  for (guint i = 0; shareable && i < p->ram->len; i++)
    shareable = block_is_shareable(p->ram->pdata[i], source_version, &why);
  if (wanted == DR_MEMORY_SHARED && !shareable) {
    block(p, "shared-ram", "use --memory auto: the VM's RAM is then shared from its next upgrade on",
          "RAM cannot be handed over: %s", why ? why : "no RAM block was found");
    p->mode = DR_MEMORY_SHARED;
  } else if (wanted != DR_MEMORY_AUTO) {
    p->mode = wanted;
    p->reason = g_strdup("as asked for");
  } else if (shareable) {
    p->mode = DR_MEMORY_SHARED;
    p->reason = g_strdup("RAM is in a shared file: nothing needs to be copied");
  } else {
    choose_move(p, why ? why : "RAM is private memory");
  }
  check_mode(p, vm);
  warn_tcg(p, source_version);
  if (p->reason)
    dr_findings_add(p->findings, DR_FINDING_NOTE, "memory-mode", NULL, "RAM: %s (%s)",
                    dr_memory_mode_name(p->mode), p->reason);
}

/* --- Taps --- */

static void
check_taps(DrPreflight *p, DrVm *vm)
{
  g_autoptr(GPtrArray) open = dr_proc_fds(dr_vm_record(vm)->id.pid, NULL);
  g_autoptr(GHashTable) queues = NULL;

  if (open) /* else it is another user's process, which is said by itself */
    queues = dr_tap_queues(p->needs, dr_inventory_taps(p->inventory), open, p->findings);
}

/* --- All of it --- */

/* Rewrites for show, to have the rewriter's findings in the same list. */
static gboolean
try_rewrite(DrPreflight *p, DrVm *vm, GError **error)
{
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autoptr(DrRewrite) rewrite = NULL;
  DrRewritePlan plan = { .incoming = TRUE,
                         .foreign = dr_vm_record(vm)->foreign,
                         .suffix = ".drover-99",
                         .qmp_path = "q",
                         .console_path = "c",
                         .needs = p->needs };

  for (guint i = 0; i < p->needs->len; i++) {
    DrNeed *need = p->needs->pdata[i];
    int number = 9;

    if (need->fd < 0)
      g_array_append_val(need->numbers, number);
  }
  rewrite = dr_rewrite(p->truth, &plan, findings, error);
  for (guint i = 0; i < p->needs->len; i++)
    g_array_set_size(((DrNeed *)p->needs->pdata[i])->numbers, 0);
  if (!rewrite)
    return FALSE;
  dr_findings_merge(p->findings, findings);
  return TRUE;
}

DrPreflight *
dr_preflight_departure(DrVm *vm, DrQmp *source, GError **error)
{
  g_autoptr(DrPreflight) p = g_new0(DrPreflight, 1);

  p->findings = dr_findings_new();
  if (!check_state(p, source, error) || !dr_preflight_truth(p, vm, source, error))
    return NULL;
  p->needs = dr_rewrite_needs(p->truth);
  p->ram = dr_memory_blocks(source, &dr_vm_record(vm)->id, error);
  if (!p->ram)
    return NULL;
  for (guint i = p->ram->len; i-- > 0;)
    if (!((DrRamBlock *)p->ram->pdata[i])->in_use)
      g_ptr_array_remove_index(p->ram, i); /* an -object that the guest does not have */
  return g_steal_pointer(&p);
}

void
dr_preflight_arrival(DrPreflight *p, DrVm *vm, const char *qemu)
{
  check_binary(p, vm, qemu);
  check_known(p);
  check_files(p, vm);
}

DrPreflight *
dr_preflight(DrVm *vm, DrQmp *source, const char *qemu, DrMemoryMode wanted, GError **error)
{
  g_autoptr(DrPreflight) p = dr_preflight_departure(vm, source, error);

  if (!p)
    return NULL;
  dr_preflight_arrival(p, vm, qemu);
  dr_preflight_unversioned(p, vm, qemu, dr_qmp_version_number(source));
  if (!dr_preflight_cpu(p, source, error))
    return NULL;
  dr_preflight_image_rights(p, vm);
  if (!dr_vm_record(vm)->foreign)
    dr_preflight_process(p, vm); /* a foreign one's place and rights are given to the new QEMU */
  check_taps(p, vm);
  decide_memory(p, vm, wanted, dr_qmp_version_number(source));
  dr_preflight_ram(p, vm);
  if (!try_rewrite(p, vm, error))
    return NULL;
  return g_steal_pointer(&p);
}

DrPreflight *
dr_preflight_words(DrVm *vm, const char *qemu, GError **error)
{
  g_autoptr(DrPreflight) p = g_new0(DrPreflight, 1);
  g_autoptr(DrOpts) machine = NULL;

  p->findings = dr_findings_new();
  p->truth = dr_argv_parse((const char *const *)dr_vm_record(vm)->argv_given, error);
  if (!p->truth)
    return NULL;
  machine = dr_argv_effective(p->truth, "machine", NULL);
  p->machine = g_strdup(machine ? dr_opts_get(machine, "type") : NULL);
  p->needs = dr_rewrite_needs(p->truth);
  dr_argv_blockers(p->truth, p->findings);
  dr_preflight_arrival(p, vm, qemu);
  return try_rewrite(p, vm, error) ? g_steal_pointer(&p) : NULL;
}

JsonObject *
dr_preflight_json(const DrPreflight *p, DrVm *vm, DrQmp *source)
{
  JsonObject *object = json_object_new();

  json_object_set_string_member(object, "vm", dr_vm_name(vm));
  json_object_set_boolean_member(object, "ok", !dr_findings_block(p->findings));
  json_object_set_array_member(object, "findings", dr_findings_json(p->findings));
  json_object_set_string_member(object, "memory_mode", dr_memory_mode_name(p->mode));
  json_object_set_string_member(object, "memory_reason", p->reason);
  json_object_set_string_member(object, "qemu_before", dr_qmp_version(source));
  json_object_set_string_member(object, "qemu_after", p->caps ? p->caps->version : NULL);
  return object;
}
