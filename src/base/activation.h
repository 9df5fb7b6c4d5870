/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sockets that systemd has opened for us and listens on while we are away: sd_listen_fds(3) without its library. */
#pragma once
#include <glib.h>

#define DR_ACTIVATION_FIRST 3 /* SD_LISTEN_FDS_START */

/* Takes LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES out of the environment and notes which descriptors from `first` on are ours; they are
 * close-on-exec then. What is not meant for this process is left alone. Call it before the first thread. */
void dr_activation_init(int first);

/* The listening stream socket that is bound to `path`, as it came (the caller's to close), or -1. With *error: INVALID, sockets were handed
 * down and none of them is that; without one: none was handed down, or it was taken before. */
int dr_activation_take(const char *path, GError **error);
