/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where is the guest? One function answers for an error, a cancel and a crash alike.
 *
 * What makes the answer safe:
 *  - The other host runs the guest only after it was told to ("accept"), and before that is said the mark is written here (or,
 *    for post-copy, the stage "postcopy" journalled). Without either the guest is this host's, whatever the other one says.
 *  - With the mark this host's QEMU is not resumed before the other host has said that it has discarded its own for good.
 *    While nobody can ask it, the guest is held, and said to be.
 *  - Before post-copy is ordered the source has all of the guest: it may take the order back by its word alone ("never"), as the
 *    other QEMU cannot have run on half a stream.
 *  - The mark is a file in the run directory: it survives droverd. It need not survive the host, with which QEMU ends.
 */
#include "base/error.h"
#include "base/fd.h"
#include "job/migrate-internal.h"
#include "job/migrate-lend.h"
#include "job/migrate-storage.h"
#include "job/migration.h"
#include "job/upgrade-internal.h"

#include <errno.h>
#include <stdio.h>

#define ASK_MS 35000 /* "accept" waits for the guest to run */
#define AGAIN_MS 500
#define TELL_MS 3000
#define RESUME_MS 30000
#define CANCEL_MS 20000

gboolean
dr_migrate_is_decided(const Migrate *m)
{
  return m->decided || (m->mark_path && g_file_test(m->mark_path, G_FILE_TEST_EXISTS));
}

static char *
mark_in_waiting(const Migrate *m)
{
  return g_strconcat(m->mark_path, ".new", NULL);
}

gboolean
dr_migrate_prepare_mark(Migrate *m, GError **error)
{
  g_autofree char *path = mark_in_waiting(m);

  return dr_file_write(path, m->move, error);
}

gboolean
dr_migrate_decide(Migrate *m, GError **error)
{
  g_autofree char *path = mark_in_waiting(m);

  m->decided = rename(path, m->mark_path) == 0 || dr_file_write(m->mark_path, m->move, error);
  return m->decided;
}

void
dr_migrate_remove_mark_in_waiting(Migrate *m)
{
  g_autofree char *path = mark_in_waiting(m);

  unlink(path);
}

static gboolean
take_back(Migrate *m)
{
  if (m->mark_path && unlink(m->mark_path) < 0 && errno != ENOENT)
    return FALSE;
  m->decided = FALSE;
  return TRUE;
}

gboolean
dr_migrate_note_reply(Migrate *m, JsonObject *reply)
{
  gint64 resumed = dr_json_int(reply, "resumed_us", 0);

  if (resumed)
    m->resumed_us = resumed;
  m->heard_us = dr_json_int(reply, "heard_us", m->heard_us);
  m->loaded_us = dr_json_int(reply, "loaded_us", m->loaded_us);
  m->told_us = dr_json_int(reply, "told_us", m->told_us);
  return g_str_equal(dr_json_str(reply, "state", ""), "arrived");
}

/* --- This host --- */

static gboolean
source_ended(Migrate *m)
{
  return !dr_proc_alive(&m->source_id);
}

static gboolean
connect_source(Migrate *m)
{
  if (m->source && dr_qmp_closed(m->source))
    g_clear_pointer(&m->source, dr_qmp_free);
  if (!m->source)
    m->source = dr_qmp_connect(m->source_qmp, FALSE, dr_deadline_in(5000), NULL);
  return m->source != NULL;
}

/* Ends a migration that has not been decided. */
static void
cancel_migration(Migrate *m)
{
  DrDeadline deadline = dr_deadline_in(CANCEL_MS);
  g_autofree char *status = dr_migration_status(m->source);

  if (dr_migration_is_moving(status) && !g_str_equal(status, "cancelling"))
    dr_qmp_do(m->source, "migrate_cancel", NULL, NULL);
  while (dr_migration_is_moving(status) && !dr_deadline_passed(deadline)) {
    g_usleep(10000); /* bounded by the deadline */
    g_free(status);
    status = dr_migration_status(m->source);
  }
}

