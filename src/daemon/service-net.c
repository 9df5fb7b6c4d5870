/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The network as the service has it: its keys, its port, who may come in, and the conversations with those who have. */
#include "base/error.h"
#include "daemon/service-internal.h"
#include "daemon/service-net.h"
#include "daemon/service-new.h"
#include "job/image-link.h"
#include "job/streams.h"
#include "net/link.h"
#include "net/listener.h"
#include "net/pki.h"

#include <string.h>

#define MAX_LINKS 256

struct DrServiceNet {
  const DrConfig *config;
  DrTlsContext *context; /* NULL: no keys */
  DrExpiry expiry;
  DrListener *listener; /* NULL: nobody can come */
  GMutex lock;
  GPtrArray *links; /* of DrLink; under `lock` */
};

/* --- Whom we know --- */

static gboolean
find_peer(const char *name, DrPeerAddress *ret, gpointer data, GError **error)
{
  DrHost *host = data;
  g_autoptr(DrPeerRow) row = dr_store_get_peer(host->store, name, error);

  if (!row)
    return FALSE;
  ret->host = g_strdup(row->host);
  ret->port = row->port;
  ret->pin = g_strdup(row->pin);
  return TRUE;
}

static gboolean
is_peer(const DrPeerRow *row, const char *const *names)
{
  for (const char *const *name = names; *name; name++)
    if (g_ascii_strcasecmp(*name, row->name) == 0 || g_ascii_strcasecmp(*name, row->host) == 0)
      return TRUE;
  return FALSE;
}

/* The row of `drover peer add` that this certificate belongs to, or NULL. (transfer full) */
static DrPeerRow *
row_of(DrService *service, const char *const *names)
{
  g_autoptr(GPtrArray) rows = dr_store_list_peers(service->host->store, NULL);

  for (guint i = 0; rows && i < rows->len; i++)
    if (is_peer(rows->pdata[i], names))
      return g_ptr_array_steal_index(rows, i);
  return NULL;
}

static gboolean
allow(const char *const *names, const char *key_id, gpointer data, GError **error)
{
  DrService *service = data;
  const DrConfig *config = service->net->config;
  g_autoptr(DrPeerRow) row = row_of(service, names);
  const char *pin = dr_config_pin_of(config, names);

  if (config->peers_allow ? !dr_config_allows_peer(config, names) : !row)
    return dr_error_set(error, DR_ERROR_REFUSED, "'%s' is not among the peers that may connect (%s)",
                        names[0] ? names[0] : "?",
                        config->peers_allow ? "allow= in [peers]" : "drover peer list");
  if (!pin && row)
    pin = row->pin;
  return !pin || dr_pin_matches(pin, key_id) ||
         dr_error_set(error, DR_ERROR_REFUSED, "'%s' has the key %s, and not one that is pinned", names[0],
                      key_id);
}

/* --- Who has come --- */

static JsonObject *
answer(DrConn *conn, const char *method, JsonObject *params, gpointer data, GError **error)
{
  return dr_service_answer_peer(data, dr_conn_peer(conn), method, params, error);
}

static void
free_link(gpointer link, gpointer data)
{
  dr_link_free(link);
}

/* Under the lock; freed outside of it, for that waits for the answer to a question. */
static GPtrArray *
take_dead_links(DrServiceNet *net)
{
  GPtrArray *dead = g_ptr_array_new();

  for (guint i = net->links->len; i-- > 0;)
    if (dr_link_is_dead(net->links->pdata[i]))
      g_ptr_array_add(dead, g_ptr_array_steal_index_fast(net->links, i));
  return dead;
}

static gboolean
has_room(DrServiceNet *net, GError **error)
{
  return net->links->len < MAX_LINKS ||
         dr_error_set(error, DR_ERROR_BUSY, "this droverd talks to %d others already", MAX_LINKS);
}

