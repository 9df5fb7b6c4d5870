# SPDX-License-Identifier: LGPL-2.1-or-later
"""Snapshots: all disks at one point in time, chains that qemu-img reads, merges both ways, file systems frozen by the real agent."""

import itertools
import json
import time

import pytest

from lib import drover, guest
from lib.disks import acked_at_the_end, as_raw, digest, new_image, writes_go_on
from lib.guest import DiskImage
from lib.pair import Pair
from lib.procs import run, wait_until

SMALL = {"ram": "131080k", "mem": 16, "rate": 20}
serial = itertools.count()


@pytest.fixture(scope="module")
def daemon():
    with drover.Daemon() as one:
        yield one


class Guest:
    """A witness that writes to a qcow2 of 16 MiB (-drive) and a raw of 24 MiB (-blockdev)."""

    def __init__(self, daemon, version="7.2", extra=(), witness=None):
        self.daemon, self.name = daemon, f"sn{next(serial)}"
        self.dir = daemon.dir / self.name
        self.dir.mkdir()
        new_image(self.dir / "one.qcow2", "qcow2", 16)
        new_image(self.dir / "two.raw", "raw", 24)
        self.vm = drover.Witness(daemon, self.name, version=version, witness={"disk": "/dev/vda,/dev/vdb", "diskrate": 50, **(witness or {})},
                                 extra=["-drive", f"if=none,id=one,format=qcow2,file={self.dir}/one.qcow2", "-device",
                                        "virtio-blk-pci,drive=one,id=d1,addr=10", "-blockdev",
                                        f"driver=raw,node-name=n2,file.driver=file,file.filename={self.dir}/two.raw", "-device",
                                        "virtio-blk-pci,drive=n2,id=d2,addr=11", *extra], **SMALL)
        self.go_on()

    def go_on(self):
        writes_go_on(self.vm, "/dev/vda", "/dev/vdb")

    def acked(self):
        status = self.vm.console.check()
        return [status.disk(path)["acked"] for path in ("/dev/vda", "/dev/vdb")]

    def snapshot(self, *args):
        return self.daemon.json("snapshot", *args[:1], self.name, *args[1:])

    def files(self):
        return sorted(path.name for path in self.dir.iterdir() if path.suffix in (".qcow2", ".raw") and not path.name.endswith(".qcow2.raw"))

    def chain(self, disk):
        shown = self.daemon.json("disk", "show", self.name, disk)
        return [image["file"].rsplit("/", 1)[1] for image in shown["chain"]]

    def end(self, *tops):
        """Stops it: each disk's top image has all that was acknowledged, and its chain is sound."""
        acked = acked_at_the_end(self.daemon, self.vm, "/dev/vda", "/dev/vdb")
        for top, device in zip(tops, ("/dev/vda", "/dev/vdb")):
            image = self.dir / top
            form = "raw" if top.endswith(".raw") else "qcow2"
            assert DiskImage(as_raw(image, form)).problems(acked[device]) == [], top
            for one in json.loads(run("qemu-img", "info", "--output=json", "--backing-chain", image).stdout):
                if one["format"] == "qcow2":
                    run("qemu-img", "check", one["filename"])
                    assert ("backing-filename" in one) == ("backing-filename-format" in one), one
            run("qemu-img", "map", "--output=json", image)


@pytest.fixture
def start(daemon):
    started = []

    def start_one(*args, on=daemon, **options):
        started.append(Guest(on, *args, **options))
        return started[-1]

    yield start_one
    for one in started:
        one.vm.close()


# --- One point in time ---


