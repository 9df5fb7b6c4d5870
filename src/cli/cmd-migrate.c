/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover migrate, and what is said to a move under way. Options have virsh's names. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/job-view.h"
#include "cli/render.h"
#include "cli/start-jobs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
  gboolean all, check, async, live, postcopy, after_precopy, no_postcopy, preempt, timeout_suspend,
      auto_converge, copy_storage_all, copy_storage_inc, copy_storage_postcopy, overwrite_storage;
  char *qemu, *dname, *compress, *transport;
  char **maps;
  int timeout, timeout_postcopy, parallel, bandwidth, postcopy_bandwidth, downtime, at_a_time;
} Options;

static void
options_clear(Options *options)
{
  g_free(options->qemu);
  g_free(options->dname);
  g_free(options->compress);
  g_free(options->transport);
  g_strfreev(options->maps);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

static guint
n_names(DrCli *cli)
{
  return g_strv_length(cli->words) - 1;
}

static const char *
peer_of(DrCli *cli)
{
  return cli->words[n_names(cli)];
}

static gboolean
is_single(DrCli *cli, const Options *options)
{
  return !options->all && n_names(cli) == 1;
}

static gboolean
check_words(DrCli *cli, const Options *options, GError **error)
{
  guint words = g_strv_length(cli->words);

  if (words == 0 || (words == 1 && !options->all)) {
    dr_error_set(error, DR_ERROR_INVALID, "migrate: name %s the peer to move to",
                 words == 0 && options->all ? "" : "the VMs (or say --all) and");
    return dr_error_remedy(error, "drover peer list shows the peers");
  }
  if (options->all && words > 1)
    return dr_error_set(error, DR_ERROR_INVALID, "migrate: name the VMs, or say --all, not both");
  return TRUE;
}

/* 0: it was not given. */
static gboolean
check_number(const char *option, int value, int max, GError **error)
{
  return (value >= 0 && value <= max) ||
         dr_error_set(error, DR_ERROR_INVALID, "migrate: --%s is 1 to %d", option, max);
}

static gboolean
check_numbers(const Options *o, GError **error)
{
  return check_number("timeout", o->timeout, 86400, error) &&
         check_number("timeout-postcopy", o->timeout_postcopy, 86400, error) &&
         check_number("parallel", o->parallel, 16, error) &&
         check_number("bandwidth", o->bandwidth, 1000000, error) &&
         check_number("postcopy-bandwidth", o->postcopy_bandwidth, 1000000, error) &&
         check_number("downtime", o->downtime, 2000000, error) &&
         check_number("at-a-time", o->at_a_time, 64, error);
}

static JsonObject *
request(DrCli *cli, const Options *o)
{
  JsonObject *body = json_object_new();
  g_autofree const char **names = g_new0(const char *, n_names(cli) + 1);

  for (guint i = 0; i < n_names(cli); i++)
    names[i] = cli->words[i];
  if (o->all)
    json_object_set_boolean_member(body, "all", TRUE);
  else
    json_object_set_array_member(body, "vms", dr_json_array_from_strv(names));
  json_object_set_string_member(body, "peer", peer_of(cli));
  dr_json_add_text(body, "qemu", o->qemu);
  dr_json_add_text(body, "dname", o->dname);
  dr_json_add_text(body, "compress", o->compress);
  dr_json_add_text(body, "transport", o->transport);
  if (o->maps)
    json_object_set_array_member(body, "map", dr_json_array_from_strv((const char *const *)o->maps));
  dr_json_add_flag(body, "postcopy", o->postcopy);
  dr_json_add_flag(body, "postcopy_after_precopy", o->after_precopy);
  dr_json_add_flag(body, "no_postcopy", o->no_postcopy);
  dr_json_add_flag(body, "postcopy_preempt", o->preempt);
  dr_json_add_flag(body, "timeout_suspend", o->timeout_suspend);
  dr_json_add_flag(body, "auto_converge", o->auto_converge);
  dr_json_add_flag(body, "copy_storage_all", o->copy_storage_all);
  dr_json_add_flag(body, "copy_storage_inc", o->copy_storage_inc);
  dr_json_add_flag(body, "copy_storage_postcopy", o->copy_storage_postcopy);
  dr_json_add_flag(body, "overwrite_storage", o->overwrite_storage);
  dr_json_add_number(body, "timeout", o->timeout);
  dr_json_add_number(body, "timeout_postcopy", o->timeout_postcopy);
  dr_json_add_number(body, "parallel", o->parallel);
  dr_json_add_number(body, "bandwidth", o->bandwidth);
  dr_json_add_number(body, "postcopy_bandwidth", o->postcopy_bandwidth);
  dr_json_add_number(body, "downtime", o->downtime);
  dr_json_add_number(body, "at_a_time", o->at_a_time);
  return body;
}

/* --- --check --- */

static void
print_report(JsonObject *report, gboolean color)
{
  const char *vm = dr_json_str(report, "vm", "?");
  g_autofree char *total = dr_render_ms(dr_render_number(report, "expected_total_ms", 0));
  g_autofree char *pause = dr_render_ms(dr_render_number(report, "expected_pause_ms", 0));

  fflush(stdout);
  dr_job_view_print_findings(vm, dr_json_arr(report, "findings"), TRUE, color);
  if (!dr_json_bool(report, "ok", FALSE))
    printf("%s: cannot be moved\n", vm);
  else
    printf("%s: can be moved to %s, %s -> %s; expected: %s in all (%.0f MiB/s), a pause of %s\n", vm,
           dr_json_str(report, "peer", "?"), dr_json_str(report, "qemu_before", "?"),
           dr_json_str(report, "qemu_after", "?"), total, dr_render_number(report, "link_mib", 0), pause);
}

/* GOption's optional arguments would take the next word, the name of a VM. */
static void
say_how_parallel(int argc, char **argv)
{
  for (int i = 0; i < argc; i++)
    if ((g_str_equal(argv[i], "--parallel") || g_str_equal(argv[i], "-p")) &&
        (i + 1 == argc || !g_ascii_isdigit(argv[i + 1][0])))
      argv[i] = (char *)"--parallel=2";
}

int
dr_cmd_migrate(DrCli *cli, int argc, char **argv)
{
  g_auto(Options) o = { 0 };
  const GOptionEntry entries[] = {
    { "all", 'a', 0, G_OPTION_ARG_NONE, &o.all, "All VMs that run", NULL },
    { "live", 0, 0, G_OPTION_ARG_NONE, &o.live, "While the guest runs (always)", NULL },
    { "check", 'c', 0, G_OPTION_ARG_NONE, &o.check, "Only say whether it would work; exit code 1 if not",
      NULL },
    { "async", 0, 0, G_OPTION_ARG_NONE, &o.async, "Start, and do not wait for the end", NULL },
    DR_CLI_EVENTS(cli),
    { "qemu", 'q', 0, G_OPTION_ARG_FILENAME, &o.qemu, "The QEMU over there (default: the same path)",
      "BINARY" },
    { "dname", 0, 0, G_OPTION_ARG_STRING, &o.dname, "The VM's name over there (default: the same)", "NAME" },
    { "map", 0, 0, G_OPTION_ARG_STRING_ARRAY, &o.maps,
      "A bridge or an image that has another name over there", "netdev=ID:BRIDGE|disk=PATH:PATH" },
    { "postcopy", 0, 0, G_OPTION_ARG_NONE, &o.postcopy,
      "Allow post-copy, at the word of drover migrate-postcopy", NULL },
    { "postcopy-after-precopy", 0, 0, G_OPTION_ARG_NONE, &o.after_precopy, "Post-copy after the first pass",
      NULL },
    { "timeout-postcopy", 0, 0, G_OPTION_ARG_INT, &o.timeout_postcopy, "Post-copy after so long", "S" },
    { "postcopy-preempt", 0, 0, G_OPTION_ARG_NONE, &o.preempt,
      "Pages that the guest waits for by a stream of their own", NULL },
    { "no-postcopy", 0, 0, G_OPTION_ARG_NONE, &o.no_postcopy, "Never post-copy", NULL },
    { "timeout", 0, 0, G_OPTION_ARG_INT, &o.timeout, "Give up after so long", "S" },
    { "timeout-suspend", 0, 0, G_OPTION_ARG_NONE, &o.timeout_suspend,
      "Do not give up then, but stop the guest", NULL },
    { "auto-converge", 0, 0, G_OPTION_ARG_NONE, &o.auto_converge, "Slow the guest down until it converges",
      NULL },
    { "parallel", 'p', 0, G_OPTION_ARG_INT, &o.parallel, "RAM by so many streams at a time (without N: 2)",
      "N" },
    { "compress", 0, 0, G_OPTION_ARG_STRING, &o.compress, "Compress RAM", "zstd|zlib|xbzrle" },
    { "bandwidth", 0, 0, G_OPTION_ARG_INT, &o.bandwidth, "At most so much", "MIB/S" },
    { "postcopy-bandwidth", 0, 0, G_OPTION_ARG_INT, &o.postcopy_bandwidth, "The same in post-copy", "MIB/S" },
    { "downtime", 0, 0, G_OPTION_ARG_INT, &o.downtime, "The longest pause of pre-copy (default: 300)", "MS" },
    { "transport", 0, 0, G_OPTION_ARG_STRING, &o.transport, "How the bytes go (default: tunnel)",
      "tunnel|plain|handoff" },
    { "copy-storage-all", 0, 0, G_OPTION_ARG_NONE, &o.copy_storage_all,
      "Copy the disks that the other host does not have, all of each", NULL },
    { "copy-storage-inc", 0, 0, G_OPTION_ARG_NONE, &o.copy_storage_inc,
      "The same, only their top images: it has those below", NULL },
    { "copy-storage-postcopy", 0, 0, G_OPTION_ARG_NONE, &o.copy_storage_postcopy,
      "Copy all of them after the guest: it runs over there at once", NULL },
    { "overwrite-storage", 0, 0, G_OPTION_ARG_NONE, &o.overwrite_storage,
      "Write over images of the same name that are there", NULL },
    { "at-a-time", 0, 0, G_OPTION_ARG_INT, &o.at_a_time, "How many VMs at a time (default: 1)", "N" },
    { NULL },
  };
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = NULL;
  int code = -1;

  say_how_parallel(argc, argv);
  if (dr_cli_parse(cli, argc, argv, entries, 0, -1, &error) && check_words(cli, &o, &error) &&
      check_numbers(&o, &error))
    body = request(cli, &o);
  if (body)
    code = o.check ? dr_cli_check(cli, "/v1/migrate/check", body, is_single(cli, &o), print_report, &error)
                   : dr_cli_start_jobs(cli, "/v1/migrate", body, is_single(cli, &o), o.async, &error);
  return code >= 0 ? code : dr_cli_fail(cli, error);
}

/* --- To a move under way --- */

static int
say(DrCli *cli, const char *method, const char *path, JsonObject *body, const char *told)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = dr_cli_call(cli, method, path, cli->words[0], body, &error);

  if (!answer)
    return dr_cli_fail(cli, error);
  if (cli->json)
    dr_cli_print_json(answer);
  else if (told)
    printf("%s: %s\n", cli->words[0], told);
  return DR_EXIT_DONE;
}

