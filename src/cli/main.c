/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover: the table of verbs, and the way to one. */
#include "base/error.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/complete.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const DrVerb dr_verbs[] = {
  { "run", "NAME -- QEMU ARGS…", "start a VM from a QEMU command line",
    "The command behind -- is the VM's definition: what one would type to start it. It runs in the directory "
    "and with the\n"
    "environment of this call (without DROVER_*). Its RAM is made so that an upgrade copies none of it.",
    dr_cmd_run },
  { "adopt", "NAME --pid N|--qmp SOCKET | --libvirt DOMAIN…", "take over a QEMU that runs",
    "The VM runs on as it is; drover reads its command line from /proc and talks to its QMP socket only when "
    "asked to.\n"
    "Domains of libvirt's stay libvirt's: --libvirt tells whether drover upgrade could put another QEMU "
    "beneath them.",
    dr_cmd_adopt },
  { "list", "", "list the VMs", NULL, dr_cmd_list },
  { "show", "NAME", "show all about a VM", NULL, dr_cmd_show },
  { "console", "NAME", "connect to a VM's console",
    "The connection survives an upgrade of the VM. Where standard input is no terminal, its end ends only "
    "the sending:\n"
    "`drover console NAME </dev/null` follows what the guest prints.",
    dr_cmd_console },
  { "qmp", "NAME JSON | NAME COMMAND [ARGUMENTS-JSON]", "send one QMP command",
    "Commands that would undo drover's work (quit, migrate, …) are refused.", dr_cmd_qmp },
  { "pause", "NAME…", "stop the vCPUs of VMs", NULL, dr_cmd_pause },
  { "resume", "NAME…", "let paused VMs run on", NULL, dr_cmd_resume },
  { "stop", "NAME…", "shut VMs down",
    "Presses the ACPI power button and waits for the VM to end; --force ends the process at once.",
    dr_cmd_stop },
  { "forget", "NAME", "drop a VM from drover's books", "A VM that runs is not stopped.", dr_cmd_forget },
  { "upgrade", "NAME… | --all | --all-libvirt", "move running VMs under another QEMU",
    "A name that drover has no VM of is that of a domain of libvirt's. "
    "Waits for the end; Ctrl-C stops waiting, not the upgrade.\n"
    "Exit code: 0 all upgraded, 1 refused or failed and the VM runs where it was, 3 a VM needs attention.",
    dr_cmd_upgrade },
  { "migrate", "NAME… PEER | --all PEER", "move running VMs to another host",
    "PEER is a name of drover peer list. Without an option droverd decides: pre-copy, and post-copy when the "
    "guest writes "
    "faster\n"
    "than the link carries. Waits for the end; Ctrl-C stops waiting, not the move.",
    dr_cmd_migrate },
  { "migrate-postcopy", "NAME", "let a move go on by post-copy", "For a move that was begun with --postcopy.",
    dr_cmd_migrate_postcopy },
  { "migrate-setmaxdowntime", "NAME MS", "set the longest pause of a move", NULL,
    dr_cmd_migrate_setmaxdowntime },
  { "migrate-setspeed", "NAME MIB/S", "set the speed of a move", NULL, dr_cmd_migrate_setspeed },
  { "migrate-getspeed", "NAME", "show the speed of a move", NULL, dr_cmd_migrate_getspeed },
  { "recover", "NAME", "try at once to go on with a broken post-copy",
    "A post-copy whose link broke goes on by itself; this only makes the next try come at once.",
    dr_cmd_recover },
  { "disk", "list|show|copy|pivot|abort|bandwidth|pull NAME …",
    "show, copy and pull the disks of a running VM",
    "  disk list NAME                   list its disks\n"
    "  disk show NAME DISK              show one and the images that it stands on\n"
    "  disk copy NAME DISK TARGET …     copy disks while the guest runs, and keep the copies in step\n"
    "  disk pivot NAME                  let the VM go on with the copies\n"
    "  disk abort NAME                  keep the disks, end what is done to them\n"
    "  disk bandwidth NAME MIB/S        limit what is under way; 0: no limit\n"
    "  disk pull NAME DISK              pull a disk's backing images into it\n"
    "TARGET is a file, a block device, nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH.",
    dr_cmd_disk },
  { "snapshot", "create|list|show|revert|merge|delete NAME …",
    "take, show, go back to and merge snapshots of a running VM",
    "  snapshot create NAME             keep all disks as they are at this moment; the guest goes on in "
    "overlays\n"
    "  snapshot list NAME               list them\n"
    "  snapshot show NAME SNAPSHOT      show one, with the images of each disk\n"
    "  snapshot revert NAME SNAPSHOT    go back to it: with memory the guest goes on from there, else it "
    "boots\n"
    "  snapshot merge NAME SNAPSHOT     merge its overlays down into the images below them, or --up\n"
    "  snapshot delete NAME SNAPSHOT    give the point in time up; the disks are as they are: merges down",
    dr_cmd_snapshot },
  { "bitmap", "add|list|remove|merge|enable|disable NAME …", "keep the books of what changes on disks",
    "  bitmap add NAME DISK BITMAP          note from now on what is written to a disk\n"
    "  bitmap list NAME [DISK]              list the bitmaps\n"
    "  bitmap remove NAME DISK BITMAP       drop one\n"
    "  bitmap merge NAME DISK INTO FROM…    note in one what is dirty in others, too\n"
    "  bitmap enable|disable NAME DISK BITMAP   let one record, or leave it as it is\n"
    "An incremental backup (drover backup --incremental) begins and clears them itself.",
    dr_cmd_bitmap },
  { "backup", "NAME TARGET | serve|finish|list NAME", "back up the disks of a running VM",
    "  backup NAME TARGET               write all disks, as they are at one moment, into images\n"
    "  backup serve NAME                serve them by NBD, for other tools to read\n"
    "  backup finish NAME               end that\n"
    "  backup list NAME                 list what incremental backups go on from\n"
    "A VM called as one of these words is named behind --: drover backup -- serve TARGET.",
    dr_cmd_backup },
  { "jobs", "", "list the jobs, newest first", NULL, dr_cmd_jobs },
  { "job", "ID", "show a job", NULL, dr_cmd_job },
  { "watch", "[JOB]", "follow what happens, or one job to its end", NULL, dr_cmd_watch },
  { "report", "JOB", "show what a job did when, and what its pause went to",
    "With --html as a page with plots, which needs nothing else to be shown.", dr_cmd_report },
  { "stats", "", "show how long jobs took, over all on record", NULL, dr_cmd_stats },
  { "cancel", "JOB", "ask a job to stop",
    "Before its point of no return the VM then runs on where it was; after it the job is refused to be "
    "cancelled.",
    dr_cmd_cancel },
  { "peer", "add|list|remove|test [NAME [HOST[:PORT]]]", "keep the books of other hosts",
    "  peer add NAME HOST[:PORT]  note another host's droverd; its port is 7413 where none is said\n"
    "  peer list                  list them\n"
    "  peer remove NAME           drop one\n"
    "  peer test NAME             connect to one; tell its version, round trip and throughput",
    dr_cmd_peer },
  { "pki", "init|issue|show [HOST|FILE|DIR]", "make and show the keys of hosts",
    "Needs no droverd.\n"
    "  pki init          make a CA\n"
    "  pki issue HOST    make a host's certificates, in QEMU's layout\n"
    "  pki show FILE|DIR tell what certificates say, and what is wrong with them",
    dr_cmd_pki },
  { "ui", "", "open the dashboard in a browser",
    "Serves droverd's dashboard on 127.0.0.1 and prints a link that opens it once; a browser is opened where "
    "there is a desktop.\n"
    "Runs until Ctrl-C.",
    dr_cmd_ui },
  { "doctor", "", "check this host",
    "Says what is right and what is not, with a remedy for each. Needs no droverd, and asks it where it "
    "runs. Exit code: "
    "1 where\n"
    "something makes drover unusable.",
    dr_cmd_doctor },
  { NULL },
};

