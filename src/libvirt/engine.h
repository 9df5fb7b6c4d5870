/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover's own upgrade (job/upgrade.h) for domains, with a state file that is there for one run only: afterwards drover knows nothing of them.
 * While it works no daemon of libvirt's runs. */
#pragma once
#include "base/finding.h"
#include "job/job.h"

typedef struct DrLibvirtEngine DrLibvirtEngine;

/* It lives as long as the process, whose threads of jobs may outlive the jobs for a moment; between jobs it is connected to no monitor. `dir` and
 * `run_dir` are the run's own; `cache_dir`: what is known of QEMU binaries. */
DrLibvirtEngine *dr_libvirt_engine_new(const char *dir, const char *run_dir, const char *cache_dir,
                                       GError **error);

/* See DrHost: called from a thread of a job's. */
void dr_libvirt_engine_on_commit(DrLibvirtEngine *engine,
                                 void (*on_commit)(const char *vm, int pid, gpointer data), gpointer data);

/* Upgrades `domains` (of the journal, "waiting"), `parallel` at a time, and waits for all. Each gets "job", "pid" and its state: "moved",
 * "stayed", "lost"; an "error" where it did not move; on_end(domain, data) is called when that is known, in between also when a domain gets
 * a "note": what its upgrade waits for. FALSE: one of them does not come to an end. */
gboolean dr_libvirt_engine_upgrade(DrLibvirtEngine *engine, JsonArray *domains, const char *memory,
                                   guint parallel, GFunc on_end, gpointer data, GError **error);

/* Ends what a process that died left, and finds out where each guest is: as above; tell(domain, data) is called when it gets a note. FALSE: the
 * state file cannot be read, or as above. */
gboolean dr_libvirt_engine_recover(DrLibvirtEngine *engine, JsonArray *domains, GFunc tell, gpointer data,
                                   GError **error);

/* The monitor of a domain that has moved. */
DrQmp *dr_libvirt_engine_take(DrLibvirtEngine *engine, JsonObject *domain, DrProcId *ret_id, GError **error);

/* Forgets all of it. */
void dr_libvirt_engine_remove(const char *dir, const char *run_dir);
