/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sockets in the network namespace of a tap. */
#include "qemu/tap-socket.h"
#include "base/fd.h"

#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

typedef struct {
  int namespace, domain, type, fd;
} Request;

/* In a thread of its own, because it leaves that thread in the other namespace. */
static gpointer
open_there(gpointer data)
{
  Request *request = data;

  if (setns(request->namespace, CLONE_NEWNET) == 0)
    request->fd = socket(request->domain, request->type, 0);
  return NULL;
}

static gboolean
is_our_namespace(int namespace)
{
  struct stat here, there;

  return stat("/proc/thread-self/ns/net", &here) == 0 && fstat(namespace, &there) == 0 &&
         here.st_ino == there.st_ino;
}

int
dr_tap_socket(int tap_fd, int domain, int type)
{
  dr_autofd int namespace = ioctl(tap_fd, TUNGETDEVNETNS);
  Request request = { namespace, domain, type | SOCK_CLOEXEC, -1 };

  if (namespace < 0 || is_our_namespace(namespace))
    return socket(domain, request.type, 0);
  g_thread_join(g_thread_new("tap-netns", open_there, &request));
  return request.fd;
}
