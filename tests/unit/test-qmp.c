/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The QMP connection against a peer that misbehaves in ways that a real QEMU cannot be made to: late, silent, garbled. */
#include "base/error.h"
#include "qmp/qmp.h"

#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define GREETING                                                                                             \
  "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}, \"capabilities\": "      \
  "[]}}\r\n"

/* What the peer answers to each line that it gets, in order. "%d" becomes the id of that line. NULL ends. */
typedef struct {
  int fd;
  const char *greeting;
  const char *const *answers;
} Peer;

static gint64
id_of(const char *line)
{
  const char *at = strstr(line, "\"id\":");

  return at ? g_ascii_strtoll(at + 5, NULL, 10) : 0;
}

static void
say(int fd, const char *text)
{
  gsize len = strlen(text);

  g_assert_cmpint(write(fd, text, len), ==, (gssize)len);
}

static gpointer
peer_run(gpointer data)
{
  Peer *peer = data;
  char line[65536];
  gssize n;

  if (peer->greeting)
    say(peer->fd, peer->greeting);
  for (const char *const *answer = peer->answers; answer && *answer; answer++) {
    g_auto(GStrv) parts = g_strsplit(*answer, "%d", 2);

    n = read(peer->fd, line, sizeof line - 1);
    if (n <= 0)
      break;
    line[n] = '\0';
    if (parts[0] && parts[1]) {
      g_autofree char *id = g_strdup_printf("%" G_GINT64_FORMAT, id_of(line));
      g_autofree char *text = g_strconcat(parts[0], id, parts[1], NULL);

      say(peer->fd, text);
    } else {
      say(peer->fd, *answer);
    }
  }
  return NULL;
}

typedef struct {
  Peer peer;
  GThread *thread;
  DrQmp *qmp;
} Link;

static Link *
link_up(const char *greeting, const char *const *answers, GError **error)
{
  Link *link = g_new0(Link, 1);
  int pair[2];

  g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), ==, 0);
  link->peer = (Peer){ .fd = pair[1], .greeting = greeting, .answers = answers };
  link->thread = g_thread_new("peer", peer_run, &link->peer);
  link->qmp = dr_qmp_new_fd(pair[0], "the peer", dr_deadline_in(300), error);
  return link;
}

static void
link_down(Link *link)
{
  dr_qmp_free(link->qmp);
  g_thread_join(link->thread);
  close(link->peer.fd);
  g_free(link);
}

#define OK "{\"return\": {}, \"id\": %d}\r\n"

static void
test_call(void)
{
  static const char *const answers[] = { OK, "{\"return\": {\"status\": \"running\"}, \"id\": %d}\n", NULL };
  Link *link = link_up(GREETING, answers, NULL);
  g_autoptr(JsonObject) status = dr_qmp_call_object(link->qmp, "query-status", NULL, NULL);

  g_assert_cmpstr(dr_json_str(status, "status", NULL), ==, "running");
  g_assert_cmpstr(dr_qmp_version(link->qmp), ==, "7.2.22");
  g_assert_cmpint(dr_qmp_version_number(link->qmp), ==, DR_QEMU(7, 2) + 22);
  link_down(link);
}

