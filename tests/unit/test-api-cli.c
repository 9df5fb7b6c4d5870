/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The real `drover` of this build (or where the environment's DROVER says) against the real API over the
 * fake service. */
#include "base/deadline.h"
#include "test-api-util.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define MB (1024 * 1024)

typedef struct {
  int code;
  char *out, *err;
} Result;

static void
result_clear(Result *result)
{
  g_free(result->out);
  g_free(result->err);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Result, result_clear)

/* As the build directory has the two. (transfer full) */
static char *
find_drover(void)
{
  g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
  g_autofree char *dir = self ? g_path_get_dirname(self) : NULL;

  if (g_getenv("DROVER"))
    return g_strdup(g_getenv("DROVER"));
  return g_build_filename(dir ? dir : ".", "..", "..", "src", "cli", "drover", NULL);
}

static char *program;

static char **
environment(const Server *server)
{
  g_autofree char *connect = g_strconcat("unix:", server->path, NULL);
  char **env = g_environ_setenv(g_get_environ(), "DROVER_CONNECT", connect, TRUE);

  env = g_environ_setenv(env, "NOT_UTF8", "\xff", TRUE);
  return g_environ_setenv(env, "TERM", "xterm", TRUE);
}

/* `words` as a shell would split them. timeout(1) is the deadline. */
static Result
drover(const Server *server, const char *words)
{
  g_autofree char *line = g_strconcat("timeout 20 ", program, " ", words, NULL);
  g_auto(GStrv) argv = NULL;
  g_auto(GStrv) env = environment(server);
  g_autoptr(GError) error = NULL;
  Result result = { 0 };
  int status;

  g_assert_true(g_shell_parse_argv(line, NULL, &argv, NULL));
  g_spawn_sync("/", argv, env, G_SPAWN_SEARCH_PATH, NULL, NULL, &result.out, &result.err, &status, &error);
  g_assert_no_error(error);
  g_assert_true(WIFEXITED(status));
  result.code = WEXITSTATUS(status);
  return result;
}

/* --- Exit codes and outputs --- */

static const struct {
  const char *words;
  int code;
  const char *out, *err; /* what must be in there */
} cases[] = {
  { "--version", 0, "drover ", "" },
  { "--help", 0, "upgrade   move running VMs", "" },
  { "help", 0, "Verbs:", "" },
  { "help upgrade", 0, "--parallel=N", "" },
  { "upgrade --help", 0, "--parallel=N", "" },
  { "help frob", 2, "", "there is no verb 'frob'" },
  { "", 2, "", "a verb is missing" },
  { "frob", 2, "", "drover: there is no verb 'frob'\n  remedy: drover --help" },
  { "list --frob", 2, "", "Unknown option --frob" },
  { "list extra", 2, "", "unexpected argument 'extra'" },
  { "list -o pod", 2, "", "there is no column 'pod'\n  remedy: -o takes name, wide, json" },
  { "list -o name,", 2, "", "there is no column ''" },
  { "list -o name --json", 2, "", "exclude each other" },
  { "list -o pid", 0, "PID\n4711\n", "" },
  { "list -o state,name --no-headers", 0, "running\tweb1\n", "" },
  { "list -o wide", 0, "UUID", "" },
  { "list -o json", 0, "\"name\" : \"web1\"", "" },
  { "show", 2, "", "usage: drover show NAME" },
  { "list", 0, "web1  running  4711", "" },
  { "list -o name", 0, "web1\nweb2\n", "" },
  { "list --json", 0, "\"name\" : \"web1\"", "" },
  { "--json list", 0, "\"name\" : \"web1\"", "" },
  { "-v list", 0, "web1", "GET /v1/vms: done" },
  { "--connect tcp:x list", 2, "", "it is neither 'unix:PATH' nor 'tls:" },
  { "--connect tls://h --pki /nonexistent list", 1, "", "'/nonexistent/ca-cert.pem' is missing" },
  { "list --connect unix:/nonexistent/x", 1, "", "it is not running\n  remedy: start it" },
  { "show web1", 0, "state          running", "" },
  { "show nosuch", 1, "", "drover: there is no VM 'nosuch'" },
  { "show 'a b'", 2, "", "no name of a VM" },
  { "show a/b", 2, "", "no name of a VM" },
  { "show ''", 2, "", "a name is empty" },
  { "show attention", 3, "", "  remedy: look at both processes" },
  { "--json show nosuch", 1, "\"code\" : \"not-found\"", "drover: there is no VM 'nosuch'" },
  { "run web9 -- qemu-system-x86_64 -m 1G", 0, "web9: started, running, QEMU 7.2.22, pid 4711, shared RAM",
    "NOT_UTF8" },
  { "run taken -- q", 1, "", "the name is taken\n  remedy: choose another name" },
  { "run web9", 2, "", "put it behind --" },
  { "run web9 --", 2, "", "put it behind --" },
  { "run web9 --memory big -- q", 2, "", "'shared' or 'private'" },
  { "run web9 --env A -- q", 2, "", "NAME=VALUE" },
  { "adopt web9 --pid 1", 0, "web9: adopted, running", "" },
  { "adopt web9", 2, "", "with --pid N" },
  { "adopt web9 --pid 1 --qmp x", 2, "", "with --pid N" },
  { "adopt web9 --pid nix", 2, "", "'nix' is no pid" },
  { "pause web1 web2", 0, "web1: paused\nweb2: paused\n", "" },
  { "pause web1 nosuch web2", 1, "web1: paused\nweb2: paused\n", "nosuch" },
  { "resume web1 --json", 0, "{\n  \"name\" : \"web1\"", "" },
  { "resume web1 web2 --json", 0, "[\n", "" },
  { "stop web1", 0, "web1: stopped", "" },
  { "stop web1 --timeout 0", 2, "", "1 to 86400" },
  { "forget web1", 1, "", "VM 'web1' runs" },
  { "forget web1 --force", 0, "web1: forgotten", "" },
  { "qmp web1 query-status", 0, "{\"return\":{\"status\":\"running\"}}\n", "" },
  { "qmp web1 query-status --pretty", 0, "\"status\" : \"running\"", "" },
  { "qmp web1 '{\"execute\":\"query-status\"}'", 0, "{\"return\":", "" },
  { "qmp web1 quit", 1, "", "  remedy: drover stop web1" },
  { "qmp web1 '{\"execute\"'", 2, "", "not valid JSON" },
  { "qmp web1 stop '[]'", 2, "", "arguments of 'stop'" },
  { "upgrade", 2, "", "name the VMs, or say --all" },
  { "upgrade web1 --all", 2, "", "name the VMs, or say --all" },
  { "upgrade web1 --memory x", 2, "", "auto, shared, copy or postcopy" },
  { "upgrade web1 --parallel 0", 2, "", "1 to 64" },
  { "upgrade web1 --qemu no-such-program", 1, "", "there is no program 'no-such-program' in PATH" },
  { "upgrade nosuch", 1, "", "there is no VM 'nosuch'" },
  { "upgrade web1", 0,
    "web1: upgraded 7.2.22 -> 10.0.11, paused 2.9 ms, 0.2 MB moved (shared RAM), took 212 ms\n",
    "web1: warning: the clock may jump\n  remedy: run ntp\n" },
  { "upgrade bad", 1, "",
    "2 blockers\n  blocker: it has a vfio device\n    remedy: unplug it\n  blocker: the machine type is "
    "unknown\n    remedy: " },
  { "upgrade web1 att bad", 3, "web1: upgraded", "drover: att: attention: both may run\n  remedy: look\n" },
  { "upgrade --all --json", 0, "[\n  {\n    \"id\" : ", "" },
  { "upgrade web1 --json", 0, "{\n  \"id\" : ", "" },
  { "upgrade web1 --async", 0, "web1: job ", "" },
  { "upgrade web1 --check", 0, "web1: can be upgraded 7.2.22 -> 10.0.11 (shared RAM)", "" },
  { "upgrade web1 bad --check", 1, "bad: cannot be upgraded",
    "bad: blocker: it has a vfio device\n  remedy: unplug it" },
  { "upgrade bad --check --json", 1, "{\n  \"vm\" : \"bad\"", "" },
  { "upgrade --libvirt one two", 0,
    "libvirt's view of 2 domains is QEMU's\ntook 1300 ms; libvirtd.service was away for 700 ms\n", "" },
  { "upgrade --libvirt bad", 1, "", "drover: domain 'bad' was not upgraded and runs where it was" },
  { "upgrade --libvirt one --json", 0, "{\n  \"active\" : false", "" },
  { "upgrade --libvirt one --async", 0, "has begun", "" },
  { "upgrade --libvirt", 1, "", "no domain of libvirt's has been upgraded" },
  { "upgrade --libvirt bad --check", 1, "bad: cannot be upgraded", "" },
  { "upgrade --all --all-libvirt", 2, "", "one at a time" },
  { "upgrade one --all-libvirt", 2, "", "name the domains, or say --all-libvirt" },
  { "upgrade --all --emulator /q", 2, "", "--emulator is for domains of libvirt's" },
  { "upgrade web1 --uri qemu:///session", 2, "",
    "--uri is for domains of libvirt's, and 'web1' is a VM of drover" },
  { "upgrade --libvirt one --qemu /q --emulator /q", 2, "", "are the same" },
  { "adopt --libvirt one", 0,
    "one: can be upgraded 7.2.22 -> 10.0.11 (copies nothing)\nA domain stays libvirt's", "" },
  { "adopt --libvirt one bad --check", 1, "bad: cannot be upgraded", "" },
  { "adopt --libvirt", 2, "", "name the domains, or say --all" },
  { "adopt --libvirt one --pid 1", 2, "", "not for domains" },
  { "adopt web9 --check", 2, "", "go with --libvirt" },
  { "jobs", 0, "upgrade  bad", "" },
  { "job 1", 0, "job 1: upgrade of web1, succeeded", "" },
  { "job 999", 1, "", "there is no job '999'" },
  { "watch 1", 0, "web1: upgraded", "" },
  { "peer", 2, "", "is missing" },
  { "peer frob", 2, "", "there is no 'frob' in it" },
  { "peer add host9 192.0.2.9", 0, "host9: added, 192.0.2.9:7413\n", "" },
  { "peer add host9 [::1]:7000 --json", 0, "\"port\" : 7000", "" },
  { "peer add host9", 2, "", "HOST[:PORT] is missing" },
  { "peer add host9 h x", 2, "", "unexpected argument 'x'" },
  { "peer add a/b h", 2, "", "cannot be the name of a peer" },
  { "peer add host9 h:0", 2, "", "'0' is no port" },
  { "peer add taken h", 1, "", "there is a peer 'taken' already" },
  { "peer list", 0, "host3  2001:db8::7  7000  -", "" },
  { "peer list --json", 0, "\"host\" : \"192.0.2.7\"", "" },
  { "peer list --pin x", 2, "", "peer list takes no --pin" },
  { "peer list --pin=x", 2, "", "peer list takes no --pin" },
  { "peer remove host2", 0, "host2: removed\n", "" },
  { "peer remove nosuch", 1, "", "there is no peer called 'nosuch'" },
  { "peer remove ''", 2, "", "a name is empty" },
  { "peer test host2", 0, "host2: droverd 9.9 answers at [2001:db8::7]:7000\n", "" },
  { "peer test host2", 0, "311 MiB/s there, 305 MiB/s back", "" },
  { "peer test host2 --json", 0, "\"round_trip_ms\" : 0.25", "" },
  { "peer test nosuch", 1, "", "there is no peer called 'nosuch'" },
  { "watch 2", 1, "", "2 blockers" },
  { "watch 4", 3, "", "both may run" },
  { "watch 1 --json", 0, "{\"type\":\"job\",\"time_ms\":", "" },
  { "watch 999", 1, "", "there is no job '999'" },
  { "cancel 1", 1, "", "has ended already" },
  { "console nosuch", 1, "", "there is no VM 'nosuch'" },
  { "console web1 --escape ab", 2, "", "--escape" },
  { "console ends", 0, "bye\r\n", "" },
};

static void
test_words(void)
{
  g_autoptr(Server) server = server_start(NULL);

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_auto(Result) result = drover(server, cases[i].words);

    if (result.code != cases[i].code)
      g_error("drover %s: exit code %d instead of %d:\n%s%s", cases[i].words, result.code, cases[i].code,
              result.out, result.err);
    if (!strstr(result.out, cases[i].out) || !strstr(result.err, cases[i].err))
      g_error("drover %s:\n%s\n---\n%s", cases[i].words, result.out, result.err);
    g_assert_null(strchr(result.out, '\033'));
  }
}

