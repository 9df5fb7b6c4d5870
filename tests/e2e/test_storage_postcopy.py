# SPDX-License-Identifier: LGPL-2.1-or-later
"""Moves whose disks come after the guest: it runs on overlays over the images of the host it came from until each block has been
fetched. No acknowledged write is lost and no I/O error is seen, whatever dies or is cut meanwhile."""

import contextlib
import itertools
import json
import os
import time
from pathlib import Path

import pytest

from lib import drover
from lib.disks import acked_at_the_end, as_raw, digest, new_image, writes_go_on
from lib.guest import DiskImage
from lib.pair import Pair
from lib.procs import kill_pid, run, wait_until
from lib.storage import SMALL, Disks, check_images, move, pair, start  # noqa: F401: two are fixtures

LATER = "--copy-storage-postcopy"
serial = itertools.count()


def servers(pair):
    """The processes that serve images that stayed behind."""
    return [int(pid) for daemon in (pair.a, pair.b)
            for pid in run("pgrep", "-f", f"qemu-storage-daemon.*{daemon.run_dir}/", check=False).stdout.split()]


def alone(image):
    return "backing-filename" not in json.loads(run("qemu-img", "info", "-U", "--output=json", image).stdout)


@pytest.mark.parametrize("version, options", [("7.2", ()), ("7.2", ("--postcopy-after-precopy",)), ("7.2", ("--parallel", "2")),
                                              ("10.0", ()), ("11.1", ("--postcopy-after-precopy",))])
def test_disks_come_after_the_guest(pair, start, version, options):
    vm, disks = start(version=version)
    job = move(pair, vm, disks, *options, how=LATER)
    assert job["result"]["storage_bytes"] > 0 and job["result"]["storage_ms"] > 0 and job["result"]["pause_ms"] > 0, job["result"]
    assert disks.files("b") == disks.names and all(alone(disks.dirs["b"] / name) for name in disks.names) and servers(pair) == []
    nodes = pair.b.qmp(vm.name, "query-named-block-nodes")
    assert not [node for node in nodes if node["drv"] == "nbd"], nodes
    left = [digest(disks.dirs["a"] / name) for name in disks.names]
    writes_go_on(vm, *disks.devices())
    vm.healthy()
    assert left == [digest(disks.dirs["a"] / name) for name in disks.names]
    move(pair, vm, disks, *options, "--overwrite-storage", how=LATER)
    writes_go_on(vm, *disks.devices())
    vm.healthy()
    check_images(pair.a, vm, disks, "a")


# --- While blocks are fetched ---


