/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Devices and backends that no stream carries or that only one QEMU at a time can have. */
#include "job/inventory-internal.h"

void
dr_inventory_blockers(const DrInventory *inventory, DrFindings *findings)
{
}
