/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sub-options: reading, changing and printing all four forms, and values by QEMU's rules. */
#include "test-argv-util.h"

static DrOpts *
parse(const char *name, const char *value)
{
  g_autoptr(GError) error = NULL;
  DrOpts *opts = dr_opts_parse(name, value, &error);

  g_assert_no_error(error);
  return opts;
}

static void
assert_printed(const DrOpts *opts, const char *expected)
{
  g_autofree char *text = dr_opts_print(opts);

  g_assert_cmpstr(text, ==, expected);
}

/* "key=value|key=value" of all entries. */
static char *
flat(const DrOpts *opts)
{
  GString *out = g_string_new(NULL);

  for (guint i = 0; i < dr_opts_n(opts); i++)
    g_string_append_printf(out, "%s%s=%s", i ? "|" : "", dr_opts_key(opts, i), dr_opts_value(opts, i));
  return g_string_free(out, FALSE);
}

static void
test_read(void)
{
  static const struct {
    const char *option, *value, *flat;
  } cases[] = {
    { "machine", "q35", "type=q35" },
    { "-M", "type=q35,usb=on", "type=q35|usb=on" },
    { "machine", "usb=on,q35", "usb=on|q35=on" },
    { "device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01",
      "driver=virtio-net-pci|netdev=n0|mac=52:54:00:00:00:01" },
    { "device", "driver=e1000,x=", "driver=e1000|x=" },
    { "netdev", "user,id=n,restrict", "type=user|id=n|restrict=on" },
    { "chardev", "socket,id=c,path=/a,,b,server,nowait", "backend=socket|id=c|path=/a,b|server=on|wait=off" },
    { "m", "2G,slots=2", "size=2G|slots=2" },
    { "smp", "4,sockets=1", "cpus=4|sockets=1" },
    { "accel", "kvm", "accel=kvm" },
    { "name", "a,,b,process=c", "guest=a,b|process=c" },
    { "vnc", "unix:/x,password=on", "vnc=unix:/x|password=on" },
    { "display", "vnc=:1,to=3", "vnc=:1|to=3" },
    { "drive", "disk.img", "disk.img=on" },
    { "drive", "file=a,,b=c,if=none", "file=a,b=c|if=none" },
    { "rtc", "base=utc", "base=utc" },
    { "acpitable", "/a:/b", "data=/a:/b" },
    { "fw_cfg", "opt/a,string=x", "name=opt/a|string=x" },
    { "boot", "dc,menu=on", "order=dc|menu=on" },
    { "sandbox", "on,spawn=deny", "enable=on|spawn=deny" },
    { "blockdev", "qcow2,file.driver=nbd,file.server.host=h",
      "driver=qcow2|file.driver=nbd|file.server.host=h" },
    { "smbios", "type=11,value=a,value=b", "type=11|value=a|value=b" },
    { "m", "", "" },
    { "device", ",,", "driver=," },
    { "chardev", ",id=x", "backend=|id=x" },
    { "drive", ",,x,", "=on|=on|x=on" },
    { "device", "a,b,,c=d,", "driver=a|b=on|=on|c=d" },
    { "cpu", "host", "model=host" },
    { "cpu", "max,+avx,-sse,hv_spinlocks=0x1fff,enforce,nonstop,",
      "model=max|avx=on|sse=off|hv_spinlocks=0x1fff|enforce=on|nonstop=on|=on" },
    { "global", "kvm-pit.lost_tick_policy=discard",
      "driver=kvm-pit|property=lost_tick_policy|value=discard" },
    { "global", "a.b=c,d=e,,f", "driver=a|property=b|value=c,d=e,,f" },
    { "global", "a.b.c=d", "driver=a|property=b.c|value=d" },
    { "global", "driver=a,property=b,value=c", "driver=a|property=b|value=c" },
    { "global", "nothing", "thing=off" },
    { "device",
      "{\"driver\":\"a\",\"n\":3,\"t\":true,\"f\":false,\"z\":null,\"o\":{\"p\":[1,\"x\",{\"q\":\"r\"}],"
      "\"e\":[],\"g\":{}}}",
      "driver=a|n=3|t=on|f=off|z=|o.p.0=1|o.p.1=x|o.p.2.q=r|o.e=[]|o.g={}" },
    { "device", "{'driver':\"a'b\",'x':'\\u00e4\\ud83d\\ude00\\n\\''}", "driver=a'b|x=ä😀\n'" },
    { "device", " {\"driver\":\"a\"}", "driver= {\"driver\":\"a\"}" },
    { "machine", "{\"type\":\"q35\"}", "type={\"type\":\"q35\"}" },
  };

  for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(DrOpts) opts = parse(cases[i].option, cases[i].value), copy = dr_opts_copy(opts);
    g_autofree char *text = flat(opts);

    g_assert_cmpstr(text, ==, cases[i].flat);
    assert_printed(opts, cases[i].value);
    assert_printed(copy, cases[i].value);
  }
}

