/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is said to systemd over a real datagram socket, and which of its sockets are taken. */
#include "base/activation.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/notify.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

typedef struct {
  char *dir, *path;
  int fd; /* the manager's side */
} Manager;

static void
manager_start(Manager *m, gboolean abstract)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };

  m->dir = g_dir_make_tmp("drn-XXXXXX", NULL);
  m->path = g_build_filename(m->dir, "n", NULL);
  g_strlcpy(address.sun_path + abstract, m->path, sizeof address.sun_path - 1);
  m->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  g_assert_cmpint(bind(m->fd, (struct sockaddr *)&address,
                       offsetof(struct sockaddr_un, sun_path) + abstract + strlen(m->path)),
                  ==, 0);
}

static void
manager_stop(Manager *m)
{
  close(m->fd);
  g_unlink(m->path);
  g_assert_cmpint(g_rmdir(m->dir), ==, 0);
  g_free(m->dir);
  g_free(m->path);
}

/* (transfer full) (nullable): the next datagram that is there. */
static char *
manager_take(const Manager *m)
{
  char text[200];
  gssize n = recv(m->fd, text, sizeof text, 0);

  return n < 0 ? NULL : g_strndup(text, n);
}

static void
set_pid(const char *name, pid_t pid)
{
  g_autofree char *text = g_strdup_printf("%d", (int)pid);

  g_setenv(name, text, TRUE);
}

static void
test_notify(gconstpointer abstract)
{
  Manager m;
  g_autofree char *name = NULL, *said = NULL;

  manager_start(&m, GPOINTER_TO_INT(abstract));
  name = g_strconcat(abstract ? "@" : "", m.path, NULL);
  g_setenv("NOTIFY_SOCKET", name, TRUE);
  dr_notify_init();
  g_assert_null(g_getenv("NOTIFY_SOCKET"));
  g_assert_true(dr_notify("READY=1"));
  said = manager_take(&m);
  g_assert_cmpstr(said, ==, "READY=1");
  manager_stop(&m);
  g_assert_false(dr_notify("STOPPING=1"));
}

static void
test_nobody_listens(void)
{
  g_autofree char *longer = g_strnfill(200, 'x');
  const char *const odd[] = { NULL, "", "/", "@", "relative", "/no/such/socket", longer };

  longer[0] = '/';
  for (guint i = 0; i < G_N_ELEMENTS(odd); i++) {
    if (odd[i])
      g_setenv("NOTIFY_SOCKET", odd[i], TRUE);
    dr_notify_init();
    g_assert_false(dr_notify("READY=1"));
  }
}

static guint64
watchdog_of(const char *us, int pid)
{
  g_setenv("WATCHDOG_USEC", us, TRUE);
  if (pid)
    set_pid("WATCHDOG_PID", pid);
  dr_notify_init();
  g_assert_null(g_getenv("WATCHDOG_USEC"));
  g_assert_null(g_getenv("WATCHDOG_PID"));
  return dr_notify_watchdog_us();
}

static void
test_watchdog_variables(void)
{
  static const char *const odd[] = { "", "0", "-1", "1 s", "x", "18446744073709551616" };

  g_assert_cmpuint(watchdog_of("30000000", getpid()), ==, 30000000);
  g_assert_cmpuint(watchdog_of("30000000", 0), ==, 30000000);
  g_assert_cmpuint(watchdog_of("30000000", getppid()), ==, 0); /* a parent's */
  for (guint i = 0; i < G_N_ELEMENTS(odd); i++)
    g_assert_cmpuint(watchdog_of(odd[i], getpid()), ==, 0);
  g_assert_null(dr_notify_watchdog_start(NULL));
}

/* It pings while its loop is run, and not otherwise. */
static void
test_watchdog_pings(void)
{
  GMainContext *context = g_main_context_new();
  g_autofree char *early = NULL, *said = NULL;
  gint64 end = g_get_monotonic_time() + 10 * G_USEC_PER_SEC;
  GSource *source;
  Manager m;

  manager_start(&m, FALSE);
  g_setenv("NOTIFY_SOCKET", m.path, TRUE);
  g_assert_cmpuint(watchdog_of("40000", getpid()), ==, 40000);
  source = dr_notify_watchdog_start(context);
  g_assert_nonnull(source);
  g_usleep(60000);
  early = manager_take(&m);
  g_assert_null(early);
  while (!said && g_get_monotonic_time() < end) {
    g_main_context_iteration(context, TRUE);
    said = manager_take(&m);
  }
  g_assert_cmpstr(said, ==, "WATCHDOG=1");
  g_source_destroy(source);
  g_source_unref(source);
  g_main_context_unref(context);
  manager_stop(&m);
}

