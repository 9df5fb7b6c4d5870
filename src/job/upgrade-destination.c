/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The new QEMU: what it is handed, how it is started, and whether it is the same machine. */
#include "base/error.h"
#include "base/fd.h"
#include "job/tap-queues.h"
#include "job/upgrade-internal.h"
#include "qemu/spawn.h"
#include "vm/console.h"
#include "vm/describe.h"
#include "vm/user.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

#define START_MS 30000  /* a QEMU with many disks on a loaded host */
#define FIRST_NUMBER 20 /* of descriptors that we number; others keep theirs */

/* --- What it is handed --- */

static gboolean
is_handed(const DrUpgrade *u, int number)
{
  for (guint i = 0; i < u->numbers->len; i++)
    if (g_array_index(u->numbers, int, i) == number)
      return TRUE;
  return FALSE;
}

static gboolean
is_taken(DrUpgrade *u, int number)
{
  if (is_handed(u, number))
    return TRUE;
  for (guint i = 0; i < u->pre->needs->len; i++)
    if (((DrNeed *)u->pre->needs->pdata[i])->fd == number)
      return TRUE;
  return FALSE;
}

int
dr_upgrade_hand(DrUpgrade *u, int fd, int number)
{
  for (int n = FIRST_NUMBER; number < 0; n++)
    if (!is_taken(u, n))
      number = n;
  g_array_append_val(u->fds, fd);
  g_array_append_val(u->numbers, number);
  return number;
}

static const DrProcFd *
find_fd(const GPtrArray *open, int number)
{
  for (guint i = 0; i < open->len; i++)
    if (((DrProcFd *)open->pdata[i])->fd == number)
      return open->pdata[i];
  return NULL;
}

static gboolean
hand_by_number(DrUpgrade *u, const DrNeed *need, const GPtrArray *open, GError **error)
{
  const DrProcFd *info = find_fd(open, need->fd);
  int fd;

  if (is_handed(u, need->fd))
    return TRUE;
  fd = dr_proc_get_fd(&u->plan.source, need->fd, error);
  if (fd < 0)
    return FALSE;
  dr_upgrade_hand(u, fd, need->fd);
  if (info && info->tap_ifname)
    dr_upgrade_add_tap(u, fd, info->fd, info->tap_ifname);
  return TRUE;
}

static gboolean
hand_vhost(DrUpgrade *u, const DrNeed *need, const GPtrArray *open_fds, GError **error)
{
  const DrProcFd *info = find_fd(open_fds, need->fd);
  int fd;

  if (is_handed(u, need->fd))
    return TRUE;
  if (!info || !g_str_equal(info->link, "/dev/vhost-net"))
    return hand_by_number(u, need, open_fds, error); /* something else, which can be shared or QEMU says so */
  fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);
  if (fd < 0) {
    dr_error_set_errno(error, errno, "cannot open '/dev/vhost-net' for the new QEMU");
    return dr_error_remedy(error, "load the module vhost_net, and run droverd as root");
  }
  dr_upgrade_hand(u, fd, need->fd);
  return TRUE;
}

/* QEMU copies what -add-fd names, and closes the number of the command line. */
static int
number_in_set(DrUpgrade *u, const DrNeed *need, GError **error)
{
  g_autoptr(JsonArray) sets = dr_qmp_call_array(u->source, "query-fdsets", NULL, error);

  for (guint i = 0; sets && i < json_array_get_length(sets); i++) {
    JsonObject *set = json_array_get_object_element(sets, i);
    JsonArray *fds = dr_json_arr(set, "fds");
    guint n = fds ? json_array_get_length(fds) : 0;

    /* QEMU puts each new one in front. */
    if (dr_json_int(set, "fdset-id", -1) == need->set && need->nth < n)
      return (int)dr_json_int(json_array_get_object_element(fds, n - 1 - need->nth), "fd", -1);
  }
  if (sets)
    dr_error_set(error, DR_ERROR_UNSUPPORTED,
                 "descriptor %d of set %" G_GINT64_FORMAT " is not there any more", need->fd, need->set);
  return -1;
}

static gboolean
hand_fdset(DrUpgrade *u, const DrNeed *need, GError **error)
{
  int number, fd;

  if (is_handed(u, need->fd))
    return TRUE;
  number = number_in_set(u, need, error);
  fd = number < 0 ? -1 : dr_proc_get_fd(&u->plan.source, number, error);
  if (fd < 0)
    return FALSE;
  dr_upgrade_hand(u, fd, need->fd);
  return TRUE;
}

