/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Starts a QEMU without a machine on a socket of ours, asks, and kills it.
 *
 * What is tried may be anything that somebody gave as a QEMU. So it gets a session of its own, nothing to read, a pipe
 * that nobody empties to write to, and dies with the thread that tries it. */
#include "qemu/caps-probe.h"
#include "base/error.h"
#include "base/fd.h"
#include "qemu/child.h"
#include "qmp/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define END_MS 5000
#define MAX_LINE 200

typedef struct {
  const char *binary;
  const char *accel; /* nullable: its default */
  pid_t pid;         /* 0: none */
  int pidfd;
  int output; /* what it writes to stdout and stderr */
  DrQmp *qmp;
  DrDeadline deadline;
} Probe;

GHashTable *
dr_caps_set_new(void)
{
  return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
}

GHashTable *
dr_caps_table_new(void)
{
  return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
}

/* ---- Start and end ---- */

static gboolean
start_child(Probe *probe, int null_fd, int output, int socket, GError **error)
{
  g_auto(GStrv) envp = g_get_environ();
  const char *argv[] = { probe->binary,
                         "-S",
                         "-no-user-config",
                         "-nodefaults",
                         "-display",
                         "none",
                         "-machine",
                         "none",
                         "-chardev",
                         "socket,id=drover,fd=3",
                         "-mon",
                         "chardev=drover,mode=control",
                         probe->accel ? "-accel" : NULL,
                         probe->accel,
                         NULL };
  DrChild child = { .path = probe->binary,
                    .argv = (char *const *)argv,
                    .envp = envp,
                    .fds = (int[]){ null_fd, output, output, socket },
                    .n_fds = 4,
                    .dies_with_us = TRUE };
  int err = dr_child_start(&child, &probe->pid);

  if (err == 0)
    return TRUE;
  probe->pid = 0;
  return dr_exec_error(probe->binary, err, error);
}

/* *ret_socket: our end of its monitor. */
static gboolean
start(Probe *probe, int *ret_socket, GError **error)
{
  dr_autofd int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  dr_autofd int ours = -1, theirs = -1, output = -1;
  int both[2];

  if (null_fd < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both) < 0)
    return dr_error_set_errno(error, errno, "cannot try '%s'", probe->binary);
  ours = both[0];
  theirs = both[1];
  if (pipe2(both, O_CLOEXEC | O_NONBLOCK) < 0)
    return dr_error_set_errno(error, errno, "cannot try '%s'", probe->binary);
  probe->output = both[0];
  output = both[1];
  fcntl(output, F_SETFL, 0); /* only our end must not block: a program may not expect that of its stdout */
  if (!start_child(probe, null_fd, output, theirs, error))
    return FALSE;
  probe->pidfd = pidfd_open(probe->pid, 0);
  if (probe->pidfd < 0)
    return dr_error_set_errno(error, errno, "cannot watch '%s'", probe->binary);
  *ret_socket = dr_fd_steal(&ours);
  return TRUE;
}

/* Kills the session: a script may have started more than itself. */
static void
stop(Probe *probe)
{
  struct pollfd ended = { .fd = probe->pidfd, .events = POLLIN };

  g_clear_pointer(&probe->qmp, dr_qmp_free);
  if (probe->pid > 0) {
    kill(-probe->pid, SIGKILL);
    if (probe->pidfd >= 0 && poll(&ended, 1, END_MS) <= 0)
      g_warning("'%s' (process %d) was killed but does not end", probe->binary, (int)probe->pid);
    waitpid(probe->pid, NULL, WNOHANG);
  }
  dr_fd_cleanup(&probe->pidfd);
  dr_fd_cleanup(&probe->output);
}

/* ---- When it is no QEMU ---- */

/* The first line with something on it, or NULL. */
static char *
first_line(Probe *probe)
{
  char text[4096];
  gssize n = read(probe->output, text, sizeof text - 1);
  g_auto(GStrv) lines = NULL;
  g_autofree char *valid = n > 0 ? g_utf8_make_valid(text, n) : NULL;

  if (!valid)
    return NULL;
  lines = g_strsplit_set(valid, "\r\n", -1);
  for (guint i = 0; lines[i]; i++)
    if (g_strstrip(lines[i])[0])
      return g_utf8_strlen(lines[i], -1) > MAX_LINE ? g_utf8_substring(lines[i], 0, MAX_LINE)
                                                    : g_strdup(lines[i]);
  return NULL;
}

