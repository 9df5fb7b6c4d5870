/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The log of who was refused, in which a scanner must not write as it likes: ten lines a second, and how many more there were. */
#pragma once
#include <glib.h>

typedef struct {
  GMutex lock;
  gint64 second;
  guint lines;
} DrRefusals; /* zeroed */

/* What was the matter, for the count of them. */
#define DR_REFUSED_BUSY "busy"       /* too many at a time, or others waited */
#define DR_REFUSED_TIMEOUT "timeout" /* it said nothing, or not enough, in time */
/* else dr_error_code_name() of the error: "refused" (its certificate, its token, its name), "closed", … */

/* Before the first: all of the counts are there, at 0. */
void dr_refusals_prepare(void);

/* From any thread. `why` is for the log, `reason` one of the above. */
void dr_refusals_log(DrRefusals *refusals, const char *address, const char *reason, const char *why);
