/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is to be backed up, and whether it can be. */
#include "base/error.h"
#include "job/backup-point.h"
#include "job/bitmap.h"
#include "job/block-job.h"
#include "job/guest-agent.h"

#include <sys/statvfs.h>

#define SCRATCH_PART 16 /* so small a part of a disk is written over in any backup that takes a while */
#define KEEP_PART 8     /* of what is free: others need room, too */
#define KEEP_MAX (1024 * 1048576) /* bytes */

typedef struct {
  DrPoint *point;
  const DrDisks *disks;
  JsonObject *request;
  DrFindings *findings;
} Choice;

/* --- The scratch file --- */

static void
check_room(const Choice *c, DrPointDisk *disk, const char *dir)
{
  struct statvfs fs;
  gint64 there;

  if (!g_file_test(dir, G_FILE_TEST_IS_DIR) || statvfs(dir, &fs) < 0) {
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "scratch", "make it, or give another one: --scratch DIR",
                    "there is no directory '%s' for what disk '%s' has before it is written over", dir,
                    disk->disk);
    return;
  }
  there = (gint64)fs.f_bavail * (gint64)fs.f_frsize;
  disk->keep = MIN(there / KEEP_PART, KEEP_MAX);
  if (there < disk->bytes / SCRATCH_PART)
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "scratch-room",
                    "make room there, or give another directory: --scratch DIR",
                    "'%s' has %" G_GINT64_FORMAT " MiB free for what disk '%s' (%" G_GINT64_FORMAT
                    " MiB) has before it is written over",
                    dir, there >> 20, disk->disk, disk->bytes >> 20);
  else if (there - disk->keep < disk->bytes)
    dr_findings_add(
        c->findings, DR_FINDING_WARNING, "scratch-room",
        "make room there, or give another directory: --scratch DIR",
        "if the guest writes over more than %" G_GINT64_FORMAT
        " MiB of disk '%s' before the backup is done, '%s' is too full for it and the backup fails; the "
        "guest "
        "goes on",
        (there - disk->keep) >> 20, disk->disk, dir);
}

static void
place_scratch(const Choice *c, DrPointDisk *disk, const DrNode *top)
{
  const char *given = dr_json_str(c->request, "scratch", NULL), *file = dr_node_file(top);
  g_autofree char *dir = given ? g_strdup(given) : *file == '/' ? g_path_get_dirname(file) : NULL;
  g_autofree char *name = g_strconcat(disk->filter, ".scratch", NULL);

  disk->scratch = g_build_filename(dir ? dir : "/", name, NULL);
  if (!dir || g_str_has_prefix(dir, "/dev"))
    dr_findings_add(
        c->findings, DR_FINDING_BLOCKER, "scratch", "give one: --scratch DIR",
        "the image '%s' of disk '%s' is in no directory for what it has before it is written over", file,
        disk->disk);
  else
    check_room(c, disk, dir);
}

/* --- Disks --- */

/* As qom-set takes it. */
static char *
qom_path(const char *device)
{
  return *device == '/' ? g_strdup(device) : g_strconcat("/machine/peripheral/", device, NULL);
}

static gint64
allocated(const DrNode *node)
{
  gint64 bytes = 0;

  for (; node; node = dr_node_backing(node))
    bytes += MAX(dr_node_allocated(node), 0);
  return bytes;
}

static gboolean
check_bitmaps(const Choice *c, DrPointDisk *item, const DrDisk *disk, GError **error)
{
  g_autoptr(JsonObject) bitmap = NULL;

  if (c->point->begin && !dr_bitmap_check_new(c->disks, disk, c->point->begin, 0, TRUE, error))
    return FALSE;
  if (!c->point->incremental)
    return TRUE;
  bitmap = dr_bitmap_find_usable(c->disks, disk, c->point->incremental, error);
  if (!bitmap)
    return FALSE;
  item->wanted = dr_json_int(bitmap, "bytes", 0);
  if (!dr_json_bool(bitmap, "recording", FALSE))
    dr_findings_add(
        c->findings, DR_FINDING_BLOCKER, "bitmap-disabled",
        "take a full backup with a bitmap of its own (--bitmap), or enable it if nothing was written "
        "meanwhile",
        "bitmap '%s' of disk '%s' does not record: what has been written since is not in it",
        c->point->incremental, disk->name);
  return TRUE;
}

