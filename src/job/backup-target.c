/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A backup's files. */
#include "job/backup-target.h"
#include "base/error.h"
#include "job/block-job.h"
#include "job/disk-image.h"
#include "job/disk-target.h"
#include "job/fetch-tool.h"
#include "job/room.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CREATE_MS 60000
#define NAMES_MAX 100

typedef struct {
  GPtrArray *targets;
  const DrPoint *point;
  DrVm *vm;
  JsonObject *request;
  JsonArray *records;
  DrFindings *findings;
  DrRoom *room;
} Choice;

void
dr_backup_target_free(DrBackupTarget *target)
{
  char *texts[] = { target->disk,        target->file, target->format,    target->onto,
                    target->onto_format, target->node, target->file_node, target->job };

  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_free(texts[i]);
  g_free(target);
}

static void G_GNUC_PRINTF(4, 5)
    block(const Choice *c, const char *code, const char *remedy, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list ap;

  va_start(ap, format);
  text = g_strdup_vprintf(format, ap);
  va_end(ap);
  dr_findings_add(c->findings, DR_FINDING_BLOCKER, code, remedy, "%s", text);
}

/* --- Where it goes --- */

/* A disk without a name of its own is called by its path. Two may be made in one second. */
static char *
file_in(const char *dir, const char *disk, const char *format)
{
  g_autoptr(GDateTime) now = g_date_time_new_now_local();
  g_autofree char *time = g_date_time_format(now, "%Y%m%d-%H%M%S");
  g_autofree char *safe = g_strcanon(g_strdup(disk), G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "._-", '_');
  g_autofree char *stem = g_strconcat(dir, "/", safe, ".", time, NULL);
  char *file = g_strconcat(stem, ".", format, NULL);

  for (guint n = 1; n < NAMES_MAX && g_file_test(file, G_FILE_TEST_EXISTS); n++) {
    g_free(file);
    file = g_strdup_printf("%s-%u.%s", stem, n, format);
  }
  return file;
}

static void
check_room(const Choice *c, const DrBackupTarget *target)
{
  g_autofree char *dir = g_path_get_dirname(target->file);
  gint64 there = dr_room_take(c->room, dir, target->wanted);
  struct stat st;

  if (lstat(target->file, &st) == 0)
    block(c, "target-exists", "name another one", "the target '%s' of disk '%s' is there already",
          target->file, target->disk);
  else if (there < 0)
    block(c, "target", "make it, or name another target",
          "there is no directory '%s' for the backup of disk '%s'", dir, target->disk);
  else if (there < target->wanted)
    block(c, "target-room", "make room there, or name another target",
          "'%s' has %" G_GINT64_FORMAT " MiB free, and the backup of disk '%s' takes up to %" G_GINT64_FORMAT
          " MiB",
          dir, there >> 20, target->disk, (target->wanted + (1 << 20) - 1) >> 20);
}

/* --- What it stands on --- */

static const char *
given_onto(const Choice *c, const char *disk)
{
  JsonArray *wishes = dr_json_arr(c->request, "onto");
  gsize n = strlen(disk);

  for (guint i = 0; wishes && i < json_array_get_length(wishes); i++) {
    const char *wish = json_array_get_string_element(wishes, i);

    if (strncmp(wish, disk, n) == 0 && wish[n] == '=')
      return wish + n + 1;
    if (*wish == '/' && c->point->disks->len == 1)
      return wish;
  }
  return NULL;
}

/* Of the backup that is on record for it. */
static const char *
recorded(const Choice *c, const char *disk, const char *member)
{
  for (guint i = 0; i < json_array_get_length(c->records); i++) {
    JsonObject *record = json_array_get_object_element(c->records, i);

    if (g_str_equal(dr_json_str(record, "bitmap", ""), c->point->incremental) &&
        g_str_equal(dr_json_str(record, "disk", ""), disk))
      return dr_json_str(record, member, NULL);
  }
  return NULL;
}

static void
look_at_onto(const Choice *c, DrBackupTarget *target, const char *file, const char *format)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(DrTarget) there = dr_target_look(file, format, &error);
  const char *remedy = "put it back, name where it is now (--onto DISK=FILE), or take a full backup";

  if (!there)
    block(c, "backup-onto", dr_error_get_remedy(error), "%s", error->message);
  else if (there->kind != DR_TARGET_FILE || !there->exists)
    block(c, "backup-onto", remedy,
          "the backup '%s' of disk '%s', which this one is to stand on, is not there", file, target->disk);
  else if (there->bytes > target->bytes)
    block(c, "backup-onto", "take a full backup",
          "the backup '%s' has %" G_GINT64_FORMAT " bytes, disk '%s' %" G_GINT64_FORMAT, file, there->bytes,
          target->disk, target->bytes);
  if (!there)
    return;
  target->onto = g_strdup(file);
  target->onto_format = g_strdup(there->format);
}

