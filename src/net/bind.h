/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Listening sockets of one TCP port. */
#pragma once
#include <glib.h>

#define DR_BIND_MAX 8 /* addresses of one name */

/* Listens on each address of `address` (nullable: all, of IPv4 and IPv6), non-blocking. *port 0: one that the kernel chooses, the
 * same for all; set to it. Returns how many, in ret_fds; 0: INVALID, IO. */
guint dr_bind(const char *address, guint *port, int ret_fds[DR_BIND_MAX], GError **error);

/* The next connection, or -1 with errno. *ret_address: who it is; *ret_origin: for whom it is counted, of IPv6 its /64, for who has
 * one address there has them all. (transfer full) */
int dr_bind_accept(int fd, char **ret_address, char **ret_origin);
