/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the verbs share: options, errors, exit codes. */
#include "cli/cli.h"
#include "base/error.h"
#include "cli/complete.h"
#include "cli/render.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What stands behind "--" is never looked at for options. */
static void
split_rest(DrCli *cli, char **argv)
{
  int i = 1;

  while (argv[i] && !g_str_equal(argv[i], "--"))
    i++;
  if (!argv[i])
    return;
  cli->rest = g_strdupv(&argv[i + 1]);
  for (; argv[i]; i++)
    g_clear_pointer(&argv[i], g_free);
}

/* What stands at place `n` of the verb's usage: "NAME" of "NAME…". (transfer full) */
static char *
word_name(const DrCli *cli, int n)
{
  g_auto(GStrv) names = g_strsplit(cli->verb->words, " ", -1);
  const char *name = n < (int)g_strv_length(names) ? names[n] : "an argument";

  return g_strndup(name, strcspn(name, "…["));
}

gboolean
dr_cli_check_words(DrCli *cli, int min, int max, GError **error)
{
  int n = (int)g_strv_length(cli->words);
  g_autofree char *missing = NULL;

  if (n >= min && (max < 0 || n <= max))
    return TRUE;
  if (n < min) {
    missing = word_name(cli, n);
    dr_error_set(error, DR_ERROR_INVALID, "%s: %s is missing", cli->verb->name, missing);
  } else {
    dr_error_set(error, DR_ERROR_INVALID, "%s: unexpected argument '%s'", cli->verb->name, cli->words[max]);
  }
  return dr_error_remedy(error, "usage: drover %s%s%s (see drover help %s)", cli->verb->name,
                         *cli->verb->words ? " " : "", cli->verb->words, cli->verb->name);
}

static GOptionContext *
new_context(DrCli *cli, const GOptionEntry *entries)
{
  g_autofree char *title = g_strconcat(cli->verb->name, " ", cli->verb->words, NULL);
  const GOptionEntry common[] = {
    { "connect", 0, 0, G_OPTION_ARG_FILENAME, &cli->connect, "droverd's socket", "unix:PATH" },
    /* For few, and the same everywhere: drover(1) and drover --help have it, not each verb's help. */
    { "pki", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &cli->pki, "Keys for --connect tls://HOST",
      "DIR" },
    { "json", 0, 0, G_OPTION_ARG_NONE, &cli->json, "Print JSON", NULL },
    { "no-color", 0, 0, G_OPTION_ARG_NONE, &cli->no_color, "Print no colours", NULL },
    { "verbose", 'v', 0, G_OPTION_ARG_NONE, &cli->verbose, "Tell each call of droverd's API, too", NULL },
    { NULL },
  };
  GOptionContext *context;

  if (cli->completing)
    dr_complete_verb(cli, entries, common);
  context = g_option_context_new(title);
  g_option_context_set_summary(context, cli->verb->summary);
  if (cli->verb->more)
    g_option_context_set_description(context, cli->verb->more);
  if (entries)
    g_option_context_add_main_entries(context, entries, NULL);
  g_option_context_add_main_entries(context, common, NULL);
  return context;
}

static void
drop_first(char **words)
{
  g_free(words[0]);
  memmove(words, words + 1, g_strv_length(words + 1) * sizeof *words + sizeof *words);
}

/* For all but `run`, what stands behind "--" are words that may look like options. */
static void
take_rest(DrCli *cli)
{
  g_autoptr(GStrvBuilder) words = g_strv_builder_new();

  if (!cli->rest || cli->verb->run == dr_cmd_run)
    return;
  g_strv_builder_addv(words, (const char **)cli->words);
  g_strv_builder_addv(words, (const char **)cli->rest);
  g_strfreev(cli->words);
  cli->words = g_strv_builder_end(words);
}

gboolean
dr_cli_parse(DrCli *cli, int argc, char **argv, const GOptionEntry *entries, int min, int max, GError **error)
{
  g_autoptr(GOptionContext) context = new_context(cli, entries);
  g_autoptr(GError) parse_error = NULL;

  cli->words = g_strdupv(argv);
  split_rest(cli, cli->words);
  if (!g_option_context_parse_strv(context, &cli->words, &parse_error)) {
    /* GOption sets nothing where it fails. */
    cli->json = g_strv_contains((const char *const *)argv, "--json");
    dr_error_set(error, DR_ERROR_INVALID, "%s: %s", cli->verb->name, parse_error->message);
    return dr_error_remedy(error, "drover help %s shows its options", cli->verb->name);
  }
  cli->json |= cli->events;
  drop_first(cli->words);
  take_rest(cli);
  return dr_cli_check_words(cli, min, max, error);
}

DrClient *
dr_cli_new_client(const DrCli *cli, GError **error)
{
  return dr_client_new(cli->connect, cli->pki, error);
}

DrClient *
dr_cli_client(DrCli *cli, GError **error)
{
  if (!cli->client)
    cli->client = dr_cli_new_client(cli, error);
  return cli->client;
}