static gboolean
resume_source(Migrate *m, GError **error)
{
  DrDeadline deadline = dr_deadline_in(RESUME_MS);

  for (;;) {
    g_autofree char *state = dr_migration_run_state(m->source);
    g_autoptr(GError) last = NULL;

    if (m->was_running ? !dr_migration_waits_for_cont(state) : !g_str_equal(state, "finish-migrate"))
      return TRUE;
    if (m->was_running && dr_qmp_do(m->source, "cont", NULL, &last))
      return TRUE;
    if (dr_qmp_closed(m->source) || dr_deadline_passed(deadline)) {
      dr_error_set(error, DR_ERROR_ATTENTION, "the guest of VM '%s' is stopped (%s)%s%s", dr_vm_name(m->vm),
                   state, last ? ": " : "", last ? last->message : "");
      return dr_error_remedy(error, "resume it by hand: drover resume %s", dr_vm_name(m->vm));
    }
    g_usleep(20000); /* bounded by the deadline */
  }
}

/* --- The ends --- */

static MigrateWhere
nowhere(Migrate *m, GError **ret_reason, const char *why)
{
  g_autoptr(GError) error = NULL;

  g_clear_pointer(&m->source, dr_qmp_free);
  if (!dr_proc_kill(&m->source_id, 10000, &error))
    g_warning("VM '%s': %s", dr_vm_name(m->vm), error->message);
  g_clear_error(ret_reason);
  dr_error_set(ret_reason, DR_ERROR_ATTENTION, "the guest of VM '%s' has ended: %s", dr_vm_name(m->vm), why);
  if ((m->storage || m->storage_note || dr_migrate_lends(m)) && dr_migrate_is_decided(m))
    dr_error_remedy(
        ret_reason,
        "its disks are on %s now, and the images here are older: start it there, or copy them back",
        dr_json_str(m->request, "peer", "the other host"));
  else
    dr_error_remedy(ret_reason, "see drover show %s on both hosts and its logs, then start it again",
                    dr_vm_name(m->vm));
  return MIGRATE_NOWHERE;
}

static MigrateWhere
back_here(Migrate *m, GError **ret_reason)
{
  dr_migrate_lend_end(m);
  if (!connect_source(m) || source_ended(m))
    return source_ended(m) ? nowhere(m, ret_reason, "its QEMU ended before the other host had it")
                           : MIGRATE_HERE;
  cancel_migration(m);
  resume_source(m, ret_reason);
  dr_migration_set_capabilities(m->source, (const char *const[]){ NULL }, NULL);
  return MIGRATE_HERE;
}

/* Tells the other host that it is off; it finds out by itself, too. */
static void
tell_off(Migrate *m)
{
  g_autoptr(JsonObject) reply = dr_migrate_ask(m, "move.abort", NULL, TELL_MS, NULL);
}

/* --- Asking the other host --- */

/* Before the next try: says what is waited for, once. */
static void
wait_for_peer(Migrate *m, const GError *why)
{
  g_autofree char *text = g_strdup_printf("held until the other host says whether it runs there: %s",
                                          why ? why->message : "no answer");

  dr_upgrade_note(m->vm, text, FALSE);
  dr_vm_set_state(m->vm, "attention");
  g_usleep(AGAIN_MS *
           1000); /* each try is bounded; there is no other end than an answer or the end of droverd */
}

static MigrateWhere
arrived(Migrate *m)
{
  dr_upgrade_note(m->vm, NULL, FALSE);
  return MIGRATE_THERE;
}

/* The mark is there: only the other host knows. */
static MigrateWhere
ask_until_known(Migrate *m, GError **ret_reason)
{
  for (;;) {
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) reply = NULL;
    const char *state;

    dr_migrate_lend_tend(m); /* it may run there already */
    reply = dr_migrate_ask(m, "move.accept", NULL, ASK_MS, &error);
    state = reply ? dr_json_str(reply, "state", "") : "";
    if (g_str_equal(state, "arrived")) {
      dr_migrate_note_reply(m, reply);
      return arrived(m);
    }
    if (g_str_equal(state, "lost"))
      return nowhere(m, ret_reason, "it ran on the other host, and its QEMU there has ended");
    if (g_str_equal(state, "discarded") && take_back(m))
      return back_here(m, ret_reason);
    wait_for_peer(m, error);
  }
}

/* Pages have left the source for good. A move that was about to go into post-copy may have come to its end by pre-copy instead,
 * while the other host was asked: then the source still has all of the guest. */
