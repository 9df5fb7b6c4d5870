/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Completion: what may stand at the end of an unfinished command line.
 *
 * A shell's completion calls `drover __complete WORD…` with the words behind "drover", the last one as far as it is typed
 * (it may be empty). Standard output has a candidate a line: the whole word, and where there is something to say about it
 * a tab and that. A line that begins with ':' asks the shell for more: ":files", ":dirs". The verbs' own tables
 * and GOptionEntry rows are what is offered, so that nothing is written down twice; names of VMs, jobs, peers and so on
 * come from droverd. That takes DR_COMPLETE_MS at the most: what droverd has not said by then is left out. */
#pragma once
#include "cli/cli.h"

#define DR_COMPLETE_MS 900

typedef struct {
  DrCli *cli;
  const GOptionEntry *entries; /* nullable: of the verb */
  const char *last;            /* the unfinished word, or its part behind `prefix` */
  char *prefix;         /* that of the word which is certain, and printed with each candidate; may be empty */
  GPtrArray *words;     /* of char*: those behind the verb that are no options and no options' values */
  GPtrArray *given;     /* of char*: long names of options that are there already */
  const DrSubverb *sub; /* nullable */
  const char *path;     /* behind "--connect"; nullable */
} DrComplete;

/* `drover __complete`; `words` are those behind it. Returns: the exit code, which is always 0. */
int dr_complete(DrCli *cli, char **words);

/* For dr_cli_parse(): completes cli->completing by these options, and ends the process. */
void dr_complete_verb(DrCli *cli, const GOptionEntry *entries, const GOptionEntry *common) G_GNUC_NORETURN;

/* Prints a candidate, if it begins as what was typed. `about` may be NULL. */
void dr_complete_say(const DrComplete *complete, const char *candidate, const char *about);
/* Asks the shell for names of files (":files") or directories (":dirs"). */
void dr_complete_ask_shell(const char *what);

/* What a placeholder of usage ("NAME", "DISK[=FILE]", "full|top", …) stands for: that, from droverd and this host. FALSE: it is not
 * known what could stand there. */
gboolean dr_complete_placeholder(const DrComplete *complete, const char *placeholder);
