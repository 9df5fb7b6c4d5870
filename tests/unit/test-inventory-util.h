/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the tests of the inventory share: QEMUs of several versions that start, are asked, and are killed by pid. */
#pragma once
#include "base/error.h"
#include "job/blockers.h"
#include "job/inventory.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define WAIT_MS 20000 /* for what takes milliseconds, on a busy machine */

#ifndef DROVER_SOURCE_ROOT
#define DROVER_SOURCE_ROOT "."
#endif

static char *dir; /* of the case; gone afterwards */

/* --- Binaries --- */

/* "7.2" is the installed one; others are fetched by tests/tools/fetch-qemu. NULL: not on this machine. */
static inline char *
find_qemu(const char *version)
{
  const char *root = g_getenv("DROVER_QEMU_DIR");
  g_autofree char *path = NULL;

  if (g_str_equal(version, "7.2"))
    return g_find_program_in_path("qemu-system-x86_64");
  path = root ? g_build_filename(root, version, "qemu-system-x86_64", NULL)
              : g_build_filename(DROVER_SOURCE_ROOT, "build", "qemu", version, "qemu-system-x86_64", NULL);
  return access(path, X_OK) == 0 ? g_steal_pointer(&path) : NULL;
}

static inline void
run(const char *format, ...)
{
  g_autofree char *line = NULL;
  g_autoptr(GError) error = NULL;
  int status;
  va_list ap;

  va_start(ap, format);
  line = g_strdup_vprintf(format, ap);
  va_end(ap);
  g_spawn_command_line_sync(line, NULL, NULL, &status, &error);
  g_assert_no_error(error);
  g_assert_cmpint(status, ==, 0);
}

/* a, b: qcow2; ov: an overlay of a; r, t: raw; cd, cd2: media */
static inline void
begin_case(void)
{
  g_autoptr(GError) error = NULL;

  dir = g_dir_make_tmp("drover-inventory-XXXXXX", &error);
  g_assert_no_error(error);
  for (const char *const *name = (const char *const[]){ "a", "b", "c", NULL }; *name; name++)
    run("qemu-img create -q -f qcow2 %s/%s.qcow2 4M", dir, *name);
  run("qemu-img create -q -f qcow2 -b %s/a.qcow2 -F qcow2 %s/ov.qcow2", dir, dir);
  for (const char *const *name = (const char *const[]){ "r", "t", "cd", "cd2", NULL }; *name; name++)
    run("qemu-img create -q -f raw %s/%s.raw 4M", dir, *name);
}

static inline void
end_case(void)
{
  run("rm -rf %s", dir);
  g_clear_pointer(&dir, g_free);
}

/* "%D" is the directory, "%M" the version of the machine type. */
static inline char *
expand(const char *text, const char *machine)
{
  g_autoptr(GString) out = g_string_new(text);

  g_string_replace(out, "%D", dir ? dir : "", 0);
  g_string_replace(out, "%M", machine, 0);
  return g_strdup(out->str);
}

/* --- A running QEMU --- */

typedef struct {
  GPid pid;
  DrQmp *qmp;
  char *socket;
} Qemu;

static inline void
qemu_free(Qemu *qemu)
{
  dr_qmp_free(qemu->qmp);
  kill(qemu->pid, SIGKILL);
  waitpid(qemu->pid, NULL, 0);
  unlink(qemu->socket);
  g_free(qemu->socket);
  g_free(qemu);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Qemu, qemu_free)

/* QEMU's messages go to a file, to be shown if it does not start. */
static inline void
prepare_child(gpointer log)
{
  int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);

  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (fd >= 0) {
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    close(fd);
  }
}

static inline gboolean
has_ended(GPid pid)
{
  siginfo_t info = { 0 };

  return waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
}

/* Waits for the monitor, but not for one of a QEMU that has ended. */
static inline DrQmp *
connect_to(Qemu *qemu)
{
  for (DrDeadline deadline = dr_deadline_in(WAIT_MS);
       !dr_deadline_passed(deadline) && !has_ended(qemu->pid);) {
    g_autoptr(GError) error = NULL;
    DrQmp *qmp = dr_qmp_connect(qemu->socket, TRUE, dr_deadline_in(100), &error);

    if (qmp)
      return qmp;
  }
  return NULL;
}

