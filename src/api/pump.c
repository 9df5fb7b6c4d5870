/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The pump: four sources, each there only while there is something to do for it.
 *
 * Each source fires once and is made anew by update(), the one place that decides what to wait for:
 * libsoup's input stream has sources that fire for ever while its buffer holds something. */
#include "api/pump.h"
#include "api/ws.h"
#include "base/error.h"

#include <errno.h>
#include <glib-unix.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER (64 * 1024)
#define CHUNK (16 * 1024)
#define PONG_BUFFER (2 * BUFFER) /* above what in_fd can fill: see room_for_pong() */
#define WRITE_MAX 4096           /* what a pipe or terminal that polls writable takes without blocking */

struct DrPump {
  DrPumpSetup setup;
  GMainContext *context;
  GPollableInputStream *ws_in;
  GPollableOutputStream *ws_out;
  GSource *read_ws, *write_ws, *read_fd, *write_fd, *linger;
  DrWsReader reader;
  GByteArray *raw;   /* read from the WebSocket and not looked at: behind a control frame */
  GByteArray *to_ws; /* frames */
  GByteArray *to_fd;
  gboolean fd_ended;               /* nothing more comes from in_fd */
  gboolean close_sent, close_seen; /* the close frame is in to_ws or beyond; the other end's has come */
  gboolean over;                   /* nothing can be sent or received any more */
  DrPumpEnd end;
  char *text;
};

static void
clear_source(GSource **source)
{
  if (!*source)
    return;
  g_source_destroy(*source);
  g_clear_pointer(source, g_source_unref);
}

static void
set_end(DrPump *pump, DrPumpEnd end, const char *text)
{
  if (pump->text)
    return;
  pump->end = end;
  pump->text = g_strdup(text);
}

static void
lose(DrPump *pump, const char *text)
{
  set_end(pump, DR_PUMP_LOST, text);
  pump->over = TRUE;
}

static gboolean
on_linger(gpointer data)
{
  DrPump *pump = data;

  clear_source(&pump->linger);
  pump->setup.ended(pump->setup.data, pump->end, pump->text);
  return G_SOURCE_REMOVE;
}

static void
start_linger(DrPump *pump)
{
  if (pump->linger)
    return;
  pump->linger = g_timeout_source_new(pump->setup.linger_ms);
  g_source_set_callback(pump->linger, on_linger, pump, NULL);
  g_source_attach(pump->linger, pump->context);
}

static void
send_close(DrPump *pump, guint16 code, const char *reason)
{
  if (pump->close_sent)
    return;
  dr_ws_append_close(pump->to_ws, code, reason, pump->setup.is_client);
  pump->close_sent = TRUE;
  start_linger(pump);
}

static void
on_control(DrPump *pump, DrWsOpcode opcode)
{
  DrWsReader *reader = &pump->reader;

  if (opcode == DR_WS_PING && !pump->close_sent)
    dr_ws_append(pump->to_ws, DR_WS_PONG, reader->control, reader->control_len, pump->setup.is_client);
  if (opcode != DR_WS_CLOSE)
    return;
  pump->close_seen = TRUE;
  set_end(pump, DR_PUMP_CLOSED, reader->control_len > 2 ? (const char *)reader->control + 2 : "");
  send_close(pump, 1000, "");
}

/* What we have to send must not keep us from receiving: two ends that both waited so would wait for ever.
 * Only a client that sends pings and takes no answers gets that far. */
static gboolean
room_for_pong(const DrPump *pump)
{
  return pump->to_ws->len < PONG_BUFFER;
}

/* What was read, up to the end or to where the buffers are full. */
static void
take_raw(DrPump *pump)
{
  while (pump->raw->len > 0 && !pump->close_seen && !pump->over && room_for_pong(pump) &&
         pump->to_fd->len < BUFFER) {
    g_autoptr(GError) error = NULL;
    DrWsOpcode control;
    gssize taken = dr_ws_read(&pump->reader, pump->raw->data, pump->raw->len, pump->to_fd, &control, &error);

    if (taken < 0) {
      set_end(pump, DR_PUMP_LOST, error->message);
      send_close(pump, 1002, error->message);
      pump->close_seen = TRUE; /* what follows cannot be understood */
      return;
    }
    g_byte_array_remove_range(pump->raw, 0, (guint)taken);
    if (control != DR_WS_MORE)
      on_control(pump, control);
  }
}

static gboolean update(DrPump *pump);

