# SPDX-License-Identifier: LGPL-2.1-or-later
"""Moves without shared storage: the disks go to the other host before the guest, through the same port, and no acknowledged write
is lost."""

import json
import os
import signal
import time

import pytest

from lib import drover
from lib.disks import acked_at_the_end, as_raw, digest, new_image, writes_go_on
from lib.guest import DiskImage
from lib.pair import Pair
from lib.procs import kill_pid, run, wait_until
from lib.storage import SMALL, Disks, check_images, filled, move, pair, serial, start  # noqa: F401: two are fixtures

# --- There and back ---


@pytest.mark.parametrize("version, options", [("7.2", ()), ("7.2", ("--postcopy-after-precopy",)), ("7.2", ("--parallel", "2")),
                                              ("7.2", ("--transport", "plain")), ("10.0", ()), ("10.0", ("--transport", "handoff")),
                                              ("11.1", ("--postcopy-after-precopy",))])
def test_disks_go_with_the_guest(pair, start, version, options):
    vm, disks = start(version=version)
    job = move(pair, vm, disks, *options)
    assert job["result"]["storage_bytes"] > 0 and job["result"]["storage_ms"] > 0
    writes_go_on(vm, *disks.devices())
    vm.healthy()
    left = [digest(disks.dirs["a"] / name) for name in disks.names]
    move(pair, vm, disks, *options, "--overwrite-storage")
    assert left != [digest(disks.dirs["a"] / name) for name in disks.names]  # they were written over
    writes_go_on(vm, *disks.devices())
    vm.healthy()
    check_images(pair.a, vm, disks, "a")


def test_what_is_shared_is_not_copied(pair, start):
    vm, disks = start()
    shared = disks.dirs["a"] / disks.names[0]
    report = pair.a.json("migrate", vm.name, "b", "--copy-storage-all", "--check", *disks.maps("b")[2:])
    codes = {finding["code"] for finding in report["findings"]}
    assert report["ok"] and {"storage-shared", "storage-copied"} <= codes, report
    pair.migrate(vm, "--copy-storage-all", *disks.maps("b")[2:])
    vm.console.follow(vm.serial)
    files = {disk["file"] for disk in pair.b.json("disk", "list", vm.name)}
    assert files == {str(shared), str(disks.dirs["b"] / disks.names[1])}
    assert disks.files("b") == [disks.names[1]]
    writes_go_on(vm, *disks.devices())


def test_only_the_top_image_where_the_rest_is_there(pair, start):
    vm, disks = start(("qcow2",))
    top = disks.dirs["a"] / disks.names[0]
    pair.a.run("snapshot", "create", vm.name, "--name", "s1")
    run("cp", top, disks.dirs["b"] / disks.names[0])  # does not change any more
    writes_go_on(vm, "/dev/vda")
    disks.names.append("disk0.s1.qcow2")
    move(pair, vm, disks, how="--copy-storage-inc")
    writes_go_on(vm, "/dev/vda")
    acked = acked_at_the_end(pair.b, vm, "/dev/vda")
    image = disks.dirs["b"] / "disk0.s1.qcow2"
    info = json.loads(run("qemu-img", "info", "--output=json", image).stdout)
    assert info["backing-filename"] == str(disks.dirs["b"] / "disk0.qcow2") and info["backing-filename-format"] == "qcow2", info
    run("qemu-img", "check", image)
    assert DiskImage(as_raw(image, "qcow2")).problems(acked["/dev/vda"]) == []


def test_a_chain_becomes_one_image(pair, start):
    """An implicit chain, as a golden image below an overlay: all of it goes."""
    base = pair.a.dir / "golden"
    new_image(base, "raw", 16)
    with open(base, "r+b") as image:
        image.seek(8 << 20)
        image.write(b"golden" * 1000)
    vm, disks = start(("qcow2",))
    pair.a.run("stop", vm.name, "--force")
    pair.a.run("forget", vm.name)
    vm.close()
    image = disks.dirs["a"] / disks.names[0]
    new_image(image, "qcow2", backing=(base, "raw"))
    vm2 = drover.Witness(pair.a, vm.name, extra=disks.extra(), witness={"disk": "/dev/vda", "diskrate": 50}, **SMALL)
    try:
        writes_go_on(vm2, "/dev/vda")
        move(pair, vm2, disks)
        writes_go_on(vm2, "/dev/vda")
        acked = acked_at_the_end(pair.b, vm2, "/dev/vda")
    finally:
        vm2.close()
    there = disks.dirs["b"] / disks.names[0]
    assert "backing-filename" not in json.loads(run("qemu-img", "info", "--output=json", there).stdout)
    assert DiskImage(as_raw(there, "qcow2")).problems(acked["/dev/vda"]) == []
    assert as_raw(there, "qcow2").read_bytes()[8 << 20:][:6000] == b"golden" * 1000


