/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Is a -drive still on the image that it names? */
#include "job/inventory-internal.h"

#include <string.h>

/* --- What the option says --- */

/* The image's name, wherever the option has it; `ret_driver` is file.driver= where that is given. */
static const char *
given_source(const DrOpts *opts, const char **ret_driver)
{
  static const char *const keys[] = { "file", "file.filename", "filename" };

  *ret_driver = dr_opts_get(opts, "file.driver");
  for (guint i = 0; i < G_N_ELEMENTS(keys); i++) {
    const char *value = dr_opts_get(opts, keys[i]);

    if (value && *value)
      return value;
  }
  return NULL;
}

gboolean
dr_drive_has_source(const DrOpts *opts)
{
  const char *driver;

  return given_source(opts, &driver) || driver || dr_drive_format(opts);
}

const char *
dr_drive_format(const DrOpts *opts)
{
  const char *format = dr_opts_get(opts, "format");

  return format ? format : dr_opts_get(opts, "driver");
}

/* --- Is it the same image? --- */

/* nbd:unix:PATH[:exportname=NAME], nbd:HOST:PORT[…], nbd://…, nbd+unix:///NAME?socket=PATH, all as the last two. */
static char *
canonical_url(const char *url)
{
  g_autofree char *rest = NULL;
  const char *name;
  char *at;

  if (!g_str_has_prefix(url, "nbd:") || g_str_has_prefix(url, "nbd://"))
    return g_strdup(url);
  rest = g_strdup(url + strlen("nbd:"));
  at = strstr(rest, ":exportname=");
  name = at ? at + strlen(":exportname=") : "";
  if (at)
    *at = '\0';
  if (g_str_has_prefix(rest, "unix:"))
    return g_strdup_printf("nbd+unix://%s%s?socket=%s", *name ? "/" : "", name, rest + strlen("unix:"));
  return g_strdup_printf("nbd://%s%s%s", rest, *name ? "/" : "", name);
}

static gboolean
same_url(const char *a, const char *b)
{
  g_autofree char *x = canonical_url(a);
  g_autofree char *y = canonical_url(b);

  return g_str_equal(x, y);
}

static const DrNode *
protocol_of(const DrNode *top)
{
  const DrNode *file = dr_node_child(top, "file");

  return file ? file : top;
}

/* json:{"driver":"qcow2","file":{"driver":"file","filename":"/x"}} as the name of an image. */
static gboolean
same_json(DrApply *a, const char *text, const DrNode *top)
{
  g_autoptr(JsonObject) object = dr_json_parse_object(text, -1, 65536, NULL);
  const DrNode *file = protocol_of(top);
  const char *name =
      object ? dr_json_str(object, "file.filename", dr_json_str(object, "filename", NULL)) : NULL;

  return name && g_str_equal(dr_json_str(object, "driver", ""), top->driver) && dr_node_is_plain_file(file) &&
         dr_same_file(name, dr_node_path(file), a->cwd);
}

/* offset= and size= of a raw drive, which make it a part of the file: in force exactly if QEMU's name of it has them. */
static gboolean
same_window(const DrOpts *opts, const DrNode *top)
{
  static const char *const keys[] = { "offset", "size" };
  g_autoptr(JsonObject) object = NULL;

  if (!g_str_equal(top->driver, "raw"))
    return TRUE;
  if (g_str_has_prefix(top->file, "json:"))
    object = dr_json_parse_object(top->file + strlen("json:"), -1, 1024 * 1024, NULL);
  for (guint i = 0; i < G_N_ELEMENTS(keys); i++) {
    JsonNode *runs = object ? json_object_get_member(object, keys[i]) : NULL;
    g_autofree char *text = runs ? dr_json_print(runs, FALSE) : NULL;
    guint64 given, value;

    if (!dr_opts_get_size(opts, keys[i], 0, &given, NULL))
      return FALSE;
    value = text ? g_ascii_strtoull(text + (*text == '"'), NULL, 0) : 0;
    if (given != value)
      return FALSE;
  }
  return TRUE;
}

