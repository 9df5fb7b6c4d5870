/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Follows jobs: by the event stream, and where that fails by asking. */
#include "cli/follow.h"
#include "base/deadline.h"
#include "base/error.h"
#include "cli/bar.h"
#include "cli/job-view.h"
#include "cli/live.h"
#include "cli/render.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define ASK_WAIT_S 30
#define RESTART_MS 60000 /* a droverd that is being restarted takes its jobs up again */
#define RETRY_US 200000

typedef struct {
  JsonObject *job;
  char *stage;   /* shown last, without a terminal */
  gboolean told; /* its findings */
} Row;

typedef struct {
  DrCli *cli;
  GPtrArray *rows;
  gboolean live, color;
  int drawn;       /* live lines below which the cursor stands */
  gint64 event_ms; /* of the event that is being told; 0: droverd was asked */
} Follow;

/* Read by the signal handler, so it is made before. */
static char detach_text[512];

static void
on_interrupt(int signal_number)
{
  ssize_t ignored = write(STDERR_FILENO, detach_text, strlen(detach_text));

  (void)ignored;
  _exit(DR_EXIT_DETACHED);
}

static void
catch_interrupt(Follow *follow)
{
  const Row *first = follow->rows->pdata[0];
  const char *id = dr_json_str(first->job, "id", "?");

  if (follow->rows->len == 1)
    g_snprintf(detach_text, sizeof detach_text,
               "\ndetached: job %s goes on. Come back with drover watch %s, stop it with drover cancel %s\n",
               id, id, id);
  else
    g_snprintf(detach_text, sizeof detach_text,
               "\ndetached: %u jobs go on, from %s. See drover jobs and drover watch, stop one with drover "
               "cancel ID\n",
               follow->rows->len, id);
  signal(SIGINT, on_interrupt);
}

static void
row_free(gpointer data)
{
  Row *row = data;

  json_object_unref(row->job);
  g_free(row->stage);
  g_free(row);
}

/* --- The live lines --- */

static void
terminal_size(int *ret_rows, int *ret_columns)
{
  struct winsize size;
  gboolean known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0;

  *ret_rows = known ? size.ws_row : 24;
  *ret_columns = known ? size.ws_col : 80;
}

static void
erase(Follow *follow)
{
  if (follow->drawn > 0)
    fprintf(stderr, "\033[%dA\033[J", follow->drawn);
  follow->drawn = 0;
}

static guint
count_live(const Follow *follow)
{
  guint n = 0;

  for (guint i = 0; i < follow->rows->len; i++)
    n += !dr_job_view_ended(((const Row *)follow->rows->pdata[i])->job);
  return n;
}

/* In full where that leaves a line for each of those behind it. Returns: whether there was room. */
static gboolean
draw_job(GString *out, JsonObject *job, const DrLiveStyle *style, int *room, guint behind)
{
  g_autoptr(GPtrArray) lines = dr_live_lines(job, style);
  g_autofree char *line = NULL;

  if (*room <= 0)
    return FALSE;
  if ((int)(lines->len + behind) <= *room) {
    for (guint i = 0; i < lines->len; i++)
      g_string_append_printf(out, "%s\n", (char *)lines->pdata[i]);
    *room -= (int)lines->len;
    return TRUE;
  }
  line = dr_live_line(job, style);
  g_string_append_printf(out, "%s\n", line);
  (*room)--;
  return TRUE;
}

/* What does not fit the terminal would scroll away and could not be erased. */
static void
draw(Follow *follow)
{
  g_autoptr(GString) out = g_string_new(NULL);
  DrLiveStyle style = { .color = follow->color, .utf8 = dr_bar_utf8(), .now_ms = g_get_real_time() / 1000 };
  guint live = count_live(follow), hidden = 0;
  int rows, room;

  if (!follow->live)
    return;
  terminal_size(&rows, &style.columns);
  room = MAX(rows - 3, 1);
  if (follow->drawn > 0)
    g_string_append_printf(out, "\033[%dA\033[J", follow->drawn);
  for (guint i = 0; i < follow->rows->len; i++) {
    const Row *row = follow->rows->pdata[i];

    if (!dr_job_view_ended(row->job))
      hidden += !draw_job(out, row->job, &style, &room, --live);
  }
  if (hidden > 0)
    g_string_append_printf(out, "and %u more\n", hidden);
  fputs(out->str, stderr);
  follow->drawn = MAX(rows - 3, 1) - room + (hidden > 0);
}

