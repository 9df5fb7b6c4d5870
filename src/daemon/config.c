/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading the configuration: GKeyFile and GOption. */
#include "base/error.h"
#include "daemon/config-internal.h"

#include <unistd.h>

#define SYSTEM_FILE "/etc/drover/droverd.conf"
#define SYSTEM_RUN "/run/drover"
#define SYSTEM_STATE "/var/lib/drover"

static void
set_defaults(DrConfig *config)
{
  gboolean root = geteuid() == 0;

  if (!config->run_dir)
    config->run_dir =
        root ? g_strdup(SYSTEM_RUN) : g_build_filename(g_get_user_runtime_dir(), "drover", NULL);
  if (!config->state_dir)
    config->state_dir =
        root ? g_strdup(SYSTEM_STATE) : g_build_filename(g_get_user_state_dir(), "drover", NULL);
  dr_config_peers_defaults(config);
}

/* Group, then key. */
static const char *const known[][2] = {
  { "daemon", "run-dir" }, { "daemon", "state-dir" },  { "daemon", "debug" },     { "listen", "address" },
  { "listen", "port" },    { "tls", "dir" },           { "tls", "libvirt" },      { "tls", "crl" },
  { "peers", "allow" },    { "peers", "pins" },        { "peers", "transports" }, { "qemu", "binaries" },
  { "api", "address" },    { "api", "port" },          { "api", "clients" },      { "api", "readers" },
  { "api", "read-group" }, { "api", "operate-group" },
};

/* `key` NULL: any of the group. */
static gboolean
is_known(const char *group, const char *key)
{
  for (guint i = 0; i < G_N_ELEMENTS(known); i++)
    if (g_str_equal(known[i][0], group) && (!key || g_str_equal(known[i][1], key)))
      return TRUE;
  return FALSE;
}

static gboolean
check_keys(GKeyFile *file, const char *path, GError **error)
{
  g_auto(GStrv) groups = g_key_file_get_groups(file, NULL);

  for (char **group = groups; *group; group++) {
    g_auto(GStrv) keys = g_key_file_get_keys(file, *group, NULL, NULL);

    if (!is_known(*group, NULL))
      return dr_error_set(
          error, DR_ERROR_INVALID,
          "'%s': there is no group [%s], only [daemon], [listen], [tls], [peers], [qemu] and [api]", path,
          *group);
    for (char **key = keys; *key; key++)
      if (!is_known(*group, *key))
        return dr_error_set(error, DR_ERROR_INVALID, "'%s': unknown key '%s' in [%s]", path, *key, *group);
  }
  return TRUE;
}

/* A directory of the file, unless the command line has given it. */
static gboolean
read_dir(GKeyFile *file, const char *path, const char *key, char **dir, GError **error)
{
  g_autoptr(GError) local = NULL;

  if (*dir || !g_key_file_has_key(file, "daemon", key, NULL))
    return TRUE;
  *dir = g_key_file_get_string(file, "daemon", key, &local);
  return *dir || dr_error_set(error, DR_ERROR_INVALID, "'%s': cannot read %s: %s", path, key, local->message);
}

static gboolean
read_file(DrConfig *config, const char *path, GError **error)
{
  g_autoptr(GKeyFile) file = g_key_file_new();
  const DrConfigFile all = { .keys = file, .path = path };
  g_autoptr(GError) local = NULL;

  if (!g_key_file_load_from_file(file, path, G_KEY_FILE_NONE, &local))
    return dr_error_set(error, DR_ERROR_INVALID, "cannot read configuration '%s': %s", path, local->message);
  if (!check_keys(file, path, error))
    return FALSE;
  if (!read_dir(file, path, "run-dir", &config->run_dir, error) ||
      !read_dir(file, path, "state-dir", &config->state_dir, error))
    return FALSE;
  if (g_key_file_has_key(file, "daemon", "debug", NULL)) {
    config->debug |= g_key_file_get_boolean(file, "daemon", "debug", &local);
    if (local)
      return dr_error_set(error, DR_ERROR_INVALID, "'%s': debug is neither true nor false", path);
  }
  return dr_config_read_peers(config, &all, error) && dr_config_read_api(config, &all, error);
}

static gboolean
is_usable(const char *what, const char *path, GError **error)
{
  return g_path_is_absolute(path) ||
         dr_error_set(error, DR_ERROR_INVALID, "the %s directory '%s' is not an absolute path", what, path);
}

gboolean
dr_config_load(DrConfig *config, int *argc, char ***argv, GError **error)
{
  g_autofree char *path = NULL;
  const GOptionEntry entries[] = {
    { "config", 'c', 0, G_OPTION_ARG_FILENAME, &path,
      "configuration (default " SYSTEM_FILE ", if it is there)", "FILE" },
    { "run-dir", 0, 0, G_OPTION_ARG_FILENAME, &config->run_dir,
      "where sockets live (default " SYSTEM_RUN ", for a user $XDG_RUNTIME_DIR/drover)", "DIR" },
    { "state-dir", 0, 0, G_OPTION_ARG_FILENAME, &config->state_dir,
      "where records and logs live (default " SYSTEM_STATE ", for a user $XDG_STATE_HOME/drover)", "DIR" },
    { "debug", 0, 0, G_OPTION_ARG_NONE, &config->debug, "log more", NULL },
    { "version", 0, 0, G_OPTION_ARG_NONE, &config->version, "print the version", NULL },
    G_OPTION_ENTRY_NULL,
  };
  g_autoptr(GOptionContext) context = g_option_context_new("- looks after the running QEMUs of this host");
  g_autoptr(GError) local = NULL;

  config->peers_pins = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
  g_option_context_add_main_entries(context, entries, NULL);
  if (!g_option_context_parse(context, argc, argv, &local))
    dr_error_set(error, DR_ERROR_INVALID, "%s", local->message);
  else if (*argc > 1)
    dr_error_set(error, DR_ERROR_INVALID, "unexpected argument '%s'", (*argv)[1]);
  if (local || *argc > 1)
    return dr_error_remedy(error, "droverd --help shows its options");
  if (path || (geteuid() == 0 && g_file_test(SYSTEM_FILE, G_FILE_TEST_EXISTS)))
    if (!read_file(config, path ? path : SYSTEM_FILE, error))
      return FALSE;
  set_defaults(config);
  return is_usable("run", config->run_dir, error) && is_usable("state", config->state_dir, error);
}

void
dr_config_clear(DrConfig *config)
{
  g_free(config->run_dir);
  g_free(config->state_dir);
  g_free(config->listen_address);
  g_free(config->tls_dir);
  g_free(config->tls_crl);
  g_strfreev(config->peers_allow);
  g_clear_pointer(&config->peers_pins, g_hash_table_unref);
  g_strfreev(config->qemu_binaries);
  g_free(config->api_address);
  g_strfreev(config->api_clients);
  g_strfreev(config->api_readers);
  g_free(config->api_read_group);
  g_free(config->api_operate_group);
}
