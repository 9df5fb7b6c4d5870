/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The console of one VM: QEMU's socket on one side, any number of readers on the other, surviving an upgrade.
 *
 * The hub keeps the last 64 KiB. Every buffer is bounded: a client that does not read loses its oldest output, a guest
 * that does not read makes the hub stop reading its clients. During an upgrade the new QEMU's socket is connected before
 * the guest runs there, and is read only after the old one has been drained; what is typed is kept back while neither can
 * take it: nothing is lost or out of order. */
#pragma once
#include "qemu/proc.h"

typedef struct DrConsole DrConsole;

DrConsole *dr_console_new(GMainContext *context);
void dr_console_free(DrConsole *console); /* from the main loop's thread, or when that no longer runs */

/* Connects to QEMU's console socket and makes it the current one. */
gboolean dr_console_open(DrConsole *console, const char *path, GError **error);

/* The steps of an upgrade; `path` may be NULL (the new QEMU has no console). */
gboolean dr_console_prepare(DrConsole *console, const char *path, GError **error);
/* Between prepare and commit, before the device state is saved: what is typed from here on waits for the one or the other.
 * What `qemu`, the current one, has not read yet, and so would be lost with it, is taken back out of its socket. */
void dr_console_hold(DrConsole *console, const DrProcId *qemu);
/* TRUE: the hub has the QEMU that was prepared. */
gboolean dr_console_commit(DrConsole *console);
void dr_console_abort(DrConsole *console);
/* After a commit for which nothing was prepared, once `path`, which is the user's own, leads to the new QEMU: clients that came
 * meanwhile are with the old one. */
gboolean dr_console_follow(DrConsole *console, const char *path, GError **error);

/* The VM ended: clients get what is there, then EOF. */
void dr_console_end(DrConsole *console);

/* A new client: returns its end of a socket pair, which first delivers the scrollback; -1 on error (at most 16). */
int dr_console_attach(DrConsole *console, GError **error);

/* Connects to `path` unless some QEMU is connected already: for a console socket that is the user's own, which is
 * taken only while somebody reads it: when the last client has gone it is let go. */
gboolean dr_console_ensure(DrConsole *console, const char *path, GError **error);

/* Whether it is connected to a QEMU. */
gboolean dr_console_is_open(DrConsole *console);
