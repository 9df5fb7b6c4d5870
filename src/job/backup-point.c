/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Makes and removes points in time. */
#include "job/backup-point.h"
#include "base/error.h"
#include "job/bitmap.h"
#include "job/block-job.h"
#include "job/disk-image.h"
#include "job/guest-agent.h"
#include "job/migration.h"

#include <errno.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define STAGE_FREEZE "freeze"
#define STAGE_POINT "point"
#define WRITE_S                                                                                              \
  4 /* a write of the guest's waits no longer for the scratch file; 5 and more wrap around in an older QEMU (ns in uint32_t) */

static void
point_disk_free(gpointer data)
{
  DrPointDisk *disk = data;
  char *texts[] = { disk->disk,   disk->path,         disk->root,    disk->top,  disk->node,
                    disk->filter, disk->scratch_node, disk->scratch, disk->since };

  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_free(texts[i]);
  g_free(disk);
}

void
dr_point_init(DrPoint *point)
{
  point->disks = g_ptr_array_new_with_free_func(point_disk_free);
}

void
dr_point_clear(DrPoint *point)
{
  g_clear_pointer(&point->disks, g_ptr_array_unref);
  g_clear_pointer(&point->incremental, g_free);
  g_clear_pointer(&point->begin, g_free);
  g_clear_pointer(&point->agent, g_free);
}

/* --- The journal --- */

static const char *const names[] = { "disk",   "path",         "root",    "top",  "node",
                                     "filter", "scratch_node", "scratch", "since" };

static void
members_of(DrPointDisk *disk, char ***ret_members)
{
  char **members[] = { &disk->disk,   &disk->path,         &disk->root,    &disk->top,  &disk->node,
                       &disk->filter, &disk->scratch_node, &disk->scratch, &disk->since };

  memcpy(ret_members, members, sizeof members);
}

JsonObject *
dr_point_write(const DrPoint *point)
{
  JsonObject *object = dr_json("{'incremental': <%s>, 'begin': <%s>, 'agent': <%s>}",
                               point->incremental ? point->incremental : "", point->begin ? point->begin : "",
                               point->agent ? point->agent : "");
  JsonArray *disks = json_array_new();

  for (guint i = 0; i < point->disks->len; i++) {
    DrPointDisk *disk = point->disks->pdata[i];
    JsonObject *one = dr_json("{'bytes': <%x>, 'keep': <%x>}", disk->bytes, disk->keep);
    char **members[G_N_ELEMENTS(names)];

    members_of(disk, members);
    for (guint n = 0; n < G_N_ELEMENTS(names); n++)
      json_object_set_string_member(one, names[n], *members[n]);
    json_array_add_object_element(disks, one);
  }
  json_object_set_array_member(object, "disks", disks);
  return object;
}

static char *
text_of(JsonObject *object, const char *member)
{
  const char *text = dr_json_str(object, member, "");

  return *text ? g_strdup(text) : NULL;
}

void
dr_point_read(DrPoint *point, JsonObject *object)
{
  JsonArray *disks = dr_json_arr(object, "disks");

  point->incremental = text_of(object, "incremental");
  point->begin = text_of(object, "begin");
  point->agent = text_of(object, "agent");
  for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
    JsonObject *one = json_array_get_object_element(disks, i);
    DrPointDisk *disk = g_new0(DrPointDisk, 1);
    char **members[G_N_ELEMENTS(names)];

    members_of(disk, members);
    for (guint n = 0; n < G_N_ELEMENTS(names); n++)
      *members[n] = g_strdup(dr_json_str(one, names[n], ""));
    disk->bytes = dr_json_int(one, "bytes", 0);
    disk->keep = dr_json_int(one, "keep", 0);
    g_ptr_array_add(point->disks, disk);
  }
}

/* --- Before the moment --- */

/* Nobody else is to see it, and nothing of it is to stay: it has no name once QEMU has it open. */
static gboolean
add_scratch(const DrPointDisk *disk, DrVm *vm, DrQmp *qmp, GError **error)
{
  gboolean added;

  if (!dr_image_reserve(disk->scratch, dr_vm_record(vm)->id.pid, error))
    return FALSE;
  added = truncate(disk->scratch, disk->bytes) == 0 ||
          dr_error_set_errno(error, errno, "cannot size '%s'", disk->scratch);
  added = added &&
          dr_qmp_do(qmp, "blockdev-add",
                    dr_json("{'driver': <'file'>, 'node-name': <%s>, 'filename': <%s>, 'discard': <'unmap'>}",
                            disk->scratch_node, disk->scratch),
                    error);
  unlink(disk->scratch);
  return added;
}

