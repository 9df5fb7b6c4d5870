/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of a move to another host share: prepare (what goes there, and whether it can), transfer (the state, by
 * pre-copy and post-copy), settle (where is the guest?), migrate (all of it, and the next droverd). */
#pragma once
#include "job/mailbox.h"
#include "job/migrate.h"
#include "job/policy.h"
#include "job/preflight.h"
#include "job/ram-meter.h"
#include "job/streams.h"
#include "net/peer.h"

typedef struct {
  DrJob *job; /* NULL: only a look */
  DrVm *vm;
  DrHost *host;
  JsonObject *request; /* borrowed */
  DrMigrateOptions options;
  DrPreflight *pre; /* NULL in recovery */
  DrPeer *peer;
  DrMailbox *box; /* what a user asks meanwhile */
  char *move;     /* its id, the same on both hosts */
  JsonObject *spec;
  JsonArray *questions; /* that the source was asked, for the other QEMU to be asked the same */
  GPtrArray *tokens;    /* files beside the images, for the other host to see */
  GHashTable *disks;    /* path of an image here -> there, where they differ; NULL: none does */
  DrQmp *source;
  DrProcId source_id;
  char *source_qmp;
  gboolean borrowed, was_running;
  char *mark_path;               /* there once it is decided that the guest is the other host's */
  char *socket_path;             /* where the source's QEMU writes to */
  struct DrMoveStorage *storage; /* NULL: no disk is copied */
  JsonObject *storage_note;      /* nullable: of an earlier droverd's journal */
  gboolean link_is_away;         /* while disks are copied */
  gint64 storage_us;             /* that took */
  struct DrImageServer *server;  /* nullable: of what is copied after the guest */
  JsonArray *lent;               /* nullable: what that is; also of an earlier droverd's journal */
  gint64 fetched;                /* bytes of it */
  gboolean lent_given_up;        /* by a user, as the other host is gone */
  DrStreams *streams;
  gboolean narrowed; /* the streams: the end is near */
  gboolean handed;   /* the first stream is QEMU's own socket: there is nothing to carry */
  gint64 epoch;
  char *version_before, *version; /* of the two QEMUs */
  int version_number;             /* of the other */
  gboolean other_uffd;            /* post-copy is possible there */
  gint64 pid_after;
  DrPolicy policy;
  DrAdvice advice;         /* the last */
  char *status;            /* the source's last MIGRATION event, "" before */
  gboolean postcopy_begun; /* journalled: the other host may have been told to run it */
  gboolean ordered;        /* QEMU may have been told to go into post-copy */
  gboolean decided;        /* the mark is there */
  gboolean pass_is_over;   /* since the last sample */
  gboolean suspended;      /* by the policy, so that it converges */
  guint recoveries;
  gint64 passes;
  gint64 begun_us, stopped_us, resumed_us; /* monotonic, wall of here, wall of there */
  DrPause pause;                           /* what was between those two */
  gint64 heard_us, loaded_us,
      told_us; /* wall of there: "accept" came, its QEMU had all, was told to run; 0: not known */
  DrRamMeter meter;
  gint64 clock_offset_us,
      clock_trip_us;  /* what the other wall clock is ahead, as the quickest question told; 0: none */
  gint64 transfer_us; /* from `migrate` to its end */
  gint64 bytes_moved;
  guint64 memory_before, memory_peak; /* bytes of the source's QEMU: droverd's own are bounded */
} Migrate;

#define DR_STAGE_PREPARE "prepare"

/* prepare.c */
gboolean dr_migrate_look(Migrate *m, GError **error); /* preflight of both hosts, into pre->findings */
gboolean dr_migrate_prepare(Migrate *m,
                            GError **error); /* the other host's QEMU stands, and is the same machine */
gboolean dr_migrate_listen(Migrate *m, GError **error); /* opens the streams of the next epoch */
char *dr_migrate_uri(const Migrate *m);                 /* where QEMU shall write to, then */
JsonObject *dr_migrate_ask(Migrate *m, const char *method, JsonObject *params, int timeout_ms,
                           GError **error);

/* What an image is called on the other host. (transfer full) */
char *dr_migrate_there(const Migrate *m, const char *path);
/* map.c: --map. Into the spec; into the list of disks; and what the other host's QEMU has, by the names of here */
gboolean dr_migrate_map(Migrate *m, GError **error);
void dr_migrate_map_disks(const Migrate *m, JsonArray *disks);
void dr_migrate_map_back(const Migrate *m, DrInventory *theirs);

/* transfer.c */
gboolean dr_migrate_transfer(Migrate *m, GError **error);
gboolean dr_migrate_take_events(Migrate *m); /* TRUE: there was one */
/* Post-copy has begun: goes on until the other host has all of it, through any number of broken links. FALSE: one of the two
 * QEMUs has ended. */
gboolean dr_migrate_finish_postcopy(Migrate *m, GError **error);

/* settle.c */
typedef enum {
  MIGRATE_HERE,    /* it runs here (or is paused, as before), and never will there */
  MIGRATE_THERE,   /* it is the other host's */
  MIGRATE_NOWHERE, /* lost: the QEMU that had it has ended */
} MigrateWhere;
/* Waits, if it has to, until the other host can be asked. */
MigrateWhere dr_migrate_settle(Migrate *m, GError **ret_reason);
/* Writes the mark: prepare, while the guest still runs, all but its name. */
gboolean dr_migrate_prepare_mark(Migrate *m, GError **error);
gboolean dr_migrate_decide(Migrate *m, GError **error);
void dr_migrate_remove_mark_in_waiting(Migrate *m);
gboolean dr_migrate_is_decided(const Migrate *m);
/* Of the other host's answer to "accept" or "status": notes when the guest ran on; TRUE if it has arrived. */
gboolean dr_migrate_note_reply(Migrate *m, JsonObject *reply);
