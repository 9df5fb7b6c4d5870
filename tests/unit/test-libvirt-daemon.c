/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libvirt's daemon as far as it needs none: what is read of systemd and /proc, its JSON, the lock. */
#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"
#include "libvirt/daemon-internal.h"
#include "libvirt/versions.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#define TEXT_MAX 1048576

/* --- systemd's words --- */

static void
test_unit_of_cgroup(void)
{
  static const struct {
    const char *text, *unit;
    gint64 user;
  } cases[] = {
    { "0::/system.slice/libvirtd.service\n", "libvirtd.service", -1 },
    { "12:cpuset:/machine\n1:name=systemd:/system.slice/virtqemud.service\n0::/x.service\n",
      "virtqemud.service", -1 },
    { "9:name=systemd:/\n4:memory:/\n0::/system.slice/libvirtd.service\n", "libvirtd.service", -1 },
    { "0::/system.slice/libvirtd.service/emulator\n", "libvirtd.service", -1 },
    { "0::/user.slice/user-1000.slice/user@1000.service/app.slice/virtqemud.service\n", "virtqemud.service",
      1000 },
    { "0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", "user@1000.service", -1 },
    { "0::/user.slice/user-0.slice/session-1.scope\n", NULL, -1 },
    { "0::/\n", NULL, -1 },
    { "", NULL, -1 },
  };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    gint64 user = 7;
    g_autofree char *unit = dr_daemon_unit_of_cgroup(cases[i].text, &user);

    g_assert_cmpstr(unit, ==, cases[i].unit);
    g_assert_cmpint(user, ==, cases[i].user);
  }
}

static void
test_unit_words(void)
{
  const char *shown =
      "TriggeredBy=libvirtd-ro.socket libvirtd.socket\nRequiredBy=\n\nRequiredBy=vdsmd.service\n";
  g_auto(GStrv) sockets = dr_daemon_unit_words(shown, "TriggeredBy");
  g_auto(GStrv) required = dr_daemon_unit_words(shown, "RequiredBy");
  g_auto(GStrv) none = dr_daemon_unit_words(shown, "Triggered");

  g_assert_true(g_strv_equal((const char *const *)sockets,
                             (const char *const[]){ "libvirtd-ro.socket", "libvirtd.socket", NULL }));
  g_assert_true(g_strv_equal((const char *const *)required, (const char *const[]){ "vdsmd.service", NULL }));
  g_assert_null(none[0]);
}

static void
test_unit_active(void)
{
  g_auto(GStrv) active =
      dr_daemon_unit_active("Id=a.socket\nActiveState=active\n\nActiveState=inactive\nId=b.socket\n\n"
                            "ActiveState=activating\nId=c.socket\n\nId=d.socket\nActiveState=failed\n");

  g_assert_true(
      g_strv_equal((const char *const *)active, (const char *const[]){ "a.socket", "c.socket", NULL }));
}

/* --- /proc --- */

static void
test_status(void)
{
  g_autoptr(DrDaemonHand) hand = g_new0(DrDaemonHand, 1);

  for (guint i = 0; i < DR_DAEMON_NAMESPACES; i++)
    hand->namespace_fds[i] = -1;
  g_assert_false(dr_daemon_hand_parse_status("Name:\tx\nUid:\t0\t0\t0\t0\n", hand));
  g_assert_true(dr_daemon_hand_parse_status(
      "Name:\tlibvirtd\nUmask:\t0027\nPPid:\t12\nUid:\t1000\t1000\t1000\t1000\nGid:\t100\t100\t100\t100\n"
      "Groups:\t4 27 100 \n",
      hand));
  g_assert_cmpuint(hand->uid, ==, 1000);
  g_assert_cmpuint(hand->gid, ==, 100);
  g_assert_cmpuint(hand->mask, ==, 027);
  g_assert_cmpint(hand->parent.pid, ==, 12);
  g_assert_cmpuint(hand->n_groups, ==, 3);
  g_assert_cmpuint(hand->groups[1], ==, 27);
}

/* --- JSON --- */

static char *
print(const DrLibvirtDaemon *daemon)
{
  g_autoptr(JsonObject) object = dr_libvirt_daemon_write(daemon);

  return dr_json_print_object(object, FALSE);
}

/* Writes, reads and writes again what was written already. */
static void
assert_round_trip(const char *text, const char *name)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) object = dr_json_parse_object(text, -1, TEXT_MAX, &error);
  g_autoptr(DrLibvirtDaemon) daemon = dr_libvirt_daemon_read(object, &error);
  g_autofree char *again = NULL;

  g_assert_no_error(error);
  again = print(daemon);
  g_assert_cmpstr(again, ==, text);
  g_assert_cmpstr(dr_libvirt_daemon_name(daemon), ==, name);
}

