# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs whose QEMU gives root's rights up when it has begun (-runas, -run-with user=): whatever drover does with them, it does with the rights that
they have."""

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from lib import drover
from lib.disks import new_image, writes_go_on
from lib.procs import run
from lib.storage import SMALL, check_images, move, pair, start  # noqa: F401 (fixtures)

NOBODY = pwd.getpwnam("nobody")


def user_of(pid):
    return os.stat(f"/proc/{pid}").st_uid


def is_nobodys(vm):
    assert user_of(vm.pid) == NOBODY.pw_uid
    vm.healthy()


@pytest.fixture
def daemon():
    with drover.Daemon() as one:
        one.dir.chmod(0o711)
        yield one


@pytest.fixture
def images(daemon):
    """A directory of that user's."""
    made = daemon.dir / "images"
    made.mkdir()
    os.chown(made, NOBODY.pw_uid, NOBODY.pw_gid)
    return made


@pytest.fixture
def witness(daemon, images):
    made = []

    def make(*extra, owner=NOBODY.pw_uid, user=("-runas", "nobody"), **options):
        image = images / "disk.qcow2"
        new_image(image, "qcow2", 16)
        os.chown(image, owner, -1)
        made.append(drover.Witness(daemon, "vm", extra=["-drive", f"if=virtio,format=qcow2,file={image}", *user, *extra],
                                   witness={"disk": "/dev/vda", "diskrate": 50}, **SMALL, **options))
        writes_go_on(made[-1], "/dev/vda")
        return made[-1]

    yield make
    for one in made:
        one.close()


def words_of(vm):
    with open(f"/proc/{vm.pid}/cmdline", encoding="utf-8") as text:
        return text.read().split("\0")


@pytest.mark.parametrize("adopt", [None, "pid"])
def test_there_and_back(witness, adopt):
    """QEMU 10 has the option under another name."""
    vm = witness(adopt=adopt)
    is_nobodys(vm)
    vm.upgrade("10.0")
    is_nobodys(vm)
    assert "user=nobody" in words_of(vm) and "-runas" not in words_of(vm)
    vm.upgrade("10.0", "--memory", "copy")
    vm.upgrade("7.2")
    is_nobodys(vm)
    assert "-runas" in words_of(vm) and "user=nobody" not in words_of(vm)
    writes_go_on(vm, "/dev/vda")


def test_an_image_that_it_could_not_open_again(daemon, witness):
    """It was opened with root's rights; neither QEMU would get it once more, and the guest would stand still."""
    vm = witness(owner=0)
    pid = vm.pid
    for mode in ("auto", "copy"):
        error = daemon.refused("upgrade", "vm", "--memory", mode)
        assert "may not open its image" in error["message"] and "chown" in error["remedy"], error
    assert vm.pid == pid
    writes_go_on(vm, "/dev/vda")
    is_nobodys(vm)


def test_disks_and_snapshots(daemon, images, witness):
    vm = witness()
    daemon.run("snapshot", "create", "vm", "--name", "s1")
    daemon.run("disk", "copy", "vm", "virtio0", images / "copy.qcow2", "--pivot")
    daemon.run("snapshot", "create", "vm", "--name", "s2", "--memory")
    daemon.run("backup", "vm", images / "backup")
    writes_go_on(vm, "/dev/vda")
    assert {path.stat().st_uid for path in images.glob("*.qcow2")} == {NOBODY.pw_uid}
    served = daemon.json("backup", "serve", "vm", "--async")
    uri = served["result"]["disks"][0]["uri"]
    run("nbdinfo", "--size", uri)
    daemon.run("backup", "finish", "vm")
    vm.upgrade("10.0")
    writes_go_on(vm, "/dev/vda")
    daemon.run("snapshot", "revert", "vm", "s2")
    is_nobodys(vm)
    writes_go_on(vm, "/dev/vda")
    vm.upgrade("7.2")
    daemon.run("snapshot", "delete", "vm", "s2")
    writes_go_on(vm, "/dev/vda")


