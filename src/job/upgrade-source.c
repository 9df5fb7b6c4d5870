/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest while the upgrade is under way: others have monitors too, and may pause it, resume it, or change what it is
 * made of between preflight and the switchover. */
#include "base/error.h"
#include "job/migration.h"
#include "job/upgrade-internal.h"

static gboolean
is_state_of_an_owner(const char *state)
{
  return g_strv_contains((const char *const[]){ "running", "paused", "prelaunch", NULL }, state);
}

gboolean
dr_upgrade_note_running(DrUpgrade *u, gboolean running, GError **error)
{
  g_autoptr(JsonObject) note = NULL;

  if (running == u->plan.was_running)
    return TRUE;
  u->plan.was_running = running;
  note = dr_json("{'was_running': <%b>}", running);
  return dr_store_journal(u->host->store, dr_job_id(u->job),
                          u->plan.mode == DR_MEMORY_POSTCOPY ? DR_STAGE_POSTCOPY : DR_STAGE_TRANSFER, note,
                          error);
}

/* It was running or paused at preflight; a guest that stopped on an error is not to be moved as one that was paused. */
static gboolean
check_state(DrUpgrade *u, const char *state, GError **error)
{
  if (is_state_of_an_owner(state))
    return TRUE;
  dr_error_set(error, DR_ERROR_REFUSED, "cannot upgrade VM '%s': the guest's state has become '%s'",
               dr_vm_name(u->vm), state);
  return dr_error_remedy(error, "bring it to 'running' or 'paused', then start the upgrade again");
}

/* A device that came back under its name may be another one; one that had gone before preflight looked is not meant, though
 * its event may come late. */
static gboolean
note_deleted(DrUpgrade *u, const DrQmpEvent *event, GError **error)
{
  const char *path = dr_json_str(event->data, "path", "");

  if (!u->pre || !dr_inventory_has_device(u->pre->inventory, path))
    return TRUE;
  dr_error_set(error, DR_ERROR_REFUSED,
               "cannot upgrade VM '%s': device '%s' was unplugged after the upgrade had begun",
               dr_vm_name(u->vm), dr_json_str(event->data, "device", path));
  return dr_error_remedy(error, "start the upgrade again");
}

/* Of what they told but this the present state tells. */
static gboolean
take_old_events(DrUpgrade *u, GError **error)
{
  for (;;) {
    g_autoptr(DrQmpEvent) event = dr_qmp_pop_event(u->source);

    if (!event)
      return TRUE;
    if (g_str_equal(event->name, "DEVICE_DELETED") && !note_deleted(u, event, error))
      return FALSE;
  }
}

gboolean
dr_upgrade_compare_source(DrUpgrade *u, GError **error)
{
  g_autofree char *doing = g_strdup_printf("upgrade VM '%s'", dr_vm_name(u->vm));
  g_autoptr(DrFindings) findings = dr_findings_new();

  if (!dr_preflight_again(u->pre, u->vm, u->source, findings, error))
    return FALSE;
  if (!dr_findings_block(findings))
    return TRUE;
  dr_findings_to_error(findings, doing, error);
  dr_findings_merge(u->pre->findings, findings);
  dr_job_set_findings(u->job, u->pre->findings);
  return FALSE;
}

gboolean
dr_upgrade_look_again(DrUpgrade *u, GError **error)
{
  g_autoptr(JsonObject) status = NULL;

  if (!take_old_events(u, error) || !dr_upgrade_compare_source(u, error))
    return FALSE;
  status = dr_qmp_call_object(u->source, "query-status", NULL, error);
  if (!status || !check_state(u, dr_json_str(status, "status", "?"), error))
    return FALSE;
  return dr_upgrade_note_running(u, dr_json_bool(status, "running", FALSE), error);
}

/* The migration stops the guest once, after it has become active. A STOP before is somebody else's; one in the middle of a
 * copy is whose the run state says. */
static gboolean
note_stop(DrUpgrade *u, const char *status, gint64 time_us, GError **error)
{
  g_autofree char *state = NULL;

  if (u->guard)
    dr_tap_guard_feed(u->guard);
  if (g_str_equal(status, "") || g_str_equal(status, "setup"))
    return dr_upgrade_note_running(u, FALSE, error);
  state = u->plan.mode == DR_MEMORY_COPY ? dr_migration_run_state(u->source) : g_strdup("finish-migrate");
  if (g_str_equal(state, "paused"))
    return dr_upgrade_note_running(u, FALSE, error);
  u->stopped_us = time_us;
  /* It may have been resumed since: then that event is on its way. */
  return g_str_equal(state, "finish-migrate") || g_str_equal(state, "postmigrate") ||
         check_state(u, state, error);
}

/* A migration that has failed resumes the guest by itself. */
static gboolean
note_resume(DrUpgrade *u, const char *status, GError **error)
{
  u->stopped_us = 0;
  return g_str_equal(status, "failed") || g_str_equal(status, "cancelled") ||
         dr_upgrade_note_running(u, TRUE, error);
}

gboolean
dr_upgrade_note_event(DrUpgrade *u, const DrQmpEvent *event, const char *status, GError **error)
{
  if (g_str_equal(event->name, "STOP"))
    return note_stop(u, status, event->time_us, error);
  if (g_str_equal(event->name, "RESUME"))
    return note_resume(u, status, error);
  if (g_str_equal(event->name, "DEVICE_DELETED"))
    return note_deleted(u, event, error); /* QEMU takes no device_del now: it had been asked to go before */
  return TRUE;
}
