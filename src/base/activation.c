/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The protocol is three variables and a row of descriptors. */
#include "base/activation.h"
#include "base/error.h"
#include "base/fd.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define SOCKETS_MAX 16

static int sockets[SOCKETS_MAX]; /* -1: was taken */
static guint n_sockets;

/* 0 where there is none, or none for us. */
static guint
count_from_environment(void)
{
  const char *pid = g_getenv("LISTEN_PID"), *number = g_getenv("LISTEN_FDS");
  guint64 who, n;

  if (!pid || !g_ascii_string_to_unsigned(pid, 10, 1, G_MAXINT32, &who, NULL) || who != (guint64)getpid())
    return 0;
  return number && g_ascii_string_to_unsigned(number, 10, 0, SOCKETS_MAX, &n, NULL) ? n : 0;
}

void
dr_activation_init(int first)
{
  n_sockets = count_from_environment();
  for (guint i = 0; i < n_sockets; i++) {
    sockets[i] = first + i;
    /* Fails for one that is not open, which take() finds. */
    fcntl(sockets[i], F_SETFD, FD_CLOEXEC);
  }
  g_unsetenv("LISTEN_PID");
  g_unsetenv("LISTEN_FDS");
  g_unsetenv("LISTEN_FDNAMES");
}

static gboolean
has_option(int fd, int option, int wanted)
{
  int value = -1;
  socklen_t size = sizeof value;

  return getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 && value == wanted;
}

static gboolean
is_listener_on(int fd, const char *path)
{
  struct sockaddr_un address = { 0 };
  socklen_t size = sizeof address - 1;

  return getsockname(fd, (struct sockaddr *)&address, &size) == 0 && address.sun_family == AF_UNIX &&
         g_str_equal(address.sun_path, path) && has_option(fd, SO_TYPE, SOCK_STREAM) &&
         has_option(fd, SO_ACCEPTCONN, 1);
}

int
dr_activation_take(const char *path, GError **error)
{
  guint left = 0;
  int *found = NULL;

  for (guint i = 0; i < n_sockets; i++) {
    left += sockets[i] >= 0;
    if (sockets[i] >= 0 && is_listener_on(sockets[i], path))
      found = &sockets[i];
  }
  if (found && left == 1)
    return dr_fd_steal(found);
  /* Clients would connect to a socket that nobody answers, and wait. */
  if (left > 0) {
    dr_error_set(error, DR_ERROR_INVALID,
                 found ? "systemd has opened sockets for droverd beside '%s', which nobody would answer"
                       : "systemd has opened a socket for droverd, but not '%s'",
                 path);
    dr_error_remedy(
        error,
        "have ListenStream=%s, and nothing else, in droverd.socket (systemctl edit --full droverd.socket)",
        path);
  }
  return -1;
}
