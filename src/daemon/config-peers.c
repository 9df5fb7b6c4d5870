/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The configuration of what passes between hosts: [listen], [tls], [peers], [qemu]; and what it allows. */
#include "base/address.h"
#include "base/error.h"
#include "daemon/config-internal.h"
#include "net/pki.h"

#include <fnmatch.h>
#include <string.h>

#define DEFAULT_BINARIES "/usr/bin/qemu-system-*", "/usr/libexec/qemu-kvm", "/usr/bin/kvm"
#define MAX_ENTRIES 1000 /* of a list */

/* --- Reading values --- */

gboolean
dr_config_wrong(const DrConfigFile *file, const char *group, const char *key, const char *text,
                GError **error)
{
  return dr_error_set(error, DR_ERROR_INVALID, "'%s': %s in [%s]: %s", file->path, key, group, text);
}

gboolean
dr_config_text(const DrConfigFile *file, const char *group, const char *key, char **ret_text, GError **error)
{
  g_autoptr(GError) local = NULL;

  if (!g_key_file_has_key(file->keys, group, key, NULL))
    return TRUE;
  *ret_text = g_key_file_get_string(file->keys, group, key, &local);
  if (!*ret_text)
    return dr_config_wrong(file, group, key, local->message, error);
  return **ret_text || dr_config_wrong(file, group, key, "it is empty", error);
}

static gboolean
read_path(const DrConfigFile *file, const char *group, const char *key, char **ret_path, GError **error)
{
  if (!dr_config_text(file, group, key, ret_path, error))
    return FALSE;
  return !*ret_path || g_path_is_absolute(*ret_path) ||
         dr_config_wrong(file, group, key, "it is not an absolute path", error);
}

static gboolean
read_flag(const DrConfigFile *file, const char *group, const char *key, gboolean *ret_flag, GError **error)
{
  g_autoptr(GError) local = NULL;

  if (!g_key_file_has_key(file->keys, group, key, NULL))
    return TRUE;
  *ret_flag = g_key_file_get_boolean(file->keys, group, key, &local);
  return !local || dr_config_wrong(file, group, key, "it is neither true nor false", error);
}

/* An empty list is refused: it might be meant as "none" or as "the default". */
gboolean
dr_config_list(const DrConfigFile *file, const char *group, const char *key, char ***ret_list, GError **error)
{
  g_auto(GStrv) list = NULL;
  g_autoptr(GError) local = NULL;

  if (!g_key_file_has_key(file->keys, group, key, NULL))
    return TRUE;
  list = g_key_file_get_string_list(file->keys, group, key, NULL, &local);
  if (!list)
    return dr_config_wrong(file, group, key, local->message, error);
  if (!*list || g_strv_length(list) > MAX_ENTRIES)
    return dr_config_wrong(file, group, key,
                           *list ? "it has more than " G_STRINGIFY(MAX_ENTRIES) " entries" : "it is empty",
                           error);
  for (char **entry = list; *entry; entry++)
    if (!*g_strstrip(*entry))
      return dr_config_wrong(file, group, key, "an entry is empty", error);
  g_strfreev(*ret_list);
  *ret_list = g_steal_pointer(&list);
  return TRUE;
}

/* --- The groups --- */

gboolean
dr_config_port(const DrConfigFile *file, const char *group, char **ret_address, guint16 *ret_port,
               GError **error)
{
  g_autofree char *port = NULL;
  guint64 number = 0;
  guint8 bytes[16];

  if (!dr_config_text(file, group, "address", ret_address, error) ||
      !dr_config_text(file, group, "port", &port, error))
    return FALSE;
  if (*ret_address && !dr_host_ip(*ret_address, bytes))
    return dr_config_wrong(file, group, "address", "it is not an IP address", error);
  if (port && !g_ascii_string_to_unsigned(port, 10, 0, 65535, &number, NULL))
    return dr_config_wrong(file, group, "port", "it is not 0 to 65535", error);
  *ret_port = (guint16)number;
  return !*ret_address || port ||
         dr_config_wrong(file, group, "address", "there is no port with it, so that droverd would not listen",
                         error);
}

static gboolean
read_tls(DrConfig *config, const DrConfigFile *file, GError **error)
{
  if (!read_path(file, "tls", "dir", &config->tls_dir, error) ||
      !read_path(file, "tls", "crl", &config->tls_crl, error) ||
      !read_flag(file, "tls", "libvirt", &config->tls_libvirt, error))
    return FALSE;
  return !config->tls_dir || !config->tls_libvirt ||
         dr_config_wrong(file, "tls", "libvirt", "there is a dir as well", error);
}

static gboolean
is_pattern(const char *text)
{
  return !text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-*?[]!")];
}

gboolean
dr_config_patterns(const DrConfigFile *file, const char *group, const char *key, char ***ret_list,
                   GError **error)
{
  if (!dr_config_list(file, group, key, ret_list, error))
    return FALSE;
  for (char **entry = *ret_list; entry && *entry; entry++) {
    g_autofree char *text = NULL;

    if (is_pattern(*entry))
      continue;
    text = g_strdup_printf("'%s' is no pattern of a name", *entry);
    return dr_config_wrong(file, group, key, text, error);
  }
  return TRUE;
}

