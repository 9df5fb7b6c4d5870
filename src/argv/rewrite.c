/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rewriter: program, start options, RAM, networks, VNC. Character devices are in rewrite-chardev.c. */
#include "argv/rewrite-internal.h"
#include "base/error.h"

#include <string.h>

static void
rename_free(DrRename *item)
{
  g_free(item->private_path);
  g_free(item->public_path);
  g_free(item);
}

static void
vnc_free(DrVncAddress *vnc)
{
  g_free(vnc->id);
  g_free(vnc->host);
  g_free(vnc->port);
  g_free(vnc);
}

void
dr_rewrite_free(DrRewrite *rewrite)
{
  if (!rewrite)
    return;
  g_clear_pointer(&rewrite->argv, dr_argv_free);
  g_free(rewrite->console_public);
  g_ptr_array_unref(rewrite->renames);
  g_ptr_array_unref(rewrite->vnc);
  g_free(rewrite->pidfile);
  g_free(rewrite->gdb);
  g_free(rewrite);
}

/* --- Start options --- */

char *
dr_rewriter_private(DrRewriter *r, const char *public_path)
{
  DrRename *item = g_new0(DrRename, 1);

  item->public_path = g_strdup(public_path);
  item->private_path = g_strconcat(public_path, r->plan->suffix, NULL);
  g_ptr_array_add(r->out->renames, item);
  if (r->plan->foreign)
    dr_findings_add(r->findings, DR_FINDING_BLOCKER, "unix-listener",
                    "use a TCP port (VNC) or a pty instead, from the next start on",
                    "the QEMU listens on '%s' by itself: a second one would have to be put in its place in a "
                    "directory of another user's",
                    public_path);
  if (strlen(item->private_path) > 107)
    dr_findings_add(r->findings, DR_FINDING_BLOCKER, "socket-path", "use a shorter path for that socket",
                    "the socket path '%s' leaves no room for a second one beside it (107 bytes)",
                    public_path);
  return g_strdup(item->private_path);
}

/* -daemonize would hide the process from its keeper; a pidfile is locked by the first QEMU, drover writes it. */
static void
rewrite_process(DrRewriter *r)
{
  DrArgv *argv = r->out->argv;
  DrOpt *opt;

  if (r->plan->program) {
    dr_argv_set_launcher(argv, NULL);
    dr_argv_set_program(argv, r->plan->program);
  }
  if (r->plan->foreign && r->plan->program)
    dr_argv_remove_all(argv, "L"); /* of a wrapper script, which the next one, too, may be */
  if (r->plan->foreign &&
      (dr_argv_has(argv, "pidfile") || dr_argv_has(argv, "gdb") || dr_argv_has(argv, "s")))
    dr_findings_add(r->findings, DR_FINDING_BLOCKER, "foreign-option", "start the domain without it",
                    "-pidfile and -gdb are nothing that another manager's QEMU is started with");
  dr_argv_remove_all(argv, "daemonize");
  if ((opt = dr_argv_find_last(argv, "pidfile")))
    r->out->pidfile = g_strdup(opt->value);
  dr_argv_remove_all(argv, "pidfile");
}

/* The stub's port is taken by the first QEMU; a QEMU that is told by HMP opens it later. */
static void
rewrite_gdb(DrRewriter *r)
{
  DrArgv *argv = r->out->argv;
  DrOpt *opt = dr_argv_find_last(argv, "gdb");

  if (opt)
    r->out->gdb = g_strdup(opt->value);
  else if (dr_argv_has(argv, "s"))
    r->out->gdb = g_strdup("tcp::1234");
  dr_argv_remove_all(argv, "gdb");
  dr_argv_remove_all(argv, "s");
}

/* QEMU empties the file of -D when it starts to write to it; without, what -d and -trace log goes to stderr. */
static void
rewrite_log(DrRewriter *r)
{
  DrArgv *argv = r->out->argv;
  DrOpt *opt = dr_argv_find_last(argv, "D");

  if (opt && (dr_argv_has(argv, "d") || dr_argv_has(argv, "trace")))
    dr_findings_add(r->findings, DR_FINDING_WARNING, "log-file",
                    "follow the VM's log (drover show tells its path)",
                    "-D %s: a second QEMU would empty this file, so from now on QEMU's own log goes to the "
                    "VM's",
                    opt->value);
  dr_argv_remove_all(argv, "D");
}

static void
rewrite_incoming(DrRewriter *r)
{
  DrArgv *argv = r->out->argv;

  dr_argv_remove_all(argv, "incoming");
  dr_argv_remove_all(argv, "loadvm");
  dr_argv_remove_all(argv, "S");
  rewrite_gdb(r);
  rewrite_log(r);
  dr_argv_append(argv, "S", NULL);
  dr_argv_append(argv, "incoming", "defer");
}