/* What arrives at the service. */
static void
test_requests(void)
{
  static const struct {
    const char *words, *parts[6];
  } requests[] = {
    { "run web9 --memory private --hugetlb --env A=b=c -- qemu -m '1 G' --help",
      { "\"argv\":[\"qemu\",\"-m\",\"1 G\",\"--help\"]", "\"cwd\":\"/\"", "\"memory\":\"private\"",
        "\"hugetlb\":true", "\"A=b=c\"", "\"TERM=xterm\"" } },
    { "adopt web9 --qmp relative/q.sock", { "\"qmp\":\"/relative/q.sock\"" } },
    { "stop web1 --force --timeout 7", { "\"force\":true", "\"timeout\":7" } },
    { "upgrade web1 --qemu ./q -p 2 --async --memory copy",
      { "\"vms\":[\"web1\"]", "\"qemu\":\"/q\"", "\"memory\":\"copy\"", "\"parallel\":2" } },
    { "upgrade --all --qemu sh --async", { "\"all\":true", "/sh\"", "\"memory\":\"auto\"" } },
    { "upgrade --libvirt one --emulator ./q -p 2 --uri u --untested-libvirt",
      { "\"domains\":[\"one\"]", "\"emulator\":\"/q\"", "\"uri\":\"u\"", "\"untested\":true",
        "\"parallel\":2", "\"memory\":\"auto\"" } },
    { "upgrade --all-libvirt --qemu ./q", { "\"emulator\":\"/q\"" } },
    { "adopt --libvirt one --emulator ./q", { "\"domains\":[\"one\"]", "\"emulator\":\"/q\"" } },
    { "qmp web1 cont '{\"a\":[1]}'", { "{\"execute\":\"cont\",\"arguments\":{\"a\":[1]}}" } },
  };
  g_autoptr(Server) server = server_start(NULL);

  for (guint i = 0; i < G_N_ELEMENTS(requests); i++) {
    g_auto(Result) result = drover(server, requests[i].words);
    g_autofree char *request = fake_last_request(server->service);

    g_assert_cmpint(result.code, ==, 0);
    for (guint j = 0; j < G_N_ELEMENTS(requests[i].parts) && requests[i].parts[j]; j++)
      assert_contains(request, requests[i].parts[j]);
    g_assert_null(strstr(request, "DROVER_"));
  }
}

