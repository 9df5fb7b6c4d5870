/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Room on file systems. */
#include "job/room.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

DrRoom *
dr_room_new(void)
{
  return g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
}

void
dr_room_free(DrRoom *room)
{
  g_hash_table_unref(room);
}

gint64
dr_room_take(DrRoom *room, const char *dir, gint64 bytes)
{
  struct statvfs fs;
  struct stat st;
  gint64 key, there, *taken;

  if (stat(dir, &st) < 0 || !S_ISDIR(st.st_mode) || statvfs(dir, &fs) < 0)
    return -1;
  key = (gint64)st.st_dev;
  taken = g_hash_table_lookup(room, &key);
  if (!taken) {
    taken = g_new0(gint64, 1);
    g_hash_table_insert(room, g_memdup2(&key, sizeof key), taken);
  }
  there = (gint64)fs.f_bavail * (gint64)fs.f_frsize - *taken;
  *taken += MAX(bytes, 0);
  return MAX(there, 0);
}
