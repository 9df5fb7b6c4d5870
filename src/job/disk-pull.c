/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pulls a disk's backing images into its top image. */
#include "job/disk-pull.h"
#include "base/error.h"
#include "job/disk-image.h"
#include "job/disk-job.h"
#include "job/disk.h"

#include <string.h>

#define STAGE_PREFLIGHT "preflight"
#define STAGE_PULL "pull"
#define STAGE_CLOSE "close"
#define KILL_MS 30000
#define AGAIN_US (2 * G_USEC_PER_SEC) /* how often a source that cannot be read is tried again */

typedef struct {
  DrDiskJob d;
  JsonObject *request;
  char *job, *top;
  char *base;      /* nullable: node that stays below */
  char *base_file; /* nullable: its file, for the header */
  GPtrArray *old;
  gint64 again_us;
  gboolean told;
} Pull;

/* --- Preflight --- */

static gboolean
fits(const DrNode *node, const char *name)
{
  return g_str_equal(dr_node_name(node), name) || g_str_equal(dr_node_file(node), name);
}

/* The names of what is below, for a message. */
static char *
chain_of(const DrNode *node)
{
  GString *names = g_string_new(NULL);

  for (node = dr_node_backing(node); node; node = dr_node_backing(node))
    g_string_append_printf(names, "%s%s", names->len ? ", " : "", dr_node_file(node));
  return g_string_free(names, FALSE);
}

static gboolean
find_base(const DrDisk *disk, const char *name, const char *cwd, DrNode **ret_base, GError **error)
{
  g_autofree char *path = name && strchr(name, '/') ? g_canonicalize_filename(name, cwd) : NULL;
  g_autofree char *chain = NULL;

  *ret_base = NULL;
  if (!name)
    return TRUE;
  for (DrNode *node = dr_node_backing(disk->top); node; node = dr_node_backing(node))
    if (fits(node, name) || (path && fits(node, path))) {
      *ret_base = node;
      return TRUE;
    }
  chain = chain_of(disk->top);
  dr_error_set(error, DR_ERROR_NOT_FOUND, "'%s' is not below disk '%s'", name, disk->name);
  return dr_error_remedy(error, "below it are: %s", chain);
}

static gboolean
has_work(const DrDisk *disk, const DrNode *base, GError **error)
{
  const DrNode *backing = dr_node_backing(disk->top);

  if (disk->read_only)
    return dr_error_set(error, DR_ERROR_REFUSED, "disk '%s' is read-only: nothing can be pulled into it",
                        disk->name);
  if (!backing)
    return dr_error_set(error, DR_ERROR_REFUSED, "disk '%s' has no backing image: there is nothing to pull",
                        disk->name);
  if (backing == base)
    return dr_error_set(error, DR_ERROR_REFUSED, "disk '%s' stands on '%s' already", disk->name,
                        dr_node_file(base));
  return TRUE;
}

static gboolean
look(Pull *p, DrQmp *qmp, GError **error)
{
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, dr_vm_record(p->d.vm)->cwd, error);
  const DrDisk *disk = disks ? dr_disks_find(disks, dr_json_str(p->request, "disk", ""), error) : NULL;
  DrNode *base;

  if (!disk ||
      !find_base(disk, dr_json_str(p->request, "base", NULL), dr_vm_record(p->d.vm)->cwd, &base, error) ||
      !has_work(disk, base, error))
    return FALSE;
  p->top = g_strdup(dr_node_name(disk->top));
  p->base = base ? g_strdup(dr_node_name(base)) : NULL;
  p->base_file = base && *dr_node_file(base) == '/' ? g_strdup(dr_node_file(base)) : NULL;
  p->old = dr_node_named_tree(dr_node_backing(disk->top), base);
  return TRUE;
}

/* --- The job in QEMU --- */

/* A parent that cannot be read for a moment (a server that is away) is no reason to give up: the guest has its own reads of
 * it to wait for, and what was pulled stays. */
