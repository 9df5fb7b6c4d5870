/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Connections and their hello. */
#include "net/conn.h"
#include "base/error.h"
#include "base/fd.h"
#include "net/dial.h"
#include "net/frame.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define HELLO_MAX (64 * 1024) /* bytes of the first frame each way */

struct DrConn {
  DrTls *tls; /* or: */
  int fd;     /* -1 with TLS */
  char *address, *peer;
  int version;
  GDestroyNotify freed;
  gpointer freed_data;
};

static DrConn *
conn_new(DrTls *tls, int fd, const char *address, const char *peer)
{
  DrConn *conn = g_new0(DrConn, 1);

  conn->tls = tls;
  conn->fd = fd;
  conn->address = g_strdup(address);
  conn->peer = g_strdup(peer);
  conn->version = DR_PROTOCOL_VERSION;
  return conn;
}

/* --- The client's side --- */

static gboolean
take_answer(DrConn *conn, JsonObject *answer, GError **error)
{
  gint64 version = dr_json_int(answer, "version", 0);

  if (!dr_json_bool(answer, "ok", FALSE))
    return dr_error_from_json(answer, error);
  if (version < DR_PROTOCOL_VERSION_MIN || version > DR_PROTOCOL_VERSION)
    return dr_error_set(error, DR_ERROR_INVALID,
                        "%s wants to speak version %" G_GINT64_FORMAT
                        " of the protocol, which was not offered to it",
                        conn->address, version);
  conn->version = (int)version;
  return TRUE;
}

static gboolean
say_hello(DrConn *conn, JsonObject *hello, DrDeadline deadline, GError **error)
{
  g_autoptr(GError) local = NULL;
  g_autoptr(JsonObject) answer = NULL;

  json_object_set_object_member(
      hello, "drover", dr_json("{'min': <%i>, 'max': <%i>}", DR_PROTOCOL_VERSION_MIN, DR_PROTOCOL_VERSION));
  if (dr_conn_send(conn, hello, dr_deadline_left(deadline), &local))
    answer = dr_frame_receive(conn, HELLO_MAX, dr_deadline_left(deadline), deadline, &local);
  if (answer)
    return take_answer(conn, answer, error);
  if (g_error_matches(local, DR_ERROR, DR_ERROR_CLOSED)) {
    /* Perhaps it was stopped just then: who tries again must not take this for its last word. */
    dr_error_set(error, DR_ERROR_CLOSED, "%s took the connection and closed it without an answer: %s",
                 conn->address, local->message);
    return dr_error_remedy(error,
                           "if it does so again, the log of its droverd says what it has against this host");
  }
  g_propagate_error(error, g_steal_pointer(&local));
  return FALSE;
}

DrConn *
dr_conn_open(DrTlsContext *context, const char *host, guint port, const char *pin, JsonObject *hello,
             DrDeadline deadline, GError **error)
{
  g_autofree char *address = g_strdup_printf("%s port %u", host, port);
  g_autoptr(JsonObject) first = hello;
  int fd = dr_dial(host, port, deadline, error);
  DrTls *tls = fd < 0 ? NULL : dr_tls_connect(context, fd, host, pin, address, deadline, error);
  g_autoptr(DrConn) conn = tls ? conn_new(tls, -1, address, dr_tls_names(tls)[0]) : NULL;

  return conn && say_hello(conn, first, deadline, error) ? g_steal_pointer(&conn) : NULL;
}

DrConn *
dr_conn_open_plain(const char *host, guint port, const char *token, DrDeadline deadline, GError **error)
{
  g_autofree char *preamble = g_strdup_printf(DR_PREAMBLE "%s\n", token);
  g_autofree char *address = g_strdup_printf("%s port %u", host, port);
  int fd = dr_dial(host, port, deadline, error);
  g_autoptr(DrConn) conn = fd < 0 ? NULL : conn_new(NULL, fd, address, host);

  if (!conn || !dr_conn_write(conn, preamble, strlen(preamble), dr_deadline_left(deadline), error))
    return NULL;
  return g_steal_pointer(&conn);
}

