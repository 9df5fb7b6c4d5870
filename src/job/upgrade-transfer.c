/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Moving the state from one QEMU to the other: shared RAM, pre-copy, post-copy. */
#include "base/error.h"
#include "job/migration.h"
#include "job/ram-meter.h"
#include "job/upgrade-internal.h"
#include "vm/console.h"

#include <string.h>
#include <sys/stat.h>

#define UNLIMITED (100ll << 30) /* bytes/s: between two processes of one host nothing is to be spared */
#define SHARED_MS 60000         /* device state only */
#define COPY_MS (60 * 60 * 1000)
#define RESUME_MS 10000 /* loading the device state */
#define SAMPLE_MS 250   /* of progress, while RAM moves */
#define DOWNTIME_MS 300 /* QEMU's own default */
#define DOWNTIME_MAX_MS 5000
#define STUCK_PASSES 2 /* passes whose remainder is not getting smaller */
#define STUCK_RATIO 0.9
#define OVERHEAD_MS 5 /* of the switchover, without memory */

/* --- Capabilities and parameters --- */

/* `hold`: the source waits, stopped, for a word of ours before it sends its devices. `late`: the new QEMU takes the images when it is told to
 * run, and not before. */
static gboolean
set_capabilities(DrQmp *qmp, DrMemoryMode mode, gboolean hold, gboolean late, GError **error)
{
  g_autoptr(GStrvBuilder) builder = g_strv_builder_new();
  g_auto(GStrv) wanted = NULL;

  if (hold)
    g_strv_builder_add(builder, "pause-before-switchover");
  if (late)
    g_strv_builder_add(builder, "late-block-activate");
  if (mode == DR_MEMORY_SHARED)
    g_strv_builder_add(builder, "x-ignore-shared");
  if (mode == DR_MEMORY_POSTCOPY)
    g_strv_builder_add_many(builder, "postcopy-ram", "release-ram", NULL);
  wanted = g_strv_builder_end(builder);
  return dr_migration_set_capabilities(qmp, (const char *const *)wanted, error);
}

gboolean
dr_upgrade_reset_capabilities(DrQmp *qmp, GError **error)
{
  return set_capabilities(qmp, DR_MEMORY_COPY, FALSE, FALSE, error);
}

static gboolean
set_downtime(DrUpgrade *u, gint64 ms, GError **error)
{
  return dr_qmp_do(u->source, "migrate-set-parameters",
                   dr_json("{'max-bandwidth': <%x>, 'downtime-limit': <%x>}", (gint64)UNLIMITED, ms), error);
}

/* A QEMU before 10.0 takes the images as soon as it has the guest's state, and marks the bitmaps in them as in use: if it ends before it is
 * told to run, the old QEMU finds them inconsistent. A guest that is not told to run would keep it without its images. */
static gboolean
prepare(DrUpgrade *u, GError **error)
{
  g_autofree char *uri = g_strdup_printf("unix:%s", u->plan.migration_path);
  gboolean hold = u->many_queues || u->plan.mode == DR_MEMORY_COPY;
  gboolean late = u->plan.was_running && dr_inventory_has_kept_bitmaps(u->pre->inventory);

  return set_capabilities(u->source, u->plan.mode, hold, FALSE, error) &&
         set_capabilities(u->dest, u->plan.mode, hold, late, error) && set_downtime(u, DOWNTIME_MS, error) &&
         dr_qmp_do(u->dest, "migrate-incoming", dr_json("{'uri': <%s>}", uri), error);
}

/* --- What is happening --- */

static guint64
anonymous(pid_t pid)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/status", pid);
  g_autofree char *text = NULL;
  const char *line;

  if (!g_file_get_contents(path, &text, NULL, NULL) || !(line = strstr(text, "\nRssAnon:")))
    return 0;
  return g_ascii_strtoull(line + strlen("\nRssAnon:"), NULL, 10) * 1024;
}

/* Memory that the two QEMUs take: their private pages and the pages of the RAM memfds, each page once. Counters only, for
 * walking the page tables (smaps_rollup) would hold the guest up. */
guint64
dr_upgrade_memory(const DrUpgrade *u)
{
  guint64 bytes = anonymous(u->plan.source.pid) + (u->dest_id.pid ? anonymous(u->dest_id.pid) : 0);
  struct stat st;

  for (guint i = 0; i < u->ram_fds->len; i++)
    if (fstat(g_array_index(u->ram_fds, int, i), &st) == 0)
      bytes += (guint64)st.st_blocks * 512;
  return bytes;
}

static void
note_memory(DrUpgrade *u)
{
  u->memory_peak = MAX(u->memory_peak, dr_upgrade_memory(u));
}

typedef struct {
  char *status; /* the source's last MIGRATION event; "" before */
  gint64 passes, best_remaining, downtime_ms, next_sample_us;
  guint stuck;
  DrRamMeter meter;
} Progress;

