/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Live lines of a job. */
#include "cli/live.h"
#include "cli/bar.h"
#include "cli/job-view.h"
#include "cli/render.h"

#include <string.h>

#define INDENT 2
#define BAR_MIN 8
#define BAR_MAX 40
#define NAME_MAX_COLUMNS 16
#define DISKS_MAX 16 /* what is beyond gets one line together */

static int
width_of(const char *text)
{
  int columns = 0;

  for (; *text; text = g_utf8_next_char(text)) {
    gunichar c = g_utf8_get_char(text);

    columns += g_unichar_iszerowidth(c) ? 0 : g_unichar_iswide(c) ? 2 : 1;
  }
  return columns;
}

/* A full line would make some terminals begin the next. */
static char *
cut(const char *text, int columns)
{
  const char *end = text;
  int used = 0;

  for (; *end; end = g_utf8_next_char(end)) {
    gunichar c = g_utf8_get_char(end);

    used += g_unichar_iszerowidth(c) ? 0 : g_unichar_iswide(c) ? 2 : 1;
    if (used >= columns)
      break;
  }
  return g_strndup(text, (gsize)(end - text));
}

static void
add(GPtrArray *lines, const DrLiveStyle *style, const char *text)
{
  g_ptr_array_add(lines, cut(text, style->columns));
}

/* --- What it does --- */

static char *
elapsed(JsonObject *job, const DrLiveStyle *style)
{
  gint64 started_ms = dr_json_int(job, "started_ms", 0);
  g_autofree char *text = dr_render_ms((double)MAX(style->now_ms - started_ms, 0));

  return started_ms ? g_strdup_printf(", %s", text) : g_strdup("");
}

static char *
headline(JsonObject *job, const DrLiveStyle *style)
{
  const char *stage = dr_json_str(job, "stage", dr_json_str(job, "state", "?"));
  const char *phase = dr_json_str(job, "progress.phase", stage);
  g_autofree char *took = elapsed(job, style);

  if (g_str_equal(phase, stage))
    return g_strdup_printf("%s: %s%s", dr_json_str(job, "vm", "?"), stage, took);
  return g_strdup_printf("%s: %s: %s%s", dr_json_str(job, "vm", "?"), stage, phase, took);
}

/* --- Bars --- */

typedef struct {
  const char *name, *more; /* nullable: behind the numbers */
  double done, total;
} Row;

static void
add_bar(GPtrArray *lines, const DrLiveStyle *style, const Row *row, int name_columns)
{
  double fraction = row->total > 0 ? row->done / row->total : 0;
  g_autofree char *name = dr_render_harmless(row->name), *short_name = cut(name, name_columns + 1);
  g_autofree char *done = dr_render_bytes(row->done), *total = dr_render_bytes(row->total);
  g_autofree char *numbers = g_strdup_printf("%3.0f%%  %s of %s%s%s", CLAMP(100 * fraction, 0, 100), done,
                                             total, row->more ? ", " : "", row->more ? row->more : "");
  int room = style->columns - 1 - INDENT - name_columns - 2 - 2 - width_of(numbers) - 1;
  int pad = name_columns - width_of(short_name);
  g_autofree char *bar = NULL, *line = NULL;

  if (room < BAR_MIN) { /* the numbers say it all */
    line = g_strdup_printf("%*s%s%*s %s", INDENT, "", short_name, pad, "", numbers);
  } else {
    bar = dr_bar(fraction, MIN(room, BAR_MAX), style->utf8);
    line = g_strdup_printf("%*s%s%*s %s %s", INDENT, "", short_name, pad, "", bar, numbers);
  }
  add(lines, style, line);
}

static char *
rate_text(JsonObject *progress, gboolean passes)
{
  double rate = dr_render_number(progress, "rate_mib", 0);

  return passes ? g_strdup_printf("%.0f MiB/s, pass %d", rate, (int)dr_render_number(progress, "pass", 1))
                : g_strdup_printf("%.0f MiB/s", rate);
}

static int
name_columns(JsonArray *disks)
{
  int columns = (int)strlen("memory");

  for (guint i = 0; i < json_array_get_length(disks); i++)
    columns = MAX(columns, width_of(dr_json_str(json_array_get_object_element(disks, i), "disk", "?")));
  return MIN(columns, NAME_MAX_COLUMNS);
}

