/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Completion: which part of the command line is unfinished, and what of the verbs' tables fits there. */
#include "cli/complete.h"
#include "cli/list.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- Printing --- */

static gboolean
is_printable(const char *text)
{
  if (!g_utf8_validate(text, -1, NULL))
    return FALSE;
  for (; *text; text = g_utf8_next_char(text))
    if (g_unichar_iscntrl(g_utf8_get_char(text)))
      return FALSE;
  return TRUE;
}

/* A name with a control character in it cannot be typed, and is not for a terminal. */
void
dr_complete_say(const DrComplete *complete, const char *candidate, const char *about)
{
  g_autofree char *line = about ? g_strdelimit(g_strdup(about), "\n\t", ' ') : NULL;

  if (!g_str_has_prefix(candidate, complete->last) || !is_printable(candidate))
    return;
  printf("%s%s", complete->prefix, candidate);
  if (line && is_printable(line))
    printf("\t%s", line);
  putchar('\n');
}

void
dr_complete_ask_shell(const char *what)
{
  printf(":%s\n", what);
}

static void
say_verbs(const DrComplete *complete)
{
  for (const DrVerb *verb = dr_verbs; verb->name; verb++)
    dr_complete_say(complete, verb->name, verb->summary);
}

/* --- Options --- */

static gboolean
takes_value(const GOptionEntry *entry)
{
  return entry->arg != G_OPTION_ARG_NONE &&
         !(entry->flags & (G_OPTION_FLAG_NO_ARG | G_OPTION_FLAG_OPTIONAL_ARG));
}

static gboolean
is_list(const GOptionEntry *entry)
{
  return entry->arg == G_OPTION_ARG_STRING_ARRAY || entry->arg == G_OPTION_ARG_FILENAME_ARRAY;
}

static const GOptionEntry *
find_in(const GOptionEntry *entries, const char *name, gsize len, char letter)
{
  for (; entries && entries->long_name; entries++)
    if ((letter && entries->short_name == letter) ||
        (!letter && strlen(entries->long_name) == len && strncmp(entries->long_name, name, len) == 0))
      return entries;
  return NULL;
}

static const GOptionEntry *common_entries;

/* The option of a word: "--name", "--name=…", "-x", or the last of "-abx". */
static const GOptionEntry *
option_of(const DrComplete *complete, const char *word)
{
  gboolean is_long = g_str_has_prefix(word, "--");
  const char *name = is_long ? word + 2 : "";
  char letter = is_long ? '\0' : word[strlen(word) - 1];
  const GOptionEntry *own = find_in(complete->entries, name, strcspn(name, "="), letter);

  return own ? own : find_in(common_entries, name, strcspn(name, "="), letter);
}

static gboolean
belongs(const DrComplete *complete, const GOptionEntry *entry)
{
  g_autofree char *padded = g_strconcat(" ", entry->long_name, " ", NULL);

  return !complete->sub || strstr(complete->sub->options, padded);
}

static gboolean
was_given(const DrComplete *complete, const GOptionEntry *entry)
{
  return !is_list(entry) &&
         g_ptr_array_find_with_equal_func(complete->given, entry->long_name, g_str_equal, NULL);
}

static void
say_options(const DrComplete *complete, const GOptionEntry *entries, gboolean own)
{
  for (; entries && entries->long_name; entries++) {
    g_autofree char *name = g_strconcat("--", entries->long_name, NULL);

    if (!(entries->flags & G_OPTION_FLAG_HIDDEN) && !was_given(complete, entries) &&
        (!own || belongs(complete, entries)))
      dr_complete_say(complete, name, entries->description);
  }
}

static void
say_all_options(const DrComplete *complete)
{
  say_options(complete, complete->entries, TRUE);
  say_options(complete, common_entries, FALSE);
  dr_complete_say(complete, "--help", "Show help options");
}

/* Behind the last comma of "-o name,st". */
static void
say_columns(DrComplete *complete)
{
  const char *comma = strrchr(complete->last, ',');
  g_autofree char *before =
      comma ? g_strndup(complete->last, (gsize)(comma + 1 - complete->last)) : g_strdup("");
  const DrColumn *columns = complete->sub ? complete->sub->columns : complete->cli->columns;
  DrComplete one = *complete;

  one.prefix = g_strconcat(complete->prefix, before, NULL);
  one.last = complete->last + strlen(before);
  if (!comma)
    dr_complete_placeholder(complete, "name|wide|json");
  for (; columns && columns->name; columns++)
    if (comma || !g_str_equal(columns->name, "name"))
      dr_complete_say(&one, columns->name, "a column");
  g_free(one.prefix);
}

