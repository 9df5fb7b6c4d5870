/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The streams of one move at one host: each connection of the source's QEMU is a connection to the peer's port, and there one to
 * the new QEMU, in the same order: QEMU before 8.0 tells its channels apart by the order of accept(2) alone (QEMU-NOTES). */
#pragma once
#include "net/peer.h"

typedef struct DrStreams DrStreams;

#define DR_STREAMS_MAX 17 /* of one move: 16 of multifd and the main one */

/* The source's side: listens on `path` for QEMU, and carries each of its connections to the peer at once, opened by
 * {"kind":"stream","move","epoch","index"}, or, without TLS, by the token of its index. `tokens`: NULL-terminated; NULL: TLS.
 * `ahead`: once the first is carried, the second is opened to the peer before QEMU asks for it, which for the urgent pages of post-copy it
 * does with the guest already stopped (machine types of 8.0 and newer). (transfer full) */
DrStreams *dr_streams_new(DrPeer *peer, const char *move, gint64 epoch, const char *path,
                          const char *const *tokens, gboolean ahead, GError **error);
/* The same for NBD: each connection of QEMU's client, in any order and at any time, is a stream opened by {"kind":"stream","move","nbd"},
 * or, without TLS, by one of the `tokens` (NULL: none) as long as there are any: they are good for some seconds, and a client that comes
 * again after a break comes by TLS. One that breaks, or cannot be opened, is closed: the client comes again. (transfer full) */
DrStreams *dr_streams_new_nbd(DrPeer *peer, const char *move, const char *path, const char *const *tokens,
                              GError **error);
/* Closes QEMU's ends at once: it sees a broken stream, and pauses post-copy. */
void dr_streams_free(DrStreams *streams);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrStreams, dr_streams_free)
guint dr_streams_count(DrStreams *streams); /* those that are open to the peer */
/* Closes the connections of those that are carried; of NBD the client comes again. */
void dr_streams_break(DrStreams *streams);
/* The end is near: see dr_relay_narrow(). Those that come later are as wide as ever. */
void dr_streams_narrow(DrStreams *streams);
/* Readable once one of them has broken. */
int dr_streams_broken_fd(DrStreams *streams);
gint64 dr_streams_bytes(DrStreams *streams); /* that QEMU wrote */

/* The first of these for a QEMU that is to have the socket itself. (transfer full): its descriptor; -1 on error. */
int dr_streams_open_plain(DrPeer *peer, const char *token, GError **error);

/* The destination's side: a stream has come. Connects to the new QEMU when its turn is there, and carries it until either end
 * is closed; blocks only until it is connected. Takes `conn` over, also on error. */
gboolean dr_streams_take(const char *move, gint64 epoch, guint index, DrConn *conn, GError **error);
/* A stream for the NBD server at `path`. Takes `conn` over, also on error. */
gboolean dr_streams_take_nbd(const char *move, DrConn *conn, GError **error);
/* As dr_streams_narrow(), of those that were taken for a move. */
void dr_streams_narrow_taken(const char *move);
/* Connects to the new QEMU's socket and closes at once. */
void dr_streams_knock(const char *path);
/* Ends all that were taken for a move. */
void dr_streams_drop(const char *move);
