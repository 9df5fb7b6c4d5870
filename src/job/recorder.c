/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A job's flight recorder: see recorder.h. */
#include "job/recorder.h"

#include <string.h>

#define STEP_MS 50 /* between two samples, at first: QEMU is asked that often at most */

typedef struct {
  gint64 t_ms;
  guint phase; /* in names */
  gint64 pass, bytes_done, remaining, expected_pause_ms, disk_done, disk_total, expected_ms;
  double rate_mib, dirty_mib;
} Sample;

typedef struct {
  guint name;
  gint64 begin_us, end_us; /* -1: it goes on */
} Phase;

struct DrRecorder {
  gint64 origin_us, step_ms;
  GPtrArray *names; /* of phases, each once */
  GArray *samples;  /* of Sample; the last is the newest, whatever its distance */
  GArray *phases;
  gboolean paused;
  double pause_ms;
  gint64 pause_at_us, expected_ms;
  DrPausePart parts[DR_PAUSE_MARKS + 1];
  guint n_parts;
};

DrRecorder *
dr_recorder_new(gint64 origin_us)
{
  DrRecorder *r = g_new0(DrRecorder, 1);

  r->origin_us = origin_us;
  r->step_ms = STEP_MS;
  r->names = g_ptr_array_new_with_free_func(g_free);
  r->samples = g_array_new(FALSE, FALSE, sizeof(Sample));
  r->phases = g_array_new(FALSE, FALSE, sizeof(Phase));
  return r;
}

static gpointer
copy_name(gconstpointer name, gpointer unused)
{
  return g_strdup(name);
}

DrRecorder *
dr_recorder_copy(const DrRecorder *recorder)
{
  DrRecorder *r = g_memdup2(recorder, sizeof *recorder);

  r->names = g_ptr_array_copy(recorder->names, copy_name, NULL);
  g_ptr_array_set_free_func(r->names, g_free);
  r->samples = g_array_copy(recorder->samples);
  r->phases = g_array_copy(recorder->phases);
  return r;
}

void
dr_recorder_free(DrRecorder *recorder)
{
  if (!recorder)
    return;
  g_ptr_array_unref(recorder->names);
  g_array_unref(recorder->samples);
  g_array_unref(recorder->phases);
  g_free(recorder);
}

/* --- Recording --- */

/* There are a dozen; what would be beyond the bound is called as the last. */
static guint
name_index(DrRecorder *r, const char *name)
{
  guint i;

  if (g_ptr_array_find_with_equal_func(r->names, name, g_str_equal, &i))
    return i;
  if (r->names->len == DR_RECORDER_NAMES)
    return r->names->len - 1;
  g_ptr_array_add(r->names, g_strdup(name));
  return r->names->len - 1;
}

static Phase *
last_phase(const DrRecorder *r)
{
  return r->phases->len ? &g_array_index(r->phases, Phase, r->phases->len - 1) : NULL;
}

void
dr_recorder_end(DrRecorder *recorder, gint64 now_us)
{
  Phase *last = last_phase(recorder);

  if (last && last->end_us < 0)
    last->end_us = now_us - recorder->origin_us;
}

void
dr_recorder_phase(DrRecorder *recorder, const char *name, gint64 now_us)
{
  Phase phase = { name_index(recorder, name), now_us - recorder->origin_us, -1 };

  dr_recorder_end(recorder, now_us);
  if (recorder->phases->len == DR_RECORDER_PHASES) { /* the last stands for the rest */
    last_phase(recorder)->end_us = -1;
    return;
  }
  g_array_append_val(recorder->phases, phase);
}

/* Every second one goes; the newest stays. */
static void
thin_out(GArray *samples)
{
  guint kept = 0;

  for (guint i = 0; i < samples->len; i++)
    if (i % 2 == 0 || i == samples->len - 1)
      g_array_index(samples, Sample, kept++) = g_array_index(samples, Sample, i);
  g_array_set_size(samples, kept);
}

/* Whether the last one has to stay when there is a newer one: it is far enough from the one before it, or a pass or a phase begins with it, as long
 * as there is room for such. */
static gboolean
is_kept(const DrRecorder *r)
{
  const Sample *last, *before;

  if (r->samples->len < 2)
    return TRUE;
  last = &g_array_index(r->samples, Sample, r->samples->len - 1);
  before = last - 1;
  if (r->step_ms == STEP_MS && (last->pass != before->pass || last->phase != before->phase))
    return TRUE;
  return last->t_ms - before->t_ms >= r->step_ms;
}

static void
sum_disks(const DrProgress *progress, Sample *sample)
{
  sample->disk_done = sample->disk_total = progress->n_disks ? 0 : -1;
  for (guint i = 0; i < progress->n_disks; i++) {
    sample->disk_done += progress->disks[i].bytes_done;
    sample->disk_total += progress->disks[i].bytes_total;
  }
}

