/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Taps that a real QEMU starts on while the guard watches. All in a network namespace of this process. */
#include "test-qemu-util.h"
#include "qemu/tap-features.h"
#include "qemu/tap.h"

#include <fcntl.h>
#include <net/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#define OFFLOADS (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
#define MAX_QUEUES 3

static const char *const versions[] = { "5.2", "7.2", "10.0", "11.1" };
static gboolean have_taps;

static int
open_tap(const char *name, gboolean many)
{
  struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (many ? IFF_MULTI_QUEUE : 0) };
  int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

  strcpy(request.ifr_name, name);
  if (fd >= 0 && ioctl(fd, TUNSETIFF, &request) == 0)
    return fd;
  if (fd >= 0)
    close(fd);
  return -1;
}

/* The one of an earlier QEMU may still be there: an 11.1 watches its descriptors by io_uring, which lets go of them some
 * milliseconds after the process has ended. */
static int
new_tap(const char *name, gboolean many)
{
  int fd;

  wait_until((fd = open_tap(name, many)) >= 0);
  return fd;
}

static int
get_header(int fd)
{
  int header = -1;

  g_assert_cmpint(ioctl(fd, TUNGETVNETHDRSZ, &header), ==, 0);
  return header;
}

static guint
get_offloads(int fd)
{
  g_autoptr(DrTapFeatures) features = dr_tap_features_new(fd, NULL);
  guint offloads = 0;

  g_assert_true(dr_tap_features_read(features, &offloads));
  return offloads;
}

static gboolean
get_attached(int fd)
{
  struct ifreq request = { 0 };

  g_assert_cmpint(ioctl(fd, TUNGETIFF, &request), ==, 0);
  return !(request.ifr_flags & IFF_DETACH_QUEUE);
}

static void
set_up(int fd, int header, guint offloads)
{
  g_assert_cmpint(ioctl(fd, TUNSETVNETHDRSZ, &header), ==, 0);
  g_assert_cmpint(ioctl(fd, TUNSETOFFLOAD, offloads), ==, 0);
}

static gboolean
skip_without_taps(void)
{
  if (!have_taps)
    g_test_skip("no /dev/net/tun, or no right to make a network namespace");
  return !have_taps;
}

static void
test_features(void)
{
  static const guint sets[] = { 0,        TUN_F_CSUM,        TUN_F_CSUM | TUN_F_TSO4, TUN_F_CSUM | TUN_F_TSO6,
                                OFFLOADS, TUN_F_CSUM | 0x60, OFFLOADS | 0x60 };
  dr_autofd int fd = -1;

  if (skip_without_taps())
    return;
  fd = new_tap("tapf", FALSE);
  for (guint i = 0; i < G_N_ELEMENTS(sets); i++) {
    if (ioctl(fd, TUNSETOFFLOAD, sets[i]) < 0) {
      g_test_message("this kernel does not know offloads 0x%x", sets[i]);
      continue;
    }
    g_assert_cmphex(get_offloads(fd), ==, sets[i]);
  }
}

static void
bring_up(const char *name)
{
  struct ifreq request = { 0 };
  dr_autofd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

  strcpy(request.ifr_name, name);
  g_assert_cmpint(ioctl(fd, SIOCGIFFLAGS, &request), ==, 0);
  request.ifr_flags |= IFF_UP;
  g_assert_cmpint(ioctl(fd, SIOCSIFFLAGS, &request), ==, 0);
}

/* Reads frames that are there until one has the ethertype; the kernel may have sent some of its own. */
static gboolean
has_frame(int fd, guint ethertype)
{
  guint8 frame[2048];
  gssize len;
  int header = get_header(fd);

  while ((len = read(fd, frame, sizeof frame)) > 0)
    if (len >= header + 14 && (guint)(frame[header + 12] << 8 | frame[header + 13]) == ethertype)
      return TRUE;
  return FALSE;
}

static void
test_feed(void)
{
  dr_autofd int fd = -1;
  g_autoptr(DrTapGuard) guard = NULL;

  if (skip_without_taps())
    return;
  fd = new_tap("tapg", FALSE);
  g_assert_cmpint(fcntl(fd, F_SETFL, O_NONBLOCK), ==, 0);
  bring_up("tapg");
  guard = dr_tap_guard_new(&fd, NULL, 1, NULL);
  dr_tap_guard_stop(guard);
  g_assert_false(has_frame(fd, 0x88b5));
  dr_tap_guard_feed(guard);
  wait_until(has_frame(fd, 0x88b5));
}

