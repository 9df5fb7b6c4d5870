/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Processes seen through /proc and pidfds. */
#include "qemu/proc.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/fd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_STAT 4096
#define MAX_WORDS (4 * 1024 * 1024) /* twice what Linux lets a process be started with by default */
#define MAX_FDINFO 65536            /* an epoll descriptor has a line for each one it watches */
#define MAX_SOCKETS (64 * 1024 * 1024)

static gboolean
no_process(pid_t pid, GError **error)
{
  return dr_error_set(error, DR_ERROR_NOT_FOUND, "no process %d", (int)pid);
}

/* What a failed look into /proc/PID means: the process is gone, or it is not ours to look into. */
static gboolean
proc_error(pid_t pid, int err, const char *what, GError **error)
{
  if (err == ENOENT || err == ESRCH)
    return no_process(pid, error);
  dr_error_set_errno(error, err, "cannot read %s of process %d", what, (int)pid);
  if (err == EACCES || err == EPERM)
    dr_error_remedy(error, "run droverd as root, or as the user of that process with CAP_SYS_PTRACE");
  return FALSE;
}

/* Fields 3 (state) and 22 (start time) of /proc/PID/stat. The second field, the name, may hold blanks and
 * parentheses: count from the last one. */
static gboolean
read_stat(pid_t pid, char *ret_state, guint64 *ret_start)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
  g_autofree char *text = dr_file_read(path, MAX_STAT, NULL, NULL);
  char *rest = text ? strrchr(text, ')') : NULL;

  return rest && sscanf(rest,
                        ") %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
                        "%" G_GUINT64_FORMAT,
                        ret_state, ret_start) == 2;
}

gboolean
dr_proc_identify(pid_t pid, DrProcId *ret_id, GError **error)
{
  char state;
  guint64 start;

  if (pid <= 0 || !read_stat(pid, &state, &start) || state == 'Z' || state == 'X')
    return no_process(pid, error);
  *ret_id = (DrProcId){ .pid = pid, .start_time = start };
  return TRUE;
}

/* Whether the process of a pidfd has ended, all its threads too: only then are its descriptors, locks and memory
 * free. (The state in /proc/PID/stat is the main thread's alone.) */
static gboolean
wait_ended(int pidfd, int timeout_ms)
{
  DrDeadline deadline = dr_deadline_in(timeout_ms);
  struct pollfd poll_fd = { .fd = pidfd, .events = POLLIN };
  int got;

  do
    got = poll(&poll_fd, 1, dr_deadline_left(deadline));
  while (got < 0 && errno == EINTR);
  return got > 0;
}

/* A pidfd keeps meaning the process it was opened for, so looking at the start time AFTER opening it proves that
 * it is the right one. */
static int
open_exactly(const DrProcId *id, GError **error)
{
  dr_autofd int fd = -1;
  char state;
  guint64 start = 0;

  if (id->pid <= 0) {
    no_process(id->pid, error);
    return -1;
  }
  fd = pidfd_open(id->pid, 0);
  if (fd < 0 && errno != ESRCH && errno != EINVAL) {
    dr_error_set_errno(error, errno, "cannot open process %d", (int)id->pid);
    return -1;
  }
  if (fd >= 0 && !read_stat(id->pid, &state, &start) && !wait_ended(fd, /* timeout_ms= */ 0)) {
    /* It lives, and we are short of descriptors or memory: not the same as having ended. */
    dr_error_set(error, DR_ERROR_IO, "cannot read /proc/%d/stat", (int)id->pid);
    return -1;
  }
  if (fd < 0 || start != id->start_time) {
    no_process(id->pid, error);
    return -1;
  }
  return dr_fd_steal(&fd);
}

int
dr_proc_open(const DrProcId *id, GError **error)
{
  dr_autofd int fd = open_exactly(id, error);

  if (fd >= 0 && wait_ended(fd, /* timeout_ms= */ 0)) {
    no_process(id->pid, error);
    return -1;
  }
  return dr_fd_steal(&fd);
}

gboolean
dr_proc_alive(const DrProcId *id)
{
  g_autoptr(GError) error = NULL;
  dr_autofd int fd = dr_proc_open(id, &error);

  return fd >= 0 || !g_error_matches(error, DR_ERROR, DR_ERROR_NOT_FOUND);
}