static void
test_json_unit(void)
{
  assert_round_trip(
      "{\"state-dir\":\"/run/libvirt/qemu\",\"program\":\"libvirtd\",\"pid\":7,\"start\":8,\"systemd\":"
      "{\"unit\":\"libvirtd.service\",\"user\":-1,\"sockets\":[\"libvirtd.socket\"],\"others\":[]}}",
      "libvirtd.service");
  assert_round_trip(
      "{\"state-dir\":\"/d\",\"program\":\"virtqemud\",\"pid\":7,\"start\":8,\"systemd\":"
      "{\"unit\":\"virtqemud.service\",\"user\":1000,\"sockets\":[],\"others\":[\"a.service\"]}}",
      "virtqemud.service of user 1000");
}

/* A child with odd words, whose parent we are. */
static pid_t
start_odd(const char *log)
{
  pid_t pid = fork();
  int fd;

  if (pid)
    return pid;
  fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
  dup2(fd, 1);
  execve("/bin/sleep", (char *const[]){ "odd \xff%41\n", "60", NULL },
         (char *const[]){ "A=b\xfe", "LISTEN_PID=1", "C=", NULL });
  _exit(127);
}

static void
wait_exec(pid_t pid)
{
  for (int i = 0; i < 1000; i++) {
    g_auto(GStrv) words = dr_proc_cmdline(pid, NULL);

    if (words && g_str_has_prefix(words[0], "odd"))
      return;
    g_usleep(10000);
  }
  g_assert_not_reached();
}

static void
test_json_hand(void)
{
  g_autoptr(GError) error = NULL;
  g_autofree char *dir = g_dir_make_tmp("drd-XXXXXX", NULL), *log = g_build_filename(dir, "log", NULL);
  pid_t pid = start_odd(log);
  g_autoptr(DrDaemonHand) hand = NULL, again = NULL;
  g_autoptr(JsonObject) object = NULL, second = NULL;
  g_autofree char *text = NULL, *text_again = NULL, *command = NULL;

  wait_exec(pid);
  hand = dr_daemon_hand_find(pid, "/bin/sleep", &error);
  g_assert_no_error(error);
  g_assert_cmpstr(hand->stdio[1], ==, log);
  g_assert_null(g_environ_getenv(hand->envp, "LISTEN_PID"));
  g_assert_cmpint(hand->parent.pid, ==, getpid());
  object = dr_daemon_hand_write(hand);
  text = dr_json_print_object(object, FALSE);
  second = dr_json_parse_object(text, -1, TEXT_MAX, &error);
  g_assert_no_error(error);
  again = dr_daemon_hand_read(second, &error);
  g_assert_no_error(error);
  g_assert_true(g_strv_equal((const char *const *)again->argv, (const char *const *)hand->argv));
  g_assert_cmpstr(again->argv[0], ==, "odd \xff%41\n");
  g_assert_true(g_strv_equal((const char *const *)again->envp, (const char *const *)hand->envp));
  g_assert_cmpmem(again->limits, sizeof again->limits, hand->limits, sizeof hand->limits);
  g_clear_pointer(&object, json_object_unref);
  object = dr_daemon_hand_write(again);
  text_again = dr_json_print_object(object, FALSE);
  g_assert_cmpstr(text_again, ==, text);
  command = dr_daemon_hand_command(again);
  g_assert_cmpstr(command, ==, "'/bin/sleep' '60'");
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  g_unlink(log);
  g_rmdir(dir);
}

static void
test_json_incomplete(void)
{
  static const char *const texts[] = {
    "{}",
    "{\"state-dir\":\"/d\",\"program\":\"p\",\"pid\":7,\"start\":8}",
    "{\"state-dir\":\"/d\",\"program\":\"p\",\"pid\":0,\"start\":8,\"systemd\":{}}",
    "{\"state-dir\":\"/"
    "d\",\"program\":\"p\",\"pid\":7,\"start\":8,\"systemd\":{\"unit\":\"u\",\"sockets\":[1]}}",
    "{\"state-dir\":\"/d\",\"program\":\"p\",\"pid\":7,\"start\":8,\"by-hand\":{}}",
    "{\"state-dir\":\"/d\",\"program\":\"p\",\"pid\":7,\"start\":8,\"by-hand\":{\"path\":\"/p\",\"cwd\":\"/"
    "\",\"argv\":"
    "[\"p\"],\"environment\":[],\"cgroups\":[],\"stdio\":[],\"namespaces\":{},\"groups\":[],\"limits\":[1]}}",
  };

  for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) object = dr_json_parse_object(texts[i], -1, TEXT_MAX, NULL);

    g_assert_null(dr_libvirt_daemon_read(object, &error));
    g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  }
}

/* --- The lock --- */

typedef struct {
  char *dir;
  pid_t holder;
} Fixture;

