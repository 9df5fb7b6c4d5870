/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The console hub: non-blocking sockets on the main loop, one lock for the calls that come from job threads. */
#include "vm/console.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define SCROLLBACK (64 * 1024)
#define INPUT_MAX 4096          /* typed, not yet taken by the guest */
#define UNREAD_MAX (512 * 1024) /* more than a socket's buffer holds (net.core.wmem_default) */
#define MAX_CLIENTS 16

typedef struct {
  DrConsole *console;
  int fd;
  GSource *read, *write;
  GByteArray *out; /* not yet taken by this client, at most SCROLLBACK */
  gboolean ending; /* close when `out` is empty */
} Client;

struct DrConsole {
  GRecMutex lock;
  GMainContext *context;
  int qemu, next; /* the current QEMU's socket and the one being prepared; -1: none */
  gboolean held;  /* input waits: see dr_console_hold() */
  gboolean lent;  /* the socket is the user's own */
  GSource *qemu_read, *qemu_write;
  GByteArray *scrollback;
  GByteArray *input;
  GPtrArray *clients; /* of Client */
};

static gboolean on_qemu_readable(int fd, GIOCondition condition, gpointer data);
static gboolean on_qemu_writable(int fd, GIOCondition condition, gpointer data);
static gboolean on_client_readable(int fd, GIOCondition condition, gpointer data);
static gboolean on_client_writable(int fd, GIOCondition condition, gpointer data);

static void
unwatch(GSource **source)
{
  if (!*source)
    return;
  g_source_destroy(*source);
  g_clear_pointer(source, g_source_unref);
}

static void
watch(DrConsole *console, GSource **source, int fd, GIOCondition condition, GUnixFDSourceFunc callback,
      gpointer data)
{
  if (*source || fd < 0)
    return;
  *source = g_unix_fd_source_new(fd, condition);
  g_source_set_callback(*source, G_SOURCE_FUNC(callback), data, NULL);
  g_source_attach(*source, console->context);
}

static void
client_free(Client *client)
{
  unwatch(&client->read);
  unwatch(&client->write);
  close(client->fd);
  g_byte_array_unref(client->out);
  g_free(client);
}

DrConsole *
dr_console_new(GMainContext *context)
{
  DrConsole *console = g_new0(DrConsole, 1);

  g_rec_mutex_init(&console->lock);
  console->context = g_main_context_ref(context);
  console->qemu = console->next = -1;
  console->scrollback = g_byte_array_new();
  console->input = g_byte_array_new();
  console->clients = g_ptr_array_new_with_free_func((GDestroyNotify)client_free);
  return console;
}

static void
close_qemu(DrConsole *console)
{
  unwatch(&console->qemu_read);
  unwatch(&console->qemu_write);
  if (console->qemu >= 0)
    close(console->qemu);
  console->qemu = -1;
}

void
dr_console_free(DrConsole *console)
{
  if (!console)
    return;
  dr_console_abort(console);
  close_qemu(console);
  g_ptr_array_unref(console->clients);
  g_byte_array_unref(console->scrollback);
  g_byte_array_unref(console->input);
  g_main_context_unref(console->context);
  g_rec_mutex_clear(&console->lock);
  g_free(console);
}

/* Appends and keeps the newest SCROLLBACK bytes. */
static void
append_bounded(GByteArray *array, const guint8 *data, gsize len)
{
  g_byte_array_append(array, data, len);
  if (array->len > SCROLLBACK)
    g_byte_array_remove_range(array, 0, array->len - SCROLLBACK);
}

static void
to_client(Client *client, const guint8 *data, gsize len)
{
  append_bounded(client->out, data, len);
  watch(client->console, &client->write, client->fd, G_IO_OUT, on_client_writable, client);
}

static void
from_guest(DrConsole *console, const guint8 *data, gsize len)
{
  append_bounded(console->scrollback, data, len);
  for (guint i = 0; i < console->clients->len; i++)
    to_client(console->clients->pdata[i], data, len);
}

