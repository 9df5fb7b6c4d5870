/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What stands behind plugged-in devices: netdevs, character devices, objects that were added at run time, written down where
 * QEMU tells all that matters; and those of the command line that were removed. */
#include "job/inventory-internal.h"

#include <string.h>

static gboolean
is_wanted(const DrApply *a, const char *kind, const char *id)
{
  g_autofree char *key = g_strdup_printf("%s:%s", kind, id);

  return g_hash_table_contains(a->wanted, key);
}

/* Blocks the move if a device needs it; else the user is told that it will be missing. */
static void
leave_out(DrApply *a, const char *kind, const char *id, const char *what)
{
  if (is_wanted(a, kind, id))
    dr_apply_block(a, "hotplug-backend",
                   "unplug the device that uses it for the move, or restart the guest with both on its "
                   "command line",
                   "%s '%s' (%s) was added at run time, and QEMU does not tell how", kind, id, what);
  else
    dr_findings_add(
        a->findings, DR_FINDING_WARNING, "lost-backend", "add it again after the move",
        "%s '%s' (%s) was added at run time, no device uses it, and it will be missing afterwards", kind, id,
        what);
}

/* --- netdevs --- */

/* QEMU's own names for -nic and -net without an id. */
static gboolean
is_unnamed_net(const char *name)
{
  return name[0] == '#' || g_str_has_prefix(name, "__org.qemu") || g_str_has_prefix(name, "hub");
}

static gboolean
argv_has_net(const DrArgv *argv, const char *id)
{
  static const char *const options[] = { "netdev", "nic", "net" };

  for (guint i = 0; i < G_N_ELEMENTS(options); i++) {
    if (dr_argv_find_id(argv, options[i], id))
      return TRUE;
    for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, options[i], opt));) {
      g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);

      if (opts && g_strcmp0(dr_opts_get(opts, "name"), id) == 0)
        return TRUE;
    }
  }
  return FALSE;
}

static guint
count_queues(const DrInventory *inv, const char *name)
{
  guint queues = 0;

  for (guint i = 0; i < inv->nets->len; i++)
    queues += g_str_equal(((DrNet *)inv->nets->pdata[i])->name, name);
  return queues;
}

/* vhost is for virtio-net only. */
static gboolean
may_use_vhost(const DrInventory *inv, const DrNet *net)
{
  const DrNet *nic = net->peer ? dr_net_find(inv, net->peer) : NULL;

  return nic && nic->model && g_str_has_prefix(nic->model, "virtio");
}

/* The rewriter hands the running queues over, whatever is written here opens none. */
static void
write_tap(DrApply *a, DrOpts *opts, const DrNet *net)
{
  static const char *const keys[] = { "ifname", "script", "downscript", "helper" };
  const DrTap *tap = dr_tap_find(a->inventory->taps, net->name);
  guint queues = count_queues(a->inventory, net->name);

  if (tap && tap->fds)
    dr_opts_set(opts, queues > 1 ? "fds" : "fd", tap->fds);
  for (guint i = 0; !(tap && tap->fds) && i < G_N_ELEMENTS(keys); i++) {
    g_autofree char *value = dr_net_key(net, keys[i]);

    if (value)
      dr_opts_set(opts, keys[i], value);
  }
  if (queues > 1 && !(tap && tap->fds))
    dr_opts_set_uint(opts, "queues", queues);
  if (!may_use_vhost(a->inventory, net))
    return;
  dr_findings_add(
      a->findings, DR_FINDING_WARNING, "hotplug-netdev",
      "compare the guest's throughput, or plug the NIC in anew",
      "netdev '%s' was added at run time; QEMU does not tell whether it uses vhost, and the new one will not",
      net->name);
}

/* The network is told without its mask. */
static gboolean
has_default_network(const DrNet *net)
{
  g_autofree char *address = dr_net_key(net, "net");

  return g_strcmp0(address, "10.0.2.0") == 0;
}

