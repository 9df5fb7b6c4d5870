/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Starts QEMU through drover-keeper and reads what the keeper wrote down at its end. */
#include "qemu/spawn.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"
#include "keeper/order.h"
#include "qemu/child.h"
#include "qemu/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#ifndef DROVER_LIBEXECDIR
#define DROVER_LIBEXECDIR "/usr/libexec/drover"
#endif

#define START_MS 10000 /* fork and exec; a binary on a slow network file system takes its time */
#define MAX_EXIT 4096

/* Beside this program as installed or built, in the build tree as seen from src/ and from tests/unit/, installed. */
static char *
find_keeper(void)
{
  static const char *const places[] = { "drover-keeper", "keeper/drover-keeper", "../keeper/drover-keeper",
                                        "../src/keeper/drover-keeper", "../../src/keeper/drover-keeper" };
  const char *given = g_getenv("DROVER_KEEPER");
  g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
  g_autofree char *dir = g_path_get_dirname(self ? self : "/");

  if (given && given[0])
    return g_strdup(given);
  for (guint i = 0; i < G_N_ELEMENTS(places); i++) {
    g_autofree char *path = g_build_filename(dir, places[i], NULL);

    if (access(path, X_OK) == 0)
      return g_steal_pointer(&path);
  }
  return g_strdup(DROVER_LIBEXECDIR "/drover-keeper");
}

/* ---- The order ---- */

static void
append_string(GByteArray *bytes, const char *text)
{
  g_byte_array_append(bytes, (const guint8 *)text, strlen(text) + 1);
}

static GByteArray *
write_order(const DrSpawn *spawn, const char *program)
{
  GByteArray *bytes = g_byte_array_new();
  struct dr_keeper_order head = { .magic = DR_KEEPER_MAGIC,
                                  .n_fds = spawn->n_fds,
                                  .argc = g_strv_length(spawn->argv),
                                  .envc = spawn->envp ? g_strv_length(spawn->envp) : 0 };
  const char *label_file = "", *label = "";

  if (spawn->world)
    dr_world_write(spawn->world, &head.world, &label_file, &label);

  g_byte_array_append(bytes, (const guint8 *)&head, sizeof head);
  if (spawn->n_fds)
    g_byte_array_append(bytes, (const guint8 *)spawn->numbers, spawn->n_fds * sizeof(int));
  append_string(bytes, program);
  append_string(bytes, spawn->cwd ? spawn->cwd : "/");
  append_string(bytes, label_file);
  append_string(bytes, label);
  for (guint i = 0; i < head.argc; i++)
    append_string(bytes, spawn->argv[i]);
  for (guint i = 0; i < head.envc; i++)
    append_string(bytes, spawn->envp[i]);
  ((struct dr_keeper_order *)bytes->data)->size = bytes->len;
  return bytes;
}

G_STATIC_ASSERT(sizeof(int) == sizeof(gint32));

static int
open_order(const DrSpawn *spawn, const char *program, GError **error)
{
  g_autoptr(GByteArray) bytes = write_order(spawn, program);
  dr_autofd int fd = memfd_create("drover-order", MFD_CLOEXEC);

  if (fd >= 0 && write(fd, bytes->data, bytes->len) == (gssize)bytes->len)
    return dr_fd_steal(&fd);
  dr_error_set_errno(error, errno, "cannot hand the command line to the keeper");
  return -1;
}

static gboolean
check_request(const DrSpawn *spawn, GError **error)
{
  if (!spawn->argv || !spawn->argv[0] || !spawn->argv[0][0])
    return dr_error_set(error, DR_ERROR_INVALID, "cannot start QEMU: the command line is empty");
  if (spawn->exit_path[0] != '/')
    return dr_error_set(error, DR_ERROR_INTERNAL, "exit path '%s' is not absolute", spawn->exit_path);
  for (guint i = 0; i < spawn->n_fds; i++) {
    if (spawn->numbers[i] < (spawn->world ? 1 : 3) || spawn->fds[i] < 0)
      return dr_error_set(error, DR_ERROR_INTERNAL, "descriptor %d cannot be handed down as number %d",
                          spawn->fds[i], spawn->numbers[i]);
    for (guint j = 0; j < i; j++)
      if (spawn->numbers[i] == spawn->numbers[j])
        return dr_error_set(error, DR_ERROR_INTERNAL, "two descriptors for number %d", spawn->numbers[i]);
  }
  return TRUE;
}

