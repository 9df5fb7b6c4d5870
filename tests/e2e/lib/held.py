# SPDX-License-Identifier: LGPL-2.1-or-later
"""An upgrade that is held at a stage (DROVER_HOLD_AT), the guest above it, and what must be true of both afterwards."""

import contextlib
import os
import sqlite3
from pathlib import Path

from . import drover, guest
from .procs import kill_pid, run, wait_until
from .qmp import Qmp

OLD, NEW = "7.2", "10.0"
PATIENT = 90  # s; for what takes a second on an idle machine
NOT_JOURNALLED = ("switchover", "resume")  # they stand in the guest's pause


class Scene:
    """A droverd and one witness guest, which is used again as long as it lives."""

    def __init__(self, daemon=None):
        self.daemon = daemon or drover.Daemon()
        self.daemon.start()
        self.guests = 0
        self.vm = self.ticks = self.held = None

    def living_guest(self):
        if self.vm is None:
            self.guests += 1
            name = f"g{self.guests}"
            self.ticks = guest.GapObserver(unix=self.daemon.dir / f"{name}.tick")
            self.monitor = self.daemon.dir / f"{name}.monitor"
            self.version = OLD
            self.vm = drover.Witness(self.daemon, name, ram="131080k", mem=16, rate=50, witness={"tick": "port"},
                                     extra=[*self.ticks.qemu_args(), "-qmp", f"unix:{self.monitor},server=on,wait=off"])
        return self.vm

    def user_monitor(self):
        """The VM's own monitor, as a user's tool has it."""
        return Qmp(self.monitor)

    def other_version(self):
        return NEW if self.version == OLD else OLD

    def edit_state(self, *statement):
        """Changes droverd's state file, while droverd does not run."""
        with contextlib.closing(sqlite3.connect(self.daemon.state_dir / "drover.db")) as db:
            assert db.execute(*statement).rowcount == 1
            db.commit()

    # --- What must be true of the guest ---

    def guest_is(self, where, held):
        """It is under the "old" QEMU of a held upgrade, under the "new" one, or nowhere ("none"), and nothing else is."""
        pids = {"old": {held.old}, "new": {held.new}, "none": set()}[where]
        assert set(self.daemon.qemus()) == pids
        shown = self.daemon.show(self.vm.name)
        assert shown["state"] == ("running" if pids else "stopped"), shown
        assert {shown["pid"]} - {None} == pids, shown
        self.nothing_is_left_behind(shown)
        if where == "none":
            assert shown["exit"], shown
            self.bury_guest()
            return
        self.vm.healthy()
        # A tick that came twice, or out of turn, would be a second copy's.
        assert self.ticks.report()["breaks"] == 0, self.ticks.report()["break_list"]
        if where == "new":
            self.version = self.other_version()
        assert shown["qemu_version"].startswith(self.version), shown

    def nothing_is_left_behind(self, shown):
        name, generation = shown["name"], shown["qmp"].rsplit(".", 1)[1]
        run_files = {path.name for path in (self.daemon.run_dir / "vms" / name).iterdir()}
        state_files = {path.name for path in (self.daemon.state_dir / "vms" / name).iterdir()}
        assert run_files == ({f"qmp.{generation}"} if shown["pid"] else set())
        assert state_files == {"qemu.log", "record.json"} | (set() if shown["pid"] else {f"exit.{generation}"})
        assert not list(self.daemon.dir.glob("*.drover-*"))
        assert len(self.daemon.keepers(name)) == (1 if shown["pid"] else 0)

    # --- The end ---

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

    def tidy(self):
        """After a test, which may have failed anywhere: what the next one would stumble over is ended."""
        held, self.held = self.held, None
        if held and held.command.poll() is None:
            held.command.kill()
            held.command.communicate()
        (self.daemon.run_dir / "hold").unlink(missing_ok=True)
        sound = self.vm and self.daemon.process.alive() and len(self.daemon.qemus()) == 1
        if not sound or self.daemon.state(self.vm.name) != "running":
            self.bury_guest()

    def close(self):
        self.tidy()
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
        scene.held = self
        self.wait(stages[0])
        self.job = self.daemon.json("jobs")[0]["id"]
        others = [pid for pid in self.daemon.qemus() if pid != self.old]
        self.new = others[0] if others else None

    @classmethod
    def at(cls, scene, mode, stage, slow_pages=False):
        """In the middle of the copy ("moving") or of post-copy RAM moves slowly, so that it does not end before the kill."""
        if mode == "shared":
            return cls(scene, stage)
        held = cls(scene, "transfer", stage, mode=mode)
        with scene.user_monitor() as monitor:
            monitor.command("migrate-set-parameters", {"max-bandwidth": 4 << 20, "max-postcopy-bandwidth": slow_pages << 20})
            held.let_go()
            if mode == "copy":
                wait_until(lambda: monitor.command("query-migrate").get("ram", {}).get("transferred", 0) > 1 << 20, PATIENT,
                           "pages on their way")
                assert monitor.command("query-migrate")["status"] == "active"
        if mode == "postcopy":
            held.wait(stage)
        return held

    def wait(self, stage):
        """Until it is held at this stage; also in a recovery, which has no command."""
        def is_there():
            return self.marker.exists() and self.marker.read_text() == stage

        wait_until(lambda: is_there() or self.command.poll() is not None, PATIENT, f"stage {stage}")
        if not is_there():
            raise AssertionError(f"the upgrade did not come to {stage}: {self.command.communicate()}")

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

    def recover(self, *holds):
        """The next droverd, held at some points of its recovery."""
        self.let_go()
        self.daemon.start(env={"DROVER_HOLD_AT": ",".join(holds)} if holds else None)


class SmallDisk:
    """A file system of its own, to be filled up. It is mounted at `path`, which must be empty, and unmounted at the end."""

    def __init__(self, path, size="24m"):
        self.path, self.size = Path(path), size

    def __enter__(self):
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", f"size={self.size},mode=700", "drover-test", self.path)
        return self

    def fill(self):
        with open(self.path / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while ballast.write(bytes(4096)):
                pass
        assert os.statvfs(self.path).f_bavail == 0

    def free(self):
        (self.path / "ballast").unlink(missing_ok=True)

    def __exit__(self, *_):
        run("umount", self.path)
