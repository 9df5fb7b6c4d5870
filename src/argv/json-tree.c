/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Parses and prints JSON in QEMU's dialect without losing how it was written. */
#include "argv/json-tree.h"
#include "base/error.h"

#include <string.h>

typedef struct {
  const char *start;
  const char *at;
  int depth;
} Cursor;

static DrJsonTree *parse_value(Cursor *in, GError **error);

static DrJsonTree *
fail(const Cursor *in, GError **error, const char *what)
{
  dr_error_set(error, DR_ERROR_INVALID, "not valid JSON: %s at byte %zu", what, (gsize)(in->at - in->start));
  return NULL;
}

static void
skip_space(Cursor *in)
{
  in->at += strspn(in->at, " \t\r\n");
}

static DrJsonTree *
new_node(DrJsonTreeKind kind)
{
  DrJsonTree *tree = g_new0(DrJsonTree, 1);

  tree->kind = kind;
  if (kind == DR_JSON_TREE_OBJECT || kind == DR_JSON_TREE_ARRAY)
    tree->children = g_ptr_array_new_with_free_func((GDestroyNotify)dr_json_tree_free);
  return tree;
}

void
dr_json_tree_free(DrJsonTree *tree)
{
  if (!tree)
    return;
  g_free(tree->key);
  g_free(tree->raw);
  g_free(tree->text);
  g_clear_pointer(&tree->children, g_ptr_array_unref);
  g_free(tree);
}

DrJsonTree *
dr_json_tree_copy(const DrJsonTree *tree)
{
  DrJsonTree *copy = new_node(tree->kind);

  copy->key = g_strdup(tree->key);
  copy->raw = g_strdup(tree->raw);
  copy->text = g_strdup(tree->text);
  for (guint i = 0; tree->children && i < tree->children->len; i++)
    g_ptr_array_add(copy->children, dr_json_tree_copy(tree->children->pdata[i]));
  return copy;
}

static gboolean
read_hex4(const char *at, gunichar *ret_unit)
{
  *ret_unit = 0;
  for (int i = 0; i < 4; i++) {
    if (!g_ascii_isxdigit(at[i]))
      return FALSE;
    *ret_unit = *ret_unit * 16 + g_ascii_xdigit_value(at[i]);
  }
  return TRUE;
}

/* in->at is behind "\u". A pair of surrogates is one character; a lone one, and U+0000, QEMU refuses. */
static gboolean
read_unicode(Cursor *in, GString *out)
{
  gunichar high, low;

  if (!read_hex4(in->at, &high) || high == 0 || (high >= 0xdc00 && high < 0xe000))
    return FALSE;
  in->at += 4;
  if (high >= 0xd800 && high < 0xdc00) {
    if (in->at[0] != '\\' || in->at[1] != 'u' || !read_hex4(in->at + 2, &low) || low < 0xdc00 ||
        low >= 0xe000)
      return FALSE;
    in->at += 6;
    high = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
  }
  g_string_append_unichar(out, high);
  return TRUE;
}

static gboolean
read_escape(Cursor *in, GString *out)
{
  static const char from[] = "\"\\/'bfnrt", to[] = "\"\\/'\b\f\n\r\t";
  char c = *in->at;
  const char *found = c ? strchr(from, c) : NULL;

  if (found) {
    in->at++;
    g_string_append_c(out, to[found - from]);
    return TRUE;
  }
  if (c != 'u')
    return FALSE;
  in->at++;
  return read_unicode(in, out);
}

/* Reads a string in either kind of quotes. Returns: (transfer full): its meaning, or NULL with an error. */
static char *
read_string(Cursor *in, GError **error)
{
  g_autoptr(GString) out = g_string_new(NULL);
  char quote = *in->at++;

  while (*in->at != quote) {
    if ((guchar)*in->at < 0x20) {
      fail(in, error, *in->at ? "control character in a string" : "unfinished string");
      return NULL;
    }
    if (*in->at != '\\') {
      g_string_append_c(out, *in->at++);
      continue;
    }
    in->at++;
    if (!read_escape(in, out)) {
      fail(in, error, "bad escape");
      return NULL;
    }
  }
  in->at++;
  return g_string_free(g_steal_pointer(&out), FALSE);
}

