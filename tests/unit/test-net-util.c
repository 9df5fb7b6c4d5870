/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Keys, connections and other sides for the tests of src/net. */
#include "test-net-util.h"
#include "base/error.h"
#include "base/fd.h"
#include "net/dial.h"
#include "net/pki.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

/* --- Keys --- */

static char *
path_of(Net *net, const char *name, const char *end)
{
  return g_strdup_printf("%s/%s%s", net->dir, name, end);
}

static void
write_pem(Net *net, const char *name, const char *end, const gnutls_datum_t *pem)
{
  g_autofree char *path = path_of(net, name, end);

  g_assert_true(g_file_set_contents(path, (char *)pem->data, pem->size, NULL));
}

static void
read_pem(Net *net, const char *name, const char *end, gnutls_datum_t *ret)
{
  g_autofree char *path = path_of(net, name, end);

  g_assert_cmpint(gnutls_load_file(path, ret), ==, 0);
}

static void
load_ca(Net *net, const char *ca, gnutls_x509_crt_t *ret_cert, gnutls_x509_privkey_t *ret_key)
{
  gnutls_datum_t cert, key;

  read_pem(net, ca, "/ca-cert.pem", &cert);
  read_pem(net, ca, "/ca-key.pem", &key);
  gnutls_x509_crt_init(ret_cert);
  gnutls_x509_privkey_init(ret_key);
  g_assert_cmpint(gnutls_x509_crt_import(*ret_cert, &cert, GNUTLS_X509_FMT_PEM), ==, 0);
  g_assert_cmpint(gnutls_x509_privkey_import2(*ret_key, &key, GNUTLS_X509_FMT_PEM, NULL, 0), ==, 0);
  gnutls_free(cert.data);
  gnutls_free(key.data);
}

static void
set_names(gnutls_x509_crt_t crt, const char *name)
{
  static const guint8 v4[] = { 127, 0, 0, 1 }, v6[16] = { [15] = 1 };
  unsigned append = GNUTLS_FSAN_APPEND;

  gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0, name, (unsigned)strlen(name));
  gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_DNSNAME, name, (unsigned)strlen(name), append);
  gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_IPADDRESS, v4, sizeof v4, append);
  gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_IPADDRESS, v6, sizeof v6, append);
}

guint8
net_cert(Net *net, const char *file, const NetCert *cert)
{
  static guint8 serial = 16;
  time_t now = time(NULL);
  gnutls_x509_crt_t crt, ca;
  gnutls_x509_privkey_t key, ca_key;
  gnutls_datum_t pem;

  serial++;
  load_ca(net, cert->ca, &ca, &ca_key);
  gnutls_x509_privkey_init(&key);
  gnutls_x509_privkey_generate(key, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0);
  gnutls_x509_crt_init(&crt);
  gnutls_x509_crt_set_version(crt, 3);
  gnutls_x509_crt_set_serial(crt, &serial, 1);
  gnutls_x509_crt_set_activation_time(crt, now - 7200);
  gnutls_x509_crt_set_expiration_time(crt, now + cert->until_s);
  set_names(crt, cert->name);
  gnutls_x509_crt_set_key(crt, key);
  gnutls_x509_crt_set_key_usage(crt, GNUTLS_KEY_DIGITAL_SIGNATURE);
  gnutls_x509_crt_set_key_purpose_oid(crt, cert->purpose, 0);
  g_assert_cmpint(gnutls_x509_crt_sign2(crt, ca, ca_key, GNUTLS_DIG_SHA256, 0), ==, 0);
  gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &pem);
  write_pem(net, file, ".pem", &pem);
  gnutls_free(pem.data);
  gnutls_x509_privkey_export2(key, GNUTLS_X509_FMT_PEM, &pem);
  write_pem(net, file, "-key.pem", &pem);
  gnutls_free(pem.data);
  gnutls_x509_crt_deinit(crt);
  gnutls_x509_crt_deinit(ca);
  gnutls_x509_privkey_deinit(key);
  gnutls_x509_privkey_deinit(ca_key);
  return serial;
}

