/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libvirt's daemon as a process that somebody started: what makes it what it is, and how it becomes that again. */
#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"
#include "libvirt/daemon-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FILE_MAX 1048576

const DrDaemonNamespace dr_daemon_namespaces[DR_DAEMON_NAMESPACES] = {
  { "cgroup", CLONE_NEWCGROUP }, { "ipc", CLONE_NEWIPC }, { "uts", CLONE_NEWUTS },
  { "net", CLONE_NEWNET },       { "mnt", CLONE_NEWNS },
};

static DrDaemonHand *
hand_new(void)
{
  DrDaemonHand *hand = g_new0(DrDaemonHand, 1);

  for (guint i = 0; i < DR_DAEMON_NAMESPACES; i++)
    hand->namespace_fds[i] = -1;
  return hand;
}

void
dr_daemon_hand_free(DrDaemonHand *hand)
{
  if (!hand)
    return;
  for (guint i = 0; i < DR_DAEMON_NAMESPACES; i++)
    dr_fd_cleanup(&hand->namespace_fds[i]);
  for (guint i = 0; i < 3; i++)
    g_free(hand->stdio[i]);
  g_strfreev(hand->argv);
  g_strfreev(hand->envp);
  g_strfreev(hand->cgroups);
  g_free(hand->groups);
  g_free(hand->path);
  g_free(hand->cwd);
  g_free(hand);
}

/* --- Looking at it --- */

static char *
read_proc(const char *pid, const char *file)
{
  g_autofree char *path = g_strdup_printf("/proc/%s/%s", pid, file);

  return dr_file_read(path, FILE_MAX, NULL, NULL);
}

/* The rest of a line of /proc/PID/status; NULL: there is none. (transfer full) */
static char *
status_line(const char *text, const char *key)
{
  g_autofree char *start = g_strdup_printf("\n%s:", key);
  const char *at = strstr(text, start);

  if (!at)
    return NULL;
  at += strlen(start);
  return g_strstrip(g_strndup(at, strcspn(at, "\n")));
}

static void
parse_groups(const char *line, DrDaemonHand *hand)
{
  g_auto(GStrv) words = g_strsplit(line, " ", -1);

  hand->groups = g_new(gid_t, g_strv_length(words) + 1);
  for (guint i = 0; words[i]; i++)
    if (words[i][0])
      hand->groups[hand->n_groups++] = (gid_t)strtoul(words[i], NULL, 10);
}

gboolean
dr_daemon_hand_parse_status(const char *text, DrDaemonHand *hand)
{
  g_autofree char *uid = status_line(text, "Uid"), *gid = status_line(text, "Gid");
  g_autofree char *groups = status_line(text, "Groups"), *mask = status_line(text, "Umask");
  g_autofree char *parent = status_line(text, "PPid");

  if (!uid || !gid || !groups || !parent)
    return FALSE;
  hand->uid = (uid_t)strtoul(uid, NULL, 10);
  hand->gid = (gid_t)strtoul(gid, NULL, 10);
  hand->mask = mask ? (guint)strtoul(mask, NULL, 8) : 022;
  hand->parent.pid = atoi(parent);
  parse_groups(groups, hand);
  return TRUE;
}

static guint64
namespace_of(const char *pid, const char *name)
{
  g_autofree char *path = g_strdup_printf("/proc/%s/ns/%s", pid, name);
  struct stat status;

  return stat(path, &status) == 0 ? status.st_ino : 0;
}

static gboolean
same_namespace(const char *pid, const char *name)
{
  return namespace_of(pid, name) == namespace_of("self", name);
}

/* Noted, and held open: the daemon may be the last one in it. */
static gboolean
look_at_namespaces(const char *pid, DrDaemonHand *hand, GError **error)
{
  for (guint i = 0; i < DR_DAEMON_NAMESPACES; i++) {
    const char *name = dr_daemon_namespaces[i].name;
    g_autofree char *path = g_strdup_printf("/proc/%s/ns/%s", pid, name);

    if (same_namespace(pid, name))
      continue;
    hand->namespaces[i] = namespace_of(pid, name);
    hand->namespace_fds[i] = open(path, O_RDONLY | O_CLOEXEC);
    if (hand->namespace_fds[i] < 0)
      return dr_error_set_errno(error, errno, "cannot open '%s'", path);
  }
  if (same_namespace(pid, "pid") && same_namespace(pid, "user"))
    return TRUE;
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "libvirt's daemon, pid %s, is in a container of its own", pid);
  return dr_error_remedy(error, "run droverd in its PID and user namespaces");
}

