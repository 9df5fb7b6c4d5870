/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The relay of one stream. With TLS each direction has one buffer; without, the bytes go through a pipe by splice(2) and never come
 * to us.
 *
 * A thread that waits for one side must learn of the other side's end, too: QEMU may not take anything for as long as it likes,
 * and then the link breaks. So each wait watches the connection for an error besides; an abort shuts both sockets down, which ends
 * every wait. */
#include "net/relay.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/fd.h"
#include "net/dial.h"
#include "net/meter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define BUFFER (256 * 1024)     /* bytes; bench/net.c */
#define PIPE_SIZE (1024 * 1024) /* bytes; the most that anybody may have (fs.pipe-max-size) */
#define LOCAL_ROOM                                                                                           \
  (512 * 1024) /* bytes that QEMU need not have read yet; the kernel doubles it for its own needs */
#define NARROW (64 * 1024) /* the same, and a piece, once the end is near */

struct DrRelay {
  int local, broken;
  DrConn *conn;
  GThread *out, *in;
  gint64 bytes_out, bytes_in; /* atomic */
  gint piece;                 /* atomic: bytes that are taken at once */
  gint state;                 /* atomic: DrRelayState */
  gint ended;                 /* atomic: directions that have ended in peace */
  gint threads;               /* atomic: that are at it */
};

/* The first who has something to say of its end says it. */
static gboolean
end_as(DrRelay *relay, DrRelayState state)
{
  if (!g_atomic_int_compare_and_exchange(&relay->state, DR_RELAY_RUNS, state))
    return FALSE;
  if (state != DR_RELAY_ENDED) {
    shutdown(relay->local, SHUT_RDWR);
    dr_conn_abort(relay->conn);
  }
  return TRUE;
}

void
dr_relay_abort(DrRelay *relay)
{
  if (!end_as(relay, DR_RELAY_ABORTED))
    shutdown(relay->local, SHUT_RDWR); /* it has ended; what was sent last may still be on its way */
}

/* The connection, or QEMU, has gone without a word. */
static void
break_down(DrRelay *relay, const char *why)
{
  if (!end_as(relay, DR_RELAY_BROKEN))
    return;
  g_debug("stream with %s broke: %s", dr_conn_address(relay->conn), why);
  if (relay->broken >= 0)
    eventfd_write(relay->broken, 1);
}

static void
count(DrRelay *relay, DrMeterDirection direction, gssize n)
{
  __atomic_fetch_add(direction == DR_METER_OUT ? &relay->bytes_out : &relay->bytes_in, n, __ATOMIC_RELAXED);
  dr_meter_bytes(direction, n);
}

static gboolean
has_unsent(int conn)
{
  int bytes = 0;

  return ioctl(conn, SIOCOUTQ, &bytes) == 0 && bytes > 0;
}

/* Waits until `fd` is ready. FALSE with errno: the connection has broken meanwhile. POLLHUP alone does not count: a connection that both
 * sides have ended has it while there is still something to be read. */
static gboolean
wait_for(DrRelay *relay, int fd, short events)
{
  int conn = dr_conn_fd(relay->conn);
  struct pollfd fds[] = { { .fd = fd, .events = events }, { .fd = conn } };
  gboolean out = (fd == conn) == ((events & POLLOUT) != 0), patient = FALSE;

  for (;;) {
    gboolean look =
        out && (fd == conn || has_unsent(conn)); /* a peer that does not read for a while is no dead link */
    int got = poll(fds, G_N_ELEMENTS(fds), look ? DR_SOCKET_LOOK_MS : -1); /* ended by dr_relay_abort() */

    if (got == 0)
      patient = dr_socket_be_patient(conn);
    if (got <= 0)
      continue;
    if (patient)
      dr_socket_be_strict(conn);
    if (fds[1].revents & POLLERR) {
      errno = ECONNRESET;
      return FALSE;
    }
    if (fds[0].revents)
      return TRUE;
    fds[1].fd = -1; /* POLLHUP, which would come back at once */
  }
}

