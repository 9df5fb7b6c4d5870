# SPDX-License-Identifier: LGPL-2.1-or-later
"""Exactly one copy runs, whatever dies in a move between two hosts: each droverd, each QEMU, the link, at every stage."""

import time

import pytest

from lib import drover
from lib.pair import Pair
from lib.procs import kill_pid, wait_until

SMALL = {"ram": "131080k", "mem": 16, "rate": 50}
PATIENT = 90  # s
SILENT = 6  # s; a link that dies silently is known within 4
BEFORE = ("preflight", "start", "verify", "transfer")  # the guest is the source's, whatever happens


class Move:
    """A move that is held at a stage of the source's job ("a:transfer") or of the destination's ("b:resume")."""

    def __init__(self, pair, at, mode):
        self.pair = pair
        self.holder, self.stage = (pair.a if at[0] == "a" else pair.b), at[2:]
        self.vm = drover.Witness(pair.a, "vm", **SMALL)
        self.old = self.vm.pid
        options = ["--postcopy-after-precopy"] if mode == "postcopy" else ["--no-postcopy"]
        self.command = pair.a.spawn("migrate", "vm", "b", *options)
        self.hold = self.holder.run_dir / "hold"
        wait_until(self.is_held, PATIENT, f"the move to be held at {at}")

    def is_held(self):
        if self.command.poll() is not None:
            raise AssertionError(self.command.communicate())
        if not self.hold.exists() or not self.holder.json("jobs"):
            return False
        return self.holder.json("jobs")[0]["stage"] == self.stage

    @property
    def new(self):
        return next(iter(self.pair.b.qemus()), None)

    def strike(self, victim):
        if victim == "old":
            kill_pid(self.old)
        elif victim == "new":
            if self.new:
                kill_pid(self.new)
        elif victim == "link":
            self.pair.link.cut()
        else:
            (self.pair.a if victim == "a" else self.pair.b).kill()

    def feel(self):
        """Lets the move run into the cut, until it is known to both sides: by a job that has ended, or a guest that is held; in
        post-copy nothing shows but time."""
        self.hold.unlink(missing_ok=True)
        deadline = time.monotonic() + SILENT
        wait_until(lambda: self.jobs_ended() or "attention" in [vm["state"] for vm in self.pair.a.json("list")] or
                   time.monotonic() > deadline, PATIENT, "the cut to be noticed")

    def mend(self, victim):
        """The one that was struck comes back, without being held again."""
        if victim == "link":
            self.pair.link.heal()
        elif victim in ("a", "b"):
            (self.pair.a if victim == "a" else self.pair.b).start(env={"DROVER_HOLD_AT": ""})
        self.hold.unlink(missing_ok=True)

    def jobs_ended(self):
        return all(job["state"] not in ("queued", "running") for one in (self.pair.a, self.pair.b) for job in one.json("jobs"))

    def where(self):
        """Where it runs when all has settled: "a", "b" or None."""
        wait_until(self.jobs_ended, PATIENT, lambda: f"both jobs to end: {self.pair.a.json('jobs')} {self.pair.b.json('jobs')}")
        found = {name: (one.qemus(), [vm["state"] for vm in one.json("list")]) for name, one in
                 (("a", self.pair.a), ("b", self.pair.b))}
        running = [name for name, (_, states) in found.items() if states == ["running"]]
        assert sum(len(pids) for pids, _ in found.values()) == len(running) <= 1, found
        return running[0] if running else None

    def close(self):
        self.command.kill()
        self.command.communicate()
        self.vm.close()


@pytest.fixture
def scene():
    made = []

    def make(at, mode="copy"):
        env = {"DROVER_HOLD_AT": at[2:]}
        pair = Pair(env_a=env if at[0] == "a" else None, env_b=env if at[0] == "b" else None)
        pair.__enter__()
        made.append(pair)
        made.append(Move(pair, at, mode))
        return made[-1]

    yield make
    for one in reversed(made):
        one.close() if isinstance(one, Move) else one.__exit__(None, None, None)


def expected(at, mode, victim):
    """Where the guest may be afterwards. Which of two places it is depends on how far QEMU was, which goes on while a job is
    held; that it is in one of them, and that none is there only where a QEMU was killed, is what counts."""
    decided = at in ("a:switchover", "a:resume", "a:postcopy") or at[0] == "b" and at[2:] not in ("preflight", "start", "verify")
    if not decided:
        return {None} if victim == "old" and at != "a:transfer" else {"a"} if victim in ("a", "new") else {None, "a", "b"} - (
            {None} if victim != "old" else {"a"})
    if victim == "old":
        return {"b", None}
    if victim == "new":
        return {None} if at == "b:commit" else {"a", None}
    return {"a", "b"}


TABLE = [(at, mode, victim)
         for mode, stages in (("copy", ("a:preflight", "a:start", "a:verify", "a:transfer", "a:switchover", "a:resume", "b:start", "b:verify",
                                        "b:switchover", "b:resume", "b:commit")),
                              ("postcopy", ("a:transfer", "a:postcopy", "b:postcopy", "b:switchover", "b:resume")))
         for at in stages for victim in ("a", "b", "old", "new", "link")
         if not (victim in ("new", "link") and at in ("a:preflight", "a:start", "b:start"))]


@pytest.mark.parametrize("at, mode, victim", TABLE, ids=["-".join(row).replace(":", ".") for row in TABLE])
def test_exactly_one_copy_runs(scene, at, mode, victim):
    move = scene(at, mode)
    move.strike(victim)
    if victim in ("old", "new"):
        move.hold.unlink()
    if victim == "link":
        move.feel()
    move.mend(victim)
    where = move.where()
    assert where in expected(at, mode, victim), (where, move.pair.a.json("jobs"), move.pair.b.json("jobs"))
    if where:
        move.vm.daemon = move.pair.a if where == "a" else move.pair.b
        move.vm.healthy()
