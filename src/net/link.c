/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Questions, answers, heartbeats. A frame is one of {"id","method","params"}, {"id","result"} or {"id","error":{…}},
 * {"ping":TIME} and {"pong":TIME}. One thread reads and keeps the heartbeat, another answers questions. */
#include "net/link.h"
#include "base/error.h"

#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BEAT_MS 1000
#define DEAD_MS 3500
#define SEND_MS 3000
#define MAX_WAITING 64   /* calls of ours without an answer */
#define MAX_QUESTIONS 16 /* of theirs without one */

typedef struct {
  gint64 id;
  JsonObject *reply; /* the frame */
} Call;

struct DrLink {
  DrConn *conn;
  DrLinkHandler handler;
  gpointer data;
  GMutex lock, send_lock;
  GCond answered;
  GHashTable *calls; /* gint64* -> Call of who waits, on its stack */
  gint64 next_id;
  gint64 heard_us; /* of the reading thread */
  gint64 beat_us;
  gint64 round_trip_us; /* atomic */
  gboolean dead;        /* under `lock` */
  int dead_fd;
  GThread *reader, *answerer;
  GAsyncQueue *questions; /* of JsonObject; an empty one ends the answerer */
};

static void
die(DrLink *link)
{
  dr_conn_abort(link->conn);
  g_mutex_lock(&link->lock);
  if (!link->dead)
    eventfd_write(link->dead_fd, 1);
  link->dead = TRUE;
  g_cond_broadcast(&link->answered);
  g_mutex_unlock(&link->lock);
}

static gboolean
send_frame(DrLink *link, JsonObject *frame, GError **error)
{
  gboolean sent;

  g_mutex_lock(&link->send_lock);
  sent = dr_conn_send(link->conn, frame, SEND_MS, error);
  g_mutex_unlock(&link->send_lock);
  json_object_unref(frame);
  if (!sent)
    die(link);
  return sent;
}

/* --- Their questions --- */

static void
answer(DrLink *link, JsonObject *question)
{
  const char *method = dr_json_str(question, "method", "");
  g_autoptr(JsonObject) none = json_object_new();
  JsonObject *params = dr_json_obj(question, "params");
  g_autoptr(GError) error = NULL;
  JsonObject *reply = NULL, *frame;

  if (link->handler)
    reply = link->handler(link->conn, method, params ? params : none, link->data, &error);
  else
    dr_error_set(&error, DR_ERROR_UNSUPPORTED, "'%.40s' cannot be asked in this direction", method);
  frame = reply ? json_object_new() : dr_error_to_json(error);
  if (reply)
    json_object_set_object_member(frame, "result", reply);
  json_object_set_int_member(frame, "id", dr_json_int(question, "id", 0));
  send_frame(link, frame, NULL);
}

static gpointer
answer_all(gpointer data)
{
  DrLink *link = data;

  for (;;) {
    g_autoptr(JsonObject) question = g_async_queue_pop(link->questions);

    if (!json_object_has_member(question, "method"))
      return NULL;
    answer(link, question);
  }
}

/* --- What comes --- */

/* Whoever asked owns it from here on: json-glib's reference counts are not for two threads. */
static void
give_answer(DrLink *link, JsonObject *frame)
{
  gint64 id = dr_json_int(frame, "id", 0);
  Call *call;

  g_mutex_lock(&link->lock);
  call = g_hash_table_lookup(link->calls, &id);
  if (call && !call->reply)
    call->reply = g_steal_pointer(&frame);
  g_cond_broadcast(&link->answered);
  g_mutex_unlock(&link->lock);
  g_clear_pointer(&frame, json_object_unref);
}

/* Consumes `frame`. FALSE: the other side does not keep to the protocol. */
static gboolean
take_frame(DrLink *link, JsonObject *frame)
{
  gint64 ping = dr_json_int(frame, "ping", 0), pong = dr_json_int(frame, "pong", 0);

  if (!ping && !pong && json_object_has_member(frame, "method")) {
    gboolean room = g_async_queue_length(link->questions) < MAX_QUESTIONS;

    if (room)
      g_async_queue_push(link->questions, frame);
    else
      json_object_unref(frame);
    return room;
  }
  if (!ping && !pong) {
    give_answer(link, frame);
    return TRUE;
  }
  json_object_unref(frame);
  if (ping)
    return send_frame(link, dr_json("{'pong': <%x>}", ping), NULL);
  __atomic_store_n(&link->round_trip_us, g_get_monotonic_time() - pong, __ATOMIC_RELAXED);
  return TRUE;
}

static gboolean
beat(DrLink *link)
{
  gint64 now = g_get_monotonic_time();

  if (now - link->heard_us > DEAD_MS * 1000)
    return FALSE;
  if (now - link->beat_us < BEAT_MS * 1000)
    return TRUE;
  link->beat_us = now;
  return send_frame(link, dr_json("{'ping': <%x>}", now), NULL);
}

