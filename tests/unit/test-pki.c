/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Making keys and certificates, and finding them. What they are worth is in test-pki-trust.c. */
#include "base/error.h"
#include "test-pki-util.h"

#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DAY_S 86400

static const struct {
  const char *name;
  int mode;
} host_files[] = { { "ca-cert.pem", 0644 },
                   { "server-cert.pem", 0644 },
                   { "client-cert.pem", 0644 },
                   { "server-key.pem", 0600 },
                   { "client-key.pem", 0600 } };

static guint
count_files(const char *path)
{
  g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
  guint n = 0;

  while (dir && g_dir_read_name(dir))
    n++;
  return n;
}

static void
assert_mode(const char *dir, const char *name, int mode)
{
  g_autofree char *path = at(dir, name);
  struct stat st;

  g_assert_cmpint(stat(path, &st), ==, 0);
  g_assert_cmphex(st.st_mode & 07777, ==, (unsigned)mode);
}

/* --- Making --- */

static void
test_files(Pki *pki, gconstpointer unused)
{
  g_assert_cmpuint(count_files(pki->ca), ==, 2);
  assert_mode(pki->ca, ".", 0700);
  assert_mode(pki->ca, "ca-cert.pem", 0644);
  assert_mode(pki->ca, "ca-key.pem", 0600);
  g_assert_cmpuint(count_files(pki->host), ==, G_N_ELEMENTS(host_files));
  assert_mode(pki->host, ".", 0700);
  for (guint i = 0; i < G_N_ELEMENTS(host_files); i++)
    assert_mode(pki->host, host_files[i].name, host_files[i].mode);
}

static void
test_modes_under_any_umask(Pki *pki, gconstpointer mask)
{
  g_autofree char *ca = at(pki->dir, "ca2");
  g_autofree char *out = at(pki->dir, "out2");
  DrPkiRequest request = request_of(pki);
  mode_t before = umask((mode_t)GPOINTER_TO_INT(mask));

  g_assert_true(dr_pki_init(ca, "x", 1, NULL));
  request.out = out;
  g_assert_true(dr_pki_issue(&request, NULL));
  umask(before);
  assert_mode(ca, "ca-cert.pem", 0644);
  assert_mode(ca, "ca-key.pem", 0600);
  for (guint i = 0; i < G_N_ELEMENTS(host_files); i++)
    assert_mode(out, host_files[i].name, host_files[i].mode);
}

static DrCertInfo *
info_of(const char *dir, const char *name)
{
  g_autofree char *path = at(dir, name);
  g_autoptr(GError) error = NULL;
  g_autoptr(GPtrArray) infos = dr_cert_read(path, &error);

  g_assert_no_error(error);
  g_assert_cmpuint(infos->len, ==, 1);
  return g_ptr_array_steal_index(infos, 0);
}

static void
assert_days(const DrCertInfo *info, gint64 days)
{
  gint64 now = g_get_real_time() / G_USEC_PER_SEC;

  g_assert_cmpint(ABS(info->until - now - days * DAY_S), <=, 60);
  g_assert_cmpint(info->from, <, now);
  g_assert_cmpint(info->from, >, now - DAY_S);
}

static void
test_what_they_say(Pki *pki, gconstpointer unused)
{
  g_autoptr(DrCertInfo) ca = info_of(pki->ca, "ca-cert.pem");
  g_autoptr(DrCertInfo) server = info_of(pki->host, "server-cert.pem");
  g_autoptr(DrCertInfo) client = info_of(pki->host, "client-cert.pem");
  g_autofree char *names = g_strjoinv(" ", server->names);
  g_autofree char *client_names = g_strjoinv(" ", client->names);

  g_assert_cmpstr(ca->subject, ==, "CN=the CA");
  g_assert_cmpint(ca->use, ==, DR_CERT_CA);
  assert_days(ca, 30);
  g_assert_cmpstr(server->subject, ==, "CN=host2");
  g_assert_cmpstr(server->issuer, ==, "CN=the CA");
  g_assert_cmpstr(names, ==, "host2 10.0.0.2 2001:db8::7");
  g_assert_cmpstr(client_names, ==, names);
  g_assert_cmpint(server->use, ==, DR_CERT_SERVER);
  g_assert_cmpint(client->use, ==, DR_CERT_CLIENT);
  assert_days(server, 30); /* not 730: its CA ends then */
  g_assert_cmpstr(server->key_id, ==, client->key_id);
  g_assert_cmpstr(server->key_id, !=, ca->key_id);
  g_assert_cmpuint(strlen(server->key_id), ==, 64);
  g_assert_cmpuint(strlen(server->serial), ==, 32);
  g_assert_cmpstr(server->serial, !=, client->serial);
  g_assert_nonnull(strstr(server->algorithm, "256 bit"));
}

