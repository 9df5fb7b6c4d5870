/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Jobs in words. */
#include "cli/job-view.h"
#include "cli/render.h"

#include <stdio.h>
#include <unistd.h>

gboolean
dr_job_view_ended(JsonObject *job)
{
  const char *state = dr_json_str(job, "state", "");

  return !g_str_equal(state, "queued") && !g_str_equal(state, "running");
}

int
dr_job_view_exit(JsonObject *job)
{
  const char *state = dr_json_str(job, "state", "");

  if (g_str_equal(state, "succeeded"))
    return DR_EXIT_DONE;
  return g_str_equal(state, "attention") || g_str_equal(dr_json_str(job, "error.code", ""), "attention")
             ? DR_EXIT_ATTENTION
             : DR_EXIT_FAILED;
}

const char *
dr_job_view_memory(const char *mode)
{
  if (g_str_equal(mode, "shared"))
    return "shared RAM";
  if (g_str_equal(mode, "copy"))
    return "RAM copied";
  return g_str_equal(mode, "postcopy") ? "RAM by post-copy" : mode;
}

/* The names of the disks that a copy is about, and where they go: "d0 to /x, d1 to /y". */
static char *
copies_text(JsonArray *copies)
{
  GString *text = g_string_new(NULL);

  for (guint i = 0; copies && i < json_array_get_length(copies); i++) {
    JsonObject *copy = json_array_get_object_element(copies, i);

    g_string_append_printf(text, "%s%s to %s", i ? ", " : "", dr_json_str(copy, "disk", "?"),
                           dr_json_str(copy, "target", "?"));
  }
  return g_string_free(text, FALSE);
}

/* ", with 153 MiB of memory, paused 23 ms"; NULL without memory. */
static char *
memory_text(JsonObject *result)
{
  JsonObject *memory = dr_json_obj(result, "memory");
  g_autofree char *bytes = memory ? dr_render_bytes(dr_render_number(memory, "bytes", 0)) : NULL;
  double pause_ms = memory ? dr_render_number(memory, "pause_ms", -1) : -1;
  g_autofree char *pause = dr_render_ms(pause_ms);

  if (!memory)
    return NULL;
  return g_strdup_printf(", with %s of memory%s%s", bytes, pause_ms >= 0 ? ", paused " : "",
                         pause_ms >= 0 ? pause : "");
}

/* What the guest wrote since is not silently gone. */
static char *
revert_sentence(JsonObject *job, JsonObject *result)
{
  g_autofree char *total = dr_render_ms(dr_render_number(result, "total_ms", 0));
  g_auto(GStrv) kept = dr_json_strv(dr_json_arr(result, "kept"));
  g_autofree char *files = kept ? g_strjoinv(", ", kept) : g_strdup("");

  return g_strdup_printf("%s: back at snapshot %s, %s, took %s%s%s", dr_json_str(job, "vm", "?"),
                         dr_json_str(result, "snapshot", "?"),
                         dr_json_bool(result, "memory", FALSE) ? "the guest goes on from there"
                                                               : "the guest boots from its disks",
                         total, *files ? "; what it wrote since is in " : "", files);
}

/* "d0 to /b/d0.qcow2", or "d0 at nbd+unix:///d0?socket=/s", a line each. (transfer full) */
static char *
backup_text(JsonObject *result, const char *before, const char *member)
{
  GString *text = g_string_new(NULL);
  JsonArray *disks = dr_json_arr(result, "disks");

  for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
    JsonObject *disk = json_array_get_object_element(disks, i);

    g_string_append_printf(text, "\n  %s %s %s", dr_json_str(disk, "disk", "?"), before,
                           dr_json_str(disk, member, "?"));
  }
  return g_string_free(text, FALSE);
}

static char *
backup_sentence(JsonObject *job, JsonObject *result)
{
  const char *vm = dr_json_str(job, "vm", "?");
  g_autofree char *total = dr_render_ms(dr_render_number(result, "total_ms", 0));
  g_autofree char *bytes = dr_render_bytes(dr_render_number(result, "bytes_moved", 0));
  g_autofree char *files = NULL;

  if (g_str_equal(dr_json_str(job, "kind", ""), "disk-serve"))
    return g_strdup_printf("%s: its disks are not served any more%s", vm,
                           dr_json_bool(result, "success", FALSE) ? "; the next backup goes on from this one"
                                                                  : "");
  files = backup_text(result, "to", "file");
  return g_strdup_printf("%s: backed up%s, %s, took %s%s", vm,
                         dr_json_bool(result, "incremental", FALSE) ? " what was written since" : "", bytes,
                         total, files);
}

