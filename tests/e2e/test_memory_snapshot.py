# SPDX-License-Identifier: LGPL-2.1-or-later
"""Snapshots with memory, and going back to a snapshot: what a running guest finds in its memory and on its disks."""

import itertools
import json
import os
import shutil

import pytest

from lib import drover
from lib.disks import acked_at_the_end, as_raw, digest, new_image, writes_go_on
from lib.guest import DiskImage
from lib.procs import kill_pid, run, wait_until

RAM = {"ram": "131080k", "mem": 16, "rate": 20}
DISKS = ("/dev/vda", "/dev/vdb")
serial = itertools.count()


@pytest.fixture(scope="module")
def daemon():
    with drover.Daemon() as one:
        yield one


class Guest:
    """A witness that dirties memory and writes to a qcow2 (-drive) and a raw (-blockdev)."""

    def __init__(self, daemon, version="7.2", where=None, options=(), extra=(), **witness):
        self.daemon, self.name = daemon, f"ms{next(serial)}"
        self.dir = where or daemon.dir / self.name
        self.dir.mkdir(exist_ok=True)
        self.log = daemon.state_dir / "vms" / self.name / "qemu.log"
        new_image(self.dir / "one.qcow2", "qcow2", 16)
        new_image(self.dir / "two.raw", "raw", 24)
        self.vm = drover.Witness(daemon, self.name, version=version, options=options,
                                 witness={"disk": ",".join(DISKS), "diskrate": 50},
                                 extra=["-drive", f"if=none,id=one,format=qcow2,file={self.dir}/one.qcow2", "-device",
                                        "virtio-blk-pci,drive=one,id=d1,addr=10", "-blockdev",
                                        f"driver=raw,node-name=n2,file.driver=file,file.filename={self.dir}/two.raw", "-device",
                                        "virtio-blk-pci,drive=n2,id=d2,addr=11", *extra], **{**RAM, **witness})
        self.go_on()

    def go_on(self):
        writes_go_on(self.vm, *DISKS)

    def now(self):
        """Passes over the memory and numbers on the disks."""
        status = self.vm.console.check(bootid=self.vm.bootid)
        return (status["passes"], *(status.disk(path)["acked"] for path in DISKS))

    def far_on(self):
        before = self.now()
        self.go_on()
        self.vm.console.wait_passes(2)
        return before

    def snapshot(self, verb, *args):
        return self.daemon.json("snapshot", verb, self.name, *args)

    def refused(self, verb, *args, **options):
        return self.daemon.refused("snapshot", verb, self.name, *args, **options)

    def revert(self, snapshot, *args):
        job = self.snapshot("revert", snapshot, *args)
        self.daemon.pids |= {job["result"]["pid_before"], job["result"]["pid_after"]}
        self.follow()
        return job["result"]

    def follow(self):
        self.vm.console.follow(self.vm.serial)

    def is_back(self, then, far):
        """The guest is the one of that instant, not the one that has gone far on; and it goes on."""
        now = self.now()
        assert all(a <= b < c for a, b, c in zip(then, now, far)), (then, now, far)
        self.go_on()
        self.vm.console.wait_passes(1)

    def chain(self, disk):
        return [image["file"].rsplit("/", 1)[1] for image in self.daemon.json("disk", "show", self.name, disk)["chain"]]

    def files(self):
        return sorted(path.name for path in self.dir.iterdir() if path.suffix in (".qcow2", ".raw", ".memory") and ".qcow2.raw" not in path.name)

    def digests(self):
        return [digest(self.dir / name) for name in ("one.qcow2", "two.raw")]

    def image_names(self):
        return [self.chain(disk)[0] for disk in ("d1", "d2")]

    def end(self):
        """Stops it: each disk's top image has all that was acknowledged, and its chain is sound."""
        tops = self.image_names()
        acked = acked_at_the_end(self.daemon, self.vm, *DISKS)
        for top, device in zip(tops, DISKS):
            image = self.dir / top
            form = "raw" if top.endswith(".raw") else "qcow2"
            assert DiskImage(as_raw(image, form)).problems(acked[device]) == [], top
            for one in json.loads(run("qemu-img", "info", "--output=json", "--backing-chain", image).stdout):
                if one["format"] == "qcow2":
                    run("qemu-img", "check", one["filename"])

    def one_qemu(self):
        """Exactly one copy is left."""
        pid = self.daemon.show(self.name)["pid"]
        assert [one for one in self.daemon.qemus() if f"/vms/{self.name}/".encode() in open(f"/proc/{one}/cmdline", "rb").read()] == [pid]


