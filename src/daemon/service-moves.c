/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Moves between hosts: those that go, and what peers ask of this host for those that come. */
#include "base/error.h"
#include "daemon/request.h"
#include "daemon/service-internal.h"
#include "daemon/service-net.h"
#include "daemon/service-new.h"
#include "job/disk-fetch.h"
#include "job/incoming.h"
#include "job/migrate.h"
#include "job/streams.h"
#include "net/peer.h"
#include "vm/start.h"

#include <string.h>

#define BEGIN_MS 5000 /* until a job that was made has begun */
#define ASK_MS 45000  /* a QEMU takes up to 30 s to start */
#define END_MS 3000
#define MOVE_ID_MAX 64

/* --- Going --- */

static gboolean
check_migrate_request(DrService *service, JsonObject *request, GError **error)
{
  static const DrMember members[] = { { "vms", DR_MEMBER_TEXTS },
                                      { "all", DR_MEMBER_FLAG },
                                      { "peer", DR_MEMBER_TEXT },
                                      { "dname", DR_MEMBER_TEXT },
                                      { "qemu", DR_MEMBER_TEXT },
                                      { "postcopy", DR_MEMBER_FLAG },
                                      { "postcopy_after_precopy", DR_MEMBER_FLAG },
                                      { "no_postcopy", DR_MEMBER_FLAG },
                                      { "postcopy_preempt", DR_MEMBER_FLAG },
                                      { "timeout_postcopy", DR_MEMBER_NUMBER, 1, 86400 },
                                      { "timeout", DR_MEMBER_NUMBER, 1, 86400 },
                                      { "timeout_suspend", DR_MEMBER_FLAG },
                                      { "auto_converge", DR_MEMBER_FLAG },
                                      { "parallel", DR_MEMBER_NUMBER, 1, 16 },
                                      { "compress", DR_MEMBER_TEXT },
                                      { "bandwidth", DR_MEMBER_NUMBER, 1, 1000000 },
                                      { "postcopy_bandwidth", DR_MEMBER_NUMBER, 1, 1000000 },
                                      { "downtime", DR_MEMBER_NUMBER, 1, 2000000 },
                                      { "transport", DR_MEMBER_TEXT },
                                      { "copy_storage_all", DR_MEMBER_FLAG },
                                      { "copy_storage_inc", DR_MEMBER_FLAG },
                                      { "copy_storage_postcopy", DR_MEMBER_FLAG },
                                      { "overwrite_storage", DR_MEMBER_FLAG },
                                      { "map", DR_MEMBER_TEXTS },
                                      { "at_a_time", DR_MEMBER_NUMBER, 1, 64 },
                                      { NULL } };
  DrMigrateOptions options;

  if (!dr_request_check(request, members, error) || !dr_migrate_read_options(request, &options, error))
    return FALSE;
  if (!dr_json_str(request, "peer", NULL))
    return dr_error_set(error, DR_ERROR_INVALID, "name the host to move to, as in drover peer list");
  if (dr_json_str(request, "dname", NULL) &&
      (dr_json_bool(request, "all", FALSE) || json_array_get_length(dr_json_arr(request, "vms")) != 1))
    return dr_error_set(error, DR_ERROR_INVALID, "another name (dname) can be given to one VM only");
  if (dr_service_allows_transport(service, dr_move_transport_name(options.transport)))
    return TRUE;
  dr_error_set(error, DR_ERROR_REFUSED, "this droverd's configuration does not allow the transport '%s'",
               dr_move_transport_name(options.transport));
  return dr_error_remedy(error, "add it to transports= in [peers] on both hosts, or use the tunnel");
}

/* The VM is the other host's: nothing of it stays here. */
static gboolean
migrate(DrJob *job, GError **error)
{
  DrService *service = dr_job_host(job)->service;

  if (!dr_migrate_run(job, error))
    return FALSE;
  dr_service_drop(service, dr_job_vm(job));
  return TRUE;
}

JsonArray *
dr_service_migrate(DrService *service, JsonObject *request, GError **error)
{
  g_autoptr(GPtrArray) vms =
      check_migrate_request(service, request, error) ? dr_service_requested(service, request, error) : NULL;

  if (!vms)
    return NULL;
  return dr_service_start_jobs(service, "migrate", vms, request, migrate,
                               (guint)dr_json_int(request, "at_a_time", 1), error);
}

JsonArray *
dr_service_migrate_check(DrService *service, JsonObject *request, GError **error)
{
  g_autoptr(GPtrArray) vms =
      check_migrate_request(service, request, error) ? dr_service_requested(service, request, error) : NULL;

  return vms ? dr_service_check_all(vms, request, dr_migrate_check, error) : NULL;
}

JsonObject *
dr_service_migrate_set(DrService *service, const char *name, const char *what, JsonObject *params,
                       GError **error)
{
  g_autoptr(DrVm) vm = dr_service_find(service, name, error);
  g_autoptr(DrMailbox) box = vm ? dr_migrate_find(name) : NULL;

  if (box)
    return dr_mailbox_ask(box, what, params, 10000, error);
  if (vm) {
    dr_error_set(error, DR_ERROR_REFUSED, "VM '%s' is not on its way to another host", name);
    dr_error_remedy(error, "drover jobs shows what is under way");
  }
  return NULL;
}