static gboolean
add_filter(const DrPointDisk *disk, DrQmp *qmp, GError **error)
{
  return dr_qmp_do(
      qmp, "blockdev-add",
      dr_json("{'driver': <'copy-before-write'>, 'node-name': <%s>, 'file': <%s>, 'target': <%s>, "
              "'on-cbw-error': <'break-snapshot'>, 'cbw-timeout': <%x>}",
              disk->filter, disk->root, disk->scratch_node, (gint64)WRITE_S),
      error);
}

gboolean
dr_point_prepare(const DrPoint *point, DrVm *vm, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < point->disks->len; i++) {
    const DrPointDisk *disk = point->disks->pdata[i];

    if (add_scratch(disk, vm, qmp, error) && add_filter(disk, qmp, error))
      continue;
    g_prefix_error(error, "cannot prepare the backup of disk '%s': ", disk->disk);
    return FALSE;
  }
  return TRUE;
}

/* --- The moment --- */

static void
add_action(JsonArray *actions, const char *type, JsonObject *data)
{
  JsonObject *object = json_object_new();

  json_object_set_string_member(object, "type", type);
  json_object_set_object_member(object, "data", data);
  json_array_add_object_element(actions, object);
}

static gboolean
run_transaction(DrQmp *qmp, JsonArray *actions, GError **error)
{
  JsonObject *arguments = json_object_new();

  json_object_set_array_member(arguments, "actions", actions);
  return dr_qmp_do(qmp, "transaction", arguments, error);
}

/* They record before the filters are there: what is noted too much is only read once more. */
static gboolean
begin_bitmaps(const DrPoint *point, DrQmp *qmp, GError **error)
{
  JsonArray *actions;

  if (!point->incremental && !point->begin)
    return TRUE;
  actions = json_array_new();
  for (guint i = 0; i < point->disks->len; i++) {
    const DrPointDisk *disk = point->disks->pdata[i];

    if (point->incremental)
      add_action(actions, "block-dirty-bitmap-add",
                 dr_json("{'node': <%s>, 'name': <%s>}", disk->top, disk->since));
    if (point->begin)
      add_action(actions, "block-dirty-bitmap-add",
                 dr_json("{'node': <%s>, 'name': <%s>, 'persistent': <true>}", disk->top, point->begin));
  }
  return run_transaction(qmp, actions, error);
}

static gboolean
set_drive(const DrPointDisk *disk, DrQmp *qmp, const char *node, GError **error)
{
  return dr_qmp_do(qmp, "qom-set",
                   dr_json("{'path': <%s>, 'property': <'drive'>, 'value': <%s>}", disk->path, node), error);
}

static gboolean
insert_filters(const DrPoint *point, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < point->disks->len; i++) {
    const DrPointDisk *disk = point->disks->pdata[i];

    if (set_drive(disk, qmp, disk->filter, error))
      continue;
    g_prefix_error(error, "cannot put the filter before disk '%s': ", disk->disk);
    return FALSE;
  }
  return TRUE;
}

/* One disk has one moment anyway. */
static gboolean
is_to_be_stopped(const DrPoint *point)
{
  return point->was_running && point->disks->len > 1;
}

static gboolean
run_on(DrQmp *qmp, GError **error)
{
  g_autoptr(GError) local = NULL;

  if (dr_qmp_do(qmp, "cont", NULL, &local))
    return TRUE;
  dr_error_set(error, DR_ERROR_ATTENTION,
               "the guest was stopped for its backup's moment, and does not go on: %s", local->message);
  return dr_error_remedy(error, "drover resume lets it go on");
}

static gboolean
insert_at_once(const DrPoint *point, DrQmp *qmp, GError **error)
{
  gboolean inserted;

  if (!is_to_be_stopped(point))
    return insert_filters(point, qmp, error);
  if (!dr_qmp_do(qmp, "stop", NULL, error)) {
    run_on(qmp, NULL); /* its answer may only have been late */
    return FALSE;
  }
  inserted = insert_filters(point, qmp, error);
  return run_on(qmp, inserted ? error : NULL) && inserted;
}

