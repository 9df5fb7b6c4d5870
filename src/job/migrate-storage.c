/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The disks of a move, before the guest. */
#include "job/migrate-storage.h"
#include "argv/argv.h"
#include "base/error.h"
#include "job/block-job.h"
#include "job/disk-fetch.h"
#include "job/disk-image.h"
#include "job/mirror-pace.h"
#include "job/upgrade-internal.h"

#include <poll.h>
#include <string.h>

#define STAGE_STORAGE "storage"
#define ASK_MS 15000
#define EXPORT_MS 30000
#define KILL_MS 10000
#define SOON_MS 2000
#define END_MS 30000
#define TICK_MS 200
#define TELL_MS 1000
#define RECONNECT_S 40 /* QEMU's NBD client waits so long for the link; the other host gives up after 60 s */
#define CONNECT_MS 2000
#define HANGS_US (15 * G_USEC_PER_SEC)

typedef struct {
  char *disk, *path, *format, *backing, *backing_format, *secret;
  char *root;       /* the node that is mirrored */
  char *node, *job; /* of ours in the source's QEMU */
  char *export_name;
  char *top, *there;  /* the nodes that its bitmaps are in: here, and over there */
  char **bitmaps;     /* their names; those that are inconsistent stay behind */
  char *inconsistent; /* nullable: the name of one */
  gint64 bytes, allocated, done, total;
  gboolean copied; /* the other host does not share it */
  gboolean read_only, named;
  GPtrArray *below; /* the files that it stands on */
  DrMirrorPace pace;
  gboolean blocking;
} Image;

struct DrMoveStorage {
  GPtrArray *images;
  gboolean inc;
  gboolean later; /* after the guest: migrate-lend.c */
  char **tokens;  /* nullable: for streams without TLS */
  DrStreams *streams;
  DrDiskProgress *told;
};

static void
image_free(gpointer data)
{
  Image *image = data;
  char *texts[] = { image->disk,   image->path,  image->format,      image->backing, image->backing_format,
                    image->secret, image->root,  image->node,        image->job,     image->export_name,
                    image->top,    image->there, image->inconsistent };

  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_free(texts[i]);
  g_ptr_array_unref(image->below);
  g_strfreev(image->bitmaps);
  g_free(image);
}

void
dr_move_storage_free(DrMoveStorage *storage)
{
  if (!storage)
    return;
  g_clear_pointer(&storage->streams, dr_streams_free);
  g_strfreev(storage->tokens);
  g_free(storage->told);
  g_ptr_array_unref(storage->images);
  g_free(storage);
}

/* --- What there is --- */

/* As the list of the disks' files has it. */
static char *
path_of(const DrNode *node)
{
  const char *file = dr_node_file(node);

  return *file == '/' ? g_canonicalize_filename(file, "/") : g_strdup(file);
}

static void
take_bitmaps(Image *image, const DrDisks *disks, const DrDisk *disk)
{
  g_autoptr(GStrvBuilder) names = g_strv_builder_new();
  g_autoptr(JsonObject) shown = dr_disk_json(disks, disk);
  JsonArray *bitmaps = dr_json_arr(shown, "bitmaps");

  for (guint i = 0; bitmaps && i < json_array_get_length(bitmaps); i++) {
    JsonObject *bitmap = json_array_get_object_element(bitmaps, i);

    if (!dr_json_bool(bitmap, "inconsistent", FALSE))
      g_strv_builder_add(names, dr_json_str(bitmap, "name", ""));
    else if (!image->inconsistent)
      image->inconsistent = g_strdup(dr_json_str(bitmap, "name", ""));
  }
  image->bitmaps = g_strv_builder_end(names);
}