static void
add_disks(GPtrArray *lines, const DrLiveStyle *style, JsonArray *disks, const char *rate, int columns)
{
  Row rest = { .name = "others" };

  for (guint i = 0; i < json_array_get_length(disks); i++) {
    JsonObject *disk = json_array_get_object_element(disks, i);
    Row row = { .name = dr_json_str(disk, "disk", "?"),
                .more = json_array_get_length(disks) == 1 ? rate : NULL,
                .done = dr_render_number(disk, "bytes_done", 0),
                .total = dr_render_number(disk, "bytes_total", 0) };

    rest.done += i < DISKS_MAX ? 0 : row.done;
    rest.total += i < DISKS_MAX ? 0 : row.total;
    if (i < DISKS_MAX)
      add_bar(lines, style, &row, columns);
  }
  if (rest.total > 0)
    add_bar(lines, style, &rest, columns);
}

static gboolean
has_number(JsonObject *progress, const char *name)
{
  return dr_render_number(progress, name, -1) >= 0;
}

/* Memory where there is some to be left; else all disks together, where there is more than one or none is named. */
static void
add_bars(GPtrArray *lines, const DrLiveStyle *style, JsonObject *progress)
{
  g_autoptr(JsonArray) none = json_array_new();
  JsonArray *disks = dr_json_arr(progress, "disks") ? dr_json_arr(progress, "disks") : none;
  gboolean memory = has_number(progress, "remaining_bytes");
  g_autofree char *rate = rate_text(progress, memory);
  Row all = { .name = memory ? "memory" : "all",
              .more = rate,
              .done = dr_render_number(progress, "bytes_done", 0),
              .total = dr_render_number(progress, "bytes_total", 0) };
  int columns = name_columns(disks);

  if (all.total > 0 && (memory || json_array_get_length(disks) != 1))
    add_bar(lines, style, &all, columns);
  add_disks(lines, style, disks, memory ? NULL : rate, columns);
}

/* --- What is to come --- */

static void
append(GString *text, JsonObject *progress, const char *member, const char *words, char *(*render)(double))
{
  g_autofree char *number =
      has_number(progress, member) ? render(dr_render_number(progress, member, 0)) : NULL;

  if (number)
    g_string_append_printf(text, "%s%s %s", text->len ? ", " : "", words, number);
}

static char *
render_rate(double mib)
{
  return g_strdup_printf("%.0f MiB/s", mib);
}

static void
add_outlook(GPtrArray *lines, const DrLiveStyle *style, JsonObject *progress)
{
  g_autoptr(GString) text = g_string_new(NULL);
  g_autofree char *line = NULL;

  append(text, progress, "remaining_bytes", "left", dr_render_bytes);
  append(text, progress, "dirty_mib", "the guest writes", render_rate);
  append(text, progress, "expected_pause_ms", "expected pause", dr_render_ms);
  append(text, progress, "expected_ms", "end in", dr_render_ms);
  if (text->len == 0)
    return;
  line = g_strdup_printf("%*s%s", INDENT, "", text->str);
  add(lines, style, line);
}

GPtrArray *
dr_live_lines(JsonObject *job, const DrLiveStyle *style)
{
  GPtrArray *lines = g_ptr_array_new_with_free_func(g_free);
  JsonObject *progress = dr_json_obj(job, "progress");
  g_autofree char *head = headline(job, style);
  g_autofree char *short_head = cut(head, style->columns);

  g_ptr_array_add(lines, style->color ? g_strdup_printf("\033[1m%s\033[0m", short_head)
                                      : g_steal_pointer(&short_head));
  if (!progress || dr_render_number(progress, "bytes_total", 0) <= 0)
    return lines;
  add_bars(lines, style, progress);
  add_outlook(lines, style, progress);
  return lines;
}

char *
dr_live_line(JsonObject *job, const DrLiveStyle *style)
{
  g_autofree char *progress = dr_job_view_progress(job);
  g_autofree char *line = g_strdup_printf("%s: %s", dr_json_str(job, "vm", "?"), progress);

  return cut(line, style->columns);
}
