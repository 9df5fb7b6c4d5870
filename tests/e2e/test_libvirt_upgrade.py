# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other QEMUs beneath domains of an unmodified libvirt, and all that libvirt does with them afterwards."""

import contextlib
import os

import pytest

from lib import libvirt, procs
from lib.beneath import Beneath, domain_of, moved, nothing_left, there, whole_round
from lib.procs import wait_until


@pytest.fixture(scope="module")
def host():
    with libvirt.LibvirtHost() as made:
        yield made


@pytest.fixture
def beneath(host):
    return Beneath(host)


@pytest.fixture
def domain(host):
    with libvirt.domains(host) as make:
        yield make


@pytest.mark.parametrize("memory", ["memfd", "file"])
def test_to_another_qemu_and_back(host, beneath, domain, memory):
    """A disk with a snapshot and one with a pivoted commit, a disk and a NIC that were plugged in, tap, pty with virtlogd, agent."""
    vm = domain(memory=memory, disks=(64, 48), agent=True, vcpus=2)
    uuid, number = vm.virsh("domuuid"), vm.virsh("domid")
    overlay = vm.snapshot("vda")
    vm.snapshot("vdb")
    vm.blockcommit("vdb")
    vm.attach_disk(to="vdc")
    mac = vm.attach_nic()
    report = beneath.check(domains=[vm.name], emulator=host.emulator("10.0"))[vm.name]
    assert report["ok"] and report["memory_mode"] == "shared", report
    assert {"plugged", "disk-changed"} <= {finding["code"] for finding in report["findings"]}, report["findings"]
    for version, mode in (("10.0", "shared"), ("7.2", "shared")):
        one = there(beneath, vm, version)
        assert one["job"]["result"]["memory_mode"] == mode and one["job"]["result"]["pause_ms"] > 0
        assert (vm.virsh("domuuid"), vm.virsh("domid")) == (uuid, number)
        assert vm.source() == overlay and len(vm.targets()) == 3
        assert mac in [nic.find("mac").get("address") for nic in vm.live_xml().findall("devices/interface")]
        assert vm.answers_network() == vm.bootid
        assert vm.agent_command("guest-ping") == {}
        whole_round(host, vm)
        overlay = vm.snapshot("vda")
    acked = vm.console.status()["disks"][0]["acked"]
    vm.destroy()
    assert vm.state() == "shut off" and not host.qemus()
    assert vm.disk_problems(path=overlay, acked=acked) == []
    vm.virsh("start")
    wait_until(lambda: vm.state() == "running", 30, "the cold start")
    vm.destroy()


def test_plain_memory_is_copied_once_and_then_never(host, beneath, domain):
    vm = domain(memory="plain", version="10.0")
    report = beneath.check(domains=[vm.name])[vm.name]
    assert report["ok"] and report["memory_mode"] == "copy"
    note = next(finding for finding in report["findings"] if finding["code"] == "memory-mode")
    assert "copies the guest's memory once" in note["text"] and "<memoryBacking>" in note["remedy"]
    assert there(beneath, vm, "7.2")["job"]["result"]["memory_mode"] == "copy"
    assert beneath.check(domains=[vm.name])[vm.name]["memory_mode"] == "shared"
    assert there(beneath, vm, "10.0")["job"]["result"]["memory_mode"] == "shared"
    whole_round(host, vm)


def test_saved_and_started_again(host, beneath, domain):
    vm = domain(version="10.0", memory="plain")
    there(beneath, vm, "10.0")
    vm.managedsave()
    assert vm.state() == "shut off" and not host.qemus()
    vm.resume_saved()
    vm.healthy()


def test_the_guest_shuts_down_by_itself(host, beneath, domain):
    vm = domain(agent=True)
    there(beneath, vm, "10.0")
    vm.virsh("shutdown", "--mode", "agent")
    wait_until(lambda: vm.state() == "shut off", 60, "the guest to shut down")
    assert not host.qemus()


