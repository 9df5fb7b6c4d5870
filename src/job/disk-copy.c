/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Copies disks of a running VM. */
#include "job/disk-copy.h"
#include "base/error.h"
#include "job/disk-copy-internal.h"
#include "job/disk-image.h"

#include <string.h>
#include <unistd.h>

#define STAGE_PREFLIGHT "preflight"
#define STAGE_CREATE "create"
#define CREATE_MS 60000
#define END_MS 60000

static void
item_free(gpointer data)
{
  DrCopyItem *item = data;
  char *texts[] = { item->disk,           item->target,       item->format, item->backing,
                    item->backing_format, item->backing_node, item->secret, item->node,
                    item->file_node,      item->job,          item->source, item->replaces };

  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_free(texts[i]);
  g_free(item->detect_zeroes);
  g_clear_pointer(&item->there, dr_target_free);
  g_clear_error(&item->there_error);
  g_clear_pointer(&item->old, g_ptr_array_unref);
  g_free(item);
}
/* --- Beginning --- */

static gboolean
open_target(DrCopy *c, DrQmp *qmp, DrCopyItem *item, GError **error)
{
  DrTargetKind kind;
  g_autoptr(JsonObject) protocol = dr_target_parse_options(item->target, &kind, error);
  gboolean formatted = kind == DR_TARGET_DEVICE && !g_str_equal(item->format, "raw");
  DrImage image = { .protocol = protocol,
                    .node = item->node,
                    .file_node = item->file_node,
                    .format = item->format,
                    .secret = item->secret,
                    .create = item->made || formatted,
                    .bytes = item->bytes,
                    .size = item->size,
                    .detect_zeroes = item->detect_zeroes,
                    .backing = item->backing,
                    .backing_format = item->backing_format,
                    .backing_node = item->backing_node,
                    .direct = item->direct && kind != DR_TARGET_NBD,
                    .no_flush = item->no_flush };

  item->reserved = item->made && dr_image_reserve(item->target, dr_vm_record(c->d.vm)->id.pid, error);
  if (item->made && !item->reserved)
    return FALSE;
  if (protocol && dr_image_open(qmp, &image, dr_deadline_in(CREATE_MS), error))
    return TRUE;
  g_prefix_error(error, "cannot open the target '%s': ", item->target);
  return FALSE;
}

static gboolean
start_mirror(DrCopy *c, DrQmp *qmp, DrCopyItem *item, GError **error)
{
  gint64 granularity = dr_json_int(c->request, "granularity", 0),
         buffer = dr_json_int(c->request, "buf_size", 0);
  JsonObject *arguments = dr_json(
      "{'job-id': <%s>, 'device': <%s>, 'target': <%s>, 'sync': <%s>, 'speed': <%x>, 'copy-mode': <%s>, "
      "'auto-finalize': <true>, 'auto-dismiss': <false>}",
      item->job, item->source, item->node, dr_json_str(c->request, "sync", "full"),
      dr_json_int(c->request, "bandwidth", 0) * 1048576, item->blocking ? "write-blocking" : "background");

  if (item->replaces)
    json_object_set_string_member(arguments, "replaces", item->replaces);
  if (granularity)
    json_object_set_int_member(arguments, "granularity", granularity);
  if (buffer)
    json_object_set_int_member(arguments, "buf-size", buffer);
  if (dr_qmp_do(qmp, "blockdev-mirror", arguments, error))
    return TRUE;
  g_prefix_error(error, "cannot copy disk '%s' to '%s': ", item->disk, item->target);
  return FALSE;
}

static gboolean
begin(DrCopy *c, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < c->items->len; i++)
    if (!open_target(c, qmp, c->items->pdata[i], error))
      return FALSE;
  if (!dr_job_enter(c->d.job, DR_COPY_STAGE_COPY, NULL, error))
    return FALSE;
  for (guint i = 0; i < c->items->len; i++)
    if (!start_mirror(c, qmp, c->items->pdata[i], error))
      return FALSE;
  return TRUE;
}

/* --- Does it get closer? --- */

static DrCopyItem *
item_of(DrCopy *c, const DrBlockWatch *watch)
{
  for (guint i = 0; i < c->items->len; i++)
    if (g_str_equal(((DrCopyItem *)c->items->pdata[i])->job, watch->id))
      return c->items->pdata[i];
  return NULL;
}

