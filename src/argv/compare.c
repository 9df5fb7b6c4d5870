/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Compares two command lines by what the guest can see: facts, their canonical values, the list of
 * differences. */
#include "argv/compare-private.h"

#include <string.h>

static void
fact_free(DrFact *fact)
{
  g_free(fact->option);
  g_free(fact->key);
  g_free(fact->value);
  g_free(fact->canonical);
  g_free(fact);
}

DrFacts *
dr_facts_new(void)
{
  DrFacts *facts = g_new0(DrFacts, 1);

  facts->list = g_ptr_array_new_with_free_func((GDestroyNotify)fact_free);
  facts->by_key = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  return facts;
}

void
dr_facts_free(DrFacts *facts)
{
  if (!facts)
    return;
  g_hash_table_unref(facts->by_key);
  g_ptr_array_unref(facts->list);
  g_free(facts);
}

static DrFact *
lookup(const DrFacts *facts, const char *option, const char *key)
{
  g_autofree char *name = g_strdup_printf("%s\n%s", option, key ? key : "");

  return g_hash_table_lookup(facts->by_key, name);
}

void
dr_facts_put(DrFacts *facts, const char *option, const char *key, const char *value)
{
  DrFact *fact;

  if (!value)
    return;
  fact = lookup(facts, option, key);
  if (!fact) {
    fact = g_new0(DrFact, 1);
    fact->option = g_strdup(option);
    fact->key = g_strdup(key);
    g_ptr_array_add(facts->list, fact);
    g_hash_table_insert(facts->by_key, g_strdup_printf("%s\n%s", option, key ? key : ""), fact);
  }
  g_free(fact->value);
  g_free(fact->canonical);
  fact->value = g_strdup(value);
  fact->canonical = dr_compare_canonical(option, key ? key : option, value);
}

const char *
dr_facts_get(const DrFacts *facts, const char *option, const char *key)
{
  const DrFact *fact = lookup(facts, option, key);

  return fact ? fact->value : NULL;
}

static char *
canonical_bool(const char *value)
{
  static const char *const yes[] = { "on", "yes", "true", NULL };
  static const char *const no[] = { "off", "no", "false", NULL };

  if (g_strv_contains(yes, value))
    return g_strdup("on");
  return g_strv_contains(no, value) ? g_strdup("off") : NULL;
}

/* 0x10, 16 and 1K, 1024: but only for what is a number as a whole. */
static char *
canonical_number(const char *value)
{
  guint64 number;

  if (!g_ascii_isdigit(*value) || !dr_parse_size(value, 'B', &number, NULL))
    return NULL;
  return g_strdup_printf("%" G_GUINT64_FORMAT, number);
}

/* A PCI place is hexadecimal whether it says 0x or not, and function 0 may be left out (QEMU's
 * set_pci_devfn). */
static char *
canonical_pci_address(const char *value)
{
  char *end;
  guint64 slot = g_ascii_strtoull(value, &end, 16), function = 0;

  if (end == value)
    return g_strdup(value);
  if (*end == '.')
    function = g_ascii_strtoull(end + 1, &end, 16);
  return *end ? g_strdup(value)
              : g_strdup_printf("%" G_GINT64_MODIFIER "x.%" G_GINT64_MODIFIER "x", slot, function);
}

/* Where "010" and "10" are two texts, not one number. */
static gboolean
is_text(const char *option, const char *key)
{
  static const char *const options[] = {
    "smbios", "fw_cfg", "set", "readconfig", "usbdevice", "soundhw", NULL
  };
  static const char *const keys[] = {
    "serial",     "append",    "kernel",   "initrd",    "dtb",          "shim",
    "firmware",   "ver",       "vendor",   "name",      "product",      "version",
    "product_id", "device_id", "model-id", "mount_tag", "hv-vendor-id", NULL,
  };

  return g_strv_contains(options, option) || g_strv_contains(keys, key);
}

char *
dr_compare_canonical(const char *option, const char *key, const char *value)
{
  static const char *const any_case[] = { "mac", "macaddr", "uuid", NULL };
  const char *space = strrchr(key, ' ');
  const char *last = space ? space + 1 : key;
  char *canonical;

  if (g_strv_contains(any_case, last))
    return g_ascii_strdown(value, -1);
  if (is_text(option, last))
    return g_strdup(value);
  if (g_str_equal(last, "addr"))
    return canonical_pci_address(value);
  canonical = canonical_bool(value);
  if (!canonical)
    canonical = canonical_number(value);
  return canonical ? canonical : g_strdup(value);
}

void
dr_argv_diff_free(DrArgvDiff *diff)
{
  if (!diff)
    return;
  g_free(diff->option);
  g_free(diff->key);
  g_free(diff->a);
  g_free(diff->b);
  g_free(diff->text);
  g_free(diff);
}

static char *
describe(const DrArgvDiff *diff)
{
  g_autofree char *what =
      diff->key ? g_strdup_printf("-%s %s", diff->option, diff->key) : g_strdup_printf("-%s", diff->option);

  if (!diff->b)
    return g_strdup_printf("%s is '%s' on the first and not given on the second", what, diff->a);
  if (!diff->a)
    return g_strdup_printf("%s is not given on the first and '%s' on the second", what, diff->b);
  return g_strdup_printf("%s is '%s' on the first and '%s' on the second", what, diff->a, diff->b);
}

void
dr_compare_add(GPtrArray *diffs, const char *option, const char *key, const char *a, const char *b)
{
  DrArgvDiff *diff = g_new0(DrArgvDiff, 1);

  diff->option = g_strdup(option);
  diff->key = g_strdup(key);
  diff->a = g_strdup(a);
  diff->b = g_strdup(b);
  diff->text = describe(diff);
  g_ptr_array_add(diffs, diff);
}

void
dr_compare_facts(const DrFacts *a, const DrFacts *b, GPtrArray *diffs)
{
  for (guint i = 0; i < a->list->len; i++) {
    const DrFact *one = a->list->pdata[i], *other = lookup(b, one->option, one->key);

    if (!other)
      dr_compare_add(diffs, one->option, one->key, one->value, NULL);
    else if (!g_str_equal(one->canonical, other->canonical))
      dr_compare_add(diffs, one->option, one->key, one->value, other->value);
  }
  for (guint i = 0; i < b->list->len; i++) {
    const DrFact *other = b->list->pdata[i];

    if (!lookup(a, other->option, other->key))
      dr_compare_add(diffs, other->option, other->key, NULL, other->value);
  }
}

char *
dr_compare_backend_value(const DrArgv *argv, const char *name, const char *id, const char *key)
{
  DrOpt *opt = id ? dr_argv_find_id(argv, name, id) : NULL;
  g_autoptr(DrOpts) opts = opt ? dr_opt_parse(opt, NULL) : NULL;

  return opts ? g_strdup(dr_opts_get(opts, key)) : NULL;
}

GPtrArray *
dr_argv_compare(const DrArgv *a, const DrArgv *b)
{
  GPtrArray *diffs = g_ptr_array_new_with_free_func((GDestroyNotify)dr_argv_diff_free);
  g_autoptr(DrFacts) facts_a = dr_facts_new(), facts_b = dr_facts_new();

  dr_facts_board(facts_a, a);
  dr_facts_board(facts_b, b);
  dr_facts_drives(facts_a, a);
  dr_facts_drives(facts_b, b);
  dr_compare_facts(facts_a, facts_b, diffs);
  dr_compare_devices(a, b, diffs);
  return diffs;
}
