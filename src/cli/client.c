/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* HTTP over the unix socket or TLS: a SoupSession stripped of what a call of droverd does not need (proxies, cookies). */
#include "cli/client.h"
#include "base/address.h"
#include "base/error.h"
#include "cli/client-tls.h"

#include <gio/gunixsocketaddress.h>
#include <libsoup/soup.h>
#include <string.h>
#include <unistd.h>

#define TIMEOUT_S 600
#define SILENCE_S 60 /* of an event stream, in which there's a comment every 15 s */
#define ANSWER_MAX (64 * 1024 * 1024)
#define SYSTEM_SOCKET "/run/drover/api.sock"

struct DrClient {
  char *path;       /* of its socket; NULL: by TLS */
  DrClientTls *tls; /* NULL: by a socket */
  guint timeout;
  SoupSession *session;
};

/* "unix:PATH", a path as such, or "tls://HOST[:PORT]". */
static gboolean
parse_connect(DrClient *client, const char *connect, const char *pki, GError **error)
{
  if (g_str_has_prefix(connect, "tls://") && connect[6]) {
    client->tls = dr_client_tls_new(connect + 6, pki, error);
    return client->tls != NULL;
  }
  if (g_str_has_prefix(connect, "unix:") && connect[5])
    client->path = g_strdup(connect + 5);
  else if (connect[0] == '/')
    client->path = g_strdup(connect);
  return client->path ||
         dr_error_set(error, DR_ERROR_INVALID,
                      "cannot connect to '%s': it is neither 'unix:PATH' nor 'tls://HOST[:PORT]'", connect);
}

static char *
default_path(void)
{
  if (geteuid() == 0 || access(SYSTEM_SOCKET, F_OK) == 0)
    return g_strdup(SYSTEM_SOCKET);
  return g_build_filename(g_get_user_runtime_dir(), "drover", "api.sock", NULL);
}

DrClient *
dr_client_new(const char *connect, const char *pki, GError **error)
{
  const char *wanted = connect ? connect : g_getenv("DROVER_CONNECT");
  DrClient *client = g_new0(DrClient, 1);

  client->timeout = TIMEOUT_S;
  if (!wanted || !*wanted)
    client->path = default_path();
  else if (!parse_connect(client, wanted, pki, error))
    g_clear_pointer(&client, dr_client_free);
  return client;
}

void
dr_client_free(DrClient *client)
{
  if (!client)
    return;
  g_clear_object(&client->session);
  g_free(client->path);
  dr_client_tls_free(client->tls);
  g_free(client);
}

const char *
dr_client_path(const DrClient *client)
{
  return client->path;
}

static const char *
where(const DrClient *client)
{
  return client->tls ? client->tls->where : client->path;
}

GSocketConnection *
dr_client_connect(DrClient *client, guint timeout_s, GError **error)
{
  g_autoptr(GSocketClient) connector = g_socket_client_new();
  g_autoptr(GSocketConnectable) address = NULL;
  g_autoptr(GError) cause = NULL;
  GSocketConnection *connection;

  if (client->tls)
    address = g_network_address_new(client->tls->host, client->tls->port);
  else
    address = G_SOCKET_CONNECTABLE(g_unix_socket_address_new(client->path));
  g_socket_client_set_enable_proxy(connector, FALSE);
  g_socket_client_set_timeout(connector, timeout_s);
  if (client->tls)
    dr_client_tls_prepare(client->tls, connector);
  connection = g_socket_client_connect(connector, address, NULL, &cause);
  if (!connection)
    dr_client_transport_error(client, cause, error);
  return connection;
}

void
dr_client_set_timeout(DrClient *client, guint seconds)
{
  client->timeout = seconds;
  if (client->session)
    soup_session_set_timeout(client->session, seconds);
}

static SoupSession *
session(DrClient *client)
{
  g_autoptr(GSocketAddress) address = NULL;

  if (client->session)
    return client->session;
  if (client->path)
    address = g_unix_socket_address_new(client->path);
  client->session = soup_session_new_with_options(
      "remote-connectable", address, "timeout", client->timeout, "max-conns-per-host", 4, "proxy-resolver",
      NULL, "tls-database", client->tls ? client->tls->authority : NULL, NULL);
  return client->session;
}

/* --- Errors --- */

void
dr_client_transport_error(const DrClient *client, const GError *cause, GError **error)
{
  gboolean absent = g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_NOT_FOUND) ||
                    g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_CONNECTION_REFUSED);

  if (g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_TIMED_OUT)) {
    dr_error_set(error, DR_ERROR_TIMEOUT, "droverd at '%s' did not answer within %u s", where(client),
                 client->timeout);
    dr_error_remedy(error, "what was asked may still happen: look with drover list and drover jobs");
    return;
  }
  if (client->tls && dr_client_tls_explain(client->tls, cause, error))
    return;
  dr_error_set(error, DR_ERROR_CLOSED, "cannot reach droverd at '%s': %s", where(client),
               absent && client->path ? "it is not running" : cause->message);
  if (client->tls)
    dr_error_remedy(error, "see there whether droverd runs and has port= in [api] of droverd.conf");
  else if (absent)
    dr_error_remedy(error, "start it (droverd, as root or for your own VMs), or name "
                           "its socket with --connect unix:PATH");
  else if (g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_PERMISSION_DENIED))
    dr_error_remedy(error, "run drover as the user who runs droverd, or have your group named in [api] of "
                           "droverd.conf");
}

