/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Carries bytes between a local socket (QEMU's) and a connection to the other host, both ways at once, by two threads. TCP does the
 * flow control: nothing is taken from one side that the other has no room for, but for what waits on the way: with TLS 256 KiB here and
 * 256 KiB in net/tls.c each way, and 1 MiB in the kernel's socket to QEMU; without, a pipe of 1 MiB in the kernel each way. */
#pragma once
#include "net/conn.h"

typedef struct DrRelay DrRelay;

/* Takes both over, also on error. `broken`: an eventfd that is written to, once, when the connection or the local socket breaks
 * (not when both sides end in peace, nor by dr_relay_abort()); -1: none; borrowed. When one side breaks, the other is closed
 * at once. The end of one direction is passed on: shutdown(2) here, close_notify (TLS) or FIN there. (transfer full) */
DrRelay *dr_relay_new(int local, DrConn *conn, int broken, GError **error);

/* From now on as little as possible is on its way in here, at some cost of throughput: what QEMU sends last, with its guest stopped,
 * comes behind all of it. For who nears the end; any thread. */
void dr_relay_narrow(DrRelay *relay);

/* Closes both sides at once; QEMU sees its socket break. Any thread. */
void dr_relay_abort(DrRelay *relay);
/* Aborts and waits for the threads. */
void dr_relay_free(DrRelay *relay);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrRelay, dr_relay_free)

gint64 dr_relay_bytes_out(DrRelay *relay); /* from the local socket to the other host */
gint64 dr_relay_bytes_in(DrRelay *relay);

/* Whether both directions have ended, and why; any thread. */
typedef enum {
  DR_RELAY_RUNS,
  DR_RELAY_ENDED,   /* each side said that it was done */
  DR_RELAY_BROKEN,  /* one of them went away */
  DR_RELAY_ABORTED, /* dr_relay_abort() */
} DrRelayState;
DrRelayState dr_relay_state(DrRelay *relay);
/* Frees those of `relays` (element-type DrRelay, with a free function) that do not run any more. */
void dr_relays_drop_ended(GPtrArray *relays);
