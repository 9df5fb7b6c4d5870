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
#include "libvirt/daemon.h"
#include "libvirt/engine.h"
#include "libvirt/facts.h"
#include "libvirt/journal.h"
#include "libvirt/patch.h"
#include "libvirt/request.h"
#include "libvirt/xml.h"
#include "vm/vm.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STOP_MS 30000
#define START_MS 60000
#define VERIFY_MS 30000
#define CHECK_MS (5 * 60 * 1000) /* many domains, a new emulator */
#define HOME_MS (10 * 60 * 1000) /* a daemon that asks all emulators anew */
#define PATCH_TRIES 5
#define PATCH_STEP_MS 200

typedef struct {
  const DrLibvirtDirs *dirs;
  DrLibvirtJournal *journal;
  DrLibvirtPlaces *places;
  DrLibvirtDaemon *daemon;
  GHashTable
      *names; /* of domains, by the name that their VM has in the engine; not changed while that works */
  gint64 begun_us, away_us; /* monotonic; away_us 0: it was not stopped */
} Run;

static void
run_clear(Run *run)
{
  g_clear_pointer(&run->places, dr_libvirt_places_free);
  g_clear_pointer(&run->daemon, dr_libvirt_daemon_free);
  g_clear_pointer(&run->names, g_hash_table_unref);
  g_clear_pointer(&run->journal, dr_libvirt_journal_close);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Run, run_clear)

/* --- A limit for what libvirt's library gives none --- */

static _Atomic gint64 limit_us; /* monotonic; 0: none */

static gpointer
watch_limit(gpointer data)
{
  for (;; g_usleep(1000000)) { /* for as long as the process lives */
    gint64 limit = limit_us;

    if (limit && g_get_monotonic_time() > limit) {
      g_critical("libvirt does not answer; this run is given up, and droverd recovers it");
      _exit(1);
    }
  }
  return NULL;
}

static void
set_limit(int ms)
{
  static gsize started;

  limit_us = ms ? g_get_monotonic_time() + ms * 1000ll : 0;
  if (g_once_init_enter(&started)) {
    GThread *thread = g_thread_try_new("limit", watch_limit, NULL, NULL);

    if (thread)
      g_thread_unref(thread);
    g_once_init_leave(&started, 1);
  }
}

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

/* --- Patch --- */

static JsonArray *
flags_of(Run *run, JsonObject *domain)
{
  JsonObject *flags = dr_json_obj(record(run), "flags");
  const char *emulator =
      dr_json_str(domain, "emulator", ""); /* a path: no member's name of dr_json_arr()'s */

  return flags && json_object_has_member(flags, emulator) ? json_object_get_array_member(flags, emulator)
                                                          : NULL;
}

static gboolean
patch(Run *run, DrLibvirtEngine *engine, JsonObject *domain, GError **error)
{
  DrProcId id;
  g_autoptr(DrQmp) qmp = NULL;

  if (!dr_libvirt_patch_pid(run->places, dr_json_str(domain, "name", ""),
                            (pid_t)dr_json_int(domain, "pid", 0), error))
    return FALSE;
  qmp = dr_libvirt_engine_take(engine, domain, &id, error);
  return qmp && dr_libvirt_patch(run->places, domain, qmp, &id, flags_of(run, domain), error);
}

/* A file system that is full for a moment must not cost libvirt its view. */
static gboolean
patch_insistently(Run *run, DrLibvirtEngine *engine, JsonObject *domain, GError **error)
{
  for (int try = 1;; try++) {
    g_autoptr(GError) local = NULL;

    if (patch(run, engine, domain, &local))
      return TRUE;
    if (try == PATCH_TRIES) {
      g_propagate_error(error, g_steal_pointer(&local));
      return FALSE;
    }
    g_usleep(PATCH_STEP_MS * 1000);
  }
}

static gboolean
lives(JsonObject *domain)
{
  DrProcId id;

  return dr_proc_identify((pid_t)dr_json_int(domain, "pid", 0), &id, NULL);
}

/* What could not be patched stays "moved": the daemon is not to start over it. */
static void
put_unpatched(JsonObject *domain, const GError *cause)
{
  g_autoptr(GError) error = NULL;
  const char *name = dr_json_str(domain, "name", "?");

  if (!lives(domain)) {
    set_state(domain, "lost");
    dr_error_set(&error, DR_ERROR_ATTENTION, "the guest of domain '%s' has ended under its new QEMU", name);
    dr_error_remedy(&error, "see libvirt's log of it, then start it again: virsh start %s", name);
  } else {
    dr_error_set(
        &error, DR_ERROR_ATTENTION,
        "domain '%s' runs under its new QEMU (pid %d), but libvirt's files cannot be made to say so: %s",
        name, (int)dr_json_int(domain, "pid", 0), cause->message);
    dr_error_remedy(
        &error,
        "mend that (room on the file system, rights); droverd tries again, and starts libvirt's daemon then: "
        "one that is started by hand before would take the domain for ended");
  }
  dr_libvirt_put_error(domain, error);
}

