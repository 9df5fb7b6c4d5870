/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The answers of QEMU binaries, kept in memory and in files. */
#include "qemu/caps.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/fd.h"
#include "qemu/caps-probe.h"
#include "qemu/child.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#define FORMAT 1 /* of the cache files: raise it when something is asked anew */
#define MAX_CACHE_FILE (4 * 1024 * 1024)

static void
clear_caps(gpointer data)
{
  DrCaps *caps = data;

  g_free(caps->binary);
  g_free(caps->version);
  g_clear_pointer(&caps->machines, g_hash_table_unref);
  g_clear_pointer(&caps->default_ram_ids, g_hash_table_unref);
  g_clear_pointer(&caps->devices, g_hash_table_unref);
  g_clear_pointer(&caps->cpus, g_hash_table_unref);
  g_clear_pointer(&caps->commands, g_hash_table_unref);
  g_clear_pointer(&caps->migration_caps, g_hash_table_unref);
}

static DrCaps *
caps_new(const char *binary)
{
  DrCaps *caps = g_atomic_rc_box_new0(DrCaps);

  caps->binary = g_strdup(binary);
  return caps;
}

DrCaps *
dr_caps_ref(DrCaps *caps)
{
  return g_atomic_rc_box_acquire(caps);
}

void
dr_caps_unref(DrCaps *caps)
{
  if (caps)
    g_atomic_rc_box_release_full(caps, clear_caps);
}

/* ---- The cache in files ---- */

/* Which file it was: any change of the binary changes this. */
static char *
file_key(const char *binary, GError **error)
{
  struct stat status;

  if (stat(binary, &status) < 0) {
    dr_exec_error(binary, errno, error);
    return NULL;
  }
  return g_strdup_printf("%d %s %ju:%ju %jd %jd.%09ld", FORMAT, binary, (uintmax_t)status.st_dev,
                         (uintmax_t)status.st_ino, (intmax_t)status.st_size, (intmax_t)status.st_mtim.tv_sec,
                         status.st_mtim.tv_nsec);
}

static char *
cache_path(const char *binary, const char *cache_dir)
{
  g_autofree char *name = g_path_get_basename(binary);
  g_autofree char *hash = g_compute_checksum_for_string(G_CHECKSUM_SHA256, binary, -1);

  return g_strdup_printf("%s/%s-%.16s.json", cache_dir, name, hash);
}

static JsonArray *
set_to_json(GHashTable *set)
{
  g_autoptr(GList) names = g_list_sort(g_hash_table_get_keys(set), (GCompareFunc)strcmp);
  JsonArray *array = json_array_new();

  for (GList *item = names; item; item = item->next)
    json_array_add_string_element(array, item->data);
  return array;
}

static JsonObject *
table_to_json(GHashTable *table)
{
  JsonObject *object = json_object_new();
  GHashTableIter iter;
  gpointer name, value;

  g_hash_table_iter_init(&iter, table);
  while (g_hash_table_iter_next(&iter, &name, &value))
    json_object_set_string_member(object, name, value);
  return object;
}

static GHashTable *
set_from_json(JsonObject *object, const char *member)
{
  JsonArray *array = dr_json_arr(object, member);
  g_auto(GStrv) names = array ? dr_json_strv(array) : NULL;
  GHashTable *set;

  if (!names)
    return NULL;
  set = dr_caps_set_new();
  for (guint i = 0; names[i]; i++)
    g_hash_table_add(set, g_steal_pointer(&names[i]));
  return set;
}

static GHashTable *
table_from_json(JsonObject *object, const char *member)
{
  JsonObject *from = dr_json_obj(object, member);
  GHashTable *table = dr_caps_table_new();
  JsonObjectIter iter;
  const char *name;
  JsonNode *node;

  if (!from)
    return table;
  json_object_iter_init(&iter, from);
  while (json_object_iter_next(&iter, &name, &node))
    if (JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_STRING)
      g_hash_table_insert(table, g_strdup(name), json_node_dup_string(node));
  return table;
}

/* A cache that cannot be written costs a probe the next time, nothing else. */
static void
save(const DrCaps *caps, const char *key, const char *cache_dir)
{
  g_autofree char *path = cache_path(caps->binary, cache_dir);
  g_autofree char *text = NULL;
  g_autoptr(JsonObject) object = json_object_new();
  g_autoptr(GError) error = NULL;

  json_object_set_string_member(object, "key", key);
  json_object_set_string_member(object, "version", caps->version);
  json_object_set_int_member(object, "version_number", caps->version_number);
  json_object_set_boolean_member(object, "kvm_built_in", caps->kvm_built_in);
  json_object_set_object_member(object, "machines", table_to_json(caps->machines));
  json_object_set_object_member(object, "default_ram_ids", table_to_json(caps->default_ram_ids));
  if (caps->devices)
    json_object_set_array_member(object, "devices", set_to_json(caps->devices));
  json_object_set_array_member(object, "cpus", set_to_json(caps->cpus));
  json_object_set_array_member(object, "commands", set_to_json(caps->commands));
  json_object_set_array_member(object, "migration_caps", set_to_json(caps->migration_caps));
  text = dr_json_print_object(object, FALSE);
  if (!dr_mkdir(cache_dir, 0700, &error) || !dr_file_write(path, text, &error))
    g_message("what '%s' can do is not cached: %s", caps->binary, error->message);
}

