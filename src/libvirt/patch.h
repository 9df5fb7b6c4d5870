/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libvirt's files of a domain, made to say what has become true of its QEMU, while no daemon of libvirt's runs. Patching again changes nothing
 * more. A file is replaced as a whole. */
#pragma once
#include "libvirt/view.h"
#include "qmp/qmp.h"

/* The pid first, and by itself: a daemon that starts with that of a process which has ended takes the domain for ended, too. It needs nothing
 * but the two files. From any thread. */
gboolean dr_libvirt_patch_pid(const DrLibvirtPlaces *places, const char *name, pid_t pid, GError **error);

/* The rest: what its new QEMU, `id`, says at `qmp`. `domain`: the journal's, which gets "facts". `flags`: what libvirt notes of the emulator's
 * abilities; nullable. The emulator of the domain's next start is its XML's only where that still is the one before; if that file cannot be
 * written, it is a warning among the domain's findings. */
gboolean dr_libvirt_patch(const DrLibvirtPlaces *places, JsonObject *domain, DrQmp *qmp, const DrProcId *id,
                          JsonArray *flags, GError **error);