static void
write_user(DrApply *a, DrOpts *opts, const DrNet *net)
{
  g_autofree char *restrict_ = dr_net_key(net, "restrict");

  if (g_strcmp0(restrict_, "on") == 0)
    dr_opts_set(opts, "restrict", "on");
  for (guint i = 0; i < a->inventory->forwards->len; i++) {
    const DrForward *forward = a->inventory->forwards->pdata[i];

    if (g_str_equal(forward->netdev, net->name))
      dr_opts_append(opts, "hostfwd", forward->add);
  }
  dr_findings_add(a->findings, DR_FINDING_WARNING, "hotplug-netdev",
                  "plug the NIC in anew if it used any of these",
                  "netdev '%s' was added at run time; QEMU does not tell its dns=, dhcpstart=, host=, tftp=, "
                  "smb= and guestfwd=, "
                  "and the new one has their defaults",
                  net->name);
}

static void
add_netdev(DrApply *a, const DrNet *net)
{
  g_autoptr(DrOpts) opts = dr_opts_new("netdev", DR_OPTS_KEYVAL);
  g_autofree char *value = NULL;

  dr_opts_set(opts, "type", net->type);
  dr_opts_set(opts, "id", net->name);
  if (g_str_equal(net->type, "tap")) {
    write_tap(a, opts, net);
  } else if (g_str_equal(net->type, "user") && has_default_network(net)) {
    write_user(a, opts, net);
  } else {
    leave_out(a, "netdev", net->name, net->type);
    return;
  }
  value = dr_opts_print(opts);
  dr_argv_append(a->argv, "netdev", value);
}

static int
net_by_name(gconstpointer a, gconstpointer b)
{
  return strcmp((*(DrNet *const *)a)->name, (*(DrNet *const *)b)->name);
}

/* QEMU lists them in no order that a new process would have too. */
static void
add_netdevs(DrApply *a)
{
  g_autoptr(GPtrArray) nets = g_ptr_array_new();

  for (guint i = 0; i < a->inventory->nets->len; i++)
    g_ptr_array_add(nets, a->inventory->nets->pdata[i]);
  g_ptr_array_sort(nets, net_by_name);
  for (guint i = 0; i < nets->len; i++) {
    const DrNet *net = nets->pdata[i];

    if (net->index == 0 && net->hub < 0 && !g_str_equal(net->type, "nic") && !is_unnamed_net(net->name) &&
        !argv_has_net(a->argv, net->name))
      add_netdev(a, net);
  }
}

static gboolean
remove_netdevs(DrApply *a, GError **error)
{
  g_autoptr(GPtrArray) gone = g_ptr_array_new();

  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, "netdev", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);
    const char *id = opts ? dr_opts_get(opts, "id") : NULL;

    if (!opts)
      return FALSE;
    if (id && g_strcmp0(dr_opts_get(opts, "type"), "hubport") != 0 && !dr_net_find(a->inventory, id))
      g_ptr_array_add(gone, opt);
  }
  for (guint i = 0; i < gone->len; i++)
    dr_argv_remove(a->argv, gone->pdata[i]);
  return TRUE;
}

/* --- Character devices --- */

/* QEMU's names for -serial, -monitor, -qmp and the like, and those that the rewriter gives them. */
static gboolean
is_unnamed_chardev(const char *label)
{
  static const char *const numbered[] = { "compat_monitor", "serial",      "parallel",
                                          "virtcon",        "debugcon",    "gdb",
                                          "usbserial",      "sclpconsole", "gdbstub" };

  /* The rewriter's own; guest forwards of user networks, with their address; what lies below a multiplexer. */
  if (g_str_has_prefix(label, "drover-") || g_str_has_prefix(label, "guestfwd.") ||
      g_str_has_suffix(label, "-base"))
    return TRUE;
  for (guint i = 0; i < G_N_ELEMENTS(numbered); i++) {
    gsize len = strlen(numbered[i]);

    if (g_str_has_prefix(label, numbered[i]) && strspn(label + len, "0123456789") == strlen(label + len))
      return TRUE;
  }
  return FALSE;
}