/* --- Coming --- */

static void
forget_guest(DrService *service, DrVm *vm)
{
  dr_service_drop(service, vm);
}

static gboolean
incoming(DrJob *job, GError **error)
{
  gboolean arrived = dr_incoming_run(job, error);

  if (!arrived && !g_error_matches(*error, DR_ERROR, DR_ERROR_ATTENTION))
    forget_guest(dr_job_host(job)->service, dr_job_vm(job));
  return arrived;
}

gboolean
dr_service_recover_move(DrJob *job, GError **error)
{
  DrService *service = dr_job_host(job)->service;
  gboolean goes = g_str_equal(dr_job_kind(job), "migrate");
  gboolean done = goes ? dr_migrate_recover(job, error) : dr_incoming_recover(job, error);

  if (goes ? done : !done && !g_error_matches(*error, DR_ERROR, DR_ERROR_ATTENTION))
    forget_guest(service, dr_job_vm(job));
  else
    dr_vm_attach(dr_job_vm(job));
  return done;
}

static JsonObject *
arrival_request(DrService *service, const char *peer, const char *move, JsonObject *params)
{
  JsonObject *request = dr_json("{'move': <%s>, 'peer': <%s>}", move, peer);
  const char *qemu = dr_json_str(params, "qemu", NULL);
  JsonObject *spec = dr_json_obj(params, "spec");

  if (spec)
    json_object_set_object_member(request, "spec", json_object_ref(spec));
  if (qemu)
    json_object_set_string_member(request, "qemu", qemu);
  json_object_set_array_member(request, "binaries",
                               dr_json_array_from_strv((const char *const *)dr_service_binaries(service)));
  return request;
}

static JsonObject *
check_arrival(DrService *service, const char *peer, const char *move, JsonObject *params, GError **error)
{
  const char *name = dr_json_str(params, "name", "");
  g_autoptr(JsonObject) request = arrival_request(service, peer, move, params);
  g_autoptr(DrVm) vm = NULL;
  JsonObject *report;

  if (!dr_service_reserve(service, name, error))
    return NULL;
  vm = dr_vm_new(service->host, name);
  report = dr_incoming_check(vm, request, error);
  dr_service_unreserve(service, name);
  return report;
}

/* When this returns, whoever asks for the move finds its job. */
static gboolean
begin_arrival(DrService *service, DrVm *vm, JsonObject *request, GError **error)
{
  const char *move = dr_json_str(request, "move", "");
  DrDeadline deadline = dr_deadline_in(BEGIN_MS);
  g_autoptr(GPtrArray) batch = g_ptr_array_new_with_free_func((GDestroyNotify)dr_job_unref);
  g_autoptr(DrMailbox) box = NULL;
  g_autoptr(JsonObject) cancelled = NULL;
  DrJob *job = dr_jobs_add(service->jobs, "incoming", vm, request, error);
  gint64 id;

  if (!job) {
    dr_service_drop(service, vm);
    return FALSE;
  }
  id = dr_job_id(job);
  g_ptr_array_add(batch, job);
  dr_jobs_run(service->jobs, g_steal_pointer(&batch), incoming, 1);
  while (!(box = dr_incoming_find(move, dr_json_str(request, "peer", NULL))) && !dr_deadline_passed(deadline))
    g_usleep(1000); /* bounded by the deadline */
  if (box)
    return TRUE;
  cancelled = dr_jobs_cancel(service->jobs, id, NULL); /* when it begins it ends, and drops its VM */
  return dr_error_set(error, DR_ERROR_TIMEOUT, "the job for VM '%s' does not begin", dr_vm_name(vm));
}

static JsonObject *
start_arrival(DrService *service, const char *peer, const char *move, JsonObject *params, GError **error)
{
  const char *name = dr_json_str(params, "name", "");
  g_autoptr(JsonObject) request = arrival_request(service, peer, move, params);
  g_autoptr(DrVm) vm = NULL;

  if (!dr_json_obj(request, "spec")) {
    dr_error_set(error, DR_ERROR_INVALID, "the peer says nothing of the VM that is to come");
    return NULL;
  }
  if (!dr_service_reserve(service, name, error))
    return NULL;
  vm = dr_vm_new(service->host, name);
  dr_vm_set_state(vm, "incoming");
  dr_service_settle(service, name, vm);
  return begin_arrival(service, vm, request, error) ? json_object_new() : NULL;
}

/* A job of that move which has not ended, though nobody has taken it up yet: droverd has just been started. */
static gboolean
is_unfinished(DrService *service, const char *move)
{
  g_autoptr(GPtrArray) rows = dr_store_list_jobs(service->host->store, TRUE, 10000, NULL);

  for (guint i = 0; rows && i < rows->len; i++)
    if (g_strcmp0(dr_json_str(((DrJobRow *)rows->pdata[i])->record, "request.move", NULL), move) == 0)
      return TRUE;
  return !rows;
}

