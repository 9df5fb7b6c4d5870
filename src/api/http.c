/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The server: accepts connections within limits, reads requests within limits, hands them to routes.c.
 *
 * drover accepts the connections and gives them to libsoup one by one, because libsoup 3.2 has none of the
 * limits that are needed here (number of connections, time, size of a body), and because an HTTP/1.0
 * request without a Host makes it take the local address for an internet address: it is given one. The
 * remote address is an object of its own for each connection, by which a message's connection is found
 * again. */
#include "api/call.h"
#include "api/listen.h"
#include "api/problem.h"
#include "base/error.h"

#include <string.h>
#include <unistd.h>

#define SURPLUS 8                      /* connections that are told 503; more wait in the kernel's queue */
#define DISCARD_MAX (32 * 1024 * 1024) /* what a client may still send after it was refused */
#define AT_A_TIME 64                   /* accepted before others get their turn */
#define WORKERS 64 /* at least as many as connections: a wait must not hold up a request */
#define RETRY_MS 1000

const DrApiLimits dr_api_limits = {
  .body = 1024 * 1024,
  .connections = 64,
  .streams = 32,
  .request_ms = 30000,
  .handshake_ms = 10000,
  .idle_s = 60,
  .comment_ms = 15000,
};

static void accept_start(DrApi *api);

/* --- One request: limits while it is read --- */

DrConnection *
dr_connection_of(SoupServerMessage *message)
{
  return g_object_get_data(G_OBJECT(soup_server_message_get_remote_address(message)), "drover");
}

GSource *
dr_connection_watch(DrConnection *connection, GUnixFDSourceFunc hung_up, gpointer data)
{
  GSource *source = g_unix_fd_source_new(g_socket_get_fd(connection->socket), G_IO_HUP);

  g_source_set_callback(source, G_SOURCE_FUNC(hung_up), data, NULL);
  g_source_attach(source, connection->api->context);
  return source;
}

static gboolean
on_deadline(gpointer data)
{
  DrConnection *connection = data;

  dr_source_clear(&connection->deadline);
  /* libsoup sees the end of the stream and cleans up. */
  g_socket_shutdown(connection->socket, TRUE, TRUE, NULL);
  return G_SOURCE_REMOVE;
}

/* One request a connection: libsoup keeps one open only for listeners of its own. */
static void
say_close(SoupServerMessage *message)
{
  soup_message_headers_replace(soup_server_message_get_response_headers(message), "Connection", "close");
}

static void
refuse_body(SoupServerMessage *message, DrConnection *connection)
{
  g_clear_pointer(&connection->body, g_byte_array_unref);
  dr_problem_answer_status(message, SOUP_STATUS_REQUEST_ENTITY_TOO_LARGE, "invalid", NULL,
                           "the body is larger than the limit of %zu bytes", connection->api->limits.body);
  say_close(message);
}

/* libsoup reads a request to its end before it answers, so what comes after the limit is read and dropped:
 * the client gets its 413 when it has sent all, or is cut off. */
static void
on_got_chunk(SoupServerMessage *message, GBytes *chunk, gpointer unused)
{
  DrConnection *connection = dr_connection_of(message);
  gsize len;
  const guint8 *data = g_bytes_get_data(chunk, &len);

  if (!connection->body) {
    connection->discarded += len;
    if (connection->discarded > DISCARD_MAX)
      g_socket_shutdown(connection->socket, TRUE, TRUE, NULL);
  } else if (connection->body->len + len > connection->api->limits.body) {
    refuse_body(message, connection);
  } else {
    g_byte_array_append(connection->body, data, len);
  }
}

/* The first one of a connection starts when it is accepted, a later one with its first byte. */
static void
on_request_started(SoupServer *server, SoupServerMessage *message, gpointer unused)
{
  DrConnection *connection = dr_connection_of(message);

  soup_message_body_set_accumulate(soup_server_message_get_request_body(message), FALSE);
  g_signal_connect(message, "got-chunk", G_CALLBACK(on_got_chunk), NULL);
  g_clear_pointer(&connection->body, g_byte_array_unref);
  connection->body = g_byte_array_new();
  connection->discarded = 0;
  dr_source_clear(&connection->deadline);
  connection->deadline = g_timeout_source_new(connection->api->limits.request_ms);
  g_source_set_callback(connection->deadline, on_deadline, connection, NULL);
  g_source_attach(connection->deadline, connection->api->context);
}

