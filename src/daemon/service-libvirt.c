/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See service-libvirt.h.
 *
 * Of a run there are two witnesses: DIR/run.json, which drover-libvirt writes, and its process. droverd adds only what neither can say: that
 * the process is gone and the run is not at its end. Under systemd nothing more is needed for it to live on: the unit's KillMode=process
 * lets it finish in droverd's control group, and it moves libvirt's own processes back to theirs. */
#include "daemon/service-libvirt.h"
#include "base/error.h"
#include "base/metrics.h"
#include "daemon/libvirt-helper.h"
#include "daemon/request.h"
#include "job/preflight.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#define TRIES 5 /* of a recovery */
#define FIRST_PAUSE_MS 500
#define SLICE_MS 100
#define PARALLEL_MAX 64

struct DrServiceLibvirt {
  DrLibvirtHelper helper;
  GThread *thread; /* nullable; it and `pid` are whose who has set `active` */
  pid_t pid;       /* of the helper that is our child; 0: none */
  GMutex lock;     /* for what follows; never held over a file or a wait */
  gboolean active, leave;
  gint64 started_ms; /* of the run that this droverd has begun last; 0: none */
  GError *error;     /* what run.json does not say: nullable */
};

/* --- The run, as others may see it --- */

static void
copy_members(JsonObject *to, JsonObject *from, const char *const *names)
{
  for (; *names; names++) {
    JsonNode *node = json_object_get_member(from, *names);

    if (node)
      json_object_set_member(to, *names, dr_json_dup(node));
    else
      json_object_set_null_member(to, *names);
  }
}

static gboolean
has_finding(JsonArray *findings, JsonObject *finding)
{
  for (guint i = 0; i < json_array_get_length(findings); i++) {
    JsonObject *one = json_array_get_object_element(findings, i);

    if (g_str_equal(dr_json_str(one, "code", ""), dr_json_str(finding, "code", "")) &&
        g_str_equal(dr_json_str(one, "text", ""), dr_json_str(finding, "text", "")))
      return TRUE;
  }
  return FALSE;
}

/* Those of the check, then what the upgrade itself has found besides. */
static JsonArray *
findings_of(JsonObject *domain)
{
  JsonArray *sources[] = { dr_json_arr(domain, "findings"), dr_json_arr(domain, "job.findings") };
  JsonArray *all = json_array_new();

  for (guint n = 0; n < G_N_ELEMENTS(sources); n++)
    for (guint i = 0; sources[n] && i < json_array_get_length(sources[n]); i++) {
      JsonObject *one = json_array_get_object_element(sources[n], i);

      if (!has_finding(all, one))
        json_array_add_object_element(all, dr_json_dup_object(one));
    }
  return all;
}

static JsonObject *
show_domain(JsonObject *domain)
{
  static const char *const names[] = { "name",
                                       "uuid",
                                       "state",
                                       "pid_before",
                                       "pid",
                                       "qemu_before",
                                       "qemu_after",
                                       "emulator_before",
                                       "emulator",
                                       "memory_mode",
                                       "view_is_true",
                                       "view",
                                       "note",
                                       "error",
                                       NULL };
  JsonObject *shown = json_object_new(), *result = dr_json_obj(domain, "job.result");

  copy_members(shown, domain, names);
  json_object_set_array_member(shown, "findings", findings_of(domain));
  if (result)
    json_object_set_object_member(shown, "result", dr_json_dup_object(result));
  else
    json_object_set_null_member(shown, "result");
  return shown;
}

static JsonObject *
show_report(JsonObject *domain)
{
  static const char *const names[] = { "name",     "uuid",        "pid",        "ok",       "emulator_before",
                                       "emulator", "qemu_before", "qemu_after", "findings", "memory_mode",
                                       NULL };
  JsonObject *shown = json_object_new();

  copy_members(shown, domain, names);
  return shown;
}

static JsonArray *
each_domain(JsonObject *from, JsonObject *(*show)(JsonObject *domain))
{
  JsonArray *domains = dr_json_arr(from, "domains"), *shown = json_array_new();

  for (guint i = 0; domains && i < json_array_get_length(domains); i++)
    json_array_add_object_element(shown, show(json_array_get_object_element(domains, i)));
  return shown;
}

static void
put_error(JsonObject *object, const GError *error)
{
  JsonObject *one = json_object_new();

  json_object_set_string_member(one, "code", dr_error_code_name(error));
  json_object_set_string_member(one, "message", error->message);
  json_object_set_string_member(one, "remedy", dr_error_get_remedy(error));
  json_object_set_object_member(object, "error", one);
}

