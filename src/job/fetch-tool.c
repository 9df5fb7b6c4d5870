/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qemu-img, for what QEMU has not fetched.
 *
 * The cache modes are not for speed. `rebase` takes the backing file out of the header before it has written the tables of what it copied,
 * unless each of its writes goes through; `convert` syncs nothing by itself (both seen on 7.2). */
#include "job/fetch-tool.h"
#include "argv/opts.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static char *
options_of(const char *path, const char *secret)
{
  g_autofree char *doubled = dr_opts_double(path);

  return secret ? g_strdup_printf("driver=qcow2,encrypt.key-secret=%s,file.driver=file,file.filename=%s",
                                  secret, doubled)
                : g_strdup_printf("driver=qcow2,file.driver=file,file.filename=%s", doubled);
}

DrTool *
dr_fetch_tool_start(const char *overlay, const char *path, const char *format, const char *secret,
                    const char *object, GError **error)
{
  gboolean beside = !g_str_equal(overlay, path);
  g_autofree char *options = options_of(path, secret);
  g_autoptr(GStrvBuilder) argv = g_strv_builder_new();
  g_auto(GStrv) words = NULL;

  if (beside)
    g_strv_builder_add_many(argv, "qemu-img", "convert", "-q", "-n", "-t", "writeback", "-f", "qcow2", "-O",
                            format, overlay, path, NULL);
  else
    g_strv_builder_add_many(argv, "qemu-img", "rebase", "-q", "-t", "writethrough", "-b", "", NULL);
  if (object)
    g_strv_builder_add_many(argv, "--object", object, NULL);
  if (!beside)
    g_strv_builder_add_many(argv, "--image-opts", options, NULL);
  words = g_strv_builder_end(argv);
  return dr_tool_start((const char *const *)words, error);
}

gboolean
dr_fetch_tool_sync(const char *path, GError **error)
{
  dr_autofd int fd = open(path, O_RDONLY | O_CLOEXEC);

  return (fd >= 0 && fdatasync(fd) == 0) || dr_error_set_errno(error, errno, "cannot sync '%s'", path);
}
