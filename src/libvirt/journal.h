/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One run over libvirt's domains, written down: for a recovery, and for whoever asks how far it is.
 *
 * DIR/run.json, replaced as a whole at each step. It survives the death of any process; after a reboot no domain is left to recover, and
 * libvirt's files in /run are gone, too.
 *
 *   {"state", "boot_id", "uri", "emulator", "memory", "parallel", "all", "daemon": daemon.h, "daemon_name", "away_ms", "total_ms",
 *    "steps_ms": {STATE: ms}, "error": null or {"code","message","remedy"},
 *    "domains": [{"name","uuid","vm","pid_before","start_time","pid","state","findings","facts","job","error","emulator_before","emulator"}]}
 *
 * States of a run, in order: checking, stopping, moving, patching, starting, verifying, done. Of a domain: waiting, refused, moving, moved (its
 * QEMU is the new one), patched (and libvirt's files say so), done; stayed (under the old one), lost (ended). */
#pragma once
#include "base/json.h"

typedef struct DrLibvirtJournal DrLibvirtJournal;

/* DR_ERROR_BUSY: another process is at it. `dir` is made. */
DrLibvirtJournal *dr_libvirt_journal_open(const char *dir, const char *run_dir, GError **error);
void dr_libvirt_journal_close(DrLibvirtJournal *journal);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrLibvirtJournal, dr_libvirt_journal_close)

/* What is in it, to be changed; NULL: nothing. (transfer none) */
JsonObject *dr_libvirt_journal_run(DrLibvirtJournal *journal);
void dr_libvirt_journal_set(DrLibvirtJournal *journal, JsonObject *run); /* consumed */
gboolean dr_libvirt_journal_save(DrLibvirtJournal *journal, GError **error);
/* Enters a state. For tests it holds there as dr_job_enter() does. */
gboolean dr_libvirt_journal_enter(DrLibvirtJournal *journal, const char *state, GError **error);
void dr_libvirt_journal_hold(DrLibvirtJournal *journal, const char *point);

void dr_libvirt_put_error(JsonObject *object, const GError *error);
