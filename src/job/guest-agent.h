/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Freezing a guest's file systems by its agent, and thawing them whatever happens. */
#pragma once
#include "vm/vm.h"

/* The socket of the VM's guest agent (a virtserialport named org.qemu.guest_agent.0 on a unix socket chardev), if one has opened its
 * port in the guest. Errors: UNSUPPORTED naming what is missing. (transfer full) */
char *dr_guest_agent_find(DrVm *vm, DrQmp *qmp, GError **error);

/* *ret_frozen: how many file systems. On an error they are thawed again, as far as the agent answers. */
gboolean dr_guest_freeze(const char *socket, gint64 *ret_frozen, GError **error);

/* Tries for 60 s. Thawing what is not frozen does nothing. */
gboolean dr_guest_thaw(const char *socket, GError **error);
