/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Preflight, the host's side: may a process of ours take the place of that process, and may its RAM be copied? */
#pragma once
#include "job/preflight.h"

/* Blockers for a QEMU of another user or in other namespaces: a new one would be ours and in ours. */
void dr_preflight_process(DrPreflight *p, DrVm *vm);

/* Once the mode is decided: RAM that would be copied onto itself, and memory devices whose file is their point. */
void dr_preflight_ram(DrPreflight *p, DrVm *vm);
