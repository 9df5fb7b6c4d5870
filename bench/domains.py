# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sides of bench/libvirt: domains of libvirt's, their twins under drover, and who watches libvirt's daemon from outside."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lib import drover, guest, hosts, libvirt

HELPER = drover.BIN / "src" / "libvirt" / "drover-libvirt"
PARALLEL = 4        # drover's own default
SETTLE_TICKS = 250  # before and after each upgrade, see sides.py
# What a guest does: MiB/s of its memory that it checks, writes a second to its disk. Ten of them share the processors, under TCG.
OBSERVED = {"check": 4, "diskrate": 10, "tick": "udp"}
REST = {"check": 1, "diskrate": 2}
PROBE_S = 0.002
LIMIT_S = 120


class Host(libvirt.LibvirtHost):
    """One whose /run lies in memory, as a real one does: libvirt's status files and drover's are written there."""

    memory = None

    def _fill(self):
        # A link, not a mount: another host has to find the socket in there.
        self.memory = tempfile.mkdtemp(prefix="lh-", dir="/dev/shm")
        os.chmod(self.memory, 0o755)
        (self.dir / "run").rmdir()
        (self.dir / "run").symlink_to(self.memory)
        super()._fill()

    def start_virtlogd(self):
        """The first thing that runs in there. libvirt asks each emulator anew at every start where the processors of the machine differ in what
        /dev/kvm says of them ("host cpuid changed"), as those of some virtual machines do: theirs is one that nobody can open."""
        if os.path.exists("/dev/kvm"):
            self.run("sh", "-ec", "umount /dev/kvm 2>/dev/null || true; mknod -m 600 $1 c 10 250; mount --bind $1 /dev/kvm", "sh", self.dir / "dev/none")
        super().start_virtlogd()

    def close(self):
        super().close()
        if self.memory:
            shutil.rmtree(self.memory, ignore_errors=True)


@contextlib.contextmanager
def two_hosts():
    """As libvirt.two_hosts(); their guests' bridges are one, so that the observer on the first hears a guest on either."""
    with contextlib.ExitStack() as stack:
        images = Path(tempfile.mkdtemp(prefix="li-", dir="/tmp"))
        stack.callback(shutil.rmtree, images, ignore_errors=True)
        images.chmod(0o711)
        a, b = (stack.enter_context(Host(name, images=images, droverd=False)) for name in ("host-a", "host-b"))
        stack.enter_context(hosts.Veth(a.netns, b.netns, *(f"{address}/24" for address in libvirt.LINK)))
        between = stack.enter_context(hosts.Veth(a.netns, b.netns))
        for host, name in zip((a, b), between.names):
            host.bridge.add(name)
        b.netns.ip("addr", "del", f"{libvirt.GATEWAY}/24", "dev", "br0")
        a.address, b.address = libvirt.LINK
        yield a, b


# --- libvirt's daemon, from outside ---

class Away:
    """Asks libvirt's socket for a connection all the time. .away_ms: from the first one that failed until `virsh list` has all domains as
    running; .usable_ms: until it has also asked each of their monitors."""

    def __init__(self, host, names):
        self.host, self.names = host, set(names)
        self.path = str(host.path("/run/libvirt/libvirt-sock"))
        self.failed = self.back = self.away_ms = self.usable_ms = None
        self.stopping = threading.Event()

    def _connects(self):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.path)
            except OSError:
                return False
        return True

    def _running(self):
        """Not by way of virsh(): the daemon may go away again."""
        with contextlib.suppress(libvirt.VirshError):
            return self.names <= set(self.host.virsh("list", "--state-running", "--name").split())
        return False

    def _run(self):
        while not self.stopping.is_set():
            there, now = self._connects(), time.monotonic()
            if not there and self.failed is None:
                self.failed = now
            if there and self.failed is not None:
                if self.back is None:
                    self.back = now
                if self._running():
                    self.away_ms = (time.monotonic() - self.failed) * 1000
                    return self._ask_all()
            self.stopping.wait(PROBE_S)

    def _ask_all(self):
        self.host.virsh("domstats", "--balloon", *sorted(self.names), timeout=LIMIT_S)
        self.usable_ms = (time.monotonic() - self.failed) * 1000

    def __enter__(self):
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def wait(self):
        self.thread.join(LIMIT_S)

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()


# --- The guests ---

class Domain(libvirt.Domain):
    """One of several on a host, each with a MAC address and an IP address of its own; the first one ticks."""

    def __init__(self, host, number, observer, version="7.2"):
        self.mac = f"52:54:00:77:01:{number:02x}"
        super().__init__(host, f"vm{number}", version=version, rate=0, disks=(64,),
                         witness={"ip": f"192.0.2.{10 + number}/24", **(REST if number else {**OBSERVED, "tickto": f"{libvirt.GATEWAY}:{observer.port}"})})


