/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Making a CA, and the certificates of a host. */
#include "base/address.h"
#include "base/error.h"
#include "base/fd.h"
#include "net/pki-internal.h"

#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <gnutls/x509-ext.h>
#include <string.h>
#include <unistd.h>

#define DAY_S 86400
#define SKEW_S 3600 /* a host whose clock is late must take a new certificate */
#define CN_MAX 64   /* characters: ub-common-name of RFC 5280, appendix A.1 */
#define SERIAL_BYTES                                                                                         \
  16 /* at most 20 (RFC 5280, 4.1.2.2); random, so that two CAs of one name do not collide */
#define PEM_MAX 1048576

typedef struct {
  gnutls_x509_crt_t cert;
  gnutls_x509_privkey_t key;
  gnutls_digest_algorithm_t digest; /* what its kind of key signs */
  char *pem;                        /* the file as it is, for the hosts: it may hold more than one */
} Ca;

static void
ca_clear(Ca *ca)
{
  gnutls_x509_crt_deinit(ca->cert);
  gnutls_x509_privkey_deinit(ca->key);
  g_free(ca->pem);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Ca, ca_clear)

static gboolean
failed(int code, const char *doing, GError **error)
{
  return code < 0 && !dr_error_set(error, DR_ERROR_INTERNAL, "cannot %s: %s", doing, gnutls_strerror(code));
}

/* --- Parts of a certificate --- */

static gnutls_x509_privkey_t
new_key(GError **error)
{
  g_auto(gnutls_x509_privkey_t) key = NULL;

  gnutls_x509_privkey_init(&key);
  if (failed(gnutls_x509_privkey_generate2(key, GNUTLS_PK_ECDSA,
                                           GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0, NULL, 0),
             "make a key", error))
    return NULL;
  return g_steal_pointer(&key);
}

/* Who, when, on which key: what every certificate has. */
static gboolean
set_basics(gnutls_x509_crt_t cert, const char *name, gnutls_x509_privkey_t key, gint64 until, GError **error)
{
  guint8 serial[SERIAL_BYTES], id[20];
  gsize size = sizeof id;
  int code = gnutls_rnd(GNUTLS_RND_NONCE, serial, sizeof serial);

  serial[0] = (serial[0] & 0x7f) | 0x40; /* positive, and always of this length */
  if (code >= 0)
    code = gnutls_x509_crt_set_version(cert, 3);
  if (code >= 0)
    code = gnutls_x509_crt_set_serial(cert, serial, sizeof serial);
  if (code >= 0)
    code = gnutls_x509_crt_set_dn_by_oid(cert, GNUTLS_OID_X520_COMMON_NAME, 0, name, (unsigned)strlen(name));
  if (code >= 0)
    code = gnutls_x509_crt_set_activation_time(cert, g_get_real_time() / G_USEC_PER_SEC - SKEW_S);
  if (code >= 0)
    code = gnutls_x509_crt_set_expiration_time(cert, until);
  if (code >= 0)
    code = gnutls_x509_crt_set_key(cert, key);
  if (code >= 0)
    code = gnutls_x509_crt_get_key_id(cert, GNUTLS_KEYID_USE_SHA1, id, &size); /* RFC 5280, 4.2.1.2 (1) */
  if (code >= 0)
    code = gnutls_x509_crt_set_subject_key_id(cert, id, size);
  return !failed(code, "fill in a certificate", error);
}

/* Not critical, which gnutls_x509_crt_set_key_usage() would make it: QEMU 7.2 and libvirt 9.0 refuse a critical one without
 * keyEncipherment, which an elliptic key must not have (RFC 8813, 3). */
static int
set_signing_only(gnutls_x509_crt_t cert)
{
  gnutls_datum_t der = { 0 };
  int code = gnutls_x509_ext_export_key_usage(GNUTLS_KEY_DIGITAL_SIGNATURE, &der);

  if (code >= 0)
    code = gnutls_x509_crt_set_extension_by_oid(cert, "2.5.29.15", der.data, der.size, /* critical= */ 0);
  gnutls_free(der.data);
  return code;
}