static gboolean
is_split(Migrate *m, const char *status)
{
  g_autoptr(JsonObject) info = NULL;
  gint64 bytes;

  if (!g_str_equal(status, "completed"))
    return dr_migration_is_postcopy(status);
  info = dr_qmp_call_object(m->source, "query-migrate", NULL, NULL);
  bytes = info ? dr_json_int(info, "ram.postcopy-bytes", -1) : -1; /* since QEMU 7.0 */
  return bytes < 0 ? m->ordered : bytes > 0;
}

/* The source has ended. If the other QEMU has all of its state, the guest can be saved there; whether it has, only the other host
 * knows. */
static MigrateWhere
without_source(Migrate *m, GError **ret_reason)
{
  for (;;) {
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) reply = dr_migrate_ask(m, "move.status", NULL, ASK_MS, &error);

    if (reply &&
        g_str_equal(dr_json_str(reply, "state", ""), "arrived")) /* this host was rebooted meanwhile */
      return arrived(m);
    if (reply && g_str_equal(dr_json_str(reply, "state", ""), "lost")) { /* it was the other host's */
      m->decided = TRUE;
      return nowhere(m, ret_reason, "it ran on the other host, and its QEMU there has ended");
    }
    if (reply && g_str_equal(dr_json_str(reply, "migration", ""), "completed") && dr_migrate_decide(m, NULL))
      return ask_until_known(m, ret_reason);
    if (reply)
      break;
    wait_for_peer(m, error);
  }
  tell_off(m);
  return nowhere(m, ret_reason, "its QEMU ended before the other host had it");
}

/* What the source's migration has come to; waits for a QEMU that lives and does not answer. NULL: it has ended. */
static char *
status_of_source(Migrate *m)
{
  while (!source_ended(m)) {
    g_autofree char *status = connect_source(m) ? dr_migration_status(m->source) : g_strdup("unknown");
    g_autofree char *note = NULL;

    if (!g_str_equal(status, "unknown"))
      return g_steal_pointer(&status);
    note = g_strdup_printf(
        "the move waits for its QEMU here, which does not answer; if it hangs for good: kill -9 %d",
        (int)m->source_id.pid);
    dr_upgrade_note(m->vm, note, FALSE);
    dr_vm_set_state(m->vm, "attention");
    g_usleep(AGAIN_MS * 1000); /* ended by its answer or its end */
  }
  return NULL;
}

/* Before the other QEMU goes, which its requests would wait for. */
static void
drop_storage(Migrate *m)
{
  if ((m->storage || m->storage_note) && connect_source(m))
    dr_move_storage_drop(m);
}

/* No mark: the other host's QEMU has not run, and does not unless it is told to. */
static MigrateWhere
undecided(Migrate *m, const char *status, GError **ret_reason)
{
  if (g_str_equal(status, "completed") && dr_migrate_decide(m, NULL))
    return ask_until_known(m, ret_reason);
  drop_storage(m);
  tell_off(m);
  return back_here(m, ret_reason);
}

static MigrateWhere
after_postcopy(Migrate *m, GError **ret_reason)
{
  g_autofree char *status = status_of_source(m);
  g_autoptr(GError) error = NULL;

  if (!status && !m->ordered)
    return without_source(m, ret_reason);
  if (status && dr_migration_is_moving(status)) {
    cancel_migration(m);
    g_free(status);
    status = status_of_source(m);
  }
  if (!status || is_split(m, status)) {
    if (dr_migrate_finish_postcopy(m, &error))
      return arrived(m);
    g_free(status);
    status = status_of_source(m);
  }
  if (!status || is_split(m, status))
    return nowhere(m, ret_reason, error ? error->message : "a QEMU ended during post-copy");
  return dr_migrate_is_decided(m) ? ask_until_known(m, ret_reason) : undecided(m, status, ret_reason);
}

MigrateWhere
dr_migrate_settle(Migrate *m, GError **ret_reason)
{
  if (m->source)
    dr_qmp_set_cancel_fd(m->source, -1);
  if (m->postcopy_begun)
    return after_postcopy(m, ret_reason);
  g_clear_pointer(&m->streams, dr_streams_free);
  if (dr_migrate_is_decided(m))
    return ask_until_known(m, ret_reason);
  if (source_ended(m))
    return without_source(m, ret_reason);
  drop_storage(m);
  tell_off(m);
  return back_here(m, ret_reason);
}
