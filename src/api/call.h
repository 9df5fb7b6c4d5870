/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the API share: the server, a connection, and a request under way.
 *
 * Everything here belongs to the main context's thread, with one exception: between dr_call_start() and
 * the route's answer, the worker thread has the members of DrCall that are marked so. The message is
 * paused meanwhile. A client that goes away only sets `gone`: the call ends when its worker does, and then
 * nobody is answered. */
#pragma once
#include "api/access.h"
#include "api/gate.h"
#include "api/http.h"

#include <glib-unix.h>
#include <libsoup/soup.h>

typedef struct DrCall DrCall;
typedef struct DrConsoleLink DrConsoleLink;
typedef struct DrStream DrStream;

struct DrApi {
  DrService *service;
  DrEvents *events;
  DrApiLimits limits;
  GMainContext *context;
  char *path;
  DrAccess access;
  DrGate *gate; /* nullable: TLS */
  GSocket *listener;
  GSource *accept; /* NULL while no connection is taken */
  GSource *retry;  /* accepting again after the system ran out of something */
  guint connections;
  guint of_rights[DR_RIGHTS_KINDS]; /* how many of them have those */
  SoupServer *server;
  GThreadPool *workers;
  GHashTable *clients;  /* set of DrConnection */
  GHashTable *calls;    /* set of DrCall */
  GHashTable *streams;  /* set of DrStream */
  GHashTable *consoles; /* set of DrConsoleLink */
  gint stopping;        /* atomic */
};

/* A client. Counted while libsoup or a pump holds its stream. */
typedef struct {
  DrApi *api;
  GSocket *socket;
  GSource *deadline; /* until the request is read */
  GByteArray *body;  /* of the request that is being read; NULL: it was refused */
  gsize discarded;   /* bytes that came after it was refused */
  gboolean surplus;  /* one too many: it gets a 503 */
  gboolean by_tls;
  DrRights rights;
  char *who; /* nullable; for messages */
} DrConnection;

DrConnection *dr_connection_of(SoupServerMessage *message);

/* Calls back when the other end has closed; the caller destroys the source before the socket is closed.
 * (Not GSocket's own source, which also fires at the socket's timeout.) */
GSource *dr_connection_watch(DrConnection *connection, GUnixFDSourceFunc hung_up, gpointer data);

typedef enum {
  DR_BODY_NONE,
  DR_BODY_OPTIONAL, /* an empty one is {} */
  DR_BODY_REQUIRED,
} DrBody;

typedef struct {
  const char *method;
  const char *path; /* "{}" stands for one segment */
  DrBody body;
  gboolean (*work)(DrCall *call, GError **error); /* on a worker thread */
  void (*answer)(DrCall *call);                   /* NULL: `text` with `status` */
  gboolean head;                                  /* `answer` does for HEAD, too */
} DrRoute;

struct DrCall {
  DrApi *api;
  SoupServerMessage *message;
  const DrRoute *route;
  gulong on_finished, on_disconnected;
  GSource *hang_up;
  gint gone;    /* atomic: libsoup has let go of the message */
  gint hung_up; /* atomic: the client has gone, which libsoup does not see of a paused message */

  /* The worker's while it runs. */
  char *name;        /* the path's "{}" */
  GHashTable *query; /* nullable: string -> string */
  JsonObject *body;  /* empty where the route takes none */
  guint status;      /* 200 unless work() sets another */
  const char *content_type;
  char *text;    /* the answer */
  GBytes *bytes; /* a file of the dashboard, with its ETag */
  char *etag;
  JsonObject *object; /* an answer that route->answer looks at */
  int fd;             /* a console, or -1 */
  DrStream *stream;   /* an event stream that is being made */
  GError *error;
  GSource *done;
};

/* Destroys and unreferences, if there is one. */
void dr_source_clear(GSource **source);

/* Pauses the message and hands the call to a worker; consumes it. */
void dr_call_start(DrCall *call);
DrCall *dr_call_new(DrApi *api, SoupServerMessage *message, const DrRoute *route);
void dr_call_free(DrCall *call);
void dr_call_work(gpointer call, gpointer api); /* the pool's function */

/* Whether its worker should end early. */
gboolean dr_call_abandoned(DrCall *call);

/* For work(): the result, made into text there so that the main loop does not have to. Both take over the
 * reference; NULL (with the error set) gives FALSE. */
gboolean dr_call_take_object(DrCall *call, JsonObject *object);
gboolean dr_call_take_array(DrCall *call, JsonArray *array);

const char *dr_call_query(DrCall *call, const char *name);

/* Whether a job object's state is one that does not change any more. */
gboolean dr_job_ended(JsonObject *job);

/* routes.c: finds the route and starts the call, or answers with a problem. */
void dr_routes_handle(DrApi *api, SoupServerMessage *message, GHashTable *query, GByteArray *body);

/* openapi.c, metrics.c, stream.c, console.c, ui.c: members of the table of routes. */
gboolean dr_openapi_work(DrCall *call, GError **error);
gboolean dr_metrics_work(DrCall *call, GError **error);
gboolean dr_stream_work(DrCall *call, GError **error);
void dr_stream_answer(DrCall *call);
void dr_stream_free(DrStream *stream);
gboolean dr_console_work(DrCall *call, GError **error);
void dr_console_answer(DrCall *call);
void dr_console_link_free(DrConsoleLink *link);
gboolean dr_ui_work(DrCall *call, GError **error);
void dr_ui_answer(DrCall *call);
/* Whether a browser says that a page of another site sends this: one that has a certificate for droverd's TLS listener would be
 * let in with whatever it wants. */
gboolean dr_ui_is_foreign(SoupServerMessage *message, const char *path);
