# SPDX-License-Identifier: LGPL-2.1-or-later
"""The witness guest from outside: building it, talking to it, measuring its silences, and reading its disks."""

import errno
import functools
import json
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tty
import zlib
from pathlib import Path

from . import hosts
from .procs import BUILD, Timeout, Unavailable, run, tool

BAD_OUTPUT = re.compile(rb"WITNESS BAD|Kernel panic|BUG:|Oops|general protection|soft lockup|rcu.*stall|segfault|"
                        rb"EXT4-fs error")


def qemu(version="7.2"):
    """The path of qemu-system-x86_64 of a version, fetched when needed; Unavailable if it cannot be had."""
    path = BUILD / "qemu" / version / "qemu-system-x86_64"
    if version == "7.2":
        found = run("sh", "-c", "command -v qemu-system-x86_64", check=False).stdout.strip()
        if not found:
            raise Unavailable("qemu-system-x86_64 is not installed")
        return found
    tool("tests/tools/fetch-qemu", version, path.parent)
    return str(path)


@functools.cache
def version(binary):
    """(major, minor, micro) of a QEMU binary."""
    text = run(binary, "--version").stdout
    return tuple(int(part) for part in re.search(r"version (\d+)\.(\d+)\.(\d+)", text).groups())


def without_guest(*extra, version="7.2"):
    """A command line with nothing in it but the firmware, for what asks nothing of a guest; up in an instant."""
    return [qemu(version), "-nodefaults", "-display", "none", "-m", "16", "-machine", "pc-q35-7.2", *map(str, extra)]


def build():
    """The directory with vmlinuz, initrd.img, cmdline and kvm-boot.img, made when needed."""
    out = BUILD / "guest"
    tool("tests/guest/build-guest", out)
    return out


def agent_initrd():
    """The initrd that has qemu-ga too (for w.agent=1), made when needed; Unavailable if it cannot be had."""
    out = BUILD / "guest"
    tool("tests/guest/build-guest", "--agent", out)
    return out / "initrd-agent.img"


def kvm_reason():
    """Why /dev/kvm cannot be used, or None if it can."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    return None


def kernel_args(**options):
    """-kernel, -initrd and -append for a witness; options become w.NAME=VALUE (mem, rate, ip, gw, disk, tick...).

    agent=1 takes the initrd with qemu-ga; the port for it: see agent_args().
    """
    out = build()
    initrd = agent_initrd() if options.get("agent") else out / "initrd.img"
    words = [(out / "cmdline").read_text().strip()]
    words += [f"w.{name}={value}" for name, value in options.items() if value is not None]
    return ["-kernel", str(out / "vmlinuz"), "-initrd", str(initrd), "-append", " ".join(words)]


class Status(dict):
    """The witness's status line; problems() says what is wrong in it."""

    def problems(self):
        found = [f"{name}={self[name]}" for name in ("bad", "errors", "disk_errors") if self[name]]
        return ", ".join(found)

    def disk(self, path):
        return next(disk for disk in self["disks"] if disk["path"] == path)


class Writes:
    """Acknowledged writes by the time that each took. later - earlier: those between; + puts several spans together."""

    def __init__(self, answer=None):
        """answer: of the witness's `latency`."""
        self.seconds = answer["at_ns"] / 1e9 if answer else 0.0  # by the guest's clock
        self.steps = {ns: count for ns, count in answer["writes"]} if answer else {}

    def _with(self, other, sign):
        both = Writes()
        both.seconds = self.seconds + sign * other.seconds
        both.steps = {ns: self.steps.get(ns, 0) + sign * other.steps.get(ns, 0) for ns in {*self.steps, *other.steps}}
        return both

    def __add__(self, other):
        return self._with(other, 1)

    def __sub__(self, earlier):
        return self._with(earlier, -1)

    @property
    def count(self):
        return sum(self.steps.values())

    @property
    def iops(self):
        return self.count / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percent):
        """Within 1/32: the middle of a step. None: there was no write."""
        left = self.count * percent / 100
        for ns, count in sorted(self.steps.items()):
            left -= count
            if count and left <= 0:
                return ns * (1 + 1 / 32) / 1e6
        return None


