/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See check.h. Each check adds what it finds; none ends the others. */
#include "libvirt/check.h"
#include "base/error.h"
#include "job/preflight.h"
#include "libvirt/versions.h"
#include "libvirt/xml.h"
#include "qemu/tool.h"
#include "qemu/world.h"

#include <libvirt/virterror.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define VERSION_MS 10000
#define LIMIT_SPARE_KIB (512 * 1024) /* of two QEMUs without the guest's memory */
#define REMEDY_RESTART "shut the domain down and start it under the new QEMU"
#define REMEDY_DETACH "detach it (virsh detach-device), upgrade, and attach it again"

typedef struct {
  virConnectPtr conn;
  DrLibvirtDomain *domain;
  const DrLibvirtCheck *how;
  DrFindings *findings;
  char *emulator; /* the new one */
  DrMemoryMode wanted;
  char *qemu_before, *qemu_after;
  const char *memory_mode; /* nullable */
} Check;

/* --- What is in the way --- */

static const struct {
  const char *xpath, *code, *what, *remedy;
} devices[] = {
  { "hostdev", "vfio", "a device of the host's", REMEDY_DETACH },
  { "interface[@type='hostdev' or @type='vdpa']", "vfio", "a network device of the host's", REMEDY_DETACH },
  { "interface[@type='vhostuser']", "vhost-user",
    "a vhost-user network interface, whose other half serves one QEMU at a time", REMEDY_DETACH },
  { "disk[@type='vhostuser' or @type='vhostvdpa']", "vhost-user",
    "a vhost-user disk, whose other half serves one QEMU at a time", REMEDY_DETACH },
  { "interface[backend/@type='passt']", "passt",
    "a passt interface, whose other half serves one QEMU at a time", REMEDY_DETACH },
  { "filesystem[driver/@type='virtiofs']", "virtiofs",
    "a virtiofs share, whose daemon serves one QEMU at a time", REMEDY_RESTART },
  { "filesystem[not(driver/@type='virtiofs')]", "virtio-9p", "a shared folder of the host's",
    REMEDY_RESTART },
  { "tpm", "tpm", "a TPM, which serves one QEMU at a time", REMEDY_RESTART },
  { "graphics[@type='spice']", "spice", "a SPICE display, whose port and clients belong to one QEMU",
    "use VNC (virsh edit), then " REMEDY_RESTART },
  { "graphics[@type='vnc'][@websocket]", "vnc-websocket", "a VNC websocket, which a second QEMU cannot have",
    "run a websocket proxy beside the domain" },
  { "graphics[@type='dbus' or @type='rdp' or @type='egl-headless' or @type='sdl']", "display",
    "a display that belongs to one QEMU", REMEDY_RESTART },
  { "shmem[server]", "ivshmem", "shared memory with a server, which knows one QEMU", REMEDY_DETACH },
  { "vsock", "vhost-vsock", "a vsock, whose CID the host gives to one QEMU at a time", REMEDY_DETACH },
  { "redirdev", "usb-redir", "a redirected USB device", REMEDY_DETACH },
  { "smartcard[not(@mode='passthrough')]", "smartcard", "a smartcard of the host's", REMEDY_DETACH },
  { "input[@type='passthrough' or @type='evdev']", "evdev", "an input device of the host's", REMEDY_DETACH },
  { "memory[@model='nvdimm' or @model='virtio-pmem' or @model='sgx-epc']", "nvdimm",
    "memory that keeps its content in a file or in the processor", REMEDY_RESTART },
  { "rng/backend[@model='egd' and @type!='tcp']", "rng", "a random number source that serves one QEMU",
    REMEDY_DETACH },
};

static void
check_devices(Check *c)
{
  for (guint i = 0; i < G_N_ELEMENTS(devices); i++) {
    g_autofree char *xpath = g_strdup_printf("/domstatus/domain/devices/%s", devices[i].xpath);
    g_autoptr(GPtrArray) found = dr_xml_nodes(c->domain->status, NULL, xpath);

    for (guint n = 0; n < found->len; n++) {
      g_autofree char *alias = dr_xml_text(c->domain->status, found->pdata[n], "alias/@name");

      dr_findings_add(c->findings, DR_FINDING_BLOCKER, devices[i].code, devices[i].remedy,
                      "the domain has %s%s%s%s", devices[i].what, alias ? " ('" : "", alias ? alias : "",
                      alias ? "')" : "");
    }
  }
}

