/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover backup. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/follow.h"
#include "cli/job-view.h"
#include "cli/list.h"
#include "cli/start-jobs.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ASK_S 1 /* how soon Ctrl-C is heard */

typedef struct {
  char **disks, **onto, *incremental, *bitmap, *format, *scratch, *listen;
  gboolean quiesce, success, async;
  int bandwidth;
  DrListOptions list;
} Options;

static char *
path_of(const DrCli *cli, const char *what)
{
  g_autofree char *name = g_uri_escape_string(cli->words[0], NULL, FALSE);

  return g_strdup_printf("/v1/vms/%s/backups%s", name, what);
}

static void
set_path(JsonObject *body, const char *name, const char *path)
{
  g_autofree char *full = path ? g_canonicalize_filename(path, NULL) : NULL;

  dr_json_add_text(body, name, full);
}

/* What a backup is made of, whoever reads it. */
static JsonObject *
body_of(const Options *o)
{
  JsonObject *body = json_object_new();

  dr_json_add_text(body, "incremental", o->incremental);
  dr_json_add_text(body, "bitmap", o->bitmap);
  set_path(body, "scratch", o->scratch);
  if (o->disks)
    json_object_set_array_member(body, "disks", dr_json_array_from_strv((const char *const *)o->disks));
  if (o->quiesce)
    json_object_set_boolean_member(body, "quiesce", TRUE);
  return body;
}

/* --- create --- */

/* "FILE" or "DISK=FILE", the file from here. */
static JsonArray *
onto_of(char **onto)
{
  JsonArray *array = json_array_new();

  for (char **one = onto; *one; one++) {
    const char *file = strchr(*one, '=');
    g_autofree char *path = g_canonicalize_filename(file ? file + 1 : *one, NULL);
    g_autofree char *text =
        file ? g_strdup_printf("%.*s=%s", (int)(file - *one), *one, path) : g_strdup(path);

    json_array_add_string_element(array, text);
  }
  return array;
}

static int
create(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autofree char *path = path_of(cli, "");
  g_autoptr(JsonObject) body = body_of(o);
  g_autoptr(GError) error = NULL;
  int code;

  set_path(body, "target", cli->words[1]);
  dr_json_add_text(body, "format", o->format);
  if (o->bandwidth > 0)
    json_object_set_int_member(body, "bandwidth", o->bandwidth);
  if (o->onto)
    json_object_set_array_member(body, "onto", onto_of(o->onto));
  code = dr_cli_start_jobs(cli, path, body, TRUE, o->async, &error);
  return code >= 0 ? code : dr_cli_fail(cli, error);
}

/* --- serve, finish --- */

static volatile sig_atomic_t interrupted;

static void
on_interrupt(int signal_number)
{
  interrupted = 1;
}

static JsonNode *
post_finish(DrCli *cli, gboolean success, GError **error)
{
  g_autofree char *path = path_of(cli, "/finish");
  g_autoptr(JsonObject) body = dr_json("{'success': <%b>}", success);

  return dr_cli_call(cli, "POST", path, NULL, body, error);
}

