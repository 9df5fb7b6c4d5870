/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See run.h. The order, and what each step leaves to a recovery:
 *
 *   checking   nothing was changed
 *   stopping   the daemon may be away: start it
 *   moving     each domain is under its old or its new QEMU: the engine's own journal tells (docs/STATES.md)
 *   patching   a domain that has moved is patched; patching again changes nothing more
 *   starting   the daemon may be away: start it
 *   verifying  only to look
 *
 * From the stop on, the lock on driver.pid keeps every other daemon of libvirt's from the domains, until the patches are written. */
#include "libvirt/run.h"
#include "base/error.h"
#include "libvirt/check.h"
#include "libvirt/daemon.h"
#include "libvirt/engine.h"
#include "libvirt/facts.h"
#include "libvirt/journal.h"
#include "libvirt/xml.h"
#include "vm/vm.h"

#include <stdio.h>
#include <string.h>

#define STOP_MS 30000
#define START_MS 60000
#define VERIFY_MS 30000
#define PATCH_TRIES 5
#define PATCH_STEP_MS 200

typedef struct {
  const DrLibvirtDirs *dirs;
  DrLibvirtJournal *journal;
  DrLibvirtPlaces *places;
  DrLibvirtDaemon *daemon;
  gint64 begun_us, away_us; /* monotonic; away_us 0: it was not stopped */
} Run;

static void
run_clear(Run *run)
{
  g_clear_pointer(&run->places, dr_libvirt_places_free);
  g_clear_pointer(&run->daemon, dr_libvirt_daemon_free);
  g_clear_pointer(&run->journal, dr_libvirt_journal_close);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Run, run_clear)

static JsonObject *
record(Run *run)
{
  return dr_libvirt_journal_run(run->journal);
}

static JsonArray *
domains_of(Run *run)
{
  return dr_json_arr(record(run), "domains");
}

static const char *
state_of(JsonObject *domain)
{
  return dr_json_str(domain, "state", "");
}

static void
set_state(JsonObject *domain, const char *state)
{
  json_object_set_string_member(domain, "state", state);
}

/* --- Check --- */

static gboolean
is_named(JsonArray *names, const char *name, const char *uuid)
{
  for (guint i = 0; names && i < json_array_get_length(names); i++) {
    const char *wanted = json_array_get_string_element(names, i);

    if (g_strcmp0(wanted, name) == 0 || g_strcmp0(wanted, uuid) == 0)
      return TRUE;
  }
  return names == NULL;
}

static gboolean
all_are_there(JsonArray *names, GPtrArray *domains, GError **error)
{
  for (guint i = 0; names && i < json_array_get_length(names); i++) {
    const char *wanted = json_array_get_string_element(names, i);
    gboolean found = FALSE;

    for (guint n = 0; n < domains->len; n++) {
      const DrLibvirtDomain *domain = domains->pdata[n];

      found |= g_strcmp0(wanted, domain->name) == 0 || g_strcmp0(wanted, domain->uuid) == 0;
    }
    if (found)
      continue;
    dr_error_set(error, DR_ERROR_NOT_FOUND, "libvirt has no running domain '%s'", wanted ? wanted : "?");
    return dr_error_remedy(error,
                           "virsh list shows those that run; one that is shut off needs no live upgrade");
  }
  return TRUE;
}

static JsonObject *
with_places(JsonObject *report, const DrLibvirtDomain *domain)
{
  json_object_set_int_member(report, "start_time", (gint64)domain->process.start_time);
  json_object_set_string_member(report, "monitor", domain->monitor);
  json_object_set_string_member(report, "log_file", domain->log_file);
  return report;
}

