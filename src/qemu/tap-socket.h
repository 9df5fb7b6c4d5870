/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sockets in the network namespace of a tap: a socket belongs to the namespace that it was made in. */
#pragma once
#include <glib.h>

/* Like socket(2) there, close-on-exec. `tap_fd`: a descriptor of the tap. -1: it cannot be had. */
int dr_tap_socket(int tap_fd, int domain, int type);
