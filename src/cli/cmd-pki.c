/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover pki init, drover pki issue. What they make, they read again: that is what they tell. */
#include "cli/cmd-pki.h"
#include "base/error.h"

#include <stdio.h>
#include <string.h>

#define DAYS_NOT_SAID G_MININT

typedef struct {
  char *dir, *name, *out;
  char **addresses;
  int days;
  gboolean force, client;
} Options;

static DrCertInfo *
read_first(const char *file, GError **error)
{
  g_autoptr(GPtrArray) certs = dr_cert_read(file, error);

  return certs ? g_ptr_array_steal_index(certs, 0) : NULL;
}

static void
print_object(JsonObject *object)
{
  g_autoptr(JsonNode) node = dr_json_node(json_object_ref(object));

  dr_cli_print_json(node);
}

/* Absolute, as what is printed may be used elsewhere. (transfer full) */
static char *
ca_dir(const Options *options)
{
  return options->dir ? g_canonicalize_filename(options->dir, NULL) : dr_pki_default_dir("pki");
}

/* --- init --- */

/* "drover CA of host1", not longer than a CN may be. */
static char *
default_name(void)
{
  g_autofree char *host = g_utf8_make_valid(g_get_host_name(), -1);
  g_autofree char *name = g_strconcat("drover CA of ", host, NULL);

  return g_utf8_substring(name, 0, MIN(g_utf8_strlen(name, -1), 64));
}

static void
tell_ca(const char *cert, const char *key, const DrCertInfo *info)
{
  g_autofree char *until = dr_pki_date(info->until);

  printf("made a CA, %s, valid until %s\n", info->subject, until);
  printf("  %s   every host gets a copy\n", cert);
  printf("  %s    stays here: who has it can pass for any host\n", key);
  puts("next, for each host: drover pki issue HOST");
}

static int
init(DrCli *cli, const void *data)
{
  const Options *options = data;
  g_autoptr(GError) error = NULL;
  g_autoptr(DrCertInfo) info = NULL;
  g_autofree char *name = options->name ? g_strdup(options->name) : default_name();
  g_autofree char *dir = ca_dir(options);
  g_autofree char *cert = g_build_filename(dir, "ca-cert.pem", NULL);
  g_autofree char *key = g_build_filename(dir, "ca-key.pem", NULL);
  int days = options->days == DAYS_NOT_SAID ? DR_PKI_CA_DAYS : options->days;

  if (!dr_pki_init(dir, name, days, &error) || !(info = read_first(cert, &error)))
    return dr_cli_fail(cli, error);
  if (cli->json) {
    g_autoptr(JsonObject) object = dr_pki_cert_json(cert, info, NULL);

    json_object_set_string_member(object, "key_file", key);
    print_object(object);
  } else {
    tell_ca(cert, key, info);
  }
  return DR_EXIT_DONE;
}

/* --- issue --- */