static Image *
image_new(const DrDisks *disks, const DrDisk *disk, guint i, gboolean inc)
{
  const DrNode *backing = dr_node_backing(disk->top);
  Image *image = g_new0(Image, 1);

  image->disk = g_strdup(disk->name);
  image->path = path_of(disk->top);
  image->read_only = disk->read_only;
  image->below = g_ptr_array_new_with_free_func(g_free);
  for (const DrNode *node = backing; node; node = dr_node_backing(node))
    g_ptr_array_add(image->below, path_of(node));
  image->format = g_strdup(dr_node_driver(disk->top));
  image->bytes = dr_node_bytes(disk->top);
  for (const DrNode *node = disk->top; node; node = inc ? NULL : dr_node_backing(node))
    image->allocated += MAX(dr_node_allocated(node), 0);
  image->secret = dr_node_secret(disk->top);
  image->root = g_strdup(dr_node_name(disk->root));
  image->top = g_strdup(dr_node_name(disk->top));
  take_bitmaps(image, disks, disk);
  image->node = dr_block_id("move");
  image->job = g_strconcat(image->node, "-job", NULL);
  image->export_name = g_strdup_printf("disk%u", i);
  image->copied = TRUE;
  if (inc && backing) {
    image->backing = path_of(backing);
    image->backing_format = g_strdup(dr_node_driver(backing));
  }
  return image;
}

/* A chain that the command line spells out cannot stand alone over there: it names images that would be missing. */
static gboolean
can_stand_alone(const DrDisk *disk)
{
  g_autoptr(GPtrArray) names =
      dr_node_backing(disk->top) ? dr_node_named_tree(dr_node_backing(disk->top), NULL) : NULL;

  return !names || names->len == 0;
}

static void
check(const DrDisk *disk, const Image *image, gboolean inc, gboolean later, DrFindings *findings)
{
  if (!g_path_is_absolute(image->path))
    dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-source",
                    "detach it, or copy it to a file first: drover disk copy",
                    "disk '%s' is on '%s', which is no file that the other host could make", image->disk,
                    image->path);
  else if (!g_str_equal(image->format, "qcow2") && !g_str_equal(image->format, "raw") &&
           !g_str_equal(image->format, "luks"))
    dr_findings_add(
        findings, DR_FINDING_BLOCKER, "storage-source", "convert it first: drover disk copy --format qcow2",
        "disk '%s' is of the format %s, which cannot be made on the other host", image->disk, image->format);
  else if (g_str_equal(image->format, "raw") && dr_node_is_partial(disk->top))
    dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-source",
                    "copy it to a file of its own first: drover disk copy",
                    "disk '%s' is a part of '%s' (offset=, size=)", image->disk, image->path);
  else if (!inc && !can_stand_alone(disk))
    dr_findings_add(
        findings, DR_FINDING_BLOCKER, "storage-chain",
        "copy its top image only (--copy-storage-inc), or make it stand alone first: drover disk pull",
        "disk '%s' stands on backing images that have block nodes of their own", image->disk);
  else if (later && g_str_equal(image->format, "luks"))
    dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-source",
                    "copy it before the guest (--copy-storage-all), or convert it first: drover disk copy "
                    "--format qcow2",
                    "disk '%s' is of the format luks, which cannot be copied after the guest", image->disk);
}

static gboolean
has_path(const DrMoveStorage *storage, const char *path)
{
  for (guint i = 0; i < storage->images->len; i++)
    if (g_str_equal(((Image *)storage->images->pdata[i])->path, path))
      return TRUE;
  return FALSE;
}

DrMoveStorage *
dr_move_storage_new(DrQmp *source, const char *cwd, const DrMigrateOptions *options, DrFindings *findings,
                    GError **error)
{
  gboolean inc = options->copy_storage_inc;
  g_autoptr(DrDisks) disks = dr_disks_read(source, cwd, error);
  DrMoveStorage *storage;

  if (!disks)
    return NULL;
  storage = g_new0(DrMoveStorage, 1);
  storage->inc = inc;
  storage->later = options->storage_postcopy;
  storage->images = g_ptr_array_new_with_free_func(image_free);
  for (guint i = 0; i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);
    Image *image = disk->top ? image_new(disks, disk, i, inc) : NULL;

    if (!image)
      continue;
    if (has_path(storage, image->path)) { /* a medium in two drives */
      image_free(image);
      continue;
    }
    g_ptr_array_add(storage->images, image);
    check(disk, image, inc, storage->later, findings);
  }
  return storage;
}

static Image *
image_of(const DrMoveStorage *storage, const Migrate *m, const char *path)
{
  for (guint i = 0; i < storage->images->len; i++) {
    Image *image = storage->images->pdata[i];
    g_autofree char *there = dr_migrate_there(m, image->path);

    if (g_str_equal(there, path))
      return image;
  }
  return NULL;
}