/* What it prints goes where the old one's goes. */
static gboolean
hand_output(DrUpgrade *u, GError **error)
{
  for (int number = 1; number <= 2; number++) {
    int fd = dr_proc_get_fd(&u->plan.source, number, error);

    if (fd < 0)
      return FALSE;
    dr_upgrade_hand(u, fd, number);
  }
  return TRUE;
}

static gboolean
hand_queues(DrUpgrade *u, DrNeed *need, const GPtrArray *queues, GError **error)
{
  for (guint i = 0; i < queues->len; i++) {
    const DrProcFd *info = queues->pdata[i];
    int fd = dr_proc_get_fd(&u->plan.source, info->fd, error);
    int number;

    if (fd < 0)
      return FALSE;
    number = dr_upgrade_hand(u, fd, -1);
    g_array_append_val(need->numbers, number);
    dr_upgrade_add_tap(u, fd, info->fd, info->tap_ifname);
  }
  return TRUE;
}

static gboolean
hand_needs(DrUpgrade *u, GError **error)
{
  g_autofree char *doing = g_strdup_printf("upgrade VM '%s'", dr_vm_name(u->vm));
  g_autoptr(GPtrArray) open = dr_proc_fds(u->plan.source.pid, error);
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autoptr(GHashTable) queues = NULL;

  if (!open)
    return FALSE;
  queues = dr_tap_queues(u->pre->needs, dr_inventory_taps(u->pre->inventory), open, findings);
  if (dr_findings_block(findings))
    return dr_findings_to_error(findings, doing, error);
  for (guint i = 0; i < u->pre->needs->len; i++) {
    DrNeed *need = u->pre->needs->pdata[i];
    int fd, number;

    switch (need->kind) {
    case DR_NEED_FD:
      if (!hand_by_number(u, need, open, error))
        return FALSE;
      break;
    case DR_NEED_VHOST:
      if (!hand_vhost(u, need, open, error))
        return FALSE;
      break;
    case DR_NEED_FDSET:
      if (!hand_fdset(u, need, error))
        return FALSE;
      break;
    case DR_NEED_TAP:
      if (!hand_queues(u, need, g_hash_table_lookup(queues, need), error))
        return FALSE;
      break;
    case DR_NEED_TCP_LISTENER:
      fd = dr_proc_get_tcp_listener(&u->plan.source, need->port, error);
      if (fd < 0)
        return FALSE;
      number = dr_upgrade_hand(u, fd, -1);
      g_array_append_val(need->numbers, number);
      break;
    }
  }
  return TRUE;
}

/* --- RAM --- */

/* The pages of the source, or new ones of the same size; -1 on error. The source's own descriptor also where the command line
 * names a file: that may be another one by now, as empty as the guest's memory would be. */
static int
pages_for(DrUpgrade *u, const DrRamBlock *ram, GError **error)
{
  const DrVmRecord *record = dr_vm_record(u->vm);
  guint64 hugepage = ram->hugepage ? ram->hugepage : record->hugepage;

  if (u->plan.mode != DR_MEMORY_SHARED)
    return dr_memory_create(record->name, ram->id, ram->size, hugepage, error);
  return dr_proc_get_fd(&u->plan.source, ram->fd, error);
}

/* Which blocks go onto descriptors. RAM that the user wants private stays as the command line has it. */
static gboolean
plan_ram(DrUpgrade *u, GArray *ret_ram, GError **error)
{
  const DrVmRecord *record = dr_vm_record(u->vm);

  u->plan.shared_after = u->plan.mode == DR_MEMORY_SHARED || record->want_shared;
  if (!u->plan.shared_after)
    return TRUE;
  for (guint i = 0; i < u->pre->ram->len; i++) {
    const DrRamBlock *ram = u->pre->ram->pdata[i];
    DrRewriteRam plan = { .id = ram->id, .size = ram->size };
    int fd = pages_for(u, ram, error);
    int copy;

    if (fd < 0)
      return FALSE;
    copy = dup(fd);
    if (copy >= 0)
      g_array_append_val(u->ram_fds, copy);
    plan.fd = dr_upgrade_hand(u, fd, -1);
    g_array_append_val(ret_ram, plan);
  }
  return TRUE;
}

/* --- Starting it --- */

/* Where the source's VNC server listens in truth, if it has just one (",to=" may have moved it). */
static void
real_vnc(DrUpgrade *u, DrVncAddress *vnc)
{
  g_autoptr(JsonObject) info = u->source ? dr_qmp_call_object(u->source, "query-vnc", NULL, NULL) : NULL;
  const char *service = info ? dr_json_str(info, "service", NULL) : NULL;

  if (!service)
    return;
  g_free(vnc->port);
  vnc->port = g_strdup(service);
}