/* --- The stream --- */

static DrOpt *
next_switchover(const DrArgv *argv, const DrOpt *previous, gboolean *ret_off)
{
  for (DrOpt *opt = (DrOpt *)previous; (opt = dr_argv_next(argv, "global", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    gboolean on = TRUE;

    if (!opts || g_strcmp0(dr_opts_get(opts, "driver"), "migration") != 0 ||
        g_strcmp0(dr_opts_get(opts, "property"), "send-switchover-start") != 0)
      continue;
    *ret_off = dr_opts_get_bool(opts, "value", TRUE, &on, NULL) && !on;
    return opt;
  }
  return NULL;
}

gboolean
dr_argv_switchover_is_off(const DrArgv *argv)
{
  gboolean off = FALSE;

  for (DrOpt *opt = NULL; (opt = next_switchover(argv, opt, &off));)
    ;
  return off;
}

static void
rewrite_switchover(DrRewriter *r)
{
  DrArgv *argv = r->out->argv;
  gboolean off;
  DrOpt *opt;

  switch (r->plan->switchover) {
  case DR_SWITCHOVER_AS_GIVEN:
    return;
  case DR_SWITCHOVER_OFF:
    if (!next_switchover(argv, NULL, &off))
      dr_argv_append(argv, "global", "migration.send-switchover-start=off");
    return;
  case DR_SWITCHOVER_UNKNOWN:
    while ((opt = next_switchover(argv, NULL, &off)))
      dr_argv_remove(argv, opt);
    return;
  }
}

/* --- RAM --- */

static gboolean
ram_object(DrRewriter *r, const DrRewriteRam *ram, GError **error)
{
  DrArgv *argv = r->out->argv;
  DrOpt *object = dr_argv_find_id(argv, "object", ram->id);
  g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", ram->fd);
  g_autoptr(DrOpts) opts = NULL;

  opts = object ? dr_opt_parse(object, error) : dr_opts_new("object", DR_OPTS_KEYVAL);
  if (!opts)
    return FALSE;
  dr_opts_set(opts, "qom-type", "memory-backend-file");
  dr_opts_set(opts, "id", ram->id);
  if (!object)
    dr_opts_set_uint(opts, "size", ram->size);
  dr_opts_set(opts, "mem-path", path);
  dr_opts_set_bool(opts, "share", TRUE);
  dr_opts_unset(opts, "hugetlb");
  dr_opts_unset(opts, "hugetlbsize");
  dr_opts_unset(opts, "seal");
  dr_opts_unset(opts, "discard-data");
  if (object) {
    dr_opt_set_opts(object, opts);
  } else {
    g_autofree char *value = dr_opts_print(opts);
    g_autofree char *backend = g_strdup_printf("memory-backend=%s", ram->id);

    dr_argv_append(argv, "object", value);
    dr_argv_append(argv, "machine", backend);
    dr_argv_remove_all(argv, "mem-path"); /* QEMU takes one or the other */
  }
  return TRUE;
}

/* --- Networks --- */

static char *
join_numbers(const GArray *numbers)
{
  g_autoptr(GString) text = g_string_new(NULL);

  for (guint i = 0; i < numbers->len; i++)
    g_string_append_printf(text, "%s%d", i ? ":" : "", g_array_index(numbers, int, i));
  return g_strdup(text->str);
}

/* ifname=, scripts and helpers are for the QEMU that opens the tap; one that is handed descriptors refuses them. */
static void
tap_by_number(DrOpts *opts, const GArray *numbers)
{
  static const char *const of_the_opener[] = { "ifname", "script", "downscript", "helper", "br", "queues" };
  g_autofree char *list = join_numbers(numbers);

  for (guint i = 0; i < G_N_ELEMENTS(of_the_opener); i++)
    dr_opts_unset(opts, of_the_opener[i]);
  dr_opts_set(opts, "type", "tap");
  dr_opts_set(opts, numbers->len > 1 ? "fds" : "fd", list);
}

static gboolean
rewrite_network(DrRewriter *r, guint i, DrOpt *opt, GError **error)
{
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);
  const char *type;

  if (!opts)
    return FALSE;
  type = dr_opts_get(opts, "type");
  const DrNeed *need = dr_rewriter_need(r, DR_NEED_TAP, i);
  if (need)
    tap_by_number(opts, need->numbers);
  else if (type && g_str_equal(type, "user"))
    dr_opts_unset(opts, "hostfwd");
  else
    return TRUE;
  dr_opt_set_opts(opt, opts);
  return TRUE;
}

/* --- VNC --- */

static void
note_vnc(DrRewriter *r, DrOpts *opts, const char *address)
{
  DrVncAddress *vnc = g_new0(DrVncAddress, 1);
  const char *colon = strrchr(address, ':');
  guint64 display = colon ? g_ascii_strtoull(colon + 1, NULL, 10) : 0;

  vnc->id = g_strdup(dr_opts_get(opts, "id"));
  vnc->host = g_strndup(address, colon ? (gsize)(colon - address) : 0);
  vnc->port = g_strdup_printf("%u", (guint)(5900 + display));
  vnc->range = dr_opts_has(opts, "to");
  g_ptr_array_add(r->out->vnc, vnc);
}

/* Only the first server can be moved to a port while QEMU runs: display-update and `change vnc` name none. */
static void
check_vnc_is_first(DrRewriter *r, const DrOpt *opt)
{
  for (DrOpt *other = NULL; (other = dr_argv_next(r->out->argv, "vnc", other)) && other != opt;) {
    if (other->value && g_str_equal(other->value, "none"))
      continue;
    dr_findings_add(r->findings, DR_FINDING_BLOCKER, "vnc-several",
                    "leave one VNC server on a port, as the first -vnc; others on "
                    "unix sockets (-vnc unix:PATH)",
                    "-vnc %s: a second QEMU cannot be given the port of a VNC server that is not its first",
                    opt->value);
    return;
  }
}

/* The new QEMU's VNC server begins on a private socket, so that its authentication is set up; it moves to the port once
 * the first QEMU is gone. */
static gboolean
rewrite_vnc(DrRewriter *r, DrOpt *opt, GError **error)
{
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);
  g_autofree char *address = NULL;
  g_autofree char *path = NULL;
  g_autofree char *unix_address = NULL;

  if (!opts)
    return FALSE;
  address = g_strdup(dr_opts_get(opts, "vnc"));
  if (!address || g_str_equal(address, "none"))
    return TRUE;
  if (dr_opts_has(opts, "websocket") || dr_opts_has(opts, "reverse"))
    dr_findings_add(
        r->findings, DR_FINDING_BLOCKER, "vnc-websocket", "run a websocket proxy beside the VM instead",
        "-vnc %s: a websocket or reverse connection cannot be handed to a second QEMU", opt->value);
  if (g_str_has_prefix(address, "unix:")) {
    path = dr_rewriter_private(r, address + strlen("unix:"));
  } else {
    check_vnc_is_first(r, opt);
    note_vnc(r, opts, address);
    path = g_strdup_printf("%s.vnc%u", r->plan->qmp_path, r->out->vnc->len);
  }
  unix_address = g_strconcat("unix:", path, NULL);
  dr_opts_set(opts, "vnc", unix_address);
  dr_opts_unset(opts, "to");
  if (!r->plan->foreign && (dr_opts_has(opts, "password") || dr_opts_has(opts, "password-secret")))
    dr_findings_add(r->findings, DR_FINDING_WARNING, "vnc-password",
                    "set it again after the upgrade (set_password)",
                    "a VNC password that was set at run time is not known to the new QEMU");
  dr_opt_set_opts(opt, opts);
  return TRUE;
}