/* `words` begin with the program. NULL: it does not start. */
static inline Qemu *
qemu_start(char **words, gboolean incoming)
{
  static guint serial;
  g_autoptr(Qemu) qemu = g_new0(Qemu, 1);
  g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
  g_autofree char *log = g_strdup_printf("%s/log", dir), *said = NULL;
  g_autoptr(GError) error = NULL;

  qemu->socket = g_strdup_printf("%s/qmp%u", dir, ++serial);
  for (char **word = words; *word; word++)
    g_ptr_array_add(argv, g_strdup(*word));
  for (const char *const *word = (const char *const[]){ "-S", "-display", "none", "-qmp", NULL }; *word;
       word++)
    g_ptr_array_add(argv, g_strdup(*word));
  g_ptr_array_add(argv, g_strdup_printf("unix:%s,server=on,wait=off", qemu->socket));
  if (incoming) {
    g_ptr_array_add(argv, g_strdup("-incoming"));
    g_ptr_array_add(argv, g_strdup("defer"));
  }
  g_ptr_array_add(argv, NULL);
  g_spawn_async(NULL, (char **)argv->pdata, NULL, G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_SEARCH_PATH,
                prepare_child, log, &qemu->pid, &error);
  g_assert_no_error(error);
  qemu->qmp = connect_to(qemu);
  if (qemu->qmp)
    return g_steal_pointer(&qemu);
  g_file_get_contents(log, &said, NULL, NULL);
  g_test_message("%s", said ? said : "");
  return NULL;
}

/* "BINARY WORD WORD …", with a blank in a word written as "%20". */
static inline char **
words_of(const char *binary, const char *line, const char *machine)
{
  g_autofree char *expanded = expand(line, machine);
  g_autoptr(GStrvBuilder) words = g_strv_builder_new();
  g_auto(GStrv) parts = g_strsplit(expanded, " ", -1);

  g_strv_builder_add(words, binary);
  for (char **part = parts; *part; part++) {
    g_autoptr(GString) word = g_string_new(*part);

    g_string_replace(word, "%20", " ", 0);
    if (word->len)
      g_strv_builder_add(words, word->str);
  }
  return g_strv_builder_end(words);
}

static inline DrArgv *
parse(char **words)
{
  g_autoptr(GError) error = NULL;
  DrArgv *argv = dr_argv_parse((const char *const *)words, &error);

  g_assert_no_error(error);
  return argv;
}

static inline DrInventory *
read_inventory(Qemu *qemu)
{
  g_autoptr(GError) error = NULL;
  DrInventory *inventory = dr_inventory_read(qemu->qmp, &error);

  g_assert_no_error(error);
  return inventory;
}

/* --- Steps of a case: what is done to the running guest --- */

static inline gboolean
jobs_are_quiet(DrQmp *qmp)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonArray) jobs = dr_qmp_call_array(qmp, "query-block-jobs", NULL, &error);

  g_assert_no_error(error);
  for (guint i = 0; i < json_array_get_length(jobs); i++)
    if (!dr_json_bool(json_array_get_object_element(jobs, i), "ready", FALSE))
      return FALSE;
  return TRUE;
}

static inline void
wait_for_jobs(DrQmp *qmp)
{
  for (DrDeadline deadline = dr_deadline_in(WAIT_MS); !jobs_are_quiet(qmp);) {
    g_assert_false(dr_deadline_passed(deadline));
    g_usleep(2000);
  }
}

