/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The streams of a move at the host that the guest comes to. */
#include "base/error.h"
#include "base/fd.h"
#include "job/incoming.h"
#include "job/streams.h"
#include "net/relay.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_NBD 64    /* two a disk: the old one may not have been seen to be dead */
#define TURN_MS 10000 /* until the stream before this one is connected */

typedef struct {
  gint64 epoch;
  guint next;        /* the index whose turn it is */
  GPtrArray *relays; /* of DrRelay */
  GPtrArray *nbd;    /* the same; nullable */
} Arrivals;

static GMutex lock;
static GCond turned;
static GHashTable *arrivals; /* move -> Arrivals; under `lock` */

static void
arrivals_free(gpointer data)
{
  Arrivals *one = data;

  g_ptr_array_unref(one->relays);
  g_clear_pointer(&one->nbd, g_ptr_array_unref);
  g_free(one);
}

/* Pumps are ended outside of the lock: that joins threads. */
static GPtrArray *
begin_epoch(Arrivals *one, gint64 epoch)
{
  GPtrArray *old = one->relays;

  one->epoch = epoch;
  one->next = 0;
  one->relays = g_ptr_array_new_with_free_func((GDestroyNotify)dr_relay_free);
  return old;
}

static Arrivals *
find(const char *move, gint64 epoch, GPtrArray **ret_old)
{
  Arrivals *one;

  if (!arrivals)
    arrivals = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, arrivals_free);
  one = g_hash_table_lookup(arrivals, move);
  if (!one) {
    one = g_new0(Arrivals, 1);
    begin_epoch(one, epoch);
    g_hash_table_insert(arrivals, g_strdup(move), one);
  } else if (epoch > one->epoch) {
    *ret_old = begin_epoch(one, epoch);
  }
  return one;
}

/* It is there at once, or the listener's queue is full: then that QEMU does not take what it has. */
static int
connect_to(const char *path, GError **error)
{
  int fd = dr_unix_connect_here(path, SOCK_NONBLOCK, error);

  if (fd < 0)
    g_prefix_error(error, "the new QEMU: ");
  return fd;
}

void
dr_streams_knock(const char *path)
{
  dr_autofd int fd = connect_to(path, NULL);

  g_debug("'%s': %s", path, fd >= 0 ? "connected, and closed" : "nobody listens");
}

/* NULL: it does not come. It may have been dropped while we waited. */
static Arrivals *
wait_turn(const char *move, gint64 epoch, guint index)
{
  DrDeadline deadline = dr_deadline_in(TURN_MS);
  Arrivals *one;

  while ((one = g_hash_table_lookup(arrivals, move)) && one->epoch == epoch && one->next < index)
    if (!g_cond_wait_until(&turned, &lock, deadline))
      return NULL;
  return one && one->epoch == epoch && one->next == index ? one : NULL;
}

/* In its turn; under the lock. Takes `conn` over. */
static gboolean
take(Arrivals *one, const char *path, guint index, DrConn *conn, GError **error)
{
  int local = connect_to(path, error);
  DrRelay *relay;

  if (local < 0) {
    dr_conn_free(conn);
    return FALSE;
  }
  relay = dr_relay_new(local, conn, -1, error);
  if (!relay)
    return FALSE;
  g_ptr_array_add(one->relays, relay);
  one->next = index + 1;
  g_cond_broadcast(&turned);
  return TRUE;
}

gboolean
dr_streams_take(const char *move, gint64 epoch, guint index, DrConn *conn, GError **error)
{
  g_autofree char *path = NULL;
  g_autoptr(GPtrArray) old = NULL;
  gboolean taken = FALSE;
  Arrivals *one;

  if (index == 0 && dr_conn_plain_fd(conn) >= 0 && dr_incoming_wants_socket(move, dr_conn_peer(conn), epoch))
    return dr_incoming_hand(move, conn, error);
  path = dr_incoming_socket(move, dr_conn_peer(conn), epoch);
  if (!path || index >= DR_STREAMS_MAX) {
    dr_conn_free(conn);
    return dr_error_set(error, DR_ERROR_NOT_FOUND,
                        "no move '%.40s' waits for stream %u of epoch %" G_GINT64_FORMAT, move, index, epoch);
  }
  g_mutex_lock(&lock);
  find(move, epoch, &old);
  one = wait_turn(move, epoch, index);
  if (one) {
    taken = take(one, path, index, conn, error);
  } else {
    dr_conn_free(conn);
    dr_error_set(error, DR_ERROR_TIMEOUT, "stream %u of move '%.40s' came out of turn", index, move);
  }
  g_mutex_unlock(&lock);
  return taken;
}

/* Those that have ended make room; their threads are waited for outside of the lock. */
static GPtrArray *
take_ended(GPtrArray *relays)
{
  GPtrArray *ended = g_ptr_array_new_with_free_func((GDestroyNotify)dr_relay_free);

  for (guint i = relays->len; i-- > 0;)
    if (dr_relay_state(relays->pdata[i]) != DR_RELAY_RUNS)
      g_ptr_array_add(ended, g_ptr_array_steal_index(relays, i));
  return ended;
}

gboolean
dr_streams_take_nbd(const char *move, DrConn *conn, GError **error)
{
  g_autofree char *path = dr_incoming_nbd_socket(move, dr_conn_peer(conn));
  g_autoptr(GPtrArray) ended = NULL, old = NULL;
  int local = path ? connect_to(path, error) : -1;
  DrRelay *relay;
  Arrivals *one;

  if (local < 0) {
    dr_conn_free(conn);
    return path ? FALSE : dr_error_set(error, DR_ERROR_NOT_FOUND, "no move '%.40s' waits for disks", move);
  }
  relay = dr_relay_new(local, conn, -1, error);
  if (!relay)
    return FALSE;
  g_mutex_lock(&lock);
  one = find(move, 0, &old);
  if (!one->nbd)
    one->nbd = g_ptr_array_new_with_free_func((GDestroyNotify)dr_relay_free);
  ended = take_ended(one->nbd);
  if (one->nbd->len < MAX_NBD)
    g_ptr_array_add(one->nbd, g_steal_pointer(&relay));
  g_mutex_unlock(&lock);
  if (relay) {
    dr_relay_free(relay);
    return dr_error_set(error, DR_ERROR_BUSY, "move '%.40s' has too many streams of disks", move);
  }
  return TRUE;
}

void
dr_streams_narrow_taken(const char *move)
{
  Arrivals *one;

  g_mutex_lock(&lock);
  one = arrivals ? g_hash_table_lookup(arrivals, move) : NULL;
  for (guint i = 0; one && i < one->relays->len; i++)
    dr_relay_narrow(one->relays->pdata[i]);
  g_mutex_unlock(&lock);
}

void
dr_streams_drop(const char *move)
{
  GPtrArray *relays = NULL, *nbd = NULL;
  Arrivals *one;

  g_mutex_lock(&lock);
  one = arrivals ? g_hash_table_lookup(arrivals, move) : NULL;
  if (one) {
    relays = g_ptr_array_ref(one->relays);
    nbd = g_steal_pointer(&one->nbd);
    g_hash_table_remove(arrivals, move);
    g_cond_broadcast(&turned);
  }
  g_mutex_unlock(&lock);
  if (relays)
    g_ptr_array_unref(relays);
  if (nbd)
    g_ptr_array_unref(nbd);
}