static void
warn(const Choice *c, const DrDisk *disk)
{
  g_autoptr(JsonObject) shown = dr_disk_json(c->disks, disk);

  if (dr_json_obj(shown, "job"))
    dr_findings_add(c->findings, DR_FINDING_BLOCKER, "disk-job",
                    "wait for its end, or end it: drover qmp NAME query-block-jobs",
                    "disk '%s' has a job of QEMU's under way (%s)", disk->name,
                    dr_json_str(shown, "job.type", "?"));
  if (dr_json_bool(shown, "encrypted", FALSE))
    dr_findings_add(c->findings, DR_FINDING_WARNING, "backup-encrypted",
                    "keep the backup, and --scratch, where the data is safe",
                    "disk '%s' is encrypted, and its backup is not", disk->name);
}

static gboolean
add_disk(const Choice *c, const DrDisk *disk, GError **error)
{
  DrPointDisk *item = g_new0(DrPointDisk, 1);

  g_ptr_array_add(c->point->disks, item);
  item->disk = g_strdup(disk->name);
  item->path = qom_path(disk->device ? disk->device : "");
  item->root = g_strdup(dr_node_name(disk->root));
  item->top = g_strdup(dr_node_name(disk->top));
  item->node = dr_block_id("bk"); /* with what is put behind it 31 bytes at most (QEMU) */
  item->filter = g_strconcat(item->node, "-filter", NULL);
  item->scratch_node = g_strconcat(item->node, "-old", NULL);
  item->since = g_strconcat(item->node, "-since", NULL);
  item->bytes = dr_node_bytes(disk->top);
  item->wanted = MIN(allocated(disk->top), item->bytes);
  place_scratch(c, item, disk->top);
  warn(c, disk);
  return check_bitmaps(c, item, disk, error);
}

static gboolean
has_disk(const DrPoint *point, const char *name)
{
  for (guint i = 0; i < point->disks->len; i++)
    if (g_str_equal(((DrPointDisk *)point->disks->pdata[i])->disk, name))
      return TRUE;
  return FALSE;
}

static gboolean
add_named(const Choice *c, const char *name, GError **error)
{
  const DrDisk *disk = dr_disks_find(c->disks, name, error);

  if (!disk)
    return FALSE;
  if (has_disk(c->point, disk->name))
    return dr_error_set(error, DR_ERROR_INVALID, "disk '%s' is named twice", name);
  if (!disk->read_only && disk->device)
    return add_disk(c, disk, error);
  dr_findings_add(c->findings, DR_FINDING_BLOCKER, "disk-read-only", "copy its file, which does not change",
                  "disk '%s' is read-only, or no device has it", name);
  return TRUE;
}

/* Where none is named an incremental backup is of those that have the bitmap, and at least one has. */
static gboolean
is_wanted(const Choice *c, const DrDisk *disk)
{
  g_autoptr(JsonObject) bitmap = NULL;

  if (!disk->top || disk->read_only || !disk->device)
    return FALSE;
  if (!c->point->incremental)
    return TRUE;
  bitmap = dr_bitmap_find(c->disks, disk, c->point->incremental, NULL);
  return bitmap != NULL;
}

static gboolean
add_all(const Choice *c, GError **error)
{
  for (guint i = 0; i < dr_disks_count(c->disks); i++)
    if (is_wanted(c, dr_disks_get(c->disks, i)) && !add_disk(c, dr_disks_get(c->disks, i), error))
      return FALSE;
  return TRUE;
}

/* --- All of it --- */

