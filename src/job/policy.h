/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What to do while a guest's memory is copied: go on, allow a longer pause, switch to post-copy, suspend, give up.
 *
 * Pure: samples of query-migrate go in, advice comes out; no clock, no I/O, no thread, no memory of its own. docs/POLICY.md
 * has the table of situations and the reasons. How to use it:
 *
 *   DrPolicy policy;
 *   dr_policy_init(&policy, &config);            set QEMU's downtime-limit to dr_policy_downtime(&policy), then migrate
 *   dr_policy_judge(&policy, &sample, &advice);  each 100 to 250 ms, and at each MIGRATION_PASS; do what it says
 *
 * The advice is given once and counts as done: if it could not be done, the job fails with QEMU's error. QEMU's own mbps,
 * expected-downtime and dirty-pages-rate are not looked at: they jitter or saturate (seen in 7.2 and 10.0). */
#pragma once
#include <glib.h>

/* When post-copy is begun. */
typedef enum {
  DR_POSTCOPY_NEVER,  /* not possible, or not allowed */
  DR_POSTCOPY_AUTO,   /* when pre-copy does not converge: no option at all */
  DR_POSTCOPY_MANUAL, /* `--postcopy`: by `drover migrate-postcopy` only, or after timeout_postcopy_ms */
  DR_POSTCOPY_AFTER_PRECOPY, /* `--postcopy-after-precopy`: after the first pass */
} DrPostcopy;

typedef struct {
  gint64 downtime_start_ms; /* the pause that is tried for at first; 0: DR_POLICY_START_MS */
  gint64 downtime_soft_ms;  /* up to here raising it is better than post-copy; 0: DR_POLICY_SOFT_MS */
  gint64 downtime_max_ms;   /* `--downtime`: never more; 0: DR_POLICY_MAX_MS */
  DrPostcopy postcopy; /* DR_POSTCOPY_NEVER where preflight found a reason, or multifd is on with QEMU < 10 */
  gint64
      timeout_postcopy_ms; /* `--timeout-postcopy`: post-copy after that; 0: none; nothing with DR_POSTCOPY_NEVER */
  gint64 timeout_ms;       /* `--timeout`: of pre-copy, from the first sample on; 0: none */
  gboolean
      timeout_suspend; /* `--timeout-suspend`: then suspend the guest, so that it converges; else give up */
  gboolean auto_converge; /* QEMU slows the guest's vCPUs down: that is waited for first */
  gint64 touched; /* bytes of RAM that the guest has used (the QEMU's RssAnon, or the memfd's pages); 0: not
                                 known. Untouched pages cost a first pass nothing */
  gint64 bandwidth_limit; /* bytes/s; 0: none. For the forecast only */
  gint64 round_trip_us;   /* to the other host */
  gint64
      overhead_ms; /* of the switchover itself, without memory: devices, `cont`; 0: DR_POLICY_OVERHEAD_MS */
} DrPolicyConfig;

#define DR_POLICY_START_MS 1
#define DR_POLICY_SOFT_MS 30
#define DR_POLICY_MAX_MS 300 /* QEMU's own default of downtime-limit */
#define DR_POLICY_OVERHEAD_MS 5

typedef enum {
  DR_STATUS_OTHER,    /* none, setup, pre-switchover, device, completed, …: nothing is advised */
  DR_STATUS_PRECOPY,  /* "active" */
  DR_STATUS_POSTCOPY, /* "postcopy-active" */
} DrPolicyStatus;

/* The status of query-migrate (QAPI MigrationStatus); NULL is DR_STATUS_OTHER. */
DrPolicyStatus dr_policy_status(const char *name);

/* Of query-migrate; bytes as in MigrationRAMStats. */
typedef struct {
  gint64 time_ms; /* monotonic, any origin */
  DrPolicyStatus status;
  gint64 passes;      /* dirty-sync-count */
  gint64 remaining;   /* bytes that are left of this pass */
  gint64 transferred; /* bytes on the wire so far */
  gint64 total;       /* bytes of RAM */
  int throttle;       /* cpu-throttle-percentage; 0: none */
  gboolean at_pass;   /* asked for at once after a MIGRATION_PASS event: `remaining` is a whole pass */
} DrPolicySample;

typedef enum {
  DR_ADVICE_GO_ON,
  DR_ADVICE_SET_DOWNTIME,   /* migrate-set-parameters downtime-limit */
  DR_ADVICE_START_POSTCOPY, /* migrate-start-postcopy */
  DR_ADVICE_SUSPEND,        /* stop: what is left no longer grows. The guest runs again on the other host */
  DR_ADVICE_GIVE_UP,        /* migrate_cancel: the guest stays where it is */
} DrAdviceAction;

typedef struct {
  DrAdviceAction action;
  gint64 downtime_ms;       /* the pause that is allowed from now on */
  gint64 expected_total_ms; /* from the first sample to the end; -1: not known, or never as it is */
  gint64 expected_pause_ms; /* of the guest; -1: not known */
  gboolean stalled;         /* nothing has moved for a while: a person should know */
  gboolean
      near_end;     /* the guest may be stopped at any time now: as little as possible should be on its way */
  char reason[200]; /* one phrase without a full stop for people; "" with DR_ADVICE_GO_ON unless stalled */
} DrAdvice;

/* "go-on", "set-downtime", …, as the job's log and tests name it. */
const char *dr_advice_name(DrAdviceAction action);

#define DR_POLICY_RECENT 3

/* Everything in here is policy.c's. */
typedef struct {
  DrPolicyConfig config;
  gint64 begun_ms, last_ms, last_transferred, last_remaining, last_passes;
  gint64 moved_ms;    /* when bytes moved last */
  double wire, drain; /* bytes/ms, smoothed: on the wire, and off `remaining` (zero pages cost nothing) */
  gint64 pass_ms, pass_took;     /* when this pass began; how long the one before took */
  gint64 left[DR_POLICY_RECENT]; /* what the last passes had to copy, newest first */
  guint judged;                  /* how many of them there were */
  gint64 best, best_ms;          /* the least of them, and when */
  guint stuck;                   /* passes in a row that did not make it less */
  guint unsure;                  /* passes of which that cannot be said: they were seen too late */
  guint patience;                /* passes that auto-converge has been waited for */
  int throttle;
  gint64 downtime_ms, max_since_ms;
  gboolean postcopy, suspended, given_up;
} DrPolicy;

void dr_policy_init(DrPolicy *policy, const DrPolicyConfig *config);

/* The pause that is allowed now, ms. */
gint64 dr_policy_downtime(const DrPolicy *policy);

/* Samples come in the order of their time; one that is older than the last is passed over. After DR_ADVICE_GIVE_UP it is said
 * again each time. */
void dr_policy_judge(DrPolicy *policy, const DrPolicySample *sample, DrAdvice *ret_advice);

/* What to expect before anything has moved, for `--check`: `ram` bytes that the guest has touched, `rate` bytes/s of the link
 * (0: not known). It assumes that the guest writes little; nothing else can be known then. */
void dr_policy_forecast(const DrPolicyConfig *config, gint64 ram, gint64 rate, DrAdvice *ret_advice);
