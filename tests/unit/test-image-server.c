/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images that stay behind: the streams of their host, at a host that the test plays. */
#include "job/image-server.h"
#include "job/image-link.h"
#include "net/frame.h"
#include "net/listener.h"
#include "test-net-util.h"

#include <string.h>

#define QUICK_MS 5000
#define SIZE (1 << 20)

typedef struct {
  Net net;
  DrListener *listener;
  DrNet *peers;
  DrPeer *peer;
  DrImageServer *server;
  GMutex lock;
  GCond changed;
  GPtrArray *taken; /* of DrConn, under `lock` */
} Host;

/* The answer to a hello, and behind it in the same record that the first stream is wanted: both come out of the socket at once, as they
 * do between two hosts when the one that asked is slow to look. */
static void
answer(DrConn *conn, gboolean wanted)
{
  static const char go[] = { DR_IMAGE_LINK_GO };
  g_autoptr(JsonObject) said = dr_json("{'ok': <true>, 'version': <%i>}", dr_conn_version(conn));
  g_autoptr(GBytes) frame = dr_frame_new(said, NULL);
  g_autoptr(GByteArray) bytes = g_bytes_unref_to_array(g_steal_pointer(&frame));

  if (wanted)
    g_byte_array_append(bytes, (const guint8 *)go, sizeof go);
  g_assert_true(dr_conn_write(conn, bytes->data, bytes->len, QUICK_MS, NULL));
}

static void
take(DrConn *conn, JsonObject *hello, gpointer data)
{
  Host *host = data;

  g_assert_cmpstr(dr_json_str(hello, "image", NULL), ==, "disk0");
  g_mutex_lock(&host->lock);
  answer(conn, host->taken->len == 0);
  g_ptr_array_add(host->taken, conn);
  g_cond_broadcast(&host->changed);
  g_mutex_unlock(&host->lock);
}

static gboolean
allow(const char *const *names, const char *key_id, gpointer data, GError **error)
{
  return TRUE;
}

static gboolean
find(const char *name, DrPeerAddress *ret, gpointer data, GError **error)
{
  Host *host = data;

  ret->host = g_strdup("127.0.0.1");
  ret->port = dr_listener_port(host->listener);
  return TRUE;
}

static void
set_up(Host *host, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;

  net_set_up(&host->net, NULL);
  host->taken = g_ptr_array_new_with_free_func((GDestroyNotify)dr_conn_free);
  host->listener = dr_listener_new(
      &(DrListenerOptions){
          .address = "127.0.0.1", .context = host->net.context, .allow = allow, .take = take, .data = host },
      &error);
  g_assert_no_error(error);
  host->peers = dr_net_new(host->net.context, NULL, find, host);
  host->peer = dr_peer_new(host->peers, "other", &error);
  g_assert_no_error(error);
}

static void
tear_down(Host *host, gconstpointer unused)
{
  dr_image_server_free(host->server);
  dr_peer_free(host->peer);
  dr_net_free(host->peers);
  dr_listener_free(host->listener);
  g_ptr_array_unref(host->taken);
  net_tear_down(&host->net, NULL);
}

static void
serve_an_image(Host *host)
{
  g_autofree char *path = g_build_filename(host->net.dir, "image", NULL), *zeros = g_malloc0(SIZE);
  g_autofree char *prefix = g_build_filename(host->net.dir, "socket", NULL);
  g_autoptr(JsonArray) images = json_array_new();
  g_autoptr(GError) error = NULL;

  g_assert_true(g_file_set_contents(path, zeros, SIZE, NULL));
  json_array_add_object_element(images,
                                dr_json("{'name': <'disk0'>, 'path': <%s>, 'format': <'raw'>}", path));
  host->server = dr_image_server_new(host->peer, "move", prefix, images, NULL);
  dr_image_server_start(host->server, &error);
  g_assert_no_error(error);
  dr_image_server_open(host->server, FALSE, &error);
  g_assert_no_error(error);
}

/* (transfer none) */
static DrConn *
wait_taken(Host *host, guint n)
{
  gint64 deadline = dr_deadline_in(QUICK_MS);
  DrConn *conn;

  g_mutex_lock(&host->lock);
  while (host->taken->len <= n)
    g_assert_true(g_cond_wait_until(&host->changed, &host->lock, deadline));
  conn = host->taken->pdata[n];
  g_mutex_unlock(&host->lock);
  return conn;
}

static void
test_wanted_at_once(Host *host, gconstpointer unused)
{
  static const char go[] = { DR_IMAGE_LINK_GO };

  if (!dr_image_server_is_possible(NULL)) {
    g_test_skip("no qemu-storage-daemon is installed");
    return;
  }
  serve_an_image(host);
  for (guint i = 0; i < 2; i++) { /* the second is wanted when it has waited */
    g_autoptr(GError) error = NULL;
    char greeting[64];

    if (i > 0)
      g_assert_true(dr_conn_write(wait_taken(host, i), go, sizeof go, QUICK_MS, NULL));
    g_assert_cmpint(dr_conn_read(wait_taken(host, i), greeting, sizeof greeting, QUICK_MS, &error), >=, 8);
    g_assert_no_error(error);
    g_assert_true(memcmp(greeting, "NBDMAGIC", 8) == 0);
  }
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add("/image-server/wanted-at-once", Host, NULL, set_up, test_wanted_at_once, tear_down);
  return g_test_run();
}
