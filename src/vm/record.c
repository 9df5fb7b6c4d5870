/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One table says how each field of a record is stored; three loops use it. */
#include "vm/record.h"
#include "base/error.h"
#include "base/fd.h"

#include <string.h>

#define RECORD_FILE "record.json"
#define RECORD_MAX (16 * 1024 * 1024)

typedef enum { TEXT, WORDS, FLAG, NUMBER, SIZE } Kind;

static const struct {
  const char *name;
  Kind kind;
  gsize offset;
} fields[] = {
#define FIELD(name, kind)                                                                                    \
  {                                                                                                          \
#name, kind, G_STRUCT_OFFSET(DrVmRecord, name)                                                           \
  }
  FIELD(uuid, TEXT),         FIELD(adopted, FLAG),
  FIELD(cwd, TEXT),          FIELD(env, WORDS),
  FIELD(argv_given, WORDS),  FIELD(argv_running, WORDS),
  FIELD(generation, NUMBER), FIELD(boot_id, TEXT),
  FIELD(qmp_path, TEXT),     FIELD(borrowed, FLAG),
  FIELD(console_path, TEXT), FIELD(exit_path, TEXT),
  FIELD(log_path, TEXT),     FIELD(want_shared, FLAG),
  FIELD(hugepage, SIZE),     FIELD(public_sockets, WORDS),
  FIELD(shared, FLAG),       FIELD(machine, TEXT),
  FIELD(qemu_version, TEXT), FIELD(state, TEXT),
  FIELD(exit_text, TEXT),    FIELD(note, TEXT),
  FIELD(upgrades, NUMBER),   FIELD(stream, TEXT),
  FIELD(foreign, FLAG),
#undef FIELD
};

JsonObject *
dr_vm_record_write(const DrVmRecord *record)
{
  JsonObject *object = json_object_new();

  for (guint i = 0; i < G_N_ELEMENTS(fields); i++) {
    gconstpointer at = G_STRUCT_MEMBER_P(record, fields[i].offset);

    switch (fields[i].kind) {
    case TEXT:
      json_object_set_string_member(object, fields[i].name, *(char *const *)at);
      break;
    case WORDS:
      json_object_set_array_member(object, fields[i].name,
                                   dr_json_array_from_strv(*(const char *const *const *)at));
      break;
    case FLAG:
      json_object_set_boolean_member(object, fields[i].name, *(const gboolean *)at);
      break;
    case NUMBER:
      json_object_set_int_member(object, fields[i].name, *(const guint *)at);
      break;
    case SIZE:
      json_object_set_int_member(object, fields[i].name, (gint64) * (const guint64 *)at);
      break;
    }
  }
  json_object_set_int_member(object, "pid", record->id.pid);
  json_object_set_int_member(object, "start_time", (gint64)record->id.start_time);
  return object;
}

void
dr_vm_record_read(DrVmRecord *record, JsonObject *object)
{
  for (guint i = 0; i < G_N_ELEMENTS(fields); i++) {
    gpointer at = G_STRUCT_MEMBER_P(record, fields[i].offset);
    const char *name = fields[i].name;

    switch (fields[i].kind) {
    case TEXT:
      g_free(*(char **)at);
      *(char **)at = g_strdup(dr_json_str(object, name, NULL));
      break;
    case WORDS:
      g_strfreev(*(char ***)at);
      *(char ***)at = dr_json_strv(dr_json_arr(object, name));
      break;
    case FLAG:
      *(gboolean *)at = dr_json_bool(object, name, FALSE);
      break;
    case NUMBER:
      *(guint *)at = (guint)dr_json_int(object, name, 0);
      break;
    case SIZE:
      *(guint64 *)at = (guint64)dr_json_int(object, name, 0);
      break;
    }
  }
  record->id.pid = (pid_t)dr_json_int(object, "pid", 0);
  record->id.start_time = (guint64)dr_json_int(object, "start_time", 0);
  if (!record->state)
    record->state = g_strdup("stopped");
}

void
dr_vm_record_clear(DrVmRecord *record)
{
  for (guint i = 0; i < G_N_ELEMENTS(fields); i++) {
    gpointer at = G_STRUCT_MEMBER_P(record, fields[i].offset);

    if (fields[i].kind == TEXT)
      g_clear_pointer((char **)at, g_free);
    else if (fields[i].kind == WORDS)
      g_clear_pointer((char ***)at, g_strfreev);
  }
  g_clear_pointer(&record->name, g_free);
}

