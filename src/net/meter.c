/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bytes are counted as they pass, without a lock; the CPU time of a thread that runs is asked of the kernel when somebody wants to
 * know. */
#include "net/meter.h"

#include <pthread.h>
#include <time.h>

struct DrMeterThread {
  clockid_t clock;
};

static gint64 bytes_moved[2]; /* atomic, by DrMeterDirection */
static gint streams;          /* atomic */
static GMutex lock;
static GList *threads;  /* of DrMeterThread; under `lock`, as what follows */
static gint64 ended_ns; /* of threads that have ended */

void
dr_meter_bytes(DrMeterDirection direction, gint64 bytes)
{
  __atomic_fetch_add(&bytes_moved[direction], bytes, __ATOMIC_RELAXED);
}

void
dr_meter_stream(int step)
{
  g_atomic_int_add(&streams, step);
}

static gint64
cpu_ns(clockid_t clock)
{
  struct timespec time;

  return clock_gettime(clock, &time) == 0 ? (gint64)time.tv_sec * 1000000000 + time.tv_nsec : 0;
}

DrMeterThread *
dr_meter_begin(void)
{
  DrMeterThread *thread = g_new0(DrMeterThread, 1);

  pthread_getcpuclockid(pthread_self(), &thread->clock); /* of a thread that is there it does not fail */
  g_mutex_lock(&lock);
  threads = g_list_prepend(threads, thread);
  g_mutex_unlock(&lock);
  return thread;
}

/* Off the list and into the sum at once, or somebody would see it twice, or not at all, and a counter go down. */
void
dr_meter_end(DrMeterThread *thread)
{
  g_mutex_lock(&lock);
  threads = g_list_remove(threads, thread);
  ended_ns += cpu_ns(CLOCK_THREAD_CPUTIME_ID);
  g_mutex_unlock(&lock);
  g_free(thread);
}

void
dr_meter_read(DrMeterTotals *ret_totals)
{
  ret_totals->bytes_out = __atomic_load_n(&bytes_moved[DR_METER_OUT], __ATOMIC_RELAXED);
  ret_totals->bytes_in = __atomic_load_n(&bytes_moved[DR_METER_IN], __ATOMIC_RELAXED);
  ret_totals->streams = (guint)MAX(g_atomic_int_get(&streams), 0);
  g_mutex_lock(&lock);
  ret_totals->cpu_ns = ended_ns;
  for (GList *link = threads; link; link = link->next)
    ret_totals->cpu_ns += cpu_ns(((DrMeterThread *)link->data)->clock);
  g_mutex_unlock(&lock);
}
