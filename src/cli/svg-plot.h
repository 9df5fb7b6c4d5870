/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A line plot as inline SVG. Its colours are classes ("s0", "s1", … for the series) that the page's style sheet has. */
#pragma once
#include <glib.h>

#define DR_SVG_SERIES 3

typedef struct {
  const char *title; /* for those who do not see it */
  const double *x;   /* ms, rising */
  guint n;
  struct {
    const char *label;
    const double *y; /* NAN: a gap */
  } series[DR_SVG_SERIES];
  guint n_series;
  char *(*render)(double y); /* a number of the y axis; (transfer full) */
  double line;               /* a level that is drawn across, NAN: none */
  const char *line_label;
  GArray *marks; /* nullable: of double: moments in ms */
} DrSvgPlot;

/* FALSE: there was nothing to be drawn. */
gboolean dr_svg_plot(GString *out, const DrSvgPlot *plot);
