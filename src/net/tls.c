/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A TLS connection. GnuTLS never touches the socket: it takes records out of `in` and puts them into `out`, and what waits for the
 * socket, with a deadline, is fill() and flush(), outside of the lock. */
#include "base/error.h"
#include "base/fd.h"
#include "base/address.h"
#include "net/dial.h"
#include "net/pki.h"
#include "net/tls-internal.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define BUFFER DR_TLS_BUFFER
#define RECORD 16384                  /* bytes in a record at the most (RFC 8446, 5.1) */
#define OUT_ROOM (BUFFER + 2 * 17000) /* a record that begins at BUFFER, and a change of keys before it */
#define END_MS 2000

/* --- The socket --- */

/* FALSE: not by the deadline. */
static gboolean
wait_readable(int fd, DrDeadline deadline)
{
  struct pollfd one = { .fd = fd, .events = POLLIN };

  while (poll(&one, 1, dr_deadline_left(deadline)) <= 0)
    if (dr_deadline_passed(deadline))
      return FALSE;
  return TRUE;
}

/* Reads what the socket has, or its end, once all of `in` has been taken: GnuTLS asks for more also after a message of its own
 * (a change of keys) with more behind it. FALSE with errno. */
static gboolean
fill(DrTls *tls, DrDeadline deadline)
{
  while (tls->in_at == tls->in_len) {
    gssize n = tls->in_ended ? 0 : recv(tls->fd, tls->in, BUFFER, MSG_DONTWAIT);

    if (n >= 0) {
      tls->in_ended = n == 0;
      tls->in_at = 0;
      tls->in_len = (gsize)n;
      return TRUE;
    }
    if (errno != EAGAIN && errno != EINTR)
      return FALSE;
    if (!wait_readable(tls->fd, deadline)) {
      errno = ETIMEDOUT;
      return FALSE;
    }
  }
  return TRUE;
}

/* FALSE with errno; then nothing more can be sent. */
static gboolean
flush(DrTls *tls, DrDeadline deadline)
{
  while (tls->out_at < tls->out_len) {
    gssize n = send(tls->fd, tls->out + tls->out_at, tls->out_len - tls->out_at, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n > 0) {
      tls->out_at += (gsize)n;
      continue;
    }
    if (errno == EINTR || (errno == EAGAIN && dr_socket_wait_writable(tls->fd, deadline)))
      continue;
    tls->out_broken = TRUE;
    return FALSE;
  }
  tls->out_at = tls->out_len = 0;
  return TRUE;
}

/* gnutls_pull_func */
static ssize_t
pull(gnutls_transport_ptr_t data, void *buffer, size_t len)
{
  DrTls *tls = data;
  gsize n = MIN(len, tls->in_len - tls->in_at);

  if (n == 0 && tls->in_ended)
    return 0;
  if (n == 0) {
    gnutls_transport_set_errno(tls->session, EAGAIN);
    return -1;
  }
  memcpy(buffer, tls->in + tls->in_at, n);
  tls->in_at += n;
  return (ssize_t)n;
}

/* gnutls_push_func. `out` has room: see OUT_ROOM. */
static ssize_t
push(gnutls_transport_ptr_t data, const void *buffer, size_t len)
{
  DrTls *tls = data;

  if (!tls->writing || len > OUT_ROOM - tls->out_len) {
    gnutls_transport_set_errno(tls->session, EIO);
    return -1;
  }
  memcpy(tls->out + tls->out_len, buffer, len);
  tls->out_len += len;
  return (ssize_t)len;
}

/* gnutls_pull_timeout_func: nothing here waits. */
static int
pull_timeout(gnutls_transport_ptr_t data, unsigned int ms)
{
  DrTls *tls = data;

  return tls->in_at < tls->in_len || tls->in_ended;
}

/* --- Handshake --- */

