/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Carries bytes between a WebSocket and descriptors, both ways, holding at most 128 KiB a way: a side that
 * does not take makes the pump stop reading from the other one. droverd has one a console client, `drover
 * console` has one. */
#pragma once
#include <gio/gio.h>

typedef struct DrPump DrPump;

/* Why it ended. */
typedef enum {
  DR_PUMP_LOCAL,  /* end of `in_fd`, or the filter's wish */
  DR_PUMP_CLOSED, /* the other end said so; `text` is its reason, perhaps "" */
  DR_PUMP_LOST,   /* the connection broke, or the other end does not speak WebSocket; `text` says more */
} DrPumpEnd;

typedef struct {
  GIOStream *stream;  /* after the handshake */
  gboolean is_client; /* which end of the WebSocket we are */
  int in_fd,
      out_fd;    /* may be the same; are not closed by the pump. Blocking ones may be: they're polled first */
  gboolean stay; /* the end of in_fd is not the end of the pump */
  const char *goodbye; /* what a close of ours says */
  guint linger_ms;     /* how long a close may take: what is left to write, and the other end's answer */

  /* Optional: looks at what was read from in_fd; returns how many bytes of it to send. Fewer than all:
   * then end. */
  gsize (*filter)(gpointer data, const guint8 *bytes, gsize len);
  /* The last thing that happens; it may free the pump. */
  void (*ended)(gpointer data, DrPumpEnd end, const char *text);
  gpointer data;
} DrPumpSetup;

/* Runs in the thread-default main context. References the stream, copies the rest. */
DrPump *dr_pump_new(const DrPumpSetup *setup);
void dr_pump_free(DrPump *pump);
