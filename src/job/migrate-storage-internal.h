/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What migrate-storage.c (what of the disks goes) and migrate-mirror.c (its way there before the guest) share. */
#pragma once
#include "job/migrate-storage.h"
#include "job/mirror-pace.h"

typedef struct {
  char *disk, *path, *format, *backing, *backing_format, *secret;
  char *root;       /* the node that is mirrored */
  char *node, *job; /* of ours in the source's QEMU */
  char *export_name;
  char *top, *there;  /* the nodes that its bitmaps are in: here, and over there */
  char **bitmaps;     /* their names; those that are inconsistent stay behind */
  char *inconsistent; /* nullable: the name of one */
  gint64 bytes, allocated, done, total;
  gboolean copied; /* the other host does not share it */
  gboolean read_only, named;
  GPtrArray *below; /* the files that it stands on */
  DrMirrorPace pace;
  gboolean blocking;
} DrMoveImage;

struct DrMoveStorage {
  GPtrArray *images;
  gboolean inc;
  gboolean later; /* after the guest: migrate-lend.c */
  char **tokens;  /* nullable: for streams without TLS */
  DrStreams *streams;
  DrDiskProgress *told;
};
