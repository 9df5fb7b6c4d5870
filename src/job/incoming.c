/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The host that a guest comes to. What is asked is in incoming-serve.c; here is the frame: start, serve, end, and what a next
 * droverd does.
 *
 * The new QEMU runs only after the other host has said "accept"; then its mark is there (dr_upgrade_choose(), as in an upgrade),
 * and it is not given up any more. Before, it may be given up at any time: that is written into the state file first, so that
 * an "accept" that comes late is refused. */
#include "job/incoming-internal.h"
#include "base/error.h"
#include "job/arrival.h"
#include "job/arrival-overlay.h"
#include "job/arrival-storage.h"
#include "job/disk-fetch.h"
#include "job/disk-image.h"
#include "job/image-link.h"
#include "job/move-spec.h"
#include "job/streams.h"
#include "vm/console.h"
#include "vm/start.h"
#include "vm/user.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TELL_MS 10000 /* the other host asks for the reason of a failed start */
#define CONNECT_MS 5000
#define HAND_MS 10000
#define STAGE_STORAGE "storage"
#define LINK_AGAIN_US (5 * G_USEC_PER_SEC)

/* --- Which moves are under way here --- */

static GMutex lock;
static GHashTable *under_way; /* move -> Incoming, on its thread's stack; under `lock` */

static void
publish(Incoming *in)
{
  g_mutex_lock(&lock);
  if (!under_way)
    under_way = g_hash_table_new(g_str_hash, g_str_equal);
  g_hash_table_insert(under_way, in->move, in);
  g_mutex_unlock(&lock);
}

static void
withdraw(Incoming *in)
{
  g_mutex_lock(&lock);
  g_hash_table_remove(under_way, in->move);
  g_mutex_unlock(&lock);
  dr_mailbox_close(in->box);
  dr_streams_drop(in->move);
}

/* Under the lock. A peer has no say in the moves of another. */
static Incoming *
find(const char *move, const char *peer)
{
  Incoming *in = under_way ? g_hash_table_lookup(under_way, move) : NULL;

  return in && g_strcmp0(dr_json_str(dr_job_request(in->job), "peer", NULL), peer) == 0 ? in : NULL;
}

DrMailbox *
dr_incoming_find(const char *move, const char *peer)
{
  Incoming *in;
  DrMailbox *box;

  g_mutex_lock(&lock);
  in = find(move, peer);
  box = in ? dr_mailbox_ref(in->box) : NULL;
  g_mutex_unlock(&lock);
  return box;
}

/* --- Where its streams go --- */

void
dr_incoming_set_socket(Incoming *in, gint64 epoch, const char *path)
{
  g_mutex_lock(&lock);
  in->epoch = epoch;
  g_free(in->socket);
  in->socket = g_strdup(path);
  in->listens = TRUE;
  g_mutex_unlock(&lock);
}

char *
dr_incoming_socket(const char *move, const char *peer, gint64 epoch)
{
  Incoming *in;
  char *path;

  g_mutex_lock(&lock);
  in = find(move, peer);
  path = in && in->epoch == epoch ? g_strdup(in->socket) : NULL;
  g_mutex_unlock(&lock);
  return path;
}

void
dr_incoming_set_nbd_socket(Incoming *in, const char *path)
{
  g_mutex_lock(&lock);
  g_free(in->nbd_socket);
  in->nbd_socket = g_strdup(path);
  g_mutex_unlock(&lock);
}

char *
dr_incoming_nbd_socket(const char *move, const char *peer)
{
  Incoming *in;
  char *path;

  g_mutex_lock(&lock);
  in = find(move, peer);
  path = in ? g_strdup(in->nbd_socket) : NULL;
  g_mutex_unlock(&lock);
  return path;
}

gboolean
dr_incoming_wants_socket(const char *move, const char *peer, gint64 epoch)
{
  Incoming *in;
  gboolean wants;

  g_mutex_lock(&lock);
  in = find(move, peer);
  wants = in && in->listens && in->epoch == epoch && !in->socket && in->handed < 0;
  g_mutex_unlock(&lock);
  return wants;
}

