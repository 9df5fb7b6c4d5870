/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where a QEMU finds the firmware that nobody named. */
#pragma once
#include <glib.h>

/* The file that a QEMU loads for the firmware `name` ("bios-microvm.bin"), as its own list of directories has it (-L help,
 * 5.2 to 11.1; it costs a start of the program, some 20 ms). `words`: the program, an absolute path first, with what launches
 * it and its -L options. *ret_size: bytes. NULL: none, or the program does not say. (transfer full) (nullable) */
char *dr_firmware_find(const char *const *words, char *const *envp, const char *name, guint64 *ret_size);