static gboolean
has(Check *c, const char *xpath)
{
  g_autoptr(GPtrArray) found = dr_xml_nodes(c->domain->status, NULL, xpath);

  return found->len > 0;
}

static void
check_rest(Check *c)
{
  if (has(c, "/domstatus/domain/launchSecurity"))
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "confidential", REMEDY_RESTART,
                    "the guest's memory is encrypted by the processor and cannot move");
  if (has(c, "/domstatus/lockstate"))
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "lock-manager", REMEDY_RESTART,
                    "libvirt's lock manager (lock_manager of qemu.conf) has locks for this QEMU, which the "
                    "next one would not have");
  if (has(c, "/domstatus/domain/cputune/cachetune") || has(c, "/domstatus/domain/cputune/memorytune"))
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "resctrl", REMEDY_RESTART,
                    "the domain has shares of the processor's cache or memory bandwidth, which the new QEMU "
                    "would not get");
  if (has(c, "/domstatus/domain/devices/graphics[@type='vnc'][@passwdValidTo]"))
    dr_findings_add(
        c->findings, DR_FINDING_BLOCKER, "vnc-password", "set one that does not expire: virsh update-device",
        "the password of the domain's VNC server expires at a time that the new QEMU would not know");
  if (has(c, "/domstatus/domain/*[local-name()='commandline']"))
    dr_findings_add(c->findings, DR_FINDING_WARNING, "commandline", NULL,
                    "the domain has <qemu:commandline>: its options go to the new QEMU as they are, "
                    "variables of <qemu:env> do not");
}

/* --- State and jobs --- */

static void
check_block_jobs(Check *c)
{
  g_autoptr(GPtrArray) disks =
      dr_xml_nodes(c->domain->status, NULL, "/domstatus/domain/devices/disk/target[@dev]");

  for (guint i = 0; i < disks->len; i++) {
    g_autofree char *target = dr_xml_text(c->domain->status, disks->pdata[i], "@dev");
    virDomainBlockJobInfo info;

    if (target && virDomainGetBlockJobInfo(c->domain->handle, target, &info, 0) == 1)
      dr_findings_add(c->findings, DR_FINDING_BLOCKER, "block-job",
                      "wait for it, or end it: virsh blockjob DOMAIN DISK --abort (or --pivot)",
                      "disk '%s' has a block job under way", target);
  }
}

/* As virsh says it. */
static const char *
state_name(int state)
{
  static const char *const names[] = {
    [VIR_DOMAIN_NOSTATE] = "no state",     [VIR_DOMAIN_RUNNING] = "running",
    [VIR_DOMAIN_BLOCKED] = "idle",         [VIR_DOMAIN_PAUSED] = "paused",
    [VIR_DOMAIN_SHUTDOWN] = "in shutdown", [VIR_DOMAIN_SHUTOFF] = "shut off",
    [VIR_DOMAIN_CRASHED] = "crashed",      [VIR_DOMAIN_PMSUSPENDED] = "pmsuspended"
  };

  return state >= 0 && state < (int)G_N_ELEMENTS(names) ? names[state] : "unknown";
}

static void
check_state(Check *c)
{
  virDomainJobInfo job = { 0 };
  int state = -1;

  if (virDomainGetState(c->domain->handle, &state, NULL, 0) < 0 || state != VIR_DOMAIN_RUNNING)
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "state",
                    state == VIR_DOMAIN_PAUSED
                        ? "virsh resume DOMAIN; one that is to stay paused has nothing to lose by a restart"
                        : "wait until it runs: virsh domstate DOMAIN",
                    "the domain is not running (%s)", state_name(state));
  if (virDomainGetJobInfo(c->domain->handle, &job) == 0 && job.type != VIR_DOMAIN_JOB_NONE)
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "job", "wait for it: virsh domjobinfo DOMAIN",
                    "libvirt has a job on the domain under way");
  check_block_jobs(c);
}

/* --- libvirt and the emulator --- */