@pytest.fixture
def start(daemon):
    started = []

    def start_one(*args, on=daemon, **options):
        started.append(Guest(on, *args, **options))
        return started[-1]

    yield start_one
    for one in started:
        one.vm.close()


# --- Back to that instant ---


@pytest.mark.parametrize("version, other", [("7.2", "10.0"), ("10.0", "7.2")])
def test_back_to_that_instant_again_and_again(start, daemon, version, other):
    one = start(version=version)
    before = one.now()
    job = one.snapshot("create", "--name", "m1", "--memory")
    memory = one.dir / f"{one.name}.m1.memory"
    told = job["result"]["memory"]
    assert told["file"] == str(memory) and told["bytes"] == memory.stat().st_size > 16 << 20, told
    assert memory.stat().st_mode & 0o777 == 0o600 and 0 < told["pause_ms"] < 2000, told
    then = before
    digests = one.digests()
    far = one.far_on() and one.now()
    pid = one.vm.pid
    result = one.revert("m1")
    assert result["memory"] and result["pid_before"] == pid != result["pid_after"] == one.vm.pid
    assert result["kept"] == [f"{one.dir}/one.m1.qcow2", f"{one.dir}/two.m1.qcow2"] and result["removed"] == [], result
    one.is_back(then, far)
    one.one_qemu()
    assert one.chain("d1") == ["one.m1-2.qcow2", "one.qcow2"] and one.chain("d2") == ["two.m1-2.qcow2", "two.raw"]
    # Under another QEMU, and with what is written thrown away.
    one.vm.upgrade(other)
    far = one.far_on() and one.now()
    result = one.revert("m1", "--discard")
    assert result["kept"] == [] and len(result["removed"]) == 2, result
    one.is_back(then, far)
    assert one.files() == sorted(["one.m1.qcow2", "two.m1.qcow2", "one.m1-3.qcow2", "two.m1-3.qcow2", "one.qcow2", "two.raw", memory.name])
    assert one.digests() == digests
    shown, = one.snapshot("list")
    assert shown["memory"]["bytes"] == told["bytes"] and [disk["overlay"] for disk in shown["disks"]] == [
        f"{one.dir}/one.m1-3.qcow2", f"{one.dir}/two.m1-3.qcow2"]
    table = daemon.run("snapshot", "list", one.name).stdout
    assert "MEMORY" in table and " MB " in table and str(memory) in daemon.run("snapshot", "show", one.name, "m1").stdout
    # Its console, its upgrades and its record are as ever.
    one.vm.upgrade(version)
    one.far_on()
    one.refused("merge", "m1")
    one.snapshot("delete", "m1")
    assert one.chain("d1") == ["one.qcow2"] and not memory.exists() and one.snapshot("list") == []
    one.go_on()
    one.end()


