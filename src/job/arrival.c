/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Preparing this host for a guest of another one. */
#include "job/arrival.h"
#include "base/error.h"
#include "base/fd.h"
#include "job/arrival-storage.h"
#include "vm/describe.h"
#include "vm/user.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <net/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <netdb.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define BACKLOG 16

/* --- Checks --- */

static gboolean
is_allowed(const char *binary, const char *const *binaries)
{
  g_autofree char *canonical = g_path_is_absolute(binary) ? g_canonicalize_filename(binary, "/") : NULL;

  if (g_strcmp0(canonical, binary) != 0)
    return FALSE;
  for (const char *const *pattern = binaries; pattern && *pattern; pattern++)
    if (fnmatch(*pattern, binary, FNM_PATHNAME | FNM_PERIOD) == 0)
      return TRUE;
  return FALSE;
}

/* Looked at before it is asked what it can do: asking is starting it. */
static gboolean
check_allowed(DrPreflight *p, DrVm *vm, const char *qemu, const char *const *binaries)
{
  g_autofree char *binary = dr_describe_program(qemu ? qemu : dr_argv_program(p->truth), dr_vm_record(vm));

  if (is_allowed(binary, binaries))
    return TRUE;
  dr_findings_add(
      p->findings, DR_FINDING_BLOCKER, "binary",
      "add it to binaries= in [qemu] of that host's droverd.conf, or name another one: --qemu PATH",
      "'%s' is not among the QEMU binaries that the other host starts for a peer", binary);
  return FALSE;
}

static void
check_bridges(DrPreflight *p, JsonObject *spec)
{
  for (guint i = 0; i < p->needs->len; i++) {
    JsonObject *tap = dr_move_spec_tap(spec, i);
    const char *bridge = tap ? dr_json_str(tap, "bridge", NULL) : NULL;

    if (bridge && if_nametoindex(bridge) == 0)
      dr_findings_add(p->findings, DR_FINDING_BLOCKER, "bridge",
                      "make it there, or put the guest on another one: --map netdev=ID:BRIDGE",
                      "the other host has no bridge '%s' for the guest's tap '%s'", bridge,
                      dr_json_str(tap, "ifname", "?"));
  }
}

/* What is not copied is opened as the user that the QEMU will have. */
static void
check_user(DrPreflight *p, JsonArray *disks)
{
  g_auto(GStrv) launcher = dr_qemu_user_launcher(p->truth);
  g_autoptr(GPtrArray) tests = g_ptr_array_new_with_free_func(g_free);
  uid_t uid;
  gid_t gid;

  if (dr_qemu_user_is_unknown(p->truth))
    dr_findings_add(p->findings, DR_FINDING_BLOCKER, "user", "make that user there, with the same number",
                    "the other host has no user as which the VM's QEMU is to run (-runas, -run-with user=)");
  if (!*launcher || !dr_qemu_user(p->truth, &uid, &gid))
    return;
  for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
    JsonObject *disk = json_array_get_object_element(disks, i);
    const char *role = dr_json_str(disk, "role", "");

    if (!g_str_equal(role, "shared") && !g_str_equal(role, "base"))
      continue;
    g_ptr_array_add(tests, g_strdup(g_str_equal(role, "base") ? "-r" : "-w"));
    g_ptr_array_add(tests, g_strdup(dr_json_str(disk, "path", "")));
  }
  if (tests->len)
    dr_preflight_ask_rights(p, (const char *const *)launcher, uid, tests);
}

void
dr_arrival_check(DrPreflight *p, DrVm *vm, JsonObject *spec, const char *qemu, const char *const *binaries)
{
  static const char *const none[] = { NULL };

  dr_argv_set_launcher(p->truth, none); /* numactl and the like belong to the other host */
  g_clear_pointer(&p->to_make, g_ptr_array_unref);
  p->to_make = dr_arrival_storage_files(dr_json_arr(spec, "disks"));
  if (check_allowed(p, vm, qemu, binaries))
    dr_preflight_arrival(p, vm, qemu);
  dr_preflight_promise(p, "the other host");
  check_bridges(p, spec);
  check_user(p, dr_json_arr(spec, "disks"));
  dr_move_tokens_check(dr_json_arr(spec, "disks"), p->findings);
  dr_arrival_storage_check(dr_json_arr(spec, "disks"), p->findings);
}

/* --- Taps --- */

static gboolean
tap_error(const char *doing, const char *ifname, GError **error)
{
  int err = errno;

  dr_error_set_errno(error, err, "cannot %s tap '%s'", doing, ifname);
  return dr_error_remedy(
      error, err == EBUSY ? "another program has it open on that host: choose another VM or tap there"
                          : "run droverd as root on that host");
}

static int
open_queue(const char *ifname, gboolean many, GError **error)
{
  struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (many ? IFF_MULTI_QUEUE : 0) };
  dr_autofd int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

  g_strlcpy(request.ifr_name, ifname, IFNAMSIZ);
  if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0) {
    tap_error("make", ifname, error);
    return -1;
  }
  return dr_fd_steal(&fd);
}

