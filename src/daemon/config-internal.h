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

/* What the file did not say. */
void dr_config_peers_defaults(DrConfig *config);
