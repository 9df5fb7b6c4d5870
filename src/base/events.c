/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Hands each event to every subscriber's bounded queue and wakes it in its own main context.
 *
 * An event is kept as text: json-glib 1.6 counts an object's references without atomics, so that one
 * object must not be held by two threads. The text is made once and shared. */
#include "base/events.h"

#define QUEUE_MAX 256

struct DrEvents {
  gatomicrefcount refs; /* the owner's and one of each subscription */
  GMutex lock;          /* over everything here and in the subscriptions */
  GPtrArray *subscriptions;
};

struct DrSubscription {
  DrEvents *events;
  GMainContext *context;
  GSourceFunc wake;
  gpointer data;
  GQueue queue; /* of GBytes */
  guint lost;
  GSource *source; /* the wake-up that is on its way, or NULL */
};

DrEvents *
dr_events_new(void)
{
  DrEvents *events = g_new0(DrEvents, 1);

  g_atomic_ref_count_init(&events->refs);
  g_mutex_init(&events->lock);
  events->subscriptions = g_ptr_array_new();
  return events;
}

void
dr_events_free(DrEvents *events)
{
  if (!events || !g_atomic_ref_count_dec(&events->refs))
    return;
  g_ptr_array_unref(events->subscriptions);
  g_mutex_clear(&events->lock);
  g_free(events);
}

/* Runs in the subscriber's context. `wake` may free the subscription: nothing of it is touched afterwards. */
static gboolean
on_wake(gpointer data)
{
  DrSubscription *subscription = data;

  g_mutex_lock(&subscription->events->lock);
  g_clear_pointer(&subscription->source, g_source_unref);
  g_mutex_unlock(&subscription->events->lock);
  subscription->wake(subscription->data);
  return G_SOURCE_REMOVE;
}

static void
push(DrSubscription *subscription, GBytes *text)
{
  if (subscription->queue.length == QUEUE_MAX) {
    g_bytes_unref(g_queue_pop_head(&subscription->queue));
    subscription->lost++;
  }
  g_queue_push_tail(&subscription->queue, g_bytes_ref(text));
  if (subscription->source)
    return;
  subscription->source = g_idle_source_new();
  g_source_set_priority(subscription->source, G_PRIORITY_DEFAULT);
  g_source_set_callback(subscription->source, on_wake, subscription, NULL);
  g_source_attach(subscription->source, subscription->context);
}

void
dr_events_publish(DrEvents *events, JsonObject *event)
{
  g_autoptr(JsonObject) owned = event;
  g_autoptr(GBytes) text = NULL;

  g_mutex_lock(&events->lock);
  if (events->subscriptions->len > 0) {
    char *line = dr_json_print_object(owned, FALSE);

    text = g_bytes_new_take(line, strlen(line));
  }
  for (guint i = 0; i < events->subscriptions->len; i++)
    push(events->subscriptions->pdata[i], text);
  g_mutex_unlock(&events->lock);
}

DrSubscription *
dr_events_subscribe(DrEvents *events, GMainContext *context, GSourceFunc wake, gpointer data)
{
  DrSubscription *subscription = g_new0(DrSubscription, 1);

  g_atomic_ref_count_inc(&events->refs);
  subscription->events = events;
  subscription->context = g_main_context_ref(context ? context : g_main_context_default());
  subscription->wake = wake;
  subscription->data = data;
  g_queue_init(&subscription->queue);
  g_mutex_lock(&events->lock);
  g_ptr_array_add(events->subscriptions, subscription);
  g_mutex_unlock(&events->lock);
  return subscription;
}

JsonObject *
dr_subscription_take(DrSubscription *subscription, guint *ret_lost)
{
  g_autoptr(GBytes) text = NULL;
  gconstpointer data;
  gsize len;

  g_mutex_lock(&subscription->events->lock);
  text = g_queue_pop_head(&subscription->queue);
  if (ret_lost)
    *ret_lost = subscription->lost;
  subscription->lost = 0;
  g_mutex_unlock(&subscription->events->lock);
  if (!text)
    return NULL;
  data = g_bytes_get_data(text, &len);
  return dr_json_parse_object(data, (gssize)len, len, NULL);
}

/* From the thread of its context (or when that no longer runs), so that no wake-up is half-way. */
void
dr_subscription_free(DrSubscription *subscription)
{
  DrEvents *events;

  if (!subscription)
    return;
  events = subscription->events;
  g_mutex_lock(&events->lock);
  g_ptr_array_remove_fast(events->subscriptions, subscription);
  if (subscription->source) {
    g_source_destroy(subscription->source);
    g_source_unref(subscription->source);
  }
  g_mutex_unlock(&events->lock);
  g_queue_clear_full(&subscription->queue, (GDestroyNotify)g_bytes_unref);
  g_main_context_unref(subscription->context);
  dr_events_free(events);
  g_free(subscription);
}
