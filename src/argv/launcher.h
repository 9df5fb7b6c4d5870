/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where the launcher's words end and QEMU begins. For argv.c only. */
#pragma once
#include <glib.h>

/* The index of the program in NULL-terminated `words` (at least one).
 * Returns: FALSE with DR_ERROR_INVALID if a launcher has nothing behind it. */
gboolean dr_launcher_find_program(const char *const *words, guint *ret_index, GError **error);