gboolean
dr_incoming_hand(const char *move, DrConn *conn, GError **error)
{
  g_autoptr(DrMailbox) box = dr_incoming_find(move, dr_conn_peer(conn));
  g_autoptr(JsonObject) nothing = json_object_new(), reply = NULL;
  Incoming *in;

  g_mutex_lock(&lock);
  in = find(move, dr_conn_peer(conn));
  if (in && in->handed < 0)
    in->handed = dr_conn_steal_fd(conn);
  g_mutex_unlock(&lock);
  dr_conn_free(conn);
  if (!box)
    return dr_error_set(error, DR_ERROR_NOT_FOUND, "no move '%.40s' waits for a socket", move);
  reply = dr_mailbox_ask(box, "handed", nothing, HAND_MS, error);
  return reply != NULL;
}

int
dr_incoming_take_handed(Incoming *in)
{
  int fd;

  g_mutex_lock(&lock);
  fd = in->handed;
  in->handed = -1;
  g_mutex_unlock(&lock);
  return fd;
}

/* --- Before and after --- */

static void
incoming_init(Incoming *in, DrJob *job)
{
  JsonObject *request = dr_job_request(job);

  dr_upgrade_init(&in->u, job);
  in->job = job;
  in->move = g_strdup(dr_json_str(request, "move", "?"));
  in->box = dr_mailbox_new();
  in->spec = json_object_ref(dr_json_obj(request, "spec"));
  in->u.spec = in->spec;
  in->handed = -1;
  in->made = g_ptr_array_new_with_free_func(g_free);
  in->later = dr_disk_fetch_list(dr_json_arr(in->spec, "disks"));
  in->last_word_us = g_get_monotonic_time();
}

static void
incoming_clear(Incoming *in)
{
  withdraw(in);
  if (in->handed >= 0)
    close(in->handed);
  dr_upgrade_clear(&in->u);
  g_clear_pointer(&in->spec, json_object_unref);
  g_clear_pointer(&in->box, dr_mailbox_unref);
  g_free(in->move);
  g_free(in->socket);
  g_free(in->nbd_socket);
  g_clear_pointer(&in->exports, json_array_unref);
  g_ptr_array_unref(in->made);
  g_clear_pointer(&in->link, dr_image_link_free);
  json_array_unref(in->later);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Incoming, incoming_clear)

/* Its QEMU has ended. */
static void
remove_images(Incoming *in)
{
  for (guint i = 0; i < in->made->len; i++)
    if (unlink(in->made->pdata[i]) < 0 && errno != ENOENT)
      g_warning("cannot remove '%s', which was made for a guest that did not come: %s",
                (char *)in->made->pdata[i], g_strerror(errno));
  g_ptr_array_set_size(in->made, 0);
}

gboolean
dr_incoming_discard(Incoming *in, GError **error)
{
  const DrVmRecord *record = dr_vm_record(in->u.vm);

  if (!dr_store_put_move(in->u.host->store, in->move, record->name, "discarded", 0, error))
    return FALSE; /* without that row a late "accept" would find nobody who says no */
  in->state = INCOMING_DISCARDED;
  g_clear_pointer(&in->u.dest, dr_qmp_free);
  if (in->u.dest_id.pid && !dr_proc_kill(&in->u.dest_id, 10000, error))
    return FALSE;
  dr_console_abort(dr_vm_console(in->u.vm));
  dr_upgrade_remove_leftovers(&in->u);
  remove_images(in);
  return TRUE;
}

gboolean
dr_incoming_note_end(Incoming *in)
{
  const char *state = in->state == INCOMING_ARRIVED ? "arrived" : "lost";
  g_autoptr(GError) error = NULL;

  if (!in->noted)
    in->noted =
        dr_store_put_move(in->u.host->store, in->move, dr_vm_name(in->u.vm), state, in->u.resumed_us, &error);
  if (error && !in->warned)
    g_warning("VM '%s' has %s: %s", dr_vm_name(in->u.vm), state, error->message);
  in->warned = error != NULL;
  return in->noted;
}

