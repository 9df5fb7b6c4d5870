/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where is the guest? One function answers for an error, a cancel and a crash alike, by asking the two QEMUs.
 *
 * What makes the answer safe:
 *  - The destination was started with -S: it runs only after a `cont`, and before that `cont` is sent the mark is written.
 *    So without a mark the destination has never run, and the source, stopped or not, has the guest.
 *  - With a mark the destination may have run. The source is then not resumed: guest memory, shared or moved, and the disks
 *    may have changed under it. The one exception is a destination that has ended and is known not to have run
 *    (dr_upgrade_never_ran()); the mark is taken away before the source is resumed, so that a crash in between cannot mislead.
 *  - Post-copy takes pages away from the source: where it has begun, only the way forward is left.
 *  - A QEMU that does not answer has not ended (reach.c): nothing that depends on it is decided before it answers or ends.
 *  - The mark names the process of the destination, so that one of an earlier try means nothing. It is a file in the run
 *    directory, not a row in the state file: it is written while the guest stands still, and an fsync would take longer than
 *    the rest of the pause. It need not survive a power cut, after which no QEMU is left.
 */
#include "job/upgrade-internal.h"
#include "base/error.h"
#include "base/fd.h"
#include "job/migration.h"
#include "vm/console.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define KILL_MS 10000
#define CANCEL_MS 20000
#define RESUME_MS 30000
#define LOAD_MS 20000 /* the destination reads what a source that has ended had sent */

static char *
mark_text(const DrUpgrade *u)
{
  return g_strdup_printf("%d %" G_GUINT64_FORMAT "\n", u->dest_id.pid, u->dest_id.start_time);
}

gboolean
dr_upgrade_is_chosen(const DrUpgrade *u)
{
  g_autofree char *wanted = mark_text(u);
  g_autofree char *found = NULL;

  if (u->chosen || !u->plan.mark_path || !g_file_test(u->plan.mark_path, G_FILE_TEST_EXISTS))
    return u->chosen;
  found = dr_file_read(u->plan.mark_path, 100, NULL, NULL);
  return !found || g_str_equal(found, wanted); /* one that cannot be read may be ours */
}

/* "chosen.3.new": the mark under a name that nobody looks at. */
static char *
mark_in_waiting(const DrUpgrade *u)
{
  return g_strconcat(u->plan.mark_path, ".new", NULL);
}

gboolean
dr_upgrade_prepare_mark(DrUpgrade *u, GError **error)
{
  g_autofree char *path = mark_in_waiting(u);
  g_autofree char *text = mark_text(u);

  return dr_file_write(path, text, error);
}

gboolean
dr_upgrade_choose(DrUpgrade *u, GError **error)
{
  g_autofree char *path = mark_in_waiting(u);

  u->chosen = rename(path, u->plan.mark_path) == 0 ||
              (dr_upgrade_prepare_mark(u, error) && rename(path, u->plan.mark_path) == 0);
  if (!u->chosen && error && !*error)
    dr_error_set_errno(error, errno, "cannot write '%s'", u->plan.mark_path);
  return u->chosen;
}

void
dr_upgrade_remove_exit(const char *exit_path, const DrProcId *id)
{
  g_free(
      dr_upgrade_exit_status(exit_path, id)); /* or its keeper would make the file after we have removed it */
  if (exit_path)
    unlink(exit_path);
}

void
dr_upgrade_remove_leftovers(DrUpgrade *u)
{
  g_autofree char *waiting = u->plan.mark_path ? mark_in_waiting(u) : NULL;
  const char *const paths[] = { u->plan.foreign ? NULL : u->plan.qmp_path, u->plan.console_path,
                                u->plan.migration_path, u->plan.mark_path, waiting };

  for (guint i = 0; i < G_N_ELEMENTS(paths); i++)
    if (paths[i])
      unlink(paths[i]);
  for (guint i = 0; u->plan.renames && i < u->plan.renames->len; i++)
    unlink(((DrRename *)u->plan.renames->pdata[i])->private_path);
  for (guint i = 0; u->plan.vnc && i < json_array_get_length(u->plan.vnc); i++) {
    g_autofree char *path = g_strdup_printf("%s.vnc%u", u->plan.qmp_path, i + 1);

    unlink(path);
  }
  dr_upgrade_remove_exit(u->plan.exit_path, &u->dest_id);
}

