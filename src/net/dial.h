/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* TCP sockets as two droverds want them, and connecting one. */
#pragma once
#include "base/deadline.h"

/* A peer that acknowledges nothing for so long is gone (TCP_USER_TIMEOUT, RFC 5482); ms. */
#define DR_SILENT_MS 3000

/* Connects to `host` (a DNS name or an IP address), trying its addresses in turn, each with its share of the time. The socket is
 * non-blocking and has dr_socket_options(). -1: NOT_FOUND (no such host), CLOSED (nobody there, or no way), TIMEOUT. */
int dr_dial(const char *host, guint port, DrDeadline deadline, GError **error);

/* No delay, keepalive and TCP_USER_TIMEOUT: a link that dies silently is known after DR_SILENT_MS, or, while nothing is sent, a
 * second later. */
void dr_socket_options(int fd);

/* For a socket of whom much is received, and the last of it in a hurry: left to itself the kernel lets megabytes wait to be read where
 * the reader is slower than the link. With a round trip below 1 ms no more waits than fills a link of 20 Gbit/s, or 512 KiB. */
void dr_socket_queue_little(int fd);

/* For the sender of it, when the hurry begins: next to nothing waits unsent any more. */
void dr_socket_send_little(int fd);

/* Waits until a TCP socket takes more; FALSE: the deadline has passed (errno ETIMEDOUT). An error of the socket ends the wait, too:
 * the next call on it tells.
 *
 * With TCP_USER_TIMEOUT Linux also ends a connection whose other side lives, acknowledges all and takes nothing for so long (since
 * 5.11, tcp_probe_timer()): a QEMU that is busy for 3 s would lose its stream. So while everything that was sent has been
 * acknowledged, it is lifted. A link that is cut just then is known by the control conversation's heartbeat. */
gboolean dr_socket_wait_writable(int fd, DrDeadline deadline);

/* The two halves of it, for who waits for more than one thing: to be called after each DR_SOCKET_LOOK_MS of waiting; then, if it
 * ever returned TRUE, once the waiting is over. */
#define DR_SOCKET_LOOK_MS 1000
gboolean dr_socket_be_patient(int fd);
void dr_socket_be_strict(int fd);

/* For a socket whose waits are somebody else's (QEMU's): 30 s instead of DR_SILENT_MS. */
void dr_socket_hand_on(int fd);

/* Breaks a connection: whoever waits for it in poll(2) here wakes, and the other side gets a reset at once, behind which what was
 * queued is dropped. (A FIN would stand in the queue behind bytes that the other side does not take, and without TLS it
 * would look like an end in peace.) The descriptor stays open. */
void dr_socket_break(int fd);
