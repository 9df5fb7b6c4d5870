/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line brought up to date with the guest: machine type first, then devices, what is behind them, and disks. */
#include "job/inventory-internal.h"

#include <stdarg.h>

void
dr_apply_block(DrApply *a, const char *code, const char *remedy, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list ap;

  va_start(ap, format);
  text = g_strdup_vprintf(format, ap);
  va_end(ap);
  dr_findings_add(a->findings, DR_FINDING_BLOCKER, code, remedy, "%s", text);
}

/* `pc`, `q35` and a missing -machine mean another machine in each QEMU. The keys of all -machine options are merged by
 * QEMU, the last type= wins: it goes into the last one that has any, and an older one would only confuse a reader. */
static gboolean
pin_machine(DrApply *a, GError **error)
{
  const char *machine = a->inventory->machine;
  DrOpt *typed = NULL;

  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, "machine", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);

    if (!opts)
      return FALSE;
    if (dr_opts_get(opts, "type"))
      typed = opt;
  }
  if (typed) {
    g_autoptr(DrOpts) opts = dr_opt_parse(typed, error);

    if (!opts)
      return FALSE;
    if (!g_str_equal(dr_opts_get(opts, "type"), machine)) {
      dr_opts_set(opts, "type", machine);
      dr_opt_set_opts(typed, opts);
    }
  } else {
    g_autofree char *value = g_strdup_printf("type=%s", machine);

    dr_argv_insert(a->argv, 0, "machine", value);
  }
  return TRUE;
}

static gboolean
apply_all(DrApply *a, GError **error)
{
  return pin_machine(a, error) && dr_apply_devices(a, error) && dr_apply_backends(a, error) &&
         dr_apply_disks(a, error);
}

gboolean
dr_inventory_apply(const DrInventory *inventory, DrArgv *argv, const char *cwd, DrFindings *findings,
                   GError **error)
{
  DrApply a = { .inventory = inventory, .argv = argv, .cwd = cwd, .findings = findings };
  gboolean ok;

  a.devices = g_hash_table_new(NULL, NULL);
  a.taken = g_hash_table_new(NULL, NULL);
  a.wanted = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  a.seen = g_hash_table_new(NULL, NULL);
  a.placed = g_hash_table_new_full(NULL, NULL, NULL, g_free);
  a.node_order = g_ptr_array_new();
  ok = apply_all(&a, error);
  g_hash_table_unref(a.devices);
  g_hash_table_unref(a.taken);
  g_hash_table_unref(a.wanted);
  g_hash_table_unref(a.seen);
  g_hash_table_unref(a.placed);
  g_ptr_array_unref(a.node_order);
  return ok;
}
