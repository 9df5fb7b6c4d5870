/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What certificates are worth: to ourselves, to GnuTLS in TLS 1.3, to openssl(1) and to certtool(1); and files that are none. */
#include "base/error.h"
#include "test-pki-util.h"

#include <glib/gstdio.h>
#include <gnutls/gnutls.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HANDSHAKE_MS 10000

typedef struct {
  char *ca, *ca_key, *server, *server_key, *client, *client_key;
} Files;

static void
files_clear(Files *f)
{
  g_free(f->ca);
  g_free(f->ca_key);
  g_free(f->server);
  g_free(f->server_key);
  g_free(f->client);
  g_free(f->client_key);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Files, files_clear)

static Files
files_of(const Pki *pki)
{
  return (Files){ at(pki->ca, "ca-cert.pem"),       at(pki->ca, "ca-key.pem"),
                  at(pki->host, "server-cert.pem"), at(pki->host, "server-key.pem"),
                  at(pki->host, "client-cert.pem"), at(pki->host, "client-key.pem") };
}

static void
assert_problem(const char *file, DrCertUse use, const char *key, const char *ca, const char *crl,
               const char *part)
{
  g_autofree char *problem = dr_cert_problem(file, use, key, ca, crl);

  if (!part)
    g_assert_cmpstr(problem, ==, NULL);
  else if (!problem || !strstr(problem, part))
    g_error("'%s' is not in: %s", part, problem);
}

static void
test_problems(Pki *pki, gconstpointer unused)
{
  g_auto(Files) f = files_of(pki);
  g_autofree char *other = at(pki->dir, "other");
  g_autofree char *other_ca = at(other, "ca-cert.pem");

  g_assert_true(dr_pki_init(other, "the CA", 30, NULL)); /* of the same name */
  assert_problem(f.ca, DR_CERT_CA, f.ca_key, NULL, NULL, NULL);
  assert_problem(f.server, DR_CERT_SERVER, f.server_key, f.ca, NULL, NULL);
  assert_problem(f.client, DR_CERT_CLIENT, f.client_key, f.ca, NULL, NULL);
  assert_problem(f.server, DR_CERT_CLIENT, f.server_key, f.ca, NULL, "it is not for a client");
  assert_problem(f.client, DR_CERT_SERVER, f.client_key, f.ca, NULL, "it is not for a server");
  assert_problem(f.server, DR_CERT_CA, NULL, NULL, NULL, "it is not for a CA");
  assert_problem(f.server, DR_CERT_SERVER, f.ca_key, f.ca, NULL, "is not its own");
  assert_problem(f.server, DR_CERT_SERVER, NULL, other_ca, NULL, "it is not of the CA in");
  assert_problem(f.server, DR_CERT_SERVER, NULL, f.client, NULL, "it is not of the CA in");
  assert_problem(f.server, DR_CERT_SERVER, NULL, f.server_key, NULL, "has no certificate");
  assert_problem(f.server, DR_CERT_SERVER, f.server, f.ca, NULL, "has no private key");
  assert_problem(f.server, DR_CERT_SERVER, "/nonexistent", f.ca, NULL, "/nonexistent");
  assert_problem("/nonexistent", DR_CERT_SERVER, NULL, NULL, NULL, "/nonexistent");
}

/* --- Another's word --- */

