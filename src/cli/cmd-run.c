/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover run, drover adopt. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/domains.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The environment of this process with --env's on top, less what is meant for drover itself. JSON cannot
 * carry bytes that are no UTF-8: such a variable is left out, and said so. */
static JsonArray *
environment(char **extra)
{
  g_auto(GStrv) all = g_get_environ();
  JsonArray *array = json_array_new();

  for (char **one = extra; one && *one; one++) {
    g_autofree char *name = g_strndup(*one, strcspn(*one, "="));

    all = g_environ_setenv(all, name, strchr(*one, '=') + 1, TRUE);
  }
  for (char **one = all; *one; one++) {
    if (g_str_has_prefix(*one, "DROVER_"))
      continue;
    if (g_utf8_validate(*one, -1, NULL))
      json_array_add_string_element(array, *one);
    else
      fprintf(stderr, "drover: environment variable %.*s is not UTF-8 and is left out\n",
              (int)strcspn(*one, "="), *one);
  }
  return array;
}

static gboolean
check_run(DrCli *cli, const char *memory, char **env, GError **error)
{
  char cwd[PATH_MAX];

  if (memory && !g_str_equal(memory, "shared") && !g_str_equal(memory, "private"))
    return dr_error_set(error, DR_ERROR_INVALID, "run: --memory is 'shared' or 'private', not '%s'", memory);
  for (char **one = env; one && *one; one++)
    if (!strchr(*one, '=') || **one == '=')
      return dr_error_set(error, DR_ERROR_INVALID, "run: --env takes NAME=VALUE, not '%s'", *one);
  if (!getcwd(cwd, sizeof cwd)) {
    dr_error_set(error, DR_ERROR_NOT_FOUND,
                 "run: the current directory does not exist any more, so QEMU cannot start in it");
    return dr_error_remedy(error, "cd to another one");
  }
  if (!cli->rest || !cli->rest[0]) {
    dr_error_set(error, DR_ERROR_INVALID, "run: the QEMU command is missing");
    return dr_error_remedy(
        error, "put it behind --, as in: drover run %s -- qemu-system-x86_64 -m 1G disk.img", cli->words[0]);
  }
  for (char **word = cli->rest; *word; word++)
    if (!g_utf8_validate(*word, -1, NULL))
      return dr_error_set(error, DR_ERROR_INVALID, "run: word %d of the QEMU command is not UTF-8",
                          (int)(word - cli->rest) + 1);
  return TRUE;
}

/* Takes ",key=value" off the end of `text`. NULL: it is not there. (transfer full) */
static char *
take_option(char *text, const char *key)
{
  g_autofree char *begin = g_strdup_printf(",%s=", key);
  char *comma = strrchr(text, ',');
  char *value;

  if (!comma || !g_str_has_prefix(comma, begin))
    return NULL;
  value = g_strdup(comma + strlen(begin));
  *comma = '\0';
  return value;
}

/* DISK=SOURCE[,format=FMT][,sslverify=on|off]; a source without a scheme is a file, told from here. */
static JsonObject *
read_stream(const char *word, GError **error)
{
  g_autofree char *disk = g_strndup(word, strcspn(word, "="));
  g_autofree char *source = g_strdup(word[strlen(disk)] ? word + strlen(disk) + 1 : "");
  g_autofree char *format = NULL, *verify = NULL;
  g_autofree char *path = NULL;
  JsonObject *stream;

  for (guint i = 0; i < 2; i++) { /* in either order */
    if (!format)
      format = take_option(source, "format");
    if (!verify)
      verify = take_option(source, "sslverify");
  }
  if (!*disk || !*source || !g_utf8_validate(word, -1, NULL) ||
      (verify && !g_str_equal(verify, "on") && !g_str_equal(verify, "off"))) {
    dr_error_set(error, DR_ERROR_INVALID,
                 "run: --stream takes DISK=SOURCE[,format=FORMAT][,sslverify=on|off], not '%s'", word);
    return NULL;
  }
  path = strstr(source, "://") ? g_strdup(source) : g_canonicalize_filename(source, NULL);
  stream = dr_json("{'disk': <%s>, 'source': <%s>, 'sslverify': <%b>}", disk, path,
                   !verify || g_str_equal(verify, "on"));
  if (format)
    json_object_set_string_member(stream, "format", format);
  return stream;
}

