/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One line a message on stderr, which systemd or a file takes. GLib's g_warning() and friends end there too. */
#pragma once
#include <glib.h>

/* Makes g_message(), g_warning(), g_debug() of this process print `HH:MM:SS.mmm LEVEL text`; debug only when
 * `debug` is set. Where stderr is the journal's: `<PRIORITY>text`. Call once, first. */
void dr_log_init(gboolean debug);
