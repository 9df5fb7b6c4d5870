/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover doctor: goes through the checks and tells what they found. */
#include "base/error.h"
#include "base/fd.h"
#include "cli/doctor.h"
#include "cli/render.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX (4 * 1024 * 1024) /* /proc/cpuinfo of a large host */

/* --- Finding --- */

static void
say(DrDoctor *d, const char *severity, const char *code, const char *remedy, const char *format, va_list args)
{
  JsonObject *finding = json_object_new();
  g_autofree char *text = g_strdup_vprintf(format, args);
  g_autofree char *valid = g_utf8_make_valid(text, -1);
  gsize len = strlen(valid);

  if (len > 0 && valid[len - 1] == '.') /* of another program's words */
    valid[len - 1] = '\0';
  json_object_set_string_member(finding, "group", d->group);
  json_object_set_string_member(finding, "severity", severity);
  json_object_set_string_member(finding, "code", code);
  json_object_set_string_member(finding, "text", valid);
  if (remedy)
    json_object_set_string_member(finding, "remedy", remedy);
  else
    json_object_set_null_member(finding, "remedy");
  json_array_add_object_element(d->findings, finding);
}

void
dr_doctor_ok(DrDoctor *d, const char *code, const char *format, ...)
{
  va_list args;

  va_start(args, format);
  say(d, "ok", code, NULL, format, args);
  va_end(args);
}

void
dr_doctor_note(DrDoctor *d, const char *code, const char *remedy, const char *format, ...)
{
  va_list args;

  va_start(args, format);
  say(d, "note", code, remedy, format, args);
  va_end(args);
}

void
dr_doctor_warning(DrDoctor *d, const char *code, const char *remedy, const char *format, ...)
{
  va_list args;

  d->warnings++;
  va_start(args, format);
  say(d, "warning", code, remedy, format, args);
  va_end(args);
}

void
dr_doctor_blocker(DrDoctor *d, const char *code, const char *remedy, const char *format, ...)
{
  va_list args;

  d->blockers++;
  va_start(args, format);
  say(d, "blocker", code, remedy, format, args);
  va_end(args);
}

/* --- Reading --- */

char *
dr_doctor_path(const DrDoctor *d, const char *path)
{
  return g_strconcat(d->root, path, NULL);
}

char *
dr_doctor_read(const DrDoctor *d, const char *path)
{
  g_autofree char *full = dr_doctor_path(d, path);
  char *text = dr_file_read(full, FILE_MAX, NULL, NULL);

  return text ? g_strchomp(text) : NULL;
}

gint64
dr_doctor_number(const DrDoctor *d, const char *path, gint64 otherwise)
{
  g_autofree char *text = dr_doctor_read(d, path);
  gint64 number;

  return text && g_ascii_string_to_signed(text, 10, G_MININT64, G_MAXINT64, &number, NULL) ? number
                                                                                           : otherwise;
}

gint64
dr_doctor_meminfo(const DrDoctor *d, const char *name)
{
  g_autofree char *text = dr_doctor_read(d, "/proc/meminfo");
  g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);
  gsize len = strlen(name);

  for (char **line = lines; *line; line++)
    if (g_str_has_prefix(*line, name) && (*line)[len] == ':')
      return g_ascii_strtoll(*line + len + 1, NULL, 10) * 1024;
  return -1;
}

/* --- Telling --- */

static void
print_finding(JsonObject *finding, gboolean color)
{
  const char *severity = dr_json_str(finding, "severity", "?");
  g_autofree char *shown = dr_render_state(severity, color);
  g_autofree char *text = dr_render_harmless(dr_json_str(finding, "text", "?"));
  g_autofree char *remedy = dr_render_harmless(dr_json_str(finding, "remedy", ""));
  g_auto(GStrv) lines = g_strsplit(remedy, "\n", -1);

  printf("  %s%*s %-17s %s\n", shown, (int)(8 - strlen(severity)), "", dr_json_str(finding, "code", "?"),
         text);
  for (char **line = lines; *line; line++)
    printf("  %26s remedy: %s\n", "", *line);
}

