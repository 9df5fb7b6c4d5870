# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dirty bitmaps and backups: all disks at one moment, chains of incremental ones that qemu-img reads, served ones that nbdcopy and nbdinfo
read, over upgrades, snapshots and moves; and a guest that never notices."""

import itertools
import json
import os
import signal
import socket

import pytest

from lib import drover, guest
from lib.disks import acked_at_the_end, as_raw, new_image, writes_go_on
from lib.guest import DiskImage
from lib.pair import Pair
from lib.procs import kill_pid, run, wait_until

SMALL = {"ram": "131080k", "mem": 16, "rate": 20}
DISKS = ("/dev/vda", "/dev/vdb")
serial = itertools.count()


@pytest.fixture(scope="module")
def daemon():
    with drover.Daemon() as one:
        yield one


class Guest:
    """A witness that writes to two disks: d1, a qcow2 of 16 MiB (-drive), and d2, of 24 MiB and half a KiB (-blockdev)."""

    def __init__(self, daemon, version="7.2", form="qcow2", extra=(), witness=None, device="", **more):
        self.daemon, self.name = daemon, f"bk{next(serial)}"
        self.dir, self.backups = daemon.dir / self.name, daemon.dir / f"{self.name}.backups"
        self.dir.mkdir()
        self.backups.mkdir()
        self.form = form
        new_image(self.dir / "one.qcow2", "qcow2", 16)
        run("qemu-img", "create", "-q", "-f", form, self.dir / f"two.{form}", str((24 << 20) + 512))
        self.vm = drover.Witness(daemon, self.name, version=version, witness={"disk": ",".join(DISKS), "diskrate": 50, **(witness or {})},
                                 extra=["-drive", f"if=none,id=one,format=qcow2,file={self.dir}/one.qcow2", "-device",
                                        f"virtio-blk-pci,drive=one,id=d1,addr=10{device}", "-blockdev",
                                        f"driver={form},node-name=n2,file.driver=file,file.filename={self.dir}/two.{form}", "-device",
                                        f"virtio-blk-pci,drive=n2,id=d2,addr=11{device}", *extra], **{**SMALL, **more})
        self.go_on()

    def go_on(self):
        writes_go_on(self.vm, *DISKS)

    def acked(self):
        status = self.vm.console.check()
        return [status.disk(path)["acked"] for path in DISKS]

    def bitmap(self, verb, *args):
        return self.daemon.json("bitmap", verb, self.name, *args)

    def bitmaps(self, top=True):
        return {(one["disk"], one["name"]): one for one in self.bitmap("list") if one["top"] == top}

    def backup(self, *args, to=None):
        """One backup of all disks; every image of it holds all that was acknowledged before, and nothing of later."""
        before = self.acked()
        job = self.daemon.json("backup", self.name, to or self.backups, *args)
        after = self.acked()
        files = {one["disk"]: one["file"] for one in job["result"]["disks"]}
        for number, disk in enumerate(("d1", "d2")):
            if disk in files:
                holds(files[disk], before[number], after[number])
        self.untouched()
        return job["result"], files

    def untouched(self):
        """No filter, node or scratch file is left of a backup."""
        nodes = [node["node-name"] for node in self.daemon.qmp(self.name, "query-named-block-nodes")]
        assert not [name for name in nodes if name.startswith("drover-") and "overlay" not in name], nodes
        assert not list(self.dir.glob("*.scratch"))
        assert not [one for one in self.bitmaps() if one[1].startswith("drover-")]

    def made(self):
        return sorted(path.name for path in self.backups.iterdir() if not path.name.endswith(".raw"))

    def job(self):
        return self.daemon.json("jobs")[0]


def holds(image, low, high):
    raw = as_raw(image, json.loads(run("qemu-img", "info", "--output=json", image).stdout)["format"])
    disk = DiskImage(raw)
    assert low <= disk.last <= high + 1 and disk.problems(disk.last) == [], (image, low, disk.last, high, disk.problems(low)[:5])
    if raw != image:
        os.unlink(raw)


def hold(daemon, *argv, stage):
    """Spawns a command and waits until its job is held at that stage."""
    going = daemon.spawn(*argv)
    wait_until(lambda: (daemon.run_dir / "hold").exists() or going.poll() is not None, 60, "the job to come to its stage")
    assert going.poll() is None, going.communicate()
    return going


@pytest.fixture
def start(daemon):
    started = []

    def start_one(*args, on=daemon, **options):
        started.append(Guest(on, *args, **options))
        return started[-1]

    yield start_one
    for one in started:
        one.vm.close()
        one.daemon.run("stop", one.name, "--force", check=False)


# --- Bitmaps ---


def test_bitmaps_by_hand(start, daemon):
    one = start(form="raw")
    added = one.bitmap("add", "d1", "b0", "--granularity", "131072")
    assert added["recording"] and added["persistent"] and added["granularity"] == 131072
    one.bitmap("add", "d1", "b1", "--disabled")
    one.go_on()
    shown = one.bitmaps()
    assert shown["d1", "b0"]["bytes"] > 0 and shown["d1", "b1"]["bytes"] == 0 and not shown["d1", "b1"]["recording"]
    assert [b["name"] for b in one.bitmap("list", "d2")] == []
    one.bitmap("disable", "d1", "b0")
    stopped = one.bitmaps()["d1", "b0"]["bytes"]
    one.go_on()
    assert one.bitmaps()["d1", "b0"]["bytes"] == stopped
    assert one.bitmap("merge", "d1", "b1", "b0")["bytes"] >= stopped
    assert one.bitmap("enable", "d1", "b1")["recording"]
    assert one.bitmap("remove", "d1", "b0")["name"] == "b0" and ("d1", "b0") not in one.bitmaps()
    refused = lambda *args, **how: daemon.refused("bitmap", args[0], one.name, *args[1:], **how)  # noqa: E731
    error = refused("add", "d2", "b0")
    assert error["code"] == "unsupported" and "raw" in error["message"] and "--transient" in error["remedy"]
    assert not one.bitmap("add", "d2", "b0", "--transient")["persistent"]
    assert "its disks are" in refused("add", "d9", "b0")["remedy"]
    assert refused("add", "d1", "b1")["code"] == "exists"
    assert "b1" in refused("remove", "d1", "b9")["remedy"]
    assert "into itself" in refused("merge", "d1", "b1", "b1", code=2)["message"]
    assert refused("merge", "d1", "b1", "b9")["code"] == "not-found"
    refused("add", "d1", "../x", code=2)
    refused("add", "d1", "b2", "--granularity", "1000", code=2)
    refused("add", "d1", code=2)
    refused("list", "d1", "--transient", code=2)
    daemon.refused("bitmap", "list", "nobody")
    assert daemon.run("bitmap", "list", one.name).stdout.split()[:2] == ["DISK", "BITMAP"]


def test_a_chain_over_upgrades_and_snapshots(start):
    """Each backup has the disks' contents of its moment, by the chain of all those before it."""
    one = start()
    one.backup("--bitmap", "b0")
    one.go_on()
    result, files = one.backup("--incremental", "b0")
    assert result["incremental"]
    for version in ("10.0", "7.2"):
        before = one.bitmaps()
        one.go_on()
        one.vm.upgrade(version)
        after = one.bitmaps()
        assert all(after[key]["bytes"] >= before[key]["bytes"] and not after[key]["inconsistent"] for key in before) and after.keys() == before.keys()
        one.go_on()
        one.backup("--incremental", "b0")
    one.go_on()
    one.daemon.run("snapshot", "create", one.name, "--name", "s1")
    one.go_on()
    one.backup("--incremental", "b0")
    one.go_on()
    one.vm.upgrade("10.0")
    one.daemon.run("snapshot", "merge", one.name, "s1")
    one.go_on()
    one.backup("--incremental", "b0")
    one.go_on()
    one.backup("--incremental", "b0", "--disk", "d1", to=one.backups / "mine.qcow2")
    chain = json.loads(run("qemu-img", "info", "--output=json", "--backing-chain", one.backups / "mine.qcow2").stdout)
    assert len(chain) == 7 and all(image["format"] == "qcow2" for image in chain)
    assert all(image.get("backing-filename-format", "qcow2") == "qcow2" for image in chain)
    listed = {(entry["disk"], entry["bitmap"]): entry["file"] for entry in one.daemon.json("backup", "list", one.name)}
    assert listed["d1", "b0"] == str(one.backups / "mine.qcow2") and listed["d2", "b0"] != listed["d1", "b0"]
    acked = acked_at_the_end(one.daemon, one.vm, *DISKS)
    for image, path in (("one.qcow2", "/dev/vda"), ("two.qcow2", "/dev/vdb")):
        assert DiskImage(as_raw(one.dir / image, "qcow2")).problems(acked[path]) == []


