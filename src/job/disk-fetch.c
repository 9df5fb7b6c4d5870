/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Fetching the blocks of a guest that has come without them.
 *
 * While its QEMU lives, each overlay is made whole by a block-stream, which QEMU carries on without us. When the QEMU has ended, by its
 * guest's own will or not, `qemu-img rebase` to no backing image does the same. Both leave an overlay that stands alone, as its
 * header says, and both can be begun again at any time: what is there already is not fetched twice. */
#include "job/disk-fetch.h"
#include "base/error.h"
#include "job/disk-job.h"
#include "job/disk.h"
#include "job/fetch-mirror.h"
#include "job/fetch-tool.h"
#include "job/image-link.h"
#include "job/move-spec.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define KILL_MS 30000
#define LINK_MS 1500
#define LINK_LOOK_US 10000
#define AGAIN_MS 2000 /* until what failed is tried again */

typedef struct {
  const char *name, *path, *overlay, *format, *secret; /* of the list */
  gint64 mib;
  char *job;
  gboolean
      whole; /* journalled: the image beside the overlay has all that the guest has, and is what counts if QEMU ends */
  gboolean done;
} Image;

typedef struct {
  DrDiskJob d;
  const char *move, *peer;
  Image *images;
  guint n;
  gboolean arrived; /* for the journal */
  gboolean abandoned, told;
  gint64 again_us;
  gint64 done, total; /* under `lock` */
} Fetch;

static GMutex lock;
static GHashTable *under_way; /* move -> Fetch, on its thread's stack; under `lock` */

char *
dr_disk_fetch_overlay(const char *path, const char *format)
{
  return g_str_equal(format, "qcow2") ? g_strdup(path) : g_strconcat(path, ".drover-overlay", NULL);
}

JsonArray *
dr_disk_fetch_list(JsonArray *disks)
{
  JsonArray *list = json_array_new();

  for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
    JsonObject *disk = json_array_get_object_element(disks, i), *one;
    const char *name = dr_json_str(disk, "later", NULL), *secret = dr_json_str(disk, "secret", NULL);
    g_autofree char *overlay = NULL;

    if (!name || !g_str_equal(dr_json_str(disk, "role", ""), "copy"))
      continue;
    overlay = dr_disk_fetch_overlay(dr_json_str(disk, "path", ""), dr_json_str(disk, "format", ""));
    one = dr_json("{'name': <%s>, 'path': <%s>, 'overlay': <%s>, 'format': <%s>, 'mib': <%x>}", name,
                  dr_json_str(disk, "path", ""), overlay, dr_json_str(disk, "format", ""),
                  dr_json_int(disk, "mib", 0));
    if (secret)
      json_object_set_string_member(one, "secret", secret);
    json_array_add_object_element(list, one);
  }
  return list;
}

/* --- What the other host asks --- */

static JsonObject *
say(const char *state, gint64 done, gint64 total)
{
  return dr_json("{'state': <%s>, 'done': <%x>, 'total': <%x>}", state, done, total);
}

/* The row of its end stands behind that of the guest's own. */
static char *
row_of(const char *move)
{
  return g_strconcat(move, "/disks", NULL);
}

JsonObject *
dr_disk_fetch_status(DrStore *store, const char *move, const char *peer)
{
  g_autofree char *row = row_of(move), *state = NULL;
  JsonObject *reply = NULL;
  gint64 nothing;
  Fetch *f;

  g_mutex_lock(&lock);
  f = under_way ? g_hash_table_lookup(under_way, move) : NULL;
  if (f && g_strcmp0(f->peer, peer) == 0)
    reply = say("fetching", f->done, f->total);
  g_mutex_unlock(&lock);
  if (reply)
    return reply;
  if (!dr_store_get_move(store, row, &state, &nothing, NULL) || !state)
    return say("unknown", 0, 0);
  return say(state, nothing, nothing);
}

static void
note_progress(Fetch *f)
{
  gint64 done = 0, total = 0;

  for (guint i = 0; i < f->d.watches->len; i++) {
    const DrBlockWatch *watch = f->d.watches->pdata[i];

    done += watch->look.done;
    total += watch->look.total;
  }
  g_mutex_lock(&lock);
  f->done = MAX(f->done, done);
  f->total = MAX(f->total, total);
  g_mutex_unlock(&lock);
}

/* What a row of the stage says. (transfer full) */
static JsonObject *
note_of(const Fetch *f)
{
  JsonObject *note = dr_json("{'arrived': <%b>}", f->arrived);
  JsonArray *whole = json_array_new();

  for (guint i = 0; i < f->n; i++)
    if (f->images[i].whole)
      json_array_add_string_element(whole, f->images[i].name);
  json_object_set_array_member(note, "whole", whole);
  return note;
}

