/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What everything in the daemon shares: its directories, its state file, its event hub, its main loop. */
#pragma once
#include "base/events.h"
#include "store/store.h"

typedef struct DrService DrService;
typedef struct DrNet DrNet;

typedef struct {
  DrService *service; /* for the functions of jobs that it made; nobody below daemon/ looks into it */
  DrNet *net;         /* the way to other hosts (net/peer.h) */
  char *run_dir;      /* sockets, marks: gone after a reboot */
  char *state_dir;    /* drover.db, logs, exit files */
  char *cache_dir;    /* what QEMU binaries can do */
  DrStore *store;
  DrEvents *events;
  GMainContext *context; /* the main loop's: watches and the console hub live there */
  /* Nullable: called by the upgrade of a foreign VM (vm.h) when its new QEMU, `pid`, has been chosen and runs, before the old one is ended. */
  void (*on_commit)(const char *vm, int pid, gpointer data);
  gpointer on_commit_data;
} DrHost;

/* RUN_DIR/vms/NAME and STATE_DIR/vms/NAME, made when missing (0700). (transfer full) */
char *dr_host_run_dir(DrHost *host, const char *vm, GError **error);
char *dr_host_state_dir(DrHost *host, const char *vm, GError **error);

/* Removes both again where they are empty. */
void dr_host_remove_empty(DrHost *host, const char *vm);
