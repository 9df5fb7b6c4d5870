/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Another host, as a job sees it: questions to its droverd, and streams. The connection is made when it is needed, and again
 * when it was lost; a job decides how long it tries. */
#pragma once
#include "base/deadline.h"
#include "net/conn.h"

typedef struct DrNet DrNet;
typedef struct DrPeer DrPeer;

typedef struct {
  char *host;
  guint port;
  char *pin; /* nullable: key ids, with commas between */
} DrPeerAddress;

/* Looks a peer's name up; fills *ret with strings of its own. Any thread. */
typedef gboolean (*DrNetFind)(const char *name, DrPeerAddress *ret, gpointer data, GError **error);

/* What jobs need to reach peers. `context` NULL: this droverd has no keys, and `why_not` says so to whoever wants to go
 * somewhere. (transfer full) */
DrNet *dr_net_new(DrTlsContext *context, const char *why_not, DrNetFind find, gpointer data);
void dr_net_free(DrNet *net);

/* `name`: as in `drover peer add`. Connects to nothing yet. (transfer full) */
DrPeer *dr_peer_new(DrNet *net, const char *name, GError **error);
void dr_peer_free(DrPeer *peer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrPeer, dr_peer_free)

/* Makes the connection, if there is none that lives. */
gboolean dr_peer_connect(DrPeer *peer, DrDeadline deadline, GError **error);

/* Asks its droverd; connects first if there is no connection. `params` is consumed. DR_ERROR_CLOSED and DR_ERROR_TIMEOUT: no
 * answer came, what was asked may have been done; any other error is the peer's own. One thread at a time. (transfer full) */
JsonObject *dr_peer_ask(DrPeer *peer, const char *method, JsonObject *params, int timeout_ms, GError **error);

const char *dr_peer_host(DrPeer *peer);
guint dr_peer_port(DrPeer *peer);

/* What the certificate of the connection that was last used says. (transfer none) (nullable) */
DrConn *dr_peer_conn(DrPeer *peer);

/* Readable once the connection that was last used has died; -1: there is none. Known within 4 s of a silent cut. */
int dr_peer_broken_fd(DrPeer *peer);

/* Milliseconds there and back, as last measured; 0: not yet. */
double dr_peer_round_trip(DrPeer *peer);

/* Measures: {"version","round_trip_ms","send_mib","receive_mib","clock_offset_ms"}, MiB/s by a stream of its own, for
 * 0.3 s each way; the last is how much the other wall clock is ahead, absent where that droverd does not tell. (transfer full) */
JsonObject *dr_peer_measure(DrPeer *peer, GError **error);
/* The other side of it, on a connection of the kind "measure", which stays the caller's. Takes some seconds at the most. */
void dr_peer_serve_measure(DrConn *conn);

/* The same without TLS, by a token that the other droverd gave out for it. Any thread. (transfer full) */
DrConn *dr_peer_stream_plain(DrPeer *peer, const char *token, DrDeadline deadline, GError **error);

/* A new connection for raw bytes, opened by {"kind":"stream", …members of `hello` (consumed)}. Any thread. (transfer full) */
DrConn *dr_peer_stream(DrPeer *peer, JsonObject *hello, DrDeadline deadline, GError **error);
