/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See libvirt-helper.h. */
#include "daemon/libvirt-helper.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/fd.h"
#include "qemu/child.h"
#include "qemu/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define CHECK_MS 60000
#define SLICE_MS 200 /* how soon a check sees that droverd ends */
#define MAX_ANSWER (64 * 1024 * 1024)
#define MAX_LINE 65536

/* --- Where it is --- */

/* Beside this program as installed or built, installed. NULL: it is not installed. */
static char *
find_helper(void)
{
  static const char *const places[] = { "drover-libvirt", "libvirt/drover-libvirt" };
  const char *given = g_getenv("DROVER_LIBVIRT");
  g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
  g_autofree char *dir = g_path_get_dirname(self ? self : "/");
  const char *installed = DROVER_LIBEXECDIR "/drover-libvirt";

  if (given && given[0])
    return access(given, X_OK) == 0 ? g_strdup(given) : NULL;
  for (guint i = 0; i < G_N_ELEMENTS(places); i++) {
    g_autofree char *path = g_build_filename(dir, places[i], NULL);

    if (access(path, X_OK) == 0)
      return g_steal_pointer(&path);
  }
  return access(installed, X_OK) == 0 ? g_strdup(installed) : NULL;
}

gboolean
dr_libvirt_helper_installed(void)
{
  g_autofree char *path = find_helper();

  return path != NULL;
}

/* --- Starting --- */

static int
memory_file(const char *text, GError **error)
{
  dr_autofd int fd = memfd_create("drover-libvirt", MFD_CLOEXEC);
  gsize len = strlen(text);

  if (fd >= 0 && write(fd, text, len) == (gssize)len && lseek(fd, 0, SEEK_SET) == 0)
    return dr_fd_steal(&fd);
  dr_error_set_errno(error, errno, "cannot hand the request to drover-libvirt");
  return -1;
}

/* `out`, `err`: where its words go. 0 on error. */
static pid_t
start(const DrLibvirtHelper *helper, const char *command, JsonObject *spec, int out, int err,
      gboolean dies_with_us, GError **error)
{
  g_autofree char *path = find_helper();
  g_autofree char *text = spec ? dr_json_print_object(spec, FALSE) : g_strdup("{}");
  g_auto(GStrv) envp = g_get_environ();
  dr_autofd int in = -1;
  DrChild child = { .path = path, .envp = envp, .n_fds = 3, .dies_with_us = dies_with_us };
  pid_t pid = 0;
  int failed;

  if (!path) {
    dr_error_set(error, DR_ERROR_UNSUPPORTED, "drover-libvirt, which knows libvirt, is not installed");
    dr_error_remedy(error, "install the package drover-libvirt on the host of droverd");
    return 0;
  }
  in = memory_file(text, error);
  if (in < 0)
    return 0;
  child.argv = (char *[]){ (char *)"drover-libvirt", (char *)command,           helper->dir,
                           helper->run_dir,          (char *)helper->cache_dir, NULL };
  child.fds = (int[]){ in, out, err };
  failed = dr_child_start(&child, &pid);
  if (!failed)
    return pid;
  dr_error_set_errno(error, failed, "cannot start '%s'", path);
  dr_error_remedy(error, "reinstall the package drover-libvirt");
  return 0;
}

/* A log for each run: that of an upgrade begins it. */
static int
open_log(const DrLibvirtHelper *helper, gboolean anew, GError **error)
{
  g_autofree char *path = g_build_filename(helper->dir, "log", NULL);
  int fd;

  if (!dr_mkdir(helper->dir, 0700, error) || !dr_mkdir(helper->run_dir, 0700, error))
    return -1;
  fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (anew ? O_TRUNC : 0), 0600);
  if (fd < 0)
    dr_error_set_errno(error, errno, "cannot open '%s'", path);
  return fd;
}

pid_t
dr_libvirt_helper_start(const DrLibvirtHelper *helper, JsonObject *spec, GError **error)
{
  dr_autofd int log = open_log(helper, spec != NULL, error);

  return log < 0 ? 0 : start(helper, spec ? "upgrade" : "recover", spec, log, log, FALSE, error);
}

/* --- What it says --- */

static gboolean
take_error(JsonObject *object, GError **error)
{
  JsonObject *told = object ? dr_json_obj(object, "error") : NULL;
  const char *remedy = told ? dr_json_str(told, "remedy", NULL) : NULL;

  if (!told)
    return FALSE;
  dr_error_set(error, dr_error_code_from_name(dr_json_str(told, "code", "internal")), "%s",
               dr_json_str(told, "message", "drover-libvirt does not say what failed"));
  if (remedy)
    dr_error_remedy(error, "%s", remedy);
  return TRUE;
}

