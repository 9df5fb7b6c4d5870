/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The policy on recorded samples (tests/data/policy, made by tests/tools/record-policy) and on hand-made strange ones. */
#include "job/policy.h"

#include <string.h>

#define MIB (1ll << 20)

/* --- Recordings --- */

/* What came of a recording up to the first decision that changes anything but the allowed pause. */
typedef struct {
  DrAdvice last;        /* the first one that is not GO_ON or SET_DOWNTIME; else the last of all */
  gint64 passes, at_ms; /* when */
  gint64 downtime_ms;   /* the greatest that was allowed */
  guint raised, samples;
  gint64 took_ms;       /* the recording's length */
  gint64 halfway_total; /* expected when half of that was over */
  gboolean completed, stalled;
} Outcome;

static gboolean
read_row(const char *line, DrPolicySample *ret)
{
  g_auto(GStrv) cells = g_strsplit(line, ",", -1);

  if (g_strv_length(cells) < 6 || !g_ascii_isdigit(line[0]))
    return FALSE;
  *ret = (DrPolicySample){ .time_ms = g_ascii_strtoll(cells[0], NULL, 10),
                           .status = dr_policy_status(cells[1]),
                           .passes = g_ascii_strtoll(cells[2], NULL, 10),
                           .remaining = g_ascii_strtoll(cells[3], NULL, 10),
                           .transferred = g_ascii_strtoll(cells[4], NULL, 10),
                           .total = g_ascii_strtoll(cells[5], NULL, 10) };
  return TRUE;
}

static char **
read_lines(const char *name)
{
  g_autofree char *path = g_strdup_printf("%s/tests/data/policy/%s.csv", DROVER_SOURCE_ROOT, name);
  g_autofree char *text = NULL;
  g_autoptr(GError) error = NULL;

  g_file_get_contents(path, &text, NULL, &error);
  g_assert_no_error(error);
  return g_strsplit(text, "\n", -1);
}

/* "# …; touched N bytes; …": what the source's QEMU held when it began. */
static gint64
touched(const char *head)
{
  const char *at = strstr(head, "; touched ");

  g_assert_nonnull(at);
  return g_ascii_strtoll(at + strlen("; touched "), NULL, 10);
}

static gint64
recorded_ms(char **lines)
{
  DrPolicySample sample = { 0 };

  for (char **line = lines; *line; line++)
    read_row(*line, &sample);
  return sample.time_ms;
}

static Outcome
replay(const char *name, const DrPolicyConfig *config)
{
  g_auto(GStrv) lines = read_lines(name);
  Outcome outcome = { .took_ms = recorded_ms(lines), .halfway_total = -1 };
  DrPolicyConfig known = *config;
  DrPolicySample sample;
  DrPolicy policy;

  known.touched = touched(lines[0]);
  dr_policy_init(&policy, &known);
  for (char **line = lines; *line; line++) {
    DrAdvice advice;

    if (!read_row(*line, &sample))
      continue;
    outcome.samples++;
    outcome.completed = strstr(*line, ",completed,") != NULL;
    dr_policy_judge(&policy, &sample, &advice);
    outcome.stalled |= advice.stalled;
    outcome.raised += advice.action == DR_ADVICE_SET_DOWNTIME;
    outcome.downtime_ms = advice.downtime_ms;
    if (outcome.halfway_total < 0 && sample.time_ms >= outcome.took_ms / 2)
      outcome.halfway_total = advice.expected_total_ms;
    outcome.last = advice;
    outcome.passes = sample.passes;
    outcome.at_ms = sample.time_ms;
    if (advice.action > DR_ADVICE_SET_DOWNTIME)
      break;
  }
  g_test_message("%s: %s at %" G_GINT64_FORMAT " ms, pass %" G_GINT64_FORMAT ", pause %" G_GINT64_FORMAT
                 " ms, expected %" G_GINT64_FORMAT " of %" G_GINT64_FORMAT " ms: %s",
                 name, dr_advice_name(outcome.last.action), outcome.at_ms, outcome.passes,
                 outcome.downtime_ms, outcome.halfway_total, outcome.took_ms, outcome.last.reason);
  g_assert_cmpuint(outcome.samples, >, 1);
  return outcome;
}