/* ---- Starting ---- */

static int
open_log(const DrSpawn *spawn, GError **error)
{
  int fd = open(spawn->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);

  if (fd < 0)
    dr_error_set_errno(error, errno, "cannot open log file '%s'", spawn->log_path);
  return fd;
}

/* Starts the keeper; what is returned is where it will report, or -1. */
static int
start_keeper(const DrSpawn *spawn, const char *keeper, const char *program, GError **error)
{
  const GArray *world = spawn->world ? dr_world_fds(spawn->world) : NULL;
  guint n_world = world ? world->len : 0;
  g_autofree int *fds = g_new(int, DR_KEEPER_FDS + spawn->n_fds + n_world);
  dr_autofd int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  dr_autofd int log = open_log(spawn, error);
  dr_autofd int order = log < 0 ? -1 : open_order(spawn, program, error);
  dr_autofd int read_end = -1, write_end = -1;
  DrChild child = { .path = keeper,
                    .argv = (char *[]){ (char *)"drover-keeper", (char *)spawn->exit_path, NULL },
                    .envp = (char *[]){ NULL },
                    .fds = fds,
                    .n_fds = DR_KEEPER_FDS + spawn->n_fds + n_world };
  int both[2], err;
  pid_t pid;

  if (order < 0)
    return -1;
  if (null_fd < 0 || pipe2(both, O_CLOEXEC) < 0) {
    dr_error_set_errno(error, errno, "cannot start the keeper");
    return -1;
  }
  read_end = both[0];
  write_end = both[1];
  memcpy(fds, (int[]){ null_fd, log, log, order, write_end }, DR_KEEPER_FDS * sizeof(int));
  if (spawn->n_fds)
    memcpy(fds + DR_KEEPER_FDS, spawn->fds, spawn->n_fds * sizeof(int));
  if (n_world)
    memcpy(fds + DR_KEEPER_FDS + spawn->n_fds, world->data, n_world * sizeof(int));
  err = dr_child_start(&child, &pid);
  if (err) {
    dr_error_set_errno(error, err, "cannot start '%s'", keeper);
    dr_error_remedy(error, err == ENOENT || err == EACCES ? "reinstall drover: this program belongs to it"
                                                          : "see dmesg");
    return -1;
  }
  /* It forks the one that stays and ends at once. */
  while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
    ;
  return dr_fd_steal(&read_end);
}

/* One read(2) by the deadline: 0 at the end of the pipe, -1 when the time is over. */
static gssize
read_by(int fd, void *buffer, gsize size, DrDeadline deadline)
{
  struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
  gssize n;

  do
    n = poll(&poll_fd, 1, dr_deadline_left(deadline));
  while (n < 0 && errno == EINTR);
  if (n <= 0)
    return -1;
  do
    n = read(fd, buffer, size);
  while (n < 0 && errno == EINTR);
  return n;
}

/* Reads the keeper's answer. Giving up is safe: who then reports into a closed pipe kills the QEMU that it started. */
static gboolean
read_report(int fd, const char *program, struct dr_keeper_report *ret_report, GError **error)
{
  DrDeadline deadline = dr_deadline_in(START_MS);
  gssize n = read_by(fd, ret_report, sizeof *ret_report, deadline);
  char end;

  if (n == sizeof *ret_report) {
    /* The pipe is the last thing that the keeper closes: from then on it holds nothing of ours. */
    read_by(fd, &end, 1, deadline);
    return TRUE;
  }
  if (n < 0) {
    dr_error_set(error, DR_ERROR_TIMEOUT, "'%s' did not start within %d s", program, START_MS / 1000);
    return dr_error_remedy(error, "see whether the file system that it lies on answers");
  }
  dr_error_set(error, DR_ERROR_IO, "cannot start '%s': the keeper ended without a word", program);
  return dr_error_remedy(error, "see dmesg: it may have been killed for want of memory");
}

