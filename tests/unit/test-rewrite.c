/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rewriter: what `drover run` and an upgrade make of a command line. */
#include "argv/rewrite.h"

#include <string.h>

typedef struct {
  const char *given;  /* words, separated by one space */
  const char *first;  /* what the first start adds or changes: words that must be there; NULL: not tested */
  const char *beside; /* the same for a destination */
} Case;

static DrArgv *
parse(const char *text)
{
  g_auto(GStrv) words = g_strsplit(text, " ", -1);
  g_autoptr(GError) error = NULL;
  DrArgv *argv = dr_argv_parse((const char *const *)words, &error);

  g_assert_no_error(error);
  return argv;
}

static char *
print(const DrArgv *argv)
{
  g_auto(GStrv) words = dr_argv_to_strv(argv);
  g_autofree char *joined = g_strjoinv(" ", words);

  return g_strconcat(joined, " ", NULL);
}

static DrRewrite *
rewrite(const char *given, gboolean incoming, DrFindings *findings)
{
  g_autoptr(DrArgv) argv = parse(given);
  g_autoptr(GPtrArray) needs = dr_rewrite_needs(argv);
  g_autoptr(GError) error = NULL;
  DrRewritePlan plan = { .incoming = incoming,
                         .suffix = ".drover-2",
                         .qmp_path = "/r/qmp.2",
                         .console_path = "/r/console.2",
                         .needs = needs };
  DrRewrite *out;

  for (guint i = 0; i < needs->len; i++) {
    DrNeed *need = needs->pdata[i];
    int number = 40 + (int)i;

    if (need->kind != DR_NEED_FD)
      g_array_append_val(need->numbers, number);
  }
  out = dr_rewrite(argv, &plan, findings, &error);
  g_assert_no_error(error);
  return out;
}

static void
expect(const char *given, gboolean incoming, const char *wanted)
{
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autoptr(DrRewrite) out = rewrite(given, incoming, findings);
  g_autofree char *text = print(out->argv);
  g_auto(GStrv) phrases = g_strsplit(wanted, "|", -1);

  g_assert_false(dr_findings_block(findings));
  for (char **phrase = phrases; *phrase; phrase++) {
    gboolean absent = (*phrase)[0] == '!';
    g_autofree char *needle = g_strconcat(absent ? *phrase + 1 : *phrase, " ", NULL);

    if ((strstr(text, needle) != NULL) == absent)
      g_error("'%s' %s in: %s", needle, absent ? "is" : "is not", text);
  }
}

/* Phrases separated by '|'; one that begins with '!' must not be there. */
static const Case cases[] = {
  /* The program of nothing but defaults: a console, no monitor on a window. */
  { "qemu -m 64",
    "-chardev socket,id=drover-console,path=/r/console.2,server=on,wait=off|-serial "
    "chardev:drover-console|-monitor none|"
    "-chardev socket,id=drover-qmp,path=/r/qmp.2,server=on,wait=off|-mon "
    "chardev=drover-qmp,mode=control|!-incoming defer",
    "-S|-incoming defer" },
  { "qemu -nographic",
    "mux=on -serial chardev:drover-console|-mon chardev=drover-console,mode=readline|-nographic", NULL },
  { "qemu -nodefaults", "!-serial chardev:drover-console", "!-serial chardev:drover-console" },
  { "qemu -serial mon:stdio",
    "-mon chardev=drover-console,mode=readline|-serial chardev:drover-console|!mon:stdio", NULL },
  { "qemu -chardev stdio,id=c -serial chardev:c",
    "-chardev socket,id=c,path=/r/console.2,server=on,wait=off|-serial chardev:c", NULL },
  { "qemu -daemonize -pidfile /x", "!-daemonize|!-pidfile /x", "!-daemonize|!-pidfile /x" },
  /* Listeners: the user's path for the first, a private one for the second. */
  { "qemu -serial unix:/s,server,nowait", "-serial unix:/s,server,nowait",
    "-chardev socket,id=drover-serial0,path=/s.drover-2,server=on,wait=off|-serial chardev:drover-serial0" },
  { "qemu -qmp unix:/q,server=on,wait=off", "-qmp unix:/q,server=on,wait=off",
    "path=/q.drover-2,server=on,wait=off|-mon chardev=drover-qmp0,mode=control" },
  { "qemu -chardev socket,id=a,path=/a,server=on -device x,chardev=a", "path=/a,server=on",
    "path=/a.drover-2,server=on,wait=off" },
  { "qemu -serial file:/l", "-serial file:/l", "append=on|-serial chardev:drover-serial0" },
  /* A log beside the device is emptied by a QEMU that starts, whatever the device is. */
  { "qemu -chardev pty,id=p,logfile=/l -serial chardev:p", "logfile=/l|!logappend=on",
    "-chardev pty,id=p,logfile=/l,logappend=on" },
  { "qemu -chardev null,id=n,logfile=/l,logappend=off -serial chardev:n", "logappend=off",
    "-chardev null,id=n,logfile=/l,logappend=on" },
  { "qemu -chardev socket,id=s,path=/s,server=on,logfile=/l -serial chardev:s", NULL, "logappend=on" },
  { "qemu -chardev stdio,id=c,logfile=/l -serial chardev:c", "!logappend=on", "logappend=on" },
  { "qemu -serial tcp:h:1,logfile=/l", NULL, "logfile=/l,logappend=on|-serial chardev:drover-serial0" },
  { "qemu -d unimp -D /log", "-D /log", "-d unimp|!-D /log" },
  { "qemu -serial telnet:127.0.0.1:4444,server,nowait", "-serial telnet:127.0.0.1:4444,server,nowait",
    "-chardev socket,id=drover-serial0,fd=40,telnet=on,server=on,wait=off" },
  { "qemu -gdb tcp::1234 -s", "-gdb tcp::1234", "!-gdb tcp::1234|!-s" },
  /* Networks. */
  { "qemu -netdev user,id=n,hostfwd=tcp::2222-:22", "hostfwd=tcp::2222-:22",
    "-netdev user,id=n|!hostfwd=tcp::2222-:22" },
  { "qemu -netdev tap,id=n,ifname=t0,script=no,downscript=no", "ifname=t0,script=no,downscript=no",
    "-netdev tap,id=n,fd=40" },
  { "qemu -netdev bridge,id=n,br=br0", "bridge,id=n,br=br0", "-netdev tap,id=n,fd=40" },
  { "qemu -netdev tap,id=n,fd=7", "-netdev tap,id=n,fd=7", "-netdev tap,id=n,fd=7" },
  /* VNC waits on a private socket until the port is free. */
  { "qemu -vnc 127.0.0.1:3,id=v", "-vnc 127.0.0.1:3,id=v", "-vnc unix:/r/qmp.2.vnc1,id=v" },
  { "qemu -vnc unix:/v", "-vnc unix:/v", "-vnc unix:/v.drover-2" },
};

