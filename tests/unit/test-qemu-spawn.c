/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Starting a process through the keeper, and knowing how it ended. */
#include "test-qemu-util.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

typedef struct {
  char *dir;
  char *log;
  char *exit_path;
  DrSpawn spawn;
} Fixture;

static char *no_env[] = { (char *)"PATH=/usr/bin:/bin", (char *)"MARK=1", NULL };

static void
set_up(Fixture *f, gconstpointer data)
{
  f->dir = tmp_new();
  f->log = g_build_filename(f->dir, "log", NULL);
  f->exit_path = g_build_filename(f->dir, "exit.json", NULL);
  f->spawn = (DrSpawn){ .envp = no_env, .cwd = f->dir, .log_path = f->log, .exit_path = f->exit_path };
}

/* How many processes are keepers of this fixture. */
static guint
count_keepers(const char *exit_path, pid_t *ret_pid)
{
  g_autoptr(GDir) proc = g_dir_open("/proc", 0, NULL);
  const char *name;
  guint n = 0;

  while ((name = g_dir_read_name(proc))) {
    pid_t pid = atoi(name);
    g_auto(GStrv) words = pid > 0 ? dr_proc_cmdline(pid, NULL) : NULL;

    if (words && g_str_equal(words[0], "drover-keeper") && g_strcmp0(words[1], exit_path) == 0) {
      n++;
      if (ret_pid)
        *ret_pid = pid;
    }
  }
  return n;
}

static void
tear_down(Fixture *f, gconstpointer data)
{
  wait_until(count_keepers(f->exit_path, NULL) == 0);
  tmp_free(f->dir);
  g_free(f->log);
  g_free(f->exit_path);
}

static DrProcId
start(Fixture *f, char **argv)
{
  g_autoptr(GError) error = NULL;
  DrProcId id = { 0 };

  f->spawn.argv = argv;
  g_assert_true(dr_spawn(&f->spawn, &id, &error));
  g_assert_no_error(error);
  return id;
}

static DrProcId
start_shell(Fixture *f, const char *script)
{
  return start(f, (char *[]){ (char *)"sh", (char *)"-c", (char *)script, NULL });
}

static char *
wait_exit(Fixture *f, const DrProcId *id)
{
  char *status = NULL;

  wait_until(dr_spawn_read_exit(f->exit_path, id, &status, NULL));
  return status;
}

static void
check_exit(Fixture *f, const char *script, const char *expected)
{
  DrProcId id = start_shell(f, script);
  g_autofree char *status = wait_exit(f, &id);

  g_assert_cmpstr(status, ==, expected);
}

static void
test_exit_status(Fixture *f, gconstpointer data)
{
  check_exit(f, "exit 0", "exited with status 0");
  check_exit(f, "exit 3", "exited with status 3");
  check_exit(f, "ulimit -c 0; kill -SEGV $$", "was killed by signal 11 (Segmentation fault)");
}

static void
test_kill(Fixture *f, gconstpointer data)
{
  DrProcId id = start_shell(f, "exec sleep 1000");
  g_autoptr(GError) error = NULL;
  g_autofree char *status = NULL;

  g_assert_false(dr_spawn_read_exit(f->exit_path, &id, &status, &error));
  assert_error(&error, DR_ERROR_NOT_FOUND, "no exit status");
  g_assert_true(dr_proc_alive(&id));
  g_assert_true(dr_proc_kill(&id, WAIT_MS, &error));
  status = wait_exit(f, &id);
  g_assert_cmpstr(status, ==, "was killed by signal 9 (Killed)");
}

/* The file of an earlier process with the same pid, or of any other, is not taken for this one's. */
static void
test_exit_of_another(Fixture *f, gconstpointer data)
{
  DrProcId id = start_shell(f, "exit 0"), other = id;
  g_autofree char *status = wait_exit(f, &id);
  g_autoptr(GError) error = NULL;

  other.start_time++;
  g_assert_false(dr_spawn_read_exit(f->exit_path, &other, &status, &error));
  assert_error(&error, DR_ERROR_NOT_FOUND, "of an earlier one");
  other = id;
  other.pid++;
  g_assert_false(dr_spawn_read_exit(f->exit_path, &other, &status, &error));
  assert_error(&error, DR_ERROR_NOT_FOUND, "of an earlier one");
  g_file_set_contents(f->exit_path, "rubbish", -1, NULL);
  g_assert_false(dr_spawn_read_exit(f->exit_path, &id, &status, &error));
  assert_error(&error, DR_ERROR_INVALID, "");
}

