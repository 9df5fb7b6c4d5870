# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 of droverd and of either QEMU at every stage of an upgrade, and all else that can go wrong in the middle of one."""

import contextlib
import dataclasses
import json

import pytest

from lib import drover, guest
from lib.procs import kill_pid, wait_until
from lib.qmp import Qmp

OLD, NEW = "7.2", "10.0"
PATIENT = 90  # s; for what takes a second on an idle machine


# --- A guest and the upgrade that is held beneath it ---


class Scene:
    """A droverd and one witness guest that is used again as long as it lives."""

    def __init__(self):
        self.daemon = drover.Daemon()
        self.daemon.start()
        self.guests = 0
        self.vm = self.ticks = None

    def living_guest(self):
        if self.vm is None:
            self.guests += 1
            name = f"g{self.guests}"
            self.ticks = guest.GapObserver(unix=self.daemon.dir / f"{name}.tick")
            self.monitor = self.daemon.dir / f"{name}.monitor"
            self.vm = drover.Witness(self.daemon, name, ram="131080k", mem=16, rate=50, witness={"tick": "port"},
                                     extra=[*self.ticks.qemu_args(), "-qmp", f"unix:{self.monitor},server=on,wait=off"])
            self.version = OLD
        return self.vm

    def bury_guest(self):
        if self.vm:
            self.vm.close()
            self.ticks.close()
            for pid in self.daemon.qemus():
                kill_pid(pid)
            if not self.daemon.process.alive():
                self.daemon.start()
            self.daemon.run("forget", self.vm.name, "--force", check=False)
        self.vm = None

    def user_monitor(self):
        """The VM's own monitor, as a user's tool has it."""
        return Qmp(self.monitor)

    def other_version(self):
        return NEW if self.version == OLD else OLD

    def close(self):
        self.bury_guest()
        self.daemon.close()


class Held:
    """An upgrade that stands still at each of some stages in turn, now at the first."""

    def __init__(self, scene, *stages, mode="shared", qemu=None):
        self.scene, self.daemon = scene, scene.daemon
        self.name = scene.living_guest().name
        self.daemon.restart(env={"DROVER_HOLD_AT": ",".join(stages)})
        self.old = self.daemon.show(self.name)["pid"]
        self.marker = self.daemon.run_dir / "hold"
        self.command = self.daemon.spawn("upgrade", self.name, "--qemu", qemu or guest.qemu(scene.other_version()), "--memory",
                                         mode, "--json")
        self.wait(stages[0])
        self.job = self.daemon.json("jobs")[0]["id"]
        others = [pid for pid in self.daemon.qemus() if pid != self.old]
        self.new = others[0] if others else None

    def wait(self, stage):
        def is_there():
            if self.command.poll() is not None:
                raise AssertionError(f"the upgrade did not come to {stage}: {self.command.communicate()}")
            return self.marker.exists() and self.marker.read_text() == stage

        wait_until(is_there, PATIENT, f"stage {stage}")

    def let_go(self):
        self.marker.unlink(missing_ok=True)

    def end(self):
        """The job, when it has ended, and the command's exit code."""
        self.let_go()
        self.command.communicate(timeout=PATIENT)
        return self.daemon.ended_job(self.job), self.command.returncode

    def kill(self, *whom):
        """droverd first: what it could still do before it dies is not what is asked here."""
        if "droverd" in whom:
            self.daemon.kill()
        for pid in [{"old": self.old, "new": self.new}[who] for who in whom if who != "droverd"]:
            kill_pid(pid)


def nothing_is_left_behind(daemon, name, pids):
    """Of a VM that runs as these pids (none: it has ended), and of what an upgrade makes."""
    shown = daemon.show(name)
    generation = shown["qmp"].rsplit(".", 1)[1]
    run_files = {path.name for path in (daemon.run_dir / "vms" / name).iterdir()}
    state_files = {path.name for path in (daemon.state_dir / "vms" / name).iterdir()}
    assert run_files == ({f"qmp.{generation}"} if pids else set())
    assert state_files == {"qemu.log", "record.json"} | (set() if pids else {f"exit.{generation}"})
    assert not list(daemon.dir.glob("*.drover-*"))
    assert len(daemon.keepers(name)) == len(pids)
    assert not (daemon.run_dir / "hold").exists()


# --- The table ---

