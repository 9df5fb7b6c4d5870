/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The move of a running VM to another host, from the host that it leaves. docs/PROTOCOL.md and docs/STATES.md tell how it
 * is kept from being lost or run twice. */
#pragma once
#include "job/job.h"
#include "job/mailbox.h"

typedef enum {
  DR_MOVE_TUNNEL,  /* TLS, through droverd's port */
  DR_MOVE_PLAIN,   /* the same port without TLS; both sides' configuration must allow it */
  DR_MOVE_HANDOFF, /* the connected socket is QEMU's: one stream, no TLS */
} DrMoveTransport;

typedef struct {
  gboolean postcopy;         /* allowed at the user's word: migrate-postcopy */
  gboolean after_precopy;    /* after the first pass */
  gboolean no_postcopy;      /* never: --downtime is what there is */
  gboolean preempt;          /* post-copy's urgent pages by a stream of their own */
  gint64 timeout_postcopy_s; /* 0: none */
  gint64 timeout_s;          /* 0: none; then give up, or with timeout_suspend stop the guest */
  gboolean timeout_suspend;
  gboolean auto_converge;
  gint64 parallel;           /* streams; 0: one */
  char *compress;            /* nullable: "zstd", "zlib", "xbzrle" */
  gint64 bandwidth;          /* MiB/s, 0: no limit */
  gint64 postcopy_bandwidth; /* MiB/s, 0: no limit */
  gint64 downtime_ms;        /* 0: the policy's default */
  DrMoveTransport transport;
  gboolean copy_storage,
      copy_storage_inc;       /* disks that the other host does not have: all of each, or its top image */
  gboolean storage_postcopy;  /* with copy_storage: all of each, after the guest */
  gboolean overwrite_storage; /* also over a file that is there */
} DrMigrateOptions;

/* {"vm","peer","dname","qemu",…}: docs/API.md. FALSE with DR_ERROR_INVALID for pairs that make no sense. `ret`'s strings belong
 * to the request. */
gboolean dr_migrate_read_options(JsonObject *request, DrMigrateOptions *ret, GError **error);
const char *dr_move_transport_name(DrMoveTransport transport);

gboolean dr_migrate_run(DrJob *job, GError **error);
gboolean dr_migrate_recover(DrJob *job, GError **error);

/* Preflight of both hosts: {"vm","ok","findings","qemu_before","qemu_after","expected_total_ms","expected_pause_ms"}. */
JsonObject *dr_migrate_check(DrVm *vm, JsonObject *request, GError **error);

/* What may be asked of a move under way: "postcopy" {}, "downtime" {"ms"}, "bandwidth" {"mib","postcopy"}, "get-bandwidth" {}.
 * NULL: VM `name` is not on the move. (transfer full) */
DrMailbox *dr_migrate_find(const char *vm);
