/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is different for a guest that belongs to another manager: its QEMU's threads have places that the manager gave them, and nothing on its
 * command line is drover's. */
#include "base/error.h"
#include "base/fd.h"
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

/* The I/O limits of its disks, which no -blockdev has. */
static gboolean
set_limits(DrUpgrade *u, GError **error)
{
  g_autoptr(JsonArray) limits = dr_inventory_limits(u->pre->inventory);

  for (guint i = 0; i < json_array_get_length(limits); i++)
    if (!dr_qmp_do(u->dest, "block_set_io_throttle",
                   json_object_ref(json_array_get_object_element(limits, i)), error))
      return FALSE;
  return TRUE;
}

gboolean
dr_upgrade_find_by_listener(const DrUpgrade *u, DrProcId *ret_id)
{
  g_autoptr(GDir) proc = g_dir_open("/proc", 0, NULL);
  const char *name;

  while (proc && (name = g_dir_read_name(proc))) {
    dr_autofd int fd = -1;
    guint64 pid;

    if (!g_ascii_string_to_unsigned(name, 10, 1, G_MAXINT, &pid, NULL) || (pid_t)pid == getpid() ||
        !dr_proc_identify((pid_t)pid, ret_id, NULL) || dr_upgrade_is_source(u, ret_id))
      continue;
    fd = dr_proc_get_unix_listener(ret_id, u->plan.qmp_path, NULL);
    if (fd >= 0)
      return TRUE;
  }
  *ret_id = (DrProcId){ 0 };
  return FALSE;
}

/* --- Confinement --- */

/* The line of /proc/PID/status. (transfer full) */
static char *
status_line(pid_t pid, const char *name)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/status", pid);
  g_autofree char *text = dr_file_read(path, 64 * 1024, NULL, NULL);
  g_autofree char *begin = g_strdup_printf("\n%s:", name);
  const char *at = text ? strstr(text, begin) : NULL;

  return at ? g_strndup(at + strlen(begin), strcspn(at + strlen(begin), "\n")) : g_strdup("");
}

gboolean
dr_upgrade_check_confined(DrUpgrade *u, GError **error)
{
  static const char *const lines[] = { "Uid",    "Gid",    "Groups",     "CapPrm",
                                       "CapEff", "CapAmb", "NoNewPrivs", "Seccomp" };

  for (guint i = 0; i < G_N_ELEMENTS(lines); i++) {
    g_autofree char *old = status_line(u->plan.source.pid, lines[i]);
    g_autofree char *new = status_line(u->dest_id.pid, lines[i]);

    if (g_str_equal(old, new))
      continue;
    dr_error_set(
        error, DR_ERROR_REFUSED,
        "cannot upgrade VM '%s': the new QEMU is not confined as the old one is (%s: '%s', was '%s')",
        dr_vm_name(u->vm), lines[i], g_strstrip(new), g_strstrip(old));
    return dr_error_remedy(
        error, "see whether the new QEMU is built with seccomp, and whether droverd has the rights of root");
  }
  return TRUE;
}

/* --- Settings --- */

/* <memballoon><stats period=…>: libvirt tells it at the start only. */
static gboolean
tell_balloon(DrUpgrade *u, GError **error)
{
  static const char path[] = "/machine/peripheral/balloon0", name[] = "guest-stats-polling-interval";
  g_autoptr(JsonNode) now = dr_qmp_qom_get(u->source, path, name, NULL);
  gint64 seconds = now && JSON_NODE_HOLDS_VALUE(now) ? json_node_get_int(now) : 0;

  return seconds == 0 ||
         dr_qmp_do(u->dest, "qom-set",
                   dr_json("{'path': <%s>, 'property': <%s>, 'value': <%x>}", path, name, seconds), error);
}

/* virsh domblkthreshold. */
static gboolean
tell_thresholds(DrUpgrade *u, GError **error)
{
  g_autoptr(JsonArray) nodes =
      dr_qmp_call_array(u->source, "query-named-block-nodes", dr_json("{'flat': <true>}"), error);

  for (guint i = 0; nodes && i < json_array_get_length(nodes); i++) {
    JsonObject *node = json_array_get_object_element(nodes, i);
    gint64 threshold = dr_json_int(node, "write_threshold", 0);

    if (threshold > 0 && !dr_qmp_do(u->dest, "block-set-write-threshold",
                                    dr_json("{'node-name': <%s>, 'write-threshold': <%x>}",
                                            dr_json_str(node, "node-name", ""), threshold),
                                    error))
      return FALSE;
  }
  return nodes != NULL;
}

gboolean
dr_upgrade_tell_settings(DrUpgrade *u, GError **error)
{
  return set_limits(u, error) && tell_balloon(u, error) && tell_thresholds(u, error);
}
