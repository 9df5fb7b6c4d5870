/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A move to another host, from its beginning to its end; the parts are in migrate-*.c. */
#include "job/migrate.h"
#include "base/error.h"
#include "job/migrate-internal.h"
#include "job/image-server.h"
#include "job/migrate-lend.h"
#include "job/migrate-storage.h"
#include "job/move-spec.h"
#include "job/upgrade-internal.h"
#include "vm/console.h"
#include "vm/user.h"

#include <string.h>

#define LEASE_MS 10000
#define CONNECT_MS 5000
#define PARALLEL_MAX 16
#define PEER_AGAIN_US (2 * G_USEC_PER_SEC)
#define MAILBOX "migrate"

/* --- What is asked --- */

static const char *const transports[] = { "tunnel", "plain", "handoff" };

const char *
dr_move_transport_name(DrMoveTransport transport)
{
  return transports[transport];
}

static gboolean
read_transport(JsonObject *request, DrMoveTransport *ret, GError **error)
{
  const char *name = dr_json_str(request, "transport", "tunnel");

  for (guint i = 0; i < G_N_ELEMENTS(transports); i++)
    if (g_str_equal(transports[i], name)) {
      *ret = i;
      return TRUE;
    }
  return dr_error_set(error, DR_ERROR_INVALID, "'%s' is no transport: tunnel, plain or handoff", name);
}

static gboolean
check_pairs(const DrMigrateOptions *o, GError **error)
{
  static const char *const methods[] = { "zstd", "zlib", "xbzrle", NULL };
  gboolean postcopy = o->postcopy || o->after_precopy || o->timeout_postcopy_s > 0 || o->preempt;

  if (o->compress && !g_strv_contains(methods, o->compress))
    return dr_error_set(error, DR_ERROR_INVALID, "'%s' is no compression: zstd, zlib or xbzrle", o->compress);
  if (o->compress && !g_str_equal(o->compress, "xbzrle") && o->parallel == 0)
    return dr_error_set(error, DR_ERROR_INVALID, "compression by %s needs parallel streams (--parallel)",
                        o->compress);
  if (o->transport == DR_MOVE_HANDOFF && o->parallel > 0)
    return dr_error_set(error, DR_ERROR_INVALID,
                        "parallel streams cannot be handed on: QEMU takes one socket (--transport plain)");
  if (o->transport == DR_MOVE_HANDOFF && o->preempt)
    return dr_error_set(
        error, DR_ERROR_INVALID,
        "a stream for urgent pages cannot be handed on: QEMU takes one socket (--transport plain)");
  if (o->parallel > 0 && o->preempt)
    return dr_error_set(
        error, DR_ERROR_INVALID,
        "parallel streams and one for urgent pages exclude each other: QEMU cannot tell them apart");
  if (o->no_postcopy && postcopy)
    return dr_error_set(error, DR_ERROR_INVALID, "post-copy is both asked for and forbidden");
  if (o->timeout_suspend && o->timeout_s == 0)
    return dr_error_set(error, DR_ERROR_INVALID, "--timeout-suspend needs --timeout");
  if (o->parallel > PARALLEL_MAX)
    return dr_error_set(error, DR_ERROR_INVALID, "at most %d parallel streams", PARALLEL_MAX);
  return TRUE;
}

gboolean
dr_migrate_read_options(JsonObject *request, DrMigrateOptions *o, GError **error)
{
  int ways;

  *o = (DrMigrateOptions){
    .postcopy = dr_json_bool(request, "postcopy", FALSE),
    .after_precopy = dr_json_bool(request, "postcopy_after_precopy", FALSE),
    .no_postcopy = dr_json_bool(request, "no_postcopy", FALSE),
    .preempt = dr_json_bool(request, "postcopy_preempt", FALSE),
    .timeout_postcopy_s = dr_json_int(request, "timeout_postcopy", 0),
    .timeout_s = dr_json_int(request, "timeout", 0),
    .timeout_suspend = dr_json_bool(request, "timeout_suspend", FALSE),
    .auto_converge = dr_json_bool(request, "auto_converge", FALSE),
    .parallel = dr_json_int(request, "parallel", 0),
    .compress = (char *)dr_json_str(request, "compress", NULL),
    .bandwidth = dr_json_int(request, "bandwidth", 0),
    .postcopy_bandwidth = dr_json_int(request, "postcopy_bandwidth", 0),
    .downtime_ms = dr_json_int(request, "downtime", 0),
    .copy_storage_inc = dr_json_bool(request, "copy_storage_inc", FALSE),
    .storage_postcopy = dr_json_bool(request, "copy_storage_postcopy", FALSE),
    .overwrite_storage = dr_json_bool(request, "overwrite_storage", FALSE),
  };
  ways = dr_json_bool(request, "copy_storage_all", FALSE) + o->copy_storage_inc + o->storage_postcopy;
  o->copy_storage = ways > 0;
  if (ways > 1)
    return dr_error_set(
        error, DR_ERROR_INVALID,
        "copy all of the disks before the guest, or after it, or only their top images: not two of these");
  return read_transport(request, &o->transport, error) && check_pairs(o, error);
}

