/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Lending images to the host that the guest has gone to. */
#include "job/migrate-lend.h"
#include "base/error.h"
#include "job/disk-job.h"
#include "job/image-server.h"
#include "job/migrate-storage.h"
#include "job/move-spec.h"
#include "job/upgrade-internal.h"

#include <poll.h>

#define STAGE_SERVE "serve"
#define ASK_MS 10000
#define TICK_MS 500
#define AWAY_US (10 * G_USEC_PER_SEC) /* without a word of the other host: said to whoever looks */

static gboolean
lends(const Migrate *m)
{
  return m->lent && json_array_get_length(m->lent) > 0;
}

JsonObject *
dr_migrate_lend_note(Migrate *m)
{
  JsonObject *note = dr_json("{'move': <%s>}", m->move);

  if (m->storage)
    m->lent = dr_move_storage_lent(m->storage);
  if (lends(m))
    json_object_set_array_member(note, "lent", json_array_ref(m->lent));
  return note;
}

void
dr_migrate_lend_load(Migrate *m, JsonObject *note)
{
  JsonArray *lent = dr_json_arr(note, "lent");

  if (!lent)
    return;
  g_clear_pointer(&m->lent, json_array_unref);
  m->lent = json_array_ref(lent);
}

/* "-object secret" words are on the command line that the VM has now. */
static DrImageServer *
server_of(Migrate *m)
{
  g_autoptr(DrArgv) argv = dr_argv_parse((const char *const *)dr_vm_record(m->vm)->argv_running, NULL);
  g_autoptr(GHashTable) secrets = argv ? dr_move_spec_secrets(argv) : NULL;
  g_autofree char *run_dir = g_path_get_dirname(m->mark_path); /* droverd's own, not the QEMU's user's */
  g_autofree char *prefix = g_build_filename(run_dir, "migration.out.images", NULL);

  if (!m->server)
    m->server = dr_image_server_new(m->peer, m->move, prefix, m->lent, secrets);
  return m->server;
}

void
dr_migrate_lend_check(const Migrate *m, DrFindings *findings)
{
  g_autoptr(GError) error = NULL;

  if (m->options.storage_postcopy && !dr_image_server_is_possible(&error))
    dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-server", dr_error_get_remedy(error), "%s",
                    error->message);
}

gboolean
dr_migrate_lend_begin(Migrate *m, GError **error)
{
  return dr_migrate_lend_ready(m, error) && (!lends(m) || dr_image_server_open(m->server, TRUE, error));
}

gboolean
dr_migrate_lend_verify(Migrate *m, GError **error)
{
  g_autoptr(JsonObject) reply = NULL;

  if (!lends(m))
    return TRUE;
  reply = dr_migrate_ask(m, "move.overlays", NULL, ASK_MS, error);
  return reply && dr_image_server_close(m->server, error);
}

gboolean
dr_migrate_lend_ready(Migrate *m, GError **error)
{
  return !lends(m) || dr_image_server_start(server_of(m), error);
}

void
dr_migrate_lend(Migrate *m)
{
  g_autoptr(GError) error = NULL;

  if (lends(m) && !dr_image_server_open(m->server, FALSE, &error))
    g_warning("VM '%s': %s", dr_vm_name(m->vm), error->message);
}

void
dr_migrate_lend_tend(Migrate *m)
{
  if (lends(m) && dr_migrate_is_decided(m))
    dr_image_server_tend(server_of(m));
}

void
dr_migrate_lend_end(Migrate *m)
{
  if (m->server)
    dr_image_server_halt(m->server);
}

gboolean
dr_migrate_lends(const Migrate *m)
{
  return lends(m);
}

/* --- After the guest --- */

