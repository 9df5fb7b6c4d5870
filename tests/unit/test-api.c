/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The API over a socket: routes, errors, limits, sockets. See test-api-stream.c and test-api-cli.c for the
 * rest.
 *
 * `test-api --serve SOCKET` serves the fake for trying the command line by hand. */
#include "base/error.h"
#include "base/fd.h"
#include "test-api-util.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define MANY 100000

/* --- Routes and errors --- */

typedef struct {
  const char *method, *path, *body;
  guint status;
  const char *part; /* of the answer */
} Case;

static const Case cases[] = {
  { "GET", "/v1/version", NULL, 200, "\"version\"" },
  { "GET", "/v1/vms", NULL, 200, "\"web1\"" },
  { "HEAD", "/v1/vms", NULL, 200, "Content-Length: " },
  { "POST", "/v1/vms", "{\"name\":\"web9\",\"argv\":[\"q\"]}", 201, "\"web9\"" },
  { "POST", "/v1/vms", "{\"name\":\"taken\"}", 409,
    "\"code\":\"exists\",\"remedy\":\"choose another name\"" },
  { "POST", "/v1/vms", "{\"name\":\"a b\"}", 400, "application/problem+json" },
  { "POST", "/v1/vms/adopt", "{\"name\":\"web9\",\"pid\":1}", 201, "\"web9\"" },
  { "GET", "/v1/vms/adopt", NULL, 200, "\"adopt\"" },
  { "GET", "/v1/vms/web1", NULL, 200, "\"running\"" },
  { "GET", "/v1/vms/web%31", NULL, 200, "\"web1\"" },
  { "GET", "/v1/vms/web1?x=%20", NULL, 200, "\"web1\"" },
  { "GET", "/v1/vms/a%2Fb", NULL, 400, "no name of a VM" },
  { "GET", "/v1/vms/%zz", NULL, 400, NULL },
  { "GET", "/v1/vms/%00", NULL, 400, NULL },
  { "GET", "/v1/vms/nosuch", NULL, 404, "\"code\":\"not-found\"" },
  { "GET", "/v1/vms/attention", NULL, 409, "\"code\":\"attention\",\"remedy\":\"look at both processes\"" },
  { "GET", "/v1/vms/", NULL, 404, "there is no path" },
  { "GET", "/v1/vms/web1/", NULL, 404, "there is no path" },
  { "GET", "/v1/vms/web1/nothing", NULL, 404, "there is no path" },
  { "GET", "/", NULL, 404, "there is no path" },
  { "GET", "/v1", NULL, 404, NULL },
  { "DELETE", "/v1/vms/web1", NULL, 409, "\"busy\"" },
  { "DELETE", "/v1/vms/web1?force=true", NULL, 204, NULL },
  { "DELETE", "/v1/vms/web1?force=perhaps", NULL, 400, "force" },
  { "POST", "/v1/vms/web1/pause", NULL, 200, "\"paused\"" },
  { "POST", "/v1/vms/web1/pause", "{}", 200, "\"paused\"" },
  { "POST", "/v1/vms/web1/pause", "{\"x\":1}", 400, "takes no body" },
  { "POST", "/v1/vms/web1/resume", NULL, 200, "\"running\"" },
  { "POST", "/v1/vms/web1/stop", NULL, 200, "\"stopped\"" },
  { "POST", "/v1/vms/web1/stop", "{\"force\":true}", 200, "\"stopped\"" },
  { "POST", "/v1/vms/web1/qmp", "{\"execute\":\"query-status\"}", 200, "{\"return\":{" },
  { "POST", "/v1/vms/web1/qmp", "{\"execute\":\"quit\"}", 409, "\"refused\"" },
  { "POST", "/v1/vms/web1/qmp", NULL, 400, "it is empty" },
  { "GET", "/v1/vms/web1/console", NULL, 426, "Upgrade: websocket" },
  { "POST", "/v1/upgrade", "{\"vms\":[\"nosuch\"]}", 404, "nosuch" },
  { "POST", "/v1/upgrade", "{}", 400, NULL },
  { "POST", "/v1/upgrade/check", "{\"all\":true}", 200, "\"ok\":true" },
  { "GET", "/v1/jobs", NULL, 200, "[]" },
  { "GET", "/v1/jobs/1", NULL, 404, "\"not-found\"" },
  { "GET", "/v1/jobs/1?wait=61", NULL, 400, "wait" },
  { "GET", "/v1/jobs/1?wait=-1", NULL, 400, "wait" },
  { "POST", "/v1/jobs/1/cancel", NULL, 404, NULL },
  { "GET", "/v1/jobs/1/report", NULL, 404, "\"not-found\"" },
  { "POST", "/v1/jobs/1/report", NULL, 405, NULL },
  { "GET", "/v1/stats", NULL, 200, "\"kinds\"" },
  { "GET", "/v1/stats?kind=upgrade", NULL, 200, "\"kinds\"" },
  { "GET", "/v1/stats?kind=x", NULL, 400, "no kind of job" },
  { "GET", "/v1/peers", NULL, 200, "\"host3\"" },
  { "POST", "/v1/peers", "{\"name\":\"host9\",\"host\":\"192.0.2.9\",\"port\":7000}", 201, "\"host9\"" },
  { "POST", "/v1/peers", "{\"name\":\"taken\"}", 409, "\"exists\"" },
  { "POST", "/v1/peers", NULL, 400, "it is empty" },
  { "DELETE", "/v1/peers/host2", NULL, 204, NULL },
  { "DELETE", "/v1/peers/nosuch", NULL, 404, "\"not-found\"" },
  { "GET", "/v1/peers/host2", NULL, 405, "Allow: DELETE" },
  { "POST", "/v1/peers/host2/test", NULL, 200, "\"round_trip_ms\":0.25" },
  { "POST", "/v1/peers/nosuch/test", NULL, 404, "\"not-found\"" },
  { "GET", "/v1/events?job=1", NULL, 404, "\"not-found\"" },
  { "GET", "/metrics", NULL, 200, "drover_vms{state=\"running\"} 1" },
  { "GET", "/ui", NULL, 200, "Content-Type: text/html; charset=utf-8" },
  { "GET", "/ui/", NULL, 200, "frame-ancestors 'none'" },
  { "GET", "/ui/app.js", NULL, 200, "Content-Type: text/javascript; charset=utf-8" },
  { "GET", "/ui/uplot.css", NULL, 200, "Content-Type: text/css; charset=utf-8" },
  { "GET", "/ui/icon.svg", NULL, 200, "X-Content-Type-Options: nosniff" },
  { "HEAD", "/ui/app.css", NULL, 200, "ETag: \"" },
  { "GET", "/ui/nothing.js", NULL, 404, "there is no file 'nothing.js' in the dashboard" },
  { "GET", "/ui/..%2fapp.js", NULL, 404, "\"not-found\"" },
  { "GET", "/ui/vendor/uplot", NULL, 404, "there is no path" },
  { "POST", "/ui/", "{}", 405, "Allow: GET, HEAD" },
  { "PUT", "/v1/vms", NULL, 405, "Allow: GET, HEAD, POST" },
  { "PATCH", "/v1/vms/web1", NULL, 405, "Allow: GET, HEAD, DELETE" },
  { "POST", "/v1/events", "{}", 405, "Allow: GET\r\n" },
  { "HEAD", "/v1/events", NULL, 405, NULL },
  { "FROB", "/metrics", NULL, 405, "Allow: GET, HEAD" },
  { "POST", "/v1/vms", "{\"name\":", 400, "not valid JSON: <data>:1:" },
  { "POST", "/v1/vms", "nix", 400, "not valid JSON" },
  { "POST", "/v1/vms", "[]", 400, "not an object" },
  { "POST", "/v1/vms", "\"x\"", 400, "not an object" },
  { "POST", "/v1/vms", " ", 400, NULL },
};

