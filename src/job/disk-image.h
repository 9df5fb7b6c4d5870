/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An image opened in a running QEMU beside those of its disks, and made before if it is not there. QEMU writes all of it
 * (blockdev-create): drover never touches an image's metadata. */
#pragma once
#include "base/deadline.h"
#include "job/disk.h"
#include "qmp/qmp.h"

#include <sys/types.h>

typedef struct {
  JsonObject *protocol;  /* dr_target_parse_options(); not owned */
  const char *node;      /* the name that the image's node gets */
  const char *file_node; /* and its protocol node's */
  const char *format;    /* "qcow2", "raw", "luks", … */
  const char *secret;    /* nullable: id of the secret of an encrypted one */
  gboolean create;       /* make it anew */
  gint64 bytes;          /* of a new one: the guest's size */
  const char *backing;   /* nullable: the name that a new one's header gets for its backing file */
  const char *backing_format;
  const char *backing_node;  /* nullable: opened on this node; NULL: on none, whatever its header says */
  gint64 size;               /* of a raw one: only so much of what is there; 0: all of it */
  const char *detect_zeroes; /* nullable: as the source's */
  gboolean own_chain;        /* instead: on what its header says */
  gboolean read_only;
  gboolean direct, no_flush; /* cache modes, as the source's */
} DrImage;

/* FALSE: nothing of it stays open in QEMU; a file that it made stays where it is. */
gboolean dr_image_open(DrQmp *qmp, const DrImage *image, DrDeadline deadline, GError **error);

/* Makes an empty file for an image, which belongs to whom the process `qemu` runs as. Errors: EXISTS: whatever has that name stays as it
 * is. */
gboolean dr_image_reserve(const char *path, pid_t qemu, GError **error);

/* Closes both nodes, if they are there and nobody uses them. */
void dr_image_close(DrQmp *qmp, const char *node, const char *file_node);

/* Closes each node of `names` (element-type utf8) that nobody uses any more, in this order. */
void dr_nodes_close(DrQmp *qmp, GPtrArray *names);
