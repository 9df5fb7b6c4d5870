/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Counting. */
#include "net/tally.h"

struct DrTally {
  gatomicrefcount refs;
  GMutex lock;
  GHashTable *of; /* address -> how many; no entry: 0 */
  guint all, max_all, max_one;
};

DrTally *
dr_tally_new(guint max_all, guint max_one)
{
  DrTally *tally = g_new0(DrTally, 1);

  g_atomic_ref_count_init(&tally->refs);
  g_mutex_init(&tally->lock);
  tally->of = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  tally->max_all = max_all;
  tally->max_one = max_one;
  return tally;
}

DrTally *
dr_tally_ref(DrTally *tally)
{
  g_atomic_ref_count_inc(&tally->refs);
  return tally;
}

void
dr_tally_unref(DrTally *tally)
{
  if (!tally || !g_atomic_ref_count_dec(&tally->refs))
    return;
  g_hash_table_unref(tally->of);
  g_mutex_clear(&tally->lock);
  g_free(tally);
}

static guint
count_of(DrTally *tally, const char *address)
{
  return GPOINTER_TO_UINT(g_hash_table_lookup(tally->of, address));
}

gboolean
dr_tally_add(DrTally *tally, const char *address)
{
  gboolean room;

  g_mutex_lock(&tally->lock);
  room = tally->all < tally->max_all && count_of(tally, address) < tally->max_one;
  if (room) {
    g_hash_table_replace(tally->of, g_strdup(address), GUINT_TO_POINTER(count_of(tally, address) + 1));
    tally->all++;
  }
  g_mutex_unlock(&tally->lock);
  return room;
}

void
dr_tally_remove(DrTally *tally, const char *address)
{
  guint n;

  g_mutex_lock(&tally->lock);
  n = count_of(tally, address);
  g_assert(n > 0);
  if (n > 1)
    g_hash_table_replace(tally->of, g_strdup(address), GUINT_TO_POINTER(n - 1));
  else
    g_hash_table_remove(tally->of, address);
  tally->all--;
  g_mutex_unlock(&tally->lock);
}

gboolean
dr_tally_has_room(DrTally *tally, const char *address)
{
  gboolean room;

  g_mutex_lock(&tally->lock);
  room = tally->all < tally->max_all && count_of(tally, address) < tally->max_one;
  g_mutex_unlock(&tally->lock);
  return room;
}

gboolean
dr_tally_is_full(DrTally *tally)
{
  return dr_tally_count(tally) >= tally->max_all;
}

guint
dr_tally_count(DrTally *tally)
{
  guint all;

  g_mutex_lock(&tally->lock);
  all = tally->all;
  g_mutex_unlock(&tally->lock);
  return all;
}

guint
dr_tally_count_of(DrTally *tally, const char *address)
{
  guint n;

  g_mutex_lock(&tally->lock);
  n = count_of(tally, address);
  g_mutex_unlock(&tally->lock);
  return n;
}