static gboolean
set_mtu(int sock, const char *ifname, gint64 mtu)
{
  struct ifreq request = { .ifr_mtu = (int)mtu };

  g_strlcpy(request.ifr_name, ifname, IFNAMSIZ);
  return mtu <= 0 || ioctl(sock, SIOCSIFMTU, &request) == 0;
}

static gboolean
set_bridge(int sock, const char *ifname, const char *bridge)
{
  struct ifreq request = { 0 };

  if (!bridge)
    return TRUE;
  request.ifr_ifindex = (int)if_nametoindex(ifname);
  g_strlcpy(request.ifr_name, bridge, IFNAMSIZ);
  return ioctl(sock, SIOCBRADDIF, &request) == 0 || errno == EBUSY; /* it is a port already */
}

static gboolean
set_up(int sock, const char *ifname)
{
  struct ifreq request = { 0 };

  g_strlcpy(request.ifr_name, ifname, IFNAMSIZ);
  if (ioctl(sock, SIOCGIFFLAGS, &request) < 0)
    return FALSE;
  request.ifr_flags |= IFF_UP;
  return ioctl(sock, SIOCSIFFLAGS, &request) == 0;
}

static gboolean
configure_tap(JsonObject *tap, GError **error)
{
  const char *ifname = dr_json_str(tap, "ifname", "");
  dr_autofd int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

  if (!set_mtu(sock, ifname, dr_json_int(tap, "mtu", 0)))
    return tap_error("set the MTU of", ifname, error);
  if (!set_bridge(sock, ifname, dr_json_str(tap, "bridge", NULL)))
    return tap_error("put on its bridge", ifname, error);
  return set_up(sock, ifname) || tap_error("bring up", ifname, error);
}

static gboolean
make_tap(DrUpgrade *u, DrNeed *need, JsonObject *tap, GError **error)
{
  const char *ifname = dr_json_str(tap, "ifname", "");
  gint64 queues = CLAMP(dr_json_int(tap, "queues", 1), 1, 64);

  for (gint64 i = 0; i < queues; i++) {
    int fd = open_queue(ifname, queues > 1, error);
    int number;

    if (fd < 0)
      return FALSE;
    number = dr_upgrade_hand(u, fd, need->kind == DR_NEED_FD ? need->fd : -1);
    g_array_append_val(need->numbers, number);
    if (need->kind == DR_NEED_FD)
      break; /* each queue is a need of its own */
  }
  return configure_tap(tap, error);
}

/* --- Listeners --- */

static struct addrinfo *
resolve(const DrChardev *chardev, guint port, GError **error)
{
  struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV };
  struct addrinfo *found = NULL;
  g_autofree char *service = g_strdup_printf("%u", port);
  const char *host = chardev->host && *chardev->host ? chardev->host : NULL;
  int err = getaddrinfo(host, service, &hints, &found);

  if (err)
    dr_error_set(error, DR_ERROR_INVALID, "cannot listen on '%s': %s", host ? host : "*", gai_strerror(err));
  return err ? NULL : found;
}

static int
listen_on(const DrArgv *argv, const DrNeed *need, GError **error)
{
  g_autoptr(DrChardev) chardev = dr_opt_parse_chardev(dr_argv_opt(argv, need->opt), error);
  struct addrinfo *address = chardev ? resolve(chardev, need->port, error) : NULL;
  dr_autofd int fd = -1;
  int one = 1;

  if (!address)
    return -1;
  fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd >= 0)
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (fd < 0 || bind(fd, address->ai_addr, address->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
    dr_error_set_errno(error, errno, "cannot listen on port %u, which the guest's command line asks for",
                       need->port);
    dr_error_remedy(error, "free the port on that host");
    freeaddrinfo(address);
    return -1;
  }
  freeaddrinfo(address);
  return dr_fd_steal(&fd);
}

/* --- All of it --- */

static gboolean
make_one(DrUpgrade *u, guint i, GError **error)
{
  DrNeed *need = u->pre->needs->pdata[i];
  JsonObject *tap = dr_move_spec_tap(u->spec, i);
  int fd, number;

  if (need->kind != DR_NEED_TCP_LISTENER)
    return tap ? make_tap(u, need, tap, error)
               : dr_error_set(error, DR_ERROR_INVALID, "the peer does not say which tap network '%s' is",
                              need->netdev ? need->netdev : "?");
  fd = listen_on(u->pre->truth, need, error);
  if (fd < 0)
    return FALSE;
  number = dr_upgrade_hand(u, fd, -1);
  g_array_append_val(need->numbers, number);
  return TRUE;
}

gboolean
dr_arrival_make_needs(DrUpgrade *u, GError **error)
{
  for (guint i = 0; i < u->pre->needs->len; i++)
    if (!make_one(u, i, error))
      return FALSE;
  return TRUE;
}
