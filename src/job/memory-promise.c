/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One number for the process, under a lock: look and take must be one step. */
#include "job/memory-promise.h"
#include "qemu/proc.h"

static GMutex lock;
static guint64 promised; /* bytes */

gboolean
dr_memory_promise(guint64 bytes, guint64 *ret_free)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&lock);
  guint64 available = dr_host_memory_available();

  *ret_free = available > promised ? available - promised : 0;
  if (*ret_free < bytes + DR_MEMORY_SPARE)
    return FALSE;
  promised += bytes;
  return TRUE;
}

void
dr_memory_give_back(guint64 bytes)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&lock);

  g_assert(promised >= bytes);
  promised -= bytes;
}
