# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other QEMUs beneath the domains of virtqemud, libvirt's daemon for QEMU alone."""

import pytest

from lib import libvirt
from lib.beneath import Beneath, moved, nothing_left, there, whole_round
from lib.libvirt_split import SplitHost
from lib.procs import wait_until


@pytest.fixture(scope="module")
def host():
    with SplitHost() as made:
        yield made


@pytest.fixture
def beneath(host):
    return Beneath(host)


@pytest.fixture(scope="module")
def vm(host):
    with libvirt.Domain(host, vcpus=2, agent=True) as made:
        yield made


def other(vm):
    """The QEMU that it does not have now."""
    return "7.2" if "10.0" in vm.live_xml().find("devices/emulator").text else "10.0"


def test_there_and_back(host, beneath, vm):
    assert vm.snapshot() == vm.source()
    for version in ("10.0", "7.2"):
        daemon = host.libvirtd_pid()
        there(beneath, vm, version)
        assert beneath.run()["daemon_name"] == f"virtqemud, pid {daemon}" and host.libvirtd_pid() not in (None, daemon)
        assert vm.agent_command("guest-ping") == {} and vm.answers_network() == vm.bootid
        whole_round(host, vm)


@pytest.mark.parametrize("point", ["libvirt-stopped", "switchover", "commit", "libvirt-starting"])
def test_drover_dies(host, vm, beneath, point):
    before = vm.pid
    beneath.start(point, version=other(vm), domains=[vm.name])
    beneath.held(point)
    beneath.kill()
    assert beneath.recover()["state"] == "done"
    wait_until(host.answers, 60, "virtqemud to answer")
    assert vm.state() == "running" and host.qemus() == [vm.pid]
    assert (vm.pid == before) == (point in ("libvirt-stopped", "switchover"))
    vm.healthy()
    nothing_left(beneath)


def test_somebody_starts_a_daemon_meanwhile(host, vm, beneath):
    """The other one, libvirtd, too: neither gets the driver."""
    beneath.start("transfer", version=other(vm), domains=[vm.name])
    beneath.held("transfer")
    for program in (host.program(), libvirt.program("libvirtd")):
        host.run(program, "-d", check=False)
        assert not host.answers()
    beneath.go()
    moved(beneath.ended())
    vm.healthy()
