/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Copies disks of a running VM. */
#include "job/disk-copy.h"
#include "base/error.h"
#include "job/disk-image.h"
#include "job/disk-job.h"
#include "job/disk-target.h"

#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define STAGE_PREFLIGHT "preflight"
#define STAGE_CREATE "create"
#define STAGE_COPY "copy"
#define STAGE_READY "ready"
#define STAGE_PIVOT "pivot"
#define STAGE_FINISH "finish"
#define CREATE_MS 60000
#define END_MS 60000
#define KILL_MS 30000
#define STILL_US (10 * G_USEC_PER_SEC) /* so long without getting closer: it never will */
#define MOVES_US (2 * G_USEC_PER_SEC)
#define MAX_COPIES 16

typedef enum { KEEP_UNDECIDED, KEEP_COPY, KEEP_DISK } Keep;

typedef struct {
  char *disk, *target, *format, *backing, *backing_format, *backing_node, *secret;
  char *node, *file_node, *job;
  char *source;      /* the node that is mirrored: what the device sees */
  char *replaces;    /* nullable: the node below filters, which stay */
  gboolean made;     /* its file is to be made */
  gboolean reserved; /* and is: one of that name that came meanwhile is somebody else's */
  gboolean direct, no_flush;
  gint64 bytes, size; /* `size`: see DrImage */
  char *detect_zeroes;
  DrTarget *there; /* what the target is; NULL: see `there_error` */
  GError *there_error;
  GPtrArray *old; /* names of nodes that nobody needs after the pivot */
  /* Whether it gets closer. */
  gint64 least, least_us, done, moved_us;
  gboolean blocking; /* each write of the guest's goes to both, and is acknowledged then */
} Item;

typedef struct {
  DrDiskJob d;
  JsonObject *request;
  GPtrArray *items;
  DrFindings *findings;
  Keep keep;
  gboolean was_ready;
} Copy;

