# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever dies while other QEMUs are put beneath libvirt's domains: a domain is never lost and never doubled, libvirt's daemon is up again, and
its view is true."""

import signal

import pytest

from lib import libvirt
from lib.beneath import Beneath, domain_of, moved, nothing_left
from lib.procs import kill_pid, wait_until

# In the order of a run; from the mark on, which is written between the two middle ones, the new QEMU is the one.
BEFORE = ["libvirt-checking", "libvirt-stopping", "libvirt-stopped", "libvirt-moving", "preflight", "start", "verify", "transfer", "switchover"]
AFTER = ["resume", "commit", "libvirt-patching", "libvirt-patched-one", "libvirt-starting", "libvirt-verifying", "libvirt-done"]


@pytest.fixture(scope="module")
def host():
    with libvirt.LibvirtHost() as made:
        yield made


@pytest.fixture
def beneath(host):
    return Beneath(host)


@pytest.fixture(scope="module")
def vm(host):
    """One for all: each test leaves it as healthy as it was. Its disk has a snapshot, so that its command line is not the truth."""
    with libvirt.Domain(host, vcpus=2) as made:
        made.snapshot()
        yield made


def other(vm):
    """The QEMU that it does not have now."""
    return "7.2" if "10.0" in vm.live_xml().find("devices/emulator").text else "10.0"


def all_is_well(host, vm, beneath, pid=None):
    """One QEMU, libvirt is up and sees it, and the guest is the same."""
    wait_until(host.answers, 60, "libvirtd to answer")
    assert vm.state() == "running" and host.qemus() == [vm.pid] and vm.status_xml().get("pid") == str(vm.pid)
    if pid:
        assert vm.pid == pid
    vm.healthy()
    vm.virsh("suspend")
    vm.virsh("resume")
    vm.healthy()
    nothing_left(beneath)


@pytest.mark.parametrize("point", BEFORE + AFTER)
def test_drover_dies(host, vm, beneath, point):
    before, version = vm.pid, other(vm)
    beneath.start(point, version=version, domains=[vm.name])
    beneath.held(point)
    beneath.kill()
    run = beneath.recover()
    assert run["state"] == "done"
    if point == "libvirt-checking":
        assert host.libvirtd_pid() and not run["domains"][0].get("facts")
    if point in BEFORE:
        all_is_well(host, vm, beneath, before)
        assert other(vm) == version
    else:
        all_is_well(host, vm, beneath)
        assert vm.pid != before and other(vm) != version
        if point != "libvirt-done":
            moved(run)


def test_it_dies_in_its_recovery_too(host, vm, beneath):
    before, version = vm.pid, other(vm)
    beneath.start("commit", version=version, domains=[vm.name])
    beneath.held("commit")
    beneath.kill()
    for point in ("recover", "libvirt-patching", "libvirt-recover", "libvirt-starting"):
        beneath.start_recovery(point)
        beneath.held(point)
        beneath.kill()
    moved(beneath.recover())
    all_is_well(host, vm, beneath)
    assert vm.pid != before


@pytest.mark.parametrize("point", ["switchover", "commit", "libvirt-patching"])
def test_libvirtd_is_started_by_somebody_while_drover_is_dead(host, vm, beneath, point):
    before, version = vm.pid, other(vm)
    beneath.start(point, version=version, domains=[vm.name])
    beneath.held(point)
    beneath.kill()
    host.run(libvirt.program("libvirtd"), "-d")
    beneath.recover()
    all_is_well(host, vm, beneath, before if point == "switchover" else None)
    assert (vm.pid == before) == (point == "switchover")


def test_files_that_cannot_be_written(host, vm, beneath):
    """Then libvirt's daemon stays away: with the pid of the old QEMU it would take the domain for ended."""
    before, version = vm.pid, other(vm)
    beneath.start("commit", version=version, domains=[vm.name])
    beneath.held("commit")
    status = host.path(f"{libvirt.STATE}/{vm.name}.xml")
    aside = status.with_suffix(".aside")
    status.rename(aside)
    beneath.go()
    run = beneath.ended()
    one = domain_of(run)
    assert run["state"] != "done" and one["state"] == "moved" and one["error"]["code"] == "attention", run
    assert not host.libvirtd_pid() and host.qemus() == [one["pid"]] and one["pid"] != before
    aside.rename(status)
    moved(beneath.recover())
    all_is_well(host, vm, beneath, one["pid"])


def test_a_script_starts_the_new_qemu_and_drover_dies_before_it_knows(host, vm, beneath):
    """The process is found by the monitor's socket, which it has, too."""
    before = vm.pid
    beneath.start("spawned", version=other(vm), domains=[vm.name])
    beneath.held("spawned")
    wait_until(lambda: len(host.qemus()) == 2, 30, "the new QEMU to be what its script becomes")
    beneath.kill()
    beneath.recover()
    all_is_well(host, vm, beneath, before)


@pytest.mark.parametrize("point", ["libvirt-checking", "libvirt-stopping"])
def test_libvirtd_dies(host, vm, beneath, point):
    before = vm.pid
    beneath.start(point, version=other(vm), domains=[vm.name])
    beneath.held(point)
    kill_pid(host.libvirtd_pid(), sig=signal.SIGKILL)
    beneath.go()
    run = beneath.ended()
    if not host.libvirtd_pid():  # it had died before drover had found out how to start it
        assert run["error"]["code"] == "not-found" and vm_is_untouched(run)
        host.start_libvirtd()
    else:
        moved(run)
        assert vm.pid != before
    all_is_well(host, vm, beneath)


def vm_is_untouched(run):
    return domain_of(run)["state"] == "waiting"


@pytest.mark.parametrize("point", ["verify", "transfer", "switchover"])
def test_the_new_qemu_dies(host, vm, beneath, point):
    before = vm.pid
    beneath.start(point, version=other(vm), domains=[vm.name])
    beneath.held(point)
    kill_pid(next(pid for pid in host.qemus() if pid != before))
    beneath.go()
    run = beneath.ended()
    one = domain_of(run)
    assert run["state"] == "done" and one["state"] == "stayed" and one["error"]["message"], (run, beneath.process.output())
    all_is_well(host, vm, beneath, before)


def test_the_old_qemu_dies_when_the_new_one_has_all(host, vm, beneath):
    before = vm.pid
    beneath.start("switchover", version=other(vm), domains=[vm.name])
    beneath.held("switchover")
    kill_pid(before)
    beneath.go()
    moved(beneath.ended())
    all_is_well(host, vm, beneath)


def test_the_old_qemu_dies_with_the_guest(host, vm, beneath):
    before = vm.pid
    beneath.start("transfer", version=other(vm), domains=[vm.name])
    beneath.held("transfer")
    kill_pid(before)
    beneath.go()
    one = domain_of(beneath.ended())
    assert one["state"] == "lost" and "ended" in one["error"]["message"], one
    wait_until(lambda: vm.state() == "shut off", 30, "libvirt to see that it has ended")
    assert not host.qemus()
    vm.close()
    vm.start()
    all_is_well(host, vm, beneath)
