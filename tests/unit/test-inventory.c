/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The inventory against real QEMUs: what is read, what is written back into a command line, what is told to differ.
 *
 * A case starts a QEMU (-S: no guest runs), does something to it by QMP, brings the command line up to date, starts a second
 * QEMU from that, compares the two, asks the second one for the same command line again, and migrates. Each is done from 7.2
 * to 7.2 and from and to whatever other versions are there. */
#include "test-inventory-util.h"

#include <glib/gstdio.h>

static const char *const versions[] = { "5.2", "7.2", "10.0", "11.1" };

typedef struct {
  const char *name;
  const char *argv;
  const char *steps[12];
  const char *wanted[6]; /* in the new command line */
  const char *absent[3]; /* not in it */
  const char *codes;     /* of blockers and warnings of dr_inventory_apply() */
  gboolean
      dangerous; /* a QEMU from the old command line would have another disk or device: comparing must tell */
} Case;

#define Q35 "-machine pc-q35-%M -m 64 -nodefaults "
#define PC "-machine pc-i440fx-%M -m 64 "
#define DRIVE Q35 "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x"
#define BLOCKDEV                                                                                             \
  Q35 "-blockdev driver=file,node-name=f,filename=%D/b.qcow2 -blockdev driver=qcow2,node-name=n,file=f "     \
      "-device virtio-blk-pci,drive=n,id=d"
#define JSON_BLOCKDEV                                                                                        \
  Q35 "-blockdev "                                                                                           \
      "{\"node-name\":\"s\",\"driver\":\"file\",\"filename\":\"%D/b.qcow2\",\"auto-read-only\":true} "       \
      "-blockdev "                                                                                           \
      "{\"node-name\":\"n\",\"read-only\":false,\"driver\":\"qcow2\",\"file\":\"s\",\"backing\":null} "      \
      "-device virtio-blk-pci,drive=n,id=d"
#define SNAPSHOT(n) "blockdev-snapshot-sync {\"device\":\"x\",\"snapshot-file\":\"%D/s" n ".qcow2\"}"

