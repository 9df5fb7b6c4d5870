/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The link-time double of the service; see test-api-fake.h for what it answers. */
#include "test-api-fake.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define SLOW_MS 20000
#define STAGE_MS 5

typedef struct {
  char *id, *vm;
  const char *state, *stage;
  JsonObject *error, *result;
  JsonArray *findings;
  gboolean cancel;
} Job;

struct DrService {
  DrEvents *events;
  GMutex lock;
  GCond changed;
  GPtrArray *jobs, *threads;
  gboolean released, stopping;
  char *last;
  gint flooded; /* KiB */
};

typedef struct {
  DrService *service;
  Job *job;
  int fd;
  char *name;
} Work;

static void
job_free(gpointer data)
{
  Job *job = data;

  g_clear_pointer(&job->error, json_object_unref);
  g_clear_pointer(&job->result, json_object_unref);
  g_clear_pointer(&job->findings, json_array_unref);
  g_free(job->id);
  g_free(job->vm);
  g_free(job);
}

DrService *
fake_service_new(DrEvents *events)
{
  DrService *service = g_new0(DrService, 1);

  service->events = events;
  g_mutex_init(&service->lock);
  g_cond_init(&service->changed);
  service->jobs = g_ptr_array_new_with_free_func(job_free);
  service->threads = g_ptr_array_new();
  return service;
}

void
fake_release(DrService *service)
{
  g_mutex_lock(&service->lock);
  service->released = TRUE;
  g_cond_broadcast(&service->changed);
  g_mutex_unlock(&service->lock);
}

void
fake_service_free(DrService *service)
{
  g_mutex_lock(&service->lock);
  service->stopping = TRUE;
  g_cond_broadcast(&service->changed);
  g_mutex_unlock(&service->lock);
  for (guint i = 0; i < service->threads->len; i++)
    g_thread_join(service->threads->pdata[i]);
  g_ptr_array_unref(service->threads);
  g_ptr_array_unref(service->jobs);
  g_mutex_clear(&service->lock);
  g_cond_clear(&service->changed);
  g_free(service->last);
  g_free(service);
}

static void
note_request(DrService *service, JsonObject *request)
{
  g_mutex_lock(&service->lock);
  g_free(service->last);
  service->last = dr_json_print_object(request, FALSE);
  g_mutex_unlock(&service->lock);
}

char *
fake_last_request(DrService *service)
{
  char *last;

  g_mutex_lock(&service->lock);
  last = g_strdup(service->last);
  g_mutex_unlock(&service->lock);
  return last;
}

gsize
fake_flooded(DrService *service)
{
  return (gsize)g_atomic_int_get(&service->flooded) * 1024;
}

static void
start_thread(Work work, GThreadFunc run)
{
  g_mutex_lock(&work.service->lock);
  g_ptr_array_add(work.service->threads, g_thread_new("fake", run, g_memdup2(&work, sizeof work)));
  g_mutex_unlock(&work.service->lock);
}

/* --- VMs --- */

static JsonObject *
vm(const char *name, const char *state)
{
  return dr_json(
      "{'name': <%s>, 'state': <%s>, 'pid': <4711>, 'qemu_version': <'7.2.22'>, 'machine': <'pc-q35-7.2'>, "
      "'uuid': <'5fb2c0de-0000-4000-8000-000000000001'>, 'memory_mode': <'shared'>, 'adopted': <false>}",
      name, state);
}

static gboolean
check_name(const char *name, GError **error)
{
  if (!name || !*name || strpbrk(name, " /"))
    return dr_error_set(error, DR_ERROR_INVALID, "'%s' is no name of a VM", name ? name : "");
  if (g_str_equal(name, "attention")) {
    dr_error_set(error, DR_ERROR_ATTENTION, "VM 'attention' may run twice");
    return dr_error_remedy(error, "look at both processes");
  }
  if (g_str_has_prefix(name, "no"))
    return dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no VM '%s'", name);
  return TRUE;
}

static JsonObject *
vm_if(const char *name, const char *state, GError **error)
{
  return check_name(name, error) ? vm(name, state) : NULL;
}

