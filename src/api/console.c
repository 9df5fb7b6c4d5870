/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* GET /v1/vms/NAME/console: a WebSocket to the socket that the service gives. */
#include "api/call.h"
#include "api/problem.h"
#include "api/pump.h"
#include "base/fd.h"

#define LINGER_MS 2000
#define UPGRADE_REQUIRED 426 /* libsoup 3.2 has no name for it */

/* Between the answer and the moment when libsoup has written it. */
typedef struct {
  DrApi *api;
  int fd;
} Pending;

struct DrConsoleLink {
  DrApi *api;
  int fd;
  DrPump *pump;
};

void
dr_console_link_free(DrConsoleLink *link)
{
  g_hash_table_remove(link->api->consoles, link);
  dr_pump_free(link->pump);
  dr_fd_cleanup(&link->fd);
  g_free(link);
}

static void
pending_free(gpointer data, GClosure *closure)
{
  Pending *pending = data;

  dr_fd_cleanup(&pending->fd);
  g_free(pending);
}

static void
on_ended(gpointer data, DrPumpEnd end, const char *text)
{
  dr_console_link_free(data);
}

/* The 101 is out: the connection is ours. */
static void
on_switched(SoupServerMessage *message, gpointer data)
{
  Pending *pending = data;
  DrConsoleLink *link = g_new0(DrConsoleLink, 1);
  g_autoptr(GIOStream) stream = NULL;

  /* A console may be silent for days. */
  g_socket_set_timeout(dr_connection_of(message)->socket, 0);
  stream = soup_server_message_steal_connection(message);
  link->api = pending->api;
  link->fd = dr_fd_steal(&pending->fd);
  g_hash_table_add(link->api->consoles, link);
  link->pump = dr_pump_new(&(DrPumpSetup){
      .stream = stream,
      .in_fd = link->fd,
      .out_fd = link->fd,
      .goodbye = "the VM has ended",
      .linger_ms = LINGER_MS,
      .ended = on_ended,
      .data = link,
  });
}

gboolean
dr_console_work(DrCall *call, GError **error)
{
  call->fd = dr_service_console(call->api->service, call->name, error);
  return call->fd >= 0;
}

void
dr_console_answer(DrCall *call)
{
  SoupServerMessage *message = call->message;
  g_autoptr(GError) error = NULL;
  Pending *pending;

  /* No extensions: compressing would need a buffer a client, for a console's few bytes. */
  soup_message_headers_remove(soup_server_message_get_request_headers(message), "Sec-WebSocket-Extensions");
  if (!soup_websocket_server_check_handshake(message, NULL, NULL, NULL, &error)) {
    dr_problem_answer_status(message, UPGRADE_REQUIRED, "invalid", "use: drover console",
                             "the console is a WebSocket: %s", error->message);
    soup_message_headers_replace(soup_server_message_get_response_headers(message), "Upgrade", "websocket");
    return;
  }
  soup_message_headers_remove(soup_server_message_get_response_headers(message), "Connection");
  soup_websocket_server_process_handshake(message, NULL, NULL, NULL, NULL);
  pending = g_new0(Pending, 1);
  pending->api = call->api;
  pending->fd = dr_fd_steal(&call->fd);
  g_signal_connect_data(message, "wrote-informational", G_CALLBACK(on_switched), pending, pending_free, 0);
}
