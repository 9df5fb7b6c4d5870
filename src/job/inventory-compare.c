/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A source and the destination that was built for it: machine, CPU, memory, disks. Devices are in inventory-same.c.
 *
 * QEMU does not compare any of this by itself: a migration into a QEMU with another CPU model or an extra NIC says
 * "completed". What only one of two QEMU versions knows is no difference. */
#include "job/inventory-internal.h"

#include <string.h>

#define REMEDY_ARGV "start the destination from the command line that drover made; this is a bug if it did"

void
dr_compare_block(DrFindings *findings, const char *code, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list ap;

  va_start(ap, format);
  text = g_strdup_vprintf(format, ap);
  va_end(ap);
  dr_findings_add(findings, DR_FINDING_BLOCKER, code, REMEDY_ARGV, "%s", text);
}

static void
compare_text(DrFindings *findings, const char *code, const char *what, const char *before, const char *after)
{
  if (g_strcmp0(before, after) != 0)
    dr_compare_block(findings, code, "%s is '%s' before and '%s' after", what, before ? before : "",
                     after ? after : "");
}

/* --- CPU --- */

/* "CPUID[0x7.0].EBX" */
static char *
word_name(JsonObject *word)
{
  return g_strdup_printf("CPUID[0x%x.%u].%s", (guint)dr_json_int(word, "cpuid-input-eax", 0),
                         (guint)dr_json_int(word, "cpuid-input-ecx", 0),
                         dr_json_str(word, "cpuid-register", "?"));
}

/* Bits that follow the number of cores and threads, which is compared by itself: QEMU added them as it answered CPUID, and
 * since 9.x has them among the features. */
static guint32
topology_bits(const char *name)
{
  if (g_str_equal(name, "CPUID[0x1.0].EDX"))
    return 1u << 28;                                                 /* HTT */
  return g_str_equal(name, "CPUID[0x80000001.0].ECX") ? 1u << 1 : 0; /* CmpLegacy */
}

static guint32
find_word(JsonArray *features, const char *name)
{
  for (guint i = 0; i < json_array_get_length(features); i++) {
    JsonObject *word = json_array_get_object_element(features, i);
    g_autofree char *other = word_name(word);

    if (g_str_equal(other, name))
      return (guint32)dr_json_int(word, "features", 0);
  }
  return 0;
}

/* Adds the words with bits that `other` lacks to `missing`. */
static void
list_missing(JsonArray *features, JsonArray *other, GString *missing)
{
  for (guint i = 0; i < json_array_get_length(features); i++) {
    JsonObject *word = json_array_get_object_element(features, i);
    g_autofree char *name = word_name(word);
    guint32 bits = (guint32)dr_json_int(word, "features", 0) & ~find_word(other, name) & ~topology_bits(name);

    if (bits)
      g_string_append_printf(missing, "%s%s 0x%x", missing->len ? ", " : "", name, bits);
  }
}

static void
compare_features(const DrInventory *before, const DrInventory *after, DrFindings *findings)
{
  g_autoptr(GString) fewer = g_string_new(NULL);
  g_autoptr(GString) more = g_string_new(NULL);

  if (!before->features || !after->features)
    return;
  list_missing(before->features, after->features, fewer);
  list_missing(after->features, before->features, more);
  if (fewer->len)
    dr_findings_add(findings, DR_FINDING_BLOCKER, "cpu-features",
                    "use a CPU model that both QEMUs give in full, or the same QEMU build and accelerator",
                    "the new QEMU's CPU lacks features that the guest has: %s", fewer->str);
  if (more->len)
    dr_findings_add(findings, DR_FINDING_WARNING, "cpu-features",
                    "name the CPU model and its features (-cpu MODEL,-FEATURE)",
                    "the new QEMU's CPU has features that the guest did not have: %s", more->str);
}

static void
compare_cpu_properties(const DrInventory *before, const DrInventory *after, DrFindings *findings)
{
  GHashTableIter iter;
  gpointer name, value;

  g_hash_table_iter_init(&iter, before->cpu_props);
  while (g_hash_table_iter_next(&iter, &name, &value)) {
    const char *other = g_hash_table_lookup(after->cpu_props, name);
    g_autofree char *what = g_strdup_printf("the CPU's %s", (char *)name);

    if (!other)
      continue;
    /* How far CPUID leaves go: more of them take nothing away. */
    if (strstr(name, "level") && g_ascii_strtoull(other, NULL, 10) > g_ascii_strtoull(value, NULL, 10))
      dr_findings_add(findings, DR_FINDING_WARNING, "cpu", "name the CPU model (-cpu MODEL)",
                      "%s is '%s' before and '%s' after", what, (char *)value, other);
    else
      compare_text(findings, "cpu", what, value, other);
  }
}