static void
item_free(gpointer data)
{
  Item *item = data;
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

/* --- The request --- */

static gboolean
check_pair(JsonArray *copies, guint i, GError **error)
{
  JsonNode *node = json_array_get_element(copies, i);
  JsonObject *pair = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
  const char *disk = pair ? dr_json_str(pair, "disk", "") : "",
             *target = pair ? dr_json_str(pair, "target", "") : "";

  if (!*disk || !*target)
    return dr_error_set(error, DR_ERROR_INVALID, "each copy is {\"disk\", \"target\"}");
  for (guint n = 0; n < i; n++) {
    JsonObject *other = json_array_get_object_element(copies, n);

    if (g_str_equal(dr_json_str(other, "disk", ""), disk) ||
        g_str_equal(dr_json_str(other, "target", ""), target))
      return dr_error_set(error, DR_ERROR_INVALID, "disk '%s' or its target '%s' is named twice", disk,
                          target);
  }
  return TRUE;
}

gboolean
dr_disk_copy_check(JsonObject *request, GError **error)
{
  JsonArray *copies = dr_json_arr(request, "copies");
  const char *sync = dr_json_str(request, "sync", "full"), *then = dr_json_str(request, "then", NULL);
  gint64 granularity = dr_json_int(request, "granularity", 0);

  if (!copies || json_array_get_length(copies) == 0 || json_array_get_length(copies) > MAX_COPIES)
    return dr_error_set(error, DR_ERROR_INVALID, "name 1 to %d disks, each with its target", MAX_COPIES);
  for (guint i = 0; i < json_array_get_length(copies); i++)
    if (!check_pair(copies, i, error))
      return FALSE;
  if (!g_str_equal(sync, "full") && !g_str_equal(sync, "top"))
    return dr_error_set(error, DR_ERROR_INVALID, "sync is 'full' or 'top', not '%s'", sync);
  if (then && !g_str_equal(then, "pivot") && !g_str_equal(then, "finish"))
    return dr_error_set(error, DR_ERROR_INVALID, "then is 'pivot' or 'finish', not '%s'", then);
  if (granularity && (granularity & (granularity - 1)))
    return dr_error_set(error, DR_ERROR_INVALID, "the granularity %" G_GINT64_FORMAT " is no power of 2",
                        granularity);
  return TRUE;
}

static gboolean
is_top_only(const Copy *c)
{
  return g_str_equal(dr_json_str(c->request, "sync", "full"), "top");
}

/* --- Preflight --- */

static void
block(Copy *c, const char *code, const char *remedy, const char *text)
{
  dr_findings_add(c->findings, DR_FINDING_BLOCKER, code, remedy, "%s", text);
}

static void
block_error(Copy *c, const char *code, const GError *error)
{
  block(c, code, dr_error_get_remedy(error), error->message);
}

/* Any image of any disk of this VM. */
static gboolean
is_in_use_here(const DrDisks *disks, const char *target)
{
  for (guint i = 0; i < dr_disks_count(disks); i++)
    for (const DrNode *node = dr_disks_get(disks, i)->top; node; node = dr_node_backing(node))
      if (dr_same_file(dr_node_file(node), target, NULL))
        return TRUE;
  return FALSE;
}

/* A file that is to be made needs a directory, and room for what the disk has by now. */
static void
check_room(Copy *c, const Item *item, const DrDisk *disk)
{
  g_autofree char *dir = g_path_get_dirname(item->target);
  g_autofree char *text = NULL;
  gint64 wanted = 0, there;
  struct statvfs fs;

  if (!g_file_test(dir, G_FILE_TEST_IS_DIR) || statvfs(dir, &fs) < 0) {
    text = g_strdup_printf("there is no directory '%s' for the target '%s'", dir, item->target);
    block(c, "target", "make it, or name another target", text);
    return;
  }
  for (const DrNode *node = disk->top; node; node = is_top_only(c) ? NULL : dr_node_backing(node))
    wanted += MAX(dr_node_allocated(node), 0);
  wanted = MIN(wanted, item->bytes);
  there = (gint64)fs.f_bavail * (gint64)fs.f_frsize;
  if (there >= wanted)
    return;
  text =
      g_strdup_printf("'%s' has %" G_GINT64_FORMAT " MiB free, and disk '%s' takes %" G_GINT64_FORMAT " MiB",
                      dir, there >> 20, item->disk, wanted >> 20);
  block(c, "target-room", "make room there, or name another target", text);
}

/* What is there stays below the copy, unless it is just what the copy is to stand on. */
static void
check_backing(Copy *c, const Item *item, const DrTarget *target)
{
  g_autofree char *text = NULL;

  if (item->backing && (!target->backing || !dr_same_file(target->backing, item->backing, NULL) ||
                        g_strcmp0(target->backing_format, item->backing_format) != 0)) {
    text = g_strdup_printf("the target '%s' does not stand on '%s' (%s), as disk '%s' does", item->target,
                           item->backing, item->backing_format, item->disk);
    block(c, "target-backing", "make it so: qemu-img create -f qcow2 -b FILE -F FORMAT TARGET", text);
  } else if (!item->backing && target->images > 1) {
    text = g_strdup_printf("the target '%s' stands on another image, '%s'", item->target,
                           target->backing ? target->backing : "?");
    block(c, "target-backing", "give one that stands alone, or have a new one made", text);
  }
}

static void
check_size(Copy *c, Item *item, const DrTarget *target)
{
  gboolean raw = g_str_equal(item->format, "raw");
  g_autofree char *text = NULL;

  if (target->bytes < 0 || target->bytes == item->bytes)
    return;
  if (target->bytes > item->bytes && raw) {
    item->size = item->bytes; /* QEMU mirrors between equals only */
    return;
  }
  if (target->kind == DR_TARGET_DEVICE && !raw)
    return; /* it gets a new header */
  text = g_strdup_printf("the target '%s' has %" G_GINT64_FORMAT " bytes, disk '%s' %" G_GINT64_FORMAT,
                         item->target, target->bytes, item->disk, item->bytes);
  block(c, "target-size", raw ? "give one of at least the disk's size" : "give one of just the disk's size",
        text);
}

static void
check_existing(Copy *c, Item *item, const DrTarget *target)
{
  g_autofree char *text = NULL;

  if (target->kind == DR_TARGET_HTTP) {
    text = g_strdup_printf("'%s' cannot be written to", item->target);
    block(c, "target", "give a file, a block device or an NBD export", text);
  } else if (target->kind == DR_TARGET_FILE && !dr_json_bool(c->request, "reuse_external", FALSE)) {
    text = g_strdup_printf("the target '%s' is there already", item->target);
    block(c, "target-exists", "name another one, or have it written over: --reuse-external", text);
  } else {
    check_size(c, item, target);
    check_backing(c, item, target);
  }
}

static void
check_target(Copy *c, Item *item, const DrDisks *disks, const DrDisk *disk)
{
  gboolean again = dr_json_bool(c->request, "reuse_external", FALSE);
  const DrTarget *target = item->there;
  g_autofree char *text = NULL;

  if (!target) {
    block_error(c, "target", item->there_error);
    return;
  }
  if (is_in_use_here(disks, item->target)) {
    text = g_strdup_printf("the target '%s' is one of the VM's own images", item->target);
    block(c, "target-in-use", "name another one", text);
    return;
  }
  /* What is there keeps its format; a block device gets that of the disk, but raw needs no making. */
  item->made = target->kind == DR_TARGET_FILE && !target->exists;
  if (target->exists && (again || target->kind == DR_TARGET_NBD) &&
      !dr_json_str(c->request, "format", NULL)) {
    g_free(item->format);
    item->format = g_strdup(target->format);
  }
  if (target->exists)
    check_existing(c, item, target);
  else
    check_room(c, item, disk);
}

/* Formats that QEMU can make, grow and write (QAPI: BlockdevCreateOptions); the others are read-only in practice. */
static void
check_format(Copy *c, const Item *item)
{
  static const char *const known[] = { "raw", "qcow2", "qed", "luks",      "vmdk",
                                       "vdi", "vhdx",  "vpc", "parallels", NULL };
  g_autofree char *text = NULL;

  if (item->there && item->there->kind == DR_TARGET_HTTP)
    return;
  if (!g_strv_contains(known, item->format)) {
    text = g_strdup_printf("'%s' is no format that a copy can have", item->format);
    block(c, "target-format", "give --format raw or --format qcow2", text);
  } else if (item->backing && !g_str_equal(item->format, "qcow2")) {
    text = g_strdup_printf("a copy of the top image only (--sync top) cannot be %s", item->format);
    block(c, "target-format", "give --format qcow2, or copy all of it: --sync full", text);
  } else if (item->secret && !g_str_equal(item->format, "luks") && !g_str_equal(item->format, "qcow2")) {
    text = g_strdup_printf("disk '%s' is encrypted, and a copy in format %s would not be", item->disk,
                           item->format);
    block(c, "target-format", "give --format luks or --format qcow2", text);
  }
}

static void
describe(Copy *c, Item *item, const DrDisk *disk)
{
  const DrNode *backing = dr_node_backing(disk->top);
  const char *format = dr_json_str(c->request, "format", NULL);

  item->bytes = dr_node_bytes(disk->top);
  item->source = g_strdup(dr_node_name(disk->root));
  item->replaces = disk->root != disk->top ? g_strdup(dr_node_name(disk->top)) : NULL;
  item->format = g_strdup(format ? format : dr_node_driver(disk->top));
  item->secret = dr_node_secret(disk->top);
  item->detect_zeroes = dr_node_detect_zeroes(disk->top);
  item->direct = dr_node_flag(disk->top, "cache.direct");
  item->no_flush = dr_node_flag(disk->top, "cache.no-flush");
  item->old = dr_node_named_tree(disk->top, is_top_only(c) ? dr_node_backing(disk->top) : NULL);
  if (is_top_only(c) && backing) {
    item->backing = g_strdup(dr_node_file(backing));
    item->backing_format = g_strdup(dr_node_driver(backing));
    item->backing_node = g_strdup(dr_node_name(backing));
  }
}

/* What changes by the copy without anybody's having asked for it. */
static void
warn(Copy *c, const Item *item, const DrDisks *disks, const DrDisk *disk)
{
  g_autoptr(JsonObject) shown = dr_disk_json(disks, disk);
  JsonArray *bitmaps = dr_json_arr(shown, "bitmaps");

  if (disk->root != disk->top)
    dr_findings_add(c->findings, DR_FINDING_WARNING, "disk-throttle",
                    "give the copy a part of it only: --bandwidth MIB/S",
                    "disk '%s' is read through its filter '%s': where that limits it, the copy and the guest "
                    "share what it allows",
                    item->disk, dr_node_driver(disk->root));
  if (bitmaps && json_array_get_length(bitmaps) > 0)
    dr_findings_add(c->findings, DR_FINDING_WARNING, "disk-bitmaps", "take a full backup after a pivot",
                    "the bitmaps of disk '%s' stay with its image: the copy has none", item->disk);
}

static gboolean
is_named_twice(const Copy *c, const Item *item, GError **error)
{
  for (guint i = 0; i < c->items->len; i++) {
    const Item *other = c->items->pdata[i];

    if (other != item && g_strcmp0(other->source, item->source) == 0) {
      dr_error_set(error, DR_ERROR_INVALID, "a disk is named twice: '%s' and '%s' are the same", other->disk,
                   item->disk);
      return TRUE;
    }
  }
  return FALSE;
}

static void
check_disk(Copy *c, const Item *item, const DrDisk *disk)
{
  g_autofree char *text = NULL;

  if (disk->read_only) {
    text = g_strdup_printf("disk '%s' is read-only: there is nothing to keep in step", item->disk);
    block(c, "disk-read-only", "copy its file with qemu-img convert", text);
  } else if (is_top_only(c) && !item->backing) {
    text = g_strdup_printf(
        "disk '%s' has no backing image that a copy of its top (--sync top) could stand on", item->disk);
    block(c, "disk-chain", "copy all of it: --sync full", text);
  }
}

/* Without the monitor: a server may take its time to answer. */
static void
look_at_targets(Copy *c)
{
  const char *format =
      dr_json_bool(c->request, "reuse_external", FALSE) ? dr_json_str(c->request, "format", NULL) : NULL;

  for (guint i = 0; i < c->items->len; i++) {
    Item *item = c->items->pdata[i];

    item->there = dr_target_look(item->target, format, &item->there_error);
  }
}

static gboolean
look_at_item(Copy *c, Item *item, const DrDisks *disks, GError **error)
{
  const DrDisk *disk = dr_disks_find(disks, item->disk, error);

  if (!disk)
    return FALSE;
  describe(c, item, disk);
  if (is_named_twice(c, item, error))
    return FALSE;
  warn(c, item, disks, disk);
  check_disk(c, item, disk);
  check_target(c, item, disks, disk);
  check_format(c, item);
  return TRUE;
}

static gboolean
preflight(Copy *c, DrQmp *qmp, GError **error)
{
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, dr_vm_record(c->d.vm)->cwd, error);
  g_autofree char *doing = g_strdup_printf("copy disks of VM '%s'", dr_vm_name(c->d.vm));

  for (guint i = 0; disks && i < c->items->len; i++)
    if (!look_at_item(c, c->items->pdata[i], disks, error))
      return FALSE;
  if (!disks)
    return FALSE;
  dr_job_set_findings(c->d.job, c->findings);
  return dr_findings_block(c->findings) ? dr_findings_to_error(c->findings, doing, error) : TRUE;
}