static void
keep_snapshots(Incoming *in)
{
  JsonArray *snapshots = dr_json_arr(in->spec, "snapshots");

  for (guint i = 0; snapshots && i < json_array_get_length(snapshots); i++) {
    JsonNode *node = json_array_get_element(snapshots, i);
    JsonObject *record = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    g_autoptr(GError) error = NULL;

    if (record && !dr_store_put_snapshot(in->u.host->store, dr_vm_name(in->u.vm),
                                         dr_json_str(record, "name", "?"), record, &error))
      g_warning("%s", error->message); /* the images are right without it */
  }
}

static void
keep_backups(Incoming *in)
{
  JsonArray *backups = dr_json_arr(in->spec, "backups");

  for (guint i = 0; backups && i < json_array_get_length(backups); i++) {
    JsonNode *node = json_array_get_element(backups, i);
    g_autoptr(GError) error = NULL;

    if (JSON_NODE_HOLDS_OBJECT(node) &&
        !dr_store_put_backup(in->u.host->store, dr_vm_name(in->u.vm), json_node_get_object(node), &error))
      g_warning("%s", error->message); /* the next backup can be told what it stands on */
  }
}

/* The guest is ours. */
static gboolean
arrive(Incoming *in, GError **error)
{
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autoptr(GError) lost = NULL;

  dr_upgrade_commit(&in->u, findings, &lost);
  dr_vm_record(in->u.vm)->upgrades = 0;
  dr_job_set_findings(in->job, findings);
  dr_upgrade_finish(&in->u, DR_ON_DESTINATION, lost);
  keep_snapshots(in);
  keep_backups(in);
  dr_job_remove_at_end(in->job, in->u.plan.mark_path);
  if (lost)
    g_propagate_error(error, g_steal_pointer(&lost));
  return !lost;
}

static char *
link_prefix(Incoming *in, GError **error)
{
  g_autofree char *sockets =
      dr_host_socket_dir(in->u.host, dr_vm_name(in->u.vm), in->u.pre ? in->u.pre->truth : NULL,
                         (const char *const *)in->u.plan.argv, error);

  return sockets ? g_strconcat(sockets, "/image", NULL) : NULL;
}

/* For images that are fetched later: from now on their overlays can be opened. */
static gboolean
open_link(Incoming *in, GError **error)
{
  g_autofree char *prefix = link_prefix(in, error);
  g_autoptr(GStrvBuilder) names = g_strv_builder_new();
  g_auto(GStrv) all = NULL;

  for (guint i = 0; i < json_array_get_length(in->later); i++)
    g_strv_builder_add(names, dr_json_str(json_array_get_object_element(in->later, i), "name", ""));
  all = g_strv_builder_end(names);
  if (prefix && *all)
    in->link = dr_image_link_new(in->move, dr_json_str(dr_job_request(in->job), "peer", NULL), prefix,
                                 (const char *const *)all, error);
  return prefix && (in->link || !*all);
}

/* Without it the guest waits for its disks. */
static void
ensure_link(Incoming *in)
{
  g_autoptr(GError) error = NULL;

  while (!in->link && !open_link(in, &error)) {
    g_warning("VM '%s': %s", dr_vm_name(in->u.vm), error->message);
    g_clear_error(&error);
    g_usleep(LINK_AGAIN_US); /* ended by there being room, or by the end of droverd */
  }
}

/* What has stayed on the other host is fetched, also for a guest that has ended: its disks are in two halves. */
static gboolean
fetch(Incoming *in, gboolean arrived, JsonObject *note, GError **error)
{
  g_autoptr(GError) local = NULL;

  if (json_array_get_length(in->later) == 0)
    return arrived;
  withdraw(in); /* what became of the guest is on disk; the rest is asked of the fetch */
  ensure_link(in);
  if (dr_disk_fetch_run(in->job, in->move, dr_json_str(dr_job_request(in->job), "peer", NULL), in->later,
                        arrived, note, arrived ? error : &local))
    return arrived;
  return FALSE;
}