/* [check.h's report with "start_time","monitor","log_file"] of the domains that the spec names. */
static JsonArray *
check_all(const DrLibvirtDirs *dirs, const DrLibvirtPlaces *places, JsonObject *spec, GError **error)
{
  virConnectPtr conn = dr_libvirt_connect(places, error);
  g_autoptr(GPtrArray) domains = conn ? dr_libvirt_domains(conn, places, error) : NULL;
  JsonArray *names = dr_json_arr(spec, "domains");
  DrLibvirtCheck how = { .places = places,
                         .cache_dir = dirs->cache_dir,
                         .emulator = dr_json_str(spec, "emulator", NULL),
                         .untested = dr_json_bool(spec, "untested", FALSE),
                         .shared = g_str_equal(dr_json_str(spec, "memory", "auto"), "shared") };
  JsonArray *reports = domains && all_are_there(names, domains, error) ? json_array_new() : NULL;

  for (guint i = 0; reports && i < domains->len; i++) {
    DrLibvirtDomain *domain = domains->pdata[i];

    if (is_named(names, domain->name, domain->uuid))
      json_array_add_object_element(reports, with_places(dr_libvirt_check(conn, domain, &how), domain));
  }
  g_clear_pointer(&domains, g_ptr_array_unref); /* their handles before their connection */
  if (conn)
    virConnectClose(conn);
  return reports;
}

JsonObject *
dr_libvirt_run_check(const DrLibvirtDirs *dirs, JsonObject *spec, GError **error)
{
  g_autoptr(DrLibvirtPlaces) places =
      dr_libvirt_places_new(dr_json_str(spec, "uri", "qemu:///system"), error);
  JsonArray *reports = places ? check_all(dirs, places, spec, error) : NULL;
  JsonObject *answer = reports ? json_object_new() : NULL;

  if (!reports)
    return NULL;
  json_object_set_string_member(answer, "uri", places->uri);
  json_object_set_array_member(answer, "domains", reports);
  return answer;
}

/* --- Patch --- */

/* An emulator that somebody has already chosen for the next start stays. */
static gboolean
patch_config(const DrLibvirtDomain *domain, const char *before, const char *emulator, GError **error)
{
  g_autoptr(DrXml) doc = domain->config_file ? dr_xml_read(domain->config_file, error) : NULL;
  g_autofree char *now = doc ? dr_xml_text(doc, NULL, "/domain/devices/emulator") : NULL;

  if (!domain->config_file || (doc && g_strcmp0(now, before) != 0))
    return TRUE;
  return doc && (!dr_xml_patch_config(doc, emulator) || dr_xml_write(doc, domain->config_file, error));
}

static gboolean
patch_pid_file(const DrLibvirtDomain *domain, pid_t pid, GError **error)
{
  g_autofree char *text = g_strdup_printf("%d", (int)pid);

  return g_file_set_contents_full(domain->pid_file, text, -1, G_FILE_SET_CONTENTS_CONSISTENT, 0644, error);
}

/* The status file last: it is what libvirt goes by. */
static gboolean
patch_files(Run *run, JsonObject *domain, JsonObject *facts, GError **error)
{
  const char *emulator = dr_json_str(facts, "emulator", "");
  g_autofree char *caps_file = dr_libvirt_caps_file(run->places, emulator);
  g_autoptr(DrLibvirtDomain) files =
      dr_libvirt_domain_read(run->places, dr_json_str(domain, "name", ""), error);
  g_autoptr(DrXml) flags = files ? dr_xml_read(caps_file, error) : NULL;

  return flags && patch_config(files, dr_json_str(domain, "emulator_before", ""), emulator, error) &&
         patch_pid_file(files, (pid_t)dr_json_int(facts, "pid", 0), error) &&
         dr_xml_patch_status(files->status, facts, flags, error) &&
         dr_xml_write(files->status, files->status_file, error);
}

static gboolean
patch_domain(Run *run, DrLibvirtEngine *engine, JsonObject *domain, GError **error)
{
  DrProcId id;
  g_autoptr(DrQmp) qmp = dr_libvirt_engine_take(engine, domain, &id, error);
  JsonObject *facts = qmp ? dr_libvirt_facts(qmp, &id, dr_json_str(domain, "emulator", ""), error) : NULL;

  if (!facts)
    return FALSE;
  json_object_set_object_member(domain, "facts", facts);
  return patch_files(run, domain, facts, error);
}