/* QEMU 8.2 and newer change the mode of a mirror that runs; before, it has to begin anew, and then cannot fall behind. */
static gboolean
make_blocking(DrCopy *c, DrQmp *qmp, DrCopyItem *item, GError **error)
{
  item->blocking = TRUE;
  dr_findings_add(c->findings, DR_FINDING_NOTE, "disk-write-blocking", NULL,
                  "the guest writes to disk '%s' faster than it is copied: from now on each of its writes "
                  "goes to the copy, too, "
                  "before it is done",
                  item->disk);
  dr_job_set_findings(c->d.job, c->findings);
  if (dr_qmp_version_number(qmp) >= DR_QEMU(8, 2))
    return dr_qmp_do(qmp, "block-job-change",
                     dr_json("{'id': <%s>, 'type': <'mirror'>, 'copy-mode': <'write-blocking'>}", item->job),
                     error);
  return dr_block_job_kill(qmp, item->job, dr_deadline_in(DR_COPY_KILL_MS), error) &&
         start_mirror(c, qmp, item, error);
}

static gboolean
watch_convergence(DrDiskJob *d, DrQmp *qmp, GError **error)
{
  DrCopy *c = d->data;

  for (guint i = 0; i < d->watches->len; i++) {
    const DrBlockWatch *watch = d->watches->pdata[i];
    DrCopyItem *item = item_of(c, watch);

    if (dr_mirror_pace_falls_behind(&item->pace, &watch->look, g_get_monotonic_time()) && !item->blocking &&
        !make_blocking(c, qmp, item, error))
      return FALSE;
  }
  return TRUE;
}

/* --- The end --- */

static void
remove_file(const DrCopyItem *item)
{
  if (item->reserved && unlink(item->target) == 0)
    g_message("'%s' is removed: it was never a whole copy", item->target);
}

/* Whether the disk stands on its copy already. */
gboolean
dr_copy_is_pivoted(const DrDisks *disks, const DrCopyItem *item)
{
  for (guint i = 0; i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);

    if (disk->top && g_str_equal(dr_node_name(disk->top), item->node))
      return TRUE;
  }
  return FALSE;
}

/* The disks are kept as they are. A copy that was never complete goes; one that was in step is left as it is at this moment. */
static gboolean
drop_copies(DrCopy *c, DrQmp *qmp, gboolean keep_files, GError **error)
{
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, NULL, error);
  gboolean dropped = disks != NULL;

  for (guint i = 0; disks && i < c->items->len;
       i++) /* before a cancel: it would wait for a server that is silent */
    if (!dr_copy_is_pivoted(disks, c->items->pdata[i]))
      dr_block_yank(qmp, ((const DrCopyItem *)c->items->pdata[i])->file_node);
  for (guint i = 0; disks && i < c->items->len; i++)
    dr_block_job_cancel(qmp, ((const DrCopyItem *)c->items->pdata[i])->job);
  for (guint i = 0; disks && i < c->items->len; i++) {
    const DrCopyItem *item = c->items->pdata[i];

    if (dr_copy_is_pivoted(disks, item))
      continue; /* the guest is on it */

    if (!dr_block_job_kill(qmp, item->job, dr_deadline_in(DR_COPY_KILL_MS), dropped ? error : NULL)) {
      dropped = FALSE;
      continue;
    }
    dr_image_close(qmp, item->node, item->file_node);
    if (!keep_files)
      remove_file(item);
  }
  return dropped;
}

gboolean
dr_copy_end_mirror(DrQmp *qmp, const DrCopyItem *item, const char *command, GError **error)
{
  g_autofree char *what = g_strdup_printf("the end of the copy of disk '%s'", item->disk);

  return dr_qmp_do(qmp, command, dr_json("{'device': <%s>}", item->job), error) &&
         dr_block_job_end(qmp, item->job, what, dr_deadline_in(END_MS), error);
}

JsonObject *
dr_copy_result(const DrCopy *c)
{
  JsonObject *object = json_object_new();
  JsonArray *copies = json_array_new();
  gint64 bytes = 0;

  for (guint i = 0; i < c->items->len; i++) {
    const DrCopyItem *item = c->items->pdata[i];
    const DrBlockWatch *watch = i < c->d.watches->len ? c->d.watches->pdata[i] : NULL;

    bytes += watch ? watch->look.done : 0;
    json_array_add_object_element(
        copies, dr_json("{'disk': <%s>, 'target': <%s>, 'format': <%s>, 'write_blocking': <%b>}", item->disk,
                        item->target, item->format, item->blocking));
  }
  json_object_set_array_member(object, "copies", copies);
  json_object_set_string_member(object, "kept", c->keep == KEEP_COPY ? "copy" : "disk");
  json_object_set_int_member(object, "bytes_moved", bytes);
  json_object_set_double_member(object, "total_ms", (double)(g_get_monotonic_time() - c->d.begun_us) / 1000);
  return object;
}