/* It ended here, with the guest. */
static gboolean
lose(Incoming *in, GError **error)
{
  g_autofree char *how = dr_upgrade_exit_status(in->u.plan.exit_path, &in->u.dest_id);
  g_autoptr(GError) local = NULL;

  dr_error_set(&local, DR_ERROR_ATTENTION,
               "the guest of VM '%s' has ended on this host while it was coming: its QEMU %s",
               dr_vm_name(in->u.vm), how ? how : "has ended");
  dr_error_remedy(&local, "see drover show %s and its log, then start it again", dr_vm_name(in->u.vm));
  dr_upgrade_finish(&in->u, DR_NOWHERE, local);
  g_propagate_error(error, g_steal_pointer(&local));
  return FALSE;
}

static gboolean
end(Incoming *in, GError *cause, GError **error)
{
  g_autoptr(GError) local = NULL;

  if (in->state == INCOMING_ARRIVED)
    return fetch(in, arrive(in, error), NULL, error);
  if (in->state == INCOMING_LOST) {
    g_clear_error(&cause);
    return fetch(in, lose(in, error), NULL, error);
  }
  if (in->state != INCOMING_DISCARDED && !dr_incoming_discard(in, &local))
    g_warning("VM '%s': %s", dr_vm_name(in->u.vm), local->message);
  dr_vm_give(in->u.vm, NULL);
  if (cause)
    g_propagate_error(error, cause);
  else
    dr_error_set(error, DR_ERROR_CANCELLED, "the other host has given the move of VM '%s' up",
                 dr_vm_name(in->u.vm));
  return FALSE;
}

/* Nobody would know why: the other host asks next whether the new QEMU is ready. */
static void
tell_failure(Incoming *in, const GError *why)
{
  DrDeadline deadline = dr_deadline_in(TELL_MS);
  gboolean told = FALSE;

  while (!told && dr_incoming_wait(in, deadline))
    told = dr_incoming_refuse_next(in, why);
}

/* --- The job --- */

static JsonObject *
disk_of(JsonArray *disks, const char *path)
{
  for (guint i = 0; i < json_array_get_length(disks); i++)
    if (g_str_equal(dr_json_str(json_array_get_object_element(disks, i), "path", ""), path))
      return json_array_get_object_element(disks, i);
  return NULL;
}

/* Which are to be made: what is there already is written over only if that was asked for, and is not removed. */
static gboolean
choose_images(Incoming *in, JsonArray *disks, GPtrArray *files, GError **error)
{
  for (guint i = 0; i < files->len; i++) {
    const char *path = files->pdata[i];
    struct stat st;

    if (lstat(path, &st) < 0)
      g_ptr_array_add(in->made, g_strdup(path));
    else if (!disk_of(disks, path) || !dr_json_bool(disk_of(disks, path), "overwrite", FALSE))
      return dr_error_set(error, DR_ERROR_EXISTS, "this host has a file '%s' already", path);
  }
  return TRUE;
}

/* Another guest may be about to come with images of the same names. */
static gboolean
reserve_images(Incoming *in, GError **error)
{
  for (guint i = 0; i < in->made->len; i++)
    if (!dr_image_reserve(in->made->pdata[i], getpid(), error)) {
      g_ptr_array_set_size(in->made, (int)i); /* it and those behind it are not ours */
      return FALSE;
    }
  return TRUE;
}

static gboolean
give_images(Incoming *in, const GPtrArray *files, GError **error)
{
  for (guint i = 0; i < files->len; i++)
    if (!dr_qemu_user_give(in->u.pre->truth, files->pdata[i], error))
      return FALSE;
  return TRUE;
}

/* They stand in the journal before they are made. */
static gboolean
make_images(Incoming *in, GError **error)
{
  JsonArray *disks = dr_json_arr(in->spec, "disks"), *made;
  g_autoptr(GPtrArray) files = dr_arrival_storage_files(disks);
  g_autoptr(GHashTable) secrets = dr_move_spec_secrets(in->u.pre->truth);
  g_auto(GStrv) launcher = dr_qemu_user_launcher(in->u.pre->truth);
  g_autofree char *link = link_prefix(in, error);
  JsonObject *note;

  if (files->len == 0)
    return TRUE;
  if (!link || !choose_images(in, disks, files, error))
    return FALSE;
  note = json_object_new();
  made = json_array_new();
  for (guint i = 0; i < in->made->len; i++)
    json_array_add_string_element(made, in->made->pdata[i]);
  json_object_set_array_member(note, "made", made);
  return dr_job_enter(in->job, STAGE_STORAGE, note, error) && reserve_images(in, error) &&
         give_images(in, files, error) &&
         dr_arrival_storage_make(disks, secrets, (const char *const *)launcher, link, error) &&
         open_link(in, error);
}

