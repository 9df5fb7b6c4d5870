/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* All of it is read from /proc: see proc(5), cgroups(7), namespaces(7). */
#include "qemu/world.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define MAX_TEXT (256 * 1024)

struct DrWorld {
  struct dr_keeper_world plain;
  char *label_file, *label; /* nullable: none */
  GArray *fds;
};

void
dr_world_free(DrWorld *world)
{
  if (!world)
    return;
  for (guint i = 0; i < world->fds->len; i++)
    close(g_array_index(world->fds, int, i));
  g_array_unref(world->fds);
  g_free(world->label_file);
  g_free(world->label);
  g_free(world);
}

const GArray *
dr_world_fds(const DrWorld *world)
{
  return world->fds;
}

const char *
dr_world_label(const DrWorld *world)
{
  return world->label;
}

void
dr_world_write(const DrWorld *world, struct dr_keeper_world *ret_world, const char **ret_label_file,
               const char **ret_label)
{
  *ret_world = world->plain;
  *ret_label_file = world->label_file ? world->label_file : "";
  *ret_label = world->label ? world->label : "";
}

static char *
read_proc(pid_t pid, const char *name, GError **error)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/%s", pid, name);

  return dr_file_read(path, MAX_TEXT, NULL, error);
}

/* --- Control groups --- */

/* Where the hierarchy of a line of /proc/PID/cgroup is mounted: "9:cpu,cpuacct:/a" by its controllers, "0::/a" (version 2) by its type.
 * (transfer full), NULL: nowhere. */
static char *
mount_point(const char *mounts, const char *controllers)
{
  g_auto(GStrv) lines = g_strsplit(mounts, "\n", -1);

  for (char **line = lines; *line; line++) {
    char *separator = strstr(*line, " - ");
    g_auto(GStrv) left = NULL;
    g_auto(GStrv) right = NULL;
    g_auto(GStrv) options = NULL;
    g_autofree char *wanted = NULL;

    if (!separator)
      continue;
    *separator = '\0';
    left = g_strsplit(*line, " ", -1);
    right = g_strsplit(separator + 3, " ", -1);
    if (g_strv_length(left) < 5 || g_strv_length(right) < 3 || !g_str_has_prefix(right[0], "cgroup"))
      continue;
    if (!*controllers && g_str_equal(right[0], "cgroup2"))
      return g_strcompress(left[4]);
    options = g_strsplit(right[2], ",", -1);
    wanted = g_strndup(controllers, strcspn(controllers, ","));
    if (*controllers && g_str_equal(right[0], "cgroup") &&
        g_strv_contains((const char *const *)options, wanted))
      return g_strcompress(left[4]);
  }
  return NULL;
}

typedef gboolean (*GroupFunc)(const char *directory, gpointer data, GError **error);

/* The path in a line of /proc/PID/cgroup, with its controllers cut off before it; NULL: no such line. */
static char *
group_path(char *line, const char **ret_controllers)
{
  char *controllers = strchr(line, ':');
  char *path = controllers ? strchr(controllers + 1, ':') : NULL;

  if (!path)
    return NULL;
  *path = '\0';
  *ret_controllers = controllers + 1;
  return path + 1;
}

static gboolean
is_in(const char *groups, const char *controllers, const char *path)
{
  g_autofree char *part = g_strdup_printf(":%s:%s\n", controllers, path);

  return strstr(groups, part) != NULL;
}

/* Each group of `groups` (a /proc/…/cgroup) that is another than in `ours`. */
static gboolean
for_groups(const char *groups, const char *ours, GroupFunc call, gpointer data, GError **error)
{
  g_auto(GStrv) lines = g_strsplit(groups, "\n", -1);
  g_autofree char *mounts = dr_file_read("/proc/self/mountinfo", MAX_TEXT * 4, NULL, error);

  if (!mounts)
    return FALSE;
  for (char **line = lines; *line; line++) {
    const char *controllers;
    char *path = group_path(*line, &controllers);
    g_autofree char *mount = NULL;
    g_autofree char *directory = NULL;

    if (!path || is_in(ours, controllers, path))
      continue;
    mount = mount_point(mounts, controllers);
    if (!mount)
      continue; /* nothing can be done to a hierarchy that is not mounted, and nobody here does */
    directory = g_build_filename(mount, path, NULL);
    if (!call(directory, data, error))
      return FALSE;
  }
  return TRUE;
}

static gboolean
open_group(const char *directory, gpointer data, GError **error)
{
  DrWorld *world = data;
  g_autofree char *path = g_build_filename(directory, "cgroup.procs", NULL);
  int fd = open(path, O_WRONLY | O_CLOEXEC);

  if (fd < 0)
    return dr_error_set_errno(error, errno, "cannot open '%s'", path);
  g_array_append_val(world->fds, fd);
  world->plain.n_cgroups++;
  return TRUE;
}

