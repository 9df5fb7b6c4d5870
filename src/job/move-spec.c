/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What travels of a VM besides its state. */
#include "job/move-spec.h"
#include "base/error.h"

#include <string.h>
#include <sys/stat.h>

#define MAX_RAM_BLOCKS 256

/* --- Taps --- */

/* "br0" for a port of a bridge, else NULL. (transfer full) */
static char *
bridge_of(const char *ifname)
{
  g_autofree char *path = g_strdup_printf("/sys/class/net/%s/master", ifname);
  g_autofree char *link = g_file_read_link(path, NULL);

  return link ? g_path_get_basename(link) : NULL;
}

static gint64
mtu_of(const char *ifname)
{
  g_autofree char *path = g_strdup_printf("/sys/class/net/%s/mtu", ifname);
  g_autofree char *text = NULL;

  return g_file_get_contents(path, &text, NULL, NULL) ? g_ascii_strtoll(text, NULL, 10) : 0;
}

static const char *
ifname_of_fd(const GPtrArray *open, int number)
{
  for (guint i = 0; i < open->len; i++)
    if (((DrProcFd *)open->pdata[i])->fd == number)
      return ((DrProcFd *)open->pdata[i])->tap_ifname;
  return NULL;
}

static gint64
count_queues(const GPtrArray *open, const char *ifname)
{
  gint64 n = 0;

  for (guint i = 0; i < open->len; i++)
    n += g_strcmp0(((DrProcFd *)open->pdata[i])->tap_ifname, ifname) == 0;
  return n;
}

static const char *
ifname_of_netdev(const DrInventory *inventory, const DrNeed *need)
{
  GPtrArray *taps = dr_inventory_taps(inventory);

  for (guint i = 0; i < taps->len; i++) {
    const DrTap *tap = taps->pdata[i];

    if (tap->ifname && g_strcmp0(tap->netdev, need->netdev) == 0)
      return tap->ifname;
  }
  return NULL;
}

/* A helper (-netdev bridge) leaves QEMU a tap under a name that nobody wrote down: if it is the only one, that is it. */
static const char *
only_tap(const GPtrArray *open)
{
  const char *name = NULL;

  for (guint i = 0; i < open->len; i++) {
    const char *ifname = ((DrProcFd *)open->pdata[i])->tap_ifname;

    if (ifname && name && !g_str_equal(name, ifname))
      return NULL;
    name = ifname ? ifname : name;
  }
  return name;
}

static const char *
ifname_of_need(const DrPreflight *pre, const DrNeed *need, const GPtrArray *open)
{
  const char *ifname;

  if (need->kind == DR_NEED_VHOST || need->kind == DR_NEED_FDSET)
    return NULL;
  if (need->kind == DR_NEED_FD)
    return ifname_of_fd(open, need->fd);
  ifname = need->ifname ? need->ifname : ifname_of_netdev(pre->inventory, need);
  return ifname ? ifname : only_tap(open);
}

static void
add_tap(JsonArray *taps, guint need, const char *ifname, const GPtrArray *open)
{
  g_autofree char *bridge = bridge_of(ifname);
  JsonObject *tap = dr_json("{'need': <%x>, 'ifname': <%s>, 'queues': <%x>, 'mtu': <%x>}", (gint64)need,
                            ifname, count_queues(open, ifname), mtu_of(ifname));

  if (bridge)
    json_object_set_string_member(tap, "bridge", bridge);
  json_array_add_object_element(taps, tap);
}

