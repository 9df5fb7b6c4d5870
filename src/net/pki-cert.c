/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading certificates: what they say, and whether it holds. */
#include "base/error.h"
#include "base/fd.h"
#include "net/pki-internal.h"

#include <arpa/inet.h>
#include <gnutls/abstract.h>
#include <string.h>

#define MAX_FILE (1024 * 1024)
#define MAX_CRL (16 * 1024 * 1024)
#define MAX_CERTS 16
#define MAX_NAMES 256
#define NAME_BYTES 1024

typedef gnutls_x509_trust_list_t TrustList;

static void
free_trust_list(TrustList list)
{
  gnutls_x509_trust_list_deinit(list, /* all= */ 1);
}

G_DEFINE_AUTO_CLEANUP_FREE_FUNC(TrustList, free_trust_list, NULL)

/* --- Files --- */

static gboolean
read_datum(const char *file, gsize max, gnutls_datum_t *ret_datum, GError **error)
{
  gsize len;
  char *text = dr_file_read(file, max, &len, error);

  ret_datum->data = (unsigned char *)text;
  ret_datum->size = text ? (unsigned)len : 0;
  return text != NULL;
}

static void
free_cert(gpointer cert)
{
  gnutls_x509_crt_deinit(cert);
}

GPtrArray *
dr_pki_load_certs(const char *file, GError **error)
{
  g_autoptr(GPtrArray) certs = g_ptr_array_new_with_free_func(free_cert);
  gnutls_x509_crt_t list[MAX_CERTS];
  unsigned n = MAX_CERTS;
  gnutls_datum_t pem;
  int code;

  if (!read_datum(file, MAX_FILE, &pem, error))
    return NULL;
  code = gnutls_x509_crt_list_import(list, &n, &pem, GNUTLS_X509_FMT_PEM,
                                     GNUTLS_X509_CRT_LIST_IMPORT_FAIL_IF_EXCEED);
  g_free(pem.data);
  for (int i = 0; i < code; i++)
    g_ptr_array_add(certs, list[i]);
  if (code > 0)
    return g_steal_pointer(&certs);
  if (code == GNUTLS_E_SHORT_MEMORY_BUFFER)
    dr_error_set(error, DR_ERROR_INVALID, "'%s' has more than %d certificates", file, MAX_CERTS);
  else
    dr_error_set(error, DR_ERROR_INVALID, "'%s' has no certificate in PEM: %s", file,
                 code < 0 ? gnutls_strerror(code) : "it is empty");
  return NULL;
}

gnutls_x509_privkey_t
dr_pki_load_key(const char *file, GError **error)
{
  g_auto(gnutls_x509_privkey_t) key = NULL;
  gnutls_datum_t pem;
  int code;

  if (!read_datum(file, MAX_FILE, &pem, error))
    return NULL;
  gnutls_x509_privkey_init(&key);
  code = gnutls_x509_privkey_import2(key, &pem, GNUTLS_X509_FMT_PEM, NULL, 0);
  gnutls_memset(pem.data, 0, pem.size);
  g_free(pem.data);
  if (code >= 0)
    return g_steal_pointer(&key);
  if (code == GNUTLS_E_DECRYPTION_FAILED)
    dr_error_set(error, DR_ERROR_INVALID, "the key '%s' has a passphrase", file);
  else
    dr_error_set(error, DR_ERROR_INVALID, "'%s' has no private key in PEM: %s", file, gnutls_strerror(code));
  return NULL;
}

/* --- What one says --- */

static char *
hex(const guint8 *bytes, gsize len)
{
  GString *text = g_string_sized_new(2 * len);

  for (gsize i = 0; i < len; i++)
    g_string_append_printf(text, "%02x", bytes[i]);
  return g_string_free(text, FALSE);
}

char *
dr_cert_key_id(gnutls_x509_crt_t cert)
{
  guint8 id[32];
  gsize size = sizeof id;

  if (gnutls_x509_crt_get_key_id(cert, GNUTLS_KEYID_USE_SHA256, id, &size) < 0)
    size = 0; /* a kind of key that GnuTLS does not know: no pin is its */
  return hex(id, size);
}

/* A stranger may have written it: fit for a log and a terminal, and nothing hidden behind a NUL. */
static gboolean
is_plain(const char *text, gsize len)
{
  if (len == 0 || memchr(text, '\0', len) || !g_utf8_validate(text, (gssize)len, NULL))
    return FALSE;
  for (const char *at = text; at < text + len; at = g_utf8_next_char(at))
    if (!g_unichar_isprint(g_utf8_get_char(at)))
      return FALSE;
  return TRUE;
}