class Fetch:
    """A guest that has just come, with a data disk of which nothing has been fetched yet: droverd on b is held before that."""

    def __init__(self, pair, mib=24, small=0):
        """small: the data image goes to a file system of so many MiB."""
        self.pair, self.name = pair, f"lt{next(serial)}"
        self.disks = Disks(pair, self.name, ("qcow2",))
        raw = pair.a.dir / f"{self.name}.raw"
        raw.write_bytes(os.urandom(mib << 20))
        self.image, self.there = pair.a.dir / f"{self.name}.data", pair.b.dir / f"{self.name}.data"
        run("qemu-img", "convert", "-O", "qcow2", raw, self.image)
        self.digest = digest(raw)
        raw.unlink()
        self.vm = drover.Witness(pair.a, self.name, extra=[*self.disks.extra(), "-drive", f"if=virtio,format=qcow2,file={self.image}"],
                                 witness={"disk": "/dev/vda", "diskrate": 50}, **SMALL)
        self.hold = pair.b.run_dir / "hold"
        self.small = None
        if small:
            self.small = pair.b.dir / f"{self.name}.small"
            self.small.mkdir()
            self.there = self.small / "data"
            self.inside("mount", "-t", "tmpfs", "-o", f"size={small}m", "none", self.small)

    def inside(self, *command):
        """As droverd on b sees the file system: `ip netns exec` gave it mounts of its own."""
        return run("nsenter", "-m", "-t", self.pair.b.process.pid, *command)

    def __enter__(self):
        writes_go_on(self.vm, "/dev/vda")
        self.going = self.pair.a.spawn("migrate", self.name, "b", LATER, *self.disks.maps("b"), "--map", f"disk={self.image}:{self.there}")
        wait_until(lambda: self.hold.exists() or self.going.poll() is not None, 60, "the guest to have come")
        assert self.going.poll() is None, self.going.communicate()
        self.vm.daemon = self.pair.b
        self.vm.console.follow(self.vm.serial)
        return self

    def __exit__(self, *_):
        self.hold.unlink(missing_ok=True)
        with contextlib.suppress(ProcessLookupError):
            self.going.kill()
        self.going.communicate()
        self.vm.close()
        if self.small:
            self.inside("umount", "-l", self.small)

    def job(self, host):
        daemon = self.pair.a if host == "a" else self.pair.b
        return next(job for job in daemon.json("jobs") if job["vm"] == self.name)

    def begin(self):
        self.hold.unlink()

    def wait_some(self):
        wait_until(lambda: (self.job("b")["progress"] or {}).get("bytes_done", 0) > 1 << 20, 60, "blocks to be fetched", interval=0.05)

    def wait_end(self, code=0, timeout=120):
        said = self.going.communicate(timeout=timeout)
        assert self.going.returncode == code, said
        wait_until(lambda: self.name not in [one["name"] for one in self.pair.a.json("list")], 10, "the VM to be the other host's")

    def check(self, stopped=False):
        """Both images are whole, and have all that was acknowledged. `stopped`: the numbers of the guest's last word."""
        acked = stopped or acked_at_the_end(self.pair.b, self.vm, "/dev/vda")
        assert alone(self.disks.dirs["b"] / self.disks.names[0]) and alone(self.there) and servers(self.pair) == []
        for image in (self.disks.dirs["b"] / self.disks.names[0], self.there):
            run("qemu-img", "check", image)
        assert DiskImage(as_raw(self.disks.dirs["b"] / self.disks.names[0], "qcow2")).problems(acked["/dev/vda"]) == []
        assert digest(as_raw(self.there, "qcow2")) == self.digest


@pytest.fixture(scope="module")
def held():
    with Pair(env_b={"DROVER_HOLD_AT": "fetch"}) as both:
        yield both
        both.clear()


@pytest.mark.parametrize("seconds", [2, 15])
def test_a_link_that_is_cut(held, seconds):
    with Fetch(held) as fetch:
        held.link.limit(60)
        fetch.begin()
        fetch.wait_some()
        begun = time.monotonic()
        held.link.cut()
        wait_until(lambda: time.monotonic() > begun + seconds, seconds + 5, "the cut to last")
        assert fetch.job("a")["stage"] == "serve" and fetch.job("b")["stage"] == "fetch"
        held.link.heal()
        fetch.wait_end()
        writes_go_on(fetch.vm, "/dev/vda")
        fetch.vm.healthy()
        fetch.check()


@pytest.mark.parametrize("who", ["server", "droverd a", "droverd b", "both"])
def test_a_death(held, who):
    with Fetch(held) as fetch:
        held.link.limit(60)
        fetch.begin()
        fetch.wait_some()
        for name in {"server": (), "droverd a": "a", "droverd b": "b", "both": "ab"}[who]:
            (held.a if name == "a" else held.b).kill()
        if who == "server":
            kill_pid(servers(held)[0])
        for name in {"server": (), "droverd a": "a", "droverd b": "b", "both": "ab"}[who]:
            daemon = held.a if name == "a" else held.b
            daemon.env = {}
            daemon.start()
        held.link.heal()
        wait_until(lambda: fetch.name not in [one["name"] for one in held.a.json("list")], 60, "the source to be let go")
        writes_go_on(fetch.vm, "/dev/vda")
        fetch.vm.healthy()
        fetch.check()
        for daemon in (held.a, held.b):
            if not daemon.env and daemon is held.b:
                daemon.env = {"DROVER_HOLD_AT": "fetch"}
                daemon.restart()


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_guest_that_ends(held, how):
    """What it was told is written is in its images, which qemu-img makes whole."""
    with Fetch(held) as fetch:
        held.link.limit(60)
        fetch.begin()
        fetch.wait_some()
        acked = {"/dev/vda": fetch.vm.console.check().disk("/dev/vda")["acked"]}
        if how == "killed":
            kill_pid(held.b.show(fetch.name)["pid"])
        else:
            held.b.run("stop", fetch.name, "--force")
        held.link.heal()
        fetch.wait_end()
        wait_until(lambda: fetch.job("b")["state"] != "running", 30, "the fetch to end")
        fetch.check(stopped=acked)


