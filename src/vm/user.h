/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A QEMU that gives its rights up when it has opened all that its command line names: -runas USER (until QEMU 9), -run-with user=USER (since 9.1).
 * drover starts it with droverd's own rights, as its command line asks for; what it makes or connects to later has to be its user's. That user is
 * not trusted: what is its own is never followed through a symbolic link. */
#pragma once
#include "argv/argv.h"
#include "vm/host.h"

#include <sys/types.h>

/* FALSE: it keeps droverd's rights, or there is no such user (then it does not start). As QEMU reads it: a name, or UID:GID. Any thread. */
gboolean dr_qemu_user(const DrArgv *argv, uid_t *ret_uid, gid_t *ret_gid);
/* Whether it asks for a user that this host does not have. */
gboolean dr_qemu_user_is_unknown(const DrArgv *argv);

/* What a program is put behind that is to have this user's rights: "setpriv …", or nothing. (transfer full) */
char **dr_qemu_user_launcher(const DrArgv *argv);

/* Gives it a regular file that it is to open when it has given its rights up; nothing where it keeps them. */
gboolean dr_qemu_user_give(const DrArgv *argv, const char *path, GError **error);

/* For sockets that this QEMU makes or connects to while it runs: dr_host_run_dir(), or, where it has another user, a directory in that which is
 * the user's alone. `words`: the command line, for `argv` NULL; both NULL: dr_host_run_dir(). (transfer full) */
char *dr_host_socket_dir(DrHost *host, const char *vm, const DrArgv *argv, const char *const *words,
                         GError **error);
