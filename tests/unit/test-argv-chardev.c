/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Character devices: every short form, -chardev, what they become, which of them listen. */
#include "test-argv-util.h"

static DrChardev *
parse(const char *option, const char *value)
{
  g_autoptr(GError) error = NULL;
  DrChardev *chardev = dr_chardev_parse(option, value, &error);

  g_assert_no_error(error);
  return chardev;
}

/* What each becomes as a -chardev; NULL: there is none. */
static void
test_to_chardev(void)
{
  static const struct {
    const char *option, *value;
    DrChardevKind kind;
    gboolean listens;
    const char *chardev;
  } cases[] = {
    { "serial", "none", DR_CHARDEV_NONE, FALSE, NULL },
    { "serial", "chardev:c0", DR_CHARDEV_REF, FALSE, NULL },
    { "serial", "null", DR_CHARDEV_NULL, FALSE, "null,id=I" },
    { "serial", "pty", DR_CHARDEV_PTY, FALSE, "pty,id=I" },
    { "serial", "pty:/run/p", DR_CHARDEV_PTY, FALSE, "pty,id=I,path=/run/p" },
    { "serial", "stdio", DR_CHARDEV_STDIO, FALSE, "stdio,id=I" },
    { "serial", "mon:stdio", DR_CHARDEV_STDIO, FALSE, "stdio,id=I,mux=on,signal=off" },
    { "serial", "mon:pty", DR_CHARDEV_PTY, FALSE, "pty,id=I,mux=on" },
    { "serial", "vc", DR_CHARDEV_VC, FALSE, "vc,id=I" },
    { "serial", "vc:800x600", DR_CHARDEV_VC, FALSE, "vc,id=I,width=800,height=600" },
    { "serial", "vc:80Cx24C", DR_CHARDEV_VC, FALSE, "vc,id=I,cols=80,rows=24" },
    { "serial", "file:/var/log/a,b", DR_CHARDEV_FILE, FALSE, "file,id=I,path=/var/log/a,,b" },
    { "serial", "pipe:/run/f", DR_CHARDEV_PIPE, FALSE, "pipe,id=I,path=/run/f" },
    { "serial", "/dev/ttyS0", DR_CHARDEV_SERIAL, FALSE, "serial,id=I,path=/dev/ttyS0" },
    { "parallel", "/dev/parport0", DR_CHARDEV_PARALLEL, FALSE, "parallel,id=I,path=/dev/parport0" },
    { "serial", "msmouse", DR_CHARDEV_OTHER, FALSE, "msmouse,id=I" },
    { "serial", "braille", DR_CHARDEV_OTHER, FALSE, "braille,id=I" },
    { "serial", "unix:/p,server,nowait", DR_CHARDEV_UNIX, TRUE, "socket,id=I,path=/p,server=on,wait=off" },
    { "qmp", "unix:/a,,b,server=on,wait=off", DR_CHARDEV_UNIX, TRUE,
      "socket,id=I,path=/a,,b,server=on,wait=off" },
    { "qmp", "unix:path=/p,server=on", DR_CHARDEV_UNIX, TRUE, "socket,id=I,path=/p,server=on" },
    { "qmp", "unix:/p,reconnect=5", DR_CHARDEV_UNIX, FALSE, "socket,id=I,path=/p,reconnect=5" },
    { "qmp", "tcp:127.0.0.1:4444,server=on,wait=off,nodelay", DR_CHARDEV_TCP, TRUE,
      "socket,id=I,host=127.0.0.1,port=4444,server=on,wait=off,delay=off" },
    { "monitor", "tcp::4444,server", DR_CHARDEV_TCP, TRUE, "socket,id=I,host=,port=4444,server=on" },
    { "monitor", "tcp:host:1", DR_CHARDEV_TCP, FALSE, "socket,id=I,host=host,port=1" },
    { "monitor", "telnet::4445,server,nowait", DR_CHARDEV_TCP, TRUE,
      "socket,id=I,host=,port=4445,telnet=on,server=on,wait=off" },
    { "serial", "websocket:h:80,server", DR_CHARDEV_TCP, TRUE,
      "socket,id=I,host=h,port=80,websocket=on,server=on" },
    { "serial", "tn3270::3270,server", DR_CHARDEV_TCP, TRUE,
      "socket,id=I,host=,port=3270,tn3270=on,server=on" },
    { "serial", "udp:192.0.2.1:5555@:5556", DR_CHARDEV_UDP, TRUE,
      "udp,id=I,host=192.0.2.1,port=5555,localaddr=,localport=5556" },
    { "serial", "udp::5555", DR_CHARDEV_UDP, FALSE, "udp,id=I,host=,port=5555" },
    { "gdb", "tcp::1234", DR_CHARDEV_TCP, TRUE, "socket,id=I,host=,port=1234,server=on,wait=off,delay=off" },
    { "gdb", "tcp::1234,server=off,wait=on", DR_CHARDEV_TCP, TRUE,
      "socket,id=I,host=,port=1234,server=on,wait=off,delay=off" },
    { "gdb", "unix:/g,server=on", DR_CHARDEV_UNIX, TRUE, "socket,id=I,path=/g,server=on" },
    { "gdb", "none", DR_CHARDEV_NONE, FALSE, NULL },
    { "chardev", "socket,id=x,fd=34,server=on,wait=off", DR_CHARDEV_UNIX, TRUE,
      "socket,id=I,fd=34,server=on,wait=off" },
    { "chardev", "socket,path=/p,server,nowait,id=qmp,logfile=/l,logappend=on", DR_CHARDEV_UNIX, TRUE,
      "socket,id=I,path=/p,server=on,wait=off,logfile=/l,logappend=on" },
    { "chardev", "tty,id=t,path=/dev/ttyS1", DR_CHARDEV_SERIAL, FALSE, "serial,id=I,path=/dev/ttyS1" },
    { "chardev", "parport,id=t,path=/dev/parport1", DR_CHARDEV_PARALLEL, FALSE,
      "parallel,id=I,path=/dev/parport1" },
    { "chardev", "file,id=f,path=/x,append=on", DR_CHARDEV_FILE, FALSE, "file,id=I,path=/x,append=on" },
    { "chardev", "ringbuf,id=r,size=64K", DR_CHARDEV_RINGBUF, FALSE, "ringbuf,id=I,size=64K" },
    { "chardev", "spicevmc,id=s,name=vdagent", DR_CHARDEV_OTHER, FALSE, "spicevmc,id=I,name=vdagent" },
    { "chardev", "stdio,mux=on,id=m,signal=off", DR_CHARDEV_STDIO, FALSE, "stdio,id=I,mux=on,signal=off" },
  };

  for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(DrChardev) chardev = parse(cases[i].option, cases[i].value), copy = dr_chardev_copy(chardev);
    g_autoptr(DrOpts) opts = NULL;
    g_autofree char *text = NULL;

    g_test_message("-%s %s", cases[i].option, cases[i].value);
    g_assert_cmpint(copy->kind, ==, cases[i].kind);
    g_assert_cmpint(dr_chardev_is_listener(copy), ==, cases[i].listens);
    g_assert_nonnull(dr_chardev_kind_name(copy->kind));
    if (!cases[i].chardev)
      continue;
    opts = dr_chardev_to_opts(copy, "I");
    text = dr_opts_print(opts);
    g_assert_cmpstr(text, ==, cases[i].chardev);
  }
}