JsonObject *
dr_service_run(DrService *service, JsonObject *request, GError **error)
{
  const char *name = dr_json_str(request, "name", "");
  DrDeadline deadline = dr_deadline_in(SLOW_MS);

  note_request(service, request);
  if (g_str_equal(name, "taken")) {
    dr_error_set(error, DR_ERROR_EXISTS, "cannot start 'taken': the name is taken");
    dr_error_remedy(error, "choose another name");
    return NULL;
  }
  g_mutex_lock(&service->lock);
  while (g_str_equal(name, "slow") && !service->released && !service->stopping)
    if (!g_cond_wait_until(&service->changed, &service->lock, deadline))
      break;
  g_mutex_unlock(&service->lock);
  return vm_if(name, "running", error);
}

JsonObject *
dr_service_adopt(DrService *service, JsonObject *request, GError **error)
{
  note_request(service, request);
  return vm_if(dr_json_str(request, "name", ""), "running", error);
}

JsonArray *
dr_service_list(DrService *service, gboolean fresh, GError **error)
{
  JsonArray *array = json_array_new();

  json_array_add_object_element(array, vm("web1", "running"));
  json_array_add_object_element(array, vm("web2", "paused"));
  return array;
}

JsonObject *
dr_service_show(DrService *service, const char *name, GError **error)
{
  JsonObject *object = vm_if(name, "running", error);

  if (g_str_equal(name, "big")) {
    g_autofree char *note = g_strnfill(8 * 1024 * 1024, 'x');

    json_object_set_string_member(object, "note", note);
  }
  return object;
}

JsonObject *
dr_service_pause(DrService *service, const char *name, GError **error)
{
  return vm_if(name, "paused", error);
}

JsonObject *
dr_service_resume(DrService *service, const char *name, GError **error)
{
  return vm_if(name, "running", error);
}

JsonObject *
dr_service_stop(DrService *service, const char *name, JsonObject *request, GError **error)
{
  note_request(service, request);
  return vm_if(name, "stopped", error);
}

gboolean
dr_service_forget(DrService *service, const char *name, gboolean force, GError **error)
{
  if (!check_name(name, error))
    return FALSE;
  return force ? TRUE : dr_error_set(error, DR_ERROR_BUSY, "VM '%s' runs", name);
}

JsonObject *
dr_service_qmp(DrService *service, const char *name, JsonObject *command, GError **error)
{
  note_request(service, command);
  if (g_str_equal(dr_json_str(command, "execute", ""), "quit")) {
    dr_error_set(error, DR_ERROR_REFUSED, "'quit' would end the VM");
    dr_error_remedy(error, "drover stop %s", name);
    return NULL;
  }
  return check_name(name, error) ? dr_json("{'return': <{'status': <'running'>}>}") : NULL;
}

JsonObject *
dr_service_version(DrService *service, GError **error)
{
  return dr_json("{'version': <'0'>, 'host': <'here'>, 'vms': <2>, 'jobs': <0>, 'libvirt': <false>}");
}

char *
dr_service_metrics(DrService *service, GError **error)
{
  return g_strdup(
      "# HELP drover_vms VMs by state.\n# TYPE drover_vms gauge\ndrover_vms{state=\"running\"} 1\n");
}

/* --- Consoles: the guest's end of a socket pair --- */

static gboolean
wait_for(Work *work, short events)
{
  struct pollfd poll_fd = { .fd = work->fd, .events = events };

  for (;;) {
    gboolean stopping;

    g_mutex_lock(&work->service->lock);
    stopping = work->service->stopping;
    g_mutex_unlock(&work->service->lock);
    if (stopping)
      return FALSE;
    if (poll(&poll_fd, 1, 20) > 0)
      return TRUE;
  }
}

static void
echo(Work *work)
{
  char buffer[4096];
  gssize n;

  while (wait_for(work, POLLIN) && (n = read(work->fd, buffer, sizeof buffer)) > 0)
    for (gssize at = 0; at < n;) {
      gssize written =
          wait_for(work, POLLOUT) ? send(work->fd, buffer + at, n - at, MSG_NOSIGNAL | MSG_DONTWAIT) : -1;

      if (written < 0 && errno != EAGAIN)
        return;
      at += MAX(written, 0);
    }
}

