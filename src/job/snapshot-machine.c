/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a snapshot's record says for a revert: the machine as a command line, the images and how they looked, the memory's file. */
#include "base/error.h"
#include "base/fd.h"
#include "job/move-spec.h"
#include "job/snapshot-internal.h"
#include "job/upgrade-internal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static gboolean
has_descriptor(const DrFindings *findings)
{
  for (guint i = 0; i < dr_findings_count(findings); i++)
    if (g_str_equal(dr_findings_get(findings, i)->code, "descriptor"))
      return TRUE;
  return FALSE;
}

/* What a VM that has ended is started anew from: as it would travel to another host. NULL: what its starter handed it is not to be had
 * again. (transfer full) */
static JsonObject *
machine_of(Snapshot *s, DrPreflight *p, DrQmp *qmp)
{
  static const char *const of_the_vm[] = { "argv", "argv_given", "env", "cwd" };
  DrUpgrade u = { .pre = p, .source = qmp };
  g_autoptr(JsonArray) forwards = dr_upgrade_forwards(&u);
  JsonObject *spec = dr_move_spec_write(s->d.vm, p, forwards, qmp, NULL);

  if (spec && has_descriptor(p->findings))
    g_clear_pointer(&spec, json_object_unref);
  for (guint i = 0; spec && i < G_N_ELEMENTS(of_the_vm); i++)
    json_object_remove_member(spec, of_the_vm[i]);
  return spec;
}

/* A start anew opens what is not in the snapshot as it stood then: by now that may be a later snapshot's image. */
static gboolean
covers_all(const Snapshot *s, const DrDisks *disks)
{
  for (guint i = 0; i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);
    gboolean found = !disk->top || disk->read_only;

    for (guint n = 0; !found && n < s->splits->len; n++)
      found = g_str_equal(((const Split *)s->splits->pdata[n])->disk, disk->name);
    if (!found)
      return FALSE;
  }
  return TRUE;
}

gboolean
dr_snapshot_look(Snapshot *s, const DrDisks *disks, DrQmp *qmp, GError **error)
{
  gboolean memory = dr_json_bool(s->request, "memory", FALSE);
  g_autoptr(GError) local = NULL;
  g_autoptr(DrPreflight) p = dr_preflight_departure(s->d.vm, qmp, &local);

  if (p)
    s->argv = dr_argv_to_strv(p->truth);
  if (p && memory)
    dr_snapshot_memory_preflight(s, disks, p, qmp);
  if (p && covers_all(s, disks))
    s->machine = machine_of(s, p, qmp);
  if (p || !memory)
    return TRUE; /* the disks' images are right also where nothing can be rebuilt */
  g_propagate_error(error, g_steal_pointer(&local));
  return FALSE;
}

void
dr_snapshot_add_machine(const Snapshot *s, JsonObject *record)
{
  JsonObject *memory;

  if (s->argv)
    json_object_set_array_member(record, "argv", dr_json_array_from_strv((const char *const *)s->argv));
  if (s->machine)
    json_object_set_object_member(record, "machine", json_object_ref(s->machine));
  if (!s->memory_file)
    return;
  memory = dr_json("{'file': <%s>, 'bytes': <%x>}", s->memory_file, s->save.bytes);
  if (s->save.stopped_us && s->save.resumed_us)
    json_object_set_double_member(memory, "pause_ms",
                                  (double)(s->save.resumed_us - s->save.stopped_us) / 1000);
  json_object_set_object_member(record, "memory", memory);
}

void
dr_snapshot_load_machine(Snapshot *s, JsonObject *note)
{
  s->argv = dr_json_strv(dr_json_arr(note, "argv"));
  s->machine = dr_json_obj(note, "machine") ? json_object_ref(dr_json_obj(note, "machine")) : NULL;
  s->memory_file = g_strdup(dr_json_str(note, "memory.file", NULL));
  s->memory_made = s->memory_file != NULL; /* it was not there when the journal was written */
}

/* --- Images --- */

JsonArray *
dr_snapshot_chain(DrNode *base)
{
  JsonArray *chain = json_array_new();

  for (DrNode *node = dr_node_backing(base); node; node = dr_node_backing(node))
    json_array_add_string_element(chain, dr_node_file(node));
  return chain;
}

static JsonObject *
image_json(const char *file)
{
  dr_autofd int fd = *file == '/' ? open(file, O_RDONLY | O_CLOEXEC) : -1;
  struct stat st;

  if (fd >= 0)
    fsync(fd); /* the time of its last change, too: a host that loses its power would have it otherwise */
  if (*file != '/' || stat(file, &st) < 0)
    return NULL;
  return dr_json("{'inode': <%x>, 'size': <%x>, 'changed_ns': <%x>}", (gint64)st.st_ino, (gint64)st.st_size,
                 (gint64)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec);
}

void
dr_snapshot_mark_image(JsonObject *split)
{
  JsonObject *image = image_json(dr_json_str(split, "base", ""));

  if (image)
    json_object_set_object_member(split, "image", image);
  else
    json_object_remove_member(split, "image");
}

void
dr_snapshot_mark_images(JsonObject *record)
{
  JsonArray *splits = dr_json_arr(record, "disks");

  for (guint i = 0; splits && i < json_array_get_length(splits); i++)
    dr_snapshot_mark_image(json_array_get_object_element(splits, i));
}

gboolean
dr_snapshot_image_is_same(JsonObject *split)
{
  static const char *const members[] = { "inode", "size", "changed_ns" };
  JsonObject *noted = dr_json_obj(split, "image");
  g_autoptr(JsonObject) now = image_json(dr_json_str(split, "base", ""));

  for (guint i = 0; noted && now && i < G_N_ELEMENTS(members); i++)
    if (dr_json_int(noted, members[i], -1) != dr_json_int(now, members[i], -2))
      return FALSE;
  return noted && now;
}

gboolean
dr_snapshot_stands_on(JsonObject *split, const char *file)
{
  JsonArray *chain = dr_json_arr(split, "chain");

  if (g_str_equal(dr_json_str(split, "base", ""), file))
    return TRUE;
  for (guint i = 0; chain && i < json_array_get_length(chain); i++)
    if (g_str_equal(json_array_get_string_element(chain, i), file))
      return TRUE;
  return FALSE;
}
