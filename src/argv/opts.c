/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sub-options: what all forms share, finding and changing entries. */
#include "argv/opts-private.h"
#include "base/error.h"

#include <string.h>

static void
entry_free(DrOptsEntry *entry)
{
  g_free(entry->key);
  g_free(entry->value);
  g_free(entry);
}

DrOptsEntry *
dr_opts_add_entry(DrOpts *opts, DrStyle style, const char *key, const char *value)
{
  DrOptsEntry *entry = g_new0(DrOptsEntry, 1);

  entry->style = style;
  entry->key = g_strdup(key);
  entry->value = g_strdup(value);
  g_ptr_array_add(opts->entries, entry);
  return entry;
}

static DrOpts *
opts_alloc(const DrOptInfo *info, DrOptsForm form)
{
  DrOpts *opts = g_new0(DrOpts, 1);

  opts->info = info;
  opts->form = form;
  opts->entries = g_ptr_array_new_with_free_func((GDestroyNotify)entry_free);
  return opts;
}

static gboolean
has_sub_options(const DrOptInfo *info)
{
  return info->kind == DR_VALUE_KEYVAL || info->kind == DR_VALUE_KEYVAL_JSON || info->kind == DR_VALUE_CPU ||
         info->kind == DR_VALUE_GLOBAL;
}

DrOpts *
dr_opts_parse(const char *name, const char *value, GError **error)
{
  const DrOptInfo *info = dr_option_lookup(name);
  g_autoptr(DrOpts) opts = NULL;

  if (!info) {
    dr_error_set(error, DR_ERROR_INVALID, "unknown option '%s'", name);
    return NULL;
  }
  if (!has_sub_options(info)) {
    dr_error_set(error, DR_ERROR_INVALID, "option '-%s' has no sub-options", info->name);
    return NULL;
  }
  opts = opts_alloc(info, DR_OPTS_KEYVAL);
  /* QEMU looks at the first byte only: a space before the brace makes it a list. */
  if (info->kind != DR_VALUE_KEYVAL_JSON || *value != '{')
    dr_opts_keyval_parse(opts, value);
  else if (!dr_opts_json_parse(opts, value, error)) {
    g_prefix_error(error, "cannot read the value of '-%s': ", info->name);
    return NULL;
  }
  return g_steal_pointer(&opts);
}

DrOpts *
dr_opts_new(const char *name, DrOptsForm form)
{
  const DrOptInfo *info = dr_option_lookup(name);
  DrOpts *opts;

  g_return_val_if_fail(info && has_sub_options(info), NULL);
  g_return_val_if_fail(form != DR_OPTS_JSON || info->kind == DR_VALUE_KEYVAL_JSON, NULL);
  opts = opts_alloc(info, form);
  if (form == DR_OPTS_JSON)
    opts->tree = dr_json_tree_new(DR_JSON_TREE_OBJECT, NULL, NULL);
  else if (info->kind == DR_VALUE_CPU)
    dr_opts_keyval_parse(opts, "");
  return opts;
}

DrOpts *
dr_opts_copy(const DrOpts *opts)
{
  DrOpts *copy;

  if (!opts)
    return NULL;
  copy = opts_alloc(opts->info, opts->form);
  for (guint i = 0; i < opts->entries->len; i++) {
    const DrOptsEntry *entry = dr_opts_entry(opts, i);

    dr_opts_add_entry(copy, entry->style, entry->key, entry->value);
  }
  copy->trailing = opts->trailing;
  copy->tree = opts->tree ? dr_json_tree_copy(opts->tree) : NULL;
  copy->original = g_strdup(opts->original);
  return copy;
}

void
dr_opts_free(DrOpts *opts)
{
  if (!opts)
    return;
  g_ptr_array_unref(opts->entries);
  dr_json_tree_free(opts->tree);
  g_free(opts->original);
  g_free(opts);
}

DrOptsForm
dr_opts_form(const DrOpts *opts)
{
  return opts->form;
}

char *
dr_opts_print(const DrOpts *opts)
{
  GString *out = g_string_new(NULL);

  if (opts->form == DR_OPTS_JSON)
    dr_opts_json_print(opts, out);
  else
    dr_opts_keyval_print(opts, out);
  return g_string_free(out, FALSE);
}

