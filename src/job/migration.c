/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QEMU's migration: what an upgrade and a move have in common. */
#include "job/migration.h"
#include "base/error.h"

static gboolean
is_known(JsonArray *known, const char *name)
{
  for (guint i = 0; i < json_array_get_length(known); i++)
    if (g_str_equal(dr_json_str(json_array_get_object_element(known, i), "capability", ""), name))
      return TRUE;
  return FALSE;
}

static gboolean
all_known(DrQmp *qmp, JsonArray *known, const char *const *wanted, GError **error)
{
  for (const char *const *name = wanted; *name; name++)
    if (!is_known(known, *name)) {
      dr_error_set(error, DR_ERROR_UNSUPPORTED, "QEMU %s has no migration capability '%s'",
                   dr_qmp_version(qmp), *name);
      return FALSE;
    }
  return TRUE;
}

gboolean
dr_migration_set_capabilities(DrQmp *qmp, const char *const *wanted, GError **error)
{
  g_autoptr(JsonArray) known = dr_qmp_call_array(qmp, "query-migrate-capabilities", NULL, error);
  JsonArray *changes;
  JsonObject *arguments;

  if (!known || !all_known(qmp, known, wanted, error))
    return FALSE;
  changes = json_array_new();
  for (guint i = 0; i < json_array_get_length(known); i++) {
    JsonObject *item = json_array_get_object_element(known, i);
    const char *name = dr_json_str(item, "capability", "");
    gboolean state = g_str_equal(name, "events") || g_strv_contains(wanted, name);

    if (state != dr_json_bool(item, "state", FALSE))
      json_array_add_object_element(changes, dr_json("{'capability': <%s>, 'state': <%b>}", name, state));
  }
  arguments = json_object_new();
  json_object_set_array_member(arguments, "capabilities", changes);
  return dr_qmp_do(qmp, "migrate-set-capabilities", arguments, error);
}

char *
dr_migration_status(DrQmp *qmp)
{
  g_autoptr(JsonObject) info = dr_qmp_call_object(qmp, "query-migrate", NULL, NULL);

  return g_strdup(info ? dr_json_str(info, "status", "none") : "unknown");
}

gboolean
dr_migration_is_moving(const char *status)
{
  return g_strv_contains((const char *const[]){ "setup", "active", "pre-switchover", "device", "cancelling",
                                                "wait-unplug", NULL },
                         status);
}

gboolean
dr_migration_is_postcopy(const char *status)
{
  return g_str_has_prefix(status, "postcopy-");
}

char *
dr_migration_run_state(DrQmp *qmp)
{
  g_autoptr(JsonObject) info = dr_qmp_call_object(qmp, "query-status", NULL, NULL);

  return g_strdup(info ? dr_json_str(info, "status", "unknown") : "unknown");
}

gboolean
dr_migration_waits_for_cont(const char *state)
{
  return g_strv_contains((const char *const[]){ "inmigrate", "prelaunch", "paused", "postmigrate",
                                                "finish-migrate", "restore-vm", "unknown", NULL },
                         state);
}
