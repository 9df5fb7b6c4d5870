/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Accepting connections of peers, and of whoever else. */
#include "net/listener.h"
#include "base/error.h"
#include "base/fd.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>

#define HELLO_MS 5000
#define THREADS 8
#define MAX_NEW 64          /* connections that have not said hello yet */
#define MAX_NEW_FROM_ONE 24 /* of one address: 17 streams of a move and its conversation come at once */
#define BACKLOG 256
#define MAX_LISTENERS 8 /* addresses of one name */
#define PREAMBLE "DROVER1 "
#define TOKEN_DIGITS 64
#define TOKEN_MS 10000
#define TLS_HANDSHAKE 0x16 /* the first byte of a TLS record that begins a connection (RFC 8446, 5.1) */

typedef struct {
  int fd;
  char *address;
  DrDeadline deadline;
} New;

typedef struct {
  char *peer;
  JsonObject *hello;
  DrDeadline until;
} Token;

struct DrListener {
  DrListenerOptions options;
  int fds[MAX_LISTENERS];
  guint n_fds;
  int stop;
  GThread *thread;
  GThreadPool *pool;
  GMutex lock;
  GHashTable *from; /* address -> how many are new */
  guint n_new;
  GHashTable *tokens; /* digits -> Token */
};

/* --- How many --- */

static gboolean
let_in(DrListener *listener, const char *address)
{
  guint n;
  gboolean room;

  g_mutex_lock(&listener->lock);
  n = GPOINTER_TO_UINT(g_hash_table_lookup(listener->from, address));
  room = listener->n_new < MAX_NEW && n < MAX_NEW_FROM_ONE;
  if (room) {
    g_hash_table_insert(listener->from, g_strdup(address), GUINT_TO_POINTER(n + 1));
    listener->n_new++;
  }
  g_mutex_unlock(&listener->lock);
  return room;
}

static void
is_known(DrListener *listener, const char *address)
{
  guint n;

  g_mutex_lock(&listener->lock);
  n = GPOINTER_TO_UINT(g_hash_table_lookup(listener->from, address));
  if (n > 1)
    g_hash_table_insert(listener->from, g_strdup(address), GUINT_TO_POINTER(n - 1));
  else
    g_hash_table_remove(listener->from, address);
  listener->n_new--;
  g_mutex_unlock(&listener->lock);
}

/* --- Tokens --- */

static void
token_free(gpointer data)
{
  Token *token = data;

  g_free(token->peer);
  json_object_unref(token->hello);
  g_free(token);
}

static gboolean
is_old(gpointer digits, gpointer token, gpointer data)
{
  return dr_deadline_passed(((Token *)token)->until);
}

char *
dr_listener_token(DrListener *listener, const char *peer, JsonObject *hello)
{
  guint8 bytes[TOKEN_DIGITS / 2];
  GString *digits = g_string_new(NULL);
  Token *token = g_new0(Token, 1);

  if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
    g_error("no random numbers: %s", g_strerror(errno)); /* never in a kernel that has booted */
  for (guint i = 0; i < sizeof bytes; i++)
    g_string_append_printf(digits, "%02x", bytes[i]);
  token->peer = g_strdup(peer);
  token->hello = hello;
  token->until = dr_deadline_in(TOKEN_MS);
  g_mutex_lock(&listener->lock);
  g_hash_table_foreach_remove(listener->tokens, is_old, NULL);
  g_hash_table_insert(listener->tokens, g_strdup(digits->str), token);
  g_mutex_unlock(&listener->lock);
  return g_string_free(digits, FALSE);
}

static Token *
find_token(DrListener *listener, const char *digits)
{
  g_autofree char *key = NULL;
  Token *token = NULL;

  g_mutex_lock(&listener->lock);
  g_hash_table_foreach_remove(listener->tokens, is_old, NULL);
  g_hash_table_steal_extended(listener->tokens, digits, (gpointer *)&key, (gpointer *)&token);
  g_mutex_unlock(&listener->lock);
  return token;
}

/* --- One connection --- */

static gboolean
receive_all(int fd, char *buffer, gsize len, DrDeadline deadline)
{
  struct pollfd one = { .fd = fd, .events = POLLIN };

  while (len > 0) {
    gssize n = recv(fd, buffer, len, MSG_DONTWAIT);

    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
      return FALSE;
    if (n < 0 && poll(&one, 1, dr_deadline_left(deadline)) <= 0)
      return FALSE;
    if (n > 0) {
      buffer += n;
      len -= (gsize)n;
    }
  }
  return TRUE;
}

static void
take_plain(DrListener *listener, New *new)
{
  char preamble[sizeof PREAMBLE - 1 + TOKEN_DIGITS + 1 + 1] = "";
  gsize len = sizeof preamble - 1;
  Token *token = NULL;

  if (receive_all(new->fd, preamble, len, new->deadline) && g_str_has_prefix(preamble, PREAMBLE) &&
      preamble[len - 1] == '\n') {
    preamble[len - 1] = '\0';
    token = find_token(listener, preamble + strlen(PREAMBLE));
  }
  if (!token) {
    g_message("%s was refused: neither TLS nor a token", new->address);
    return;
  }
  listener->options.take(dr_conn_new_plain(dr_fd_steal(&new->fd), new->address, token->peer), token->hello,
                         listener->options.data);
  token_free(token);
}

static gboolean
begins_with_tls(New *new)
{
  struct pollfd one = { .fd = new->fd, .events = POLLIN };
  guint8 first = 0;

  return poll(&one, 1, dr_deadline_left(new->deadline)) > 0 && recv(new->fd, &first, 1, MSG_PEEK) == 1 &&
         first == TLS_HANDSHAKE;
}