static const DrPolicyConfig automatic = { .postcopy = DR_POSTCOPY_AUTO };
static const DrPolicyConfig precopy_only = { .postcopy = DR_POSTCOPY_NEVER };

/* These converge: nothing is done, the pause stays as short as it was tried for. */
static void
test_converging(void)
{
  static const char *const names[] = {
    "idle-50",       "idle-200",    "idle-50-1ms",     "idle-1ms",          "idle-microvm-1ms",
    "idle-100-new",  "20-50",       "20-100",          "100-200",           "20-200",
    "20-100-1ms",    "20-100-new",  "small-100",       "small-100-1ms",     "small-1ms",
    "small-microvm", "link-faster", "small-unlimited", "small-microvm-1ms",
  };

  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    Outcome outcome = replay(names[i], &automatic);

    g_assert_true(outcome.completed);
    g_assert_cmpint(outcome.last.action, ==, DR_ADVICE_GO_ON);
    g_assert_cmpuint(outcome.raised, ==, 0);
    g_assert_cmpint(outcome.downtime_ms, ==, DR_POLICY_START_MS);
  }
}

/* These never will. Post-copy comes as soon as that is known: after pass 4 at the latest, of which one tells nothing. */
static void
test_diverging(void)
{
  static const char *const names[] = {
    "100-50", "100-100", "300-100", "300-200", "100-50-new", "300-200-new"
  };

  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    Outcome outcome = replay(names[i], &automatic);

    g_assert_false(outcome.completed);
    g_assert_cmpint(outcome.last.action, ==, DR_ADVICE_START_POSTCOPY);
    g_assert_cmpint(outcome.passes, <=, 6);
    g_assert_cmpuint(outcome.raised, ==, 0);
    g_assert_cmpint(outcome.last.expected_pause_ms, <=, 30);
    g_assert_nonnull(strstr(outcome.last.reason, "as fast as it is copied"));
  }
}

/* Without post-copy the pause is raised; the recording goes on as if it had not been, so it ends at the limit. */
static void
test_diverging_without_postcopy(void)
{
  static const char *const names[] = { "100-50", "300-100", "300-200", "100-50-new", "300-200-new" };
  const DrPolicyConfig generous = { .postcopy = DR_POSTCOPY_NEVER, .downtime_max_ms = 10000 };

  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    Outcome outcome = replay(names[i], &precopy_only);

    g_assert_cmpint(outcome.last.action, <=, DR_ADVICE_SET_DOWNTIME);
    g_assert_cmpint(outcome.downtime_ms, ==, DR_POLICY_MAX_MS);
    outcome = replay(names[i], &generous);
    g_assert_cmpint(outcome.downtime_ms, >,
                    DR_POLICY_MAX_MS); /* what is needed at once, not by many small steps */
    g_assert_cmpint(outcome.downtime_ms, <=, 10000);
  }
}

static void
test_after_precopy(void)
{
  static const char *const names[] = { "20-50", "100-50", "300-200" };
  const DrPolicyConfig config = { .postcopy = DR_POSTCOPY_AFTER_PRECOPY };

  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    Outcome outcome = replay(names[i], &config);

    g_assert_cmpint(outcome.last.action, ==, DR_ADVICE_START_POSTCOPY);
    g_assert_cmpint(outcome.passes, <=, 3); /* the second one may be over within a sample */
  }
}

