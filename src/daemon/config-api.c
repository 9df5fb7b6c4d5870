/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The configuration of who may use the API: [api]. */
#include "base/error.h"
#include "daemon/config-internal.h"

/* Nobody may come in over TCP who was not named: a certificate of the CA alone, as each peer has one, is not enough to rule over all VMs of
 * this host. */
static gboolean
check_names(const DrConfig *config, const DrConfigFile *file, GError **error)
{
  gboolean named = config->api_clients || config->api_readers;

  if (named == (config->api_port != 0))
    return TRUE;
  if (named)
    return dr_config_wrong(file, "api", config->api_clients ? "clients" : "readers",
                           "there is no port with it, so that they could not connect", error);
  dr_config_wrong(file, "api", "port",
                  "there is neither clients= nor readers= with it, so that nobody could connect", error);
  return dr_error_remedy(error, "name those who may, as their certificates do: clients=NAME;…");
}

gboolean
dr_config_read_api(DrConfig *config, const DrConfigFile *file, GError **error)
{
  return dr_config_port(file, "api", &config->api_address, &config->api_port, error) &&
         dr_config_patterns(file, "api", "clients", &config->api_clients, error) &&
         dr_config_patterns(file, "api", "readers", &config->api_readers, error) &&
         dr_config_text(file, "api", "read-group", &config->api_read_group, error) &&
         dr_config_text(file, "api", "operate-group", &config->api_operate_group, error) &&
         check_names(config, file, error);
}
