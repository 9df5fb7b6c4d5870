/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the upgrade share. Each part is a file: plan (what goes into the journal), destination (start and
 * verify the new QEMU), source (what others do to the guest meanwhile), transfer (move the state), reach (which QEMU answers, which has ended?), settle (where is the
 * guest?), commit (make the new one the VM). */
#pragma once
#include "job/preflight.h"
#include "job/upgrade.h"
#include "qemu/tap.h"

/* What recovery needs to finish or undo the move, whoever made it: all of it goes into the journal at stage "start". */
typedef struct {
  guint generation;                   /* of the new QEMU */
  DrProcId source;                    /* the old QEMU */
  char *source_qmp;                   /* its monitor */
  gboolean borrowed;                  /* that is the user's */
  gboolean foreign;                   /* see vm.h: both QEMUs have it */
  char *source_console, *source_exit; /* nullable: files of drover's own */
  char *version_before;
  char *qmp_path, *console_path, *migration_path, *exit_path;
  char *mark_path;      /* names the destination once it has been chosen to run; in the run directory */
  gboolean console;     /* it has drover's console */
  gboolean was_running; /* at the last look: others may pause and resume it until the switchover */
  gboolean
      revert; /* the state comes from a snapshot: the two guests share nothing, and the old one stays whole */
  gboolean cold;   /* likewise, and from its disks only: the new QEMU boots */
  gboolean halted; /* likewise: the old guest ran, and we have told it to stop */
  DrMemoryMode mode;
  gboolean shared_after; /* the new QEMU's RAM can be handed over next time */
  char **argv;           /* the new QEMU's */
  char *machine, *version;
  GPtrArray *renames;  /* of DrRename */
  JsonArray *forwards; /* [{"netdev","add","nth"}]: nth of the networks without an id, else -1 */
  JsonArray *vnc;      /* [{"id","host","port"}] */
  JsonArray *taps;     /* [{"fd","ifname","attached","header","offloads"}] of the source; nullable */
  char *pidfile, *gdb;
} DrUpgradePlan;

JsonObject *dr_upgrade_plan_write(const DrUpgradePlan *plan);
void dr_upgrade_plan_read(DrUpgradePlan *plan, JsonObject *object);
void dr_upgrade_plan_clear(DrUpgradePlan *plan);

typedef struct {
  DrJob *job;
  DrVm *vm;
  DrHost *host;
  DrPreflight *pre; /* NULL in recovery */
  JsonObject *spec; /* of a guest that comes from another host (move-spec.h); borrowed, else NULL */
  DrUpgradePlan plan;
  DrProcId dest_id;        /* pid 0: not started, or not found */
  DrQmp *source, *dest;    /* NULL: not connected */
  gboolean watched;        /* we have listened to the destination without a gap since before it could run */
  gboolean chosen;         /* the mark is written: what the file says to a recovery */
  gboolean postcopy_begun; /* pages may have left the source for good */
  gboolean starved;        /* the destination lacks pages that nobody has any more */
  gboolean waited;         /* for a QEMU that does not answer: the VM's note says so */
  DrTapGuard *guard;
  GArray *fds, *numbers;                   /* of int: what the destination is handed; closed at the end */
  GArray *tap_fds;                         /* of int: borrowed from `fds` */
  GArray *tap_source_fds;                  /* of int: their numbers in the source */
  GPtrArray *tap_names;                    /* of char* */
  gboolean many_queues;                    /* a tap has more than one: see dr_tap_guard_hand_over() */
  GArray *ram_fds;                         /* of int: memfds, owned, for counting their pages */
  goffset log_from;                        /* where the destination's messages begin in the log */
  gint64 begun_us, stopped_us, resumed_us; /* monotonic, wall, wall */
  DrPause pause;                           /* what was between those two */
  gint64 bytes_moved;
  guint64 memory_before, memory_peak; /* bytes */
} DrUpgrade;

#define DR_STAGE_PREFLIGHT "preflight"
#define DR_STAGE_START "start"
#define DR_STAGE_VERIFY "verify"
#define DR_STAGE_TRANSFER "transfer"
#define DR_STAGE_POSTCOPY "postcopy"
#define DR_STAGE_COMMIT "commit"
/* Steps within the stage "transfer" or "postcopy", which stand in the guest's pause: a mark, no journal row. */
#define DR_STEP_SWITCHOVER                                                                                   \
  "switchover" /* the source has stopped for good, the destination has not been told to run */