class WitnessError(Exception):
    """The guest printed something that a healthy one never prints, or refused a command."""


def connect_unix(path, timeout=10):
    """A socket connected to path as soon as somebody listens there."""
    end = time.monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
            return sock
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            if time.monotonic() > end:
                raise Timeout(f"socket {path}: nobody listens") from None
            time.sleep(0.005)


class Pty:
    """The end of a QEMU's pty (/dev/pts/N), with what Console uses of a socket."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        # No echo: what QEMU writes would come back to the guest as typed.
        tty.setraw(self.fd)
        self.timeout = None

    def settimeout(self, seconds):
        self.timeout = seconds

    def recv(self, size):
        """Raises TimeoutError; b"" once QEMU has closed its end."""
        if not select.select([self.fd], [], [], self.timeout)[0]:
            raise TimeoutError
        try:
            return os.read(self.fd, size)
        except OSError as error:
            if error.errno == errno.EIO:
                return b""
            raise

    def sendall(self, data):
        while data:
            data = data[os.write(self.fd, data):]

    def hung_up(self):
        """Whether QEMU has closed its end. A later pty may have the same path."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def close(self):
        os.close(self.fd)


class Console:
    """The witness's serial console on a unix socket or a pty; after a move, follow(path) goes on at the new QEMU's.

    QEMU serves one client a socket at a time. Whatever the guest prints is kept in .log; on a pty, from when it is open.
    """

    def __init__(self, path, timeout=30):
        self.log = b""
        self._parsed = 0
        self.sock = None
        self.follow(path, timeout)

    def follow(self, path, timeout=10):
        if self.sock:
            self.sock.close()
        self.path = str(path)
        self.sock = Pty(self.path) if "/dev/pts/" in self.path else connect_unix(self.path, timeout)
        self.log += b"\n"
        self._parsed = len(self.log)

    def _line(self, end, what):
        """The next whole line; raises WitnessError on one that tells of a fault."""
        while True:
            at = self.log.find(b"\n", self._parsed)
            if at >= 0:
                line = self.log[self._parsed:at].strip(b"\r\n")
                self._parsed = at + 1
                if BAD_OUTPUT.search(line):
                    raise WitnessError(line.decode(errors="replace"))
                return line
            left = end - time.monotonic()
            if left <= 0:
                tail = self.log[-300:].decode(errors="replace")
                raise Timeout(f"witness console: no {what} in time; last output: {tail!r}")
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise WitnessError(f"witness console closed while waiting for {what}")
            self.log += data

    def wait_line(self, prefix, timeout=10):
        end = time.monotonic() + timeout
        while True:
            line = self._line(end, prefix)
            at = line.find(prefix.encode())
            if at >= 0:
                return line[at:].decode(errors="replace")

    def wait_ready(self, timeout=60):
        """Waits for WITNESS READY; returns its fields (bootid, up_ms, ip, cpus)."""
        line = self.wait_line("WITNESS READY", timeout)
        return dict(word.split("=", 1) for word in line.split()[2:])

    def send(self, line):
        self.sock.sendall(line.encode() + b"\n")

    def command(self, line, timeout=10, wanted="ECHO "):
        """Sends a command other than status and returns its OK line, or one that begins with `wanted`."""
        self.send(line)
        verb = line.split()[0]
        end = time.monotonic() + timeout
        while True:
            answer = self._line(end, f"answer to {line!r}").decode(errors="replace")
            if answer.startswith(f"OK {verb}") or answer.startswith(wanted):
                return answer
            if answer.startswith(f"ERR {verb}"):
                raise WitnessError(answer)

    def status(self, timeout=10):
        self.send("status")
        return Status(json.loads(self.wait_line("STATUS {", timeout)[len("STATUS "):]))

    def writes(self, path, timeout=10):
        """The writes of a disk so far."""
        return Writes(json.loads(self.command(f"latency {path}", timeout, "LATENCY ")[len("LATENCY "):]))

    def check(self, timeout=10, bootid=None):
        """The status, after asserting that nothing is wrong and that it is still the same boot."""
        status = self.status(timeout)
        if status.problems():
            raise WitnessError(f"the witness reports {status.problems()}")
        if bootid is not None and status["bootid"] != bootid:
            raise WitnessError(f"the guest rebooted: bootid {status['bootid']}, was {bootid}")
        return status

    def wait_passes(self, more, timeout=60):
        """Waits until the witness has gone `more` times over its memory; returns the last status."""
        first = self.check()["passes"]
        end = time.monotonic() + timeout
        while True:
            status = self.check()
            if status["passes"] >= first + more:
                return status
            if time.monotonic() > end:
                raise Timeout(f"witness: {status['passes'] - first} of {more} passes in {timeout} s")
            time.sleep(0.05)

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