/* What stands at one place of the alternative names. */
typedef enum { SAN_TAKEN, SAN_OTHER_KIND, SAN_BAD, SAN_END } San;

/* *ret_name is (transfer full) where it is SAN_TAKEN. */
static San
alternative_name(gnutls_x509_crt_t cert, unsigned i, char **ret_name)
{
  char name[NAME_BYTES], text[INET6_ADDRSTRLEN];
  gsize size = sizeof name;
  unsigned type = 0;
  int code = gnutls_x509_crt_get_subject_alt_name2(cert, i, name, &size, &type, NULL);

  if (code < 0)
    return code == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE ? SAN_END : SAN_BAD;
  if (code == GNUTLS_SAN_DNSNAME && is_plain(name, size))
    *ret_name = g_strndup(name, size);
  else if (code == GNUTLS_SAN_IPADDRESS && (size == 4 || size == 16))
    *ret_name = g_strdup(inet_ntop(size == 4 ? AF_INET : AF_INET6, name, text, sizeof text));
  else
    return code == GNUTLS_SAN_DNSNAME || code == GNUTLS_SAN_IPADDRESS ? SAN_BAD : SAN_OTHER_KIND;
  return SAN_TAKEN;
}

/* As it is: gnutls_x509_crt_get_dn_by_oid() would give it with the escapes of RFC 4514. BER's tags of strings of bytes that are
 * UTF-8, or fail to be: UTF8String, PrintableString, TeletexString, IA5String. */
static char *
text_of(const gnutls_x509_ava_st *ava)
{
  gboolean bytes =
      ava->value_tag == 12 || ava->value_tag == 19 || ava->value_tag == 20 || ava->value_tag == 22;
  const char *text = (const char *)ava->value.data;

  return bytes && is_plain(text, ava->value.size) ? g_strndup(text, ava->value.size) : NULL;
}

/* The first. (transfer full), nullable. */
static char *
common_name(gnutls_x509_crt_t cert)
{
  gnutls_x509_ava_st ava;
  gnutls_x509_dn_t dn;

  if (gnutls_x509_crt_get_subject(cert, &dn) < 0)
    return NULL;
  for (int rdn = 0; rdn < MAX_NAMES; rdn++)
    for (int i = 0; i < MAX_NAMES && gnutls_x509_dn_get_rdn_ava(dn, rdn, i, &ava) >= 0; i++)
      if (ava.oid.size >= strlen(GNUTLS_OID_X520_COMMON_NAME) &&
          strncmp((const char *)ava.oid.data, GNUTLS_OID_X520_COMMON_NAME, ava.oid.size) == 0)
        return text_of(&ava);
  return NULL;
}

char **
dr_cert_names(gnutls_x509_crt_t cert)
{
  g_autoptr(GStrvBuilder) names = g_strv_builder_new();
  gboolean any = FALSE;

  for (unsigned i = 0; i < MAX_NAMES; i++) {
    g_autofree char *name = NULL;
    San san = alternative_name(cert, i, &name);

    if (san == SAN_END)
      break;
    any |= san != SAN_OTHER_KIND;
    if (name)
      g_strv_builder_add(names, name);
  }
  if (!any) {
    g_autofree char *name = common_name(cert);

    if (name)
      g_strv_builder_add(names, name);
  }
  return g_strv_builder_end(names);
}

static DrCertUse
use_of_purpose(const char *oid)
{
  if (g_str_equal(oid, GNUTLS_KP_TLS_WWW_SERVER))
    return DR_CERT_SERVER;
  if (g_str_equal(oid, GNUTLS_KP_TLS_WWW_CLIENT))
    return DR_CERT_CLIENT;
  return g_str_equal(oid, GNUTLS_KP_ANY) ? DR_CERT_SERVER | DR_CERT_CLIENT : 0;
}

