/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* TLS over loopback TCP: who is let in, who is not and why; both ways at once; and other sides that behave badly. */
#include "base/error.h"
#include "base/fd.h"
#include "net/pki.h"
#include "net/tls-internal.h"
#include "test-net-util.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define QUICK_MS 5000 /* what takes longer hangs */

/* --- Two sides, each with its own keys --- */

typedef struct {
  DrTlsContext *context;
  int fd;
  const char *name, *pin;
  DrTls *tls;
  GError *error;
} Side;

static gpointer
accept_it(gpointer data)
{
  Side *side = data;

  side->tls = dr_tls_accept(side->context, side->fd, "the client", dr_deadline_in(QUICK_MS), &side->error);
  if (!side->tls)
    return NULL;
  g_assert_true(dr_tls_write(side->tls, "hi", 2, QUICK_MS, NULL));
  return NULL;
}

/* The client learns whether it was refused with the first bytes, not by the handshake (RFC 8446, 4.4.4). */
static void
connect_it(Side *side)
{
  char answer[2];

  side->tls = dr_tls_connect(side->context, side->fd, side->name, side->pin, "the server",
                             dr_deadline_in(QUICK_MS), &side->error);
  if (side->tls && dr_tls_read(side->tls, answer, 2, QUICK_MS, &side->error) != 2)
    g_clear_pointer(&side->tls, dr_tls_free);
}

static void
meet(Side *server, Side *client)
{
  GThread *thread;
  int fds[2];

  net_tcp(fds);
  client->fd = fds[0];
  server->fd = fds[1];
  thread = g_thread_new("accept", accept_it, server);
  connect_it(client);
  g_thread_join(thread);
}

static void
side_clear(Side *side)
{
  dr_tls_free(side->tls);
  g_clear_error(&side->error);
}

/* --- Who is let in --- */

static void
test_good(Net *net, gconstpointer unused)
{
  static const char *const names[] = { "localhost", "127.0.0.1", "::1", "LOCALHOST", NULL };

  for (guint i = 0; names[i]; i++) {
    Side server = { net->context }, client = { net->context, .name = names[i] };

    meet(&server, &client);
    g_assert_no_error(server.error);
    g_assert_no_error(client.error);
    g_assert_cmpstr(dr_tls_names(server.tls)[0], ==, "localhost");
    g_assert_cmpint(strlen(dr_tls_key_id(client.tls)), ==, 64);
    g_assert_nonnull(strstr("AES-128-GCM CHACHA20-POLY1305", dr_tls_suite(client.tls)));
    side_clear(&server);
    side_clear(&client);
  }
}

static void
test_pin(Net *net, gconstpointer unused)
{
  Side server = { net->context }, client = { net->context, .name = "localhost" };
  g_autofree char *zeros = g_strnfill(64, '0'), *key = NULL, *two = NULL;

  meet(&server, &client);
  g_assert_no_error(client.error);
  key = g_strdup(dr_tls_key_id(client.tls));
  two = g_strconcat(zeros, ",", key, NULL);
  side_clear(&server);
  side_clear(&client);

  server = (Side){ net->context };
  client = (Side){ net->context, .name = "localhost", .pin = two };
  meet(&server, &client);
  g_assert_no_error(client.error);
  side_clear(&server);
  side_clear(&client);

  server = (Side){ net->context };
  client = (Side){ net->context, .name = "localhost", .pin = zeros };
  meet(&server, &client);
  g_assert_error(client.error, DR_ERROR, DR_ERROR_REFUSED);
  assert_message(client.error, key);
  side_clear(&server);
  side_clear(&client);
}

/* --- Who is not --- */

typedef struct {
  const char *server, *client, *crl; /* files */
  const char *name;
  const char *server_says, *client_says; /* NULL: it is the other one that refuses */
} Refusal;

static const Refusal refusals[] = {
  { "localhost-server", "localhost-server", NULL, "localhost", "purpose", NULL },
  { "localhost-server", "other-client", NULL, "localhost", "NOT trusted", NULL },
  { "localhost-server", "old-client", NULL, "localhost", "expired", NULL },
  { "localhost-server", "revoked-client", "crl", "localhost", "revoked", NULL },
  { "localhost-client", "localhost-client", NULL, "localhost", NULL, "purpose" },
  { "other-server", "localhost-client", NULL, "localhost", NULL, "NOT trusted" },
  { "old-server", "localhost-client", NULL, "localhost", NULL, "expired" },
  { "localhost-server", "localhost-client", NULL, "host2", NULL, "name" },
  { "localhost-server", "localhost-client", NULL, "10.0.0.9", NULL, "name" },
};

