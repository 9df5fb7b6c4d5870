/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The switchover of a move between two hosts: which QEMU may run the guest, whatever breaks, dies or is late.
 *
 * README.md has the protocol in words, what is assumed of QEMU, and what is checked; tests/tools/check-model runs all of it.
 * Read in this order: the state, the rules of D, the rules of S, QEMU, faults, and what must hold.
 *
 * Each guarded command is one step of one program, which may be followed by any fault: what a daemon writes to its journal,
 * what it tells its QEMU and what it sends are separate steps wherever the order matters. No rule polls, faults are bounded
 * and nothing is undone, so every run is finite (checked: no cycles) and ends in a state where nobody has anything to do;
 * "in the end exactly one runs" is therefore an assertion about those last states, without any assumption of fairness.
 *
 *   -DFAULTS=N   faults in a run, of any kind, at any step (default 4)
 *   -DQEMU10     a source whose stream breaks at the end of post-copy fails and resumes by itself (seen with 10.0; 7.2 hangs), so
 *                the guest is stopped before post-copy is ordered
 *   -DQEMU11     the same before the destination has loaded post-copy's package (seen with 11.1); sets QEMU10
 *   -DRESCUE     a source in postcopy-paused whose destination never ran can be brought back (README, "The windows")
 *   -DNOHEAL     the link stays down in the end: who holds then?
 *   -DONLY_TWO   never two is checked, never none is not
 *   -DM_...      the mutants: the protocol with one rule broken
 */
#ifdef QEMU11
#define QEMU10
#endif
#ifndef FAULTS
#define FAULTS 4
#endif

/* --- The state --- */

/* The source's QEMU. runs: the guest executes, no migration (before, failed, cancelled); precopy: executes, pages go; sent: stopped,
 * all of it written, the result not known yet; completed; package: post-copy's device state sent, no answer yet (11.1);
 * postcopy, paused, drained, pulled: post-copy under way, interrupted, all written, completed; failed: the
 * same as runs, but the guest is stopped. The destination's. incoming; loaded: has all
 * of the guest, paused (-S); lazy: has the devices, lacks pages, paused; lazyruns: the same, executes; runs. */
mtype:source = { s_runs, s_precopy, s_sent, s_completed, s_package, s_postcopy, s_paused, s_drained,
               s_pulled, s_failed, s_dead };
mtype:dest = { d_incoming, d_loaded, d_lazy, d_lazyruns, d_runs, d_dead };
mtype:source qs = s_precopy;
mtype:dest qd = d_incoming;
bool stopped; /* the source's QEMU has been told stop */
bool ordered; /* and migrate-start-postcopy */

/* QEMU's stream, through both daemons: it breaks with the link and with either. What is in it: */
mtype:content = { nothing, last, package };
mtype:content pipe = nothing;
bool flows = true;
bool listens; /* migrate-recover has been done: the destination waits for a new stream */

/* The journals: they survive their daemon. */
mtype:smark = { undecided, order, decided, aborted, done, lost };
mtype:dmark = { fresh, held, accepted, discarded };
mtype:smark smark = undecided;
mtype:dmark dmark = fresh;

/* The daemons' memory: it does not. */
mtype:phase = { restarted, pre, promise, ordering, ordered_, ask, pull, bereft, abort_, finished };
mtype:phase ss = pre;
bool resend;          /* S has to (re)send what its phase asks for */
bool d_restarted;     /* D has not read its journal yet */
bool go;              /* D has a GO to answer */
bool watched = true;  /* D has listened to its QEMU without a gap since before it may have run */
bool forgotten;       /* mutant: a discard that is not in the journal */

/* The conversation. What is in it when the link breaks may be lost, or be read late, each way by itself. */
mtype:word = { HOLD, GO, ABORT, RECOVER, ENDED,
              PROMISED, RUNNING, WHOLE, DISCARDED, GONE, LOST, READY, LACKS };
chan s2d = [3] of { mtype:word };
chan d2s = [3] of { mtype:word };
bool up = true;

/* For what must hold: nobody in the protocol reads these. */
byte faults = FAULTS;
bool calm;        /* no more faults, and nobody changes his mind */
bool s_went_on;   /* the source's guest has executed after the state was taken */
bool d_ran;       /* the destination's guest has executed */
bool excused;     /* a QEMU was killed that had what nobody else had: the guest may be lost (not doubled) */