#define DR_STEP_SPAWNED "spawned" /* for tests: the destination's pid is not in the journal yet */
#define DR_STEP_RESUME "resume"   /* it has been told */
#define DR_STEP_RECOVER "recover" /* the next droverd begins; for tests, as is the next */
#define DR_STEP_UNDO "undo"       /* the destination is dead, the source has not been told to go on */

/* destination.c */
/* Takes over `fd`; returns its number in the new QEMU. `number` -1: the next free one. */
int dr_upgrade_hand(DrUpgrade *u, int fd, int number);
/* The console that the new QEMU will have. */
gboolean dr_upgrade_prepare_console(DrUpgrade *u, GError **error);
/* For a guest that comes from another host: u->source is NULL, u->pre was made from what that host says, plan.forwards is
 * set. `make_needs` fills the numbers of u->pre->needs. */
typedef gboolean (*DrUpgradeNeedsFunc)(DrUpgrade *u, GError **error);
gboolean dr_upgrade_start_arrival(DrUpgrade *u, DrUpgradeNeedsFunc make_needs, GError **error);
gboolean dr_upgrade_start_destination(DrUpgrade *u, GError **error);
gboolean dr_upgrade_verify_destination(DrUpgrade *u, GError **error);
/* "…: MESSAGE (the new QEMU said: …)" with the end of its log. */
void dr_upgrade_add_log(DrUpgrade *u, GError **error);

/* source.c: the guest as it is now, not as it was at preflight. */
/* The last look before `migrate`: whether it runs or is paused is noted, all else that has changed is an error. */
gboolean dr_upgrade_look_again(DrUpgrade *u, GError **error);
/* The part of it about what the guest is made of, for a source that stands still at "pre-switchover" after a long copy. */
gboolean dr_upgrade_compare_source(DrUpgrade *u, GError **error);
/* What an event of the source's says about that; `status`: its last MIGRATION event, "" before. A job that goes on after
 * FALSE would move a guest that is not the one it was made for. */
gboolean dr_upgrade_note_event(DrUpgrade *u, const DrQmpEvent *event, const char *status, GError **error);
/* Whether the guest is to run after the upgrade; in the journal, too. */
gboolean dr_upgrade_note_running(DrUpgrade *u, gboolean running, GError **error);

/* transfer.c */
gboolean dr_upgrade_transfer(DrUpgrade *u, GError **error);
gboolean dr_upgrade_reset_capabilities(DrQmp *qmp, GError **error);
/* The destination has the guest, the source stands still for good: no return, the mark, `cont`. */
gboolean dr_upgrade_switch_over(DrUpgrade *u, GError **error);
guint64 dr_upgrade_memory(const DrUpgrade *u); /* bytes that the two QEMUs take now */
/* The guest runs: the pause goes to the job's record. */
void dr_upgrade_tell_pause(const DrUpgrade *u);
gboolean dr_upgrade_wait_postcopy(DrUpgrade *u, GError **error);

/* reach.c */
typedef enum {
  DR_REACH_GONE,  /* it has ended, or was never started */
  DR_REACH_MUTE,  /* it lives, but its monitor does not answer: it may run the guest */
  DR_REACH_TALKS, /* it answers; u->source or u->dest is its monitor */
} DrReach;
DrReach dr_upgrade_reach_source(DrUpgrade *u);
/* Whether a monitor is that process's: the threads of its CPUs are. */
gboolean dr_upgrade_answers_for(DrQmp *qmp, const DrProcId *id);
/* A new connection to that one's monitor, also where the two share a socket. NULL: it does not answer. */
DrQmp *dr_upgrade_connect(DrUpgrade *u, const DrProcId *id, const char *path);
DrReach dr_upgrade_reach_dest(DrUpgrade *u);
/* Waits for a while, or until the process ends; the first time it tells the VM's record and the log why. */
void dr_upgrade_wait_for_word(DrUpgrade *u, const DrProcId *id, const char *why);
/* The source has ended in post-copy, and the destination, which does not answer, waits for a page that nobody has. */
gboolean dr_upgrade_is_starved(DrUpgrade *u);
/* Takes the destination's queued events: the time of its RESUME. */
void dr_upgrade_note_resume(DrUpgrade *u);
/* It has ended without having run, for we have listened to it all the time and it never said RESUME (which QEMU says
 * before it lets the first vCPU go: vm_prepare_start()). */
gboolean dr_upgrade_never_ran(DrUpgrade *u);
/* FALSE also where that cannot be found out. */
gboolean dr_upgrade_ends_within(const DrProcId *id, int timeout_ms);
/* How a process that has ended did so, as its keeper tells ("exited with status 1"); NULL: it lives, or nobody tells. */
char *dr_upgrade_exit_status(const char *exit_path, const DrProcId *id);
gboolean dr_upgrade_is_source(const DrUpgrade *u, const DrProcId *id);
gboolean dr_upgrade_is_dest(const DrUpgrade *u, const DrProcId *id);

