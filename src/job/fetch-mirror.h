/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A disk whose guest runs on an overlay beside the image that it is to have: a mirror fills that image, and takes the overlay's place. */
#pragma once
#include "job/block-job.h"
#include "job/disk.h"

typedef struct {
  const char *job;           /* QEMU's; the image's nodes have names of it */
  const char *path, *format; /* the image */
  gint64 mib;                /* MiB/s; 0: no limit */
} DrFetchMirror;

/* The guest's writes go to both from now on. An I/O error stops it (on-source-error, on-target-error: stop). */
gboolean dr_fetch_mirror_begin(const DrFetchMirror *mirror, const DrDisk *disk, DrQmp *qmp, GError **error);
/* What was written to the image is on its disk when this returns. */
gboolean dr_fetch_mirror_flush(const DrFetchMirror *mirror, DrQmp *qmp, GError **error);
/* Whether the disk stands on the image. */
gboolean dr_fetch_mirror_is_done(const DrFetchMirror *mirror, const DrDisk *disk);
/* Then nothing of the overlay stays open, and its file is removed. */
gboolean dr_fetch_mirror_close(const DrFetchMirror *mirror, const char *overlay, DrQmp *qmp, GError **error);
