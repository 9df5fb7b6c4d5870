/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a service tells systemd, without its library: sd_notify(3) is one datagram, the watchdog one more from time to time. */
#pragma once
#include <glib.h>

/* Takes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID out of the environment, so that no child of ours speaks in our name. Call it before
 * the first thread. */
void dr_notify_init(void);

/* Sends "READY=1", "STOPPING=1" and the like. FALSE where nobody listens, which is no error: nothing was lost that a log line could mend. */
gboolean dr_notify(const char *state);

/* The time after which systemd takes us for dead, µs; 0: it does not look. */
guint64 dr_notify_watchdog_us(void);

/* Pings twice in that time from `context`, so for as long as whoever runs it comes round. (transfer full) (nullable): NULL where
 * nobody looks. */
GSource *dr_notify_watchdog_start(GMainContext *context);