static const Case disk_cases[] = {
  { "untouched", DRIVE, { 0 }, { "file=%D/a.qcow2,if=none,id=x " }, { "format" }, "" },
  { "untouched-chain",
    Q35 "-drive file=%D/ov.qcow2,if=virtio,cache=none",
    { 0 },
    { "file=%D/ov.qcow2,if=virtio,cache=none" },
    { "backing" },
    "" },
  { "snapshot",
    Q35 "-drive file=%D/ov.qcow2,if=none,id=x,cache=none,discard=unmap -device virtio-blk-pci,drive=x",
    { SNAPSHOT("1") },
    { "file=%D/s1.qcow2,if=none,id=x,cache=none,discard=unmap,format=qcow2" },
    { "file=%D/ov" },
    "",
    TRUE },
  { "snapshot-hda",
    PC "-hda %D/a.qcow2",
    { "blockdev-snapshot-sync {\"device\":\"ide0-hd0\",\"snapshot-file\":\"%D/s1.qcow2\"}" },
    { "-drive index=0,media=disk,file=%D/s1.qcow2,format=qcow2" },
    { "-hda" },
    "",
    TRUE },
  { "snapshot-virtio",
    Q35 "-drive file=%D/a.qcow2,if=virtio -drive file=%D/b.qcow2,if=virtio",
    { "blockdev-snapshot-sync {\"device\":\"virtio1\",\"snapshot-file\":\"%D/s1.qcow2\"}" },
    { "file=%D/a.qcow2,if=virtio", "file=%D/s1.qcow2,if=virtio,format=qcow2" },
    { 0 },
    "",
    TRUE },
  { "snapshot-names",
    Q35 "-drive file=%D/a.qcow2,if=none,id=x,node-name=base -device virtio-blk-pci,drive=x",
    { "blockdev-snapshot-sync "
      "{\"device\":\"x\",\"snapshot-file\":\"%D/s1.qcow2\",\"snapshot-node-name\":\"top\"}" },
    { "file=%D/s1.qcow2,if=none,id=x,format=qcow2,node-name=top,backing=base",
      "node-name=base,file.driver=file" },
    { 0 },
    "",
    TRUE },
  { "snapshot-blockdev",
    BLOCKDEV,
    { "blockdev-snapshot-sync "
      "{\"node-name\":\"n\",\"snapshot-file\":\"%D/s1.qcow2\",\"snapshot-node-name\":\"top\"}" },
    { "node-name=n,file=f,read-only=on", "node-name=top,file.driver=file,file.filename=%D/s1.qcow2,backing=n",
      "virtio-blk-pci,drive=top,id=d" },
    { 0 },
    "",
    TRUE },
  { "snapshot-no-header",
    JSON_BLOCKDEV,
    { "shell qemu-img create -q -f qcow2 %D/s1.qcow2 4M",
      "blockdev-add {\"driver\":\"file\",\"node-name\":\"sf\",\"filename\":\"%D/s1.qcow2\"}",
      "blockdev-add {\"driver\":\"qcow2\",\"node-name\":\"top\",\"file\":\"sf\",\"backing\":null}",
      "blockdev-snapshot {\"node\":\"n\",\"overlay\":\"top\"}" },
    { "\"read-only\":true", "\"node-name\":\"top\",\"file\":\"sf\",\"backing\":\"n\"", "drive=top" },
    { 0 },
    "",
    TRUE },
  { "commit-middle",
    DRIVE,
    { SNAPSHOT("1"), SNAPSHOT("2"), SNAPSHOT("3"),
      "block-commit {\"device\":\"x\",\"top\":\"%D/s2.qcow2\",\"base\":\"%D/s1.qcow2\"}", "jobs" },
    { "file=%D/s3.qcow2,if=none,id=x,format=qcow2" },
    { "backing" },
    "",
    TRUE },
  { "commit-active",
    DRIVE,
    { SNAPSHOT("1"), "block-commit {\"device\":\"x\"}", "jobs", "block-job-complete {\"device\":\"x\"}",
      "jobs" },
    { "file=%D/a.qcow2,if=none,id=x" },
    { "s1" },
    "" },
  { "stream",
    DRIVE,
    { SNAPSHOT("1"), "block-stream {\"device\":\"x\"}", "jobs" },
    { "file=%D/s1.qcow2,if=none,id=x,format=qcow2" },
    { "backing" },
    "",
    TRUE },
  { "pivot",
    Q35 "-drive file=%D/r.raw,format=raw,if=none,id=x -device virtio-blk-pci,drive=x",
    { "drive-mirror {\"device\":\"x\",\"target\":\"%D/s1.qcow2\",\"sync\":\"full\",\"format\":\"qcow2\"}",
      "jobs", "block-job-complete {\"device\":\"x\"}", "jobs" },
    { "file=%D/s1.qcow2,format=qcow2,if=none,id=x" },
    { "r.raw" },
    "",
    TRUE },
  { "pivot-window",
    Q35 "-drive if=none,id=x,driver=raw,offset=65536,size=65536,file.filename=%D/r.raw -device "
        "virtio-blk-pci,drive=x",
    { "drive-mirror {\"device\":\"x\",\"target\":\"%D/p.raw\",\"sync\":\"full\",\"format\":\"raw\"}", "jobs",
      "block-job-complete {\"device\":\"x\"}", "jobs" },
    { "if=none,id=x,file=%D/p.raw,format=raw" },
    { "offset", "size" },
    "",
    TRUE },
  { "pivot-blockdev",
    BLOCKDEV,
    { "blockdev-add "
      "{\"driver\":\"raw\",\"node-name\":\"t\",\"file\":{\"driver\":\"file\",\"filename\":\"%D/t.raw\"}}",
      "blockdev-mirror {\"job-id\":\"j\",\"device\":\"n\",\"target\":\"t\",\"sync\":\"full\"}", "jobs",
      "block-job-complete {\"device\":\"j\"}", "jobs", "blockdev-del {\"node-name\":\"n\"}" },
    { "node-name=t,file.driver=file,file.filename=%D/t.raw", "drive=t,id=d" },
    { "node-name=n" },
    "",
    TRUE },
  { "job",
    DRIVE,
    { "drive-mirror {\"device\":\"x\",\"target\":\"%D/s1.qcow2\",\"sync\":\"full\",\"format\":\"qcow2\"}",
      "jobs" },
    { 0 },
    { 0 },
    "block-job" },
  { "bitmap",
    DRIVE,
    { "block-dirty-bitmap-add {\"node\":\"x\",\"name\":\"lost\"}",
      "block-dirty-bitmap-add {\"node\":\"x\",\"name\":\"kept\",\"persistent\":true}" },
    { 0 },
    { 0 },
    "dirty-bitmap" },
  { "eject",
    Q35 "-cdrom %D/cd.raw",
    { "eject {\"device\":\"ide2-cd0\",\"force\":true}" },
    { "-drive index=2,media=cdrom" },
    { "cd.raw" },
    "",
    TRUE },
  { "change",
    PC "-cdrom %D/cd.raw",
    { "blockdev-change-medium {\"device\":\"ide1-cd0\",\"filename\":\"%D/cd2.raw\",\"format\":\"raw\"}" },
    { "-drive index=2,media=cdrom,file=%D/cd2.raw,format=raw" },
    { "cd.raw" },
    "",
    TRUE },
  { "insert",
    "-machine pc-q35-%M -m 64",
    { "blockdev-change-medium {\"device\":\"ide2-cd0\",\"filename\":\"%D/cd.raw\",\"format\":\"raw\"}" },
    { "-drive if=ide,index=2,media=cdrom,file=%D/cd.raw,format=raw" },
    { 0 },
    "",
    TRUE },
  { "insert-device",
    Q35 "-device ide-cd,id=cd",
    { "blockdev-change-medium {\"id\":\"cd\",\"filename\":\"%D/cd.raw\",\"format\":\"raw\"}" },
    { "ide-cd,id=cd,drive=drover-node", "file.filename=%D/cd.raw" },
    { 0 },
    "",
    TRUE },
  { "eject-device",
    Q35 "-blockdev driver=raw,node-name=c,file.driver=file,file.filename=%D/cd.raw,read-only=on -device "
        "ide-cd,drive=c,id=cd",
    { "eject {\"id\":\"cd\",\"force\":true}" },
    { "ide-cd,id=cd" },
    { "drive=c" },
    "",
    TRUE },
  { "throttle",
    Q35 "-drive file=%D/a.qcow2,if=none,id=x,iops=100 -device virtio-blk-pci,drive=x",
    { "block_set_io_throttle "
      "{\"device\":\"x\",\"bps\":0,\"bps_rd\":0,\"bps_wr\":1000,\"iops\":50,\"iops_rd\":0,\"iops_wr\":0}" },
    { "throttling.bps-write=1000,throttling.iops-total=50" },
    { "iops=100" },
    "" },
  { "throttle-device",
    BLOCKDEV,
    { "block_set_io_throttle "
      "{\"id\":\"/machine/peripheral/d/virtio-backend\",\"bps\":9,\"bps_rd\":0,\"bps_wr\":0,\"iops\":0,"
      "\"iops_rd\":0,\"iops_wr\":0}" },
    { 0 },
    { 0 },
    "throttle" },
  { "filter",
    BLOCKDEV " -object throttle-group,id=g -device virtio-scsi-pci,id=vs",
    { "blockdev-add "
      "{\"driver\":\"throttle\",\"node-name\":\"t\",\"throttle-group\":\"g\",\"file\":{\"driver\":\"qcow2\","
      "\"file\":{\"driver\":\"file\",\"filename\":\"%D/c.qcow2\"}}}",
      "device_add {\"driver\":\"scsi-hd\",\"drive\":\"t\",\"id\":\"h\"}" },
    { 0 },
    { 0 },
    "disk-graph" },
};