/* A file system that is full for a moment must not cost libvirt its view. */
static gboolean
patch_insistently(Run *run, DrLibvirtEngine *engine, JsonObject *domain, GError **error)
{
  for (int try = 1;; try++) {
    g_autoptr(GError) local = NULL;

    if (patch_domain(run, engine, domain, &local))
      return TRUE;
    if (try == PATCH_TRIES) {
      g_propagate_error(error, g_steal_pointer(&local));
      return FALSE;
    }
    g_usleep(PATCH_STEP_MS * 1000);
  }
}

static void
put_attention(JsonObject *domain, const GError *cause)
{
  g_autoptr(GError) error = NULL;
  const char *name = dr_json_str(domain, "name", "?");

  dr_error_set(&error, DR_ERROR_ATTENTION,
               "domain '%s' runs under its new QEMU (pid %d), but libvirt's files do not say so: %s", name,
               (int)dr_json_int(domain, "pid", 0), cause->message);
  dr_error_remedy(&error, "do not use virsh destroy on it (it would end the wrong process); shut the guest "
                          "down from within, then start it");
  dr_libvirt_put_error(domain, error);
}

static void
patch_moved(Run *run, DrLibvirtEngine *engine)
{
  JsonArray *all = domains_of(run);

  for (guint i = 0; i < json_array_get_length(all); i++) {
    JsonObject *domain = json_array_get_object_element(all, i);
    g_autoptr(GError) error = NULL;

    if (!g_str_equal(state_of(domain), "moved"))
      continue;
    if (patch_insistently(run, engine, domain, &error))
      set_state(domain, "patched");
    else
      put_attention(domain, error);
    dr_libvirt_journal_save(run->journal, NULL);
    dr_libvirt_journal_hold(run->journal, "libvirt-patched-one");
  }
}

/* --- The daemon --- */

static gboolean
stop_daemon(Run *run, GError **error)
{
  run->away_us = g_get_monotonic_time();
  return dr_libvirt_daemon_stop(run->daemon, dr_deadline_in(STOP_MS), error);
}

/* Until it answers: it has read its domains then. */
static gboolean
start_daemon(Run *run, GError **error)
{
  virConnectPtr conn;

  if (!dr_libvirt_daemon_start(run->daemon, dr_deadline_in(START_MS), error))
    return FALSE;
  conn = dr_libvirt_connect(run->places, error);
  if (conn)
    virConnectClose(conn);
  if (run->away_us)
    json_object_set_double_member(record(run), "away_ms",
                                  (double)(g_get_monotonic_time() - run->away_us) / 1000.0);
  return conn != NULL;
}

/* --- Verify --- */

static void
verify_one(Run *run, virConnectPtr conn, JsonObject *domain)
{
  g_autoptr(DrFindings) findings = dr_findings_new();
  DrDeadline deadline = dr_deadline_in(VERIFY_MS);
  g_autoptr(GError) error = NULL;
  JsonObject *facts = dr_json_obj(domain, "facts");

  for (;;) { /* libvirt connects to its domains' monitors after it has begun to answer */
    g_clear_error(&error);
    g_clear_pointer(&findings, dr_findings_free);
    findings = dr_findings_new();
    dr_libvirt_verify(conn, run->places, dr_json_str(domain, "name", ""), facts, findings, &error);
    if ((!error && !dr_findings_count(findings)) || dr_deadline_passed(deadline))
      break;
    g_usleep(50000); /* bounded by the deadline */
  }
  json_object_set_boolean_member(domain, "view_is_true", !error && !dr_findings_count(findings));
  json_object_set_array_member(domain, "view", dr_findings_json(findings));
  if (error)
    dr_libvirt_put_error(domain, error);
  set_state(domain, "done");
}

