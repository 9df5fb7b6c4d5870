/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From the command line that describes a VM to the one that a QEMU is started with.
 *
 * Two uses: the first start of `drover run` (incoming FALSE), and the destination of a move on the same host (incoming
 * TRUE), where a second QEMU stands beside the first until the commit and may take nothing from it: it binds private
 * sockets, which are renamed later; it leaves out host forwards, VNC ports and the gdb stub, which are added later;
 * it appends to files; it gets taps and TCP listeners as descriptors.
 *
 * Pure: nothing is opened or asked here. What has to be got from the running QEMU is told by dr_rewrite_needs().
 */
#pragma once
#include "argv/argv.h"
#include "base/finding.h"

/* A descriptor of the running QEMU that the new one must have. */
typedef enum {
  DR_NEED_FD, /* a number on the command line (fd=, fds=, /proc/self/fd/N): under the same number */
  DR_NEED_VHOST, /* likewise (vhostfd=), but one opened anew: the kernel gives each to one process (VHOST_SET_OWNER) */
  DR_NEED_FDSET,        /* a number of -add-fd, which QEMU has put under another one: query-fdsets tells */
  DR_NEED_TAP,          /* the queues of a tap that the command line does not name by number */
  DR_NEED_TCP_LISTENER, /* a listening TCP socket */
} DrNeedKind;

typedef struct {
  DrNeedKind kind;
  guint opt;       /* index of the option on the command line */
  int fd;          /* NEED_FD, NEED_VHOST, NEED_FDSET: the number */
  gint64 set;      /* NEED_FDSET: of the set */
  guint nth;       /* NEED_FDSET: the how many-th of the set on the command line */
  gboolean tap;    /* NEED_FD: it is a tap queue */
  char *netdev;    /* NEED_TAP: its id, nullable (-net, -nic without id) */
  char *ifname;    /* NEED_TAP: nullable (QEMU or the helper chose the name) */
  char *bridge;    /* NEED_TAP: a helper put it there, "br0"; nullable */
  guint port;      /* NEED_TCP_LISTENER */
  GArray *numbers; /* filled by the caller for NEED_TAP and NEED_TCP_LISTENER: of int, in the new QEMU */
} DrNeed;

void dr_need_free(DrNeed *need);

/* What a second QEMU for `argv` needs of the first. Returns: (transfer full) (element-type DrNeed). */
GPtrArray *dr_rewrite_needs(const DrArgv *argv);

/* One RAM block that the new QEMU maps from a descriptor. */
typedef struct {
  const char *id;
  guint64 size; /* bytes */
  int fd;       /* number in the new QEMU */
} DrRewriteRam;

/* migration.send-switchover-start: a QEMU from 10.0 on sends a command that older ones do not know. A machine type with a
 * version turns that off by itself; for one without (microvm) nothing else keeps its stream readable for an older QEMU. */
typedef enum {
  DR_SWITCHOVER_AS_GIVEN,
  DR_SWITCHOVER_OFF,     /* this QEMU is to be told so, unless the command line says something about it */
  DR_SWITCHOVER_UNKNOWN, /* this QEMU is older, and would not start with it */
} DrSwitchover;

/* Whether the stream of a QEMU with this command line was told to do without. */
gboolean dr_argv_switchover_is_off(const DrArgv *argv);

typedef struct {
  const char *program; /* nullable: as on the command line; else it replaces program and launcher */
  gboolean incoming;
  const char *suffix; /* of private sockets, ".drover-3" (incoming) */
  gboolean foreign;   /* no monitor and no console of drover's are added */
  const char
      *qmp_path; /* drover's own monitor listens here; private sockets of VNC have its name with an end */
  const char *console_path; /* drover's console listens here, if the command line leaves a console to it */
  const DrRewriteRam *ram;  /* blocks to put onto descriptors; others stay as they are */
  guint n_ram;
  DrSwitchover switchover;
  GPtrArray *needs; /* from dr_rewrite_needs(), numbers filled (incoming) */
} DrRewritePlan;

typedef struct {
  char *private_path, *public_path;
} DrRename;

typedef struct {
  char *id; /* of the VNC display, nullable: the default one */
  char *host,
      *port;      /* port: "5901"; what the first QEMU was told, a range's real value comes from query-vnc */
  gboolean range; /* ",to=" was given */
} DrVncAddress;

typedef struct {
  DrArgv *argv;
  gboolean console;     /* console_path is used */
  char *console_public; /* nullable: serial0 is a unix listener of the user's: its public path */
  GPtrArray *renames;   /* of DrRename: after the commit */
  GPtrArray *vnc;       /* of DrVncAddress: after the commit */
  char *pidfile;        /* nullable: to be written with the pid */
  char *gdb;            /* nullable: HMP `gdbserver` argument */
} DrRewrite;

void dr_rewrite_free(DrRewrite *rewrite);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrRewrite, dr_rewrite_free)

/* What stands in the way is a blocker in `findings` (the result is then not to be used), what changes for the host's
 * side a warning. NULL only if the command line does not parse. */
DrRewrite *dr_rewrite(const DrArgv *argv, const DrRewritePlan *plan, DrFindings *findings, GError **error);