guint
dr_opts_n(const DrOpts *opts)
{
  return opts->entries->len;
}

const char *
dr_opts_key(const DrOpts *opts, guint i)
{
  return dr_opts_entry(opts, i)->key;
}

const char *
dr_opts_value(const DrOpts *opts, guint i)
{
  return dr_opts_entry(opts, i)->value;
}

/* CPU features go by several spellings: sse4_1, sse4-1 and sse4.1 are one. */
static gboolean
same_feature(const char *a, const char *b)
{
  for (; *a && *b; a++, b++) {
    if (*a != *b && !(strchr("-_.", *a) && strchr("-_.", *b)))
      return FALSE;
  }
  return *a == *b;
}

static gboolean
same_key(const DrOpts *opts, const char *a, const char *b)
{
  return opts->form == DR_OPTS_CPU ? same_feature(a, b) : g_str_equal(a, b);
}

static gboolean
is_below(const char *key, const char *prefix)
{
  gsize length = strlen(prefix);

  return strncmp(key, prefix, length) == 0 && key[length] == '.';
}

/* -cpu applies feature=value first, then all +feature, then all -feature (x86_cpu_expand_features). */
static int
precedence(const DrOptsEntry *entry)
{
  return entry->style == DR_STYLE_MINUS ? 2 : entry->style == DR_STYLE_PLUS ? 1 : 0;
}

static DrOptsEntry *
find(const DrOpts *opts, const char *key)
{
  DrOptsEntry *found = NULL;

  for (guint i = 0; i < opts->entries->len; i++) {
    DrOptsEntry *entry = dr_opts_entry(opts, i);

    if (same_key(opts, entry->key, key) && (!found || precedence(entry) >= precedence(found)))
      found = entry;
  }
  return found;
}

const char *
dr_opts_get(const DrOpts *opts, const char *key)
{
  const DrOptsEntry *entry = find(opts, key);

  return entry ? entry->value : NULL;
}

char **
dr_opts_get_all(const DrOpts *opts, const char *key)
{
  g_autoptr(GStrvBuilder) all = g_strv_builder_new();

  if (opts->form == DR_OPTS_JSON) {
    dr_opts_json_get_all(opts, key, all);
    return g_strv_builder_end(all);
  }
  for (guint i = 0; i < opts->entries->len; i++) {
    if (same_key(opts, dr_opts_key(opts, i), key))
      g_strv_builder_add(all, dr_opts_value(opts, i));
  }
  return g_strv_builder_end(all);
}

gboolean
dr_opts_has(const DrOpts *opts, const char *key)
{
  for (guint i = 0; i < opts->entries->len; i++) {
    const char *name = dr_opts_key(opts, i);

    if (same_key(opts, name, key) || is_below(name, key))
      return TRUE;
  }
  return FALSE;
}

/* Whether `value` may stand for the implied key without saying so. */
static gboolean
fits_implied(const DrOpts *opts, const char *value)
{
  return *value && *value != ',' && *value != '{' && !strchr(value, '=');
}

static DrStyle
style_for(const DrOpts *opts, const DrOptsEntry *old, const char *value)
{
  gboolean on = g_str_equal(value, "on"), off = g_str_equal(value, "off");

  if (old->style == DR_STYLE_IMPLIED && (opts->form == DR_OPTS_CPU || fits_implied(opts, value)))
    return DR_STYLE_IMPLIED;
  if (old->style == DR_STYLE_PLUS || old->style == DR_STYLE_MINUS)
    return on ? DR_STYLE_PLUS : off ? DR_STYLE_MINUS : DR_STYLE_PAIR;
  if (old->style == DR_STYLE_FLAG && on)
    return DR_STYLE_FLAG;
  if (old->style == DR_STYLE_NOFLAG && off)
    return DR_STYLE_NOFLAG;
  return DR_STYLE_PAIR;
}

static void
replace_value(const DrOpts *opts, DrOptsEntry *entry, const char *value)
{
  char *copy = g_strdup(value);

  entry->style = style_for(opts, entry, value);
  g_free(entry->value);
  entry->value = copy;
}