static gboolean
prepare(Incoming *in, GError **error)
{
  DrVmRecord *record = dr_vm_record(in->u.vm);
  JsonObject *request = dr_job_request(in->job);
  g_auto(GStrv) binaries = dr_json_strv(dr_json_arr(request, "binaries"));
  g_autofree char *state_dir = dr_host_state_dir(in->u.host, record->name, error);
  g_autofree char *doing = g_strdup_printf("take VM '%s'", record->name);

  if (!state_dir)
    return FALSE;
  in->u.pre = dr_move_spec_read(in->spec, record, error);
  if (!in->u.pre)
    return FALSE;
  record->log_path = g_strdup_printf("%s/qemu.log", state_dir);
  dr_arrival_check(in->u.pre, in->u.vm, in->spec, dr_json_str(request, "qemu", NULL),
                   (const char *const *)binaries);
  if (dr_findings_block(in->u.pre->findings))
    return dr_findings_to_error(in->u.pre->findings, doing, error);
  in->u.plan.forwards = json_array_ref(dr_json_arr(in->spec, "forwards"));
  return make_images(in, error) && dr_arrival_overlay_argv(in->u.pre->truth, in->later, record->cwd, error) &&
         dr_vm_save(in->u.vm, error);
}

gboolean
dr_incoming_run(DrJob *job, GError **error)
{
  g_auto(Incoming) in = { 0 };
  g_autoptr(GError) cause = NULL;

  incoming_init(&in, job);
  dr_vm_reserve(in.u.vm, "its coming from another host");
  publish(&in);
  if (!dr_job_enter(job, DR_STAGE_PREFLIGHT, NULL, &cause) || !prepare(&in, &cause) ||
      !dr_upgrade_start_arrival(&in.u, dr_arrival_make_needs, &cause)) {
    tell_failure(&in, cause);
    return end(&in, g_steal_pointer(&cause), error);
  }
  dr_incoming_serve(&in, &cause);
  return end(&in, g_steal_pointer(&cause), error);
}

/* --- Only looking --- */

static uid_t
user_of(const DrArgv *argv)
{
  uid_t uid;
  gid_t gid;

  return dr_qemu_user(argv, &uid, &gid) ? uid : geteuid();
}

JsonObject *
dr_incoming_check(DrVm *vm, JsonObject *request, GError **error)
{
  JsonObject *spec = dr_json_obj(request, "spec");
  g_auto(GStrv) binaries = dr_json_strv(dr_json_arr(request, "binaries"));
  g_autoptr(DrPreflight) p = spec ? dr_move_spec_read(spec, dr_vm_record(vm), error) : NULL;
  JsonObject *report;

  if (!p) {
    if (!spec)
      dr_error_set(error, DR_ERROR_INVALID, "the peer says nothing of the VM that is to come");
    return NULL;
  }
  dr_arrival_check(p, vm, spec, dr_json_str(request, "qemu", NULL), (const char *const *)binaries);
  report = json_object_new();
  json_object_set_array_member(report, "findings", dr_findings_json(p->findings));
  json_object_set_array_member(report, "storage", dr_arrival_storage_report(dr_json_arr(spec, "disks")));
  json_object_set_string_member(report, "qemu", p->caps ? p->caps->version : NULL);
  json_object_set_int_member(report, "qemu_number", p->caps ? p->caps->version_number : 0);
  json_object_set_string_member(report, "binary", p->binary);
  json_object_set_boolean_member(report, "userfaultfd", dr_memory_has_userfaultfd(user_of(p->truth)));
  return report;
}

/* --- Recovery --- */

