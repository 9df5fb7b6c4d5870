/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A snapshot with memory: RAM and devices go into a file while the guest runs, and at the instant at which QEMU stops it for the rest,
 * the disks are put on their overlays. What fails afterwards is undone: the overlays, which hold next to nothing, are merged back. */
#include "base/error.h"
#include "base/fd.h"
#include "job/block-job.h"
#include "job/migration.h"
#include "job/snapshot-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MEMORY_SUFFIX ".memory"
#define SPARE (64ull << 20)           /* for devices, and pages that are written twice */
#define TCG_DIRTY_FIXED DR_QEMU(9, 0) /* preflight.c */
#define TCG_ALIGNMENT (256 * 1024)
#define MERGE_MS 60000
#define KILL_MS 30000
#define LOOK_MS 20

gboolean
dr_snapshot_memory_check(JsonObject *request, GError **error)
{
  const char *file = dr_json_str(request, "memory_file", NULL);
  gboolean memory = dr_json_bool(request, "memory", FALSE);

  if (file && !memory)
    return dr_error_set(error, DR_ERROR_INVALID,
                        "a file for the memory is named, and memory is not to be saved");
  if (file && *file != '/')
    return dr_error_set(error, DR_ERROR_INVALID, "the memory's file '%s' is no absolute path", file);
  if (memory && dr_json_bool(request, "quiesce", FALSE))
    return dr_error_set(
        error, DR_ERROR_INVALID,
        "freezing the file systems and saving the memory exclude each other: what is not on the "
        "disks yet is in the memory");
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

/* Beside the first overlay: there is room where disks are. */
static char *
default_file(const Snapshot *s)
{
  const Split *first = s->splits->pdata[0];
  g_autofree char *dir = g_path_get_dirname(first->overlay);
  g_autofree char *name = g_strdup_printf("%s.%s" MEMORY_SUFFIX, dr_vm_name(s->d.vm), s->name);

  return g_build_filename(dir, name, NULL);
}

/* What the guest has touched of it: the rest is zero, and takes no room. */
static guint64
in_use(const Snapshot *s, const DrRamBlock *ram)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/fd/%d", (int)dr_vm_record(s->d.vm)->id.pid, ram->fd);
  struct stat st;

  if (ram->fd < 0 || stat(path, &st) < 0)
    return ram->size;
  return MIN(ram->size, (guint64)st.st_blocks * 512);
}

static void
check_room(Snapshot *s, const DrPreflight *p)
{
  g_autofree char *dir = g_path_get_dirname(s->memory_file);
  guint64 need = SPARE, available;
  struct statvfs fs;

  for (guint i = 0; i < p->ram->len; i++)
    need += in_use(s, p->ram->pdata[i]);
  if (statvfs(dir, &fs) < 0) {
    block(s, "memory-file", "name another one: --memory-file PATH",
          "there is no directory '%s' for the guest's memory", dir);
    return;
  }
  available = (guint64)fs.f_bavail * fs.f_frsize;
  if (available < need)
    block(s, "memory-room", "make room, or name another place: --memory-file PATH",
          "the guest's memory takes up to %" G_GUINT64_FORMAT " MiB, and '%s' has %" G_GUINT64_FORMAT
          " MiB left",
          need >> 20, dir, available >> 20);
}

static void
check_file(Snapshot *s, const DrPreflight *p)
{
  struct stat st;

  if (lstat(s->memory_file, &st) == 0)
    block(s, "memory-file", "name another one: --memory-file PATH", "'%s' is there already", s->memory_file);
  else
    check_room(s, p);
}

/* Memory knows what is on every disk: one whose writes go on would be another one after a revert. */
static void
check_all_disks(Snapshot *s, const DrDisks *disks)
{
  for (guint i = 0; i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);
    gboolean found = !disk->top || disk->read_only;

    for (guint n = 0; !found && n < s->splits->len; n++)
      found = g_str_equal(((Split *)s->splits->pdata[n])->disk, disk->name);
    if (!found)
      block(s, "snapshot-disks", "take it of all disks", "disk '%s' is not in the snapshot, and memory is",
            disk->name);
  }
}

static void
warn_tcg(Snapshot *s, const DrPreflight *p, DrQmp *qmp)
{
  if (p->kvm || dr_qmp_version_number(qmp) >= TCG_DIRTY_FIXED ||
      dr_inventory_memory(p->inventory) % TCG_ALIGNMENT != 0)
    return;
  dr_findings_add(
      s->findings, DR_FINDING_WARNING, "tcg-aligned-ram",
      "give the guest 8 KiB more (-m 262152k), or run it under KVM",
      "a TCG guest with RAM of a multiple of 256 KiB under a QEMU before 9.0: QEMU can lose dirty "
      "pages while RAM is saved, and the guest would run on with wrong memory after a revert");
}

