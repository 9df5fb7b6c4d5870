/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reads a request: a head of bounded size, then a body of a length that was said before. */
#include "cli/ui-request.h"
#include "base/deadline.h"
#include "base/error.h"

#include <string.h>

#define READ_MS 20000
#define HEAD_MAX (32 * 1024)
#define BODY_MAX (1024 * 1024) /* as droverd's own */

void
dr_ui_request_free(DrUiRequest *request)
{
  if (!request)
    return;
  g_free(request->method);
  g_free(request->path);
  g_free(request->query);
  g_clear_pointer(&request->headers, soup_message_headers_unref);
  g_clear_pointer(&request->body, g_bytes_unref);
  g_free(request);
}

const char *
dr_ui_request_header(const DrUiRequest *request, const char *name)
{
  return soup_message_headers_get_list(request->headers, name);
}

/* Appends what has come, at most `max`. The socket's timeout is what is left of the whole request's time. */
static gboolean
read_more(GSocketConnection *connection, DrDeadline deadline, GByteArray *data, gsize max, GError **error)
{
  guint8 chunk[8192];
  g_autoptr(GError) cause = NULL;
  gssize n;

  if (dr_deadline_passed(deadline))
    return dr_error_set(error, DR_ERROR_TIMEOUT, "the request did not come to its end in time");
  g_socket_set_timeout(g_socket_connection_get_socket(connection),
                       (guint)dr_deadline_left(deadline) / 1000 + 1);
  n = g_input_stream_read(g_io_stream_get_input_stream(G_IO_STREAM(connection)), chunk,
                          MIN(max, sizeof chunk), NULL, &cause);
  if (n <= 0)
    return dr_error_set(error, DR_ERROR_CLOSED, "the request was cut off: %s",
                        cause ? cause->message : "its end");
  g_byte_array_append(data, chunk, (guint)n);
  return TRUE;
}

/* The length of the head with its empty line, or 0. */
static gsize
head_length(const GByteArray *data)
{
  const guint8 *end = data->len ? memmem(data->data, data->len, "\r\n\r\n", 4) : NULL;

  return end ? (gsize)(end - data->data) + 4 : 0;
}

static gboolean
parse_head(DrUiRequest *request, const char *head, gsize len, GError **error)
{
  g_autofree char *target = NULL;
  SoupHTTPVersion version;
  char *query;

  request->headers = soup_message_headers_new(SOUP_MESSAGE_HEADERS_REQUEST);
  if (memchr(head, '\0', len) ||
      soup_headers_parse_request(head, (int)len, request->headers, &request->method, &target, &version) !=
          SOUP_STATUS_OK)
    return dr_error_set(error, DR_ERROR_INVALID, "this is no HTTP request");
  if (target[0] != '/')
    return dr_error_set(error, DR_ERROR_INVALID, "'%.100s' is not a path", target);
  query = strchr(target, '?');
  request->query = query ? g_strdup(query + 1) : NULL;
  request->path = g_strndup(target, query ? (gsize)(query - target) : strlen(target));
  return TRUE;
}

static gboolean
body_length(const DrUiRequest *request, guint64 *ret_length, GError **error)
{
  const char *text = dr_ui_request_header(request, "Content-Length");

  *ret_length = 0;
  if (dr_ui_request_header(request, "Transfer-Encoding"))
    return dr_error_set(error, DR_ERROR_INVALID, "a body needs its length (Content-Length)");
  if (text && !g_ascii_string_to_unsigned(text, 10, 0, BODY_MAX, ret_length, NULL))
    return dr_error_set(error, DR_ERROR_INVALID, "a body's length is at most %d bytes, not '%.40s'", BODY_MAX,
                        text);
  return TRUE;
}

static gboolean
read_body(DrUiRequest *request, GSocketConnection *connection, DrDeadline deadline, GByteArray *data,
          gsize head, GError **error)
{
  guint64 length;

  if (!body_length(request, &length, error))
    return FALSE;
  while (data->len < head + length)
    if (!read_more(connection, deadline, data, head + length - data->len, error))
      return FALSE;
  if (length > 0)
    request->body = g_bytes_new(data->data + head, length);
  return TRUE;
}

DrUiRequest *
dr_ui_request_read(GSocketConnection *connection, GError **error)
{
  DrDeadline deadline = dr_deadline_in(READ_MS);
  g_autoptr(GByteArray) data = g_byte_array_new();
  g_autoptr(DrUiRequest) request = g_new0(DrUiRequest, 1);
  gsize head;

  while ((head = head_length(data)) == 0) {
    if (data->len >= HEAD_MAX) {
      dr_error_set(error, DR_ERROR_INVALID, "the head of a request has at most %d bytes", HEAD_MAX);
      return NULL;
    }
    if (!read_more(connection, deadline, data, HEAD_MAX - data->len, error))
      return NULL;
  }
  if (!parse_head(request, (const char *)data->data, head, error) ||
      !read_body(request, connection, deadline, data, head, error))
    return NULL;
  return g_steal_pointer(&request);
}