static const char hot_ports[] = Q35 "-smp 1,maxcpus=2 -device virtio-scsi-pci,id=vs -device qemu-xhci,id=usb "
                                    "-device virtio-serial-pci,id=ser "
                                    "-device pcie-root-port,id=p1,chassis=1 -device "
                                    "pcie-root-port,id=p2,chassis=2 -device pcie-root-port,id=p3,chassis=3";
static const char hot_memory[] = "-machine pc-q35-%M -nodefaults -m 64,slots=2,maxmem=1G";

static const Case plug_cases[] = {
  { "nic",
    hot_ports,
    { "netdev_add {\"type\":\"user\",\"id\":\"u\"}",
      "device_add "
      "{\"driver\":\"virtio-net-pci\",\"id\":\"n\",\"bus\":\"p1\",\"netdev\":\"u\",\"mac\":\"52:54:00:aa:bb:"
      "cc\","
      "\"bootindex\":3,\"mrg_rxbuf\":false}",
      "netdev_add {\"type\":\"hubport\",\"hubid\":7,\"id\":\"hub\"}",
      "device_add {\"driver\":\"e1000e\",\"id\":\"e\",\"bus\":\"p2\",\"romfile\":\"\"}" },
    { "virtio-net-pci,id=n,bus=p1,addr=00.0,bootindex=3,", "mac=52:54:00:aa:bb:cc,mrg_rxbuf=off,netdev=u",
      "user,id=u", "e1000e,id=e,bus=p2", "romfile=" },
    { 0 },
    "hotplug-netdev",
    TRUE },
  { "nic-other-network",
    hot_ports,
    { "netdev_add {\"type\":\"user\",\"id\":\"u\",\"net\":\"10.9.0.0/24\"}",
      "device_add {\"driver\":\"virtio-net-pci\",\"id\":\"n\",\"bus\":\"p1\",\"netdev\":\"u\"}" },
    { 0 },
    { 0 },
    "hotplug-backend" },
  { "disks",
    hot_ports,
    { "blockdev-add {\"driver\":\"file\",\"node-name\":\"hf\",\"filename\":\"%D/a.qcow2\"}",
      "blockdev-add {\"driver\":\"qcow2\",\"node-name\":\"hd\",\"file\":\"hf\"}",
      "object-add {\"qom-type\":\"iothread\",\"id\":\"io\"}",
      "device_add "
      "{\"driver\":\"virtio-blk-pci\",\"id\":\"b\",\"bus\":\"p1\",\"drive\":\"hd\",\"serial\":\"A,1\","
      "\"iothread\":\"io\"}",
      "blockdev-add "
      "{\"driver\":\"raw\",\"node-name\":\"ro\",\"read-only\":true,\"file\":{\"driver\":\"file\","
      "\"filename\":\"%D/r.raw\"}}",
      "device_add "
      "{\"driver\":\"scsi-hd\",\"id\":\"s\",\"bus\":\"vs.0\",\"drive\":\"ro\",\"scsi-id\":3,\"lun\":1}",
      "hmp drive_add 0 if=none,id=da,file=%D/b.qcow2,format=qcow2,cache=none",
      "device_add {\"driver\":\"virtio-blk-pci\",\"id\":\"c\",\"bus\":\"p2\",\"drive\":\"da\"}",
      "blockdev-add "
      "{\"driver\":\"raw\",\"node-name\":\"us\",\"file\":{\"driver\":\"file\",\"filename\":\"%D/t.raw\"}}",
      "device_add {\"driver\":\"usb-storage\",\"id\":\"u\",\"drive\":\"us\"}" },
    { "serial=A,,1", "iothread=io", "scsi-hd,id=s,bus=vs.0", "if=none,id=da,file=%D/b.qcow2",
      "node-name=hd,file=hf", "usb-storage,id=u,bus=usb.0,port=1" },
    { 0 },
    "",
    TRUE },
  { "controllers",
    hot_ports,
    { "device_add {\"driver\":\"virtio-scsi-pci\",\"id\":\"a\",\"bus\":\"p1\"}",
      "device_add {\"driver\":\"scsi-cd\",\"id\":\"A\",\"bus\":\"a.0\"}",
      "device_add {\"driver\":\"pcie-pci-bridge\",\"id\":\"z\",\"bus\":\"p2\"}",
      "device_add {\"driver\":\"rtl8139\",\"id\":\"b\",\"bus\":\"z\",\"addr\":\"03.0\"}" },
    { "scsi-cd,id=A,bus=a.0", "rtl8139,id=b,bus=z,addr=03.0" },
    { 0 },
    "",
    TRUE },
  { "others",
    hot_ports,
    { "device_add {\"driver\":\"usb-tablet\"}", "device_add {\"driver\":\"usb-kbd\",\"id\":\"k\"}",
      "object-add {\"qom-type\":\"rng-random\",\"id\":\"r\",\"filename\":\"/dev/urandom\"}",
      "device_add "
      "{\"driver\":\"virtio-rng-pci\",\"id\":\"g\",\"rng\":\"r\",\"bus\":\"p1\",\"max-bytes\":64,\"period\":"
      "1000}",
      "chardev-add {\"id\":\"ch\",\"backend\":{\"type\":\"null\",\"data\":{}}}",
      "device_add {\"driver\":\"virtserialport\",\"id\":\"v\",\"chardev\":\"ch\",\"name\":\"org.x\"}",
      "device_add {\"driver\":\"virtio-balloon-pci\",\"id\":\"m\",\"bus\":\"p2\"}",
      "device_add {\"driver\":\"virtio-keyboard-pci\",\"bus\":\"p3\"}" },
    { "usb-tablet,id=drover-dev0,bus=usb.0,port=1", "usb-kbd,id=k,bus=usb.0,port=2",
      "max-bytes=64,period=1000,rng=r", "chardev=ch,name=org.x,nr=1" },
    { 0 },
    "",
    TRUE },
  { "memory",
    hot_memory,
    { "object-add {\"qom-type\":\"memory-backend-ram\",\"id\":\"m\",\"size\":134217728}",
      "device_add {\"driver\":\"pc-dimm\",\"id\":\"d\",\"memdev\":\"m\"}" },
    { "pc-dimm,id=d,memdev=m,slot=0,addr=4294967296", "memory-backend-ram,id=m,size=134217728" },
    { 0 },
    "",
    TRUE },
  { "cpu",
    "-machine pc-q35-%M -nodefaults -m 64 -smp 1,maxcpus=2,sockets=2,cores=1,threads=1",
    { "device_add {\"driver\":\"qemu64-x86_64-cpu\",\"id\":\"c\",\"socket-id\":1,\"core-id\":0,"
      "\"thread-id\":0}" },
    { "qemu64-x86_64-cpu,id=c," },
    { 0 },
    "",
    TRUE },
  { "chardev-file",
    hot_ports,
    { "chardev-add {\"id\":\"ch\",\"backend\":{\"type\":\"file\",\"data\":{\"out\":\"%D/log\"}}}",
      "device_add {\"driver\":\"virtserialport\",\"id\":\"v\",\"chardev\":\"ch\"}" },
    { 0 },
    { 0 },
    "hotplug-backend" },
  { "unplug",
    Q35 "-device qemu-xhci -device usb-tablet,id=t -device usb-kbd,id=k -device usb-mouse",
    { "device_del {\"id\":\"t\"}", "event DEVICE_DELETED" },
    { "usb-kbd,id=k,port=2", "usb-mouse,port=3" },
    { "usb-tablet" },
    "",
    TRUE },
  { "unplug-anonymous",
    Q35 "-device qemu-xhci -device usb-tablet -device usb-kbd -device usb-tablet",
    { "device_del {\"id\":\"/machine/peripheral-anon/device[1]\"}", "event DEVICE_DELETED" },
    { "usb-kbd,port=2", "usb-tablet,port=3" },
    { "usb-tablet " },
    "",
    TRUE },
  { "replug",
    Q35 "-device qemu-xhci -device usb-tablet,id=t -device usb-kbd,id=k",
    { "device_del {\"id\":\"t\"}", "event DEVICE_DELETED",
      "device_add {\"driver\":\"usb-mouse\",\"id\":\"t\",\"port\":\"4\"}" },
    { "usb-mouse,id=t,bus=usb-bus.0,port=4" },
    { "usb-tablet" },
    "",
    TRUE },
  { "unplug-disk",
    Q35
    "-device virtio-scsi-pci,id=vs -drive if=none,id=x,file=%D/a.qcow2 -device scsi-hd,drive=x,id=d1 "
    "-blockdev driver=raw,node-name=y,file.driver=file,file.filename=%D/r.raw -device scsi-hd,drive=y,id=d2",
    { "device_del {\"id\":\"d1\"}", "event DEVICE_DELETED" },
    { "scsi-hd,drive=y,id=d2,channel=0,scsi-id=1,lun=0" },
    { "a.qcow2" },
    "",
    TRUE },
};