def test_a_bitmap_that_qemu_would_fail_on_is_said_before(pair, start):
    """One that was in use when its QEMU was killed, beside one that is good."""
    vm, disks = start(("qcow2",))
    pair.a.run("stop", vm.name, "--force")
    pair.a.run("forget", vm.name)
    vm.close()
    run("qemu-img", "bitmap", "--add", disks.dirs["a"] / disks.names[0], "old")
    for killed in (True, False):
        vm = drover.Witness(pair.a, vm.name, extra=disks.extra(), witness={"disk": "/dev/vda", "diskrate": 50}, **SMALL)
        if killed:
            kill_pid(pair.a.json("show", vm.name)["pid"])
            wait_until(lambda: pair.a.json("show", vm.name)["state"] == "stopped", 20, "its end to be known")
            pair.a.run("forget", vm.name)
            vm.close()
    try:
        disk = pair.a.json("disk", "list", vm.name)[0]["name"]
        pair.a.run("bitmap", "add", vm.name, disk, "good")
        check = ("migrate", vm.name, "b", "--copy-storage-all", "--check", *disks.maps("b"))
        report = json.loads(pair.a.run(*check, "--json", check=False).stdout)
        found = [finding for finding in report["findings"] if finding["code"] == "bitmap-inconsistent"]
        assert not report["ok"] and len(found) == 1 and f"drover bitmap remove NAME {disk} 'old'" in found[0]["remedy"], report
        pair.a.run("bitmap", "remove", vm.name, disk, "old")
        move(pair, vm, disks)
        assert [bitmap["name"] for bitmap in pair.b.json("bitmap", "list", vm.name)] == ["good"]
        writes_go_on(vm, "/dev/vda")
    finally:
        vm.close()


def test_encrypted_limited_and_read_only_disks_and_an_empty_drive(pair, start):
    secret = pair.a.dir / "secret"
    secret.write_text("swordfish")
    name = f"st{next(serial)}"
    disks = Disks(pair, name, ("qcow2", "raw"))
    luks, fixed = disks.dirs["a"] / "crypt.luks", disks.dirs["a"] / "fixed.raw"
    wait_until(lambda: run("qemu-img", "create", "-q", "--object", f"secret,id=s0,file={secret}", "-f", "luks", "-o",
                           "key-secret=s0,iter-time=10", luks, "32M", check=False).returncode == 0, 30,
               "qemu-img to make the image: it measures CPU time, which fails now and then")
    new_image(fixed, "raw", 4)
    fixed.write_bytes(os.urandom(4 << 20))
    extra = ["-object", f"secret,id=s0,file={secret}", "-object", "throttle-group,id=tg,x-iops-total=500",
             "-drive", f"if=none,id=h0,format=qcow2,file={disks.dirs['a'] / disks.names[0]},iops=400",
             "-device", "virtio-blk-pci,drive=h0,id=d0,addr=10",
             "-blockdev", f"driver=raw,node-name=n1,file.driver=file,file.filename={disks.dirs['a'] / disks.names[1]}",
             "-blockdev", "driver=throttle,node-name=t1,throttle-group=tg,file=n1", "-device", "virtio-blk-pci,drive=t1,id=d1,addr=11",
             "-blockdev", f"driver=luks,node-name=n2,key-secret=s0,file.driver=file,file.filename={luks}",
             "-device", "virtio-blk-pci,drive=n2,id=d2,addr=12",
             "-drive", f"if=none,id=fixed,format=raw,readonly=on,file={fixed}", "-device", "virtio-blk-pci,drive=fixed,id=d3,addr=13",
             "-drive", "if=none,id=cd,media=cdrom", "-device", "ide-cd,drive=cd,id=d4"]
    vm = drover.Witness(pair.a, name, extra=extra, witness={"disk": "/dev/vda,/dev/vdb,/dev/vdc", "diskrate": 50}, **SMALL)
    try:
        writes_go_on(vm, "/dev/vda", "/dev/vdb", "/dev/vdc")
        disks.names += ["crypt.luks", "fixed.raw"]
        move(pair, vm, disks)
        shown = {disk["name"]: disk for disk in pair.b.json("disk", "list", vm.name)}
        assert shown["d2"]["encrypted"] and shown["d2"]["format"] == "luks" and shown["d3"]["read_only"], shown
        assert any(node.get("drv") == "throttle" for node in pair.b.qmp(vm.name, "query-named-block-nodes"))
        assert digest(disks.dirs["b"] / "fixed.raw") == digest(fixed)
        vm.healthy()
        status = vm.console.check()
        acked = [status.disk(path)["acked"] for path in ("/dev/vda", "/dev/vdb", "/dev/vdc")]
        pair.b.run("stop", vm.name, "--force")
        raw = disks.dirs["b"] / "crypt.raw"
        run("qemu-img", "convert", "--object", f"secret,id=s0,file={secret}", "--image-opts",
            f"driver=luks,key-secret=s0,file.filename={disks.dirs['b'] / 'crypt.luks'}", "-O", "raw", raw)
        for number, image in zip(acked, (as_raw(disks.dirs["b"] / disks.names[0], "qcow2"), disks.dirs["b"] / disks.names[1], raw)):
            # What was never written to an encrypted disk reads as anything.
            assert [one for one in DiskImage(image).problems(number) if not (image == raw and "not valid" in one)] == [], image
    finally:
        vm.close()


