/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What droverd can do, as functions: the API maps HTTP onto these and adds nothing.
 *
 * All of them may block for as long as QEMU takes (each QMP call has its deadline) and are called on worker threads,
 * never on the main loop, except where said. JSON in, JSON out; results are (transfer full). */
#pragma once
#include "base/json.h"

typedef struct DrService DrService;

/* --- VMs. The shapes of the objects stand in docs/API.md. --- */

/* {"name","argv":[…],"cwd","env":["A=B"],"memory":"shared"|"private","hugetlb":bool}: starts one; with "stream" (job/stream-plan.h) and
 * "bandwidth" on disks that live elsewhere, which a job then pulls. -> VM object */
JsonObject *dr_service_run(DrService *service, JsonObject *request, GError **error);

/* {"name","pid"} or {"name","qmp":PATH}: takes over one that runs. -> VM object */
JsonObject *dr_service_adopt(DrService *service, JsonObject *request, GError **error);

/* `fresh`: borrowed monitors are asked for their VMs' state, which costs a connection each. */
JsonArray *dr_service_list(DrService *service, gboolean fresh, GError **error);
JsonObject *dr_service_show(DrService *service, const char *name, GError **error);

JsonObject *dr_service_pause(DrService *service, const char *name, GError **error);
JsonObject *dr_service_resume(DrService *service, const char *name, GError **error);

/* {"force":bool,"timeout":seconds}: ACPI power button and wait for the end, or with force SIGKILL. -> VM object */
JsonObject *dr_service_stop(DrService *service, const char *name, JsonObject *request, GError **error);

/* Drops a VM from drover's books: a running one runs on, unmanaged (`force` is then needed for one of `drover run`). */
gboolean dr_service_forget(DrService *service, const char *name, gboolean force, GError **error);

/* A QMP command object {"execute","arguments"} as a client would send it. -> {"return":…}; QEMU's own error is a
 * DR_ERROR_QMP. Commands that would undo drover's work (quit, migrate, …) are refused with a remedy. */
JsonObject *dr_service_qmp(DrService *service, const char *name, JsonObject *command, GError **error);

/* The console. attach returns a connected socket (stream; what the guest prints comes out, what is written goes to
 * the guest; it first delivers the scrollback) that stays up across upgrades; EOF when the VM ends. -1 on error. */
int dr_service_console(DrService *service, const char *name, GError **error);

/* --- Jobs --- */

/* {"vms":[names] or "all":true, "qemu":BINARY, "memory":"auto|shared|copy|postcopy", "parallel":N}
 * -> array of job objects, in the order of the names; each may still be queued. A name that is unknown or busy fails the
 * whole request before anything starts. */
JsonArray *dr_service_upgrade(DrService *service, JsonObject *request, GError **error);

/* The same request: preflight only. -> [{"vm","ok":bool,"findings":[…],"memory_mode","qemu_before","qemu_after"}] */
JsonArray *dr_service_upgrade_check(DrService *service, JsonObject *request, GError **error);

/* {"vms" or "all", "peer":NAME, …}: moves to another host; members in docs/API.md. -> job objects, as for upgrade */
JsonArray *dr_service_migrate(DrService *service, JsonObject *request, GError **error);
JsonArray *dr_service_migrate_check(DrService *service, JsonObject *request, GError **error);
/* To a move under way: `what` is "postcopy", "downtime", "bandwidth" or "get-bandwidth" (job/migrate.h). */
JsonObject *dr_service_migrate_set(DrService *service, const char *name, const char *what, JsonObject *params,
                                   GError **error);

/* --- Disks --- */

/* Every disk, with "chain". */
JsonArray *dr_service_disks(DrService *service, const char *name, GError **error);

/* Jobs on disks: job/disk-copy.h, job/disk-pull.h have the requests. -> an array of one job object */
JsonArray *dr_service_disk_copy(DrService *service, const char *name, JsonObject *request, GError **error);
JsonArray *dr_service_disk_pull(DrService *service, const char *name, JsonObject *request, GError **error);
/* To one under way: `what` is "pivot" {}, "abort" {} or "bandwidth" {"mib"}. */
JsonObject *dr_service_disk_ask(DrService *service, const char *name, const char *what, JsonObject *params,
                                GError **error);

/* Snapshots, oldest first, as they are on record. create, merge: as job/snapshot.h and job/disk-merge.h have it; an array of one job
 * object. forget: {"snapshot"}: only the record; returns it. */
JsonArray *dr_service_snapshots(DrService *service, const char *name, GError **error);
JsonArray *dr_service_snapshot_create(DrService *service, const char *name, JsonObject *request,
                                      GError **error);
