/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A job's report as one page that needs nothing else: its style and its plots are in it, and no script. All text that is not ours is
 * escaped on its way in. */
#include "cli/bar.h"
#include "cli/job-view.h"
#include "cli/render.h"
#include "cli/report-view.h"
#include "cli/svg-plot.h"

#include <math.h>
#include <string.h>

#define WIDTH 760
#define ROW 22

static const char style[] =
    ":root{color-scheme:light "
    "dark;--bg:#fff;--fg:#1b1f24;--dim:#667;--grid:#e3e6ea;--s0:#0b62c4;--s1:#c2410c;"
    "--s2:#15803d;--bar:#7aa7dc;--pause:#d33}"
    "@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e4e7eb;--dim:#98a1ad;--grid:#2c323a;--s0:#"
    "6ab0ff;"
    "--s1:#ff9a5c;--s2:#5fd38a;--bar:#35608f;--pause:#ff6b6b}}"
    "body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:800px;margin:2em "
    "auto;padding:0 1em}"
    "h1{font-size:1.5em}h2{font-size:1.1em;margin:1.8em 0 .4em}"
    "p.error{border-left:4px solid var(--pause);padding-left:.8em}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}"
    "th,td{text-align:left;padding:.25em .8em .25em 0;border-bottom:1px solid var(--grid)}"
    "th{color:var(--dim);font-weight:normal}td.n,th.n{text-align:right}"
    "div.wide{overflow-x:auto}"
    "svg{width:100%;height:auto;display:block}svg text{fill:var(--dim);font-size:11px}"
    "svg text.on{fill:var(--fg)}"
    ".grid{stroke:var(--grid)}.mark{stroke:var(--dim);stroke-dasharray:2 3}"
    "line.level{stroke:var(--pause);stroke-dasharray:6 3}"
    "polyline{fill:none;stroke-width:1.6}rect.bar{fill:var(--bar)}rect.pause{fill:var(--pause)}"
    "polyline.s0{stroke:var(--s0)}polyline.s1{stroke:var(--s1)}polyline.s2{stroke:var(--s2)}"
    "circle.s0,rect.p0,rect.p3,rect.p6,rect.p9{fill:var(--s0)}circle.s1,rect.p1,rect.p4,rect.p7{fill:var(--"
    "s1)}"
    "circle.s2,rect.p2,rect.p5,rect.p8{fill:var(--s2)}"
    ".legend span{margin-right:1.5em;color:var(--dim)}.legend "
    "i{display:inline-block;width:1.2em;height:.25em;"
    "margin-right:.4em;vertical-align:middle}"
    "i.s0{background:var(--s0)}i.s1{background:var(--s1)}i.s2{background:var(--s2)}i.level{background:var(--"
    "pause)}";

static void
append(GString *out, const char *text)
{
  g_autofree char *escaped = g_markup_escape_text(text, -1);

  g_string_append(out, escaped);
}

/* --- Tables --- */

static void
begin_table(GString *out, const char *title, const char *const *names)
{
  g_string_append_printf(out, "<h2>%s</h2>\n<div class=\"wide\"><table><tr>", title);
  for (; *names; names++)
    g_string_append_printf(out, "<th>%s</th>", *names);
  g_string_append(out, "</tr>\n");
}

static void
end_table(GString *out)
{
  g_string_append(out, "</table></div>\n");
}

/* Takes over `text`. */
static void
add_cell(GString *out, char *text)
{
  g_string_append(out, "<td>");
  append(out, text);
  g_string_append(out, "</td>");
  g_free(text);
}

static void
add_row(GString *out, const char *name, const char *value)
{
  g_string_append_printf(out, "<tr><th>%s</th><td>", name);
  append(out, value);
  g_string_append(out, "</td></tr>\n");
}

