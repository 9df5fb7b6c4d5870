/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The relay of a stream, with TLS and without: every byte both ways, ends that are passed on, and sides that break. */
#include "base/deadline.h"
#include "base/error.h"
#include "net/meter.h"
#include "net/relay.h"
#include "test-net-util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define QUICK_MS 5000
#define MUCH (48 << 20)

typedef struct {
  Net net;
  int a, b; /* the QEMUs' ends */
  DrRelay *relay_a, *relay_b;
  int broken_a, broken_b;
} Tunnel;

static int
local_pair(int *ret_other)
{
  int fds[2];

  g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), ==, 0);
  *ret_other = fds[0];
  return fds[1];
}

static void
tunnel_set_up(Tunnel *tunnel, gconstpointer plain)
{
  DrConn *conns[2];

  net_set_up(&tunnel->net, NULL);
  if (plain)
    net_plain(conns);
  else
    net_tls(&tunnel->net, conns);
  tunnel->broken_a = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  tunnel->broken_b = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  tunnel->relay_a = dr_relay_new(local_pair(&tunnel->a), conns[0], tunnel->broken_a, NULL);
  tunnel->relay_b = dr_relay_new(local_pair(&tunnel->b), conns[1], tunnel->broken_b, NULL);
}

static void
tunnel_tear_down(Tunnel *tunnel, gconstpointer plain)
{
  dr_relay_free(tunnel->relay_a);
  dr_relay_free(tunnel->relay_b);
  if (tunnel->a >= 0)
    close(tunnel->a);
  if (tunnel->b >= 0)
    close(tunnel->b);
  close(tunnel->broken_a);
  close(tunnel->broken_b);
  net_tear_down(&tunnel->net, NULL);
}

static void
wait_state(DrRelay *relay, DrRelayState state)
{
  DrDeadline deadline = dr_deadline_in(QUICK_MS);

  while (dr_relay_state(relay) != state && !dr_deadline_passed(deadline))
    g_usleep(1000);
  g_assert_cmpint(dr_relay_state(relay), ==, state);
}

/* What the meter says of how many streams there are in this process. */
static void
wait_streams(guint n)
{
  DrDeadline deadline = dr_deadline_in(QUICK_MS);
  DrMeterTotals totals;

  do
    dr_meter_read(&totals);
  while (totals.streams != n && !dr_deadline_passed(deadline));
  g_assert_cmpuint(totals.streams, ==, n);
}

/* --- Bytes --- */

typedef struct {
  int fd;
  guint32 seed;
  char *sum;
} Flow;

static gpointer
send_flow(gpointer data)
{
  Flow *flow = data;
  g_autoptr(GRand) rand = g_rand_new_with_seed(flow->seed);
  g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA1);
  g_autofree guint32 *buffer = g_new(guint32, 65536);
  gsize sent = 0;

  while (sent < MUCH) {
    gsize most = (gsize)g_rand_int_range(rand, 1, 65536 * 4), len = MIN(most, MUCH - sent);

    for (gsize i = 0; i < 64; i++)
      buffer[g_rand_int_range(rand, 0, 65536)] = g_rand_int(rand);
    g_checksum_update(sum, (guchar *)buffer, (gssize)len);
    for (gsize at = 0; at < len;) {
      gssize n = send(flow->fd, (char *)buffer + at, len - at, MSG_NOSIGNAL);

      g_assert_cmpint(n, >, 0);
      at += (gsize)n;
    }
    sent += len;
  }
  shutdown(flow->fd, SHUT_WR);
  flow->sum = g_strdup(g_checksum_get_string(sum));
  return NULL;
}

static gpointer
receive_flow(gpointer data)
{
  Flow *flow = data;
  g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA1);
  g_autofree guchar *buffer = g_malloc(100000);
  gsize total = 0;
  gssize n;

  while ((n = recv(flow->fd, buffer, 100000, 0)) > 0) {
    g_checksum_update(sum, buffer, n);
    total += (gsize)n;
  }
  g_assert_cmpint(n, ==, 0);
  g_assert_cmpint(total, ==, MUCH);
  flow->sum = g_strdup(g_checksum_get_string(sum));
  return NULL;
}