static void
test_no_overwrite(Pki *pki, gconstpointer unused)
{
  g_autofree char *ca_key = at(pki->ca, "ca-key.pem");
  g_autofree char *ca_cert = at(pki->ca, "ca-cert.pem");
  g_autofree char *before = read_all(ca_key);
  g_autofree char *after = NULL;
  g_autoptr(GError) both = NULL;
  g_autoptr(GError) one = NULL;

  g_assert_false(dr_pki_init(pki->ca, "another", 1, &both));
  g_assert_error(both, DR_ERROR, DR_ERROR_EXISTS);
  g_assert_nonnull(dr_error_get_remedy(both));
  g_assert_cmpint(g_unlink(ca_cert), ==, 0);
  g_assert_false(dr_pki_init(pki->ca, "another", 1, &one));
  g_assert_error(one, DR_ERROR, DR_ERROR_EXISTS);
  g_assert_nonnull(strstr(one->message, "ca-key.pem"));
  g_assert_null(strstr(one->message, "ca-cert.pem"));
  after = read_all(ca_key);
  g_assert_cmpstr(before, ==, after);
  g_assert_cmpuint(count_files(pki->ca), ==, 1);
}

/* A dangling link is a name that is taken, too. */
static void
test_no_overwrite_of_part(Pki *pki, gconstpointer unused)
{
  g_autofree char *out = at(pki->dir, "out");
  g_autofree char *link_path = at(out, "client-key.pem");
  DrPkiRequest request = request_of(pki);
  g_autoptr(GError) error = NULL;

  request.out = out;
  g_assert_cmpint(g_mkdir(out, 0755), ==, 0);
  g_assert_cmpint(symlink("/nonexistent/x", link_path), ==, 0);
  g_assert_false(dr_pki_issue(&request, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_EXISTS);
  g_assert_nonnull(strstr(error->message, "has client-key.pem already"));
  g_assert_cmpuint(count_files(out), ==, 1);
}

static void
test_force(Pki *pki, gconstpointer unused)
{
  g_autoptr(DrCertInfo) before = info_of(pki->host, "server-cert.pem");
  g_autofree char *other = at(pki->host, "dh-params.pem");
  DrPkiRequest request = request_of(pki);
  g_autoptr(DrPkiPaths) paths = NULL;
  g_autoptr(DrCertInfo) after = NULL;
  g_autoptr(GError) error = NULL;

  write_all_of(other, "theirs");
  request.force = TRUE;
  g_assert_true(dr_pki_issue(&request, NULL));
  after = info_of(pki->host, "server-cert.pem");
  g_assert_cmpstr(before->key_id, !=, after->key_id);
  g_assert_cmpuint(count_files(pki->host), ==, G_N_ELEMENTS(host_files) + 1);
  paths = dr_pki_find(pki->host, NULL, &error);
  g_assert_no_error(error);
  dr_pki_check(paths, &error);
  g_assert_no_error(error);
}

/* Sixteen at once: one makes the CA, and nothing of the others is left. */
static gpointer
init_thread(gpointer dir)
{
  return GINT_TO_POINTER(dr_pki_init(dir, "x", 1, NULL));
}

static void
test_race(Pki *pki, gconstpointer unused)
{
  g_autofree char *ca = at(pki->dir, "race");
  g_autofree char *cert = at(ca, "ca-cert.pem");
  g_autofree char *key = at(ca, "ca-key.pem");
  g_autofree char *problem = NULL;
  GThread *threads[16];
  int made = 0;

  for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
    threads[i] = g_thread_new("init", init_thread, ca);
  for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
    made += GPOINTER_TO_INT(g_thread_join(threads[i]));
  g_assert_cmpint(made, ==, 1);
  g_assert_cmpuint(count_files(ca), ==, 2);
  problem = dr_cert_problem(cert, DR_CERT_CA, key, cert, NULL);
  g_assert_cmpstr(problem, ==, NULL);
}

/* --- Bad requests --- */

static void
assert_issue_fails(const DrPkiRequest *request, DrErrorCode code, const char *part)
{
  g_autoptr(GError) error = NULL;

  if (dr_pki_issue(request, &error))
    g_error("issued, but should say: %s", part);
  g_assert_error(error, DR_ERROR, (int)code);
  if (!strstr(error->message, part))
    g_error("'%s' is not in: %s", part, error->message);
}

#define LABEL "a23456789012345678901234567890123456789012345678901234567890123" /* 63 */

static void
test_bad_requests(Pki *pki, gconstpointer unused)
{
  static const char *const hosts[] = { "", "a/b", "../x", "a b", "*", "höst", ".", "10.0.0", "fe80::1%eth0" };
  const char *const bad_addresses[] = { "10.0.0.1/8", NULL };
  g_auto(GStrv) many = g_new0(char *, DR_PKI_MAX_ADDRESSES + 2);
  g_autofree char *out = at(pki->dir, "never");
  DrPkiRequest request = request_of(pki);

  request.out = out;
  for (guint i = 0; i < G_N_ELEMENTS(hosts); i++) {
    request.host = hosts[i];
    assert_issue_fails(&request, DR_ERROR_INVALID, "is neither a host's name nor an IP address");
  }
  request.host = LABEL ".x";
  assert_issue_fails(&request, DR_ERROR_INVALID, "longer than the 64 characters");
  request.host = "host2";
  request.addresses = bad_addresses;
  assert_issue_fails(&request, DR_ERROR_INVALID, "'10.0.0.1/8'");
  for (int i = 0; i <= DR_PKI_MAX_ADDRESSES; i++)
    many[i] = g_strdup_printf("h%d", i);
  request.addresses = (const char *const *)many;
  assert_issue_fails(&request, DR_ERROR_INVALID, "at most 64 addresses");
  request.addresses = NULL;
  request.days = -1;
  assert_issue_fails(&request, DR_ERROR_INVALID, "1 to 36500 days");
  request.days = DR_PKI_MAX_DAYS + 1;
  assert_issue_fails(&request, DR_ERROR_INVALID, "1 to 36500 days");
  request.days = 31;
  assert_issue_fails(&request, DR_ERROR_UNSUPPORTED, "ends sooner");
  request.days = 0;
  request.out = pki->ca;
  assert_issue_fails(&request, DR_ERROR_INVALID, "the CA's own directory");
  g_assert_false(g_file_test(out, G_FILE_TEST_EXISTS));
}

static void
test_bad_init(Pki *pki, gconstpointer unused)
{
  static const char *const names[] = { "", "a\nb", "\xff", LABEL "xx" };
  g_autofree char *dir = at(pki->dir, "never");

  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    g_autoptr(GError) error = NULL;

    g_assert_false(dr_pki_init(dir, names[i], 1, &error));
    g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  }
  g_assert_false(dr_pki_init(dir, "x", 0, NULL));
  g_assert_false(dr_pki_init(dir, "x", DR_PKI_MAX_DAYS + 1, NULL));
  g_assert_false(g_file_test(dir, G_FILE_TEST_EXISTS));
}