static void
test_log(Fixture *f, gconstpointer data)
{
  DrProcId id;
  g_autofree char *tail = NULL, *cut = NULL, *from = NULL, *none = NULL, *first = NULL;

  g_file_set_contents(f->log, "before\n", -1, NULL);
  id = start_shell(f, "echo out; echo err >&2; printf '\\377 %s %s\\n' \"$MARK\" \"$(pwd)\"; cat");
  g_free(wait_exit(f, &id)); /* cat ended: stdin is empty */
  first = g_strdup_printf("before\nout\nerr\n\xef\xbf\xbd 1 %s", f->dir);
  tail = dr_log_tail(f->log, 0, 4096);
  g_assert_cmpstr(tail, ==, first);
  from = dr_log_tail(f->log, strlen("before\n"), 4096);
  g_assert_cmpstr(from, ==, first + strlen("before\n"));
  cut = dr_log_tail(f->log, 0, strlen(f->dir) + 7);
  g_assert_cmpstr(cut, ==, strstr(first, "\xef\xbf\xbd"));
  none = dr_log_tail("/nonexistent", 0, 100);
  g_assert_cmpstr(none, ==, "");
}

static void
check_refused(Fixture *f, const char *program, DrErrorCode code, const char *words)
{
  g_autoptr(GError) error = NULL;
  DrProcId id;
  char *argv[] = { (char *)program, NULL };

  f->spawn.argv = argv;
  g_assert_false(dr_spawn(&f->spawn, &id, &error));
  g_assert_nonnull(dr_error_get_remedy(error));
  assert_error(&error, code, words);
  wait_until(count_keepers(f->exit_path, NULL) == 0);
  g_assert_false(g_file_test(f->exit_path, G_FILE_TEST_EXISTS));
}

static void
test_refusals(Fixture *f, gconstpointer data)
{
  g_autofree char *text = tmp_file(f->dir, "text", "hello\n", 0644);
  g_autofree char *rubbish = tmp_file(f->dir, "rubbish", "hello\n", 0755);
  g_autofree char *bad = tmp_file(f->dir, "bad", "#!/no/such/shell\n", 0755);

  check_refused(f, "/no/such/qemu", DR_ERROR_NOT_FOUND, "there is no such file");
  check_refused(f, "no-such-qemu", DR_ERROR_NOT_FOUND, "in no directory of PATH");
  check_refused(f, text, DR_ERROR_INVALID, "Permission denied");
  check_refused(f, "./text", DR_ERROR_INVALID, "Permission denied");
  check_refused(f, rubbish, DR_ERROR_INVALID, "neither a program for this machine nor a script");
  check_refused(f, bad, DR_ERROR_INVALID, "interpreter or dynamic loader is missing");
  check_refused(f, f->dir, DR_ERROR_INVALID, "is a directory");
  f->spawn.cwd = "/no/such/dir";
  check_refused(f, "/bin/true", DR_ERROR_NOT_FOUND, "in directory '/no/such/dir'");
}

static void
test_bad_requests(Fixture *f, gconstpointer data)
{
  g_autoptr(GError) error = NULL;
  DrProcId id;
  int fds[] = { 0, 0 }, numbers[] = { 7, 7 };

  f->spawn.argv = (char *[]){ NULL };
  g_assert_false(dr_spawn(&f->spawn, &id, &error));
  assert_error(&error, DR_ERROR_INVALID, "command line is empty");
  f->spawn.argv = (char *[]){ (char *)"/bin/true", NULL };
  f->spawn.log_path = "/no/such/dir/log";
  g_assert_false(dr_spawn(&f->spawn, &id, &error));
  assert_error(&error, DR_ERROR_IO, "cannot open log file");
  f->spawn.log_path = f->log;
  f->spawn.fds = fds;
  f->spawn.numbers = numbers;
  f->spawn.n_fds = 2;
  g_assert_false(dr_spawn(&f->spawn, &id, &error));
  assert_error(&error, DR_ERROR_INTERNAL, "two descriptors for number 7");
  numbers[0] = 2;
  g_assert_false(dr_spawn(&f->spawn, &id, &error));
  assert_error(&error, DR_ERROR_INTERNAL, "as number 2");
  numbers[0] = G_MAXINT - 1;
  g_assert_false(dr_spawn(&f->spawn, &id, &error));
  assert_error(&error, DR_ERROR_IO, "cannot hand 2 descriptors");
}

