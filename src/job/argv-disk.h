/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A disk on the command line of a VM that has not been started. */
#pragma once
#include "argv/argv.h"

typedef struct {
  DrOpt *device; /* nullable: the -device that has it; belongs to the command line */
  DrOpt *drive;  /* nullable: its -drive, -hda …; NULL: it has a -blockdev */
  char *path;    /* absolute, of its image; NULL: no file */
  char *format;  /* nullable: as it is said */
  char *node;    /* nullable: names, as `drover disk` will know it by */
  char *file_node;
  gboolean read_only, temporary; /* media=cdrom too; snapshot=on */
  gboolean has_backing;          /* what it stands on is said */
} DrArgvDisk;

void dr_argv_disk_free(DrArgvDisk *disk);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrArgvDisk, dr_argv_disk_free)

/* The disk that is called `name`: the id of its device or drive, a node's name, or its image's file, relative ones below `cwd`. Errors:
 * NOT_FOUND, naming what there is; INVALID where two fit, or for a command line that does not parse. (transfer full) */
DrArgvDisk *dr_argv_disk_find(const DrArgv *argv, const char *name, const char *cwd, GError **error);

/* Has the guest stop where the image cannot be read or written, instead of being told of an error, unless rerror= and werror= are given.
 * FALSE: its device knows no such thing, and nothing is changed. */
gboolean dr_argv_disk_stop_on_error(DrArgv *argv, const DrArgvDisk *disk);
