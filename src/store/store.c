/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* SQLite behind store.h. Statements are prepared per call: there are a few a second at the most. */
#include "store/store.h"
#include "base/error.h"
#include "base/fd.h"
#include "schema.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <string.h>

#define SCHEMA_VERSION 1
#define JSON_MAX (16 * 1024 * 1024)
#define KEPT_MOVES_MS                                                                                        \
  (90ll * 24 * 3600 * 1000) /* the other host may ask for the end of one as long as its job has not ended */
#define KEPT_JOBS 1000      /* older ended jobs are dropped */

struct DrStore {
  GMutex lock;
  sqlite3 *db;
  char *path;
};

typedef sqlite3_stmt DrStmt;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrStmt, sqlite3_finalize)

static gboolean
fail(DrStore *store, const char *doing, GError **error)
{
  int code = sqlite3_errcode(store->db);
  int err = code == SQLITE_CANTOPEN ? sqlite3_system_errno(store->db) : 0;

  dr_error_set(error, DR_ERROR_IO, "cannot %s in '%s': %s%s%s", doing, store->path, sqlite3_errmsg(store->db),
               err ? ": " : "", err ? g_strerror(err) : "");
  if (code == SQLITE_FULL)
    return dr_error_remedy(error, "free some room on the file system of the state directory, then try again");
  if (code == SQLITE_NOTADB || code == SQLITE_CORRUPT)
    return dr_error_remedy(
        error, "put a copy of it back, or move it away: VMs run on without it, and drover adopt takes them "
               "up again");
  return FALSE;
}

/* Prepares and binds: 's' text, 'i' gint64. */
static DrStmt *
prepare(DrStore *store, const char *sql, const char *types, va_list ap)
{
  DrStmt *stmt = NULL;

  if (sqlite3_prepare_v2(store->db, sql, -1, &stmt, NULL) != SQLITE_OK)
    return NULL;
  for (int i = 0; types[i]; i++) {
    if (types[i] == 's')
      sqlite3_bind_text(stmt, i + 1, va_arg(ap, const char *), -1, SQLITE_TRANSIENT);
    else
      sqlite3_bind_int64(stmt, i + 1, va_arg(ap, gint64));
  }
  return stmt;
}

/* Runs a statement without rows. */
static gboolean
run(DrStore *store, GError **error, const char *doing, const char *sql, const char *types, ...)
{
  g_autoptr(DrStmt) stmt = NULL;
  va_list ap;

  va_start(ap, types);
  stmt = prepare(store, sql, types, ap);
  va_end(ap);
  if (!stmt || sqlite3_step(stmt) != SQLITE_DONE)
    return fail(store, doing, error);
  return TRUE;
}

static DrStmt *
query(DrStore *store, GError **error, const char *doing, const char *sql, const char *types, ...)
{
  DrStmt *stmt;
  va_list ap;

  va_start(ap, types);
  stmt = prepare(store, sql, types, ap);
  va_end(ap);
  if (!stmt)
    fail(store, doing, error);
  return stmt;
}

static gboolean
create_tables(DrStore *store, GError **error)
{
  g_autoptr(GBytes) sql = g_resource_lookup_data(dr_schema_get_resource(), "/drover/schema.sql",
                                                 G_RESOURCE_LOOKUP_FLAGS_NONE, NULL);
  g_autofree char *text = g_strndup(g_bytes_get_data(sql, NULL), g_bytes_get_size(sql));

  return sqlite3_exec(store->db, text, NULL, NULL, NULL) == SQLITE_OK ||
         fail(store, "create the tables", error);
}

