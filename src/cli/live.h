/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A job under way as a few lines of a terminal: what it does, a bar for the memory and one for each disk, what is left. */
#pragma once
#include "base/json.h"

typedef struct {
  int columns;
  gboolean color, utf8;
  gint64 now_ms; /* wall clock */
} DrLiveStyle;

/* Lines without a newline, none wider than the terminal. (transfer full) (element-type utf8) */
GPtrArray *dr_live_lines(JsonObject *job, const DrLiveStyle *style);
/* The same in one. (transfer full) */
char *dr_live_line(JsonObject *job, const DrLiveStyle *style);
