/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Takes snapshots. */
#include "base/address.h"
#include "base/error.h"
#include "job/block-job.h"
#include "job/disk-image.h"
#include "job/disk-target.h"
#include "job/guest-agent.h"
#include "job/snapshot-internal.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STAGE_PREFLIGHT "preflight"
#define STAGE_CREATE "create"
#define STAGE_FREEZE "freeze"
#define STAGE_SWITCH "switch"
#define CREATE_MS 60000
#define SUFFIX ".qcow2"

static void
split_free(gpointer data)
{
  Split *split = data;
  char *texts[] = { split->disk,    split->top,    split->base, split->base_format,
                    split->overlay, split->secret, split->node, split->file_node };

  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_free(texts[i]);
  g_clear_pointer(&split->bitmaps, json_array_unref);
  g_clear_pointer(&split->chain, json_array_unref);
  g_free(split);
}

/* --- The request --- */

gboolean
dr_snapshot_check(JsonObject *request, GError **error)
{
  JsonArray *disks = dr_json_arr(request, "disks");

  if (!dr_name_check(dr_json_str(request, "name", ""), "a snapshot", error))
    return FALSE;
  if (disks && json_array_get_length(disks) == 0)
    return dr_error_set(error, DR_ERROR_INVALID, "the list of disks is empty");
  if (!dr_snapshot_memory_check(request, error))
    return FALSE;
  for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
    const char *file = strchr(json_array_get_string_element(disks, i), '=');

    if (file && file[1] != '/')
      return dr_error_set(error, DR_ERROR_INVALID, "the overlay '%s' is no absolute path", file + 1);
  }
  return TRUE;
}

/* --- Preflight --- */

static void G_GNUC_PRINTF(4, 5)
    block(Snapshot *s, const char *code, const char *remedy, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list ap;

  va_start(ap, format);
  text = g_strdup_vprintf(format, ap);
  va_end(ap);
  dr_findings_add(s->findings, DR_FINDING_BLOCKER, code, remedy, "%s", text);
}

/* Whether the file is the overlay that an earlier snapshot made. */
static gboolean
is_ours(JsonArray *snapshots, const char *file)
{
  for (guint i = 0; i < json_array_get_length(snapshots); i++) {
    JsonArray *disks = dr_json_arr(json_array_get_object_element(snapshots, i), "disks");

    for (guint n = 0; disks && n < json_array_get_length(disks); n++)
      if (g_str_equal(dr_json_str(json_array_get_object_element(disks, n), "overlay", ""), file))
        return TRUE;
  }
  return FALSE;
}

static gboolean
names_snapshot(JsonArray *snapshots, const char *name)
{
  for (guint i = 0; i < json_array_get_length(snapshots); i++)
    if (g_str_equal(dr_json_str(json_array_get_object_element(snapshots, i), "name", ""), name))
      return TRUE;
  return FALSE;
}

/* disk.qcow2 -> disk.NAME.qcow2, and from disk.EARLIER.qcow2 the same. */
static char *
overlay_of(const Snapshot *s, JsonArray *snapshots, const char *base)
{
  g_autofree char *dir = g_path_get_dirname(base), *stem = g_path_get_basename(base), *file = NULL;
  char *dot = strrchr(stem, '.');

  if (dot && dot != stem)
    *dot = '\0';
  dot = strrchr(stem, '.');
  if (dot && dot != stem && names_snapshot(snapshots, dot + 1))
    *dot = '\0';
  file = g_strconcat(stem, ".", s->name, SUFFIX, NULL);
  return g_build_filename(dir, file, NULL);
}

static void
check_overlay(Snapshot *s, const Split *split)
{
  g_autofree char *dir = g_path_get_dirname(split->overlay);
  struct stat st;

  if (lstat(split->overlay, &st) == 0)
    block(s, "target-exists", "give the snapshot another name, or the overlay another file: --disk DISK=FILE",
          "the overlay '%s' of disk '%s' is there already", split->overlay, split->disk);
  else if (!g_file_test(dir, G_FILE_TEST_IS_DIR))
    block(s, "target", "make it, or give the overlay another file: --disk DISK=FILE",
          "there is no directory '%s' for the overlay of disk '%s'", dir, split->disk);
}

