/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the other host's job asks of this one's. docs/PROTOCOL.md lists the questions. */
#include "base/error.h"
#include "base/fd.h"
#include "job/arrival-storage.h"
#include "job/incoming-internal.h"
#include "job/migration.h"
#include "job/streams.h"

#include <poll.h>
#include <string.h>

#define TICK_MS 500
#define QUIET_MS                                                                                             \
  60000 /* a guest that was not accepted is given up when the other host has said nothing for so long */
#define RESUME_MS 30000  /* from "accept" until the guest runs */
#define EPOCH_NAMES 1000 /* QEMU unlinks the name of an earlier one when it likes */
#define MAX_COMMANDS 2000
#define LOAD_MS 5000 /* until it has read what is on its way */
#define LOAD_STEP_MS 1
#define LOAD_PATIENT_MS 20
#define KILL_MS 10000
#define LOOK_MS 1000 /* QEMU's main loop may wait for a page of post-copy */

/* --- The new QEMU --- */

/* Of a MIGRATION event. */
static gboolean
is_last(JsonObject *data)
{
  const char *status = data ? dr_json_str(data, "status", "") : "";

  return g_str_equal(status, "completed") || g_str_equal(status, "postcopy-active");
}

static void
take_events(Incoming *in)
{
  DrQmpEvent *event;

  while (in->u.dest && (event = dr_qmp_pop_event(in->u.dest))) {
    if (g_str_equal(event->name, "RESUME"))
      in->u.resumed_us = event->time_us;
    else if (g_str_equal(event->name, "MIGRATION") && is_last(event->data)) {
      in->reads_last = TRUE;
      in->loaded_us = in->loaded_us ? in->loaded_us : event->time_us;
    }
    dr_qmp_event_free(event);
  }
}

/* Its monitor is closed: because it has ended, or by mistake. */
static void
check_dest(Incoming *in)
{
  DrUpgrade *u = &in->u;

  if (u->dest && !dr_qmp_closed(u->dest))
    return;
  if (dr_upgrade_reach_dest(u) != DR_REACH_GONE)
    return;
  if (in->state < INCOMING_ACCEPTED || dr_upgrade_never_ran(u))
    dr_incoming_discard(in, NULL); /* where that cannot be written, it is tried again */
  else
    in->state = INCOMING_LOST;
}

static char *
migration_status(Incoming *in)
{
  g_autoptr(JsonNode) node =
      in->u.dest ? dr_qmp_call(in->u.dest, "query-migrate", NULL, LOOK_MS, NULL) : NULL;

  return g_strdup(node && JSON_NODE_HOLDS_OBJECT(node)
                      ? dr_json_str(json_node_get_object(node), "status", "none")
                      : "unknown");
}

/* After "accept": has it all, and runs? */
static void
look_whether_arrived(Incoming *in)
{
  g_autofree char *status = migration_status(in);
  g_autofree char *run = NULL;

  if (!g_str_equal(status, "completed"))
    return;
  run = dr_migration_run_state(in->u.dest);
  if (in->u.plan.was_running && dr_migration_waits_for_cont(run))
    dr_qmp_do(in->u.dest, "cont", NULL, NULL); /* a droverd that was killed had not said it yet */
  else
    in->state = INCOMING_ARRIVED;
}

/* --- Questions --- */

static JsonObject *
say_state(Incoming *in)
{
  static const char *const names[] = { "waiting", "promised", "accepted", "arrived", "discarded", "lost" };
  g_autofree char *status = migration_status(in);

  take_events(in);
  return dr_json("{'state': <%s>, 'migration': <%s>, 'resumed_us': <%x>, 'wall_us': <%x>, 'heard_us': <%x>, "
                 "'loaded_us': <%x>, 'told_us': <%x>}",
                 names[in->state], status, in->u.resumed_us, g_get_real_time(), in->heard_us, in->loaded_us,
                 in->told_us);
}

static JsonObject *
ready(Incoming *in, JsonObject *params, GError **error)
{
  return dr_json("{'qemu': <%s>, 'qemu_number': <%i>, 'pid': <%i>}", dr_qmp_version(in->u.dest),
                 dr_qmp_version_number(in->u.dest), in->u.dest_id.pid);
}