/* --- The journal --- */

static JsonObject *
item_note(const Item *item)
{
  JsonObject *object =
      dr_json("{'disk': <%s>, 'target': <%s>, 'format': <%s>, 'node': <%s>, 'file_node': <%s>, 'job': <%s>, "
              "'source': <%s>, 'made': <%b>, 'bytes': <%x>}",
              item->disk, item->target, item->format, item->node, item->file_node, item->job, item->source,
              item->made, item->bytes);
  JsonArray *old = json_array_new();

  for (guint i = 0; i < item->old->len; i++)
    json_array_add_string_element(old, item->old->pdata[i]);
  json_object_set_array_member(object, "old", old);
  if (item->replaces)
    json_object_set_string_member(object, "replaces", item->replaces);
  return object;
}

static JsonObject *
note(const Copy *c)
{
  JsonObject *object = json_object_new();
  JsonArray *items = json_array_new();

  for (guint i = 0; i < c->items->len; i++)
    json_array_add_object_element(items, item_note(c->items->pdata[i]));
  json_object_set_array_member(object, "items", items);
  return object;
}

static void
item_load(Item *item, JsonObject *object)
{
  JsonArray *old = dr_json_arr(object, "old");

  item->disk = g_strdup(dr_json_str(object, "disk", ""));
  item->target = g_strdup(dr_json_str(object, "target", ""));
  item->format = g_strdup(dr_json_str(object, "format", ""));
  item->node = g_strdup(dr_json_str(object, "node", ""));
  item->file_node = g_strdup(dr_json_str(object, "file_node", ""));
  item->job = g_strdup(dr_json_str(object, "job", ""));
  item->source = g_strdup(dr_json_str(object, "source", ""));
  item->replaces = g_strdup(dr_json_str(object, "replaces", NULL));
  item->made = dr_json_bool(object, "made", FALSE);
  item->reserved = item->made;
  item->bytes = dr_json_int(object, "bytes", 0);
  item->old = g_ptr_array_new_with_free_func(g_free);
  for (guint i = 0; old && i < json_array_get_length(old); i++)
    g_ptr_array_add(item->old, g_strdup(json_array_get_string_element(old, i)));
}