@pytest.mark.parametrize("version", ["7.2", "11.1"])
def test_a_snapshot_is_all_disks_at_one_moment(start, version):
    one = start(version=version)
    before = one.acked()
    job = one.snapshot("create", "--name", "s1", "--description", "before the update")
    after = one.acked()
    assert job["state"] == "succeeded" and job["result"]["name"] == "s1" and not job["result"]["quiesced"]
    one.go_on()
    for image, low, high in (("one.qcow2", before[0], after[0]), ("two.raw", before[1], after[1])):
        form = "raw" if image.endswith(".raw") else "qcow2"
        frozen = DiskImage(as_raw(one.dir / image, form))
        assert low <= frozen.last <= high + 1 and frozen.problems(frozen.last) == [], (image, low, frozen.last, high)
    digests = [digest(one.dir / image) for image in ("one.qcow2", "two.raw")]
    shown, = one.snapshot("list")
    assert shown["name"] == "s1" and shown["description"] == "before the update"
    assert {(disk["disk"], disk["base"], disk["overlay"]) for disk in shown["disks"]} == {
        ("d1", f"{one.dir}/one.qcow2", f"{one.dir}/one.s1.qcow2"), ("d2", f"{one.dir}/two.raw", f"{one.dir}/two.s1.qcow2")}
    one.go_on()
    assert digests == [digest(one.dir / image) for image in ("one.qcow2", "two.raw")]
    one.end("one.s1.qcow2", "two.s1.qcow2")


def test_chains_go_over_upgrades_and_are_merged(start):
    one = start()
    for name in ("s1", "s2", "s3"):
        one.snapshot("create", "--name", name)
        one.go_on()
    assert one.chain("d1") == ["one.s3.qcow2", "one.s2.qcow2", "one.s1.qcow2", "one.qcow2"]
    one.vm.upgrade("10.0")
    one.go_on()
    assert one.chain("d2") == ["two.s3.qcow2", "two.s2.qcow2", "two.s1.qcow2", "two.raw"]
    one.snapshot("merge", "s2")  # in the middle
    assert one.chain("d1") == ["one.s3.qcow2", "one.s1.qcow2", "one.qcow2"]
    assert not (one.dir / "one.s2.qcow2").exists()
    one.go_on()
    one.snapshot("merge", "s3")  # the active one, whose base is s1's overlay by now
    assert one.chain("d1") == ["one.s1.qcow2", "one.qcow2"] and [s["name"] for s in one.snapshot("list")] == ["s1"]
    one.go_on()
    base = digest(one.dir / "two.raw")
    one.snapshot("merge", "s1", "--up", "--disk", "d2")
    assert one.chain("d2") == ["two.s1.qcow2"] and one.chain("d1") == ["one.s1.qcow2", "one.qcow2"]
    assert digest(one.dir / "two.raw") == base
    one.vm.upgrade("7.2")
    one.go_on()
    one.snapshot("merge", "s1", "--disk", "d1")
    assert one.chain("d1") == ["one.qcow2"]
    one.go_on()
    assert one.files() == ["one.qcow2", "two.raw", "two.s1.qcow2"]
    error = one.daemon.refused("snapshot", "delete", one.name, "s1")
    assert "--metadata" in error["remedy"], error
    assert one.snapshot("delete", "s1", "--metadata")["name"] == "s1"
    assert one.snapshot("list") == []
    one.end("one.qcow2", "two.s1.qcow2")


def test_some_disks_and_files_of_ones_own(start):
    one = start()
    overlay = one.dir / "elsewhere.qcow2"
    one.snapshot("create", "--name", "s1", "--disk", f"d2={overlay}")
    assert one.chain("d2") == ["elsewhere.qcow2", "two.raw"] and one.chain("d1") == ["one.qcow2"]
    one.go_on()
    one.snapshot("delete", "s1")
    assert one.chain("d2") == ["two.raw"] and not overlay.exists() and one.snapshot("list") == []
    one.end("one.qcow2", "two.raw")


def test_a_chain_moves_to_another_host_on_shared_storage():
    with Pair() as pair:
        one = Guest(pair.a)
        try:
            one.snapshot("create", "--name", "s1")
            one.go_on()
            pair.migrate(one.vm)
            one.vm.console.follow(one.vm.serial)
            one.daemon = pair.b
            one.go_on()
            assert one.chain("d1") == ["one.s1.qcow2", "one.qcow2"]
            assert [s["name"] for s in one.snapshot("list")] == ["s1"]
            one.snapshot("merge", "s1")
            one.go_on()
            one.end("one.qcow2", "two.raw")
        finally:
            one.vm.close()


# --- The agent ---


