/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which of the two QEMUs answers, and which has ended?
 *
 * The two are never mixed up: a QEMU that says nothing (its main loop waits for a disk, somebody else holds its monitor,
 * it is being debugged) may run the guest. It is neither killed nor replaced by the other one for its silence. */
#include "base/error.h"
#include "base/fd.h"
#include "job/upgrade-internal.h"
#include "qemu/spawn.h"

#include <poll.h>

#define CONNECT_MS 5000
#define EXIT_MS 500 /* a keeper writes right after waitpid(2) */
#define DYING_MS                                                                                             \
  3000 /* between the end of a monitor and that of its process: a large one takes a moment to die */
#define AGAIN_MS 2000 /* between two questions to one that does not answer */

static gboolean
same(const DrProcId *a, const DrProcId *b)
{
  return a->pid && a->pid == b->pid && a->start_time == b->start_time;
}

gboolean
dr_upgrade_is_source(const DrUpgrade *u, const DrProcId *id)
{
  return same(&u->plan.source, id);
}

gboolean
dr_upgrade_is_dest(const DrUpgrade *u, const DrProcId *id)
{
  return same(&u->dest_id, id);
}

gboolean
dr_upgrade_ends_within(const DrProcId *id, int timeout_ms)
{
  g_autoptr(GError) error = NULL;
  dr_autofd int fd = id->pid ? dr_proc_open(id, &error) : -1;
  struct pollfd end = { .fd = fd, .events = POLLIN };

  if (fd < 0)
    return !id->pid || g_error_matches(error, DR_ERROR, DR_ERROR_NOT_FOUND);
  return poll(&end, 1, timeout_ms) > 0;
}

char *
dr_upgrade_exit_status(const char *exit_path, const DrProcId *id)
{
  DrDeadline deadline = dr_deadline_in(EXIT_MS);
  char *status = NULL;

  while (exit_path && id->pid && !dr_proc_alive(id) && !dr_spawn_read_exit(exit_path, id, &status, NULL) &&
         !dr_deadline_passed(deadline))
    g_usleep(1000); /* bounded by the deadline */
  return status;
}

gboolean
dr_upgrade_answers_for(DrQmp *qmp, const DrProcId *id)
{
  g_autoptr(JsonArray) cpus = dr_qmp_call_array(qmp, "query-cpus-fast", NULL, NULL);
  JsonObject *first = cpus && json_array_get_length(cpus) ? json_array_get_object_element(cpus, 0) : NULL;
  g_autofree char *task =
      g_strdup_printf("/proc/%d/task/%d", id->pid, first ? (int)dr_json_int(first, "thread-id", 0) : 0);

  return first && g_file_test(task, G_FILE_TEST_IS_DIR);
}

/* Each QEMU takes one connection: the one that answers for the other process is put aside, and the next is this one's. */
static DrQmp *
connect_shared(const DrProcId *id, const char *path)
{
  g_autoptr(DrQmp) other = NULL;

  for (int try = 0; try < 2; try++) {
    DrQmp *qmp = dr_qmp_connect(path, FALSE, dr_deadline_in(CONNECT_MS), NULL);

    if (!qmp || dr_upgrade_answers_for(qmp, id))
      return qmp;
    g_clear_pointer(&other, dr_qmp_free);
    other = qmp;
  }
  return NULL;
}

DrQmp *
dr_upgrade_connect(DrUpgrade *u, const DrProcId *id, const char *path)
{
  if (u->plan.foreign)
    return connect_shared(id, path);
  return dr_qmp_connect(path, FALSE, dr_deadline_in(CONNECT_MS), NULL);
}

static gboolean
answers(DrQmp *qmp)
{
  g_autoptr(JsonObject) status = dr_qmp_call_object(qmp, "query-status", NULL, NULL);

  return status != NULL;
}

/* `path` is tried where there is no connection, or none any more. */
static DrReach
reach(DrUpgrade *u, DrQmp **qmp, const DrProcId *id, const char *path)
{
  gboolean closed = FALSE;

  if (*qmp) {
    dr_qmp_set_cancel_fd(*qmp, -1);
    if (answers(*qmp))
      return DR_REACH_TALKS;
    closed = dr_qmp_closed(*qmp);
  }
  if (closed && qmp == &u->dest)
    dr_upgrade_note_resume(u); /* all that it said before is there */
  if (closed)
    g_clear_pointer(qmp, dr_qmp_free);
  if (dr_upgrade_ends_within(id, *qmp ? 0 : DYING_MS)) {
    g_clear_pointer(qmp, dr_qmp_free);
    return DR_REACH_GONE;
  }
  if (closed && qmp == &u->dest)
    u->watched = FALSE; /* it lives on, and may say something that we do not hear */
  if (!*qmp && path)
    *qmp = dr_upgrade_connect(u, id, path);
  return *qmp && answers(*qmp) ? DR_REACH_TALKS : DR_REACH_MUTE;
}

DrReach
dr_upgrade_reach_source(DrUpgrade *u)
{
  return reach(u, &u->source, &u->plan.source, u->plan.source_qmp);
}

DrReach
dr_upgrade_reach_dest(DrUpgrade *u)
{
  DrReach found = reach(u, &u->dest, &u->dest_id, u->plan.qmp_path);

  dr_upgrade_note_resume(u);
  return found;
}

/* A thread of it waits for a page of post-copy (in the kernel's handle_userfault()), most often a vCPU with QEMU's big lock
 * held, so that the monitor says nothing. */
static gboolean
waits_for_page(pid_t pid)
{
  g_autofree char *tasks = g_strdup_printf("/proc/%d/task", pid);
  g_autoptr(GDir) dir = g_dir_open(tasks, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    g_autofree char *path = g_build_filename(tasks, name, "wchan", NULL);
    g_autofree char *where = dr_file_read(path, 200, NULL, NULL);

    if (where && g_str_equal(where, "handle_userfault"))
      return TRUE;
  }
  return FALSE;
}

gboolean
dr_upgrade_is_starved(DrUpgrade *u)
{
  u->starved =
      u->starved || (u->postcopy_begun && !u->source && waits_for_page(u->dest_id.pid) &&
                     dr_upgrade_ends_within(&u->plan.source, 0) &&
                     !dr_upgrade_ends_within(&u->dest_id, AGAIN_MS) && waits_for_page(u->dest_id.pid));
  return u->starved;
}

void
dr_upgrade_note_resume(DrUpgrade *u)
{
  DrQmpEvent *event;

  while (u->dest && (event = dr_qmp_pop_event(u->dest))) {
    if (g_str_equal(event->name, "RESUME"))
      u->resumed_us = event->time_us;
    dr_pause_dest_event(&u->pause, event);
    dr_qmp_event_free(event);
  }
}

gboolean
dr_upgrade_never_ran(DrUpgrade *u)
{
  dr_upgrade_note_resume(u);
  return u->watched && u->resumed_us == 0;
}

void
dr_upgrade_wait_for_word(DrUpgrade *u, const DrProcId *id, const char *why)
{
  if (!u->waited) {
    g_autofree char *text =
        g_strdup_printf("the upgrade waits: %s; if it hangs for good, end it: kill -9 %d", why, id->pid);

    g_warning("VM '%s': %s", dr_vm_name(u->vm), text);
    dr_upgrade_note(u->vm, text, FALSE);
    dr_vm_set_state(u->vm, "attention");
    u->waited = TRUE;
  }
  dr_upgrade_ends_within(id, AGAIN_MS);
}