static void
test_routes(void)
{
  g_autoptr(Server) server = server_start(NULL);

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    const Case *c = &cases[i];
    g_autofree char *answer = NULL;
    guint status = http_call(server, c->method, c->path, c->body, &answer);

    if (status != c->status)
      g_error("%s %s: %u instead of %u: %s", c->method, c->path, status, c->status, answer);
    if (c->part)
      assert_contains(answer, c->part);
    /* What libsoup itself cannot read it refuses without a word. */
    if (status >= 400 && !g_str_equal(c->method, "HEAD") && !strstr(c->path, "%zz"))
      assert_contains(answer, "\"detail\":\"");
  }
}

/* The dashboard's files are asked for anew each time, and sent only when they have changed. */
static void
test_ui_etag(void)
{
  g_autoptr(Server) server = server_start(NULL);
  g_autofree char *first = NULL, *etag = NULL, *request = NULL, *again = NULL;
  const char *at;
  int fd = http_connect(server);

  g_assert_cmpuint(http_call(server, "GET", "/ui/", NULL, &first), ==, 200);
  at = strstr(first, "ETag: ");
  g_assert_nonnull(at);
  etag = g_strndup(at + strlen("ETag: "), strcspn(at + strlen("ETag: "), "\r"));
  request = g_strdup_printf("GET /ui/ HTTP/1.1\r\nHost: d\r\nIf-None-Match: %s\r\n\r\n", etag);
  http_send(fd, request, -1);
  again = http_read_all(fd);
  close(fd);
  assert_contains(again, "HTTP/1.1 304 ");
  g_assert_null(strstr(again, "<html"));
}

