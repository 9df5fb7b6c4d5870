/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One thread accepts and keeps who waits; threads of a pool greet. */
#include "net/listener.h"
#include "base/error.h"
#include "base/fd.h"
#include "net/bind.h"
#include "net/newcomer.h"
#include "net/refusals.h"
#include "net/tally.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#define GRACE_MS 1000 /* a handshake that takes longer gives its place to one that waits */
#define AGAIN_MS 100  /* how often it is looked whether there is one */
#define AT_A_TIME 32  /* accepted before the others are looked at again */
#define THREADS 128   /* DR_LISTENER_GREETING, and as many in `take` */

struct DrListener {
  DrListenerOptions options; /* but for its context */
  guint port;
  int fds[DR_BIND_MAX];
  guint n_fds;
  int stop, wake;
  GThread *thread;
  GThreadPool *pool;
  GQueue waiting; /* of DrNewcomer, the oldest first; the thread's own */
  DrTally *n_waiting, *n_greeting, *n_taken;
  DrTokens *tokens;
  DrRefusals refusals;
  GMutex lock;
  DrTlsContext *context; /* under `lock`, as all that follows */
  GQueue greeting;       /* of DrNewcomer, the oldest first */
};

/* --- Greeting --- */

static DrTlsContext *
context_of(DrListener *listener)
{
  DrTlsContext *context;

  g_mutex_lock(&listener->lock);
  context = dr_tls_context_ref(listener->context);
  g_mutex_unlock(&listener->lock);
  return context;
}

static DrConn *
greet_tls(DrListener *listener, DrNewcomer *new, JsonObject **ret_hello, GError **error)
{
  g_autoptr(DrTlsContext) context = context_of(listener);
  g_autoptr(DrConn) conn = dr_conn_accept(context, dr_fd_steal(&new->fd), new->address, new->deadline, error);

  if (!conn ||
      !listener->options.allow(dr_conn_names(conn), dr_conn_key_id(conn), listener->options.data, error))
    return NULL;
  *ret_hello = listener->options.no_hello ? json_object_new() : dr_conn_hello(conn, new->deadline, error);
  return *ret_hello ? g_steal_pointer(&conn) : NULL;
}

typedef struct {
  DrTally *tally;
  char *origin;
} Taken;

static void
is_gone(gpointer data)
{
  Taken *taken = data;

  dr_tally_remove(taken->tally, taken->origin);
  dr_tally_unref(taken->tally);
  g_free(taken->origin);
  g_free(taken);
}

static gboolean
count_taken(DrListener *listener, DrConn *conn, const char *origin)
{
  Taken *taken;

  if (!dr_tally_add(listener->n_taken, origin))
    return FALSE;
  taken = g_new0(Taken, 1);
  taken->tally = dr_tally_ref(listener->n_taken);
  taken->origin = g_strdup(origin);
  dr_conn_on_free(conn, is_gone, taken);
  return TRUE;
}

/* Takes `conn` over. */
static void
hand_on(DrListener *listener, DrConn *conn, JsonObject *hello, const char *origin)
{
  g_autoptr(GError) error = NULL;

  if (count_taken(listener, conn, origin)) {
    listener->options.take(conn, hello, listener->options.data);
    return;
  }
  dr_error_set(&error, DR_ERROR_BUSY, "this droverd has as many connections as it takes (%d, %d of one host)",
               DR_LISTENER_TAKEN, DR_LISTENER_TAKEN_ONE);
  dr_error_remedy(&error, "wait until a move is over, or move fewer at a time");
  dr_refusals_log(&listener->refusals, dr_conn_address(conn), DR_REFUSED_BUSY, error->message);
  dr_conn_refuse(conn, error);
  dr_conn_free(conn);
}