DrConn *
dr_conn_new_tls(DrTlsContext *context, int fd, const char *name, const char *address, DrDeadline deadline,
                GError **error)
{
  DrTls *tls;

  dr_socket_options(fd);
  tls = dr_tls_connect(context, fd, name, NULL, address, deadline, error);
  return tls ? conn_new(tls, -1, address, dr_tls_names(tls)[0]) : NULL;
}

/* --- The server's side --- */

DrConn *
dr_conn_accept(DrTlsContext *context, int fd, const char *address, DrDeadline deadline, GError **error)
{
  DrTls *tls;

  dr_socket_options(fd);
  tls = dr_tls_accept(context, fd, address, deadline, error);
  return tls ? conn_new(tls, -1, address, dr_tls_names(tls)[0]) : NULL;
}

DrConn *
dr_conn_new_plain(int fd, const char *address, const char *peer)
{
  dr_socket_options(fd);
  return conn_new(NULL, fd, address, peer);
}

static gboolean
agree_on_version(DrConn *conn, JsonObject *hello, GError **error)
{
  gint64 min = dr_json_int(hello, "drover.min", 0), max = dr_json_int(hello, "drover.max", 0);

  if (min < 1 || max < min)
    return dr_error_set(error, DR_ERROR_INVALID, "the hello says no versions of the protocol");
  conn->version = (int)MIN(max, DR_PROTOCOL_VERSION);
  if (conn->version >= DR_PROTOCOL_VERSION_MIN && min <= DR_PROTOCOL_VERSION)
    return TRUE;
  dr_error_set(error, DR_ERROR_UNSUPPORTED,
               "this droverd (" DROVER_VERSION
               ") speaks versions %d to %d of the protocol, and the other one "
               "versions %" G_GINT64_FORMAT " to %" G_GINT64_FORMAT,
               DR_PROTOCOL_VERSION_MIN, DR_PROTOCOL_VERSION, min, max);
  return dr_error_remedy(error, "install the same drover on both hosts");
}

JsonObject *
dr_conn_hello(DrConn *conn, DrDeadline deadline, GError **error)
{
  g_autoptr(JsonObject) hello =
      dr_frame_receive(conn, HELLO_MAX, dr_deadline_left(deadline), deadline, error);
  g_autoptr(GError) local = NULL;

  if (!hello)
    return NULL;
  if (!dr_json_str(hello, "kind", NULL))
    dr_error_set(&local, DR_ERROR_INVALID, "the hello does not say what the connection is for");
  else if (agree_on_version(conn, hello, &local))
    return g_steal_pointer(&hello);
  dr_conn_refuse(conn, local);
  g_propagate_error(error, g_steal_pointer(&local));
  return NULL;
}

gboolean
dr_conn_take(DrConn *conn, GError **error)
{
  g_autoptr(JsonObject) answer = dr_json("{'ok': <true>, 'version': <%i>}", conn->version);

  return !conn->tls || dr_conn_send(conn, answer, DR_SILENT_MS, error);
}

void
dr_conn_refuse(DrConn *conn, const GError *why)
{
  g_autoptr(JsonObject) answer = dr_error_to_json(why);

  if (conn->tls && dr_conn_send(conn, answer, DR_SILENT_MS, NULL))
    dr_conn_end(conn, NULL);
}

void
dr_conn_on_free(DrConn *conn, GDestroyNotify freed, gpointer data)
{
  conn->freed = freed;
  conn->freed_data = data;
}

void
dr_conn_free(DrConn *conn)
{
  if (!conn)
    return;
  dr_tls_free(conn->tls);
  dr_fd_cleanup(&conn->fd);
  if (conn->freed)
    conn->freed(conn->freed_data);
  g_free(conn->address);
  g_free(conn->peer);
  g_free(conn);
}

const char *
dr_conn_peer(const DrConn *conn)
{
  return conn->peer;
}

const char *const *
dr_conn_names(const DrConn *conn)
{
  static const char *const none[] = { NULL };

  return conn->tls ? dr_tls_names(conn->tls) : none;
}

const char *
dr_conn_suite(const DrConn *conn)
{
  return conn->tls ? dr_tls_suite(conn->tls) : "none";
}

