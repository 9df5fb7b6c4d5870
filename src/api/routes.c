/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The table of routes: method and path to a function of the service. */
#include "api/call.h"
#include "api/problem.h"
#include "base/deadline.h"
#include "base/error.h"

#include <string.h>

#define WAIT_MAX_S 60
#define LOOK_MS 20        /* how often a wait looks at what makes no noise */
#define WAIT_SLICE_MS 500 /* how soon a wait sees that its client, or the server, is gone */

static gboolean
version_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call, dr_service_version(call->api->service, error));
}

static gboolean
list_work(DrCall *call, GError **error)
{
  return dr_call_take_array(call, dr_service_list(call->api->service, TRUE, error));
}

static gboolean
run_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_CREATED;
  return dr_call_take_object(call, dr_service_run(call->api->service, call->body, error));
}

static gboolean
adopt_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_CREATED;
  return dr_call_take_object(call, dr_service_adopt(call->api->service, call->body, error));
}

static gboolean
show_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call, dr_service_show(call->api->service, call->name, error));
}

static gboolean
parse_bool(const char *name, const char *text, gboolean *ret_value, GError **error)
{
  *ret_value = FALSE;
  if (!text || g_str_equal(text, "false"))
    return TRUE;
  *ret_value = TRUE;
  return g_str_equal(text, "true")
             ? TRUE
             : dr_error_set(error, DR_ERROR_INVALID, "query '%s' is 'true' or 'false', not '%s'", name, text);
}

static gboolean
forget_work(DrCall *call, GError **error)
{
  gboolean force;

  call->status = SOUP_STATUS_NO_CONTENT;
  return parse_bool("force", dr_call_query(call, "force"), &force, error) &&
         dr_service_forget(call->api->service, call->name, force, error);
}

static gboolean
pause_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call, dr_service_pause(call->api->service, call->name, error));
}

static gboolean
resume_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call, dr_service_resume(call->api->service, call->name, error));
}

static gboolean
stop_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call, dr_service_stop(call->api->service, call->name, call->body, error));
}

static gboolean
qmp_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call, dr_service_qmp(call->api->service, call->name, call->body, error));
}

static gboolean
upgrade_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_ACCEPTED;
  return dr_call_take_array(call, dr_service_upgrade(call->api->service, call->body, error));
}

static gboolean
check_work(DrCall *call, GError **error)
{
  return dr_call_take_array(call, dr_service_upgrade_check(call->api->service, call->body, error));
}

static gboolean
libvirt_check_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call, dr_service_libvirt_check(call->api->service, call->body, error));
}

static gboolean
libvirt_upgrade_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_ACCEPTED;
  return dr_call_take_object(call, dr_service_libvirt_upgrade(call->api->service, call->body, error));
}

/* What is asked for again and again: a file's time stamp. */
static gboolean
libvirt_run_work(DrCall *call, GError **error)
{
  const char *wait = dr_call_query(call, "wait");
  guint64 ms = 0, stamp;
  DrDeadline deadline;

  if (wait && !g_ascii_string_to_unsigned(wait, 10, 0, WAIT_MAX_S * 1000, &ms, NULL))
    return dr_error_set(error, DR_ERROR_INVALID, "query 'wait' is 0 to %d ms, not '%s'", WAIT_MAX_S * 1000,
                        wait);
  deadline = dr_deadline_in((gint64)ms);
  stamp = dr_service_libvirt_stamp(call->api->service);
  while (stamp && !dr_deadline_passed(deadline) && !dr_call_abandoned(call) &&
         dr_service_libvirt_stamp(call->api->service) == stamp)
    g_usleep(LOOK_MS * 1000); /* bounded by the deadline */
  return dr_call_take_object(call, dr_service_libvirt_run(call->api->service, error));
}

static gboolean
migrate_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_ACCEPTED;
  return dr_call_take_array(call, dr_service_migrate(call->api->service, call->body, error));
}

static gboolean
migrate_check_work(DrCall *call, GError **error)
{
  return dr_call_take_array(call, dr_service_migrate_check(call->api->service, call->body, error));
}

/* To a move under way. */
static gboolean
postcopy_work(DrCall *call, GError **error)
{
  g_autoptr(JsonObject) none = json_object_new();

  return dr_call_take_object(call,
                             dr_service_migrate_set(call->api->service, call->name, "postcopy", none, error));
}

