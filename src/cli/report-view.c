/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A job's report, in numbers and as text. */
#include "cli/report-view.h"
#include "cli/bar.h"
#include "cli/job-view.h"
#include "cli/render.h"

#include <stdio.h>

#define BAR 30
#define PASSES_SHOWN 40 /* the first and the last of them */

/* --- Numbers --- */

typedef struct {
  double rate, dirty;
  guint rates, dirties;
} Means;

static gboolean
is_same(const DrReportPass *pass, JsonObject *sample)
{
  return pass->pass == (int)dr_render_number(sample, "pass", 0) &&
         g_str_equal(pass->phase, dr_json_str(sample, "phase", "?"));
}

static void
add_sample(DrReportPass *pass, Means *means, JsonObject *sample)
{
  double rate = dr_render_number(sample, "rate_mib", -1), dirty = dr_render_number(sample, "dirty_mib", -1);

  means->rate += MAX(rate, 0);
  means->rates += rate > 0;
  means->dirty += MAX(dirty, 0);
  means->dirties += dirty >= 0;
  pass->end_ms = dr_render_number(sample, "t_ms", 0);
  pass->rate_mib = means->rates ? means->rate / means->rates : -1;
  pass->dirty_mib = means->dirties ? means->dirty / means->dirties : -1;
  pass->disk_done = dr_render_number(sample, "disk_bytes_done", -1);
  pass->disk_total = dr_render_number(sample, "disk_bytes_total", -1);
}

GArray *
dr_report_passes(JsonObject *report)
{
  GArray *passes = g_array_new(FALSE, FALSE, sizeof(DrReportPass));
  JsonArray *samples = dr_json_arr(report, "samples");
  Means means = { 0 };

  for (guint i = 0; samples && i < json_array_get_length(samples); i++) {
    JsonObject *sample = json_array_get_object_element(samples, i);
    DrReportPass *last = passes->len ? &g_array_index(passes, DrReportPass, passes->len - 1) : NULL;

    if (!last || !is_same(last, sample)) {
      DrReportPass pass = { .phase = dr_json_str(sample, "phase", "?"),
                            .pass = (int)dr_render_number(sample, "pass", 0),
                            .begin_ms = dr_render_number(sample, "t_ms", 0),
                            .remaining = dr_render_number(sample, "remaining_bytes", -1) };

      if (last)
        last->end_ms = pass.begin_ms;
      means = (Means){ 0 };
      g_array_append_val(passes, pass);
    }
    add_sample(&g_array_index(passes, DrReportPass, passes->len - 1), &means, sample);
  }
  return passes;
}

double
dr_report_end_ms(JsonObject *report)
{
  JsonArray *phases = dr_json_arr(report, "phases"), *samples = dr_json_arr(report, "samples");
  double end = 1;

  for (guint i = 0; phases && i < json_array_get_length(phases); i++)
    end = MAX(end, dr_render_number(json_array_get_object_element(phases, i), "end_ms", 0));
  for (guint i = 0; samples && i < json_array_get_length(samples); i++)
    end = MAX(end, dr_render_number(json_array_get_object_element(samples, i), "t_ms", 0));
  return end;
}

/* When the end of the copying was first expected, and when it came; of a job that has ended well. */
static void
expected_end(JsonObject *report, DrReportExpected *ret)
{
  JsonArray *samples = dr_json_arr(report, "samples");
  guint n = samples ? json_array_get_length(samples) : 0;
  const char *phase = NULL; /* what was expected was its end, and no other's */

  *ret = (DrReportExpected){ "end of the copying", -1, -1 };
  if (n == 0 || !g_str_equal(dr_json_str(report, "job.state", ""), "succeeded"))
    return;
  for (guint i = 0; i < n; i++) {
    JsonObject *sample = json_array_get_object_element(samples, i);
    double left = dr_render_number(sample, "expected_ms", -1), at = dr_render_number(sample, "t_ms", 0);

    if (!phase && left >= 0) {
      phase = dr_json_str(sample, "phase", "");
      ret->expected_ms = at + left;
    }
    if (phase && g_str_equal(dr_json_str(sample, "phase", ""), phase))
      ret->real_ms = at;
  }
}

