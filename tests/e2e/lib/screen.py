# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program on a terminal of its own, and what stands on its screen."""

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

from .procs import Timeout, die_with_parent


class Screen:
    """As much of a terminal as drover's live lines need; anything else that begins with an escape is an error."""

    def __init__(self, rows, columns):
        self.rows, self.columns = rows, columns
        self.lines, self.row, self.column = [""], 0, 0
        self.codes = set()

    def feed(self, text):
        at = 0
        while at < len(text):
            escape = re.match(r"\x1b\[([0-9;]*)([A-Za-z])", text[at:])
            if escape:
                self._control(escape[1], escape[2])
                at += len(escape[0])
            else:
                self._put(text[at])
                at += 1

    def _control(self, number, letter):
        self.codes.add(letter)
        if letter == "A":
            self.row -= int(number or 1)
            assert self.row >= len(self.lines) - self.rows, "above the screen: what scrolled away cannot be erased"
        elif letter == "J":
            self.lines[self.row] = self.lines[self.row][:self.column]
            del self.lines[self.row + 1:]
        else:
            assert letter == "m", f"ESC[{number}{letter}"

    def _put(self, char):
        assert char != "\x1b", "an escape that is none of those"
        if char == "\r":
            self.column = 0
        elif char == "\n":
            self.row += 1
            if self.row == len(self.lines):
                self.lines.append("")
        else:
            if self.column == self.columns:
                self._put("\r"), self._put("\n")
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[:self.column] + char + line[self.column + 1:]
            self.column += 1

    @property
    def text(self):
        return "\n".join(self.lines)


class Terminal:
    """A context manager: the program runs in it, and is killed at its end. .seen: every different text that stood there."""

    def __init__(self, argv, rows=24, columns=80, env=None):
        self.screen, self.seen, self.raw = Screen(rows, columns), [], ""
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environ = {"PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C.UTF-8", **(env or {})}

        def lead():
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            die_with_parent()

        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=environ, preexec_fn=lead)
        os.close(slave)
        self._rest, self._decoder = "", codecs.getincrementaldecoder("utf-8")()

    def _read(self, timeout):
        if not select.select([self.master], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the other side any more
            return False
        self._rest += self._decoder.decode(data)
        whole = re.sub(r"\x1b(\[[0-9;]*)?$", "", self._rest)  # an escape that is not complete waits for the rest
        self._rest = self._rest[len(whole):]
        self.raw += whole
        self.screen.feed(whole)
        self.seen.append(self.screen.text)
        return True

    def type(self, text):
        os.write(self.master, text.encode())

    def expect(self, pattern, timeout=60):
        """Reads until the screen has it; returns the match."""
        end = time.monotonic() + timeout
        while True:
            found = re.search(pattern, self.screen.text, re.M)
            if found:
                return found
            if time.monotonic() > end or not self._read(0.2):
                raise Timeout(f"{pattern!r} does not stand on the screen:\n{self.screen.text}")

    def wait(self, timeout=120):
        """To its end; returns the exit code."""
        end = time.monotonic() + timeout
        while self._read(0.2):
            if time.monotonic() > end:
                raise Timeout(f"it does not end:\n{self.screen.text}")
        return self.process.wait(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
