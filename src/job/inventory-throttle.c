/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* I/O limits of a drive: as the command line says, and as block_set_io_throttle may have left them. */
#include "job/inventory-internal.h"

#include <string.h>

/* query-block's name, -drive's, and -drive's older spelling of it. */
static const struct {
  const char *qmp, *option, *old;
} limits[] = {
  { "bps", "throttling.bps-total", "bps" },
  { "bps_rd", "throttling.bps-read", "bps_rd" },
  { "bps_wr", "throttling.bps-write", "bps_wr" },
  { "iops", "throttling.iops-total", "iops" },
  { "iops_rd", "throttling.iops-read", "iops_rd" },
  { "iops_wr", "throttling.iops-write", "iops_wr" },
  { "bps_max", "throttling.bps-total-max", "bps_max" },
  { "bps_rd_max", "throttling.bps-read-max", "bps_rd_max" },
  { "bps_wr_max", "throttling.bps-write-max", "bps_wr_max" },
  { "iops_max", "throttling.iops-total-max", "iops_max" },
  { "iops_rd_max", "throttling.iops-read-max", "iops_rd_max" },
  { "iops_wr_max", "throttling.iops-write-max", "iops_wr_max" },
  { "bps_max_length", "throttling.bps-total-max-length", NULL },
  { "bps_rd_max_length", "throttling.bps-read-max-length", NULL },
  { "bps_wr_max_length", "throttling.bps-write-max-length", NULL },
  { "iops_max_length", "throttling.iops-total-max-length", NULL },
  { "iops_rd_max_length", "throttling.iops-read-max-length", NULL },
  { "iops_wr_max_length", "throttling.iops-write-max-length", NULL },
  { "iops_size", "throttling.iops-size", "iops_size" },
};

/* A burst length is 1 s where nothing is said, and QEMU shows it only beside a burst rate. */
static guint64
default_of(guint i)
{
  return g_str_has_suffix(limits[i].qmp, "_length") ? 1 : 0;
}

static guint64
given_limit(const DrOpts *opts, guint i)
{
  guint64 value = default_of(i);

  if (limits[i].old && dr_opts_get(opts, limits[i].old))
    dr_opts_get_uint(opts, limits[i].old, 0, &value, NULL);
  else
    dr_opts_get_uint(opts, limits[i].option, value, &value, NULL);
  return value;
}

static guint64
running_limit(JsonObject *inserted, guint i)
{
  return (guint64)dr_json_int(inserted, limits[i].qmp, (gint64)default_of(i));
}

gboolean
dr_throttle_is_set(JsonObject *inserted)
{
  for (guint i = 0; i < G_N_ELEMENTS(limits); i++)
    if (running_limit(inserted, i) != default_of(i))
      return TRUE;
  return FALSE;
}

/* Drives that name one group share its limits; a drive alone has a group of its own name. */
static gboolean
same_group(const DrOpts *opts, const char *backend, JsonObject *inserted)
{
  const char *runs = dr_json_str(inserted, "group", NULL);
  const char *given = dr_opts_get(opts, "throttling.group");

  if (!given)
    given = dr_opts_get(opts, "group");
  return !runs || g_str_equal(runs, given ? given : backend);
}

static gboolean
same_limits(const DrOpts *opts, const char *backend, JsonObject *inserted)
{
  for (guint i = 0; i < G_N_ELEMENTS(limits); i++)
    if (given_limit(opts, i) != running_limit(inserted, i))
      return FALSE;
  return same_group(opts, backend, inserted);
}

void
dr_throttle_apply(DrOpts *opts, const char *backend, JsonObject *inserted)
{
  const char *group = dr_json_str(inserted, "group", backend);

  if (same_limits(opts, backend, inserted))
    return;
  for (guint i = 0; i < G_N_ELEMENTS(limits); i++) {
    dr_opts_unset(opts, limits[i].option);
    if (limits[i].old)
      dr_opts_unset(opts, limits[i].old);
    if (running_limit(inserted, i) != default_of(i))
      dr_opts_set_uint(opts, limits[i].option, running_limit(inserted, i));
  }
  dr_opts_unset(opts, "throttling.group");
  dr_opts_unset(opts, "group");
  if (!g_str_equal(group, backend) && dr_throttle_is_set(inserted))
    dr_opts_set(opts, "throttling.group", group);
}

static JsonObject *
command_of(const char *qdev, JsonObject *inserted)
{
  JsonObject *arguments = json_object_new();
  const char *group = dr_json_str(inserted, "group", NULL);

  json_object_set_string_member(arguments, "id", qdev);
  for (guint i = 0; i < G_N_ELEMENTS(limits); i++)
    if (running_limit(inserted, i) != default_of(i) || i < 6) /* the first six have no default */
      json_object_set_int_member(arguments, limits[i].qmp, (gint64)running_limit(inserted, i));
  if (group)
    json_object_set_string_member(arguments, "group", group);
  return arguments;
}

void
dr_inventory_limits_by_command(DrInventory *inventory)
{
  inventory->limits_by_command = TRUE;
}

JsonArray *
dr_inventory_limits(const DrInventory *inventory)
{
  JsonArray *commands = json_array_new();

  for (guint i = 0; inventory->block && i < json_array_get_length(inventory->block); i++) {
    JsonObject *entry = json_array_get_object_element(inventory->block, i);
    JsonObject *inserted = dr_json_obj(entry, "inserted");
    const char *qdev = dr_json_str(entry, "qdev", NULL);

    if (inserted && qdev && !*dr_json_str(entry, "device", "") && dr_throttle_is_set(inserted))
      json_array_add_object_element(commands, command_of(qdev, inserted));
  }
  return commands;
}

gboolean
dr_throttle_same(JsonObject *a, JsonObject *b)
{
  for (guint i = 0; i < G_N_ELEMENTS(limits); i++)
    if (running_limit(a, i) != running_limit(b, i))
      return FALSE;
  return TRUE;
}
