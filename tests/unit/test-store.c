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

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
#define ADD(name, func) g_test_add("/store/" name, Fixture, NULL, set_up, func, tear_down)
  ADD("vms", test_vms);
  ADD("jobs", test_jobs);
  ADD("journal", test_journal);
  ADD("second-daemon", test_second_daemon);
  ADD("newer-format", test_newer_format);
  ADD("no-database", test_no_database);
  return g_test_run();
}