/* Another row of the stage. */
static gboolean
journal(Fetch *f, GError **error)
{
  g_autoptr(JsonObject) note = note_of(f);

  return dr_store_journal(dr_job_host(f->d.job)->store, dr_job_id(f->d.job), DR_STAGE_FETCH, note, error);
}

static gboolean
set_whole(Fetch *f, Image *image, gboolean whole, GError **error)
{
  if (image->whole == whole)
    return TRUE;
  image->whole = whole;
  if (journal(f, error))
    return TRUE;
  image->whole = !whole;
  return FALSE;
}

static Image *
image_of(Fetch *f, const DrBlockWatch *watch)
{
  for (guint i = 0; i < f->n; i++)
    if (g_str_equal(f->images[i].job, watch->id))
      return &f->images[i];
  return NULL;
}

static void
tell(Fetch *f, const char *why)
{
  g_autoptr(DrFindings) findings = dr_findings_new();

  if (f->told)
    return;
  f->told = TRUE;
  g_message("VM '%s': its disks are still on peer '%s': %s", dr_vm_name(f->d.vm), f->peer, why);
  dr_findings_add(findings, DR_FINDING_WARNING, "disk-pull-waits",
                  "see to it that the other host can be reached and its images be read, and that there is "
                  "room here",
                  "fetching the disks is tried again every %d s: %s", AGAIN_MS / 1000, why);
  dr_job_set_findings(f->d.job, findings);
}

/* --- By its QEMU --- */

/* A guest whose write found no room waits for somebody to say `cont`. */
static gboolean
waits_for_room(Fetch *f, DrQmp *qmp)
{
  g_autoptr(JsonObject) status = dr_qmp_call_object(qmp, "query-status", NULL, NULL);
  g_autoptr(JsonArray) devices = NULL;

  if (!status || !g_str_equal(dr_json_str(status, "status", ""), "io-error"))
    return FALSE;
  devices = dr_qmp_call_array(qmp, "query-block", NULL, NULL);
  for (guint i = 0; devices && i < json_array_get_length(devices); i++) {
    JsonObject *device = json_array_get_object_element(devices, i);

    for (guint n = 0; n < f->n; n++)
      if (g_str_equal(dr_json_str(device, "io-status", ""), "nospace") &&
          dr_same_file(dr_json_str(device, "inserted.file", ""), f->images[n].overlay,
                       dr_vm_record(f->d.vm)->cwd))
        return TRUE;
  }
  return FALSE;
}

static gboolean
try_again(DrDiskJob *d, DrQmp *qmp, GError **error)
{
  Fetch *f = d->data;
  gint64 now = g_get_monotonic_time();

  note_progress(f);
  for (guint i = 0; i < d->watches->len; i++) {
    const DrBlockWatch *watch = d->watches->pdata[i];

    if ((watch->look.state == DR_BLOCK_JOB_STOPPED || watch->look.state == DR_BLOCK_JOB_NO_SPACE) &&
        !set_whole(f, image_of(f, watch), FALSE, error)) /* a write has gone to the overlay alone */
      return FALSE;
  }
  if (now < f->again_us)
    return TRUE;
  f->again_us = now + AGAIN_MS * 1000;
  for (guint i = 0; i < d->watches->len; i++) {
    const DrBlockWatch *watch = d->watches->pdata[i];
    gboolean full = watch->look.state == DR_BLOCK_JOB_NO_SPACE;

    if (watch->look.state != DR_BLOCK_JOB_STOPPED && !full)
      continue;
    tell(f, full ? "there is no room here any more" : "an I/O error stopped it");
    dr_qmp_do(qmp, "block-job-resume", dr_json("{'device': <%s>}", watch->id), NULL);
  }
  if (waits_for_room(f, qmp)) {
    tell(f, "the guest waits for room on this host");
    dr_qmp_do(qmp, "cont", NULL, NULL);
  }
  return TRUE;
}

static gboolean
asked(DrDiskJob *d, const char *method, JsonObject *params, JsonObject **ret_reply, GError **error)
{
  Fetch *f = d->data;

  if (!g_str_equal(method, "abort"))
    return FALSE;
  if (dr_vm_check(d->vm)) {
    dr_error_set(error, DR_ERROR_REFUSED,
                 "the guest of VM '%s' runs, and the rest of its disks is on peer '%s'", dr_vm_name(d->vm),
                 f->peer);
    dr_error_remedy(error, "stop the VM first, if that host is lost for good");
    return FALSE;
  }
  *ret_reply = json_object_new();
  f->abandoned = TRUE;
  return TRUE;
}

