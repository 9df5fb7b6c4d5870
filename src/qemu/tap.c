/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Watches tap queues beneath a running QEMU while another one starts on them.
 *
 * The kernel tells nobody when a header size is changed, so it is polled, some ten thousand times a second for the short
 * time that a QEMU takes to start. A wrong header size breaks every packet; wrong offloads only cost speed, and are
 * looked for less often, except where the header size is 10 rightly and so does not show that somebody was at it. */
#include "qemu/tap.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/fd.h"
#include "qemu/tap-features.h"
#include "qemu/tap-socket.h"

#include <errno.h>
#include <net/if.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>

#define QEMU_HEADER 10  /* what a starting QEMU sets: struct virtio_net_hdr */
#define FAST_NS 80000   /* between two looks; a look takes some microseconds */
#define SLOW_NS 5000000 /* after FAST_MS: no QEMU takes as long to start, somebody forgot to stop the guard */
#define FAST_MS 30000
#define OFFLOADS_EACH 64 /* looks, about 5 ms */

typedef struct {
  int fd; /* borrowed */
  char name[IFNAMSIZ];
  gboolean first;       /* of its interface: header size and offloads are the interface's, not the queue's */
  gboolean one_of_many; /* only a queue of a tap made for several can be detached */
  gboolean attached;    /* as it was noted */
  gboolean reattached;  /* by us */
  int header;
  DrTapFeatures *features; /* NULL: offloads are not known, or not this queue's business */
  guint offloads;
  int feeder; /* a packet socket; -1: none */
  struct sockaddr_ll address;
} Queue;

struct DrTapGuard {
  Queue *queues;
  guint n;
  GThread *thread; /* NULL: not watching */
  gint stopping;   /* atomic */
  guint restored;  /* the thread's while it runs */
};

static gboolean
is_detached(int fd)
{
  struct ifreq request = { 0 };

  return ioctl(fd, TUNGETIFF, &request) == 0 && (request.ifr_flags & IFF_DETACH_QUEUE);
}

static gboolean
set_attached(Queue *queue, gboolean attached)
{
  struct ifreq request = { .ifr_flags = attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE };

  if (ioctl(queue->fd, TUNSETQUEUE, &request) == 0)
    return TRUE;
  g_warning("tap '%s': cannot %s a queue: %s", queue->name, attached ? "attach" : "detach",
            g_strerror(errno));
  return FALSE;
}

/* ---- Noting ---- */

static void
note_offloads(Queue *queue)
{
  g_autoptr(GError) error = NULL;

  queue->features = dr_tap_features_new(queue->fd, &error);
  if (!queue->features)
    g_warning("%s: its offloads stay off until the new QEMU sets them", error->message);
  else if (!dr_tap_features_read(queue->features, &queue->offloads))
    g_clear_pointer(&queue->features, dr_tap_features_free);
}

/* See dr_tap_guard_feed(). Of a tap with several queues the kernel chooses the one: that is left alone. */
static void
open_feeder(Queue *queue)
{
  struct ifreq request = { 0 };

  queue->feeder = queue->one_of_many ? -1 : dr_tap_socket(queue->fd, AF_PACKET, SOCK_RAW | SOCK_NONBLOCK);
  g_strlcpy(request.ifr_name, queue->name, IFNAMSIZ);
  if (queue->feeder < 0 || ioctl(queue->feeder, SIOCGIFINDEX, &request) < 0)
    return;
  queue->address = (struct sockaddr_ll){ .sll_family = AF_PACKET, .sll_ifindex = request.ifr_ifindex };
}

static gboolean
is_first(const DrTapGuard *guard, guint i)
{
  for (guint j = 0; j < i; j++)
    if (g_str_equal(guard->queues[j].name, guard->queues[i].name))
      return FALSE;
  return TRUE;
}

static gboolean
note(DrTapGuard *guard, guint i, int fd, const char *ifname, GError **error)
{
  Queue *queue = &guard->queues[i];
  struct ifreq request = { 0 };

  queue->fd = fd;
  if (ioctl(fd, TUNGETIFF, &request) < 0 || ioctl(fd, TUNGETVNETHDRSZ, &queue->header) < 0) {
    dr_error_set(error, DR_ERROR_INVALID, "descriptor %d%s%s is not a tap queue: %s", fd,
                 ifname ? " of " : "", ifname ? ifname : "", g_strerror(errno));
    return FALSE;
  }
  g_strlcpy(queue->name, request.ifr_name, IFNAMSIZ);
  queue->one_of_many = request.ifr_flags & IFF_MULTI_QUEUE;
  queue->attached = !(request.ifr_flags & IFF_DETACH_QUEUE);
  queue->first = is_first(guard, i);
  open_feeder(queue);
  if (queue->first)
    note_offloads(queue);
  return TRUE;
}

/* ---- Looking ---- */

static gboolean
offloads_changed(Queue *queue)
{
  guint offloads;

  return queue->features && dr_tap_features_read(queue->features, &offloads) && offloads != queue->offloads;
}

static gboolean
look_at_header(Queue *queue, gboolean offloads_too)
{
  gboolean header_wrong;
  int header;

  if (ioctl(queue->fd, TUNGETVNETHDRSZ, &header) < 0)
    return FALSE;
  header_wrong = header != queue->header;
  if (header_wrong && ioctl(queue->fd, TUNSETVNETHDRSZ, &queue->header) < 0)
    g_warning("tap '%s': cannot set its header size back to %d: %s", queue->name, queue->header,
              g_strerror(errno));
  /* Who sets the header size has set the offloads just before. */
  offloads_too |= header_wrong || queue->header == QEMU_HEADER;
  if (!offloads_too || !offloads_changed(queue))
    return header_wrong;
  if (ioctl(queue->fd, TUNSETOFFLOAD, queue->offloads) < 0)
    g_warning("tap '%s': cannot set its offloads back to 0x%x: %s", queue->name, queue->offloads,
              g_strerror(errno));
  return TRUE;
}