/* NULL when there is nothing for this key; a file that makes no sense counts as nothing. */
static DrCaps *
load(const char *binary, const char *key, const char *cache_dir)
{
  g_autofree char *path = cache_path(binary, cache_dir);
  g_autofree char *text = dr_file_read(path, MAX_CACHE_FILE, NULL, NULL);
  g_autoptr(JsonObject) object = text ? dr_json_parse_object(text, -1, MAX_CACHE_FILE, NULL) : NULL;
  g_autoptr(DrCaps) caps = NULL;

  if (!object || g_strcmp0(dr_json_str(object, "key", NULL), key) != 0)
    return NULL;
  caps = caps_new(binary);
  caps->version = g_strdup(dr_json_str(object, "version", NULL));
  caps->version_number = dr_json_int(object, "version_number", 0);
  caps->kvm_built_in = dr_json_bool(object, "kvm_built_in", FALSE);
  caps->machines = table_from_json(object, "machines");
  caps->default_ram_ids = table_from_json(object, "default_ram_ids");
  caps->devices = set_from_json(object, "devices");
  caps->cpus = set_from_json(object, "cpus");
  caps->commands = set_from_json(object, "commands");
  caps->migration_caps = set_from_json(object, "migration_caps");
  if (!caps->version || !caps->cpus || !caps->commands || !caps->migration_caps)
    return NULL;
  return g_steal_pointer(&caps);
}

/* ---- The cache in memory, and one probe for all who ask at once ---- */

typedef struct {
  gboolean busy; /* somebody finds it out */
  guint flight;  /* counts each finding out */
  char *key;
  gboolean script;
  gint64 when;
  DrCaps *caps;  /* the last answer: this … */
  GError *error; /* … or this */
} Entry;

static GMutex lock;
static GCond changed;
static GHashTable *entries; /* path -> Entry; as many as there are QEMU binaries, never dropped */

static gboolean
is_script(const char *binary)
{
  dr_autofd int fd = open(binary, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  char begin[2] = "";

  return fd >= 0 && read(fd, begin, 2) == 2 && begin[0] == '#' && begin[1] == '!';
}

/* Not a question to the binary and so never cached: the module may be loaded, or the rights change, at any time. */
static gboolean
kvm_opens(void)
{
  dr_autofd int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

  return fd >= 0;
}

static gboolean
is_fresh(const Entry *entry, const char *key, gboolean kvm)
{
  if (!entry->caps || g_strcmp0(entry->key, key) != 0 ||
      entry->caps->kvm != (entry->caps->kvm_built_in && kvm))
    return FALSE;
  return !entry->script || g_get_monotonic_time() - entry->when < DR_CAPS_SCRIPT_MS * 1000;
}

static Entry *
entry_of(const char *binary)
{
  Entry *entry;

  if (!entries)
    entries = g_hash_table_new(g_str_hash, g_str_equal);
  entry = g_hash_table_lookup(entries, binary);
  if (!entry) {
    entry = g_new0(Entry, 1);
    g_hash_table_insert(entries, g_strdup(binary), entry);
  }
  return entry;
}

static DrCaps *
find_out(const char *binary, const char *key, gboolean script, const char *cache_dir, GError **error)
{
  g_autoptr(DrCaps) caps = cache_dir && !script ? load(binary, key, cache_dir) : NULL;

  if (caps)
    return g_steal_pointer(&caps);
  caps = caps_new(binary);
  if (!dr_caps_probe(caps, error))
    return NULL;
  if (cache_dir && !script && caps->devices) /* without: its modules may be mended, the binary unchanged */
    save(caps, key, cache_dir);
  return g_steal_pointer(&caps);
}

/* With the lock held, which is given back meanwhile. */
static void
refresh(Entry *entry, const char *binary, const char *key, gboolean kvm, const char *cache_dir)
{
  g_autoptr(GError) error = NULL;
  gboolean script;
  DrCaps *caps;

  entry->busy = TRUE;
  g_mutex_unlock(&lock);
  script = is_script(binary);
  caps = find_out(binary, key, script, cache_dir, &error);
  if (caps)
    caps->kvm = caps->kvm_built_in && kvm;
  g_mutex_lock(&lock);

  dr_caps_unref(entry->caps);
  entry->caps = caps;
  g_clear_error(&entry->error);
  entry->error = g_steal_pointer(&error);
  g_free(entry->key);
  entry->key = g_strdup(key);
  entry->script = script;
  entry->when = g_get_monotonic_time();
  entry->busy = FALSE;
  entry->flight++;
  g_cond_broadcast(&changed);
}

/* Waits for the one who is finding it out. */
static gboolean
wait_for_other(Entry *entry, const char *binary, GError **error)
{
  guint flight = entry->flight;
  DrDeadline deadline = dr_deadline_in(2 * DR_CAPS_PROBE_MS);

  while (entry->flight == flight)
    if (!g_cond_wait_until(&changed, &lock, deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "'%s' is being tried and does not answer", binary);
  return TRUE;
}

DrCaps *
dr_caps_get(const char *binary, const char *cache_dir, GError **error)
{
  g_autofree char *path = dr_find_program(binary, g_getenv("PATH"), NULL, error);
  g_autofree char *key = path ? file_key(path, error) : NULL;
  gboolean kvm = kvm_opens();
  DrCaps *caps = NULL;
  Entry *entry;

  if (!key)
    return NULL;
  g_mutex_lock(&lock);
  entry = entry_of(path);
  if (!entry->busy && !is_fresh(entry, key, kvm))
    refresh(entry, path, key, kvm, cache_dir);
  else if (entry->busy && !wait_for_other(entry, path, error))
    goto out;
  if (entry->caps)
    caps = dr_caps_ref(entry->caps);
  else if (error)
    *error = g_error_copy(entry->error);
out:
  g_mutex_unlock(&lock);
  return caps;
}
