/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Lists: which columns, and how. */
#include "cli/list.h"
#include "base/error.h"
#include "cli/render.h"

#include <stdio.h>
#include <unistd.h>

static const DrColumn *
id_column(const DrColumn *columns)
{
  for (const DrColumn *column = columns; column->name; column++)
    if (column->id)
      return column;
  return columns;
}

static const DrColumn *
find_column(const DrColumn *columns, const char *name)
{
  if (g_str_equal(name, "name"))
    return id_column(columns);
  for (; columns->name; columns++)
    if (g_str_equal(columns->name, name))
      return columns;
  return NULL;
}

static char *
known_names(const DrColumn *columns)
{
  GString *names = g_string_new(NULL);

  for (; columns->name; columns++)
    g_string_append_printf(names, "%s%s", names->len ? ", " : "", columns->name);
  return g_string_free(names, FALSE);
}

static gboolean
check_names(const DrCli *cli, const char *output, const DrColumn *columns, GError **error)
{
  g_auto(GStrv) names = g_strsplit(output, ",", -1);
  g_autofree char *known = known_names(columns);
  char **name = names;

  while (*name && **name && find_column(columns, *name))
    name++;
  if (*names && !*name)
    return TRUE;
  dr_error_set(error, DR_ERROR_INVALID, "%s: there is no column '%s'", cli->verb->name, *names ? *name : "");
  return dr_error_remedy(error, "-o takes name, wide, json, or some of these with commas between: %s", known);
}

static gboolean
is_columns(const char *output)
{
  static const char *const words[] = { "name", "wide", "json", NULL };

  return output && !g_strv_contains(words, output);
}

gboolean
dr_list_check(DrCli *cli, const DrListOptions *options, const DrColumn *columns, GError **error)
{
  const char *output = options->output;

  if (is_columns(output) && !check_names(cli, output, columns, error))
    return FALSE;
  if (cli->json && output && !g_str_equal(output, "json")) {
    dr_error_set(error, DR_ERROR_INVALID, "%s: --json and -o %s exclude each other", cli->verb->name, output);
    return dr_error_remedy(error, "say one of them");
  }
  cli->json |= g_strcmp0(output, "json") == 0;
  return TRUE;
}

/* --- Which columns --- */

/* (element-type DrColumn) (transfer container) */
static GPtrArray *
chosen(const char *output, const DrColumn *columns)
{
  GPtrArray *some = g_ptr_array_new();
  g_auto(GStrv) names = is_columns(output) ? g_strsplit(output, ",", -1) : NULL;

  if (g_strcmp0(output, "name") == 0)
    g_ptr_array_add(some, (gpointer)id_column(columns));
  else if (names)
    for (char **name = names; *name; name++)
      g_ptr_array_add(some, (gpointer)find_column(columns, *name));
  else
    for (; columns->name; columns++)
      if (!columns->wide || g_strcmp0(output, "wide") == 0)
        g_ptr_array_add(some, (gpointer)columns);
  return some;
}

static char *
title_of(const DrColumn *column)
{
  char *title = g_ascii_strup(column->name, -1);

  return g_strdelimit(title, "-", ' ');
}

static char *
cell_of(const DrColumn *column, JsonObject *row)
{
  return column->text ? column->text(row)
                      : dr_render_member(row, column->member ? column->member : column->name);
}

static DrTable *
new_table(GPtrArray *columns)
{
  g_autoptr(GPtrArray) titles = g_ptr_array_new_with_free_func(g_free);

  for (guint i = 0; i < columns->len; i++)
    g_ptr_array_add(titles, title_of(columns->pdata[i]));
  g_ptr_array_add(titles, NULL);
  return dr_table_new((const char *const *)titles->pdata);
}

/* --- Printing --- */

/* Nothing of a row that is no object, which droverd does not send. */
static void
add_row(DrTable *table, GPtrArray *columns, JsonNode *node)
{
  for (guint i = 0; i < columns->len && JSON_NODE_HOLDS_OBJECT(node); i++) {
    const DrColumn *column = columns->pdata[i];

    dr_table_add(table, cell_of(column, json_node_get_object(node)), column->is_state);
  }
}

static void
print_table(const DrCli *cli, const DrListOptions *options, const DrColumn *columns, JsonArray *rows)
{
  g_autoptr(GPtrArray) some = chosen(options->output, columns);
  gboolean bare = options->no_headers || g_strcmp0(options->output, "name") == 0;
  DrTable *table = new_table(some);

  for (guint i = 0; i < json_array_get_length(rows); i++)
    add_row(table, some, json_array_get_element(rows, i));
  if (bare)
    dr_table_print_bare(table);
  else
    dr_table_print(table, dr_render_color(STDOUT_FILENO, cli->no_color));
}

int
dr_list_print(DrCli *cli, const DrListOptions *options, const DrColumn *columns, JsonArray *rows,
              const char *none)
{
  if (cli->json) {
    g_autoptr(JsonNode) node = json_node_new(JSON_NODE_ARRAY);

    json_node_set_array(node, rows);
    dr_cli_print_json(node);
  } else if (json_array_get_length(rows) > 0) {
    print_table(cli, options, columns, rows);
  } else if (!options->output && !options->no_headers) {
    fprintf(stderr, "%s\n", none);
  }
  return DR_EXIT_DONE;
}

char *
dr_list_time(JsonObject *row, const char *member)
{
  gint64 ms = dr_json_int(row, member, 0);
  g_autoptr(GDateTime) time = ms ? g_date_time_new_from_unix_local(ms / 1000) : NULL;

  return time ? g_date_time_format(time, "%Y-%m-%d %H:%M:%S") : g_strdup("-");
}
