/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* WebSocket frames (RFC 6455, section 5): no state but a reader's, no I/O. */
#include "api/ws.h"
#include "base/error.h"

#include <string.h>

#define FIN 0x80
#define RESERVED 0x70
#define MASKED 0x80

static guint
put_length(guint8 *header, gsize len)
{
  if (len < 126) {
    header[1] = (guint8)len;
    return 2;
  }
  if (len <= G_MAXUINT16) {
    guint16 wire = GUINT16_TO_BE((guint16)len);

    header[1] = 126;
    memcpy(header + 2, &wire, sizeof wire);
    return 4;
  }
  guint64 wire = GUINT64_TO_BE((guint64)len);

  header[1] = 127;
  memcpy(header + 2, &wire, sizeof wire);
  return 10;
}

void
dr_ws_append(GByteArray *out, DrWsOpcode opcode, gconstpointer data, gsize len, gboolean from_client)
{
  guint8 header[DR_WS_OVERHEAD] = { FIN | (guint8)opcode };
  guint header_len = put_length(header, len);
  guint start;

  if (!from_client) {
    g_byte_array_append(out, header, header_len);
    if (len > 0)
      g_byte_array_append(out, data, (guint)len);
    return;
  }
  /* The mask keeps a browser's script from choosing the bytes on the wire; any value does here. */
  guint32 mask = g_random_int();
  const guint8 *mask_bytes = (const guint8 *)&mask;

  header[1] |= MASKED;
  memcpy(header + header_len, &mask, sizeof mask);
  g_byte_array_append(out, header, header_len + sizeof mask);
  start = out->len;
  if (len > 0)
    g_byte_array_append(out, data, (guint)len);
  for (gsize i = 0; i < len; i++)
    out->data[start + i] ^= mask_bytes[i % 4];
}

void
dr_ws_append_close(GByteArray *out, guint16 code, const char *reason, gboolean from_client)
{
  guint8 content[DR_WS_CONTROL_MAX];
  gsize len = MIN(strlen(reason), sizeof content - 2);

  content[0] = (guint8)(code >> 8);
  content[1] = (guint8)code;
  memcpy(content + 2, reason, len);
  dr_ws_append(out, DR_WS_CLOSE, content, len + 2, from_client);
}

static DrWsOpcode
opcode_of(const DrWsReader *reader)
{
  return reader->header[0] & 0x0f;
}

static gboolean
is_control(const DrWsReader *reader)
{
  return reader->header[0] & 0x08;
}

/* How long the header is, as far as its first two bytes tell. */
static guint
header_length(const DrWsReader *reader)
{
  guint length;

  if (reader->have < 2)
    return 2;
  length = reader->header[1] & 0x7f;
  return 2 + (length == 126 ? 2 : length == 127 ? 8 : 0) + (reader->header[1] & MASKED ? 4 : 0);
}

static guint64
payload_length(const DrWsReader *reader)
{
  guint length = reader->header[1] & 0x7f;
  guint16 two;
  guint64 eight;

  if (length < 126)
    return length;
  if (length == 126) {
    memcpy(&two, reader->header + 2, sizeof two);
    return GUINT16_FROM_BE(two);
  }
  memcpy(&eight, reader->header + 2, sizeof eight);
  return GUINT64_FROM_BE(eight);
}

/* With the first two bytes: everything that makes a frame invalid but its length. */
static gboolean
check_header(DrWsReader *reader, GError **error)
{
  gboolean fin = reader->header[0] & FIN;
  DrWsOpcode opcode = opcode_of(reader);

  if (reader->header[0] & RESERVED)
    return dr_error_set(error, DR_ERROR_INVALID, "WebSocket: a reserved bit is set");
  if (!(reader->header[1] & MASKED) != !reader->from_client)
    return dr_error_set(error, DR_ERROR_INVALID, "WebSocket: a client masks its frames, a server does not");
  if (is_control(reader))
    return opcode <= DR_WS_PONG && fin && (reader->header[1] & 0x7f) <= DR_WS_CONTROL_MAX
               ? TRUE
               : dr_error_set(error, DR_ERROR_INVALID, "WebSocket: bad control frame");
  if (opcode > DR_WS_BINARY || (opcode == 0) != reader->fragment)
    return dr_error_set(error, DR_ERROR_INVALID, "WebSocket: unexpected frame type %d", (int)opcode);
  reader->fragment = !fin;
  return TRUE;
}

static gboolean
read_header(DrWsReader *reader, const guint8 *data, gsize len, gsize *taken, GError **error)
{
  while (*taken < len && reader->have < header_length(reader)) {
    reader->header[reader->have++] = data[(*taken)++];
    if (reader->have == 2 && !check_header(reader, error))
      return FALSE;
  }
  if (reader->have < header_length(reader))
    return TRUE;
  reader->payload = TRUE;
  reader->left = payload_length(reader);
  reader->at = 0;
  reader->control_len = 0;
  if (reader->left > G_MAXINT64)
    return dr_error_set(error, DR_ERROR_INVALID, "WebSocket: bad length");
  return TRUE;
}

static void
read_payload(DrWsReader *reader, const guint8 *data, gsize len, gsize *taken, GByteArray *payload)
{
  gsize n = (gsize)MIN((guint64)(len - *taken), reader->left);
  const guint8 *mask = reader->header + reader->have - 4;
  guint start = payload->len;
  guint8 *to;

  if (is_control(reader)) {
    to = reader->control + reader->control_len;
    memcpy(to, data + *taken, n);
    reader->control_len += (guint)n;
  } else {
    g_byte_array_append(payload, data + *taken, (guint)n);
    to = payload->data + start;
  }
  if (reader->from_client)
    for (gsize i = 0; i < n; i++)
      to[i] ^= mask[(reader->at + i) % 4];
  reader->at += n;
  reader->left -= n;
  *taken += n;
}

gssize
dr_ws_read(DrWsReader *reader, const guint8 *data, gsize len, GByteArray *payload, DrWsOpcode *ret_control,
           GError **error)
{
  gsize taken = 0;

  *ret_control = DR_WS_MORE;
  while (taken < len || (reader->payload && reader->left == 0)) {
    if (!reader->payload && !read_header(reader, data, len, &taken, error))
      return -1;
    if (!reader->payload)
      break;
    if (reader->left > 0 && taken < len)
      read_payload(reader, data, len, &taken, payload);
    if (reader->left > 0)
      continue;
    reader->payload = FALSE;
    reader->have = 0;
    if (is_control(reader)) {
      reader->control[reader->control_len] = 0;
      *ret_control = opcode_of(reader);
      break;
    }
  }
  return (gssize)taken;
}