static void
make_bad_certs(Net *net)
{
  guint8 revoked;

  net_cert(net, "other-server", &(NetCert){ "other", "localhost", GNUTLS_KP_TLS_WWW_SERVER, 3600 });
  net_cert(net, "other-client", &(NetCert){ "other", "localhost", GNUTLS_KP_TLS_WWW_CLIENT, 3600 });
  net_cert(net, "old-server", &(NetCert){ "ca", "localhost", GNUTLS_KP_TLS_WWW_SERVER, -60 });
  net_cert(net, "old-client", &(NetCert){ "ca", "localhost", GNUTLS_KP_TLS_WWW_CLIENT, -60 });
  revoked = net_cert(net, "revoked-client", &(NetCert){ "ca", "localhost", GNUTLS_KP_TLS_WWW_CLIENT, 3600 });
  net_crl(net, "crl", revoked);
}

static void
assert_says(GError *error, const char *part)
{
  if (!part) {
    g_assert_nonnull(error);
    return;
  }
  g_assert_error(error, DR_ERROR, DR_ERROR_REFUSED);
  assert_message(error, part);
}

static void
test_refusals(Net *net, gconstpointer unused)
{
  make_bad_certs(net);
  for (guint i = 0; i < G_N_ELEMENTS(refusals); i++) {
    const Refusal *one = &refusals[i];
    g_autoptr(DrTlsContext) servers = net_context(net, one->server, "localhost-client", one->crl);
    g_autoptr(DrTlsContext) clients = net_context(net, "localhost-server", one->client, NULL);
    Side server = { servers }, client = { clients, .name = one->name };

    g_test_message("%s with %s as %s", one->server, one->client, one->name);
    meet(&server, &client);
    g_assert_null(client.tls);
    assert_says(client.error, one->client_says);
    if (one->server_says)
      assert_says(server.error, one->server_says);
    side_clear(&server);
    side_clear(&client);
  }
}

/* --- Clients that are not ours --- */

/* A client with no certificate, or with nothing newer than TLS 1.2. Returns how many bytes it got after its handshake, or an error. */
static gssize
foreign_client(int fd, const char *priority)
{
  gnutls_certificate_credentials_t none;
  gnutls_session_t session;
  char byte;
  gssize n;

  gnutls_certificate_allocate_credentials(&none);
  gnutls_init(&session, GNUTLS_CLIENT);
  gnutls_priority_set_direct(session, priority, NULL);
  gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, none);
  gnutls_transport_set_int(session, fd);
  gnutls_handshake_set_timeout(session, QUICK_MS);
  do
    n = gnutls_handshake(session);
  while (n < 0 && !gnutls_error_is_fatal((int)n));
  if (n == 0)
    n = gnutls_record_recv(session, &byte, 1);
  gnutls_deinit(session);
  gnutls_certificate_free_credentials(none);
  return n;
}

static void
meet_foreign(Net *net, const char *priority, const char *part)
{
  Side server = { net->context };
  GThread *thread;
  int fds[2];

  net_tcp(fds);
  server.fd = fds[1];
  thread = g_thread_new("accept", accept_it, &server);
  g_assert_cmpint(foreign_client(fds[0], priority), <=, 0); /* not one byte for it */
  g_thread_join(thread);
  close(fds[0]);
  g_assert_null(server.tls);
  assert_message(server.error, part);
  side_clear(&server);
}

static void
test_no_certificate(Net *net, gconstpointer unused)
{
  meet_foreign(net, "NORMAL", "shows no certificate");
}

static void
test_old_tls(Net *net, gconstpointer unused)
{
  meet_foreign(net, "NORMAL:-VERS-ALL:+VERS-TLS1.2", "handshake");
}

static void
test_garbage(Net *net, gconstpointer unused)
{
  static const char *const words[] = { "GET / HTTP/1.1\r\n\r\n", "SSH-2.0-OpenSSH_9.2p1\r\n",
                                       "\x16\x03\x01\xff\xff", "\x16\x03\x01\x00\x05garbage" };

  for (guint i = 0; i < G_N_ELEMENTS(words); i++) {
    Side server = { net->context };
    gint64 begun = g_get_monotonic_time();
    int fds[2];

    net_tcp(fds);
    server.fd = fds[1];
    g_assert_cmpint(send(fds[0], words[i], strlen(words[i]), 0), >, 0);
    shutdown(fds[0], SHUT_WR);
    accept_it(&server);
    g_assert_nonnull(server.error);
    g_assert_cmpint(g_get_monotonic_time() - begun, <, QUICK_MS * 1000 / 2);
    side_clear(&server);
    close(fds[0]);
  }
}

