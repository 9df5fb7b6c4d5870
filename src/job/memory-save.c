/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Saving RAM and devices of a running guest. */
#include "job/memory-save.h"
#include "base/error.h"
#include "job/migration.h"
#include "job/ram-meter.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define UNLIMITED (100ll << 30) /* bytes/s: the page cache or the disk is the limit */
#define FD_NAME "drover-memory"
#define SAVE_MS (6 * 60 * 60 * 1000)
#define DEVICE_MS (10 * 60 * 1000) /* the last pages, to a slow disk */
#define REST_MS 20000
#define RESUME_MS 30000
#define SAMPLE_MS 100
#define PAUSE_MAX_MS 3200
#define PASSES_MAX 8   /* then the guest is stopped: the file has what it has written that often */
#define STUCK_PASSES 2 /* passes whose remainder is not getting smaller */
#define STUCK_RATIO 0.9
#define AGAIN_MS 2

typedef struct {
  DrMemorySave *save;
  DrJob *job;
  DrQmp *qmp;
  char *status; /* the last MIGRATION event; "" before */
  gint64 best_remaining, pause_ms, next_sample_us;
  guint stuck;
  DrRamMeter meter;
  DrPause pause;
  gboolean halted; /* we have stopped the guest ourselves, to come to an end */
} Saving;

/* --- What is happening --- */

static gboolean
set_pause(Saving *s, GError **error)
{
  return dr_qmp_do(s->qmp, "migrate-set-parameters",
                   dr_json("{'max-bandwidth': <%x>, 'downtime-limit': <%x>}", (gint64)UNLIMITED, s->pause_ms),
                   error);
}

/* A migration stops the guest as "finish-migrate". */
static gboolean
note_stop(Saving *s, gint64 time_us, GError **error)
{
  g_autofree char *state = dr_migration_run_state(s->qmp);

  s->save->stopped_us = time_us;
  if (s->halted || !g_str_equal(state, "paused"))
    return TRUE;
  dr_error_set(error, DR_ERROR_REFUSED, "somebody has paused the guest while its memory was saved");
  return dr_error_remedy(error, "start again when it runs");
}

static gboolean
take_events(Saving *s, GError **error)
{
  for (;;) {
    g_autoptr(DrQmpEvent) event = dr_qmp_pop_event(s->qmp);

    if (!event)
      return TRUE;
    dr_pause_source_event(&s->pause, event);
    if (g_str_equal(event->name, "STOP") && !note_stop(s, event->time_us, error))
      return FALSE;
    if (g_str_equal(event->name, "RESUME"))
      s->save->resumed_us = event->time_us;
    if (!g_str_equal(event->name, "MIGRATION"))
      continue;
    g_free(s->status);
    s->status = g_strdup(dr_json_str(event->data, "status", ""));
  }
}

static gboolean
failed(Saving *s, GError **error)
{
  g_autoptr(JsonObject) info = dr_qmp_call_object(s->qmp, "query-migrate", NULL, NULL);
  const char *why = info ? dr_json_str(info, "error-desc", NULL) : NULL;

  return dr_error_set(error, DR_ERROR_QMP, "QEMU could not write the guest's memory%s%s%s", why ? ": " : "",
                      why ? why : "", why ? "" : " (is the file system full?)");
}

/* --- Coming to an end --- */

/* That it was us, and nobody who wants it to stay paused, is known to the next droverd. */
static gboolean
halt(Saving *s, GError **error)
{
  g_autoptr(JsonObject) note = dr_json("{'halted': <%b>}", TRUE);

  s->halted = TRUE;
  return dr_store_journal(dr_job_host(s->job)->store, dr_job_id(s->job), DR_STAGE_MEMORY, note, error) &&
         dr_qmp_do(s->qmp, "stop", NULL, error);
}

