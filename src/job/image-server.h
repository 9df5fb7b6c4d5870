/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images that stay on this host when their guest has gone to another one, which runs on overlays over them: served by NBD, read-only, by a
 * qemu-storage-daemon of our own (it needs no QEMU that runs, and its locks keep others from writing to them), to streams that
 * are opened from here and wait over there until they are wanted (image-link.h). */
#pragma once
#include "net/peer.h"

typedef struct DrImageServer DrImageServer;

/* Whether its program is there. */
gboolean dr_image_server_is_possible(GError **error);

/* `images`: [{"name","path","format","secret"?}]; `objects`: QEMU's "-object secret,…" words by id (nullable). Sockets are PREFIX.qmp and
 * PREFIX.nbd. Starts nothing yet. `peer` is borrowed. (transfer full) */
DrImageServer *dr_image_server_new(DrPeer *peer, const char *move, const char *prefix, JsonArray *images,
                                   GHashTable *objects);
/* Its process has ended when this returns, for good, and the images are nobody's; what waits for the network is waited for by free. */
void dr_image_server_halt(DrImageServer *server);
/* As halt. Safe for NULL. */
void dr_image_server_free(DrImageServer *server);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrImageServer, dr_image_server_free)

/* Its process runs when this returns, and lives as long as the calling thread, at most. Takes some ms, or nothing. */
gboolean dr_image_server_start(DrImageServer *server, GError **error);
/* Whoever asks over there gets the images from now on. `live`: a QEMU still writes to them, and what is read is as good as a glance;
 * otherwise a QEMU that could write to one of them is an error, as is an image that cannot be opened. Its process has been started. Takes
 * 1 ms an image. Any thread, one at a time. */
gboolean dr_image_server_open(DrImageServer *server, gboolean live, GError **error);
/* Nobody gets anything any more; whoever asks waits. FALSE: an image may still be open. */
gboolean dr_image_server_close(DrImageServer *server, GError **error);
/* To be called now and then by the thread that opened it: a process that has ended is started again, and the images opened. */
void dr_image_server_tend(DrImageServer *server);