void
dr_recorder_sample(DrRecorder *recorder, const DrProgress *progress, const char *stage, gint64 now_us)
{
  Sample sample = {
    .t_ms = (now_us - recorder->origin_us) / 1000,
    .phase = name_index(recorder, progress->phase ? progress->phase : stage),
    .pass = progress->pass,
    .bytes_done = progress->bytes_done,
    .remaining = progress->remaining,
    .expected_pause_ms = progress->expected_pause_ms,
    .expected_ms = progress->expected_ms,
    .rate_mib = progress->rate_mib,
    .dirty_mib = progress->dirty_mib,
  };

  sum_disks(progress, &sample);
  if (!is_kept(recorder))
    g_array_set_size(recorder->samples, recorder->samples->len - 1);
  if (recorder->samples->len == DR_RECORDER_SAMPLES) {
    thin_out(recorder->samples);
    recorder->step_ms *= 2;
  }
  g_array_append_val(recorder->samples, sample);
}

void
dr_recorder_pause(DrRecorder *recorder, const DrPause *pause, gint64 begin_us, gint64 end_us, gint64 at_us,
                  gint64 expected_ms)
{
  recorder->paused = TRUE;
  recorder->pause_ms = (double)(end_us - begin_us) / 1000.0;
  recorder->pause_at_us = at_us - recorder->origin_us;
  recorder->expected_ms = expected_ms;
  recorder->n_parts = dr_pause_parts(pause, begin_us, end_us, recorder->parts);
}

gint64
dr_recorder_expected_pause(const DrRecorder *recorder)
{
  for (guint i = recorder->samples->len; i-- > 0;)
    if (g_array_index(recorder->samples, Sample, i).expected_pause_ms >= 0)
      return g_array_index(recorder->samples, Sample, i).expected_pause_ms;
  return -1;
}

/* --- As JSON --- */

static const struct {
  const char *name;
  gsize offset;
  gboolean is_double;
} columns[] = {
  { "t_ms", offsetof(Sample, t_ms) },
  { "phase", offsetof(Sample, phase) },
  { "pass", offsetof(Sample, pass) },
  { "bytes_done", offsetof(Sample, bytes_done) },
  { "remaining_bytes", offsetof(Sample, remaining) },
  { "rate_mib", offsetof(Sample, rate_mib), TRUE },
  { "dirty_mib", offsetof(Sample, dirty_mib), TRUE },
  { "expected_pause_ms", offsetof(Sample, expected_pause_ms) },
  { "disk_bytes_done", offsetof(Sample, disk_done) },
  { "disk_bytes_total", offsetof(Sample, disk_total) },
  { "expected_ms", offsetof(Sample, expected_ms) },
};

#define PHASE_COLUMN 1

static JsonNode *
new_int(gint64 value)
{
  JsonNode *node = json_node_new(JSON_NODE_VALUE);

  json_node_set_int(node, value);
  return node;
}

/* Two digits behind the point are as much as a rate is worth. */
static JsonNode *
new_double(double value)
{
  JsonNode *node = json_node_new(JSON_NODE_VALUE);

  json_node_set_double(node, (double)(gint64)(value * 100 + 0.5) / 100);
  return node;
}

static JsonNode *
cell(const Sample *sample, guint column)
{
  const char *at = (const char *)sample + columns[column].offset;
  double number;
  gint64 whole;

  if (column == PHASE_COLUMN)
    return new_int(sample->phase);
  if (columns[column].is_double) {
    memcpy(&number, at, sizeof number);
    return number < 0 ? json_node_new(JSON_NODE_NULL) : new_double(number);
  }
  memcpy(&whole, at, sizeof whole);
  return whole < 0 ? json_node_new(JSON_NODE_NULL) : new_int(whole);
}

static JsonArray *
pack_samples(GArray *samples)
{
  JsonArray *rows = json_array_sized_new(samples->len);

  for (guint i = 0; i < samples->len; i++) {
    JsonArray *row = json_array_sized_new(G_N_ELEMENTS(columns));

    for (guint c = 0; c < G_N_ELEMENTS(columns); c++)
      json_array_add_element(row, cell(&g_array_index(samples, Sample, i), c));
    json_array_add_array_element(rows, row);
  }
  return rows;
}

static JsonArray *
names_json(const DrRecorder *r)
{
  JsonArray *names = json_array_new();

  for (guint i = 0; i < r->names->len; i++)
    json_array_add_string_element(names, r->names->pdata[i]);
  return names;
}

