/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See domains-view.h. */
#include "cli/domains-view.h"
#include "base/error.h"
#include "cli/cli.h"
#include "cli/job-view.h"
#include "cli/render.h"

#include <stdio.h>
#include <string.h>

#define NAMED_MAX 3 /* domains in a line; more are counted */

static JsonArray *
domains_of(JsonObject *run)
{
  return dr_json_arr(run, "domains");
}

guint
dr_domains_view_count(JsonObject *run)
{
  return domains_of(run) ? json_array_get_length(domains_of(run)) : 0;
}

static gboolean
is_in(JsonObject *domain, const char *const *states)
{
  return g_strv_contains(states, dr_json_str(domain, "state", ""));
}

static const char *
name_of(JsonObject *domain)
{
  return dr_json_str(domain, "name", "?");
}

/* "libvirtd.service", or of "libvirtd, pid 4711" the program: the next one has another pid. (transfer full) */
static char *
daemon_of(JsonObject *run)
{
  const char *name = dr_json_str(run, "daemon_name", "libvirt's daemon");
  const char *pid = strstr(name, ", pid ");
  g_autofree char *text = g_strndup(name, pid ? (gsize)(pid - name) : strlen(name));

  return dr_render_harmless(text);
}

/* --- Under way --- */

/* "web1, web2" or "12 domains". (transfer full) */
static char *
names_text(JsonObject *run)
{
  static const char *const moving[] = { "waiting", "moving", "moved", NULL };
  g_autoptr(GString) text = g_string_new(NULL);
  guint n = 0;

  for (guint i = 0; i < dr_domains_view_count(run); i++) {
    JsonObject *domain = json_array_get_object_element(domains_of(run), i);

    if (is_in(domain, moving) && ++n <= NAMED_MAX)
      g_string_append_printf(text, "%s%s", n > 1 ? ", " : "", name_of(domain));
  }
  return n > NAMED_MAX ? g_strdup_printf("%u domains", n) : g_strdup(n ? text->str : "no domain");
}

char *
dr_domains_view_doing(JsonObject *run)
{
  const char *state = dr_json_str(run, "state", "?");
  g_autofree char *names = names_text(run), *daemon = daemon_of(run), *text = NULL;

  if (g_str_equal(state, "stopping") || g_str_equal(state, "starting"))
    text = g_strdup_printf("%s %s", state, daemon);
  else if (g_str_equal(state, "moving"))
    text = g_strdup_printf("upgrading %s", names);
  else if (g_str_equal(state, "patching"))
    text = g_strdup("writing libvirt's files");
  else if (g_str_equal(state, "verifying"))
    text = g_strdup("comparing libvirt's view with QEMU's");
  else
    text = g_strdup(g_str_equal(state, "checking") ? "checking libvirt's domains" : state);
  return dr_render_harmless(text);
}

/* --- A domain --- */

gboolean
dr_domains_view_settled(JsonObject *domain)
{
  static const char *const settled[] = { "refused", "stayed", "lost", "patched", "done", NULL };

  return is_in(domain, settled);
}

/* "paused 17 ms (copied nothing)"; without a pause where nobody could measure it. (transfer full) */
static char *
how_text(JsonObject *domain)
{
  JsonObject *result = dr_json_obj(domain, "result");
  const char *mode = dr_json_str(result, "memory_mode", "");
  double pause_ms = result ? dr_render_number(result, "pause_ms", -1) : -1;
  g_autofree char *pause = dr_render_ms(pause_ms);
  g_autofree char *bytes = result ? dr_render_bytes(dr_render_number(result, "bytes_moved", 0)) : NULL;
  g_autofree char *copied = !result                         ? g_strdup("its old run was interrupted")
                            : g_str_equal(mode, "shared")   ? g_strdup("copied nothing")
                            : g_str_equal(mode, "postcopy") ? g_strdup_printf("copied %s by post-copy", bytes)
                                                            : g_strdup_printf("copied %s", bytes);

  return pause_ms >= 0 ? g_strdup_printf(", paused %s (%s)", pause, copied)
                       : g_strdup_printf(" (%s)", copied);
}

static void
print_success(JsonObject *domain)
{
  g_autofree char *how = how_text(domain);
  const char *result_before = dr_json_str(domain, "result.qemu_before", NULL);
  const char *result_after = dr_json_str(domain, "result.qemu_after", NULL);
  g_autofree char *text =
      g_strdup_printf("%s: upgraded %s -> %s%s", name_of(domain),
                      result_before ? result_before : dr_json_str(domain, "qemu_before", "?"),
                      result_after ? result_after : dr_json_str(domain, "qemu_after", "?"), how);
  g_autofree char *harmless = dr_render_harmless(text);

  puts(harmless);
  fflush(stdout);
}

static void
print_error(const char *text, const char *remedy)
{
  g_autofree char *harmless = dr_render_harmless(text);
  g_autofree char *how = remedy ? dr_render_harmless(remedy) : NULL;

  fprintf(stderr, "drover: %s\n", harmless);
  if (how)
    fprintf(stderr, "  remedy: %s\n", how);
}

static void
print_failure(JsonObject *domain)
{
  JsonArray *findings = dr_json_arr(domain, "findings");
  guint blockers = dr_job_view_count_blockers(findings);
  g_autofree char *text = NULL;

  if (g_str_equal(dr_json_str(domain, "state", ""), "lost")) {
    text = g_strdup_printf("domain '%s' has ended: %s", name_of(domain),
                           dr_json_str(domain, "error.message", "its QEMU is gone"));
    print_error(text, dr_json_str(domain, "error.remedy", "start it: virsh start"));
  } else if (blockers) {
    text = g_strdup_printf("domain '%s' was not upgraded and runs where it was: %u blocker%s",
                           name_of(domain), blockers, blockers == 1 ? "" : "s");
    print_error(text, NULL);
    dr_job_view_print_blockers(findings);
  } else {
    text = g_strdup_printf("domain '%s' was not upgraded and runs where it was: %s", name_of(domain),
                           dr_json_str(domain, "error.message", "the run ended before its turn came"));
    print_error(text, dr_json_str(domain, "error.remedy", NULL));
  }
}