static void
kill_destination(DrUpgrade *u)
{
  g_autoptr(GError) error = NULL;

  g_clear_pointer(&u->dest, dr_qmp_free);
  if (u->dest_id.pid && !dr_proc_kill(&u->dest_id, KILL_MS, &error))
    g_warning("VM '%s': %s", dr_vm_name(u->vm), error->message);
}

/* A migration leaves the guest as "finish-migrate" or "postmigrate". One that is "paused" was paused by somebody, and "prelaunch"
 * was never told to begin, whatever it was at the last look. */
static gboolean
is_stopped_by_owner(const char *state)
{
  return g_str_equal(state, "paused") || g_str_equal(state, "prelaunch");
}

/* The guest goes on where it was. The destination must be gone before: it may hold the locks of the disks. */
static gboolean
resume_source(DrUpgrade *u, GError **error)
{
  DrDeadline deadline = dr_deadline_in(RESUME_MS);

  for (;;) {
    g_autofree char *state = dr_migration_run_state(u->source);
    g_autoptr(GError) last = NULL;

    if (is_stopped_by_owner(state) && !u->plan.halted)
      return TRUE;
    if (u->plan.was_running ? !dr_migration_waits_for_cont(state) : !g_str_equal(state, "finish-migrate"))
      return TRUE;
    if (u->plan.was_running && dr_qmp_do(u->source, "cont", NULL, &last))
      return TRUE;
    if (dr_qmp_closed(u->source) || dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_ATTENTION,
                          "the guest of VM '%s' is stopped under its old QEMU (%s)%s%s", dr_vm_name(u->vm),
                          state, last ? ": " : "", last ? last->message : "");
    g_usleep(20000); /* a lock of the destination's that is on its way out; bounded by the deadline */
  }
}

/* " (the new QEMU exited with status 1)", or "". (transfer full) */
static char *
how_it_ended(const char *which, const char *exit_path, const DrProcId *id)
{
  g_autofree char *status = dr_upgrade_exit_status(exit_path, id);

  return status ? g_strdup_printf(" (the %s QEMU %s)", which, status) : g_strdup("");
}

/* The guest is lost: what is left of it is ended. */
static DrWhere
nowhere(DrUpgrade *u, GError **ret_reason, const char *why)
{
  g_autoptr(GError) error = NULL;
  g_autofree char *old = how_it_ended("old", u->plan.source_exit, &u->plan.source);
  g_autofree char *new = how_it_ended("new", u->plan.exit_path, &u->dest_id);

  dr_console_abort(dr_vm_console(u->vm));
  kill_destination(u);
  g_clear_pointer(&u->source, dr_qmp_free);
  if (!dr_proc_kill(&u->plan.source, KILL_MS, &error))
    g_warning("VM '%s': %s", dr_vm_name(u->vm), error->message);
  /* The new one's exit file is the record's where the commit had begun. */
  if (dr_upgrade_is_dest(u, &dr_vm_record(u->vm)->id))
    g_clear_pointer(&u->plan.exit_path, g_free);
  dr_upgrade_remove_leftovers(u);
  g_clear_error(ret_reason);
  dr_error_set(ret_reason, DR_ERROR_ATTENTION, "the guest of VM '%s' has ended: %s%s%s", dr_vm_name(u->vm),
               why, old, new);
  dr_error_remedy(ret_reason, "see drover show %s and its log, then start it again", dr_vm_name(u->vm));
  return DR_NOWHERE;
}

static DrWhere
back_to_source(DrUpgrade *u, GError **ret_reason)
{
  g_autoptr(GError) error = NULL;

  dr_console_abort(dr_vm_console(u->vm));
  kill_destination(u);
  dr_job_hold(u->job, DR_STEP_UNDO);
  if (u->guard)
    dr_tap_guard_take_back(u->guard);
  if (!resume_source(u, &error)) {
    if (dr_qmp_closed(u->source))
      return nowhere(u, ret_reason, "its QEMU ended while it was being resumed");
    g_propagate_error(ret_reason, g_steal_pointer(&error));
    dr_error_remedy(ret_reason, "resume it by hand: drover resume %s", dr_vm_name(u->vm));
  }
  dr_upgrade_reset_capabilities(u->source, NULL);
  dr_upgrade_remove_leftovers(u);
  return DR_ON_SOURCE;
}

