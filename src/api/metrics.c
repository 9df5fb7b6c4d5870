/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* GET /metrics. */
#include "api/call.h"

gboolean
dr_metrics_work(DrCall *call, GError **error)
{
  call->content_type = "text/plain; version=0.0.4; charset=utf-8";
  call->text = dr_service_metrics(call->api->service, error);
  return call->text != NULL;
}