/* "socket-id=0 core-id=0 thread-id=0" of each CPU, in their order. */
static char *
topology(JsonArray *cpus)
{
  GString *text = g_string_new(NULL);

  for (guint i = 0; i < json_array_get_length(cpus); i++) {
    JsonObject *place = dr_json_obj(json_array_get_object_element(cpus, i), "props");

    g_string_append_printf(text, "%s%d.%d.%d", i ? " " : "", (int)dr_json_int(place, "socket-id", 0),
                           (int)dr_json_int(place, "core-id", 0), (int)dr_json_int(place, "thread-id", 0));
  }
  return g_string_free(text, FALSE);
}

static void
compare_cpus(const DrInventory *before, const DrInventory *after, DrFindings *findings)
{
  guint n = json_array_get_length(before->cpus), m = json_array_get_length(after->cpus);
  g_autofree char *places = topology(before->cpus);
  g_autofree char *other = topology(after->cpus);

  compare_text(findings, "cpu", "the CPU model", before->cpu, after->cpu);
  if (n != m)
    dr_compare_block(findings, "cpu", "the guest has %u CPUs before and %u after", n, m);
  else
    compare_text(findings, "cpu", "the CPUs' places (socket.core.thread)", places, other);
  if (g_strcmp0(before->cpu, after->cpu) != 0)
    return; /* one finding is enough */
  compare_cpu_properties(before, after, findings);
  compare_features(before, after, findings);
}

/* --- Memory --- */

static const DrRam *
find_ram(const DrInventory *inv, const char *name)
{
  for (guint i = 0; i < inv->ram->len; i++) {
    const DrRam *ram = inv->ram->pdata[i];

    if (g_str_equal(ram->name, name))
      return ram;
  }
  return NULL;
}

/* The stream names RAM blocks, and one that the destination lacks, or that cannot take the size, fails the move late. */
static void
compare_ram_block(const DrRam *ram, const DrRam *other, DrFindings *findings)
{
  gboolean grows = ram->used != ram->total || (other && other->used != other->total);

  if (!other)
    dr_findings_add(findings, DR_FINDING_BLOCKER, "ram-block",
                    "use the same devices and firmware on both sides",
                    "memory block '%s' of the guest does not exist in the new QEMU", ram->name);
  else if (other->used != ram->used && !(grows && other->total >= ram->used))
    dr_findings_add(findings, DR_FINDING_BLOCKER, "ram-block",
                    "pin the firmware or ROM file that the guest was started with (-bios FILE, romfile=FILE)",
                    "memory block '%s' has %" G_GUINT64_FORMAT " bytes before and %" G_GUINT64_FORMAT
                    " after",
                    ram->name, ram->used, other->used);
}

static void
compare_memory(const DrInventory *before, const DrInventory *after, DrFindings *findings)
{
  if (before->memory != after->memory)
    dr_compare_block(findings, "memory",
                     "the guest has %" G_GUINT64_FORMAT " bytes of RAM before and %" G_GUINT64_FORMAT
                     " after",
                     before->memory, after->memory);
  if (before->plugged_memory != after->plugged_memory)
    dr_compare_block(findings, "memory",
                     "the guest has %" G_GUINT64_FORMAT
                     " bytes of plugged-in RAM before and %" G_GUINT64_FORMAT " after",
                     before->plugged_memory, after->plugged_memory);
  for (guint i = 0; i < before->ram->len; i++) {
    const DrRam *ram = before->ram->pdata[i];

    compare_ram_block(ram, find_ram(after, ram->name), findings);
  }
}

/* --- Network --- */

/* Up to 8.1 every user-mode network calls its part of the stream "slirp" number 0, newer ones count. With two of them an
 * old destination refuses a new stream ("Unknown savevm section or instance 'slirp' 1"), and a stream of an old source is
 * loaded into the first of them, twice. */
#define SLIRP_COUNTS_SINCE DR_QEMU(8, 2)

static guint
count_user_nets(const DrInventory *inv)
{
  guint n = 0;

  for (guint i = 0; i < inv->nets->len; i++)
    n += g_str_equal(((DrNet *)inv->nets->pdata[i])->type, "user");
  return n;
}

static void
compare_user_nets(const DrInventory *before, const DrInventory *after, DrFindings *findings)
{
  guint n = count_user_nets(before);

  if (n < 2)
    return;
  if (before->version >= SLIRP_COUNTS_SINCE && after->version < SLIRP_COUNTS_SINCE)
    dr_findings_add(
        findings, DR_FINDING_BLOCKER, "user-net",
        "unplug all but one of them, or choose a QEMU of 8.2 or newer",
        "the guest has %u user-mode networks, whose state a QEMU before 8.2 cannot read from a newer one", n);
  else if (before->version < SLIRP_COUNTS_SINCE)
    dr_findings_add(
        findings, DR_FINDING_WARNING, "user-net", "let the guest open its connections anew after the move",
        "the guest has %u user-mode networks, whose connections a QEMU before 8.2 mixes up in the stream", n);
}

/* --- Disks --- */

static const DrNode *
protocol_of(const DrNode *node)
{
  const DrNode *file = dr_node_child(node, "file");

  return file ? file : node;
}

static const DrNode *
below(const DrNode *node)
{
  return node->alone ? NULL : dr_node_child(node, "backing");
}

