#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bare QMP upgrade, without drover: the floor of the benchmark, and the start of every test's QEMU.

    spec = Spec(machine="pc-q35-7.2", shared=True, witness={"mem": 64, "rate": 300, "tick": "port"}, tick=gap.path)
    with Vm(spec, qemu("7.2"), run_dir) as old:
        old.console.wait_ready()
        new, figures = upgrade(old, qemu("10.0"))

By hand: tests/e2e/lib/bare.py --help
"""

import dataclasses
import itertools
import os
import time
from pathlib import Path

if __package__ in (None, ""):  # started as a script
    import importlib
    import sys
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    importlib.import_module("lib")
    __package__ = "lib"

from . import guest
from .procs import PeakMemory, Process, cpu_seconds
from .qmp import Qmp, listening_pair

_serial = itertools.count(1)


@dataclasses.dataclass
class Spec:
    """A virtual machine to be, the same for each QEMU that it runs under."""

    machine: str = "pc-q35-7.2"  # pin it: a version-less name means something else in each QEMU
    shared: bool = True  # RAM on a memfd of ours (kept in .ram_fd), or QEMU's own private RAM
    ram_kib: int = 256 * 1024 + 8  # N MiB + 8 KiB: see QEMU-NOTES on TCG before 9.0
    cpus: int = 1
    accel: str = "tcg"
    cpu: str = ""  # "" means a fixed model under TCG, the host's under KVM
    witness: dict | None = dataclasses.field(default_factory=dict)  # w.* options, or None: no kernel (see boot_sector)
    boot_sector: bool = False  # boot tests/guest/bootsector.S from a read-only disk
    tick: str | None = None  # GapObserver's unix path
    net: str = "none"  # none, user, tap:NAME
    mac: str = "52:54:00:d0:00:01"
    disks: list = dataclasses.field(default_factory=list)  # of (path, format)
    firmware: str | None = None  # -bios FILE (microvm: seabios's own, the same for all)
    reboot: bool = False  # False: a guest that reboots (or panics) ends its QEMU
    extra: list = dataclasses.field(default_factory=list)
    ram_fd: int | None = None

    @property
    def microvm(self):
        return self.machine.startswith("microvm")

    @property
    def ram_id(self):
        """QEMU's own name of the RAM block, so that a guest may go from private RAM to shared and back."""
        return "microvm.ram" if self.microvm else "pc.ram"

    def new_ram(self):
        """A memfd of the RAM's size. The caller closes it when no QEMU that shall be moved uses it."""
        fd = os.memfd_create("drover-test-ram")
        os.ftruncate(fd, self.ram_kib * 1024)
        return fd

    def device(self, kind, options):
        return ["-device", f"virtio-{kind}-{'device' if self.microvm else 'pci'},{options}"]

    def argv(self, qemu):
        # arat: without it Linux on microvm has no high resolution timers, and ticks come each 4 ms.
        cpu = self.cpu or ("host,-arch-capabilities" if self.accel == "kvm" else "qemu64,+arat")
        argv = [qemu, "-name", "witness", "-nodefaults", "-no-user-config", "-display", "none",
                "-accel", self.accel, "-cpu", cpu, "-smp", str(self.cpus), "-m", f"{self.ram_kib}k"]
        if not self.reboot:
            argv += ["-no-reboot"]
        machine = self.machine
        if self.ram_fd is not None:
            argv += ["-object", f"memory-backend-file,id={self.ram_id},size={self.ram_kib}k,"
                                f"mem-path=/proc/self/fd/{self.ram_fd},share=on"]
            machine += f",memory-backend={self.ram_id}"
        argv += ["-machine", machine]
        if self.microvm:
            # An unversioned machine type: nothing else keeps its stream readable for another QEMU. The firmware's
            # size is part of it too (default: qboot of each version's own size).
            argv += ["-bios", str(self.firmware or "/usr/share/seabios/bios-microvm.bin")]
            if guest.version(qemu) >= (10, 0):
                argv += ["-global", "migration.send-switchover-start=off"]
        elif self.firmware:
            argv += ["-bios", str(self.firmware)]
        if self.boot_sector:
            image = guest.build() / "kvm-boot.img"
            argv += ["-drive", f"if=none,id=boot,format=raw,readonly=on,file={image}",
                     *self.device("blk", "drive=boot")]
        elif self.witness is not None:
            network = {"ip": "10.0.2.15/24", "gw": "10.0.2.2"} if self.net == "user" else {}
            argv += guest.kernel_args(**{**network, **self.witness})
        rom = "" if self.microvm else ",romfile="
        if self.net == "user":
            argv += ["-netdev", "user,id=net0", *self.device("net", f"netdev=net0,mac={self.mac}{rom}")]
        elif self.net.startswith("tap:"):
            argv += ["-netdev", f"tap,id=net0,ifname={self.net[4:]},script=no,downscript=no",
                     *self.device("net", f"netdev=net0,mac={self.mac}{rom}")]
        for number, (path, form) in enumerate(self.disks):
            argv += ["-drive", f"if=none,id=disk{number},format={form},file={path},cache=none",
                     *self.device("blk", f"drive=disk{number}")]
        if self.tick:
            argv += ["-chardev", f"socket,id=tick,path={self.tick}",
                     "-device", "isa-debugcon,iobase=0xe9,chardev=tick"]
        return argv + list(self.extra)