/* --- Running a case --- */

typedef struct {
  const Case *test;
  const char *from, *to;
} Run;

/* The machine type that both know. */
static const char *
machine_of(const char *from, const char *to)
{
  return g_ascii_strtod(from, NULL) < g_ascii_strtod(to, NULL) ? from : to;
}

static DrArgv *
apply(const DrInventory *inventory, char **words, const char *program, const char *codes)
{
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autoptr(GError) error = NULL;
  DrArgv *argv = parse(words);

  g_assert_true(dr_inventory_apply(inventory, argv, dir, findings, &error));
  g_assert_no_error(error);
  if (codes)
    assert_codes(findings, DR_FINDING_WARNING, codes);
  dr_argv_set_program(argv, program);
  return argv;
}

static char *
joined(const DrArgv *argv)
{
  g_auto(GStrv) words = dr_argv_to_strv(argv);
  g_autofree char *text = g_strjoinv(" ", words);

  return g_strconcat(text, " ", NULL);
}

static void
check_text(const Case *test, const char *text, const char *machine)
{
  for (guint i = 0; i < G_N_ELEMENTS(test->wanted) && test->wanted[i]; i++) {
    g_autofree char *wanted = expand(test->wanted[i], machine);

    if (!strstr(text, wanted))
      g_error("'%s' is not in: %s", wanted, text);
  }
  for (guint i = 0; i < G_N_ELEMENTS(test->absent) && test->absent[i]; i++) {
    g_autofree char *absent = expand(test->absent[i], machine);

    if (strstr(text, absent))
      g_error("'%s' is in: %s", absent, text);
  }
}

/* A QEMU from the command line as it was: it starts, and would take the guest. Only comparing tells. */
static void
check_danger(const DrInventory *before, char **words)
{
  g_autoptr(Qemu) wrong = qemu_start(words, TRUE);
  g_autoptr(DrInventory) after = wrong ? read_inventory(wrong) : NULL;
  g_autoptr(DrFindings) findings = dr_findings_new();

  if (!after)
    return; /* the images' locks kept it from starting */
  dr_inventory_compare(before, after, findings);
  g_assert_true(dr_findings_block(findings));
}

