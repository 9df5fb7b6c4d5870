/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The state's way to the other host: pre-copy with the policy's eye on it, the switchover, post-copy with its recoveries. */
#include "base/error.h"
#include "base/metrics.h"
#include "job/migrate-internal.h"
#include "job/migrate-lend.h"
#include "job/migrate-storage.h"
#include "job/migration.h"
#include "job/upgrade-internal.h"

#include <poll.h>
#include <string.h>

#define TICK_MS 50
#define SAMPLE_MS 100
#define STATUS_MS 1000 /* a word to the other host now and then, or it gives the guest up */
#define NARROW_MS 1
#define ASK_MS 10000
#define ACCEPT_MS 35000
#define ORDER_MS 20000
#define CHANNELS_MS 10000
#define AGAIN_MS 100    /* between two tries to recover */
#define CONNECT_MS 1500 /* for one of them */
#define PAUSED_MS 10000

/* --- What is happening --- */

gboolean
dr_migrate_take_events(Migrate *m)
{
  gboolean any = FALSE;
  DrQmpEvent *event;

  while (m->source && (event = dr_qmp_pop_event(m->source))) {
    dr_pause_source_event(&m->pause, event);
    if (g_str_equal(event->name, "STOP")) {
      if (!m->suspended ||
          !m->stopped_us) /* suspended, it stood still already when the switchover stopped it */
        m->stopped_us = event->time_us;
    } else if (g_str_equal(event->name, "MIGRATION_PASS")) {
      m->pass_is_over = TRUE;
    } else if (g_str_equal(event->name, "MIGRATION")) {
      g_free(m->status);
      m->status = g_strdup(dr_json_str(event->data, "status", ""));
    }
    dr_qmp_event_free(event);
    any = TRUE;
  }
  return any;
}

static gboolean
is_status(const Migrate *m, const char *status)
{
  return g_str_equal(m->status, status);
}

static gboolean
source_is_closed(const Migrate *m)
{
  return !m->source || dr_qmp_closed(m->source);
}

/* Waits for an event of the source, a broken stream or link, a cancel; at most TICK_MS. */
static void
wait_a_while(Migrate *m)
{
  struct pollfd fds[] = {
    { .fd = m->source ? dr_qmp_fd(m->source) : -1, .events = POLLIN },
    { .fd = m->streams ? dr_streams_broken_fd(m->streams) : -1, .events = POLLIN },
    { .fd = dr_peer_broken_fd(m->peer), .events = POLLIN },
    { .fd = dr_mailbox_fd(m->box), .events = POLLIN },
  };

  if (dr_migrate_take_events(m))
    return; /* they came with the answer to a command */
  poll(fds, G_N_ELEMENTS(fds), TICK_MS);
  if (!source_is_closed(m))
    dr_qmp_read_some(m->source);
  dr_migrate_take_events(m);
}

static gboolean
is_readable(int fd)
{
  struct pollfd one = { .fd = fd, .events = POLLIN };

  return fd >= 0 && poll(&one, 1, 0) > 0;
}

static gboolean
all_well(Migrate *m, GError **error)
{
  if (source_is_closed(m))
    return dr_error_set(error, DR_ERROR_CLOSED, "the QEMU of VM '%s' ended while its state was being moved",
                        dr_vm_name(m->vm));
  if (is_status(m, "failed") || is_status(m, "cancelled")) {
    g_autoptr(JsonObject) info = dr_qmp_call_object(m->source, "query-migrate", NULL, NULL);
    const char *why = info ? dr_json_str(info, "error-desc", NULL) : NULL;

    return dr_error_set(error, DR_ERROR_QMP, "moving the state of VM '%s' failed%s%s", dr_vm_name(m->vm),
                        why ? ": " : "", why ? why : "");
  }
  if (is_readable(dr_peer_broken_fd(m->peer)))
    return dr_error_set(error, DR_ERROR_CLOSED, "the connection with the other host broke");
  if (m->streams && is_readable(dr_streams_broken_fd(m->streams)))
    return dr_error_set(error, DR_ERROR_CLOSED, "a stream to the other host broke");
  if (is_readable(dr_job_cancel_fd(m->job)) && !m->postcopy_begun)
    return dr_error_set(error, DR_ERROR_CANCELLED, "cancelled");
  return TRUE;
}