static guint64
inode_of(int fd)
{
  struct stat status;

  g_assert_cmpint(fstat(fd, &status), ==, 0);
  return status.st_ino;
}

static gboolean
has_fds(const DrProcId *id, guint n, GPtrArray **ret_fds)
{
  g_clear_pointer(ret_fds, g_ptr_array_unref);
  *ret_fds = dr_proc_fds(id->pid, NULL);
  return *ret_fds && (*ret_fds)->len == n;
}

/* What the process has open must be 0 to 2 and each of ours under its number, and nothing else (but for the moments
 * when its dynamic loader has a library open). */
static void
check_fds(const DrProcId *id, const int *fds, const int *numbers, guint n)
{
  g_autoptr(GPtrArray) got = NULL;

  wait_until(has_fds(id, 3 + n, &got));
  for (guint i = 0; i < n; i++) {
    gboolean found = FALSE;

    for (guint j = 0; j < got->len; j++) {
      const DrProcFd *fd = g_ptr_array_index(got, j);

      found |= fd->fd == numbers[i] && fd->inode == inode_of(fds[i]);
    }
    g_assert_true(found);
  }
}

/* Our numbers, the keeper's (3 to 4, 5 and following) and QEMU's overlap in every way here. */
static void
test_fds(Fixture *f, gconstpointer data)
{
  static const int sets[][6] = { { 3, 4, 5, 6, 7, 8 },       { 8, 7, 6, 5, 4, 3 },  { 5, 3, 4, 10, 9, 11 },
                                 { 900, 3, 901, 5, 600, 4 }, { 6, 5, 8, 7, 10, 9 }, { 11, 12, 13, 14, 15, 3 },
                                 { 1100, 1099, 5, 6, 7, 8 } };
  int fds[6];

  for (guint i = 0; i < 6; i++)
    fds[i] = memfd_create("fd", MFD_CLOEXEC);
  f->spawn.fds = fds;
  f->spawn.n_fds = 6;
  for (guint i = 0; i < G_N_ELEMENTS(sets); i++) {
    DrProcId id;

    f->spawn.numbers = sets[i];
    id = start(f, (char *[]){ (char *)"sleep", (char *)"1000", NULL });
    check_fds(&id, fds, sets[i], 6);
    g_assert_true(dr_proc_kill(&id, WAIT_MS, NULL));
    g_free(wait_exit(f, &id));
  }
  for (guint i = 0; i < 6; i++)
    close(fds[i]);
}

static char *
proc_field(pid_t pid, const char *field)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/status", pid);
  g_autofree char *text = dr_file_read(path, 65536, NULL, NULL);
  g_autofree char *key = g_strdup_printf("\n%s:\t", field);
  const char *at = strstr(text, key) + strlen(key);

  return g_strndup(at, strcspn(at, "\n"));
}