static gboolean
is_beside(const Image *image)
{
  return !g_str_equal(image->overlay, image->path);
}

static DrFetchMirror
mirror_of(const Image *image)
{
  return (
      DrFetchMirror){ .job = image->job, .path = image->path, .format = image->format, .mib = image->mib };
}

/* An overlay that is whole by itself has no backing image; another one's image has taken its place. */
static gboolean
is_whole(const Image *image, const DrDisk *disk)
{
  DrFetchMirror mirror = mirror_of(image);

  return is_beside(image) ? dr_fetch_mirror_is_done(&mirror, disk) : !dr_node_backing(disk->top);
}

static gboolean
begin(const Image *image, const DrDisk *disk, DrQmp *qmp, GError **error)
{
  DrFetchMirror mirror = mirror_of(image);
  DrBlockStream stream = { .job = image->job, .top = dr_node_name(disk->top), .bytes_s = image->mib << 20 };

  return is_beside(image) ? dr_fetch_mirror_begin(&mirror, disk, qmp, error)
                          : dr_block_stream(qmp, &stream, error);
}

static gboolean
close_one(Image *image, DrQmp *qmp, GError **error)
{
  DrFetchMirror mirror = mirror_of(image);

  image->done = !is_beside(image) || dr_fetch_mirror_close(&mirror, image->overlay, qmp, error);
  return image->done;
}

/* By what it stands on now. */
static const DrDisk *
find_disk(const Image *image, const DrDisks *disks, GError **error)
{
  const DrDisk *disk = dr_disks_find(disks, image->overlay, NULL);

  return disk ? disk : dr_disks_find(disks, image->path, error);
}

/* What there is of it: under way already, to be begun, or done. */
static gboolean
begin_one(Fetch *f, Image *image, const DrDisks *disks, DrQmp *qmp, GError **error)
{
  const DrDisk *disk = find_disk(image, disks, error);
  g_auto(DrBlockJobLook) look = { 0 };
  g_autofree char *what = g_strdup_printf("fetching disk '%s'", disk ? disk->name : "?");

  if (!disk || !dr_block_job_look(qmp, image->job, &look, error))
    return FALSE;
  if (is_whole(image, disk))
    return close_one(image, qmp, error);
  if (!set_whole(f, image, FALSE, error)) /* it was about to be */
    return FALSE;
  if (look.state == DR_BLOCK_JOB_ENDED && /* a mirror that failed */
      !dr_block_job_kill(qmp, image->job, dr_deadline_in(KILL_MS), error))
    return FALSE;
  if ((look.state == DR_BLOCK_JOB_GONE || look.state == DR_BLOCK_JOB_ENDED) &&
      !begin(image, disk, qmp, error))
    return FALSE;
  if (is_beside(image))
    dr_disk_job_watch(&f->d, image->job, what, disk->name);
  else
    dr_disk_job_watch_header(&f->d, image->job, what, disk->name, dr_node_name(disk->top), image->path);
  return TRUE;
}

static gboolean
begin_all(Fetch *f, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&f->d, error);
  g_autoptr(DrDisks) disks = qmp ? dr_disks_read(qmp, dr_vm_record(f->d.vm)->cwd, error) : NULL;
  gboolean begun = disks != NULL;

  g_ptr_array_set_size(f->d.watches, 0);
  for (guint i = 0; begun && i < f->n; i++)
    begun = f->images[i].done || begin_one(f, &f->images[i], disks, qmp, error);
  if (qmp)
    dr_disk_job_give(&f->d, qmp);
  return begun;
}

/* The image is in step with the overlay, each write goes to both, and what was written before is on its disk: from now on it counts. */
static gboolean
complete_one(Fetch *f, const DrBlockWatch *watch, DrQmp *qmp, GError **error)
{
  Image *image = image_of(f, watch);
  DrFetchMirror mirror = mirror_of(image);

  return dr_fetch_mirror_flush(&mirror, qmp, error) && set_whole(f, image, TRUE, error) &&
         dr_qmp_do(qmp, "block-job-complete", dr_json("{'device': <%s>}", watch->id), error);
}