static JsonArray *
vnc_json(DrUpgrade *u, GPtrArray *addresses)
{
  JsonArray *array = json_array_new();

  for (guint i = 0; i < addresses->len; i++) {
    DrVncAddress *vnc = addresses->pdata[i];

    if (vnc->range && addresses->len == 1)
      real_vnc(u, vnc);
    json_array_add_object_element(array, dr_json("{'id': <%s>, 'host': <%s>, 'port': <%s>}",
                                                 vnc->id ? vnc->id : "default", vnc->host, vnc->port));
  }
  return array;
}

/* Files of earlier upgrades that could not be removed then: exit files of slow keepers, marks of commits that could not be
 * written to the state file. */
static void
remove_old(const char *directory, const char *prefix, const char *current)
{
  g_autoptr(GDir) dir = g_dir_open(directory, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    g_autofree char *path = g_build_filename(directory, name, NULL);

    if (g_str_has_prefix(name, prefix) && g_strcmp0(path, current) != 0)
      unlink(path);
  }
}

/* Both QEMUs listen on one socket, and each lets go of it while somebody is connected to it (tcp_chr_connect() in chardev/char-socket.c): who
 * is connected to the old one gets the new one with the next connection. Beside it QEMU's user can make a socket for the migration. */
static void
name_foreign_paths(DrUpgrade *u)
{
  const char *monitor = dr_vm_record(u->vm)->qmp_path;
  g_autofree char *dir = g_path_get_dirname(monitor);

  u->plan.foreign = TRUE;
  u->plan.qmp_path = g_strdup(monitor);
  u->plan.migration_path = g_strdup_printf("%s/drover-%u", dir, u->plan.generation);
}

static gboolean
name_paths(DrUpgrade *u, GError **error)
{
  const DrVmRecord *record = dr_vm_record(u->vm);
  g_autofree char *run_dir = dr_host_run_dir(u->host, record->name, error);
  g_autofree char *state_dir = run_dir ? dr_host_state_dir(u->host, record->name, error) : NULL;
  g_autofree char *sockets =
      state_dir ? dr_host_socket_dir(u->host, record->name, u->pre->truth, NULL, error) : NULL;

  if (!sockets)
    return FALSE;
  remove_old(state_dir, "exit.", record->exit_path);
  remove_old(run_dir, "chosen.", NULL);
  u->plan.generation = record->generation + 1;
  if (record->foreign) {
    name_foreign_paths(u);
  } else {
    u->plan.qmp_path = g_strdup_printf("%s/qmp.%u", run_dir, u->plan.generation);
    u->plan.migration_path = g_strdup_printf("%s/migration.%u", sockets, u->plan.generation);
  }
  u->plan.console_path = g_strdup_printf("%s/console.%u", run_dir, u->plan.generation);
  u->plan.mark_path = g_strdup_printf("%s/chosen.%u", run_dir, u->plan.generation);
  u->plan.exit_path = g_strdup_printf("%s/exit.%u", state_dir, u->plan.generation);
  return TRUE;
}

/* On the command line they are relative to QEMU's directory; it is droverd that renames them. */
static void
make_absolute(char **path, const char *cwd)
{
  char *absolute = g_canonicalize_filename(*path, cwd);

  g_free(*path);
  *path = absolute;
}

static GPtrArray *
absolute_renames(DrUpgrade *u, const DrRewrite *rewrite)
{
  for (guint i = 0; i < rewrite->renames->len; i++) {
    DrRename *item = rewrite->renames->pdata[i];

    make_absolute(&item->private_path, dr_vm_record(u->vm)->cwd);
    make_absolute(&item->public_path, dr_vm_record(u->vm)->cwd);
  }
  return g_ptr_array_ref(rewrite->renames);
}

