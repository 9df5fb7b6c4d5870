/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line's TLS: its certificate, whom it believes, and what it says where it does not. GIO's, for libsoup does HTTP over no
 * other. */
#pragma once
#include <gio/gio.h>

#define DR_API_PORT 7414 /* beside DR_PEER_PORT; not assigned by IANA */

typedef struct {
  char *dir; /* where the keys were */
  char *host;
  guint16 port;
  char *where; /* "tls://HOST:PORT" */
  GTlsCertificate *certificate;
  GTlsDatabase *authority;
  GTlsCertificateFlags wrong; /* what was, with the server's certificate that was seen last */
} DrClientTls;

/* `address`: HOST[:PORT]; `pki` (nullable): a directory in QEMU's or libvirt's layout, else that of DROVER_PKI, else where droverd has
 * its keys (dr_pki_default_dir()). Errors: INVALID, NOT_FOUND. (transfer full) */
DrClientTls *dr_client_tls_new(const char *address, const char *pki, GError **error);
void dr_client_tls_free(DrClientTls *tls);

/* For a GSocketClient that connects to it. */
void dr_client_tls_prepare(DrClientTls *tls, GSocketClient *connector);
/* A handler of "accept-certificate" of a SoupMessage; `data` is the DrClientTls. */
gboolean dr_client_tls_on_refusal(gpointer source, GTlsCertificate *certificate, GTlsCertificateFlags wrong,
                                  gpointer data);

/* Whether an error of the connection is one of TLS; then *error is set. */
gboolean dr_client_tls_explain(const DrClientTls *tls, const GError *cause, GError **error);
