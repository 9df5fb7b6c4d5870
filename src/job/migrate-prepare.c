/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What goes to the other host, whether it can, and its new QEMU. */
#include "base/error.h"
#include "base/fd.h"
#include "job/migrate-internal.h"
#include "job/migrate-lend.h"
#include "job/migrate-storage.h"
#include "job/migration.h"
#include "job/move-spec.h"
#include "job/remote-qmp.h"
#include "job/upgrade-internal.h"

#include <string.h>

#define ASK_MS 15000
#define START_MS 45000                  /* the other droverd gives a QEMU 30 s to come up */
#define NO_LIMIT 1000000                /* MiB/s */
#define MULTIFD_POSTCOPY DR_QEMU(10, 1) /* before, the pair is accepted and then a QEMU aborts (QEMU-NOTES) */
#define PREEMPT DR_QEMU(8, 0)           /* 7.1 and 7.2 have it, and cannot recover with it */

/* The quickest question is the one whose answer was written nearest to the middle between asking and hearing. */
static void
note_clock(Migrate *m, JsonObject *reply, gint64 asked_us)
{
  gint64 heard_us = g_get_real_time(), there_us = dr_json_int(reply, "wall_us", 0);

  if (!there_us || (m->clock_trip_us && heard_us - asked_us >= m->clock_trip_us))
    return;
  m->clock_trip_us = heard_us - asked_us;
  m->clock_offset_us = there_us - (asked_us + heard_us) / 2;
}

JsonObject *
dr_migrate_ask(Migrate *m, const char *method, JsonObject *params, int timeout_ms, GError **error)
{
  gint64 asked_us = g_get_real_time();
  JsonObject *reply;

  if (!params)
    params = json_object_new();
  json_object_set_string_member(params, "move", m->move);
  reply = dr_peer_ask(m->peer, method, params, timeout_ms, error);
  if (reply)
    note_clock(m, reply, asked_us);
  return reply;
}

/* --- Looking --- */

static JsonObject *
arrival_request(Migrate *m)
{
  JsonObject *request = m->request;
  const char *qemu = dr_json_str(request, "qemu", NULL);
  JsonObject *params = json_object_new();

  json_object_set_object_member(params, "spec", json_object_ref(m->spec));
  json_object_set_string_member(params, "name", dr_json_str(request, "dname", dr_vm_name(m->vm)));
  if (qemu)
    json_object_set_string_member(params, "qemu", qemu);
  json_object_set_string_member(params, "transport", dr_move_transport_name(m->options.transport));
  return params;
}

static void
add_findings(DrFindings *findings, JsonArray *theirs)
{
  static const char *const severities[] = { "blocker", "warning", "note" };

  for (guint i = 0; theirs && i < json_array_get_length(theirs); i++) {
    JsonObject *one = json_array_get_object_element(theirs, i);
    DrSeverity severity = DR_FINDING_BLOCKER;

    for (guint s = 0; s < G_N_ELEMENTS(severities); s++)
      if (g_str_equal(dr_json_str(one, "severity", ""), severities[s]))
        severity = s;
    dr_findings_add(findings, severity, dr_json_str(one, "code", "?"), dr_json_str(one, "remedy", NULL), "%s",
                    dr_json_str(one, "text", "?"));
  }
}

static void G_GNUC_PRINTF(4, 5)
    block(Migrate *m, const char *code, const char *remedy, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list ap;

  va_start(ap, format);
  text = g_strdup_vprintf(format, ap);
  va_end(ap);
  dr_findings_add(m->pre->findings, DR_FINDING_BLOCKER, code, remedy, "%s", text);
}

static gboolean
wants_postcopy(const Migrate *m)
{
  return m->options.postcopy || m->options.after_precopy || m->options.timeout_postcopy_s > 0 ||
         m->options.preempt;
}

static void
check_exports(Migrate *m)
{
  const char *export = dr_inventory_local_export(m->pre->inventory);

  if (export)
    block(m, "disk-nbd-here",
          "put the disk onto a file (drover disk copy --pivot), or serve it by an address",
          "a disk is on '%s', which only this host can reach", export);
}

