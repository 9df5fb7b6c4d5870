/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the two files of TLS share: the credentials with the check of a certificate, and the connection. */
#pragma once
#include "net/tls.h"

#include <gnutls/gnutls.h>

struct DrTls {
  gnutls_session_t session;
  DrTlsContext *context;
  int fd;
  char *address, *key_id;
  char **names;
  /* Held for each record, and never over a wait. GnuTLS lets one thread send while another one receives, but not while the
   * keys change, which it does by itself after 2^24 records (256 GiB): both directions share what is replaced then. */
  GMutex lock;
  gboolean writing; /* it is the writer that holds `lock`; nobody else has something to send */
  /* The reader's. */
  guint8 *in; /* as it came from the socket */
  gsize in_at, in_len;
  gboolean in_ended; /* the socket has nothing more */
  /* The writer's. */
  guint8 *out; /* as it goes to the socket */
  gsize out_at, out_len;
  gboolean out_broken; /* half a record may have gone */
};

/* Sets the session up for its role. */
void dr_tls_context_apply(DrTlsContext *context, gnutls_session_t session, gboolean server);

/* DR_ERROR_IO: "TEXT: what GnuTLS says of `code`". FALSE */
gboolean dr_tls_error(GError **error, int code, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* Whether the peer's certificate is of our CA, in time, not revoked, good for what `server` says that the peer is, and for
 * `name` (nullable). Fills in its names and key id. Errors: REFUSED. */
gboolean dr_tls_check_peer(DrTls *tls, gboolean server, const char *name, GError **error);