static gboolean
failed(DrUpgrade *u, GError **error)
{
  g_autoptr(JsonObject) info = dr_qmp_call_object(u->source, "query-migrate", NULL, NULL);
  const char *why = info ? dr_json_str(info, "error-desc", NULL) : NULL;

  dr_error_set(error, DR_ERROR_QMP, "moving the state of VM '%s' failed%s%s", dr_vm_name(u->vm),
               why ? ": " : "", why ? why : "");
  dr_upgrade_add_log(u, error);
  return FALSE;
}

static gboolean
take_source_events(DrUpgrade *u, Progress *progress, GError **error)
{
  for (;;) {
    g_autoptr(DrQmpEvent) event = dr_qmp_pop_event(u->source);

    if (!event)
      return TRUE;
    dr_pause_source_event(&u->pause, event);
    if (!g_str_equal(event->name, "MIGRATION")) {
      if (!dr_upgrade_note_event(u, event, progress->status, error))
        return FALSE;
      continue;
    }
    g_free(progress->status);
    progress->status = g_strdup(dr_json_str(event->data, "status", ""));
  }
}

static gboolean
both_live(DrUpgrade *u, GError **error)
{
  if (u->source && dr_qmp_closed(u->source))
    return dr_error_set(error, DR_ERROR_CLOSED, "the QEMU of VM '%s' ended while its state was being moved",
                        dr_vm_name(u->vm));
  if (!dr_qmp_closed(u->dest))
    return TRUE;
  dr_error_set(error, DR_ERROR_CLOSED, "the new QEMU of VM '%s' ended while it was taking over",
               dr_vm_name(u->vm));
  dr_upgrade_add_log(u, error);
  return FALSE;
}

/* What is left after each pass over the dirty pages tells whether they are getting fewer (QEMU-NOTES, "Convergence"). When
 * they are not, the pause that is allowed is raised. */
static gboolean
judge_pass(DrUpgrade *u, Progress *progress, JsonObject *ram, GError **error)
{
  gint64 passes = dr_json_int(ram, "dirty-sync-count", 0);
  gint64 remaining = dr_json_int(ram, "remaining", 0);

  if (passes <= progress->passes)
    return TRUE;
  if (progress->passes > 1)
    progress->stuck = remaining > STUCK_RATIO * (double)progress->best_remaining ? progress->stuck + 1 : 0;
  progress->passes = passes;
  progress->best_remaining = remaining;
  if (progress->stuck < STUCK_PASSES)
    return TRUE;
  if (progress->downtime_ms >= DOWNTIME_MAX_MS) {
    dr_error_set(error, DR_ERROR_UNSUPPORTED,
                 "the guest of VM '%s' writes memory faster than it can be copied within a pause of %d ms",
                 dr_vm_name(u->vm), DOWNTIME_MAX_MS);
    return dr_error_remedy(error, "use --memory postcopy");
  }
  progress->stuck = 0;
  progress->downtime_ms = MIN(progress->downtime_ms * 2, DOWNTIME_MAX_MS);
  return set_downtime(u, progress->downtime_ms, error);
}

/* QEMU stops the guest as soon as what is left would take no longer than the pause that is allowed: after a pass that leaves less, that
 * is how long it takes. */
static void
tell_progress(DrUpgrade *u, Progress *progress, JsonObject *ram)
{
  DrProgress now = DR_PROGRESS_INIT;
  gint64 pass_ms;

  dr_ram_meter_take(&progress->meter, ram, g_get_monotonic_time(), &now);
  pass_ms = dr_ram_meter_pass_ms(&progress->meter);
  if (u->plan.mode == DR_MEMORY_POSTCOPY)
    now.phase = "post-copy";
  else if (u->plan.mode == DR_MEMORY_COPY) {
    now.phase = "copying memory";
    if (pass_ms >= 0 && !u->stopped_us)
      now.expected_pause_ms = MIN(pass_ms, progress->downtime_ms) + OVERHEAD_MS;
  }
  dr_job_progress(u->job, &now);
}

static gboolean
sample(DrUpgrade *u, Progress *progress, GError **error)
{
  g_autoptr(JsonObject) info = NULL;
  JsonObject *ram;

  if (g_get_monotonic_time() < progress->next_sample_us || (u->stopped_us && !u->postcopy_begun))
    return TRUE; /* nothing is asked in the pause */
  progress->next_sample_us = g_get_monotonic_time() + SAMPLE_MS * 1000;
  info = dr_qmp_call_object(u->source, "query-migrate", NULL, error);
  if (!info)
    return FALSE;
  note_memory(u);
  ram = dr_json_obj(info, "ram");
  if (!ram) {
    progress->next_sample_us = 0; /* it has not begun: what happens next is the time to ask again */
    return TRUE;
  }
  tell_progress(u, progress, ram);
  return u->plan.mode != DR_MEMORY_COPY || judge_pass(u, progress, ram, error);
}

