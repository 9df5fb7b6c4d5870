/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Versioned machine types carry what each QEMU must do to look and speak as an old one did. One without a version means to
 * each QEMU what that one likes best. */
#include "job/preflight-unversioned.h"
#include "qemu/firmware.h"
#include "vm/describe.h"

#include <string.h>
#include <sys/stat.h>

#define FIRMWARE_BLOCK "pc.bios"

/* --- The stream --- */

/* It cannot be told any more to do without: this is read at its start. */
static void
check_stream(DrPreflight *p, DrVm *vm, int source_version)
{
  g_autoptr(DrArgv) running = dr_argv_parse((const char *const *)dr_vm_record(vm)->argv_running, NULL);

  if (source_version < DR_QEMU(10, 0) || p->caps->version_number >= DR_QEMU(10, 0) ||
      (running && dr_argv_switchover_is_off(running)))
    return;
  dr_findings_add(p->findings, DR_FINDING_BLOCKER, "switchover-start",
                  "upgrade it to a QEMU from 10.0 on first: under drover that one is started with -global "
                  "migration.send-switchover-start=off",
                  "machine type '%s' has no version, and its QEMU was started without -global "
                  "migration.send-switchover-start=off: what it sends cannot be read by %s %s",
                  dr_inventory_machine(p->inventory), p->binary, p->caps->version);
}

/* --- The firmware --- */

/* Of microvm (hw/i386/microvm.c), of which alone it depends on the QEMU and on how that was packaged. NULL: it has a path. */
static const char *
firmware_name(const DrPreflight *p)
{
  const DrOpt *bios = dr_argv_find_last(p->truth, "bios");
  g_autoptr(DrOpts) machine = dr_argv_effective(p->truth, "machine", NULL);
  gboolean acpi = TRUE;

  if (!g_str_equal(dr_inventory_machine(p->inventory), "microvm"))
    return NULL;
  if (bios)
    return strchr(bios->value, '/') ? NULL : bios->value;
  if (machine)
    dr_opts_get_bool(machine, "acpi", TRUE, &acpi, NULL);
  return acpi ? "bios-microvm.bin" : "qboot.rom";
}

static char *
find(DrPreflight *p, const DrVmRecord *record, const char *const *launcher, const char *program,
     const char *name, guint64 *ret_size)
{
  g_autoptr(GStrvBuilder) builder = g_strv_builder_new();
  g_auto(GStrv) words = NULL;

  g_strv_builder_addv(builder, (const char **)launcher);
  g_strv_builder_add(builder, program);
  for (DrOpt *opt = NULL; (opt = dr_argv_next(p->truth, "L", opt));) {
    g_autofree char *dir = g_canonicalize_filename(opt->value, record->cwd);

    g_strv_builder_add_many(builder, "-L", dir, NULL);
  }
  words = g_strv_builder_end(builder);
  return dr_firmware_find((const char *const *)words, record->env, name, ret_size);
}

/* What the QEMU of now was started with, if drover has named its firmware at an earlier upgrade. */
static char *
find_running(const DrVmRecord *record, guint64 *ret_size)
{
  g_autoptr(DrArgv) running = dr_argv_parse((const char *const *)record->argv_running, NULL);
  const DrOpt *bios = running ? dr_argv_find_last(running, "bios") : NULL;
  struct stat st;

  if (!bios || !g_path_is_absolute(bios->value) || stat(bios->value, &st) < 0)
    return NULL;
  *ret_size = (guint64)st.st_size;
  return g_strdup(bios->value);
}

/* The stream carries the firmware's bytes, and the same size is all that it asks for; the file serves the guest's next
 * reset. */
static void
pin_firmware(DrPreflight *p, DrVm *vm, const char *qemu)
{
  static const char *const none[] = { NULL };
  const DrVmRecord *record = dr_vm_record(vm);
  const char *name = firmware_name(p);
  guint64 wanted = dr_inventory_block_size(p->inventory, FIRMWARE_BLOCK);
  g_autofree char *program = dr_describe_program(dr_argv_program(p->truth), record);
  g_autofree char *theirs = NULL, *ours = NULL;
  guint64 their_size = 0, our_size = 0;

  if (!name || !wanted)
    return;
  theirs = find(p, record, qemu ? none : dr_argv_launcher(p->truth), qemu ? p->binary : program, name,
                &their_size);
  if (theirs && their_size == wanted)
    return;
  ours = find_running(record, &our_size);
  if (!ours || our_size != wanted) {
    g_free(ours);
    ours = find(p, record, dr_argv_launcher(p->truth), program, name, &our_size);
  }
  if (ours && our_size == wanted) {
    dr_argv_remove_all(p->truth, "bios");
    dr_argv_append(p->truth, "bios", ours);
    dr_findings_add(p->findings, DR_FINDING_NOTE, "firmware", NULL,
                    "firmware: %s, for %s has another '%s' (%" G_GUINT64_FORMAT
                    " bytes, not %" G_GUINT64_FORMAT ")",
                    ours, p->binary, name, their_size, wanted);
    return;
  }
  dr_findings_add(p->findings, DR_FINDING_BLOCKER, "firmware",
                  "put the old firmware's file back (beside the new one: -L DIRECTORY), or restart the guest "
                  "with -bios FILE",
                  "the guest was started with a firmware '%s' of %" G_GUINT64_FORMAT
                  " bytes, which is not there any more; "
                  "that of %s has %" G_GUINT64_FORMAT " bytes",
                  name, wanted, p->binary, their_size);
}

void
dr_preflight_unversioned(DrPreflight *p, DrVm *vm, const char *qemu, int source_version)
{
  if (!p->caps || dr_describe_is_versioned(dr_inventory_machine(p->inventory)))
    return;
  check_stream(p, vm, source_version);
  pin_firmware(p, vm, qemu);
}
