/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Event streams, WebSocket frames, consoles. */
#include "api/ws.h"
#include "base/error.h"
#include "test-api-util.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MB (1024 * 1024)

/* --- Events --- */

static int
open_events(const Server *server, const char *query)
{
  int fd = http_connect(server);
  g_autofree char *request = g_strdup_printf("GET /v1/events%s HTTP/1.1\r\nHost: d\r\n\r\n", query);

  http_send(fd, request, -1);
  return fd;
}

static void
publish(const Server *server, const char *vm, const char *text)
{
  dr_events_publish(server->events,
                    dr_json("{'type': <'vm'>, 'vm': <{'name': <%s>, 'state': <%s>}>}", vm, text));
}

static void
test_events(void)
{
  g_autoptr(Server) server = server_start(NULL);
  int all = open_events(server, ""), one = open_events(server, "?vm=web2");
  g_autofree char *head = http_read_until(all, ":\n\n");
  g_autofree char *head_one = http_read_until(one, ":\n\n");
  g_autofree char *first = NULL, *filtered = NULL;

  assert_contains(head, "Content-Type: text/event-stream");
  publish(server, "web1", "paused");
  publish(server, "web2", "running");
  first = http_read_until(all, "web2");
  assert_contains(first,
                  "event: vm\ndata: {\"type\":\"vm\",\"vm\":{\"name\":\"web1\",\"state\":\"paused\"}}\n\n");
  filtered = http_read_until(one, "web");
  g_assert_null(strstr(filtered, "web1"));
  assert_contains(filtered, "web2");
  close(all);
  close(one);
}

static void
test_job_events(void)
{
  g_autoptr(Server) server = server_start(NULL);
  g_autofree char *seen = NULL, *late = NULL;
  int fd;

  g_assert_cmpuint(http_call(server, "POST", "/v1/upgrade", "{\"vms\":[\"web1\",\"web2\"]}", NULL), ==, 202);
  fd = open_events(server, "?job=1");
  seen = http_read_all(fd); /* it ends with the job */
  close(fd);
  assert_contains(seen, "\"state\":\"succeeded\"");
  g_assert_null(strstr(seen, "\"id\":\"2\""));
  g_assert_true(g_str_has_suffix(seen, "0\r\n\r\n"));
  fd = open_events(server, "?job=1");
  late = http_read_all(fd);
  close(fd);
  assert_contains(late, "\"state\":\"succeeded\"");
}

static void
test_comment(void)
{
  DrApiLimits limits = dr_api_limits;
  g_autoptr(Server) server = NULL;
  g_autofree char *seen = NULL;
  int fd;

  limits.comment_ms = 50;
  server = server_start(&limits);
  fd = open_events(server, "");
  seen = http_read_until(fd, ":\n\n\r\n3\r\n:\n\n\r\n3\r\n:\n\n");
  assert_contains(seen, ":\n\n\r\n3\r\n:");
  close(fd);
}

/* As many as there may be; one that leaves makes room at once. */
static void
test_stream_limit(void)
{
  DrApiLimits limits = dr_api_limits;
  g_autoptr(Server) server = NULL;
  int fds[3];

  limits.streams = G_N_ELEMENTS(fds);
  server = server_start(&limits);
  for (guint i = 0; i < G_N_ELEMENTS(fds); i++) {
    g_autofree char *head = NULL;

    fds[i] = open_events(server, "");
    head = http_read_until(fds[i], ":\n\n");
    assert_contains(head, "200 OK");
  }
  g_assert_cmpuint(http_call(server, "GET", "/v1/events", NULL, NULL), ==, 503);
  close(fds[0]);
  for (int i = 0; i < 100; i++) {
    g_autofree char *head = NULL;

    fds[0] = open_events(server, "");
    head = http_read_until(fds[0], "\r\n\r\n");
    if (strstr(head, "200 OK"))
      break;
    close(fds[0]);
    fds[0] = -1;
  }
  g_assert_cmpint(fds[0], >=, 0);
  for (guint i = 0; i < G_N_ELEMENTS(fds); i++)
    close(fds[i]);
}