/* A page elsewhere, in a browser that droverd lets in. */
static void
test_foreign_page(void)
{
  static const struct {
    const char *site, *path, *status;
  } requests[] = {
    { "cross-site", "/v1/vms", " 403 " },  { "same-site", "/v1/vms", " 403 " },
    { "same-origin", "/v1/vms", " 200 " }, { "none", "/v1/vms", " 200 " },
    { "cross-site", "/ui/", " 200 " },
  };
  g_autoptr(Server) server = server_start(NULL);

  for (guint i = 0; i < G_N_ELEMENTS(requests); i++) {
    g_autofree char *request = g_strdup_printf("GET %s HTTP/1.1\r\nHost: d\r\nSec-Fetch-Site: %s\r\n\r\n",
                                               requests[i].path, requests[i].site);
    g_autofree char *answer = NULL;
    int fd = http_connect(server);

    http_send(fd, request, -1);
    answer = http_read_all(fd);
    close(fd);
    assert_contains(answer, requests[i].status);
  }
}

/* A browser that says no more than that: a page of another site opens a console, or posts a form. */
static void
test_foreign_origin(void)
{
  static const struct {
    const char *origin, *status;
  } requests[] = {
    { "https://evil.example", " 403 " },
    { "null", " 403 " },
    { "http://d:7414", " 403 " },
    { "https://D:7414", " 200 " },
  };
  g_autoptr(Server) server = server_start(NULL);

  for (guint i = 0; i < G_N_ELEMENTS(requests); i++) {
    g_autofree char *request =
        g_strdup_printf("GET /v1/vms HTTP/1.1\r\nHost: d:7414\r\nOrigin: %s\r\n\r\n", requests[i].origin);
    g_autofree char *answer = NULL;
    int fd = http_connect(server);

    http_send(fd, request, -1);
    answer = http_read_all(fd);
    close(fd);
    assert_contains(answer, requests[i].status);
  }
}

static void
test_job_wait(void)
{
  g_autoptr(Server) server = server_start(NULL);
  g_autofree char *started = NULL, *ended = NULL, *running = NULL, *cancelled = NULL, *again = NULL;

  g_assert_cmpuint(http_call(server, "POST", "/v1/upgrade", "{\"vms\":[\"web1\",\"hang\"]}", &started), ==,
                   202);
  assert_contains(started, "\"id\":\"1\"");
  g_assert_cmpuint(http_call(server, "GET", "/v1/jobs/1?wait=60", NULL, &ended), ==, 200);
  assert_contains(ended, "\"succeeded\"");
  g_assert_cmpuint(http_call(server, "GET", "/v1/jobs/2?wait=1", NULL, &running), ==, 200);
  assert_contains(running, "\"running\"");
  g_assert_cmpuint(http_call(server, "POST", "/v1/jobs/2/cancel", NULL, NULL), ==, 200);
  g_assert_cmpuint(http_call(server, "GET", "/v1/jobs/2?wait=60", NULL, &cancelled), ==, 200);
  assert_contains(cancelled, "\"cancelled\"");
  g_assert_cmpuint(http_call(server, "POST", "/v1/jobs/2/cancel", NULL, &again), ==, 409);
}

