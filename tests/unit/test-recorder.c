/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The flight recorder: bounds, what is kept when it thins out, phases without gaps, pauses whose parts add up; percentiles. */
#include "job/ram-meter.h"
#include "job/recorder.h"
#include "job/stats.h"

#include <math.h>
#include <string.h>

#define ORIGIN 5000000

static void
take(DrRecorder *r, gint64 ms, gint64 pass, const char *phase)
{
  DrProgress progress = DR_PROGRESS_INIT;

  progress.bytes_done = ms * 1000;
  progress.bytes_total = 1ll << 40;
  progress.rate_mib = 123.456;
  progress.pass = pass;
  progress.phase = phase;
  progress.remaining = (1ll << 40) - ms;
  progress.expected_pause_ms = pass * 10;
  dr_recorder_sample(r, &progress, "stage", ORIGIN + ms * 1000);
}

static JsonArray *
samples_of(JsonObject *report)
{
  return dr_json_arr(report, "samples");
}

static gint64
time_of(JsonArray *samples, guint i)
{
  return dr_json_int(json_array_get_object_element(samples, i), "t_ms", -1);
}

static void
test_samples_are_bounded(void)
{
  g_autoptr(DrRecorder) r = dr_recorder_new(ORIGIN);
  g_autoptr(JsonObject) report = NULL, packed = NULL, unpacked = NULL;
  g_autofree char *text = NULL;
  JsonArray *samples;
  guint n;

  for (gint64 ms = 0; ms <= 3600000; ms += 20) /* an hour */
    take(r, ms, ms / 50000, NULL);
  report = dr_recorder_report(r, ORIGIN + 3600000000ll);
  samples = samples_of(report);
  n = json_array_get_length(samples);
  g_assert_cmpuint(n, >, DR_RECORDER_SAMPLES / 4);
  g_assert_cmpuint(n, <=, DR_RECORDER_SAMPLES);
  g_assert_cmpint(time_of(samples, 0), ==, 0);
  g_assert_cmpint(time_of(samples, n - 1), ==, 3600000); /* the newest is there, whatever its distance */
  for (guint i = 1; i < n; i++)
    g_assert_cmpint(time_of(samples, i) - time_of(samples, i - 1), <, 3600000 / (int)n * 4);
  text = dr_recorder_pack(r);
  g_assert_cmpuint(strlen(text), <=, DR_RECORDER_BYTES);
  packed = dr_json_parse_object(text, -1, DR_RECORDER_BYTES, NULL);
  unpacked = dr_recorder_unpack(packed);
  g_assert_cmpint(time_of(samples_of(unpacked), json_array_get_length(samples_of(unpacked)) - 1), ==,
                  3600000);
}

static void
test_passes_are_kept(void)
{
  g_autoptr(DrRecorder) r = dr_recorder_new(ORIGIN);
  g_autoptr(JsonObject) report = NULL;
  JsonArray *samples;
  gint64 seen = -1;

  for (gint64 ms = 0; ms < 200; ms++) /* a pass takes 7 ms */
    take(r, ms, ms / 7, NULL);
  report = dr_recorder_report(r, ORIGIN + 200000);
  samples = samples_of(report);
  for (guint i = 0; i < json_array_get_length(samples); i++) {
    gint64 pass = dr_json_int(json_array_get_object_element(samples, i), "pass", -1);

    g_assert_cmpint(pass - seen, <=, 1);
    seen = pass;
  }
  g_assert_cmpint(seen, ==, 199 / 7);
  g_assert_cmpuint(json_array_get_length(samples), <, 70);
}

/* What is not known is null, and a packed report says the same as one that was never packed. */
static void
test_a_packed_report_is_the_same(void)
{
  g_autoptr(DrRecorder) r = dr_recorder_new(ORIGIN), copy = NULL;
  g_autoptr(JsonObject) report = NULL, packed = NULL, unpacked = NULL;
  g_autofree char *text = NULL, *one = NULL, *other = NULL;
  DrDiskProgress disks[] = { { (char *)"d0", 10, 100 }, { (char *)"d1", 5, 50 } };
  DrProgress progress = DR_PROGRESS_INIT;
  DrPause pause = { 0 };

  dr_recorder_phase(r, "begin", ORIGIN);
  take(r, 10, 1, "copying memory");
  progress.disks = disks;
  progress.n_disks = G_N_ELEMENTS(disks);
  dr_recorder_sample(r, &progress, "storage", ORIGIN + 100000);
  dr_pause_mark(&pause, DR_PAUSE_STOP, 2000);
  dr_recorder_pause(r, &pause, 1000, 4500, ORIGIN + 150000, dr_recorder_expected_pause(r));
  dr_recorder_end(r, ORIGIN + 200000);
  copy = dr_recorder_copy(r);
  report = dr_recorder_report(copy, ORIGIN + 900000);
  text = dr_recorder_pack(r);
  packed = dr_json_parse_object(text, -1, DR_RECORDER_BYTES, NULL);
  unpacked = dr_recorder_unpack(packed);
  one = dr_json_print_object(report, FALSE);
  other = dr_json_print_object(unpacked, FALSE);
  g_assert_cmpstr(one, ==, other);
  g_assert_nonnull(strstr(one, "\"disk_bytes_done\":15,\"disk_bytes_total\":150"));
  g_assert_nonnull(strstr(one, "\"remaining_bytes\":null,\"rate_mib\":0.0,\"dirty_mib\":null"));
  g_assert_nonnull(strstr(one, "\"phase\":\"storage\""));
  g_assert_cmpint(dr_json_int(report, "pause.expected_ms", -1), ==, 10);
}

