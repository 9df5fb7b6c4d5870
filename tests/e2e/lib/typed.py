#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs a command that makes its terminal raw, and types to it: typed.py STEPS COMMAND. STEPS is a file of JSON: [[REGEX, TEXT], ...]; TEXT is typed when
what has been printed since the last step matches REGEX. Prints what the command printed; exits as it does."""

import json
import os
import pty
import re
import select
import signal
import sys
import termios
import time

STEP_S = 60
LOOK_S = 0.1


def read_some(terminal, end):
    if not select.select([terminal], [], [], max(0, end - time.monotonic()))[0]:
        return None
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: the command has ended
        return b""


def is_raw(terminal):
    return not termios.tcgetattr(terminal)[3] & termios.ICANON


def play(terminal, steps):
    """Returns whether all was typed. `drover console` says that it is connected just before it takes the terminal; nobody types that fast."""
    for regex, text in steps:
        seen, end = "", time.monotonic() + STEP_S
        while not re.search(regex, seen) or not is_raw(terminal):
            data = read_some(terminal, min(end, time.monotonic() + LOOK_S))
            if data == b"" or time.monotonic() > end:
                return False
            if data is None:
                continue
            sys.stdout.buffer.write(data)
            seen = (seen + data.decode(errors="replace")).replace("\r", "")
        os.write(terminal, text.encode())
    return True


def main():
    steps = json.load(open(sys.argv[1]))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("bash", ["bash", "-c", sys.argv[2]])
    complete, end = play(terminal, steps), time.monotonic() + STEP_S
    while complete and (data := read_some(terminal, end)):
        sys.stdout.buffer.write(data)
    if not complete:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    sys.exit(status if complete else f"typed.py: not all was typed; {sys.argv[2]} ended with {status}")


if __name__ == "__main__":
    main()