/* Its place is free. */
static void
leave(DrListener *listener, DrNewcomer *new)
{
  g_mutex_lock(&listener->lock);
  g_queue_remove(&listener->greeting, new);
  g_mutex_unlock(&listener->lock);
  dr_fd_cleanup(&new->abort_fd); /* or it would keep open what is closed */
  new->abort_fd = -1;
  dr_tally_remove(listener->n_greeting, new->origin);
  eventfd_write(listener->wake, 1);
}

static void
greet(gpointer data, gpointer user)
{
  DrListener *listener = user;
  g_autoptr(DrNewcomer) new = data;
  g_autoptr(JsonObject) hello = NULL;
  g_autoptr(GError) error = NULL;
  DrConn *conn = dr_newcomer_speaks_tls(new) ? greet_tls(listener, new, &hello, &error)
                                             : dr_newcomer_plain(new, listener->tokens, &hello, &error);

  leave(listener, new);
  if (conn)
    hand_on(listener, conn, hello, new->origin);
  else
    dr_refusals_log(&listener->refusals, new->address, dr_error_code_name(error), error->message);
}

/* --- From waiting to greeting --- */

/* Takes the place of the oldest that has had its second; `origin` NULL: of whomever. */
static void
make_place(DrListener *listener, const char *origin)
{
  gint64 latest = g_get_monotonic_time() - GRACE_MS * 1000;

  g_mutex_lock(&listener->lock);
  for (GList *link = listener->greeting.head; link; link = link->next) {
    DrNewcomer *new = link->data;

    if (new->since_us > latest || (origin && !g_str_equal(origin, new->origin)))
      continue;
    shutdown(new->abort_fd, SHUT_RDWR);
    new->since_us = G_MAXINT64; /* not once more */
    break;
  }
  g_mutex_unlock(&listener->lock);
}

/* (transfer full): what it was. */
static DrNewcomer *
stop_waiting(DrListener *listener, GList *link)
{
  DrNewcomer *new = link->data;

  g_queue_delete_link(&listener->waiting, link);
  dr_tally_remove(listener->n_waiting, new->origin);
  return new;
}

static gboolean
start_greeting(DrListener *listener, GList *link)
{
  DrNewcomer *new = link->data;

  if (!dr_tally_add(listener->n_greeting, new->origin)) {
    make_place(listener, dr_tally_is_full(listener->n_greeting) ? NULL : new->origin);
    return FALSE;
  }
  stop_waiting(listener, link);
  new->abort_fd = fcntl(new->fd, F_DUPFD_CLOEXEC, 0);
  new->since_us = g_get_monotonic_time();
  g_mutex_lock(&listener->lock);
  g_queue_push_tail(&listener->greeting, new);
  g_mutex_unlock(&listener->lock);
  g_thread_pool_push(listener->pool, new, NULL);
  return TRUE;
}

static void
turn_away(DrListener *listener, GList *link, const char *reason, const char *why)
{
  g_autoptr(DrNewcomer) new = stop_waiting(listener, link);

  dr_refusals_log(&listener->refusals, new->address, reason, why);
}

/* Returns: whether somebody who has spoken has to wait on. */
static gboolean
look_at_waiting(DrListener *listener)
{
  gboolean wait_on = FALSE;

  for (GList *link = listener->waiting.head, *next; link; link = next) {
    DrNewcomer *new = link->data;

    next = link->next;
    if (dr_deadline_passed(new->deadline)) {
      if (new->has_spoken)
        turn_away(listener, link, DR_REFUSED_BUSY, "too many at a time");
      else
        turn_away(listener, link, DR_REFUSED_TIMEOUT, "it said nothing in time");
    } else if (new->has_spoken && !start_greeting(listener, link)) {
      wait_on = TRUE;
    }
  }
  return wait_on;
}

/* --- Accepting --- */

/* Who has connected and says nothing loses its place first; NULL: nobody. */
static GList *
silent_one(DrListener *listener, const char *origin)
{
  for (GList *link = listener->waiting.head; link; link = link->next) {
    DrNewcomer *new = link->data;

    if (!new->has_spoken && (!origin || g_str_equal(new->origin, origin)))
      return link;
  }
  return NULL;
}

