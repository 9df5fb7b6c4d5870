/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* droverd's HTTP server on a unix socket; docs/API.md is its contract. */
#pragma once
#include "base/events.h"
#include "daemon/service.h"
#include "net/tls.h"

typedef struct DrApi DrApi;

/* What a client may take, and how long it may take for it. Tests make these small. */
typedef struct {
  gsize body;         /* bytes of a request's body that are taken */
  guint connections;  /* at once, event streams and consoles among them */
  guint streams;      /* event streams at once */
  guint request_ms;   /* from a connection, or a request's first byte, until the request is read */
  guint handshake_ms; /* for TLS */
  guint idle_s;       /* without a byte moving while we wait for one */
  guint comment_ms;   /* between an event stream's comments; who took nothing since the last is dropped */
} DrApiLimits;

extern const DrApiLimits dr_api_limits;

/* Who may connect besides the socket's owner, and to what. Without a group the socket has mode 0600; with one everybody can connect
 * to it, and each connection is looked at (api/access.h). */
typedef struct {
  const char *read_group, *operate_group; /* nullable; a name or a number */
  gboolean tcp;
  const char *address;       /* nullable: all */
  guint16 port;              /* 0: the kernel chooses one; dr_api_port() */
  char **clients, **readers; /* nullable; patterns of the names in certificates */
  DrTlsContext *tls;         /* with `tcp` */
} DrApiAccess;

/* Listens on `socket_path` (its directory exists) and answers in the thread-default main
 * context of the caller. `access` is nullable. A socket file that nobody listens on is replaced. Errors: EXISTS "another droverd
 * runs on …"; INVALID: the path is too long, there is no such group; IO. */
DrApi *dr_api_new(DrService *service, DrEvents *events, const char *socket_path, const DrApiAccess *access,
                  GError **error);
DrApi *dr_api_new_with_limits(DrService *service, DrEvents *events, const char *socket_path,
                              const DrApiAccess *access, const DrApiLimits *limits, GError **error);

/* The TCP port; 0: none. */
guint dr_api_port(DrApi *api);

/* Closes all connections, removes the socket, and returns when no worker thread uses the service any more:
 * requests that wait for a job end at once, others when the service's own deadline lets them. From the
 * thread of the context. */
void dr_api_free(DrApi *api);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrApi, dr_api_free)