static void
say_value(DrComplete *complete, const GOptionEntry *entry)
{
  gboolean is_file = entry->arg == G_OPTION_ARG_FILENAME || entry->arg == G_OPTION_ARG_FILENAME_ARRAY;
  const char *what = entry->arg_description ? entry->arg_description : "";

  if (g_str_equal(entry->long_name, "output"))
    say_columns(complete);
  else if (g_str_equal(entry->long_name, "pid"))
    dr_complete_placeholder(complete, "PID");
  else if (g_str_equal(what, "NAME") || g_str_equal(what, "SNAPSHOT") ||
           g_str_equal(entry->long_name, "bitmap"))
    return; /* of an option: the name of something new */
  else if (!dr_complete_placeholder(complete, what) && is_file)
    dr_complete_ask_shell("files");
}

/* --- Words --- */

static gboolean
is_new_name(const DrComplete *complete, guint at)
{
  static const char *const verbs[] = { "run", "adopt", "peer add", "pki issue", NULL };
  const char *verb = complete->cli->verb->name;
  g_autofree char *full = complete->sub ? g_strconcat(verb, " ", complete->sub->name, NULL) : g_strdup(verb);

  return (at == 0 && g_strv_contains(verbs, full)) || (at == 2 && g_str_equal(full, "bitmap add"));
}

/* One of the ways that a usage shows: "NAME… PEER". What is optional or repeated may be left out or go on. */
static void
say_of_usage(const DrComplete *complete, const char *usage)
{
  g_auto(GStrv) parts = g_strsplit(usage, " ", -1);
  guint at = complete->words->len, place = 0;

  for (char **part = parts; *part; part++) {
    g_autofree char *name = g_strdup(**part == '[' ? *part + 1 : *part);
    gboolean repeated = strstr(name, "…") != NULL;

    if (**part == '-' || !**part)
      return; /* options, and what is behind them, stand elsewhere */
    name[strcspn(name, "]")] = '\0';
    if (repeated)
      *strstr(name, "…") = '\0';
    if (place == at || (repeated && place < at))
      dr_complete_placeholder(complete, g_str_equal(name, "NAME") && complete->sub &&
                                                g_str_equal(complete->cli->verb->name, "peer")
                                            ? "PEER"
                                            : name);
    if (!repeated && place == at)
      return;
    place += repeated && place < at ? at - place : 1;
  }
}

static void
say_words(const DrComplete *complete)
{
  const char *words = complete->sub ? complete->sub->words : complete->cli->verb->words;
  g_auto(GStrv) ways = g_strsplit(words, " | ", -1);

  if (is_new_name(complete, complete->words->len))
    return;
  for (char **way = ways; *way; way++)
    say_of_usage(complete, *way);
}

/* "  disk list NAME      list its disks" of the verb's help; else its arguments. (transfer full) */
static char *
about_subverb(const DrVerb *verb, const DrSubverb *sub)
{
  g_autofree char *begin = g_strdup_printf("  %s %s ", verb->name, sub->name);
  g_auto(GStrv) lines = g_strsplit(verb->more ? verb->more : "", "\n", -1);

  for (char **line = lines; *line; line++) {
    const char *text = g_str_has_prefix(*line, begin) ? strstr(*line + strlen(begin) - 1, "  ") : NULL;

    if (text)
      return g_strdup(text + strspn(text, " "));
  }
  return g_strdup(sub->words);
}

/* The words of the one whose name is left out come last: droverd may have to be asked for them. */
static void
say_subverbs(DrComplete *complete, const DrSubverb *subverbs)
{
  for (const DrSubverb *sub = subverbs; sub->name; sub++) {
    g_autofree char *about = about_subverb(complete->cli->verb, sub);

    if (!sub->otherwise)
      dr_complete_say(complete, sub->name, about);
  }
  for (const DrSubverb *sub = subverbs; sub->name; sub++) {
    complete->sub = sub;
    if (sub->otherwise)
      say_words(complete);
  }
}

/* The first word says which, unless it is something else: then it stays. */
static void
find_subverb(DrComplete *complete)
{
  const DrSubverb *sub = complete->cli->subverbs;

  if (!sub || complete->words->len == 0)
    return;
  for (; sub->name; sub++)
    if (g_str_equal(sub->name, complete->words->pdata[0]) && !sub->otherwise) {
      complete->sub = sub;
      g_ptr_array_remove_index(complete->words, 0);
      return;
    }
  for (sub = complete->cli->subverbs; sub->name; sub++)
    if (sub->otherwise)
      complete->sub = sub;
}

/* --- The command line --- */

/* What is typed of a QEMU command is the shell's to complete, but for the program. */
static void
say_rest(const DrComplete *complete, guint at)
{
  if (!g_str_equal(complete->cli->verb->name, "run"))
    say_words(complete);
  else if (at > 0 || !dr_complete_placeholder(complete, "BINARY"))
    dr_complete_ask_shell("files");
}

/* The words up to the unfinished one. Returns: the option whose value that is, or NULL; *ret_rest is how many words stand
 * behind "--", or -1. */
