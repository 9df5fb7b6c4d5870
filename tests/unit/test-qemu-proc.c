/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Processes as /proc and pidfds show them. */
#include "test-qemu-util.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

static gboolean
has_words(pid_t pid, guint n)
{
  g_auto(GStrv) cmdline = dr_proc_cmdline(pid, NULL);

  return cmdline && g_strv_length(cmdline) == n;
}

/* A child that does nothing until it is killed; words[0] is executed. */
static pid_t
start(const char *const *words, const char *cwd)
{
  g_autoptr(GError) error = NULL;
  GPid pid;

  g_spawn_async(cwd, (char **)words, (char *[]){ (char *)"A=1", (char *)"EMPTY=", NULL },
                G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL, &pid, &error);
  g_assert_no_error(error);
  wait_until(has_words(pid, g_strv_length((char **)words)));
  return pid;
}

static void
stop(pid_t pid)
{
  kill(pid, SIGKILL);
  g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
}

static void
test_identity(void)
{
  g_autoptr(GError) error = NULL;
  DrProcId id, other;
  pid_t pid = start((const char *const[]){ "/bin/sleep", "1000", NULL }, NULL);

  g_assert_true(dr_proc_identify(pid, &id, &error));
  g_assert_no_error(error);
  g_assert_cmpint(id.pid, ==, pid);
  g_assert_true(dr_proc_alive(&id));

  /* Another process with the same pid is neither opened nor killed. */
  other = id;
  other.start_time--;
  g_assert_cmpint(dr_proc_open(&other, &error), ==, -1);
  assert_error(&error, DR_ERROR_NOT_FOUND, "no process");
  g_assert_true(dr_proc_kill(&other, 0, &error));
  g_assert_true(dr_proc_alive(&id));

  g_assert_true(dr_proc_kill(&id, WAIT_MS, &error));
  /* Not waited for yet: a zombie, which counts as gone. */
  g_assert_false(dr_proc_alive(&id));
  g_assert_false(dr_proc_identify(pid, &other, &error));
  assert_error(&error, DR_ERROR_NOT_FOUND, "no process");
  g_assert_null(dr_proc_cmdline(pid, &error));
  assert_error(&error, DR_ERROR_NOT_FOUND, "no process");
  g_assert_true(dr_proc_kill(&id, 0, &error));
  stop(pid);
  g_assert_true(dr_proc_kill(&id, 0, &error));
  g_assert_null(dr_proc_cmdline(pid, NULL));
  g_assert_null(dr_proc_fds(pid, NULL));
}

static void
test_not_pids(void)
{
  static const pid_t bad[] = { 0, -1, G_MAXINT };
  DrProcId id;

  for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
    g_assert_false(dr_proc_identify(bad[i], &id, NULL));
    g_assert_false(dr_proc_alive(&(DrProcId){ .pid = bad[i] }));
    g_assert_true(dr_proc_kill(&(DrProcId){ .pid = bad[i] }, 0, NULL));
  }
}

/* A name with a parenthesis and blanks must not shift the fields of /proc/PID/stat. */
static void
test_odd_name(void)
{
  auto_tmp char *dir = tmp_new();
  g_autofree char *path = g_build_filename(dir, ") S 1 2 (x", NULL);
  DrProcId odd, plain;
  pid_t first, second;

  g_assert_cmpint(symlink("/bin/sleep", path), ==, 0);
  first = start((const char *const[]){ path, "1000", NULL }, NULL);
  second = start((const char *const[]){ "/bin/sleep", "1000", NULL }, NULL);
  g_assert_true(dr_proc_identify(first, &odd, NULL));
  g_assert_true(dr_proc_identify(second, &plain, NULL));
  /* Both began within the same moment (hundredths of a second). */
  g_assert_cmpuint(plain.start_time - odd.start_time, <=, 1000);
  stop(first);
  stop(second);
}

static void
test_words(void)
{
  g_autoptr(GError) error = NULL;
  static const char *const words[] = { "/bin/sh", "-c", "kill -STOP $$", "", "a  b", "\xff", "", NULL };
  pid_t pid = start(words, "/usr");
  g_auto(GStrv) cmdline = dr_proc_cmdline(pid, &error);
  g_auto(GStrv) envp = dr_proc_environ(pid, &error);
  g_autofree char *cwd = dr_proc_cwd(pid, &error);

  g_assert_no_error(error);
  g_assert_cmpstrv(cmdline, (char **)words);
  g_assert_cmpstrv(envp, ((char *[]){ (char *)"A=1", (char *)"EMPTY=", NULL }));
  g_assert_cmpstr(cwd, ==, "/usr");
  stop(pid);
}

