# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients of what a QEMU offers on its host's side: monitors, VNC, gdb, TCP ports, taps; and who it is that answers there."""

import array
import ctypes
import fcntl
import os
import re
import socket
import struct
import threading
import time
from pathlib import Path

from . import hosts
from .procs import Timeout

TUNGETVNETHDRSZ = 0x800454D7
SIOCETHTOOL = 0x8946
OFFLOADS = {"checksum": 0x16, "segmentation": 0x1E}  # ETHTOOL_GTXCSUM, ETHTOOL_GTSO of linux/ethtool.h
SYS_PIDFD_GETFD = 438

_libc = ctypes.CDLL(None, use_errno=True)


# --- Sockets ---


def connect(address, netns=None, timeout=10):
    """A socket connected to a unix path or a (host, port), as soon as somebody listens there."""
    end = time.monotonic() + timeout
    while True:
        with hosts.inside(netns):
            sock = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        sock.settimeout(timeout)
        try:
            sock.connect(address if isinstance(address, tuple) else str(address))
            return sock
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            if time.monotonic() > end:
                raise Timeout(f"{address}: nobody listens") from None
            time.sleep(0.005)


def refuses(address, netns=None):
    """Nobody listens there."""
    with hosts.inside(netns), socket.socket(socket.AF_INET) as sock:
        return sock.connect_ex(address) != 0


def listener_pid(path):
    """The process that listens on a unix path, as the kernel says."""
    with connect(path) as sock:
        return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


def tcp_listeners(netns, port):
    """The inodes of the sockets that listen on a TCP port."""
    found = set()
    for table in ("tcp", "tcp6"):
        text = netns.run("cat", f"/proc/net/{table}").stdout if netns else Path(f"/proc/net/{table}").read_text()
        for line in text.splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                found.add(int(fields[9]))
    return found


def has_socket(pid, inodes):
    """Whether one of these sockets is open in that process."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        if target.startswith("socket:[") and int(target[8:-1]) in inodes:
            return True
    return False


def read_until(sock, wanted, timeout=10):
    """What comes, up to the first `wanted`."""
    end = time.monotonic() + timeout
    data = b""
    while wanted not in data:
        sock.settimeout(max(0.01, end - time.monotonic()))
        try:
            more = sock.recv(65536)
        except TimeoutError:
            raise Timeout(f"{wanted!r} did not come; what came: {data[-300:]!r}") from None
        if not more:
            raise EOFError(f"the connection ended before {wanted!r}; what came: {data[-300:]!r}")
        data += more
    return data


class PathWatch:
    """Looks at paths every ms in a thread; afterwards .missing has those that were not there at some time."""

    def __init__(self, *paths):
        self.paths, self.missing, self.looks = [str(path) for path in paths], set(), 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self.stopping.wait(0.001):
            self.looks += 1
            self.missing |= {path for path in self.paths if not os.path.exists(path)}

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()


# --- What is said there ---


class Hmp:
    """A human monitor on a unix socket."""

    PROMPT = b"(qemu) "

    def __init__(self, path):
        self.sock = connect(path)
        self.banner = read_until(self.sock, self.PROMPT).decode(errors="replace")
        self.version = tuple(map(int, re.search(r"QEMU (\d+)\.(\d+)\.(\d+)", self.banner).groups()))

    def command(self, line):
        self.sock.sendall(line.encode() + b"\n")
        said = read_until(self.sock, b"\r\n")  # its echo, drawn by readline
        said = said.split(b"\r\n", 1)[1]
        while self.PROMPT not in said:
            said += self.sock.recv(65536)
        return said.split(self.PROMPT)[0].decode(errors="replace").replace("\r\n", "\n")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()


def rfb_banner(address, netns=None):
    """How a VNC server greets."""
    with connect(address, netns) as sock:
        return read_until(sock, b"\n")


def gdb_stop_reason(address, netns=None):
    """Asks a gdb stub why the guest stands still (it does while gdb is connected), and lets it go."""
    with connect(address, netns) as sock:
        sock.sendall(b"+$?#3f")
        reason = read_until(sock, b"$T")
        reason += read_until(sock, b"#") if b"#" not in reason else b""
        sock.sendall(b"+$D#44")
        read_until(sock, b"$OK#")
    return reason


# --- Taps ---


def _dup_fd_of(pid, fd):
    pidfd = os.pidfd_open(pid)
    try:
        copy = _libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0)
        if copy < 0:
            raise OSError(ctypes.get_errno(), f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
        return copy
    finally:
        os.close(pidfd)


def _vnet_header_size(pid, fd):
    copy = _dup_fd_of(pid, fd)
    try:
        size = array.array("i", [0])
        fcntl.ioctl(copy, TUNGETVNETHDRSZ, size)
        return size[0]
    finally:
        os.close(copy)


def _offloads(netns, ifname):
    """What the guest lets the host leave undone in the packets to it: TUNSETOFFLOAD's, seen as the tap's features."""
    found = {}
    with hosts.inside(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for name, command in OFFLOADS.items():
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP16x", ifname.encode(), ctypes.addressof(value))
            fcntl.ioctl(sock, SIOCETHTOOL, request)
            found[name] = struct.unpack("II", value.raw[:8])[1]
    return found


def tap_state(pid, netns=None):
    """Of each tap queue that a QEMU has: (interface, vnet header size, attached); and the offloads of each interface."""
    queues, names = [], set()
    for entry in sorted(Path(f"/proc/{pid}/fdinfo").iterdir(), key=lambda entry: int(entry.name)):
        found = re.search(r"^iff:\s*(\S+)", entry.read_text(), re.M)
        if found:
            queues.append((found[1], _vnet_header_size(pid, int(entry.name))))
            names.add(found[1])
    return {"queues": queues, "offloads": {name: _offloads(netns, name) for name in sorted(names)}}
