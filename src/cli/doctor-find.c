/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover doctor: which droverd runs, and which configuration it has. */
#include "base/error.h"
#include "base/fd.h"
#include "cli/doctor.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_S 5
#define WORDS_MAX 65536
#define SYSTEM_FILE "/etc/drover/droverd.conf"

/* Who made the socket that we connect to. */
static void
ask_kernel(DrDoctor *d)
{
  const char *path = dr_client_path(d->cli->client);
  struct ucred who;
  socklen_t len = sizeof who;
  dr_autofd int fd = path ? dr_unix_connect(path, SOCK_NONBLOCK, NULL) : -1;

  if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0)
    return;
  d->daemon = who.pid == 1 ? 0 : who.pid; /* systemd listens, whether or not droverd runs */
  d->daemon_uid = who.uid;
}

static void
ask_daemon(DrDoctor *d)
{
  g_autoptr(JsonNode) answer = NULL;

  dr_client_set_timeout(d->cli->client, ANSWER_S);
  answer = dr_cli_call(d->cli, "GET", "/v1/version", NULL, NULL, &d->no_answer);
  if (!answer)
    return;
  if (JSON_NODE_HOLDS_OBJECT(answer)) {
    d->version = json_node_dup_object(answer);
    if (dr_client_path(d->cli->client)) /* the socket may be systemd's */
      d->daemon = (pid_t)dr_json_int(d->version, "pid", d->daemon);
  } else
    dr_error_set(&d->no_answer, DR_ERROR_INTERNAL, "what answers is no droverd");
}

/* --- Its command line --- */

/* What it was called with, from the directory that it was called in; NULL: it is no droverd, or cannot be looked at. */
static char **
words_of(pid_t pid)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/cmdline", pid);
  g_autoptr(GStrvBuilder) words = g_strv_builder_new();
  gsize len = 0;
  g_autofree char *text = pid ? dr_file_read(path, WORDS_MAX, &len, NULL) : NULL;
  g_autofree char *program = text ? g_path_get_basename(text) : NULL;

  if (!program || !g_str_equal(program, "droverd"))
    return NULL;
  for (const char *word = text; word < text + len; word += strlen(word) + 1)
    g_strv_builder_add(words, word);
  return g_strv_builder_end(words);
}

/* The value of --config among them. (transfer full) (nullable) */
static char *
config_of(char **words, pid_t pid)
{
  g_autofree char *link = g_strdup_printf("/proc/%d/cwd", pid);
  g_autofree char *cwd = g_file_read_link(link, NULL);
  const char *file = NULL;

  for (char **word = words; word && *word; word++)
    if ((g_str_equal(*word, "--config") || g_str_equal(*word, "-c")) && word[1])
      file = word[1];
    else if (g_str_has_prefix(*word, "--config="))
      file = *word + strlen("--config=");
  return file ? g_canonicalize_filename(file, cwd ? cwd : "/") : NULL;
}

/* What --run-dir and --state-dir it was given is told by its answer. */
static char *
find_file(DrDoctor *d, const char *file)
{
  g_auto(GStrv) words = file ? NULL : words_of(d->daemon);
  g_autofree char *system = dr_doctor_path(d, SYSTEM_FILE);
  char *found = file ? g_canonicalize_filename(file, NULL) : config_of(words, d->daemon);
  gboolean of_root = (d->daemon ? d->daemon_uid : geteuid()) == 0;

  return !found && of_root && access(system, F_OK) == 0 ? g_steal_pointer(&system) : found;
}

/* By the functions by which droverd reads it. */
static void
read_config(DrDoctor *d)
{
  char *words[] = { (char *)"droverd", (char *)"--config", d->config_file, NULL };
  char **argv = words;
  int argc = d->config_file ? 3 : 1;
  g_autoptr(GError) error = NULL;

  d->config_read = dr_config_load(&d->config, &argc, &argv, &error);
  if (d->config_read)
    return;
  d->config_problem = g_strdup(error->message);
  d->config_remedy = g_strdup(dr_error_get_remedy(error));
}

void
dr_doctor_find_daemon(DrDoctor *d, const char *file)
{
  ask_kernel(d);
  ask_daemon(d);
  d->config_file = find_file(d, file);
  read_config(d);
}