static gboolean
recover_work(DrCall *call, GError **error)
{
  g_autoptr(JsonObject) none = json_object_new();

  return dr_call_take_object(call,
                             dr_service_migrate_set(call->api->service, call->name, "recover", none, error));
}

static gboolean
downtime_work(DrCall *call, GError **error)
{
  return dr_call_take_object(
      call, dr_service_migrate_set(call->api->service, call->name, "downtime", call->body, error));
}

static gboolean
bandwidth_work(DrCall *call, GError **error)
{
  return dr_call_take_object(
      call, dr_service_migrate_set(call->api->service, call->name, "bandwidth", call->body, error));
}

static gboolean
get_bandwidth_work(DrCall *call, GError **error)
{
  g_autoptr(JsonObject) none = json_object_new();

  return dr_call_take_object(
      call, dr_service_migrate_set(call->api->service, call->name, "get-bandwidth", none, error));
}

static gboolean
disks_work(DrCall *call, GError **error)
{
  return dr_call_take_array(call, dr_service_disks(call->api->service, call->name, error));
}

static gboolean
disk_copy_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_ACCEPTED;
  return dr_call_take_array(call, dr_service_disk_copy(call->api->service, call->name, call->body, error));
}

static gboolean
disk_pull_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_ACCEPTED;
  return dr_call_take_array(call, dr_service_disk_pull(call->api->service, call->name, call->body, error));
}

static gboolean
disk_pivot_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call,
                             dr_service_disk_ask(call->api->service, call->name, "pivot", call->body, error));
}

static gboolean
disk_abort_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call,
                             dr_service_disk_ask(call->api->service, call->name, "abort", call->body, error));
}

static gboolean
disk_bandwidth_work(DrCall *call, GError **error)
{
  return dr_call_take_object(
      call, dr_service_disk_ask(call->api->service, call->name, "bandwidth", call->body, error));
}

static gboolean
snapshots_work(DrCall *call, GError **error)
{
  return dr_call_take_array(call, dr_service_snapshots(call->api->service, call->name, error));
}

static gboolean
snapshot_create_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_ACCEPTED;
  return dr_call_take_array(call,
                            dr_service_snapshot_create(call->api->service, call->name, call->body, error));
}

static gboolean
snapshot_merge_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_ACCEPTED;
  return dr_call_take_array(call,
                            dr_service_snapshot_merge(call->api->service, call->name, call->body, error));
}

static gboolean
snapshot_revert_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_ACCEPTED;
  return dr_call_take_array(call,
                            dr_service_snapshot_revert(call->api->service, call->name, call->body, error));
}

static gboolean
snapshot_forget_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call,
                             dr_service_snapshot_forget(call->api->service, call->name, call->body, error));
}

static gboolean
bitmaps_work(DrCall *call, GError **error)
{
  return dr_call_take_array(
      call, dr_service_bitmaps(call->api->service, call->name, dr_call_query(call, "disk"), error));
}

static gboolean
change_bitmap(DrCall *call, const char *what, GError **error)
{
  return dr_call_take_object(
      call, dr_service_bitmap_change(call->api->service, call->name, what, call->body, error));
}

static gboolean
bitmap_add_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_CREATED;
  return change_bitmap(call, "add", error);
}

static gboolean
bitmap_remove_work(DrCall *call, GError **error)
{
  return change_bitmap(call, "remove", error);
}

static gboolean
bitmap_merge_work(DrCall *call, GError **error)
{
  return change_bitmap(call, "merge", error);
}

static gboolean
bitmap_enable_work(DrCall *call, GError **error)
{
  return change_bitmap(call, "enable", error);
}

static gboolean
bitmap_disable_work(DrCall *call, GError **error)
{
  return change_bitmap(call, "disable", error);
}

static gboolean
backups_work(DrCall *call, GError **error)
{
  return dr_call_take_array(call, dr_service_backups(call->api->service, call->name, error));
}

static gboolean
backup_create_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_ACCEPTED;
  return dr_call_take_array(call,
                            dr_service_backup_create(call->api->service, call->name, call->body, error));
}

static gboolean
backup_serve_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_ACCEPTED;
  return dr_call_take_array(call, dr_service_backup_serve(call->api->service, call->name, call->body, error));
}

static gboolean
backup_finish_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call,
                             dr_service_backup_finish(call->api->service, call->name, call->body, error));
}

static gboolean
jobs_work(DrCall *call, GError **error)
{
  return dr_call_take_array(call, dr_service_jobs(call->api->service, error));
}

