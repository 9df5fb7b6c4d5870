/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libvirt's daemon as a service of systemd, by systemctl. */
#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"
#include "libvirt/daemon-internal.h"
#include "qemu/tool.h"

#include <pwd.h>
#include <stdlib.h>
#include <string.h>

#define OUTPUT_MAX 1048576
#define SHOW_MS 10000

/* "/system.slice/libvirtd.service": the last component that is a service. Below user@1000.service are those of user 1000; that one itself
 * is the user's systemd. */
static char *
unit_of_path(const char *path, gint64 *ret_user)
{
  g_auto(GStrv) parts = g_strsplit(path, "/", -1);
  const char *unit = NULL;

  *ret_user = -1;
  for (guint i = 0; parts[i]; i++) {
    if (!g_str_has_suffix(parts[i], ".service"))
      continue;
    if (unit && g_str_has_prefix(unit, "user@"))
      *ret_user = strtoll(unit + strlen("user@"), NULL, 10);
    unit = parts[i];
  }
  return g_strdup(unit);
}

char *
dr_daemon_unit_of_cgroup(const char *text, gint64 *ret_user)
{
  g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
  g_autofree char *unit = NULL;

  /* The unified hierarchy, or systemd's own where that has another name: in one that it does not use, all are in "/". */
  for (guint i = 0; lines[i] && !unit; i++) {
    const char *name = strstr(lines[i], ":name=systemd:");

    if (name)
      unit = unit_of_path(name + strlen(":name=systemd:"), ret_user);
    else if (g_str_has_prefix(lines[i], "0::"))
      unit = unit_of_path(lines[i] + strlen("0::"), ret_user);
  }
  if (!unit)
    *ret_user = -1;
  return g_steal_pointer(&unit);
}

char **
dr_daemon_unit_words(const char *shown, const char *property)
{
  g_auto(GStrv) lines = g_strsplit(shown, "\n", -1);
  g_autofree char *key = g_strconcat(property, "=", NULL);
  g_autoptr(GStrvBuilder) words = g_strv_builder_new();

  for (guint i = 0; lines[i]; i++) {
    g_auto(GStrv) found = NULL;

    if (!g_str_has_prefix(lines[i], key))
      continue;
    found = g_strsplit(lines[i] + strlen(key), " ", -1);
    for (guint k = 0; found[k]; k++)
      if (found[k][0])
        g_strv_builder_add(words, found[k]);
  }
  return g_strv_builder_end(words);
}

/* Each unit has a paragraph; the order of the lines in it is systemd's. */
char **
dr_daemon_unit_active(const char *shown)
{
  g_auto(GStrv) paragraphs = g_strsplit(shown, "\n\n", -1);
  g_autoptr(GStrvBuilder) active = g_strv_builder_new();

  for (guint i = 0; paragraphs[i]; i++) {
    g_auto(GStrv) id = dr_daemon_unit_words(paragraphs[i], "Id");
    g_auto(GStrv) state = dr_daemon_unit_words(paragraphs[i], "ActiveState");

    if (id[0] && state[0] && (!strcmp(state[0], "active") || !strcmp(state[0], "activating")))
      g_strv_builder_add(active, id[0]);
  }
  return g_strv_builder_end(active);
}

static void
add_words(GPtrArray *argv, const char *const *words)
{
  for (; words && *words; words++)
    g_ptr_array_add(argv, g_strdup(*words));
}

/* A user's systemd answers on a socket in his runtime directory, but systemctl takes an answer from its own user and root only. */
static void
as_user(GPtrArray *argv, uid_t user)
{
  struct passwd entry, *found = NULL;
  char buffer[16384];

  getpwuid_r(user, &entry, buffer, sizeof buffer, &found);
  if (user != geteuid()) {
    g_ptr_array_add(argv, g_strdup("setpriv"));
    g_ptr_array_add(argv, g_strdup_printf("--reuid=%u", user));
    g_ptr_array_add(argv, g_strdup_printf("--regid=%u", found ? found->pw_gid : user));
    g_ptr_array_add(argv, g_strdup("--clear-groups"));
  }
  g_ptr_array_add(argv, g_strdup("env"));
  g_ptr_array_add(argv, g_strdup_printf("XDG_RUNTIME_DIR=/run/user/%u", user));
}