static void
run_case(gconstpointer data)
{
  const Run *what = data;
  const Case *test = what->test;
  const char *machine = machine_of(what->from, what->to);
  g_autofree char *from = find_qemu(what->from), *to = find_qemu(what->to), *text = NULL, *again_text = NULL;
  g_auto(GStrv) words = NULL, other_words = NULL, truth_words = NULL;
  g_autoptr(Qemu) source = NULL, destination = NULL;
  g_autoptr(DrInventory) before = NULL, after = NULL;
  g_autoptr(DrArgv) truth = NULL, again = NULL;
  g_autoptr(DrFindings) findings = dr_findings_new();

  begin_case();
  words = words_of(from, test->argv, machine);
  other_words = words_of(to, test->argv, machine);
  source = qemu_start(words, FALSE);
  g_assert_nonnull(source);
  for (guint i = 0; i < G_N_ELEMENTS(test->steps) && test->steps[i]; i++)
    do_step(source->qmp, test->steps[i], machine);
  before = read_inventory(source);
  truth = apply(before, words, to, test->codes);
  text = joined(truth);
  g_test_message("%s", text);
  check_text(test, text, machine);
  if (test->dangerous)
    check_danger(before, other_words);
  truth_words = dr_argv_to_strv(truth);
  if (test->wanted[0]) {
    destination = qemu_start(truth_words, TRUE);
    g_assert_nonnull(destination);
    after = read_inventory(destination);
    dr_inventory_compare(before, after, findings);
    assert_codes(findings, DR_FINDING_BLOCKER, "");
    again = apply(after, other_words, to, NULL);
    again_text = joined(again);
    if (g_str_equal(what->from, what->to))
      g_assert_cmpstr(again_text, ==, text);
    g_assert_true(migrate(source, destination));
  }
  g_clear_pointer(&destination, qemu_free);
  g_clear_pointer(&source, qemu_free);
  end_case();
}

/* --- Texts of HMP, as they are --- */

static void
test_read(void)
{
  g_autofree char *binary = find_qemu("7.2");
  g_auto(GStrv) words = NULL;
  g_autoptr(Qemu) qemu = NULL;
  g_autoptr(DrInventory) inventory = NULL;
  g_autoptr(JsonObject) json = NULL;
  GPtrArray *forwards;
  const DrForward *forward;

  begin_case();
  words =
      words_of(binary,
               "-machine q35 -m 64 -cpu Haswell -uuid 01234567-89ab-cdef-0123-456789abcdef -cdrom %D/cd.raw "
               "-drive file=%D/ov.qcow2,if=virtio -netdev "
               "user,id=u,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=udp::0-10.0.2.20:53 "
               "-device e1000,netdev=u,id=e -nic none",
               "7.2");
  qemu = qemu_start(words, FALSE);
  g_assert_nonnull(qemu);
  inventory = read_inventory(qemu);
  g_assert_true(g_str_has_prefix(dr_inventory_machine(inventory), "pc-q35-"));
  g_assert_cmpstr(dr_inventory_uuid(inventory), ==, "01234567-89ab-cdef-0123-456789abcdef");
  g_assert_cmpstr(dr_inventory_cpu(inventory), ==, "Haswell-x86_64-cpu");
  g_assert_cmpuint(dr_inventory_memory(inventory), ==, 64 * 1024 * 1024);
  g_assert_false(dr_inventory_kvm(inventory));
  g_assert_cmpuint(dr_inventory_taps(inventory)->len, ==, 0);
  g_assert_cmpuint(dr_inventory_block_size(inventory, "pc.ram"), ==, 64 * 1024 * 1024);
  forwards = dr_inventory_forwards(inventory);
  g_assert_cmpuint(forwards->len, ==, 2);
  for (guint i = 0; i < 2; i++) {
    forward = forwards->pdata[i];
    g_assert_cmpstr(forward->netdev, ==, "u");
    g_assert_true(g_str_has_suffix(
        forward->add, g_str_has_prefix(forward->add, "tcp:127.0.0.1:") ? "-10.0.2.15:22" : "-10.0.2.20:53"));
    g_assert_true(g_str_has_prefix(forward->add, forward->remove));
  }
  json = dr_inventory_json(inventory);
  g_assert_cmpuint(json_array_get_length(dr_json_arr(json, "nics")), ==, 1);
  g_assert_cmpuint(json_array_get_length(dr_json_arr(json, "disks")), ==, 2);
  g_assert_cmpint(dr_json_int(json, "memory.bytes", 0), ==, 64 * 1024 * 1024);
  g_clear_pointer(&qemu, qemu_free);
  end_case();
}

/* A usual guest: nothing is found, and only the machine type changes. */
static void
test_plain(void)
{
  g_autofree char *binary = find_qemu("7.2"), *text = NULL;
  g_auto(GStrv) words = NULL;
  g_autoptr(Qemu) qemu = NULL;
  g_autoptr(DrInventory) inventory = NULL;
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autoptr(DrArgv) argv = NULL;
  g_autoptr(GError) error = NULL;

  begin_case();
  words = words_of(
      binary,
      "-machine q35,smm=off -m 64 -smp 2 -name guest=web -drive file=%D/ov.qcow2,if=virtio,cache=writeback "
      "-cdrom "
      "%D/cd.raw -hdb %D/r.raw -nic user,model=virtio-net-pci -device qemu-xhci -device usb-tablet "
      "-device virtio-scsi-pci -drive if=none,id=x,file=%D/b.qcow2 -device scsi-hd,drive=x -object "
      "iothread,id=io "
      "-object rng-random,id=r,filename=/dev/urandom -device virtio-rng-pci,rng=r -chardev null,id=c "
      "-device virtio-serial -device virtserialport,chardev=c -serial null -vga std -watchdog-action reset",
      "7.2");
  qemu = qemu_start(words, FALSE);
  g_assert_nonnull(qemu);
  inventory = read_inventory(qemu);
  argv = parse(words);
  g_assert_true(dr_inventory_apply(inventory, argv, dir, findings, &error));
  dr_inventory_blockers(inventory, findings);
  dr_argv_blockers(argv, findings);
  dr_inventory_check_files(inventory, qemu->pid, dir, findings);
  assert_codes(findings, DR_FINDING_NOTE, "");
  for (char **word = words; *word; word++)
    if (g_str_equal(*word, "q35,smm=off"))
      *word = (g_free(*word), g_strdup_printf("%s,smm=off", dr_inventory_machine(inventory)));
  text = joined(argv);
  {
    g_autofree char *wanted = g_strjoinv(" ", words);
    g_autofree char *with_end = g_strconcat(wanted, " ", NULL);

    g_assert_cmpstr(text, ==, with_end);
  }
  g_clear_pointer(&qemu, qemu_free);
  end_case();
}

