# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes: start, end by pidfd, wait with a deadline, and what memory and time they used."""

import ctypes
import os
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
BUILD = Path(os.environ.get("DROVER_TEST_BUILD", REPO / "build"))

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class Unavailable(Exception):
    """Something that this machine cannot give (network, /dev/kvm, a package): the test skips with this reason."""


class Timeout(Exception):
    """A wait passed its deadline; the text says what was waited for."""


def wait_until(condition, timeout, what, interval=0.01):
    """Calls condition() until it returns something true, and returns that; raises Timeout after timeout s. what: a text,
    or what gives one then."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise Timeout(f"{what() if callable(what) else what}: not within {timeout} s")
        time.sleep(interval)


def run(*argv, timeout=60, check=True, **options):
    """Runs a short command to its end; its output is in the exception if it fails."""
    done = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def tool(path, *args, timeout=600):
    """Runs one of the repository's fetch and build tools; its exit code 3 becomes Unavailable."""
    done = run(REPO / path, *args, timeout=timeout, check=False)
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode == 3:
        raise Unavailable(reason)
    if done.returncode:
        raise RuntimeError(f"{path}: exit {done.returncode}: {reason}")
    return done.stdout


def kill_pid(pid, timeout=10, sig=signal.SIGKILL):
    """Ends one process, known by its pid, and waits until it is gone (child or not)."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        try:
            signal.pidfd_send_signal(pidfd, sig)
        except ProcessLookupError:
            pass
        # A pidfd is readable once the process has ended, also while its parent has not reaped it.
        if not select.select([pidfd], [], [], timeout)[0]:
            raise Timeout(f"pid {pid} still lives {timeout} s after signal {sig}")
    finally:
        os.close(pidfd)


def die_with_parent():
    """For preexec_fn: the child ends with the THREAD that started it, so that no test run leaves a QEMU behind."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Process:
    """A child process whose standard output and error go to a file; a context manager that ends it."""

    def __init__(self, argv, log, *, pass_fds=(), env=None, netns=None, prefix=(), orphan=False):
        """prefix: a command that runs argv somewhere else, and becomes it (by exec)."""
        argv = [str(arg) for arg in (*prefix, *argv)]
        if netns:
            argv = ["ip", "netns", "exec", str(netns), *argv]
        self.argv = argv
        self.log = Path(log)
        # Only the main thread lives as long as the test run does.
        tied = not orphan and threading.current_thread() is threading.main_thread()
        with open(self.log, "ab") as output:
            self.started = time.monotonic()
            self.popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=pass_fds,
                env={**os.environ, **env} if env else None, preexec_fn=die_with_parent if tied else None)
        self.pid = self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def output(self):
        return self.log.read_text(errors="replace")

    def wait(self, timeout=10):
        """Waits for the end; returns the exit code (negative: the signal)."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Timeout(f"pid {self.pid} ({self.argv[0]}): still runs after {timeout} s") from None

    def kill(self, sig=signal.SIGKILL, timeout=10):
        if self.alive():
            self.popen.send_signal(sig)
        return self.wait(timeout)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def _rollup(pid):
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0]) / 1024
    return fields


def pss_mib(*pids):
    """Proportional set size: memory shared by several of the processes is counted once over them all."""
    return sum(_rollup(pid)["Pss"] for pid in pids)


def rss_mib(pid):
    return _rollup(pid)["Rss"]


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def private_mib(pid):
    """A process's own memory: anonymous and not shared. Much cheaper to ask for than Pss."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    except FileNotFoundError:
        pass
    return 0.0


def memfd_mib(fd):
    """What a memfd holds really."""
    return os.fstat(fd).st_blocks * 512 / 2**20


class PeakMemory:
    """Samples the memory of processes and memfds together; afterwards .extra_mib is the peak above the start.

    Of these only, not the machine's: other programs on it change that all the time.
    """

    def __init__(self, pids, fds=(), interval=0.005):
        self.pids = list(pids)
        self.fds = [fd for fd in fds if fd is not None]
        self.interval = interval
        self.stopping = threading.Event()

    def add(self, pid, fd=None):
        if fd is not None and fd not in self.fds:
            self.fds.append(fd)
        self.pids.append(pid)

    def now_mib(self):
        return sum(map(private_mib, list(self.pids))) + sum(map(memfd_mib, list(self.fds)))

    def __enter__(self):
        self.base = self.peak = self.now_mib()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def _run(self):
        while not self.stopping.wait(self.interval):
            self.peak = max(self.peak, self.now_mib())

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()
        self.extra_mib = self.peak - self.base
