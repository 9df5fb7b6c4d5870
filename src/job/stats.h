/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How jobs of each kind have gone, over all that are on record. */
#pragma once
#include "store/store.h"

/* {"kinds": [{"kind","jobs","succeeded","failed","cancelled","attention","pause_ms","total_ms"}]}, by the kind's name; the times are of
 * the jobs that succeeded: {"p50","p99","max"}, or null where there is none. `kind` (nullable): only this one. Errors: INVALID for a kind
 * that no job can have. */
JsonObject *dr_stats(DrStore *store, const char *kind, GError **error);

/* By nearest rank: the least of them that is not below `percent` of them all. `sorted` is not empty. */
double dr_stats_percentile(const double *sorted, guint n, guint percent);
