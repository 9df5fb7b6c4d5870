/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The control conversation: questions both ways, and the ways in which it ends. */
#include "base/error.h"
#include "net/frame.h"
#include "net/link.h"
#include "test-net-util.h"

#include <string.h>
#include <unistd.h>

#define QUICK_MS 5000

/* --- Who answers --- */

typedef struct {
  GMutex lock;
  GCond changed;
  gboolean held; /* "hold" is not answered while it is set */
  guint asked;
} Answers;

static JsonObject *
answer(DrConn *conn, const char *method, JsonObject *params, gpointer data, GError **error)
{
  Answers *answers = data;

  g_mutex_lock(&answers->lock);
  answers->asked++;
  g_cond_broadcast(&answers->changed);
  while (answers->held && g_str_equal(method, "hold"))
    g_cond_wait(&answers->changed, &answers->lock);
  g_mutex_unlock(&answers->lock);
  if (g_str_equal(method, "fail")) {
    dr_error_set(error, DR_ERROR_BUSY, "the VM has a job");
    dr_error_remedy(error, "wait for it");
    return NULL;
  }
  if (g_str_equal(method, "long")) {
    g_autofree char *text = g_strnfill(DR_FRAME_MAX, 'x');

    return dr_json("{'text': <%s>}", text);
  }
  return dr_json("{'method': <%s>, 'n': <%x>}", method, dr_json_int(params, "n", -1));
}

static void
answers_release(Answers *answers)
{
  g_mutex_lock(&answers->lock);
  answers->held = FALSE;
  g_cond_broadcast(&answers->changed);
  g_mutex_unlock(&answers->lock);
}

/* --- Two links --- */

typedef struct {
  Net net;
  Answers answers;
  DrLink *a, *b;
  NetCable *cable;
  DrConn *raw; /* instead of `b` */
} Pair;

static gpointer
accept_over_cable(gpointer data)
{
  void **args = data;

  return dr_conn_accept(((Net *)args[0])->context, GPOINTER_TO_INT(args[1]), "client",
                        dr_deadline_in(QUICK_MS), NULL);
}

/* Two TLS connections with a cable between them. */
static void
conns_over_cable(Pair *pair, DrConn *ret[2])
{
  g_autoptr(GError) error = NULL;
  int fds[2], client;
  GThread *thread;

  net_tcp(fds);
  pair->cable = net_cable_new(fds[0], &client);
  thread = g_thread_new("accept", accept_over_cable, (void *[]){ &pair->net, GINT_TO_POINTER(fds[1]) });
  ret[0] =
      dr_conn_new_tls(pair->net.context, client, "localhost", "server", dr_deadline_in(QUICK_MS), &error);
  g_assert_no_error(error);
  ret[1] = g_thread_join(thread);
}

static void
pair_set_up(Pair *pair, gconstpointer unused)
{
  DrConn *conns[2];

  net_set_up(&pair->net, NULL);
  conns_over_cable(pair, conns);
  pair->a = dr_link_new(conns[0], answer, &pair->answers, NULL);
  pair->b = dr_link_new(conns[1], answer, &pair->answers, NULL);
}

static void
pair_set_up_raw(Pair *pair, gconstpointer unused)
{
  DrConn *conns[2];

  net_set_up(&pair->net, NULL);
  conns_over_cable(pair, conns);
  pair->a = dr_link_new(conns[0], answer, &pair->answers, NULL);
  pair->raw = conns[1];
}

static void
pair_tear_down(Pair *pair, gconstpointer unused)
{
  answers_release(&pair->answers);
  dr_link_free(pair->a);
  dr_link_free(pair->b);
  dr_conn_free(pair->raw);
  net_cable_free(pair->cable);
  net_tear_down(&pair->net, NULL);
}

static JsonObject *
ask(DrLink *link, const char *method, gint64 n, int timeout_ms, GError **error)
{
  g_autoptr(JsonObject) params = dr_json("{'n': <%x>}", n);

  return dr_link_call(link, method, params, timeout_ms, error);
}

