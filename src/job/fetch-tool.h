/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Making an overlay whole whose QEMU has ended, by qemu-img. */
#pragma once
#include "qemu/tool.h"

/* An overlay that is the image itself (`overlay` and `path` the same) is rebased to no backing image; one beside it is written into the
 * image, of `format`. `secret` (nullable): the id of the overlay's, and the "-object secret,…" word of it. (transfer full) */
DrTool *dr_fetch_tool_start(const char *overlay, const char *path, const char *format, const char *secret,
                            const char *object, GError **error);
/* Whatever was written to `path` is on its disk when this returns. */
gboolean dr_fetch_tool_sync(const char *path, GError **error);