#define SEND(channel, word) if :: up -> channel ! word :: else fi
#define EXECUTES_S (qs == s_runs || (qs == s_precopy && !stopped))
#define EXECUTES_D (qd == d_runs || qd == d_lazyruns)
#define STOPPED_FOR_GOOD (qs == s_completed || qs == s_postcopy || qs == s_paused || qs == s_drained || qs == s_pulled)
#define D_READY (qd == d_loaded || qd == d_lazy)

/* The two ways to lose: the source goes on with a guest that the destination has run, or the other way round. This is more than
 * "never both at a time": memory and disks have gone on elsewhere also when that other one is dead by now. */
inline source_goes_on() { assert(!d_ran); s_went_on = true; qs = s_runs }
inline source_fails() { if :: stopped -> qs = s_failed :: else -> source_goes_on() fi }
inline dest_goes_on()
{
  assert(!s_went_on && !EXECUTES_S);
  d_ran = true;
  if :: qd == d_lazy -> qd = d_lazyruns :: else -> qd = d_runs fi
}

inline lost_with_source() { if :: qs == s_dead -> excused = true :: else fi }

/* --- The destination's daemon --- */

active proctype D()
{
  mtype:word m;
end:
  do
  :: atomic { d_restarted -> d_restarted = false; go = false; forgotten = false; watched = (dmark != accepted) }

  /* What S says. */
  :: atomic { !d_restarted && s2d ? [HOLD] && nfull(d2s) -> s2d ? m;
       if
       :: qd == d_dead && dmark == fresh -> dmark = discarded
       :: qd != d_dead && dmark == fresh && !forgotten -> dmark = held
       :: else
       fi;
       if
       :: dmark == discarded || forgotten -> SEND(d2s, DISCARDED)
       :: else -> SEND(d2s, PROMISED)
       fi; m = 0 }
  :: atomic { !d_restarted && s2d ? [GO] -> s2d ? m; go = true; m = 0 }
  :: atomic { !d_restarted && s2d ? [ABORT] && nfull(d2s) -> s2d ? m; m = 0;
       if
       :: dmark != accepted -> dmark = discarded; SEND(d2s, GONE)
       :: else /* cannot be: what has been accepted is no longer S's to abort */
       fi }
  :: atomic { !d_restarted && (s2d ? [RECOVER] || s2d ? [ENDED]) && nfull(d2s) && !(qd == d_lazyruns && flows) ->
       if
       :: qd == d_runs -> SEND(d2s, WHOLE)
       :: qd == d_dead -> SEND(d2s, LOST)
       :: qd == d_lazyruns && s2d ? [RECOVER] -> listens = up; SEND(d2s, READY)
       :: qd == d_lazyruns && s2d ? [ENDED] -> SEND(d2s, LACKS)
       fi; s2d ? m; m = 0 }

  /* GO is accepted by a QEMU that has what it needs, and not before: one that still loads may fail to. */
#ifdef M_ACCEPT_BEFORE_LOADED
  :: atomic { !d_restarted && go && (dmark == fresh || dmark == held) && qd != d_dead -> dmark = accepted }
#else
#ifdef M_ACCEPT_AFTER_CONT
  :: atomic { !d_restarted && go && (dmark == fresh || dmark == held) && D_READY -> dest_goes_on() }
  :: atomic { !d_restarted && go && (dmark == fresh || dmark == held) && EXECUTES_D -> dmark = accepted }
#else
  :: atomic { !d_restarted && go && (dmark == fresh || dmark == held) && !forgotten && D_READY -> dmark = accepted }
#endif
#endif
  :: atomic { !d_restarted && dmark == accepted && D_READY -> dest_goes_on() } /* cont; also after a restart */
#ifdef M_RUN_WITHOUT_GO
  :: atomic { !d_restarted && dmark == fresh && qd == d_loaded -> dest_goes_on() }
#endif
#ifdef M_CONT_AT_POSTCOPY
  :: atomic { !d_restarted && dmark == held && qd == d_lazy -> dmark = accepted }
#endif
#ifdef M_CONT_EARLY
  :: atomic { !d_restarted && dmark == held && D_READY -> dmark = accepted }
#endif

  /* The answer to GO. */
  :: atomic { !d_restarted && go && qd == d_runs && dmark == accepted && nfull(d2s) -> go = false; SEND(d2s, WHOLE) }
  :: atomic { !d_restarted && go && qd == d_lazyruns && dmark == accepted && nfull(d2s) -> go = false; SEND(d2s, RUNNING) }
  :: atomic { !d_restarted && go && (dmark == discarded || forgotten) && nfull(d2s) -> go = false; SEND(d2s, DISCARDED) }
  :: atomic { !d_restarted && go && qd == d_dead && (dmark == fresh || dmark == held) -> dmark = discarded }
  :: atomic { !d_restarted && go && qd == d_dead && dmark == accepted && nfull(d2s) ->
       if
#ifdef M_DEAD_IS_DISCARDED
       :: true -> dmark = discarded
#else
       :: watched && !d_ran -> dmark = discarded /* it has heard no RESUME, and QEMU says that before the first vCPU runs */
       :: else -> go = false; SEND(d2s, LOST)
#endif
       fi }

  /* Discarding: by S's word, or of its own after a time; never of its own once it has promised to hold. */
#ifdef M_DISCARD_NOT_JOURNALLED
  :: atomic { !d_restarted && !calm && dmark == fresh && !forgotten -> forgotten = true }
#else
  :: atomic { !d_restarted && !calm && dmark == fresh && !go -> dmark = discarded; lost_with_source() }
#endif
#ifdef M_DISCARD_DESPITE_PROMISE
  :: atomic { !d_restarted && !calm && dmark == held -> dmark = discarded }
#endif
  :: atomic { !d_restarted && (dmark == discarded || forgotten) && qd != d_dead -> qd = d_dead }
  od
}