@pytest.mark.parametrize("memory", ["private"])
def test_bitmaps_go_over_an_upgrade_that_copies(start, memory):
    one = start(options=("--memory", memory))
    one.backup("--bitmap", "b0")
    one.go_on()
    one.vm.upgrade("10.0")
    one.go_on()
    one.backup("--incremental", "b0")


def wait_idle(pid):
    """Until a process has done what it had to do: 20 looks in a row find its main thread asleep."""
    looks = itertools.count(1)

    def asleep():
        if open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "S":
            return False
        return next(looks) >= 20

    wait_until(asleep, 30, "the process to be idle", interval=0.01)


def test_an_upgrade_that_fails_leaves_the_bitmaps():
    """The new QEMU dies when it has the guest's state: the old one's bitmaps are as they were."""
    with drover.Daemon(env={"DROVER_HOLD_AT": "switchover"}) as held:
        one = Guest(held)
        try:
            held.run("bitmap", "add", one.name, "d1", "b0")
            one.go_on()
            pid = held.show(one.name)["pid"]
            for version in ("7.2", "10.0"):
                going = hold(held, "upgrade", one.name, "--qemu", guest.qemu(version), stage="switchover")
                destination, = set(held.qemus()) - {pid}
                wait_idle(destination)
                kill_pid(destination)
                (held.run_dir / "hold").unlink()
                going.communicate(timeout=60)
                if going.returncode == 0:
                    pytest.fail("the upgrade did not fail")
                bitmap = one.bitmaps()["d1", "b0"]
                assert bitmap["bytes"] > 0 and bitmap["recording"] and not bitmap["inconsistent"], bitmap
                one.go_on()
        finally:
            one.vm.close()


