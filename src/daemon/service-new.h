/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Making and ending the service; what it can do is in service.h. */
#pragma once
#include "daemon/config.h"
#include "daemon/service.h"
#include "net/tls.h"
#include "vm/host.h"

/* fnmatch(3) patterns of the QEMUs that a peer may have started. (transfer none) */
char **dr_service_binaries(DrService *service);

/* Loads the VMs of the state file, brings to an end what jobs an earlier droverd left, and watches what runs. The
 * recovery goes on in threads of its own. */
DrService *dr_service_new(DrHost *host, const DrConfig *config, GError **error);

/* This host's keys, for another server of droverd's. (transfer full); NULL with the error set. */
DrTlsContext *dr_service_keys(DrService *service, GError **error);

/* Requests that wait for a guest end soon. */
void dr_service_end_waits(DrService *service);

/* VMs run on. Jobs under way are given `grace_ms` to end; what does not is recovered by the next droverd: FALSE, and nothing
 * that the service uses may be freed. */
gboolean dr_service_free(DrService *service, int grace_ms);