static void
take_control(DrService *service, DrConn *conn)
{
  DrServiceNet *net = service->net;
  g_autoptr(GError) error = NULL;
  g_autoptr(GPtrArray) dead = NULL;
  DrLink *link = NULL;

  g_mutex_lock(&net->lock);
  dead = take_dead_links(net);
  if (!has_room(net, &error)) {
    dr_conn_refuse(conn, error);
    dr_conn_free(conn);
  } else if (!dr_conn_take(conn, &error)) {
    dr_conn_free(conn);
  } else {
    link = dr_link_new(conn, answer, service, &error);
  }
  if (link)
    g_ptr_array_add(net->links, link);
  g_mutex_unlock(&net->lock);
  if (error)
    g_message("%s", error->message);
  g_ptr_array_foreach(dead, free_link, NULL);
}

static void
take_stream(DrConn *conn, JsonObject *hello)
{
  const char *move = dr_json_str(hello, "move", "");
  g_autoptr(GError) error = NULL;

  if (!dr_conn_take(conn, &error))
    dr_conn_free(conn);
  else if (dr_json_str(hello, "image", NULL))
    dr_image_link_take(move, dr_json_str(hello, "image", ""), conn, &error);
  else if (dr_json_bool(hello, "nbd", FALSE))
    dr_streams_take_nbd(move, conn, &error);
  else
    dr_streams_take(move, dr_json_int(hello, "epoch", 0),
                    (guint)CLAMP(dr_json_int(hello, "index", 0), 0, 9999), conn, &error);
  if (error && dr_json_str(hello, "image", NULL))
    g_debug("%s",
            error->message); /* the other host keeps one in reserve, a moment before and after it is wanted */
  else if (error)
    g_message("%s", error->message);
}

static void
take_measure(DrConn *conn)
{
  g_autoptr(DrConn) owned = conn;

  if (dr_conn_take(conn, NULL))
    dr_peer_serve_measure(conn);
}

static void
take(DrConn *conn, JsonObject *hello, gpointer data)
{
  const char *kind = dr_json_str(hello, "kind", "");
  g_autoptr(GError) error = NULL;

  if (g_str_equal(kind, "control")) {
    take_control(data, conn);
  } else if (g_str_equal(kind, "stream")) {
    take_stream(conn, hello);
  } else if (g_str_equal(kind, "measure")) {
    take_measure(conn);
  } else {
    dr_error_set(&error, DR_ERROR_UNSUPPORTED, "there is no connection of the kind '%.20s'", kind);
    dr_conn_refuse(conn, error);
    dr_conn_free(conn);
  }
}

/* --- Start and end --- */

static DrTlsContext *
load_keys(const DrConfig *config, GError **error)
{
  g_autoptr(DrPkiPaths) paths =
      dr_pki_find(config->tls_libvirt ? NULL : config->tls_dir, config->tls_crl, error);
  DrTlsFiles files;

  if (!paths || !dr_pki_check(paths, error))
    return NULL;
  files = (DrTlsFiles){ paths->ca,         paths->crl,         paths->server_cert,
                        paths->server_key, paths->client_cert, paths->client_key };
  return dr_tls_context_new(&files, error);
}

static void
read_expiry(const DrConfig *config, DrExpiry *ret_expiry)
{
  g_autoptr(DrPkiPaths) paths =
      dr_pki_find(config->tls_libvirt ? NULL : config->tls_dir, config->tls_crl, NULL);

  if (paths)
    dr_expiry_read(paths, ret_expiry);
}

gboolean
dr_service_open_net(DrService *service, const DrConfig *config, GError **error)
{
  DrServiceNet *net = g_new0(DrServiceNet, 1);
  g_autoptr(GError) local = NULL;

  service->net = net;
  net->config = config;
  g_mutex_init(&net->lock);
  net->links = g_ptr_array_new_with_free_func((GDestroyNotify)dr_link_free);
  net->context = load_keys(config, &local);
  if (net->context)
    read_expiry(config, &net->expiry);
  service->host->net = dr_net_new(net->context, local ? local->message : NULL, find_peer, service->host);
  if (net->context || config->listen_port == 0)
    return TRUE;
  g_propagate_prefixed_error(error, g_steal_pointer(&local), "cannot listen for peers without keys: ");
  return FALSE;
}