/* Looking only: what the other host needs to compare the two machines. */
static gboolean
is_harmless(const char *command, JsonObject *arguments)
{
  const char *line = arguments ? dr_json_str(arguments, "command-line", "") : "";

  return g_str_has_prefix(command, "query-") || g_str_has_prefix(command, "qom-get") ||
         g_str_has_prefix(command, "qom-list") || g_str_equal(command, "device-list-properties") ||
         g_str_has_prefix(command, "x-debug-query-") ||
         (g_str_equal(command, "human-monitor-command") && g_str_has_prefix(line, "info "));
}

static JsonObject *
qmp(Incoming *in, JsonObject *params, GError **error)
{
  const char *command = dr_json_str(params, "execute", "");
  JsonObject *arguments = dr_json_obj(params, "arguments");
  g_autoptr(JsonNode) answer = NULL;
  JsonObject *reply;

  if (!is_harmless(command, arguments)) {
    dr_error_set(error, DR_ERROR_REFUSED, "a peer may not give the command '%s'", command);
    return NULL;
  }
  answer = dr_qmp_call(in->u.dest, command, arguments ? json_object_ref(arguments) : NULL, DR_QMP_TIMEOUT_MS,
                       error);
  if (!answer)
    return NULL;
  reply = json_object_new();
  json_object_set_member(reply, "return", g_steal_pointer(&answer));
  return reply;
}

/* {"commands":[…]}: the same for many; each has its answer or its error. */
static JsonObject *
qmps(Incoming *in, JsonObject *params, GError **error)
{
  JsonArray *commands = dr_json_arr(params, "commands");
  JsonArray *answers = json_array_new();
  JsonObject *reply;

  for (guint i = 0; commands && i < MIN(json_array_get_length(commands), MAX_COMMANDS); i++) {
    JsonNode *node = json_array_get_element(commands, i);
    g_autoptr(GError) local = NULL;
    JsonObject *answer = JSON_NODE_HOLDS_OBJECT(node) ? qmp(in, json_node_get_object(node), &local) : NULL;

    json_array_add_object_element(answers, answer ? answer : dr_json("{'error': <%b>}", TRUE));
  }
  reply = json_object_new();
  json_object_set_array_member(reply, "answers", answers);
  return reply;
}

static gboolean
set_parameters(Incoming *in, JsonObject *params, GError **error)
{
  JsonObject *parameters = dr_json_obj(params, "parameters");

  return !parameters || json_object_get_size(parameters) == 0 ||
         dr_qmp_do(in->u.dest, "migrate-set-parameters", json_object_ref(parameters), error);
}

/* A QEMU of 8.0 or newer that waits for the stream of urgent pages, in a recovery that broke before that had come, does not see that the
 * main one has gone: a connection that is closed at once tells it (seen on 10.0), and the next try finds it paused. At the first
 * beginning the same would end it. */
static void
nudge(Incoming *in)
{
  const char *peer = dr_json_str(dr_job_request(in->job), "peer", NULL);
  g_autofree char *status = migration_status(in);
  g_autofree char *path = in->epoch > 0 ? dr_incoming_socket(in->move, peer, in->epoch) : NULL;

  if (path && g_str_equal(status, "postcopy-active"))
    dr_streams_knock(path);
}

static gboolean
recover_at(Incoming *in, const char *uri, GError **error)
{
  if (dr_qmp_do_oob(in->u.dest, "migrate-recover", dr_json("{'uri': <%s>}", uri), error))
    return TRUE;
  nudge(in);
  return FALSE;
}

/* {"epoch","capabilities","parameters","handoff"}: epoch 0 begins; a later one goes on with a post-copy whose streams broke. With
 * `handoff` QEMU begins to read when it gets its socket. */