/* "disconnected:unix:/path,server=on" (5.2: ",server"), "telnet:127.0.0.1:4444,server=on <-> 127.0.0.1:5000" */
static gboolean
write_socket(DrOpts *opts, const char *filename)
{
  g_autofree char *text =
      g_strdup(g_str_has_prefix(filename, "disconnected:") ? strchr(filename, ':') + 1 : filename);
  char *server = strstr(text, ",server");
  char *colon;

  if (!server)
    return FALSE; /* a client: where it goes to is not told once it has lost the connection */
  *server = '\0';
  dr_opts_set(opts, "backend", "socket");
  if (g_str_has_prefix(text, "unix:")) {
    dr_opts_set(opts, "path", text + strlen("unix:"));
  } else if ((g_str_has_prefix(text, "tcp:") || g_str_has_prefix(text, "telnet:")) &&
             (colon = strrchr(text, ':'))) {
    dr_opts_set(opts, "port", colon + 1);
    *colon = '\0';
    dr_opts_set(opts, "host", strchr(text, ':') ? strchr(text, ':') + 1 : "");
    if (g_str_has_prefix(text, "telnet"))
      dr_opts_set(opts, "telnet", "on");
  } else {
    return FALSE;
  }
  dr_opts_set(opts, "server", "on");
  dr_opts_set(opts, "wait", "off");
  return TRUE;
}

static void
add_chardev(DrApply *a, const char *label, const char *filename)
{
  g_autoptr(DrOpts) opts = dr_opts_new("chardev", DR_OPTS_KEYVAL);
  g_autofree char *value = NULL;

  if (g_str_equal(filename, "null")) {
    dr_opts_set(opts, "backend", "null");
  } else if (g_str_has_prefix(filename, "pty:")) {
    dr_opts_set(opts, "backend", "pty");
  } else if (!write_socket(opts, filename)) {
    leave_out(a, "chardev", label, filename);
    return;
  }
  dr_opts_set(opts, "id", label);
  value = dr_opts_print(opts);
  dr_argv_append(a->argv, "chardev", value);
}

static int
chardev_by_label(gconstpointer a, gconstpointer b)
{
  return strcmp(dr_json_str(*(JsonObject *const *)a, "label", ""),
                dr_json_str(*(JsonObject *const *)b, "label", ""));
}

static void
add_chardevs(DrApply *a)
{
  g_autoptr(GPtrArray) list = g_ptr_array_new();

  for (guint i = 0; a->inventory->chardevs && i < json_array_get_length(a->inventory->chardevs); i++)
    g_ptr_array_add(list, json_array_get_object_element(a->inventory->chardevs, i));
  g_ptr_array_sort(list, chardev_by_label);
  for (guint i = 0; i < list->len; i++) {
    JsonObject *chardev = list->pdata[i];
    const char *label = dr_json_str(chardev, "label", "");

    if (!is_unnamed_chardev(label) && !dr_argv_find_id(a->argv, "chardev", label))
      add_chardev(a, label, dr_json_str(chardev, "filename", ""));
  }
}

/* --- Objects --- */

/* What each kind takes, with the value that need not be written. */
static const struct {
  const char *type, *property, *otherwise;
} written[] = {
  { "iothread", "poll-max-ns", "32768" },
  { "iothread", "poll-grow", "0" },
  { "iothread", "poll-shrink", "0" },
  { "iothread", "aio-max-batch", "0" },
  { "iothread", "thread-pool-min", "0" },
  { "iothread", "thread-pool-max", "64" },
  { "rng-random", "filename", NULL },
  { "rng-egd", "chardev", NULL },
  { "rng-builtin", NULL, NULL },
  { "memory-backend-ram", "size", NULL },
  { "memory-backend-ram", "share", "false" },
  { "memory-backend-ram", "prealloc", "false" },
  { "memory-backend-ram", "merge", "true" },
  { "memory-backend-ram", "dump", "true" },
  { "memory-backend-ram", "x-use-canonical-path-for-ramblock-id", "false" },
  { "memory-backend-file", "size", NULL },
  { "memory-backend-file", "mem-path", NULL },
  { "memory-backend-file", "share", "false" },
  { "memory-backend-file", "prealloc", "false" },
  { "memory-backend-file", "merge", "true" },
  { "memory-backend-file", "dump", "true" },
  { "memory-backend-file", "align", "0" },
  { "memory-backend-file", "pmem", "false" },
  { "memory-backend-file", "readonly", "false" },
  { "memory-backend-file", "x-use-canonical-path-for-ramblock-id", "true" },
};

