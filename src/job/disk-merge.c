/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Merges snapshots while the guest runs. */
#include "job/disk-merge.h"
#include "base/error.h"
#include "job/disk-image.h"
#include "job/disk-job.h"
#include "job/disk.h"
#include "job/snapshot.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define STAGE_PREFLIGHT "preflight"
#define STAGE_MERGE "merge"
#define STAGE_PIVOT "pivot"
#define END_MS 60000
#define KILL_MS 30000

typedef struct {
  char *disk, *base, *overlay;                        /* files */
  char *root, *base_node, *overlay_node, *below_node; /* below_node: what the base stands on; nullable */
  char *below;                                        /* its file; nullable */
  char *base_format;
  char *job;
  gboolean active; /* the overlay is what the guest writes to */
  GPtrArray *old;
} Item;

typedef struct {
  DrDiskJob d;
  JsonObject *request;
  const char *name;
  gboolean up;
  GPtrArray *items;
} Merge;

static void
item_free(gpointer data)
{
  Item *item = data;
  char *texts[] = { item->disk,         item->base,       item->overlay, item->root,  item->base_node,
                    item->overlay_node, item->below_node, item->job,     item->below, item->base_format };

  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_free(texts[i]);
  g_clear_pointer(&item->old, g_ptr_array_unref);
  g_free(item);
}

/* --- Preflight --- */

static gboolean
is_wanted(const Merge *m, const char *disk)
{
  JsonArray *wanted = dr_json_arr(m->request, "disks");

  for (guint i = 0; wanted && i < json_array_get_length(wanted); i++)
    if (g_str_equal(json_array_get_string_element(wanted, i), disk))
      return TRUE;
  return !wanted;
}

/* Where the overlay is in a disk's chain, whatever the disk is called by now. */
static const DrDisk *
find_overlay(const DrDisks *disks, const char *overlay, DrNode **ret_node)
{
  for (guint i = 0; i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);

    for (DrNode *node = disk->top; node; node = dr_node_backing(node))
      if (g_str_equal(dr_node_file(node), overlay)) {
        *ret_node = node;
        return disk;
      }
  }
  return NULL;
}

static gboolean
not_in_chain(const Merge *m, JsonObject *split, GError **error)
{
  dr_error_set(error, DR_ERROR_REFUSED, "snapshot '%s': disk '%s' does not stand on '%s' over '%s' any more",
               m->name, dr_json_str(split, "disk", "?"), dr_json_str(split, "overlay", "?"),
               dr_json_str(split, "base", "?"));
  return dr_error_remedy(
      error, "forget the snapshot, the disk is right without it: drover snapshot delete %s %s --metadata",
      dr_vm_name(m->d.vm), m->name);
}

static gboolean
add_item(Merge *m, const DrDisks *disks, JsonObject *split, GError **error)
{
  DrNode *overlay = NULL, *base, *below;
  const DrDisk *disk = find_overlay(disks, dr_json_str(split, "overlay", ""), &overlay);
  Item *item;

  base = disk ? dr_node_backing(overlay) : NULL;
  if (!base || !g_str_equal(dr_node_file(base), dr_json_str(split, "base", "")))
    return not_in_chain(m, split, error);
  below = dr_node_backing(base);
  item = g_new0(Item, 1);
  item->disk = g_strdup(disk->name);
  item->base = g_strdup(dr_node_file(base));
  item->base_format = g_strdup(dr_node_driver(base));
  item->overlay = g_strdup(dr_node_file(overlay));
  item->root = g_strdup(dr_node_name(disk->root));
  item->base_node = g_strdup(dr_node_name(base));
  item->overlay_node = g_strdup(dr_node_name(overlay));
  item->below_node = below ? g_strdup(dr_node_name(below)) : NULL;
  item->below = below && *dr_node_file(below) == '/' ? g_strdup(dr_node_file(below)) : NULL;
  item->active = overlay == disk->top && !m->up;
  item->old = m->up ? dr_node_named_tree(base, below) : dr_node_named_tree(overlay, base);
  item->job = dr_block_id("merge");
  g_ptr_array_add(m->items, item);
  return TRUE;
}

