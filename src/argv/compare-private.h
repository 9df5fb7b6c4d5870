/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the comparison share. For compare*.c only.
 *
 * Each side is turned into facts, one value under (option, key), so that what means the same lands under the
 * same key in the same words (`-no-hpet` is the fact machine/hpet = off). Then the two sets are compared.
 * Devices, which have an order and need matching, are compared by themselves.
 */
#pragma once
#include "argv/compare.h"

typedef struct {
  char *option;
  char *key;       /* nullable: the option as a whole */
  char *value;     /* as it was written, for the reader */
  char *canonical; /* for comparing */
} DrFact;

typedef struct {
  GPtrArray *list;    /* (element-type DrFact), in order */
  GHashTable *by_key; /* "option\nkey" -> DrFact */
} DrFacts;

DrFacts *dr_facts_new(void);
void dr_facts_free(DrFacts *facts);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrFacts, dr_facts_free)

/* Sets a fact; a later one of the same key replaces it, as QEMU has it. `value` NULL: nothing is done. */
void dr_facts_put(DrFacts *facts, const char *option, const char *key, const char *value);
const char *dr_facts_get(const DrFacts *facts, const char *option, const char *key);

/* One spelling for a value: on/off, decimal numbers, bytes, lower case for MACs and UUIDs, PCI slots. The
 * last word of `key` says what it is: texts that the guest reads as they are (a serial, the kernel's command
 * line) stay so. (transfer full) */
char *dr_compare_canonical(const char *option, const char *key, const char *value);

void dr_compare_add(GPtrArray *diffs, const char *option, const char *key, const char *a, const char *b);

/* Adds what differs between two sets of facts. */
void dr_compare_facts(const DrFacts *a, const DrFacts *b, GPtrArray *diffs);

/* compare-board.c: everything but devices, disks and network cards. */
void dr_facts_board(DrFacts *facts, const DrArgv *argv);
/* compare-drives.c: disks without -device, network cards of -nic and -net, user networks, ports. */
void dr_facts_drives(DrFacts *facts, const DrArgv *argv);
/* compare-devices.c: -device. */
void dr_compare_devices(const DrArgv *a, const DrArgv *b, GPtrArray *diffs);

/* The value of `key` in the option `name` whose id is `id`. (transfer full) (nullable) */
char *dr_compare_backend_value(const DrArgv *argv, const char *name, const char *id, const char *key);