/* --- Beginning --- */

static gboolean
open_target(Copy *c, DrQmp *qmp, Item *item, GError **error)
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
start_mirror(Copy *c, DrQmp *qmp, Item *item, GError **error)
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
begin(Copy *c, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < c->items->len; i++)
    if (!open_target(c, qmp, c->items->pdata[i], error))
      return FALSE;
  if (!dr_job_enter(c->d.job, STAGE_COPY, NULL, error))
    return FALSE;
  for (guint i = 0; i < c->items->len; i++)
    if (!start_mirror(c, qmp, c->items->pdata[i], error))
      return FALSE;
  return TRUE;
}

/* --- Does it get closer? --- */

static Item *
item_of(Copy *c, const DrBlockWatch *watch)
{
  for (guint i = 0; i < c->items->len; i++)
    if (g_str_equal(((Item *)c->items->pdata[i])->job, watch->id))
      return c->items->pdata[i];
  return NULL;
}

/* QEMU 8.2 and newer change the mode of a mirror that runs; before, it has to begin anew, and then cannot fall behind. */
static gboolean
make_blocking(Copy *c, DrQmp *qmp, Item *item, GError **error)
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
  return dr_block_job_kill(qmp, item->job, dr_deadline_in(KILL_MS), error) &&
         start_mirror(c, qmp, item, error);
}

