/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Following QEMU's block jobs to their end. */
#include "job/disk-job.h"
#include "base/error.h"

#include <poll.h>

#define LEASE_MS 10000
#define TICK_MS 20
#define TICK_MAX_MS 500
#define TICK_PART 64 /* of the time that it has taken so far: its end is seen so much later at most */
#define RATE_US 1000000
#define MAILBOX "disk"

static void
watch_free(gpointer data)
{
  DrBlockWatch *watch = data;

  g_free(watch->id);
  g_free(watch->what);
  g_free(watch->disk);
  g_free(watch->flush_node);
  g_free(watch->flush_file);
  dr_block_job_look_clear(&watch->look);
  g_free(watch);
}

void
dr_disk_job_init(DrDiskJob *d, DrJob *job)
{
  d->job = job;
  d->vm = dr_job_vm(job);
  d->box = dr_mailbox_new();
  d->watches = g_ptr_array_new_with_free_func(watch_free);
  d->begun_us = g_get_monotonic_time();
  dr_mailbox_publish(MAILBOX, dr_vm_name(d->vm), d->box);
}

gboolean
dr_disk_job_asked_abort(DrDiskJob *d, const char *method, JsonObject *params, JsonObject **ret_reply,
                        GError **error)
{
  if (!g_str_equal(method, "abort"))
    return FALSE;
  *ret_reply = json_object_new();
  return TRUE;
}

void
dr_disk_job_clear(DrDiskJob *d)
{
  dr_mailbox_withdraw(MAILBOX, dr_vm_name(d->vm), d->box);
  dr_mailbox_close(d->box);
  g_clear_pointer(&d->box, dr_mailbox_unref);
  g_clear_pointer(&d->watches, g_ptr_array_unref);
}

static DrBlockWatch *
add_watch(DrDiskJob *d, const char *id, const char *what, const char *disk)
{
  DrBlockWatch *watch = g_new0(DrBlockWatch, 1);

  watch->id = g_strdup(id);
  watch->what = g_strdup(what);
  watch->disk = g_strdup(disk ? disk : "?");
  g_ptr_array_add(d->watches, watch);
  return watch;
}

void
dr_disk_job_watch(DrDiskJob *d, const char *id, const char *what, const char *disk)
{
  add_watch(d, id, what, disk);
}

void
dr_disk_job_watch_header(DrDiskJob *d, const char *id, const char *what, const char *disk, const char *node,
                         const char *file)
{
  DrBlockWatch *watch = add_watch(d, id, what, disk);

  watch->flush_node = g_strdup(node);
  watch->flush_file = g_strdup(file);
}

DrMailbox *
dr_disk_job_find(const char *vm)
{
  return dr_mailbox_find(MAILBOX, vm);
}

void
dr_disk_job_lend_box(const char *vm, DrMailbox *box)
{
  dr_mailbox_publish(MAILBOX, vm, box);
}

void
dr_disk_job_take_box_back(const char *vm, DrMailbox *box)
{
  dr_mailbox_withdraw(MAILBOX, vm, box);
}

/* --- The monitor --- */

DrQmp *
dr_disk_job_take(DrDiskJob *d, GError **error)
{
  for (;;) {
    g_autoptr(GError) local = NULL;
    DrQmp *qmp = dr_vm_take(d->vm, "a job on its disks", LEASE_MS, &local);

    if (qmp)
      return qmp;
    if (!g_error_matches(local, DR_ERROR, DR_ERROR_BUSY) || !dr_vm_check(d->vm)) {
      g_propagate_error(error, g_steal_pointer(&local));
      return NULL;
    }
  }
}

void
dr_disk_job_give(DrDiskJob *d, DrQmp *qmp)
{
  dr_vm_give(d->vm, qmp);
}

/* --- Looking --- */

static gboolean
finalize(const DrBlockWatch *watch, DrQmp *qmp, GError **error)
{
  return dr_block_flush(qmp, watch->flush_node, watch->flush_file, error) &&
         dr_qmp_do(qmp, "job-finalize", dr_json("{'id': <%s>}", watch->id), error);
}

static gboolean
look_at_one(DrDiskJob *d, DrBlockWatch *watch, DrQmp *qmp, GError **error)
{
  gint64 total = watch->look.total;

  dr_block_job_look_clear(&watch->look);
  if (!dr_block_job_look(qmp, watch->id, &watch->look, error))
    return FALSE;
  if (watch->look.state == DR_BLOCK_JOB_GONE && watch->flush_node) {
    watch->look.state = DR_BLOCK_JOB_ENDED;
    watch->look.done = watch->look.total = total;
    return TRUE;
  }
  if (watch->look.state == DR_BLOCK_JOB_PENDING && watch->flush_node && (!d->calm || d->calm(d)))
    return finalize(watch, qmp, error);
  if (watch->look.state == DR_BLOCK_JOB_GONE)
    return dr_error_set(error, DR_ERROR_CLOSED, "%s has been ended by somebody else", watch->what);
  if (watch->look.error)
    return dr_error_set(error, DR_ERROR_QMP, "%s failed: %s", watch->what, watch->look.error);
  return TRUE;
}

static gboolean
look(DrDiskJob *d, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < d->watches->len; i++)
    if (!look_at_one(d, d->watches->pdata[i], qmp, error))
      return FALSE;
  return !d->tick || d->tick(d, qmp, error);
}