/* A name in another alphabet, with what RFC 4514 has to escape, comes back as it was. */
static void
test_odd_ca_name(Pki *pki, gconstpointer unused)
{
  static const char name[] = "Zürich, CA + \"x\" = <y>; #1";
  g_autofree char *dir = at(pki->dir, "odd");
  g_autoptr(DrCertInfo) info = NULL;

  g_assert_true(dr_pki_init(dir, name, DR_PKI_MAX_DAYS, NULL));
  info = info_of(dir, "ca-cert.pem");
  g_assert_cmpstr(info->names[0], ==, name);
  assert_days(info, DR_PKI_MAX_DAYS);
}

static void
test_bad_ca(Pki *pki, gconstpointer unused)
{
  g_autofree char *key = at(pki->ca, "ca-key.pem");
  g_autofree char *cert = at(pki->ca, "ca-cert.pem");
  g_autofree char *other_key = at(pki->host, "server-key.pem");
  g_autofree char *other_cert = at(pki->host, "server-cert.pem");
  g_autofree char *other_text = read_all(other_key);
  g_autofree char *leaf_text = read_all(other_cert);
  g_autofree char *out = at(pki->dir, "never");
  DrPkiRequest request = request_of(pki);

  request.out = out;
  write_all_of(key, other_text);
  assert_issue_fails(&request, DR_ERROR_UNSUPPORTED, "is not its own");
  write_all_of(cert, leaf_text);
  assert_issue_fails(&request, DR_ERROR_UNSUPPORTED, "it is not for a CA");
  write_all_of(key, "nonsense");
  assert_issue_fails(&request, DR_ERROR_UNSUPPORTED, "has no private key");
  write_all_of(cert, "");
  assert_issue_fails(&request, DR_ERROR_UNSUPPORTED, "has no certificate");
  g_assert_cmpint(g_unlink(key), ==, 0);
  assert_issue_fails(&request, DR_ERROR_NOT_FOUND, "there is no CA");
  g_assert_false(g_file_test(out, G_FILE_TEST_EXISTS));
}