/* What libsoup itself has to say to. */
static void
test_bad_requests(void)
{
  static const char *const requests[] = {
    "nonsense\r\n\r\n",
    "GET / HTTP/9.9\r\nHost: d\r\n\r\n",
    "GET /v1/vms HTTP/1.0\r\n\r\n",
    "GET /v1/vms HTTP/1.1\r\n\r\n",
    "GET http:/// HTTP/1.1\r\nHost: d\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: d\r\n\r\n",
    "CONNECT d:80 HTTP/1.1\r\nHost: d\r\n\r\n",
    "GET /v1/vms HTTP/1.1\r\nHost: d\r\nRange: bytes=0-0,1-1,2-2\r\n\r\n",
    "POST /v1/vms HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "POST /v1/vms HTTP/1.1\r\nHost: d\r\nContent-Length: -5\r\n\r\n",
    "POST /v1/vms HTTP/1.1\r\nHost: d\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "GET /v1/vms HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "GET /v1/vms/web1/console HTTP/1.1\r\nHost: d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 12\r\nSec-WebSocket-Key: x\r\n\r\n",
    "\r\n\r\n\r\n",
    "",
  };
  g_autoptr(Server) server = server_start(NULL);

  for (guint i = 0; i < G_N_ELEMENTS(requests); i++) {
    int fd = http_connect(server);
    g_autofree char *answer = NULL;

    http_send(fd, requests[i], -1);
    shutdown(fd, SHUT_WR);
    answer = http_read_all(fd);
    close(fd);
    g_assert_cmpuint(http_call(server, "GET", "/v1/version", NULL, NULL), ==, 200);
  }
}

/* --- Bodies --- */

static char *
post_bytes(const Server *server, const char *head, const char *bytes, gsize len)
{
  int fd = http_connect(server);
  char *answer;

  http_send(fd, head, -1);
  http_send(fd, bytes, (gssize)len);
  answer = http_read_all(fd);
  close(fd);
  return answer;
}

static void
test_large_body(void)
{
  g_autoptr(Server) server = server_start(NULL);
  gsize len = 10 * 1000 * 1000;
  g_autofree char *bytes = g_malloc(len);
  g_autofree char *chunked = g_strdup_printf(
      "POST /v1/vms HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n%zx\r\n", len - 7);
  g_autofree char *whole = NULL, *in_chunks = NULL, *expecting = NULL;

  memset(bytes, ' ', len);
  whole =
      post_bytes(server, "POST /v1/vms HTTP/1.1\r\nHost: d\r\nContent-Length: 10000000\r\n\r\n", bytes, len);
  assert_contains(whole, "HTTP/1.1 413 ");
  assert_contains(whole, "larger than the limit of 1048576 bytes");
  memcpy(bytes + len - 7, "\r\n0\r\n\r\n", 7);
  in_chunks = post_bytes(server, chunked, bytes, len);
  assert_contains(in_chunks, "HTTP/1.1 413 ");
  /* One that asks first is told so before it sends. */
  expecting = post_bytes(
      server, "POST /v1/vms HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\nContent-Length: 10000000\r\n\r\n",
      "", 0);
  assert_contains(expecting, "HTTP/1.1 413 ");
  g_free(expecting);
  expecting = post_bytes(
      server, "POST /v1/vms HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\nContent-Length: 15\r\n\r\n",
      "{\"name\":\"web9\"}", 15);
  assert_contains(expecting, "HTTP/1.1 100 ");
  assert_contains(expecting, "HTTP/1.1 201 ");
  g_assert_cmpuint(http_call(server, "GET", "/v1/version", NULL, NULL), ==, 200);
}

/* A client that never stops is cut off. */
static void
test_endless_body(void)
{
  g_autoptr(Server) server = server_start(NULL);
  g_autofree char *chunk = g_malloc0(0x100000 + 2);
  int fd = http_connect(server);
  int sent;

  memcpy(chunk + 0x100000, "\r\n", 2);
  http_send(fd, "POST /v1/vms HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n", -1);
  for (sent = 0; sent < 200 && !http_is_closed(fd, 0); sent++) {
    http_send(fd, "100000\r\n", -1);
    http_send(fd, chunk, 0x100000 + 2);
  }
  g_assert_cmpint(sent, <, 60);
  close(fd);
}

static void
test_nested(void)
{
  g_autoptr(Server) server = server_start(NULL);
  g_autofree char *body = g_malloc0(2 * MANY + 1);
  g_autofree char *answer = NULL;

  memset(body, '[', MANY);
  memset(body + MANY, ']', MANY);
  g_assert_cmpuint(http_call(server, "POST", "/v1/vms", body, &answer), ==, 400);
  assert_contains(answer, "nested deeper");
  g_assert_cmpuint(http_call(server, "GET", "/v1/version", NULL, NULL), ==, 200);
}

/* --- Connections --- */

static guint
wait_for_status(const Server *server, guint status)
{
  guint got = 0;

  for (int i = 0; i < 400 && got != status; i++) {
    got = http_call(server, "GET", "/v1/version", NULL, NULL);
    if (got != status)
      g_usleep(5000);
  }
  return got;
}