static void
mark_copy(const Image *image, gboolean later, const Migrate *m, JsonObject *entry)
{
  json_object_set_string_member(entry, "role", image->copied ? "copy" : image->read_only ? "base" : "shared");
  json_object_set_string_member(entry, "format", image->format);
  json_object_set_int_member(entry, "bytes", image->bytes);
  json_object_set_int_member(entry, "allocated", MIN(image->allocated, image->bytes));
  if (image->secret)
    json_object_set_string_member(entry, "secret", image->secret);
  if (image->backing) {
    g_autofree char *there = dr_migrate_there(m, image->backing);

    json_object_set_string_member(entry, "backing", there);
    json_object_set_string_member(entry, "backing_format", image->backing_format);
  }
  if (!later || !image->copied)
    return;
  json_object_set_string_member(entry, "later", image->export_name);
  json_object_set_int_member(entry, "mib", m->options.bandwidth);
}

static gboolean
is_below_a_copied_one(const DrMoveStorage *storage, const Migrate *m, const char *path)
{
  for (guint i = 0; i < storage->images->len; i++) {
    const Image *image = storage->images->pdata[i];

    for (guint n = 0; image->copied && n < image->below->len; n++) {
      g_autofree char *there = dr_migrate_there(m, image->below->pdata[n]);

      if (g_str_equal(there, path))
        return TRUE;
    }
  }
  return FALSE;
}

/* Images below those that are copied are not needed at all, or are to be there with the same contents, which is the user's word. */
void
dr_move_storage_mark(const DrMoveStorage *storage, const Migrate *m, gboolean overwrite, JsonArray *disks)
{
  for (guint i = json_array_get_length(disks); i-- > 0;) {
    JsonObject *entry = json_array_get_object_element(disks, i);
    const char *path = dr_json_str(entry, "path", "");
    const Image *image = image_of(storage, m, path);

    if (image) {
      mark_copy(image, storage->later, m, entry);
      json_object_set_boolean_member(entry, "overwrite", overwrite && !image->read_only);
    } else if (is_below_a_copied_one(storage, m, path)) {
      if (storage->inc)
        json_object_set_string_member(entry, "role", "base");
      else
        json_array_remove_element(disks, i);
    }
  }
}

/* An image that is only read, and is there already, is taken as it is: an ISO, firmware. */
static void
heed_one(Image *image, JsonObject *entry, gboolean later, gboolean overwrite, DrFindings *findings)
{
  const char *path = dr_json_str(entry, "path", "");
  gboolean shared = dr_json_bool(entry, "shared", FALSE), exists = dr_json_bool(entry, "exists", FALSE);

  image->named = TRUE;
  image->copied = !shared && !(exists && image->read_only);
  if (shared)
    dr_findings_add(findings, DR_FINDING_NOTE, "storage-shared", NULL,
                    "disk '%s' ('%s') is the same file on both hosts and is not copied", image->disk, path);
  else if (!image->copied)
    dr_findings_add(findings, DR_FINDING_NOTE, "storage-taken", NULL,
                    "disk '%s' is only read, and '%s' is taken as it is on the other host", image->disk,
                    path);
  else if (exists && !overwrite)
    dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-exists",
                    "remove it there, or have it written over (--overwrite-storage), or give the image "
                    "another name there "
                    "(--map disk=PATH:PATH)",
                    "the other host has another file '%s'", path);
  else if (later && image->read_only)
    dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-source",
                    "copy it there first, or copy all disks before the guest (--copy-storage-all)",
                    "disk '%s' ('%s') is only read: after the guest nothing could be written to it",
                    image->disk, path);
  else
    dr_findings_add(findings, DR_FINDING_NOTE, "storage-copied", NULL,
                    "disk '%s' ('%s', %" G_GINT64_FORMAT " MiB) is copied to the other host%s", image->disk,
                    path, image->bytes >> 20, later ? ", after the guest" : "");
}

