/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where is the guest? One function answers for an error, a cancel and a crash alike, by asking the two QEMUs.
 *
 * What makes the answer safe:
 *  - The destination was started with -S: it runs only after a `cont`, and before that `cont` is sent the mark is written.
 *    So without a mark the destination has never run, and the source, stopped or not, has the guest.
 *  - With a mark the destination may have run. The source is then never resumed: guest memory, shared or moved, and the disks
 *    may have changed under it.
 *  - The mark is a file in the run directory, not a row in the state file: it is written while the guest stands still, and
 *    an fsync would take longer than the rest of the pause. It need not survive a power cut, after which no QEMU is left.
 */
#include "job/upgrade-internal.h"
#include "base/error.h"
#include "base/fd.h"
#include "qemu/spawn.h"
#include "vm/console.h"

#include <poll.h>
#include <string.h>

#define KILL_MS 10000
#define CANCEL_MS 20000
#define RESUME_MS 30000
#define DYING_MS 3000

gboolean
dr_upgrade_is_chosen(const DrUpgrade *u)
{
  return u->plan.mark_path && g_file_test(u->plan.mark_path, G_FILE_TEST_EXISTS);
}

gboolean
dr_upgrade_choose(DrUpgrade *u, GError **error)
{
  return dr_file_write(u->plan.mark_path, "destination\n", error);
}

void
dr_upgrade_remove_leftovers(DrUpgrade *u)
{
  const char *const paths[] = { u->plan.qmp_path, u->plan.console_path, u->plan.migration_path, u->plan.exit_path };

  for (guint i = 0; i < G_N_ELEMENTS(paths); i++)
    if (paths[i])
      unlink(paths[i]);
  for (guint i = 0; u->plan.renames && i < u->plan.renames->len; i++)
    unlink(((DrRename *)u->plan.renames->pdata[i])->private_path);
  for (guint i = 0; u->plan.vnc && i < json_array_get_length(u->plan.vnc); i++) {
    g_autofree char *path = g_strdup_printf("%s.vnc%u", u->plan.qmp_path, i + 1);

    unlink(path);
  }
  if (u->plan.mark_path)
    unlink(u->plan.mark_path);
}

/* A process whose monitor is away is given time to end: a large one takes a moment to die. One that lives on without
 * a monitor (somebody else holds it, it hangs) still has the guest, for the destination never ran. */
static gboolean
has_lasted(const DrProcId *id)
{
  dr_autofd int fd = dr_proc_open(id, NULL);
  struct pollfd end = { .fd = fd, .events = POLLIN };

  return fd >= 0 && poll(&end, 1, DYING_MS) == 0;
}

static void
kill_destination(DrUpgrade *u)
{
  g_autoptr(GError) error = NULL;

  g_clear_pointer(&u->dest, dr_qmp_free);
  if (u->dest_id.pid && !dr_proc_kill(&u->dest_id, KILL_MS, &error))
    g_warning("VM '%s': %s", dr_vm_name(u->vm), error->message);
}

static char *
migration_status(DrQmp *qmp)
{
  g_autoptr(JsonObject) info = dr_qmp_call_object(qmp, "query-migrate", NULL, NULL);

  return g_strdup(info ? dr_json_str(info, "status", "none") : "unknown");
}

static char *
run_state(DrQmp *qmp)
{
  g_autoptr(JsonObject) info = dr_qmp_call_object(qmp, "query-status", NULL, NULL);

  return g_strdup(info ? dr_json_str(info, "status", "unknown") : "unknown");
}

static gboolean
is_moving(const char *status)
{
  return g_strv_contains((const char *const[]){ "setup", "active", "pre-switchover", "device", "cancelling", "wait-unplug",
                                                NULL },
                         status);
}

static gboolean
is_postcopy(const char *status)
{
  return g_str_has_prefix(status, "postcopy-");
}