static gboolean
report_error(const struct dr_keeper_report *report, const DrSpawn *spawn, const char *program, GError **error)
{
  switch ((enum dr_keeper_step)report->step) {
  case DR_KEEPER_STARTED:
    return TRUE;
  case DR_KEEPER_NO_ORDER:
    dr_error_set(error, DR_ERROR_INTERNAL, "cannot start '%s': the keeper does not understand droverd",
                 program);
    return dr_error_remedy(error, "droverd and drover-keeper are of two versions: restart droverd");
  case DR_KEEPER_NO_PROCESS:
    return dr_error_set_errno(error, report->err, "cannot start '%s'", program);
  case DR_KEEPER_NO_CWD:
    dr_error_set(error, DR_ERROR_NOT_FOUND, "cannot start '%s' in directory '%s': %s", program, spawn->cwd,
                 g_strerror(report->err));
    return dr_error_remedy(error, "make that directory, or start the VM from another one");
  case DR_KEEPER_NO_FDS:
    dr_error_set_errno(error, report->err, "cannot hand %u descriptors to '%s'", spawn->n_fds, program);
    return dr_error_remedy(error, "raise droverd's limit of open files (LimitNOFILE= of its unit)");
  case DR_KEEPER_NO_WORLD:
    dr_error_set_errno(
        error, report->err,
        "cannot give '%s' the namespaces, control groups and rights of the QEMU that it is to replace",
        program);
    return dr_error_remedy(error, "run droverd as root, with all of its capabilities");
  case DR_KEEPER_NO_EXEC:
    return dr_exec_error(program, report->err, error);
  }
  return dr_error_set(error, DR_ERROR_INTERNAL, "cannot start '%s': the keeper reports step %u", program,
                      report->step);
}

gboolean
dr_spawn(const DrSpawn *spawn, DrProcId *ret_id, GError **error)
{
  g_autofree char *keeper = find_keeper();
  g_autofree char *program = NULL;
  struct dr_keeper_report report;
  dr_autofd int fd = -1;

  if (!check_request(spawn, error))
    return FALSE;
  program = dr_find_program(spawn->argv[0], g_environ_getenv(spawn->envp, "PATH"), spawn->cwd, error);
  if (!program)
    return FALSE;
  fd = start_keeper(spawn, keeper, program, error);
  if (fd < 0 || !read_report(fd, program, &report, error) || !report_error(&report, spawn, program, error))
    return FALSE;
  *ret_id = (DrProcId){ .pid = report.pid, .start_time = report.start_time };
  if (!spawn->world)
    dr_scope_move(spawn->vm, ret_id);
  return TRUE;
}

/* ---- Afterwards ---- */

static char *
describe_exit(JsonObject *exit)
{
  gint64 code = dr_json_int(exit, "exit", -1);
  gint64 number = dr_json_int(exit, "signal", 0);

  if (number == 0)
    return g_strdup_printf("exited with status %d", (int)code);
  return g_strdup_printf("was killed by signal %d (%s)%s", (int)number, g_strsignal((int)number),
                         dr_json_bool(exit, "core", FALSE) ? ", core dumped" : "");
}

gboolean
dr_spawn_read_exit(const char *exit_path, const DrProcId *id, char **ret_status, GError **error)
{
  g_autofree char *text = NULL;
  g_autoptr(JsonObject) exit = NULL;

  if (!g_file_test(exit_path, G_FILE_TEST_EXISTS))
    return dr_error_set(error, DR_ERROR_NOT_FOUND, "no exit status of process %d", (int)id->pid);
  text = dr_file_read(exit_path, MAX_EXIT, NULL, error);
  exit = text ? dr_json_parse_object(text, -1, MAX_EXIT, error) : NULL;
  if (!exit)
    return FALSE;
  /* The pid alone could be an earlier process's that had the same one. */
  if (dr_json_int(exit, "pid", 0) != id->pid || (guint64)dr_json_int(exit, "start", 0) != id->start_time)
    return dr_error_set(error, DR_ERROR_NOT_FOUND, "no exit status of process %d: '%s' is of an earlier one",
                        (int)id->pid, exit_path);
  *ret_status = describe_exit(exit);
  return TRUE;
}

char *
dr_log_tail(const char *log_path, goffset from, gsize max)
{
  dr_autofd int fd = open(log_path, O_RDONLY | O_CLOEXEC);
  goffset end = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
  goffset begin = MAX(from, end - (goffset)max);
  g_autofree char *text = end > begin ? g_malloc0(end - begin + 1) : g_strdup("");
  gssize n = end > begin ? pread(fd, text, end - begin, begin) : 0;
  char *line;

  if (n <= 0)
    return g_strdup("");
  /* What the limit cut in the middle is left out, unless there is nothing else. */
  line = begin > from ? memchr(text, '\n', n) : NULL;
  line = line && line[1] ? line + 1 : text;
  return g_strchomp(g_utf8_make_valid(line, text + n - line));
}
