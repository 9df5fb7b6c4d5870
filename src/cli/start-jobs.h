/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Requests whose answer is a list, one object for each VM: jobs, or reports. */
#pragma once
#include "cli/cli.h"

/* With --json: one VM that was named gives an object (`single`), several or --all an array. */
void dr_cli_print_list(JsonArray *array, gboolean single);

/* Asks for reports of preflight, and prints each. Returns: the exit code; -1 with the error set. */
typedef void (*DrPrintReport)(JsonObject *report, gboolean color);
int dr_cli_check(DrCli *cli, const char *path, JsonObject *body, gboolean single, DrPrintReport print,
                 GError **error);

/* Follows jobs ({"id","vm","state"}) to their end. Returns: the exit code; -1 with the error set. */
int dr_cli_follow(DrCli *cli, JsonArray *jobs, GError **error);

/* Starts jobs and follows them to their end, unless `async`. Returns: the exit code; -1 with the error set. */
int dr_cli_start_jobs(DrCli *cli, const char *path, JsonObject *body, gboolean single, gboolean async,
                      GError **error);