static char *
moment(JsonObject *job, const char *member)
{
  gint64 ms = dr_json_int(job, member, 0);
  g_autoptr(GDateTime) time = ms ? g_date_time_new_from_unix_local(ms / 1000) : NULL;

  return time ? g_date_time_format(time, "%Y-%m-%d %H:%M:%S %z") : g_strdup("-");
}

static void
add_summary(GString *out, JsonObject *report)
{
  JsonObject *job = dr_json_obj(report, "job");
  g_autofree char *title = dr_report_title(report), *sentence = dr_job_view_sentence(job);
  g_autofree char *started = moment(job, "started_ms"), *ended = moment(job, "ended_ms");
  g_autofree char *took = dr_render_ms(dr_report_end_ms(report));
  gboolean well = g_str_equal(dr_json_str(job, "state", ""), "succeeded") || !dr_job_view_ended(job);

  g_string_append(out, "<h1>");
  append(out, title);
  g_string_append_printf(out, "</h1>\n<p%s>", well ? "" : " class=\"error\"");
  append(out, sentence);
  g_string_append(out, "</p>\n");
  if (dr_json_str(job, "error.remedy", NULL)) {
    g_string_append(out, "<p>Remedy: ");
    append(out, dr_json_str(job, "error.remedy", ""));
    g_string_append(out, "</p>\n");
  }
  g_string_append(out, "<table>\n");
  add_row(out, "job", dr_json_str(job, "id", "?"));
  add_row(out, "started", started);
  add_row(out, "ended", ended);
  add_row(out, "took", took);
  g_string_append(out, "</table>\n");
}

static void
add_expected(GString *out, JsonObject *report)
{
  static const char *const names[] = { "", "expected", "was", NULL };
  DrReportExpected all[DR_REPORT_EXPECTED];
  gboolean any = FALSE;

  dr_report_expected(report, all);
  for (guint i = 0; i < G_N_ELEMENTS(all); i++) {
    if (all[i].expected_ms < 0 || all[i].real_ms < 0)
      continue;
    if (!any)
      begin_table(out, "Expected and real", names);
    any = TRUE;
    g_string_append(out, "<tr>");
    add_cell(out, g_strdup(all[i].what));
    add_cell(out, dr_render_ms(all[i].expected_ms));
    add_cell(out, dr_render_ms(all[i].real_ms));
    g_string_append(out, "</tr>\n");
  }
  if (any)
    end_table(out);
}

static char *
rate_text(double mib)
{
  return mib < 0 ? g_strdup("-") : g_strdup_printf("%.0f MiB/s", mib);
}

static void
add_passes(GString *out, JsonObject *report)
{
  static const char *const names[] = { "phase",         "pass",  "from",         "took",
                                       "left at first", "speed", "guest writes", NULL };
  g_autoptr(GArray) passes = dr_report_passes(report);

  if (passes->len == 0)
    return;
  begin_table(out, "Pass by pass", names);
  for (guint i = 0; i < passes->len; i++) {
    const DrReportPass *pass = &g_array_index(passes, DrReportPass, i);

    g_string_append(out, "<tr>");
    add_cell(out, g_strdup(pass->phase));
    add_cell(out, pass->pass ? g_strdup_printf("%d", pass->pass) : g_strdup("-"));
    add_cell(out, dr_render_ms(pass->begin_ms));
    add_cell(out, dr_render_ms(pass->end_ms - pass->begin_ms));
    add_cell(out, pass->remaining < 0 ? g_strdup("-") : dr_render_bytes(pass->remaining));
    add_cell(out, rate_text(pass->rate_mib));
    add_cell(out, rate_text(pass->dirty_mib));
    g_string_append(out, "</tr>\n");
  }
  end_table(out);
}

/* --- The timeline --- */

#define NAMES 110
#define ROOM 80 /* of a time, as text */

