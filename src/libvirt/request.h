/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a request asks for: which domains, and what can be said of each. Nothing is changed.
 *
 * A request: {"uri","domains": [name or UUID…] or null (all),"emulator": path or null,"memory","untested","parallel"}. */
#pragma once
#include "base/json.h"
#include "libvirt/view.h"

/* Whether all that it names are running domains; DR_ERROR_NOT_FOUND: one is not. */
gboolean dr_libvirt_request_is_known(const DrLibvirtPlaces *places, JsonObject *request, GError **error);

/* [check.h's report with "start_time","monitor","log_file"] of those that are meant. `stops`: libvirt's daemon is to be stopped;
 * DR_ERROR_BUSY: it has a job under way, on whichever domain, that would end with it. (transfer full) */
JsonArray *dr_libvirt_request_check(const DrLibvirtPlaces *places, const char *cache_dir, JsonObject *request,
                                    gboolean stops, GError **error);
