/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line as a list of options: parsing, looking up, changing. */
#include "argv/argv.h"
#include "argv/launcher.h"
#include "base/error.h"

#include <string.h>

struct _DrArgv {
  char **launcher; /* never NULL */
  char *program;
  GPtrArray *opts; /* (element-type DrOpt) */
};

static void
opt_free(DrOpt *opt)
{
  g_free(opt->spelling);
  g_free(opt->value);
  g_free(opt);
}

static DrOpt *
opt_new(const DrOptInfo *info, const char *spelling, const char *value)
{
  DrOpt *opt = g_new0(DrOpt, 1);

  opt->info = info;
  opt->spelling = g_strdup(spelling);
  opt->value = g_strdup(value);
  return opt;
}

DrArgv *
dr_argv_new(const char *program)
{
  DrArgv *argv = g_new0(DrArgv, 1);

  argv->launcher = g_new0(char *, 1);
  argv->program = g_strdup(program);
  argv->opts = g_ptr_array_new_with_free_func((GDestroyNotify)opt_free);
  return argv;
}

DrArgv *
dr_argv_copy(const DrArgv *argv)
{
  DrArgv *copy = dr_argv_new(argv->program);

  dr_argv_set_launcher(copy, dr_argv_launcher(argv));
  for (guint i = 0; i < argv->opts->len; i++) {
    const DrOpt *opt = argv->opts->pdata[i];

    g_ptr_array_add(copy->opts, opt_new(opt->info, opt->spelling, opt->value));
  }
  return copy;
}

void
dr_argv_free(DrArgv *argv)
{
  if (!argv)
    return;
  g_strfreev(argv->launcher);
  g_free(argv->program);
  g_ptr_array_unref(argv->opts);
  g_free(argv);
}

/* Reads the option at words[*at] and moves *at behind it. */
static gboolean
parse_option(DrArgv *argv, const char *const *words, guint *at, GError **error)
{
  const char *word = words[*at];
  const DrOptInfo *info;

  /* An empty word is an image too: a drive without a medium. */
  if (word[0] != '-') {
    g_ptr_array_add(argv->opts, opt_new(dr_option_lookup("hda"), NULL, word));
    *at += 1;
    return TRUE;
  }
  info = dr_option_lookup(word);
  if (!info)
    return dr_error_set(error, DR_ERROR_INVALID, "unknown option '%s' (word %u)", word, *at);
  if (dr_option_has_arg(info) && !words[*at + 1])
    return dr_error_set(error, DR_ERROR_INVALID, "option '%s' (word %u) needs a value", word, *at);
  g_ptr_array_add(argv->opts, opt_new(info, word, dr_option_has_arg(info) ? words[*at + 1] : NULL));
  *at += dr_option_has_arg(info) ? 2 : 1;
  return TRUE;
}

DrArgv *
dr_argv_parse(const char *const *words, GError **error)
{
  g_autoptr(DrArgv) argv = NULL;
  guint at;

  if (!words || !words[0] || !*words[0]) {
    dr_error_set(error, DR_ERROR_INVALID, "the command line has no program");
    return NULL;
  }
  if (!dr_launcher_find_program(words, &at, error))
    return NULL;
  argv = dr_argv_new(words[at]);
  g_free(argv->launcher);
  argv->launcher = g_new0(char *, at + 1);
  for (guint i = 0; i < at; i++)
    argv->launcher[i] = g_strdup(words[i]);
  for (at++; words[at];) {
    if (!parse_option(argv, words, &at, error))
      return NULL;
  }
  return g_steal_pointer(&argv);
}

char **
dr_argv_to_strv(const DrArgv *argv)
{
  g_autoptr(GStrvBuilder) words = g_strv_builder_new();

  for (guint i = 0; argv->launcher[i]; i++)
    g_strv_builder_add(words, argv->launcher[i]);
  g_strv_builder_add(words, argv->program);
  for (guint i = 0; i < argv->opts->len; i++) {
    const DrOpt *opt = argv->opts->pdata[i];

    if (opt->spelling)
      g_strv_builder_add(words, opt->spelling);
    if (opt->value)
      g_strv_builder_add(words, opt->value);
  }
  return g_strv_builder_end(words);
}

const char *const *
dr_argv_launcher(const DrArgv *argv)
{
  return (const char *const *)argv->launcher;
}

void
dr_argv_set_launcher(DrArgv *argv, const char *const *words)
{
  char **copy = words ? g_strdupv((char **)words) : g_new0(char *, 1);

  g_strfreev(argv->launcher);
  argv->launcher = copy;
}

const char *
dr_argv_program(const DrArgv *argv)
{
  return argv->program;
}

void
dr_argv_set_program(DrArgv *argv, const char *program)
{
  char *copy = g_strdup(program);

  g_free(argv->program);
  argv->program = copy;
}

guint
dr_argv_n(const DrArgv *argv)
{
  return argv->opts->len;
}

DrOpt *
dr_argv_opt(const DrArgv *argv, guint i)
{
  g_return_val_if_fail(i < argv->opts->len, NULL);
  return argv->opts->pdata[i];
}