static gboolean
set_up(DrStore *store, GError **error)
{
  static const char *const pragmas[] = {
    "PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL",       "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",        "PRAGMA wal_autocheckpoint=200", "PRAGMA journal_size_limit=4194304"
  };
  g_autoptr(DrStmt) stmt = NULL;
  g_autofree char *version = g_strdup_printf("PRAGMA user_version=%d", SCHEMA_VERSION);
  int found;

  for (guint i = 0; i < G_N_ELEMENTS(pragmas); i++)
    if (sqlite3_exec(store->db, pragmas[i], NULL, NULL, NULL) != SQLITE_OK)
      return fail(store, "set up the tables", error);
  stmt = query(store, error, "read the version", "PRAGMA user_version", "");
  if (!stmt || sqlite3_step(stmt) != SQLITE_ROW)
    return fail(store, "read the version of the state file", error);
  found = sqlite3_column_int(stmt, 0);
  if (found > SCHEMA_VERSION)
    return dr_error_set(error, DR_ERROR_UNSUPPORTED,
                        "'%s' was written by a newer drover (format %d, this one knows %d)", store->path,
                        found, SCHEMA_VERSION);
  if (!create_tables(store, error))
    return FALSE;
  if (found != SCHEMA_VERSION && sqlite3_exec(store->db, version, NULL, NULL, NULL) != SQLITE_OK)
    return fail(store, "write the version", error);
  if (!run(store, error, "drop old moves", "DELETE FROM moves WHERE time_ms < ?", "i",
           g_get_real_time() / 1000 - KEPT_MOVES_MS))
    return FALSE;
  return run(
      store, error, "drop old jobs",
      "DELETE FROM jobs WHERE state NOT IN ('queued','running') AND id <= (SELECT max(id) FROM jobs) - ?",
      "i", (gint64)KEPT_JOBS);
}

/* It holds command lines and environments: SQLite would make it readable for all. Its other files get the same mode. */
static void
make_private(const char *path)
{
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

  if (fd >= 0)
    close(fd);
}

DrStore *
dr_store_open(const char *state_dir, GError **error)
{
  g_autoptr(DrStore) store = g_new0(DrStore, 1);

  g_mutex_init(&store->lock);
  store->path = g_build_filename(state_dir, "drover.db", NULL);
  if (!dr_mkdir(state_dir, 0700, error))
    return NULL;
  make_private(store->path);
  if (sqlite3_open_v2(store->path, &store->db,
                      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX,
                      NULL) != SQLITE_OK) {
    fail(store, "open the database", error);
    return NULL;
  }
  if (!set_up(store, error)) {
    if (sqlite3_errcode(store->db) == SQLITE_BUSY && error && *error) {
      g_clear_error(error);
      dr_error_set(error, DR_ERROR_EXISTS, "another droverd uses the state file '%s'", store->path);
      dr_error_remedy(error, "stop it, or give this one its own --run-dir and --state-dir");
    }
    return NULL;
  }
  return g_steal_pointer(&store);
}

void
dr_store_relax(DrStore *store)
{
  sqlite3_exec(store->db, "PRAGMA synchronous=OFF", NULL, NULL, NULL); /* in vain, it is only slower */
}

void
dr_store_close(DrStore *store)
{
  if (!store)
    return;
  sqlite3_close_v2(store->db);
  g_mutex_clear(&store->lock);
  g_free(store->path);
  g_free(store);
}

gboolean
dr_store_put_vm(DrStore *store, const char *name, JsonObject *record, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autofree char *text = dr_json_print_object(record, FALSE);
  g_autofree char *doing = g_strdup_printf("write VM '%s'", name);

  return run(store, error, doing, "INSERT OR REPLACE INTO vms (name, record) VALUES (?, ?)", "ss", name,
             text);
}

gboolean
dr_store_drop_vm(DrStore *store, const char *name, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autofree char *doing = g_strdup_printf("drop VM '%s'", name);

  return run(store, error, doing, "DELETE FROM vms WHERE name = ?", "s", name) &&
         run(store, error, doing, "DELETE FROM snapshots WHERE vm = ?", "s", name) &&
         run(store, error, doing, "DELETE FROM backups WHERE vm = ?", "s", name);
}

static JsonObject *
column_object(DrStmt *stmt, int column, GError **error)
{
  const char *text = (const char *)sqlite3_column_text(stmt, column);

  return dr_json_parse_object(text ? text : "{}", -1, JSON_MAX, error);
}

JsonObject *
dr_store_load_vms(DrStore *store, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autoptr(JsonObject) all = json_object_new();
  g_autoptr(DrStmt) stmt =
      query(store, error, "read the VMs", "SELECT name, record FROM vms ORDER BY name", "");
  int code = SQLITE_DONE;

  while (stmt && (code = sqlite3_step(stmt)) == SQLITE_ROW) {
    JsonObject *record = column_object(stmt, 1, error);

    if (!record) {
      g_prefix_error(error, "cannot read the record of VM '%s' in '%s': ", sqlite3_column_text(stmt, 0),
                     store->path);
      dr_error_remedy(error,
                      "put a copy of the file back, or drop the record: sqlite3 %s \"DELETE FROM vms WHERE "
                      "name = '%s'\"; "
                      "a VM runs on without it, and drover adopt takes it up again",
                      store->path, sqlite3_column_text(stmt, 0));
      return NULL;
    }
    json_object_set_object_member(all, (const char *)sqlite3_column_text(stmt, 0), record);
  }
  if (!stmt)
    return NULL;
  if (code != SQLITE_DONE) {
    fail(store, "read the VMs", error);
    return NULL;
  }
  return g_steal_pointer(&all);
}

