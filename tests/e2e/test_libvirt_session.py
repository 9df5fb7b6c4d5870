# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other QEMUs beneath the domains of a user's own libvirt, by a drover of that user: neither has a right that the user has not."""

import os
import shutil

import pytest

from lib import libvirt
from lib.beneath import moved, nothing_left
from lib.libvirt_session import UID, SessionBeneath, SessionHost
from lib.procs import wait_until


@pytest.fixture(scope="module")
def host():
    with SessionHost() as made:
        yield made


@pytest.fixture
def beneath(host):
    return SessionBeneath(host)


@pytest.fixture(scope="module")
def vm(host):
    with libvirt.Domain(host, vcpus=2, nic=False, agent=True) as made:
        yield made


def other(vm):
    """The QEMU that it does not have now."""
    return "7.2" if "10.0" in vm.live_xml().find("devices/emulator").text else "10.0"


def all_is_well(host, vm, beneath, pid=None):
    wait_until(host.answers, 60, "libvirtd to answer")
    assert vm.state() == "running" and host.qemus() == [vm.pid] and vm.status_xml().get("pid") == str(vm.pid)
    if pid:
        assert vm.pid == pid
    assert os.stat(f"/proc/{vm.pid}").st_uid == os.stat(f"/proc/{host.libvirtd_pid()}").st_uid == UID
    vm.healthy()
    vm.virsh("suspend")
    vm.virsh("resume")
    vm.healthy()
    assert vm.agent_command("guest-ping") == {}
    nothing_left(beneath)


def test_there_and_back(host, vm, beneath):
    report = beneath.check(domains=[vm.name], emulator=host.emulator("10.0"))[vm.name]
    assert report["ok"], report
    vm.snapshot()
    for version in ("10.0", "7.2"):
        before, daemon = vm.pid, host.libvirtd_pid()
        one = moved(beneath.upgrade(version, domains=[vm.name]))
        assert vm.pid == one["pid"] != before and host.libvirtd_pid() != daemon
        all_is_well(host, vm, beneath)


def test_memory_that_is_copied_once(host, beneath):
    with libvirt.Domain(host, name="plain", memory="plain", version="10.0", nic=False) as one:
        moved(beneath.upgrade("7.2", domains=[one.name]), one.name)
        one.healthy()
        assert beneath.check(domains=[one.name])[one.name]["memory_mode"] == "shared"
        moved(beneath.upgrade("10.0", domains=[one.name]), one.name)
        one.healthy()


@pytest.mark.parametrize("point", ["libvirt-stopped", "switchover", "commit", "libvirt-starting"])
def test_drover_dies(host, vm, beneath, point):
    before, version = vm.pid, other(vm)
    beneath.start(point, version=version, domains=[vm.name])
    beneath.held(point)
    # Any virsh of the user starts a libvirtd: not while the domains are drover's.
    assert not host.answers()
    beneath.kill()
    if point == "libvirt-stopped":
        assert host.answers()
    assert beneath.recover()["state"] == "done"
    assert (vm.pid == before) == (point in ("libvirt-stopped", "switchover"))
    all_is_well(host, vm, beneath)


@pytest.fixture
def another_group(host, vm):
    """The domain is in a control group that is not the user's to give, as that of another login is."""
    places = [path for path in host.cgroups.procs() if path.exists()]
    if not places:
        pytest.skip("no control group can be made here")
    group = places[0].parent / "another"
    group.mkdir()
    (group / "cgroup.procs").write_text(str(vm.pid))
    yield group
    places[0].write_text(str(vm.pid))
    wait_until(lambda: not (group / "cgroup.procs").read_text(), 20, "the control group to be empty")
    group.rmdir()


def blockers(report):
    return {finding["code"]: finding for finding in report["findings"] if finding["severity"] == "blocker"}


def test_a_control_group_of_another_login(host, vm, beneath, another_group):
    before, daemon = vm.pid, host.libvirtd_pid()
    found = blockers(beneath.check(domains=[vm.name])[vm.name])
    assert list(found) == ["process"], found
    assert "cgroup.procs" in found["process"]["text"] and "root" not in found["process"]["remedy"], found
    run = beneath.upgrade(other(vm), domains=[vm.name], fails=True)
    assert run["error"]["code"] == "refused" and (vm.pid, host.libvirtd_pid()) == (before, daemon)
    vm.healthy()


def test_a_process_that_nobody_may_look_into(host, beneath):
    """Of a program that the user may run and not read, as one with capabilities of its own is."""
    sealed = host.dir / "sealed"
    shutil.copy(host.emulator(), sealed)
    sealed.chmod(0o711)
    host.as_root("mount", "--bind", sealed, os.path.realpath(host.emulator()))
    try:
        with libvirt.Domain(host, name="sealed", nic=False) as one:
            before = one.pid, host.libvirtd_pid()
            found = blockers(beneath.check(domains=["sealed"], emulator=host.emulator("10.0"))["sealed"])
            assert "process" in found, found
            beneath.upgrade("10.0", domains=["sealed"], fails=True)
            assert (one.pid, host.libvirtd_pid()) == before
            one.healthy()
    finally:
        host.as_root("umount", os.path.realpath(host.emulator()))
