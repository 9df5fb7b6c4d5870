/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Follows jobs to their end and shows it. */
#pragma once
#include "cli/cli.h"

/* `jobs` are job objects as droverd gave them; they are replaced by what they have become. `events`: a
 * stream that was opened before the jobs were asked for, so that nothing is missed; NULL: droverd is asked
 * instead. On a terminal each job that runs has live lines; otherwise each stage gets one; with --json
 * there is nothing, but with --events, which is a line of JSON for each of their events. Ctrl-C ends the process, saying how to come back, and not the jobs. Returns: the exit
 * code; -1 with the error set if droverd cannot be reached any more. */
int dr_follow(DrCli *cli, JsonArray *jobs, GDataInputStream *events, GError **error);
