/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The relay of one stream. With TLS each direction has one buffer; without, the bytes go through a pipe by splice(2) and never come
 * to us. */
#include "net/relay.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#define BUFFER (512 * 1024)

struct DrRelay {
  int local, broken;
  DrConn *conn;
  GThread *out, *in;
  gint64 bytes_out, bytes_in; /* atomic */
  gint aborted;               /* atomic */
};

void
dr_relay_abort(DrRelay *relay)
{
  g_atomic_int_set(&relay->aborted, TRUE);
  shutdown(relay->local, SHUT_RDWR);
  dr_conn_abort(relay->conn);
}

/* The connection, or QEMU, has gone without a word. */
static void
break_down(DrRelay *relay, const GError *error)
{
  if (g_atomic_int_get(&relay->aborted))
    return;
  g_debug("stream with %s: %s", dr_conn_address(relay->conn),
          error ? error->message : "its local side broke");
  dr_relay_abort(relay);
  if (relay->broken >= 0)
    eventfd_write(relay->broken, 1);
}

static void
count(gint64 *counter, gssize n)
{
  __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* --- With TLS --- */

static gboolean
write_local(int fd, const guint8 *at, gsize len)
{
  while (len > 0) {
    gssize n = send(fd, at, len, MSG_NOSIGNAL);

    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return FALSE;
    at += n;
    len -= (gsize)n;
  }
  return TRUE;
}

static gboolean
carry_out(DrRelay *relay, GError **error)
{
  g_autofree guint8 *buffer = g_malloc(BUFFER);

  for (;;) {
    gssize n = recv(relay->local, buffer, BUFFER, 0);

    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return n == 0;
    if (!dr_conn_write(relay->conn, buffer, (gsize)n, -1, error))
      return FALSE;
    count(&relay->bytes_out, n);
  }
}

static gboolean
carry_in(DrRelay *relay, GError **error)
{
  g_autofree guint8 *buffer = g_malloc(BUFFER);

  for (;;) {
    gssize n = dr_conn_read(relay->conn, buffer, BUFFER, -1, error);

    if (n <= 0)
      return n == 0;
    if (!write_local(relay->local, buffer, (gsize)n))
      return FALSE;
    count(&relay->bytes_in, n);
  }
}

/* --- Without --- */

static gboolean
push_all(int from, int to, gssize len)
{
  while (len > 0) {
    gssize n = splice(from, NULL, to, NULL, (gsize)len, SPLICE_F_MOVE);

    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return FALSE;
    len -= n;
  }
  return TRUE;
}

static gboolean
splice_all(int from, int to, gint64 *counter)
{
  dr_autofd int read_end = -1, write_end = -1;
  int ends[2];

  if (pipe2(ends, O_CLOEXEC) < 0)
    return FALSE;
  read_end = ends[0];
  write_end = ends[1];
  fcntl(write_end, F_SETPIPE_SZ, BUFFER);
  for (;;) {
    gssize n = splice(from, NULL, write_end, NULL, BUFFER, SPLICE_F_MOVE);

    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return n == 0;
    if (!push_all(read_end, to, n))
      return FALSE;
    count(counter, n);
  }
}

/* --- The two threads --- */

static gpointer
out_thread(gpointer data)
{
  DrRelay *relay = data;
  int plain = dr_conn_plain_fd(relay->conn);
  g_autoptr(GError) error = NULL;
  gboolean ended = plain >= 0 ? splice_all(relay->local, plain, &relay->bytes_out) : carry_out(relay, &error);

  if (!ended || !dr_conn_end(relay->conn, &error))
    break_down(relay, error);
  return NULL;
}

static gpointer
in_thread(gpointer data)
{
  DrRelay *relay = data;
  int plain = dr_conn_plain_fd(relay->conn);
  g_autoptr(GError) error = NULL;
  gboolean ended = plain >= 0 ? splice_all(plain, relay->local, &relay->bytes_in) : carry_in(relay, &error);

  if (ended)
    shutdown(relay->local, SHUT_WR);
  else
    break_down(relay, error);
  return NULL;
}

/* splice(2) waits in the kernel where the socket would. */
static void
make_blocking(int fd)
{
  int flags = fcntl(fd, F_GETFL);

  if (fd >= 0 && flags >= 0)
    fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

DrRelay *
dr_relay_new(int local, DrConn *conn, int broken, GError **error)
{
  g_autoptr(DrRelay) relay = g_new0(DrRelay, 1);

  relay->local = local;
  relay->conn = conn;
  relay->broken = broken;
  make_blocking(dr_conn_plain_fd(conn));
  relay->out = g_thread_try_new("stream-out", out_thread, relay, error);
  relay->in = relay->out ? g_thread_try_new("stream-in", in_thread, relay, error) : NULL;
  return relay->in ? g_steal_pointer(&relay) : NULL;
}

void
dr_relay_free(DrRelay *relay)
{
  if (!relay)
    return;
  dr_relay_abort(relay);
  if (relay->out)
    g_thread_join(relay->out);
  if (relay->in)
    g_thread_join(relay->in);
  close(relay->local);
  dr_conn_free(relay->conn);
  g_free(relay);
}

gint64
dr_relay_bytes_out(DrRelay *relay)
{
  return __atomic_load_n(&relay->bytes_out, __ATOMIC_RELAXED);
}

gint64
dr_relay_bytes_in(DrRelay *relay)
{
  return __atomic_load_n(&relay->bytes_in, __ATOMIC_RELAXED);
}
