/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the service share: the registry of VMs. */
#pragma once
#include "daemon/service.h"
#include "job/job.h"
#include "vm/vm.h"

#define DR_LEASE_MS 5000 /* how long a request waits for a VM's monitor */

struct DrService {
  DrHost *host;
  GMutex lock;
  GMutex adopting;    /* two adoptions of one QEMU must see each other */
  GHashTable *vms;    /* name -> DrVm */
  GHashTable *coming; /* set of names that are being started or adopted */
  DrJobs *jobs;
  gint64 started_us;
  gint ending; /* atomic: droverd ends, and waits for nobody */
};

/* (transfer full) */
DrVm *dr_service_find(DrService *service, const char *name, GError **error);

/* All of them, by name. (transfer full) */
GPtrArray *dr_service_all(DrService *service);

/* Drops a VM that is in no store any more from the registry. */
void dr_service_remove(DrService *service, const char *name);
