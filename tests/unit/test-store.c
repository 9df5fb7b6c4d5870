/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The state file: what is written is there again, and what is wrong with it is said. */
#include "base/error.h"
#include "store/store.h"

#include <glib/gstdio.h>
#include <sqlite3.h>
#include <string.h>

typedef struct {
  char *dir;
  DrStore *store;
} Fixture;

static void
set_up(Fixture *f, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;

  f->dir = g_dir_make_tmp("drover-store-XXXXXX", NULL);
  f->store = dr_store_open(f->dir, &error);
  g_assert_no_error(error);
}

static void
tear_down(Fixture *f, gconstpointer unused)
{
  static const char *const files[] = { "drover.db", "drover.db-wal", "drover.db-shm" };

  dr_store_close(f->store);
  for (guint i = 0; i < G_N_ELEMENTS(files); i++) {
    g_autofree char *path = g_build_filename(f->dir, files[i], NULL);

    g_unlink(path);
  }
  g_assert_cmpint(g_rmdir(f->dir), ==, 0);
  g_free(f->dir);
}

static void
reopen(Fixture *f)
{
  g_autoptr(GError) error = NULL;

  dr_store_close(f->store);
  f->store = dr_store_open(f->dir, &error);
  g_assert_no_error(error);
}

static void
test_vms(Fixture *f, gconstpointer unused)
{
  g_autoptr(JsonObject) record = dr_json("{'pid': <%x>, 'cwd': <%s>}", (gint64)42, "/ä b");
  g_autoptr(JsonObject) loaded = NULL;
  g_autoptr(JsonObject) empty = NULL;

  g_assert_true(dr_store_put_vm(f->store, "a", record, NULL));
  g_assert_true(dr_store_put_vm(f->store, "a", record, NULL));
  g_assert_true(dr_store_put_vm(f->store, "b", record, NULL));
  reopen(f);
  loaded = dr_store_load_vms(f->store, NULL);
  g_assert_cmpuint(json_object_get_size(loaded), ==, 2);
  g_assert_cmpint(dr_json_int(loaded, "a.pid", 0), ==, 42);
  g_assert_cmpstr(dr_json_str(loaded, "a.cwd", NULL), ==, "/ä b");
  g_assert_true(dr_store_drop_vm(f->store, "a", NULL));
  g_assert_true(dr_store_drop_vm(f->store, "b", NULL));
  empty = dr_store_load_vms(f->store, NULL);
  g_assert_cmpuint(json_object_get_size(empty), ==, 0);
}

