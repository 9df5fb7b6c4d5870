/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which versions matter, for the check of a run and for drover doctor. Nothing of libvirt's is linked here. */
#pragma once
#include <glib.h>

/* Of libvirt, as it counts itself: major * 1000000 + minor * 1000 + micro. Whether drover was tried on its files. */
gboolean dr_libvirt_is_tested(unsigned long version);
#define DR_LIBVIRT_TESTED "9.0, 11.3, 12.8" /* in words; dr_libvirt_is_tested() has them as numbers */

/* "9.0.0" as such a number; 0: it is none. */
unsigned long dr_libvirt_version_number(const char *text);

/* Whether a QEMU ("7.2.22") sends a memory-backend-memfd although x-ignore-shared is on: it is left out of the stream only before QEMU 8.1
 * (job/preflight.c). NULL: not known, and taken for one that does not. */
gboolean dr_qemu_sends_memfd(const char *version);
