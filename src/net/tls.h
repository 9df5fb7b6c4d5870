/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* TLS 1.3 between two droverds, mutual: both show a certificate of the same CA, each good for its role (key purpose, RFC 5280
 * 4.2.1.12). GnuTLS, with buffers of our own towards the socket: a record is 16 KiB, and a system call each would cost a third of
 * the time.
 *
 * One thread may read from a connection while one other writes; dr_tls_abort() may come from any. The socket need not be
 * non-blocking. A peer that is refused is told nothing beyond its closed connection: *error is for the log. */
#pragma once
#include "base/deadline.h"

typedef struct DrTlsContext DrTlsContext;
typedef struct DrTls DrTls;

/* Bytes, each way, of a connection; bench/net.c measures what another figure does. */
#define DR_TLS_BUFFER (256 * 1024)

/* Paths of PEM files; `crl` may be NULL. */
typedef struct {
  const char *ca, *crl;
  const char *server_cert, *server_key; /* for who connects to us */
  const char *client_cert, *client_key; /* for whom we connect to */
} DrTlsFiles;

/* Errors name the file. (transfer full) */
DrTlsContext *dr_tls_context_new(const DrTlsFiles *files, GError **error);
DrTlsContext *dr_tls_context_ref(DrTlsContext *context);
void dr_tls_context_unref(DrTlsContext *context);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrTlsContext, dr_tls_context_unref)

/* Handshakes on a connected TCP socket, which is taken over also on error. connect: the server's certificate must be for
 * `name` (a DNS name or an IP address) and, with `pin`, have one of these keys (dr_pin_parse()). `address` is for messages.
 * Errors: REFUSED (by us or by the other side), TIMEOUT, CLOSED, IO. (transfer full) */
DrTls *dr_tls_connect(DrTlsContext *context, int fd, const char *name, const char *pin, const char *address,
                      DrDeadline deadline, GError **error);
DrTls *dr_tls_accept(DrTlsContext *context, int fd, const char *address, DrDeadline deadline, GError **error);
void dr_tls_free(DrTls *tls);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrTls, dr_tls_free)

/* Of the other side's certificate: the names that it stands for (dr_cert_names()), its key id. (transfer none) */
const char *const *dr_tls_names(const DrTls *tls);
const char *dr_tls_key_id(const DrTls *tls);
const char *dr_tls_suite(const DrTls *tls); /* "AES-128-GCM" */

int dr_tls_fd(const DrTls *tls); /* for poll(2) only; -1 never */
/* Whether something of the other side has come that was taken out of the socket with what was read before it: poll(2) does not tell of it
 * any more. The reader's. */
gboolean dr_tls_has_input(DrTls *tls);

/* read: at least one byte, as many as are there, at most `len`; 0: the other side has ended its direction (close_notify); -1:
 * error. write: all of them. Timeouts in ms, for the whole call; -1: none, until dr_tls_abort(). Errors: TIMEOUT; CLOSED, also
 * when the other side went without a close_notify. After a TIMEOUT reading can go on; writing cannot, for half a record
 * may have gone. */
gssize dr_tls_read(DrTls *tls, void *buffer, gsize len, int timeout_ms, GError **error);
gboolean dr_tls_write(DrTls *tls, const void *buffer, gsize len, int timeout_ms, GError **error);
/* Ends our direction; the writer's. */
gboolean dr_tls_end(DrTls *tls, GError **error);
/* Breaks the connection: who reads or writes returns at once, here and there (dr_socket_break()). */
void dr_tls_abort(DrTls *tls);
