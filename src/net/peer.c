/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The way to another host. */
#include "net/peer.h"
#include "base/error.h"
#include "net/link.h"

#include <string.h>

#define MEASURE_MS 10000
#define MEASURE_FOR_MS 300
#define MEASURE_BLOCK (256 * 1024)
#define ROUND_TRIPS 5

struct DrNet {
  DrTlsContext *context;
  char *why_not;
  DrNetFind find;
  gpointer data;
};

struct DrPeer {
  DrNet *net;
  char *name;
  DrPeerAddress address;
  DrLink *link; /* NULL: not connected */
};

DrNet *
dr_net_new(DrTlsContext *context, const char *why_not, DrNetFind find, gpointer data)
{
  DrNet *net = g_new0(DrNet, 1);

  net->context = context ? dr_tls_context_ref(context) : NULL;
  net->why_not = g_strdup(why_not);
  net->find = find;
  net->data = data;
  return net;
}

void
dr_net_free(DrNet *net)
{
  if (!net)
    return;
  dr_tls_context_unref(net->context);
  g_free(net->why_not);
  g_free(net);
}

DrPeer *
dr_peer_new(DrNet *net, const char *name, GError **error)
{
  g_autoptr(DrPeer) peer = g_new0(DrPeer, 1);

  peer->net = net;
  peer->name = g_strdup(name);
  if (!net->find(name, &peer->address, net->data, error))
    return NULL;
  if (net->context)
    return g_steal_pointer(&peer);
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "this droverd has no keys to reach peer '%s' with: %s", name,
               net->why_not);
  dr_error_remedy(error, "drover pki init, drover pki issue HOST, then start droverd again");
  return NULL;
}

void
dr_peer_free(DrPeer *peer)
{
  if (!peer)
    return;
  g_clear_pointer(&peer->link, dr_link_free);
  g_free(peer->address.host);
  g_free(peer->address.pin);
  g_free(peer->name);
  g_free(peer);
}

static DrConn *
open_conn(DrPeer *peer, const char *kind, JsonObject *hello, DrDeadline deadline, GError **error)
{
  DrConn *conn;

  json_object_set_string_member(hello, "kind", kind);
  conn = dr_conn_open(peer->net->context, peer->address.host, peer->address.port, peer->address.pin, hello,
                      deadline, error);
  if (!conn)
    g_prefix_error(error, "cannot reach peer '%s': ", peer->name);
  return conn;
}

gboolean
dr_peer_connect(DrPeer *peer, DrDeadline deadline, GError **error)
{
  DrConn *conn;

  if (peer->link && !dr_link_is_dead(peer->link))
    return TRUE;
  g_clear_pointer(&peer->link, dr_link_free);
  conn = open_conn(peer, "control", json_object_new(), deadline, error);
  peer->link = conn ? dr_link_new(conn, NULL, NULL, error) : NULL;
  return peer->link != NULL;
}

JsonObject *
dr_peer_ask(DrPeer *peer, const char *method, JsonObject *params, int timeout_ms, GError **error)
{
  g_autoptr(JsonObject) owned = params ? params : json_object_new();
  DrDeadline deadline = dr_deadline_in(timeout_ms);

  return dr_peer_connect(peer, deadline, error)
             ? dr_link_call(peer->link, method, owned, dr_deadline_left(deadline), error)
             : NULL;
}

const char *
dr_peer_host(DrPeer *peer)
{
  return peer->address.host;
}

guint
dr_peer_port(DrPeer *peer)
{
  return peer->address.port;
}

DrConn *
dr_peer_conn(DrPeer *peer)
{
  return peer->link ? dr_link_conn(peer->link) : NULL;
}

int
dr_peer_broken_fd(DrPeer *peer)
{
  return peer->link ? dr_link_dead_fd(peer->link) : -1;
}

double
dr_peer_round_trip(DrPeer *peer)
{
  return peer->link ? dr_link_round_trip(peer->link) : 0;
}

DrConn *
dr_peer_stream(DrPeer *peer, JsonObject *hello, DrDeadline deadline, GError **error)
{
  return open_conn(peer, "stream", hello, deadline, error);
}

DrConn *
dr_peer_stream_plain(DrPeer *peer, const char *token, DrDeadline deadline, GError **error)
{
  DrConn *conn = dr_conn_open_plain(peer->address.host, peer->address.port, token, deadline, error);

  if (!conn)
    g_prefix_error(error, "cannot reach peer '%s': ", peer->name);
  return conn;
}