static void
test_fields(void)
{
  g_autoptr(DrChardev) file = parse("serial", "file:/x"), mon = parse("serial", "mon:unix:/p,server=on");
  g_autoptr(DrChardev) ref = parse("qmp", "chardev:c0"), named = parse("chardev", "pty,id=c0");
  g_autoptr(DrOpts) opts = NULL;
  g_autofree char *text = NULL;

  g_assert_false(file->append);
  file->append = TRUE;
  opts = dr_chardev_to_opts(file, "ser,0");
  text = dr_opts_print(opts);
  g_assert_cmpstr(text, ==, "file,id=ser,,0,path=/x,append=on");
  g_assert_true(mon->mux && mon->monitor && mon->server && mon->wait && mon->signal);
  g_assert_cmpstr(ref->id, ==, "c0");
  g_assert_null(ref->backend);
  g_assert_cmpstr(named->id, ==, "c0");
  g_assert_false(named->mux || named->monitor);
}

static void
test_errors(void)
{
  static const struct {
    const char *option, *value, *message;
  } cases[] = {
    { "serial", "foo", "cannot read the value of '-serial': 'foo' is no character device" },
    { "serial", "null,x", "cannot read the value of '-serial': 'null,x' is no character device" },
    { "qmp", "none", "cannot read the value of '-qmp': 'none' is no character device" },
    { "debugcon", "none", "cannot read the value of '-debugcon': 'none' is no character device" },
    { "serial", "mon:none", "cannot read the value of '-serial': 'none' is no character device" },
    { "serial", "mon:chardev:x", "cannot read the value of '-serial': 'chardev:x' is no character device" },
    { "serial", "mon:mon:stdio", "cannot read the value of '-serial': 'mon:stdio' is no character device" },
    { "serial", "vc:80", "cannot read the value of '-serial': 'vc:80' is no size of a virtual console" },
    { "serial", "tcp:4444",
      "cannot read the value of '-serial': '4444' is no HOST:PORT of a character device" },
    { "serial", "tcp:h:", "cannot read the value of '-serial': 'h:' is no HOST:PORT of a character device" },
    { "serial", "udp:h:1@2",
      "cannot read the value of '-serial': 'h:1@2' is no HOST:PORT@HOST:PORT of a character device" },
    { "serial", "unix:", "cannot read the value of '-serial': 'unix:' has no path" },
    { "serial", "unix:/a=b", "cannot read the value of '-serial': 'unix:/a=b' has no path" },
    { "serial", "unix:/a,server=maybe",
      "cannot read the value of '-serial': 'server' of '-chardev' must be on or off, not 'maybe'" },
    { "serial", "tcp:h:1,,x", "cannot read the value of '-serial': an option is empty in ',,x'" },
    { "chardev", "id=x", "cannot read the value of '-chardev': the character device 'id=x' has no backend" },
    { "chardev", "", "cannot read the value of '-chardev': the character device '' has no backend" },
    { "chardev", "socket,id=a,x,,y",
      "cannot read the value of '-chardev': a key of the character device is empty" },
    { "kernel", "x", "option 'kernel' takes no character device" },
    { "nothing", "x", "option 'nothing' takes no character device" },
  };
  g_autoptr(GError) error = NULL;

  for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_test_message("-%s %s", cases[i].option, cases[i].value);
    g_assert_null(dr_chardev_parse(cases[i].option, cases[i].value, &error));
    assert_invalid(&error, cases[i].message);
  }
  dr_chardev_free(NULL);
}