static int
add_name(gnutls_x509_crt_t cert, const char *name)
{
  guint8 bytes[16];
  gsize len = dr_host_ip(name, bytes);

  if (len > 0)
    return gnutls_x509_crt_set_subject_alt_name(cert, GNUTLS_SAN_IPADDRESS, bytes, (unsigned)len,
                                                GNUTLS_FSAN_APPEND);
  return gnutls_x509_crt_set_subject_alt_name(cert, GNUTLS_SAN_DNSNAME, name, (unsigned)strlen(name),
                                              GNUTLS_FSAN_APPEND);
}

/* (transfer full): PEM. */
static char *
print_cert(gnutls_x509_crt_t cert, GError **error)
{
  gnutls_datum_t pem = { 0 };
  char *text;

  if (failed(gnutls_x509_crt_export2(cert, GNUTLS_X509_FMT_PEM, &pem), "print a certificate", error))
    return NULL;
  text = g_strndup((const char *)pem.data, pem.size);
  gnutls_free(pem.data);
  return text;
}

/* PKCS #8, which every library takes. The caller wipes and frees it. */
static gboolean
print_key(gnutls_x509_privkey_t key, gnutls_datum_t *ret_pem, GError **error)
{
  return !failed(
      gnutls_x509_privkey_export2_pkcs8(key, GNUTLS_X509_FMT_PEM, NULL, GNUTLS_PKCS_PLAIN, ret_pem),
      "print a key", error);
}

static void
wipe(gnutls_datum_t *pem)
{
  if (pem->data)
    gnutls_memset(pem->data, 0, pem->size);
  gnutls_free(pem->data);
}

/* --- The CA --- */

static gboolean
check_name(const char *name, GError **error)
{
  gboolean good = *name && g_utf8_validate(name, -1, NULL) && g_utf8_strlen(name, -1) <= CN_MAX;

  for (const char *at = name; good && *at; at = g_utf8_next_char(at))
    good = g_unichar_isprint(g_utf8_get_char(at));
  return good || dr_error_set(error, DR_ERROR_INVALID, "a CA's name is 1 to %d printable characters", CN_MAX);
}

static gboolean
check_days(int days, GError **error)
{
  return (days >= 1 && days <= DR_PKI_MAX_DAYS) ||
         dr_error_set(error, DR_ERROR_INVALID, "a certificate is valid for 1 to %d days, not %d",
                      DR_PKI_MAX_DAYS, days);
}

static gint64
in_days(int days)
{
  return g_get_real_time() / G_USEC_PER_SEC + (gint64)days * DAY_S;
}

/* It signs hosts, and nothing that signs others. (transfer full): PEM. */
static char *
make_ca(const char *name, int days, gnutls_x509_privkey_t key, GError **error)
{
  g_auto(gnutls_x509_crt_t) cert = NULL;
  int code;

  gnutls_x509_crt_init(&cert);
  if (!set_basics(cert, name, key, in_days(days), error))
    return NULL;
  code = gnutls_x509_crt_set_basic_constraints(cert, /* ca= */ 1, /* pathLenConstraint= */ 0);
  if (code >= 0)
    code = gnutls_x509_crt_set_key_usage(cert, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN);
  if (code >= 0)
    code = gnutls_x509_crt_sign2(cert, cert, key, GNUTLS_DIG_SHA256, 0);
  return failed(code, "sign a CA", error) ? NULL : print_cert(cert, error);
}

gboolean
dr_pki_init(const char *dir, const char *name, int days, GError **error)
{
  g_auto(gnutls_x509_privkey_t) key = NULL;
  g_autofree char *cert = NULL;
  gnutls_datum_t pem = { 0 };
  gboolean done = FALSE;

  if (!check_name(name, error) || !check_days(days, error) || !(key = new_key(error)))
    return FALSE;
  cert = make_ca(name, days, key, error);
  if (cert && print_key(key, &pem, error)) {
    const DrPkiFile files[] = {
      { DR_PKI_CA_KEY, 0600, (char *)pem.data, pem.size },
      { DR_PKI_CA_CERT, 0644, cert, strlen(cert) },
    };

    done = dr_pki_write(dir, files, G_N_ELEMENTS(files), /* replace= */ FALSE, error);
  }
  wipe(&pem);
  if (!done && error && g_error_matches(*error, DR_ERROR, DR_ERROR_EXISTS))
    dr_error_remedy(
        error,
        "use that CA (drover pki show %s), or make another one: --dir DIR. A CA is never replaced: "
        "every host of it would have to get new certificates",
        dir);
  return done;
}

