# SPDX-License-Identifier: LGPL-2.1-or-later
"""The libvirt hosts that other tests stand on (lib/libvirt.py): libvirt does there what it does on a machine, and nothing stays behind."""

import os
import signal
from pathlib import Path

import pytest

from lib import libvirt
from lib.procs import wait_until


@pytest.fixture(scope="module")
def host():
    with libvirt.LibvirtHost() as made:
        yield made


@pytest.fixture
def domain(host):
    with libvirt.domains(host) as make:
        yield make


def uid_of(pid):
    return os.stat(f"/proc/{pid}").st_uid


def own(pid, what):
    """Whether a process has another namespace of that kind than ours."""
    return os.readlink(f"/proc/{pid}/ns/{what}") != os.readlink(f"/proc/self/ns/{what}")


@pytest.mark.parametrize("memory", ["memfd", "file", "plain"])
def test_a_guest_boots_and_is_healthy(host, domain, memory):
    vm = domain(memory=memory)
    assert vm.state() == "running" and host.qemus() == [vm.pid]
    assert vm.healthy()["disks"][0]["acked"] > 0
    assert vm.answers_network() == vm.bootid
    # As on a machine: another user, mounts of its own, libvirt's cgroup, the serial port's log at virtlogd.
    assert uid_of(vm.pid) != 0 and own(vm.pid, "mnt") and own(vm.pid, "net")
    assert "/machine/qemu-" in host.run("cat", f"/proc/{vm.pid}/cgroup").stdout
    assert vm.status_xml().get("pid") == str(vm.pid)
    assert vm.status_xml().find("namespaces/mount") is not None
    acked = vm.console.status()["disks"][0]["acked"]
    vm.destroy()
    assert vm.state() == "shut off" and not host.qemus()
    assert vm.disk_problems(acked) == []


@pytest.mark.parametrize("version, machine", [("5.2", "pc-q35-5.2"), ("10.0", "pc-q35-7.2"), ("11.1", "pc-q35-7.2")])
def test_an_unpacked_qemu_is_an_emulator(version, machine):
    with libvirt.LibvirtHost(emulators=(version,), droverd=False) as host:
        is_emulator(host, version, libvirt.Domain(host, version=version, machine=machine))


def is_emulator(host, version, vm):
    vm.healthy()
    assert vm.live_xml().find("devices/emulator").text == f"/opt/qemu-{version}/qemu-system-x86_64"
    assert vm.qmp("query-version")["qemu"]["major"] == int(version.split(".")[0])
    # Modules of another version would make libvirt's next look at it fail.
    assert b"QEMU_MODULE_DIR=/opt/" in Path(f"/proc/{vm.pid}/environ").read_bytes()
    assert "<domainCapabilities>" in host.virsh("domcapabilities", "--emulatorbin", host.emulator(version))


def test_libvirtd_can_be_away(host, domain):
    vm = domain()
    pid, id = vm.pid, vm.virsh("domid")
    for sig, foreground in ((signal.SIGTERM, True), (signal.SIGKILL, False)):
        host.stop_libvirtd(sig)
        assert host.libvirtd_pid() is None and not host.answers()
        vm.console.check(bootid=vm.bootid)
        host.start_libvirtd(foreground)
        assert vm.state() == "running" and (vm.pid, vm.virsh("domid")) == (pid, id)
        vm.healthy()


def test_snapshot_and_commit(domain):
    vm = domain(disks=(64, 64))
    for to in ("vda", "vdb"):
        base = vm.source(to)
        overlay = vm.snapshot(to)
        assert vm.source(to) == overlay != base
        vm.healthy()
        vm.blockcommit(to)
        assert vm.source(to) == base
    acked = {disk["path"]: disk["acked"] for disk in vm.healthy()["disks"]}
    vm.destroy()
    assert [vm.disk_problems(acked[f"/dev/{to}"], number) for number, to in enumerate(("vda", "vdb"))] == [[], []]