static JsonArray *
recording_bitmaps(JsonArray *bitmaps)
{
  JsonArray *array = json_array_new();

  for (guint i = 0; bitmaps && i < json_array_get_length(bitmaps); i++) {
    JsonObject *bitmap = json_array_get_object_element(bitmaps, i);

    if (dr_json_bool(bitmap, "recording", FALSE) && !dr_json_bool(bitmap, "inconsistent", FALSE))
      json_array_add_object_element(array, dr_json("{'name': <%s>, 'granularity': <%x>, 'persistent': <%b>}",
                                                   dr_json_str(bitmap, "name", ""),
                                                   dr_json_int(bitmap, "granularity", 65536),
                                                   dr_json_bool(bitmap, "persistent", FALSE)));
  }
  return array;
}

/* `wish`: "DISK" or "DISK=FILE". */
static void
add_split(Snapshot *s, const DrDisks *disks, const DrDisk *disk, const char *wish, JsonArray *snapshots)
{
  Split *split = g_new0(Split, 1);
  const char *file = wish ? strchr(wish, '=') : NULL;
  g_autoptr(JsonObject) shown = dr_disk_json(disks, disk);

  g_ptr_array_add(s->splits, split);
  split->disk = g_strdup(disk->name);
  split->top = g_strdup(dr_node_name(disk->top));
  split->base = g_strdup(dr_node_file(disk->top));
  split->base_format = g_strdup(dr_node_driver(disk->top));
  split->secret = dr_node_secret(disk->top);
  split->bytes = dr_node_bytes(disk->top);
  split->direct = dr_node_flag(disk->top, "cache.direct");
  split->no_flush = dr_node_flag(disk->top, "cache.no-flush");
  split->node = dr_block_id("overlay");
  split->file_node = g_strconcat(split->node, "-file", NULL);
  split->made = is_ours(snapshots, split->base);
  split->bitmaps = recording_bitmaps(dr_json_arr(shown, "bitmaps"));
  split->chain = dr_snapshot_chain(disk->top);
  if (!file && *split->base != '/') {
    block(s, "target", "give the overlay a file: --disk DISK=FILE",
          "the image '%s' of disk '%s' is in no directory that its overlay could be put into", split->base,
          split->disk);
    return;
  }
  split->overlay = file ? g_strdup(file + 1) : overlay_of(s, snapshots, split->base);
  check_overlay(s, split);
}

static gboolean
has_split(const Snapshot *s, const char *disk)
{
  for (guint i = 0; i < s->splits->len; i++)
    if (g_str_equal(((Split *)s->splits->pdata[i])->disk, disk))
      return TRUE;
  return FALSE;
}

static gboolean
add_wished(Snapshot *s, const DrDisks *disks, const char *wish, JsonArray *snapshots, GError **error)
{
  g_autofree char *name = g_strndup(wish, strcspn(wish, "="));
  const DrDisk *disk = dr_disks_find(disks, name, error);

  if (!disk)
    return FALSE;
  if (disk->read_only)
    block(s, "disk-read-only", "leave it out", "disk '%s' is read-only: it stays as it is", name);
  else if (has_split(s, disk->name))
    return dr_error_set(error, DR_ERROR_INVALID, "disk '%s' is named twice", name);
  else
    add_split(s, disks, disk, wish, snapshots);
  return TRUE;
}

static gboolean
choose_disks(Snapshot *s, const DrDisks *disks, JsonArray *snapshots, GError **error)
{
  JsonArray *wishes = dr_json_arr(s->request, "disks");

  for (guint i = 0; wishes && i < json_array_get_length(wishes); i++)
    if (!add_wished(s, disks, json_array_get_string_element(wishes, i), snapshots, error))
      return FALSE;
  for (guint i = 0; !wishes && i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);

    if (disk->top && !disk->read_only)
      add_split(s, disks, disk, NULL, snapshots);
  }
  return s->splits->len > 0 || dr_findings_block(s->findings) ||
         dr_error_set(error, DR_ERROR_REFUSED, "VM '%s' has no disk that a snapshot could be taken of",
                      dr_vm_name(s->d.vm));
}

