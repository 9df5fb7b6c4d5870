/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover upgrade. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/domains.h"
#include "cli/job-view.h"
#include "cli/render.h"
#include "cli/start-jobs.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct {
  gboolean all, check, async;
  gboolean libvirt, all_libvirt;
  char *qemu, *memory;
  int parallel;
  DrDomainOptions domains;
} Options;

static void
options_clear(Options *options)
{
  g_free(options->qemu);
  g_free(options->memory);
  dr_domain_options_clear(&options->domains);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

/* An option that only domains of libvirt's have. */
static const char *
domain_option(const Options *options)
{
  return options->domains.emulator   ? "--emulator"
         : options->domains.uri      ? "--uri"
         : options->domains.untested ? "--untested-libvirt"
                                     : NULL;
}

/* Which VMs or domains are meant. */
static gboolean
check_whom(DrCli *cli, const Options *options, GError **error)
{
  gboolean named = cli->words[0] != NULL, domains = options->libvirt || options->all_libvirt;

  if (options->all && domains)
    return dr_error_set(
        error, DR_ERROR_INVALID,
        "upgrade: --all is all VMs of drover, --all-libvirt all domains of libvirt's: one at a time");
  if (options->all_libvirt && named)
    return dr_error_set(error, DR_ERROR_INVALID, "upgrade: name the domains, or say --all-libvirt");
  if (!domains && options->all == named)
    return dr_error_set(error, DR_ERROR_INVALID, "upgrade: name the VMs, or say --all");
  if (options->all && domain_option(options))
    return dr_error_set(error, DR_ERROR_INVALID, "upgrade: %s is for domains of libvirt's: --all-libvirt",
                        domain_option(options));
  if (options->qemu && options->domains.emulator)
    return dr_error_set(error, DR_ERROR_INVALID, "upgrade: of a domain --qemu and --emulator are the same");
  if (options->libvirt && !named && !options->all_libvirt && (options->check || options->async))
    return dr_error_set(error, DR_ERROR_INVALID, "upgrade: name the domains, or say --all-libvirt");
  return TRUE;
}

static gboolean
check_options(DrCli *cli, const Options *options, GError **error)
{
  static const char *const modes[] = { "auto", "shared", "copy", "postcopy", NULL };

  if (!check_whom(cli, options, error))
    return FALSE;
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
    g_autofree char *path = dr_cli_find_qemu(cli, options->qemu, "qemu", error);

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

/* --- Domains of libvirt's --- */

/* `cause`: see dr_domains_upgrade(). */
static int
upgrade_domains(DrCli *cli, Options *options, const GError *cause, GError **error)
{
  g_autoptr(JsonObject) body = NULL;

  if (!cli->words[0] && !options->all_libvirt)
    return dr_domains_follow(cli, error);
  if (options->qemu)
    options->domains.emulator = g_steal_pointer(&options->qemu);
  body = dr_domains_request(cli, cli->words, &options->domains, error);
  if (!body)
    return -1;
  json_object_set_string_member(body, "memory", options->memory ? options->memory : "auto");
  if (options->check)
    return dr_domains_check(cli, body, cause, error);
  json_object_set_int_member(body, "parallel", options->parallel);
  return dr_domains_upgrade(cli, body, options->async, cause, error);
}

/* Of the words: a VM of drover's, and one that is none. Both may be NULL. (transfer none) */
static gboolean
look_up(DrCli *cli, const char **ret_vm, const char **ret_other, GError **error)
{
  g_autoptr(JsonNode) answer = dr_cli_call(cli, "GET", "/v1/vms", NULL, NULL, error);
  JsonArray *vms = answer && JSON_NODE_HOLDS_ARRAY(answer) ? json_node_get_array(answer) : NULL;

  *ret_vm = *ret_other = NULL;
  for (char **word = cli->words; vms && *word; word++) {
    gboolean known = FALSE;

    for (guint i = 0; i < json_array_get_length(vms); i++)
      known |= g_str_equal(dr_json_str(json_array_get_object_element(vms, i), "name", ""), *word);
    *(known ? ret_vm : ret_other) = *word;
  }
  return vms != NULL;
}

/* Whether droverd's host has what it takes for libvirt's domains. */
static gboolean
knows_libvirt(DrCli *cli)
{
  g_autoptr(JsonNode) answer = dr_cli_call(cli, "GET", "/v1/version", NULL, NULL, NULL);

  return answer && JSON_NODE_HOLDS_OBJECT(answer) &&
         dr_json_bool(json_node_get_object(answer), "libvirt", FALSE);
}

/* Names that droverd has no VM of are libvirt's. `cause`: what droverd said of them; nullable. */
static int
upgrade_others(DrCli *cli, Options *options, const GError *cause, GError **error)
{
  const char *vm, *other;
  gboolean libvirt;

  if (!look_up(cli, &vm, &other, error))
    return -1;
  if (vm && !cause) {
    dr_error_set(error, DR_ERROR_INVALID,
                 "upgrade: %s is for domains of libvirt's, and '%s' is a VM of drover",
                 domain_option(options), vm);
    dr_error_remedy(error, "its QEMU is chosen with --qemu; --libvirt is for a domain of the same name");
    return -1;
  }
  libvirt = cause && knows_libvirt(cli);
  if (cause && (vm || !libvirt)) {
    g_propagate_error(error, g_error_copy(cause));
    if (vm && other && libvirt)
      dr_error_remedy(error,
                      "drover list shows the VMs; a domain of libvirt's in a call of its own: drover upgrade "
                      "--libvirt %s",
                      other);
    return -1;
  }
  return upgrade_domains(cli, options, cause, error);
}

static int
upgrade_vms(DrCli *cli, Options *options, GError **error)
{
  g_autoptr(JsonObject) body = request(cli, options, error);
  g_autoptr(GError) cause = NULL;
  int code;

  if (!body)
    return -1;
  code = options->check
             ? dr_cli_check(cli, "/v1/upgrade/check", body, is_single(cli, options), print_report, &cause)
             : dr_cli_start_jobs(cli, "/v1/upgrade", body, is_single(cli, options), options->async, &cause);
  if (code < 0 && cli->words[0] && g_error_matches(cause, DR_ERROR, DR_ERROR_NOT_FOUND))
    return upgrade_others(cli, options, cause, error);
  if (code < 0)
    g_propagate_error(error, g_steal_pointer(&cause));
  return code;
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
    { "libvirt", 0, 0, G_OPTION_ARG_NONE, &options.libvirt,
      "The names are domains of libvirt's; without names: follow their upgrade that is under way", NULL },
    { "all-libvirt", 0, 0, G_OPTION_ARG_NONE, &options.all_libvirt, "All domains of libvirt's that run",
      NULL },
    DR_CLI_DOMAIN_OPTIONS(&options.domains),
    DR_CLI_EVENTS(cli),
    { NULL },
  };
  g_autoptr(GError) error = NULL;
  int code;

  if (!dr_cli_parse(cli, argc, argv, entries, 0, -1, &error) || !check_options(cli, &options, &error))
    return dr_cli_fail(cli, error);
  if (options.libvirt || options.all_libvirt)
    code = upgrade_domains(cli, &options, NULL, &error);
  else if (domain_option(&options))
    code = upgrade_others(cli, &options, NULL, &error);
  else
    code = upgrade_vms(cli, &options, &error);
  return code >= 0 ? code : dr_cli_fail(cli, error);
}
