/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is different for a guest that belongs to another manager: its QEMU's threads have places that the manager gave them, and nothing on its
 * command line is drover's. */
#include "base/error.h"
#include "job/upgrade-internal.h"
#include "qemu/world.h"

#include <string.h>

typedef struct {
  const char *command, *key; /* what names a thread */
  gboolean is_number;
} Threads;

/* Thread ids by the name of what they are for: "0", "iothread1". */
static GHashTable *
read_threads(DrQmp *qmp, const Threads *kind, GError **error)
{
  g_autoptr(JsonArray) all = dr_qmp_call_array(qmp, kind->command, NULL, error);
  GHashTable *threads = all ? g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL) : NULL;

  for (guint i = 0; threads && i < json_array_get_length(all); i++) {
    JsonObject *one = json_array_get_object_element(all, i);
    char *name = kind->is_number ? g_strdup_printf("%d", (int)dr_json_int(one, kind->key, -1))
                                 : g_strdup(dr_json_str(one, kind->key, ""));

    g_hash_table_insert(threads, name, GINT_TO_POINTER((int)dr_json_int(one, "thread-id", 0)));
  }
  return threads;
}

static gboolean
place_kind(DrUpgrade *u, const Threads *kind, GError **error)
{
  g_autoptr(GHashTable) old = read_threads(u->source, kind, error);
  g_autoptr(GHashTable) new = old ? read_threads(u->dest, kind, error) : NULL;
  GHashTableIter iter;
  gpointer name, thread;

  if (!new)
    return FALSE;
  g_hash_table_iter_init(&iter, old);
  while (g_hash_table_iter_next(&iter, &name, &thread)) {
    int to = GPOINTER_TO_INT(g_hash_table_lookup(new, name));

    if (to && !dr_world_place_thread(&u->plan.source, GPOINTER_TO_INT(thread), &u->dest_id, to, error))
      return FALSE;
  }
  return TRUE;
}

gboolean
dr_upgrade_place_threads(DrUpgrade *u, GError **error)
{
  static const Threads kinds[] = { { "query-cpus-fast", "cpu-index", TRUE },
                                   { "query-iothreads", "id", FALSE } };

  for (guint i = 0; i < G_N_ELEMENTS(kinds); i++)
    if (!place_kind(u, &kinds[i], error))
      return FALSE;
  return dr_world_place_thread(&u->plan.source, u->plan.source.pid, &u->dest_id, u->dest_id.pid, error);
}

gboolean
dr_upgrade_set_limits(DrUpgrade *u, GError **error)
{
  g_autoptr(JsonArray) limits = dr_inventory_limits(u->pre->inventory);

  for (guint i = 0; i < json_array_get_length(limits); i++)
    if (!dr_qmp_do(u->dest, "block_set_io_throttle",
                   json_object_ref(json_array_get_object_element(limits, i)), error))
      return FALSE;
  return TRUE;
}

static gboolean
has_words(pid_t pid, char **wanted)
{
  g_auto(GStrv) words = dr_proc_cmdline(pid, NULL);

  return words && g_strv_equal((const char *const *)words, (const char *const *)wanted);
}

gboolean
dr_upgrade_find_by_words(const DrUpgrade *u, DrProcId *ret_id)
{
  g_autoptr(GDir) proc = g_dir_open("/proc", 0, NULL);
  const char *name;

  while (proc && (name = g_dir_read_name(proc))) {
    guint64 pid;

    if (g_ascii_string_to_unsigned(name, 10, 1, G_MAXINT, &pid, NULL) &&
        has_words((pid_t)pid, u->plan.argv) && dr_proc_identify((pid_t)pid, ret_id, NULL) &&
        !dr_upgrade_is_source(u, ret_id))
      return TRUE;
  }
  *ret_id = (DrProcId){ 0 };
  return FALSE;
}
