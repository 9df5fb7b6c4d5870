/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A job: one long change to one VM, run as straight-line code in a thread of its own.
 *
 * A job enters a stage only after the stage is in the journal. Cancel is a request: it makes a descriptor readable,
 * which ends every QMP wait of the job, and is refused once the job has passed its point of no return.
 */
#pragma once
#include "base/finding.h"
#include "job/recorder.h"
#include "vm/vm.h"

typedef struct DrJob DrJob;
typedef struct DrJobs DrJobs;

/* The procedure. FALSE with an error: CANCELLED -> "cancelled", ATTENTION -> "attention", else "failed". */
typedef gboolean (*DrJobFunc)(DrJob *job, GError **error);

DrJobs *dr_jobs_new(DrHost *host);
void dr_jobs_free(DrJobs *jobs);

/* Makes a job for a VM and claims the VM for it. `request` is kept. Returns: (transfer full). */
DrJob *dr_jobs_add(DrJobs *jobs, const char *kind, DrVm *vm, JsonObject *request, GError **error);

/* Runs jobs (element-type DrJob, consumed), at most `parallel` at a time; returns at once. */
void dr_jobs_run(DrJobs *jobs, GPtrArray *batch, DrJobFunc run, guint parallel);

/* A job of an earlier droverd, taken up again under its old number (its VM is claimed). (transfer full) */
DrJob *dr_jobs_resume(DrJobs *jobs, const DrJobRow *row, DrVm *vm, GError **error);

/* Runs jobs of dr_jobs_resume() (element-type DrJob, consumed), all at a time; returns at once. */
void dr_jobs_recover(DrJobs *jobs, GPtrArray *batch, DrJobFunc recover);

DrJob *dr_job_ref(DrJob *job);
void dr_job_unref(DrJob *job);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrJob, dr_job_unref)

gint64 dr_job_id(DrJob *job);
const char *dr_job_kind(DrJob *job);
DrVm *dr_job_vm(DrJob *job);
DrHost *dr_job_host(DrJob *job);
JsonObject *dr_job_request(DrJob *job);

/* Readable once cancel was asked for; for dr_qmp_set_cancel_fd(). */
int dr_job_cancel_fd(DrJob *job);

/* Writes the stage into the journal, then enters it. `note` (nullable, consumed) is what recovery needs. Before the point
 * of no return it fails with DR_ERROR_CANCELLED if cancel was asked for.
 * For tests: with DROVER_HOLD_AT=STAGE[,STAGE…] in droverd's environment the job waits here (once entered, at most 120 s, or
 * until the file RUN_DIR/hold is removed), so that a test can kill what it wants at that stage. */
gboolean dr_job_enter(DrJob *job, const char *stage, JsonObject *note, GError **error);

/* Holds here if DROVER_HOLD_AT is `point`, which is no stage: for tests. */
void dr_job_hold(DrJob *job, const char *point);

/* The stage of the moment without the journal: for steps inside a stage that a watcher may see. Also holds. */
void dr_job_step(DrJob *job, const char *stage);

/* A job that was resumed, and can be cancelled as if it had never been interrupted. */
void dr_job_may_return(DrJob *job);

/* From now on cancel is refused. FALSE with DR_ERROR_CANCELLED if it was asked for before. */
gboolean dr_job_no_return(DrJob *job, GError **error);

void dr_job_set_findings(DrJob *job, const DrFindings *findings);
void dr_job_set_result(DrJob *job, JsonObject *result); /* consumed */
/* How far it is, for those who watch, and for the record. */
void dr_job_progress(DrJob *job, const DrProgress *progress);
/* The guest stood still from begin_us to end_us, by this host's wall clock. */
void dr_job_pause(DrJob *job, const DrPause *pause, gint64 begin_us, gint64 end_us);

/* A file that a recovery of this job needs: it is removed once the end of the job is in the state file. */
void dr_job_remove_at_end(DrJob *job, const char *path);

/* Ends a job that was never run. `error` NULL: succeeded. */
void dr_job_end(DrJob *job, const GError *error);

/* For the service. JSON as in docs/API.md. */
JsonObject *dr_job_json(DrJob *job);
JsonArray *dr_jobs_list(DrJobs *jobs, GError **error);
JsonObject *dr_jobs_show(DrJobs *jobs, gint64 id, GError **error);
JsonObject *dr_jobs_wait(DrJobs *jobs, gint64 id, int timeout_ms, GError **error);
/* Waits until nothing of it is under way any more; its state is that of the end some time before. FALSE: the time is over. */
gboolean dr_jobs_wait_gone(DrJobs *jobs, gint64 id, int timeout_ms);
/* What it did when: {"job","samples","phases","pause"}. */
JsonObject *dr_jobs_report(DrJobs *jobs, gint64 id, GError **error);
JsonObject *dr_jobs_cancel(DrJobs *jobs, gint64 id, GError **error);
guint dr_jobs_active(DrJobs *jobs);
GPtrArray *dr_jobs_running(DrJobs *jobs); /* the kind of each; (transfer full) (element-type utf8) */
/* Those of them that end by themselves soon: not those that leave a VM where it is (dr_vm_set_aside()). */
guint dr_jobs_passing(DrJobs *jobs);