static void
flood(Work *work)
{
  static const char line[1024] = "spam and eggs ";

  while (wait_for(work, POLLOUT)) {
    gssize n = send(work->fd, line, sizeof line, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n < 0 && errno != EAGAIN)
      return;
    if (n > 0)
      g_atomic_int_inc(&work->service->flooded);
  }
}

static gpointer
run_guest(gpointer data)
{
  Work *work = data;

  if (g_str_equal(work->name, "flood"))
    flood(work);
  else if (g_str_equal(work->name, "ends"))
    send(work->fd, "bye\r\n", 5, MSG_NOSIGNAL);
  else if (g_str_equal(work->name, "deaf"))
    wait_for(work, 0);
  else
    echo(work);
  close(work->fd);
  g_free(work->name);
  g_free(work);
  return NULL;
}

int
dr_service_console(DrService *service, const char *name, GError **error)
{
  int pair[2];

  if (!check_name(name, error))
    return -1;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
    dr_error_set_errno(error, errno, "socketpair");
    return -1;
  }
  start_thread((Work){ .service = service, .fd = pair[1], .name = g_strdup(name) }, run_guest);
  return pair[0];
}

/* --- Jobs --- */

static JsonObject *
job_json(const Job *job)
{
  JsonObject *object = dr_json("{'id': <%s>, 'kind': <'upgrade'>, 'vm': <%s>, 'state': <%s>, 'stage': <%s>, "
                               "'created_ms': <int64 1700000000000>, 'started_ms': <int64 1700000000001>}",
                               job->id, job->vm, job->state, job->stage);
  g_autofree char *error = job->error ? dr_json_print_object(job->error, FALSE) : NULL;
  g_autofree char *result = job->result ? dr_json_print_object(job->result, FALSE) : NULL;

  /* Through text: objects must not be shared between threads. */
  if (error)
    json_object_set_object_member(object, "error", dr_json_parse_object(error, -1, 65536, NULL));
  if (result)
    json_object_set_object_member(object, "result", dr_json_parse_object(result, -1, 65536, NULL));
  if (job->findings) {
    g_autoptr(JsonNode) node = json_node_new(JSON_NODE_ARRAY);
    g_autofree char *text = NULL;

    json_node_set_array(node, job->findings);
    text = dr_json_print(node, FALSE);
    json_object_set_member(object, "findings", json_from_string(text, NULL));
  }
  return object;
}

/* With the lock held. */
static void
enter(DrService *service, Job *job, const char *state, const char *stage)
{
  JsonObject *event = dr_json("{'type': <'job'>, 'time_ms': <%x>}", (gint64)(g_get_real_time() / 1000));

  job->state = state;
  job->stage = stage;
  json_object_set_object_member(event, "job", job_json(job));
  g_cond_broadcast(&service->changed);
  dr_events_publish(service->events, event);
}

static void
add_finding(Job *job, const char *severity, const char *text, const char *remedy)
{
  if (!job->findings)
    job->findings = json_array_new();
  json_array_add_object_element(
      job->findings,
      dr_json("{'severity': <%s>, 'code': <'x'>, 'text': <%s>, 'remedy': <%s>}", severity, text, remedy));
}

static void
end_job(DrService *service, Job *job)
{
  if (g_str_equal(job->vm, "bad")) {
    add_finding(job, "blocker", "it has a vfio device", "unplug it");
    add_finding(job, "blocker", "the machine type is unknown", "take another binary");
    job->error = dr_json(
        "{'code': <'refused'>, 'message': <'cannot upgrade VM \\'bad\\': A; B'>, 'remedy': <'unplug it'>}");
    enter(service, job, "failed", "preflight");
  } else if (g_str_equal(job->vm, "att")) {
    job->error = dr_json("{'code': <'attention'>, 'message': <'both may run'>, 'remedy': <'look'>}");
    enter(service, job, "attention", "switchover");
  } else if (job->cancel) {
    job->error = dr_json("{'code': <'cancelled'>, 'message': <'cancelled'>}");
    enter(service, job, "cancelled", job->stage);
  } else {
    job->result =
        dr_json("{'memory_mode': <'shared'>, 'pause_ms': <2.9>, 'total_ms': <212>, 'bytes_moved': <200000>, "
                "'qemu_before': <'7.2.22'>, 'qemu_after': <'10.0.11'>}");
    enter(service, job, "succeeded", "done");
  }
}