static void
test_errors(void)
{
  static const struct {
    const char *option, *value, *message;
  } cases[] = {
    { "nothing", "", "unknown option 'nothing'" },
    { "kernel", "x", "option '-kernel' has no sub-options" },
    { "serial", "x", "option '-serial' has no sub-options" },
    { "-S", "", "option '-S' has no sub-options" },
    { "device", "{",
      "cannot read the value of '-device': not valid JSON: a key in quotes is missing at byte 1" },
    { "device", "{\"a\":1,\"a\":2}",
      "cannot read the value of '-device': not valid JSON: duplicate key at byte 10" },
    { "device", "{\"a\":1} x",
      "cannot read the value of '-device': not valid JSON: something follows the value at byte 8" },
    { "object", "{\"a\":01}",
      "cannot read the value of '-object': not valid JSON: ',' or '}' is missing at byte 6" },
    { "netdev", "{\"a\" 1}", "cannot read the value of '-netdev': not valid JSON: ':' is missing at byte 5" },
    { "netdev", "{\"a\":tru}",
      "cannot read the value of '-netdev': not valid JSON: unexpected character at byte 5" },
    { "netdev", "{\"a\":\"\\ud800\"}",
      "cannot read the value of '-netdev': not valid JSON: bad escape at byte 12" },
    { "netdev", "{\"a\":\"x",
      "cannot read the value of '-netdev': not valid JSON: unfinished string at byte 7" },
    { "netdev", "{\"a\":[1,]}",
      "cannot read the value of '-netdev': not valid JSON: unexpected character at byte 8" },
    { "netdev", "{\"a\":1,}",
      "cannot read the value of '-netdev': not valid JSON: a key in quotes is missing at byte 7" },
  };
  g_autoptr(GError) error = NULL;
  g_autoptr(GString) deep = g_string_new("{\"a\":");

  for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_assert_null(dr_opts_parse(cases[i].option, cases[i].value, &error));
    assert_invalid(&error, cases[i].message);
  }
  for (int i = 0; i < 100000; i++)
    g_string_append_c(deep, '[');
  g_assert_null(dr_opts_parse("device", deep->str, &error));
  g_assert_nonnull(strstr(error->message, "nested too deep"));
}

