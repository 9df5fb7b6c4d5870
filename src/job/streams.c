/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Carrying the streams of a move. */
#include "job/streams.h"
#include "base/error.h"
#include "base/fd.h"
#include "job/incoming.h"
#include "net/relay.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#define DIAL_MS 10000

static void
mark_broken(int fd)
{
  eventfd_write(fd, 1);
}

/* --- The source's side --- */

struct DrStreams {
  DrPeer *peer;
  char *move, *path;
  char **tokens; /* NULL: TLS */
  gint64 epoch;
  int listener, stop, broken;
  GThread *thread;
  GMutex lock;
  GPtrArray *relays; /* of DrRelay; under `lock` */
  gboolean ahead;
  gboolean nbd;
  DrConn *next; /* nullable: opened before QEMU has asked for it; set under `lock` */
};

static DrConn *
open_stream(DrStreams *streams, guint index, GError **error)
{
  DrDeadline deadline = dr_deadline_in(DIAL_MS);
  gboolean has_token = streams->tokens && index < g_strv_length(streams->tokens);

  if (streams->nbd && !has_token)
    return dr_peer_stream(streams->peer, dr_json("{'move': <%s>, 'nbd': <true>}", streams->move), deadline,
                          error);
  if (!streams->tokens)
    return dr_peer_stream(
        streams->peer,
        dr_json("{'move': <%s>, 'epoch': <%x>, 'index': <%i>}", streams->move, streams->epoch, (int)index),
        deadline, error);
  if (has_token)
    return dr_peer_stream_plain(streams->peer, streams->tokens[index], deadline, error);
  dr_error_set(error, DR_ERROR_REFUSED, "the other host gave out no token for it");
  return NULL;
}

int
dr_streams_open_plain(DrPeer *peer, const char *token, GError **error)
{
  g_autoptr(DrConn) conn = dr_peer_stream_plain(peer, token, dr_deadline_in(DIAL_MS), error);

  return conn ? dr_conn_steal_fd(conn) : -1;
}

static void
open_ahead(DrStreams *streams, guint index)
{
  g_autoptr(GError) error = NULL;
  DrConn *conn = open_stream(streams, index, &error);

  if (!conn) {
    g_warning("stream %u of move %s: %s", index, streams->move, error->message);
    mark_broken(streams->broken);
    return;
  }
  g_mutex_lock(&streams->lock);
  streams->next = conn;
  g_mutex_unlock(&streams->lock);
}

static DrConn *
take_next(DrStreams *streams)
{
  DrConn *conn;

  g_mutex_lock(&streams->lock);
  conn = g_steal_pointer(&streams->next);
  g_mutex_unlock(&streams->lock);
  return conn;
}

static void
carry(DrStreams *streams, int local, guint index)
{
  g_autoptr(GError) error = NULL;
  DrConn *ready = take_next(streams), *conn = ready ? ready : open_stream(streams, index, &error);
  DrRelay *relay = conn ? dr_relay_new(local, conn, streams->nbd ? -1 : streams->broken, &error) : NULL;

  if (!relay) {
    if (!streams->nbd)
      g_warning("stream %u of move %s: %s", index, streams->move, error->message);
    if (!conn)
      close(local);
    if (!streams->nbd)
      mark_broken(streams->broken);
    return;
  }
  g_mutex_lock(&streams->lock);
  g_ptr_array_add(streams->relays, relay);
  g_mutex_unlock(&streams->lock);
}

/* Of a client that comes again and again. */
static void
drop_ended(DrStreams *streams)
{
  g_autoptr(GPtrArray) ended = g_ptr_array_new_with_free_func((GDestroyNotify)dr_relay_free);

  g_mutex_lock(&streams->lock);
  for (guint i = streams->relays->len; i-- > 0;)
    if (dr_relay_state(streams->relays->pdata[i]) != DR_RELAY_RUNS)
      g_ptr_array_add(ended, g_ptr_array_steal_index(streams->relays, i));
  g_mutex_unlock(&streams->lock);
}