/* Mirrors in step are told to take the overlays' places. */
static gboolean
complete_ready(Fetch *f, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&f->d, error);
  gboolean done = qmp != NULL;

  for (guint i = 0; done && i < f->d.watches->len; i++) {
    const DrBlockWatch *watch = f->d.watches->pdata[i];

    if (watch->look.state == DR_BLOCK_JOB_READY)
      done = complete_one(f, watch, qmp, error);
  }
  if (qmp)
    dr_disk_job_give(&f->d, qmp);
  return done;
}

/* QEMU waits for all requests under way when a job begins or ends, in its main loop, and a request for a block of the other host may wait
 * for its link: then the whole guest would stand still, and its monitor. */
static gboolean
link_is_up(Fetch *f)
{
  return dr_image_link_is_up(f->move);
}

static gboolean
is_calm(DrDiskJob *d)
{
  return link_is_up(d->data);
}

/* A stream that was just taken has its successor in a moment. */
static gboolean
await_link(Fetch *f, GError **error)
{
  DrDeadline deadline = dr_deadline_in(LINK_MS);

  while (!link_is_up(f) && !dr_deadline_passed(deadline))
    g_usleep(LINK_LOOK_US); /* bounded by the deadline */
  return link_is_up(f) || dr_error_set(error, DR_ERROR_CLOSED, "the other host cannot be reached");
}

/* One round: until all have ended, well or not. */
static gboolean
by_qemu(Fetch *f, GError **error)
{
  DrDiskEvent event;

  if (!await_link(f, error))
    return FALSE;
  if (!begin_all(f, error))
    return FALSE;
  if (f->d.watches->len == 0)
    return TRUE;
  if (!dr_disk_job_follow(&f->d, DR_DEADLINE_NEVER, FALSE, &event, error))
    return FALSE;
  if (event != DR_DISK_READY)
    return TRUE;
  return await_link(f, error) && complete_ready(f, error) &&
         dr_disk_job_follow(&f->d, DR_DEADLINE_NEVER, TRUE, &event, error);
}

/* --- By qemu-img --- */

static char *
secret_of(Fetch *f, const Image *image)
{
  g_autoptr(DrArgv) argv = dr_argv_parse((const char *const *)dr_vm_record(f->d.vm)->argv_running, NULL);
  g_autoptr(GHashTable) secrets = argv ? dr_move_spec_secrets(argv) : NULL;

  return image->secret && secrets ? g_strdup(g_hash_table_lookup(secrets, image->secret)) : NULL;
}

static void
answer_user(Fetch *f)
{
  g_autofree char *method = NULL;
  g_autoptr(JsonObject) params = NULL, reply = NULL;
  g_autoptr(GError) error = NULL;

  if (!dr_mailbox_take(f->d.box, &method, &params))
    return;
  asked(&f->d, method, params, &reply, &error);
  if (!reply && !error)
    dr_error_set(&error, DR_ERROR_REFUSED, "the QEMU of VM '%s' has ended, and qemu-img fetches its disks",
                 dr_vm_name(f->d.vm));
  dr_mailbox_answer(f->d.box, g_steal_pointer(&reply), error);
}

static gboolean
run_tool(Fetch *f, const Image *image, GError **error)
{
  g_autofree char *object = secret_of(f, image);
  g_autoptr(DrTool) tool =
      dr_fetch_tool_start(image->overlay, image->path, image->format, image->secret, object, error);
  struct pollfd fds[] = { { .fd = tool ? dr_tool_fd(tool) : -1, .events = POLLIN },
                          { .fd = dr_mailbox_fd(f->d.box), .events = POLLIN } };

  while (tool && !f->abandoned) {
    poll(fds, G_N_ELEMENTS(fds), AGAIN_MS); /* it may take days: its end, or a user's word, ends it */
    if (fds[0].revents)
      return dr_tool_end(tool, error);
    answer_user(f);
  }
  return FALSE;
}

/* An overlay beside an image that took its place is older than that, and is never written into it. */
static gboolean
finish_by_tool(Fetch *f, Image *image, GError **error)
{
  gboolean over = is_beside(image) && (image->whole || access(image->overlay, F_OK) < 0);

  if (!over && !run_tool(f, image, error))
    return FALSE;
  if (!dr_fetch_tool_sync(image->path, error))
    return FALSE;
  if (is_beside(image) && unlink(image->overlay) < 0 && errno != ENOENT)
    return dr_error_set_errno(error, errno, "cannot remove '%s'", image->overlay);
  image->done = TRUE;
  return TRUE;
}

static gboolean
by_tool(Fetch *f, GError **error)
{
  for (guint i = 0; i < f->n; i++)
    if (!f->images[i].done && !finish_by_tool(f, &f->images[i], error))
      return FALSE;
  return TRUE;
}

