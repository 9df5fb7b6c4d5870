# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's daemon in namespaces of its own, with nothing of the machine's libvirt within reach."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from .drover import BIN
from .procs import Unavailable, kill_pid, run, wait_until

TRY = BIN.resolve() / "tests/unit/libvirt-daemon-try"
STATE = "/run/libvirt/qemu"

# Process 1 of the place: all of it ends with it. /run as a whole, for /run/libvirtd.pid; what libvirt keeps elsewhere, too.
SETUP = r"""
set -eu
mount --make-rprivate /
for dir in /run /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do mount -t tmpfs -o mode=755 tmpfs "$dir"; done
echo 'security_driver = "none"' >/etc/libvirt/qemu.conf
ip link set lo up
: >/run/ready
exec sleep infinity
"""


class Place:
    def __init__(self, directory):
        if os.geteuid() != 0 or not shutil.which("libvirtd"):
            raise Unavailable("libvirt's daemon needs root and the package libvirt-daemon-system")
        self.directory = Path(directory)
        with open(self.directory / "place.log", "ab") as log:
            self.outer = subprocess.Popen(["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", SETUP],
                                          stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = None
        wait_until(self._ready, 20, lambda: f"a place for libvirt: {(self.directory / 'place.log').read_text()}")

    def _ready(self):
        if self.outer.poll() is not None:
            raise Unavailable(f"no namespaces can be made here: {(self.directory / 'place.log').read_text().strip()[-300:]}")
        words = Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children").read_text().split()
        self.pid = int(words[0]) if words else None
        return self.pid and Path(f"/proc/{self.pid}/root/run/ready").exists()

    def argv(self, *args):
        return ["nsenter", "-t", str(self.pid), "--mount", "--net", "--pid", "--", *map(str, args)]

    def run(self, *args, check=True, **options):
        return run(*self.argv(*args), check=check, **options)

    def start(self, *args, **options):
        """One that runs on."""
        return subprocess.Popen(self.argv(*args), stdin=subprocess.DEVNULL, **options)

    def attempt(self, *verbs, state=STATE, seconds=20):
        """What libvirt-daemon-try says to each verb."""
        return self.run("env", f"SECONDS_EACH={seconds}", TRY, state, self.file, *verbs, check=False, timeout=120)

    def session(self, *verbs):
        return Session(self, verbs)

    @property
    def file(self):
        return self.directory / "daemon.json"

    def noted(self):
        return json.loads(self.file.read_text())

    def holder(self, state=STATE):
        """The pid, as the place counts, of the one that has the lock; 0: nobody."""
        look = ("import fcntl, struct, sys\n"
                "try: file = open(sys.argv[1] + '/driver.pid')\n"
                "except FileNotFoundError: print(0); sys.exit()\n"
                "lock = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 1, 0))\n"
                "kind, _, _, _, pid = struct.unpack('hhqqi4x', lock)\n"
                "print(0 if kind == fcntl.F_UNLCK else pid)\n")
        return int(self.run("python3", "-c", look, state).stdout)

    def wait_holder(self, before=0, state=STATE):
        def another():
            pid = self.holder(state)
            return pid if pid not in (0, before) else 0
        return wait_until(another, 30, "a daemon with the lock", interval=0.05)

    def proc(self, pid, name):
        return self.run("cat", f"/proc/{pid}/{name}", errors="surrogateescape").stdout

    def link(self, pid, name):
        return self.run("readlink", f"/proc/{pid}/{name}").stdout.strip()

    def kill(self, pid, signal="KILL"):
        self.run("sh", "-c", f"kill -{signal} {pid}")

    def alive(self, pid):
        done = self.run("cat", f"/proc/{pid}/stat", check=False)
        return done.returncode == 0 and done.stdout.rsplit(")", 1)[1].split()[0] != "Z"

    def answers(self):
        return self.run("virsh", "-c", "qemu:///system", "uri", check=False, timeout=60).returncode == 0

    def close(self):
        # The end of process 1 is that of all in its namespace.
        if self.pid:
            kill_pid(self.pid)
        self.outer.kill()
        self.outer.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Session:
    """libvirt-daemon-try with "wait" among its verbs."""

    def __init__(self, place, verbs):
        self.popen = subprocess.Popen(place.argv(TRY, STATE, place.file, *verbs), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self):
        return self.popen.stdout.readline().strip()

    def go_on(self):
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.popen.stdin.close()
        self.popen.kill()
        self.popen.wait()
        self.popen.stdout.close()
