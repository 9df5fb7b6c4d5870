/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The listening unix socket. */
#pragma once
#include <gio/gio.h>

/* Binds `path` with that mode and listens. A socket file that nobody listens on is replaced; anything else
 * that has the name is left alone. Two daemons that start in the same millisecond are told apart by
 * droverd's own lock, not here. A socket that systemd has opened (base/activation.h) is taken as it is; one
 * that is open to all users where `mode` is not, or the other way round, is INVALID. */
GSocket *dr_listen(const char *path, int mode, GError **error);

/* Ends it, and removes the file; not that of a socket which systemd has opened, and goes on listening on. */
void dr_listen_end(GSocket *listener, const char *path);
