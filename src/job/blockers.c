/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Blockers by name. */
#include "job/blockers.h"

void
dr_argv_blockers(const DrArgv *argv, DrFindings *findings)
{
}