/* A tap that was moved into another namespace, as containers have them: its offloads are read there. */
static void
test_other_namespace(void)
{
  dr_autofd int home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
  dr_autofd int fd = -1;

  if (skip_without_taps())
    return;
  fd = new_tap("tapn", FALSE);
  set_up(fd, 12, OFFLOADS);
  g_assert_cmpint(unshare(CLONE_NEWNET), ==, 0);
  g_assert_cmphex(get_offloads(fd), ==, OFFLOADS);
  g_assert_cmpint(setns(home, CLONE_NEWNET), ==, 0);
}

static void
test_no_tap(void)
{
  g_autoptr(GError) error = NULL;
  dr_autofd int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

  g_assert_null(dr_tap_guard_new(&fd, (const char *const[]){ "tap0" }, 1, &error));
  assert_error(&error, DR_ERROR_INVALID, "of tap0 is not a tap queue");
  g_assert_null(dr_tap_guard_new(&fd, NULL, 1, &error));
  assert_error(&error, DR_ERROR_INVALID, "is not a tap queue");
}

/* How long the header size was wrong, as an observer sees it that looks all the time. */
typedef struct {
  int fd;
  int header;
  gint stop;
  gint64 wrong_us;
  gint64 longest_us;
} Observer;

static gpointer
observe(gpointer data)
{
  Observer *observer = data;
  gint64 since = 0;

  while (!g_atomic_int_get(&observer->stop)) {
    gboolean wrong = get_header(observer->fd) != observer->header;
    gint64 now = g_get_monotonic_time();

    if (wrong && !since)
      since = now;
    if (!wrong && since) {
      observer->wrong_us += now - since;
      observer->longest_us = MAX(observer->longest_us, now - since);
      since = 0;
    }
    g_usleep(5);
  }
  return NULL;
}

static gint64
cpu_us(void)
{
  struct rusage usage;

  getrusage(RUSAGE_SELF, &usage);
  return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * G_USEC_PER_SEC + usage.ru_utime.tv_usec +
         usage.ru_stime.tv_usec;
}

static TestQemu *
start_on_tap(const char *version, const char *dir, const int *fds, guint n)
{
  static const int numbers[MAX_QUEUES] = { 30, 31, 32 };
  g_autofree char *binary = qemu_find(version);
  const char *args = n == 1 ? "-m 64 -incoming defer -netdev tap,id=n0,fd=30 -device virtio-net-pci,netdev=n0"
                            : "-m 64 -smp 2 -incoming defer -netdev tap,id=n0,fds=30:31:32 -device "
                              "virtio-net-pci,netdev=n0,mq=on,vectors=8";

  return test_qemu_start(binary, dir, args, fds, numbers, n);
}

static void
check_guarded(const char *version, int header, guint offloads)
{
  auto_tmp char *dir = tmp_new();
  dr_autofd int fd = new_tap("tap1", FALSE);
  const char *ifname = "tap1";
  g_autoptr(TestQemu) qemu = NULL;
  g_autoptr(DrTapGuard) guard = NULL;
  Observer observer = { .fd = fd, .header = header };
  GThread *thread;
  guint restored;

  set_up(fd, header, offloads);
  guard = dr_tap_guard_new(&fd, &ifname, 1, NULL);
  thread = g_thread_new("observer", observe, &observer);
  qemu = start_on_tap(version, dir, &fd, 1);
  restored = dr_tap_guard_stop(guard);
  g_atomic_int_set(&observer.stop, 1);
  g_thread_join(thread);
  g_assert_nonnull(qemu);
  g_test_message("QEMU %s, header %d: put back %u times, wrong for %d us, at most %d us at once", version,
                 header, restored, (int)observer.wrong_us, (int)observer.longest_us);
  g_assert_cmpuint(restored, >, 0);
  g_assert_cmpint(get_header(fd), ==, header);
  g_assert_cmphex(get_offloads(fd), ==, offloads);
  g_assert_cmpuint(dr_tap_guard_stop(guard), ==, restored);
}

/* Without the guard: what it is there for. */
static void
check_unguarded(const char *version)
{
  auto_tmp char *dir = tmp_new();
  dr_autofd int fd = new_tap("tap1", FALSE);
  g_autoptr(TestQemu) qemu = NULL;

  set_up(fd, 12, OFFLOADS);
  qemu = start_on_tap(version, dir, &fd, 1);
  g_assert_nonnull(qemu);
  g_assert_cmpint(get_header(fd), ==, 10);
  g_assert_cmphex(get_offloads(fd), ==, 0);
}

static void
test_one_queue(gconstpointer data)
{
  g_autofree char *binary = qemu_find(data);

  if (skip_without_taps())
    return;
  if (!binary) {
    g_test_skip("this QEMU is not here: tests/tools/fetch-qemu brings it");
    return;
  }
  check_unguarded(data);
  check_guarded(data, 12, OFFLOADS);
  check_guarded(data, 12, OFFLOADS);
  check_guarded(data, 20, TUN_F_CSUM);
  check_guarded(data, 10, OFFLOADS);
}

