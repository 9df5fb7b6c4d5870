/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What it costs to carry one stream over loopback TCP: MiB/s, and CPU seconds of a GB (10^9 bytes) of the two relays together. Who
 * makes the bytes and who takes them are threads whose CPU is not counted.
 *
 *   ninja -C build/main bench/bench-net && build/main/bench/bench-net [MIB [ROUNDS [STREAMS]]]
 *
 *   direct     TCP alone, nothing between
 *   copy       two relays that read(2) and write(2), the least that a relay in user space does
 *   splice     two relays of drover's, plain
 *   tls        two relays of drover's, TLS 1.3
 */
#include "base/error.h"
#include "base/fd.h"
#include "net/pki.h"
#include "net/relay.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define CHUNK (256 * 1024) /* what QEMU's writev(2) of a migration stream has at the most is of that order */
#define MAX_STREAMS 16

typedef enum {
  DIRECT,
  COPY,
  SPLICE,
  TLS,
  N_MODES,
} Mode;

static const char *const mode_names[] = { "direct", "copy", "splice", "tls" };

static DrTlsContext *context;

/* --- Sockets --- */

static void
must(gboolean ok, const char *what)
{
  if (ok)
    return;
  fprintf(stderr, "bench-net: %s: %s\n", what, g_strerror(errno));
  exit(1);
}

/* Both ends of a TCP connection with the options that conn.c sets. */
static void
tcp_pair(int ret[2])
{
  struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
  socklen_t len = sizeof address;
  dr_autofd int listener = socket(AF_INET, SOCK_STREAM, 0);

  must(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 1) == 0 &&
           getsockname(listener, (struct sockaddr *)&address, &len) == 0,
       "listen");
  ret[0] = socket(AF_INET, SOCK_STREAM, 0);
  must(connect(ret[0], (struct sockaddr *)&address, sizeof address) == 0, "connect");
  ret[1] = accept(listener, NULL, NULL);
  must(ret[1] >= 0, "accept");
}

static void
unix_pair(int ret[2])
{
  must(socketpair(AF_UNIX, SOCK_STREAM, 0, ret) == 0, "socketpair");
}

/* --- One stream --- */

typedef struct {
  Mode mode;
  gsize bytes;
  int from, to; /* who makes the bytes has `from`, who takes them `to` */
  int fds[4];   /* of COPY */
  GThread *threads[4];
  DrRelay *relays[2];
  double cpu_not_ours;
} Stream;

