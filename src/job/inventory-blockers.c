/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Devices and backends that no stream carries, or that only one QEMU at a time can have. */
#include "job/inventory-internal.h"

#include <string.h>

#define UNPLUG "unplug it for the move (device_del), or shut the guest down and start it under the new QEMU"
#define REPLACE "shut the guest down and start it under the new QEMU, or replace the device by another model"

typedef struct {
  const char *prefix; /* of a type */
  const char *code;
  const char *why;
  const char *remedy;
  int until; /* the first version that can; 0: none can */
} Rule;

static const Rule device_rules[] = {
  { "vfio-", "vfio", "it is a device of the host, whose state stays there", UNPLUG, 0 },
  { "vhost-user-", "vhost-user", "its other half is a process that serves one QEMU at a time", UNPLUG, 0 },
  { "vhost-vsock", "vhost-vsock", "the host gives its CID to one QEMU at a time", UNPLUG, 0 },
  { "vhost-scsi", "vhost-scsi", "the host's SCSI target serves one QEMU at a time", UNPLUG, 0 },
  { "vhost-vdpa", "vhost-vdpa", "it is a device of the host, whose state stays there", UNPLUG, 0 },
  { "virtio-9p", "virtio-9p", "a shared folder that is mounted cannot move",
    "unmount it in the guest and start without it", 0 },
  { "ivshmem", "ivshmem", "its memory is shared with other processes", UNPLUG, 0 },
  { "usb-host", "usb-host", "it is a device of the host, whose state stays there", UNPLUG, 0 },
  { "u2f-passthru", "usb-host", "it is a device of the host, whose state stays there", UNPLUG, 0 },
  { "virtio-input-host", "input-host", "it is a device of the host", UNPLUG, 0 },
  { "virtio-gpu-gl", "virgl", "QEMU cannot move a 3D context", REPLACE, 0 },
  { "virtio-vga-gl", "virgl", "QEMU cannot move a 3D context", REPLACE, 0 },
  { "virtio-gpu-rutabaga", "rutabaga", "QEMU cannot move a 3D context", REPLACE, 0 },
  { "virtio-vga-rutabaga", "rutabaga", "QEMU cannot move a 3D context", REPLACE, 0 },
  { "pvrdma", "device", "QEMU cannot move its state", UNPLUG, 0 },
  { "rocker", "device", "QEMU cannot move its state", REPLACE, 0 },
  { "ufs", "device", "QEMU cannot move its state", REPLACE, 0 },
  { "nvme", "nvme", "QEMU up to 10.0 cannot move its state", REPLACE, DR_QEMU(10, 1) },
  { "virtio-crypto", "device", "QEMU cannot move its state", UNPLUG, 0 },
  { "virtio-sound", "device", "QEMU cannot move its state", UNPLUG, 0 },
  { "usb-audio", "device", "QEMU cannot move its state", UNPLUG, 0 },
  { "usb-net", "device", "QEMU cannot move its state", UNPLUG, 0 },
  { "usb-uas", "device", "QEMU cannot move its state", UNPLUG, 0 },
  { "usb-mtp", "device", "QEMU cannot move its state", UNPLUG, 0 },
  { "usb-serial", "device", "QEMU cannot move its state", UNPLUG, 0 },
  { "usb-braille", "device", "QEMU cannot move its state", UNPLUG, 0 },
  { "usb-wacom-tablet", "device", "QEMU cannot move its state", UNPLUG, 0 },
};

static const Rule object_rules[] = {
  { "sev-", "confidential", "memory encrypted by the processor cannot move", REPLACE, 0 },
  { "tdx-guest", "confidential", "memory encrypted by the processor cannot move", REPLACE, 0 },
  { "pef-guest", "confidential", "memory encrypted by the processor cannot move", REPLACE, 0 },
  { "s390-pv-guest", "confidential", "memory encrypted by the processor cannot move", REPLACE, 0 },
  { "x-remote-object", "remote", "its other half is a process that serves one QEMU", REPLACE, 0 },
  { "filter-dump", "filter-dump", "a second QEMU empties its file at its start",
    "remove it for the move (object_del), and add it again with another file", 0 },
  { "vfio-user", "vfio", "its other half is a process that serves one QEMU", REPLACE, 0 },
};

