/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Free room that several files of one job share: what the first one takes is not there for the second. */
#pragma once
#include <glib.h>

typedef GHashTable DrRoom; /* file system -> bytes that earlier files take */

DrRoom *dr_room_new(void);
void dr_room_free(DrRoom *room);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrRoom, dr_room_free)

/* The bytes that `dir` has for a file that takes `bytes`, after those before it; which are then taken. -1: there is no such
 * directory. Not negative otherwise. */
gint64 dr_room_take(DrRoom *room, const char *dir, gint64 bytes);
