/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The policy steering a model of a guest, a link and QEMU's pre-copy to the end: hand-made, for what cannot be recorded here
 * (256 GiB, minutes of a stall) and for what comes of its advice. test-policy.c has the recordings. */
#include "job/policy.h"

#define MIB (1ll << 20)

static const DrPolicyConfig automatic = { .postcopy = DR_POSTCOPY_AUTO };
static const DrPolicyConfig precopy_only = { .postcopy = DR_POSTCOPY_NEVER };

/* --- The model --- */

/* The guest writes `writes` MiB/s, round and round in `set` MiB. At `change_s` seconds: the second values (-1: as before). */
typedef struct {
  double ram, set, writes, link; /* MiB, MiB, MiB/s, MiB/s */
  double change_s, then_writes, then_link;
  double back_s; /* when the first values come back; 0: never */
  gboolean throttles;
} World;

typedef struct {
  DrAdvice last;
  gint64 passes, decided_pass, decided_ms;
  guint raised;
  double took_ms, pause_ms; /* pause_ms < 0: did not complete */
  gboolean postcopy, suspended, stalled;
} Fate;

typedef struct {
  const World *world;
  double now, left, dirty, wire, window[100], writes, link; /* ms, MiB, MiB/ms */
  gint64 passes;
  int throttle, slow_passes;
  double pass_sent;
} Qemu;

static void
weather(Qemu *q)
{
  const World *w = q->world;
  gboolean changed =
      w->change_s > 0 && q->now >= w->change_s * 1000 && (w->back_s <= 0 || q->now < w->back_s * 1000);

  q->writes =
      (changed && w->then_writes >= 0 ? w->then_writes : w->writes) / 1000 * (100 - q->throttle) / 100;
  q->link = (changed && w->then_link >= 0 ? w->then_link : w->link) / 1000;
}

/* cpu_throttle as in migration/ram.c: 20 %, then 10 more, after each two passes that left more than half of what was sent. */
static void
throttle(Qemu *q)
{
  q->slow_passes = q->left > q->pass_sent / 2 ? q->slow_passes + 1 : q->slow_passes;
  if (q->world->throttles && q->slow_passes >= 2) {
    q->throttle = q->throttle ? MIN(q->throttle + 10, 99) : 20;
    q->slow_passes = 0;
  }
  q->pass_sent = 0;
}

/* One millisecond. Returns: whether the guest may be stopped, as little is left for `downtime` ms. */
static gboolean
run_qemu(Qemu *q, double downtime, gboolean stopped)
{
  double rate = 0, sent;

  weather(q);
  sent = MIN(q->link, q->left);
  q->window[(int)q->now % 100] = sent;
  for (guint i = 0; i < 100; i++)
    rate += q->window[i] / 100;
  q->now += 1;
  q->left -= sent;
  q->wire += sent;
  q->pass_sent += sent;
  q->dirty = stopped ? q->dirty : MIN(q->world->set, q->dirty + q->writes);
  if (q->left > rate * downtime)
    return FALSE;
  q->left = MAX(q->left, MIN(q->left + q->dirty, q->world->set)); /* much of what is left was written again */
  q->dirty = 0;
  q->passes++;
  throttle(q);
  return q->left <= rate * downtime;
}

static DrPolicySample
look(const Qemu *q, gboolean at_pass)
{
  return (DrPolicySample){ .time_ms = (gint64)q->now,
                           .status = DR_STATUS_PRECOPY,
                           .passes = q->passes,
                           .remaining = (gint64)(q->left * MIB),
                           .transferred = (gint64)(q->wire * MIB),
                           .total = (gint64)(q->world->ram * MIB),
                           .throttle = q->throttle,
                           .at_pass = at_pass };
}

