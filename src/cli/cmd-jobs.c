/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover jobs, job, cancel. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/job-view.h"
#include "cli/list.h"
#include "cli/render.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char *
took(JsonObject *job)
{
  gint64 start = dr_json_int(job, "started_ms", 0);
  gint64 end = dr_json_int(job, "ended_ms", g_get_real_time() / 1000);

  return start ? dr_render_ms((double)MAX(end - start, 0)) : g_strdup("-");
}

static char *
started(JsonObject *job)
{
  return dr_list_time(job, "started_ms");
}

static char *
ended(JsonObject *job)
{
  return dr_list_time(job, "ended_ms");
}

static char *
error_text(JsonObject *job)
{
  return g_strdup(dr_json_str(job, "error.message", "-"));
}

static const DrColumn columns[] = {
  { "id" },
  { "kind" },
  { "vm" },
  { "state", .is_state = TRUE },
  { "stage" },
  { "started", .text = started },
  { "took", .text = took },
  { "ended", .text = ended, .wide = TRUE },
  { "error", .text = error_text, .wide = TRUE },
  { NULL },
};

int
dr_cmd_jobs(DrCli *cli, int argc, char **argv)
{
  DrListOptions options = { 0 };
  const GOptionEntry entries[] = { DR_LIST_ENTRIES(options, ""), { NULL } };
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonArray) rows = NULL;
  int code = -1;

  cli->columns = columns;
  if (dr_cli_parse(cli, argc, argv, entries, 0, 0, &error) && dr_list_check(cli, &options, columns, &error))
    rows = dr_cli_call_list(cli, "GET", "/v1/jobs", NULL, &error);
  if (rows)
    code = dr_list_print(cli, &options, columns, rows, "no jobs");
  g_free(options.output);
  return code >= 0 ? code : dr_cli_fail(cli, error);
}

/* By the unit that stands in the member's name. */
static char *
in_its_unit(JsonObject *result, const char *name)
{
  if (g_str_has_suffix(name, "_ms"))
    return dr_render_ms(dr_render_number(result, name, 0));
  if (strstr(name, "bytes"))
    return dr_render_bytes(dr_render_number(result, name, 0));
  return dr_render_member(result, name);
}

static void
print_result(JsonObject *result)
{
  g_autoptr(GList) names = result ? json_object_get_members(result) : NULL;

  for (GList *name = names; name; name = name->next) {
    g_autofree char *text = in_its_unit(result, name->data);

    printf("  %-20s %s\n", (const char *)name->data, text);
  }
}

static void
print_job(JsonObject *job, gboolean color)
{
  g_autofree char *sentence = dr_job_view_sentence(job);
  g_autofree char *state = dr_render_state(dr_json_str(job, "state", "?"), color);
  g_autofree char *progress = dr_job_view_progress(job);
  g_autofree char *begin = started(job);
  g_autofree char *end = ended(job);
  g_autofree char *time = took(job);
  const char *remedy = dr_json_str(job, "error.remedy", NULL);

  printf("job %s: %s of %s, %s\n", dr_json_str(job, "id", "?"), dr_json_str(job, "kind", "?"),
         dr_json_str(job, "vm", "?"), state);
  printf("  %-20s %s\n  %-20s %s\n  %-20s %s\n  %-20s %s\n", "stage", progress, "started", begin, "ended",
         end, "took", time);
  if (dr_job_view_ended(job))
    printf("%s\n", sentence);
  if (remedy)
    printf("  remedy: %s\n", remedy);
  print_result(dr_json_obj(job, "result"));
  fflush(stdout);
  dr_job_view_print_findings(dr_json_str(job, "vm", "?"), dr_json_arr(job, "findings"), TRUE, color);
}

/* The exit code is that of asking, not that of the job: `drover watch ID` ends with the job's. */
int
dr_cmd_job(DrCli *cli, int argc, char **argv)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = NULL;

  if (!dr_cli_parse(cli, argc, argv, NULL, 1, 1, &error))
    return dr_cli_fail(cli, error);
  answer = dr_cli_call(cli, "GET", "/v1/jobs/{}", cli->words[0], NULL, &error);
  if (!answer)
    return dr_cli_fail(cli, error);
  if (cli->json || !JSON_NODE_HOLDS_OBJECT(answer))
    dr_cli_print_json(answer);
  else
    print_job(json_node_get_object(answer), dr_render_color(STDOUT_FILENO, cli->no_color));
  return DR_EXIT_DONE;
}

static void
tell_cancelled(const char *id, JsonObject *job)
{
  printf("job %s (%s): asked to stop, see drover watch %s\n", id, dr_json_str(job, "vm", "?"), id);
}

int
dr_cmd_cancel(DrCli *cli, int argc, char **argv)
{
  g_autoptr(GError) error = NULL;

  if (!dr_cli_parse(cli, argc, argv, NULL, 1, 1, &error))
    return dr_cli_fail(cli, error);
  return dr_cli_each(cli, "POST", "/v1/jobs/{}/cancel", NULL, tell_cancelled);
}
