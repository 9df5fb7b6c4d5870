/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A line plot as inline SVG. */
#include "cli/svg-plot.h"
#include "cli/render.h"

#include <math.h>

#define WIDTH 760
#define HEIGHT 220
#define LEFT 90
#define RIGHT 12
#define TOP 12
#define BOTTOM 28
#define TICKS 4

typedef struct {
  double x_min, x_max, y_max;
} Frame;

static double
place_x(const Frame *f, double x)
{
  return LEFT + (x - f->x_min) / (f->x_max - f->x_min) * (WIDTH - LEFT - RIGHT);
}

static double
place_y(const Frame *f, double y)
{
  return HEIGHT - BOTTOM - CLAMP(y / f->y_max, 0, 1) * (HEIGHT - TOP - BOTTOM);
}

/* The next of these times a power of ten, so that the ticks, which are its quarters, are round. */
static double
round_up(double value)
{
  static const double steps[] = { 1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10 };
  double power = pow(10, floor(log10(value)));

  for (guint i = 0; i < G_N_ELEMENTS(steps); i++)
    if (value <= steps[i] * power)
      return steps[i] * power;
  return value;
}

/* The scale goes from the first to the last moment of which something is known. */
static gboolean
measure(const DrSvgPlot *plot, Frame *f)
{
  gboolean any = FALSE;

  *f = (Frame){ 0 };
  for (guint s = 0; s < plot->n_series; s++)
    for (guint i = 0; i < plot->n; i++) {
      if (isnan(plot->series[s].y[i]))
        continue;
      f->x_min = any ? MIN(f->x_min, plot->x[i]) : plot->x[i];
      f->x_max = any ? MAX(f->x_max, plot->x[i]) : plot->x[i];
      f->y_max = MAX(f->y_max, plot->series[s].y[i]);
      any = TRUE;
    }
  if (!isnan(plot->line))
    f->y_max = MAX(f->y_max, plot->line);
  if (any && f->y_max > 0)
    f->y_max = round_up(f->y_max);
  return any && f->y_max > 0 && f->x_max > f->x_min;
}

static void
add_axes(GString *out, const DrSvgPlot *plot, const Frame *f)
{
  for (int i = 0; i <= TICKS; i++) {
    double y = f->y_max * i / TICKS, x = f->x_min + (f->x_max - f->x_min) * i / TICKS;
    g_autofree char *y_text = plot->render(y), *x_text = dr_render_ms(x);
    const char *anchor = i == 0 ? "start" : i == TICKS ? "end" : "middle";

    g_string_append_printf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT,
                           WIDTH - RIGHT, place_y(f, y), place_y(f, y));
    g_string_append_printf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>", LEFT - 6,
                           place_y(f, y) + 4, y_text);
    g_string_append_printf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"%s\">%s</text>", place_x(f, x),
                           HEIGHT - 8, anchor, x_text);
  }
}

static void
add_marks(GString *out, const DrSvgPlot *plot, const Frame *f)
{
  for (guint i = 0; plot->marks && i < plot->marks->len; i++) {
    double x = g_array_index(plot->marks, double, i);

    if (x > f->x_min && x < f->x_max)
      g_string_append_printf(out, "<line class=\"mark\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>",
                             place_x(f, x), place_x(f, x), TOP, HEIGHT - BOTTOM);
  }
  if (!isnan(plot->line))
    g_string_append_printf(out, "<line class=\"level\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT,
                           WIDTH - RIGHT, place_y(f, plot->line), place_y(f, plot->line));
}

/* A number that stands alone between two gaps is a dot. */
static void
add_series(GString *out, const DrSvgPlot *plot, guint s, const Frame *f)
{
  const double *y = plot->series[s].y;

  for (guint i = 0; i < plot->n; i++) {
    guint from = i;

    if (isnan(y[i]))
      continue;
    g_string_append_printf(out, "<polyline class=\"s%u\" points=\"", s);
    for (; i < plot->n && !isnan(y[i]); i++)
      g_string_append_printf(out, "%.1f,%.1f ", place_x(f, plot->x[i]), place_y(f, y[i]));
    g_string_append(out, "\"/>");
    if (i == from + 1)
      g_string_append_printf(out, "<circle class=\"s%u\" r=\"2\" cx=\"%.1f\" cy=\"%.1f\"/>", s,
                             place_x(f, plot->x[from]), place_y(f, y[from]));
  }
}

static void
add_legend(GString *out, const DrSvgPlot *plot)
{
  g_string_append(out, "<p class=\"legend\">");
  for (guint s = 0; s < plot->n_series; s++)
    g_string_append_printf(out, "<span><i class=\"s%u\"></i>%s</span>", s, plot->series[s].label);
  if (!isnan(plot->line))
    g_string_append_printf(out, "<span><i class=\"level\"></i>%s</span>", plot->line_label);
  g_string_append(out, "</p>\n");
}

gboolean
dr_svg_plot(GString *out, const DrSvgPlot *plot)
{
  Frame frame;

  if (!measure(plot, &frame))
    return FALSE;
  g_string_append_printf(out,
                         "<h2>%s</h2>\n<svg viewBox=\"0 0 %d %d\" "
                         "role=\"img\" aria-label=\"%s\">",
                         plot->title, WIDTH, HEIGHT, plot->title);
  add_axes(out, plot, &frame);
  add_marks(out, plot, &frame);
  for (guint s = 0; s < plot->n_series; s++)
    add_series(out, plot, s, &frame);
  g_string_append(out, "</svg>\n");
  add_legend(out, plot);
  return TRUE;
}