static void
print_findings(const DrDoctor *d, gboolean quiet, gboolean color)
{
  const char *group = "";

  for (guint i = 0; i < json_array_get_length(d->findings); i++) {
    JsonObject *finding = json_array_get_object_element(d->findings, i);
    const char *of = dr_json_str(finding, "group", "");

    if (quiet && g_str_equal(dr_json_str(finding, "severity", ""), "ok"))
      continue;
    if (!g_str_equal(of, group))
      printf("%s\n", of);
    group = of;
    print_finding(finding, color);
  }
}

static void
print_summary(const DrDoctor *d)
{
  if (d->blockers)
    printf("%u blocker%s, %u warning%s\n", d->blockers, d->blockers == 1 ? "" : "s", d->warnings,
           d->warnings == 1 ? "" : "s");
  else if (d->warnings)
    printf("%u warning%s; nothing keeps drover from working\n", d->warnings, d->warnings == 1 ? "" : "s");
  else
    puts("nothing is wrong");
}

static int
tell(const DrDoctor *d, gboolean quiet)
{
  if (d->cli->json) {
    g_autoptr(JsonNode) node = json_node_new(JSON_NODE_ARRAY);

    json_node_set_array(node, d->findings);
    dr_cli_print_json(node);
  } else {
    print_findings(d, quiet, dr_render_color(STDOUT_FILENO, d->cli->no_color));
    print_summary(d);
  }
  return d->blockers ? DR_EXIT_FAILED : DR_EXIT_DONE;
}

/* --- All --- */

static void
check_all(DrDoctor *d, const char *config)
{
  static const struct {
    const char *group;
    void (*check)(DrDoctor *d);
  } themes[] = {
    { "host", dr_doctor_check_host },   { "memory", dr_doctor_check_memory },
    { "QEMU", dr_doctor_check_qemu },   { "libvirt", dr_doctor_check_libvirt },
    { "network", dr_doctor_check_net }, { "keys", dr_doctor_check_keys },
    { "room", dr_doctor_check_room },   { "droverd", dr_doctor_check_daemon },
  };

  dr_doctor_find_daemon(d, config);
  for (guint i = 0; i < G_N_ELEMENTS(themes); i++) {
    d->group = themes[i].group;
    themes[i].check(d);
  }
}

static void
clear(DrDoctor *d)
{
  json_array_unref(d->findings);
  g_free(d->config_file);
  g_free(d->config_problem);
  g_free(d->config_remedy);
  dr_config_clear(&d->config);
  g_clear_pointer(&d->version, json_object_unref);
  g_clear_error(&d->no_answer);
}

int
dr_cmd_doctor(DrCli *cli, int argc, char **argv)
{
  g_autofree char *config = NULL;
  gboolean quiet = FALSE;
  const GOptionEntry entries[] = {
    { "config", 'c', 0, G_OPTION_ARG_FILENAME, &config,
      "droverd's configuration (default: that of the one that runs, or /etc/drover/droverd.conf)", "FILE" },
    { "quiet", 'q', 0, G_OPTION_ARG_NONE, &quiet, "Print only what is not ok", NULL },
    { NULL },
  };
  const char *root =
      g_getenv("DROVER_DOCTOR_ROOT"); /* for tests: a tree with files of /proc, /sys, /dev, … */
  DrDoctor d = { .cli = cli, .root = root ? root : "", .group = "" };
  g_autoptr(GError) error = NULL;
  int code;

  if (!dr_cli_parse(cli, argc, argv, entries, 0, 0, &error) || !dr_cli_client(cli, &error))
    return dr_cli_fail(cli, error);
  d.findings = json_array_new();
  check_all(&d, config);
  code = tell(&d, quiet);
  clear(&d);
  return code;
}