/* Pairs that QEMU cannot do, resolved by what was asked for aloud; what was not is left out, and said. */
static void
choose_ways(Migrate *m)
{
  int oldest = MIN(dr_qmp_version_number(m->source), m->version_number);
  const char *why = NULL;

  if (m->options.parallel > 0 && oldest < MULTIFD_POSTCOPY)
    why = "parallel streams and post-copy exclude each other before QEMU 10.1";
  else if (m->options.compress)
    why = "compression and post-copy exclude each other";
  else if (!m->other_uffd)
    why = "the QEMU on the other host may not use userfaultfd (it and droverd have to run as root there, or "
          "set vm.unprivileged_userfaultfd=1)";
  if (why && wants_postcopy(m))
    block(m, "postcopy", "leave one of the two out", "post-copy was asked for, and cannot be had: %s", why);
  else if (why && !m->options.no_postcopy)
    dr_findings_add(m->pre->findings, DR_FINDING_NOTE, "postcopy", NULL, "the move is by pre-copy alone: %s",
                    why);
  if (why)
    m->options.no_postcopy = TRUE;
  else if (m->options.preempt && oldest < PREEMPT)
    block(m, "postcopy-preempt", "leave --postcopy-preempt out",
          "a stream of its own for urgent pages needs QEMU 8.0 on both hosts");
}

static void
warn_tcg(Migrate *m)
{
  if (m->pre->kvm || dr_qmp_version_number(m->source) >= DR_QEMU(9, 0) ||
      dr_inventory_memory(m->pre->inventory) % (256 << 10))
    return;
  dr_findings_add(
      m->pre->findings, DR_FINDING_WARNING, "tcg-aligned-ram",
      "give the guest 8 KiB more (-m 262152k), or run it under KVM",
      "a TCG guest with RAM of a multiple of 256 KiB under a QEMU before 9.0: QEMU can lose dirty pages, and "
      "the guest would run on with wrong memory");
}

static JsonArray *
forwards_of(Migrate *m)
{
  GPtrArray *forwards = dr_inventory_forwards(m->pre->inventory);
  JsonArray *array = json_array_new();

  for (guint i = 0; i < forwards->len; i++) {
    const DrForward *forward = forwards->pdata[i];

    json_array_add_object_element(array, dr_json("{'netdev': <%s>, 'add': <%s>, 'nth': <%x>}",
                                                 forward->netdev, forward->add, (gint64)-1));
  }
  return array;
}

/* For the other host to look at, until m->tokens is freed. */
static void
put_tokens(Migrate *m)
{
  JsonArray *disks = dr_move_tokens_make(m->pre->inventory, dr_vm_record(m->vm)->cwd, &m->tokens);

  dr_migrate_map_disks(m, disks);
  if (m->storage)
    dr_move_storage_mark(m->storage, m, m->options.overwrite_storage, disks);
  json_object_set_array_member(m->spec, "disks", disks);
}

/* What is on record of the disks goes with them, by their names over there; one image of all of a chain has no points in time. */
static gboolean
add_snapshots(Migrate *m, GError **error)
{
  static const char *const files[] = { "base", "overlay" };
  JsonArray *snapshots = dr_store_load_snapshots(m->host->store, dr_vm_name(m->vm), error);

  if (!snapshots)
    return FALSE;
  for (guint i = 0; i < json_array_get_length(snapshots); i++) {
    JsonArray *disks = dr_json_arr(json_array_get_object_element(snapshots, i), "disks");

    for (guint n = 0; disks && n < json_array_get_length(disks); n++)
      for (guint k = 0; k < G_N_ELEMENTS(files); k++) {
        JsonObject *disk = json_array_get_object_element(disks, n);
        g_autofree char *there = dr_migrate_there(m, dr_json_str(disk, files[k], ""));

        json_object_set_string_member(disk, files[k], there);
      }
  }
  if (!m->storage || m->options.copy_storage_inc)
    json_object_set_array_member(m->spec, "snapshots", snapshots);
  else
    json_array_unref(snapshots);
  return TRUE;
}

/* What incremental backups go on from. */
static gboolean
add_backups(Migrate *m, GError **error)
{
  JsonArray *backups = dr_store_load_backups(m->host->store, dr_vm_name(m->vm), error);

  if (!backups)
    return FALSE;
  json_object_set_array_member(m->spec, "backups", backups);
  return TRUE;
}

static gboolean
describe(Migrate *m, GError **error)
{
  g_autoptr(JsonArray) forwards = forwards_of(m);

  if (m->options.copy_storage) {
    m->storage =
        dr_move_storage_new(m->source, dr_vm_record(m->vm)->cwd, &m->options, m->pre->findings, error);
    if (!m->storage)
      return FALSE;
  }
  m->spec = dr_move_spec_write(m->vm, m->pre, forwards, m->source, error);
  if (!m->spec || !dr_migrate_map(m, error) || !add_snapshots(m, error) || !add_backups(m, error))
    return FALSE;
  put_tokens(m);
  return TRUE;
}

