# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two sides of the benchmark: a guest that drover upgrades, and its twin that is moved by the bare QMP sequence."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from lib import bare, drover, guest
from lib.procs import private_mib

VERSIONS = ("7.2", "10.0")  # to and fro
# So many ticks of 1 ms before and after each upgrade: the guest must have warmed up, and its silence must have ended.
SETTLE_TICKS = 250
BOOT_S = 120
MOVE_S = 60

_serial = itertools.count(1)


def other(version):
    return VERSIONS[1 - VERSIONS.index(version)]


def qemus_with(marker):
    """The pids of the QEMUs that have this text on their command line (a keeper has not)."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in words and b"\0-machine\0" in words:
                found.add(int(entry.name))
    return found


def _counted_mib(pids):
    """Anonymous memory of these processes and what their memfds hold, each once: counters, no walk through page tables."""
    memfds = {}
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(entry).startswith("/memfd:"):
                    status = os.stat(entry)
                    memfds[status.st_ino] = status.st_blocks * 512 / 2**20
            except OSError:
                pass
    return sum(map(private_mib, pids)) + sum(memfds.values())


def _files_mib(pid):
    """Its share of mapped files: the program and its libraries."""
    found = re.search(r"^Pss_File:\s*(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    return int(found[1]) / 1024


class PssPeak:
    """The Pss of all QEMUs with `marker` on their command line, together; .extra_mib is the peak less before.

    Pss of two processes cannot be read at one instant: while pages move from one to the other, or are mapped by the second,
    they would count twice. So it is put together from its parts: anonymous memory and shared RAM, each page once, by counters
    and sampled; and the files that the new QEMU maps, read once when it runs.
    """

    def __init__(self, marker):
        self.marker = marker
        self.stopping = threading.Event()
        self.samples = 0

    def __enter__(self):
        self.pids = qemus_with(self.marker)
        self.before = self.peak = _counted_mib(self.pids)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def _run(self):
        while not self.stopping.wait(0.005):
            if len(self.pids) < 2:
                self.pids |= qemus_with(self.marker)
            with contextlib.suppress(OSError):  # one has ended
                self.peak = max(self.peak, _counted_mib(self.pids))
                self.samples += 1

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()
        self.extra_mib = self.peak - self.before + max(map(_files_mib, qemus_with(self.marker)), default=0)


class Daemon(drover.Daemon):
    """A droverd whose run directory lies in memory, as /run does on a real system."""

    def __init__(self, **options):
        super().__init__(**options)
        self.run_dir = Path(tempfile.mkdtemp(prefix="dr-", dir="/dev/shm"))

    def close(self):
        super().close()
        shutil.rmtree(self.run_dir, ignore_errors=True)


class Side:
    """A guest with an observer of its own. measure() upgrades it once to the other version."""

    def __init__(self, run_dir, machine, ram_mib, mem_mib, shared, witness=None, net="none", disks=(), observed=True):
        self.dir = Path(run_dir) / f"s{next(_serial)}"
        self.dir.mkdir(parents=True)
        self.observer = guest.GapObserver(unix=self.dir / "tick") if observed else None
        options = {"mem": mem_mib, "rate": 0, "check": 16, **(witness or {})}
        if observed:
            options["tick"] = "port"
        self.spec = bare.Spec(machine=machine, shared=shared, ram_kib=ram_mib * 1024 + 8, witness=options, net=net,
                              disks=list(disks), tick=self.observer and self.observer.path)
        self.shared = shared
        self.version = VERSIONS[0]
        self.paused = False

    def booted(self):
        self.console.wait_ready(BOOT_S)
        # Its memory is filled by now; to wait for a whole pass over 4 GB would take a minute.
        self.bootid = self.console.check()["bootid"]
        return self

    def set_rate(self, rate):
        self.console.command(f"rate {rate}")

    def achieved_rate(self, seconds=0.5):
        """MiB/s that the guest dirties in truth."""
        before, begun = self.console.status()["written"], time.monotonic()
        time.sleep(seconds)
        after, ended = self.console.status()["written"], time.monotonic()
        return round((after - before) / 256 / (ended - begun))

    def measure(self, mode, how):
        """One upgrade, the guest having run for a while: a dict of figures (all of them in ms and MB)."""
        self.unpause()
        self.observer.reset()
        self.observer.wait_ticks(SETTLE_TICKS, timeout=30)
        self.observer.reset()
        figures = self.upgrade(mode, how)
        ticks = self.observer.report()["ticks"]
        report = self.observer.wait_ticks(ticks + SETTLE_TICKS, timeout=60)
        self.console.check(bootid=self.bootid)
        figures.update(gap_ms=report["longest_ms"], breaks=report["breaks"], to=self.version, how=how)
        self.pause()
        return figures

    def measure_memory(self, mode, how):
        """MiB that the two QEMUs take more than the one before, in a run of its own."""
        self.unpause()
        self.observer.reset()
        self.observer.wait_ticks(SETTLE_TICKS, timeout=30)
        with PssPeak(str(self.dir)) as peak:
            figures = self.upgrade(mode, how)
        self.console.check(bootid=self.bootid)
        self.pause()
        return {"extra_pss_mib": round(peak.extra_mib, 1), "before_pss_mib": round(peak.before, 1), "samples": peak.samples,
                "extra_counted_mib": figures.get("extra_counted_mib"), "how": how, "to": self.version}

    def pause(self):
        if not self.paused:
            self._pause()
        self.paused = True

    def unpause(self):
        if self.paused:
            self._unpause()
        self.paused = False

    def close(self):
        if self.observer:
            self.observer.close()
        shutil.rmtree(self.dir, ignore_errors=True)


class DroverSide(Side):
    """The guest under drover."""

    def __init__(self, daemon, run_dir, *args, **options):
        super().__init__(run_dir, *args, **options)
        self.daemon = daemon
        self.name = f"vm{next(_serial)}"
        self.serial = self.dir / "console"
        kind = "shared" if self.shared else "private"
        # drover makes the RAM, so that the command line has none of it; all else is the twin's.
        argv = dataclasses.replace(self.spec, shared=False).argv(guest.qemu(self.version))
        daemon.run("run", self.name, "--memory", kind, "--", *argv,
                   "-chardev", f"socket,id=console,path={self.serial},server=on,wait=off", "-serial", "chardev:console")
        self.console = guest.Console(self.serial)

    def upgrade(self, mode, how="drover"):
        self.version = other(self.version)
        argv = self.daemon.argv("upgrade", self.name, "--qemu", guest.qemu(self.version), "--memory", mode, "--json")
        begun = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=2 * MOVE_S, stdin=subprocess.DEVNULL)
        wall = time.monotonic() - begun
        job = json.loads(done.stdout) if done.stdout.strip().startswith("{") else {}
        if done.returncode or job.get("state") != "succeeded":
            raise RuntimeError(f"drover upgrade: exit {done.returncode}: "
                               f"{(job.get('error') or {}).get('message') or done.stderr.strip()[-400:]}")
        result = job["result"]
        self.daemon.pids |= {result["pid_before"], result["pid_after"]}
        self.console.follow(self.serial)
        if result["memory_mode"] != mode:
            raise RuntimeError(f"drover chose {result['memory_mode']}, not {mode}")
        return {"s2r_ms": round(result["pause_ms"], 3), "total_ms": round(result["total_ms"], 1), "wall_ms": round(wall * 1000, 1),
                "mb": round(result["bytes_moved"] / 1e6, 2), "extra_counted_mib": round(result["extra_memory_bytes"] / 2**20, 1)}

    def _pause(self):
        self.daemon.run("pause", self.name)

    def _unpause(self):
        self.daemon.run("resume", self.name)

    def close(self):
        self.console.close()
        self.daemon.run("stop", self.name, "--force", check=False)
        self.daemon.run("forget", self.name, check=False)
        super().close()


class BareSide(Side):
    """Its twin, moved by bare QMP. how: `floor` (the destination starts by itself) or `floor-S` (-S and cont)."""

    def __init__(self, run_dir, *args, **options):
        super().__init__(run_dir, *args, **options)
        self.vm = bare.Vm(self.spec, guest.qemu(self.version), self.dir)
        self.vm.console  # connected from the start, or its first lines are lost

    @property
    def console(self):
        return self.vm.console

    def upgrade(self, mode, how="floor"):
        self.version = other(self.version)
        begun = time.monotonic()
        self.vm, figures = bare.upgrade(self.vm, guest.qemu(self.version), mode, paused=how == "floor-S", timeout=MOVE_S)
        wall = (time.monotonic() - begun) * 1000
        return {"s2r_ms": round(figures["s2r_ms"], 3), "total_ms": round(wall, 1), "startup_ms": figures["startup_ms"],
                "mb": figures["mb"]}

    def _pause(self):
        self.vm.qmp.command("stop")

    def _unpause(self):
        self.vm.qmp.command("cont")

    def close(self):
        self.vm.kill()
        if self.vm.spec.ram_fd is not None:
            os.close(self.vm.spec.ram_fd)
        super().close()


class Pair:
    """The twins of one machine type, RAM size and kind of RAM; while one is measured the other is paused."""

    def __init__(self, daemon, run_dir, machine, ram_mib, mem_mib, shared):
        self.sides = {}
        try:
            self.sides["bare"] = BareSide(run_dir, machine, ram_mib, mem_mib, shared)
            self.sides["drover"] = DroverSide(daemon, run_dir, machine, ram_mib, mem_mib, shared)
            for side in self.sides.values():
                side.booted()
                side.pause()
        except BaseException:
            self.close()
            raise

    def side(self, how):
        return self.sides["drover" if how == "drover" else "bare"]

    def set_rate(self, rate):
        """Returns what the guest under drover really dirties."""
        for side in self.sides.values():
            side.unpause()
            side.set_rate(rate)
            achieved = side.achieved_rate() if rate else 0
            side.pause()
        return achieved

    def close(self):
        for side in self.sides.values():
            try:
                side.close()
            except Exception as error:  # the rest shall still end; the daemon kills what is left of its own
                print(f"bench: {error}", flush=True)