/* QEMU carries the others of that node only where each of them is good (migration/block-dirty-bitmap.c, add_bitmaps_to_list()). */
static void
check_bitmaps(const Image *image, DrFindings *findings)
{
  g_autofree char *quoted = image->inconsistent ? g_shell_quote(image->inconsistent) : NULL;
  g_autofree char *remedy = g_strdup_printf("it is of no use any more: drover bitmap remove NAME %s %s",
                                            image->disk, quoted ? quoted : "");

  if (image->copied && image->inconsistent && *image->bitmaps)
    dr_findings_add(findings, DR_FINDING_BLOCKER, "bitmap-inconsistent", remedy,
                    "bitmap '%s' of disk '%s' is inconsistent, and QEMU moves none beside such a one",
                    image->inconsistent, image->disk);
}

void
dr_move_storage_heed(DrMoveStorage *storage, const Migrate *m, JsonArray *report, gboolean overwrite,
                     DrFindings *findings)
{
  for (guint i = 0; report && i < json_array_get_length(report); i++) {
    JsonObject *entry = json_array_get_object_element(report, i);
    Image *image = image_of(storage, m, dr_json_str(entry, "path", ""));

    if (!image)
      continue;
    heed_one(image, entry, storage->later, overwrite, findings);
    check_bitmaps(image, findings);
  }
  for (guint i = 0; i < storage->images->len; i++) {
    const Image *image = storage->images->pdata[i];

    if (!image->named)
      dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-source", "install the same drover on both hosts",
                      "the other host says nothing of the image '%s' of disk '%s'", image->path, image->disk);
  }
}

gboolean
dr_move_storage_is_empty(const DrMoveStorage *storage)
{
  for (guint i = 0; i < storage->images->len; i++)
    if (((Image *)storage->images->pdata[i])->copied)
      return FALSE;
  return TRUE;
}

void
dr_move_storage_stand_alone(const DrMoveStorage *storage, DrInventory *inventory, gboolean alone)
{
  for (guint i = 0; i < storage->images->len && !storage->inc; i++) {
    const Image *image = storage->images->pdata[i];

    if (image->copied)
      dr_inventory_stand_alone(inventory, image->path, alone);
  }
}

void
dr_move_storage_see_through(const DrMoveStorage *storage, const Migrate *m, DrInventory *theirs)
{
  for (guint i = 0; storage->later && i < storage->images->len; i++) {
    const Image *image = storage->images->pdata[i];
    g_autofree char *there = dr_migrate_there(m, image->path);
    g_autofree char *overlay = dr_disk_fetch_overlay(there, image->format);

    if (!image->copied)
      continue;
    dr_inventory_rename_file(theirs, overlay, image->path);
    dr_inventory_stand_alone(theirs, image->path, TRUE);
  }
}

JsonArray *
dr_move_storage_lent(const DrMoveStorage *storage)
{
  JsonArray *images = json_array_new();

  for (guint i = 0; storage->later && i < storage->images->len; i++) {
    const Image *image = storage->images->pdata[i];
    JsonObject *one;

    if (!image->copied)
      continue;
    one = dr_json("{'name': <%s>, 'path': <%s>, 'format': <%s>}", image->export_name, image->path,
                  image->format);
    if (image->secret)
      json_object_set_string_member(one, "secret", image->secret);
    json_array_add_object_element(images, one);
  }
  return images;
}

gboolean
dr_move_storage_goes_before(const DrMoveStorage *storage)
{
  return storage && !storage->later && !dr_move_storage_is_empty(storage);
}

gint64
dr_move_storage_bytes(const DrMoveStorage *storage)
{
  gint64 bytes = 0;

  for (guint i = 0; i < storage->images->len; i++)
    bytes += ((Image *)storage->images->pdata[i])->done;
  return bytes;
}

void
dr_move_storage_progress(DrMoveStorage *storage, DrProgress *progress)
{
  guint n = 0;

  if (!storage->told)
    storage->told = g_new0(DrDiskProgress, storage->images->len + 1);
  for (guint i = 0; i < storage->images->len; i++) {
    const Image *image = storage->images->pdata[i];

    if (image->copied && !storage->later)
      storage->told[n++] = (DrDiskProgress){ image->disk, image->done, MAX(image->total, image->done) };
  }
  progress->disks = storage->told;
  progress->n_disks = n;
}

