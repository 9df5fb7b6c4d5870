/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The port: who comes in, who does not and what the log says; and what strangers cannot do to others. */
#include "base/error.h"
#include "base/fd.h"
#include "net/listener.h"
#include "net/tally.h"
#include "net/tokens.h"
#include "test-net-util.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#define QUICK_MS 5000
#define HELLO_MS 2500

typedef struct {
  Net net;
  DrListener *listener;
  guint port;
  GMutex lock;
  GCond changed;
  GPtrArray *taken; /* of DrConn */
  char *refuse;     /* what `take` says instead */
} Port;

static gboolean
allow(const char *const *names, const char *key_id, gpointer data, GError **error)
{
  if (strlen(key_id) != 64)
    return dr_error_set(error, DR_ERROR_INTERNAL, "'%s' is no key id", key_id);
  return !g_str_equal(names[0], "stranger") ||
         dr_error_set(error, DR_ERROR_REFUSED, "'%s' is not among the peers that may connect", names[0]);
}

/* Echoes one byte of a stream, so that a client can tell that it is through. */
static void
take(DrConn *conn, JsonObject *hello, gpointer data)
{
  Port *port = data;
  g_autoptr(GError) error = NULL;

  if (port->refuse) {
    dr_error_set(&error, DR_ERROR_NOT_FOUND, "%s", port->refuse);
    dr_conn_refuse(conn, error);
    dr_conn_free(conn);
    return;
  }
  g_assert_true(dr_conn_take(conn, NULL));
  g_assert_true(dr_conn_write(conn, dr_json_str(hello, "byte", "?"), 1, QUICK_MS, NULL));
  g_mutex_lock(&port->lock);
  g_ptr_array_add(port->taken, conn);
  g_cond_broadcast(&port->changed);
  g_mutex_unlock(&port->lock);
}

static void
port_set_up(Port *port, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;

  net_set_up(&port->net, NULL);
  port->taken = g_ptr_array_new_with_free_func((GDestroyNotify)dr_conn_free);
  port->listener = dr_listener_new(
      &(DrListenerOptions){
          .hello_ms = HELLO_MS, .context = port->net.context, .allow = allow, .take = take, .data = port },
      &error);
  g_assert_no_error(error);
  port->port = dr_listener_port(port->listener);
}

static void
port_tear_down(Port *port, gconstpointer unused)
{
  dr_listener_free(port->listener);
  g_ptr_array_unref(port->taken);
  g_free(port->refuse);
  net_tear_down(&port->net, NULL);
}

static JsonObject *
hello_of(const char *byte)
{
  return dr_json("{'kind': <'stream'>, 'byte': <%s>}", byte);
}

static void
assert_byte(DrConn *conn, char byte)
{
  char got = 0;

  g_assert_cmpint(dr_conn_read(conn, &got, 1, QUICK_MS, NULL), ==, 1);
  g_assert_cmpint(got, ==, byte);
}

static void
assert_let_in(Port *port, const char *host)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(DrConn) conn = dr_conn_open(port->net.context, host, port->port, NULL, hello_of("a"),
                                        dr_deadline_in(QUICK_MS), &error);

  g_assert_no_error(error);
  assert_byte(conn, 'a');
}

/* --- Who comes in --- */

static void
test_good(Port *port, gconstpointer unused)
{
  assert_let_in(port, "127.0.0.1");
  assert_let_in(port, "localhost");
  assert_let_in(port, "::1");
}

static gpointer
come_in(gpointer port)
{
  for (guint i = 0; i < 10; i++)
    assert_let_in(port, i % 2 ? "127.0.0.1" : "::1");
  return NULL;
}

/* As many streams as moves at a time may open. */
static void
test_many(Port *port, gconstpointer unused)
{
  GThread *threads[16];
  guint waiting, greeting, taken;
  DrDeadline deadline;

  for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
    threads[i] = g_thread_new("client", come_in, port);
  for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
    g_thread_join(threads[i]);
  g_mutex_lock(&port->lock);
  deadline = dr_deadline_in(QUICK_MS);
  while (port->taken->len < 160 && g_cond_wait_until(&port->changed, &port->lock, deadline))
    ;
  g_mutex_unlock(&port->lock);
  dr_listener_counts(port->listener, &waiting, &greeting, &taken);
  g_assert_cmpint(taken, ==, 160);
  g_ptr_array_set_size(port->taken, 0);
  dr_listener_counts(port->listener, &waiting, &greeting, &taken);
  g_assert_cmpint(taken, ==, 0);
}

