/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a command line says of a guest that no second QEMU can stand beside, or that no stream can carry. */
#pragma once
#include "argv/argv.h"
#include "base/finding.h"

/* Adds a blocker for each: things that only the command line tells (-readconfig, -snapshot, -curses …), and those of which
 * dr_inventory_blockers() sees the device but not the reason. A usual command line adds nothing. */
void dr_argv_blockers(const DrArgv *argv, DrFindings *findings);
