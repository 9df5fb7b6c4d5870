/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QEMU's migration as both an upgrade and a move to another host use it: capabilities, states, where a run state leads. */
#pragma once
#include "qmp/qmp.h"

/* Turns `wanted` (NULL-terminated) on and all others off: a QEMU that arrived by post-copy still has postcopy-ram, and refuses
 * x-ignore-shared then. "events" is always on: without it an old QEMU tells nothing. DR_ERROR_UNSUPPORTED names one that this QEMU
 * does not know. */
gboolean dr_migration_set_capabilities(DrQmp *qmp, const char *const *wanted, GError **error);

/* query-migrate's "status": "none" before the first, "unknown" if it cannot be asked. (transfer full) */
char *dr_migration_status(DrQmp *qmp);
gboolean dr_migration_is_moving(const char *status);   /* pre-copy: from setup to device */
gboolean dr_migration_is_postcopy(const char *status); /* postcopy-active, -paused, -recover… */

/* query-status's "status". (transfer full) */
char *dr_migration_run_state(DrQmp *qmp);
/* A state in which a QEMU is that has not run yet, or was paused. In the others (io-error, guest-panicked, shutdown, …) it came
 * by running, and there the guest is to be left. */
gboolean dr_migration_waits_for_cont(const char *state);
