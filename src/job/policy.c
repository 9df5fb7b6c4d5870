/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The policy of a migration: see policy.h for the contract, docs/POLICY.md for the situations.
 *
 * What is robust in query-migrate is `remaining` just after a change of dirty-sync-count: the memory that the guest wrote during
 * the pass before. QEMU stops the guest when what remains would take less than downtime-limit at the rate of the last 100 ms.
 * So a guest converges when that number gets smaller from pass to pass, and when it does not, the least of them and the rate
 * say which pause would do. */
#include "job/policy.h"

#include <string.h>

#define SHRINKS 0.9     /* a pass that leaves more than this of the least one before has not made it less */
#define STUCK_PASSES 2  /* in a row */
#define UNSURE_PASSES 4 /* as good as one, where a pass was seen so late that its size is half a guess */
#define LONG_PASS_MS 10000     /* after such a pass one is enough: another one would not tell more */
#define ENOUGH 1.25            /* a pause as long as what is left takes would never be reached but by luck */
#define SMOOTH_MS 1000.0       /* of the rates */
#define STALL_MS 5000          /* nothing moves: no decision is made on it */
#define STALL_GIVE_UP_MS 60000 /* the tunnel knows a dead link in 4 s: here the other QEMU does not read */
#define PATIENCE_MS 30000      /* at the greatest pause, without getting smaller: a burst may end */
#define PATIENCE_PASSES 4
#define NEAR_END_MS 500
#define THROTTLE_PASSES 40 /* auto-converge: from 20 % to 99 % in steps of 10, each after two passes */
#define THROTTLE_MAX 99

static const char *const action_names[] = { "go-on", "set-downtime", "start-postcopy", "suspend", "give-up" };

const char *
dr_advice_name(DrAdviceAction action)
{
  return action_names[action];
}

DrPolicyStatus
dr_policy_status(const char *name)
{
  if (g_strcmp0(name, "active") == 0)
    return DR_STATUS_PRECOPY;
  return g_strcmp0(name, "postcopy-active") == 0 ? DR_STATUS_POSTCOPY : DR_STATUS_OTHER;
}

static gint64
or_default(gint64 value, gint64 otherwise)
{
  return value > 0 ? value : otherwise;
}

void
dr_policy_init(DrPolicy *policy, const DrPolicyConfig *config)
{
  DrPolicyConfig *c = &policy->config;

  memset(policy, 0, sizeof *policy);
  *c = *config;
  c->downtime_max_ms = or_default(c->downtime_max_ms, DR_POLICY_MAX_MS);
  c->downtime_soft_ms = MIN(or_default(c->downtime_soft_ms, DR_POLICY_SOFT_MS), c->downtime_max_ms);
  c->downtime_start_ms = MIN(or_default(c->downtime_start_ms, DR_POLICY_START_MS), c->downtime_soft_ms);
  c->overhead_ms = or_default(c->overhead_ms, DR_POLICY_OVERHEAD_MS);
  policy->downtime_ms = c->downtime_start_ms;
  policy->begun_ms = -1;
}

gint64
dr_policy_downtime(const DrPolicy *policy)
{
  return policy->downtime_ms;
}

/* --- Measuring --- */

static double
smooth(double before, double now, gint64 ms)
{
  double weight = before > 0 ? MIN(ms / SMOOTH_MS, 1.0) : 1.0;

  return before + weight * (now - before);
}

/* The rates, from the bytes themselves. A stall does not count: it says nothing of what the link can do. */
static void
measure(DrPolicy *p, const DrPolicySample *s)
{
  gint64 ms = s->time_ms - p->last_ms, moved = s->transferred - p->last_transferred;

  if (ms <= 0)
    return;
  if (moved > 0 || s->passes != p->last_passes) {
    if (moved > 0 && s->time_ms - p->moved_ms < STALL_MS)
      p->wire = smooth(p->wire, (double)moved / (double)ms, ms);
    p->moved_ms = s->time_ms;
  }
  if (s->passes == p->last_passes && s->remaining < p->last_remaining)
    p->drain = smooth(p->drain, (double)(p->last_remaining - s->remaining) / (double)ms, ms);
}

/* Also a guest whose remainder goes up once (a burst) and then falls twice in a row is on its way: where that is seen well
 * (`sure`), for with passes as long as the time between samples chance does the same. */
static gboolean
is_shrinking(const DrPolicy *p, gint64 left, gboolean sure)
{
  if (p->judged == 0 || (double)left < SHRINKS * (double)p->best)
    return TRUE;
  return sure && p->judged >= 2 && (double)left < SHRINKS * (double)p->left[0] &&
         (double)p->left[0] < SHRINKS * (double)p->left[1];
}

