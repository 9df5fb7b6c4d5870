/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opens the user's browser, where there is a desktop. */
#pragma once
#include <glib.h>

/* Returns: (transfer full) (nullable): the file that leads there, for dr_ui_browser_forget(); NULL where nothing was opened. */
char *dr_ui_browser_open(const char *url);
/* Removes it; consumes nothing. `path` may be NULL. */
void dr_ui_browser_forget(const char *path);