# --- Between hosts ---


@pytest.fixture(scope="module")
def pair():
    with Pair() as both:
        yield both


@pytest.mark.parametrize("storage", [False, True])
def test_bitmaps_go_to_another_host(pair, storage):
    one = Guest(pair.a)
    try:
        one.bitmap("add", "d1", "off", "--disabled")
        one.backup("--bitmap", "b0")
        one.go_on()
        options = []
        there = pair.b.dir / one.name
        if storage:
            there.mkdir()
            options = ["--copy-storage-all"] + [word for name in ("one.qcow2", "two.qcow2")
                                                for word in ("--map", f"disk={one.dir / name}:{there / name}")]
        pair.migrate(one.vm, *options)
        one.vm.console.follow(one.vm.serial)
        one.daemon = pair.b
        one.dir = there if storage else one.dir
        one.go_on()
        shown = one.bitmaps()
        assert set(shown) == {("d1", "off"), ("d1", "b0"), ("d2", "b0")}
        assert all(bitmap["persistent"] and not bitmap["inconsistent"] for bitmap in shown.values())
        assert shown["d1", "b0"]["recording"] and not shown["d1", "off"]["recording"]
        one.backup("--incremental", "b0")
        one.go_on()
        one.vm.upgrade("10.0")
        one.go_on()
        one.backup("--incremental", "b0")
    finally:
        one.vm.close()
        pair.clear()


# --- Served ---


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def uris(served):
    return {entry["disk"]: entry["uri"] for entry in served["result"]["disks"]}


