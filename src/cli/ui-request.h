/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One HTTP request as the dashboard's proxy reads it, within bounds of size and time. */
#pragma once
#include <gio/gio.h>
#include <libsoup/soup.h>

typedef struct {
  char *method;
  char *path;  /* raw, beginning with "/" */
  char *query; /* nullable, without "?" */
  SoupMessageHeaders *headers;
  GBytes *body; /* nullable */
} DrUiRequest;

/* Blocks until all of it has come. Errors: INVALID for what is no request, too large, or has a body without a length; TIMEOUT;
 * CLOSED where nothing came. (transfer full) */
DrUiRequest *dr_ui_request_read(GSocketConnection *connection, GError **error);
void dr_ui_request_free(DrUiRequest *request);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrUiRequest, dr_ui_request_free)

/* NULL where there is none; several of one name are joined by ", ". (transfer none) */
const char *dr_ui_request_header(const DrUiRequest *request, const char *name);
