/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where a disk's data is to go to or come from: a file, a block device, an NBD or HTTP server. */
#pragma once
#include "base/json.h"

typedef enum {
  DR_TARGET_FILE,   /* may not be there yet */
  DR_TARGET_DEVICE, /* a block device */
  DR_TARGET_NBD, /* nbd://HOST[:PORT]/[EXPORT], nbd+unix:///[EXPORT]?socket=PATH (the NBD URI specification) */
  DR_TARGET_HTTP, /* http:// or https://; to read from only */
} DrTargetKind;

typedef struct {
  DrTargetKind kind;
  char *text; /* as it was given */
  gboolean exists;
  /* What is there, as `qemu-img info` has it; of a target that exists. */
  char *format;                   /* nullable: not known */
  gint64 bytes;                   /* virtual size; -1: not known */
  guint images;                   /* of its chain, itself included */
  char *backing, *backing_format; /* nullable */
} DrTarget;

/* Takes `text` apart and looks at what is there. `format` (nullable): what to read it as; else it is found out, and an NBD
 * export is raw. Blocks for at most 15 s. Errors: INVALID for text that is none of these (a file's path is absolute), TIMEOUT, IO
 * with the reason: a server that does not answer or talks garbage, a corrupt image, a chain with a missing file. */
DrTarget *dr_target_look(const char *text, const char *format, GError **error);
void dr_target_free(DrTarget *target);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrTarget, dr_target_free)

/* The protocol node for blockdev-add, without a node name: {"driver":"nbd","server":…}; nothing is looked at. (transfer full) */
JsonObject *dr_target_parse_options(const char *text, DrTargetKind *ret_kind, GError **error);