/* --- The user's word meanwhile --- */

static gboolean begin_postcopy(Migrate *m, const char *reason, GError **error);

static JsonObject *
set_bandwidth(Migrate *m, JsonObject *params, GError **error)
{
  gint64 mib = dr_json_int(params, "mib", 0);
  const char *name = dr_json_bool(params, "postcopy", FALSE) ? "max-postcopy-bandwidth" : "max-bandwidth";
  JsonObject *parameters = json_object_new();

  json_object_set_int_member(parameters, name, mib << 20);
  return dr_qmp_do(m->source, "migrate-set-parameters", parameters, error) ? json_object_new() : NULL;
}

static JsonObject *
get_bandwidth(Migrate *m, GError **error)
{
  g_autoptr(JsonObject) now = dr_qmp_call_object(m->source, "query-migrate-parameters", NULL, error);

  return now ? dr_json("{'mib': <%x>, 'postcopy_mib': <%x>}", dr_json_int(now, "max-bandwidth", 0) >> 20,
                       dr_json_int(now, "max-postcopy-bandwidth", 0) >> 20)
             : NULL;
}

/* The user's word is the most that is allowed from now on. */
static JsonObject *
set_downtime(Migrate *m, gint64 ms, GError **error)
{
  m->policy.config.downtime_max_ms = ms;
  return dr_qmp_do(m->source, "migrate-set-parameters", dr_json("{'downtime-limit': <%x>}", ms), error)
             ? json_object_new()
             : NULL;
}

static gboolean is_broken(Migrate *m);

/* It goes on by itself as soon as there is a way; asking makes the next try come at once, as it ends the wait. */
static JsonObject *
say_recovery(Migrate *m, GError **error)
{
  if (m->postcopy_begun)
    return dr_json("{'broken': <%b>, 'recoveries': <%i>}", is_broken(m), (int)m->recoveries);
  dr_error_set(error, DR_ERROR_REFUSED, "VM '%s' is not in post-copy: there is nothing to recover",
               dr_vm_name(m->vm));
  return NULL;
}

static JsonObject *
answer(Migrate *m, const char *method, JsonObject *params, gboolean *ret_postcopy, GError **error)
{
  if (g_str_equal(method, "downtime"))
    return set_downtime(m, dr_json_int(params, "ms", DR_POLICY_MAX_MS), error);
  if (g_str_equal(method, "bandwidth"))
    return set_bandwidth(m, params, error);
  if (g_str_equal(method, "get-bandwidth"))
    return get_bandwidth(m, error);
  if (g_str_equal(method, "recover"))
    return say_recovery(m, error);
  if (m->options.no_postcopy || m->postcopy_begun) {
    dr_error_set(error, DR_ERROR_REFUSED,
                 m->postcopy_begun ? "VM '%s' is in post-copy already" : "VM '%s' moves without post-copy",
                 dr_vm_name(m->vm));
    return NULL;
  }
  *ret_postcopy = TRUE;
  return json_object_new();
}

static gboolean
hear_user(Migrate *m, GError **error)
{
  g_autofree char *method = NULL;
  g_autoptr(JsonObject) params = NULL;
  g_autoptr(GError) local = NULL;
  gboolean postcopy = FALSE;
  JsonObject *reply;

  if (!dr_mailbox_take(m->box, &method, &params))
    return TRUE;
  reply = answer(m, method, params, &postcopy, &local);
  dr_mailbox_answer(m->box, reply, local);
  return !postcopy || begin_postcopy(m, "at the user's word", error);
}

/* --- The policy --- */

/* Nobody waits for the answer, which may be behind much that is on its way: an older droverd over there does not know the
 * question. */