static gboolean
read_groups(DrWorld *world, pid_t pid, GError **error)
{
  g_autofree char *groups = read_proc(pid, "cgroup", error);
  g_autofree char *ours = groups ? dr_file_read("/proc/self/cgroup", MAX_TEXT, NULL, error) : NULL;

  return ours && for_groups(groups, ours, open_group, world, error);
}

/* --- Namespaces --- */

static gboolean
read_namespaces(DrWorld *world, pid_t pid, GError **error)
{
  static const char *const kinds[] = { "ipc", "uts", "net", "mnt" }; /* the mounts last */

  for (guint i = 0; i < G_N_ELEMENTS(kinds); i++) {
    g_autofree char *theirs = g_strdup_printf("/proc/%d/ns/%s", pid, kinds[i]);
    g_autofree char *ours = g_strdup_printf("/proc/self/ns/%s", kinds[i]);
    struct stat a, b;
    int fd;

    if (stat(theirs, &a) < 0 || stat(ours, &b) < 0)
      return dr_error_set_errno(error, errno, "cannot look at '%s'", theirs);
    if (a.st_ino == b.st_ino && a.st_dev == b.st_dev)
      continue;
    fd = open(theirs, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
      return dr_error_set_errno(error, errno, "cannot open '%s'", theirs);
    g_array_append_val(world->fds, fd);
    world->plain.n_namespaces++;
  }
  return TRUE;
}

/* --- Rights --- */

/* "Uid:\t1000\t…" of /proc/PID/status: what stands behind the name; NULL: it is not there. */
static const char *
status_field(const char *status, const char *name)
{
  g_autofree char *begin = g_strdup_printf("\n%s:", name);
  const char *at = strstr(status, begin);

  return at ? at + strlen(begin) + strspn(at + strlen(begin), " \t") : NULL;
}

static gboolean
read_ids(DrWorld *world, const char *status, GError **error)
{
  static const char *const needed[] = { "Uid", "Gid", "Groups", "CapBnd" };
  struct dr_keeper_world *plain = &world->plain;
  const char *umask_text = status_field(status, "Umask");
  const char *at;
  char *end;

  for (guint i = 0; i < G_N_ELEMENTS(needed); i++)
    if (!status_field(status, needed[i]))
      return dr_error_set(error, DR_ERROR_UNSUPPORTED, "/proc/PID/status has no line '%s'", needed[i]);
  plain->uid = (uint32_t)g_ascii_strtoull(status_field(status, "Uid"), NULL, 10);
  plain->gid = (uint32_t)g_ascii_strtoull(status_field(status, "Gid"), NULL, 10);
  plain->bounding = g_ascii_strtoull(status_field(status, "CapBnd"), NULL, 16);
  plain->umask = umask_text ? (uint32_t)g_ascii_strtoull(umask_text, NULL, 8) : 022;
  for (at = status_field(status, "Groups"); *at && *at != '\n'; at = end + strspn(end, " ")) {
    guint64 group = g_ascii_strtoull(at, &end, 10);

    if (end == at)
      break;
    if (plain->n_groups == DR_KEEPER_GROUPS)
      return dr_error_set(error, DR_ERROR_UNSUPPORTED, "the process is in more than %d groups",
                          DR_KEEPER_GROUPS);
    plain->groups[plain->n_groups++] = (uint32_t)group;
  }
  return TRUE;
}

static guint64
limit_of(const char *column)
{
  return g_str_has_prefix(column, "unlimited") ? RLIM_INFINITY : g_ascii_strtoull(column, NULL, 10);
}

/* prlimit(2) asks for a capability where the user is another one; proc(5) does not. A line for each, in the order of their numbers:
 * "%-25s %-20s %-20s %-10s" (fs/proc/base.c). */
static gboolean
read_limits(DrWorld *world, pid_t pid, GError **error)
{
  g_autofree char *text = read_proc(pid, "limits", error);
  g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);

  if (!text)
    return FALSE;
  for (guint i = 0; i < DR_KEEPER_LIMITS; i++) {
    if (g_strv_length(lines) < DR_KEEPER_LIMITS + 1 || strlen(lines[i + 1]) < 48)
      return dr_error_set(error, DR_ERROR_UNSUPPORTED, "/proc/%d/limits is not as this drover knows it", pid);
    world->plain.limits[i][0] = limit_of(lines[i + 1] + 26);
    world->plain.limits[i][1] = limit_of(lines[i + 1] + 47);
  }
  return TRUE;
}

