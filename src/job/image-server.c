/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Serving images to the host that their guest has gone to.
 *
 * Per image one thread: it opens a stream to the other host, waits there to be wanted, hands it to a relay, and opens
 * the next. So there is always one to take, and this host needs no port that the other one could reach. */
#include "job/image-server.h"
#include "argv/opts.h"
#include "base/error.h"
#include "base/fd.h"
#include "job/image-link.h"
#include "net/relay.h"
#include "qemu/child.h"
#include "qmp/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define PROGRAM "qemu-storage-daemon"
#define START_MS 10000
#define DIAL_MS 10000
#define AGAIN_MS 300 /* between two tries to reach the other host */
#define GO_MS 5000   /* from the first byte of a record until it is whole */
#define END_MS 5000
#define CLOSED_MS 5
#define TEND_US (G_USEC_PER_SEC / 2)

typedef struct {
  DrImageServer *server;
  char *name, *path, *format, *secret;
  GThread *thread;   /* once it was opened */
  GPtrArray *relays; /* of DrRelay; the thread's own while there is one */
} Image;

struct DrImageServer {
  DrPeer *peer;
  char *move, *qmp_path, *nbd_path;
  GPtrArray *images;
  GPtrArray *objects; /* words of --object */
  pid_t pid;          /* 0: none */
  DrQmp *qmp;
  gint wanted; /* atomic: open, though its process may have ended */
  gint64 tended_us;
  gboolean told;
  int stop; /* an eventfd: the threads are to end */
};

/* --- Streams --- */

static gboolean
is_over(const Image *image, int timeout_ms)
{
  struct pollfd fd = { .fd = image->server->stop, .events = POLLIN };

  return poll(&fd, 1, timeout_ms) > 0;
}

/* FALSE: it broke, or all is to end. Without a limit: nobody may want it for hours. */
static gboolean
wait_wanted(const Image *image, DrConn *conn, GError **error)
{
  struct pollfd fds[] = { { .fd = image->server->stop, .events = POLLIN },
                          { .fd = dr_conn_fd(conn), .events = POLLIN } };
  char word = 0;

  if (!dr_conn_has_input(conn)) /* it may have come together with the answer to our hello */
    poll(fds, G_N_ELEMENTS(fds), -1);
  if (fds[0].revents || dr_conn_read(conn, &word, 1, GO_MS, error) <= 0)
    return FALSE;
  return word == DR_IMAGE_LINK_GO || dr_error_set(error, DR_ERROR_INVALID, "it said something else");
}

static gboolean
offer_one(Image *image, GError **error)
{
  DrImageServer *server = image->server;
  g_autoptr(DrConn) conn =
      dr_peer_stream(server->peer, dr_json("{'move': <%s>, 'image': <%s>}", server->move, image->name),
                     dr_deadline_in(DIAL_MS), error);
  DrRelay *relay;
  int local;

  if (!conn || !wait_wanted(image, conn, error))
    return FALSE;
  while (!g_atomic_int_get(&server->wanted) && !is_over(image, CLOSED_MS))
    ; /* the other side waits for some seconds, and then comes again */
  dr_relays_drop_ended(image->relays);
  local = dr_unix_connect(server->nbd_path, 0, error);
  relay = local >= 0 ? dr_relay_new(local, g_steal_pointer(&conn), -1, error) : NULL;
  if (relay)
    g_ptr_array_add(image->relays, relay);
  return relay != NULL;
}

static gpointer
offer(gpointer data)
{
  Image *image = data;

  while (!is_over(image, 0)) {
    g_autoptr(GError) error = NULL;

    if (offer_one(image, &error))
      continue;
    if (error)
      g_debug("image '%s' of move %s: %s", image->name, image->server->move, error->message);
    is_over(image, AGAIN_MS);
  }
  return NULL;
}

static void
start_offering(DrImageServer *server)
{
  for (guint i = 0; i < server->images->len; i++) {
    Image *image = server->images->pdata[i];

    if (!image->thread)
      image->thread = g_thread_new("image-server", offer, image);
  }
}

static void
stop_offering(DrImageServer *server)
{
  eventfd_write(server->stop, 1);
  for (guint i = 0; i < server->images->len; i++) {
    Image *image = server->images->pdata[i];

    if (image->thread)
      g_thread_join(g_steal_pointer(&image->thread));
    g_ptr_array_set_size(image->relays, 0);
  }
}

/* --- Its process --- */

static void
kill_process(DrImageServer *server)
{
  g_clear_pointer(&server->qmp, dr_qmp_free);
  if (server->pid <= 0)
    return;
  kill(-server->pid, SIGKILL); /* its session */
  while (waitpid(server->pid, NULL, 0) < 0 && errno == EINTR)
    ;
  server->pid = 0;
}