gboolean
dr_proc_kill(const DrProcId *id, int timeout_ms, GError **error)
{
  g_autoptr(GError) local = NULL;
  dr_autofd int fd = open_exactly(id, &local);

  if (fd < 0) {
    if (g_error_matches(local, DR_ERROR, DR_ERROR_NOT_FOUND))
      return TRUE;
    g_propagate_error(error, g_steal_pointer(&local));
    return FALSE;
  }
  if (pidfd_send_signal(fd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
    return dr_error_set_errno(error, errno, "cannot kill process %d", (int)id->pid);
  if (wait_ended(fd, timeout_ms))
    return TRUE;
  dr_error_set(error, DR_ERROR_TIMEOUT, "process %d was killed but has not ended within %d ms", (int)id->pid,
               timeout_ms);
  return dr_error_remedy(error, "it waits in the kernel, most likely for a disk: see `cat /proc/%d/stack`",
                         (int)id->pid);
}

/* Words that each end with a NUL; a last one without is taken too. */
static char **
split_words(const char *text, gsize len)
{
  g_autoptr(GPtrArray) words = g_ptr_array_new();

  for (gsize at = 0; at < len;) {
    gsize n = strnlen(text + at, len - at);

    g_ptr_array_add(words, g_strndup(text + at, n));
    at += n + 1;
  }
  g_ptr_array_add(words, NULL);
  return (char **)g_ptr_array_free(g_steal_pointer(&words), FALSE);
}

/* Reads a file of words; `*ret_len` 0 when there are none. */
static char **
read_words(pid_t pid, const char *file, GError **error)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/%s", (int)pid, file);
  g_autofree char *text = NULL;
  gsize len;

  if (access(path, R_OK) < 0) {
    proc_error(pid, errno, file, error);
    return NULL;
  }
  text = dr_file_read(path, MAX_WORDS, &len, error);
  return text ? split_words(text, len) : NULL;
}

char **
dr_proc_cmdline(pid_t pid, GError **error)
{
  g_auto(GStrv) words = read_words(pid, "cmdline", error);
  DrProcId id;

  /* One that ended while it was read has lost its memory, and the rest of the words with it. */
  if (!words || !dr_proc_identify(pid, &id, error))
    return NULL;
  if (words[0])
    return g_steal_pointer(&words);
  /* A kernel thread never has any; within execve(2) there are none yet for some microseconds. */
  dr_error_set(error, DR_ERROR_INVALID, "process %d has no command line", (int)pid);
  dr_error_remedy(error, "it is part of the kernel, or has only just begun: look at it with ps");
  return NULL;
}

char **
dr_proc_environ(pid_t pid, GError **error)
{
  return read_words(pid, "environ", error);
}

char *
dr_proc_cwd(pid_t pid, GError **error)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/cwd", (int)pid);
  char target[PATH_MAX];
  gssize n = readlink(path, target, sizeof target - 1);
  struct stat status;

  if (n < 0) {
    proc_error(pid, errno, "the working directory", error);
    return NULL;
  }
  target[n] = '\0';
  if (stat(path, &status) == 0 && status.st_nlink == 0) {
    dr_error_set(error, DR_ERROR_NOT_FOUND,
                 "the working directory of process %d does not exist any more: '%s'", (int)pid, target);
    return NULL;
  }
  return g_strdup(target);
}

void
dr_proc_fd_free(DrProcFd *fd)
{
  if (!fd)
    return;
  g_free(fd->link);
  g_free(fd->tap_ifname);
  g_free(fd);
}

static char *
read_tap_ifname(pid_t pid, int fd)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/fdinfo/%d", (int)pid, fd);
  g_autofree char *text = dr_file_read(path, MAX_FDINFO, NULL, NULL);
  const char *line = text ? strstr(text, "\niff:") : NULL;

  if (!line)
    return NULL;
  line += strlen("\niff:");
  return g_strstrip(g_strndup(line, strcspn(line, "\n")));
}

