/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A DrService without VMs, for the tests of the API and the command line: what it does goes by the names
 * it is asked for.
 *
 * VMs: web1, web2 exist. run: "taken" is EXISTS, "slow" takes until fake_release(). show: "attention"
 * needs a person, "big" has 8 MiB. upgrade: web1, web2 succeed in a few stages; "bad" is refused with two
 * blockers; "att" ends in attention; "hang" runs until it is cancelled; "nosuch" fails the request.
 * peers: host2, host3 exist; "taken" is EXISTS, "no…" NOT_FOUND. console: "web1" echoes, "flood" prints without end, "deaf" never reads, "ends" says bye and ends. */
#pragma once
#include "base/events.h"
#include "daemon/service.h"

DrService *fake_service_new(DrEvents *events);
void fake_service_free(DrService *service); /* waits for its threads */
void fake_release(DrService *service);
/* The request body that the last run/adopt/upgrade/stop/qmp had, as text. (transfer full) */
char *fake_last_request(DrService *service);
/* Bytes that the "flood" console has written so far. */
gsize fake_flooded(DrService *service);
