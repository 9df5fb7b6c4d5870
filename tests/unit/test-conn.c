/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Hello and frames: of older and newer droverds, of those that talk nonsense, and of those that stop in the middle. */
#include "base/error.h"
#include "base/fd.h"
#include "net/dial.h"
#include "net/frame.h"
#include "test-net-util.h"

#include <arpa/inet.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define QUICK_MS 5000

/* --- The server's side of a hello --- */

typedef struct {
  const char *hello; /* what the client sends */
  int version;       /* agreed on; 0: refused */
  DrErrorCode code;
  const char *part;
} Hello;

static const Hello hellos[] = {
  { "{\"drover\":{\"min\":1,\"max\":1},\"kind\":\"control\"}", 1, 0, NULL },
  { "{\"drover\":{\"min\":1,\"max\":9},\"kind\":\"control\",\"more\":{}}", 1, 0, NULL },
  { "{\"drover\":{\"min\":2,\"max\":3},\"kind\":\"control\"}", 0, DR_ERROR_UNSUPPORTED, "versions 2 to 3" },
  { "{\"drover\":{\"min\":0,\"max\":0},\"kind\":\"control\"}", 0, DR_ERROR_INVALID, "no versions" },
  { "{\"drover\":{\"min\":3,\"max\":1},\"kind\":\"control\"}", 0, DR_ERROR_INVALID, "no versions" },
  { "{\"drover\":\"1\",\"kind\":\"control\"}", 0, DR_ERROR_INVALID, "no versions" },
  { "{\"drover\":{\"min\":1,\"max\":1}}", 0, DR_ERROR_INVALID, "what the connection is for" },
};

static void
say(DrConn *conn, const char *text)
{
  guint32 size = htonl((guint32)strlen(text));

  g_assert_true(dr_conn_write(conn, &size, sizeof size, QUICK_MS, NULL));
  g_assert_true(dr_conn_write(conn, text, strlen(text), QUICK_MS, NULL));
}

static void
check_refused(DrConn *client, const Hello *one, const GError *server_error)
{
  g_autoptr(JsonObject) answer = dr_conn_receive(client, QUICK_MS, NULL);
  g_autoptr(GError) error = NULL;
  char byte;

  g_assert_nonnull(answer);
  dr_error_from_json(answer, &error);
  g_assert_error(error, DR_ERROR, (int)one->code);
  assert_message(error, one->part);
  g_assert_cmpstr(error->message, ==, server_error->message);
  g_assert_cmpint(dr_conn_read(client, &byte, 1, QUICK_MS, NULL), ==, 0);
}

static void
test_hello(Net *net, gconstpointer unused)
{
  for (guint i = 0; i < G_N_ELEMENTS(hellos); i++) {
    g_autoptr(GError) error = NULL;
    g_autoptr(DrConn) client = NULL, server = NULL;
    g_autoptr(JsonObject) hello = NULL;
    DrConn *conns[2];

    net_tls(net, conns);
    client = conns[0];
    server = conns[1];
    say(client, hellos[i].hello);
    hello = dr_conn_hello(server, dr_deadline_in(QUICK_MS), &error);
    if (hellos[i].version) {
      g_assert_no_error(error);
      g_assert_cmpint(dr_conn_version(server), ==, hellos[i].version);
      g_assert_cmpstr(dr_json_str(hello, "kind", NULL), ==, "control");
    } else {
      g_assert_null(hello);
      check_refused(client, &hellos[i], error);
    }
  }
}

/* --- The client's side --- */

typedef struct {
  Net *net;
  int listener;
  const char *answer; /* NULL: none, it closes */
} Server;

static gpointer
serve_one(gpointer data)
{
  Server *server = data;
  int fd = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
  g_autoptr(DrConn) conn = dr_conn_accept(server->net->context, fd, "client", dr_deadline_in(QUICK_MS), NULL);
  g_autoptr(JsonObject) hello = conn ? dr_conn_receive(conn, QUICK_MS, NULL) : NULL;

  if (hello)
    g_assert_cmpint(dr_json_int(hello, "drover.max", 0), ==, DR_PROTOCOL_VERSION);
  if (hello && server->answer)
    say(conn, server->answer);
  return NULL;
}

static int
listen_somewhere(int backlog, guint *ret_port)
{
  struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
  socklen_t len = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  g_assert_cmpint(bind(fd, (struct sockaddr *)&address, sizeof address), ==, 0);
  g_assert_cmpint(listen(fd, backlog), ==, 0);
  getsockname(fd, (struct sockaddr *)&address, &len);
  *ret_port = ntohs(address.sin_port);
  return fd;
}

