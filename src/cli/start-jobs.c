/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Starting jobs and showing what they are. */
#include "cli/start-jobs.h"
#include "base/error.h"
#include "cli/follow.h"
#include "cli/render.h"

#include <stdio.h>
#include <unistd.h>

void
dr_cli_print_list(JsonArray *array, gboolean single)
{
  g_autoptr(JsonNode) node = NULL;

  if (single && json_array_get_length(array) == 1) {
    node = json_array_dup_element(array, 0);
  } else {
    node = json_node_new(JSON_NODE_ARRAY);
    json_node_set_array(node, array);
  }
  dr_cli_print_json(node);
}

static void
print_started(JsonArray *jobs)
{
  for (guint i = 0; i < json_array_get_length(jobs); i++) {
    JsonObject *job = json_array_get_object_element(jobs, i);

    printf("%s: job %s\n", dr_json_str(job, "vm", "?"), dr_json_str(job, "id", "?"));
  }
}

static gboolean
check_events(const DrCli *cli, gboolean async, GError **error)
{
  if (!cli->events || !async)
    return TRUE;
  dr_error_set(error, DR_ERROR_INVALID, "%s: --events and --async exclude each other", cli->verb->name);
  return dr_error_remedy(error, "start it with --async --json, then drover watch JOB --json");
}

/* The event stream is opened first, so that the jobs' first stages are in it. Without one (droverd has no place for more)
 * droverd is asked. */
int
dr_cli_start_jobs(DrCli *cli, const char *path, JsonObject *body, gboolean single, gboolean async,
                  GError **error)
{
  DrClient *client = check_events(cli, async, error) ? dr_cli_client(cli, error) : NULL;
  g_autoptr(GDataInputStream) events = client && !async ? dr_client_events(client, "", NULL) : NULL;
  g_autoptr(JsonArray) jobs = client ? dr_cli_call_list(cli, "POST", path, body, error) : NULL;
  int code = DR_EXIT_DONE;

  if (!jobs)
    return -1;
  if (!async)
    code = dr_follow(cli, jobs, events, error);
  else if (!cli->json)
    print_started(jobs);
  if (code >= 0 && cli->json && !cli->events)
    dr_cli_print_list(jobs, single);
  else if (code >= 0 && json_array_get_length(jobs) == 0)
    fprintf(stderr, "no VMs to %s\n", cli->verb->name);
  return code;
}

int
dr_cli_follow(DrCli *cli, JsonArray *jobs, GError **error)
{
  return dr_follow(cli, jobs, NULL, error);
}

int
dr_cli_check(DrCli *cli, const char *path, JsonObject *body, gboolean single, DrPrintReport print,
             GError **error)
{
  g_autoptr(JsonArray) reports = dr_cli_call_list(cli, "POST", path, body, error);
  gboolean color = dr_render_color(STDOUT_FILENO, cli->no_color);
  int code = DR_EXIT_DONE;

  if (!reports)
    return -1;
  for (guint i = 0; i < json_array_get_length(reports); i++) {
    JsonObject *report = json_array_get_object_element(reports, i);

    if (!cli->json)
      print(report, color);
    if (!dr_json_bool(report, "ok", FALSE))
      code = DR_EXIT_FAILED;
  }
  if (cli->json)
    dr_cli_print_list(reports, single);
  return code;
}