static void
test_timeouts(void)
{
  DrPolicyConfig config = { .postcopy = DR_POSTCOPY_MANUAL, .timeout_postcopy_ms = 3000 };
  Outcome outcome = replay("100-50", &config);

  g_assert_cmpint(outcome.last.action, ==, DR_ADVICE_START_POSTCOPY);
  g_assert_cmpint(outcome.at_ms, >=, 3000);
  g_assert_cmpint(outcome.at_ms, <, 4000);
  config = (DrPolicyConfig){ .timeout_ms = 5000, .timeout_suspend = TRUE, .downtime_max_ms = 100 };
  outcome = replay("100-50", &config);
  g_assert_cmpint(outcome.last.action, ==, DR_ADVICE_SUSPEND);
  g_assert_cmpint(outcome.at_ms, <, 6000);
  config.timeout_suspend = FALSE;
  g_assert_cmpint(replay("100-50", &config).last.action, ==, DR_ADVICE_GIVE_UP);
  config = (DrPolicyConfig){ .postcopy = DR_POSTCOPY_NEVER, .timeout_postcopy_ms = 3000 };
  g_assert_cmpint(replay("100-50", &config).last.action, <=, DR_ADVICE_SET_DOWNTIME);
  config = (DrPolicyConfig){ .postcopy = DR_POSTCOPY_MANUAL };
  g_assert_cmpint(replay("300-100", &config).last.action, <=, DR_ADVICE_SET_DOWNTIME);
}

/* Bursts, and links that change. */
static void
test_changing(void)
{
  Outcome outcome = replay("burst", &precopy_only);

  g_assert_true(
      outcome.completed); /* it waited until the burst was over, with a longer pause allowed by then */
  g_assert_cmpint(outcome.last.action, ==, DR_ADVICE_GO_ON);
  outcome = replay("link-slower", &automatic);
  g_assert_cmpint(outcome.last.action, ==, DR_ADVICE_START_POSTCOPY);
  outcome = replay("stall", &automatic);
  g_assert_true(outcome.stalled);
  g_assert_true(outcome.completed);
  g_assert_cmpint(outcome.last.action, ==, DR_ADVICE_GO_ON);
}

/* In the middle of a guest that converges the end is known well enough. */
static void
test_expected_total(void)
{
  static const char *const names[] = { "idle-50", "20-50", "20-100", "idle-100-new", "20-100-new" };

  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    Outcome outcome = replay(names[i], &automatic);

    g_assert_cmpint(outcome.halfway_total, >, outcome.took_ms / 2);
    g_assert_cmpint(outcome.halfway_total, <, outcome.took_ms * 3 / 2);
  }
}

/* --- Hand-made: what query-migrate can say besides --- */

static void
test_strange_samples(void)
{
  DrPolicySample sample = { 1000, DR_STATUS_PRECOPY, 1, 100 * MIB, 0, 100 * MIB, 0 };
  DrPolicyConfig config = { .timeout_ms = 500 };
  DrAdvice advice;
  DrPolicy policy;

  dr_policy_init(&policy, &config);
  dr_policy_judge(&policy, &(DrPolicySample){ 0 }, &advice); /* setup: no ram yet */
  g_assert_cmpint(advice.action, ==, DR_ADVICE_GO_ON);
  g_assert_cmpint(advice.expected_total_ms, ==, -1);
  dr_policy_judge(&policy, &sample, &advice);
  g_assert_cmpint(advice.action, ==, DR_ADVICE_GO_ON); /* the time begins with the first sample of memory */
  dr_policy_judge(&policy, &sample, &advice);          /* the same once more: no rate of 0 ms */
  g_assert_cmpint(advice.action, ==, DR_ADVICE_GO_ON);
  sample.time_ms = 900; /* an older one */
  dr_policy_judge(&policy, &sample, &advice);
  g_assert_cmpint(advice.action, ==, DR_ADVICE_GO_ON);
  sample = (DrPolicySample){
    1600, DR_STATUS_PRECOPY, 40, 0, 50 * MIB, 100 * MIB, 0
  }; /* many passes in one sample */
  dr_policy_judge(&policy, &sample, &advice);
  g_assert_cmpint(advice.action, ==, DR_ADVICE_GIVE_UP);
  g_assert_cmpstr(advice.reason, !=, "");
  sample.time_ms = 1700;
  dr_policy_judge(&policy, &sample, &advice);
  g_assert_cmpint(advice.action, ==, DR_ADVICE_GIVE_UP); /* and does not change its mind */
}