static DrConn *
open_with(Net *net, const char *answer, GError **error)
{
  guint port;
  dr_autofd int listener = listen_somewhere(5, &port);
  Server server = { net, listener, answer };
  GThread *thread = g_thread_new("server", serve_one, &server);
  DrConn *conn = dr_conn_open(net->context, "localhost", port, NULL, dr_json("{'kind': <'control'>}"),
                              dr_deadline_in(QUICK_MS), error);

  g_thread_join(thread);
  return conn;
}

static void
test_open(Net *net, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(DrConn) conn = open_with(net, "{\"ok\":true,\"version\":1}", &error);

  g_assert_no_error(error);
  g_assert_cmpint(dr_conn_version(conn), ==, 1);
  g_assert_cmpstr(dr_conn_peer(conn), ==, "localhost");
}

static void
test_open_refused(Net *net, gconstpointer unused)
{
  static const struct {
    const char *answer;
    DrErrorCode code;
  } cases[] = {
    { "{\"ok\":true,\"version\":7}", DR_ERROR_INVALID },
    { "{\"ok\":true}", DR_ERROR_INVALID },
    { "{\"error\":{\"code\":\"busy\",\"message\":\"no room\"}}", DR_ERROR_BUSY },
    { "{\"error\":{\"code\":\"of-tomorrow\",\"message\":\"?\"}}", DR_ERROR_IO },
    { "{}", DR_ERROR_IO },
    { "[]", DR_ERROR_INVALID },
    { NULL, DR_ERROR_CLOSED },
  };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;

    g_assert_null(open_with(net, cases[i].answer, &error));
    g_assert_error(error, DR_ERROR, (int)cases[i].code);
  }
}

static void
test_errors(void)
{
  for (int code = DR_ERROR_INVALID; code <= DR_ERROR_INTERNAL; code++) {
    g_autoptr(GError) error = g_error_new(DR_ERROR, code, "text %d", code), back = NULL;
    g_autoptr(JsonObject) object = NULL;

    if (code % 2)
      dr_error_remedy(&error, "do something else");
    object = dr_error_to_json(error);
    g_assert_false(dr_error_from_json(object, &back));
    g_assert_error(back, DR_ERROR, code);
    g_assert_cmpstr(back->message, ==, error->message);
    g_assert_cmpstr(dr_error_get_remedy(back), ==, dr_error_get_remedy(error));
  }
}

/* --- Frames --- */

static void
expect_error(DrConn *server, DrErrorCode code, const char *part)
{
  g_autoptr(GError) error = NULL;

  g_assert_null(dr_conn_receive(server, QUICK_MS, &error));
  g_assert_error(error, DR_ERROR, (int)code);
  assert_message(error, part);
}