/* --- What changes --- */

static void
tell_findings(Follow *follow, Row *row)
{
  JsonArray *findings = dr_json_arr(row->job, "findings");

  if (row->told || !findings || json_array_get_length(findings) == 0)
    return;
  row->told = TRUE;
  erase(follow);
  dr_job_view_print_findings(dr_json_str(row->job, "vm", "?"), findings, FALSE, follow->color);
}

static void
tell_stage(Follow *follow, Row *row)
{
  const char *stage = dr_json_str(row->job, "stage", "");

  if (follow->live || !*stage || g_strcmp0(stage, row->stage) == 0)
    return;
  g_free(row->stage);
  row->stage = g_strdup(stage);
  fprintf(stderr, "%s: %s\n", dr_json_str(row->job, "vm", "?"), stage);
}

/* Has ended, or come as far as it is followed. */
static gboolean
is_over(const Follow *follow, JsonObject *job)
{
  return dr_job_view_ended(job) ||
         (follow->cli->until && g_str_equal(dr_json_str(job, "stage", ""), follow->cli->until));
}

/* A line, as the event stream has it; where droverd was asked instead, made of the answer. */
static void
print_event(const Follow *follow, JsonObject *job)
{
  g_autoptr(JsonObject) event = json_object_new();
  g_autofree char *line = NULL;

  json_object_set_string_member(event, "type", "job");
  json_object_set_int_member(event, "time_ms",
                             follow->event_ms ? follow->event_ms : g_get_real_time() / 1000);
  json_object_set_object_member(event, "job", json_object_ref(job));
  line = dr_json_print_object(event, FALSE);
  puts(line);
  fflush(stdout);
}

static void
tell(Follow *follow, Row *row)
{
  if (follow->cli->events)
    print_event(follow, row->job);
  if (follow->cli->json)
    return;
  tell_findings(follow, row);
  if (is_over(follow, row->job)) {
    erase(follow);
    dr_job_view_print_end(row->job);
    fflush(stdout);
  } else {
    tell_stage(follow, row);
  }
  draw(follow);
}

/* A job that has ended does not change any more: an older event must not bring it back. */
static void
take(Follow *follow, JsonObject *job)
{
  const char *id = dr_json_str(job, "id", "");

  for (guint i = 0; i < follow->rows->len; i++) {
    Row *row = follow->rows->pdata[i];

    if (!g_str_equal(id, dr_json_str(row->job, "id", "")) || is_over(follow, row->job))
      continue;
    json_object_unref(row->job);
    row->job = json_object_ref(job);
    tell(follow, row);
  }
}

static gboolean
all_ended(Follow *follow)
{
  for (guint i = 0; i < follow->rows->len; i++)
    if (!is_over(follow, ((Row *)follow->rows->pdata[i])->job))
      return FALSE;
  return TRUE;
}

/* --- Where the news come from --- */

/* A wait of droverd's lasts to the end of a job, not to a stage. */
static gboolean
ask_once(Follow *follow, guint wait_s, GError **error)
{
  g_autofree char *path =
      g_strdup_printf("/v1/jobs/{}?wait=%u", follow->cli->until ? MIN(wait_s, 1) : wait_s);

  for (guint i = 0; i < follow->rows->len; i++) {
    Row *row = follow->rows->pdata[i];
    g_autoptr(JsonNode) answer = NULL;

    if (is_over(follow, row->job))
      continue;
    answer = dr_cli_call(follow->cli, "GET", path, dr_json_str(row->job, "id", ""), NULL, error);
    if (!answer)
      return FALSE;
    if (JSON_NODE_HOLDS_OBJECT(answer))
      take(follow, json_node_get_object(answer));
  }
  return TRUE;
}

