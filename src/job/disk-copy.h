/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Live block copy: the disks of a running VM are copied, and the copies kept in step (QEMU's blockdev-mirror), until somebody says
 * which to keep: the copies (pivot) or the disks as they were (abort). docs/STATES.md has the stages. */
#pragma once
#include "job/job.h"

/* Request: {"copies":[{"disk","target"}],"format","sync":"full"|"top","reuse_external","bandwidth":MiB/s,"granularity":bytes,
 * "buf_size":bytes,"synchronous_writes","then":"pivot"|"finish","timeout":s}: docs/API.md.
 * Questions while it runs: "pivot" {}, "abort" {}, "bandwidth" {"mib"}. */
gboolean dr_disk_copy_check(JsonObject *request, GError **error);
gboolean dr_disk_copy_run(DrJob *job, GError **error);
/* The VM's monitor is free. */
gboolean dr_disk_copy_recover(DrJob *job, GError **error);