/* --- All of it --- */

static gboolean
all_done(const Fetch *f)
{
  for (guint i = 0; i < f->n; i++)
    if (!f->images[i].done)
      return FALSE;
  return TRUE;
}

/* Readable when a user has a question. */
static void
wait_a_while(Fetch *f)
{
  struct pollfd fd = { .fd = dr_mailbox_fd(f->d.box), .events = POLLIN };

  poll(&fd, 1, AGAIN_MS);
  answer_user(f);
}

static void
one_round(Fetch *f)
{
  g_autoptr(GError) error = NULL;
  gboolean lives = dr_vm_check(f->d.vm);

  if (lives ? by_qemu(f, &error) : by_tool(f, &error))
    return;
  if (lives != dr_vm_check(f->d.vm) || f->abandoned)
    return;
  tell(f, error ? error->message : "it was ended");
  wait_a_while(f);
}

/* The other host keeps its images until this is on disk. */
static gboolean
note_end(Fetch *f)
{
  g_autofree char *row = row_of(f->move);
  g_autoptr(GError) error = NULL;

  if (dr_store_put_move(dr_job_host(f->d.job)->store, row, dr_vm_name(f->d.vm),
                        f->abandoned ? "abandoned" : "fetched", f->total, &error))
    return TRUE;
  tell(f, error->message);
  return FALSE;
}

static void
fetch_init(Fetch *f, DrJob *job, JsonArray *images, JsonObject *note)
{
  g_auto(GStrv) whole = note ? dr_json_strv(dr_json_arr(note, "whole")) : NULL;

  dr_disk_job_init(&f->d, job);
  dr_vm_set_aside(dr_job_vm(job));
  f->d.asked = asked;
  f->d.tick = try_again;
  f->d.calm = is_calm;
  f->d.data = f;
  f->n = json_array_get_length(images);
  f->images = g_new0(Image, f->n);
  for (guint i = 0; i < f->n; i++) {
    JsonObject *one = json_array_get_object_element(images, i);

    f->images[i] = (Image){ .name = dr_json_str(one, "name", ""),
                            .path = dr_json_str(one, "path", ""),
                            .overlay = dr_json_str(one, "overlay", ""),
                            .format = dr_json_str(one, "format", ""),
                            .secret = dr_json_str(one, "secret", NULL),
                            .mib = dr_json_int(one, "mib", 0) };
    f->images[i].whole = whole && g_strv_contains((const char *const *)whole, f->images[i].name);
    /* Of this move alone, and short (a node has 31 characters): nodes of an earlier one keep their names, on the guest's command line too. */
    f->images[i].job = g_strdup_printf("drover-%.8s-%s", f->move, f->images[i].name);
  }
  g_mutex_lock(&lock);
  if (!under_way)
    under_way = g_hash_table_new(g_str_hash, g_str_equal);
  g_hash_table_insert(under_way, (gpointer)f->move, f);
  g_mutex_unlock(&lock);
}

static void
fetch_clear(Fetch *f)
{
  g_mutex_lock(&lock);
  g_hash_table_remove(under_way, f->move);
  g_mutex_unlock(&lock);
  dr_disk_job_clear(&f->d);
  for (guint i = 0; i < f->n; i++)
    g_free(f->images[i].job);
  g_free(f->images);
}

gboolean
dr_disk_fetch_run(DrJob *job, const char *move, const char *peer, JsonArray *images, gboolean arrived,
                  JsonObject *note, GError **error)
{
  Fetch f = { .move = move, .peer = peer, .arrived = arrived };
  g_autoptr(GError) local = NULL;
  gboolean whole;

  fetch_init(&f, job, images, note);
  if (!dr_job_enter(job, DR_STAGE_FETCH, note_of(&f), &local))
    g_warning("VM '%s': %s", dr_vm_name(f.d.vm), local->message); /* a recovery comes here once more */
  while (!all_done(&f) && !f.abandoned)
    one_round(&f);
  while (!note_end(&f))
    wait_a_while(&f);
  whole = !f.abandoned;
  if (!whole) {
    dr_error_set(
        error, DR_ERROR_ATTENTION,
        "the disks of VM '%s' were given up before all of them had come from peer '%s': they are not whole",
        dr_vm_name(f.d.vm), peer);
    dr_error_remedy(error, "what is here can be read after: qemu-img rebase -u -b '' IMAGE (of a raw image: "
                           "IMAGE.drover-overlay)");
  }
  fetch_clear(&f);
  return whole;
}
