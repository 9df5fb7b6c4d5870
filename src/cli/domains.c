/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See domains.h. A run is followed by asking for it: an answer comes when it has changed. */
#include "cli/domains.h"
#include "base/deadline.h"
#include "base/error.h"
#include "cli/domains-view.h"
#include "cli/render.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define RUN "/v1/libvirt/upgrade"
#define WAIT_MS 10000
#define WAIT_LIVE_MS 200 /* the line on a terminal has a clock */
#define RESTART_MS 60000 /* a droverd that is being restarted takes its run up again */
#define RETRY_US 200000
#define LINE_MAX_CHARS 60 /* one that wraps could not be erased */

void
dr_domain_options_clear(DrDomainOptions *options)
{
  g_free(options->uri);
  g_free(options->emulator);
}

char *
dr_cli_find_qemu(const DrCli *cli, const char *qemu, const char *option, GError **error)
{
  g_autofree char *found = strchr(qemu, '/') ? g_strdup(qemu) : g_find_program_in_path(qemu);

  if (!found) {
    dr_error_set(error, DR_ERROR_NOT_FOUND, "%s: there is no program '%s' in PATH", cli->verb->name, qemu);
    dr_error_remedy(error, "give its path: --%s /usr/bin/qemu-system-x86_64", option);
    return NULL;
  }
  return g_canonicalize_filename(found, NULL);
}

JsonObject *
dr_domains_request(const DrCli *cli, char **names, const DrDomainOptions *options, GError **error)
{
  g_autoptr(JsonObject) body = json_object_new();

  if (names && names[0])
    json_object_set_array_member(body, "domains", dr_json_array_from_strv((const char *const *)names));
  if (options->uri)
    json_object_set_string_member(body, "uri", options->uri);
  if (options->untested)
    json_object_set_boolean_member(body, "untested", TRUE);
  if (options->emulator) {
    g_autofree char *path = dr_cli_find_qemu(cli, options->emulator, "emulator", error);

    if (!path)
      return NULL;
    json_object_set_string_member(body, "emulator", path);
  }
  return g_steal_pointer(&body);
}

/* (transfer full) */
static JsonObject *
take_object(JsonNode *answer, GError **error)
{
  g_autoptr(JsonNode) node = answer;

  if (node && JSON_NODE_HOLDS_OBJECT(node))
    return json_node_dup_object(node);
  if (node)
    dr_error_set(error, DR_ERROR_INTERNAL, "droverd's answer is no object");
  return NULL;
}

static void
print_json(JsonObject *object)
{
  g_autoptr(JsonNode) node = dr_json_node(json_object_ref(object));

  dr_cli_print_json(node);
}

/* Of a name that nobody knows, both say so. */
static int
nobody_knows(const GError *cause, const char *message, GError **error)
{
  dr_error_set(error, (DrErrorCode)cause->code, "%s, and as a domain of libvirt's: %s", cause->message,
               message);
  dr_error_remedy(error, "drover list shows the VMs of drover, virsh list the domains that run");
  return -1;
}

/* --- Check --- */

int
dr_domains_check(DrCli *cli, JsonObject *body, const GError *cause, GError **error)
{
  g_autoptr(GError) local = NULL;
  g_autoptr(JsonObject) answer =
      take_object(dr_cli_call(cli, "POST", "/v1/libvirt/check", NULL, body, &local), &local);
  JsonArray *domains = answer ? dr_json_arr(answer, "domains") : NULL;
  gboolean color = dr_render_color(STDOUT_FILENO, cli->no_color);
  int code = DR_EXIT_DONE;

  if (!answer && cause)
    return nobody_knows(cause, local->message, error);
  if (!answer) {
    g_propagate_error(error, g_steal_pointer(&local));
    return -1;
  }
  for (guint i = 0; domains && i < json_array_get_length(domains); i++) {
    JsonObject *report = json_array_get_object_element(domains, i);

    if (!cli->json)
      dr_domains_view_print_report(report, color);
    if (!dr_json_bool(report, "ok", FALSE))
      code = DR_EXIT_FAILED;
  }
  if (cli->json)
    print_json(answer);
  else if (!domains || json_array_get_length(domains) == 0)
    fputs("libvirt has no running domain\n", stderr);
  return code;
}

/* --- Following --- */

