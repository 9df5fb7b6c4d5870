/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Taking over a QEMU that somebody else started, by its pid or by its QMP socket. It is asked, never changed. */
#include "argv/argv.h"
#include "base/error.h"
#include "base/fd.h"
#include "vm/describe.h"
#include "vm/record.h"
#include "vm/start.h"

#include <string.h>

#define CONNECT_MS 5000

/* The state file and the API are JSON, which has no place for other bytes. */
static gboolean
words_are_utf8(const DrVmRecord *record, GError **error)
{
  for (char **word = record->argv_given; *word; word++) {
    g_autofree char *shown = NULL;

    if (g_utf8_validate(*word, -1, NULL))
      continue;
    shown = g_utf8_make_valid(*word, -1);
    dr_error_set(error, DR_ERROR_UNSUPPORTED, "word %d of the command line of pid %d is not UTF-8: '%s'",
                 (int)(word - record->argv_given) + 1, record->id.pid, shown);
    return dr_error_remedy(error, "restart it with words and file names that are UTF-8");
  }
  return TRUE;
}

/* Without the variables that are not UTF-8, as drover run does it. */
static char **
readable_environment(pid_t pid, GError **error)
{
  g_auto(GStrv) all = dr_proc_environ(pid, error);
  g_autoptr(GStrvBuilder) kept = g_strv_builder_new();

  if (!all)
    return NULL;
  for (char **one = all; *one; one++) {
    if (g_utf8_validate(*one, -1, NULL))
      g_strv_builder_add(kept, *one);
    else
      g_message("pid %d: environment variable %.*s is not UTF-8, and its next QEMU will not have it",
                (int)pid, (int)strcspn(*one, "="), *one);
  }
  return g_strv_builder_end(kept);
}

/* Reads what /proc says of the process into the record. */
static gboolean
read_process(DrVmRecord *record, GError **error)
{
  pid_t pid = record->id.pid;
  g_autoptr(DrArgv) argv = NULL;

  record->argv_given = dr_proc_cmdline(pid, error);
  if (!record->argv_given || !words_are_utf8(record, error))
    return FALSE;
  argv = dr_argv_parse((const char *const *)record->argv_given, error);
  if (!argv) {
    g_prefix_error(error, "pid %d is not a QEMU that drover understands: ", pid);
    return FALSE;
  }
  record->argv_running = g_strdupv(record->argv_given);
  record->env = readable_environment(pid, error);
  if (!record->env)
    return FALSE;
  record->cwd = dr_proc_cwd(pid, error);
  if (!record->cwd || g_utf8_validate(record->cwd, -1, NULL))
    return record->cwd != NULL;
  return dr_error_set(error, DR_ERROR_UNSUPPORTED, "the working directory of pid %d is not UTF-8", pid);
}

static gboolean
looks_like_qemu(const DrVmRecord *record, GError **error)
{
  g_autoptr(DrArgv) argv = dr_argv_parse((const char *const *)record->argv_given, NULL);
  g_autofree char *base = g_path_get_basename(argv ? dr_argv_program(argv) : record->argv_given[0]);

  if (strstr(base, "qemu") || strstr(base, "kvm"))
    return TRUE;
  dr_error_set(error, DR_ERROR_INVALID, "pid %d is no QEMU: it runs '%s'", record->id.pid,
               record->argv_given[0]);
  return dr_error_remedy(error, "ps -C qemu-system-x86_64 -o pid,args lists the QEMUs of this host");
}

/* The unix sockets on which this command line has QMP. */
static GPtrArray *
qmp_sockets(const DrArgv *argv, const char *cwd)
{
  GPtrArray *paths = g_ptr_array_new_with_free_func(g_free);

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, NULL, opt));) {
    g_autoptr(DrChardev) chardev = NULL;

    if (g_str_equal(opt->info->name, "qmp") || g_str_equal(opt->info->name, "qmp-pretty")) {
      chardev = dr_opt_parse_chardev(opt, NULL);
    } else if (g_str_equal(opt->info->name, "mon")) {
      g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
      const char *mode = opts ? dr_opts_get(opts, "mode") : NULL;
      DrOpt *target = mode && g_str_equal(mode, "control")
                          ? dr_argv_find_id(argv, "chardev", dr_opts_get(opts, "chardev"))
                          : NULL;

      chardev = target ? dr_opt_parse_chardev(target, NULL) : NULL;
    }
    if (chardev && chardev->kind == DR_CHARDEV_UNIX && chardev->server && chardev->path)
      g_ptr_array_add(paths, g_canonicalize_filename(chardev->path, cwd));
  }
  return paths;
}

