/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A job's flight recorder: what it was doing when, how far it was, and what its pause went to.
 *
 * Bounded: of samples at most DR_RECORDER_SAMPLES are kept. When they are full, every second one goes and the least time between two
 * doubles, so that a job of days has as many as one of minutes. It has no clock and no lock: times come from outside (microseconds, monotonic),
 * and the job's lock guards it; dr_recorder_copy() under that lock is cheap, and JSON is made of the copy. */
#pragma once
#include "job/pause.h"

#define DR_RECORDER_SAMPLES 1000
#define DR_RECORDER_PHASES 64
#define DR_RECORDER_NAMES 64
#define DR_RECORDER_BYTES (64 * 1024) /* of what is stored */

/* -1 (a double: below 0): not known. */
typedef struct {
  char *disk;
  gint64 bytes_done, bytes_total;
} DrDiskProgress;

typedef struct {
  gint64 bytes_done, bytes_total;
  double rate_mib;
  gint64 pass;
  gint64 remaining;         /* bytes of memory that are left of this pass */
  double dirty_mib;         /* MiB/s that the guest writes */
  gint64 expected_pause_ms; /* of the guest */
  gint64 expected_ms;       /* until the end */
  const char *phase;        /* for people; NULL: the stage */
  const DrDiskProgress *disks;
  guint n_disks;
} DrProgress;

/* Nothing is known. */
#define DR_PROGRESS_INIT                                                                                     \
  {                                                                                                          \
    .remaining = -1, .dirty_mib = -1, .expected_pause_ms = -1, .expected_ms = -1                             \
  }

typedef struct DrRecorder DrRecorder;

/* `origin_us`: what all times count from. */
DrRecorder *dr_recorder_new(gint64 origin_us);
DrRecorder *dr_recorder_copy(const DrRecorder *recorder);
void dr_recorder_free(DrRecorder *recorder);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrRecorder, dr_recorder_free)

/* Ends the phase before. */
void dr_recorder_phase(DrRecorder *recorder, const char *name, gint64 now_us);
/* `stage` names the phase where the progress does not. */
void dr_recorder_sample(DrRecorder *recorder, const DrProgress *progress, const char *stage, gint64 now_us);
/* begin_us, end_us: of the pause by the wall clock, as its marks; `at_us`: its begin by the recorder's. expected_ms: -1: nobody knew. */
void dr_recorder_pause(DrRecorder *recorder, const DrPause *pause, gint64 begin_us, gint64 end_us,
                       gint64 at_us, gint64 expected_ms);
/* The last phase ends. */
void dr_recorder_end(DrRecorder *recorder, gint64 now_us);

/* What the pause was expected to be, as the last sample that knew said; -1: none did. */
gint64 dr_recorder_expected_pause(const DrRecorder *recorder);

/* {"samples","phases","pause"} as docs/API.md has them. A phase that has not ended ends now. (transfer full) */
JsonObject *dr_recorder_report(const DrRecorder *recorder, gint64 now_us);

/* The same for the state file, in at most DR_RECORDER_BYTES; and from there to what dr_recorder_report() gives. (transfer full) */
char *dr_recorder_pack(const DrRecorder *recorder);
JsonObject *dr_recorder_unpack(JsonObject *packed);
