/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The control conversation of two droverds: questions and answers both ways over one connection, and a heartbeat: a link that dies
 * silently is known within 4 s. */
#pragma once
#include "net/conn.h"

typedef struct DrLink DrLink;

#define DR_LINK_DEAD_MS 3500 /* of silence; a heartbeat goes each way every second */

/* Answers the other side's questions, on a thread of the link's, one at a time. `params` is borrowed. (transfer full) */
typedef JsonObject *(*DrLinkHandler)(DrConn *conn, const char *method, JsonObject *params, gpointer data,
                                     GError **error);

/* Takes `conn` over, also on error, after its hello. `handler` NULL: all questions are refused. (transfer full) */
DrLink *dr_link_new(DrConn *conn, DrLinkHandler handler, gpointer data, GError **error);
/* Ends the conversation; waits for a question that is being answered. Not from a handler. */
void dr_link_free(DrLink *link);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrLink, dr_link_free)

/* Asks. `params` is not consumed. Any thread; 64 may ask at once. DR_ERROR_CLOSED: the link died, DR_ERROR_TIMEOUT: no answer came
 * (it is dropped if it comes later): what was asked may have been done. DR_ERROR_BUSY (more than 64), DR_ERROR_INVALID (longer
 * than a frame): it was not asked. Any other error is the handler's at the other side. (transfer full) */
JsonObject *dr_link_call(DrLink *link, const char *method, JsonObject *params, int timeout_ms,
                         GError **error);

gboolean dr_link_is_dead(DrLink *link);
/* Readable once it is dead. */
int dr_link_dead_fd(DrLink *link);
/* Ms there and back, the last measured; 0: not yet. */
double dr_link_round_trip(DrLink *link);
DrConn *dr_link_conn(DrLink *link); /* for its names (transfer none) */