/* A terminal, a pipe, a socket cannot be had again; a log file can. */
static char *
stdio_file(const char *pid, int fd)
{
  g_autofree char *path = g_strdup_printf("/proc/%s/fd/%d", pid, fd);
  char target[PATH_MAX];
  struct stat status;
  gssize n = readlink(path, target, sizeof target - 1);

  if (n < 0 || stat(path, &status) < 0 || !S_ISREG(status.st_mode) || status.st_nlink == 0)
    return NULL;
  return g_strndup(target, (gsize)n);
}

/* What would tell it of a service manager that does not wait for it any more. */
static char **
own_environment(char **envp)
{
  static const char *const manager[] = { "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET",
                                         NULL };

  for (guint i = 0; manager[i]; i++)
    envp = g_environ_unsetenv(envp, manager[i]);
  return envp;
}

static void
look_at_place(pid_t pid, const char *text_pid, DrDaemonHand *hand)
{
  g_autofree char *cgroups = read_proc(text_pid, "cgroup");
  g_autofree char *oom = read_proc(text_pid, "oom_score_adj");

  hand->cgroups = g_strsplit(cgroups ? g_strstrip(cgroups) : "", "\n", -1);
  hand->oom_score = oom ? atoi(oom) : 0;
  for (int i = 0; i < RLIM_NLIMITS; i++)
    if (prlimit(pid, i, NULL, &hand->limits[i]) < 0)
      getrlimit(i, &hand->limits[i]);
  for (int i = 0; i < 3; i++)
    hand->stdio[i] = stdio_file(text_pid, i);
  hand->cwd = dr_proc_cwd(pid, NULL); /* which may have been removed */
  if (!hand->cwd)
    hand->cwd = g_strdup("/");
}

/* -d, --daemon, also among other letters ("-vd"), of which f, p and t take the rest of their word. */
static gboolean
goes_to_background(char **argv)
{
  for (char **word = argv + (*argv != NULL); *word; word++) {
    const char *letters = *word + 1;

    if (g_str_equal(*word, "--daemon"))
      return TRUE;
    if ((*word)[0] == '-' && letters[0] != '-' && strcspn(letters, "d") < strcspn(letters, "fpt"))
      return TRUE;
  }
  return FALSE;
}

DrDaemonHand *
dr_daemon_hand_find(pid_t pid, const char *path, GError **error)
{
  g_autoptr(DrDaemonHand) hand = hand_new();
  g_autofree char *text_pid = g_strdup_printf("%d", (int)pid);
  g_autofree char *status = read_proc(text_pid, "status");

  hand->path = g_strdup(path);
  hand->argv = dr_proc_cmdline(pid, error);
  if (!hand->argv || !(hand->envp = dr_proc_environ(pid, error)) ||
      !look_at_namespaces(text_pid, hand, error))
    return NULL;
  hand->envp = own_environment(hand->envp);
  look_at_place(pid, text_pid, hand);
  if (!status || !dr_daemon_hand_parse_status(status, hand)) {
    dr_error_set(error, DR_ERROR_NOT_FOUND, "cannot read /proc/%d/status", (int)pid);
    return NULL;
  }
  /* Whose child one becomes that has put itself into the background does not wait for it: not only process 1 takes in orphans. */
  if (hand->parent.pid <= 1 || goes_to_background(hand->argv) ||
      !dr_proc_identify(hand->parent.pid, &hand->parent, NULL))
    hand->parent = (DrProcId){ 0 };
  return g_steal_pointer(&hand);
}

/* --- JSON --- */