/* --- Bitmaps --- */

static gboolean
has_bitmaps(const Image *image)
{
  return image->copied && *image->bitmaps;
}

gboolean
dr_move_storage_has_bitmaps(const DrMoveStorage *storage)
{
  for (guint i = 0; i < storage->images->len; i++)
    if (has_bitmaps(storage->images->pdata[i]))
      return TRUE;
  return FALSE;
}

static char *
node_on(const DrDisks *disks, const char *path)
{
  for (guint i = 0; i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);
    g_autofree char *file = disk->top ? path_of(disk->top) : NULL;

    if (g_strcmp0(file, path) == 0)
      return g_strdup(dr_node_name(disk->top));
  }
  return NULL;
}

gboolean
dr_move_storage_map_bitmaps(DrMoveStorage *storage, const Migrate *m, DrQmp *there, GError **error)
{
  g_autoptr(DrDisks) disks = NULL;

  if (!dr_move_storage_has_bitmaps(storage))
    return TRUE;
  disks = dr_disks_read(there, NULL, error);
  for (guint i = 0; disks && i < storage->images->len; i++) {
    Image *image = storage->images->pdata[i];
    g_autofree char *copy = dr_migrate_there(m, image->path);
    g_autofree char *path = storage->later ? dr_disk_fetch_overlay(copy, image->format) : g_strdup(copy);

    if (!has_bitmaps(image))
      continue;
    image->there = node_on(disks, path);
    if (!image->there)
      return dr_error_set(
          error, DR_ERROR_UNSUPPORTED,
          "the bitmaps of disk '%s' cannot be moved: the other host's QEMU does not show '%s'", image->disk,
          path);
  }
  return disks != NULL;
}

static JsonObject *
mapping_of(const Image *image, gboolean there)
{
  JsonObject *object =
      dr_json("{'node-name': <%s>, 'alias': <%s>}", there ? image->there : image->top, image->export_name);
  JsonArray *bitmaps = json_array_new();

  for (char **name = image->bitmaps; *name; name++)
    json_array_add_object_element(bitmaps, dr_json("{'name': <%s>, 'alias': <%s>}", *name, *name));
  json_object_set_array_member(object, "bitmaps", bitmaps);
  return object;
}

JsonArray *
dr_move_storage_bitmaps(const DrMoveStorage *storage, gboolean there)
{
  JsonArray *array = json_array_new();

  for (guint i = 0; i < storage->images->len; i++)
    if (has_bitmaps(storage->images->pdata[i]))
      json_array_add_object_element(array, mapping_of(storage->images->pdata[i], there));
  return array;
}

/* --- The mirrors --- */

static JsonObject *
note(const DrMoveStorage *storage)
{
  JsonObject *object = json_object_new();
  JsonArray *images = json_array_new();

  for (guint i = 0; i < storage->images->len; i++) {
    const Image *image = storage->images->pdata[i];

    if (image->copied)
      json_array_add_object_element(images, dr_json("{'node': <%s>, 'job': <%s>}", image->node, image->job));
  }
  json_object_set_array_member(object, "storage", images);
  return object;
}

static gboolean
ask_exports(Migrate *m, GError **error)
{
  JsonObject *params = json_object_new();
  JsonArray *exports = json_array_new();
  g_autoptr(JsonObject) reply = NULL;

  for (guint i = 0; i < m->storage->images->len; i++) {
    const Image *image = m->storage->images->pdata[i];
    g_autofree char *there = dr_migrate_there(m, image->path);
    JsonObject *one;

    if (!image->copied)
      continue;
    one = dr_json("{'path': <%s>, 'export': <%s>, 'format': <%s>}", there, image->export_name, image->format);
    if (image->secret)
      json_object_set_string_member(one, "secret", image->secret);
    json_array_add_object_element(exports, one);
  }
  json_object_set_array_member(params, "exports", exports);
  json_object_set_string_member(params, "transport", dr_move_transport_name(m->options.transport));
  reply = dr_migrate_ask(m, "move.storage", params, EXPORT_MS, error);
  if (reply)
    m->storage->tokens = dr_json_strv(dr_json_arr(reply, "tokens"));
  return reply != NULL;
}

