/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The disks of a running VM as people name them, and what each stands on, read from its QEMU at one moment. */
#pragma once
#include "base/json.h"
#include "qmp/qmp.h"

typedef struct DrNode DrNode;
typedef struct DrDisks DrDisks;

typedef struct {
  const char *name;    /* its device's id, else its backend's ("drive0", "virtio0"), else its top node's */
  const char *device;  /* nullable: id or path of the device */
  const char *backend; /* nullable: of -drive */
  gboolean removable;
  gboolean read_only;
  DrNode *root; /* what the device sees: the top image, or a filter above it; NULL: there is no medium */
  DrNode *top;  /* the top image: below filters (throttle, copy-on-read); NULL as above */
} DrDisk;

/* Three commands. Relative names of files are told from `cwd`, which is QEMU's (nullable: they stay as they are). Errors: UNSUPPORTED where QEMU does not tell its graph (x-debug-query-block-graph). */
DrDisks *dr_disks_read(DrQmp *qmp, const char *cwd, GError **error);
void dr_disks_free(DrDisks *disks);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrDisks, dr_disks_free)

guint dr_disks_count(const DrDisks *disks);
const DrDisk *dr_disks_get(const DrDisks *disks, guint i); /* (transfer none) */

/* By its name, or else by its device's path, its top node's name, or its top image's file; with a medium. Errors: NOT_FOUND
 * naming what there is; INVALID where two fit; REFUSED for one without a medium. (transfer none) */
const DrDisk *dr_disks_find(const DrDisks *disks, const char *name, GError **error);

/* Of a node. (transfer none) */
const char *dr_node_name(const DrNode *node);
const char *dr_node_driver(const DrNode *node);
const char *dr_node_file(const DrNode *node); /* the file, URL or json: that holds its data */
gint64 dr_node_bytes(const DrNode *node);     /* as the guest sees it */
gint64 dr_node_allocated(const DrNode *node); /* bytes; -1: not known */
gboolean dr_node_flag(const DrNode *node,
                      const char *path); /* of query-named-block-nodes, dotted: "cache.direct" */
DrNode *dr_node_backing(const DrNode *node);
const char *dr_node_backing_name(const DrNode *node); /* nullable: as its header has it */
char *dr_node_detect_zeroes(const DrNode *node);      /* NULL: off. (transfer full) */
/* The id of the secret that an encrypted image is opened with; NULL: it is not encrypted. (transfer full) */
char *dr_node_secret(const DrNode *node);
/* Whether a raw node shows only a part of what it stands on. */
gboolean dr_node_is_partial(const DrNode *node);
/* Whether QEMU chose its name ("#block123"): such a node goes with its last user. */
gboolean dr_node_is_unnamed(const DrNode *node);

/* Whether two image names mean the same file; relative ones are below `cwd` (nullable). */
gboolean dr_same_file(const char *a, const char *b, const char *cwd);

/* The nodes that have names of their own in the tree of `from`, down to but without that of `until` (nullable), top first.
 * (transfer full) (element-type utf8) */
GPtrArray *dr_node_named_tree(DrNode *from, DrNode *until);

/* The objects of docs/API.md, "chain" with the top image first. (transfer full) */
JsonObject *dr_disk_json(const DrDisks *disks, const DrDisk *disk);
JsonArray *dr_disks_json(const DrDisks *disks);
