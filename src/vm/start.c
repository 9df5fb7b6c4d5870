/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* run and attach; adopt is in adopt.c. */
#include "vm/start.h"
#include "vm/user.h"
#include "argv/rewrite.h"
#include "base/error.h"
#include "base/fd.h"
#include "qemu/memory.h"
#include "qemu/spawn.h"
#include "vm/console.h"
#include "vm/describe.h"
#include "vm/record.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define START_MS 30000
#define MEMORY_FD 20 /* the number that the RAM memfd has in the first QEMU */
#define END_MS 5000
#define EXIT_FILE_MS 1000
#define FIND_MS 3000
#define DEFAULT_RAM (128ull << 20)

typedef struct {
  DrVm *vm;
  DrArgv *given;
  DrRewrite *rewrite;
  char *ram_id; /* nullable: RAM stays as the command line has it */
  guint64 ram_size;
  int ram_fd;
  goffset log_from; /* -1: not started yet */
} Start;

static void
start_clear(Start *s)
{
  g_clear_pointer(&s->given, dr_argv_free);
  g_clear_pointer(&s->rewrite, dr_rewrite_free);
  g_free(s->ram_id);
  if (s->ram_fd >= 0)
    close(s->ram_fd);
  dr_vm_unref(s->vm);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Start, start_clear)

/* --- What to start --- */

static gboolean
check_environment(char **env, GError **error)
{
  for (; *env; env++)
    if (!strchr(*env, '=') || **env == '=')
      return dr_error_set(error, DR_ERROR_INVALID, "'%.80s' is no environment variable: NAME=VALUE", *env);
  return TRUE;
}

static gboolean
read_request(Start *s, JsonObject *request, GError **error)
{
  DrVmRecord *record = dr_vm_record(s->vm);
  const char *memory = dr_json_str(request, "memory", "shared");

  record->argv_given = dr_json_strv(dr_json_arr(request, "argv"));
  if (!record->argv_given || !record->argv_given[0])
    return dr_error_set(error, DR_ERROR_INVALID,
                        "no command line was given: drover run NAME -- qemu-system-x86_64 …");
  if (!g_str_equal(memory, "shared") && !g_str_equal(memory, "private"))
    return dr_error_set(error, DR_ERROR_INVALID, "'%s' is no kind of memory: shared or private", memory);
  record->want_shared = g_str_equal(memory, "shared");
  record->hugepage = dr_json_bool(request, "hugetlb", FALSE) ? dr_memory_hugepage() : 0;
  record->cwd = g_strdup(dr_json_str(request, "cwd", "/"));
  record->env = dr_json_strv(dr_json_arr(request, "env"));
  if (!record->env)
    record->env = g_get_environ();
  if (!check_environment(record->env, error))
    return FALSE;
  if (!g_path_is_absolute(record->cwd))
    return dr_error_set(error, DR_ERROR_INVALID, "the working directory '%s' is not an absolute path",
                        record->cwd);
  s->given = dr_argv_parse((const char *const *)record->argv_given, error);
  return s->given != NULL;
}

/* The RAM block that QEMU would make for -m, by machine type: "pc.ram", "microvm.ram"; NULL where the command line says
 * itself where RAM comes from. */
static char *
default_ram(const DrArgv *argv, DrHost *host, const DrVmRecord *record, GError **error)
{
  g_autoptr(DrOpts) machine = dr_argv_effective(argv, "machine", NULL);
  const char *type = machine ? dr_opts_get(machine, "type") : NULL;

  if ((machine && dr_opts_has(machine, "memory-backend")) || dr_argv_has(argv, "mem-path"))
    return NULL;
  for (DrOpt *numa = NULL; (numa = dr_argv_next(argv, "numa", numa));)
    if (strstr(numa->value, "memdev="))
      return NULL;
  return dr_describe_ram_id(argv, type, host, record, error);
}

static gboolean
plan_ram(Start *s, GError **error)
{
  DrVmRecord *record = dr_vm_record(s->vm);
  g_autoptr(DrOpts) memory = dr_argv_effective(s->given, "m", NULL);
  g_autoptr(GError) local = NULL;

  if (!record->want_shared)
    return TRUE;
  s->ram_id = default_ram(s->given, dr_vm_host(s->vm), record, &local);
  if (local) {
    g_propagate_error(error, g_steal_pointer(&local));
    return FALSE;
  }
  s->ram_size = DEFAULT_RAM;
  if (memory && !dr_opts_get_size(memory, "size", DEFAULT_RAM, &s->ram_size, error))
    return FALSE;
  if (s->ram_size == 0)
    s->ram_size = DEFAULT_RAM;                      /* as QEMU takes -m 0 */
  s->ram_size = (s->ram_size + 8191) / 8192 * 8192; /* as QEMU rounds it */
  if (!s->ram_id)
    return TRUE;
  s->ram_fd = dr_memory_create(record->name, s->ram_id, s->ram_size, record->hugepage, error);
  return s->ram_fd >= 0;
}

