/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Do two command lines describe the same machine to the guest? QEMU itself does not check (QEMU-NOTES). */
#pragma once
#include "argv/argv.h"

/* One difference. `a` and `b` are NULL where that side has nothing. */
typedef struct {
  char *option; /* canonical: "device" */
  char *key;    /* "net0: mac" style path: the id or position, then the key; NULL for the option as a whole */
  char *a;
  char *b;
  char *text; /* the difference in one phrase, without a full stop */
} DrArgvDiff;

void dr_argv_diff_free(DrArgvDiff *diff);

/* Compares what the guest can see: machine type and properties, CPU, memory and topology, devices with their
 * order and properties, disks' interface, geometry and serial, NIC models and MACs, UUID, SMBIOS, fw_cfg,
 * ACPI tables, RTC base, firmware, kernel, globals, NUMA, boot order. Not what is the host's: sockets,
 * display, logs, caches, paths of sockets and images, accelerator tuning, sandbox. options.c says why for
 * each option.
 *
 * Equal in different words is equal: `-M q35` and `-machine type=q35`, `-m 1G` and `-m size=1024`, JSON and
 * keyval, `-no-hpet` and `-machine hpet=off`, short and long booleans, order of keys, order of options that
 * have no order. Machine type aliases ("pc") and CPU aliases are compared as text: pin them first.
 *
 * It looks at the text only: what `-readconfig` files, `-set`, hot-plug and firmware contents add is not
 * seen, and a difference in `-set` or `-readconfig` is reported as such.
 *
 * Returns: (transfer full) (element-type DrArgvDiff): empty if the two are equal; frees its elements
 * itself. */
GPtrArray *dr_argv_compare(const DrArgv *a, const DrArgv *b);
