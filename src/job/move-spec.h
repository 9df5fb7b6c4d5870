/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What one host tells another of a VM that is to come to it: one JSON object, written where the guest runs, read where it
 * shall run. docs/PROTOCOL.md lists its members. */
#pragma once
#include "job/preflight.h"

/* `forwards`: as dr_upgrade_forwards(). Findings for what cannot travel (a descriptor that somebody handed to QEMU and that is
 * no tap) go into pre->findings. (transfer full) */
JsonObject *dr_move_spec_write(DrVm *vm, const DrPreflight *pre, JsonArray *forwards, DrQmp *source,
                               GError **error);

/* Fills the record of a new VM (cwd, env, command line, kind of RAM) and makes a preflight of the departure's half: truth,
 * needs, ram, machine, kvm, was_running. DR_ERROR_INVALID for what no droverd would send. */
DrPreflight *dr_move_spec_read(JsonObject *spec, DrVmRecord *record, GError **error);

/* Of the tap behind a need (an index into pre->needs), or NULL: {"need","ifname","bridge"?,"queues","mtu"}. (transfer none) */
JsonObject *dr_move_spec_tap(JsonObject *spec, guint need);

/* --- Is the storage the same? --- */

/* Where the guest runs: puts a file with a random name beside each image, and lists them: [{"path","size","token"?}]; without
 * the right to, only the sizes are compared. `ret_tokens`: the files, to be removed by dr_move_tokens_free(). */
JsonArray *dr_move_tokens_make(const DrInventory *inventory, const char *cwd, GPtrArray **ret_tokens);
void dr_move_tokens_free(GPtrArray *tokens);

/* Where it shall run: whether the image is there and is the same file. */
gboolean dr_move_tokens_is_same(JsonObject *disk);

/* The values of a command line's "-object secret" words, by id. (transfer full) */
GHashTable *dr_move_spec_secrets(const DrArgv *argv);

/* Where it shall run: a blocker for each image that is not there, or is another file. */
void dr_move_tokens_check(JsonArray *disks, DrFindings *findings);