/* From here on what is typed waits until it is known which QEMU has the guest. */
static void
hold_console(DrUpgrade *u)
{
  dr_console_hold(dr_vm_console(u->vm), &u->plan.source);
}

/* A guest that was paused meanwhile is not told to run, and its new QEMU would keep it without its images. */
static gboolean
take_images_at_once(DrUpgrade *u, GError **error)
{
  return !u->pre || u->plan.was_running || !dr_inventory_has_kept_bitmaps(u->pre->inventory) ||
         dr_qmp_do(u->dest, "migrate-set-capabilities",
                   dr_json("{'capabilities': [<{'capability': <'late-block-activate'>, 'state': <false>}>]}"),
                   error);
}

/* The source has stopped and waits: it is looked at once more, and the tap's queues change hands. */
static gboolean
hand_over(DrUpgrade *u, Progress *progress, GError **error)
{
  if (!g_str_equal(progress->status, "pre-switchover"))
    return TRUE;
  if (u->plan.mode == DR_MEMORY_COPY && !dr_upgrade_compare_source(u, error))
    return FALSE;
  if (u->many_queues)
    dr_tap_guard_hand_over(u->guard);
  hold_console(u);
  g_free(progress->status);
  progress->status = g_strdup("device");
  return take_images_at_once(u, error) &&
         dr_qmp_do(u->source, "migrate-continue", dr_json("{'state': <'pre-switchover'>}"), error);
}

/* Waits until the source's migration status is one of `wanted` ("completed|postcopy-active"). */
static gboolean
wait_status(DrUpgrade *u, Progress *progress, const char *wanted, DrDeadline deadline, GError **error)
{
  g_auto(GStrv) names = g_strsplit(wanted, "|", -1);
  DrQmp *both[] = { u->source, u->dest };

  for (;;) {
    g_autoptr(GError) local = NULL;

    dr_upgrade_note_resume(u);
    if (!take_source_events(u, progress, error))
      return FALSE;
    if (g_strv_contains((const char *const *)names, progress->status))
      return TRUE;
    if (g_str_equal(progress->status, "failed") || g_str_equal(progress->status, "cancelled"))
      return failed(u, error);
    if (!hand_over(u, progress, error) || !both_live(u, error))
      return FALSE;
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "moving the state of VM '%s' took too long",
                          dr_vm_name(u->vm));
    if (!dr_qmp_wait_many(both, 2, MIN(deadline, dr_deadline_in(SAMPLE_MS)), &local) &&
        !g_error_matches(local, DR_ERROR, DR_ERROR_TIMEOUT)) {
      g_propagate_error(error, g_steal_pointer(&local));
      return FALSE;
    }
    if (!sample(u, progress, error))
      return FALSE;
  }
}

/* --- The switchover --- */

/* A paused guest says no RESUME: that the new QEMU has read all of it is to be asked. */
static gboolean
wait_loaded(DrUpgrade *u, GError **error)
{
  DrDeadline deadline = dr_deadline_in(RESUME_MS);

  for (;;) {
    g_autoptr(JsonObject) info = dr_qmp_call_object(u->dest, "query-migrate", NULL, error);

    if (!info)
      return FALSE;
    if (g_str_equal(dr_json_str(info, "status", ""), "completed") || u->plan.mode == DR_MEMORY_POSTCOPY)
      return TRUE;
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "the new QEMU of VM '%s' takes too long to load its state",
                          dr_vm_name(u->vm));
    g_usleep(1000); /* bounded by the deadline */
  }
}

static gboolean
wait_resumed(DrUpgrade *u, GError **error)
{
  DrDeadline deadline = dr_deadline_in(RESUME_MS);
  DrQmp *dest[] = { u->dest };

  while (u->resumed_us == 0) {
    dr_upgrade_note_resume(u);
    if (u->resumed_us)
      break;
    if (dr_qmp_closed(u->dest))
      return both_live(u, error);
    if (!dr_qmp_wait_many(dest, 1, deadline, error))
      return FALSE;
  }
  return TRUE;
}

static gboolean
pass_no_return(DrUpgrade *u, GError **error)
{
  if (u->source) /* a revert of a VM that has ended has none */
    dr_qmp_set_cancel_fd(u->source, -1);
  dr_qmp_set_cancel_fd(u->dest, -1);
  return dr_job_no_return(u->job, error);
}

static gboolean
tell_to_run(DrUpgrade *u, GError **error)
{
  gboolean told = dr_qmp_do(u->dest, "cont", NULL, error);

  dr_pause_mark_now(&u->pause, DR_PAUSE_GO);
  return told;
}