def test_a_tree_of_snapshots(start):
    one = start()
    own = one.dir / "elsewhere.memory"
    begun = one.now()
    one.snapshot("create", "--name", "s1")  # without memory
    one.far_on()
    then = one.now()
    one.snapshot("create", "--name", "m2", "--memory", "--memory-file", own)
    one.vm.upgrade("10.0")
    far = one.far_on() and one.now()
    assert own.exists()
    # From the disks alone: a boot.
    bootid = one.vm.bootid
    result = one.revert("s1")
    assert not result["memory"] and result["kept"] == [f"{one.dir}/one.m2.qcow2", f"{one.dir}/two.m2.qcow2"], result
    one.vm.console.wait_ready()
    one.vm.bootid = one.vm.console.status()["bootid"]
    assert one.vm.bootid != bootid
    one.go_on()
    found = [disk["found"] for disk in one.vm.console.check()["disks"]]
    assert all(begun[n + 1] <= found[n] <= then[n + 1] for n in (0, 1)), (begun, found, then)
    one.go_on()
    assert one.chain("d1") == ["one.s1-2.qcow2", "one.qcow2"]
    # m2 stands on what s1's merge would change.
    error = one.refused("merge", "s1")
    assert "snapshot 'm2' stands on" in error["message"] and "--metadata" in error["remedy"], error
    assert "does not stand on" in one.refused("delete", "m2")["message"]
    # And forward again, to a later instant of another branch.
    one.revert("m2", "--discard")
    one.vm.bootid = bootid
    one.is_back(then, far)
    assert one.chain("d1") == ["one.m2-2.qcow2", "one.s1.qcow2", "one.qcow2"]
    assert not (one.dir / "one.s1-2.qcow2").exists()
    # The chain below it becomes shorter: it is still the same instant.
    one.snapshot("merge", "s1")
    assert one.chain("d1") == ["one.m2-2.qcow2", "one.qcow2"] and one.chain("d2") == ["two.m2-2.qcow2", "two.raw"]
    record, = one.snapshot("list")
    assert [(disk["base"].rsplit("/", 1)[1], disk["base_format"], disk["chain"]) for disk in record["disks"]] == [
        ("one.qcow2", "qcow2", []), ("two.raw", "raw", [])]
    far = one.far_on() and one.now()
    one.revert("m2")
    one.is_back(then, far)
    one.snapshot("merge", "m2", "--up", "--disk", "d1")
    assert own.exists() and one.chain("d1") == ["one.m2-3.qcow2"] and one.chain("d2") == ["two.m2-3.qcow2", "two.raw"]
    one.end()


# --- A guest that writes faster than the disk, one with private memory ---


def test_a_guest_that_writes_too_fast_is_stopped_for_the_rest(start):
    one = start(ram="262152k", mem=128, rate=4000)
    then = one.now()
    memory = one.snapshot("create", "--name", "m1", "--memory")["result"]["memory"]
    assert memory["bytes"] < 2 << 30
    far = one.far_on() and one.now()
    one.revert("m1", "--discard")
    one.is_back(then, far)


def test_private_memory(start):
    one = start(options=("--memory", "private"))
    then = one.now()
    one.snapshot("create", "--name", "m1", "--memory")
    far = one.far_on() and one.now()
    one.revert("m1")
    one.is_back(then, far)


# --- What goes wrong ---


def test_no_room_after_all(start, daemon):
    """It runs out in the middle: the guest runs on, on the disks that it had."""
    small = daemon.dir / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1g", "none", small)
    try:
        one = start(where=None)
        going = daemon.spawn("snapshot", "create", one.name, "--name", "m1", "--memory", "--memory-file", small / "m")
        # Taken by somebody else once preflight has looked.
        wait_until(lambda: (small / "m").exists() or going.poll() is not None, 30, "the save to begin", interval=0.001)
        run("mount", "-o", "remount,size=20m", small, check=False)
        said = going.communicate(timeout=120)
        job = daemon.json("jobs")[0]
        if going.returncode == 0:
            pytest.skip("the memory was saved before the room was taken away")
        assert job["state"] == "failed" and "memory" in said[1], said
        one.go_on()
        assert not (small / "m").exists() and one.files() == ["one.qcow2", "two.raw"] and one.snapshot("list") == []
        assert one.chain("d1") == ["one.qcow2"]
        one.snapshot("create", "--name", "m1", "--memory")
        one.revert("m1")
        one.end()
    finally:
        run("umount", small)


