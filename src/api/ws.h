/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* WebSocket frames (RFC 6455) as bytes: writing one, and reading them as they come.
 *
 * libsoup has its own, but it reads as long as a client sends and queues as long as we send: a console
 * between a fast guest and a slow reader would have no bound. pump.c is built on these two functions
 * instead, at both ends. */
#pragma once
#include <glib.h>

#define DR_WS_CONTROL_MAX 125
#define DR_WS_OVERHEAD 14 /* a frame's header at most */

typedef enum {
  DR_WS_MORE = 0, /* not an opcode here: all was taken and no control frame is complete */
  DR_WS_TEXT = 1,
  DR_WS_BINARY = 2,
  DR_WS_CLOSE = 8,
  DR_WS_PING = 9,
  DR_WS_PONG = 10,
} DrWsOpcode;

typedef struct {
  gboolean from_client; /* a client's frames are masked, a server's are not; anything else is an error */
  guint8 header[DR_WS_OVERHEAD];
  guint have;        /* bytes of the header so far */
  gboolean payload;  /* the header is complete */
  guint64 left;      /* bytes of payload to come */
  guint64 at;        /* bytes of payload that came: where in the mask we are */
  gboolean fragment; /* a message is under way, its next frame is a continuation */
  guint8 control[DR_WS_CONTROL_MAX + 1];
  guint control_len;
} DrWsReader;

/* Appends one unfragmented frame. A client masks. */
void dr_ws_append(GByteArray *out, DrWsOpcode opcode, gconstpointer data, gsize len, gboolean from_client);

/* Appends a close frame; `reason` is at most 123 bytes. Code: RFC 6455, 7.4.1. */
void dr_ws_append_close(GByteArray *out, guint16 code, const char *reason, gboolean from_client);

/* Takes bytes in, appends what they carry of text and binary messages to `payload` (never more bytes than
 * were taken), and stops behind a control frame: *ret_control is then its opcode and its content stands in
 * `control`, NUL-terminated. Returns: how many of the bytes were taken; -1 with DR_ERROR_INVALID when they
 * are no WebSocket. */
gssize dr_ws_read(DrWsReader *reader, const guint8 *data, gsize len, GByteArray *payload,
                  DrWsOpcode *ret_control, GError **error);
