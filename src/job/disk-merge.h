/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Live merge of the two images of a snapshot, for each of its disks: down (QEMU's block-commit: the overlay's data goes into the base,
 * and the overlay is removed) or up (block-stream: the base's data goes into the overlay, and the base stays as it is, a point in
 * time of its own). Active and intermediate overlays. */
#pragma once
#include "job/job.h"

/* Request: {"snapshot": name,"up":bool,"disks": names, absent: all of the snapshot's,"bandwidth":MiB/s,
 * "delete": its memory may go}. A snapshot all of whose disks
 * have been merged down is off the record. Questions while it runs: "abort" {}, "bandwidth" {"mib"}. */
gboolean dr_disk_merge_run(DrJob *job, GError **error);
gboolean dr_disk_merge_recover(DrJob *job, GError **error);
