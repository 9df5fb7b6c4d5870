/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the verbs of `drover` share: their table, options, exit codes, and how an error is told. */
#pragma once
#include "cli/client.h"

typedef enum {
  DR_EXIT_DONE = 0,
  DR_EXIT_FAILED = 1, /* refused or failed, and the VM runs where it was */
  DR_EXIT_USAGE = 2,
  DR_EXIT_ATTENTION = 3, /* the VM needs a person; the message says what and how */
  DR_EXIT_DETACHED = 130,
} DrExit;

typedef struct DrCli DrCli;
typedef struct DrColumn DrColumn;
typedef struct DrSubverb DrSubverb;

typedef struct {
  const char *name;
  const char *words;   /* its arguments, as usage shows them */
  const char *summary; /* one line */
  const char *more;    /* nullable: what its help says besides */
  int (*run)(DrCli *cli, int argc, char **argv);
} DrVerb;

struct DrCli {
  const DrVerb *verb;
  /* Options that every verb takes, before or behind it. */
  gboolean json, no_color, verbose;
  gboolean events; /* --events, of verbs that start jobs: DR_CLI_EVENTS */
  char *connect, *pki;
  char **words;      /* what is left behind the options */
  const char *until; /* nullable: the stage at which a job is not followed any more */
  char **rest;       /* what stood behind "--"; NULL: there was none */

  /* For completion (complete.h), which asks a verb for its options instead of doing what it says. */
  const DrColumn *columns;   /* nullable: of what it lists */
  const DrSubverb *subverbs; /* nullable */
  char **completing;         /* the words behind the verb, the last one unfinished; NULL: it is to be done */
  DrClient *client;
};

/* Takes the options out of the verb's argv (`entries` may be NULL) and checks that `min` to `max` (-1: any
 * number) words are left in cli->words. FALSE with the error set: dr_cli_fail() it. --help prints and ends
 * the process. */
gboolean dr_cli_parse(DrCli *cli, int argc, char **argv, const GOptionEntry *entries, int min, int max,
                      GError **error);

/* What it checks of the words, for a verb whose options decide on them. */
gboolean dr_cli_check_words(DrCli *cli, int min, int max, GError **error);

/* The option of the verbs that start jobs and follow them. It says --json, too. */
#define DR_CLI_EVENTS(cli)                                                                                   \
  {                                                                                                          \
    "events", 0, 0, G_OPTION_ARG_NONE, &(cli)->events,                                                       \
        "Print each event of the job as a line of JSON, as it comes", NULL                                   \
  }

/* One of the things that a verb does; the first word says which. */
struct DrSubverb {
  const char *name;
  const char *words;   /* behind it, as usage shows them */
  int min, max;        /* how many */
  const char *options; /* the long names of the verb's options that it takes, with spaces around each */
  int (*run)(DrCli *cli, const void *options);
  gboolean otherwise;      /* meant where the first word is none of them, or all words stand behind "--" */
  const DrColumn *columns; /* nullable: of what it lists (list.h) */
};

/* dr_cli_parse() for such a verb, and then the subverb's run() with cli->words behind its name. `subverbs` ends with a nameless one;
 * `options` is handed through, filled in by `entries`. Returns: the exit code. */
int dr_cli_subverb(DrCli *cli, int argc, char **argv, const GOptionEntry *entries, const DrSubverb *subverbs,
                   const void *options);

/* The connection, made at first use. (transfer none) */
DrClient *dr_cli_client(DrCli *cli, GError **error);
/* Another one, for another thread. (transfer full) */
DrClient *dr_cli_new_client(const DrCli *cli, GError **error);

/* Tells an error (on stderr, and as JSON on stdout with --json). Returns: the exit code. */
int dr_cli_fail(const DrCli *cli, const GError *error);

/* Of a verb that went through several VMs: the one that matters most. */
int dr_exit_worse(int a, int b);
/* The exit code of an error, without telling it. */
int dr_exit_of(const GError *error);

/* A call whose path has one name in it (escaped here). (transfer full), NULL with the error set. */
JsonNode *dr_cli_call(DrCli *cli, const char *method, const char *path, const char *name, JsonObject *body,
                      GError **error);

/* One whose answer has to be a list; `path` is complete. (transfer full), NULL with the error set. */
JsonArray *dr_cli_call_list(DrCli *cli, const char *method, const char *path, JsonObject *body,
                            GError **error);

/* The same for each of cli->words, going on after an error. `tell` prints one answer; with --json one name
 * gives an object, several an array. Returns: the exit code. */
int dr_cli_each(DrCli *cli, const char *method, const char *path, JsonObject *body,
                void (*tell)(const char *name, JsonObject *answer));

/* Prints to stdout, pretty. */
void dr_cli_print_json(JsonNode *node);

extern const DrVerb dr_verbs[];

int dr_cmd_run(DrCli *cli, int argc, char **argv);
int dr_cmd_adopt(DrCli *cli, int argc, char **argv);
int dr_cmd_list(DrCli *cli, int argc, char **argv);
int dr_cmd_show(DrCli *cli, int argc, char **argv);
int dr_cmd_console(DrCli *cli, int argc, char **argv);
int dr_cmd_qmp(DrCli *cli, int argc, char **argv);
int dr_cmd_pause(DrCli *cli, int argc, char **argv);
int dr_cmd_resume(DrCli *cli, int argc, char **argv);
int dr_cmd_stop(DrCli *cli, int argc, char **argv);
int dr_cmd_forget(DrCli *cli, int argc, char **argv);
int dr_cmd_upgrade(DrCli *cli, int argc, char **argv);
int dr_cmd_migrate(DrCli *cli, int argc, char **argv);
int dr_cmd_recover(DrCli *cli, int argc, char **argv);
int dr_cmd_migrate_postcopy(DrCli *cli, int argc, char **argv);
int dr_cmd_migrate_setmaxdowntime(DrCli *cli, int argc, char **argv);
int dr_cmd_migrate_setspeed(DrCli *cli, int argc, char **argv);
int dr_cmd_migrate_getspeed(DrCli *cli, int argc, char **argv);
int dr_cmd_jobs(DrCli *cli, int argc, char **argv);
int dr_cmd_job(DrCli *cli, int argc, char **argv);
int dr_cmd_report(DrCli *cli, int argc, char **argv);
int dr_cmd_stats(DrCli *cli, int argc, char **argv);
int dr_cmd_watch(DrCli *cli, int argc, char **argv);
int dr_cmd_cancel(DrCli *cli, int argc, char **argv);
int dr_cmd_disk(DrCli *cli, int argc, char **argv);
int dr_cmd_snapshot(DrCli *cli, int argc, char **argv);
int dr_cmd_bitmap(DrCli *cli, int argc, char **argv);
int dr_cmd_backup(DrCli *cli, int argc, char **argv);
int dr_cmd_peer(DrCli *cli, int argc, char **argv);
int dr_cmd_pki(DrCli *cli, int argc, char **argv);
int dr_cmd_ui(DrCli *cli, int argc, char **argv);
int dr_cmd_doctor(DrCli *cli, int argc, char **argv);
