/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The client's handshake of a WebSocket (RFC 6455, section 4.1); frames are api/ws.c's. By hand, because
 * libsoup's own WebSocket reads and queues without bounds (see api/ws.h) and does not give its connection
 * away. */
#include "base/error.h"
#include "cli/client.h"

#include <libsoup/soup.h>
#include <string.h>

#define HEAD_MAX 16384
#define HANDSHAKE_S 20
#define GUID "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

static char *
make_key(void)
{
  guint32 random[4];

  for (guint i = 0; i < G_N_ELEMENTS(random); i++)
    random[i] = g_random_int();
  return g_base64_encode((const guint8 *)random, sizeof random);
}

static char *
expected_accept(const char *key)
{
  g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA1);
  guint8 digest[20];
  gsize len = sizeof digest;

  g_checksum_update(sum, (const guint8 *)key, -1);
  g_checksum_update(sum, (const guint8 *)GUID, -1);
  g_checksum_get_digest(sum, digest, &len);
  return g_base64_encode(digest, len);
}

/* Reads up to the empty line, byte by byte so that no frame is swallowed: a few hundred of them, once. */
static gboolean
read_head(GInputStream *in, GString *head, GError **error)
{
  while (head->len < HEAD_MAX && !g_str_has_suffix(head->str, "\r\n\r\n")) {
    char c;
    gssize n = g_input_stream_read(in, &c, 1, NULL, error);

    if (n < 0)
      return FALSE;
    if (n == 0)
      return dr_error_set(error, DR_ERROR_CLOSED, "the connection ended");
    g_string_append_c(head, c);
  }
  return TRUE;
}

/* The answer to a handshake that was refused: a problem, which dr_client_problem() reads. */
static void
read_refusal(GInputStream *in, guint status, SoupMessageHeaders *headers, GError **error)
{
  char text[HEAD_MAX];
  gsize len = (gsize)CLAMP(soup_message_headers_get_content_length(headers), 0, (goffset)sizeof text);

  if (!g_input_stream_read_all(in, text, len, &len, NULL, NULL))
    len = 0;
  dr_client_problem(status, text, len, error);
}

static gboolean
check_answer(GInputStream *in, const GString *head, const char *key, GError **error)
{
  g_autoptr(SoupMessageHeaders) headers = soup_message_headers_new(SOUP_MESSAGE_HEADERS_RESPONSE);
  g_autofree char *accept = expected_accept(key);
  guint status = 0;

  if (!soup_headers_parse_response(head->str, (int)head->len - 2, headers, NULL, &status, NULL))
    return dr_error_set(error, DR_ERROR_INTERNAL, "droverd did not answer in HTTP");
  if (status != SOUP_STATUS_SWITCHING_PROTOCOLS) {
    read_refusal(in, status, headers, error);
    return FALSE;
  }
  if (g_strcmp0(soup_message_headers_get_one(headers, "Sec-WebSocket-Accept"), accept) != 0)
    return dr_error_set(error, DR_ERROR_INTERNAL, "droverd's WebSocket handshake is wrong");
  return TRUE;
}

GIOStream *
dr_client_websocket(DrClient *client, const char *path, GError **error)
{
  g_autoptr(GSocketConnection) connection = dr_client_connect(client, HANDSHAKE_S, error);
  g_autoptr(GError) cause = NULL;
  g_autoptr(GString) head = g_string_new(NULL);
  g_autofree char *key = make_key();
  g_autofree char *request =
      g_strdup_printf("GET %s HTTP/1.1\r\nHost: droverd\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n",
                      path, key);
  GIOStream *stream = G_IO_STREAM(connection);

  if (!stream)
    return NULL;
  if (!g_output_stream_write_all(g_io_stream_get_output_stream(stream), request, strlen(request), NULL, NULL,
                                 &cause) ||
      !read_head(g_io_stream_get_input_stream(stream), head, &cause)) {
    dr_client_transport_error(client, cause, error);
    return NULL;
  }
  if (!check_answer(g_io_stream_get_input_stream(stream), head, key, error))
    return NULL;
  g_socket_set_timeout(g_socket_connection_get_socket(connection), 0);
  return G_IO_STREAM(g_steal_pointer(&connection));
}