int
dr_cmd_migrate_postcopy(DrCli *cli, int argc, char **argv)
{
  g_autoptr(GError) error = NULL;

  if (!dr_cli_parse(cli, argc, argv, NULL, 1, 1, &error))
    return dr_cli_fail(cli, error);
  return say(cli, "POST", "/v1/vms/{}/migrate/postcopy", NULL, "goes on by post-copy");
}

int
dr_cmd_recover(DrCli *cli, int argc, char **argv)
{
  g_autoptr(GError) error = NULL;

  if (!dr_cli_parse(cli, argc, argv, NULL, 1, 1, &error))
    return dr_cli_fail(cli, error);
  return say(cli, "POST", "/v1/vms/{}/migrate/recover", NULL, "goes on as soon as there is a way");
}

static gboolean
parse_number(const char *verb, const char *text, gint64 max, gint64 *ret, GError **error)
{
  guint64 number;

  if (!g_ascii_string_to_unsigned(text, 10, 1, (guint64)max, &number, NULL))
    return dr_error_set(error, DR_ERROR_INVALID, "%s: '%s' is no number from 1 to %" G_GINT64_FORMAT, verb,
                        text, max);
  *ret = (gint64)number;
  return TRUE;
}

int
dr_cmd_migrate_setmaxdowntime(DrCli *cli, int argc, char **argv)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = json_object_new();
  gint64 ms = 0;

  if (!dr_cli_parse(cli, argc, argv, NULL, 2, 2, &error) ||
      !parse_number(cli->verb->name, cli->words[1], 2000000, &ms, &error))
    return dr_cli_fail(cli, error);
  json_object_set_int_member(body, "ms", ms);
  return say(cli, "POST", "/v1/vms/{}/migrate/downtime", body, "the longest pause is set");
}

