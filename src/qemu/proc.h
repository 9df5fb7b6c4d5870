/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A running QEMU process as the host sees it: identity, command line, descriptors (from /proc and pidfd). */
#pragma once
#include <glib.h>
#include <sys/types.h>

/* A process that cannot be mistaken for another one that got its pid later. */
typedef struct {
  pid_t pid;
  guint64
      start_time; /* field 22 of /proc/PID/stat, clock ticks since boot; with the pid unique within a boot */
} DrProcId;

/* Looks a process up. DR_ERROR_NOT_FOUND when there is none. */
gboolean dr_proc_identify(pid_t pid, DrProcId *ret_id, GError **error);

/* Opens a pidfd for exactly that process. Returns -1 with DR_ERROR_NOT_FOUND when it is gone, a zombie, or the pid
 * belongs to another process now. The caller closes it; it becomes readable when the process ends. */
int dr_proc_open(const DrProcId *id, GError **error);
/* FALSE: it has ended. Where that cannot be found out (no descriptor is left to look with) it counts as alive. */
gboolean dr_proc_alive(const DrProcId *id);

/* SIGKILL by pidfd, then waits until the process is gone. TRUE also if it was gone already. */
gboolean dr_proc_kill(const DrProcId *id, int timeout_ms, GError **error);

/* (transfer full) NULL-terminated words; environment as A=B; the working directory. Within execve(2), and so just
 * after dr_spawn(), the words may still be missing or cut: read them when the process is known to be up. */
char **dr_proc_cmdline(pid_t pid, GError **error);
char **dr_proc_environ(pid_t pid, GError **error);
char *dr_proc_cwd(pid_t pid, GError **error);

/* One open descriptor of another process. */
typedef struct {
  int fd;           /* its number over there */
  char *link;       /* what /proc/PID/fd/N points at */
  char *tap_ifname; /* nullable: "iff:" of fdinfo, when it is a tun/tap queue */
  guint64 inode;    /* of sockets, memfds, files */
  guint64 device;   /* st_dev of the file system that the inode belongs to */
} DrProcFd;

void dr_proc_fd_free(DrProcFd *fd);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrProcFd, dr_proc_fd_free)

/* All of them, in order of number. Returns: (transfer full) (element-type DrProcFd). */
GPtrArray *dr_proc_fds(pid_t pid, GError **error);

/* Duplicates one descriptor of that process into ours (pidfd_getfd(2): needs ptrace rights, CLOEXEC set).
 * Returns -1 on error. */
int dr_proc_get_fd(const DrProcId *id, int fd, GError **error);

/* The descriptor of that process which LISTENS on a TCP port or a unix path (or "@abstract"): found through the
 * socket inodes of /proc/PID/fd and /proc/PID/net/{tcp,tcp6,unix}. Duplicated into ours; -1 with NOT_FOUND if none.
 * A unix path is compared with the text that was given to bind(2), which may be relative to its directory then. */
int dr_proc_get_tcp_listener(const DrProcId *id, guint port, GError **error);
int dr_proc_get_unix_listener(const DrProcId *id, const char *path, GError **error);

/* Its end of a unix connection that this process made to it, `fd` being ours. Duplicated into ours; -1 with NOT_FOUND if it
 * has none: it did not accept it yet. */
int dr_proc_get_peer(const DrProcId *id, int fd, GError **error);

/* Proportional set size of a process in bytes, from smaps_rollup; 0 if it cannot be read. */
guint64 dr_proc_pss(pid_t pid);

/* What a process has in memory (VmRSS), bytes; 0 if it cannot be read. */
guint64 dr_proc_resident(pid_t pid);

/* MemAvailable of /proc/meminfo, bytes. */
guint64 dr_host_memory_available(void);