/* Reads what the current QEMU has written. FALSE: it closed the socket. */
static gboolean
drain(DrConsole *console, guint max_reads)
{
  guint8 chunk[8192];
  gssize n = 0;

  for (guint i = 0; i < max_reads && (n = recv(console->qemu, chunk, sizeof chunk, MSG_DONTWAIT)) > 0; i++)
    from_guest(console, chunk, n);
  return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static gboolean
on_qemu_readable(int fd, GIOCondition condition, gpointer data)
{
  DrConsole *console = data;

  g_rec_mutex_lock(&console->lock);
  if (fd == console->qemu && !drain(console, 8))
    close_qemu(console);
  g_rec_mutex_unlock(&console->lock);
  return G_SOURCE_CONTINUE;
}

/* Clients are read only while the guest takes what they typed. */
static void
pace_clients(DrConsole *console)
{
  for (guint i = 0; i < console->clients->len; i++) {
    Client *client = console->clients->pdata[i];

    if (console->input->len >= INPUT_MAX || client->ending)
      unwatch(&client->read);
    else
      watch(console, &client->read, client->fd, G_IO_IN, on_client_readable, client);
  }
}

static void
flush_input(DrConsole *console)
{
  gboolean open = console->qemu >= 0 && !console->held;
  gssize n = 0;

  if (open && console->input->len)
    n = send(console->qemu, console->input->data, console->input->len, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n > 0)
    g_byte_array_remove_range(console->input, 0, n);
  if (console->input->len && open)
    watch(console, &console->qemu_write, console->qemu, G_IO_OUT, on_qemu_writable, console);
  else
    unwatch(&console->qemu_write);
  pace_clients(console);
}

static gboolean
on_qemu_writable(int fd, GIOCondition condition, gpointer data)
{
  DrConsole *console = data;

  g_rec_mutex_lock(&console->lock);
  flush_input(console);
  g_rec_mutex_unlock(&console->lock);
  return G_SOURCE_CONTINUE;
}

/* A socket of the user's own is taken only while it is read here; a move goes to its end with what it began with. */
static void
let_go(DrConsole *console)
{
  if (console->lent && console->clients->len == 0 && console->next < 0)
    close_qemu(console);
}

static void
remove_client(DrConsole *console, Client *client)
{
  g_ptr_array_remove_fast(console->clients, client);
  let_go(console);
}

static gboolean
on_client_readable(int fd, GIOCondition condition, gpointer data)
{
  Client *client = data;
  DrConsole *console = client->console;
  guint8 chunk[1024];
  gssize n;

  g_rec_mutex_lock(&console->lock);
  n = recv(client->fd, chunk, sizeof chunk, MSG_DONTWAIT);
  if (n > 0) {
    g_byte_array_append(console->input, chunk, n);
    flush_input(console);
  } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
    remove_client(console, client);
  }
  g_rec_mutex_unlock(&console->lock);
  return G_SOURCE_CONTINUE;
}

static gboolean
on_client_writable(int fd, GIOCondition condition, gpointer data)
{
  Client *client = data;
  DrConsole *console = client->console;
  gssize n;

  g_rec_mutex_lock(&console->lock);
  n = send(client->fd, client->out->data, client->out->len, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n > 0)
    g_byte_array_remove_range(client->out, 0, n);
  if ((n < 0 && errno != EAGAIN && errno != EINTR) || (client->ending && client->out->len == 0))
    remove_client(console, client);
  else if (client->out->len == 0)
    unwatch(&client->write);
  g_rec_mutex_unlock(&console->lock);
  return G_SOURCE_CONTINUE;
}

static int
connect_to(const char *path, GError **error)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  int fd;

  if (g_strlcpy(address.sun_path, path, sizeof address.sun_path) >= sizeof address.sun_path) {
    dr_error_set(error, DR_ERROR_INVALID, "console socket path '%s' is too long", path);
    return -1;
  }
  fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
    dr_error_set_errno(error, errno, "cannot connect to console socket '%s'", path);
    if (fd >= 0)
      close(fd);
    return -1;
  }
  return fd;
}

static void
make_current(DrConsole *console, int fd)
{
  close_qemu(console);
  console->qemu = fd;
  console->held = FALSE;
  watch(console, &console->qemu_read, fd, G_IO_IN, on_qemu_readable, console);
  flush_input(console);
}

static gboolean
open_it(DrConsole *console, const char *path, gboolean lent, GError **error)
{
  int fd = connect_to(path, error);

  if (fd < 0)
    return FALSE;
  g_rec_mutex_lock(&console->lock);
  make_current(console, fd);
  console->lent = lent;
  g_rec_mutex_unlock(&console->lock);
  return TRUE;
}

gboolean
dr_console_open(DrConsole *console, const char *path, GError **error)
{
  return open_it(console, path, FALSE, error);
}

gboolean
dr_console_prepare(DrConsole *console, const char *path, GError **error)
{
  int fd;

  dr_console_abort(console);
  if (!path)
    return TRUE;
  fd = connect_to(path, error);
  if (fd < 0)
    return FALSE;
  g_rec_mutex_lock(&console->lock);
  console->next = fd;
  g_rec_mutex_unlock(&console->lock);
  return TRUE;
}