/* Drops the entries of `key` and below it, except `keep`. Returns: whether there was one. */
static gboolean
drop(DrOpts *opts, const char *key, const DrOptsEntry *keep)
{
  gboolean any = FALSE;

  for (guint i = opts->entries->len; i-- > 0;) {
    const DrOptsEntry *entry = dr_opts_entry(opts, i);

    if (entry == keep || !(same_key(opts, entry->key, key) || is_below(entry->key, key)))
      continue;
    g_ptr_array_remove_index(opts->entries, i);
    any = TRUE;
  }
  return any;
}

/* Two commas where a key should be: QEMU refuses them or, in -cpu, passes over them. Behind a changed value
 * they would be read as a comma of that value. */
static void
drop_empty_flags(DrOpts *opts)
{
  for (guint i = opts->entries->len; i-- > 0;) {
    const DrOptsEntry *entry = dr_opts_entry(opts, i);

    if (entry->style == DR_STYLE_FLAG && !*entry->key)
      g_ptr_array_remove_index(opts->entries, i);
  }
}

static void
add_last(DrOpts *opts, const char *key, const char *value)
{
  gboolean implied = opts->entries->len == 0 && g_strcmp0(key, opts->info->implied) == 0 &&
                     (opts->form == DR_OPTS_CPU || fits_implied(opts, value));

  dr_opts_add_entry(opts, implied ? DR_STYLE_IMPLIED : DR_STYLE_PAIR, key, value);
}

static DrOptsEntry *
first_of(const DrOpts *opts, const char *key)
{
  for (guint i = 0; i < opts->entries->len; i++) {
    if (same_key(opts, dr_opts_key(opts, i), key))
      return dr_opts_entry(opts, i);
  }
  return NULL;
}

static void
set_text(DrOpts *opts, const char *key, const char *value)
{
  DrOptsEntry *entry = first_of(opts, key);
  g_autofree char *kept_key = g_strdup(key), *kept_value = g_strdup(value);

  /* A key with '=' or ',' cannot be written; nor can a comma in -cpu, which has no way to double it. */
  g_return_if_fail(*key && !strpbrk(key, "=,"));
  g_return_if_fail(opts->form != DR_OPTS_CPU || !strchr(value, ','));
  drop(opts, kept_key, entry);
  drop_empty_flags(opts);
  if (entry)
    replace_value(opts, entry, kept_value);
  else
    add_last(opts, kept_key, kept_value);
}

void
dr_opts_set(DrOpts *opts, const char *key, const char *value)
{
  g_return_if_fail(key && value);
  if (opts->form == DR_OPTS_JSON)
    dr_opts_json_set(opts, DR_JSON_TREE_STRING, key, value);
  else
    set_text(opts, key, value);
}

void
dr_opts_set_bool(DrOpts *opts, const char *key, gboolean value)
{
  if (opts->form == DR_OPTS_JSON)
    dr_opts_json_set(opts, DR_JSON_TREE_BOOL, key, value ? "on" : "off");
  else
    set_text(opts, key, value ? "on" : "off");
}

void
dr_opts_set_uint(DrOpts *opts, const char *key, guint64 value)
{
  g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT, value);

  if (opts->form == DR_OPTS_JSON)
    dr_opts_json_set(opts, DR_JSON_TREE_NUMBER, key, text);
  else
    set_text(opts, key, text);
}

void
dr_opts_append(DrOpts *opts, const char *key, const char *value)
{
  g_return_if_fail(key && value && !strpbrk(key, "=,"));
  if (opts->form == DR_OPTS_JSON)
    dr_opts_json_append(opts, key, value);
  else {
    drop_empty_flags(opts);
    add_last(opts, key, value);
  }
}

gboolean
dr_opts_unset(DrOpts *opts, const char *key)
{
  g_autofree char *kept = g_strdup(key); /* `key` may be one of the entries' own */

  g_return_val_if_fail(opts->form != DR_OPTS_CPU || !g_str_equal(key, opts->info->implied), FALSE);
  if (opts->form == DR_OPTS_JSON)
    return dr_opts_json_unset(opts, kept);
  drop_empty_flags(opts);
  return drop(opts, kept, NULL);
}