static void
test_isolation(Fixture *f, gconstpointer data)
{
  int fds[] = { memfd_create("ram", MFD_CLOEXEC) }, numbers[] = { 17 };
  g_autofree char *ignored = NULL, *blocked = NULL, *parent = NULL, *keeper_cwd = NULL, *status = NULL;
  g_autoptr(GPtrArray) keeper_fds = NULL;
  pid_t keeper = 0;
  sigset_t set;
  DrProcId id;

  /* Ours must not become its own. */
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &set, NULL);
  signal(SIGUSR2, SIG_IGN);
  f->spawn.fds = fds;
  f->spawn.numbers = numbers;
  f->spawn.n_fds = 1;
  id = start_shell(f, "exec sleep 1000");
  pthread_sigmask(SIG_UNBLOCK, &set, NULL);
  ignored = proc_field(id.pid, "SigIgn");
  blocked = proc_field(id.pid, "SigBlk");
  g_assert_cmpstr(ignored, ==, "0000000000000000");
  g_assert_cmpstr(blocked, ==, "0000000000000000");

  g_assert_cmpuint(count_keepers(f->exit_path, &keeper), ==, 1);
  parent = proc_field(id.pid, "PPid");
  g_assert_cmpint(atoi(parent), ==, keeper);
  g_assert_cmpint(getsid(id.pid), ==, id.pid);
  g_assert_cmpint(getsid(keeper), !=, getsid(0));
  g_assert_cmpint(getsid(keeper), !=, id.pid);
  g_assert_cmpint(waitpid(-1, NULL, WNOHANG), ==, -1); /* we have no child */

  keeper_fds = dr_proc_fds(keeper, NULL);
  g_assert_cmpuint(keeper_fds->len, ==, 3);
  for (guint i = 0; i < 3; i++)
    g_assert_cmpstr(((DrProcFd *)g_ptr_array_index(keeper_fds, i))->link, ==, "/dev/null");
  keeper_cwd = dr_proc_cwd(keeper, NULL);
  g_assert_cmpstr(keeper_cwd, ==, "/");
  g_test_message("keeper: Pss %" G_GUINT64_FORMAT " KiB", dr_proc_pss(keeper) / 1024);

  kill(keeper, SIGTERM);
  kill(keeper, SIGINT);
  kill(keeper, SIGHUP);
  g_assert_true(dr_proc_kill(&id, WAIT_MS, NULL));
  status = wait_exit(f, &id);
  g_assert_cmpstr(status, ==, "was killed by signal 9 (Killed)");
  close(fds[0]);
}

/* droverd is killed: QEMU runs on, and how it ends is written down all the same. */
static void
test_survives_us(Fixture *f, gconstpointer data)
{
  DrProcId *id = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  g_autofree char *status = NULL;
  pid_t daemon = fork();

  if (daemon == 0) {
    f->spawn.argv = (char *[]){ (char *)"sleep", (char *)"1000", NULL };
    dr_spawn(&f->spawn, id, NULL);
    raise(SIGKILL);
  }
  waitpid(daemon, NULL, 0);
  g_assert_true(dr_proc_alive(id));
  g_assert_true(dr_proc_kill(id, WAIT_MS, NULL));
  status = wait_exit(f, id);
  g_assert_cmpstr(status, ==, "was killed by signal 9 (Killed)");
  munmap(id, 4096);
}

static void
restore_env(const char *name, const char *value)
{
  if (value)
    g_setenv(name, value, TRUE);
  else
    g_unsetenv(name);
}

/* The way to the keeper as dr_spawn() finds it for this test. */
static char *
real_keeper(void)
{
  g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
  g_autofree char *dir = g_path_get_dirname(self);
  g_autofree char *near = g_build_filename(dir, "drover-keeper", NULL);

  if (g_getenv("DROVER_KEEPER"))
    return g_strdup(g_getenv("DROVER_KEEPER"));
  return access(near, X_OK) == 0 ? g_steal_pointer(&near)
                                 : g_build_filename(dir, "../../src/keeper/drover-keeper", NULL);
}

/* This program in the keeper's place: gives the real one a pipe that nobody reads. */
static int
play_deaf(const char *exit_path)
{
  g_autofree char *dir = g_path_get_dirname(exit_path);
  g_autofree char *keeper = g_build_filename(dir, "keeper", NULL);
  int ends[2];

  if (pipe(ends) < 0 || dup2(ends[1], 4) < 0)
    return 1;
  close(ends[0]);
  close(ends[1]);
  execl(keeper, "drover-keeper", exit_path, NULL);
  return 1;
}