/* Takes the advice. Returns: whether that ends it. */
static gboolean
obey(Fate *fate, const Qemu *q, const DrAdvice *advice)
{
  fate->stalled |= advice->stalled;
  fate->raised += advice->action == DR_ADVICE_SET_DOWNTIME;
  if (advice->action != DR_ADVICE_GO_ON || !fate->decided_pass)
    fate->last = *advice;
  if (advice->action > DR_ADVICE_SET_DOWNTIME && !fate->decided_pass) {
    fate->decided_pass = q->passes;
    fate->decided_ms = (gint64)q->now;
  }
  fate->suspended |= advice->action == DR_ADVICE_SUSPEND;
  fate->postcopy |= advice->action == DR_ADVICE_START_POSTCOPY;
  return advice->action == DR_ADVICE_GIVE_UP || advice->action == DR_ADVICE_START_POSTCOPY;
}

static Fate
steer_with(const World *world, const DrPolicyConfig *config, double most_s, gboolean events)
{
  Qemu q = { .world = world, .left = world->ram, .passes = 1 };
  Fate fate = { .pause_ms = -1 };
  double suspended_at = 0;
  gint64 seen = 1;
  DrPolicy policy;

  dr_policy_init(&policy, config);
  while (q.now < most_s * 1000) {
    DrPolicySample sample = look(&q, events && q.passes != seen);
    DrAdvice advice;

    if (sample.at_pass || (gint64)q.now % 100 == 0) {
      seen = q.passes;
      dr_policy_judge(&policy, &sample, &advice);
      if (obey(&fate, &q, &advice))
        break;
      if (fate.suspended && suspended_at == 0)
        suspended_at = q.now;
    }
    if (run_qemu(&q, (double)dr_policy_downtime(&policy), fate.suspended)) {
      fate.pause_ms = q.left / q.link + (fate.suspended ? q.now - suspended_at : 0);
      break;
    }
  }
  fate.passes = q.passes;
  fate.took_ms = q.now;
  g_test_message("%s after %.0f ms, pass %" G_GINT64_FORMAT ", pause %.2f ms, raised %u times: %s",
                 dr_advice_name(fate.last.action), fate.took_ms, fate.passes, fate.pause_ms, fate.raised,
                 fate.last.reason);
  return fate;
}

/* With MIGRATION_PASS events; and without them (they are dropped where the monitor is slow) it must end as well. */
static Fate
steer(const World *world, const DrPolicyConfig *config, double most_s)
{
  Fate without = steer_with(world, config, most_s, FALSE), with = steer_with(world, config, most_s, TRUE);

  g_assert_cmpint(with.last.action, ==, without.last.action);
  return with;
}

static void
test_model_small_pauses(void)
{
  static const World worlds[] = {
    { 4096, 0, 0, 1000 },      /* idle */
    { 4096, 0.5, 5000, 1000 }, /* a small working set, written all the time */
    { 4096, 2000, 700, 1000 }, /* writes less than the link takes: each pass is shorter than the last */
  };

  for (guint i = 0; i < G_N_ELEMENTS(worlds); i++) {
    Fate fate = steer(&worlds[i], &automatic, 600);

    g_assert_cmpfloat(fate.pause_ms, >=, 0);
    g_assert_cmpfloat(fate.pause_ms, <=, 1.01);
    g_assert_cmpuint(fate.raised, ==, 0);
  }
}

/* A working set whose copy takes 20 ms: a little more pause and no post-copy; one of 80 ms: post-copy, or as much as needed. */
static void
test_model_least_pause(void)
{
  const World little = { 1024, 2, 5000, 100 }, more = { 1024, 8, 5000, 100 };
  Fate fate = steer(&little, &automatic, 600);

  g_assert_cmpfloat(fate.pause_ms, >=, 19);
  g_assert_cmpfloat(fate.pause_ms, <=, 30);
  g_assert_cmpint(fate.last.downtime_ms, <=, 30);
  fate = steer(&more, &automatic, 600);
  g_assert_true(fate.postcopy);
  fate = steer(&more, &precopy_only, 600);
  g_assert_cmpfloat(fate.pause_ms, >=, 79);
  g_assert_cmpfloat(fate.pause_ms, <=, 110);
  g_assert_cmpint(fate.last.downtime_ms, <=, 110); /* not the 300 ms that are allowed */
  g_assert_cmpuint(fate.raised, <=, 2);
}

