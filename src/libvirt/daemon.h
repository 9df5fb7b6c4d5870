/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libvirt's daemon that has the QEMU driver: libvirtd (monolithic) or virtqemud (split), under systemd or started by hand.
 *
 * Who it is, libvirt itself says: the daemon with the QEMU driver holds a POSIX lock on driver.pid in the driver's state directory
 * (virPidFileAcquire() in qemu_driver.c, libvirt 4.x and later). While we hold that lock, no daemon can start its QEMU driver: not one
 * that systemd, a supervisor or a person starts. libvirtd 9.0 that finds it taken ends as a whole, and with exit code 0. Running domains
 * need no daemon.
 *
 * A process loses a POSIX lock when it closes ANY descriptor of the file. So between stop and start nothing else in this process may open
 * driver.pid, and dr_libvirt_daemon_find() may not be called for that directory. */
#pragma once
#include "base/deadline.h"
#include "qemu/proc.h"

#include <json-glib/json-glib.h>

/* How to stop it and how to start it as it was: all that a recovery needs, so it can be written to the journal. */
typedef struct DrLibvirtDaemon DrLibvirtDaemon;

/* Finds the one that holds the lock on `state_dir`/driver.pid ("/run/libvirt/qemu"). Changes nothing. Under systemd it notes the unit,
 * those of its sockets that are active, and the active units that end with it; else program, words, environment, directory, user, limits,
 * control groups, namespaces, and its 0, 1, 2 (by path). Errors: NOT_FOUND: none runs. BUSY: another drover holds it. REFUSED: something
 * else does that is no daemon of libvirt's. UNSUPPORTED: one in other PID or user namespaces. */
DrLibvirtDaemon *dr_libvirt_daemon_find(const char *state_dir, GError **error);
/* Gives the lock back, if it is ours, and starts nothing. */
void dr_libvirt_daemon_free(DrLibvirtDaemon *daemon);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrLibvirtDaemon, dr_libvirt_daemon_free)

/* "libvirtd.service" or "libvirtd, pid 4711": for people. (transfer none) */
const char *dr_libvirt_daemon_name(const DrLibvirtDaemon *daemon);
pid_t dr_libvirt_daemon_pid(const DrLibvirtDaemon *daemon); /* as it was found */

/* The environment is in it: the file is for its owner only. */
JsonObject *dr_libvirt_daemon_write(const DrLibvirtDaemon *daemon);          /* (transfer full) */
DrLibvirtDaemon *dr_libvirt_daemon_read(JsonObject *object, GError **error); /* (transfer full) */

/* Stops it and its sockets, waits until it has ended, and takes the lock, which stays ours until start, free or the end of this process.
 * May be called again, also when it has ended by itself, was killed, or was started again by somebody (then that one is stopped). One that
 * has not ended at the deadline nor some seconds later is killed, and that is logged. On error the caller starts it again. */
gboolean dr_libvirt_daemon_stop(DrLibvirtDaemon *daemon, DrDeadline deadline, GError **error);

/* Gives the lock back and starts it as it was, unless one is there already (a supervisor's, a person's); returns when one holds the lock
 * on driver.pid. It may still be reading its domains then: the first call to it waits for that. May be called again. DR_ERROR_ATTENTION
 * with the command that a person should type, where it does not come up. */
gboolean dr_libvirt_daemon_start(DrLibvirtDaemon *daemon, DrDeadline deadline, GError **error);
