/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Connections, hello, frames. */
#include "net/conn.h"
#include "base/error.h"
#include "base/fd.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define SILENT_MS 3000 /* unacknowledged data for so long: the link is dead (TCP_USER_TIMEOUT, RFC 5482) */
#define UNSENT (256 * 1024)
#define ATTEMPT_MS                                                                                           \
  250 /* doubled each time: a link that is back is seen sooner than the kernel would try again */
#define FRAME_MS 3000 /* from its first byte to its last */
#define PREAMBLE "DROVER1 "

struct DrConn {
  DrTls *tls;           /* or: */
  int fd;               /* -1 with TLS */
  char *address, *peer; /* its first name */
};

/* --- Sockets --- */

static void
set_options(int fd)
{
  int one = 1, idle = 2, interval = 1, probes = 2, silent = SILENT_MS, unsent = UNSENT;

  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &silent, sizeof silent);
  /* What waits in here unsent is a part of the guest's pause: the device state comes behind it. */
  setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
}

/* -1 with errno. */
static int
connect_one(const struct addrinfo *address, DrDeadline deadline)
{
  dr_autofd int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  struct pollfd one = { .fd = fd, .events = POLLOUT };
  int err = 0;
  socklen_t len = sizeof err;

  if (fd < 0)
    return -1;
  if (connect(fd, address->ai_addr, address->ai_addrlen) == 0)
    return dr_fd_steal(&fd);
  if (errno != EINPROGRESS)
    return -1;
  if (poll(&one, 1, dr_deadline_left(deadline)) <= 0) {
    errno = ETIMEDOUT;
    return -1;
  }
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len);
  errno = err;
  return err ? -1 : dr_fd_steal(&fd);
}

/* Each address in turn, again and again. -1 with errno. */
static int
try_all(const struct addrinfo *addresses, DrDeadline deadline)
{
  gint64 attempt_ms = ATTEMPT_MS;
  int fd;

  for (;;) {
    for (const struct addrinfo *one = addresses; one; one = one->ai_next)
      if ((fd = connect_one(one, MIN(deadline, dr_deadline_in(attempt_ms)))) >= 0)
        return fd;
    if (dr_deadline_passed(deadline) || errno != ETIMEDOUT)
      return -1;
    attempt_ms *= 2;
  }
}

static int
dial(const char *host, guint port, DrDeadline deadline, GError **error)
{
  struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV }, *found = NULL;
  g_autofree char *service = g_strdup_printf("%u", port);
  int code = getaddrinfo(host, service, &hints, &found);
  int fd;

  if (code) {
    dr_error_set(error, DR_ERROR_NOT_FOUND, "cannot find the host '%s': %s", host, gai_strerror(code));
    return -1;
  }
  fd = try_all(found, deadline);
  if (fd < 0) {
    dr_error_set(error, DR_ERROR_CLOSED, "cannot connect to %s port %u: %s", host, port, g_strerror(errno));
    dr_error_remedy(error,
                    "is droverd running there, with [listen] in its configuration, and the port open?");
  } else {
    set_options(fd);
  }
  freeaddrinfo(found);
  return fd;
}

static DrConn *
conn_new(DrTls *tls, int fd, const char *address, const char *peer)
{
  DrConn *conn = g_new0(DrConn, 1);

  conn->tls = tls;
  conn->fd = fd;
  conn->address = g_strdup(address);
  conn->peer = g_strdup(peer);
  return conn;
}

/* --- The client's side --- */

static gboolean
say_hello(DrConn *conn, JsonObject *hello, DrDeadline deadline, GError **error)
{
  g_autoptr(JsonObject) answer = NULL;

  json_object_set_object_member(
      hello, "drover", dr_json("{'min': <%i>, 'max': <%i>}", DR_PROTOCOL_VERSION, DR_PROTOCOL_VERSION));
  if (!dr_conn_send(conn, hello, dr_deadline_left(deadline), error))
    return FALSE;
  answer = dr_conn_receive(conn, dr_deadline_left(deadline), error);
  if (!answer) {
    g_prefix_error(error, "%s took the connection and closed it: its log says why: ", conn->address);
    return FALSE;
  }
  return dr_json_bool(answer, "ok", FALSE) || dr_error_from_json(answer, error);
}

DrConn *
dr_conn_open(DrTlsContext *context, const char *host, guint port, const char *pin, JsonObject *hello,
             DrDeadline deadline, GError **error)
{
  g_autofree char *address = g_strdup_printf("%s port %u", host, port);
  g_autoptr(JsonObject) first = hello;
  int fd = dial(host, port, deadline, error);
  DrTls *tls = fd < 0 ? NULL : dr_tls_connect(context, fd, host, pin, address, deadline, error);
  g_autoptr(DrConn) conn = tls ? conn_new(tls, -1, address, dr_tls_names(tls)[0]) : NULL;

  return conn && say_hello(conn, first, deadline, error) ? g_steal_pointer(&conn) : NULL;
}

