/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Problem details (RFC 9457) for errors. */
#include "api/problem.h"
#include "base/error.h"
#include "base/json.h"

static const guint statuses[] = {
  [DR_ERROR_INVALID] = 400, [DR_ERROR_NOT_FOUND] = 404, [DR_ERROR_EXISTS] = 409,
  [DR_ERROR_BUSY] = 409,    [DR_ERROR_REFUSED] = 409,   [DR_ERROR_UNSUPPORTED] = 422,
  [DR_ERROR_TIMEOUT] = 504, [DR_ERROR_CANCELLED] = 409, [DR_ERROR_CLOSED] = 502,
  [DR_ERROR_QMP] = 502,     [DR_ERROR_IO] = 500,        [DR_ERROR_ATTENTION] = 409,
  [DR_ERROR_DENIED] = 403,  [DR_ERROR_INTERNAL] = 500,
};

guint
dr_problem_status(const GError *error)
{
  if (error->domain != DR_ERROR || (guint)error->code >= G_N_ELEMENTS(statuses))
    return SOUP_STATUS_INTERNAL_SERVER_ERROR;
  return statuses[error->code];
}

static void
answer(SoupServerMessage *message, guint status, const char *code, const char *detail, const char *remedy)
{
  g_autoptr(JsonObject) problem = json_object_new();
  char *text;

  json_object_set_string_member(problem, "type", "about:blank");
  json_object_set_string_member(problem, "title",
                                status == 426 ? "Upgrade Required" : soup_status_get_phrase(status));
  json_object_set_int_member(problem, "status", status);
  json_object_set_string_member(problem, "detail", detail);
  json_object_set_string_member(problem, "code", code);
  json_object_set_string_member(problem, "remedy", remedy);
  text = dr_json_print_object(problem, FALSE);
  soup_server_message_set_status(message, status, NULL);
  soup_server_message_set_response(message, "application/problem+json", SOUP_MEMORY_TAKE, text, strlen(text));
}

void
dr_problem_answer(SoupServerMessage *message, const GError *error)
{
  answer(message, dr_problem_status(error), dr_error_code_name(error), error->message,
         dr_error_get_remedy(error));
}

void
dr_problem_answer_status(SoupServerMessage *message, guint status, const char *code, const char *remedy,
                         const char *format, ...)
{
  g_autofree char *detail = NULL;
  va_list ap;

  va_start(ap, format);
  detail = g_strdup_vprintf(format, ap);
  va_end(ap);
  answer(message, status, code, detail, remedy);
}