static void
take_tls(DrListener *listener, New *new)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(DrConn) conn =
      dr_conn_accept(listener->options.context, dr_fd_steal(&new->fd), new->address, new->deadline, &error);
  g_autoptr(JsonObject) hello = NULL;

  if (conn &&
      listener->options.allow(dr_conn_names(conn), dr_conn_key_id(conn), listener->options.data, &error))
    hello = dr_conn_hello(conn, new->deadline, &error);
  if (hello)
    listener->options.take(g_steal_pointer(&conn), hello, listener->options.data);
  else
    g_message("%s was refused: %s", new->address, error->message);
}

static void
look_at(gpointer data, gpointer user)
{
  DrListener *listener = user;
  New *new = data;

  if (dr_deadline_passed(new->deadline))
    g_message("%s was refused: too many connections at a time", new->address);
  else if (begins_with_tls(new))
    take_tls(listener, new);
  else
    take_plain(listener, new);
  is_known(listener, new->address);
  dr_fd_cleanup(&new->fd);
  g_free(new->address);
  g_free(new);
}

/* --- All of them --- */

static char *
address_of(const struct sockaddr_storage *from, socklen_t len)
{
  char host[NI_MAXHOST];

  return g_strdup(
      getnameinfo((const struct sockaddr *)from, len, host, sizeof host, NULL, 0, NI_NUMERICHOST) == 0 ? host
                                                                                                       : "?");
}

static void
accept_one(DrListener *listener, int listening)
{
  struct sockaddr_storage from;
  socklen_t len = sizeof from;
  dr_autofd int fd = accept4(listening, (struct sockaddr *)&from, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
  g_autofree char *address = fd >= 0 ? address_of(&from, len) : NULL;
  New *new;

  if (fd < 0) {
    if (errno == EMFILE || errno == ENFILE)
      g_usleep(10000); /* the next one will find a descriptor, or wait in the backlog */
    return;
  }
  if (!let_in(listener, address))
    return;
  new = g_new0(New, 1);
  new->fd = dr_fd_steal(&fd);
  new->address = g_steal_pointer(&address);
  new->deadline = dr_deadline_in(HELLO_MS);
  g_thread_pool_push(listener->pool, new, NULL);
}

static gpointer
accept_all(gpointer data)
{
  DrListener *listener = data;
  struct pollfd fds[MAX_LISTENERS + 1] = { { .fd = listener->stop, .events = POLLIN } };

  for (guint i = 0; i < listener->n_fds; i++)
    fds[i + 1] = (struct pollfd){ .fd = listener->fds[i], .events = POLLIN };
  while (!fds[0].revents) {
    if (poll(fds, listener->n_fds + 1, -1) < 0) /* ended by `stop` */
      continue;
    for (guint i = 0; i < listener->n_fds; i++)
      if (fds[i + 1].revents)
        accept_one(listener, listener->fds[i]);
  }
  return NULL;
}

static int
listen_on(const struct addrinfo *address)
{
  dr_autofd int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  int one = 1;

  if (fd < 0)
    return -1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (address->ai_family == AF_INET6)
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  if (bind(fd, address->ai_addr, address->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)
    return -1;
  return dr_fd_steal(&fd);
}

static gboolean
open_sockets(DrListener *listener, GError **error)
{
  struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV },
                  *found = NULL;
  g_autofree char *service = g_strdup_printf("%u", listener->options.port);
  const char *name = listener->options.address;
  int code = getaddrinfo(name, service, &hints, &found);

  if (code)
    return dr_error_set(error, DR_ERROR_INVALID, "cannot listen on '%s': %s", name ? name : "*",
                        gai_strerror(code));
  for (struct addrinfo *one = found; one && listener->n_fds < MAX_LISTENERS; one = one->ai_next) {
    int fd = listen_on(one);

    if (fd >= 0)
      listener->fds[listener->n_fds++] = fd;
  }
  if (listener->n_fds == 0) {
    dr_error_set_errno(error, errno, "cannot listen on %s port %s", name ? name : "*", service);
    dr_error_remedy(error, "choose another address= or port= in [listen] of droverd's configuration");
  }
  freeaddrinfo(found);
  return listener->n_fds > 0;
}

DrListener *
dr_listener_new(const DrListenerOptions *options, GError **error)
{
  DrListener *listener = g_new0(DrListener, 1);

  listener->options = *options;
  listener->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  g_mutex_init(&listener->lock);
  listener->from = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  listener->tokens = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, token_free);
  if (open_sockets(listener, error))
    listener->pool = g_thread_pool_new(look_at, listener, THREADS, FALSE, error);
  if (listener->pool)
    listener->thread = g_thread_try_new("listener", accept_all, listener, error);
  if (listener->thread)
    return listener;
  dr_listener_free(listener);
  return NULL;
}

void
dr_listener_free(DrListener *listener)
{
  if (!listener)
    return;
  eventfd_write(listener->stop, 1);
  if (listener->thread)
    g_thread_join(listener->thread);
  if (listener->pool)
    g_thread_pool_free(listener->pool, FALSE, TRUE);
  for (guint i = 0; i < listener->n_fds; i++)
    close(listener->fds[i]);
  close(listener->stop);
  g_hash_table_unref(listener->from);
  g_hash_table_unref(listener->tokens);
  g_mutex_clear(&listener->lock);
  g_free(listener);
}