DrMailbox *
dr_migrate_find(const char *vm)
{
  return dr_mailbox_find(MAILBOX, vm);
}

/* --- Before and after --- */

static void
migrate_init(Migrate *m, DrVm *vm, JsonObject *request)
{
  m->vm = vm;
  m->host = dr_vm_host(vm);
  m->request = request;
  m->box = dr_mailbox_new();
  m->status = g_strdup("");
  m->begun_us = g_get_monotonic_time();
  m->meter = (DrRamMeter)DR_RAM_METER_INIT;
}

static void
migrate_clear(Migrate *m)
{
  dr_mailbox_withdraw(MAILBOX, dr_vm_name(m->vm), m->box);
  dr_mailbox_close(m->box);
  g_clear_pointer(&m->box, dr_mailbox_unref);
  g_clear_pointer(&m->streams, dr_streams_free);
  g_clear_pointer(&m->storage, dr_move_storage_free);
  g_clear_pointer(&m->storage_note, json_object_unref);
  g_clear_pointer(&m->server, dr_image_server_free);
  g_clear_pointer(&m->lent, json_array_unref);
  g_clear_pointer(&m->peer, dr_peer_free);
  g_clear_pointer(&m->tokens, dr_move_tokens_free);
  g_clear_pointer(&m->source, dr_qmp_free);
  g_clear_pointer(&m->pre, dr_preflight_free);
  g_clear_pointer(&m->spec, json_object_unref);
  g_clear_pointer(&m->disks, g_hash_table_unref);
  g_clear_pointer(&m->questions, json_array_unref);
  g_free(m->move);
  g_free(m->source_qmp);
  g_free(m->mark_path);
  g_free(m->socket_path);
  g_free(m->version_before);
  g_free(m->version);
  g_free(m->status);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Migrate, migrate_clear)

static gboolean
note_source(Migrate *m, GError **error)
{
  const DrVmRecord *record = dr_vm_record(m->vm);
  g_autofree char *run_dir = dr_host_run_dir(m->host, record->name, error);
  g_autofree char *sockets = run_dir ? dr_host_socket_dir(m->host, record->name, NULL,
                                                          (const char *const *)record->argv_running, error)
                                     : NULL;

  if (!sockets)
    return FALSE;
  m->source_id = record->id;
  m->source_qmp = g_strdup(record->qmp_path);
  m->borrowed = record->borrowed;
  m->version_before = g_strdup(record->qemu_version);
  m->mark_path = g_strdup_printf("%s/gone.%s", run_dir, m->move);
  m->socket_path = g_strdup_printf("%s/migration.out", sockets);
  return TRUE;
}

/* By this host's clock. What the two clocks are known to differ by is not exact. */
static gint64
resumed_here_us(const Migrate *m)
{
  return MAX(m->resumed_us - m->clock_offset_us, m->stopped_us);
}

