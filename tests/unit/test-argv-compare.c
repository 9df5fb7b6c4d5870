/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which differences between two command lines the guest could see, and which it could not. */
#include "test-argv-util.h"

#define JSON_NIC                                                                                             \
  "'{\"driver\":\"virtio-net-pci\",\"netdev\":\"n\",\"mac\":\"52:54:00:AA:00:01\",\"addr\":\"0x3\",\"mq\":"  \
  "true}'"

static GPtrArray *
compare(const char *a, const char *b)
{
  g_autofree char *line_a = g_strconcat("qemu ", a, NULL), *line_b = g_strconcat("/new/qemu ", b, NULL);
  g_autoptr(DrArgv) argv_a = argv_from_line(line_a), argv_b = argv_from_line(line_b);

  return dr_argv_compare(argv_a, argv_b);
}

static void
test_equal(void)
{
  static const char *const cases[][2] = {
    { "", "" },
    { "-M q35", "-machine type=q35" },
    { "-M q35,usb=on,hpet=off", "-M hpet=no -machine q35 -usb" },
    { "-M q35 -no-hpet -no-acpi", "-M q35,hpet=off,acpi=off" },
    { "-M q35,accel=kvm", "-enable-kvm -M q35" },
    { "-M q35,accel=kvm:tcg", "-accel kvm -accel tcg,tb-size=100 -M q35" },
    { "-M q35", "-M q35 -accel tcg,thread=single" },
    { "-M q35,kernel_irqchip=split,accel=kvm", "-M q35 -accel kvm,kernel-irqchip=split" },
    { "-M q35,memory-backend=pc.ram -object memory-backend-file,id=pc.ram,size=1G,share=on,mem-path=/x -m 1G",
      "-M q35 -m 1024" },
    { "-m 1G", "-m size=1048576k" },
    { "-m 128", "" },
    { "-m 1G,slots=2,maxmem=4G", "-m 1G -m slots=2,maxmem=4294967296" },
    { "-smp 4", "-smp cpus=4,maxcpus=4" },
    { "-smp 8,sockets=2,cores=4", "-smp 8,sockets=2,cores=4,threads=1,dies=1,maxcpus=8" },
    { "-smp sockets=2,cores=2", "-smp 4,cores=2,sockets=2" },
    { "-cpu qemu64", "" },
    { "-cpu max,+avx,-sse4_1", "-cpu max,sse4.1=off,avx=on" },
    { "-cpu host -cpu max,hv_time", "-cpu max,hv-time=on" },
    { "-device " JSON_NIC, "-device virtio-net-pci,addr=3.0,mac=52:54:00:aa:00:01,netdev=other,mq=on" },
    { "-device virtio-net,id=a,netdev=x", "-device virtio-net-pci,netdev=y" },
    { "-device e1000,addr=3,id=a -device VGA,addr=2,id=b",
      "-device VGA,addr=2,id=b -device e1000,addr=3,id=a" },
    { "-device usb-tablet -device e1000", "-device e1000 -device usb-tablet" },
    { "-drive file=/a,if=none,id=d,cache=none,aio=native -device virtio-blk-pci,drive=d,id=x",
      "-blockdev driver=file,node-name=n,filename=/b -device virtio-blk-pci,drive=n,id=x,werror=stop" },
    { "-hda a.img -cdrom c.iso", "-drive file=b.img -drive file=d.iso,media=cdrom,index=2,cache=none" },
    { "a.img", "-drive if=ide,bus=0,unit=0,file=b.img" },
    { "-drive if=pflash,file=a,unit=0 -drive if=pflash,file=b,unit=1", "-pflash a -pflash c" },
    { "-uuid AABBCCDD-1122-3344-5566-778899AABBCC", "-uuid aabbccdd-1122-3344-5566-778899aabbcc" },
    { "-smbios type=1,serial=a -smbios type=1,sku=b", "-smbios type=1,sku=b,serial=a" },
    { "-rtc base=utc", "" },
    { "-global a.b=on", "-global driver=a,property=b,value=on" },
    { "-global a.b=off -global a.b=on", "-global a.b=true" },
    { "-global migration.x=1", "" },
    { "-numa node,mem=1G", "-object memory-backend-ram,id=m,size=1G -numa node,memdev=m,nodeid=0" },
    { "-numa dist,src=0,dst=1,val=20", "-numa dist,dst=1,val=20,src=0" },
    { "-serial stdio", "-serial unix:/x,server=on" },
    { "-serial stdio", "" },
    { "-serial null -nodefaults", "-nodefaults -serial chardev:c -chardev null,id=c" },
    { "-kernel k -append x", "-M kernel=k,append=x" },
    { "-bios /a", "-M firmware=/a" },
    { "-nic user,model=e1000,hostfwd=tcp::1-:1", "-nic tap,model=e1000,ifname=t" },
    { "-netdev user,id=n,net=10.0.0.0/24,hostfwd=tcp::1-:1", "-netdev user,id=n,net=10.0.0.0/24" },
    { "-object memory-backend-file,id=m,size=1G,mem-path=/a -device pc-dimm,memdev=m,id=d",
      "-object memory-backend-ram,id=q,size=1024M -device pc-dimm,memdev=q,id=d" },
    { "-name a -vnc :1 -display none -qmp stdio -S -pidfile x -daemonize -D /l -d int -k de -msg "
      "timestamp=on -sandbox on "
      "-incoming defer -no-reboot -runas u -chroot / -monitor none -L /x -trace a -add-fd fd=3,set=1 "
      "-mem-prealloc",
      "-spice port=1 -gdb tcp::1 -run-with user=x -overcommit mem-lock=on -only-migratable -no-shutdown" },
  };

  for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
    for (int turn = 0; turn < 2; turn++) {
      g_autoptr(GPtrArray) diffs = compare(cases[i][turn], cases[i][!turn]);

      for (guint k = 0; k < diffs->len; k++)
        g_test_message("%s | %s: %s", cases[i][turn], cases[i][!turn], ((DrArgvDiff *)diffs->pdata[k])->text);
      g_assert_cmpuint(diffs->len, ==, 0);
    }
  }
}

