# SPDX-License-Identifier: LGPL-2.1-or-later
"""droverd's API without drover: HTTP as it is written on the wire, well formed or not."""

import json
import socket


class Answer:
    """The last answer of a connection: status (0: none came), content type, body."""

    def __init__(self, data):
        # An interim answer (100 Continue) goes before the real one.
        while data.startswith(b"HTTP/1.1 1"):
            data = data.partition(b"\r\n\r\n")[2]
        head, _, self.body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split()
        self.status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        self.type = headers.get("content-type", "")

    @property
    def json(self):
        return json.loads(self.body)

    def is_problem(self):
        """Whether it's a problem (RFC 9457) as docs/API.md has it."""
        return self.type == "application/problem+json" and set(self.json) == {"type", "title", "status", "detail", "code",
                                                                              "remedy"} and self.json["status"] == self.status

    def __repr__(self):
        return f"{self.status} {self.type} {self.body[:300]!r}"


def connect(path, timeout=30):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(timeout)
    client.connect(str(path))
    return client


def send(path, data, timeout=30, end=False):
    """Sends bytes as they are and reads until the other end closes; end: nothing more is to come from us."""
    received = b""
    with connect(path, timeout) as client:
        try:
            client.sendall(data)
            if end:
                client.shutdown(socket.SHUT_WR)
            while more := client.recv(65536):
                received += more
        except (BrokenPipeError, ConnectionResetError):
            pass  # what came before is the answer
    return Answer(received)


def request(path, method, target, body=b"", headers=("Content-Type: application/json",)):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    head = [f"{method} {target} HTTP/1.1", "Host: droverd", *headers, f"Content-Length: {len(body)}", "", ""]
    return send(path, "\r\n".join(head).encode() + body)