/* QEMU makes the vCPUs slower after each two passes that were too long: until it has come to its end, a pass proves nothing. */
static gboolean
still_throttling(DrPolicy *p, const DrPolicySample *s)
{
  gboolean more = s->throttle > p->throttle;

  p->throttle = s->throttle;
  if (!p->config.auto_converge || s->throttle >= THROTTLE_MAX || p->patience >= THROTTLE_PASSES)
    return FALSE;
  p->patience++;
  return more || p->patience <= 4 || s->throttle > 0;
}

static void
count_stuck(DrPolicy *p, const DrPolicySample *s, gint64 size)
{
  gboolean sure = s->at_pass || (size - s->remaining) * 5 < size;

  if (is_shrinking(p, size, sure))
    p->stuck = p->unsure = 0;
  else if (!still_throttling(p, s) &&
           (!is_shrinking(p, s->remaining, sure) || ++p->unsure % UNSURE_PASSES == 0))
    p->stuck++;
}

/* The first pass takes all memory along and says nothing of the guest, but for this: what was written during it is at least
 * what is left now, and if that is already more than the link took in the same time, no pass will ever be shorter. */
static gboolean
writes_faster_than_link(const DrPolicy *p, gint64 left)
{
  return p->wire > 0 && p->pass_took >= LONG_PASS_MS &&
         (double)left / (double)p->pass_took > SHRINKS * p->wire;
}

/* What this pass had to copy when it began. It may have begun at any time since the last sample, and others before it: then
 * their mean is what is known. */
static gint64
pass_size(const DrPolicy *p, const DrPolicySample *s)
{
  gint64 passes = s->passes - p->last_passes, moved = MAX(s->transferred - p->last_transferred, 0);

  if (passes > 1)
    return MAX(s->remaining, moved / passes);
  return s->at_pass ? s->remaining : s->remaining + moved / 2;
}

/* Returns: whether a pass has ended with this sample (some may have: then it stands for the last). */
static gboolean
note_pass(DrPolicy *p, const DrPolicySample *s)
{
  gint64 size;

  if (s->passes <= p->last_passes)
    return FALSE;
  size = pass_size(p, s);
  p->pass_took = (s->time_ms - p->pass_ms) / (s->passes - p->last_passes);
  p->pass_ms = s->time_ms;
  if (s->passes < 2)
    return FALSE;
  if (p->judged == 0)
    p->stuck = writes_faster_than_link(p, size) ? STUCK_PASSES : 0;
  else
    count_stuck(p, s, size);
  memmove(p->left + 1, p->left, (DR_POLICY_RECENT - 1) * sizeof p->left[0]);
  p->left[0] = size;
  if (p->judged == 0 || size < p->best) {
    p->best = size;
    p->best_ms = s->time_ms;
  }
  p->judged++;
  return TRUE;
}

static void
note_sample(DrPolicy *p, const DrPolicySample *s)
{
  if (p->begun_ms < 0) {
    p->begun_ms = p->pass_ms = p->moved_ms = s->time_ms;
    p->last_transferred = s->transferred;
    p->last_remaining = s->remaining;
  } else {
    measure(p, s);
  }
}

static void
keep_sample(DrPolicy *p, const DrPolicySample *s)
{
  p->last_ms = s->time_ms;
  p->last_transferred = s->transferred;
  p->last_remaining = s->remaining;
  p->last_passes = s->passes;
}

/* --- Expecting --- */

/* The pause with which the guest would converge as it writes now: what is left at best, at the rate by which QEMU judges it. */
static gint64
needed_ms(const DrPolicy *p)
{
  gint64 least = p->judged ? p->left[0] : 0;

  for (guint i = 1; i < MIN(p->judged, DR_POLICY_RECENT); i++)
    least = MIN(least, p->left[i]);
  return p->wire > 0 ? (gint64)(ENOUGH * (double)least / p->wire) + 1 : 0;
}

static gint64
round_trip_ms(const DrPolicyConfig *c)
{
  return (c->round_trip_us + 999) / 1000;
}

static gboolean
may_postcopy(const DrPolicy *p)
{
  return p->config.postcopy == DR_POSTCOPY_AUTO || p->config.postcopy == DR_POSTCOPY_AFTER_PRECOPY;
}

/* How much longer this pass takes, ms; -1: not known. */
static gint64
pass_left(const DrPolicy *p, const DrPolicySample *s)
{
  gint64 unsent = p->config.touched - s->transferred;
  double rate = MAX(p->drain, p->wire);

  /* The first: where the untouched pages are, nobody knows. Memory that is not counted as touched (huge pages, pages in swap or of a
   * memory file that this QEMU has not looked at) makes it longer. */
  if (s->passes <= 1 && unsent > 0 && p->wire > 0)
    return (gint64)((double)MIN(unsent, s->remaining) / p->wire);
  return rate > 0 ? (gint64)((double)s->remaining / rate) : -1;
}

