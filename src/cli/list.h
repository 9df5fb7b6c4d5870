/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What all verbs that list things share: their columns, and --output and --no-headers. */
#pragma once
#include "cli/cli.h"

/* A column of a list. `name` is what --output calls it; its title is the same in capitals, with a space for '-'. */
struct DrColumn {
  const char *name;
  const char *member;             /* of the row's object, where `text` is NULL; NULL: as `name` */
  char *(*text)(JsonObject *row); /* (transfer full) */
  gboolean id;                    /* what a row is called; where no column says so, the first */
  gboolean wide;                  /* only with --output wide, or when it is asked for */
  gboolean is_state;              /* in the colour of its meaning */
};

typedef struct {
  char *output; /* nullable */
  gboolean no_headers;
} DrListOptions;

/* Their rows in the table of a verb's options; the names of them for DrSubverb.options. */
#define DR_LIST_ENTRIES(options, verb)                                                                       \
  { "output",                                                                                                \
    'o',                                                                                                     \
    0,                                                                                                       \
    G_OPTION_ARG_STRING,                                                                                     \
    &(options).output,                                                                                       \
    verb "Print only the names (name), all columns (wide), JSON (json), or these columns",                   \
    "name|wide|json|COLUMN,…" },                                                                             \
  {                                                                                                          \
    "no-headers", 0, 0, G_OPTION_ARG_NONE, &(options).no_headers,                                            \
        verb "Print no titles, and one tab between columns", NULL                                            \
  }
#define DR_LIST_OPTIONS " output no-headers "

/* Whether there are such columns; sets cli->json for `json`. To be called before droverd is asked. `columns` ends with a
 * nameless one; the one that says what a row is called goes by `name`, too. Errors: INVALID, listing them. */
gboolean dr_list_check(DrCli *cli, const DrListOptions *options, const DrColumn *columns, GError **error);

/* Prints the rows (objects) as it was asked for; where there are none, `none` goes to stderr, unless it is for a
 * program. Returns: the exit code. */
int dr_list_print(DrCli *cli, const DrListOptions *options, const DrColumn *columns, JsonArray *rows,
                  const char *none);

/* A member in ms since 1970 as local time, or "-". (transfer full) */
char *dr_list_time(JsonObject *row, const char *member);