static void
test_cases(void)
{
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    if (cases[i].first)
      expect(cases[i].given, FALSE, cases[i].first);
    if (cases[i].beside)
      expect(cases[i].given, TRUE, cases[i].beside);
  }
}

static void
test_ram(void)
{
  static const struct {
    const char *given, *id, *wanted;
  } ram[] = {
    { "qemu -m 64", "pc.ram",
      "-object memory-backend-file,id=pc.ram,size=67108864,mem-path=/proc/self/fd/20,share=on -machine "
      "memory-backend=pc.ram " },
    { "qemu -object memory-backend-ram,id=m0,size=64M -machine q35,memory-backend=m0", "m0",
      "-object memory-backend-file,id=m0,size=64M,mem-path=/proc/self/fd/20,share=on " },
    { "qemu -object memory-backend-memfd,id=m0,size=64M,hugetlb=on,hugetlbsize=2M,host-nodes=0,policy=bind",
      "m0",
      "-object "
      "memory-backend-file,id=m0,size=64M,host-nodes=0,policy=bind,mem-path=/proc/self/fd/20,share=on " },
  };

  for (guint i = 0; i < G_N_ELEMENTS(ram); i++) {
    g_autoptr(DrArgv) argv = parse(ram[i].given);
    g_autoptr(DrFindings) findings = dr_findings_new();
    g_autoptr(GError) error = NULL;
    DrRewriteRam block = { .id = ram[i].id, .size = 64 << 20, .fd = 20 };
    DrRewritePlan plan = { .qmp_path = "/q", .console_path = "/c", .ram = &block, .n_ram = 1 };
    g_autoptr(DrRewrite) out = dr_rewrite(argv, &plan, findings, &error);
    g_autofree char *text = NULL;

    g_assert_no_error(error);
    text = print(out->argv);
    if (!strstr(text, ram[i].wanted))
      g_error("'%s' is not in: %s", ram[i].wanted, text);
  }
}

static void
test_switchover(void)
{
  static const struct {
    const char *given;
    DrSwitchover switchover;
    const char *wanted;
    gboolean off;
  } all[] = {
    { "qemu -M microvm", DR_SWITCHOVER_AS_GIVEN, NULL, FALSE },
    { "qemu -M microvm", DR_SWITCHOVER_OFF, "-global migration.send-switchover-start=off ", TRUE },
    { "qemu -M microvm", DR_SWITCHOVER_UNKNOWN, NULL, FALSE },
    { "qemu -global migration.send-switchover-start=on", DR_SWITCHOVER_OFF, "=on ", FALSE },
    { "qemu -global driver=migration,property=send-switchover-start,value=off", DR_SWITCHOVER_AS_GIVEN,
      "value=off ", TRUE },
    { "qemu -global migration.send-switchover-start=off", DR_SWITCHOVER_UNKNOWN, NULL, FALSE },
    { "qemu -global migration.x=off -global isa.send-switchover-start=off", DR_SWITCHOVER_UNKNOWN,
      "isa.send-switchover-start=off ", FALSE },
  };

  for (guint i = 0; i < G_N_ELEMENTS(all); i++) {
    g_autoptr(DrArgv) argv = parse(all[i].given);
    g_autoptr(DrFindings) findings = dr_findings_new();
    g_autoptr(GError) error = NULL;
    DrRewritePlan plan = { .qmp_path = "/q", .console_path = "/c", .switchover = all[i].switchover };
    g_autoptr(DrRewrite) out = dr_rewrite(argv, &plan, findings, &error);
    g_autofree char *text = NULL;

    g_assert_no_error(error);
    text = print(out->argv);
    g_assert_cmpint(dr_argv_switchover_is_off(out->argv), ==, all[i].off);
    if (all[i].wanted ? !strstr(text, all[i].wanted) : strstr(text, "switchover") != NULL)
      g_error("case %u: %s", i, text);
  }
}

