/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QEMU's programs beside the emulator (qemu-img), run to their end. */
#pragma once
#include <glib.h>

/* Runs argv[0], found in PATH, without a shell and with nothing to read; it is killed at the deadline, and with the calling
 * thread. Returns: (transfer full): what it wrote to stdout, at most `max` bytes. Errors: NOT_FOUND: there is no such program;
 * TIMEOUT; IO with the last line of what it wrote to stderr. */
char *dr_tool_run(const char *const *argv, gsize max, int timeout_ms, GError **error);

/* The same for one that may take days: it is started, and looked at now and then. free: kills it, if it still runs. */
typedef struct DrTool DrTool;
DrTool *dr_tool_start(const char *const *argv, GError **error);
int dr_tool_fd(const DrTool *tool);                 /* readable once it has ended */
gboolean dr_tool_end(DrTool *tool, GError **error); /* it has ended: well? */
void dr_tool_free(DrTool *tool);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrTool, dr_tool_free)
