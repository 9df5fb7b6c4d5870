/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover doctor: droverd, its unit, its VMs and its peers. */
#include "base/deadline.h"
#include "base/error.h"
#include "cli/doctor.h"
#include "cli/render.h"

#include <errno.h>
#include <glob.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PEER_S 15
#define PEERS_MAX 32
#define PEERS_MS 60000 /* for all of them */
#define CLOCK_MS 500   /* off from a peer's */

static void
check_config(DrDoctor *d)
{
  if (d->config_problem)
    dr_doctor_blocker(d, "config",
                      d->config_remedy ? d->config_remedy : "mend it: droverd.conf(5) describes it",
                      "droverd could not start with its configuration: %s", d->config_problem);
  else if (d->config_file)
    dr_doctor_ok(d, "config", "%s can be read", d->config_file);
  else
    dr_doctor_ok(d, "config", "there is no configuration file: the defaults are used");
}

/* droverd's socket; what was said by --connect, where it is none. */
static const char *
where(const DrDoctor *d)
{
  const char *path = dr_client_path(d->cli->client);

  return path ? path : d->cli->connect ? d->cli->connect : "?";
}

/* Its directory is closed to this user, or the socket itself. */
static gboolean
may_not_open(const DrDoctor *d)
{
  return access(where(d), R_OK | W_OK) < 0 && errno == EACCES;
}

static void
check_answer(DrDoctor *d)
{
  static const char start[] = "start it: systemctl start droverd, or droverd";
  const char *remedy = d->no_answer ? dr_error_get_remedy(d->no_answer) : NULL;

  if (d->version)
    dr_doctor_ok(d, "droverd", "runs at %s, with %d VMs", where(d), (int)dr_json_int(d->version, "vms", 0));
  else if (may_not_open(d))
    dr_doctor_blocker(d, "socket", "run drover as the user who runs droverd",
                      "this user may not open droverd's socket %s", where(d));
  else if (d->daemon)
    dr_doctor_blocker(d, "droverd", "look into its log, and start it anew: VMs run on meanwhile",
                      "something listens on droverd's socket and does not answer well: %s",
                      d->no_answer->message);
  else if (access(where(d), F_OK) < 0)
    dr_doctor_warning(d, "droverd", start,
                      "droverd is not running at %s: every verb but pki and doctor needs it", where(d));
  else
    dr_doctor_warning(d, "droverd", remedy ? remedy : start, "%s", d->no_answer->message);
}

/* Who may write to it may do everything. Its directory is closed to others, as droverd makes it. */
static void
check_mode(DrDoctor *d)
{
  g_autofree char *dir = g_path_get_dirname(where(d));
  struct stat socket, directory;

  if (d->config_read && (d->config.api_read_group || d->config.api_operate_group))
    return; /* droverd looks at each connection */
  if (stat(where(d), &socket) == 0 && stat(dir, &directory) == 0 && (socket.st_mode & S_IWOTH) &&
      (directory.st_mode & S_IXOTH))
    dr_doctor_warning(d, "socket-mode", "chmod 0600 it, and 0700 its directory",
                      "every user may do everything with the VMs: droverd's socket %s is open to all",
                      where(d));
}

static void
check_user(DrDoctor *d)
{
  if (d->version && d->daemon && d->daemon_uid != geteuid())
    dr_doctor_note(
        d, "user", "run drover doctor as that user",
        "droverd runs as user %u and this as user %u: what is said of permissions holds for this one",
        d->daemon_uid, geteuid());
}

static void
check_version(DrDoctor *d)
{
  const char *version = dr_json_str(d->version, "version", "?");

  if (!d->version)
    return;
  if (g_str_equal(version, DROVER_VERSION))
    dr_doctor_ok(d, "version", "droverd and drover are %s", version);
  else
    dr_doctor_warning(d, "version",
                      "start droverd anew, so that both are of the same installation: VMs run on meanwhile",
                      "droverd is %s and drover is %s", version, DROVER_VERSION);
}

/* --- Its unit --- */

/* "KillMode=" of a unit's file, the last one; NULL: it has none. (transfer full) */
static char *
kill_mode_of(const char *file)
{
  g_autofree char *text = NULL;
  g_auto(GStrv) lines = NULL;
  char *mode = NULL;

  if (!g_file_get_contents(file, &text, NULL, NULL))
    return NULL;
  lines = g_strsplit(text, "\n", -1);
  for (char **line = lines; *line; line++)
    if (g_str_has_prefix(g_strstrip(*line), "KillMode=")) {
      g_free(mode);
      mode = g_strdup(*line + strlen("KillMode="));
    }
  return mode;
}

/* The one that counts. (transfer full) (nullable) */
static char *
find_unit(const DrDoctor *d)
{
  static const char *const dirs[] = { "/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system",
                                      "/lib/systemd/system" };

  for (guint i = 0; i < G_N_ELEMENTS(dirs); i++) {
    g_autofree char *path = g_strconcat(d->root, dirs[i], "/droverd.service", NULL);

    if (access(path, F_OK) == 0)
      return g_steal_pointer(&path);
  }
  return NULL;
}