/* -drive driver=raw,file.driver=nbd,file.server.type=unix,…: the URL that QEMU makes of it. */
static char *
nbd_url(const DrOpts *opts, const char *prefix)
{
  static const char *const names[] = { "export", "server.path", "server.host", "server.port",
                                       "path",   "host",        "port" };
  const char *values[G_N_ELEMENTS(names)];
  const char *path, *host, *port;

  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    g_autofree char *key = g_strconcat(prefix, names[i], NULL);

    values[i] = dr_opts_get(opts, key);
  }
  path = values[1] ? values[1] : values[4];
  host = values[2] ? values[2] : values[5];
  port = values[3] ? values[3] : values[6];
  if (path)
    return g_strdup_printf("nbd+unix://%s%s?socket=%s", values[0] ? "/" : "", values[0] ? values[0] : "",
                           path);
  return g_strdup_printf("nbd://%s:%s%s%s", host ? host : "", port ? port : "10809", values[0] ? "/" : "",
                         values[0] ? values[0] : "");
}

/* A drive that spells out its nodes: each driver, and the name at the bottom. */
static gboolean
same_nodes(DrApply *a, const DrOpts *opts, const char *prefix, const DrNode *node)
{
  g_autofree char *driver_key = g_strconcat(prefix, "driver", NULL);
  g_autofree char *file_key = g_strconcat(prefix, "filename", NULL);
  g_autofree char *below = g_strconcat(prefix, "file.", NULL);
  const char *driver = dr_opts_get(opts, driver_key);
  const char *filename = dr_opts_get(opts, file_key);
  const DrNode *child = dr_node_child(node, "file");

  if (driver && !g_str_equal(driver, node->driver))
    return FALSE;
  if (child)
    return same_nodes(a, opts, below, child);
  if (dr_node_is_plain_file(node))
    return filename && dr_same_file(filename, dr_node_path(node), a->cwd);
  if (g_str_equal(node->driver, "nbd")) {
    g_autofree char *url = nbd_url(opts, prefix);

    return same_url(url, node->file);
  }
  return filename && same_url(filename, node->file);
}

gboolean
dr_drive_is_on(DrApply *a, const DrOpts *opts, const DrNode *top)
{
  const char *driver, *source = given_source(opts, &driver), *format = dr_drive_format(opts);
  const DrNode *file = protocol_of(top);

  if ((format && !g_str_equal(format, top->driver)) || !same_window(opts, top))
    return FALSE;
  if (!source && !driver)
    return format && file == top; /* a driver without a file: null-co */
  if (driver && !dr_opts_get(opts, "file"))
    return same_nodes(a, opts, "", top);
  if (g_str_has_prefix(source, "json:"))
    return same_json(a, source + strlen("json:"), top);
  if (driver && !g_str_equal(driver, file->driver))
    return FALSE;
  if (dr_node_is_plain_file(file))
    return dr_same_file(source, dr_node_path(file), a->cwd);
  return same_url(source, file->file) || same_url(source, top->file);
}

gboolean
dr_drive_spells(DrApply *a, const DrOpts *opts, const char *prefix, const DrNode *node)
{
  g_autofree char *driver = g_strconcat(prefix, "driver", NULL);
  g_autofree char *key = g_strconcat(prefix, "backing", NULL);
  g_autofree char *below = g_strconcat(key, ".", NULL);
  const DrNode *backing = dr_node_child(node, "backing");

  if (!dr_opts_get(opts, driver) || !dr_node_is_unnamed(node) || !same_nodes(a, opts, prefix, node))
    return FALSE;
  if (!dr_opts_has(opts, key))
    return dr_chain_is_implicit(node, a->cwd);
  return backing && dr_drive_spells(a, opts, below, backing);
}
