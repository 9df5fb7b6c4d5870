/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Looking at QEMU's background jobs, and ending them. */
#include "job/block-job.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define LOOK_US 500
#define FLUSH_MS 60000
#define LOOK_MAX_US 100000

void
dr_block_job_look_clear(DrBlockJobLook *look)
{
  g_clear_pointer(&look->error, g_free);
}

char *
dr_block_id(const char *name)
{
  return g_strdup_printf("drover-%08x-%s", g_random_int(), name);
}

static JsonObject *
find(JsonArray *array, const char *member, const char *id)
{
  for (guint i = 0; i < json_array_get_length(array); i++) {
    JsonObject *object = json_array_get_object_element(array, i);

    if (g_str_equal(dr_json_str(object, member, ""), id))
      return object;
  }
  return NULL;
}

/* An error that stops a job is told by query-block-jobs only. */
static gboolean
look_why(DrQmp *qmp, const char *id, DrBlockJobState *state, GError **error)
{
  g_autoptr(JsonArray) jobs = dr_qmp_call_array(qmp, "query-block-jobs", NULL, error);
  JsonObject *job = jobs ? find(jobs, "device", id) : NULL;
  const char *status = job ? dr_json_str(job, "io-status", "ok") : "ok";

  if (!g_str_equal(status, "ok"))
    *state = g_str_equal(status, "nospace") ? DR_BLOCK_JOB_NO_SPACE : DR_BLOCK_JOB_STOPPED;
  return jobs != NULL;
}

static DrBlockJobState
state_of(const char *status)
{
  if (g_str_equal(status, "ready"))
    return DR_BLOCK_JOB_READY;
  if (g_str_equal(status, "pending"))
    return DR_BLOCK_JOB_PENDING;
  return g_str_equal(status, "concluded") || g_str_equal(status, "null") ? DR_BLOCK_JOB_ENDED
                                                                         : DR_BLOCK_JOB_RUNNING;
}

gboolean
dr_block_job_look(DrQmp *qmp, const char *id, DrBlockJobLook *look, GError **error)
{
  g_autoptr(JsonArray) jobs = dr_qmp_call_array(qmp, "query-jobs", NULL, error);
  JsonObject *job = jobs ? find(jobs, "id", id) : NULL;

  *look = (DrBlockJobLook){ .state = DR_BLOCK_JOB_GONE };
  if (!job)
    return jobs != NULL;
  look->state = state_of(dr_json_str(job, "status", ""));
  look->done = dr_json_int(job, "current-progress", 0);
  look->total = dr_json_int(job, "total-progress", 0);
  look->error = g_strdup(dr_json_str(job, "error", NULL));
  if (!g_str_equal(dr_json_str(job, "status", ""), "paused") &&
      !g_str_equal(dr_json_str(job, "status", ""), "standby"))
    return TRUE;
  return look_why(qmp, id, &look->state, error);
}

static gboolean
dismiss(DrQmp *qmp, const char *id, GError **error)
{
  return dr_qmp_do(qmp, "job-dismiss", dr_json("{'id': <%s>}", id), error);
}

gboolean
dr_block_job_end(DrQmp *qmp, const char *id, const char *what, DrDeadline deadline, GError **error)
{
  gulong pause_us = LOOK_US;

  for (;;) {
    g_auto(DrBlockJobLook) look = { 0 };

    if (!dr_block_job_look(qmp, id, &look, error))
      return FALSE;
    if (look.state == DR_BLOCK_JOB_GONE)
      return dr_error_set(error, DR_ERROR_CLOSED, "%s: QEMU knows nothing of it any more", what);
    if (look.state == DR_BLOCK_JOB_ENDED)
      return dismiss(qmp, id, error) &&
             (!look.error || dr_error_set(error, DR_ERROR_QMP, "%s: %s", what, look.error));
    if (look.state == DR_BLOCK_JOB_STOPPED || look.state == DR_BLOCK_JOB_NO_SPACE)
      return dr_error_set(error, DR_ERROR_IO, "%s: stopped by an I/O error", what);
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "%s: QEMU does not come to an end with it", what);
    g_usleep(pause_us);
    pause_us = MIN(pause_us * 2, LOOK_MAX_US);
  }
}