/* The last of those who have the most places, if that is more than `origin` has. */
static GList *
greedy_one(DrListener *listener, const char *origin)
{
  guint most = dr_tally_count_of(listener->n_waiting, origin);
  GList *found = NULL;

  for (GList *link = listener->waiting.tail; link; link = link->prev) {
    guint n = dr_tally_count_of(listener->n_waiting, ((DrNewcomer *)link->data)->origin);

    if (n > most) {
      most = n;
      found = link;
    }
  }
  return found;
}

static void
make_room(DrListener *listener, const char *origin)
{
  GList *link;

  if (!dr_tally_is_full(listener->n_waiting)) { /* then it is its own bound that it has reached */
    link = silent_one(listener, origin);
  } else {
    link = silent_one(listener, NULL);
    if (!link)
      link = greedy_one(listener, origin);
  }
  if (link)
    turn_away(listener, link, DR_REFUSED_BUSY, "others wait");
}

static void
let_wait(DrListener *listener, int fd, const char *address, const char *origin)
{
  if (!dr_tally_has_room(listener->n_waiting, origin))
    make_room(listener, origin);
  if (dr_tally_add(listener->n_waiting, origin)) {
    g_queue_push_tail(&listener->waiting, dr_newcomer_new(fd, address, origin, listener->options.hello_ms));
    return;
  }
  close(fd);
  dr_refusals_log(&listener->refusals, address, DR_REFUSED_BUSY, "too many at a time");
}

static void
accept_some(DrListener *listener, int listening)
{
  for (int i = 0; i < AT_A_TIME; i++) {
    g_autofree char *address = NULL, *origin = NULL;
    int fd = dr_bind_accept(listening, &address, &origin);

    if (fd < 0) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
        g_usleep(
            10000); /* poll(2) would say at once that there is one: leave it in the kernel for a moment */
      return;
    }
    let_wait(listener, fd, address, origin);
  }
}

/* stop, wake, the listening sockets, then who waits and has said nothing. */
static void
fill_fds(DrListener *listener, GArray *fds)
{
  g_array_set_size(fds, 0);
  g_array_append_vals(fds, &(struct pollfd){ .fd = listener->stop, .events = POLLIN }, 1);
  g_array_append_vals(fds, &(struct pollfd){ .fd = listener->wake, .events = POLLIN }, 1);
  for (guint i = 0; i < listener->n_fds; i++)
    g_array_append_vals(fds, &(struct pollfd){ .fd = listener->fds[i], .events = POLLIN }, 1);
  for (GList *link = listener->waiting.head; link; link = link->next) {
    DrNewcomer *new = link->data;

    g_array_append_vals(fds, &(struct pollfd){ .fd = new->has_spoken ? -1 : new->fd, .events = POLLIN }, 1);
  }
}

static void
take_fds(DrListener *listener, GArray *fds)
{
  guint at = 2 + listener->n_fds;
  eventfd_t ignored;

  eventfd_read(listener->wake, &ignored);
  for (GList *link = listener->waiting.head; link; link = link->next, at++)
    if (g_array_index(fds, struct pollfd, at).revents)
      ((DrNewcomer *)link->data)->has_spoken = TRUE;
  for (guint i = 0; i < listener->n_fds; i++)
    if (g_array_index(fds, struct pollfd, 2 + i).revents)
      accept_some(listener, listener->fds[i]);
}

/* Until the first of those who wait has waited for too long; -1: nobody does, `stop` or `wake` end it. */
static int
time_to_wait(DrListener *listener, gboolean somebody_ready)
{
  DrNewcomer *first = g_queue_peek_head(&listener->waiting);

  if (somebody_ready)
    return AGAIN_MS;
  return first ? dr_deadline_left(first->deadline) : -1;
}

