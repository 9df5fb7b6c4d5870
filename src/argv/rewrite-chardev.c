/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rewriter's part for serial ports, monitors and their like.
 *
 * A QEMU under drover has no terminal: what was to go to stdio becomes drover's console. A QEMU that starts beside
 * another binds private sockets, gets TCP listeners by number, appends to files, and never waits for a client.
 */
#include "argv/rewrite-internal.h"
#include "base/error.h"

#include <string.h>

#define CONSOLE_ID "drover-console"

static gboolean
is(const DrOpt *opt, const char *name)
{
  return g_str_equal(opt->info->name, name);
}

static gboolean
is_monitor(const DrOpt *opt)
{
  return is(opt, "monitor") || is(opt, "qmp") || is(opt, "qmp-pretty");
}

/* A log beside the device, of any kind: QEMU empties it when it starts (qemu_char_open() in chardev/char.c, 5.2 to 11.1), also if nothing
 * comes of the move. */
static gboolean
append_log(DrChardev *chardev)
{
  if (!dr_opts_has(chardev->extra, "logfile"))
    return FALSE;
  dr_opts_set_bool(chardev->extra, "logappend", TRUE);
  return TRUE;
}

/* Turns a chardev into drover's console socket; mux and what frontends hang on it stay. */
static void
to_console(DrRewriter *r, DrChardev *chardev)
{
  chardev->kind = DR_CHARDEV_UNIX;
  g_free(chardev->backend);
  chardev->backend = g_strdup("socket");
  g_free(chardev->path);
  chardev->path = g_strdup(r->plan->console_path);
  chardev->server = TRUE;
  chardev->wait = FALSE;
  dr_opts_unset(chardev->extra, "signal");
  if (r->plan->incoming)
    append_log(chardev);
  r->out->console = TRUE;
}

static void
blocked(DrRewriter *r, const DrOpt *opt, const DrChardev *chardev)
{
  g_autofree char *code = g_strdup_printf("chardev-%s", chardev->backend ? chardev->backend : "device");

  dr_findings_add(r->findings, DR_FINDING_BLOCKER, code,
                  "use a unix socket, a TCP listener or a file instead",
                  "%s %s: two QEMUs cannot have this %s at the same time", opt->spelling, opt->value,
                  dr_chardev_kind_name(chardev->kind));
}

static gboolean
beside_socket(DrRewriter *r, guint i, const DrOpt *opt, DrChardev *chardev)
{
  if (!dr_chardev_is_listener(chardev)) {
    dr_findings_add(r->findings, DR_FINDING_WARNING, "chardev-client",
                    "make QEMU the listening side (server=on,wait=off)",
                    "%s %s: the new QEMU connects a second time while the first is still connected",
                    opt->spelling, opt->value);
    return FALSE;
  }
  chardev->wait = FALSE;
  if (chardev->fd)
    return TRUE; /* the same descriptor under the same number */
  if (chardev->kind == DR_CHARDEV_UNIX) {
    g_autofree char *public_path = g_steal_pointer(&chardev->path);

    chardev->path = dr_rewriter_private(r, public_path);
    return TRUE;
  }
  const DrNeed *need = dr_rewriter_need(r, DR_NEED_TCP_LISTENER, i);
  if (!need) {
    blocked(r, opt, chardev);
    return FALSE;
  }
  chardev->kind =
      DR_CHARDEV_UNIX; /* printed as a socket by number: QEMU asks the descriptor for its family */
  g_clear_pointer(&chardev->host, g_free);
  g_clear_pointer(&chardev->port, g_free);
  chardev->fd = g_strdup_printf("%d", g_array_index(need->numbers, int, 0));
  dr_opts_unset(chardev->extra, "to");
  dr_opts_unset(chardev->extra, "ipv4");
  dr_opts_unset(chardev->extra, "ipv6");
  return TRUE;
}