/* Its job has not been taken up yet, or is just ending. */
static gboolean
is_settled(DrService *service, const char *move, char **ret_state, gint64 *ret_resumed_us, GError **error)
{
  DrDeadline deadline = dr_deadline_in(END_MS);

  for (;;) {
    gboolean unfinished = is_unfinished(service, move); /* asked first: its end is written before the job's */

    if (!dr_store_get_move(service->host->store, move, ret_state, ret_resumed_us, error))
      return FALSE;
    if (*ret_state || !unfinished)
      return TRUE;
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_BUSY,
                          "the other droverd has just been started, and looks what became of the move");
    g_usleep(20000); /* bounded by the deadline */
  }
}

/* Of a move that is not under way here: what became of it; one that was never heard of is given up from now on. */
static JsonObject *
tell_end(DrService *service, const char *move, GError **error)
{
  DrStore *store = service->host->store;
  g_autofree char *state = NULL;
  gint64 resumed_us;

  if (!is_settled(service, move, &state, &resumed_us, error))
    return NULL;
  if (!state && (!dr_store_put_move(store, move, "?", "discarded", 0, error) ||
                 !dr_store_get_move(store, move, &state, &resumed_us, error)))
    return NULL;
  return dr_json("{'state': <%s>, 'migration': <'none'>, 'resumed_us': <%x>, 'wall_us': <%x>}",
                 state ? state : "discarded", resumed_us, g_get_real_time());
}

/* Streams without TLS are opened by tokens, which the listener knows. */
static JsonObject *
add_tokens(DrService *service, const char *peer, const char *move, JsonObject *params, JsonObject *reply)
{
  const char *transport = dr_json_str(params, "transport", "tunnel");
  JsonArray *exports = dr_json_arr(params, "exports");
  guint streams = (guint)CLAMP(dr_json_int(params, "streams", 1), 1, DR_STREAMS_MAX);

  if (g_str_equal(transport, "tunnel") || !dr_service_allows_transport(service, transport))
    return reply;
  json_object_set_array_member(
      reply, "tokens",
      exports ? dr_service_nbd_tokens(service, peer, move, json_array_get_length(exports))
              : dr_service_stream_tokens(service, peer, move, dr_json_int(params, "epoch", 0), streams));
  return reply;
}

static JsonObject *
ask_job(DrService *service, const char *peer, const char *move, const char *method, JsonObject *params,
        GError **error)
{
  g_autoptr(DrMailbox) box = dr_incoming_find(move, peer);
  g_autoptr(GError) local = NULL;
  JsonObject *reply = box ? dr_mailbox_ask(box, method, params, ASK_MS, &local) : NULL;
  gboolean of_its_end =
      g_str_equal(method, "status") || g_str_equal(method, "accept") || g_str_equal(method, "abort");

  if (reply)
    return g_str_equal(method, "listen") || g_str_equal(method, "storage")
               ? add_tokens(service, peer, move, params, reply)
               : reply;
  if (of_its_end && (!box || g_error_matches(local, DR_ERROR, DR_ERROR_CLOSED)))
    return tell_end(service, move, error);
  if (local)
    g_propagate_error(error, g_steal_pointer(&local));
  else
    dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no such move here");
  return NULL;
}

static gboolean
check_transport(DrService *service, JsonObject *params, GError **error)
{
  const char *transport = dr_json_str(params, "transport", "tunnel");

  if (dr_service_allows_transport(service, transport))
    return TRUE;
  dr_error_set(error, DR_ERROR_REFUSED,
               "the configuration of the other host does not allow the transport '%.20s'", transport);
  return dr_error_remedy(error, "add it to transports= in [peers] over there, or use the tunnel");
}

JsonObject *
dr_service_answer_peer(DrService *service, const char *peer, const char *method, JsonObject *params,
                       GError **error)
{
  const char *move = dr_json_str(params, "move", "");

  if (g_str_equal(method, "version"))
    return dr_json("{'version': <%s>, 'wall_us': <%x>}", DROVER_VERSION, g_get_real_time());
  if (!g_str_has_prefix(method, "move.") || !*move || strlen(move) > MOVE_ID_MAX) {
    dr_error_set(error, DR_ERROR_INVALID, "'%.40s' cannot be asked of this droverd", method);
    return NULL;
  }
  method += strlen("move.");
  if ((g_str_equal(method, "check") || g_str_equal(method, "start")) &&
      !check_transport(service, params, error))
    return NULL;
  if (g_str_equal(method, "check"))
    return check_arrival(service, peer, move, params, error);
  if (g_str_equal(method, "start"))
    return start_arrival(service, peer, move, params, error);
  if (g_str_equal(method, "fetch"))
    return dr_disk_fetch_status(service->host->store, move, peer);
  return ask_job(service, peer, move, method, params, error);
}