static JsonObject *
listen_for(Incoming *in, JsonObject *params, GError **error)
{
  gint64 epoch = dr_json_int(params, "epoch", 0);
  g_auto(GStrv) capabilities = dr_json_strv(dr_json_arr(params, "capabilities"));
  g_autofree char *path = g_strdup_printf("%s.%d", in->u.plan.migration_path, (int)(epoch % EPOCH_NAMES));
  g_autofree char *uri = g_strdup_printf("unix:%s", path);
  gboolean handoff = dr_json_bool(params, "handoff", FALSE) && epoch == 0;
  gboolean done;

  unlink(path);
  if (epoch > 0)
    done = recover_at(in, uri, error);
  else
    done = dr_migration_set_capabilities(in->u.dest, (const char *const *)capabilities, error) &&
           set_parameters(in, params, error) &&
           (handoff || dr_qmp_do(in->u.dest, "migrate-incoming", dr_json("{'uri': <%s>}", uri), error));
  if (!done || !dr_upgrade_prepare_mark(&in->u, error))
    return NULL;
  dr_incoming_set_socket(in, epoch, handoff ? NULL : path);
  return json_object_new();
}

/* Asked by our own listener: the socket of the stream is there. */
static JsonObject *
handed(Incoming *in, JsonObject *params, GError **error)
{
  dr_autofd int fd = dr_incoming_take_handed(in);

  if (fd < 0) {
    dr_error_set(error, DR_ERROR_INVALID, "no socket has come");
    return NULL;
  }
  return dr_qmp_pass_fd(in->u.dest, "drover-migration", fd, error) &&
                 dr_qmp_do(in->u.dest, "migrate-incoming", dr_json("{'uri': <'fd:drover-migration'>}"), error)
             ? json_object_new()
             : NULL;
}

static gboolean
were_made(Incoming *in, JsonArray *exports)
{
  g_autoptr(GPtrArray) files = dr_arrival_storage_files(dr_json_arr(in->spec, "disks"));

  for (guint i = 0; i < json_array_get_length(exports); i++)
    if (!g_ptr_array_find_with_equal_func(
            files, dr_json_str(json_array_get_object_element(exports, i), "path", ""), g_str_equal, NULL))
      return FALSE;
  return TRUE;
}

/* {"exports":[{"path","export","format","secret"?}]}: disks are about to be copied here. */
static JsonObject *
storage(Incoming *in, JsonObject *params, GError **error)
{
  JsonArray *exports = dr_json_arr(params, "exports");
  g_autofree char *path = g_strconcat(in->u.plan.migration_path, ".nbd", NULL);

  if (!exports || in->exports || in->state != INCOMING_WAITS || !were_made(in, exports)) {
    dr_error_set(error, DR_ERROR_INVALID, "disks cannot be copied here now");
    return NULL;
  }
  in->exports = json_array_ref(exports);
  unlink(path);
  if (!dr_arrival_storage_export(in->u.dest, exports, path, error))
    return NULL;
  dr_incoming_set_nbd_socket(in, path);
  return json_object_new();
}

/* All of them are here. */
static JsonObject *
storage_end(Incoming *in, JsonObject *params, GError **error)
{
  g_autofree char *path = g_strconcat(in->u.plan.migration_path, ".nbd", NULL);

  dr_incoming_set_nbd_socket(in, NULL);
  if (in->exports && !dr_arrival_storage_end(in->u.dest, in->exports, error))
    return NULL;
  g_clear_pointer(&in->exports, json_array_unref);
  unlink(path);
  return json_object_new();
}

/* Its QEMU has opened its disks, and those that stand on images of the other host do. */
static JsonObject *
overlays(Incoming *in, JsonObject *params, GError **error)
{
  return dr_arrival_storage_verify(in->u.dest, in->later, error) ? json_object_new() : NULL;
}

/* What is on its way in the tunnel is a part of the pause that is about to come. */
static JsonObject *
narrow(Incoming *in, JsonObject *params, GError **error)
{
  dr_streams_narrow_taken(in->move);
  return json_object_new();
}

/* Post-copy is about to begin over there: from the order on the guest's memory is in two places, and giving this half up would
 * lose it. It does not run yet. */
static JsonObject *
promise(Incoming *in, JsonObject *params, GError **error)
{
  if (in->state == INCOMING_WAITS) {
    if (!dr_job_no_return(in->job, error))
      return NULL;
    dr_qmp_set_cancel_fd(in->u.dest, -1);
    if (!dr_job_enter(in->job, DR_STAGE_POSTCOPY, NULL, error))
      return NULL;
    in->state = INCOMING_PROMISED;
    in->postcopy = TRUE;
  }
  return say_state(in);
}

