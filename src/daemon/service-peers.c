/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which other hosts there are. */
#include "base/address.h"
#include "base/error.h"
#include "daemon/request.h"
#include "daemon/service-internal.h"
#include "net/pki.h"

#define MAX_PEERS 1000

static JsonObject *
peer_json(const DrPeerRow *row)
{
  JsonObject *object = json_object_new();

  json_object_set_string_member(object, "name", row->name);
  json_object_set_string_member(object, "host", row->host);
  json_object_set_int_member(object, "port", row->port);
  json_object_set_string_member(object, "pin", row->pin);
  json_object_set_int_member(object, "added_ms", row->added_ms);
  return object;
}

static gboolean
read_request(JsonObject *request, DrPeerRow *row, GError **error)
{
  static const DrMember members[] = { { "name", DR_MEMBER_TEXT },
                                      { "host", DR_MEMBER_TEXT },
                                      { "port", DR_MEMBER_NUMBER, 1, 65535 },
                                      { "pin", DR_MEMBER_TEXT },
                                      { NULL } };
  const char *host = dr_json_str(request, "host", NULL);
  const char *pin = dr_json_str(request, "pin", NULL);

  if (!dr_request_check(request, members, error) ||
      !dr_name_check(dr_json_str(request, "name", NULL), "a peer", error) || !dr_host_check(host, error) ||
      (pin && !(row->pin = dr_pin_parse(pin, error))))
    return FALSE;
  row->name = g_strdup(dr_json_str(request, "name", NULL));
  row->host = dr_host_normal(host);
  row->port = (guint16)dr_json_int(request, "port", DR_PEER_PORT);
  row->added_ms = g_get_real_time() / 1000;
  return TRUE;
}

JsonObject *
dr_service_peer_add(DrService *service, JsonObject *request, GError **error)
{
  g_autoptr(DrPeerRow) row = g_new0(DrPeerRow, 1);

  if (!read_request(request, row, error))
    return NULL;
  if (dr_store_add_peer(service->host->store, row, MAX_PEERS, error))
    return peer_json(row);
  if (error && g_error_matches(*error, DR_ERROR, DR_ERROR_EXISTS))
    dr_error_remedy(error,
                    "drover peer list shows them; to change one, remove it first: drover peer remove NAME");
  return NULL;
}

JsonArray *
dr_service_peer_list(DrService *service, GError **error)
{
  g_autoptr(GPtrArray) rows = dr_store_list_peers(service->host->store, error);
  JsonArray *peers;

  if (!rows)
    return NULL;
  peers = json_array_new();
  for (guint i = 0; i < rows->len; i++)
    json_array_add_object_element(peers, peer_json(rows->pdata[i]));
  return peers;
}

gboolean
dr_service_peer_remove(DrService *service, const char *name, GError **error)
{
  return dr_store_drop_peer(service->host->store, name, error);
}