/* --- Processes that one talks to --- */

typedef struct {
  GPid pid;
  int fd; /* the pty's master */
} Terminal;

static Terminal
start_on_terminal(const Server *server, const char *words)
{
  g_autofree char *line = g_strconcat(program, " ", words, NULL);
  g_auto(GStrv) argv = NULL;
  g_auto(GStrv) env = environment(server);
  struct winsize size = { .ws_row = 24, .ws_col = 80 };
  Terminal terminal;

  g_assert_true(g_shell_parse_argv(line, NULL, &argv, NULL));
  terminal.pid = forkpty(&terminal.fd, NULL, NULL, &size);
  if (terminal.pid == 0) {
    execve(argv[0], argv, env);
    _exit(127);
  }
  g_assert_cmpint(terminal.pid, >, 0);
  return terminal;
}

/* Reads until `text` came; returns all that came. The deadline is a failure. */
static char *
expect(const Terminal *terminal, const char *text)
{
  DrDeadline deadline = dr_deadline_in(TIMEOUT_S * 1000);
  g_autoptr(GString) all = g_string_new(NULL);
  struct pollfd poll_fd = { .fd = terminal->fd, .events = POLLIN };

  while (!strstr(all->str, text)) {
    char buffer[4096];
    gssize n =
        poll(&poll_fd, 1, dr_deadline_left(deadline)) > 0 ? read(terminal->fd, buffer, sizeof buffer) : -1;

    if (n <= 0)
      g_error("'%s' did not come, but: %s", text, all->str);
    g_string_append_len(all, buffer, n);
  }
  return g_strdup(all->str);
}