/* Has read all of the guest, or in post-copy all but pages: only then is what its QEMU has a guest. What the other host sent may be
 * lost on the way until then. */
static gboolean
wait_loaded(Incoming *in)
{
  DrDeadline deadline = dr_deadline_in(LOAD_MS);

  while (in->u.dest && !dr_qmp_closed(in->u.dest) && !dr_deadline_passed(deadline)) {
    g_autoptr(JsonNode) node = dr_qmp_call(in->u.dest, "query-status", NULL, LOOK_MS, NULL);
    const char *state = node && JSON_NODE_HOLDS_OBJECT(node)
                            ? dr_json_str(json_node_get_object(node), "status", "inmigrate")
                            : "inmigrate";

    if (!g_str_equal(state, "inmigrate"))
      return TRUE;
    /* Its events say when it is worth asking: who answers is the thread that reads. */
    take_events(in);
    dr_qmp_wait_many(&in->u.dest, 1, dr_deadline_in(in->reads_last ? LOAD_STEP_MS : LOAD_PATIENT_MS), NULL);
    take_events(in);
  }
  return FALSE;
}

static gboolean
accept_it(Incoming *in, GError **error)
{
  dr_qmp_set_cancel_fd(in->u.dest, -1);
  if (!dr_job_no_return(in->job, error) || !dr_upgrade_choose(&in->u, error))
    return FALSE;
  in->state = INCOMING_ACCEPTED;
  if (g_getenv("DROVER_HOLD_AT"))
    dr_job_step(in->job, DR_STEP_SWITCHOVER);
  return TRUE;
}

static void
wait_resumed(Incoming *in)
{
  DrDeadline deadline = dr_deadline_in(RESUME_MS);

  while (in->u.resumed_us == 0 && !dr_qmp_closed(in->u.dest) &&
         dr_qmp_wait_many(&in->u.dest, 1, deadline, NULL))
    take_events(in);
}

/* The other host's QEMU has stopped for good: run it, as soon as it can; if that takes long, the answer is the state so far, and
 * the other host asks again. */
static JsonObject *
accept(Incoming *in, JsonObject *params, GError **error)
{
  in->heard_us = in->heard_us ? in->heard_us : g_get_real_time();
  if ((in->state == INCOMING_WAITS || in->state == INCOMING_PROMISED) && wait_loaded(in)) {
    if (!accept_it(in, error))
      return NULL;
    if (in->u.plan.was_running && !dr_qmp_do(in->u.dest, "cont", NULL, error))
      return NULL;
    in->told_us = g_get_real_time();
    if (in->u.plan.was_running && !in->postcopy)
      wait_resumed(in);
  }
  check_dest(in);
  if (in->state == INCOMING_ACCEPTED && !in->postcopy)
    look_whether_arrived(in);
  if (g_getenv("DROVER_HOLD_AT"))
    dr_job_step(in->job, DR_STEP_RESUME);
  return say_state(in);
}

/* {"lost":bool}: the move is off, which the other host says only when its own QEMU goes on, or has ended. `lost`: that one has ended
 * with a part of a guest that runs here. */
static JsonObject *
give_up(Incoming *in, JsonObject *params, GError **error)
{
  g_autofree char *status = migration_status(in);

  if (in->state < INCOMING_ACCEPTED && !dr_incoming_discard(in, error))
    return NULL;
  if (in->state == INCOMING_ACCEPTED && dr_json_bool(params, "lost", FALSE) &&
      g_str_equal(status, "postcopy-paused")) {
    if (!dr_proc_kill(&in->u.dest_id, KILL_MS, error))
      return NULL;
    in->state = INCOMING_LOST;
  }
  return say_state(in);
}

static JsonObject *
status(Incoming *in, JsonObject *params, GError **error)
{
  if (in->state == INCOMING_ACCEPTED)
    look_whether_arrived(in);
  return say_state(in);
}

