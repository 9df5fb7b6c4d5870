# SPDX-License-Identifier: LGPL-2.1-or-later
"""A small blocking QMP client in which every wait has a deadline; independent of drover's own."""

import array
import json
import os
import socket
import time

from .procs import Timeout


class QmpError(Exception):
    """QEMU answered a command with an error."""

    def __init__(self, command, error):
        self.command, self.cls, self.desc = command, error["class"], error["desc"]
        super().__init__(f"{command}: {self.desc}")


class QmpLost(Exception):
    """The connection ended: QEMU is gone, or another client was accepted."""


class Event:
    """name, data, and two times in seconds: QEMU's own stamp (CLOCK_REALTIME) and when we read it (CLOCK_MONOTONIC)."""

    def __init__(self, message):
        stamp = message["timestamp"]
        self.name = message["event"]
        self.data = message.get("data", {})
        self.time = stamp["seconds"] + stamp["microseconds"] / 1e6
        self.read_at = time.monotonic()

    def __repr__(self):
        return f"{self.name} {self.data} at {self.time:.6f}"


class Qmp:
    """One QMP connection. events holds all that came, oldest first; nothing removes from it but clear()."""

    def __init__(self, path=None, *, sock=None, timeout=10):
        """Connects to a listening unix socket at path (waiting for it to appear), or takes a connected one."""
        self.events = []
        self.timeout = timeout
        self._buffer = b""
        self._last_id = 0
        end = time.monotonic() + timeout
        if sock is None:
            sock = self._connect(str(path), end)
        self.sock = sock
        self.greeting = self._read(end, "greeting")["QMP"]
        self.version = tuple(self.greeting["version"]["qemu"][part] for part in ("major", "minor", "micro"))
        # QEMU greets a client that waits already before it has made the machine; this answer comes after that.
        self.command("qmp_capabilities")
        self.ready_at = time.monotonic()

    @staticmethod
    def _connect(path, end):
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(path)
                return sock
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                if time.monotonic() > end:
                    raise Timeout(f"QMP socket {path}: nobody listens") from None
                time.sleep(0.002)

    def _read(self, end, what):
        """The next message that is no event; events are kept."""
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                message = json.loads(line)
                if "event" not in message:
                    return message
                self.events.append(Event(message))
                if what is None:
                    return None
                continue
            left = end - time.monotonic()
            if left <= 0:
                raise Timeout(f"QMP: no answer in time ({what})")
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:
                raise QmpLost(f"QMP connection lost ({what}): {error}") from None
            if not data:
                raise QmpLost(f"QMP connection closed by QEMU ({what})")
            self._buffer += data

    def command(self, name, arguments=None, timeout=None, fd=None):
        """Runs a command and returns its result; fd is passed along (for getfd and add-fd)."""
        self._last_id += 1
        request = {"execute": name, "id": self._last_id}
        if arguments:
            request["arguments"] = arguments
        data = json.dumps(request).encode() + b"\n"
        try:
            if fd is None:
                self.sock.sendall(data)
            else:
                self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        except OSError as error:
            raise QmpLost(f"QMP connection lost ({name}): {error}") from None
        end = time.monotonic() + (timeout or self.timeout)
        while True:
            answer = self._read(end, name)
            # The answer to a command that timed out earlier may still come.
            if answer and answer.get("id") == self._last_id:
                break
        if "error" in answer:
            raise QmpError(name, answer["error"])
        return answer["return"]

    def hmp(self, line, timeout=None):
        return self.command("human-monitor-command", {"command-line": line}, timeout)

    def wait_event(self, name, timeout=None, match=None, since=0):
        """Returns the first event from index `since` on with this name for which match(data) holds."""
        end = time.monotonic() + (timeout or self.timeout)
        while True:
            for event in self.events[since:]:
                if event.name == name and (match is None or match(event.data)):
                    return event
            since = len(self.events)
            try:
                self._read(end, None)
            except Timeout:
                last = ", ".join(map(repr, self.events[-6:])) or "none"
                raise Timeout(f"QMP event {name}: not in time; last events: {last}") from None

    def wait_migration(self, *states, timeout=None, since=0, bad=("failed", "cancelled")):
        """Waits for a MIGRATION event of one of these states (capability `events` must be on)."""
        wanted = {*states, *bad}
        event = self.wait_event("MIGRATION", timeout, lambda data: data["status"] in wanted, since)
        if event.data["status"] not in states:
            try:
                error = self.command("query-migrate").get("error-desc", "no reason given")
            except QmpLost:  # an incoming QEMU quits when the load fails
                error = "no reason given"
            raise RuntimeError(f"migration {event.data['status']}: {error}")
        return event

    def drain(self):
        """Reads the events that are there already."""
        self.command("query-status")
        return self.events

    def find(self, name, since=0):
        return [event for event in self.events[since:] if event.name == name]

    def clear(self):
        self.events.clear()

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def listening_pair(path):
    """A listening unix socket for QEMU to inherit (`-chardev socket,fd=N,server=on`) and one connected to it."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener.bind(str(path))
    listener.listen(4)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return listener, client