/* A tool of QEMU that is no emulator of a machine: qemu-img, qemu-nbd, qemu-x86_64, … */
static gboolean
is_other_tool(const char *binary)
{
  g_autofree char *name = g_path_get_basename(binary);

  return g_str_has_prefix(name, "qemu-") && !g_str_has_prefix(name, "qemu-system") &&
         !g_str_has_prefix(name, "qemu-kvm");
}

static gboolean
not_an_emulator(Probe *probe, GError **error)
{
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "'%s' is not a system emulator", probe->binary);
  return dr_error_remedy(error, "give a qemu-system-* binary");
}

static gboolean
not_a_qemu(Probe *probe, GError **error)
{
  g_autofree char *line = first_line(probe);

  if (is_other_tool(probe->binary))
    return not_an_emulator(probe, error);
  if (line)
    dr_error_set(error, DR_ERROR_INVALID, "'%s' does not behave like a QEMU: it says: %s", probe->binary,
                 line);
  else
    dr_error_set(error, DR_ERROR_INVALID, "'%s' does not behave like a QEMU, and it prints nothing",
                 probe->binary);
  return dr_error_remedy(error, "see what `%s -machine none -display none -S` does in a terminal",
                         probe->binary);
}

static gboolean
too_late(Probe *probe, GError **error)
{
  g_autofree char *line = first_line(probe);

  dr_error_set(error, DR_ERROR_TIMEOUT, "'%s' did not answer as a QEMU within %d s%s%s", probe->binary,
               DR_CAPS_PROBE_MS / 1000, line ? ": it says: " : "", line ? line : "");
  return dr_error_remedy(
      error, "if it is a wrapper script, it must pass its arguments and descriptors on to QEMU (exec "
             "qemu-system-x86_64 \"$@\")");
}

/* ---- The conversation ---- */

/* Until the first byte on the socket: dr_qmp_new_fd() has less patience than a cold start from a slow disk needs. */
static gboolean
wait_greeting(Probe *probe, int socket, GError **error)
{
  struct pollfd fds[] = { { .fd = socket, .events = POLLIN }, { .fd = probe->pidfd, .events = POLLIN } };
  char byte;
  int got;

  do
    got = poll(fds, 2, dr_deadline_left(probe->deadline));
  while (got < 0 && errno == EINTR);
  if (got <= 0)
    return too_late(probe, error);
  /* It may close the socket and live on, or greet and end: only a byte counts. */
  if (recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 1)
    return not_a_qemu(probe, error);
  return TRUE;
}

static gboolean
greet(Probe *probe, GError **error)
{
  g_autoptr(GError) local = NULL;
  dr_autofd int socket = -1;

  if (!start(probe, &socket, error) || !wait_greeting(probe, socket, error))
    return FALSE;
  probe->qmp = dr_qmp_new_fd(dr_fd_steal(&socket), probe->binary, probe->deadline, &local);
  if (probe->qmp)
    return TRUE;
  g_debug("%s: %s", probe->binary, local->message);
  return not_a_qemu(probe, error);
}

static JsonArray *
ask(Probe *probe, const char *command, JsonObject *arguments, GError **error)
{
  g_autoptr(JsonNode) node =
      dr_qmp_call(probe->qmp, command, arguments, dr_deadline_left(probe->deadline), error);

  if (node && JSON_NODE_HOLDS_ARRAY(node))
    return json_node_dup_array(node);
  if (node)
    dr_error_set(error, DR_ERROR_INVALID, "'%s' answered '%s' with something that is not an array",
                 probe->binary, command);
  return NULL;
}

/* Puts member `name` of each object of an answer into a set. */
static gboolean
ask_names(Probe *probe, const char *command, const char *name, JsonObject *arguments, GHashTable **ret_set,
          GError **error)
{
  g_autoptr(JsonArray) array = ask(probe, command, arguments, error);

  if (!array)
    return FALSE;
  *ret_set = dr_caps_set_new();
  for (guint i = 0; i < json_array_get_length(array); i++) {
    const char *value = dr_json_str(json_array_get_object_element(array, i), name, NULL);

    if (value)
      g_hash_table_add(*ret_set, g_strdup(value));
  }
  return TRUE;
}

