/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One connection to a QEMU monitor (QMP), used by one owner at a time, blocking with deadlines.
 *
 * Whoever needs a QEMU takes its DrQmp and gives it back (see daemon/vm.h); there is no lock in here. Three
 * outcomes are never mixed: a result; DR_ERROR_QMP with QEMU's own text; DR_ERROR_CLOSED or DR_ERROR_TIMEOUT when
 * no answer came. After a timeout the command has NOT been undone: query before deciding. An answer that comes
 * late is dropped by its id.
 *
 * Events are kept in a queue of at most DR_QMP_MAX_EVENTS; the oldest are dropped beyond that (counted).
 */
#pragma once
#include "base/deadline.h"
#include "base/json.h"

#define DR_QMP_MAX_EVENTS 512
#define DR_QMP_TIMEOUT_MS 10000 /* for a command that QEMU answers from its main loop */

typedef struct DrQmp DrQmp;

typedef struct {
  char *name;
  JsonObject *data; /* nullable */
  gint64 time_us;   /* QEMU's wall clock, microseconds since 1970: comparable between QEMUs of one host */
} DrQmpEvent;

void dr_qmp_event_free(DrQmpEvent *event);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrQmpEvent, dr_qmp_event_free)

/* Connects to the unix socket `path` ("@name": abstract), reads the greeting, enters command mode. While the
 * socket is not there or refuses and `wait` is TRUE it tries again until the deadline. A socket that accepts but
 * does not greet is held by somebody else: DR_ERROR_BUSY.
 * Returns: (transfer full). */
DrQmp *dr_qmp_connect(const char *path, gboolean wait, DrDeadline deadline, GError **error);

/* The process that listens on a socket, without a word to it; 0 if nobody does. */
pid_t dr_qmp_listener(const char *path);

/* For a QEMU that was just started: waits until it listens and greets, or until `pidfd` says that it has ended
 * (DR_ERROR_CLOSED). */
DrQmp *dr_qmp_await(const char *path, int pidfd, DrDeadline deadline, GError **error);

/* The same for a connected descriptor, which it takes over also on error. `what` names it in messages. */
DrQmp *dr_qmp_new_fd(int fd, const char *what, DrDeadline deadline, GError **error);

void dr_qmp_free(DrQmp *qmp);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrQmp, dr_qmp_free)

/* While set, a wait ends with DR_ERROR_CANCELLED as soon as `fd` becomes readable; -1: none. Not owned. */
void dr_qmp_set_cancel_fd(DrQmp *qmp, int fd);

/* The process at the other end as the kernel saw it at listen() time (SO_PEERCRED), or 0. */
pid_t dr_qmp_peer_pid(DrQmp *qmp);
int dr_qmp_fd(DrQmp *qmp);
gboolean dr_qmp_closed(DrQmp *qmp);

/* "7.2.22", and as a number 7002022 for comparing (major * 1000000 + minor * 1000 + micro). */
const char *dr_qmp_version(DrQmp *qmp);
int dr_qmp_version_number(DrQmp *qmp);
#define DR_QEMU(major, minor) ((major)*1000000 + (minor)*1000)

/* Runs one command. `arguments` is consumed and may be NULL. Returns: (transfer full): the "return" member. */
JsonNode *dr_qmp_call(DrQmp *qmp, const char *command, JsonObject *arguments, int timeout_ms, GError **error);
JsonObject *dr_qmp_call_object(DrQmp *qmp, const char *command, JsonObject *arguments, GError **error);
JsonArray *dr_qmp_call_array(DrQmp *qmp, const char *command, JsonObject *arguments, GError **error);
gboolean dr_qmp_do(DrQmp *qmp, const char *command, JsonObject *arguments, GError **error);

/* The same past the others that QEMU has under way: for those of its commands that allow it (migrate-recover, migrate-pause),
 * while its main loop waits for a page of post-copy. */
gboolean dr_qmp_do_oob(DrQmp *qmp, const char *command, JsonObject *arguments, GError **error);

/* Notes each command from now on as {"execute","arguments"?} in `into` (borrowed); NULL: no more. */
void dr_qmp_record(DrQmp *qmp, JsonArray *into);

/* Gives QEMU a copy of a descriptor (getfd), which it knows by `name` from then on. Over unix sockets only. */
gboolean dr_qmp_pass_fd(DrQmp *qmp, const char *name, int fd, GError **error);

/* A line of the human monitor. Returns: (transfer full): its output, which may be an error text. */
char *dr_qmp_hmp(DrQmp *qmp, GError **error, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* A property by QOM path. Returns: (transfer full). */
JsonNode *dr_qmp_qom_get(DrQmp *qmp, const char *path, const char *property, GError **error);
char *dr_qmp_qom_str(DrQmp *qmp, const char *path, const char *property, GError **error);

/* Events. pop: the oldest queued one or NULL, no wait. wait: drops others until one called `name` comes.
 * `name` may list several: "STOP|RESUME". (transfer full) */
DrQmpEvent *dr_qmp_pop_event(DrQmp *qmp);
DrQmpEvent *dr_qmp_wait_event(DrQmp *qmp, const char *name, DrDeadline deadline, GError **error);

/* Reads what is there on several connections, waiting until at least one has a queued event or has closed.
 * FALSE: DR_ERROR_TIMEOUT or DR_ERROR_CANCELLED. NULLs in the array are passed over. */
gboolean dr_qmp_wait_many(DrQmp *const *qmps, guint n, DrDeadline deadline, GError **error);

/* Reads what is there without waiting. FALSE: closed. For an owner that sleeps in a main loop. */
gboolean dr_qmp_read_some(DrQmp *qmp);