def nbd_copy(uri, path):
    run("nbdcopy", uri, path)
    return path


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_served_to_other_tools(start, daemon, version):
    one = start(version=version)
    # All of it, beginning a bitmap.
    before = one.acked()
    served = daemon.json("backup", "serve", one.name, "--bitmap", "b0", "--async")
    after = one.acked()
    assert served["stage"] == "serve" and set(uris(served)) == {"d1", "d2"}
    one.go_on()
    full = {disk: nbd_copy(uri, one.backups / f"{disk}.full") for disk, uri in uris(served).items()}
    for number, disk in enumerate(("d1", "d2")):
        image = DiskImage(full[disk])
        assert before[number] <= image.last <= after[number] + 1 and image.problems(image.last) == []
    assert os.stat(full["d2"]).st_size == (24 << 20) + 512
    assert daemon.json("backup", "finish", one.name, "--success")["state"] == "succeeded"
    one.untouched()
    one.go_on()
    # What was written since: read, and found bad; then once more, and good.
    for good in (False, True):
        before = one.acked()
        served = daemon.json("backup", "serve", one.name, "--incremental", "b0", "--async", "--listen",
                             f"unix:{one.backups}/s" if good else f"tcp:127.0.0.1:{free_port()}")
        after = one.acked()
        assert all(entry["context"] == "qemu:dirty-bitmap:b0" for entry in served["result"]["disks"])
        one.go_on()
        for number, disk in enumerate(("d1", "d2")):
            extents = json.loads(run("nbdinfo", "--json", "--map=qemu:dirty-bitmap:b0", uris(served)[disk]).stdout)
            now = nbd_copy(uris(served)[disk], one.backups / f"{disk}.now")
            merged = bytearray(full[disk].read_bytes())
            data = now.read_bytes()
            for extent in extents:
                if extent["type"] & 1:
                    at, end = extent["offset"], extent["offset"] + extent["length"]
                    merged[at:end] = data[at:end]
            assert bytes(merged) == data, "the bitmap lacks something that was written"
            assert sum(extent["length"] for extent in extents if extent["type"] & 1) < len(data)
            image = DiskImage(now)
            assert before[number] <= image.last <= after[number] + 1 and image.problems(image.last) == []
        dirty = one.bitmaps()["d1", "b0"]["bytes"]
        daemon.run("backup", "finish", one.name, *(["--success"] if good else []))
        ended = daemon.ended_job(served["id"])
        assert ended["state"] == "succeeded" and ended["result"]["success"] == good
        one.untouched()
        assert good or one.bitmaps()["d1", "b0"]["bytes"] >= dirty
        if good:
            full = {disk: (one.backups / f"{disk}.now").rename(one.backups / f"{disk}.full2") for disk in full}
        one.go_on()
    served = daemon.json("backup", "serve", one.name, "--incremental", "b0", "--async", "--disk", "d1")
    extents = json.loads(run("nbdinfo", "--json", "--map=qemu:dirty-bitmap:b0", uris(served)["d1"]).stdout)
    data = nbd_copy(uris(served)["d1"], one.backups / "d1.last").read_bytes()
    merged = bytearray(full["d1"].read_bytes())
    for extent in extents:
        if extent["type"] & 1:
            at, end = extent["offset"], extent["offset"] + extent["length"]
            merged[at:end] = data[at:end]
    assert bytes(merged) == data, "what was written while the last one was served is missing"
    daemon.run("cancel", served["id"])
    assert daemon.ended_job(served["id"])["state"] == "cancelled"
    one.untouched()
    one.go_on()


def test_ctrl_c_ends_it(start, daemon):
    one = start()
    going = daemon.spawn("backup", "serve", one.name, "--disk", "d1")
    wait_until(lambda: one.job()["stage"] == "serve", 30, "the disk to be served")
    going.send_signal(signal.SIGINT)
    said = going.communicate(timeout=30)
    assert going.returncode == 0 and "nbd+unix:///d1?socket=" in said[0] and "not served any more" in said[0], said
    one.untouched()
    error = daemon.refused("backup", "finish", one.name)
    assert "is being served" in error["message"]


def test_a_full_scratch_file_is_not_the_guests_affair(start, daemon):
    """The point in time ends, and the guest has had no error."""
    one = start()
    small = one.dir / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2M", "none", small)
    try:
        served = daemon.json("backup", "serve", one.name, "--async", "--scratch", small, "--disk", "d1")
        assert "scratch-room" in [finding["code"] for finding in served["findings"]]
        one.vm.console.command("diskrate 0")
        ended = daemon.ended_job(served["id"])
        assert ended["state"] == "failed" and "gets full" in ended["error"]["message"] and "--scratch" in ended["error"]["remedy"]
        one.go_on()
        one.untouched()
        assert not list(small.iterdir())
        (small / "fill").write_bytes(b"x" * (1536 << 10))
        error = daemon.refused("backup", "serve", one.name, "--scratch", small, "--disk", "d1")
        assert "MiB free" in error["message"], error
    finally:
        run("umount", small)
    one.go_on()


# --- Trouble ---


