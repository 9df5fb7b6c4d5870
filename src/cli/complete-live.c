/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Completion: the names of things, which droverd and this host know. An error is no candidate: nothing is said. */
#include "base/fd.h"
#include "cli/complete.h"

#include <glob.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#define CMDLINE_MAX (1024 * 1024)

/* --- Time --- */

static void
on_alarm(int number)
{
  _exit(DR_EXIT_DONE);
}

/* Before whatever may hang is asked: what has been found stays good, and from now on there are DR_COMPLETE_MS in all. */
static void
begin(void)
{
  const struct itimerval limit = { .it_value.tv_usec = DR_COMPLETE_MS * 1000 };
  static gboolean begun;

  fflush(stdout);
  if (begun)
    return;
  begun = TRUE;
  signal(SIGALRM, on_alarm);
  setitimer(ITIMER_REAL, &limit, NULL);
}

/* --- What droverd knows --- */

/* `path` has "{}" where `name` (nullable) belongs. NULL: there is none, or it is not to be had. */
static JsonArray *
ask(const DrComplete *complete, const char *path, const char *name)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = NULL;

  begin();
  if (!dr_cli_client(complete->cli, &error))
    return NULL;
  dr_client_set_timeout(complete->cli->client, 1);
  answer = dr_cli_call(complete->cli, "GET", path, name, NULL, &error);
  return answer && JSON_NODE_HOLDS_ARRAY(answer) ? json_node_dup_array(answer) : NULL;
}

/* The VM that the words before it name; NULL: none. */
static const char *
vm_of(const DrComplete *complete)
{
  return complete->words->len > 0 ? complete->words->pdata[0] : NULL;
}

/* A name that is there already is not typed once more, as in `drover pause web1 web1`. */
static gboolean
is_there(const DrComplete *complete, const char *name)
{
  return g_ptr_array_find_with_equal_func(complete->words, name, g_str_equal, NULL);
}

/* Members `name` of all, with what `about` says. */
static void
say_each(const DrComplete *complete, JsonArray *array, const char *name, char *(*about)(JsonObject *one))
{
  for (guint i = 0; array && i < json_array_get_length(array); i++) {
    JsonNode *node = json_array_get_element(array, i);
    JsonObject *one = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    g_autofree char *text = one ? about(one) : NULL;
    const char *candidate = dr_json_str(one, name, NULL);

    if (candidate && !is_there(complete, candidate))
      dr_complete_say(complete, candidate, text);
  }
}

static char *
about_vm(JsonObject *vm)
{
  return g_strdup_printf("%s, QEMU %s", dr_json_str(vm, "state", "?"), dr_json_str(vm, "qemu_version", "?"));
}

static char *
about_peer(JsonObject *peer)
{
  return g_strdup_printf("a peer, %s", dr_json_str(peer, "host", "?"));
}

static char *
about_job(JsonObject *job)
{
  return g_strdup_printf("%s of %s, %s", dr_json_str(job, "kind", "?"), dr_json_str(job, "vm", "?"),
                         dr_json_str(job, "state", "?"));
}

static char *
about_disk(JsonObject *disk)
{
  return g_strdup(dr_json_str(disk, "file", "empty"));
}

static char *
about_snapshot(JsonObject *snapshot)
{
  return g_strdup(dr_json_str(snapshot, "description", "a snapshot"));
}

static char *
about_bitmap(JsonObject *bitmap)
{
  return g_strdup_printf("of disk %s", dr_json_str(bitmap, "disk", "?"));
}

static void
say_from(const DrComplete *complete, const char *path, const char *of, const char *name,
         char *(*about)(JsonObject *one))
{
  g_autoptr(JsonArray) array = ask(complete, path, of);

  say_each(complete, array, name, about);
}

static void
say_vms(const DrComplete *complete)
{
  say_from(complete, "/v1/vms", NULL, "name", about_vm);
}

static void
say_peers(const DrComplete *complete)
{
  say_from(complete, "/v1/peers", NULL, "name", about_peer);
}