static gpointer
read_all(gpointer data)
{
  DrLink *link = data;
  gboolean alive = TRUE;

  link->heard_us = g_get_monotonic_time();
  while (alive) {
    g_autoptr(GError) error = NULL;
    JsonObject *frame = dr_conn_receive(link->conn, BEAT_MS / 4, &error);

    if (frame) {
      link->heard_us = g_get_monotonic_time();
      alive = take_frame(link, frame);
    } else {
      alive = g_error_matches(error, DR_ERROR, DR_ERROR_TIMEOUT);
    }
    alive = alive && beat(link) && !dr_link_is_dead(link);
  }
  die(link);
  return NULL;
}

/* --- Our questions --- */

static JsonObject *
result_of(JsonObject *frame, GError **error)
{
  JsonObject *result = dr_json_obj(frame, "result");
  g_autoptr(JsonNode) node = NULL, copy = NULL;

  if (!result) {
    dr_error_from_json(frame, error);
    return NULL;
  }
  node = dr_json_node(json_object_ref(result));
  copy = dr_json_dup(node); /* the frame was the reading thread's */
  return json_node_dup_object(copy);
}

static gboolean
wait_answer(DrLink *link, Call *call, DrDeadline deadline)
{
  while (!call->reply && !link->dead)
    if (!g_cond_wait_until(&link->answered, &link->lock, deadline))
      break;
  return call->reply != NULL;
}

static JsonObject *
frame_of(DrLink *link, gint64 *ret_id, const char *method, JsonObject *params)
{
  JsonObject *frame = dr_json("{'method': <%s>}", method);

  *ret_id = ++link->next_id;
  json_object_set_int_member(frame, "id", *ret_id);
  json_object_set_object_member(frame, "params", json_object_ref(params));
  return frame;
}

JsonObject *
dr_link_call(DrLink *link, const char *method, JsonObject *params, int timeout_ms, GError **error)
{
  DrDeadline deadline = dr_deadline_in(timeout_ms);
  Call call = { 0 };
  JsonObject *frame, *result = NULL;
  gboolean full;

  g_mutex_lock(&link->lock);
  full = g_hash_table_size(link->calls) >= MAX_WAITING;
  frame = frame_of(link, &call.id, method, params);
  if (!full)
    g_hash_table_insert(link->calls, &call.id, &call);
  g_mutex_unlock(&link->lock);
  if (full) {
    json_object_unref(frame);
    dr_error_set(error, DR_ERROR_BUSY, "too many questions to %s are without an answer",
                 dr_conn_address(link->conn));
    return NULL;
  }
  send_frame(link, frame, NULL); /* if it cannot be sent, the link is dead */
  g_mutex_lock(&link->lock);
  if (wait_answer(link, &call, deadline))
    result = result_of(call.reply, error);
  else if (link->dead)
    dr_error_set(error, DR_ERROR_CLOSED, "the connection with %s broke ('%s')", dr_conn_address(link->conn),
                 method);
  else
    dr_error_set(error, DR_ERROR_TIMEOUT, "%s did not answer '%s' in %d ms", dr_conn_address(link->conn),
                 method, timeout_ms);
  g_hash_table_remove(link->calls, &call.id);
  if (call.reply)
    json_object_unref(call.reply);
  g_mutex_unlock(&link->lock);
  return result;
}

/* --- The whole --- */

DrLink *
dr_link_new(DrConn *conn, DrLinkHandler handler, gpointer data, GError **error)
{
  g_autoptr(DrLink) link = g_new0(DrLink, 1);

  link->conn = conn;
  link->handler = handler;
  link->data = data;
  g_mutex_init(&link->lock);
  g_mutex_init(&link->send_lock);
  g_cond_init(&link->answered);
  link->calls = g_hash_table_new(g_int64_hash, g_int64_equal);
  link->dead_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  link->questions = g_async_queue_new_full((GDestroyNotify)json_object_unref);
  link->answerer = g_thread_try_new("link-answers", answer_all, link, error);
  link->reader = link->answerer ? g_thread_try_new("link", read_all, link, error) : NULL;
  return link->reader ? g_steal_pointer(&link) : NULL;
}

void
dr_link_free(DrLink *link)
{
  if (!link)
    return;
  die(link);
  if (link->reader)
    g_thread_join(link->reader);
  g_async_queue_push(link->questions, json_object_new());
  if (link->answerer)
    g_thread_join(link->answerer);
  g_async_queue_unref(link->questions);
  g_hash_table_unref(link->calls);
  dr_conn_free(link->conn);
  close(link->dead_fd);
  g_mutex_clear(&link->lock);
  g_mutex_clear(&link->send_lock);
  g_cond_clear(&link->answered);
  g_free(link);
}

gboolean
dr_link_is_dead(DrLink *link)
{
  gboolean dead;

  g_mutex_lock(&link->lock);
  dead = link->dead;
  g_mutex_unlock(&link->lock);
  return dead;
}

int
dr_link_dead_fd(DrLink *link)
{
  return link->dead_fd;
}

double
dr_link_round_trip(DrLink *link)
{
  return (double)__atomic_load_n(&link->round_trip_us, __ATOMIC_RELAXED) / 1000.0;
}

DrConn *
dr_link_conn(DrLink *link)
{
  return link->conn;
}