static void
narrow(Migrate *m)
{
  g_autoptr(JsonObject) reply = NULL;

  if (m->narrowed || !m->streams)
    return;
  m->narrowed = TRUE;
  dr_streams_narrow(m->streams);
  reply = dr_migrate_ask(m, "move.narrow", NULL, NARROW_MS, NULL);
}

static gboolean
act(Migrate *m, GError **error)
{
  const DrAdvice *advice = &m->advice;

  switch (advice->action) {
  case DR_ADVICE_GO_ON:
    return TRUE;
  case DR_ADVICE_SET_DOWNTIME:
    g_message("VM '%s': %s", dr_vm_name(m->vm), advice->reason);
    return dr_qmp_do(m->source, "migrate-set-parameters",
                     dr_json("{'downtime-limit': <%x>}", advice->downtime_ms), error);
  case DR_ADVICE_START_POSTCOPY:
    return begin_postcopy(m, advice->reason, error);
  case DR_ADVICE_SUSPEND:
    g_message("VM '%s' is suspended: %s", dr_vm_name(m->vm), advice->reason);
    m->suspended = dr_qmp_do(m->source, "stop", NULL, error);
    return m->suspended;
  case DR_ADVICE_GIVE_UP:
    dr_error_set(error, DR_ERROR_UNSUPPORTED, "the move of VM '%s' does not come to an end: %s",
                 dr_vm_name(m->vm), advice->reason);
    return dr_error_remedy(error, "allow post-copy, or a longer pause (--downtime MS), or a faster link");
  }
  return TRUE;
}

/* What is to come is the policy's to say; in post-copy it is only what is left. */
static void
tell_progress(Migrate *m, JsonObject *ram, const DrPolicySample *one)
{
  DrProgress progress = DR_PROGRESS_INIT;

  dr_ram_meter_take(&m->meter, ram, one->time_ms * 1000, &progress);
  if (m->storage)
    dr_move_storage_progress(m->storage, &progress);
  progress.phase = m->postcopy_begun ? "post-copy" : "copying memory";
  if (!m->postcopy_begun) {
    progress.expected_pause_ms = m->advice.expected_pause_ms;
    if (m->suspended && m->stopped_us && progress.expected_pause_ms >= 0) /* what is left is not all of it */
      progress.expected_pause_ms += MAX(g_get_real_time() - m->stopped_us, 0) / 1000;
    progress.expected_ms = m->advice.expected_total_ms < 0
                               ? -1
                               : MAX(m->advice.expected_total_ms - (one->time_ms - m->policy.begun_ms), 0);
  }
  dr_job_progress(m->job, &progress);
}

static gboolean
sample(Migrate *m, GError **error)
{
  g_autoptr(JsonObject) info = dr_qmp_call_object(m->source, "query-migrate", NULL, error);
  JsonObject *ram = info ? dr_json_obj(info, "ram") : NULL;
  gint64 now_ms = g_get_monotonic_time() / 1000;
  DrPolicySample one = { .time_ms = now_ms, .at_pass = m->pass_is_over };

  m->pass_is_over = FALSE;
  if (!ram)
    return info != NULL;
  one.status = dr_policy_status(dr_json_str(info, "status", NULL));
  one.passes = dr_json_int(ram, "dirty-sync-count", 0);
  one.remaining = dr_json_int(ram, "remaining", 0);
  one.transferred = dr_json_int(ram, "transferred", 0);
  one.total = dr_json_int(ram, "total", 0);
  one.throttle = (int)dr_json_int(info, "cpu-throttle-percentage", 0);
  m->passes = one.passes;
  m->bytes_moved = one.transferred;
  dr_policy_judge(&m->policy, &one, &m->advice);
  tell_progress(m, ram, &one);
  if (m->advice.near_end)
    narrow(m);
  return m->postcopy_begun || act(m, error);
}