static const DrVerb *
find_verb(const char *name)
{
  for (const DrVerb *verb = dr_verbs; verb->name; verb++)
    if (g_str_equal(verb->name, name))
      return verb;
  return NULL;
}

static void
print_overview(FILE *out)
{
  fputs("Usage: drover [OPTION…] VERB [ARGUMENT…]\n\nMoves running QEMU virtual machines.\n\nVerbs:\n", out);
  for (const DrVerb *verb = dr_verbs; verb->name; verb++)
    fprintf(out, "  %-9s %s\n", verb->name, verb->summary);
  fputs("  help      show this, or the help of a verb\n"
        "\nOptions, before or behind the verb:\n"
        "  --connect unix:PATH  droverd's socket (default: DROVER_CONNECT, or /run/drover/api.sock)\n"
        "                       or tls://HOST[:PORT]\n"
        "  --pki DIR            the keys for tls:// (default: DROVER_PKI, or where droverd has its own)\n"
        "  --json               print JSON\n"
        "  --no-color           print no colours\n"
        "  -v, --verbose        tell each call of droverd's API, too\n"
        "  --version            print the version\n"
        "\nA verb's own options: drover help VERB. Exit codes: 0 done, 1 refused or failed and the VM runs "
        "where\n"
        "it was, 2 usage, 3 the VM needs attention.\n",
        out);
}

