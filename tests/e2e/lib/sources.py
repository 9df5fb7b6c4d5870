# SPDX-License-Identifier: LGPL-2.1-or-later
"""Servers of images, of which a test can see what was read, and which it can take away and bring back."""

import contextlib
import http.server
import re
import socket
import threading
from pathlib import Path

from .procs import Process, wait_until


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class NbdSource:
    """nbdkit over an image, read-only, on a unix socket or on loopback; it logs every request."""

    def __init__(self, image, tcp=False, filters=()):
        """filters: (nbdkit's name of a filter, its parameters…)."""
        self.image, self.tcp = Path(image), tcp
        self.log = Path(f"{image}.requests")
        self.port = free_port() if tcp else 0
        self.socket = Path(f"{image}.sock")
        self.url = f"nbd://127.0.0.1:{self.port}/disk" if tcp else f"nbd+unix:///disk?socket={self.socket}"
        where = ["-i", "127.0.0.1", "-p", self.port] if tcp else ["-U", self.socket]
        named = [word for name, *_ in filters for word in (f"--filter={name}",)]
        params = [word for _, *rest in filters for word in rest]
        self.argv = ["nbdkit", "-f", "-r", "-e", "disk", *where, "--filter=log", *named, "file", self.image, *params,
                     f"logfile={self.log}", "logappend=true"]

    def start(self):
        self.process = Process(self.argv, f"{self.image}.server")
        wait_until(self.listens, 20, "nbdkit to listen")
        return self

    def listens(self):
        assert self.process.alive(), self.process.output()
        with socket.socket(socket.AF_INET if self.tcp else socket.AF_UNIX) as client:
            return client.connect_ex(("127.0.0.1", self.port) if self.tcp else str(self.socket)) == 0

    def stop(self):
        self.process.kill()
        if not self.tcp:
            self.socket.unlink(missing_ok=True)

    def reads(self):
        """(offset, bytes) of each read that was answered well, in the order of the requests."""
        text = self.log.read_text() if self.log.exists() else ""
        return [(int(offset, 16), int(count, 16)) for offset, count in
                re.findall(r" Read id=\d+ offset=(0x[0-9a-f]+|0) count=(0x[0-9a-f]+)", text)]

    def clients(self):
        """How many clients have a connection."""
        text = self.log.read_text().rpartition(" Ready ")[2] if self.log.exists() else ""
        return len(re.findall(r"connection=\d+ Connect ", text)) - len(re.findall(r"connection=\d+ Disconnect ", text))

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


class HttpSource:
    """The files of a directory over HTTP/1.1, with ranges. While `broken` is set it answers each request with an error."""

    def __init__(self, directory):
        source = self
        self.directory, self.broken, self.reads = Path(directory), False, []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer(False)

            def do_GET(self):
                self.answer(True)

            def answer(self, wants_body):
                if source.broken:
                    self.send_error(503)
                    return
                path = source.directory / Path(self.path).name
                if not path.exists():
                    self.send_error(404)
                    return
                size = path.stat().st_size
                wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                first, last = (int(wanted[1]), min(int(wanted[2] or size), size - 1)) if wanted else (0, size - 1)
                self.send_response(206 if wanted else 200)
                self.send_header("Accept-Ranges", "bytes")
                if wanted:
                    self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
                self.send_header("Content-Length", str(last - first + 1))
                self.end_headers()
                if wants_body:
                    source.reads.append((first, last - first + 1))
                    with path.open("rb") as file, contextlib.suppress(OSError):
                        file.seek(first)
                        self.wfile.write(file.read(last - first + 1))

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def url(self, name):
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
