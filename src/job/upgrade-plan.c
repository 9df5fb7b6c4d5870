/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The plan of an upgrade as JSON, for the journal. */
#include "job/upgrade-internal.h"

static JsonArray *
renames_json(const GPtrArray *renames)
{
  JsonArray *array = json_array_new();

  for (guint i = 0; renames && i < renames->len; i++) {
    const DrRename *item = renames->pdata[i];

    json_array_add_object_element(
        array, dr_json("{'private': <%s>, 'public': <%s>}", item->private_path, item->public_path));
  }
  return array;
}

static void
rename_free(DrRename *item)
{
  g_free(item->private_path);
  g_free(item->public_path);
  g_free(item);
}

static GPtrArray *
renames_read(JsonArray *array)
{
  GPtrArray *renames = g_ptr_array_new_with_free_func((GDestroyNotify)rename_free);

  for (guint i = 0; array && i < json_array_get_length(array); i++) {
    JsonObject *object = json_array_get_object_element(array, i);
    DrRename *item = g_new0(DrRename, 1);

    item->private_path = g_strdup(dr_json_str(object, "private", ""));
    item->public_path = g_strdup(dr_json_str(object, "public", ""));
    g_ptr_array_add(renames, item);
  }
  return renames;
}

JsonObject *
dr_upgrade_plan_write(const DrUpgradePlan *plan)
{
  JsonObject *object = json_object_new();

  json_object_set_int_member(object, "generation", plan->generation);
  json_object_set_int_member(object, "source_pid", plan->source.pid);
  json_object_set_int_member(object, "source_start_time", (gint64)plan->source.start_time);
  json_object_set_string_member(object, "source_qmp", plan->source_qmp);
  json_object_set_boolean_member(object, "source_borrowed", plan->borrowed);
  json_object_set_boolean_member(object, "foreign", plan->foreign);
  json_object_set_string_member(object, "source_console", plan->source_console);
  json_object_set_string_member(object, "source_exit", plan->source_exit);
  json_object_set_string_member(object, "version_before", plan->version_before);
  json_object_set_string_member(object, "qmp_path", plan->qmp_path);
  json_object_set_string_member(object, "console_path", plan->console_path);
  json_object_set_string_member(object, "migration_path", plan->migration_path);
  json_object_set_string_member(object, "exit_path", plan->exit_path);
  json_object_set_string_member(object, "mark_path", plan->mark_path);
  json_object_set_boolean_member(object, "console", plan->console);
  json_object_set_boolean_member(object, "was_running", plan->was_running);
  json_object_set_boolean_member(object, "revert", plan->revert);
  json_object_set_boolean_member(object, "cold", plan->cold);
  json_object_set_string_member(object, "mode", dr_memory_mode_name(plan->mode));
  json_object_set_boolean_member(object, "shared_after", plan->shared_after);
  json_object_set_array_member(object, "argv", dr_json_array_from_strv((const char *const *)plan->argv));
  json_object_set_string_member(object, "machine", plan->machine);
  json_object_set_string_member(object, "version", plan->version);
  json_object_set_array_member(object, "renames", renames_json(plan->renames));
  json_object_set_array_member(object, "forwards", json_array_ref(plan->forwards));
  json_object_set_array_member(object, "vnc", json_array_ref(plan->vnc));
  if (plan->taps)
    json_object_set_array_member(object, "taps", json_array_ref(plan->taps));
  json_object_set_string_member(object, "pidfile", plan->pidfile);
  json_object_set_string_member(object, "gdb", plan->gdb);
  return object;
}

static JsonArray *
array_or_empty(JsonObject *object, const char *name)
{
  JsonArray *array = dr_json_arr(object, name);

  return array ? json_array_ref(array) : json_array_new();
}

void
dr_upgrade_plan_read(DrUpgradePlan *plan, JsonObject *object)
{
  dr_upgrade_plan_clear(plan);
  plan->generation = (guint)dr_json_int(object, "generation", 0);
  plan->source.pid = (pid_t)dr_json_int(object, "source_pid", 0);
  plan->source.start_time = (guint64)dr_json_int(object, "source_start_time", 0);
  plan->source_qmp = g_strdup(dr_json_str(object, "source_qmp", NULL));
  plan->borrowed = dr_json_bool(object, "source_borrowed", FALSE);
  plan->foreign = dr_json_bool(object, "foreign", FALSE);
  plan->source_console = g_strdup(dr_json_str(object, "source_console", NULL));
  plan->source_exit = g_strdup(dr_json_str(object, "source_exit", NULL));
  plan->version_before = g_strdup(dr_json_str(object, "version_before", NULL));
  plan->qmp_path = g_strdup(dr_json_str(object, "qmp_path", NULL));
  plan->console_path = g_strdup(dr_json_str(object, "console_path", NULL));
  plan->migration_path = g_strdup(dr_json_str(object, "migration_path", NULL));
  plan->exit_path = g_strdup(dr_json_str(object, "exit_path", NULL));
  plan->mark_path = g_strdup(dr_json_str(object, "mark_path", NULL));
  plan->console = dr_json_bool(object, "console", FALSE);
  plan->was_running = dr_json_bool(object, "was_running", TRUE);
  plan->revert = dr_json_bool(object, "revert", FALSE);
  plan->cold = dr_json_bool(object, "cold", FALSE);
  dr_memory_mode_parse(dr_json_str(object, "mode", "shared"), &plan->mode, NULL);
  plan->shared_after = dr_json_bool(object, "shared_after", FALSE);
  plan->argv = dr_json_strv(dr_json_arr(object, "argv"));
  plan->machine = g_strdup(dr_json_str(object, "machine", NULL));
  plan->version = g_strdup(dr_json_str(object, "version", NULL));
  plan->renames = renames_read(dr_json_arr(object, "renames"));
  plan->forwards = array_or_empty(object, "forwards");
  plan->vnc = array_or_empty(object, "vnc");
  plan->taps = array_or_empty(object, "taps");
  plan->pidfile = g_strdup(dr_json_str(object, "pidfile", NULL));
  plan->gdb = g_strdup(dr_json_str(object, "gdb", NULL));
}

void
dr_upgrade_plan_clear(DrUpgradePlan *plan)
{
  g_free(plan->source_qmp);
  g_free(plan->source_console);
  g_free(plan->source_exit);
  g_free(plan->version_before);
  g_free(plan->qmp_path);
  g_free(plan->console_path);
  g_free(plan->migration_path);
  g_free(plan->exit_path);
  g_free(plan->mark_path);
  g_strfreev(plan->argv);
  g_free(plan->machine);
  g_free(plan->version);
  g_clear_pointer(&plan->renames, g_ptr_array_unref);
  g_clear_pointer(&plan->forwards, json_array_unref);
  g_clear_pointer(&plan->vnc, json_array_unref);
  g_clear_pointer(&plan->taps, json_array_unref);
  g_free(plan->pidfile);
  g_free(plan->gdb);
  *plan = (DrUpgradePlan){ 0 };
}
