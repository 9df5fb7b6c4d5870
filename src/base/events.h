/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What happens, told to everybody who listens: job stages and progress, VM states. Bounded: a subscriber that does not
 * read loses the oldest, and is told so by a "lost" count. */
#pragma once
#include "base/json.h"

typedef struct DrEvents DrEvents;
typedef struct DrSubscription DrSubscription;

DrEvents *dr_events_new(void);
void dr_events_free(DrEvents *events);

/* From any thread. `event`: {"type":"job"|"vm","time_ms":…, "job":{…} | "vm":{…}}; consumed. */
void dr_events_publish(DrEvents *events, JsonObject *event);

/* `wake` is called in the subscriber's `context` (a GMainContext) when there is something to take; at most 256 wait. */
DrSubscription *dr_events_subscribe(DrEvents *events, GMainContext *context, GSourceFunc wake, gpointer data);
/* The next one, or NULL. (transfer full). *ret_lost, if given: how many were dropped before it. */
JsonObject *dr_subscription_take(DrSubscription *subscription, guint *ret_lost);
void dr_subscription_free(DrSubscription *subscription);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrSubscription, dr_subscription_free)