/* Memory is of the instant of all its disks: merged down it is of none. */
static gboolean
may_lose_memory(const Merge *m, JsonObject *record, GError **error)
{
  if (m->up || !dr_json_obj(record, "memory") || dr_json_bool(m->request, "delete", FALSE))
    return TRUE;
  dr_error_set(error, DR_ERROR_REFUSED,
               "snapshot '%s' has the guest's memory, which could not be gone back to any more", m->name);
  return dr_error_remedy(
      error, "drover snapshot delete %s %s merges it down and removes the memory, too; merge --up keeps it",
      dr_vm_name(m->d.vm), m->name);
}

/* Nobody else's images are changed. */
static gboolean
others_allow(const Merge *m, const DrDisks *disks, GError **error)
{
  g_autoptr(JsonArray) all =
      dr_store_load_snapshots(dr_job_host(m->d.job)->store, dr_vm_name(m->d.vm), error);

  for (guint i = 0; all && !m->up && i < m->items->len; i++) {
    const Item *item = m->items->pdata[i];
    const DrDisk *disk = dr_disks_find(disks, item->disk, error);

    if (!disk || !dr_snapshot_others_allow(all, m->name, disk, item->base, error))
      return FALSE;
  }
  return all != NULL;
}

static gboolean
preflight(Merge *m, DrQmp *qmp, GError **error)
{
  g_autoptr(JsonObject) record = dr_snapshot_load(m->d.vm, m->name, error);
  g_autoptr(DrDisks) disks = record && may_lose_memory(m, record, error)
                                 ? dr_disks_read(qmp, dr_vm_record(m->d.vm)->cwd, error)
                                 : NULL;
  JsonArray *splits = record ? dr_json_arr(record, "disks") : NULL;

  if (!disks)
    return FALSE;
  for (guint i = 0; splits && i < json_array_get_length(splits); i++) {
    JsonObject *split = json_array_get_object_element(splits, i);

    if (is_wanted(m, dr_json_str(split, "disk", "")) && !add_item(m, disks, split, error))
      return FALSE;
  }
  if (m->items->len == 0)
    return dr_error_set(error, DR_ERROR_NOT_FOUND, "snapshot '%s' has no such disk", m->name);
  return others_allow(m, disks, error);
}

/* --- The record --- */

/* From the first write on the base is no point in time any more. */
static gboolean
spoil(Merge *m, GError **error)
{
  g_autoptr(JsonObject) record = dr_snapshot_load(m->d.vm, m->name, error);

  if (!record || m->up)
    return record != NULL;
  json_object_set_boolean_member(record, "spoiled", TRUE);
  return dr_store_put_snapshot(dr_job_host(m->d.job)->store, dr_vm_name(m->d.vm), m->name, record, error);
}

static const Item *
merged(const Merge *m, const char *overlay)
{
  for (guint i = 0; i < m->items->len; i++)
    if (g_str_equal(((Item *)m->items->pdata[i])->overlay, overlay))
      return m->items->pdata[i];
  return NULL;
}

static gboolean
rebase(const Merge *m, JsonObject *split)
{
  gboolean changed = FALSE;

  for (guint i = 0; i < m->items->len; i++) {
    const Item *item = m->items->pdata[i];

    changed |= dr_snapshot_rebase(split, item->overlay, item->base, item->base_format, m->up);
  }
  return changed;
}

/* A later snapshot whose base was the overlay stands on our base now. */
static gboolean
rebase_others(Merge *m, JsonArray *all, GError **error)
{
  for (guint i = 0; i < json_array_get_length(all); i++) {
    JsonObject *record = json_array_get_object_element(all, i);
    JsonArray *splits = dr_json_arr(record, "disks");
    const char *name = dr_json_str(record, "name", "");
    gboolean changed = FALSE;

    for (guint n = 0; splits && n < json_array_get_length(splits); n++)
      changed |= rebase(m, json_array_get_object_element(splits, n));
    if (changed &&
        !dr_store_put_snapshot(dr_job_host(m->d.job)->store, dr_vm_name(m->d.vm), name, record, error))
      return FALSE;
  }
  return TRUE;
}

