/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Events: order, bounds, wake-ups, many threads. */
#include "base/events.h"

#define QUEUE 256

static JsonObject *
event(int n)
{
  return dr_json("{'type': <'job'>, 'n': <%i>}", n);
}

static gboolean
count_wake(gpointer data)
{
  ++*(int *)data;
  return G_SOURCE_REMOVE;
}

static int
take(DrSubscription *subscription, guint *ret_lost)
{
  g_autoptr(JsonObject) object = dr_subscription_take(subscription, ret_lost);

  return object ? (int)dr_json_int(object, "n", -1) : -1;
}

static void
iterate(GMainContext *context)
{
  while (g_main_context_iteration(context, FALSE))
    continue;
}

static void
test_order(void)
{
  DrEvents *events = dr_events_new();
  g_autoptr(GMainContext) context = g_main_context_new();
  int wakes_a = 0, wakes_b = 0;
  g_autoptr(DrSubscription) a = dr_events_subscribe(events, context, count_wake, &wakes_a);
  g_autoptr(DrSubscription) b = dr_events_subscribe(events, context, count_wake, &wakes_b);
  guint lost;

  for (int i = 0; i < 3; i++)
    dr_events_publish(events, event(i));
  iterate(context);
  g_assert_cmpint(wakes_a, ==, 1); /* one wake-up for all that waits */
  g_assert_cmpint(wakes_b, ==, 1);
  for (int i = 0; i < 3; i++) {
    g_assert_cmpint(take(a, &lost), ==, i);
    g_assert_cmpuint(lost, ==, 0);
    g_assert_cmpint(take(b, NULL), ==, i);
  }
  g_assert_cmpint(take(a, &lost), ==, -1);
  dr_events_publish(events, event(9));
  iterate(context);
  g_assert_cmpint(wakes_a, ==, 2);
  dr_events_free(events); /* the subscriptions still stand */
  g_assert_cmpint(take(a, NULL), ==, 9);
}

static void
test_bound(void)
{
  DrEvents *events = dr_events_new();
  int wakes = 0;
  g_autoptr(DrSubscription) subscription = dr_events_subscribe(events, NULL, count_wake, &wakes);
  guint lost;

  for (int i = 0; i < QUEUE + 10; i++)
    dr_events_publish(events, event(i));
  g_assert_cmpint(take(subscription, &lost), ==, 10); /* the oldest are gone */
  g_assert_cmpuint(lost, ==, 10);
  for (int i = 11; i < QUEUE + 10; i++) {
    g_assert_cmpint(take(subscription, &lost), ==, i);
    g_assert_cmpuint(lost, ==, 0);
  }
  g_assert_cmpint(take(subscription, NULL), ==, -1);
  dr_events_free(events);
}

typedef struct {
  DrSubscription *subscription;
  int wakes;
} Once;

static gboolean
free_in_wake(gpointer data)
{
  Once *once = data;

  once->wakes++;
  g_clear_pointer(&once->subscription, dr_subscription_free);
  return G_SOURCE_REMOVE;
}

static void
test_free(void)
{
  DrEvents *events = dr_events_new();
  Once once = { 0 };
  int wakes = 0;
  DrSubscription *other = dr_events_subscribe(events, NULL, count_wake, &wakes);

  once.subscription = dr_events_subscribe(events, NULL, free_in_wake, &once);
  dr_events_publish(events, event(1));
  dr_subscription_free(other); /* with its wake-up on the way */
  iterate(NULL);
  g_assert_cmpint(once.wakes, ==, 1);
  g_assert_cmpint(wakes, ==, 0);
  dr_events_publish(events, event(2)); /* to nobody */
  dr_subscription_free(NULL);
  dr_events_free(events);
  dr_events_free(NULL);
}

/* --- Threads: some publish, some subscribe, read and leave --- */

#define PUBLISHERS 4
#define READERS 4
#define EACH 2000

typedef struct {
  DrEvents *events;
  int number;
  gint *running; /* publishers */
} Thread;

static gpointer
publish_many(gpointer data)
{
  Thread *thread = data;

  for (int i = 0; i < EACH; i++)
    dr_events_publish(thread->events, dr_json("{'from': <%i>, 'n': <%i>}", thread->number, i));
  g_atomic_int_add(thread->running, -1);
  return NULL;
}

/* Of each publisher the numbers only grow. */
static guint
drain(DrSubscription *subscription, int *last)
{
  JsonObject *object;
  guint lost, total = 0;

  while ((object = dr_subscription_take(subscription, &lost)) != NULL) {
    int from = (int)dr_json_int(object, "from", -1), n = (int)dr_json_int(object, "n", -1);

    g_assert_cmpint(n, >, last[from]);
    last[from] = n;
    total += lost + 1;
    json_object_unref(object);
  }
  return total;
}

static gpointer
read_many(gpointer data)
{
  Thread *thread = data;
  g_autoptr(GMainContext) context = g_main_context_new();
  int wakes = 0, last[PUBLISHERS] = { -1, -1, -1, -1 };
  guint total = 0;
  gboolean publishing = TRUE;
  DrSubscription *subscription = dr_events_subscribe(thread->events, context, count_wake, &wakes);

  while (publishing) {
    publishing = g_atomic_int_get(thread->running) > 0;
    iterate(context);
    total += drain(subscription, last);
  }
  g_assert_cmpuint(total, <=, PUBLISHERS * EACH);
  g_assert_true((wakes > 0) == (total > 0));
  dr_subscription_free(subscription);
  return NULL;
}

static void
test_threads(void)
{
  DrEvents *events = dr_events_new();
  gint running = PUBLISHERS;
  Thread threads[PUBLISHERS + READERS];
  GThread *started[PUBLISHERS + READERS];

  for (int i = 0; i < PUBLISHERS + READERS; i++) {
    threads[i] = (Thread){ .events = events, .number = i % READERS, .running = &running };
    started[i] = g_thread_new("test", i < READERS ? read_many : publish_many, &threads[i]);
  }
  for (int i = 0; i < PUBLISHERS + READERS; i++)
    g_thread_join(started[i]);
  dr_events_free(events);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/events/order", test_order);
  g_test_add_func("/events/bound", test_bound);
  g_test_add_func("/events/free", test_free);
  g_test_add_func("/events/threads", test_threads);
  return g_test_run();
}