static void
test_phases_have_no_gaps(void)
{
  g_autoptr(DrRecorder) r = dr_recorder_new(ORIGIN);
  g_autoptr(JsonObject) report = NULL;
  JsonArray *phases;
  double end = 0;

  for (guint i = 0; i < DR_RECORDER_PHASES + 20; i++) {
    g_autofree char *name = g_strdup_printf("phase%u", i);

    dr_recorder_phase(r, name, ORIGIN + i * 1500);
  }
  dr_recorder_end(r, ORIGIN + 999000);
  report = dr_recorder_report(r, ORIGIN + 5000000);
  phases = dr_json_arr(report, "phases");
  g_assert_cmpuint(json_array_get_length(phases), ==, DR_RECORDER_PHASES);
  for (guint i = 0; i < json_array_get_length(phases); i++) {
    JsonObject *phase = json_array_get_object_element(phases, i);

    g_assert_cmpfloat(json_object_get_double_member(phase, "begin_ms"), ==, end);
    end = json_object_get_double_member(phase, "end_ms");
  }
  g_assert_cmpfloat(end, ==, 999);
}

static void
check_parts(const DrPause *pause, gint64 begin, gint64 end, const char *wanted)
{
  DrPausePart parts[DR_PAUSE_MARKS + 1];
  g_autoptr(GString) text = g_string_new(NULL);
  guint n = dr_pause_parts(pause, begin, end, parts);
  double sum = 0;

  for (guint i = 0; i < n; i++) {
    g_string_append_printf(text, "%s%s=%.0f", i ? " " : "", parts[i].name, parts[i].ms * 1000);
    sum += parts[i].ms;
  }
  g_assert_cmpstr(text->str, ==, wanted);
  g_assert_cmpfloat(fabs(sum - (double)(end - begin) / 1000), <, 1e-9);
}

static void
test_parts_of_a_pause(void)
{
  DrPause pause = { 0 };

  check_parts(&pause, 100, 900, "resume=800");
  dr_pause_mark(&pause, DR_PAUSE_TRANSFER, 300);
  dr_pause_mark(&pause, DR_PAUSE_STOP, 150);
  dr_pause_mark(&pause, DR_PAUSE_GO, 500);
  dr_pause_mark(&pause, DR_PAUSE_DECIDE, 0); /* not known */
  check_parts(&pause, 100, 900, "stop=50 transfer=150 go=200 resume=400");
  dr_pause_mark(&pause, DR_PAUSE_LOAD, 450);
  check_parts(&pause, 100, 900, "stop=50 transfer=150 load=150 go=50 resume=400");
  /* It ran before it had said that it has all: there was nothing but loading. */
  dr_pause_mark(&pause, DR_PAUSE_LOAD, 1000);
  check_parts(&pause, 100, 900, "stop=50 transfer=150 go=200 load=400");
  /* A clock that is not quite right, and a mark of before. */
  dr_pause_mark(&pause, DR_PAUSE_STOP, 90);
  dr_pause_mark(&pause, DR_PAUSE_GO, 950);
  check_parts(&pause, 100, 900, "transfer=200 load=600");
}

static void
say(DrPause *pause, const char *name, const char *status, gint64 us)
{
  DrQmpEvent event = { .name = (char *)name,
                       .data = status ? dr_json("{'status': <%s>}", status) : NULL,
                       .time_us = us };

  dr_pause_source_event(pause, &event);
  g_clear_pointer(&event.data, json_object_unref);
}