static gboolean
somebody_listens(const char *path)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  dr_autofd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

  g_strlcpy(address.sun_path, path, sizeof address.sun_path);
  return fd >= 0 && (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 || errno == EAGAIN);
}

/* A VM of the same name that was forgotten while it ran still has its sockets there. */
static gboolean
is_unused(const char *run_dir, const char *vm, GError **error)
{
  g_autoptr(GDir) dir = g_dir_open(run_dir, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    g_autofree char *path = g_build_filename(run_dir, name, NULL);

    if (!g_str_has_prefix(name, "qmp.") || !somebody_listens(path))
      continue;
    dr_error_set(error, DR_ERROR_EXISTS, "a QEMU that was forgotten under this name still listens on '%s'",
                 path);
    return dr_error_remedy(error, "choose another name, or take it up again: drover adopt %s --qmp %s", vm,
                           path);
  }
  return TRUE;
}

static gboolean
has_user(const DrVmRecord *record)
{
  g_autoptr(DrArgv) argv =
      record->argv_given ? dr_argv_parse((const char *const *)record->argv_given, NULL) : NULL;
  uid_t uid;
  gid_t gid;

  return argv && dr_qemu_user(argv, &uid, &gid);
}

static gboolean
name_paths(DrVm *vm, GError **error)
{
  DrVmRecord *record = dr_vm_record(vm);
  g_autofree char *run_dir = dr_host_run_dir(dr_vm_host(vm), record->name, error);
  g_autofree char *state_dir = run_dir ? dr_host_state_dir(dr_vm_host(vm), record->name, error) : NULL;

  if (!state_dir || !is_unused(run_dir, record->name, error))
    return FALSE;
  record->generation = 1;
  record->qmp_path = g_strdup_printf("%s/qmp.1", run_dir);
  record->exit_path = g_strdup_printf("%s/exit.1", state_dir);
  record->log_path = g_strdup_printf("%s/qemu.log", state_dir);
  if (strlen(run_dir) + strlen(has_user(record) ? "/own/migration.9999.999" : "/migration.9999") >= 107) {
    dr_error_set(error, DR_ERROR_INVALID,
                 "the run directory '%s' is too long for a socket's path (107 bytes)", run_dir);
    return dr_error_remedy(error, "give the VM a shorter name, or droverd a shorter --run-dir");
  }
  return TRUE;
}

/* A QEMU that is told nothing here sends what an older one cannot read. What cannot be asked about itself will say so
 * when it is started. */
static DrSwitchover
plan_switchover(Start *s)
{
  DrVmRecord *record = dr_vm_record(s->vm);
  g_autoptr(DrOpts) machine = dr_argv_effective(s->given, "machine", NULL);
  const char *type = machine ? dr_opts_get(machine, "type") : NULL;
  g_autofree char *program = dr_describe_program(dr_argv_program(s->given), record);
  g_autoptr(DrCaps) caps = NULL;

  if (!type || dr_describe_is_versioned(type) || dr_argv_launcher(s->given)[0])
    return DR_SWITCHOVER_AS_GIVEN;
  caps = dr_caps_get(program, dr_vm_host(s->vm)->cache_dir, NULL);
  return caps && caps->version_number >= DR_QEMU(10, 0) ? dr_describe_switchover(caps, type)
                                                        : DR_SWITCHOVER_AS_GIVEN;
}

static gboolean
write_argv(Start *s, GError **error)
{
  DrVmRecord *record = dr_vm_record(s->vm);
  g_autofree char *console = g_strdup_printf(
      "%.*s/console.1", (int)(strrchr(record->qmp_path, '/') - record->qmp_path), record->qmp_path);
  g_autoptr(DrFindings) findings = dr_findings_new();
  DrRewriteRam ram = { .id = s->ram_id, .size = s->ram_size, .fd = MEMORY_FD };
  DrRewritePlan plan = { .qmp_path = record->qmp_path,
                         .console_path = console,
                         .ram = &ram,
                         .n_ram = s->ram_id ? 1 : 0,
                         .switchover = plan_switchover(s) };

  s->rewrite = dr_rewrite(s->given, &plan, findings, error);
  if (!s->rewrite)
    return FALSE;
  record->argv_running = dr_argv_to_strv(s->rewrite->argv);
  if (s->rewrite->console)
    record->console_path = g_steal_pointer(&console);
  else if (s->rewrite->console_public)
    record->console_path = g_canonicalize_filename(s->rewrite->console_public, record->cwd);
  return TRUE;
}