static gboolean
destination_is_complete(DrUpgrade *u)
{
  g_autofree char *status = u->dest ? dr_migration_status(u->dest) : g_strdup("gone");

  if (u->plan.cold)
    return u->dest != NULL; /* its disks are all that it needs */
  return g_str_equal(status, "completed");
}

/* Its source has ended, but what that had sent may still be on its way through the socket. */
static gboolean
destination_completes(DrUpgrade *u)
{
  DrDeadline deadline = dr_deadline_in(LOAD_MS);

  for (;;) {
    g_autofree char *status = u->dest ? dr_migration_status(u->dest) : g_strdup("gone");

    if (u->plan.cold)
      return u->dest != NULL;
    if (!g_strv_contains((const char *const[]){ "active", "postcopy-active", "device", NULL }, status))
      return g_str_equal(status, "completed");
    if (dr_qmp_closed(u->dest) || dr_deadline_passed(deadline))
      return FALSE;
    g_usleep(2000); /* bounded by the deadline */
  }
}

/* Its pages are all still its own: post-copy has not begun, or has not moved any. */
static gboolean
source_is_whole(DrUpgrade *u)
{
  g_autoptr(JsonObject) info = NULL;
  g_autofree char *state = u->postcopy_begun ? dr_migration_run_state(u->source) : NULL;
  const char *status;

  /* It stands still in post-copy. (Its migration status may still be that of its own coming, one upgrade ago.) */
  if (!state || g_str_equal(state, "running") || g_str_equal(state, "paused"))
    return TRUE;
  info = dr_qmp_call_object(u->source, "query-migrate", NULL, NULL);
  status = info ? dr_json_str(info, "status", "none") : "unknown";
  if (g_strv_contains((const char *const[]){ "none", "failed", "cancelled", NULL }, status))
    return TRUE; /* before post-copy; in it, it would be "postcopy-paused" */
  return g_str_equal(status, "completed") &&
         dr_json_int(info, "ram.postcopy-bytes", -1) == 0; /* QEMU 7.0 tells */
}

/* The mark is there, the destination has ended, and it never ran. */
static DrWhere
take_back(DrUpgrade *u, GError **ret_reason)
{
  DrReach source;

  while ((source = dr_upgrade_reach_source(u)) == DR_REACH_MUTE)
    dr_upgrade_wait_for_word(u, &u->plan.source, "the old QEMU's monitor does not answer");
  if (source == DR_REACH_GONE)
    return nowhere(u, ret_reason, "the old QEMU ended, and then the new one before it ran");
  if (!source_is_whole(u))
    return nowhere(u, ret_reason, "the new QEMU ended during post-copy, with a part of the guest's memory");
  if (unlink(u->plan.mark_path) < 0 && errno != ENOENT && truncate(u->plan.mark_path, 0) < 0)
    return nowhere(u, ret_reason, "the new QEMU ended before it ran, and its mark cannot be removed");
  u->chosen = FALSE;
  return back_to_source(u, ret_reason);
}

/* In a revert the destination had RAM and images of its own: whatever it did, the source is as it was when it was stopped. */
static gboolean
is_untouched(DrUpgrade *u)
{
  return u->plan.revert && !dr_upgrade_is_dest(u, &dr_vm_record(u->vm)->id);
}

static DrWhere
lost_destination(DrUpgrade *u, GError **ret_reason)
{
  if (u->starved)
    return nowhere(u, ret_reason, "the old QEMU ended during post-copy, with a part of the guest's memory");
  if (dr_upgrade_never_ran(u) || is_untouched(u))
    return take_back(u, ret_reason);
  return nowhere(u, ret_reason, "the new QEMU ended after it had been told to run");
}