/* droverd died between its order and the keeper's report: nobody would know of this QEMU, so it must not stay. */
static void
test_nobody_listens(Fixture *f, gconstpointer data)
{
  g_autofree char *before = g_strdup(g_getenv("DROVER_KEEPER"));
  g_autofree char *keeper = real_keeper();
  g_autofree char *link = g_build_filename(f->dir, "keeper", NULL);
  g_autofree char *pid_path = g_build_filename(f->dir, "pid", NULL);
  g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
  g_autofree char *pid_text = NULL;
  g_autoptr(GError) error = NULL;
  DrProcId id;

  g_assert_cmpint(symlink(keeper, link), ==, 0);
  g_setenv("DROVER_KEEPER", self, TRUE);
  f->spawn.argv = (char *[]){ (char *)"sh", (char *)"-c", (char *)"echo $$ >pid; exec sleep 1000", NULL };
  g_assert_false(dr_spawn(&f->spawn, &id, &error));
  assert_error(&error, DR_ERROR_IO, "the keeper ended without a word");
  restore_env("DROVER_KEEPER", before);
  wait_until(count_keepers(f->exit_path, NULL) == 0);
  /* Killed, perhaps before it came to write its number. */
  if (g_file_get_contents(pid_path, &pid_text, NULL, NULL) && atoi(pid_text) > 0)
    g_assert_false(dr_proc_identify(atoi(pid_text), &id, NULL));
  g_assert_false(g_file_test(f->exit_path, G_FILE_TEST_EXISTS));
}

static void
test_no_keeper(Fixture *f, gconstpointer data)
{
  g_autofree char *before = g_strdup(g_getenv("DROVER_KEEPER"));
  g_autoptr(GError) error = NULL;
  DrProcId id;

  g_setenv("DROVER_KEEPER", "/no/keeper", TRUE);
  f->spawn.argv = (char *[]){ (char *)"/bin/true", NULL };
  g_assert_false(dr_spawn(&f->spawn, &id, &error));
  assert_error(&error, DR_ERROR_IO, "cannot start '/no/keeper'");
  restore_env("DROVER_KEEPER", before);
}

static gpointer
spawn_many(gpointer data)
{
  for (guint i = 0; i < 10; i++) {
    Fixture f;
    int fds[] = { memfd_create("a", MFD_CLOEXEC), memfd_create("b", MFD_CLOEXEC) }, numbers[] = { 4, 3 };
    DrProcId id;

    set_up(&f, NULL);
    f.spawn.fds = fds;
    f.spawn.numbers = numbers;
    f.spawn.n_fds = 2;
    id = start(&f, (char *[]){ (char *)"sleep", (char *)"1000", NULL });
    check_fds(&id, fds, numbers, 2);
    close(fds[0]);
    close(fds[1]);
    g_assert_true(dr_proc_kill(&id, WAIT_MS, NULL));
    g_free(wait_exit(&f, &id));
    tear_down(&f, NULL);
  }
  return NULL;
}

static void
test_threads(void)
{
  GThread *threads[8];

  for (guint i = 0; i < 8; i++)
    threads[i] = g_thread_new("spawn", spawn_many, NULL);
  for (guint i = 0; i < 8; i++)
    g_thread_join(threads[i]);
}

static int
compare_times(gconstpointer a, gconstpointer b)
{
  return (int)(*(const gint64 *)a - *(const gint64 *)b);
}

static void
test_time(Fixture *f, gconstpointer data)
{
  gint64 took[21];

  for (guint i = 0; i < 21; i++) {
    gint64 begin = g_get_monotonic_time();
    DrProcId id = start(f, (char *[]){ (char *)"/bin/true", NULL });

    took[i] = g_get_monotonic_time() - begin;
    g_free(wait_exit(f, &id));
  }
  qsort(took, 21, sizeof took[0], compare_times);
  g_test_message("dr_spawn: median %d us, worst of 21 %d us", (int)took[10], (int)took[20]);
}

int
main(int argc, char **argv)
{
  if (g_str_equal(argv[0], "drover-keeper"))
    return play_deaf(argv[1]);
  g_test_init(&argc, &argv, NULL);
#define ADD(name, function) g_test_add("/qemu/spawn/" name, Fixture, NULL, set_up, function, tear_down)
  ADD("exit-status", test_exit_status);
  ADD("kill", test_kill);
  ADD("exit-of-another", test_exit_of_another);
  ADD("log", test_log);
  ADD("refusals", test_refusals);
  ADD("bad-requests", test_bad_requests);
  ADD("fds", test_fds);
  ADD("isolation", test_isolation);
  ADD("survives-us", test_survives_us);
  ADD("nobody-listens", test_nobody_listens);
  ADD("no-keeper", test_no_keeper);
  ADD("time", test_time);
  g_test_add_func("/qemu/spawn/threads", test_threads);
  return g_test_run();
}