/* What is left after each pass tells whether the guest writes faster than the disk (QEMU-NOTES, "Convergence"). */
static gboolean
judge_pass(Saving *s, JsonObject *ram, GError **error)
{
  gint64 passes = dr_json_int(ram, "dirty-sync-count", 0);
  gint64 remaining = dr_json_int(ram, "remaining", 0);

  if (passes <= s->save->passes || s->halted)
    return TRUE;
  if (s->save->passes > 1)
    s->stuck = remaining > STUCK_RATIO * (double)s->best_remaining ? s->stuck + 1 : 0;
  s->save->passes = passes;
  s->best_remaining = remaining;
  if (passes >= PASSES_MAX || (s->stuck >= STUCK_PASSES && s->pause_ms >= PAUSE_MAX_MS))
    return halt(s, error);
  if (s->stuck < STUCK_PASSES)
    return TRUE;
  s->stuck = 0;
  s->pause_ms *= 2;
  return set_pause(s, error);
}

static gboolean
sample(Saving *s, GError **error)
{
  g_autoptr(JsonObject) info = NULL;
  DrProgress progress = DR_PROGRESS_INIT;
  JsonObject *ram;

  if (g_get_monotonic_time() < s->next_sample_us || (s->save->stopped_us && !s->halted))
    return TRUE; /* nothing is asked in the pause */
  s->next_sample_us = g_get_monotonic_time() + SAMPLE_MS * 1000;
  info = dr_qmp_call_object(s->qmp, "query-migrate", NULL, error);
  if (!info)
    return FALSE;
  ram = dr_json_obj(info, "ram");
  if (!ram)
    return TRUE;
  dr_ram_meter_take(&s->meter, ram, g_get_monotonic_time(), &progress);
  progress.phase = "saving memory";
  dr_job_progress(s->job, &progress);
  return judge_pass(s, ram, error);
}

static gboolean
wait_status(Saving *s, const char *wanted, DrDeadline deadline, GError **error)
{
  for (;;) {
    g_autoptr(GError) mute = NULL;
    g_autoptr(GError) local = NULL;

    if (!take_events(s, error))
      return FALSE;
    if (g_str_equal(s->status, wanted))
      return TRUE;
    if (g_str_equal(s->status, "failed") || g_str_equal(s->status, "cancelled"))
      return failed(s, error);
    if (dr_qmp_closed(s->qmp))
      return dr_error_set(error, DR_ERROR_CLOSED, "QEMU ended while the guest's memory was saved");
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "saving the guest's memory took too long");
    if (!dr_qmp_wait_many(&s->qmp, 1, MIN(deadline, dr_deadline_in(SAMPLE_MS)), &local) &&
        !g_error_matches(local, DR_ERROR, DR_ERROR_TIMEOUT)) {
      g_propagate_error(error, g_steal_pointer(&local));
      return FALSE;
    }
    if (!sample(s, &mute) && !g_error_matches(mute, DR_ERROR, DR_ERROR_TIMEOUT)) {
      g_propagate_error(error, g_steal_pointer(&mute)); /* QEMU says nothing while it writes the last part */
      return FALSE;
    }
  }
}

/* --- The guest runs on --- */

/* `cont` also takes the disks back that the migration's end gave away. A newer QEMU refuses it for a moment after its
 * "completed" ("Migration is not finalized yet", 10.0). Here it is right: nothing else runs from what was saved. */
static gboolean
let_run(DrJob *job, DrQmp *qmp, GError **error)
{
  DrDeadline deadline = dr_deadline_in(RESUME_MS);

  for (;;) {
    g_autofree char *state = dr_migration_run_state(qmp);
    g_autoptr(GError) last = NULL;

    if (g_str_equal(state, "unknown")) /* it is mute: what it says when it speaks again counts */
      deadline = dr_deadline_in(RESUME_MS);
    if (!dr_migration_waits_for_cont(state) || dr_qmp_do(qmp, "cont", NULL, &last))
      return TRUE;
    if (dr_qmp_closed(qmp))
      return dr_error_set(error, DR_ERROR_CLOSED, "QEMU ended while the guest's memory was saved");
    if (dr_deadline_passed(deadline)) {
      dr_error_set(error, DR_ERROR_ATTENTION, "the guest of VM '%s' is stopped (%s) and does not go on: %s",
                   dr_vm_name(dr_job_vm(job)), state, last->message);
      return dr_error_remedy(error, "resume it by hand: drover resume %s", dr_vm_name(dr_job_vm(job)));
    }
    g_usleep(AGAIN_MS * 1000); /* bounded by the deadline */
  }
}

