/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A live block copy after droverd was restarted. */
#include "base/error.h"
#include "job/disk-copy-internal.h"
#include "job/disk-image.h"

static gboolean
load(DrCopy *c, const char **ret_stage, GError **error)
{
  g_autoptr(JsonArray) journal =
      dr_store_load_journal(dr_job_host(c->d.job)->store, dr_job_id(c->d.job), error);

  for (guint i = 0; journal && i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i), *said = dr_json_obj(entry, "note");
    JsonArray *items = said ? dr_json_arr(said, "items") : NULL;

    *ret_stage = g_intern_string(dr_json_str(entry, "stage", ""));
    for (guint n = 0; items && n < json_array_get_length(items); n++) {
      DrCopyItem *item = g_new0(DrCopyItem, 1);

      dr_copy_item_load(item, json_array_get_object_element(items, n));
      item->blocking = dr_json_bool(c->request, "synchronous_writes", FALSE);
      g_ptr_array_add(c->items, item);
    }
  }
  return journal != NULL;
}

/* A pivot that was begun is brought to its end; what of it had happened shows in QEMU. */
static gboolean
pivot_the_rest(DrCopy *c, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&c->d, error);
  g_autoptr(DrDisks) disks = qmp ? dr_disks_read(qmp, dr_vm_record(c->d.vm)->cwd, error) : NULL;
  gboolean done = disks != NULL;

  c->keep = KEEP_COPY;
  for (guint i = 0; done && i < c->items->len; i++) {
    const DrCopyItem *item = c->items->pdata[i];

    if (!dr_copy_is_pivoted(disks, item))
      done = dr_copy_end_mirror(qmp, item, "block-job-complete", error);
    else
      done = dr_block_job_kill(qmp, item->job, dr_deadline_in(DR_COPY_KILL_MS),
                               error); /* it has ended: only to dismiss it */
    if (done)
      dr_nodes_close(qmp, item->old);
  }
  if (qmp)
    dr_disk_job_give(&c->d, qmp);
  return done;
}

static gboolean
recover_pivot(DrCopy *c, GError **error)
{
  GError *cause = NULL;

  c->was_ready = TRUE;
  if (!pivot_the_rest(c, &cause))
    return dr_copy_undo(c, cause, error);
  dr_job_set_result(c->d.job, dr_copy_result(c));
  return TRUE;
}

/* One that has ended by the first try is only to be dismissed. */
static gboolean
finish_again(DrQmp *qmp, const DrCopyItem *item, GError **error)
{
  g_auto(DrBlockJobLook) look = { 0 };

  return dr_block_job_look(qmp, item->job, &look, error) &&
         (look.state == DR_BLOCK_JOB_READY
              ? dr_copy_end_mirror(qmp, item, "block-job-cancel", error)
              : dr_block_job_kill(qmp, item->job, dr_deadline_in(DR_COPY_KILL_MS), error));
}

static gboolean
recover_finish(DrCopy *c, GError **error)
{
  GError *cause = NULL;
  DrQmp *qmp = dr_disk_job_take(&c->d, &cause);
  gboolean done = qmp != NULL;

  c->was_ready = TRUE;
  c->keep = KEEP_DISK;
  for (guint i = 0; done && i < c->items->len; i++) {
    const DrCopyItem *item = c->items->pdata[i];

    done = finish_again(qmp, item, &cause);
    dr_image_close(qmp, item->node, item->file_node);
  }
  if (qmp)
    dr_disk_job_give(&c->d, qmp);
  if (!done)
    return dr_copy_undo(c, cause, error);
  dr_job_set_result(c->d.job, dr_copy_result(c));
  return TRUE;
}

/* droverd ended just before. */
static gboolean
were_not_begun(DrCopy *c)
{
  DrQmp *qmp = dr_disk_job_take(&c->d, NULL);
  gboolean begun = !qmp; /* without its QEMU that is not what is to be said */

  for (guint i = 0; qmp && i < c->items->len; i++) {
    g_auto(DrBlockJobLook) look = { 0 };

    begun |= !dr_block_job_look(qmp, ((DrCopyItem *)c->items->pdata[i])->job, &look, NULL) ||
             look.state != DR_BLOCK_JOB_GONE;
  }
  if (qmp)
    dr_disk_job_give(&c->d, qmp);
  return !begun && !c->was_ready;
}

static gboolean
interrupted(DrCopy *c, const char *stage, GError **error)
{
  GError *cause = NULL;

  dr_error_set(&cause, DR_ERROR_CLOSED, "droverd ended while the copy was at stage '%s'", stage);
  dr_error_remedy(&cause, "start it again");
  return c->items->len ? dr_copy_undo(c, cause, error) : (g_propagate_error(error, cause), FALSE);
}

gboolean
dr_disk_copy_recover(DrJob *job, GError **error)
{
  g_auto(DrCopy) c = { 0 };
  const char *stage = "queued";

  dr_copy_init(&c, job);
  if (!load(&c, &stage, error))
    return FALSE;
  dr_job_step(job, stage);
  if (g_str_equal(stage, DR_COPY_STAGE_PIVOT))
    return recover_pivot(&c, error);
  if (g_str_equal(stage, DR_COPY_STAGE_FINISH))
    return recover_finish(&c, error);
  c.was_ready = g_str_equal(stage, DR_COPY_STAGE_READY);
  if ((!g_str_equal(stage, DR_COPY_STAGE_COPY) && !c.was_ready) || were_not_begun(&c))
    return interrupted(&c, stage, error);
  /* QEMU has gone on with it by itself. */
  dr_job_may_return(job);
  dr_copy_watch(&c);
  return dr_copy_to_the_end(&c, error);
}