static gsize
number_length(const char *at)
{
  gsize n = *at == '-', digits = strspn(at + n, "0123456789");

  if (digits == 0)
    return 0;
  n += at[n] == '0' ? 1 : digits;
  if (at[n] == '.') {
    digits = strspn(at + n + 1, "0123456789");
    n += digits ? 1 + digits : 0;
  }
  if (at[n] == 'e' || at[n] == 'E') {
    gsize sign = at[n + 1] == '+' || at[n + 1] == '-';

    digits = strspn(at + n + 1 + sign, "0123456789");
    n += digits ? 1 + sign + digits : 0;
  }
  return n;
}

gboolean
dr_json_tree_is_number(const char *text)
{
  return *text && number_length(text) == strlen(text);
}

static DrJsonTree *
take_scalar(DrJsonTreeKind kind, const char *from, Cursor *in, char *text)
{
  DrJsonTree *tree = new_node(kind);

  tree->raw = g_strndup(from, in->at - from);
  tree->text = text ? text : g_strdup(tree->raw);
  return tree;
}

static DrJsonTree *
parse_scalar(Cursor *in, GError **error)
{
  static const struct {
    const char *word;
    DrJsonTreeKind kind;
    const char *text;
  } words[] = {
    { "true", DR_JSON_TREE_BOOL, "on" },
    { "false", DR_JSON_TREE_BOOL, "off" },
    { "null", DR_JSON_TREE_NULL, "" },
  };
  const char *from = in->at;
  gsize length = number_length(from);

  if (*from == '"' || *from == '\'') {
    char *text = read_string(in, error);

    return text ? take_scalar(DR_JSON_TREE_STRING, from, in, text) : NULL;
  }
  if (length > 0) {
    in->at += length;
    return take_scalar(DR_JSON_TREE_NUMBER, from, in, NULL);
  }
  for (gsize i = 0; i < G_N_ELEMENTS(words); i++) {
    if (g_str_has_prefix(from, words[i].word)) {
      in->at += strlen(words[i].word);
      return take_scalar(words[i].kind, from, in, g_strdup(words[i].text));
    }
  }
  return fail(in, error, *from ? "unexpected character" : "unexpected end");
}

static gboolean
has_member(const DrJsonTree *object, const char *key)
{
  for (guint i = 0; i < object->children->len; i++) {
    if (g_str_equal(((DrJsonTree *)object->children->pdata[i])->key, key))
      return TRUE;
  }
  return FALSE;
}

static DrJsonTree *
parse_member(Cursor *in, const DrJsonTree *object, GError **error)
{
  g_autofree char *key = NULL;
  DrJsonTree *value;

  if (*in->at != '"' && *in->at != '\'')
    return fail(in, error, "a key in quotes is missing");
  key = read_string(in, error);
  if (!key)
    return NULL;
  if (has_member(object, key))
    return fail(in, error, "duplicate key");
  skip_space(in);
  if (*in->at != ':')
    return fail(in, error, "':' is missing");
  in->at++;
  value = parse_value(in, error);
  if (value)
    value->key = g_steal_pointer(&key);
  return value;
}

/* Objects and arrays: in->at is on the opening bracket. */
static DrJsonTree *
parse_container(Cursor *in, GError **error)
{
  gboolean is_object = *in->at == '{';
  char end = is_object ? '}' : ']';
  g_autoptr(DrJsonTree) tree = new_node(is_object ? DR_JSON_TREE_OBJECT : DR_JSON_TREE_ARRAY);

  in->at++;
  skip_space(in);
  if (*in->at == end) {
    in->at++;
    return g_steal_pointer(&tree);
  }
  for (;;) {
    DrJsonTree *child;

    skip_space(in);
    child = is_object ? parse_member(in, tree, error) : parse_value(in, error);
    if (!child)
      return NULL;
    g_ptr_array_add(tree->children, child);
    skip_space(in);
    if (*in->at != end && *in->at != ',')
      return fail(in, error, is_object ? "',' or '}' is missing" : "',' or ']' is missing");
    if (*in->at++ == end)
      return g_steal_pointer(&tree);
  }
}

