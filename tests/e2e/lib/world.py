# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts in which the documents' commands are run as they stand there: drover installed, /srv, /opt and /etc of their own.

A Host is a shell in namespaces (mounts, pids, name, network) with a root directory of its own: the machine's /usr, /dev and the
repository, and all else empty or a copy. A command may write to /etc/drover or kill by name: nothing outside sees it, and
nothing of it is left when the shell ends.
"""

import contextlib
import itertools
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from . import drover, hosts
from .procs import BUILD, REPO, Timeout, die_with_parent, kill_pid, run

ADDRESSES = {"host-a": "192.0.2.1", "host-b": "192.0.2.2"}
ROOT_SCRIPT = Path(__file__).with_name("world-root.sh")
SHELL = f"""
# For what a document has prepared: returns when the test guest of that VM is up.
guest_is_up() {{ grep -qam1 'WITNESS READY' < <(timeout 90 drover console "$1" </dev/null 2>&1); }}
/usr/bin/python3 {REPO}/tests/e2e/lib/ssh.py serve /wire/$HOSTNAME 3<&- 4>&- &
cd {REPO}
last=0
while read -r number <&3; do
  (exit $last)
  . /io/$number.command >/io/$number.output 2>&1 </dev/null 3<&- 4>&-
  last=$?
  echo "$number $last" >&4
done
"""


class Host:
    """A host with a name: run() gives its shell one command after the other, as somebody types them."""

    def __init__(self, name, directory, netns, binds=()):
        """binds: (path outside, path inside) of what else the host sees."""
        self.name, self.netns = name, netns
        self.io = Path(directory) / name
        self.binds = [(self.io, "/io"), *binds]
        self.numbers = itertools.count(1)

    def __enter__(self):
        (self.io / "root").mkdir(parents=True)
        (self.io / "shell").write_text(SHELL)
        asks, self.asks = os.pipe()
        self.answers, answers = os.pipe()
        argv = [*self.netns.argv("unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"), "bash", ROOT_SCRIPT, self.io / "root",
                self.name, "/io/shell", asks, answers, *(f"{outside}:{inside}" for outside, inside in self.binds)]
        with open(self.io / "log", "wb") as log:
            self.process = subprocess.Popen(list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                                            pass_fds=(asks, answers), env=environment(), preexec_fn=die_with_parent)
        os.close(asks)
        os.close(answers)
        try:
            self.run("true")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            # The first process of the pid namespace ends with it, and with that one all others.
            kill_pid(self.process.pid)
        self.process.wait()
        os.close(self.asks)
        os.close(self.answers)

    def run(self, command, timeout=120):
        """Returns (exit status, what it printed), as soon as the command has ended; what it left in the background goes on."""
        number = next(self.numbers)
        (self.io / f"{number}.command").write_text(command + "\n")
        os.write(self.asks, f"{number}\n".encode())
        end, answer = time.monotonic() + timeout, b""
        output = self.io / f"{number}.output"
        while not answer.endswith(b"\n"):
            if not select.select([self.answers], [], [], max(0, end - time.monotonic()))[0]:
                raise Timeout(f"{self.name}: {command!r} has not ended after {timeout} s; it said: {tail(output)}")
            data = os.read(self.answers, 4096)
            if not data:
                raise RuntimeError(f"{self.name}: the shell has ended: {tail(self.io / 'log')}")
            answer += data
        return int(answer.split()[1]), output.read_text(errors="replace")


def environment():
    kept = {name: value for name, value in os.environ.items() if name in ("TERM", "TZ")}
    return {**kept, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}


def tail(path):
    return path.read_text(errors="replace")[-2000:] if path.exists() else "nothing"


def installed(directory):
    """drover as `meson install` leaves it, below directory/usr/local; returns that."""
    run("/usr/bin/meson", "install", "-C", drover.BIN, "--no-rebuild", "--destdir", directory, env={**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}"})
    return directory / "usr" / "local"


@contextlib.contextmanager
def world(names, qemus=("10.0",)):
    """Yields {name: Host}. Several have eth0 on one wire, and /srv is one directory for them all, as NFS would make it."""
    directory = Path(tempfile.mkdtemp(prefix="dw-", dir="/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        usr_local = installed(directory / "installed")
        shutil.copy(Path(__file__).with_name("ssh.py"), usr_local / "bin" / "ssh")
        (usr_local / "bin" / "ssh").chmod(0o755)
        (directory / "srv").mkdir()
        (directory / "wire").mkdir()
        netns = {name: stack.enter_context(hosts.Netns()) for name in names}
        if len(names) == 2:
            wire(stack, netns)
        made = {}
        for name in names:
            binds = [(usr_local, "/usr/local"), (directory / "srv", "/srv"), (directory / "wire", "/wire"),
                     *((BUILD / "qemu" / version, f"/opt/qemu-{version}") for version in qemus),
                     *((path.resolve(), path.resolve()) for path in BUILD.iterdir() if path.is_symlink())]
            made[name] = stack.enter_context(Host(name, directory / "hosts", netns[name], binds))
        yield made


def wire(stack, netns):
    """eth0 of each, with the addresses that the documents have."""
    a, b = netns
    link = stack.enter_context(hosts.Veth(netns[a], netns[b], f"{ADDRESSES[a]}/24", f"{ADDRESSES[b]}/24"))
    for name, interface in zip((a, b), link.names):
        netns[name].ip("link", "set", interface, "down")
        netns[name].ip("link", "set", interface, "name", "eth0")
        netns[name].ip("link", "set", "eth0", "up")