def test_cancelled_full_and_slow(start, daemon):
    """Whatever becomes of the backup, the guest and the bitmap are as they were, and only the backup's own files go."""
    one = start()
    one.backup("--bitmap", "b0")
    made = one.made()
    one.vm.console.command("diskrate 0")
    writes_go_on(one.vm, *DISKS, more=1500)
    going = daemon.spawn("backup", one.name, one.backups, "--incremental", "b0", "--bandwidth", "1")
    wait_until(lambda: one.job()["stage"] == "copy" and one.job()["progress"], 30, "the copy to begin")
    daemon.run("disk", "bandwidth", one.name, "1")
    daemon.run("cancel", one.job()["id"])
    assert going.wait(timeout=60) == 1 and one.job()["state"] == "cancelled"
    assert one.made() == made
    one.untouched()
    small = one.dir / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1M", "none", small)
    try:
        error = daemon.refused("backup", one.name, small, "--disk", "d1")
        assert error["code"] == "refused" and "MiB free" in error["message"], error
        writes_go_on(one.vm, *DISKS, more=200)
        # Full in the middle of it.
        run("mount", "-o", "remount,size=16M", small)
        going = daemon.spawn("backup", one.name, small, "--disk", "d1", "--bandwidth", "1", "--format", "raw")
        wait_until(lambda: one.job()["stage"] == "copy" and one.job()["progress"], 30, "the copy to begin")
        free = os.statvfs(small)
        (small / "fill").write_bytes(b"x" * max(free.f_bavail * free.f_bsize - 8192, 0))
        said = going.communicate(timeout=90)
        assert going.returncode == 1 and one.job()["state"] == "failed", said
        assert [path.name for path in small.iterdir()] == ["fill"]
    finally:
        run("umount", small)
    one.vm.console.command("diskrate 50")
    one.go_on()
    one.backup("--incremental", "b0")
    # The guest's end.
    made = one.made()
    going = daemon.spawn("backup", one.name, one.backups, "--bandwidth", "1")
    wait_until(lambda: one.job()["stage"] == "copy" and one.job()["progress"], 30, "the copy to begin")
    kill_pid(one.vm.pid)
    assert going.wait(timeout=60) == 1 and one.job()["state"] == "failed"
    assert one.made() == made and not list(one.dir.glob("*.scratch"))


def test_disks_in_io_threads(start, daemon):
    """A backup of one may end a QEMU before 9.0."""
    one = start(device=",iothread=io", extra=["-object", "iothread,id=io"])
    for refused in (("backup", one.name, one.backups), ("backup", "serve", one.name)):
        error = daemon.refused(*refused)
        assert "I/O threads" in error["message"] and "drover upgrade" in error["remedy"]
    one.go_on()
    one.vm.upgrade("10.0")
    one.backup("--bitmap", "b0")
    served = daemon.json("backup", "serve", one.name, "--incremental", "b0", "--async")
    for disk, uri in uris(served).items():
        nbd_copy(uri, one.backups / f"{disk}.raw")
    one.go_on()
    assert daemon.json("backup", "finish", one.name)["state"] == "succeeded"
    one.untouched()
    one.backup("--incremental", "b0")
    one.go_on()


def test_file_systems_are_frozen_for_the_moment(daemon):
    image = guest.new_fs(daemon.dir / "fs.img")
    vm = drover.Witness(daemon, "fsvm", witness={"fs": "/dev/vda", "agent": 1}, ram="262152k", mem=16, rate=20,
                        extra=["-drive", f"if=none,id=d0,format=raw,file={image}", "-device", "virtio-blk-pci,drive=d0,id=fs",
                               *guest.agent_args(daemon.dir / "fs.qga")])
    try:
        with guest.Agent(daemon.dir / "fs.qga"):
            pass
        wait_until(lambda: vm.console.check()["fs"]["acked"] > 10, 60, "the guest to write to its file system")
        before = vm.console.check()["fs"]["acked"]
        job = daemon.json("backup", vm.name, daemon.dir / "fs.raw", "--format", "raw", "--quiesce")
        after = vm.console.check()["fs"]["acked"]
        assert job["result"]["frozen"] == 1
        assert guest.fs_unclean(daemon.dir / "fs.raw") == []
        copy = guest.FsImage(daemon.dir / "fs.raw", recover=False)
        assert before <= copy.last <= after + 1 and copy.problems(before) == []
        wait_until(lambda: vm.console.check()["fs"]["acked"] > after + 5, 60, "the file system to go on")
    finally:
        vm.close()


