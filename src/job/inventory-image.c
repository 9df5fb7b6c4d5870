/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Image files: are two names the same file, and does an image's own header lead to the chain that runs? */
#include "job/inventory-internal.h"
#include "base/fd.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define HEADER_MAX                                                                                           \
  65536 /* header, extensions and backing name lie in the first cluster, of at least 512 bytes */
#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */
#define EXT_BACKING_FORMAT 0xe2792acau

static guint32
be32(const guint8 *at)
{
  return (guint32)at[0] << 24 | (guint32)at[1] << 16 | (guint32)at[2] << 8 | at[3];
}

static guint64
be64(const guint8 *at)
{
  return (guint64)be32(at) << 32 | be32(at + 4);
}

static const char *
without_protocol(const char *path)
{
  return g_str_has_prefix(path, "file:") ? path + strlen("file:") : path;
}

gboolean
dr_same_file(const char *a, const char *b, const char *cwd)
{
  g_autofree char *full_a = NULL;
  g_autofree char *full_b = NULL;
  struct stat st_a, st_b;

  a = without_protocol(a);
  b = without_protocol(b);
  if (g_str_equal(a, b))
    return TRUE;
  full_a = g_canonicalize_filename(a, cwd);
  full_b = g_canonicalize_filename(b, cwd);
  if (g_str_equal(full_a, full_b))
    return TRUE;
  return stat(full_a, &st_a) == 0 && stat(full_b, &st_b) == 0 && st_a.st_dev == st_b.st_dev &&
         st_a.st_ino == st_b.st_ino;
}

/* An image whose header we may look into: never a FIFO or a device that reacts to being opened. */
static gssize
read_head(const char *path, guint8 *head)
{
  dr_autofd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  struct stat st;

  if (fd < 0 || fstat(fd, &st) < 0 || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)))
    return -1;
  return pread(fd, head, HEADER_MAX, 0);
}

/* The format that a qcow2 header names for its backing file, or NULL. */
static char *
backing_format(const guint8 *head, gsize len, gsize at, gsize end)
{
  while (at + 8 <= MIN(len, end)) {
    guint32 type = be32(head + at), size = be32(head + at + 4);

    at += 8;
    if (type == 0 || size > len - at)
      return NULL;
    if (type == EXT_BACKING_FORMAT)
      return g_strndup((const char *)head + at, size);
    at += (size + 7) & ~(gsize)7;
  }
  return NULL;
}

/* Reads a qcow2 image's backing file name and format; both NULL if it has none. FALSE: it cannot be told. */
static gboolean
qcow2_backing(const char *path, char **ret_backing, char **ret_format)
{
  g_autofree guint8 *head = g_malloc(HEADER_MAX);
  gssize len = read_head(path, head);
  guint64 offset;
  guint32 size;

  *ret_backing = *ret_format = NULL;
  if (len < 104 || be32(head) != QCOW2_MAGIC || be32(head + 4) < 2 || be32(head + 4) > 3)
    return FALSE;
  offset = be64(head + 8);
  size = be32(head + 16);
  if (offset == 0)
    return TRUE;
  if (size == 0 || size > 1023 || offset > (guint64)len || size > (guint64)len - offset)
    return FALSE;
  *ret_backing = g_strndup((const char *)head + offset, size);
  *ret_format = backing_format(head, len, be32(head + 4) == 2 ? 72 : be32(head + 100), offset);
  return TRUE;
}

/* A colon before the first slash: "nbd:…", "json:…". */
static gboolean
has_protocol(const char *name)
{
  return name[strcspn(name, ":/")] == ':';
}

/* A header without a format (qemu-img before 6.1 made them) has QEMU guess, which cannot go wrong but for raw images: a guest
 * may have written anything into them. */
static gboolean
same_format(const char *format, const DrNode *below)
{
  return format ? g_str_equal(format, below->driver) : !g_str_equal(below->driver, "raw");
}

/* What the header says, when it can be read, against what runs below. Somebody may have changed it behind QEMU's back
 * (qemu-img rebase -u), which QEMU does not notice before the next opening: ours. */
static gboolean
header_agrees(const DrNode *node, const DrNode *below, const char *cwd)
{
  const DrNode *file = dr_node_child(node, "file"), *below_file = below ? dr_node_child(below, "file") : NULL;
  g_autofree char *path = NULL, *backing = NULL, *format = NULL, *dir = NULL, *full = NULL;

  if (!g_str_equal(node->driver, "qcow2") || !file)
    return TRUE;
  path = g_canonicalize_filename(file->file, cwd);
  if (!qcow2_backing(path, &backing, &format))
    return TRUE;
  if (!backing || !below)
    return !backing && !below;
  if (!same_format(format, below))
    return FALSE;
  if (has_protocol(backing))
    return TRUE; /* an URL or json: is QEMU's to compare, and it has */
  if (!below_file)
    return FALSE;
  dir = g_path_get_dirname(path);
  full = g_canonicalize_filename(backing, dir);
  return dr_same_file(full, below_file->file, cwd);
}

/* QEMU names a node by its plain filename only while the chain below is the one it would open by itself; else by json:,
 * which it also does for options that change the contents, so that only "backing" in it tells. */
static gboolean
is_overridden(const DrNode *node)
{
  g_autoptr(JsonObject) object = NULL;

  if (!g_str_has_prefix(node->file, "json:"))
    return FALSE;
  object = dr_json_parse_object(node->file + strlen("json:"), -1, 1024 * 1024, NULL);
  return !object || json_object_has_member(object, "backing");
}

/* A name that somebody gave a lower node, and may use for a commit, is not in any header. */
static gboolean
has_name(const DrNode *node)
{
  const DrNode *file = dr_node_child(node, "file");

  return !dr_node_is_unnamed(node) || (file && !dr_node_is_unnamed(file));
}

gboolean
dr_chain_is_implicit(const DrNode *node, const char *cwd)
{
  for (; node; node = dr_node_child(node, "backing")) {
    const DrNode *below = dr_node_child(node, "backing");
    const char *format = dr_json_str(node->info, "image.backing-filename-format", NULL);

    if (is_overridden(node) || (below && has_name(below)))
      return FALSE;
    if (below && !same_format(format, below))
      return FALSE;
    if (!header_agrees(node, below, cwd))
      return FALSE;
  }
  return TRUE;
}
