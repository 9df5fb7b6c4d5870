/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* GET /v1/events: server-sent events.
 *
 * What waits for a reader is bounded twice: at most UNSENT_MAX events are with libsoup, the rest is in the
 * subscription, which drops the oldest and counts them. A reader that has taken nothing between two
 * comments is dropped. One that has gone is seen at once by its socket's hang-up, which libsoup does not
 * look at while it has nothing to write. */
#include "api/call.h"
#include "api/problem.h"
#include "base/error.h"

#define UNSENT_MAX 32

struct DrStream {
  DrApi *api;
  DrSubscription *subscription;
  char *job, *vm;             /* filters, nullable */
  SoupServerMessage *message; /* NULL until the answer */
  GSocket *socket;
  gulong on_wrote, on_finished, on_disconnected;
  GSource *comment, *hang_up;
  guint unsent;   /* chunks that libsoup has */
  gboolean taken; /* it has written one since the last comment */
  gboolean ended;
};

void
dr_stream_free(DrStream *stream)
{
  if (!stream)
    return;
  g_hash_table_remove(stream->api->streams, stream);
  dr_subscription_free(stream->subscription);
  dr_source_clear(&stream->comment);
  dr_source_clear(&stream->hang_up);
  if (stream->message) {
    g_signal_handler_disconnect(stream->message, stream->on_wrote);
    g_signal_handler_disconnect(stream->message, stream->on_finished);
    g_signal_handler_disconnect(stream->message, stream->on_disconnected);
    g_object_unref(stream->message);
  }
  g_clear_object(&stream->socket);
  g_free(stream->job);
  g_free(stream->vm);
  g_free(stream);
}

static void
send_text(DrStream *stream, char *text)
{
  soup_message_body_append_take(soup_server_message_get_response_body(stream->message), (guchar *)text,
                                strlen(text));
  stream->unsent++;
}

/* `event` {"type", …}: the type is the event's name, the whole object its data. */
static void
send_event(DrStream *stream, JsonObject *event)
{
  g_autofree char *data = dr_json_print_object(event, FALSE);

  send_text(stream, g_strdup_printf("event: %s\ndata: %s\n\n", dr_json_str(event, "type", "message"), data));
}

static void
send_lost(DrStream *stream, guint lost)
{
  send_text(stream, g_strdup_printf("event: lost\ndata: {\"type\":\"lost\",\"lost\":%u}\n\n", lost));
}

static gboolean
is_wanted(const DrStream *stream, JsonObject *event)
{
  const char *type = dr_json_str(event, "type", "");
  const char *vm =
      g_str_equal(type, "vm") ? dr_json_str(event, "vm.name", "") : dr_json_str(event, "job.vm", "");

  if (stream->job && !g_str_equal(stream->job, dr_json_str(event, "job.id", "")))
    return FALSE;
  return !stream->vm || g_str_equal(stream->vm, vm);
}

static void
finish(DrStream *stream)
{
  stream->ended = TRUE;
  soup_message_body_complete(soup_server_message_get_response_body(stream->message));
}

static void
send_one(DrStream *stream, JsonObject *event, guint lost)
{
  if (lost > 0)
    send_lost(stream, lost);
  if (!is_wanted(stream, event))
    return;
  send_event(stream, event);
  if (stream->job && dr_job_ended(dr_json_obj(event, "job")))
    finish(stream);
}

static void
send_waiting(DrStream *stream)
{
  guint before = stream->unsent;
  JsonObject *event;
  guint lost;

  while (!stream->ended && stream->unsent < UNSENT_MAX &&
         (event = dr_subscription_take(stream->subscription, &lost)) != NULL) {
    send_one(stream, event, lost);
    json_object_unref(event);
  }
  if (stream->unsent > before || stream->ended)
    soup_server_message_unpause(stream->message);
}

/* The subscription's. It may come before there is a stream to write to. */
static gboolean
on_wake(gpointer data)
{
  DrStream *stream = data;

  if (stream->message && !stream->ended)
    send_waiting(stream);
  return G_SOURCE_REMOVE;
}

static void
on_wrote_chunk(DrStream *stream)
{
  stream->unsent--;
  stream->taken = TRUE;
  if (!stream->ended)
    send_waiting(stream);
}