void
dr_block_yank(DrQmp *qmp, const char *node)
{
  g_autoptr(GError) error = NULL;

  if (!dr_qmp_do(qmp, "yank", dr_json("{'instances': <[{'type': <'block-node'>, 'node-name': <%s>}]>}", node),
                 &error))
    g_debug("yank %s: %s", node, error->message);
}

/* Again and again: a request that waits for an NBD server is let go only if it waits already when the cancel comes (7.2). */
void
dr_block_job_cancel(DrQmp *qmp, const char *id)
{
  g_autoptr(GError) error = NULL;

  if (!dr_qmp_do(qmp, "block-job-cancel", dr_json("{'device': <%s>, 'force': <true>}", id), &error))
    g_debug("block-job-cancel %s: %s", id, error->message); /* it may have ended meanwhile */
}

gboolean
dr_block_job_kill(DrQmp *qmp, const char *id, DrDeadline deadline, GError **error)
{
  gulong pause_us = LOOK_US;

  for (;;) {
    g_auto(DrBlockJobLook) look = { 0 };

    if (!dr_block_job_look(qmp, id, &look, error))
      return FALSE;
    if (look.state == DR_BLOCK_JOB_GONE)
      return TRUE;
    if (look.state == DR_BLOCK_JOB_ENDED)
      return dismiss(qmp, id, error);
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "block job '%s' does not end", id);
    dr_block_job_cancel(qmp, id);
    g_usleep(pause_us);
    pause_us = MIN(pause_us * 2, LOOK_MAX_US);
  }
}

gboolean
dr_block_stream(DrQmp *qmp, const DrBlockStream *stream, GError **error)
{
  JsonObject *arguments = dr_json("{'job-id': <%s>, 'device': <%s>, 'speed': <%x>, 'on-error': <'stop'>, "
                                  "'auto-finalize': <false>, 'auto-dismiss': <true>}",
                                  stream->job, stream->top, stream->bytes_s);

  if (stream->base)
    json_object_set_string_member(arguments, "base-node", stream->base);
  if (stream->base_file) /* QEMU would write the name that it was opened by, from its own directory */
    json_object_set_string_member(arguments, "backing-file", stream->base_file);
  return dr_qmp_do(qmp, "block-stream", arguments, error);
}

static gboolean
sync_fd(int fd, const char *file, GError **error)
{
  return fd < 0 || fdatasync(fd) == 0 ||
         dr_error_set_errno(error, errno, "cannot write '%s' to its disk", file);
}

gboolean
dr_block_flush(DrQmp *qmp, const char *node, const char *file, GError **error)
{
  g_autofree char *line = g_strdup_printf("qemu-io \"%s\" flush", node);
  dr_autofd int fd = file && *file == '/' ? open(file, O_RDONLY | O_CLOEXEC) : -1;
  g_autoptr(JsonNode) said = NULL;
  const char *text;

  if (!sync_fd(fd, file, error))
    return FALSE;
  said = dr_qmp_call(qmp, "human-monitor-command", dr_json("{'command-line': <%s>}", line), FLUSH_MS, error);
  text = said && JSON_NODE_HOLDS_VALUE(said) ? json_node_get_string(said) : NULL;
  if (!said)
    return FALSE;
  if (text && *text)
    return dr_error_set(error, DR_ERROR_IO, "cannot write block node '%s' to its disk: %s", node, text);
  return sync_fd(fd, file, error); /* QEMU says nothing of a flush that failed */
}

gboolean
dr_block_create(DrQmp *qmp, JsonObject *options, DrDeadline deadline, GError **error)
{
  g_autofree char *id = dr_block_id("create");
  JsonObject *arguments = json_object_new();

  json_object_set_string_member(arguments, "job-id", id);
  json_object_set_object_member(arguments, "options", options);
  return dr_qmp_do(qmp, "blockdev-create", arguments, error) &&
         dr_block_job_end(qmp, id, "cannot make the image", deadline, error);
}
