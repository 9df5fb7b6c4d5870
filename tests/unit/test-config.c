/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The configuration file: what it says, what it does not take, and what it allows. */
#include "base/error.h"
#include "daemon/config.h"

#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#define KEY_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define KEY_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(DrConfig, dr_config_clear)

static gboolean
load(DrConfig *config, const char *text, GError **error)
{
  g_autofree char *path = NULL;
  int fd = g_file_open_tmp("drover-config-XXXXXX", &path, NULL);
  char *words[] = { (char *)"droverd", (char *)"--config", path, NULL };
  char **argv = words;
  int argc = 3;
  gboolean done;

  g_assert_cmpint(fd, >=, 0);
  close(fd);
  g_assert_true(g_file_set_contents(path, text, -1, NULL));
  done = dr_config_load(config, &argc, &argv, error);
  g_unlink(path);
  return done;
}

static void
test_defaults(void)
{
  g_auto(DrConfig) config = { 0 };

  g_assert_true(load(&config, "", NULL));
  g_assert_null(config.listen_address);
  g_assert_cmpuint(config.listen_port, ==, 0);
  g_assert_true(g_path_is_absolute(config.tls_dir));
  g_assert_true(g_str_has_suffix(config.tls_dir, "/drover/tls"));
  g_assert_false(config.tls_libvirt);
  g_assert_null(config.tls_crl);
  g_assert_null(config.peers_allow);
  g_assert_cmpuint(g_hash_table_size(config.peers_pins), ==, 0);
  g_assert_cmpint(config.transports, ==, DR_TRANSPORT_TUNNEL);
  g_assert_cmpuint(g_strv_length(config.qemu_binaries), ==, 3);
}

static void
test_all_keys(void)
{
  g_auto(DrConfig) config = { 0 };
  g_autoptr(GError) error = NULL;

  load(&config,
       "[listen]\naddress=2001:db8::1\nport=7000\n"
       "[tls]\ndir=/etc/x\ncrl=/etc/x/crl.pem\n"
       "[peers]\nallow=host2;*.example; 10.0.0.? ;\ntransports=tunnel;handoff\n"
       "pins=Host2=" KEY_A ";2001:DB8::7=sha256:" KEY_A "," KEY_B "\n"
       "[qemu]\nbinaries=/opt/qemu-*/bin/qemu-system-x86_64\n",
       &error);
  g_assert_no_error(error);
  g_assert_cmpstr(config.listen_address, ==, "2001:db8::1");
  g_assert_cmpuint(config.listen_port, ==, 7000);
  g_assert_cmpstr(config.tls_dir, ==, "/etc/x");
  g_assert_cmpstr(config.tls_crl, ==, "/etc/x/crl.pem");
  g_assert_cmpuint(g_strv_length(config.peers_allow), ==, 3);
  g_assert_cmpstr(config.peers_allow[2], ==, "10.0.0.?");
  g_assert_cmpint(config.transports, ==, DR_TRANSPORT_TUNNEL | DR_TRANSPORT_HANDOFF);
  g_assert_cmpuint(g_strv_length(config.qemu_binaries), ==, 1);
  g_assert_cmpstr(dr_config_pin_of(&config, (const char *const[]){ "nobody", "HOST2", NULL }), ==, KEY_A);
  g_assert_cmpstr(dr_config_pin_of(&config, (const char *const[]){ "2001:db8:0::7", NULL }), ==,
                  KEY_A "," KEY_B);
  g_assert_null(dr_config_pin_of(&config, (const char *const[]){ "nobody", NULL }));
}

static void
test_port_only_and_libvirt(void)
{
  g_auto(DrConfig) config = { 0 };

  g_assert_true(load(&config, "[listen]\nport=7413\n[tls]\nlibvirt=true\n", NULL));
  g_assert_null(config.listen_address);
  g_assert_cmpuint(config.listen_port, ==, 7413);
  g_assert_true(config.tls_libvirt);
  g_assert_null(config.tls_dir);
}