/* QEMU's NBD client reconnects by itself; a request waits for that. */
static gboolean
add_target(Migrate *m, const Image *image, const char *socket, GError **error)
{
  return dr_qmp_do(m->source, "blockdev-add",
                   dr_json("{'driver': <'nbd'>, 'node-name': <%s>, 'export': <%s>, 'discard': <'unmap'>, "
                           "'reconnect-delay': <%x>, "
                           "'server': <{'type': <'unix'>, 'path': <%s>}>}",
                           image->node, image->export_name, (gint64)RECONNECT_S, socket),
                   error);
}

static gboolean
start_mirror(Migrate *m, const Image *image, GError **error)
{
  return dr_qmp_do(
      m->source, "blockdev-mirror",
      dr_json(
          "{'job-id': <%s>, 'device': <%s>, 'target': <%s>, 'sync': <%s>, 'speed': <%x>, 'copy-mode': <%s>, "
          "'on-target-error': <'stop'>, 'auto-finalize': <true>, 'auto-dismiss': <false>}",
          image->job, image->root, image->node, image->backing ? "top" : "full", m->options.bandwidth << 20,
          image->blocking ? "write-blocking" : "background"),
      error);
}

static gboolean
start_one(Migrate *m, const Image *image, const char *socket, GError **error)
{
  if (add_target(m, image, socket, error) && start_mirror(m, image, error))
    return TRUE;
  g_prefix_error(error, "cannot copy disk '%s' to the other host: ", image->disk);
  return FALSE;
}

static gboolean
start_all(Migrate *m, GError **error)
{
  g_autofree char *socket = g_strconcat(m->socket_path, ".nbd", NULL);

  m->storage->streams =
      dr_streams_new_nbd(m->peer, m->move, socket, (const char *const *)m->storage->tokens, error);
  if (!m->storage->streams)
    return FALSE;
  for (guint i = 0; i < m->storage->images->len; i++) {
    const Image *image = m->storage->images->pdata[i];

    if (image->copied && !start_one(m, image, socket, error))
      return FALSE;
  }
  return TRUE;
}

/* --- Until they are in step --- */

/* The other host must hear of us once in a minute; a link that broke is opened again, and QEMU's client finds its way by itself. */
static gboolean
tell(Migrate *m, gint64 *told_us, GError **error)
{
  gint64 now = g_get_monotonic_time();
  g_autoptr(GError) local = NULL;
  g_autoptr(JsonObject) reply = NULL;

  if (now - *told_us < TELL_MS * 1000)
    return TRUE;
  reply = dr_migrate_ask(m, "move.status", NULL, TELL_MS * 3, &local);
  if (reply && g_str_equal(dr_json_str(reply, "state", ""), "discarded"))
    return dr_error_set(error, DR_ERROR_CLOSED, "the other host has given the guest up");
  if (reply) {
    *told_us = g_get_monotonic_time();
    return TRUE;
  }
  if (now - *told_us < RECONNECT_S * G_USEC_PER_SEC) {
    dr_streams_break(m->storage->streams); /* TCP alone may take long to see it */
    dr_peer_connect(m->peer, dr_deadline_in(CONNECT_MS), NULL);
    return TRUE;
  }
  g_propagate_prefixed_error(error, g_steal_pointer(&local),
                             "the other host cannot be reached while its disks are copied: ");
  return FALSE;
}

/* The guest writes faster than the link carries: then each of its writes waits for both. */
static gboolean
make_blocking(Migrate *m, Image *image, GError **error)
{
  image->blocking = TRUE;
  dr_findings_add(m->pre->findings, DR_FINDING_NOTE, "disk-write-blocking", NULL,
                  "the guest writes to disk '%s' faster than it is copied: from now on each of its writes "
                  "goes to the copy, too, "
                  "before it is done",
                  image->disk);
  dr_job_set_findings(m->job, m->pre->findings);
  if (dr_qmp_version_number(m->source) >= DR_QEMU(8, 2))
    return dr_qmp_do(m->source, "block-job-change",
                     dr_json("{'id': <%s>, 'type': <'mirror'>, 'copy-mode': <'write-blocking'>}", image->job),
                     error);
  return dr_block_job_kill(m->source, image->job, dr_deadline_in(KILL_MS), error) &&
         start_mirror(m, image, error);
}