/* One difference each, in both directions. */
static void
test_different(void)
{
  static const struct {
    const char *a, *b, *option, *key, *value_a, *value_b;
  } cases[] = {
    { "-M pc-q35-7.2", "-M pc-q35-8.0", "machine", "type", "pc-q35-7.2", "pc-q35-8.0" },
    { "-M q35,smm=off", "-M q35", "machine", "smm", "off", NULL },
    { "-nographic", "-display none", "machine", "graphics", "off", NULL },
    { "-enable-kvm", "", "accel", "accel", "kvm", "tcg" },
    { "-cpu host,+avx", "-cpu host", "cpu", "avx", "on", NULL },
    { "-cpu host", "-cpu max", "cpu", "model", "host", "max" },
    { "-m 512", "-m 1G", "m", "size", "536870912", "1073741824" },
    { "-m 512,slots=1", "-m 512", "m", "slots", "1", NULL },
    { "-smp 2,maxcpus=4", "-smp 4", "smp", "cpus", "2", "4" },
    { "-device e1000,id=n", "", "device", "n", "e1000", NULL },
    { "-device e1000", "", "device", "e1000 #1", "e1000", NULL },
    { "-device e1000,id=n", "-device rtl8139,id=n", "device", "n driver", "e1000", "rtl8139" },
    { "-device e1000,id=n,mac=52:54:00:00:00:01", "-device e1000,id=n", "device", "n mac",
      "52:54:00:00:00:01", NULL },
    { "-device a,id=x,serial=012", "-device a,id=x,serial=12", "device", "x serial", "012", "12" },
    { "-device e1000,id=a -device VGA,id=b", "-device VGA,id=b -device e1000,id=a", "device", "order on pci",
      "a, b", "b, a" },
    { "-device usb-kbd,id=a -device usb-mouse,id=b", "-device usb-mouse,id=b -device usb-kbd,id=a", "device",
      "order on usb-", "a, b", "b, a" },
    { "-drive if=none,id=d,readonly=on,file=a -device virtio-blk,drive=d,id=x",
      "-drive if=none,id=d,file=a -device virtio-blk,drive=d,id=x", "device", "x read-only", "on", "off" },
    { "-blockdev driver=file,node-name=d,filename=a,read-only=on -device virtio-blk,drive=d,id=x",
      "-drive if=none,id=d,file=a -device virtio-blk,drive=d,id=x", "device", "x read-only", "on", "off" },
    { "-object memory-backend-ram,id=m,size=1G -device pc-dimm,memdev=m,id=d",
      "-object memory-backend-ram,id=m,size=2G -device pc-dimm,memdev=m,id=d", "device", "d memdev size",
      "1G", "2G" },
    { "-hda a", "", "drive", "ide0", "disk", NULL },
    { "-cdrom a", "-hdc a", "drive", "ide2", "cdrom", "disk" },
    { "-drive if=virtio,file=a,readonly=on", "-drive if=virtio,file=a", "drive", "virtio0 read-only", "on",
      NULL },
    { "-uuid 00000000-0000-0000-0000-000000000001", "", "uuid", NULL, "00000000-0000-0000-0000-000000000001",
      NULL },
    { "-vga std", "-vga none", "vga", NULL, "std", "none" },
    { "-smbios type=1,serial=0012", "-smbios type=1,serial=12", "smbios", "type 1 serial", "0012", "12" },
    { "-smbios type=11,value=a,value=b", "-smbios type=11,value=b", "smbios", "type 11 value", "a,b", "b" },
    { "-fw_cfg opt/a,string=x", "-fw_cfg opt/a,string=y", "fw_cfg", "opt/a", "x", "y" },
    { "-acpitable data=/a", "", "acpitable", "#1", "data=/a", NULL },
    { "-rtc base=localtime", "", "rtc", "base", "localtime", "utc" },
    { "-global a.b=1", "-global a.b=2", "global", "a.b", "1", "2" },
    { "-boot order=cd", "-boot order=dc", "boot", "order", "cd", "dc" },
    { "-numa node,mem=1G", "-numa node,mem=2G", "numa", "node 0 mem", "1073741824", "2147483648" },
    { "-append a", "-append b", "machine", "append", "a", "b" },
    { "-bios a", "", "machine", "firmware", "a", NULL },
    { "-serial none", "", "serial", "#1", NULL, "port" },
    { "-serial null -serial null", "-serial null", "serial", "#2", "port", NULL },
    { "-nic user,model=e1000,mac=00:00:00:00:00:01", "-nic user,model=e1000", "nic", "#1 mac",
      "00:00:00:00:00:01", NULL },
    { "-net nic,model=virtio -net user", "-net nic -net tap", "net", "#1 model", "virtio", NULL },
    { "-netdev user,id=n,net=10.0.0.0/24", "-netdev user,id=n", "netdev", "n net", "10.0.0.0/24", NULL },
    { "-set device.a.b=c", "", "set", "#1", "device.a.b=c", NULL },
    { "-readconfig a", "-readconfig b", "readconfig", "#1", "a", "b" },
    { "-overcommit cpu-pm=on", "", "overcommit", "cpu-pm", "on", NULL },
    { "-nodefaults -serial null -parallel null", "-serial null -parallel null", "nodefaults", NULL, "on",
      NULL },
    { "-debugcon null", "", "debugcon", NULL, "port", NULL },
    { "-object sev-guest,id=s,cbitpos=51", "", "object", "s", "cbitpos=51,id=s,qom-type=sev-guest", NULL },
    { "-usbdevice tablet", "", "usbdevice", "#1", "tablet", NULL },
    { "-icount shift=1", "", "icount", "shift", "1", NULL },
  };

  for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
    for (int turn = 0; turn < 2; turn++) {
      g_autoptr(GPtrArray) diffs = turn ? compare(cases[i].b, cases[i].a) : compare(cases[i].a, cases[i].b);
      const DrArgvDiff *diff;

      g_test_message("%s | %s", cases[i].a, cases[i].b);
      g_assert_cmpuint(diffs->len, >=, 1);
      diff = diffs->pdata[0];
      g_assert_cmpstr(diff->option, ==, cases[i].option);
      g_assert_cmpstr(turn ? diff->b : diff->a, ==, cases[i].value_a);
      g_assert_cmpstr(turn ? diff->a : diff->b, ==, cases[i].value_b);
      if (!strstr(diff->text, "order"))
        g_assert_cmpstr(diff->key, ==, cases[i].key);
    }
  }
}

