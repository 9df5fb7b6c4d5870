/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a guest has in truth, read from its QEMU by QMP, because the command line only says how it began.
 *
 * The pipeline of a move: the given command line -> dr_inventory_apply(): the truth, still as a command line -> rewrite.h:
 * the same for a destination. After the destination is up, both inventories are compared once more, because QEMU
 * itself says "completed" to a migration with another NIC or CPU (QEMU-NOTES). */
#pragma once
#include "argv/argv.h"
#include "base/finding.h"
#include "qmp/qmp.h"

typedef struct DrInventory DrInventory;

/* Reads all of it; changes nothing. Takes some ms. Works on 5.2 to 11.1, running, paused, or in `-incoming defer`. */
DrInventory *dr_inventory_read(DrQmp *qmp, GError **error);
void dr_inventory_free(DrInventory *inventory);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrInventory, dr_inventory_free)

/* The canonical machine type without "-machine" ("pc-q35-7.2"), the UUID, the type of CPU 0. (transfer none) */
const char *dr_inventory_machine(const DrInventory *inventory);
const char *dr_inventory_uuid(const DrInventory *inventory);
const char *dr_inventory_cpu(const DrInventory *inventory);
guint64 dr_inventory_memory(const DrInventory *inventory); /* bytes */
gboolean dr_inventory_kvm(const DrInventory *inventory);
/* Bytes of a RAM block by its name in "info ramblock" ("pc.bios"); 0: it has none of that name. */
guint64 dr_inventory_block_size(const DrInventory *inventory, const char *name);

/* The user-mode host forwards in force (HMP `info usernet`): each as `hostfwd_add`/`hostfwd_remove` take it:
 * netdev id and rule "tcp:127.0.0.1:2222-10.0.2.15:22". A -nic or -net without id gets a name from QEMU
 * ("#net189", "__org.qemu.net1" on 5.2) which differs between two processes. (transfer none) (element-type DrForward) */
typedef struct {
  char *netdev;
  char *add;    /* "tcp:127.0.0.1:2222-10.0.2.15:22" */
  char *remove; /* "tcp:127.0.0.1:2222" */
} DrForward;
GPtrArray *dr_inventory_forwards(const DrInventory *inventory);

/* The same of what a QEMU has just said. (transfer full) */
GPtrArray *dr_forwards_parse(const char *info_usernet);

/* Taps in use (HMP `info network`): netdev id and interface name. (transfer none) (element-type DrTap) */
typedef struct {
  char *netdev;
  char *ifname; /* nullable: QEMU was given descriptors ("fds") and does not know it */
  char *fds;    /* nullable: "info network"'s list when given by fd */
} DrTap;
GPtrArray *dr_inventory_taps(const DrInventory *inventory);

/* Writes into `argv` what has changed since the guest began: machine type pinned; disks whose top node is another than
 * the command line says (snapshots, pivots, media changes); devices and backends that were plugged in; devices that
 * were unplugged (removed). What cannot be rebuilt exactly is a blocker in `findings`, named. `argv` is changed in place,
 * and may be the one of the guest's first start or one that an earlier call made: both come out the same.
 *
 * `cwd` is QEMU's working directory, against which relative image paths are looked up; NULL: the caller's. Image headers
 * are read from the file system; one that cannot be read has its running backing chain written into `argv` instead.
 * FALSE only for an error that is not the VM's (`argv` does not parse). */
gboolean dr_inventory_apply(const DrInventory *inventory, DrArgv *argv, const char *cwd, DrFindings *findings,
                            GError **error);

/* The I/O limits of disks whose -device cannot carry them: by dr_inventory_limits_by_command() whoever starts the new QEMU promises to give it
 * them, and apply refuses them no more. The arguments of block_set_io_throttle for each. (transfer full) */
void dr_inventory_limits_by_command(DrInventory *inventory);
JsonArray *dr_inventory_limits(const DrInventory *inventory);

/* Whether each image that the QEMU `pid` has open is still what its name leads to: a file that was renamed, replaced or
 * deleted below a running guest would give the next QEMU another disk. Blockers; nothing where /proc cannot be read. `cwd`
 * as above. */
void dr_inventory_check_files(const DrInventory *inventory, pid_t pid, const char *cwd, DrFindings *findings);

/* The chardev behind the guest's virtio-serial port called `name`, by its label; NULL without an error: it has none. (transfer full) */
char *dr_inventory_port_chardev(DrQmp *qmp, const char *name, GError **error);

/* The absolute paths of the image files that are in use. (transfer full) (element-type utf8) */
GPtrArray *dr_inventory_files(const DrInventory *inventory, const char *cwd);

/* The name of an NBD export in use that another host cannot reach, or would find another one under: by a unix socket or by loopback.
 * (transfer none) (nullable) */
const char *dr_inventory_local_export(const DrInventory *inventory);

/* From now on an image is compared without what is below it, as it would be when it had been copied with all of its data. */
void dr_inventory_stand_alone(DrInventory *inventory, const char *path, gboolean alone);

/* The same image under another name. */
void dr_inventory_rename_file(DrInventory *inventory, const char *from, const char *to);

/* Whether an image in use has a bitmap that QEMU writes into it when it lets go of it. */
gboolean dr_inventory_has_kept_bitmaps(const DrInventory *inventory);

/* Whether a drive with a medium belongs to no device (any more). */
gboolean dr_inventory_has_loose_drive(const DrInventory *inventory);

/* Whether `path` in QEMU's object tree is a device of the guest's, or a part of one. */
gboolean dr_inventory_has_device(const DrInventory *inventory, const char *path);

/* The same QEMU a while later: what others can have changed by a monitor of their own, in seven commands (about 2 ms). Only for
 * dr_inventory_changes() and dr_inventory_check_files(). */
DrInventory *dr_inventory_glance(DrQmp *qmp, GError **error);

/* Disks, their limits, block jobs that have begun, devices, netdevs: each that is not as it was is a blocker. */
void dr_inventory_changes(const DrInventory *before, const DrInventory *now, DrFindings *findings);

/* What the guest could see that differs between a source and the destination that was built for it (blockers), for
 * machine, CPU type and features, memory, PCI tree, devices and their properties, NICs and MACs, disks and the files
 * behind them (by name, or by inode where both are here). `after` may have more CPU features than `before`: a warning; fewer: a blocker. */
void dr_inventory_compare(const DrInventory *before, const DrInventory *after, DrFindings *findings);

/* Things in the guest that no migration can carry or that a second QEMU on this host cannot have, from its devices and
 * from query-migrate's blocked-reasons: VFIO, vhost-user, 9p mounts, …; each named in a blocker. */
void dr_inventory_blockers(const DrInventory *inventory, DrFindings *findings);

/* "memory", "disks", "nics" of `drover show --json`. (transfer full) */
JsonObject *dr_inventory_json(const DrInventory *inventory);