static gboolean
write_argv(DrUpgrade *u, GArray *ram, GError **error)
{
  g_autofree char *suffix = g_strdup_printf(".drover-%u", u->plan.generation);
  g_autofree char *doing = g_strdup_printf("upgrade VM '%s'", dr_vm_name(u->vm));
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autoptr(DrRewrite) rewrite = NULL;
  DrRewritePlan plan = {
    .program = u->pre->keep_program ? NULL : u->pre->binary,
    .incoming = TRUE,
    .suffix = suffix,
    .foreign = u->plan.foreign,
    .qmp_path = u->plan.qmp_path,
    .console_path = u->plan.console_path,
    .ram = (DrRewriteRam *)(void *)ram->data,
    .n_ram = ram->len,
    .switchover = dr_describe_switchover(u->pre->caps, u->pre->machine),
    .needs = u->pre->needs,
  };

  rewrite = dr_rewrite(u->pre->truth, &plan, findings, error);
  if (!rewrite)
    return FALSE;
  if (dr_findings_block(findings))
    return dr_findings_to_error(findings, doing, error);
  if (u->plan.cold)
    dr_argv_remove_all(rewrite->argv, "incoming"); /* it boots, once it is told to run */
  u->plan.argv = dr_argv_to_strv(rewrite->argv);
  u->plan.console = rewrite->console;
  u->plan.renames = absolute_renames(u, rewrite);
  u->plan.vnc = vnc_json(u, rewrite->vnc);
  u->plan.pidfile = g_strdup(rewrite->pidfile);
  u->plan.gdb = g_strdup(rewrite->gdb);
  u->plan.machine = g_strdup(u->pre->machine);
  return TRUE;
}

static gboolean
spawn_it(DrUpgrade *u, GError **error)
{
  const DrVmRecord *record = dr_vm_record(u->vm);
  g_autoptr(DrWorld) world = u->plan.foreign ? dr_world_read(&u->plan.source, error) : NULL;
  struct stat log = { 0 };
  DrSpawn spawn = {
    .vm = record->name,
    .argv = u->plan.argv,
    .envp = record->env,
    .cwd = record->cwd,
    .log_path = record->log_path,
    .world = world,
    .exit_path = u->plan.exit_path,
    .fds = (int *)(void *)u->fds->data,
    .numbers = (int *)(void *)u->numbers->data,
    .n_fds = u->fds->len,
  };

  if (u->plan.foreign && !world)
    return FALSE;
  u->log_from = stat(record->log_path, &log) == 0 ? log.st_size : 0;
  dr_upgrade_remove_leftovers(u); /* of an earlier try under the same generation */
  return dr_spawn(&spawn, &u->dest_id, error);
}

void
dr_upgrade_add_log(DrUpgrade *u, GError **error)
{
  g_autofree char *tail = dr_log_tail(dr_vm_record(u->vm)->log_path, u->log_from, 600);

  g_strstrip(tail);
  if (*tail && error && *error) {
    g_autofree char *message = g_strdup_printf("%s (the new QEMU said: %s)", (*error)->message, tail);

    g_free((*error)->message);
    (*error)->message = g_steal_pointer(&message);
  }
}

/* Waits until there is a monitor to connect to. FALSE: cancelled. */
static gboolean
await_monitor(DrUpgrade *u, int pidfd, DrDeadline deadline, GError **error)
{
  struct pollfd fds[] = { { .fd = dr_job_cancel_fd(u->job), .events = POLLIN },
                          { .fd = pidfd, .events = POLLIN } };

  while (access(u->plan.qmp_path, F_OK) < 0 && !dr_deadline_passed(deadline) && !fds[1].revents)
    if (poll(fds, G_N_ELEMENTS(fds), 1) > 0 && fds[0].revents)
      return dr_error_set(error, DR_ERROR_CANCELLED, "cancelled while the new QEMU was starting");
  return TRUE;
}

static gboolean
tell_failed_start(DrUpgrade *u, GError **error)
{
  g_autofree char *status = dr_upgrade_exit_status(u->plan.exit_path, &u->dest_id);

  if (status) {
    g_clear_error(error);
    dr_error_set(error, DR_ERROR_CLOSED, "it ended before it was ready: %s", status);
  }
  g_prefix_error(error, "cannot start the new QEMU for VM '%s': ", dr_vm_name(u->vm));
  dr_upgrade_add_log(u, error);
  if (error && !dr_error_get_remedy(*error))
    dr_error_remedy(error, "see %s; the guest runs on under its old QEMU", dr_vm_record(u->vm)->log_path);
  return FALSE;
}

/* Where both listen on one socket, it tells nothing; the threads of a QEMU do. */
static gboolean
is_it(DrUpgrade *u, GError **error)
{
  if (!u->plan.foreign)
    return dr_describe_is_process(u->dest, &u->dest_id, u->plan.argv[0], error);
  return dr_upgrade_answers_for(u->dest, &u->dest_id) ||
         dr_error_set(error, DR_ERROR_INTERNAL, "another process than the new QEMU answers at '%s'",
                      u->plan.qmp_path);
}