# --- What goes wrong ---


def in_the_copy(pair, vm):
    wait_until(lambda: (job := pair.job(vm))["stage"] == "storage" and job["progress"] and job["progress"]["bytes_done"] > 1 << 20, 60,
               "the disks to be under way", interval=0.05)


def stayed(pair, vm, disks, *made):
    """It runs where it did, nothing of the attempt is left, and it can be moved after all."""
    wait_until(lambda: pair.a.state(vm.name) == "running", 30, "the guest to run on")
    writes_go_on(vm, "/dev/vda")
    wait_until(lambda: pair.b.qemus() == [], 90, "the other host to give it up")
    assert disks.files("b") == [] and not any(path.exists() for path in made)
    assert pair.a.qmp(vm.name, "query-block-jobs") == [], pair.a.log()[-2000:]
    assert not [node for node in pair.a.qmp(vm.name, "query-named-block-nodes") if node["node-name"].startswith("drover-")]
    vm.healthy()


def test_a_cancel_while_disks_are_copied(pair, start):
    vm, disks, options, image, there = filled(pair, start)
    pair.link.limit(30)
    going = pair.a.spawn("migrate", vm.name, "b", "--copy-storage-all", *options)
    in_the_copy(pair, vm)
    pair.a.run("cancel", pair.job(vm)["id"])
    assert going.wait(timeout=60) == 1
    assert pair.job(vm)["state"] == "cancelled"
    pair.link.heal()
    stayed(pair, vm, disks, there)


@pytest.mark.parametrize("seconds, transport", [(3, "tunnel"), (15, "tunnel"), (15, "plain")])
def test_a_link_that_is_cut_while_disks_are_copied(pair, start, seconds, transport):
    vm, disks, options, image, there = filled(pair, start)
    pair.link.limit(60)
    going = pair.a.spawn("migrate", vm.name, "b", "--copy-storage-all", "--transport", transport, *options)
    in_the_copy(pair, vm)
    begun = time.monotonic()
    pair.link.cut()
    wait_until(lambda: time.monotonic() > begun + seconds, seconds + 5, "the cut to last")
    writes_go_on(vm, "/dev/vda")
    pair.link.heal()
    said = going.communicate(timeout=120)
    assert going.returncode == 0, said
    pair.moved(vm)
    vm.console.follow(vm.serial)
    writes_go_on(vm, "/dev/vda")
    vm.healthy()
    acked = acked_at_the_end(pair.b, vm, "/dev/vda")
    assert DiskImage(as_raw(disks.dirs["b"] / disks.names[0], "qcow2")).problems(acked["/dev/vda"]) == []
    assert digest(there) == digest(image)


@pytest.mark.parametrize("who", ["droverd a", "droverd b", "qemu b"])
def test_a_death_while_disks_are_copied(pair, start, who):
    vm, disks, options, image, there = filled(pair, start)
    pair.link.limit(30)
    going = pair.a.spawn("migrate", vm.name, "b", "--copy-storage-all", *options)
    in_the_copy(pair, vm)
    if who == "qemu b":
        kill_pid(pair.b.qemus()[0])
    else:
        daemon = pair.a if who[-1] == "a" else pair.b
        daemon.kill()
        daemon.start()
    said = going.communicate(timeout=120)
    assert going.returncode == 1, said
    pair.link.heal()
    stayed(pair, vm, disks, there)


def test_the_source_ends_while_disks_are_copied(pair, start):
    vm, disks, options, image, there = filled(pair, start)
    pair.link.limit(30)
    going = pair.a.spawn("migrate", vm.name, "b", "--copy-storage-all", *options)
    in_the_copy(pair, vm)
    pair.a.show(vm.name)
    kill_pid(pair.a.qemus()[0])
    assert going.wait(timeout=90) in (1, 3), going.communicate()
    pair.link.heal()
    wait_until(lambda: pair.b.qemus() == [], 90, "the other host to give it up")
    assert disks.files("b") == [] and not there.exists()
    assert pair.a.state(vm.name) == "stopped"