class Vm:
    """One QEMU process of a Spec, in its own directory under run_dir; ends with the with block."""

    def __init__(self, spec, qemu, run_dir, *, incoming=False, paused=False, netns=None):
        """Starts it. startup_ms: spawn until QMP's first answer. incoming: -incoming defer; paused: -S."""
        self.spec, self.qemu, self.run_dir = spec, str(qemu), Path(run_dir)
        self.incoming, self.paused = incoming, paused
        self.dir = self.run_dir / f"vm{next(_serial)}"
        self.dir.mkdir(parents=True)
        if spec.shared and spec.ram_fd is None:
            spec.ram_fd = spec.new_ram()
        listener, client = listening_pair(self.dir / "qmp")
        argv = spec.argv(self.qemu) + [
            "-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off", "-mon", "chardev=qmp,mode=control",
            "-chardev", f"socket,id=console,path={self.dir}/console,server=on,wait=off", "-serial", "chardev:console"]
        if incoming:
            argv += ["-incoming", "defer"]
        if paused:
            argv += ["-S"]
        fds = [listener.fileno()] + ([spec.ram_fd] if spec.ram_fd is not None else [])
        self.process = Process(argv, self.dir / "log", pass_fds=fds, netns=netns)
        listener.close()
        try:
            self.qmp = Qmp(sock=client)
        except Exception as error:
            self.process.kill()
            raise RuntimeError(f"{qemu} does not start: {self.process.output().strip()[-800:]}") from error
        self.startup_ms = (self.qmp.ready_at - self.process.started) * 1000
        self._console = None

    @property
    def pid(self):
        return self.process.pid

    @property
    def console(self):
        """The witness's console at this QEMU."""
        if self._console is None:
            self._console = guest.Console(self.dir / "console")
        return self._console

    def passes(self):
        """Of the boot sector: (passes done, wrong pages); (None, 0) before it runs."""
        path = self.dir / "mem"
        self.qmp.command("pmemsave", {"val": 0x600, "size": 12, "filename": str(path)})
        magic, passes, wrong = (int.from_bytes(path.read_bytes()[at:at + 4], "little") for at in (0, 4, 8))
        return (passes, wrong) if magic == 0x52565244 else (None, 0)

    def kill(self):
        self.process.kill()
        self.qmp.close()
        if self._console:
            self._console.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


class UpgradeFailed(Exception):
    """The move did not complete; the text has QEMU's reason and the destination's stderr."""


CAPABILITIES = {
    "shared": {"events", "x-ignore-shared"},
    "copy": {"events"},
    "postcopy": {"events", "postcopy-ram", "release-ram"},
}


def set_capabilities(qmp, on):
    """Exactly these on and all others off: a process that arrived by post-copy has others on still."""
    known = [entry["capability"] for entry in qmp.command("query-migrate-capabilities")]
    missing = set(on) - set(known)
    if missing:
        raise UpgradeFailed(f"capability not known: {', '.join(sorted(missing))}")
    qmp.command("migrate-set-capabilities",
                {"capabilities": [{"capability": name, "state": name in on} for name in known]})


