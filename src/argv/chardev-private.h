/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the two halves of the character device parser share. For chardev*.c only. */
#pragma once
#include "argv/chardev.h"

/* A struct with QEMU's defaults for that backend; NULL leaves the kind to the caller. */
DrChardev *dr_chardev_new(const char *backend);

/* Takes over -chardev keys, from a -chardev or from what follows "unix:PATH," and the like. chardev->backend
 * is set. */
gboolean dr_chardev_take_opts(DrChardev *chardev, const DrOpts *opts, GError **error);

/* The value of an option that takes a short form. `takes_none`: whether "none" is one. */
DrChardev *dr_chardev_parse_short(const char *value, gboolean takes_none, GError **error);