static JsonArray *
taps_json(DrVm *vm, const DrPreflight *pre, GError **error)
{
  g_autoptr(GPtrArray) open = dr_proc_fds(dr_vm_record(vm)->id.pid, error);
  g_autoptr(JsonArray) taps = open ? json_array_new() : NULL;

  for (guint i = 0; open && i < pre->needs->len; i++) {
    const DrNeed *need = pre->needs->pdata[i];
    const char *ifname = need->kind == DR_NEED_TCP_LISTENER ? NULL : ifname_of_need(pre, need, open);

    if (ifname)
      add_tap(taps, i, ifname, open);
    else if (need->fd >= 0)
      dr_findings_add(
          pre->findings, DR_FINDING_BLOCKER, "descriptor",
          "start the VM with a path or a name instead of a descriptor",
          "descriptor %d was handed to its QEMU by whoever started it, and cannot be had on another host",
          need->fd);
    else if (need->kind == DR_NEED_TAP)
      dr_findings_add(
          pre->findings, DR_FINDING_BLOCKER, "tap", "name the tap (ifname=) when the VM is next started",
          "the interface behind network '%s' cannot be found out", need->netdev ? need->netdev : "?");
  }
  return g_steal_pointer(&taps);
}

JsonObject *
dr_move_spec_tap(JsonObject *spec, guint need)
{
  JsonArray *taps = dr_json_arr(spec, "taps");

  for (guint i = 0; taps && i < json_array_get_length(taps); i++) {
    JsonObject *tap = json_array_get_object_element(taps, i);

    if (dr_json_int(tap, "need", -1) == (gint64)need)
      return tap;
  }
  return NULL;
}

/* --- RAM --- */

static JsonArray *
ram_json(const DrPreflight *pre)
{
  JsonArray *array = json_array_new();

  for (guint i = 0; i < pre->ram->len; i++) {
    const DrRamBlock *ram = pre->ram->pdata[i];

    json_array_add_object_element(array, dr_json("{'id': <%s>, 'size': <%x>, 'hugepage': <%x>}", ram->id,
                                                 (gint64)ram->size, (gint64)ram->hugepage));
  }
  return array;
}

static GPtrArray *
ram_read(JsonArray *array, GError **error)
{
  g_autoptr(GPtrArray) blocks = g_ptr_array_new_with_free_func((GDestroyNotify)dr_ram_block_free);
  guint n = array ? json_array_get_length(array) : 0;

  for (guint i = 0; i < n; i++) {
    JsonNode *node = json_array_get_element(array, i);
    JsonObject *object = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    gint64 size = object ? dr_json_int(object, "size", 0) : 0;
    DrRamBlock *ram;

    if (size <= 0 || n > MAX_RAM_BLOCKS || !dr_json_str(object, "id", NULL)) {
      dr_error_set(error, DR_ERROR_INVALID, "the peer's list of RAM blocks makes no sense");
      return NULL;
    }
    ram = g_new0(DrRamBlock, 1);
    ram->id = g_strdup(dr_json_str(object, "id", ""));
    ram->size = (guint64)size;
    ram->hugepage = (guint64)dr_json_int(object, "hugepage", 0);
    ram->in_use = TRUE;
    ram->fd = -1;
    g_ptr_array_add(blocks, ram);
  }
  return g_steal_pointer(&blocks);
}

GHashTable *
dr_move_spec_secrets(const DrArgv *argv)
{
  GHashTable *secrets = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "object", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *type = opts ? dr_opts_get(opts, "qom-type") : NULL,
               *id = opts ? dr_opts_get(opts, "id") : NULL;

    if (id && type && g_str_equal(type, "secret"))
      g_hash_table_insert(secrets, g_strdup(id), g_strdup(opt->value));
  }
  return secrets;
}

/* --- All of it --- */

static void
set_words(JsonObject *spec, const char *member, char **words)
{
  json_object_set_array_member(spec, member, dr_json_array_from_strv((const char *const *)words));
}