/* --- Starting it --- */

static gboolean
spawn_it(Start *s, GError **error)
{
  DrVmRecord *record = dr_vm_record(s->vm);
  int number = MEMORY_FD;
  struct stat log = { 0 };
  DrSpawn spawn = {
    .vm = record->name,
    .argv = record->argv_running,
    .envp = record->env,
    .cwd = record->cwd,
    .log_path = record->log_path,
    .exit_path = record->exit_path,
    .fds = &s->ram_fd,
    .numbers = &number,
    .n_fds = s->ram_fd >= 0 ? 1 : 0,
  };

  s->log_from = stat(record->log_path, &log) == 0 ? log.st_size : 0;
  unlink(record->qmp_path);
  unlink(record->exit_path);
  return dr_spawn(&spawn, &record->id, error);
}

/* Its keeper writes it right after the end. (transfer full) (nullable) */
static char *
await_exit(const DrVmRecord *record)
{
  DrDeadline deadline = dr_deadline_in(EXIT_FILE_MS);
  char *text = NULL;

  while (!dr_spawn_read_exit(record->exit_path, &record->id, &text, NULL) && !dr_deadline_passed(deadline))
    g_usleep(5000);
  return text;
}

/* What QEMU itself said counts most; one that says nothing has at least ended in some way. */
static void
tell_why(Start *s, const GError *cause, GError **error)
{
  DrVmRecord *record = dr_vm_record(s->vm);
  g_autofree char *tail = dr_log_tail(record->log_path, s->log_from, 800);
  g_autofree char *ended = NULL;

  if (*g_strstrip(tail)) {
    dr_error_set(error, DR_ERROR_UNSUPPORTED, "QEMU said: %s", tail);
    if (strstr(tail, "waiting for connection"))
      dr_error_remedy(error,
                      "add wait=off to that socket: QEMU goes on only when somebody has connected to it");
    return;
  }
  if (!g_error_matches(cause, DR_ERROR, DR_ERROR_CLOSED) &&
      !g_error_matches(cause, DR_ERROR, DR_ERROR_NOT_FOUND)) {
    dr_error_set(error, DR_ERROR_UNSUPPORTED, "%s", cause->message);
    return;
  }
  ended = await_exit(record);
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "QEMU ended before it was ready, without a word%s%s",
               ended ? ": it " : "", ended ? ended : "");
}

static DrQmp *
connect_it(Start *s, GError **error)
{
  DrVmRecord *record = dr_vm_record(s->vm);
  g_autoptr(GError) local = NULL;
  dr_autofd int pidfd = dr_proc_open(&record->id, &local); /* it may have ended already */
  g_autoptr(DrQmp) qmp =
      pidfd < 0 ? NULL : dr_qmp_await(record->qmp_path, pidfd, dr_deadline_in(START_MS), &local);

  if (!qmp) {
    tell_why(s, local, error);
    return NULL;
  }
  return dr_describe_is_process(qmp, &record->id, record->argv_running[0], error) ? g_steal_pointer(&qmp)
                                                                                  : NULL;
}

/* A QEMU that is asked to end removes its sockets itself. */
static void
end_it(const DrVmRecord *record)
{
  dr_autofd int fd = dr_proc_open(&record->id, NULL);
  struct pollfd end = { .fd = fd, .events = POLLIN };

  if (fd >= 0 && (pidfd_send_signal(fd, SIGTERM, NULL, 0) < 0 || poll(&end, 1, END_MS) <= 0))
    dr_proc_kill(&record->id, END_MS, NULL);
  g_free(await_exit(record)); /* or the file would come after we have looked for it */
}

/* Leaves what was there before, if anything was. */
static void
undo(Start *s)
{
  DrVmRecord *record = dr_vm_record(s->vm);

  if (record->id.pid)
    end_it(record);
  unlink(record->qmp_path);
  unlink(record->exit_path);
  if (record->console_path && s->rewrite && s->rewrite->console)
    unlink(record->console_path);
  if (s->log_from == 0)
    unlink(record->log_path);
  dr_vm_record_drop(dr_vm_host(s->vm), record->name);
}

static void
write_pidfile(Start *s)
{
  DrVmRecord *record = dr_vm_record(s->vm);
  g_autofree char *text = g_strdup_printf("%d\n", record->id.pid);
  g_autoptr(GError) error = NULL;

  if (!s->rewrite->pidfile)
    return;
  g_autofree char *path = g_canonicalize_filename(s->rewrite->pidfile, record->cwd);
  if (!dr_file_write(path, text, &error))
    g_warning("VM '%s': %s", record->name, error->message);
}