static gpointer
run_job(gpointer data)
{
  static const char *const stages[] = { "preflight", "start", "move", "switchover" };
  Work *work = data;
  DrService *service = work->service;
  Job *job = work->job;

  g_mutex_lock(&service->lock);
  add_finding(job, "warning", "the clock may jump", "run ntp");
  for (guint i = 0; i < G_N_ELEMENTS(stages); i++) {
    enter(service, job, "running", stages[i]);
    g_cond_wait_until(&service->changed, &service->lock, dr_deadline_in(STAGE_MS));
  }
  while (g_str_equal(job->vm, "hang") && !job->cancel && !service->stopping)
    g_cond_wait(&service->changed, &service->lock);
  end_job(service, job);
  g_mutex_unlock(&service->lock);
  g_free(work);
  return NULL;
}

static Job *
add_job(DrService *service, const char *name)
{
  Job *job = g_new0(Job, 1);

  job->id = g_strdup_printf("%u", service->jobs->len + 1);
  job->vm = g_strdup(name);
  job->state = job->stage = "queued";
  g_ptr_array_add(service->jobs, job);
  return job;
}

static char **
names_of(JsonObject *request, GError **error)
{
  g_auto(GStrv) names = dr_json_bool(request, "all", FALSE) ? g_strsplit("web1 web2", " ", -1)
                                                            : dr_json_strv(dr_json_arr(request, "vms"));

  for (char **name = names; name && *name; name++)
    if (!check_name(*name, error))
      return NULL;
  if (!names)
    dr_error_set(error, DR_ERROR_INVALID, "'vms' is no array of names");
  return g_steal_pointer(&names);
}

JsonArray *
dr_service_upgrade(DrService *service, JsonObject *request, GError **error)
{
  g_auto(GStrv) names = names_of(request, error);
  JsonArray *array = names ? json_array_new() : NULL;

  note_request(service, request);
  for (char **name = names; name && *name; name++) {
    Job *job;

    g_mutex_lock(&service->lock);
    job = add_job(service, *name);
    json_array_add_object_element(array, job_json(job));
    g_mutex_unlock(&service->lock);
    start_thread((Work){ .service = service, .job = job }, run_job);
  }
  return array;
}

JsonArray *
dr_service_upgrade_check(DrService *service, JsonObject *request, GError **error)
{
  g_auto(GStrv) names = names_of(request, error);
  JsonArray *array = names ? json_array_new() : NULL;

  for (char **name = names; name && *name; name++) {
    JsonObject *report =
        dr_json("{'vm': <%s>, 'ok': <%b>, 'memory_mode': <'shared'>, 'qemu_before': <'7.2.22'>, "
                "'qemu_after': <'10.0.11'>}",
                *name, !g_str_equal(*name, "bad"));
    JsonArray *findings = json_array_new();

    if (g_str_equal(*name, "bad"))
      json_array_add_object_element(findings,
                                    dr_json("{'severity': <'blocker'>, 'code': <'vfio'>, "
                                            "'text': <'it has a vfio device'>, 'remedy': <'unplug it'>}"));
    json_object_set_array_member(report, "findings", findings);
    json_array_add_object_element(array, report);
  }
  return array;
}

/* With the lock held. */
static Job *
find_job(DrService *service, const char *id, GError **error)
{
  for (guint i = 0; i < service->jobs->len; i++)
    if (g_str_equal(((Job *)service->jobs->pdata[i])->id, id))
      return service->jobs->pdata[i];
  dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no job '%s'", id);
  return NULL;
}

JsonObject *
dr_service_report(DrService *service, const char *id, GError **error)
{
  JsonObject *report = NULL;
  Job *job;

  g_mutex_lock(&service->lock);
  job = find_job(service, id, error);
  if (job) {
    report = dr_json("{'samples': <@av []>, 'phases': <@av []>, 'pause': <@mv nothing>}");
    json_object_set_object_member(report, "job", job_json(job));
  }
  g_mutex_unlock(&service->lock);
  return report;
}

