/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tables, units and colours. */
#include "cli/render.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct DrTable {
  guint columns;
  GPtrArray *cells; /* of char*, row by row, titles first */
  GArray *is_state; /* of gboolean, one a cell */
};

gboolean
dr_render_color(int fd, gboolean no_color)
{
  const char *unwanted = g_getenv("NO_COLOR");
  const char *terminal = g_getenv("TERM");

  return !no_color && !(unwanted && *unwanted) && isatty(fd) && g_strcmp0(terminal, "dumb") != 0;
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

void
dr_table_add(DrTable *table, char *text, gboolean is_state)
{
  g_ptr_array_add(table->cells, text);
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

void
dr_table_print(DrTable *table, gboolean color)
{
  g_autofree int *widths = g_new(int, table->columns);

  for (guint i = 0; i < table->columns; i++)
    widths[i] = column_width(table, i);
  for (guint i = 0; i < table->cells->len; i++)
    print_cell(table, i, widths[i % table->columns], color);
  g_ptr_array_unref(table->cells);
  g_array_unref(table->is_state);
  g_free(table);
}