/* Passes of minutes: where the first one proves that no pass will be shorter, the second is not waited for; else one is. */
static void
test_model_huge(void)
{
  const World all = { 262144, 262144, 2000, 1000 }, hot = { 262144, 65536, 2000, 1000 };
  Fate fate = steer(&all, &automatic, 3600);

  g_assert_true(fate.postcopy);
  g_assert_cmpint(fate.decided_pass, ==, 2);
  fate = steer(&hot, &automatic, 3600);
  g_assert_true(fate.postcopy);
  g_assert_cmpint(fate.decided_pass, ==, 3);
}

static void
test_model_hopeless(void)
{
  const World world = { 1024, 512, 2000, 100 };
  const DrPolicyConfig timeout = { .timeout_ms = 30000, .timeout_suspend = TRUE };
  Fate fate = steer(&world, &precopy_only, 600);

  g_assert_cmpint(fate.last.action, ==, DR_ADVICE_GIVE_UP);
  g_assert_cmpint(fate.last.downtime_ms, ==, DR_POLICY_MAX_MS);
  g_assert_cmpint(fate.decided_ms, >, 40000); /* a while after the last step: a burst may end */
  g_assert_cmpint(fate.decided_ms, <, 120000);
  fate = steer(&world, &timeout, 600);
  g_assert_true(fate.suspended);
  g_assert_cmpfloat(fate.pause_ms, >, 300);
  g_assert_cmpfloat(fate.pause_ms, <, 11000); /* two passes of what was left */
}

/* A burst of 8 s in a guest that converges otherwise, and a link of which another move takes most for 10 s. */
static void
test_model_changes(void)
{
  const World burst = { 2048, 512, 20, 200, 4, 2000, -1, 12 },
              crowded = { 2048, 512, 40, 200, 4, -1, 20, 14 };
  Fate fate = steer(&burst, &precopy_only, 600);

  g_assert_cmpfloat(fate.pause_ms, >=, 0);
  g_assert_cmpfloat(fate.pause_ms, <=, 300);
  fate = steer(&crowded, &precopy_only, 600);
  g_assert_cmpfloat(fate.pause_ms, >=, 0);
  g_assert_cmpuint(fate.raised, ==, 0); /* its passes get longer, but none is judged twice */
}

static void
test_model_stall(void)
{
  const World heals = { 2048, 512, 20, 200, 3, -1, 0, 33 }, dead = { 2048, 512, 20, 200, 3, -1, 0, 0 };
  const DrPolicyConfig impatient = { .postcopy = DR_POSTCOPY_AUTO, .timeout_postcopy_ms = 10000 };
  Fate fate = steer(&heals, &automatic, 600);

  g_assert_true(fate.stalled);
  g_assert_false(fate.postcopy);
  g_assert_cmpfloat(fate.pause_ms, >=, 0);
  fate = steer(&heals, &impatient, 600);
  g_assert_true(fate.postcopy);
  g_assert_cmpint(fate.decided_ms, >=, 33000); /* not while nothing moves: both sides would stand still */
  fate = steer(&dead, &automatic, 600);
  g_assert_cmpint(fate.last.action, ==, DR_ADVICE_GIVE_UP);
  g_assert_cmpint(fate.decided_ms, >=, 63000);
  g_assert_cmpint(fate.decided_ms, <, 65000);
}

static void
test_model_auto_converge(void)
{
  const World world = { 1024, 256, 400, 100, .throttles = TRUE };
  const DrPolicyConfig with = { .auto_converge = TRUE };
  Fate fate = steer(&world, &with, 600);

  g_assert_cmpfloat(fate.pause_ms, >=, 0);
  g_assert_cmpuint(fate.raised, ==, 0); /* it was waited for until it made the guest slow enough */
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/policy/model/small-pauses", test_model_small_pauses);
  g_test_add_func("/policy/model/least-pause", test_model_least_pause);
  g_test_add_func("/policy/model/huge", test_model_huge);
  g_test_add_func("/policy/model/hopeless", test_model_hopeless);
  g_test_add_func("/policy/model/changes", test_model_changes);
  g_test_add_func("/policy/model/stall", test_model_stall);
  g_test_add_func("/policy/model/auto-converge", test_model_auto_converge);
  return g_test_run();
}
