/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover-keeper: QEMU's parent, so that its exit status is known whoever else has died meanwhile.
 *
 *   droverd -> keeper -> keeper, now init's child -> QEMU
 *
 * The first process returns at once: droverd has no child to look after, and the keeper none that are not its own.
 * One keeper lives as long as its QEMU, so it is small and holds nothing: no socket, no tap, no guest memory (a keeper
 * with the RAM's memfd would keep the RAM of a guest that has moved away). Nothing but libc; no allocation. */
#include "keeper/order.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What stops QEMU or droverd must not stop the one who writes down how QEMU ended: a terminal's ^C, systemd's SIGTERM
 * to the whole control group. */
static const int ignored[] = {
  SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGUSR1, SIGUSR2, SIGTSTP, SIGALRM
};

static void
set_signals(void (*handler)(int))
{
  for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++)
    signal(ignored[i], handler);
}

static void
report(int fd, enum dr_keeper_step step, int err, pid_t pid, uint64_t start_time)
{
  struct dr_keeper_report message = { .step = step, .err = err, .pid = pid, .start_time = start_time };

  /* Nobody reads it: droverd has died or given up, so nobody would know of this QEMU. It must not run. */
  if (write(fd, &message, sizeof message) == sizeof message || step != DR_KEEPER_STARTED)
    return;
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  _exit(1);
}

/* Field 22 of /proc/PID/stat. The process is our child and not yet waited for, so it is there. 0 if it is not. */
static uint64_t
start_time_of(pid_t pid)
{
  char text[1024];
  char *at;
  ssize_t n;
  int fd;

  snprintf(text, sizeof text, "/proc/%d/stat", (int)pid);
  fd = open(text, O_RDONLY | O_CLOEXEC);
  n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (fd >= 0)
    close(fd);
  if (n <= 0)
    return 0;
  text[n] = '\0';
  at = strrchr(text, ')'); /* the name before it may hold anything */
  for (int i = 0; at && i < 20; i++)
    at = strchr(at + 1, ' ');
  return at ? strtoull(at, NULL, 10) : 0;
}

/* ---- QEMU's side of the fork ---- */

struct order {
  const struct dr_keeper_order *head;
  const int32_t *numbers;
  char *program;
  char *cwd;
  char *label_file, *label;
  char **argv;
  char **envp;
};

/* Takes `n` strings; NULL when they do not all end before `end`. */
static char *
take_strings(char *at, const char *end, uint32_t n, char **ret_strings)
{
  for (uint32_t i = 0; i < n; i++) {
    ret_strings[i] = at;
    at = at < end ? memchr(at, '\0', end - at) : NULL;
    if (!at)
      return NULL;
    at++;
  }
  return at;
}

static int
read_order(struct order *order)
{
  struct stat status;
  const struct dr_keeper_order *head;
  char *at, *end, *first[4];

  if (fstat(DR_KEEPER_ORDER, &status) < 0 || status.st_size < (off_t)sizeof *head)
    return -1;
  head = mmap(NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, DR_KEEPER_ORDER, 0);
  if (head == MAP_FAILED || head->magic != DR_KEEPER_MAGIC || head->size != status.st_size)
    return -1;
  if (head->world.n_groups > DR_KEEPER_GROUPS || head->world.n_cgroups > head->size ||
      head->world.n_namespaces > head->size)
    return -1;
  if (head->n_fds > head->size || head->argc > head->size || head->envc > head->size)
    return -1;
  end = (char *)head + head->size;
  at = (char *)(head + 1) + head->n_fds * sizeof(int32_t);
  order->head = head;
  order->numbers = (const int32_t *)(head + 1);
  order->argv = calloc(head->argc + 1, sizeof(char *));
  order->envp = calloc(head->envc + 1, sizeof(char *));
  if (!order->argv || !order->envp || !(at = take_strings(at, end, 4, first)) ||
      !(at = take_strings(at, end, head->argc, order->argv)) ||
      !take_strings(at, end, head->envc, order->envp))
    return -1;
  order->program = first[0];
  order->cwd = first[1];
  order->label_file = first[2];
  order->label = first[3];
  return 0;
}