static void
test_change_keyval(void)
{
  static const struct {
    const char *option, *before, *key, *value, *after; /* value NULL: unset */
  } cases[] = {
    { "machine", "q35,usb=on", "type", "pc-q35-7.2", "pc-q35-7.2,usb=on" },
    { "machine", "q35,usb=on", "usb", "off", "q35,usb=off" },
    { "machine", "usb=on", "type", "q35", "usb=on,type=q35" },
    { "machine", "q35", "x", "a,b", "q35,x=a,,b" },
    { "machine", "q35", "type", "a=b", "type=a=b" },
    { "machine", "q35", "type", "", "type=" },
    { "machine", "q35,usb", "type", NULL, "usb=on" },
    { "chardev", "socket,server,nowait,path=/a", "server", "on", "socket,server,nowait,path=/a" },
    { "chardev", "socket,server,nowait,path=/a", "wait", "off", "socket,server,nowait,path=/a" },
    { "chardev", "socket,server,nowait,path=/a", "wait", "on", "socket,server,wait=on,path=/a" },
    { "chardev", "socket,server,nowait,path=/a", "path", "/b,c", "socket,server,nowait,path=/b,,c" },
    { "chardev", "socket,server,nowait", "backend", NULL, "server=on,nowait" },
    { "netdev", "user,hostfwd=a,id=n,hostfwd=b", "hostfwd", NULL, "user,id=n" },
    { "netdev", "user,hostfwd=a,id=n,hostfwd=b", "hostfwd", "c", "user,hostfwd=c,id=n" },
    { "blockdev", "driver=qcow2,file.driver=file,file.filename=/x", "file", NULL, "driver=qcow2" },
    { "blockdev", "driver=qcow2,file.driver=file,file.filename=/x", "file", "node",
      "driver=qcow2,file=node" },
    { "device", "a,id=b,", "id", NULL, "a," },
    { "cpu", "host,+avx,-sse,x=on,enforce", "model", "max", "max,+avx,-sse,x=on,enforce" },
    { "cpu", "host,+avx", "avx", "off", "host,-avx" },
    { "cpu", "host,+sse4_1", "sse4.1", "off", "host,-sse4_1" },
    { "cpu", "host,enforce", "enforce", "off", "host,enforce=off" },
    { "cpu", "host,enforce", "enforce", NULL, "host" },
    { "cpu", "host", "migratable", "on", "host,migratable=on" },
    { "global", "a.b=c", "value", "d,e", "a.b=d,e" },
    { "global", "a.b=c", "driver", "x.y", "driver=x.y,property=b,value=c" },
    { "global", "driver=a,property=b,value=c", "value", "d,e", "driver=a,property=b,value=d,,e" },
  };

  for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(DrOpts) opts = parse(cases[i].option, cases[i].before);

    if (cases[i].value)
      dr_opts_set(opts, cases[i].key, cases[i].value);
    else
      g_assert_true(dr_opts_unset(opts, cases[i].key));
    assert_printed(opts, cases[i].after);
    g_assert_cmpstr(dr_opts_get(opts, cases[i].key), ==, cases[i].value);
    g_assert_false(dr_opts_unset(opts, "no-such-key"));
  }
}

static void
test_change_json(void)
{
  static const struct {
    const char *before, *key, *value, *after;
  } cases[] = {
    { "{ \"driver\" : \"a\" , \"n\" : 3 }", "driver", "a", "{ \"driver\" : \"a\" , \"n\" : 3 }" },
    { "{ \"driver\" : \"a\" , \"n\" : 1e2 }", "driver", "b", "{\"driver\":\"b\",\"n\":1e2}" },
    { "{\"n\":3,\"u\":18446744073709551615}", "n", "4", "{\"n\":4,\"u\":18446744073709551615}" },
    { "{\"n\":3}", "n", "four", "{\"n\":\"four\"}" },
    { "{\"b\":true}", "b", "off", "{\"b\":false}" },
    { "{\"b\":true}", "b", "maybe", "{\"b\":\"maybe\"}" },
    { "{\"s\":\"\\u00e4\"}", "t", "\"\\\n", "{\"s\":\"\\u00e4\",\"t\":\"\\\"\\\\\\u000a\"}" },
    { "{\"file\":{\"driver\":\"file\",\"filename\":\"/a\"}}", "file.filename", "/b",
      "{\"file\":{\"driver\":\"file\",\"filename\":\"/b\"}}" },
    { "{\"driver\":\"qcow2\"}", "file.server.host", "h",
      "{\"driver\":\"qcow2\",\"file\":{\"server\":{\"host\":\"h\"}}}" },
    { "{\"file\":\"node\"}", "file.driver", "file", "{\"file\":{\"driver\":\"file\"}}" },
    { "{\"file\":{\"driver\":\"file\"}}", "file", "node", "{\"file\":\"node\"}" },
    { "{\"l\":[1,2,3]}", "l.1", "9", "{\"l\":[1,9,3]}" },
    { "{\"l\":[1,2,3]}", "l.1", NULL, "{\"l\":[1,3]}" },
    { "{\"a.b\":\"c\"}", "a.b", "d", "{\"a.b\":\"d\"}" },
    { "{\"file\":{\"driver\":\"file\",\"x\":1},\"y\":2}", "file", NULL, "{\"y\":2}" },
    { "{\"file\":{\"driver\":\"file\",\"x\":1},\"y\":2}", "file.x", NULL,
      "{\"file\":{\"driver\":\"file\"},\"y\":2}" },
  };

  for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(DrOpts) opts = parse("blockdev", cases[i].before), again = NULL;

    if (cases[i].value)
      dr_opts_set(opts, cases[i].key, cases[i].value);
    else
      g_assert_true(dr_opts_unset(opts, cases[i].key));
    assert_printed(opts, cases[i].after);
    again = parse("blockdev", cases[i].after);
    assert_printed(again, cases[i].after);
  }
}

