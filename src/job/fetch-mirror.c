/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From an overlay to the image beside it. */
#include "job/fetch-mirror.h"
#include "base/error.h"
#include "job/disk-image.h"

#include <errno.h>
#include <unistd.h>

#define OPEN_MS 10000
#define KILL_MS 30000

static gboolean
open_image(const DrFetchMirror *mirror, const DrDisk *disk, DrQmp *qmp, GError **error)
{
  g_autoptr(JsonObject) protocol = dr_json("{'driver': <'file'>, 'filename': <%s>}", mirror->path);
  g_autofree char *node = g_strconcat(mirror->job, "-image", NULL),
                  *file_node = g_strconcat(mirror->job, "-file", NULL),
                  *detect_zeroes = dr_node_detect_zeroes(disk->top);
  DrImage image = { .protocol = protocol,
                    .format = mirror->format,
                    .node = node,
                    .file_node = file_node,
                    .detect_zeroes = detect_zeroes,
                    .direct = dr_node_flag(disk->top, "cache.direct"),
                    .no_flush = dr_node_flag(disk->top, "cache.no-flush") };

  dr_image_close(qmp, node, file_node); /* of an earlier try */
  return dr_image_open(qmp, &image, dr_deadline_in(OPEN_MS), error);
}

gboolean
dr_fetch_mirror_begin(const DrFetchMirror *mirror, const DrDisk *disk, DrQmp *qmp, GError **error)
{
  g_autofree char *node = g_strconcat(mirror->job, "-image", NULL);
  JsonObject *arguments;

  if (!open_image(mirror, disk, qmp, error))
    return FALSE;
  arguments = dr_json("{'job-id': <%s>, 'device': <%s>, 'target': <%s>, 'sync': <'full'>, 'speed': <%x>, "
                      "'copy-mode': <'write-blocking'>, 'on-source-error': <'stop'>, "
                      "'on-target-error': <'stop'>, 'auto-finalize': <true>, 'auto-dismiss': <false>}",
                      mirror->job, dr_node_name(disk->root), node, mirror->mib << 20);
  if (disk->root != disk->top) /* its filters stay */
    json_object_set_string_member(arguments, "replaces", dr_node_name(disk->top));
  return dr_qmp_do(qmp, "blockdev-mirror", arguments, error);
}

gboolean
dr_fetch_mirror_flush(const DrFetchMirror *mirror, DrQmp *qmp, GError **error)
{
  g_autofree char *node = g_strconcat(mirror->job, "-image", NULL);

  return dr_block_flush(qmp, node, mirror->path, error);
}

gboolean
dr_fetch_mirror_is_done(const DrFetchMirror *mirror, const DrDisk *disk)
{
  return dr_same_file(dr_node_file(disk->top), mirror->path, NULL);
}

/* Those of its nodes that have names of their own; the image first. (transfer full) */
static GPtrArray *
nodes_of(JsonArray *nodes, const char *file)
{
  GPtrArray *names = g_ptr_array_new_with_free_func(g_free);

  for (guint i = 0; i < json_array_get_length(nodes); i++) {
    JsonObject *node = json_array_get_object_element(nodes, i);
    const char *name = dr_json_str(node, "node-name", "#");

    if (*name != '#' && dr_same_file(dr_json_str(node, "file", ""), file, NULL))
      g_ptr_array_insert(names, g_str_equal(dr_json_str(node, "drv", ""), "qcow2") ? 0 : -1, g_strdup(name));
  }
  return names;
}

gboolean
dr_fetch_mirror_close(const DrFetchMirror *mirror, const char *overlay, DrQmp *qmp, GError **error)
{
  g_autoptr(JsonArray) nodes = NULL;
  g_autoptr(GPtrArray) names = NULL;

  /* What the guest has synced since the mirror was in step went to the overlay's disk only, until QEMU had changed them. */
  if (!dr_block_job_kill(qmp, mirror->job, dr_deadline_in(KILL_MS), error) ||
      !dr_fetch_mirror_flush(mirror, qmp, error))
    return FALSE;
  nodes = dr_qmp_call_array(qmp, "query-named-block-nodes", NULL, error);
  if (!nodes)
    return FALSE;
  names = nodes_of(nodes, overlay);
  dr_nodes_close(qmp, names);
  if (unlink(overlay) < 0 && errno != ENOENT)
    g_warning("cannot remove '%s', which nobody needs any more: %s", overlay, g_strerror(errno));
  return TRUE;
}