/* "systemctl VERB …" (transfer full) */
static GPtrArray *
systemctl(gint64 user, const char *const *words)
{
  GPtrArray *argv = g_ptr_array_new_with_free_func(g_free);

  if (user >= 0)
    as_user(argv, (uid_t)user);
  g_ptr_array_add(argv, g_strdup("systemctl"));
  if (user >= 0)
    g_ptr_array_add(argv, g_strdup("--user"));
  add_words(argv, words);
  return argv;
}

static char *
run(GPtrArray *argv, int timeout_ms, GError **error)
{
  char *said;

  g_ptr_array_add(argv, NULL);
  said = dr_tool_run((const char *const *)argv->pdata, OUTPUT_MAX, timeout_ms, error);
  if (!said)
    g_prefix_error(error, "systemctl: ");
  return said;
}

static char *
show(gint64 user, const char *const *properties, const char *const *units, GError **error)
{
  g_autoptr(GPtrArray) argv = systemctl(user, (const char *const[]){ "show", NULL });

  for (; *properties; properties++)
    g_ptr_array_add(argv, g_strdup_printf("--property=%s", *properties));
  g_ptr_array_add(argv, g_strdup("--"));
  add_words(argv, units);
  return run(argv, SHOW_MS, error);
}

/* Those of the units that are active; without a unit systemctl would show the manager. */
static char **
active_of(gint64 user, char **units, GError **error)
{
  g_autofree char *shown = NULL;

  if (!units[0])
    return g_new0(char *, 1);
  shown = show(user, (const char *const[]){ "Id", "ActiveState", NULL }, (const char *const *)units, error);
  return shown ? dr_daemon_unit_active(shown) : NULL;
}

/* Whom systemd stops when the service or a socket stops, beside these themselves. */
static char **
others_of(const DrDaemonUnit *unit, GError **error)
{
  static const char *const kinds[] = { "RequiredBy", "BoundBy", "ConsistsOf", NULL };
  g_autoptr(GPtrArray) ours = g_ptr_array_new_with_free_func(g_free);
  g_autoptr(GStrvBuilder) found = g_strv_builder_new();
  g_auto(GStrv) units = NULL;
  g_autofree char *shown = NULL;

  g_ptr_array_add(ours, g_strdup(unit->unit));
  add_words(ours, (const char *const *)unit->sockets);
  g_ptr_array_add(ours, NULL);
  shown = show(unit->user, kinds, (const char *const *)ours->pdata, error);
  if (!shown)
    return NULL;
  for (guint i = 0; kinds[i]; i++) {
    g_auto(GStrv) words = dr_daemon_unit_words(shown, kinds[i]);

    for (guint k = 0; words[k]; k++)
      if (!g_strv_contains((const char *const *)ours->pdata, words[k]))
        g_strv_builder_add(found, words[k]);
  }
  units = g_strv_builder_end(found);
  return active_of(unit->user, units, error);
}

static gboolean
look(DrDaemonUnit *unit, const char *shown, GError **error)
{
  g_auto(GStrv) triggers = dr_daemon_unit_words(shown, "TriggeredBy");

  return (unit->sockets = active_of(unit->user, triggers, error)) && (unit->others = others_of(unit, error));
}

gboolean
dr_daemon_unit_find(pid_t pid, DrDaemonUnit **ret_unit, GError **error)
{
  g_autoptr(DrDaemonUnit) unit = g_new0(DrDaemonUnit, 1);
  g_autofree char *path = g_strdup_printf("/proc/%d/cgroup", (int)pid);
  g_autofree char *text = dr_file_read(path, OUTPUT_MAX, NULL, NULL);
  g_autofree char *shown = NULL;
  g_auto(GStrv) main_pid = NULL;

  *ret_unit = NULL;
  if (!text || !g_file_test("/run/systemd/system", G_FILE_TEST_IS_DIR))
    return TRUE;
  unit->unit = dr_daemon_unit_of_cgroup(text, &unit->user);
  if (!unit->unit)
    return TRUE;
  shown = show(unit->user, (const char *const[]){ "MainPID", "TriggeredBy", NULL },
               (const char *const[]){ unit->unit, NULL }, error);
  if (!shown)
    return FALSE;
  /* What somebody started within a service (cron's, ssh's, droverd's) is not that service. */
  main_pid = dr_daemon_unit_words(shown, "MainPID");
  if (!main_pid[0] || atoi(main_pid[0]) != pid)
    return TRUE;
  if (!look(unit, shown, error))
    return FALSE;
  *ret_unit = g_steal_pointer(&unit);
  return TRUE;
}