/* Whether a call that failed is to be tried again, once `fd` is ready. */
static gboolean
try_again(DrRelay *relay, int fd, short events)
{
  return errno == EINTR || (errno == EAGAIN && wait_for(relay, fd, events));
}

/* --- With TLS --- */

static gboolean
write_local(DrRelay *relay, const guint8 *at, gsize len)
{
  while (len > 0) {
    gssize n = send(relay->local, at, len, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n > 0) {
      at += n;
      len -= (gsize)n;
    } else if (!try_again(relay, relay->local, POLLOUT)) {
      return FALSE;
    }
  }
  return TRUE;
}

static gboolean
local_broke(GError **error)
{
  return dr_error_set_errno(error, errno, "its local side");
}

static gboolean
carry_out(DrRelay *relay, GError **error)
{
  g_autofree guint8 *buffer = g_malloc(BUFFER);

  for (;;) {
    gssize n = recv(relay->local, buffer, (gsize)g_atomic_int_get(&relay->piece), MSG_DONTWAIT);

    if (n == 0)
      return TRUE;
    if (n < 0 && !try_again(relay, relay->local, POLLIN))
      return local_broke(error);
    if (n < 0)
      continue;
    if (!dr_conn_write(relay->conn, buffer, (gsize)n, -1, error))
      return FALSE;
    count(relay, DR_METER_OUT, n);
  }
}

static gboolean
carry_in(DrRelay *relay, GError **error)
{
  g_autofree guint8 *buffer = g_malloc(BUFFER);

  for (;;) {
    gssize n = dr_conn_read(relay->conn, buffer, (gsize)g_atomic_int_get(&relay->piece), -1, error);

    if (n <= 0)
      return n == 0;
    if (!write_local(relay, buffer, (gsize)n))
      return local_broke(error);
    count(relay, DR_METER_IN, n);
  }
}

/* --- Without --- */

static gboolean
empty_pipe(DrRelay *relay, int pipe, int to, gssize len)
{
  while (len > 0) {
    gssize n = splice(pipe, NULL, to, NULL, (gsize)len, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

    if (n > 0)
      len -= n;
    else if (n == 0 || !try_again(relay, to, POLLOUT))
      return FALSE;
  }
  return TRUE;
}

/* splice(2) has no MSG_NOSIGNAL. The signal is this thread's, and ends with it. */
static void
block_sigpipe(void)
{
  sigset_t pipe;

  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, NULL);
}