gboolean
dr_point_check(JsonObject *request, GError **error)
{
  JsonArray *disks = dr_json_arr(request, "disks");

  if (disks && json_array_get_length(disks) == 0)
    return dr_error_set(error, DR_ERROR_INVALID, "the list of disks is empty");
  if (*dr_json_str(request, "scratch", "/") != '/')
    return dr_error_set(error, DR_ERROR_INVALID, "the scratch directory is no absolute path");
  return !dr_json_str(request, "incremental", NULL) || !dr_json_str(request, "bitmap", NULL) ||
         dr_error_set(error, DR_ERROR_INVALID,
                      "an incremental backup goes on with its bitmap; a new one begins with a full backup");
}

static gboolean
check_qemu(const Choice *c, DrVm *vm, DrQmp *qmp)
{
  if (dr_qmp_version_number(qmp) >= DR_QEMU(7, 1))
    return TRUE;
  dr_findings_add(
      c->findings, DR_FINDING_BLOCKER, "backup-qemu", "put a newer QEMU under the VM first: drover upgrade",
      "VM '%s' runs on QEMU %s, and only 7.1 and later can make a backup that is not at the guest's risk",
      dr_vm_name(vm), dr_qmp_version(qmp));
  return FALSE;
}

static gboolean
has_disks(const Choice *c, DrVm *vm, GError **error)
{
  if (c->point->disks->len > 0 || dr_findings_block(c->findings))
    return TRUE;
  if (!c->point->incremental)
    return dr_error_set(error, DR_ERROR_REFUSED, "VM '%s' has no disk that could be backed up",
                        dr_vm_name(vm));
  dr_error_set(error, DR_ERROR_NOT_FOUND, "no disk of VM '%s' has a bitmap '%s'", dr_vm_name(vm),
               c->point->incremental);
  return dr_error_remedy(error, "drover bitmap list %s shows them; a full backup begins one: --bitmap %s",
                         dr_vm_name(vm), c->point->incremental);
}

static char *
given(JsonObject *request, const char *member)
{
  return g_strdup(dr_json_str(request, member, NULL));
}

/* Such a QEMU aborts, sometimes when the point in time is prepared (qemu_mutex_unlock_impl of a context that nobody has), always when an NBD client
 * of a disk in a thread goes (nbd_blockdev_client_closed()); seen on Debian's 7.2.22. */
static gboolean
check_iothreads(const Choice *choice, DrQmp *qmp, GError **error)
{
  g_autoptr(JsonArray) threads = dr_qmp_call_array(qmp, "query-iothreads", NULL, error);

  if (threads && json_array_get_length(threads) > 0 && dr_qmp_version_number(qmp) < DR_QEMU(9, 0))
    dr_findings_add(choice->findings, DR_FINDING_BLOCKER, "backup-iothread",
                    "put a newer QEMU under the VM first: drover upgrade",
                    "the VM has I/O threads, and QEMU %s may end when a disk in one is backed up",
                    dr_qmp_version(qmp));
  return threads != NULL;
}

gboolean
dr_point_choose(DrPoint *point, DrVm *vm, DrQmp *qmp, const DrDisks *disks, JsonObject *request,
                DrFindings *findings, GError **error)
{
  const Choice choice = { .point = point, .disks = disks, .request = request, .findings = findings };
  JsonArray *wishes = dr_json_arr(request, "disks");

  point->incremental = given(request, "incremental");
  point->begin = given(request, "bitmap");
  if (!check_qemu(&choice, vm, qmp))
    return TRUE;
  if (!check_iothreads(&choice, qmp, error))
    return FALSE;
  for (guint i = 0; wishes && i < json_array_get_length(wishes); i++)
    if (!add_named(&choice, json_array_get_string_element(wishes, i), error))
      return FALSE;
  if ((!wishes && !add_all(&choice, error)) || !has_disks(&choice, vm, error))
    return FALSE;
  if (!dr_json_bool(request, "quiesce", FALSE))
    return TRUE;
  point->agent = dr_guest_agent_find(vm, qmp, error);
  return point->agent != NULL;
}
