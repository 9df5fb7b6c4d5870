/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Questions, answers, heartbeats. A frame is one of {"id","method","params"}, {"id","result"}, {"id","error":{…}}, {"ping":TIME} and
 * {"pong":TIME}.
 *
 * Three threads: one reads and notices silence; one sends, so that heartbeats go out whatever the others wait for; one answers
 * questions. Between them frames are bytes, for json-glib's reference counts are not for two threads; only an answer goes as an
 * object, from the reader to who asked, who alone has it then. */
#include "net/link.h"
#include "base/error.h"
#include "net/frame.h"

#include <sys/eventfd.h>
#include <unistd.h>

#define BEAT_MS 1000
#define DEAD_MS DR_LINK_DEAD_MS
#define LOOK_MS 250         /* how often the reader looks at the time; with DEAD_MS it makes less than 4 s */
#define SEND_MS DR_FRAME_MS /* a frame; a dead link ends it sooner */
#define MAX_CALLS 64        /* questions of ours without an answer */
#define MAX_QUESTIONS 16    /* of theirs that wait for their turn */
#define MAX_OUT (2 * 4 << 20) /* bytes that wait to be sent: two of the longest frames */

typedef struct {
  gint64 id;
  JsonObject *reply; /* the frame */
} Call;

struct DrLink {
  DrConn *conn;
  DrLinkHandler handler;
  gpointer data;
  GThread *reader, *sender, *answerer;
  GAsyncQueue *questions; /* of JsonObject, from the reader to the answerer, who alone has it then */
  int dead_fd;
  gint64 round_trip_us; /* atomic */
  gint64 next_id;       /* atomic */
  GMutex lock;          /* for what follows; never held over a wait for the network */
  GCond changed;        /* anything of it */
  gboolean dead;
  GHashTable *calls; /* gint64* -> Call of who waits, on its stack */
  GQueue out;        /* of GBytes */
  gsize out_bytes;
  gint64 pong; /* to be sent; 0: none */
};

