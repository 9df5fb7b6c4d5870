/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* By name, by number, by what is left, by bridge. */
#include "job/tap-queues.h"
#include "base/fd.h"

#include <linux/if_bridge.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define BRIDGE_PORTS 1024 /* of a bridge, at most (BR_MAX_PORTS) */

typedef struct {
  const GPtrArray *needs, *taps, *open;
  DrFindings *findings;
  GHashTable *queues; /* DrNeed -> GPtrArray of DrProcFd */
  GHashTable *taken;  /* of DrProcFd */
} Match;

static void
take(Match *m, const DrNeed *need, DrProcFd *fd)
{
  g_ptr_array_add(g_hash_table_lookup(m->queues, need), fd);
  g_hash_table_add(m->taken, fd);
}

static gboolean
has_none(Match *m, const DrNeed *need)
{
  return ((GPtrArray *)g_hash_table_lookup(m->queues, need))->len == 0;
}

/* --- What is known --- */

/* "20:21" */
static gboolean
is_listed(const char *numbers, int fd)
{
  g_auto(GStrv) words = g_strsplit(numbers ? numbers : "", ":", -1);
  g_autofree char *text = g_strdup_printf("%d", fd);

  return g_strv_contains((const char *const *)words, text);
}

static const DrTap *
find_tap(const GPtrArray *taps, const char *netdev)
{
  for (guint i = 0; netdev && i < taps->len; i++)
    if (g_str_equal(((DrTap *)taps->pdata[i])->netdev, netdev))
      return taps->pdata[i];
  return NULL;
}

static gboolean
is_known(const Match *m, const DrNeed *need, const DrProcFd *fd)
{
  const DrTap *tap = need->kind == DR_NEED_TAP ? find_tap(m->taps, need->netdev) : NULL;
  const char *name = need->ifname ? need->ifname : tap ? tap->ifname : NULL;

  if (need->fd >= 0)
    return need->kind == DR_NEED_FD && need->fd == fd->fd;
  if (name)
    return g_str_equal(name, fd->tap_ifname);
  return tap && is_listed(tap->fds, fd->fd);
}

/* The queue of a netdev that was given it by number is taken, too: it is nobody else's. */
static void
match_known(Match *m)
{
  for (guint i = 0; i < m->needs->len; i++) {
    const DrNeed *need = m->needs->pdata[i];

    for (guint n = 0; need->kind != DR_NEED_TCP_LISTENER && n < m->open->len; n++) {
      DrProcFd *fd = m->open->pdata[n];

      if (!fd->tap_ifname || !is_known(m, need, fd))
        continue;
      if (need->kind == DR_NEED_TAP)
        take(m, need, fd);
      else
        g_hash_table_add(m->taken, fd);
    }
  }
}

/* --- What is left --- */

/* One of each interface that nobody has, in the order in which they were made (the kernel counts). */
static int
compare_index(gconstpointer a, gconstpointer b)
{
  const DrProcFd *const *left = a, *const *right = b;
  guint x = if_nametoindex((*left)->tap_ifname), y = if_nametoindex((*right)->tap_ifname);

  return x < y ? -1 : x > y;
}

static GPtrArray *
left_over(const Match *m)
{
  GPtrArray *left = g_ptr_array_new();

  for (guint i = 0; i < m->open->len; i++) {
    DrProcFd *fd = m->open->pdata[i];
    gboolean again = FALSE;

    for (guint n = 0; n < left->len; n++)
      again |= g_strcmp0(((DrProcFd *)left->pdata[n])->tap_ifname, fd->tap_ifname) == 0;
    if (fd->tap_ifname && !again && !g_hash_table_contains(m->taken, fd))
      g_ptr_array_add(left, fd);
  }
  g_ptr_array_sort(left, compare_index);
  return left;
}

static GPtrArray *
nameless(Match *m)
{
  GPtrArray *needs = g_ptr_array_new();

  for (guint i = 0; i < m->needs->len; i++) {
    DrNeed *need = m->needs->pdata[i];

    if (need->kind == DR_NEED_TAP && has_none(m, need))
      g_ptr_array_add(needs, need);
  }
  return needs;
}

/* All queues of that interface. */
static void
take_interface(Match *m, const DrNeed *need, const char *ifname)
{
  for (guint i = 0; i < m->open->len; i++) {
    DrProcFd *fd = m->open->pdata[i];

    if (fd->tap_ifname && g_str_equal(fd->tap_ifname, ifname))
      take(m, need, fd);
  }
}

/* --- Bridges --- */