static gboolean
preflight(Snapshot *s, DrQmp *qmp, GError **error)
{
  g_autoptr(JsonArray) snapshots =
      dr_store_load_snapshots(dr_job_host(s->d.job)->store, dr_vm_name(s->d.vm), error);
  g_autoptr(DrDisks) disks = snapshots ? dr_disks_read(qmp, dr_vm_record(s->d.vm)->cwd, error) : NULL;
  g_autofree char *doing = g_strdup_printf("take snapshot '%s' of VM '%s'", s->name, dr_vm_name(s->d.vm));

  if (!disks)
    return FALSE;
  if (names_snapshot(snapshots, s->name)) {
    dr_error_set(error, DR_ERROR_EXISTS, "VM '%s' has a snapshot '%s' already", dr_vm_name(s->d.vm), s->name);
    return dr_error_remedy(error, "give another name, or delete it: drover snapshot delete %s %s",
                           dr_vm_name(s->d.vm), s->name);
  }
  if (!choose_disks(s, disks, snapshots, error))
    return FALSE;
  if (dr_json_bool(s->request, "quiesce", FALSE)) {
    s->agent = dr_guest_agent_find(s->d.vm, qmp, error);
    if (!s->agent)
      return FALSE;
  }
  if (!dr_snapshot_look(s, disks, qmp, error))
    return FALSE;
  dr_job_set_findings(s->d.job, s->findings);
  return dr_findings_block(s->findings) ? dr_findings_to_error(s->findings, doing, error) : TRUE;
}

/* --- The overlays --- */

static gboolean
create_overlay(Snapshot *s, DrQmp *qmp, Split *split, GError **error)
{
  DrTargetKind kind;
  g_autoptr(JsonObject) protocol = dr_target_parse_options(split->overlay, &kind, error);
  DrImage image = { .protocol = protocol,
                    .node = split->node,
                    .file_node = split->file_node,
                    .format = "qcow2",
                    .secret = split->secret,
                    .create = TRUE,
                    .bytes = split->bytes,
                    .backing = split->base,
                    .backing_format = split->base_format,
                    .direct = split->direct,
                    .no_flush = split->no_flush };

  split->reserved = protocol && dr_image_reserve(split->overlay, dr_vm_record(s->d.vm)->id.pid, error);
  if (split->reserved && dr_image_open(qmp, &image, dr_deadline_in(CREATE_MS), error))
    return TRUE;
  g_prefix_error(error, "cannot make the overlay '%s' of disk '%s': ", split->overlay, split->disk);
  return FALSE;
}

static gboolean
create_overlays(Snapshot *s, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < s->splits->len; i++)
    if (!create_overlay(s, qmp, s->splits->pdata[i], error))
      return FALSE;
  return TRUE;
}

void
dr_snapshot_remove_overlays(Snapshot *s, DrQmp *qmp)
{
  for (guint i = 0; i < s->splits->len; i++) {
    const Split *split = s->splits->pdata[i];

    if (qmp)
      dr_image_close(qmp, split->node, split->file_node);
    if (split->reserved)
      unlink(split->overlay);
  }
}

/* --- The moment --- */

static JsonObject *
action(const char *type, JsonObject *data)
{
  JsonObject *object = json_object_new();

  json_object_set_string_member(object, "type", type);
  json_object_set_object_member(object, "data", data);
  return object;
}

/* Merging reads the base's bitmap while its disk is drained: no write is between the two. */
static JsonObject *
take_bits_along(const Split *split, const char *name)
{
  JsonObject *data = dr_json("{'node': <%s>, 'target': <%s>, 'bitmaps': <[{'node': <%s>, 'name': <%s>}]>}",
                             split->node, name, split->top, name);

  return action("block-dirty-bitmap-merge", data);
}

/* A bitmap that records goes on under its name in the overlay, with what is dirty by now: the next incremental backup needs both. QEMU
 * keeps the one below as it is. */
