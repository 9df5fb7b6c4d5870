/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Asking a QEMU, running or just its binary, what a VM is. */
#include "vm/describe.h"
#include "base/error.h"
#include "qemu/memory.h"

#include <string.h>
#include <unistd.h>

#define KILL_MS 10000

gboolean
dr_describe_is_process(DrQmp *qmp, const DrProcId *id, const char *program, GError **error)
{
  pid_t peer = dr_qmp_peer_pid(qmp);
  DrProcId real;

  if (peer == 0 || peer == id->pid)
    return TRUE;
  if (dr_proc_identify(peer, &real, NULL))
    dr_proc_kill(&real, KILL_MS, NULL);
  dr_error_set(error, DR_ERROR_UNSUPPORTED,
               "'%s' does not become QEMU, but starts it as a child (pid %d of pid %d)", program, peer,
               id->pid);
  return dr_error_remedy(error, "let the wrapper script end with: exec qemu-system-x86_64 \"$@\"");
}

gboolean
dr_describe(DrVm *vm, DrQmp *qmp, GError **error)
{
  DrVmRecord *record = dr_vm_record(vm);
  g_autofree char *machine = dr_qmp_qom_str(qmp, "/machine", "type", error);
  g_autoptr(JsonObject) uuid = machine ? dr_qmp_call_object(qmp, "query-uuid", NULL, error) : NULL;

  if (!uuid)
    return FALSE;
  if (g_str_has_suffix(machine, "-machine"))
    machine[strlen(machine) - strlen("-machine")] = '\0';
  dr_vm_lock(vm);
  g_free(record->machine);
  record->machine = g_steal_pointer(&machine);
  g_free(record->uuid);
  record->uuid = g_strdup(dr_json_str(uuid, "UUID", ""));
  g_free(record->qemu_version);
  record->qemu_version = g_strdup(dr_qmp_version(qmp));
  dr_vm_unlock(vm);
  return TRUE;
}

gboolean
dr_describe_memory(DrVm *vm, DrQmp *qmp, GError **error)
{
  DrVmRecord *record = dr_vm_record(vm);
  g_autoptr(GPtrArray) blocks = dr_memory_blocks(qmp, &record->id, error);

  if (!blocks)
    return FALSE;
  record->shared = blocks->len > 0;
  for (guint i = 0; i < blocks->len; i++) {
    const DrRamBlock *ram = blocks->pdata[i];

    if (ram->in_use && ram->kind == DR_RAM_ANONYMOUS)
      record->shared = FALSE;
  }
  return TRUE;
}

char *
dr_describe_program(const char *program, const DrVmRecord *record)
{
  const char *path = g_environ_getenv(record->env, "PATH");
  g_auto(GStrv) dirs = NULL;

  if (strchr(program, '/'))
    return g_canonicalize_filename(program, record->cwd);
  dirs = g_strsplit(path ? path : "/usr/local/bin:/usr/bin:/bin", ":", -1);
  for (char **dir = dirs; *dir; dir++) {
    g_autofree char *candidate = g_build_filename(*dir, program, NULL);

    if (access(candidate, X_OK) == 0)
      return g_steal_pointer(&candidate);
  }
  return g_strdup(program);
}

/* The machine type that a QEMU starts without -machine. */
static const char *
default_machine(const DrCaps *caps)
{
  const char *pc = g_hash_table_lookup(caps->machines, "pc");

  return pc ? pc : "none";
}

gboolean
dr_describe_is_versioned(const char *machine)
{
  for (const char *at = machine; *at; at++)
    if (g_ascii_isdigit(at[0]) && at[1] == '.' && g_ascii_isdigit(at[2]))
      return TRUE;
  return FALSE;
}

DrSwitchover
dr_describe_switchover(const DrCaps *caps, const char *machine)
{
  const char *canonical = machine ? g_hash_table_lookup(caps->machines, machine) : NULL;

  if (caps->version_number < DR_QEMU(10, 0))
    return DR_SWITCHOVER_UNKNOWN;
  return canonical && !dr_describe_is_versioned(canonical) ? DR_SWITCHOVER_OFF : DR_SWITCHOVER_AS_GIVEN;
}

char *
dr_describe_ram_id(const DrArgv *argv, const char *type, DrHost *host, const DrVmRecord *record,
                   GError **error)
{
  g_autofree char *program = dr_describe_program(dr_argv_program(argv), record);
  g_autoptr(DrCaps) caps = NULL;
  const char *canonical;

  if (dr_argv_launcher(argv)[0]) {
    dr_error_set(error, DR_ERROR_INVALID, "cannot start a VM through '%s'", dr_argv_launcher(argv)[0]);
    dr_error_remedy(error, "name the QEMU binary itself, or a wrapper script that execs it");
    return NULL;
  }
  caps = dr_caps_get(program, host->cache_dir, error);
  if (!caps)
    return NULL;
  canonical = type ? g_hash_table_lookup(caps->machines, type) : default_machine(caps);
  if (!canonical) {
    dr_error_set(error, DR_ERROR_INVALID, "machine type '%s' is not known to %s %s", type, program,
                 caps->version);
    dr_error_remedy(error, "%s -machine help lists them", program);
    return NULL;
  }
  return g_strdup(g_hash_table_lookup(caps->default_ram_ids, canonical));
}