static void
assert_openssl(const char *purpose, const char *ca, const char *cert, gboolean good)
{
  g_autofree char *out = NULL;
  int code = RUN(&out, "openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca, cert);

  if ((code == 0) != good)
    g_error("openssl verify %s %s: %s", purpose, cert, out);
}

static void
test_openssl(Pki *pki, gconstpointer unused)
{
  g_auto(Files) f = files_of(pki);
  g_autofree char *said = NULL;
  g_autofree char *key = NULL;

  if (!have("openssl"))
    return;
  assert_openssl("sslserver", f.ca, f.server, TRUE);
  assert_openssl("sslclient", f.ca, f.client, TRUE);
  assert_openssl("sslclient", f.ca, f.server, FALSE);
  assert_openssl("sslserver", f.ca, f.client, FALSE);
  g_assert_cmpint(RUN(&said, "openssl", "x509", "-in", f.server, "-noout", "-text"), ==, 0);
  g_assert_nonnull(strstr(said, "DNS:host2, IP Address:10.0.0.2, IP Address:2001:DB8:0:0:0:0:0:7\n"));
  g_assert_nonnull(strstr(said, "CA:FALSE"));
  g_assert_nonnull(
      strstr(said, "X509v3 Key Usage: \n                Digital Signature\n")); /* not critical */
  g_assert_cmpint(RUN(&key, "openssl", "pkey", "-in", f.server_key, "-noout", "-text"), ==, 0);
  g_assert_nonnull(strstr(key, "P-256"));
}

static void
test_certtool(Pki *pki, gconstpointer unused)
{
  g_auto(Files) f = files_of(pki);
  g_autoptr(GPtrArray) infos = dr_cert_read(f.server, NULL);
  const DrCertInfo *info = infos->pdata[0];
  g_autofree char *verified = NULL;
  g_autofree char *id = NULL;

  if (!have("certtool"))
    return;
  g_assert_cmpint(RUN(&verified, "certtool", "--verify", "--load-ca-certificate", f.ca, "--infile", f.server,
                      "--verify-hostname", "host2", "--verify-purpose", GNUTLS_KP_TLS_WWW_SERVER),
                  ==, 0);
  g_assert_cmpint(RUN(NULL, "certtool", "--verify", "--load-ca-certificate", f.ca, "--infile", f.server,
                      "--verify-hostname", "host3"),
                  !=, 0);
  g_assert_cmpint(RUN(&id, "certtool", "--key-id", "--hash=sha256", "--infile", f.server), ==, 0);
  g_assert_cmpstr(g_strstrip(id), ==, info->key_id);
}

/* --- TLS 1.3 --- */

typedef struct {
  int fd;
  gboolean server;
  const char *ca, *cert, *key;
  const char *peer_name; /* of a client: whom it wants */
  int code;              /* of gnutls_handshake() */
  gnutls_protocol_t version;
} End;

static gpointer
handshake(gpointer data)
{
  End *end = data;
  const char *purpose = end->server ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER;
  gnutls_typed_vdata_st wanted[] = {
    { .type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)purpose },
    { .type = GNUTLS_DT_DNS_HOSTNAME, .data = (unsigned char *)end->peer_name },
  };
  gnutls_certificate_credentials_t credentials;
  gnutls_session_t session;

  gnutls_certificate_allocate_credentials(&credentials);
  g_assert_cmpint(gnutls_certificate_set_x509_trust_file(credentials, end->ca, GNUTLS_X509_FMT_PEM), ==, 1);
  g_assert_cmpint(gnutls_certificate_set_x509_key_file(credentials, end->cert, end->key, GNUTLS_X509_FMT_PEM),
                  ==, 0);
  gnutls_init(&session, end->server ? GNUTLS_SERVER : GNUTLS_CLIENT);
  gnutls_priority_set_direct(session, "SECURE128:-VERS-ALL:+VERS-TLS1.3", NULL);
  gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
  if (end->server)
    gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
  gnutls_session_set_verify_cert2(session, wanted, end->peer_name ? 2 : 1, 0);
  gnutls_transport_set_int(session, end->fd);
  gnutls_handshake_set_timeout(session, HANDSHAKE_MS);
  do
    end->code = gnutls_handshake(session);
  while (end->code < 0 && !gnutls_error_is_fatal(end->code));
  end->version = gnutls_protocol_get_version(session);
  if (end->code < 0) /* as it was refused, the other end is told, if it still listens */
    gnutls_alert_send(session, GNUTLS_AL_FATAL, GNUTLS_A_BAD_CERTIFICATE);
  gnutls_deinit(session);
  gnutls_certificate_free_credentials(credentials);
  close(end->fd);
  return NULL;
}