static void
test_typed_set(void)
{
  g_autoptr(DrOpts) json = dr_opts_new("device", DR_OPTS_JSON),
                    keyval = dr_opts_new("device", DR_OPTS_KEYVAL);
  DrOpts *both[] = { json, keyval };

  for (guint i = 0; i < 2; i++) {
    dr_opts_set(both[i], "driver", "nvme");
    dr_opts_set(both[i], "serial", "12");
    dr_opts_set_bool(both[i], "share-rw", TRUE);
    dr_opts_set_uint(both[i], "size", G_MAXUINT64);
  }
  assert_printed(json,
                 "{\"driver\":\"nvme\",\"serial\":\"12\",\"share-rw\":true,\"size\":18446744073709551615}");
  assert_printed(keyval, "nvme,serial=12,share-rw=on,size=18446744073709551615");
}

static void
test_repeated(void)
{
  g_autoptr(DrOpts) keyval = parse("netdev", "user,hostfwd=a,id=n,hostfwd=b");
  g_autoptr(DrOpts) json =
      parse("netdev", "{\"type\":\"user\",\"hostfwd\":[{\"str\":\"a\"},{\"str\":\"b\"}]}");
  static const char *const expected[] = { "a", "b", "c", NULL };
  g_auto(GStrv) all = NULL, all_json = NULL, none = NULL;

  g_assert_cmpstr(dr_opts_get(keyval, "hostfwd"), ==, "b");
  dr_opts_append(keyval, "hostfwd", "c");
  dr_opts_append(json, "hostfwd", "c");
  dr_opts_append(json, "dnssearch", "x");
  all = dr_opts_get_all(keyval, "hostfwd");
  assert_words(all, expected);
  all_json = dr_opts_get_all(json, "hostfwd");
  assert_words(all_json, expected);
  assert_printed(json, "{\"type\":\"user\",\"hostfwd\":[{\"str\":\"a\"},{\"str\":\"b\"},{\"str\":\"c\"}],"
                       "\"dnssearch\":[{\"str\":\"x\"}]}");
  none = dr_opts_get_all(json, "guestfwd");
  g_assert_cmpuint(g_strv_length(none), ==, 0);
  g_assert_true(dr_opts_has(json, "hostfwd"));
  g_assert_false(dr_opts_has(json, "host"));
}

static void
test_cpu_precedence(void)
{
  g_autoptr(DrOpts) opts = parse("cpu", "max,-avx,+avx,avx=on,sse4.1=off,+sse4_1,aes=off,aes=on");

  g_assert_cmpstr(dr_opts_get(opts, "avx"), ==, "off");
  g_assert_cmpstr(dr_opts_get(opts, "sse4-1"), ==, "on");
  g_assert_cmpstr(dr_opts_get(opts, "aes"), ==, "on");
}

