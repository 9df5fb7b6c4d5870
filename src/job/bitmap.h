/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Dirty bitmaps of a running VM's disks. QEMU keeps them, and puts the persistent ones into the images itself. */
#pragma once
#include "job/disk.h"

/* All bitmaps with names, of the disk's image and of those that it stands on: [{"disk","file","node","top": is it the image that the guest
 * writes to, … and what a bitmap has (docs/API.md)}]. `disk` NULL: of all disks. (transfer full) */
JsonArray *dr_bitmaps_list(const DrDisks *disks, const char *disk, GError **error);

/* That of the disk's top image. Errors: NOT_FOUND naming those that there are. (transfer full) */
JsonObject *dr_bitmap_find(const DrDisks *disks, const DrDisk *disk, const char *name, GError **error);

/* The same, where it is to be relied on or changed. Errors: besides, REFUSED for one that is inconsistent or in use. */
JsonObject *dr_bitmap_find_usable(const DrDisks *disks, const DrDisk *disk, const char *name, GError **error);

/* Whether a bitmap of `name` may be begun on the disk. `granularity` (bytes; 0: QEMU chooses) is a power of 2. Errors: INVALID for a name
 * or a granularity that cannot be, EXISTS, REFUSED (a read-only disk), UNSUPPORTED (an image that can keep none). */
gboolean dr_bitmap_check_new(const DrDisks *disks, const DrDisk *disk, const char *name, gint64 granularity,
                             gboolean persistent, GError **error);

typedef struct {
  const char *disk, *name;
  gint64 granularity; /* bytes; 0: QEMU chooses */
  gboolean disabled, transient;
} DrBitmapAdd;

gboolean dr_bitmap_add(DrQmp *qmp, const DrDisks *disks, const DrBitmapAdd *add, GError **error);
gboolean dr_bitmap_remove(DrQmp *qmp, const DrDisks *disks, const char *disk, const char *name,
                          GError **error);
gboolean dr_bitmap_enable(DrQmp *qmp, const DrDisks *disks, const char *disk, const char *name, gboolean on,
                          GError **error);
/* What is dirty in one of `from` is dirty in `into` afterwards. */
gboolean dr_bitmap_merge(DrQmp *qmp, const DrDisks *disks, const char *disk, const char *into,
                         const char *const *from, GError **error);
