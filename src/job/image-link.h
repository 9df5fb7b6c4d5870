/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images that have stayed on the host a guest came from, at the host where it runs. Each has a unix socket here, which the header of
 * its overlay names; whoever connects to it (QEMU's NBD client, qemu-img) is carried to the other host, by a stream that the other host
 * has opened for it: this one need not be able to reach that one. While no stream is there the client waits, however long that
 * takes, and a connection that breaks is one that it makes anew: the guest never sees an error of the link. */
#pragma once
#include "net/conn.h"

/* The byte that is sent to the other host when somebody wants the stream: then it lets its server talk. */
#define DR_IMAGE_LINK_GO 'G'

typedef struct DrImageLink DrImageLink;

/* Listens at PREFIX.NAME for each name. Only streams of `peer` are taken. Names have no more than 32 characters. (transfer full) */
DrImageLink *dr_image_link_new(const char *move, const char *peer, const char *prefix,
                               const char *const *names, GError **error);
/* Whether the other host can be reached now: for each image a stream waits that lives. Any thread. */
gboolean dr_image_link_is_up(const char *move);
/* Closes all of its connections: their clients wait for the next link, or fail if they are told to. */
void dr_image_link_free(DrImageLink *link);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrImageLink, dr_image_link_free)

/* What an overlay's header has for its backing file: QEMU's "json:" with an NBD client that waits for its server for years.
 * (transfer full) */
char *dr_image_link_backing(const char *prefix, const char *name);

/* A stream has come for one of them, and is kept until somebody wants it. Takes `conn` over, also on error. Any thread. */
gboolean dr_image_link_take(const char *move, const char *name, DrConn *conn, GError **error);
