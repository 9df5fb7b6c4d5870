/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See request.h. */
#include "libvirt/request.h"
#include "base/error.h"
#include "libvirt/check.h"

typedef struct {
  virConnectPtr conn;
  GPtrArray *domains; /* all that run */
} Running;

static void
running_clear(Running *running)
{
  g_clear_pointer(&running->domains, g_ptr_array_unref); /* their handles before their connection */
  g_clear_pointer(&running->conn, virConnectClose);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Running, running_clear)

static gboolean
is_called(const DrLibvirtDomain *domain, const char *name)
{
  return g_strcmp0(name, domain->name) == 0 || g_strcmp0(name, domain->uuid) == 0;
}

static gboolean
is_meant(JsonArray *names, const DrLibvirtDomain *domain)
{
  for (guint i = 0; names && i < json_array_get_length(names); i++)
    if (is_called(domain, json_array_get_string_element(names, i)))
      return TRUE;
  return names == NULL;
}

static gboolean
is_there(GPtrArray *domains, const char *name)
{
  for (guint i = 0; i < domains->len; i++)
    if (is_called(domains->pdata[i], name))
      return TRUE;
  return FALSE;
}

static gboolean
all_are_there(GPtrArray *domains, JsonArray *names, GError **error)
{
  for (guint i = 0; names && i < json_array_get_length(names); i++) {
    const char *name = json_array_get_string_element(names, i);

    if (is_there(domains, name))
      continue;
    dr_error_set(error, DR_ERROR_NOT_FOUND, "libvirt has no running domain '%s'", name ? name : "?");
    return dr_error_remedy(error,
                           "virsh list shows those that run; one that is shut off needs no live upgrade");
  }
  return TRUE;
}

/* All that run; FALSE also if one that is named does not. */
static gboolean
look(Running *running, const DrLibvirtPlaces *places, JsonObject *request, GError **error)
{
  running->conn = dr_libvirt_connect(places, error);
  running->domains = running->conn ? dr_libvirt_domains(running->conn, places, error) : NULL;
  return running->domains && all_are_there(running->domains, dr_json_arr(request, "domains"), error);
}

gboolean
dr_libvirt_request_is_known(const DrLibvirtPlaces *places, JsonObject *request, GError **error)
{
  g_auto(Running) running = { 0 };

  return look(&running, places, request, error);
}

/* What libvirt does with any domain ends with its daemon: a save, a dump, a migration. */
static gboolean
nobody_is_busy(GPtrArray *domains, GError **error)
{
  for (guint i = 0; i < domains->len; i++) {
    const DrLibvirtDomain *domain = domains->pdata[i];
    virDomainJobInfo job = { 0 };

    if (virDomainGetJobInfo(domain->handle, &job) < 0 || job.type == VIR_DOMAIN_JOB_NONE)
      continue;
    dr_error_set(error, DR_ERROR_BUSY,
                 "libvirt has a job on domain '%s' under way, which would end with its daemon", domain->name);
    return dr_error_remedy(error, "wait for it: virsh domjobinfo %s", domain->name);
  }
  return TRUE;
}

static JsonObject *
with_places(JsonObject *report, const DrLibvirtDomain *domain)
{
  json_object_set_int_member(report, "start_time", (gint64)domain->process.start_time);
  json_object_set_string_member(report, "monitor", domain->monitor);
  json_object_set_string_member(report, "log_file", domain->log_file);
  return report;
}

JsonArray *
dr_libvirt_request_check(const DrLibvirtPlaces *places, const char *cache_dir, JsonObject *request,
                         gboolean stops, GError **error)
{
  g_auto(Running) running = { 0 };
  DrLibvirtCheck how = { .places = places,
                         .cache_dir = cache_dir,
                         .emulator = dr_json_str(request, "emulator", NULL),
                         .memory = dr_json_str(request, "memory", "auto"),
                         .untested = dr_json_bool(request, "untested", FALSE) };
  JsonArray *reports;

  if (!look(&running, places, request, error) || (stops && !nobody_is_busy(running.domains, error)))
    return NULL;
  reports = json_array_new();
  for (guint i = 0; i < running.domains->len; i++) {
    DrLibvirtDomain *domain = running.domains->pdata[i];

    if (is_meant(dr_json_arr(request, "domains"), domain))
      json_array_add_object_element(reports,
                                    with_places(dr_libvirt_check(running.conn, domain, &how), domain));
  }
  return reports;
}