static gboolean
tell_alive(Migrate *m, GError **error)
{
  g_autoptr(JsonObject) reply = dr_migrate_ask(m, "move.status", NULL, ASK_MS, error);

  if (!reply)
    return FALSE;
  return !g_str_equal(dr_json_str(reply, "state", ""), "discarded") ||
         dr_error_set(error, DR_ERROR_CLOSED, "the other host has given the guest up");
}

/* The guest has stopped, and QEMU waits to be told that its disks are the other host's. */
static gboolean
hand_over_storage(Migrate *m, GError **error)
{
  if (!m->storage || !is_status(m, "pre-switchover"))
    return TRUE;
  g_free(m->status);
  m->status = g_strdup("device");
  if (!dr_move_storage_finish(m, error))
    return FALSE;
  dr_pause_mark_now(&m->pause, DR_PAUSE_DISKS);
  return dr_qmp_do(m->source, "migrate-continue", dr_json("{'state': <'pre-switchover'>}"), error);
}

/* Until the source's migration is over, or is in post-copy. */
static gboolean
watch_precopy(Migrate *m, GError **error)
{
  gint64 sampled_us = 0, told_us = g_get_monotonic_time();

  while (!is_status(m, "completed") && !m->postcopy_begun) {
    gint64 now;

    wait_a_while(m);
    if (is_status(m, "completed"))
      break;
    now = g_get_monotonic_time();
    if (!all_well(m, error) || !hand_over_storage(m, error) || !hear_user(m, error))
      return FALSE;
    if ((m->pass_is_over || now - sampled_us > SAMPLE_MS * 1000) && !is_status(m, "device") &&
        !m->postcopy_begun) {
      sampled_us = now;
      if (!sample(m, error))
        return FALSE;
    }
    if (now - told_us > STATUS_MS * 1000 && !m->postcopy_begun) {
      told_us = now;
      if (!tell_alive(m, error))
        return FALSE;
    }
  }
  return TRUE;
}

/* --- The switchover of pre-copy --- */

static gboolean
pass_no_return(Migrate *m, GError **error)
{
  dr_qmp_set_cancel_fd(m->source, -1);
  return dr_job_no_return(m->job, error);
}

static gpointer
lend(gpointer data)
{
  dr_migrate_lend(data);
  return NULL;
}

/* The images are opened for the other host while that one lets the guest run: what the guest reads waits for them, and its
 * pause does not. */
static JsonObject *
hand_over(Migrate *m, GError **error)
{
  GThread *lending = dr_migrate_lends(m) ? g_thread_try_new("lend", lend, m, NULL) : NULL;
  JsonObject *reply = NULL;

  if (dr_migrate_decide(m, error)) {
    dr_pause_mark_now(&m->pause, DR_PAUSE_DECIDE);
    reply = dr_migrate_ask(m, "move.accept", NULL, ACCEPT_MS, error);
  }
  if (lending)
    g_thread_join(lending);
  else
    dr_migrate_lend_tend(m); /* there is no room for a thread */
  return reply;
}

/* The source has stopped for good, and all of it is on its way or there. */
static gboolean
switch_over(Migrate *m, GError **error)
{
  g_autoptr(JsonObject) reply = NULL;

  if (!pass_no_return(m, error))
    return FALSE;
  if (g_getenv("DROVER_HOLD_AT"))
    dr_job_step(m->job, DR_STEP_SWITCHOVER);
  if (!dr_migrate_lend_ready(m, error))
    return FALSE;
  reply = hand_over(m, error);
  if (!reply)
    return FALSE;
  if (g_getenv("DROVER_HOLD_AT"))
    dr_job_step(m->job, DR_STEP_RESUME);
  if (dr_migrate_note_reply(m, reply))
    return TRUE;
  return dr_error_set(error, DR_ERROR_CLOSED, "the other host does not run it: %s",
                      dr_json_str(reply, "state", "?"));
}

/* --- Post-copy --- */