static gboolean
rewrite_host_side(DrRewriter *r, const DrArgv *original, GError **error)
{
  /* The copy still has the original's options at the original's places. */
  for (guint i = 0; i < dr_argv_n(original); i++) {
    DrOpt *opt = dr_argv_opt(r->out->argv, i);

    if (dr_rewrite_is_network(opt) && !rewrite_network(r, i, opt, error))
      return FALSE;
    if (g_str_equal(opt->info->name, "vnc") && !rewrite_vnc(r, opt, error))
      return FALSE;
  }
  return TRUE;
}

DrRewrite *
dr_rewrite(const DrArgv *argv, const DrRewritePlan *plan, DrFindings *findings, GError **error)
{
  g_autoptr(DrRewrite) out = g_new0(DrRewrite, 1);
  DrRewriter r = { .plan = plan, .out = out, .findings = findings };

  out->renames = g_ptr_array_new_with_free_func((GDestroyNotify)rename_free);
  out->vnc = g_ptr_array_new_with_free_func((GDestroyNotify)vnc_free);
  out->argv = dr_argv_copy(argv);
  /* By position first, then what adds and removes options. */
  if (plan->incoming && !rewrite_host_side(&r, argv, error))
    return NULL;
  if (!dr_rewrite_chardevs(&r, argv, error))
    return NULL;
  for (guint i = 0; i < plan->n_ram; i++)
    if (!ram_object(&r, &plan->ram[i], error))
      return NULL;
  rewrite_process(&r);
  rewrite_switchover(&r);
  if (plan->incoming)
    rewrite_incoming(&r);
  return g_steal_pointer(&out);
}