static void
test_many_connections(void)
{
  g_autoptr(Server) server = server_start(NULL);
  int fds[64];
  g_autofree char *answer = NULL;

  for (guint i = 0; i < G_N_ELEMENTS(fds); i++)
    fds[i] = http_connect(server);
  g_assert_cmpuint(http_call(server, "GET", "/v1/version", NULL, &answer), ==, 503);
  assert_contains(answer, "64 clients");
  http_send(fds[0], "GET /v1/version HTTP/1.1\r\nHost: d\r\n\r\n", -1); /* those that were there are served */
  g_free(g_steal_pointer(&answer));
  answer = http_read_all(fds[0]);
  assert_contains(answer, "HTTP/1.1 200");
  for (guint i = 0; i < G_N_ELEMENTS(fds); i++)
    close(fds[i]);
  g_assert_cmpuint(wait_for_status(server, 200), ==, 200);
}

/* More than are accepted at all: they wait, and are served when there's room. */
static void
test_connection_flood(void)
{
  g_autoptr(Server) server = server_start(NULL);
  int fds[300];

  for (guint i = 0; i < G_N_ELEMENTS(fds); i++)
    fds[i] = http_connect(server);
  for (guint i = 0; i < G_N_ELEMENTS(fds); i++)
    close(fds[i]);
  g_assert_cmpuint(wait_for_status(server, 200), ==, 200);
}

static void
test_silent_clients(void)
{
  DrApiLimits limits = dr_api_limits;
  g_autoptr(Server) server = NULL;
  int silent, dripping, drops;

  limits.request_ms = 300;
  server = server_start(&limits);
  silent = http_connect(server);
  dripping = http_connect(server);
  http_send(dripping, "GET /v1/version HTTP/1.1\r\n", -1);
  for (drops = 0; drops < 200 && !http_is_closed(dripping, 20); drops++)
    http_send(dripping, "X-A: b\r\n", -1);
  g_assert_cmpint(drops, <, 100);
  g_assert_true(http_is_closed(silent, 5000));
  close(silent);
  close(dripping);
  g_assert_cmpuint(http_call(server, "GET", "/v1/version", NULL, NULL), ==, 200);
}

/* An answer of several MB that nobody takes. */
static void
test_slow_reader(void)
{
  DrApiLimits limits = dr_api_limits;
  g_autoptr(Server) server = NULL;
  int fd;

  limits.idle_s = 1;
  limits.connections = 1;
  server = server_start(&limits);
  fd = http_connect(server);
  http_send(fd, "GET /v1/vms/big HTTP/1.1\r\nHost: d\r\n\r\n", -1);
  g_assert_cmpuint(wait_for_status(server, 503), ==, 503);
  g_assert_true(http_is_closed(fd, 10000));
  close(fd);
  g_assert_cmpuint(wait_for_status(server, 200), ==, 200);
}

/* The answer comes to a client that has gone. */
static void
test_gone_client(void)
{
  g_autoptr(Server) server = server_start(NULL);
  static const char request[] =
      "POST /v1/vms HTTP/1.1\r\nHost: d\r\nContent-Length: 15\r\n\r\n{\"name\":\"slow\"}";

  for (int i = 0; i < 10; i++) {
    int fd = http_connect(server);

    http_send(fd, request, -1);
    g_assert_cmpuint(http_call(server, "GET", "/v1/version", NULL, NULL), ==, 200);
    close(fd);
  }
  fake_release(server->service);
  g_assert_cmpuint(http_call(server, "POST", "/v1/vms", "{\"name\":\"slow\"}", NULL), ==, 201);
}

/* Everything is under way when the server ends. */
static void
test_end(void)
{
  Server *server = server_start(NULL);
  static const char *const requests[] = {
    "GET /v1/events HTTP/1.1\r\nHost: d\r\n\r\n",
    "GET /v1/jobs/1?wait=60 HTTP/1.1\r\nHost: d\r\n\r\n",
    "GET /v1/vms/flood/console HTTP/1.1\r\nHost: d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n\r\n",
    "GET /v1/vms/big HTTP/1.1\r\nHost: d\r\n\r\n",
    "POST /v1/vms HTTP/1.1\r\nHost: d\r\nContent-Length: 100\r\n\r\n",
    "",
  };
  int fds[2 * G_N_ELEMENTS(requests)];
  gint64 start;

  g_assert_cmpuint(http_call(server, "POST", "/v1/upgrade", "{\"vms\":[\"hang\"]}", NULL), ==, 202);
  for (guint i = 0; i < G_N_ELEMENTS(fds); i++) {
    fds[i] = http_connect(server);
    http_send(fds[i], requests[i % G_N_ELEMENTS(requests)], -1);
  }
  g_assert_cmpuint(http_call(server, "GET", "/v1/version", NULL, NULL), ==, 200);
  start = g_get_monotonic_time();
  server_close(server);
  g_assert_cmpint(g_get_monotonic_time() - start, <, 5 * G_USEC_PER_SEC); /* not the 60 s of the wait */
  for (guint i = 0; i < G_N_ELEMENTS(fds); i++) {
    g_assert_true(http_is_closed(fds[i], 1000));
    close(fds[i]);
  }
  g_assert_false(g_file_test(server->path, G_FILE_TEST_EXISTS));
  server_stop(server);
}

