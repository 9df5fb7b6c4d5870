/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The network as HMP tells it: `info network` and `info usernet`, which have no QMP twin.
 *
 * info network (same shape in 5.2 to 11.1):
 *
 *   hub 0
 *    \ hub0port1: #net189: index=0,type=user,net=10.0.2.0,restrict=off
 *    \ hub0port0: e1000e.0: index=0,type=nic,model=e1000e,macaddr=52:54:00:12:34:56
 *   u9: index=0,type=user,net=10.7.0.0,restrict=on
 *   n0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:57
 *    \ t1: index=0,type=tap,ifname=tap0,script=no,downscript=no
 */
#include "job/inventory-internal.h"

#include <stdlib.h>
#include <string.h>

static void
net_free(DrNet *net)
{
  g_free(net->name);
  g_free(net->type);
  g_free(net->info);
  g_free(net->mac);
  g_free(net->model);
  g_free(net->peer);
  g_free(net);
}

static void
forward_free(DrForward *forward)
{
  g_free(forward->netdev);
  g_free(forward->add);
  g_free(forward->remove);
  g_free(forward);
}

static void
tap_free(DrTap *tap)
{
  g_free(tap->netdev);
  g_free(tap->ifname);
  g_free(tap->fds);
  g_free(tap);
}

/* The value of `key` in "a=1,key=2,b=3", or NULL. QEMU does not escape commas here. */
static char *
find_key(const char *info, const char *key)
{
  g_auto(GStrv) parts = g_strsplit(info, ",", -1);
  gsize len = strlen(key);

  for (char **part = parts; *part; part++)
    if (strncmp(*part, key, len) == 0 && (*part)[len] == '=')
      return g_strdup(*part + len + 1);
  return NULL;
}

/* "NAME: index=0,type=user,…" */
static DrNet *
parse_endpoint(const char *text, int hub)
{
  const char *index = strstr(text, ": index=");
  DrNet *net;

  if (!index)
    return NULL;
  net = g_new0(DrNet, 1);
  net->name = g_strndup(text, index - text);
  net->info = g_strdup(index + 2);
  net->index = atoi(index + strlen(": index="));
  net->type = find_key(net->info, "type");
  if (!net->type)
    net->type = g_strdup("?");
  if (g_str_equal(net->type, "nic")) {
    net->mac = find_key(net->info, "macaddr");
    net->model = find_key(net->info, "model");
  }
  net->hub = hub;
  return net;
}

/* "hub0port1: #net189: index=…" has the port's name in front, user-given ids included. */
static const char *
skip_port(const char *text)
{
  const char *first = strstr(text, ": ");
  const char *index = strstr(text, ": index=");

  return first && index && first < index ? first + 2 : text;
}

GPtrArray *
dr_net_parse(const char *text)
{
  GPtrArray *nets = g_ptr_array_new_with_free_func((GDestroyNotify)net_free);
  g_auto(GStrv) lines = g_strsplit_set(text, "\r\n", -1);
  DrNet *above = NULL;
  int hub = -1;

  for (char **line = lines; *line; line++) {
    gboolean below = g_str_has_prefix(*line, " \\ ");
    DrNet *net;

    if (!below)
      hub = g_str_has_prefix(*line, "hub ") ? atoi(*line + 4) : -1;
    net = below && hub >= 0 ? parse_endpoint(skip_port(*line + 3), hub)
                            : parse_endpoint(*line + (below ? 3 : 0), -1);
    if (!net)
      continue;
    if (below && hub < 0 && above) {
      net->peer = g_strdup(above->name);
      above->peer = g_strdup(net->name);
    }
    above = below ? NULL : net;
    g_ptr_array_add(nets, net);
  }
  return nets;
}

char *
dr_net_key(const DrNet *net, const char *key)
{
  return find_key(net->info, key);
}

DrNet *
dr_net_find(const DrInventory *inventory, const char *name)
{
  for (guint i = 0; i < inventory->nets->len; i++) {
    DrNet *net = inventory->nets->pdata[i];

    if (g_str_equal(net->name, name))
      return net;
  }
  return NULL;
}

/* One "TCP[HOST_FORWARD] FD SOURCE PORT DEST PORT RECVQ SENDQ" line; "*" is any address. */
static DrForward *
parse_forward(const char *netdev, char **words)
{
  DrForward *forward;
  g_autofree char *protocol = NULL;
  const char *from;

  if (g_strv_length(words) < 6 || !g_str_has_suffix(words[0], "[HOST_FORWARD]"))
    return NULL;
  protocol = g_ascii_strdown(words[0], strcspn(words[0], "["));
  from = g_str_equal(words[2], "*") ? "" : words[2];
  forward = g_new0(DrForward, 1);
  forward->netdev = g_strdup(netdev);
  forward->add = g_strdup_printf("%s:%s:%s-%s:%s", protocol, from, words[3], words[4], words[5]);
  forward->remove = g_strdup_printf("%s:%s:%s", protocol, from, words[3]);
  return forward;
}

static char **
split_words(const char *line)
{
  g_autoptr(GStrvBuilder) words = g_strv_builder_new();
  g_auto(GStrv) all = g_strsplit(line, " ", -1);

  for (char **word = all; *word; word++)
    if (**word)
      g_strv_builder_add(words, *word);
  return g_strv_builder_end(words);
}

GPtrArray *
dr_forwards_parse(const char *text)
{
  GPtrArray *forwards = g_ptr_array_new_with_free_func((GDestroyNotify)forward_free);
  g_auto(GStrv) lines = g_strsplit_set(text, "\r\n", -1);
  g_autofree char *netdev = NULL;

  for (char **line = lines; *line; line++) {
    g_auto(GStrv) words = split_words(*line);
    DrForward *forward;

    if (g_str_has_prefix(*line, "Hub ") && strchr(*line, '(') && strrchr(*line, ')')) {
      const char *begin = strchr(*line, '(') + 1;

      g_free(netdev);
      netdev = g_strndup(begin, strrchr(*line, ')') - begin);
    } else if (netdev && (forward = parse_forward(netdev, words))) {
      g_ptr_array_add(forwards, forward);
    }
  }
  return forwards;
}

DrTap *
dr_tap_find(const GPtrArray *taps, const char *netdev)
{
  for (guint i = 0; i < taps->len; i++) {
    DrTap *tap = taps->pdata[i];

    if (g_str_equal(tap->netdev, netdev))
      return tap;
  }
  return NULL;
}

/* "type=tap,fd=5" (-netdev tap,fd= or fds=), "type=tap,ifname=…,script=…", "type=tap,helper=…" (then ifname is what the
 * helper made, which QEMU does not tell). */
GPtrArray *
dr_taps_of(const GPtrArray *nets)
{
  GPtrArray *taps = g_ptr_array_new_with_free_func((GDestroyNotify)tap_free);

  for (guint i = 0; i < nets->len; i++) {
    const DrNet *net = nets->pdata[i];
    g_autofree char *fd = NULL;
    DrTap *tap;

    if (!g_str_equal(net->type, "tap"))
      continue;
    tap = dr_tap_find(taps, net->name);
    if (!tap) {
      tap = g_new0(DrTap, 1);
      tap->netdev = g_strdup(net->name);
      tap->ifname = find_key(net->info, "ifname");
      g_ptr_array_add(taps, tap);
    }
    fd = find_key(net->info, "fd");
    if (fd) {
      char *fds = tap->fds ? g_strconcat(tap->fds, ":", fd, NULL) : g_strdup(fd);

      g_free(tap->fds);
      tap->fds = fds;
    }
  }
  return taps;
}