def test_a_transient_domain(host, beneath, domain):
    vm = domain(transient=True)
    there(beneath, vm, "10.0")
    vm.healthy()


def test_moved_to_another_host_afterwards():
    with libvirt.two_hosts() as (a, b):
        vm = libvirt.Domain(a, version="10.0", memory="plain")
        with contextlib.closing(vm):
            there(Beneath(a), vm, "10.0")
            vm.migrate(b)
            vm.healthy()
            there(Beneath(b), vm, "10.0")
            vm.migrate(a)
            vm.healthy()
            vm.destroy()
        assert not a.qemus() and not b.qemus()


def test_ten_domains_in_one_go(host, beneath, domain):
    vms = [domain(name=f"vm{number}", ram=128, mem=8, rate=5, disks=(16,), nic=number == 0) for number in range(10)]
    run = beneath.upgrade("10.0")
    assert len(run["domains"]) == 10
    for vm in vms:
        assert moved(run, vm.name)["pid"] == vm.pid
        vm.healthy()
    assert sorted(host.qemus()) == sorted(vm.pid for vm in vms)
    nothing_left(beneath)
    # Back, some of them by name.
    run = beneath.upgrade("7.2", domains=["vm3", "vm7"])
    assert {one["name"] for one in run["domains"]} == {"vm3", "vm7"}
    for name in ("vm3", "vm7"):
        moved(run, name)


def test_what_cannot_be_upgraded_stays_as_it_is(host, beneath, domain):
    good, paused = domain(name="good"), domain(name="paused", nic=False)
    paused.virsh("suspend")
    pids = (good.pid, paused.pid, host.libvirtd_pid())
    report = beneath.check()
    assert report["good"]["ok"] and not report["paused"]["ok"]
    assert [finding["code"] for finding in report["paused"]["findings"] if finding["severity"] == "blocker"] == ["state"]
    run = beneath.upgrade("10.0", domains=["good", "paused"], fails=True)
    assert run["error"]["code"] == "refused" and (good.pid, paused.pid, host.libvirtd_pid()) == pids
    error = beneath.refused(domains=["nobody"])
    assert error["code"] == "not-found" and beneath.run() == run and host.libvirtd_pid() == pids[2]
    run = beneath.upgrade("10.0", domains=["good"], emulator="/usr/bin/true")  # version= comes last
    moved(run, "good")
    run = beneath.upgrade(domains=["good"], emulator="/usr/bin/true", fails=True)
    assert "emulator" in [finding["code"] for finding in domain_of(run, "good")["findings"]]
    # Of all domains those that can go, go.
    run = beneath.upgrade("7.2")
    moved(run, "good")
    assert domain_of(run, "paused")["state"] == "refused" and paused.pid == pids[1]
    paused.virsh("resume")
    paused.healthy()


def test_a_new_qemu_that_fails_leaves_all_as_it_was(host, beneath, domain):
    """What the check cannot see: the emulator is good, and does not start here."""
    vm = domain()
    before = vm.pid
    broken = host.dir / "opt/broken"
    broken.write_text('#!/bin/sh\ncase "$*" in *incoming*) echo "no way" >&2; exit 3;; esac\nexec /usr/bin/qemu-system-x86_64 "$@"\n')
    broken.chmod(0o755)
    run = beneath.upgrade(domains=[vm.name], emulator="/opt/broken")
    one = domain_of(run)
    assert one["state"] == "stayed" and vm.pid == before and one["error"]["message"], run
    assert vm.status_xml().find("domain/devices/emulator").text == host.emulator()
    vm.healthy()
    whole_round(host, vm)
    nothing_left(beneath)


DEVICES = """
<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/><video><model type='vga'/></video>
<input type='tablet' bus='usb'/><sound model='ich9'/><audio id='1' type='none'/>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
<controller type='scsi' model='virtio-scsi'/>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
<watchdog model='i6300esb' action='none'/>
"""