static void
publish_much(const Server *server)
{
  g_autofree char *text = g_strnfill(4096, 'x');

  for (int i = 0; i < 3000; i++)
    publish(server, "web1", text);
  publish(server, "web1", "last");
}

/* One that reads late is told what it lost and gets the newest. */
static void
test_late_reader(void)
{
  g_autoptr(Server) server = server_start(NULL);
  int fd = open_events(server, "");
  g_autofree char *head = http_read_until(fd, ":\n\n");
  g_autofree char *seen = NULL;

  publish_much(server);
  seen = http_read_until(fd, "\"last\"");
  assert_contains(seen, "event: lost\ndata: {\"type\":\"lost\",\"lost\":");
  g_assert_cmpuint(strlen(seen), <, 3 * MB); /* of 12 */
  close(fd);
}

static void
test_dropped_reader(void)
{
  DrApiLimits limits = dr_api_limits;
  g_autoptr(Server) server = NULL;
  g_autofree char *head = NULL;
  int fd;

  limits.comment_ms = 200;
  server = server_start(&limits);
  fd = open_events(server, "");
  head = http_read_until(fd, ":\n\n");
  publish_much(server);
  g_assert_true(http_is_closed(fd, 5000));
  close(fd);
}

/* --- Frames --- */

/* Feeds bytes in pieces; returns all payload, and how many control frames there were. */
static char *
read_frames(const GByteArray *bytes, gsize piece, gboolean from_client, guint *ret_controls, GError **error)
{
  DrWsReader reader = { .from_client = from_client };
  g_autoptr(GByteArray) payload = g_byte_array_new();

  *ret_controls = 0;
  for (gsize at = 0; at < bytes->len;) {
    DrWsOpcode control;
    gssize n = dr_ws_read(&reader, bytes->data + at, MIN(piece, bytes->len - at), payload, &control, error);

    if (n < 0)
      return NULL;
    at += (gsize)n;
    *ret_controls += control != DR_WS_MORE;
  }
  return g_strndup((const char *)payload->data, payload->len);
}

static void
test_frames(void)
{
  static const gsize lengths[] = { 0, 1, 125, 126, 127, 65535, 65536, 100000 };
  g_autoptr(GString) expected = g_string_new(NULL);

  for (int from_client = 0; from_client < 2; from_client++) {
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    g_string_truncate(expected, 0);
    for (guint i = 0; i < G_N_ELEMENTS(lengths); i++) {
      g_autofree char *text = g_strnfill(lengths[i], (char)('a' + i));

      dr_ws_append(bytes, DR_WS_BINARY, text, lengths[i], from_client);
      dr_ws_append(bytes, DR_WS_PING, "ping", i ? 4 : 0, from_client);
      g_string_append(expected, text);
    }
    dr_ws_append_close(bytes, 1000, "good bye", from_client);
    for (gsize piece = 1; piece < 200000; piece = piece * 3 + 1) {
      guint controls;
      g_autofree char *payload = read_frames(bytes, piece, from_client, &controls, NULL);

      g_assert_cmpstr(payload, ==, expected->str);
      g_assert_cmpuint(controls, ==, G_N_ELEMENTS(lengths) + 1);
    }
  }
}

static void
test_bad_frames(void)
{
  static const struct {
    guint8 bytes[16];
    gsize len;
    gboolean ok;
  } cases[] = {
    { { 0x82, 0x01, 'a' }, 3, TRUE },
    { { 0x02, 0x01, 'a', 0x89, 0x00, 0x80, 0x01, 'b' }, 8, TRUE }, /* fragments with a ping between */
    { { 0x82, 0x81, 0, 0, 0, 0, 'a' }, 7, FALSE },                 /* masked */
    { { 0xc2, 0x01, 'a' }, 3, FALSE },                             /* reserved bit */
    { { 0x80, 0x01, 'a' }, 3, FALSE },                             /* continues nothing */
    { { 0x02, 0x01, 'a', 0x82, 0x01, 'b' }, 6, FALSE },            /* begins inside a message */
    { { 0x83, 0x01, 'a' }, 3, FALSE },                             /* unknown */
    { { 0x8b, 0x00 }, 2, FALSE },                                  /* unknown control */
    { { 0x09, 0x00 }, 2, FALSE },                                  /* fragmented control */
    { { 0x89, 0x7e, 0, 126 }, 4, FALSE },                          /* long control */
    { { 0x82, 0x7f, 0xff, 0, 0, 0, 0, 0, 0, 0 }, 10, FALSE },      /* 2^63 and more */
  };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_autoptr(GError) error = NULL;
    g_autofree char *payload = NULL;
    guint controls;

    g_byte_array_append(bytes, cases[i].bytes, (guint)cases[i].len);
    payload = read_frames(bytes, 1, FALSE, &controls, &error);
    if (cases[i].ok)
      g_assert_no_error(error);
    else
      g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  }
}

