/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The JSON form of sub-options: leaves under dotted keys, changed in the tree. */
#include "argv/opts-private.h"
#include "base/error.h"

#include <string.h>

/* Fills opts->entries from the tree below `node`; `prefix` is the key of `node` itself, "" for the root. */
static void
add_leaves(DrOpts *opts, const DrJsonTree *node, const char *prefix)
{
  for (guint i = 0; i < node->children->len; i++) {
    const DrJsonTree *child = node->children->pdata[i];
    g_autofree char *number = child->key ? NULL : g_strdup_printf("%u", i);
    const char *step = child->key ? child->key : number;
    g_autofree char *key = *prefix ? g_strdup_printf("%s.%s", prefix, step) : g_strdup(step);

    if (!child->children)
      dr_opts_add_entry(opts, DR_STYLE_JSON, key, child->text);
    else if (child->children->len == 0)
      dr_opts_add_entry(opts, DR_STYLE_JSON, key, child->kind == DR_JSON_TREE_OBJECT ? "{}" : "[]");
    else
      add_leaves(opts, child, key);
  }
}

static void
changed(DrOpts *opts)
{
  g_clear_pointer(&opts->original, g_free);
  g_ptr_array_set_size(opts->entries, 0);
  add_leaves(opts, opts->tree, "");
}

gboolean
dr_opts_json_parse(DrOpts *opts, const char *text, GError **error)
{
  opts->form = DR_OPTS_JSON;
  opts->tree = dr_json_tree_parse(text, error);
  if (!opts->tree)
    return FALSE;
  changed(opts);
  opts->original = g_strdup(text);
  return TRUE;
}

void
dr_opts_json_print(const DrOpts *opts, GString *out)
{
  if (opts->original)
    g_string_append(out, opts->original);
  else
    dr_json_tree_print(opts->tree, out);
}

/* The kind that a new value takes over from the old one, if it reads as such. */
static DrJsonTreeKind
kind_like(const DrJsonTree *old, const char **value)
{
  if (old->kind == DR_JSON_TREE_NUMBER && dr_json_tree_is_number(*value))
    return DR_JSON_TREE_NUMBER;
  if (old->kind == DR_JSON_TREE_BOOL && (g_str_equal(*value, "on") || g_str_equal(*value, "true"))) {
    *value = "on";
    return DR_JSON_TREE_BOOL;
  }
  if (old->kind == DR_JSON_TREE_BOOL && (g_str_equal(*value, "off") || g_str_equal(*value, "false"))) {
    *value = "off";
    return DR_JSON_TREE_BOOL;
  }
  return DR_JSON_TREE_STRING;
}

static DrJsonTree *
child_named(const DrJsonTree *object, const char *key)
{
  for (guint i = 0; i < object->children->len; i++) {
    DrJsonTree *child = object->children->pdata[i];

    if (g_strcmp0(child->key, key) == 0)
      return child;
  }
  return NULL;
}

/* Walks the objects and arrays of a dotted path, making the objects that are missing; what stands in the way
 * (a scalar where an object must be) is replaced. *ret_last is the path's last step, (transfer full). */
static DrJsonTree *
make_parent(DrJsonTree *root, const char *path, char **ret_last)
{
  g_auto(GStrv) steps = g_strsplit(path, ".", -1);
  DrJsonTree *node = root;
  guint i;

  for (i = 0; steps[i + 1]; i++) {
    DrJsonTree *parent = NULL, *child = dr_json_tree_find(node, steps[i], &parent, NULL);

    if (child && !child->children) {
      g_ptr_array_remove(parent->children, child);
      child = NULL;
    }
    if (!child) {
      child =
          dr_json_tree_new(DR_JSON_TREE_OBJECT, node->kind == DR_JSON_TREE_OBJECT ? steps[i] : NULL, NULL);
      g_ptr_array_add(node->children, child);
    }
    node = child;
  }
  *ret_last = g_strdup(steps[i]);
  return node;
}

void
dr_opts_json_set(DrOpts *opts, DrJsonTreeKind kind, const char *key, const char *value)
{
  DrJsonTree *parent = NULL;
  guint index = 0;
  DrJsonTree *old = dr_json_tree_find(opts->tree, key, &parent, &index);

  if (old && kind == DR_JSON_TREE_STRING)
    kind = kind_like(old, &value);
  if (old && old->kind == kind && g_str_equal(old->text, value))
    return;
  if (old) {
    DrJsonTree *new = dr_json_tree_new(kind, old->key, value);

    parent->children->pdata[index] = new;
    dr_json_tree_free(old);
  } else {
    g_autofree char *last = NULL;

    parent = make_parent(opts->tree, key, &last);
    g_ptr_array_add(parent->children,
                    dr_json_tree_new(kind, parent->kind == DR_JSON_TREE_OBJECT ? last : NULL, value));
  }
  changed(opts);
}

/* -netdev user has its lists of strings (hostfwd, guestfwd, dnssearch) as [{"str": …}], QAPI's type
 * String. */
static gboolean
wants_str_objects(const DrOpts *opts, const DrJsonTree *array)
{
  if (array->children->len > 0)
    return ((DrJsonTree *)array->children->pdata[0])->kind == DR_JSON_TREE_OBJECT;
  return g_str_equal(opts->info->name, "netdev");
}

void
dr_opts_json_append(DrOpts *opts, const char *key, const char *value)
{
  DrJsonTree *array = dr_json_tree_find(opts->tree, key, NULL, NULL);
  DrJsonTree *element = dr_json_tree_new(DR_JSON_TREE_STRING, NULL, value);

  if (!array) {
    g_autofree char *last = NULL;
    DrJsonTree *parent = make_parent(opts->tree, key, &last);

    array = dr_json_tree_new(DR_JSON_TREE_ARRAY, parent->kind == DR_JSON_TREE_OBJECT ? last : NULL, NULL);
    g_ptr_array_add(parent->children, array);
  }
  if (array->kind != DR_JSON_TREE_ARRAY) {
    dr_json_tree_free(element);
    g_return_if_reached();
  }
  if (wants_str_objects(opts, array)) {
    DrJsonTree *object = dr_json_tree_new(DR_JSON_TREE_OBJECT, NULL, NULL);

    element->key = g_strdup("str");
    g_ptr_array_add(object->children, element);
    element = object;
  }
  g_ptr_array_add(array->children, element);
  changed(opts);
}

gboolean
dr_opts_json_unset(DrOpts *opts, const char *key)
{
  DrJsonTree *parent = NULL;
  guint index = 0;

  if (!dr_json_tree_find(opts->tree, key, &parent, &index))
    return FALSE;
  g_ptr_array_remove_index(parent->children, index);
  changed(opts);
  return TRUE;
}

void
dr_opts_json_get_all(const DrOpts *opts, const char *key, GStrvBuilder *into)
{
  const DrJsonTree *node = dr_json_tree_find(opts->tree, key, NULL, NULL);

  if (node && node->text)
    g_strv_builder_add(into, node->text);
  for (guint i = 0; node && node->kind == DR_JSON_TREE_ARRAY && i < node->children->len; i++) {
    const DrJsonTree *element = node->children->pdata[i];

    if (element->kind == DR_JSON_TREE_OBJECT)
      element = child_named(element, "str");
    if (element && element->text)
      g_strv_builder_add(into, element->text);
  }
}