static JsonObject *
result(Migrate *m)
{
  JsonObject *object = json_object_new();
  guint64 extra = m->memory_peak > m->memory_before ? m->memory_peak - m->memory_before : 0;

  json_object_set_string_member(object, "memory_mode", m->postcopy_begun ? "postcopy" : "copy");
  if (m->stopped_us && m->resumed_us)
    json_object_set_double_member(object, "pause_ms", (double)(resumed_here_us(m) - m->stopped_us) / 1000.0);
  else
    json_object_set_null_member(object, "pause_ms");
  json_object_set_double_member(object, "total_ms", (double)(g_get_monotonic_time() - m->begun_us) / 1000.0);
  json_object_set_double_member(object, "transfer_ms", (double)m->transfer_us / 1000.0);
  json_object_set_int_member(object, "bytes_moved", m->bytes_moved);
  json_object_set_int_member(object, "extra_memory_bytes", (gint64)extra);
  json_object_set_string_member(object, "qemu_before", m->version_before);
  json_object_set_string_member(object, "qemu_after", m->version);
  json_object_set_int_member(object, "pid_before", m->source_id.pid);
  json_object_set_int_member(object, "pid_after", m->pid_after);
  json_object_set_int_member(object, "passes", m->passes);
  json_object_set_boolean_member(object, "postcopy", m->postcopy_begun);
  json_object_set_int_member(object, "recoveries", m->recoveries);
  if (m->storage) {
    json_object_set_int_member(object, "storage_bytes", dr_move_storage_bytes(m->storage) + m->fetched);
    json_object_set_double_member(object, "storage_ms", (double)m->storage_us / 1000.0);
  }
  json_object_set_string_member(object, "transport", dr_move_transport_name(m->options.transport));
  json_object_set_string_member(object, "peer", dr_json_str(m->request, "peer", "?"));
  json_object_set_double_member(object, "expected_pause_ms", (double)m->advice.expected_pause_ms);
  json_object_set_double_member(object, "expected_total_ms", (double)m->advice.expected_total_ms);
  return object;
}

/* What the other host says of itself is by its own clock. */
static void
tell_pause(Migrate *m)
{
  const DrPauseMark there[] = { { DR_PAUSE_MESSAGE, m->heard_us },
                                { DR_PAUSE_LOAD, m->loaded_us },
                                { DR_PAUSE_GO, m->told_us } };

  if (!m->stopped_us || !m->resumed_us)
    return;
  for (guint i = 0; i < G_N_ELEMENTS(there); i++)
    dr_pause_mark(&m->pause, there[i].name, there[i].us ? there[i].us - m->clock_offset_us : 0);
  dr_job_pause(m->job, &m->pause, m->stopped_us, resumed_here_us(m));
}

/* It runs there: what is left of it here goes. SIGKILL, as in an upgrade: its disks are flushed and inactive. */
static void
leave(Migrate *m)
{
  g_autoptr(GError) error = NULL;
  g_autofree char *text = g_strdup_printf("moved to %s", dr_json_str(m->request, "peer", "?"));

  dr_migrate_lend_tend(m); /* its guest may wait for them already */
  if (!dr_job_enter(m->job, DR_STAGE_COMMIT, NULL, &error))
    g_warning("%s", error->message); /* the mark says the same to a recovery */
  g_clear_error(&error);
  tell_pause(m);
  dr_job_set_result(m->job, result(m));
  g_clear_pointer(&m->streams, dr_streams_free);
  g_clear_pointer(&m->source, dr_qmp_free);
  if (!dr_proc_kill(&m->source_id, 30000, &error))
    g_warning("VM '%s': %s", dr_vm_name(m->vm), error->message);
  dr_vm_give(m->vm, NULL);
  dr_vm_check(m->vm);
  dr_migrate_lend_serve(m);
  dr_job_set_result(m->job, result(m));
  dr_upgrade_note(m->vm, text, TRUE);
  dr_job_remove_at_end(m->job, m->mark_path);
}

static void
stay(Migrate *m, MigrateWhere where, const GError *reason)
{
  g_autoptr(GError) error = NULL;

  g_clear_pointer(&m->streams, dr_streams_free);
  if (m->source && !dr_qmp_closed(m->source))
    dr_vm_refresh(m->vm, m->source);
  else
    g_clear_pointer(&m->source, dr_qmp_free);
  dr_vm_give(m->vm, g_steal_pointer(&m->source));
  dr_vm_check(m->vm);
  if (reason)
    dr_upgrade_note(m->vm, reason->message, where == MIGRATE_NOWHERE);
  if (m->mark_path) {
    dr_migrate_remove_mark_in_waiting(m);
    dr_job_remove_at_end(m->job, m->mark_path);
  }
  if (!dr_vm_save(m->vm, &error))
    g_warning("%s", error->message);
}

static gboolean
settle(Migrate *m, GError *cause, GError **error)
{
  g_autoptr(GError) reason = NULL;
  MigrateWhere where = dr_migrate_settle(m, &reason);

  if (where == MIGRATE_THERE) {
    g_message("VM '%s' runs on the other host in spite of: %s", dr_vm_name(m->vm), cause->message);
    g_error_free(cause);
    leave(m);
    return TRUE;
  }
  if (where == MIGRATE_NOWHERE && dr_migrate_is_decided(m))
    dr_migrate_lend_serve(m); /* what it wrote there stands on the images of here */
  stay(m, where, reason);
  if (reason) {
    g_error_free(cause);
    g_propagate_error(error, g_steal_pointer(&reason));
  } else {
    g_propagate_error(error, cause);
  }
  return FALSE;
}

