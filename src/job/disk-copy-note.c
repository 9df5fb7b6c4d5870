/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A live block copy in the journal. */
#include "job/disk-copy-internal.h"

static JsonObject *
item_note(const DrCopyItem *item)
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

JsonObject *
dr_copy_note(const DrCopy *c)
{
  JsonObject *object = json_object_new();
  JsonArray *items = json_array_new();

  for (guint i = 0; i < c->items->len; i++)
    json_array_add_object_element(items, item_note(c->items->pdata[i]));
  json_object_set_array_member(object, "items", items);
  return object;
}

void
dr_copy_item_load(DrCopyItem *item, JsonObject *object)
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
