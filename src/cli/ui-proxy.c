/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover ui's server: a thread a connection, one request each. */
#include "cli/ui-proxy.h"
#include "base/error.h"
#include "cli/ui-answer.h"
#include "cli/ui-gate.h"

#include <glib-unix.h>
#include <poll.h>
#include <string.h>

#define CONNECTIONS 32 /* a browser opens six of them; more wait in the kernel's queue */
#define CHUNK (64 * 1024)
#define WRITE_S 60 /* in which the browser takes nothing */
#define END_MS 2000

struct DrUiProxy {
  const DrCli *cli;
  guint port;
  DrUiGate *gate;
  GSocketService *service;
  GMutex lock;
  GCond idle;
  GHashTable *busy; /* set of the connections' GCancellables */
  gboolean stopping;
};

/* --- To droverd and back --- */

/* What belongs to one connection, and is not handed on. */
static gboolean
is_of_the_connection(const char *name)
{
  static const char *const names[] = { "Connection", "Keep-Alive", "Transfer-Encoding",
                                       "Upgrade",    "Trailer",    "Set-Cookie",
                                       "Date",       "Server",     NULL };

  for (guint i = 0; names[i]; i++)
    if (g_ascii_strcasecmp(name, names[i]) == 0)
      return TRUE;
  return FALSE;
}

static void
add_header(const char *name, const char *value, gpointer head)
{
  if (!is_of_the_connection(name))
    g_string_append_printf(head, "%s: %s\r\n", name, value);
}

static void
add_if_absent(GString *head, SoupMessageHeaders *headers, const char *name, const char *value)
{
  if (!soup_message_headers_get_one(headers, name))
    add_header(name, value, head);
}

static GString *
answer_head(SoupMessage *message)
{
  SoupMessageHeaders *headers = soup_message_get_response_headers(message);
  GString *head = g_string_new(NULL);

  g_string_printf(head, "HTTP/1.1 %u %s\r\nConnection: close\r\n", soup_message_get_status(message),
                  soup_status_get_phrase(soup_message_get_status(message)));
  soup_message_headers_foreach(headers, add_header, head);
  add_if_absent(head, headers, "Cache-Control", "no-store");
  add_if_absent(head, headers, "X-Content-Type-Options", "nosniff");
  add_if_absent(head, headers, "Cross-Origin-Resource-Policy", "same-origin");
  g_string_append(head, "\r\n");
  return head;
}

/* A body that ends too soon, on either side, ends the connection: the browser sees that by the length that was said. */
static gboolean
pass_on(SoupMessage *message, GInputStream *in, GOutputStream *out, GCancellable *cancellable, GError **error)
{
  g_autoptr(GString) head = answer_head(message);
  g_autofree char *chunk = g_malloc(CHUNK);
  gssize n;

  if (!g_output_stream_write_all(out, head->str, head->len, NULL, cancellable, error))
    return FALSE;
  while ((n = g_input_stream_read(in, chunk, CHUNK, cancellable, error)) > 0)
    if (!g_output_stream_write_all(out, chunk, (gsize)n, NULL, cancellable, error))
      return FALSE;
  return n == 0;
}

/* The browser's own headers stay with it, but for what droverd looks at. */
static SoupMessage *
new_message(DrClient *client, const DrUiRequest *request)
{
  static const char *const names[] = { "Accept", "Content-Type", "If-None-Match", NULL };
  g_autofree char *target =
      request->query ? g_strconcat(request->path, "?", request->query, NULL) : g_strdup(request->path);
  SoupMessage *message = dr_client_message(client, request->method, target);

  for (guint i = 0; message && names[i]; i++)
    if (dr_ui_request_header(request, names[i]))
      soup_message_headers_replace(soup_message_get_request_headers(message), names[i],
                                   dr_ui_request_header(request, names[i]));
  if (message && request->body)
    soup_message_set_request_body_from_bytes(message, dr_ui_request_header(request, "Content-Type"),
                                             request->body);
  return message;
}