/* By the ioctl that brctl uses: sysfs may be that of another network namespace. */
static gboolean
is_port(const char *bridge, const char *ifname)
{
  dr_autofd int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  int ports[BRIDGE_PORTS] = { 0 };
  unsigned long arguments[4] = { BRCTL_GET_PORT_LIST, (unsigned long)ports, BRIDGE_PORTS, 0 };
  struct ifreq request = { 0 };
  int wanted = (int)if_nametoindex(ifname);

  if (sock < 0 || wanted == 0 ||
      g_strlcpy(request.ifr_name, bridge, sizeof request.ifr_name) >= sizeof request.ifr_name)
    return FALSE;
  request.ifr_data = (char *)arguments;
  if (ioctl(sock, SIOCDEVPRIVATE, &request) < 0)
    return FALSE;
  for (guint i = 0; i < BRIDGE_PORTS; i++)
    if (ports[i] == wanted)
      return TRUE;
  return FALSE;
}

static GPtrArray *
ports_among(const GPtrArray *left, const char *bridge)
{
  GPtrArray *ports = g_ptr_array_new();

  for (guint i = 0; i < left->len; i++) {
    DrProcFd *fd = left->pdata[i];

    if (is_port(bridge, fd->tap_ifname))
      g_ptr_array_add(ports, fd);
  }
  return ports;
}

/* Those of the same bridge, as many of the one kind as of the other. */
static void
match_bridge(Match *m, const GPtrArray *needs, const GPtrArray *left, const char *bridge)
{
  g_autoptr(GPtrArray) ports = ports_among(left, bridge);
  guint n = 0;

  for (guint i = 0; i < needs->len; i++)
    n += g_strcmp0(((DrNeed *)needs->pdata[i])->bridge, bridge) == 0;
  if (n != ports->len)
    return;
  n = 0;
  for (guint i = 0; i < needs->len; i++) {
    const DrNeed *need = needs->pdata[i];

    if (g_strcmp0(need->bridge, bridge) == 0)
      take_interface(m, need, ((DrProcFd *)ports->pdata[n++])->tap_ifname);
  }
}

static void
match_bridges(Match *m, const GPtrArray *needs, const GPtrArray *left)
{
  for (guint i = 0; i < needs->len; i++) {
    const DrNeed *need = needs->pdata[i];

    if (need->bridge && has_none(m, need))
      match_bridge(m, needs, left, need->bridge);
  }
}

/* --- All of it --- */

static char *
list_names(const GPtrArray *left)
{
  GString *text = g_string_new(NULL);

  for (guint i = 0; i < left->len; i++)
    g_string_append_printf(text, "%s%s", i ? ", " : "", ((DrProcFd *)left->pdata[i])->tap_ifname);
  return g_string_free(text, FALSE);
}

static void
tell_uncertain(Match *m, const DrNeed *need, const GPtrArray *left)
{
  g_autofree char *names = list_names(left);
  const char *name = need->netdev ? need->netdev : "without an id";

  if (left->len == 0)
    dr_findings_add(m->findings, DR_FINDING_BLOCKER, "tap", "plug that NIC in anew, or restart the guest",
                    "netdev '%s': the VM's QEMU has no open tap for it", name);
  else
    dr_findings_add(m->findings, DR_FINDING_BLOCKER, "tap",
                    "give each tap a name (-netdev tap,ifname=…), or unplug all NICs but one whose tap a "
                    "helper made",
                    "netdev '%s': which of the taps of the VM's QEMU is its own cannot be told (%s)", name,
                    names);
}

GHashTable *
dr_tap_queues(const GPtrArray *needs, const GPtrArray *taps, const GPtrArray *open, DrFindings *findings)
{
  g_autoptr(GHashTable) taken = g_hash_table_new(NULL, NULL);
  Match m = { .needs = needs, .taps = taps, .open = open, .findings = findings, .taken = taken };
  g_autoptr(GPtrArray) left = NULL;
  g_autoptr(GPtrArray) rest = NULL;

  m.queues = g_hash_table_new_full(NULL, NULL, NULL, (GDestroyNotify)g_ptr_array_unref);
  for (guint i = 0; i < needs->len; i++)
    g_hash_table_insert(m.queues, needs->pdata[i], g_ptr_array_new());
  match_known(&m);
  left = left_over(&m);
  rest = nameless(&m);
  if (rest->len == 1 && left->len == 1)
    take_interface(&m, rest->pdata[0], ((DrProcFd *)left->pdata[0])->tap_ifname);
  else
    match_bridges(&m, rest, left);
  for (guint i = 0; i < rest->len; i++)
    if (has_none(&m, rest->pdata[i]))
      tell_uncertain(&m, rest->pdata[i], left);
  return m.queues;
}