DrOpt *
dr_argv_next(const DrArgv *argv, const char *name, const DrOpt *previous)
{
  const DrOptInfo *info = name ? dr_option_lookup(name) : NULL;
  guint i = 0;

  if (name && !info)
    return NULL;
  if (previous && g_ptr_array_find(argv->opts, previous, &i))
    i++;
  for (; i < argv->opts->len; i++) {
    DrOpt *opt = argv->opts->pdata[i];

    if (!info || opt->info == info)
      return opt;
  }
  return NULL;
}

DrOpt *
dr_argv_find(const DrArgv *argv, const char *name, guint n)
{
  DrOpt *opt = NULL;

  while ((opt = dr_argv_next(argv, name, opt))) {
    if (n-- == 0)
      return opt;
  }
  return NULL;
}

DrOpt *
dr_argv_find_last(const DrArgv *argv, const char *name)
{
  DrOpt *opt = NULL, *last = NULL;

  while ((opt = dr_argv_next(argv, name, opt)))
    last = opt;
  return last;
}

guint
dr_argv_count(const DrArgv *argv, const char *name)
{
  guint n = 0;

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, name, opt));)
    n++;
  return n;
}

DrOpt *
dr_argv_find_id(const DrArgv *argv, const char *name, const char *id)
{
  const DrOptInfo *info = dr_option_lookup(name);
  const char *key = info && g_str_equal(info->name, "blockdev") ? "node-name" : "id";

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, name, opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);

    if (opts && g_strcmp0(dr_opts_get(opts, key), id) == 0)
      return opt;
  }
  return NULL;
}

/* Puts the keys of `more` over those of `into`; a key that `more` repeats stays repeated. */
static void
merge_opts(DrOpts *into, const DrOpts *more)
{
  g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);

  for (guint i = 0; i < dr_opts_n(more); i++) {
    const char *key = dr_opts_key(more, i), *value = dr_opts_value(more, i);

    if (!*key) /* a stray comma */
      continue;
    if (g_hash_table_add(seen, (char *)key) || dr_opts_form(into) == DR_OPTS_JSON)
      dr_opts_set(into, key, value);
    else
      dr_opts_append(into, key, value);
  }
}

DrOpts *
dr_argv_effective(const DrArgv *argv, const char *name, GError **error)
{
  g_autoptr(DrOpts) all = NULL;

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, name, opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);

    if (!opts)
      return NULL;
    if (all && opt->info->repeat == DR_REPEAT_MERGE) {
      merge_opts(all, opts);
    } else {
      dr_opts_free(all);
      all = g_steal_pointer(&opts);
    }
  }
  return g_steal_pointer(&all);
}

DrOpt *
dr_argv_insert(DrArgv *argv, guint at, const char *name, const char *value)
{
  const DrOptInfo *info = dr_option_lookup(name);
  g_autofree char *spelling = name[0] == '-' ? g_strdup(name) : g_strconcat("-", name, NULL);
  DrOpt *opt;

  g_return_val_if_fail(info && dr_option_has_arg(info) == (value != NULL), NULL);
  g_return_val_if_fail(at <= argv->opts->len, NULL);
  opt = opt_new(info, spelling, value);
  g_ptr_array_insert(argv->opts, at, opt);
  return opt;
}

DrOpt *
dr_argv_append(DrArgv *argv, const char *name, const char *value)
{
  return dr_argv_insert(argv, argv->opts->len, name, value);
}

DrOpt *
dr_argv_insert_before(DrArgv *argv, const DrOpt *mark, const char *name, const char *value)
{
  guint at;

  g_return_val_if_fail(g_ptr_array_find(argv->opts, mark, &at), NULL);
  return dr_argv_insert(argv, at, name, value);
}

DrOpt *
dr_argv_insert_after(DrArgv *argv, const DrOpt *mark, const char *name, const char *value)
{
  guint at;

  g_return_val_if_fail(g_ptr_array_find(argv->opts, mark, &at), NULL);
  return dr_argv_insert(argv, at + 1, name, value);
}

void
dr_argv_remove(DrArgv *argv, DrOpt *opt)
{
  g_return_if_fail(g_ptr_array_remove(argv->opts, opt));
}

guint
dr_argv_remove_all(DrArgv *argv, const char *name)
{
  guint n = 0;

  for (DrOpt *opt; (opt = dr_argv_find(argv, name, 0)); n++)
    dr_argv_remove(argv, opt);
  return n;
}

void
dr_opt_set_value(DrOpt *opt, const char *value)
{
  char *copy = g_strdup(value);

  g_return_if_fail(opt->value && value);
  g_free(opt->value);
  opt->value = copy;
}

DrOpts *
dr_opt_parse(const DrOpt *opt, GError **error)
{
  return dr_opts_parse(opt->info->name, opt->value ? opt->value : "", error);
}

void
dr_opt_set_opts(DrOpt *opt, const DrOpts *opts)
{
  g_autofree char *value = dr_opts_print(opts);

  dr_opt_set_value(opt, value);
}

DrChardev *
dr_opt_parse_chardev(const DrOpt *opt, GError **error)
{
  return dr_chardev_parse(opt->info->name, opt->value ? opt->value : "", error);
}

GPtrArray *
dr_argv_unknown_to(const DrArgv *argv, DrQemuVersions version)
{
  GPtrArray *unknown = g_ptr_array_new();

  for (guint i = 0; i < argv->opts->len; i++) {
    DrOpt *opt = argv->opts->pdata[i];

    if (!(opt->info->versions & version))
      g_ptr_array_add(unknown, opt);
  }
  return unknown;
}
