/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pulling into one disk. */
#include "job/pull-part.h"
#include "base/error.h"
#include "job/disk-image.h"

#define KILL_MS 30000
#define AGAIN_S 2 /* how often a source that cannot be read is tried again */

DrPullPart *
dr_pull_part_new(const char *name, const DrDisk *disk, DrNode *base)
{
  DrPullPart *part = g_new0(DrPullPart, 1);

  part->disk = g_strdup(name);
  part->device = g_strdup(disk->device ? disk->device : disk->backend);
  part->job = dr_block_id("pull");
  part->top = g_strdup(dr_node_name(disk->top));
  part->file = g_strdup(dr_node_file(disk->top));
  part->base = base ? g_strdup(dr_node_name(base)) : NULL;
  part->base_file = base && *dr_node_file(base) == '/' ? g_strdup(dr_node_file(base)) : NULL;
  part->old = dr_node_named_tree(dr_node_backing(disk->top), base);
  return part;
}

void
dr_pull_part_free(DrPullPart *part)
{
  if (!part)
    return;
  g_free(part->disk);
  g_free(part->device);
  g_free(part->job);
  g_free(part->top);
  g_free(part->file);
  g_free(part->base);
  g_free(part->base_file);
  g_clear_pointer(&part->old, g_ptr_array_unref);
  g_free(part);
}

JsonObject *
dr_pull_part_note(const DrPullPart *part)
{
  JsonObject *object = dr_json("{'job': <%s>, 'top': <%s>}", part->job, part->top);
  JsonArray *old = json_array_new();

  for (guint i = 0; i < part->old->len; i++)
    json_array_add_string_element(old, part->old->pdata[i]);
  json_object_set_array_member(object, "old", old);
  json_object_set_string_member(object, "device", part->device);
  json_object_set_string_member(object, "file", part->file);
  if (part->base)
    json_object_set_string_member(object, "base", part->base);
  return object;
}

DrPullPart *
dr_pull_part_from_note(const char *name, JsonObject *note)
{
  JsonArray *old = note ? dr_json_arr(note, "old") : NULL;
  DrPullPart *part;

  if (!old)
    return NULL;
  part = g_new0(DrPullPart, 1);
  part->disk = g_strdup(name);
  part->device = g_strdup(dr_json_str(note, "device", NULL));
  part->job = g_strdup(dr_json_str(note, "job", ""));
  part->top = g_strdup(dr_json_str(note, "top", ""));
  part->file = g_strdup(dr_json_str(note, "file", NULL));
  part->base = g_strdup(dr_json_str(note, "base", NULL));
  part->old = g_ptr_array_new_with_free_func(g_free);
  for (guint i = 0; i < json_array_get_length(old); i++)
    g_ptr_array_add(part->old, g_strdup(json_array_get_string_element(old, i)));
  return part;
}

gboolean
dr_pull_part_has_work(const char *name, const DrDisk *disk, const DrNode *base, GError **error)
{
  const DrNode *backing = dr_node_backing(disk->top);

  if (disk->read_only)
    return dr_error_set(error, DR_ERROR_REFUSED, "disk '%s' is read-only: nothing can be pulled into it",
                        name);
  if (!backing)
    return dr_error_set(error, DR_ERROR_REFUSED, "disk '%s' has no backing image: there is nothing to pull",
                        name);
  if (backing == base)
    return dr_error_set(error, DR_ERROR_REFUSED, "disk '%s' stands on '%s' already", name,
                        dr_node_file(base));
  return TRUE;
}

/* --- The job in QEMU --- */

/* A parent that cannot be read for a moment (a server that is away) is no reason to give up: the guest has its own reads of
 * it to wait for, and what was pulled stays. */
gboolean
dr_pull_part_begin(const DrPullPart *part, DrQmp *qmp, gint64 mib, GError **error)
{
  DrBlockStream stream = { .job = part->job,
                           .top = part->top,
                           .base = part->base,
                           .base_file = part->base_file,
                           .bytes_s = mib * 1048576 };

  if (dr_block_stream(qmp, &stream, error))
    return TRUE;
  g_prefix_error(error, "cannot pull disk '%s': ", part->disk);
  return FALSE;
}