static gboolean
wait_channels(Migrate *m, GError **error)
{
  DrDeadline deadline = dr_deadline_in(CHANNELS_MS);
  guint wanted = 1 + (guint)m->options.parallel + (m->options.preempt ? 1 : 0);

  while (!m->handed && dr_streams_count(m->streams) < wanted) {
    wait_a_while(m);
    if (!all_well(m, error))
      return FALSE;
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "not all streams to the other host came about");
  }
  return TRUE;
}

/* From 8.0 on a source whose stream breaks at the very end of post-copy takes it for a failed pre-copy, and lets its guest run on,
 * beside the one over there (seen on 10.0 and 11.1). A guest that is paused already stays so. */
static gboolean
stop_before(Migrate *m, GError **error)
{
  if (dr_qmp_version_number(m->source) < DR_QEMU(8, 0) || !m->was_running)
    return TRUE;
  return dr_qmp_do(m->source, "stop", NULL, error);
}

/* The order is given; whether QEMU goes into post-copy, or comes to its end by pre-copy first. */
static gboolean
await_postcopy(Migrate *m, GError **error)
{
  DrDeadline deadline = dr_deadline_in(ORDER_MS);

  while (!is_status(m, "completed") &&
         (!dr_migration_is_postcopy(m->status) || is_status(m, "postcopy-device"))) {
    wait_a_while(m);
    if (source_is_closed(m) || is_status(m, "failed") || is_status(m, "cancelled"))
      return all_well(m, error);
    if (!hand_over_storage(m, error))
      return FALSE;
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "QEMU does not go into post-copy");
  }
  return TRUE;
}

/* The source has stopped for good. */
static gboolean
let_run(Migrate *m, GError **error)
{
  g_autoptr(JsonObject) reply = NULL;
  g_autoptr(GError) later = NULL;
  const char *state;

  if (!dr_migrate_lend_ready(m, &later)) /* it is tried again; there is no way back */
    g_warning("VM '%s': %s", dr_vm_name(m->vm), later->message);
  reply = hand_over(m, error);
  state = reply ? dr_json_str(reply, "state", "?") : "?";
  if (reply)
    dr_migrate_note_reply(m, reply);
  return g_str_equal(state, "accepted") || g_str_equal(state, "arrived") ||
         (reply && dr_error_set(error, DR_ERROR_CLOSED, "the other host does not run it: %s", state));
}

/* The other host promises first not to give its half up; it lets the guest run when this one has stopped for good. */
static gboolean
begin_postcopy(Migrate *m, const char *reason, GError **error)
{
  g_autoptr(JsonObject) reply = NULL;

  g_message("VM '%s' goes on by post-copy: %s", dr_vm_name(m->vm), reason);
  if (!wait_channels(m, error) ||
      !dr_job_enter(m->job, DR_STAGE_POSTCOPY, dr_json("{'reason': <%s>}", reason), error))
    return FALSE;
  if (!pass_no_return(m, error))
    return FALSE;
  m->postcopy_begun = TRUE;
  narrow(m);
  reply = dr_migrate_ask(m, "move.promise", NULL, ASK_MS, error);
  if (!reply)
    return FALSE;
  if (!g_str_equal(dr_json_str(reply, "state", ""), "promised"))
    return dr_error_set(error, DR_ERROR_CLOSED, "the other host does not take it: %s",
                        dr_json_str(reply, "state", "?"));
  if (!stop_before(m, error))
    return FALSE;
  m->ordered = TRUE;
  return dr_qmp_do(m->source, "migrate-start-postcopy", NULL, error) && await_postcopy(m, error) &&
         let_run(m, error);
}

static gboolean
source_ended(Migrate *m, GError **error)
{
  if (!source_is_closed(m) || dr_proc_alive(&m->source_id))
    return FALSE;
  dr_error_set(error, DR_ERROR_CLOSED,
               "the old QEMU ended during post-copy, with a part of the guest's memory");
  return TRUE;
}