/* A process that holds the lock until it is killed. */
static void
hold(Fixture *f, gconstpointer unused)
{
  int ready[2];
  char byte;

  f->dir = g_dir_make_tmp("drd-XXXXXX", NULL);
  g_assert_cmpint(pipe(ready), ==, 0);
  f->holder = fork();
  if (f->holder == 0) {
    int fd;

    if (dr_driver_lock_take(f->dir, &fd, NULL) && fd >= 0 && write(ready[1], "x", 1) == 1)
      pause();
    _exit(1);
  }
  g_assert_cmpint(read(ready[0], &byte, 1), ==, 1);
  close(ready[0]);
  close(ready[1]);
}

static void
end_holder(Fixture *f)
{
  if (f->holder > 0) {
    kill(f->holder, SIGKILL);
    waitpid(f->holder, NULL, 0);
  }
  f->holder = 0;
}

static void
release(Fixture *f, gconstpointer unused)
{
  g_autofree char *path = g_build_filename(f->dir, "driver.pid", NULL);

  end_holder(f);
  g_unlink(path);
  g_assert_cmpint(g_rmdir(f->dir), ==, 0);
  g_free(f->dir);
}

static void
test_lock(Fixture *f, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;
  DrProcId id;
  int fd;

  g_assert_true(dr_driver_lock_holder(f->dir, &id, &error));
  g_assert_cmpint(id.pid, ==, f->holder);
  g_assert_true(dr_driver_lock_take(f->dir, &fd, &error));
  g_assert_cmpint(fd, ==, -1);
  g_assert_true(dr_driver_lock_holder(f->dir, &id, &error)); /* still its */
  end_holder(f);
  g_assert_false(dr_driver_lock_holder(f->dir, &id, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_NOT_FOUND);
  g_clear_error(&error);
  g_assert_true(dr_driver_lock_take(f->dir, &fd, &error));
  g_assert_cmpint(fd, >=, 0);
  dr_driver_lock_give(f->dir, fd);
  g_assert_false(dr_driver_lock_take("/nonexistent", &fd, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_IO);
}

/* The test itself holds it: the same program is another drover. */
static void
test_another_drover(Fixture *f, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;

  g_assert_null(dr_libvirt_daemon_find(f->dir, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_BUSY);
  g_clear_error(&error);
  end_holder(f);
  g_assert_null(dr_libvirt_daemon_find(f->dir, &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_NOT_FOUND);
}

/* --- Versions --- */

static void
test_versions(void)
{
  static const struct {
    const char *text;
    unsigned long number;
    gboolean tested;
  } cases[] = {
    { "9.0.0", 9000000, TRUE },
    { "9.0.2", 9000002, TRUE },
    { "9.0", 9000000, TRUE },
    { "9.1.0", 9001000, FALSE },
    { "8.9.0", 8009000, FALSE },
    { "10.10.0", 10010000, FALSE },
    { "9.0.0-4+deb12u2", 9000000, TRUE },
    { "", 0, FALSE },
    { "x", 0, FALSE },
    { "9", 0, FALSE },
  };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_assert_cmpuint(dr_libvirt_version_number(cases[i].text), ==, cases[i].number);
    g_assert_cmpint(dr_libvirt_is_tested(cases[i].number), ==, cases[i].tested);
  }
}

static void
test_memfd(void)
{
  static const char *const leaves_out[] = { "5.2.0", "7.2.22", "8.0.5", "", "x", NULL };
  static const char *const sends[] = { "8.1.0", "8.2.2", "9.0.0", "10.0.2", "11.1.0", NULL };

  for (guint i = 0; leaves_out[i]; i++)
    g_assert_false(dr_qemu_sends_memfd(leaves_out[i]));
  for (guint i = 0; sends[i]; i++)
    g_assert_true(dr_qemu_sends_memfd(sends[i]));
  g_assert_false(dr_qemu_sends_memfd(NULL));
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/libvirt-daemon/unit-of-cgroup", test_unit_of_cgroup);
  g_test_add_func("/libvirt-daemon/unit-words", test_unit_words);
  g_test_add_func("/libvirt-daemon/unit-active", test_unit_active);
  g_test_add_func("/libvirt-daemon/status", test_status);
  g_test_add_func("/libvirt-daemon/json/unit", test_json_unit);
  g_test_add_func("/libvirt-daemon/json/hand", test_json_hand);
  g_test_add_func("/libvirt-daemon/json/incomplete", test_json_incomplete);
  g_test_add("/libvirt-daemon/lock", Fixture, NULL, hold, test_lock, release);
  g_test_add("/libvirt-daemon/another-drover", Fixture, NULL, hold, test_another_drover, release);
  g_test_add_func("/libvirt-daemon/versions", test_versions);
  g_test_add_func("/libvirt-daemon/memfd", test_memfd);
  return g_test_run();
}