gboolean
dr_store_put_snapshot(DrStore *store, const char *vm, const char *name, JsonObject *record, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autofree char *text = dr_json_print_object(record, FALSE);
  g_autofree char *doing = g_strdup_printf("write snapshot '%s' of VM '%s'", name, vm);

  return run(store, error, doing,
             "INSERT INTO snapshots (vm, name, record, created_ms) VALUES (?, ?, ?, ?) "
             "ON CONFLICT (vm, name) DO UPDATE SET record = excluded.record",
             "sssi", vm, name, text, dr_json_int(record, "created_ms", g_get_real_time() / 1000));
}

gboolean
dr_store_drop_snapshot(DrStore *store, const char *vm, const char *name, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autofree char *doing = g_strdup_printf("drop snapshot '%s' of VM '%s'", name, vm);

  return run(store, error, doing, "DELETE FROM snapshots WHERE vm = ? AND name = ?", "ss", vm, name);
}

JsonArray *
dr_store_load_snapshots(DrStore *store, const char *vm, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autoptr(JsonArray) all = json_array_new();
  g_autoptr(DrStmt) stmt =
      query(store, error, "read the snapshots",
            "SELECT name, record FROM snapshots WHERE vm = ? ORDER BY created_ms, rowid", "s", vm);
  int code = SQLITE_DONE;

  while (stmt && (code = sqlite3_step(stmt)) == SQLITE_ROW) {
    JsonObject *record = column_object(stmt, 1, error);

    if (!record)
      return NULL;
    json_object_set_string_member(record, "name", (const char *)sqlite3_column_text(stmt, 0));
    json_array_add_object_element(all, record);
  }
  if (stmt && code != SQLITE_DONE)
    fail(store, "read the snapshots", error);
  return stmt && code == SQLITE_DONE ? g_steal_pointer(&all) : NULL;
}

gboolean
dr_store_put_backup(DrStore *store, const char *vm, JsonObject *record, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  const char *bitmap = dr_json_str(record, "bitmap", ""), *disk = dr_json_str(record, "disk", "");
  g_autofree char *text = dr_json_print_object(record, FALSE);
  g_autofree char *doing = g_strdup_printf("write the backup of disk '%s' of VM '%s'", disk, vm);

  return run(store, error, doing,
             "INSERT OR REPLACE INTO backups (vm, bitmap, disk, record) VALUES (?, ?, ?, ?)", "ssss", vm,
             bitmap, disk, text);
}

gboolean
dr_store_drop_backup(DrStore *store, const char *vm, const char *bitmap, const char *disk, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autofree char *doing = g_strdup_printf("drop the backup of disk '%s' of VM '%s'", disk, vm);

  return run(store, error, doing, "DELETE FROM backups WHERE vm = ? AND bitmap = ? AND disk = ?", "sss", vm,
             bitmap, disk);
}

gboolean
dr_store_drop_backups(DrStore *store, const char *vm, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);

  return run(store, error, "drop the backups of a VM", "DELETE FROM backups WHERE vm = ?", "s", vm);
}

JsonArray *
dr_store_load_backups(DrStore *store, const char *vm, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autoptr(JsonArray) all = json_array_new();
  g_autoptr(DrStmt) stmt =
      query(store, error, "read the backups", "SELECT record FROM backups WHERE vm = ?", "s", vm);
  int code = SQLITE_DONE;

  while (stmt && (code = sqlite3_step(stmt)) == SQLITE_ROW) {
    JsonObject *record = column_object(stmt, 0, error);

    if (!record)
      return NULL;
    json_array_add_object_element(all, record);
  }
  if (stmt && code != SQLITE_DONE)
    fail(store, "read the backups", error);
  return stmt && code == SQLITE_DONE ? g_steal_pointer(&all) : NULL;
}