typedef struct {
  DrCli *cli;
  const GError *cause; /* nullable */
  gboolean live, color;
  char *doing;       /* told last */
  char *event;       /* printed last */
  GHashTable *told;  /* set of names: domains whose end has been told */
  GHashTable *noted; /* what each domain waits for, as told last, by its name */
  gint64 started_ms; /* which run it is */
} Follow;

static void
follow_clear(Follow *follow)
{
  g_free(follow->doing);
  g_free(follow->event);
  g_clear_pointer(&follow->told, g_hash_table_unref);
  g_clear_pointer(&follow->noted, g_hash_table_unref);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Follow, follow_clear)

static void
on_interrupt(int signal_number)
{
  static const char text[] =
      "\ndetached: the upgrade of libvirt's domains goes on; drover upgrade --libvirt comes back to it\n";
  ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);

  (void)ignored;
  _exit(DR_EXIT_DETACHED);
}

static void
erase(const Follow *follow)
{
  if (follow->live)
    fputs("\r\033[K", stderr);
}

static void
tell_doing(Follow *follow, JsonObject *run)
{
  g_autofree char *doing = dr_domains_view_doing(run);
  g_autofree char *took =
      dr_render_ms((double)MAX(g_get_real_time() / 1000 - dr_json_int(run, "started_ms", 0), 0));

  if (follow->live) {
    g_autofree char *cut = g_utf8_substring(doing, 0, MIN(g_utf8_strlen(doing, -1), LINE_MAX_CHARS));

    fprintf(stderr, "\r\033[K%s, %s", cut, took);
    fflush(stderr);
  } else if (g_strcmp0(doing, follow->doing) != 0) {
    fprintf(stderr, "%s\n", doing);
  }
  g_free(follow->doing);
  follow->doing = g_steal_pointer(&doing);
}

static void
tell_domains(Follow *follow, JsonObject *run)
{
  JsonArray *domains = dr_json_arr(run, "domains");
  gboolean ended = !dr_json_bool(run, "active", FALSE),
           checking = g_str_equal(dr_json_str(run, "state", ""), "checking");

  for (guint i = 0; domains && (ended || !checking) && i < json_array_get_length(domains); i++) {
    JsonObject *domain = json_array_get_object_element(domains, i);
    const char *name = dr_json_str(domain, "name", "?");

    if (!dr_domains_view_settled(domain) || g_hash_table_contains(follow->told, name))
      continue;
    g_hash_table_add(follow->told, g_strdup(name));
    dr_domains_view_print(domain, follow->color);
  }
}

/* What a domain's upgrade waits for: libvirt's daemon is away as long. */
static void
tell_notes(Follow *follow, JsonObject *run)
{
  JsonArray *domains = dr_json_arr(run, "domains");

  for (guint i = 0; domains && i < json_array_get_length(domains); i++) {
    JsonObject *domain = json_array_get_object_element(domains, i);
    const char *name = dr_json_str(domain, "name", "?"), *note = dr_json_str(domain, "note", NULL);

    if (!note || g_strcmp0(note, g_hash_table_lookup(follow->noted, name)) == 0)
      continue;
    g_hash_table_insert(follow->noted, g_strdup(name), g_strdup(note));
    dr_domains_view_print_note(domain);
  }
}

static void
tell_event(Follow *follow, JsonObject *run)
{
  g_autofree char *text = dr_json_print_object(run, FALSE);

  if (g_strcmp0(text, follow->event) == 0)
    return;
  printf("{\"type\":\"libvirt\",\"time_ms\":%" G_GINT64_FORMAT ",\"run\":%s}\n", g_get_real_time() / 1000,
         text);
  fflush(stdout);
  g_free(follow->event);
  follow->event = g_steal_pointer(&text);
}

/* It came to no domain, and the names may have been meant for drover's own. */
static gboolean
is_nobodys(const Follow *follow, JsonObject *run)
{
  return follow->cause && !dr_json_bool(run, "active", FALSE) && dr_json_obj(run, "error") &&
         !dr_domains_view_count(run);
}

static void
tell(Follow *follow, JsonObject *run)
{
  gboolean active = dr_json_bool(run, "active", FALSE);

  if (follow->cli->events && (!follow->cause || dr_domains_view_count(run)))
    tell_event(follow, run);
  if (follow->cli->json)
    return;
  erase(follow);
  if (active)
    tell_notes(follow, run);
  tell_domains(follow, run);
  if (active && !g_str_equal(dr_json_str(run, "state", ""), "done")) /* its process ends a moment later */
    tell_doing(follow, run);
  else if (!active && !is_nobodys(follow, run))
    dr_domains_view_print_end(run);
}

