/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What can be said of a domain while libvirt's daemon runs: from libvirt's own view and the QEMU's command line, without its monitor. What only
 * the QEMU itself knows (job/preflight.h) is looked at when the daemon is away, before anything moves. */
#pragma once
#include "base/finding.h"
#include "libvirt/view.h"

typedef struct {
  const DrLibvirtPlaces *places;
  const char *cache_dir;
  const char *emulator; /* nullable: each domain's own */
  const char *memory;   /* as of DrMemoryMode (job/preflight.h): "shared" refuses what has to copy its RAM */
  gboolean untested;    /* a libvirt that nobody has tried this with is no blocker */
} DrLibvirtCheck;

/* {"name","uuid","pid","ok","findings","emulator_before","emulator","qemu_before","qemu_after","memory_mode"}; blockers are in "findings".
 * (transfer full) */
JsonObject *dr_libvirt_check(virConnectPtr conn, DrLibvirtDomain *domain, const DrLibvirtCheck *how);
