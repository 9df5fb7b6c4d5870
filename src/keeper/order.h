/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What droverd tells the keeper to start, and what the keeper answers. Both are of one build and one machine.
 *
 * The order comes in a memfd and not as words of the keeper's own command line: `ps` and `pgrep -f qemu` would find
 * each VM twice, and a secret in QEMU's command line or environment would stand in a second process. */
#pragma once
#include <stdint.h>

#define DR_KEEPER_MAGIC 0x64726b32u /* "drk2": raise it with every change in here */

/* The keeper's descriptors when it starts. 1 and 2 are QEMU's log already. */
enum {
  DR_KEEPER_ORDER = 3,
  DR_KEEPER_REPORT = 4, /* a pipe */
  DR_KEEPER_FDS = 5,    /* the first one to hand down */
};

#define DR_KEEPER_GROUPS 64
#define DR_KEEPER_LIMITS 16 /* RLIM_NLIMITS of Linux */

/* A QEMU that belongs to somebody else (libvirt) is started as another process of theirs: where and with what rights that one lives. Then the
 * keeper does not stay. */
struct dr_keeper_world {
  uint32_t alike; /* 0: as droverd itself, and the rest means nothing */
  uint32_t uid, gid, n_groups, groups[DR_KEEPER_GROUPS];
  uint32_t n_cgroups;    /* descriptors of cgroup.procs, behind those to hand down … */
  uint32_t n_namespaces; /* … and behind them those for setns(2) */
  uint32_t umask;
  int32_t oom_score_adj;
  uint64_t bounding; /* capabilities(7) */
  uint64_t limits[DR_KEEPER_LIMITS][2];
};

/* Behind it: n_fds int32_t (the numbers that QEMU shall see), then NUL-terminated strings: program, working
 * directory, the file below /proc/self/attr and the label that is written into it ("": none), argc words, envc words. */
struct dr_keeper_order {
  uint32_t magic;
  uint32_t size; /* of all, bytes */
  uint32_t n_fds;
  uint32_t argc;
  uint32_t envc;
  struct dr_keeper_world world;
};

enum dr_keeper_step {
  DR_KEEPER_STARTED = 1, /* pid and start_time are set */
  DR_KEEPER_NO_ORDER,    /* the order is not readable: another build? */
  DR_KEEPER_NO_PROCESS,  /* fork or its like */
  DR_KEEPER_NO_CWD,
  DR_KEEPER_NO_FDS,
  DR_KEEPER_NO_EXEC,
  DR_KEEPER_NO_WORLD, /* a namespace, a control group, a limit or the user of the process that it is to be like */
};

struct dr_keeper_report {
  uint32_t step;
  int32_t err; /* errno */
  int32_t pid;
  uint32_t zero;
  uint64_t start_time;
};