/* In slices, so that a worker does not stay for a client that has gone, nor droverd's end for a job. */
static gboolean
job_work(DrCall *call, GError **error)
{
  const char *wait = dr_call_query(call, "wait");
  g_autoptr(JsonObject) job = NULL;
  guint64 seconds = 0;
  DrDeadline deadline;

  if (wait && !g_ascii_string_to_unsigned(wait, 10, 0, WAIT_MAX_S, &seconds, NULL))
    return dr_error_set(error, DR_ERROR_INVALID, "query 'wait' is 0 to %d seconds, not '%s'", WAIT_MAX_S,
                        wait);
  deadline = dr_deadline_in((gint64)seconds * 1000);
  job = dr_service_job(call->api->service, call->name, error);
  while (job && !dr_job_ended(job) && !dr_deadline_passed(deadline) && !dr_call_abandoned(call)) {
    int slice = MIN(dr_deadline_left(deadline), WAIT_SLICE_MS);

    g_clear_pointer(&job, json_object_unref);
    job = dr_service_job_wait(call->api->service, call->name, slice, error);
  }
  return dr_call_take_object(call, g_steal_pointer(&job));
}

static gboolean
cancel_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call, dr_service_job_cancel(call->api->service, call->name, error));
}

static gboolean
report_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call, dr_service_report(call->api->service, call->name, error));
}

static gboolean
stats_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call, dr_service_stats(call->api->service, dr_call_query(call, "kind"), error));
}

static gboolean
peers_work(DrCall *call, GError **error)
{
  return dr_call_take_array(call, dr_service_peer_list(call->api->service, error));
}

static gboolean
peer_add_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_CREATED;
  return dr_call_take_object(call, dr_service_peer_add(call->api->service, call->body, error));
}

static gboolean
peer_remove_work(DrCall *call, GError **error)
{
  call->status = SOUP_STATUS_NO_CONTENT;
  return dr_service_peer_remove(call->api->service, call->name, error);
}

static gboolean
peer_test_work(DrCall *call, GError **error)
{
  return dr_call_take_object(call, dr_service_peer_test(call->api->service, call->name, error));
}