static gboolean
on_ws_readable(GObject *stream, gpointer data)
{
  DrPump *pump = data;
  g_autoptr(GError) error = NULL;
  guint8 chunk[CHUNK];
  gssize n = g_pollable_input_stream_read_nonblocking(pump->ws_in, chunk, sizeof chunk, NULL, &error);

  clear_source(&pump->read_ws);
  if (n > 0)
    g_byte_array_append(pump->raw, chunk, (guint)n);
  else if (n == 0)
    lose(pump, "the connection ended");
  else if (!g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
    lose(pump, error->message);
  return update(pump);
}

static gboolean
on_ws_writable(GObject *stream, gpointer data)
{
  DrPump *pump = data;
  g_autoptr(GError) error = NULL;
  gssize n = g_pollable_output_stream_write_nonblocking(pump->ws_out, pump->to_ws->data, pump->to_ws->len,
                                                        NULL, &error);

  clear_source(&pump->write_ws);
  if (n > 0)
    g_byte_array_remove_range(pump->to_ws, 0, (guint)n);
  else if (n < 0 && !g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
    lose(pump, error->message);
  return update(pump);
}

static void
end_of_input(DrPump *pump)
{
  pump->fd_ended = TRUE;
  if (pump->setup.stay)
    return;
  set_end(pump, DR_PUMP_LOCAL, "");
  send_close(pump, 1000, pump->setup.goodbye ? pump->setup.goodbye : "");
}

static gboolean
on_fd_readable(int fd, GIOCondition condition, gpointer data)
{
  DrPump *pump = data;
  guint8 chunk[CHUNK];
  gssize n = read(fd, chunk, sizeof chunk);

  clear_source(&pump->read_fd);
  if (n > 0) {
    gsize send = pump->setup.filter ? pump->setup.filter(pump->setup.data, chunk, (gsize)n) : (gsize)n;

    if (send > 0)
      dr_ws_append(pump->to_ws, DR_WS_BINARY, chunk, send, pump->setup.is_client);
    if (send < (gsize)n) {
      pump->setup.stay = FALSE;
      end_of_input(pump);
    }
  } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
    end_of_input(pump);
  }
  return update(pump);
}

/* send() where it is a socket, so that no SIGPIPE comes of it. */
static gssize
write_some(int fd, const guint8 *data, gsize len)
{
  gssize n = send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);

  return n < 0 && errno == ENOTSOCK ? write(fd, data, len) : n;
}

static gboolean
on_fd_writable(int fd, GIOCondition condition, gpointer data)
{
  DrPump *pump = data;
  gssize n = write_some(fd, pump->to_fd->data, MIN(pump->to_fd->len, WRITE_MAX));

  clear_source(&pump->write_fd);
  if (n > 0) {
    g_byte_array_remove_range(pump->to_fd, 0, (guint)n);
  } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
    /* Nobody reads there any more. */
    g_byte_array_set_size(pump->to_fd, 0);
    pump->setup.stay = FALSE;
    end_of_input(pump);
  }
  return update(pump);
}

static void
want_fd(DrPump *pump, gboolean wanted, GSource **source, int fd, GIOCondition condition,
        GUnixFDSourceFunc callback)
{
  if (!wanted)
    clear_source(source);
  if (!wanted || *source)
    return;
  *source = g_unix_fd_source_new(fd, condition);
  g_source_set_callback(*source, G_SOURCE_FUNC(callback), pump, NULL);
  g_source_attach(*source, pump->context);
}

static void
want_ws(DrPump *pump, gboolean wanted, GSource **source, gboolean in)
{
  if (!wanted)
    clear_source(source);
  if (!wanted || *source)
    return;
  *source = in ? g_pollable_input_stream_create_source(pump->ws_in, NULL)
               : g_pollable_output_stream_create_source(pump->ws_out, NULL);
  g_source_set_callback(*source, in ? G_SOURCE_FUNC(on_ws_readable) : G_SOURCE_FUNC(on_ws_writable), pump,
                        NULL);
  g_source_attach(*source, pump->context);
}

/* A lost connection ends when what had come is delivered; an orderly one when both closes are through,
 * too. */
static gboolean
is_done(const DrPump *pump)
{
  if (pump->over)
    return pump->to_fd->len == 0;
  return pump->close_sent && pump->close_seen && pump->to_ws->len == 0 && pump->to_fd->len == 0;
}

static gboolean
update(DrPump *pump)
{
  gboolean open = !pump->over;

  take_raw(pump);
  if (is_done(pump)) {
    pump->setup.ended(pump->setup.data, pump->end, pump->text);
    return G_SOURCE_REMOVE;
  }
  if (pump->over)
    start_linger(pump);
  want_ws(pump,
          open && !pump->close_seen && pump->raw->len == 0 && pump->to_fd->len < BUFFER &&
              room_for_pong(pump),
          &pump->read_ws, TRUE);
  want_ws(pump, open && pump->to_ws->len > 0, &pump->write_ws, FALSE);
  want_fd(pump, open && !pump->close_sent && !pump->fd_ended && pump->to_ws->len < BUFFER, &pump->read_fd,
          pump->setup.in_fd, G_IO_IN, on_fd_readable);
  want_fd(pump, pump->to_fd->len > 0, &pump->write_fd, pump->setup.out_fd, G_IO_OUT, on_fd_writable);
  return G_SOURCE_REMOVE;
}

DrPump *
dr_pump_new(const DrPumpSetup *setup)
{
  DrPump *pump = g_new0(DrPump, 1);

  pump->setup = *setup;
  g_object_ref(setup->stream);
  pump->context = g_main_context_ref_thread_default();
  pump->ws_in = G_POLLABLE_INPUT_STREAM(g_io_stream_get_input_stream(setup->stream));
  pump->ws_out = G_POLLABLE_OUTPUT_STREAM(g_io_stream_get_output_stream(setup->stream));
  pump->reader.from_client = !setup->is_client;
  pump->raw = g_byte_array_new();
  pump->to_ws = g_byte_array_new();
  pump->to_fd = g_byte_array_new();
  update(pump);
  return pump;
}

void
dr_pump_free(DrPump *pump)
{
  if (!pump)
    return;
  clear_source(&pump->read_ws);
  clear_source(&pump->write_ws);
  clear_source(&pump->read_fd);
  clear_source(&pump->write_fd);
  clear_source(&pump->linger);
  g_byte_array_unref(pump->raw);
  g_byte_array_unref(pump->to_ws);
  g_byte_array_unref(pump->to_fd);
  g_object_unref(pump->setup.stream);
  g_main_context_unref(pump->context);
  g_free(pump->text);
  g_free(pump);
}