/* Each disk's switch is atomic in QEMU, and nothing that the guest was told is written is missing on either side of it. */
static gboolean
pivot(DrCopy *c, GError **error)
{
  DrQmp *qmp;
  gboolean done = TRUE;

  if (!dr_job_enter(c->d.job, DR_COPY_STAGE_PIVOT, NULL, error) || !dr_job_no_return(c->d.job, error))
    return FALSE;
  qmp = dr_disk_job_take(&c->d, error);
  for (guint i = 0; qmp && done && i < c->items->len; i++) {
    DrCopyItem *item = c->items->pdata[i];

    done = dr_copy_end_mirror(qmp, item, "block-job-complete", error);
    if (done)
      dr_nodes_close(qmp, item->old);
  }
  if (qmp)
    dr_disk_job_give(&c->d, qmp);
  return qmp && done;
}

/* Each copy is left as its disk is at the moment in which it ends. */
static gboolean
finish(DrCopy *c, GError **error)
{
  DrQmp *qmp;
  gboolean done = TRUE;

  if (!dr_job_enter(c->d.job, DR_COPY_STAGE_FINISH, NULL, error) || !dr_job_no_return(c->d.job, error))
    return FALSE;
  qmp = dr_disk_job_take(&c->d, error);
  for (guint i = 0; qmp && done && i < c->items->len; i++) {
    const DrCopyItem *item = c->items->pdata[i];

    done = dr_copy_end_mirror(qmp, item, "block-job-cancel", error);
    dr_image_close(qmp, item->node, item->file_node);
  }
  if (qmp)
    dr_disk_job_give(&c->d, qmp);
  return qmp && done;
}

/* --- What the user says --- */

static gboolean
asked(DrDiskJob *d, const char *method, JsonObject *params, JsonObject **ret_reply, GError **error)
{
  DrCopy *c = d->data;
  gboolean to_pivot = g_str_equal(method, "pivot");
  g_autofree char *id = NULL;

  if (!to_pivot && !g_str_equal(method, "abort"))
    return FALSE;
  if (to_pivot && !c->was_ready) {
    dr_error_set(error, DR_ERROR_BUSY, "the copy is not complete yet");
    dr_error_remedy(error, "drover watch %" G_GINT64_FORMAT " shows how far it is", dr_job_id(d->job));
    return FALSE;
  }
  c->keep = to_pivot ? KEEP_COPY : KEEP_DISK;
  id = g_strdup_printf("%" G_GINT64_FORMAT, dr_job_id(d->job));
  *ret_reply = dr_json("{'job': <%s>, 'complete': <%b>}", id, c->was_ready);
  return TRUE;
}

static gboolean
wait_word(DrCopy *c, GError **error)
{
  const char *then = dr_json_str(c->request, "then", "");
  DrDiskEvent event = DR_DISK_READY;

  if (g_str_equal(then, "pivot"))
    c->keep = KEEP_COPY;
  else if (g_str_equal(then, "finish"))
    c->keep = KEEP_DISK;
  if (c->keep == KEEP_UNDECIDED && !dr_disk_job_follow(&c->d, DR_DEADLINE_NEVER, TRUE, &event, error))
    return FALSE;
  if (event == DR_DISK_ENDED)
    return dr_error_set(error, DR_ERROR_CLOSED, "the copy has been ended by somebody else");
  return TRUE;
}

static gboolean
follow(DrCopy *c, GError **error)
{
  gint64 timeout = dr_json_int(c->request, "timeout", 0);
  DrDiskEvent event = DR_DISK_READY;

  if (!dr_disk_job_follow(&c->d, timeout ? dr_deadline_in(timeout * 1000) : DR_DEADLINE_NEVER, FALSE, &event,
                          error))
    return FALSE;
  if (event == DR_DISK_ASKED) /* only to abort */
    return dr_error_set(error, DR_ERROR_CANCELLED, "aborted before the copy was complete");
  c->was_ready = TRUE;
  return dr_job_enter(c->d.job, DR_COPY_STAGE_READY, NULL, error) && wait_word(c, error);
}

/* --- All of it --- */