static void
test_frames(Net *net, gconstpointer unused)
{
  g_autoptr(JsonObject) object = dr_json("{'text': <'Grüße'>}"), got = NULL;
  g_autoptr(DrConn) client = NULL, server = NULL;
  g_autoptr(GError) error = NULL;
  DrConn *conns[2];

  net_tls(net, conns);
  client = conns[0];
  server = conns[1];
  g_assert_null(dr_conn_receive(server, 20, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_TIMEOUT);
  g_assert_true(dr_conn_send(client, object, QUICK_MS, NULL)); /* nothing was lost by that */
  got = dr_conn_receive(server, QUICK_MS, NULL);
  g_assert_cmpstr(dr_json_str(got, "text", NULL), ==, "Grüße");
  g_assert_true(dr_conn_end(client, NULL));
  expect_error(server, DR_ERROR_CLOSED, "closed the connection");
}

static void
test_longest(Net *net, gconstpointer unused)
{
  g_autofree char *text = g_strnfill(DR_FRAME_MAX - strlen("{\"t\":\"\"}"), 'x');
  g_autofree char *longer = g_strconcat(text, "x", NULL);
  g_autoptr(JsonObject) longest = dr_json("{'t': <%s>}", text), too_long = dr_json("{'t': <%s>}", longer);
  g_autoptr(GBytes) frame = dr_frame_new(longest, NULL);
  g_autoptr(GError) error = NULL;

  g_assert_cmpint(g_bytes_get_size(frame), ==, 4 + DR_FRAME_MAX);
  g_assert_null(dr_frame_new(too_long, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
}

static void
test_bad_frames(Net *net, gconstpointer unused)
{
  g_autofree char *deep = g_strnfill(100000, '[');
  g_autofree char *nested = g_strconcat("{\"a\":", deep, NULL);
  const struct {
    const char *text;
    guint32 size; /* 0: that of the text */
    DrErrorCode code;
    const char *part;
  } cases[] = {
    { nested, 0, DR_ERROR_INVALID, "nested" },
    { "[1]", 0, DR_ERROR_INVALID, "not an object" },
    { "{\"a\":", 0, DR_ERROR_INVALID, "no message" },
    { "", 0, DR_ERROR_INVALID, "0 bytes" },
    { "{}", DR_FRAME_MAX + 1, DR_ERROR_INVALID, "at most" },
    { "GET / HTTP/1.1\r\n", 0x47455420, DR_ERROR_INVALID, "at most" },
    { "{}", 100, DR_ERROR_CLOSED, "middle" },
  };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(DrConn) client = NULL, server = NULL;
    gsize len = strlen(cases[i].text);
    guint32 size = htonl(cases[i].size ? cases[i].size : (guint32)len);
    DrConn *conns[2];

    net_tls(net, conns);
    client = conns[0];
    server = conns[1];
    g_assert_true(dr_conn_write(client, &size, sizeof size, QUICK_MS, NULL));
    g_assert_true(dr_conn_write(client, cases[i].text, len, QUICK_MS, NULL));
    g_assert_true(dr_conn_end(client, NULL));
    expect_error(server, cases[i].code, cases[i].part);
  }
}

/* One that begins a message and stops holds nobody up for long; nor does one that goes on a byte at a time. */
static void
test_half_a_frame(Net *net, gconstpointer unused)
{
  g_autoptr(DrConn) client = NULL, server = NULL;
  g_autoptr(GError) error = NULL;
  gint64 begun = g_get_monotonic_time();
  DrConn *conns[2];

  net_tls(net, conns);
  client = conns[0];
  server = conns[1];
  g_assert_true(dr_conn_write(client, "\0\0", 2, QUICK_MS, NULL));
  g_assert_null(dr_frame_receive(server, 100, QUICK_MS, dr_deadline_in(300), &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_CLOSED);
  assert_message(error, "half a message");
  g_assert_cmpint(g_get_monotonic_time() - begun, <, 2 * G_USEC_PER_SEC);
}

/* All of what `conn` has sent is in the other side's socket. */
static void
wait_arrived(DrConn *conn)
{
  int unsent = 0;

  for (gint64 deadline = dr_deadline_in(QUICK_MS);; g_usleep(1000)) {
    g_assert_cmpint(ioctl(dr_conn_fd(conn), SIOCOUTQ, &unsent), ==, 0);
    if (unsent == 0)
      return;
    g_assert_false(dr_deadline_passed(deadline));
  }
}

/* What comes right behind a frame is out of the socket by then, whether it is a record of its own or not. */
static void
test_input_behind_a_frame(Net *net, gconstpointer unused)
{
  static const char frame[] = "\0\0\0\2{}x"; /* with a raw byte */

  for (gsize first = sizeof frame - 2; first < sizeof frame; first++) {
    g_autoptr(DrConn) client = NULL, server = NULL;
    g_autoptr(JsonObject) got = NULL;
    DrConn *conns[2];
    char byte = 0;

    net_tls(net, conns);
    client = conns[0];
    server = conns[1];
    g_assert_false(dr_conn_has_input(client));
    g_assert_true(dr_conn_write(server, frame, first, QUICK_MS, NULL));
    if (first < sizeof frame - 1)
      g_assert_true(dr_conn_write(server, frame + first, sizeof frame - 1 - first, QUICK_MS, NULL));
    wait_arrived(server);
    got = dr_conn_receive(client, QUICK_MS, NULL);
    g_assert_nonnull(got);
    g_assert_false(net_readable(dr_conn_fd(client), 0));
    g_assert_true(dr_conn_has_input(client));
    g_assert_cmpint(dr_conn_read(client, &byte, 1, 0, NULL), ==, 1);
    g_assert_cmpint(byte, ==, 'x');
    g_assert_false(dr_conn_has_input(client));
  }
}

/* --- Plain connections --- */

static void
test_plain(Net *net, gconstpointer unused)
{
  g_autoptr(DrConn) client = NULL, server = NULL;
  g_autoptr(GError) error = NULL;
  DrConn *conns[2];
  char buffer[16];
  int fd;

  net_plain(conns);
  client = conns[0];
  server = conns[1];
  g_assert_cmpint(dr_conn_read(server, buffer, sizeof buffer, 20, &error), ==, -1);
  g_assert_error(error, DR_ERROR, DR_ERROR_TIMEOUT);
  g_assert_true(dr_conn_take(server, NULL)); /* says nothing: the bytes are the stream's */
  g_assert_true(dr_conn_write(client, "abc", 3, QUICK_MS, NULL));
  g_assert_true(dr_conn_end(client, NULL));
  g_assert_cmpint(dr_conn_read(server, buffer, sizeof buffer, QUICK_MS, NULL), ==, 3);
  g_assert_cmpint(dr_conn_read(server, buffer, sizeof buffer, QUICK_MS, NULL), ==, 0);
  fd = dr_conn_steal_fd(server);
  g_assert_cmpint(send(fd, "x", 1, 0), ==, 1);
  close(fd);
  g_assert_cmpint(dr_conn_read(client, buffer, sizeof buffer, QUICK_MS, NULL), ==, 1);
  g_assert_cmpint(dr_conn_plain_fd(server), ==, -1);
}

/* --- Finding and connecting --- */

static void
test_dial(void)
{
  g_autoptr(GError) error = NULL;
  guint port;
  int listener = listen_somewhere(5, &port);
  dr_autofd int fd = dr_dial("localhost", port, dr_deadline_in(QUICK_MS), &error);

  g_assert_no_error(error);
  g_assert_cmpint(fd, >=, 0);
  close(listener);
  g_assert_cmpint(dr_dial("127.0.0.1", port, dr_deadline_in(QUICK_MS), &error), ==, -1);
  g_assert_error(error, DR_ERROR, DR_ERROR_CLOSED);
  g_assert_nonnull(dr_error_get_remedy(error));
}

/* Where there is no name server, an answer may never come: then the deadline counts. */
static void
test_dial_nowhere(void)
{
  g_autoptr(GError) error = NULL;
  gint64 begun = g_get_monotonic_time();

  g_assert_cmpint(dr_dial("nowhere.invalid", 1, dr_deadline_in(500), &error), ==, -1);
  g_assert_cmpint(g_get_monotonic_time() - begun, <, 2 * G_USEC_PER_SEC);
  g_assert_true(g_error_matches(error, DR_ERROR, DR_ERROR_NOT_FOUND) ||
                g_error_matches(error, DR_ERROR, DR_ERROR_TIMEOUT));
  assert_message(error, "nowhere.invalid");
}

/* A listener whose queue is full drops what comes: nothing answers, as behind a cut. */
static void
test_dial_silent(void)
{
  g_autoptr(GError) error = NULL;
  guint port;
  dr_autofd int listener = listen_somewhere(0, &port);
  gint64 begun;
  int fds[8], n = 0;

  while (n < 8 && (fds[n] = dr_dial("127.0.0.1", port, dr_deadline_in(300), &error)) >= 0)
    n++;
  g_assert_cmpint(n, <, 8);
  g_clear_error(&error);
  begun = g_get_monotonic_time();
  g_assert_cmpint(dr_dial("127.0.0.1", port, dr_deadline_in(600), &error), ==, -1);
  g_assert_error(error, DR_ERROR, DR_ERROR_TIMEOUT);
  g_assert_cmpint(g_get_monotonic_time() - begun, >=, 590 * 1000);
  g_assert_cmpint(g_get_monotonic_time() - begun, <, 3 * G_USEC_PER_SEC);
  while (n > 0)
    close(fds[--n]);
}

#define ADD(name, test) g_test_add("/conn/" name, Net, NULL, net_set_up, test, net_tear_down)

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  ADD("hello", test_hello);
  ADD("open", test_open);
  ADD("open-refused", test_open_refused);
  g_test_add_func("/conn/errors", test_errors);
  ADD("frames", test_frames);
  ADD("longest", test_longest);
  ADD("bad-frames", test_bad_frames);
  ADD("half-a-frame", test_half_a_frame);
  ADD("input-behind-a-frame", test_input_behind_a_frame);
  ADD("plain", test_plain);
  g_test_add_func("/conn/dial", test_dial);
  g_test_add_func("/conn/dial-nowhere", test_dial_nowhere);
  g_test_add_func("/conn/dial-silent", test_dial_silent);
  return g_test_run();
}