static void
type(const Terminal *terminal, const char *text)
{
  g_assert_cmpint(write(terminal->fd, text, strlen(text)), ==, strlen(text));
}

static int
wait_for_end(GPid pid)
{
  DrDeadline deadline = dr_deadline_in(TIMEOUT_S * 1000);
  int status;

  while (waitpid(pid, &status, WNOHANG) == 0) {
    g_assert_false(dr_deadline_passed(deadline));
    g_usleep(1000);
  }
  return status;
}

static gboolean
is_raw(const Terminal *terminal)
{
  struct termios mode;

  g_assert_cmpint(tcgetattr(terminal->fd, &mode), ==, 0);
  return !(mode.c_lflag & ICANON) && !(mode.c_lflag & ECHO);
}

static void
test_console_typed(void)
{
  g_autoptr(Server) server = server_start(NULL);
  Terminal terminal = start_on_terminal(server, "console web1");
  g_autofree char *greeting = expect(&terminal, "leave with ^]");
  g_autofree char *echoed = NULL, *control = NULL;
  int status;

  while (!is_raw(&terminal))
    g_usleep(1000);
  type(&terminal, "hello\r");
  echoed = expect(&terminal, "hello\r");
  type(&terminal, "\x03\x1a"); /* Ctrl-C and Ctrl-Z are the guest's */
  control = expect(&terminal, "\x03\x1a");
  type(&terminal, "never seen by the guest\x1d");
  status = wait_for_end(terminal.pid);
  g_assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  g_assert_false(is_raw(&terminal));
  close(terminal.fd);
}