static gboolean
look_at(Migrate *m, Image *image, gboolean *ret_ready, GError **error)
{
  g_auto(DrBlockJobLook) look = { 0 };
  gint64 now = g_get_monotonic_time();
  gboolean behind;

  if (!dr_block_job_look(m->source, image->job, &look, error))
    return FALSE;
  if (look.state == DR_BLOCK_JOB_ENDED || look.state == DR_BLOCK_JOB_GONE)
    return dr_error_set(error, DR_ERROR_QMP, "copying disk '%s' failed: %s", image->disk,
                        look.error ? look.error : "it was ended by somebody else");
  if (look.state == DR_BLOCK_JOB_NO_SPACE) {
    dr_error_set(error, DR_ERROR_IO, "there is no room for disk '%s' on the other host any more",
                 image->disk);
    return dr_error_remedy(error, "make room there, then start the move again");
  }
  image->done = look.done;
  image->total = look.total;
  *ret_ready &= look.state == DR_BLOCK_JOB_READY;
  if (look.state == DR_BLOCK_JOB_STOPPED) /* the link was away for longer than QEMU waits for it */
    dr_qmp_do(m->source, "block-job-resume", dr_json("{'device': <%s>}", image->job), NULL);
  behind = dr_mirror_pace_falls_behind(&image->pace, &look, now);
  if (dr_mirror_pace_stands_still(&image->pace, &look, now) > HANGS_US) {
    image->pace.moved_us = now;
    g_message("VM '%s': copying disk '%s' stands still; its stream is opened anew", dr_vm_name(m->vm),
              image->disk);
    dr_streams_break(m->storage->streams);
  }
  if (!behind || image->blocking || m->link_is_away)
    return TRUE;
  return make_blocking(m, image, error);
}

/* Waits for an event of the source (a job that is ready), a cancel; at most TICK_MS. */
static gboolean
is_cancelled(Migrate *m)
{
  struct pollfd fds[] = { { .fd = dr_job_cancel_fd(m->job), .events = POLLIN },
                          { .fd = dr_qmp_fd(m->source), .events = POLLIN } };
  gboolean came = dr_migrate_take_events(m); /* with the answer to a command */

  poll(fds, G_N_ELEMENTS(fds), came ? 0 : TICK_MS);
  return fds[0].revents != 0;
}

static void
tell_progress(Migrate *m, gint64 taken_us)
{
  DrProgress progress = DR_PROGRESS_INIT;

  dr_move_storage_progress(m->storage, &progress);
  for (guint i = 0; i < progress.n_disks; i++) {
    progress.bytes_done += progress.disks[i].bytes_done;
    progress.bytes_total += progress.disks[i].bytes_total;
  }
  progress.rate_mib = (double)progress.bytes_done / 1048576 / ((double)(taken_us + 1) / 1e6);
  progress.phase = "copying disks";
  if (progress.rate_mib > 0)
    progress.expected_ms =
        (gint64)((double)(progress.bytes_total - progress.bytes_done) / 1048.576 / progress.rate_mib);
  dr_job_progress(m->job, &progress);
}

static gboolean
await(Migrate *m, GError **error)
{
  gint64 told_us = g_get_monotonic_time(), begun_us = told_us;

  for (;;) {
    gboolean ready = TRUE;

    for (guint i = 0; i < m->storage->images->len; i++) {
      Image *image = m->storage->images->pdata[i];

      if (image->copied && !look_at(m, image, &ready, error))
        return FALSE;
    }
    tell_progress(m, g_get_monotonic_time() - begun_us);
    m->link_is_away = g_get_monotonic_time() - told_us > 2 * TELL_MS * 1000;
    if (!tell(m, &told_us, error))
      return FALSE;
    if (ready && !m->link_is_away)
      return TRUE;
    if (is_cancelled(m))
      return dr_error_set(error, DR_ERROR_CANCELLED, "cancelled");
  }
}