static void
add_bitmaps(JsonArray *actions, const Split *split)
{
  for (guint i = 0; i < json_array_get_length(split->bitmaps); i++) {
    JsonObject *bitmap = json_array_get_object_element(split->bitmaps, i);

    json_array_add_object_element(
        actions,
        action("block-dirty-bitmap-add",
               dr_json("{'node': <%s>, 'name': <%s>, 'granularity': <%x>, 'persistent': <%b>}", split->node,
                       dr_json_str(bitmap, "name", ""), dr_json_int(bitmap, "granularity", 65536),
                       dr_json_bool(bitmap, "persistent", FALSE))));
    json_array_add_object_element(actions, take_bits_along(split, dr_json_str(bitmap, "name", "")));
  }
}

/* One transaction: no write of the guest's is on one disk's side of it and not on another's. */
gboolean
dr_snapshot_switch(Snapshot *s, DrQmp *qmp, GError **error)
{
  JsonArray *actions = json_array_new();
  JsonObject *arguments = json_object_new();

  for (guint i = 0; i < s->splits->len; i++) {
    const Split *split = s->splits->pdata[i];

    json_array_add_object_element(
        actions,
        action("blockdev-snapshot", dr_json("{'node': <%s>, 'overlay': <%s>}", split->top, split->node)));
    add_bitmaps(actions, split);
  }
  json_object_set_array_member(arguments, "actions", actions);
  s->switched = dr_qmp_do(qmp, "transaction", arguments, error);
  if (!s->switched)
    g_prefix_error(error, "cannot take the snapshot: ");
  return s->switched;
}

/* --- The record --- */

static JsonObject *
split_json(const Split *split)
{
  JsonObject *object = dr_json(
      "{'disk': <%s>, 'base': <%s>, 'base_format': <%s>, 'overlay': <%s>, 'made': <%b>, 'node': <%s>, "
      "'file_node': <%s>, 'bytes': <%x>, 'encrypted': <%b>}",
      split->disk, split->base, split->base_format, split->overlay, split->made, split->node,
      split->file_node, split->bytes, split->secret != NULL);

  if (split->chain)
    json_object_set_array_member(object, "chain", json_array_ref(split->chain));
  return object;
}

static JsonObject *
record_of(const Snapshot *s)
{
  JsonObject *record =
      dr_json("{'created_ms': <%x>, 'quiesced': <%b>}", g_get_real_time() / 1000, s->frozen > 0);
  JsonArray *disks = json_array_new();
  const char *description = dr_json_str(s->request, "description", NULL);

  for (guint i = 0; i < s->splits->len; i++)
    json_array_add_object_element(disks, split_json(s->splits->pdata[i]));
  json_object_set_array_member(record, "disks", disks);
  if (description)
    json_object_set_string_member(record, "description", description);
  dr_snapshot_add_machine(s, record);
  return record;
}

static gboolean
write_record(Snapshot *s, GError **error)
{
  g_autoptr(JsonObject) record = record_of(s);

  dr_snapshot_mark_images(record);
  return dr_store_put_snapshot(dr_job_host(s->d.job)->store, dr_vm_name(s->d.vm), s->name, record, error);
}

JsonObject *
dr_snapshot_load(DrVm *vm, const char *name, GError **error)
{
  g_autoptr(JsonArray) all = dr_store_load_snapshots(dr_vm_host(vm)->store, dr_vm_name(vm), error);

  for (guint i = 0; all && i < json_array_get_length(all); i++) {
    JsonObject *record = json_array_get_object_element(all, i);

    if (g_str_equal(dr_json_str(record, "name", ""), name))
      return json_object_ref(record);
  }
  if (all) {
    dr_error_set(error, DR_ERROR_NOT_FOUND, "VM '%s' has no snapshot '%s'", dr_vm_name(vm), name);
    dr_error_remedy(error, "drover snapshot list %s shows them", dr_vm_name(vm));
  }
  return NULL;
}

/* --- All of it --- */

static void
snapshot_init(Snapshot *s, DrJob *job)
{
  dr_disk_job_init(&s->d, job);
  s->request = dr_job_request(job);
  s->name = dr_json_str(s->request, "name", "");
  s->splits = g_ptr_array_new_with_free_func(split_free);
  s->findings = dr_findings_new();
  s->save.fd = -1;
}