/* --- The socket --- */

static void
test_socket(void)
{
  g_autoptr(Server) server = server_start(NULL);
  g_autofree char *stale = g_build_filename(server->dir, "stale.sock", NULL);
  g_autofree char *file = g_build_filename(server->dir, "file", NULL);
  g_autofree char *absent = g_build_filename(server->dir, "absent", "api.sock", NULL);
  g_autofree char *longest = g_strnfill(200, 'x');
  g_autoptr(GError) in_use = NULL, no_socket = NULL, no_directory = NULL, too_long = NULL, none = NULL;
  DrApi *api;
  struct stat st;

  g_assert_cmpint(stat(server->path, &st), ==, 0);
  g_assert_cmpint(st.st_mode & 07777, ==, 0600);
  g_assert_null(dr_api_new(server->service, server->events, server->path, NULL, &in_use));
  g_assert_error(in_use, DR_ERROR, DR_ERROR_EXISTS);
  assert_contains(in_use->message, "another droverd runs on");
  g_assert_cmpuint(http_call(server, "GET", "/v1/version", NULL, NULL), ==, 200);

  g_assert_true(g_file_set_contents(file, "x", 1, NULL));
  g_assert_null(dr_api_new(server->service, server->events, file, NULL, &no_socket));
  g_assert_error(no_socket, DR_ERROR, DR_ERROR_EXISTS);
  g_assert_null(dr_api_new(server->service, server->events, absent, NULL, &no_directory));
  g_assert_error(no_directory, DR_ERROR, DR_ERROR_IO);
  g_assert_null(dr_api_new(server->service, server->events, longest, NULL, &too_long));
  g_assert_error(too_long, DR_ERROR, DR_ERROR_INVALID);

  api = dr_api_new(server->service, server->events, stale, NULL, NULL);
  g_assert_cmpint(rename(stale, file), ==, 0); /* as if it had been killed: the file stays */
  dr_api_free(api);
  api = dr_api_new(server->service, server->events, file, NULL, &none);
  g_assert_no_error(none);
  dr_api_free(api);
  g_assert_false(g_file_test(file, G_FILE_TEST_EXISTS));
}

static int
serve(const char *path)
{
  DrEvents *events = dr_events_new();
  g_autoptr(GError) error = NULL;
  g_autoptr(DrApi) api = dr_api_new(fake_service_new(events), events, path, NULL, &error);

  if (!api)
    g_error("%s", error->message);
  g_main_loop_run(g_main_loop_new(NULL, FALSE));
  return 0;
}

int
main(int argc, char **argv)
{
  if (argc == 3 && g_str_equal(argv[1], "--serve"))
    return serve(argv[2]);
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/api/routes", test_routes);
  g_test_add_func("/api/ui/etag", test_ui_etag);
  g_test_add_func("/api/ui/foreign-page", test_foreign_page);
  g_test_add_func("/api/ui/foreign-page-origin", test_foreign_origin);
  g_test_add_func("/api/job-wait", test_job_wait);
  g_test_add_func("/api/bad-requests", test_bad_requests);
  g_test_add_func("/api/large-body", test_large_body);
  g_test_add_func("/api/endless-body", test_endless_body);
  g_test_add_func("/api/nested", test_nested);
  g_test_add_func("/api/many-connections", test_many_connections);
  g_test_add_func("/api/connection-flood", test_connection_flood);
  g_test_add_func("/api/silent-clients", test_silent_clients);
  g_test_add_func("/api/slow-reader", test_slow_reader);
  g_test_add_func("/api/gone-client", test_gone_client);
  g_test_add_func("/api/end", test_end);
  g_test_add_func("/api/socket", test_socket);
  add_stream_tests();
  add_cli_tests();
  add_gate_tests();
  return g_test_run();
}