static gboolean
add_streams(JsonObject *body, char **streams, int bandwidth, GError **error)
{
  JsonArray *array;

  if (bandwidth < 0)
    return dr_error_set(error, DR_ERROR_INVALID, "run: --bandwidth is a number of MiB/s from 1 on, not %d",
                        bandwidth);
  if (bandwidth)
    json_object_set_int_member(body, "bandwidth", bandwidth);
  if (!streams)
    return TRUE;
  array = json_array_new();
  json_object_set_array_member(body, "stream", array);
  for (char **one = streams; *one; one++) {
    JsonObject *stream = read_stream(*one, error);

    if (!stream)
      return FALSE;
    json_array_add_object_element(array, stream);
  }
  return TRUE;
}

/* "web1: running under QEMU 7.2.22, pid 4711, shared RAM" */
static int
print_started(DrCli *cli, const char *did, JsonNode *answer, const GError *error)
{
  JsonObject *vm = answer && JSON_NODE_HOLDS_OBJECT(answer) ? json_node_get_object(answer) : NULL;

  if (!answer)
    return dr_cli_fail(cli, error);
  if (cli->json)
    dr_cli_print_json(answer);
  else
    printf("%s: %s, %s, QEMU %s, pid %" G_GINT64_FORMAT ", %s RAM\n", dr_json_str(vm, "name", cli->words[0]),
           did, dr_json_str(vm, "state", "?"), dr_json_str(vm, "qemu_version", "?"),
           dr_json_int(vm, "pid", 0), dr_json_str(vm, "memory_mode", "?"));
  if (!cli->json && dr_json_str(vm, "job", NULL))
    printf("%s: job %s pulls its disks: drover watch %s\n", dr_json_str(vm, "name", cli->words[0]),
           dr_json_str(vm, "job", "?"), dr_json_str(vm, "job", "?"));
  return DR_EXIT_DONE;
}

int
dr_cmd_run(DrCli *cli, int argc, char **argv)
{
  g_autofree char *memory = NULL;
  g_auto(GStrv) env = NULL;
  g_auto(GStrv) streams = NULL;
  gboolean hugetlb = FALSE;
  int bandwidth = 0;
  const GOptionEntry entries[] = {
    { "memory", 0, 0, G_OPTION_ARG_STRING, &memory, "How the guest's RAM is made (default: shared)",
      "shared|private" },
    { "hugetlb", 0, 0, G_OPTION_ARG_NONE, &hugetlb, "Take the RAM from the huge page pool", NULL },
    { "env", 'e', 0, G_OPTION_ARG_FILENAME_ARRAY, &env, "Set a variable for QEMU; may be repeated",
      "NAME=VALUE" },
    { "stream", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &streams,
      "Start on a disk that lives elsewhere, and pull it in meanwhile; may be repeated",
      "DISK=SOURCE[,format=FORMAT]" },
    { "bandwidth", 0, 0, G_OPTION_ARG_INT, &bandwidth, "At most so much is pulled for each disk", "MiB/s" },
    { NULL },
  };
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = json_object_new();
  g_autoptr(JsonNode) answer = NULL;
  g_autofree char *cwd = g_get_current_dir();

  if (!dr_cli_parse(cli, argc, argv, entries, 1, 1, &error) || !check_run(cli, memory, env, &error) ||
      !add_streams(body, streams, bandwidth, &error))
    return dr_cli_fail(cli, error);
  json_object_set_string_member(body, "name", cli->words[0]);
  json_object_set_array_member(body, "argv", dr_json_array_from_strv((const char *const *)cli->rest));
  json_object_set_string_member(body, "cwd", cwd);
  json_object_set_array_member(body, "env", environment(env));
  json_object_set_string_member(body, "memory", memory ? memory : "shared");
  json_object_set_boolean_member(body, "hugetlb", hugetlb);
  answer = dr_cli_call(cli, "POST", "/v1/vms", NULL, body, &error);
  return print_started(cli, "started", answer, error);
}

