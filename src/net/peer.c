/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The way to another host. */
#include "net/peer.h"
#include "base/error.h"
#include "net/link.h"

#include <string.h>

#define MEASURE_MS 10000
#define MEASURE_BYTES (3 << 20)
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

static double
ms_since(gint64 begun_us)
{
  return (double)(g_get_monotonic_time() - begun_us) / 1000.0;
}

/* How long it takes to ask for `want` bytes with `have` bytes in the question; -1 on error. */
static double
time_of(DrPeer *peer, gsize have, gsize want, GError **error)
{
  g_autofree char *payload = g_strnfill(have, 'x');
  JsonObject *params = dr_json("{'payload': <%s>, 'want': <%x>}", payload, (gint64)want);
  gint64 begun_us = g_get_monotonic_time();
  g_autoptr(JsonObject) reply = dr_peer_ask(peer, "measure", params, MEASURE_MS, error);

  return reply ? ms_since(begun_us) : -1;
}

static double
mib_s(double ms, double round_trip_ms)
{
  return (double)MEASURE_BYTES / 1048.576 / MAX(ms - round_trip_ms, 0.01);
}

JsonObject *
dr_peer_measure(DrPeer *peer, GError **error)
{
  g_autoptr(JsonObject) version = dr_peer_ask(peer, "version", NULL, MEASURE_MS, error);
  double least = G_MAXDOUBLE, send, receive;

  if (!version)
    return NULL;
  for (int i = 0; i < ROUND_TRIPS; i++) {
    double ms = time_of(peer, 0, 0, error);

    if (ms < 0)
      return NULL;
    least = MIN(least, ms);
  }
  send = time_of(peer, MEASURE_BYTES, 0, error);
  receive = send < 0 ? -1 : time_of(peer, 0, MEASURE_BYTES, error);
  if (receive < 0)
    return NULL;
  return dr_json("{'version': <%s>, 'round_trip_ms': <%d>, 'send_mib': <%d>, 'receive_mib': <%d>}",
                 dr_json_str(version, "version", "?"), least, mib_s(send, least), mib_s(receive, least));
}

JsonObject *
dr_peer_answer_measure(JsonObject *params)
{
  gsize want = (gsize)CLAMP(dr_json_int(params, "want", 0), 0, MEASURE_BYTES);
  g_autofree char *payload = g_strnfill(want, 'x');

  return dr_json("{'payload': <%s>}", payload);
}