/* A droverd that does not answer for a moment is being restarted. */
static gboolean
ask(Follow *follow, guint wait_s, GError **error)
{
  DrDeadline deadline = dr_deadline_in(RESTART_MS);

  for (;;) {
    g_autoptr(GError) cause = NULL;

    if (ask_once(follow, wait_s, &cause))
      return TRUE;
    if (!g_error_matches(cause, DR_ERROR, DR_ERROR_CLOSED) || dr_deadline_passed(deadline)) {
      g_propagate_error(error, g_steal_pointer(&cause));
      return FALSE;
    }
    g_usleep(RETRY_US);
  }
}

/* Takes one event; FALSE when the stream has ended. */
static gboolean
follow_event(Follow *follow, GDataInputStream *events)
{
  g_autoptr(JsonObject) event = dr_client_next_event(events, NULL);
  JsonObject *job = event ? dr_json_obj(event, "job") : NULL;

  follow->event_ms = event ? dr_json_int(event, "time_ms", 0) : 0;
  if (job)
    take(follow, job);
  follow->event_ms = 0;
  if (!job && event && g_str_equal(dr_json_str(event, "type", ""), "lost"))
    return ask(follow, 0, NULL);
  return event != NULL;
}

static gboolean
follow_all(Follow *follow, GDataInputStream *events, GError **error)
{
  gboolean streaming = events != NULL;

  for (guint i = 0; i < follow->rows->len; i++)
    tell(follow, follow->rows->pdata[i]);
  while (!all_ended(follow)) {
    if (streaming)
      streaming = follow_event(follow, events);
    else if (!ask(follow, ASK_WAIT_S, error))
      return FALSE;
  }
  return TRUE;
}

static int
give_back(Follow *follow, JsonArray *jobs)
{
  int code = DR_EXIT_DONE;

  for (guint i = 0; i < follow->rows->len; i++) {
    Row *row = follow->rows->pdata[i];

    json_array_remove_element(jobs, 0);
    json_array_add_object_element(jobs, json_object_ref(row->job));
    if (dr_job_view_ended(row->job))
      code = dr_exit_worse(code, dr_job_view_exit(row->job));
  }
  return code;
}

/* Nobody knows here what has become of the jobs. */
static int
lose(const Follow *follow, const GError *cause, GError **error)
{
  const Row *first = follow->rows->pdata[0];
  const char *id = dr_json_str(first->job, "id", "?");

  dr_error_set(error, cause->domain == DR_ERROR ? cause->code : DR_ERROR_CLOSED,
               "job %s%s was under way, and %s", id, follow->rows->len > 1 ? " and others" : "",
               cause->message);
  dr_error_remedy(error, "when droverd runs, it takes its jobs up again: drover watch %s", id);
  return -1;
}

int
dr_follow(DrCli *cli, JsonArray *jobs, GDataInputStream *events, GError **error)
{
  g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func(row_free);
  Follow follow = { .cli = cli, .rows = rows, .color = dr_render_color(STDERR_FILENO, cli->no_color) };
  g_autoptr(GError) cause = NULL;
  gboolean followed;

  follow.live = !cli->json && isatty(STDERR_FILENO) && g_strcmp0(g_getenv("TERM"), "dumb") != 0;
  for (guint i = 0; i < json_array_get_length(jobs); i++) {
    Row *row = g_new0(Row, 1);

    row->job = json_object_ref(json_array_get_object_element(jobs, i));
    g_ptr_array_add(rows, row);
  }
  if (rows->len == 0)
    return DR_EXIT_DONE;
  catch_interrupt(&follow);
  followed = follow_all(&follow, events, &cause);
  erase(&follow);
  signal(SIGINT, SIG_DFL);
  return followed ? give_back(&follow, jobs) : lose(&follow, cause, error);
}
