/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The real API on a thread of its own, over the fake service, and a client that sends bytes. */
#pragma once
#include "api/http.h"
#include "test-api-fake.h"

typedef struct {
  char *dir, *path;
  DrApiLimits limits;
  const DrApiAccess *access; /* nullable */
  DrEvents *events;
  DrService *service;
  DrApi *api;
  GMainContext *context;
  GMainLoop *loop;
  GThread *thread;
} Server;

/* `limits` NULL: the usual ones. */
Server *server_start(const DrApiLimits *limits);
Server *server_start_with(const DrApiLimits *limits, const DrApiAccess *access);
/* The API alone, as when droverd restarts. */
void server_close(Server *server);
void server_open(Server *server);
void server_stop(Server *server);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Server, server_stop)

#define TIMEOUT_S 20

/* A connection whose reads and writes end after TIMEOUT_S. */
int http_connect(const Server *server);
void http_send(int fd, const char *text, gssize len);
/* All up to the end of the stream. (transfer full) */
char *http_read_all(int fd);
/* Until `text` came, or the end of the stream. (transfer full): all that came */
char *http_read_until(int fd, const char *text);
/* TRUE when the other end has closed, within `timeout_ms`. */
gboolean http_is_closed(int fd, int timeout_ms);

/* One request; `body` NULL: none. Returns the status; *ret_answer (optional, transfer full) all of the
 * answer. */
guint http_call(const Server *server, const char *method, const char *path, const char *body,
                char **ret_answer);

#define assert_contains(text, part)                                                                          \
  G_STMT_START                                                                                               \
  {                                                                                                          \
    if (!strstr((text), (part)))                                                                             \
      g_error("%s:%d: '%s' is not in:\n%s", __FILE__, __LINE__, (part), (text));                             \
  }                                                                                                          \
  G_STMT_END

/* test-api-cli.c, test-api-gate.c, test-api-stream.c */
void add_cli_tests(void);
void add_gate_tests(void);
void add_stream_tests(void);