/* --- Comparing --- */

static const char *const base =
    Q35 "-smp 2 -cpu Haswell -device e1000,mac=52:54:00:00:00:01,id=e "
        "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=S,id=b";

static const struct {
  const char *argv;
  const char *codes;
} alarms[] = {
  { Q35 "-smp 2 -cpu Haswell -device e1000,mac=52:54:00:00:00:01,id=e "
        "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=S,id=b",
    "" },
  { Q35 "-smp 2 -cpu Haswell -device e1000,mac=52:54:00:00:00:01,id=e -drive file=%D/a.qcow2,if=none,id=x "
        "-device virtio-blk-pci,drive=x,serial=S,id=b -device e1000",
    "device" },
  { Q35 "-smp 2 -cpu Haswell -device e1000,mac=52:54:00:00:00:02,id=e "
        "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=S,id=b",
    "device-property" },
  { Q35 "-smp 2 -cpu Haswell -device e1000-82545em,mac=52:54:00:00:00:01,id=e "
        "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=S,id=b",
    "device" },
  { Q35 "-smp 2 -cpu Haswell -device e1000,mac=52:54:00:00:00:01,id=e "
        "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=T,id=b",
    "device-property" },
  { Q35 "-smp 2 -cpu Haswell -device e1000,mac=52:54:00:00:00:01,id=e "
        "-drive file=%D/b.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=S,id=b",
    "disk" },
  { Q35 "-smp 2 -cpu Haswell -device e1000,mac=52:54:00:00:00:01,id=e "
        "-drive file=%D/a.qcow2,if=none,id=x,readonly=on -device virtio-blk-pci,drive=x,serial=S,id=b",
    "disk" },
  { Q35 "-smp 2 -cpu Nehalem -device e1000,mac=52:54:00:00:00:01,id=e "
        "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=S,id=b",
    "cpu" },
  { Q35 "-smp 2 -cpu Haswell,-aes -device e1000,mac=52:54:00:00:00:01,id=e "
        "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=S,id=b",
    "cpu-features" },
  { Q35 "-smp 1 -cpu Haswell -device e1000,mac=52:54:00:00:00:01,id=e "
        "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=S,id=b",
    "cpu,device-property" },
  { "-machine pc-q35-6.2 -m 64 -nodefaults -smp 2 -cpu Haswell -device e1000,mac=52:54:00:00:00:01,id=e "
    "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=S,id=b",
    NULL },
  { Q35 "-m 72 -smp 2 -cpu Haswell -device e1000,mac=52:54:00:00:00:01,id=e "
        "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=S,id=b",
    "memory,ram-block,device-property" },
  { Q35
    "-smp 2 -cpu Haswell -device e1000,mac=52:54:00:00:00:01,id=e -uuid 01234567-89ab-cdef-0123-456789abcdef "
    "-drive file=%D/a.qcow2,if=none,id=x -device virtio-blk-pci,drive=x,serial=S,id=b",
    "uuid" },
};

static void
test_alarms(void)
{
  g_autofree char *binary = find_qemu("7.2");
  g_auto(GStrv) words = NULL;
  g_autoptr(Qemu) source = NULL;
  g_autoptr(DrInventory) before = NULL;

  begin_case();
  words = words_of(binary, base, "7.2");
  source = qemu_start(words, FALSE);
  g_assert_nonnull(source);
  before = read_inventory(source);
  for (guint i = 0; i < G_N_ELEMENTS(alarms); i++) {
    g_auto(GStrv) other = words_of(binary, alarms[i].argv, "7.2");
    g_autoptr(Qemu) destination = qemu_start(other, TRUE);
    g_autoptr(DrInventory) after = NULL;
    g_autoptr(DrFindings) findings = dr_findings_new();

    g_test_message("%s", alarms[i].argv);
    g_assert_nonnull(destination);
    after = read_inventory(destination);
    dr_inventory_compare(before, after, findings);
    if (alarms[i].codes)
      assert_codes(findings, DR_FINDING_BLOCKER, alarms[i].codes);
    else
      g_assert_true(dr_findings_block(findings));
  }
  g_clear_pointer(&source, qemu_free);
  end_case();
}