static void
on_request_read(SoupServer *server, SoupServerMessage *message, gpointer unused)
{
  say_close(message);
  dr_source_clear(&dr_connection_of(message)->deadline);
}

static void
refuse_stranger(SoupServerMessage *message, DrConnection *connection)
{
  g_autoptr(GError) error = NULL;

  g_clear_pointer(&connection->body, g_byte_array_unref);
  dr_access_deny(&connection->api->access, connection->rights, connection->who, connection->by_tls, &error);
  dr_problem_answer(message, error);
}

/* With the headers: what needs no body to be refused. */
static void
on_headers(SoupServer *server, SoupServerMessage *message, const char *path, GHashTable *query, gpointer data)
{
  DrApi *api = data;
  DrConnection *connection = dr_connection_of(message);
  SoupMessageHeaders *headers = soup_server_message_get_request_headers(message);

  /* libsoup would cut a range out of an answer, which nobody needs of JSON. */
  soup_message_headers_remove(headers, "Range");
  if (soup_message_headers_get_content_length(headers) < 0) {
    /* libsoup would take such a length for a body's. */
    g_object_unref(soup_server_message_steal_connection(message));
  } else if (connection->rights == DR_RIGHTS_NONE) {
    refuse_stranger(message, connection);
  } else if (connection->surplus) {
    g_clear_pointer(&connection->body, g_byte_array_unref);
    dr_problem_answer_status(message, SOUP_STATUS_SERVICE_UNAVAILABLE, "busy",
                             "try again when other clients have ended",
                             "droverd has %u clients, which is its limit", api->limits.connections);
  } else if (soup_message_headers_get_encoding(headers) == SOUP_ENCODING_CONTENT_LENGTH &&
             soup_message_headers_get_content_length(headers) > (goffset)api->limits.body) {
    refuse_body(message, connection);
  }
}

static void
on_request(SoupServer *server, SoupServerMessage *message, const char *path, GHashTable *query, gpointer data)
{
  dr_routes_handle(data, message, query, dr_connection_of(message)->body);
}

/* --- Connections --- */

static void
connection_clear(DrConnection *connection)
{
  dr_source_clear(&connection->deadline);
  g_clear_pointer(&connection->body, g_byte_array_unref);
  g_clear_object(&connection->socket);
  g_free(connection->who);
}

static void
connection_unref(gpointer connection)
{
  g_rc_box_release_full(connection, (GDestroyNotify)connection_clear);
}

/* libsoup, or a pump, has let go of the stream. */
static void
on_stream_gone(gpointer data, GObject *stream)
{
  DrConnection *connection = data;
  DrApi *api = connection->api;

  dr_source_clear(&connection->deadline);
  if (api) {
    api->connections--;
    api->of_rights[connection->rights]--;
    g_hash_table_remove(api->clients, connection);
    accept_start(api);
  }
  connection_unref(connection);
}

/* Who may not do everything must not keep out who may: strangers get an eighth of the connections, readers half of them. *ret_surplus:
 * it is one too many, and told so. FALSE: it is closed. */
static gboolean
admit(DrApi *api, DrRights rights, gboolean *ret_surplus)
{
  guint max = api->limits.connections, n = ++api->of_rights[rights];

  api->connections++;
  *ret_surplus = api->connections > max || (rights == DR_RIGHTS_READ && n > MAX(max / 2, 1));
  if (api->connections <= max + SURPLUS && !(rights == DR_RIGHTS_READ && n > MAX(max / 2, 1) + SURPLUS / 2) &&
      !(rights == DR_RIGHTS_NONE && n > MAX(max / 8, 1)))
    return TRUE;
  api->connections--;
  api->of_rights[rights]--;
  return FALSE;
}