void
net_crl(Net *net, const char *file, guint8 serial)
{
  time_t now = time(NULL);
  gnutls_x509_crl_t crl;
  gnutls_x509_crt_t ca;
  gnutls_x509_privkey_t ca_key;
  gnutls_datum_t pem;

  load_ca(net, "ca", &ca, &ca_key);
  gnutls_x509_crl_init(&crl);
  gnutls_x509_crl_set_version(crl, 2);
  gnutls_x509_crl_set_this_update(crl, now - 60);
  gnutls_x509_crl_set_next_update(crl, now + 3600);
  gnutls_x509_crl_set_crt_serial(crl, &serial, 1, now - 60);
  gnutls_x509_crl_set_number(crl, &serial, 1);
  g_assert_cmpint(gnutls_x509_crl_sign2(crl, ca, ca_key, GNUTLS_DIG_SHA256, 0), ==, 0);
  gnutls_x509_crl_export2(crl, GNUTLS_X509_FMT_PEM, &pem);
  write_pem(net, file, ".pem", &pem);
  gnutls_free(pem.data);
  gnutls_x509_crl_deinit(crl);
  gnutls_x509_crt_deinit(ca);
  gnutls_x509_privkey_deinit(ca_key);
}

DrTlsContext *
net_context(Net *net, const char *server, const char *client, const char *crl)
{
  g_autofree char *ca = path_of(net, "ca", "/ca-cert.pem");
  g_autofree char *server_cert = path_of(net, server, ".pem"), *server_key = path_of(net, server, "-key.pem");
  g_autofree char *client_cert = path_of(net, client, ".pem"), *client_key = path_of(net, client, "-key.pem");
  g_autofree char *list = crl ? path_of(net, crl, ".pem") : NULL;
  DrTlsFiles files = { ca, list, server_cert, server_key, client_cert, client_key };
  g_autoptr(GError) error = NULL;
  DrTlsContext *context = dr_tls_context_new(&files, &error);

  g_assert_no_error(error);
  return context;
}

void
net_set_up(Net *net, gconstpointer unused)
{
  g_autofree char *ca = NULL, *other = NULL;

  net->dir = g_dir_make_tmp("drover-net-XXXXXX", NULL);
  ca = path_of(net, "ca", "");
  other = path_of(net, "other", "");
  g_assert_true(dr_pki_init(ca, "the CA", 30, NULL));
  g_assert_true(dr_pki_init(other, "the CA", 30, NULL)); /* of the same name */
  net_cert(net, "localhost-server", &(NetCert){ "ca", "localhost", GNUTLS_KP_TLS_WWW_SERVER, 3600 });
  net_cert(net, "localhost-client", &(NetCert){ "ca", "localhost", GNUTLS_KP_TLS_WWW_CLIENT, 3600 });
  net->context = net_context(net, "localhost-server", "localhost-client", NULL);
}

static void
remove_tree(const char *path)
{
  g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    g_autofree char *inner = g_build_filename(path, name, NULL);

    remove_tree(inner);
  }
  g_assert_cmpint(g_remove(path), ==, 0);
}

void
net_tear_down(Net *net, gconstpointer unused)
{
  remove_tree(net->dir);
  dr_tls_context_unref(net->context);
  g_free(net->dir);
}

/* --- Connections --- */

