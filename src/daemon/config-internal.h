/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the configuration share. */
#pragma once
#include "daemon/config.h"

typedef struct {
  GKeyFile *keys;
  const char *path; /* for messages */
} DrConfigFile;

/* [listen], [tls], [peers] and [qemu], whose keys are known to be right in name. config->peers_pins is there. */
gboolean dr_config_read_peers(DrConfig *config, const DrConfigFile *file, GError **error);

/* [api] */
gboolean dr_config_read_api(DrConfig *config, const DrConfigFile *file, GError **error);

/* Values. *ret stays as it is where the key is not there. A list has ';' between its entries; patterns are those of names. port:
 * address= and port=, which go together. wrong: FALSE with the error set. */
gboolean dr_config_text(const DrConfigFile *file, const char *group, const char *key, char **ret_text,
                        GError **error);
gboolean dr_config_list(const DrConfigFile *file, const char *group, const char *key, char ***ret_list,
                        GError **error);
gboolean dr_config_patterns(const DrConfigFile *file, const char *group, const char *key, char ***ret_list,
                            GError **error);
gboolean dr_config_port(const DrConfigFile *file, const char *group, char **ret_address, guint16 *ret_port,
                        GError **error);
gboolean dr_config_wrong(const DrConfigFile *file, const char *group, const char *key, const char *text,
                         GError **error);

/* What the file did not say. */
void dr_config_peers_defaults(DrConfig *config);
