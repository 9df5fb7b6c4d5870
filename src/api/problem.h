/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Errors as problem details (RFC 9457). */
#pragma once
#include <libsoup/soup.h>

/* The HTTP status of an error of base/error.h; 500 for a foreign one. */
guint dr_problem_status(const GError *error);

/* Makes the error the answer to `message`. */
void dr_problem_answer(SoupServerMessage *message, const GError *error);

/* The same for what only HTTP knows of (404 of a path, 405, 413, 426, 503). `remedy` may be NULL. */
void dr_problem_answer_status(SoupServerMessage *message, guint status, const char *code, const char *remedy,
                              const char *format, ...) G_GNUC_PRINTF(5, 6);