/* --- The job --- */

static gboolean
open_peer(Migrate *m, GError **error)
{
  if (!dr_migrate_read_options(m->request, &m->options, error))
    return FALSE;
  m->peer = dr_peer_new(m->host->net, dr_json_str(m->request, "peer", ""), error);
  return m->peer != NULL;
}

static DrPostcopy
postcopy_of(const DrMigrateOptions *o)
{
  if (o->no_postcopy)
    return DR_POSTCOPY_NEVER;
  if (o->after_precopy)
    return DR_POSTCOPY_AFTER_PRECOPY;
  return o->postcopy || o->timeout_postcopy_s > 0 ? DR_POSTCOPY_MANUAL : DR_POSTCOPY_AUTO;
}

static DrPolicyConfig
policy_config(const Migrate *m)
{
  return (DrPolicyConfig){
    .downtime_max_ms = m->options.downtime_ms,
    .postcopy = postcopy_of(&m->options),
    .timeout_postcopy_ms = m->options.timeout_postcopy_s * 1000,
    .timeout_ms = m->options.timeout_s * 1000,
    .timeout_suspend = m->options.timeout_suspend,
    .auto_converge = m->options.auto_converge,
    .touched = (gint64)dr_proc_resident(m->source_id.pid),
    .bandwidth_limit = m->options.bandwidth << 20,
    .round_trip_us = (gint64)(dr_peer_round_trip(m->peer) * 1000),
  };
}

static void
make_policy(Migrate *m)
{
  DrPolicyConfig config = policy_config(m);

  dr_policy_init(&m->policy, &config);
}

static gboolean
move(Migrate *m, GError **error)
{
  JsonObject *note;

  make_policy(m);
  if (!dr_migrate_prepare(m, error))
    return FALSE;
  note = dr_json("{'move': <%s>, 'was_running': <%b>, 'no_postcopy': <%b>}", m->move, m->was_running,
                 m->options.no_postcopy);
  return dr_job_enter(m->job, DR_STAGE_TRANSFER, note, error) && dr_migrate_listen(m, error) &&
         dr_migrate_prepare_mark(m, error) && dr_migrate_transfer(m, error);
}

gboolean
dr_migrate_run(DrJob *job, GError **error)
{
  g_auto(Migrate) m = { 0 };
  GError *cause = NULL;

  m.job = job;
  migrate_init(&m, dr_job_vm(job), dr_job_request(job));
  m.move = g_uuid_string_random();
  if (!dr_job_enter(job, DR_STAGE_PREFLIGHT, NULL, error) || !open_peer(&m, error) || !note_source(&m, error))
    return FALSE;
  m.source = dr_vm_take(m.vm, "a move to another host", LEASE_MS, error);
  if (!m.source)
    return FALSE;
  dr_mailbox_publish(MAILBOX, dr_vm_name(m.vm), m.box);
  dr_qmp_set_cancel_fd(m.source, dr_job_cancel_fd(job));
  if (!dr_migrate_look(&m, &cause)) {
    stay(&m, MIGRATE_HERE, NULL);
    g_propagate_error(error, cause);
    return FALSE;
  }
  if (!move(&m, &cause))
    return settle(&m, cause, error);
  leave(&m);
  return TRUE;
}

/* --- Only looking --- */

static void
estimate(Migrate *m, JsonObject *report)
{
  g_autoptr(JsonObject) speed = dr_peer_measure(m->peer, NULL);
  double mib_s = speed ? json_object_get_double_member(speed, "send_mib") : 0;
  DrPolicyConfig config = policy_config(m);
  DrAdvice advice;

  dr_policy_forecast(&config, config.touched, (gint64)(mib_s * 1048576), &advice);
  json_object_set_double_member(report, "link_mib", mib_s);
  json_object_set_double_member(report, "expected_total_ms", (double)advice.expected_total_ms);
  json_object_set_double_member(report, "expected_pause_ms", (double)advice.expected_pause_ms);
}