/* The disks that are left of the snapshot; none: it is gone. */
static gboolean
shrink(Merge *m, JsonArray *all, GError **error)
{
  DrStore *store = dr_job_host(m->d.job)->store;
  const char *vm = dr_vm_name(m->d.vm);

  for (guint i = 0; i < json_array_get_length(all); i++) {
    JsonObject *record = json_array_get_object_element(all, i);
    JsonArray *splits = dr_json_arr(record, "disks"), *left;

    if (!g_str_equal(dr_json_str(record, "name", ""), m->name))
      continue;
    left = json_array_new();
    for (guint n = 0; splits && n < json_array_get_length(splits); n++) {
      JsonObject *split = json_array_get_object_element(splits, n);

      if (!merged(m, dr_json_str(split, "overlay", "")))
        json_array_add_object_element(left, json_object_ref(split));
    }
    if (json_array_get_length(left) == 0) {
      json_array_unref(left);
      return dr_store_drop_snapshot(store, vm, m->name, error);
    }
    json_object_set_array_member(record, "disks", left);
    return dr_store_put_snapshot(store, vm, m->name, record, error);
  }
  return TRUE;
}

static gboolean
write_records(Merge *m, GError **error)
{
  g_autoptr(JsonArray) all =
      dr_store_load_snapshots(dr_job_host(m->d.job)->store, dr_vm_name(m->d.vm), error);

  return all && rebase_others(m, all, error) && (m->up || shrink(m, all, error));
}

/* --- The jobs in QEMU --- */

/* QEMU drops an image from a header at its end; an active commit changes none, and ends by itself being told to. */
static gboolean
changes_header(const Merge *m, const Item *item)
{
  return m->up || !item->active;
}

static gboolean
start_one(Merge *m, DrQmp *qmp, const Item *item, GError **error)
{
  gint64 speed = dr_json_int(m->request, "bandwidth", 0) * 1048576;
  JsonObject *arguments = dr_json("{'job-id': <%s>, 'device': <%s>, 'speed': <%x>, 'auto-finalize': <%b>, "
                                  "'auto-dismiss': <%b>}",
                                  item->job, m->up ? item->overlay_node : item->root, speed,
                                  !changes_header(m, item), changes_header(m, item));

  if (m->up && item->below_node)
    json_object_set_string_member(arguments, "base-node", item->below_node);
  /* For a header; QEMU would write the name that an image was opened by, from its own directory. */
  if (m->up ? item->below != NULL : !item->active && *item->base == '/')
    json_object_set_string_member(arguments, "backing-file", m->up ? item->below : item->base);
  if (!m->up) {
    json_object_set_string_member(arguments, "top-node", item->overlay_node);
    json_object_set_string_member(arguments, "base-node", item->base_node);
  }
  if (dr_qmp_do(qmp, m->up ? "block-stream" : "block-commit", arguments, error))
    return TRUE;
  g_prefix_error(error, "cannot merge disk '%s': ", item->disk);
  return FALSE;
}

static gboolean
start_all(Merge *m, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < m->items->len; i++)
    if (!start_one(m, qmp, m->items->pdata[i], error))
      return FALSE;
  return TRUE;
}

static void
stop_all(Merge *m, DrQmp *qmp)
{
  for (guint i = 0; i < m->items->len; i++) {
    const Item *item = m->items->pdata[i];

    dr_block_job_kill(qmp, item->job, dr_deadline_in(KILL_MS), NULL);
  }
}

/* An active commit is told to switch the disk over; the others have ended by themselves. */
static gboolean
end_one(DrQmp *qmp, const Item *item, GError **error)
{
  g_autofree char *what = g_strdup_printf("the merge of disk '%s'", item->disk);
  g_auto(DrBlockJobLook) look = { 0 };

  if (!dr_block_job_look(qmp, item->job, &look, error))
    return FALSE;
  if (look.state == DR_BLOCK_JOB_READY &&
      !dr_qmp_do(qmp, "block-job-complete", dr_json("{'device': <%s>}", item->job), error))
    return FALSE;
  return look.state == DR_BLOCK_JOB_GONE || /* a droverd that was killed had dismissed it */
         dr_block_job_end(qmp, item->job, what, dr_deadline_in(END_MS), error);
}

static gboolean
end_all(Merge *m, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&m->d, error);
  gboolean done = qmp != NULL;

  for (guint i = 0; done && i < m->items->len; i++) {
    Item *item = m->items->pdata[i];

    done = end_one(qmp, item, error);
    if (done)
      dr_nodes_close(qmp, item->old);
  }
  if (qmp)
    dr_disk_job_give(&m->d, qmp);
  return done;
}