int
dr_cmd_migrate_setspeed(DrCli *cli, int argc, char **argv)
{
  gboolean postcopy = FALSE;
  const GOptionEntry entries[] = {
    { "postcopy", 0, 0, G_OPTION_ARG_NONE, &postcopy, "That of post-copy", NULL },
    { NULL },
  };
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = json_object_new();
  gint64 mib = 0;

  if (!dr_cli_parse(cli, argc, argv, entries, 2, 2, &error) ||
      !parse_number(cli->verb->name, cli->words[1], 1000000, &mib, &error))
    return dr_cli_fail(cli, error);
  json_object_set_int_member(body, "mib", mib);
  dr_json_add_flag(body, "postcopy", postcopy);
  return say(cli, "POST", "/v1/vms/{}/migrate/bandwidth", body, "the speed is set");
}

int
dr_cmd_migrate_getspeed(DrCli *cli, int argc, char **argv)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = NULL;

  if (!dr_cli_parse(cli, argc, argv, NULL, 1, 1, &error))
    return dr_cli_fail(cli, error);
  answer = dr_cli_call(cli, "GET", "/v1/vms/{}/migrate/bandwidth", cli->words[0], NULL, &error);
  if (!answer)
    return dr_cli_fail(cli, error);
  if (cli->json)
    dr_cli_print_json(answer);
  else
    printf("%" G_GINT64_FORMAT " MiB/s, in post-copy %" G_GINT64_FORMAT "\n",
           dr_json_int(json_node_get_object(answer), "mib", 0),
           dr_json_int(json_node_get_object(answer), "postcopy_mib", 0));
  return DR_EXIT_DONE;
}
