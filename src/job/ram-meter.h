/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How fast a guest's memory is copied, and written by the guest meanwhile, from samples of query-migrate. For people and the record; what
 * is decided is policy.h's. */
#pragma once
#include "job/recorder.h"

typedef struct {
  gint64 seen_us, seen_bytes, seen_left;
  gint64 pass, pass_us; /* the one under way, and when it was first seen */
  gint64 left;          /* what it began with; 0: the first */
  double wire, drain;   /* bytes/us, smoothed: on the wire, and off what is left (zero pages cost nothing) */
  double dirty;         /* bytes/us that the guest wrote during the pass before; -1: not known */
} DrRamMeter;

#define DR_RAM_METER_INIT                                                                                    \
  {                                                                                                          \
    .dirty = -1                                                                                              \
  }

/* `ram` is query-migrate's. Fills in all of *progress but the disks, the phase and the expected pause. */
void dr_ram_meter_take(DrRamMeter *meter, JsonObject *ram, gint64 now_us, DrProgress *progress);

/* How long what this pass began with takes, ms; -1: not known, as in the first pass. */
gint64 dr_ram_meter_pass_ms(const DrRamMeter *meter);