/* `who` (nullable) is taken over. */
static void
connection_start(DrApi *api, GSocket *socket, DrRights rights, char *who, gboolean by_tls, gboolean surplus)
{
  DrConnection *connection = g_rc_box_new0(DrConnection);
  g_autoptr(GSocketConnection) stream = g_socket_connection_factory_create_connection(socket);
  g_autoptr(GSocketAddress) local = g_inet_socket_address_new_from_string("127.0.0.1", 80);
  g_autoptr(GSocketAddress) remote = g_inet_socket_address_new_from_string("127.0.0.1", 0);

  connection->api = api;
  connection->socket = g_object_ref(socket);
  connection->surplus = surplus;
  connection->rights = rights;
  connection->who = who;
  connection->by_tls = by_tls;
  g_hash_table_add(api->clients, connection);
  g_socket_set_timeout(socket, api->limits.idle_s);
  g_object_set_data_full(G_OBJECT(remote), "drover", g_rc_box_acquire(connection), connection_unref);
  g_object_weak_ref(G_OBJECT(stream), on_stream_gone, connection);
  soup_server_accept_iostream(api->server, G_IO_STREAM(stream), local, remote, NULL);
}

static gboolean
on_retry(gpointer data)
{
  DrApi *api = data;

  dr_source_clear(&api->retry);
  accept_start(api);
  return G_SOURCE_REMOVE;
}

/* Out of descriptors or memory: the connection waits in the kernel's queue, and the loop must not spin on
 * it. */
static void
retry_later(DrApi *api, const GError *error)
{
  g_warning("cannot accept a connection on '%s': %s", api->path, error->message);
  dr_source_clear(&api->accept);
  api->retry = g_timeout_source_new(RETRY_MS);
  g_source_set_callback(api->retry, on_retry, api, NULL);
  g_source_attach(api->retry, api->context);
}

static void
take_local(DrApi *api, GSocket *socket)
{
  char *who = NULL;
  DrRights rights = dr_access_of_socket(&api->access, g_socket_get_fd(socket), &who);
  gboolean surplus;

  if (admit(api, rights, &surplus))
    connection_start(api, socket, rights, who, /* by_tls= */ FALSE, surplus);
  else
    g_free(who);
}

/* The gate's. */
static void
take_remote(int fd, const char *const *names, gpointer data)
{
  DrApi *api = data;
  DrRights rights = dr_access_of_names(&api->access, names);
  g_autoptr(GSocket) socket = g_socket_new_from_fd(fd, NULL);
  gboolean surplus;

  if (!socket)
    close(fd);
  else if (admit(api, rights, &surplus))
    connection_start(api, socket, rights, g_strdup_printf("'%s'", names[0]), /* by_tls= */ TRUE, surplus);
}

