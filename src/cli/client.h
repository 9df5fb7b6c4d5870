/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* droverd's API as the command line uses it: blocking calls over the unix socket, or TLS. */
#pragma once
#include "base/json.h"

#include <gio/gio.h>
#include <libsoup/soup.h>

typedef struct DrClient DrClient;

/* `connect`: "unix:PATH" or "tls://HOST[:PORT]", or NULL for DROVER_CONNECT or the default; `pki`: with TLS, see cli/client-tls.h. Does
 * not connect yet. Errors: INVALID, and where there are no keys NOT_FOUND. */
DrClient *dr_client_new(const char *connect, const char *pki, GError **error);
void dr_client_free(DrClient *client);

/* The unix socket that it is for; NULL: it is for another host. (transfer none) */
const char *dr_client_path(const DrClient *client);

/* A connection for a protocol of one's own; `timeout_s` is that of each read and write, too. (transfer full) */
GSocketConnection *dr_client_connect(DrClient *client, guint timeout_s, GError **error);

/* For the calls that follow; a call that takes longer is a TIMEOUT. 600 s where nothing was said, as a
 * start of a VM with much RAM to be prepared may take minutes. */
void dr_client_set_timeout(DrClient *client, guint seconds);

/* One call; `body` may be NULL. (transfer full): the answer, a null node where there was none. A problem
 * of droverd's is its error, with its remedy; no droverd there is DR_ERROR_CLOSED with a remedy. */
JsonNode *dr_client_call(DrClient *client, const char *method, const char *path, JsonObject *body,
                         GError **error);

/* The event stream; `query` is "" or "?job=ID". (transfer full) */
GDataInputStream *dr_client_events(DrClient *client, const char *query, GError **error);

/* Waits for the next event. droverd says something every 15 s: silence for the timeout is an error. NULL
 * without an error: the stream ended. (transfer full) */
JsonObject *dr_client_next_event(GDataInputStream *events, GError **error);

/* A request that is handed through (drover ui): `target` is a path with its query, as it stands in HTTP; NULL where it is none.
 * (transfer full) */
SoupMessage *dr_client_message(DrClient *client, const char *method, const char *target);
/* Sends it; every answer of droverd's is one, whatever its status. (transfer full): its body */
GInputStream *dr_client_send(DrClient *client, SoupMessage *message, GCancellable *cancellable,
                             GError **error);

/* A connection after a WebSocket handshake for `path`. (transfer full) */
GIOStream *dr_client_websocket(DrClient *client, const char *path, GError **error);

/* For those two: an error of the connection, and an answer that is not the one hoped for (a problem's
 * text). */
void dr_client_transport_error(const DrClient *client, const GError *cause, GError **error);
void dr_client_problem(guint status, const char *text, gsize len, GError **error);
