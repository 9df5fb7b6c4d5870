/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which of a QEMU's taps is which netdev's.
 *
 * A netdev whose interface has a name that somebody wrote down, or that QEMU tells ("info network"), is known by it. A helper
 * (-netdev bridge, -netdev tap,br=…) hands QEMU a tap under a name that neither knows: what is left over when all others have
 * theirs. One netdev and one interface: that is it. Several: those in one bridge are put in the order in which they were made,
 * which is that of the command line; taken for each other, two ports of one bridge would still be on the same network. What
 * is not certain is a finding, never a guess. */
#pragma once
#include "argv/rewrite.h"
#include "job/inventory.h"
#include "qemu/proc.h"

/* `needs`: of DrNeed. `taps`: dr_inventory_taps(). `open`: dr_proc_fds() of the QEMU, which must be in our network namespace.
 * Returns the queues of each need, GPtrArray of DrProcFd (borrowed from `open`), by DrNeed; a need of another kind has none.
 * A netdev whose tap is not certain has none either, and is a blocker "tap" in `findings`. (transfer full) */
GHashTable *dr_tap_queues(const GPtrArray *needs, const GPtrArray *taps, const GPtrArray *open,
                          DrFindings *findings);
