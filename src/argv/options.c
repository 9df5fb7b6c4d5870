/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The table of QEMU's options, and looking one up in it. */
#include "argv/options.h"

#include <stdlib.h>
#include <string.h>

/* Short names, so that a row of the table reads as one. */
#define NONE DR_VALUE_NONE
#define OPAQUE DR_VALUE_OPAQUE
#define PATH DR_VALUE_PATH
#define KEYVAL DR_VALUE_KEYVAL
#define KEYVAL_JSON DR_VALUE_KEYVAL_JSON
#define CHARDEV DR_VALUE_CHARDEV
#define CPU DR_VALUE_CPU
#define GLOBAL DR_VALUE_GLOBAL

#define ALL DR_QEMU_ALL
#define GONE DR_QEMU_NONE
#define ONLY_5 DR_QEMU_5_2
#define ONLY_7 DR_QEMU_7_2
#define UNTIL_7 (DR_QEMU_5_2 | DR_QEMU_7_2)
#define SINCE_7 (DR_QEMU_7_2 | DR_QEMU_10_0 | DR_QEMU_11_1)
#define SINCE_10 (DR_QEMU_10_0 | DR_QEMU_11_1)

#define EACH DR_REPEAT_EACH
#define LAST DR_REPEAT_LAST
#define MERGE DR_REPEAT_MERGE

#define HIDDEN DR_GUEST_HIDDEN
#define PARTLY DR_GUEST_PARTLY
#define SEEN DR_GUEST_SEEN

/* Ordered as strcmp() orders: dr_option_lookup() searches by halves.
 *
 * Implied keys are what QEMU really fills in, which its lists of options do not always tell: -drive and -rtc
 * take none (`-drive x` is the flag x=on), -acpitable takes data=. Options of other targets (-prom-env,
 * -semihosting, -g, -old-param) are left out: the x86 binaries refuse them. */
