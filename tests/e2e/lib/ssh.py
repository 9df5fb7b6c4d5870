#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stand-in for ssh between the hosts of lib/world.py, which have no sshd: `ssh HOST COMMAND` runs COMMAND in HOST's namespaces, with
this one's standard input, and gives its output and exit status. Its other half: `ssh.py serve SOCKET`."""

import json
import socket
import socketserver
import subprocess
import sys
import time

WIRE = "/wire"
CONNECT_S = 20


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        command = json.loads(self.rfile.readline())
        done = subprocess.run(["bash", "-c", command], input=self.rfile.read(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.wfile.write(f"{done.returncode}\n".encode() + done.stdout)


def connect(path):
    end = time.monotonic() + CONNECT_S
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
            return sock
        except OSError:
            sock.close()
            if time.monotonic() > end:
                sys.exit(f"ssh: {path}: nobody listens")
            time.sleep(0.05)


def main():
    if sys.argv[1] == "serve":
        socketserver.ThreadingUnixStreamServer(sys.argv[2], Handler).serve_forever()
    host, *words = sys.argv[1:]
    with connect(f"{WIRE}/{host.rpartition('@')[2]}") as sock:
        sock.sendall(json.dumps(" ".join(words)).encode() + b"\n" + sys.stdin.buffer.read())
        sock.shutdown(socket.SHUT_WR)
        answer = sock.makefile("rb")
        status = int(answer.readline())
        sys.stdout.buffer.write(answer.read())
    sys.exit(status)


if __name__ == "__main__":
    main()
