/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The monitor of a QEMU on another host, for looking only: its droverd passes the commands on (incoming-serve.c). */
#pragma once
#include "net/peer.h"
#include "qmp/qmp.h"

typedef struct DrRemoteQmp DrRemoteQmp;

/* `peer` is used by nobody else until dr_remote_qmp_free(). `commands`: as dr_qmp_record() notes them, asked for at once, for they are
 * likely to be asked for here. (transfer full) */
DrRemoteQmp *dr_remote_qmp_new(DrPeer *peer, const char *move, int version_number, JsonArray *commands,
                               GError **error);
DrQmp *dr_remote_qmp(DrRemoteQmp *remote); /* (transfer none) */
void dr_remote_qmp_free(DrRemoteQmp *remote);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrRemoteQmp, dr_remote_qmp_free)
