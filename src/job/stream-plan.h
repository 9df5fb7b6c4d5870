/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A VM that is started on disks which live elsewhere: before its QEMU is started, each of them gets an image on this host that stands on the
 * one elsewhere. What is pulled afterwards, and how, is job/disk-stream.h. */
#pragma once
#include "argv/argv.h"
#include "base/json.h"

typedef struct DrStreamPlan DrStreamPlan;

/* `streams`: 1 to 16 {"disk","source","format","sslverify":bool}. Errors: INVALID. */
gboolean dr_stream_check(JsonArray *streams, GError **error);

DrStreamPlan *dr_stream_plan_new(JsonArray *streams, gint64 bandwidth);
void dr_stream_plan_free(DrStreamPlan *plan);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrStreamPlan, dr_stream_plan_free)

/* Looks at every source and every image, then makes those images that are not there; one that stands on its source already is
 * taken as it is. `argv`, which is to be started in `cwd`, gets what it needs for it. Up to 15 s a disk. On error nothing is left behind.
 * Errors: as dr_argv_disk_find() and dr_stream_source_look(), and REFUSED, EXISTS for an image that cannot take what comes. */
gboolean dr_stream_plan_make(DrStreamPlan *plan, DrArgv *argv, const char *cwd, GError **error);

/* Removes the images that it made: the VM was not started. */
void dr_stream_plan_undo(DrStreamPlan *plan);

/* The request of the job that pulls (job/disk-stream.h); after make. (transfer full) */
JsonObject *dr_stream_plan_request(const DrStreamPlan *plan);