/* Its monitor was closed, or is silent. FALSE: because it has ended, or is as good as that. */
static gboolean
dest_is_back(DrUpgrade *u)
{
  DrReach dest;

  while ((dest = dr_upgrade_reach_dest(u)) == DR_REACH_MUTE && !dr_upgrade_is_starved(u))
    dr_upgrade_wait_for_word(u, &u->dest_id, "the new QEMU's monitor does not answer");
  return dest == DR_REACH_TALKS;
}

/* It answers, has all of the guest, and will not run it: if it never has, the source still can. */
static DrWhere
refused_to_run(DrUpgrade *u, const GError *why, GError **ret_reason)
{
  g_autofree char *text = g_strdup_printf("the new QEMU does not resume the guest of VM '%s': %s",
                                          dr_vm_name(u->vm), why ? why->message : "it takes too long");

  dr_qmp_do(u->dest, "stop", NULL, NULL); /* a `cont` that it has only noted would count from now on */
  if (u->watched && u->source && source_is_whole(u)) {
    dr_proc_kill(&u->dest_id, KILL_MS, NULL);
    if (!dest_is_back(u))
      return lost_destination(u, ret_reason);
  }
  g_warning("%s", text);
  return DR_ON_DESTINATION;
}

/* The destination has the guest: sees to it that it runs. */
static DrWhere
on_to_destination(DrUpgrade *u, GError **ret_reason)
{
  DrDeadline deadline = dr_deadline_in(RESUME_MS);
  g_autoptr(GError) last = NULL;

  for (;;) {
    g_autofree char *state = dr_migration_run_state(u->dest);

    dr_upgrade_note_resume(u);
    if (u->plan.was_running ? !dr_migration_waits_for_cont(state) : destination_is_complete(u))
      return DR_ON_DESTINATION;
    if ((dr_qmp_closed(u->dest) || g_str_equal(state, "unknown")) && !dest_is_back(u))
      return lost_destination(u, ret_reason);
    g_clear_error(&last);
    if (u->plan.was_running)
      dr_qmp_do(u->dest, "cont", NULL, &last);
    if (dr_deadline_passed(deadline) && destination_is_complete(u))
      return refused_to_run(u, last, ret_reason);
    if (dr_deadline_passed(deadline))
      dr_upgrade_wait_for_word(u, &u->dest_id, "the new QEMU still loads the guest's state");
    g_usleep(2000); /* `cont` before the state is loaded is noted by QEMU and acted on then */
  }
}

static void
choose_anyway(DrUpgrade *u)
{
  g_autoptr(GError) error = NULL;

  /* Without the mark a recovery comes to the same end: the source cannot go on. */
  if (!dr_upgrade_is_chosen(u) && !dr_upgrade_choose(u, &error))
    g_warning("%s", error->message);
}

/* Post-copy has begun: the guest's memory is in two processes, and only the way forward is left. */
static DrWhere
finish_postcopy(DrUpgrade *u, GError **ret_reason)
{
  DrWhere where = DR_ON_DESTINATION;

  choose_anyway(u);
  if (u->plan.was_running)
    where = on_to_destination(u, ret_reason);
  while (where == DR_ON_DESTINATION) {
    g_autoptr(GError) error = NULL;

    if (u->source && dr_upgrade_wait_postcopy(u, &error))
      return DR_ON_DESTINATION;
    if (dr_upgrade_reach_source(u) == DR_REACH_GONE) {
      u->starved = !dest_is_back(u) || !destination_completes(u);
      return u->starved ? lost_destination(u, ret_reason) : DR_ON_DESTINATION;
    }
    if (dr_upgrade_reach_dest(u) == DR_REACH_GONE)
      return nowhere(u, ret_reason, "the new QEMU ended during post-copy, with a part of the guest's memory");
    dr_upgrade_wait_for_word(u, &u->plan.source,
                             error ? error->message : "the old QEMU's monitor does not answer");
  }
  return where;
}

static DrWhere
without_source(DrUpgrade *u, GError **ret_reason)
{
  if (dr_upgrade_is_dest(u, &dr_vm_record(u->vm)->id) && !u->dest)
    return nowhere(u, ret_reason, "the new QEMU ended after it had taken over");
  if (!destination_completes(u))
    return nowhere(u, ret_reason, "its QEMU ended before the new one had all of its state");
  /* The source is dead, and all it had is here: the guest can be saved. */
  choose_anyway(u);
  return on_to_destination(u, ret_reason);
}

