/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A file descriptor that closes itself, and the few calls on descriptors that everybody needs. */
#pragma once
#include <glib.h>
#include <unistd.h>

/* `dr_autofd int fd = -1;` is closed when it goes out of scope; errno is kept. */
void dr_fd_cleanup(int *fd);
#define dr_autofd __attribute__((cleanup(dr_fd_cleanup)))

/* Takes the descriptor out of an auto-closing variable. */
static inline int
dr_fd_steal(int *fd)
{
  int stolen = *fd;

  *fd = -1;
  return stolen;
}

/* Writes a whole small file atomically (temporary name beside it, rename). No fsync: for /run, not for a journal. */
gboolean dr_file_write(const char *path, const char *text, GError **error);

/* Reads a file of at most `max` bytes (procfs, state files). Returns: (transfer full): NUL-terminated text;
 * *ret_len, where given, excludes the NUL. */
char *dr_file_read(const char *path, gsize max, gsize *ret_len, GError **error);

/* Creates a directory and its parents with `mode`. */
gboolean dr_mkdir(const char *path, int mode, GError **error);

/* A directory and all that is in it, as far as it can be removed; a symbolic link is removed, not followed, whoever makes one meanwhile. */
void dr_remove_tree(const char *path);

/* Stream sockets of AF_UNIX, close-on-exec; `flags`: 0 or SOCK_NONBLOCK. Returns: the caller's to close; -1 on error: INVALID for a path of more
 * than 107 bytes. listen: whatever has that name is removed before. */
int dr_unix_listen(const char *path, int flags, int backlog, GError **error);
/* The same, for all who can come to its directory: QEMUs of other users. */
int dr_unix_listen_for_all(const char *path, int flags, int backlog, GError **error);
int dr_unix_connect(const char *path, int flags, GError **error);
/* The same, to a socket that has this name and no other: not through a symbolic link that its directory's owner has made. */
int dr_unix_connect_here(const char *path, int flags, GError **error);