/* Until it can be heard: whoever follows a job only leaves it alone then. */
static void
hold_interrupt(gboolean held)
{
  sigset_t set;

  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  pthread_sigmask(held ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

/* Ctrl-C ends it, and nobody has said that the backup is good. */
static int
stay(DrCli *cli, const char *id, GError **error)
{
  g_autofree char *path = g_strdup_printf("/v1/jobs/{}?wait=%d", ASK_S);
  gboolean said = FALSE;

  signal(SIGINT, on_interrupt);
  hold_interrupt(FALSE);
  for (;;) {
    g_autoptr(JsonNode) answer = dr_cli_call(cli, "GET", path, id, NULL, error), reply = NULL;
    JsonObject *job = answer && JSON_NODE_HOLDS_OBJECT(answer) ? json_node_get_object(answer) : NULL;

    if (!job)
      return -1;
    if (dr_job_view_ended(job)) {
      if (!cli->json)
        dr_job_view_print_end(job);
      return dr_job_view_exit(job);
    }
    if (interrupted && !said)
      reply = post_finish(cli, FALSE, NULL); /* it may have ended by itself */
    said |= interrupted;
  }
}

static int
follow_served(DrCli *cli, JsonArray *jobs, gboolean async, GError **error)
{
  int code = dr_follow(cli, jobs, NULL, error);
  JsonObject *job = json_array_get_object_element(jobs, 0);

  if (code >= 0 && cli->json)
    dr_cli_print_list(jobs, TRUE);
  fflush(stdout);
  if (code < 0 || async || dr_job_view_ended(job))
    return code;
  return stay(cli, dr_json_str(job, "id", ""), error);
}

static int
serve(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autofree char *path = path_of(cli, "/serve");
  g_autofree char *listen = NULL;
  g_autoptr(JsonObject) body = body_of(o);
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonArray) jobs = NULL;
  int code;

  dr_json_add_text(body, "listen", o->listen);
  cli->until = "serve";
  hold_interrupt(!o->async);
  jobs = dr_cli_call_list(cli, "POST", path, body, &error);
  code = jobs ? follow_served(cli, jobs, o->async, &error) : -1;
  return code >= 0 ? code : dr_cli_fail(cli, error);
}

static int
finish(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = post_finish(cli, o->success, &error);

  g_autoptr(JsonArray) jobs = json_array_new();
  int code;

  if (!answer || !JSON_NODE_HOLDS_OBJECT(answer))
    return dr_cli_fail(cli, error);
  json_array_add_object_element(jobs,
                                dr_json("{'id': <%s>, 'vm': <%s>, 'state': <'running'>}",
                                        dr_json_str(json_node_get_object(answer), "job", ""), cli->words[0]));
  code = dr_cli_follow(cli, jobs, &error);
  if (code >= 0 && cli->json)
    dr_cli_print_list(jobs, TRUE);
  return code >= 0 ? code : dr_cli_fail(cli, error);
}

/* --- list --- */

static JsonArray *
fetch(DrCli *cli, GError **error)
{
  g_autofree char *path = path_of(cli, "");

  return dr_cli_call_list(cli, "GET", path, NULL, error);
}

static char *
made_text(JsonObject *backup)
{
  return dr_list_time(backup, "time_ms");
}

static const DrColumn columns[] = {
  { "disk" }, { "bitmap" }, { "made", .text = made_text }, { "file", .id = TRUE }, { "format", .wide = TRUE },
  { NULL },
};

static int
list(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autoptr(GError) error = NULL;
  g_autofree char *none = g_strdup_printf(
      "no backup of %s by a bitmap is on record: drover backup %s TARGET --bitmap BITMAP begins one",
      cli->words[0], cli->words[0]);
  g_autoptr(JsonArray) backups = dr_list_check(cli, &o->list, columns, &error) ? fetch(cli, &error) : NULL;

  return backups ? dr_list_print(cli, &o->list, columns, backups, none) : dr_cli_fail(cli, error);
}

int
dr_cmd_backup(DrCli *cli, int argc, char **argv)
{
  static const DrSubverb subverbs[] = {
    { "create", "NAME TARGET", 2, 2,
      " disk incremental bitmap format onto bandwidth quiesce scratch async events ", create,
      .otherwise = TRUE },
    { "serve", "NAME", 1, 1, " disk incremental bitmap listen quiesce scratch async ", serve },
    { "finish", "NAME", 1, 1, " success ", finish },
    { "list", "NAME", 1, 1, DR_LIST_OPTIONS, list, .columns = columns },
    { NULL },
  };
  Options o = { 0 };
  const GOptionEntry entries[] = {
    { "disk", 0, 0, G_OPTION_ARG_STRING_ARRAY, &o.disks,
      "Only this disk; several times (default: all that can be written, or that have the bitmap)", "DISK" },
    { "incremental", 0, 0, G_OPTION_ARG_STRING, &o.incremental,
      "Only what was written since the last backup by this bitmap", "BITMAP" },
    { "bitmap", 0, 0, G_OPTION_ARG_STRING, &o.bitmap,
      "Begin this bitmap at the same moment, for incremental backups later", "BITMAP" },
    { "format", 0, 0, G_OPTION_ARG_STRING, &o.format, "qcow2 or raw (default: qcow2)", "FORMAT" },
    { "onto", 0, 0, G_OPTION_ARG_STRING_ARRAY, &o.onto,
      "The backup that an incremental one stands on, where it is not on record; several times",
      "[DISK=]FILE" },
    { "bandwidth", 0, 0, G_OPTION_ARG_INT, &o.bandwidth, "At most so much for each disk", "MIB/S" },
    { "quiesce", 0, 0, G_OPTION_ARG_NONE, &o.quiesce, "Freeze the guest's file systems for the moment",
      NULL },
    { "scratch", 0, 0, G_OPTION_ARG_FILENAME, &o.scratch,
      "Where that goes meanwhile which the guest writes over (default: beside each image)", "DIR" },
    { "listen", 0, 0, G_OPTION_ARG_STRING, &o.listen,
      "serve: where (default: a socket in droverd's run directory)", "unix:PATH|tcp:PORT" },
    { "success", 0, 0, G_OPTION_ARG_NONE, &o.success,
      "finish: the backup is good; the next one goes on from it", NULL },
    { "async", 0, 0, G_OPTION_ARG_NONE, &o.async,
      "Start, and do not wait for the end; serve: return as soon as they can be read", NULL },
    DR_CLI_EVENTS(cli),
    DR_LIST_ENTRIES(o.list, "list: "),
    { NULL },
  };
  int code = dr_cli_subverb(cli, argc, argv, entries, subverbs, &o);
  char *texts[] = { o.incremental, o.bitmap, o.format, o.scratch, o.listen, o.list.output };

  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_free(texts[i]);
  g_strfreev(o.disks);
  g_strfreev(o.onto);
  return code;
}
