/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* HTTP over the unix socket: a SoupSession stripped of what a local call does not need (proxies, TLS,
 * cookies). */
#include "cli/client.h"
#include "base/error.h"

#include <gio/gunixsocketaddress.h>
#include <libsoup/soup.h>
#include <string.h>
#include <unistd.h>

#define TIMEOUT_S 600
#define SILENCE_S 60 /* of an event stream, in which there's a comment every 15 s */
#define ANSWER_MAX (64 * 1024 * 1024)
#define SYSTEM_SOCKET "/run/drover/api.sock"

struct DrClient {
  char *path;
  guint timeout;
  SoupSession *session;
};

/* "unix:PATH", or a path as such. */
static char *
parse_connect(const char *connect, GError **error)
{
  if (g_str_has_prefix(connect, "unix:") && connect[5])
    return g_strdup(connect + 5);
  if (connect[0] == '/')
    return g_strdup(connect);
  dr_error_set(error, DR_ERROR_INVALID, "cannot connect to '%s': it is not 'unix:PATH'", connect);
  return NULL;
}

static char *
default_path(void)
{
  if (geteuid() == 0 || access(SYSTEM_SOCKET, F_OK) == 0)
    return g_strdup(SYSTEM_SOCKET);
  return g_build_filename(g_get_user_runtime_dir(), "drover", "api.sock", NULL);
}

DrClient *
dr_client_new(const char *connect, GError **error)
{
  const char *wanted = connect ? connect : g_getenv("DROVER_CONNECT");
  char *path = wanted && *wanted ? parse_connect(wanted, error) : default_path();
  DrClient *client;

  if (!path)
    return NULL;
  client = g_new0(DrClient, 1);
  client->path = path;
  client->timeout = TIMEOUT_S;
  return client;
}

void
dr_client_free(DrClient *client)
{
  if (!client)
    return;
  g_clear_object(&client->session);
  g_free(client->path);
  g_free(client);
}

const char *
dr_client_path(const DrClient *client)
{
  return client->path;
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
  address = g_unix_socket_address_new(client->path);
  client->session = soup_session_new_with_options("remote-connectable", address, "timeout", client->timeout,
                                                  "max-conns-per-host", 4, "proxy-resolver", NULL,
                                                  "tls-database", NULL, NULL);
  return client->session;
}

/* --- Errors --- */

void
dr_client_transport_error(const DrClient *client, const GError *cause, GError **error)
{
  gboolean absent = g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_NOT_FOUND) ||
                    g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_CONNECTION_REFUSED);

  if (g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_TIMED_OUT)) {
    dr_error_set(error, DR_ERROR_TIMEOUT, "droverd at '%s' did not answer within %u s", client->path,
                 client->timeout);
    dr_error_remedy(error, "what was asked may still happen: look with drover list and drover jobs");
    return;
  }
  dr_error_set(error, DR_ERROR_CLOSED, "cannot reach droverd at '%s': %s", client->path,
               absent ? "it is not running" : cause->message);
  if (absent)
    dr_error_remedy(error, "start it (droverd, as root or for your own VMs), or name "
                           "its socket with --connect unix:PATH");
  else if (g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_PERMISSION_DENIED))
    dr_error_remedy(error, "run drover as the user who runs droverd");
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

static SoupMessage *
new_message(const char *method, const char *path, JsonObject *body)
{
  g_autofree char *uri = g_strconcat("http://droverd", path, NULL);
  SoupMessage *message = soup_message_new(method, uri);

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
  g_autoptr(SoupMessage) message = new_message(method, path, body);
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

GDataInputStream *
dr_client_events(DrClient *client, const char *query, GError **error)
{
  g_autofree char *path = g_strconcat("/v1/events", query, NULL);
  g_autoptr(SoupMessage) message = new_message("GET", path, NULL);
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
