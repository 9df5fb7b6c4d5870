/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of libvirt's daemon share: daemon.c uses the others, daemon-hand.c also daemon-spawn.c. */
#pragma once
#include "libvirt/daemon.h"

#include <sys/resource.h>

/* --- daemon-lock.c: the lock on driver.pid --- */

/* Who holds it. FALSE with NOT_FOUND: nobody; UNSUPPORTED: one that cannot be seen from here. Opens and closes the file: not while it is ours. */
gboolean dr_driver_lock_holder(const char *state_dir, DrProcId *ret_id, GError **error);

/* *ret_fd holds the lock and is the caller's; -1: another process has it. */
gboolean dr_driver_lock_take(const char *state_dir, int *ret_fd, GError **error);
void dr_driver_lock_give(const char *state_dir, int fd);

/* --- daemon-unit.c: under systemd --- */

typedef struct {
  char *unit;
  gint64 user;    /* the uid of whose own systemd it is; -1: the system's */
  char **sockets; /* that start it, those that were active */
  char **others;  /* active units that systemd stops with these, since they require one of them */
} DrDaemonUnit;

/* The unit that a control group of /proc/PID/cgroup belongs to, "libvirtd.service"; NULL: none. *ret_user as above. (transfer full) */
char *dr_daemon_unit_of_cgroup(const char *text, gint64 *ret_user);
/* The words of one property in what `systemctl show` prints, all of its units together. (transfer full) */
char **dr_daemon_unit_words(const char *shown, const char *property);
/* Those of `systemctl show --property=Id --property=ActiveState` that are active. (transfer full) */
char **dr_daemon_unit_active(const char *shown);

/* *ret_unit NULL: the process is not the main one of a unit. */
gboolean dr_daemon_unit_find(pid_t pid, DrDaemonUnit **ret_unit, GError **error);
void dr_daemon_unit_free(DrDaemonUnit *unit);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrDaemonUnit, dr_daemon_unit_free)
JsonObject *dr_daemon_unit_write(const DrDaemonUnit *unit);
DrDaemonUnit *dr_daemon_unit_read(JsonObject *object, GError **error);

/* One call to systemd each. TIMEOUT: systemd goes on with it. */
gboolean dr_daemon_unit_stop(const DrDaemonUnit *unit, DrDeadline deadline, GError **error);
gboolean dr_daemon_unit_start(const DrDaemonUnit *unit, DrDeadline deadline, GError **error);
char *dr_daemon_unit_command(const DrDaemonUnit *unit); /* for a person. (transfer full) */

/* --- daemon-hand.c: by hand --- */

#define DR_DAEMON_NAMESPACES 5

typedef struct {
  char *path; /* the program */
  char **argv, **envp;
  char *cwd;
  char *stdio[3]; /* files; NULL: /dev/null */
  uid_t uid;
  gid_t gid;
  gid_t *groups;
  guint n_groups;
  guint mask;
  int oom_score; /* oom_score_adj */
  struct rlimit limits[RLIM_NLIMITS];
  char **cgroups;                           /* the lines of /proc/PID/cgroup */
  guint64 namespaces[DR_DAEMON_NAMESPACES]; /* inodes; 0: ours */
  int namespace_fds[DR_DAEMON_NAMESPACES];  /* -1: not open */
  DrProcId parent;                          /* pid 0: process 1 */
} DrDaemonHand;

/* In the order in which a process enters them: what it looks up by path comes before the mounts. */
typedef struct {
  const char *name; /* in /proc/PID/ns */
  int type;         /* for setns(2) */
} DrDaemonNamespace;
extern const DrDaemonNamespace dr_daemon_namespaces[DR_DAEMON_NAMESPACES];

/* /proc/PID/status. FALSE: it is not one. */
gboolean dr_daemon_hand_parse_status(const char *text, DrDaemonHand *hand);

/* `path`: its program. */
DrDaemonHand *dr_daemon_hand_find(pid_t pid, const char *path, GError **error);
void dr_daemon_hand_free(DrDaemonHand *hand);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrDaemonHand, dr_daemon_hand_free)
JsonObject *dr_daemon_hand_write(const DrDaemonHand *hand);
DrDaemonHand *dr_daemon_hand_read(JsonObject *object, GError **error);
char *dr_daemon_hand_command(const DrDaemonHand *hand); /* for a person. (transfer full) */

/* Starts it once; the caller reaps *ret_pid, which ends at once where the daemon forks itself. */
gboolean dr_daemon_hand_start(DrDaemonHand *hand, pid_t *ret_pid, GError **error);

/* --- daemon-spawn.c --- */

/* Fork and exec as the daemon was; `cgroups`: open cgroup.procs files. */
gboolean dr_daemon_spawn(const DrDaemonHand *hand, const int *cgroups, guint n_cgroups, pid_t *ret_pid,
                         GError **error);
