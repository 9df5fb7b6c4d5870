/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One connection from its accept(2) until it is known who it is. */
#pragma once
#include "net/conn.h"
#include "net/tokens.h"

typedef struct {
  int fd;                 /* -1: it has been handed on */
  int abort_fd;           /* the same socket, for shutdown(2) while a thread has the other; -1 before */
  char *address, *origin; /* origin: for whom it is counted */
  DrDeadline deadline;
  gint64 since_us;     /* accepted, then: greeting */
  gboolean has_spoken; /* something is there to be read */
} DrNewcomer;

/* Takes `fd` over. (transfer full) */
DrNewcomer *dr_newcomer_new(int fd, const char *address, const char *origin, int timeout_ms);
void dr_newcomer_free(DrNewcomer *new);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrNewcomer, dr_newcomer_free)

/* Whether its first byte is that of TLS. Blocks. */
gboolean dr_newcomer_speaks_tls(DrNewcomer *new);
/* Reads the preamble of a plain connection; its socket becomes the connection. Blocks. NULL: REFUSED. (transfer full) */
DrConn *dr_newcomer_plain(DrNewcomer *new, DrTokens *tokens, JsonObject **ret_hello, GError **error);
