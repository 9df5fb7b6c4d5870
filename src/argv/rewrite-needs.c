/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rewriter's list of what a second QEMU needs of the first. */
#include "argv/rewrite-internal.h"

#include <string.h>

void
dr_need_free(DrNeed *need)
{
  g_free(need->netdev);
  g_free(need->ifname);
  g_free(need->bridge);
  g_array_unref(need->numbers);
  g_free(need);
}

gboolean
dr_rewrite_is_network(const DrOpt *opt)
{
  return g_str_equal(opt->info->name, "netdev") || g_str_equal(opt->info->name, "nic") ||
         g_str_equal(opt->info->name, "net");
}

static DrNeed *
add_need(GPtrArray *needs, DrNeedKind kind, guint opt)
{
  DrNeed *need = g_new0(DrNeed, 1);

  need->kind = kind;
  need->opt = opt;
  need->fd = -1;
  need->numbers = g_array_new(FALSE, FALSE, sizeof(int));
  g_ptr_array_add(needs, need);
  return need;
}

/* "12" or "12:13". Names of getfd are no numbers and are left to QEMU to complain about. */
static void
need_numbers(GPtrArray *needs, DrNeedKind kind, guint opt, const char *list, gboolean tap)
{
  g_auto(GStrv) words = g_strsplit(list ? list : "", ":", -1);

  for (char **word = words; *word; word++) {
    guint64 number;

    if (!g_ascii_string_to_unsigned(*word, 10, 0, G_MAXINT, &number, NULL))
      continue;
    DrNeed *need = add_need(needs, kind, opt);
    need->fd = (int)number;
    need->tap = tap;
  }
}

static void
need_fds(GPtrArray *needs, guint opt, const char *list, gboolean tap)
{
  need_numbers(needs, DR_NEED_FD, opt, list, tap);
}

static void
need_fdset(GPtrArray *needs, guint i, DrOpts *opts)
{
  guint64 fd, set;
  guint nth = 0;

  if (!dr_opts_get_uint(opts, "fd", 0, &fd, NULL) || !dr_opts_get_uint(opts, "set", 0, &set, NULL))
    return;
  for (guint j = 0; j < needs->len; j++)
    nth +=
        ((DrNeed *)needs->pdata[j])->kind == DR_NEED_FDSET && ((DrNeed *)needs->pdata[j])->set == (gint64)set;
  DrNeed *need = add_need(needs, DR_NEED_FDSET, i);
  need->fd = (int)fd;
  need->set = (gint64)set;
  need->nth = nth;
}

/* Where a helper puts the tap that it makes: "br0" is QEMU's DEFAULT_BRIDGE_INTERFACE (5.2 to 11.1). NULL: QEMU opens the tap
 * itself. */
static const char *
bridge_of(const char *type, DrOpts *opts)
{
  const char *bridge = dr_opts_get(opts, "br");

  if (!g_str_equal(type, "bridge") && !bridge && !dr_opts_has(opts, "helper"))
    return NULL;
  return bridge ? bridge : "br0";
}

static void
need_network(GPtrArray *needs, guint i, DrOpts *opts)
{
  const char *type = dr_opts_get(opts, "type");

  need_fds(needs, i, dr_opts_get(opts, "fd"), TRUE);
  need_fds(needs, i, dr_opts_get(opts, "fds"), TRUE);
  need_numbers(needs, DR_NEED_VHOST, i, dr_opts_get(opts, "vhostfd"), FALSE);
  need_numbers(needs, DR_NEED_VHOST, i, dr_opts_get(opts, "vhostfds"), FALSE);
  if (g_strcmp0(type, "dgram") == 0 && g_strcmp0(dr_opts_get(opts, "local.type"), "fd") == 0)
    need_fds(needs, i, dr_opts_get(opts, "local.str"), FALSE);
  if (!type || (!g_str_equal(type, "tap") && !g_str_equal(type, "bridge")))
    return;
  if (dr_opts_has(opts, "fd") || dr_opts_has(opts, "fds"))
    return;
  DrNeed *need = add_need(needs, DR_NEED_TAP, i);
  need->netdev = g_strdup(dr_opts_get(opts, "id"));
  need->ifname = g_strdup(dr_opts_get(opts, "ifname"));
  need->bridge = g_strdup(bridge_of(type, opts));
}

static void
need_chardev(GPtrArray *needs, guint i, const DrOpt *opt)
{
  g_autoptr(DrChardev) chardev = dr_opt_parse_chardev(opt, NULL);
  guint64 port;

  if (!chardev)
    return;
  need_fds(needs, i, chardev->fd, FALSE);
  if (chardev->kind != DR_CHARDEV_TCP || !dr_chardev_is_listener(chardev) ||
      g_str_equal(opt->info->name, "gdb"))
    return;
  if (g_ascii_string_to_unsigned(chardev->port ? chardev->port : "", 10, 1, 65535, &port, NULL))
    add_need(needs, DR_NEED_TCP_LISTENER, i)->port = port;
}

static void
need_object(GPtrArray *needs, guint i, DrOpts *opts)
{
  const char *path = dr_opts_get(opts, "mem-path");
  const char *number = NULL;

  if (path && g_str_has_prefix(path, "/proc/self/fd/"))
    number = path + strlen("/proc/self/fd/");
  else if (path && g_str_has_prefix(path, "/dev/fd/"))
    number = path + strlen("/dev/fd/");
  need_fds(needs, i, number, FALSE);
}

GPtrArray *
dr_rewrite_needs(const DrArgv *argv)
{
  GPtrArray *needs = g_ptr_array_new_with_free_func((GDestroyNotify)dr_need_free);

  for (guint i = 0; i < dr_argv_n(argv); i++) {
    const DrOpt *opt = dr_argv_opt(argv, i);
    g_autoptr(DrOpts) opts = NULL;

    if (opt->info->kind == DR_VALUE_CHARDEV || g_str_equal(opt->info->name, "chardev")) {
      need_chardev(needs, i, opt);
      continue;
    }
    if (!dr_rewrite_is_network(opt) && !g_str_equal(opt->info->name, "object") &&
        !g_str_equal(opt->info->name, "add-fd"))
      continue;
    opts = dr_opt_parse(opt, NULL);
    if (opts && dr_rewrite_is_network(opt))
      need_network(needs, i, opts);
    else if (opts && g_str_equal(opt->info->name, "add-fd"))
      need_fdset(needs, i, opts);
    else if (opts)
      need_object(needs, i, opts);
  }
  return needs;
}

const DrNeed *
dr_rewriter_need(DrRewriter *r, DrNeedKind kind, guint opt)
{
  for (guint i = 0; r->plan->needs && i < r->plan->needs->len; i++) {
    const DrNeed *need = r->plan->needs->pdata[i];

    if (need->kind == kind && need->opt == opt && need->numbers->len)
      return need;
  }
  return NULL;
}