/* NULL when it was closed meanwhile. */
static DrProcFd *
read_fd(pid_t pid, int dir, const char *name)
{
  g_autoptr(DrProcFd) fd = g_new0(DrProcFd, 1);
  char link[PATH_MAX];
  gssize n = readlinkat(dir, name, link, sizeof link - 1);
  struct stat status;

  if (n < 0)
    return NULL;
  link[n] = '\0';
  fd->fd = atoi(name);
  fd->link = g_strdup(link);
  if (fstatat(dir, name, &status, 0) < 0)
    return g_steal_pointer(&fd);
  fd->inode = status.st_ino;
  fd->device = status.st_dev;
  if (S_ISCHR(status.st_mode) && status.st_rdev == makedev(10, 200)) /* /dev/net/tun, wherever it was found */
    fd->tap_ifname = read_tap_ifname(pid, fd->fd);
  return g_steal_pointer(&fd);
}

static int
compare_fds(gconstpointer a, gconstpointer b)
{
  const DrProcFd *const *left = a, *const *right = b;

  return (*left)->fd - (*right)->fd;
}

GPtrArray *
dr_proc_fds(pid_t pid, GError **error)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/fd", (int)pid);
  g_autoptr(GPtrArray) fds = g_ptr_array_new_with_free_func((GDestroyNotify)dr_proc_fd_free);
  DIR *dir = opendir(path);
  struct dirent *entry;

  if (!dir) {
    proc_error(pid, errno, "the descriptors", error);
    return NULL;
  }
  while ((entry = readdir(dir))) {
    DrProcFd *fd = g_ascii_isdigit(entry->d_name[0]) ? read_fd(pid, dirfd(dir), entry->d_name) : NULL;

    if (fd)
      g_ptr_array_add(fds, fd);
  }
  closedir(dir);
  g_ptr_array_sort(fds, compare_fds);
  return g_steal_pointer(&fds);
}

int
dr_proc_get_fd(const DrProcId *id, int fd, GError **error)
{
  dr_autofd int pidfd = dr_proc_open(id, error);
  int got;

  if (pidfd < 0)
    return -1;
  got = pidfd_getfd(pidfd, fd, 0);
  if (got >= 0)
    return got;
  if (errno == EBADF)
    dr_error_set(error, DR_ERROR_NOT_FOUND, "process %d has no descriptor %d", (int)id->pid, fd);
  else if (errno == EPERM) {
    dr_error_set_errno(error, errno, "cannot take descriptor %d of process %d", fd, (int)id->pid);
    dr_error_remedy(error, "run droverd as root, or with CAP_SYS_PTRACE and kernel.yama.ptrace_scope=0");
  } else
    dr_error_set_errno(error, errno, "cannot take descriptor %d of process %d", fd, (int)id->pid);
  return -1;
}

/* A line of /proc/net/tcp or tcp6: "0: 0100007F:1F90 00000000:0000 0A …"; 0A is LISTEN. */
static gboolean
match_tcp(const char *line, const void *wanted, guint64 *ret_inode)
{
  guint port, state;

  return sscanf(line, " %*u: %*[0-9A-F]:%x %*[0-9A-F]:%*x %x %*s %*s %*s %*u %*u %" G_GUINT64_FORMAT, &port,
                &state, ret_inode) == 3 &&
         state == 0x0a && port == *(const guint *)wanted;
}

/* A line of /proc/net/unix: "0000: 00000002 00000000 00010000 0001 01 19386 /path"; flag 0x10000 is "accepts". */
static gboolean
match_unix(const char *line, const void *wanted, guint64 *ret_inode)
{
  guint flags;
  int path = 0;

  return sscanf(line, "%*[^:]: %*x %*x %x %*x %*x %" G_GUINT64_FORMAT " %n", &flags, ret_inode, &path) == 2 &&
         (flags & 0x10000) && path > 0 && g_str_equal(line + path, wanted);
}

/* The inodes of the listening sockets that match, in the network namespace of the process. */
static void
find_listeners(pid_t pid, const char *table, gboolean (*match)(const char *, const void *, guint64 *),
               const void *wanted, GHashTable *inodes)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/net/%s", (int)pid, table);
  g_autofree char *text = dr_file_read(path, MAX_SOCKETS, NULL, NULL);
  char *line, *rest = text;

  while (rest && (line = strsep(&rest, "\n"))) {
    guint64 inode;

    if (match(line, wanted, &inode))
      g_hash_table_add(inodes, g_memdup2(&inode, sizeof inode));
  }
}