static void
verify(Run *run)
{
  virConnectPtr conn = dr_libvirt_connect(run->places, NULL);
  JsonArray *all = domains_of(run);

  for (guint i = 0; conn && i < json_array_get_length(all); i++) {
    JsonObject *domain = json_array_get_object_element(all, i);

    if (g_str_equal(state_of(domain), "patched"))
      verify_one(run, conn, domain);
  }
  if (conn)
    virConnectClose(conn);
}

/* --- A run --- */

/* `error` is the run's: nullable, consumed. */
static gboolean
finish(Run *run, GError *error, GError **ret_error)
{
  if (error)
    dr_libvirt_put_error(record(run), error);
  json_object_set_double_member(record(run), "total_ms",
                                (double)(g_get_monotonic_time() - run->begun_us) / 1000.0);
  json_object_set_int_member(record(run), "ended_ms", g_get_real_time() / 1000);
  dr_libvirt_engine_remove(run->dirs->dir, run->dirs->run_dir); /* which needs it no more */
  dr_libvirt_journal_enter(run->journal, "done", NULL);
  if (error)
    g_propagate_error(ret_error, error);
  return error == NULL;
}

/* From wherever it stands to its end: the daemon is started on every way. `cause`: nullable, consumed: what ended the way forward. */
static gboolean
bring_home(Run *run, GError *cause, GError **error)
{
  g_autoptr(GError) local = NULL;

  dr_libvirt_journal_enter(run->journal, "starting", NULL);
  if (!start_daemon(run, &local)) {
    g_clear_error(&cause); /* libvirt without a daemon is the greater trouble */
    return finish(run, g_steal_pointer(&local), error);
  }
  dr_libvirt_journal_enter(run->journal, "verifying", NULL);
  verify(run);
  return finish(run, cause, error);
}

/* For those who watch; a recovery goes by the engine's own journal. */
static void
note_progress(gpointer domain, gpointer run)
{
  dr_libvirt_journal_save(((Run *)run)->journal, NULL);
}

static gboolean
move_and_patch(Run *run, DrLibvirtEngine *engine, GError **error)
{
  if (!dr_libvirt_journal_enter(run->journal, "moving", error))
    return FALSE;
  dr_libvirt_engine_upgrade(engine, domains_of(run), dr_json_str(record(run), "memory", "auto"),
                            (guint)dr_json_int(record(run), "parallel", 4), note_progress, run);
  /* A journal that cannot be written does not keep the files from being patched. */
  dr_libvirt_journal_enter(run->journal, "patching", NULL);
  patch_moved(run, engine);
  return TRUE;
}

/* Between the check and the stop somebody may have ended or changed a domain. */
static void
look_again(Run *run)
{
  JsonArray *all = domains_of(run);

  for (guint i = 0; i < json_array_get_length(all); i++) {
    JsonObject *domain = json_array_get_object_element(all, i);
    g_autoptr(GError) error = NULL;
    g_autoptr(DrLibvirtDomain) now = NULL;

    if (!g_str_equal(state_of(domain), "waiting"))
      continue;
    now = dr_libvirt_domain_read(run->places, dr_json_str(domain, "name", ""), &error);
    if (now && (now->process.pid != dr_json_int(domain, "pid_before", 0) ||
                (gint64)now->process.start_time != dr_json_int(domain, "start_time", 0)))
      dr_error_set(&error, DR_ERROR_REFUSED, "domain '%s' was started anew meanwhile",
                   dr_json_str(domain, "name", "?"));
    if (!error)
      continue;
    set_state(domain, "stayed");
    dr_libvirt_put_error(domain, error);
  }
}