static void
check_libvirt(Check *c)
{
  unsigned long version = 0;

  virConnectGetLibVersion(c->conn, &version);
  if (dr_libvirt_is_tested(version))
    return;
  dr_findings_add(c->findings, c->how->untested ? DR_FINDING_WARNING : DR_FINDING_BLOCKER, "libvirt-version",
                  "--untested-libvirt goes on: at worst libvirt's files do not fit, it then loses track of a "
                  "domain that runs on, and "
                  "you start the domain anew; try it on one that you can spare",
                  "libvirt %lu.%lu.%lu is not among those that drover was tried with (" DR_LIBVIRT_TESTED ")",
                  version / 1000000, version / 1000 % 1000, version % 1000);
}

/* Makes libvirt ask the emulator what it can do, and note it: afterwards its daemon starts without asking again. */
static void
check_emulator(Check *c)
{
  const DrLibvirtDomain *domain = c->domain;
  g_autofree char *file = dr_libvirt_caps_file(c->how->places, c->emulator);
  char *caps = virConnectGetDomainCapabilities(c->conn, c->emulator, domain->arch, domain->machine,
                                               domain->virt_type, 0);
  virErrorPtr problem = virGetLastError();

  if (!caps)
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "emulator",
                    "see virsh domcapabilities --emulatorbin; a QEMU with modules of its own needs "
                    "QEMU_MODULE_DIR (a wrapper script)",
                    "libvirt cannot use '%s' for this domain: %s", c->emulator,
                    problem && problem->message ? problem->message : "it does not say why");
  else if (!g_file_test(file, G_FILE_TEST_EXISTS))
    dr_findings_add(
        c->findings, DR_FINDING_BLOCKER, "emulator-cache", "tell the drover project which libvirt this is",
        "libvirt did not note what '%s' can do where libvirt 9.0 to 12.8 do ('%s')", c->emulator, file);
  free(caps);
}

/* --- The process --- */

/* The program that runs, which the file may not be any more. It is what that process has chosen to be: it gets no rights but the process's own. */
static char *
version_of(pid_t pid)
{
  g_autofree char *program = g_strdup_printf("/proc/%d/exe", pid);
  g_autofree char *proc = g_strdup_printf("/proc/%d", pid);
  g_autofree char *uid = NULL, *gid = NULL, *text = NULL;
  struct stat st;
  const char *at;

  if (stat(proc, &st) < 0)
    return NULL;
  uid = g_strdup_printf("--reuid=%u", (guint)st.st_uid);
  gid = g_strdup_printf("--regid=%u", (guint)st.st_gid);
  const char *const plain[] = { program, "--version", NULL };
  const char *const dropped[] = {
    "setpriv", uid,         gid, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs",
    program,   "--version", NULL
  };
  text = dr_tool_run(geteuid() == 0 ? dropped : plain, 4096, VERSION_MS, NULL);
  at = text ? strstr(text, "version ") : NULL;
  return at ? g_strndup(at + strlen("version "), strcspn(at + strlen("version "), " \n(")) : NULL;
}

/* Both QEMUs are in the domain's control group while one copies into the other. */
static void
check_limit(Check *c)
{
  g_autofree char *limit = dr_xml_text(c->domain->status, NULL, "/domstatus/domain/memtune/hard_limit");
  g_autofree char *memory = dr_xml_text(c->domain->status, NULL, "/domstatus/domain/memory");
  guint64 kib = limit ? g_ascii_strtoull(limit, NULL, 10) : 0;
  guint64 needed =
      memory ? g_ascii_strtoull(memory, NULL, 10) * 2 + LIMIT_SPARE_KIB : 0; /* libvirt's file has KiB */

  if (kib && kib < needed)
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "hard-limit",
                    "raise it for the upgrade: virsh memtune DOMAIN --hard-limit KIB --live",
                    "the domain's memory limit (<hard_limit>, %" G_GUINT64_FORMAT
                    " KiB) has no room for a copy of its memory (%" G_GUINT64_FORMAT " KiB)",
                    kib, needed);
}

/* Whether the guest's memory is in a file that the next QEMU can have. *ret_memfd: in a memfd that is shared. */
static gboolean
is_shared(Check *c, const DrArgv *argv, gboolean *ret_memfd)
{
  gboolean shared = FALSE, any = FALSE;

  *ret_memfd = FALSE;
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "object", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *type = opts ? dr_opts_get(opts, "qom-type") : NULL;
    gboolean share = FALSE;

    if (!type || !g_str_has_prefix(type, "memory-backend-"))
      continue;
    share = dr_opts_get_bool(opts, "share", FALSE, &share, NULL) && share;
    shared = share && (shared || !any);
    *ret_memfd |= g_str_equal(type, "memory-backend-memfd");
    any = TRUE;
  }
  *ret_memfd &= shared; /* one that is not shared is private memory as any */
  return shared && !(*ret_memfd && dr_qemu_sends_memfd(c->qemu_before));
}

