/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* GET /metrics: counts of VMs and jobs in Prometheus' text format. */
#include "api/call.h"

/* Label values are drover's own words: nothing in them needs escaping. Takes over `series`. */
static void
count(GHashTable *counts, char *series)
{
  guint n = GPOINTER_TO_UINT(g_hash_table_lookup(counts, series));

  g_hash_table_replace(counts, series, GUINT_TO_POINTER(n + 1));
}

static void
print_counts(GHashTable *counts, const char *name, const char *type, const char *help, GString *out)
{
  g_autoptr(GList) keys = g_list_sort(g_hash_table_get_keys(counts), (GCompareFunc)strcmp);

  g_string_append_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
  for (GList *key = keys; key; key = key->next)
    g_string_append_printf(out, "%s{%s} %u\n", name, (const char *)key->data,
                           GPOINTER_TO_UINT(g_hash_table_lookup(counts, key->data)));
}

static void
print_vms(JsonArray *vms, GString *out)
{
  g_autoptr(GHashTable) counts = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

  for (guint i = 0; i < json_array_get_length(vms); i++)
    count(counts,
          g_strdup_printf("state=\"%s\"", dr_json_str(json_array_get_object_element(vms, i), "state", "?")));
  print_counts(counts, "drover_vms", "gauge", "VMs by state.", out);
}

static void
print_jobs(JsonArray *jobs, GString *out)
{
  g_autoptr(GHashTable) counts = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

  for (guint i = 0; i < json_array_get_length(jobs); i++) {
    JsonObject *job = json_array_get_object_element(jobs, i);

    count(counts, g_strdup_printf("kind=\"%s\",state=\"%s\"", dr_json_str(job, "kind", "?"),
                                  dr_json_str(job, "state", "?")));
  }
  print_counts(counts, "drover_jobs", "gauge", "The newest jobs on record (at most 200) by kind and state.",
               out);
}

gboolean
dr_metrics_work(DrCall *call, GError **error)
{
  g_autoptr(JsonArray) vms = dr_service_list(call->api->service, FALSE, error);
  g_autoptr(JsonArray) jobs = vms ? dr_service_jobs(call->api->service, error) : NULL;
  g_autoptr(GString) out = g_string_new(NULL);

  if (!jobs)
    return FALSE;
  print_vms(vms, out);
  print_jobs(jobs, out);
  call->content_type = "text/plain; version=0.0.4; charset=utf-8";
  call->text = g_strdup(out->str);
  return TRUE;
}
