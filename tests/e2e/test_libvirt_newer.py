# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other QEMUs beneath the domains of newer libvirts than the machine's."""

import pytest

from lib import libvirt
from lib.beneath import nothing_left, there, whole_round
from lib.libvirt_newer import NewerBeneath, NewerHost
from lib.procs import wait_until


@pytest.fixture(scope="module", params=["11.3", "12"])
def host(request):
    with NewerHost(request.param, emulators=("11.1",)) as made:
        # What unstable has is another one every month.
        made.spec = {"untested": True} if request.param == "12" else {}
        yield made


@pytest.fixture
def beneath(host):
    return NewerBeneath(host)


def test_to_another_qemu_and_what_people_do_then(host, beneath):
    """To the one in /usr, which is another version with libvirt 11.3, and the same one elsewhere with 12."""
    with libvirt.Domain(host, version="11.1", memory="file", disks=(64, 48), agent=True, vcpus=2) as vm:
        overlay = vm.snapshot("vda")
        vm.attach_disk(to="vdc")
        mac = vm.attach_nic()
        report = beneath.check(domains=[vm.name], emulator=host.emulator(), **host.spec)[vm.name]
        assert report["ok"] and report["memory_mode"] == "shared", report
        there(beneath, vm, None, emulator=host.emulator(), **host.spec)
        assert vm.source() == overlay and len(vm.targets()) == 3
        assert mac in [nic.find("mac").get("address") for nic in vm.live_xml().findall("devices/interface")]
        assert vm.agent_command("guest-ping") == {}
        whole_round(host, vm)
        pid = vm.pid
        host.stop_libvirtd()
        host.start_libvirtd()
        assert vm.pid == pid and vm.state() == "running"
        vm.managedsave()
        vm.resume_saved()
        vm.healthy()


@pytest.mark.parametrize("point", ["switchover", "commit"])
def test_drover_dies(host, beneath, point):
    with libvirt.Domain(host, version="11.1", memory="file", nic=False) as vm:
        before = vm.pid
        beneath.start(point, domains=[vm.name], emulator=host.emulator(), **host.spec)
        beneath.held(point)
        beneath.kill()
        assert beneath.recover()["state"] == "done"
        wait_until(host.answers, 60, "libvirtd to answer")
        assert vm.state() == "running" and host.qemus() == [vm.pid] and (vm.pid == before) == (point == "switchover")
        vm.healthy()
        nothing_left(beneath)