static void
die(DrLink *link, const char *why)
{
  g_mutex_lock(&link->lock);
  if (!link->dead) {
    g_debug("conversation with %s ended: %s", dr_conn_address(link->conn), why);
    eventfd_write(link->dead_fd, 1);
  }
  link->dead = TRUE;
  g_cond_broadcast(&link->changed);
  g_mutex_unlock(&link->lock);
  dr_conn_abort(link->conn);
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

/* --- Sending --- */

/* Leaves a frame to the sender; consumed. Waits for room. Under the lock. */
static gboolean
queue_frame(DrLink *link, GBytes *frame, DrDeadline deadline)
{
  gsize len = g_bytes_get_size(frame);

  while (!link->dead && link->out_bytes + len > MAX_OUT)
    if (!g_cond_wait_until(&link->changed, &link->lock, deadline))
      break;
  if (link->dead || link->out_bytes + len > MAX_OUT) {
    g_bytes_unref(frame);
    return FALSE;
  }
  g_queue_push_tail(&link->out, frame);
  link->out_bytes += len;
  g_cond_broadcast(&link->changed);
  return TRUE;
}

static GBytes *
beat_frame(const char *what, gint64 time)
{
  g_autoptr(JsonObject) frame = json_object_new();

  json_object_set_int_member(frame, what, time);
  return dr_frame_new(frame, NULL);
}

/* What is to be sent next: a pong or a ping that is due before anything else. NULL: the link is dead. (transfer full) */
static GBytes *
next_out(DrLink *link, DrDeadline *next_beat)
{
  GBytes *frame = NULL;

  g_mutex_lock(&link->lock);
  while (!link->dead && !frame) {
    if (link->pong) {
      frame = beat_frame("pong", link->pong);
      link->pong = 0;
    } else if (dr_deadline_passed(*next_beat)) {
      *next_beat = dr_deadline_in(BEAT_MS);
      frame = beat_frame("ping", g_get_monotonic_time());
    } else if (!g_queue_is_empty(&link->out)) {
      frame = g_queue_pop_head(&link->out);
      link->out_bytes -= g_bytes_get_size(frame);
      g_cond_broadcast(&link->changed); /* there is room */
    } else {
      g_cond_wait_until(&link->changed, &link->lock, *next_beat);
    }
  }
  g_mutex_unlock(&link->lock);
  return frame;
}

static gpointer
send_all(gpointer data)
{
  DrLink *link = data;
  DrDeadline next_beat = dr_deadline_in(0);

  for (;;) {
    g_autoptr(GBytes) frame = next_out(link, &next_beat);
    g_autoptr(GError) error = NULL;

    if (!frame)
      return NULL;
    if (!dr_conn_write(link->conn, g_bytes_get_data(frame, NULL), g_bytes_get_size(frame), SEND_MS, &error))
      die(link, error->message);
  }
}

/* --- Their questions --- */

static JsonObject *
answer_of(DrLink *link, JsonObject *question)
{
  const char *method = dr_json_str(question, "method", "");
  JsonObject *params = dr_json_obj(question, "params"), *reply = NULL, *frame;
  g_autoptr(JsonObject) none = json_object_new();
  g_autoptr(GError) error = NULL;

  if (link->handler)
    reply = link->handler(link->conn, method, params ? params : none, link->data, &error);
  else
    dr_error_set(&error, DR_ERROR_UNSUPPORTED, "'%.40s' cannot be asked in this direction", method);
  if (!reply && !error)
    dr_error_set(&error, DR_ERROR_INTERNAL, "'%.40s' has no answer", method);
  frame = reply ? json_object_new() : dr_error_to_json(error);
  if (reply)
    json_object_set_object_member(frame, "result", reply);
  json_object_set_int_member(frame, "id", dr_json_int(question, "id", 0));
  return frame;
}

/* An answer that is too long for a frame becomes an error, so that who asked does not wait for nothing. */
static GBytes *
frame_of_answer(JsonObject *answer, gint64 id)
{
  g_autoptr(GError) error = NULL;
  GBytes *frame = dr_frame_new(answer, &error);
  g_autoptr(JsonObject) instead = frame ? NULL : dr_error_to_json(error);

  if (frame)
    return frame;
  json_object_set_int_member(instead, "id", id);
  return dr_frame_new(instead, NULL);
}

static void
answer(DrLink *link, JsonObject *question)
{
  g_autoptr(JsonObject) reply = answer_of(link, question);
  GBytes *frame = frame_of_answer(reply, dr_json_int(question, "id", 0));
  gboolean queued;

  g_mutex_lock(&link->lock);
  queued = queue_frame(link, frame, dr_deadline_in(SEND_MS));
  g_mutex_unlock(&link->lock);
  if (!queued)
    die(link, "an answer could not be sent");
}

static gpointer
answer_all(gpointer data)
{
  DrLink *link = data;

  for (;;) {
    g_autoptr(JsonObject) question = g_async_queue_pop(link->questions);

    if (!json_object_has_member(question, "method")) /* dr_link_free() */
      return NULL;
    if (!dr_link_is_dead(link))
      answer(link, question);
  }
}

/* --- What comes --- */

/* One that came too late, or that nobody asked for, is dropped. Consumes `frame`. */
static void
give_answer(DrLink *link, JsonObject *frame)
{
  gint64 id = dr_json_int(frame, "id", 0);
  Call *call;

  g_mutex_lock(&link->lock);
  call = g_hash_table_lookup(link->calls, &id);
  if (call && !call->reply)
    call->reply = g_steal_pointer(&frame);
  g_cond_broadcast(&link->changed);
  g_mutex_unlock(&link->lock);
  g_clear_pointer(&frame, json_object_unref);
}

static void
give_pong(DrLink *link, gint64 time)
{
  g_mutex_lock(&link->lock);
  link->pong = time;
  g_cond_broadcast(&link->changed);
  g_mutex_unlock(&link->lock);
}

/* Consumes `frame`. NULL, or what is wrong with the other side. */
static const char *
take_frame(DrLink *link, JsonObject *frame)
{
  gint64 ping = dr_json_int(frame, "ping", 0), pong = dr_json_int(frame, "pong", 0);

  if (dr_json_str(frame, "method", NULL)) {
    if (g_async_queue_length(link->questions) < MAX_QUESTIONS) {
      g_async_queue_push(link->questions, frame);
      return NULL;
    }
    json_object_unref(frame);
    return "it asks more than it waits for answers";
  }
  if (json_object_has_member(frame, "id")) {
    give_answer(link, frame);
    return NULL;
  }
  json_object_unref(frame);
  if (ping)
    give_pong(link, ping);
  else if (pong)
    __atomic_store_n(&link->round_trip_us, MAX(g_get_monotonic_time() - pong, 1), __ATOMIC_RELAXED);
  return NULL; /* what we do not know, a newer one may say */
}

static gpointer
read_all(gpointer data)
{
  DrLink *link = data;
  DrDeadline silent_until = dr_deadline_in(DEAD_MS);
  const char *why = NULL;

  while (!why) {
    g_autoptr(GError) error = NULL;
    JsonObject *frame = dr_conn_receive(link->conn, MIN(LOOK_MS, dr_deadline_left(silent_until)), &error);

    if (frame) {
      silent_until = dr_deadline_in(DEAD_MS);
      why = take_frame(link, frame);
    } else if (!g_error_matches(error, DR_ERROR, DR_ERROR_TIMEOUT)) {
      why = "the connection broke, or something else than messages came";
      g_debug("%s", error->message);
    } else if (dr_deadline_passed(silent_until)) {
      why = "it is silent";
    }
    if (dr_link_is_dead(link))
      break;
  }
  die(link, why ? why : "it was ended");
  return NULL;
}

/* --- Our questions --- */

/* Who has the frame has its parts. Consumes it. */
static JsonObject *
result_of(JsonObject *frame, GError **error)
{
  g_autoptr(JsonObject) owned = frame;
  JsonObject *result = dr_json_obj(frame, "result");

  if (!result)
    dr_error_from_json(frame, error);
  return result ? json_object_ref(result) : NULL;
}

static GBytes *
frame_of_question(gint64 id, const char *method, JsonObject *params, GError **error)
{
  g_autoptr(JsonObject) frame = json_object_new();

  json_object_set_int_member(frame, "id", id);
  json_object_set_string_member(frame, "method", method);
  json_object_set_object_member(frame, "params", json_object_ref(params));
  return dr_frame_new(frame, error);
}

/* Under the lock. */
static gboolean
begin_call(DrLink *link, Call *call, const char *method, GError **error)
{
  if (link->dead)
    return dr_error_set(error, DR_ERROR_CLOSED, "cannot ask '%s': the connection with %s broke", method,
                        dr_conn_address(link->conn));
  if (g_hash_table_size(link->calls) >= MAX_CALLS)
    return dr_error_set(error, DR_ERROR_BUSY, "cannot ask '%s': %d questions to %s are without an answer",
                        method, MAX_CALLS, dr_conn_address(link->conn));
  g_hash_table_insert(link->calls, &call->id, call);
  return TRUE;
}

/* Under the lock. Takes the frame out of `call`. NULL: there was none. */
static JsonObject *
wait_answer(DrLink *link, Call *call, GBytes *frame, DrDeadline deadline)
{
  gboolean wait = queue_frame(link, frame, deadline);

  while (wait && !call->reply && !link->dead)
    wait = g_cond_wait_until(&link->changed, &link->lock, deadline);
  return g_steal_pointer(&call->reply);
}

/* Consumes `frame`. Returns the answer's frame; NULL: *error. */
static JsonObject *
call_it(DrLink *link, Call *call, const char *method, GBytes *frame, int timeout_ms, GError **error)
{
  JsonObject *reply = NULL;
  gboolean begun, dead;

  g_mutex_lock(&link->lock);
  begun = begin_call(link, call, method, error);
  if (begun) {
    reply = wait_answer(link, call, frame, dr_deadline_in(timeout_ms));
    g_hash_table_remove(link->calls, &call->id);
  }
  dead = link->dead;
  g_mutex_unlock(&link->lock);
  if (!begun)
    g_bytes_unref(frame);
  else if (!reply && dead)
    dr_error_set(error, DR_ERROR_CLOSED, "the connection with %s broke before it answered '%s'",
                 dr_conn_address(link->conn), method);
  else if (!reply)
    dr_error_set(error, DR_ERROR_TIMEOUT, "%s did not answer '%s' in %d ms", dr_conn_address(link->conn),
                 method, timeout_ms);
  return reply;
}

JsonObject *
dr_link_call(DrLink *link, const char *method, JsonObject *params, int timeout_ms, GError **error)
{
  Call call = { .id = __atomic_add_fetch(&link->next_id, 1, __ATOMIC_RELAXED) };
  GBytes *frame = frame_of_question(call.id, method, params, error);
  JsonObject *reply = frame ? call_it(link, &call, method, frame, timeout_ms, error) : NULL;

  return reply ? result_of(reply, error) : NULL;
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
  g_cond_init(&link->changed);
  g_queue_init(&link->out);
  link->calls = g_hash_table_new(g_int64_hash, g_int64_equal);
  link->dead_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  link->questions = g_async_queue_new_full((GDestroyNotify)json_object_unref);
  link->answerer = g_thread_try_new("link-answers", answer_all, link, error);
  link->sender = link->answerer ? g_thread_try_new("link-sends", send_all, link, error) : NULL;
  link->reader = link->sender ? g_thread_try_new("link-reads", read_all, link, error) : NULL;
  return link->reader ? g_steal_pointer(&link) : NULL;
}

void
dr_link_free(DrLink *link)
{
  if (!link)
    return;
  die(link, "it was ended here");
  if (link->reader)
    g_thread_join(link->reader);
  if (link->sender)
    g_thread_join(link->sender);
  g_async_queue_push(link->questions, json_object_new());
  if (link->answerer)
    g_thread_join(link->answerer);
  g_async_queue_unref(link->questions);
  g_queue_clear_full(&link->out, (GDestroyNotify)g_bytes_unref);
  g_hash_table_unref(link->calls);
  dr_conn_free(link->conn);
  close(link->dead_fd);
  g_mutex_clear(&link->lock);
  g_cond_clear(&link->changed);
  g_free(link);
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
