/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See user.h. */
#include "vm/user.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define OWN "own"
#define PASSWD_MAX 65536

/* The last that says one. (transfer full) (nullable) */
static char *
user_of(const DrArgv *argv)
{
  char *user = NULL;

  for (const DrOpt *opt = NULL; (opt = dr_argv_next(argv, NULL, opt));) {
    g_autoptr(DrOpts) with = g_str_equal(opt->info->name, "run-with") ? dr_opt_parse(opt, NULL) : NULL;
    const char *said = with                                    ? dr_opts_get(with, "user")
                       : g_str_equal(opt->info->name, "runas") ? opt->value
                                                               : NULL;

    if (!said)
      continue;
    g_free(user);
    user = g_strdup(said);
  }
  return user;
}

static gboolean
look_up(const char *user, uid_t *ret_uid, gid_t *ret_gid)
{
  g_autofree char *buffer = g_malloc(PASSWD_MAX);
  struct passwd entry, *known = NULL;
  guint uid, gid;
  char rest;

  if (getpwnam_r(user, &entry, buffer, PASSWD_MAX, &known) == 0 && known) {
    *ret_uid = known->pw_uid;
    *ret_gid = known->pw_gid;
    return TRUE;
  }
  if (sscanf(user, "%u:%u%c", &uid, &gid, &rest) != 2)
    return FALSE;
  *ret_uid = uid;
  *ret_gid = gid;
  return TRUE;
}

gboolean
dr_qemu_user(const DrArgv *argv, uid_t *ret_uid, gid_t *ret_gid)
{
  g_autofree char *user = user_of(argv);

  return user && look_up(user, ret_uid, ret_gid);
}

gboolean
dr_qemu_user_is_unknown(const DrArgv *argv)
{
  g_autofree char *user = user_of(argv);
  uid_t uid;
  gid_t gid;

  return user && !look_up(user, &uid, &gid);
}

char **
dr_qemu_user_launcher(const DrArgv *argv)
{
  g_autoptr(GStrvBuilder) words = g_strv_builder_new();
  g_autofree char *user = user_of(argv), *reuid = NULL, *regid = NULL;
  uid_t uid;
  gid_t gid;

  if (!user || geteuid() != 0 || !look_up(user, &uid, &gid))
    return g_strv_builder_end(words);
  reuid = g_strdup_printf("--reuid=%u", uid);
  regid = g_strdup_printf("--regid=%u", gid);
  g_strv_builder_add_many(words, "setpriv", reuid, regid,
                          strchr(user, ':') ? "--clear-groups" : "--init-groups", "--", NULL);
  return g_strv_builder_end(words);
}

/* What the user may have put in its place is no regular file, or has another name, too. */
gboolean
dr_qemu_user_give(const DrArgv *argv, const char *path, GError **error)
{
  dr_autofd int fd = -1;
  struct stat st;
  uid_t uid;
  gid_t gid;

  if (!dr_qemu_user(argv, &uid, &gid) || geteuid() != 0)
    return TRUE;
  fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd >= 0 && fstat(fd, &st) == 0 && (!S_ISREG(st.st_mode) || st.st_nlink != 1))
    return dr_error_set(error, DR_ERROR_REFUSED, "'%s' is not a file that was made for user %u", path, uid);
  return (fd >= 0 && fchown(fd, uid, gid) == 0) ||
         dr_error_set_errno(error, errno, "cannot give '%s' to user %u, as which the QEMU runs", path, uid);
}

static gboolean
let_pass(const char *path)
{
  struct stat st;

  return stat(path, &st) == 0 && chmod(path, (st.st_mode & 07777) | S_IXGRP | S_IXOTH) == 0;
}

/* Its user may pass through the directories above, and see nothing of what is in them. */
static char *
own_dir(DrHost *host, char *run_dir, uid_t uid, gid_t gid, GError **error)
{
  g_autofree char *vms = g_build_filename(host->run_dir, "vms", NULL);
  g_autofree char *own = g_build_filename(run_dir, OWN, NULL);

  if (!dr_mkdir(own, 0700, error))
    return NULL;
  if (let_pass(host->run_dir) && let_pass(vms) && let_pass(run_dir) && chown(own, uid, gid) == 0)
    return g_steal_pointer(&own);
  dr_error_set_errno(error, errno, "cannot give '%s' to user %u", own, uid);
  return NULL;
}

char *
dr_host_socket_dir(DrHost *host, const char *vm, const DrArgv *argv, const char *const *words, GError **error)
{
  g_autofree char *run_dir = dr_host_run_dir(host, vm, error);
  g_autoptr(DrArgv) parsed = argv || !words ? NULL : dr_argv_parse(words, NULL);
  const DrArgv *now = argv ? argv : parsed;
  uid_t uid;
  gid_t gid;

  if (!run_dir || !now || !dr_qemu_user(now, &uid, &gid) || uid == geteuid() || geteuid() != 0)
    return g_steal_pointer(&run_dir);
  return own_dir(host, run_dir, uid, gid, error);
}
