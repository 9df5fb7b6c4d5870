/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A revert of a VM whose QEMU has ended: no old guest to take anything from, or to go back to. What the snapshot's record says of the machine
 * stands for it, as what the other host says does for a guest that comes from there (arrival.h). */
#include "base/error.h"
#include "job/arrival.h"
#include "job/block-job.h"
#include "job/disk-image.h"
#include "job/revert-internal.h"
#include "job/snapshot.h"
#include "qemu/tool.h"
#include "vm/console.h"
#include "vm/record.h"
#include "vm/user.h"

#include <string.h>
#include <unistd.h>

#define CREATE_MS 60000
#define SAYS_MAX 4096
#define KILL_MS 10000

/* --- What there is to start --- */

static void
set_words(JsonObject *spec, const char *member, char **words)
{
  json_object_set_array_member(spec, member, dr_json_array_from_strv((const char *const *)words));
}

/* The machine of then, with the VM's own environment. (transfer full) */
static JsonObject *
spec_of(Revert *r, GError **error)
{
  const DrVmRecord *record = dr_vm_record(r->u.vm);
  JsonObject *machine = dr_json_obj(r->record, "machine"), *spec;

  if (!machine || !dr_json_arr(r->record, "argv")) {
    dr_error_set(error, DR_ERROR_UNSUPPORTED,
                 "VM '%s' does not run, and snapshot '%s' does not have all that is needed to start it anew",
                 record->name, r->name);
    dr_error_remedy(error, "start a VM from the snapshot's images: drover snapshot show %s %s", record->name,
                    r->name);
    return NULL;
  }
  spec = dr_json_dup_object(machine);
  json_object_set_array_member(spec, "argv", json_array_ref(dr_json_arr(r->record, "argv")));
  set_words(spec, "argv_given", record->argv_given);
  set_words(spec, "env", record->env);
  json_object_set_string_member(spec, "cwd", record->cwd);
  return spec;
}

static gboolean
read_spec(Revert *r, JsonObject *spec, GError **error)
{
  DrVmRecord scratch = { 0 }; /* the VM's own is what it was */

  r->u.pre = dr_move_spec_read(spec, &scratch, error);
  dr_vm_record_clear(&scratch);
  return r->u.pre != NULL;
}

/* Its command line is of before the snapshot: there the disks stand on the images themselves. */
static void
add_items(Revert *r)
{
  JsonArray *splits = dr_json_arr(r->record, "disks");

  for (guint i = 0; splits && i < json_array_get_length(splits); i++) {
    JsonObject *split = json_array_get_object_element(splits, i);
    Item *item = g_new0(Item, 1);

    item->disk = g_strdup(dr_json_str(split, "disk", ""));
    item->base = g_strdup(dr_json_str(split, "base", ""));
    item->base_format = g_strdup(dr_json_str(split, "base_format", ""));
    item->top = g_strdup(dr_json_str(split, "base", ""));
    item->overlay = dr_revert_overlay_name(dr_json_str(split, "overlay", item->base));
    item->node = dr_block_id("revert");
    item->file_node = g_strconcat(item->node, "-file", NULL);
    item->bytes = dr_json_int(split, "bytes", 0);
    g_ptr_array_add(r->items, item);
    dr_revert_check_image(r, split);
  }
}

static gboolean
preflight(Revert *r, JsonObject *spec, GError **error)
{
  DrUpgrade *u = &r->u;
  g_autofree char *doing = g_strdup_printf("revert VM '%s' to snapshot '%s'", dr_vm_name(u->vm), r->name);
  g_autoptr(JsonArray) snapshots = NULL;

  if (!read_spec(r, spec, error))
    return FALSE;
  dr_revert_check_record(r);
  add_items(r);
  dr_preflight_promise(u->pre, "this host");
  snapshots = dr_store_load_snapshots(u->host->store, dr_vm_name(u->vm), error);
  if (!snapshots)
    return FALSE;
  dr_revert_choose_left_dead(r, snapshots);
  if (!dr_revert_swap_images(r, error))
    return FALSE;
  u->pre->to_make = g_ptr_array_new(); /* the new overlays */
  for (guint i = 0; i < r->items->len; i++)
    g_ptr_array_add(u->pre->to_make, ((Item *)r->items->pdata[i])->overlay);
  dr_preflight_arrival(u->pre, u->vm, NULL);
  dr_job_set_findings(u->job, u->pre->findings);
  return !dr_findings_block(u->pre->findings) || dr_findings_to_error(u->pre->findings, doing, error);
}

/* --- The overlays --- */

