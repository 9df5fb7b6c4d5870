/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Snapshots stand on each other's images, in a chain or, since somebody went back to an earlier one, in a tree. What a merge does to
 * the others. */
#include "base/error.h"
#include "job/snapshot.h"

/* Whether the disk stands on `file`, above `base`. */
static gboolean
is_above(const DrDisk *disk, const char *file, const char *base)
{
  for (DrNode *node = disk->top; node && !g_str_equal(dr_node_file(node), base); node = dr_node_backing(node))
    if (g_str_equal(dr_node_file(node), file))
      return TRUE;
  return FALSE;
}

gboolean
dr_snapshot_others_allow(JsonArray *all, const char *name, const DrDisk *disk, const char *base,
                         GError **error)
{
  for (guint i = 0; i < json_array_get_length(all); i++) {
    JsonObject *record = json_array_get_object_element(all, i);
    JsonArray *splits = dr_json_arr(record, "disks");
    const char *other = dr_json_str(record, "name", "?");

    if (g_str_equal(other, name) || dr_json_bool(record, "spoiled", FALSE))
      continue;
    for (guint n = 0; splits && n < json_array_get_length(splits); n++) {
      JsonObject *split = json_array_get_object_element(splits, n);

      if (!dr_snapshot_stands_on(split, base) || is_above(disk, dr_json_str(split, "base", ""), base))
        continue;
      dr_error_set(error, DR_ERROR_REFUSED, "snapshot '%s' stands on '%s', too, which the merge would change",
                   other, base);
      return dr_error_remedy(
          error, "merge --up, which leaves that image as it is; or give '%s' up before, with --metadata",
          other);
    }
  }
  return TRUE;
}

static JsonArray *
without(JsonArray *chain, const char *file)
{
  JsonArray *left = json_array_new();

  for (guint i = 0; chain && i < json_array_get_length(chain); i++)
    if (!g_str_equal(json_array_get_string_element(chain, i), file))
      json_array_add_string_element(left, json_array_get_string_element(chain, i));
  return left;
}

static void
drop_from_chain(JsonObject *split, const char *file)
{
  json_object_set_array_member(split, "chain", without(dr_json_arr(split, "chain"), file));
}

/* The image above one that goes gets another name into its header. */
static gboolean
is_first_below(JsonObject *split, const char *file)
{
  JsonArray *chain = dr_json_arr(split, "chain");

  return chain && json_array_get_length(chain) && g_str_equal(json_array_get_string_element(chain, 0), file);
}

gboolean
dr_snapshot_rebase(JsonObject *split, const char *overlay, const char *base, const char *base_format,
                   gboolean up)
{
  gboolean stands = g_str_equal(dr_json_str(split, "base", ""), overlay);
  gboolean touched = stands || (!up && is_first_below(split, overlay));

  if (!dr_snapshot_stands_on(split, overlay))
    return FALSE;
  drop_from_chain(split, up || stands ? base : overlay);
  if (stands && !up) {
    json_object_set_string_member(split, "base", base);
    json_object_set_string_member(split, "base_format", base_format);
  }
  if (touched)
    dr_snapshot_mark_image(split);
  return TRUE;
}
