/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A connection between two droverds, after each knows who the other one is. docs/PROTOCOL.md has the bytes.
 *
 * It begins with one frame each way: the client says which versions it speaks and what the connection is for, the server takes
 * it or says why not. (In TLS 1.3 a client does not learn from the handshake that it was refused.) Behind that a "control"
 * connection goes on with frames, a "stream" with raw bytes.
 *
 * A plain connection (no TLS) begins with a token instead, which the server gave out over a control connection; see listener.h. */
#pragma once
#include "base/json.h"
#include "net/tls.h"

#define DR_PROTOCOL_VERSION 1
#define DR_FRAME_MAX                                                                                         \
  (4 << 20) /* bytes: a VM's description with its environment, or an answer of its monitor */

typedef struct DrConn DrConn;

/* Connects to host:port (a DNS name or address), TLS and hello. `hello`: members of the first frame, consumed. (transfer full) */
DrConn *dr_conn_open(DrTlsContext *context, const char *host, guint port, const char *pin, JsonObject *hello,
                     DrDeadline deadline, GError **error);
/* Without TLS, by a token of the server's. (transfer full) */
DrConn *dr_conn_open_plain(const char *host, guint port, const char *token, DrDeadline deadline,
                           GError **error);

/* The server's half. accept: TLS on an accepted socket (consumed); hello: reads the first frame (transfer full), or refuses
 * a version; take/refuse: answers it. */
DrConn *dr_conn_accept(DrTlsContext *context, int fd, const char *address, DrDeadline deadline,
                       GError **error);
JsonObject *dr_conn_hello(DrConn *conn, DrDeadline deadline, GError **error);
gboolean dr_conn_take(DrConn *conn, GError **error);
void dr_conn_refuse(DrConn *conn, const GError *why);
/* A socket whose token was found right. Takes `fd` over. (transfer full) */
DrConn *dr_conn_new_plain(int fd, const char *address, const char *peer);

void dr_conn_free(DrConn *conn);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrConn, dr_conn_free)

/* The first of the names in the other side's certificate, all of them (none without TLS), its key id (NULL without TLS), its
 * address as text. (transfer none) */
const char *dr_conn_peer(const DrConn *conn);
const char *const *dr_conn_names(const DrConn *conn);
const char *dr_conn_key_id(const DrConn *conn);
const char *dr_conn_suite(const DrConn *conn); /* "TLS_AES_128_GCM_SHA256" or "none" */
const char *dr_conn_address(const DrConn *conn);

/* One frame. `object` is not consumed. DR_ERROR_INVALID for a frame that is none. */
gboolean dr_conn_send(DrConn *conn, JsonObject *object, int timeout_ms, GError **error);
JsonObject *dr_conn_receive(DrConn *conn, int timeout_ms, GError **error);

/* Raw bytes, as in tls.h. */
gssize dr_conn_read(DrConn *conn, void *buffer, gsize len, int timeout_ms, GError **error);
gboolean dr_conn_write(DrConn *conn, const void *buffer, gsize len, int timeout_ms, GError **error);
gboolean dr_conn_end(DrConn *conn, GError **error);
void dr_conn_abort(DrConn *conn);

/* The socket of a plain connection, for splice(2) or to be handed to QEMU; -1 with TLS. */
int dr_conn_plain_fd(DrConn *conn);

/* A small object that both sides send in case of an error, and back. */
JsonObject *dr_error_to_json(const GError *error);
gboolean dr_error_from_json(JsonObject *object, GError **error);
