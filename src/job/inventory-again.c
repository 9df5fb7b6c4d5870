/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The same QEMU a while later: what somebody may have changed by another monitor, in few commands. */
#include "job/inventory-internal.h"

static gboolean
read_blocks(DrInventory *inv, DrQmp *qmp, GError **error)
{
  if (!dr_ask_array(qmp, "query-block", NULL, &inv->block, error) ||
      !dr_ask_array(qmp, "query-named-block-nodes", dr_json("{'flat': <true>}"), &inv->nodes, error) ||
      !dr_ask_object(qmp, "x-debug-query-block-graph", &inv->graph, error) ||
      !dr_ask_array(qmp, "query-jobs", NULL, &inv->jobs, error))
    return FALSE;
  inv->block_nodes = dr_block_nodes(inv);
  return TRUE;
}

DrInventory *
dr_inventory_blocks(DrQmp *qmp, GError **error)
{
  g_autoptr(DrInventory) inv = g_new0(DrInventory, 1);

  inv->version = dr_qmp_version_number(qmp);
  if (read_blocks(inv, qmp, error))
    return g_steal_pointer(&inv);
  g_prefix_error(error, "cannot look at the guest's disks: ");
  return NULL;
}

DrInventory *
dr_inventory_glance(DrQmp *qmp, GError **error)
{
  g_autoptr(DrInventory) inv = g_new0(DrInventory, 1);
  g_autofree char *network = NULL;

  inv->version = dr_qmp_version_number(qmp);
  inv->plugged = dr_plugged_list();
  network = dr_qmp_hmp(qmp, error, "info network");
  if (!network || !dr_list_plugged(inv, qmp, error) || !read_blocks(inv, qmp, error)) {
    g_prefix_error(error, "cannot look at the guest again: ");
    return NULL;
  }
  inv->nets = dr_net_parse(network);
  return g_steal_pointer(&inv);
}

/* --- Devices --- */

static gboolean
has_plugged(const DrInventory *inv, const DrPlugged *wanted)
{
  for (guint i = 0; i < inv->plugged->len; i++) {
    const DrPlugged *plugged = inv->plugged->pdata[i];

    if (plugged->anon == wanted->anon && g_str_equal(plugged->name, wanted->name) &&
        g_str_equal(plugged->type, wanted->type))
      return TRUE;
  }
  return FALSE;
}

static void
compare_plugged(const DrInventory *all, const DrInventory *some, const char *what, DrFindings *findings)
{
  for (guint i = 0; i < all->plugged->len; i++) {
    const DrPlugged *plugged = all->plugged->pdata[i];

    if (!has_plugged(some, plugged))
      dr_compare_block(findings, "device", "device '%s' (%s) was %s", plugged->name, plugged->type, what);
  }
}

/* --- Networks --- */

/* A NIC is a device, and its line here has the MAC address that the guest has set. */
static gboolean
has_net(const DrInventory *inv, const DrNet *wanted)
{
  for (guint i = 0; i < inv->nets->len; i++) {
    const DrNet *net = inv->nets->pdata[i];

    if (g_str_equal(net->name, wanted->name) && g_str_equal(net->info, wanted->info))
      return TRUE;
  }
  return g_str_equal(wanted->type, "nic");
}

static void
compare_nets(const DrInventory *all, const DrInventory *some, const char *what, DrFindings *findings)
{
  for (guint i = 0; i < all->nets->len; i++) {
    const DrNet *net = all->nets->pdata[i];

    if (!has_net(some, net))
      dr_compare_block(findings, "device", "netdev '%s' (%s) was %s", net->name, net->type, what);
  }
}

/* --- Disks --- */

static void
compare_jobs(const DrInventory *now, DrFindings *findings)
{
  for (guint i = 0; now->jobs && i < json_array_get_length(now->jobs); i++) {
    JsonObject *job = json_array_get_object_element(now->jobs, i);
    const char *status = dr_json_str(job, "status", "?");

    if (!g_str_equal(status, "concluded") && !g_str_equal(status, "null") &&
        !g_str_has_prefix(dr_json_str(job, "id", ""),
                          "drover-")) /* the VM has one job of ours at a time: that is it */
      dr_compare_block(findings, "block-job", "block job '%s' (%s) is %s", dr_json_str(job, "id", "?"),
                       dr_json_str(job, "type", "?"), status);
  }
}

static void
compare_limits(const DrInventory *before, const DrInventory *now, DrFindings *findings)
{
  for (guint i = 0; now->block && i < json_array_get_length(now->block); i++) {
    JsonObject *entry = json_array_get_object_element(now->block, i);
    const char *name = dr_json_str(entry, "device", "");
    const char *qdev = dr_json_str(entry, "qdev", "");
    JsonObject *other = *name ? dr_block_by_backend(before, name) : dr_block_by_qdev(before, qdev);
    JsonObject *a = other ? dr_json_obj(other, "inserted") : NULL, *b = dr_json_obj(entry, "inserted");

    if (a && b && !dr_throttle_same(a, b))
      dr_compare_block(findings, "throttle", "the I/O limits of disk '%s' are others", *name ? name : qdev);
  }
}

void
dr_inventory_changes(const DrInventory *before, const DrInventory *now, DrFindings *findings)
{
  compare_plugged(before, now, "unplugged", findings);
  compare_plugged(now, before, "plugged in", findings);
  compare_nets(before, now, "removed or changed", findings);
  compare_nets(now, before, "added or changed", findings);
  compare_jobs(now, findings);
  dr_inventory_compare_disks(before, now, findings);
  compare_limits(before, now, findings);
}