void
dr_domains_view_print_note(JsonObject *domain)
{
  g_autofree char *text = g_strdup_printf("%s: %s", name_of(domain), dr_json_str(domain, "note", ""));
  g_autofree char *harmless = dr_render_harmless(text);

  fprintf(stderr, "%s\n", harmless);
}

void
dr_domains_view_print(JsonObject *domain, gboolean color)
{
  static const char *const moved[] = { "patched", "done", NULL };

  dr_job_view_print_findings(name_of(domain), dr_json_arr(domain, "findings"), FALSE, color);
  if (is_in(domain, moved))
    print_success(domain);
  else
    print_failure(domain);
}

/* --- The end --- */

static gboolean
is_true(JsonObject *domain)
{
  return g_str_equal(dr_json_str(domain, "state", ""), "done") && dr_json_bool(domain, "view_is_true", FALSE);
}

/* Of one that is under its new QEMU. */
static void
print_view(JsonObject *domain)
{
  JsonArray *view = dr_json_arr(domain, "view");
  const char *why = dr_json_str(domain, "error.message", NULL);
  g_autofree char *text = NULL;

  for (guint i = 0; view && i < json_array_get_length(view); i++) {
    JsonObject *finding = json_array_get_object_element(view, i);
    g_autofree char *line = g_strdup_printf("libvirt's view of domain '%s' is not QEMU's: %s",
                                            name_of(domain), dr_json_str(finding, "text", "?"));

    print_error(line, dr_json_str(finding, "remedy", NULL));
  }
  if (view && json_array_get_length(view) && !why)
    return;
  text = why ? g_strdup(why)
             : g_strdup_printf("nobody could see whether libvirt's view of domain '%s' is QEMU's",
                               name_of(domain));
  print_error(
      text, dr_json_str(domain, "error.remedy", "compare virsh dumpxml and virsh domstats with what it has"));
}

static void
print_views(JsonObject *run)
{
  static const char *const moved[] = { "moving", "moved", "patched", "done", NULL };
  guint n = 0;

  for (guint i = 0; i < dr_domains_view_count(run); i++) {
    JsonObject *domain = json_array_get_object_element(domains_of(run), i);

    if (is_true(domain))
      n++;
    else if (is_in(domain, moved))
      print_view(domain);
  }
  if (n)
    printf("libvirt's view of %u domain%s is QEMU's\n", n, n == 1 ? "" : "s");
}

static void
print_times(JsonObject *run)
{
  double total_ms = dr_render_number(run, "total_ms", -1), away_ms = dr_render_number(run, "away_ms", -1);
  g_autofree char *total = dr_render_ms(total_ms), *away = dr_render_ms(away_ms);
  g_autofree char *daemon = daemon_of(run);

  if (away_ms >= 0 && total_ms >= 0)
    printf("took %s; %s was away for %s\n", total, daemon, away);
}

void
dr_domains_view_print_end(JsonObject *run)
{
  const char *message = dr_json_str(run, "error.message", NULL);

  print_views(run);
  print_times(run);
  fflush(stdout);
  if (message)
    print_error(message, dr_json_str(run, "error.remedy", NULL));
}

/* What was not touched does not count here: the run's own error says why. */
static int
exit_of_domain(JsonObject *domain)
{
  static const char *const where_it_was[] = { "refused", "stayed", NULL }, *const untouched[] = { "waiting",
                                                                                                  NULL };

  if (is_in(domain, where_it_was))
    return DR_EXIT_FAILED;
  return is_in(domain, untouched) || is_true(domain) ? DR_EXIT_DONE : DR_EXIT_ATTENTION;
}

int
dr_domains_view_exit(JsonObject *run)
{
  const char *code = dr_json_str(run, "error.code", NULL);
  g_autoptr(GError) error =
      code ? g_error_new_literal(DR_ERROR, (int)dr_error_code_from_name(code), "of the run") : NULL;
  int worst = error ? dr_exit_of(error) : DR_EXIT_DONE;

  for (guint i = 0; i < dr_domains_view_count(run); i++)
    worst = dr_exit_worse(worst, exit_of_domain(json_array_get_object_element(domains_of(run), i)));
  return g_str_equal(dr_json_str(run, "state", ""), "done") ? worst : DR_EXIT_ATTENTION;
}

/* --- A report --- */

void
dr_domains_view_print_report(JsonObject *report, gboolean color)
{
  g_autofree char *name = dr_render_harmless(name_of(report));
  const char *mode = dr_json_str(report, "memory_mode", "?");

  fflush(stdout);
  dr_job_view_print_findings(name, dr_json_arr(report, "findings"), TRUE, color);
  if (dr_json_bool(report, "ok", FALSE))
    printf("%s: can be upgraded %s -> %s (%s)\n", name, dr_json_str(report, "qemu_before", "?"),
           dr_json_str(report, "qemu_after", "?"),
           g_str_equal(mode, "shared")     ? "copies nothing"
           : g_str_equal(mode, "postcopy") ? "copies RAM by post-copy"
                                           : "copies RAM once first");
  else
    printf("%s: cannot be upgraded\n", name);
}
