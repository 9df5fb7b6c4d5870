/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Raw mode. The signal handlers act themselves, not through the main loop: that may be stuck in a write to
 * a terminal that takes nothing. tcsetattr(), raise() and signal masks are async-signal-safe. */
#include "cli/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

static const int deadly[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL };

static struct termios before, raw;
static volatile sig_atomic_t is_raw;

/* A background process must not be stopped for restoring its terminal. */
static void
set_terminal(const struct termios *mode)
{
  int saved = errno;
  sigset_t out, old;

  sigemptyset(&out);
  sigaddset(&out, SIGTTOU);
  sigprocmask(SIG_BLOCK, &out, &old);
  tcsetattr(STDIN_FILENO, TCSANOW, mode);
  sigprocmask(SIG_SETMASK, &old, NULL);
  errno = saved;
}

void
dr_terminal_restore(void)
{
  if (!is_raw)
    return;
  is_raw = 0;
  set_terminal(&before);
}

/* SA_RESETHAND: the second time it has its usual effect. */
static void
on_deadly(int number)
{
  dr_terminal_restore();
  raise(number);
}

static void
on_stop(int number)
{
  if (!is_raw)
    return;
  set_terminal(&before);
  raise(SIGSTOP);
  set_terminal(&raw);
}

void
dr_terminal_raw(void)
{
  struct sigaction die = { .sa_handler = on_deadly, .sa_flags = (int)SA_RESETHAND };
  struct sigaction stop = { .sa_handler = on_stop, .sa_flags = SA_RESTART };

  if (tcgetattr(STDIN_FILENO, &before) < 0)
    return;
  raw = before;
  cfmakeraw(&raw);
  atexit(dr_terminal_restore);
  for (unsigned i = 0; i < sizeof deadly / sizeof *deadly; i++)
    sigaction(deadly[i], &die, NULL);
  sigaction(SIGTSTP, &stop, NULL);
  is_raw = 1;
  set_terminal(&raw);
}
