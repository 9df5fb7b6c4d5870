/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How many there are of something, in all and from each address, with a bound on either. Any thread; counted references, for what
 * is counted may outlive who counts. */
#pragma once
#include <glib.h>

typedef struct DrTally DrTally;

DrTally *dr_tally_new(guint max_all, guint max_one);
DrTally *dr_tally_ref(DrTally *tally);
void dr_tally_unref(DrTally *tally);

/* FALSE: there are as many as there may be. */
gboolean dr_tally_add(DrTally *tally, const char *address);
void dr_tally_remove(DrTally *tally, const char *address);
gboolean dr_tally_has_room(DrTally *tally, const char *address);
gboolean dr_tally_is_full(DrTally *tally); /* for all */
guint dr_tally_count(DrTally *tally);
guint dr_tally_count_of(DrTally *tally, const char *address);
