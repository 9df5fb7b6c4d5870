/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Takes the place of a stale socket, never that of a live one. */
#include "api/listen.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static gboolean
fill_address(const char *path, struct sockaddr_un *address, GError **error)
{
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (g_strlcpy(address->sun_path, path, sizeof address->sun_path) < sizeof address->sun_path)
    return TRUE;
  dr_error_set(error, DR_ERROR_INVALID, "cannot listen on '%s': a socket's path has at most %zu bytes", path,
               sizeof address->sun_path - 1);
  return dr_error_remedy(error, "choose a run directory with a shorter name");
}

/* Removes a socket file that refuses connections. A connection that would block means a full queue of a
 * live one. */
static gboolean
clear_stale(const char *path, const struct sockaddr_un *address, GError **error)
{
  dr_autofd int fd = -1;
  struct stat st;

  if (lstat(path, &st) < 0)
    return errno == ENOENT ? TRUE : dr_error_set_errno(error, errno, "cannot look at '%s'", path);
  if (!S_ISSOCK(st.st_mode))
    return dr_error_set(error, DR_ERROR_EXISTS, "cannot listen on '%s': it exists and is no socket", path);
  fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0)
    return dr_error_set_errno(error, errno, "cannot create a socket");
  if (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 || errno == EAGAIN) {
    dr_error_set(error, DR_ERROR_EXISTS, "another droverd runs on '%s'", path);
    return dr_error_remedy(error, "stop it, or give this one its own run and state directories");
  }
  if (errno != ECONNREFUSED || (unlink(path) < 0 && errno != ENOENT))
    return dr_error_set_errno(error, errno, "cannot replace the socket '%s'", path);
  return TRUE;
}

GSocket *
dr_listen(const char *path, GError **error)
{
  g_autoptr(GError) socket_error = NULL;
  struct sockaddr_un address;
  dr_autofd int fd = -1;
  GSocket *listener;

  if (!fill_address(path, &address, error) || !clear_stale(path, &address, error))
    return NULL;
  fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  /* Before bind(): the file takes the socket's mode (less umask), so that there's no moment with another
   * one. */
  if (fd < 0 || fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
      listen(fd, SOMAXCONN) < 0) {
    dr_error_set_errno(error, errno, "cannot listen on '%s'", path);
    return NULL;
  }
  listener = g_socket_new_from_fd(fd, &socket_error);
  if (!listener) {
    dr_error_set(error, DR_ERROR_IO, "cannot listen on '%s': %s", path, socket_error->message);
    return NULL;
  }
  dr_fd_steal(&fd);
  g_socket_set_blocking(listener, FALSE);
  return listener;
}