def test_bad_input(start, daemon):
    one = start(extra=["-device", "pcie-root-port,id=rp0,chassis=1,slot=1,addr=4"])
    assert "exclude each other" in one.refused("create", "--memory", "--quiesce", code=2)["message"]
    (one.dir / "taken").write_bytes(b"mine")
    assert "is there already" in one.refused("create", "--memory", "--memory-file", one.dir / "taken")["message"]
    assert (one.dir / "taken").read_bytes() == b"mine"
    assert "no directory" in one.refused("create", "--memory", "--memory-file", "/nonexistent/x")["message"]
    assert "not in the snapshot" in one.refused("create", "--memory", "--disk", "d1")["message"]
    small = one.dir / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8m", "none", small)
    try:
        assert "MiB left" in one.refused("create", "--memory", "--memory-file", small / "m")["message"]
        assert list(small.iterdir()) == []
    finally:
        run("umount", small)
    daemon.run("pause", one.name)
    assert "paused guest" in one.refused("create", "--memory")["message"]
    daemon.run("resume", one.name)
    assert one.files() == ["one.qcow2", "two.raw"]
    assert one.refused("revert", "m9")["code"] == "not-found"
    daemon.refused("snapshot", "revert", "nobody", "m1")
    one.snapshot("create", "--name", "m1", "--memory")
    then, memory = one.now(), one.dir / f"{one.name}.m1.memory"
    # Its memory: gone, too short, right in size and nothing else.
    aside = one.dir / "aside"
    memory.rename(aside)
    assert "cannot be read" in one.refused("revert", "m1")["message"]
    memory.write_bytes(b"x")
    assert "was changed" in one.refused("revert", "m1")["message"]
    memory.write_bytes(b"x" * aside.stat().st_size)
    error = one.refused("revert", "m1")
    assert "cannot load the memory" in error["message"], error
    one.go_on()
    shutil.copy(aside, memory)
    with open(memory, "r+b") as file:  # only the end is missing
        file.seek(-100000, os.SEEK_END)
        file.write(bytes(100000))
    assert "cannot load the memory" in one.refused("revert", "m1")["message"]
    one.follow()
    one.go_on()
    os.replace(aside, memory)
    # Its images: changed, gone.
    image, times = one.dir / "one.qcow2", (one.dir / "one.qcow2").stat()
    os.utime(image)
    assert "written to or replaced" in one.refused("revert", "m1")["message"]
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    image.rename(aside)
    assert "cannot be read" in one.refused("revert", "m1")["message"]
    aside.rename(image)
    # Its machine: another one.
    daemon.qmp(one.name, "device_add", {"driver": "virtio-rng-pci", "id": "rng9", "bus": "rp0"})
    assert "another one than at snapshot" in one.refused("revert", "m1")["message"]
    daemon.qmp(one.name, "device_del", {"id": "rng9"})
    wait_until(lambda: not any(item["name"] == "rng9" for item in daemon.qmp(one.name, "qom-list", {"path": "/machine/peripheral"})), 30,
               "the device to be unplugged")
    # Another job.
    going = daemon.spawn("disk", "copy", one.name, "d1", one.dir / "copy.qcow2")
    wait_until(lambda: daemon.json("jobs")[0]["stage"] == "ready", 30, "the copy to be ready")
    assert one.refused("revert", "m1")["code"] == "busy"
    daemon.run("disk", "abort", one.name)
    going.wait(timeout=30)
    far = one.far_on() and one.now()
    assert [path for path in one.files() if "-2" in path] == []
    one.revert("m1", "--discard")
    one.is_back(tuple(0 for _ in then), far)
    one.end()


# --- Crashes ---