static void
test_queues(gconstpointer data)
{
  g_autofree char *binary = qemu_find(data);
  auto_tmp char *dir = tmp_new();
  int fds[MAX_QUEUES];
  g_autoptr(TestQemu) qemu = NULL;
  g_autoptr(DrTapGuard) guard = NULL;
  gboolean detached;

  if (skip_without_taps())
    return;
  if (!binary) {
    g_test_skip("this QEMU is not here: tests/tools/fetch-qemu brings it");
    return;
  }
  for (guint i = 0; i < MAX_QUEUES; i++)
    fds[i] = new_tap("tapq", TRUE);
  set_up(fds[0], 12, OFFLOADS);
  guard = dr_tap_guard_new(fds, NULL, MAX_QUEUES, NULL);
  qemu = start_on_tap(data, dir, fds, MAX_QUEUES);
  g_test_message("QEMU %s: put back %u times", (char *)data, dr_tap_guard_stop(guard));
  for (guint i = 0; i < MAX_QUEUES; i++) {
    g_assert_true(get_attached(fds[i]));
    g_assert_cmpint(get_header(fds[i]), ==, 12);
  }
  g_assert_cmphex(get_offloads(fds[0]), ==, OFFLOADS);

  /* What this QEMU believes detached is detached when it loads; a 5.2 believes nothing of the kind. */
  dr_tap_guard_hand_over(guard);
  detached = !g_str_equal(data, "5.2");
  for (guint i = 0; i < MAX_QUEUES; i++)
    g_assert_cmpint(get_attached(fds[i]), ==, i == 0 || !detached);
  dr_tap_guard_take_back(guard);
  for (guint i = 0; i < MAX_QUEUES; i++)
    g_assert_true(get_attached(fds[i]));
  for (guint i = 0; i < MAX_QUEUES; i++)
    close(fds[i]);
}

/* A queue that the guest has not taken into use stays as it is. */
static void
test_unused_queue(void)
{
  int fds[2];
  struct ifreq detach = { .ifr_flags = IFF_DETACH_QUEUE };
  g_autoptr(DrTapGuard) guard = NULL;

  if (skip_without_taps())
    return;
  fds[0] = new_tap("tapu", TRUE);
  fds[1] = new_tap("tapu", TRUE);
  g_assert_cmpint(ioctl(fds[1], TUNSETQUEUE, &detach), ==, 0);
  guard = dr_tap_guard_new(fds, NULL, 2, NULL);
  g_assert_cmpuint(dr_tap_guard_stop(guard), ==, 0);
  g_assert_false(get_attached(fds[1]));
  dr_tap_guard_take_back(guard);
  g_assert_false(get_attached(fds[1]));
  close(fds[0]);
  close(fds[1]);
}

static void
test_cost(void)
{
  dr_autofd int fd = -1;
  g_autoptr(DrTapGuard) guard = NULL;
  gint64 begin, cpu;

  if (skip_without_taps())
    return;
  fd = new_tap("tapc", FALSE);
  set_up(fd, 12, OFFLOADS);
  begin = g_get_monotonic_time();
  cpu = cpu_us();
  guard = dr_tap_guard_new(&fd, NULL, 1, NULL);
  g_usleep(1000000); /* a measurement, nothing is waited for */
  g_assert_cmpuint(dr_tap_guard_stop(guard), ==, 0);
  g_test_message("%d ms of CPU time in %d ms", (int)(cpu_us() - cpu) / 1000,
                 (int)(g_get_monotonic_time() - begin) / 1000);
}

int
main(int argc, char **argv)
{
  dr_autofd int probe = -1;

  g_test_init(&argc, &argv, NULL);
  have_taps = unshare(CLONE_NEWNET) == 0 && (probe = open_tap("tapp", FALSE)) >= 0;
  g_test_add_func("/qemu/tap/features", test_features);
  g_test_add_func("/qemu/tap/feed", test_feed);
  g_test_add_func("/qemu/tap/other-namespace", test_other_namespace);
  g_test_add_func("/qemu/tap/no-tap", test_no_tap);
  for (guint i = 0; i < G_N_ELEMENTS(versions); i++) {
    g_autofree char *one = g_strconcat("/qemu/tap/one-queue/", versions[i], NULL);
    g_autofree char *many = g_strconcat("/qemu/tap/queues/", versions[i], NULL);

    g_test_add_data_func(one, versions[i], test_one_queue);
    g_test_add_data_func(many, versions[i], test_queues);
  }
  g_test_add_func("/qemu/tap/unused-queue", test_unused_queue);
  g_test_add_func("/qemu/tap/cost", test_cost);
  return g_test_run();
}
