/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A run: check, stop libvirt's daemon, move each domain, patch libvirt's files, start the daemon, look whether it sees what is. */
#pragma once
#include "base/json.h"

typedef struct {
  const char *dir, *run_dir, *cache_dir;
} DrLibvirtDirs;

/* spec: request.h's. check: {"uri","domains": [report…]}. (transfer full)
 * upgrade, recover: the journal has the result; FALSE with an error that is the run's, not a domain's. */
JsonObject *dr_libvirt_run_check(const DrLibvirtDirs *dirs, JsonObject *spec, GError **error);
gboolean dr_libvirt_run_upgrade(const DrLibvirtDirs *dirs, JsonObject *spec, GError **error);
gboolean dr_libvirt_run_recover(const DrLibvirtDirs *dirs, GError **error);
