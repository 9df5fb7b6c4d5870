/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover doctor: what VMs and peers reach this host by. */
#include "base/address.h"
#include "base/fd.h"
#include "cli/doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define CONNECT_S 2
#define BRIDGES_MAX 16

/* --- Of VMs --- */

static void
check_tun(DrDoctor *d)
{
  g_autofree char *path = dr_doctor_path(d, "/dev/net/tun");
  dr_autofd int fd = open(path, O_RDWR | O_CLOEXEC);
  unsigned int features;

  if (fd < 0 && (errno == EACCES || errno == EPERM))
    dr_doctor_warning(d, "tun", "run droverd as root, or give its user /dev/net/tun",
                      "this user may not open /dev/net/tun: no VM with a tap device can be started");
  else if (fd < 0)
    dr_doctor_warning(d, "tun", "modprobe tun",
                      "/dev/net/tun does not open (%s): no VM with a tap device can be started",
                      g_strerror(errno));
  else if (ioctl(fd, TUNGETFEATURES, &features) < 0)
    dr_doctor_warning(d, "tun", "remove it, and load the module: modprobe tun",
                      "/dev/net/tun is no such device: no VM with a tap device can be started");
  else
    dr_doctor_ok(d, "tun", "/dev/net/tun opens");
}

static void
check_bridges(DrDoctor *d)
{
  g_autofree char *path = dr_doctor_path(d, "/sys/class/net");
  g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
  g_autoptr(GString) names = g_string_new(NULL);
  const char *name;
  guint n = 0;

  while (dir && n < BRIDGES_MAX && (name = g_dir_read_name(dir)) != NULL) {
    g_autofree char *bridge = g_build_filename(path, name, "bridge", NULL);

    if (access(bridge, F_OK) == 0)
      g_string_append_printf(names, "%s%s", n++ ? ", " : "", name);
  }
  if (n)
    dr_doctor_ok(d, "bridge", "%s", names->str);
  else
    dr_doctor_note(d, "bridge",
                   "where VMs are to be reached by their own addresses: ip link add br0 type bridge",
                   "there is no bridge: a VM on one cannot come here");
}

/* --- Of peers --- */

/* Connected to and nothing said, as a peer that thinks better of it; droverd does not mind. */
static gboolean
connects(const char *host, guint16 port, GError **error)
{
  g_autoptr(GSocketClient) client = g_socket_client_new();
  g_autoptr(GSocketConnection) connection = NULL;

  g_socket_client_set_timeout(client, CONNECT_S);
  g_socket_client_set_enable_proxy(client, FALSE);
  connection = g_socket_client_connect_to_host(client, host, port, NULL, error);
  return connection != NULL;
}

static void
check_port(DrDoctor *d)
{
  const char *address = d->config.listen_address;
  guint16 port = d->config.listen_port;
  gboolean any = !address || g_str_equal(address, "0.0.0.0") || g_str_equal(address, "::");
  const char *host = any ? (g_strcmp0(address, "::") == 0 ? "::1" : "127.0.0.1") : address;
  g_autofree char *where = dr_address_print(host, port);
  g_autoptr(GError) error = NULL;

  if (!d->config_read)
    return;
  if (port == 0)
    dr_doctor_note(d, "port", "where they should: port=7413 in [listen] of droverd.conf",
                   "droverd is not told to listen for peers: no VM can come here from another host");
  else if (!d->version)
    dr_doctor_note(d, "port", "start droverd, and ask again",
                   "peers are to reach port %u, where nobody can be asked for without a droverd", port);
  else if (!connects(host, port, &error))
    dr_doctor_warning(d, "port", "look into droverd's log for why it does not listen, and at the firewall",
                      "droverd runs, and %s cannot be connected to: %s", where, error->message);
  else
    dr_doctor_ok(d, "port", "%s can be connected to from here; a firewall may still keep others out", where);
}

void
dr_doctor_check_net(DrDoctor *d)
{
  check_tun(d);
  check_bridges(d);
  check_port(d);
}
