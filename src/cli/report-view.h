/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A job's report (docs/API.md) as numbers: what its text and its page have in common. */
#pragma once
#include "base/json.h"

/* One pass over the memory, or one phase of something else: samples in a row that say the same pass and phase. */
typedef struct {
  const char *phase; /* of the report */
  int pass;
  double begin_ms, end_ms;
  double remaining;             /* bytes, when it began; -1: not known */
  double rate_mib, dirty_mib;   /* means; -1: not known */
  double disk_done, disk_total; /* bytes, when it ended; -1: no disks */
} DrReportPass;

/* (transfer full) (element-type DrReportPass) */
GArray *dr_report_passes(JsonObject *report);

/* When the job ended, or what is known of it does; ms since it started. */
double dr_report_end_ms(JsonObject *report);

/* What was expected of it and what came, by the job's result and its pause. */
typedef struct {
  const char *what;
  double expected_ms, real_ms; /* -1: not known */
} DrReportExpected;
#define DR_REPORT_EXPECTED 2
void dr_report_expected(JsonObject *report, DrReportExpected ret[DR_REPORT_EXPECTED]);

/* "upgrade of web1: succeeded". (transfer full) */
char *dr_report_title(JsonObject *report);
/* What a part of a pause is, in words; "" for one that is not known here. */
const char *dr_report_part_words(const char *name);

/* The text, to stdout. */
void dr_report_print(JsonObject *report, gboolean color, gboolean utf8);
/* The page. (transfer full) */
char *dr_report_html(JsonObject *report);