/* --- The source's daemon --- */

inline enter(next) { ss = next; resend = true }

active proctype S()
{
  mtype:word m;
end:
  do
  :: atomic { ss == restarted ->
       if
#ifdef M_RESTART_FORGETS
       :: true -> smark = aborted; enter(abort_)
#else
       :: smark == undecided || smark == aborted -> smark = aborted; enter(abort_)
       :: smark == order -> enter(ordered_)
       :: smark == decided -> enter(ask)
       :: smark == done || smark == lost -> ss = finished
#endif
       fi }

  /* Before the decision. Post-copy: D promises to hold, then the order is written down, then given. */
  :: atomic { ss == pre && qs == s_precopy && up && !calm && nfull(s2d) -> s2d ! HOLD; ss = promise }
  :: atomic { ss == promise && d2s ? [PROMISED] -> d2s ? m; smark = order; ss = ordering; m = 0 }
#ifdef QEMU10
#ifndef M_NOT_STOPPED
  :: atomic { ss == ordering && qs == s_precopy && !stopped -> stopped = true }
  :: atomic { ss == ordering && (qs != s_precopy || stopped) -> ordered = (qs == s_precopy); ss = ordered_ }
#else
  :: atomic { ss == ordering -> ordered = (qs == s_precopy); ss = ordered_ }
#endif
#else
  :: atomic { ss == ordering -> ordered = (qs == s_precopy); ss = ordered_ }
#endif
  /* The error, or the user, that ends the move; with an order in the journal only a QEMU that has failed by itself. */
  :: atomic { (ss == pre || ss == promise) && !calm -> smark = aborted; enter(abort_) }
  :: atomic { (ss == pre || ss == promise || ss == ordered_) &&
       (qs == s_runs || qs == s_failed || qs == s_dead) -> smark = aborted; enter(abort_) }

  /* The decision: its QEMU has stopped for good. Written first, then said. */
#ifdef M_DECIDE_NOT_JOURNALLED
  :: atomic { (ss == pre || ss == promise || ss == ordered_) && STOPPED_FOR_GOOD -> enter(ask) }
#else
#ifdef M_DECIDE_ON_ORDER
  :: atomic { ss == ordered_ && ordered -> smark = decided; enter(ask) }
#endif
  :: atomic { (ss == pre || ss == promise || ss == ordered_) && STOPPED_FOR_GOOD -> smark = decided; enter(ask) }
#endif
  :: atomic { ss == ask && resend && up && nfull(s2d) -> resend = false; s2d ! GO }
#ifdef M_RESUME_WITHOUT_ASKING
  :: atomic { ss == ask && !up && qs == s_completed -> smark = aborted; enter(abort_) }
#endif
#ifdef M_KILL_BEFORE_ANSWER
  :: atomic { ss == ask && !resend && qs == s_completed -> smark = done; ss = finished }
#endif

  /* D's answers. */
  :: atomic { ss == ask && (d2s ? [WHOLE] || d2s ? [RUNNING]) ->
       if
       :: d2s ? [RUNNING] -> enter(pull)
       :: else -> smark = done; ss = finished
       fi; d2s ? m; m = 0 }
  :: atomic { (ss == ask || ss == pull || ss == bereft) && d2s ? [LOST] || ss == bereft && d2s ? [LACKS] -> d2s ? m;
       smark = lost; ss = finished; m = 0 }
  :: atomic { (ss == ask || ss == promise) && d2s ? [DISCARDED] -> d2s ? m;
#ifndef RESCUE
       if
       :: qs == s_postcopy || qs == s_paused || qs == s_drained -> smark = lost; ss = finished
       :: else -> smark = aborted; enter(abort_)
       fi;
#else
       smark = aborted; enter(abort_);
#endif
       m = 0 }

  /* Post-copy until its last page. */
  :: atomic { ss == pull && qs == s_pulled -> smark = done; ss = finished }
  :: atomic { ss == pull && qs == s_paused && resend && up && nfull(s2d) -> resend = false; s2d ! RECOVER }
  :: atomic { ss == pull && (qs == s_dead || qs == s_failed || (qs == s_drained && !flows)) -> enter(bereft) }
  :: atomic { ss == bereft && resend && up && nfull(s2d) -> resend = false; s2d ! ENDED }
  :: atomic { ss == pull && d2s ? [READY] -> d2s ? m; m = 0;
       if
       :: listens && up && qs == s_paused -> listens = false; flows = true; qs = s_postcopy; resend = true
       :: else
       fi }
  :: atomic { (ss == pull || ss == bereft) && d2s ? [WHOLE] -> d2s ? m; smark = done; ss = finished; m = 0 }

  /* The way back. Cancelling may find a QEMU that has sent everything; it resumes all the same. */
  :: atomic { ss == abort_ && qs == s_precopy -> qs = s_runs; stopped = false }
  :: atomic { ss == abort_ && (qs == s_sent || qs == s_completed || qs == s_pulled || qs == s_failed) -> source_goes_on() }
#ifdef RESCUE
  :: atomic { ss == abort_ && (qs == s_paused || qs == s_drained) -> qs = s_completed }
#endif
  :: atomic { ss == abort_ && resend && up && nfull(s2d) -> resend = false; s2d ! ABORT }
  :: atomic { ss == abort_ && d2s ? [GONE] && (qs == s_runs || qs == s_dead) -> d2s ? m; ss = finished; m = 0 }

  /* The end, and what is no answer to what it waits for. */
  :: atomic { smark == done && qs != s_dead -> qs = s_dead }
  :: atomic { nempty(d2s) && ss != restarted &&
       !(ss == promise && (d2s ? [PROMISED] || d2s ? [DISCARDED])) &&
       !(ss == ask && (d2s ? [RUNNING] || d2s ? [WHOLE] || d2s ? [LOST] || d2s ? [DISCARDED])) &&
       !(ss == pull && (d2s ? [READY] || d2s ? [WHOLE] || d2s ? [LOST])) &&
       !(ss == bereft && (d2s ? [LACKS] || d2s ? [WHOLE] || d2s ? [LOST])) &&
       !(ss == abort_ && d2s ? [GONE]) -> d2s ? m; m = 0 }
  od
}

