/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See migrate-storage.h: a mirror for each disk, before the guest. */
#include "base/error.h"
#include "job/block-job.h"
#include "job/disk-image.h"
#include "job/migrate-storage-internal.h"
#include "job/upgrade-internal.h"

#include <poll.h>

#define STAGE_STORAGE "storage"
#define ASK_MS 15000
#define EXPORT_MS 30000
#define KILL_MS 10000
#define SOON_MS 2000
#define END_MS 30000
#define TICK_MS 200
#define TELL_MS 1000
#define RECONNECT_S 40 /* QEMU's NBD client waits so long for the link; the other host gives up after 60 s */
#define CONNECT_MS 2000
#define HANGS_US (15 * G_USEC_PER_SEC)

static JsonObject *
note(const DrMoveStorage *storage)
{
  JsonObject *object = json_object_new();
  JsonArray *images = json_array_new();

  for (guint i = 0; i < storage->images->len; i++) {
    const DrMoveImage *image = storage->images->pdata[i];

    if (image->copied)
      json_array_add_object_element(images, dr_json("{'node': <%s>, 'job': <%s>}", image->node, image->job));
  }
  json_object_set_array_member(object, "storage", images);
  return object;
}

static gboolean
ask_exports(Migrate *m, GError **error)
{
  JsonObject *params = json_object_new();
  JsonArray *exports = json_array_new();
  g_autoptr(JsonObject) reply = NULL;

  for (guint i = 0; i < m->storage->images->len; i++) {
    const DrMoveImage *image = m->storage->images->pdata[i];
    g_autofree char *there = dr_migrate_there(m, image->path);
    JsonObject *one;

    if (!image->copied)
      continue;
    one = dr_json("{'path': <%s>, 'export': <%s>, 'format': <%s>}", there, image->export_name, image->format);
    if (image->secret)
      json_object_set_string_member(one, "secret", image->secret);
    json_array_add_object_element(exports, one);
  }
  json_object_set_array_member(params, "exports", exports);
  json_object_set_string_member(params, "transport", dr_move_transport_name(m->options.transport));
  reply = dr_migrate_ask(m, "move.storage", params, EXPORT_MS, error);
  if (reply)
    m->storage->tokens = dr_json_strv(dr_json_arr(reply, "tokens"));
  return reply != NULL;
}

/* QEMU's NBD client reconnects by itself; a request waits for that. */
static gboolean
add_target(Migrate *m, const DrMoveImage *image, const char *socket, GError **error)
{
  return dr_qmp_do(m->source, "blockdev-add",
                   dr_json("{'driver': <'nbd'>, 'node-name': <%s>, 'export': <%s>, 'discard': <'unmap'>, "
                           "'reconnect-delay': <%x>, "
                           "'server': <{'type': <'unix'>, 'path': <%s>}>}",
                           image->node, image->export_name, (gint64)RECONNECT_S, socket),
                   error);
}

static gboolean
start_mirror(Migrate *m, const DrMoveImage *image, GError **error)
{
  return dr_qmp_do(
      m->source, "blockdev-mirror",
      dr_json(
          "{'job-id': <%s>, 'device': <%s>, 'target': <%s>, 'sync': <%s>, 'speed': <%x>, 'copy-mode': <%s>, "
          "'on-target-error': <'stop'>, 'auto-finalize': <true>, 'auto-dismiss': <false>}",
          image->job, image->root, image->node, image->backing ? "top" : "full", m->options.bandwidth << 20,
          image->blocking ? "write-blocking" : "background"),
      error);
}

static gboolean
start_one(Migrate *m, const DrMoveImage *image, const char *socket, GError **error)
{
  if (add_target(m, image, socket, error) && start_mirror(m, image, error))
    return TRUE;
  g_prefix_error(error, "cannot copy disk '%s' to the other host: ", image->disk);
  return FALSE;
}

static gboolean
start_all(Migrate *m, GError **error)
{
  g_autofree char *socket = g_strconcat(m->socket_path, ".nbd", NULL);

  m->storage->streams =
      dr_streams_new_nbd(m->peer, m->move, socket, (const char *const *)m->storage->tokens, error);
  if (!m->storage->streams)
    return FALSE;
  for (guint i = 0; i < m->storage->images->len; i++) {
    const DrMoveImage *image = m->storage->images->pdata[i];

    if (image->copied && !start_one(m, image, socket, error))
      return FALSE;
  }
  return TRUE;
}

/* --- Until they are in step --- */