static void
snapshot_clear(Snapshot *s)
{
  dr_disk_job_clear(&s->d);
  g_ptr_array_unref(s->splits);
  dr_findings_free(s->findings);
  g_free(s->agent);
  g_free(s->memory_file);
  g_strfreev(s->argv);
  g_clear_pointer(&s->machine, json_object_unref);
  if (s->save.fd >= 0)
    close(s->save.fd);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Snapshot, snapshot_clear)

static JsonObject *
note(const Snapshot *s)
{
  JsonObject *object = record_of(s);

  if (s->agent)
    json_object_set_string_member(object, "agent", s->agent);
  return object;
}

/* The snapshot is taken, or it is not; that the guest stays frozen is worse than either. */
static void
thaw(Snapshot *s)
{
  g_autoptr(GError) error = NULL;

  if (dr_guest_thaw(s->agent, &error))
    return;
  dr_findings_add(s->findings, DR_FINDING_WARNING, "guest-frozen", dr_error_get_remedy(error), "%s",
                  error->message);
  dr_job_set_findings(s->d.job, s->findings);
}

/* The monitor is held from the freeze to the thaw: nobody else's command makes it longer. */
static gboolean
take_it(Snapshot *s, DrQmp *qmp, GError **error)
{
  gboolean taken;

  if (s->memory_file)
    return dr_snapshot_take_memory(s, qmp, error);
  if (s->agent && !dr_job_enter(s->d.job, STAGE_FREEZE, NULL, error))
    return FALSE;
  if (s->agent && !dr_guest_freeze(s->agent, &s->frozen, error))
    return FALSE;
  taken = dr_job_enter(s->d.job, STAGE_SWITCH, NULL, error) && dr_snapshot_switch(s, qmp, error);
  if (s->agent)
    thaw(s);
  return taken;
}

static JsonObject *
result(const Snapshot *s)
{
  JsonObject *object = record_of(s);

  json_object_set_string_member(object, "name", s->name);
  json_object_set_int_member(object, "frozen", s->frozen);
  json_object_set_double_member(object, "total_ms", (double)(g_get_monotonic_time() - s->d.begun_us) / 1000);
  json_object_remove_member(object, "argv");
  json_object_remove_member(object, "machine");
  return object;
}

/* It was one transaction: one disk tells for all. */
gboolean
dr_snapshot_was_taken(Snapshot *s, DrQmp *qmp, gboolean *ret_taken, GError **error)
{
  const Split *split = s->splits->pdata[0];
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, dr_vm_record(s->d.vm)->cwd, error);

  *ret_taken = FALSE;
  for (guint i = 0; disks && i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);

    if (disk->top && g_str_equal(dr_node_name(disk->top), split->node))
      *ret_taken = TRUE;
  }
  return disks != NULL;
}

static gboolean
take(Snapshot *s, DrQmp *qmp, GError **error)
{
  g_autoptr(GError) local = NULL;
  gboolean taken;

  if (!preflight(s, qmp, error) || !dr_job_enter(s->d.job, STAGE_CREATE, note(s), error))
    return FALSE;
  if (create_overlays(s, qmp, &local) && take_it(s, qmp, &local))
    return TRUE;
  if (s->memory_file)
    return dr_snapshot_undo_memory(s, qmp, g_steal_pointer(&local), error);
  if (dr_snapshot_was_taken(s, qmp, &taken, NULL) && taken) /* its answer did not come in time */
    return TRUE;
  if (local->code != DR_ERROR_CLOSED && local->code != DR_ERROR_TIMEOUT)
    dr_snapshot_remove_overlays(s, qmp);
  g_propagate_error(error, g_steal_pointer(&local));
  return FALSE;
}

gboolean
dr_snapshot_run(DrJob *job, GError **error)
{
  g_auto(Snapshot) s = { 0 };
  gboolean taken;
  DrQmp *qmp;

  snapshot_init(&s, job);
  if (!dr_job_enter(job, STAGE_PREFLIGHT, NULL, error))
    return FALSE;
  qmp = dr_disk_job_take(&s.d, error);
  taken = qmp && take(&s, qmp, error);
  if (qmp)
    dr_disk_job_give(&s.d, qmp);
  if (!taken || !write_record(&s, error))
    return FALSE;
  dr_job_set_result(job, result(&s));
  return TRUE;
}

