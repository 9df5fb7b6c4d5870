/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From an image to its overlay, on a command line. */
#include "job/arrival-overlay.h"
#include "base/error.h"

static gboolean
is_named(const char *value, const char *path, const char *cwd)
{
  g_autofree char *whole = value && *value ? g_canonicalize_filename(value, cwd) : NULL;

  return whole && g_str_equal(whole, path);
}

/* A -blockdev of a format has its file below it, in the same option or by its name. */
static gboolean
stands_on_node(const DrOpts *opts, const char *node)
{
  const char *file = dr_opts_get(opts, "file"), *driver = dr_opts_get(opts, "driver");

  return file && driver && g_str_equal(file, node) && g_str_equal(driver, "raw");
}

static gboolean
set_format_above(DrArgv *argv, const char *node)
{
  for (DrOpt *opt = NULL; node && (opt = dr_argv_next(argv, "blockdev", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);

    if (!opts || !stands_on_node(opts, node))
      continue;
    dr_opts_set(opts, "driver", "qcow2");
    dr_opt_set_opts(opt, opts);
    return TRUE;
  }
  return FALSE;
}

/* -blockdev driver=raw,file.filename=…; or driver=file,filename=…, with the format in another one. */
static gboolean
change_blockdev(DrArgv *argv, DrOpt *opt, const char *path, const char *overlay, const char *cwd)
{
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
  gboolean inner = opts && is_named(dr_opts_get(opts, "file.filename"), path, cwd),
           outer = opts && !inner && is_named(dr_opts_get(opts, "filename"), path, cwd);

  if (!inner && !outer)
    return FALSE;
  dr_opts_set(opts, inner ? "file.filename" : "filename", overlay);
  if (inner)
    dr_opts_set(opts, "driver", "qcow2");
  dr_opt_set_opts(opt, opts);
  return inner || set_format_above(argv, dr_opts_get(opts, "node-name"));
}

static gboolean
change_drive(DrOpt *opt, const char *path, const char *overlay, const char *cwd)
{
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
  const char *key = opts && is_named(dr_opts_get(opts, "file"), path, cwd) ? "file" : "file.filename";

  if (!opts || !is_named(dr_opts_get(opts, key), path, cwd))
    return FALSE;
  dr_opts_set(opts, key, overlay);
  dr_opts_unset(opts, "driver");
  dr_opts_set(opts, "format", "qcow2");
  dr_opt_set_opts(opt, opts);
  return TRUE;
}

/* -hda and the like: QEMU finds the format out. */
static gboolean
change_plain(DrOpt *opt, const char *path, const char *overlay, const char *cwd)
{
  if (!is_named(opt->value, path, cwd))
    return FALSE;
  dr_opt_set_value(opt, overlay);
  return TRUE;
}

static gboolean
change(DrArgv *argv, const char *path, const char *overlay, const char *cwd)
{
  gboolean changed = FALSE;

  for (guint i = 0; i < dr_argv_n(argv); i++) {
    DrOpt *opt = dr_argv_opt(argv, i);

    if (g_str_equal(opt->info->name, "blockdev"))
      changed |= change_blockdev(argv, opt, path, overlay, cwd);
    else if (g_str_equal(opt->info->name, "drive"))
      changed |= change_drive(opt, path, overlay, cwd);
    else
      changed |= change_plain(opt, path, overlay, cwd);
  }
  return changed;
}

gboolean
dr_arrival_overlay_argv(DrArgv *argv, JsonArray *later, const char *cwd, GError **error)
{
  for (guint i = 0; i < json_array_get_length(later); i++) {
    JsonObject *one = json_array_get_object_element(later, i);
    const char *path = dr_json_str(one, "path", ""), *overlay = dr_json_str(one, "overlay", "");

    if (g_str_equal(path, overlay) || change(argv, path, overlay, cwd))
      continue;
    dr_error_set(error, DR_ERROR_UNSUPPORTED,
                 "the image '%s' is on the command line in a way that has no place for another format", path);
    return dr_error_remedy(error, "copy it before the guest: --copy-storage-all");
  }
  return TRUE;
}