static char **
command_line(const DrImageServer *server)
{
  g_autoptr(GStrvBuilder) argv = g_strv_builder_new();
  g_autofree char *qmp = dr_opts_double(server->qmp_path), *nbd = dr_opts_double(server->nbd_path);
  g_autofree char *chardev = g_strdup_printf("socket,id=qmp,path=%s,server=on,wait=off", qmp);
  g_autofree char *nbd_server = g_strdup_printf("addr.type=unix,addr.path=%s", nbd);

  g_strv_builder_add_many(argv, PROGRAM, "--chardev", chardev, "--monitor", "chardev=qmp", "--nbd-server",
                          nbd_server, NULL);
  for (guint i = 0; i < server->objects->len; i++)
    g_strv_builder_add_many(argv, "--object", server->objects->pdata[i], NULL);
  return g_strv_builder_end(argv);
}

/* (transfer full) */
static char *
find_program(GError **error)
{
  char *path = dr_find_program(PROGRAM, g_getenv("PATH"), "/", error);

  if (!path)
    dr_error_remedy(error, "install it (Debian: qemu-system-common): it serves the disks after a move");
  return path;
}

gboolean
dr_image_server_is_possible(GError **error)
{
  g_autofree char *path = find_program(error);

  return path != NULL;
}

static gboolean
start_process(DrImageServer *server, GError **error)
{
  g_autofree char *path = find_program(error);
  g_auto(GStrv) argv = command_line(server), envp = g_get_environ();
  dr_autofd int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
  int failed;

  if (!path)
    return FALSE;
  unlink(server->qmp_path);
  unlink(server->nbd_path);
  failed = dr_child_start(&(DrChild){ .path = path,
                                      .argv = argv,
                                      .envp = envp,
                                      .fds = (int[]){ nothing, nothing, STDERR_FILENO },
                                      .n_fds = 3,
                                      .dies_with_us = TRUE },
                          &server->pid);
  if (failed)
    return dr_exec_error(path, failed, error);
  server->qmp = dr_qmp_connect(server->qmp_path, TRUE, dr_deadline_in(START_MS), error);
  if (!server->qmp)
    g_prefix_error(error, "cannot start %s: ", PROGRAM);
  return server->qmp != NULL;
}

static gboolean
has_process(const DrImageServer *server)
{
  return server->qmp && !dr_qmp_closed(server->qmp);
}

/* --- Exports --- */

static JsonObject *
node_of(const Image *image, gboolean live)
{
  struct stat st;
  gboolean device = stat(image->path, &st) == 0 && S_ISBLK(st.st_mode);
  JsonObject *node = dr_json("{'driver': <%s>, 'node-name': <%s>, 'read-only': <true>, 'force-share': <%b>, "
                             "'file': <{'driver': <%s>, 'filename': <%s>}>}",
                             image->format, image->name, live, device ? "host_device" : "file", image->path);

  if (!image->secret)
    return node;
  if (g_str_equal(image->format, "qcow2"))
    json_object_set_object_member(node, "encrypt",
                                  dr_json("{'format': <'luks'>, 'key-secret': <%s>}", image->secret));
  else
    json_object_set_string_member(node, "key-secret", image->secret);
  return node;
}

static gboolean
add_export(DrImageServer *server, const Image *image, gboolean live, GError **error)
{
  if (dr_qmp_do(server->qmp, "blockdev-add", node_of(image, live), error) &&
      dr_qmp_do(server->qmp, "block-export-add",
                dr_json("{'type': <'nbd'>, 'id': <%s>, 'node-name': <%s>, 'name': <%s>}", image->name,
                        image->name, image->name),
                error))
    return TRUE;
  g_prefix_error(error, "cannot serve the image '%s': ", image->path);
  return FALSE;
}

static gboolean
add_exports(DrImageServer *server, gboolean live, GError **error)
{
  for (guint i = 0; i < server->images->len; i++)
    if (!add_export(server, server->images->pdata[i], live, error))
      return FALSE;
  return TRUE;
}

static gboolean
is_there(JsonArray *exports, const char *id)
{
  for (guint i = 0; i < json_array_get_length(exports); i++)
    if (g_str_equal(dr_json_str(json_array_get_object_element(exports, i), "id", ""), id))
      return TRUE;
  return FALSE;
}

/* An export goes when its last client has. */
static gboolean
await_no_export(DrImageServer *server, const char *id, DrDeadline deadline, GError **error)
{
  for (;;) {
    g_autoptr(JsonArray) exports = dr_qmp_call_array(server->qmp, "query-block-exports", NULL, error);

    if (!exports)
      return FALSE;
    if (!is_there(exports, id))
      return TRUE;
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "the export '%s' does not end", id);
    g_usleep(1000); /* bounded by the deadline */
  }
}