static double
cpu_of(int who)
{
  struct rusage usage;

  getrusage(who, &usage);
  return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static GMutex cpu_lock;

static void
leave_out(Stream *stream)
{
  g_mutex_lock(&cpu_lock);
  stream->cpu_not_ours += cpu_of(RUSAGE_THREAD);
  g_mutex_unlock(&cpu_lock);
}

static gpointer
make(gpointer data)
{
  Stream *stream = data;
  g_autofree char *chunk = g_malloc(CHUNK);

  memset(chunk, 'x', CHUNK);
  for (gsize sent = 0; sent < stream->bytes;) {
    gssize n = send(stream->from, chunk, MIN(CHUNK, stream->bytes - sent), MSG_NOSIGNAL);

    must(n > 0, "send");
    sent += (gsize)n;
  }
  shutdown(stream->from, SHUT_WR);
  leave_out(stream);
  return NULL;
}

static gpointer
take(gpointer data)
{
  Stream *stream = data;
  g_autofree char *chunk = g_malloc(CHUNK);
  gsize got = 0;
  gssize n;

  while ((n = recv(stream->to, chunk, CHUNK, 0)) > 0)
    got += (gsize)n;
  must(n == 0 && got == stream->bytes, "the bytes are not those that were sent");
  leave_out(stream);
  return NULL;
}

static void
copy(int from, int to)
{
  g_autofree char *buffer = g_malloc(CHUNK);
  gssize n;

  while ((n = read(from, buffer, CHUNK)) > 0)
    for (gssize at = 0; at < n;) {
      gssize put = write(to, buffer + at, (gsize)(n - at));

      must(put > 0, "write");
      at += put;
    }
  shutdown(to, SHUT_WR);
}

static gpointer
copy_out(gpointer data)
{
  Stream *stream = data;

  copy(stream->fds[0], stream->fds[1]);
  return NULL;
}

static gpointer
copy_in(gpointer data)
{
  Stream *stream = data;

  copy(stream->fds[2], stream->fds[3]);
  return NULL;
}

static gpointer
accept_tls(gpointer fd)
{
  g_autoptr(GError) error = NULL;
  DrConn *conn = dr_conn_accept(context, GPOINTER_TO_INT(fd), "client", dr_deadline_in(5000), &error);

  if (!conn)
    g_error("%s", error->message);
  return conn;
}

static void
tls_pair(const int tcp[2], DrConn *ret[2])
{
  GThread *acceptor = g_thread_new("accept", accept_tls, GINT_TO_POINTER(tcp[1]));
  g_autoptr(GError) error = NULL;

  ret[0] = dr_conn_new_tls(context, tcp[0], "localhost", "server", dr_deadline_in(5000), &error);
  if (!ret[0])
    g_error("%s", error->message);
  ret[1] = g_thread_join(acceptor);
}

static void
start_relays(Stream *stream, const int tcp[2], int local_out, int local_in)
{
  DrConn *conns[2];

  if (stream->mode == TLS) {
    tls_pair(tcp, conns);
  } else {
    conns[0] = dr_conn_new_plain(tcp[0], "server", "server");
    conns[1] = dr_conn_new_plain(tcp[1], "client", "client");
  }
  stream->relays[0] = dr_relay_new(local_out, conns[0], -1, NULL);
  stream->relays[1] = dr_relay_new(local_in, conns[1], -1, NULL);
}

static void
start(Stream *stream)
{
  int tcp[2], first[2], last[2];

  tcp_pair(tcp);
  stream->from = tcp[0];
  stream->to = tcp[1];
  if (stream->mode != DIRECT) {
    unix_pair(first);
    unix_pair(last);
    stream->from = first[0];
    stream->to = last[0];
  }
  if (stream->mode == COPY) {
    memcpy(stream->fds, (int[4]){ first[1], tcp[0], tcp[1], last[1] }, sizeof stream->fds);
    stream->threads[2] = g_thread_new("copy-out", copy_out, stream);
    stream->threads[3] = g_thread_new("copy-in", copy_in, stream);
  } else if (stream->mode != DIRECT) {
    start_relays(stream, tcp, first[1], last[1]);
  }
}

static void
finish(Stream *stream)
{
  close(stream->from);
  close(stream->to);
  for (guint i = 2; i < 4; i++)
    if (stream->threads[i])
      g_thread_join(stream->threads[i]);
  for (guint i = 0; stream->mode == COPY && i < 4; i++)
    close(stream->fds[i]);
  dr_relay_free(stream->relays[0]);
  dr_relay_free(stream->relays[1]);
}

typedef struct {
  double mib_s, cpu_gb, all_cpu_gb;
} Figure;

static Figure
measure(Mode mode, gsize bytes, guint n)
{
  Stream streams[MAX_STREAMS] = { 0 };
  double cpu, begun, seconds, not_ours = 0;

  for (guint i = 0; i < n; i++) {
    streams[i].mode = mode;
    streams[i].bytes = bytes / n;
    start(&streams[i]);
  }
  cpu = cpu_of(RUSAGE_SELF);
  begun = (double)g_get_monotonic_time() / 1e6;
  for (guint i = 0; i < n; i++) {
    streams[i].threads[0] = g_thread_new("take", take, &streams[i]);
    streams[i].threads[1] = g_thread_new("make", make, &streams[i]);
  }
  for (guint i = 0; i < n; i++) {
    g_thread_join(streams[i].threads[0]);
    g_thread_join(streams[i].threads[1]);
    not_ours += streams[i].cpu_not_ours;
  }
  seconds = (double)g_get_monotonic_time() / 1e6 - begun;
  cpu = cpu_of(RUSAGE_SELF) - cpu;
  for (guint i = 0; i < n; i++)
    finish(&streams[i]);
  return (Figure){ (double)bytes / 1048576.0 / seconds, (cpu - not_ours) / ((double)bytes / 1e9),
                   cpu / ((double)bytes / 1e9) };
}

/* --- Keys --- */

static void
make_context(const char *dir)
{
  g_autofree char *ca = g_build_filename(dir, "ca", NULL), *host = g_build_filename(dir, "host", NULL);
  g_autoptr(GError) error = NULL;
  DrPkiRequest request = { .dir = ca, .host = "localhost", .out = host };
  g_autoptr(DrPkiPaths) paths = NULL;

  if (dr_pki_init(ca, "bench", 1, &error) && dr_pki_issue(&request, &error))
    paths = dr_pki_find(host, NULL, &error);
  if (paths)
    context = dr_tls_context_new(&(DrTlsFiles){ paths->ca, NULL, paths->server_cert, paths->server_key,
                                                paths->client_cert, paths->client_key },
                                 &error);
  if (!context)
    g_error("%s", error->message);
}

static void
remove_all(const char *dir)
{
  const char *argv[] = { "rm", "-rf", dir, NULL };

  g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL, NULL);
}

/* --- The whole --- */

static int
by_value(gconstpointer a, gconstpointer b)
{
  double x = *(const double *)a, y = *(const double *)b;

  return x < y ? -1 : x > y;
}

static double
median(double *values, guint n)
{
  qsort(values, n, sizeof *values, by_value);
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static void
print_mode(Mode mode, const Figure *figures, guint rounds)
{
  g_autofree double *speed = g_new(double, rounds), *cpu = g_new(double, rounds),
                    *all = g_new(double, rounds);
  double middle;

  for (guint i = 0; i < rounds; i++) {
    speed[i] = figures[i].mib_s;
    cpu[i] = figures[i].cpu_gb;
    all[i] = figures[i].all_cpu_gb;
  }
  middle = median(speed, rounds);
  printf("%-8s %7.0f MiB/s (%.0f to %.0f)   relays %.2f CPU-s/GB   all %.2f\n", mode_names[mode], middle,
         speed[0], speed[rounds - 1], median(cpu, rounds), median(all, rounds));
}

int
main(int argc, char **argv)
{
  gsize bytes = (gsize)(argc > 1 ? CLAMP(atoi(argv[1]), 1, 65536) : 1024) << 20;
  guint rounds = (guint)(argc > 2 ? CLAMP(atoi(argv[2]), 1, 100) : 5);
  guint streams = (guint)(argc > 3 ? CLAMP(atoi(argv[3]), 1, MAX_STREAMS) : 1);
  g_autofree char *dir = g_dir_make_tmp("drover-bench-XXXXXX", NULL);
  g_autofree Figure *figures = g_new0(Figure, rounds * N_MODES);

  must(dir != NULL, "temporary directory");
  make_context(dir);
  remove_all(dir);
  for (guint i = 0; i < rounds; i++)
    for (Mode mode = 0; mode < N_MODES; mode++)
      figures[mode * rounds + i] = measure(mode, bytes - bytes % streams, streams);
  printf("%zu MiB, %u rounds in turn, %u streams, medians (least to most)\n", bytes >> 20, rounds, streams);
  for (Mode mode = 0; mode < N_MODES; mode++)
    print_mode(mode, figures + mode * rounds, rounds);
  dr_tls_context_unref(context);
  return 0;
}