static void
test_slow_client(Net *net, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;
  gint64 begun = g_get_monotonic_time(), took;
  int fds[2];

  net_tcp(fds);
  g_assert_cmpint(send(fds[0], "\x16\x03\x01", 3, 0), ==, 3);
  g_assert_null(dr_tls_accept(net->context, fds[1], "the client", dr_deadline_in(300), &error));
  took = (g_get_monotonic_time() - begun) / 1000;
  g_assert_error(error, DR_ERROR, DR_ERROR_TIMEOUT);
  g_assert_cmpint(took, >=, 300);
  g_assert_cmpint(took, <, 2000);
  close(fds[0]);
}

/* --- Connections that stand --- */

static void
meet_well(Net *net, DrTls **ret_server, DrTls **ret_client)
{
  Side server = { net->context }, client = { net->context, .name = "localhost" };

  meet(&server, &client);
  g_assert_no_error(server.error);
  g_assert_no_error(client.error);
  *ret_server = server.tls;
  *ret_client = client.tls;
}

static void
test_ends(Net *net, gconstpointer unused)
{
  g_autoptr(DrTls) server = NULL, client = NULL;
  g_autoptr(GError) error = NULL;
  char buffer[16];

  meet_well(net, &server, &client);
  g_assert_cmpint(dr_tls_read(client, buffer, sizeof buffer, 50, &error), ==, -1);
  g_assert_error(error, DR_ERROR, DR_ERROR_TIMEOUT);
  g_clear_error(&error);
  g_assert_true(dr_tls_write(server, "abc", 3, QUICK_MS, NULL));
  g_assert_true(dr_tls_end(server, NULL));
  g_assert_cmpint(dr_tls_read(client, buffer, sizeof buffer, QUICK_MS, NULL), ==, 3);
  g_assert_cmpint(dr_tls_read(client, buffer, sizeof buffer, QUICK_MS, NULL), ==, 0);
  g_assert_cmpint(dr_tls_read(client, buffer, sizeof buffer, QUICK_MS, NULL), ==, 0);
  g_assert_true(dr_tls_write(client, "back", 4, QUICK_MS, NULL)); /* the other direction stands */
  g_assert_cmpint(dr_tls_read(server, buffer, sizeof buffer, QUICK_MS, NULL), ==, 4);
}

/* What ends without a close_notify may have been cut off by somebody: it is not an end. */
static void
test_truncated(Net *net, gconstpointer unused)
{
  g_autoptr(DrTls) server = NULL, client = NULL;
  g_autoptr(GError) error = NULL;
  char buffer[16];

  meet_well(net, &server, &client);
  g_clear_pointer(&server, dr_tls_free);
  g_assert_cmpint(dr_tls_read(client, buffer, sizeof buffer, QUICK_MS, &error), ==, -1);
  g_assert_error(error, DR_ERROR, DR_ERROR_CLOSED);
}