/* Tries the sockets of the command line; the last error counts, for it is what the user can mend. */
static DrQmp *
connect_any(DrVmRecord *record, GError **error)
{
  g_autoptr(DrArgv) argv = dr_argv_parse((const char *const *)record->argv_given, error);
  g_autoptr(GPtrArray) paths = argv ? qmp_sockets(argv, record->cwd) : NULL;
  g_autoptr(GError) last = NULL;

  if (!paths)
    return NULL;
  for (guint i = 0; i < paths->len; i++) {
    DrQmp *qmp;

    g_clear_error(&last);
    qmp = dr_qmp_connect(paths->pdata[i], FALSE, dr_deadline_in(CONNECT_MS), &last);
    if (qmp) {
      record->qmp_path = g_strdup(paths->pdata[i]);
      return qmp;
    }
  }
  if (last) {
    g_propagate_error(error, g_steal_pointer(&last));
    return NULL;
  }
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "pid %d has no QMP socket on its command line", record->id.pid);
  dr_error_remedy(error,
                  "only a QEMU that was started with -qmp unix:PATH,server=on,wait=off can be adopted");
  return NULL;
}

static DrQmp *
by_pid(DrVmRecord *record, GError **error)
{
  record->argv_given = dr_proc_cmdline(record->id.pid, error);
  if (!record->argv_given || !words_are_utf8(record, error) || !looks_like_qemu(record, error))
    return NULL;
  g_clear_pointer(&record->argv_given, g_strfreev);
  return read_process(record, error) ? connect_any(record, error) : NULL;
}

static gboolean
by_socket(DrVmRecord *record, const char *path, GError **error)
{
  record->qmp_path = g_strdup(path);
  return read_process(record, error) && looks_like_qemu(record, error);
}

/* The process behind the monitor must be the one whose command line was read, or the two would be mixed up. */
static gboolean
check_peer(const DrVmRecord *record, DrQmp *qmp, GError **error)
{
  pid_t peer = dr_qmp_peer_pid(qmp);

  if (peer == record->id.pid)
    return TRUE;
  dr_error_set(error, DR_ERROR_INVALID, "the QMP socket '%s' belongs to pid %d, not to pid %d",
               record->qmp_path, peer, record->id.pid);
  return dr_error_remedy(error, "adopt it by the pid of the QEMU that listens there");
}

static void
find_console(DrVmRecord *record)
{
  g_autoptr(DrArgv) argv = dr_argv_parse((const char *const *)record->argv_given, NULL);
  DrOpt *serial = argv ? dr_argv_find(argv, "serial", 0) : NULL;
  g_autoptr(DrChardev) chardev = serial ? dr_opt_parse_chardev(serial, NULL) : NULL;

  if (chardev && chardev->kind == DR_CHARDEV_REF) {
    DrOpt *target = dr_argv_find_id(argv, "chardev", chardev->id);

    g_clear_pointer(&chardev, dr_chardev_free);
    chardev = target ? dr_opt_parse_chardev(target, NULL) : NULL;
  }
  if (chardev && chardev->kind == DR_CHARDEV_UNIX && chardev->server && chardev->path)
    record->console_path = g_canonicalize_filename(chardev->path, record->cwd);
}

/* The highest of the QEMUs whose files are there: one that drover had before and that was forgotten while it ran. */
static guint
last_generation(const char *run_dir)
{
  g_autoptr(GDir) dir = g_dir_open(run_dir, 0, NULL);
  guint64 last = 1, number;
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    const char *dot = strrchr(name, '.');

    if (dot && g_ascii_string_to_unsigned(dot + 1, 10, 1, 1000000, &number, NULL))
      last = MAX(last, number);
  }
  return (guint)last;
}