static DrTls *
tls_new(DrTlsContext *context, int fd, const char *address, gboolean server)
{
  unsigned int role = server ? GNUTLS_SERVER : GNUTLS_CLIENT;
  DrTls *tls = g_new0(DrTls, 1);

  tls->context = dr_tls_context_ref(context);
  tls->fd = fd;
  tls->address = g_strdup(address);
  tls->in = g_malloc(BUFFER);
  tls->out = g_malloc(OUT_ROOM);
  g_mutex_init(&tls->lock);
  gnutls_init(&tls->session, role | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS);
  dr_tls_context_apply(context, tls->session, server);
  gnutls_transport_set_ptr(tls->session, tls);
  gnutls_transport_set_pull_function(tls->session, pull);
  gnutls_transport_set_push_function(tls->session, push);
  gnutls_transport_set_pull_timeout_function(tls->session, pull_timeout);
  return tls;
}

static gboolean
handshake_failed(DrTls *tls, int code, GError **error)
{
  if (code == GNUTLS_E_FATAL_ALERT_RECEIVED)
    return dr_error_set(error, DR_ERROR_REFUSED, "%s refused the TLS handshake: %s", tls->address,
                        gnutls_alert_get_name(gnutls_alert_get(tls->session)));
  if (code == GNUTLS_E_NO_CERTIFICATE_FOUND || code == GNUTLS_E_CERTIFICATE_REQUIRED)
    return dr_error_set(error, DR_ERROR_REFUSED, "%s shows no certificate", tls->address);
  return dr_tls_error(error, code, "the TLS handshake with %s failed", tls->address);
}

static gboolean
too_slow(DrTls *tls, GError **error)
{
  return dr_error_set(error, DR_ERROR_TIMEOUT, "%s did not finish the TLS handshake in time", tls->address);
}

static gboolean
socket_failed(DrTls *tls, GError **error)
{
  if (errno == ETIMEDOUT)
    return too_slow(tls, error);
  return dr_error_set(error, DR_ERROR_CLOSED, "%s broke the TLS handshake off: %s", tls->address,
                      g_strerror(errno));
}

static gboolean
shake_hands(DrTls *tls, DrDeadline deadline, GError **error)
{
  int code;

  tls->writing = TRUE; /* nobody else knows this connection */
  while ((code = gnutls_handshake(tls->session)) < 0 && !gnutls_error_is_fatal(code)) {
    if (!flush(tls, deadline) || (code == GNUTLS_E_AGAIN && !fill(tls, deadline)))
      return socket_failed(tls, error);
    if (dr_deadline_passed(deadline)) /* it says something all the time */
      return too_slow(tls, error);
  }
  tls->writing = FALSE;
  if (code < 0)
    return handshake_failed(tls, code, error);
  return flush(tls, deadline) || socket_failed(tls, error);
}

DrTls *
dr_tls_connect(DrTlsContext *context, int fd, const char *name, const char *pin, const char *address,
               DrDeadline deadline, GError **error)
{
  g_autoptr(DrTls) tls = tls_new(context, fd, address, FALSE);
  guint8 ip[16];

  if (dr_host_ip(name, ip) == 0)
    gnutls_server_name_set(tls->session, GNUTLS_NAME_DNS, name, strlen(name));
  if (!shake_hands(tls, deadline, error) || !dr_tls_check_peer(tls, TRUE, name, error))
    return NULL;
  if (pin && !dr_pin_matches(pin, tls->key_id)) {
    dr_error_set(error, DR_ERROR_REFUSED, "%s has the key %s, and not one that is pinned", address,
                 tls->key_id);
    dr_error_remedy(error, "if its key was renewed on purpose, pin the new one");
    return NULL;
  }
  return g_steal_pointer(&tls);
}

