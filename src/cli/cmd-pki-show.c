/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover pki show: what certificates say, and what is wrong with them. */
#include "base/error.h"
#include "cli/cmd-pki.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define DAY_S 86400

char *
dr_pki_date(gint64 seconds)
{
  g_autoptr(GDateTime) time = g_date_time_new_from_unix_utc(seconds);

  return time ? g_date_time_format(time, "%Y-%m-%d") : g_strdup("?");
}

static JsonArray *
uses(DrCertUse use)
{
  JsonArray *array = json_array_new();

  if (use & DR_CERT_CA)
    json_array_add_string_element(array, "ca");
  if (use & DR_CERT_SERVER)
    json_array_add_string_element(array, "server");
  if (use & DR_CERT_CLIENT)
    json_array_add_string_element(array, "client");
  return array;
}

JsonObject *
dr_pki_cert_json(const char *file, const DrCertInfo *info, const char *problem)
{
  JsonObject *object = json_object_new();

  json_object_set_string_member(object, "file", file);
  json_object_set_string_member(object, "subject", info->subject);
  json_object_set_string_member(object, "issuer", info->issuer);
  json_object_set_array_member(object, "names", dr_json_array_from_strv((const char *const *)info->names));
  json_object_set_array_member(object, "for", uses(info->use));
  json_object_set_string_member(object, "key", info->algorithm);
  json_object_set_string_member(object, "key_id", info->key_id);
  json_object_set_string_member(object, "serial", info->serial);
  json_object_set_int_member(object, "from_ms", info->from * 1000);
  json_object_set_int_member(object, "until_ms", info->until * 1000);
  json_object_set_string_member(object, "problem", problem);
  return object;
}

/* --- Gathering --- */

/* (transfer full): nullable. */
static char *
mode_problem(const char *key)
{
  struct stat st;

  return key && stat(key, &st) == 0 && (st.st_mode & S_IRWXO)
             ? g_strdup_printf("its key '%s' is open to everybody (mode %04o): chmod 0600 it", key,
                               (unsigned)st.st_mode & 07777)
             : NULL;
}

/* `use` 0: whatever it is for. `problem` is that of the first certificate. */
static gboolean
add_file(JsonArray *all, const char *file, const char *problem, GError **error)
{
  g_autoptr(GPtrArray) infos = dr_cert_read(file, error);

  for (guint i = 0; infos && i < infos->len; i++) {
    const DrCertInfo *info = infos->pdata[i];
    g_autofree char *late = dr_cert_time_problem(info->from, info->until);

    json_array_add_object_element(all, dr_pki_cert_json(file, info, i == 0 && problem ? problem : late));
  }
  return infos != NULL;
}

/* One of a directory, if it is there, held against its key and its CA. */
static gboolean
add_checked(JsonArray *all, const char *file, DrCertUse use, const char *key, const char *ca, const char *crl,
            GError **error)
{
  g_autofree char *problem = NULL;

  if (access(file, F_OK) < 0)
    return TRUE;
  problem = dr_cert_problem(file, use, key, ca, crl);
  if (!problem)
    problem = mode_problem(key);
  return add_file(all, file, problem, error);
}

static gboolean
add_directory(JsonArray *all, const char *dir, GError **error)
{
  g_autoptr(DrPkiPaths) paths = dr_pki_layout(dir);
  g_autofree char *ca_key = g_build_filename(dir, "ca-key.pem", NULL);
  const char *own = access(ca_key, F_OK) == 0 ? ca_key : NULL;
  const char *crl = access(paths->crl, F_OK) == 0 ? paths->crl : NULL;

  if (!add_checked(all, paths->ca, DR_CERT_CA, own, NULL, NULL, error) ||
      !add_checked(all, paths->server_cert, DR_CERT_SERVER, paths->server_key, paths->ca, crl, error) ||
      !add_checked(all, paths->client_cert, DR_CERT_CLIENT, paths->client_key, paths->ca, crl, error))
    return FALSE;
  if (json_array_get_length(all) > 0)
    return TRUE;
  dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no certificate in '%s'", dir);
  return dr_error_remedy(
      error, "name a directory with ca-cert.pem, server-cert.pem or client-cert.pem (or libvirt's "
             "names for them), or a file");
}

/* --- Telling --- */

static void
print_list(const char *title, JsonArray *array)
{
  g_auto(GStrv) words = dr_json_strv(array);
  g_autofree char *text = words ? g_strjoinv(", ", words) : NULL;

  if (text && *text)
    printf("  %-8s %s\n", title, text);
}

static void
print_time(JsonObject *cert)
{
  gint64 until = dr_json_int(cert, "until_ms", 0) / 1000;
  gint64 left = (until - g_get_real_time() / G_USEC_PER_SEC) / DAY_S;
  g_autofree char *begin = dr_pki_date(dr_json_int(cert, "from_ms", 0) / 1000);
  g_autofree char *end = dr_pki_date(until);

  printf("  %-8s %s to %s", "valid", begin, end);
  if (left >= 0)
    printf(", %d days left", (int)left);
  putchar('\n');
}

static void
print_cert(JsonObject *cert)
{
  printf("%s\n", dr_json_str(cert, "file", "?"));
  printf("  %-8s %s\n", "subject", dr_json_str(cert, "subject", "?"));
  print_list("names", dr_json_arr(cert, "names"));
  print_list("for", dr_json_arr(cert, "for"));
  printf("  %-8s %s\n", "issuer", dr_json_str(cert, "issuer", "?"));
  print_time(cert);
  printf("  %-8s %s\n", "key", dr_json_str(cert, "key", "?"));
  printf("  %-8s %s\n", "key id", dr_json_str(cert, "key_id", "?"));
  if (dr_json_str(cert, "problem", NULL))
    printf("  %-8s %s\n", "PROBLEM", dr_json_str(cert, "problem", NULL));
}

static int
print_all(const DrCli *cli, JsonArray *all)
{
  int code = DR_EXIT_DONE;

  for (guint i = 0; i < json_array_get_length(all); i++) {
    JsonObject *cert = json_array_get_object_element(all, i);

    if (dr_json_str(cert, "problem", NULL))
      code = DR_EXIT_FAILED;
    if (!cli->json)
      print_cert(cert);
  }
  if (cli->json) {
    g_autoptr(JsonNode) node = json_node_new(JSON_NODE_ARRAY);

    json_node_set_array(node, all);
    dr_cli_print_json(node);
  }
  return code;
}

int
dr_pki_show(DrCli *cli, const void *unused)
{
  const char *path = cli->words[0];
  g_autoptr(JsonArray) all = json_array_new();
  g_autoptr(GError) error = NULL;

  if (g_file_test(path, G_FILE_TEST_IS_DIR) ? add_directory(all, path, &error)
                                            : add_file(all, path, NULL, &error))
    return print_all(cli, all);
  dr_error_not_the_words(&error); /* a file's words are not the command's */
  return dr_cli_fail(cli, error);
}
