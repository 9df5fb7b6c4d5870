/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest agent's port, and what is asked of it. */
#include "job/guest-agent.h"
#include "base/error.h"
#include "argv/argv.h"
#include "job/inventory.h"
#include "qemu/agent.h"

#include <string.h>

#define PORT "org.qemu.guest_agent.0"
#define CONNECT_MS 5000
#define FREEZE_MS 10000 /* with the thaw shorter than droverd waits at its end */
#define THAW_MS 10000
#define THAW_ALL_MS 60000
#define AGAIN_US 200000

/* --- Where it is --- */

static char *
find_label(DrQmp *qmp, GError **error)
{
  g_autoptr(GError) local = NULL;
  char *label = dr_inventory_port_chardev(qmp, PORT, &local);

  if (!label && !local) {
    dr_error_set(error, DR_ERROR_UNSUPPORTED,
                 "the VM has no guest agent's port (virtserialport,name=" PORT ")");
    dr_error_remedy(error, "add one and install qemu-guest-agent in the guest, or leave --quiesce out");
  } else if (local) {
    g_propagate_error(error, g_steal_pointer(&local));
  }
  return label;
}

static JsonObject *
find_chardev(JsonArray *chardevs, const char *label)
{
  for (guint i = 0; i < json_array_get_length(chardevs); i++) {
    JsonObject *chardev = json_array_get_object_element(chardevs, i);

    if (g_str_equal(dr_json_str(chardev, "label", ""), label))
      return chardev;
  }
  return NULL;
}

/* As the VM's own command line has it: after an upgrade QEMU tells the path at which it was made, not the one that it was renamed
 * to. (transfer full) (nullable) */
static char *
given_path(DrVm *vm, const char *label)
{
  g_autoptr(DrArgv) argv = NULL;
  g_autoptr(DrChardev) chardev = NULL;
  g_autofree char *value = NULL;
  DrOpt *opt;

  dr_vm_lock(vm);
  argv = dr_argv_parse((const char *const *)dr_vm_record(vm)->argv_given, NULL);
  dr_vm_unlock(vm);
  opt = argv ? dr_argv_find_id(argv, "chardev", label) : NULL;
  chardev = opt ? dr_chardev_parse("chardev", opt->value, NULL) : NULL;
  if (!chardev || chardev->kind != DR_CHARDEV_UNIX || !chardev->path)
    return NULL;
  return g_canonicalize_filename(chardev->path, dr_vm_record(vm)->cwd);
}

/* "disconnected:unix:/run/qga,server=on". (transfer full) (nullable) */
static char *
running_path(const char *filename)
{
  const char *at = strstr(filename, "unix:");

  if (!at)
    return NULL;
  at += strlen("unix:");
  return g_strndup(at, strcspn(at, ","));
}

char *
dr_guest_agent_find(DrVm *vm, DrQmp *qmp, GError **error)
{
  g_autofree char *label = find_label(qmp, error);
  g_autoptr(JsonArray) chardevs = label ? dr_qmp_call_array(qmp, "query-chardev", NULL, error) : NULL;
  JsonObject *chardev = chardevs ? find_chardev(chardevs, label) : NULL;
  char *path;

  if (!chardevs)
    return NULL;
  if (!chardev || !dr_json_bool(chardev, "frontend-open", FALSE)) {
    dr_error_set(error, DR_ERROR_UNSUPPORTED, "no agent runs in the guest: its port is not open there");
    dr_error_remedy(error, "start qemu-guest-agent in the guest, or leave --quiesce out");
    return NULL;
  }
  path = given_path(vm, label);
  if (!path)
    path = running_path(dr_json_str(chardev, "filename", ""));
  if (!path)
    dr_error_set(error, DR_ERROR_UNSUPPORTED, "the guest agent's port is not on a unix socket");
  return path;
}

/* --- Freeze and thaw --- */

static gboolean
call_number(DrAgent *agent, const char *command, int timeout_ms, gint64 *ret, GError **error)
{
  g_autoptr(JsonNode) node = dr_agent_call(agent, command, NULL, dr_deadline_in(timeout_ms), error);

  if (node && ret)
    *ret = JSON_NODE_HOLDS_VALUE(node) ? json_node_get_int(node) : 0;
  return node != NULL;
}

gboolean
dr_guest_freeze(const char *socket, gint64 *ret_frozen, GError **error)
{
  g_autoptr(DrAgent) agent = dr_agent_connect(socket, dr_deadline_in(CONNECT_MS), error);
  g_autoptr(GError) local = NULL;

  if (!agent)
    return FALSE;
  if (call_number(agent, "guest-fsfreeze-freeze", FREEZE_MS, ret_frozen, error))
    return TRUE;
  g_clear_pointer(&agent, dr_agent_free);
  if (!dr_guest_thaw(socket, &local)) /* some may be frozen */
    g_warning("%s", local->message);
  g_prefix_error(error, "the guest's file systems cannot be frozen: ");
  return FALSE;
}

gboolean
dr_guest_thaw(const char *socket, GError **error)
{
  DrDeadline deadline = dr_deadline_in(THAW_ALL_MS);

  for (;;) {
    g_autoptr(GError) local = NULL;
    g_autoptr(DrAgent) agent = dr_agent_connect(socket, dr_deadline_in(CONNECT_MS), &local);

    if (agent && call_number(agent, "guest-fsfreeze-thaw", THAW_MS, NULL, &local))
      return TRUE;
    if (dr_deadline_passed(deadline) || g_error_matches(local, DR_ERROR, DR_ERROR_CLOSED)) {
      g_propagate_prefixed_error(error, g_steal_pointer(&local),
                                 "the guest's file systems cannot be thawed: ");
      return dr_error_remedy(error, "thaw them in the guest: fsfreeze -u MOUNTPOINT");
    }
    g_usleep(AGAIN_US);
  }
}