void
dr_job_row_free(DrJobRow *row)
{
  if (!row)
    return;
  g_free(row->kind);
  g_free(row->vm);
  g_free(row->state);
  g_free(row->stage);
  g_clear_pointer(&row->record, json_object_unref);
  g_free(row);
}

gint64
dr_store_add_job(DrStore *store, const char *kind, const char *vm, JsonObject *record, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autofree char *text = dr_json_print_object(record, FALSE);

  if (!run(store, error, "write a job",
           "INSERT INTO jobs (kind, vm, state, stage, record, created_ms) VALUES (?, ?, 'queued', 'queued', "
           "?, ?)",
           "sssi", kind, vm, text, g_get_real_time() / 1000))
    return 0;
  return sqlite3_last_insert_rowid(store->db);
}

gboolean
dr_store_put_job(DrStore *store, gint64 id, const char *state, const char *stage, JsonObject *record,
                 GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autofree char *text = dr_json_print_object(record, FALSE);

  return run(store, error, "write a job", "UPDATE jobs SET state = ?, stage = ?, record = ? WHERE id = ?",
             "sssi", state, stage, text, id);
}

static DrJobRow *
row_of(DrStmt *stmt, GError **error)
{
  g_autoptr(DrJobRow) row = g_new0(DrJobRow, 1);

  row->id = sqlite3_column_int64(stmt, 0);
  row->kind = g_strdup((const char *)sqlite3_column_text(stmt, 1));
  row->vm = g_strdup((const char *)sqlite3_column_text(stmt, 2));
  row->state = g_strdup((const char *)sqlite3_column_text(stmt, 3));
  row->stage = g_strdup((const char *)sqlite3_column_text(stmt, 4));
  row->created_ms = sqlite3_column_int64(stmt, 6);
  row->record = column_object(stmt, 5, error);
  return row->record ? g_steal_pointer(&row) : NULL;
}

#define JOB_COLUMNS "SELECT id, kind, vm, state, stage, record, created_ms FROM jobs "

DrJobRow *
dr_store_get_job(DrStore *store, gint64 id, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autoptr(DrStmt) stmt = query(store, error, "read a job", JOB_COLUMNS "WHERE id = ?", "i", id);

  if (!stmt)
    return NULL;
  if (sqlite3_step(stmt) == SQLITE_ROW)
    return row_of(stmt, error);
  dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no job %" G_GINT64_FORMAT, id);
  dr_error_remedy(error, "drover jobs lists them");
  return NULL;
}

GPtrArray *
dr_store_list_jobs(DrStore *store, gboolean unfinished, guint limit, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func((GDestroyNotify)dr_job_row_free);
  g_autoptr(DrStmt) stmt =
      query(store, error, "read the jobs",
            JOB_COLUMNS "WHERE ? = 0 OR state IN ('queued', 'running') ORDER BY id DESC LIMIT ?", "ii",
            (gint64)unfinished, (gint64)limit);

  int code = SQLITE_DONE;

  if (!stmt)
    return NULL;
  while ((code = sqlite3_step(stmt)) == SQLITE_ROW) {
    DrJobRow *row = row_of(stmt, error);

    if (!row)
      return NULL;
    g_ptr_array_add(rows, row);
  }
  if (code == SQLITE_DONE)
    return g_steal_pointer(&rows);
  fail(store, "read the jobs", error);
  return NULL;
}

/* Jobs are dropped at droverd's start only: what is large goes before. */
gboolean
dr_store_put_report(DrStore *store, gint64 job, const char *report, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);

  return run(store, error, "write what a job has recorded",
             "INSERT OR REPLACE INTO reports (job, report) VALUES (?, ?)", "is", job, report) &&
         run(store, error, "drop old records of jobs", "DELETE FROM reports WHERE job <= ?", "i",
             job - KEPT_JOBS);
}

gboolean
dr_store_get_report(DrStore *store, gint64 job, JsonObject **ret_report, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autoptr(DrStmt) stmt = query(store, error, "read what a job has recorded",
                                 "SELECT report FROM reports WHERE job = ?", "i", job);
  int code;

  *ret_report = NULL;
  if (!stmt)
    return FALSE;
  code = sqlite3_step(stmt);
  if (code == SQLITE_ROW)
    return (*ret_report = column_object(stmt, 0, error)) != NULL;
  return code == SQLITE_DONE || fail(store, "read what a job has recorded", error);
}