/* The environment of libvirt's daemon is in what is written, and much that only a recovery needs. */
static JsonObject *
show_run(JsonObject *run)
{
  static const char *const names[] = { "state",       "uri",        "memory",   "parallel",
                                       "daemon_name", "started_ms", "ended_ms", "away_ms",
                                       "total_ms",    "error",      NULL };
  JsonObject *shown = json_object_new();

  copy_members(shown, run, names);
  json_object_set_string_member(shown, "emulator", dr_json_str(run, "qemu", NULL));
  json_object_set_boolean_member(shown, "interrupted", dr_json_bool(run, "interrupted", FALSE));
  json_object_set_array_member(shown, "domains", each_domain(run, show_domain));
  return shown;
}

/* What droverd knows of the run; never while a file is read. */
typedef struct {
  gboolean active;
  gint64 started_ms;
  GError *error;
} Known;

static void
known_clear(Known *known)
{
  g_clear_error(&known->error);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Known, known_clear)

static Known
known(DrServiceLibvirt *l)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&l->lock);

  return (Known){ .active = l->active,
                  .started_ms = l->started_ms,
                  .error = l->error ? g_error_copy(l->error) : NULL };
}

static gboolean
is_active(DrServiceLibvirt *l)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&l->lock);

  return l->active;
}

/* Whether what is written is of the run that was begun last. */
static gboolean
is_ours(gint64 started_ms, JsonObject *run)
{
  return run && (!started_ms || dr_json_int(run, "started_ms", 0) == started_ms);
}

static gboolean
is_open(JsonObject *run)
{
  return run && !g_str_equal(dr_json_str(run, "state", ""), "done");
}

/* Of a run of which nothing is written, yet or ever. */
static JsonObject *
blank_run(const Known *now)
{
  g_autoptr(JsonObject) run =
      dr_json("{'state': <%s>, 'started_ms': <%x>}", now->active ? "checking" : "done", now->started_ms);

  return show_run(run);
}

/* By what was known before the file was read: one that has ended is written down as ended. */
static JsonObject *
look(DrServiceLibvirt *l, const Known *now, GError **error)
{
  g_autoptr(GError) local = NULL;
  g_autoptr(JsonObject) run = dr_libvirt_helper_read(&l->helper, &local);
  JsonObject *shown;

  if (!run && !local && !now->started_ms) {
    dr_error_set(error, DR_ERROR_NOT_FOUND, "no domain of libvirt's has been upgraded on this host");
    return NULL;
  }
  shown = is_ours(now->started_ms, run) ? show_run(run) : blank_run(now);
  json_object_set_boolean_member(shown, "active", now->active);
  if (now->error || local)
    put_error(shown, now->error ? now->error : local);
  return shown;
}

JsonObject *
dr_service_libvirt_run(DrService *service, GError **error)
{
  DrServiceLibvirt *l = service->libvirt;

  for (;;) { /* once more, where another run has begun meanwhile */
    g_auto(Known) now = known(l);
    g_autoptr(GError) local = NULL;
    g_autoptr(JsonObject) shown = look(l, &now, &local);
    g_auto(Known) then = known(l);

    if (then.started_ms != now.started_ms)
      continue;
    if (!shown)
      g_propagate_error(error, g_steal_pointer(&local));
    return g_steal_pointer(&shown);
  }
}

guint64
dr_service_libvirt_stamp(DrService *service)
{
  return is_active(service->libvirt) ? dr_libvirt_helper_stamp(&service->libvirt->helper) | 1 : 0;
}

/* --- Looking after it --- */

static gboolean
must_leave(DrServiceLibvirt *l)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&l->lock);

  return l->leave;
}

/* FALSE: droverd ends before. */
static gboolean
rest(DrServiceLibvirt *l, gint64 ms)
{
  DrDeadline deadline = dr_deadline_in(ms);

  while (!must_leave(l) && !dr_deadline_passed(deadline))
    g_usleep(SLICE_MS * 1000); /* bounded by the deadline */
  return !must_leave(l);
}

/* Without a deadline: a copy of all RAM takes as long as it takes, and each wait of the helper's has its own. */
static gboolean
wait_child(DrServiceLibvirt *l, pid_t pid)
{
  int pidfd = pidfd_open(pid, 0);
  struct pollfd ended = { .fd = pidfd, .events = POLLIN };
  int done = 0;

  while (pidfd >= 0 && done <= 0 && !must_leave(l))
    done = poll(&ended, 1, SLICE_MS);
  if (pidfd >= 0)
    close(pidfd);
  if (done <= 0 && pidfd >= 0)
    return FALSE;
  while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
    ;
  return TRUE;
}

/* One of ours, or one that an earlier droverd has started. FALSE: droverd ends before. */
static gboolean
wait_helper(DrServiceLibvirt *l)
{
  if (l->pid) {
    if (!wait_child(l, l->pid))
      return FALSE;
    l->pid = 0;
    return TRUE;
  }
  while (dr_libvirt_helper_works(&l->helper))
    if (!rest(l, SLICE_MS))
      return FALSE;
  return TRUE;
}

