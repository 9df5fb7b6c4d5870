# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts made of network namespaces, veth pairs, bridges and taps; each is a context manager that leaves nothing."""

import contextlib
import ctypes
import itertools
import os
import threading

from .procs import kill_pid, run

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_serial = itertools.count(1)


def unique(prefix):
    """An interface or namespace name that no other test run uses (interface names have 15 characters at most)."""
    return f"{prefix}{os.getpid() % 1000000}x{next(_serial)}"


@contextlib.contextmanager
def inside(netns):
    """This thread is in the namespace meanwhile: sockets opened here belong to it for ever. None: nothing changes."""
    if netns is None:
        yield
        return
    home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{netns}", os.O_RDONLY)
    try:
        _setns(there)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(there)
        os.close(home)


def _setns(fd):
    if _libc.setns(fd, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


class Netns:
    """A network namespace, with lo up; str() is its name. On leaving, processes that are still in it are killed."""

    def __init__(self, name=None):
        self.name = name or unique("dr")

    def __str__(self):
        return self.name

    def __enter__(self):
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        return self

    def __exit__(self, *_):
        for pid in run("ip", "netns", "pids", self.name, check=False).stdout.split():
            # Ourselves, if another thread of this process is inside just now.
            if int(pid) != os.getpid():
                kill_pid(int(pid))
        run("ip", "netns", "del", self.name, check=False)

    def argv(self, *argv):
        """The command that runs argv in here."""
        return ["ip", "netns", "exec", self.name, *map(str, argv)]

    def ip(self, *args):
        return run("ip", "-n", self.name, *args)

    def run(self, *argv, **options):
        return run(*self.argv(*argv), **options)

    def inside(self):
        return inside(self.name)


def _in(netns):
    return ["-n", str(netns)] if netns else []


class Veth:
    """A veth pair between two namespaces (None: the machine's own), up, with addresses; .names are its two ends."""

    def __init__(self, a, b, a_address=None, b_address=None, mtu=None):
        self.ends = ((a, unique("va"), a_address), (b, unique("vb"), b_address))
        self.names = (self.ends[0][1], self.ends[1][1])
        self.mtu = mtu

    def __enter__(self):
        (a, a_name, _), (b, b_name, _) = self.ends
        command = ["ip", *_in(a), "link", "add", a_name, "type", "veth", "peer", "name", b_name]
        run(*command, *(["netns", str(b)] if b else []))
        for netns, name, address in self.ends:
            if self.mtu:
                run("ip", *_in(netns), "link", "set", name, "mtu", self.mtu)
            if address:
                run("ip", *_in(netns), "addr", "add", address, "dev", name)
            run("ip", *_in(netns), "link", "set", name, "up")
        return self

    def _tc(self, *args, check=True):
        for netns, name, _ in self.ends:
            run("tc", *_in(netns), "qdisc", *[name if arg == "DEV" else arg for arg in args], check=check)

    def limit(self, mbit, latency_ms=200):
        """A slow link, both ways, by tbf; the queue holds latency_ms."""
        # A burst must be at least rate/HZ, and one segmentation-offload packet (64 KiB).
        burst = max(131072, int(mbit * 1e6 / 8 / 100))
        self._tc("replace", "dev", "DEV", "root", "tbf", "rate", f"{mbit}mbit", "burst", burst, "latency",
                 f"{latency_ms}ms")

    def cut(self):
        """A silent cut: every packet is dropped both ways, no end sees a link go down."""
        self._tc("replace", "dev", "DEV", "root", "pfifo", "limit", "0")

    def heal(self):
        """Ends cut() and limit()."""
        self._tc("del", "dev", "DEV", "root", check=False)

    def down(self):
        """A loud cut: the link goes down (addresses stay)."""
        netns, name, _ = self.ends[0]
        run("ip", *_in(netns), "link", "set", name, "down")

    def up(self):
        netns, name, _ = self.ends[0]
        run("ip", *_in(netns), "link", "set", name, "up")

    def __exit__(self, *_):
        netns, name, _ = self.ends[0]
        run("ip", *_in(netns), "link", "del", name, check=False)


class Bridge:
    """A bridge, up, with an address if given; add() puts interfaces of the same namespace into it."""

    def __init__(self, netns=None, address=None, name=None):
        self.netns, self.address, self.name = netns, address, name or unique("br")

    def __enter__(self):
        run("ip", *_in(self.netns), "link", "add", self.name, "type", "bridge", "forward_delay", "0")
        if self.address:
            run("ip", *_in(self.netns), "addr", "add", self.address, "dev", self.name)
        run("ip", *_in(self.netns), "link", "set", self.name, "up")
        return self

    def add(self, interface):
        run("ip", *_in(self.netns), "link", "set", interface, "master", self.name)

    def remove(self, interface):
        run("ip", *_in(self.netns), "link", "set", interface, "nomaster")

    def __exit__(self, *_):
        run("ip", *_in(self.netns), "link", "del", self.name, check=False)


class Tap:
    """A persistent tap, up, in a bridge or with an address of its own."""

    def __init__(self, netns=None, bridge=None, address=None, name=None, multi_queue=False):
        self.netns, self.bridge, self.address = netns, bridge, address
        self.name = name or unique("tp")
        self.multi_queue = multi_queue

    def __enter__(self):
        run("ip", *_in(self.netns), "tuntap", "add", self.name, "mode", "tap", "vnet_hdr",
            *(["multi_queue"] if self.multi_queue else []))
        if self.bridge:
            self.bridge.add(self.name)
        if self.address:
            run("ip", *_in(self.netns), "addr", "add", self.address, "dev", self.name)
        run("ip", *_in(self.netns), "link", "set", self.name, "up")
        return self

    def qemu_args(self, netdev="net0"):
        return ["-netdev", f"tap,id={netdev},ifname={self.name},script=no,downscript=no"]

    def __exit__(self, *_):
        run("ip", *_in(self.netns), "link", "del", self.name, check=False)


@contextlib.contextmanager
def two_hosts(a_address="10.77.0.1/24", b_address="10.77.0.2/24"):
    """Two namespaces and the veth between them: yields (a, b, link)."""
    with Netns() as a, Netns() as b, Veth(a, b, a_address, b_address) as link:
        yield a, b, link