/* One that has ended is neither cancelled nor waited for. */
static void
say_jobs(const DrComplete *complete)
{
  static const char *const live[] = { "queued", "running", NULL }, *const those[] = { "cancel", "watch",
                                                                                      NULL };
  g_autoptr(JsonArray) jobs = ask(complete, "/v1/jobs", NULL);
  gboolean all = !g_strv_contains(those, complete->cli->verb->name);

  for (guint i = jobs ? json_array_get_length(jobs) : 0; i-- > 0;) {
    JsonObject *job = json_array_get_object_element(jobs, i);

    if (!all && !g_strv_contains(live, dr_json_str(job, "state", "")))
      json_array_remove_element(jobs, i);
  }
  say_each(complete, jobs, "id", about_job);
}

static void
say_disks(const DrComplete *complete)
{
  if (vm_of(complete))
    say_from(complete, "/v1/vms/{}/disks", vm_of(complete), "name", about_disk);
}

static void
say_snapshots(const DrComplete *complete)
{
  if (vm_of(complete))
    say_from(complete, "/v1/vms/{}/snapshots", vm_of(complete), "name", about_snapshot);
}

static void
say_bitmaps(const DrComplete *complete)
{
  if (vm_of(complete))
    say_from(complete, "/v1/vms/{}/bitmaps", vm_of(complete), "name", about_bitmap);
}

/* Those of this very QEMU. */
static void
say_qmp_commands(const DrComplete *complete)
{
  g_autoptr(JsonObject) query = dr_json("{'execute': <'query-commands'>}");
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = NULL;
  JsonArray *commands;

  begin();
  if (!vm_of(complete) || !dr_cli_client(complete->cli, &error))
    return;
  dr_client_set_timeout(complete->cli->client, 1);
  answer = dr_cli_call(complete->cli, "POST", "/v1/vms/{}/qmp", vm_of(complete), query, &error);
  commands =
      answer && JSON_NODE_HOLDS_OBJECT(answer) ? dr_json_arr(json_node_get_object(answer), "return") : NULL;
  for (guint i = 0; commands && i < json_array_get_length(commands); i++)
    dr_complete_say(complete, dr_json_str(json_array_get_object_element(commands, i), "name", ""), NULL);
}

/* --- What this host knows --- */

/* The emulators of PATH; others are files. */
static void
say_binaries(const DrComplete *complete)
{
  g_autoptr(GHashTable) said = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  g_auto(GStrv) dirs = g_strsplit(g_getenv("PATH") ? g_getenv("PATH") : "", ":", -1);

  dr_complete_ask_shell("files");
  begin();
  for (char **dir = dirs; *dir; dir++) {
    g_autofree char *pattern = g_build_filename(**dir ? *dir : ".", "qemu-system-*", NULL);
    glob_t found = { 0 };

    if (!strchr(complete->last, '/') && glob(pattern, GLOB_NOSORT, NULL, &found) == 0)
      for (gsize i = 0; i < found.gl_pathc; i++) {
        char *name = g_path_get_basename(found.gl_pathv[i]);

        if (!g_hash_table_contains(said, name)) /* the first of PATH is the one that starts */
          dr_complete_say(complete, name, found.gl_pathv[i]);
        g_hash_table_add(said, name);
      }
    globfree(&found);
  }
}

/* "web1" of "-name guest=web1,debug-threads=on"; else its program. (transfer full), NULL: it is no QEMU. */
static char *
name_of_qemu(const char *pid)
{
  g_autofree char *path = g_strdup_printf("/proc/%s/cmdline", pid);
  gsize len = 0;
  g_autofree char *text = dr_file_read(path, CMDLINE_MAX, &len, NULL);
  g_autofree char *program = text && *text ? g_path_get_basename(text) : NULL;
  const char *word;

  if (!program || !(g_str_has_prefix(program, "qemu-system-") || g_str_equal(program, "qemu-kvm") ||
                    g_str_equal(program, "kvm")))
    return NULL;
  for (word = text; word < text + len; word += strlen(word) + 1)
    if (g_str_equal(word, "-name") && word + strlen(word) + 1 < text + len) {
      const char *name = word + strlen(word) + 1;

      name += g_str_has_prefix(name, "guest=") ? strlen("guest=") : 0;
      return g_strndup(name, strcspn(name, ","));
    }
  return g_steal_pointer(&program);
}