static gboolean
complete(DrVm *vm, DrQmp *qmp, GError **error)
{
  DrVmRecord *record = dr_vm_record(vm);
  g_autofree char *state_dir = dr_host_state_dir(dr_vm_host(vm), record->name, error);
  g_autofree char *run_dir = state_dir ? dr_host_run_dir(dr_vm_host(vm), record->name, error) : NULL;

  if (!run_dir || !check_peer(record, qmp, error))
    return FALSE;
  record->log_path = g_build_filename(state_dir, "qemu.log", NULL);
  record->adopted = record->borrowed = TRUE;
  record->want_shared = TRUE; /* its first upgrade puts its RAM where the next one can take it over */
  record->generation = last_generation(run_dir);
  find_console(record);
  return dr_describe(vm, qmp, error) && dr_describe_memory(vm, qmp, error) && dr_vm_save(vm, error) &&
         dr_vm_watch(vm, error);
}

/* Its command line is not the VM's, and what the VM is was lost. */
static gboolean
is_not_drovers(const DrVmRecord *record, GError **error)
{
  g_autoptr(DrArgv) argv = dr_argv_parse((const char *const *)record->argv_given, NULL);

  if (!argv || !dr_argv_find_id(argv, "chardev", "drover-qmp"))
    return TRUE;
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "pid %d was started by a drover whose record of it is not here",
               record->id.pid);
  return dr_error_remedy(error, "start droverd with the --state-dir and --run-dir that it had then");
}

/* A QEMU that somebody else started. `qmp`, consumed: the monitor, where it was named (`socket`). */
static gboolean
take_over(DrVm *vm, DrQmp *qmp, const char *socket, GError **error)
{
  DrVmRecord *record = dr_vm_record(vm);

  if (!qmp)
    qmp = by_pid(record, error);
  else if (!by_socket(record, socket, error))
    g_clear_pointer(&qmp, dr_qmp_free);
  if (!qmp)
    return FALSE;
  if (!is_not_drovers(record, error) || !complete(vm, qmp, error)) {
    dr_qmp_free(qmp);
    return FALSE;
  }
  dr_vm_refresh(vm, qmp);
  dr_vm_give(vm, qmp);
  return TRUE;
}

/* A QEMU that drover had before: all is as it was, under the name that is wanted now. */
static gboolean
take_up(DrVm *vm, JsonObject *kept, GError **error)
{
  DrVmRecord *record = dr_vm_record(vm);
  g_autofree char *state_dir = dr_host_state_dir(dr_vm_host(vm), record->name, error);
  g_autofree char *run_dir = state_dir ? dr_host_run_dir(dr_vm_host(vm), record->name, error) : NULL;
  DrQmp *qmp;

  if (!run_dir)
    return FALSE;
  dr_vm_record_read(record, kept);
  dr_vm_attach(vm);
  qmp = dr_vm_take(vm, "drover adopt", CONNECT_MS, error);
  if (!qmp)
    return FALSE;
  dr_vm_give(vm, qmp);
  return dr_vm_save(vm, error);
}

/* Connects to a socket once only: a second connection might not find room in its queue. */
static gboolean
adopt_it(DrVm *vm, pid_t pid, const char *socket, GError **error)
{
  g_autoptr(DrQmp) qmp = socket ? dr_qmp_connect(socket, FALSE, dr_deadline_in(CONNECT_MS), error) : NULL;
  g_autoptr(JsonObject) kept = NULL;
  DrVmRecord *record = dr_vm_record(vm);

  if ((socket && !qmp) || !dr_proc_identify(qmp ? dr_qmp_peer_pid(qmp) : pid, &record->id, error))
    return FALSE;
  kept = dr_vm_record_find(dr_vm_host(vm), &record->id);
  if (!kept)
    return take_over(vm, g_steal_pointer(&qmp), socket, error);
  g_clear_pointer(&qmp, dr_qmp_free); /* the record says which monitor is drover's */
  return take_up(vm, kept, error);
}