/* How much longer, ms: this pass, and those behind it, each shorter by the same ratio; or a last one of post-copy. */
static gint64
time_left(const DrPolicy *p, const DrPolicySample *s)
{
  gint64 pass = pass_left(p, s);
  double ratio;

  if (pass < 0 || p->judged < 2 || s->status == DR_STATUS_POSTCOPY || p->suspended || p->left[1] == 0)
    return pass;
  ratio = (double)p->left[0] / (double)p->left[1];
  if (ratio < SHRINKS && p->stuck == 0)
    return (gint64)((double)pass / (1 - ratio));
  if (needed_ms(p) <= p->downtime_ms)
    return pass;
  if (p->wire > 0 && (may_postcopy(p) || needed_ms(p) <= p->config.downtime_max_ms))
    return pass + (gint64)((double)p->left[0] / p->wire);
  return -1;
}

static void
expect(const DrPolicy *p, const DrPolicySample *s, DrAdvice *ret)
{
  gint64 left = time_left(p, s), fixed = p->config.overhead_ms + round_trip_ms(&p->config);
  gboolean converges = p->stuck == 0 || needed_ms(p) <= p->downtime_ms;

  ret->near_end = left >= 0 && left < NEAR_END_MS;
  ret->expected_total_ms = left < 0 ? -1 : s->time_ms - p->begun_ms + left + fixed;
  if (p->suspended)
    ret->expected_pause_ms = left < 0 ? -1 : left + fixed;
  else if (p->postcopy || s->status == DR_STATUS_POSTCOPY)
    ret->expected_pause_ms = fixed;
  else if (converges || needed_ms(p) <= p->config.downtime_soft_ms)
    ret->expected_pause_ms = (converges ? p->downtime_ms : needed_ms(p)) + fixed;
  else
    ret->expected_pause_ms = may_postcopy(p)                             ? fixed
                             : needed_ms(p) <= p->config.downtime_max_ms ? needed_ms(p) + fixed
                                                                         : -1;
}

/* --- Deciding --- */

static void say(DrAdvice *ret, DrAdviceAction action, const char *format, ...) G_GNUC_PRINTF(3, 4);

static void
say(DrAdvice *ret, DrAdviceAction action, const char *format, ...)
{
  va_list arguments;

  ret->action = action;
  va_start(arguments, format);
  g_vsnprintf(ret->reason, sizeof ret->reason, format, arguments);
  va_end(arguments);
}

static void
start_postcopy(DrPolicy *p, DrAdvice *ret, const char *why)
{
  p->postcopy = TRUE;
  say(ret, DR_ADVICE_START_POSTCOPY, "%s", why);
}

static void
give_up(DrPolicy *p, DrAdvice *ret, const char *why)
{
  p->given_up = TRUE;
  say(ret, DR_ADVICE_GIVE_UP, "%s", why);
}

static void
raise_downtime(DrPolicy *p, DrAdvice *ret, gint64 now, gint64 most)
{
  gint64 before = p->downtime_ms;

  p->downtime_ms = MIN(most, MAX(before * 2, needed_ms(p)));
  p->stuck = 0;
  if (p->downtime_ms == p->config.downtime_max_ms)
    p->max_since_ms = now;
  say(ret, DR_ADVICE_SET_DOWNTIME,
      "each pass leaves about %" G_GINT64_FORMAT " MiB: a pause of %" G_GINT64_FORMAT
      " ms is allowed instead of %" G_GINT64_FORMAT " ms",
      p->left[0] >> 20, p->downtime_ms, before);
}

/* The last resort has been tried: the greatest pause, for a while, and what is left has not come near it. */
static gboolean
is_hopeless(const DrPolicy *p, gint64 now)
{
  return p->stuck >= PATIENCE_PASSES && now - MAX(p->max_since_ms, p->best_ms) >= PATIENCE_MS;
}

static void
judge_stuck(DrPolicy *p, const DrPolicySample *s, DrAdvice *ret)
{
  guint enough = p->pass_took >= LONG_PASS_MS ? 1 : STUCK_PASSES;
  char why[160];

  if (p->stuck < enough || p->wire <= 0)
    return;
  g_snprintf(why, sizeof why,
             "the guest writes memory as fast as it is copied: each pass leaves %" G_GINT64_FORMAT
             " MiB, a pause of %" G_GINT64_FORMAT " ms",
             p->left[0] >> 20, needed_ms(p));
  if (p->downtime_ms < p->config.downtime_soft_ms && needed_ms(p) <= p->config.downtime_soft_ms)
    raise_downtime(p, ret, s->time_ms, p->config.downtime_soft_ms);
  else if (may_postcopy(p))
    start_postcopy(p, ret, why);
  else if (p->downtime_ms < p->config.downtime_max_ms)
    raise_downtime(p, ret, s->time_ms, p->config.downtime_max_ms);
  else if (p->config.postcopy == DR_POSTCOPY_NEVER && p->config.timeout_ms == 0 && is_hopeless(p, s->time_ms))
    give_up(p, ret, why);
}