static DrErrorCode
code_of(const char *name)
{
  for (int code = DR_ERROR_INVALID; code <= DR_ERROR_INTERNAL; code++) {
    GError probe = { .domain = DR_ERROR, .code = code };

    if (g_str_equal(dr_error_code_name(&probe), name))
      return code;
  }
  return DR_ERROR_INTERNAL;
}

/* A problem of droverd's; what came may also be another server's page. */
void
dr_client_problem(guint status, const char *text, gsize len, GError **error)
{
  g_autoptr(JsonObject) problem = dr_json_parse_object(text, (gssize)len, ANSWER_MAX, NULL);
  const char *remedy;

  if (!problem || !dr_json_str(problem, "detail", NULL)) {
    dr_error_set(error, DR_ERROR_INTERNAL, "droverd answered with HTTP status %u and no explanation", status);
    return;
  }
  dr_error_set(error, code_of(dr_json_str(problem, "code", "internal")), "%s",
               dr_json_str(problem, "detail", ""));
  remedy = dr_json_str(problem, "remedy", NULL);
  if (remedy)
    dr_error_remedy(error, "%s", remedy);
}

/* --- Calls --- */

/* (transfer full) */
static char *
uri_of(const DrClient *client, const char *path)
{
  g_autofree char *address = client->tls ? dr_address_print(client->tls->host, client->tls->port) : NULL;

  return address ? g_strconcat("https://", address, path, NULL) : g_strconcat("http://droverd", path, NULL);
}

static SoupMessage *
new_message(DrClient *client, const char *method, const char *path, JsonObject *body)
{
  g_autofree char *uri = uri_of(client, path);
  SoupMessage *message = soup_message_new(method, uri);

  if (message && client->tls) {
    soup_message_set_tls_client_certificate(message, client->tls->certificate);
    g_signal_connect(message, "accept-certificate", G_CALLBACK(dr_client_tls_on_refusal), client->tls);
  }

  if (message && body) {
    char *text = dr_json_print_object(body, FALSE);
    g_autoptr(GBytes) bytes = g_bytes_new_take(text, strlen(text));

    soup_message_set_request_body_from_bytes(message, "application/json", bytes);
  }
  return message;
}

JsonNode *
dr_client_call(DrClient *client, const char *method, const char *path, JsonObject *body, GError **error)
{
  g_autoptr(SoupMessage) message = new_message(client, method, path, body);
  g_autoptr(GError) cause = NULL;
  g_autoptr(GBytes) answer = soup_session_send_and_read(session(client), message, NULL, &cause);
  const char *text;
  gsize len;

  if (!answer) {
    dr_client_transport_error(client, cause, error);
    return NULL;
  }
  text = g_bytes_get_data(answer, &len);
  if (!SOUP_STATUS_IS_SUCCESSFUL(soup_message_get_status(message))) {
    dr_client_problem(soup_message_get_status(message), text ? text : "", len, error);
    return NULL;
  }
  return len > 0 ? dr_json_parse(text, (gssize)len, ANSWER_MAX, error) : json_node_new(JSON_NODE_NULL);
}

SoupMessage *
dr_client_message(DrClient *client, const char *method, const char *target)
{
  return new_message(client, method, target, NULL);
}

GInputStream *
dr_client_send(DrClient *client, SoupMessage *message, GCancellable *cancellable, GError **error)
{
  g_autoptr(GError) cause = NULL;
  GInputStream *body = soup_session_send(session(client), message, cancellable, &cause);

  if (!body)
    dr_client_transport_error(client, cause, error);
  return body;
}

GDataInputStream *
dr_client_events(DrClient *client, const char *query, GError **error)
{
  g_autofree char *path = g_strconcat("/v1/events", query, NULL);
  g_autoptr(SoupMessage) message = new_message(client, "GET", path, NULL);
  g_autoptr(GError) cause = NULL;
  g_autoptr(GInputStream) stream = NULL;

  soup_session_set_timeout(session(client), SILENCE_S);
  stream = soup_session_send(client->session, message, NULL, &cause);
  soup_session_set_timeout(client->session, client->timeout);
  if (!stream) {
    dr_client_transport_error(client, cause, error);
    return NULL;
  }
  if (!SOUP_STATUS_IS_SUCCESSFUL(soup_message_get_status(message))) {
    char text[8192];
    gsize len = 0;

    g_input_stream_read_all(stream, text, sizeof text, &len, NULL, NULL);
    dr_client_problem(soup_message_get_status(message), text, len, error);
    return NULL;
  }
  return g_data_input_stream_new(stream);
}

JsonObject *
dr_client_next_event(GDataInputStream *events, GError **error)
{
  g_autoptr(GError) cause = NULL;
  char *line;

  while ((line = g_data_input_stream_read_line(events, NULL, NULL, &cause)) != NULL) {
    g_autofree char *owned = line;

    if (g_str_has_prefix(line, "data: "))
      return dr_json_parse_object(line + strlen("data: "), -1, ANSWER_MAX, error);
  }
  if (cause)
    dr_error_set(error, DR_ERROR_CLOSED, "lost the connection to droverd: %s", cause->message);
  return NULL;
}
