/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the PKI share. */
#pragma once
#include "net/pki.h"

G_DEFINE_AUTO_CLEANUP_FREE_FUNC(gnutls_x509_crt_t, gnutls_x509_crt_deinit, NULL)
G_DEFINE_AUTO_CLEANUP_FREE_FUNC(gnutls_x509_privkey_t, gnutls_x509_privkey_deinit, NULL)

/* QEMU's names. */
#define DR_PKI_CA_CERT "ca-cert.pem"
#define DR_PKI_CA_KEY "ca-key.pem"

/* The certificates of a file. Errors: IO, INVALID. (transfer full) (element-type gnutls_x509_crt_t) */
GPtrArray *dr_pki_load_certs(const char *file, GError **error);

/* A private key, which must not have a passphrase. NULL on error. (transfer full) */
gnutls_x509_privkey_t dr_pki_load_key(const char *file, GError **error);

/* Whether the key is the certificate's. */
gboolean dr_pki_key_fits(gnutls_x509_crt_t cert, gnutls_x509_privkey_t key);

/* A file that is to be. `text` belongs to the caller. */
typedef struct {
  const char *name; /* in the directory */
  int mode;
  const char *text;
  gsize len;
} DrPkiFile;

/* Writes a set of at most 8 files: all under temporary names first, on disk, and then one after the other under their own. Without
 * `replace` a file that is there is never touched: EXISTS, and none of the set is left. `dir` is made with mode 0700. */
gboolean dr_pki_write(const char *dir, const DrPkiFile *files, guint n, gboolean replace, GError **error);
