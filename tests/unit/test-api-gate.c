/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The API over TLS: that the server's limits hold for a client that comes through the gate, and who may do what. */
#include "api/access.h"
#include "base/deadline.h"
#include "base/error.h"
#include "test-api-util.h"
#include "test-net-util.h"

#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WAIT_MS 20000

static char *everybody[] = { (char *)"localhost", NULL };

typedef struct {
  Net net;
  DrApiAccess access;
  Server *server;
} Gate;

/* Clients have the name "localhost", as Net's certificates do. */
static void
gate_start(Gate *gate, const DrApiLimits *limits, char **clients, char **readers)
{
  net_set_up(&gate->net, NULL);
  gate->access = (DrApiAccess){
    .tcp = TRUE, .address = "127.0.0.1", .clients = clients, .readers = readers, .tls = gate->net.context
  };
  gate->server = server_start_with(limits, &gate->access);
}

static void
gate_stop(Gate *gate)
{
  server_stop(gate->server);
  net_tear_down(&gate->net, NULL);
}

static int
tcp_connect(Gate *gate)
{
  struct sockaddr_in address = { .sin_family = AF_INET,
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                 .sin_port = htons((guint16)dr_api_port(gate->server->api)) };
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  g_assert_cmpint(connect(fd, (struct sockaddr *)&address, sizeof address), ==, 0);
  return fd;
}

static DrConn *
tls_connect(Gate *gate)
{
  g_autoptr(GError) error = NULL;
  DrConn *conn = dr_conn_new_tls(gate->net.context, tcp_connect(gate), "localhost", "the gate",
                                 dr_deadline_in(WAIT_MS), &error);

  g_assert_no_error(error);
  return conn;
}

static void
say(DrConn *conn, const char *text)
{
  dr_conn_write(conn, text, strlen(text), WAIT_MS,
                NULL); /* who has been closed meanwhile is seen when reading */
}

/* All up to the end, of either kind; what came. */
static char *
hear(DrConn *conn)
{
  GString *all = g_string_new(NULL);
  DrDeadline deadline = dr_deadline_in(WAIT_MS);
  char chunk[16384];
  gssize n;

  while ((n = dr_conn_read(conn, chunk, sizeof chunk, dr_deadline_left(deadline), NULL)) > 0)
    g_string_append_len(all, chunk, n);
  g_assert_false(dr_deadline_passed(deadline));
  return g_string_free(all, FALSE);
}

static char *
ask(Gate *gate, const char *request)
{
  g_autoptr(DrConn) conn = tls_connect(gate);

  say(conn, request);
  return hear(conn);
}

static void
test_serves(void)
{
  Gate gate;
  g_autofree char *version = NULL, *created = NULL, *big = NULL;

  gate_start(&gate, NULL, everybody, NULL);
  version = ask(&gate, "GET /v1/version HTTP/1.1\r\nHost: d\r\n\r\n");
  assert_contains(version, "HTTP/1.1 200 OK");
  created = ask(
      &gate,
      "POST /v1/vms HTTP/1.1\r\nHost: d\r\nContent-Length: 30\r\n\r\n{\"name\":\"web9\",\"argv\":[\"qqq\"]}");
  assert_contains(created, "HTTP/1.1 201 ");
  big = ask(&gate, "GET /v1/vms/big HTTP/1.1\r\nHost: d\r\n\r\n"); /* megabytes come whole */
  g_assert_cmpuint(strlen(strstr(big, "\r\n\r\n") + 4), ==,
                   g_ascii_strtoull(strstr(big, "Content-Length: ") + strlen("Content-Length: "), NULL, 10));
  gate_stop(&gate);
}

static void
test_rights(void)
{
  static char *nobody[] = { (char *)"host[0-9]", NULL };
  Gate gate;
  g_autofree char *looked = NULL, *changed = NULL, *console = NULL, *stranger = NULL;

  gate_start(&gate, NULL, nobody, everybody);
  looked = ask(&gate, "GET /v1/vms HTTP/1.1\r\nHost: d\r\n\r\n");
  assert_contains(looked, "HTTP/1.1 200 OK");
  changed = ask(&gate, "POST /v1/vms/web1/pause HTTP/1.1\r\nHost: d\r\n\r\n");
  assert_contains(changed, "HTTP/1.1 403 Forbidden");
  assert_contains(changed, "\"code\":\"denied\"");
  console = ask(&gate, "GET /v1/vms/web1/console HTTP/1.1\r\nHost: d\r\n\r\n");
  assert_contains(console, "HTTP/1.1 403 Forbidden");
  gate_stop(&gate);

  gate_start(&gate, NULL, nobody, NULL);
  stranger = ask(&gate, "GET /nothing HTTP/1.1\r\nHost: d\r\n\r\n");
  assert_contains(stranger, "HTTP/1.1 403 Forbidden");
  gate_stop(&gate);
}

/* Before the handshake, and behind it. */
static void
test_silent(void)
{
  DrApiLimits limits = dr_api_limits;
  Gate gate;
  g_autoptr(DrConn) conn = NULL;
  g_autofree char *said = NULL, *version = NULL;
  int fd;

  limits.handshake_ms = 300;
  limits.request_ms = 300;
  gate_start(&gate, &limits, everybody, NULL);
  fd = tcp_connect(&gate);
  assert_readable(fd, WAIT_MS); /* its end */
  close(fd);
  conn = tls_connect(&gate);
  say(conn, "GET /v1/vers");
  said = hear(conn);
  g_assert_cmpstr(said, ==, "");
  version = ask(&gate, "GET /v1/version HTTP/1.1\r\nHost: d\r\n\r\n");
  assert_contains(version, "HTTP/1.1 200 OK");
  gate_stop(&gate);
}

