/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Text for people: tables, sizes, times, colours. */
#pragma once
#include "base/json.h"

/* Whether to colour what goes to this descriptor: a terminal, no NO_COLOR, no CLICOLOR=0, not --no-color; with
 * CLICOLOR_FORCE also where it is no terminal. */
gboolean dr_render_color(int fd, gboolean no_color);

/* Text of others for a terminal: what could steer it is a question mark. Newlines stay. (transfer full) */
char *dr_render_harmless(const char *text);

/* A word in the colour of its meaning ("running" green, "attention" red, …), or as it is. (transfer full) */
char *dr_render_state(const char *state, gboolean color);

/* "512 B", "0.2 MB", "1.5 GB": decimal units. (transfer full) */
char *dr_render_bytes(double bytes);
/* "2.9 ms", "212 ms", "12.3 s", "4 min 10 s". (transfer full) */
char *dr_render_ms(double ms);

/* A member as text: strings as they are, numbers, yes/no, "-" for null or absent. (transfer full) */
char *dr_render_member(JsonObject *object, const char *name);

/* A number, whether the JSON has it as an integer or not. */
double dr_render_number(JsonObject *object, const char *name, double otherwise);

/* A table with aligned columns, two spaces between. The last column is not padded. A cell is one line: control characters
 * stand in it as \n, \t or \ooo. */
typedef struct DrTable DrTable;
DrTable *dr_table_new(const char *const *titles);
/* Adds a cell, row by row. `color_of` (nullable) is the state whose colour it gets. Takes over `text`. */
void dr_table_add(DrTable *table, char *text, gboolean is_state);
/* Prints to stdout and frees. */
void dr_table_print(DrTable *table, gboolean color);
/* The same for programs: no titles, one tab between columns, no colours. */
void dr_table_print_bare(DrTable *table);