gboolean
dr_pull_part_is(const DrPullPart *part, JsonObject *entry)
{
  return part->device && (g_str_equal(dr_json_str(entry, "qdev", ""), part->device) ||
                          g_str_equal(dr_json_str(entry, "device", ""), part->device));
}

void
dr_pull_part_watch(const DrPullPart *part, DrDiskJob *d)
{
  g_autofree char *what = g_strdup_printf("the pull of disk '%s'", part->disk);

  dr_disk_job_watch_header(d, part->job, what, part->disk, part->top, part->file); /* is_pulled() */
}

/* QEMU's graph tells how its job has ended. */
static gboolean
is_pulled(const DrPullPart *part, DrQmp *qmp, GError **error)
{
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, NULL, error);
  const DrDisk *disk = disks ? dr_disks_find(disks, part->top, error) : NULL;
  const DrNode *backing = disk ? dr_node_backing(disk->top) : NULL;

  if (disk && (part->base ? backing && g_str_equal(dr_node_name(backing), part->base) : !backing))
    return TRUE;
  return disk && dr_error_set(error, DR_ERROR_QMP, "the pull of disk '%s' was ended before all was pulled",
                              part->disk);
}

gboolean
dr_pull_part_close(const DrPullPart *part, DrQmp *qmp, GError **error)
{
  if (!is_pulled(part, qmp, error))
    return FALSE;
  dr_nodes_close(qmp, part->old);
  return TRUE;
}

gboolean
dr_pull_part_kill(const DrPullPart *part, DrQmp *qmp)
{
  g_autoptr(GError) error = NULL;

  if (dr_block_job_kill(qmp, part->job, dr_deadline_in(KILL_MS), &error))
    return TRUE;
  g_warning("%s", error->message);
  return FALSE;
}

/* --- Again --- */

void
dr_pull_again_init(DrPullAgain *again)
{
  again->findings = dr_findings_new();
}

void
dr_pull_again_clear(DrPullAgain *again)
{
  g_clear_pointer(&again->findings, dr_findings_free);
}

gboolean
dr_pull_again_is_due(DrPullAgain *again)
{
  gint64 now = g_get_monotonic_time();

  if (now < again->again_us)
    return FALSE;
  again->again_us = now + AGAIN_S * G_USEC_PER_SEC;
  return TRUE;
}

static void
tell(DrPullAgain *again, DrDiskJob *d, const DrBlockWatch *watch)
{
  if (!again->told) {
    dr_findings_add(again->findings, DR_FINDING_WARNING, "disk-pull-waits",
                    "see to it that the backing image can be read, or that there is room",
                    "%s was stopped by an I/O error, and is tried again every %d s", watch->what, AGAIN_S);
    dr_job_set_findings(d->job, again->findings);
  }
  again->told = TRUE;
}

static void
go_on(DrQmp *qmp, const DrBlockWatch *watch)
{
  g_autoptr(GError) error = NULL;

  if (!dr_qmp_do(qmp, "block-job-resume", dr_json("{'device': <%s>}", watch->id), &error))
    g_debug("block-job-resume: %s", error->message); /* it is not paused */
}

void
dr_pull_try_again(DrPullAgain *again, DrDiskJob *d, DrQmp *qmp)
{
  for (guint i = 0; i < d->watches->len; i++) {
    const DrBlockWatch *watch = d->watches->pdata[i];
    gboolean stopped =
        watch->look.state == DR_BLOCK_JOB_STOPPED || watch->look.state == DR_BLOCK_JOB_NO_SPACE;

    if (stopped)
      tell(again, d, watch);
    if (stopped || (again->insists && watch->look.state == DR_BLOCK_JOB_RUNNING))
      go_on(qmp, watch);
  }
}