/* A domain "bad" is refused. */
static JsonObject *
domain(const char *name)
{
  gboolean bad = g_str_equal(name, "bad");

  return dr_json(
      "{'name': <%s>, 'ok': <%b>, 'state': <%s>, 'qemu_before': <'7.2.22'>, 'qemu_after': <'10.0.11'>, "
      "'memory_mode': <'shared'>, 'view_is_true': <true>}",
      name, !bad, bad ? "refused" : "done");
}

static JsonArray *
domains_of(JsonObject *request)
{
  g_auto(GStrv) names = dr_json_strv(dr_json_arr(request, "domains"));
  JsonArray *array = json_array_new();

  for (char **name = names; name && *name; name++)
    json_array_add_object_element(array, domain(*name));
  return array;
}

JsonObject *
dr_service_libvirt_check(DrService *service, JsonObject *request, GError **error)
{
  JsonObject *report = dr_json("{'uri': <'qemu:///system'>}");

  note_request(service, request);
  json_object_set_array_member(report, "domains", domains_of(request));
  return report;
}

JsonObject *
dr_service_libvirt_upgrade(DrService *service, JsonObject *request, GError **error)
{
  JsonObject *run = dr_json(
      "{'active': <false>, 'state': <'done'>, 'started_ms': <%x>, 'daemon_name': <'libvirtd.service'>, "
      "'away_ms': <%d>, 'total_ms': <%d>}",
      (gint64)1, 700.0, 1300.0);

  note_request(service, request);
  json_object_set_array_member(run, "domains", domains_of(request));
  return run;
}

JsonObject *
dr_service_libvirt_run(DrService *service, GError **error)
{
  dr_error_set(error, DR_ERROR_NOT_FOUND, "no domain of libvirt's has been upgraded on this host");
  return NULL;
}

guint64
dr_service_libvirt_stamp(DrService *service)
{
  return 0;
}

JsonObject *
dr_service_stats(DrService *service, const char *kind, GError **error)
{
  if (kind && !g_str_equal(kind, "upgrade")) {
    dr_error_set(error, DR_ERROR_INVALID, "'%s' is no kind of job", kind);
    return NULL;
  }
  return dr_json("{'kinds': <[{'kind': <'upgrade'>, 'jobs': <%x>}]>}", (gint64)2);
}

JsonArray *
dr_service_disks(DrService *service, const char *name, GError **error)
{
  return json_array_new();
}

JsonArray *
dr_service_disk_copy(DrService *service, const char *name, JsonObject *request, GError **error)
{
  return json_array_new();
}

JsonArray *
dr_service_disk_pull(DrService *service, const char *name, JsonObject *request, GError **error)
{
  return json_array_new();
}

JsonObject *
dr_service_disk_ask(DrService *service, const char *name, const char *what, JsonObject *params,
                    GError **error)
{
  return json_object_new();
}

JsonArray *
dr_service_snapshots(DrService *service, const char *name, GError **error)
{
  return json_array_new();
}

JsonArray *
dr_service_snapshot_create(DrService *service, const char *name, JsonObject *request, GError **error)
{
  return json_array_new();
}

JsonArray *
dr_service_snapshot_merge(DrService *service, const char *name, JsonObject *request, GError **error)
{
  return json_array_new();
}

JsonArray *
dr_service_snapshot_revert(DrService *service, const char *name, JsonObject *request, GError **error)
{
  return json_array_new();
}

JsonObject *
dr_service_snapshot_forget(DrService *service, const char *name, JsonObject *request, GError **error)
{
  return json_object_new();
}

JsonArray *
dr_service_bitmaps(DrService *service, const char *name, const char *disk, GError **error)
{
  return json_array_new();
}

JsonObject *
dr_service_bitmap_change(DrService *service, const char *name, const char *what, JsonObject *request,
                         GError **error)
{
  return json_object_new();
}

JsonArray *
dr_service_backups(DrService *service, const char *name, GError **error)
{
  return json_array_new();
}

JsonArray *
dr_service_backup_create(DrService *service, const char *name, JsonObject *request, GError **error)
{
  return json_array_new();
}

JsonArray *
dr_service_backup_serve(DrService *service, const char *name, JsonObject *request, GError **error)
{
  return json_array_new();
}