/* What the user has said about time. Returns: whether it was time. */
static gboolean
judge_timeouts(DrPolicy *p, const DrPolicySample *s, DrAdvice *ret)
{
  gint64 elapsed = s->time_ms - p->begun_ms;
  const DrPolicyConfig *c = &p->config;

  if (c->timeout_postcopy_ms > 0 && c->postcopy != DR_POSTCOPY_NEVER && elapsed >= c->timeout_postcopy_ms) {
    start_postcopy(p, ret, "pre-copy has taken as long as --timeout-postcopy allows");
    return TRUE;
  }
  if (c->timeout_ms <= 0 || elapsed < c->timeout_ms)
    return FALSE;
  if (c->timeout_suspend) {
    p->suspended = TRUE;
    say(ret, DR_ADVICE_SUSPEND,
        "pre-copy has taken as long as --timeout allows: the guest is suspended until it has moved");
  } else {
    give_up(p, ret, "pre-copy has taken as long as --timeout allows");
  }
  return TRUE;
}

/* While nothing moves, nothing is begun: a guest that is stopped now, or is split by post-copy, would stand still for as long. */
static gboolean
judge_stall(DrPolicy *p, const DrPolicySample *s, DrAdvice *ret)
{
  gint64 still = s->time_ms - p->moved_ms;

  if (still < STALL_MS)
    return FALSE;
  ret->stalled = TRUE;
  ret->expected_total_ms = -1;
  if (s->status == DR_STATUS_PRECOPY && still >= STALL_GIVE_UP_MS)
    give_up(p, ret, "nothing has moved for a minute, though the link is up: the other QEMU does not read");
  else
    say(ret, DR_ADVICE_GO_ON, "nothing has moved for %" G_GINT64_FORMAT " s", still / 1000);
  return TRUE;
}

static void
judge_precopy(DrPolicy *p, const DrPolicySample *s, gboolean pass, DrAdvice *ret)
{
  if (p->suspended || p->postcopy || judge_timeouts(p, s, ret) || !pass)
    return;
  if (p->config.postcopy == DR_POSTCOPY_AFTER_PRECOPY)
    start_postcopy(p, ret, "the first pass is done (--postcopy-after-precopy)");
  else
    judge_stuck(p, s, ret);
}

void
dr_policy_judge(DrPolicy *policy, const DrPolicySample *sample, DrAdvice *ret_advice)
{
  gboolean pass = FALSE, usable = sample->status != DR_STATUS_OTHER && sample->total > 0 &&
                                  (policy->begun_ms < 0 || sample->time_ms >= policy->last_ms);

  memset(ret_advice, 0, sizeof *ret_advice);
  ret_advice->downtime_ms = policy->downtime_ms;
  ret_advice->expected_total_ms = ret_advice->expected_pause_ms = -1;
  if (usable) {
    note_sample(policy, sample);
    pass = note_pass(policy, sample);
    expect(policy, sample, ret_advice);
  }
  if (policy->given_up)
    say(ret_advice, DR_ADVICE_GIVE_UP, "given up before");
  else if (usable && !judge_stall(policy, sample, ret_advice) && sample->status == DR_STATUS_PRECOPY)
    judge_precopy(policy, sample, pass, ret_advice);
  ret_advice->downtime_ms = policy->downtime_ms;
  if (usable)
    keep_sample(policy, sample);
}

void
dr_policy_forecast(const DrPolicyConfig *config, gint64 ram, gint64 rate, DrAdvice *ret_advice)
{
  DrPolicy policy;
  gint64 fixed;

  dr_policy_init(&policy, config);
  memset(ret_advice, 0, sizeof *ret_advice);
  fixed = policy.config.overhead_ms + round_trip_ms(config);
  if (config->bandwidth_limit > 0)
    rate = rate > 0 ? MIN(rate, config->bandwidth_limit) : config->bandwidth_limit;
  ret_advice->downtime_ms = policy.downtime_ms;
  ret_advice->expected_total_ms = rate > 0 ? (gint64)((double)ram / (double)rate * 1000) + fixed : -1;
  ret_advice->expected_pause_ms = policy.downtime_ms + fixed;
}