/* The source has stopped for good. The mark says that the destination is the one from here on; `cont` may reach a
 * QEMU that still loads, which then runs as soon as it has: its loading and our message overlap. */
gboolean
dr_upgrade_switch_over(DrUpgrade *u, GError **error)
{
  if (!pass_no_return(u, error))
    return FALSE;
  if (g_getenv("DROVER_HOLD_AT"))
    dr_job_step(u->job, DR_STEP_SWITCHOVER);
  if (!dr_upgrade_choose(u, error))
    return FALSE;
  dr_pause_mark_now(&u->pause, DR_PAUSE_DECIDE);
  if (u->plan.was_running ? !tell_to_run(u, error) || !wait_resumed(u, error) : !wait_loaded(u, error)) {
    dr_upgrade_add_log(u, error);
    return FALSE;
  }
  note_memory(u);
  if (g_getenv("DROVER_HOLD_AT"))
    dr_job_step(u->job, DR_STEP_RESUME);
  return TRUE;
}

void
dr_upgrade_tell_pause(const DrUpgrade *u)
{
  if (u->stopped_us && u->resumed_us)
    dr_job_pause(u->job, &u->pause, u->stopped_us, u->resumed_us);
}

static gboolean
start_migration(DrUpgrade *u, GError **error)
{
  g_autofree char *uri = g_strdup_printf("unix:%s", u->plan.migration_path);

  if (u->plan.mode ==
      DR_MEMORY_SHARED) /* it will be over in some ms; else the console is held just before the end */
    hold_console(u);
  return dr_qmp_do(u->source, "migrate", dr_json("{'uri': <%s>}", uri), error);
}

static gboolean
precopy(DrUpgrade *u, Progress *progress, GError **error)
{
  int limit = u->plan.mode == DR_MEMORY_SHARED ? SHARED_MS : COPY_MS;

  return dr_upgrade_prepare_mark(u, error) && dr_upgrade_look_again(u, error) && start_migration(u, error) &&
         wait_status(u, progress, "completed", dr_deadline_in(limit), error) &&
         dr_upgrade_switch_over(u, error);
}

gboolean
dr_upgrade_wait_postcopy(DrUpgrade *u, GError **error)
{
  Progress progress = { .status = g_strdup(""), .meter = DR_RAM_METER_INIT };
  g_autoptr(JsonObject) info = dr_qmp_call_object(u->source, "query-migrate", NULL, error);
  gboolean done;

  if (info) {
    g_free(progress.status);
    progress.status = g_strdup(dr_json_str(info, "status", ""));
  }
  done = info && wait_status(u, &progress, "completed", dr_deadline_in(COPY_MS), error);
  g_free(progress.status);
  return done;
}

/* Post-copy starts at once: a pass of pre-copy before it would take the second chunk of memory that it is to avoid. */
static gboolean
postcopy(DrUpgrade *u, Progress *progress, GError **error)
{
  if (!dr_job_enter(u->job, DR_STAGE_POSTCOPY, NULL, error) || !dr_upgrade_prepare_mark(u, error) ||
      !dr_upgrade_look_again(u, error) || !pass_no_return(u, error))
    return FALSE;
  u->postcopy_begun = TRUE;
  hold_console(u);
  if (!start_migration(u, error) || !dr_qmp_do(u->source, "migrate-start-postcopy", NULL, error) ||
      !wait_status(u, progress, "postcopy-active|completed", dr_deadline_in(SHARED_MS), error))
    return FALSE;
  return dr_upgrade_switch_over(u, error) && dr_upgrade_wait_postcopy(u, error);
}

/* The last sample, too: a quick copy is over before the second. */
static void
count_bytes(DrUpgrade *u, Progress *progress)
{
  g_autoptr(JsonObject) info = dr_qmp_call_object(u->source, "query-migrate", NULL, NULL);
  JsonObject *ram = info ? dr_json_obj(info, "ram") : NULL;

  if (ram && u->plan.mode != DR_MEMORY_SHARED)
    tell_progress(u, progress, ram);
  u->bytes_moved = info ? dr_json_int(info, "ram.transferred", 0) : 0;
}

gboolean
dr_upgrade_transfer(DrUpgrade *u, GError **error)
{
  Progress progress = { .status = g_strdup(""), .downtime_ms = DOWNTIME_MS, .meter = DR_RAM_METER_INIT };
  gboolean moved;

  progress.next_sample_us = g_get_monotonic_time() + SAMPLE_MS * 1000;
  note_memory(u);
  moved = prepare(u, error) && dr_job_enter(u->job, DR_STAGE_TRANSFER, NULL, error) &&
          (u->plan.mode == DR_MEMORY_POSTCOPY ? postcopy(u, &progress, error) : precopy(u, &progress, error));
  g_free(progress.status);
  note_memory(u);
  if (moved)
    count_bytes(u, &progress);
  return moved;
}