static gboolean
drop_export(DrImageServer *server, const Image *image, GError **error)
{
  return dr_qmp_do(server->qmp, "block-export-del", dr_json("{'id': <%s>, 'mode': <'hard'>}", image->name),
                   error) &&
         await_no_export(server, image->name, dr_deadline_in(END_MS), error) &&
         dr_qmp_do(server->qmp, "blockdev-del", dr_json("{'node-name': <%s>}", image->name), error);
}

/* --- For the job --- */

gboolean
dr_image_server_start(DrImageServer *server, GError **error)
{
  if (has_process(server))
    return TRUE;
  kill_process(server);
  g_atomic_int_set(&server->wanted, FALSE);
  return start_process(server, error);
}

gboolean
dr_image_server_open(DrImageServer *server, gboolean live, GError **error)
{
  if (!has_process(server))
    return dr_error_set(error, DR_ERROR_CLOSED, "%s, which serves the images, has ended", PROGRAM);
  if (server->wanted)
    return TRUE;
  if (!add_exports(server, live, error))
    return FALSE;
  g_atomic_int_set(&server->wanted, TRUE);
  start_offering(server);
  return TRUE;
}

gboolean
dr_image_server_close(DrImageServer *server, GError **error)
{
  g_atomic_int_set(&server->wanted, FALSE);
  for (guint i = 0; i < server->images->len; i++)
    if (!drop_export(server, server->images->pdata[i], error))
      return FALSE;
  return TRUE;
}

void
dr_image_server_tend(DrImageServer *server)
{
  g_autoptr(GError) error = NULL;
  gint64 now = g_get_monotonic_time();

  if (now - server->tended_us < TEND_US)
    return;
  server->tended_us = now;
  if (has_process(server))
    dr_qmp_read_some(server->qmp);
  if (has_process(server) && server->wanted) {
    server->told = FALSE;
    return;
  }
  kill_process(server); /* it may have opened some of them */
  g_atomic_int_set(&server->wanted, FALSE);
  if (!dr_image_server_start(server, &error) || !dr_image_server_open(server, FALSE, &error)) {
    kill_process(server);
    if (!server->told)
      g_warning("the images of move %s, for its guest on the other host: %s", server->move, error->message);
    server->told = TRUE;
  }
}

static void
image_free(gpointer data)
{
  Image *image = data;

  g_ptr_array_unref(image->relays);
  g_free(image->name);
  g_free(image->path);
  g_free(image->format);
  g_free(image->secret);
  g_free(image);
}

static void
add_image(DrImageServer *server, JsonObject *said, GHashTable *objects)
{
  Image *image = g_new0(Image, 1);
  const char *word;

  image->server = server;
  image->name = g_strdup(dr_json_str(said, "name", ""));
  image->path = g_strdup(dr_json_str(said, "path", ""));
  image->format = g_strdup(dr_json_str(said, "format", "raw"));
  image->secret = g_strdup(dr_json_str(said, "secret", NULL));
  image->relays = g_ptr_array_new_with_free_func((GDestroyNotify)dr_relay_free);
  g_ptr_array_add(server->images, image);
  word = image->secret && objects ? g_hash_table_lookup(objects, image->secret) : NULL;
  if (word && !g_ptr_array_find_with_equal_func(server->objects, word, g_str_equal, NULL))
    g_ptr_array_add(server->objects, g_strdup(word));
}

DrImageServer *
dr_image_server_new(DrPeer *peer, const char *move, const char *prefix, JsonArray *images,
                    GHashTable *objects)
{
  DrImageServer *server = g_new0(DrImageServer, 1);

  server->peer = peer;
  server->move = g_strdup(move);
  server->qmp_path = g_strconcat(prefix, ".qmp", NULL);
  server->nbd_path = g_strconcat(prefix, ".nbd", NULL);
  server->images = g_ptr_array_new_with_free_func(image_free);
  server->objects = g_ptr_array_new_with_free_func(g_free);
  server->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  for (guint i = 0; i < json_array_get_length(images); i++)
    add_image(server, json_array_get_object_element(images, i), objects);
  return server;
}

void
dr_image_server_halt(DrImageServer *server)
{
  g_atomic_int_set(&server->wanted, FALSE);
  eventfd_write(server->stop, 1);
  kill_process(server);
}

void
dr_image_server_free(DrImageServer *server)
{
  if (!server)
    return;
  dr_image_server_halt(server);
  stop_offering(server);
  unlink(server->qmp_path);
  unlink(server->nbd_path);
  close(server->stop);
  g_ptr_array_unref(server->images);
  g_ptr_array_unref(server->objects);
  g_free(server->move);
  g_free(server->qmp_path);
  g_free(server->nbd_path);
  g_free(server);
}