static gboolean
start_stream(Pull *p, DrQmp *qmp, GError **error)
{
  JsonObject *arguments = dr_json("{'job-id': <%s>, 'device': <%s>, 'speed': <%x>, 'on-error': <'stop'>, "
                                  "'auto-finalize': <true>, 'auto-dismiss': <false>}",
                                  p->job, p->top, dr_json_int(p->request, "bandwidth", 0) * 1048576);

  if (p->base)
    json_object_set_string_member(arguments, "base-node", p->base);
  if (p->base_file) /* QEMU would write the name that it was opened by, from its own directory */
    json_object_set_string_member(arguments, "backing-file", p->base_file);
  if (dr_qmp_do(qmp, "block-stream", arguments, error))
    return TRUE;
  g_prefix_error(error, "cannot pull disk '%s': ", dr_json_str(p->request, "disk", ""));
  return FALSE;
}

static gboolean
try_again(DrDiskJob *d, DrQmp *qmp, GError **error)
{
  Pull *p = d->data;
  const DrBlockWatch *watch = d->watches->pdata[0];
  gint64 now = g_get_monotonic_time();
  g_autoptr(DrFindings) findings = NULL;
  g_autoptr(GError) local = NULL;

  if ((watch->look.state != DR_BLOCK_JOB_STOPPED && watch->look.state != DR_BLOCK_JOB_NO_SPACE) ||
      now < p->again_us)
    return TRUE;
  p->again_us = now + AGAIN_US;
  if (!p->told) {
    findings = dr_findings_new();
    dr_findings_add(findings, DR_FINDING_WARNING, "disk-pull-waits",
                    "see to it that the backing image can be read, or that there is room",
                    "%s was stopped by an I/O error, and is tried again every %d s", watch->what,
                    (int)(AGAIN_US / G_USEC_PER_SEC));
    dr_job_set_findings(d->job, findings);
    p->told = TRUE;
  }
  if (!dr_qmp_do(qmp, "block-job-resume", dr_json("{'device': <%s>}", watch->id), &local))
    g_debug("block-job-resume: %s", local->message);
  return TRUE;
}

static gboolean
asked(DrDiskJob *d, const char *method, JsonObject *params, JsonObject **ret_reply, GError **error)
{
  if (!g_str_equal(method, "abort"))
    return FALSE;
  *ret_reply = json_object_new();
  return TRUE;
}

/* --- All of it --- */

static void
pull_init(Pull *p, DrJob *job)
{
  dr_disk_job_init(&p->d, job);
  dr_vm_set_aside(dr_job_vm(job));
  p->d.asked = asked;
  p->d.tick = try_again;
  p->d.data = p;
  p->request = dr_job_request(job);
}

static void
pull_clear(Pull *p)
{
  dr_disk_job_clear(&p->d);
  g_clear_pointer(&p->old, g_ptr_array_unref);
  g_free(p->job);
  g_free(p->top);
  g_free(p->base);
  g_free(p->base_file);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Pull, pull_clear)

static JsonObject *
result(const Pull *p)
{
  const DrBlockWatch *watch = p->d.watches->pdata[0];

  return dr_json("{'disk': <%s>, 'bytes_moved': <%x>, 'total_ms': <%d>}", dr_json_str(p->request, "disk", ""),
                 watch->look.done, (double)(g_get_monotonic_time() - p->d.begun_us) / 1000);
}

/* It has done its work; the images below go. */
static gboolean
let_go(Pull *p, DrQmp *qmp, GError **error)
{
  if (!dr_block_job_kill(qmp, p->job, dr_deadline_in(KILL_MS), error))
    return FALSE;
  dr_nodes_close(qmp, p->old);
  return TRUE;
}

static gboolean
undo(Pull *p, GError *cause, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&p->d, NULL);

  if (qmp) {
    dr_block_job_kill(qmp, p->job, dr_deadline_in(KILL_MS), NULL);
    dr_disk_job_give(&p->d, qmp);
  }
  g_propagate_error(error, cause);
  return FALSE;
}