static void
connect_two(End *server, End *client)
{
  int pair[2];
  GThread *thread;

  g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), ==, 0);
  server->fd = pair[0];
  client->fd = pair[1];
  thread = g_thread_new("server", handshake, server);
  handshake(client);
  g_thread_join(thread);
}

static void
test_tls(Pki *pki, gconstpointer unused)
{
  g_auto(Files) f = files_of(pki);
  End server = { .server = TRUE, .ca = f.ca, .cert = f.server, .key = f.server_key };
  End client = { .ca = f.ca, .cert = f.client, .key = f.client_key, .peer_name = "host2" };

  connect_two(&server, &client);
  g_assert_cmpint(server.code, ==, GNUTLS_E_SUCCESS);
  g_assert_cmpint(client.code, ==, GNUTLS_E_SUCCESS);
  g_assert_cmpint(server.version, ==, GNUTLS_TLS1_3);
  client.peer_name = "host3";
  connect_two(&server, &client);
  g_assert_cmpint(client.code, ==, GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR);
}

/* In TLS 1.3 a client that is refused learns it only later: it is the server's code that counts. */
static void
test_tls_swapped_purposes(Pki *pki, gconstpointer unused)
{
  g_auto(Files) f = files_of(pki);
  End server = { .server = TRUE, .ca = f.ca, .cert = f.server, .key = f.server_key };
  End wrong_client = { .ca = f.ca, .cert = f.server, .key = f.server_key, .peer_name = "host2" };
  End wrong_server = { .server = TRUE, .ca = f.ca, .cert = f.client, .key = f.client_key };
  End client = { .ca = f.ca, .cert = f.client, .key = f.client_key, .peer_name = "host2" };

  connect_two(&server, &wrong_client);
  g_assert_cmpint(server.code, ==, GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR);
  connect_two(&wrong_server, &client);
  g_assert_cmpint(client.code, ==, GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR);
}

/* --- CAs of others --- */

/* `template` as certtool(1) takes it. The key is made by openssl(1) of that `algorithm`. */
static void
make_foreign_ca(const char *dir, const char *algorithm, const char *template)
{
  g_autofree char *key = at(dir, "ca-key.pem");
  g_autofree char *cert = at(dir, "ca-cert.pem");
  g_autofree char *config = at(dir, "template");
  g_autofree char *out = NULL;

  g_assert_cmpint(g_mkdir_with_parents(dir, 0700), ==, 0);
  write_all_of(config, template);
  if (RUN(&out, "openssl", "genpkey", "-algorithm", algorithm, "-out", key) != 0)
    g_error("openssl genpkey: %s", out);
  g_clear_pointer(&out, g_free);
  if (RUN(&out, "certtool", "--generate-self-signed", "--load-privkey", key, "--template", config,
          "--outfile", cert) != 0)
    g_error("certtool: %s", out);
}

static void
test_foreign_ca(Pki *pki, gconstpointer algorithm)
{
  g_autofree char *dir = at(pki->dir, "foreign");
  g_autofree char *out = at(pki->dir, "foreign-host");
  g_autofree char *ca = at(out, "ca-cert.pem");
  g_autofree char *cert = at(out, "server-cert.pem");
  g_autofree char *key = at(out, "server-key.pem");
  DrPkiRequest request = request_of(pki);
  g_autoptr(GError) error = NULL;

  if (!have("openssl") || !have("certtool"))
    return;
  make_foreign_ca(dir, algorithm, "cn = \"theirs\"\nca\ncert_signing_key\nexpiration_days = 100\n");
  request.dir = dir;
  request.out = out;
  dr_pki_issue(&request, &error);
  g_assert_no_error(error);
  assert_problem(cert, DR_CERT_SERVER, key, ca, NULL, NULL);
  assert_openssl("sslserver", ca, cert, TRUE);
}

