/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* JSON as QEMU's command line has it, as a tree that keeps how each value was written. For src/argv only.
 *
 * Why not json-glib: it turns numbers above INT64_MAX negative (a disk's wwn may be one), refuses nothing
 * that QEMU refuses (duplicate keys) and not what QEMU takes ('single quotes'), and prints numbers and
 * escapes its own way. An option that is only passed on must come out as it went in.
 */
#pragma once
#include <glib.h>

#define DR_JSON_TREE_MAX_DEPTH 64

typedef enum {
  DR_JSON_TREE_OBJECT,
  DR_JSON_TREE_ARRAY,
  DR_JSON_TREE_STRING,
  DR_JSON_TREE_NUMBER,
  DR_JSON_TREE_BOOL,
  DR_JSON_TREE_NULL,
} DrJsonTreeKind;

typedef struct _DrJsonTree DrJsonTree;
struct _DrJsonTree {
  DrJsonTreeKind kind;
  char *key;           /* a member's name, decoded; NULL for elements and the root */
  char *raw;           /* a scalar as it was written */
  char *text;          /* a scalar's meaning: "on"/"off" for booleans, "" for null, else the decoded text */
  GPtrArray *children; /* (element-type DrJsonTree) of objects and arrays, else NULL */
};

/* Returns: (transfer full): NULL with DR_ERROR_INVALID and the byte's number. */
DrJsonTree *dr_json_tree_parse(const char *text, GError **error);
/* A scalar (`text` as in the struct) or, with `text` NULL, an empty object or array. */
DrJsonTree *dr_json_tree_new(DrJsonTreeKind kind, const char *key, const char *text);
DrJsonTree *dr_json_tree_copy(const DrJsonTree *tree);
void dr_json_tree_free(DrJsonTree *tree);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrJsonTree, dr_json_tree_free)

/* Compact, as libvirt writes it: no spaces, scalars as they were written. */
void dr_json_tree_print(const DrJsonTree *tree, GString *out);

/* The node at a dotted path below `tree`; *ret_parent and *ret_index (both may be NULL) say where it hangs.
 * Returns: (transfer none) (nullable). */
DrJsonTree *dr_json_tree_find(const DrJsonTree *tree, const char *path, DrJsonTree **ret_parent,
                              guint *ret_index);

/* Whether `text` is a JSON number. */
gboolean dr_json_tree_is_number(const char *text);