gboolean
dr_migrate_look(Migrate *m, GError **error)
{
  g_autoptr(JsonObject) report = NULL;

  m->questions = json_array_new();
  dr_qmp_record(m->source, m->questions);
  m->pre = dr_preflight_departure(m->vm, m->source, error);
  dr_qmp_record(m->source, NULL);
  if (!m->pre || !describe(m, error))
    return FALSE;
  dr_preflight_image_rights(m->pre, m->vm);
  m->was_running = m->pre->was_running;
  report = dr_migrate_ask(m, "move.check", arrival_request(m), ASK_MS, error);
  g_clear_pointer(&m->tokens, dr_move_tokens_free); /* they have been looked at */
  if (!report)
    return FALSE;
  add_findings(m->pre->findings, dr_json_arr(report, "findings"));
  if (m->storage)
    dr_move_storage_heed(m->storage, m, dr_json_arr(report, "storage"), m->options.overwrite_storage,
                         m->pre->findings);
  dr_migrate_lend_check(m, m->pre->findings);
  m->version = g_strdup(dr_json_str(report, "qemu", NULL));
  m->version_number = (int)dr_json_int(report, "qemu_number", 0);
  m->other_uffd = dr_json_bool(report, "userfaultfd", FALSE);
  choose_ways(m);
  check_exports(m);
  warn_tcg(m);
  return TRUE;
}

/* --- The other host's QEMU --- */

static gboolean
compare(Migrate *m, GError **error)
{
  g_autoptr(DrRemoteQmp) remote = dr_remote_qmp_new(m->peer, m->move, m->version_number, m->questions, error);
  g_autoptr(DrInventory) theirs = remote ? dr_inventory_read(dr_remote_qmp(remote), error) : NULL;
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autofree char *doing =
      g_strdup_printf("move VM '%s', the new QEMU is another machine", dr_vm_name(m->vm));
  gboolean same;

  if (!theirs)
    return FALSE;
  dr_migrate_map_back(m, theirs);
  if (m->storage && !dr_move_storage_map_bitmaps(m->storage, m, dr_remote_qmp(remote), error))
    return FALSE;
  if (m->storage) {
    dr_move_storage_stand_alone(m->storage, m->pre->inventory, TRUE);
    dr_move_storage_see_through(m->storage, m, theirs);
  }
  dr_inventory_compare(m->pre->inventory, theirs, findings);
  if (m->storage)
    dr_move_storage_stand_alone(m->storage, m->pre->inventory, FALSE);
  same = !dr_findings_block(findings);
  if (!same)
    dr_findings_to_error(findings, doing, error);
  dr_findings_merge(m->pre->findings, findings);
  dr_job_set_findings(m->job, m->pre->findings);
  return same;
}

static char **
capabilities(Migrate *m)
{
  g_autoptr(GStrvBuilder) builder = g_strv_builder_new();

  if (!m->options.no_postcopy)
    g_strv_builder_add(builder, "postcopy-ram");
  if (dr_move_storage_goes_before(m->storage))
    g_strv_builder_add(builder, "pause-before-switchover");
  if (m->storage && dr_move_storage_has_bitmaps(m->storage))
    g_strv_builder_add(builder, "dirty-bitmaps");
  /* As in an upgrade. A recovery sets none of them: they hold since the beginning. */
  if (m->pre && m->was_running && dr_inventory_has_kept_bitmaps(m->pre->inventory))
    g_strv_builder_add(builder, "late-block-activate");
  if (m->options.preempt)
    g_strv_builder_add(builder, "postcopy-preempt");
  if (m->options.auto_converge)
    g_strv_builder_add(builder, "auto-converge");
  if (m->options.parallel > 0)
    g_strv_builder_add(builder, "multifd");
  if (g_strcmp0(m->options.compress, "xbzrle") == 0)
    g_strv_builder_add(builder, "xbzrle");
  return g_strv_builder_end(builder);
}

/* Those that both sides must have alike; each calls its block nodes as it likes. */
static JsonObject *
stream_parameters(Migrate *m, gboolean there)
{
  JsonObject *parameters = json_object_new();

  if (m->storage && dr_move_storage_has_bitmaps(m->storage))
    json_object_set_array_member(parameters, "block-bitmap-mapping",
                                 dr_move_storage_bitmaps(m->storage, there));
  if (m->options.parallel > 0) {
    json_object_set_int_member(parameters, "multifd-channels", m->options.parallel);
    if (m->options.compress && !g_str_equal(m->options.compress, "xbzrle"))
      json_object_set_string_member(parameters, "multifd-compression", m->options.compress);
  }
  return parameters;
}

