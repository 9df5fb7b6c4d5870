/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The service's side of the network: what is asked by peers. */
#pragma once
#include "daemon/service.h"
#include "daemon/config.h"
#include "daemon/expiry.h"
#include "job/job.h"

/* Reads the keys, so that jobs can reach peers; without keys they are told why they cannot. An error only where droverd is to
 * listen. */
gboolean dr_service_open_net(DrService *service, const DrConfig *config, GError **error);
/* Opens the port, when what an earlier droverd left is known to those who may ask for it. */
gboolean dr_service_listen(DrService *service, GError **error);
void dr_service_close_net(DrService *service);

/* Of the keys that are in use; NULL: there are none. (transfer none) */
const DrExpiry *dr_service_expiry(DrService *service);

/* Whether the configuration allows that transport ("tunnel", "plain", "handoff"). */
gboolean dr_service_allows_transport(DrService *service, const char *name);

/* Tokens for `n` streams without TLS, of index 0 on, that a peer may open; (transfer full). */
JsonArray *dr_service_stream_tokens(DrService *service, const char *peer, const char *move, gint64 epoch,
                                    guint n);
/* The same for `n` streams of NBD. */
JsonArray *dr_service_nbd_tokens(DrService *service, const char *peer, const char *move, guint n);

/* A question of a peer. Any thread. (transfer full) */
JsonObject *dr_service_answer_peer(DrService *service, const char *peer, const char *method,
                                   JsonObject *params, GError **error);

/* A job of an earlier droverd, of the kind "migrate" or "incoming". */
gboolean dr_service_recover_move(DrJob *job, GError **error);
