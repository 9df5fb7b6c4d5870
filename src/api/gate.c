/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Threads between TLS and a socketpair. */
#include "api/gate.h"
#include "base/error.h"
#include "base/fd.h"
#include "net/dial.h"
#include "net/listener.h"

#include <sys/socket.h>

#define CHUNK (16 * 1024)
#define ROOM (64 * 1024) /* bytes that wait in the socketpair, each way */
#define LINGER_MS 10000  /* in which a client may take what was sent last, and close */

typedef struct {
  gatomicrefcount refs; /* of its two threads */
  DrGate *gate;
  int local;
  DrConn *conn;
  guint rank;
  gboolean gone; /* nothing comes from the client any more; under the gate's lock */
} Carrier;

/* Between the listener's thread and the main context's. */
typedef struct {
  int fd;
  char **names;
} Arrival;

struct DrGate {
  DrGateOptions options;
  GMainContext *context;
  DrListener *listener;
  GMutex lock;
  GCond changed;
  GHashTable *carriers;         /* set of Carrier; under `lock`, as what follows */
  guint of_rank[DR_GATE_RANKS]; /* how many of them */
  GQueue arrivals;              /* of Arrival */
  GSource *wake;                /* there while something has arrived */
};

/* --- Carrying --- */

static void
carrier_unref(Carrier *carrier)
{
  DrGate *gate = carrier->gate;

  if (!g_atomic_ref_count_dec(&carrier->refs))
    return;
  g_mutex_lock(&gate->lock);
  g_hash_table_remove(gate->carriers, carrier);
  gate->of_rank[carrier->rank]--;
  g_cond_broadcast(&gate->changed);
  g_mutex_unlock(&gate->lock); /* the last that this thread does with the gate: it may be gone now */
  close(carrier->local);
  dr_conn_free(carrier->conn);
  g_free(carrier);
}

/* The client has all, once it closes; or it had its time. */
static void
linger(Carrier *carrier)
{
  gint64 end = g_get_monotonic_time() + LINGER_MS * 1000;

  g_mutex_lock(&carrier->gate->lock);
  while (!carrier->gone && g_cond_wait_until(&carrier->gate->changed, &carrier->gate->lock, end))
    ;
  g_mutex_unlock(&carrier->gate->lock);
}

/* A client that takes nothing for idle_s is cut off, also where the server waits for nothing of it. */
static gpointer
carry_out(gpointer data)
{
  Carrier *carrier = data;
  int idle_ms = (int)carrier->gate->options.idle_s * 1000;
  guint8 chunk[CHUNK];
  gboolean alive = TRUE;
  gssize n = 0;

  while (alive && (n = recv(carrier->local, chunk, sizeof chunk, 0)) > 0)
    alive = dr_conn_write(carrier->conn, chunk, (gsize)n, idle_ms, NULL);
  if (alive &&
      dr_conn_end(carrier->conn, NULL)) /* also where the server closed with something unread (ECONNRESET) */
    linger(carrier);
  dr_conn_abort(carrier->conn);
  shutdown(carrier->local, SHUT_RDWR);
  carrier_unref(carrier);
  return NULL;
}

static gboolean
send_all(int fd, const guint8 *at, gsize len)
{
  while (len > 0) {
    gssize n = send(fd, at, len, MSG_NOSIGNAL);

    if (n <= 0)
      return FALSE;
    at += n;
    len -= (gsize)n;
  }
  return TRUE;
}

static gpointer
carry_in(gpointer data)
{
  Carrier *carrier = data;
  guint8 chunk[CHUNK];
  gssize n;

  while ((n = dr_conn_read(carrier->conn, chunk, sizeof chunk, -1, NULL)) > 0)
    if (!send_all(carrier->local, chunk, (gsize)n)) {
      /* The server has closed. A client that still sends would be reset before it has read why. */
      while (dr_conn_read(carrier->conn, chunk, sizeof chunk, LINGER_MS, NULL) > 0)
        ;
      break;
    }
  g_mutex_lock(&carrier->gate->lock);
  carrier->gone = TRUE;
  g_cond_broadcast(&carrier->gate->changed);
  g_mutex_unlock(&carrier->gate->lock);
  shutdown(carrier->local, SHUT_RDWR);
  carrier_unref(carrier);
  return NULL;
}

static gboolean
start_thread(Carrier *carrier, const char *name, GThreadFunc run)
{
  GThread *thread = g_thread_try_new(name, run, carrier, NULL);

  if (thread)
    g_thread_unref(thread);
  return thread != NULL;
}

/* Those with few rights cannot keep others out. */
static gboolean
is_too_many(const DrGate *gate, guint rank)
{
  static const guint part[DR_GATE_RANKS] = { 8, 2, 1 };

  return g_hash_table_size(gate->carriers) > gate->options.max ||
         gate->of_rank[rank] > gate->options.max / part[rank];
}

/* Takes both over. FALSE: there are too many, or threads have run out. */
static gboolean
carrier_start(DrGate *gate, int local, DrConn *conn, guint rank)
{
  Carrier *carrier = g_new0(Carrier, 1);

  g_atomic_ref_count_init(&carrier->refs);
  g_atomic_ref_count_inc(&carrier->refs);
  carrier->gate = gate;
  carrier->local = local;
  carrier->conn = conn;
  carrier->rank = MIN(rank, DR_GATE_RANKS - 1);
  g_mutex_lock(&gate->lock);
  g_hash_table_add(gate->carriers, carrier);
  gate->of_rank[carrier->rank]++;
  carrier->gone = is_too_many(gate, carrier->rank);
  g_mutex_unlock(&gate->lock);
  if (carrier->gone || !start_thread(carrier, "api-in", carry_in)) {
    carrier_unref(carrier);
    carrier_unref(carrier);
    return FALSE;
  }
  if (start_thread(carrier, "api-out", carry_out))
    return TRUE;
  dr_conn_abort(conn); /* the other thread ends by it */
  carrier_unref(carrier);
  return FALSE;
}