/* --- QEMU, both of them, and the stream between --- */

/* README, "The windows": what is lost on its way may be what no protocol brings back. */
inline lose_pipe()
{
#ifndef M_WINDOW
  if
  :: qs == s_drained && pipe == last -> excused = true
#ifndef RESCUE
  :: qs == s_postcopy && pipe == package -> excused = true
#endif
  :: else
  fi;
#endif
  pipe = nothing
}

inline source_starts_postcopy()
{
#ifdef QEMU11
  qs = s_package;
#else
  qs = s_postcopy;
#endif
  pipe = package
}

active proctype Qemu()
{
end:
  do
  :: atomic { qs == s_precopy && flows -> qs = s_sent; pipe = last }
  :: atomic { qs == s_precopy && flows && ordered -> source_starts_postcopy() }
  :: atomic { qs == s_precopy && !flows -> if :: stopped -> qs = s_failed :: else -> qs = s_runs fi }
  :: atomic { qs == s_sent -> qs = s_completed }
  :: atomic { qs == s_sent && !flows -> source_fails() } /* write error or return path: it resumes by itself */
  :: atomic { qs == s_package && flows && qd == d_lazy -> qs = s_postcopy }
  :: atomic { qs == s_package && !flows -> source_fails() }
  :: atomic { qs == s_postcopy && !flows -> qs = s_paused }
  :: atomic { qs == s_postcopy && flows && pipe == nothing -> qs = s_drained; pipe = last }
  :: atomic { qs == s_drained && flows && pipe == nothing -> qs = s_pulled }
#ifdef QEMU10
  :: atomic { qs == s_drained && !flows -> source_fails() }
#endif

  :: atomic { flows && pipe == last && qd == d_incoming -> pipe = nothing; qd = d_loaded }
  :: atomic { flows && pipe == package && qd == d_incoming -> pipe = nothing; qd = d_lazy }
  :: atomic { flows && pipe == last && qd == d_lazyruns -> pipe = nothing; qd = d_runs } /* the last page */
  :: atomic { flows && pipe == last && qd == d_lazy -> pipe = nothing; qd = d_loaded }
  :: atomic { !flows && qd == d_incoming -> qd = d_dead } /* fails to load, and ends */
  :: atomic { flows && (qd == d_dead || qs == s_dead) -> flows = false;
       lose_pipe() }
  od
}

