/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where keys and certificates are, and pins. */
#include "base/error.h"
#include "net/pki-internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define LIBVIRT_ROOT "/etc/pki"
#define OUR_ROOT "/etc/drover"
#define MAX_PINS 4
#define KEY_ID_DIGITS 64

/* In the order of DrPkiPaths. */
enum { CA, SERVER_CERT, SERVER_KEY, CLIENT_CERT, CLIENT_KEY, CRL, N_FILES };

static const char *const qemu_layout[N_FILES] = { "ca-cert.pem",     "server-cert.pem", "server-key.pem",
                                                  "client-cert.pem", "client-key.pem",  "ca-crl.pem" };
static const char *const libvirt_layout[N_FILES] = {
  "CA/cacert.pem",          "libvirt/servercert.pem",        "libvirt/private/serverkey.pem",
  "libvirt/clientcert.pem", "libvirt/private/clientkey.pem", "CA/cacrl.pem"
};
static const char *const flat_layout[N_FILES] = { "cacert.pem",     "servercert.pem", "serverkey.pem",
                                                  "clientcert.pem", "clientkey.pem",  "cacrl.pem" };

void
dr_pki_paths_free(DrPkiPaths *paths)
{
  if (!paths)
    return;
  g_free(paths->ca);
  g_free(paths->server_cert);
  g_free(paths->server_key);
  g_free(paths->client_cert);
  g_free(paths->client_key);
  g_free(paths->crl);
  g_free(paths);
}

static gboolean
is_there(const char *dir, const char *name)
{
  g_autofree char *path = g_build_filename(dir, name, NULL);

  return access(path, F_OK) == 0;
}

/* By its CA. A directory with none is QEMU's: that is what drover pki issue makes. */
static const char *const *
layout_of(const char *dir)
{
  if (is_there(dir, qemu_layout[CA]))
    return qemu_layout;
  if (is_there(dir, libvirt_layout[CA]))
    return libvirt_layout;
  return is_there(dir, flat_layout[CA]) ? flat_layout : qemu_layout;
}

char *
dr_pki_default_dir(const char *what)
{
  return geteuid() == 0 ? g_build_filename(OUR_ROOT, what, NULL)
                        : g_build_filename(g_get_user_config_dir(), "drover", what, NULL);
}

DrPkiPaths *
dr_pki_layout(const char *dir)
{
  const char *root = dir ? dir : LIBVIRT_ROOT;
  const char *const *names = dir ? layout_of(dir) : libvirt_layout;
  DrPkiPaths *paths = g_new0(DrPkiPaths, 1);

  paths->ca = g_build_filename(root, names[CA], NULL);
  paths->server_cert = g_build_filename(root, names[SERVER_CERT], NULL);
  paths->server_key = g_build_filename(root, names[SERVER_KEY], NULL);
  paths->client_cert = g_build_filename(root, names[CLIENT_CERT], NULL);
  paths->client_key = g_build_filename(root, names[CLIENT_KEY], NULL);
  paths->crl = g_build_filename(root, names[CRL], NULL);
  return paths;
}

static void
note_unreadable(const char *path, GString *missing)
{
  if (access(path, R_OK) == 0)
    return;
  g_string_append_printf(missing, "%s'%s' (%s)", missing->len ? ", " : "", path,
                         errno == ENOENT ? "missing" : g_strerror(errno));
}

DrPkiPaths *
dr_pki_find(const char *dir, const char *crl, GError **error)
{
  g_autoptr(DrPkiPaths) paths = dr_pki_layout(dir);
  g_autoptr(GString) missing = g_string_new(NULL);

  note_unreadable(paths->ca, missing);
  note_unreadable(paths->server_cert, missing);
  note_unreadable(paths->server_key, missing);
  note_unreadable(paths->client_cert, missing);
  note_unreadable(paths->client_key, missing);
  if (crl) {
    g_free(paths->crl);
    paths->crl = g_strdup(crl);
    note_unreadable(paths->crl, missing);
  } else if (access(paths->crl, F_OK) < 0 && errno == ENOENT) {
    g_clear_pointer(&paths->crl, g_free);
  } else { /* one that is there and cannot be read must not be passed over */
    note_unreadable(paths->crl, missing);
  }
  if (missing->len == 0)
    return g_steal_pointer(&paths);
  dr_error_set(error, DR_ERROR_NOT_FOUND, "cannot read the keys and certificates of this host: %s",
               missing->str);
  dr_error_remedy(error, "make them where the CA is (drover pki issue HOST) and copy the directory to '%s'",
                  dir ? dir : "the directory that [tls] dir= names");
  return NULL;
}

static gboolean
check_one(const DrPkiPaths *paths, const char *file, const char *key, DrCertUse use, GError **error)
{
  g_autofree char *problem = dr_cert_problem(file, use, key, paths->ca, paths->crl);

  return !problem || dr_error_set(error, DR_ERROR_INVALID, "certificate '%s': %s", file, problem);
}

gboolean
dr_pki_check(const DrPkiPaths *paths, GError **error)
{
  if (check_one(paths, paths->server_cert, paths->server_key, DR_CERT_SERVER, error) &&
      check_one(paths, paths->client_cert, paths->client_key, DR_CERT_CLIENT, error))
    return TRUE;
  return dr_error_remedy(error,
                         "look at it with drover pki show, and make a new one where the CA is: drover pki "
                         "issue HOST --force");
}

/* --- Pins --- */

/* Without "sha256:" and colons, in lower case; NULL where that is no key id. (transfer full) */
static char *
parse_key_id(const char *text)
{
  g_autofree char *trimmed = g_strstrip(g_ascii_strdown(text, -1));
  const char *digits = g_str_has_prefix(trimmed, "sha256:") ? trimmed + strlen("sha256:") : trimmed;
  g_autoptr(GString) id = g_string_new(NULL);

  for (; *digits; digits++) {
    if (*digits == ':' && id->len > 0 && id->len % 2 == 0 && g_ascii_isxdigit(digits[1]))
      continue;
    if (!g_ascii_isxdigit(*digits) || id->len == KEY_ID_DIGITS)
      return NULL;
    g_string_append_c(id, *digits);
  }
  return id->len == KEY_ID_DIGITS ? g_string_free(g_steal_pointer(&id), FALSE) : NULL;
}

char *
dr_pin_parse(const char *text, GError **error)
{
  g_auto(GStrv) words = g_strsplit(text, ",", MAX_PINS + 1);
  guint n = g_strv_length(words);
  gboolean good = n >= 1 && n <= MAX_PINS;

  for (guint i = 0; i < n && good; i++) {
    char *id = parse_key_id(words[i]);

    good = id != NULL;
    if (good) {
      g_free(words[i]);
      words[i] = id;
    }
  }
  if (good)
    return g_strjoinv(",", words);
  dr_error_set(error, DR_ERROR_INVALID,
               "the pin is not 1 to %d key ids of %d hex digits each, with commas between", MAX_PINS,
               KEY_ID_DIGITS);
  dr_error_remedy(error, "drover pki show FILE prints the key id of a certificate");
  return NULL;
}

gboolean
dr_pin_matches(const char *pin, const char *key_id)
{
  g_auto(GStrv) ids = g_strsplit(pin, ",", -1);

  return g_strv_contains((const char *const *)ids, key_id);
}
