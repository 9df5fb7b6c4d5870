/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Asking a QEMU binary what it can do; for caps.c. */
#pragma once
#include "qemu/caps.h"

/* Fills all of `caps` but `binary`, which is given, and `kvm`. The errors are those of dr_caps_get(). */
gboolean dr_caps_probe(DrCaps *caps, GError **error);

/* An empty set of strings; an empty table from strings to strings. */
GHashTable *dr_caps_set_new(void);
GHashTable *dr_caps_table_new(void);
