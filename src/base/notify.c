/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sd_notify(3) and sd_watchdog_enabled(3). */
#include "base/notify.h"
#include "base/fd.h"

#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static char *socket_path;
static guint64 watchdog_us;

static char *
take_variable(const char *name)
{
  char *value = g_strdup(g_getenv(name));

  g_unsetenv(name);
  return value;
}

/* Of a parent's watchdog, whose variables were inherited, WATCHDOG_PID tells; without it the variables are meant for all. */
static guint64
read_watchdog(const char *us, const char *pid)
{
  guint64 value, who;

  if (!us || !g_ascii_string_to_unsigned(us, 10, 1, G_MAXUINT64, &value, NULL))
    return 0;
  if (pid && (!g_ascii_string_to_unsigned(pid, 10, 1, G_MAXINT32, &who, NULL) || who != (guint64)getpid()))
    return 0;
  return value;
}

void
dr_notify_init(void)
{
  g_autofree char *us = take_variable("WATCHDOG_USEC");
  g_autofree char *pid = take_variable("WATCHDOG_PID");

  g_free(socket_path);
  socket_path = take_variable("NOTIFY_SOCKET");
  watchdog_us = read_watchdog(us, pid);
}

gboolean
dr_notify(const char *state)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  gsize length = socket_path ? strlen(socket_path) : 0;
  dr_autofd int fd = -1;

  if (length < 2 || length > sizeof address.sun_path || !strchr("/@", socket_path[0]))
    return FALSE;
  memcpy(address.sun_path, socket_path, length);
  if (socket_path[0] == '@')
    address.sun_path[0] = '\0'; /* a name in the abstract namespace */
  /* It does not block: a manager that is stuck must not stop the main loop. */
  fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  return fd >= 0 && sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address,
                           offsetof(struct sockaddr_un, sun_path) + length) >= 0;
}

guint64
dr_notify_watchdog_us(void)
{
  return watchdog_us;
}

static gboolean
on_ping(gpointer unused)
{
  dr_notify("WATCHDOG=1");
  return G_SOURCE_CONTINUE;
}

GSource *
dr_notify_watchdog_start(GMainContext *context)
{
  GSource *source;

  if (!socket_path || watchdog_us == 0)
    return NULL;
  source = g_timeout_source_new(CLAMP(watchdog_us / 2000, 1, G_MAXINT));
  g_source_set_callback(source, on_ping, NULL, NULL);
  g_source_attach(source, context);
  return source;
}
