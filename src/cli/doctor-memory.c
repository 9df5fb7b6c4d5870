/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover doctor: memory, as VMs' RAM will find it. */
#include "cli/doctor.h"
#include "cli/render.h"

#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#define MEMORY_LOW_PART 20 /* a 20th */
#define POOLS "/sys/kernel/mm/hugepages"

/* --- Huge pages --- */

/* "hugepages-2048kB". Returns: whether the pool has pages. */
static gboolean
check_pool(DrDoctor *d, const char *name)
{
  g_autofree char *all = g_strdup_printf(POOLS "/%s/nr_hugepages", name);
  g_autofree char *unused = g_strdup_printf(POOLS "/%s/free_hugepages", name);
  gint64 nr = dr_doctor_number(d, all, 0), available = dr_doctor_number(d, unused, 0);
  const char *size = name + strcspn(name, "0123456789");

  if (nr > 0 && available == 0)
    dr_doctor_warning(d, "hugepages", "raise vm.nr_hugepages",
                      "all %" G_GINT64_FORMAT " huge pages of %s are taken: no VM can start on them", nr,
                      size);
  else if (nr > 0)
    dr_doctor_ok(d, "hugepages", "%" G_GINT64_FORMAT " of %" G_GINT64_FORMAT " huge pages of %s are free",
                 available, nr, size);
  return nr > 0;
}

static gboolean
check_pools(DrDoctor *d)
{
  g_autofree char *path = dr_doctor_path(d, POOLS);
  g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
  gboolean any = FALSE;
  const char *name;

  while (dir && (name = g_dir_read_name(dir)) != NULL)
    if (g_str_has_prefix(name, "hugepages-"))
      any |= check_pool(d, name);
  if (!any)
    dr_doctor_note(
        d, "hugepages", "where VMs are to have them: sysctl vm.nr_hugepages=N",
        "no huge pages are set aside: drover run --hugetlb and -mem-path on hugetlbfs do not work");
  return any;
}

/* The type of what is mounted exactly at `where`, or where a file system of `type` is mounted; one of them is NULL.
 * (transfer full) (nullable) */
static char *
find_mount(const DrDoctor *d, const char *where, const char *type)
{
  g_autofree char *text = dr_doctor_read(d, "/proc/mounts");
  g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);
  char *found = NULL; /* the last one covers those before it */

  for (char **line = lines; *line; line++) {
    g_auto(GStrv) fields = g_strsplit(*line, " ", 4);
    gboolean fits =
        g_strv_length(fields) == 4 && g_str_equal(where ? fields[1] : fields[2], where ? where : type);

    if (fits) {
      g_free(found);
      found = g_strdup(where ? fields[2] : fields[1]);
    }
  }
  return found;
}

static void
check_hugetlbfs(DrDoctor *d)
{
  g_autofree char *where = find_mount(d, NULL, "hugetlbfs");

  if (where)
    dr_doctor_ok(d, "hugetlbfs", "mounted at %s", where);
  else
    dr_doctor_note(
        d, "hugetlbfs", "mount -t hugetlbfs none /dev/hugepages",
        "it is not mounted: a QEMU with -mem-path cannot have huge pages (drover run --hugetlb can)");
}

/* "always within_size [advise] never deny force". QEMU advises for all RAM, and drover makes RAM of shared memory, to
 * which the setting for anonymous memory (…/enabled) does not apply. */
static void
check_shmem(DrDoctor *d)
{
  g_autofree char *text = dr_doctor_read(d, "/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  const char *open = text ? strchr(text, '[') : NULL;
  g_autofree char *chosen = open ? g_strndup(open + 1, strcspn(open + 1, "]")) : NULL;

  if (!chosen)
    dr_doctor_note(d, "shmem-thp", NULL, "this kernel has no transparent huge pages for shared memory");
  else if (g_str_equal(chosen, "never") || g_str_equal(chosen, "deny"))
    dr_doctor_note(d, "shmem-thp",
                   "echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled, before VMs start",
                   "transparent huge pages of shared memory are off (%s): RAM that drover makes has pages of "
                   "4 KiB, and guests run some per cent slower",
                   chosen);
  else
    dr_doctor_ok(d, "shmem-thp", "shared RAM may have transparent huge pages (%s)", chosen);
}

/* --- How much --- */

static void
check_overcommit(DrDoctor *d)
{
  gint64 mode = dr_doctor_number(d, "/proc/sys/vm/overcommit_memory", 0);
  gint64 limit = dr_doctor_meminfo(d, "CommitLimit"), used = dr_doctor_meminfo(d, "Committed_AS");
  g_autofree char *left = dr_render_bytes((double)MAX(limit - used, 0));

  if (mode == 2)
    dr_doctor_warning(d, "overcommit", "sysctl vm.overcommit_memory=0, or raise vm.overcommit_ratio",
                      "vm.overcommit_memory is 2: a VM's whole RAM counts from its start on, and %s are left",
                      left);
  else
    dr_doctor_ok(d, "overcommit", "memory that guests do not use is not set aside (vm.overcommit_memory=%d)",
                 (int)mode);
}

static void
check_free(DrDoctor *d)
{
  gint64 total = dr_doctor_meminfo(d, "MemTotal"), available = dr_doctor_meminfo(d, "MemAvailable");
  g_autofree char *all = dr_render_bytes((double)total), *left = dr_render_bytes((double)available);

  if (total <= 0 || available < 0)
    dr_doctor_warning(d, "memory", "mount /proc", "how much memory is free cannot be read");
  else if (available < total / MEMORY_LOW_PART)
    dr_doctor_warning(
        d, "memory", "stop or move a VM",
        "only %s of %s are free: no VM can come here, and one whose RAM is private cannot be upgraded", left,
        all);
  else
    dr_doctor_ok(d, "memory", "%s of %s are free", left, all);
}

static void
check_tmp(DrDoctor *d)
{
  g_autofree char *type = find_mount(d, "/tmp", NULL);
  g_autofree char *path = dr_doctor_path(d, "/tmp");
  struct statvfs fs = { 0 };
  g_autofree char *room = NULL;

  if (statvfs(path, &fs) < 0)
    fs = (struct statvfs){ 0 };
  room = dr_render_bytes((double)fs.f_bavail * (double)fs.f_frsize);
  if (g_strcmp0(type, "tmpfs") == 0 || g_strcmp0(type, "ramfs") == 0)
    dr_doctor_note(d, "tmp", "keep images and backups elsewhere, and set TMPDIR for a QEMU with -snapshot",
                   "/tmp is memory (%s, %s free): what is written there is missing for guests", type, room);
  else
    dr_doctor_ok(d, "tmp", "/tmp is on a disk, %s free", room);
}

void
dr_doctor_check_memory(DrDoctor *d)
{
  check_free(d);
  check_overcommit(d);
  if (check_pools(d))
    check_hugetlbfs(d);
  check_shmem(d);
  check_tmp(d);
}