static const struct {
  const char *method;
  JsonObject *(*answer)(Incoming *in, JsonObject *params, GError **error);
} questions[] = {
  { "ready", ready },
  { "qmp", qmp },
  { "qmps", qmps },
  { "listen", listen_for },
  { "promise", promise },
  { "accept", accept },
  { "abort", give_up },
  { "status", status },
  { "overlays", overlays },
  { "handed", handed },
  { "narrow", narrow },
  { "storage", storage },
  { "storage-end", storage_end },
};

static void
answer_one(Incoming *in)
{
  g_autofree char *method = NULL;
  g_autoptr(JsonObject) params = NULL;
  g_autoptr(GError) error = NULL;
  JsonObject *reply = NULL;

  if (!dr_mailbox_take(in->box, &method, &params))
    return;
  in->last_word_us = g_get_monotonic_time();
  for (guint i = 0; i < G_N_ELEMENTS(questions); i++)
    if (g_str_equal(questions[i].method, method))
      reply = in->u.dest || g_str_equal(method, "status") || g_str_equal(method, "abort")
                  ? questions[i].answer(in, params, &error)
                  : NULL;
  if (!reply && !error)
    dr_error_set(&error, in->u.dest ? DR_ERROR_UNSUPPORTED : DR_ERROR_CLOSED,
                 in->u.dest ? "there is no such question: '%s'" : "the new QEMU does not answer ('%s')",
                 method);
  dr_mailbox_answer(in->box, reply, error);
}

gboolean
dr_incoming_refuse_next(Incoming *in, const GError *why)
{
  g_autofree char *method = NULL;
  g_autoptr(JsonObject) params = NULL;

  if (!dr_mailbox_take(in->box, &method, &params))
    return FALSE;
  dr_mailbox_answer(in->box, NULL, why);
  return TRUE;
}

/* --- The loop --- */

gboolean
dr_incoming_wait(Incoming *in, DrDeadline deadline)
{
  struct pollfd fds[] = {
    { .fd = dr_mailbox_fd(in->box), .events = POLLIN },
    { .fd = dr_job_cancel_fd(in->job), .events = POLLIN },
    { .fd = in->u.dest && !dr_qmp_closed(in->u.dest) ? dr_qmp_fd(in->u.dest) : -1, .events = POLLIN },
  };

  return poll(fds, G_N_ELEMENTS(fds), dr_deadline_left(deadline)) > 0;
}

static gboolean
is_cancelled(Incoming *in)
{
  struct pollfd fd = { .fd = dr_job_cancel_fd(in->job), .events = POLLIN };

  return in->state == INCOMING_WAITS && poll(&fd, 1, 0) > 0;
}

static gboolean
is_forgotten(Incoming *in)
{
  return in->state == INCOMING_WAITS && g_get_monotonic_time() - in->last_word_us > QUIET_MS * 1000ll;
}

/* A QEMU that waits for a page answers nothing: it is asked now and then, and only when nobody else wants something. */
static void
look_around(Incoming *in)
{
  if (in->u.dest && !dr_qmp_closed(in->u.dest))
    dr_qmp_read_some(in->u.dest);
  take_events(in);
  check_dest(in);
}

gboolean
dr_incoming_serve(Incoming *in, GError **error)
{
  gint64 looked_us = 0;

  while (in->state <= INCOMING_ACCEPTED || (in->state != INCOMING_DISCARDED && !dr_incoming_note_end(in))) {
    dr_incoming_wait(in, dr_deadline_in(TICK_MS));
    look_around(in);
    answer_one(in);
    if (is_cancelled(in))
      return dr_error_set(error, DR_ERROR_CANCELLED, "cancelled on the host that it was to come to");
    if (is_forgotten(in))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "the other host has said nothing for %d s",
                          QUIET_MS / 1000);
    if (in->state == INCOMING_ACCEPTED && g_get_monotonic_time() - looked_us > TICK_MS * 1000ll) {
      looked_us = g_get_monotonic_time();
      look_whether_arrived(in);
    }
  }
  if (in->state == INCOMING_DISCARDED)
    return dr_error_set(error, DR_ERROR_CLOSED,
                        "the new QEMU of VM '%s' ended, or the other host has given it up",
                        dr_vm_name(in->u.vm));
  return TRUE;
}