static void
find_onto(const Choice *c, DrBackupTarget *target)
{
  const char *given = given_onto(c, target->disk), *file = recorded(c, target->disk, "file");
  /* A raw image says nothing of its format, and its guest could have it say what it likes: only one that is not on record is looked at. */
  const char *format =
      file && (!given || g_str_equal(given, file)) ? recorded(c, target->disk, "format") : NULL;

  if (given)
    file = given;
  if (file)
    look_at_onto(c, target, file, format);
  else
    block(c, "backup-onto",
          "name the backup before it (--onto DISK=FILE), or take a full one with a new bitmap",
          "no backup of disk '%s' by bitmap '%s' is on record that this one could stand on", target->disk,
          c->point->incremental);
}

/* --- All of them --- */

static void
add_target(const Choice *c, const DrPointDisk *disk, const char *dir, const char *format)
{
  DrBackupTarget *target = g_new0(DrBackupTarget, 1);

  g_ptr_array_add(c->targets, target);
  target->disk = g_strdup(disk->disk);
  target->format = g_strdup(format);
  target->file = dir ? file_in(dir, disk->disk, format) : g_strdup(dr_json_str(c->request, "target", ""));
  target->node = g_strconcat(disk->node, "-target", NULL);
  target->file_node = g_strconcat(target->node, "-file", NULL);
  target->job = g_strconcat(disk->node, "-job", NULL);
  target->bytes = disk->bytes;
  target->wanted = disk->wanted;
  check_room(c, target);
  if (c->point->incremental)
    find_onto(c, target);
}

gboolean
dr_backup_targets_choose(GPtrArray *targets, const DrPoint *point, DrVm *vm, JsonObject *request,
                         DrFindings *findings, GError **error)
{
  g_autoptr(JsonArray) records = dr_store_load_backups(dr_vm_host(vm)->store, dr_vm_name(vm), error);
  g_autoptr(DrRoom) room = dr_room_new();
  const Choice choice = { .targets = targets,
                          .point = point,
                          .vm = vm,
                          .request = request,
                          .records = records,
                          .findings = findings,
                          .room = room };
  const char *given = dr_json_str(request, "target", "");
  gboolean is_dir = g_file_test(given, G_FILE_TEST_IS_DIR);

  if (!records)
    return FALSE;
  if (!is_dir && point->disks->len > 1) {
    block(&choice, "target", "make it, or name one disk (--disk)",
          "there is no directory '%s', and a file can hold one disk, not %u", given, point->disks->len);
    return TRUE;
  }
  for (guint i = 0; i < point->disks->len; i++)
    add_target(&choice, point->disks->pdata[i], is_dir ? given : NULL,
               dr_json_str(request, "format", "qcow2"));
  return TRUE;
}

static gboolean
make_one(DrBackupTarget *target, DrVm *vm, DrQmp *qmp, GError **error)
{
  DrTargetKind kind;
  g_autoptr(JsonObject) protocol = dr_target_parse_options(target->file, &kind, error);
  DrImage image = { .protocol = protocol,
                    .node = target->node,
                    .file_node = target->file_node,
                    .format = target->format,
                    .create = TRUE,
                    .bytes = target->bytes,
                    .backing = target->onto,
                    .backing_format = target->onto_format };

  target->reserved = protocol && dr_image_reserve(target->file, dr_vm_record(vm)->id.pid, error);
  if (target->reserved && dr_image_open(qmp, &image, dr_deadline_in(CREATE_MS), error))
    return TRUE;
  g_prefix_error(error, "cannot make the backup '%s' of disk '%s': ", target->file, target->disk);
  return FALSE;
}

gboolean
dr_backup_targets_make(GPtrArray *targets, DrVm *vm, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < targets->len; i++)
    if (!make_one(targets->pdata[i], vm, qmp, error))
      return FALSE;
  return TRUE;
}

void
dr_backup_targets_close(GPtrArray *targets, DrQmp *qmp)
{
  for (guint i = 0; i < targets->len; i++) {
    const DrBackupTarget *target = targets->pdata[i];

    dr_image_close(qmp, target->node, target->file_node);
  }
}

gboolean
dr_backup_targets_sync(GPtrArray *targets, GError **error)
{
  for (guint i = 0; i < targets->len; i++)
    if (!dr_fetch_tool_sync(((const DrBackupTarget *)targets->pdata[i])->file, error))
      return FALSE;
  return TRUE;
}

void
dr_backup_targets_remove(GPtrArray *targets)
{
  for (guint i = 0; i < targets->len; i++) {
    const DrBackupTarget *target = targets->pdata[i];

    if (target->reserved)
      unlink(target->file);
  }
}

gboolean
dr_backup_targets_record(GPtrArray *targets, DrVm *vm, const char *bitmap, GError **error)
{
  for (guint i = 0; bitmap && i < targets->len; i++) {
    const DrBackupTarget *target = targets->pdata[i];
    g_autoptr(JsonObject) record =
        dr_json("{'bitmap': <%s>, 'disk': <%s>, 'file': <%s>, 'format': <%s>, 'time_ms': <%x>}", bitmap,
                target->disk, target->file, target->format, g_get_real_time() / 1000);

    if (!dr_store_put_backup(dr_vm_host(vm)->store, dr_vm_name(vm), record, error))
      return FALSE;
  }
  return TRUE;
}
