/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* TLS by GnuTLS. */
#include "net/tls.h"
#include "base/error.h"
#include "base/fd.h"
#include "net/pki.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define PRIORITY "SECURE128:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305"
#define BUFFER (512 * 1024) /* each way, towards the socket */
#define END_MS 2000

struct DrTlsContext {
  gatomicrefcount refs;
  gnutls_certificate_credentials_t server, client;
  gnutls_priority_t priority;
};

struct DrTls {
  gnutls_session_t session;
  DrTlsContext *context;
  int fd;
  char *address, *key_id;
  char **names;
  /* Of who reads. */
  guint8 *in;
  gsize in_at, in_len;
  DrDeadline read_deadline;
  gboolean only_what_is_there;
  gboolean shaking; /* hands: one thread still does both */
  /* Of who writes. */
  guint8 *out;
  gsize out_len;
  DrDeadline write_deadline;
};

/* --- The context --- */

static gboolean tls_error(GError **error, int code, const char *format, ...) G_GNUC_PRINTF(3, 4);

static gboolean
tls_error(GError **error, int code, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list ap;

  va_start(ap, format);
  text = g_strdup_vprintf(format, ap);
  va_end(ap);
  return dr_error_set(error, DR_ERROR_IO, "%s: %s", text, gnutls_strerror(code));
}

