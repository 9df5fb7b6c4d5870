/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* GET /v1/openapi.yaml */
#include "api/call.h"
#include "base/error.h"
#include "api/openapi.h"

gboolean
dr_openapi_work(DrCall *call, GError **error)
{
  g_autoptr(GBytes) text = g_resource_lookup_data(dr_openapi_get_resource(), "/drover/openapi.yaml",
                                                  G_RESOURCE_LOOKUP_FLAGS_NONE, NULL);
  gsize len;
  const char *bytes = text ? g_bytes_get_data(text, &len) : NULL;

  if (!bytes)
    return dr_error_set(error, DR_ERROR_INTERNAL, "this droverd was built without the API's description");
  call->text = g_strndup(bytes, len);
  call->content_type = "application/yaml";
  return TRUE;
}