static void
test_events_of_a_source(void)
{
  DrPause pause = { 0 };

  say(&pause, "MIGRATION", "active", 10);
  say(&pause, "MIGRATION_PASS", NULL, 20);
  say(&pause, "STOP", NULL, 100);
  say(&pause, "MIGRATION", "pre-switchover", 110);
  say(&pause, "MIGRATION", "device", 130);
  say(&pause, "MIGRATION_PASS", NULL, 170);
  say(&pause, "MIGRATION", "completed", 300);
  check_parts(&pause, 100, 400, "stop=10 check=20 sync=40 transfer=130 resume=100");
  say(&pause, "MIGRATION_PASS", NULL, 350); /* not of this pause */
  check_parts(&pause, 100, 400, "stop=10 check=20 sync=40 transfer=130 resume=100");
  say(&pause, "STOP", NULL, 500);
  say(&pause, "MIGRATION", "device", 520);
  check_parts(&pause, 500, 600, "stop=20 resume=80");
  /* Post-copy, as 7.2 and as 10.0 have it; its end is not that of the pause. */
  pause = (DrPause){ 0 };
  say(&pause, "MIGRATION", "postcopy-active", 90);
  say(&pause, "STOP", NULL, 100);
  say(&pause, "MIGRATION_PASS", NULL, 130);
  dr_pause_mark(&pause, DR_PAUSE_DECIDE, 150);
  say(&pause, "MIGRATION", "completed", 900);
  check_parts(&pause, 100, 200, "sync=30 decide=20 resume=50");
  pause = (DrPause){ 0 };
  say(&pause, "STOP", NULL, 100);
  say(&pause, "MIGRATION_PASS", NULL, 130);
  say(&pause, "MIGRATION", "postcopy-active", 140);
  say(&pause, "MIGRATION", "completed", 190);
  check_parts(&pause, 100, 200, "stop=30 transfer=10 resume=60");
}

static void
meter_take(DrRamMeter *meter, gint64 ms, gint64 pass, gint64 transferred, gint64 remaining, DrProgress *ret)
{
  g_autoptr(JsonObject) ram =
      dr_json("{'transferred': <%x>, 'remaining': <%x>, 'dirty-sync-count': <%x>, 'mbps': <%d>, "
              "'dirty-pages-rate': <%x>, 'page-size': <%x>}",
              transferred, remaining, pass, 0.0, (gint64)0, (gint64)4096);

  *ret = (DrProgress)DR_PROGRESS_INIT;
  dr_ram_meter_take(meter, ram, 1000000 + ms * 1000, ret);
}

static void
test_rates(void)
{
  DrRamMeter meter = DR_RAM_METER_INIT;
  const gint64 mib = 1 << 20;
  DrProgress now;

  meter_take(&meter, 0, 1, 0, 1000 * mib, &now);
  g_assert_cmpint(now.expected_ms, ==, -1);
  g_assert_cmpfloat(now.dirty_mib, <, 0);
  for (int i = 1; i <= 10; i++)
    meter_take(&meter, i * 100, 1, i * 10 * mib, (1000 - i * 20) * mib, &now);
  g_assert_cmpfloat(fabs(now.rate_mib - 100), <, 1);
  g_assert_cmpint(now.expected_ms, ==, 4000); /* what is left goes down twice as fast: zero pages */
  g_assert_cmpint(dr_ram_meter_pass_ms(&meter), ==, -1);
  meter_take(&meter, 2000, 2, 200 * mib, 50 * mib, &now); /* a pass of 2 s has left 50 MiB, or some more */
  g_assert_cmpfloat(now.dirty_mib, >=, 25);
  g_assert_cmpint(dr_ram_meter_pass_ms(&meter), >=, 500);
}

static void
test_percentiles(void)
{
  double numbers[200];

  for (int i = 0; i < 200; i++)
    numbers[i] = i + 1;
  g_assert_cmpfloat(dr_stats_percentile(numbers, 1, 50), ==, 1);
  g_assert_cmpfloat(dr_stats_percentile(numbers, 2, 50), ==, 1);
  g_assert_cmpfloat(dr_stats_percentile(numbers, 2, 99), ==, 2);
  g_assert_cmpfloat(dr_stats_percentile(numbers, 200, 50), ==, 100);
  g_assert_cmpfloat(dr_stats_percentile(numbers, 200, 99), ==, 198);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/recorder/samples-are-bounded", test_samples_are_bounded);
  g_test_add_func("/recorder/passes-are-kept", test_passes_are_kept);
  g_test_add_func("/recorder/a-packed-report-is-the-same", test_a_packed_report_is_the_same);
  g_test_add_func("/recorder/phases-have-no-gaps", test_phases_have_no_gaps);
  g_test_add_func("/recorder/parts-of-a-pause", test_parts_of_a_pause);
  g_test_add_func("/recorder/events-of-a-source", test_events_of_a_source);
  g_test_add_func("/recorder/rates", test_rates);
  g_test_add_func("/stats/percentiles", test_percentiles);
  return g_test_run();
}
