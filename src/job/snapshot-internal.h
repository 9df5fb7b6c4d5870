/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of taking a snapshot share: snapshot.c (disks), snapshot-memory.c (RAM), snapshot-machine.c (what a revert needs). */
#pragma once
#include "job/disk-job.h"
#include "job/disk.h"
#include "job/memory-save.h"
#include "job/preflight.h"
#include "job/snapshot.h"

#define DR_STAGE_ROLLBACK "rollback"

typedef struct {
  char *disk, *top, *base, *base_format, *overlay, *secret;
  char *node, *file_node;
  gboolean made, direct, no_flush;
  gboolean reserved; /* its overlay's file is ours */
  gint64 bytes;
  JsonArray *bitmaps; /* nullable: those that record: they go on in the overlay */
  JsonArray *chain;   /* nullable: the files below the base, top first */
} Split;

typedef struct {
  DrDiskJob d;
  JsonObject *request;
  const char *name;
  GPtrArray *splits;
  DrFindings *findings;
  char *agent; /* nullable: its socket */
  gint64 frozen;
  gboolean switched;
  char **argv;         /* nullable: the machine as a command line */
  JsonObject *machine; /* nullable: what else a start anew needs */
  char *memory_file;   /* nullable: where RAM goes */
  gboolean memory_made;
  DrMemorySave save;
  gboolean halted; /* the guest was stopped by us, so that its memory came to an end; in recovery */
} Snapshot;

/* --- snapshot.c --- */
gboolean dr_snapshot_switch(Snapshot *s, DrQmp *qmp, GError **error);
/* Of a snapshot that was not taken. `qmp` NULL: only the files. */
void dr_snapshot_remove_overlays(Snapshot *s, DrQmp *qmp);
gboolean dr_snapshot_was_taken(Snapshot *s, DrQmp *qmp, gboolean *ret_taken, GError **error);

/* --- snapshot-machine.c --- */
/* Reads what the guest is made of, and with memory what stands in the way. */
gboolean dr_snapshot_look(Snapshot *s, const DrDisks *disks, DrQmp *qmp, GError **error);
/* "argv", "memory" of a record; and back. */
void dr_snapshot_add_machine(const Snapshot *s, JsonObject *record);
void dr_snapshot_load_machine(Snapshot *s, JsonObject *note);

/* --- snapshot-memory.c --- */
gboolean dr_snapshot_memory_check(JsonObject *request, GError **error);
/* Adds to s->findings what keeps RAM from being saved. */
void dr_snapshot_memory_preflight(Snapshot *s, const DrDisks *disks, const DrPreflight *p, DrQmp *qmp);
gboolean dr_snapshot_take_memory(Snapshot *s, DrQmp *qmp, GError **error);
/* The guest runs on where it was before: the overlays are merged back, all files removed. `cause` consumed. */
gboolean dr_snapshot_undo_memory(Snapshot *s, DrQmp *qmp, GError *cause, GError **error);
/* Its file, if it is ours. */
void dr_snapshot_remove_memory(Snapshot *s);
/* In recovery. TRUE: it is taken, with memory. */
gboolean dr_snapshot_settle_memory(Snapshot *s, DrQmp *qmp, const char *stage, GError **error);
