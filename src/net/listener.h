/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* droverd's one port. Whoever connects has 5 s to show a certificate and to say what for. What costs nothing to do from outside is
 * bounded:
 *
 *   waiting   has connected and perhaps said something; a descriptor, no thread. Who says nothing waits here.
 *   greeting  a thread does the handshake, reads the hello. Whoever takes longer than a second gives its place to who waits.
 *   taken     known by its certificate; counted until its connection is freed.
 *
 * Each has a bound for one address (of IPv6: one /64) and one for all, so that one host that connects ten thousand times stands in its own way
 * and in nobody else's. A peer that is refused before its hello gets a closed connection and nothing else; the log says
 * why. */
#pragma once
#include "net/conn.h"

#define DR_LISTENER_HELLO_MS 5000
#define DR_LISTENER_WAITING 256 /* and of one address: */
#define DR_LISTENER_WAITING_ONE 128
#define DR_LISTENER_GREETING 64
#define DR_LISTENER_GREETING_ONE 24
#define DR_LISTENER_TAKEN 512
#define DR_LISTENER_TAKEN_ONE 256

typedef struct DrListener DrListener;

/* Whether a peer whose certificate has these names and this key may come in; *error says why not, for the log. Any thread. */
typedef gboolean (*DrListenerAllow)(const char *const *names, const char *key_id, gpointer data,
                                    GError **error);
/* A connection whose hello has been read. Takes `conn` over: answers it by dr_conn_take() or dr_conn_refuse(). On a thread of
 * the listener's, of which 64 may be here at a time; dr_listener_free() waits for it. */
typedef void (*DrListenerTake)(DrConn *conn, JsonObject *hello, gpointer data);

typedef struct {
  const char *address; /* nullable: all, of IPv4 and IPv6 */
  guint port;          /* 0: the kernel chooses; see dr_listener_port() */
  int hello_ms;        /* 0: DR_LISTENER_HELLO_MS */
  gboolean
      no_hello; /* `take` gets it right behind the handshake, with an empty hello; for other protocols than ours */
  DrTlsContext *context;
  DrListenerAllow allow;
  DrListenerTake take;
  gpointer data;
} DrListenerOptions;

/* Listens at once. Errors: INVALID (the address), IO. (transfer full) */
DrListener *dr_listener_new(const DrListenerOptions *options, GError **error);
/* Takes no more connections, closes those that are being looked at, waits for `take`. */
void dr_listener_free(DrListener *listener);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrListener, dr_listener_free)

guint dr_listener_port(DrListener *listener);
/* New keys, for connections from now on. Any thread. */
void dr_listener_set_context(DrListener *listener, DrTlsContext *context);
/* How many there are now. */
void dr_listener_counts(DrListener *listener, guint *ret_waiting, guint *ret_greeting, guint *ret_taken);

/* Plain connections (no TLS): a token that one may show instead, once, within 10 s; `hello` is what `take` gets with it
 * (consumed). Where none was given out, there are no plain connections. Any thread. (transfer full): 64 hexadecimal digits. */
char *dr_listener_token(DrListener *listener, const char *peer, JsonObject *hello);
