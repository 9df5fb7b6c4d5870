/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The first job of a VM that was started on disks which live elsewhere (job/stream-plan.h): it begins to pull them, lets the guest begin,
 * and goes on until all is here and nothing leads elsewhere any more. */
#pragma once
#include "job/job.h"

/* Request: dr_stream_plan_request(): {"disks":[{"disk","file","source"}],"bandwidth":MiB/s each,"run": the guest is to begin}.
 * Questions while it runs: "abort" {}, "bandwidth" {"mib"}. An error loses nothing: the guest runs, and its disks stand on their sources.
 * A guest that stands still because a source cannot be read goes on by itself as soon as it can. */
gboolean dr_disk_stream_run(DrJob *job, GError **error);
gboolean dr_disk_stream_recover(DrJob *job, GError **error);