/* --- A host --- */

/* GnuTLS signs with what is asked for, and an Ed25519 or P-521 key wants its own. */
static gnutls_digest_algorithm_t
digest_of(gnutls_x509_crt_t cert)
{
  gnutls_digest_algorithm_t digest = GNUTLS_DIG_SHA256;
  gnutls_pubkey_t key;

  gnutls_pubkey_init(&key);
  if (gnutls_pubkey_import_x509(key, cert, 0) < 0 ||
      gnutls_pubkey_get_preferred_hash_algorithm(key, &digest, NULL) < 0)
    digest = GNUTLS_DIG_SHA256;
  gnutls_pubkey_deinit(key);
  return digest;
}

static gboolean
load_ca(const char *cert_file, const char *key_file, Ca *ca, GError **error)
{
  g_autofree char *problem = NULL;
  g_autoptr(GPtrArray) certs = NULL;

  if (access(cert_file, F_OK) < 0 || access(key_file, F_OK) < 0) {
    dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no CA: '%s' or '%s' is missing", cert_file, key_file);
    return dr_error_remedy(error, "make one (drover pki init), or say where it is: --dir DIR");
  }
  certs = dr_pki_load_certs(cert_file, error);
  ca->key = certs ? dr_pki_load_key(key_file, error) : NULL;
  ca->pem = ca->key ? dr_file_read(cert_file, PEM_MAX, NULL, error) : NULL;
  if (!ca->pem) {
    dr_error_not_the_words(error);
    return FALSE;
  }
  ca->cert = g_ptr_array_steal_index(certs, 0);
  ca->digest = digest_of(ca->cert);
  problem = dr_cert_problem(cert_file, DR_CERT_CA, key_file, NULL, NULL);
  return !problem ||
         dr_error_set(error, DR_ERROR_UNSUPPORTED, "the CA '%s' cannot sign: %s", cert_file, problem);
}

/* NULL-terminated, each once; the strings are normal forms. (transfer full) */
static char **
names_of(const DrPkiRequest *request, GError **error)
{
  g_autoptr(GStrvBuilder) builder = g_strv_builder_new();
  g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  guint n = request->addresses ? g_strv_length((char **)request->addresses) : 0;

  if (n > DR_PKI_MAX_ADDRESSES) {
    dr_error_set(error, DR_ERROR_INVALID, "a certificate takes at most %d addresses", DR_PKI_MAX_ADDRESSES);
    return NULL;
  }
  for (guint i = 0; i <= n; i++) {
    const char *given = i == 0 ? request->host : request->addresses[i - 1];
    g_autofree char *name = NULL;

    if (!dr_host_check(given, error))
      return NULL;
    name = dr_host_normal(given);
    if (g_hash_table_add(seen, g_strdup(name)))
      g_strv_builder_add(builder, name);
  }
  if (strlen(request->host) <= CN_MAX)
    return g_strv_builder_end(builder);
  dr_error_set(error, DR_ERROR_INVALID, "'%s' is longer than the %d characters of a certificate's name",
               request->host, CN_MAX);
  dr_error_remedy(error, "issue it for a short name, and give this one with --address");
  return NULL;
}

/* A host's certificate that outlives its CA is of no use, and would only hide when it all ends. */
static gboolean
end_of(const DrPkiRequest *request, const Ca *ca, gint64 *ret_until, GError **error)
{
  gint64 last = gnutls_x509_crt_get_expiration_time(ca->cert);

  *ret_until = in_days(request->days ? request->days : DR_PKI_HOST_DAYS);
  if (request->days == 0)
    *ret_until = MIN(*ret_until, last);
  if (*ret_until <= last)
    return TRUE;
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "the CA in '%s' ends sooner than in %d days", request->dir,
               request->days);
  return dr_error_remedy(
      error, "leave --days out to have it end with its CA, or make a new CA: drover pki init --dir DIR");
}