/* Whatever ends it, the terminal is as before. */
static void
test_console_signals(void)
{
  static const int signals[] = { SIGTERM, SIGHUP, SIGINT, SIGQUIT };
  g_autoptr(Server) server = server_start(NULL);

  for (guint i = 0; i < G_N_ELEMENTS(signals); i++) {
    Terminal terminal = start_on_terminal(server, i % 2 ? "console flood" : "console web1");
    g_autofree char *greeting = expect(&terminal, "leave with");
    int status;

    while (!is_raw(&terminal))
      g_usleep(1000);
    if (i % 2) /* until it is stuck in writing */
      g_usleep(200000);
    kill(terminal.pid, signals[i]);
    status = wait_for_end(terminal.pid);
    g_assert_true(WIFSIGNALED(status) && WTERMSIG(status) == signals[i]);
    g_assert_false(is_raw(&terminal));
    close(terminal.fd);
  }
}

static void
test_console_escape(void)
{
  g_autoptr(Server) server = server_start(NULL);
  Terminal terminal = start_on_terminal(server, "console web1 --escape ^a");
  g_autofree char *greeting = expect(&terminal, "leave with ^A");
  g_autofree char *echoed = NULL;
  int status;

  while (!is_raw(&terminal))
    g_usleep(1000);
  type(&terminal, "\x1d.");
  echoed = expect(&terminal, "\x1d.");
  type(&terminal, "\x01");
  status = wait_for_end(terminal.pid);
  g_assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  close(terminal.fd);
}