static void
test_error(void)
{
  static const char *const answers[] = {
    OK, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"No such thing\"}, \"id\": %d}\n", NULL
  };
  g_autoptr(GError) error = NULL;
  Link *link = link_up(GREETING, answers, NULL);

  g_assert_false(dr_qmp_do(link->qmp, "x", NULL, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_QMP);
  g_assert_nonnull(strstr(error->message, "No such thing"));
  g_assert_false(dr_qmp_closed(link->qmp));
  link_down(link);
}

static void
test_events_between(void)
{
  static const char *const answers[] = { OK,
                                         "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 5, "
                                         "\"microseconds\": 6}}\n{\"event\": \"RESUME\", \"timestamp\": {}}\n"
                                         "{\"return\": {}, \"id\": %d}\n",
                                         NULL };
  Link *link = link_up(GREETING, answers, NULL);
  g_autoptr(DrQmpEvent) stop = NULL;
  g_autoptr(DrQmpEvent) resume = NULL;

  g_assert_true(dr_qmp_do(link->qmp, "x", NULL, NULL));
  stop = dr_qmp_pop_event(link->qmp);
  g_assert_cmpstr(stop->name, ==, "STOP");
  g_assert_cmpint(stop->time_us, ==, 5000006);
  resume = dr_qmp_wait_event(link->qmp, "SHUTDOWN|RESUME", dr_deadline_in(1000), NULL);
  g_assert_cmpstr(resume->name, ==, "RESUME");
  g_assert_null(dr_qmp_pop_event(link->qmp));
  link_down(link);
}

/* The answer of a command that was given up comes with the next one: it must not be taken for its answer. */
static void
test_late_answer(void)
{
  static const char *const answers[] = {
    OK, "\n", "{\"return\": {\"late\": true}, \"id\": 2}\n{\"return\": {\"late\": false}, \"id\": %d}\n", NULL
  };
  g_autoptr(GError) error = NULL;
  Link *link = link_up(GREETING, answers, NULL);
  g_autoptr(JsonNode) none = dr_qmp_call(link->qmp, "slow", NULL, 50, &error);
  g_autoptr(JsonObject) object = NULL;

  g_assert_null(none);
  g_assert_error(error, DR_ERROR, DR_ERROR_TIMEOUT);
  object = dr_qmp_call_object(link->qmp, "quick", NULL, NULL);
  g_assert_false(dr_json_bool(object, "late", TRUE));
  link_down(link);
}

static void
test_held_monitor(void)
{
  g_autoptr(GError) error = NULL;
  Link *link = link_up(NULL, NULL, &error);

  g_assert_null(link->qmp);
  g_assert_error(error, DR_ERROR, DR_ERROR_BUSY);
  g_assert_nonnull(dr_error_get_remedy(error));
  link_down(link);
}

static void
test_garbage(void)
{
  static const char *const answers[] = { OK, "HTTP/1.1 400 Bad Request\r\n", NULL };
  g_autoptr(GError) error = NULL;
  Link *link = link_up(GREETING, answers, NULL);

  g_assert_false(dr_qmp_do(link->qmp, "x", NULL, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  g_assert_true(dr_qmp_closed(link->qmp));
  link_down(link);
}

static void
test_deep_answer(void)
{
  g_autofree char *deep = g_strnfill(100000, '[');
  g_autofree char *line = g_strconcat("{\"return\": ", deep, "\n", NULL);
  const char *const answers[] = { OK, line, NULL };
  g_autoptr(GError) error = NULL;
  Link *link = link_up(GREETING, answers, NULL);

  g_assert_false(dr_qmp_do(link->qmp, "x", NULL, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  link_down(link);
}

static void
test_event_flood(void)
{
  g_autoptr(GString) flood = g_string_new(NULL);
  const char *answers[] = { OK, NULL, NULL };
  guint n = 0;
  DrQmpEvent *event;
  Link *link;

  for (int i = 0; i < 3 * DR_QMP_MAX_EVENTS; i++)
    g_string_append_printf(flood, "{\"event\": \"E%d\", \"timestamp\": {}}\n", i);
  g_string_append(flood, "{\"return\": {}, \"id\": %d}\n");
  answers[1] = flood->str;
  g_test_expect_message("drover", G_LOG_LEVEL_WARNING, "*events unread*");
  link = link_up(GREETING, answers, NULL);
  g_assert_true(dr_qmp_do(link->qmp, "x", NULL, NULL));
  g_test_assert_expected_messages();
  while ((event = dr_qmp_pop_event(link->qmp))) {
    n++;
    dr_qmp_event_free(event);
  }
  g_assert_cmpuint(n, ==, DR_QMP_MAX_EVENTS);
  link_down(link);
}

static void
test_cancel(void)
{
  static const char *const answers[] = { OK, NULL };
  g_autoptr(GError) error = NULL;
  Link *link = link_up(GREETING, answers, NULL);
  int cancel = eventfd(1, EFD_CLOEXEC);

  dr_qmp_set_cancel_fd(link->qmp, cancel);
  g_assert_false(dr_qmp_do(link->qmp, "x", NULL, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_CANCELLED);
  close(cancel);
  link_down(link);
}

static void
test_no_socket(void)
{
  g_autoptr(GError) error = NULL;

  g_assert_null(dr_qmp_connect("/nonexistent/qmp", FALSE, dr_deadline_in(100), &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_IO);
  g_clear_error(&error);
  g_assert_null(dr_qmp_connect("/nonexistent/qmp", TRUE, dr_deadline_in(50), &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_IO);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/qmp/call", test_call);
  g_test_add_func("/qmp/error", test_error);
  g_test_add_func("/qmp/events-between", test_events_between);
  g_test_add_func("/qmp/late-answer", test_late_answer);
  g_test_add_func("/qmp/held-monitor", test_held_monitor);
  g_test_add_func("/qmp/garbage", test_garbage);
  g_test_add_func("/qmp/deep-answer", test_deep_answer);
  g_test_add_func("/qmp/event-flood", test_event_flood);
  g_test_add_func("/qmp/cancel", test_cancel);
  g_test_add_func("/qmp/no-socket", test_no_socket);
  return g_test_run();
}