static gboolean
look_at_queue(Queue *queue)
{
  if (!queue->one_of_many || !queue->attached || !is_detached(queue->fd) || !set_attached(queue, TRUE))
    return FALSE;
  queue->reattached = TRUE;
  return TRUE;
}

static void
look(DrTapGuard *guard, gboolean offloads_too)
{
  for (guint i = 0; i < guard->n; i++) {
    Queue *queue = &guard->queues[i];

    if (queue->first && look_at_header(queue, offloads_too))
      guard->restored++;
    if (look_at_queue(queue))
      guard->restored++;
  }
}

static gpointer
watch(gpointer data)
{
  DrTapGuard *guard = data;
  DrDeadline slow = dr_deadline_in(FAST_MS);

  /* The kernel may else wake us 50 us late, to save power, or milliseconds late, on a busy machine. All are of this
   * thread alone; without the right to the latter two it works a little worse. */
  prctl(PR_SET_TIMERSLACK, 1);
  if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &(struct sched_param){ .sched_priority = 1 }) <
      0)
    setpriority(PRIO_PROCESS, 0, -20);
  for (guint i = 0; !g_atomic_int_get(&guard->stopping); i++) {
    struct timespec pause = { .tv_nsec = dr_deadline_passed(slow) ? SLOW_NS : FAST_NS };

    look(guard, i % OFFLOADS_EACH == 0);
    nanosleep(&pause, NULL);
  }
  look(guard, /* offloads_too= */ TRUE);
  return NULL;
}

static DrTapGuard *
note_all(const int *fds, const char *const *ifnames, guint n, GError **error)
{
  g_autoptr(DrTapGuard) guard = g_new0(DrTapGuard, 1);

  guard->queues = g_new0(Queue, n);
  guard->n = n;
  for (guint i = 0; i < n; i++)
    guard->queues[i].feeder = -1;
  for (guint i = 0; i < n; i++)
    if (!note(guard, i, fds[i], ifnames ? ifnames[i] : NULL, error))
      return NULL;
  return g_steal_pointer(&guard);
}

DrTapGuard *
dr_tap_guard_new(const int *fds, const char *const *ifnames, guint n, GError **error)
{
  g_autoptr(DrTapGuard) guard = note_all(fds, ifnames, n, error);

  if (!guard)
    return NULL;
  guard->thread = g_thread_try_new("tap-guard", watch, guard, error);
  return guard->thread ? g_steal_pointer(&guard) : NULL;
}

JsonArray *
dr_tap_guard_write(const DrTapGuard *guard)
{
  JsonArray *noted = json_array_new();

  for (guint i = 0; i < guard->n; i++) {
    const Queue *queue = &guard->queues[i];

    json_array_add_object_element(noted, dr_json("{'attached': <%b>, 'header': <%i>, 'offloads': <%x>}",
                                                 queue->attached, queue->header,
                                                 queue->features ? (gint64)queue->offloads : -1));
  }
  return noted;
}

DrTapGuard *
dr_tap_guard_read(const int *fds, const char *const *ifnames, guint n, JsonArray *noted, GError **error)
{
  DrTapGuard *guard = note_all(fds, ifnames, n, error);

  for (guint i = 0; guard && i < n && i < json_array_get_length(noted); i++) {
    JsonObject *was = json_array_get_object_element(noted, i);
    Queue *queue = &guard->queues[i];
    gint64 offloads = dr_json_int(was, "offloads", -1);

    queue->attached = dr_json_bool(was, "attached", queue->attached);
    queue->header = (int)dr_json_int(was, "header", queue->header);
    if (offloads >= 0)
      queue->offloads = (guint)offloads;
  }
  return guard;
}

guint
dr_tap_guard_stop(DrTapGuard *guard)
{
  g_atomic_int_set(&guard->stopping, 1);
  if (guard->thread)
    g_thread_join(g_steal_pointer(&guard->thread));
  return guard->restored;
}

void
dr_tap_guard_feed(DrTapGuard *guard)
{
  /* From the tap's peer to all, of an ethertype for local experiments (IEEE 802, OUI extended). */
  static const guint8 frame[60] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 1, 0x88, 0xb5 };

  for (guint i = 0; i < guard->n; i++) {
    Queue *queue = &guard->queues[i];

    if (queue->feeder >= 0 && queue->address.sll_ifindex)
      sendto(queue->feeder, frame, sizeof frame, 0, (struct sockaddr *)&queue->address,
             sizeof queue->address);
  }
}

void
dr_tap_guard_hand_over(DrTapGuard *guard)
{
  dr_tap_guard_stop(guard);
  for (guint i = 0; i < guard->n; i++) {
    Queue *queue = &guard->queues[i];

    if (queue->reattached && set_attached(queue, FALSE))
      queue->reattached = FALSE;
  }
}

void
dr_tap_guard_take_back(DrTapGuard *guard)
{
  dr_tap_guard_stop(guard);
  look(guard, /* offloads_too= */ TRUE);
}

void
dr_tap_guard_free(DrTapGuard *guard)
{
  if (!guard)
    return;
  dr_tap_guard_stop(guard);
  for (guint i = 0; i < guard->n; i++) {
    dr_tap_features_free(guard->queues[i].features);
    dr_fd_cleanup(&guard->queues[i].feeder);
  }
  g_free(guard->queues);
  g_free(guard);
}