# Where the guest is afterwards: under the OLD QEMU, under the NEW one, or nowhere, because its own QEMU was killed (in
# post-copy both are). "moving" is the middle of the copy; switchover: the old one has stopped for good and the new one has
# not been told to run; resume: it runs.
TABLE = """
mode      stage       droverd  old   new   droverd+old  droverd+new
shared    preflight   old      none  -     none         -
shared    start       old      none  -     none         -
shared    verify      old      none  old   none         old
shared    transfer    old      none  old   none         old
shared    switchover  old      new   old   new          old
shared    resume      new      new   none  new          none
shared    commit      new      new   none  new          none
copy      moving      old      none  old   none         old
postcopy  postcopy    old      none  old   none         old
postcopy  switchover  new      none  none  none         none
postcopy  resume      new      none  none  none         none
postcopy  commit      new      new   none  new          none
"""
IN_THE_JOURNAL = {"switchover": {"shared": "transfer", "postcopy": "postcopy"},
                  "resume": {"shared": "transfer", "postcopy": "postcopy"}, "moving": {"copy": "transfer"}}


@dataclasses.dataclass(frozen=True)
class Row:
    mode: str
    stage: str
    killed: tuple
    ends: str

    def __str__(self):
        return f"{self.mode}-{self.stage}-{'+'.join(self.killed)}"


def rows():
    head, *lines = [line.split() for line in TABLE.strip().splitlines()]
    return [Row(mode, stage, tuple(column.split("+")), ends) for mode, stage, *cells in lines
            for column, ends in zip(head[2:], cells) if ends != "-"]


@pytest.fixture(scope="module")
def scene():
    with contextlib.closing(Scene()) as made:
        yield made


def hold(scene, row):
    """Brings the upgrade to the row's stage. What must not end before the kill is slowed down by the VM's own monitor."""
    if row.mode == "shared":
        return Held(scene, row.stage)
    held = Held(scene, "transfer", row.stage, mode=row.mode)
    slow_pages = row.stage in ("switchover", "resume") and "old" in row.killed
    with scene.user_monitor() as monitor:
        monitor.command("migrate-set-parameters", {"max-bandwidth": 4 << 20, "max-postcopy-bandwidth": slow_pages << 20})
        held.let_go()
        if row.stage == "postcopy":  # entered before the first page moves
            held.wait(row.stage)
            return held
        wait_until(lambda: monitor.command("query-migrate").get("ram", {}).get("transferred", 0) > 1 << 20, PATIENT,
                   "pages on their way")
        if row.mode == "copy":
            assert monitor.command("query-migrate")["status"] == "active"
    if row.mode == "postcopy":
        held.wait(row.stage)
    return held


@pytest.mark.parametrize("row", rows(), ids=str)
def test_after_kill_9_exactly_one_copy_runs_and_the_journal_says_why(scene, row):
    daemon, vm = scene.daemon, scene.living_guest()
    try:
        held = hold(scene, row)
        held.kill(*row.killed)
        if "droverd" in row.killed:
            stages = daemon.journal(held.job)
            assert stages[-1] == IN_THE_JOURNAL.get(row.stage, {}).get(row.mode, row.stage)
            held.let_go()
            daemon.start()
        job, code = held.end()
        pids = {"old": {held.old}, "new": {held.new}, "none": set()}[row.ends]
        assert set(daemon.qemus()) == pids
        shown = daemon.show(vm.name)
        told = f"job {job}, VM {shown}"
        assert job["state"] == {"old": "failed", "new": "succeeded", "none": "attention"}[row.ends], told
        assert (job["error"] is None) == (row.ends == "new"), told
        if "droverd" not in row.killed:
            assert code == {"old": 1, "new": 0, "none": 3}[row.ends]
        assert shown["state"] == ("running" if pids else "stopped"), told
        assert shown["pid"] == (pids.pop() if pids else None)
        if row.ends == "none":
            assert "killed by signal 9" in shown["exit"] and shown["note"], told
        elif "droverd" in row.killed:
            assert row.ends == "new" or "droverd ended" in shown["note"], told
        nothing_is_left_behind(daemon, vm.name, daemon.qemus())
        if row.ends != "none":
            vm.healthy()
            assert scene.ticks.report()["breaks"] == 0, scene.ticks.report()["break_list"]
        if row.ends == "new":
            scene.version = scene.other_version()
            assert shown["qemu_version"].startswith(scene.version)
        if row.ends == "none":
            scene.bury_guest()
    except BaseException:
        scene.bury_guest()
        raise
