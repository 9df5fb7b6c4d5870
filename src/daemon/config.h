/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* droverd's options: a file, then the command line over it. */
#pragma once
#include <glib.h>

typedef struct {
  char *run_dir;   /* default /run/drover, or XDG_RUNTIME_DIR/drover when not root */
  char *state_dir; /* default /var/lib/drover, or XDG_STATE_HOME/drover */
  gboolean debug;
  gboolean version;
} DrConfig;

/* Errors name the file, group and key. An unknown key is an error: a typing mistake must not pass in silence. */
gboolean dr_config_load(DrConfig *config, int *argc, char ***argv, GError **error);
void dr_config_clear(DrConfig *config);
