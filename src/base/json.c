/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guard before json-glib's parser, and short ways to read and write values. */
#include "base/json.h"
#include "base/error.h"

#include <string.h>

/* A C string would end there, so that something else than what was sent would be taken: 'vm1\0x' for vm1. */
static gboolean
has_nul(const char *text, gsize len, gsize at)
{
  return !text[at] || (text[at] == '\\' && at + 5 < len && memcmp(text + at + 1, "u0000", 5) == 0);
}

/* Counts brackets outside of strings, and looks for what json-glib would pass over: NULs, a second document. json-glib also takes comments and single quotes, which are not JSON and in
 * which a double quote would make this count wrong: whatever could begin one is refused. */
static gboolean
within_depth(const char *text, gsize len, GError **error)
{
  gboolean in_string = FALSE;
  gsize end = 0; /* of the array or object that is the document */
  int depth = 0, values = 0;

  for (gsize i = 0; i < len; i++) {
    char c = text[i];

    if (has_nul(text, len, i))
      return dr_error_set(error, DR_ERROR_INVALID, "not valid JSON: a NUL at byte %zu", i);
    if (end && !g_ascii_isspace(c))
      return dr_error_set(error, DR_ERROR_INVALID, "not valid JSON: more behind its end, from byte %zu", i);
    if (in_string) {
      if (c == '\\')
        i++;
      else if (c == '"')
        in_string = FALSE;
    } else if (c == '"') {
      in_string = TRUE;
    } else if (c == ',' && ++values > DR_JSON_MAX_VALUES) {
      return dr_error_set(error, DR_ERROR_INVALID, "JSON has more than %d values", DR_JSON_MAX_VALUES);
    } else if (c == '[' || c == '{') {
      if (++depth > DR_JSON_MAX_DEPTH)
        return dr_error_set(error, DR_ERROR_INVALID, "JSON is nested deeper than %d levels",
                            DR_JSON_MAX_DEPTH);
    } else if (c == '/' || c == '#' || c == '\'') {
      return dr_error_set(error, DR_ERROR_INVALID, "not valid JSON: unexpected '%c' at byte %zu", c, i);
    } else if (c == ']' || c == '}') {
      if (--depth == 0)
        end = i;
    }
  }
  return TRUE;
}

JsonNode *
dr_json_parse(const char *text, gssize length, gsize max, GError **error)
{
  g_autoptr(JsonParser) parser = json_parser_new();
  g_autoptr(GError) parse_error = NULL;
  gsize len = length < 0 ? strlen(text) : (gsize)length;

  if (len > max) {
    dr_error_set(error, DR_ERROR_INVALID, "JSON of %zu bytes is larger than the limit of %zu", len, max);
    return NULL;
  }
  if (!within_depth(text, len, error))
    return NULL;
  if (!json_parser_load_from_data(parser, text, len, &parse_error)) {
    dr_error_set(error, DR_ERROR_INVALID, "not valid JSON: %s", parse_error->message);
    return NULL;
  }
  if (!json_parser_get_root(parser)) {
    dr_error_set(error, DR_ERROR_INVALID, "not valid JSON: it is empty");
    return NULL;
  }
  return json_parser_steal_root(parser);
}

JsonObject *
dr_json_parse_object(const char *text, gssize len, gsize max, GError **error)
{
  g_autoptr(JsonNode) root = dr_json_parse(text, len, max, error);

  if (!root)
    return NULL;
  if (!JSON_NODE_HOLDS_OBJECT(root)) {
    dr_error_set(error, DR_ERROR_INVALID, "the JSON is not an object");
    return NULL;
  }
  return json_node_dup_object(root);
}

JsonObject *
dr_json(const char *format, ...)
{
  g_autoptr(GVariant) variant = NULL;
  g_autoptr(JsonNode) node = NULL;
  va_list ap;

  va_start(ap, format);
  variant = g_variant_ref_sink(g_variant_new_parsed_va(format, &ap));
  va_end(ap);
  node = json_gvariant_serialize(variant);
  return json_node_dup_object(node);
}

/* json-glib prints other bytes as they are, and would refuse to read them again. */
static char *
as_utf8(char *text)
{
  g_autofree char *owned = text;

  return g_utf8_validate(text, -1, NULL) ? g_steal_pointer(&owned) : g_utf8_make_valid(text, -1);
}

/* json-glib prints 2.9 as 2.8999999999999999. The shorter form reads as the same number for every purpose here. */
static void
append_number(GString *out, const char *number, gsize len)
{
  char short_form[G_ASCII_DTOSTR_BUF_SIZE];
  g_autofree char *text = g_strndup(number, len);

  if (len > 16 && strchr(text, '.'))
    g_string_append(out, g_ascii_formatd(short_form, sizeof short_form, "%.15g", g_ascii_strtod(text, NULL)));
  else
    g_string_append_len(out, number, len);
}