static void
say_pids(const DrComplete *complete)
{
  g_autoptr(GDir) proc = g_dir_open("/proc", 0, NULL);
  const char *entry;

  begin();
  while (proc && (entry = g_dir_read_name(proc)) != NULL) {
    g_autofree char *name = g_ascii_isdigit(*entry) ? name_of_qemu(entry) : NULL;

    if (name)
      dr_complete_say(complete, entry, name);
  }
}

static void
say_sockets(const DrComplete *complete)
{
  g_autofree char *own = g_build_filename(g_get_user_runtime_dir(), "drover", "api.sock", NULL);
  const char *const paths[] = { "/run/drover/api.sock", own };

  for (guint i = 0; i < G_N_ELEMENTS(paths); i++) {
    g_autofree char *where = g_strconcat("unix:", paths[i], NULL);

    if (g_file_test(paths[i], G_FILE_TEST_EXISTS))
      dr_complete_say(complete, where, "droverd's socket");
  }
  dr_complete_ask_shell("files");
}

static void
say_formats(const DrComplete *complete)
{
  dr_complete_say(complete, "qcow2", NULL);
  dr_complete_say(complete, "raw", NULL);
}

static void
say_verbs(const DrComplete *complete)
{
  for (const DrVerb *verb = dr_verbs; verb->name; verb++)
    dr_complete_say(complete, verb->name, verb->summary);
}

static void
ask_files(const DrComplete *complete)
{
  dr_complete_ask_shell("files");
}

static void
ask_dirs(const DrComplete *complete)
{
  dr_complete_ask_shell("dirs");
}

/* --- By what usage calls it --- */

static const struct {
  const char *placeholder;
  void (*say)(const DrComplete *complete);
} kinds[] = {
  { "NAME", say_vms },
  { "PEER", say_peers },
  { "JOB", say_jobs },
  { "ID", say_jobs },
  { "DISK", say_disks },
  { "DISK[=FILE]", say_disks },
  { "SNAPSHOT", say_snapshots },
  { "BITMAP", say_bitmaps },
  { "INTO", say_bitmaps },
  { "FROM", say_bitmaps },
  { "COMMAND", say_qmp_commands },
  { "PID", say_pids },
  { "BINARY", say_binaries },
  { "FORMAT", say_formats },
  { "VERB", say_verbs },
  { "unix:PATH", say_sockets },
  { "DIR", ask_dirs },
  { "FILE", ask_files },
  { "PATH", ask_files },
  { "SOCKET", ask_files },
  { "TARGET", ask_files },
  { "FILE|DIR", ask_files },
  { "FILE|NODE", ask_files },
  { "[DISK=]FILE", ask_files },
};

/* "full|top": words to be typed as they are. */
static gboolean
say_alternatives(const DrComplete *complete, const char *placeholder)
{
  g_auto(GStrv) words = g_strsplit(placeholder, "|", -1);
  gboolean any = FALSE;

  for (char **word = words; *word; word++)
    if (**word && !(*word)[strspn(*word, "abcdefghijklmnopqrstuvwxyz0123456789-")]) {
      dr_complete_say(complete, *word, NULL);
      any = TRUE;
    }
  return any;
}

gboolean
dr_complete_placeholder(const DrComplete *complete, const char *placeholder)
{
  for (guint i = 0; i < G_N_ELEMENTS(kinds); i++)
    if (g_str_equal(kinds[i].placeholder, placeholder)) {
      kinds[i].say(complete);
      return TRUE;
    }
  return say_alternatives(complete, placeholder);
}
