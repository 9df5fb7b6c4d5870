/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The error domain: a GError with a remedy beside its message. */
#include "base/error.h"

#include <errno.h>

typedef struct {
  char *remedy;
} DrErrorPrivate;

static void
dr_error_private_init(DrErrorPrivate *priv)
{
  priv->remedy = NULL;
}

static void
dr_error_private_copy(const DrErrorPrivate *from, DrErrorPrivate *to)
{
  to->remedy = g_strdup(from->remedy);
}

static void
dr_error_private_clear(DrErrorPrivate *priv)
{
  g_free(priv->remedy);
}

G_DEFINE_EXTENDED_ERROR(DrError, dr_error)

static const char *const code_names[] = {
  [DR_ERROR_INVALID] = "invalid", [DR_ERROR_NOT_FOUND] = "not-found",
  [DR_ERROR_EXISTS] = "exists",   [DR_ERROR_BUSY] = "busy",
  [DR_ERROR_REFUSED] = "refused", [DR_ERROR_UNSUPPORTED] = "unsupported",
  [DR_ERROR_TIMEOUT] = "timeout", [DR_ERROR_CANCELLED] = "cancelled",
  [DR_ERROR_CLOSED] = "closed",   [DR_ERROR_QMP] = "qmp",
  [DR_ERROR_IO] = "io",           [DR_ERROR_ATTENTION] = "attention",
  [DR_ERROR_DENIED] = "denied",   [DR_ERROR_INTERNAL] = "internal",
};

const char *
dr_error_code_name(const GError *error)
{
  if (error->domain != DR_ERROR || (guint)error->code >= G_N_ELEMENTS(code_names))
    return "io";
  return code_names[error->code];
}

DrErrorCode
dr_error_code_from_name(const char *name)
{
  for (guint i = 0; i < G_N_ELEMENTS(code_names); i++)
    if (g_strcmp0(name, code_names[i]) == 0)
      return (DrErrorCode)i;
  return DR_ERROR_IO;
}

static void
set_valist(GError **error, DrErrorCode code, const char *format, va_list ap)
{
  if (error)
    *error = g_error_new_valist(DR_ERROR, code, format, ap);
}

gboolean
dr_error_set(GError **error, DrErrorCode code, const char *format, ...)
{
  va_list ap;

  va_start(ap, format);
  set_valist(error, code, format, ap);
  va_end(ap);
  return FALSE;
}

gboolean
dr_error_set_errno(GError **error, int err, const char *format, ...)
{
  va_list ap;
  g_autofree char *what = NULL;

  va_start(ap, format);
  what = g_strdup_vprintf(format, ap);
  va_end(ap);
  return dr_error_set(error, DR_ERROR_IO, "%s: %s", what, g_strerror(err));
}

gboolean
dr_error_remedy(GError **error, const char *format, ...)
{
  va_list ap;
  DrErrorPrivate *priv;

  if (!error || !*error || (*error)->domain != DR_ERROR)
    return FALSE;
  priv = dr_error_get_private(*error);
  g_free(priv->remedy);
  va_start(ap, format);
  priv->remedy = g_strdup_vprintf(format, ap);
  va_end(ap);
  return FALSE;
}

void
dr_error_not_the_words(GError **error)
{
  if (error && g_error_matches(*error, DR_ERROR, DR_ERROR_INVALID))
    (*error)->code = DR_ERROR_UNSUPPORTED;
}

const char *
dr_error_get_remedy(const GError *error)
{
  return error->domain == DR_ERROR ? dr_error_get_private(error)->remedy : NULL;
}
