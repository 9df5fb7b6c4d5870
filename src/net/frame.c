/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Frames, and errors that travel in them. */
#include "net/frame.h"
#include "base/error.h"

#include <string.h>

#define HEAD 4

GBytes *
dr_frame_new(JsonObject *object, GError **error)
{
  g_autofree char *text = dr_json_print_object(object, FALSE);
  gsize len = strlen(text);
  guint32 size = GUINT32_TO_BE((guint32)len);
  guint8 *frame;

  if (len > DR_FRAME_MAX) {
    dr_error_set(error, DR_ERROR_INVALID, "a message of %zu bytes is too long: at most %d may go to a peer",
                 len, DR_FRAME_MAX);
    return NULL;
  }
  frame = g_malloc(HEAD + len);
  memcpy(frame, &size, HEAD);
  memcpy(frame + HEAD, text, len);
  return g_bytes_new_take(frame, HEAD + len);
}

static gboolean
closed(DrConn *conn, GError **error)
{
  return dr_error_set(error, DR_ERROR_CLOSED, "%s closed the connection", dr_conn_address(conn));
}

/* What follows the first byte. */
static gboolean
read_rest(DrConn *conn, guint8 *buffer, gsize len, DrDeadline deadline, GError **error)
{
  g_autoptr(GError) local = NULL;

  while (len > 0) {
    gssize n = dr_conn_read(conn, buffer, len, MIN(DR_STALL_MS, dr_deadline_left(deadline)), &local);

    if (n == 0)
      return dr_error_set(error, DR_ERROR_CLOSED, "%s closed the connection in the middle of a message",
                          dr_conn_address(conn));
    if (n < 0)
      return dr_error_set(error, DR_ERROR_CLOSED, "half a message came: %s", local->message);
    buffer += n;
    len -= (gsize)n;
  }
  return TRUE;
}

static gboolean
read_size(DrConn *conn, gsize max, int timeout_ms, DrDeadline deadline, gsize *ret_size, GError **error)
{
  guint8 head[HEAD];
  guint32 size;
  gssize n = dr_conn_read(conn, head, sizeof head, timeout_ms, error);

  if (n == 0)
    return closed(conn, error);
  if (n < 0 || !read_rest(conn, head + n, sizeof head - (gsize)n, deadline, error))
    return FALSE;
  memcpy(&size, head, sizeof size);
  *ret_size = GUINT32_FROM_BE(size);
  return (*ret_size > 0 && *ret_size <= max) ||
         dr_error_set(error, DR_ERROR_INVALID, "%s sent a message of %zu bytes; at most %zu are taken",
                      dr_conn_address(conn), *ret_size, max);
}

JsonObject *
dr_frame_receive(DrConn *conn, gsize max, int timeout_ms, DrDeadline deadline, GError **error)
{
  g_autofree guint8 *text = NULL;
  JsonObject *object;
  gsize size = 0;

  if (!read_size(conn, max, timeout_ms, deadline, &size, error))
    return NULL;
  text = g_malloc(size);
  if (!read_rest(conn, text, size, deadline, error))
    return NULL;
  object = dr_json_parse_object((const char *)text, (gssize)size, max, error);
  if (!object)
    g_prefix_error(error, "%s sent what is no message: ", dr_conn_address(conn));
  return object;
}

gboolean
dr_conn_send(DrConn *conn, JsonObject *object, int timeout_ms, GError **error)
{
  g_autoptr(GBytes) frame = dr_frame_new(object, error);

  return frame &&
         dr_conn_write(conn, g_bytes_get_data(frame, NULL), g_bytes_get_size(frame), timeout_ms, error);
}

JsonObject *
dr_conn_receive(DrConn *conn, int timeout_ms, GError **error)
{
  return dr_frame_receive(conn, DR_FRAME_MAX, timeout_ms, dr_deadline_in((gint64)timeout_ms + DR_FRAME_MS),
                          error);
}

/* --- Errors --- */

JsonObject *
dr_error_to_json(const GError *error)
{
  const char *remedy = dr_error_get_remedy(error);
  JsonObject *inner = dr_json("{'code': <%s>, 'message': <%s>}", dr_error_code_name(error), error->message);
  JsonObject *object = json_object_new();

  if (remedy)
    json_object_set_string_member(inner, "remedy", remedy);
  json_object_set_object_member(object, "error", inner);
  return object;
}

gboolean
dr_error_from_json(JsonObject *object, GError **error)
{
  const char *remedy = dr_json_str(object, "error.remedy", NULL);

  dr_error_set(error, dr_error_code_from_name(dr_json_str(object, "error.code", "")), "%s",
               dr_json_str(object, "error.message", "the other droverd refuses, and does not say why"));
  return remedy ? dr_error_remedy(error, "%s", remedy) : FALSE;
}