static gboolean
said_nothing(GError **error)
{
  dr_error_set(error, DR_ERROR_CLOSED, "drover-libvirt ended without a word on how it went");
  return dr_error_remedy(error, "see its log (STATE_DIR/libvirt/log) and dmesg: it may have been killed");
}

gboolean
dr_libvirt_helper_last_error(const DrLibvirtHelper *helper, GError **error)
{
  g_autofree char *path = g_build_filename(helper->dir, "log", NULL);
  g_autofree char *tail = dr_log_tail(path, 0, MAX_LINE);
  const char *line = strrchr(tail, '\n');
  g_autoptr(JsonObject) object = dr_json_parse_object(line ? line + 1 : tail, -1, MAX_LINE, NULL);

  return take_error(object, error) ? FALSE : said_nothing(error);
}

static JsonObject *
read_answer(int fd, GError **error)
{
  struct stat st;
  g_autofree char *text = NULL;
  g_autoptr(JsonObject) answer = NULL;

  if (fstat(fd, &st) < 0 || st.st_size > MAX_ANSWER) {
    dr_error_set(error, DR_ERROR_IO, "drover-libvirt's answer is longer than %d bytes", MAX_ANSWER);
    return NULL;
  }
  text = g_malloc0((gsize)st.st_size + 1);
  if (pread(fd, text, (gsize)st.st_size, 0) == st.st_size)
    answer = dr_json_parse_object(g_strchomp(text), -1, MAX_ANSWER, NULL);
  if (!answer)
    said_nothing(error);
  return answer && !take_error(answer, error) ? g_steal_pointer(&answer) : NULL;
}

/* Until it has ended; else it is ended. */
static gboolean
wait_check(pid_t pid, const gint *stop, GError **error)
{
  DrDeadline deadline = dr_deadline_in(CHECK_MS);
  dr_autofd int pidfd = pidfd_open(pid, 0);
  struct pollfd ended = { .fd = pidfd, .events = POLLIN };
  int done = 0;

  while (pidfd >= 0 && done <= 0 && !dr_deadline_passed(deadline) && !(stop && g_atomic_int_get(stop)))
    done = poll(&ended, 1, MIN(dr_deadline_left(deadline), SLICE_MS));
  if (done <= 0)
    kill(-pid, SIGKILL); /* its session: the QEMUs that it asks for their versions, too */
  while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
    ;
  if (done > 0)
    return TRUE;
  if (stop && g_atomic_int_get(stop))
    return dr_error_set(error, DR_ERROR_CLOSED, "droverd ends");
  dr_error_set(error, DR_ERROR_TIMEOUT, "libvirt's domains could not be checked within %d s",
               CHECK_MS / 1000);
  return dr_error_remedy(error, "see whether libvirt answers: virsh list");
}

JsonObject *
dr_libvirt_helper_check(const DrLibvirtHelper *helper, JsonObject *spec, const gint *stop, GError **error)
{
  dr_autofd int out = memory_file("", error);
  pid_t pid = out < 0 ? 0 : start(helper, "check", spec, out, STDERR_FILENO, TRUE, error);

  return pid && wait_check(pid, stop, error) ? read_answer(out, error) : NULL;
}

/* --- Its files --- */

gboolean
dr_libvirt_helper_works(const DrLibvirtHelper *helper)
{
  g_autofree char *path = g_build_filename(helper->dir, "lock", NULL);
  dr_autofd int fd = open(path, O_RDONLY | O_CLOEXEC);

  return fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
}

JsonObject *
dr_libvirt_helper_read(const DrLibvirtHelper *helper, GError **error)
{
  g_autofree char *path = g_build_filename(helper->dir, "run.json", NULL);
  g_autofree char *text = NULL;
  JsonObject *run;

  if (!g_file_test(path, G_FILE_TEST_EXISTS))
    return NULL;
  text = dr_file_read(path, MAX_ANSWER, NULL, error);
  run = text ? dr_json_parse_object(text, -1, MAX_ANSWER, error) : NULL;
  if (!run)
    g_prefix_error(error,
                   "what was written of the upgrade of libvirt's domains ('%s') cannot be read: ", path);
  return run;
}

guint64
dr_libvirt_helper_stamp(const DrLibvirtHelper *helper)
{
  g_autofree char *path = g_build_filename(helper->dir, "run.json", NULL);
  struct stat st;

  return stat(path, &st) < 0 ? 0
                             : (guint64)st.st_ino * 31 + (guint64)st.st_mtim.tv_sec * G_USEC_PER_SEC +
                                   (guint64)st.st_mtim.tv_nsec;
}