def test_hotplug(domain):
    vm = domain(vcpus=2)
    vm.attach_disk(to="vdb")
    vm.attach_nic()
    status = vm.healthy()
    assert [disk["path"] for disk in status["disks"]] == ["/dev/vda", "/dev/vdb"]
    assert len(status["nics"]) == 2
    vm.detach_disk("vdb")
    vm.detach_nic()
    wait_until(lambda: vm.targets() == ["vda"], 20, "the disk to be unplugged")
    wait_until(lambda: len(vm.console.status()["nics"]) == 1, 20, "the NIC to be unplugged")
    vm.healthy()


def test_events(host, domain):
    with host.events() as events:
        vm = domain()
        events.wait("lifecycle", vm.name, "Started")
        vm.virsh("suspend")
        events.wait("lifecycle", vm.name, "Suspended")
        since = len(events.lines)
        vm.virsh("resume")
        events.wait("lifecycle", vm.name, "Resumed", since=since)
        vm.healthy()
        vm.destroy()
        events.wait("lifecycle", vm.name, "Stopped")


def test_managedsave_and_start(domain):
    # Its RAM is copied: not before QEMU 9.0 under TCG.
    vm = domain(version="10.0")
    vm.managedsave()
    assert vm.state() == "shut off"
    vm.resume_saved()
    vm.healthy()


def test_a_cold_start_is_another_boot(domain):
    vm = domain()
    first = vm.bootid
    vm.destroy()
    vm.start()
    assert vm.bootid != first
    vm.healthy()


def test_a_transient_domain(host, domain):
    vm = domain(transient=True)
    vm.healthy()
    vm.destroy()
    assert vm.name not in host.virsh("list", "--all", "--name").split()


def test_the_guest_agent(domain):
    vm = domain(agent=True)
    wait_until(lambda: vm.status_xml().find(".//channel/target").get("state") == "connected", 30, "the agent to be connected")
    assert vm.agent_command("guest-info")["version"]
    vm.healthy()


@pytest.mark.parametrize("memory", ["plain", "memfd"])
def test_migrate_there_and_back(memory):
    with libvirt.two_hosts(droverd=False) as (a, b):
        vm = libvirt.Domain(a, version="10.0", memory=memory)
        there = vm.pid
        vm.migrate(b)
        assert not a.qemus() and b.qemus() == [vm.pid] and vm.pid != there
        vm.healthy()
        assert vm.answers_network() == vm.bootid
        vm.migrate(a, p2p=True)
        assert not b.qemus() and a.qemus() == [vm.pid]
        vm.snapshot()
        vm.blockcommit()
        acked = vm.healthy()["disks"][0]["acked"]
        vm.destroy()
        assert vm.disk_problems(acked) == []


def test_drover_is_inside(host, domain):
    """droverd and drover see the host's libvirt, and the pids of its QEMUs."""
    vm = domain()
    assert own(host.daemon.process.pid, "net") and own(host.daemon.process.pid, "mnt")
    assert (Path(f"/proc/{host.daemon.process.pid}/root") / f"run/libvirt/qemu/{vm.name}.pid").read_text() == str(vm.pid)
    assert host.daemon.json("list") == []


def test_a_machine_without_libvirts_user(monkeypatch):
    """As after installing the programs without the package that sets the service up."""
    def unknown(name):
        raise KeyError(name)

    monkeypatch.setattr(libvirt.pwd, "getpwnam", unknown)
    with libvirt.LibvirtHost(emulators=(), droverd=False) as host:
        assert f"{libvirt.USER}:x:64055:64055:" in host.run("cat", "/etc/passwd").stdout
        vm = libvirt.Domain(host)
        assert uid_of(vm.pid) == 64055
        vm.healthy()


def test_nothing_is_left():
    with pytest.raises(ZeroDivisionError):
        with libvirt.LibvirtHost() as host:
            vm = libvirt.Domain(host)
            pids, directory = [vm.pid, *host.pids()], host.dir
            # One that libvirt has forgotten is found, too.
            host.stop_libvirtd()
            vm.pid_file().unlink()
            1 / 0
    assert len(pids) >= 4
    assert [pid for pid in pids if guest_of(pid, directory)] == []
    assert not directory.exists()
    assert list(Path("/sys/fs/cgroup").glob(f"*/{directory.name}")) == []
    assert not Path(f"/run/netns/{host.netns}").exists()


def guest_of(pid, directory):
    """Whether a pid is still a process of that host, and not another one's by now."""
    try:
        return str(directory) in Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:
        return False
