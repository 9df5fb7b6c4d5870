/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is counted of jobs (base/metrics.h). */
#pragma once
#include <json-glib/json-glib.h>

/* Every kind of job that there is, NULL-terminated. */
extern const char *const dr_job_kinds[];

/* At droverd's start: all series at 0. */
void dr_job_metrics_prepare(void);

/* A job has ended, as `state` says; once for each. `record`: its members as docs/API.md has them. */
void dr_job_metrics_ended(const char *kind, const char *state, JsonObject *record);