static DrCertUse
use_of(gnutls_x509_crt_t cert)
{
  DrCertUse use = gnutls_x509_crt_get_ca_status(cert, NULL) > 0 ? DR_CERT_CA : 0;
  char oid[128];

  for (unsigned i = 0; i < MAX_NAMES; i++) {
    gsize size = sizeof oid;
    int code = gnutls_x509_crt_get_key_purpose_oid(cert, i, oid, &size, NULL);

    if (code >= 0)
      use |= use_of_purpose(oid);
    else if (code == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE && i == 0 && !(use & DR_CERT_CA))
      return use | DR_CERT_SERVER | DR_CERT_CLIENT;
    else if (code != GNUTLS_E_SHORT_MEMORY_BUFFER)
      break;
  }
  return use;
}

/* (transfer full) */
static char *
printed_name(gnutls_x509_crt_t cert, int (*get)(gnutls_x509_crt_t, gnutls_datum_t *, unsigned))
{
  gnutls_datum_t name = { 0 };
  g_autofree char *text = NULL;

  if (get(cert, &name, 0) < 0)
    return g_strdup("");
  text = g_utf8_make_valid((const char *)name.data, name.size);
  gnutls_free(name.data);
  for (char *at = text; *at; at++)
    if (g_ascii_iscntrl(*at))
      *at = '?';
  return g_steal_pointer(&text);
}

static DrCertInfo *
info_of(gnutls_x509_crt_t cert)
{
  DrCertInfo *info = g_new0(DrCertInfo, 1);
  guint8 serial[64];
  gsize size = sizeof serial;
  unsigned bits = 0;
  int algorithm = gnutls_x509_crt_get_pk_algorithm(cert, &bits);
  const char *name = algorithm >= 0 ? gnutls_pk_get_name(algorithm) : NULL;

  info->subject = printed_name(cert, gnutls_x509_crt_get_dn3);
  info->issuer = printed_name(cert, gnutls_x509_crt_get_issuer_dn3);
  info->names = dr_cert_names(cert);
  info->algorithm = g_strdup_printf("%s %u bit", name ? name : "unknown", bits);
  info->serial = hex(serial, gnutls_x509_crt_get_serial(cert, serial, &size) >= 0 ? size : 0);
  info->key_id = dr_cert_key_id(cert);
  info->use = use_of(cert);
  info->from = gnutls_x509_crt_get_activation_time(cert);
  info->until = gnutls_x509_crt_get_expiration_time(cert);
  return info;
}

void
dr_cert_info_free(DrCertInfo *info)
{
  if (!info)
    return;
  g_free(info->subject);
  g_free(info->issuer);
  g_strfreev(info->names);
  g_free(info->algorithm);
  g_free(info->serial);
  g_free(info->key_id);
  g_free(info);
}

GPtrArray *
dr_cert_read(const char *file, GError **error)
{
  g_autoptr(GPtrArray) certs = dr_pki_load_certs(file, error);
  GPtrArray *infos;

  if (!certs)
    return NULL;
  infos = g_ptr_array_new_with_free_func((GDestroyNotify)dr_cert_info_free);
  for (guint i = 0; i < certs->len; i++)
    g_ptr_array_add(infos, info_of(certs->pdata[i]));
  return infos;
}

/* --- Whether it holds --- */

gboolean
dr_pki_key_fits(gnutls_x509_crt_t cert, gnutls_x509_privkey_t key)
{
  g_autofree char *wanted = dr_cert_key_id(cert);
  g_autofree char *found = NULL;
  guint8 id[32];
  gsize size = sizeof id;

  if (gnutls_x509_privkey_get_key_id(key, GNUTLS_KEYID_USE_SHA256, id, &size) < 0)
    return FALSE;
  found = hex(id, size);
  return g_str_equal(found, wanted);
}

/* (transfer full) */
static char *
date(gint64 seconds)
{
  g_autoptr(GDateTime) time = g_date_time_new_from_unix_utc(seconds);

  return time ? g_date_time_format(time, "%Y-%m-%d %H:%M UTC") : g_strdup("?");
}

char *
dr_cert_time_problem(gint64 from, gint64 until)
{
  gint64 now = g_get_real_time() / G_USEC_PER_SEC;
  g_autofree char *begin = date(from);
  g_autofree char *end = date(until);

  if (until < now)
    return g_strdup_printf("it ended on %s", end);
  if (from > now)
    return g_strdup_printf("it begins on %s, which is to come by this host's clock", begin);
  return NULL;
}

static char *
key_problem(gnutls_x509_crt_t cert, const char *file)
{
  g_autoptr(GError) error = NULL;
  g_auto(gnutls_x509_privkey_t) key = dr_pki_load_key(file, &error);

  if (!key)
    return g_strdup(error->message);
  return dr_pki_key_fits(cert, key) ? NULL : g_strdup_printf("the key '%s' is not its own", file);
}

