# SPDX-License-Identifier: LGPL-2.1-or-later
"""drover-libvirt as droverd starts it, on a libvirt host of lib/libvirt.py."""

import json
import os
import subprocess

from .procs import BUILD, Process, wait_until

PROGRAM = BUILD / "main/src/libvirt/drover-libvirt"


class Beneath:
    """Runs it on a host. .run() is the journal of the last run, see src/libvirt/journal.h."""

    def __init__(self, host):
        self.host = host
        self.dir = host.dir / "beneath"
        self.places = [self.dir / "state", self.dir / "run", self.dir / "cache"]
        self.hold_file = self.dir / "run/hold"
        self.prefix, self.program = host.prefix, PROGRAM.resolve()

    def _argv(self, command, env=()):
        return [*self.prefix, "env", *env, self.program, command, *self.places]

    def _call(self, command, spec=None, timeout=180):
        done = subprocess.run([str(word) for word in self._argv(command)], input=json.dumps(spec or {}), capture_output=True, text=True,
                              timeout=timeout, check=False)
        return done.returncode, done.stdout, done.stderr

    def check(self, **spec):
        code, out, err = self._call("check", spec)
        assert code == 0, (out, err)
        return {domain["name"]: domain for domain in json.loads(out)["domains"]}

    def upgrade(self, version=None, *, fails=False, **spec):
        """Returns the run's journal; `fails`: the run itself is expected to be refused."""
        if version:
            spec["emulator"] = self.host.emulator(version)
        code, out, err = self._call("upgrade", spec)
        assert (code != 0) == fails, (out, err, self.run())
        return self.run()

    def refused(self, **spec):
        """The error of an upgrade that does not even begin: there is no run of it."""
        code, out, err = self._call("upgrade", spec)
        assert code == 1, (out, err)
        return json.loads(out.splitlines()[-1])["error"]

    def recover(self):
        code, out, err = self._call("recover")
        assert code == 0 or self.run()["state"] == "done", (out, err, self.run())
        return self.run()

    def start(self, *points, version=None, **spec):
        """Starts an upgrade that holds at points (DROVER_HOLD_AT); see held() and go()."""
        if version:
            spec["emulator"] = self.host.emulator(version)
        self.dir.mkdir(exist_ok=True)
        request = self.dir / "request"
        request.write_text(json.dumps(spec))
        argv = self._argv("upgrade", [f"DROVER_HOLD_AT={','.join(points)}", "sh", "-c", f'exec "$@" <{request}', "sh"])
        self.process = Process(argv, self.dir / "out")
        return self.process

    def start_recovery(self, *points):
        self.process = Process(self._argv("recover", [f"DROVER_HOLD_AT={','.join(points)}"]), self.dir / "out")
        return self.process

    def helper(self):
        """The pid of the program itself, behind the shells that lead into the host."""
        return next((pid for pid in self.host.pids() if exe(self.host.procs / str(pid)) == str(self.program)), None)

    def held(self, point, timeout=60):
        def there():
            if self.process.popen.poll() is not None:
                raise AssertionError(f"it ended before '{point}': {(self.dir / 'out').read_text()[-1500:]} {self.run()}")
            return self.hold_file.exists() and self.hold_file.read_text() == point

        wait_until(there, timeout, f"the run to be held at '{point}'")

    def go(self):
        self.hold_file.unlink()

    def kill(self):
        """kill -9 of drover."""
        self.host.kill(self.helper())
        self.process.wait()
        self.hold_file.unlink(missing_ok=True)

    def ended(self, timeout=120):
        self.process.wait(timeout)
        return self.run()

    def run(self):
        path = self.places[0] / "run.json"
        return json.loads(path.read_text()) if path.exists() else None


def exe(process):
    try:
        return os.readlink(process / "exe")
    except OSError:
        return None


def domain_of(run, name="vm"):
    return next(domain for domain in run["domains"] if domain["name"] == name)


def moved(run, name="vm"):
    """Checks that a domain went over in peace, and that libvirt sees it; returns its part of the journal."""
    one = domain_of(run, name)
    assert run["state"] == "done" and not run.get("error"), run.get("error")
    assert one["state"] == "done" and not one.get("error"), one.get("error")
    assert one["view_is_true"], one["view"]
    assert one["pid"] != one["pid_before"]
    return one


def nothing_left(beneath):
    """No process, no socket and no record of drover's: the domain is libvirt's alone."""
    host = beneath.host
    assert beneath.helper() is None
    assert not (beneath.places[0] / "engine").exists() and not list(beneath.places[1].iterdir())
    for pid in host.qemus():
        text = host.proc(pid, "cmdline")
        assert b"drover" not in text, text
        assert host.proc(pid, "stat").rpartition(b")")[2].split()[1].decode() in ("1", str(os.getpid())), "init's child"
    assert not list(host.path("/var/lib/libvirt/qemu").rglob("*drover*"))


def there(beneath, vm, version, **spec):
    """One upgrade, after which libvirt's view, the guest, and what drover left are looked at."""
    before = vm.pid
    run = beneath.upgrade(version, domains=[vm.name], **spec)
    one = moved(run, vm.name)
    assert vm.pid == one["pid"] != before and beneath.host.qemus().count(vm.pid) == 1 and before not in beneath.host.qemus()
    assert vm.status_xml().get("pid") == str(vm.pid) and vm.state() == "running"
    assert vm.live_xml().find("devices/emulator").text == one["emulator"] == beneath.host.emulator(version)
    vm.healthy()
    nothing_left(beneath)
    return one


def whole_round(host, vm):
    """What people do with a domain, on the QEMU that it has now."""
    assert "running" in vm.virsh("dominfo")
    assert int(vm.virsh("domblkstat", "vda").split("wr_req")[1].split()[0]) > 0
    with host.events() as events:
        vm.virsh("suspend")
        events.wait(vm.name, "Suspended")
        assert vm.state() == "paused"
        vm.virsh("resume")
        events.wait(vm.name, "Resumed")
    vm.healthy()
    extra = vm.attach_disk(to="vdx", use=False)
    vm.healthy()
    vm.virsh("detach-disk", "vdx", "--live")
    wait_until(lambda: "vdx" not in vm.targets(), 30, "the disk to go")
    host.path(extra).unlink()
    overlay = vm.snapshot()
    assert vm.source() == overlay
    vm.healthy()
    vm.blockcommit()
    assert vm.source() != overlay
    vm.healthy()
