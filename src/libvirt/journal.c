/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See journal.h. */
#include "libvirt/journal.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_RUN (64 * 1024 * 1024)
#define HOLD_MAX_MS 120000
#define LOCK_MS 500

struct DrLibvirtJournal {
  char *dir, *run_dir;
  int lock;
  JsonObject *run;
  gint64 entered_us; /* its state; monotonic */
};

static gboolean
lock(DrLibvirtJournal *journal, GError **error)
{
  g_autofree char *path = g_build_filename(journal->dir, "lock", NULL);

  journal->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (journal->lock < 0)
    return dr_error_set_errno(error, errno, "cannot open '%s'", path);
  for (DrDeadline deadline = dr_deadline_in(LOCK_MS); !dr_deadline_passed(deadline); g_usleep(10000))
    if (flock(journal->lock, LOCK_EX | LOCK_NB) == 0) /* or droverd looks just now whether somebody has it */
      return TRUE;
  dr_error_set(error, DR_ERROR_BUSY, "libvirt's domains are being upgraded just now");
  return dr_error_remedy(error, "wait for its end: drover upgrade --libvirt follows it");
}

/* By the clock: older than this boot. */
static gboolean
is_of_last_boot(const char *path)
{
  struct timespec up;
  struct stat st;

  return clock_gettime(CLOCK_BOOTTIME, &up) == 0 && stat(path, &st) == 0 &&
         st.st_mtime < time(NULL) - up.tv_sec;
}

DrLibvirtJournal *
dr_libvirt_journal_open(const char *dir, const char *run_dir, GError **error)
{
  g_autoptr(DrLibvirtJournal) journal = g_new0(DrLibvirtJournal, 1);
  g_autofree char *path = g_build_filename(dir, "run.json", NULL);
  g_autofree char *text = NULL;

  journal->lock = -1;
  journal->entered_us = g_get_monotonic_time();
  journal->dir = g_strdup(dir);
  journal->run_dir = g_strdup(run_dir);
  if (!dr_mkdir(dir, 0700, error) || !dr_mkdir(run_dir, 0700, error) || !lock(journal, error))
    return NULL;
  if (!g_file_test(path, G_FILE_TEST_EXISTS))
    return g_steal_pointer(&journal);
  text = dr_file_read(path, MAX_RUN, NULL, error);
  journal->run = text ? dr_json_parse_object(text, -1, MAX_RUN, error) : NULL;
  if (journal->run || !text || !is_of_last_boot(path))
    return journal->run ? g_steal_pointer(&journal) : NULL;
  g_clear_error(error); /* a power cut tore it: no domain of that run is left */
  unlink(path);
  return g_steal_pointer(&journal);
}

void
dr_libvirt_journal_close(DrLibvirtJournal *journal)
{
  if (!journal)
    return;
  if (journal->lock >= 0)
    close(journal->lock);
  g_clear_pointer(&journal->run, json_object_unref);
  g_free(journal->dir);
  g_free(journal->run_dir);
  g_free(journal);
}

JsonObject *
dr_libvirt_journal_run(DrLibvirtJournal *journal)
{
  return journal->run;
}

void
dr_libvirt_journal_set(DrLibvirtJournal *journal, JsonObject *run)
{
  g_clear_pointer(&journal->run, json_object_unref);
  journal->run = run;
}

gboolean
dr_libvirt_journal_save(DrLibvirtJournal *journal, GError **error)
{
  g_autofree char *path = g_build_filename(journal->dir, "run.json", NULL);
  g_autofree char *text = dr_json_print_object(journal->run, TRUE);

  return dr_file_write(path, text, error);
}

void
dr_libvirt_journal_hold(DrLibvirtJournal *journal, const char *point)
{
  const char *wanted = g_getenv("DROVER_HOLD_AT");
  g_auto(GStrv) points = g_strsplit(wanted ? wanted : "", ",", -1);
  g_autofree char *path = g_build_filename(journal->run_dir, "hold", NULL);
  DrDeadline deadline = dr_deadline_in(HOLD_MAX_MS);

  if (!g_strv_contains((const char *const *)points, point) || !dr_file_write(path, point, NULL))
    return;
  g_message("held at '%s' until '%s' is removed", point, path);
  while (g_file_test(path, G_FILE_TEST_EXISTS) && !dr_deadline_passed(deadline))
    g_usleep(10000); /* bounded by the deadline */
}

/* How long the state that ends has taken, beside those before it; one that is entered again (by a recovery) counts once more. */
static void
note_step(DrLibvirtJournal *journal)
{
  gint64 now = g_get_monotonic_time();
  const char *state = dr_json_str(journal->run, "state", NULL);
  JsonObject *steps = dr_json_obj(journal->run, "steps_ms");

  if (!steps) {
    steps = json_object_new();
    json_object_set_object_member(journal->run, "steps_ms", steps);
  }
  if (state)
    json_object_set_double_member(steps, state,
                                  json_object_get_double_member_with_default(steps, state, 0) +
                                      (double)(now - journal->entered_us) / 1000.0);
  journal->entered_us = now;
}

gboolean
dr_libvirt_journal_enter(DrLibvirtJournal *journal, const char *state, GError **error)
{
  g_autofree char *point = g_strdup_printf("libvirt-%s", state);

  note_step(journal);
  json_object_set_string_member(journal->run, "state", state);
  if (!dr_libvirt_journal_save(journal, error))
    return FALSE;
  dr_libvirt_journal_hold(journal, point);
  return TRUE;
}

void
dr_libvirt_put_error(JsonObject *object, const GError *error)
{
  JsonObject *one = json_object_new();

  json_object_set_string_member(one, "code", dr_error_code_name(error));
  json_object_set_string_member(one, "message", error->message);
  json_object_set_string_member(one, "remedy", dr_error_get_remedy(error));
  json_object_set_object_member(object, "error", one);
}
