/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover ui's look after droverd. */
#include "cli/ui-watch.h"
#include "base/error.h"

#include <stdio.h>

#define ASK_MS 3000
#define ANSWER_S 10

struct DrUiWatch {
  const DrCli *cli;
  guint away_s;
  GMainLoop *loop;
  GThread *thread;
  GMutex lock;
  GCond ended;
  gboolean end;
  gint64 away_since; /* monotonic, us; 0: it is there */
  GError *error;     /* the thread's until it has been joined */
};

static gboolean
ask(const DrUiWatch *watch, GError **error)
{
  DrClient *client = dr_cli_new_client(watch->cli, error);
  g_autoptr(JsonNode) answer = NULL;

  if (!client)
    return FALSE;
  dr_client_set_timeout(client, ANSWER_S);
  answer = dr_client_call(client, "GET", "/v1/version", NULL, error);
  dr_client_free(client);
  return answer != NULL;
}

/* TRUE: it has been away for too long. */
static gboolean
note(DrUiWatch *watch, const GError *cause)
{
  gint64 now = g_get_monotonic_time();

  if (!cause && watch->away_since)
    fputs("drover ui: droverd is back\n", stderr);
  if (cause && !watch->away_since)
    fprintf(stderr, "drover ui: %s; waiting for it\n", cause->message);
  watch->away_since = !cause ? 0 : watch->away_since ? watch->away_since : now;
  if (!cause || now - watch->away_since < (gint64)watch->away_s * G_USEC_PER_SEC)
    return FALSE;
  dr_error_set(&watch->error, DR_ERROR_CLOSED, "ended, as droverd has been away for %u s: %s", watch->away_s,
               cause->message);
  dr_error_remedy(&watch->error, "when droverd runs again: drover ui");
  return TRUE;
}

static gboolean
wait_a_little(DrUiWatch *watch)
{
  gint64 until = g_get_monotonic_time() + ASK_MS * 1000;
  gboolean end;

  g_mutex_lock(&watch->lock);
  while (!watch->end && g_cond_wait_until(&watch->ended, &watch->lock, until))
    continue;
  end = watch->end;
  g_mutex_unlock(&watch->lock);
  return !end;
}

/* libsoup's session belongs to the context of the thread that made it. */
static gpointer
look(gpointer data)
{
  DrUiWatch *watch = data;
  g_autoptr(GMainContext) context = g_main_context_new();

  g_main_context_push_thread_default(context);
  while (wait_a_little(watch)) {
    g_autoptr(GError) cause = NULL;

    ask(watch, &cause);
    if (note(watch, cause)) {
      g_main_loop_quit(watch->loop);
      break;
    }
  }
  g_main_context_pop_thread_default(context);
  return NULL;
}

DrUiWatch *
dr_ui_watch_new(const DrCli *cli, guint away_s, GMainLoop *loop)
{
  DrUiWatch *watch = g_new0(DrUiWatch, 1);

  g_mutex_init(&watch->lock);
  g_cond_init(&watch->ended);
  watch->cli = cli;
  watch->away_s = away_s;
  watch->loop = g_main_loop_ref(loop);
  watch->thread = g_thread_new("droverd", look, watch);
  return watch;
}

gboolean
dr_ui_watch_end(DrUiWatch *watch, GError **error)
{
  gboolean here;

  g_mutex_lock(&watch->lock);
  watch->end = TRUE;
  g_cond_signal(&watch->ended);
  g_mutex_unlock(&watch->lock);
  g_thread_join(watch->thread);
  here = watch->error == NULL;
  if (!here)
    g_propagate_error(error, watch->error);
  g_mutex_clear(&watch->lock);
  g_cond_clear(&watch->ended);
  g_main_loop_unref(watch->loop);
  g_free(watch);
  return here;
}