/* The -chardev that replaces a short form reads back as the same thing. */
static void
test_random(void)
{
  static const char *const pieces[] = {
    "mon:", "tcp:", "unix:",  "udp:", "telnet:", "h",      ":",           "1234",  ",",     "server",
    "=",    "on",   "nowait", "@",    "vc",      "80x24",  "80Cx24C",     "file:", "/dev/", "x",
    "path", "null", "stdio",  "pty",  "id=a",    "socket", "reconnect=1", "",
  };
  g_autoptr(GRand) rand = g_rand_new_with_seed(7);

  for (int round = 0; round < 50000; round++) {
    g_autoptr(GString) value = g_string_new(NULL);
    g_autoptr(GError) error = NULL;
    g_autoptr(DrChardev) chardev = NULL, again = NULL;
    g_autoptr(DrOpts) opts = NULL;
    g_autofree char *text = NULL;

    for (int n = g_rand_int_range(rand, 0, 7); n > 0; n--)
      g_string_append(value, pieces[g_rand_int_range(rand, 0, G_N_ELEMENTS(pieces))]);
    chardev = dr_chardev_parse(g_rand_boolean(rand) ? "serial" : "chardev", value->str, &error);
    g_assert_true((chardev == NULL) == (error != NULL));
    if (!chardev || !chardev->backend)
      continue;
    opts = dr_chardev_to_opts(chardev, "I");
    text = dr_opts_print(opts);
    again = parse("chardev", text);
    g_assert_cmpint(again->kind, ==, chardev->kind);
    g_assert_cmpstr(again->path, ==, chardev->path);
    g_assert_cmpstr(again->port, ==, chardev->port);
    g_assert_cmpint(again->mux, ==, chardev->mux);
    g_assert_cmpint(dr_chardev_is_listener(again), ==, dr_chardev_is_listener(chardev));
  }
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/argv-chardev/to-chardev", test_to_chardev);
  g_test_add_func("/argv-chardev/fields", test_fields);
  g_test_add_func("/argv-chardev/errors", test_errors);
  g_test_add_func("/argv-chardev/random", test_random);
  return g_test_run();
}
