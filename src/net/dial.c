/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Finding a host and connecting to it. getaddrinfo(3) has no deadline of ours, so it runs in a thread that is left behind. */
#include "net/dial.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <linux/tcp.h> /* tcpi_min_rtt */
#include <poll.h>
#include <sys/socket.h>

#define LITTLE (512 * 1024) /* bytes */
#define NEAR_US 1000        /* of a round trip: beyond, the kernel knows best what a link needs */
#define NEAR_RATE 2500      /* bytes/us: 20 Gbit/s */
#define MAX_LOOKUPS 32      /* threads that the resolver keeps */
#define ATTEMPT_MS 250      /* to connect to one address, the first time */
#define UNSENT (256 * 1024)
#define UNSENT_LITTLE (32 * 1024)
#define HANDED_ON_MS 30000

void
dr_socket_options(int fd)
{
  int one = 1, idle = 1, interval = 1, probes = 3, silent = DR_SILENT_MS, unsent = UNSENT;

  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &silent, sizeof silent);
  /* What waits in here unsent is a part of the guest's pause: the device state comes behind it. */
  setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
}

void
dr_socket_queue_little(int fd)
{
  struct tcp_info info = { 0 };
  socklen_t len = sizeof info;
  int room;

  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0 || info.tcpi_min_rtt > NEAR_US)
    return;
  room = MAX(LITTLE, (int)info.tcpi_min_rtt * NEAR_RATE);
  /* Needs CAP_NET_ADMIN: what SO_RCVBUF gives without it (net.core.rmem_max) may be far less than a link needs, and for good. */
  setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
}

void
dr_socket_send_little(int fd)
{
  int unsent = UNSENT_LITTLE;

  setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
}

static void
set_user_timeout(int fd, int ms)
{
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms);
}

gboolean
dr_socket_be_patient(int fd)
{
  struct tcp_info info = { 0 };
  socklen_t len = sizeof info;

  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0 || info.tcpi_unacked > 0) {
    dr_socket_be_strict(fd);
    return FALSE;
  }
  set_user_timeout(fd, 0);
  return TRUE;
}

void
dr_socket_be_strict(int fd)
{
  set_user_timeout(fd, DR_SILENT_MS);
}

void
dr_socket_hand_on(int fd)
{
  set_user_timeout(fd, HANDED_ON_MS);
}

gboolean
dr_socket_wait_writable(int fd, DrDeadline deadline)
{
  struct pollfd one = { .fd = fd, .events = POLLOUT };
  gboolean patient = FALSE;
  int got;

  while ((got = poll(&one, 1, MIN(DR_SOCKET_LOOK_MS, dr_deadline_left(deadline)))) <= 0) {
    if (dr_deadline_passed(deadline))
      break;
    patient = got == 0 && dr_socket_be_patient(fd);
  }
  if (patient)
    dr_socket_be_strict(fd);
  errno = ETIMEDOUT;
  return got > 0;
}

void
dr_socket_break(int fd)
{
  /* tcp(7) does not say so, but this is how Linux aborts a connection (RFC 9293, 3.10.5) that others hold open. */
  struct sockaddr none = { .sa_family = AF_UNSPEC };

  connect(fd, &none, sizeof none);
  shutdown(fd, SHUT_RDWR); /* where that was refused: EBUSY, a thread waits in a call of its own */
}

/* --- Its addresses --- */

typedef struct {
  gatomicrefcount refs; /* who asks, and the thread */
  char *host, *service;
  GMutex lock;
  GCond over;
  gboolean is_over;
  int code; /* of getaddrinfo(3) */
  struct addrinfo *found;
} Lookup;

static gint lookups; /* atomic */

static void
lookup_unref(Lookup *lookup)
{
  if (!g_atomic_ref_count_dec(&lookup->refs))
    return;
  if (lookup->found)
    freeaddrinfo(lookup->found);
  g_mutex_clear(&lookup->lock);
  g_cond_clear(&lookup->over);
  g_free(lookup->host);
  g_free(lookup->service);
  g_free(lookup);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Lookup, lookup_unref)

static int
ask(const char *host, const char *service, int flags, struct addrinfo **ret)
{
  struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | flags };

  return getaddrinfo(host, service, &hints, ret);
}

static gpointer
look_up(gpointer data)
{
  g_autoptr(Lookup) lookup = data;
  struct addrinfo *found = NULL;
  int code = ask(lookup->host, lookup->service, AI_ADDRCONFIG, &found);

  g_mutex_lock(&lookup->lock);
  lookup->code = code;
  lookup->found = code ? NULL : found;
  lookup->is_over = TRUE;
  g_cond_signal(&lookup->over);
  g_mutex_unlock(&lookup->lock);
  g_atomic_int_add(&lookups, -1);
  return NULL;
}

