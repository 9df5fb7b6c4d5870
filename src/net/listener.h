/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* droverd's one port. Whoever connects has 5 s to show a certificate and to say what for; what costs nothing is bounded: so many at
 * a time that have not done so, in all and from one address. A peer that is refused before its hello gets a closed connection and
 * nothing else; the log says why. */
#pragma once
#include "net/conn.h"

typedef struct DrListener DrListener;

/* Whether a peer whose certificate has these names and this key may come in; *error says why not, for the log. Any thread. */
typedef gboolean (*DrListenerAllow)(const char *const *names, const char *key_id, gpointer data,
                                    GError **error);
/* A connection whose hello has been read. Takes `conn` over: answers it by dr_conn_take() or dr_conn_refuse(). On a thread of
 * the listener's: not for long. */
typedef void (*DrListenerTake)(DrConn *conn, JsonObject *hello, gpointer data);

typedef struct {
  const char *address; /* nullable: all */
  guint port;
  DrTlsContext *context;
  DrListenerAllow allow;
  DrListenerTake take;
  gpointer data;
} DrListenerOptions;

DrListener *dr_listener_new(const DrListenerOptions *options, GError **error);
/* Takes no more connections; waits for those that are being looked at. */
void dr_listener_free(DrListener *listener);

/* Plain connections (no TLS): a token that the next one may show instead, once, within 10 s; `hello` is what `take` gets
 * with it (consumed). (transfer full): 64 hexadecimal digits. */
char *dr_listener_token(DrListener *listener, const char *peer, JsonObject *hello);
