/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The files that a backup is written to, and what each stands on. */
#pragma once
#include "job/backup-point.h"

typedef struct {
  char *disk, *file, *format;
  char *onto, *onto_format; /* nullable: the backup before it */
  char *node, *file_node, *job;
  gboolean reserved; /* its file is ours */
  gint64 bytes, wanted;
} DrBackupTarget;

void dr_backup_target_free(DrBackupTarget *target);

/* One for each disk of the point (into `targets`, of DrBackupTarget). `request`: "target" a directory, or for one disk a file that is not
 * there yet; "format" (qcow2, raw); "onto" ["FILE" or "DISK=FILE"]: what an incremental one stands on, where it is not on record. The VM's
 * monitor is not needed: file servers may take their time. Blockers into `findings`. */
gboolean dr_backup_targets_choose(GPtrArray *targets, const DrPoint *point, DrVm *vm, JsonObject *request,
                                  DrFindings *findings, GError **error);

/* They are closed: what was written to them is on the disk when this returns. */
gboolean dr_backup_targets_sync(GPtrArray *targets, GError **error);

/* Makes the images and opens them in the VM's QEMU. */
gboolean dr_backup_targets_make(GPtrArray *targets, DrVm *vm, DrQmp *qmp, GError **error);
void dr_backup_targets_close(GPtrArray *targets, DrQmp *qmp);
/* Of a backup that failed: those that it made itself. */
void dr_backup_targets_remove(GPtrArray *targets);

/* What the next incremental backup by `bitmap` stands on. */
gboolean dr_backup_targets_record(GPtrArray *targets, DrVm *vm, const char *bitmap, GError **error);