/* QEMU's connections in the order in which it makes them, each carried on before the next is taken. */
static gpointer
accept_all(gpointer data)
{
  DrStreams *streams = data;
  struct pollfd fds[] = { { .fd = streams->listener, .events = POLLIN },
                          { .fd = streams->stop, .events = POLLIN } };
  guint index = 0;

  while (poll(fds, G_N_ELEMENTS(fds), -1) >= 0 && !fds[1].revents) { /* ended by `stop` */
    int local = accept4(streams->listener, NULL, NULL, SOCK_CLOEXEC);

    if (local < 0)
      continue;
    if (streams->nbd)
      drop_ended(streams);
    if (index < DR_STREAMS_MAX || streams->nbd)
      carry(streams, local, index++);
    else
      close(local);
    if (streams->ahead && index == 1)
      open_ahead(streams, index);
  }
  return NULL;
}

static DrStreams *
streams_new(DrPeer *peer, const char *move, const char *path, GError **error)
{
  int listener = dr_unix_listen_for_all(path, 0, DR_STREAMS_MAX, error);
  DrStreams *streams;

  if (listener < 0)
    return NULL;
  streams = g_new0(DrStreams, 1);
  streams->peer = peer;
  streams->move = g_strdup(move);
  streams->path = g_strdup(path);
  streams->listener = listener;
  streams->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  streams->broken = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  g_mutex_init(&streams->lock);
  streams->relays = g_ptr_array_new_with_free_func((GDestroyNotify)dr_relay_free);
  return streams;
}

DrStreams *
dr_streams_new(DrPeer *peer, const char *move, gint64 epoch, const char *path, const char *const *tokens,
               gboolean ahead, GError **error)
{
  DrStreams *streams = streams_new(peer, move, path, error);

  if (!streams)
    return NULL;
  streams->tokens = g_strdupv((char **)tokens);
  streams->epoch = epoch;
  streams->ahead = ahead;
  streams->thread = g_thread_new("streams", accept_all, streams);
  return streams;
}

DrStreams *
dr_streams_new_nbd(DrPeer *peer, const char *move, const char *path, const char *const *tokens,
                   GError **error)
{
  DrStreams *streams = streams_new(peer, move, path, error);

  if (!streams)
    return NULL;
  streams->tokens = g_strdupv((char **)tokens);
  streams->nbd = TRUE;
  streams->thread = g_thread_new("nbd", accept_all, streams);
  return streams;
}

static void
abort_relay(gpointer relay, gpointer data)
{
  dr_relay_abort(relay);
}

void
dr_streams_break(DrStreams *streams)
{
  g_mutex_lock(&streams->lock);
  g_ptr_array_foreach(streams->relays, abort_relay, NULL);
  g_mutex_unlock(&streams->lock);
}

void
dr_streams_free(DrStreams *streams)
{
  if (!streams)
    return;
  mark_broken(streams->stop);
  g_mutex_lock(&streams->lock);
  g_ptr_array_foreach(streams->relays, abort_relay, NULL); /* all, before one is waited for */
  g_mutex_unlock(&streams->lock);
  g_thread_join(streams->thread);
  g_ptr_array_unref(streams->relays);
  g_clear_pointer(&streams->next, dr_conn_free);
  close(streams->listener);
  close(streams->stop);
  close(streams->broken);
  unlink(streams->path);
  g_mutex_clear(&streams->lock);
  g_free(streams->move);
  g_free(streams->path);
  g_strfreev(streams->tokens);
  g_free(streams);
}

static void
narrow_relay(gpointer relay, gpointer data)
{
  dr_relay_narrow(relay);
}

void
dr_streams_narrow(DrStreams *streams)
{
  g_mutex_lock(&streams->lock);
  g_ptr_array_foreach(streams->relays, narrow_relay, NULL);
  g_mutex_unlock(&streams->lock);
}

guint
dr_streams_count(DrStreams *streams)
{
  guint n;

  g_mutex_lock(&streams->lock);
  n = streams->relays->len + (streams->next != NULL);
  g_mutex_unlock(&streams->lock);
  return n;
}

int
dr_streams_broken_fd(DrStreams *streams)
{
  return streams->broken;
}

gint64
dr_streams_bytes(DrStreams *streams)
{
  gint64 bytes = 0;

  g_mutex_lock(&streams->lock);
  for (guint i = 0; i < streams->relays->len; i++)
    bytes += dr_relay_bytes_out(streams->relays->pdata[i]);
  g_mutex_unlock(&streams->lock);
  return bytes;
}
