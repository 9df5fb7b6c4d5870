/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The listening unix socket. */
#pragma once
#include <gio/gio.h>

/* Binds `path` with mode 0600 and listens. A socket file that nobody listens on is replaced; anything else
 * that has the name is left alone. Two daemons that start in the same millisecond are told apart by
 * droverd's own lock, not here. */
GSocket *dr_listen(const char *path, GError **error);