void
dr_daemon_unit_free(DrDaemonUnit *unit)
{
  if (!unit)
    return;
  g_free(unit->unit);
  g_strfreev(unit->sockets);
  g_strfreev(unit->others);
  g_free(unit);
}

JsonObject *
dr_daemon_unit_write(const DrDaemonUnit *unit)
{
  JsonObject *object = dr_json("{'unit': <%s>, 'user': <%x>}", unit->unit, unit->user);

  json_object_set_array_member(object, "sockets",
                               dr_json_array_from_strv((const char *const *)unit->sockets));
  json_object_set_array_member(object, "others", dr_json_array_from_strv((const char *const *)unit->others));
  return object;
}

DrDaemonUnit *
dr_daemon_unit_read(JsonObject *object, GError **error)
{
  g_autoptr(DrDaemonUnit) unit = g_new0(DrDaemonUnit, 1);

  unit->unit = g_strdup(dr_json_str(object, "unit", NULL));
  unit->user = dr_json_int(object, "user", -1);
  unit->sockets = dr_json_strv(dr_json_arr(object, "sockets"));
  unit->others = dr_json_strv(dr_json_arr(object, "others"));
  if (unit->unit && unit->sockets && unit->others)
    return g_steal_pointer(&unit);
  dr_error_set(error, DR_ERROR_INVALID, "what was written of libvirt's daemon is incomplete");
  return NULL;
}

/* The sockets, the service, and on a start those that need them. */
static GPtrArray *
command(const DrDaemonUnit *unit, const char *verb, gboolean with_others)
{
  GPtrArray *argv = systemctl(unit->user, (const char *const[]){ verb, NULL });

  add_words(argv, (const char *const *)unit->sockets);
  g_ptr_array_add(argv, g_strdup(unit->unit));
  if (with_others)
    add_words(argv, (const char *const *)unit->others);
  return argv;
}

/* In one call: systemd stops a socket and its service together, so that nothing starts the one by the other meanwhile. */
gboolean
dr_daemon_unit_stop(const DrDaemonUnit *unit, DrDeadline deadline, GError **error)
{
  g_autoptr(GPtrArray) argv = command(unit, "stop", /* with_others= */ FALSE);
  g_autofree char *said = run(argv, dr_deadline_left(deadline), error);

  return said != NULL;
}

/* A socket starts before its service by systemd's own order. A daemon that somebody started while we had the lock ended at once, several
 * times perhaps, and systemd would refuse to start it once more. */
gboolean
dr_daemon_unit_start(const DrDaemonUnit *unit, DrDeadline deadline, GError **error)
{
  g_autoptr(GPtrArray) forget = command(unit, "reset-failed", /* with_others= */ FALSE);
  g_autoptr(GPtrArray) argv = command(unit, "start", /* with_others= */ TRUE);
  g_autofree char *forgotten = run(forget, dr_deadline_left(deadline), NULL);
  g_autofree char *said = run(argv, dr_deadline_left(deadline), error);

  return said != NULL;
}

char *
dr_daemon_unit_command(const DrDaemonUnit *unit)
{
  g_autoptr(GPtrArray) forget = command(unit, "reset-failed", /* with_others= */ FALSE);
  g_autoptr(GPtrArray) start = command(unit, "start", /* with_others= */ TRUE);
  g_autofree char *first = NULL, *second = NULL;

  g_ptr_array_add(forget, NULL);
  g_ptr_array_add(start, NULL);
  first = g_strjoinv(" ", (char **)forget->pdata);
  second = g_strjoinv(" ", (char **)start->pdata);
  return g_strdup_printf("%s; %s", first, second);
}