static const DrRoute routes[] = {
  { "GET", "/v1/version", DR_BODY_NONE, version_work },
  { "GET", "/v1/openapi.yaml", DR_BODY_NONE, dr_openapi_work },
  { "GET", "/v1/vms", DR_BODY_NONE, list_work },
  { "POST", "/v1/vms", DR_BODY_REQUIRED, run_work },
  { "POST", "/v1/vms/adopt", DR_BODY_REQUIRED, adopt_work },
  { "GET", "/v1/vms/{}", DR_BODY_NONE, show_work },
  { "DELETE", "/v1/vms/{}", DR_BODY_NONE, forget_work },
  { "POST", "/v1/vms/{}/pause", DR_BODY_NONE, pause_work },
  { "POST", "/v1/vms/{}/resume", DR_BODY_NONE, resume_work },
  { "POST", "/v1/vms/{}/stop", DR_BODY_OPTIONAL, stop_work },
  { "POST", "/v1/vms/{}/qmp", DR_BODY_REQUIRED, qmp_work },
  { "GET", "/v1/vms/{}/console", DR_BODY_NONE, dr_console_work, dr_console_answer },
  { "POST", "/v1/upgrade", DR_BODY_REQUIRED, upgrade_work },
  { "POST", "/v1/upgrade/check", DR_BODY_REQUIRED, check_work },
  { "POST", "/v1/libvirt/check", DR_BODY_REQUIRED, libvirt_check_work },
  { "POST", "/v1/libvirt/upgrade", DR_BODY_REQUIRED, libvirt_upgrade_work },
  { "GET", "/v1/libvirt/upgrade", DR_BODY_NONE, libvirt_run_work },
  { "POST", "/v1/migrate", DR_BODY_REQUIRED, migrate_work },
  { "POST", "/v1/migrate/check", DR_BODY_REQUIRED, migrate_check_work },
  { "POST", "/v1/vms/{}/migrate/postcopy", DR_BODY_NONE, postcopy_work },
  { "POST", "/v1/vms/{}/migrate/recover", DR_BODY_NONE, recover_work },
  { "POST", "/v1/vms/{}/migrate/downtime", DR_BODY_REQUIRED, downtime_work },
  { "POST", "/v1/vms/{}/migrate/bandwidth", DR_BODY_REQUIRED, bandwidth_work },
  { "GET", "/v1/vms/{}/migrate/bandwidth", DR_BODY_NONE, get_bandwidth_work },
  { "GET", "/v1/vms/{}/disks", DR_BODY_NONE, disks_work },
  { "POST", "/v1/vms/{}/disks/copy", DR_BODY_REQUIRED, disk_copy_work },
  { "POST", "/v1/vms/{}/disks/pull", DR_BODY_REQUIRED, disk_pull_work },
  { "POST", "/v1/vms/{}/disks/pivot", DR_BODY_OPTIONAL, disk_pivot_work },
  { "POST", "/v1/vms/{}/disks/abort", DR_BODY_OPTIONAL, disk_abort_work },
  { "POST", "/v1/vms/{}/disks/bandwidth", DR_BODY_REQUIRED, disk_bandwidth_work },
  { "GET", "/v1/vms/{}/snapshots", DR_BODY_NONE, snapshots_work },
  { "POST", "/v1/vms/{}/snapshots", DR_BODY_OPTIONAL, snapshot_create_work },
  { "POST", "/v1/vms/{}/snapshots/merge", DR_BODY_REQUIRED, snapshot_merge_work },
  { "POST", "/v1/vms/{}/snapshots/revert", DR_BODY_REQUIRED, snapshot_revert_work },
  { "POST", "/v1/vms/{}/snapshots/forget", DR_BODY_REQUIRED, snapshot_forget_work },
  { "GET", "/v1/vms/{}/bitmaps", DR_BODY_NONE, bitmaps_work },
  { "POST", "/v1/vms/{}/bitmaps", DR_BODY_REQUIRED, bitmap_add_work },
  { "POST", "/v1/vms/{}/bitmaps/remove", DR_BODY_REQUIRED, bitmap_remove_work },
  { "POST", "/v1/vms/{}/bitmaps/merge", DR_BODY_REQUIRED, bitmap_merge_work },
  { "POST", "/v1/vms/{}/bitmaps/enable", DR_BODY_REQUIRED, bitmap_enable_work },
  { "POST", "/v1/vms/{}/bitmaps/disable", DR_BODY_REQUIRED, bitmap_disable_work },
  { "GET", "/v1/vms/{}/backups", DR_BODY_NONE, backups_work },
  { "POST", "/v1/vms/{}/backups", DR_BODY_REQUIRED, backup_create_work },
  { "POST", "/v1/vms/{}/backups/serve", DR_BODY_OPTIONAL, backup_serve_work },
  { "POST", "/v1/vms/{}/backups/finish", DR_BODY_OPTIONAL, backup_finish_work },
  { "GET", "/v1/jobs", DR_BODY_NONE, jobs_work },
  { "GET", "/v1/jobs/{}", DR_BODY_NONE, job_work },
  { "POST", "/v1/jobs/{}/cancel", DR_BODY_NONE, cancel_work },
  { "GET", "/v1/jobs/{}/report", DR_BODY_NONE, report_work },
  { "GET", "/v1/stats", DR_BODY_NONE, stats_work },
  { "GET", "/v1/peers", DR_BODY_NONE, peers_work },
  { "POST", "/v1/peers", DR_BODY_REQUIRED, peer_add_work },
  { "DELETE", "/v1/peers/{}", DR_BODY_NONE, peer_remove_work },
  { "POST", "/v1/peers/{}/test", DR_BODY_NONE, peer_test_work },
  { "GET", "/v1/events", DR_BODY_NONE, dr_stream_work, dr_stream_answer },
  { "GET", "/metrics", DR_BODY_NONE, dr_metrics_work },
  { "GET", "/ui", DR_BODY_NONE, dr_ui_work, dr_ui_answer, TRUE },
  { "GET", "/ui/", DR_BODY_NONE, dr_ui_work, dr_ui_answer, TRUE },
  { "GET", "/ui/{}", DR_BODY_NONE, dr_ui_work, dr_ui_answer, TRUE },
};

/* Whether the raw (still escaped) path fits; *ret_name is what stood for "{}", or NULL where it cannot be
 * unescaped. */