def upgrade(old, qemu, mode="shared", *, paused=True, bandwidth=0, to_shared=None, timeout=120, netns=None,
            run_dir=None, memory=False):
    """Moves `old` under another QEMU binary; returns (new Vm, figures). `old` is killed after success.

    mode: shared (RAM stays where it is), copy (pre-copy), postcopy (with release-ram).
    paused: start the destination with -S and `cont` it once both sides say completed, as drover does (post-copy:
    once the destination says postcopy-active).
    to_shared: for copy and postcopy, whether the new RAM is a memfd of ours (default: as before).
    memory: also sample the two QEMUs' memory (extra_mib: the peak above the source's at the start).

    figures, in ms: startup (spawn to the first QMP answer), setup (from there to `migrate`), migrate (`migrate` to completed on
    both sides), s2r (source STOP to destination RESUME, by QEMU's own time stamps), total (spawn to RESUME read);
    mb: what the source sent; cpu_s: processor time of both QEMUs from spawn to RESUME.
    """
    spec = dataclasses.replace(old.spec)
    if mode == "shared":
        if spec.ram_fd is None:
            raise ValueError("mode shared needs RAM that is shared already")
    else:
        spec.shared = old.spec.shared if to_shared is None else to_shared
        spec.ram_fd = None
    peak = PeakMemory([old.pid], [old.spec.ram_fd])
    if memory:
        peak.__enter__()
    source_cpu = cpu_seconds(old.pid)
    new = Vm(spec, qemu, run_dir or old.run_dir, incoming=True, paused=paused, netns=netns)
    peak.add(new.pid, spec.ram_fd)
    try:
        figures = _move(old, new, mode, paused, bandwidth, timeout)
        figures["cpu_s"] = round(cpu_seconds(old.pid) - source_cpu + cpu_seconds(new.pid), 3)
    except Exception as error:
        output = new.process.output().strip()[-800:]
        new.kill()
        if mode != "shared" and spec.ram_fd is not None:
            os.close(spec.ram_fd)
        raise UpgradeFailed(f"{mode} to {qemu}: {error}; destination said: {output or 'nothing'}") from error
    finally:
        if memory:
            peak.__exit__()
    if memory:
        figures["extra_mib"] = round(peak.extra_mib, 1)
    old.kill()
    if mode != "shared" and old.spec.ram_fd is not None:
        os.close(old.spec.ram_fd)
    return new, figures


def _move(old, new, mode, paused, bandwidth, timeout):
    uri = f"unix:{new.dir}/migrate"
    on = CAPABILITIES[mode]
    since, new_since = len(old.qmp.drain()), len(new.qmp.drain())
    set_capabilities(new.qmp, on - {"release-ram"})
    set_capabilities(old.qmp, on)
    old.qmp.command("migrate-set-parameters", {"max-bandwidth": bandwidth or 1 << 40})
    new.qmp.command("migrate-incoming", {"uri": uri})
    begun = time.monotonic()
    old.qmp.command("migrate", {"uri": uri})
    if mode == "postcopy":
        old.qmp.command("migrate-start-postcopy")
    try:
        if mode == "postcopy" and paused:
            # The destination says this when it has the device state, so after the source's STOP. The guest must
            # run now: until it does, the source pushes pages while nobody executes.
            new.qmp.wait_migration("postcopy-active", "completed", timeout=timeout, since=new_since)
            new.qmp.command("cont")
        done = old.qmp.wait_migration("completed", timeout=timeout, since=since)
        arrived = new.qmp.wait_migration("completed", timeout=timeout, since=new_since)
    except RuntimeError:
        old.qmp.drain()
        raise
    if paused and mode != "postcopy":
        new.qmp.command("cont")
    resume = new.qmp.wait_event("RESUME", timeout, since=new_since)
    stop = old.qmp.wait_event("STOP", timeout, since=since)
    ram = old.qmp.command("query-migrate").get("ram", {})
    return {
        "mode": mode,
        "startup_ms": round(new.startup_ms, 2),
        "setup_ms": round((begun - new.qmp.ready_at) * 1000, 2),
        "migrate_ms": round((max(done.read_at, arrived.read_at) - begun) * 1000, 2),
        "s2r_ms": round((resume.time - stop.time) * 1000, 2),
        "total_ms": round((resume.read_at - new.process.started) * 1000, 2),
        "mb": round(ram.get("transferred", 0) / 1e6, 2),
    }