static gboolean
watch_convergence(DrDiskJob *d, DrQmp *qmp, GError **error)
{
  Copy *c = d->data;

  for (guint i = 0; i < d->watches->len; i++) {
    const DrBlockWatch *watch = d->watches->pdata[i];
    Item *item = item_of(c, watch);
    gint64 left = watch->look.total - watch->look.done, now = g_get_monotonic_time();

    if (watch->look.done > item->done)
      item->moved_us = now;
    item->done = watch->look.done;
    if (watch->look.state != DR_BLOCK_JOB_RUNNING || item->least_us == 0 || left < item->least) {
      item->least = left;
      item->least_us = now;
    } else if (!item->blocking && left > 0 && now - item->least_us > STILL_US &&
               now - item->moved_us <
                   MOVES_US) { /* a target that takes nothing at all is not the guest's doing */
      item->least_us = 0;
      if (!make_blocking(c, qmp, item, error))
        return FALSE;
    }
  }
  return TRUE;
}

/* --- The end --- */

static void
remove_file(const Item *item)
{
  if (item->reserved && unlink(item->target) == 0)
    g_message("'%s' is removed: it was never a whole copy", item->target);
}

/* Whether the disk stands on its copy already. */
static gboolean
is_pivoted(const DrDisks *disks, const Item *item)
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
drop_copies(Copy *c, DrQmp *qmp, gboolean keep_files, GError **error)
{
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, NULL, error);
  gboolean dropped = disks != NULL;

  for (guint i = 0; disks && i < c->items->len;
       i++) /* before a cancel: it would wait for a server that is silent */
    if (!is_pivoted(disks, c->items->pdata[i]))
      dr_block_yank(qmp, ((const Item *)c->items->pdata[i])->file_node);
  for (guint i = 0; disks && i < c->items->len; i++)
    dr_block_job_cancel(qmp, ((const Item *)c->items->pdata[i])->job);
  for (guint i = 0; disks && i < c->items->len; i++) {
    const Item *item = c->items->pdata[i];

    if (is_pivoted(disks, item))
      continue; /* the guest is on it */

    if (!dr_block_job_kill(qmp, item->job, dr_deadline_in(KILL_MS), dropped ? error : NULL)) {
      dropped = FALSE;
      continue;
    }
    dr_image_close(qmp, item->node, item->file_node);
    if (!keep_files)
      remove_file(item);
  }
  return dropped;
}