def test_bad_input(start, daemon):
    one = start(form="raw", extra=["-drive", "if=none,id=cd,media=cdrom", "-device", "ide-cd,drive=cd,id=d3"])
    refused = lambda *args, **how: daemon.refused("backup", one.name, *args, **how)  # noqa: E731
    target = one.backups
    assert "TARGET is missing" in refused(code=2)["message"]
    assert "no directory" in refused(one.backups / "nope" / "x")["message"]
    assert "named twice" in refused(target, "--disk", "d1", "--disk", "one")["message"]
    assert "no disk 'd9'" in refused(target, "--disk", "d9")["message"]
    assert "no medium" in refused(target, "--disk", "d3")["message"]
    assert "has a bitmap 'b0'" in refused(target, "--incremental", "b0")["message"]
    assert "raw" in refused(target, "--bitmap", "b0")["message"]
    refused(target, "--bitmap", "b0", "--incremental", "b1", code=2)
    refused(target, "--format", "vmdk", code=2)
    refused(target, "--incremental", "b0", "--format", "raw", code=2)
    refused(target, "--onto", "/x", code=2)
    assert "no guest agent" in refused(target, "--quiesce")["message"]
    (target / "mine").write_bytes(b"mine")
    assert "there already" in refused(target / "mine", "--disk", "d1")["message"]
    assert (target / "mine").read_bytes() == b"mine"
    one.bitmap("add", "d1", "b0")
    error = refused(target, "--incremental", "b0")
    assert "on record" in error["message"] and "--onto" in error["remedy"], error
    assert "is not there" in refused(target, "--incremental", "b0", "--onto", target / "gone")["message"]
    one.bitmap("disable", "d1", "b0")
    assert "does not record" in refused(target, "--incremental", "b0", "--onto", target / "mine")["message"]
    serve = lambda *args, **how: daemon.refused("backup", "serve", one.name, *args, **how)  # noqa: E731
    serve("--listen", "tcp:0.0.0.0:7999", code=2)
    serve("--listen", "7999", code=2)
    assert "there already" in serve("--listen", f"unix:{target}/mine")["message"]
    assert "no directory" in serve("--scratch", "/nonexistent")["message"]
    daemon.run("qmp", one.name, "nbd-server-start", json.dumps({"addr": {"type": "unix", "data": {"path": f"{target}/theirs"}}}))
    assert "nbd-server-stop" in serve()["remedy"]
    daemon.run("qmp", one.name, "nbd-server-stop")
    one.untouched()
    assert one.made() == ["mine"]
    # A word behind -- is a VM's name.
    assert daemon.refused("backup", "--", "serve", target)["code"] == "not-found"
    assert daemon.refused("backup", "create", "serve", target)["code"] == "not-found"
    one.go_on()


# --- droverd's death ---


@pytest.fixture(scope="module")
def held_guest():
    """With a full backup and a bitmap b0 behind it."""
    with drover.Daemon() as held:
        one = Guest(held)
        try:
            one.backup("--bitmap", "b0")
            yield held, one
        finally:
            one.vm.close()


@pytest.mark.parametrize("stage", ["create", "point", "copy", "commit"])
def test_droverd_dies_at_a_stage(held_guest, stage):
    held, one = held_guest
    before = one.bitmaps()
    held.restart({"DROVER_HOLD_AT": stage})
    going = hold(held, "backup", one.name, one.backups, "--incremental", "b0", stage=stage)
    made = one.made()
    held.kill()
    (held.run_dir / "hold").unlink()
    one.vm.console.check()
    held.start()
    going.wait(timeout=90)
    job = one.job()
    assert job["state"] == ("failed" if stage in ("create", "point", "copy") else "succeeded"), job
    wait_until(lambda: held.state(one.name) == "running", 10, "the guest to run on")
    one.go_on()
    one.untouched()
    assert len(one.made()) <= len(made)
    if job["state"] == "failed":
        after = one.bitmaps()
        assert all(after[key]["bytes"] >= before[key]["bytes"] for key in before)
    one.backup("--incremental", "b0")


@pytest.mark.parametrize("stage", ["export", "serve", "finish"])
def test_droverd_dies_while_it_serves(held_guest, stage):
    held, one = held_guest
    held.restart({"DROVER_HOLD_AT": stage})
    held.run("backup", "serve", one.name, "--incremental", "b0", "--async") if stage == "finish" else None
    going = (hold(held, "backup", "finish", one.name, stage=stage) if stage == "finish" else
             hold(held, "backup", "serve", one.name, "--incremental", "b0", stage=stage))
    held.kill()
    (held.run_dir / "hold").unlink()
    held.start()
    if stage == "serve":
        assert one.job()["stage"] == "serve" and one.job()["state"] == "running"
        nbd_copy(uris(one.job())["d1"], one.backups / "d1.raw")
        held.run("backup", "finish", one.name)
    job = held.ended_job(one.job()["id"])
    assert job["state"] == ("failed" if stage == "export" else "succeeded"), job
    going.wait(timeout=60)
    one.go_on()
    one.untouched()
    one.backup("--incremental", "b0")