/* A word of a command line or an environment is bytes and JSON is not: what is no UTF-8, controls, and % are %XX. */
static char *
to_json(const char *word)
{
  return g_uri_escape_string(word, " !\"#$&'()*+,/:;<=>?@[\\]^`{|}", /* allow_utf8= */ TRUE);
}

static JsonArray *
words_to_json(char **words)
{
  JsonArray *array = json_array_new();

  for (; words && *words; words++) {
    g_autofree char *text = to_json(*words);

    json_array_add_string_element(array, text);
  }
  return array;
}

static char **
words_from_json(JsonArray *array)
{
  char **words = dr_json_strv(array);

  for (guint i = 0; words && words[i]; i++) {
    char *word = g_uri_unescape_string(words[i], NULL);

    g_free(words[i]);
    words[i] = word ? word : g_strdup("");
  }
  return words;
}

/* NULL (of stdio) is an empty word. */
static JsonArray *
stdio_to_json(const DrDaemonHand *hand)
{
  char *words[4] = { 0 };

  for (guint i = 0; i < 3; i++)
    words[i] = hand->stdio[i] ? hand->stdio[i] : (char *)"";
  return words_to_json(words);
}

/* RLIM_INFINITY is -1. */
static JsonArray *
limits_to_json(const DrDaemonHand *hand)
{
  JsonArray *array = json_array_new();

  for (guint i = 0; i < RLIM_NLIMITS; i++) {
    json_array_add_int_element(array, (gint64)hand->limits[i].rlim_cur);
    json_array_add_int_element(array, (gint64)hand->limits[i].rlim_max);
  }
  return array;
}

static JsonObject *
namespaces_to_json(const DrDaemonHand *hand)
{
  JsonObject *object = json_object_new();

  for (guint i = 0; i < DR_DAEMON_NAMESPACES; i++)
    if (hand->namespaces[i])
      json_object_set_int_member(object, dr_daemon_namespaces[i].name, (gint64)hand->namespaces[i]);
  return object;
}

JsonObject *
dr_daemon_hand_write(const DrDaemonHand *hand)
{
  g_autofree char *path = to_json(hand->path), *cwd = to_json(hand->cwd);
  JsonObject *object =
      dr_json("{'path': <%s>, 'cwd': <%s>, 'uid': <%x>, 'gid': <%x>, 'umask': <%x>, 'oom-score': <%x>, "
              "'parent': <%x>, 'parent-start': <%x>}",
              path, cwd, (gint64)hand->uid, (gint64)hand->gid, (gint64)hand->mask, (gint64)hand->oom_score,
              (gint64)hand->parent.pid, (gint64)hand->parent.start_time);
  JsonArray *groups = json_array_new();

  for (guint i = 0; i < hand->n_groups; i++)
    json_array_add_int_element(groups, hand->groups[i]);
  json_object_set_array_member(object, "groups", groups);
  json_object_set_array_member(object, "argv", words_to_json(hand->argv));
  json_object_set_array_member(object, "environment", words_to_json(hand->envp));
  json_object_set_array_member(object, "stdio", stdio_to_json(hand));
  json_object_set_array_member(object, "cgroups", words_to_json(hand->cgroups));
  json_object_set_array_member(object, "limits", limits_to_json(hand));
  json_object_set_object_member(object, "namespaces", namespaces_to_json(hand));
  return object;
}

/* NULL unless it is an array of `n` integers; n G_MAXUINT: of any number. */
static gint64 *
ints_from_json(JsonArray *array, guint n, guint *ret_n)
{
  g_autofree gint64 *ints = NULL;

  if (!array || (n != G_MAXUINT && json_array_get_length(array) != n))
    return NULL;
  *ret_n = json_array_get_length(array);
  ints = g_new0(gint64, *ret_n + 1);
  for (guint i = 0; i < *ret_n; i++) {
    JsonNode *node = json_array_get_element(array, i);

    if (!JSON_NODE_HOLDS_VALUE(node) || json_node_get_value_type(node) != G_TYPE_INT64)
      return NULL;
    ints[i] = json_node_get_int(node);
  }
  return g_steal_pointer(&ints);
}