/* The source's QEMU has ended, and the other one waits for pages that only it had. */
static void
give_up_halves(Migrate *m, GError **ret_lost)
{
  g_autoptr(JsonObject) reply = dr_migrate_ask(m, "move.abort", dr_json("{'lost': <true>}"), ASK_MS, NULL);

  if (reply && g_str_equal(dr_json_str(reply, "state", ""), "lost"))
    dr_error_set(ret_lost, DR_ERROR_CLOSED,
                 "the old QEMU ended during post-copy, with a part of the guest's memory");
}

/* What the other host says: TRUE when the guest has arrived. */
static gboolean
has_arrived(Migrate *m, GError **ret_lost)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) reply = dr_migrate_ask(m, "move.status", NULL, ASK_MS, &error);
  const char *state = reply ? dr_json_str(reply, "state", "") : "";

  if (g_str_equal(state, "promised") ||
      g_str_equal(state, "waiting")) /* a droverd that was killed had not said it */
    let_run(m, NULL);
  m->decided |= g_str_equal(state, "lost");
  if (g_str_equal(state, "lost") || g_str_equal(state, "discarded"))
    dr_error_set(ret_lost, DR_ERROR_CLOSED,
                 "the new QEMU ended during post-copy, with a part of the guest's memory");
  else if (reply && !dr_proc_alive(&m->source_id) && !g_str_equal(state, "arrived") &&
           g_str_equal(dr_json_str(reply, "migration", ""), "postcopy-paused"))
    give_up_halves(m, ret_lost);
  return reply && dr_migrate_note_reply(m, reply);
}

/* The streams have broken: closes what is left of them, so that QEMU pauses, and waits until it says so. */
static gboolean
pause_source(Migrate *m)
{
  DrDeadline deadline = dr_deadline_in(PAUSED_MS);

  g_clear_pointer(&m->streams, dr_streams_free);
  m->handed = FALSE;
  for (;;) {
    g_autofree char *status = dr_migration_status(m->source);

    g_free(m->status);
    m->status = g_strdup(status);
    if (g_str_equal(status, "postcopy-paused"))
      return TRUE;
    if (!dr_migration_is_postcopy(status) || source_is_closed(m) || dr_deadline_passed(deadline))
      return FALSE;
    g_usleep(5000); /* bounded by the deadline */
  }
}

static gboolean
go_on(Migrate *m, GError **error)
{
  g_autofree char *uri = NULL;

  /* By the clock, so that it is above all that an earlier droverd has opened. */
  m->epoch = MAX(m->epoch + 1, g_get_real_time() / 1000);
  if (!dr_peer_connect(m->peer, dr_deadline_in(CONNECT_MS), error) || !dr_migrate_listen(m, error))
    return FALSE;
  uri = dr_migrate_uri(m);
  return dr_qmp_do(m->source, "migrate", dr_json("{'uri': <%s>, 'resume': <true>}", uri), error);
}

/* What QEMU said of its pause came before its answer to `migrate`. */
static void
note_recovery(Migrate *m)
{
  dr_migrate_take_events(m);
  if (is_status(m, "postcopy-paused")) {
    g_free(m->status);
    m->status = g_strdup("postcopy-recover");
  }
  m->recoveries++;
  dr_metric_add(DR_METRIC_RECOVERIES, 1, NULL, NULL);
  g_message("VM '%s': post-copy goes on after its streams broke (%u)", dr_vm_name(m->vm), m->recoveries);
}

/* One try. */
static gboolean
recover(Migrate *m)
{
  g_autoptr(GError) error = NULL;

  if (!pause_source(m) && !is_status(m, "completed"))
    return FALSE;
  if (is_status(m, "completed"))
    return TRUE;
  if (!go_on(m, &error)) {
    g_clear_pointer(&m->streams, dr_streams_free);
    g_debug("VM '%s': post-copy cannot go on yet: %s", dr_vm_name(m->vm), error->message);
    return FALSE;
  }
  note_recovery(m);
  return TRUE;
}