/* Ends a migration that has not been decided; one in which post-copy may have been ordered already is brought there, or
 * fails by itself with its destination: `migrate_cancel` in post-copy would lose the guest. Returns the status in which it
 * came to rest. */
static char *
bring_to_rest(DrUpgrade *u)
{
  DrDeadline deadline = dr_deadline_in(CANCEL_MS);
  g_autofree char *status = dr_migration_status(u->source);

  if (dr_migration_is_moving(status) && !g_str_equal(status, "cancelling") && (u->dest || !u->postcopy_begun))
    dr_qmp_do(u->source, u->postcopy_begun ? "migrate-start-postcopy" : "migrate_cancel", NULL, NULL);
  while (dr_migration_is_moving(status) && !dr_deadline_passed(deadline)) {
    g_autoptr(DrQmpEvent) event = dr_qmp_wait_event(u->source, "MIGRATION", dr_deadline_in(100), NULL);

    g_free(status);
    status = dr_migration_status(u->source);
  }
  return g_steal_pointer(&status);
}

/* Neither QEMU has the last word yet: no mark. */
static DrWhere
undecided(DrUpgrade *u, GError **ret_reason)
{
  g_autofree char *status = bring_to_rest(u);

  if (dr_qmp_closed(u->source))
    return dr_upgrade_settle(u, ret_reason);
  if (dr_migration_is_postcopy(status))
    return u->dest ? finish_postcopy(u, ret_reason)
                   : nowhere(u, ret_reason,
                             "the new QEMU ended during post-copy, with a part of the guest's memory");
  if (source_is_whole(u))
    return back_to_source(u, ret_reason);
  /* All pages have gone over already. */
  return u->dest ? finish_postcopy(u, ret_reason)
                 : nowhere(u, ret_reason, "the new QEMU ended after post-copy, with the guest's memory");
}

static DrWhere
chosen(DrUpgrade *u, GError **ret_reason)
{
  if (!u->dest)
    return lost_destination(u, ret_reason);
  return u->plan.mode == DR_MEMORY_POSTCOPY && !destination_is_complete(u) ? finish_postcopy(u, ret_reason)
                                                                           : on_to_destination(u, ret_reason);
}

/* The one without whose word nothing can be decided now, or NULL. */
static const DrProcId *
missing_word(DrUpgrade *u, DrReach source, DrReach dest)
{
  if (dr_upgrade_is_chosen(u)) {
    if (dest == DR_REACH_MUTE)
      return &u->dest_id;
    return dest == DR_REACH_GONE && source == DR_REACH_MUTE && dr_upgrade_never_ran(u) ? &u->plan.source
                                                                                       : NULL;
  }
  if (source == DR_REACH_MUTE)
    return &u->plan.source;
  /* A destination that was never told to run is not needed, unless it has what the source has no more. */
  if (dest == DR_REACH_MUTE && (source == DR_REACH_GONE || u->postcopy_begun))
    return &u->dest_id;
  return NULL;
}

static void
ask_both(DrUpgrade *u)
{
  for (;;) {
    DrReach source = dr_upgrade_reach_source(u);
    DrReach dest = dr_upgrade_reach_dest(u);
    const DrProcId *missing = missing_word(u, source, dest);

    if (!missing || (missing == &u->dest_id && dr_upgrade_is_starved(u)))
      return;
    dr_upgrade_wait_for_word(u, missing,
                             missing == &u->dest_id ? "the new QEMU's monitor does not answer"
                                                    : "the old QEMU's monitor does not answer");
  }
}

DrWhere
dr_upgrade_settle(DrUpgrade *u, GError **ret_reason)
{
  if (u->guard)
    dr_tap_guard_stop(u->guard);
  ask_both(u);
  if (u->starved)
    return lost_destination(u, ret_reason);
  if (dr_upgrade_is_chosen(u))
    return chosen(u, ret_reason);
  return u->source ? undecided(u, ret_reason) : without_source(u, ret_reason);
}