/* Of a job on disks. */
static char *
disk_sentence(JsonObject *job, JsonObject *result)
{
  const char *vm = dr_json_str(job, "vm", "?");
  g_autofree char *total = dr_render_ms(dr_render_number(result, "total_ms", 0));
  g_autofree char *bytes = dr_render_bytes(dr_render_number(result, "bytes_moved", 0));
  g_autofree char *copies = NULL, *memory = memory_text(result);

  if (g_str_equal(dr_json_str(job, "kind", ""), "disk-backup") ||
      g_str_equal(dr_json_str(job, "kind", ""), "disk-serve"))
    return backup_sentence(job, result);
  if (g_str_equal(dr_json_str(job, "kind", ""), "disk-pull"))
    return g_strdup_printf("%s: pulled disk %s, %s, took %s", vm, dr_json_str(result, "disk", "?"), bytes,
                           total);
  if (g_str_equal(dr_json_str(job, "kind", ""), "disk-stream"))
    return g_strdup_printf("%s: its disks are here, %s, took %s", vm, bytes, total);
  if (g_str_equal(dr_json_str(job, "kind", ""), "disk-snapshot"))
    return g_strdup_printf(
        "%s: snapshot %s taken of %u disk%s%s%s, took %s", vm, dr_json_str(result, "name", "?"),
        json_array_get_length(dr_json_arr(result, "disks")),
        json_array_get_length(dr_json_arr(result, "disks")) == 1 ? "" : "s",
        dr_json_bool(result, "quiesced", FALSE) ? ", file systems frozen" : "", memory ? memory : "", total);
  if (g_str_equal(dr_json_str(job, "kind", ""), "disk-merge"))
    return g_strdup_printf("%s: snapshot %s merged %s, %s, took %s", vm, dr_json_str(result, "snapshot", "?"),
                           dr_json_bool(result, "up", FALSE) ? "up" : "down", bytes, total);
  copies = copies_text(dr_json_arr(result, "copies"));
  return g_strdup_printf("%s: copied %s, %s, took %s; the VM %s", vm, copies, bytes, total,
                         g_str_equal(dr_json_str(result, "kept", ""), "copy") ? "runs on the copy"
                                                                              : "keeps its disk");
}

/* ", 17.2 GB of disks"; "" where none was copied. (transfer full) */
static char *
disks_of(JsonObject *result)
{
  double moved = dr_render_number(result, "storage_bytes", 0);
  g_autofree char *bytes = dr_render_bytes(moved);

  return moved > 0 ? g_strdup_printf(", %s of disks", bytes) : g_strdup("");
}

/* Without a pause where there was none to measure: the guest was paused, or droverd restarted meanwhile. */
static char *
success_sentence(JsonObject *job)
{
  JsonObject *result = dr_json_obj(job, "result");
  double pause_ms = dr_render_number(result, "pause_ms", -1);
  g_autofree char *pause = dr_render_ms(pause_ms);
  g_autofree char *total = dr_render_ms(dr_render_number(result, "total_ms", 0));
  g_autofree char *bytes = dr_render_bytes(dr_render_number(result, "bytes_moved", 0));
  g_autofree char *what = NULL, *again = NULL, *disks = NULL;
  gint64 broken;

  if (!result)
    return g_strdup_printf("%s: %s succeeded", dr_json_str(job, "vm", "?"), dr_json_str(job, "kind", "job"));
  if (g_str_has_prefix(dr_json_str(job, "kind", ""), "disk-"))
    return disk_sentence(job, result);
  if (g_str_equal(dr_json_str(job, "kind", ""), "snapshot-revert"))
    return revert_sentence(job, result);
  if (dr_json_str(result, "peer", NULL))
    what = g_strdup_printf("moved to %s (%s -> %s)", dr_json_str(result, "peer", "?"),
                           dr_json_str(result, "qemu_before", "?"), dr_json_str(result, "qemu_after", "?"));
  else
    what = g_strdup_printf("upgraded %s -> %s", dr_json_str(result, "qemu_before", "?"),
                           dr_json_str(result, "qemu_after", "?"));
  broken = dr_json_int(result, "recoveries", 0);
  if (broken > 0)
    again = g_strdup_printf(", went on after a broken link%s", broken > 1 ? " each time" : "");
  disks = disks_of(result);
  return g_strdup_printf(
      "%s: %s, %s%s%s%s moved (%s)%s%s, took %s", dr_json_str(job, "vm", "?"), what,
      pause_ms >= 0 ? "paused " : "", pause_ms >= 0 ? pause : "", pause_ms >= 0 ? ", " : "", bytes,
      dr_job_view_memory(dr_json_str(result, "memory_mode", "?")), disks, again ? again : "", total);
}