/* object-add has its properties beside the id since 6.0, below "props" before. */
static inline JsonObject *
fit_arguments(DrQmp *qmp, const char *command, JsonObject *arguments)
{
  JsonObject *props;
  g_autoptr(GList) names = NULL;

  if (!g_str_equal(command, "object-add") || dr_qmp_version_number(qmp) >= DR_QEMU(6, 0))
    return json_object_ref(arguments);
  props = json_object_new();
  names = json_object_get_members(arguments);
  for (GList *at = names; at; at = at->next) {
    if (g_str_equal(at->data, "id") || g_str_equal(at->data, "qom-type"))
      continue;
    json_object_set_member(props, at->data, json_node_copy(json_object_get_member(arguments, at->data)));
    json_object_remove_member(arguments, at->data);
  }
  json_object_set_object_member(arguments, "props", props);
  return json_object_ref(arguments);
}

/* "command {JSON}", "hmp LINE", "jobs" (wait until all have finished or are ready), "event NAME", "shell LINE". */
static inline void
do_step(DrQmp *qmp, const char *step, const char *machine)
{
  g_autofree char *text = expand(step, machine);
  char *rest = strchr(text, ' ');
  g_autoptr(GError) error = NULL;

  if (rest)
    *rest++ = '\0';
  if (g_str_equal(text, "jobs")) {
    wait_for_jobs(qmp);
  } else if (g_str_equal(text, "shell")) {
    run("%s", rest);
  } else if (g_str_equal(text, "hmp")) {
    g_autofree char *answer = dr_qmp_hmp(qmp, &error, "%s", rest);
  } else if (g_str_equal(text, "event")) {
    g_autoptr(DrQmpEvent) event = dr_qmp_wait_event(qmp, rest, dr_deadline_in(WAIT_MS), &error);
  } else {
    g_autoptr(JsonObject) arguments =
        rest ? dr_json_parse_object(rest, -1, 65536, &error) : json_object_new();

    g_assert_no_error(error);
    dr_qmp_do(qmp, text, fit_arguments(qmp, text, arguments), &error);
  }
  g_assert_no_error(error);
}

/* --- Findings --- */

static inline char *
codes_of(const DrFindings *findings, DrSeverity least)
{
  g_autoptr(GString) codes = g_string_new(NULL);

  for (guint i = 0; i < dr_findings_count(findings); i++) {
    const DrFinding *finding = dr_findings_get(findings, i);

    g_test_message("%d %s: %s [%s]", finding->severity, finding->code, finding->text, finding->remedy);
    if (finding->severity <= least && !strstr(codes->str, finding->code))
      g_string_append_printf(codes, "%s%s", codes->len ? "," : "", finding->code);
  }
  return g_strdup(codes->str);
}

#define assert_codes(findings, least, expected)                                                              \
  G_STMT_START                                                                                               \
  {                                                                                                          \
    g_autofree char *codes_ = codes_of(findings, least);                                                     \
    g_assert_cmpstr(codes_, ==, expected);                                                                   \
  }                                                                                                          \
  G_STMT_END

/* The whole stream, to be sure that QEMU itself takes the destination. FALSE: it does not. */
static inline gboolean
migrate(Qemu *source, Qemu *destination)
{
  g_autofree char *uri = g_strdup_printf("unix:%s/migration", dir);
  g_autoptr(GError) error = NULL;

  dr_qmp_do(destination->qmp, "migrate-incoming", dr_json("{'uri': <%s>}", uri), &error);
  g_assert_no_error(error);
  dr_qmp_do(source->qmp, "migrate", dr_json("{'uri': <%s>}", uri), &error);
  g_assert_no_error(error);
  for (DrDeadline deadline = dr_deadline_in(WAIT_MS); !dr_deadline_passed(deadline); g_usleep(5000)) {
    g_autoptr(JsonObject) ours = dr_qmp_call_object(source->qmp, "query-migrate", NULL, &error);
    g_autoptr(JsonObject) theirs =
        ours ? dr_qmp_call_object(destination->qmp, "query-migrate", NULL, &error) : NULL;

    if (!theirs)
      return FALSE;
    if (g_str_equal(dr_json_str(ours, "status", ""), "failed"))
      return FALSE;
    if (g_str_equal(dr_json_str(ours, "status", ""), "completed") &&
        g_str_equal(dr_json_str(theirs, "status", ""), "completed"))
      return TRUE;
  }
  return FALSE;
}