static JsonObject *
report_of(Migrate *m)
{
  JsonObject *report = json_object_new();

  json_object_set_string_member(report, "vm", dr_vm_name(m->vm));
  json_object_set_boolean_member(report, "ok", !dr_findings_block(m->pre->findings));
  json_object_set_array_member(report, "findings", dr_findings_json(m->pre->findings));
  json_object_set_string_member(report, "peer", dr_json_str(m->request, "peer", "?"));
  json_object_set_string_member(report, "qemu_before", dr_qmp_version(m->source));
  json_object_set_string_member(report, "qemu_after", m->version);
  estimate(m, report);
  return report;
}

JsonObject *
dr_migrate_check(DrVm *vm, JsonObject *request, GError **error)
{
  g_auto(Migrate) m = { 0 };
  JsonObject *report = NULL;

  migrate_init(&m, vm, request);
  m.move = g_uuid_string_random();
  if (!open_peer(&m, error))
    return NULL;
  m.source = dr_vm_take(vm, "a preflight check", LEASE_MS, error);
  if (!m.source)
    return NULL;
  m.source_id = dr_vm_record(vm)->id;
  if (dr_migrate_look(&m, error))
    report = report_of(&m);
  dr_vm_give(vm, g_steal_pointer(&m.source));
  return report;
}

/* --- Recovery --- */

static gboolean
load(Migrate *m, const char **ret_stage, GError **error)
{
  g_autoptr(JsonArray) journal = dr_store_load_journal(m->host->store, dr_job_id(m->job), error);

  for (guint i = 0; journal && i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i);
    JsonObject *note = dr_json_obj(entry, "note");
    const char *move = note ? dr_json_str(note, "move", NULL) : NULL;

    *ret_stage = g_intern_string(dr_json_str(entry, "stage", ""));
    m->decided |=
        g_str_equal(*ret_stage, DR_STAGE_COMMIT); /* the mark goes with a boot, the journal does not */
    if (note && dr_json_arr(note, "storage")) {
      g_clear_pointer(&m->storage_note, json_object_unref);
      m->storage_note = json_object_ref(note);
    }
    if (note)
      dr_migrate_lend_load(m, note);
    if (move) {
      g_free(m->move);
      m->move = g_strdup(move);
    }
    if (g_str_equal(*ret_stage, DR_STAGE_TRANSFER)) {
      m->was_running = dr_json_bool(note, "was_running", TRUE);
      m->options.no_postcopy = dr_json_bool(note, "no_postcopy", FALSE);
    }
    m->postcopy_begun |= g_str_equal(*ret_stage, DR_STAGE_POSTCOPY);
    m->ordered = m->postcopy_begun; /* it may have been */
  }
  return journal != NULL;
}

static void
interrupted(Migrate *m, const char *stage, GError **error)
{
  dr_error_set(error, DR_ERROR_CLOSED,
               "droverd ended while the move of VM '%s' was at stage '%s'; the guest runs on here",
               dr_vm_name(m->vm), stage);
  dr_error_remedy(error, "start the move again");
}

/* A guest that runs on images of here needs them, also when its host was taken out of the list of peers. */
static gboolean
open_peer_again(Migrate *m, GError **error)
{
  for (;;) {
    g_autoptr(GError) local = NULL;

    if (open_peer(m, &local))
      return TRUE;
    if (!m->decided || !dr_migrate_lends(m)) {
      g_propagate_error(error, g_steal_pointer(&local));
      return FALSE;
    }
    dr_upgrade_note(m->vm, local->message, FALSE);
    g_usleep(PEER_AGAIN_US); /* ended by drover peer add */
  }
}

gboolean
dr_migrate_recover(DrJob *job, GError **error)
{
  g_auto(Migrate) m = { 0 };
  const char *stage = "queued";
  GError *cause = NULL;

  m.job = job;
  migrate_init(&m, dr_job_vm(job), dr_job_request(job));
  m.was_running = TRUE;
  if (!load(&m, &stage, error) || !m.move || !open_peer_again(&m, error) || !note_source(&m, error)) {
    dr_vm_give(m.vm, NULL);
    if (error && !*error)
      interrupted(&m, stage, error);
    return FALSE;
  }
  dr_mailbox_publish(MAILBOX, dr_vm_name(m.vm), m.box);
  make_policy(&m);
  dr_job_step(job, stage);
  dr_job_hold(job, DR_STEP_RECOVER);
  if (dr_proc_alive(&m.source_id))
    m.source = dr_qmp_connect(m.source_qmp, FALSE, dr_deadline_in(CONNECT_MS), NULL);
  interrupted(&m, stage, &cause);
  return settle(&m, cause, error);
}