/* `name` NULL: there was none. */
static int
no_verb(const DrCli *cli, const char *name)
{
  g_autoptr(GError) error = NULL;

  if (name)
    dr_error_set(&error, DR_ERROR_INVALID, "there is no verb '%s'", name);
  else
    dr_error_set(&error, DR_ERROR_INVALID, "a verb is missing");
  dr_error_remedy(&error, "drover --help");
  return dr_cli_fail(cli, error);
}

/* Where the verb is: the first word that is no option and no option's value. */
static int
verb_index(int argc, char **argv)
{
  int i;

  for (i = 1; i < argc && argv[i][0] == '-'; i++)
    if (g_str_equal(argv[i], "--connect") || g_str_equal(argv[i], "--pki"))
      i++;
  return i;
}

/* Moves the verb to the front, so that options before it are parsed like those behind it. */
static void
verb_first(char **argv, int at)
{
  char *name = argv[at];

  memmove(&argv[2], &argv[1], (at - 1) * sizeof *argv);
  argv[1] = name;
}

static gboolean
has(char **argv, int until, const char *a, const char *b)
{
  for (int i = 1; i < until; i++)
    if (g_str_equal(argv[i], a) || g_str_equal(argv[i], b))
      return TRUE;
  return FALSE;
}

static int
run_verb(DrCli *cli, const char *name, int argc, char **argv)
{
  int code;

  cli->verb = find_verb(name);
  if (!cli->verb)
    return no_verb(cli, name);
  code = cli->verb->run(cli, argc, argv);
  g_strfreev(cli->words);
  g_strfreev(cli->rest);
  g_free(cli->connect);
  g_free(cli->pki);
  dr_client_free(cli->client);
  return code;
}

static int
help(DrCli *cli, int argc, char **argv)
{
  char *const ask[] = { (char *)"drover", (char *)"--help", NULL };

  if (argc > 0)
    return run_verb(cli, argv[0], 2, (char **)ask);
  print_overview(stdout);
  return DR_EXIT_DONE;
}

int
main(int argc, char **argv)
{
  DrCli cli = { 0 };
  int at = verb_index(argc, argv);

  setlocale(LC_CTYPE, "");
  dr_log_init(FALSE);
  g_set_prgname("drover");
  if (has(argv, MIN(at, argc), "--version", "-V")) {
    printf("drover %s\n", DROVER_VERSION);
    return DR_EXIT_DONE;
  }
  cli.json = has(argv, MIN(at, argc), "--json", "--json");
  if (at >= argc && !has(argv, argc, "--help", "-h"))
    return no_verb(&cli, NULL);
  if (at >= argc || has(argv, at, "--help", "-h"))
    return help(&cli, 0, NULL);
  if (g_str_equal(argv[at], "help"))
    return help(&cli, argc - at - 1, argv + at + 1);
  if (g_str_equal(argv[at], "__complete")) /* for shells: packaging/completions */
    return dr_complete(&cli, argv + at + 1);
  verb_first(argv, at);
  return run_verb(&cli, argv[1], argc - 1, argv + 1);
}