static const GOptionEntry *
take_words(DrComplete *complete, char **words, int *ret_rest)
{
  const GOptionEntry *waits = NULL;

  *ret_rest = -1;
  for (; words[0] && words[1]; words++) {
    const GOptionEntry *option =
        !waits && *ret_rest < 0 && words[0][0] == '-' && words[0][1] ? option_of(complete, words[0]) : NULL;

    if (option)
      g_ptr_array_add(complete->given, (gpointer)option->long_name);
    if (*ret_rest >= 0)
      ++*ret_rest;
    if (!waits && *ret_rest < 0 && g_str_equal(words[0], "--"))
      *ret_rest = 0;
    else if (!waits && !option && (words[0][0] != '-' || *ret_rest >= 0))
      g_ptr_array_add(complete->words, words[0]);
    waits = option && takes_value(option) && !(g_str_has_prefix(words[0], "--") && strchr(words[0], '='))
                ? option
                : NULL;
  }
  complete->last = words[0] ? words[0] : "";
  return waits;
}

/* "--sync=fu": the value of that option. */
static const GOptionEntry *
split_value(DrComplete *complete)
{
  const char *equals = strchr(complete->last, '=');
  const GOptionEntry *option;

  if (!g_str_has_prefix(complete->last, "--") || !equals)
    return NULL;
  option = option_of(complete, complete->last);
  g_free(complete->prefix);
  complete->prefix = g_strndup(complete->last, (gsize)(equals + 1 - complete->last));
  complete->last = equals + 1;
  return option;
}

void
dr_complete_verb(DrCli *cli, const GOptionEntry *entries, const GOptionEntry *common)
{
  DrComplete complete = { .cli = cli,
                          .entries = entries,
                          .prefix = g_strdup(""),
                          .words = g_ptr_array_new(),
                          .given = g_ptr_array_new() };
  const GOptionEntry *waits;
  int rest;

  common_entries = common;
  waits = take_words(&complete, cli->completing, &rest);
  find_subverb(&complete);
  if (!waits && rest < 0)
    waits = split_value(&complete);
  if (waits)
    say_value(&complete, waits);
  else if (rest >= 0)
    say_rest(&complete, (guint)rest);
  else if (complete.last[0] == '-')
    say_all_options(&complete);
  else if (cli->subverbs && !complete.sub && complete.words->len == 0)
    say_subverbs(&complete, cli->subverbs);
  else
    say_words(&complete);
  exit(DR_EXIT_DONE);
}

/* --- Before the verb --- */

/* Where droverd is, as far as it has been said anywhere on the line. */
static void
note_connect(DrCli *cli, char **words)
{
  for (; words[0] && words[1] && !g_str_equal(words[0], "--"); words++) {
    const char *where = g_str_equal(words[0], "--connect") && words[2] ? words[1]
                        : g_str_has_prefix(words[0], "--connect=")     ? words[0] + strlen("--connect=")
                                                                       : NULL;

    if (where)
      cli->connect = g_strdup(where);
  }
}

static int
complete_verb_name(DrCli *cli, const char *last, gboolean options)
{
  const DrComplete complete = { .cli = cli, .last = last, .prefix = (char *)"" };
  static const char *const first[] = {
    "--connect", "--json", "--no-color", "--verbose", "--version", "--help"
  };

  if (options && last[0] == '-')
    for (guint i = 0; i < G_N_ELEMENTS(first); i++)
      dr_complete_say(&complete, first[i], NULL);
  else
    say_verbs(&complete);
  if (options && last[0] != '-')
    dr_complete_say(&complete, "help", "show this, or the help of a verb");
  return DR_EXIT_DONE;
}

int
dr_complete(DrCli *cli, char **words)
{
  guint n = g_strv_length(words), at = 0;
  char *argv[] = { NULL, NULL };

  note_connect(cli, words);
  while (at + 1 < n && words[at][0] == '-')
    at += g_str_equal(words[at], "--connect") ? 2 : 1;
  if (at >= n && n > 0) { /* the value of --connect, before the verb */
    const DrComplete complete = { .cli = cli, .last = words[n - 1], .prefix = (char *)"" };

    dr_complete_placeholder(&complete, "unix:PATH");
    return DR_EXIT_DONE;
  }
  if (at + 1 >= n)
    return complete_verb_name(cli, n > 0 ? words[n - 1] : "", TRUE);
  if (g_str_equal(words[at], "help"))
    return complete_verb_name(cli, words[n - 1], FALSE);
  for (cli->verb = dr_verbs; cli->verb->name && !g_str_equal(cli->verb->name, words[at]); cli->verb++)
    ;
  cli->completing = words + at + 1;
  argv[0] = words[at];
  return cli->verb->name ? cli->verb->run(cli, 1, argv) : DR_EXIT_DONE;
}