void
dr_report_expected(JsonObject *report, DrReportExpected ret[DR_REPORT_EXPECTED])
{
  JsonObject *pause = dr_json_obj(report, "pause");

  ret[0] = (DrReportExpected){ "pause", dr_render_number(pause, "expected_ms", -1),
                               dr_render_number(pause, "total_ms", -1) };
  expected_end(report, &ret[1]);
}

char *
dr_report_title(JsonObject *report)
{
  return g_strdup_printf("%s of %s: %s", dr_json_str(report, "job.kind", "job"),
                         dr_json_str(report, "job.vm", "?"), dr_json_str(report, "job.state", "?"));
}

const char *
dr_report_part_words(const char *name)
{
  static const struct {
    const char *name, *words;
  } parts[] = {
    { "stop", "the guest's devices and disks come to rest" },
    { "check", "droverd looks at the guest once more" },
    { "disks", "the last writes go to the copies of its disks" },
    { "sync", "QEMU finds the pages that are left" },
    { "transfer", "these pages and the state of its devices are sent" },
    { "load", "the new QEMU reads them" },
    { "decide", "it is written down whose the guest is" },
    { "message", "the other host is told" },
    { "go", "the new QEMU is told to run it" },
    { "resume", "it runs" },
  };

  for (guint i = 0; i < G_N_ELEMENTS(parts); i++)
    if (g_str_equal(parts[i].name, name))
      return parts[i].words;
  return "";
}

/* --- Text --- */

static void
print_head(JsonObject *report, gboolean color)
{
  JsonObject *job = dr_json_obj(report, "job");
  g_autofree char *state = dr_render_state(dr_json_str(job, "state", "?"), color);
  g_autofree char *sentence = dr_job_view_sentence(job);
  g_autofree char *took = dr_render_ms(dr_report_end_ms(report));

  printf("job %s: %s of %s: %s after %s\n", dr_json_str(job, "id", "?"), dr_json_str(job, "kind", "?"),
         dr_json_str(job, "vm", "?"), state, took);
  if (dr_job_view_ended(job))
    printf("%s\n", sentence);
}

static void
print_phases(JsonObject *report, gboolean utf8)
{
  static const char *const titles[] = { "STAGE", "FROM", "TOOK", "", NULL };
  JsonArray *phases = dr_json_arr(report, "phases");
  double end = dr_report_end_ms(report);
  DrTable *table;

  if (!phases || json_array_get_length(phases) == 0)
    return;
  puts("");
  table = dr_table_new(titles);
  for (guint i = 0; i < json_array_get_length(phases); i++) {
    JsonObject *phase = json_array_get_object_element(phases, i);
    double from = dr_render_number(phase, "begin_ms", 0), to = dr_render_number(phase, "end_ms", 0);

    dr_table_add(table, dr_render_member(phase, "name"), FALSE);
    dr_table_add(table, dr_render_ms(from), FALSE);
    dr_table_add(table, dr_render_ms(to - from), FALSE);
    dr_table_add(table, dr_bar_span(from / end, to / end, BAR, utf8), FALSE);
  }
  dr_table_print(table, FALSE);
}