static void
test_nowhere_to_write(Pki *pki, gconstpointer unused)
{
  g_autofree char *file = at(pki->ca, "ca-cert.pem");
  g_autofree char *below = at(file, "below");
  DrPkiRequest request = request_of(pki);

  request.out = below;
  assert_issue_fails(&request, DR_ERROR_IO, below);
  request.out = "/proc/self/drover";
  assert_issue_fails(&request, DR_ERROR_IO, "/proc/self/drover");
  request.out = "/proc/self";
  assert_issue_fails(&request, DR_ERROR_IO, "/proc/self/");
}

/* --- Finding --- */

static const struct {
  const char *names[6]; /* in QEMU's order */
} layouts[] = {
  { { "ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem",
      "ca-crl.pem" } },
  { { "CA/cacert.pem", "libvirt/servercert.pem", "libvirt/private/serverkey.pem", "libvirt/clientcert.pem",
      "libvirt/private/clientkey.pem", "CA/cacrl.pem" } },
  { { "cacert.pem", "servercert.pem", "serverkey.pem", "clientcert.pem", "clientkey.pem", "cacrl.pem" } },
};

static void
lay_out(const Pki *pki, const char *dir, guint layout)
{
  for (guint i = 0; i < 5; i++) {
    g_autofree char *from = at(pki->host, layouts[0].names[i]);
    g_autofree char *to = at(dir, layouts[layout].names[i]);
    g_autofree char *parent = g_path_get_dirname(to);
    g_autofree char *text = read_all(from);

    g_assert_cmpint(g_mkdir_with_parents(parent, 0700), ==, 0);
    write_all_of(to, text);
  }
}