static JsonArray *
phases_json(const DrRecorder *r, gint64 now_us)
{
  JsonArray *phases = json_array_new();

  for (guint i = 0; i < r->phases->len; i++) {
    const Phase *phase = &g_array_index(r->phases, Phase, i);
    gint64 end_us = phase->end_us < 0 ? MAX(now_us - r->origin_us, phase->begin_us) : phase->end_us;

    json_array_add_object_element(phases, dr_json("{'name': <%s>, 'begin_ms': <%d>, 'end_ms': <%d>}",
                                                  r->names->pdata[phase->name],
                                                  (double)phase->begin_us / 1000.0, (double)end_us / 1000.0));
  }
  return phases;
}

static JsonObject *
pause_json(const DrRecorder *r)
{
  JsonObject *pause =
      dr_json("{'begin_ms': <%d>, 'total_ms': <%d>}", (double)r->pause_at_us / 1000.0, r->pause_ms);
  JsonArray *parts = json_array_new();

  if (r->expected_ms >= 0)
    json_object_set_int_member(pause, "expected_ms", r->expected_ms);
  else
    json_object_set_null_member(pause, "expected_ms");
  for (guint i = 0; i < r->n_parts; i++)
    json_array_add_object_element(parts,
                                  dr_json("{'name': <%s>, 'ms': <%d>}", r->parts[i].name, r->parts[i].ms));
  json_object_set_array_member(pause, "parts", parts);
  return pause;
}

static JsonObject *
pack(const DrRecorder *r, GArray *samples, gint64 now_us)
{
  JsonObject *object = json_object_new();

  json_object_set_array_member(object, "names", names_json(r));
  json_object_set_array_member(object, "samples", pack_samples(samples));
  json_object_set_array_member(object, "phases", phases_json(r, now_us));
  if (r->paused)
    json_object_set_object_member(object, "pause", pause_json(r));
  else
    json_object_set_null_member(object, "pause");
  return object;
}

/* Numbers of many digits make more than the usual length: then fewer samples have to do. */
char *
dr_recorder_pack(const DrRecorder *recorder)
{
  g_autoptr(GArray) samples = g_array_copy(recorder->samples);

  for (;;) {
    g_autoptr(JsonObject) object = pack(recorder, samples, recorder->origin_us);
    g_autofree char *text = dr_json_print_object(object, FALSE);

    if (strlen(text) <= DR_RECORDER_BYTES || samples->len <= 2)
      return g_steal_pointer(&text);
    thin_out(samples);
  }
}

/* A row of another drover may have fewer or more columns. */
static JsonObject *
unpack_row(JsonArray *row, JsonArray *names)
{
  JsonObject *object = json_object_new();

  for (guint c = 0; c < G_N_ELEMENTS(columns); c++) {
    JsonNode *node = c < json_array_get_length(row) ? json_array_get_element(row, c) : NULL;
    guint name =
        node && c == PHASE_COLUMN && JSON_NODE_HOLDS_VALUE(node) ? (guint)json_node_get_int(node) : G_MAXUINT;

    if (c == PHASE_COLUMN)
      json_object_set_string_member(
          object, "phase",
          names && name < json_array_get_length(names) ? json_array_get_string_element(names, name) : "?");
    else if (node)
      json_object_set_member(object, columns[c].name, json_node_copy(node)); /* `row` is the caller's own */
    else
      json_object_set_null_member(object, columns[c].name);
  }
  return object;
}

static void
copy_or_null(JsonObject *from, JsonObject *to, const char *name, JsonNode *otherwise)
{
  JsonNode *node = json_object_get_member(from, name);

  json_object_set_member(to, name, node ? dr_json_dup(node) : json_node_copy(otherwise));
  json_node_unref(otherwise);
}

JsonObject *
dr_recorder_unpack(JsonObject *packed)
{
  JsonObject *report = json_object_new();
  JsonArray *rows = dr_json_arr(packed, "samples"), *names = dr_json_arr(packed, "names");
  JsonArray *samples = json_array_new();
  JsonNode *none = json_node_new(JSON_NODE_ARRAY);

  for (guint i = 0; rows && i < json_array_get_length(rows); i++)
    if (JSON_NODE_HOLDS_ARRAY(json_array_get_element(rows, i)))
      json_array_add_object_element(samples, unpack_row(json_array_get_array_element(rows, i), names));
  json_object_set_array_member(report, "samples", samples);
  json_node_take_array(none, json_array_new());
  copy_or_null(packed, report, "phases", none);
  copy_or_null(packed, report, "pause", json_node_new(JSON_NODE_NULL));
  return report;
}

JsonObject *
dr_recorder_report(const DrRecorder *recorder, gint64 now_us)
{
  g_autoptr(JsonObject) packed = pack(recorder, recorder->samples, now_us);

  return dr_recorder_unpack(packed);
}