/* `pid` and `qmp` as they were typed; NULL where they were not. */
static gboolean
check_adopt(const char *pid, const char *qmp, guint64 *ret_pid, GError **error)
{
  if (!pid == !qmp) {
    dr_error_set(error, DR_ERROR_INVALID, "adopt: %s",
                 pid ? "--pid and --qmp are two ways to name the same VM" : "nothing says which VM");
    return dr_error_remedy(error, "name its process with --pid N, or its monitor with --qmp SOCKET");
  }
  if (pid && !g_ascii_string_to_unsigned(pid, 10, 1, G_MAXINT, ret_pid, NULL))
    return dr_error_set(error, DR_ERROR_INVALID, "adopt: '%s' is no pid", pid);
  return !qmp || *qmp || dr_error_set(error, DR_ERROR_INVALID, "adopt: the path of the QMP socket is empty");
}

/* Nothing is adopted: a domain stays libvirt's. What is told is whether it could be upgraded. */
static int
look_at_domains(DrCli *cli, gboolean all, gboolean check, const DrDomainOptions *options)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = NULL;
  int code = -1;

  if (all == (cli->words[0] != NULL))
    dr_error_set(&error, DR_ERROR_INVALID, "adopt: name the domains, or say --all");
  else
    body = dr_domains_request(cli, cli->words, options, &error);
  if (body)
    code = dr_domains_check(cli, body, NULL, &error);
  if (code == DR_EXIT_DONE && !check && !cli->json)
    puts("A domain stays libvirt's: nothing was changed, and nothing has to be. drover upgrade DOMAIN puts "
         "another QEMU beneath it.");
  return code >= 0 ? code : dr_cli_fail(cli, error);
}

static int
adopt_qemu(DrCli *cli, const char *pid, const char *qmp)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = json_object_new();
  g_autoptr(JsonNode) answer = NULL;
  guint64 number = 0;

  if (!dr_cli_check_words(cli, 1, 1, &error) || !check_adopt(pid, qmp, &number, &error))
    return dr_cli_fail(cli, error);
  json_object_set_string_member(body, "name", cli->words[0]);
  if (qmp) {
    /* As -qmp has it, for those who copy it from there. */
    g_autofree char *path = g_canonicalize_filename(g_str_has_prefix(qmp, "unix:") ? qmp + 5 : qmp, NULL);

    json_object_set_string_member(body, "qmp", path);
  } else {
    json_object_set_int_member(body, "pid", (gint64)number);
  }
  answer = dr_cli_call(cli, "POST", "/v1/vms/adopt", NULL, body, &error);
  return print_started(cli, "adopted", answer, error);
}

int
dr_cmd_adopt(DrCli *cli, int argc, char **argv)
{
  g_autofree char *qmp = NULL;
  g_autofree char *pid = NULL;
  gboolean libvirt = FALSE, all = FALSE, check = FALSE;
  g_auto(DrDomainOptions) options = { 0 };
  const GOptionEntry entries[] = {
    { "pid", 'p', 0, G_OPTION_ARG_STRING, &pid, "The process", "N" },
    { "qmp", 0, 0, G_OPTION_ARG_FILENAME, &qmp, "Its QMP socket", "SOCKET" },
    { "libvirt", 0, 0, G_OPTION_ARG_NONE, &libvirt,
      "Change nothing: tell whether domains of libvirt's could be upgraded; exit code 1 if one could not",
      NULL },
    { "all", 'a', 0, G_OPTION_ARG_NONE, &all, "All domains of libvirt's that run", NULL },
    { "check", 'c', 0, G_OPTION_ARG_NONE, &check, "Only that, without a word on what to do next", NULL },
    DR_CLI_DOMAIN_OPTIONS(&options),
    { NULL },
  };
  g_autoptr(GError) error = NULL;

  if (!dr_cli_parse(cli, argc, argv, entries, 0, -1, &error))
    return dr_cli_fail(cli, error);
  if (libvirt && !pid && !qmp)
    return look_at_domains(cli, all, check, &options);
  if (!libvirt && !all && !check && !options.emulator && !options.uri && !options.untested)
    return adopt_qemu(cli, pid, qmp);
  dr_error_set(&error, DR_ERROR_INVALID, "adopt: %s",
               libvirt ? "--pid and --qmp are not for domains of libvirt's"
                       : "--all, --check, --emulator, --uri and --untested-libvirt go with --libvirt");
  return dr_cli_fail(cli, error);
}
