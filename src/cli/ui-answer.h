/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the dashboard's proxy says itself: short pages, and problems for those who ask the API. */
#pragma once
#include "cli/ui-request.h"

/* A page with a heading and a line. `more`: header lines, each with its CRLF, or "". All texts are ours; they are escaped. */
gboolean dr_ui_answer_page(GOutputStream *out, guint status, const char *more, const char *heading,
                           const char *text, GError **error);

/* The browser goes on to `path`, by its own page: as a redirect it would still be a request of the page that had the link, and
 * come without the cookie. */
gboolean dr_ui_answer_enter(GOutputStream *out, const char *cookie, const char *path, GError **error);

gboolean dr_ui_answer_redirect(GOutputStream *out, const char *path, GError **error);

/* `why` as a page, or as problem details where the path is of the API. */
gboolean dr_ui_answer_error(GOutputStream *out, const DrUiRequest *request, const GError *why,
                            GError **error);