static const Rule net_rules[] = {
  { "vhost-user", "vhost-user", "its other half is a process that serves one QEMU at a time", UNPLUG, 0 },
  { "vhost-vdpa", "vhost-vdpa", "it is a device of the host, whose state stays there", UNPLUG, 0 },
  { "stream", "netdev-socket", "it is one connection, which a second QEMU cannot have too",
    "use a tap or user netdev", 0 },
  { "passt", "netdev-socket", "passt serves one QEMU at a time", "use a tap or user netdev", 0 },
  { "af-xdp", "netdev-socket", "the host's queues belong to one QEMU", "use a tap netdev", 0 },
  { "netmap", "netdev-socket", "the host's queues belong to one QEMU", "use a tap netdev", 0 },
};

/* By what is known of a netdev's address: is_tcp_socket(), is_unicast(). */
static const Rule address_rules[] = {
  { "socket", "netdev-socket", "it is one TCP connection, which a second QEMU cannot have too",
    "use a tap or user netdev, or a multicast one (-netdev socket,mcast=)", 0 },
  { "dgram", "netdev-dgram", "a second QEMU that binds its address takes the first one's packets",
    "use a tap or user netdev, a multicast one (-netdev socket,mcast=), or hand the socket down (-netdev "
    "dgram,local.type=fd)",
    0 },
};

static const Rule *
find_rule(const Rule *rules, gsize n, const char *type, int version)
{
  for (gsize i = 0; i < n; i++)
    if (g_str_has_prefix(type, rules[i].prefix) && (rules[i].until == 0 || version < rules[i].until))
      return &rules[i];
  return NULL;
}

static void
add(DrFindings *findings, const Rule *rule, const char *what, const char *name, const char *type)
{
  dr_findings_add(findings, DR_FINDING_BLOCKER, rule->code, rule->remedy, "%s '%s' (%s) cannot move: %s",
                  what, name, type, rule->why);
}

static gboolean
has_virgl(const DrQdev *dev)
{
  return g_strcmp0(g_hash_table_lookup(dev->props, "virgl"), "true") == 0;
}

/* A device behind another one (virtio-9p-device in virtio-9p-pci) is told once, by the outer one. */
static gboolean
is_inner(const DrQdev *dev)
{
  return dev->parent && g_str_equal(dev->bus, "virtio-bus");
}

/* Adds the types that were refused to `types`. */
static void
check_devices(const DrInventory *inv, DrFindings *findings, GPtrArray *types)
{
  static const Rule virgl = { "", "virgl", "QEMU cannot move a 3D context (virgl=on)", REPLACE, 0 };

  for (guint i = 0; i < inv->qdevs->len; i++) {
    const DrQdev *dev = inv->qdevs->pdata[i];
    const Rule *rule = find_rule(device_rules, G_N_ELEMENTS(device_rules), dev->type, inv->version);

    if (rule && g_str_equal(rule->code, "nvme") && g_str_has_prefix(dev->type, "nvme-"))
      continue; /* its namespaces and subsystem */
    if (rule)
      g_ptr_array_add(types, dev->type);
    if (rule && !is_inner(dev))
      add(findings, rule, "device", dev->id ? dev->id : dev->type, dev->type);
    if (has_virgl(dev))
      add(findings, &virgl, "device", dev->id ? dev->id : dev->type, dev->type);
  }
}

static void
check_objects(const DrInventory *inv, DrFindings *findings)
{
  for (guint i = 0; i < inv->objects->len; i++) {
    const DrPlugged *object = inv->objects->pdata[i];
    const Rule *rule = find_rule(object_rules, G_N_ELEMENTS(object_rules), object->type, inv->version);

    if (rule)
      add(findings, rule, "object", object->name, object->type);
  }
}

/* Whether what follows "type=TYPE," says so. */
static gboolean
says(const DrNet *net, const char *prefix)
{
  const char *at = strstr(net->info, "type=");

  at = at ? strchr(at, ',') : NULL;
  return at && g_str_has_prefix(at + 1, prefix);
}

/* "type=socket,socket: wait from HOST:PORT", "connect to" and "fd=N": TCP, one peer each; "mcast=" is shared. 7.2 and newer say
 * nothing before there is a peer. */
static gboolean
is_tcp_socket(const DrNet *net)
{
  return g_str_equal(net->type, "socket") && !says(net, "socket: mcast=") && !says(net, "socket: udp=");
}

