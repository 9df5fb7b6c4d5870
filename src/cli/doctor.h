/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover doctor: what its checks share. A check looks at one thing and says one of four words about it, under a code that
 * stays what it is (docs/DOCTOR.md lists them):
 *   ok       it is as it should be
 *   note     worth knowing
 *   warning  something will not work, or not well
 *   blocker  drover cannot be used as it is
 * Texts are one phrase without a full stop; whatever is not ok has a remedy, unless there is nothing to do. */
#pragma once
#include "cli/cli.h"
#include "daemon/config.h"

#include <sys/types.h>

typedef struct {
  DrCli *cli;
  const char *root;  /* before the paths of /proc, /sys, /dev, /etc and such: "", or a test's tree */
  const char *group; /* of the checks under way */
  JsonArray *findings;
  guint warnings, blockers;

  char *config_file; /* nullable: there is none, or not known which */
  DrConfig config;   /* what it says, or the defaults */
  gboolean config_read;
  char *config_problem, *config_remedy; /* nullable */

  JsonObject *version; /* what the running droverd says of itself; NULL: none answers */
  GError *no_answer;   /* why not */
  pid_t daemon;        /* who listens on its socket; 0: not known */
  uid_t daemon_uid;
} DrDoctor;

void dr_doctor_ok(DrDoctor *d, const char *code, const char *format, ...) G_GNUC_PRINTF(3, 4);
/* `remedy` may be NULL. */
void dr_doctor_note(DrDoctor *d, const char *code, const char *remedy, const char *format, ...)
    G_GNUC_PRINTF(4, 5);
void dr_doctor_warning(DrDoctor *d, const char *code, const char *remedy, const char *format, ...)
    G_GNUC_PRINTF(4, 5);
void dr_doctor_blocker(DrDoctor *d, const char *code, const char *remedy, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

/* A path below d->root. (transfer full) */
char *dr_doctor_path(const DrDoctor *d, const char *path);
/* A small file of /proc or /sys, without white space at its end; NULL: it cannot be read. (transfer full) */
char *dr_doctor_read(const DrDoctor *d, const char *path);
/* One that has a number; `otherwise` where it has none. */
gint64 dr_doctor_number(const DrDoctor *d, const char *path, gint64 otherwise);
/* The number behind "NAME:" in /proc/meminfo, in bytes; -1: it is not there. */
gint64 dr_doctor_meminfo(const DrDoctor *d, const char *name);

/* --- The checks, by theme --- */

/* First of all: which configuration, which droverd. `file` (nullable): of --config. */
void dr_doctor_find_daemon(DrDoctor *d, const char *file);

void dr_doctor_check_host(DrDoctor *d);
void dr_doctor_check_memory(DrDoctor *d);
void dr_doctor_check_qemu(DrDoctor *d);
void dr_doctor_check_libvirt(DrDoctor *d);
void dr_doctor_check_net(DrDoctor *d);
void dr_doctor_check_keys(DrDoctor *d);
void dr_doctor_check_room(DrDoctor *d);
void dr_doctor_check_daemon(DrDoctor *d);
