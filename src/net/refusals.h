/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The log of who was refused, in which a scanner must not write as it likes: ten lines a second, and how many more there were. */
#pragma once
#include <glib.h>

typedef struct {
  GMutex lock;
  gint64 second;
  guint lines;
} DrRefusals; /* zeroed */

/* From any thread. */
void dr_refusals_log(DrRefusals *refusals, const char *address, const char *why);