JsonObject *
dr_service_backup_finish(DrService *service, const char *name, JsonObject *params, GError **error)
{
  return json_object_new();
}

JsonArray *
dr_service_jobs(DrService *service, GError **error)
{
  JsonArray *array = json_array_new();

  g_mutex_lock(&service->lock);
  for (guint i = service->jobs->len; i > 0; i--)
    json_array_add_object_element(array, job_json(service->jobs->pdata[i - 1]));
  g_mutex_unlock(&service->lock);
  return array;
}

JsonObject *
dr_service_job(DrService *service, const char *id, GError **error)
{
  JsonObject *object;
  Job *job;

  g_mutex_lock(&service->lock);
  job = find_job(service, id, error);
  object = job ? job_json(job) : NULL;
  g_mutex_unlock(&service->lock);
  return object;
}

JsonObject *
dr_service_job_wait(DrService *service, const char *id, int timeout_ms, GError **error)
{
  DrDeadline deadline = dr_deadline_in(timeout_ms);
  JsonObject *object;
  Job *job;

  g_mutex_lock(&service->lock);
  job = find_job(service, id, error);
  while (job && (g_str_equal(job->state, "queued") || g_str_equal(job->state, "running")))
    if (!g_cond_wait_until(&service->changed, &service->lock, deadline))
      break;
  object = job ? job_json(job) : NULL;
  g_mutex_unlock(&service->lock);
  return object;
}

JsonObject *
dr_service_job_cancel(DrService *service, const char *id, GError **error)
{
  JsonObject *object = NULL;
  Job *job;

  g_mutex_lock(&service->lock);
  job = find_job(service, id, error);
  if (job && !g_str_equal(job->state, "running")) {
    dr_error_set(error, DR_ERROR_REFUSED, "job %s has ended already", id);
  } else if (job) {
    job->cancel = TRUE;
    g_cond_broadcast(&service->changed);
    object = job_json(job);
  }
  g_mutex_unlock(&service->lock);
  return object;
}

/* --- Peers --- */

static JsonObject *
peer(const char *name, const char *host, gint64 port)
{
  return dr_json("{'name': <%s>, 'host': <%s>, 'port': <%x>, 'added_ms': <int64 1700000000000>}", name, host,
                 port);
}

static gboolean
check_peer(const char *name, GError **error)
{
  return !g_str_has_prefix(name, "no") ||
         dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no peer called '%s'", name);
}

JsonObject *
dr_service_peer_add(DrService *service, JsonObject *request, GError **error)
{
  const char *name = dr_json_str(request, "name", "");

  note_request(service, request);
  if (!g_str_equal(name, "taken"))
    return peer(name, dr_json_str(request, "host", ""), dr_json_int(request, "port", 0));
  dr_error_set(error, DR_ERROR_EXISTS, "there is a peer 'taken' already");
  return NULL;
}

JsonArray *
dr_service_peer_list(DrService *service, GError **error)
{
  JsonArray *array = json_array_new();

  json_array_add_object_element(array, peer("host2", "192.0.2.7", 7413));
  json_array_add_object_element(array, peer("host3", "2001:db8::7", 7000));
  return array;
}

gboolean
dr_service_peer_remove(DrService *service, const char *name, GError **error)
{
  return check_peer(name, error);
}

JsonObject *
dr_service_peer_test(DrService *service, const char *name, GError **error)
{
  JsonObject *object = check_peer(name, error) ? peer(name, "2001:db8::7", 7000) : NULL;

  if (!object)
    return NULL;
  json_object_set_string_member(object, "version", "9.9");
  json_object_set_double_member(object, "round_trip_ms", 0.25);
  json_object_set_int_member(object, "send_mib", 311);
  json_object_set_int_member(object, "receive_mib", 305);
  return object;
}

/* --- Moves: the routes are tested end to end --- */

JsonArray *
dr_service_migrate(DrService *service, JsonObject *request, GError **error)
{
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "not here");
  return NULL;
}

JsonArray *
dr_service_migrate_check(DrService *service, JsonObject *request, GError **error)
{
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "not here");
  return NULL;
}

JsonObject *
dr_service_migrate_set(DrService *service, const char *name, const char *what, JsonObject *params,
                       GError **error)
{
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "not here");
  return NULL;
}