static void
set_error(DrServiceLibvirt *l, GError *error)
{
  g_mutex_lock(&l->lock);
  g_clear_error(&l->error);
  l->error = error;
  g_mutex_unlock(&l->lock);
}

/* What cannot be read is not at its end. */
static gboolean
is_at_its_end(DrServiceLibvirt *l)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) run = dr_libvirt_helper_read(&l->helper, &error);
  g_auto(Known) now = known(l);

  if (error || is_open(run))
    return FALSE;
  if (!is_ours(now.started_ms, run)) { /* it did not come to write anything */
    dr_libvirt_helper_last_error(&l->helper, &error);
    set_error(l, g_steal_pointer(&error));
  }
  return TRUE;
}

static void
give_up(DrServiceLibvirt *l)
{
  g_auto(Known) now = known(l);
  g_autoptr(GError) cause = g_steal_pointer(&now.error);
  GError *error = NULL;

  if (!cause)
    dr_libvirt_helper_last_error(&l->helper, &cause);
  dr_error_set(
      &error, DR_ERROR_ATTENTION,
      "an upgrade of libvirt's domains was interrupted, and could not be brought to its end in %d tries: %s",
      TRIES, cause->message);
  dr_error_remedy(&error, "libvirt's daemon may be stopped: do not start it before this is settled, or it "
                          "could take a domain that "
                          "has moved for one that has ended; see STATE_DIR/libvirt/log, remove what is in "
                          "the way, and restart droverd");
  g_warning("%s", error->message);
  set_error(l, error);
}

static void
start_recovery(DrServiceLibvirt *l, guint try)
{
  g_autoptr(GError) error = NULL;

  g_warning("an upgrade of libvirt's domains was interrupted: try %u of %d to bring it to its end", try,
            TRIES);
  l->pid = dr_libvirt_helper_start(&l->helper, NULL, &error);
  if (!l->pid)
    g_warning("%s", error->message);
  set_error(l, g_steal_pointer(&error)); /* none, where it has begun */
}

/* "upgraded", "refused", "failed" or "attention". One that still waits when the run is at its end was refused with others. */
static const char *
result_of(JsonObject *run, JsonObject *domain)
{
  const char *state = dr_json_str(domain, "state", "");

  if (g_str_equal(state, "refused") || (g_str_equal(state, "waiting") && !is_open(run)))
    return "refused";
  if (g_str_equal(state, "stayed"))
    return "failed";
  return g_str_equal(state, "done") && dr_json_bool(domain, "view_is_true", FALSE) ? "upgraded" : "attention";
}

static void
count_results(DrServiceLibvirt *l)
{
  g_auto(Known) now = known(l);
  g_autoptr(JsonObject) run = dr_libvirt_helper_read(&l->helper, NULL);
  JsonArray *domains = is_ours(now.started_ms, run) ? dr_json_arr(run, "domains") : NULL;

  for (guint i = 0; domains && i < json_array_get_length(domains); i++)
    dr_metric_add(DR_METRIC_LIBVIRT, 1, result_of(run, json_array_get_object_element(domains, i)), NULL);
}

/* The pause doubles from try to try, the first comes at once. */
static gpointer
look_after(gpointer data)
{
  DrServiceLibvirt *l = data;
  gboolean there = wait_helper(l);

  for (guint try = 1; there && !is_at_its_end(l); try++) {
    if (try > TRIES) {
      give_up(l);
      break;
    }
    there = try == 1 || rest(l, FIRST_PAUSE_MS << (try - 1));
    if (!there)
      break;
    start_recovery(l, try);
    there = wait_helper(l);
  }
  if (there)
    count_results(l);
  g_mutex_lock(&l->lock);
  l->active = FALSE;
  g_mutex_unlock(&l->lock);
  return NULL;
}

DrServiceLibvirt *
dr_service_libvirt_new(DrHost *host)
{
  static const char *const results[] = { "upgraded", "refused", "failed", "attention" };
  DrServiceLibvirt *l = g_new0(DrServiceLibvirt, 1);
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) run = NULL;

  g_mutex_init(&l->lock);
  l->helper.dir = g_build_filename(host->state_dir, "libvirt", NULL);
  l->helper.run_dir = g_build_filename(host->run_dir, "libvirt", NULL);
  l->helper.cache_dir = host->cache_dir;
  for (guint i = 0; i < G_N_ELEMENTS(results); i++)
    dr_metric_add(DR_METRIC_LIBVIRT, 0, results[i], NULL);
  run = dr_libvirt_helper_read(&l->helper, &error);
  l->active = error || is_open(run) || dr_libvirt_helper_works(&l->helper);
  if (l->active)
    l->thread = g_thread_new("libvirt", look_after, l);
  return l;
}