static gboolean
end_mirror(DrQmp *qmp, const Item *item, const char *command, GError **error)
{
  g_autofree char *what = g_strdup_printf("the end of the copy of disk '%s'", item->disk);

  return dr_qmp_do(qmp, command, dr_json("{'device': <%s>}", item->job), error) &&
         dr_block_job_end(qmp, item->job, what, dr_deadline_in(END_MS), error);
}

static JsonObject *
result(const Copy *c)
{
  JsonObject *object = json_object_new();
  JsonArray *copies = json_array_new();
  gint64 bytes = 0;

  for (guint i = 0; i < c->items->len; i++) {
    const Item *item = c->items->pdata[i];
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
pivot(Copy *c, GError **error)
{
  DrQmp *qmp;
  gboolean done = TRUE;

  if (!dr_job_enter(c->d.job, STAGE_PIVOT, NULL, error) || !dr_job_no_return(c->d.job, error))
    return FALSE;
  qmp = dr_disk_job_take(&c->d, error);
  for (guint i = 0; qmp && done && i < c->items->len; i++) {
    Item *item = c->items->pdata[i];

    done = end_mirror(qmp, item, "block-job-complete", error);
    if (done)
      dr_nodes_close(qmp, item->old);
  }
  if (qmp)
    dr_disk_job_give(&c->d, qmp);
  return qmp && done;
}

/* Each copy is left as its disk is at the moment in which it ends. */
static gboolean
finish(Copy *c, GError **error)
{
  DrQmp *qmp;
  gboolean done = TRUE;

  if (!dr_job_enter(c->d.job, STAGE_FINISH, NULL, error) || !dr_job_no_return(c->d.job, error))
    return FALSE;
  qmp = dr_disk_job_take(&c->d, error);
  for (guint i = 0; qmp && done && i < c->items->len; i++) {
    const Item *item = c->items->pdata[i];

    done = end_mirror(qmp, item, "block-job-cancel", error);
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
  Copy *c = d->data;
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
wait_word(Copy *c, GError **error)
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
follow(Copy *c, GError **error)
{
  gint64 timeout = dr_json_int(c->request, "timeout", 0);
  DrDiskEvent event = DR_DISK_READY;

  if (!dr_disk_job_follow(&c->d, timeout ? dr_deadline_in(timeout * 1000) : DR_DEADLINE_NEVER, FALSE, &event,
                          error))
    return FALSE;
  if (event == DR_DISK_ASKED) /* only to abort */
    return dr_error_set(error, DR_ERROR_CANCELLED, "aborted before the copy was complete");
  c->was_ready = TRUE;
  return dr_job_enter(c->d.job, STAGE_READY, NULL, error) && wait_word(c, error);
}

/* --- All of it --- */

static void
copy_init(Copy *c, DrJob *job)
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

static void
copy_clear(Copy *c)
{
  dr_disk_job_clear(&c->d);
  g_ptr_array_unref(c->items);
  dr_findings_free(c->findings);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Copy, copy_clear)

static void
read_items(Copy *c)
{
  JsonArray *copies = dr_json_arr(c->request, "copies");

  for (guint i = 0; i < json_array_get_length(copies); i++) {
    JsonObject *pair = json_array_get_object_element(copies, i);
    Item *item = g_new0(Item, 1);

    item->disk = g_strdup(dr_json_str(pair, "disk", ""));
    item->target = g_strdup(dr_json_str(pair, "target", ""));
    item->node = dr_block_id("copy");
    item->file_node = g_strconcat(item->node, "-file", NULL);
    item->job = g_strconcat(item->node, "-job", NULL);
    item->blocking = dr_json_bool(c->request, "synchronous_writes", FALSE);
    g_ptr_array_add(c->items, item);
  }
}

static void
watch_items(Copy *c)
{
  for (guint i = 0; i < c->items->len; i++) {
    const Item *item = c->items->pdata[i];
    g_autofree char *what = g_strdup_printf("the copy of disk '%s'", item->disk);

    dr_disk_job_watch(&c->d, item->job, what);
  }
}

/* Its QEMU has ended, and with it the copying: what is left of it are files. */
static void
without_qemu(Copy *c, GError **error)
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
static gboolean
undo(Copy *c, GError *cause, GError **error)
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

static gboolean
to_the_end(Copy *c, GError **error)
{
  GError *cause = NULL;

  if (!follow(c, &cause))
    return undo(c, cause, error);
  if (c->keep == KEEP_COPY ? !pivot(c, &cause) : !finish(c, &cause))
    return undo(c, cause, error);
  dr_job_set_result(c->d.job, result(c));
  return TRUE;
}

gboolean
dr_disk_copy_run(DrJob *job, GError **error)
{
  g_auto(Copy) c = { 0 };
  GError *cause = NULL;
  gboolean begun;
  DrQmp *qmp;

  copy_init(&c, job);
  read_items(&c);
  if (!dr_job_enter(job, STAGE_PREFLIGHT, NULL, error))
    return FALSE;
  look_at_targets(&c);
  qmp = dr_disk_job_take(&c.d, error);
  if (!qmp)
    return FALSE;
  if (!preflight(&c, qmp, error) || !dr_job_enter(job, STAGE_CREATE, note(&c), error)) {
    dr_disk_job_give(&c.d, qmp);
    return FALSE;
  }
  begun = begin(&c, qmp, &cause);
  dr_disk_job_give(&c.d, qmp);
  if (!begun)
    return undo(&c, cause, error);
  watch_items(&c);
  return to_the_end(&c, error);
}

/* --- Recovery --- */

static gboolean
load(Copy *c, const char **ret_stage, GError **error)
{
  g_autoptr(JsonArray) journal =
      dr_store_load_journal(dr_job_host(c->d.job)->store, dr_job_id(c->d.job), error);

  for (guint i = 0; journal && i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i), *said = dr_json_obj(entry, "note");
    JsonArray *items = said ? dr_json_arr(said, "items") : NULL;

    *ret_stage = g_intern_string(dr_json_str(entry, "stage", ""));
    for (guint n = 0; items && n < json_array_get_length(items); n++) {
      Item *item = g_new0(Item, 1);

      item_load(item, json_array_get_object_element(items, n));
      item->blocking = dr_json_bool(c->request, "synchronous_writes", FALSE);
      g_ptr_array_add(c->items, item);
    }
  }
  return journal != NULL;
}

/* A pivot that was begun is brought to its end; what of it had happened shows in QEMU. */
static gboolean
pivot_the_rest(Copy *c, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&c->d, error);
  g_autoptr(DrDisks) disks = qmp ? dr_disks_read(qmp, dr_vm_record(c->d.vm)->cwd, error) : NULL;
  gboolean done = disks != NULL;

  c->keep = KEEP_COPY;
  for (guint i = 0; done && i < c->items->len; i++) {
    const Item *item = c->items->pdata[i];

    if (!is_pivoted(disks, item))
      done = end_mirror(qmp, item, "block-job-complete", error);
    else
      done = dr_block_job_kill(qmp, item->job, dr_deadline_in(KILL_MS),
                               error); /* it has ended: only to dismiss it */
    if (done)
      dr_nodes_close(qmp, item->old);
  }
  if (qmp)
    dr_disk_job_give(&c->d, qmp);
  return done;
}

static gboolean
recover_pivot(Copy *c, GError **error)
{
  GError *cause = NULL;

  c->was_ready = TRUE;
  if (!pivot_the_rest(c, &cause))
    return undo(c, cause, error);
  dr_job_set_result(c->d.job, result(c));
  return TRUE;
}

/* One that has ended by the first try is only to be dismissed. */
static gboolean
finish_again(DrQmp *qmp, const Item *item, GError **error)
{
  g_auto(DrBlockJobLook) look = { 0 };

  return dr_block_job_look(qmp, item->job, &look, error) &&
         (look.state == DR_BLOCK_JOB_READY
              ? end_mirror(qmp, item, "block-job-cancel", error)
              : dr_block_job_kill(qmp, item->job, dr_deadline_in(KILL_MS), error));
}

static gboolean
recover_finish(Copy *c, GError **error)
{
  GError *cause = NULL;
  DrQmp *qmp = dr_disk_job_take(&c->d, &cause);
  gboolean done = qmp != NULL;

  c->was_ready = TRUE;
  c->keep = KEEP_DISK;
  for (guint i = 0; done && i < c->items->len; i++) {
    const Item *item = c->items->pdata[i];

    done = finish_again(qmp, item, &cause);
    dr_image_close(qmp, item->node, item->file_node);
  }
  if (qmp)
    dr_disk_job_give(&c->d, qmp);
  if (!done)
    return undo(c, cause, error);
  dr_job_set_result(c->d.job, result(c));
  return TRUE;
}

/* droverd ended just before. */
static gboolean
were_not_begun(Copy *c)
{
  DrQmp *qmp = dr_disk_job_take(&c->d, NULL);
  gboolean begun = !qmp; /* without its QEMU that is not what is to be said */

  for (guint i = 0; qmp && i < c->items->len; i++) {
    g_auto(DrBlockJobLook) look = { 0 };

    begun |= !dr_block_job_look(qmp, ((Item *)c->items->pdata[i])->job, &look, NULL) ||
             look.state != DR_BLOCK_JOB_GONE;
  }
  if (qmp)
    dr_disk_job_give(&c->d, qmp);
  return !begun && !c->was_ready;
}

static gboolean
interrupted(Copy *c, const char *stage, GError **error)
{
  GError *cause = NULL;

  dr_error_set(&cause, DR_ERROR_CLOSED, "droverd ended while the copy was at stage '%s'", stage);
  dr_error_remedy(&cause, "start it again");
  return c->items->len ? undo(c, cause, error) : (g_propagate_error(error, cause), FALSE);
}

gboolean
dr_disk_copy_recover(DrJob *job, GError **error)
{
  g_auto(Copy) c = { 0 };
  const char *stage = "queued";

  copy_init(&c, job);
  if (!load(&c, &stage, error))
    return FALSE;
  dr_job_step(job, stage);
  if (g_str_equal(stage, STAGE_PIVOT))
    return recover_pivot(&c, error);
  if (g_str_equal(stage, STAGE_FINISH))
    return recover_finish(&c, error);
  c.was_ready = g_str_equal(stage, STAGE_READY);
  if ((!g_str_equal(stage, STAGE_COPY) && !c.was_ready) || were_not_begun(&c))
    return interrupted(&c, stage, error);
  /* QEMU has gone on with it by itself. */
  dr_job_may_return(job);
  watch_items(&c);
  return to_the_end(&c, error);
}