/* clang-format off */
static const DrOptInfo table[] = {
  /* name, alias, value, implied key, versions, repeated, guest, why, successor */
  { "D", NULL, PATH, NULL, ALL, LAST, HIDDEN,
    "QEMU's own log file", NULL },
  { "L", NULL, PATH, NULL, ALL, EACH, HIDDEN,
    "where firmware files are looked for; which firmware it is says -bios or the machine type", NULL },
  { "S", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "when the virtual CPUs start is the manager's business", NULL },
  { "accel", NULL, KEYVAL, "accel", ALL, EACH, PARTLY,
    "accelerator and kernel-irqchip decide on devices and CPU features; the rest is tuning", NULL },
  { "acpitable", NULL, KEYVAL, "data", ALL, EACH, SEEN,
    "the guest's firmware hands the table on", NULL },
  { "action", NULL, KEYVAL, NULL, SINCE_7, MERGE, HIDDEN,
    "what QEMU does after an event, not what the guest is shown",
    "-no-reboot, -no-shutdown or -watchdog-action" },
  { "add-fd", NULL, KEYVAL, NULL, ALL, EACH, HIDDEN,
    "file descriptors of the process", NULL },
  { "alt-grab", NULL, NONE, NULL, ONLY_5, LAST, HIDDEN,
    "keys of the host's window", "-display sdl,grab-mod=lshift-lctrl-lalt" },
  { "append", NULL, OPAQUE, NULL, ALL, LAST, SEEN,
    "the kernel's command line", NULL },
  { "async-teardown", NULL, NONE, NULL, ONLY_7, LAST, HIDDEN,
    "how the process ends", "-run-with async-teardown=on" },
  { "audio", NULL, KEYVAL, "driver", SINCE_7, LAST, PARTLY,
    "model= is a sound card; the rest is the host's sound", "-audiodev and -device" },
  { "audio-help", NULL, NONE, NULL, UNTIL_7, LAST, HIDDEN,
    "prints and exits", NULL },
  { "audiodev", NULL, KEYVAL_JSON, "driver", ALL, EACH, HIDDEN,
    "the host's sound system", NULL },
  { "balloon", NULL, OPAQUE, NULL, GONE, LAST, SEEN,
    "a virtio balloon is a device", "-device virtio-balloon" },
  { "bios", NULL, PATH, NULL, ALL, LAST, SEEN,
    "the guest's firmware", NULL },
  { "blockdev", NULL, KEYVAL_JSON, "driver", ALL, EACH, PARTLY,
    "the guest sees whether its disk can be written; file, cache and aio are the host's", NULL },
  { "boot", NULL, KEYVAL, "order", ALL, MERGE, SEEN,
    "the firmware reads it at every reset", NULL },
  { "bt", NULL, OPAQUE, NULL, GONE, EACH, HIDDEN,
    "Bluetooth, gone since 4.0", NULL },
  { "cdrom", NULL, PATH, NULL, ALL, EACH, PARTLY,
    "that there is a drive at this place; not where its image lies", NULL },
  { "chardev", NULL, KEYVAL, "backend", ALL, EACH, HIDDEN,
    "the host's end of a serial line", NULL },
  { "chroot", NULL, PATH, NULL, UNTIL_7, LAST, HIDDEN,
    "confinement of the process", "-run-with chroot=DIR" },
  { "clock", NULL, OPAQUE, NULL, GONE, LAST, HIDDEN,
    "the host's timer", NULL },
  { "compat", NULL, KEYVAL_JSON, NULL, SINCE_7, MERGE, HIDDEN,
    "policy for the management interface", NULL },
  { "cpu", NULL, CPU, "model", ALL, LAST, SEEN,
    "CPUID, and a guest must not lose a feature while it runs", NULL },
  { "ctrl-grab", NULL, NONE, NULL, ONLY_5, LAST, HIDDEN,
    "keys of the host's window", "-display sdl,grab-mod=rctrl" },
  { "curses", NULL, NONE, NULL, ONLY_5, LAST, HIDDEN,
    "the host's display", "-display curses" },
  { "d", NULL, OPAQUE, NULL, ALL, LAST, HIDDEN,
    "QEMU's own log", NULL },
  { "daemonize", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "how the process starts", NULL },
  { "debugcon", NULL, CHARDEV, NULL, ALL, LAST, PARTLY,
    "the debug port is a device; where it leads is the host's", NULL },
  { "device", NULL, KEYVAL_JSON, "driver", ALL, EACH, PARTLY,
    "devices, order and properties; not which backend stands behind them, nor host tuning", NULL },
  { "dfilter", NULL, OPAQUE, NULL, ALL, LAST, HIDDEN,
    "QEMU's own log", NULL },
  { "display", NULL, KEYVAL_JSON, "type", ALL, LAST, HIDDEN,
    "the host's display", NULL },
  { "drive", NULL, KEYVAL, NULL, ALL, EACH, PARTLY,
    "interface, place, medium and write protection; file, cache, aio and error policy are the host's", NULL },
  { "dtb", NULL, PATH, NULL, ALL, LAST, SEEN,
    "the device tree that the guest reads", NULL },
  { "dump-vmstate", NULL, PATH, NULL, ALL, LAST, HIDDEN,
    "writes a file and exits", NULL },
  { "echr", NULL, OPAQUE, NULL, ALL, LAST, HIDDEN,
    "escape key of the host's terminal", NULL },
  { "enable-fips", NULL, NONE, NULL, ONLY_5, LAST, HIDDEN,
    "the host's cryptography", NULL },
  { "enable-kvm", NULL, NONE, NULL, ALL, LAST, SEEN,
    "the same as -accel kvm", NULL },
  { "enable-sync-profile", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "profiling of QEMU", NULL },
  { "fda", NULL, PATH, NULL, ALL, EACH, PARTLY,
    "that there is a drive at this place; not where its image lies", NULL },
  { "fdb", NULL, PATH, NULL, ALL, EACH, PARTLY,
    "that there is a drive at this place; not where its image lies", NULL },
  { "fsdev", NULL, KEYVAL, "fsdriver", ALL, EACH, PARTLY,
    "security model and write protection show in the guest's file system; the path is the host's", NULL },
  { "full-screen", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "the host's display", NULL },
  { "fw_cfg", NULL, KEYVAL, "name", ALL, EACH, SEEN,
    "the guest reads the entries", NULL },
  { "gdb", NULL, CHARDEV, NULL, ALL, LAST, HIDDEN,
    "a debugger's socket", NULL },
  { "global", NULL, GLOBAL, NULL, ALL, EACH, SEEN,
    "defaults of device properties", NULL },
  { "hda", NULL, PATH, NULL, ALL, EACH, PARTLY,
    "that there is a disk at this place; not where its image lies", NULL },
  { "hdachs", NULL, OPAQUE, NULL, GONE, LAST, SEEN,
    "a disk's geometry", "cyls, heads and secs of -device ide-hd" },
  { "hdb", NULL, PATH, NULL, ALL, EACH, PARTLY,
    "that there is a disk at this place; not where its image lies", NULL },
  { "hdc", NULL, PATH, NULL, ALL, EACH, PARTLY,
    "that there is a disk at this place; not where its image lies", NULL },
  { "hdd", NULL, PATH, NULL, ALL, EACH, PARTLY,
    "that there is a disk at this place; not where its image lies", NULL },
  { "help", "h", NONE, NULL, ALL, LAST, HIDDEN,
    "prints and exits", NULL },
  { "icount", NULL, KEYVAL, "shift", ALL, MERGE, SEEN,
    "the guest's clock counts instructions", NULL },
  { "id", NULL, OPAQUE, NULL, GONE, LAST, HIDDEN,
    "a number for Proxmox VE's own use, whose QEMU alone has the option", NULL },
  { "incoming", NULL, OPAQUE, NULL, ALL, LAST, HIDDEN,
    "how the guest comes here, not what it is", NULL },
  { "initrd", NULL, PATH, NULL, ALL, LAST, SEEN,
    "read again when the guest reboots", NULL },
  { "iscsi", NULL, KEYVAL, NULL, ALL, EACH, HIDDEN,
    "how the host reaches its storage", NULL },
  { "jitdump", NULL, NONE, NULL, SINCE_10, LAST, HIDDEN,
    "profiling of QEMU", NULL },
  { "k", NULL, OPAQUE, NULL, ALL, LAST, HIDDEN,
    "the keyboard of the host's display", NULL },
  { "kernel", NULL, PATH, NULL, ALL, LAST, SEEN,
    "read again when the guest reboots", NULL },
  { "kvm-shadow-mem", NULL, OPAQUE, NULL, GONE, LAST, HIDDEN,
    "tuning of the accelerator", "-accel kvm,kvm-shadow-mem=SIZE" },
  { "loadvm", NULL, OPAQUE, NULL, ALL, LAST, HIDDEN,
    "where the first state comes from; an incoming migration replaces it", NULL },
  { "localtime", NULL, NONE, NULL, GONE, LAST, SEEN,
    "the clock's base", "-rtc base=localtime" },
  { "m", NULL, KEYVAL, "size", ALL, MERGE, SEEN,
    "size of memory and what can be plugged", NULL },
  { "machine", "M", KEYVAL, "type", ALL, MERGE, PARTLY,
    "the board; not accel, memory-backend, dump-guest-core, mem-merge, aux-ram-share", NULL },
  { "mem-path", NULL, PATH, NULL, ALL, LAST, HIDDEN,
    "what the guest's memory is made of on the host", NULL },
  { "mem-prealloc", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "what the guest's memory is made of on the host", NULL },
  { "mon", NULL, KEYVAL, "chardev", ALL, EACH, HIDDEN,
    "a management socket", NULL },
  { "monitor", NULL, CHARDEV, NULL, ALL, EACH, HIDDEN,
    "a management socket", NULL },
  { "msg", NULL, KEYVAL, NULL, ALL, LAST, HIDDEN,
    "form of QEMU's messages", NULL },
  { "mtdblock", NULL, PATH, NULL, ALL, EACH, PARTLY,
    "that there is a flash at this place; not where its image lies", NULL },
  { "name", NULL, KEYVAL, "guest", ALL, MERGE, HIDDEN,
    "a name for the host's use", NULL },
  { "net", NULL, KEYVAL, "type", ALL, EACH, PARTLY,
    "network cards and the addresses of the user network", NULL },
  { "netdev", NULL, KEYVAL_JSON, "type", ALL, EACH, PARTLY,
    "the addresses that type=user gives the guest; all else is the host's network", NULL },
  { "nic", NULL, KEYVAL, "type", ALL, EACH, PARTLY,
    "network cards and the addresses of the user network", NULL },
  { "no-acpi", NULL, NONE, NULL, UNTIL_7, LAST, SEEN,
    "the same as -machine acpi=off", "-machine acpi=off" },
  { "no-fd-bootchk", NULL, NONE, NULL, ALL, LAST, SEEN,
    "the firmware's boot check", NULL },
  { "no-frame", NULL, NONE, NULL, GONE, LAST, HIDDEN,
    "the host's display", NULL },
  { "no-hpet", NULL, NONE, NULL, UNTIL_7, LAST, SEEN,
    "the same as -machine hpet=off", "-machine hpet=off" },
  { "no-kvm", NULL, NONE, NULL, GONE, LAST, SEEN,
    "the same as -accel tcg", "-accel tcg" },
  { "no-quit", NULL, NONE, NULL, ONLY_5, LAST, HIDDEN,
    "the host's display", "-display sdl,window-close=off" },
  { "no-reboot", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "what QEMU does after an event, not what the guest is shown", NULL },
  { "no-shutdown", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "what QEMU does after an event, not what the guest is shown", NULL },
  { "no-user-config", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "whether the host's configuration file is read", NULL },
  { "nodefaults", NULL, NONE, NULL, ALL, LAST, SEEN,
    "without it the board brings a NIC, a VGA, a serial port, drives", NULL },
  { "nographic", NULL, NONE, NULL, ALL, LAST, SEEN,
    "also sets -machine graphics=off, which the firmware reads from fw_cfg", NULL },
  { "numa", NULL, KEYVAL, "type", ALL, EACH, SEEN,
    "nodes, distances and which CPUs are where; not which backend holds a node's memory", NULL },
  { "object", NULL, KEYVAL_JSON, "qom-type", ALL, EACH, PARTLY,
    "confidential guests, ACPI initiators and the size of memory; other objects are the host's", NULL },
  { "only-migratable", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "a guard of QEMU's", NULL },
  { "option-rom", NULL, KEYVAL, "romfile", ALL, EACH, SEEN,
    "a ROM that the firmware runs", NULL },
  { "overcommit", NULL, KEYVAL, NULL, ALL, LAST, PARTLY,
    "cpu-pm=on shows the guest MWAIT; mem-lock is the host's", NULL },
  { "parallel", NULL, CHARDEV, NULL, ALL, EACH, PARTLY,
    "that there is a port; where it leads is the host's", NULL },
  { "perfmap", NULL, NONE, NULL, SINCE_10, LAST, HIDDEN,
    "profiling of QEMU", NULL },
  { "pflash", NULL, PATH, NULL, ALL, EACH, PARTLY,
    "that there is a flash at this place; not where its image lies", NULL },
  { "pidfile", NULL, PATH, NULL, ALL, LAST, HIDDEN,
    "a file for the host's use", NULL },
  { "plugin", NULL, KEYVAL, "file", ALL, EACH, HIDDEN,
    "instrumentation of QEMU", NULL },
  { "portrait", NULL, NONE, NULL, UNTIL_7, LAST, HIDDEN,
    "the host's display", NULL },
  { "preconfig", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "how the process starts", NULL },
  { "qmp", NULL, CHARDEV, NULL, ALL, EACH, HIDDEN,
    "a management socket", NULL },
  { "qmp-pretty", NULL, CHARDEV, NULL, ALL, EACH, HIDDEN,
    "a management socket", NULL },
  { "qtest", NULL, CHARDEV, NULL, ALL, LAST, HIDDEN,
    "a test harness' socket", NULL },
  { "qtest-log", NULL, PATH, NULL, ALL, LAST, HIDDEN,
    "a test harness' log", NULL },
  { "readconfig", NULL, PATH, NULL, ALL, EACH, SEEN,
    "the file may describe devices; its contents are not looked at", NULL },
  { "realtime", NULL, KEYVAL, NULL, ONLY_5, LAST, HIDDEN,
    "locks the host's memory", "-overcommit mem-lock=on" },
  { "redir", NULL, OPAQUE, NULL, GONE, EACH, HIDDEN,
    "forwarded ports of the host", "hostfwd= of -netdev user" },
  { "rotate", NULL, OPAQUE, NULL, UNTIL_7, LAST, HIDDEN,
    "the host's display", NULL },
  { "rtc", NULL, KEYVAL, NULL, ALL, MERGE, SEEN,
    "the clock that the guest reads at boot and how lost ticks are given to it", NULL },
  { "run-with", NULL, KEYVAL, NULL, SINCE_10, LAST, HIDDEN,
    "confinement of the process", "-chroot, -runas or -async-teardown" },
  { "runas", NULL, OPAQUE, NULL, UNTIL_7, LAST, HIDDEN,
    "confinement of the process", "-run-with user=USER" },
  { "s", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "a debugger's socket, -gdb tcp::1234", NULL },
  { "sandbox", NULL, KEYVAL, "enable", ALL, LAST, HIDDEN,
    "confinement of the process", NULL },
  { "sd", NULL, PATH, NULL, ALL, EACH, PARTLY,
    "that there is a card at this place; not where its image lies", NULL },
  { "sdl", NULL, NONE, NULL, ONLY_5, LAST, HIDDEN,
    "the host's display", "-display sdl" },
  { "seed", NULL, OPAQUE, NULL, ALL, LAST, HIDDEN,
    "QEMU's own random numbers", NULL },
  { "serial", NULL, CHARDEV, NULL, ALL, EACH, PARTLY,
    "that there is a port; where it leads is the host's", NULL },
  { "set", NULL, OPAQUE, NULL, ALL, EACH, SEEN,
    "changes another option; what it changes is not looked at", NULL },
  { "shim", NULL, PATH, NULL, SINCE_10, LAST, SEEN,
    "read again when the guest reboots", NULL },
  { "show-cursor", NULL, NONE, NULL, ONLY_5, LAST, HIDDEN,
    "the host's display", "-display TYPE,show-cursor=on" },
  { "singlestep", NULL, NONE, NULL, UNTIL_7, LAST, HIDDEN,
    "how TCG translates", "-accel tcg,one-insn-per-tb=on" },
  { "smbios", NULL, KEYVAL, NULL, ALL, EACH, SEEN,
    "the guest reads the tables, licences hang on them", NULL },
  { "smp", NULL, KEYVAL, "cpus", ALL, MERGE, SEEN,
    "number of CPUs and topology", NULL },
  { "snapshot", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "where writes go on the host", NULL },
  { "soundhw", NULL, OPAQUE, NULL, ONLY_5, EACH, SEEN,
    "a sound card", "-device, or -audio DRIVER,model=MODEL" },
  { "spice", NULL, KEYVAL, NULL, ALL, MERGE, HIDDEN,
    "the host's display", NULL },
  { "startdate", NULL, OPAQUE, NULL, GONE, LAST, SEEN,
    "the clock's base", "-rtc base=DATE" },
  { "tb-size", NULL, OPAQUE, NULL, ONLY_5, LAST, HIDDEN,
    "tuning of the accelerator", "-accel tcg,tb-size=MIB" },
  { "tdf", NULL, NONE, NULL, GONE, LAST, SEEN,
    "policy of a timer", "-global kvm-pit.lost_tick_policy=slew" },
  { "tpmdev", NULL, KEYVAL, "type", ALL, EACH, HIDDEN,
    "what stands behind the TPM on the host", NULL },
  { "trace", NULL, KEYVAL, "enable", ALL, EACH, HIDDEN,
    "QEMU's own log", NULL },
  { "usb", NULL, NONE, NULL, ALL, LAST, SEEN,
    "the same as -machine usb=on", NULL },
  { "usbdevice", NULL, OPAQUE, NULL, ALL, EACH, SEEN,
    "a USB device", NULL },
  { "uuid", NULL, OPAQUE, NULL, ALL, LAST, SEEN,
    "in SMBIOS and fw_cfg, licences hang on it", NULL },
  { "version", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "prints and exits", NULL },
  { "vga", NULL, OPAQUE, NULL, ALL, LAST, SEEN,
    "the video card", NULL },
  { "virtfs", NULL, KEYVAL, "fsdriver", ALL, EACH, PARTLY,
    "a 9p device with its mount tag and security model; the path is the host's", NULL },
  { "virtioconsole", NULL, CHARDEV, NULL, GONE, EACH, SEEN,
    "a virtio console", "-device virtconsole" },
  { "vnc", NULL, KEYVAL, "vnc", ALL, EACH, HIDDEN,
    "the host's display", NULL },
  { "watchdog", NULL, OPAQUE, NULL, ONLY_5, LAST, SEEN,
    "a watchdog card", "-device MODEL" },
  { "watchdog-action", NULL, OPAQUE, NULL, ALL, LAST, HIDDEN,
    "what QEMU does after an event, not what the guest is shown", NULL },
  { "win2k-hack", NULL, NONE, NULL, ALL, LAST, SEEN,
    "changes the IDE disk's timing", NULL },
  { "writeconfig", NULL, PATH, NULL, ONLY_5, LAST, HIDDEN,
    "a file for the host's use", NULL },
  { "xen-attach", NULL, NONE, NULL, ALL, LAST, SEEN,
    "which Xen domain this is", NULL },
  { "xen-domid", NULL, OPAQUE, NULL, ALL, LAST, SEEN,
    "which Xen domain this is", NULL },
  { "xen-domid-restrict", NULL, NONE, NULL, ALL, LAST, HIDDEN,
    "confinement of the process", NULL },
};
/* clang-format on */