/* The same command line in every pair of versions: no false alarm. */
static const char *const same_lines[] = {
  "-machine pc-q35-%M -m 64",
  "-machine pc-i440fx-%M -m 64",
  Q35 "-drive file=%D/a.qcow2,if=virtio -cdrom %D/cd.raw -hda %D/b.qcow2 -device virtio-net-pci -device "
      "e1000e -vga std",
  Q35
  "-device pcie-root-port,id=rp,chassis=1 -device virtio-net-pci,bus=rp -device qemu-xhci -device usb-tablet "
  "-drive if=none,id=u,file=%D/r.raw,format=raw -device usb-storage,drive=u -vga virtio",
  Q35 "-device virtio-scsi-pci -drive if=none,id=x,file=%D/a.qcow2 -device scsi-hd,drive=x,serial=S -device "
      "scsi-cd -device lsi "
      "-device virtio-serial -chardev null,id=c -device virtserialport,chardev=c -device virtio-rng-pci "
      "-device virtio-balloon-pci "
      "-device ich9-usb-ehci1 -device i6300esb -device pvpanic -vga cirrus",
  PC "-usb -hda %D/a.qcow2 -fda %D/r.raw -device usb-tablet -device pci-bridge,chassis_nr=1,id=br -device "
     "e1000,bus=br,addr=3 "
     "-device rtl8139 -device isa-debugcon,chardev=c -chardev null,id=c -rtc base=localtime,driftfix=slew",
  Q35 "-drive if=pflash,format=raw,unit=0,file=%D/r.raw,readonly=on -drive "
      "if=pflash,format=raw,unit=1,file=%D/t.raw",
  Q35 "-blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=%D/a.qcow2 -object iothread,id=io "
      "-device virtio-blk-pci,drive=n,iothread=io -device ide-cd,id=cd",
  Q35 "-smp 2 -object memory-backend-ram,id=m0,size=32M -object memory-backend-ram,id=m1,size=32M "
      "-numa node,memdev=m0,cpus=0 -numa node,memdev=m1,cpus=1",
};

static void
compare_pair(const DrInventory *before, const DrInventory *after)
{
  g_autoptr(DrFindings) findings = dr_findings_new();

  dr_inventory_compare(before, after, findings);
  assert_codes(findings, DR_FINDING_WARNING, "");
}

/* All versions that know the machine type of `oldest`, side by side. */
static void
test_same(gconstpointer data)
{
  guint oldest = GPOINTER_TO_UINT(data), from = oldest;

  for (guint line = 0; line < G_N_ELEMENTS(same_lines); line++) {
    Qemu *qemus[G_N_ELEMENTS(versions)] = { 0 };
    DrInventory *inventories[G_N_ELEMENTS(versions)] = { 0 };

    begin_case();
    for (guint i = from; i < G_N_ELEMENTS(versions); i++) {
      g_autofree char *binary = find_qemu(versions[i]);
      g_auto(GStrv) words = binary ? words_of(binary, same_lines[line], versions[oldest]) : NULL;

      qemus[i] = words ? qemu_start(words, i > from) : NULL;
      g_assert_true(!words || qemus[i]);
      inventories[i] = qemus[i] ? read_inventory(qemus[i]) : NULL;
    }
    for (guint i = from; i < G_N_ELEMENTS(versions); i++)
      for (guint n = from; n < G_N_ELEMENTS(versions); n++)
        if (i != n && inventories[i] && inventories[n]) {
          g_test_message("%s -> %s: %s", versions[i], versions[n], same_lines[line]);
          compare_pair(inventories[i], inventories[n]);
        }
    for (guint i = from; i < G_N_ELEMENTS(versions); i++) {
      dr_inventory_free(inventories[i]);
      if (qemus[i])
        qemu_free(qemus[i]);
    }
    end_case();
  }
}

/* --- Blockers --- */

static const struct {
  const char *argv;
  const char *codes;
} blocked[] = {
  { Q35 "-object memory-backend-ram,id=m,size=1M,share=on -device ivshmem-plain,memdev=m",
    "ivshmem,qemu-blocker" },
  { Q35 "-netdev socket,id=s,mcast=230.0.0.1:1234 -device e1000,netdev=s", "" },
  { Q35 "-netdev socket,id=s,udp=127.0.0.1:9,localaddr=127.0.0.1:0 -device e1000,netdev=s", "netdev-dgram" },
  { Q35 "-netdev dgram,id=s,local.type=unix,local.path=%D/mcast=,remote.type=unix,remote.path=%D/r -device "
        "e1000,netdev=s",
    "netdev-dgram" },
  { Q35 "-netdev dgram,id=s,local.type=inet,local.host=127.0.0.1,local.port=0,remote.type=inet,remote.host="
        "127.0.0.1,remote.port=9 -device e1000,netdev=s",
    "netdev-dgram" },
  { Q35 "-netdev dgram,id=s,remote.type=inet,remote.host=230.0.0.1,remote.port=1234 -device e1000,netdev=s",
    "" },
  { Q35 "-object filter-dump,id=d,netdev=s,file=%D/pcap -netdev user,id=s -device e1000,netdev=s",
    "filter-dump" },
  { Q35 "-netdev socket,id=s,listen=127.0.0.1:0 -device e1000,netdev=s", "netdev-socket" },
  { Q35 "-drive if=none,id=x,file=%D/a.qcow2 -device nvme,drive=x,serial=1", "nvme" },
  { Q35 "-virtfs local,path=%D,mount_tag=t,security_model=none", "virtio-9p" },
  { Q35 "-device qemu-xhci -device usb-mtp,rootdir=%D", "device" },
  { Q35 "-drive file=%D/a.qcow2,if=virtio,snapshot=on", "snapshot" },
  { Q35 "-hda %D/a.qcow2 -snapshot", "snapshot" },
};

static void
test_blockers(void)
{
  g_autofree char *binary = find_qemu("7.2");

  for (guint i = 0; i < G_N_ELEMENTS(blocked); i++) {
    g_auto(GStrv) words = NULL;
    g_autoptr(Qemu) qemu = NULL;
    g_autoptr(DrInventory) inventory = NULL;
    g_autoptr(DrFindings) findings = dr_findings_new();
    g_autoptr(DrArgv) argv = NULL;

    begin_case();
    words = words_of(binary, blocked[i].argv, "7.2");
    qemu = qemu_start(words, FALSE);
    g_assert_nonnull(qemu);
    inventory = read_inventory(qemu);
    argv = apply(inventory, words, binary, "");
    dr_inventory_blockers(inventory, findings);
    dr_argv_blockers(argv, findings);
    assert_codes(findings, DR_FINDING_BLOCKER, blocked[i].codes);
    for (guint n = 0; n < dr_findings_count(findings); n++)
      g_assert_nonnull(dr_findings_get(findings, n)->remedy);
    g_clear_pointer(&qemu, qemu_free);
    end_case();
  }
}

