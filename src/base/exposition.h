/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Writing metrics in Prometheus' text format 0.0.4
 * (https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format). */
#pragma once
#include <glib.h>

/* The lines # HELP and # TYPE, which go before a family's samples. `type`: "counter", "gauge", "histogram". `help`: one line. */
void dr_exposition_head(GString *out, const char *name, const char *type, const char *help);

/* One sample. `labels`: names and values by turns, NULL-terminated, nullable; a value may be any text and is escaped (and made
 * valid UTF-8). Integers below 10^15 come out exactly. */
void dr_exposition_sample(GString *out, const char *name, const char *const *labels, double value);

/* A family of one sample without labels. */
void dr_exposition_one(GString *out, const char *name, const char *type, const char *help, double value);