static gboolean
on_accept(GSocket *listener, GIOCondition condition, gpointer data)
{
  DrApi *api = data;

  for (guint i = 0; api->connections < api->limits.connections + SURPLUS; i++) {
    g_autoptr(GError) error = NULL;
    g_autoptr(GSocket) socket = i < AT_A_TIME ? g_socket_accept(listener, NULL, &error) : NULL;

    if (i == AT_A_TIME)
      return G_SOURCE_CONTINUE;
    if (socket) {
      take_local(api, socket);
      continue;
    }
    if (!g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
      retry_later(api, error);
    return G_SOURCE_CONTINUE;
  }
  dr_source_clear(&api->accept);
  return G_SOURCE_REMOVE;
}

static void
accept_start(DrApi *api)
{
  if (api->accept || api->retry || !api->listener || api->connections >= api->limits.connections + SURPLUS)
    return;
  api->accept = g_socket_create_source(api->listener, G_IO_IN, NULL);
  g_source_set_callback(api->accept, G_SOURCE_FUNC(on_accept), api, NULL);
  g_source_attach(api->accept, api->context);
}

/* --- The whole --- */

static void
server_start(DrApi *api)
{
  api->server = soup_server_new("raw-paths", TRUE, NULL);
  g_signal_connect(api->server, "request-started", G_CALLBACK(on_request_started), NULL);
  g_signal_connect(api->server, "request-read", G_CALLBACK(on_request_read), NULL);
  soup_server_add_early_handler(api->server, NULL, on_headers, api, NULL);
  soup_server_add_handler(api->server, NULL, on_request, api, NULL);
}

static guint
rank_of(const char *const *names, gpointer data)
{
  const DrApi *api = data; /* its rules do not change any more */

  return dr_access_of_names(&api->access, names);
}

/* With groups everybody can connect, and is told where that is not enough: a socket has one group, and two are to be let in. */
static gboolean
listen_all(DrApi *api, const DrApiAccess *access, GError **error)
{
  DrGateOptions gate = {
    .handshake_ms = (int)api->limits.handshake_ms,
    .idle_s = api->limits.idle_s,
    .max = 2 * api->limits.connections,
    .take = take_remote,
    .rank = rank_of,
    .data = api,
  };

  if (access && access->tcp) {
    gate.address = access->address;
    gate.port = access->port;
    gate.tls = access->tls;
    api->gate = dr_gate_new(&gate, error);
    if (!api->gate)
      return FALSE;
  }
  api->listener = dr_listen(api->path, api->access.by_group ? 0666 : 0600, error);
  return api->listener != NULL;
}

DrApi *
dr_api_new_with_limits(DrService *service, DrEvents *events, const char *socket_path,
                       const DrApiAccess *access, const DrApiLimits *limits, GError **error)
{
  DrApi *api = g_new0(DrApi, 1);

  api->service = service;
  api->events = events;
  api->limits = *limits;
  api->context = g_main_context_ref_thread_default();
  api->path = g_strdup(socket_path);
  api->calls = g_hash_table_new(NULL, NULL);
  api->clients = g_hash_table_new(NULL, NULL);
  api->streams = g_hash_table_new(NULL, NULL);
  api->consoles = g_hash_table_new(NULL, NULL);
  api->workers = g_thread_pool_new(dr_call_work, api, WORKERS, FALSE, NULL);
  server_start(api);
  if (!dr_access_init(&api->access, access, error) || !listen_all(api, access, error)) {
    dr_api_free(api);
    return NULL;
  }
  accept_start(api);
  return api;
}

DrApi *
dr_api_new(DrService *service, DrEvents *events, const char *socket_path, const DrApiAccess *access,
           GError **error)
{
  return dr_api_new_with_limits(service, events, socket_path, access, &dr_api_limits, error);
}

guint
dr_api_port(DrApi *api)
{
  return api->gate ? dr_gate_port(api->gate) : 0;
}

/* Frees every member of a set whose free function takes the member out of the set. */
static void
free_all(GHashTable *set, GDestroyNotify free_one)
{
  GHashTableIter iter;
  gpointer one;

  while (g_hash_table_iter_init(&iter, set), g_hash_table_iter_next(&iter, &one, NULL))
    free_one(one);
  g_hash_table_unref(set);
}

static void
disown_clients(DrApi *api)
{
  GHashTableIter iter;
  gpointer connection;

  g_hash_table_iter_init(&iter, api->clients);
  while (g_hash_table_iter_next(&iter, &connection, NULL))
    ((DrConnection *)connection)->api = NULL;
  g_hash_table_unref(api->clients);
}

void
dr_api_free(DrApi *api)
{
  if (!api)
    return;
  dr_source_clear(&api->accept);
  dr_source_clear(&api->retry);
  if (api->listener) /* else the socket is somebody else's */
    dr_listen_end(g_steal_pointer(&api->listener), api->path);
  g_atomic_int_set(&api->stopping, TRUE);
  soup_server_disconnect(api->server);
  g_thread_pool_free(api->workers, TRUE, TRUE);
  free_all(api->calls, (GDestroyNotify)dr_call_free);
  free_all(api->streams, (GDestroyNotify)dr_stream_free);
  free_all(api->consoles, (GDestroyNotify)dr_console_link_free);
  dr_gate_free(api->gate); /* what the server answered last has been handed to it */
  disown_clients(api);
  g_object_unref(api->server);
  g_main_context_unref(api->context);
  dr_access_clear(&api->access);
  g_free(api->path);
  g_free(api);
}