JsonObject *
dr_move_spec_write(DrVm *vm, const DrPreflight *pre, JsonArray *forwards, DrQmp *source, GError **error)
{
  const DrVmRecord *record = dr_vm_record(vm);
  JsonArray *taps = taps_json(vm, pre, error);
  g_auto(GStrv) truth = dr_argv_to_strv(pre->truth);
  JsonObject *spec;

  if (!taps)
    return NULL;
  spec = dr_json(
      "{'vm': <%s>, 'cwd': <%s>, 'want_shared': <%b>, 'hugepage': <%x>, 'adopted': <%b>, 'machine': <%s>, "
      "'kvm': <%b>, 'memory': <%x>, 'running': <%b>, 'qemu': <%s>, 'uuid': <%s>}",
      record->name, record->cwd, record->want_shared, (gint64)record->hugepage, record->adopted, pre->machine,
      pre->kvm, (gint64)dr_inventory_memory(pre->inventory), pre->was_running, dr_qmp_version(source),
      record->uuid ? record->uuid : "");
  set_words(spec, "argv_given", record->argv_given);
  set_words(spec, "argv", truth);
  set_words(spec, "env", record->env);
  json_object_set_array_member(spec, "taps", taps);
  json_object_set_array_member(spec, "ram", ram_json(pre));
  json_object_set_array_member(spec, "forwards", json_array_ref(forwards));
  return spec;
}

/* This host's environment, and of the other's what QEMU's audio and displays read: names like LD_PRELOAD would be a way past the
 * list of binaries. NULL: it sent none. */
static char **
environment(JsonArray *sent)
{
  static const char *const taken[] = { "QEMU_AUDIO_", "QEMU_PA_", "SDL_", "PULSE_", "TZ=", "LANG=", "LC_" };
  g_auto(GStrv) words = dr_json_strv(sent);
  char **env = words ? g_get_environ() : NULL;

  for (char **word = words; word && *word; word++)
    for (guint i = 0; i < G_N_ELEMENTS(taken); i++)
      if (g_str_has_prefix(*word, taken[i]) && strchr(*word, '=')) {
        g_autofree char *name = g_strndup(*word, (gsize)(strchr(*word, '=') - *word));

        env = g_environ_setenv(env, name, strchr(*word, '=') + 1, TRUE);
      }
  return env;
}

static gboolean
read_record(JsonObject *spec, DrVmRecord *record, GError **error)
{
  record->argv_given = dr_json_strv(dr_json_arr(spec, "argv_given"));
  record->argv_running = dr_json_strv(dr_json_arr(spec, "argv"));
  record->env = environment(dr_json_arr(spec, "env"));
  if (!record->argv_given || !record->argv_given[0] || !record->argv_running || !record->argv_running[0] ||
      !record->env)
    return dr_error_set(error, DR_ERROR_INVALID, "the peer's description of the VM has no command line");
  record->cwd = g_strdup(dr_json_str(spec, "cwd", "/"));
  if (!g_path_is_absolute(record->cwd))
    return dr_error_set(error, DR_ERROR_INVALID, "the peer's working directory '%s' is not absolute",
                        record->cwd);
  record->want_shared = dr_json_bool(spec, "want_shared", TRUE);
  record->hugepage = (guint64)dr_json_int(spec, "hugepage", 0);
  record->adopted = dr_json_bool(spec, "adopted", FALSE);
  record->machine = g_strdup(dr_json_str(spec, "machine", NULL));
  record->uuid = g_strdup(dr_json_str(spec, "uuid", NULL));
  return TRUE;
}

DrPreflight *
dr_move_spec_read(JsonObject *spec, DrVmRecord *record, GError **error)
{
  g_autoptr(DrPreflight) p = g_new0(DrPreflight, 1);

  p->findings = dr_findings_new();
  if (!read_record(spec, record, error))
    return NULL;
  p->truth = dr_argv_parse((const char *const *)record->argv_running, error);
  p->ram = p->truth ? ram_read(dr_json_arr(spec, "ram"), error) : NULL;
  if (!p->ram)
    return NULL;
  p->needs = dr_rewrite_needs(p->truth);
  p->machine = g_strdup(record->machine);
  p->kvm = dr_json_bool(spec, "kvm", FALSE);
  p->was_running = dr_json_bool(spec, "running", TRUE);
  return g_steal_pointer(&p);
}