static void
reset(DrQmp *qmp)
{
  static const char *const none[] = { NULL };
  g_autoptr(GError) error = NULL;

  if (!dr_migration_set_capabilities(qmp, none, &error))
    g_debug("%s", error->message); /* the next migration sets its own */
}

/* One that does not answer has not ended, and nothing is decided before it does: each question waits for some seconds. */
static char *
status_when_it_speaks(DrQmp *qmp)
{
  for (;;) {
    g_autofree char *status = dr_migration_status(qmp);

    if (!g_str_equal(status, "unknown") || dr_qmp_closed(qmp))
      return g_steal_pointer(&status);
  }
}

gboolean
dr_memory_save_give_up(DrJob *job, DrQmp *qmp, gboolean halted, GError **error)
{
  DrDeadline deadline;
  g_autofree char *status = NULL, *state = NULL;

  dr_qmp_set_cancel_fd(qmp, -1);
  status = status_when_it_speaks(qmp);
  deadline = dr_deadline_in(REST_MS);
  if (dr_migration_is_moving(status) && !g_str_equal(status, "cancelling"))
    dr_qmp_do(qmp, "migrate_cancel", NULL, NULL);
  while (dr_migration_is_moving(status) && !dr_deadline_passed(deadline)) {
    g_autoptr(DrQmpEvent) event = dr_qmp_wait_event(qmp, "MIGRATION", dr_deadline_in(SAMPLE_MS), NULL);

    g_free(status);
    status = status_when_it_speaks(qmp);
  }
  state = dr_migration_run_state(qmp);
  if ((halted || !g_str_equal(state, "paused")) && !let_run(job, qmp, error))
    return FALSE;
  reset(qmp);
  return TRUE;
}

/* --- All of it --- */

static void
note_run(Saving *s)
{
  DrDeadline deadline = dr_deadline_in(SAMPLE_MS);

  while (s->save->resumed_us == 0 && take_events(s, NULL) && !dr_deadline_passed(deadline))
    dr_qmp_wait_many(&s->qmp, 1, deadline, NULL);
}

/* The guest runs while the file gets to the disk: until then nothing says that the snapshot is there. */
static gboolean
sync_file(DrMemorySave *save, GError **error)
{
  struct stat st;

  if (fsync(save->fd) < 0 || fstat(save->fd, &st) < 0)
    return dr_error_set_errno(error, errno, "cannot write the guest's memory to the disk");
  save->bytes = st.st_size;
  return TRUE;
}

static gboolean
finish(Saving *s, GError **error)
{
  g_autofree char *state = NULL;

  if (!wait_status(s, "completed", dr_deadline_in(DEVICE_MS), error))
    return FALSE;
  dr_job_hold(s->job, "saved");
  state = dr_migration_run_state(s->qmp);
  if (!g_str_equal(state, "paused") &&
      !let_run(s->job, s->qmp, error)) /* paused: after it ran on, by its owner */
    return FALSE;
  note_run(s);
  reset(s->qmp);
  return sync_file(s->save, error);
}

static gboolean
go_on(Saving *s, GError **error)
{
  return dr_qmp_do(s->qmp, "migrate-continue", dr_json("{'state': <'pre-switchover'>}"), error) &&
         finish(s, error);
}