/* --- Faults --- */

inline lose(channel) { if :: true :: nempty(channel) -> do :: channel ? w :: empty(channel) -> break od fi; w = 0 }

inline break_link()
{
  up = false; listens = false; go = false;
  if
  :: flows ->
     flows = false; lose_pipe()
  :: else
  fi;
  lose(s2d); lose(d2s)
}

active proctype Faults()
{
  mtype:word w;
end:
  do
  :: atomic { !calm && faults > 0 && up -> faults--; break_link() }
#ifdef NOHEAL
  :: atomic { !up && !calm -> up = true; resend = true }
#else
  :: atomic { !up -> up = true; resend = true }
#endif
  :: atomic { !calm && faults > 0 && ss != restarted -> faults--; ss = restarted; break_link() }
  :: atomic { !calm && faults > 0 && !d_restarted -> faults--; d_restarted = true; break_link();
       if :: dmark == accepted && qd == d_dead -> excused = true :: else fi }
  :: atomic { !calm && faults > 0 && qs != s_dead -> faults--;
       if :: smark == decided && (qd == d_loaded || qd == d_runs) && dmark != discarded :: smark == done :: else -> excused = true fi;
       qs = s_dead }
  :: atomic { !calm && faults > 0 && qd != d_dead -> faults--;
       if
       :: qs == s_dead || d_ran || (dmark == accepted && (!watched || d_restarted)) -> excused = true
#ifndef RESCUE
       :: ordered -> excused = true
#endif
       :: else
       fi;
       qd = d_dead }
  :: atomic { !calm -> calm = true }
  od
}

/* --- What must hold in the end --- */

active proctype End()
{
  timeout ->
#ifndef ONLY_TWO
#ifdef NOHEAL
  /* One runs; or both hold, and only where S has decided and has no answer. */
  if
  :: !up -> assert(excused || qs == s_runs || qd == d_runs || (qd == d_lazyruns && smark == decided) ||
                    (smark == decided && ss == ask))
  :: else
  fi
#else
  assert(up && ss == finished && empty(s2d) && empty(d2s));
  assert(excused || (qs == s_runs && qd == d_dead && smark == aborted) || (qd == d_runs && qs == s_dead && smark == done))
#endif
#else
  skip
#endif
}