def hold(daemon, stage, *args):
    """A droverd that stops at a stage of this command, which is under way then."""
    daemon.kill()
    (daemon.run_dir / "hold").unlink(missing_ok=True)  # of a job that was cancelled there
    daemon.env = {"DROVER_HOLD_AT": stage}
    daemon.start()
    going = daemon.spawn("snapshot", *args)
    wait_until(lambda: (daemon.run_dir / "hold").exists() or going.poll() is not None, 60, f"the job to come to {stage}")
    assert going.poll() is None, going.communicate()
    return going


def crash(daemon, going, between=lambda: None):
    daemon.kill()
    between()
    (daemon.run_dir / "hold").unlink()
    daemon.env = {}
    daemon.start()
    going.wait(timeout=90)
    return daemon.ended_job(daemon.json("jobs")[0]["id"])


def test_droverd_dies_while_memory_is_saved():
    with drover.Daemon() as own:
        one = Guest(own)
        try:
            going = hold(own, "memory", "create", one.name, "--name", "m1", "--memory")
            own.run("cancel", own.json("jobs")[0]["id"])
            going.wait(timeout=60)
            assert own.json("jobs")[0]["state"] == "cancelled" and one.files() == ["one.qcow2", "two.raw"]
            one.go_on()
            for stage in ("create", "memory", "instant"):
                job = crash(own, hold(own, stage, "create", one.name, "--name", "m1", "--memory"))
                assert job["state"] == "failed" and one.snapshot("list") == [], (stage, job)
                one.go_on()
                assert one.files() == ["one.qcow2", "two.raw"] and one.chain("d1") == ["one.qcow2"], stage
            # The disks stand on their overlays: it goes on to the end.
            for stage in ("switched", "saved"):
                then = one.now()
                job = crash(own, hold(own, stage, "create", one.name, "--name", stage, "--memory"))
                assert job["state"] == "succeeded", (stage, job)
                far = one.far_on() and one.now()
                one.revert(stage, "--discard")
                one.is_back(then, far)
            one.end()
        finally:
            one.vm.close()


def test_the_save_fails_after_the_instant():
    """The overlays are merged back."""
    with drover.Daemon() as own:
        one = Guest(own)
        try:
            small = own.dir / "small"
            small.mkdir()
            run("mount", "-t", "tmpfs", "-o", "size=1g", "none", small)
            try:
                for crashes in (False, True):
                    going = hold(own, "switched", "create", one.name, "--name", "m1", "--memory", "--memory-file", small / "m")
                    (small / "fill").write_bytes(bytes(4096))
                    run("mount", "-o", "remount,size=" + str((small / "m").stat().st_size + (64 << 10)), small)
                    if crashes:
                        job = crash(own, going)
                    else:
                        (own.run_dir / "hold").unlink()
                        going.wait(timeout=90)
                        job = own.json("jobs")[0]
                    assert job["state"] == "failed", job
                    one.go_on()
                    assert one.files() == ["one.qcow2", "two.raw"] and one.image_names() == ["one.qcow2", "two.raw"]
                    assert not (small / "m").exists() and one.snapshot("list") == []
                    run("mount", "-o", "remount,size=1g", small)
            finally:
                run("umount", small)
            one.end()
        finally:
            one.vm.close()


