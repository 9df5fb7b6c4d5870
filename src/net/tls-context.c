/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Credentials, and whom we take for whom. */
#include "base/address.h"
#include "base/error.h"
#include "net/pki.h"
#include "net/tls-internal.h"

#include <gnutls/x509.h>

#ifdef __aarch64__
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define PRIORITY "SECURE128:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:"
#define AES_FIRST PRIORITY "+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305"
#define AES_LAST PRIORITY "+CHACHA20-POLY1305:+AES-128-GCM:+AES-256-GCM"

struct DrTlsContext {
  gatomicrefcount refs;
  gnutls_certificate_credentials_t server, client;
  gnutls_priority_t priority;
};

gboolean
dr_tls_error(GError **error, int code, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list ap;

  va_start(ap, format);
  text = g_strdup_vprintf(format, ap);
  va_end(ap);
  return dr_error_set(error, DR_ERROR_IO, "%s: %s", text, gnutls_strerror(code));
}

/* AES without instructions for it is three times slower than ChaCha20. */
static gboolean
cpu_has_aes(void)
{
#if defined __x86_64__ || defined __i386__
  return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#elif defined __aarch64__
  return (getauxval(AT_HWCAP) & HWCAP_AES) != 0;
#else
  return FALSE;
#endif
}

static gboolean
load(gnutls_certificate_credentials_t *ret, const DrTlsFiles *files, const char *cert, const char *key,
     GError **error)
{
  int n = gnutls_certificate_allocate_credentials(ret);

  if (n < 0)
    return dr_tls_error(error, n, "cannot set up TLS");
  n = gnutls_certificate_set_x509_trust_file(*ret, files->ca, GNUTLS_X509_FMT_PEM);
  if (n <= 0)
    return dr_tls_error(error, n ? n : GNUTLS_E_NO_CERTIFICATE_FOUND, "cannot read the CA certificate '%s'",
                        files->ca);
  if (files->crl) {
    n = gnutls_certificate_set_x509_crl_file(*ret, files->crl, GNUTLS_X509_FMT_PEM);
    if (n < 0)
      return dr_tls_error(error, n, "cannot read the revocation list '%s'", files->crl);
  }
  n = gnutls_certificate_set_x509_key_file(*ret, cert, key, GNUTLS_X509_FMT_PEM);
  return n >= 0 || dr_tls_error(error, n, "cannot use the certificate '%s' with the key '%s'", cert, key);
}

DrTlsContext *
dr_tls_context_new(const DrTlsFiles *files, GError **error)
{
  g_autoptr(DrTlsContext) context = g_new0(DrTlsContext, 1);
  int code;

  g_atomic_ref_count_init(&context->refs);
  if (!load(&context->server, files, files->server_cert, files->server_key, error) ||
      !load(&context->client, files, files->client_cert, files->client_key, error))
    return NULL;
  code = gnutls_priority_init(&context->priority, cpu_has_aes() ? AES_FIRST : AES_LAST, NULL);
  if (code < 0) {
    dr_tls_error(error, code, "cannot set up TLS 1.3");
    return NULL;
  }
  return g_steal_pointer(&context);
}

DrTlsContext *
dr_tls_context_ref(DrTlsContext *context)
{
  g_atomic_ref_count_inc(&context->refs);
  return context;
}

void
dr_tls_context_unref(DrTlsContext *context)
{
  if (!context || !g_atomic_ref_count_dec(&context->refs))
    return;
  if (context->server)
    gnutls_certificate_free_credentials(context->server);
  if (context->client)
    gnutls_certificate_free_credentials(context->client);
  if (context->priority)
    gnutls_priority_deinit(context->priority);
  g_free(context);
}

void
dr_tls_context_apply(DrTlsContext *context, gnutls_session_t session, gboolean server)
{
  gnutls_priority_set(session, context->priority);
  gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, server ? context->server : context->client);
  if (server)
    gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
}

/* --- Who is there? --- */

static gboolean
check_chain(DrTls *tls, const char *purpose, const char *name, GError **error)
{
  gnutls_typed_vdata_st data[2] = { { .type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (void *)purpose } };
  unsigned int status = 0, n = 1;
  guint8 ip[16];
  gsize ip_len = name ? dr_host_ip(name, ip) : 0;
  gnutls_datum_t text = { 0 };
  int code;

  if (ip_len > 0)
    data[n++] = (gnutls_typed_vdata_st){ GNUTLS_DT_IP_ADDRESS, ip, (unsigned int)ip_len };
  else if (name)
    data[n++] = (gnutls_typed_vdata_st){ GNUTLS_DT_DNS_HOSTNAME, (void *)name, 0 };
  code = gnutls_certificate_verify_peers(tls->session, data, n, &status);
  if (code == GNUTLS_E_NO_CERTIFICATE_FOUND)
    return dr_error_set(error, DR_ERROR_REFUSED, "%s shows no certificate", tls->address);
  if (code < 0)
    return dr_tls_error(error, code, "cannot check the certificate of %s", tls->address);
  if (status == 0)
    return TRUE;
  gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
  dr_error_set(error, DR_ERROR_REFUSED, "the certificate of %s is not accepted%s%s: %s", tls->address,
               name ? " for the name " : "", name ? name : "",
               text.data ? g_strchomp((char *)text.data) : "?");
  gnutls_free(text.data);
  return FALSE;
}

static gboolean
read_certificate(DrTls *tls, GError **error)
{
  unsigned int n = 0;
  const gnutls_datum_t *chain = gnutls_certificate_get_peers(tls->session, &n);
  gnutls_x509_crt_t cert;
  int code;

  if (!chain || n == 0)
    return dr_error_set(error, DR_ERROR_REFUSED, "%s shows no certificate", tls->address);
  gnutls_x509_crt_init(&cert);
  code = gnutls_x509_crt_import(cert, &chain[0], GNUTLS_X509_FMT_DER);
  if (code >= 0) {
    tls->names = dr_cert_names(cert);
    tls->key_id = dr_cert_key_id(cert);
  }
  gnutls_x509_crt_deinit(cert);
  if (code < 0)
    return dr_tls_error(error, code, "cannot read the certificate of %s", tls->address);
  return tls->names[0] ||
         dr_error_set(error, DR_ERROR_REFUSED, "the certificate of %s has no name", tls->address);
}

gboolean
dr_tls_check_peer(DrTls *tls, gboolean server, const char *name, GError **error)
{
  const char *purpose = server ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT;

  return check_chain(tls, purpose, name, error) && read_certificate(tls, error);
}