static void
test_stops_reading(Net *net, gconstpointer unused)
{
  g_autoptr(DrTls) server = NULL, client = NULL;
  g_autoptr(GError) error = NULL;
  gsize len = 64 << 20;
  g_autofree char *much = g_malloc0(len);
  gint64 begun = g_get_monotonic_time();

  meet_well(net, &server, &client);
  g_assert_false(dr_tls_write(client, much, len, 300, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_TIMEOUT);
  g_assert_cmpint(g_get_monotonic_time() - begun, <, QUICK_MS * 1000);
  g_clear_error(&error);
  g_assert_false(dr_tls_write(client, "x", 1, 300, &error)); /* half a record has gone */
  g_assert_error(error, DR_ERROR, DR_ERROR_CLOSED);
}

static gpointer
read_for_ever(gpointer tls)
{
  GError *error = NULL;
  char buffer[16];

  g_assert_cmpint(dr_tls_read(tls, buffer, sizeof buffer, -1, &error), ==, -1);
  return error;
}

static gpointer
write_for_ever(gpointer tls)
{
  g_autofree char *much = g_malloc0(1 << 20);
  GError *error = NULL;

  while (dr_tls_write(tls, much, 1 << 20, -1, &error))
    ;
  return error;
}

static void
test_abort(Net *net, gconstpointer unused)
{
  g_autoptr(DrTls) server = NULL, client = NULL;
  g_autoptr(GError) read_error = NULL, write_error = NULL;
  GThread *reader, *writer;

  meet_well(net, &server, &client);
  reader = g_thread_new("reader", read_for_ever, client);
  writer = g_thread_new("writer", write_for_ever, client);
  assert_readable(dr_tls_fd(server), QUICK_MS); /* so it writes */
  dr_tls_abort(client);
  read_error = g_thread_join(reader);
  write_error = g_thread_join(writer);
  g_assert_error(read_error, DR_ERROR, DR_ERROR_CLOSED);
  g_assert_error(write_error, DR_ERROR, DR_ERROR_CLOSED);
}

/* --- Both ways at once, and new keys meanwhile --- */

#define DUPLEX (24 << 20)

typedef struct {
  DrTls *tls;
  guint8 seed;
} Flow;

static void
fill_with(guint8 *buffer, gsize len, gsize at, guint8 seed)
{
  for (gsize i = 0; i < len; i++)
    buffer[i] = (guint8)((at + i) * 31 + ((at + i) >> 12) + seed);
}

/* GnuTLS changes keys by itself only after 256 GiB. */
static void
change_keys(DrTls *tls)
{
  g_mutex_lock(&tls->lock);
  tls->writing = TRUE;
  g_assert_cmpint(gnutls_session_key_update(tls->session, 0), ==, 0);
  tls->writing = FALSE;
  g_mutex_unlock(&tls->lock);
}

static gpointer
send_flow(gpointer data)
{
  Flow *flow = data;
  g_autofree guint8 *buffer = g_malloc(100000);
  gsize at = 0, changed = 0;

  while (at < DUPLEX) {
    gsize len = MIN(100000, DUPLEX - at);

    fill_with(buffer, len, at, flow->seed);
    g_assert_true(dr_tls_write(flow->tls, buffer, len, QUICK_MS * 4, NULL));
    at += len;
    if (!changed && at > DUPLEX / 2) {
      change_keys(flow->tls);
      changed = at;
    }
  }
  g_assert_true(dr_tls_end(flow->tls, NULL));
  return NULL;
}

static gpointer
receive_flow(gpointer data)
{
  Flow *flow = data;
  g_autofree guint8 *buffer = g_malloc(70000), *right = g_malloc(70000);
  gsize at = 0;
  gssize n;

  while ((n = dr_tls_read(flow->tls, buffer, 70000, QUICK_MS * 4, NULL)) > 0) {
    fill_with(right, (gsize)n, at, flow->seed);
    g_assert_cmpmem(buffer, (gsize)n, right, (gsize)n);
    at += (gsize)n;
  }
  g_assert_cmpint(n, ==, 0);
  g_assert_cmpint(at, ==, DUPLEX);
  return NULL;
}

static void
test_duplex(Net *net, gconstpointer unused)
{
  g_autoptr(DrTls) server = NULL, client = NULL;
  Flow there, back;
  GThread *threads[4];

  meet_well(net, &server, &client);
  there = (Flow){ client, 1 };
  threads[0] = g_thread_new("send", send_flow, &there);
  back = (Flow){ server, 2 };
  threads[1] = g_thread_new("send", send_flow, &back);
  threads[2] = g_thread_new("receive", receive_flow, &(Flow){ server, 1 });
  threads[3] = g_thread_new("receive", receive_flow, &(Flow){ client, 2 });
  for (guint i = 0; i < 4; i++)
    g_thread_join(threads[i]);
}

static void
test_files(Net *net, gconstpointer unused)
{
  g_autofree char *cert = g_build_filename(net->dir, "localhost-server.pem", NULL);
  g_autofree char *key = g_build_filename(net->dir, "localhost-client-key.pem", NULL);
  g_autofree char *ca = g_build_filename(net->dir, "ca", "ca-cert.pem", NULL);
  DrTlsFiles mixed = { ca, NULL, cert, key, cert, key },
             absent = { "/nonexistent/ca.pem", NULL, cert, key, cert, key };
  g_autoptr(GError) error = NULL;

  g_assert_null(dr_tls_context_new(&mixed, &error));
  assert_message(error, key);
  g_clear_error(&error);
  g_assert_null(dr_tls_context_new(&absent, &error));
  assert_message(error, "/nonexistent/ca.pem");
}

#define ADD(name, test) g_test_add("/tls/" name, Net, NULL, net_set_up, test, net_tear_down)

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  ADD("good", test_good);
  ADD("pin", test_pin);
  ADD("refusals", test_refusals);
  ADD("no-certificate", test_no_certificate);
  ADD("old-tls", test_old_tls);
  ADD("garbage", test_garbage);
  ADD("slow-client", test_slow_client);
  ADD("ends", test_ends);
  ADD("truncated", test_truncated);
  ADD("stops-reading", test_stops_reading);
  ADD("abort", test_abort);
  ADD("duplex", test_duplex);
  ADD("files", test_files);
  return g_test_run();
}