def test_no_room(held):
    with Fetch(held, small=40) as fetch:
        fetch.inside("dd", "if=/dev/zero", f"of={fetch.small}/hog", "bs=1M", "count=28")
        fetch.begin()
        wait_until(lambda: any(one["code"] == "disk-pull-waits" for one in fetch.job("b")["findings"]), 60, "the room to be used up")
        writes_go_on(fetch.vm, "/dev/vda")
        fetch.inside("rm", fetch.small / "hog")
        fetch.wait_end()
        writes_go_on(fetch.vm, "/dev/vda")
        fetch.vm.healthy()
        fetch.inside("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", fetch.image, fetch.there)
        assert fetch.inside("ls", fetch.small).stdout.split() == ["data"]


def test_a_link_that_is_away_from_the_beginning(held):
    """Nothing is asked of QEMU then that would have it wait in its main loop: guest and monitor answer."""
    with Fetch(held) as fetch:
        held.link.cut()
        # A silent cut is known after some seconds; before that a command to QEMU may wait for the link.
        wait_until(lambda: "cannot be reached" in (held.a.show(fetch.name)["note"] or ""), 40, "the source to miss the other host")
        fetch.begin()
        wait_until(lambda: any(one["code"] == "disk-pull-waits" for one in fetch.job("b")["findings"]), 30, "drover to tell that it waits")
        assert held.b.qmp(fetch.name, "query-status")["status"] == "running"
        assert fetch.vm.console.check()["errors"] == 0
        held.link.heal()
        fetch.wait_end()
        writes_go_on(fetch.vm, "/dev/vda")
        fetch.vm.healthy()
        fetch.check()


def opened(pid):
    names = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            names.add(Path(os.readlink(f"/proc/{pid}/fd/{fd}")).name)
    return names


def test_an_image_that_has_taken_its_overlays_place_counts(held):
    """droverd dies then, the guest writes on, and its QEMU ends: the overlay, if it is still there, is older."""
    name = f"lt{next(serial)}"
    disks = Disks(held, name, ("raw",))
    vm = drover.Witness(held.a, name, extra=disks.extra(), witness={"disk": "/dev/vda", "diskrate": 50}, **SMALL)
    hold = held.b.run_dir / "hold"
    try:
        writes_go_on(vm, "/dev/vda")
        going = held.a.spawn("migrate", name, "b", LATER, *disks.maps("b"))
        wait_until(lambda: hold.exists() or going.poll() is not None, 60, "the guest to have come")
        vm.daemon = held.b
        vm.console.follow(vm.serial)
        pid = held.b.show(name)["pid"]
        hold.unlink()
        wait_until(lambda: disks.names[0] in (now := opened(pid)) and f"{disks.names[0]}.drover-overlay" not in now, 60,
                   "the guest to be on the image", interval=0.002)
        held.b.kill()
        writes_go_on(vm, "/dev/vda", more=100)
        acked = vm.console.check().disk("/dev/vda")["acked"]
        kill_pid(pid)
        held.b.start(env={"DROVER_HOLD_AT": ""})
        going.communicate(timeout=60)
        wait_until(lambda: name not in [one["name"] for one in held.a.json("list")], 60, "the source to be let go")
        assert DiskImage(disks.dirs["b"] / disks.names[0]).problems(acked) == [] and disks.files("b") == disks.names
    finally:
        hold.unlink(missing_ok=True)
        vm.close()
        held.b.restart()


# --- Before it, and in between ---


