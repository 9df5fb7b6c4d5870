/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pages and problems of the dashboard's proxy. */
#include "cli/ui-answer.h"
#include "base/error.h"
#include "base/json.h"

#include <string.h>

#define SAFE                                                                                                 \
  "Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"                      \
  "X-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\n"   \
  "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'\r\n"

static const char style[] =
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:18vh auto;"
    "padding:0 1.25rem}h1{font-size:1.25rem;margin:0 0 .5rem}p{margin:0 0 .75rem}";

static gboolean
send(GOutputStream *out, guint status, const char *type, const char *more, const char *body, GError **error)
{
  g_autofree char *head =
      g_strdup_printf("HTTP/1.1 %u %s\r\n" SAFE "%sContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", status,
                      soup_status_get_phrase(status), more, type, strlen(body));

  return g_output_stream_write_all(out, head, strlen(head), NULL, NULL, error) &&
         g_output_stream_write_all(out, body, strlen(body), NULL, NULL, error);
}

static char *
page(const char *in_head, const char *heading, const char *in_body)
{
  g_autofree char *title = g_markup_escape_text(heading, -1);

  title[0] = g_ascii_toupper(title[0]); /* an error's message is a phrase */
  return g_strdup_printf("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n"
                         "<meta name=\"viewport\" content=\"width=device-width\">\n"
                         "<title>drover: %s</title><style>%s</style>%s\n<h1>%s</h1>\n%s\n</html>\n",
                         title, style, in_head, title, in_body);
}

gboolean
dr_ui_answer_page(GOutputStream *out, guint status, const char *more, const char *heading, const char *text,
                  GError **error)
{
  g_autofree char *escaped = g_markup_escape_text(text, -1);
  g_autofree char *paragraph =
      *text ? g_strdup_printf("<p>%c%s.</p>", g_ascii_toupper(*escaped), escaped + 1) : g_strdup("");
  g_autofree char *body = page("", heading, paragraph);

  return send(out, status, "text/html; charset=utf-8", more, body, error);
}

gboolean
dr_ui_answer_enter(GOutputStream *out, const char *cookie, const char *path, GError **error)
{
  g_autofree char *more = g_strdup_printf("Set-Cookie: %s\r\n", cookie);
  g_autofree char *refresh = g_strdup_printf("<meta http-equiv=\"refresh\" content=\"0; url=%s\">", path);
  g_autofree char *link = g_strdup_printf("<p><a href=\"%s\">Go on</a></p>", path);
  g_autofree char *body = page(refresh, "Opening the dashboard", link);

  return send(out, SOUP_STATUS_OK, "text/html; charset=utf-8", more, body, error);
}

gboolean
dr_ui_answer_redirect(GOutputStream *out, const char *path, GError **error)
{
  g_autofree char *more = g_strdup_printf("Location: %s\r\n", path);

  return dr_ui_answer_page(out, SOUP_STATUS_FOUND, more, "The dashboard is elsewhere", "it is at /ui/",
                           error);
}

static guint
status_of(const GError *why)
{
  switch ((DrErrorCode)why->code) {
  case DR_ERROR_NOT_FOUND:
    return SOUP_STATUS_NOT_FOUND;
  case DR_ERROR_REFUSED:
    return SOUP_STATUS_FORBIDDEN;
  case DR_ERROR_INVALID:
    return SOUP_STATUS_BAD_REQUEST;
  case DR_ERROR_TIMEOUT:
    return SOUP_STATUS_GATEWAY_TIMEOUT;
  default:
    return SOUP_STATUS_BAD_GATEWAY;
  }
}

static gboolean
answer_problem(GOutputStream *out, guint status, const GError *why, GError **error)
{
  g_autoptr(JsonObject) problem = json_object_new();
  g_autofree char *text = NULL;

  json_object_set_string_member(problem, "type", "about:blank");
  json_object_set_string_member(problem, "title", soup_status_get_phrase(status));
  json_object_set_int_member(problem, "status", status);
  json_object_set_string_member(problem, "detail", why->message);
  json_object_set_string_member(problem, "code", dr_error_code_name(why));
  json_object_set_string_member(problem, "remedy", dr_error_get_remedy(why));
  text = dr_json_print_object(problem, FALSE);
  return send(out, status, "application/problem+json", "", text, error);
}

gboolean
dr_ui_answer_error(GOutputStream *out, const DrUiRequest *request, const GError *why, GError **error)
{
  const char *remedy = dr_error_get_remedy(why);
  guint status = status_of(why);

  if (request && g_str_has_prefix(request->path, "/v1/"))
    return answer_problem(out, status, why, error);
  return dr_ui_answer_page(out, status, "", why->message, remedy ? remedy : "", error);
}