/* Ends a migration that has not been decided. Returns the status in which it came to rest. */
static char *
cancel_migration(DrUpgrade *u)
{
  DrDeadline deadline = dr_deadline_in(CANCEL_MS);
  g_autofree char *status = migration_status(u->source);

  if (is_moving(status) && !g_str_equal(status, "cancelling"))
    dr_qmp_do(u->source, "migrate_cancel", NULL, NULL);
  while (is_moving(status) && !dr_deadline_passed(deadline)) {
    g_autoptr(DrQmpEvent) event = dr_qmp_wait_event(u->source, "MIGRATION", dr_deadline_in(100), NULL);

    g_free(status);
    status = migration_status(u->source);
  }
  return g_steal_pointer(&status);
}

/* The guest goes on where it was. The destination must be gone before: it may hold the locks of the disks. */
static gboolean
resume_source(DrUpgrade *u, GError **error)
{
  DrDeadline deadline = dr_deadline_in(RESUME_MS);
  g_autoptr(GError) last = NULL;

  for (;;) {
    g_autofree char *state = run_state(u->source);

    if (g_str_equal(state, "running") || (!u->plan.was_running && !g_str_equal(state, "finish-migrate")))
      return TRUE;
    g_clear_error(&last);
    if (dr_qmp_do(u->source, "cont", NULL, &last))
      return TRUE;
    if (dr_qmp_closed(u->source) || dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_ATTENTION, "the guest of VM '%s' is stopped under its old QEMU (%s): %s",
                          dr_vm_name(u->vm), state, last->message);
    g_usleep(20000); /* a lock of the destination's that is on its way out; bounded by the deadline */
  }
}

static DrWhere
back_to_source(DrUpgrade *u, GError **ret_reason)
{
  g_autoptr(GError) error = NULL;

  dr_console_abort(dr_vm_console(u->vm));
  kill_destination(u);
  if (u->guard)
    dr_tap_guard_take_back(u->guard);
  if (u->source && !resume_source(u, &error)) {
    if (dr_qmp_closed(u->source))
      return DR_NOWHERE;
    g_propagate_error(ret_reason, g_steal_pointer(&error));
    dr_error_remedy(ret_reason, "resume it by hand: drover resume %s", dr_vm_name(u->vm));
  }
  if (u->source)
    dr_upgrade_reset_capabilities(u->source, NULL);
  dr_upgrade_remove_leftovers(u);
  return DR_ON_SOURCE;
}

/* ": exited with status 1", if the keeper of the new QEMU has said so. (transfer full) */
static char *
how_it_ended(DrUpgrade *u)
{
  g_autofree char *status = NULL;

  if (!u->dest_id.pid || has_lasted(&u->dest_id) || !dr_spawn_read_exit(u->plan.exit_path, &u->dest_id, &status, NULL))
    return g_strdup("");
  return g_strdup_printf(" (the new QEMU %s)", status);
}

static DrWhere
nowhere(DrUpgrade *u, GError **ret_reason, const char *why)
{
  g_autoptr(GError) error = NULL;
  g_autofree char *how = how_it_ended(u);

  dr_console_abort(dr_vm_console(u->vm));
  kill_destination(u);
  g_clear_pointer(&u->source, dr_qmp_free);
  if (!dr_proc_kill(&u->plan.source, KILL_MS, &error))
    g_warning("VM '%s': %s", dr_vm_name(u->vm), error->message);
  dr_upgrade_remove_leftovers(u);
  g_clear_error(ret_reason);
  dr_error_set(ret_reason, DR_ERROR_ATTENTION, "the guest of VM '%s' has ended: %s%s", dr_vm_name(u->vm), why, how);
  dr_error_remedy(ret_reason, "see drover show %s and its log, then start it again", dr_vm_name(u->vm));
  return DR_NOWHERE;
}

/* The destination has the guest: sees to it that it runs. */
static DrWhere
on_to_destination(DrUpgrade *u, GError **ret_reason)
{
  DrDeadline deadline = dr_deadline_in(RESUME_MS);
  g_autoptr(GError) last = NULL;

  while (u->plan.was_running) {
    g_autofree char *state = run_state(u->dest);

    if (g_str_equal(state, "running"))
      break;
    if (dr_qmp_closed(u->dest))
      return nowhere(u, ret_reason, "the new QEMU ended after it had taken over");
    g_clear_error(&last);
    dr_qmp_do(u->dest, "cont", NULL, &last);
    if (last && dr_deadline_passed(deadline)) {
      g_warning("VM '%s' does not resume under its new QEMU: %s", dr_vm_name(u->vm), last->message);
      break;
    }
    g_usleep(2000); /* `cont` before the state is loaded is noted by QEMU and acted on then; bounded by the deadline */
    if (dr_deadline_passed(deadline))
      break;
  }
  return DR_ON_DESTINATION;
}