DrConn *
dr_conn_open_plain(const char *host, guint port, const char *token, DrDeadline deadline, GError **error)
{
  g_autofree char *preamble = g_strdup_printf(PREAMBLE "%s\n", token);
  g_autofree char *address = g_strdup_printf("%s port %u", host, port);
  int fd = dial(host, port, deadline, error);
  g_autoptr(DrConn) conn = fd < 0 ? NULL : conn_new(NULL, fd, address, NULL);

  if (!conn || !dr_conn_write(conn, preamble, strlen(preamble), dr_deadline_left(deadline), error))
    return NULL;
  return g_steal_pointer(&conn);
}

/* --- The server's side --- */

DrConn *
dr_conn_accept(DrTlsContext *context, int fd, const char *address, DrDeadline deadline, GError **error)
{
  DrTls *tls;

  set_options(fd);
  tls = dr_tls_accept(context, fd, address, deadline, error);
  return tls ? conn_new(tls, -1, address, dr_tls_names(tls)[0]) : NULL;
}

DrConn *
dr_conn_new_plain(int fd, const char *address, const char *peer)
{
  set_options(fd);
  return conn_new(NULL, fd, address, peer);
}

JsonObject *
dr_conn_hello(DrConn *conn, DrDeadline deadline, GError **error)
{
  g_autoptr(JsonObject) hello = dr_conn_receive(conn, dr_deadline_left(deadline), error);
  g_autoptr(GError) local = NULL;
  gint64 min, max;

  if (!hello)
    return NULL;
  min = dr_json_int(hello, "drover.min", 0);
  max = dr_json_int(hello, "drover.max", 0);
  if (min <= DR_PROTOCOL_VERSION && max >= DR_PROTOCOL_VERSION && dr_json_str(hello, "kind", NULL))
    return g_steal_pointer(&hello);
  dr_error_set(&local, DR_ERROR_UNSUPPORTED,
               "this droverd (" DROVER_VERSION
               ") speaks version %d of the protocol, and the other one versions %d to %d",
               DR_PROTOCOL_VERSION, (int)CLAMP(min, 0, 9999), (int)CLAMP(max, 0, 9999));
  dr_error_remedy(&local, "install the same drover on both hosts");
  dr_conn_refuse(conn, local);
  g_propagate_error(error, g_steal_pointer(&local));
  return NULL;
}

gboolean
dr_conn_take(DrConn *conn, GError **error)
{
  g_autoptr(JsonObject) answer = dr_json("{'ok': <true>, 'version': <%i>}", DR_PROTOCOL_VERSION);

  return dr_conn_send(conn, answer, SILENT_MS, error);
}

void
dr_conn_refuse(DrConn *conn, const GError *why)
{
  g_autoptr(JsonObject) answer = dr_error_to_json(why);

  dr_conn_send(conn, answer, SILENT_MS, NULL);
  dr_conn_end(conn, NULL);
}