/* In post-copy nothing is advised any more, whatever happens: the only way is forward. */
static void
test_postcopy_is_left_alone(void)
{
  DrPolicyConfig config = {
    .postcopy = DR_POSTCOPY_AUTO, .timeout_ms = 1000, .round_trip_us = 1500, .overhead_ms = 7
  };
  DrAdvice advice;
  DrPolicy policy;

  dr_policy_init(&policy, &config);
  for (gint64 second = 0; second < 300; second++) {
    gint64 moved = second < 10 ? second : 10;
    DrPolicySample sample = { second * 1000, DR_STATUS_POSTCOPY, 2, (100 - moved) * MIB,
                              moved * MIB,   100 * MIB,          0 };

    dr_policy_judge(&policy, &sample, &advice);
    g_assert_cmpint(advice.action, ==, DR_ADVICE_GO_ON);
    g_assert_cmpint(advice.expected_pause_ms, ==, 9);
    if (second == 9)
      g_assert_cmpint(advice.expected_total_ms, ==, 100009);
  }
  g_assert_true(advice.stalled);
}

static void
test_forecast(void)
{
  DrPolicyConfig config = { .bandwidth_limit = 100 * MIB, .round_trip_us = 300 };
  DrAdvice advice;

  dr_policy_forecast(&config, 1024 * MIB, 1000 * MIB, &advice);
  g_assert_cmpint(advice.expected_total_ms, ==, 10240 + 6);
  g_assert_cmpint(advice.expected_pause_ms, ==, DR_POLICY_START_MS + 6);
  config.bandwidth_limit = 0;
  dr_policy_forecast(&config, 1024 * MIB, 0, &advice);
  g_assert_cmpint(advice.expected_total_ms, ==, -1);
}

/* From half a second before the end of the first pass on the guest may be stopped at any time. */
static void
test_near_end(void)
{
  static const struct {
    gint64 ms, passes, moved; /* MiB */
    gboolean near;
  } samples[] = { { 0, 1, 0, FALSE },      { 1000, 1, 50, FALSE },
                  { 1600, 1, 80, TRUE },   { 2200, 1, 110, FALSE }, /* more than was known of */
                  { 3000, 2, 150, FALSE }, { 3800, 2, 190, TRUE } };
  DrPolicyConfig config = { .touched = 100 * MIB };
  DrAdvice advice;
  DrPolicy policy;

  dr_policy_init(&policy, &config);
  for (guint i = 0; i < G_N_ELEMENTS(samples); i++) {
    DrPolicySample sample = { .time_ms = samples[i].ms,
                              .status = DR_STATUS_PRECOPY,
                              .passes = samples[i].passes,
                              .remaining = 200 * MIB - MIN(samples[i].moved, 199) * MIB,
                              .transferred = samples[i].moved * MIB,
                              .total = 200 * MIB };

    dr_policy_judge(&policy, &sample, &advice);
    g_assert_cmpint(advice.near_end, ==, samples[i].near);
  }
}

static void
test_limits(void)
{
  DrPolicyConfig config = { .downtime_max_ms = 10, .downtime_start_ms = 50 };
  DrPolicy policy;

  dr_policy_init(&policy, &config);
  g_assert_cmpint(dr_policy_downtime(&policy), ==, 10); /* never more than --downtime */
  g_assert_cmpint(dr_policy_status("active"), ==, DR_STATUS_PRECOPY);
  g_assert_cmpint(dr_policy_status("postcopy-paused"), ==, DR_STATUS_OTHER);
  g_assert_cmpint(dr_policy_status(NULL), ==, DR_STATUS_OTHER);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/policy/near-end", test_near_end);
  g_test_add_func("/policy/recorded/converging", test_converging);
  g_test_add_func("/policy/recorded/diverging", test_diverging);
  g_test_add_func("/policy/recorded/diverging-without-postcopy", test_diverging_without_postcopy);
  g_test_add_func("/policy/recorded/after-precopy", test_after_precopy);
  g_test_add_func("/policy/recorded/timeouts", test_timeouts);
  g_test_add_func("/policy/recorded/changing", test_changing);
  g_test_add_func("/policy/recorded/expected-total", test_expected_total);
  g_test_add_func("/policy/samples/strange", test_strange_samples);
  g_test_add_func("/policy/samples/postcopy", test_postcopy_is_left_alone);
  g_test_add_func("/policy/samples/forecast", test_forecast);
  g_test_add_func("/policy/samples/limits", test_limits);
  return g_test_run();
}
