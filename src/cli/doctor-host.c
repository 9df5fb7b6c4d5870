/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover doctor: the kernel, and what it lets this user do. */
#include "base/fd.h"
#include "cli/doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <unistd.h>

#define KERNEL_MAJOR 5 /* close_range(2) with CLOSE_RANGE_CLOEXEC is of 5.11 */
#define KERNEL_MINOR 11
#define NOFILE_WANTED 4096 /* a VM takes some 20 descriptors of droverd's, a move of it dozens */

static void
check_kernel(DrDoctor *d)
{
  g_autofree char *release = dr_doctor_read(d, "/proc/sys/kernel/osrelease");
  int major = 0, minor = 0;

  if (!release || sscanf(release, "%d.%d", &major, &minor) != 2)
    dr_doctor_warning(d, "kernel", "mount /proc", "the kernel's version cannot be read");
  else if (major < KERNEL_MAJOR || (major == KERNEL_MAJOR && minor < KERNEL_MINOR))
    dr_doctor_blocker(d, "kernel", "install a newer kernel",
                      "Linux %s is older than %d.%d, whose close_range(2) droverd needs", release,
                      KERNEL_MAJOR, KERNEL_MINOR);
  else
    dr_doctor_ok(d, "kernel", "Linux %s", release);
}

/* --- Virtualization --- */

static gboolean
has_cpu_flag(const DrDoctor *d, const char *flag)
{
  g_autofree char *text = dr_doctor_read(d, "/proc/cpuinfo");
  const char *line = text ? strstr(text, "\nflags") : NULL;
  g_autofree char *flags = line ? g_strndup(line + 1, strcspn(line + 1, "\n")) : NULL;
  g_auto(GStrv) words = g_strsplit(flags ? flags : "", " ", -1);

  return g_strv_contains((const char *const *)words, flag);
}

static const char *
why_no_kvm(const DrDoctor *d)
{
  if (has_cpu_flag(d, "vmx") || has_cpu_flag(d, "svm"))
    return "load its module: modprobe kvm_intel, or kvm_amd";
  return has_cpu_flag(d, "hypervisor") ? "let the hypervisor below give this machine nested virtualization"
                                       : "switch virtualization on in the firmware (VT-x, AMD-V)";
}

static void
check_kvm(DrDoctor *d)
{
  g_autofree char *path = dr_doctor_path(d, "/dev/kvm");
  dr_autofd int fd = open(path, O_RDWR | O_CLOEXEC);
  int version = fd >= 0 ? ioctl(fd, KVM_GET_API_VERSION, 0) : -1;

  if (version == KVM_API_VERSION)
    dr_doctor_ok(d, "kvm", "/dev/kvm opens");
  else if (fd >= 0)
    dr_doctor_warning(d, "kvm", "remove it, and load the module: modprobe kvm_intel, or kvm_amd",
                      "/dev/kvm is no KVM device: guests run emulated, many times slower");
  else if (errno == EACCES || errno == EPERM)
    dr_doctor_warning(d, "kvm", "usermod -aG kvm USER, and log in anew",
                      "this user may not open /dev/kvm: guests run emulated, many times slower");
  else
    dr_doctor_warning(d, "kvm", why_no_kvm(d),
                      "there is no /dev/kvm (%s): guests run emulated, many times slower", g_strerror(errno));
}

static void
check_nested(DrDoctor *d)
{
  g_autofree char *intel = dr_doctor_read(d, "/sys/module/kvm_intel/parameters/nested");
  g_autofree char *amd = dr_doctor_read(d, "/sys/module/kvm_amd/parameters/nested");
  const char *nested = intel ? intel : amd;

  if (nested && (g_str_equal(nested, "Y") || g_str_equal(nested, "1")))
    dr_doctor_note(
        d, "nested", NULL,
        "guests may run guests of their own: such a guest moves only to a host that has that on, too");
  else if (nested)
    dr_doctor_ok(d, "nested", "guests run no guests of their own");
  if (has_cpu_flag(d, "hypervisor"))
    dr_doctor_note(d, "virtual", NULL,
                   "this host is itself a virtual machine: pauses depend on what is below it, too");
}

/* --- System calls --- */

static const char *
userfaultfd_remedy(const DrDoctor *d)
{
  return dr_doctor_number(d, "/proc/sys/vm/unprivileged_userfaultfd", 1) == 0
             ? "run droverd as root, or set vm.unprivileged_userfaultfd=1"
             : "run droverd as root, or let its sandbox call userfaultfd(2)";
}

/* QEMU from 8.0 on looks there first. */
static const char *
of_device(const DrDoctor *d)
{
  g_autofree char *path = dr_doctor_path(d, "/dev/userfaultfd");

  return access(path, R_OK | W_OK) == 0 ? ", although /dev/userfaultfd could be opened" : "";
}

