/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tables, units and colours. */
#include "cli/render.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CONTROL                                                                                              \
  "\001\002\003\004\005\006\007\010\011\012\013\014\015\016\017\020\021\022\023\024\025\026\027\030\031\032" \
  "\033"                                                                                                     \
  "\034\035\036\037\177"

struct DrTable {
  guint columns;
  GPtrArray *cells; /* of char*, row by row, titles first */
  GArray *is_state; /* of gboolean, one a cell */
};

char *
dr_render_harmless(const char *text)
{
  g_autofree char *valid = g_utf8_make_valid(text, -1);
  g_autoptr(GString) out = g_string_new(NULL);

  for (const char *at = valid; *at; at = g_utf8_next_char(at)) {
    gunichar c = g_utf8_get_char(at);

    g_string_append_unichar(out, g_unichar_isprint(c) || c == '\n' ? c : '?');
  }
  return g_strdup(out->str);
}

static gboolean
is_set(const char *variable)
{
  const char *value = g_getenv(variable);

  return value && *value;
}

gboolean
dr_render_color(int fd, gboolean no_color)
{
  if (no_color || is_set("NO_COLOR"))
    return FALSE;
  if (is_set("CLICOLOR_FORCE") && !g_str_equal(g_getenv("CLICOLOR_FORCE"), "0"))
    return TRUE;
  return isatty(fd) && g_strcmp0(g_getenv("CLICOLOR"), "0") != 0 && g_strcmp0(g_getenv("TERM"), "dumb") != 0;
}

static const char *
color_of(const char *state)
{
  static const struct {
    const char *state, *code;
  } colors[] = {
    { "running", "32" },     { "succeeded", "32" }, { "ok", "32" },      { "paused", "33" },
    { "starting", "36" },    { "queued", "36" },    { "warning", "33" }, { "cancelled", "33" },
    { "attention", "31;1" }, { "failed", "31" },    { "blocker", "31" }, { "stopped", "2" },
    { "note", "2" },
  };

  for (guint i = 0; i < G_N_ELEMENTS(colors); i++)
    if (g_str_equal(colors[i].state, state))
      return colors[i].code;
  return NULL;
}

char *
dr_render_state(const char *state, gboolean color)
{
  const char *code = color ? color_of(state) : NULL;

  return code ? g_strdup_printf("\033[%sm%s\033[0m", code, state) : g_strdup(state);
}

char *
dr_render_bytes(double bytes)
{
  static const char *const units[] = { "kB", "MB", "GB", "TB" };
  guint unit = 1;

  if (bytes < 1000)
    return g_strdup_printf("%.0f B", bytes);
  if (bytes < 100000)
    return g_strdup_printf("%.1f kB", bytes / 1000);
  for (bytes /= 1e6; bytes >= 1000 && unit + 1 < G_N_ELEMENTS(units); unit++)
    bytes /= 1000;
  return g_strdup_printf("%.1f %s", bytes, units[unit]);
}

char *
dr_render_ms(double ms)
{
  if (ms < 10)
    return g_strdup_printf("%.1f ms", ms);
  if (ms < 10000)
    return g_strdup_printf("%.0f ms", ms);
  if (ms < 120000)
    return g_strdup_printf("%.1f s", ms / 1000);
  if (ms < 7200000)
    return g_strdup_printf("%d min %d s", (int)(ms / 60000), (int)(ms / 1000) % 60);
  return g_strdup_printf("%.1f h", ms / 3600000);
}

double
dr_render_number(JsonObject *object, const char *name, double otherwise)
{
  JsonNode *node = object ? json_object_get_member(object, name) : NULL;

  if (!node || !JSON_NODE_HOLDS_VALUE(node))
    return otherwise;
  if (json_node_get_value_type(node) == G_TYPE_INT64)
    return (double)json_node_get_int(node);
  return json_node_get_value_type(node) == G_TYPE_DOUBLE ? json_node_get_double(node) : otherwise;
}

char *
dr_render_member(JsonObject *object, const char *name)
{
  JsonNode *node = json_object_get_member(object, name);
  GType type = node && JSON_NODE_HOLDS_VALUE(node) ? json_node_get_value_type(node) : G_TYPE_NONE;

  if (!node || JSON_NODE_HOLDS_NULL(node))
    return g_strdup("-");
  if (type == G_TYPE_STRING)
    return g_strdup(json_node_get_string(node));
  if (type == G_TYPE_BOOLEAN)
    return g_strdup(json_node_get_boolean(node) ? "yes" : "no");
  return dr_json_print(node, FALSE);
}

DrTable *
dr_table_new(const char *const *titles)
{
  DrTable *table = g_new0(DrTable, 1);

  table->cells = g_ptr_array_new_with_free_func(g_free);
  table->is_state = g_array_new(FALSE, FALSE, sizeof(gboolean));
  for (; titles[table->columns]; table->columns++)
    dr_table_add(table, g_strdup(titles[table->columns]), FALSE);
  return table;
}

/* Names of files and descriptions are anybody's words: no line break, and nothing that a terminal obeys. */
static char *
one_line(char *text)
{
  GString *line;

  if (!text[strcspn(text, CONTROL)])
    return text;
  line = g_string_new(NULL);
  for (const char *p = text; *p; p++) {
    char plain[2] = { *p, '\0' };
    g_autofree char *escaped = strpbrk(plain, CONTROL) ? g_strescape(plain, NULL) : g_strdup(plain);

    g_string_append(line, escaped);
  }
  g_free(text);
  return g_string_free(line, FALSE);
}

void
dr_table_add(DrTable *table, char *text, gboolean is_state)
{
  g_ptr_array_add(table->cells, one_line(text));
  g_array_append_val(table->is_state, is_state);
}

static int
column_width(const DrTable *table, guint column)
{
  glong width = 0;

  for (guint i = column; i < table->cells->len; i += table->columns)
    width = MAX(width, g_utf8_strlen(table->cells->pdata[i], -1));
  return (int)width;
}

/* Padding is counted without the colour's bytes. */
static void
print_cell(const DrTable *table, guint i, int width, gboolean color)
{
  const char *text = table->cells->pdata[i];
  g_autofree char *colored = dr_render_state(text, color && g_array_index(table->is_state, gboolean, i));
  gboolean last = i % table->columns == table->columns - 1;
  int padding = last ? 0 : width - (int)g_utf8_strlen(text, -1) + 2;

  printf("%s%*s%s", colored, padding, "", last ? "\n" : "");
}

static void
free_table(DrTable *table)
{
  g_ptr_array_unref(table->cells);
  g_array_unref(table->is_state);
  g_free(table);
}

void
dr_table_print(DrTable *table, gboolean color)
{
  g_autofree int *widths = g_new(int, table->columns);

  for (guint i = 0; i < table->columns; i++)
    widths[i] = column_width(table, i);
  for (guint i = 0; i < table->cells->len; i++)
    print_cell(table, i, widths[i % table->columns], color);
  free_table(table);
}

void
dr_table_print_bare(DrTable *table)
{
  for (guint i = table->columns; i < table->cells->len; i++)
    printf("%s%c", (const char *)table->cells->pdata[i], (i + 1) % table->columns ? '\t' : '\n');
  free_table(table);
}