@pytest.mark.parametrize("stage, who", [("transfer", "a"), ("transfer", "b"), ("switchover", "a")])
def test_a_droverd_dies_when_the_disks_are_there(stage, who):
    """Before the decision the guest goes on with its own disks; after it with those over there."""
    envs = {f"env_{who}": {"DROVER_HOLD_AT": stage}}
    with Pair(**envs) as pair:
        name = f"st{next(serial)}"
        disks = Disks(pair, name)
        vm = drover.Witness(pair.a, name, extra=disks.extra(), witness={"disk": "/dev/vda,/dev/vdb", "diskrate": 50}, **SMALL)
        try:
            writes_go_on(vm, *disks.devices())
            going = pair.a.spawn("migrate", name, "b", "--copy-storage-all", *disks.maps("b"))
            daemon = pair.a if who == "a" else pair.b
            if who == "a" or stage != "transfer":
                wait_until(lambda: (daemon.run_dir / "hold").exists(), 60, "the move to come to its stage")
            else:
                wait_until(lambda: pair.job(vm)["stage"] == "transfer", 60, "the move to come to its stage", interval=0.005)
            daemon.kill(signal.SIGKILL)
            (daemon.run_dir / "hold").unlink(missing_ok=True)
            daemon.process = None
            daemon.env = {}
            daemon.start()
            code = going.wait(timeout=120)
            job = pair.a.ended_job(pair.a.json("jobs")[0]["id"]) if pair.a.json("jobs") else None
            there = name in [one["name"] for one in pair.b.json("list")]
            assert (code == 0) == there or job, (code, job)
            daemon, host = (pair.b, "b") if there else (pair.a, "a")
            wait_until(lambda: daemon.state(name) == "running", 60, "the guest to run")
            assert len(pair.a.qemus()) + len(pair.b.qemus()) == 1
            vm.daemon = daemon
            vm.console.follow(vm.serial)
            writes_go_on(vm, *disks.devices())
            check_images(daemon, vm, disks, host)
        finally:
            vm.close()


def test_a_guest_that_writes_faster_than_the_link(pair, start):
    """Each of its writes then waits for both, and the move comes to its end."""
    vm, disks, options, image, there = filled(pair, start, 4)
    pair.link.limit(20)
    vm.console.command("diskrate 0")
    job = pair.a.json("migrate", vm.name, "b", "--copy-storage-all", *options, timeout=300)
    pair.link.heal()
    pair.moved(vm)
    vm.console.follow(vm.serial)
    assert job["state"] == "succeeded"
    writes_go_on(vm, "/dev/vda")
    vm.healthy()
    acked = acked_at_the_end(pair.b, vm, "/dev/vda")
    assert DiskImage(as_raw(disks.dirs["b"] / disks.names[0], "qcow2")).problems(acked["/dev/vda"]) == []


def test_bad_input(pair, start):
    vm, disks = start()
    assert "not two of these" in pair.a.refused("migrate", vm.name, "b", "--copy-storage-all", "--copy-storage-inc", code=2)["message"]
    there = disks.dirs["b"] / disks.names[0]
    there.write_bytes(b"somebody else's")
    refused = pair.a.refused("migrate", vm.name, "b", "--copy-storage-all", *disks.maps("b"))
    assert str(there) in refused["message"] and "--overwrite-storage" in refused["remedy"]
    assert there.read_bytes() == b"somebody else's"
    there.unlink()
    lost = [word.replace(str(disks.dirs["b"]), "/nonexistent") for word in disks.maps("b")]
    refused = pair.a.refused("migrate", vm.name, "b", "--copy-storage-all", *lost)
    assert "no directory '/nonexistent'" in refused["message"]
    assert pair.b.qemus() == [] and disks.files("b") == []
    writes_go_on(vm, *disks.devices())


def test_no_room_over_there(pair, start):
    vm, disks, options, image, there = filled(pair, start, 16)
    small = disks.dirs["b"]
    inside = ["nsenter", "-m", "-t", pair.b.process.pid]  # ip netns exec gives it mounts of its own
    run(*inside, "mount", "-t", "tmpfs", "-o", "size=8m", "none", small)
    try:
        full = [word.replace(str(there), str(small / "data")) for word in options]
        refused = pair.a.refused("migrate", vm.name, "b", "--copy-storage-all", *full)
        assert "MiB free" in refused["message"], refused
        run(*inside, "mount", "-o", "remount,size=20m", small)
        pair.link.limit(30)
        going = pair.a.spawn("migrate", vm.name, "b", "--copy-storage-all", *full)
        in_the_copy(pair, vm)
        run(*inside, "dd", "if=/dev/zero", f"of={small}/hog", "bs=1M", "count=16", check=False)
        said = going.communicate(timeout=120)
        assert going.returncode == 1 and "no room" in said[1], said
        pair.link.heal()
        stayed(pair, vm, disks)
        assert run(*inside, "ls", small).stdout.split() == ["hog"]
    finally:
        run(*inside, "umount", "-l", small)