static gboolean
finish(Pull *p, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&p->d, error);
  gboolean done = qmp && let_go(p, qmp, error);

  if (qmp)
    dr_disk_job_give(&p->d, qmp);
  if (done)
    dr_job_set_result(p->d.job, result(p));
  return done;
}

static gboolean
to_the_end(Pull *p, GError **error)
{
  GError *cause = NULL;
  DrDiskEvent event;

  if (!dr_disk_job_follow(&p->d, DR_DEADLINE_NEVER, FALSE, &event, &cause))
    return undo(p, cause, error);
  if (event == DR_DISK_ASKED) {
    dr_error_set(&cause, DR_ERROR_CANCELLED, "aborted; what was pulled stays");
    return undo(p, cause, error);
  }
  return dr_job_enter(p->d.job, STAGE_CLOSE, NULL, error) && finish(p, error);
}

static JsonObject *
note(const Pull *p)
{
  JsonObject *object = dr_json("{'job': <%s>, 'top': <%s>}", p->job, p->top);
  JsonArray *old = json_array_new();

  for (guint i = 0; i < p->old->len; i++)
    json_array_add_string_element(old, p->old->pdata[i]);
  json_object_set_array_member(object, "old", old);
  return object;
}

static void
watch(Pull *p)
{
  g_autofree char *what = g_strdup_printf("the pull of disk '%s'", dr_json_str(p->request, "disk", ""));

  dr_disk_job_watch(&p->d, p->job, what);
}

gboolean
dr_disk_pull_run(DrJob *job, GError **error)
{
  g_auto(Pull) p = { 0 };
  gboolean begun;
  DrQmp *qmp;

  pull_init(&p, job);
  p.job = dr_block_id("pull");
  if (!dr_job_enter(job, STAGE_PREFLIGHT, NULL, error))
    return FALSE;
  qmp = dr_disk_job_take(&p.d, error);
  if (!qmp)
    return FALSE;
  begun =
      look(&p, qmp, error) && dr_job_enter(job, STAGE_PULL, note(&p), error) && start_stream(&p, qmp, error);
  dr_disk_job_give(&p.d, qmp);
  if (!begun)
    return FALSE;
  watch(&p);
  return to_the_end(&p, error);
}

/* --- Recovery --- */

static gboolean
load(Pull *p, const char **ret_stage, GError **error)
{
  g_autoptr(JsonArray) journal =
      dr_store_load_journal(dr_job_host(p->d.job)->store, dr_job_id(p->d.job), error);

  p->old = g_ptr_array_new_with_free_func(g_free);
  for (guint i = 0; journal && i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i), *said = dr_json_obj(entry, "note");
    JsonArray *old = said ? dr_json_arr(said, "old") : NULL;

    *ret_stage = g_intern_string(dr_json_str(entry, "stage", ""));
    if (!old)
      continue;
    p->job = g_strdup(dr_json_str(said, "job", ""));
    p->top = g_strdup(dr_json_str(said, "top", ""));
    for (guint n = 0; n < json_array_get_length(old); n++)
      g_ptr_array_add(p->old, g_strdup(json_array_get_string_element(old, n)));
  }
  return journal != NULL;
}

gboolean
dr_disk_pull_recover(DrJob *job, GError **error)
{
  g_auto(Pull) p = { 0 };
  const char *stage = "queued";

  pull_init(&p, job);
  if (!load(&p, &stage, error))
    return FALSE;
  if (!p.job) {
    dr_error_set(error, DR_ERROR_CLOSED, "droverd ended before the pull had begun");
    return dr_error_remedy(error, "start it again");
  }
  dr_job_step(job, stage);
  watch(&p);
  if (g_str_equal(stage, STAGE_CLOSE)) /* it had ended well; it may have been dismissed */
    return finish(&p, error);
  dr_job_may_return(job);
  return to_the_end(&p, error);
}