static void
test_argv_blockers(void)
{
  static const struct {
    const char *line, *codes;
  } lines[] = {
    { "-m 64 -vga std -display gtk", "" },
    { "-readconfig x.cfg", "readconfig" },
    { "-spice port=5900", "spice" },
    { "-display curses", "curses" },
    { "-tpmdev emulator,id=t,chardev=c", "tpm" },
    { "-machine q35,confidential-guest-support=sev0", "confidential" },
  };

  for (guint i = 0; i < G_N_ELEMENTS(lines); i++) {
    g_auto(GStrv) words = words_of("qemu-system-x86_64", lines[i].line, "7.2");
    g_autoptr(DrArgv) argv = parse(words);
    g_autoptr(DrFindings) findings = dr_findings_new();

    dr_argv_blockers(argv, findings);
    assert_codes(findings, DR_FINDING_NOTE, lines[i].codes);
  }
}

/* --- Files below a running guest --- */

static void
test_files(void)
{
  g_autofree char *binary = find_qemu("7.2"), *image = NULL, *moved = NULL;
  g_auto(GStrv) words = NULL;
  g_autoptr(Qemu) qemu = NULL;
  g_autoptr(DrInventory) inventory = NULL;
  g_autoptr(DrFindings) fine = dr_findings_new(), missing = dr_findings_new(), replaced = dr_findings_new();

  begin_case();
  words = words_of(binary, DRIVE, "7.2");
  qemu = qemu_start(words, FALSE);
  g_assert_nonnull(qemu);
  inventory = read_inventory(qemu);
  dr_inventory_check_files(inventory, qemu->pid, dir, fine);
  assert_codes(fine, DR_FINDING_NOTE, "");
  image = g_build_filename(dir, "a.qcow2", NULL);
  moved = g_build_filename(dir, "moved.qcow2", NULL);
  g_assert_cmpint(g_rename(image, moved), ==, 0);
  dr_inventory_check_files(inventory, qemu->pid, dir, missing);
  assert_codes(missing, DR_FINDING_NOTE, "disk-missing");
  run("qemu-img create -q -f qcow2 %s 4M", image);
  dr_inventory_check_files(inventory, qemu->pid, dir, replaced);
  assert_codes(replaced, DR_FINDING_NOTE, "disk-replaced");
  g_clear_pointer(&qemu, qemu_free);
  end_case();
}

/* --- Main --- */

/* From the floor to itself and to the newest, from the oldest to the floor; with `-m slow` all there are. */
static gboolean
is_usual_pair(const char *from, const char *to)
{
  return g_str_equal(from, "7.2") ? g_str_equal(to, "7.2") || g_str_equal(to, "11.1")
                                  : g_str_equal(from, "5.2") && g_str_equal(to, "7.2");
}

static void
add_cases(const char *group, const Case *cases, guint n)
{
  for (guint from = 0; from < G_N_ELEMENTS(versions); from++)
    for (guint to = 0; to < G_N_ELEMENTS(versions); to++) {
      g_autofree char *one = find_qemu(versions[from]), *two = find_qemu(versions[to]);
      gboolean wanted = g_test_slow() || is_usual_pair(versions[from], versions[to]);

      for (guint i = 0; one && two && wanted && i < n; i++) {
        g_autofree char *path =
            g_strdup_printf("/inventory/%s/%s/%s-to-%s", group, cases[i].name, versions[from], versions[to]);
        Run *what = g_new(Run, 1);

        *what = (Run){ &cases[i], versions[from], versions[to] };
        g_test_add_data_func_full(path, what, run_case, g_free);
      }
    }
}

static void
test_missing(gconstpointer version)
{
  g_autofree char *why = g_strdup_printf("QEMU %s is not here: tests/tools/fetch-qemu %s",
                                         (const char *)version, (const char *)version);

  g_test_skip(why);
}

static void
add_versions(void)
{
  for (guint i = 0; i < G_N_ELEMENTS(versions); i++) {
    g_autofree char *path = g_strdup_printf("/inventory/same/%s", versions[i]);
    g_autofree char *binary = find_qemu(versions[i]);

    if (binary)
      g_test_add_data_func(path, GUINT_TO_POINTER(i), test_same);
    else
      g_test_add_data_func(path, versions[i], test_missing);
  }
}

static void
test_nothing(void)
{
  g_test_skip("needs qemu-system-x86_64 7.2 and qemu-img");
}

int
main(int argc, char **argv)
{
  g_autofree char *qemu = find_qemu("7.2"), *img = g_find_program_in_path("qemu-img");

  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/inventory/argv-blockers", test_argv_blockers);
  if (!qemu || !img) {
    g_test_add_func("/inventory/qemu", test_nothing);
    return g_test_run();
  }
  g_test_add_func("/inventory/read", test_read);
  g_test_add_func("/inventory/plain", test_plain);
  g_test_add_func("/inventory/alarms", test_alarms);
  g_test_add_func("/inventory/blockers", test_blockers);
  g_test_add_func("/inventory/files", test_files);
  add_cases("disk", disk_cases, G_N_ELEMENTS(disk_cases));
  add_cases("plug", plug_cases, G_N_ELEMENTS(plug_cases));
  add_versions();
  return g_test_run();
}