static void
test_jobs(Fixture *f, gconstpointer unused)
{
  g_autoptr(JsonObject) record = dr_json("{'x': <%x>}", (gint64)1);
  gint64 first = dr_store_add_job(f->store, "upgrade", "a", record, NULL);
  gint64 second = dr_store_add_job(f->store, "upgrade", "b", record, NULL);
  g_autoptr(GPtrArray) open = NULL;
  g_autoptr(DrJobRow) row = NULL;
  g_autoptr(GError) error = NULL;

  g_assert_cmpint(first, >, 0);
  g_assert_cmpint(second, >, first);
  g_assert_true(dr_store_put_job(f->store, first, "succeeded", "commit", record, NULL));
  reopen(f);
  open = dr_store_list_jobs(f->store, TRUE, 10, NULL);
  g_assert_cmpuint(open->len, ==, 1);
  g_assert_cmpint(((DrJobRow *)open->pdata[0])->id, ==, second);
  row = dr_store_get_job(f->store, first, NULL);
  g_assert_cmpstr(row->state, ==, "succeeded");
  g_assert_cmpstr(row->stage, ==, "commit");
  g_assert_null(dr_store_get_job(f->store, 999, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_NOT_FOUND);
}

/* A report goes with its job, or when a thousand newer jobs have one. */
static void
test_reports(Fixture *f, gconstpointer unused)
{
  g_autoptr(JsonObject) record = json_object_new();
  gint64 first = dr_store_add_job(f->store, "upgrade", "a", record, NULL);
  gint64 second = dr_store_add_job(f->store, "upgrade", "a", record, NULL);
  g_autoptr(JsonObject) report = NULL, none = NULL;
  g_autoptr(GError) error = NULL;

  g_assert_true(dr_store_put_report(f->store, first, "{\"a\":1}", NULL));
  g_assert_true(dr_store_put_report(f->store, first, "{\"a\":2}", NULL));
  reopen(f);
  g_assert_true(dr_store_get_report(f->store, first, &report, NULL));
  g_assert_cmpint(dr_json_int(report, "a", 0), ==, 2);
  g_assert_true(dr_store_get_report(f->store, second, &none, NULL));
  g_assert_null(none);
  g_assert_false(dr_store_put_report(f->store, 999, "{}", &error)); /* of no job */
  g_assert_error(error, DR_ERROR, DR_ERROR_IO);
  for (guint i = 0; i < 999; i++)
    second = dr_store_add_job(f->store, "upgrade", "a", record, NULL);
  g_assert_true(dr_store_put_report(f->store, second, "{}", NULL));
  g_assert_true(dr_store_get_report(f->store, first, &none, NULL));
  g_assert_null(none);
}

static void
add_ended(Fixture *f, const char *kind, const char *state, const char *text)
{
  g_autoptr(JsonObject) record = dr_json_parse_object(text, -1, 1000, NULL);
  gint64 id = dr_store_add_job(f->store, kind, "a", record, NULL);

  g_assert_true(dr_store_put_job(f->store, id, state, "commit", record, NULL));
}

static void
test_job_times(Fixture *f, gconstpointer unused)
{
  g_autoptr(GPtrArray) all = NULL, copies = NULL;
  const DrJobTimes *times;

  add_ended(f, "upgrade", "succeeded", "{\"result\":{\"pause_ms\":2.5,\"total_ms\":80}}");
  add_ended(f, "upgrade", "failed", "{\"started_ms\":1000,\"ended_ms\":1700}");
  add_ended(f, "disk-copy", "succeeded", "{\"result\":{\"pause_ms\":null}}");
  add_ended(f, "disk-snapshot", "succeeded", "{\"result\":{\"memory\":{\"pause_ms\":7}}}");
  all = dr_store_job_times(f->store, NULL, NULL);
  g_assert_cmpuint(all->len, ==, 4);
  copies = dr_store_job_times(f->store, "disk-copy", NULL);
  g_assert_cmpuint(copies->len, ==, 1);
  times = copies->pdata[0];
  g_assert_cmpfloat(times->pause_ms, ==, -1);
  g_assert_cmpfloat(times->total_ms, ==, -1);
  times = all->pdata[1]; /* by kind */
  g_assert_cmpfloat(times->pause_ms, ==, 7);
  times = all->pdata[2];
  g_assert_cmpfloat(times->pause_ms, ==, 2.5);
  g_assert_cmpfloat(times->total_ms, ==, 80);
  times = all->pdata[3];
  g_assert_cmpstr(times->state, ==, "failed");
  g_assert_cmpfloat(times->total_ms, ==, 700);
}

static void
test_journal(Fixture *f, gconstpointer unused)
{
  g_autoptr(JsonObject) note = dr_json("{'pid': <%x>}", (gint64)7);
  gint64 job = dr_store_add_job(f->store, "upgrade", "a", note, NULL);
  g_autoptr(JsonArray) journal = NULL;

  g_assert_true(dr_store_journal(f->store, job, "start", note, NULL));
  g_assert_true(dr_store_journal(f->store, job, "transfer", NULL, NULL));
  reopen(f);
  journal = dr_store_load_journal(f->store, job, NULL);
  g_assert_cmpuint(json_array_get_length(journal), ==, 2);
  g_assert_cmpstr(dr_json_str(json_array_get_object_element(journal, 0), "stage", NULL), ==, "start");
  g_assert_cmpint(dr_json_int(json_array_get_object_element(journal, 0), "note.pid", 0), ==, 7);
  g_assert_cmpstr(dr_json_str(json_array_get_object_element(journal, 1), "stage", NULL), ==, "transfer");
}

static void
test_second_daemon(Fixture *f, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(DrStore) second = dr_store_open(f->dir, &error);

  g_assert_null(second);
  g_assert_error(error, DR_ERROR, DR_ERROR_EXISTS);
}

static void
test_newer_format(Fixture *f, gconstpointer unused)
{
  g_autofree char *path = g_build_filename(f->dir, "drover.db", NULL);
  g_autoptr(GError) error = NULL;
  sqlite3 *db;

  g_clear_pointer(&f->store, dr_store_close);
  g_assert_cmpint(sqlite3_open(path, &db), ==, SQLITE_OK);
  g_assert_cmpint(sqlite3_exec(db, "PRAGMA user_version=99", NULL, NULL, NULL), ==, SQLITE_OK);
  sqlite3_close(db);
  g_assert_null(dr_store_open(f->dir, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_UNSUPPORTED);
}

static void
test_no_database(Fixture *f, gconstpointer unused)
{
  g_autofree char *path = g_build_filename(f->dir, "drover.db", NULL);
  g_autoptr(GError) error = NULL;

  g_clear_pointer(&f->store, dr_store_close);
  g_assert_true(g_file_set_contents(
      path, "this is no database at all, however long it may be ................", -1, NULL));
  g_assert_null(dr_store_open(f->dir, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_IO);
  g_assert_nonnull(strstr(error->message, path));
}

/* --- Peers --- */

static gboolean
add_peer(Fixture *f, const char *name, const char *host, guint16 port, const char *pin, GError **error)
{
  const DrPeerRow row = {
    .name = (char *)name, .host = (char *)host, .port = port, .pin = (char *)pin, .added_ms = 1700000000000
  };

  return dr_store_add_peer(f->store, &row, /* max= */ 3, error);
}

static void
test_peers(Fixture *f, gconstpointer unused)
{
  g_autoptr(DrPeerRow) pinned = NULL;
  g_autoptr(DrPeerRow) plain = NULL;
  g_autoptr(GPtrArray) all = NULL;
  g_autoptr(GPtrArray) none = NULL;

  g_assert_true(add_peer(f, "b", "host2", 7413, NULL, NULL));
  g_assert_true(add_peer(f, "a", "2001:db8::7", 65535, "ab", NULL));
  reopen(f);
  all = dr_store_list_peers(f->store, NULL);
  g_assert_cmpuint(all->len, ==, 2);
  g_assert_cmpstr(((DrPeerRow *)all->pdata[0])->name, ==, "a");
  pinned = dr_store_get_peer(f->store, "a", NULL);
  g_assert_cmpstr(pinned->host, ==, "2001:db8::7");
  g_assert_cmpuint(pinned->port, ==, 65535);
  g_assert_cmpstr(pinned->pin, ==, "ab");
  g_assert_cmpint(pinned->added_ms, ==, 1700000000000);
  plain = dr_store_get_peer(f->store, "b", NULL);
  g_assert_null(plain->pin);
  g_assert_true(dr_store_drop_peer(f->store, "a", NULL));
  g_assert_true(dr_store_drop_peer(f->store, "b", NULL));
  reopen(f);
  none = dr_store_list_peers(f->store, NULL);
  g_assert_cmpuint(none->len, ==, 0);
}

static void
assert_not_added(Fixture *f, const char *name, const char *host, DrErrorCode code, const char *part)
{
  g_autoptr(GError) error = NULL;

  g_assert_false(add_peer(f, name, host, 7413, NULL, &error));
  g_assert_error(error, DR_ERROR, (int)code);
  g_assert_nonnull(strstr(error->message, part));
}

static void
test_peers_refused(Fixture *f, gconstpointer unused)
{
  g_autoptr(GError) unknown = NULL;
  g_autoptr(GError) missing = NULL;

  g_assert_true(add_peer(f, "a", "host2", 7413, NULL, NULL));
  assert_not_added(f, "a", "host3", DR_ERROR_EXISTS, "there is a peer 'a' already");
  assert_not_added(f, "b", "host2", DR_ERROR_EXISTS, "is the peer 'a' already");
  g_assert_true(add_peer(f, "b", "host2", 7414, NULL, NULL));
  g_assert_true(add_peer(f, "c", "host3", 7413, NULL, NULL));
  assert_not_added(f, "d", "host4", DR_ERROR_BUSY, "at most 3 peers");
  g_assert_null(dr_store_get_peer(f->store, "x' OR '1'='1", &unknown));
  g_assert_error(unknown, DR_ERROR, DR_ERROR_NOT_FOUND);
  g_assert_false(dr_store_drop_peer(f->store, "x", &missing));
  g_assert_error(missing, DR_ERROR, DR_ERROR_NOT_FOUND);
}

/* A file of before there were peers gets their table. */
static void
test_older_file(Fixture *f, gconstpointer unused)
{
  g_autofree char *path = g_build_filename(f->dir, "drover.db", NULL);
  sqlite3 *db;

  g_clear_pointer(&f->store, dr_store_close);
  g_assert_cmpint(sqlite3_open(path, &db), ==, SQLITE_OK);
  g_assert_cmpint(sqlite3_exec(db, "DROP TABLE peers", NULL, NULL, NULL), ==, SQLITE_OK);
  sqlite3_close(db);
  reopen(f);
  g_assert_true(add_peer(f, "a", "host2", 7413, NULL, NULL));
}

static JsonObject *
backup_of(const char *bitmap, const char *disk, const char *file)
{
  return dr_json("{'bitmap': <%s>, 'disk': <%s>, 'file': <%s>}", bitmap, disk, file);
}

static guint
count_backups(Fixture *f, const char *vm)
{
  g_autoptr(JsonArray) all = dr_store_load_backups(f->store, vm, NULL);

  return json_array_get_length(all);
}

static void
test_backups(Fixture *f, gconstpointer unused)
{
  g_autoptr(JsonObject) first = backup_of("b", "d0", "/1"), second = backup_of("b", "d0", "/2"),
                        other = backup_of("b", "d1", "/3");
  g_autoptr(JsonArray) all = NULL;

  g_assert_true(dr_store_put_backup(f->store, "vm", first, NULL));
  g_assert_true(dr_store_put_backup(f->store, "vm", second, NULL));
  reopen(f);
  all = dr_store_load_backups(f->store, "vm", NULL);
  g_assert_cmpuint(json_array_get_length(all), ==, 1);
  g_assert_cmpstr(dr_json_str(json_array_get_object_element(all, 0), "file", ""), ==, "/2");
  g_assert_true(dr_store_put_backup(f->store, "vm", other, NULL));
  g_assert_true(dr_store_put_backup(f->store, "other", first, NULL));
  g_assert_true(dr_store_drop_backup(f->store, "vm", "b", "d0", NULL));
  g_assert_cmpuint(count_backups(f, "vm"), ==, 1);
  g_assert_true(dr_store_drop_vm(f->store, "vm", NULL));
  g_assert_cmpuint(count_backups(f, "vm"), ==, 0);
  g_assert_cmpuint(count_backups(f, "other"), ==, 1);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
#define ADD(name, func) g_test_add("/store/" name, Fixture, NULL, set_up, func, tear_down)
  ADD("vms", test_vms);
  ADD("jobs", test_jobs);
  ADD("reports", test_reports);
  ADD("job-times", test_job_times);
  ADD("journal", test_journal);
  ADD("second-daemon", test_second_daemon);
  ADD("newer-format", test_newer_format);
  ADD("no-database", test_no_database);
  ADD("backups", test_backups);
  ADD("peers", test_peers);
  ADD("peers-refused", test_peers_refused);
  ADD("older-file", test_older_file);
  return g_test_run();
}
