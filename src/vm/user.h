/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A QEMU that gives its rights up when it has opened all that its command line names: -runas USER (until QEMU 9), -run-with user=USER (since 9.1).
 * drover starts it with droverd's own rights, as its command line asks for; what it makes or connects to later has to be its user's. */
#pragma once
#include "argv/argv.h"
#include "qemu/proc.h"
#include "vm/host.h"

/* FALSE: it keeps droverd's rights, or there is no such user (then it does not start). As QEMU reads it: a name, or UID:GID. */
gboolean dr_qemu_user(const DrArgv *argv, uid_t *ret_uid, gid_t *ret_gid);

/* Gives it a file that it is to open when it has given its rights up; nothing where it keeps them. */
gboolean dr_qemu_user_give(const DrArgv *argv, const char *path, GError **error);

/* For sockets that this QEMU makes or connects to while it runs: dr_host_run_dir(), or, where it has another user, a directory in that which is
 * the user's alone. `argv` NULL: of the running process `id`. (transfer full) */
char *dr_host_socket_dir(DrHost *host, const char *vm, const DrArgv *argv, const DrProcId *id,
                         GError **error);
