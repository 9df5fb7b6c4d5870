/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* droverd's HTTP server on a unix socket; docs/API.md is its contract. */
#pragma once
#include "base/events.h"
#include "daemon/service.h"

typedef struct DrApi DrApi;

/* What a client may take, and how long it may take for it. Tests make these small. */
typedef struct {
  gsize body;        /* bytes of a request's body that are taken */
  guint connections; /* at once, event streams and consoles among them */
  guint streams;     /* event streams at once */
  guint request_ms;  /* from a connection, or a request's first byte, until the request is read */
  guint idle_s;      /* without a byte moving while we wait for one */
  guint comment_ms;  /* between an event stream's comments; who took nothing since the last is dropped */
} DrApiLimits;

extern const DrApiLimits dr_api_limits;

/* Listens on `socket_path` (its directory exists, mode 0600) and answers in the thread-default main
 * context of the caller. A socket file that nobody listens on is replaced. Errors: EXISTS "another droverd
 * runs on …"; INVALID: the path is too long; IO. */
DrApi *dr_api_new(DrService *service, DrEvents *events, const char *socket_path, GError **error);
DrApi *dr_api_new_with_limits(DrService *service, DrEvents *events, const char *socket_path,
                              const DrApiLimits *limits, GError **error);

/* Closes all connections, removes the socket, and returns when no worker thread uses the service any more:
 * requests that wait for a job end at once, others when the service's own deadline lets them. From the
 * thread of the context. */
void dr_api_free(DrApi *api);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrApi, dr_api_free)
