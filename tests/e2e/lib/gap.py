# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gap observer's own process: reads the witness's ticks and keeps the silences between them.

Started by guest.GapObserver with the observed socket's fd and its kind as arguments: a process of its own, in
real-time priority where allowed, because a thread beside a test's other threads would measure Python's lock.
Commands come as lines on stdin, answers go as JSON lines to stdout.
"""

import json
import os
import select
import socket
import struct
import sys
import time

KEEP_OVER = 0.003  # s; shorter silences are ordinary
KEEP = 500


class Ticks:
    def __init__(self):
        self.last = self.number = self.bootid = None
        self.reset()

    def reset(self):
        self.count = self.breaks = 0
        self.longest = 0.0
        self.longest_at = None
        self.gaps = []
        self.break_list = []
        self.started = time.monotonic()

    def seen(self, now):
        if self.last is not None:
            # A silence that began before the reset counts from the reset on.
            gap = now - max(self.last, self.started)
            if gap > self.longest:
                self.longest, self.longest_at = gap, now - gap
            if gap > KEEP_OVER and len(self.gaps) < KEEP:
                self.gaps.append([round(gap * 1000, 3), now - gap])
        self.last = now
        self.count += 1

    def broke(self, wanted, found):
        self.breaks += 1
        if len(self.break_list) < 20:
            self.break_list.append([time.monotonic(), wanted, found])

    def bytes(self, now, data):
        self.seen(now)
        self.count += len(data) - 1
        for byte in data:
            if self.number is not None and byte != (self.number + 1) & 0xFF:
                self.broke((self.number + 1) & 0xFF, byte)
            self.number = byte

    def datagram(self, now, data):
        if len(data) != 16:
            return
        bootid, number = struct.unpack("<QQ", data)
        self.seen(now)
        if self.bootid is not None and bootid != self.bootid:
            self.broke("%016x" % self.bootid, "%016x" % bootid)
        elif self.number is not None and number != self.number + 1:
            self.broke(self.number + 1, number)
        self.bootid, self.number = bootid, number

    def report(self):
        now = time.monotonic()
        silent = 0.0 if self.last is None else now - max(self.last, self.started)
        return {"ticks": self.count, "seconds": now - self.started, "longest_ms": round(self.longest * 1000, 3),
                "longest_at": self.longest_at, "silent_ms": round(silent * 1000, 3), "gaps": self.gaps,
                "breaks": self.breaks, "break_list": self.break_list}


def main():
    fd, kind = int(sys.argv[1]), sys.argv[2]
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
    except OSError:
        pass
    ticks = Ticks()
    observed = socket.socket(fileno=fd)
    observed.setblocking(False)
    poller = select.poll()
    poller.register(observed, select.POLLIN)
    poller.register(0, select.POLLIN)
    streams = {}
    while True:
        ready = poller.poll()
        now = time.monotonic()
        arrived = []
        for number, _ in ready:
            if number == 0:
                line = sys.stdin.readline()
                if not line:
                    return
                if line == "reset\n":
                    ticks.reset()
                print(json.dumps(ticks.report()), flush=True)
            elif number == fd and kind == "udp":
                while True:
                    try:
                        ticks.datagram(now, observed.recv(2048))
                    except BlockingIOError:
                        break
            elif number == fd:
                stream, _ = observed.accept()
                stream.setblocking(False)
                streams[stream.fileno()] = stream
                poller.register(stream, select.POLLIN)
            else:
                try:
                    data = streams[number].recv(65536)
                except OSError:
                    data = b""
                if data:
                    arrived.append(data)
                else:
                    poller.unregister(number)
                    streams.pop(number).close()
        # Source and destination in one round: the one that continues the count came first.
        wanted = None if ticks.number is None else (ticks.number + 1) & 0xFF
        for data in sorted(arrived, key=lambda data: data[0] != wanted):
            ticks.bytes(now, data)


if __name__ == "__main__":
    main()