DrTlsContext *
dr_service_keys(DrService *service, GError **error)
{
  if (service->net->context)
    return dr_tls_context_ref(service->net->context);
  return load_keys(service->net->config, error); /* which says what is wrong */
}

gboolean
dr_service_listen(DrService *service, GError **error)
{
  const DrConfig *config = service->net->config;
  DrListenerOptions options = {
    .address = config->listen_address,
    .port = config->listen_port,
    .context = service->net->context,
    .allow = allow,
    .take = take,
    .data = service,
  };

  if (config->listen_port == 0)
    return TRUE;
  service->net->listener = dr_listener_new(&options, error);
  if (service->net->listener)
    g_message("peers are heard on %s port %d", config->listen_address ? config->listen_address : "*",
              config->listen_port);
  return service->net->listener != NULL;
}

void
dr_service_close_net(DrService *service)
{
  DrServiceNet *net = service->net;

  if (!net)
    return;
  g_clear_pointer(&net->listener,
                  dr_listener_free); /* its threads, and those of the links, still use the rest */
  g_ptr_array_unref(net->links);
  service->net = NULL;
  g_clear_pointer(&service->host->net, dr_net_free);
  dr_tls_context_unref(net->context);
  g_mutex_clear(&net->lock);
  g_free(net);
}

char **
dr_service_binaries(DrService *service)
{
  return service->net->config->qemu_binaries;
}

const DrExpiry *
dr_service_expiry(DrService *service)
{
  return service->net->context ? &service->net->expiry : NULL;
}

gboolean
dr_service_allows_transport(DrService *service, const char *name)
{
  return (service->net->config->transports & dr_config_transport(name)) != 0;
}

JsonArray *
dr_service_stream_tokens(DrService *service, const char *peer, const char *move, gint64 epoch, guint n)
{
  JsonArray *tokens = json_array_new();

  for (guint i = 0; service->net->listener && i < n; i++) {
    g_autofree char *token = dr_listener_token(
        service->net->listener, peer,
        dr_json("{'kind': <'stream'>, 'move': <%s>, 'epoch': <%x>, 'index': <%i>}", move, epoch, (int)i));

    json_array_add_string_element(tokens, token);
  }
  return tokens;
}

JsonArray *
dr_service_nbd_tokens(DrService *service, const char *peer, const char *move, guint n)
{
  JsonArray *tokens = json_array_new();

  for (guint i = 0; service->net->listener && i < n; i++) {
    g_autofree char *token = dr_listener_token(
        service->net->listener, peer, dr_json("{'kind': <'stream'>, 'move': <%s>, 'nbd': <true>}", move));

    json_array_add_string_element(tokens, token);
  }
  return tokens;
}

/* --- Trying a peer --- */

JsonObject *
dr_service_peer_test(DrService *service, const char *name, GError **error)
{
  g_autoptr(DrPeer) peer = dr_peer_new(service->host->net, name, error);
  JsonObject *found = peer ? dr_peer_measure(peer, error) : NULL;
  DrConn *conn;

  if (!found)
    return NULL;
  conn = dr_peer_conn(peer);
  json_object_set_string_member(found, "name", name);
  json_object_set_string_member(found, "host", dr_peer_host(peer));
  json_object_set_int_member(found, "port", dr_peer_port(peer));
  json_object_set_string_member(found, "certificate", dr_conn_peer(conn));
  json_object_set_string_member(found, "key_id", dr_conn_key_id(conn));
  json_object_set_int_member(found, "protocol", DR_PROTOCOL_VERSION);
  json_object_set_string_member(found, "tls", dr_conn_suite(conn));
  return found;
}
