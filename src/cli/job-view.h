/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A job as people read it. */
#pragma once
#include "cli/cli.h"

gboolean dr_job_view_ended(JsonObject *job);

/* 0, 1 or 3. */
int dr_job_view_exit(JsonObject *job);

/* One line, no newline: "web1: upgraded 7.2.22 -> 10.0.11, paused 2.9 ms, …", or how it ended otherwise.
 * (transfer full) */
char *dr_job_view_sentence(JsonObject *job);

/* How far it is: "copying RAM 40% (1.2 GB of 3.0 GB, 812 MiB/s, pass 2)". (transfer full) */
char *dr_job_view_progress(JsonObject *job);

/* How it ended: a sentence on stdout, or the error on stderr with every blocker and remedy. */
void dr_job_view_print_end(JsonObject *job);

/* The findings of a job or a report that are not blockers, on stderr. Blockers too, if asked. */
void dr_job_view_print_findings(const char *vm, JsonArray *findings, gboolean blockers, gboolean color);

/* `findings`: nullable. Each blocker of theirs with its remedy, indented, on stderr. */
guint dr_job_view_count_blockers(JsonArray *findings);
void dr_job_view_print_blockers(JsonArray *findings);

/* A memory mode in words: "shared RAM". */
const char *dr_job_view_memory(const char *mode);