static gboolean
becomes(const Server *server, guint status)
{
  DrDeadline deadline = dr_deadline_in(WAIT_MS);

  while (http_call(server, "GET", "/v1/version", NULL, NULL) != status) {
    if (dr_deadline_passed(deadline))
      return FALSE;
    g_usleep(20000);
  }
  return TRUE;
}

/* One that takes nothing of its megabytes has the only place, and loses it. */
static void
test_slow_reader(void)
{
  DrApiLimits limits = dr_api_limits;
  Gate gate;
  DrConn *conn;
  char byte;

  limits.idle_s = 3;
  limits.connections = 1;
  gate_start(&gate, &limits, everybody, NULL);
  conn = tls_connect(&gate);
  say(conn, "GET /v1/vms/big HTTP/1.1\r\nHost: d\r\n\r\n");
  g_assert_cmpint(dr_conn_read(conn, &byte, 1, WAIT_MS, NULL), ==, 1); /* it has its place */
  g_assert_true(becomes(gate.server, 503));
  g_assert_true(becomes(gate.server, 200));
  dr_conn_free(conn);
  gate_stop(&gate);
}

/* A client that goes while it waits for events gives its place back. */
static void
test_gone(void)
{
  DrApiLimits limits = dr_api_limits;
  Gate gate;
  DrConn *conn;
  char chunk[4096];

  limits.connections = 1;
  gate_start(&gate, &limits, everybody, NULL);
  for (int i = 0; i < 4; i++) {
    conn = tls_connect(&gate);
    say(conn, "GET /v1/events HTTP/1.1\r\nHost: d\r\n\r\n");
    g_assert_cmpint(dr_conn_read(conn, chunk, sizeof chunk, WAIT_MS, NULL), >, 0);
    if (i & 1)
      dr_conn_abort(conn);
    dr_conn_free(conn);
    g_assert_true(becomes(gate.server, 200));
  }
  gate_stop(&gate);
}

/* With clients in every state. */
static void
test_end(void)
{
  Gate gate;
  g_autoptr(DrConn) silent = NULL, streaming = NULL, slow = NULL;
  gint64 began;
  char chunk[4096];
  int fd;

  gate_start(&gate, NULL, everybody, NULL);
  fd = tcp_connect(&gate);
  silent = tls_connect(&gate);
  slow = tls_connect(&gate);
  say(slow, "GET /v1/vms/big HTTP/1.1\r\nHost: d\r\n\r\n");
  streaming = tls_connect(&gate);
  say(streaming, "GET /v1/events HTTP/1.1\r\nHost: d\r\n\r\n");
  g_assert_cmpint(dr_conn_read(streaming, chunk, sizeof chunk, WAIT_MS, NULL), >, 0);
  began = g_get_monotonic_time();
  gate_stop(&gate);
  g_assert_cmpint(g_get_monotonic_time() - began, <, 8 * G_USEC_PER_SEC);
  close(fd);
}

static void
test_groups(void)
{
  DrAccess access;
  g_autoptr(GError) error = NULL;
  g_autofree char *who = NULL;
  int ends[2];

  g_assert_true(
      dr_access_init(&access, &(DrApiAccess){ .read_group = "root", .operate_group = "4711" }, NULL));
  g_assert_cmpuint(access.read, ==, 0);
  g_assert_cmpuint(access.operate, ==, 4711);
  g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), ==, 0);
  g_assert_cmpint(dr_access_of_socket(&access, ends[0], &who), ==, DR_RIGHTS_ALL); /* ourselves */
  g_assert_true(g_str_has_prefix(who, "uid "));
  close(ends[0]);
  close(ends[1]);
  dr_access_clear(&access);

  g_assert_false(dr_access_init(&access, &(DrApiAccess){ .read_group = "no such group" }, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  assert_contains(error->message, "read-group");
  dr_access_clear(&access);
}

static void
test_names(void)
{
  static char *clients[] = { (char *)"*.Admin.example", (char *)"alice", NULL };
  static char *readers[] = { (char *)"*", NULL };
  const char *const alice[] = { "ALICE", NULL }, *const deep[] = { "x", "a.b.admin.EXAMPLE", NULL },
                    *const bob[] = { "bob", NULL }, *const none[] = { NULL };
  DrAccess access;

  g_assert_true(dr_access_init(&access, &(DrApiAccess){ .clients = clients, .readers = readers }, NULL));
  g_assert_cmpint(dr_access_of_names(&access, alice), ==, DR_RIGHTS_ALL);
  g_assert_cmpint(dr_access_of_names(&access, deep), ==, DR_RIGHTS_ALL);
  g_assert_cmpint(dr_access_of_names(&access, bob), ==, DR_RIGHTS_READ);
  g_assert_cmpint(dr_access_of_names(&access, none), ==, DR_RIGHTS_NONE);
  dr_access_clear(&access);
  g_assert_true(dr_access_init(&access, NULL, NULL));
  g_assert_cmpint(dr_access_of_names(&access, alice), ==, DR_RIGHTS_NONE);
  dr_access_clear(&access);
}

void
add_gate_tests(void)
{
  g_test_add_func("/gate/serves", test_serves);
  g_test_add_func("/gate/rights", test_rights);
  g_test_add_func("/gate/silent", test_silent);
  g_test_add_func("/gate/slow-reader", test_slow_reader);
  g_test_add_func("/gate/gone", test_gone);
  g_test_add_func("/gate/end", test_end);
  g_test_add_func("/access/groups", test_groups);
  g_test_add_func("/access/names", test_names);
}
