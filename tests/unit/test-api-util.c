/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The server of the API's tests and its client. */
#include "test-api-util.h"
#include "base/deadline.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef struct {
  Server *server;
  gboolean done;
  GMutex lock;
  GCond cond;
  GSourceFunc func;
} Invocation;

static gboolean
run_invocation(gpointer data)
{
  Invocation *invocation = data;

  invocation->func(invocation->server);
  g_mutex_lock(&invocation->lock);
  invocation->done = TRUE;
  g_cond_signal(&invocation->cond);
  g_mutex_unlock(&invocation->lock);
  return G_SOURCE_REMOVE;
}

/* On the server's thread, and waits for it. */
static void
invoke(Server *server, GSourceFunc func)
{
  Invocation invocation = { .server = server, .func = func };

  g_mutex_init(&invocation.lock);
  g_cond_init(&invocation.cond);
  g_main_context_invoke(server->context, run_invocation, &invocation);
  g_mutex_lock(&invocation.lock);
  while (!invocation.done)
    g_cond_wait(&invocation.cond, &invocation.lock);
  g_mutex_unlock(&invocation.lock);
  g_mutex_clear(&invocation.lock);
  g_cond_clear(&invocation.cond);
}

static gpointer
run_loop(gpointer data)
{
  Server *server = data;

  g_main_context_push_thread_default(server->context);
  g_main_loop_run(server->loop);
  g_main_context_pop_thread_default(server->context);
  return NULL;
}

static gboolean
open_api(gpointer data)
{
  Server *server = data;
  g_autoptr(GError) error = NULL;

  server->api = dr_api_new_with_limits(server->service, server->events, server->path, server->access,
                                       &server->limits, &error);
  g_assert_no_error(error);
  return G_SOURCE_REMOVE;
}

static gboolean
close_api(gpointer data)
{
  Server *server = data;

  g_clear_pointer(&server->api, dr_api_free);
  return G_SOURCE_REMOVE;
}

void
server_open(Server *server)
{
  invoke(server, open_api);
}

Server *
server_start(const DrApiLimits *limits)
{
  return server_start_with(limits, NULL);
}

Server *
server_start_with(const DrApiLimits *limits, const DrApiAccess *access)
{
  Server *server = g_new0(Server, 1);

  server->access = access;
  server->limits = limits ? *limits : dr_api_limits;
  server->dir = g_dir_make_tmp("drover-api-XXXXXX", NULL);
  server->path = g_build_filename(server->dir, "api.sock", NULL);
  server->events = dr_events_new();
  server->service = fake_service_new(server->events);
  server->context = g_main_context_new();
  server->loop = g_main_loop_new(server->context, FALSE);
  server->thread = g_thread_new("server", run_loop, server);
  server_open(server);
  return server;
}

void
server_close(Server *server)
{
  invoke(server, close_api);
}

void
server_stop(Server *server)
{
  fake_release(server->service);
  server_close(server);
  g_main_loop_quit(server->loop);
  g_thread_join(server->thread);
  g_main_loop_unref(server->loop);
  g_main_context_unref(server->context);
  fake_service_free(server->service);
  dr_events_free(server->events);
  g_rmdir(server->dir);
  g_free(server->path);
  g_free(server->dir);
  g_free(server);
}

int
http_connect(const Server *server)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  struct timeval timeout = { .tv_sec = TIMEOUT_S };
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  g_strlcpy(address.sun_path, server->path, sizeof address.sun_path);
  g_assert_cmpint(connect(fd, (struct sockaddr *)&address, sizeof address), ==, 0);
  g_assert_cmpint(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout), ==, 0);
  g_assert_cmpint(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout), ==, 0);
  return fd;
}

/* A server that has closed meanwhile is not this function's affair. */
void
http_send(int fd, const char *text, gssize length)
{
  gsize len = length < 0 ? strlen(text) : (gsize)length;

  for (gsize at = 0; at < len;) {
    gssize n = send(fd, text + at, len - at, MSG_NOSIGNAL);

    if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
      return;
    g_assert_cmpint(n, >, 0);
    at += (gsize)n;
  }
}

char *
http_read_until(int fd, const char *text)
{
  g_autoptr(GString) all = g_string_new(NULL);
  char buffer[65536];
  gssize n;

  while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0) {
    g_string_append_len(all, buffer, n);
    if (text && strstr(all->str, text))
      break;
  }
  if (n < 0 && errno != ECONNRESET)
    g_error("no '%s' within %d s, but: %s", text ? text : "end of the stream", TIMEOUT_S, all->str);
  return g_strdup(all->str);
}

char *
http_read_all(int fd)
{
  return http_read_until(fd, NULL);
}

gboolean
http_is_closed(int fd, int timeout_ms)
{
  DrDeadline deadline = dr_deadline_in(timeout_ms);
  struct pollfd poll_fd = { .fd = fd, .events = 0 };

  return poll(&poll_fd, 1, dr_deadline_left(deadline)) > 0 && (poll_fd.revents & (POLLHUP | POLLERR));
}

static guint
status_of(const char *answer)
{
  g_assert_true(g_str_has_prefix(answer, "HTTP/1."));
  return (guint)g_ascii_strtoull(answer + strlen("HTTP/1.1 "), NULL, 10);
}

guint
http_call(const Server *server, const char *method, const char *path, const char *body, char **ret_answer)
{
  int fd = http_connect(server);
  g_autofree char *head = body ? g_strdup_printf("%s %s HTTP/1.1\r\nHost: d\r\nContent-Length: %zu\r\n\r\n",
                                                 method, path, strlen(body))
                               : g_strdup_printf("%s %s HTTP/1.1\r\nHost: d\r\n\r\n", method, path);
  g_autofree char *answer = NULL;
  guint status;

  http_send(fd, head, -1);
  if (body)
    http_send(fd, body, -1);
  answer = http_read_all(fd);
  close(fd);
  status = status_of(answer);
  if (ret_answer)
    *ret_answer = g_steal_pointer(&answer);
  return status;
}