/* Room for descriptors up to `top`: the numbers of an adopted VM may lie above droverd's own soft limit. */
static void
raise_limit(rlim_t top)
{
  struct rlimit limit;

  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < top && limit.rlim_max >= top) {
    limit.rlim_cur = top;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

/* Puts each descriptor at its number. All go above the highest number first, or one that is put in its place could
 * overwrite one that is still to be moved; what stays above closes itself at exec. */
static int
place_fds(const struct order *order, int *status_fd)
{
  uint32_t n = order->head->n_fds;
  /* Above the world's own, too, which QEMU is not to have. */
  int top = DR_KEEPER_FDS + (int)(n + order->head->world.n_cgroups + order->head->world.n_namespaces);
  int *high = calloc(n + 1, sizeof *high);

  for (uint32_t i = 0; i < n; i++)
    if (order->numbers[i] >= top)
      top = order->numbers[i] + 1;
  raise_limit(top + n + 8);
  if (!high || (*status_fd = fcntl(*status_fd, F_DUPFD_CLOEXEC, top)) < 0)
    return -1;
  for (uint32_t i = 0; i < n; i++)
    if ((high[i] = fcntl(DR_KEEPER_FDS + i, F_DUPFD_CLOEXEC, top)) < 0)
      return -1;
  if (close_range(3, top - 1, 0) < 0)
    return -1;
  for (uint32_t i = 0; i < n; i++)
    if (dup2(high[i], order->numbers[i]) < 0)
      return -1;
  return 0;
}

static _Noreturn void
give_up(int status_fd, enum dr_keeper_step step)
{
  struct dr_keeper_report message = { .step = step, .err = errno };

  _exit(write(status_fd, &message, sizeof message) == sizeof message ? 127 : 126);
}

/* droverd may be kept from the out-of-memory killer (OOMScoreAdjust= of its unit); a guest is to be as good a victim as any other
 * process. To raise the value is always allowed. */
static void
drop_protection(void)
{
  char text[16];
  int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text);

  if (n > 0 && text[0] == '-' && pwrite(fd, "0", 1, 0) < 0)
    fprintf(stderr, "drover-keeper: cannot set oom_score_adj: %s\n", strerror(errno));
  if (fd >= 0)
    close(fd);
}

/* ---- As another process ---- */

/* For the next exec, by SELinux or AppArmor. */
static int
set_label(const struct order *order)
{
  char path[64];
  ssize_t n, len = strlen(order->label);
  int fd;

  if (len == 0)
    return 0;
  snprintf(path, sizeof path, "/proc/self/attr/%s", order->label_file);
  fd = open(path, O_WRONLY | O_CLOEXEC);
  n = fd < 0 ? -1 : write(fd, order->label, len);
  if (fd >= 0)
    close(fd);
  return n == len ? 0 : -1;
}

static int
set_oom(int value)
{
  char text[16];
  int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  int len = snprintf(text, sizeof text, "%d", value);
  ssize_t n = fd < 0 ? -1 : write(fd, text, len);

  if (fd >= 0)
    close(fd);
  return n == len ? 0 : -1;
}

/* While it has all rights: groups of processes, namespaces, limits. */
static int
enter_world(const struct order *order)
{
  const struct dr_keeper_world *world = &order->head->world;
  int first = DR_KEEPER_FDS + (int)order->head->n_fds;

  for (uint32_t i = 0; i < world->n_cgroups; i++)
    if (write(first + (int)i, "0", 1) != 1)
      return -1;
  first += (int)world->n_cgroups;
  if (set_oom(world->oom_score_adj) < 0 && geteuid() == 0)
    return -1;
  if (set_label(order) < 0)
    return -1;
  for (uint32_t i = 0; i < world->n_namespaces; i++)
    if (setns(first + (int)i, 0) < 0)
      return -1;
  return 0;
}

/* Where we may not go above our own, ours are the next best. */
static int
take_limit(int which, const uint64_t *wanted)
{
  struct rlimit limit = { .rlim_cur = wanted[0], .rlim_max = wanted[1] }, ours;

  if (setrlimit(which, &limit) == 0)
    return 0;
  if (errno != EPERM || getrlimit(which, &ours) < 0)
    return -1;
  limit.rlim_max = ours.rlim_max;
  limit.rlim_cur = limit.rlim_cur < ours.rlim_max ? limit.rlim_cur : ours.rlim_max;
  return setrlimit(which, &limit);
}

/* After the descriptors are in their places, which may need more of them than the limits allow. */
static int
take_rights(const struct order *order)
{
  const struct dr_keeper_world *world = &order->head->world;
  gid_t groups[DR_KEEPER_GROUPS];

  umask(world->umask);
  for (int i = 0; i < DR_KEEPER_LIMITS; i++)
    if (take_limit(i, world->limits[i]) < 0)
      return -1;
  if (geteuid() != 0)
    return geteuid() == world->uid ? 0 : -1;
  for (int i = 0; i < 64 && prctl(PR_CAPBSET_READ, i) >= 0; i++)
    if (!(world->bounding >> i & 1) && prctl(PR_CAPBSET_DROP, i) < 0)
      return -1;
  for (uint32_t i = 0; i < world->n_groups; i++)
    groups[i] = world->groups[i];
  if (setgroups(world->n_groups, groups) < 0 || setresgid(world->gid, world->gid, world->gid) < 0)
    return -1;
  return setresuid(world->uid, world->uid, world->uid);
}

