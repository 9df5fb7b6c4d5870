/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover upgrade. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/job-view.h"
#include "cli/render.h"
#include "cli/start-jobs.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct {
  gboolean all, check, async;
  char *qemu, *memory;
  int parallel;
} Options;

static void
options_clear(Options *options)
{
  g_free(options->qemu);
  g_free(options->memory);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

/* As the shell finds a program: a path is taken from here, a bare word from PATH. droverd has another
 * directory and another PATH. */
static char *
find_qemu(const char *qemu, GError **error)
{
  g_autofree char *found = strchr(qemu, '/') ? g_strdup(qemu) : g_find_program_in_path(qemu);

  if (!found) {
    dr_error_set(error, DR_ERROR_NOT_FOUND, "upgrade: there is no program '%s' in PATH", qemu);
    dr_error_remedy(error, "give its path: --qemu /usr/bin/qemu-system-x86_64");
    return NULL;
  }
  return g_canonicalize_filename(found, NULL);
}

static gboolean
check_options(DrCli *cli, const Options *options, GError **error)
{
  static const char *const modes[] = { "auto", "shared", "copy", "postcopy", NULL };

  if (options->all == (cli->words[0] != NULL))
    return dr_error_set(error, DR_ERROR_INVALID, "upgrade: name the VMs, or say --all");
  if (options->memory && !g_strv_contains(modes, options->memory))
    return dr_error_set(error, DR_ERROR_INVALID,
                        "upgrade: --memory is auto, shared, copy or postcopy, not '%s'", options->memory);
  if (options->parallel < 1 || options->parallel > 64)
    return dr_error_set(error, DR_ERROR_INVALID, "upgrade: --parallel is 1 to 64");
  return TRUE;
}

static JsonObject *
request(DrCli *cli, const Options *options, GError **error)
{
  g_autoptr(JsonObject) body = json_object_new();

  if (options->all)
    json_object_set_boolean_member(body, "all", TRUE);
  else
    json_object_set_array_member(body, "vms", dr_json_array_from_strv((const char *const *)cli->words));
  if (options->qemu) {
    g_autofree char *path = find_qemu(options->qemu, error);

    if (!path)
      return NULL;
    json_object_set_string_member(body, "qemu", path);
  }
  json_object_set_string_member(body, "memory", options->memory ? options->memory : "auto");
  json_object_set_int_member(body, "parallel", options->parallel);
  return g_steal_pointer(&body);
}

static gboolean
is_single(DrCli *cli, const Options *options)
{
  return !options->all && g_strv_length(cli->words) == 1;
}

/* --- --check --- */

static void
print_report(JsonObject *report, gboolean color)
{
  const char *vm = dr_json_str(report, "vm", "?");
  gboolean ok = dr_json_bool(report, "ok", FALSE);

  fflush(stdout);
  dr_job_view_print_findings(vm, dr_json_arr(report, "findings"), TRUE, color);
  if (ok)
    printf("%s: can be upgraded %s -> %s (%s)\n", vm, dr_json_str(report, "qemu_before", "?"),
           dr_json_str(report, "qemu_after", "?"),
           dr_job_view_memory(dr_json_str(report, "memory_mode", "?")));
  else
    printf("%s: cannot be upgraded\n", vm);
}

int
dr_cmd_upgrade(DrCli *cli, int argc, char **argv)
{
  g_auto(Options) options = { .parallel = 4 };
  const GOptionEntry entries[] = {
    { "all", 'a', 0, G_OPTION_ARG_NONE, &options.all, "All VMs that run", NULL },
    { "qemu", 'q', 0, G_OPTION_ARG_FILENAME, &options.qemu,
      "The QEMU to move to (default: the VM's own path)", "BINARY" },
    { "memory", 'm', 0, G_OPTION_ARG_STRING, &options.memory,
      "How the RAM gets there: handed over, copied, or by post-copy (default: auto)",
      "auto|shared|copy|postcopy" },
    { "parallel", 'p', 0, G_OPTION_ARG_INT, &options.parallel, "How many VMs at a time (default: 4)", "N" },
    { "check", 'c', 0, G_OPTION_ARG_NONE, &options.check,
      "Only say whether it would work; exit code 1 if not", NULL },
    { "async", 0, 0, G_OPTION_ARG_NONE, &options.async, "Start, and do not wait for the end", NULL },
    DR_CLI_EVENTS(cli),
    { NULL },
  };
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = NULL;
  int code = -1;

  if (dr_cli_parse(cli, argc, argv, entries, 0, -1, &error) && check_options(cli, &options, &error))
    body = request(cli, &options, &error);
  if (body)
    code = options.check
               ? dr_cli_check(cli, "/v1/upgrade/check", body, is_single(cli, &options), print_report, &error)
               : dr_cli_start_jobs(cli, "/v1/upgrade", body, is_single(cli, &options), options.async, &error);
  return code >= 0 ? code : dr_cli_fail(cli, error);
}