/* The VM ends beneath a terminal. */
static void
test_console_vm_ends(void)
{
  g_autoptr(Server) server = server_start(NULL);
  Terminal terminal = start_on_terminal(server, "console ends");
  g_autofree char *seen = expect(&terminal, "ends: the console has ended: the VM has ended");
  int status = wait_for_end(terminal.pid);

  assert_contains(seen, "bye");
  g_assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  g_assert_false(is_raw(&terminal));
  close(terminal.fd);
}

/* Pipes: a megabyte there and back, byte for byte, with an escape among it that is none. */
static void
test_console_pipes(void)
{
  g_autoptr(Server) server = server_start(NULL);
  const char *argv[] = { program, "console", "web1", NULL };
  g_auto(GStrv) env = environment(server);
  g_autofree guint8 *sent = g_malloc(MB), *got = g_malloc(MB);
  gsize at_sent = 0, at_got = 0;
  int in, out;
  GPid pid;

  for (guint i = 0; i < MB; i++)
    sent[i] = (guint8)(i * 7 + i / 256);
  g_assert_true(g_spawn_async_with_pipes(NULL, (char **)argv, env, G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL,
                                         &pid, &in, &out, NULL, NULL));
  g_assert_cmpint(fcntl(in, F_SETFL, O_NONBLOCK), ==, 0);
  while (at_got < MB) {
    struct pollfd poll_fds[] = { { .fd = at_sent < MB ? in : -1, .events = POLLOUT },
                                 { .fd = out, .events = POLLIN } };

    g_assert_cmpint(poll(poll_fds, 2, TIMEOUT_S * 1000), >, 0);
    if (poll_fds[0].revents) {
      gssize n = write(in, sent + at_sent, MB - at_sent);

      g_assert_cmpint(n, >, 0);
      at_sent += (gsize)n;
    }
    if (poll_fds[1].revents) {
      gssize n = read(out, got + at_got, MB - at_got);

      g_assert_cmpint(n, >, 0);
      at_got += (gsize)n;
    }
  }
  g_assert_cmpmem(sent, MB, got, MB);
  close(in); /* the end of input is not the end of the console */
  g_usleep(50000);
  g_assert_cmpint(waitpid(pid, NULL, WNOHANG), ==, 0);
  kill(pid, SIGTERM);
  g_assert_true(WIFSIGNALED(wait_for_end(pid)));
  close(out);
}

/* Live lines on a terminal; Ctrl-C leaves the job alone. */
static void
test_upgrade_live(void)
{
  g_autoptr(Server) server = server_start(NULL);
  Terminal terminal = start_on_terminal(server, "upgrade web1 hang");
  g_autofree char *seen = expect(&terminal, "hang: switchover");
  g_autofree char *done =
      strstr(seen, "web1: upgraded") ? g_strdup(seen) : expect(&terminal, "web1: upgraded");
  g_autofree char *detached = NULL, *answer = NULL;
  int status;

  assert_contains(seen, "\033[2A\033[J");
  type(&terminal, "\x03");
  detached = expect(&terminal, "detached: 2 jobs go on");
  status = wait_for_end(terminal.pid);
  g_assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 130);
  http_call(server, "GET", "/v1/jobs/2", NULL, &answer);
  assert_contains(answer, "\"running\"");
  close(terminal.fd);
}