static char *
shorten_numbers(char *text)
{
  g_autofree char *owned = text;
  GString *out = g_string_sized_new(strlen(text));
  gboolean in_string = FALSE;

  while (*text) {
    gsize len = in_string ? 0 : strspn(text, "0123456789.+-eE");

    if (len > 0) {
      append_number(out, text, len);
      text += len;
      continue;
    }
    if (*text == '"')
      in_string = !in_string;
    else if (in_string && *text == '\\' && text[1])
      g_string_append_c(out, *text++);
    g_string_append_c(out, *text++);
  }
  return g_string_free(out, FALSE);
}

char *
dr_json_print(JsonNode *node, gboolean pretty)
{
  return shorten_numbers(as_utf8(json_to_string(node, pretty)));
}

char *
dr_json_print_object(JsonObject *object, gboolean pretty)
{
  g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), object);

  return shorten_numbers(as_utf8(json_to_string(node, pretty)));
}

JsonNode *
dr_json_dup(JsonNode *node)
{
  g_autofree char *text = json_to_string(node, FALSE);

  return json_from_string(text, NULL);
}

JsonNode *
dr_json_node(JsonObject *object)
{
  JsonNode *node = json_node_new(JSON_NODE_OBJECT);

  json_node_take_object(node, object);
  return node;
}

static JsonNode *
lookup(JsonObject *object, const char *path)
{
  const char *dot;

  while (object && (dot = strchr(path, '.'))) {
    g_autofree char *head = g_strndup(path, dot - path);
    JsonNode *node = json_object_get_member(object, head);

    object = node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    path = dot + 1;
  }
  return object ? json_object_get_member(object, path) : NULL;
}

static JsonNode *
lookup_value(JsonObject *object, const char *path, GType type)
{
  JsonNode *node = lookup(object, path);

  return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == type ? node : NULL;
}

const char *
dr_json_str(JsonObject *object, const char *path, const char *otherwise)
{
  JsonNode *node = lookup_value(object, path, G_TYPE_STRING);

  return node ? json_node_get_string(node) : otherwise;
}

gint64
dr_json_int(JsonObject *object, const char *path, gint64 otherwise)
{
  JsonNode *node = lookup_value(object, path, G_TYPE_INT64);

  return node ? json_node_get_int(node) : otherwise;
}

double
dr_json_double(JsonObject *object, const char *path, double otherwise)
{
  JsonNode *node = lookup_value(object, path, G_TYPE_DOUBLE);

  if (!node)
    node = lookup_value(object, path, G_TYPE_INT64);
  return node ? json_node_get_double(node) : otherwise; /* which converts */
}

gboolean
dr_json_bool(JsonObject *object, const char *path, gboolean otherwise)
{
  JsonNode *node = lookup_value(object, path, G_TYPE_BOOLEAN);

  return node ? json_node_get_boolean(node) : otherwise;
}

JsonObject *
dr_json_obj(JsonObject *object, const char *path)
{
  JsonNode *node = lookup(object, path);

  return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

JsonArray *
dr_json_arr(JsonObject *object, const char *path)
{
  JsonNode *node = lookup(object, path);

  return node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
}

void
dr_json_add_text(JsonObject *object, const char *name, const char *text)
{
  if (text)
    json_object_set_string_member(object, name, text);
}

void
dr_json_add_number(JsonObject *object, const char *name, gint64 number)
{
  if (number)
    json_object_set_int_member(object, name, number);
}

void
dr_json_add_flag(JsonObject *object, const char *name, gboolean flag)
{
  if (flag)
    json_object_set_boolean_member(object, name, TRUE);
}

char **
dr_json_strv(JsonArray *array)
{
  g_autoptr(GStrvBuilder) strv = g_strv_builder_new();

  if (!array)
    return NULL;
  for (guint i = 0; i < json_array_get_length(array); i++) {
    JsonNode *node = json_array_get_element(array, i);

    if (!JSON_NODE_HOLDS_VALUE(node) || json_node_get_value_type(node) != G_TYPE_STRING)
      return NULL;
    g_strv_builder_add(strv, json_node_get_string(node));
  }
  return g_strv_builder_end(strv);
}

JsonArray *
dr_json_array_from_strv(const char *const *strv)
{
  JsonArray *array = json_array_new();

  for (; strv && *strv; strv++)
    json_array_add_string_element(array, *strv);
  return array;
}

JsonObject *
dr_json_dup_object(JsonObject *object)
{
  g_autoptr(JsonNode) node = dr_json_node(json_object_ref(object));
  g_autoptr(JsonNode) copy = dr_json_dup(node);

  return json_node_dup_object(copy);
}
