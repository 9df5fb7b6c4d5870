/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names of things and of hosts, as people type them. */
#pragma once
#include <glib.h>

/* Where a droverd listens for others, unless it is told otherwise. Not assigned by IANA, and none of libvirt's (16509,
 * 16514, 49152-49215), QEMU's (VNC 5900 on, NBD 10809) or a common daemon's. */
#define DR_PEER_PORT 7413

/* Whether `name` may be that of a thing of ours: 1 to 63 letters, digits, '.', '_' and '-', beginning with a letter, a digit or
 * '_', so that it is a file's name, a path's segment and no option. `of` says what it names: "a VM", "a peer".
 * Errors: INVALID. */
gboolean dr_name_check(const char *name, const char *of, GError **error);

/* Whether `host` is a DNS name (RFC 1123: labels of 1 to 63 letters, digits and '-', 253 characters at most; '_' is let
 * pass) or an IP address without brackets, scope or prefix length. Other alphabets are given as IDNA writes them
 * (xn--…). Errors: INVALID. */
gboolean dr_host_check(const char *host, GError **error);

/* The 4 or 16 bytes of an IP address in network order; 0: `host` is none. */
gsize dr_host_ip(const char *host, guint8 ret_bytes[16]);

/* One way of writing it, so that two can be compared: a DNS name in lower case, an IP address as inet_ntop(3) has it.
 * (transfer full) */
char *dr_host_normal(const char *host);

/* Takes HOST, HOST:PORT, IPV6, [IPV6] or [IPV6]:PORT apart. *ret_host is (transfer full), without brackets; *ret_port is
 * `otherwise` where none was said. Errors: INVALID. */
gboolean dr_address_parse(const char *text, guint16 otherwise, char **ret_host, guint16 *ret_port,
                          GError **error);

/* HOST:PORT, with brackets where they are needed. (transfer full) */
char *dr_address_print(const char *host, guint16 port);
