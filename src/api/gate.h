/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The API over TCP. net/listener.h does the handshakes, in threads and within its bounds; behind a handshake two threads carry the bytes
 * between the TLS connection and a socketpair, whose other end the server takes like a connection of its unix socket. So all that
 * the server does with a connection (deadlines, limits, hang-ups, consoles) is the same for both, and its main loop never meets TLS.
 *
 * A carried connection ends as a whole: where a client ends its direction, it is taken to have gone. */
#pragma once
#include "net/tls.h"

typedef struct DrGate DrGate;

/* A client with a certificate of our CA; `fd` is the taker's. In the main context of dr_gate_new(). */
typedef void (*DrGateTake)(int fd, const char *const *names, gpointer data);

/* How much a client is to have of the room: 0 an eighth of it, 1 half, 2 all. Any thread. */
#define DR_GATE_RANKS 3
typedef guint (*DrGateRank)(const char *const *names, gpointer data);

typedef struct {
  const char *address; /* nullable: all */
  guint port;          /* 0: the kernel chooses */
  int handshake_ms;    /* 0: DR_LISTENER_HELLO_MS */
  guint idle_s;        /* in which a client takes nothing of what it is sent */
  guint max;           /* connections at once; the next ones are closed */
  DrTlsContext *tls;
  DrGateTake take;
  DrGateRank rank; /* nullable: all have all of it */
  gpointer data;
} DrGateOptions;

/* Listens at once. Errors: INVALID (the address), IO. (transfer full) */
DrGate *dr_gate_new(const DrGateOptions *options, GError **error);
/* Closes all its connections and waits for the threads. From the thread of the context. */
void dr_gate_free(DrGate *gate);

guint dr_gate_port(DrGate *gate);
