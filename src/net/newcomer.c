/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The first bytes of a connection. */
#include "net/newcomer.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define TLS_HANDSHAKE 0x16 /* the first byte of a TLS record that begins a connection (RFC 8446, 5.1) */
#define PREAMBLE_LEN (sizeof DR_PREAMBLE - 1 + DR_TOKEN_DIGITS + 1)

DrNewcomer *
dr_newcomer_new(int fd, const char *address, const char *origin, int timeout_ms)
{
  DrNewcomer *new = g_new0(DrNewcomer, 1);

  new->fd = fd;
  new->abort_fd = -1;
  new->address = g_strdup(address);
  new->origin = g_strdup(origin);
  new->deadline = dr_deadline_in(timeout_ms);
  new->since_us = g_get_monotonic_time();
  return new;
}

void
dr_newcomer_free(DrNewcomer *new)
{
  if (!new)
    return;
  dr_fd_cleanup(&new->fd);
  dr_fd_cleanup(&new->abort_fd);
  g_free(new->address);
  g_free(new->origin);
  g_free(new);
}

/* FALSE: the deadline has passed. */
static gboolean
wait_for_more(DrNewcomer *new)
{
  struct pollfd one = { .fd = new->fd, .events = POLLIN };

  while (poll(&one, 1, dr_deadline_left(new->deadline)) <= 0)
    if (dr_deadline_passed(new->deadline))
      return FALSE;
  return TRUE;
}

gboolean
dr_newcomer_speaks_tls(DrNewcomer *new)
{
  guint8 first = 0;

  return wait_for_more(new) && recv(new->fd, &first, 1, MSG_PEEK | MSG_DONTWAIT) == 1 &&
         first == TLS_HANDSHAKE;
}

/* No byte more than the preamble: what is behind it is the stream's. */
static gboolean
read_preamble(DrNewcomer *new, char *buffer)
{
  gsize got = 0;

  while (got < PREAMBLE_LEN) {
    gssize n = recv(new->fd, buffer + got, PREAMBLE_LEN - got, MSG_DONTWAIT);

    if (n > 0)
      got += (gsize)n;
    else if (n == 0 || (errno != EAGAIN && errno != EINTR) || !wait_for_more(new))
      return FALSE;
    if (strncmp(buffer, DR_PREAMBLE, MIN(got, strlen(DR_PREAMBLE))) != 0)
      return FALSE;
  }
  return buffer[PREAMBLE_LEN - 1] == '\n';
}

DrConn *
dr_newcomer_plain(DrNewcomer *new, DrTokens *tokens, JsonObject **ret_hello, GError **error)
{
  char preamble[PREAMBLE_LEN + 1] = "";
  g_autofree char *peer = NULL;
  g_autoptr(JsonObject) hello = NULL;

  if (!dr_tokens_any(tokens) || !read_preamble(new, preamble)) {
    dr_error_set(error, DR_ERROR_REFUSED, "what it said is not TLS");
    return NULL;
  }
  preamble[PREAMBLE_LEN - 1] = '\0';
  if (!dr_tokens_take(tokens, preamble + strlen(DR_PREAMBLE), &peer, &hello)) {
    dr_error_set(error, DR_ERROR_REFUSED, "its token is not, or no longer, one of ours");
    return NULL;
  }
  *ret_hello = g_steal_pointer(&hello);
  return dr_conn_new_plain(dr_fd_steal(&new->fd), new->address, peer);
}