static void
patch_one(Run *run, DrLibvirtEngine *engine, JsonObject *domain)
{
  g_autoptr(GError) error = NULL;

  if (!g_str_equal(state_of(domain), "moved"))
    return;
  if (patch_insistently(run, engine, domain, &error)) {
    set_state(domain, "patched");
    json_object_set_null_member(domain, "error");
  } else {
    put_unpatched(domain, error);
  }
  dr_libvirt_journal_save(run->journal, NULL);
  dr_libvirt_journal_hold(run->journal, "libvirt-patched-one");
}

static gboolean
patch_moved(Run *run, DrLibvirtEngine *engine, GError **error)
{
  JsonArray *all = domains_of(run);
  guint unpatched = 0;

  for (guint i = 0; i < json_array_get_length(all); i++) {
    patch_one(run, engine, json_array_get_object_element(all, i));
    unpatched += g_str_equal(state_of(json_array_get_object_element(all, i)), "moved");
  }
  return unpatched == 0 ||
         dr_error_set(
             error, DR_ERROR_ATTENTION,
             "libvirt's files of %u domain(s) cannot be written; its daemon stays away until they can",
             unpatched);
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

static gboolean
verify(Run *run, GError **error)
{
  virConnectPtr conn = dr_libvirt_connect(run->places, error);
  JsonArray *all = domains_of(run);

  for (guint i = 0; conn && i < json_array_get_length(all); i++) {
    JsonObject *domain = json_array_get_object_element(all, i);

    if (g_str_equal(state_of(domain), "patched"))
      verify_one(run, conn, domain);
  }
  if (conn)
    virConnectClose(conn);
  return conn != NULL;
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

/* A run that cannot go on stays open in the journal: droverd lets a recovery try again. `cause` consumed. */
static gboolean
leave_open(Run *run, GError *cause, GError **error)
{
  dr_libvirt_put_error(record(run), cause);
  dr_libvirt_journal_save(run->journal, NULL);
  g_propagate_error(error, cause);
  return FALSE;
}

/* From wherever it stands to its end. `cause`: nullable, consumed: what ended the way forward. */
static gboolean
bring_home(Run *run, GError *cause, GError **error)
{
  GError *local = NULL;

  set_limit(HOME_MS);
  dr_libvirt_journal_enter(run->journal, "starting", NULL);
  if (!start_daemon(run, &local)) {
    g_clear_error(&cause); /* libvirt without a daemon is the greater trouble */
    return leave_open(run, local, error);
  }
  dr_libvirt_journal_enter(run->journal, "verifying", NULL);
  if (!verify(run, &local)) {
    g_clear_error(&cause);
    return leave_open(run, local, error);
  }
  json_object_set_null_member(record(run), "error");
  return finish(run, cause, error);
}

typedef struct {
  Run *run;
  DrLibvirtEngine *engine;
} Moving;

/* As soon as it is known: a domain's files say the truth while others still move. */
static void
note_end(gpointer domain, gpointer data)
{
  Moving *moving = data;

  dr_libvirt_journal_save(moving->run->journal, NULL); /* a recovery goes by the engine's own journal */
  patch_one(moving->run, moving->engine, domain);      /* if it has moved */
}

/* The guest runs under its new QEMU, and the old one is about to be ended. From a thread of the engine's. */
static void
note_commit(const char *vm, int pid, gpointer data)
{
  const Run *run = data;
  const char *name = g_hash_table_lookup(run->names, vm);
  g_autoptr(GError) error = NULL;

  if (name && !dr_libvirt_patch_pid(run->places, name, pid, &error))
    g_warning("domain '%s': %s", name, error->message); /* it is tried again */
}

static DrLibvirtEngine *
make_engine(Run *run, GError **error)
{
  DrLibvirtEngine *engine =
      dr_libvirt_engine_new(run->dirs->dir, run->dirs->run_dir, run->dirs->cache_dir, error);
  JsonArray *all = domains_of(run);

  g_clear_pointer(&run->names, g_hash_table_unref);
  run->names = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
  for (guint i = 0; i < json_array_get_length(all); i++) {
    JsonObject *domain = json_array_get_object_element(all, i);

    g_hash_table_insert(run->names, g_strdup(dr_json_str(domain, "vm", "")),
                        g_strdup(dr_json_str(domain, "name", "")));
  }
  if (engine)
    dr_libvirt_engine_on_commit(engine, note_commit, run);
  return engine;
}

static gboolean
move_and_patch(Run *run, DrLibvirtEngine *engine, GError **error)
{
  Moving moving = { run, engine };

  if (!dr_libvirt_journal_enter(run->journal, "moving", error))
    return FALSE;
  if (!dr_libvirt_engine_upgrade(engine, domains_of(run), dr_json_str(record(run), "memory", "auto"),
                                 (guint)dr_json_int(record(run), "parallel", 4), note_end, &moving, error))
    return FALSE;
  /* A journal that cannot be written does not keep the files from being patched. */
  dr_libvirt_journal_enter(run->journal, "patching", NULL);
  return patch_moved(run, engine, error);
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
    if (now && !now->process.start_time)
      dr_error_set(&error, DR_ERROR_NOT_FOUND, "domain '%s' has ended meanwhile", now->name);
    if (!error)
      continue;
    set_state(domain, "stayed");
    dr_libvirt_put_error(domain, error);
  }
}

/* Whether the daemon may come back: nobody's guest is undecided, and no file names a process that has ended. */
static gboolean
is_settled(Run *run)
{
  JsonArray *all = domains_of(run);

  for (guint i = 0; i < json_array_get_length(all); i++)
    if (g_strv_contains((const char *const[]){ "moving", "moved", NULL },
                        state_of(json_array_get_object_element(all, i))))
      return FALSE;
  return TRUE;
}

static gboolean
with_daemon_away(Run *run, GError **error)
{
  DrLibvirtEngine *engine;
  GError *cause = NULL;

  set_limit(0);
  dr_libvirt_engine_remove(run->dirs->dir, run->dirs->run_dir);
  if (!dr_libvirt_journal_enter(run->journal, "stopping", &cause) || !stop_daemon(run, &cause))
    return bring_home(run, cause, error);
  dr_libvirt_journal_hold(run->journal, "libvirt-stopped");
  look_again(run);
  engine = make_engine(run, &cause);
  if (engine && !move_and_patch(run, engine, &cause) && !is_settled(run))
    return leave_open(run, cause, error); /* the engine may be at work still: it ends with this process */
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
  reports = dr_libvirt_request_check(run->places, run->dirs->cache_dir, spec, TRUE, error);
  if (!reports)
    return FALSE;
  json_object_set_array_member(journal, "domains", plan_domains(reports));
  json_array_unref(reports);
  return dr_libvirt_journal_enter(run->journal, "checking", error);
}

/* Read before the stop, so that nothing of it can fail behind it. */
static gboolean
read_flags(Run *run, GError **error)
{
  JsonObject *all = json_object_new();
  JsonArray *domains = domains_of(run);

  json_object_set_object_member(record(run), "flags", all);
  for (guint i = 0; i < json_array_get_length(domains); i++) {
    JsonObject *domain = json_array_get_object_element(domains, i);
    const char *emulator = dr_json_str(domain, "emulator", "");
    g_autofree char *file = dr_libvirt_caps_file(run->places, emulator);
    g_autoptr(DrXml) doc = NULL;

    if (json_object_has_member(all, emulator) || !g_str_equal(state_of(domain), "waiting"))
      continue;
    doc = dr_xml_read(file, error);
    if (!doc)
      return FALSE;
    json_object_set_array_member(all, emulator, dr_xml_flags(doc));
  }
  return TRUE;
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

static void
note(gpointer domain, gpointer data)
{
  Run *run = data;

  dr_libvirt_journal_save(run->journal, NULL);
}

static gboolean
settle(Run *run, GError **error)
{
  DrLibvirtEngine *engine;

  if (!stop_daemon(run, error)) /* and whoever was started meanwhile */
    return FALSE;
  engine = make_engine(run, error);
  if (!engine)
    return FALSE;
  if (!dr_libvirt_engine_recover(engine, domains_of(run), note, run, error))
    return FALSE; /* it may be at work still */
  dr_libvirt_journal_enter(run->journal, "patching", NULL);
  return patch_moved(run, engine, error);
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
  if ((g_str_equal(state, "moving") || g_str_equal(state, "patching")) && !settle(run, &cause))
    return leave_open(run, cause, error);
  dr_libvirt_journal_hold(run->journal, "libvirt-recover");
  return bring_home(run, cause, error);
}

JsonObject *
dr_libvirt_run_check(const DrLibvirtDirs *dirs, JsonObject *spec, GError **error)
{
  g_autoptr(DrLibvirtPlaces) places =
      dr_libvirt_places_new(dr_json_str(spec, "uri", "qemu:///system"), error);
  JsonArray *reports = places ? dr_libvirt_request_check(places, dirs->cache_dir, spec, FALSE, error) : NULL;
  JsonObject *answer = reports ? json_object_new() : NULL;

  if (!reports)
    return NULL;
  json_object_set_string_member(answer, "uri", places->uri);
  json_object_set_array_member(answer, "domains", reports);
  return answer;
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
  if (is_open(run.journal) && !recover(&run, error) && is_open(run.journal))
    return FALSE;
  g_clear_error(error); /* how that one ended is not this one's */
  g_clear_pointer(&run.places, dr_libvirt_places_free);
  g_clear_pointer(&run.daemon, dr_libvirt_daemon_free);
  run.away_us = 0;
  set_limit(CHECK_MS);
  /* A name that nobody knows makes no run: the one before stays to be seen. */
  run.places = dr_libvirt_places_new(dr_json_str(spec, "uri", "qemu:///system"), error);
  if (!run.places || !dr_libvirt_request_is_known(run.places, spec, error))
    return FALSE;
  if (!begin(&run, spec, &cause) || !is_worth_it(&run, spec, &cause) || !read_flags(&run, &cause) ||
      !find_daemon(&run, &cause))
    return finish(&run, cause, error);
  return with_daemon_away(&run, error);
}
