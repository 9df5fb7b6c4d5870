/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A command line whose disk gets another image on top. What stood below the old one was spelled out (-blockdev by name); the new one's
 * header says its chain, so those that nobody names any more go. */
#include "base/error.h"
#include "job/revert-internal.h"

#include <string.h>

static gboolean
is_disk(const DrOpt *opt)
{
  static const char *const whole[] = { "hda", "hdb", "hdc", "hdd", NULL };

  return g_str_equal(opt->info->name, "drive") || g_str_equal(opt->info->name, "blockdev") ||
         g_strv_contains(whole, opt->info->name);
}

/* "file", "filename", "file.filename", but not a backing file's. */
static gboolean
is_top_file(const char *key)
{
  return !strstr(key, "backing") && (g_str_equal(key, "file") || g_str_has_suffix(key, "filename"));
}

/* A raw image may have been a window on its file. */
static void
make_qcow2(DrOpts *opts, const char *key)
{
  const char *driver = dr_opts_get(opts, key);

  if (driver && g_str_equal(driver, "qcow2"))
    return;
  dr_opts_unset(opts, "offset");
  dr_opts_unset(opts, "size");
  dr_opts_set(opts, key, "qcow2");
}

/* The option whose child "file" is this node, or none: `opt` is the format's node itself. */
static DrOpt *
user_of(DrArgv *argv, const char *node)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, NULL, opt));) {
    g_autoptr(DrOpts) opts = is_disk(opt) && opt->value ? dr_opt_parse(opt, NULL) : NULL;

    if (opts && g_strcmp0(dr_opts_get(opts, "file"), node) == 0)
      return opt;
  }
  return NULL;
}

static void
drop_backing(DrArgv *argv, DrOpt *opt)
{
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);

  if (!opts)
    return;
  dr_opts_unset(opts, "backing");
  make_qcow2(opts, g_str_equal(opt->info->name, "drive") ? "format" : "driver");
  dr_opt_set_opts(opt, opts);
}

/* TRUE: this option said it. */
static gboolean
swap_in(DrArgv *argv, DrOpt *opt, const char *cwd, const char *from, const char *to)
{
  g_autoptr(DrOpts) opts = opt->value ? dr_opt_parse(opt, NULL) : NULL;
  const char *node;
  DrOpt *user = NULL;

  for (guint i = 0; opts && i < dr_opts_n(opts); i++) {
    g_autofree char *key = g_strdup(dr_opts_key(opts, i));

    if (!is_top_file(key) || !dr_same_file(dr_opts_value(opts, i), from, cwd))
      continue;
    dr_opts_set(opts, key, to);
    node = dr_opts_get(opts, "node-name");
    dr_opt_set_opts(opt, opts);
    if (node && g_str_equal(key, "filename"))
      user = user_of(argv, node);
    drop_backing(argv, user ? user : opt);
    return TRUE;
  }
  return FALSE;
}

/* --- What nobody names any more --- */

static gboolean
names(const DrOpt *opt, const char *node)
{
  g_autoptr(DrOpts) opts = opt->value ? dr_opt_parse(opt, NULL) : NULL;

  for (guint i = 0; opts && i < dr_opts_n(opts); i++)
    if (!g_str_has_suffix(dr_opts_key(opts, i), "node-name") && g_str_equal(dr_opts_value(opts, i), node))
      return TRUE;
  return FALSE;
}

static gboolean
is_named(DrArgv *argv, const char *node)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, NULL, opt));)
    if (names(opt, node))
      return TRUE;
  return FALSE;
}

/* The names of all -blockdev nodes that somebody else names. */
static GHashTable *
named_nodes(DrArgv *argv)
{
  GHashTable *named = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "blockdev", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *node = opts ? dr_opts_get(opts, "node-name") : NULL;

    if (node && is_named(argv, node))
      g_hash_table_add(named, g_strdup(node));
  }
  return named;
}

/* One at a time: what it stood on may be next. */
static gboolean
drop_one(DrArgv *argv, GHashTable *before)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "blockdev", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *node = opts ? dr_opts_get(opts, "node-name") : NULL;

    if (!node || !g_hash_table_contains(before, node) || is_named(argv, node))
      continue;
    dr_argv_remove(argv, opt);
    return TRUE;
  }
  return FALSE;
}

gboolean
dr_revert_argv_swap(DrArgv *argv, const char *cwd, const char *from, const char *to, GError **error)
{
  g_autoptr(GHashTable) before = named_nodes(argv);
  gboolean swapped = FALSE;

  for (DrOpt *opt = NULL; !swapped && (opt = dr_argv_next(argv, NULL, opt));)
    if (g_str_equal(opt->info->name, "drive") || g_str_equal(opt->info->name, "blockdev"))
      swapped = swap_in(argv, opt, cwd, from, to);
  if (!swapped)
    return dr_error_set(error, DR_ERROR_UNSUPPORTED,
                        "the VM's command line does not say where '%s' is opened", from);
  while (drop_one(argv, before)) { /* down to those that are the user's own */
  }
  return TRUE;
}