static gboolean
ask_machines(Probe *probe, DrCaps *caps, GError **error)
{
  g_autoptr(JsonArray) array = ask(probe, "query-machines", NULL, error);

  if (!array)
    return FALSE;
  caps->machines = dr_caps_table_new();
  caps->default_ram_ids = dr_caps_table_new();
  for (guint i = 0; i < json_array_get_length(array); i++) {
    JsonObject *machine = json_array_get_object_element(array, i);
    const char *name = dr_json_str(machine, "name", NULL);
    const char *alias = dr_json_str(machine, "alias", NULL);
    const char *ram = dr_json_str(machine, "default-ram-id", NULL); /* since 5.2 */

    if (!name)
      continue;
    g_hash_table_insert(caps->machines, g_strdup(name), g_strdup(name));
    if (alias)
      g_hash_table_insert(caps->machines, g_strdup(alias), g_strdup(name));
    if (ram)
      g_hash_table_insert(caps->default_ram_ids, g_strdup(name), g_strdup(ram));
  }
  return TRUE;
}

static gboolean
ask_kvm(Probe *probe, DrCaps *caps, GError **error)
{
  g_autoptr(JsonNode) node =
      dr_qmp_call(probe->qmp, "query-kvm", NULL, dr_deadline_left(probe->deadline), error);

  if (!node)
    return FALSE;
  caps->kvm_built_in =
      JSON_NODE_HOLDS_OBJECT(node) && dr_json_bool(json_node_get_object(node), "present", FALSE);
  return TRUE;
}

/* Asked last: QEMU loads every module it has to answer, and aborts if it meets one of another build (10.0 and 11.1,
 * seen with the modules of an installed QEMU beside an unpacked one). All else is known by then. */
static gboolean
ask_devices(Probe *probe, DrCaps *caps, GError **error)
{
  g_autoptr(GError) local = NULL;

  if (ask_names(probe, "qom-list-types", "name", dr_json("{'implements': <%s>}", "device"), &caps->devices,
                &local))
    return TRUE;
  if (!dr_qmp_closed(probe->qmp)) {
    g_propagate_error(error, g_steal_pointer(&local));
    return FALSE;
  }
  g_message("'%s' ends when asked for its devices, so they are not known: are its modules of another build "
            "(QEMU_MODULE_DIR)?",
            probe->binary);
  return TRUE;
}

static gboolean
check_version(Probe *probe, DrCaps *caps, GError **error)
{
  caps->version = g_strdup(dr_qmp_version(probe->qmp));
  caps->version_number = dr_qmp_version_number(probe->qmp);
  if (caps->version_number >= DR_QEMU(5, 2))
    return TRUE;
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "'%s' is QEMU %s: drover works with 5.2 and newer", probe->binary,
               caps->version);
  return dr_error_remedy(error, "give a newer QEMU");
}

static gboolean
converse(Probe *probe, DrCaps *caps, GError **error)
{
  if (!greet(probe, error) || !check_version(probe, caps, error) ||
      !ask_names(probe, "query-commands", "name", NULL, &caps->commands, error))
    return FALSE;
  if (!g_hash_table_contains(caps->commands, "query-machines"))
    return not_an_emulator(probe, error);
  return ask_machines(probe, caps, error) &&
         ask_names(probe, "query-cpu-definitions", "name", NULL, &caps->cpus, error) &&
         ask_names(probe, "query-migrate-capabilities", "capability", NULL, &caps->migration_caps, error) &&
         ask_kvm(probe, caps, error) && ask_devices(probe, caps, error);
}

JsonObject *
dr_caps_cpu_model(const DrCaps *caps, gboolean kvm, const char *model, GError **error)
{
  Probe probe = { .binary = caps->binary,
                  .accel = kvm ? "kvm" : "tcg",
                  .pidfd = -1,
                  .output = -1,
                  .deadline = dr_deadline_in(DR_CAPS_PROBE_MS) };
  g_autoptr(JsonObject) answer = NULL;
  JsonObject *props;

  if (greet(&probe, error))
    answer = dr_qmp_call_object(probe.qmp, "query-cpu-model-expansion",
                                dr_json("{'type': <'static'>, 'model': <{'name': <%s>}>}", model), error);
  stop(&probe);
  props = answer ? dr_json_obj(answer, "model.props") : NULL;
  if (answer && !props)
    dr_error_set(error, DR_ERROR_INVALID, "'%s' does not tell what the CPU model '%s' has", caps->binary,
                 model);
  return props ? json_object_ref(props) : NULL;
}

gboolean
dr_caps_probe(DrCaps *caps, GError **error)
{
  Probe probe = {
    .binary = caps->binary, .pidfd = -1, .output = -1, .deadline = dr_deadline_in(DR_CAPS_PROBE_MS)
  };
  gboolean done = converse(&probe, caps, error);

  stop(&probe);
  return done;
}
