/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The state file: one SQLite database under the state directory. WAL, synchronous=FULL: when a call that writes has
 * returned TRUE, the row survives a power cut. All calls may be made from any thread (one lock within).
 * Errors are DR_ERROR_IO naming the file and what was being written ("database or disk is full", …). */
#pragma once
#include "base/json.h"

typedef struct DrStore DrStore;

/* Opens or makes STATE_DIR/drover.db. A second droverd on the same file: DR_ERROR_EXISTS. */
DrStore *dr_store_open(const char *state_dir, GError **error);
/* From now on what is written survives the death of every process, and not that of the host. */
void dr_store_relax(DrStore *store);
void dr_store_close(DrStore *store);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrStore, dr_store_close)

/* VMs. `record` is not consumed. load: {name: record}. (transfer full) */
gboolean dr_store_put_vm(DrStore *store, const char *name, JsonObject *record, GError **error);
gboolean dr_store_drop_vm(DrStore *store, const char *name, GError **error);
JsonObject *dr_store_load_vms(DrStore *store, GError **error);

/* Snapshots of a VM; they go with it. put: writes over one of that name. `record` is not consumed. load: [{"name",…the record}],
 * oldest first. (transfer full) */
gboolean dr_store_put_snapshot(DrStore *store, const char *vm, const char *name, JsonObject *record,
                               GError **error);
gboolean dr_store_drop_snapshot(DrStore *store, const char *vm, const char *name, GError **error);
JsonArray *dr_store_load_snapshots(DrStore *store, const char *vm, GError **error);

/* The last backup by each bitmap of a VM's disks; they go with it. `record` has "bitmap" and "disk", and is not consumed. put: writes over
 * that of the same two. load: in no order. (transfer full) */
gboolean dr_store_put_backup(DrStore *store, const char *vm, JsonObject *record, GError **error);
gboolean dr_store_drop_backup(DrStore *store, const char *vm, const char *bitmap, const char *disk,
                              GError **error);
/* All of a VM's. */
gboolean dr_store_drop_backups(DrStore *store, const char *vm, GError **error);
JsonArray *dr_store_load_backups(DrStore *store, const char *vm, GError **error);

typedef struct {
  gint64 id;
  char *kind, *vm, *state, *stage;
  JsonObject *record;
  gint64 created_ms;
} DrJobRow;

void dr_job_row_free(DrJobRow *row);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrJobRow, dr_job_row_free)

/* Returns the new id, or 0 on error. */
gint64 dr_store_add_job(DrStore *store, const char *kind, const char *vm, JsonObject *record, GError **error);
gboolean dr_store_put_job(DrStore *store, gint64 id, const char *state, const char *stage, JsonObject *record,
                          GError **error);
DrJobRow *dr_store_get_job(DrStore *store, gint64 id, GError **error);

/* Newest first, at most `limit`; `unfinished`: only queued and running ones. (transfer full) (element-type DrJobRow) */
GPtrArray *dr_store_list_jobs(DrStore *store, gboolean unfinished, guint limit, GError **error);

/* What a job has recorded, as job/recorder.h packs it; it goes with its job, and those of the newest jobs only are kept. get: *ret_report
 * NULL: there is none. (transfer full) */
gboolean dr_store_put_report(DrStore *store, gint64 job, const char *report, GError **error);
gboolean dr_store_get_report(DrStore *store, gint64 job, JsonObject **ret_report, GError **error);

typedef struct {
  char *kind, *state;
  double pause_ms, total_ms; /* -1: there was none, or it is not known */
} DrJobTimes;

void dr_job_times_free(DrJobTimes *times);

/* Of all jobs on record, or of those of one kind (nullable). (transfer full) (element-type DrJobTimes) */
GPtrArray *dr_store_job_times(DrStore *store, const char *kind, GError **error);

/* Appends a stage to a job's journal; on disk when it returns. `note` may be NULL, is not consumed. */
gboolean dr_store_journal(DrStore *store, gint64 job, const char *stage, JsonObject *note, GError **error);

/* [{"stage","note","time_ms"}] in order. (transfer full) */
JsonArray *dr_store_load_journal(DrStore *store, gint64 job, GError **error);

/* What became of a guest that was to come to this host, by the move's id: "arrived", "discarded", "lost", and when it ran on (wall
 * clock, microseconds; 0: not known). The first that is written stands. *ret_state NULL: nothing was said of it. */
gboolean dr_store_put_move(DrStore *store, const char *id, const char *vm, const char *state,
                           gint64 resumed_us, GError **error);
gboolean dr_store_get_move(DrStore *store, const char *id, char **ret_state, gint64 *ret_resumed_us,
                           GError **error);

typedef struct {
  char *name, *host;
  guint16 port;
  char *pin; /* nullable */
  gint64 added_ms;
} DrPeerRow;

void dr_peer_row_free(DrPeerRow *row);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrPeerRow, dr_peer_row_free)

/* Adds one, at most `max` of them. `row` is not consumed. Errors: EXISTS naming what is taken, the name or the address; BUSY if
 * there are `max`. */
gboolean dr_store_add_peer(DrStore *store, const DrPeerRow *row, guint max, GError **error);

/* Errors: NOT_FOUND. */
gboolean dr_store_drop_peer(DrStore *store, const char *name, GError **error);
DrPeerRow *dr_store_get_peer(DrStore *store, const char *name, GError **error);

/* By name. (transfer full) (element-type DrPeerRow) */
GPtrArray *dr_store_list_peers(DrStore *store, GError **error);
