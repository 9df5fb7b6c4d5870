# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts, each a network namespace with a droverd of its own, keys of one CA, a veth between them."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from . import drover, guest, hosts
from .procs import run, wait_until

PORT = 7413
ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}


class Pair:
    """.a and .b are the daemons, .link the veth; peers are called "a" and "b"."""

    def __init__(self, env_a=None, env_b=None, more=""):
        self.envs = {"a": env_a or {}, "b": env_b or {}}
        self.more = more if isinstance(more, dict) else {"a": more, "b": more}  # lines of their configurations

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.keys = Path(tempfile.mkdtemp(prefix="dr-pki-", dir="/tmp"))
            stack.callback(shutil.rmtree, self.keys, ignore_errors=True)
            self.netns_a, self.netns_b, self.link = stack.enter_context(hosts.two_hosts())
            self.netns = {"a": self.netns_a, "b": self.netns_b}
            run(drover.DROVER, "pki", "init", "--dir", self.keys / "ca")
            for name, address in ADDRESSES.items():
                run(drover.DROVER, "pki", "issue", name, "--dir", self.keys / "ca", "--out", self.keys / name, "--address", address)
            self.a = stack.enter_context(self._daemon("a"))
            self.b = stack.enter_context(self._daemon("b"))
            self.a.run("peer", "add", "b", ADDRESSES["b"])
            self.b.run("peer", "add", "a", ADDRESSES["a"])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *args):
        return self._stack.__exit__(*args)

    def clear(self):
        """Ends what a test left. After one that failed that may not be possible in peace: then with new hosts."""
        self.link.heal()
        for daemon in (self.a, self.b):
            for vm in daemon.json("list"):
                daemon.run("stop", vm["name"], "--force", check=False)
                daemon.run("forget", vm["name"], check=False)
        if any(daemon.json("list") or daemon.qemus() for daemon in (self.a, self.b)):
            self.__exit__(None, None, None)
            self.__enter__()

    def _daemon(self, name):
        config = (f"[listen]\nport={PORT}\n[tls]\ndir={self.keys / name}\n[qemu]\n"
                  f"binaries={drover.BIN.parent}/qemu/*/*;{drover.BIN.parent}/qemu/*/root/usr/bin/*;/usr/bin/qemu-system-*\n{self.more.get(name, '')}")
        return drover.Daemon(netns=str(self.netns[name]), env=self.envs[name], config=config)

    def other(self, daemon):
        return self.b if daemon is self.a else self.a

    def name_of(self, daemon):
        return "a" if daemon is self.a else "b"

    def job(self, vm):
        """The last move of a witness away from host a; one that has not begun is at no stage."""
        return next((job for job in self.a.json("jobs") if job["vm"] == vm.name and job["kind"] == "migrate"),
                    {"stage": None, "state": None, "result": None})

    def migrate(self, vm, *options, **kwargs):
        """Moves a witness to the other host; returns the job."""
        source, target = vm.daemon, self.other(vm.daemon)
        job = source.json("migrate", vm.name, self.name_of(target), *options, **kwargs)
        self.moved(vm)
        return job

    def moved(self, vm):
        """The witness is the other host's from now on, and only there."""
        source, target = vm.daemon, self.other(vm.daemon)
        assert vm.name not in [one["name"] for one in source.json("list")]
        wait_until(lambda: target.state(vm.name) == "running", 30, "the guest to run on the other host")
        vm.daemon = target
        assert source.qemus() == []
        target.show(vm.name)  # notes its pid