static void
test_large_cmdline(void)
{
  g_autofree char *big = g_strnfill(100000, 'x');
  const char *words[20] = { "/bin/sleep", "1000" };
  g_auto(GStrv) cmdline = NULL;
  g_autoptr(GError) error = NULL;
  pid_t pid;

  /* "sleep 1000 xxx…" refuses to run, and sh ignores words that it does not use. */
  words[0] = "/bin/sh";
  words[1] = "-c";
  words[2] = "kill -STOP $$";
  for (guint i = 3; i < 18; i++)
    words[i] = big;
  pid = start(words, NULL);
  cmdline = dr_proc_cmdline(pid, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(g_strv_length(cmdline), ==, 18);
  g_assert_cmpstr(cmdline[17], ==, big);
  stop(pid);
}

static void
test_kernel_thread(void)
{
  g_autoptr(GError) error = NULL;
  g_autofree char *name = dr_file_read("/proc/2/comm", 100, NULL, NULL);

  if (g_strcmp0(name, "kthreadd\n") != 0) {
    g_test_skip("pid 2 is not the kernel's here (a container)");
    return;
  }
  g_assert_null(dr_proc_cmdline(2, &error));
  assert_error(&error, DR_ERROR_INVALID, "has no command line");
}

static void
test_deleted_cwd(void)
{
  g_autoptr(GError) error = NULL;
  char *dir = tmp_new();
  pid_t pid = start((const char *const[]){ "/bin/sleep", "1000", NULL }, dir);

  tmp_free(dir);
  g_assert_null(dr_proc_cwd(pid, &error));
  assert_error(&error, DR_ERROR_NOT_FOUND, "does not exist any more");
  stop(pid);
}

static DrProcFd *
find_number(GPtrArray *fds, int number)
{
  for (guint i = 0; i < fds->len; i++) {
    DrProcFd *fd = g_ptr_array_index(fds, i);

    if (fd->fd == number)
      return fd;
  }
  return NULL;
}

static void
test_many_fds(void)
{
  struct rlimit before, more;
  g_autoptr(GPtrArray) fds = NULL;
  g_autoptr(GError) error = NULL;
  gint64 begin;
  dr_autofd int memfd = memfd_create("many", MFD_CLOEXEC);
  int last;

  getrlimit(RLIMIT_NOFILE, &before);
  more = before;
  more.rlim_cur = last = MIN(before.rlim_max, 30000);
  g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &more), ==, 0);
  for (int i = 1000; i < last; i++)
    g_assert_cmpint(fcntl(memfd, F_DUPFD_CLOEXEC, 1000), ==, i);
  begin = g_get_monotonic_time();
  fds = dr_proc_fds(getpid(), &error);
  g_test_message("%u descriptors read in %d us", fds->len, (int)(g_get_monotonic_time() - begin));
  g_assert_no_error(error);
  for (int i = 1000; i < last; i++) {
    const DrProcFd *fd = g_ptr_array_index(fds, fds->len - last + i);

    g_assert_cmpint(fd->fd, ==, i);
    g_assert_cmpstr(fd->link, ==, "/memfd:many (deleted)");
    close(i);
  }
  setrlimit(RLIMIT_NOFILE, &before);
}

static void
test_get_fd(void)
{
  g_autoptr(GError) error = NULL;
  DrProcId id;
  int sockets[2];
  char text[2] = "";
  dr_autofd int got = -1;

  g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), ==, 0);
  g_assert_true(dr_proc_identify(getpid(), &id, NULL));
  got = dr_proc_get_fd(&id, sockets[0], &error);
  g_assert_no_error(error);
  g_assert_cmpint(write(got, "x", 1), ==, 1);
  g_assert_cmpint(read(sockets[1], text, 1), ==, 1);
  g_assert_cmpint(fcntl(got, F_GETFD), ==, FD_CLOEXEC);
  close(sockets[0]);
  close(sockets[1]);
  g_assert_cmpint(dr_proc_get_fd(&id, 1000000, &error), ==, -1);
  assert_error(&error, DR_ERROR_NOT_FOUND, "no descriptor 1000000");
}

static int
listen_on(const struct sockaddr *address, socklen_t len)
{
  int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (fd < 0 || bind(fd, address, len) < 0 || listen(fd, 1) < 0) {
    close(fd);
    return -1;
  }
  return fd;
}

static guint
port_of(int fd)
{
  struct sockaddr_in6 address;
  socklen_t len = sizeof address;

  g_assert_cmpint(getsockname(fd, (struct sockaddr *)&address, &len), ==, 0);
  return ntohs(address.sin6_port); /* at the same place in sockaddr_in */
}

