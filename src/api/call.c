/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A request under way: from the main loop to a worker thread and back. */
#include "api/call.h"
#include "api/problem.h"
#include "base/error.h"
#include "base/fd.h"

void
dr_source_clear(GSource **source)
{
  if (!*source)
    return;
  g_source_destroy(*source);
  g_clear_pointer(source, g_source_unref);
}

static void
on_gone(DrCall *call)
{
  g_atomic_int_set(&call->gone, TRUE);
  dr_source_clear(&call->hang_up);
}

/* The worker may see it and end early; then the answer fails, and libsoup lets go of the message. */
static gboolean
on_hang_up(int fd, GIOCondition condition, gpointer data)
{
  DrCall *call = data;

  g_atomic_int_set(&call->hung_up, TRUE);
  dr_source_clear(&call->hang_up);
  return G_SOURCE_REMOVE;
}

DrCall *
dr_call_new(DrApi *api, SoupServerMessage *message, const DrRoute *route)
{
  DrCall *call = g_new0(DrCall, 1);

  call->api = api;
  call->message = g_object_ref(message);
  call->route = route;
  call->status = SOUP_STATUS_OK;
  call->content_type = "application/json";
  call->fd = -1;
  call->on_finished = g_signal_connect_swapped(message, "finished", G_CALLBACK(on_gone), call);
  call->on_disconnected = g_signal_connect_swapped(message, "disconnected", G_CALLBACK(on_gone), call);
  g_hash_table_add(api->calls, call);
  return call;
}

void
dr_call_free(DrCall *call)
{
  if (!call)
    return;
  g_hash_table_remove(call->api->calls, call);
  g_signal_handler_disconnect(call->message, call->on_finished);
  g_signal_handler_disconnect(call->message, call->on_disconnected);
  g_object_unref(call->message);
  dr_source_clear(&call->done);
  dr_source_clear(&call->hang_up);
  g_clear_pointer(&call->query, g_hash_table_unref);
  g_clear_pointer(&call->body, json_object_unref);
  g_clear_pointer(&call->object, json_object_unref);
  g_clear_error(&call->error);
  dr_stream_free(call->stream);
  dr_fd_cleanup(&call->fd);
  g_clear_pointer(&call->bytes, g_bytes_unref);
  g_free(call->etag);
  g_free(call->text);
  g_free(call->name);
  g_free(call);
}

gboolean
dr_call_abandoned(DrCall *call)
{
  return g_atomic_int_get(&call->gone) || g_atomic_int_get(&call->hung_up) ||
         g_atomic_int_get(&call->api->stopping);
}

gboolean
dr_call_take_object(DrCall *call, JsonObject *object)
{
  g_autoptr(JsonObject) owned = object;

  if (owned)
    call->text = dr_json_print_object(owned, FALSE);
  return owned != NULL;
}

gboolean
dr_call_take_array(DrCall *call, JsonArray *array)
{
  g_autoptr(JsonNode) node = NULL;

  if (!array)
    return FALSE;
  node = json_node_new(JSON_NODE_ARRAY);
  json_node_take_array(node, array);
  call->text = dr_json_print(node, FALSE);
  return TRUE;
}

const char *
dr_call_query(DrCall *call, const char *name)
{
  return call->query ? g_hash_table_lookup(call->query, name) : NULL;
}

gboolean
dr_job_ended(JsonObject *job)
{
  const char *state = dr_json_str(job, "state", "");

  return !g_str_equal(state, "queued") && !g_str_equal(state, "running");
}

static void
answer_text(DrCall *call)
{
  gsize len = call->text ? strlen(call->text) : 0;

  soup_server_message_set_status(call->message, call->status, NULL);
  if (call->text)
    soup_server_message_set_response(call->message, call->content_type, SOUP_MEMORY_TAKE,
                                     g_steal_pointer(&call->text), len);
}

static gboolean
on_done(gpointer data)
{
  DrCall *call = data;

  dr_source_clear(&call->hang_up);
  if (!g_atomic_int_get(&call->gone)) {
    if (call->error)
      dr_problem_answer(call->message, call->error);
    else if (call->route->answer)
      call->route->answer(call);
    else
      answer_text(call);
    soup_server_message_unpause(call->message);
  }
  dr_call_free(call);
  return G_SOURCE_REMOVE;
}

void
dr_call_work(gpointer data, gpointer user_data)
{
  DrCall *call = data;
  DrApi *api = user_data;
  GSource *done = g_idle_source_new();

  if (!call->route->work(call, &call->error) && !call->error)
    dr_error_set(&call->error, DR_ERROR_INTERNAL, "%s %s failed and did not say why", call->route->method,
                 call->route->path);
  g_source_set_priority(done, G_PRIORITY_DEFAULT);
  g_source_set_callback(done, on_done, call, NULL);
  call->done = done;
  /* From here on the call is the main context's: attaching is the last thing that this thread does. */
  g_source_attach(done, api->context);
}

void
dr_call_start(DrCall *call)
{
  soup_server_message_pause(call->message);
  call->hang_up = dr_connection_watch(dr_connection_of(call->message), on_hang_up, call);
  g_thread_pool_push(call->api->workers, call, NULL);
}
