/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The host's memory that copies under way have been promised: each begins with an empty file that fills as it goes, so that
 * MemAvailable alone would promise the same bytes to every job of `upgrade --all`. */
#pragma once
#include <glib.h>

#define DR_MEMORY_SPARE ((guint64)256 << 20) /* bytes, left for the host */

/* Takes `bytes` if so many and DR_MEMORY_SPARE are free: MemAvailable less all promises. A copy under way counts with all
 * of its size, also what it has used by now: rather too little than too much. `ret_free`: bytes free before. Any thread.
 * The taker gives back exactly what it took, when its old memory is gone. */
gboolean dr_memory_promise(guint64 bytes, guint64 *ret_free);
void dr_memory_give_back(guint64 bytes);