/* Post-copy has begun: the guest's memory is in two processes, and only the way forward is left. */
static DrWhere
finish_postcopy(DrUpgrade *u, GError **ret_reason)
{
  g_autoptr(GError) error = NULL;

  if (!dr_upgrade_is_chosen(u) && !dr_upgrade_choose(u, &error))
    g_warning("%s", error->message);
  g_clear_error(&error);
  if (on_to_destination(u, ret_reason) == DR_NOWHERE)
    return DR_NOWHERE;
  if (dr_upgrade_wait_postcopy(u, &error))
    return DR_ON_DESTINATION;
  return nowhere(u, ret_reason, error->message);
}

static gboolean
destination_is_complete(DrUpgrade *u)
{
  g_autofree char *status = u->dest ? migration_status(u->dest) : g_strdup("gone");

  return g_str_equal(status, "completed");
}

static DrWhere
without_source(DrUpgrade *u, GError **ret_reason)
{
  g_autoptr(GError) error = NULL;

  if (!u->dest || !destination_is_complete(u))
    return nowhere(u, ret_reason, "its QEMU ended before the new one had all of its state");
  /* The source is dead, and all it had is here: the guest can be saved. */
  if (!dr_upgrade_choose(u, &error))
    g_warning("%s", error->message);
  return on_to_destination(u, ret_reason);
}

/* Neither QEMU has the last word yet: no mark. */
static DrWhere
undecided(DrUpgrade *u, GError **ret_reason)
{
  g_autofree char *status = cancel_migration(u);

  if (dr_qmp_closed(u->source))
    return without_source(u, ret_reason);
  if (is_postcopy(status) && u->dest)
    return finish_postcopy(u, ret_reason);
  if (is_postcopy(status))
    return nowhere(u, ret_reason, "the new QEMU ended during post-copy, with a part of the guest's memory");
  if (back_to_source(u, ret_reason) == DR_NOWHERE)
    return nowhere(u, ret_reason, "its QEMU ended while it was being resumed");
  return DR_ON_SOURCE;
}

static DrWhere
chosen(DrUpgrade *u, GError **ret_reason)
{
  g_autofree char *status = u->source ? migration_status(u->source) : g_strdup("gone");

  if (!u->dest)
    return nowhere(u, ret_reason, "the new QEMU ended after it had been told to run");
  if (is_postcopy(status))
    return finish_postcopy(u, ret_reason);
  if (u->plan.mode == DR_MEMORY_POSTCOPY && !u->source && !destination_is_complete(u))
    return nowhere(u, ret_reason, "the old QEMU ended during post-copy, with a part of the guest's memory");
  return on_to_destination(u, ret_reason);
}

/* A QEMU that has ended, or does not answer its monitor any more, is as good as gone. */
static void
drop_dead(DrUpgrade *u)
{
  DrQmp **both[] = { &u->source, &u->dest };

  for (guint i = 0; i < G_N_ELEMENTS(both); i++) {
    if (!*both[i])
      continue;
    dr_qmp_set_cancel_fd(*both[i], -1);
    g_autoptr(JsonObject) status = dr_qmp_call_object(*both[i], "query-status", NULL, NULL);
    if (!status)
      g_clear_pointer(both[i], dr_qmp_free);
  }
}

DrWhere
dr_upgrade_settle(DrUpgrade *u, GError **ret_reason)
{
  if (u->guard)
    dr_tap_guard_stop(u->guard);
  drop_dead(u);
  if (dr_upgrade_is_chosen(u))
    return chosen(u, ret_reason);
  if (u->source)
    return undecided(u, ret_reason);
  if (has_lasted(&u->plan.source))
    return back_to_source(u, ret_reason);
  return without_source(u, ret_reason);
}