def test_a_snapshot_is_started_when_its_qemu_has_ended(daemon, witness):
    vm = witness()
    daemon.run("snapshot", "create", "vm", "--name", "s1")
    daemon.run("stop", "vm", "--force")
    daemon.run("snapshot", "revert", "vm", "s1")
    assert user_of(vm.pid) == NOBODY.pw_uid and daemon.state("vm") == "running"
    daemon.run("upgrade", "vm")
    assert user_of(vm.pid) == NOBODY.pw_uid


@pytest.mark.parametrize("user", [("-runas", "nobody"), ("-runas", f"{NOBODY.pw_uid}:{NOBODY.pw_gid}")])
def test_its_directory_is_its_own(daemon, witness, user):
    """Nobody else comes to drover's sockets by it."""
    vm = witness(user=user)
    daemon.run("upgrade", "vm")
    vm.console.follow(vm.serial)
    is_nobodys(vm)
    own = daemon.run_dir / "vms/vm/own"
    assert own.stat().st_uid == NOBODY.pw_uid and own.stat().st_mode & 0o777 == 0o700 and not list(own.iterdir())
    others = [path for path in own.parent.iterdir() if path.is_socket()]
    assert others and all(path.stat().st_mode & 0o022 == 0 and path.stat().st_uid == 0 for path in others)
    listed = subprocess.run(["setpriv", f"--reuid={NOBODY.pw_uid}", "--clear-groups", "ls", own.parent], capture_output=True, check=False)
    assert listed.returncode != 0
    daemon.run("stop", "vm", "--force")
    daemon.run("forget", "vm")
    assert not own.parent.exists()


@pytest.mark.parametrize("options", [(), ("--transport", "plain"), ("--parallel", "2")])
def test_moves(pair, start, options):  # noqa: F811
    """With its disks, there and back."""
    vm, disks = start_as_nobody(pair, start)
    move(pair, vm, disks, *options)
    assert {path.stat().st_uid for path in disks.dirs["b"].iterdir()} == {NOBODY.pw_uid}
    writes_go_on(vm, *disks.devices())
    assert user_of(pair.b.show(vm.name)["pid"]) == NOBODY.pw_uid
    move(pair, vm, disks, *options, "--overwrite-storage")
    writes_go_on(vm, *disks.devices())
    vm.healthy()
    check_images(pair.a, vm, disks, "a")


def test_disks_that_come_after_the_guest(pair, start):  # noqa: F811
    vm, disks = start_as_nobody(pair, start)
    move(pair, vm, disks, how="--copy-storage-postcopy")
    writes_go_on(vm, *disks.devices())
    assert user_of(pair.b.show(vm.name)["pid"]) == NOBODY.pw_uid
    vm.healthy()
    check_images(pair.b, vm, disks, "b")


def test_post_copy_wants_userfaultfd(pair, start):  # noqa: F811
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        pytest.skip("vm.unprivileged_userfaultfd=1: every user has it here")
    vm, disks = start_as_nobody(pair, start)
    for args in (("upgrade", vm.name, "--memory", "postcopy"), ("migrate", vm.name, "b", "--postcopy-after-precopy", "--copy-storage-all")):
        error = pair.a.refused(*args, *(disks.maps("b") if args[0] == "migrate" else ()))
        assert "userfaultfd" in error["message"] and "vm.unprivileged_userfaultfd=1" in error["message"] + (error["remedy"] or ""), error
    writes_go_on(vm, *disks.devices())


def start_as_nobody(pair, start):  # noqa: F811
    """Its images are made by the fixture; it gets them before it gives its rights up, and they are its own before anything is done with it."""
    for daemon in (pair.a, pair.b):
        daemon.dir.chmod(0o711)
    vm, disks = start(extra=["-runas", "nobody"])
    for path in (*disks.dirs.values(), *disks.dirs["a"].iterdir()):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    return vm, disks


def test_a_move_that_could_not_open_its_image(pair, start):  # noqa: F811
    """Neither over there nor, given back, here: it is refused while the guest runs."""
    for daemon in (pair.a, pair.b):
        daemon.dir.chmod(0o711)
    vm, disks = start(extra=["-runas", "nobody"])
    for path in disks.dirs.values():
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    error = pair.a.refused("migrate", vm.name, "b", "--copy-storage-all", *disks.maps("b"))
    assert "may not open its image" in error["message"] and "chown" in error["remedy"], error
    assert not disks.files("b")
    writes_go_on(vm, *disks.devices())
