/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The console hub: order across an upgrade both ways, scrollback, bounded buffers, several readers. */
#include "base/fd.h"
#include "vm/console.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

typedef struct {
  char *dir;
  GMainContext *context;
  DrConsole *console;
} Fixture;

static void
set_up(Fixture *f, gconstpointer unused)
{
  f->dir = g_dir_make_tmp("drover-console-XXXXXX", NULL);
  f->context = g_main_context_new();
  f->console = dr_console_new(f->context);
}

static void
tear_down(Fixture *f, gconstpointer unused)
{
  dr_console_free(f->console);
  g_main_context_unref(f->context);
  g_assert_cmpint(g_rmdir(f->dir), ==, 0);
  g_free(f->dir);
}

/* A QEMU's side: listens at NAME; *ret_fd is the accepted connection once the hub has connected. */
static int
listen_at(Fixture *f, const char *name, char **ret_path)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  *ret_path = g_build_filename(f->dir, name, NULL);
  g_strlcpy(address.sun_path, *ret_path, sizeof address.sun_path);
  g_assert_cmpint(bind(fd, (struct sockaddr *)&address, sizeof address), ==, 0);
  g_assert_cmpint(listen(fd, 1), ==, 0);
  return fd;
}

static int
accept_and_unlink(int listener, const char *path)
{
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

  g_assert_cmpint(fd, >=, 0);
  close(listener);
  unlink(path);
  return fd;
}

static int
qemu(Fixture *f, const char *name, gboolean prepare)
{
  g_autofree char *path = NULL;
  int listener = listen_at(f, name, &path);
  g_autoptr(GError) error = NULL;

  g_assert_true(prepare ? dr_console_prepare(f->console, path, &error)
                        : dr_console_open(f->console, path, &error));
  return accept_and_unlink(listener, path);
}

static void
spin(Fixture *f)
{
  while (g_main_context_iteration(f->context, FALSE))
    ;
}

static void
put(int fd, const char *text)
{
  g_assert_cmpint(write(fd, text, strlen(text)), ==, (gssize)strlen(text));
}

/* Reads until `wanted` has come, for at most 5 s. */
static void
expect(Fixture *f, int fd, const char *wanted)
{
  g_autoptr(GString) got = g_string_new(NULL);
  gint64 end = g_get_monotonic_time() + 5 * G_USEC_PER_SEC;

  while (got->len < strlen(wanted) && g_get_monotonic_time() < end) {
    struct pollfd p = { .fd = fd, .events = POLLIN };
    char chunk[65536];
    gssize n;

    spin(f);
    if (poll(&p, 1, 1) <= 0)
      continue;
    n = recv(fd, chunk, MIN(sizeof chunk, strlen(wanted) - got->len), MSG_DONTWAIT);
    if (n == 0)
      break;
    if (n > 0)
      g_string_append_len(got, chunk, n);
  }
  g_assert_cmpstr(got->str, ==, wanted);
}

static gboolean
at_end(Fixture *f, int fd)
{
  gint64 end = g_get_monotonic_time() + 5 * G_USEC_PER_SEC;
  char byte;
  gssize n;

  do {
    spin(f);
    n = recv(fd, &byte, 1, MSG_DONTWAIT);
  } while (n < 0 && errno == EAGAIN && g_get_monotonic_time() < end);
  return n == 0;
}

static void
test_both_ways(Fixture *f, gconstpointer unused)
{
  dr_autofd int guest = qemu(f, "a", FALSE);
  dr_autofd int first = -1;
  dr_autofd int second = -1;

  put(guest, "before ");
  spin(f);
  first = dr_console_attach(f->console, NULL);
  second = dr_console_attach(f->console, NULL);
  put(guest, "after");
  expect(f, first, "before after");
  expect(f, second, "before after");
  put(first, "typed");
  expect(f, guest, "typed");
}

/* What the old QEMU wrote last comes before what the new one writes first, though the new one is connected before. */
static void
test_upgrade(Fixture *f, gconstpointer unused)
{
  dr_autofd int old = qemu(f, "a", FALSE);
  dr_autofd int client = dr_console_attach(f->console, NULL);
  dr_autofd int new = qemu(f, "b", TRUE);

  put(new, "three ");
  spin(f);
  put(old, "one two ");
  dr_console_commit(f->console);
  put(new, "four");
  expect(f, client, "one two three four");
  put(client, "hello");
  expect(f, new, "hello");
}

static void
test_abort(Fixture *f, gconstpointer unused)
{
  dr_autofd int old = qemu(f, "a", FALSE);
  dr_autofd int client = dr_console_attach(f->console, NULL);
  dr_autofd int new = qemu(f, "b", TRUE);

  dr_console_abort(f->console);
  g_assert_true(at_end(f, new));
  put(old, "still here");
  expect(f, client, "still here");
}

/* What was typed and not read by the old QEMU goes to the one that goes on. */
static void
hold(Fixture *f, gboolean go_over)
{
  dr_autofd int old = qemu(f, "a", FALSE);
  dr_autofd int client = dr_console_attach(f->console, NULL);
  dr_autofd int new = qemu(f, "b", TRUE);
  g_autoptr(GError) error = NULL;
  DrProcId self;

  g_assert_true(dr_proc_identify(getpid(), &self, &error));
  put(client, "read, unread, ");
  spin(f);
  expect(f, old, "read, ");
  dr_console_hold(f->console, &self);
  put(client, "later");
  spin(f);
  g_assert_cmpint(recv(old, &(char){ 0 }, 1, MSG_DONTWAIT), ==, -1);
  if (go_over)
    dr_console_commit(f->console);
  else
    dr_console_abort(f->console);
  expect(f, go_over ? new : old, "unread, later");
  g_assert_true(at_end(f, go_over ? old : new));
}