static void
test_bool(void)
{
  g_autoptr(DrOpts) opts =
      parse("chardev", "socket,a=on,b=yes,c=true,d=y,e=off,f=no,g=false,h=n,i,noj,k=1,l=ON");
  g_autoptr(GError) error = NULL;
  gboolean value;

  for (char c = 'a'; c <= 'j'; c++) {
    char key[] = { c, 0 };

    g_assert_true(dr_opts_get_bool(opts, key, c > 'd', &value, &error));
    g_assert_cmpint(value, ==, c <= 'd' || c == 'i');
  }
  g_assert_true(dr_opts_get_bool(opts, "zz", TRUE, &value, &error));
  g_assert_true(value);
  g_assert_false(dr_opts_get_bool(opts, "k", TRUE, &value, &error));
  assert_invalid(&error, "'k' of '-chardev' must be on or off, not '1'");
  g_assert_false(dr_opts_get_bool(opts, "l", TRUE, &value, NULL));
}

static void
test_size(void)
{
  static const struct {
    const char *text;
    char unit;
    guint64 bytes; /* 0 with `text` not "0": no size */
  } cases[] = {
    { "0", 'B', 0 },
    { "1", 'B', 1 },
    { "512", 'M', 512 << 20 },
    { "4G", 'M', G_GUINT64_CONSTANT(4) << 30 },
    { "262152k", 'M', G_GUINT64_CONSTANT(262152) << 10 },
    { "1.5G", 'B', G_GUINT64_CONSTANT(3) << 29 },
    { "0x10", 'B', 16 },
    { "0X1fK", 'B', 31 << 10 },
    { "10b", 'M', 10 },
    { "2T", 'B', G_GUINT64_CONSTANT(2) << 40 },
    { "15E", 'B', G_GUINT64_CONSTANT(15) << 60 },
    { "18446744073709551615", 'B', G_MAXUINT64 },
    { "010", 'B', 10 },
    { "1.5", 'M', 0 },
    { "1.5B", 'B', 0 },
    { "512mb", 'B', 0 },
    { "-1", 'B', 0 },
    { "", 'B', 0 },
    { "x", 'B', 0 },
    { "16E", 'B', 0 },
    { "18446744073709551616", 'B', 0 },
    { "1 G", 'B', 0 },
    { " 1", 'B', 0 },
    { "1..5G", 'B', 0 },
  };

  for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
    guint64 bytes = 0;
    gboolean ok = dr_parse_size(cases[i].text, cases[i].unit, &bytes, NULL);

    g_test_message("'%s'", cases[i].text);
    g_assert_cmpint(ok, ==, cases[i].bytes > 0 || g_str_equal(cases[i].text, "0"));
    g_assert_true(!ok || bytes == cases[i].bytes);
  }
}

static void
test_option_units(void)
{
  g_autoptr(DrOpts) memory = parse("m", "512,maxmem=1024"), node = parse("numa", "node,mem=64");
  g_autoptr(DrOpts) object = parse("object", "{\"qom-type\":\"memory-backend-ram\",\"size\":4294967296}");
  g_autoptr(GError) error = NULL;
  guint64 bytes, number;

  g_assert_true(dr_opts_get_size(memory, "size", 0, &bytes, NULL));
  g_assert_cmpuint(bytes, ==, 512 << 20);
  g_assert_true(dr_opts_get_size(memory, "maxmem", 0, &bytes, NULL));
  g_assert_cmpuint(bytes, ==, 1024);
  g_assert_true(dr_opts_get_size(node, "mem", 0, &bytes, NULL));
  g_assert_cmpuint(bytes, ==, 64 << 20);
  g_assert_true(dr_opts_get_size(object, "size", 0, &bytes, NULL));
  g_assert_cmpuint(bytes, ==, G_GUINT64_CONSTANT(1) << 32);
  g_assert_true(dr_opts_get_size(object, "other", 7, &bytes, NULL));
  g_assert_cmpuint(bytes, ==, 7);
  g_assert_false(dr_opts_get_size(object, "qom-type", 0, &bytes, &error));
  assert_invalid(&error, "cannot read 'qom-type' of '-object': 'memory-backend-ram' is not a size");
  g_assert_true(dr_opts_get_uint(memory, "size", 0, &number, NULL));
  g_assert_cmpuint(number, ==, 512);
  g_assert_false(dr_opts_get_uint(object, "qom-type", 0, &number, &error));
  assert_invalid(&error, "'qom-type' of '-object' must be a whole number, not 'memory-backend-ram'");
}

