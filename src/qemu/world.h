/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where and with what rights a process lives: namespaces, control groups, user, limits, security label. A QEMU that replaces one of another
 * manager's (libvirt) is started in the same. */
#pragma once
#include "keeper/order.h"
#include "qemu/proc.h"

typedef struct DrWorld DrWorld;

/* Reads it; changes nothing. Only what differs from our own is opened: a user without rights can be given its own world. */
DrWorld *dr_world_read(const DrProcId *id, GError **error);
void dr_world_free(DrWorld *world);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrWorld, dr_world_free)

/* For spawn.c. The strings live as long as `world`; the descriptors are cgroup.procs of each control group, then namespaces. */
void dr_world_write(const DrWorld *world, struct dr_keeper_world *ret_world, const char **ret_label_file,
                    const char **ret_label);
const GArray *dr_world_fds(const DrWorld *world); /* of int */

/* "unconfined" and the like are none: NULL. */
const char *dr_world_label(const DrWorld *world);

/* Puts a thread of a new process where a thread of the old one is: its control groups, its CPUs. `what` stands in the error. */
gboolean dr_world_place_thread(const DrProcId *old, pid_t old_thread, const DrProcId *new_process,
                               pid_t new_thread, GError **error);
