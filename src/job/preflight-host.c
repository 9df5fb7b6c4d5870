/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Process and RAM checks. */
#include "job/preflight-host.h"
#include "base/fd.h"
#include "vm/user.h"

#include <string.h>
#include <sys/stat.h>

/* One that has given root's rights up by itself gives them up again. */
static gboolean
gave_rights_up(DrPreflight *p, uid_t now)
{
  uid_t uid;
  gid_t gid;

  return geteuid() == 0 && dr_qemu_user(p->truth, &uid, &gid) && uid == now;
}

static void
check_user(DrPreflight *p, pid_t pid)
{
  g_autofree char *path = g_strdup_printf("/proc/%d", pid);
  struct stat st;

  if (stat(path, &st) == 0 && st.st_uid != geteuid() && !gave_rights_up(p, st.st_uid))
    dr_findings_add(p->findings, DR_FINDING_BLOCKER, "user",
                    "run a droverd as that user, and adopt the VM there",
                    "the VM's QEMU runs as user %u, and a new one would run as %u", st.st_uid, geteuid());
}

/* Each link reads "net:[4026531840]". */
static void
check_namespace(DrPreflight *p, pid_t pid, const char *kind, const char *what)
{
  g_autofree char *theirs = g_strdup_printf("/proc/%d/ns/%s", pid, kind);
  g_autofree char *ours = g_strdup_printf("/proc/self/ns/%s", kind);
  g_autofree char *a = g_file_read_link(theirs, NULL);
  g_autofree char *b = g_file_read_link(ours, NULL);

  if (a && b && !g_str_equal(a, b))
    dr_findings_add(p->findings, DR_FINDING_BLOCKER, "namespace",
                    "run a droverd in that namespace (ip netns exec, nsenter), and adopt the VM there",
                    "the VM's QEMU is in another %s namespace than droverd", what);
}

void
dr_preflight_process(DrPreflight *p, DrVm *vm)
{
  pid_t pid = dr_vm_record(vm)->id.pid;

  check_user(p, pid);
  check_namespace(p, pid, "net", "network");
  check_namespace(p, pid, "mnt", "mount");
  check_namespace(p, pid, "user", "user");
}

/* What stays on its file would be mapped by both QEMUs while one of them copies into it. */
static void
check_copied_onto_itself(DrPreflight *p)
{
  for (guint i = 0; i < p->ram->len; i++) {
    const DrRamBlock *ram = p->ram->pdata[i];

    if (ram->kind == DR_RAM_SHARED_FILE)
      dr_findings_add(p->findings, DR_FINDING_BLOCKER, "ram-file",
                      "use --memory auto; a VM whose RAM is all on shared files is handed over",
                      "RAM block '%s' is a shared file of the VM's own, which cannot be copied onto itself",
                      ram->id);
  }
}

/* An NVDIMM's or virtio-pmem's content belongs into its file, not into memory of ours. */
static void
check_memory_devices(DrPreflight *p)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(p->truth, "device", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *driver = opts ? dr_opts_get(opts, "driver") : NULL;

    if (driver && (g_str_equal(driver, "nvdimm") || g_str_has_prefix(driver, "virtio-pmem")))
      dr_findings_add(p->findings, DR_FINDING_BLOCKER, "nvdimm",
                      "start the VM with all of its RAM and the device on shared files (share=on)",
                      "device '%s' keeps its content in a file, which a copy of RAM would detach it from",
                      driver);
  }
}

void
dr_preflight_ram(DrPreflight *p, DrVm *vm)
{
  if (p->mode == DR_MEMORY_SHARED)
    return;
  if (!dr_vm_record(vm)->want_shared)
    check_copied_onto_itself(p);
  check_memory_devices(p);
}
