/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From a client here to an image over there.
 *
 * Per image one thread, which accepts a client, finds it a stream, and hands both to a relay. A stream that waits may have died
 * without a word: so it is told to begin ("go"), and is taken for good only when the first bytes of the server have come, which in
 * NBD speaks first. */
#include "job/image-link.h"
#include "base/error.h"
#include "base/fd.h"
#include "net/relay.h"

#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#define WAITING_MAX 4 /* streams for one image that nobody has wanted yet */
#define CLIENTS_MAX                                                                                          \
  16 /* of one image at a time: QEMU has one, or two while an old one is not known to be dead */
#define GREETING_MS 5000 /* from "go" to the server's first bytes */
#define GREETING_MAX 64
#define REFUSED_MS 100
#define LONG_S 315360000 /* ten years */

typedef struct {
  DrImageLink *link;
  char *name, *path;
  int listener, came; /* came: an eventfd, a stream is there */
  GThread *thread;
  GPtrArray *waiting; /* of DrConn; under `lock` */
  GPtrArray *relays;  /* of DrRelay; the thread's own */
} Image;

struct DrImageLink {
  char *move, *peer;
  GPtrArray *images;
  int stop;
};

static GMutex lock;
static GHashTable *links; /* move -> DrImageLink; under `lock` */

char *
dr_image_link_backing(const char *prefix, const char *name)
{
  g_autofree char *path = g_strdup_printf("%s.%s", prefix, name);
  g_autoptr(JsonObject) node = dr_json(
      "{'driver': <'raw'>, 'file': <{'driver': <'nbd'>, 'server': <{'type': <'unix'>, 'path': <%s>}>, "
      "'export': <%s>, 'reconnect-delay': <%x>}>}",
      path, name, (gint64)LONG_S);
  g_autofree char *text = dr_json_print_object(node, FALSE);

  return g_strconcat("json:", text, NULL);
}

/* --- Streams --- */

static Image *
find(const char *move, const char *name, const char *peer)
{
  DrImageLink *link = links ? g_hash_table_lookup(links, move) : NULL;

  for (guint i = 0; link && g_strcmp0(link->peer, peer) == 0 && i < link->images->len; i++)
    if (g_str_equal(((Image *)link->images->pdata[i])->name, name))
      return link->images->pdata[i];
  return NULL;
}

gboolean
dr_image_link_take(const char *move, const char *name, DrConn *conn, GError **error)
{
  g_autoptr(DrConn) old = NULL;
  Image *image;

  g_mutex_lock(&lock);
  image = find(move, name, dr_conn_peer(conn));
  if (image && image->waiting->len >= WAITING_MAX)
    old = g_ptr_array_steal_index(image->waiting, 0);
  if (image) {
    g_ptr_array_add(image->waiting, conn);
    eventfd_write(image->came, 1);
  }
  g_mutex_unlock(&lock);
  if (image)
    return TRUE;
  dr_conn_free(conn);
  return dr_error_set(error, DR_ERROR_NOT_FOUND, "no guest here stands on image '%.40s' of move '%.40s'",
                      name, move);
}

/* The youngest: it is the likeliest to live. */
static DrConn *
take_waiting(Image *image)
{
  DrConn *conn = NULL;
  eventfd_t n;

  g_mutex_lock(&lock);
  if (image->waiting->len > 0)
    conn = g_ptr_array_steal_index(image->waiting, image->waiting->len - 1);
  else
    eventfd_read(image->came, &n);
  g_mutex_unlock(&lock);
  return conn;
}

/* A stream that nobody has wanted yet says nothing: what can be read from it is its end. */
static gboolean
has_living(const Image *image)
{
  for (guint i = 0; i < image->waiting->len; i++) {
    struct pollfd fd = { .fd = dr_conn_fd(image->waiting->pdata[i]), .events = POLLIN | POLLRDHUP };

    if (poll(&fd, 1, 0) == 0)
      return TRUE;
  }
  return FALSE;
}

gboolean
dr_image_link_is_up(const char *move)
{
  DrImageLink *link;
  gboolean up;

  g_mutex_lock(&lock);
  link = links ? g_hash_table_lookup(links, move) : NULL;
  up = link != NULL;
  for (guint i = 0; link && i < link->images->len; i++)
    up &= has_living(link->images->pdata[i]);
  g_mutex_unlock(&lock);
  return up;
}

/* --- A client --- */

/* FALSE: it has gone away, or all is to end. */
static gboolean
wait_stream(Image *image, int client)
{
  struct pollfd fds[] = { { .fd = image->came, .events = POLLIN },
                          { .fd = image->link->stop, .events = POLLIN },
                          { .fd = client, .events = POLLRDHUP } };

  poll(fds, G_N_ELEMENTS(fds), -1); /* ended by one of the three */
  return !fds[1].revents && !fds[2].revents;
}