const DrOptInfo *
dr_options_table(gsize *ret_n)
{
  *ret_n = G_N_ELEMENTS(table);
  return table;
}

static int
compare_name(const void *name, const void *info)
{
  return strcmp(name, ((const DrOptInfo *)info)->name);
}

static const char *
skip_dashes(const char *name)
{
  if (*name == '-')
    name++;
  if (*name == '-')
    name++;
  return name;
}

static const DrOptInfo *
lookup_alias(const char *name)
{
  for (gsize i = 0; i < G_N_ELEMENTS(table); i++) {
    if (g_strcmp0(table[i].alias, name) == 0)
      return &table[i];
  }
  return NULL;
}

const DrOptInfo *
dr_option_lookup(const char *name)
{
  const char *bare = skip_dashes(name);
  const DrOptInfo *info = bsearch(bare, table, G_N_ELEMENTS(table), sizeof(table[0]), compare_name);

  return info ? info : lookup_alias(bare);
}

gboolean
dr_option_has_arg(const DrOptInfo *info)
{
  return info->kind != DR_VALUE_NONE;
}

DrQemuVersions
dr_option_version_bit(int major, int minor)
{
  static const struct {
    int major, minor;
    DrQemuVersions bit;
  } columns[] = {
    { 11, 1, DR_QEMU_11_1 },
    { 10, 0, DR_QEMU_10_0 },
    { 7, 2, DR_QEMU_7_2 },
  };

  for (gsize i = 0; i < G_N_ELEMENTS(columns); i++) {
    if (major > columns[i].major || (major == columns[i].major && minor >= columns[i].minor))
      return columns[i].bit;
  }
  return DR_QEMU_5_2;
}