/* drover made them, and nothing stands on them any more. */
static void
remove_files(Merge *m)
{
  for (guint i = 0; i < m->items->len && !m->up; i++) {
    const Item *item = m->items->pdata[i];

    if (unlink(item->overlay) < 0)
      g_warning("'%s' is merged, and cannot be removed", item->overlay);
  }
}

/* Before its record goes, which names it. */
static void
remove_memory(Merge *m)
{
  g_autoptr(JsonObject) record = m->up ? NULL : dr_snapshot_load(m->d.vm, m->name, NULL);
  const char *file = record ? dr_json_str(record, "memory.file", NULL) : NULL;

  if (file && unlink(file) < 0 && errno != ENOENT)
    g_warning("the memory of snapshot '%s', '%s', cannot be removed", m->name, file);
}

/* --- All of it --- */

static void
merge_init(Merge *m, DrJob *job)
{
  dr_disk_job_init(&m->d, job);
  dr_vm_set_aside(dr_job_vm(job));
  m->d.asked = dr_disk_job_asked_abort;
  m->d.data = m;
  m->request = dr_job_request(job);
  m->name = dr_json_str(m->request, "snapshot", "");
  m->up = dr_json_bool(m->request, "up", FALSE);
  m->items = g_ptr_array_new_with_free_func(item_free);
}

static void
merge_clear(Merge *m)
{
  dr_disk_job_clear(&m->d);
  g_ptr_array_unref(m->items);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Merge, merge_clear)

static JsonObject *
result(const Merge *m)
{
  JsonObject *object = dr_json("{'snapshot': <%s>, 'up': <%b>, 'total_ms': <%d>}", m->name, m->up,
                               (double)(g_get_monotonic_time() - m->d.begun_us) / 1000);
  gint64 bytes = 0;

  for (guint i = 0; i < m->d.watches->len; i++)
    bytes += ((DrBlockWatch *)m->d.watches->pdata[i])->look.done;
  json_object_set_int_member(object, "bytes_moved", bytes);
  return object;
}

static JsonObject *
note(const Merge *m)
{
  JsonObject *object = json_object_new();
  JsonArray *items = json_array_new();

  for (guint i = 0; i < m->items->len; i++) {
    const Item *item = m->items->pdata[i];
    JsonObject *one = dr_json(
        "{'disk': <%s>, 'base': <%s>, 'base_format': <%s>, 'overlay': <%s>, 'job': <%s>, 'active': <%b>}",
        item->disk, item->base, item->base_format, item->overlay, item->job, item->active);
    JsonArray *old = json_array_new();

    for (guint n = 0; n < item->old->len; n++)
      json_array_add_string_element(old, item->old->pdata[n]);
    json_object_set_array_member(one, "old", old);
    json_array_add_object_element(items, one);
  }
  json_object_set_array_member(object, "items", items);
  return object;
}

static void
watch_items(Merge *m)
{
  for (guint i = 0; i < m->items->len; i++) {
    const Item *item = m->items->pdata[i];
    g_autofree char *what = g_strdup_printf("the merge of disk '%s'", item->disk);

    if (changes_header(m, item)) /* is_merged() */
      dr_disk_job_watch_header(&m->d, item->job, what, item->disk,
                               m->up ? item->overlay_node : item->base_node,
                               m->up ? item->overlay : item->base);
    else
      dr_disk_job_watch(&m->d, item->job, what, item->disk);
  }
}

/* Nothing is lost by it: the overlay still has all that it had. */
static gboolean
undo(Merge *m, GError *cause, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&m->d, NULL);

  if (qmp) {
    stop_all(m, qmp);
    dr_disk_job_give(&m->d, qmp);
  }
  g_propagate_error(error, cause);
  return FALSE;
}

/* What QEMU stands on is the truth, not what became of a job that somebody else may have ended: nothing is removed that is in use. */
static gboolean
is_merged(Merge *m, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&m->d, error);
  g_autoptr(DrDisks) disks = qmp ? dr_disks_read(qmp, dr_vm_record(m->d.vm)->cwd, error) : NULL;
  DrNode *node;

  if (qmp)
    dr_disk_job_give(&m->d, qmp);
  for (guint i = 0; disks && i < m->items->len; i++) {
    const Item *item = m->items->pdata[i];

    if (!find_overlay(disks, m->up ? item->base : item->overlay, &node))
      continue;
    dr_error_set(error, DR_ERROR_CLOSED, "the merge of disk '%s' was ended before it was complete",
                 item->disk);
    return dr_error_remedy(error, "merge it again");
  }
  return disks != NULL;
}