static gboolean
path_fits(const char *pattern, const char *path, char **ret_name)
{
  while (*pattern && *path) {
    if (g_str_has_prefix(pattern, "{}")) {
      gsize len = strcspn(path, "/");

      if (len == 0)
        return FALSE;
      g_free(*ret_name);
      *ret_name = g_uri_unescape_segment(path, path + len, NULL);
      pattern += 2;
      path += len;
    } else if (*pattern++ != *path++) {
      return FALSE;
    }
  }
  return !*pattern && !*path;
}

/* HEAD is GET without the body, which libsoup leaves out. */
static gboolean
takes_head(const DrRoute *route)
{
  return g_str_equal(route->method, "GET") && (!route->answer || route->head);
}

static gboolean
method_fits(const DrRoute *route, const char *method)
{
  return g_str_equal(route->method, method) || (g_str_equal(method, "HEAD") && takes_head(route));
}

static const DrRoute *
find_route(const char *method, const char *path, char **ret_name, GString *allow)
{
  for (guint i = 0; i < G_N_ELEMENTS(routes); i++) {
    g_autofree char *name = NULL;

    if (!path_fits(routes[i].path, path, &name))
      continue;
    if (method_fits(&routes[i], method)) {
      *ret_name = g_steal_pointer(&name);
      return &routes[i];
    }
    g_string_append_printf(allow, "%s%s", allow->len ? ", " : "", routes[i].method);
    if (takes_head(&routes[i]))
      g_string_append(allow, ", HEAD");
  }
  return NULL;
}

static gboolean
may_use(DrApi *api, SoupServerMessage *message, const DrRoute *route, GError **error)
{
  const DrConnection *connection = dr_connection_of(message);
  gboolean only_reads = g_str_equal(route->method, "GET") && route->work != dr_console_work;

  return connection->rights == DR_RIGHTS_ALL || (connection->rights == DR_RIGHTS_READ && only_reads) ||
         dr_access_deny(&api->access, connection->rights, connection->who, connection->by_tls, error);
}

static void
answer_no_route(SoupServerMessage *message, const char *method, const char *path, const char *allow)
{
  if (!*allow) {
    dr_problem_answer_status(message, SOUP_STATUS_NOT_FOUND, "not-found", NULL,
                             "there is no path '%s' in this API", path);
    return;
  }
  dr_problem_answer_status(message, SOUP_STATUS_METHOD_NOT_ALLOWED, "invalid", NULL,
                           "'%s' does not take %s but %s", path, method, allow);
  soup_message_headers_replace(soup_server_message_get_response_headers(message), "Allow", allow);
}

static gboolean
read_body(const DrRoute *route, GByteArray *bytes, gsize max, JsonObject **ret_body, GError **error)
{
  if (bytes->len == 0 && route->body != DR_BODY_REQUIRED)
    *ret_body = json_object_new();
  else
    *ret_body = dr_json_parse_object(bytes->len ? (const char *)bytes->data : "", bytes->len, max, error);
  if (*ret_body && route->body == DR_BODY_NONE && json_object_get_size(*ret_body) > 0)
    return dr_error_set(error, DR_ERROR_INVALID, "%s %s takes no body", route->method, route->path);
  return *ret_body != NULL;
}

void
dr_routes_handle(DrApi *api, SoupServerMessage *message, GHashTable *query, GByteArray *body)
{
  const char *method = soup_server_message_get_method(message);
  const char *path = g_uri_get_path(soup_server_message_get_uri(message));
  g_autoptr(GString) allow = g_string_new(NULL);
  g_autoptr(JsonObject) object = NULL;
  g_autoptr(GError) error = NULL;
  g_autofree char *name = NULL;
  const DrRoute *route = find_route(method, path, &name, allow);
  DrCall *call;

  if (dr_ui_is_foreign(message, path)) {
    dr_problem_answer_status(message, SOUP_STATUS_FORBIDDEN, "refused", "use the dashboard of this droverd",
                             "a page of another site asked for '%s'", path);
    return;
  }
  if (!route) {
    answer_no_route(message, method, path, allow->str);
    return;
  }
  if (!name && strstr(route->path, "{}"))
    dr_error_set(&error, DR_ERROR_INVALID, "the path '%s' is not properly escaped", path);
  if (error || !may_use(api, message, route, &error) ||
      !read_body(route, body, api->limits.body, &object, &error)) {
    dr_problem_answer(message, error);
    return;
  }
  call = dr_call_new(api, message, route);
  call->name = g_steal_pointer(&name);
  call->query = query ? g_hash_table_ref(query) : NULL;
  call->body = g_steal_pointer(&object);
  dr_call_start(call);
}