/* --- What it was --- */

static gboolean
open_one(const DrPoint *point, const DrPointDisk *disk, DrQmp *qmp, GError **error)
{
  if (!dr_qmp_do(qmp, "blockdev-add",
                 dr_json("{'driver': <'snapshot-access'>, 'node-name': <%s>, 'file': <%s>}", disk->node,
                         disk->filter),
                 error))
    return FALSE;
  if (!point->incremental)
    return TRUE;
  return dr_qmp_do(
             qmp, "block-dirty-bitmap-add",
             dr_json("{'node': <%s>, 'name': <%s>, 'disabled': <true>}", disk->node, point->incremental),
             error) &&
         dr_qmp_do(qmp, "block-dirty-bitmap-merge",
                   dr_json("{'node': <%s>, 'target': <%s>, 'bitmaps': <[{'node': <%s>, 'name': <%s>}]>}",
                           disk->node, point->incremental, disk->top, point->incremental),
                   error);
}

static gboolean
open_all(const DrPoint *point, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < point->disks->len; i++)
    if (!open_one(point, point->disks->pdata[i], qmp, error))
      return FALSE;
  return TRUE;
}

static void
thaw(const DrPoint *point, DrJob *job, DrFindings *findings)
{
  g_autoptr(GError) error = NULL;

  if (!point->agent || dr_guest_thaw(point->agent, &error))
    return;
  if (!findings) {
    g_warning("%s", error->message);
    return;
  }
  dr_findings_add(findings, DR_FINDING_WARNING, "guest-frozen", dr_error_get_remedy(error), "%s",
                  error->message);
  dr_job_set_findings(job, findings);
}

static gboolean
take_it(DrPoint *point, DrJob *job, DrQmp *qmp, GError **error)
{
  g_autofree char *state = dr_migration_run_state(qmp);

  point->was_running = g_str_equal(state, "running");
  return dr_job_enter(job, STAGE_POINT, dr_json("{'was_running': <%b>}", point->was_running), error) &&
         begin_bitmaps(point, qmp, error) && insert_at_once(point, qmp, error);
}

gboolean
dr_point_take(DrPoint *point, DrJob *job, DrQmp *qmp, DrFindings *findings, GError **error)
{
  gboolean taken;

  if (point->agent && (!dr_job_enter(job, STAGE_FREEZE, NULL, error) ||
                       !dr_guest_freeze(point->agent, &point->frozen, error)))
    return FALSE;
  taken = take_it(point, job, qmp, error);
  thaw(point, job, findings);
  return taken && open_all(point, qmp, error);
}

void
dr_point_let_go(DrPoint *point, DrQmp *qmp, const char *stage)
{
  g_autofree char *state = NULL;
  g_autoptr(GError) error = NULL;

  if (g_str_equal(stage, STAGE_FREEZE) || g_str_equal(stage, STAGE_POINT))
    thaw(point, NULL, NULL);
  if (!g_str_equal(stage, STAGE_POINT) || !is_to_be_stopped(point))
    return;
  state = dr_migration_run_state(qmp);
  if (g_str_equal(state, "paused") && !run_on(qmp, &error))
    g_warning("%s", error->message);
}

/* --- Afterwards --- */

gboolean
dr_point_has_room(const DrPoint *point, GError **error)
{
  for (guint i = 0; i < point->disks->len; i++) {
    const DrPointDisk *disk = point->disks->pdata[i];
    g_autofree char *dir = g_path_get_dirname(disk->scratch);
    struct statvfs fs;

    if (statvfs(dir, &fs) < 0 || (gint64)fs.f_bavail * (gint64)fs.f_frsize >= disk->keep)
      continue;
    dr_error_set(error, DR_ERROR_IO,
                 "the guest has written so much since that '%s' gets full with what was in disk '%s' before",
                 dir, disk->disk);
    return dr_error_remedy(error, "make room there, or give another directory for it: --scratch DIR");
  }
  return TRUE;
}