static gboolean
make_overlay(Item *item, const DrArgv *argv, GError **error)
{
  g_autofree char *bytes = g_strdup_printf("%" G_GINT64_FORMAT, item->bytes), *said = NULL;
  g_auto(GStrv) launcher = dr_qemu_user_launcher(argv), words = NULL;
  g_autoptr(GStrvBuilder) all = g_strv_builder_new();

  g_strv_builder_addv(all, (const char **)launcher);
  g_strv_builder_add_many(all, "qemu-img", "create", "-q", "-f", "qcow2", "-b", item->base, "-F",
                          item->base_format, "--", item->overlay, bytes, NULL);
  words = g_strv_builder_end(all);
  item->made = dr_image_reserve(item->overlay, getpid(), error);
  said = item->made && dr_qemu_user_give(argv, item->overlay, error)
             ? dr_tool_run((const char *const *)words, SAYS_MAX, CREATE_MS, error)
             : NULL;
  if (!said)
    g_prefix_error(error, "cannot make the overlay '%s' of disk '%s': ", item->overlay, item->disk);
  return said != NULL;
}

static gboolean
make_overlays(Revert *r, GError **error)
{
  for (guint i = 0; i < r->items->len; i++)
    if (!make_overlay(r->items->pdata[i], r->u.pre->truth, error))
      return FALSE;
  return TRUE;
}

/* --- Starting it --- */

/* The record is of this boot from now on, and no process of an earlier one is meant. */
static gboolean
renew(DrUpgrade *u, GError **error)
{
  DrVmRecord *record = dr_vm_record(u->vm);

  dr_vm_lock(u->vm);
  record->id = (DrProcId){ 0 };
  g_free(record->boot_id);
  record->boot_id = g_strdup(dr_boot_id());
  dr_vm_unlock(u->vm);
  return dr_vm_save(u->vm, error);
}

static gboolean
start(Revert *r, JsonObject *spec, GError **error)
{
  DrUpgrade *u = &r->u;
  JsonArray *forwards = dr_json_arr(spec, "forwards");

  u->spec = spec;
  u->plan.revert = TRUE;
  u->plan.cold = !dr_json_obj(r->record, "memory");
  u->plan.version_before = g_strdup(dr_vm_record(u->vm)->qemu_version);
  u->plan.forwards = forwards ? json_array_ref(forwards) : json_array_new();
  u->pre->was_running = TRUE;
  return renew(u, error) && dr_revert_hand_memory(r, error) &&
         dr_upgrade_start_arrival(u, dr_arrival_make_needs, error) && dr_revert_verify_disks(r, error) &&
         dr_upgrade_prepare_console(u, error);
}

static gboolean
run(Revert *r, GError **error)
{
  return dr_job_enter(r->u.job, DR_STAGE_TRANSFER, NULL, error) && dr_upgrade_prepare_mark(&r->u, error) &&
         dr_revert_load_memory(r, error) && dr_upgrade_switch_over(&r->u, error);
}

gboolean
dr_revert_undo_dead(Revert *r, GError *cause, GError **error)
{
  DrUpgrade *u = &r->u;
  gboolean keep = r->keep || dr_upgrade_is_chosen(u);

  g_clear_pointer(&u->dest, dr_qmp_free);
  if (u->dest_id.pid && !dr_proc_kill(&u->dest_id, KILL_MS, NULL))
    g_warning("VM '%s': its new QEMU (pid %d) does not end", dr_vm_name(u->vm), u->dest_id.pid);
  dr_console_abort(dr_vm_console(u->vm));
  dr_upgrade_remove_leftovers(u);
  if (!keep)
    dr_revert_remove_overlays(r, NULL);
  dr_vm_give(u->vm, NULL);
  g_propagate_error(error, cause);
  return FALSE;
}

/* With the mark the way is forward, whatever did not answer in time. */
static gboolean
fail(Revert *r, GError *cause, GError **error)
{
  g_autoptr(GError) reason = NULL;

  r->keep = dr_upgrade_is_chosen(&r->u);
  if (r->keep && dr_upgrade_settle(&r->u, &reason) == DR_ON_DESTINATION) {
    g_error_free(cause);
    return dr_revert_commit(r, error);
  }
  if (reason) {
    g_error_free(cause);
    cause = g_steal_pointer(&reason);
  }
  return dr_revert_undo_dead(r, cause, error);
}

gboolean
dr_revert_run_dead(Revert *r, GError **error)
{
  DrUpgrade *u = &r->u;
  g_autoptr(JsonObject) spec = NULL;
  GError *cause = NULL;

  dr_vm_reserve(u->vm, "a revert");
  r->dead = TRUE;
  r->record = dr_snapshot_load(u->vm, r->name, &cause);
  spec = r->record ? spec_of(r, &cause) : NULL;
  if (!spec || !preflight(r, spec, &cause) ||
      !dr_job_enter(u->job, DR_STAGE_CREATE, dr_revert_note(r), &cause) || !make_overlays(r, &cause) ||
      !start(r, spec, &cause) || !run(r, &cause)) {
    u->spec = NULL;
    return fail(r, cause, error);
  }
  u->spec = NULL;
  return dr_revert_commit(r, error);
}