void
net_tcp(int ret[2])
{
  struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
  socklen_t len = sizeof address;
  dr_autofd int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  g_assert_cmpint(bind(listener, (struct sockaddr *)&address, sizeof address), ==, 0);
  g_assert_cmpint(listen(listener, 1), ==, 0);
  getsockname(listener, (struct sockaddr *)&address, &len);
  ret[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  g_assert_cmpint(connect(ret[0], (struct sockaddr *)&address, sizeof address), ==, 0);
  ret[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  g_assert_cmpint(ret[1], >=, 0);
  dr_socket_options(ret[0]);
  dr_socket_options(ret[1]);
}

typedef struct {
  Net *net;
  int fd;
} Accept;

static gpointer
accept_tls(gpointer data)
{
  Accept *one = data;
  g_autoptr(GError) error = NULL;
  DrConn *conn = dr_conn_accept(one->net->context, one->fd, "the client", dr_deadline_in(5000), &error);

  g_assert_no_error(error);
  return conn;
}

void
net_tls(Net *net, DrConn *ret[2])
{
  g_autoptr(GError) error = NULL;
  int fds[2];
  Accept one;
  GThread *thread;

  net_tcp(fds);
  one = (Accept){ net, fds[1] };
  thread = g_thread_new("accept", accept_tls, &one);
  ret[0] = dr_conn_new_tls(net->context, fds[0], "localhost", "the server", dr_deadline_in(5000), &error);
  g_assert_no_error(error);
  ret[1] = g_thread_join(thread);
}

void
net_plain(DrConn *ret[2])
{
  int fds[2];

  net_tcp(fds);
  ret[0] = dr_conn_new_plain(fds[0], "the server", "localhost");
  ret[1] = dr_conn_new_plain(fds[1], "the client", "localhost");
}

gboolean
net_readable(int fd, int ms)
{
  struct pollfd one = { .fd = fd, .events = POLLIN };

  return poll(&one, 1, ms) > 0;
}

/* --- The cable --- */

struct NetCable {
  int fds[2];
  int stop;
  gint cut; /* atomic */
  GThread *thread;
};

static gboolean
pass_on(NetCable *cable, int from, int to)
{
  char buffer[65536];
  gssize n = recv(from, buffer, sizeof buffer, MSG_DONTWAIT);

  if (g_atomic_int_get(&cable->cut))
    return TRUE;
  if (n == 0)
    shutdown(to, SHUT_WR);
  if (n < 0 && errno == ECONNRESET)
    dr_socket_break(to);
  for (gssize at = 0; at < n;) {
    gssize put = send(to, buffer + at, (gsize)(n - at), MSG_NOSIGNAL);

    if (put <= 0)
      return FALSE;
    at += put;
  }
  return n > 0;
}

static gpointer
cable_run(gpointer data)
{
  NetCable *cable = data;
  struct pollfd fds[3] = { { .fd = cable->fds[0], .events = POLLIN },
                           { .fd = cable->fds[1], .events = POLLIN },
                           { .fd = cable->stop, .events = POLLIN } };

  while (poll(fds, 3, -1) > 0 && !fds[2].revents)
    for (guint i = 0; i < 2; i++)
      if (fds[i].revents && !pass_on(cable, cable->fds[i], cable->fds[1 - i]))
        fds[i].fd = -1;
  return NULL;
}

NetCable *
net_cable_new(int fd, int *ret_fd)
{
  NetCable *cable = g_new0(NetCable, 1);
  int fds[2];

  net_tcp(fds);
  *ret_fd = fds[0];
  cable->fds[0] = fds[1];
  cable->fds[1] = fd;
  cable->stop = eventfd(0, EFD_CLOEXEC);
  cable->thread = g_thread_new("cable", cable_run, cable);
  return cable;
}

void
net_cable_cut(NetCable *cable)
{
  g_atomic_int_set(&cable->cut, TRUE);
}

void
net_cable_free(NetCable *cable)
{
  if (!cable)
    return;
  eventfd_write(cable->stop, 1);
  g_thread_join(cable->thread);
  close(cable->fds[0]);
  close(cable->fds[1]);
  close(cable->stop);
  g_free(cable);
}

/* --- The log --- */

static GMutex log_lock;
static GCond log_changed;
static GString *log_text;

static GLogWriterOutput
keep_line(GLogLevelFlags level, const GLogField *fields, gsize n_fields, gpointer unused)
{
  if (level & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_WARNING))
    return g_log_writer_default(level, fields, n_fields, NULL);
  g_mutex_lock(&log_lock);
  for (gsize i = 0; i < n_fields; i++)
    if (g_str_equal(fields[i].key, "MESSAGE") && !(level & G_LOG_LEVEL_DEBUG))
      g_string_append_printf(log_text, "%s\n", (const char *)fields[i].value);
  g_cond_broadcast(&log_changed);
  g_mutex_unlock(&log_lock);
  return G_LOG_WRITER_HANDLED;
}

void
net_log_keep(void)
{
  log_text = g_string_new(NULL);
  g_log_set_writer_func(keep_line, NULL, NULL);
}

gboolean
net_log_has(const char *part, int ms)
{
  gint64 deadline = dr_deadline_in(ms);
  gboolean has;

  g_mutex_lock(&log_lock);
  while (!(has = strstr(log_text->str, part) != NULL))
    if (!g_cond_wait_until(&log_changed, &log_lock, deadline))
      break;
  if (has)
    g_string_truncate(log_text, 0);
  g_mutex_unlock(&log_lock);
  return has;
}