/* (transfer full): PEM. */
static char *
make_host(const Ca *ca, char **names, gnutls_x509_privkey_t key, gint64 until, const char *purpose,
          GError **error)
{
  g_auto(gnutls_x509_crt_t) cert = NULL;
  guint8 id[64];
  gsize size = sizeof id;
  int code;

  gnutls_x509_crt_init(&cert);
  if (!set_basics(cert, names[0], key, until, error))
    return NULL;
  code = gnutls_x509_crt_set_basic_constraints(cert, /* ca= */ 0, /* pathLenConstraint= */ -1);
  for (char **name = names; *name && code >= 0; name++)
    code = add_name(cert, *name);
  if (code >= 0)
    code = gnutls_x509_crt_set_key_purpose_oid(cert, purpose, /* critical= */ 0);
  if (code >= 0)
    code = set_signing_only(cert);
  if (code >= 0 && gnutls_x509_crt_get_subject_key_id(ca->cert, id, &size, NULL) >= 0)
    code = gnutls_x509_crt_set_authority_key_id(cert, id, size);
  if (code >= 0)
    code = gnutls_x509_crt_sign2(cert, ca->cert, ca->key, ca->digest, 0);
  return failed(code, "sign a certificate", error) ? NULL : print_cert(cert, error);
}

/* A client's files last: where there are only these, the others are left out from the front. */
static gboolean
make_all(const DrPkiRequest *request, const Ca *ca, char **names, gint64 until, GError **error)
{
  g_auto(gnutls_x509_privkey_t) key = new_key(error);
  g_autofree char *client = key ? make_host(ca, names, key, until, GNUTLS_KP_TLS_WWW_CLIENT, error) : NULL;
  g_autofree char *server = client ? make_host(ca, names, key, until, GNUTLS_KP_TLS_WWW_SERVER, error) : NULL;
  guint skip = request->client ? 2 : 0;
  gnutls_datum_t pem = { 0 };
  gboolean done = FALSE;

  if (server && print_key(key, &pem, error)) {
    const DrPkiFile files[] = {
      { "server-key.pem", 0600, (char *)pem.data, pem.size },
      { "server-cert.pem", 0644, server, strlen(server) },
      { DR_PKI_CA_CERT, 0644, ca->pem, strlen(ca->pem) },
      { "client-key.pem", 0600, (char *)pem.data, pem.size },
      { "client-cert.pem", 0644, client, strlen(client) },
    };

    done = dr_pki_write(request->out, files + skip, G_N_ELEMENTS(files) - skip, request->force, error);
  }
  wipe(&pem);
  if (!done && error && g_error_matches(*error, DR_ERROR, DR_ERROR_EXISTS))
    dr_error_remedy(error,
                    "use them (drover pki show %s), write elsewhere (--out DIR), or replace them: --force",
                    request->out);
  return done;
}

/* The key of a host may not come to lie in the place of its CA's: both have a ca-cert.pem. */
static gboolean
is_elsewhere(const DrPkiRequest *request, GError **error)
{
  g_autofree char *dir = g_canonicalize_filename(request->dir, NULL);
  g_autofree char *out = g_canonicalize_filename(request->out, NULL);

  return !g_str_equal(dir, out) ||
         dr_error_set(error, DR_ERROR_INVALID,
                      "'%s' is the CA's own directory: the host's must be another one", out);
}

gboolean
dr_pki_issue(const DrPkiRequest *request, GError **error)
{
  g_autofree char *cert = g_build_filename(request->dir, DR_PKI_CA_CERT, NULL);
  g_autofree char *key = g_build_filename(request->dir, DR_PKI_CA_KEY, NULL);
  g_auto(GStrv) names = names_of(request, error);
  g_auto(Ca) ca = { 0 };
  gint64 until;

  return names && (request->days == 0 || check_days(request->days, error)) && is_elsewhere(request, error) &&
         load_ca(cert, key, &ca, error) && end_of(request, &ca, &until, error) &&
         make_all(request, &ca, names, until, error);
}
