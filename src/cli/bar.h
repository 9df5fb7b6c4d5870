/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bars of text. */
#pragma once
#include <glib.h>

/* Whether what is printed may be UTF-8, as the locale says. */
gboolean dr_bar_utf8(void);

/* "▕███▌    ▏", or "[###     ]": `width` columns and one at each end. (transfer full) */
char *dr_bar(double fraction, int width, gboolean utf8);

/* The same with only the part from `begin` to `end` (fractions) filled: at least one column. (transfer full) */
char *dr_bar_span(double begin, double end, int width, gboolean utf8);
