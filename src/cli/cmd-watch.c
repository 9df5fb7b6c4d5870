/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover watch. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/follow.h"
#include "cli/job-view.h"

#include <stdio.h>

static void
print_line(JsonObject *event, const char *text)
{
  gint64 ms = dr_json_int(event, "time_ms", 0);
  g_autoptr(GDateTime) time = g_date_time_new_from_unix_local(ms / 1000);
  g_autofree char *clock = time ? g_date_time_format(time, "%H:%M:%S") : g_strdup("--:--:--");

  printf("%s.%03d %s\n", clock, (int)(ms % 1000), text);
}

/* A job's stage once; progress within a stage is for live lines. */
static void
print_job_event(JsonObject *event, GHashTable *shown)
{
  JsonObject *job = dr_json_obj(event, "job");
  const char *id = dr_json_str(job, "id", "?");
  g_autofree char *sentence = dr_job_view_sentence(job);
  g_autofree char *text = dr_job_view_ended(job)
                              ? g_strdup_printf("job %s: %s", id, sentence)
                              : g_strdup_printf("job %s: %s: %s", id, dr_json_str(job, "vm", "?"),
                                                dr_json_str(job, "stage", "?"));

  if (g_strcmp0(g_hash_table_lookup(shown, id), text) == 0)
    return;
  print_line(event, text);
  if (dr_job_view_ended(job))
    g_hash_table_remove(shown, id);
  else
    g_hash_table_replace(shown, g_strdup(id), g_steal_pointer(&text));
}

static void
print_event(JsonObject *event, GHashTable *shown)
{
  const char *type = dr_json_str(event, "type", "?");
  g_autofree char *text = NULL;

  if (g_str_equal(type, "job") && dr_json_obj(event, "job")) {
    print_job_event(event, shown);
    return;
  }
  if (g_str_equal(type, "lost"))
    text = g_strdup_printf("(%" G_GINT64_FORMAT " events were lost)", dr_json_int(event, "lost", 0));
  else
    text = g_strdup_printf("%s %s: %s", type, dr_json_str(event, "vm.name", "?"),
                           dr_json_str(event, "vm.state", "?"));
  print_line(event, text);
}

static void
show(DrCli *cli, JsonObject *event, GHashTable *shown)
{
  g_autofree char *line = cli->json ? dr_json_print_object(event, FALSE) : NULL;

  if (line)
    puts(line);
  else
    print_event(event, shown);
  fflush(stdout);
}

/* To the end of the stream: that of the job, or never. */
static int
watch_events(DrCli *cli, GDataInputStream *events, gboolean one_job, GError **error)
{
  g_autoptr(GHashTable) shown = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
  JsonObject *event;
  int code = -1;

  while ((event = dr_client_next_event(events, error)) != NULL) {
    g_autoptr(JsonObject) owned = event;
    JsonObject *job = dr_json_obj(owned, "job");

    show(cli, owned, shown);
    if (one_job && job && dr_job_view_ended(job))
      return dr_job_view_exit(job);
  }
  if (!*error)
    dr_error_set(error, DR_ERROR_CLOSED, "droverd ended the event stream");
  return code;
}

/* With live lines, as upgrade has them. */
static int
watch_job(DrCli *cli, const char *id, GDataInputStream *events, GError **error)
{
  g_autoptr(JsonNode) answer = dr_cli_call(cli, "GET", "/v1/jobs/{}", id, NULL, error);
  g_autoptr(JsonArray) jobs = json_array_new();

  if (!answer)
    return -1;
  json_array_add_element(jobs, g_steal_pointer(&answer));
  return dr_follow(cli, jobs, events, error);
}

int
dr_cmd_watch(DrCli *cli, int argc, char **argv)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(GDataInputStream) events = NULL;
  g_autofree char *query = NULL;
  DrClient *client = NULL;
  int code = -1;

  if (dr_cli_parse(cli, argc, argv, NULL, 0, 1, &error))
    client = dr_cli_client(cli, &error);
  if (client) {
    g_autofree char *id = cli->words[0] ? g_uri_escape_string(cli->words[0], NULL, FALSE) : NULL;

    query = id ? g_strconcat("?job=", id, NULL) : g_strdup("");
    events = dr_client_events(client, query, &error);
  }
  if (events)
    code = cli->words[0] && !cli->json ? watch_job(cli, cli->words[0], events, &error)
                                       : watch_events(cli, events, cli->words[0] != NULL, &error);
  return code >= 0 ? code : dr_cli_fail(cli, error);
}