gboolean
dr_move_storage_copy(Migrate *m, GError **error)
{
  gint64 begun_us = g_get_monotonic_time();

  if (!dr_job_enter(m->job, STAGE_STORAGE, note(m->storage), error) || !ask_exports(m, error) ||
      !start_all(m, error) || !await(m, error))
    return FALSE;
  m->storage_us = g_get_monotonic_time() - begun_us;
  return TRUE;
}

/* --- The end --- */

static gboolean
end_one(Migrate *m, const Image *image, GError **error)
{
  return dr_qmp_do(m->source, "block-job-cancel", dr_json("{'device': <%s>}", image->job), error);
}

static gboolean
await_end(Migrate *m, const Image *image, GError **error)
{
  g_autofree char *what = g_strdup_printf("the end of copying disk '%s'", image->disk);

  return dr_block_job_end(m->source, image->job, what, dr_deadline_in(END_MS), error) &&
         dr_qmp_do(m->source, "blockdev-del", dr_json("{'node-name': <%s>}", image->node), error);
}

gboolean
dr_move_storage_finish(Migrate *m, GError **error)
{
  static gboolean (*const steps[])(Migrate *, const Image *, GError **) = { end_one, await_end };
  g_autoptr(JsonObject) reply = NULL;

  for (guint step = 0; step < G_N_ELEMENTS(steps); step++)
    for (guint i = 0; i < m->storage->images->len; i++) {
      const Image *image = m->storage->images->pdata[i];

      if (image->copied && !steps[step](m, image, error))
        return FALSE;
    }
  g_clear_pointer(&m->storage->streams, dr_streams_free);
  reply = dr_migrate_ask(m, "move.storage-end", NULL, ASK_MS, error);
  return reply != NULL;
}

/* What is to go: ours, or what an earlier droverd noted. (element-type utf8): node, job, node, job … */
static GPtrArray *
names_to_drop(const DrMoveStorage *storage, JsonObject *said)
{
  GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
  JsonArray *images = said ? dr_json_arr(said, "storage") : NULL;

  for (guint i = 0; storage && !storage->later && i < storage->images->len; i++) {
    const Image *image = storage->images->pdata[i];

    if (!image->copied)
      continue;
    g_ptr_array_add(names, g_strdup(image->node));
    g_ptr_array_add(names, g_strdup(image->job));
  }
  for (guint i = 0; images && i < json_array_get_length(images); i++) {
    JsonObject *image = json_array_get_object_element(images, i);

    g_ptr_array_add(names, g_strdup(dr_json_str(image, "node", "")));
    g_ptr_array_add(names, g_strdup(dr_json_str(image, "job", "")));
  }
  return names;
}

/* All are cancelled before one is waited for: QEMU drains all of its disks when a job ends, and stands still, guest and monitor, for a
 * request of another job that waits for a server (7.2). FALSE: one is still there. */
static gboolean
end_jobs(DrQmp *qmp, GPtrArray *names, DrDeadline deadline)
{
  gboolean ended = TRUE;

  for (guint i = 0; i < names->len; i += 2)
    dr_block_yank(qmp, names->pdata[i]);
  for (guint i = 1; i < names->len; i += 2)
    dr_block_job_cancel(qmp, names->pdata[i]);
  for (guint i = 1; i < names->len; i += 2) {
    g_autoptr(GError) error = NULL;

    if (dr_block_job_kill(qmp, names->pdata[i], deadline, &error))
      continue;
    g_debug("block job '%s': %s", (char *)names->pdata[i], error->message);
    ended = FALSE;
  }
  return ended;
}

void
dr_move_storage_drop(Migrate *m)
{
  g_autoptr(GPtrArray) names = names_to_drop(m->storage, m->storage_note);
  gboolean ended;

  if (!m->source || names->len == 0)
    return;
  ended =
      end_jobs(m->source, names, dr_deadline_in(SOON_MS)); /* while what is under way may still be answered */
  if (m->storage)
    g_clear_pointer(&m->storage->streams, dr_streams_free);
  if (!ended && !end_jobs(m->source, names, dr_deadline_in(KILL_MS)))
    g_warning("VM '%s': what copied its disks does not end; block-job-cancel and blockdev-del end it by hand",
              dr_vm_name(m->vm));
  for (guint i = 0; i < names->len; i += 2)
    dr_image_close(m->source, names->pdata[i], names->pdata[i]);
}
