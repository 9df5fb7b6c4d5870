/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Keys and certificates of hosts: finding them in QEMU's and libvirt's layouts, making them, saying what they are.
 *
 * A host has two certificates of one CA: as a server (when a peer connects to it) and as a client (when it connects
 * to a peer). Those that drover makes are on one key, so that one key id stands for the host both ways. Keys are
 * ECDSA on P-256: GnuTLS 3.7 and QEMU 7.2 take it with TLS 1.3, and FIPS 186-4 has it and not Ed25519, for hosts that
 * are bound to that. GnuTLS 3.7 signs in 45 us of CPU time (Ed25519: 29, RSA-3072: 3900).
 *
 * Nothing here keeps a state; all functions may be called from any thread. */
#pragma once
#include <glib.h>
#include <gnutls/x509.h>

/* --- Finding --- */

typedef struct {
  char *ca; /* one or more CA certificates, PEM; all are paths */
  char *server_cert, *server_key;
  char *client_cert, *client_key;
  char *crl; /* nullable */
} DrPkiPaths;

void dr_pki_paths_free(DrPkiPaths *paths);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrPkiPaths, dr_pki_paths_free)

/* The files below `dir`, in whichever layout it has, or in libvirt's default places (/etc/pki) where it is NULL:
 *   QEMU (docs/system/tls.rst): ca-cert.pem server-cert.pem server-key.pem client-cert.pem client-key.pem ca-crl.pem
 *   libvirt, system (tlscerts.rst): CA/cacert.pem libvirt/servercert.pem libvirt/private/serverkey.pem
 *                          libvirt/clientcert.pem libvirt/private/clientkey.pem CA/cacrl.pem
 *   libvirt, pkipath=DIR: cacert.pem servercert.pem serverkey.pem clientcert.pem clientkey.pem cacrl.pem
 * `crl` (nullable) is another revocation list, which must be there; that of the layout is taken if it is.
 * Errors: NOT_FOUND, naming every file that is missing or cannot be read. */
DrPkiPaths *dr_pki_find(const char *dir, const char *crl, GError **error);

/* The same without looking whether the files are there; `crl` is set, too. (transfer full) */
DrPkiPaths *dr_pki_layout(const char *dir);

/* /etc/drover/WHAT as root, else XDG_CONFIG_HOME/drover/WHAT. "tls" is where droverd looks for its keys where nothing
 * else is configured, "pki" where `drover pki` has a CA. (transfer full) */
char *dr_pki_default_dir(const char *what);

/* Reads them all and holds them against each other as a peer would: in time, of that CA, for their purpose, not
 * revoked, and the keys being theirs. So that a daemon says at its start what a handshake would not. Errors: INVALID
 * naming the file. */
gboolean dr_pki_check(const DrPkiPaths *paths, GError **error);

/* --- Looking at one --- */

typedef enum {
  DR_CERT_CA = 1 << 0,
  DR_CERT_SERVER = 1 << 1, /* key purpose id-kp-serverAuth, "any", or none at all (RFC 5280, 4.2.1.12) */
  DR_CERT_CLIENT = 1 << 2,
} DrCertUse;

typedef struct {
  char *subject, *issuer; /* RFC 4514 */
  char **names;           /* as dr_cert_names() */
  char *algorithm;        /* "ECDSA 256 bit" */
  char *serial;           /* hex */
  char *key_id;
  DrCertUse use;
  gint64 from, until; /* s since 1970, UTC */
} DrCertInfo;

void dr_cert_info_free(DrCertInfo *info);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrCertInfo, dr_cert_info_free)

/* Of each certificate in a PEM file, at most 16. Errors: IO, INVALID. (transfer full) (element-type DrCertInfo) */
GPtrArray *dr_cert_read(const char *file, GError **error);

/* Whether it is not yet or no longer valid, as one phrase; NULL: it is valid. (transfer full) */
char *dr_cert_time_problem(gint64 from, gint64 until);

/* What is wrong with the first certificate of `file`, used as `use` (one of them), as one phrase; NULL: nothing is.
 * `key`, `ca` and `crl` are files, nullable: then it is not held against them. (transfer full) */
char *dr_cert_problem(const char *file, DrCertUse use, const char *key, const char *ca, const char *crl);

/* The key id: SHA-256 of the public key (its DER SubjectPublicKeyInfo), 64 hex digits in lower case, as
 * `certtool --key-id --hash=sha256` prints it. (transfer full) */
char *dr_cert_key_id(gnutls_x509_crt_t cert);

/* The names that a certificate stands for: its alternative names of the kinds DNS and IP; the subject's CN only where
 * it has none of them (RFC 6125, 6.4.4), as is usual for libvirt's client certificates. A name with a NUL or a
 * control character in it is left out. Of 256 at the most. (transfer full), NULL-terminated, may be empty. */
char **dr_cert_names(gnutls_x509_crt_t cert);

/* --- Pins --- */

/* One or more key ids, with commas between, as people write them (capitals, colons between the bytes, "sha256:"
 * before it), made into "HEX" or "HEX,HEX". At most 4: a foreign PKI may have a server's and a client's key, and both
 * twice while they are renewed. Errors: INVALID. (transfer full) */
char *dr_pin_parse(const char *text, GError **error);

/* Whether a key id is one of those of a pin. */
gboolean dr_pin_matches(const char *pin, const char *key_id);

/* --- Making --- */

#define DR_PKI_CA_DAYS 3650
#define DR_PKI_HOST_DAYS 730
#define DR_PKI_MAX_DAYS 36500
#define DR_PKI_MAX_ADDRESSES 64

/* A CA in `dir` (made with mode 0700): ca-cert.pem (0644) and ca-key.pem (0600). `name` is its CN: 1 to 64 characters.
 * Errors: INVALID (name, days), EXISTS (one of the files is there; nothing is changed), IO. */
gboolean dr_pki_init(const char *dir, const char *name, int days, GError **error);

typedef struct {
  const char *dir;              /* of the CA */
  const char *host;             /* CN and first alternative name: DNS name or IP address */
  const char *const *addresses; /* nullable: more alternative names */
  const char *out;              /* made with mode 0700 */
  int days;                     /* 0: DR_PKI_HOST_DAYS, or to the CA's end, if that is sooner */
  gboolean force;               /* put them in the place of what is there */
  gboolean client;              /* only a client's: `host` is whoever uses the API by TLS */
} DrPkiRequest;

/* QEMU's layout in `out`: ca-cert.pem, server-cert.pem, client-cert.pem (0644), server-key.pem, client-key.pem
 * (0600); of a client without those of a server. All are written and on disk before the first gets its name. Errors: INVALID, NOT_FOUND (no CA there),
 * EXISTS (a file is there; nothing is changed), UNSUPPORTED (a CA that is no CA, has ended, or whose key is not its
 * own), IO. */
gboolean dr_pki_issue(const DrPkiRequest *request, GError **error);