void
dr_conn_free(DrConn *conn)
{
  if (!conn)
    return;
  dr_tls_free(conn->tls);
  dr_fd_cleanup(&conn->fd);
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
dr_conn_key_id(const DrConn *conn)
{
  return conn->tls ? dr_tls_key_id(conn->tls) : NULL;
}

const char *
dr_conn_suite(const DrConn *conn)
{
  return conn->tls ? dr_tls_suite(conn->tls) : "none";
}

const char *
dr_conn_address(const DrConn *conn)
{
  return conn->address;
}

int
dr_conn_plain_fd(DrConn *conn)
{
  return conn->fd;
}

/* --- Bytes --- */

static gssize
plain_read(DrConn *conn, void *buffer, gsize len, int timeout_ms, GError **error)
{
  struct pollfd one = { .fd = conn->fd, .events = POLLIN };
  gssize n;

  do {
    n = recv(conn->fd, buffer, len, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN && poll(&one, 1, timeout_ms) == 0) {
      dr_error_set(error, DR_ERROR_TIMEOUT, "%s has sent nothing in time", conn->address);
      return -1;
    }
  } while (n < 0 && (errno == EAGAIN || errno == EINTR));
  if (n < 0)
    dr_error_set(error, DR_ERROR_CLOSED, "the connection with %s broke: %s", conn->address,
                 g_strerror(errno));
  return n;
}

static gboolean
plain_write(DrConn *conn, const guint8 *buffer, gsize len, int timeout_ms, GError **error)
{
  struct pollfd one = { .fd = conn->fd, .events = POLLOUT };

  while (len > 0) {
    gssize n = send(conn->fd, buffer, len, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n > 0) {
      buffer += n;
      len -= (gsize)n;
    } else if (errno == EAGAIN && poll(&one, 1, timeout_ms) == 0) {
      return dr_error_set(error, DR_ERROR_TIMEOUT, "%s takes nothing in time", conn->address);
    } else if (errno != EAGAIN && errno != EINTR) {
      return dr_error_set(error, DR_ERROR_CLOSED, "the connection with %s broke: %s", conn->address,
                          g_strerror(errno));
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
  return shutdown(conn->fd, SHUT_WR) == 0 || dr_error_set_errno(error, errno, "cannot end the connection");
}

void
dr_conn_abort(DrConn *conn)
{
  if (conn->tls)
    dr_tls_abort(conn->tls);
  else
    shutdown(conn->fd, SHUT_RDWR);
}

/* --- Frames --- */

gboolean
dr_conn_send(DrConn *conn, JsonObject *object, int timeout_ms, GError **error)
{
  g_autofree char *text = dr_json_print_object(object, FALSE);
  gsize len = strlen(text);
  g_autofree guint8 *frame = g_malloc(4 + len);
  guint32 size = htonl((guint32)len);

  if (len > DR_FRAME_MAX)
    return dr_error_set(error, DR_ERROR_INVALID, "a message of %zu bytes is too long for the peer", len);
  memcpy(frame, &size, 4);
  memcpy(frame + 4, text, len);
  return dr_conn_write(conn, frame, 4 + len, timeout_ms, error);
}

static gboolean
read_all(DrConn *conn, guint8 *buffer, gsize len, int timeout_ms, GError **error)
{
  while (len > 0) {
    gssize n = dr_conn_read(conn, buffer, len, timeout_ms, error);

    if (n == 0)
      dr_error_set(error, DR_ERROR_CLOSED, "%s closed the connection", conn->address);
    if (n <= 0)
      return FALSE;
    buffer += n;
    len -= (gsize)n;
  }
  return TRUE;
}

/* The deadline is for its first byte: half a frame would be lost. */
static gboolean
read_size(DrConn *conn, guint32 *ret_size, int timeout_ms, GError **error)
{
  guint8 bytes[4];
  gssize n = dr_conn_read(conn, bytes, sizeof bytes, timeout_ms, error);

  if (n == 0)
    dr_error_set(error, DR_ERROR_CLOSED, "%s closed the connection", conn->address);
  if (n <= 0 || !read_all(conn, bytes + n, sizeof bytes - (gsize)n, FRAME_MS, error))
    return FALSE;
  *ret_size = (guint32)bytes[0] << 24 | (guint32)bytes[1] << 16 | (guint32)bytes[2] << 8 | bytes[3];
  return TRUE;
}

JsonObject *
dr_conn_receive(DrConn *conn, int timeout_ms, GError **error)
{
  g_autofree guint8 *text = NULL;
  g_autoptr(GError) local = NULL;
  JsonObject *object;
  guint32 size;

  if (!read_size(conn, &size, timeout_ms, error))
    return NULL;
  if (size == 0 || size > DR_FRAME_MAX) {
    dr_error_set(error, DR_ERROR_INVALID, "%s sent a frame of %u bytes", conn->address, size);
    return NULL;
  }
  text = g_malloc(size);
  if (!read_all(conn, text, size, FRAME_MS, &local)) {
    dr_error_set(error, DR_ERROR_CLOSED, "half a message came: %s", local->message);
    return NULL;
  }
  object = dr_json_parse_object((const char *)text, size, DR_FRAME_MAX, error);
  if (!object)
    g_prefix_error(error, "%s sent what is no message: ", conn->address);
  return object;
}

/* --- Errors that travel --- */

JsonObject *
dr_error_to_json(const GError *error)
{
  const char *remedy = dr_error_get_remedy(error);
  JsonObject *object =
      dr_json("{'error': <{'code': <%i>, 'message': <%s>, 'remedy': <%s>}>}",
              error->domain == DR_ERROR ? error->code : DR_ERROR_IO, error->message, remedy ? remedy : "");

  return object;
}

gboolean
dr_error_from_json(JsonObject *object, GError **error)
{
  const char *remedy = dr_json_str(object, "error.remedy", "");
  gint64 code = CLAMP(dr_json_int(object, "error.code", DR_ERROR_IO), 0, DR_ERROR_INTERNAL);

  dr_error_set(error, (DrErrorCode)code, "%s",
               dr_json_str(object, "error.message", "the other droverd refuses, and says not why"));
  return *remedy ? dr_error_remedy(error, "%s", remedy) : FALSE;
}