static void
note_copy(Check *c, gboolean memfd)
{
  if (c->wanted == DR_MEMORY_SHARED)
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "shared-ram",
                    "use --memory auto: it copies nothing from the next upgrade on",
                    "the guest's memory cannot be handed over: it has to be copied once");
  dr_findings_add(c->findings, DR_FINDING_NOTE, "memory-mode",
                  "so that a domain never copies: <memoryBacking><source type='file'/><access "
                  "mode='shared'/></memoryBacking> (virsh edit, from its next "
                  "start on), with memory_backing_dir of qemu.conf on a tmpfs such as /dev/shm",
                  "copies the guest's memory once first (%s); the next upgrade copies nothing",
                  memfd ? "it is a memfd, which QEMU 8.1 and newer always send" : "it is private");
}

static void
note_memory(Check *c, const DrArgv *argv)
{
  gboolean memfd, shared = is_shared(c, argv, &memfd);
  gboolean asked = c->wanted == DR_MEMORY_COPY || c->wanted == DR_MEMORY_POSTCOPY;

  c->memory_mode = c->wanted == DR_MEMORY_POSTCOPY ? "postcopy" : asked || !shared ? "copy" : "shared";
  if (g_str_equal(c->memory_mode, "copy"))
    check_limit(c);
  if (asked)
    dr_findings_add(c->findings, DR_FINDING_NOTE, "memory-mode", NULL,
                    "copies the guest's memory%s, as is asked for%s",
                    c->wanted == DR_MEMORY_POSTCOPY ? " by post-copy" : "",
                    shared ? ": it could be handed over (--memory auto)" : "");
  else if (shared)
    dr_findings_add(c->findings, DR_FINDING_NOTE, "memory-mode", NULL,
                    "copies nothing: the guest's memory is in a shared file, which is handed over");
  else
    note_copy(c, memfd);
}

/* Devices that libvirt has and the command line has not, and the other way round. */
static void
note_plugged(Check *c, const DrArgv *argv)
{
  g_autoptr(GPtrArray) aliases = dr_xml_nodes(c->domain->status, NULL, "/domstatus/devices/device[@alias]");
  guint plugged = 0;

  for (guint i = 0; i < aliases->len; i++) {
    g_autofree char *alias = dr_xml_text(c->domain->status, aliases->pdata[i], "@alias");

    plugged += alias && !dr_argv_find_id(argv, "device", alias);
  }
  if (plugged)
    dr_findings_add(c->findings, DR_FINDING_NOTE, "plugged", NULL,
                    "%u device%s came after the start: the new QEMU's command line is rebuilt from the "
                    "running QEMU, where that is exact; else the upgrade "
                    "is refused before anything moves",
                    plugged, plugged == 1 ? "" : "s");
}

static gboolean
names_node(const DrArgv *argv, const char *node)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "blockdev", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);

    if (opts && g_strcmp0(dr_opts_get(opts, "node-name"), node) == 0)
      return TRUE;
  }
  return FALSE;
}

/* After a snapshot, a block commit or a block copy. */
static void
note_graph(Check *c, const DrArgv *argv)
{
  g_autoptr(GPtrArray) disks =
      dr_xml_nodes(c->domain->status, NULL, "/domstatus/domain/devices/disk[source/privateData/nodenames]");

  for (guint i = 0; i < disks->len; i++) {
    g_autofree char *target = dr_xml_text(c->domain->status, disks->pdata[i], "target/@dev");
    g_autofree char *node = dr_xml_text(c->domain->status, disks->pdata[i],
                                        "source/privateData/nodenames/nodename[@type='format']/@name");

    if (node && !names_node(argv, node))
      dr_findings_add(c->findings, DR_FINDING_NOTE, "disk-changed", NULL,
                      "disk '%s' has another image than the command line says (a snapshot, a commit, a copy "
                      "or a plug-in): it is rebuilt from the running QEMU",
                      target ? target : "?");
  }
}