def start_all(side, count):
    """One after the other; those that are up wait, so that the next one has the processors."""
    domains = []
    for number in range(count):
        domains.append(Domain(side.host, number, side.observer, side.version))
        domains[-1].virsh("suspend")
    return domains


def settle(observer):
    """The guest has run for a while: its code is translated."""
    observer.reset()
    observer.wait_ticks(SETTLE_TICKS, timeout=60)
    observer.reset()


def longest_gap(observer):
    ticks = observer.report()["ticks"]
    return observer.wait_ticks(ticks + SETTLE_TICKS, timeout=60)["longest_ms"]


class Side:
    """`count` guests, of which the first one is observed."""

    def __init__(self, host, count, version="7.2"):
        self.host, self.count, self.version = host, count, version
        self.observer = guest.GapObserver(udp=0, netns=host.netns)

    def measure(self, to):
        self.unpause()
        settle(self.observer)
        figures = self.upgrade(to)
        figures.update(gap_ms=longest_gap(self.observer), to=to)
        self.version = to
        self.check()
        self.pause()
        return figures

    def close(self):
        self.observer.close()


class LibvirtSide(Side):
    """Domains of libvirt's, upgraded by drover: by `drover upgrade --all-libvirt`, or by its helper alone where the command has no such option."""

    def __init__(self, host, count, daemon):
        super().__init__(host, count)
        self.domains = start_all(self, count)
        self.names = [domain.name for domain in self.domains]
        self.dirs = [host.path("/run/bench") / "state", host.path("/run/bench") / "run", host.dir / "cache-drover"]
        host.path("/run/bench").mkdir()
        self.daemon = daemon if "--all-libvirt" in daemon.run("upgrade", "--help").stdout else None

    def _by_daemon(self, emulator):
        self.daemon.run("upgrade", "--all-libvirt", "--emulator", emulator, "--json", timeout=600)

    def _by_helper(self, emulator):
        spec = {"uri": "qemu:///system", "domains": None, "emulator": emulator, "memory": "auto", "parallel": PARALLEL}
        done = subprocess.run([*self.host.prefix, HELPER, "upgrade", *self.dirs], input=json.dumps(spec), capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"drover-libvirt: exit {done.returncode}: {done.stdout.strip()} {done.stderr.strip()[-400:]}")

    def _journal(self):
        """More than `--json` shows: src/libvirt/journal.h."""
        state = self.daemon.state_dir if self.daemon else self.dirs[0]
        return json.loads(next(state.rglob("run.json")).read_text())

    def upgrade(self, to):
        with Away(self.host, self.names) as away:
            begun = time.monotonic()
            (self._by_daemon if self.daemon else self._by_helper)(self.host.emulator(to))
            wall = time.monotonic() - begun
            away.wait()
        found = self._journal()
        wrong = [domain["name"] for domain in found["domains"] if domain["state"] != "done" or not domain["view_is_true"]]
        if wrong:
            raise RuntimeError(f"not upgraded, or libvirt's view is wrong: {', '.join(wrong)}")
        results = [domain["job"]["result"] for domain in found["domains"]]
        return {"pauses_ms": [result["pause_ms"] for result in results], "jobs_ms": [result["total_ms"] for result in results],
                "away_ms": found["away_ms"], "outside_ms": away.away_ms, "usable_ms": away.usable_ms, "wall_ms": wall * 1000,
                "steps": found.get("steps_ms"), "reports": [domain.get("report") for domain in found["domains"]]}

    def measure_restart(self):
        """libvirt's daemon ended and started at once, with nothing between: what it takes for itself."""
        self.unpause()
        with Away(self.host, self.names) as away:
            self.host.stop_libvirtd()
            self.host.run(libvirt.program("libvirtd"), "-d")
            away.wait()
        self.pause()
        return {"outside_ms": away.away_ms, "usable_ms": away.usable_ms}

    def check(self):
        for domain in self.domains:
            domain.console.follow(domain.virsh("ttyconsole"))  # another pty now
            domain.console.check(bootid=domain.bootid)

    def pause(self):
        for domain in self.domains:
            domain.virsh("suspend")

    def unpause(self):
        for domain in self.domains:
            if domain.state() == "paused":
                domain.virsh("resume")

    def close(self):
        for domain in self.domains:
            domain.remove()
        super().close()


# --- Their twins ---

def without_libvirt(argv, console, tap, image, name):
    """The command line that libvirt has made, with what only libvirt can hand over (descriptors, its secret, its monitor) left out."""
    words, rest = [argv[0]], iter(argv[1:])
    for option in rest:
        if option == "-S":
            continue
        value = "" if option in ("-no-user-config", "-nodefaults", "-no-shutdown") else next(rest)
        if option in ("-mon", "-add-fd", "-msg") or "charmonitor" in value or "masterKey0" in value:
            continue
        if option == "-name":
            value = f"guest={name},debug-threads=on"
        elif option == "-netdev":
            value = f"tap,id=hostnet0,ifname={tap},script=no,downscript=no"
        elif option == "-chardev":
            value = f"socket,id=charserial0,path={console},server=on,wait=off"
        elif option == "-blockdev" and '"filename"' in value:
            value = json.dumps({**json.loads(value), "filename": image})
        words += [option, value] if value else [option]
    return words