static void
check_listener(const struct sockaddr *address, socklen_t len)
{
  g_autoptr(GError) error = NULL;
  DrProcId id;
  dr_autofd int fd = listen_on(address, len);
  dr_autofd int got = -1;
  guint port;

  if (fd < 0) {
    g_test_skip("no such address family here");
    return;
  }
  port = port_of(fd);
  g_assert_true(dr_proc_identify(getpid(), &id, NULL));
  got = dr_proc_get_tcp_listener(&id, port, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(port_of(got), ==, port);
  close(fd);
  close(got);
  fd = got = -1;
  g_assert_cmpint(dr_proc_get_tcp_listener(&id, port, &error), ==, -1);
  assert_error(&error, DR_ERROR_NOT_FOUND, "does not listen on TCP port");
}

static void
test_tcp_listener(void)
{
  struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
  struct sockaddr_in6 v6 = { .sin6_family = AF_INET6 };

  check_listener((struct sockaddr *)&v4, sizeof v4);
  check_listener((struct sockaddr *)&v6, sizeof v6);
}

static void
test_unix_listener(void)
{
  auto_tmp char *dir = tmp_new();
  g_autofree char *path = g_build_filename(dir, "with blank", NULL);
  g_autofree char *name = g_strdup_printf("@drover-test-%d", getpid());
  struct sockaddr_un file = { .sun_family = AF_UNIX }, abstract = { .sun_family = AF_UNIX };
  g_autoptr(GError) error = NULL;
  DrProcId id;

  strcpy(file.sun_path, path);
  strcpy(abstract.sun_path + 1, name + 1);
  dr_autofd int first = listen_on((struct sockaddr *)&file, sizeof file);
  dr_autofd int second =
      listen_on((struct sockaddr *)&abstract, offsetof(struct sockaddr_un, sun_path) + strlen(name));
  g_assert_true(dr_proc_identify(getpid(), &id, NULL));
  dr_autofd int got = dr_proc_get_unix_listener(&id, path, &error);
  g_assert_no_error(error);
  dr_autofd int got2 = dr_proc_get_unix_listener(&id, name, &error);
  g_assert_no_error(error);
  g_assert_true(first >= 0 && second >= 0 && got >= 0 && got2 >= 0);
  g_assert_cmpint(dr_proc_get_unix_listener(&id, "/nowhere", &error), ==, -1);
  assert_error(&error, DR_ERROR_NOT_FOUND, "does not listen on socket");
}

static void
test_tap_name(void)
{
  struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };
  dr_autofd int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  dr_autofd int tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  g_autoptr(GPtrArray) fds = NULL;

  if (tap < 0 || unshare(CLONE_NEWNET) < 0) {
    g_test_skip("no /dev/net/tun or no right to make a network namespace");
    return;
  }
  /* The namespace is that of the open(2). */
  close(tap);
  tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  strcpy(request.ifr_name, "drtest%d");
  g_assert_cmpint(ioctl(tap, TUNSETIFF, &request), ==, 0);
  fds = dr_proc_fds(getpid(), NULL);
  g_assert_cmpstr(find_number(fds, tap)->tap_ifname, ==, request.ifr_name);
  g_assert_null(find_number(fds, home)->tap_ifname);
  g_assert_cmpint(setns(home, CLONE_NEWNET), ==, 0);
}

static void
test_memory(void)
{
  gsize size = 64 * 1024 * 1024;
  guint64 before = dr_proc_pss(getpid());
  char *memory = g_malloc(size);

  memset(memory, 1, size);
  g_assert_cmpuint(dr_proc_pss(getpid()), >=, before + size * 9 / 10);
  g_assert_cmpuint(dr_host_memory_available(), >, size);
  g_assert_cmpuint(dr_proc_pss(G_MAXINT), ==, 0);
  g_free(memory);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/qemu/proc/identity", test_identity);
  g_test_add_func("/qemu/proc/not-pids", test_not_pids);
  g_test_add_func("/qemu/proc/odd-name", test_odd_name);
  g_test_add_func("/qemu/proc/words", test_words);
  g_test_add_func("/qemu/proc/large-cmdline", test_large_cmdline);
  g_test_add_func("/qemu/proc/kernel-thread", test_kernel_thread);
  g_test_add_func("/qemu/proc/deleted-cwd", test_deleted_cwd);
  g_test_add_func("/qemu/proc/many-fds", test_many_fds);
  g_test_add_func("/qemu/proc/get-fd", test_get_fd);
  g_test_add_func("/qemu/proc/tcp-listener", test_tcp_listener);
  g_test_add_func("/qemu/proc/unix-listener", test_unix_listener);
  g_test_add_func("/qemu/proc/tap-name", test_tap_name);
  g_test_add_func("/qemu/proc/memory", test_memory);
  return g_test_run();
}