static gboolean
is_broken(Migrate *m)
{
  if (is_status(m, "postcopy-paused"))
    return TRUE;
  if (m->handed) /* QEMU sees for itself when its socket breaks */
    return FALSE;
  return !m->streams || is_readable(dr_streams_broken_fd(m->streams)) ||
         is_readable(dr_peer_broken_fd(m->peer));
}

/* TRUE: the source's part is over. */
static gboolean
carry_on(Migrate *m)
{
  if (is_status(m, "completed"))
    return TRUE;
  if (is_broken(m) && !recover(m))
    g_usleep(AGAIN_MS * 1000); /* ended by the link, or by the end of a QEMU */
  wait_a_while(m);
  return is_status(m, "completed");
}

gboolean
dr_migrate_finish_postcopy(Migrate *m, GError **error)
{
  gint64 looked_us = 0;

  for (;;) {
    g_autoptr(GError) lost = NULL;
    gboolean sent = source_is_closed(m) || carry_on(m);

    dr_migrate_lend_tend(m);
    if (!source_is_closed(m))
      hear_user(m, NULL);
    if (!sent && source_ended(m, error))
      return FALSE;
    if (g_get_monotonic_time() - looked_us < (sent ? AGAIN_MS : STATUS_MS) * 1000)
      continue;
    looked_us = g_get_monotonic_time();
    if (!sent)
      sample(m, NULL);
    if (has_arrived(m, &lost))
      return TRUE;
    if (lost) {
      g_propagate_error(error, g_steal_pointer(&lost));
      return FALSE;
    }
    if (sent && source_is_closed(m) && source_ended(m, error)) {
      g_clear_error(error);
      g_usleep(AGAIN_MS * 1000); /* all was sent: the other host will say what became of it */
    }
  }
}

/* --- All of it --- */

/* What others have changed by a monitor of their own since preflight: the other host's QEMU knows nothing of it. */
static gboolean
is_unchanged(Migrate *m, GError **error)
{
  g_autofree char *doing = g_strdup_printf("move VM '%s'", dr_vm_name(m->vm));
  g_autoptr(DrInventory) now = dr_inventory_glance(m->source, error);
  g_autoptr(DrFindings) findings = dr_findings_new();

  if (!now)
    return FALSE;
  dr_inventory_changes(m->pre->inventory, now, findings);
  return dr_findings_block(findings) ? dr_findings_to_error(findings, doing, error) : TRUE;
}

/* What it came to; nothing is expected any more. */
static void
tell_last(Migrate *m)
{
  g_autoptr(JsonObject) info = dr_qmp_call_object(m->source, "query-migrate", NULL, NULL);
  JsonObject *ram = info ? dr_json_obj(info, "ram") : NULL;
  DrProgress progress = DR_PROGRESS_INIT;

  if (!ram)
    return;
  dr_ram_meter_take(&m->meter, ram, g_get_monotonic_time(), &progress);
  if (m->storage)
    dr_move_storage_progress(m->storage, &progress);
  progress.phase = m->postcopy_begun ? "post-copy" : "copying memory";
  dr_job_progress(m->job, &progress);
}

gboolean
dr_migrate_transfer(Migrate *m, GError **error)
{
  g_autofree char *uri = dr_migrate_uri(m);
  gint64 begun_us = g_get_monotonic_time();
  gboolean done;

  if (!is_unchanged(m, error) || !tell_alive(m, error) /* for its clock, too */ ||
      !dr_qmp_do(m->source, "migrate", dr_json("{'uri': <%s>}", uri), error) || !watch_precopy(m, error))
    return FALSE;
  done = m->postcopy_begun ? dr_migrate_finish_postcopy(m, error) : switch_over(m, error);
  m->transfer_us = g_get_monotonic_time() - begun_us;
  if (!source_is_closed(m))
    dr_qmp_read_some(m->source);
  dr_migrate_take_events(m); /* a short post-copy is over before its STOP was looked at */
  if (done && !source_is_closed(m))
    tell_last(m);
  return done;
}