/* A bar of the timeline, with its text inside or beside it, wherever there is room. */
static void
add_span(GString *out, const char *name, const char *class_name, double begin, double end, double whole,
         int y)
{
  double room = WIDTH - NAMES, x = NAMES + begin / whole * room, w = MAX((end - begin) / whole * room, 1);
  g_autofree char *took = dr_render_ms(end - begin);
  gboolean left = x + w + ROOM > WIDTH;

  g_string_append_printf(out, "<text class=\"on\" x=\"0\" y=\"%d\">", y + 15);
  append(out, name);
  g_string_append_printf(
      out, "</text><rect class=\"%s\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"2\"/>",
      class_name, x, y + 3, w, ROW - 6);
  g_string_append_printf(out, "<text class=\"on\" x=\"%.1f\" y=\"%d\" text-anchor=\"%s\">%s</text>",
                         !left      ? x + w + 5
                         : w > ROOM ? x + w - 5
                                    : x - 5,
                         y + 15, left ? "end" : "start", took);
}

static void
add_timeline(GString *out, JsonObject *report)
{
  JsonArray *phases = dr_json_arr(report, "phases");
  JsonObject *pause = dr_json_obj(report, "pause");
  guint n = phases ? json_array_get_length(phases) : 0;
  double whole = dr_report_end_ms(report), at = dr_render_number(pause, "begin_ms", -1);

  if (n == 0)
    return;
  g_string_append_printf(out,
                         "<h2>Stages</h2>\n<svg viewBox=\"0 0 %d %d\" "
                         "role=\"img\" aria-label=\"stages\">",
                         WIDTH, (int)(n + (at >= 0)) * ROW);
  for (guint i = 0; i < n; i++) {
    JsonObject *phase = json_array_get_object_element(phases, i);

    add_span(out, dr_json_str(phase, "name", "?"), "bar", dr_render_number(phase, "begin_ms", 0),
             dr_render_number(phase, "end_ms", 0), whole, (int)i * ROW);
  }
  if (at >= 0)
    add_span(out, "guest paused", "pause", at, at + dr_render_number(pause, "total_ms", 0), whole,
             (int)n * ROW);
  g_string_append(out, "</svg>\n");
}

/* --- The pause --- */

static void
add_pause_bar(GString *out, JsonArray *parts, double total)
{
  double x = 0;

  g_string_append_printf(out,
                         "<svg viewBox=\"0 0 %d 46\" role=\"img\" "
                         "aria-label=\"parts of the pause\">",
                         WIDTH);
  for (guint i = 0; i < json_array_get_length(parts); i++) {
    JsonObject *part = json_array_get_object_element(parts, i);
    double ms = dr_render_number(part, "ms", 0), w = ms / total * WIDTH;
    const char *name = dr_json_str(part, "name", "?");
    g_autofree char *took = dr_render_ms(ms);

    g_string_append_printf(out, "<rect class=\"p%u\" x=\"%.1f\" y=\"0\" width=\"%.1f\" height=\"24\"><title>",
                           i % 10, x, MAX(w - 1, 0.5));
    append(out, name);
    g_string_append_printf(out, " %s</title></rect>", took);
    if (w > 8.0 * (double)g_utf8_strlen(name, -1)) {
      g_string_append_printf(out, "<text class=\"on\" x=\"%.1f\" y=\"40\" text-anchor=\"middle\">",
                             x + w / 2);
      append(out, name);
      g_string_append(out, "</text>");
    }
    x += w;
  }
  g_string_append(out, "</svg>\n");
}

static void
add_pause(GString *out, JsonObject *report)
{
  static const char *const names[] = { "part", "took", "share", "what for", NULL };
  JsonArray *parts = dr_json_arr(report, "pause.parts");
  double total = dr_render_number(dr_json_obj(report, "pause"), "total_ms", 0);
  g_autofree char *all = dr_render_ms(total), *title = g_strdup_printf("The pause of %s", all);

  if (!parts || total <= 0)
    return;
  begin_table(out, title, names);
  for (guint i = 0; i < json_array_get_length(parts); i++) {
    JsonObject *part = json_array_get_object_element(parts, i);
    double ms = dr_render_number(part, "ms", 0);

    g_string_append(out, "<tr>");
    add_cell(out, g_strdup(dr_json_str(part, "name", "?")));
    add_cell(out, dr_render_ms(ms));
    add_cell(out, g_strdup_printf("%.0f%%", 100 * ms / total));
    add_cell(out, g_strdup(dr_report_part_words(dr_json_str(part, "name", "?"))));
    g_string_append(out, "</tr>\n");
  }
  end_table(out);
  add_pause_bar(out, parts, total);
}