static void
test_needs(void)
{
  static const struct {
    const char *given, *ifname, *bridge;
    int fd; /* -1: the queues of a tap */
  } all[] = {
    { "qemu -netdev tap,id=n,ifname=t0,script=no", "t0", NULL, -1 },
    { "qemu -netdev bridge,id=n", NULL, "br0", -1 },
    { "qemu -nic bridge,br=br7,model=virtio-net-pci", NULL, "br7", -1 },
    { "qemu -netdev tap,id=n,helper=/h", NULL, "br0", -1 },
    { "qemu -netdev tap,id=n,br=br7", NULL, "br7", -1 },
    { "qemu -netdev tap,id=n", NULL, NULL, -1 },
    { "qemu -netdev dgram,id=n,local.type=fd,local.str=7", NULL, NULL, 7 },
  };

  for (guint i = 0; i < G_N_ELEMENTS(all); i++) {
    g_autoptr(DrArgv) argv = parse(all[i].given);
    g_autoptr(GPtrArray) needs = dr_rewrite_needs(argv);
    const DrNeed *need;

    g_assert_cmpuint(needs->len, ==, 1);
    need = needs->pdata[0];
    g_assert_cmpint(need->kind, ==, all[i].fd < 0 ? DR_NEED_TAP : DR_NEED_FD);
    g_assert_cmpint(need->fd, ==, all[i].fd);
    g_assert_cmpstr(need->ifname, ==, all[i].ifname);
    g_assert_cmpstr(need->bridge, ==, all[i].bridge);
  }
}

static void
test_blockers(void)
{
  static const char *const blocked[] = { "qemu -serial udp::1@:2", "qemu -serial pipe:/p",
                                         "qemu -serial /dev/ttyS0", "qemu -vnc :1,websocket=on",
                                         "qemu -vnc unix:/v -vnc :1,id=b" };

  for (guint i = 0; i < G_N_ELEMENTS(blocked); i++) {
    g_autoptr(DrFindings) findings = dr_findings_new();
    g_autoptr(DrRewrite) out = rewrite(blocked[i], TRUE, findings);

    if (!dr_findings_block(findings))
      g_error("not blocked: %s", blocked[i]);
  }
}

static void
test_after(void)
{
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autoptr(DrRewrite) out =
      rewrite("qemu -s -pidfile /p -vnc 127.0.0.1:5,to=9 -serial unix:/s,server,nowait", TRUE, findings);
  const DrRename *item;
  const DrVncAddress *vnc;

  g_assert_cmpstr(out->pidfile, ==, "/p");
  g_assert_cmpstr(out->gdb, ==, "tcp::1234");
  g_assert_cmpuint(out->renames->len, ==, 1);
  item = out->renames->pdata[0];
  g_assert_cmpstr(item->private_path, ==, "/s.drover-2");
  g_assert_cmpstr(item->public_path, ==, "/s");
  g_assert_cmpuint(out->vnc->len, ==, 1);
  vnc = out->vnc->pdata[0];
  g_assert_cmpstr(vnc->host, ==, "127.0.0.1");
  g_assert_cmpstr(vnc->port, ==, "5905");
  g_assert_true(vnc->range);
  g_assert_cmpstr(out->console_public, ==, "/s");
}

/* A destination's own destination: what drover made of a command line is rewritten to the same again. */
static void
test_untouched(void)
{
  const char *given = "qemu -machine pc-q35-7.2 -m 64 -device virtio-rng-pci -name x,debug-threads=on";
  g_autoptr(DrArgv) argv = parse(given);
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autoptr(DrRewrite) out = rewrite(given, TRUE, findings);

  for (guint i = 0; i < dr_argv_n(argv); i++) {
    g_assert_cmpstr(dr_argv_opt(argv, i)->spelling, ==, dr_argv_opt(out->argv, i)->spelling);
    g_assert_cmpstr(dr_argv_opt(argv, i)->value, ==, dr_argv_opt(out->argv, i)->value);
  }
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/rewrite/cases", test_cases);
  g_test_add_func("/rewrite/ram", test_ram);
  g_test_add_func("/rewrite/switchover", test_switchover);
  g_test_add_func("/rewrite/needs", test_needs);
  g_test_add_func("/rewrite/blockers", test_blockers);
  g_test_add_func("/rewrite/after", test_after);
  g_test_add_func("/rewrite/untouched", test_untouched);
  return g_test_run();
}