static gboolean
forward(const DrUiProxy *proxy, const DrUiRequest *request, GOutputStream *out, GCancellable *cancellable,
        GError **error)
{
  g_autoptr(GError) cause = NULL;
  DrClient *client = dr_cli_new_client(proxy->cli, &cause);
  g_autoptr(SoupMessage) message = client ? new_message(client, request) : NULL;
  g_autoptr(GInputStream) in = NULL;
  gboolean done;

  if (client && !message)
    dr_error_set(&cause, DR_ERROR_INVALID, "'%.200s' is not a path", request->path);
  else if (client)
    in = dr_client_send(client, message, cancellable, &cause);
  done = in ? pass_on(message, in, out, cancellable, error) : dr_ui_answer_error(out, request, cause, error);
  g_clear_object(&in);
  dr_client_free(client);
  return done;
}

/* --- A connection --- */

static gboolean
answer(DrUiProxy *proxy, const DrUiRequest *request, GOutputStream *out, GCancellable *cancellable,
       GError **error)
{
  g_autoptr(GError) why = NULL;
  g_autofree char *cookie = NULL;

  switch (dr_ui_gate_check(proxy->gate, request, &why)) {
  case DR_UI_TOKEN:
    cookie = dr_ui_gate_cookie(proxy->gate);
    return dr_ui_answer_enter(out, cookie, "/ui/", error);
  case DR_UI_HOME:
    return dr_ui_answer_redirect(out, "/ui/", error);
  case DR_UI_FORWARD:
    return forward(proxy, request, out, cancellable, error);
  case DR_UI_REFUSED:
    break;
  }
  return dr_ui_answer_error(out, request, why, error);
}

static void
serve(DrUiProxy *proxy, GSocketConnection *connection, GCancellable *cancellable)
{
  GOutputStream *out = g_io_stream_get_output_stream(G_IO_STREAM(connection));
  g_autoptr(GError) error = NULL;
  g_autoptr(DrUiRequest) request = dr_ui_request_read(connection, &error);
  gboolean empty = g_error_matches(error, DR_ERROR, DR_ERROR_CLOSED);

  g_socket_set_timeout(g_socket_connection_get_socket(connection), WRITE_S);
  if (empty) /* a browser opens connections ahead of its needs */
    return;
  if (error)
    dr_ui_answer_error(out, NULL, error, NULL);
  else if (!answer(proxy, request, out, cancellable, &error))
    g_debug("%s %s: %s", request->method, request->path, error ? error->message : "?");
}

static gboolean
on_hang_up(int fd, GIOCondition condition, gpointer cancellable)
{
  g_cancellable_cancel(cancellable);
  return G_SOURCE_REMOVE;
}

/* A browser that goes away in the middle of an event stream would else be noticed at the next event only. POLLRDHUP, because of a
 * TCP connection that the other end has closed there is no POLLHUP while this end is open. */
static GSource *
watch(GSocketConnection *connection, GCancellable *cancellable)
{
  int fd = g_socket_get_fd(g_socket_connection_get_socket(connection));
  GSource *source = g_unix_fd_source_new(fd, (GIOCondition)(POLLRDHUP | POLLHUP));

  g_source_set_callback(source, G_SOURCE_FUNC(on_hang_up), g_object_ref(cancellable), g_object_unref);
  g_source_attach(source, NULL);
  return source;
}

static gboolean
begin(DrUiProxy *proxy, GCancellable *cancellable)
{
  gboolean may;

  g_mutex_lock(&proxy->lock);
  may = !proxy->stopping;
  if (may)
    g_hash_table_add(proxy->busy, cancellable);
  g_mutex_unlock(&proxy->lock);
  return may;
}

static void
end(DrUiProxy *proxy, GCancellable *cancellable)
{
  g_mutex_lock(&proxy->lock);
  g_hash_table_remove(proxy->busy, cancellable);
  g_cond_signal(&proxy->idle);
  g_mutex_unlock(&proxy->lock);
}