/* --- Plots --- */

static double *
column(JsonArray *samples, const char *member)
{
  guint n = samples ? json_array_get_length(samples) : 0;
  double *numbers = g_new(double, n + 1);

  for (guint i = 0; i < n; i++)
    numbers[i] = dr_render_number(json_array_get_object_element(samples, i), member, NAN);
  return numbers;
}

/* Where a pass, or a phase, begins. */
static GArray *
beginnings(JsonObject *report)
{
  g_autoptr(GArray) passes = dr_report_passes(report);
  GArray *marks = g_array_new(FALSE, FALSE, sizeof(double));

  for (guint i = 1; i < passes->len; i++)
    g_array_append_val(marks, g_array_index(passes, DrReportPass, i).begin_ms);
  return marks;
}

static char *
render_rate(double mib)
{
  return g_strdup_printf(mib < 10 ? "%.1f MiB/s" : "%.0f MiB/s", mib);
}

static void
add_plots(GString *out, JsonObject *report)
{
  JsonArray *samples = dr_json_arr(report, "samples");
  guint n = samples ? json_array_get_length(samples) : 0;
  g_autofree double *x = column(samples, "t_ms"), *left = column(samples, "remaining_bytes");
  g_autofree double *rate = column(samples, "rate_mib"), *dirty = column(samples, "dirty_mib");
  g_autofree double *expected = column(samples, "expected_pause_ms");
  g_autofree double *done = column(samples, "disk_bytes_done"), *total = column(samples, "disk_bytes_total");
  g_autoptr(GArray) marks = beginnings(report);
  double pause = dr_render_number(dr_json_obj(report, "pause"), "total_ms", NAN);
  const DrSvgPlot plots[] = {
    { "Memory that is left",
      x,
      n,
      { { "left of the pass under way", left } },
      1,
      dr_render_bytes,
      NAN,
      NULL,
      marks },
    { "Speed",
      x,
      n,
      { { "copied", rate }, { "written by the guest", dirty } },
      2,
      render_rate,
      NAN,
      NULL,
      marks },
    { "Disks", x, n, { { "copied", done }, { "of", total } }, 2, dr_render_bytes, NAN, NULL, NULL },
    { "Expected pause",
      x,
      n,
      { { "expected", expected } },
      1,
      dr_render_ms,
      pause,
      "the pause that came",
      marks },
  };
  guint drawn = 0;

  for (guint i = 0; i < G_N_ELEMENTS(plots); i++)
    drawn += dr_svg_plot(out, &plots[i]);
  if (drawn == 0)
    g_string_append(out, "<p>There is nothing to plot: it was over before a second look at it.</p>\n");
}

char *
dr_report_html(JsonObject *report)
{
  GString *out = g_string_new("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                              "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
                              "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
                              "style-src 'unsafe-inline'\">\n<title>");
  g_autofree char *title = dr_report_title(report);

  append(out, title);
  g_string_append(out, ", job ");
  append(out, dr_json_str(report, "job.id", "?"));
  g_string_append_printf(out, "</title>\n<style>%s</style>\n</head>\n<body>\n", style);
  add_summary(out, report);
  add_timeline(out, report);
  add_pause(out, report);
  add_expected(out, report);
  add_plots(out, report);
  add_passes(out, report);
  g_string_append(out, "</body>\n</html>\n");
  return g_string_free(out, FALSE);
}