static gboolean
start_it(Start *s, GError **error)
{
  DrVmRecord *record = dr_vm_record(s->vm);
  DrQmp *qmp;

  if (!spawn_it(s, error))
    return FALSE;
  qmp = connect_it(s, error);
  if (!qmp)
    return FALSE;
  if (!dr_describe(s->vm, qmp, error) || (!s->ram_id && !dr_describe_memory(s->vm, qmp, error)) ||
      !dr_vm_save(s->vm, error) || !dr_vm_watch(s->vm, error)) {
    dr_qmp_free(qmp);
    return FALSE;
  }
  dr_vm_refresh(s->vm, qmp);
  if (s->rewrite->console && !dr_console_open(dr_vm_console(s->vm), record->console_path, error)) {
    dr_qmp_free(qmp);
    return FALSE;
  }
  write_pidfile(s);
  dr_vm_give(s->vm, qmp);
  return TRUE;
}

/* It is on record before it runs: a state file that cannot be written must not cost a guest that has begun to boot, and a
 * droverd that is killed meanwhile must find it again. */
static gboolean
put_on_record(Start *s, GError **error)
{
  dr_vm_record(s->vm)->shared = s->ram_id != NULL;
  return dr_vm_save(s->vm, error);
}

static gboolean
make_it(Start *s, GError **error)
{
  if (plan_ram(s, error) && write_argv(s, error) && put_on_record(s, error) && start_it(s, error))
    return TRUE;
  dr_vm_detach(s->vm); /* first, or its end would be noted in the state file */
  undo(s);
  return FALSE;
}

DrVm *
dr_vm_run(DrHost *host, JsonObject *request, DrVmPrepare prepare, gpointer data, GError **error)
{
  g_auto(Start) s = { .ram_fd = -1, .log_from = -1 };
  const char *name = dr_json_str(request, "name", NULL);

  if (!dr_vm_check_name(name, error))
    return NULL;
  s.vm = dr_vm_new(host, name);
  if (read_request(&s, request, error) && (!prepare || prepare(dr_vm_record(s.vm), s.given, data, error))) {
    if (name_paths(s.vm, error) && make_it(&s, error))
      return g_steal_pointer(&s.vm);
    dr_error_not_the_words(error);
    dr_store_drop_vm(host->store, name, NULL);
    dr_host_remove_empty(host, name);
  }
  g_prefix_error(error, "cannot run VM '%s': ", name);
  return NULL;
}

/* --- After droverd was away --- */

static void
attach_console(DrVm *vm)
{
  DrVmRecord *record = dr_vm_record(vm);
  g_autofree char *own = g_strdup_printf("%s/vms/", dr_vm_host(vm)->run_dir);
  g_autoptr(GError) error = NULL;

  if (record->console_path && g_str_has_prefix(record->console_path, own) &&
      !dr_console_is_open(dr_vm_console(vm)) &&
      !dr_console_open(dr_vm_console(vm), record->console_path, &error))
    g_warning("VM '%s': %s", record->name, error->message);
}

/* A VM whose start an earlier droverd did not see to its end: its process is the one that listens on its monitor. */
static gboolean
find_process(DrVmRecord *record)
{
  DrDeadline deadline = dr_deadline_in(FIND_MS);
  pid_t pid;

  while ((pid = dr_qmp_listener(record->qmp_path)) == 0 && !dr_deadline_passed(deadline))
    g_usleep(20000);
  return pid && dr_proc_identify(pid, &record->id, NULL);
}

void
dr_vm_attach(DrVm *vm)
{
  DrVmRecord *record = dr_vm_record(vm);
  g_autoptr(GError) error = NULL;
  DrQmp *qmp;

  if (g_str_equal(record->state, "stopped"))
    return;
  if (record->id.pid == 0 && find_process(record))
    g_message("VM '%s': an earlier droverd was ended while it started, and it runs (pid %d)", record->name,
              record->id.pid);
  if (!dr_vm_check(vm) || !dr_vm_watch(vm, &error)) {
    g_message("VM '%s' %s while droverd was away", record->name,
              record->exit_text ? record->exit_text : "ended");
    dr_vm_save(vm, NULL);
    return;
  }
  qmp = dr_vm_take(vm, "droverd's start", 5000, &error);
  if (!qmp) {
    g_warning("VM '%s' runs (pid %d), but its monitor does not answer: %s", record->name, record->id.pid,
              error->message);
    return;
  }
  if (!record->machine && (!dr_describe(vm, qmp, &error) || !dr_vm_save(vm, &error)))
    g_warning("VM '%s': %s", record->name, error->message);
  dr_vm_refresh(vm, qmp);
  dr_vm_give(vm, qmp);
  attach_console(vm);
}