/* A droverd that does not answer for a moment is being restarted. */
static JsonObject *
ask(Follow *follow, GError **error)
{
  g_autofree char *path = g_strdup_printf(RUN "?wait=%d", follow->live ? WAIT_LIVE_MS : WAIT_MS);
  DrDeadline deadline = dr_deadline_in(RESTART_MS);

  for (;;) {
    g_autoptr(GError) cause = NULL;
    JsonNode *answer = dr_cli_call(follow->cli, "GET", path, NULL, NULL, &cause);

    if (answer)
      return take_object(answer, error);
    if (!g_error_matches(cause, DR_ERROR, DR_ERROR_CLOSED) || dr_deadline_passed(deadline)) {
      g_propagate_prefixed_error(error, g_steal_pointer(&cause),
                                 "libvirt's domains were being upgraded, and ");
      return NULL;
    }
    g_usleep(RETRY_US); /* bounded by the deadline */
  }
}

/* Of a run that was at its very beginning when droverd was killed nothing is known afterwards. */
static gboolean
is_the_same(const Follow *follow, JsonObject *run, GError **error)
{
  if (dr_json_int(run, "started_ms", 0) == follow->started_ms)
    return TRUE;
  dr_error_set(error, DR_ERROR_CLOSED, "droverd ended before the upgrade of libvirt's domains had begun");
  return dr_error_remedy(error, "start it again");
}

/* `run`: consumed. Returns it as it is at its end. */
static JsonObject *
follow_run(Follow *follow, JsonObject *run, GError **error)
{
  g_autoptr(JsonObject) now = run;

  tell(follow, now);
  while (dr_json_bool(now, "active", FALSE)) {
    g_autoptr(JsonObject) next = ask(follow, error);

    if (!next || !is_the_same(follow, next, error))
      return NULL;
    json_object_unref(now);
    now = g_steal_pointer(&next);
    tell(follow, now);
  }
  return g_steal_pointer(&now);
}

/* `run`: consumed. */
static int
follow_to_the_end(DrCli *cli, JsonObject *run, const GError *cause, GError **error)
{
  g_auto(Follow) follow = { .cli = cli,
                            .cause = cause,
                            .color = dr_render_color(STDERR_FILENO, cli->no_color),
                            .told = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL),
                            .noted = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free),
                            .started_ms = dr_json_int(run, "started_ms", 0) };
  g_autoptr(JsonObject) ended = NULL;

  follow.live = !cli->json && isatty(STDERR_FILENO) && g_strcmp0(g_getenv("TERM"), "dumb") != 0;
  signal(SIGINT, on_interrupt);
  ended = follow_run(&follow, run, error);
  signal(SIGINT, SIG_DFL);
  if (!ended)
    erase(&follow);
  if (ended && is_nobodys(&follow, ended))
    return nobody_knows(cause, dr_json_str(ended, "error.message", "it does not say why"), error);
  if (ended && cli->json && !cli->events)
    print_json(ended);
  return ended ? dr_domains_view_exit(ended) : -1;
}

int
dr_domains_upgrade(DrCli *cli, JsonObject *body, gboolean async, const GError *cause, GError **error)
{
  g_autoptr(GError) local = NULL;
  JsonObject *run = take_object(dr_cli_call(cli, "POST", RUN, NULL, body, &local), &local);

  if (!run && cause && !g_error_matches(local, DR_ERROR, DR_ERROR_BUSY))
    return nobody_knows(cause, local->message, error);
  if (!run) {
    g_propagate_error(error, g_steal_pointer(&local));
    return -1;
  }
  if (!async)
    return follow_to_the_end(cli, run, cause, error);
  if (cli->json)
    print_json(run);
  else
    puts("the upgrade of libvirt's domains has begun; drover upgrade --libvirt follows it");
  json_object_unref(run);
  return DR_EXIT_DONE;
}

int
dr_domains_follow(DrCli *cli, GError **error)
{
  JsonObject *run = take_object(dr_cli_call(cli, "GET", RUN, NULL, NULL, error), error);

  return run ? follow_to_the_end(cli, run, NULL, error) : -1;
}