static void
assert_echo(DrLink *link, gint64 n)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) reply = ask(link, "echo", n, QUICK_MS, &error);

  g_assert_no_error(error);
  g_assert_cmpint(dr_json_int(reply, "n", 0), ==, n);
}

static void
test_both_ways(Pair *pair, gconstpointer unused)
{
  for (gint64 n = 0; n < 20; n++) {
    assert_echo(pair->a, n);
    assert_echo(pair->b, G_MAXINT64 - n);
  }
}

static void
test_error(Pair *pair, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;

  g_assert_null(ask(pair->a, "fail", 0, QUICK_MS, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_BUSY);
  g_assert_cmpstr(error->message, ==, "the VM has a job");
  g_assert_cmpstr(dr_error_get_remedy(error), ==, "wait for it");
  assert_echo(pair->a, 1);
}

/* What does not fit into a frame is an error of that question, and no more. */
static void
test_too_long(Pair *pair, gconstpointer unused)
{
  g_autofree char *text = g_strnfill(DR_FRAME_MAX, 'x');
  g_autoptr(JsonObject) params = dr_json("{'text': <%s>}", text);
  g_autoptr(GError) error = NULL;

  g_assert_null(dr_link_call(pair->a, "echo", params, QUICK_MS, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  g_clear_error(&error);
  g_assert_null(ask(pair->a, "long", 0, QUICK_MS, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  assert_echo(pair->a, 1);
}

static gpointer
ask_many(gpointer data)
{
  for (gint64 n = 0; n < 100; n++)
    assert_echo(data, n);
  return NULL;
}

static void
test_threads(Pair *pair, gconstpointer unused)
{
  GThread *threads[8];

  for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
    threads[i] = g_thread_new("asks", ask_many, i % 2 ? pair->a : pair->b);
  for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
    g_thread_join(threads[i]);
}

static void
test_late_answer(Pair *pair, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;

  pair->answers.held = TRUE;
  g_assert_null(ask(pair->a, "hold", 7, 100, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_TIMEOUT);
  answers_release(&pair->answers);
  assert_echo(pair->a, 8); /* not the answer of 7 */
}

/* --- How it ends --- */

static void
test_closed(Pair *pair, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;

  assert_echo(pair->a, 1);
  g_clear_pointer(&pair->b, dr_link_free);
  assert_readable(dr_link_dead_fd(pair->a), 1000);
  g_assert_true(dr_link_is_dead(pair->a));
  g_assert_null(ask(pair->a, "echo", 0, QUICK_MS, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_CLOSED);
}

static gpointer
ask_until_cut(gpointer link)
{
  g_autoptr(JsonObject) reply = NULL;
  GError *error = NULL;

  reply = ask(link, "hold", 0, 30000, &error);
  g_assert_null(reply);
  return error;
}

static GThread *
ask_and_wait(Pair *pair)
{
  GThread *asking;

  pair->answers.held = TRUE;
  asking = g_thread_new("asks", ask_until_cut, pair->a);
  g_mutex_lock(&pair->answers.lock);
  while (!pair->answers.asked)
    g_cond_wait(&pair->answers.changed, &pair->answers.lock);
  g_mutex_unlock(&pair->answers.lock);
  return asking;
}

/* Of two links one is cut, without a word: the kernel acknowledges all that is sent, only the silence tells. The other one lives,
 * though its question is not answered for longer than that. */
static void
test_silent_cut(Pair *pair, gconstpointer unused)
{
  g_autoptr(GError) error = NULL, late = NULL;
  Pair whole = { 0 };
  GThread *asking = ask_and_wait(pair);
  gint64 begun = g_get_monotonic_time();

  pair_set_up(&whole, NULL);
  whole.answers.held = TRUE;
  net_cable_cut(pair->cable);
  g_assert_null(ask(whole.a, "hold", 0, DR_LINK_DEAD_MS + 400, &late));
  g_assert_error(late, DR_ERROR, DR_ERROR_TIMEOUT);
  error = g_thread_join(asking);
  g_assert_error(error, DR_ERROR, DR_ERROR_CLOSED);
  assert_readable(dr_link_dead_fd(pair->a), 0);
  assert_readable(dr_link_dead_fd(pair->b), 0);
  g_assert_cmpint((g_get_monotonic_time() - begun) / 1000, <=, 4300); /* it was cut a little after */
  g_assert_false(dr_link_is_dead(whole.a));
  g_assert_false(dr_link_is_dead(whole.b));
  g_assert_cmpfloat(dr_link_round_trip(whole.a), >, 0);
  g_assert_cmpfloat(dr_link_round_trip(whole.b), >, 0);
  g_assert_cmpfloat(dr_link_round_trip(whole.a), <, 1000);
  pair_tear_down(&whole, NULL);
}

/* --- Other sides that behave badly --- */

static gpointer
only_beat(gpointer conn)
{
  g_autoptr(JsonObject) ping = dr_json("{'ping': <%x>}", (gint64)1);

  while (dr_conn_send(conn, ping, 500, NULL))
    g_usleep(200000);
  return NULL;
}

/* It lives, and takes nothing: questions fail in time, memory is bounded, and it is not taken for dead at once. */
static void
test_stops_reading(Pair *pair, gconstpointer unused)
{
  g_autofree char *text = g_strnfill(3 << 20, 'x');
  g_autoptr(JsonObject) params = dr_json("{'text': <%s>}", text);
  GThread *thread = g_thread_new("beats", only_beat, pair->raw);
  gint64 begun = g_get_monotonic_time();

  for (int i = 0; i < 8; i++) {
    g_autoptr(GError) error = NULL;

    g_assert_null(dr_link_call(pair->a, "echo", params, 100, &error));
    g_assert_error(error, DR_ERROR, DR_ERROR_TIMEOUT);
  }
  g_assert_cmpint(g_get_monotonic_time() - begun, <, 4 * G_USEC_PER_SEC);
  g_assert_false(dr_link_is_dead(pair->a));
  g_clear_pointer(&pair->a, dr_link_free); /* does not hang */
  dr_conn_abort(pair->raw);
  g_thread_join(thread);
}

static void
test_asks_too_much(Pair *pair, gconstpointer unused)
{
  pair->answers.held = TRUE;
  for (int i = 0; i < 100; i++) {
    g_autoptr(JsonObject) question =
        dr_json("{'id': <%x>, 'method': <'hold'>, 'params': <{'n': <1>}>}", (gint64)i);

    if (!dr_conn_send(pair->raw, question, QUICK_MS, NULL))
      break;
  }
  assert_readable(dr_link_dead_fd(pair->a), QUICK_MS);
}

static void
test_nonsense(Pair *pair, gconstpointer unused)
{
  static const char *const frames[] = { "{'id': <%x>, 'result': <{'a': <1>}>}", "{'id': <'x'>, 'of': <%x>}",
                                        "{'tomorrow': <%x>}", "{'pong': <%x>}" };

  for (guint i = 0; i < G_N_ELEMENTS(frames); i++) {
    g_autoptr(JsonObject) frame = dr_json(frames[i], (gint64)12345);

    g_assert_true(dr_conn_send(pair->raw, frame, QUICK_MS, NULL));
  }
  g_assert_false(net_readable(dr_link_dead_fd(pair->a), 200)); /* what is not known is passed over */
  g_assert_true(dr_conn_write(pair->raw, "\xff\xff\xff\xff", 4, QUICK_MS, NULL));
  assert_readable(dr_link_dead_fd(pair->a), QUICK_MS);
}

#define ADD(name, up, test) g_test_add("/link/" name, Pair, NULL, up, test, pair_tear_down)

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  ADD("both-ways", pair_set_up, test_both_ways);
  ADD("error", pair_set_up, test_error);
  ADD("too-long", pair_set_up, test_too_long);
  ADD("threads", pair_set_up, test_threads);
  ADD("late-answer", pair_set_up, test_late_answer);
  ADD("closed", pair_set_up, test_closed);
  ADD("silent-cut", pair_set_up, test_silent_cut);
  ADD("stops-reading", pair_set_up_raw, test_stops_reading);
  ADD("asks-too-much", pair_set_up_raw, test_asks_too_much);
  ADD("nonsense", pair_set_up_raw, test_nonsense);
  return g_test_run();
}