static void
check_world(Check *c)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(DrWorld) world = dr_world_read(&c->domain->process, &error);

  if (!world)
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "process",
                    geteuid() == 0 ? "run droverd as root, in the host's own namespaces"
                                   : "run droverd where the domain was started: in the same login, or as a "
                                     "service of the same user's systemd",
                    "%s", error->message);
  else if (dr_world_label(world))
    dr_findings_add(
        c->findings, DR_FINDING_WARNING, "security-label", "try it first on a domain that you can spare",
        "the QEMU is confined (%s): the new one gets the same label, which drover's tests cannot try",
        dr_world_label(world));
}

/* A VNC password that is in libvirt's file gets to the new QEMU (patch.c); one of qemu.conf's for all domains is not there. */
static void
take_findings(Check *c, const DrFindings *findings)
{
  gboolean is_set_again = has(c, "/domstatus/domain/devices/graphics[@type='vnc'][@passwd]");

  for (guint i = 0; i < dr_findings_count(findings); i++) {
    const DrFinding *finding = dr_findings_get(findings, i);

    if (!is_set_again || !g_str_equal(finding->code, "vnc-password"))
      dr_findings_add(c->findings, finding->severity, finding->code, finding->remedy, "%s", finding->text);
  }
}

/* The checks of any upgrade that need no monitor. */
static void
check_words(Check *c)
{
  DrHost host = { .cache_dir = (char *)c->how->cache_dir };
  DrVm *vm = dr_vm_new(&host, "domain");
  DrVmRecord *record = dr_vm_record(vm);
  g_autoptr(GError) error = NULL;
  g_autoptr(DrPreflight) p = NULL;

  record->id = c->domain->process;
  record->argv_given = dr_proc_cmdline(record->id.pid, &error);
  record->env = record->argv_given ? dr_proc_environ(record->id.pid, &error) : NULL;
  record->cwd = record->env ? dr_proc_cwd(record->id.pid, &error) : NULL;
  p = record->cwd ? dr_preflight_words(vm, c->emulator, &error) : NULL;
  if (p) {
    g_autoptr(DrArgv) argv = dr_argv_parse((const char *const *)record->argv_given, NULL);

    take_findings(c, p->findings);
    c->qemu_after = g_strdup(p->caps ? p->caps->version : NULL);
    note_memory(c, argv);
    note_plugged(c, argv);
    note_graph(c, argv);
  } else {
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "process",
                    "run droverd as the user of the domains' QEMUs, or as root", "%s", error->message);
  }
  dr_vm_unref(vm);
}

static JsonObject *
report(Check *c)
{
  JsonObject *object = json_object_new();

  json_object_set_string_member(object, "name", c->domain->name);
  json_object_set_string_member(object, "uuid", c->domain->uuid);
  json_object_set_int_member(object, "pid", c->domain->process.pid);
  json_object_set_boolean_member(object, "ok", !dr_findings_block(c->findings));
  json_object_set_array_member(object, "findings", dr_findings_json(c->findings));
  json_object_set_string_member(object, "emulator_before", c->domain->emulator);
  json_object_set_string_member(object, "emulator", c->emulator);
  json_object_set_string_member(object, "qemu_before", c->qemu_before);
  json_object_set_string_member(object, "qemu_after", c->qemu_after);
  json_object_set_string_member(object, "memory_mode", c->memory_mode);
  return object;
}

JsonObject *
dr_libvirt_check(virConnectPtr conn, DrLibvirtDomain *domain, const DrLibvirtCheck *how)
{
  Check c = { .conn = conn, .domain = domain, .how = how, .findings = dr_findings_new() };
  JsonObject *object;

  dr_memory_mode_parse(how->memory, &c.wanted, NULL); /* droverd has looked at it; else "auto" */
  c.emulator = g_strdup(how->emulator ? how->emulator : domain->emulator);
  c.qemu_before = version_of(domain->process.pid);
  check_libvirt(&c);
  check_state(&c);
  check_devices(&c);
  check_rest(&c);
  check_emulator(&c);
  check_world(&c);
  check_words(&c);
  object = report(&c);
  dr_findings_free(c.findings);
  g_free(c.emulator);
  g_free(c.qemu_before);
  g_free(c.qemu_after);
  return object;
}