static gboolean
pass_greeting(DrConn *conn, int client, GError **error)
{
  static const char go[] = { DR_IMAGE_LINK_GO };
  char greeting[GREETING_MAX];
  gssize n;

  if (!dr_conn_write(conn, go, sizeof go, GREETING_MS, error))
    return FALSE;
  n = dr_conn_read(conn, greeting, sizeof greeting, GREETING_MS, error);
  if (n < 0)
    return FALSE;
  return (n > 0 && send(client, greeting, (gsize)n, MSG_NOSIGNAL) == n) || /* a new socket has room for it */
         dr_error_set(error, DR_ERROR_CLOSED, "it was closed");
}

/* (transfer full); NULL: the client has gone away, or all is to end. */
static DrConn *
find_stream(Image *image, int client)
{
  while (wait_stream(image, client)) {
    g_autoptr(DrConn) conn = take_waiting(image);
    g_autoptr(GError) error = NULL;

    if (conn && pass_greeting(conn, client, &error))
      return g_steal_pointer(&conn);
    if (conn)
      g_debug("a stream for image '%s' of move %s: %s", image->name, image->link->move,
              error ? error->message : "?");
  }
  return NULL;
}

static void
serve(Image *image, int client)
{
  g_autoptr(GError) error = NULL;
  DrConn *conn = find_stream(image, client);
  DrRelay *relay = conn ? dr_relay_new(client, conn, -1, &error) : NULL;

  if (relay)
    g_ptr_array_add(image->relays, relay);
  else if (error)
    g_warning("image '%s' of move %s: %s", image->name, image->link->move, error->message);
  if (!conn)
    close(client);
}

static gpointer
serve_all(gpointer data)
{
  Image *image = data;
  struct pollfd fds[] = { { .fd = image->listener, .events = POLLIN },
                          { .fd = image->link->stop, .events = POLLIN } };

  while (poll(fds, G_N_ELEMENTS(fds), -1) >= 0 && !fds[1].revents) { /* ended by `stop` */
    int client = accept4(image->listener, NULL, NULL, SOCK_CLOEXEC);

    if (client < 0) { /* there is no descriptor for it: it waits */
      poll(&fds[1], 1, REFUSED_MS);
      continue;
    }
    dr_relays_drop_ended(image->relays);
    if (image->relays->len < CLIENTS_MAX)
      serve(image, client);
    else
      close(client);
  }
  return NULL;
}

/* --- Beginning and end --- */

static void
image_free(gpointer data)
{
  Image *image = data;

  if (image->thread)
    g_thread_join(image->thread);
  g_ptr_array_unref(image->relays);
  g_ptr_array_unref(image->waiting);
  if (image->listener >= 0) {
    close(image->listener);
    unlink(image->path);
  }
  close(image->came);
  g_free(image->name);
  g_free(image->path);
  g_free(image);
}

static gboolean
add_image(DrImageLink *link, const char *prefix, const char *name, GError **error)
{
  Image *image = g_new0(Image, 1);

  image->link = link;
  image->name = g_strdup(name);
  image->path = g_strdup_printf("%s.%s", prefix, name);
  image->came = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  image->waiting = g_ptr_array_new_with_free_func((GDestroyNotify)dr_conn_free);
  image->relays = g_ptr_array_new_with_free_func((GDestroyNotify)dr_relay_free);
  image->listener = dr_unix_listen_for_all(image->path, SOCK_NONBLOCK, CLIENTS_MAX, error);
  g_ptr_array_add(link->images, image);
  if (image->listener < 0)
    return FALSE;
  image->thread = g_thread_new("image-link", serve_all, image);
  return TRUE;
}

DrImageLink *
dr_image_link_new(const char *move, const char *peer, const char *prefix, const char *const *names,
                  GError **error)
{
  g_autoptr(DrImageLink) link = g_new0(DrImageLink, 1);

  link->move = g_strdup(move);
  link->peer = g_strdup(peer);
  link->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  link->images = g_ptr_array_new_with_free_func(image_free);
  for (guint i = 0; names[i]; i++)
    if (!add_image(link, prefix, names[i], error))
      return NULL;
  g_mutex_lock(&lock);
  if (!links)
    links = g_hash_table_new(g_str_hash, g_str_equal);
  g_hash_table_insert(links, link->move, link);
  g_mutex_unlock(&lock);
  return g_steal_pointer(&link);
}

void
dr_image_link_free(DrImageLink *link)
{
  if (!link)
    return;
  g_mutex_lock(&lock);
  if (links && g_hash_table_lookup(links, link->move) == link)
    g_hash_table_remove(links, link->move);
  g_mutex_unlock(&lock);
  eventfd_write(link->stop, 1);
  for (guint i = 0; i < link->images->len; i++) { /* relays are ended by their end, threads by `stop` */
    Image *image = link->images->pdata[i];

    if (image->thread)
      g_thread_join(g_steal_pointer(&image->thread));
    for (guint r = 0; r < image->relays->len; r++)
      dr_relay_abort(image->relays->pdata[r]);
  }
  g_ptr_array_unref(link->images);
  close(link->stop);
  g_free(link->move);
  g_free(link->peer);
  g_free(link);
}
