/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Prints this machine's time stamp counter rate in kHz, for the guest kernel's tsc_early_khz=. */

#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static uint64_t
now_ns(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC_RAW, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int
main(void)
{
  uint64_t begun = now_ns(), first = __rdtsc();
  while (now_ns() - begun < 100000000)
    ;
  uint64_t ended = now_ns(), last = __rdtsc();
  printf("%llu\n", (unsigned long long)((last - first) * 1000000 / (ended - begun)));
  return 0;
}