/* One recv() for all: it and QEMU's exclude each other, and nothing comes between what it returns. */
static void
take_back(DrConsole *console, const DrProcId *qemu)
{
  g_autoptr(GError) error = NULL;
  dr_autofd int theirs = dr_proc_get_peer(qemu, console->qemu, &error);
  g_autofree guint8 *unread = g_malloc(UNREAD_MAX);
  gssize n = theirs >= 0 ? recv(theirs, unread, UNREAD_MAX, MSG_DONTWAIT) : 0;

  if (theirs < 0)
    g_warning("what is typed just now may be lost: %s", error->message);
  if (n > 0)
    g_byte_array_prepend(console->input, unread, n);
}

void
dr_console_hold(DrConsole *console, const DrProcId *qemu)
{
  g_rec_mutex_lock(&console->lock);
  if (console->qemu >= 0 && !console->held)
    take_back(console, qemu);
  console->held = TRUE;
  flush_input(console);
  g_rec_mutex_unlock(&console->lock);
}

gboolean
dr_console_commit(DrConsole *console)
{
  gboolean prepared;

  g_rec_mutex_lock(&console->lock);
  prepared = console->next >= 0;
  if (console->qemu >= 0)
    drain(console, G_MAXUINT);
  if (prepared)
    make_current(console, dr_fd_steal(&console->next));
  console->held = FALSE;
  let_go(console);
  g_rec_mutex_unlock(&console->lock);
  return prepared;
}

/* Whatever they are connected to is given up first: if that is the new QEMU already, it takes one client at a time. */
gboolean
dr_console_follow(DrConsole *console, const char *path, GError **error)
{
  gboolean followed = TRUE;

  g_rec_mutex_lock(&console->lock);
  if (console->qemu >= 0)
    drain(console, G_MAXUINT);
  close_qemu(console);
  if (console->clients->len)
    followed = open_it(console, path, TRUE, error);
  g_rec_mutex_unlock(&console->lock);
  return followed;
}

void
dr_console_abort(DrConsole *console)
{
  g_rec_mutex_lock(&console->lock);
  if (console->next >= 0)
    close(console->next);
  console->next = -1;
  console->held = FALSE;
  flush_input(console);
  let_go(console);
  g_rec_mutex_unlock(&console->lock);
}

void
dr_console_end(DrConsole *console)
{
  g_rec_mutex_lock(&console->lock);
  if (console->qemu >= 0)
    drain(console, G_MAXUINT);
  close_qemu(console);
  g_byte_array_set_size(console->input, 0);
  for (guint i = 0; i < console->clients->len; i++) {
    Client *client = console->clients->pdata[i];

    client->ending = TRUE;
    unwatch(&client->read);
    watch(console, &client->write, client->fd, G_IO_OUT, on_client_writable, client);
  }
  g_rec_mutex_unlock(&console->lock);
}

int
dr_console_attach(DrConsole *console, GError **error)
{
  Client *client;
  int pair[2];

  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
    dr_error_set_errno(error, errno, "cannot make a socket pair for the console");
    return -1;
  }
  g_rec_mutex_lock(&console->lock);
  if (console->clients->len >= MAX_CLIENTS) {
    g_rec_mutex_unlock(&console->lock);
    close(pair[0]);
    close(pair[1]);
    dr_error_set(error, DR_ERROR_BUSY, "%d clients read this console already", MAX_CLIENTS);
    return -1;
  }
  client = g_new0(Client, 1);
  client->console = console;
  client->fd = pair[0];
  client->out = g_byte_array_new();
  g_ptr_array_add(console->clients, client);
  to_client(client, console->scrollback->data, console->scrollback->len);
  pace_clients(console);
  g_rec_mutex_unlock(&console->lock);
  return pair[1];
}

gboolean
dr_console_is_open(DrConsole *console)
{
  gboolean open;

  g_rec_mutex_lock(&console->lock);
  open = console->qemu >= 0;
  g_rec_mutex_unlock(&console->lock);
  return open;
}

gboolean
dr_console_ensure(DrConsole *console, const char *path, GError **error)
{
  gboolean open;

  g_rec_mutex_lock(&console->lock); /* over both: see dr_console_follow() */
  open = console->qemu >= 0 || open_it(console, path, TRUE, error);
  g_rec_mutex_unlock(&console->lock);
  return open;
}