static void
test_layouts(Pki *pki, gconstpointer unused)
{
  for (guint layout = 0; layout < G_N_ELEMENTS(layouts); layout++) {
    g_autofree char *dir = g_strdup_printf("%s/layout%u", pki->dir, layout);
    g_autofree char *crl = at(dir, layouts[layout].names[5]);
    g_autofree char *key = at(dir, layouts[layout].names[4]);
    g_autoptr(DrPkiPaths) without = NULL;
    g_autoptr(DrPkiPaths) with = NULL;
    g_autoptr(GError) error = NULL;

    lay_out(pki, dir, layout);
    without = dr_pki_find(dir, NULL, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(without->client_key, ==, key);
    g_assert_null(without->crl);
    dr_pki_check(without, &error);
    g_assert_no_error(error);
    write_all_of(crl, "nonsense");
    with = dr_pki_find(dir, NULL, &error);
    g_assert_cmpstr(with->crl, ==, crl);
    g_assert_false(dr_pki_check(with, &error));
    g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
    g_assert_nonnull(strstr(error->message, "is no revocation list of its CA"));
  }
}

static void
test_missing_files(Pki *pki, gconstpointer unused)
{
  g_autofree char *key = at(pki->host, "server-key.pem");
  g_autofree char *cert = at(pki->host, "client-cert.pem");
  g_autoptr(GError) two = NULL;
  g_autoptr(GError) all = NULL;

  g_assert_cmpint(g_unlink(key), ==, 0);
  g_assert_cmpint(g_unlink(cert), ==, 0);
  g_assert_null(dr_pki_find(pki->host, "/nonexistent/crl.pem", &two));
  g_assert_error(two, DR_ERROR, DR_ERROR_NOT_FOUND);
  g_assert_nonnull(strstr(two->message, key));
  g_assert_nonnull(strstr(two->message, cert));
  g_assert_nonnull(strstr(two->message, "'/nonexistent/crl.pem' (missing)"));
  g_assert_null(strstr(two->message, "ca-cert.pem"));
  g_assert_nonnull(dr_error_get_remedy(two));
  g_assert_null(dr_pki_find("/nonexistent", NULL, &all));
  for (guint i = 0; i < G_N_ELEMENTS(host_files); i++)
    g_assert_nonnull(strstr(all->message, host_files[i].name));
}

static void
test_default_places(void)
{
  g_autoptr(DrPkiPaths) paths = dr_pki_layout(NULL);

  g_assert_cmpstr(paths->ca, ==, "/etc/pki/CA/cacert.pem");
  g_assert_cmpstr(paths->server_cert, ==, "/etc/pki/libvirt/servercert.pem");
  g_assert_cmpstr(paths->client_key, ==, "/etc/pki/libvirt/private/clientkey.pem");
}

/* --- Pins --- */

#define ID "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define ID_COLONS                                                                                            \
  "01:23:45:67:89:AB:CD:EF:01:23:45:67:89:AB:CD:EF:01:23:45:67:89:AB:CD:EF:01:23:45:67:89:AB:CD:EF"
#define ID2 "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"

static void
test_pins(void)
{
  static const struct {
    const char *text, *pin; /* NULL: refused */
  } cases[] = {
    { ID, ID },
    { "sha256:" ID, ID },
    { "SHA256:" ID_COLONS, ID },
    { ID_COLONS, ID },
    { " " ID " , " ID2, ID "," ID2 },
    { "" },
    { "," },
    { ID "," },
    { "," ID },
    { ID "0" },
    { "x" ID },
    { "sha1:" ID },
    { "sha256:" },
    { ":" ID },
    { ID ":" },
    { "0:123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" },
    { ID " " ID },
    { ID "," ID "," ID "," ID, ID "," ID "," ID "," ID },
    { ID "," ID "," ID "," ID "," ID },
  };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;
    g_autofree char *pin = dr_pin_parse(cases[i].text, &error);

    g_assert_cmpstr(pin, ==, cases[i].pin);
    if (!pin)
      g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  }
  g_assert_true(dr_pin_matches(ID, ID));
  g_assert_true(dr_pin_matches(ID2 "," ID, ID));
  g_assert_false(dr_pin_matches(ID2, ID));
  g_assert_false(dr_pin_matches(ID, ""));
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  signal(SIGPIPE, SIG_IGN); /* GnuTLS writes to sockets whose other end has gone, as in droverd */
#define ADD_WITH(name, data, func) g_test_add("/pki/" name, Pki, data, pki_set_up, func, pki_tear_down)
#define ADD(name, func) ADD_WITH(name, NULL, func)
  ADD("files", test_files);
  ADD_WITH("modes/umask-0", GINT_TO_POINTER(0), test_modes_under_any_umask);
  ADD_WITH("modes/umask-077", GINT_TO_POINTER(077), test_modes_under_any_umask);
  ADD("what-they-say", test_what_they_say);
  ADD("no-overwrite", test_no_overwrite);
  ADD("no-overwrite-of-part", test_no_overwrite_of_part);
  ADD("force", test_force);
  ADD("race", test_race);
  ADD("bad-requests", test_bad_requests);
  ADD("bad-init", test_bad_init);
  ADD("odd-ca-name", test_odd_ca_name);
  ADD("bad-ca", test_bad_ca);
  ADD("nowhere-to-write", test_nowhere_to_write);
  ADD("layouts", test_layouts);
  ADD("missing-files", test_missing_files);
  g_test_add_func("/pki/default-places", test_default_places);
  g_test_add_func("/pki/pins", test_pins);
  add_trust_tests();
  return g_test_run();
}
