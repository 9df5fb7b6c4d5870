/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest that comes from another host: the job of the host that it comes to. It does what the other host's job asks for
 * (docs/PROTOCOL.md), decides nothing alone but to give the guest up as long as it has not been told to run it, and never runs
 * it untold. */
#pragma once
#include "job/job.h"
#include "job/mailbox.h"
#include "net/conn.h"

/* The request of such a job: {"move":ID,"peer":NAME,"spec":{…},"qemu":PATH?,"binaries":[…]}. */
gboolean dr_incoming_run(DrJob *job, GError **error);
gboolean dr_incoming_recover(DrJob *job, GError **error);

/* Only what stands in the way: {"findings","qemu","binary"}. `vm`: a new VM whose record is filled from the spec. (transfer full) */
JsonObject *dr_incoming_check(DrVm *vm, JsonObject *request, GError **error);

/* The questions to the job that runs for a move of that peer's, or NULL. (transfer full) */
DrMailbox *dr_incoming_find(const char *move, const char *peer);

/* Where the new QEMU reads the guest's state, for streams of that epoch (0, and one more after each recovery); NULL: not yet.
 * (transfer full) */
char *dr_incoming_socket(const char *move, const char *peer, gint64 epoch);

/* Where the new QEMU serves the disks that are copied to it; NULL: it does not. (transfer full) */
char *dr_incoming_nbd_socket(const char *move, const char *peer);

/* Whether the new QEMU waits for the socket of that epoch's stream itself; and gives it one. Takes `conn` over, also on error. */
gboolean dr_incoming_wants_socket(const char *move, const char *peer, gint64 epoch);
gboolean dr_incoming_hand(const char *move, DrConn *conn, GError **error);