/* "NAME=HEX": a key id has colons as some write it, and so does an IPv6 address. */
static gboolean
add_pin(DrConfig *config, const DrConfigFile *file, const char *entry, GError **error)
{
  const char *equals = strchr(entry, '=');
  g_autofree char *host = equals ? g_strstrip(g_strndup(entry, (gsize)(equals - entry))) : NULL;
  g_autofree char *pin = NULL;
  g_autofree char *name = NULL;
  g_autofree char *text = g_strdup_printf("'%.80s' is not NAME=KEYID", entry);

  if (!host || !dr_host_check(host, NULL) || !(pin = dr_pin_parse(equals + 1, NULL)))
    return dr_config_wrong(file, "peers", "pins", text, error) ||
           dr_error_remedy(error, "drover pki show FILE prints a certificate's key id");
  name = dr_host_normal(host);
  if (g_hash_table_contains(config->peers_pins, name))
    return dr_config_wrong(file, "peers", "pins",
                           "a name is there twice; several key ids of one have commas between", error);
  g_hash_table_insert(config->peers_pins, g_steal_pointer(&name), g_steal_pointer(&pin));
  return TRUE;
}

static gboolean
read_pins(DrConfig *config, const DrConfigFile *file, GError **error)
{
  g_auto(GStrv) pins = NULL;

  if (!dr_config_list(file, "peers", "pins", &pins, error))
    return FALSE;
  for (char **pin = pins; pin && *pin; pin++)
    if (!add_pin(config, file, *pin, error))
      return FALSE;
  return TRUE;
}

DrTransports
dr_config_transport(const char *name)
{
  static const char *const names[] = { "tunnel", "plain", "handoff" };

  for (guint i = 0; i < G_N_ELEMENTS(names); i++)
    if (g_str_equal(names[i], name))
      return 1 << i;
  return 0;
}

static gboolean
read_transports(DrConfig *config, const DrConfigFile *file, GError **error)
{
  g_auto(GStrv) names = NULL;

  if (!dr_config_list(file, "peers", "transports", &names, error))
    return FALSE;
  for (char **name = names; name && *name; name++) {
    g_autofree char *text = g_strdup_printf("'%.80s' is none of tunnel, plain and handoff", *name);

    if (!dr_config_transport(*name))
      return dr_config_wrong(file, "peers", "transports", text, error);
    config->transports |= dr_config_transport(*name);
  }
  return TRUE;
}

static gboolean
is_canonical(const char *path)
{
  g_autofree char *canonical = g_path_is_absolute(path) ? g_canonicalize_filename(path, "/") : NULL;

  return canonical && g_str_equal(canonical, path);
}

static gboolean
read_binaries(DrConfig *config, const DrConfigFile *file, GError **error)
{
  if (!dr_config_list(file, "qemu", "binaries", &config->qemu_binaries, error))
    return FALSE;
  for (char **entry = config->qemu_binaries; entry && *entry; entry++) {
    g_autofree char *text = NULL;

    if (is_canonical(*entry))
      continue;
    text = g_strdup_printf("'%s' is not an absolute path without '.', '..' and '//'", *entry);
    return dr_config_wrong(file, "qemu", "binaries", text, error);
  }
  return TRUE;
}

gboolean
dr_config_read_peers(DrConfig *config, const DrConfigFile *file, GError **error)
{
  return dr_config_port(file, "listen", &config->listen_address, &config->listen_port, error) &&
         read_tls(config, file, error) &&
         dr_config_patterns(file, "peers", "allow", &config->peers_allow, error) &&
         read_pins(config, file, error) && read_transports(config, file, error) &&
         read_binaries(config, file, error);
}

void
dr_config_peers_defaults(DrConfig *config)
{
  static const char *const binaries[] = { DEFAULT_BINARIES, NULL };

  if (!config->tls_dir && !config->tls_libvirt)
    config->tls_dir = dr_pki_default_dir("tls");
  if (!config->transports)
    config->transports = DR_TRANSPORT_TUNNEL;
  if (!config->qemu_binaries)
    config->qemu_binaries = g_strdupv((char **)binaries);
}

/* --- What it allows --- */

gboolean
dr_config_allows_peer(const DrConfig *config, const char *const *names)
{
  for (char **pattern = config->peers_allow; pattern && *pattern; pattern++)
    for (const char *const *name = names; *name; name++)
      if (fnmatch(*pattern, *name, FNM_CASEFOLD | FNM_NOESCAPE) == 0)
        return TRUE;
  return FALSE;
}

const char *
dr_config_pin_of(const DrConfig *config, const char *const *names)
{
  for (const char *const *name = names; *name; name++) {
    g_autofree char *normal = dr_host_normal(*name);
    const char *pin = g_hash_table_lookup(config->peers_pins, normal);

    if (pin)
      return pin;
  }
  return NULL;
}

gboolean
dr_config_allows_binary(const DrConfig *config, const char *path)
{
  if (!is_canonical(path))
    return FALSE;
  for (char **pattern = config->qemu_binaries; *pattern; pattern++)
    if (fnmatch(*pattern, path, FNM_PATHNAME | FNM_PERIOD) == 0)
      return TRUE;
  return FALSE;
}
