/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is true of a domain's QEMU, by its own monitor while no daemon runs, and whether libvirt's view is the same afterwards. */
#pragma once
#include "base/finding.h"
#include "libvirt/view.h"
#include "qmp/qmp.h"

/* {"pid","emulator","running","vcpus": {"0": TID},"ptys": {"serial0": PATH},"files": [PATH…],"macs": [MAC…]}: the files of all image nodes
 * with their backing chains. (transfer full) */
JsonObject *dr_libvirt_facts(DrQmp *qmp, const DrProcId *id, const char *emulator, GError **error);

/* Compares them with what libvirt says now: pid, state, emulator, images, network interfaces, consoles. Each difference is a warning "view". */
gboolean dr_libvirt_verify(virConnectPtr conn, const DrLibvirtPlaces *places, const char *name,
                           JsonObject *facts, DrFindings *findings, GError **error);