@pytest.fixture
def frozen_guest(daemon):
    """A guest with an ext4 file system that it writes to, and the agent."""
    started = []

    def start(env_daemon=None):
        on = env_daemon or daemon
        name = f"sn{next(serial)}"
        image = guest.new_fs(on.dir / f"{name}.img")
        vm = drover.Witness(on, name, witness={"fs": "/dev/vda", "agent": 1}, ram="262152k", mem=16, rate=20,
                            extra=["-drive", f"if=none,id=d0,format=raw,file={image}", "-device", "virtio-blk-pci,drive=d0,id=fs",
                                   *guest.agent_args(on.dir / f"{name}.qga")])
        vm.image, vm.qga = image, on.dir / f"{name}.qga"
        started.append(vm)
        with guest.Agent(vm.qga):
            pass
        wait_until(lambda: vm.console.check()["fs"]["acked"] > 10, 60, "the guest to write to its file system")
        return vm

    yield start
    for vm in started:
        vm.close()


def fs_goes_on(vm):
    before = vm.console.check()["fs"]["acked"]
    wait_until(lambda: vm.console.check()["fs"]["acked"] > before + 5, 60, "the file system to go on")


def test_file_systems_are_frozen_meanwhile(daemon, frozen_guest):
    vm = frozen_guest()
    before = vm.console.check()["fs"]["acked"]
    job = daemon.json("snapshot", "create", vm.name, "--quiesce", "--name", "q1")
    after = vm.console.check()["fs"]["acked"]
    assert job["result"]["quiesced"] and job["result"]["frozen"] == 1, job["result"]
    fs_goes_on(vm)
    assert guest.fs_unclean(vm.image) == []
    image = guest.FsImage(vm.image, recover=False)
    assert before <= image.last <= after + 1 and image.problems(before) == []
    # Without the agent it is as after a power cut: the journal has to be gone through.
    daemon.json("snapshot", "create", vm.name, "--name", "q2")
    fs_goes_on(vm)
    assert guest.fs_unclean(as_raw(daemon.dir / f"{vm.name}.q1.qcow2", "qcow2")) != []
    vm.upgrade("10.0")
    assert daemon.json("snapshot", "create", vm.name, "--quiesce", "--name", "q3")["result"]["quiesced"]
    fs_goes_on(vm)


def test_without_an_agent_it_is_refused(daemon, start):
    one = start(extra=guest.agent_args(daemon.dir / "idle.qga"))
    error = daemon.refused("snapshot", "create", one.name, "--quiesce")
    assert error["code"] == "unsupported" and "no agent runs in the guest" in error["message"] and "--quiesce" in error["remedy"]
    two = start()
    error = daemon.refused("snapshot", "create", two.name, "--quiesce")
    assert "no guest agent's port" in error["message"]
    assert one.files() == two.files() == ["one.qcow2", "two.raw"]


@pytest.mark.parametrize("stage", ["freeze", "switch"])
def test_it_is_thawed_whatever_happens_to_droverd(frozen_guest, stage):
    with drover.Daemon(env={"DROVER_HOLD_AT": stage}) as held:
        vm = frozen_guest(held)
        going = held.spawn("snapshot", "create", vm.name, "--quiesce", "--name", "q1")
        wait_until(lambda: (held.run_dir / "hold").exists(), 60, "the snapshot to come to its stage")
        held.kill()
        (held.run_dir / "hold").unlink()
        held.env = {}
        held.start()
        assert going.wait(timeout=90) == 1
        fs_goes_on(vm)
        assert held.json("snapshot", "list", vm.name) == []
        assert not (held.dir / f"{vm.name}.q1.qcow2").exists()
        assert held.json("snapshot", "create", vm.name, "--quiesce", "--name", "q1")["result"]["quiesced"]
        fs_goes_on(vm)
        vm.close()


# --- droverd's death ---