static _Noreturn void
become_qemu(int status_fd)
{
  struct order order;
  int moved = status_fd;

  if (read_order(&order) < 0)
    give_up(status_fd, DR_KEEPER_NO_ORDER);
  if (setsid() < 0)
    give_up(status_fd, DR_KEEPER_NO_PROCESS);
  if (order.head->world.alike && enter_world(&order) < 0)
    give_up(status_fd, DR_KEEPER_NO_WORLD);
  if (chdir(order.cwd) < 0)
    give_up(status_fd, DR_KEEPER_NO_CWD);
  if (place_fds(&order, &moved) < 0)
    give_up(moved < 0 ? status_fd : moved, DR_KEEPER_NO_FDS);
  set_signals(SIG_DFL);
  if (!order.head->world.alike)
    drop_protection();
  else if (take_rights(&order) < 0)
    give_up(moved, DR_KEEPER_NO_WORLD);
  execve(order.program, order.argv, order.envp);
  give_up(moved, DR_KEEPER_NO_EXEC);
}

/* ---- The keeper's side ---- */

/* Leaves /dev/null as 0 to 2, the pipe from our child as 3 and the one to droverd as 4. */
static void
close_all_but(int status_fd)
{
  dup2(STDIN_FILENO, STDOUT_FILENO);
  dup2(STDIN_FILENO, STDERR_FILENO);
  dup2(status_fd, 3);
  close_range(5, ~0U, 0);
}

static pid_t
start_qemu(void)
{
  struct dr_keeper_report failure;
  int status[2];
  ssize_t n;
  pid_t pid;

  if (pipe2(status, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
    report(DR_KEEPER_REPORT, DR_KEEPER_NO_PROCESS, errno, 0, 0);
    _exit(1);
  }
  if (pid == 0)
    become_qemu(status[1]);
  close_all_but(status[0]);
  do
    n = read(3, &failure, sizeof failure);
  while (n < 0 && errno == EINTR);
  if (n == sizeof failure) {
    waitpid(pid, NULL, 0);
    report(DR_KEEPER_REPORT, failure.step, failure.err, 0, 0);
    _exit(1);
  }
  return pid;
}

/* A temporary name and a rename: a reader sees a whole file or none. */
static void
write_exit(const char *path, const char *text)
{
  char temporary[4096];
  size_t len = strlen(text);
  int fd;

  if (snprintf(temporary, sizeof temporary, "%s.%d", path, (int)getpid()) >= (int)sizeof temporary)
    return;
  fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0)
    return;
  if (write(fd, text, len) == (ssize_t)len)
    rename(temporary, path);
  else
    unlink(temporary);
  close(fd);
}

static void
keep(pid_t pid, uint64_t start_time, const char *exit_path)
{
  char text[256], code[16] = "null", signal_number[16] = "null";
  int status;

  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR)
      return;
  if (WIFEXITED(status))
    snprintf(code, sizeof code, "%d", WEXITSTATUS(status));
  else
    snprintf(signal_number, sizeof signal_number, "%d", WTERMSIG(status));
  snprintf(text, sizeof text,
           "{\"pid\":%d,\"start\":%llu,\"exit\":%s,\"signal\":%s,\"core\":%s,\"time\":%lld}\n", (int)pid,
           (unsigned long long)start_time, code, signal_number,
           WIFSIGNALED(status) && WCOREDUMP(status) ? "true" : "false", (long long)time(NULL));
  write_exit(exit_path, text);
}

static int
is_to_stay(void)
{
  struct dr_keeper_order head;

  return pread(DR_KEEPER_ORDER, &head, sizeof head, 0) != sizeof head || !head.world.alike;
}

int
main(int argc, char **argv)
{
  int stay = is_to_stay();
  uint64_t start_time;
  pid_t pid;

  if (argc != 2 || argv[1][0] != '/') {
    static const char text[] =
        "drover-keeper is started by droverd; there is nothing to do with it by hand\n";

    return write(STDERR_FILENO, text, sizeof text - 1) < 0 ? 3 : 2;
  }
  set_signals(SIG_IGN);
  pid = fork();
  if (pid != 0)
    return pid < 0 ? 1 : 0;
  pid = start_qemu();
  start_time = start_time_of(pid);
  report(DR_KEEPER_REPORT, DR_KEEPER_STARTED, 0, pid, start_time);
  if (!stay)
    return 0;
  close_range(3, ~0U, 0);
  keep(pid, start_time, argv[1]);
  return 0;
}
