/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See user.h. */
#include "vm/user.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/stat.h>

#define OWN "own"

/* (transfer full) (nullable) */
static char *
user_of(const DrArgv *argv)
{
  g_autoptr(DrOpts) with = dr_argv_effective(argv, "run-with", NULL);
  const char *user = with ? dr_opts_get(with, "user") : NULL;
  const DrOpt *runas = dr_argv_find_last(argv, "runas");

  return g_strdup(user ? user : runas ? runas->value : NULL);
}

gboolean
dr_qemu_user(const DrArgv *argv, uid_t *ret_uid, gid_t *ret_gid)
{
  g_autofree char *user = user_of(argv);
  const struct passwd *known = user ? getpwnam(user) : NULL;
  guint uid, gid;
  char rest;

  if (known) {
    *ret_uid = known->pw_uid;
    *ret_gid = known->pw_gid;
    return TRUE;
  }
  if (!user || sscanf(user, "%u:%u%c", &uid, &gid, &rest) != 2)
    return FALSE;
  *ret_uid = uid;
  *ret_gid = gid;
  return TRUE;
}

gboolean
dr_qemu_user_give(const DrArgv *argv, const char *path, GError **error)
{
  uid_t uid;
  gid_t gid;

  return !dr_qemu_user(argv, &uid, &gid) || geteuid() != 0 || lchown(path, uid, gid) == 0 ||
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
dr_host_socket_dir(DrHost *host, const char *vm, const DrArgv *argv, const DrProcId *id, GError **error)
{
  g_autofree char *run_dir = dr_host_run_dir(host, vm, error);
  g_auto(GStrv) words = argv || !id ? NULL : dr_proc_cmdline(id->pid, NULL);
  g_autoptr(DrArgv) now = words ? dr_argv_parse((const char *const *)words, NULL) : NULL;
  uid_t uid;
  gid_t gid;

  if (!run_dir || (!argv && !now) || !dr_qemu_user(argv ? argv : now, &uid, &gid) || uid == geteuid())
    return g_steal_pointer(&run_dir);
  return own_dir(host, run_dir, uid, gid, error);
}