def vnc_greets(host, vm):
    """Whether a VNC server answers where libvirt says that the domain's is."""
    display = int(vm.virsh("vncdisplay").rpartition(":")[2])
    script = f"import socket; s = socket.create_connection(('127.0.0.1', {5900 + display}), 5); print(s.recv(12).decode())"
    return host.run("/usr/bin/python3", "-c", script).stdout.startswith("RFB ")


def test_a_domain_of_many_devices(host, beneath, domain):
    """VNC, a CD that was put in later, a limit that was set later, a CPU that was added, a pinned CPU."""
    vm = domain(devices=DEVICES, more="<iothreads>1</iothreads>", vcpus=2, spare_ports=6)
    iso = host.image(4, "cd.raw", "raw")
    vm.virsh("change-media", "sda", iso, "--insert", "--live")
    vm.virsh("blkdeviotune", "vda", "--total-iops-sec", "500", "--live")
    vm.virsh("vcpupin", "1", "0", "--live")
    vm.virsh("schedinfo", "--set", "cpu_shares=512", "--live")
    assert vnc_greets(host, vm)
    for version in ("10.0", "7.2"):
        there(beneath, vm, version)
        assert vnc_greets(host, vm)
        assert iso in vm.virsh("domblklist")
        assert "total_iops_sec : 500" in " ".join(vm.virsh("blkdeviotune", "vda").split())
        thread = vm.status_xml().find("vcpus/vcpu[@id='1']").get("pid")
        assert os.sched_getaffinity(int(thread)) == {0}
        assert "/vcpu1" in host.run("cat", f"/proc/{vm.pid}/task/{thread}/cgroup").stdout
        assert "512" in vm.virsh("schedinfo")
        vm.virsh("change-media", "sda", "--eject", "--live")
        vm.virsh("change-media", "sda", iso, "--insert", "--live")


class UefiDomain(libvirt.Domain):
    def xml(self):
        return super().xml().replace("<os>", "<os><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
                                             "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'/>", 1)


def test_a_domain_with_uefi(host, beneath):
    """Its firmware sets the windows of the PCIe ports, which QEMU prints as if they were the ports' subsystems."""
    with UefiDomain(host, "uefi", memory="file", ram=256, start=False) as vm:
        vm.start(timeout=240)
        there(beneath, vm, "10.0")
        there(beneath, vm, "7.2")


NUMA = """<numa><cell id='0' cpus='0' memory='128' unit='MiB' memAccess='shared'/><cell id='1' cpus='1' memory='128' unit='MiB' memAccess='shared'/></numa>"""


class TunedDomain(libvirt.Domain):
    """NUMA nodes and a DIMM, I/O threads and pins, limits, several queues, disks on SCSI and SATA, old USB, qxl, a VNC password."""

    MORE = """<iothreads>2</iothreads>
<cputune><vcpupin vcpu='0' cpuset='0-1'/><emulatorpin cpuset='0-1'/><iothreadpin iothread='1' cpuset='0'/></cputune>"""
    DEVICES = """
<controller type='usb' model='ich9-ehci1'/><controller type='usb' model='ich9-uhci1'><master startport='0'/></controller>
<controller type='scsi' index='0' model='virtio-scsi'><driver queues='2' iothread='1'/></controller>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap' detect_zeroes='unmap' iothread='2'/>
  <source file='{qcow2}'/><target dev='vdb' bus='virtio'/><serial>abc123</serial>
  <iotune><total_iops_sec>800</total_iops_sec><total_bytes_sec>100000000</total_bytes_sec></iotune></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw' cache='writeback' error_policy='stop'/>
  <source file='{raw}'/><target dev='sdb' bus='scsi'/><wwn>5000c50015ea71aa</wwn></disk>
<disk type='file' device='cdrom'><source file='{cd}'/><target dev='sdc' bus='sata'/><readonly/></disk>
<disk type='file' device='cdrom'><target dev='sdd' bus='sata'/><readonly/></disk>
<serial type='file'><source path='/var/lib/libvirt/images/second.log'/><target port='1'/></serial>
<interface type='user'><mac address='52:54:00:77:00:09'/><model type='e1000e'/></interface>
<video><model type='qxl' ram='65536' vram='65536' vgamem='16384' heads='1'/></video><graphics type='vnc' autoport='yes' passwd='abcd'/>
<rng model='virtio'><rate bytes='1024' period='1000'/><backend model='builtin'/></rng>
<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target></memory>
"""

    def xml(self):
        text = super().xml().replace("<memory unit='MiB'>", "<maxMemory slots='4' unit='MiB'>1024</maxMemory><memory unit='MiB'>", 1)
        text = text.replace("<model>qemu64</model></cpu>", f"<model>qemu64</model>{NUMA}</cpu>")
        return text.replace("<model type='virtio'/></interface>", "<model type='virtio'/><driver name='qemu' queues='2'/></interface>")


