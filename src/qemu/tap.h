/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The tap queues that two QEMUs share during an upgrade.
 *
 * A new QEMU that is given a tap descriptor sets the header size of the tap to 10 and its offloads to none at start
 * (net_tap_fd_init, 5.2 to 11.1), beneath the QEMU that still uses it with 12 and more. Of a tap with several queues it
 * also detaches all but the first (7.2 to 11.1; 5.2 does not): what the guest then sends through the others is lost.
 * DrTapGuard notes all three before the new QEMU starts, watches in a thread of its own while it starts, and puts them
 * back at once.
 *
 *   guard = dr_tap_guard_new(…)      the source runs; the destination is not started yet
 *   … the destination starts, until it answers QMP …
 *   dr_tap_guard_stop(guard)         or later; the guest must not change its NIC's queues while it is watched
 *   … the source stops …
 *   dr_tap_guard_hand_over(guard)    before the destination loads the device state (pre-switchover)
 *   dr_tap_guard_take_back(guard)    only if the source is to run on after that
 */
#pragma once
#include "base/json.h"

typedef struct DrTapGuard DrTapGuard;

/* `fds`: descriptors of the tap queues (duplicates of the source's; borrowed, must outlive the guard). Which interface
 * each one belongs to, and in which network namespace, the kernel says; `ifnames` is for messages (NULL, or NULL
 * members, will do). Starts watching. Errors: DR_ERROR_INVALID for a descriptor that is no tap.
 * Returns: (transfer full). */
DrTapGuard *dr_tap_guard_new(const int *fds, const char *const *ifnames, guint n, GError **error);

/* What was noted, in the order of the descriptors: [{"attached","header","offloads"}], offloads -1 where they are not known.
 * For the journal. (transfer full) */
JsonArray *dr_tap_guard_write(const DrTapGuard *guard);

/* A guard that has noted what another one wrote, and does not watch: for dr_tap_guard_take_back(). Members that are missing in
 * `noted` are as they are now. (transfer full) */
DrTapGuard *dr_tap_guard_read(const int *fds, const char *const *ifnames, guint n, JsonArray *noted,
                              GError **error);

/* Stops watching after a last look. Returns how many times something had to be put back. May be called again. */
guint dr_tap_guard_stop(DrTapGuard *guard);

/* A QEMU that stands still takes one more packet out of its tap, finds that it cannot deliver it, and only then leaves the tap
 * alone (tap_send(), 5.2 to 11.1); it would be lost with that QEMU. Gives it one that nobody misses, a frame of the local
 * experimental ethertype 0x88b5. Call it as soon as the source has stopped; takes some microseconds. Does nothing for a tap
 * with several queues, and without the right to packet sockets. */
void dr_tap_guard_feed(DrTapGuard *guard);

/* Stops watching, and detaches the queues that the destination had detached and the guard attached again: the destination
 * believes them detached, attaches them itself when it loads the device, and aborts if they are attached already. What
 * waits in those queues is dropped by the kernel. Call it when the source's guest has stopped. */
void dr_tap_guard_hand_over(DrTapGuard *guard);

/* Puts all back as it was noted, once, for a source that runs on (rollback). */
void dr_tap_guard_take_back(DrTapGuard *guard);

/* Stops if it still watches; accepts NULL. */
void dr_tap_guard_free(DrTapGuard *guard);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrTapGuard, dr_tap_guard_free)