AGENT_PORT = "org.qemu.guest_agent.0"


def agent_args(path, bus=True):
    """A port for qemu-ga and its socket at path; bus: on a virtio-serial device of its own."""
    return [*(["-device", "virtio-serial-pci,id=qgabus"] if bus else []),
            "-chardev", f"socket,id=qga,path={path},server=on,wait=off",
            "-device", f"virtserialport,chardev=qga,id=qga0,name={AGENT_PORT}"]


class AgentError(Exception):
    """The guest agent answered a command with an error."""

    def __init__(self, command, error):
        self.command, self.cls, self.desc = command, error["class"], error["desc"]
        super().__init__(f"{command}: {self.desc}")


class Agent:
    """A client of the guest agent at its socket on the host, for when no drover speaks to it; waits until it runs.

    While /fs is frozen the agent answers few commands (guest-fsfreeze-*, guest-sync*, guest-ping, guest-info).
    """

    def __init__(self, path, timeout=60):
        self.sock = connect_unix(path)
        self._buffer = b""
        self.sync(timeout)

    def _line(self, end, what):
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0:
                raise Timeout(f"guest agent: no answer in time ({what})")
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise AgentError(what, {"class": "Lost", "desc": "connection closed by QEMU"})
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def sync(self, timeout=60):
        """Drops whatever an earlier client left unread."""
        end = time.monotonic() + timeout
        number = time.monotonic_ns() & 0x7FFFFFFF
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self.sock.sendall(b"\xff" + json.dumps(request).encode() + b"\n")
        while True:
            # The byte 0xff comes before this one answer, and in no other place.
            _, mark, line = self._line(end, "guest-sync-delimited").rpartition(b"\xff")
            if mark and json.loads(line).get("return") == number:
                return

    def command(self, name, timeout=20, **arguments):
        """Runs a command and returns its result; an underscore in an argument's name stands for a hyphen."""
        request = {"execute": name}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.sock.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._line(time.monotonic() + timeout, name))
        if "error" in answer:
            raise AgentError(name, answer["error"])
        return answer["return"]

    def freeze(self):
        """Returns the number of file systems frozen."""
        return self.command("guest-fsfreeze-freeze")

    def thaw(self):
        return self.command("guest-fsfreeze-thaw")

    def frozen(self):
        return self.command("guest-fsfreeze-status") == "frozen"

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Udp:
    """The witness over UDP port 7000 (its own address on a tap, 127.0.0.1 and a forwarded port with user network)."""

    def __init__(self, address, port=7000, netns=None):
        self.to = (address, port)
        with hosts.inside(netns):
            self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def ask(self, line, timeout=5, interval=0.2):
        """Sends a line until an answer comes. Commands are repeated too: all of them may be."""
        end = time.monotonic() + timeout
        self.sock.settimeout(interval)
        while time.monotonic() < end:
            try:
                self.sock.sendto(line.encode(), self.to)
                return self.sock.recv(65536).decode()
            except (TimeoutError, ConnectionRefusedError, OSError) as error:
                if not isinstance(error, TimeoutError):
                    time.sleep(interval)
        raise Timeout(f"witness at {self.to}: no answer to {line!r} in {timeout} s")

    def status(self, timeout=5):
        while True:
            answer = self.ask("status", timeout)
            if answer.startswith("STATUS "):
                return Status(json.loads(answer[len("STATUS "):]))

    def wait_ready(self, timeout=60):
        return self.status(timeout)

    def probe_ms(self, timeout=1):
        """The round trip of one tick probe."""
        begun = time.monotonic()
        self.ask(f"t{begun}", timeout, interval=timeout)
        return (time.monotonic() - begun) * 1000

    def close(self):
        self.sock.close()