/* What libvirt gives its QEMUs (virCommandAddEnvPassCommon() and qemu_command.c). A process can change its environment as it likes, and a
 * wrapper script adds what is the next QEMU's own business (QEMU_MODULE_DIR). `env` is consumed. */
static char **
trusted_environment(char **env)
{
  static const char *const names[] = {
    "PATH",   "HOME",          "USER",           "LOGNAME",         "TMPDIR",         "LANG",
    "LC_ALL", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "QEMU_AUDIO_DRV", "SDL_AUDIODRIVER"
  };
  char **kept = NULL;

  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    const char *value = g_environ_getenv(env, names[i]);

    if (value)
      kept = g_environ_setenv(kept, names[i], value, TRUE);
  }
  g_strfreev(env);
  return kept ? kept : g_new0(char *, 1);
}

static gboolean
read_foreign(DrVm *vm, const DrProcId *id, const char *qmp_path, const char *log_path, GError **error)
{
  DrVmRecord *record = dr_vm_record(vm);
  g_autofree char *state_dir = dr_host_state_dir(dr_vm_host(vm), record->name, error);
  g_autofree char *run_dir = state_dir ? dr_host_run_dir(dr_vm_host(vm), record->name, error) : NULL;

  record->id = *id;
  record->foreign = record->adopted = record->borrowed = record->want_shared = TRUE;
  record->generation = 1;
  record->log_path = g_strdup(log_path);
  record->qmp_path = g_strdup(qmp_path);
  if (!run_dir || !read_process(record, error))
    return FALSE;
  record->env = trusted_environment(record->env);
  return dr_vm_save(vm, error) && dr_vm_watch(vm, error);
}

DrVm *
dr_vm_adopt_foreign(DrHost *host, const char *name, const DrProcId *id, const char *qmp_path,
                    const char *log_path, GError **error)
{
  g_autoptr(DrVm) vm = dr_vm_new(host, name);

  if (read_foreign(vm, id, qmp_path, log_path, error))
    return g_steal_pointer(&vm);
  dr_vm_detach(vm);
  return NULL;
}

gboolean
dr_vm_describe_foreign(DrVm *vm, GError **error)
{
  DrQmp *qmp = dr_vm_take(vm, "drover adopt", CONNECT_MS, error);
  gboolean good =
      qmp && dr_describe(vm, qmp, error) && dr_describe_memory(vm, qmp, error) && dr_vm_save(vm, error);

  if (good)
    dr_vm_refresh(vm, qmp);
  if (qmp)
    dr_vm_give(vm, qmp);
  return good;
}

static gboolean
check_request(JsonObject *request, GError **error)
{
  const char *socket = dr_json_str(request, "qmp", NULL);
  gint64 pid = dr_json_int(request, "pid", 0);

  if (!socket == !json_object_has_member(request, "pid"))
    return dr_error_set(error, DR_ERROR_INVALID, "name it by its pid or by its QMP socket, one of them");
  if (!socket && (pid <= 0 || pid > G_MAXINT))
    return dr_error_set(error, DR_ERROR_INVALID, "%" G_GINT64_FORMAT " is no pid", pid);
  if (socket && !g_path_is_absolute(socket))
    return dr_error_set(error, DR_ERROR_INVALID, "the QMP socket '%s' is not an absolute path", socket);
  return TRUE;
}

DrVm *
dr_vm_adopt(DrHost *host, JsonObject *request, GError **error)
{
  const char *name = dr_json_str(request, "name", NULL);
  g_autoptr(DrVm) vm = NULL;

  if (!dr_vm_check_name(name, error))
    return NULL;
  vm = dr_vm_new(host, name);
  if (check_request(request, error)) {
    if (adopt_it(vm, (pid_t)dr_json_int(request, "pid", 0), dr_json_str(request, "qmp", NULL), error))
      return g_steal_pointer(&vm);
    dr_error_not_the_words(error);
    dr_vm_detach(vm);
    dr_store_drop_vm(host->store, name, NULL);
    dr_host_remove_empty(host, name);
  }
  g_prefix_error(error, "cannot adopt '%s': ", name);
  return NULL;
}
