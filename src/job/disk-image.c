/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Makes images and opens them: blockdev-create, blockdev-add, blockdev-del. */
#include "job/disk-image.h"
#include "base/error.h"
#include "base/fd.h"
#include "job/block-job.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define KEY_TRIES 5

static void
set_cache(JsonObject *options, const DrImage *image)
{
  json_object_set_object_member(
      options, "cache", dr_json("{'direct': <%b>, 'no-flush': <%b>}", image->direct, image->no_flush));
  json_object_set_boolean_member(options, "read-only", image->read_only);
  json_object_set_string_member(options, "discard", "unmap");
}

static void
set_secret(JsonObject *options, const DrImage *image)
{
  if (image->secret && g_str_equal(image->format, "luks"))
    json_object_set_string_member(options, "key-secret", image->secret);
  else if (image->secret)
    json_object_set_object_member(options, "encrypt",
                                  dr_json("{'format': <'luks'>, 'key-secret': <%s>}", image->secret));
}

static gboolean
is_raw(const DrImage *image)
{
  return g_str_equal(image->format, "raw");
}

/* --- Making --- */

/* A file is made empty, and grows as its format asks for it. */
static gboolean
create_file(DrQmp *qmp, const DrImage *image, DrDeadline deadline, GError **error)
{
  const char *path = dr_json_str(image->protocol, "filename", NULL);

  if (!g_str_equal(dr_json_str(image->protocol, "driver", ""), "file"))
    return TRUE;
  return dr_block_create(qmp,
                         dr_json("{'driver': <'file'>, 'filename': <%s>, 'size': <%x>}", path,
                                 is_raw(image) ? image->bytes : (gint64)0),
                         deadline, error);
}

gboolean
dr_image_reserve(const char *path, pid_t qemu, GError **error)
{
  dr_autofd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0644);
  g_autofree char *proc = g_strdup_printf("/proc/%d", (int)qemu);
  struct stat st;

  if (fd < 0 && errno == EEXIST)
    return dr_error_set(error, DR_ERROR_EXISTS, "'%s' is there already", path);
  if (fd < 0)
    return dr_error_set_errno(error, errno, "cannot make '%s'", path);
  if (stat(proc, &st) == 0 && st.st_uid != geteuid() && fchown(fd, st.st_uid, st.st_gid) < 0)
    return dr_error_set_errno(error, errno, "cannot give '%s' to the user of the VM's QEMU", path);
  return TRUE;
}

static JsonObject *
format_options(const DrImage *image)
{
  JsonObject *options =
      dr_json("{'driver': <%s>, 'file': <%s>, 'size': <%x>}", image->format, image->file_node, image->bytes);

  set_secret(options, image);
  if (image->backing) {
    json_object_set_string_member(options, "backing-file", image->backing);
    json_object_set_string_member(options, "backing-fmt", image->backing_format);
  }
  return options;
}

/* The time that a key's iterations take is measured, which a busy host spoils (7.2). */
static gboolean
create_format(DrQmp *qmp, const DrImage *image, DrDeadline deadline, GError **error)
{
  for (guint i = 0; !is_raw(image); i++) {
    g_autoptr(GError) local = NULL;

    if (dr_block_create(qmp, format_options(image), deadline, &local))
      return TRUE;
    if (!image->secret || i == KEY_TRIES || !strstr(local->message, "CPU usage")) {
      g_propagate_error(error, g_steal_pointer(&local));
      return FALSE;
    }
  }
  return TRUE;
}

/* --- Opening --- */

static gboolean
add_file(DrQmp *qmp, const DrImage *image, GError **error)
{
  JsonObject *options = dr_json_dup_object(image->protocol);

  json_object_set_string_member(options, "node-name", image->file_node);
  set_cache(options, image);
  return dr_qmp_do(qmp, "blockdev-add", options, error);
}

static gboolean
can_have_backing(const char *format)
{
  static const char *const formats[] = { "qcow2", "qed", "qcow", "vmdk", NULL };

  return g_strv_contains(formats, format);
}

static gboolean
add_format(DrQmp *qmp, const DrImage *image, GError **error)
{
  JsonObject *options = dr_json("{'driver': <%s>, 'node-name': <%s>, 'file': <%s>}", image->format,
                                image->node, image->file_node);

  set_cache(options, image);
  if (is_raw(image) && image->size)
    json_object_set_int_member(options, "size", image->size);
  if (image->detect_zeroes)
    json_object_set_string_member(options, "detect-zeroes", image->detect_zeroes);
  set_secret(options, image);
  if (image->backing_node)
    json_object_set_string_member(options, "backing", image->backing_node);
  else if (can_have_backing(image->format) && !image->own_chain)
    json_object_set_null_member(options, "backing");
  return dr_qmp_do(qmp, "blockdev-add", options, error);
}

gboolean
dr_image_open(DrQmp *qmp, const DrImage *image, DrDeadline deadline, GError **error)
{
  if ((image->create && !create_file(qmp, image, deadline, error)) || !add_file(qmp, image, error))
    return FALSE;
  if ((!image->create || create_format(qmp, image, deadline, error)) && add_format(qmp, image, error))
    return TRUE;
  dr_image_close(qmp, image->node, image->file_node);
  return FALSE;
}

static void
close_node(DrQmp *qmp, const char *name)
{
  g_autoptr(GError) error = NULL;

  if (!dr_qmp_do(qmp, "blockdev-del", dr_json("{'node-name': <%s>}", name), &error))
    g_debug("blockdev-del %s: %s", name, error->message); /* it is not there, or is in use */
}

void
dr_image_close(DrQmp *qmp, const char *node, const char *file_node)
{
  close_node(qmp, node);
  close_node(qmp, file_node);
}

void
dr_nodes_close(DrQmp *qmp, GPtrArray *names)
{
  for (guint i = 0; i < names->len; i++)
    close_node(qmp, names->pdata[i]);
}