static DrJsonTree *
parse_value(Cursor *in, GError **error)
{
  DrJsonTree *tree;

  skip_space(in);
  if (*in->at != '{' && *in->at != '[')
    return parse_scalar(in, error);
  if (in->depth >= DR_JSON_TREE_MAX_DEPTH)
    return fail(in, error, "nested too deep");
  in->depth++;
  tree = parse_container(in, error);
  in->depth--;
  return tree;
}

DrJsonTree *
dr_json_tree_parse(const char *text, GError **error)
{
  Cursor in = { text, text, 0 };
  g_autoptr(DrJsonTree) tree = parse_value(&in, error);

  if (!tree)
    return NULL;
  skip_space(&in);
  if (*in.at)
    return fail(&in, error, "something follows the value");
  return g_steal_pointer(&tree);
}

static void
print_string(const char *text, GString *out)
{
  g_string_append_c(out, '"');
  for (; *text; text++) {
    if (*text == '"' || *text == '\\')
      g_string_append_printf(out, "\\%c", *text);
    else if ((guchar)*text < 0x20)
      g_string_append_printf(out, "\\u%04x", *text);
    else
      g_string_append_c(out, *text);
  }
  g_string_append_c(out, '"');
}

static char *
scalar_raw(DrJsonTreeKind kind, const char *text)
{
  g_autoptr(GString) out = NULL;

  switch (kind) {
  case DR_JSON_TREE_NUMBER:
    return g_strdup(text);
  case DR_JSON_TREE_BOOL:
    return g_strdup(g_str_equal(text, "on") ? "true" : "false");
  case DR_JSON_TREE_NULL:
    return g_strdup("null");
  case DR_JSON_TREE_STRING:
  case DR_JSON_TREE_OBJECT:
  case DR_JSON_TREE_ARRAY:
    break;
  }
  out = g_string_new(NULL);
  print_string(text, out);
  return g_string_free(g_steal_pointer(&out), FALSE);
}

DrJsonTree *
dr_json_tree_new(DrJsonTreeKind kind, const char *key, const char *text)
{
  DrJsonTree *tree = new_node(kind);

  tree->key = g_strdup(key);
  if (text) {
    tree->text = g_strdup(text);
    tree->raw = scalar_raw(kind, text);
  }
  return tree;
}

void
dr_json_tree_print(const DrJsonTree *tree, GString *out)
{
  gboolean is_object = tree->kind == DR_JSON_TREE_OBJECT;

  if (!tree->children) {
    g_string_append(out, tree->raw);
    return;
  }
  g_string_append_c(out, is_object ? '{' : '[');
  for (guint i = 0; i < tree->children->len; i++) {
    const DrJsonTree *child = tree->children->pdata[i];

    if (i > 0)
      g_string_append_c(out, ',');
    if (is_object) {
      print_string(child->key, out);
      g_string_append_c(out, ':');
    }
    dr_json_tree_print(child, out);
  }
  g_string_append_c(out, is_object ? '}' : ']');
}

/* What is left of `path` behind `step`: "" if nothing, NULL if the path does not begin with it. */
static const char *
behind_step(const char *path, const char *step)
{
  gsize length = strlen(step);

  if (strncmp(path, step, length) != 0)
    return NULL;
  if (path[length] == '\0')
    return path + length;
  return path[length] == '.' ? path + length + 1 : NULL;
}

DrJsonTree *
dr_json_tree_find(const DrJsonTree *tree, const char *path, DrJsonTree **ret_parent, guint *ret_index)
{
  for (guint i = 0; tree->children && i < tree->children->len; i++) {
    DrJsonTree *child = tree->children->pdata[i], *found;
    g_autofree char *number = child->key ? NULL : g_strdup_printf("%u", i);
    const char *rest = behind_step(path, child->key ? child->key : number);

    if (!rest)
      continue;
    if (*rest) {
      found = dr_json_tree_find(child, rest, ret_parent, ret_index);
      if (found)
        return found;
      continue;
    }
    if (ret_parent)
      *ret_parent = (DrJsonTree *)tree;
    if (ret_index)
      *ret_index = i;
    return child;
  }
  return NULL;
}