static gboolean
on_comment(gpointer data)
{
  DrStream *stream = data;

  if (stream->unsent > 0 && !stream->taken) {
    /* libsoup waits for the socket to take more: this wakes it with an error, and it lets go of the
     * message. */
    g_socket_shutdown(stream->socket, TRUE, TRUE, NULL);
    return G_SOURCE_CONTINUE;
  }
  stream->taken = FALSE;
  if (stream->unsent == 0 && !stream->ended) {
    send_text(stream, g_strdup(":\n\n"));
    soup_server_message_unpause(stream->message);
  }
  return G_SOURCE_CONTINUE;
}

/* Writing something fails now, and so libsoup lets go. */
static gboolean
on_hang_up(int fd, GIOCondition condition, gpointer data)
{
  DrStream *stream = data;

  dr_source_clear(&stream->hang_up);
  if (!stream->ended)
    send_text(stream, g_strdup(":\n\n"));
  soup_server_message_unpause(stream->message);
  return G_SOURCE_REMOVE;
}

/* On the worker: subscribed before the job is looked at, so that nothing is missed between. */
gboolean
dr_stream_work(DrCall *call, GError **error)
{
  const char *job = dr_call_query(call, "job");
  DrStream *stream = g_new0(DrStream, 1);

  stream->api = call->api;
  stream->job = g_strdup(job);
  stream->vm = g_strdup(dr_call_query(call, "vm"));
  call->stream = stream;
  stream->subscription = dr_events_subscribe(call->api->events, call->api->context, on_wake, stream);
  if (job)
    call->object = dr_service_job(call->api->service, job, error);
  return !job || call->object;
}

static void
start(DrStream *stream, SoupServerMessage *message)
{
  SoupMessageHeaders *headers = soup_server_message_get_response_headers(message);

  soup_server_message_set_status(message, SOUP_STATUS_OK, NULL);
  soup_message_headers_set_encoding(headers, SOUP_ENCODING_CHUNKED);
  soup_message_headers_set_content_type(headers, "text/event-stream", NULL);
  soup_message_headers_replace(headers, "Cache-Control", "no-store");
  soup_message_body_set_accumulate(soup_server_message_get_response_body(message), FALSE);
  stream->message = g_object_ref(message);
  stream->socket = g_object_ref(dr_connection_of(message)->socket);
  stream->on_wrote = g_signal_connect_swapped(message, "wrote-chunk", G_CALLBACK(on_wrote_chunk), stream);
  stream->on_finished = g_signal_connect_swapped(message, "finished", G_CALLBACK(dr_stream_free), stream);
  stream->on_disconnected =
      g_signal_connect_swapped(message, "disconnected", G_CALLBACK(dr_stream_free), stream);
  stream->hang_up = dr_connection_watch(dr_connection_of(message), on_hang_up, stream);
  stream->comment = g_timeout_source_new(stream->api->limits.comment_ms);
  g_source_set_callback(stream->comment, on_comment, stream, NULL);
  g_source_attach(stream->comment, stream->api->context);
  g_hash_table_add(stream->api->streams, stream);
}

void
dr_stream_answer(DrCall *call)
{
  DrStream *stream = call->stream;
  gboolean reader = dr_connection_of(call->message)->rights != DR_RIGHTS_ALL;
  guint max = MAX(call->api->limits.streams / (reader ? 2 : 1), 1); /* readers leave room for others */
  g_autoptr(JsonObject) first = NULL;

  if (g_hash_table_size(call->api->streams) >= max) {
    dr_problem_answer_status(call->message, SOUP_STATUS_SERVICE_UNAVAILABLE, "busy", NULL,
                             "there are %u event streams or more, which is the limit", max);
    return;
  }
  call->stream = NULL;
  start(stream, call->message);
  send_text(stream, g_strdup(":\n\n")); /* so that a client sees at once that it is connected */
  if (call->object) {
    first = json_object_new();
    json_object_set_string_member(first, "type", "job");
    json_object_set_int_member(first, "time_ms", g_get_real_time() / 1000);
    json_object_set_object_member(first, "job", g_steal_pointer(&call->object));
    send_one(stream, first, 0);
  }
  if (!stream->ended)
    send_waiting(stream);
}