/* On a thread of the service's. libsoup's session belongs to the context of the thread that made it, so there is one. */
static gboolean
on_run(GThreadedSocketService *service, GSocketConnection *connection, GObject *source, gpointer data)
{
  DrUiProxy *proxy = data;
  g_autoptr(GCancellable) cancellable = g_cancellable_new();
  g_autoptr(GMainContext) context = g_main_context_new();
  GSource *hang_up;

  if (!begin(proxy, cancellable))
    return TRUE;
  g_main_context_push_thread_default(context);
  hang_up = watch(connection, cancellable);
  serve(proxy, connection, cancellable);
  g_source_destroy(hang_up);
  g_source_unref(hang_up);
  g_io_stream_close(G_IO_STREAM(connection), NULL, NULL);
  g_main_context_pop_thread_default(context);
  end(proxy, cancellable);
  return TRUE;
}

/* --- The whole --- */

static gboolean
listen_on(DrUiProxy *proxy, guint port, GError **error)
{
  g_autoptr(GSocketAddress) wanted = g_inet_socket_address_new_from_string("127.0.0.1", port);
  g_autoptr(GSocketAddress) address = NULL;
  g_autoptr(GError) cause = NULL;

  if (!g_socket_listener_add_address(G_SOCKET_LISTENER(proxy->service), wanted, G_SOCKET_TYPE_STREAM,
                                     G_SOCKET_PROTOCOL_TCP, NULL, &address, &cause)) {
    gboolean taken = g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_ADDRESS_IN_USE);

    dr_error_set(error, taken ? DR_ERROR_EXISTS : DR_ERROR_IO, "cannot listen on 127.0.0.1, port %u: %s",
                 port, taken ? "it is in use" : cause->message);
    return taken ? dr_error_remedy(error, "name another one with --port, or none: then a free one is taken")
                 : FALSE;
  }
  proxy->port = g_inet_socket_address_get_port(G_INET_SOCKET_ADDRESS(address));
  return TRUE;
}

DrUiProxy *
dr_ui_proxy_new(const DrCli *cli, guint port, GError **error)
{
  g_autoptr(DrUiProxy) proxy = g_new0(DrUiProxy, 1);

  g_mutex_init(&proxy->lock);
  g_cond_init(&proxy->idle);
  proxy->cli = cli;
  proxy->busy = g_hash_table_new(NULL, NULL);
  proxy->service = g_threaded_socket_service_new(CONNECTIONS);
  if (!listen_on(proxy, port, error))
    return NULL;
  proxy->gate = dr_ui_gate_new(proxy->port);
  g_signal_connect(proxy->service, "run", G_CALLBACK(on_run), proxy);
  g_socket_service_start(proxy->service);
  return g_steal_pointer(&proxy);
}

guint
dr_ui_proxy_port(const DrUiProxy *proxy)
{
  return proxy->port;
}

const char *
dr_ui_proxy_url(const DrUiProxy *proxy)
{
  return dr_ui_gate_url(proxy->gate);
}

static void
end_connections(DrUiProxy *proxy)
{
  gint64 until = g_get_monotonic_time() + END_MS * 1000;
  GHashTableIter iter;
  gpointer one;

  g_mutex_lock(&proxy->lock);
  proxy->stopping = TRUE;
  g_hash_table_iter_init(&iter, proxy->busy);
  while (g_hash_table_iter_next(&iter, &one, NULL))
    g_cancellable_cancel(one);
  while (g_hash_table_size(proxy->busy) > 0 && g_cond_wait_until(&proxy->idle, &proxy->lock, until))
    continue;
  g_mutex_unlock(&proxy->lock);
}

void
dr_ui_proxy_free(DrUiProxy *proxy)
{
  if (!proxy)
    return;
  g_socket_service_stop(proxy->service);
  g_socket_listener_close(G_SOCKET_LISTENER(proxy->service));
  /* Not freed: a connection that was taken in the last moment may not have got to its thread yet, and one may hang. The process ends. */
  end_connections(proxy);
}
