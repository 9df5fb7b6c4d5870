/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Image streaming: what a disk has only in its backing images is pulled into its top image while the guest runs (QEMU's
 * block-stream), and the images that are not needed any more are let go. */
#pragma once
#include "job/job.h"

/* Request: {"disk","base": file or node of the image that stays below; absent: none,"bandwidth":MiB/s}.
 * Questions while it runs: "abort" {}, "bandwidth" {"mib"}. A pull that is aborted or fails loses nothing: what was pulled stays,
 * and the next one goes on from there. */
gboolean dr_disk_pull_run(DrJob *job, GError **error);
gboolean dr_disk_pull_recover(DrJob *job, GError **error);