static gboolean
load(gnutls_certificate_credentials_t *ret, const DrTlsFiles *files, const char *cert, const char *key,
     GError **error)
{
  int n;

  gnutls_certificate_allocate_credentials(ret);
  n = gnutls_certificate_set_x509_trust_file(*ret, files->ca, GNUTLS_X509_FMT_PEM);
  if (n <= 0)
    return tls_error(error, n ? n : GNUTLS_E_NO_CERTIFICATE_FOUND, "cannot read the CA certificate '%s'",
                     files->ca);
  if (files->crl) {
    n = gnutls_certificate_set_x509_crl_file(*ret, files->crl, GNUTLS_X509_FMT_PEM);
    if (n < 0)
      return tls_error(error, n, "cannot read the revocation list '%s'", files->crl);
  }
  n = gnutls_certificate_set_x509_key_file(*ret, cert, key, GNUTLS_X509_FMT_PEM);
  return n >= 0 || tls_error(error, n, "cannot use the certificate '%s' with the key '%s'", cert, key);
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
  code = gnutls_priority_init(&context->priority, PRIORITY, NULL);
  if (code < 0) {
    tls_error(error, code, "cannot set up TLS 1.3");
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

/* --- The socket --- */

static gboolean
wait_for(int fd, short events, DrDeadline deadline)
{
  struct pollfd one = { .fd = fd, .events = events };

  return poll(&one, 1, dr_deadline_left(deadline)) > 0;
}

static gboolean
flush(DrTls *tls)
{
  gsize at = 0;

  while (at < tls->out_len) {
    gssize sent = send(tls->fd, tls->out + at, tls->out_len - at, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (sent > 0)
      at += (gsize)sent;
    else if (errno != EINTR && (errno != EAGAIN || !wait_for(tls->fd, POLLOUT, tls->write_deadline)))
      return FALSE;
  }
  tls->out_len = 0;
  return TRUE;
}

/* gnutls_pull_func: out of our buffer, which is filled as far as the socket has something. */
static ssize_t
pull(gnutls_transport_ptr_t data, void *buffer, size_t len)
{
  DrTls *tls = data;
  gsize n;

  if (tls->shaking && !flush(tls)) /* GnuTLS waits for the answer to what it has just written */
    return -1;
  while (tls->in_at == tls->in_len) {
    gssize got = recv(tls->fd, tls->in, BUFFER, MSG_DONTWAIT);

    if (got == 0)
      return 0;
    if (got > 0) {
      tls->in_at = 0;
      tls->in_len = (gsize)got;
    } else if (errno == EAGAIN && !tls->only_what_is_there && wait_for(tls->fd, POLLIN, tls->read_deadline)) {
      continue;
    } else if (errno != EINTR) {
      gnutls_transport_set_errno(tls->session, errno == EAGAIN ? EAGAIN : errno);
      return -1;
    }
  }
  n = MIN(len, tls->in_len - tls->in_at);
  memcpy(buffer, tls->in + tls->in_at, n);
  tls->in_at += n;
  return (ssize_t)n;
}

/* gnutls_push_func: into our buffer, which goes out when it is full, and at the end of each write. */
static ssize_t
push(gnutls_transport_ptr_t data, const void *buffer, size_t len)
{
  DrTls *tls = data;

  if (tls->out_len + len > BUFFER && !flush(tls)) {
    gnutls_transport_set_errno(tls->session, errno == EAGAIN ? ETIMEDOUT : errno);
    return -1;
  }
  len = MIN(len, BUFFER - tls->out_len);
  memcpy(tls->out + tls->out_len, buffer, len);
  tls->out_len += len;
  return (ssize_t)len;
}

static int
pull_timeout(gnutls_transport_ptr_t data, unsigned int ms)
{
  DrTls *tls = data;

  return tls->in_at < tls->in_len || wait_for(tls->fd, POLLIN, MIN(tls->read_deadline, dr_deadline_in(ms)));
}

/* --- Who is there? --- */

static gboolean
is_address(const char *name)
{
  guint8 bytes[16];

  return inet_pton(AF_INET, name, bytes) == 1 || inet_pton(AF_INET6, name, bytes) == 1;
}

static gboolean
check_chain(DrTls *tls, const char *name, const char *purpose, GError **error)
{
  gnutls_typed_vdata_st data[2] = { { .type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (void *)purpose } };
  unsigned int status = 0, n = 1;
  guint8 bytes[16];
  gnutls_datum_t text = { 0 };
  int code;

  if (name && is_address(name)) {
    int family = strchr(name, ':') ? AF_INET6 : AF_INET;

    inet_pton(family, name, bytes);
    data[n++] = (gnutls_typed_vdata_st){ GNUTLS_DT_IP_ADDRESS, bytes, family == AF_INET ? 4 : 16 };
  } else if (name) {
    data[n++] = (gnutls_typed_vdata_st){ GNUTLS_DT_DNS_HOSTNAME, (void *)name, 0 };
  }
  code = gnutls_certificate_verify_peers(tls->session, data, n, &status);
  if (code < 0)
    return tls_error(error, code, "cannot check the certificate of %s", tls->address);
  if (status == 0)
    return TRUE;
  gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
  dr_error_set(error, DR_ERROR_REFUSED, "the certificate of %s is not accepted%s%s: %s", tls->address,
               name ? " for the name " : "", name ? name : "", text.data ? (char *)text.data : "?");
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
  return code >= 0 || tls_error(error, code, "cannot read the certificate of %s", tls->address);
}

/* --- A connection --- */

static DrTls *
tls_new(DrTlsContext *context, int fd, const char *address, unsigned int flags, DrDeadline deadline)
{
  DrTls *tls = g_new0(DrTls, 1);

  tls->context = dr_tls_context_ref(context);
  tls->fd = fd;
  tls->address = g_strdup(address);
  tls->in = g_malloc(BUFFER);
  tls->out = g_malloc(BUFFER);
  tls->read_deadline = tls->write_deadline = deadline;
  gnutls_init(&tls->session, flags | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS);
  gnutls_priority_set(tls->session, context->priority);
  gnutls_credentials_set(tls->session, GNUTLS_CRD_CERTIFICATE,
                         flags & GNUTLS_SERVER ? context->server : context->client);
  gnutls_transport_set_ptr(tls->session, tls);
  gnutls_transport_set_pull_function(tls->session, pull);
  gnutls_transport_set_push_function(tls->session, push);
  gnutls_transport_set_pull_timeout_function(tls->session, pull_timeout);
  return tls;
}

/* A fatal alert of ours, if there is one to be told, goes out with the last flush. */
static gboolean
shake_hands(DrTls *tls, DrDeadline deadline, GError **error)
{
  int code;

  tls->shaking = TRUE;
  do {
    code = gnutls_handshake(tls->session);
    if (!flush(tls))
      return dr_error_set_errno(error, errno, "cannot talk TLS to %s", tls->address);
  } while (code < 0 && !gnutls_error_is_fatal(code) && !dr_deadline_passed(deadline));
  tls->shaking = FALSE;
  if (code >= 0)
    return TRUE;
  if (!gnutls_error_is_fatal(code))
    return dr_error_set(error, DR_ERROR_TIMEOUT, "%s did not finish the TLS handshake in time", tls->address);
  if (code == GNUTLS_E_FATAL_ALERT_RECEIVED)
    return dr_error_set(error, DR_ERROR_REFUSED, "%s refused the TLS handshake: %s", tls->address,
                        gnutls_alert_get_name(gnutls_alert_get(tls->session)));
  return tls_error(error, code, "the TLS handshake with %s failed", tls->address);
}

DrTls *
dr_tls_connect(DrTlsContext *context, int fd, const char *name, const char *pin, const char *address,
               DrDeadline deadline, GError **error)
{
  g_autoptr(DrTls) tls = tls_new(context, fd, address, GNUTLS_CLIENT, deadline);

  if (!is_address(name))
    gnutls_server_name_set(tls->session, GNUTLS_NAME_DNS, name, strlen(name));
  if (!shake_hands(tls, deadline, error) || !check_chain(tls, name, GNUTLS_KP_TLS_WWW_SERVER, error) ||
      !read_certificate(tls, error))
    return NULL;
  if (pin && !dr_pin_matches(pin, tls->key_id)) {
    dr_error_set(error, DR_ERROR_REFUSED, "%s has the key %s, and not one that is pinned", address,
                 tls->key_id);
    return NULL;
  }
  return g_steal_pointer(&tls);
}

DrTls *
dr_tls_accept(DrTlsContext *context, int fd, const char *address, DrDeadline deadline, GError **error)
{
  g_autoptr(DrTls) tls = tls_new(context, fd, address, GNUTLS_SERVER, deadline);

  gnutls_certificate_server_set_request(tls->session, GNUTLS_CERT_REQUIRE);
  if (!shake_hands(tls, deadline, error) || !check_chain(tls, NULL, GNUTLS_KP_TLS_WWW_CLIENT, error) ||
      !read_certificate(tls, error))
    return NULL;
  return g_steal_pointer(&tls);
}

void
dr_tls_free(DrTls *tls)
{
  if (!tls)
    return;
  gnutls_deinit(tls->session);
  close(tls->fd);
  dr_tls_context_unref(tls->context);
  g_free(tls->address);
  g_strfreev(tls->names);
  g_free(tls->key_id);
  g_free(tls->in);
  g_free(tls->out);
  g_free(tls);
}

const char *const *
dr_tls_names(const DrTls *tls)
{
  return (const char *const *)tls->names;
}

const char *
dr_tls_key_id(const DrTls *tls)
{
  return tls->key_id;
}

const char *
dr_tls_suite(const DrTls *tls)
{
  return gnutls_cipher_get_name(gnutls_cipher_get(tls->session));
}

/* --- Bytes --- */

static DrDeadline
deadline_of(int timeout_ms)
{
  return timeout_ms < 0 ? DR_DEADLINE_NEVER : dr_deadline_in(timeout_ms);
}

static gssize
read_failed(DrTls *tls, gssize code, GError **error)
{
  if (code == GNUTLS_E_AGAIN || code == GNUTLS_E_TIMEDOUT)
    dr_error_set(error, DR_ERROR_TIMEOUT, "%s has sent nothing in time", tls->address);
  else
    dr_error_set(error, DR_ERROR_CLOSED, "the connection with %s broke: %s", tls->address,
                 gnutls_strerror((int)code));
  return -1;
}

gssize
dr_tls_read(DrTls *tls, void *buffer, gsize len, int timeout_ms, GError **error)
{
  gsize total = 0;

  tls->read_deadline = deadline_of(timeout_ms);
  while (total < len) {
    gssize n;

    tls->only_what_is_there = total > 0;
    n = gnutls_record_recv(tls->session, (guint8 *)buffer + total, len - total);
    if (n > 0)
      total += (gsize)n;
    else if (total > 0)
      break; /* what went wrong comes back at the next call */
    else if (n == 0)
      return 0;
    else if (n != GNUTLS_E_INTERRUPTED && (n != GNUTLS_E_AGAIN || dr_deadline_passed(tls->read_deadline)))
      return read_failed(tls, n, error);
  }
  return (gssize)total;
}

gboolean
dr_tls_write(DrTls *tls, const void *buffer, gsize len, int timeout_ms, GError **error)
{
  gsize total = 0;

  tls->write_deadline = deadline_of(timeout_ms);
  while (total < len) {
    gssize n = gnutls_record_send(tls->session, (const guint8 *)buffer + total, len - total);

    if (n > 0)
      total += (gsize)n;
    else if (n != GNUTLS_E_INTERRUPTED && n != GNUTLS_E_AGAIN)
      return dr_error_set(error, DR_ERROR_CLOSED, "the connection with %s broke: %s", tls->address,
                          gnutls_strerror((int)n));
  }
  return flush(tls) || dr_error_set_errno(error, errno, "cannot send to %s", tls->address);
}

gboolean
dr_tls_end(DrTls *tls, GError **error)
{
  int code;

  tls->write_deadline = dr_deadline_in(END_MS);
  code = gnutls_bye(tls->session, GNUTLS_SHUT_WR);
  if (code < 0)
    return tls_error(error, code, "cannot end the connection with %s", tls->address);
  return flush(tls) || dr_error_set_errno(error, errno, "cannot end the connection with %s", tls->address);
}

void
dr_tls_abort(DrTls *tls)
{
  shutdown(tls->fd, SHUT_RDWR);
}