static gboolean
has_since(const DrPoint *point, DrVm *vm, DrQmp *qmp, gboolean *ret_has, GError **error)
{
  const DrPointDisk *first = point->disks->pdata[0];
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, dr_vm_record(vm)->cwd, error);
  const DrDisk *disk = disks ? dr_disks_find(disks, first->disk, error) : NULL;
  g_autoptr(JsonObject) bitmap = disk ? dr_bitmap_find(disks, disk, first->since, NULL) : NULL;

  *ret_has = bitmap != NULL;
  return disk != NULL;
}

/* A write in between is noted in both of them. One transaction: if it has been done, no disk has its bitmap any more. */
gboolean
dr_point_succeed(const DrPoint *point, DrVm *vm, DrQmp *qmp, GError **error)
{
  JsonArray *actions;
  gboolean has;

  if (!point->incremental)
    return TRUE;
  if (!has_since(point, vm, qmp, &has, error))
    return FALSE;
  if (!has)
    return TRUE;
  actions = json_array_new();
  for (guint i = 0; i < point->disks->len; i++) {
    const DrPointDisk *disk = point->disks->pdata[i];
    JsonObject *merge = dr_json("{'node': <%s>, 'target': <%s>, 'bitmaps': <[<%s>]>}", disk->top,
                                point->incremental, disk->since);

    add_action(actions, "block-dirty-bitmap-clear",
               dr_json("{'node': <%s>, 'name': <%s>}", disk->top, point->incremental));
    add_action(actions, "block-dirty-bitmap-merge", merge);
    add_action(actions, "block-dirty-bitmap-remove",
               dr_json("{'node': <%s>, 'name': <%s>}", disk->top, disk->since));
  }
  return run_transaction(qmp, actions, error);
}

static void
try_remove_bitmap(DrQmp *qmp, const char *node, const char *name)
{
  g_autoptr(GError) error = NULL;

  if (name && !dr_qmp_do(qmp, "block-dirty-bitmap-remove",
                         dr_json("{'node': <%s>, 'name': <%s>}", node, name), &error))
    g_debug("block-dirty-bitmap-remove %s: %s", name, error->message); /* it is not there */
}

static gboolean
stands_on(JsonArray *block, const char *path, const char *node)
{
  for (guint i = 0; i < json_array_get_length(block); i++) {
    JsonObject *entry = json_array_get_object_element(block, i);
    const char *qdev = dr_json_str(entry, "qdev", "");
    g_autofree char *full = *qdev == '/' ? g_strdup(qdev) : g_strconcat("/machine/peripheral/", qdev, NULL);

    if (g_str_equal(full, path) && g_str_equal(dr_json_str(entry, "inserted.node-name", ""), node))
      return TRUE;
  }
  return FALSE;
}

/* The point's node goes first: as long as it is there, the filter lets nobody else write to the disk. */
static gboolean
drop_one(const DrPoint *point, const DrPointDisk *disk, DrQmp *qmp, JsonArray *block, gboolean failed,
         GError **error)
{
  dr_image_close(qmp, disk->node, disk->node);
  if (stands_on(block, disk->path, disk->filter) && !set_drive(disk, qmp, disk->root, error)) {
    g_prefix_error(error, "the filter of a backup stays before disk '%s': ", disk->disk);
    return dr_error_remedy(error, "the guest runs on; drover qmp NAME qom-set takes it away by hand");
  }
  try_remove_bitmap(qmp, disk->top, point->incremental ? disk->since : NULL);
  try_remove_bitmap(qmp, disk->top, failed ? point->begin : NULL);
  dr_image_close(qmp, disk->filter, disk->scratch_node);
  return TRUE;
}

/* A droverd that ended before it had taken the name away. */
void
dr_point_forget(const DrPoint *point)
{
  for (guint i = 0; i < point->disks->len; i++)
    unlink(((DrPointDisk *)point->disks->pdata[i])->scratch);
}

gboolean
dr_point_drop(const DrPoint *point, DrQmp *qmp, gboolean failed, GError **error)
{
  g_autoptr(JsonArray) block = dr_qmp_call_array(qmp, "query-block", NULL, error);
  gboolean dropped = block != NULL;

  for (guint i = 0; block && i < point->disks->len; i++)
    dropped &= drop_one(point, point->disks->pdata[i], qmp, block, failed, dropped ? error : NULL);
  dr_point_forget(point);
  return dropped;
}