const char *
dr_conn_key_id(const DrConn *conn)
{
  return conn->tls ? dr_tls_key_id(conn->tls) : NULL;
}

const char *
dr_conn_address(const DrConn *conn)
{
  return conn->address;
}

int
dr_conn_version(const DrConn *conn)
{
  return conn->version;
}

int
dr_conn_fd(const DrConn *conn)
{
  return conn->tls ? dr_tls_fd(conn->tls) : conn->fd;
}

gboolean
dr_conn_has_input(DrConn *conn)
{
  return conn->tls && dr_tls_has_input(conn->tls);
}

int
dr_conn_plain_fd(DrConn *conn)
{
  return conn->fd;
}

int
dr_conn_steal_fd(DrConn *conn)
{
  dr_socket_hand_on(conn->fd);
  return dr_fd_steal(&conn->fd);
}

/* --- Bytes --- */

/* FALSE with ETIMEDOUT. */
static gboolean
wait_readable(int fd, DrDeadline deadline)
{
  struct pollfd one = { .fd = fd, .events = POLLIN };

  while (poll(&one, 1, dr_deadline_left(deadline)) <= 0) {
    if (dr_deadline_passed(deadline)) {
      errno = ETIMEDOUT;
      return FALSE;
    }
  }
  return TRUE;
}

static gboolean
plain_failed(DrConn *conn, DrDeadline deadline, const char *what, GError **error)
{
  if (errno == ETIMEDOUT && dr_deadline_passed(deadline))
    return dr_error_set(error, DR_ERROR_TIMEOUT, "%s %s nothing in time", conn->address, what);
  return dr_error_set(error, DR_ERROR_CLOSED, "the connection with %s broke: %s", conn->address,
                      g_strerror(errno));
}

static gssize
plain_read(DrConn *conn, void *buffer, gsize len, int timeout_ms, GError **error)
{
  DrDeadline deadline = timeout_ms < 0 ? DR_DEADLINE_NEVER : dr_deadline_in(timeout_ms);

  for (;;) {
    gssize n = recv(conn->fd, buffer, len, MSG_DONTWAIT);

    if (n >= 0)
      return n;
    if (errno == EINTR || (errno == EAGAIN && wait_readable(conn->fd, deadline)))
      continue;
    plain_failed(conn, deadline, "has sent", error);
    return -1;
  }
}

static gboolean
plain_write(DrConn *conn, const guint8 *buffer, gsize len, int timeout_ms, GError **error)
{
  DrDeadline deadline = timeout_ms < 0 ? DR_DEADLINE_NEVER : dr_deadline_in(timeout_ms);

  while (len > 0) {
    gssize n = send(conn->fd, buffer, len, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n > 0) {
      buffer += n;
      len -= (gsize)n;
    } else if (errno != EINTR && (errno != EAGAIN || !dr_socket_wait_writable(conn->fd, deadline))) {
      return plain_failed(conn, deadline, "takes", error);
    }
  }
  return TRUE;
}

gssize
dr_conn_read(DrConn *conn, void *buffer, gsize len, int timeout_ms, GError **error)
{
  return conn->tls ? dr_tls_read(conn->tls, buffer, len, timeout_ms, error)
                   : plain_read(conn, buffer, len, timeout_ms, error);
}

gboolean
dr_conn_write(DrConn *conn, const void *buffer, gsize len, int timeout_ms, GError **error)
{
  return conn->tls ? dr_tls_write(conn->tls, buffer, len, timeout_ms, error)
                   : plain_write(conn, buffer, len, timeout_ms, error);
}

gboolean
dr_conn_end(DrConn *conn, GError **error)
{
  if (conn->tls)
    return dr_tls_end(conn->tls, error);
  return shutdown(conn->fd, SHUT_WR) == 0 ||
         dr_error_set_errno(error, errno, "cannot end the connection with %s", conn->address);
}

void
dr_conn_abort(DrConn *conn)
{
  if (conn->tls)
    dr_tls_abort(conn->tls);
  else if (conn->fd >= 0)
    dr_socket_break(conn->fd);
}
