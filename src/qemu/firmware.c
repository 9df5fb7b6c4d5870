/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Asks a QEMU for its data directories and looks into them in their order, as it does. */
#include "qemu/firmware.h"
#include "base/deadline.h"
#include "base/fd.h"
#include "qemu/child.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define HELP_MS 5000
#define MAX_HELP 65536

/* What it writes until it closes its output, or the deadline passes; what came until then is as good as nothing. */
static char *
read_output(int fd)
{
  DrDeadline deadline = dr_deadline_in(HELP_MS);
  g_autoptr(GString) text = g_string_new(NULL);
  struct pollfd ready = { .fd = fd, .events = POLLIN };
  char chunk[4096];
  gssize n = -1;

  while (text->len < MAX_HELP && poll(&ready, 1, dr_deadline_left(deadline)) > 0) {
    n = read(fd, chunk, sizeof chunk);
    if (n <= 0)
      break;
    g_string_append_len(text, chunk, n);
  }
  return n == 0 ? g_strdup(text->str) : NULL;
}

static char *
ask(char **argv, char *const *envp)
{
  dr_autofd int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  dr_autofd int output = -1;
  char *text;
  pid_t pid;
  int ends[2];

  if (null_fd < 0 || pipe2(ends, O_CLOEXEC) < 0)
    return NULL;
  output = ends[0];
  DrChild child = { .path = argv[0],
                    .argv = argv,
                    .envp = envp,
                    .fds = (int[]){ null_fd, ends[1], null_fd },
                    .n_fds = 3,
                    .dies_with_us = TRUE };
  int err = dr_child_start(&child, &pid);
  close(ends[1]);
  if (err)
    return NULL;
  text = read_output(output);
  kill(-pid, SIGKILL); /* its session: a script may have started more than itself */
  waitpid(pid, NULL, 0);
  return text;
}

static char **
data_dirs(const char *const *words, char *const *envp)
{
  g_autoptr(GStrvBuilder) builder = g_strv_builder_new();
  g_auto(GStrv) argv = NULL;
  g_autofree char *text = NULL;

  g_strv_builder_addv(builder, (const char **)words);
  g_strv_builder_add_many(builder, "-L", "help", NULL);
  argv = g_strv_builder_end(builder);
  text = ask(argv, envp);
  return text ? g_strsplit(text, "\n", -1) : NULL;
}

char *
dr_firmware_find(const char *const *words, char *const *envp, const char *name, guint64 *ret_size)
{
  g_auto(GStrv) dirs = data_dirs(words, envp);

  for (char **dir = dirs; dir && *dir; dir++) {
    g_autofree char *path = g_build_filename(*dir, name, NULL);
    char *real = **dir == '/' ? realpath(path, NULL) : NULL; /* "/usr/bin/../share", and links to links */
    struct stat st;

    if (real && stat(real, &st) == 0 && S_ISREG(st.st_mode)) {
      *ret_size = (guint64)st.st_size;
      return real;
    }
    free(real);
  }
  return NULL;
}