/* x-ignore-shared above all is off: the file has to hold RAM that is shared, too. */
static gboolean
begin(Saving *s, GError **error)
{
  static const char *const wanted[] = { "pause-before-switchover", NULL };

  return dr_migration_set_capabilities(s->qmp, wanted, error) && set_pause(s, error) &&
         dr_qmp_pass_fd(s->qmp, FD_NAME, s->save->fd, error) &&
         dr_qmp_do(s->qmp, "migrate", dr_json("{'uri': <'fd:" FD_NAME "'>}"), error);
}

/* From the instant on there is no way back but by undoing what has been done. */
static gboolean
instant(Saving *s, DrMemorySaveAt at_stop, gpointer data, GError **error)
{
  if (!dr_job_no_return(s->job, error))
    return FALSE;
  dr_qmp_set_cancel_fd(s->qmp, -1);
  dr_job_hold(s->job, "instant");
  if (!at_stop(data, error))
    return FALSE;
  dr_pause_mark_now(&s->pause, DR_PAUSE_DISKS);
  dr_job_hold(s->job, "switched");
  return go_on(s, error);
}

/* Of before. */
static void
forget_events(DrQmp *qmp)
{
  DrQmpEvent *event;

  while ((event = dr_qmp_pop_event(qmp)))
    dr_qmp_event_free(event);
}

static gboolean
undo(Saving *s, GError *cause, GError **error)
{
  g_autoptr(GError) stays = NULL;

  if (!dr_memory_save_give_up(s->job, s->qmp, s->halted, &stays) &&
      g_error_matches(stays, DR_ERROR, DR_ERROR_ATTENTION)) {
    g_error_free(cause);
    g_propagate_error(error, g_steal_pointer(&stays));
  } else {
    g_propagate_error(error, cause);
  }
  return FALSE;
}

gboolean
dr_memory_save(DrMemorySave *save, DrJob *job, DrQmp *qmp, DrMemorySaveAt at_stop, gpointer data,
               GError **error)
{
  g_autofree char *status = NULL, *state = NULL;
  Saving s = { .save = save,
               .job = job,
               .qmp = qmp,
               .status = g_strdup(""),
               .pause_ms = DR_MEMORY_SAVE_PAUSE_MS,
               .meter = DR_RAM_METER_INIT };
  GError *cause = NULL;
  gboolean saved;

  forget_events(qmp);
  state = dr_migration_run_state(qmp);
  if (!g_str_equal(state, "running")) { /* what says so may have been among those events */
    g_free(s.status);
    return dr_error_set(error, DR_ERROR_REFUSED, "the guest of VM '%s' was stopped meanwhile (%s)",
                        dr_vm_name(dr_job_vm(job)), state);
  }
  dr_qmp_set_cancel_fd(qmp, dr_job_cancel_fd(job));
  saved = begin(&s, &cause) && wait_status(&s, "pre-switchover", dr_deadline_in(SAVE_MS), &cause) &&
          instant(&s, at_stop, data, &cause);
  dr_qmp_set_cancel_fd(qmp, -1);
  if (saved && save->stopped_us && save->resumed_us)
    dr_job_pause(job, &s.pause, save->stopped_us, save->resumed_us);
  status = s.status; /* freed with it */
  return saved || undo(&s, cause, error);
}

gboolean
dr_memory_save_finish(DrMemorySave *save, DrJob *job, DrQmp *qmp, GError **error)
{
  g_autofree char *status = dr_migration_status(qmp);
  g_autofree char *last = NULL;
  Saving s = { .save = save,
               .job = job,
               .qmp = qmp,
               .status = g_strdup(status),
               .pause_ms = PAUSE_MAX_MS,
               .meter = DR_RAM_METER_INIT };
  GError *cause = NULL;
  gboolean saved = g_str_equal(status, "pre-switchover") ? go_on(&s, &cause) : finish(&s, &cause);

  last = s.status;
  return saved || undo(&s, cause, error);
}