void
dr_snapshot_memory_preflight(Snapshot *s, const DrDisks *disks, const DrPreflight *p, DrQmp *qmp)
{
  const char *file = dr_json_str(s->request, "memory_file", NULL);

  for (guint i = 0; i < dr_findings_count(p->findings); i++) {
    const DrFinding *finding = dr_findings_get(p->findings, i);

    if (finding->severity == DR_FINDING_BLOCKER)
      block(s, finding->code, finding->remedy, "%s", finding->text);
  }
  if (!p->was_running) /* QEMU gives the disks back only to a guest that goes on */
    block(s, "state", "drover resume it first: the snapshot itself pauses it but for a moment",
          "the memory of a paused guest cannot be saved");
  check_all_disks(s, disks);
  warn_tcg(s, p, qmp);
  if (dr_findings_block(s->findings))
    return;
  s->memory_file = file ? g_strdup(file) : default_file(s);
  check_file(s, p);
}

/* --- Taking it --- */

typedef struct {
  Snapshot *s;
  DrQmp *qmp;
} Instant;

static gboolean
at_stop(gpointer data, GError **error)
{
  Instant *instant = data;

  return dr_snapshot_switch(instant->s, instant->qmp, error);
}

static gboolean
open_file(Snapshot *s, GError **error)
{
  s->save.fd = open(s->memory_file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0600);
  s->memory_made = s->save.fd >= 0;
  if (s->memory_made)
    return TRUE;
  if (errno == EEXIST)
    return dr_error_set(error, DR_ERROR_EXISTS, "'%s' is there already", s->memory_file);
  return dr_error_set_errno(error, errno, "cannot make '%s' for the guest's memory", s->memory_file);
}

/* The name, too, survives a power cut. */
static gboolean
sync_name(Snapshot *s, GError **error)
{
  g_autofree char *dir = g_path_get_dirname(s->memory_file);
  dr_autofd int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  return (fd >= 0 && fsync(fd) == 0) ||
         dr_error_set_errno(error, errno, "cannot write '%s' to the disk", dir);
}

gboolean
dr_snapshot_take_memory(Snapshot *s, DrQmp *qmp, GError **error)
{
  Instant instant = { s, qmp };

  return open_file(s, error) && sync_name(s, error) && dr_job_enter(s->d.job, DR_STAGE_MEMORY, NULL, error) &&
         dr_memory_save(&s->save, s->d.job, qmp, at_stop, &instant, error);
}

/* --- Undoing it --- */

void
dr_snapshot_remove_memory(Snapshot *s)
{
  if (s->memory_made && unlink(s->memory_file) < 0 && errno != ENOENT)
    g_warning("cannot remove '%s': %s", s->memory_file, g_strerror(errno));
}

/* The disk that stands on this overlay. */
static const DrDisk *
disk_on(const DrDisks *disks, const char *node)
{
  for (guint i = 0; i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);

    if (disk->top && g_str_equal(dr_node_name(disk->top), node))
      return disk;
  }
  return NULL;
}

static gboolean
wait_ready(DrQmp *qmp, const char *job, DrDeadline deadline, GError **error)
{
  for (;;) {
    g_auto(DrBlockJobLook) look = { 0 };

    if (!dr_block_job_look(qmp, job, &look, error))
      return FALSE;
    if (look.state == DR_BLOCK_JOB_READY || look.state == DR_BLOCK_JOB_ENDED)
      return TRUE;
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "it takes too long");
    g_usleep(LOOK_MS * 1000); /* bounded by the deadline */
  }
}

/* The overlay's few writes go into the base, as by a merge down. The job has one name, so that the next droverd finds what this one
 * left of it. */
static gboolean
merge_back(DrQmp *qmp, const Split *split, const DrDisk *disk, GError **error)
{
  g_autofree char *job = g_strconcat(split->node, "-undo", NULL);
  DrDeadline deadline = dr_deadline_in(MERGE_MS);

  return dr_block_job_kill(qmp, job, dr_deadline_in(KILL_MS), error) &&
         dr_qmp_do(qmp, "block-commit",
                   dr_json("{'job-id': <%s>, 'device': <%s>, 'top-node': <%s>, 'base-node': <%s>, "
                           "'auto-finalize': <true>, 'auto-dismiss': <false>}",
                           job, dr_node_name(disk->root), split->node,
                           dr_node_name(dr_node_backing(disk->top))),
                   error) &&
         wait_ready(qmp, job, deadline, error) &&
         dr_qmp_do(qmp, "block-job-complete", dr_json("{'device': <%s>}", job), error) &&
         dr_block_job_end(qmp, job, "the undoing of the snapshot", deadline, error);
}

