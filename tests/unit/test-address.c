/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names, hosts and ports as people type them. */
#include "base/address.h"
#include "base/error.h"

#include <string.h>

#define LABEL "a23456789012345678901234567890123456789012345678901234567890123" /* 63 */

static void
test_names(void)
{
  static const char *const good[] = { "web1", "a", "1", "_x", "A.b-c_d", LABEL };
  static const char *const bad[] = { "",     ".", "..",   ".a",  "-a",    "a/b",     "../x", "a b",
                                     "a\nb", "ä", "a\\b", "a%b", "a\x7f", LABEL "x", "a:b",  "*" };

  for (guint i = 0; i < G_N_ELEMENTS(good); i++)
    g_assert_true(dr_name_check(good[i], "a peer", NULL));
  for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
    g_autoptr(GError) error = NULL;

    if (dr_name_check(bad[i], "a peer", &error))
      g_error("'%s' was taken", bad[i]);
    g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
    g_assert_nonnull(strstr(error->message, "cannot be the name of a peer"));
    g_assert_nonnull(dr_error_get_remedy(error));
    g_assert_null(strpbrk(error->message, "\n\x7f"));
  }
  g_assert_false(dr_name_check(NULL, "a peer", NULL));
}

static void
test_hosts(void)
{
  static const char *const good[] = { "host2",         "host2.example.org", "a",           "1a",
                                      "x-1.y",         "192.0.2.7",         "2001:db8::7", "::1",
                                      "xn--nxa.gr",    "my_host",           "1.2.3.4a",    LABEL ".example",
                                      "::ffff:1.2.3.4" };
  static const char *const bad[] = {
    "",       ".",     "a.",           ".a",         "a..b",    "-a",        "a-",        "a/b",  "a b",
    "host:1", "[::1]", "fe80::1%eth0", "10.0.0.0/8", "1.2.3",   "256.1.1.1", "1.2.3.4.5", "*.a",  "höst",
    "a\nb",   "12",    "2001:db8",     ":::",        LABEL "x", "a@b",       "a;b",       "$(id)"
  };

  for (guint i = 0; i < G_N_ELEMENTS(good); i++)
    if (!dr_host_check(good[i], NULL))
      g_error("'%s' was refused", good[i]);
  for (guint i = 0; i < G_N_ELEMENTS(bad); i++)
    if (dr_host_check(bad[i], NULL))
      g_error("'%s' was taken", bad[i]);
  g_assert_false(dr_host_check(NULL, NULL));
}

/* 253 characters at most, in however many labels. */
static void
test_long_host(void)
{
  const char *const four[] = { LABEL + 2, LABEL, LABEL, LABEL, NULL };
  g_autofree char *longest = g_strjoinv(".", (char **)four);
  g_autofree char *longer = g_strconcat("a", longest, NULL);

  g_assert_cmpuint(strlen(longest), ==, 253);
  g_assert_true(dr_host_check(longest, NULL));
  longer[0] = 'b';
  longer[1] = '.';
  g_assert_false(dr_host_check(longer, NULL));
}

static void
test_normal(void)
{
  static const char *const cases[][2] = { { "Host2.Example", "host2.example" },
                                          { "2001:DB8:0:0::7", "2001:db8::7" },
                                          { "192.0.2.7", "192.0.2.7" } };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autofree char *normal = dr_host_normal(cases[i][0]);

    g_assert_cmpstr(normal, ==, cases[i][1]);
  }
}

static void
test_addresses(void)
{
  static const struct {
    const char *text, *host; /* host NULL: refused */
    guint16 port;
    const char *printed;
  } cases[] = {
    { "host2", "host2", 7413, "host2:7413" },
    { "host2:1", "host2", 1, "host2:1" },
    { "host2:65535", "host2", 65535, "host2:65535" },
    { "192.0.2.7:80", "192.0.2.7", 80, "192.0.2.7:80" },
    { "::1", "::1", 7413, "[::1]:7413" },
    { "[::1]", "::1", 7413, "[::1]:7413" },
    { "[::1]:7000", "::1", 7000, "[::1]:7000" },
    { "2001:db8::7", "2001:db8::7", 7413, "[2001:db8::7]:7413" },
    { "" },
    { ":" },
    { ":7000" },
    { "host2:" },
    { "host2:0" },
    { "host2:65536" },
    { "host2:-1" },
    { "host2:+1" },
    { "host2: 1" },
    { "host2:1x" },
    { "host2:http" },
    { "host2:99999999999999999999" },
    { "[::1" },
    { "[::1]7000" },
    { "[::1]:" },
    { "[::1]:0" },
    { "[host2]:7000" },
    { "[192.0.2.7]" },
    { "[]" },
    { "[]:1" },
    { "host2:1:2" },
    { "a/b:1" },
    { "user@host2" },
  };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autofree char *host = NULL;
    g_autofree char *printed = NULL;
    g_autoptr(GError) error = NULL;
    guint16 port = 0;

    if (dr_address_parse(cases[i].text, DR_PEER_PORT, &host, &port, &error) != (cases[i].host != NULL))
      g_error("'%s': %s", cases[i].text, error ? error->message : "was taken");
    g_assert_cmpstr(host, ==, cases[i].host);
    if (!host) {
      g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
      continue;
    }
    g_assert_cmpuint(port, ==, cases[i].port);
    printed = dr_address_print(host, port);
    g_assert_cmpstr(printed, ==, cases[i].printed);
  }
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/address/names", test_names);
  g_test_add_func("/address/hosts", test_hosts);
  g_test_add_func("/address/long-host", test_long_host);
  g_test_add_func("/address/normal", test_normal);
  g_test_add_func("/address/addresses", test_addresses);
  return g_test_run();
}