static gboolean
read_numbers(JsonObject *object, DrDaemonHand *hand)
{
  guint n;
  g_autofree gint64 *groups = ints_from_json(dr_json_arr(object, "groups"), G_MAXUINT, &hand->n_groups);
  g_autofree gint64 *limits = ints_from_json(dr_json_arr(object, "limits"), 2 * RLIM_NLIMITS, &n);
  gint64 uid = dr_json_int(object, "uid", -1), gid = dr_json_int(object, "gid", -1);

  if (!groups || !limits || uid < 0 || gid < 0)
    return FALSE;
  hand->groups = g_new(gid_t, hand->n_groups + 1);
  for (guint i = 0; i < hand->n_groups; i++)
    hand->groups[i] = (gid_t)groups[i];
  for (guint i = 0; i < RLIM_NLIMITS; i++)
    hand->limits[i] =
        (struct rlimit){ .rlim_cur = (rlim_t)limits[2 * i], .rlim_max = (rlim_t)limits[2 * i + 1] };
  hand->uid = (uid_t)uid;
  hand->gid = (gid_t)gid;
  hand->mask = (guint)dr_json_int(object, "umask", 022);
  hand->oom_score = (int)dr_json_int(object, "oom-score", 0);
  hand->parent = (DrProcId){ .pid = (pid_t)dr_json_int(object, "parent", 0),
                             .start_time = (guint64)dr_json_int(object, "parent-start", 0) };
  return TRUE;
}

static gboolean
read_words(JsonObject *object, DrDaemonHand *hand)
{
  g_auto(GStrv) stdio = words_from_json(dr_json_arr(object, "stdio"));

  hand->path = g_uri_unescape_string(dr_json_str(object, "path", NULL), NULL);
  hand->cwd = g_uri_unescape_string(dr_json_str(object, "cwd", NULL), NULL);
  hand->argv = words_from_json(dr_json_arr(object, "argv"));
  hand->envp = words_from_json(dr_json_arr(object, "environment"));
  hand->cgroups = words_from_json(dr_json_arr(object, "cgroups"));
  for (guint i = 0; stdio && stdio[i] && i < 3; i++)
    hand->stdio[i] = stdio[i][0] ? g_strdup(stdio[i]) : NULL;
  return hand->path && hand->cwd && hand->argv && hand->argv[0] && hand->envp && hand->cgroups && stdio;
}

DrDaemonHand *
dr_daemon_hand_read(JsonObject *object, GError **error)
{
  g_autoptr(DrDaemonHand) hand = hand_new();
  JsonObject *namespaces = dr_json_obj(object, "namespaces");

  for (guint i = 0; namespaces && i < DR_DAEMON_NAMESPACES; i++)
    hand->namespaces[i] = (guint64)dr_json_int(namespaces, dr_daemon_namespaces[i].name, 0);
  if (namespaces && read_words(object, hand) && read_numbers(object, hand))
    return g_steal_pointer(&hand);
  dr_error_set(error, DR_ERROR_INVALID, "what was written of libvirt's daemon is incomplete");
  return NULL;
}

char *
dr_daemon_hand_command(const DrDaemonHand *hand)
{
  g_autoptr(GString) text = g_string_new(NULL);

  for (guint i = 0; hand->argv[i]; i++) {
    g_autofree char *word = g_shell_quote(i ? hand->argv[i] : hand->path);

    g_string_append_printf(text, "%s%s", i ? " " : "", word);
  }
  return g_string_free(g_steal_pointer(&text), FALSE);
}

/* --- Starting it --- */

/* What another drover noted was closed with it: any process that is still in that namespace lends it. */
static int
search_namespace(const char *name, guint64 inode)
{
  g_autoptr(GDir) proc = g_dir_open("/proc", 0, NULL);
  const char *pid;

  while (proc && (pid = g_dir_read_name(proc))) {
    g_autofree char *path = NULL;
    dr_autofd int fd = -1;
    struct stat status;

    if (!g_ascii_isdigit(pid[0]) || namespace_of(pid, name) != inode)
      continue;
    path = g_strdup_printf("/proc/%s/ns/%s", pid, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &status) == 0 && status.st_ino == inode)
      return dr_fd_steal(&fd);
  }
  return -1;
}