/* As the shell takes it. (transfer full) */
static char *
quote(const char *path)
{
  gboolean plain =
      !path[strspn(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+,./@%")];

  return plain ? g_strdup(path) : g_shell_quote(path);
}

static void
tell_host(const char *host, const char *out, const DrCertInfo *info)
{
  g_autofree char *until = dr_pki_date(info->until);
  g_autofree char *names = g_strjoinv(", ", info->names);
  g_autofree char *there = dr_pki_default_dir("tls");
  g_autofree char *from = quote(out);
  g_autofree char *to = quote(there);

  printf("made the certificates of %s (%s), valid until %s\n", host, names, until);
  printf("  %s/\n", out);
  puts("    ca-cert.pem server-cert.pem server-key.pem client-cert.pem client-key.pem");
  printf("  key id %s\n", info->key_id);
  if (g_str_equal(out, there)) {
    puts("next: restart droverd on this host");
    return;
  }
  printf("next: copy the directory to %s as %s, and remove it here:\n", host, there);
  printf("  tar -C %s -c . | ssh %s 'mkdir -p -m 700 %s && tar -C %s -xp'\n", from, host, to, to);
}

static void
tell_client(const char *name, const char *out, const DrCertInfo *info)
{
  g_autofree char *until = dr_pki_date(info->until);

  printf("made the certificate of %s, valid until %s\n", name, until);
  printf("  %s/\n", out);
  puts("    ca-cert.pem client-cert.pem client-key.pem");
  printf("next: move the directory to where %s uses drover (as ~/.config/drover/tls, or --pki DIR),\n", name);
  printf("  and name it on each host, in [api] of droverd.conf: clients=%s\n", name);
}

/* An `out` that is not given: beside the CA. */
static char *
output_of(const Options *options, const char *dir, const char *host)
{
  return options->out ? g_canonicalize_filename(options->out, NULL)
                      : g_build_filename(dir, "hosts", host, NULL);
}

static int
issue(DrCli *cli, const void *data)
{
  const Options *options = data;
  const char *host = cli->words[0];
  g_autofree char *dir = ca_dir(options);
  g_autofree char *out = output_of(options, dir, host);
  const DrPkiRequest request = { .dir = dir,
                                 .host = host,
                                 .addresses = (const char *const *)options->addresses,
                                 .out = out,
                                 .days = options->days == DAYS_NOT_SAID ? 0 : options->days,
                                 .force = options->force,
                                 .client = options->client };
  g_autofree char *cert =
      g_build_filename(out, options->client ? "client-cert.pem" : "server-cert.pem", NULL);
  g_autoptr(DrCertInfo) info = NULL;
  g_autoptr(GError) error = NULL;

  if (options->days == 0)
    dr_error_set(&error, DR_ERROR_INVALID, "a certificate is valid for 1 to %d days, not 0", DR_PKI_MAX_DAYS);
  if (error || !dr_pki_issue(&request, &error) || !(info = read_first(cert, &error)))
    return dr_cli_fail(cli, error);
  if (cli->json) {
    g_autoptr(JsonObject) object = dr_pki_cert_json(cert, info, NULL);

    json_object_set_string_member(object, "dir", out);
    print_object(object);
  } else if (options->client) {
    tell_client(host, out, info);
  } else {
    tell_host(host, out, info);
  }
  return DR_EXIT_DONE;
}

int
dr_cmd_pki(DrCli *cli, int argc, char **argv)
{
  static const DrSubverb subverbs[] = {
    { "init", "", 0, 0, " dir name days ", init },
    { "issue", "HOST", 1, 1, " dir out address days force client ", issue },
    { "show", "FILE|DIR", 1, 1, "", dr_pki_show },
    { NULL },
  };
  Options options = { .days = DAYS_NOT_SAID };
  const GOptionEntry entries[] = {
    { "dir", 0, 0, G_OPTION_ARG_FILENAME, &options.dir,
      "init, issue: the CA's directory (default: /etc/drover/pki, for a user $XDG_CONFIG_HOME/drover/pki)",
      "DIR" },
    { "name", 0, 0, G_OPTION_ARG_STRING, &options.name,
      "init: the CA's name (default: drover CA of this host)", "CN" },
    { "days", 0, 0, G_OPTION_ARG_INT, &options.days,
      "init, issue: how long it is valid (default: 3650 a CA, 730 a host)", "N" },
    { "out", 0, 0, G_OPTION_ARG_FILENAME, &options.out,
      "issue: where to write (default: hosts/HOST in the CA's directory)", "DIR" },
    { "address", 0, 0, G_OPTION_ARG_STRING_ARRAY, &options.addresses,
      "issue: another name or address of the host; several times", "IP|NAME" },
    { "client", 0, 0, G_OPTION_ARG_NONE, &options.client,
      "issue: only a client's certificate, for who uses drover --connect tls://", NULL },
    { "force", 0, 0, G_OPTION_ARG_NONE, &options.force, "issue: replace what is there", NULL },
    { NULL },
  };
  int code = dr_cli_subverb(cli, argc, argv, entries, subverbs, &options);

  g_free(options.dir);
  g_free(options.name);
  g_free(options.out);
  g_strfreev(options.addresses);
  return code;
}
