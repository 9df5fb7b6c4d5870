/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From getrusage(2) and /proc/self. */
#include "daemon/process-stats.h"
#include "base/exposition.h"
#include "base/fd.h"
#include "qemu/proc.h"

#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

static double
seconds(struct timeval time)
{
  return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

static void
print_cpu(GString *out)
{
  struct rusage usage;

  if (getrusage(RUSAGE_SELF, &usage) == 0)
    dr_exposition_one(out, "process_cpu_seconds_total", "counter", "CPU time of droverd, user and system.",
                      seconds(usage.ru_utime) + seconds(usage.ru_stime));
}

static void
print_memory(GString *out)
{
  g_autofree char *text = dr_file_read("/proc/self/statm", 256, NULL, NULL);
  double page = (double)sysconf(_SC_PAGESIZE);
  guint64 size, resident;

  if (!text || sscanf(text, "%" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT, &size, &resident) != 2)
    return;
  dr_exposition_one(out, "process_virtual_memory_bytes", "gauge", "Virtual memory of droverd.",
                    (double)size * page);
  dr_exposition_one(out, "process_resident_memory_bytes", "gauge", "Resident memory of droverd.",
                    (double)resident * page);
}

static void
print_fds(GString *out)
{
  g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
  struct rlimit limit;
  guint n = 0;

  while (dir && g_dir_read_name(dir))
    n++;
  if (n > 0) /* without the one that looked */
    dr_exposition_one(out, "process_open_fds", "gauge", "Descriptors that droverd has open.", n - 1);
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
    dr_exposition_one(out, "process_max_fds", "gauge", "Descriptors that droverd may have open.",
                      (double)limit.rlim_cur);
}

/* The kernel counts from its own start; computed once, or the figure would waver by what the two clocks are read apart. */
static double
start_time(void)
{
  static gsize once;
  static double start;

  if (g_once_init_enter(&once)) {
    struct timespec since_boot;
    DrProcId id;

    if (clock_gettime(CLOCK_BOOTTIME, &since_boot) == 0 && dr_proc_identify(getpid(), &id, NULL))
      start = (double)g_get_real_time() / 1e6 - (double)since_boot.tv_sec - (double)since_boot.tv_nsec / 1e9 +
              (double)id.start_time / (double)sysconf(_SC_CLK_TCK);
    g_once_init_leave(&once, 1);
  }
  return start;
}

void
dr_process_stats_print(GString *out)
{
  print_cpu(out);
  print_memory(out);
  print_fds(out);
  if (start_time() > 0)
    dr_exposition_one(out, "process_start_time_seconds", "gauge",
                      "When droverd began, in seconds since 1970.", start_time());
}