static void
test_hold_and_commit(Fixture *f, gconstpointer unused)
{
  hold(f, TRUE);
}

static void
test_hold_and_abort(Fixture *f, gconstpointer unused)
{
  hold(f, FALSE);
}

/* A socket of the user's own is let go when nobody reads it here. */
static void
test_lent(Fixture *f, gconstpointer unused)
{
  g_autofree char *path = NULL;
  int listener = listen_at(f, "user", &path);
  dr_autofd int client = -1, other = -1, guest = -1;

  g_assert_true(dr_console_ensure(f->console, path, NULL));
  guest = accept_and_unlink(listener, path);
  client = dr_console_attach(f->console, NULL);
  other = dr_console_attach(f->console, NULL);
  close(dr_fd_steal(&other));
  put(guest, "both");
  expect(f, client, "both");
  close(dr_fd_steal(&client));
  g_assert_true(at_end(f, guest));
  g_assert_false(dr_console_is_open(f->console));
}

static void
test_end(Fixture *f, gconstpointer unused)
{
  dr_autofd int guest = qemu(f, "a", FALSE);
  dr_autofd int client = dr_console_attach(f->console, NULL);

  put(guest, "bye");
  dr_console_end(f->console);
  expect(f, client, "bye");
  g_assert_true(at_end(f, client));
}

/* A client that does not read costs 64 KiB, not the guest's time. */
static void
test_slow_client(Fixture *f, gconstpointer unused)
{
  dr_autofd int guest = qemu(f, "a", FALSE);
  dr_autofd int slow = dr_console_attach(f->console, NULL);
  dr_autofd int quick = dr_console_attach(f->console, NULL);
  g_autofree char *block = g_strnfill(4096, 'x');
  char sink[65536];
  gsize seen = 0;

  for (int i = 0; i < 512; i++) { /* 2 MiB */
    put(guest, block);
    spin(f);
    gssize n = recv(quick, sink, sizeof sink, MSG_DONTWAIT);
    seen += n > 0 ? (gsize)n : 0;
  }
  g_assert_cmpuint(seen, >=, 512 * 4096 - 65536);
  g_assert_cmpint(slow, >=, 0);
}

/* A guest that does not read stops the clients, not the hub. */
static void
test_deaf_guest(Fixture *f, gconstpointer unused)
{
  dr_autofd int guest = qemu(f, "a", FALSE);
  dr_autofd int client = dr_console_attach(f->console, NULL);
  g_autofree char *block = g_strnfill(4096, 'x');
  gsize sent = 0;

  for (int i = 0; i < 4096; i++) {
    gssize n = send(client, block, 4096, MSG_DONTWAIT | MSG_NOSIGNAL);

    sent += n > 0 ? (gsize)n : 0;
    spin(f);
  }
  g_assert_cmpuint(sent, <, 4 << 20); /* of 16 MiB: what fits into two sockets' buffers */
  put(guest, "out");
  expect(f, client, "out");
}

static void
test_many(Fixture *f, gconstpointer unused)
{
  g_autoptr(GArray) clients = g_array_new(FALSE, FALSE, sizeof(int));
  g_autoptr(GError) error = NULL;
  int fd;

  while ((fd = dr_console_attach(f->console, &error)) >= 0 && clients->len < 100)
    g_array_append_val(clients, fd);
  g_assert_nonnull(error);
  g_assert_cmpuint(clients->len, <, 100);
  for (guint i = 0; i < clients->len; i++)
    close(g_array_index(clients, int, i));
}

/* A reader came after the new QEMU had been prepared, which was for nobody then: it is with the old one. */
static void
test_follow(Fixture *f, gconstpointer unused)
{
  g_autofree char *path = NULL;
  int listener = listen_at(f, "user", &path);
  dr_autofd int reader = -1, old = -1, new = -1;
  DrProcId self;

  g_assert_true(dr_console_prepare(f->console, NULL, NULL));
  reader = dr_console_attach(f->console, NULL);
  g_assert_true(dr_console_ensure(f->console, path, NULL));
  old = accept_and_unlink(listener, path);
  put(old, "last words");
  g_assert_true(dr_proc_identify(getpid(), &self, NULL));
  dr_console_hold(f->console, &self);
  put(reader, "typed");
  spin(f);
  g_assert_false(dr_console_commit(f->console));
  g_free(path);
  listener = listen_at(f, "user", &path);
  g_assert_true(dr_console_follow(f->console, path, NULL));
  new = accept_and_unlink(listener, path);
  g_assert_true(at_end(f, old));
  put(new, ", new words");
  expect(f, reader, "last words, new words");
}

/* Without a reader the user's socket is left to the user. */
static void
test_follow_nobody(Fixture *f, gconstpointer unused)
{
  g_autofree char *path = NULL;
  dr_autofd int listener = listen_at(f, "user", &path);
  struct pollfd p = { .fd = listener, .events = POLLIN };

  g_assert_true(dr_console_follow(f->console, path, NULL));
  g_assert_false(dr_console_is_open(f->console));
  g_assert_cmpint(poll(&p, 1, 0), ==, 0);
  unlink(path);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
#define ADD(name, func) g_test_add("/console/" name, Fixture, NULL, set_up, func, tear_down)
  ADD("both-ways", test_both_ways);
  ADD("upgrade", test_upgrade);
  ADD("abort", test_abort);
  ADD("hold-and-commit", test_hold_and_commit);
  ADD("hold-and-abort", test_hold_and_abort);
  ADD("lent", test_lent);
  ADD("follow", test_follow);
  ADD("follow-nobody", test_follow_nobody);
  ADD("end", test_end);
  ADD("slow-client", test_slow_client);
  ADD("deaf-guest", test_deaf_guest);
  ADD("many", test_many);
  return g_test_run();
}