typedef enum {
  DR_ON_SOURCE,      /* it runs (or is paused, as before) under the old QEMU; the new one is gone */
  DR_ON_DESTINATION, /* it runs under the new QEMU; commit is to follow */
  DR_NOWHERE,        /* it is lost: the QEMU that held it has ended */
} DrWhere;

/* upgrade.c */
void dr_upgrade_init(DrUpgrade *u, DrJob *job);
void dr_upgrade_clear(DrUpgrade *u);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(DrUpgrade, dr_upgrade_clear)
/* The last steps, wherever the guest is: the monitor goes back to the VM, the record says how things are. */
void dr_upgrade_finish(DrUpgrade *u, DrWhere where, const GError *reason);
/* The old QEMU, and what goes with it, into the plan. */
void dr_upgrade_note_source(DrUpgrade *u);
/* Before anything was changed: gives the monitor back. `ran`: when the job began. `cause` consumed. */
gboolean dr_upgrade_give_up(DrUpgrade *u, gboolean ran, GError *cause, GError **error);
/* In recovery, with a plan: connects to both, and settles. */
DrWhere dr_upgrade_find_guest(DrUpgrade *u, GError **ret_reason);
/* Pids of an earlier boot mean other processes now: none is looked at. */
gboolean dr_upgrade_was_rebooted(DrUpgrade *u, const char *what, const char *stage, GError **error);
/* Turns an error into the news that the guest has ended, if that is what is behind it. */
void dr_upgrade_say_if_ended(DrUpgrade *u, GError **error);
/* Reads the journal. FALSE: nothing had been started. */
gboolean dr_upgrade_load_plan(DrUpgrade *u, JsonArray *journal, const char **ret_stage);
/* A destination that was spawned, but whose pid did not reach the journal, has its monitor's path on its command line. */
gboolean dr_upgrade_find_by_socket(const char *qmp_path, DrProcId *ret_id);
/* What is on record about the VM. `ended`: that is how its guest ended. */
void dr_upgrade_note(DrVm *vm, const char *text, gboolean ended);

/* settle.c: where is the guest? It leaves at most one QEMU that runs or may run. */
DrWhere dr_upgrade_settle(DrUpgrade *u, GError **ret_reason);
/* Writes the mark: prepare, while the guest still runs, all but its name. */
gboolean dr_upgrade_prepare_mark(DrUpgrade *u, GError **error);
gboolean dr_upgrade_choose(DrUpgrade *u, GError **error);
gboolean dr_upgrade_is_chosen(const DrUpgrade *u);
void dr_upgrade_remove_leftovers(DrUpgrade *u);
/* Removes the exit file of a process that has just ended, once its keeper has written it. */
void dr_upgrade_remove_exit(const char *exit_path, const DrProcId *id);

/* taps.c */
void dr_upgrade_add_tap(DrUpgrade *u, int fd, int source_fd, const char *ifname); /* `fd` borrowed */
gboolean dr_upgrade_guard_taps(DrUpgrade *u, GError **error);                     /* and notes how they are */
void dr_upgrade_find_taps(DrUpgrade *u); /* in recovery: a guard that knows how they were */

/* foreign.c */
/* The new QEMU's threads for CPUs and I/O go where those of the old one are. */
gboolean dr_upgrade_place_threads(DrUpgrade *u, GError **error);
/* A destination whose pid did not reach the journal: a process that listens on the monitor's socket and is not the source, whatever a script
 * has made of its command line. */
gboolean dr_upgrade_find_by_listener(const DrUpgrade *u, DrProcId *ret_id);
/* The new QEMU is no less confined than the old one, whose command line is its own to write: user, capabilities, seccomp. */
gboolean dr_upgrade_check_confined(DrUpgrade *u, GError **error);
/* What the manager has told the old QEMU by commands that no command line has: the balloon's statistics, thresholds of images. */
gboolean dr_upgrade_tell_settings(DrUpgrade *u, GError **error);

/* forwards.c */
JsonArray *dr_upgrade_forwards(DrUpgrade *u); /* of the source. (transfer full) */
void dr_upgrade_add_forwards(DrUpgrade *u, DrFindings *findings);

/* commit.c. FALSE: the guest has ended under the new QEMU meanwhile. */
gboolean dr_upgrade_commit(DrUpgrade *u, DrFindings *findings, GError **error);
