/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where a job is asked things by others while it runs: the thread of a peer's connection puts a question in and waits, the job
 * takes it out when it is ready and answers. One question at a time; more wait for their turn. */
#pragma once
#include "base/json.h"

typedef struct DrMailbox DrMailbox;

DrMailbox *dr_mailbox_new(void);
DrMailbox *dr_mailbox_ref(DrMailbox *box);
void dr_mailbox_unref(DrMailbox *box);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrMailbox, dr_mailbox_unref)

/* Any thread. `params` is not consumed. Returns: (transfer full): the answer; NULL with the job's error, DR_ERROR_TIMEOUT, or
 * DR_ERROR_CLOSED when the job has ended. */
JsonObject *dr_mailbox_ask(DrMailbox *box, const char *method, JsonObject *params, int timeout_ms,
                           GError **error);

/* The job. Readable while a question is there. */
int dr_mailbox_fd(DrMailbox *box);
/* FALSE: there is none. *ret_params (transfer full). Every question that was taken is to be answered. */
gboolean dr_mailbox_take(DrMailbox *box, char **ret_method, JsonObject **ret_params);
/* `reply` is consumed; NULL: `error` is the answer (copied). */
void dr_mailbox_answer(DrMailbox *box, JsonObject *reply, const GError *error);
/* The job ends: nothing is taken any more. */
void dr_mailbox_close(DrMailbox *box);

/* --- Which can be asked ---
 *
 * The jobs of a kind by the names of their VMs. publish: takes the place of one before it. withdraw: only if it is still this
 * one's. find: (transfer full), NULL: there is none. Any thread. */
void dr_mailbox_publish(const char *kind, const char *vm, DrMailbox *box);
void dr_mailbox_withdraw(const char *kind, const char *vm, DrMailbox *box);
DrMailbox *dr_mailbox_find(const char *kind, const char *vm);