/* --- Sockets --- */

/* Puts a listening socket at number `at`, as systemd would. */
static void
hand_down(const char *path, int type, int at)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  dr_autofd int fd = socket(AF_UNIX, type, 0);

  g_strlcpy(address.sun_path, path, sizeof address.sun_path);
  g_assert_cmpint(bind(fd, (struct sockaddr *)&address, sizeof address), ==, 0);
  if (type == SOCK_STREAM)
    g_assert_cmpint(listen(fd, 5), ==, 0);
  g_assert_cmpint(dup2(fd, at), ==, at);
}

static void
take_over(pid_t pid, const char *number)
{
  set_pid("LISTEN_PID", pid);
  g_setenv("LISTEN_FDS", number, TRUE);
  g_setenv("LISTEN_FDNAMES", "api", TRUE);
  dr_activation_init(100);
  g_assert_null(g_getenv("LISTEN_PID"));
  g_assert_null(g_getenv("LISTEN_FDS"));
  g_assert_null(g_getenv("LISTEN_FDNAMES"));
}

static void
test_sockets(void)
{
  g_autofree char *dir = g_dir_make_tmp("drn-XXXXXX", NULL);
  g_autofree char *path = g_build_filename(dir, "api.sock", NULL);
  g_autofree char *other = g_build_filename(dir, "other", NULL);
  g_autoptr(GError) error = NULL;

  hand_down(other, SOCK_DGRAM, 100);
  hand_down(path, SOCK_STREAM, 101);
  take_over(getpid(), "2");
  g_assert_cmpint(fcntl(101, F_GETFD), ==, FD_CLOEXEC);
  /* The right one, and one beside it that nobody would answer. */
  g_assert_cmpint(dr_activation_take(path, &error), ==, -1);
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  g_assert_nonnull(strstr(error->message, "beside"));
  g_clear_error(&error);
  close(100);
  take_over(getpid(), "0");
  g_assert_cmpint(dup2(101, 100), ==, 100);
  take_over(getpid(), "1");
  g_assert_cmpint(dr_activation_take(path, &error), ==, 100);
  g_assert_no_error(error);
  /* Once only. */
  g_assert_cmpint(dr_activation_take(path, &error), ==, -1);
  g_assert_no_error(error);
  close(100);
  g_unlink(other);
  hand_down(other, SOCK_DGRAM, 100);
  take_over(getpid(), "1");
  g_assert_cmpint(dr_activation_take(path, &error), ==, -1);
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  g_assert_nonnull(strstr(error->message, path));
  g_assert_nonnull(dr_error_get_remedy(error));
  g_clear_error(&error);
  g_assert_cmpint(dr_activation_take(other, &error), ==, -1);
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  close(100);
  close(101);
  g_unlink(path);
  g_unlink(other);
  g_rmdir(dir);
}

static void
test_no_sockets(void)
{
  static const char *const odd[] = { "0", "", "x", "-1", "17", "1e9" };
  g_autoptr(GError) error = NULL;

  for (guint i = 0; i < G_N_ELEMENTS(odd); i++) {
    take_over(getpid(), odd[i]);
    g_assert_cmpint(dr_activation_take("/run/drover/api.sock", &error), ==, -1);
    g_assert_no_error(error);
  }
  take_over(getppid(), "1"); /* somebody else's */
  g_assert_cmpint(dr_activation_take("/run/drover/api.sock", &error), ==, -1);
  g_assert_no_error(error);
  take_over(getpid(), "1"); /* one that is not open */
  g_assert_cmpint(dr_activation_take("/run/drover/api.sock", &error), ==, -1);
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_data_func("/notify/path", GINT_TO_POINTER(FALSE), test_notify);
  g_test_add_data_func("/notify/abstract", GINT_TO_POINTER(TRUE), test_notify);
  g_test_add_func("/notify/nobody", test_nobody_listens);
  g_test_add_func("/notify/watchdog-variables", test_watchdog_variables);
  g_test_add_func("/notify/watchdog", test_watchdog_pings);
  g_test_add_func("/activation/sockets", test_sockets);
  g_test_add_func("/activation/none", test_no_sockets);
  return g_test_run();
}