def test_a_domain_that_somebody_has_tuned(host, beneath):
    images = {"qcow2": host.image(16, "tuned.qcow2"), "raw": host.image(16, "tuned.raw", "raw"), "cd": host.image(4, "tuned.iso", "raw")}
    with TunedDomain(host, "tuned", memory="file", ram=384, vcpus=2, spare_ports=6, devices=TunedDomain.DEVICES.format(**images),
                     more=TunedDomain.MORE) as vm:
        report = beneath.check(emulator=host.emulator("10.0"))["tuned"]
        assert report["ok"] and {f["code"] for f in report["findings"]} == {"chardev-pty", "memory-mode"}, report
        for version in ("10.0", "7.2"):
            there(beneath, vm, version)
            assert "total_iops_sec : 800" in " ".join(vm.virsh("blkdeviotune", "vdb").split())


def test_an_image_that_was_given_to_somebody_else(host, beneath, domain):
    """The QEMU that has it open could not take it back."""
    vm = domain()
    image = host.path(vm.disks[0])
    owner, before = image.stat(), vm.pid
    os.chown(image, 0, 0)
    image.chmod(0o644)
    one = domain_of(beneath.upgrade("10.0", domains=[vm.name]))
    assert one["state"] == "stayed" and "may not open its image" in one["error"]["message"] and vm.pid == before
    vm.healthy()
    os.chown(image, owner.st_uid, owner.st_gid)
    there(beneath, vm, "10.0")


def test_a_disk_on_a_block_device(host, beneath, domain):
    """libvirt gives its QEMU a /dev of its own, in which the node is its user's; the host's is not."""
    image = host.path(host.image(16, "block.raw", "raw"))
    made = procs.run("losetup", "-f", "--show", image, check=False)
    if made.returncode:
        pytest.skip(f"no loop devices: {made.stderr.strip()}")
    loop = made.stdout.strip()
    try:
        os.chmod(loop, 0o600)
        vm = domain(devices=f"<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none'/><source dev='{loop}'/>"
                            "<target dev='vdz' bus='virtio'/></disk>")
        there(beneath, vm, "10.0")
        assert vm.source("vdz") == loop
        there(beneath, vm, "7.2")
        vm.destroy()
    finally:
        procs.run("losetup", "-d", loop)


def test_a_domain_without_acpi(host, beneath, domain):
    """libvirt 9.0 says -no-acpi, which QEMU 10.0 does not know any more."""
    vm = domain(start=False)
    vm.xml = lambda xml=vm.xml(): xml.replace("<features><acpi/></features>", "")
    vm.virsh("undefine")
    vm.define()
    vm.start()
    assert "-no-acpi" in vm.argv()
    there(beneath, vm, "10.0")
    there(beneath, vm, "7.2")