static gboolean
connect_it(DrUpgrade *u, GError **error)
{
  dr_autofd int pidfd = dr_proc_open(&u->dest_id, error); /* it may have ended already */
  DrDeadline deadline = dr_deadline_in(START_MS);

  if (pidfd >= 0 && !await_monitor(u, pidfd, deadline, error))
    return FALSE;
  u->dest = pidfd < 0 ? NULL : dr_qmp_await(u->plan.qmp_path, pidfd, deadline, error);
  if (!u->dest || !is_it(u, error))
    return tell_failed_start(u, error);
  u->watched = TRUE;
  dr_qmp_set_cancel_fd(u->dest, dr_job_cancel_fd(u->job));
  u->plan.version = g_strdup(dr_qmp_version(u->dest));
  return TRUE;
}

/* From what it is handed to a QEMU that answers. */
static gboolean
launch(DrUpgrade *u, GError **error)
{
  g_autoptr(GArray) ram = g_array_new(FALSE, FALSE, sizeof(DrRewriteRam));
  JsonObject *who;

  if (!plan_ram(u, ram, error) || !write_argv(u, ram, error) || !dr_upgrade_guard_taps(u, error))
    return FALSE;
  if (!dr_job_enter(u->job, DR_STAGE_START, dr_upgrade_plan_write(&u->plan), error))
    return FALSE;
  u->memory_before = dr_upgrade_memory(u);
  if (!spawn_it(u, error))
    return FALSE;
  dr_job_hold(u->job, DR_STEP_SPAWNED);
  who = dr_json("{'pid': <%x>, 'start_time': <%x>}", (gint64)u->dest_id.pid, (gint64)u->dest_id.start_time);
  return dr_job_enter(u->job, DR_STAGE_VERIFY, who, error) && connect_it(u, error);
}

static gboolean
settle_in(DrUpgrade *u, GError **error)
{
  return dr_upgrade_check_confined(u, error) && dr_upgrade_place_threads(u, error) &&
         dr_upgrade_tell_settings(u, error);
}

gboolean
dr_upgrade_start_destination(DrUpgrade *u, GError **error)
{
  u->plan.mode = u->pre->mode;
  u->plan.was_running = u->pre->was_running;
  u->plan.forwards = dr_upgrade_forwards(u);
  if (!name_paths(u, error) || !hand_needs(u, error) || (u->plan.foreign && !hand_output(u, error)) ||
      !launch(u, error) || (u->plan.foreign && !settle_in(u, error)))
    return FALSE;
  if (u->guard && dr_tap_guard_stop(u->guard))
    g_debug("VM '%s': the tap's header was put back under the new QEMU", dr_vm_name(u->vm));
  return TRUE;
}

gboolean
dr_upgrade_start_arrival(DrUpgrade *u, DrUpgradeNeedsFunc make_needs, GError **error)
{
  u->plan.mode = DR_MEMORY_COPY;
  u->plan.was_running = u->pre->was_running;
  return name_paths(u, error) && make_needs(u, error) && launch(u, error);
}

/* Where the new QEMU has the console: drover's own, or that of the user's which somebody reads through drover just now. */
static const char *
next_console(DrUpgrade *u)
{
  const char *path = dr_vm_record(u->vm)->console_path;

  if (u->plan.console)
    return u->plan.console_path;
  for (guint i = 0; path && dr_console_is_open(dr_vm_console(u->vm)) && i < u->plan.renames->len; i++) {
    const DrRename *item = u->plan.renames->pdata[i];

    if (g_str_equal(item->public_path, path))
      return item->private_path;
  }
  return NULL;
}

gboolean
dr_upgrade_prepare_console(DrUpgrade *u, GError **error)
{
  return dr_console_prepare(dr_vm_console(u->vm), next_console(u), error);
}

gboolean
dr_upgrade_verify_destination(DrUpgrade *u, GError **error)
{
  g_autoptr(DrInventory) inventory = dr_inventory_read(u->dest, error);
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autofree char *doing =
      g_strdup_printf("upgrade VM '%s', the new QEMU is another machine", dr_vm_name(u->vm));
  gboolean same;

  if (!inventory)
    return FALSE;
  dr_inventory_compare(u->pre->inventory, inventory, findings);
  same = !dr_findings_block(findings);
  if (!same)
    dr_findings_to_error(findings, doing, error);
  dr_findings_merge(u->pre->findings, findings);
  dr_job_set_findings(u->job, u->pre->findings);
  if (!same)
    return FALSE;
  return dr_upgrade_prepare_console(u, error);
}