class DroverSide(Side):
    """The twins of a LibvirtSide's domains, the same command lines, that drover runs and upgrades by itself on the same host."""

    def __init__(self, host, twins, daemon):
        super().__init__(host, twins.count)
        self.stack, self.daemon = contextlib.ExitStack(), daemon
        self.names, self.consoles, self.bootids = [], [], []
        for number, domain in enumerate(twins.domains):
            self._start(number, domain)
            self.consoles[-1].wait_ready(120)
            self.bootids.append(self.consoles[-1].check()["bootid"])
            self.daemon.run("pause", self.names[-1])

    def _start(self, number, domain):
        name, console = f"twin{number}", self.daemon.run_dir / f"console{number}"
        tap = self.stack.enter_context(hosts.Tap(self.host.netns, self.host.bridge))
        image = self.host.image(64, f"{name}.qcow2")
        argv = without_libvirt(domain.argv(), console, tap.name, image, name)
        changes = {domain.mac: domain.mac.replace("77:01", "77:02"),  # so that both can be there at once
                   f"w.ip=192.0.2.{10 + number}/": f"w.ip=192.0.2.{110 + number}/",
                   f"w.tickto={domain.witness.get('tickto')}": f"w.tickto={libvirt.GATEWAY}:{self.observer.port}"}
        for old, new in changes.items():
            argv = [word.replace(old, new) for word in argv]
        self.daemon.run("run", name, "--", *argv)
        self.daemon.show(name)
        self.names.append(name)
        self.consoles.append(guest.Console(console))

    def upgrade(self, to):
        argv = self.daemon.argv("upgrade", *self.names, "--qemu", self.host.emulator(to), "--parallel", PARALLEL, "--json")
        begun = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
        wall = time.monotonic() - begun
        if done.returncode:
            raise RuntimeError(f"drover upgrade: exit {done.returncode}: {done.stdout[-400:]} {done.stderr.strip()[-400:]}")
        jobs = json.loads(done.stdout)  # of several a list
        jobs = jobs if isinstance(jobs, list) else [jobs]
        for job in jobs:
            self.daemon.pids |= {job["result"]["pid_before"], job["result"]["pid_after"]}
        for number, console in enumerate(self.consoles):
            console.follow(self.daemon.run_dir / f"console{number}")
        return {"pauses_ms": [job["result"]["pause_ms"] for job in jobs], "jobs_ms": [job["result"]["total_ms"] for job in jobs], "wall_ms": wall * 1000}

    def check(self):
        for console, bootid in zip(self.consoles, self.bootids):
            console.check(bootid=bootid)

    def pause(self):
        for name in self.names:
            self.daemon.run("pause", name)

    def unpause(self):
        for name in self.names:
            if self.daemon.state(name) == "paused":
                self.daemon.run("resume", name)

    def close(self):
        for console in self.consoles:
            console.close()
        for name in self.names:
            self.daemon.run("stop", name, "--force", check=False)
            self.daemon.run("forget", name, check=False)
        self.stack.close()
        super().close()


# --- virsh migrate ---

class MigrateSide(Side):
    """The same domains, moved to another host by `virsh migrate --live` as many at a time. Under 10.0: its RAM is copied, and TCG before 9.0
    loses pages then (QEMU-NOTES)."""

    def __init__(self, hosts_, count):
        super().__init__(hosts_[0], count, "10.0")
        self.hosts = hosts_
        self.domains = start_all(self, count)

    def _move(self, domain, there):
        begun = time.monotonic()
        domain.migrate(there)
        return (time.monotonic() - begun) * 1000

    def upgrade(self, to):
        there = self.hosts[1] if self.domains[0].host is self.hosts[0] else self.hosts[0]
        begun = time.monotonic()
        with ThreadPoolExecutor(PARALLEL) as pool:
            each = list(pool.map(lambda domain: self._move(domain, there), self.domains))
        wall = (time.monotonic() - begun) * 1000
        return {"pauses_ms": [downtime(domain) for domain in self.domains], "jobs_ms": each, "wall_ms": wall}

    check, pause, unpause = LibvirtSide.check, LibvirtSide.pause, LibvirtSide.unpause

    def close(self):
        for domain in self.domains:
            domain.remove()
        super().close()


def downtime(domain):
    """What libvirt says of the last move, in ms; None: it has not said."""
    for line in domain.virsh("domjobinfo", "--completed").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "Total downtime":
            return float(value.split()[0])
    return None