static gboolean
start_lookup(Lookup *lookup, GError **error)
{
  g_autoptr(GError) local = NULL;
  GThread *thread;

  if (g_atomic_int_add(&lookups, 1) >= MAX_LOOKUPS) {
    g_atomic_int_add(&lookups, -1);
    return dr_error_set(error, DR_ERROR_BUSY,
                        "cannot look the host '%s' up: %d others are being looked up, and nothing answers",
                        lookup->host, MAX_LOOKUPS);
  }
  g_atomic_ref_count_inc(&lookup->refs);
  thread = g_thread_try_new("lookup", look_up, lookup, &local);
  if (thread) {
    g_thread_unref(thread);
    return TRUE;
  }
  g_atomic_int_add(&lookups, -1);
  lookup_unref(lookup);
  return dr_error_set(error, DR_ERROR_IO, "cannot look the host '%s' up: %s", lookup->host, local->message);
}

static Lookup *
lookup_new(const char *host, guint port)
{
  Lookup *lookup = g_new0(Lookup, 1);

  g_atomic_ref_count_init(&lookup->refs);
  g_mutex_init(&lookup->lock);
  g_cond_init(&lookup->over);
  lookup->host = g_strdup(host);
  lookup->service = g_strdup_printf("%u", port);
  return lookup;
}

/* (transfer full), freeaddrinfo() */
static struct addrinfo *
find(const char *host, guint port, DrDeadline deadline, GError **error)
{
  g_autoptr(Lookup) lookup = lookup_new(host, port);
  struct addrinfo *found = NULL;

  if (ask(host, lookup->service, AI_NUMERICHOST, &found) == 0)
    return found;
  if (!start_lookup(lookup, error))
    return NULL;
  g_mutex_lock(&lookup->lock);
  while (!lookup->is_over && g_cond_wait_until(&lookup->over, &lookup->lock, deadline))
    ;
  if (!lookup->is_over)
    dr_error_set(error, DR_ERROR_TIMEOUT, "cannot look the host '%s' up: no name server answered in time",
                 host);
  else if (lookup->code)
    dr_error_set(error, DR_ERROR_NOT_FOUND, "cannot find the host '%s': %s", host,
                 gai_strerror(lookup->code));
  found = g_steal_pointer(&lookup->found);
  g_mutex_unlock(&lookup->lock);
  return found;
}

/* --- Connecting --- */

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
  dr_socket_options(fd);
  if (connect(fd, address->ai_addr, address->ai_addrlen) == 0)
    return dr_fd_steal(&fd);
  if (errno != EINPROGRESS)
    return -1;
  while (poll(&one, 1, dr_deadline_left(deadline)) <= 0) {
    if (dr_deadline_passed(deadline)) {
      errno = ETIMEDOUT;
      return -1;
    }
  }
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len);
  errno = err;
  return err ? -1 : dr_fd_steal(&fd);
}

/* Each address in turn, and again with more patience: an address that swallows what is sent to it does not use up the time of the
 * next, and a link that is back is seen sooner than the kernel would try again. -1 with errno. */
static int
connect_any(const struct addrinfo *addresses, DrDeadline deadline)
{
  gboolean late = TRUE;
  int fd = -1;

  errno = EHOSTUNREACH;
  for (gint64 ms = ATTEMPT_MS; late && !dr_deadline_passed(deadline); ms *= 2) {
    late = FALSE;
    for (const struct addrinfo *one = addresses; one; one = one->ai_next) {
      fd = connect_one(one, MIN(deadline, dr_deadline_in(ms)));
      if (fd >= 0)
        return fd;
      late |= errno == ETIMEDOUT;
    }
  }
  if (late)
    errno = ETIMEDOUT;
  return -1;
}

int
dr_dial(const char *host, guint port, DrDeadline deadline, GError **error)
{
  struct addrinfo *found = find(host, port, deadline, error);
  int fd, err;

  if (!found)
    return -1;
  fd = connect_any(found, deadline);
  err = errno;
  freeaddrinfo(found);
  if (fd >= 0)
    return fd;
  dr_error_set(error, err == ETIMEDOUT ? DR_ERROR_TIMEOUT : DR_ERROR_CLOSED,
               "cannot connect to %s port %u: %s", host, port, g_strerror(err));
  dr_error_remedy(error, "is droverd running there, with [listen] in its configuration, and the port open?");
  return -1;
}
