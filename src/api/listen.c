/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Takes the place of a stale socket, never that of a live one. */
#include "api/listen.h"
#include "base/activation.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define INHERITED "drover-inherited"

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

static GSocket *
take_inherited(const char *path, GError **error)
{
  dr_autofd int fd = dr_activation_take(path, error);
  GSocket *listener = fd < 0 ? NULL : g_socket_new_from_fd(fd, error);

  if (!listener)
    return NULL;
  dr_fd_steal(&fd);
  g_object_set_data(G_OBJECT(listener), INHERITED, listener);
  g_socket_set_blocking(listener, FALSE);
  return listener;
}

/* systemd's is as it was made, also for who has connected already. One that is open to all must not be taken where nobody looks who
 * it is, and one that is not would keep those out who may. */
static gboolean
has_right_mode(const char *path, int mode, GError **error)
{
  gboolean to_all = (mode & S_IWOTH) != 0;
  struct stat st;

  if (stat(path, &st) == 0 && ((st.st_mode & S_IWOTH) != 0) == to_all)
    return TRUE;
  dr_error_set(error, DR_ERROR_INVALID,
               "the socket '%s' that systemd has opened is %sopen to all users, and [api] names %s group",
               path, to_all ? "not " : "", to_all ? "a" : "no");
  return dr_error_remedy(error,
                         "have SocketMode=%s in droverd.socket (systemctl edit droverd.socket), then "
                         "systemctl restart droverd.socket",
                         to_all ? "0666" : "0660");
}

GSocket *
dr_listen(const char *path, int mode, GError **error)
{
  g_autoptr(GError) socket_error = NULL;
  struct sockaddr_un address;
  dr_autofd int fd = -1;
  GSocket *listener = take_inherited(path, &socket_error);

  if (listener && has_right_mode(path, mode, &socket_error))
    return listener;
  g_clear_object(&listener);
  if (socket_error) {
    g_propagate_error(error, g_steal_pointer(&socket_error));
    return NULL;
  }
  if (!fill_address(path, &address, error) || !clear_stale(path, &address, error))
    return NULL;
  fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  /* Before bind(): the file takes the socket's mode (less umask), so that there's no moment with more than that; what a umask took is
   * given back behind it. */
  if (fd < 0 || fchmod(fd, (mode_t)mode) < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
      chmod(path, (mode_t)mode) < 0 || listen(fd, SOMAXCONN) < 0) {
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

void
dr_listen_end(GSocket *listener, const char *path)
{
  if (!g_object_get_data(G_OBJECT(listener), INHERITED))
    unlink(path);
  g_object_unref(listener);
}