/* --- Measuring --- */

/* Writes for some time; bytes, or -1. Whoever reads bounds it by reading. */
static gint64
pour(DrConn *conn, GError **error)
{
  g_autofree char *block = g_malloc0(MEASURE_BLOCK);
  DrDeadline deadline = dr_deadline_in(MEASURE_FOR_MS);
  gint64 bytes = 0;

  while (!dr_deadline_passed(deadline)) {
    if (!dr_conn_write(conn, block, MEASURE_BLOCK, MEASURE_MS, error))
      return -1;
    bytes += MEASURE_BLOCK;
  }
  return dr_conn_end(conn, error) ? bytes : -1;
}

/* Reads to the end; bytes, or -1. */
static gint64
drain(DrConn *conn, GError **error)
{
  g_autofree char *block = g_malloc(MEASURE_BLOCK);
  DrDeadline deadline = dr_deadline_in(MEASURE_MS);
  gint64 bytes = 0;
  gssize n;

  while ((n = dr_conn_read(conn, block, MEASURE_BLOCK, dr_deadline_left(deadline), error)) > 0)
    bytes += n;
  return n < 0 ? -1 : bytes;
}

static double
mib_s(gint64 bytes, gint64 begun_us)
{
  return (double)bytes / 1.048576 / (double)MAX(g_get_monotonic_time() - begun_us, 1);
}

/* The other side drains first, and pours then: what it pours begins when all has arrived. */
static gboolean
measure_stream(DrPeer *peer, double *ret_send, double *ret_receive, GError **error)
{
  g_autoptr(DrConn) conn = open_conn(peer, "measure", json_object_new(), dr_deadline_in(MEASURE_MS), error);
  gint64 begun_us = g_get_monotonic_time();
  gint64 sent = conn ? pour(conn, error) : -1;
  gint64 received;
  gssize got;
  char first;

  if (sent < 0)
    return FALSE;
  got = dr_conn_read(conn, &first, 1, MEASURE_MS, error);
  if (got <= 0)
    return got == 0 && dr_error_set(error, DR_ERROR_CLOSED, "the other droverd ended a measurement early");
  *ret_send = mib_s(sent, begun_us);
  begun_us = g_get_monotonic_time();
  received = drain(conn, error);
  *ret_receive = mib_s(received, begun_us);
  return received >= 0;
}

void
dr_peer_serve_measure(DrConn *conn)
{
  g_autoptr(GError) error = NULL;

  if (drain(conn, &error) >= 0)
    pour(conn, &error);
  if (error)
    g_debug("measuring with %s: %s", dr_conn_address(conn), error->message);
}

/* What the other wall clock is ahead: its answer was written in the middle between asking and hearing. */
static double
clock_offset_ms(JsonObject *version, gint64 trip_us)
{
  gint64 there_us = dr_json_int(version, "wall_us", 0);

  return (double)(there_us - (g_get_real_time() - trip_us / 2)) / 1000.0;
}

JsonObject *
dr_peer_measure(DrPeer *peer, GError **error)
{
  g_autoptr(JsonObject) version = NULL;
  double least = G_MAXDOUBLE, offset = 0, send = 0, receive = 0;
  JsonObject *measured;

  for (int i = 0; i < ROUND_TRIPS; i++) {
    gint64 begun_us = g_get_monotonic_time(), trip_us;

    g_clear_pointer(&version, json_object_unref);
    version = dr_peer_ask(peer, "version", NULL, MEASURE_MS, error);
    if (!version)
      return NULL;
    trip_us = g_get_monotonic_time() - begun_us;
    if (i == 0 || (double)trip_us / 1000.0 >= least) /* the first made the connection */
      continue;
    least = (double)trip_us / 1000.0;
    offset = clock_offset_ms(version, trip_us);
  }
  if (!measure_stream(peer, &send, &receive, error))
    return NULL;
  measured = dr_json("{'version': <%s>, 'round_trip_ms': <%d>, 'send_mib': <%d>, 'receive_mib': <%d>}",
                     dr_json_str(version, "version", "?"), least, send, receive);
  if (json_object_has_member(version, "wall_us")) /* an older droverd does not say */
    json_object_set_double_member(measured, "clock_offset_ms", offset);
  return measured;
}
