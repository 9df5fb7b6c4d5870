/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pulls a disk's backing images into its top image. */
#include "job/disk-pull.h"
#include "base/error.h"
#include "job/pull-part.h"

#include <string.h>

#define STAGE_PREFLIGHT "preflight"
#define STAGE_PULL "pull"
#define STAGE_CLOSE "close"

typedef struct {
  DrDiskJob d;
  JsonObject *request;
  DrPullPart *part;
  DrPullAgain again;
} Pull;

static const char *
name_of(const Pull *p)
{
  return dr_json_str(p->request, "disk", "");
}

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
is_served(const DrNode *node)
{
  return g_str_has_prefix(dr_node_file(node), "nbd") || strstr(dr_node_file(node), "\"nbd\"");
}

/* Where QEMU cannot learn what a server has, its connection being broken, it gives the guest whatever was in the buffer (see
 * RECONNECT_S in stream-source.c). Only a header tells that it waits for the server instead. */
static void
warn_of_servers(Pull *p, const DrDisk *disk, const DrNode *base)
{
  for (const DrNode *node = disk->top, *below; (below = dr_node_backing(node)) && below != base;
       node = below) {
    const char *header = dr_node_backing_name(node);

    if (!is_served(below) || (header && strstr(header, "\"reconnect-delay\"")))
      continue;
    dr_findings_add(
        p->again.findings, DR_FINDING_WARNING, "disk-pull-remote",
        "see to it that the server stays until the pull has ended, or begin by drover run --stream",
        "'%s' is pulled from a server: if it goes away meanwhile, QEMU may give the guest wrong data",
        dr_node_file(below));
    dr_job_set_findings(p->d.job, p->again.findings);
  }
}

static gboolean
look(Pull *p, DrQmp *qmp, GError **error)
{
  const char *cwd = dr_vm_record(p->d.vm)->cwd;
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, cwd, error);
  const DrDisk *disk = disks ? dr_disks_find(disks, name_of(p), error) : NULL;
  DrNode *base;

  if (!disk || !find_base(disk, dr_json_str(p->request, "base", NULL), cwd, &base, error) ||
      !dr_pull_part_has_work(disk->name, disk, base, error))
    return FALSE;
  warn_of_servers(p, disk, base);
  p->part = dr_pull_part_new(name_of(p), disk, base);
  return TRUE;
}

/* --- The job in QEMU --- */

static gboolean
try_again(DrDiskJob *d, DrQmp *qmp, GError **error)
{
  Pull *p = d->data;

  if (dr_pull_again_is_due(&p->again))
    dr_pull_try_again(&p->again, d, qmp);
  return TRUE;
}

/* --- All of it --- */

static void
pull_init(Pull *p, DrJob *job)
{
  dr_disk_job_init(&p->d, job);
  dr_pull_again_init(&p->again);
  dr_vm_set_aside(dr_job_vm(job));
  p->d.asked = dr_disk_job_asked_abort;
  p->d.tick = try_again;
  p->d.data = p;
  p->request = dr_job_request(job);
}

static void
pull_clear(Pull *p)
{
  dr_disk_job_clear(&p->d);
  dr_pull_again_clear(&p->again);
  g_clear_pointer(&p->part, dr_pull_part_free);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Pull, pull_clear)

static JsonObject *
result(const Pull *p)
{
  const DrBlockWatch *watch = p->d.watches->pdata[0];

  return dr_json("{'disk': <%s>, 'bytes_moved': <%x>, 'total_ms': <%d>}", dr_json_str(p->request, "disk", ""),
                 watch->look.done, (double)(g_get_monotonic_time() - p->d.begun_us) / 1000);
}

static gboolean
undo(Pull *p, GError *cause, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&p->d, NULL);

  if (qmp) {
    dr_pull_part_kill(p->part, qmp);
    dr_disk_job_give(&p->d, qmp);
  }
  g_propagate_error(error, cause);
  return FALSE;
}

static gboolean
finish(Pull *p, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&p->d, error);
  gboolean done = qmp && dr_pull_part_close(p->part, qmp, error);

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

gboolean
dr_disk_pull_run(DrJob *job, GError **error)
{
  g_auto(Pull) p = { 0 };
  gboolean begun;
  DrQmp *qmp;

  pull_init(&p, job);
  if (!dr_job_enter(job, STAGE_PREFLIGHT, NULL, error))
    return FALSE;
  qmp = dr_disk_job_take(&p.d, error);
  if (!qmp)
    return FALSE;
  begun = look(&p, qmp, error) && dr_job_enter(job, STAGE_PULL, dr_pull_part_note(p.part), error) &&
          dr_pull_part_begin(p.part, qmp, dr_json_int(p.request, "bandwidth", 0), error);
  dr_disk_job_give(&p.d, qmp);
  if (!begun)
    return FALSE;
  dr_pull_part_watch(p.part, &p.d);
  return to_the_end(&p, error);
}

/* --- Recovery --- */

static gboolean
load(Pull *p, const char **ret_stage, GError **error)
{
  g_autoptr(JsonArray) journal =
      dr_store_load_journal(dr_job_host(p->d.job)->store, dr_job_id(p->d.job), error);

  for (guint i = 0; journal && i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i);

    *ret_stage = g_intern_string(dr_json_str(entry, "stage", ""));
    if (!p->part)
      p->part = dr_pull_part_from_note(name_of(p), dr_json_obj(entry, "note"));
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
  if (!p.part) {
    dr_error_set(error, DR_ERROR_CLOSED, "droverd ended before the pull had begun");
    return dr_error_remedy(error, "start it again");
  }
  dr_job_step(job, stage);
  dr_pull_part_watch(p.part, &p.d);
  if (g_str_equal(stage, STAGE_CLOSE)) /* it had ended well; it may have been dismissed */
    return finish(&p, error);
  dr_job_may_return(job);
  return to_the_end(&p, error);
}
