/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A point in time of a running VM's disks that can be read while the guest goes on: what every backup is made from.
 *
 * Between each disk and its device comes a filter (copy-before-write): before the guest writes over something, that goes into a scratch
 * file. A node (snapshot-access) shows what was. When the scratch file is full or slow it is the point in time that ends, and not
 * the guest's write (on-cbw-error=break-snapshot, QEMU 7.1); and whoever reads slowly does not hold the guest up.
 *
 * A bitmap that an incremental backup is made by is not touched until the backup is good. What is dirty at the moment is copied to
 * the point's node, under the same name; what is written since is noted in a bitmap beside it, which takes its place at a success.
 * Whatever happens between, the bitmap has all that the last good backup lacks. */
#pragma once
#include "job/disk.h"
#include "job/job.h"

typedef struct {
  char *disk, *path;            /* its name; its device in QOM */
  char *root, *top;             /* nodes: what the device sees; the image */
  char *node;                   /* of the point in time */
  char *filter;                 /* node between the device and `root` */
  char *scratch_node, *scratch; /* and its file */
  char *since;                  /* bitmap of `top`: what is written since */
  gint64 bytes;                 /* as the guest sees it */
  gint64 wanted;                /* what of it a backup takes, at most */
  gint64 keep;                  /* of the scratch's file system so much is to stay free */
} DrPointDisk;

typedef struct {
  GPtrArray *disks;  /* of DrPointDisk */
  char *incremental; /* nullable: the bitmap that is backed up by */
  char *begin;       /* nullable: a new one that begins at the moment */
  char *agent;       /* nullable: the socket of the guest's, which freezes */
  gint64 frozen;     /* file systems */
  gboolean was_running;
} DrPoint;

void dr_point_init(DrPoint *point);
void dr_point_clear(DrPoint *point);

/* Whether a request's "disks", "incremental", "bitmap" and "scratch" can be meant. Errors: INVALID. */
gboolean dr_point_check(JsonObject *request, GError **error);

/* Chooses the disks: those that `request` names ("disks"), or all that can be written; "incremental", "bitmap", "quiesce" and "scratch"
 * (a directory) are heeded. Blockers and warnings into `findings`. */
gboolean dr_point_choose(DrPoint *point, DrVm *vm, DrQmp *qmp, const DrDisks *disks, JsonObject *request,
                         DrFindings *findings, GError **error);

/* For the journal. */
JsonObject *dr_point_write(const DrPoint *point);
void dr_point_read(DrPoint *point, JsonObject *object);

/* Scratch files and filters; nothing stands between the guest and its disks yet. */
gboolean dr_point_prepare(const DrPoint *point, DrVm *vm, DrQmp *qmp, GError **error);

/* The moment, one for all disks: with more than one the guest stands still for some milliseconds. Enters the stages "freeze" (with an
 * agent) and "point". What an error leaves is dr_point_drop()'s. */
gboolean dr_point_take(DrPoint *point, DrJob *job, DrQmp *qmp, DrFindings *findings, GError **error);

/* What dr_point_take() was interrupted in: thaws, and lets the guest run on. */
void dr_point_let_go(DrPoint *point, DrQmp *qmp, const char *stage);

/* FALSE when a scratch file system gets full: the point in time cannot be kept. */
gboolean dr_point_has_room(const DrPoint *point, GError **error);

/* The backup is good: what is dirty in the bitmap from now on is what was written since the moment. Once more does nothing. */
gboolean dr_point_succeed(const DrPoint *point, DrVm *vm, DrQmp *qmp, GError **error);

/* All of it goes, in whatever state it is. Jobs and exports on it have ended. `failed`: a bitmap that was begun goes, too. */
gboolean dr_point_drop(const DrPoint *point, DrQmp *qmp, gboolean failed, GError **error);
/* The same when QEMU has ended. */
void dr_point_forget(const DrPoint *point);