/* `away`: the other host has not been heard of for a while. */
static void
answer_user(Migrate *m, gboolean away)
{
  gboolean abort;
  g_autofree char *method = NULL;
  g_autoptr(JsonObject) params = NULL;
  g_autoptr(GError) error = NULL;

  if (!dr_mailbox_take(m->box, &method, &params))
    return;
  abort = g_str_equal(method, "abort");
  if (abort && away) {
    m->lent_given_up = TRUE;
    dr_mailbox_answer(m->box, json_object_new(), NULL);
    return;
  }
  dr_error_set(&error, DR_ERROR_REFUSED, "the guest of VM '%s' has moved; its disks are on their way",
               dr_vm_name(m->vm));
  if (abort)
    dr_error_remedy(&error,
                    "the other host can be reached, and needs them: wait, or give them up over there");
  else
    dr_error_remedy(&error, "their speed is set over there: drover disk bandwidth");
  dr_mailbox_answer(m->box, NULL, error);
}

static void
wait_a_while(Migrate *m, gboolean away)
{
  struct pollfd fd = { .fd = dr_mailbox_fd(m->box), .events = POLLIN };

  poll(&fd, 1, TICK_MS);
  answer_user(m, away);
}

static void
tell_waiting(Migrate *m, const char *why)
{
  g_autofree char *text = NULL;
  const char *peer = dr_json_str(m->request, "peer", "the other host");

  if (why)
    text = g_strdup_printf("its guest runs on %s; its disks are kept here, and %s cannot be reached: %s",
                           peer, peer, why);
  else
    text =
        g_strdup_printf("its guest runs on %s; its disks are kept here until %s has all of them", peer, peer);
  dr_upgrade_note(m->vm, text, FALSE);
}

static void
tell_progress(Migrate *m, gint64 total, gint64 since, gint64 taken_us)
{
  DrProgress progress = DR_PROGRESS_INIT;

  progress.bytes_done = m->fetched;
  progress.bytes_total = total;
  progress.rate_mib = (double)(m->fetched - since) / 1048576 / ((double)(taken_us + 1) / 1e6);
  progress.phase = "fetching disks";
  if (progress.rate_mib > 0)
    progress.expected_ms = (gint64)((double)(total - m->fetched) / 1048.576 / progress.rate_mib);
  dr_job_progress(m->job, &progress);
}

/* TRUE: the other host needs nothing of us any more. */
static gboolean
is_done(Migrate *m, gint64 *heard_us, gint64 *since, gint64 begun_us)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) reply = dr_migrate_ask(m, "move.fetch", NULL, ASK_MS, &error);
  gint64 now = g_get_monotonic_time(), done;
  const char *state = reply ? dr_json_str(reply, "state", "") : "";

  if (!reply) {
    if (now - *heard_us > AWAY_US)
      tell_waiting(m, error->message);
    return FALSE;
  }
  if (now - *heard_us > AWAY_US)
    tell_waiting(m, NULL);
  *heard_us = now;
  done = dr_json_int(reply, "done", m->fetched);
  m->fetched = MAX(m->fetched, done);
  if (*since < 0)
    *since = m->fetched;
  tell_progress(m, dr_json_int(reply, "total", m->fetched), *since, now - begun_us);
  if (g_str_equal(state, "abandoned"))
    g_warning("VM '%s': the other host has given up what it had not fetched of its disks", dr_vm_name(m->vm));
  return g_str_equal(state, "fetched") || g_str_equal(state, "abandoned");
}

void
dr_migrate_lend_serve(Migrate *m)
{
  gint64 begun_us = g_get_monotonic_time(), heard_us = begun_us;
  gint64 since = -1; /* bytes that were there before: an earlier droverd may have served them */
  g_autoptr(GError) error = NULL;

  if (!lends(m))
    return;
  if (!dr_job_enter(m->job, STAGE_SERVE, NULL, &error))
    g_warning("%s", error->message); /* the mark says enough to a recovery */
  tell_waiting(m, NULL);
  dr_disk_job_lend_box(dr_vm_name(m->vm), m->box);
  do {
    dr_image_server_tend(server_of(m));
    wait_a_while(m, g_get_monotonic_time() - heard_us > AWAY_US);
  } while (!m->lent_given_up && !is_done(m, &heard_us, &since, begun_us));
  dr_disk_job_take_box_back(dr_vm_name(m->vm), m->box);
  m->storage_us = g_get_monotonic_time() - begun_us;
  dr_migrate_lend_end(m);
}
