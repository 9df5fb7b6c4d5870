/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Counts and percentiles of jobs. */
#include "job/stats.h"
#include "base/error.h"

static const char *const kinds[] = { "disk-backup", "disk-copy",       "disk-merge",  "disk-pull",
                                     "disk-serve",  "disk-snapshot",   "disk-stream", "incoming",
                                     "migrate",     "snapshot-revert", "upgrade",     NULL };
static const char *const states[] = { "succeeded", "failed", "cancelled", "attention" };

typedef struct {
  const char *name;
  guint jobs, ended[G_N_ELEMENTS(states)];
  GArray *pauses, *totals; /* of double */
} Kind;

double
dr_stats_percentile(const double *sorted, guint n, guint percent)
{
  guint rank = (n * percent + 99) / 100;

  return sorted[CLAMP(rank, 1, n) - 1];
}

static void
kind_clear(Kind *kind)
{
  g_clear_pointer(&kind->pauses, g_array_unref);
  g_clear_pointer(&kind->totals, g_array_unref);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Kind, kind_clear)

static void
count(Kind *kind, const DrJobTimes *times)
{
  kind->jobs++;
  for (guint i = 0; i < G_N_ELEMENTS(states); i++)
    kind->ended[i] += g_str_equal(times->state, states[i]);
  if (!g_str_equal(times->state, "succeeded"))
    return;
  if (times->pause_ms >= 0)
    g_array_append_val(kind->pauses, times->pause_ms);
  if (times->total_ms >= 0)
    g_array_append_val(kind->totals, times->total_ms);
}

static int
by_size(gconstpointer a, gconstpointer b)
{
  double one = *(const double *)a, other = *(const double *)b;

  return one < other ? -1 : one > other;
}

static JsonNode *
spread(GArray *all)
{
  const double *sorted = (const double *)all->data;

  if (all->len == 0)
    return json_node_new(JSON_NODE_NULL);
  g_array_sort(all, by_size);
  return dr_json_node(dr_json("{'p50': <%d>, 'p99': <%d>, 'max': <%d>}",
                              dr_stats_percentile(sorted, all->len, 50),
                              dr_stats_percentile(sorted, all->len, 99), sorted[all->len - 1]));
}

static JsonObject *
kind_json(const Kind *kind)
{
  JsonObject *object = json_object_new();

  json_object_set_string_member(object, "kind", kind->name);
  json_object_set_int_member(object, "jobs", kind->jobs);
  for (guint i = 0; i < G_N_ELEMENTS(states); i++)
    json_object_set_int_member(object, states[i], kind->ended[i]);
  json_object_set_member(object, "pause_ms", spread(kind->pauses));
  json_object_set_member(object, "total_ms", spread(kind->totals));
  return object;
}

static void
add_kind(JsonArray *array, const char *name, GPtrArray *all)
{
  g_auto(Kind) kind = { .name = name,
                        .pauses = g_array_new(FALSE, FALSE, sizeof(double)),
                        .totals = g_array_new(FALSE, FALSE, sizeof(double)) };

  for (guint i = 0; i < all->len; i++) {
    const DrJobTimes *times = all->pdata[i];

    if (g_str_equal(times->kind, name))
      count(&kind, times);
  }
  if (kind.jobs)
    json_array_add_object_element(array, kind_json(&kind));
}

static gboolean
check_kind(const char *kind, GError **error)
{
  g_autofree char *all = NULL;

  if (!kind || g_strv_contains(kinds, kind))
    return TRUE;
  all = g_strjoinv(", ", (char **)kinds);
  dr_error_set(error, DR_ERROR_INVALID, "'%.40s' is no kind of job", kind);
  return dr_error_remedy(error, "one of %s", all);
}

JsonObject *
dr_stats(DrStore *store, const char *kind, GError **error)
{
  g_autoptr(GPtrArray) all = check_kind(kind, error) ? dr_store_job_times(store, kind, error) : NULL;
  JsonArray *array;
  JsonObject *object;

  if (!all)
    return NULL;
  array = json_array_new();
  for (const char *const *name = kinds; *name; name++)
    add_kind(array, *name, all);
  object = json_object_new();
  json_object_set_array_member(object, "kinds", array);
  return object;
}