/* Random changes: what is printed reads back as the same entries. */
static void
test_random(void)
{
  static const char *const options[] = { "machine", "device", "drive", "chardev", "netdev", "cpu", "global" };
  static const char *const starts[] = {
    "",      "a",         "a,b=c",        "b=c", "x,nowait,server", "{\"a\":{\"b\":[1,2]},\"c\":true}",
    "a.b=c", "max,+x,-y", "a,,b,c=d,,e,",
  };
  static const char *const keys[] = { "a", "type", "driver", "backend", "model", "server", "wait",
                                      "b", "c",    "a.b",    "a.b.0",   "value", "x" };
  static const char *const values[] = { "", "on", "off", "1", "v", "a=b", "{", "no", "\"", "é" };
  g_autoptr(GRand) rand = g_rand_new_with_seed(42);

  for (int round = 0; round < 20000; round++) {
    const char *option = options[g_rand_int_range(rand, 0, G_N_ELEMENTS(options))];
    const char *start = starts[g_rand_int_range(rand, 0, G_N_ELEMENTS(starts))];
    /* -global with neither a driver nor the keys of its long form is nothing that could be kept. */
    g_autoptr(DrOpts) opts = parse(option, g_str_equal(option, "global") ? "a.b=c" : start), again = NULL;
    g_autofree char *text = NULL, *before = NULL, *after = NULL;

    for (int n = g_rand_int_range(rand, 0, 5); n > 0; n--) {
      const char *key = keys[g_rand_int_range(rand, 0, G_N_ELEMENTS(keys))];

      if (g_rand_boolean(rand))
        dr_opts_set(opts, key, values[g_rand_int_range(rand, 0, G_N_ELEMENTS(values))]);
      else if (!g_str_equal(key, "model") || !g_str_equal(option, "cpu"))
        dr_opts_unset(opts, key);
    }
    text = dr_opts_print(opts);
    again = parse(option, text);
    before = flat(opts);
    after = flat(again);
    if (!g_str_equal(option, "global")) /* its short form has an order of its own */
      g_assert_cmpstr(after, ==, before);
    for (guint i = 0; i < dr_opts_n(opts); i++)
      g_assert_cmpstr(dr_opts_get(again, dr_opts_key(opts, i)), ==, dr_opts_get(opts, dr_opts_key(opts, i)));
  }
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/argv-opts/read", test_read);
  g_test_add_func("/argv-opts/errors", test_errors);
  g_test_add_func("/argv-opts/change-keyval", test_change_keyval);
  g_test_add_func("/argv-opts/change-json", test_change_json);
  g_test_add_func("/argv-opts/typed-set", test_typed_set);
  g_test_add_func("/argv-opts/repeated", test_repeated);
  g_test_add_func("/argv-opts/cpu-precedence", test_cpu_precedence);
  g_test_add_func("/argv-opts/bool", test_bool);
  g_test_add_func("/argv-opts/size", test_size);
  g_test_add_func("/argv-opts/option-units", test_option_units);
  g_test_add_func("/argv-opts/random", test_random);
  return g_test_run();
}