static void
note_rate(DrDiskJob *d, gint64 done)
{
  gint64 now = g_get_monotonic_time();

  if (d->seen_us == 0 || done < d->seen_done) {
    d->seen_us = now;
    d->seen_done = done;
  } else if (now - d->seen_us >= RATE_US || d->rate == 0) {
    d->rate = (double)(done - d->seen_done) / 1048576.0 / ((double)(now - d->seen_us + 1) / 1e6);
    d->seen_us = now;
    d->seen_done = done;
  }
}

static void
tell_progress(DrDiskJob *d)
{
  g_autofree DrDiskProgress *disks = g_new0(DrDiskProgress, d->watches->len);
  DrProgress progress = DR_PROGRESS_INIT;

  for (guint i = 0; i < d->watches->len; i++) {
    const DrBlockWatch *watch = d->watches->pdata[i];

    disks[i] = (DrDiskProgress){ watch->disk, watch->look.done, watch->look.total };
    progress.bytes_done += watch->look.done;
    progress.bytes_total += watch->look.total;
  }
  note_rate(d, progress.bytes_done);
  progress.rate_mib = d->rate;
  progress.pass = 1;
  progress.disks = disks;
  progress.n_disks = d->watches->len;
  if (d->rate > 0)
    progress.expected_ms =
        (gint64)((double)(progress.bytes_total - progress.bytes_done) / 1048.576 / d->rate);
  dr_job_progress(d->job, &progress);
}

static gboolean
all_are(const DrDiskJob *d, DrBlockJobState state)
{
  for (guint i = 0; i < d->watches->len; i++) {
    DrBlockJobState one = ((DrBlockWatch *)d->watches->pdata[i])->look.state;

    if (one != state && one != DR_BLOCK_JOB_ENDED)
      return FALSE;
  }
  return TRUE;
}

/* --- Questions --- */

static gboolean
set_speed(DrDiskJob *d, JsonObject *params, GError **error)
{
  gint64 bytes = dr_json_int(params, "mib", 0) * 1048576;
  DrQmp *qmp = dr_disk_job_take(d, error);
  gboolean set = qmp != NULL;

  for (guint i = 0; set && i < d->watches->len; i++) {
    const DrBlockWatch *watch = d->watches->pdata[i];

    if (watch->look.state != DR_BLOCK_JOB_ENDED)
      set = dr_qmp_do(qmp, "block-job-set-speed",
                      dr_json("{'device': <%s>, 'speed': <%x>}", watch->id, bytes), error);
  }
  if (qmp)
    dr_disk_job_give(d, qmp);
  return set;
}

static gboolean
cannot(const char *method, GError **error)
{
  dr_error_set(error, DR_ERROR_REFUSED, "the job under way knows nothing of '%s'", method);
  return dr_error_remedy(error, "drover jobs shows what it is");
}

static gboolean
answer(DrDiskJob *d)
{
  g_autofree char *method = NULL;
  g_autoptr(JsonObject) params = NULL;
  g_autoptr(GError) local = NULL;
  JsonObject *reply = NULL;
  gboolean over = FALSE;

  if (!dr_mailbox_take(d->box, &method, &params))
    return FALSE;
  if (g_str_equal(method, "bandwidth"))
    reply = set_speed(d, params, &local) ? json_object_new() : NULL;
  else if (d->asked)
    over = d->asked(d, method, params, &reply, &local);
  if (!reply && !local)
    cannot(method, &local);
  dr_mailbox_answer(d->box, reply, local);
  return over;
}

/* --- Waiting --- */

static int
next_tick_ms(const DrDiskJob *d)
{
  gint64 taken_ms = (g_get_monotonic_time() - d->begun_us) / 1000;

  return (int)CLAMP(taken_ms / TICK_PART, TICK_MS, TICK_MAX_MS);
}

static gboolean
is_cancelled(DrDiskJob *d, int timeout_ms)
{
  struct pollfd fds[] = { { .fd = dr_job_cancel_fd(d->job), .events = POLLIN },
                          { .fd = dr_mailbox_fd(d->box), .events = POLLIN } };

  poll(fds, G_N_ELEMENTS(fds), timeout_ms);
  return fds[0].revents != 0;
}

gboolean
dr_disk_job_follow(DrDiskJob *d, DrDeadline deadline, gboolean stay, DrDiskEvent *ret_event, GError **error)
{
  for (;;) {
    DrQmp *qmp = dr_disk_job_take(d, error);
    gboolean looked = qmp && look(d, qmp, error);

    if (qmp)
      dr_disk_job_give(d, qmp);
    if (!looked)
      return FALSE;
    tell_progress(d);
    *ret_event = all_are(d, DR_BLOCK_JOB_ENDED) ? DR_DISK_ENDED : DR_DISK_READY;
    if (*ret_event == DR_DISK_ENDED || (!stay && all_are(d, DR_BLOCK_JOB_READY)))
      return TRUE;
    if (is_cancelled(d, next_tick_ms(d)))
      return dr_error_set(error, DR_ERROR_CANCELLED, "cancelled");
    *ret_event = DR_DISK_ASKED;
    if (answer(d))
      return TRUE;
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "it was not ready in the time that it was given");
  }
}

gboolean
dr_disk_job_linger(DrDiskJob *d, GError **error)
{
  for (;;) {
    DrQmp *qmp = dr_disk_job_take(d, error);
    gboolean looked = qmp && look(d, qmp, error);

    if (qmp)
      dr_disk_job_give(d, qmp);
    if (!looked)
      return FALSE;
    if (is_cancelled(d, TICK_MAX_MS))
      return dr_error_set(error, DR_ERROR_CANCELLED, "cancelled");
    if (answer(d))
      return TRUE;
  }
}