/* The same formats on the same files, all the way down. */
static gboolean
same_chain(const DrNode *a, const DrNode *b)
{
  for (; a && b; a = below(a), b = below(b)) {
    const DrNode *file_a = protocol_of(a), *file_b = protocol_of(b);

    if (!g_str_equal(a->driver, b->driver) && !b->alone) /* an overlay is qcow2, whatever it stands for */
      return FALSE;
    if (!g_str_equal(file_a->file, file_b->file) &&
        !(dr_node_is_plain_file(file_a) && dr_node_is_plain_file(file_b) &&
          dr_same_file(file_a->file, file_b->file, NULL)))
      return FALSE;
  }
  return !a && !b;
}

static gboolean
same_disk(const DrInventory *before, JsonObject *a, const DrInventory *after, JsonObject *b)
{
  if (!dr_json_obj(a, "inserted") || !dr_json_obj(b, "inserted"))
    return !dr_json_obj(a, "inserted") && !dr_json_obj(b, "inserted");
  return dr_json_bool(a, "inserted.ro", FALSE) == dr_json_bool(b, "inserted.ro", FALSE) &&
         same_chain(dr_block_root(before, a), dr_block_root(after, b));
}

/* "qcow2:/images/a.qcow2 (read-only)" */
static char *
disk_text(JsonObject *entry)
{
  if (!dr_json_obj(entry, "inserted"))
    return g_strdup("nothing");
  return g_strdup_printf("%s:%s%s", dr_json_str(entry, "inserted.drv", "?"),
                         dr_json_str(entry, "inserted.file", "?"),
                         dr_json_bool(entry, "inserted.ro", FALSE) ? " (read-only)" : "");
}

static JsonObject *
counterpart(const DrInventory *inv, JsonObject *entry)
{
  const char *backend = dr_json_str(entry, "device", "");

  return *backend ? dr_block_by_backend(inv, backend) : dr_block_by_qdev(inv, dr_json_str(entry, "qdev", ""));
}

/* A device without an id gets one when it moves: then the disk is known by its image. */
static JsonObject *
counterpart_by_image(const DrInventory *before, JsonObject *entry, const DrInventory *after)
{
  for (guint i = 0; i < json_array_get_length(after->block); i++) {
    JsonObject *other = json_array_get_object_element(after->block, i);

    if (dr_json_obj(other, "inserted") && same_disk(before, entry, after, other))
      return other;
  }
  return NULL;
}

/* A backend without medium and device is a slot that nobody sees (sd0, up to 9.x). */
static gboolean
is_seen(JsonObject *entry)
{
  return dr_json_obj(entry, "inserted") || dr_json_str(entry, "qdev", NULL);
}

void
dr_inventory_compare_disks(const DrInventory *before, const DrInventory *after, DrFindings *findings)
{
  g_autoptr(GHashTable) matched = g_hash_table_new(NULL, NULL);

  for (guint i = 0; before->block && after->block && i < json_array_get_length(before->block); i++) {
    JsonObject *entry = json_array_get_object_element(before->block, i);
    JsonObject *other = counterpart(after, entry);
    const char *name = dr_json_str(entry, "device", "");
    g_autofree char *text = disk_text(entry);
    g_autofree char *other_text = other ? disk_text(other) : NULL;

    if (!other && is_seen(entry))
      other = counterpart_by_image(before, entry, after);
    if (other)
      g_hash_table_add(matched, other);
    if (!other && is_seen(entry))
      dr_compare_block(findings, "disk", "disk '%s' (%s) does not exist after",
                       *name ? name : dr_json_str(entry, "qdev", ""), text);
    else if (other && !same_disk(before, entry, after, other))
      dr_compare_block(findings, "disk", "disk '%s' is on %s before and on %s after",
                       *name ? name : dr_json_str(entry, "qdev", ""), text, other_text);
  }
  for (guint i = 0; after->block && i < json_array_get_length(after->block); i++) {
    JsonObject *entry = json_array_get_object_element(after->block, i);
    const char *name = dr_json_str(entry, "device", "");

    if (is_seen(entry) && !g_hash_table_contains(matched, entry))
      dr_compare_block(findings, "disk", "disk '%s' does not exist before",
                       *name ? name : dr_json_str(entry, "qdev", ""));
  }
}

void
dr_inventory_compare(const DrInventory *before, const DrInventory *after, DrFindings *findings)
{
  compare_text(findings, "machine-type", "the machine type", before->machine, after->machine);
  compare_text(findings, "uuid", "the UUID", before->uuid, after->uuid);
  if (before->kvm != after->kvm)
    dr_compare_block(findings, "accelerator", "the guest runs under %s before and %s after",
                     before->kvm ? "KVM" : "TCG", after->kvm ? "KVM" : "TCG");
  compare_cpus(before, after, findings);
  compare_memory(before, after, findings);
  dr_same_devices(before, after, findings);
  compare_user_nets(before, after, findings);
  dr_inventory_compare_disks(before, after, findings);
}