static void
test_refused_by_take(Port *port, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;

  port->refuse = g_strdup("no move 'x' waits for this");
  g_assert_null(dr_conn_open(port->net.context, "127.0.0.1", port->port, NULL, hello_of("a"),
                             dr_deadline_in(QUICK_MS), &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_NOT_FOUND);
  g_assert_cmpstr(error->message, ==, port->refuse);
}

static void
test_new_keys(Port *port, gconstpointer unused)
{
  g_autoptr(DrTlsContext) renewed = NULL;
  g_autoptr(DrConn) before = NULL, after = NULL;

  before = dr_conn_open(port->net.context, "127.0.0.1", port->port, NULL, hello_of("a"),
                        dr_deadline_in(QUICK_MS), NULL);
  net_cert(&port->net, "new-server", &(NetCert){ "ca", "localhost", GNUTLS_KP_TLS_WWW_SERVER, 3600 });
  renewed = net_context(&port->net, "new-server", "localhost-client", NULL);
  dr_listener_set_context(port->listener, renewed);
  after = dr_conn_open(port->net.context, "127.0.0.1", port->port, NULL, hello_of("b"),
                       dr_deadline_in(QUICK_MS), NULL);
  g_assert_cmpstr(dr_conn_key_id(before), !=, dr_conn_key_id(after));
  assert_byte(before, 'a');
  assert_byte(after, 'b');
}

/* --- Who does not --- */

static int
connect_from(Port *port, const char *from)
{
  struct sockaddr_in address = { .sin_family = AF_INET };
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  inet_pton(AF_INET, from, &address.sin_addr);
  g_assert_cmpint(bind(fd, (struct sockaddr *)&address, sizeof address), ==, 0);
  inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  address.sin_port = htons((guint16)port->port);
  g_assert_cmpint(connect(fd, (struct sockaddr *)&address, sizeof address), ==, 0);
  return fd;
}

/* It is told nothing: the connection ends, and that is all. */
static void
assert_silent_end(int fd)
{
  char byte;

  assert_readable(fd, QUICK_MS);
  g_assert_cmpint(recv(fd, &byte, 1, 0), <=, 0);
}

static void
refused_words(Port *port, const char *words, gsize len, const char *logged)
{
  dr_autofd int fd = connect_from(port, "127.0.0.1");

  g_assert_cmpint(send(fd, words, len, MSG_NOSIGNAL), ==, (gssize)len);
  assert_silent_end(fd);
  assert_logged(logged);
}

static void
refused_keys(Port *port, const char *client, const char *logged)
{
  g_autoptr(DrTlsContext) context = net_context(&port->net, "localhost-server", client, NULL);
  g_autoptr(GError) error = NULL;

  g_assert_null(
      dr_conn_open(context, "127.0.0.1", port->port, NULL, hello_of("a"), dr_deadline_in(QUICK_MS), &error));
  g_assert_nonnull(error);
  assert_logged(logged);
}

static void
test_refusals(Port *port, gconstpointer unused)
{
  net_cert(&port->net, "stranger", &(NetCert){ "ca", "stranger", GNUTLS_KP_TLS_WWW_CLIENT, 3600 });
  net_cert(&port->net, "other", &(NetCert){ "other", "localhost", GNUTLS_KP_TLS_WWW_CLIENT, 3600 });
  refused_keys(port, "stranger", "connection of 127.0.0.1 refused: 'stranger' is not among the peers");
  refused_keys(port, "other", "NOT trusted");
  refused_keys(port, "localhost-server", "purpose");
  refused_words(port, "GET / HTTP/1.1\r\n\r\n", 18, "is not TLS");
  refused_words(port, "\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff", 10, "handshake");
  refused_words(port, "DROVER1 0123", 12, "is not TLS"); /* no token is outstanding */
  assert_let_in(port, "127.0.0.1");
}

static void
refused_hello(Port *port, const char *hello_text, const char *logged)
{
  g_autoptr(JsonObject) hello = dr_json_parse_object(hello_text, -1, 10000, NULL);
  dr_autofd int fd = connect_from(port, "127.0.0.1");
  g_autoptr(DrConn) conn = dr_conn_new_tls(port->net.context, dr_fd_steal(&fd), "localhost", "server",
                                           dr_deadline_in(QUICK_MS), NULL);
  g_autoptr(JsonObject) reply = NULL;

  g_assert_true(dr_conn_send(conn, hello, QUICK_MS, NULL));
  reply = dr_conn_receive(conn, QUICK_MS, NULL);
  g_assert_nonnull(dr_json_str(reply, "error.message", NULL));
  assert_logged(logged);
}

static void
test_bad_hello(Port *port, gconstpointer unused)
{
  refused_hello(port, "{\"drover\":{\"min\":5,\"max\":6},\"kind\":\"control\"}", "versions 5 to 6");
  refused_hello(port, "{\"kind\":\"control\"}", "no versions");
}

/* --- Tokens --- */

static void
test_token(Port *port, gconstpointer unused)
{
  g_autofree char *token = dr_listener_token(port->listener, "host2", hello_of("t"));
  g_autofree char *other = dr_listener_token(port->listener, "host2", hello_of("u"));
  g_autofree char *wrong = g_strnfill(DR_TOKEN_DIGITS, '0');
  g_autoptr(DrConn) first = NULL, second = NULL, third = NULL;
  char byte;

  g_assert_cmpint(strlen(token), ==, DR_TOKEN_DIGITS);
  g_assert_cmpstr(token, !=, other);
  third = dr_conn_open_plain("127.0.0.1", port->port, wrong, dr_deadline_in(QUICK_MS), NULL);
  g_assert_cmpint(dr_conn_read(third, &byte, 1, QUICK_MS, NULL), <=, 0);
  assert_logged("token");
  first = dr_conn_open_plain("127.0.0.1", port->port, token, dr_deadline_in(QUICK_MS), NULL);
  assert_byte(first, 't');
  second = dr_conn_open_plain("127.0.0.1", port->port, token, dr_deadline_in(QUICK_MS), NULL);
  g_assert_cmpint(dr_conn_read(second, &byte, 1, QUICK_MS, NULL), <=, 0); /* once */
  assert_logged("token");
  g_assert_cmpstr(dr_conn_peer(port->taken->pdata[0]), ==, "host2");
}

static void
test_many_tokens(void)
{
  g_autoptr(DrTokens) tokens = dr_tokens_new();
  g_autofree char *first = dr_tokens_give(tokens, "host2", json_object_new()), *last = NULL, *peer = NULL;
  g_autoptr(JsonObject) hello = NULL;

  for (guint i = 0; i < DR_TOKENS_MAX; i++) {
    g_free(last);
    last = dr_tokens_give(tokens, "host3", dr_json("{'n': <%i>}", (int)i));
  }
  g_assert_false(dr_tokens_take(tokens, first, &peer, &hello));
  g_assert_true(dr_tokens_take(tokens, last, &peer, &hello));
  g_assert_cmpstr(peer, ==, "host3");
  g_assert_cmpint(dr_json_int(hello, "n", 0), ==, DR_TOKENS_MAX - 1);
  g_assert_true(dr_tokens_any(tokens));
}

/* --- Strangers, and many of them --- */

/* Says nothing, or only the beginning of a handshake. */
static int *
crowd(Port *port, guint n, const char *from, gboolean speak)
{
  int *fds = g_new(int, n);

  for (guint i = 0; i < n; i++) {
    fds[i] = connect_from(port, from);
    if (speak)
      send(fds[i], "\x16\x03\x01\x01", 4, MSG_NOSIGNAL);
  }
  return fds;
}

static void
crowd_free(int *fds, guint n)
{
  for (guint i = 0; i < n; i++)
    close(fds[i]);
  g_free(fds);
}

static guint
fds_open(void)
{
  g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
  guint n = 0;

  while (g_dir_read_name(dir))
    n++;
  return n;
}

static void
assert_bounded(Port *port)
{
  guint waiting, greeting, taken;

  dr_listener_counts(port->listener, &waiting, &greeting, &taken);
  g_assert_cmpint(waiting, <=, DR_LISTENER_WAITING);
  g_assert_cmpint(greeting, <=, DR_LISTENER_GREETING);
}

/* Hundreds that are silent, and hundreds that begin a handshake and stop: others, and even their own host, come in at once. */
static void
test_crowds(Port *port, gconstpointer unused)
{
  guint n = 200;
  int *silent = crowd(port, n, "127.0.0.1", FALSE);
  int *slow[2] = { crowd(port, n, "127.0.0.9", TRUE), crowd(port, n, "127.0.0.8", TRUE) };
  gint64 begun = g_get_monotonic_time();

  assert_let_in(port, "127.0.0.1");
  assert_let_in(port, "::1");
  g_assert_cmpint((g_get_monotonic_time() - begun) / 1000, <, 3000);
  assert_bounded(port);
  begun = g_get_monotonic_time();
  for (guint i = 0; i < n; i++) {
    assert_silent_end(silent[i]);
    assert_silent_end(slow[0][i]);
    assert_silent_end(slow[1][i]);
  }
  g_assert_cmpint((g_get_monotonic_time() - begun) / 1000, <, HELLO_MS + 2000);
  crowd_free(silent, n);
  crowd_free(slow[0], n);
  crowd_free(slow[1], n);
}

/* All places for handshakes are taken by who does not go on; they lose them to who waits. */
static void
test_places(Port *port, gconstpointer unused)
{
  static const char *const from[] = { "127.0.0.5", "127.0.0.6", "127.0.0.7", "127.0.0.8" };
  int *fds[G_N_ELEMENTS(from)];
  guint n = DR_LISTENER_GREETING_ONE, waiting, greeting, taken;
  DrDeadline deadline = dr_deadline_in(1000);
  gint64 begun;

  for (guint i = 0; i < G_N_ELEMENTS(from); i++)
    fds[i] = crowd(port, n, from[i], TRUE);
  do
    dr_listener_counts(port->listener, &waiting, &greeting, &taken);
  while (greeting < DR_LISTENER_GREETING && !dr_deadline_passed(deadline));
  g_assert_cmpint(greeting, ==, DR_LISTENER_GREETING);
  begun = g_get_monotonic_time();
  assert_let_in(port, "127.0.0.1");
  g_assert_cmpint((g_get_monotonic_time() - begun) / 1000, <, 4000);
  for (guint i = 0; i < G_N_ELEMENTS(from); i++)
    crowd_free(fds[i], n);
}

static void
knock(Port *port)
{
  dr_autofd int fd = connect_from(port, "127.0.0.9");

  send(fd, "\r\n\r\n", 4, MSG_NOSIGNAL);
}

/* Thousands, one after another, each saying something that is no TLS. Nothing of them is left. */
static void
test_scanner(Port *port, gconstpointer unused)
{
  guint before = fds_open();
  DrDeadline deadline;

  for (guint i = 0; i < 3000; i++) {
    knock(port);
    if (i % 500 == 0)
      assert_let_in(port, "127.0.0.1");
  }
  g_ptr_array_set_size(port->taken, 0);
  deadline = dr_deadline_in(QUICK_MS);
  while (fds_open() > before && !dr_deadline_passed(deadline))
    g_usleep(10000);
  g_assert_cmpint(fds_open(), <=, before);
  deadline = dr_deadline_in(QUICK_MS);
  while (!net_log_has("more connections were refused", 100) && !dr_deadline_passed(deadline))
    knock(port); /* one in the next second tells of those before */
  g_assert_false(dr_deadline_passed(deadline));
}

/* The end does not wait for who does not go on. */
static void
test_free(Port *port, gconstpointer unused)
{
  int *slow = crowd(port, 30, "127.0.0.9", TRUE);
  gint64 begun = g_get_monotonic_time();

  g_clear_pointer(&port->listener, dr_listener_free);
  g_assert_cmpint(g_get_monotonic_time() - begun, <, 1000000);
  crowd_free(slow, 30);
}

static void
test_taken_port(Port *port, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;
  DrListenerOptions options = {
    .port = port->port, .context = port->net.context, .allow = allow, .take = take
  };

  g_assert_null(dr_listener_new(&options, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_IO);
  g_assert_nonnull(dr_error_get_remedy(error));
  g_clear_error(&error);
  options.address = "no address";
  g_assert_null(dr_listener_new(&options, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
}

static void
test_tally(void)
{
  DrTally *tally = dr_tally_new(5, 3);

  for (guint i = 0; i < 3; i++)
    g_assert_true(dr_tally_add(tally, "a"));
  g_assert_false(dr_tally_add(tally, "a"));
  g_assert_true(dr_tally_add(tally, "b"));
  g_assert_true(dr_tally_has_room(tally, "b"));
  g_assert_true(dr_tally_add(tally, "c"));
  g_assert_true(dr_tally_is_full(tally));
  g_assert_false(dr_tally_add(tally, "b"));
  dr_tally_remove(tally, "a");
  g_assert_true(dr_tally_add(tally, "a"));
  g_assert_cmpint(dr_tally_count(tally), ==, 5);
  dr_tally_unref(tally);
}

#define ADD(name, test) g_test_add("/listener/" name, Port, NULL, port_set_up, test, port_tear_down)

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  net_log_keep();
  ADD("good", test_good);
  ADD("many", test_many);
  ADD("refused-by-take", test_refused_by_take);
  ADD("new-keys", test_new_keys);
  ADD("refusals", test_refusals);
  ADD("bad-hello", test_bad_hello);
  ADD("token", test_token);
  g_test_add_func("/listener/many-tokens", test_many_tokens);
  ADD("crowds", test_crowds);
  ADD("places", test_places);
  ADD("scanner", test_scanner);
  ADD("free", test_free);
  ADD("taken-port", test_taken_port);
  g_test_add_func("/listener/tally", test_tally);
  return g_test_run();
}