static gboolean
finish(Merge *m, GError **error)
{
  if (!end_all(m, error) || !is_merged(m, error))
    return FALSE;
  remove_memory(m);
  if (!write_records(m, error))
    return FALSE;
  remove_files(m);
  dr_job_set_result(m->d.job, result(m));
  return TRUE;
}

static gboolean
to_the_end(Merge *m, GError **error)
{
  GError *cause = NULL;
  DrDiskEvent event;

  if (!dr_disk_job_follow(&m->d, DR_DEADLINE_NEVER, FALSE, &event, &cause))
    return undo(m, cause, error);
  if (event == DR_DISK_ASKED) {
    dr_error_set(&cause, DR_ERROR_CANCELLED, "aborted");
    return undo(m, cause, error);
  }
  if (!dr_job_enter(m->d.job, STAGE_PIVOT, NULL, &cause) || !dr_job_no_return(m->d.job, &cause))
    return undo(m, cause, error);
  return finish(m, error);
}

gboolean
dr_disk_merge_run(DrJob *job, GError **error)
{
  g_auto(Merge) m = { 0 };
  GError *cause = NULL;
  gboolean ready, begun;
  DrQmp *qmp;

  merge_init(&m, job);
  if (!dr_job_enter(job, STAGE_PREFLIGHT, NULL, error))
    return FALSE;
  qmp = dr_disk_job_take(&m.d, error);
  if (!qmp)
    return FALSE;
  ready = preflight(&m, qmp, error) && dr_job_enter(job, STAGE_MERGE, note(&m), error) && spoil(&m, error);
  begun = ready && start_all(&m, qmp, &cause);
  dr_disk_job_give(&m.d, qmp);
  if (!ready)
    return FALSE;
  if (!begun)
    return undo(&m, cause, error);
  watch_items(&m);
  return to_the_end(&m, error);
}

/* --- Recovery --- */

static gboolean
load(Merge *m, const char **ret_stage, GError **error)
{
  g_autoptr(JsonArray) journal =
      dr_store_load_journal(dr_job_host(m->d.job)->store, dr_job_id(m->d.job), error);

  for (guint i = 0; journal && i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i), *said = dr_json_obj(entry, "note");
    JsonArray *items = said ? dr_json_arr(said, "items") : NULL;

    *ret_stage = g_intern_string(dr_json_str(entry, "stage", ""));
    for (guint n = 0; items && n < json_array_get_length(items); n++) {
      JsonObject *one = json_array_get_object_element(items, n);
      JsonArray *old = dr_json_arr(one, "old");
      Item *item = g_new0(Item, 1);

      item->disk = g_strdup(dr_json_str(one, "disk", ""));
      item->base = g_strdup(dr_json_str(one, "base", ""));
      item->base_format = g_strdup(dr_json_str(one, "base_format", ""));
      item->overlay = g_strdup(dr_json_str(one, "overlay", ""));
      item->job = g_strdup(dr_json_str(one, "job", ""));
      item->active = dr_json_bool(one, "active", FALSE);
      item->old = g_ptr_array_new_with_free_func(g_free);
      for (guint k = 0; old && k < json_array_get_length(old); k++)
        g_ptr_array_add(item->old, g_strdup(json_array_get_string_element(old, k)));
      g_ptr_array_add(m->items, item);
    }
  }
  return journal != NULL;
}

gboolean
dr_disk_merge_recover(DrJob *job, GError **error)
{
  g_auto(Merge) m = { 0 };
  const char *stage = "queued";

  merge_init(&m, job);
  if (!load(&m, &stage, error))
    return FALSE;
  dr_job_step(job, stage);
  if (m.items->len == 0) {
    dr_error_set(error, DR_ERROR_CLOSED, "droverd ended before the merge had begun");
    return dr_error_remedy(error, "start it again");
  }
  watch_items(&m);
  if (g_str_equal(stage, STAGE_PIVOT))
    return finish(&m, error);
  dr_job_may_return(job);
  return to_the_end(&m, error);
}
