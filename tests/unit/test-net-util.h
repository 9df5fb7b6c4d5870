/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Keys, connections and other sides for the tests of src/net. */
#pragma once
#include "net/conn.h"

#include <gnutls/x509.h>

typedef struct {
  char *dir;             /* in it "ca", "other" (two CAs) and what net_cert() makes */
  DrTlsContext *context; /* of the host "localhost", 127.0.0.1, ::1 */
} Net;

void net_set_up(Net *net, gconstpointer unused);
void net_tear_down(Net *net, gconstpointer unused);

typedef struct {
  const char *ca;      /* "ca" or "other" */
  const char *name;    /* its DNS name */
  const char *purpose; /* GNUTLS_KP_… */
  gint64 until_s;      /* from now; negative: it has ended */
} NetCert;

/* DIR/FILE.pem with its key. Returns its serial number. */
guint8 net_cert(Net *net, const char *file, const NetCert *cert);
/* DIR/FILE.pem: a revocation list of the CA "ca" with one serial number. */
void net_crl(Net *net, const char *file, guint8 serial);
/* Of such files ("localhost-server" and "localhost-client" are there), `crl` nullable. (transfer full) */
DrTlsContext *net_context(Net *net, const char *server, const char *client, const char *crl);

/* Both ends of a connection: TCP over loopback; TLS, [0] the client's. */
void net_tcp(int ret[2]);
void net_tls(Net *net, DrConn *ret[2]);
/* Without TLS. */
void net_plain(DrConn *ret[2]);

/* Whether it becomes readable in time. */
gboolean net_readable(int fd, int ms);
#define assert_readable(fd, ms) g_assert_true(net_readable(fd, ms))

/* A cable between `fd` and the returned socket: passes bytes on both ways until it is cut, without either end seeing anything. */
typedef struct NetCable NetCable;
NetCable *net_cable_new(int fd, int *ret_fd);
void net_cable_cut(NetCable *cable);
void net_cable_free(NetCable *cable);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(NetCable, net_cable_free)

/* From now on the log is kept and not printed. Waits until `part` is in it. */
void net_log_keep(void);
gboolean net_log_has(const char *part, int ms);
#define assert_logged(part)                                                                                  \
  do {                                                                                                       \
    if (!net_log_has(part, 5000))                                                                            \
      g_error("'%s' is not in the log", part);                                                               \
  } while (0)

#define assert_message(error, part)                                                                          \
  do {                                                                                                       \
    if (!strstr((error)->message, part))                                                                     \
      g_error("'%s' is not in: %s", part, (error)->message);                                                 \
  } while (0)