static void
print_pause(JsonObject *report, gboolean utf8)
{
  static const char *const titles[] = { "PAUSE", "TOOK", "SHARE", "", "WHAT FOR", NULL };
  JsonArray *parts = dr_json_arr(report, "pause.parts");
  double total = dr_render_number(dr_json_obj(report, "pause"), "total_ms", 0);
  DrTable *table;

  if (!parts || total <= 0)
    return;
  puts("");
  table = dr_table_new(titles);
  for (guint i = 0; i < json_array_get_length(parts); i++) {
    JsonObject *part = json_array_get_object_element(parts, i);
    double ms = dr_render_number(part, "ms", 0);

    dr_table_add(table, dr_render_member(part, "name"), FALSE);
    dr_table_add(table, dr_render_ms(ms), FALSE);
    dr_table_add(table, g_strdup_printf("%.0f%%", 100 * ms / total), FALSE);
    dr_table_add(table, dr_bar(ms / total, BAR, utf8), FALSE);
    dr_table_add(table, g_strdup(dr_report_part_words(dr_json_str(part, "name", "?"))), FALSE);
  }
  dr_table_add(table, g_strdup("all"), FALSE);
  dr_table_add(table, dr_render_ms(total), FALSE);
  for (guint i = 2; titles[i]; i++)
    dr_table_add(table, g_strdup(""), FALSE);
  dr_table_print(table, FALSE);
}

static char *
number_or_dash(double number, char *(*render)(double))
{
  return number < 0 ? g_strdup("-") : render(number);
}

static char *
render_mib(double mib)
{
  return g_strdup_printf("%.0f MiB/s", mib);
}

/* The page and the JSON have them. */
static void
add_gap(DrTable *table, guint n)
{
  dr_table_add(table, g_strdup_printf("(%u more)", n), FALSE);
  for (guint i = 1; i < 7; i++)
    dr_table_add(table, g_strdup(""), FALSE);
}

static void
print_passes(JsonObject *report)
{
  static const char *const titles[] = { "PHASE",         "PASS",  "FROM",         "TOOK",
                                        "LEFT AT FIRST", "SPEED", "GUEST WRITES", NULL };
  g_autoptr(GArray) passes = dr_report_passes(report);
  DrTable *table;

  if (passes->len == 0)
    return;
  puts("");
  table = dr_table_new(titles);
  for (guint i = 0; i < passes->len; i++) {
    const DrReportPass *pass;

    if (passes->len > PASSES_SHOWN && i == PASSES_SHOWN / 2) {
      i = passes->len - PASSES_SHOWN / 2;
      add_gap(table, i - PASSES_SHOWN / 2);
    }
    pass = &g_array_index(passes, DrReportPass, i);
    dr_table_add(table, g_strdup(pass->phase), FALSE);
    dr_table_add(table, pass->pass ? g_strdup_printf("%d", pass->pass) : g_strdup("-"), FALSE);
    dr_table_add(table, dr_render_ms(pass->begin_ms), FALSE);
    dr_table_add(table, dr_render_ms(pass->end_ms - pass->begin_ms), FALSE);
    dr_table_add(table, number_or_dash(pass->remaining, dr_render_bytes), FALSE);
    dr_table_add(table, number_or_dash(pass->rate_mib, render_mib), FALSE);
    dr_table_add(table, number_or_dash(pass->dirty_mib, render_mib), FALSE);
  }
  dr_table_print(table, FALSE);
}

static void
print_expected(JsonObject *report)
{
  DrReportExpected all[DR_REPORT_EXPECTED];
  gboolean first = TRUE;

  dr_report_expected(report, all);
  for (guint i = 0; i < G_N_ELEMENTS(all); i++) {
    g_autofree char *expected = dr_render_ms(all[i].expected_ms), *real = dr_render_ms(all[i].real_ms);

    if (all[i].expected_ms < 0 || all[i].real_ms < 0)
      continue;
    printf("%s%s: expected %s%s, was %s\n", first ? "\n" : "", all[i].what, i ? "after " : "", expected,
           real);
    first = FALSE;
  }
}

void
dr_report_print(JsonObject *report, gboolean color, gboolean utf8)
{
  print_head(report, color);
  print_phases(report, utf8);
  print_passes(report);
  print_pause(report, utf8);
  print_expected(report);
}