static gboolean
with_daemon_away(Run *run, GError **error)
{
  g_autoptr(DrLibvirtEngine) engine = NULL;
  GError *cause = NULL;

  dr_libvirt_engine_remove(run->dirs->dir, run->dirs->run_dir);
  if (!dr_libvirt_journal_enter(run->journal, "stopping", &cause) || !stop_daemon(run, &cause))
    return bring_home(run, cause, error);
  dr_libvirt_journal_hold(run->journal, "libvirt-stopped");
  look_again(run);
  engine = dr_libvirt_engine_new(run->dirs->dir, run->dirs->run_dir, run->dirs->cache_dir, &cause);
  if (engine)
    move_and_patch(run, engine, &cause);
  g_clear_pointer(&engine, dr_libvirt_engine_free); /* lets go of every monitor */
  return bring_home(run, cause, error);
}

/* The journal's domains out of the checks' reports. */
static JsonArray *
plan_domains(JsonArray *reports)
{
  JsonArray *all = json_array_new();

  for (guint i = 0; i < json_array_get_length(reports); i++) {
    JsonObject *domain = json_array_get_object_element(reports, i);
    const char *name = dr_json_str(domain, "name", ""), *uuid = dr_json_str(domain, "uuid", "");
    gboolean ok = dr_json_bool(domain, "ok", FALSE);

    json_object_set_string_member(domain, "vm", dr_vm_check_name(name, NULL) ? name : uuid);
    json_object_set_int_member(domain, "pid_before", dr_json_int(domain, "pid", 0));
    set_state(domain, ok ? "waiting" : "refused");
    json_array_add_object_element(all, json_object_ref(domain));
  }
  return all;
}

static guint
count(JsonArray *domains, const char *state)
{
  guint n = 0;

  for (guint i = 0; i < json_array_get_length(domains); i++)
    n += g_str_equal(state_of(json_array_get_object_element(domains, i)), state);
  return n;
}

/* Written down before the checks: they take seconds, and whoever has asked for the run wants to see that it is there. "started_ms" of the spec
 * tells it from the one before. */
static gboolean
begin(Run *run, JsonObject *spec, GError **error)
{
  JsonObject *journal = json_object_new();
  JsonArray *reports;

  json_object_set_string_member(journal, "state", "checking");
  json_object_set_string_member(journal, "boot_id", dr_boot_id());
  json_object_set_string_member(journal, "uri", dr_json_str(spec, "uri", "qemu:///system"));
  json_object_set_string_member(journal, "memory", dr_json_str(spec, "memory", "auto"));
  json_object_set_int_member(journal, "parallel", dr_json_int(spec, "parallel", 4));
  json_object_set_int_member(journal, "started_ms",
                             dr_json_int(spec, "started_ms", g_get_real_time() / 1000));
  json_object_set_array_member(journal, "domains", json_array_new());
  dr_libvirt_journal_set(run->journal, journal);
  if (!dr_libvirt_journal_save(run->journal, error))
    return FALSE;
  run->places = dr_libvirt_places_new(dr_json_str(spec, "uri", "qemu:///system"), error);
  reports = run->places ? check_all(run->dirs, run->places, spec, error) : NULL;
  if (!reports)
    return FALSE;
  json_object_set_array_member(journal, "domains", plan_domains(reports));
  json_array_unref(reports);
  return dr_libvirt_journal_enter(run->journal, "checking", error);
}

static gboolean
find_daemon(Run *run, GError **error)
{
  run->daemon = dr_libvirt_daemon_find(run->places->state_dir, error);
  if (!run->daemon)
    return FALSE;
  json_object_set_object_member(record(run), "daemon", dr_libvirt_daemon_write(run->daemon));
  json_object_set_string_member(record(run), "daemon_name", dr_libvirt_daemon_name(run->daemon));
  return TRUE;
}

/* Of domains that were named all have to be able to; of all domains those that are. */
static gboolean
is_worth_it(Run *run, JsonObject *spec, GError **error)
{
  guint refused = count(domains_of(run), "refused");

  if (refused && dr_json_arr(spec, "domains"))
    return dr_error_set(error, DR_ERROR_REFUSED,
                        "cannot upgrade: %u of the domains that were named cannot be; nothing was changed",
                        refused);
  if (count(domains_of(run), "waiting") == 0)
    return dr_error_set(error, DR_ERROR_REFUSED,
                        refused ? "no domain can be upgraded; nothing was changed"
                                : "libvirt has no running domain");
  return TRUE;
}

