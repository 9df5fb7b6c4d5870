/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* GET /ui/: the dashboard's files, which are linked into the program (web/). They hold no data: what the page shows it asks of
 * the API. */
#include "api/call.h"
#include "base/error.h"
#include "ui.h"

#include <string.h>

#define PREFIX "/drover/ui/"

/* Nothing but what this server itself gave: no script or style in the page's text, no other origin, and no frame around it
 * that could catch a click. */
static const char *const headers[][2] = {
  { "Content-Security-Policy",
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'" },
  { "X-Content-Type-Options", "nosniff" },
  { "X-Frame-Options", "DENY" },
  { "Referrer-Policy", "no-referrer" },
  { "Cross-Origin-Opener-Policy", "same-origin" },
  { "Cross-Origin-Resource-Policy", "same-origin" },
  { "Cache-Control", "no-cache" }, /* a droverd that was upgraded has another page: ask, and hear 304 */
};

static const struct {
  const char *suffix, *type;
} types[] = {
  { ".html", "text/html; charset=utf-8" },
  { ".css", "text/css; charset=utf-8" },
  { ".js", "text/javascript; charset=utf-8" },
  { ".svg", "image/svg+xml" },
};

static const char *
type_of(const char *file)
{
  for (guint i = 0; i < G_N_ELEMENTS(types); i++)
    if (g_str_has_suffix(file, types[i].suffix))
      return types[i].type;
  return "application/octet-stream";
}

gboolean
dr_ui_is_foreign(SoupServerMessage *message, const char *path)
{
  SoupMessageHeaders *said = soup_server_message_get_request_headers(message);
  const char *site = soup_message_headers_get_one(said, "Sec-Fetch-Site");
  const char *origin = soup_message_headers_get_one(said, "Origin"),
             *host = soup_message_headers_get_one(said, "Host");
  g_autofree char *own = g_strconcat("https://", host ? host : "", NULL);

  if (g_str_has_prefix(path, "/ui")) /* the page itself may be linked to; it holds nothing */
    return FALSE;
  /* Not every browser says the first of a WebSocket. What is no browser says neither. */
  return (site && !g_str_equal(site, "same-origin") && !g_str_equal(site, "none")) ||
         (origin && g_ascii_strcasecmp(origin, own) != 0);
}

gboolean
dr_ui_work(DrCall *call, GError **error)
{
  const char *file = call->name ? call->name : "index.html";
  g_autofree char *path = g_strconcat(PREFIX, file, NULL);
  g_autofree char *sum = NULL;

  call->bytes = g_resource_lookup_data(dr_ui_get_resource(), path, G_RESOURCE_LOOKUP_FLAGS_NONE, NULL);
  if (!call->bytes)
    return dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no file '%s' in the dashboard", file);
  sum = g_compute_checksum_for_bytes(G_CHECKSUM_SHA256, call->bytes);
  call->etag = g_strdup_printf("\"%.32s\"", sum);
  call->content_type = type_of(file);
  return TRUE;
}

static gboolean
has_it(DrCall *call)
{
  const char *known =
      soup_message_headers_get_list(soup_server_message_get_request_headers(call->message), "If-None-Match");

  return known && strstr(known, call->etag);
}

void
dr_ui_answer(DrCall *call)
{
  SoupMessageHeaders *out = soup_server_message_get_response_headers(call->message);

  for (guint i = 0; i < G_N_ELEMENTS(headers); i++)
    soup_message_headers_replace(out, headers[i][0], headers[i][1]);
  soup_message_headers_replace(out, "ETag", call->etag);
  if (has_it(call)) {
    soup_server_message_set_status(call->message, SOUP_STATUS_NOT_MODIFIED, NULL);
    return;
  }
  soup_server_message_set_status(call->message, SOUP_STATUS_OK, NULL);
  soup_message_headers_replace(out, "Content-Type", call->content_type);
  soup_message_body_append_bytes(soup_server_message_get_response_body(call->message), call->bytes);
}
