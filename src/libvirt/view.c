/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libvirt as it sees itself: see view.h. */
#include "libvirt/view.h"
#include "base/error.h"
#include "base/fd.h"
#include "libvirt/xml.h"

#include <libvirt/virterror.h>
#include <stdlib.h>
#include <string.h>

DrLibvirtPlaces *
dr_libvirt_places_new(const char *uri, GError **error)
{
  g_autoptr(DrLibvirtPlaces) places = g_new0(DrLibvirtPlaces, 1);

  places->uri = g_strdup(uri);
  if (g_str_equal(uri, "qemu:///system")) {
    places->state_dir = g_strdup("/run/libvirt/qemu");
    places->config_dir = g_strdup("/etc/libvirt/qemu");
    places->cache_dir = g_strdup("/var/cache/libvirt/qemu/capabilities");
    places->log_dir = g_strdup("/var/log/libvirt/qemu");
  } else if (g_str_equal(uri, "qemu:///session")) {
    places->state_dir = g_build_filename(g_get_user_runtime_dir(), "libvirt/qemu/run", NULL);
    places->config_dir = g_build_filename(g_get_user_config_dir(), "libvirt/qemu", NULL);
    places->cache_dir = g_build_filename(g_get_user_cache_dir(), "libvirt/qemu/cache/capabilities", NULL);
    places->log_dir = g_build_filename(g_get_user_cache_dir(), "libvirt/qemu/log", NULL);
  } else {
    dr_error_set(error, DR_ERROR_INVALID, "'%s' is no libvirt that drover upgrades", uri);
    dr_error_remedy(error, "qemu:///system or qemu:///session, on the host itself");
    return NULL;
  }
  return g_steal_pointer(&places);
}

void
dr_libvirt_places_free(DrLibvirtPlaces *places)
{
  if (!places)
    return;
  g_free(places->uri);
  g_free(places->state_dir);
  g_free(places->config_dir);
  g_free(places->cache_dir);
  g_free(places->log_dir);
  g_free(places);
}

void
dr_libvirt_domain_free(DrLibvirtDomain *domain)
{
  if (!domain)
    return;
  g_free(domain->name);
  g_free(domain->uuid);
  g_free(domain->monitor);
  g_free(domain->status_file);
  g_free(domain->pid_file);
  g_free(domain->config_file);
  g_free(domain->log_file);
  g_free(domain->emulator);
  g_free(domain->arch);
  g_free(domain->machine);
  g_free(domain->virt_type);
  g_clear_pointer(&domain->status, xmlFreeDoc);
  g_clear_pointer(&domain->handle, virDomainFree);
  g_free(domain);
}

gboolean
dr_libvirt_error(GError **error, const char *format, ...)
{
  virErrorPtr last = virGetLastError();
  g_autofree char *doing = NULL;
  va_list ap;

  va_start(ap, format);
  doing = g_strdup_vprintf(format, ap);
  va_end(ap);
  return dr_error_set(error, last && last->code == VIR_ERR_NO_DOMAIN ? DR_ERROR_NOT_FOUND : DR_ERROR_IO,
                      "cannot %s: %s", doing,
                      last && last->message ? last->message : "libvirt does not say why");
}

static void
be_quiet(void *data, virErrorPtr problem)
{
}

virConnectPtr
dr_libvirt_connect(const DrLibvirtPlaces *places, GError **error)
{
  virConnectPtr conn;

  virSetErrorFunc(NULL, be_quiet); /* or the library prints them */
  conn = virConnectOpen(places->uri);
  if (conn)
    return conn;
  dr_libvirt_error(error, "connect to libvirt at %s", places->uri);
  dr_error_remedy(error, "see whether its daemon runs (virsh -c %s version)", places->uri);
  return NULL;
}

/* --- Domains --- */

static gboolean
identify(DrLibvirtDomain *domain, GError **error)
{
  g_autofree char *pid = dr_xml_text(domain->status, NULL, "/domstatus/@pid");

  if (!pid || !domain->monitor || !domain->emulator)
    return dr_error_set(error, DR_ERROR_UNSUPPORTED,
                        "'%s' does not have what libvirt 9.0 writes into it (pid, monitor, emulator)",
                        domain->status_file);
  domain->process = (DrProcId){ .pid = (pid_t)strtol(pid, NULL, 10) };
  dr_proc_identify(domain->process.pid, &domain->process, NULL); /* it may have ended, or been replaced */
  return TRUE;
}

DrLibvirtDomain *
dr_libvirt_domain_read(const DrLibvirtPlaces *places, const char *name, GError **error)
{
  g_autoptr(DrLibvirtDomain) domain = g_new0(DrLibvirtDomain, 1);
  g_autofree char *config = g_strdup_printf("%s/%s.xml", places->config_dir, name);
  g_autofree char *id = NULL;

  domain->name = g_strdup(name);
  domain->status_file = g_strdup_printf("%s/%s.xml", places->state_dir, name);
  domain->pid_file = g_strdup_printf("%s/%s.pid", places->state_dir, name);
  domain->log_file = g_strdup_printf("%s/%s.log", places->log_dir, name);
  if (g_file_test(config, G_FILE_TEST_EXISTS))
    domain->config_file = g_steal_pointer(&config);
  domain->status = dr_xml_read(domain->status_file, error);
  if (!domain->status)
    return NULL;
  domain->uuid = dr_xml_text(domain->status, NULL, "/domstatus/domain/uuid");
  id = dr_xml_text(domain->status, NULL, "/domstatus/domain/@id");
  domain->id = id ? atoi(id) : -1;
  domain->monitor = dr_xml_text(domain->status, NULL, "/domstatus/monitor[@type='unix']/@path");
  domain->emulator = dr_xml_text(domain->status, NULL, "/domstatus/domain/devices/emulator");
  domain->arch = dr_xml_text(domain->status, NULL, "/domstatus/domain/os/type/@arch");
  domain->machine = dr_xml_text(domain->status, NULL, "/domstatus/domain/os/type/@machine");
  domain->virt_type = dr_xml_text(domain->status, NULL, "/domstatus/domain/@type");
  return identify(domain, error) ? g_steal_pointer(&domain) : NULL;
}

GPtrArray *
dr_libvirt_domains(virConnectPtr conn, const DrLibvirtPlaces *places, GError **error)
{
  g_autoptr(GPtrArray) domains = g_ptr_array_new_with_free_func((GDestroyNotify)dr_libvirt_domain_free);
  virDomainPtr *all = NULL;
  int n = virConnectListAllDomains(conn, &all, VIR_CONNECT_LIST_DOMAINS_ACTIVE);

  if (n < 0)
    dr_libvirt_error(error, "list libvirt's domains");
  for (int i = 0; i < n; i++) {
    g_autoptr(GError) local = NULL;
    DrLibvirtDomain *domain = dr_libvirt_domain_read(places, virDomainGetName(all[i]), &local);

    if (domain) {
      domain->handle = all[i];
      g_ptr_array_add(domains, domain);
      continue;
    }
    g_message("domain '%s' is passed over: %s", virDomainGetName(all[i]),
              local->message); /* it starts or ends just now */
    virDomainFree(all[i]);
  }
  free(all);
  return n >= 0 ? g_steal_pointer(&domains) : NULL;
}

/* virFileCacheGetFileName() in libvirt's virfilecache.c. */
char *
dr_libvirt_caps_file(const DrLibvirtPlaces *places, const char *emulator)
{
  g_autofree char *hash = g_compute_checksum_for_string(G_CHECKSUM_SHA256, emulator, -1);

  return g_strdup_printf("%s/%s.xml", places->cache_dir, hash);
}
