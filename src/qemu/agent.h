/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest agent (qemu-guest-agent) of a VM, by the host's end of its virtio-serial port. JSON lines without ids: after a timeout
 * nothing can be told from an answer that comes late, so each connection begins with guest-sync-delimited. */
#pragma once
#include "base/deadline.h"
#include "base/json.h"

typedef struct DrAgent DrAgent;

/* Connects to the unix socket `path`, and finds out that an agent answers. Errors: CLOSED: nobody listens there; TIMEOUT: no agent
 * answers, or another client has it. (transfer full) */
DrAgent *dr_agent_connect(const char *path, DrDeadline deadline, GError **error);
void dr_agent_free(DrAgent *agent);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrAgent, dr_agent_free)

/* Runs a command of the agent's. `arguments` is consumed, and may be NULL. Errors: QMP with the agent's text, TIMEOUT, CLOSED. After
 * the last two the connection is of no use any more. (transfer full) */
JsonNode *dr_agent_call(DrAgent *agent, const char *command, JsonObject *arguments, DrDeadline deadline,
                        GError **error);
