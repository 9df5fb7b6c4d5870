/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the service share: the registry of VMs. */
#pragma once
#include "daemon/service.h"
#include "job/job.h"
#include "vm/vm.h"

#define DR_MIB_MAX 1000000 /* of a bandwidth */
#define DR_LEASE_MS 5000   /* how long a request waits for a VM's monitor */

typedef struct DrServiceNet DrServiceNet;
typedef struct DrServiceLibvirt DrServiceLibvirt;

struct DrService {
  DrHost *host;
  GMutex lock;
  GMutex adopting;    /* two adoptions of one QEMU must see each other */
  GHashTable *vms;    /* name -> DrVm */
  GHashTable *coming; /* set of names that are being started or adopted */
  DrJobs *jobs;
  DrServiceNet *net;
  DrServiceLibvirt *libvirt;
  gint64 started_us;
  gint ending; /* atomic: droverd ends, and waits for nobody */
};

/* (transfer full) */
DrVm *dr_service_find(DrService *service, const char *name, GError **error);

/* All of them, by name. (transfer full) */
GPtrArray *dr_service_all(DrService *service);

/* Reserves a name while a VM is made under it; settle ends that, takes the VM (nullable) in, and returns its long form. */
gboolean dr_service_reserve(DrService *service, const char *name, GError **error);
void dr_service_unreserve(DrService *service, const char *name);
JsonObject *dr_service_settle(DrService *service, const char *name, DrVm *vm);

/* The VM is not this host's any more: off the books, and its files. */
void dr_service_drop(DrService *service, DrVm *vm);

/* The VMs that a request {"vms":[…]} or {"all":true} is about, if none of them is busy. (transfer full) */
GPtrArray *dr_service_requested(DrService *service, JsonObject *request, GError **error);
/* A job for each; none, if one cannot be made. -> their objects */
JsonArray *dr_service_start_jobs(DrService *service, const char *kind, GPtrArray *vms, JsonObject *request,
                                 DrJobFunc run, guint parallel, GError **error);
typedef JsonObject *(*DrServiceCheck)(DrVm *vm, JsonObject *request, GError **error);
JsonArray *dr_service_check_all(GPtrArray *vms, JsonObject *request, DrServiceCheck check, GError **error);

/* Drops a VM that is in no store any more from the registry. */
void dr_service_remove(DrService *service, const char *name);

/* A job on one VM's disks. -> an array of one job object */
JsonArray *dr_service_start_disk(DrService *service, const char *name, const char *kind, JsonObject *request,
                                 DrJobFunc run, GError **error);

/* A job on disks that an earlier droverd began. Its VM's monitor is free. */
gboolean dr_service_recover_disk(DrJob *job, GError **error);

/* --- service-stream.c --- */
gboolean dr_service_check_stream(JsonObject *request, GError **error);
/* dr_vm_run(); the disks of "stream" are made before, and a job pulls them. */
DrVm *dr_service_run_stream(DrService *service, JsonObject *request, GError **error);
/* At droverd's start, when each VM is watched: those of which an earlier droverd had not come to make the job. */
void dr_service_take_up_streams(DrService *service);