/* --- Handing over --- */

static void
arrival_free(Arrival *arrival)
{
  dr_fd_cleanup(&arrival->fd);
  g_strfreev(arrival->names);
  g_free(arrival);
}

static Arrival *
next_arrival(DrGate *gate)
{
  Arrival *arrival;

  g_mutex_lock(&gate->lock);
  arrival = g_queue_pop_head(&gate->arrivals);
  if (!arrival)
    g_clear_pointer(&gate->wake, g_source_unref);
  g_mutex_unlock(&gate->lock);
  return arrival;
}

static gboolean
on_arrival(gpointer data)
{
  DrGate *gate = data;
  Arrival *arrival = next_arrival(gate);

  if (!arrival)
    return G_SOURCE_REMOVE;
  gate->options.take(dr_fd_steal(&arrival->fd), (const char *const *)arrival->names, gate->options.data);
  arrival_free(arrival);
  return G_SOURCE_CONTINUE;
}

static void
hand_over(DrGate *gate, int fd, const char *const *names)
{
  Arrival *arrival = g_new0(Arrival, 1);

  arrival->fd = fd;
  arrival->names = g_strdupv((char **)names);
  g_mutex_lock(&gate->lock);
  g_queue_push_tail(&gate->arrivals, arrival);
  if (!gate->wake) {
    gate->wake = g_idle_source_new();
    g_source_set_priority(gate->wake, G_PRIORITY_DEFAULT);
    g_source_set_callback(gate->wake, on_arrival, gate, NULL);
    g_source_attach(gate->wake, gate->context);
  }
  g_mutex_unlock(&gate->lock);
}

static gboolean
make_pair(int *ret_ours, int *ret_servers)
{
  int ends[2], room = ROOM;

  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
    return FALSE;
  for (int i = 0; i < 2; i++)
    setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  *ret_ours = ends[0];
  *ret_servers = ends[1];
  return TRUE;
}

/* The listener's thread. */
static void
take(DrConn *conn, JsonObject *nothing, gpointer data)
{
  DrGate *gate = data;
  g_auto(GStrv) names = g_strdupv((char **)dr_conn_names(conn));
  dr_autofd int servers = -1;
  guint rank =
      gate->options.rank ? gate->options.rank((const char *const *)names, gate->options.data) : DR_GATE_RANKS;
  int ours;

  if (!make_pair(&ours, &servers)) {
    dr_conn_free(conn);
    return;
  }
  dr_socket_hand_on(dr_conn_fd(conn)); /* people's links are worse than those between hosts */
  if (carrier_start(gate, ours, conn, rank))
    hand_over(gate, dr_fd_steal(&servers), (const char *const *)names);
}

/* --- The whole --- */

/* What a name may do is answered in HTTP, where a client can read it. */
static gboolean
allow_all(const char *const *names, const char *key_id, gpointer data, GError **error)
{
  return TRUE;
}

DrGate *
dr_gate_new(const DrGateOptions *options, GError **error)
{
  DrGate *gate = g_new0(DrGate, 1);
  const DrListenerOptions listener = {
    .address = options->address,
    .port = options->port,
    .hello_ms = options->handshake_ms,
    .no_hello = TRUE,
    .context = options->tls,
    .allow = allow_all,
    .take = take,
    .data = gate,
  };

  gate->options = *options;
  gate->context = g_main_context_ref_thread_default();
  g_mutex_init(&gate->lock);
  g_cond_init(&gate->changed);
  gate->carriers = g_hash_table_new(NULL, NULL);
  g_queue_init(&gate->arrivals);
  gate->listener = dr_listener_new(&listener, error);
  if (gate->listener)
    return gate;
  dr_gate_free(gate);
  return NULL;
}

static void
end_carriers(DrGate *gate)
{
  GHashTableIter iter;
  gpointer carrier;

  g_mutex_lock(&gate->lock);
  g_hash_table_iter_init(&iter, gate->carriers);
  while (g_hash_table_iter_next(&iter, &carrier, NULL)) {
    Carrier *one = carrier;

    one->gone = TRUE;
    shutdown(one->local, SHUT_RDWR);
    dr_conn_abort(one->conn);
  }
  g_cond_broadcast(&gate->changed);
  while (g_hash_table_size(gate->carriers) > 0)
    g_cond_wait(&gate->changed, &gate->lock);
  g_mutex_unlock(&gate->lock);
}

void
dr_gate_free(DrGate *gate)
{
  if (!gate)
    return;
  dr_listener_free(gate->listener);
  end_carriers(gate);
  if (gate->wake) {
    g_source_destroy(gate->wake);
    g_source_unref(gate->wake);
  }
  g_queue_clear_full(&gate->arrivals, (GDestroyNotify)arrival_free);
  g_hash_table_unref(gate->carriers);
  g_main_context_unref(gate->context);
  g_mutex_clear(&gate->lock);
  g_cond_clear(&gate->changed);
  g_free(gate);
}

guint
dr_gate_port(DrGate *gate)
{
  return dr_listener_port(gate->listener);
}