class GapObserver:
    """Measures the witness's longest silence from outside, by its ticks (1 ms apart unless w.tickus says else).

    unix=PATH: listens there; QEMUs connect with qemu_args(), and the guest has w.tick=port. Source and destination
        connect to the same path, so nothing needs to be followed. This is the precise one.
    udp=PORT (0: any; see .port): for w.tick=udp; with user networking w.tickto=10.0.2.2:PORT.

    report(): ticks, longest_ms, longest_at (CLOCK_MONOTONIC), gaps over 3 ms as [ms, at], silent_ms until now, and
    breaks: ticks that did not continue the count (0 unless ticks got lost, came twice, or two copies run).
    """

    def __init__(self, unix=None, udp=None, netns=None, address="0.0.0.0"):
        self.path = unix and str(unix)
        if unix:
            Path(unix).unlink(missing_ok=True)
            observed = socket.socket(socket.AF_UNIX)
            observed.bind(self.path)
            observed.listen(8)
        else:
            with hosts.inside(netns):
                observed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            observed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            observed.bind((address, udp or 0))
            self.port = observed.getsockname()[1]
        self.child = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("gap.py")), str(observed.fileno()),
             "unix" if unix else "udp"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[observed.fileno()], text=True)
        observed.close()

    def qemu_args(self):
        return ["-chardev", f"socket,id=tick,path={self.path}", "-device", "isa-debugcon,iobase=0xe9,chardev=tick"]

    def _ask(self, line):
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()
        return json.loads(self.child.stdout.readline())

    def reset(self):
        self._ask("reset")

    def report(self):
        return self._ask("report")

    def wait_ticks(self, count=100, timeout=10):
        """Waits until this many ticks came since the last reset."""
        end = time.monotonic() + timeout
        while True:
            report = self.report()
            if report["ticks"] >= count:
                return report
            if time.monotonic() > end:
                raise Timeout(f"gap observer: {report['ticks']} of {count} ticks in {timeout} s")
            time.sleep(0.01)

    def close(self):
        self.child.stdin.close()
        self.child.stdout.close()
        self.child.wait(5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Pinger:
    """Pings at an interval in a thread: ICMP echo to address, or the witness's UDP probe if port is given.

    report() after stop(): sent, lost, longest_ms (longest time without an answer), rtt_ms (median).
    """

    def __init__(self, address, port=None, interval=0.01, netns=None):
        self.address, self.port, self.interval = address, port, interval
        with hosts.inside(netns):
            if port:
                self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            else:
                self.sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.ident = (os.getpid() ^ id(self)) & 0xFFFF
        self.sent, self.answered = {}, {}
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)]

    @staticmethod
    def _checksum(data):
        total = sum(struct.unpack(f"!{len(data) // 2}H", data))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return ~total & 0xFFFF

    def _packet(self, number):
        body = struct.pack("!Q", number)
        if self.port:
            return b"t" + struct.pack("!H", self.ident) + body
        head = struct.pack("!BBHHH", 8, 0, 0, self.ident, number & 0xFFFF)
        return struct.pack("!BBHHH", 8, 0, self._checksum(head + body), self.ident, number & 0xFFFF) + body

    def _number(self, data):
        if self.port:
            return struct.unpack("!Q", data[3:11])[0] if data[:3] == b"t" + struct.pack("!H", self.ident) else None
        icmp = data[(data[0] & 15) * 4:]
        kind, _, _, ident, _ = struct.unpack("!BBHHH", icmp[:8])
        return struct.unpack("!Q", icmp[8:16])[0] if kind == 0 and ident == self.ident and len(icmp) >= 16 else None

    def _send(self):
        due = time.monotonic()
        number = 0
        while not self.stopping.is_set():
            number += 1
            self.sent[number] = time.monotonic()
            try:
                self.sock.sendto(self._packet(number), (self.address, self.port or 0))
            except OSError:
                pass  # no route or no buffer for the moment: counted as lost
            due += self.interval
            self.stopping.wait(max(0, due - time.monotonic()))

    def _receive(self):
        self.sock.settimeout(0.2)
        while not self.stopping.is_set() or time.monotonic() < self.until:
            try:
                number = self._number(self.sock.recv(2048))
            except OSError:
                continue
            if number in self.sent:
                self.answered.setdefault(number, time.monotonic())

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    def stop(self, grace=1.0):
        """Stops sending and waits `grace` seconds for late answers."""
        self.until = time.monotonic() + grace
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        return self.report()

    def report(self):
        sent, answered = dict(self.sent), dict(self.answered)
        times = sorted(answered.values())
        rtts = sorted(answered[number] - sent[number] for number in answered)
        return {"sent": len(sent), "lost": len(sent) - len(answered),
                "longest_ms": round(max((b - a for a, b in zip(times, times[1:])), default=0) * 1000, 3),
                "rtt_ms": round(rtts[len(rtts) // 2] * 1000, 3) if rtts else None}

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if not self.stopping.is_set():
            self.stop(grace=0.2)
        self.sock.close()


class DiskImage:
    """What a raw image must hold, by the witness's numbering (see disk_block in tests/guest/witness.c)."""

    MAGIC = b"DROVERW1"

    def __init__(self, path, mib=4):
        self.blocks = mib * 256
        with open(path, "rb") as image:
            data = image.read(self.blocks * 4096)
        self.blocks = min(self.blocks, os.stat(path).st_size // 4096)
        self.numbers = {}
        self.invalid = []
        for block in range(self.blocks):
            page = data[block * 4096:(block + 1) * 4096]
            if not any(page):
                continue
            magic, number, at, bootid, crc = struct.unpack("<8sQQQI", page[:36])
            if magic == self.MAGIC and at == block and zlib.crc32(page[:32] + bytes(4) + page[36:]) == crc:
                self.numbers[block] = number
            else:
                self.invalid.append(block)

    @property
    def last(self):
        return max(self.numbers.values(), default=0)

    def problems(self, acked):
        """Acknowledged writes that the image lacks, as text lines; empty: none lost."""
        found = [f"block {block} is not valid" for block in self.invalid]
        if self.last < acked:
            found.append(f"last number is {self.last}, but {acked} was acknowledged")
        for block in range(self.blocks):
            wanted = self.last - (self.last - block) % self.blocks
            if wanted > 0 and self.numbers.get(block) != wanted:
                found.append(f"block {block} holds {self.numbers.get(block)}, not {wanted}")
        return found


def _e2fs(name, *args, codes=(0,)):
    """Runs a program of e2fsprogs; its exit code must be one of codes, if any. Output is in bytes."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if not path:
        raise Unavailable(f"{name} is not installed (package e2fsprogs)")
    done = subprocess.run([path, *map(str, args)], capture_output=True, timeout=120, stdin=subprocess.DEVNULL,
                          env={**os.environ, "LC_ALL": "C"})
    if codes and done.returncode not in codes:
        raise RuntimeError(f"{name} {' '.join(map(str, args))}: exit {done.returncode}: "
                           f"{(done.stderr or done.stdout).decode(errors='replace').strip()[-500:]}")
    return done


def new_fs(path, mib=64):
    """A raw image with an empty ext4 file system, for w.fs; Unavailable without e2fsprogs."""
    with open(path, "wb") as image:
        image.truncate(mib << 20)
    # Nothing is left for the kernel to set up later by itself: an idle file system writes nothing.
    _e2fs("mkfs.ext4", "-q", "-F", "-b", 4096, "-E", "lazy_itable_init=0,lazy_journal_init=0", path)
    return path


def fs_unclean(path):
    """Why a raw image's file system is not as a freeze (or an unmount) leaves it, as text lines; empty: it is.

    Reads only; the image may be in use by a QEMU whose guest has the file system frozen.
    """
    header = _e2fs("dumpe2fs", "-h", path).stdout.decode(errors="replace")
    found = []
    if re.search(r"^Filesystem features:.*\bneeds_recovery\b", header, re.M):
        found.append("its journal needs recovery")
    if not re.search(r"^Filesystem state:\s+clean$", header, re.M):
        found.append("its state is not clean")
    done = _e2fs("e2fsck", "-fn", path, codes=())
    if done.returncode:
        text = (done.stdout + done.stderr).decode(errors="replace")
        found.append(f"e2fsck -fn: exit {done.returncode}: {text.strip()[-500:]}")
    return found


class FsImage:
    """The records that a raw image's file system holds, by the witness's numbering (see "file system" in
    tests/guest/witness.c); nothing is mounted, and the image itself is only read.

    recover: in a copy the journal is replayed first, as a mount after a power cut would; without it only what is in
    its place already counts, which is all there is after a freeze. last: the last whole record.
    """

    RECORD, PER_FILE, FILES = 128, 1024, 8

    def __init__(self, path, recover=True):
        self.records = set()
        self.invalid = []
        self.broken = ""
        with tempfile.TemporaryDirectory(prefix="fs-", dir=Path(path).resolve().parent) as scratch:
            if recover:
                copy = Path(scratch) / "copy"
                run("cp", "--sparse=always", "--reflink=auto", path, copy, timeout=600)
                done = _e2fs("e2fsck", "-fp", copy, codes=())
                if done.returncode > 1:
                    self.broken = (done.stdout + done.stderr).decode(errors="replace").strip()[-500:]
                path = copy
            listing = _e2fs("debugfs", "-R", "ls -p /", path).stdout.decode(errors="replace")
            for file in sorted(int(number) for number in re.findall(r"/r\.(\d{8})/", listing)):
                self._read(file, _e2fs("debugfs", "-R", f"cat /r.{file:08d}", path).stdout)

    def _read(self, file, data):
        for at in range(0, len(data) - self.RECORD + 1, self.RECORD):
            number = file * self.PER_FILE + at // self.RECORD + 1
            line = data[at:at + self.RECORD]
            if line.startswith(b"%020d " % number) and line[-9:] == b"%08x\n" % zlib.crc32(line[:-9]):
                self.records.add(number)
            else:
                self.invalid.append(number)

    @property
    def last(self):
        return max(self.records, default=0)

    def problems(self, acked):
        """What is wrong with it, and acknowledged records that it lacks, as text lines; empty: nothing."""
        found = [f"record {number} is not valid" for number in self.invalid]
        if self.broken:
            found.append(f"e2fsck -fp: {self.broken}")
        if self.last < acked:
            found.append(f"last record is {self.last}, but {acked} was acknowledged")
        # The oldest file is removed before a new one is made.
        first = max(0, (max(self.last, acked, 1) - 1) // self.PER_FILE - (self.FILES - 2)) * self.PER_FILE + 1
        missing = [number for number in range(first, self.last) if number not in self.records]
        if missing:
            found.append(f"{len(missing)} records before {self.last} are missing, the first is {missing[0]}")
        return found