/* One receiver by its address: a second QEMU that binds a unix path unlinks the first one's socket (net/dgram.c, 7.2 to 11.1), and
 * one that binds a UDP port, which QEMU does with SO_REUSEADDR, gets what was meant for the first. "mcast=" is everybody's,
 * "fd=" is handed down. */
static gboolean
is_unicast(const DrNet *net)
{
  return says(net, "socket: udp=") ||
         (g_str_equal(net->type, "dgram") && !says(net, "mcast=") && !says(net, "fd="));
}

static const Rule *
find_net_rule(const DrNet *net, int version)
{
  if (is_tcp_socket(net))
    return &address_rules[0];
  return is_unicast(net) ? &address_rules[1]
                         : find_rule(net_rules, G_N_ELEMENTS(net_rules), net->type, version);
}

static void
check_network(const DrInventory *inv, DrFindings *findings)
{
  for (guint i = 0; i < inv->nets->len; i++) {
    const DrNet *net = inv->nets->pdata[i];
    const Rule *rule = find_net_rule(net, inv->version);

    if (rule)
      add(findings, rule, "netdev", net->name, net->type);
  }
}

static void
check_tpm(const DrInventory *inv, DrFindings *findings)
{
  for (guint i = 0; inv->tpms && i < json_array_get_length(inv->tpms); i++) {
    JsonObject *tpm = json_array_get_object_element(inv->tpms, i);
    const char *type = dr_json_str(tpm, "options.type", "?");

    dr_findings_add(
        findings, DR_FINDING_BLOCKER, "tpm", "shut the guest down and start it under the new QEMU",
        "TPM '%s' (%s) cannot move: it serves one QEMU at a time", dr_json_str(tpm, "id", "?"), type);
  }
}

static void
check_exports(const DrInventory *inv, DrFindings *findings)
{
  for (guint i = 0; inv->exports && i < json_array_get_length(inv->exports); i++) {
    JsonObject *export = json_array_get_object_element(inv->exports, i);

    dr_findings_add(findings, DR_FINDING_BLOCKER, "block-export",
                    "end the export first (block-export-del), and make it anew after the move",
                    "block node '%s' is exported (%s '%s'), and its clients would lose it",
                    dr_json_str(export, "node-name", "?"), dr_json_str(export, "type", "?"),
                    dr_json_str(export, "id", "?"));
  }
}

/* "non-migratable device: 0000:00:01.0/nvme" (7.2 and newer), which has been said better. */
static gboolean
is_known_reason(const char *reason, const GPtrArray *types)
{
  const char *name = strrchr(reason, '/');

  for (guint i = 0; name && g_str_has_prefix(reason, "non-migratable device") && i < types->len; i++)
    if (g_str_has_prefix(types->pdata[i], name + 1))
      return TRUE;
  return FALSE;
}

/* QEMU's own list (6.0 and newer; 5.2 tells them only when a migration starts). */
static void
check_reasons(const DrInventory *inv, DrFindings *findings, const GPtrArray *types)
{
  JsonArray *reasons = inv->migrate ? dr_json_arr(inv->migrate, "blocked-reasons") : NULL;
  g_auto(GStrv) texts = dr_json_strv(reasons);

  for (char **text = texts; text && *text; text++)
    if (!is_known_reason(*text, types))
      dr_findings_add(findings, DR_FINDING_BLOCKER, "qemu-blocker",
                      "take away what it names, or shut the guest down and start it under the new QEMU",
                      "QEMU refuses to move the guest: %s", *text);
  if (!texts && inv->migrate && dr_json_bool(inv->migrate, "blocked", FALSE))
    dr_findings_add(findings, DR_FINDING_BLOCKER, "qemu-blocker",
                    "shut the guest down and start it under the new QEMU",
                    "QEMU refuses to move the guest, and does not tell why");
}

void
dr_inventory_blockers(const DrInventory *inventory, DrFindings *findings)
{
  g_autoptr(GPtrArray) types = g_ptr_array_new(); /* of those that check_devices() refused */

  check_devices(inventory, findings, types);
  check_objects(inventory, findings);
  check_network(inventory, findings);
  check_tpm(inventory, findings);
  check_exports(inventory, findings);
  check_reasons(inventory, findings, types);
  if (inventory->spice)
    dr_findings_add(findings, DR_FINDING_BLOCKER, "spice",
                    "use VNC, or shut the guest down and start it under the new QEMU",
                    "the guest's display is on SPICE, whose port and clients belong to one QEMU");
}
