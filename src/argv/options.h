/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The options of qemu-system-x86_64 5.2, 7.2, 10.0 and 11.1 as a table: spelling, argument, meaning for a
 * move.
 *
 * Source: the `qemu_options` table inside the four binaries of Debian (names, has-arg, target mask), their
 * -help, query-command-line-options, and trying each out; tests/unit/check-options.py compares again.
 */
#pragma once
#include <glib.h>

/* The QEMU versions that the table knows, as a bit set. A version between two of them is not judged. */
typedef enum {
  DR_QEMU_NONE =
      0, /* removed before 5.2, or a distributor's: known so that its argument is not taken for an image */
  DR_QEMU_5_2 = 1 << 0,
  DR_QEMU_7_2 = 1 << 1,
  DR_QEMU_10_0 = 1 << 2,
  DR_QEMU_11_1 = 1 << 3,
  DR_QEMU_ALL = (1 << 4) - 1,
} DrQemuVersions;

/* What follows an option. */
typedef enum {
  DR_VALUE_NONE,        /* nothing: the option takes no argument */
  DR_VALUE_OPAQUE,      /* one word of its own kind: a number, a name, free text */
  DR_VALUE_PATH,        /* a file name of the host, taken literally: a comma is a comma */
  DR_VALUE_KEYVAL,      /* key=value,key=value with doubled commas */
  DR_VALUE_KEYVAL_JSON, /* the same, or a JSON object where the value begins with '{' (since 5.2 to 7.2) */
  DR_VALUE_CHARDEV,     /* the short form of a character device, dr_chardev_parse() */
  DR_VALUE_CPU,         /* -cpu: model,+feature,-feature,feature=value; commas cannot be doubled */
  DR_VALUE_GLOBAL,      /* -global: driver.property=value, or key=value */
} DrValueKind;

/* What a second occurrence of the option does. */
typedef enum {
  DR_REPEAT_EACH,  /* each one adds something: -device, -drive, -smbios */
  DR_REPEAT_LAST,  /* the last one counts: -uuid, -cpu, -bios */
  DR_REPEAT_MERGE, /* their keys are merged, later ones win: -machine, -m, -smp, -boot, -name, -rtc */
} DrRepeat;

/* Can the guest see it, so that source and destination must agree? */
typedef enum {
  DR_GUEST_HIDDEN, /* the host's business */
  DR_GUEST_PARTLY, /* some of its keys are; compare.c holds the list */
  DR_GUEST_SEEN,   /* all of it is */
} DrGuestView;

typedef struct {
  const char *name;  /* canonical, without dashes: "machine" */
  const char *alias; /* another spelling of the same: "M"; NULL if none */
  DrValueKind kind;
  const char *implied;     /* the key that the first value has without saying so; NULL if none */
  DrQemuVersions versions; /* which of the four know it */
  DrRepeat repeat;
  DrGuestView guest;
  const char *why; /* why `guest` is what it is, one phrase */
  const char
      *successor; /* for an option that some of the four lack: what says the same there; NULL if nothing */
} DrOptInfo;

/* The whole table, ordered by name. *ret_n is its length. Never freed. */
const DrOptInfo *dr_options_table(gsize *ret_n);

/* Looks an option up by name or alias, with no, one or two dashes ("m", "-m", "--m", "-M").
 * QEMU compares case-sensitively and in full: no abbreviations, no `-option=value` (5.2 to 11.1).
 * Returns: (transfer none) (nullable): NULL for a name that no version has. */
const DrOptInfo *dr_option_lookup(const char *name);

/* Whether the option consumes the next word. */
gboolean dr_option_has_arg(const DrOptInfo *info);

/* The bit of the newest version in the table that is not newer than major.minor ("which column holds for
 * 8.2?"); DR_QEMU_5_2 for anything older. */
DrQemuVersions dr_option_version_bit(int major, int minor);