static gboolean
beside_by_kind(DrRewriter *r, guint i, const DrOpt *opt, DrChardev *chardev)
{
  switch (chardev->kind) {
  case DR_CHARDEV_UNIX:
  case DR_CHARDEV_TCP:
    return beside_socket(r, i, opt, chardev);
  case DR_CHARDEV_FILE:
    chardev->append = TRUE;
    return TRUE;
  case DR_CHARDEV_UDP:
  case DR_CHARDEV_PIPE:
  case DR_CHARDEV_SERIAL:
  case DR_CHARDEV_PARALLEL:
    blocked(r, opt, chardev);
    return FALSE;
  case DR_CHARDEV_PTY:
    dr_findings_add(r->findings, DR_FINDING_WARNING, "chardev-pty",
                    "use a unix socket, whose path stays the same", "%s %s: the new QEMU gets another pty",
                    opt->spelling, opt->value);
    return FALSE;
  case DR_CHARDEV_NONE:
  case DR_CHARDEV_REF:
  case DR_CHARDEV_STDIO:
  case DR_CHARDEV_NULL:
  case DR_CHARDEV_VC:
  case DR_CHARDEV_RINGBUF:
  case DR_CHARDEV_OTHER:
    return FALSE;
  }
  g_assert_not_reached();
}

/* Changes a chardev for a QEMU that starts beside another. FALSE: it stays as it is. */
static gboolean
beside(DrRewriter *r, guint i, const DrOpt *opt, DrChardev *chardev)
{
  gboolean logs = append_log(chardev);

  return beside_by_kind(r, i, opt, chardev) || logs;
}

/* Gives a short form a -chardev of its own in front of it, and refers to it. */
static void
name_it(DrRewriter *r, DrOpt *opt, DrChardev *chardev, const char *wanted_id)
{
  g_autofree char *id =
      wanted_id ? g_strdup(wanted_id) : g_strdup_printf("drover-%s%u", opt->info->name, r->named++);
  g_autofree char *reference = g_strconcat("chardev:", id, NULL);
  g_autoptr(DrOpts) opts = NULL;
  g_autofree char *value = NULL;
  gboolean monitor = chardev->monitor;
  DrArgv *argv = r->out->argv;

  opts = dr_chardev_to_opts(chardev, id);
  value = dr_opts_print(opts);
  dr_argv_insert_before(argv, opt, "chardev", value);
  if (is_monitor(opt)) {
    g_autofree char *mon =
        g_strdup_printf("chardev=%s,mode=%s%s", id, is(opt, "monitor") ? "readline" : "control",
                        is(opt, "qmp-pretty") ? ",pretty=on" : "");

    dr_argv_insert_before(argv, opt, "mon", mon);
    dr_argv_remove(argv, opt);
    return;
  }
  if (monitor) { /* "mon:": a monitor on the same terminal */
    g_autofree char *mon = g_strdup_printf("chardev=%s,mode=readline", id);

    dr_argv_insert_after(argv, opt, "mon", mon);
  }
  dr_opt_set_value(opt, reference);
}

static gboolean
is_stdio(const DrRewriter *r, const DrChardev *chardev)
{
  if (r->plan->foreign)
    return FALSE; /* its descriptors 0 to 2 are handed over */
  return chardev->kind == DR_CHARDEV_STDIO || (chardev->backend && g_str_equal(chardev->backend, "stdio"));
}

static void
rewrite_short(DrRewriter *r, guint i, DrOpt *opt, DrChardev *chardev)
{
  if (is_stdio(r, chardev) && is_monitor(opt)) {
    dr_findings_add(r->findings, DR_FINDING_WARNING, "monitor-stdio",
                    "use drover qmp, or give it a unix socket",
                    "%s stdio: a QEMU under drover has no terminal, this monitor is left out", opt->spelling);
    dr_opt_set_value(opt, "none");
  } else if (is_stdio(r, chardev)) {
    to_console(r, chardev);
    name_it(r, opt, chardev, CONSOLE_ID);
  } else if (r->plan->incoming && beside(r, i, opt, chardev)) {
    name_it(r, opt, chardev, NULL);
  }
}

static void
rewrite_long(DrRewriter *r, guint i, DrOpt *opt, DrChardev *chardev)
{
  g_autoptr(DrOpts) opts = NULL;

  if (is_stdio(r, chardev))
    to_console(r, chardev);
  else if (!r->plan->incoming || !beside(r, i, opt, chardev))
    return;
  opts = dr_chardev_to_opts(chardev, chardev->id);
  dr_opt_set_opts(opt, opts);
}

/* QEMU gives a machine a first serial port unless told otherwise, and puts it on a virtual console or, with
 * -nographic, on stdio together with the monitor. The port is there in any case: only where it goes is changed. */