static void
test_cancel(void)
{
  g_autoptr(Server) server = server_start(NULL);
  g_auto(Result) started = drover(server, "upgrade hang --async --json");
  Terminal terminal = start_on_terminal(server, "watch 1");
  g_autofree char *seen = expect(&terminal, "hang: ");
  g_autofree char *end = NULL, *state = NULL;
  int status;

  do { /* a job that is still queued is not cancelled by the fake */
    g_free(state);
    http_call(server, "GET", "/v1/jobs/1", NULL, &state);
  } while (strstr(state, "queued"));
  {
    g_auto(Result) cancelled = drover(server, "cancel 1");

    g_assert_cmpint(cancelled.code, ==, 0);
    assert_contains(cancelled.out, "drover watch 1");
  }
  end = expect(&terminal, "drover: hang: cancelled");
  status = wait_for_end(terminal.pid);
  g_assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
  close(terminal.fd);
}

/* No room for an event stream: droverd is asked instead. */
static void
test_without_stream(void)
{
  DrApiLimits limits = dr_api_limits;
  g_autoptr(Server) server = NULL;

  limits.streams = 0;
  server = server_start(&limits);
  {
    g_auto(Result) result = drover(server, "upgrade web1 web2");

    g_assert_cmpint(result.code, ==, 0);
    assert_contains(result.out, "web2: upgraded");
  }
}

/* A droverd that ends in the middle, and comes back: the follower goes on. */
static void
test_restart(void)
{
  g_autoptr(Server) server = server_start(NULL);
  Terminal terminal = start_on_terminal(server, "upgrade hang");
  g_autofree char *seen = expect(&terminal, "hang: switchover");
  g_autofree char *end = NULL;
  int status;

  server_close(server);
  g_usleep(300000); /* long enough for some vain tries */
  server_open(server);
  g_assert_cmpuint(http_call(server, "POST", "/v1/jobs/1/cancel", NULL, NULL), ==, 200);
  end = expect(&terminal, "hang: cancelled");
  status = wait_for_end(terminal.pid);
  g_assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
  close(terminal.fd);
}

static void
test_watch_all(void)
{
  g_autoptr(Server) server = server_start(NULL);
  Terminal terminal = start_on_terminal(server, "watch");
  g_autofree char *seen = NULL;
  DrDeadline deadline = dr_deadline_in(TIMEOUT_S * 1000);

  do { /* until the stream is there */
    g_assert_false(dr_deadline_passed(deadline));
    g_usleep(20000);
    dr_events_publish(server->events, dr_json("{'type': <'vm'>, 'time_ms': <%x>, 'vm': <{'name': <'web1'>, "
                                              "'state': <'paused'>}>}",
                                              (gint64)(g_get_real_time() / 1000)));
  } while (poll(&(struct pollfd){ .fd = terminal.fd, .events = POLLIN }, 1, 0) == 0);
  seen = expect(&terminal, "vm web1: paused");
  server_close(server);
  g_free(seen);
  seen = expect(&terminal, "drover: droverd ended the event stream");
  g_assert_cmpint(WEXITSTATUS(wait_for_end(terminal.pid)), ==, 1);
  close(terminal.fd);
}

static void
test_absent(void)
{
  g_test_skip("drover was not built");
}

void
add_cli_tests(void)
{
  program = find_drover();
  if (!g_file_test(program, G_FILE_TEST_IS_EXECUTABLE)) {
    g_test_add_func("/cli", test_absent);
    return;
  }
  g_test_add_func("/cli/words", test_words);
  g_test_add_func("/cli/requests", test_requests);
  g_test_add_func("/cli/console/typed", test_console_typed);
  g_test_add_func("/cli/console/signals", test_console_signals);
  g_test_add_func("/cli/console/escape", test_console_escape);
  g_test_add_func("/cli/console/vm-ends", test_console_vm_ends);
  g_test_add_func("/cli/console/pipes", test_console_pipes);
  g_test_add_func("/cli/upgrade-live", test_upgrade_live);
  g_test_add_func("/cli/cancel", test_cancel);
  g_test_add_func("/cli/without-stream", test_without_stream);
  g_test_add_func("/cli/restart", test_restart);
  g_test_add_func("/cli/watch-all", test_watch_all);
}