def there_or_here(both, vm, disks, job=None):
    """After a death in a move: one copy runs, its writes go on, and its images are whole where it is."""
    wait_until(lambda: [daemon for daemon in (both.a, both.b) for one in daemon.json("list")
                        if one["name"] == vm.name and one["state"] == "running" and not one.get("job")], 90, "the guest to run in peace")
    there = vm.name in [one["name"] for one in both.b.json("list")]
    vm.daemon = both.b if there else both.a
    wait_until(lambda: len(both.a.qemus()) + len(both.b.qemus()) == 1, 30, "one copy to be left")
    assert servers(both) == []
    vm.console.follow(vm.serial)
    writes_go_on(vm, *disks.devices())
    vm.healthy()
    if not there:
        assert disks.files("b") == []
    check_images(vm.daemon, vm, disks, "b" if there else "a")
    return there


@pytest.mark.parametrize("stage, who, options, there", [
    ("start", "a", (), False), ("transfer", "a", (), False), ("switchover", "a", ("--no-postcopy",), None), ("resume", "a", ("--no-postcopy",), True),
    ("switchover", "b", ("--no-postcopy",), None), ("commit", "b", (), True), ("postcopy", "a", ("--postcopy-after-precopy",), None),
    ("transfer", "qemu b", (), False)])
def test_a_death_in_the_move(stage, who, options, there):
    host = who[-1] if stage != "transfer" else "a"
    with Pair(**{f"env_{host}": {"DROVER_HOLD_AT": stage}}) as both:
        name = f"lt{next(serial)}"
        disks = Disks(both, name)
        vm = drover.Witness(both.a, name, extra=disks.extra(), witness={"disk": "/dev/vda,/dev/vdb", "diskrate": 50}, **SMALL)
        try:
            writes_go_on(vm, *disks.devices())
            going = both.a.spawn("migrate", name, "b", LATER, *options, *disks.maps("b"))
            daemon = both.a if host == "a" else both.b
            wait_until(lambda: (daemon.run_dir / "hold").exists() or going.poll() is not None, 60, "the move to come to its stage")
            assert going.poll() is None, going.communicate()
            if who == "qemu b":
                kill_pid(both.b.qemus()[0])
                (daemon.run_dir / "hold").unlink()
            else:
                daemon.kill()
                (daemon.run_dir / "hold").unlink()
                daemon.env = {}
                daemon.start()
            going.communicate(timeout=120)
            assert there_or_here(both, vm, disks) == (there if there is not None else vm.daemon is both.b)
        finally:
            vm.close()


def test_a_cancel_leaves_nothing(pair, start):
    vm, disks = start()
    pair.link.limit(60)
    going = pair.a.spawn("migrate", vm.name, "b", LATER, *disks.maps("b"))
    wait_until(lambda: pair.job(vm)["stage"] == "transfer", 60, "the guest's memory to be under way", interval=0.05)
    pair.a.run("cancel", pair.job(vm)["id"])
    assert going.wait(timeout=60) == 1
    pair.link.heal()
    wait_until(lambda: pair.b.qemus() == [], 60, "the other host to give it up")
    assert disks.files("b") == [] and servers(pair) == []
    writes_go_on(vm, *disks.devices())
    vm.healthy()


# --- Other disks ---