/* --- Consoles --- */

static int
open_console(const Server *server, const char *vm)
{
  int fd = http_connect(server);
  g_autofree char *request =
      g_strdup_printf("GET /v1/vms/%s/console HTTP/1.1\r\nHost: d\r\nUpgrade: websocket\r\nConnection: "
                      "keep-alive, Upgrade\r\n"
                      "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n"
                      "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
                      vm);
  g_autoptr(GString) head = g_string_new(NULL);
  char c;

  http_send(fd, request, -1);
  while (!g_str_has_suffix(head->str, "\r\n\r\n") && recv(fd, &c, 1, 0) == 1)
    g_string_append_c(head, c);
  assert_contains(head->str, "101 Switching Protocols");
  assert_contains(head->str, "Connection: Upgrade\r\n");
  g_assert_null(strstr(head->str, "deflate"));
  return fd;
}

/* Reads payload until there are `want` bytes of it, a control frame, or the end. Returns the opcode of
 * that frame. */
static DrWsOpcode
read_console(int fd, DrWsReader *reader, GByteArray *payload, gsize want)
{
  DrWsOpcode control = DR_WS_MORE;
  guint8 byte;

  while (payload->len < want && control == DR_WS_MORE && recv(fd, &byte, 1, 0) == 1)
    g_assert_cmpint(dr_ws_read(reader, &byte, 1, payload, &control, NULL), ==, 1);
  return control;
}

static void
send_frame(int fd, DrWsOpcode opcode, const char *text)
{
  g_autoptr(GByteArray) frame = g_byte_array_new();

  dr_ws_append(frame, opcode, text, strlen(text), TRUE);
  http_send(fd, (const char *)frame->data, frame->len);
}

static void
test_console(void)
{
  g_autoptr(Server) server = server_start(NULL);
  int fd = open_console(server, "web1");
  DrWsReader reader = { .from_client = FALSE };
  g_autoptr(GByteArray) payload = g_byte_array_new();

  send_frame(fd, DR_WS_BINARY, "hello");
  send_frame(fd, DR_WS_TEXT, " world");
  g_assert_cmpint(read_console(fd, &reader, payload, 11), ==, DR_WS_MORE);
  g_assert_cmpmem(payload->data, payload->len, "hello world", 11);
  send_frame(fd, DR_WS_PING, "x");
  g_assert_cmpint(read_console(fd, &reader, payload, MB), ==, DR_WS_PONG);
  g_assert_cmpstr((const char *)reader.control, ==, "x");
  send_frame(fd, DR_WS_CLOSE, "\x03\xe8");
  g_assert_cmpint(read_console(fd, &reader, payload, MB), ==, DR_WS_CLOSE);
  g_assert_true(http_is_closed(fd, 5000));
  close(fd);
}

static void
test_console_end(void)
{
  g_autoptr(Server) server = server_start(NULL);
  int fd = open_console(server, "ends"), bad = open_console(server, "web1");
  DrWsReader reader = { .from_client = FALSE }, bad_reader = { .from_client = FALSE };
  g_autoptr(GByteArray) payload = g_byte_array_new();
  g_autofree char *refused = NULL;

  g_assert_cmpint(read_console(fd, &reader, payload, MB), ==, DR_WS_CLOSE);
  g_assert_cmpmem(payload->data, payload->len, "bye\r\n", 5);
  g_assert_cmpstr((const char *)reader.control + 2, ==, "the VM has ended");
  close(fd); /* without an answer */

  http_send(bad,
            "\x82\x01"
            "a",
            3); /* not masked */
  g_assert_cmpint(read_console(bad, &bad_reader, payload, MB), ==, DR_WS_CLOSE);
  g_assert_cmpint(bad_reader.control[0] << 8 | bad_reader.control[1], ==, 1002);
  g_assert_true(http_is_closed(bad, 5000));
  close(bad);
  g_assert_cmpuint(http_call(server, "GET", "/v1/vms/nosuch/console", NULL, &refused), ==, 404);
}

