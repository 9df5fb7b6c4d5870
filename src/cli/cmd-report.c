/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover report, stats. */
#include "base/error.h"
#include "cli/bar.h"
#include "cli/cli.h"
#include "cli/render.h"
#include "cli/report-view.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* --- report --- */

static gboolean
write_page(JsonObject *report, const char *path, GError **error)
{
  g_autofree char *page = dr_report_html(report);
  g_autoptr(GError) cause = NULL;

  if (g_str_equal(path, "-"))
    return (fputs(page, stdout) >= 0 && fflush(stdout) == 0) ||
           dr_error_set(error, DR_ERROR_IO, "report: cannot write to standard output");
  if (g_file_set_contents(path, page, -1, &cause))
    return TRUE;
  dr_error_set(error, DR_ERROR_IO, "report: %s", cause->message);
  return dr_error_remedy(error, "name another file, or - for standard output");
}

static gboolean
check(const DrCli *cli, const char *html, GError **error)
{
  if (html && cli->json)
    return dr_error_set(error, DR_ERROR_INVALID, "report: --html and --json exclude each other");
  return !html || *html || dr_error_set(error, DR_ERROR_INVALID, "report: the file's name is empty");
}

static gboolean
show(DrCli *cli, JsonNode *answer, const char *html, GError **error)
{
  if (cli->json || !JSON_NODE_HOLDS_OBJECT(answer)) {
    dr_cli_print_json(answer);
    return TRUE;
  }
  if (html)
    return write_page(json_node_get_object(answer), html, error);
  dr_report_print(json_node_get_object(answer), dr_render_color(STDOUT_FILENO, cli->no_color), dr_bar_utf8());
  return TRUE;
}

/* The exit code is that of asking, not that of the job, as `drover job` has it. */
int
dr_cmd_report(DrCli *cli, int argc, char **argv)
{
  g_autofree char *html = NULL;
  const GOptionEntry entries[] = {
    { "html", 0, 0, G_OPTION_ARG_FILENAME, &html, "Write a page with plots into this file (-: to stdout)",
      "FILE|-" },
    { NULL },
  };
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = NULL;

  if (dr_cli_parse(cli, argc, argv, entries, 1, 1, &error) && check(cli, html, &error))
    answer = dr_cli_call(cli, "GET", "/v1/jobs/{}/report", cli->words[0], NULL, &error);
  return answer && show(cli, answer, html, &error) ? DR_EXIT_DONE : dr_cli_fail(cli, error);
}

/* --- stats --- */

static void
add_times(DrTable *table, JsonObject *kind, const char *member)
{
  static const char *const numbers[] = { "p50", "p99", "max" };
  JsonObject *times = dr_json_obj(kind, member);

  for (guint i = 0; i < G_N_ELEMENTS(numbers); i++)
    dr_table_add(table, times ? dr_render_ms(dr_render_number(times, numbers[i], 0)) : g_strdup("-"), FALSE);
}

static void
print_stats(JsonArray *kinds)
{
  static const char *const titles[] = { "KIND",      "JOBS",      "SUCCEEDED", "FAILED", "CANCELLED",
                                        "ATTENTION", "PAUSE p50", "p99",       "max",    "TOOK p50",
                                        "p99",       "max",       NULL };
  static const char *const counts[] = { "kind", "jobs", "succeeded", "failed", "cancelled", "attention" };
  DrTable *table = dr_table_new(titles);

  for (guint i = 0; i < json_array_get_length(kinds); i++) {
    JsonObject *kind = json_array_get_object_element(kinds, i);

    for (guint c = 0; c < G_N_ELEMENTS(counts); c++)
      dr_table_add(table, dr_render_member(kind, counts[c]), FALSE);
    add_times(table, kind, "pause_ms");
    add_times(table, kind, "total_ms");
  }
  dr_table_print(table, FALSE);
}

static JsonNode *
fetch_stats(DrCli *cli, const char *kind, GError **error)
{
  if (kind && strlen(kind) > 40) {
    dr_error_set(error, DR_ERROR_INVALID, "stats: '%.40s…' is no kind of job", kind);
    return NULL;
  }
  return dr_cli_call(cli, "GET", kind ? "/v1/stats?kind={}" : "/v1/stats", kind, NULL, error);
}

int
dr_cmd_stats(DrCli *cli, int argc, char **argv)
{
  g_autofree char *kind = NULL;
  const GOptionEntry entries[] = {
    { "kind", 0, 0, G_OPTION_ARG_STRING, &kind, "Only jobs of this kind", "KIND" },
    { NULL },
  };
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = NULL;
  JsonArray *kinds;

  if (dr_cli_parse(cli, argc, argv, entries, 0, 0, &error))
    answer = fetch_stats(cli, kind, &error);
  if (!answer)
    return dr_cli_fail(cli, error);
  kinds = JSON_NODE_HOLDS_OBJECT(answer) ? dr_json_arr(json_node_get_object(answer), "kinds") : NULL;
  if (cli->json || !kinds)
    dr_cli_print_json(answer);
  else if (json_array_get_length(kinds) == 0)
    fputs("no jobs\n", stderr);
  else
    print_stats(kinds);
  return DR_EXIT_DONE;
}