static gboolean
write_object(DrOpts *opts, const DrPlugged *object)
{
  const char *policy = g_hash_table_lookup(object->props, "policy");
  gboolean known = FALSE;

  if (policy && !g_str_equal(policy, "default"))
    return FALSE; /* its host nodes are a list */
  for (guint i = 0; i < G_N_ELEMENTS(written); i++) {
    const char *value;

    if (!g_str_equal(written[i].type, object->type))
      continue;
    known = TRUE;
    value = written[i].property ? g_hash_table_lookup(object->props, written[i].property) : NULL;
    if (!value || g_strcmp0(value, written[i].otherwise) == 0)
      continue;
    dr_opts_set(opts, written[i].property,
                g_str_equal(value, "true")    ? "on"
                : g_str_equal(value, "false") ? "off"
                                              : value);
  }
  return known;
}

static void
add_object(DrApply *a, const DrPlugged *object)
{
  g_autoptr(DrOpts) opts = dr_opts_new("object", DR_OPTS_KEYVAL);
  g_autofree char *value = NULL;

  dr_opts_set(opts, "qom-type", object->type);
  dr_opts_set(opts, "id", object->name);
  if (!write_object(opts, object)) {
    leave_out(a, "object", object->name, object->type);
    return;
  }
  value = dr_opts_print(opts);
  dr_argv_append(a->argv, "object", value);
}

/* Made by QEMU itself: the machine's RAM without memory-backend=, monitors (11.1). */
static gboolean
is_unnamed_object(const DrInventory *inv, const DrPlugged *object)
{
  return g_str_has_prefix(object->type, "monitor-") || g_strcmp0(object->name, inv->ram_backend) == 0;
}

static int
object_by_name(gconstpointer a, gconstpointer b)
{
  return strcmp((*(DrPlugged *const *)a)->name, (*(DrPlugged *const *)b)->name);
}

static void
add_objects(DrApply *a)
{
  g_autoptr(GPtrArray) objects = g_ptr_array_new();

  for (guint i = 0; i < a->inventory->objects->len; i++)
    g_ptr_array_add(objects, a->inventory->objects->pdata[i]);
  g_ptr_array_sort(objects, object_by_name);
  for (guint i = 0; i < objects->len; i++) {
    const DrPlugged *object = objects->pdata[i];

    if (!dr_argv_find_id(a->argv, "object", object->name) && !is_unnamed_object(a->inventory, object))
      add_object(a, object);
  }
}

static gboolean
object_exists(const DrInventory *inv, const char *id)
{
  for (guint i = 0; i < inv->objects->len; i++)
    if (g_str_equal(((DrPlugged *)inv->objects->pdata[i])->name, id))
      return TRUE;
  return FALSE;
}

static gboolean
remove_objects(DrApply *a, GError **error)
{
  g_autoptr(GPtrArray) gone = g_ptr_array_new();

  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, "object", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);
    const char *id = opts ? dr_opts_get(opts, "id") : NULL;

    if (!opts)
      return FALSE;
    if (id && !object_exists(a->inventory, id))
      g_ptr_array_add(gone, opt);
  }
  for (guint i = 0; i < gone->len; i++)
    dr_argv_remove(a->argv, gone->pdata[i]);
  return TRUE;
}

gboolean
dr_apply_backends(DrApply *a, GError **error)
{
  if (!remove_netdevs(a, error) || !remove_objects(a, error))
    return FALSE;
  add_objects(a);
  add_chardevs(a);
  add_netdevs(a);
  return TRUE;
}