static gboolean
splice_all(DrRelay *relay, int from, int to, DrMeterDirection direction, GError **error)
{
  dr_autofd int read_end = -1, write_end = -1;
  int ends[2];

  block_sigpipe();
  if (pipe2(ends, O_CLOEXEC) < 0)
    return dr_error_set_errno(error, errno, "cannot make a pipe");
  read_end = ends[0];
  write_end = ends[1];
  fcntl(write_end, F_SETPIPE_SZ, PIPE_SIZE);
  for (;;) {
    gssize n = splice(from, NULL, write_end, NULL, (gsize)g_atomic_int_get(&relay->piece),
                      SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

    if (n == 0)
      return TRUE;
    if (n < 0 && !try_again(relay, from, POLLIN))
      return dr_error_set_errno(error, errno, "reading");
    if (n < 0)
      continue;
    if (!empty_pipe(relay, read_end, to, n))
      return dr_error_set_errno(error, errno, "writing");
    count(relay, direction, n);
  }
}

/* --- The two threads --- */

/* A stream is one as long as either direction is carried. */
static DrMeterThread *
begin_carrying(DrRelay *relay)
{
  if (g_atomic_int_add(&relay->threads, 1) == 0)
    dr_meter_stream(1);
  return dr_meter_begin();
}

static void
end_carrying(DrRelay *relay, DrMeterThread *thread)
{
  dr_meter_end(thread);
  if (g_atomic_int_dec_and_test(&relay->threads))
    dr_meter_stream(-1);
}

static void
ended_in_peace(DrRelay *relay)
{
  if (g_atomic_int_add(&relay->ended, 1) == 1)
    end_as(relay, DR_RELAY_ENDED);
}

/* The other side may have gone by now, if it had said before that it was done: that is no harm. */
static gboolean
pass_end_on(DrRelay *relay, GError **error)
{
  return dr_conn_end(relay->conn, error) || g_atomic_int_get(&relay->ended) > 0;
}

static void
carry_all_out(DrRelay *relay)
{
  int plain = dr_conn_plain_fd(relay->conn);
  g_autoptr(GError) error = NULL;
  gboolean ended =
      plain >= 0 ? splice_all(relay, relay->local, plain, DR_METER_OUT, &error) : carry_out(relay, &error);

  if (ended && pass_end_on(relay, &error))
    ended_in_peace(relay);
  else
    break_down(relay, error->message);
}

static void
carry_all_in(DrRelay *relay)
{
  int plain = dr_conn_plain_fd(relay->conn);
  g_autoptr(GError) error = NULL;
  gboolean ended =
      plain >= 0 ? splice_all(relay, plain, relay->local, DR_METER_IN, &error) : carry_in(relay, &error);

  if (!ended) {
    break_down(relay, error->message);
    return;
  }
  shutdown(relay->local, SHUT_WR);
  ended_in_peace(relay);
}

static gpointer
out_thread(gpointer data)
{
  DrMeterThread *thread = begin_carrying(data);

  carry_all_out(data);
  end_carrying(data, thread);
  return NULL;
}

static gpointer
in_thread(gpointer data)
{
  DrMeterThread *thread = begin_carrying(data);

  carry_all_in(data);
  end_carrying(data, thread);
  return NULL;
}

static void
make_nonblocking(int fd)
{
  int flags = fcntl(fd, F_GETFL);

  if (fd >= 0 && flags >= 0)
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

/* With little room both QEMU and we wake up for each piece, and there are many of them: a fifth less throughput. */
static void
make_room(int local, int room)
{
  if (setsockopt(local, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) < 0) /* needs CAP_NET_ADMIN */
    setsockopt(local, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
}

DrRelay *
dr_relay_new(int local, DrConn *conn, int broken, GError **error)
{
  g_autoptr(DrRelay) relay = g_new0(DrRelay, 1);
  g_autoptr(GError) thread_error = NULL;

  relay->local = local;
  relay->conn = conn;
  relay->broken = broken;
  relay->piece = dr_conn_plain_fd(conn) < 0 ? BUFFER : PIPE_SIZE;
  dr_socket_queue_little(dr_conn_fd(conn));
  make_nonblocking(local);
  make_nonblocking(dr_conn_plain_fd(conn));
  if (dr_conn_plain_fd(conn) < 0)
    make_room(local, LOCAL_ROOM);
  relay->out = g_thread_try_new("stream-out", out_thread, relay, &thread_error);
  relay->in = relay->out ? g_thread_try_new("stream-in", in_thread, relay, &thread_error) : NULL;
  if (relay->in)
    return g_steal_pointer(&relay);
  dr_error_set(error, DR_ERROR_IO, "cannot carry a stream: %s", thread_error->message);
  return NULL;
}

void
dr_relay_narrow(DrRelay *relay)
{
  g_atomic_int_set(&relay->piece, NARROW);
  make_room(relay->local, NARROW);
  dr_socket_send_little(dr_conn_fd(relay->conn));
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

DrRelayState
dr_relay_state(DrRelay *relay)
{
  return (DrRelayState)g_atomic_int_get(&relay->state);
}

void
dr_relays_drop_ended(GPtrArray *relays)
{
  for (guint i = relays->len; i-- > 0;)
    if (dr_relay_state(relays->pdata[i]) != DR_RELAY_RUNS)
      g_ptr_array_remove_index(relays, i);
}