static gboolean
set_source(Migrate *m, char **wanted, GError **error)
{
  JsonObject *parameters = stream_parameters(m, FALSE);
  gint64 bandwidth = m->options.bandwidth > 0 ? m->options.bandwidth : NO_LIMIT;

  json_object_set_int_member(parameters, "max-bandwidth", bandwidth << 20);
  json_object_set_int_member(parameters, "max-postcopy-bandwidth", m->options.postcopy_bandwidth << 20);
  json_object_set_int_member(parameters, "downtime-limit", dr_policy_downtime(&m->policy));
  return dr_migration_set_capabilities(m->source, (const char *const *)wanted, error) &&
         dr_qmp_do(m->source, "migrate-set-parameters", parameters, error);
}

char *
dr_migrate_uri(const Migrate *m)
{
  return m->handed ? g_strdup("fd:drover-migration") : g_strdup_printf("unix:%s", m->socket_path);
}

/* One token each: the other droverd gave them out, for some seconds. A recovery of a handed-on stream is carried. */
static gboolean
open_streams(Migrate *m, JsonObject *reply, GError **error)
{
  g_auto(GStrv) tokens = dr_json_strv(dr_json_arr(reply, "tokens"));
  dr_autofd int fd = -1;

  m->narrowed = FALSE;
  if (m->options.transport != DR_MOVE_TUNNEL && (!tokens || !*tokens))
    return dr_error_set(error, DR_ERROR_REFUSED, "the other host gave out no tokens for streams without TLS");
  m->handed = m->options.transport == DR_MOVE_HANDOFF && m->epoch == 0;
  if (!m->handed) {
    m->streams = dr_streams_new(m->peer, m->move, m->epoch, m->socket_path,
                                m->options.transport == DR_MOVE_TUNNEL ? NULL : (const char *const *)tokens,
                                m->options.preempt, error);
    return m->streams != NULL;
  }
  fd = dr_streams_open_plain(m->peer, tokens[0], error);
  return fd >= 0 && dr_qmp_pass_fd(m->source, "drover-migration", fd, error);
}

gboolean
dr_migrate_listen(Migrate *m, GError **error)
{
  g_auto(GStrv) wanted = capabilities(m);
  JsonObject *params =
      dr_json("{'epoch': <%x>, 'transport': <%s>, 'streams': <%x>, 'handoff': <%b>}", m->epoch,
              dr_move_transport_name(m->options.transport), m->options.parallel + 1 + m->options.preempt,
              m->options.transport == DR_MOVE_HANDOFF);
  g_autoptr(JsonObject) reply = NULL;

  json_object_set_array_member(params, "capabilities", dr_json_array_from_strv((const char *const *)wanted));
  json_object_set_object_member(params, "parameters", stream_parameters(m, TRUE));
  reply = dr_migrate_ask(m, "move.listen", params, ASK_MS, error);
  if (!reply || (m->epoch == 0 && !set_source(m, wanted, error)))
    return FALSE;
  return open_streams(m, reply, error);
}

static gboolean
start(Migrate *m, GError **error)
{
  g_autoptr(JsonObject) begun = NULL, ready = NULL;

  put_tokens(m);
  if (!dr_migrate_lend_begin(m, error))
    return FALSE;
  begun = dr_migrate_ask(m, "move.start", arrival_request(m), ASK_MS, error);
  ready = begun ? dr_migrate_ask(m, "move.ready", NULL, START_MS, error) : NULL;
  g_clear_pointer(&m->tokens, dr_move_tokens_free);
  if (!ready)
    return FALSE;
  g_free(m->version);
  m->version = g_strdup(dr_json_str(ready, "qemu", "?"));
  m->version_number = (int)dr_json_int(ready, "qemu_number", 0);
  m->pid_after = dr_json_int(ready, "pid", 0);
  return TRUE;
}

gboolean
dr_migrate_prepare(Migrate *m, GError **error)
{
  g_autofree char *doing = g_strdup_printf("move VM '%s'", dr_vm_name(m->vm));

  dr_job_set_findings(m->job, m->pre->findings);
  if (dr_findings_block(m->pre->findings))
    return dr_findings_to_error(m->pre->findings, doing, error);
  return dr_job_enter(m->job, DR_STAGE_START, dr_migrate_lend_note(m), error) && start(m, error) &&
         dr_job_enter(m->job, DR_STAGE_VERIFY, NULL, error) && compare(m, error) &&
         dr_migrate_lend_verify(m, error) &&
         (!dr_move_storage_goes_before(m->storage) || dr_move_storage_copy(m, error));
}