static char *
sentence_of(JsonObject *job)
{
  const char *vm = dr_json_str(job, "vm", "?");
  const char *state = dr_json_str(job, "state", "?");

  if (g_str_equal(state, "succeeded"))
    return success_sentence(job);
  if (g_str_equal(dr_json_str(job, "stage", ""), "ready") && g_str_equal(state, "running"))
    return g_strdup_printf(
        "%s: the copy is complete and kept in step; go on with it by drover disk pivot %s, or keep the "
        "disk: drover disk abort %s",
        vm, vm, vm);
  if (g_str_equal(dr_json_str(job, "stage", ""), "serve") && g_str_equal(state, "running")) {
    g_autofree char *uris = backup_text(dr_json_obj(job, "result"), "at", "uri");

    return g_strdup_printf("%s: its disks, as they were at this moment, can be read%s\n"
                           "end it with drover backup finish %s, and with --success if the backup is good",
                           vm, uris, vm);
  }
  if (dr_job_view_ended(job))
    return g_strdup_printf("%s: %s: %s", vm, state, dr_json_str(job, "error.message", "no reason was given"));
  return g_strdup_printf("%s: %s", vm, state);
}

char *
dr_job_view_sentence(JsonObject *job)
{
  g_autofree char *text = sentence_of(job);

  return dr_render_harmless(text);
}

char *
dr_job_view_progress(JsonObject *job)
{
  JsonObject *progress = dr_json_obj(job, "progress");
  const char *stage = dr_json_str(job, "stage", dr_json_str(job, "state", "?"));
  double done_bytes = dr_render_number(progress, "bytes_done", 0);
  double total_bytes = dr_render_number(progress, "bytes_total", 0);
  g_autofree char *done = dr_render_bytes(done_bytes);
  g_autofree char *total = dr_render_bytes(total_bytes);

  if (!progress || total_bytes <= 0)
    return g_strdup(stage);
  return g_strdup_printf(
      "%s %.0f%% (%s of %s, %.0f MiB/s, pass %d)", stage, CLAMP(100 * done_bytes / total_bytes, 0, 100), done,
      total, dr_render_number(progress, "rate_mib", 0), (int)dr_render_number(progress, "pass", 1));
}

/* Names in it may be a guest's owner's. NULL where there is none. */
static char *
harmless(JsonObject *object, const char *name)
{
  const char *text = dr_json_str(object, name, NULL);

  return text ? dr_render_harmless(text) : NULL;
}

void
dr_job_view_print_findings(const char *vm, JsonArray *findings, gboolean blockers, gboolean color)
{
  for (guint i = 0; findings && i < json_array_get_length(findings); i++) {
    JsonObject *finding = json_array_get_object_element(findings, i);
    const char *severity = dr_json_str(finding, "severity", "note");
    g_autofree char *text = harmless(finding, "text"), *remedy = harmless(finding, "remedy");
    g_autofree char *word = dr_render_state(severity, color);

    if (g_str_equal(severity, "blocker") && !blockers)
      continue;
    fprintf(stderr, "%s: %s: %s\n", vm, word, text ? text : "?");
    if (remedy)
      fprintf(stderr, "  remedy: %s\n", remedy);
  }
}

guint
dr_job_view_count_blockers(JsonArray *findings)
{
  guint n = 0;

  for (guint i = 0; findings && i < json_array_get_length(findings); i++)
    n += g_str_equal(dr_json_str(json_array_get_object_element(findings, i), "severity", ""), "blocker");
  return n;
}

void
dr_job_view_print_blockers(JsonArray *findings)
{
  for (guint i = 0; findings && i < json_array_get_length(findings); i++) {
    JsonObject *finding = json_array_get_object_element(findings, i);
    g_autofree char *text = harmless(finding, "text"), *remedy = harmless(finding, "remedy");

    if (!g_str_equal(dr_json_str(finding, "severity", ""), "blocker"))
      continue;
    fprintf(stderr, "  blocker: %s\n", text ? text : "?");
    if (remedy)
      fprintf(stderr, "    remedy: %s\n", remedy);
  }
}

/* The error's message has all blockers in one line: here each gets its own. */
static void
print_refusal(const char *vm, JsonArray *findings, guint n, gboolean on_disks)
{
  fprintf(stderr, "drover: VM '%s' was not %s: %u blocker%s\n", vm,
          on_disks ? "touched" : "moved and runs where it was", n, n == 1 ? "" : "s");
  dr_job_view_print_blockers(findings);
}

void
dr_job_view_print_end(JsonObject *job)
{
  g_autofree char *sentence = dr_job_view_sentence(job), *remedy = harmless(job, "error.remedy");
  JsonArray *findings = dr_json_arr(job, "findings");
  guint blockers = dr_job_view_count_blockers(findings);

  if (g_str_equal(dr_json_str(job, "state", ""), "succeeded") || !dr_job_view_ended(job)) {
    puts(sentence);
  } else if (blockers > 0 && g_str_equal(dr_json_str(job, "error.code", ""), "refused")) {
    print_refusal(dr_json_str(job, "vm", "?"), findings, blockers,
                  g_str_has_prefix(dr_json_str(job, "kind", ""), "disk-") ||
                      g_str_equal(dr_json_str(job, "kind", ""), "snapshot-revert"));
  } else {
    fprintf(stderr, "drover: %s\n", sentence);
    if (remedy)
      fprintf(stderr, "  remedy: %s\n", remedy);
  }
}