void
dr_job_times_free(DrJobTimes *times)
{
  g_free(times->kind);
  g_free(times->state);
  g_free(times);
}

static double
column_ms(DrStmt *stmt, int column)
{
  return sqlite3_column_type(stmt, column) == SQLITE_NULL ? -1 : sqlite3_column_double(stmt, column);
}

static DrJobTimes *
times_of(DrStmt *stmt)
{
  DrJobTimes *times = g_new0(DrJobTimes, 1);

  times->kind = g_strdup((const char *)sqlite3_column_text(stmt, 0));
  times->state = g_strdup((const char *)sqlite3_column_text(stmt, 1));
  times->pause_ms = column_ms(stmt, 2);
  times->total_ms = column_ms(stmt, 3);
  return times;
}

/* A snapshot's pause is that of its memory. */
#define JOB_TIMES                                                                                            \
  "SELECT kind, state, coalesce(json_extract(record, '$.result.pause_ms'), "                                 \
  "json_extract(record, '$.result.memory.pause_ms')), "                                                      \
  "coalesce(json_extract(record, '$.result.total_ms'), "                                                     \
  "json_extract(record, '$.ended_ms') - json_extract(record, '$.started_ms')) "                              \
  "FROM jobs WHERE ? IS NULL OR kind = ? ORDER BY kind"

GPtrArray *
dr_store_job_times(DrStore *store, const char *kind, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func((GDestroyNotify)dr_job_times_free);
  g_autoptr(DrStmt) stmt = query(store, error, "read the jobs", JOB_TIMES, "ss", kind, kind);
  int code = SQLITE_DONE;

  if (!stmt)
    return NULL;
  while ((code = sqlite3_step(stmt)) == SQLITE_ROW)
    g_ptr_array_add(all, times_of(stmt));
  if (code == SQLITE_DONE)
    return g_steal_pointer(&all);
  fail(store, "read the jobs", error);
  return NULL;
}

gboolean
dr_store_journal(DrStore *store, gint64 job, const char *stage, JsonObject *note, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autofree char *text = note ? dr_json_print_object(note, FALSE) : g_strdup("{}");

  return run(store, error, "write the journal",
             "INSERT INTO journal (job, seq, stage, note, time_ms) VALUES "
             "(?, (SELECT coalesce(max(seq), 0) + 1 FROM journal WHERE job = ?), ?, ?, ?)",
             "iissi", job, job, stage, text, g_get_real_time() / 1000);
}

JsonArray *
dr_store_load_journal(DrStore *store, gint64 job, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autoptr(JsonArray) stages = json_array_new();
  g_autoptr(DrStmt) stmt =
      query(store, error, "read the journal",
            "SELECT stage, note, time_ms FROM journal WHERE job = ? ORDER BY seq", "i", job);

  int code = SQLITE_DONE;

  if (!stmt)
    return NULL;
  while ((code = sqlite3_step(stmt)) == SQLITE_ROW) {
    JsonObject *note = column_object(stmt, 1, error);
    JsonObject *entry;

    if (!note) {
      g_prefix_error(error, "cannot read the journal in '%s': ", store->path);
      return NULL;
    }
    entry = json_object_new();
    json_object_set_string_member(entry, "stage", (const char *)sqlite3_column_text(stmt, 0));
    json_object_set_object_member(entry, "note", note);
    json_object_set_int_member(entry, "time_ms", sqlite3_column_int64(stmt, 2));
    json_array_add_object_element(stages, entry);
  }
  if (code == SQLITE_DONE)
    return g_steal_pointer(&stages);
  fail(store, "read the journal", error);
  return NULL;
}

/* --- Moves --- */

gboolean
dr_store_put_move(DrStore *store, const char *id, const char *vm, const char *state, gint64 resumed_us,
                  GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);

  return run(store, error, "write the end of a move",
             "INSERT INTO moves (id, vm, state, resumed_us, time_ms) VALUES (?, ?, ?, ?, ?) "
             "ON CONFLICT (id) DO NOTHING",
             "sssii", id, vm, state, resumed_us, g_get_real_time() / 1000);
}

