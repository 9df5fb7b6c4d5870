/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the two files of a coming guest share. */
#pragma once
#include "job/incoming.h"
#include "job/upgrade-internal.h"

typedef enum {
  INCOMING_WAITS,    /* its QEMU stands and may read; the other host has the guest */
  INCOMING_PROMISED, /* as before, but not given up without the other host's word: post-copy may have begun */
  INCOMING_ACCEPTED, /* it has been told to run, or will as soon as it has what it needs; the mark is there */
  INCOMING_ARRIVED, /* the guest runs here (or is paused, as it was) and needs nothing of the other host any more */
  INCOMING_DISCARDED, /* given up, for good: it never ran here */
  INCOMING_LOST,      /* its QEMU ended with the guest in it */
} IncomingState;

typedef struct {
  DrUpgrade u; /* without a source */
  DrJob *job;
  char *move;
  JsonObject *spec;
  DrMailbox *box;
  IncomingState state;
  gboolean postcopy; /* accepted so: it has arrived when the last page has */
  gboolean
      reads_last; /* its QEMU says that it has all that was sent, or in post-copy begins with what it needs to run */
  gint64 last_word_us;
  gint64 heard_us, loaded_us,
      told_us;              /* wall clock: "accept" came, QEMU had all, it was told to run; 0: not yet */
  gint64 epoch;             /* of `socket`; these under the lock of incoming.c */
  char *socket;             /* NULL: the new QEMU gets a connected one */
  char *nbd_socket;         /* nullable; under the lock, too */
  JsonArray *exports;       /* nullable: what is served there */
  GPtrArray *made;          /* files of images that were made for it; removed if it does not come */
  JsonArray *later;         /* those of them that are fetched when it has come: disk-fetch.h */
  struct DrImageLink *link; /* nullable: to where they are */
  gboolean listens;
  gboolean noted, warned; /* what became of it is on disk; that it could not be written was said */
  int handed;             /* it, until QEMU has it; -1 */
} Incoming;

/* incoming-serve.c: answers until the guest has arrived, was given up or is lost. FALSE: why it was given up. */
gboolean dr_incoming_serve(Incoming *in, GError **error);
/* Waits for a question. FALSE: the deadline has passed. */
gboolean dr_incoming_wait(Incoming *in, DrDeadline deadline);
/* Answers a question, if there is one, with the reason why there is nothing to be asked. */
gboolean dr_incoming_refuse_next(Incoming *in, const GError *why);

/* incoming.c: writes that the guest is here for good, or lost. FALSE: it could not, and has to be tried again: the other host may ask
 * for it long after. */
gboolean dr_incoming_note_end(Incoming *in);
/* Writes that it never will run here, then ends its QEMU. */
gboolean dr_incoming_discard(Incoming *in, GError **error);
/* `path` NULL: the new QEMU shall have the connected socket of that epoch. */
void dr_incoming_set_socket(Incoming *in, gint64 epoch, const char *path);
/* NULL: not any more. */
void dr_incoming_set_nbd_socket(Incoming *in, const char *path);
int dr_incoming_take_handed(Incoming *in); /* -1: none has come. The caller closes it */
