/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Writing a set of files so that there is all of it or none, and no key is ever lost. */
#include "base/error.h"
#include "base/fd.h"
#include "net/pki-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <sys/stat.h>

#define MAX_FILES 8

typedef struct {
  const char *dir;
  const DrPkiFile *files;
  guint n;
  char *temporary[MAX_FILES]; /* NULL: not there (any more) */
  char *path[MAX_FILES];
} Set;

static void
set_clear(Set *set)
{
  for (guint i = 0; i < set->n; i++) {
    if (set->temporary[i])
      unlink(set->temporary[i]);
    g_free(set->temporary[i]);
    g_free(set->path[i]);
  }
}

static gboolean
write_all(int fd, const char *text, gsize len)
{
  while (len > 0) {
    gssize n = write(fd, text, len);

    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return FALSE;
    text += n;
    len -= (gsize)n;
  }
  return TRUE;
}

static gboolean
write_temporary(Set *set, guint i, GError **error)
{
  g_autofree char *name = g_strdup_printf("%s/.%s.XXXXXX", set->dir, set->files[i].name);
  dr_autofd int fd = g_mkstemp_full(name, O_WRONLY | O_CLOEXEC, 0600);

  if (fd < 0)
    return dr_error_set_errno(error, errno, "cannot create '%s'", set->path[i]);
  set->temporary[i] = g_steal_pointer(&name);
  /* fchmod: the mode is what it should be under any umask, and a key was never readable for others. */
  if (!write_all(fd, set->files[i].text, set->files[i].len) || fchmod(fd, (mode_t)set->files[i].mode) < 0 ||
      fsync(fd) < 0)
    return dr_error_set_errno(error, errno, "cannot write '%s'", set->path[i]);
  return TRUE;
}

/* link(2) fails where the name is taken, whoever took it and when: rename(2) would replace it. */
static gboolean
put(Set *set, guint i, gboolean replace)
{
  if (replace && rename(set->temporary[i], set->path[i]) < 0)
    return FALSE;
  if (!replace && (link(set->temporary[i], set->path[i]) < 0 || unlink(set->temporary[i]) < 0))
    return FALSE;
  g_clear_pointer(&set->temporary[i], g_free);
  return TRUE;
}

static gboolean
put_all(Set *set, gboolean replace, GError **error)
{
  for (guint i = 0; i < set->n; i++) {
    int err;

    if (put(set, i, replace))
      continue;
    err = errno;
    for (guint j = 0; j < i && !replace; j++)
      unlink(set->path[j]);
    if (err != EEXIST)
      return dr_error_set_errno(error, err, "cannot put '%s' in its place", set->path[i]);
    return dr_error_set(error, DR_ERROR_EXISTS, "'%s' is there already", set->path[i]);
  }
  return TRUE;
}

/* Every name that is taken, in one message, before anything is done. */
static gboolean
are_new(Set *set, GError **error)
{
  g_autoptr(GString) taken = g_string_new(NULL);

  for (guint i = 0; i < set->n; i++) {
    struct stat st;

    if (lstat(set->path[i], &st) == 0)
      g_string_append_printf(taken, "%s%s", taken->len ? ", " : "", set->files[i].name);
  }
  return taken->len == 0 || dr_error_set(error, DR_ERROR_EXISTS, "'%s' has %s already", set->dir, taken->str);
}

/* A name is on disk when its directory is. */
static gboolean
sync_directory(const char *dir, GError **error)
{
  dr_autofd int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  return (fd >= 0 && fsync(fd) == 0) || dr_error_set_errno(error, errno, "cannot write directory '%s'", dir);
}

static gboolean
write_set(Set *set, gboolean replace, GError **error)
{
  if (!replace && !are_new(set, error))
    return FALSE;
  for (guint i = 0; i < set->n; i++)
    if (!write_temporary(set, i, error))
      return FALSE;
  return put_all(set, replace, error) && sync_directory(set->dir, error);
}

gboolean
dr_pki_write(const char *dir, const DrPkiFile *files, guint n, gboolean replace, GError **error)
{
  Set set = { .dir = dir, .files = files, .n = n };
  gboolean done;

  g_assert(n <= MAX_FILES);
  for (guint i = 0; i < n; i++)
    set.path[i] = g_build_filename(dir, files[i].name, NULL);
  done = dr_mkdir(dir, 0700, error) && write_set(&set, replace, error);
  set_clear(&set);
  return done;
}