static char *
add_crl(TrustList list, const char *file)
{
  g_autoptr(GError) error = NULL;
  gnutls_datum_t pem;
  int n;

  if (!read_datum(file, MAX_CRL, &pem, &error))
    return g_strdup(error->message);
  n = gnutls_x509_trust_list_add_trust_mem(list, NULL, &pem, GNUTLS_X509_FMT_PEM,
                                           GNUTLS_TL_VERIFY_CRL | GNUTLS_TL_FAIL_ON_INVALID_CRL, 0);
  g_free(pem.data);
  return n > 0 ? NULL : g_strdup_printf("'%s' is no revocation list of its CA in PEM", file);
}

static char *
fill(TrustList list, const char *ca, const char *crl)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(GPtrArray) certs = dr_pki_load_certs(ca, &error);

  if (!certs)
    return g_strdup(error->message);
  for (guint i = 0; i < certs->len; i++) {
    gnutls_x509_crt_t cert = g_steal_pointer(&certs->pdata[i]); /* the list's, once it has it */

    if (gnutls_x509_trust_list_add_cas(list, &cert, 1, 0) == 1)
      continue;
    gnutls_x509_crt_deinit(cert);
    return g_strdup_printf("'%s' cannot be used as a CA", ca);
  }
  return crl ? add_crl(list, crl) : NULL;
}

static char *
status_problem(unsigned status, DrCertUse use, const char *ca)
{
  if (status & GNUTLS_CERT_REVOKED)
    return g_strdup("it was revoked");
  if (status & GNUTLS_CERT_SIGNER_NOT_FOUND)
    return g_strdup_printf("it is not of the CA in '%s'", ca);
  if (status & GNUTLS_CERT_SIGNER_NOT_CA)
    return g_strdup_printf("who signed it is in '%s', but is no CA", ca);
  if (status & GNUTLS_CERT_EXPIRED)
    return g_strdup_printf("its CA in '%s' has ended", ca);
  if (status & (GNUTLS_CERT_REVOCATION_DATA_SUPERSEDED | GNUTLS_CERT_REVOCATION_DATA_ISSUED_IN_FUTURE))
    return g_strdup("the revocation list is too old, or not valid yet");
  if (status & GNUTLS_CERT_PURPOSE_MISMATCH)
    return g_strdup_printf("it is not for a %s", use == DR_CERT_SERVER ? "server" : "client");
  if (status & GNUTLS_CERT_INSECURE_ALGORITHM)
    return g_strdup("its signature or its key is too weak");
  return g_strdup_printf("it does not hold (GnuTLS verification status 0x%x)", status);
}

static char *
chain_problem(GPtrArray *certs, DrCertUse use, const char *ca, const char *crl)
{
  const char *purpose = use == DR_CERT_SERVER ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT;
  gnutls_typed_vdata_st data = { .type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)purpose };
  g_auto(TrustList) list = NULL;
  unsigned status = 0;
  char *problem;

  gnutls_x509_trust_list_init(&list, 0);
  problem = fill(list, ca, crl);
  if (problem)
    return problem;
  if (gnutls_x509_trust_list_verify_crt2(list, (gnutls_x509_crt_t *)certs->pdata, certs->len, &data, 1, 0,
                                         &status, NULL) < 0)
    return g_strdup("it cannot be verified");
  return status ? status_problem(status, use, ca) : NULL;
}

char *
dr_cert_problem(const char *file, DrCertUse use, const char *key, const char *ca, const char *crl)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(GPtrArray) certs = dr_pki_load_certs(file, &error);
  gnutls_x509_crt_t cert;
  char *problem;

  if (!certs)
    return g_strdup(error->message);
  cert = certs->pdata[0];
  problem = dr_cert_time_problem(gnutls_x509_crt_get_activation_time(cert),
                                 gnutls_x509_crt_get_expiration_time(cert));
  if (!problem && !(use_of(cert) & use))
    problem = g_strdup_printf("it is not for a %s",
                              use == DR_CERT_CA ? "CA" : (use == DR_CERT_SERVER ? "server" : "client"));
  if (!problem && ca)
    problem = chain_problem(certs, use, ca, crl);
  return problem || !key ? problem : key_problem(cert, key);
}