static void
test_bytes(Tunnel *tunnel, gconstpointer plain)
{
  Flow flows[4] = { { tunnel->a, 1 }, { tunnel->b, 0 }, { tunnel->b, 2 }, { tunnel->a, 0 } };
  GThread *threads[4];
  DrMeterTotals before, after;

  dr_meter_read(&before);
  for (guint i = 0; i < 4; i++)
    threads[i] = g_thread_new("flow", i % 2 ? receive_flow : send_flow, &flows[i]);
  for (guint i = 0; i < 4; i++)
    g_thread_join(threads[i]);
  g_assert_cmpstr(flows[0].sum, ==, flows[1].sum);
  g_assert_cmpstr(flows[2].sum, ==, flows[3].sum);
  g_assert_cmpstr(flows[0].sum, !=, flows[2].sum);
  wait_state(tunnel->relay_a, DR_RELAY_ENDED);
  wait_state(tunnel->relay_b, DR_RELAY_ENDED);
  g_assert_cmpint(dr_relay_bytes_out(tunnel->relay_a), ==, MUCH);
  g_assert_cmpint(dr_relay_bytes_in(tunnel->relay_a), ==, MUCH);
  g_assert_cmpint(dr_relay_bytes_in(tunnel->relay_b), ==, MUCH);
  g_assert_false(net_readable(tunnel->broken_a, 0));
  g_assert_false(net_readable(tunnel->broken_b, 0));
  wait_streams(0);
  dr_meter_read(&after); /* of both relays */
  g_assert_cmpint(after.bytes_out - before.bytes_out, ==, 2 * (gint64)MUCH);
  g_assert_cmpint(after.bytes_in - before.bytes_in, ==, 2 * (gint64)MUCH);
  g_assert_cmpint(after.cpu_ns, >, before.cpu_ns);
  for (guint i = 0; i < 4; i++)
    g_free(flows[i].sum);
}

static void
assert_passes(int from, int to)
{
  char byte = 0;

  g_assert_cmpint(send(from, "x", 1, MSG_NOSIGNAL), ==, 1);
  assert_readable(to, QUICK_MS);
  g_assert_cmpint(recv(to, &byte, 1, 0), ==, 1);
  g_assert_cmpint(byte, ==, 'x');
}

/* Nothing of a socket is left: both its directions are closed. */
static void
assert_closed(int fd)
{
  struct pollfd one = { .fd = fd, .events = 0 };

  g_assert_cmpint(poll(&one, 1, QUICK_MS), ==, 1);
  g_assert_true(one.revents & POLLHUP);
}

static void
test_half_close(Tunnel *tunnel, gconstpointer plain)
{
  char byte;

  assert_passes(tunnel->a, tunnel->b);
  shutdown(tunnel->a, SHUT_WR);
  assert_readable(tunnel->b, QUICK_MS);
  g_assert_cmpint(recv(tunnel->b, &byte, 1, 0), ==, 0);
  assert_passes(tunnel->b, tunnel->a); /* the other direction stands */
  g_assert_cmpint(dr_relay_state(tunnel->relay_a), ==, DR_RELAY_RUNS);
  shutdown(tunnel->b, SHUT_WR);
  assert_readable(tunnel->a, QUICK_MS);
  g_assert_cmpint(recv(tunnel->a, &byte, 1, 0), ==, 0);
  wait_state(tunnel->relay_a, DR_RELAY_ENDED);
  wait_state(tunnel->relay_b, DR_RELAY_ENDED);
}

/* --- Breaks --- */

static void
test_abort(Tunnel *tunnel, gconstpointer plain)
{
  gint64 begun;

  assert_passes(tunnel->a, tunnel->b);
  wait_streams(2);
  begun = g_get_monotonic_time();
  dr_relay_abort(tunnel->relay_a);
  assert_closed(tunnel->a);
  g_assert_cmpint(g_get_monotonic_time() - begun, <, 500000);
  g_assert_cmpint(dr_relay_state(tunnel->relay_a), ==, DR_RELAY_ABORTED);
  g_assert_false(net_readable(tunnel->broken_a, 0)); /* who aborts knows it */
  assert_readable(tunnel->broken_b, QUICK_MS);
  assert_closed(tunnel->b);
  g_assert_cmpint(dr_relay_state(tunnel->relay_b), ==, DR_RELAY_BROKEN);
  wait_streams(0);
}

/* Sends as much as is taken, so that every buffer on the way is full. */
static gsize
fill_up(int fd)
{
  static char zeros[65536];
  DrDeadline deadline = dr_deadline_in(QUICK_MS);
  struct pollfd one = { .fd = fd, .events = POLLOUT };
  gsize sent = 0;
  gssize n;

  fcntl(fd, F_SETFL, O_NONBLOCK);
  while (!dr_deadline_passed(deadline) && poll(&one, 1, 100) > 0)
    while ((n = send(fd, zeros, sizeof zeros, MSG_NOSIGNAL)) > 0)
      sent += (gsize)n;
  g_assert_false(dr_deadline_passed(deadline));
  return sent;
}