def main():
    import argparse
    import shutil
    import tempfile
    parser = argparse.ArgumentParser(
        description="Boots the witness and moves it through QEMU versions by bare QMP, printing figures for each hop.")
    parser.add_argument("versions", nargs="+", help="the first one boots it, e.g. 7.2 10.0 7.2; MODE:VERSION for one "
                        "hop of another mode, e.g. 5.2 copy:7.2 10.0")
    parser.add_argument("--machine", default="pc-q35-7.2")
    parser.add_argument("--mode", default="shared", choices=CAPABILITIES)
    parser.add_argument("--private", action="store_true", help="start with QEMU's private RAM")
    parser.add_argument("--to-shared", action="store_true", help="copy and postcopy hops go into shared RAM")
    parser.add_argument("--ram", type=int, default=256, help="MiB (8 KiB are added)")
    parser.add_argument("--mem", type=int, default=64, help="MiB that the witness uses")
    parser.add_argument("--rate", type=int, default=300, help="MiB/s that it dirties")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--net", default="none")
    parser.add_argument("--disk", action="store_true", help="with a raw disk of 16 MiB being written")
    parser.add_argument("--firmware", help="-bios file for all of them")
    parser.add_argument("--no-pause", action="store_true", help="the destination without -S: it starts by itself")
    parser.add_argument("--kvm", action="store_true", help="the boot sector guest under KVM")
    parser.add_argument("--memory", action="store_true", help="sample the QEMUs' memory too")
    parser.add_argument("--passes", type=int, default=2, help="passes over the memory after each hop")
    parser.add_argument("--extra", default="", help="more QEMU arguments")
    args = parser.parse_args()

    run_dir = Path(tempfile.mkdtemp(prefix="drover-bare-"))
    witness = {"mem": args.mem, "rate": args.rate, "tick": "port"}
    disks = []
    if args.disk:
        with open(run_dir / "disk.raw", "wb") as image:
            image.truncate(16 << 20)
        disks = [(run_dir / "disk.raw", "raw")]
        witness["disk"] = "/dev/vda"
    vm = None
    with guest.GapObserver(unix=run_dir / "tick") as gap:
        spec = Spec(machine=args.machine, shared=not args.private, ram_kib=args.ram * 1024 + 8, cpus=args.cpus,
                    accel="kvm" if args.kvm else "tcg", boot_sector=args.kvm, witness=witness, tick=gap.path,
                    net=args.net, disks=disks, firmware=args.firmware, extra=args.extra.split())
        try:
            begun = time.monotonic()
            vm = Vm(spec, guest.qemu(args.versions[0]), run_dir)
            if args.kvm:
                _wait_sector(vm, 3)
                bootid = None
            else:
                bootid = vm.console.wait_ready()["bootid"]
                vm.console.wait_passes(1) if args.mem else None
            print(f"{args.versions[0]:>8}  {args.machine}, first pass {time.monotonic() - begun:.2f} s after the start",
                  flush=True)
            for step in args.versions[1:]:
                mode, _, version = step.rpartition(":")
                qemu = guest.qemu(version)
                gap.wait_ticks(1)
                gap.reset()
                vm, figures = upgrade(vm, qemu, mode or args.mode, paused=not args.no_pause, memory=args.memory,
                                      to_shared=args.to_shared or None)
                if args.kvm:
                    passes, wrong = _wait_sector(vm, args.passes)
                    note = f"passes={passes} wrong={wrong}"
                    if wrong:
                        raise guest.WitnessError(note)
                else:
                    status = vm.console.wait_passes(args.passes) if args.mem else vm.console.check(bootid=bootid)
                    note = f"passes={status['passes']} bad={status['bad']}"
                    if args.disk:
                        note += f" acked={status.disk('/dev/vda')['acked']}"
                report = gap.report()
                print(f"{step:>8}  " + " ".join(f"{key}={value}" for key, value in figures.items()) +
                      f" gap_ms={report['longest_ms']} breaks={report['breaks']} {note}", flush=True)
            if args.disk:
                acked = vm.console.status().disk("/dev/vda")["acked"]
                vm.kill()
                problems = guest.DiskImage(disks[0][0]).problems(acked)
                print(f"disk: {acked} acknowledged, " + ("; ".join(problems) or "none lost"))
        finally:
            if vm:
                vm.kill()
            shutil.rmtree(run_dir, ignore_errors=True)


def _wait_sector(vm, more, timeout=60):
    """Waits for the boot sector guest to go on; returns (passes, wrong)."""
    end = time.monotonic() + timeout
    first = None
    while True:
        passes, wrong = vm.passes()
        first = passes if first is None else first
        if passes is not None and passes >= first + more or wrong:
            return passes, wrong
        if time.monotonic() > end:
            raise guest.Timeout(f"boot sector: passes {first} to {passes} in {timeout} s")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