/* The other host must hear of us once in a minute; a link that broke is opened again, and QEMU's client finds its way by itself. */
static gboolean
tell(Migrate *m, gint64 *told_us, GError **error)
{
  gint64 now = g_get_monotonic_time();
  g_autoptr(GError) local = NULL;
  g_autoptr(JsonObject) reply = NULL;

  if (now - *told_us < TELL_MS * 1000)
    return TRUE;
  reply = dr_migrate_ask(m, "move.status", NULL, TELL_MS * 3, &local);
  if (reply && g_str_equal(dr_json_str(reply, "state", ""), "discarded"))
    return dr_error_set(error, DR_ERROR_CLOSED, "the other host has given the guest up");
  if (reply) {
    *told_us = g_get_monotonic_time();
    return TRUE;
  }
  if (now - *told_us < RECONNECT_S * G_USEC_PER_SEC) {
    dr_streams_break(m->storage->streams); /* TCP alone may take long to see it */
    dr_peer_connect(m->peer, dr_deadline_in(CONNECT_MS), NULL);
    return TRUE;
  }
  g_propagate_prefixed_error(error, g_steal_pointer(&local),
                             "the other host cannot be reached while its disks are copied: ");
  return FALSE;
}

/* The guest writes faster than the link carries: then each of its writes waits for both. */
static gboolean
make_blocking(Migrate *m, DrMoveImage *image, GError **error)
{
  image->blocking = TRUE;
  dr_findings_add(m->pre->findings, DR_FINDING_NOTE, "disk-write-blocking", NULL,
                  "the guest writes to disk '%s' faster than it is copied: from now on each of its writes "
                  "goes to the copy, too, "
                  "before it is done",
                  image->disk);
  dr_job_set_findings(m->job, m->pre->findings);
  if (dr_qmp_version_number(m->source) >= DR_QEMU(8, 2))
    return dr_qmp_do(m->source, "block-job-change",
                     dr_json("{'id': <%s>, 'type': <'mirror'>, 'copy-mode': <'write-blocking'>}", image->job),
                     error);
  return dr_block_job_kill(m->source, image->job, dr_deadline_in(KILL_MS), error) &&
         start_mirror(m, image, error);
}

static gboolean
look_at(Migrate *m, DrMoveImage *image, gboolean *ret_ready, GError **error)
{
  g_auto(DrBlockJobLook) look = { 0 };
  gint64 now = g_get_monotonic_time();
  gboolean behind;

  if (!dr_block_job_look(m->source, image->job, &look, error))
    return FALSE;
  if (look.state == DR_BLOCK_JOB_ENDED || look.state == DR_BLOCK_JOB_GONE)
    return dr_error_set(error, DR_ERROR_QMP, "copying disk '%s' failed: %s", image->disk,
                        look.error ? look.error : "it was ended by somebody else");
  if (look.state == DR_BLOCK_JOB_NO_SPACE) {
    dr_error_set(error, DR_ERROR_IO, "there is no room for disk '%s' on the other host any more",
                 image->disk);
    return dr_error_remedy(error, "make room there, then start the move again");
  }
  image->done = look.done;
  image->total = look.total;
  *ret_ready &= look.state == DR_BLOCK_JOB_READY;
  if (look.state == DR_BLOCK_JOB_STOPPED) /* the link was away for longer than QEMU waits for it */
    dr_qmp_do(m->source, "block-job-resume", dr_json("{'device': <%s>}", image->job), NULL);
  behind = dr_mirror_pace_falls_behind(&image->pace, &look, now);
  if (dr_mirror_pace_stands_still(&image->pace, &look, now) > HANGS_US) {
    image->pace.moved_us = now;
    g_message("VM '%s': copying disk '%s' stands still; its stream is opened anew", dr_vm_name(m->vm),
              image->disk);
    dr_streams_break(m->storage->streams);
  }
  if (!behind || image->blocking || m->link_is_away)
    return TRUE;
  return make_blocking(m, image, error);
}

/* Waits for an event of the source (a job that is ready), a cancel; at most TICK_MS. */
static gboolean
is_cancelled(Migrate *m)
{
  struct pollfd fds[] = { { .fd = dr_job_cancel_fd(m->job), .events = POLLIN },
                          { .fd = dr_qmp_fd(m->source), .events = POLLIN } };
  gboolean came = dr_migrate_take_events(m); /* with the answer to a command */

  poll(fds, G_N_ELEMENTS(fds), came ? 0 : TICK_MS);
  return fds[0].revents != 0;
}

static void
tell_progress(Migrate *m, gint64 taken_us)
{
  DrProgress progress = DR_PROGRESS_INIT;

  dr_move_storage_progress(m->storage, &progress);
  for (guint i = 0; i < progress.n_disks; i++) {
    progress.bytes_done += progress.disks[i].bytes_done;
    progress.bytes_total += progress.disks[i].bytes_total;
  }
  progress.rate_mib = (double)progress.bytes_done / 1048576 / ((double)(taken_us + 1) / 1e6);
  progress.phase = "copying disks";
  if (progress.rate_mib > 0)
    progress.expected_ms =
        (gint64)((double)(progress.bytes_total - progress.bytes_done) / 1048.576 / progress.rate_mib);
  dr_job_progress(m->job, &progress);
}