void
dr_service_libvirt_free(DrServiceLibvirt *l, DrDeadline deadline)
{
  if (!l)
    return;
  while (is_active(l) && !dr_deadline_passed(deadline))
    g_usleep(10000); /* bounded by the deadline */
  if (is_active(l))
    g_message("an upgrade of libvirt's domains is under way and goes on; the next droverd looks after it");
  g_mutex_lock(&l->lock);
  l->leave = TRUE;
  g_mutex_unlock(&l->lock);
  g_clear_pointer(&l->thread, g_thread_join);
  g_clear_error(&l->error);
  g_mutex_clear(&l->lock);
  g_free(l->helper.dir);
  g_free(l->helper.run_dir);
  g_free(l);
}

/* --- What is asked for --- */

static gboolean
check_request(JsonObject *request, const DrMember *members, GError **error)
{
  const char *emulator = dr_json_str(request, "emulator", NULL);
  JsonArray *domains = dr_json_arr(request, "domains");
  DrMemoryMode mode;

  if (!dr_request_check(request, members, error) ||
      !dr_memory_mode_parse(dr_json_str(request, "memory", "auto"), &mode, error))
    return FALSE;
  if (emulator && !g_path_is_absolute(emulator))
    return dr_error_set(error, DR_ERROR_INVALID, "the emulator '%s' is not an absolute path", emulator);
  if (domains && json_array_get_length(domains) == 0)
    return dr_error_set(error, DR_ERROR_INVALID, "no domain is named; without 'domains' all are meant");
  return TRUE;
}

JsonObject *
dr_service_libvirt_check(DrService *service, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "uri", DR_MEMBER_TEXT },      { "domains", DR_MEMBER_TEXTS },
                                      { "emulator", DR_MEMBER_TEXT }, { "untested", DR_MEMBER_FLAG },
                                      { "memory", DR_MEMBER_TEXT },   { NULL } };
  g_autoptr(JsonObject) report = NULL;
  JsonObject *shown;

  if (!check_request(request, members, error))
    return NULL;
  report = dr_libvirt_helper_check(&service->libvirt->helper, request, &service->ending, error);
  if (!report)
    return NULL;
  shown = dr_json("{'uri': <%s>}", dr_json_str(report, "uri", ""));
  json_object_set_array_member(shown, "domains", each_domain(report, show_report));
  return shown;
}

/* By its start a run is told from the one before, whose is `last`. FALSE: there is one under way. */
static gboolean
claim(DrServiceLibvirt *l, gint64 last, GError **error)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&l->lock);

  if (l->active) {
    dr_error_set(error, DR_ERROR_BUSY, "libvirt's domains are being upgraded just now");
    return dr_error_remedy(error, "drover upgrade --libvirt follows that to its end");
  }
  l->active = TRUE;
  l->started_ms = MAX(g_get_real_time() / 1000, MAX(last, l->started_ms) + 1);
  g_clear_error(&l->error);
  return TRUE;
}

static void
give_back(DrServiceLibvirt *l, gint64 started_ms)
{
  g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&l->lock);

  l->active = FALSE;
  l->started_ms = started_ms;
}

/* Whoever has claimed it is alone with the thread and the process. */
static gboolean
start_run(DrServiceLibvirt *l, JsonObject *request, GError **error)
{
  g_autoptr(JsonObject) before = dr_libvirt_helper_read(&l->helper, NULL);
  g_autoptr(JsonObject) spec = dr_json_dup_object(request);
  g_auto(Known) old = known(l);

  if (!claim(l, before ? dr_json_int(before, "started_ms", 0) : 0, error))
    return FALSE;
  g_clear_pointer(&l->thread, g_thread_join);
  json_object_set_int_member(spec, "started_ms", l->started_ms);
  l->pid = dr_libvirt_helper_start(&l->helper, spec, error);
  if (!l->pid) {
    give_back(l, old.started_ms);
    return FALSE;
  }
  l->thread = g_thread_new("libvirt", look_after, l);
  return TRUE;
}

JsonObject *
dr_service_libvirt_upgrade(DrService *service, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "uri", DR_MEMBER_TEXT },
                                      { "domains", DR_MEMBER_TEXTS },
                                      { "emulator", DR_MEMBER_TEXT },
                                      { "untested", DR_MEMBER_FLAG },
                                      { "memory", DR_MEMBER_TEXT },
                                      { "parallel", DR_MEMBER_NUMBER, 1, PARALLEL_MAX },
                                      { NULL } };

  return check_request(request, members, error) && start_run(service->libvirt, request, error)
             ? dr_service_libvirt_run(service, error)
             : NULL;
}