static void
default_console(DrRewriter *r)
{
  DrArgv *argv = r->out->argv;
  gboolean with_monitor = dr_argv_has(argv, "nographic") && !dr_argv_has(argv, "monitor") &&
                          !dr_argv_has(argv, "mon") && !dr_argv_has(argv, "qmp") &&
                          !dr_argv_has(argv, "qmp-pretty");
  g_autoptr(DrOpts) opts = NULL;
  g_autofree char *value = NULL;

  for (DrOpt *device = NULL; (device = dr_argv_next(argv, "device", device));)
    if (device->value && strstr(device->value, "serial"))
      return; /* it has told QEMU about its serial ports */
  if (r->out->console || dr_argv_has(argv, "serial") || dr_argv_has(argv, "nodefaults"))
    return;
  opts = dr_opts_new("chardev", DR_OPTS_KEYVAL);
  dr_opts_set(opts, "backend", "socket");
  dr_opts_set(opts, "id", CONSOLE_ID);
  dr_opts_set(opts, "path", r->plan->console_path);
  dr_opts_set(opts, "server", "on");
  dr_opts_set(opts, "wait", "off");
  if (with_monitor)
    dr_opts_set(opts, "mux", "on");
  value = dr_opts_print(opts);
  dr_argv_append(argv, "chardev", value);
  dr_argv_append(argv, "serial", "chardev:" CONSOLE_ID);
  if (with_monitor)
    dr_argv_append(argv, "mon", "chardev=" CONSOLE_ID ",mode=readline");
  else if (!dr_argv_has(argv, "monitor") && !dr_argv_has(argv, "mon"))
    dr_argv_append(argv, "monitor", "none");
  r->out->console = TRUE;
}

/* The public path of a first serial port that is a unix listener of the user's. */
static char *
public_console(const DrArgv *argv)
{
  DrOpt *serial = dr_argv_find(argv, "serial", 0);
  g_autoptr(DrChardev) chardev = serial ? dr_opt_parse_chardev(serial, NULL) : NULL;

  if (chardev && chardev->kind == DR_CHARDEV_REF) {
    DrOpt *target = dr_argv_find_id(argv, "chardev", chardev->id);

    g_clear_pointer(&chardev, dr_chardev_free);
    chardev = target ? dr_opt_parse_chardev(target, NULL) : NULL;
  }
  if (!chardev || chardev->kind != DR_CHARDEV_UNIX || !dr_chardev_is_listener(chardev) || !chardev->path)
    return NULL;
  return g_strdup(chardev->path);
}

/* drover's own monitor. */
static void
add_monitor(DrRewriter *r)
{
  g_autoptr(DrOpts) opts = dr_opts_new("chardev", DR_OPTS_KEYVAL);
  g_autofree char *value = NULL;

  dr_opts_set(opts, "backend", "socket");
  dr_opts_set(opts, "id", "drover-qmp");
  dr_opts_set(opts, "path", r->plan->qmp_path);
  dr_opts_set(opts, "server", "on");
  dr_opts_set(opts, "wait", "off");
  value = dr_opts_print(opts);
  dr_argv_append(r->out->argv, "chardev", value);
  dr_argv_append(r->out->argv, "mon", "chardev=drover-qmp,mode=control");
}

gboolean
dr_rewrite_chardevs(DrRewriter *r, const DrArgv *original, GError **error)
{
  g_autoptr(GPtrArray) options = g_ptr_array_new();

  /* The list is taken first: options are inserted on the way. */
  for (guint i = 0; i < dr_argv_n(original); i++)
    g_ptr_array_add(options, dr_argv_opt(r->out->argv, i));
  for (guint i = 0; i < options->len; i++) {
    DrOpt *opt = options->pdata[i];
    g_autoptr(DrChardev) chardev = NULL;

    if ((opt->info->kind != DR_VALUE_CHARDEV && !is(opt, "chardev")) || is(opt, "gdb"))
      continue;
    chardev = dr_opt_parse_chardev(opt, error);
    if (!chardev)
      return FALSE;
    if (is(opt, "chardev"))
      rewrite_long(r, i, opt, chardev);
    else
      rewrite_short(r, i, opt, chardev);
  }
  r->out->console_public = public_console(original);
  if (r->plan->foreign)
    return TRUE;
  default_console(r);
  add_monitor(r);
  return TRUE;
}