/* A guest that prints for ever before a client that does not read: nothing grows. */
static void
test_console_flood(void)
{
  g_autoptr(Server) server = server_start(NULL);
  int fd = open_console(server, "flood");
  gsize before, after = 0;
  g_autofree char *some = g_malloc(4 * MB);
  gsize got = 0;

  do { /* until it stands still */
    before = after;
    g_usleep(200000);
    after = fake_flooded(server->service);
  } while (after != before || after == 0);
  g_assert_cmpuint(after, <, 2 * MB);
  while (got < 4 * MB) {
    gssize n = recv(fd, some, 4 * MB - got, 0);

    g_assert_cmpint(n, >, 0);
    got += (gsize)n;
  }
  g_assert_cmpuint(fake_flooded(server->service), >, after);
  close(fd);
}

/* And a client that types for ever at a guest that does not read; or sends pings and does not read the
 * answers. */
static void
send_until_stuck(int fd, DrWsOpcode opcode, gsize len)
{
  g_autoptr(GByteArray) frame = g_byte_array_new();
  g_autofree char *text = g_strnfill(len, 'x');
  gsize sent = 0;
  int stuck = 0;

  dr_ws_append(frame, opcode, text, len, TRUE);
  g_assert_cmpint(fcntl(fd, F_SETFL, O_NONBLOCK), ==, 0);
  while (stuck < 20 && sent < 8 * MB) {
    gssize n = send(fd, frame->data, frame->len, MSG_NOSIGNAL);

    g_assert_true(n == frame->len || (n < 0 && errno == EAGAIN));
    if (n > 0) {
      stuck = 0;
      sent += (gsize)n;
    } else {
      stuck++;
      g_usleep(20000);
    }
  }
  g_assert_cmpuint(sent, <, 4 * MB);
}

static void
test_console_deaf(void)
{
  g_autoptr(Server) server = server_start(NULL);
  int typing = open_console(server, "deaf"), pinging = open_console(server, "deaf");

  send_until_stuck(typing, DR_WS_BINARY, 1000);
  send_until_stuck(pinging, DR_WS_PING, 100);
  close(typing);
  close(pinging);
  g_assert_cmpuint(http_call(server, "GET", "/v1/version", NULL, NULL), ==, 200);
}

/* Consoles count as connections, and no longer than they last. */
static void
test_console_count(void)
{
  DrApiLimits limits = dr_api_limits;
  g_autoptr(Server) server = NULL;

  limits.connections = 2;
  server = server_start(&limits);
  for (int i = 0; i < 20; i++) {
    int fd = open_console(server, "web1");

    g_assert_cmpuint(http_call(server, "GET", "/v1/version", NULL, NULL), ==, 200);
    send_frame(fd, DR_WS_CLOSE, "");
    g_assert_true(http_is_closed(fd, 5000));
    close(fd);
  }
}

void
add_stream_tests(void)
{
  g_test_add_func("/api/events/all", test_events);
  g_test_add_func("/api/events/job", test_job_events);
  g_test_add_func("/api/events/comment", test_comment);
  g_test_add_func("/api/events/limit", test_stream_limit);
  g_test_add_func("/api/events/late-reader", test_late_reader);
  g_test_add_func("/api/events/dropped-reader", test_dropped_reader);
  g_test_add_func("/api/ws/frames", test_frames);
  g_test_add_func("/api/ws/bad-frames", test_bad_frames);
  g_test_add_func("/api/console/echo", test_console);
  g_test_add_func("/api/console/end", test_console_end);
  g_test_add_func("/api/console/flood", test_console_flood);
  g_test_add_func("/api/console/deaf", test_console_deaf);
  g_test_add_func("/api/console/count", test_console_count);
}