/* AppArmor has a directory of its own where several modules are stacked (Linux 5.8); what is "current" there is set by "exec NAME". SELinux is
 * set by the bare context. */
static void
read_label(DrWorld *world, pid_t pid)
{
  g_autofree char *apparmor = read_proc(pid, "attr/apparmor/current", NULL);
  g_autofree char *current = read_proc(pid, "attr/current", NULL);
  gboolean is_apparmor = apparmor && *apparmor;
  const char *text = is_apparmor ? apparmor : current;
  g_autofree char *name = text ? g_strchomp(g_strdup(text)) : NULL;
  char *mode = name ? strstr(name, " (") : NULL; /* "libvirt-UUID (enforce)" */

  if (mode)
    *mode = '\0';
  if (!name || !*name || g_str_has_prefix(name, "unconfined") || g_str_equal(name, "kernel"))
    return;
  if (!is_apparmor && !mode && !strchr(name, ':'))
    return; /* of a module that we do not know: nothing that a QEMU under libvirt has */
  world->label_file = g_strdup(is_apparmor ? "apparmor/exec" : "exec");
  world->label = is_apparmor || mode ? g_strconcat("exec ", name, NULL) : g_strdup(name);
}

static void
read_oom(DrWorld *world, pid_t pid)
{
  g_autofree char *text = read_proc(pid, "oom_score_adj", NULL);

  world->plain.oom_score_adj = text ? (int)g_ascii_strtoll(text, NULL, 10) : 0;
}

DrWorld *
dr_world_read(const DrProcId *id, GError **error)
{
  g_autoptr(DrWorld) world = g_new0(DrWorld, 1);
  g_autofree char *status = NULL;

  world->fds = g_array_new(FALSE, FALSE, sizeof(int));
  world->plain.alike = 1;
  status = read_proc(id->pid, "status", error);
  if (!status || !read_ids(world, status, error) || !read_limits(world, id->pid, error) ||
      !read_groups(world, id->pid, error) || !read_namespaces(world, id->pid, error))
    return NULL;
  read_oom(world, id->pid);
  read_label(world, id->pid);
  if (dr_proc_alive(id))
    return g_steal_pointer(&world);
  dr_error_set(error, DR_ERROR_NOT_FOUND, "process %d has ended", id->pid);
  return NULL;
}

/* --- Threads --- */

static gboolean
write_thread(const char *path, const char *text)
{
  dr_autofd int fd = open(path, O_WRONLY | O_CLOEXEC);

  return fd >= 0 && write(fd, text, strlen(text)) == (gssize)strlen(text);
}

/* Version 2 has threads of one process in several groups below cgroup.threads, version 1 below tasks. */
static gboolean
join_group(const char *directory, gpointer data, GError **error)
{
  g_autofree char *threads = g_build_filename(directory, "cgroup.threads", NULL);
  g_autofree char *tasks = g_build_filename(directory, "tasks", NULL);

  if (write_thread(threads, data) || write_thread(tasks, data))
    return TRUE;
  return dr_error_set_errno(error, errno, "cannot put thread %s into control group '%s'", (char *)data,
                            directory);
}

/* <vcpusched> of libvirt's, chrt(1). */
static gboolean
copy_policy(pid_t from, pid_t to)
{
  int policy = sched_getscheduler(from);
  struct sched_param param;

  return policy <= SCHED_OTHER || sched_getparam(from, &param) < 0 ||
         sched_setscheduler(to, policy, &param) == 0;
}

gboolean
dr_world_place_thread(const DrProcId *old, pid_t old_thread, const DrProcId *new_process, pid_t new_thread,
                      GError **error)
{
  g_autofree char *from = g_strdup_printf("task/%d/cgroup", old_thread);
  g_autofree char *to = g_strdup_printf("task/%d/cgroup", new_thread);
  g_autofree char *groups = read_proc(old->pid, from, error);
  g_autofree char *now = groups ? read_proc(new_process->pid, to, error) : NULL;
  g_autofree char *id = g_strdup_printf("%d", new_thread);
  cpu_set_t cpus;

  if (!now || !for_groups(groups, now, join_group, id, error))
    return FALSE;
  if (sched_getaffinity(old_thread, sizeof cpus, &cpus) == 0 &&
      sched_setaffinity(new_thread, sizeof cpus, &cpus) < 0)
    return dr_error_set_errno(error, errno, "cannot bind thread %d to the CPUs of thread %d", new_thread,
                              old_thread);
  if (!copy_policy(old_thread, new_thread))
    return dr_error_set_errno(error, errno, "cannot schedule thread %d as thread %d", new_thread, old_thread);
  return TRUE;
}