static void
test_refused(void)
{
  static const struct {
    const char *text, *part;
  } cases[] = {
    { "[listen]\nprot=1\n", "unknown key 'prot' in [listen]" },
    { "[daemon]\nport=1\n", "unknown key 'port' in [daemon]" },
    { "[peer]\n", "there is no group [peer]" },
    { "[listen]\nport=65536\n", "port in [listen]: it is not 0 to 65535" },
    { "[listen]\nport=-1\n", "it is not 0 to 65535" },
    { "[listen]\nport=https\n", "it is not 0 to 65535" },
    { "[listen]\nport=\n", "port in [listen]: it is empty" },
    { "[listen]\naddress=10.0.0.1\n", "there is no port with it" },
    { "[listen]\naddress=host1\nport=1\n", "it is not an IP address" },
    { "[listen]\naddress=[::1]\nport=1\n", "it is not an IP address" },
    { "[tls]\ndir=tls\n", "dir in [tls]: it is not an absolute path" },
    { "[tls]\ncrl=x.pem\n", "it is not an absolute path" },
    { "[tls]\nlibvirt=perhaps\n", "it is neither true nor false" },
    { "[tls]\nlibvirt=true\ndir=/x\n", "there is a dir as well" },
    { "[peers]\nallow=\n", "allow in [peers]: it is empty" },
    { "[peers]\nallow=a;;b\n", "an entry is empty" },
    { "[peers]\nallow=a b\n", "'a b' is no pattern" },
    { "[peers]\nallow=a/b\n", "'a/b' is no pattern" },
    { "[peers]\npins=host2\n", "'host2' is not NAME=KEYID" },
    { "[peers]\npins=host2=abc\n", "is not NAME=KEYID" },
    { "[peers]\npins=*=" KEY_A "\n", "is not NAME=KEYID" },
    { "[peers]\npins==" KEY_A "\n", "is not NAME=KEYID" },
    { "[peers]\npins=a=" KEY_A ";A=" KEY_B "\n", "a name is there twice" },
    { "[peers]\ntransports=tunnel;tls\n", "'tls' is none of tunnel, plain and handoff" },
    { "[peers]\ntransports=\n", "transports in [peers]: it is empty" },
    { "[peers]\ntransports=Tunnel\n", "none of" },
    { "[qemu]\nbinaries=qemu-system-x86_64\n", "is not an absolute path" },
    { "[qemu]\nbinaries=/usr/bin/../x\n", "is not an absolute path" },
    { "[qemu]\nbinaries=/usr//bin/x\n", "is not an absolute path" },
    { "[qemu]\nbinaries=\n", "it is empty" },
    { "[peers]\nallow=\xff\n", "allow in [peers]" },
  };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_auto(DrConfig) config = { 0 };
    g_autoptr(GError) error = NULL;

    if (load(&config, cases[i].text, &error))
      g_error("taken: %s", cases[i].text);
    g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
    if (!strstr(error->message, cases[i].part))
      g_error("'%s' is not in: %s", cases[i].part, error->message);
  }
}

static gboolean
allows(const DrConfig *config, const char *name)
{
  return dr_config_allows_peer(config, (const char *const[]){ "first.of.others", name, NULL });
}

static void
test_allowed_peers(void)
{
  g_auto(DrConfig) config = { 0 };
  g_auto(DrConfig) nobody = { 0 };

  g_assert_true(load(&config, "[peers]\nallow=host2;*.Example;10.0.0.[1-3]\n", NULL));
  g_assert_true(load(&nobody, "", NULL));
  g_assert_true(allows(&config, "HOST2"));
  g_assert_true(allows(&config, "a.b.example"));
  g_assert_true(allows(&config, "10.0.0.3"));
  g_assert_false(allows(&config, "host22"));
  g_assert_false(allows(&config, "example"));
  g_assert_false(allows(&config, "10.0.0.4"));
  g_assert_false(allows(&config, ""));
  g_assert_false(dr_config_allows_peer(&config, (const char *const[]){ NULL }));
  g_assert_false(allows(&nobody, "host2"));
}

