/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of jobs share: jobs.c (all of them), job.c (one), job-end.c. */
#pragma once
#include "job/job.h"
#include "job/recorder.h"

struct DrJobs {
  DrHost *host;
  GMutex lock;
  GCond ended;
  GHashTable *active;    /* gint64* -> DrJob */
  GHashTable *unwritten; /* the same: ended, but the state file does not know yet (its disk is full) */
  GSource *write_again;  /* while there are any */
  gboolean writing;      /* a thread is at them */
};

struct DrJob {
  gatomicrefcount refs;
  DrJobs *jobs;
  gint64 id;
  char *kind;
  DrVm *vm;
  int cancel_fd;
  gboolean cancelled, no_return, finished;
  char *state, *stage;
  char *needed;       /* nullable: see dr_job_remove_at_end() */
  JsonObject *record; /* request, findings, error, result, progress, times: what docs/API.md shows */
  DrRecorder *recorder;
  GMutex lock;
};

gint64 dr_job_now_ms(void); /* by the wall clock */
/* Tells whoever listens how the job stands. */
void dr_job_publish(DrJob *job);
/* A job as docs/API.md shows it. (transfer full) */
JsonObject *dr_job_show(gint64 id, const char *kind, const char *vm, const char *state, const char *stage,
                        JsonObject *record);
/* Tries again to write the ends that could not be written; those that can be now are on disk when it returns. */
void dr_job_write_ends(DrJobs *jobs);