void
dr_copy_init(DrCopy *c, DrJob *job)
{
  dr_disk_job_init(&c->d, job);
  dr_vm_set_aside(dr_job_vm(job));
  c->d.asked = asked;
  c->d.tick = watch_convergence;
  c->d.data = c;
  c->request = dr_job_request(job);
  c->items = g_ptr_array_new_with_free_func(item_free);
  c->findings = dr_findings_new();
}

void
dr_copy_clear(DrCopy *c)
{
  dr_disk_job_clear(&c->d);
  g_ptr_array_unref(c->items);
  dr_findings_free(c->findings);
}

static void
read_items(DrCopy *c)
{
  JsonArray *copies = dr_json_arr(c->request, "copies");

  for (guint i = 0; i < json_array_get_length(copies); i++) {
    JsonObject *pair = json_array_get_object_element(copies, i);
    DrCopyItem *item = g_new0(DrCopyItem, 1);

    item->disk = g_strdup(dr_json_str(pair, "disk", ""));
    item->target = g_strdup(dr_json_str(pair, "target", ""));
    item->node = dr_block_id("copy");
    item->file_node = g_strconcat(item->node, "-file", NULL);
    item->job = g_strconcat(item->node, "-job", NULL);
    item->blocking = dr_json_bool(c->request, "synchronous_writes", FALSE);
    g_ptr_array_add(c->items, item);
  }
}

void
dr_copy_watch(DrCopy *c)
{
  for (guint i = 0; i < c->items->len; i++) {
    const DrCopyItem *item = c->items->pdata[i];
    g_autofree char *what = g_strdup_printf("the copy of disk '%s'", item->disk);

    dr_disk_job_watch(&c->d, item->job, what, item->disk);
  }
}

/* Its QEMU has ended, and with it the copying: what is left of it are files. */
static void
without_qemu(DrCopy *c, GError **error)
{
  gboolean pivoting = c->keep == KEEP_COPY;

  for (guint i = 0; i < c->items->len && !c->was_ready; i++)
    remove_file(c->items->pdata[i]);
  if (c->was_ready)
    dr_error_remedy(error, pivoting ? "the guest's last writes are in the disk or in the copy: compare the "
                                      "two before it is started again"
                                    : "the disks are as the guest left them; the copies lag behind them");
}

/* An error, or the word to keep the disks while the copies were not complete. */
gboolean
dr_copy_undo(DrCopy *c, GError *cause, GError **error)
{
  g_autoptr(GError) local = NULL;
  DrQmp *qmp = dr_disk_job_take(&c->d, &local);

  if (qmp) {
    gboolean keep_files = c->was_ready && !g_error_matches(cause, DR_ERROR, DR_ERROR_CANCELLED);

    if (!drop_copies(c, qmp, keep_files, &local))
      g_warning("%s", local->message);
    dr_disk_job_give(&c->d, qmp);
  }
  g_propagate_error(error, cause);
  if (!qmp && !dr_vm_check(c->d.vm))
    without_qemu(c, error);
  return FALSE;
}

gboolean
dr_copy_to_the_end(DrCopy *c, GError **error)
{
  GError *cause = NULL;

  if (!follow(c, &cause))
    return dr_copy_undo(c, cause, error);
  if (c->keep == KEEP_COPY ? !pivot(c, &cause) : !finish(c, &cause))
    return dr_copy_undo(c, cause, error);
  dr_job_set_result(c->d.job, dr_copy_result(c));
  return TRUE;
}

gboolean
dr_disk_copy_run(DrJob *job, GError **error)
{
  g_auto(DrCopy) c = { 0 };
  GError *cause = NULL;
  gboolean begun;
  DrQmp *qmp;

  dr_copy_init(&c, job);
  read_items(&c);
  if (!dr_job_enter(job, STAGE_PREFLIGHT, NULL, error))
    return FALSE;
  dr_copy_look_at_targets(&c);
  qmp = dr_disk_job_take(&c.d, error);
  if (!qmp)
    return FALSE;
  if (!dr_copy_preflight(&c, qmp, error) || !dr_job_enter(job, STAGE_CREATE, dr_copy_note(&c), error)) {
    dr_disk_job_give(&c.d, qmp);
    return FALSE;
  }
  begun = begin(&c, qmp, &cause);
  dr_disk_job_give(&c.d, qmp);
  if (!begun)
    return dr_copy_undo(&c, cause, error);
  dr_copy_watch(&c);
  return dr_copy_to_the_end(&c, error);
}
