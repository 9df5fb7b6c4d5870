/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptors and small files. */
#include "base/fd.h"
#include "base/error.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define TREE_MAX 16 /* directories in directories; what is deeper stays */

void
dr_fd_cleanup(int *fd)
{
  int saved = errno;

  if (*fd >= 0)
    close(*fd);
  errno = saved;
}

gboolean
dr_file_write(const char *path, const char *text, GError **error)
{
  g_autofree char *temporary = g_strdup_printf("%s.new", path);
  gsize len = strlen(text);
  dr_autofd int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

  if (fd < 0)
    return dr_error_set_errno(error, errno, "cannot create '%s'", temporary);
  if (write(fd, text, len) != (gssize)len) {
    dr_error_set_errno(error, errno ? errno : ENOSPC, "cannot write '%s'", temporary);
    unlink(temporary);
    return FALSE;
  }
  if (rename(temporary, path) < 0)
    return dr_error_set_errno(error, errno, "cannot rename '%s' to '%s'", temporary, path);
  return TRUE;
}

char *
dr_file_read(const char *path, gsize max, gsize *ret_len, GError **error)
{
  dr_autofd int fd = open(path, O_RDONLY | O_CLOEXEC);
  g_autoptr(GByteArray) bytes = g_byte_array_new();
  guint8 chunk[16384];
  gssize n;

  if (fd < 0) {
    dr_error_set_errno(error, errno, "cannot open '%s'", path);
    return NULL;
  }
  while ((n = read(fd, chunk, sizeof chunk)) > 0) {
    if (bytes->len + (gsize)n > max) {
      dr_error_set(error, DR_ERROR_INVALID, "'%s' is larger than %zu bytes", path, max);
      return NULL;
    }
    g_byte_array_append(bytes, chunk, n);
  }
  if (n < 0) {
    dr_error_set_errno(error, errno, "cannot read '%s'", path);
    return NULL;
  }
  if (ret_len)
    *ret_len = bytes->len;
  g_byte_array_append(bytes, (const guint8 *)"", 1);
  return (char *)g_byte_array_free(g_steal_pointer(&bytes), FALSE);
}

gboolean
dr_mkdir(const char *path, int mode, GError **error)
{
  if (g_mkdir_with_parents(path, mode) < 0)
    return dr_error_set_errno(error, errno, "cannot create directory '%s'", path);
  return TRUE;
}

/* What is in it; `dir` is consumed. By descriptors: whoever owns a directory in it may exchange its entries meanwhile. */
static void
empty(int dir, int depth)
{
  DIR *listed = fdopendir(dir);
  struct dirent *entry;

  while (listed && (entry = readdir(listed))) {
    const char *name = entry->d_name;
    int child;

    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
      continue;
    child = depth < TREE_MAX
                ? openat(dirfd(listed), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
                : -1;
    if (child >= 0)
      empty(child, depth + 1);
    unlinkat(dirfd(listed), name, child >= 0 ? AT_REMOVEDIR : 0);
  }
  if (listed)
    closedir(listed);
  else
    close(dir);
}

void
dr_remove_tree(const char *path)
{
  int dir = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

  if (dir >= 0)
    empty(dir, 0);
  g_remove(path);
}

static int
unix_socket(const char *path, int flags, struct sockaddr_un *address, GError **error)
{
  int fd;

  *address = (struct sockaddr_un){ .sun_family = AF_UNIX };
  if (g_strlcpy(address->sun_path, path, sizeof address->sun_path) >= sizeof address->sun_path) {
    dr_error_set(error, DR_ERROR_INVALID, "the path '%s' is too long for a socket", path);
    return -1;
  }
  fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
  if (fd < 0)
    dr_error_set_errno(error, errno, "cannot make a socket for '%s'", path);
  return fd;
}

int
dr_unix_listen(const char *path, int flags, int backlog, GError **error)
{
  struct sockaddr_un address;
  dr_autofd int fd = unix_socket(path, flags, &address, error);

  if (fd < 0)
    return -1;
  unlink(path);
  if (bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, backlog) == 0)
    return dr_fd_steal(&fd);
  dr_error_set_errno(error, errno, "cannot listen on '%s'", path);
  return -1;
}

/* The socket itself, and nothing that stands in its place: a descriptor to be had by /proc. -1: there is none. */
static int
pin_socket(const char *path)
{
  dr_autofd int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  struct stat st;

  if (fd >= 0 && fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode) && st.st_nlink == 1)
    return dr_fd_steal(&fd);
  errno = fd < 0 ? errno : ENOTSOCK;
  return -1;
}

int
dr_unix_listen_for_all(const char *path, int flags, int backlog, GError **error)
{
  dr_autofd int fd = dr_unix_listen(path, flags, backlog, error);
  dr_autofd int pinned = fd < 0 ? -1 : pin_socket(path);
  g_autofree char *name = g_strdup_printf("/proc/self/fd/%d", pinned);
  struct stat st;

  if (fd < 0)
    return -1;
  if (pinned >= 0 && fstat(pinned, &st) == 0 && st.st_uid != geteuid())
    errno = EPERM; /* somebody has put another one there */
  else if (pinned >= 0 && chmod(name, 0666) == 0)
    return dr_fd_steal(&fd);
  dr_error_set_errno(error, errno, "cannot set the mode of '%s'", path);
  return -1;
}

int
dr_unix_connect_here(const char *path, int flags, GError **error)
{
  dr_autofd int pinned = pin_socket(path);
  g_autofree char *name = g_strdup_printf("/proc/self/fd/%d", pinned);

  if (pinned >= 0)
    return dr_unix_connect(name, flags, error);
  dr_error_set_errno(error, errno, "cannot connect to '%s'", path);
  return -1;
}

int
dr_unix_connect(const char *path, int flags, GError **error)
{
  struct sockaddr_un address;
  dr_autofd int fd = unix_socket(path, flags, &address, error);

  if (fd < 0)
    return -1;
  if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
    return dr_fd_steal(&fd);
  dr_error_set_errno(error, errno, "cannot connect to '%s'", path);
  return -1;
}