static gpointer
accept_all(gpointer data)
{
  DrListener *listener = data;
  g_autoptr(GArray) fds = g_array_new(FALSE, FALSE, sizeof(struct pollfd));
  gboolean somebody_ready = FALSE;

  for (;;) {
    fill_fds(listener, fds);
    if (poll((struct pollfd *)(void *)fds->data, fds->len, time_to_wait(listener, somebody_ready)) < 0)
      continue;
    if (g_array_index(fds, struct pollfd, 0).revents)
      return NULL;
    take_fds(listener, fds);
    somebody_ready = look_at_waiting(listener);
  }
}

/* --- The whole --- */

DrListener *
dr_listener_new(const DrListenerOptions *options, GError **error)
{
  g_autoptr(DrListener) listener = g_new0(DrListener, 1);

  listener->options = *options;
  listener->context = dr_tls_context_ref(options->context);
  listener->port = options->port;
  if (listener->options.hello_ms == 0)
    listener->options.hello_ms = DR_LISTENER_HELLO_MS;
  listener->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  listener->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  listener->n_waiting = dr_tally_new(DR_LISTENER_WAITING, DR_LISTENER_WAITING_ONE);
  listener->n_greeting = dr_tally_new(DR_LISTENER_GREETING, DR_LISTENER_GREETING_ONE);
  listener->n_taken = dr_tally_new(DR_LISTENER_TAKEN, DR_LISTENER_TAKEN_ONE);
  listener->tokens = dr_tokens_new();
  g_mutex_init(&listener->lock);
  g_queue_init(&listener->waiting);
  g_queue_init(&listener->greeting);
  dr_refusals_prepare();
  listener->n_fds = dr_bind(options->address, &listener->port, listener->fds, error);
  if (listener->n_fds > 0)
    listener->pool = g_thread_pool_new(greet, listener, THREADS, FALSE, error);
  if (listener->pool)
    listener->thread = g_thread_try_new("listener", accept_all, listener, error);
  return listener->thread ? g_steal_pointer(&listener) : NULL;
}

static void
end_greetings(DrListener *listener)
{
  g_mutex_lock(&listener->lock);
  for (GList *link = listener->greeting.head; link; link = link->next)
    shutdown(((DrNewcomer *)link->data)->abort_fd, SHUT_RDWR);
  g_mutex_unlock(&listener->lock);
  g_thread_pool_free(listener->pool, FALSE, TRUE);
}

void
dr_listener_free(DrListener *listener)
{
  if (!listener)
    return;
  eventfd_write(listener->stop, 1);
  if (listener->thread)
    g_thread_join(listener->thread);
  for (guint i = 0; i < listener->n_fds; i++)
    close(listener->fds[i]);
  if (listener->pool)
    end_greetings(listener);
  g_queue_clear_full(&listener->waiting, (GDestroyNotify)dr_newcomer_free);
  close(listener->stop);
  close(listener->wake);
  dr_tally_unref(listener->n_waiting);
  dr_tally_unref(listener->n_greeting);
  dr_tally_unref(listener->n_taken);
  dr_tokens_free(listener->tokens);
  dr_tls_context_unref(listener->context);
  g_mutex_clear(&listener->lock);
  g_free(listener);
}

guint
dr_listener_port(DrListener *listener)
{
  return listener->port;
}

void
dr_listener_set_context(DrListener *listener, DrTlsContext *context)
{
  DrTlsContext *old;

  g_mutex_lock(&listener->lock);
  old = listener->context;
  listener->context = dr_tls_context_ref(context);
  g_mutex_unlock(&listener->lock);
  dr_tls_context_unref(old);
}

void
dr_listener_counts(DrListener *listener, guint *ret_waiting, guint *ret_greeting, guint *ret_taken)
{
  *ret_waiting = dr_tally_count(listener->n_waiting);
  *ret_greeting = dr_tally_count(listener->n_greeting);
  *ret_taken = dr_tally_count(listener->n_taken);
}

char *
dr_listener_token(DrListener *listener, const char *peer, JsonObject *hello)
{
  return dr_tokens_give(listener->tokens, peer, hello);
}