int
dr_exit_of(const GError *error)
{
  if (g_error_matches(error, DR_ERROR, DR_ERROR_INVALID))
    return DR_EXIT_USAGE;
  return g_error_matches(error, DR_ERROR, DR_ERROR_ATTENTION) ? DR_EXIT_ATTENTION : DR_EXIT_FAILED;
}

int
dr_exit_worse(int a, int b)
{
  static const int rank[] = {
    [DR_EXIT_DONE] = 0, [DR_EXIT_USAGE] = 1, [DR_EXIT_FAILED] = 2, [DR_EXIT_ATTENTION] = 3
  };

  return rank[a] > rank[b] ? a : b;
}

void
dr_cli_print_json(JsonNode *node)
{
  g_autofree char *text = dr_json_print(node, TRUE);

  puts(text);
}

/* A remedy may have several lines; each stands under the first. */
static void
print_remedy(const char *remedy)
{
  g_autofree char *text = remedy ? dr_render_harmless(remedy) : NULL;
  g_auto(GStrv) lines = text ? g_strsplit(text, "\n", -1) : NULL;

  for (int i = 0; lines && lines[i]; i++)
    fprintf(stderr, "  remedy: %s\n", lines[i]);
}

static void
print_error_json(const DrCli *cli, const GError *error)
{
  g_autofree char *text = NULL;
  g_autoptr(JsonObject) object = json_object_new();
  g_autoptr(JsonNode) node = NULL;
  JsonObject *inner = json_object_new();

  json_object_set_string_member(inner, "code", dr_error_code_name(error));
  json_object_set_string_member(inner, "message", error->message);
  json_object_set_string_member(inner, "remedy", dr_error_get_remedy(error));
  json_object_set_object_member(object, "error", inner);
  node = dr_json_node(json_object_ref(object));
  text = dr_json_print(node, !cli->events); /* among events it is a line, too */
  puts(text);
}

int
dr_cli_fail(const DrCli *cli, const GError *error)
{
  g_autofree char *message = dr_render_harmless(error->message);

  fprintf(stderr, "drover: %s\n", message);
  if (cli->json)
    print_error_json(cli, error);
  else
    print_remedy(dr_error_get_remedy(error));
  return dr_exit_of(error);
}

/* --- Calls --- */

JsonNode *
dr_cli_call(DrCli *cli, const char *method, const char *path, const char *name, JsonObject *body,
            GError **error)
{
  g_autofree char *escaped = name ? g_uri_escape_string(name, NULL, FALSE) : NULL;
  g_auto(GStrv) parts = g_strsplit(path, "{}", 2);
  g_autofree char *full = g_strjoinv(escaped ? escaped : "", parts);
  gint64 start = g_get_monotonic_time();
  JsonNode *answer = NULL;

  if (name && !*name) {
    dr_error_set(error, DR_ERROR_INVALID, "%s: a name is empty", cli->verb->name);
    return NULL;
  }
  if (name && strlen(name) > NAME_MAX) { /* droverd hangs up on a request line without an end */
    dr_error_set(error, DR_ERROR_INVALID, "%s: '%.40s…' is too long for a name", cli->verb->name, name);
    return NULL;
  }
  if (dr_cli_client(cli, error))
    answer = dr_client_call(cli->client, method, full, body, error);
  if (cli->verbose)
    fprintf(stderr, "%s %s: %s after %.1f ms\n", method, full, answer ? "done" : "failed",
            (double)(g_get_monotonic_time() - start) / 1000);
  return answer;
}

JsonArray *
dr_cli_call_list(DrCli *cli, const char *method, const char *path, JsonObject *body, GError **error)
{
  g_autoptr(JsonNode) answer = dr_cli_call(cli, method, path, NULL, body, error);

  if (answer && !JSON_NODE_HOLDS_ARRAY(answer))
    dr_error_set(error, DR_ERROR_INTERNAL, "droverd's answer to %s %s is no list", method, path);
  return answer && JSON_NODE_HOLDS_ARRAY(answer) ? json_node_dup_array(answer) : NULL;
}

static JsonNode *
one_or_many(JsonArray *answers, guint asked)
{
  JsonNode *node;

  if (asked == 1)
    return json_array_dup_element(answers, 0);
  node = json_node_new(JSON_NODE_ARRAY);
  json_node_set_array(node, answers);
  return node;
}

int
dr_cli_each(DrCli *cli, const char *method, const char *path, JsonObject *body,
            void (*tell)(const char *name, JsonObject *answer))
{
  g_autoptr(JsonArray) answers = json_array_new();
  int code = DR_EXIT_DONE;

  for (char **name = cli->words; *name; name++) {
    g_autoptr(GError) error = NULL;
    JsonNode *answer = dr_cli_call(cli, method, path, *name, body, &error);

    if (!answer)
      code = dr_exit_worse(code, dr_cli_fail(cli, error));
    else if (!cli->json)
      tell(*name, JSON_NODE_HOLDS_OBJECT(answer) ? json_node_get_object(answer) : NULL);
    if (answer)
      json_array_add_element(answers, answer);
  }
  if (cli->json && json_array_get_length(answers) > 0) {
    g_autoptr(JsonNode) all = one_or_many(answers, g_strv_length(cli->words));

    dr_cli_print_json(all);
  }
  return code;
}