/* Those that stand on their overlays: before the instant none, after a crash in here maybe some. */
static gboolean
roll_back(Snapshot *s, DrQmp *qmp, GError **error)
{
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, dr_vm_record(s->d.vm)->cwd, error);
  DrStore *store = dr_job_host(s->d.job)->store;

  for (guint i = 0; disks && i < s->splits->len; i++) {
    const Split *split = s->splits->pdata[i];
    const DrDisk *disk = disk_on(disks, split->node);

    if (disk && (!dr_store_journal(store, dr_job_id(s->d.job), DR_STAGE_ROLLBACK, NULL, error) ||
                 !merge_back(qmp, split, disk, error))) {
      g_prefix_error(error, "disk '%s' stays on the overlay '%s': ", split->disk, split->overlay);
      return FALSE;
    }
  }
  return disks != NULL;
}

static void
tell_overlays(Snapshot *s, const GError *why)
{
  g_warning("VM '%s': %s", dr_vm_name(s->d.vm), why->message);
  dr_findings_add(s->findings, DR_FINDING_WARNING, "snapshot-overlay",
                  "nothing is lost: the disk is right on it; block-commit by drover qmp merges it", "%s",
                  why->message);
  dr_job_set_findings(s->d.job, s->findings);
}

/* What QEMU stands on is the truth, not what became of its jobs. */
static gboolean
none_in_use(Snapshot *s, DrQmp *qmp, GError **error)
{
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, dr_vm_record(s->d.vm)->cwd, error);

  for (guint i = 0; disks && i < dr_disks_count(disks); i++)
    for (DrNode *node = dr_disks_get(disks, i)->top; node; node = dr_node_backing(node))
      for (guint k = 0; k < s->splits->len; k++)
        if (g_str_equal(dr_node_name(node), ((const Split *)s->splits->pdata[k])->node))
          return dr_error_set(error, DR_ERROR_CLOSED, "a disk still stands on the overlay '%s'",
                              ((const Split *)s->splits->pdata[k])->overlay);
  return disks != NULL;
}

gboolean
dr_snapshot_undo_memory(Snapshot *s, DrQmp *qmp, GError *cause, GError **error)
{
  g_autoptr(GError) local = NULL;

  if (g_error_matches(cause, DR_ERROR, DR_ERROR_ATTENTION))
    tell_overlays(s, cause); /* it stands still, and its disks may not be QEMU's: nothing is written */
  else if (roll_back(s, qmp, &local) && none_in_use(s, qmp, &local))
    dr_snapshot_remove_overlays(s, qmp);
  else
    tell_overlays(s, local); /* or QEMU has ended, after its guest may have written to them */
  dr_snapshot_remove_memory(s);
  g_propagate_error(error, cause);
  return FALSE;
}

/* --- Recovery --- */

/* The disks stand on the overlays: what is still to come is the end of the stream, unless that has failed. */
static gboolean
go_on(Snapshot *s, DrQmp *qmp, GError **error)
{
  g_autofree char *status = dr_migration_status(qmp);

  if (!g_strv_contains((const char *const[]){ "pre-switchover", "device", "completed", NULL }, status))
    return dr_error_set(error, DR_ERROR_QMP, "droverd ended, and QEMU did not save the guest's memory (%s)",
                        status);
  s->save.fd = open(s->memory_file, O_RDWR | O_CLOEXEC | O_NOCTTY);
  if (s->save.fd < 0)
    return dr_error_set_errno(error, errno, "cannot open '%s'", s->memory_file);
  return dr_memory_save_finish(&s->save, s->d.job, qmp, error);
}

gboolean
dr_snapshot_settle_memory(Snapshot *s, DrQmp *qmp, const char *stage, GError **error)
{
  g_autoptr(GError) stays = NULL;
  GError *cause = NULL;
  gboolean taken;

  if (!dr_snapshot_was_taken(s, qmp, &taken, error))
    return FALSE;
  if (taken && g_str_equal(stage, DR_STAGE_MEMORY) && go_on(s, qmp, &cause))
    return TRUE;
  if (!cause) {
    dr_error_set(&cause, DR_ERROR_CLOSED, "droverd ended at stage '%s', before the snapshot was taken",
                 stage);
    dr_error_remedy(&cause, "take it again");
  }
  if (!dr_memory_save_give_up(s->d.job, qmp, s->halted, &stays)) {
    g_error_free(cause);
    cause = g_steal_pointer(&stays);
  }
  return dr_snapshot_undo_memory(s, qmp, cause, error);
}