static gboolean
open_namespaces(DrDaemonHand *hand, GError **error)
{
  for (guint i = 0; i < DR_DAEMON_NAMESPACES; i++) {
    const char *name = dr_daemon_namespaces[i].name;

    if (!hand->namespaces[i] || hand->namespace_fds[i] >= 0)
      continue;
    hand->namespace_fds[i] = search_namespace(name, hand->namespaces[i]);
    if (hand->namespace_fds[i] < 0)
      return dr_error_set(error, DR_ERROR_NOT_FOUND,
                          "the %s namespace that libvirt's daemon was in does not exist any more", name);
  }
  return TRUE;
}

/* A line of /proc/self/mountinfo: whether it is the hierarchy of that controller ("": the unified one), whole. Its mount point, else NULL.
 * (transfer full) */
static char *
hierarchy(const char *line, const char *controller)
{
  g_auto(GStrv) halves = g_strsplit(line, " - ", 2);
  g_auto(GStrv) left = g_strsplit(halves[0] ? halves[0] : "", " ", 6);
  g_auto(GStrv) right = g_strsplit(halves[0] && halves[1] ? halves[1] : "", " ", 3);
  g_auto(GStrv) options = NULL;

  if (g_strv_length(left) < 6 || g_strv_length(right) < 3 || strcmp(left[3], "/") != 0)
    return NULL;
  if (!controller[0])
    return strcmp(right[0], "cgroup2") == 0 ? g_strdup(left[4]) : NULL;
  options = g_strsplit(right[2], ",", -1);
  return strcmp(right[0], "cgroup") == 0 && g_strv_contains((const char *const *)options, controller)
             ? g_strdup(left[4])
             : NULL;
}

/* The cgroup.procs of one line of /proc/PID/cgroup, open; -1: it is gone, or is ours anyhow. */
static int
open_cgroup(const char *line, char **mounts)
{
  g_auto(GStrv) fields = g_strsplit(line, ":", 3);
  g_auto(GStrv) controllers = NULL;

  if (g_strv_length(fields) < 3)
    return -1;
  controllers = g_strsplit(fields[1], ",", -1);
  for (guint i = 0; mounts[i]; i++) {
    g_autofree char *root = hierarchy(mounts[i], controllers[0] ? controllers[0] : "");
    g_autofree char *path = root ? g_build_filename(root, fields[2], "cgroup.procs", NULL) : NULL;

    if (path)
      return open(path, O_WRONLY | O_CLOEXEC);
  }
  return -1;
}

/* Those that differ from ours: the daemon is not to end with droverd's service, nor its shell's session to lose it. (transfer full) */
static GArray *
open_cgroups(const DrDaemonHand *hand)
{
  GArray *fds = g_array_new(FALSE, FALSE, sizeof(int));
  g_autofree char *own = read_proc("self", "cgroup"), *mountinfo = read_proc("self", "mountinfo");
  g_auto(GStrv) lines = g_strsplit(own ? own : "", "\n", -1);
  g_auto(GStrv) mounts = g_strsplit(mountinfo ? mountinfo : "", "\n", -1);

  for (guint i = 0; hand->cgroups[i]; i++) {
    int fd = -1;

    if (!g_strv_contains((const char *const *)lines, hand->cgroups[i]))
      fd = open_cgroup(hand->cgroups[i], mounts);
    if (fd >= 0)
      g_array_append_val(fds, fd);
  }
  return fds;
}

gboolean
dr_daemon_hand_start(DrDaemonHand *hand, pid_t *ret_pid, GError **error)
{
  g_autoptr(GArray) cgroups = NULL;
  gboolean started;

  if (!open_namespaces(hand, error))
    return FALSE;
  cgroups = open_cgroups(hand);
  started = dr_daemon_spawn(hand, (const int *)cgroups->data, cgroups->len, ret_pid, error);
  for (guint i = 0; i < cgroups->len; i++)
    close(g_array_index(cgroups, int, i));
  return started;
}