static void
test_text(void)
{
  g_autoptr(GPtrArray) diffs = compare("-M a -device x,id=d", "-M b -uuid 1");
  static const char *const texts[] = {
    "-machine type is 'a' on the first and 'b' on the second",
    "-uuid is not given on the first and '1' on the second",
    "-device d is 'x' on the first and not given on the second",
  };

  g_assert_cmpuint(diffs->len, ==, G_N_ELEMENTS(texts));
  for (guint i = 0; i < diffs->len; i++)
    g_assert_cmpstr(((DrArgvDiff *)diffs->pdata[i])->text, ==, texts[i]);
  dr_argv_diff_free(NULL);
}

/* Two disks that have changed places: each name is there on both sides, so it is not a renaming. */
static void
test_swapped(void)
{
  g_autoptr(GPtrArray) diffs = compare(
      "-drive if=none,id=a,file=a -drive if=none,id=b,file=b -device x,id=1,drive=a -device x,id=2,drive=b",
      "-drive if=none,id=a,file=a -drive if=none,id=b,file=b -device x,id=1,drive=b -device x,id=2,drive=a");

  g_assert_cmpuint(diffs->len, ==, 2);
  g_assert_cmpstr(((DrArgvDiff *)diffs->pdata[0])->key, ==, "1 drive");
}

static void
check_self(const char *name, const char *const *words)
{
  g_autoptr(DrArgv) argv = dr_argv_parse(words, NULL), copy = dr_argv_copy(argv), empty = dr_argv_new("qemu");
  g_autoptr(GPtrArray) none = dr_argv_compare(argv, copy), forth = dr_argv_compare(argv, empty);
  g_autoptr(GPtrArray) back = dr_argv_compare(empty, argv);

  g_test_message("%s", name);
  g_assert_cmpuint(none->len, ==, 0);
  g_assert_cmpuint(forth->len, ==, back->len);
}

static void
test_files(void)
{
  argv_data_for_each(check_self);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/argv-compare/equal", test_equal);
  g_test_add_func("/argv-compare/different", test_different);
  g_test_add_func("/argv-compare/text", test_text);
  g_test_add_func("/argv-compare/swapped", test_swapped);
  g_test_add_func("/argv-compare/files", test_files);
  return g_test_run();
}
