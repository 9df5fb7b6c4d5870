/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The image that a disk is streamed from: what it is, and how it stands in the header of the image that is made on it. */
#pragma once
#include "job/disk-target.h"

typedef struct {
  char *text; /* as it was given */
  DrTargetKind kind;
  JsonObject *protocol; /* for blockdev-add */
  char *format;
  gint64 bytes; /* as the guest will see it */
} DrStreamSource;

/* Looks at it by qemu-img, in at most 15 s. `text`: as dr_target_look() takes it. `format` (nullable): what to read it as; where it is not
 * given, only what cannot be anything but raw is raw, since a guest may have written anything into a raw image. `verify`: of https.
 * Errors: INVALID for text or a format that is none; REFUSED for what must not be read through (encryption; a remote image that names
 * another one; a format that has to be said); UNSUPPORTED where QEMU has no driver for it; TIMEOUT, IO. (transfer full) */
DrStreamSource *dr_stream_source_look(const char *text, const char *format, gboolean verify, GError **error);
void dr_stream_source_free(DrStreamSource *source);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrStreamSource, dr_stream_source_free)

/* The backing file's name for the header of an image on it. Errors: REFUSED for one that is too long for a header. (transfer full) */
char *dr_stream_source_name(const DrStreamSource *source, GError **error);

/* Whether `name`, from the header of an image in `dir`, leads to the same image. */
gboolean dr_stream_source_is(const DrStreamSource *source, const char *name, const char *dir);

/* Adds a remedy to an error that comes from a QEMU which has no driver for http. */
void dr_stream_explain(GError **error);