/* A QEMU that takes nothing must not keep the link's break from being seen. */
static void
test_break_while_full(Tunnel *tunnel, gconstpointer plain)
{
  gint64 begun;

  fill_up(tunnel->a);
  begun = g_get_monotonic_time();
  dr_relay_abort(tunnel->relay_a);
  assert_closed(tunnel->a);
  assert_readable(tunnel->broken_b, QUICK_MS);
  assert_closed(tunnel->b);
  g_assert_cmpint(g_get_monotonic_time() - begun, <, 1000000);
}

static void
drain(int fd, gsize wanted)
{
  static char buffer[65536];
  gsize got = 0;
  gssize n;

  while (got < wanted) {
    assert_readable(fd, QUICK_MS);
    n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    g_assert_cmpint(n, >, 0);
    got += (gsize)n;
  }
  g_assert_cmpint(got, ==, wanted);
}

/* A QEMU that takes nothing for longer than a dead link is known in is not dead: nothing breaks, and nothing is lost. */
static void
test_patience(void)
{
  Tunnel tunnels[2] = { 0 };
  gsize sent[2];
  DrDeadline until;

  for (guint i = 0; i < 2; i++) {
    tunnel_set_up(&tunnels[i], i ? "plain" : NULL);
    sent[i] = fill_up(tunnels[i].a);
  }
  until = dr_deadline_in(5000);
  for (guint i = 0; i < 2; i++) {
    g_assert_false(net_readable(tunnels[i].broken_a, dr_deadline_left(until)));
    g_assert_false(net_readable(tunnels[i].broken_b, 0));
    drain(tunnels[i].b, sent[i]);
    g_assert_cmpint(dr_relay_bytes_out(tunnels[i].relay_a), ==, (gint64)sent[i]);
    tunnel_tear_down(&tunnels[i], NULL);
  }
}

/* A QEMU that dies with bytes unread is no end in peace: the other host's QEMU must see a break. */
static void
test_local_breaks(Tunnel *tunnel, gconstpointer plain)
{
  assert_passes(tunnel->a, tunnel->b);
  fill_up(tunnel->a);
  close(tunnel->b);
  tunnel->b = -1;
  assert_readable(tunnel->broken_b, QUICK_MS);
  g_assert_cmpint(dr_relay_state(tunnel->relay_b), ==, DR_RELAY_BROKEN);
  assert_closed(tunnel->a);
}

/* Who frees its relay as soon as both sides have said that they are done does not cut off what it sent last. */
static void
test_free_at_the_end(Tunnel *tunnel, gconstpointer plain)
{
  static char bytes[300000];
  gsize got = 0;
  gssize n;

  shutdown(tunnel->b, SHUT_WR);
  assert_readable(tunnel->a, QUICK_MS);
  fcntl(tunnel->a, F_SETFL, 0);
  for (gsize at = 0; at < sizeof bytes; at += (gsize)n)
    g_assert_cmpint(n = send(tunnel->a, bytes + at, sizeof bytes - at, MSG_NOSIGNAL), >, 0);
  shutdown(tunnel->a, SHUT_WR);
  wait_state(tunnel->relay_a, DR_RELAY_ENDED);
  g_clear_pointer(&tunnel->relay_a, dr_relay_free);
  while ((n = recv(tunnel->b, bytes, sizeof bytes, 0)) > 0)
    got += (gsize)n;
  g_assert_cmpint(n, ==, 0);
  g_assert_cmpint(got, ==, sizeof bytes);
  wait_state(tunnel->relay_b, DR_RELAY_ENDED);
}

/* A free does not wait for anybody. */
static void
test_free_while_full(Tunnel *tunnel, gconstpointer plain)
{
  gint64 begun;

  fill_up(tunnel->a);
  fill_up(tunnel->b);
  begun = g_get_monotonic_time();
  g_clear_pointer(&tunnel->relay_b, dr_relay_free);
  g_clear_pointer(&tunnel->relay_a, dr_relay_free);
  g_assert_cmpint(g_get_monotonic_time() - begun, <, 1000000);
}

#define ADD(name, test)                                                                                      \
  g_test_add("/relay/tls/" name, Tunnel, NULL, tunnel_set_up, test, tunnel_tear_down);                       \
  g_test_add("/relay/plain/" name, Tunnel, "plain", tunnel_set_up, test, tunnel_tear_down)

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  ADD("bytes", test_bytes);
  ADD("half-close", test_half_close);
  ADD("abort", test_abort);
  ADD("break-while-full", test_break_while_full);
  ADD("local-breaks", test_local_breaks);
  ADD("free-at-the-end", test_free_at_the_end);
  ADD("free-while-full", test_free_while_full);
  g_test_add_func("/relay/patience", test_patience);
  return g_test_run();
}