JsonArray *dr_service_snapshot_merge(DrService *service, const char *name, JsonObject *request,
                                     GError **error);
/* As job/revert.h has it. */
JsonArray *dr_service_snapshot_revert(DrService *service, const char *name, JsonObject *request,
                                      GError **error);
JsonObject *dr_service_snapshot_forget(DrService *service, const char *name, JsonObject *request,
                                       GError **error);

/* Bitmaps of all disks or of one (`disk` nullable). change: `what` is "add" {"disk","bitmap","granularity","disabled","transient"},
 * "merge" {"disk","bitmap": into,"from":[…]}, "remove", "enable" or "disable" {"disk","bitmap"}; returns the bitmap. */
JsonArray *dr_service_bitmaps(DrService *service, const char *name, const char *disk, GError **error);
JsonObject *dr_service_bitmap_change(DrService *service, const char *name, const char *what,
                                     JsonObject *request, GError **error);

/* The last backup by each bitmap. create, serve: as job/backup.h and job/backup-serve.h have it; an array of one job object. finish:
 * {"success"}: ends one that is served. */
JsonArray *dr_service_backups(DrService *service, const char *name, GError **error);
JsonArray *dr_service_backup_create(DrService *service, const char *name, JsonObject *request,
                                    GError **error);
JsonArray *dr_service_backup_serve(DrService *service, const char *name, JsonObject *request, GError **error);
JsonObject *dr_service_backup_finish(DrService *service, const char *name, JsonObject *params,
                                     GError **error);

JsonArray *dr_service_jobs(DrService *service, GError **error);
JsonObject *dr_service_job(DrService *service, const char *id, GError **error);

/* Waits until the job has ended or `timeout_ms` is over; returns the job as it is then. */
JsonObject *dr_service_job_wait(DrService *service, const char *id, int timeout_ms, GError **error);

/* Asks it to stop. DR_ERROR_REFUSED past the point of no return or when it has ended. -> job object */
JsonObject *dr_service_job_cancel(DrService *service, const char *id, GError **error);

/* What it did when: job/recorder.h, with its "job". */
JsonObject *dr_service_report(DrService *service, const char *id, GError **error);
/* As job/stats.h has it; `kind` is nullable. */
JsonObject *dr_service_stats(DrService *service, const char *kind, GError **error);

/* --- Peers: the droverds of other hosts --- */

/* {"name","host","port":1-65535, absent: DR_PEER_PORT,"pin":key ids as dr_pin_parse() takes them, or null}. -> peer object.
 * Nothing is connected to. EXISTS for a name or an address that is taken. */
JsonObject *dr_service_peer_add(DrService *service, JsonObject *request, GError **error);
JsonArray *dr_service_peer_list(DrService *service, GError **error);
gboolean dr_service_peer_remove(DrService *service, const char *name, GError **error);

/* Connects, and measures. -> {"name","host","port","certificate":its first name,"key_id","version":droverd's there,"protocol",
 * "tls":suite,"round_trip_ms","send_mib","receive_mib":MiB/s,"clock_offset_ms":how much it is ahead, or absent} */
JsonObject *dr_service_peer_test(DrService *service, const char *name, GError **error);

/* --- libvirt's domains (libvirt/run.h; drover-libvirt does it) --- */

/* {"uri","domains":[names], absent: all,"emulator":PATH,"untested":bool} -> {"uri","domains":[{"name","ok","findings",…}]}; nothing is
 * changed. UNSUPPORTED: drover-libvirt is not installed. */
JsonObject *dr_service_libvirt_check(DrService *service, JsonObject *request, GError **error);

/* The same with "memory", "parallel", as upgrade has them: starts a run. BUSY: there is one. -> it, as dr_service_libvirt_run() shows it */
JsonObject *dr_service_libvirt_upgrade(DrService *service, JsonObject *request, GError **error);

/* The last run, or the one under way ("active"). NOT_FOUND: there was none. */
JsonObject *dr_service_libvirt_run(DrService *service, GError **error);
/* Another number when it has changed; 0: none is under way. */
guint64 dr_service_libvirt_stamp(DrService *service);

/* {"version","host":this machine's name,"run_dir","state_dir","uptime_s","vms","jobs","pid": droverd's,"libvirt": whether drover-libvirt is
 * installed} */
JsonObject *dr_service_version(DrService *service, GError **error);

/* Prometheus' text format 0.0.4; docs/METRICS.md. Nothing is asked of a QEMU. (transfer full) */
char *dr_service_metrics(DrService *service, GError **error);