/* What an administrator's files beside it say over it. (transfer full) (nullable) */
static char *
mode_over_it(const DrDoctor *d)
{
  g_autofree char *pattern = dr_doctor_path(d, "/etc/systemd/system/droverd.service.d/*.conf");
  glob_t found = { 0 };
  char *mode = NULL;

  if (glob(pattern, 0, NULL, &found) == 0)
    for (gsize i = 0; i < found.gl_pathc; i++) {
      char *other = kill_mode_of(found.gl_pathv[i]);

      if (other) {
        g_free(mode);
        mode = other;
      }
    }
  globfree(&found);
  return mode;
}

static void
check_unit(DrDoctor *d)
{
  g_autofree char *unit = find_unit(d);
  g_autofree char *over = unit ? mode_over_it(d) : NULL;
  g_autofree char *own = unit ? kill_mode_of(unit) : NULL;
  const char *mode = over ? over : own ? own : "control-group";

  if (!unit)
    return;
  if (g_str_equal(mode, "process") || g_str_equal(mode, "none"))
    dr_doctor_ok(d, "kill-mode", "VMs outlive a stop of droverd's unit (KillMode=%s)", mode);
  else
    dr_doctor_blocker(d, "kill-mode", "set KillMode=process: systemctl edit droverd",
                      "a stop or restart of droverd's unit ends all VMs: %s has KillMode=%s", unit, mode);
}

/* --- Its VMs --- */

static JsonArray *
ask_list(DrDoctor *d, const char *path)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = dr_cli_call(d->cli, "GET", path, NULL, NULL, &error);

  return answer && JSON_NODE_HOLDS_ARRAY(answer) ? json_node_dup_array(answer) : NULL;
}

static void
check_vms(DrDoctor *d)
{
  g_autoptr(JsonArray) vms = ask_list(d, "/v1/vms");

  for (guint i = 0; vms && i < json_array_get_length(vms); i++) {
    JsonObject *vm = json_array_get_object_element(vms, i);
    g_autofree char *remedy =
        g_strconcat("drover show ", dr_json_str(vm, "name", "NAME"), " says what to do", NULL);

    if (g_str_equal(dr_json_str(vm, "state", ""), "attention"))
      dr_doctor_warning(d, "attention", remedy, "VM '%s' needs attention", dr_json_str(vm, "name", "?"));
  }
}

/* --- Its peers --- */

static void
tell_clock(DrDoctor *d, const char *name, JsonObject *test)
{
  double offset = dr_render_number(test, "clock_offset_ms", 0);
  g_autofree char *text = dr_render_ms(fabs(offset));

  if (fabs(offset) > CLOCK_MS)
    dr_doctor_warning(d, "peer-clock", "let both hosts synchronize their clocks (chrony, systemd-timesyncd)",
                      "the clock of peer '%s' is %s %s this host's", name, text,
                      offset > 0 ? "ahead of" : "behind");
}

static void
check_peer(DrDoctor *d, const char *name)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = dr_cli_call(d->cli, "POST", "/v1/peers/{}/test", name, NULL, &error);
  JsonObject *test = answer && JSON_NODE_HOLDS_OBJECT(answer) ? json_node_get_object(answer) : NULL;
  const char *version = dr_json_str(test, "version", "?"),
             *remedy = error ? dr_error_get_remedy(error) : NULL;
  g_autofree char *trip = dr_render_ms(dr_render_number(test, "round_trip_ms", 0));

  if (!test) {
    dr_doctor_warning(d, "peer", remedy ? remedy : "look at droverd over there: drover doctor",
                      "peer '%s' does not answer: %s", name,
                      error ? error->message : "its droverd's answer is none");
    return;
  }
  dr_doctor_ok(d, "peer", "'%s' answers, droverd %s, %s there and back, %.0f MiB/s", name, version, trip,
               dr_render_number(test, "send_mib", 0));
  if (!g_str_equal(version, dr_json_str(d->version, "version", "?")))
    dr_doctor_note(d, "peer-version", "install the same on both hosts",
                   "droverd of peer '%s' is %s, and here %s", name, version,
                   dr_json_str(d->version, "version", "?"));
  tell_clock(d, name, test);
}

static void
check_peers(DrDoctor *d)
{
  g_autoptr(JsonArray) peers = ask_list(d, "/v1/peers");
  guint n = peers ? json_array_get_length(peers) : 0, asked;
  DrDeadline deadline = dr_deadline_in(PEERS_MS);

  dr_client_set_timeout(d->cli->client, PEER_S);
  for (asked = 0; asked < MIN(n, PEERS_MAX) && !dr_deadline_passed(deadline); asked++)
    check_peer(d, dr_json_str(json_array_get_object_element(peers, asked), "name", ""));
  if (asked < n)
    dr_doctor_note(d, "peers-many", "drover peer test NAME asks one", "%u more peers were not asked",
                   n - asked);
}

void
dr_doctor_check_daemon(DrDoctor *d)
{
  check_config(d);
  check_answer(d);
  check_mode(d);
  check_user(d);
  check_version(d);
  check_unit(d);
  if (!d->version)
    return;
  check_vms(d);
  check_peers(d);
}