def test_a_chain_and_a_blockdev_and_an_encrypted_image(pair):
    """All of a chain comes into one image; a raw -blockdev stands on an overlay meanwhile, its node's name stays in use; qcow2 with LUKS."""
    name = f"lt{next(serial)}"
    secret = pair.a.dir / f"{name}.secret"
    secret.write_text("swordfish")
    disks = Disks(pair, name, ("qcow2", "raw"))
    chained, plain = (disks.dirs["a"] / one for one in disks.names)
    base, crypt = pair.a.dir / f"{name}.base", disks.dirs["a"] / "crypt.qcow2"
    new_image(base, "raw", 16)
    with open(base, "r+b") as image:
        image.seek(8 << 20)
        image.write(b"golden" * 1000)
    chained.unlink()
    new_image(chained, "qcow2", backing=(base, "raw"))
    wait_until(lambda: run("qemu-img", "create", "-q", "--object", f"secret,id=s0,file={secret}", "-f", "qcow2", "-o",
                           "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10", crypt, "32M", check=False).returncode == 0, 30,
               "qemu-img to make the image: it measures CPU time, which fails now and then")
    extra = ["-object", f"secret,id=s0,file={secret}",
             "-blockdev", f"driver=file,node-name=f0,filename={chained}", "-blockdev", "driver=qcow2,node-name=n0,file=f0",
             "-device", "virtio-blk-pci,drive=n0,id=d0,addr=10",
             "-blockdev", f"driver=file,node-name=f1,filename={plain}", "-blockdev", "driver=raw,node-name=n1,file=f1",
             "-device", "virtio-blk-pci,drive=n1,id=d1,addr=11",
             "-drive", f"if=none,id=h2,format=qcow2,file={crypt},encrypt.key-secret=s0", "-device", "virtio-blk-pci,drive=h2,id=d2,addr=12"]
    vm = drover.Witness(pair.a, name, extra=extra, witness={"disk": "/dev/vda,/dev/vdb,/dev/vdc", "diskrate": 50}, **SMALL)
    try:
        writes_go_on(vm, "/dev/vda", "/dev/vdb", "/dev/vdc")
        disks.names.append("crypt.qcow2")
        move(pair, vm, disks, how=LATER)
        writes_go_on(vm, "/dev/vda", "/dev/vdb", "/dev/vdc")
        vm.healthy()
        assert disks.files("b") == sorted(disks.names)
        shown = {disk["name"]: disk for disk in pair.b.json("disk", "list", vm.name)}
        assert [shown[disk]["format"] for disk in ("d0", "d1", "d2")] == ["qcow2", "raw", "qcow2"] and shown["d2"]["encrypted"], shown
        assert not pair.b.json("upgrade", vm.name, "--check")["findings"] or pair.b.json("upgrade", vm.name, "--check")["ok"]
        acked = acked_at_the_end(pair.b, vm, "/dev/vda", "/dev/vdb", "/dev/vdc")
        there = disks.dirs["b"]
        assert alone(there / disks.names[0]) and alone(there / "crypt.qcow2")
        raw = as_raw(there / disks.names[0], "qcow2")
        assert DiskImage(raw).problems(acked["/dev/vda"]) == []
        assert raw.read_bytes()[8 << 20:][:6000] == b"golden" * 1000
        assert DiskImage(there / disks.names[1]).problems(acked["/dev/vdb"]) == []
        clear = there / "crypt.clear"
        run("qemu-img", "convert", "--object", f"secret,id=s0,file={secret}", "--image-opts",
            f"driver=qcow2,encrypt.key-secret=s0,file.filename={there / 'crypt.qcow2'}", "-O", "raw", clear)
        assert DiskImage(clear).problems(acked["/dev/vdc"]) == []
    finally:
        vm.close()


def test_bad_input(pair, start):
    vm, disks = start()
    assert "not two of these" in pair.a.refused("migrate", vm.name, "b", "--copy-storage-all", LATER, code=2)["message"]
    overlay = disks.dirs["b"] / f"{disks.names[1]}.drover-overlay"
    overlay.write_bytes(b"somebody else's")
    refused = pair.a.refused("migrate", vm.name, "b", LATER, *disks.maps("b"))
    assert str(overlay) in refused["message"], refused
    assert overlay.read_bytes() == b"somebody else's" and disks.files("b") == [overlay.name]
    assert pair.b.qemus() == [] and servers(pair) == []
    writes_go_on(vm, *disks.devices())


def test_a_command_line_that_says_what_is_below(pair):
    """backing= there would hide the overlay's backing image, and the guest would read zeros."""
    name = f"lt{next(serial)}"
    disks = Disks(pair, name, ("qcow2",))
    extra = ["-drive", f"if=virtio,format=qcow2,file={disks.dirs['a'] / disks.names[0]},backing="]
    vm = drover.Witness(pair.a, name, extra=extra, witness={"disk": "/dev/vda", "diskrate": 50}, **SMALL)
    try:
        writes_go_on(vm, "/dev/vda")
        job = pair.a.run("migrate", vm.name, "b", LATER, *disks.maps("b"), "--json", check=False)
        if job.returncode == 0:  # the word was left out, as it says nothing that the image's header does not
            pair.moved(vm)
            vm.console.follow(vm.serial)
            check_images(pair.b, vm, disks, "b")
        else:
            assert "backing=" in job.stdout and disks.files("b") == []
            writes_go_on(vm, "/dev/vda")
    finally:
        vm.close()
        pair.clear()