void
dr_vm_record_keep(DrHost *host, const char *vm, JsonObject *object)
{
  g_autofree char *path = g_build_filename(host->state_dir, "vms", vm, RECORD_FILE, NULL);
  g_autofree char *text = dr_json_print_object(object, FALSE);
  g_autoptr(GError) error = NULL;

  if (!dr_file_write(path, text, &error))
    g_debug("VM '%s': %s", vm, error->message);
}

void
dr_vm_record_drop(DrHost *host, const char *vm)
{
  g_autofree char *path = g_build_filename(host->state_dir, "vms", vm, RECORD_FILE, NULL);

  unlink(path);
}

static gboolean
is_of(JsonObject *record, const DrProcId *id)
{
  return dr_json_int(record, "pid", 0) == id->pid &&
         dr_json_int(record, "start_time", 0) == (gint64)id->start_time &&
         g_str_equal(dr_json_str(record, "boot_id", ""), dr_boot_id());
}

JsonObject *
dr_vm_record_find(DrHost *host, const DrProcId *id)
{
  g_autofree char *base = g_build_filename(host->state_dir, "vms", NULL);
  g_autoptr(GDir) dir = g_dir_open(base, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    g_autofree char *path = g_build_filename(base, name, RECORD_FILE, NULL);
    g_autofree char *text = dr_file_read(path, RECORD_MAX, NULL, NULL);
    g_autoptr(JsonObject) record = text ? dr_json_parse_object(text, -1, RECORD_MAX, NULL) : NULL;

    if (record && is_of(record, id))
      return g_steal_pointer(&record);
  }
  return NULL;
}

static void
show_all(const DrVmRecord *record, JsonObject *object)
{
  json_object_set_array_member(object, "argv_given",
                               dr_json_array_from_strv((const char *const *)record->argv_given));
  json_object_set_array_member(object, "argv_running",
                               dr_json_array_from_strv((const char *const *)record->argv_running));
  json_object_set_string_member(object, "cwd", record->cwd);
  json_object_set_string_member(object, "qmp", record->qmp_path);
  json_object_set_string_member(object, "console", record->console_path);
  json_object_set_string_member(object, "log", record->log_path);
  json_object_set_string_member(object, "exit", record->exit_text);
  json_object_set_string_member(object, "note", record->note);
  json_object_set_int_member(object, "upgrades", record->upgrades);
}

JsonObject *
dr_vm_record_show(const DrVmRecord *record, gint64 job, gboolean all)
{
  JsonObject *object = json_object_new();
  g_autofree char *job_id = job > 0 ? g_strdup_printf("%" G_GINT64_FORMAT, job) : NULL;
  gboolean lives = !g_str_equal(record->state, "stopped");

  json_object_set_string_member(object, "name", record->name);
  json_object_set_string_member(object, "state", record->state);
  if (lives)
    json_object_set_int_member(object, "pid", record->id.pid);
  else
    json_object_set_null_member(object, "pid");
  json_object_set_string_member(object, "qemu_version", record->qemu_version);
  json_object_set_string_member(object, "machine", record->machine);
  json_object_set_string_member(object, "uuid", record->uuid);
  json_object_set_string_member(object, "memory_mode", record->shared ? "shared" : "private");
  json_object_set_boolean_member(object, "adopted", record->adopted);
  json_object_set_string_member(object, "job", job_id);
  if (all)
    show_all(record, object);
  return object;
}

const char *
dr_boot_id(void)
{
  static char *id;

  if (g_once_init_enter(&id)) {
    char *text = dr_file_read("/proc/sys/kernel/random/boot_id", 100, NULL, NULL);

    g_once_init_leave(&id, text ? g_strstrip(text) : g_strdup("unknown"));
  }
  return id;
}

static char *
directory(const char *base, const char *vm, GError **error)
{
  g_autofree char *path = g_build_filename(base, "vms", vm, NULL);

  return dr_mkdir(path, 0700, error) ? g_steal_pointer(&path) : NULL;
}

char *
dr_host_run_dir(DrHost *host, const char *vm, GError **error)
{
  return directory(host->run_dir, vm, error);
}

char *
dr_host_state_dir(DrHost *host, const char *vm, GError **error)
{
  return directory(host->state_dir, vm, error);
}

void
dr_host_remove_empty(DrHost *host, const char *vm)
{
  g_autofree char *run_dir = g_build_filename(host->run_dir, "vms", vm, NULL);
  g_autofree char *state_dir = g_build_filename(host->state_dir, "vms", vm, NULL);

  rmdir(run_dir);
  rmdir(state_dir);
}
