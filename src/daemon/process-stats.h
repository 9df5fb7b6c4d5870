/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* This process as every Prometheus client shows its own: process_cpu_seconds_total and so on. */
#pragma once
#include <glib.h>

/* What cannot be found out is left out. */
void dr_process_stats_print(GString *out);