static void
test_ended_ca(Pki *pki, gconstpointer unused)
{
  g_autofree char *dir = at(pki->dir, "ended");
  g_autofree char *out = at(pki->dir, "never");
  g_autofree char *cert = at(dir, "ca-cert.pem");
  DrPkiRequest request = request_of(pki);
  g_autoptr(GError) error = NULL;

  if (!have("openssl") || !have("certtool"))
    return;
  make_foreign_ca(dir, "ED25519",
                  "cn = \"old\"\nca\ncert_signing_key\nactivation_date = \"2010-01-01 00:00:00 UTC\"\n"
                  "expiration_date = \"2011-01-01 00:00:00 UTC\"\n");
  assert_problem(cert, DR_CERT_CA, NULL, NULL, NULL, "it ended on 2011-01-01 00:00 UTC");
  request.dir = dir;
  request.out = out;
  g_assert_false(dr_pki_issue(&request, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_UNSUPPORTED);
  g_assert_false(g_file_test(out, G_FILE_TEST_EXISTS));
}

/* As the libvirt manual has client certificates made: a CN, no alternative name. */
static void
test_common_name_only(Pki *pki, gconstpointer unused)
{
  g_autofree char *dir = at(pki->dir, "cn");
  g_autofree char *cert = at(dir, "ca-cert.pem");
  g_autoptr(GPtrArray) infos = NULL;
  const DrCertInfo *info;

  if (!have("openssl") || !have("certtool"))
    return;
  make_foreign_ca(
      dir, "ED25519",
      "organization = \"Acme\"\ncn = \"client1\"\ntls_www_client\nsigning_key\nexpiration_days = 9\n");
  infos = dr_cert_read(cert, NULL);
  info = infos->pdata[0];
  g_assert_cmpstr(info->names[0], ==, "client1");
  g_assert_null(info->names[1]);
  g_assert_cmpint(info->use, ==, DR_CERT_CLIENT);
}

static void
test_revoked(Pki *pki, gconstpointer unused)
{
  g_auto(Files) f = files_of(pki);
  g_autofree char *crl = at(pki->host, "ca-crl.pem");
  g_autofree char *template = at(pki->dir, "template");
  g_autofree char *out = NULL;
  g_autofree char *other = at(pki->dir, "other");
  g_autofree char *other_ca = at(other, "ca-cert.pem");
  g_autoptr(DrPkiPaths) paths = NULL;
  g_autoptr(GError) error = NULL;

  if (!have("certtool"))
    return;
  write_all_of(template, "crl_next_update = 30\ncrl_number = 1\n");
  if (RUN(&out, "certtool", "--generate-crl", "--load-ca-privkey", f.ca_key, "--load-ca-certificate", f.ca,
          "--load-certificate", f.client, "--template", template, "--outfile", crl) != 0)
    g_error("certtool: %s", out);
  assert_problem(f.server, DR_CERT_SERVER, f.server_key, f.ca, crl, NULL);
  assert_problem(f.client, DR_CERT_CLIENT, f.client_key, f.ca, crl, "it was revoked");
  paths = dr_pki_find(pki->host, NULL, &error);
  g_assert_no_error(error);
  g_assert_false(dr_pki_check(paths, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  g_assert_nonnull(strstr(error->message, f.client));
  /* A list that another CA signed says nothing. */
  g_assert_true(dr_pki_init(other, "other", 30, NULL));
  assert_problem(f.server, DR_CERT_SERVER, NULL, other_ca, crl, "is no revocation list of its CA");
}

/* --- Names that hide something --- */

typedef struct {
  guint8 tag; /* of a GeneralName: RFC 5280, 4.2.1.6 */
  const char *name;
  guint8 len;
} Alternative;

#define DNS 0x82
#define URI 0x86
#define IP 0x87
#define TEXT(tag, text)                                                                                      \
  {                                                                                                          \
    tag, text, sizeof text - 1                                                                               \
  }

/* By hand, for GnuTLS would take out of a name what does not belong there. */
static void
set_alternatives(gnutls_x509_crt_t cert, const Alternative *alternatives, guint n)
{
  g_autoptr(GByteArray) der = g_byte_array_new();
  guint8 head[] = { 0x30, 0 };

  g_byte_array_append(der, head, 2);
  for (guint i = 0; i < n; i++) {
    g_byte_array_append(der, &alternatives[i].tag, 1);
    g_byte_array_append(der, &alternatives[i].len, 1);
    g_byte_array_append(der, (const guint8 *)alternatives[i].name, alternatives[i].len);
  }
  g_assert_cmpuint(der->len, <, 128);
  der->data[1] = (guint8)(der->len - 2);
  g_assert_cmpint(gnutls_x509_crt_set_extension_by_oid(cert, "2.5.29.17", der->data, der->len, 0), ==, 0);
}

/* What dr_cert_names() makes of a certificate with the CN "host2" and these. It is written and read again, as GnuTLS looks at
 * names when it reads; NULL: it does not read this. */
static char **
names_of(const Alternative *alternatives, guint n)
{
  gnutls_x509_crt_t cert, again;
  gnutls_x509_privkey_t key;
  gnutls_datum_t der;
  char **names;

  gnutls_x509_crt_init(&cert);
  gnutls_x509_crt_init(&again);
  gnutls_x509_privkey_init(&key);
  g_assert_cmpint(gnutls_x509_privkey_generate(key, GNUTLS_PK_EDDSA_ED25519, 0, 0), ==, 0);
  gnutls_x509_crt_set_version(cert, 3);
  gnutls_x509_crt_set_serial(cert, "1", 1);
  gnutls_x509_crt_set_activation_time(cert, 1);
  gnutls_x509_crt_set_expiration_time(cert, 2);
  gnutls_x509_crt_set_key(cert, key);
  gnutls_x509_crt_set_dn_by_oid(cert, GNUTLS_OID_X520_COMMON_NAME, 0, "host2", 5);
  if (n > 0)
    set_alternatives(cert, alternatives, n);
  g_assert_cmpint(gnutls_x509_crt_sign2(cert, cert, key, GNUTLS_DIG_SHA512, 0), ==, 0);
  g_assert_cmpint(gnutls_x509_crt_export2(cert, GNUTLS_X509_FMT_DER, &der), ==, 0);
  names = gnutls_x509_crt_import(again, &der, GNUTLS_X509_FMT_DER) < 0 ? NULL : dr_cert_names(again);
  gnutls_free(der.data);
  gnutls_x509_crt_deinit(cert);
  gnutls_x509_crt_deinit(again);
  gnutls_x509_privkey_deinit(key);
  return names;
}

/* Each between two good ones. */
static void
test_hidden_names(void)
{
  static const Alternative hidden[] = {
    TEXT(DNS, "evil\0.example"), TEXT(DNS, "a\nb"), TEXT(DNS, "\x1b[31m"), TEXT(DNS, ""),
    TEXT(DNS, "\xff.example"),   TEXT(IP, "12345"), TEXT(IP, ""),          TEXT(URI, "https://host9"),
  };
  guint read = 0;

  for (guint i = 0; i < G_N_ELEMENTS(hidden); i++) {
    const Alternative three[] = { TEXT(IP, "\x0a\x00\x00\x02"), hidden[i], TEXT(DNS, "good.example") };
    g_auto(GStrv) names = names_of(three, 3);
    g_autofree char *all = names ? g_strjoinv(" ", names) : NULL;

    g_test_message("%u: %s", i, names ? all : "not read");
    if (names)
      g_assert_cmpstr(all, ==, "10.0.0.2 good.example");
    read += names != NULL;
  }
  g_assert_cmpuint(read, >=, 4); /* the others are refused by GnuTLS itself */
}

/* A name that cannot be taken is not the same as none: the CN does not come in its place. It does beside one of another kind. */
static void
test_bad_names_only(void)
{
  static const Alternative bad[] = { TEXT(DNS, "a\nb") };
  static const Alternative other[] = { TEXT(URI, "https://host9") };
  g_auto(GStrv) of_bad = names_of(bad, 1);
  g_auto(GStrv) of_other = names_of(other, 1);
  g_auto(GStrv) of_none = names_of(NULL, 0);

  g_assert_null(of_bad[0]);
  g_assert_cmpstr(of_other[0], ==, "host2");
  g_assert_cmpstr(of_none[0], ==, "host2");
}

/* --- Files that are none --- */

static void
assert_unreadable(const char *path)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(GPtrArray) infos = dr_cert_read(path, &error);

  g_assert_null(infos);
  g_assert_true(error->domain == DR_ERROR);
  g_assert_nonnull(strstr(error->message, path));
}

static void
test_no_certificates(Pki *pki, gconstpointer unused)
{
  g_auto(Files) f = files_of(pki);
  g_autofree char *text = read_all(f.ca);
  g_autofree char *path = at(pki->dir, "file");
  g_autoptr(GString) many = g_string_new(NULL);
  g_autoptr(GPtrArray) infos = NULL;

  assert_unreadable("/nonexistent/cert.pem");
  assert_unreadable(pki->dir);
  assert_unreadable("/dev/zero"); /* larger than may be */
  assert_unreadable(f.ca_key);
  write_all_of(path, "");
  assert_unreadable(path);
  write_all_of(path, "-----BEGIN CERTIFICATE-----\n");
  assert_unreadable(path);
  write_all_of(path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
  assert_unreadable(path);
  for (int i = 0; i < 16; i++)
    g_string_append(many, text);
  write_all_of(path, many->str);
  infos = dr_cert_read(path, NULL);
  g_assert_cmpuint(infos->len, ==, 16);
  g_string_append(many, text);
  write_all_of(path, many->str);
  assert_unreadable(path);
}

/* Whatever one byte is changed into: an answer or an error, and never a certificate that holds though it is another. */
static void
test_mutations(Pki *pki, gconstpointer unused)
{
  g_auto(Files) f = files_of(pki);
  g_autofree char *text = read_all(f.server);
  g_autofree char *path = at(pki->dir, "file");
  g_autoptr(GRand) rand = g_rand_new_with_seed(7413);
  gsize begin = strlen("-----BEGIN CERTIFICATE-----\n"),
        end = strlen(text) - strlen("==\n-----END CERTIFICATE-----\n") - 2;

  for (int i = 0; i < 300; i++) {
    gsize where = (gsize)g_rand_int_range(rand, (gint32)begin, (gint32)end);
    char was = text[where];
    g_autofree char *problem = NULL;
    g_autoptr(GPtrArray) infos = NULL;

    text[where] = "ABCxyz019+/="[g_rand_int_range(rand, 0, 12)];
    write_all_of(path, text);
    infos = dr_cert_read(path, NULL);
    problem = dr_cert_problem(path, DR_CERT_SERVER, NULL, f.ca, NULL);
    if (text[where] != was && was != '\n' && !problem)
      g_error("byte %zu from '%c' to '%c' goes unnoticed", where, was, text[where]);
    text[where] = was;
  }
}

void
add_trust_tests(void)
{
#define ADD_WITH(name, data, func) g_test_add("/pki/" name, Pki, data, pki_set_up, func, pki_tear_down)
#define ADD(name, func) ADD_WITH(name, NULL, func)
  ADD("problems", test_problems);
  ADD("openssl", test_openssl);
  ADD("certtool", test_certtool);
  ADD("tls", test_tls);
  ADD("tls-swapped-purposes", test_tls_swapped_purposes);
  ADD_WITH("foreign-ca/rsa", "RSA", test_foreign_ca);
  ADD_WITH("foreign-ca/ed25519", "ED25519", test_foreign_ca);
  ADD("ended-ca", test_ended_ca);
  ADD("common-name-only", test_common_name_only);
  ADD("revoked", test_revoked);
  g_test_add_func("/pki/hidden-names", test_hidden_names);
  g_test_add_func("/pki/bad-names-only", test_bad_names_only);
  ADD("no-certificates", test_no_certificates);
  ADD("mutations", test_mutations);
}