@pytest.mark.parametrize("verb, stage", [("create", "create"), ("create", "switch"), ("merge", "merge"), ("merge", "pivot")])
def test_droverd_dies_at_a_stage(verb, stage):
    with drover.Daemon() as one_daemon:
        one = Guest(one_daemon)
        try:
            if verb == "merge":
                one.snapshot("create", "--name", "s1")
                one.go_on()
            one_daemon.kill()
            one_daemon.env = {"DROVER_HOLD_AT": stage}
            one_daemon.start()
            going = one_daemon.spawn("snapshot", verb, one.name, *(["--name", "s1"] if verb == "create" else ["s1"]))
            wait_until(lambda: (one_daemon.run_dir / "hold").exists(), 60, "the job to come to its stage")
            one_daemon.kill()
            (one_daemon.run_dir / "hold").unlink()
            one_daemon.env = {}
            one_daemon.start()
            going.wait(timeout=90)
            job = one_daemon.json("jobs")[0]
            assert job["state"] in ("succeeded", "failed"), job
            one.go_on()
            if verb == "create":
                assert job["state"] == "failed" and one.snapshot("list") == [] and one.files() == ["one.qcow2", "two.raw"], job
                one.snapshot("create", "--name", "s1")
                one.end("one.s1.qcow2", "two.s1.qcow2")
            else:
                if job["state"] == "failed":
                    one.snapshot("merge", "s1")
                assert one.files() == ["one.qcow2", "two.raw"] and one.snapshot("list") == []
                one.end("one.qcow2", "two.raw")
        finally:
            one.vm.close()


def test_a_merge_that_is_aborted(start, daemon):
    one = start()
    one.snapshot("create", "--name", "s1")
    one.vm.console.command("diskrate 0")
    one.go_on()
    going = daemon.spawn("snapshot", "merge", one.name, "s1", "--bandwidth", "1")
    wait_until(lambda: daemon.json("jobs")[0]["stage"] == "merge" and daemon.json("jobs")[0]["progress"], 30, "the merge to begin")
    daemon.run("disk", "abort", one.name)
    assert going.wait(timeout=60) == 1
    assert daemon.json("jobs")[0]["state"] == "cancelled"
    assert one.snapshot("list")[0]["spoiled"]
    one.vm.console.command("diskrate 50")
    one.go_on()
    assert one.chain("d1") == ["one.s1.qcow2", "one.qcow2"]
    one.snapshot("merge", "s1")
    one.end("one.qcow2", "two.raw")


# --- Bad input ---


def test_bad_input(start, daemon):
    one = start(extra=["-drive", "if=none,id=cd,media=cdrom", "-device", "ide-cd,drive=cd,id=d3"])
    refused = lambda *args, **options: daemon.refused("snapshot", *args[:1], one.name, *args[1:], **options)  # noqa: E731
    assert "no disk 'nope'" in refused("create", "--disk", "nope")["message"]
    assert "no medium" in refused("create", "--disk", "d3")["message"]
    assert "named twice" in refused("create", "--disk", "d1", "--disk", "one", code=1)["message"]
    refused("create", "--name", "../x", code=2)
    assert "no directory" in refused("create", "--disk", "d1=/nonexistent/x.qcow2")["message"]
    (one.dir / "one.taken.qcow2").write_bytes(b"mine")
    assert "there already" in refused("create", "--name", "taken")["message"]
    assert (one.dir / "one.taken.qcow2").read_bytes() == b"mine"
    assert not (one.dir / "two.taken.qcow2").exists()
    (one.dir / "one.taken.qcow2").unlink()
    one.snapshot("create", "--name", "s1")
    assert refused("create", "--name", "s1")["code"] == "exists"
    assert refused("merge", "s9")["code"] == "not-found"
    assert refused("show", "s9")["code"] == "not-found"
    assert "no such disk" in refused("merge", "s1", "--disk", "nope")["message"]
    daemon.refused("snapshot", "create", "nobody")
    small = one.dir / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "none", small)
    try:
        (small / "fill").write_bytes(b"x" * 65536)
        error = refused("create", "--name", "s2", "--disk", f"d1={small}/x.qcow2")
        assert "cannot make the overlay" in error["message"], error
        assert not (small / "x.qcow2").exists()
    finally:
        run("umount", small)
    one.go_on()
    assert [image for image in one.chain("d1")] == ["one.s1.qcow2", "one.qcow2"]
    one.end("one.s1.qcow2", "two.s1.qcow2")