DrTls *
dr_tls_accept(DrTlsContext *context, int fd, const char *address, DrDeadline deadline, GError **error)
{
  g_autoptr(DrTls) tls = tls_new(context, fd, address, TRUE);

  if (!shake_hands(tls, deadline, error) || !dr_tls_check_peer(tls, FALSE, NULL, error))
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
  g_mutex_clear(&tls->lock);
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

int
dr_tls_fd(const DrTls *tls)
{
  return tls->fd;
}

gboolean
dr_tls_has_input(DrTls *tls)
{
  gboolean has;

  g_mutex_lock(&tls->lock);
  has = tls->in_at < tls->in_len || gnutls_record_check_pending(tls->session) > 0;
  g_mutex_unlock(&tls->lock);
  return has;
}

/* --- Bytes --- */

static DrDeadline
deadline_of(int timeout_ms)
{
  return timeout_ms < 0 ? DR_DEADLINE_NEVER : dr_deadline_in(timeout_ms);
}

static gboolean
broke(DrTls *tls, const char *why, GError **error)
{
  return dr_error_set(error, DR_ERROR_CLOSED, "the connection with %s broke: %s", tls->address, why);
}

static gssize
receive_record(DrTls *tls, void *buffer, gsize len)
{
  gssize n;

  g_mutex_lock(&tls->lock);
  n = gnutls_record_recv(tls->session, buffer, len);
  g_mutex_unlock(&tls->lock);
  return n;
}

static gssize
read_failed(DrTls *tls, GError **error)
{
  if (errno == ETIMEDOUT)
    dr_error_set(error, DR_ERROR_TIMEOUT, "%s has sent nothing in time", tls->address);
  else
    broke(tls, g_strerror(errno), error);
  return -1;
}

/* ETIMEDOUT is also what the kernel says of a dead connection (TCP_USER_TIMEOUT): that is an end, not a matter of patience. */
static gssize
wait_failed(DrTls *tls, DrDeadline deadline, GError **error)
{
  if (errno == ETIMEDOUT && !dr_deadline_passed(deadline)) {
    broke(tls, g_strerror(ETIMEDOUT), error);
    return -1;
  }
  return read_failed(tls, error);
}

gssize
dr_tls_read(DrTls *tls, void *buffer, gsize len, int timeout_ms, GError **error)
{
  DrDeadline deadline = deadline_of(timeout_ms);
  gsize total = 0;

  while (total < len) {
    gssize n = receive_record(tls, (guint8 *)buffer + total, len - total);

    if (n > 0) {
      total += (gsize)n;
      continue;
    }
    if (total > 0) /* whatever else it is comes back at the next call */
      break;
    if (n == 0)
      return 0;
    if (n == GNUTLS_E_AGAIN) {
      if (!fill(tls, deadline))
        return wait_failed(tls, deadline, error);
    } else if (gnutls_error_is_fatal((int)n)) {
      broke(tls, gnutls_strerror((int)n), error);
      return -1;
    }
  }
  return (gssize)total;
}

static gssize
send_record(DrTls *tls, const void *buffer, gsize len)
{
  gssize n;

  g_mutex_lock(&tls->lock);
  tls->writing = TRUE;
  n = gnutls_record_send(tls->session, buffer, MIN(len, RECORD));
  tls->writing = FALSE;
  g_mutex_unlock(&tls->lock);
  return n;
}

static gboolean
write_failed(DrTls *tls, DrDeadline deadline, GError **error)
{
  if (errno == ETIMEDOUT && dr_deadline_passed(deadline))
    return dr_error_set(error, DR_ERROR_TIMEOUT, "%s takes nothing in time", tls->address);
  return broke(tls, g_strerror(errno), error);
}

gboolean
dr_tls_write(DrTls *tls, const void *buffer, gsize len, int timeout_ms, GError **error)
{
  DrDeadline deadline = deadline_of(timeout_ms);
  gsize total = 0;

  if (tls->out_broken)
    return broke(tls, "an earlier message did not get through", error);
  while (total < len) {
    gssize n = send_record(tls, (const guint8 *)buffer + total, len - total);

    if (n < 0) {
      tls->out_broken = TRUE;
      return broke(tls, gnutls_strerror((int)n), error);
    }
    total += (gsize)n;
    if (tls->out_len >= BUFFER && !flush(tls, deadline))
      return write_failed(tls, deadline, error);
  }
  return flush(tls, deadline) || write_failed(tls, deadline, error);
}

gboolean
dr_tls_end(DrTls *tls, GError **error)
{
  DrDeadline deadline = dr_deadline_in(END_MS);
  int code;

  if (tls->out_broken)
    return broke(tls, "an earlier message did not get through", error);
  g_mutex_lock(&tls->lock);
  tls->writing = TRUE;
  code = gnutls_bye(tls->session, GNUTLS_SHUT_WR);
  tls->writing = FALSE;
  g_mutex_unlock(&tls->lock);
  if (code < 0)
    return broke(tls, gnutls_strerror(code), error);
  return flush(tls, deadline) || write_failed(tls, deadline, error);
}

void
dr_tls_abort(DrTls *tls)
{
  dr_socket_break(tls->fd);
}