static gboolean
await(Migrate *m, GError **error)
{
  gint64 told_us = g_get_monotonic_time(), begun_us = told_us;

  for (;;) {
    gboolean ready = TRUE;

    for (guint i = 0; i < m->storage->images->len; i++) {
      DrMoveImage *image = m->storage->images->pdata[i];

      if (image->copied && !look_at(m, image, &ready, error))
        return FALSE;
    }
    tell_progress(m, g_get_monotonic_time() - begun_us);
    m->link_is_away = g_get_monotonic_time() - told_us > 2 * TELL_MS * 1000;
    if (!tell(m, &told_us, error))
      return FALSE;
    if (ready && !m->link_is_away)
      return TRUE;
    if (is_cancelled(m))
      return dr_error_set(error, DR_ERROR_CANCELLED, "cancelled");
  }
}

gboolean
dr_move_storage_copy(Migrate *m, GError **error)
{
  gint64 begun_us = g_get_monotonic_time();

  if (!dr_job_enter(m->job, STAGE_STORAGE, note(m->storage), error) || !ask_exports(m, error) ||
      !start_all(m, error) || !await(m, error))
    return FALSE;
  m->storage_us = g_get_monotonic_time() - begun_us;
  return TRUE;
}

/* --- The end --- */

static gboolean
end_one(Migrate *m, const DrMoveImage *image, GError **error)
{
  return dr_qmp_do(m->source, "block-job-cancel", dr_json("{'device': <%s>}", image->job), error);
}

static gboolean
await_end(Migrate *m, const DrMoveImage *image, GError **error)
{
  g_autofree char *what = g_strdup_printf("the end of copying disk '%s'", image->disk);

  return dr_block_job_end(m->source, image->job, what, dr_deadline_in(END_MS), error) &&
         dr_qmp_do(m->source, "blockdev-del", dr_json("{'node-name': <%s>}", image->node), error);
}

gboolean
dr_move_storage_finish(Migrate *m, GError **error)
{
  static gboolean (*const steps[])(Migrate *, const DrMoveImage *, GError **) = { end_one, await_end };
  g_autoptr(JsonObject) reply = NULL;

  for (guint step = 0; step < G_N_ELEMENTS(steps); step++)
    for (guint i = 0; i < m->storage->images->len; i++) {
      const DrMoveImage *image = m->storage->images->pdata[i];

      if (image->copied && !steps[step](m, image, error))
        return FALSE;
    }
  g_clear_pointer(&m->storage->streams, dr_streams_free);
  reply = dr_migrate_ask(m, "move.storage-end", NULL, ASK_MS, error);
  return reply != NULL;
}

/* What is to go: ours, or what an earlier droverd noted. (element-type utf8): node, job, node, job … */
static GPtrArray *
names_to_drop(const DrMoveStorage *storage, JsonObject *said)
{
  GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
  JsonArray *images = said ? dr_json_arr(said, "storage") : NULL;

  for (guint i = 0; storage && !storage->later && i < storage->images->len; i++) {
    const DrMoveImage *image = storage->images->pdata[i];

    if (!image->copied)
      continue;
    g_ptr_array_add(names, g_strdup(image->node));
    g_ptr_array_add(names, g_strdup(image->job));
  }
  for (guint i = 0; images && i < json_array_get_length(images); i++) {
    JsonObject *image = json_array_get_object_element(images, i);

    g_ptr_array_add(names, g_strdup(dr_json_str(image, "node", "")));
    g_ptr_array_add(names, g_strdup(dr_json_str(image, "job", "")));
  }
  return names;
}

/* All are cancelled before one is waited for: QEMU drains all of its disks when a job ends, and stands still, guest and monitor, for a
 * request of another job that waits for a server (7.2). FALSE: one is still there. */
static gboolean
end_jobs(DrQmp *qmp, GPtrArray *names, DrDeadline deadline)
{
  gboolean ended = TRUE;

  for (guint i = 0; i < names->len; i += 2)
    dr_block_yank(qmp, names->pdata[i]);
  for (guint i = 1; i < names->len; i += 2)
    dr_block_job_cancel(qmp, names->pdata[i]);
  for (guint i = 1; i < names->len; i += 2) {
    g_autoptr(GError) error = NULL;

    if (dr_block_job_kill(qmp, names->pdata[i], deadline, &error))
      continue;
    g_debug("block job '%s': %s", (char *)names->pdata[i], error->message);
    ended = FALSE;
  }
  return ended;
}

void
dr_move_storage_drop(Migrate *m)
{
  g_autoptr(GPtrArray) names = names_to_drop(m->storage, m->storage_note);
  gboolean ended;

  if (!m->source || names->len == 0)
    return;
  ended =
      end_jobs(m->source, names, dr_deadline_in(SOON_MS)); /* while what is under way may still be answered */
  if (m->storage)
    g_clear_pointer(&m->storage->streams, dr_streams_free);
  if (!ended && !end_jobs(m->source, names, dr_deadline_in(KILL_MS)))
    g_warning("VM '%s': what copied its disks does not end; block-job-cancel and blockdev-del end it by hand",
              dr_vm_name(m->vm));
  for (guint i = 0; i < names->len; i += 2)
    dr_image_close(m->source, names->pdata[i], names->pdata[i]);
}
