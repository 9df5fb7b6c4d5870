/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Rates of a memory that is copied: see ram-meter.h. */
#include "job/ram-meter.h"

#define SMOOTH_US 1000000.0
#define LONG_PASS_US 1000000 /* QEMU measures the dirty rate over a second at least */

static double
smooth(double before, double now, gint64 us)
{
  double weight = before > 0 ? MIN((double)us / SMOOTH_US, 1.0) : 1.0;

  return before + weight * (now - before);
}

/* json-glib has a whole number as an integer. */
static double
number(JsonObject *object, const char *name)
{
  JsonNode *node = json_object_get_member(object, name);

  return node && JSON_NODE_HOLDS_VALUE(node) ? json_node_get_double(node) : 0;
}

static void
measure(DrRamMeter *m, gint64 bytes, gint64 left, gint64 pass, gint64 now_us)
{
  gint64 us = now_us - m->seen_us;

  if (m->seen_us && us > 0 && bytes > m->seen_bytes)
    m->wire = smooth(m->wire, (double)(bytes - m->seen_bytes) / (double)us, us);
  if (m->seen_us && us > 0 && pass == m->pass && left < m->seen_left)
    m->drain = smooth(m->drain, (double)(m->seen_left - left) / (double)us, us);
}

/* What is left when a pass begins was written during the one before. It may have begun at any time since the last sample. */
static void
note_pass(DrRamMeter *m, gint64 bytes, gint64 left, gint64 pass, gint64 now_us)
{
  gint64 us = m->pass_us ? (now_us - m->pass_us) / MAX(pass - m->pass, 1) : 0;

  if (pass > 1 && m->pass > 0) {
    m->left = left + MAX(bytes - m->seen_bytes, 0) / 2;
    if (us > 0)
      m->dirty = (double)m->left / (double)us;
  }
  m->pass = pass;
  m->pass_us = now_us;
}

static double
dirty_mib(const DrRamMeter *m, JsonObject *ram, gint64 now_us)
{
  double qemu = number(ram, "dirty-pages-rate") * number(ram, "page-size") / 1048576.0;

  if (qemu > 0 && (m->dirty < 0 || now_us - m->pass_us > LONG_PASS_US))
    return qemu;
  return m->dirty < 0 ? -1 : m->dirty * 1e6 / 1048576.0;
}

void
dr_ram_meter_take(DrRamMeter *m, JsonObject *ram, gint64 now_us, DrProgress *progress)
{
  gint64 bytes = dr_json_int(ram, "transferred", 0), left = dr_json_int(ram, "remaining", 0);
  gint64 pass = dr_json_int(ram, "dirty-sync-count", 0);
  double rate;

  measure(m, bytes, left, pass, now_us);
  if (pass > m->pass)
    note_pass(m, bytes, left, pass, now_us);
  m->seen_us = now_us;
  m->seen_bytes = bytes;
  m->seen_left = left;
  rate = MAX(m->drain, m->wire);
  progress->bytes_done = bytes;
  progress->bytes_total = bytes + left;
  progress->rate_mib = m->wire > 0 ? m->wire * 1e6 / 1048576.0 : number(ram, "mbps") / 8.388608;
  progress->pass = pass;
  progress->remaining = left;
  progress->dirty_mib = dirty_mib(m, ram, now_us);
  progress->expected_ms = rate > 0 ? (gint64)((double)left / rate / 1000.0) : -1;
}

gint64
dr_ram_meter_pass_ms(const DrRamMeter *m)
{
  return m->left > 0 && m->wire > 0 ? (gint64)((double)m->left / m->wire / 1000.0) : -1;
}