static void
connect_dest(Incoming *in)
{
  DrUpgrade *u = &in->u;

  if (!u->dest_id.pid)
    dr_upgrade_find_by_socket(u->plan.qmp_path, &u->dest_id);
  if (u->dest_id.pid && dr_proc_alive(&u->dest_id))
    u->dest = dr_qmp_connect(u->plan.qmp_path, FALSE, dr_deadline_in(CONNECT_MS), NULL);
  if (u->dest && !u->plan.version)
    u->plan.version = g_strdup(dr_qmp_version(u->dest));
}

/* What an earlier droverd left of it. */
static gboolean
take_up(Incoming *in, gboolean started, GError **error)
{
  DrUpgrade *u = &in->u;

  if (started && g_strcmp0(dr_vm_record(u->vm)->boot_id, dr_boot_id()) != 0) {
    /* The mark went with that boot: it may have run, and have written to its disks. */
    u->dest_id = (DrProcId){ 0 };
    in->state = INCOMING_LOST;
    return dr_incoming_serve(in, error);
  }
  if (started)
    connect_dest(in);
  if (!started || (!dr_upgrade_is_chosen(u) && !u->postcopy_begun))
    return dr_error_set(error, DR_ERROR_CLOSED, "droverd ended before the guest of VM '%s' was to run here",
                        dr_vm_name(u->vm));
  in->state = dr_upgrade_is_chosen(u) ? INCOMING_ACCEPTED : INCOMING_PROMISED;
  in->postcopy = u->postcopy_begun;
  if (u->dest || dr_proc_alive(&u->dest_id))
    return dr_incoming_serve(in, error);
  if (in->state == INCOMING_ACCEPTED) {
    in->state = INCOMING_LOST;
    return dr_incoming_serve(in, error);
  }
  return dr_error_set(error, DR_ERROR_CLOSED, "the new QEMU of VM '%s' ended before it was to run",
                      dr_vm_name(u->vm));
}

static void
load_images(Incoming *in, JsonArray *journal)
{
  for (guint i = 0; i < json_array_get_length(journal); i++) {
    JsonObject *note = dr_json_obj(json_array_get_object_element(journal, i), "note");
    g_auto(GStrv) made = note ? dr_json_strv(dr_json_arr(note, "made")) : NULL;

    for (char **file = made; file && *file; file++)
      g_ptr_array_add(in->made, g_strdup(*file));
  }
}

/* Its guest has arrived, or has ended; it is this host's, and may have gone on to end since. */
static gboolean
fetch_again(Incoming *in, JsonArray *journal, GError **error)
{
  JsonObject *last = json_array_get_object_element(journal, json_array_get_length(journal) - 1);
  gboolean arrived = dr_json_bool(last, "note.arrived", TRUE);

  dr_vm_give(in->u.vm, NULL);
  dr_vm_attach(in->u.vm);
  dr_job_remove_at_end(in->job, in->u.plan.mark_path);
  if (!arrived)
    dr_error_set(error, DR_ERROR_ATTENTION, "the guest of VM '%s' has ended on this host while it was coming",
                 dr_vm_name(in->u.vm));
  return fetch(in, arrived, dr_json_obj(last, "note"), error);
}

gboolean
dr_incoming_recover(DrJob *job, GError **error)
{
  g_auto(Incoming) in = { 0 };
  const char *stage = "queued";
  g_autoptr(JsonArray) journal = NULL;
  g_autoptr(GError) cause = NULL, local = NULL;
  gboolean started;

  incoming_init(&in, job);
  publish(&in);
  journal = dr_store_load_journal(in.u.host->store, dr_job_id(job), error);
  started = journal && dr_upgrade_load_plan(&in.u, journal, &stage);
  if (journal)
    load_images(&in, journal);
  dr_job_step(job, stage);
  dr_job_hold(job, DR_STEP_RECOVER);
  if (started && !open_link(&in, &local))
    g_warning("VM '%s': %s", dr_vm_name(in.u.vm), local->message); /* its guest waits for its disks */
  if (g_str_equal(stage, DR_STAGE_FETCH))
    return fetch_again(&in, journal, error);
  take_up(&in, started, &cause);
  return end(&in, g_steal_pointer(&cause), error);
}