static int
get_socket(const DrProcId *id, GHashTable *inodes, const char *what, GError **error)
{
  g_autoptr(GPtrArray) fds = dr_proc_fds(id->pid, error);

  if (!fds)
    return -1;
  for (guint i = 0; i < fds->len; i++) {
    const DrProcFd *fd = g_ptr_array_index(fds, i);

    if (g_str_has_prefix(fd->link, "socket:") && g_hash_table_contains(inodes, &fd->inode))
      return dr_proc_get_fd(id, fd->fd, error);
  }
  dr_error_set(error, DR_ERROR_NOT_FOUND, "process %d does not listen on %s", (int)id->pid, what);
  return -1;
}

int
dr_proc_get_tcp_listener(const DrProcId *id, guint port, GError **error)
{
  g_autoptr(GHashTable) inodes = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
  g_autofree char *what = g_strdup_printf("TCP port %u", port);

  find_listeners(id->pid, "tcp", match_tcp, &port, inodes);
  find_listeners(id->pid, "tcp6", match_tcp, &port, inodes);
  return get_socket(id, inodes, what, error);
}

int
dr_proc_get_unix_listener(const DrProcId *id, const char *path, GError **error)
{
  g_autoptr(GHashTable) inodes = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
  g_autofree char *what = g_strdup_printf("socket '%s'", path);

  find_listeners(id->pid, "unix", match_unix, path, inodes);
  return get_socket(id, inodes, what, error);
}

/* Whether `fd` was accepted where `peer` connected to, and from this process. */
static gboolean
is_accepted_from_us(int fd, const struct sockaddr_un *peer, socklen_t peer_len)
{
  struct sockaddr_un name;
  struct ucred who = { 0 };
  socklen_t name_len = sizeof name, who_len = sizeof who, flag_len = sizeof(int);
  int listens = 1;

  return getsockname(fd, (struct sockaddr *)&name, &name_len) == 0 && name_len == peer_len &&
         memcmp(&name, peer, name_len) == 0 &&
         getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &flag_len) == 0 && !listens &&
         getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &who_len) == 0 && who.pid == getpid();
}

int
dr_proc_get_peer(const DrProcId *id, int fd, GError **error)
{
  struct sockaddr_un peer = { 0 };
  socklen_t len = sizeof peer;
  g_autoptr(GPtrArray) fds = NULL;

  if (getpeername(fd, (struct sockaddr *)&peer, &len) < 0) {
    dr_error_set_errno(error, errno, "cannot tell the other end of a connection to process %d", (int)id->pid);
    return -1;
  }
  fds = dr_proc_fds(id->pid, error);
  for (guint i = 0; fds && i < fds->len; i++) {
    const DrProcFd *theirs = fds->pdata[i];
    dr_autofd int copy =
        g_str_has_prefix(theirs->link, "socket:") ? dr_proc_get_fd(id, theirs->fd, NULL) : -1;

    if (copy >= 0 && is_accepted_from_us(copy, &peer, len))
      return dr_fd_steal(&copy);
  }
  if (fds)
    dr_error_set(error, DR_ERROR_NOT_FOUND, "process %d has not accepted our connection to '%s'",
                 (int)id->pid, peer.sun_path);
  return -1;
}

/* The value of a line "Name:   123 kB", in bytes; 0 without one. */
static guint64
read_kb(const char *path, const char *name)
{
  g_autofree char *text = dr_file_read(path, MAX_FDINFO, NULL, NULL);
  g_autofree char *key = g_strdup_printf("\n%s:", name);
  const char *line = text ? strstr(text, key) : NULL;

  return line ? g_ascii_strtoull(line + strlen(key), NULL, 10) * 1024 : 0;
}

guint64
dr_proc_pss(pid_t pid)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/smaps_rollup", (int)pid);

  return read_kb(path, "Pss");
}

guint64
dr_host_memory_available(void)
{
  return read_kb("/proc/meminfo", "MemAvailable");
}

guint64
dr_proc_resident(pid_t pid)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/status", pid);
  g_autofree char *text = NULL;
  const char *line;

  if (!g_file_get_contents(path, &text, NULL, NULL) || !(line = strstr(text, "\nVmRSS:")))
    return 0;
  return g_ascii_strtoull(line + strlen("\nVmRSS:"), NULL, 10) * 1024;
}