gboolean
dr_store_get_move(DrStore *store, const char *id, char **ret_state, gint64 *ret_resumed_us, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autoptr(DrStmt) stmt = query(store, error, "read the end of a move",
                                 "SELECT state, resumed_us FROM moves WHERE id = ?", "s", id);
  int code;

  *ret_state = NULL;
  *ret_resumed_us = 0;
  if (!stmt)
    return FALSE;
  code = sqlite3_step(stmt);
  if (code == SQLITE_ROW) {
    *ret_state = g_strdup((const char *)sqlite3_column_text(stmt, 0));
    *ret_resumed_us = sqlite3_column_int64(stmt, 1);
  }
  return code == SQLITE_ROW || code == SQLITE_DONE || fail(store, "read the end of a move", error);
}

/* --- Peers --- */

void
dr_peer_row_free(DrPeerRow *row)
{
  if (!row)
    return;
  g_free(row->name);
  g_free(row->host);
  g_free(row->pin);
  g_free(row);
}

static DrPeerRow *
peer_of(DrStmt *stmt)
{
  DrPeerRow *row = g_new0(DrPeerRow, 1);

  row->name = g_strdup((const char *)sqlite3_column_text(stmt, 0));
  row->host = g_strdup((const char *)sqlite3_column_text(stmt, 1));
  row->port = (guint16)sqlite3_column_int(stmt, 2);
  row->pin = g_strdup((const char *)sqlite3_column_text(stmt, 3));
  row->added_ms = sqlite3_column_int64(stmt, 4);
  return row;
}

#define PEER_COLUMNS "SELECT name, host, port, pin, added_ms FROM peers "

static GPtrArray *
list_peers(DrStore *store, GError **error)
{
  g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func((GDestroyNotify)dr_peer_row_free);
  g_autoptr(DrStmt) stmt = query(store, error, "read the peers", PEER_COLUMNS "ORDER BY name", "");
  int code = SQLITE_DONE;

  while (stmt && (code = sqlite3_step(stmt)) == SQLITE_ROW)
    g_ptr_array_add(rows, peer_of(stmt));
  if (!stmt || (code != SQLITE_DONE && !fail(store, "read the peers", error)))
    return NULL;
  return g_steal_pointer(&rows);
}

GPtrArray *
dr_store_list_peers(DrStore *store, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);

  return list_peers(store, error);
}

static gboolean
is_free(GPtrArray *peers, const DrPeerRow *row, guint max, GError **error)
{
  for (guint i = 0; i < peers->len; i++) {
    const DrPeerRow *other = peers->pdata[i];

    if (g_str_equal(other->name, row->name))
      return dr_error_set(error, DR_ERROR_EXISTS, "there is a peer '%s' already", row->name);
    if (g_str_equal(other->host, row->host) && other->port == row->port)
      return dr_error_set(error, DR_ERROR_EXISTS, "port %u of '%s' is the peer '%s' already", row->port,
                          row->host, other->name);
  }
  return peers->len < max || dr_error_set(error, DR_ERROR_BUSY, "drover keeps at most %u peers", max);
}

gboolean
dr_store_add_peer(DrStore *store, const DrPeerRow *row, guint max, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autoptr(GPtrArray) peers = list_peers(store, error);

  return peers && is_free(peers, row, max, error) &&
         run(store, error, "write a peer",
             "INSERT INTO peers (name, host, port, pin, added_ms) VALUES (?, ?, ?, ?, ?)", "ssisi", row->name,
             row->host, (gint64)row->port, row->pin, row->added_ms);
}

static gboolean
no_peer(const char *name, GError **error)
{
  dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no peer called '%.80s'", name);
  return dr_error_remedy(error, "drover peer list shows them");
}

gboolean
dr_store_drop_peer(DrStore *store, const char *name, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);

  if (!run(store, error, "drop a peer", "DELETE FROM peers WHERE name = ?", "s", name))
    return FALSE;
  return sqlite3_changes(store->db) > 0 || no_peer(name, error);
}

DrPeerRow *
dr_store_get_peer(DrStore *store, const char *name, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&store->lock);
  g_autoptr(DrStmt) stmt = query(store, error, "read a peer", PEER_COLUMNS "WHERE name = ?", "s", name);
  int code = stmt ? sqlite3_step(stmt) : SQLITE_ERROR;

  if (code == SQLITE_ROW)
    return peer_of(stmt);
  if (code == SQLITE_DONE)
    no_peer(name, error);
  else if (stmt)
    fail(store, "read a peer", error);
  return NULL;
}
