/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What libvirt says, by its own library, and where it keeps what it knows of its domains. Nothing is changed, and no domain's monitor is
 * used (virDomainQemuMonitorCommand() marks a domain as tainted). */
#pragma once
#include "qemu/proc.h"

#include <libvirt/libvirt.h>
#include <libxml/tree.h>

/* The QEMU driver's directories: virQEMUDriverConfigNew() in libvirt's qemu_conf.c. */
typedef struct {
  char *uri;        /* "qemu:///system" */
  char *state_dir;  /* DOMAIN.xml, DOMAIN.pid, driver.pid: "/run/libvirt/qemu" */
  char *config_dir; /* DOMAIN.xml of persistent ones: "/etc/libvirt/qemu" */
  char *cache_dir;  /* what each emulator can do: "/var/cache/libvirt/qemu/capabilities" */
  char *log_dir;    /* DOMAIN.log */
} DrLibvirtPlaces;

/* `uri`: qemu:///system or qemu:///session. DR_ERROR_INVALID: another. */
DrLibvirtPlaces *dr_libvirt_places_new(const char *uri, GError **error);
void dr_libvirt_places_free(DrLibvirtPlaces *places);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrLibvirtPlaces, dr_libvirt_places_free)

/* A running domain. */
typedef struct {
  char *name, *uuid;
  int id;
  DrProcId process;
  char *monitor;                              /* the socket's path */
  char *status_file, *pid_file, *config_file; /* config_file NULL: it is transient */
  char *log_file, *emulator, *arch, *machine, *virt_type;
  xmlDoc *status;      /* of status_file: <domstatus> */
  virDomainPtr handle; /* nullable: libvirt is not connected any more */
} DrLibvirtDomain;

void dr_libvirt_domain_free(DrLibvirtDomain *domain);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrLibvirtDomain, dr_libvirt_domain_free)

/* libvirt's library has no limit of its own for this: the caller's process has one. */
virConnectPtr dr_libvirt_connect(const DrLibvirtPlaces *places, GError **error);

/* All running domains. (transfer full) (element-type DrLibvirtDomain) */
GPtrArray *dr_libvirt_domains(virConnectPtr conn, const DrLibvirtPlaces *places, GError **error);

/* One domain by its files alone, while no daemon runs. */
DrLibvirtDomain *dr_libvirt_domain_read(const DrLibvirtPlaces *places, const char *name, GError **error);

/* libvirt's last error as ours: "cannot DO: TEXT". Returns FALSE. */
gboolean dr_libvirt_error(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* The file in which libvirt has noted what an emulator can do, after it has asked it. (transfer full) */
char *dr_libvirt_caps_file(const DrLibvirtPlaces *places, const char *emulator);
