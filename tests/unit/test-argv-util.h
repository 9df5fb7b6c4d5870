/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the tests of src/argv share: reading tests/data/argv, and short ways to check an error. */
#pragma once
#include "argv/argv.h"
#include "argv/compare.h"
#include "base/error.h"

#include <string.h>

#ifndef DROVER_SOURCE_ROOT /* meson gives it; without, tests run from the top of the tree */
#define DROVER_SOURCE_ROOT "."
#endif

#define ARGV_DATA DROVER_SOURCE_ROOT "/tests/data/argv"

/* One word a line, C escapes for newline, tab and backslash, "" for an empty word, '#' for a comment before
 * the first. */
static inline char **
argv_data_read(const char *path)
{
  g_autofree char *text = NULL;
  g_auto(GStrv) lines = NULL;
  g_autoptr(GStrvBuilder) words = g_strv_builder_new();
  g_autoptr(GError) error = NULL;
  gboolean in_head = TRUE;

  g_file_get_contents(path, &text, NULL, &error);
  g_assert_no_error(error);
  lines = g_strsplit(text, "\n", -1);
  for (guint i = 0; lines[i]; i++) {
    g_autofree char *word = g_str_equal(lines[i], "\"\"") ? g_strdup("") : g_strcompress(lines[i]);

    in_head = in_head && lines[i][0] == '#';
    if (!in_head && lines[i][0])
      g_strv_builder_add(words, word);
  }
  return g_strv_builder_end(words);
}

/* Calls `check` with each file's words. Returns: how many files there were. */
static inline guint
argv_data_for_each(void (*check)(const char *name, const char *const *words))
{
  g_autoptr(GError) error = NULL;
  g_autoptr(GDir) dir = g_dir_open(ARGV_DATA, 0, &error);
  const char *name;
  guint n = 0;

  g_assert_no_error(error);
  while ((name = g_dir_read_name(dir))) {
    g_autofree char *path = g_build_filename(ARGV_DATA, name, NULL);
    g_auto(GStrv) words = NULL;

    if (!g_str_has_suffix(name, ".args"))
      continue;
    words = argv_data_read(path);
    check(name, (const char *const *)words);
    n++;
  }
  return n;
}

/* Parses what a shell would split. */
static inline DrArgv *
argv_from_line(const char *line)
{
  g_auto(GStrv) words = NULL;
  g_autoptr(GError) error = NULL;
  DrArgv *argv;

  g_assert_true(g_shell_parse_argv(line, NULL, &words, &error));
  argv = dr_argv_parse((const char *const *)words, &error);
  g_assert_no_error(error);
  return argv;
}

static inline void
assert_invalid(GError **error, const char *message)
{
  g_assert_error(*error, DR_ERROR, DR_ERROR_INVALID);
  g_assert_cmpstr((*error)->message, ==, message);
  g_clear_error(error);
}

static inline void
assert_words(char **words, const char *const *expected)
{
  g_assert_cmpuint(g_strv_length(words), ==, g_strv_length((char **)expected));
  for (guint i = 0; words[i]; i++)
    g_assert_cmpstr(words[i], ==, expected[i]);
}
