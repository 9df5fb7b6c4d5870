/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The lock by which libvirt's daemons keep each other from one QEMU driver; taken and given as virPidFileAcquirePath() does. */
#include "base/error.h"
#include "base/fd.h"
#include "libvirt/daemon-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static char *
lock_path(const char *state_dir)
{
  return g_build_filename(state_dir, "driver.pid", NULL);
}

static struct flock
first_byte(void)
{
  return (struct flock){ .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1 };
}

static gboolean
nobody(const char *path, GError **error)
{
  dr_error_set(error, DR_ERROR_NOT_FOUND, "no daemon of libvirt runs: nobody holds the lock on '%s'", path);
  return dr_error_remedy(error, "start it: systemctl start libvirtd (or virtqemud)");
}

gboolean
dr_driver_lock_holder(const char *state_dir, DrProcId *ret_id, GError **error)
{
  g_autofree char *path = lock_path(state_dir);
  dr_autofd int fd = open(path, O_RDONLY | O_CLOEXEC);
  struct flock lock = first_byte();

  if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
    return nobody(path, error);
  if (fd < 0 || fcntl(fd, F_GETLK, &lock) < 0)
    return dr_error_set_errno(error, errno, "cannot see who holds the lock on '%s'", path);
  if (lock.l_type == F_UNLCK)
    return nobody(path, error);
  if (lock.l_pid <= 0) { /* the kernel knows no number for it in our PID namespace */
    dr_error_set(error, DR_ERROR_UNSUPPORTED,
                 "the lock on '%s' is held by a process that cannot be seen from here", path);
    return dr_error_remedy(error, "run droverd in the PID namespace of libvirt's daemon");
  }
  /* One that has ended since then holds nothing. */
  return dr_proc_identify(lock.l_pid, ret_id, NULL) || nobody(path, error);
}

/* A daemon that ends removes the file while it holds the lock: what was opened before that is nobody's. */
static gboolean
is_still_there(int fd, const char *path)
{
  struct stat ours, there;

  return fstat(fd, &ours) == 0 && stat(path, &there) == 0 && ours.st_ino == there.st_ino &&
         ours.st_dev == there.st_dev;
}

/* libvirt's daemons write theirs. Nobody relies on it; it is for a person who wonders. */
static void
write_pid(int fd)
{
  g_autofree char *text = g_strdup_printf("%d", (int)getpid());

  if (ftruncate(fd, 0) < 0 || pwrite(fd, text, strlen(text), 0) < 0)
    g_debug("cannot write driver.pid: %s", g_strerror(errno));
}

gboolean
dr_driver_lock_take(const char *state_dir, int *ret_fd, GError **error)
{
  g_autofree char *path = lock_path(state_dir);

  *ret_fd = -1;
  for (;;) {
    struct flock lock = first_byte();
    dr_autofd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);

    if (fd < 0)
      return dr_error_set_errno(error, errno, "cannot open '%s'", path);
    if (fcntl(fd, F_SETLK, &lock) < 0)
      return errno == EAGAIN || errno == EACCES || dr_error_set_errno(error, errno, "cannot lock '%s'", path);
    if (!is_still_there(fd, path))
      continue;
    write_pid(fd);
    *ret_fd = dr_fd_steal(&fd);
    return TRUE;
  }
}

void
dr_driver_lock_give(const char *state_dir, int fd)
{
  g_autofree char *path = lock_path(state_dir);

  unlink(path); /* before it is given back: afterwards it may be another's */
  close(fd);
}
