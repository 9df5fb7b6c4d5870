/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest comes before its disks, and one of them is of a format that cannot stand on another image: until all of it is here the guest
 * runs on a qcow2 overlay beside it. */
#pragma once
#include "argv/argv.h"
#include "base/json.h"

/* Has the command line open the overlays. `later`: as dr_disk_fetch_list(). Errors: UNSUPPORTED for an image that is named in a way that
 * has no place for a format. */
gboolean dr_arrival_overlay_argv(DrArgv *argv, JsonArray *later, const char *cwd, GError **error);
