/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Messages of two droverds: 4 bytes of length, big endian, and a JSON object in UTF-8. */
#pragma once
#include "net/conn.h"

/* One frame of at most `max` bytes. Its first byte has to come within `timeout_ms` (TIMEOUT; then one may ask again), the rest of
 * it by `deadline`, never pausing for longer than DR_STALL_MS (CLOSED). INVALID: it is too long, or no JSON object. (transfer full) */
JsonObject *dr_frame_receive(DrConn *conn, gsize max, int timeout_ms, DrDeadline deadline, GError **error);

/* An object as the bytes of a frame. INVALID: it is longer than DR_FRAME_MAX. Another thread may send them by
 * dr_conn_write(). (transfer full) */
GBytes *dr_frame_new(JsonObject *object, GError **error);

/* How long a peer that has begun to say something may be silent. */
#define DR_STALL_MS 3500
/* How long a frame of a peer that is known may take: 4 MiB over 2 Mbit/s. */
#define DR_FRAME_MS 20000