/* As droverd asks before it uses post-copy, and as QEMU begins. */
static void
check_userfaultfd(DrDoctor *d)
{
  struct uffdio_api api = { .api = UFFD_API };
  dr_autofd int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  int err = errno;

  if (fd < 0 && err == ENOSYS)
    dr_doctor_warning(d, "userfaultfd", "use a kernel with CONFIG_USERFAULTFD",
                      "this kernel has no userfaultfd: no post-copy");
  else if (fd < 0)
    dr_doctor_warning(d, "userfaultfd", userfaultfd_remedy(d),
                      "this user may not call userfaultfd(2) (%s): no post-copy%s", g_strerror(err),
                      of_device(d));
  else if (ioctl(fd, UFFDIO_API, &api) < 0)
    dr_doctor_warning(d, "userfaultfd", "use a kernel with CONFIG_USERFAULTFD",
                      "userfaultfd does not answer (%s): no post-copy", g_strerror(errno));
  else if (!(api.features & UFFD_FEATURE_MISSING_SHMEM))
    dr_doctor_warning(d, "userfaultfd", "use a kernel with CONFIG_SHMEM",
                      "userfaultfd knows no shared memory: no post-copy");
  else
    dr_doctor_ok(d, "userfaultfd", "works, also for shared memory: post-copy can be used");
}

static gboolean
use_memfd(void)
{
  const gsize size = 2 << 20;
  dr_autofd int fd = memfd_create("drover-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  char *memory;

  if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
    return FALSE;
  memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED)
    return FALSE;
  memory[size - 1] = 1;
  munmap(memory, size);
  return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0;
}

static void
check_memfd(DrDoctor *d)
{
  if (use_memfd())
    dr_doctor_ok(d, "memfd", "works: a VM's RAM can be handed over");
  else
    dr_doctor_blocker(d, "memfd",
                      "let droverd's sandbox call memfd_create(2) (SystemCallFilter= of its unit)",
                      "a guest's RAM cannot be made as a memfd: %s", g_strerror(errno));
}

/* --- Limits --- */

/* Of the droverd that runs, if it can be told; else of this process. */
static struct rlimit
limit_of(const DrDoctor *d, __rlimit_resource_t resource)
{
  struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };

  if (d->daemon == 0 || prlimit(d->daemon, resource, NULL, &limit) < 0)
    getrlimit(resource, &limit);
  return limit;
}

static void
check_nofile(DrDoctor *d)
{
  struct rlimit limit = limit_of(d, RLIMIT_NOFILE);

  if (limit.rlim_max < NOFILE_WANTED)
    dr_doctor_warning(d, "nofile", "raise it: LimitNOFILE= of droverd's unit, or ulimit -n",
                      "droverd may have %llu open files at the most: a few VMs",
                      (unsigned long long)limit.rlim_max);
  else
    dr_doctor_ok(d, "nofile", "droverd may have %llu open files", (unsigned long long)limit.rlim_max);
}

static void
check_memlock(DrDoctor *d)
{
  struct rlimit limit = limit_of(d, RLIMIT_MEMLOCK);
  uid_t user = d->daemon ? d->daemon_uid : geteuid();

  if (user == 0 || limit.rlim_max == RLIM_INFINITY)
    dr_doctor_ok(d, "memlock", "memory may be locked without a limit");
  else
    dr_doctor_note(d, "memlock", "raise it: LimitMEMLOCK= of droverd's unit, or ulimit -l",
                   "%llu MiB of memory may be locked: a QEMU with mem-lock=on needs more than its RAM",
                   (unsigned long long)limit.rlim_max >> 20);
}

/* --- Time --- */

static void
check_clock(DrDoctor *d)
{
  struct timex state = { 0 };
  int answer = adjtimex(&state);

  if (answer < 0)
    dr_doctor_warning(d, "clock", "let adjtimex(2) be called", "the clock's state cannot be read: %s",
                      g_strerror(errno));
  else if (answer == TIME_ERROR || (state.status & STA_UNSYNC))
    dr_doctor_warning(d, "clock", "switch on chrony or systemd-timesyncd",
                      "the clock is not synchronized: certificates are checked by it, and the pause of a "
                      "move between hosts is measured by it");
  else
    dr_doctor_ok(d, "clock", "synchronized, at most %.1f ms off", (double)state.maxerror / 1000);
}

void
dr_doctor_check_host(DrDoctor *d)
{
  check_kernel(d);
  check_kvm(d);
  check_nested(d);
  check_userfaultfd(d);
  check_memfd(d);
  check_nofile(d);
  check_memlock(d);
  check_clock(d);
}