static gboolean
is_open(DrLibvirtJournal *journal)
{
  JsonObject *run = dr_libvirt_journal_run(journal);

  return run && !g_str_equal(dr_json_str(run, "state", "done"), "done");
}

static gboolean
open_journal(Run *run, GError **error)
{
  run->begun_us = g_get_monotonic_time();
  run->journal = dr_libvirt_journal_open(run->dirs->dir, run->dirs->run_dir, error);
  return run->journal != NULL;
}

/* --- Recovery --- */

static gboolean
settle(Run *run, GError **error)
{
  g_autoptr(DrLibvirtEngine) engine = NULL;

  if (!stop_daemon(run, error)) /* and whoever was started meanwhile */
    return FALSE;
  engine = dr_libvirt_engine_new(run->dirs->dir, run->dirs->run_dir, run->dirs->cache_dir, error);
  if (!engine || !dr_libvirt_engine_recover(engine, domains_of(run), error))
    return FALSE;
  dr_libvirt_journal_enter(run->journal, "patching", NULL);
  patch_moved(run, engine);
  return TRUE;
}

static void
mark_interrupted(Run *run)
{
  JsonArray *all = domains_of(run);

  for (guint i = 0; i < json_array_get_length(all); i++) {
    JsonObject *domain = json_array_get_object_element(all, i);

    if (g_str_equal(state_of(domain), "waiting"))
      set_state(domain, "stayed");
  }
  json_object_set_boolean_member(record(run), "interrupted", TRUE);
}

static gboolean
recover(Run *run, GError **error)
{
  g_autofree char *state = g_strdup(dr_json_str(record(run), "state", ""));
  JsonObject *daemon = dr_json_obj(record(run), "daemon");
  GError *cause = NULL;

  mark_interrupted(run);
  if (!daemon || g_strcmp0(dr_json_str(record(run), "boot_id", ""), dr_boot_id()) != 0)
    return finish(run,
                  g_error_new(DR_ERROR, DR_ERROR_CLOSED,
                              "the run was interrupted%s; nothing is left to be done",
                              daemon ? " by a reboot of the host" : " before anything was changed"),
                  error);
  run->places = dr_libvirt_places_new(dr_json_str(record(run), "uri", ""), error);
  run->daemon = run->places ? dr_libvirt_daemon_read(daemon, error) : NULL;
  if (!run->daemon)
    return FALSE;
  if (g_str_equal(state, "moving") || g_str_equal(state, "patching"))
    settle(run, &cause);
  dr_libvirt_journal_hold(run->journal, "libvirt-recover");
  return bring_home(run, cause, error);
}

gboolean
dr_libvirt_run_recover(const DrLibvirtDirs *dirs, GError **error)
{
  g_auto(Run) run = { .dirs = dirs };

  if (!open_journal(&run, error))
    return FALSE;
  return !is_open(run.journal) || recover(&run, error);
}

gboolean
dr_libvirt_run_upgrade(const DrLibvirtDirs *dirs, JsonObject *spec, GError **error)
{
  g_auto(Run) run = { .dirs = dirs };
  GError *cause = NULL;

  if (!open_journal(&run, error))
    return FALSE;
  if (is_open(run.journal))
    recover(&run, NULL);
  g_clear_pointer(&run.places, dr_libvirt_places_free);
  g_clear_pointer(&run.daemon, dr_libvirt_daemon_free);
  run.away_us = 0;
  if (!begin(&run, spec, &cause) || !is_worth_it(&run, spec, &cause) || !find_daemon(&run, &cause))
    return finish(&run, cause, error);
  return with_daemon_away(&run, error);
}