/* --- Recovery --- */

static void
load_splits(Snapshot *s, JsonArray *disks)
{
  for (guint i = 0; i < json_array_get_length(disks); i++) {
    JsonObject *object = json_array_get_object_element(disks, i);
    Split *split = g_new0(Split, 1);

    split->disk = g_strdup(dr_json_str(object, "disk", ""));
    split->base = g_strdup(dr_json_str(object, "base", ""));
    split->base_format = g_strdup(dr_json_str(object, "base_format", ""));
    split->overlay = g_strdup(dr_json_str(object, "overlay", ""));
    split->made = dr_json_bool(object, "made", FALSE);
    split->node = g_strdup(dr_json_str(object, "node", ""));
    split->file_node = g_strdup(dr_json_str(object, "file_node", ""));
    split->bytes = dr_json_int(object, "bytes", 0);
    split->secret = dr_json_bool(object, "encrypted", FALSE) ? g_strdup("") : NULL; /* that it has one */
    split->chain = dr_json_arr(object, "chain") ? json_array_ref(dr_json_arr(object, "chain")) : NULL;
    split->reserved = TRUE; /* it was not there when the journal was written */
    g_ptr_array_add(s->splits, split);
  }
}

static gboolean
load(Snapshot *s, const char **ret_stage, GError **error)
{
  g_autoptr(JsonArray) journal =
      dr_store_load_journal(dr_job_host(s->d.job)->store, dr_job_id(s->d.job), error);

  for (guint i = 0; journal && i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i), *said = dr_json_obj(entry, "note");
    JsonArray *disks = said ? dr_json_arr(said, "disks") : NULL;

    *ret_stage = g_intern_string(dr_json_str(entry, "stage", ""));
    s->halted |= said && dr_json_bool(said, "halted", FALSE);
    if (!disks)
      continue;
    load_splits(s, disks);
    dr_snapshot_load_machine(s, said);
    s->agent = g_strdup(dr_json_str(said, "agent", NULL));
  }
  return journal != NULL;
}

static gboolean
settle(Snapshot *s, DrQmp *qmp, const char *stage, GError **error)
{
  gboolean taken;

  if (s->memory_file)
    return dr_snapshot_settle_memory(s, qmp, stage, error) && write_record(s, error);
  if (!dr_snapshot_was_taken(s, qmp, &taken, error))
    return FALSE;
  if (taken)
    return write_record(s, error);
  dr_snapshot_remove_overlays(s, qmp);
  dr_error_set(error, DR_ERROR_CLOSED, "droverd ended at stage '%s', before the snapshot was taken", stage);
  return dr_error_remedy(error, "take it again");
}

gboolean
dr_snapshot_recover(DrJob *job, GError **error)
{
  g_auto(Snapshot) s = { 0 };
  const char *stage = "queued";
  gboolean settled = FALSE;
  DrQmp *qmp;

  snapshot_init(&s, job);
  if (!load(&s, &stage, error))
    return FALSE;
  dr_job_step(job, stage);
  if (s.agent && (g_str_equal(stage, STAGE_FREEZE) || g_str_equal(stage, STAGE_SWITCH)))
    thaw(&s);
  if (s.splits->len == 0)
    return dr_error_set(error, DR_ERROR_CLOSED, "droverd ended before the snapshot was taken");
  qmp = dr_disk_job_take(&s.d, error);
  if (qmp) {
    settled = settle(&s, qmp, stage, error);
    dr_disk_job_give(&s.d, qmp);
  } else if (!g_str_equal(stage, STAGE_SWITCH) && !g_str_equal(stage, DR_STAGE_MEMORY) &&
             !g_str_equal(stage, DR_STAGE_ROLLBACK)) {
    dr_snapshot_remove_overlays(&s, NULL);
    dr_snapshot_remove_memory(&s);
  } else {
    dr_snapshot_remove_memory(&s);
    dr_error_remedy(
        error,
        "the guest's last writes may be in the overlays: look with qemu-img map before they are removed");
  }
  if (settled)
    dr_job_set_result(job, result(&s));
  return settled;
}
