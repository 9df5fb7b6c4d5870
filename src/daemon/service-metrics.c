/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* GET /metrics: what has been counted, and what is true now. No QEMU is asked, no lease is taken: a scrape must cost a guest nothing,
 * however often it comes. docs/METRICS.md has the table. */
#include "base/exposition.h"
#include "base/metrics.h"
#include "daemon/process-stats.h"
#include "daemon/service-internal.h"
#include "daemon/service-net.h"
#include "job/job-metrics.h"
#include "net/meter.h"

#include <string.h>

static void
print_build(GString *out)
{
  dr_exposition_head(out, "drover_build_info", "gauge", "Which droverd this is; always 1.");
  dr_exposition_sample(out, "drover_build_info", (const char *const[]){ "version", DROVER_VERSION, NULL }, 1);
}

static void
count_up(GHashTable *counts, const char *key)
{
  guint n = GPOINTER_TO_UINT(g_hash_table_lookup(counts, key));

  g_hash_table_replace(counts, g_strdup(key), GUINT_TO_POINTER(n + 1));
}

/* A sample for each of `always`, 0 among them: what goes away at 0 would leave a gap in every plot; then what else there is. */
static void
print_counts(GHashTable *counts, const char *const *always, const char *name, const char *label, GString *out)
{
  g_autoptr(GList) keys = g_list_sort(g_hash_table_get_keys(counts), (GCompareFunc)strcmp);

  for (const char *const *key = always; *key; key++)
    dr_exposition_sample(out, name, (const char *const[]){ label, *key, NULL },
                         GPOINTER_TO_UINT(g_hash_table_lookup(counts, *key)));
  for (GList *key = keys; key; key = key->next)
    if (!g_strv_contains(always, key->data))
      dr_exposition_sample(out, name, (const char *const[]){ label, key->data, NULL },
                           GPOINTER_TO_UINT(g_hash_table_lookup(counts, key->data)));
}

static void
print_vms(DrService *service, GString *out)
{
  static const char *const states[] = { "running",   "paused",   "stopped", "starting",
                                        "attention", "incoming", NULL };
  g_autoptr(GHashTable) counts = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  g_autoptr(GPtrArray) vms = dr_service_all(service);

  for (guint i = 0; i < vms->len; i++) {
    dr_vm_lock(vms->pdata[i]);
    count_up(counts, dr_vm_record(vms->pdata[i])->state);
    dr_vm_unlock(vms->pdata[i]);
  }
  dr_exposition_head(out, "drover_vms", "gauge", "VMs by state.");
  print_counts(counts, states, "drover_vms", "state", out);
}

static void
print_running(DrService *service, GString *out)
{
  g_autoptr(GHashTable) counts = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  g_autoptr(GPtrArray) kinds = dr_jobs_running(service->jobs);

  for (guint i = 0; i < kinds->len; i++)
    count_up(counts, kinds->pdata[i]);
  dr_exposition_head(out, "drover_jobs_running", "gauge", "Jobs that are under way.");
  print_counts(counts, dr_job_kinds, "drover_jobs_running", "kind", out);
}

static void
print_relay(GString *out)
{
  static const char name[] = "drover_relay_bytes_total";
  DrMeterTotals totals;

  dr_meter_read(&totals);
  dr_exposition_head(out, name, "counter", "Bytes carried between QEMUs here and other hosts.");
  dr_exposition_sample(out, name, (const char *const[]){ "direction", "out", NULL },
                       (double)totals.bytes_out);
  dr_exposition_sample(out, name, (const char *const[]){ "direction", "in", NULL }, (double)totals.bytes_in);
  dr_exposition_one(out, "drover_relay_cpu_seconds_total", "counter",
                    "CPU time of the threads that carry them.", (double)totals.cpu_ns / 1e9);
  dr_exposition_one(out, "drover_relay_streams", "gauge", "Streams that are carried now.", totals.streams);
}

static gboolean
print_peers(DrService *service, GString *out, GError **error)
{
  g_autoptr(GPtrArray) rows = dr_store_list_peers(service->host->store, error);

  if (!rows)
    return FALSE;
  dr_exposition_one(out, "drover_peers", "gauge", "Hosts on the list of peers.", rows->len);
  return TRUE;
}

static void
print_certificate(GString *out, const char *name, const char *certificate, gint64 until)
{
  if (until > 0)
    dr_exposition_sample(out, name, (const char *const[]){ "certificate", certificate, NULL }, (double)until);
}

static void
print_certificates(DrService *service, GString *out)
{
  static const char name[] = "drover_certificate_expiry_timestamp_seconds";
  const DrExpiry *expiry = dr_service_expiry(service);

  if (!expiry)
    return;
  dr_exposition_head(out, name, "gauge", "When a certificate of droverd ends, in seconds since 1970.");
  print_certificate(out, name, "ca", expiry->ca);
  print_certificate(out, name, "server", expiry->server);
  print_certificate(out, name, "client", expiry->client);
}

char *
dr_service_metrics(DrService *service, GError **error)
{
  g_autoptr(GString) out = g_string_new(NULL);

  print_build(out);
  print_vms(service, out);
  if (!print_peers(service, out, error))
    return NULL;
  print_running(service, out);
  dr_metrics_print(out);
  print_relay(out);
  print_certificates(service, out);
  dr_process_stats_print(out);
  return g_string_free(g_steal_pointer(&out), FALSE);
}