static void
test_allowed_binaries(void)
{
  static const char *const good[] = { "/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm",
                                      "/usr/bin/kvm" };
  static const char *const bad[] = { "qemu-system-x86_64",
                                     "",
                                     "/bin/sh",
                                     "/usr/bin/qemu-system-x/../../../bin/sh",
                                     "/usr/bin/qemu-system-x/sh",
                                     "/usr/bin/./kvm",
                                     "/usr/bin//kvm",
                                     "/usr/bin/kvm/",
                                     "/usr/bin/kvm ",
                                     "usr/bin/kvm",
                                     "/usr/local/bin/qemu-system-x86_64",
                                     "/opt/../bin/qemu" };
  g_auto(DrConfig) config = { 0 };
  g_auto(DrConfig) wide = { 0 };

  g_assert_true(load(&config, "", NULL));
  for (guint i = 0; i < G_N_ELEMENTS(good); i++)
    g_assert_true(dr_config_allows_binary(&config, good[i]));
  for (guint i = 0; i < G_N_ELEMENTS(bad); i++)
    if (dr_config_allows_binary(&config, bad[i]))
      g_error("'%s' was allowed", bad[i]);
  g_assert_true(load(&wide, "[qemu]\nbinaries=/opt/*/bin/qemu*\n", NULL));
  g_assert_true(dr_config_allows_binary(&wide, "/opt/x/bin/qemu-system-i386"));
  g_assert_false(dr_config_allows_binary(&wide, "/opt/../bin/qemu"));
  g_assert_false(dr_config_allows_binary(&wide, "/opt/x/y/bin/qemu"));
  g_assert_false(dr_config_allows_binary(&wide, "/usr/bin/kvm"));
}

static void
test_api(void)
{
  g_auto(DrConfig) config = { 0 };
  g_auto(DrConfig) none = { 0 };

  g_assert_true(load(&config,
                     "[api]\naddress=::1\nport=7414\nclients=alice;*.admin.example\nreaders=bob\n"
                     "read-group=monitoring\noperate-group=4711\n",
                     NULL));
  g_assert_cmpstr(config.api_address, ==, "::1");
  g_assert_cmpuint(config.api_port, ==, 7414);
  g_assert_cmpuint(g_strv_length(config.api_clients), ==, 2);
  g_assert_cmpstr(config.api_readers[0], ==, "bob");
  g_assert_cmpstr(config.api_read_group, ==, "monitoring");
  g_assert_cmpstr(config.api_operate_group, ==, "4711");
  g_assert_true(load(&none, "", NULL));
  g_assert_cmpuint(none.api_port, ==, 0);
  g_assert_null(none.api_clients);
  g_assert_null(none.api_operate_group);
}

/* A port to which nobody could come, or names that could come to none, are not what was meant. */
static void
test_api_refused(void)
{
  static const char *const cases[] = { "port=7414\n",         "clients=a\n",   "readers=a\n",
                                       "port=0\nclients=a\n", "address=::1\n", "port=7414\nclients=a b\n",
                                       "port=7414\nclients=", "read-group=\n" };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_auto(DrConfig) config = { 0 };
    g_autofree char *text = g_strconcat("[api]\n", cases[i], NULL);
    g_autoptr(GError) error = NULL;

    if (load(&config, text, &error))
      g_error("'%s' was taken", text);
    g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
    g_assert_nonnull(strstr(error->message, "[api]"));
  }
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/config/defaults", test_defaults);
  g_test_add_func("/config/all-keys", test_all_keys);
  g_test_add_func("/config/port-only-and-libvirt", test_port_only_and_libvirt);
  g_test_add_func("/config/refused", test_refused);
  g_test_add_func("/config/allowed-peers", test_allowed_peers);
  g_test_add_func("/config/allowed-binaries", test_allowed_binaries);
  g_test_add_func("/config/api", test_api);
  g_test_add_func("/config/api-refused", test_api_refused);
  return g_test_run();
}