@pytest.mark.parametrize("memory", [True, False])
def test_droverd_dies_in_a_revert(memory):
    with drover.Daemon() as own:
        one = Guest(own)
        try:
            then = one.now()
            one.snapshot("create", "--name", "m1", *(["--memory"] if memory else []))
            one.far_on()
            bootid = one.vm.bootid
            files, pid = one.files(), one.vm.pid
            going = hold(own, "transfer", "revert", one.name, "m1")
            own.run("cancel", own.json("jobs")[0]["id"])
            going.wait(timeout=60)
            assert own.json("jobs")[0]["state"] == "cancelled" and one.vm.pid == pid and one.files() == files
            one.follow()
            one.go_on()
            for stage in ("create", "start", "verify", "transfer", "switchover"):
                files, pid = one.files(), one.vm.pid
                job = crash(own, hold(own, stage, "revert", one.name, "m1"))
                assert job["state"] == "failed" and one.vm.pid == pid, (stage, job)
                one.follow()
                one.go_on()
                one.one_qemu()
                assert one.files() == files, stage
            for stage in ("resume", "commit"):
                far = one.far_on() and one.now()
                job = crash(own, hold(own, stage, "revert", one.name, "m1", "--discard"))
                assert job["state"] == "succeeded", (stage, job)
                one.follow()
                one.one_qemu()
                if not memory:
                    one.vm.console.wait_ready()
                    one.vm.bootid = one.vm.console.status()["bootid"]
                    assert one.vm.bootid != bootid
                    bootid = one.vm.bootid
                    one.go_on()
                else:
                    one.is_back(then, far)
                assert len(one.files()) == 4 + memory + 0, one.files()
            one.end()
        finally:
            one.vm.close()


def test_a_qemu_dies_in_a_revert():
    with drover.Daemon() as own:
        one = Guest(own)
        try:
            then = one.now()
            one.snapshot("create", "--name", "m1", "--memory")
            far = one.far_on() and one.now()
            # The new one, before and after it was told to run: the old guest is whole, and goes on.
            for stage in ("transfer", "switchover", "resume"):
                pid = one.vm.pid
                going = hold(own, stage, "revert", one.name, "m1")
                new, = set(own.qemus()) - {pid}
                kill_pid(new)
                (own.run_dir / "hold").unlink()
                going.wait(timeout=90)
                job = own.json("jobs")[0]
                assert (job["state"], one.vm.pid) == ("failed", pid), (stage, job)
                one.follow()
                one.go_on()
            # One that has run may have written.
            assert [name for name in one.files() if "-2" in name] == ["one.m1-2.qcow2", "two.m1-2.qcow2"]
            # The old one, when the new one has all of it.
            going = hold(own, "switchover", "revert", one.name, "m1", "--discard")
            kill_pid(one.vm.pid)
            (own.run_dir / "hold").unlink()
            going.wait(timeout=90)
            assert own.json("jobs")[0]["state"] == "succeeded"
            one.follow()
            one.is_back(then, far)
            one.one_qemu()
        finally:
            one.vm.close()


def test_a_vm_that_has_ended():
    """It is started again, and by the next droverd, too."""
    with drover.Daemon() as own:
        one = Guest(own)
        try:
            one.snapshot("create", "--name", "s0")
            one.far_on()
            then = one.now()
            one.snapshot("create", "--name", "m1", "--memory")
            far = one.far_on() and one.now()
            files = one.files()
            own.run("stop", one.name, "--force")
            memory = one.dir / f"{one.name}.m1.memory"
            memory.rename(one.dir / "aside")
            assert "cannot be read" in one.refused("revert", "m1")["message"]
            memory.write_bytes(b"x" * (one.dir / "aside").stat().st_size)
            assert "cannot load the memory" in one.refused("revert", "m1")["message"]
            (one.dir / "aside").replace(memory)
            assert own.state(one.name) == "stopped" and one.files() == files and own.qemus() == []
            for stage in ("create", "verify", "transfer", "switchover"):
                job = crash(own, hold(own, stage, "revert", one.name, "m1"))
                assert job["state"] == "failed" and own.state(one.name) == "stopped", (stage, job)
                assert one.files() == files and own.qemus() == [], stage
            one.revert("m1")
            one.is_back(then, far)
            one.one_qemu()
            one.vm.upgrade("10.0")
            own.run("stop", one.name, "--force")
            job = crash(own, hold(own, "resume", "revert", one.name, "m1"))
            assert job["state"] == "succeeded" and own.state(one.name) == "running", job
            one.follow()
            one.is_back(then, far)
            own.run("stop", one.name, "--force")
            one.revert("s0")  # a boot
            one.vm.console.wait_ready()
            one.go_on()
            one.end()
        finally:
            one.vm.close()
