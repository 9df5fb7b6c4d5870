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

#define DR_PROTOCOL_VERSION 1     /* the newest that we speak */
#define DR_PROTOCOL_VERSION_MIN 1 /* the oldest */
#define DR_PREAMBLE "DROVER1 "    /* a token and "\n" follow: a connection without TLS */
#define DR_FRAME_MAX                                                                                         \
  (4 << 20) /* bytes: a VM's description with its environment, or an answer of its monitor */

typedef struct DrConn DrConn;

/* Connects to host:port (a DNS name or address), TLS and hello. `hello`: members of the first frame, consumed. Errors: NOT_FOUND,
 * TIMEOUT, CLOSED as dr_dial(); CLOSED, too, where the other side does not like our certificate or name (it does not say so);
 * REFUSED: we do not like its; UNSUPPORTED: no version in common; or whatever its `take` answered. (transfer full) */
DrConn *dr_conn_open(DrTlsContext *context, const char *host, guint port, const char *pin, JsonObject *hello,
                     DrDeadline deadline, GError **error);
/* Without TLS, by a token of the server's. There is no answer: a token that was not taken shows as a closed connection.
 * (transfer full) */
DrConn *dr_conn_open_plain(const char *host, guint port, const char *token, DrDeadline deadline,
                           GError **error);

/* The server's half. accept: TLS on an accepted socket (consumed); hello: reads the first frame (transfer full), or refuses
 * a version; take/refuse: answers it (a plain connection is not answered). */
DrConn *dr_conn_accept(DrTlsContext *context, int fd, const char *address, DrDeadline deadline,
                       GError **error);
JsonObject *dr_conn_hello(DrConn *conn, DrDeadline deadline, GError **error);
gboolean dr_conn_take(DrConn *conn, GError **error);
void dr_conn_refuse(DrConn *conn, const GError *why);
/* The client's TLS on a connected socket (consumed), without a hello. (transfer full) */
DrConn *dr_conn_new_tls(DrTlsContext *context, int fd, const char *name, const char *address,
                        DrDeadline deadline, GError **error);
/* A socket whose token was found right. Takes `fd` over. (transfer full) */
DrConn *dr_conn_new_plain(int fd, const char *address, const char *peer);

/* `freed` is called with `data` when it is freed, to count it no longer. */
void dr_conn_on_free(DrConn *conn, GDestroyNotify freed, gpointer data);

void dr_conn_free(DrConn *conn);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrConn, dr_conn_free)

/* The first of the names in the other side's certificate, all of them (none without TLS), its key id (NULL without TLS), its
 * address as text. (transfer none) */
const char *dr_conn_peer(const DrConn *conn);
const char *const *dr_conn_names(const DrConn *conn);
const char *dr_conn_key_id(const DrConn *conn);
const char *dr_conn_suite(const DrConn *conn); /* "AES-128-GCM" or "none" */
const char *dr_conn_address(const DrConn *conn);
int dr_conn_version(const DrConn *conn); /* of the protocol, as agreed */

/* One frame. `object` is not consumed. receive: the timeout (ms) is for the first byte, and a TIMEOUT loses nothing; the rest
 * has DR_FRAME_MS (net/frame.h). DR_ERROR_INVALID for a frame that is none; then the connection is of no use. */
gboolean dr_conn_send(DrConn *conn, JsonObject *object, int timeout_ms, GError **error);
JsonObject *dr_conn_receive(DrConn *conn, int timeout_ms, GError **error);

/* Raw bytes, as in tls.h. abort: any thread; the other side sees a reset at once, and what it had not been sent is lost. */
gssize dr_conn_read(DrConn *conn, void *buffer, gsize len, int timeout_ms, GError **error);
gboolean dr_conn_write(DrConn *conn, const void *buffer, gsize len, int timeout_ms, GError **error);
gboolean dr_conn_end(DrConn *conn, GError **error);
void dr_conn_abort(DrConn *conn);

/* The socket of a plain connection, for splice(2); -1 with TLS. steal: to be handed to QEMU; the caller's from then on, and the
 * connection is good for dr_conn_free() only. */
int dr_conn_plain_fd(DrConn *conn);
int dr_conn_steal_fd(DrConn *conn);
int dr_conn_fd(const DrConn *conn); /* of either kind, for poll(2) only */
/* To be asked before poll(2) is, by the reader: TLS takes out of the socket what is there, which may be more than what was read
 * (the first bytes behind an answer). */
gboolean dr_conn_has_input(DrConn *conn);

/* {"error":{"code":"refused","message","remedy"?}} for an error, and back. The codes are those of dr_error_code_name(); one that
 * is not known (of a newer droverd) is DR_ERROR_IO. */
JsonObject *dr_error_to_json(const GError *error);
gboolean dr_error_from_json(JsonObject *object, GError **error);
