# SPDX-License-Identifier: LGPL-2.1-or-later
"""The witness's console by other ways than a unix socket: TCP, and `drover console` through pipes or a terminal."""

import os
import pty
import select
import socket
import subprocess
import termios
import threading
import time

from . import guest, peers
from .procs import Timeout, die_with_parent


class TcpConsole(guest.Console):
    """A serial port on TCP (or telnet, whose negotiation stands before the first line)."""

    def __init__(self, address, netns=None):
        self.address, self.netns = address, netns
        super().__init__(address)

    def follow(self, path, timeout=10):
        if self.sock:
            self.sock.close()
        self.sock = peers.connect(self.address, self.netns, timeout)
        self.log += b"\n"
        self._parsed = len(self.log)


class DroverConsole(guest.Console):
    """`drover console NAME` with a socket as its standard input and output; stays where it is over an upgrade."""

    def __init__(self, daemon, name):
        self.command_line = daemon.argv("console", name)
        super().__init__(name)

    def follow(self, path, timeout=10):
        if self.sock:
            return
        self.sock, other = socket.socketpair()
        self.process = subprocess.Popen(self.command_line, stdin=other, stdout=other, stderr=subprocess.PIPE, text=True,
                                        preexec_fn=die_with_parent)
        other.close()

    def close(self):
        super().close()
        self.process.kill()
        self.process.communicate()


class _Terminal:
    """The master side of a pty, used like a socket."""

    def __init__(self, fd):
        self.fd, self.timeout = fd, None

    def settimeout(self, timeout):
        self.timeout = timeout

    def recv(self, size):
        if not select.select([self.fd], [], [], self.timeout)[0]:
            raise TimeoutError
        try:
            return os.read(self.fd, size)
        except OSError:  # EIO: nobody has the terminal open any more
            return b""

    def sendall(self, data):
        while data:
            data = data[os.write(self.fd, data):]

    def close(self):
        os.close(self.fd)


class DroverTerminal(guest.Console):
    """`drover console NAME` on a terminal, as a person has it."""

    def __init__(self, daemon, name, *options):
        self.command_line = daemon.argv("console", name, *options)
        super().__init__(name)

    def follow(self, path, timeout=10):
        if self.sock:
            return
        master, slave = pty.openpty()
        self.settings_before = termios.tcgetattr(slave)
        self.slave = slave  # kept open, so that what the terminal was set to can be seen afterwards
        self.process = subprocess.Popen(self.command_line, stdin=slave, stdout=slave, stderr=subprocess.PIPE, text=True,
                                        preexec_fn=die_with_parent, start_new_session=True)
        self.sock = _Terminal(master)

    def is_raw(self):
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO)

    def leave(self, key=b"\x1d", timeout=10):
        """Presses a key that ends it; returns its exit code."""
        self.sock.sendall(key)
        return self.process.wait(timeout)

    def close(self):
        self.process.kill()
        self.process.communicate()
        os.close(self.slave)
        self.sock.close()


class Typist:
    """Types numbered `echo` lines at a steady pace in a thread; check() that each answer came once and in order."""

    def __init__(self, console, interval=0.005, word="n"):
        self.console, self.interval, self.word = console, interval, word
        self.typed = 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self.stopping.wait(self.interval):
            self.typed += 1
            self.console.send(f"echo {self.word}{self.typed}")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()

    def answers(self, timeout=60):
        """The numbers that came back, up to that of a last line typed now."""
        end = time.monotonic() + timeout
        last = f"{self.word}-last"
        self.console.send(f"echo {last}")
        found = []
        while True:
            if time.monotonic() > end:
                raise Timeout(f"console: {last} did not come back; {len(found)} of {self.typed} did")
            line = self.console.wait_line("ECHO ", timeout=end - time.monotonic()).split()[1]
            if line == last:
                return found
            if line.startswith(self.word):
                found.append(int(line[len(self.word):]))

    def check(self):
        found = self.answers()
        assert found == list(range(1, self.typed + 1)), \
            f"typed 1 to {self.typed}, missing {sorted(set(range(1, self.typed + 1)) - set(found))[:20]}, " \
            f"came twice {sorted({n for n in found if found.count(n) > 1})[:20]}"
