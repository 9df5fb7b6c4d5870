/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bind(2), listen(2), accept(2). */
#include "net/bind.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#define BACKLOG 256

static void
set_port(struct sockaddr *address, guint port)
{
  if (address->sa_family == AF_INET6)
    ((struct sockaddr_in6 *)address)->sin6_port = htons((guint16)port);
  else
    ((struct sockaddr_in *)address)->sin_port = htons((guint16)port);
}

static guint
port_of(int fd)
{
  struct sockaddr_storage address;
  socklen_t len = sizeof address;

  if (getsockname(fd, (struct sockaddr *)&address, &len) < 0)
    return 0;
  return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                             : ((struct sockaddr_in *)&address)->sin_port);
}

/* -1 with errno. */
static int
listen_on(const struct addrinfo *address, guint port)
{
  dr_autofd int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  int one = 1;

  if (fd < 0)
    return -1;
  set_port(address->ai_addr, port);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (address->ai_family == AF_INET6)
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  if (bind(fd, address->ai_addr, address->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)
    return -1;
  return dr_fd_steal(&fd);
}

/* A host without IPv6 (or IPv4) is heard on what it has; a port that is taken is an error. */
static gboolean
may_lack(int err)
{
  return err == EAFNOSUPPORT || err == EADDRNOTAVAIL;
}

static guint
listen_on_all(const struct addrinfo *addresses, guint *port, int ret_fds[DR_BIND_MAX])
{
  guint n = 0;
  int err = EADDRNOTAVAIL;

  for (const struct addrinfo *one = addresses; one && n < DR_BIND_MAX; one = one->ai_next) {
    int fd = listen_on(one, *port);

    if (fd >= 0) {
      ret_fds[n++] = fd;
      *port = port_of(fd);
      continue;
    }
    err = errno;
    if (may_lack(err))
      continue;
    while (n > 0)
      close(ret_fds[--n]);
    break;
  }
  errno = err;
  return n;
}

guint
dr_bind(const char *address, guint *port, int ret_fds[DR_BIND_MAX], GError **error)
{
  struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV },
                  *found = NULL;
  int code = getaddrinfo(address, "0", &hints, &found);
  guint n;

  if (code) {
    dr_error_set(error, DR_ERROR_INVALID, "cannot listen on '%s': %s", address ? address : "*",
                 gai_strerror(code));
    return 0;
  }
  n = listen_on_all(found, port, ret_fds);
  if (n == 0) {
    dr_error_set_errno(error, errno, "cannot listen on %s port %u", address ? address : "*", *port);
    dr_error_remedy(error, "choose another address= or port= in [listen] of droverd's configuration");
  }
  freeaddrinfo(found);
  return n;
}

static char *
text_of(const struct sockaddr_storage *address, socklen_t len)
{
  char host[NI_MAXHOST];
  int code = getnameinfo((const struct sockaddr *)address, len, host, sizeof host, NULL, 0, NI_NUMERICHOST);

  return g_strdup(code == 0 ? host : "?");
}

int
dr_bind_accept(int listening, char **ret_address, char **ret_origin)
{
  struct sockaddr_storage from;
  socklen_t len = sizeof from;
  int fd = accept4(listening, (struct sockaddr *)&from, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

  if (fd < 0)
    return -1;
  *ret_address = text_of(&from, len);
  if (from.ss_family == AF_INET6)
    memset(((struct sockaddr_in6 *)&from)->sin6_addr.s6_addr + 8, 0, 8);
  *ret_origin = text_of(&from, len);
  return fd;
}
