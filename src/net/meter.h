/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What all relays of this process have carried, and what it cost: bytes, and the CPU time of their threads, those that run among
 * them. Any thread. */
#pragma once
#include <glib.h>

typedef struct {
  gint64 bytes_out, bytes_in; /* to, from other hosts */
  gint64 cpu_ns;
  guint streams; /* that are being carried now */
} DrMeterTotals;

typedef enum { DR_METER_OUT, DR_METER_IN } DrMeterDirection;

void dr_meter_bytes(DrMeterDirection direction, gint64 bytes);
/* A stream begins to be carried, +1, or is not any more, -1. */
void dr_meter_stream(int step);

/* By a relay's thread of itself, as the first and the last that it does. `begin` returns what `end` takes over. */
typedef struct DrMeterThread DrMeterThread;
DrMeterThread *dr_meter_begin(void);
void dr_meter_end(DrMeterThread *thread);

void dr_meter_read(DrMeterTotals *ret_totals);
