# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks, flash, media and plugged-in devices over upgrades: the same afterwards, and no acknowledged write lost."""

import os
import re
import shutil
from pathlib import Path

import pytest

from lib import drover, guest, hosts, peers
from lib.disks import acked_at_the_end, as_raw, digest, new_image, writes_go_on
from lib.guest import DiskImage
from lib.procs import run, wait_until

SMALL = {"ram": "131080k", "mem": 16, "rate": 50}
THERE_AND_BACK = ("10.0", "7.2")
OVMF = Path("/usr/share/OVMF")


@pytest.fixture
def start():
    started = []

    def start_one(daemon, **options):
        started.append(drover.Witness(daemon, **{**SMALL, **options}))
        return started[-1]

    yield start_one
    for vm in started:
        vm.close()


# --- Disks ---


def test_no_acknowledged_write_is_lost_on_any_kind_of_disk(daemon, start):
    kinds = [  # (format, options), as /dev/vda, vdb ...
        ("raw", "-drive if=virtio,format=raw,cache=none,file={0}"),
        ("qcow2", "-drive if=virtio,format=qcow2,file={0}"),
        ("raw", "-blockdev driver=raw,node-name=n2,file.driver=file,file.filename={0},cache.direct=on"
                " -device virtio-blk-pci,drive=n2,id=d2"),
        ("qcow2", "-blockdev driver=file,node-name=p3,filename={0},aio=threads -blockdev driver=qcow2,node-name=n3,file=p3"
                  " -device virtio-blk-pci,drive=n3,id=d3"),
        ("qcow2", "-drive if=none,id=h4,format=qcow2,file={0},cache=writethrough,discard=unmap -device virtio-blk-pci,drive=h4"),
        ("raw", "-drive if=none,id=h5,format=raw,file={0},cache=directsync,aio=native -device virtio-blk-pci,drive=h5,serial=five"),
    ]
    # Of different sizes, so that the guest tells which is which.
    images = [new_image(daemon.dir / f"disk{number}", form, mib=8 + number) for number, (form, _) in enumerate(kinds)]
    names = [f"/dev/vd{'abcdefgh'[number]}" for number in range(len(kinds))]
    extra = [word for (_, options), image in zip(kinds, images) for word in options.format(image).split()]
    vm = start(daemon, extra=extra, witness={"disk": ",".join(names), "diskrate": 50})
    files = {disk["file"] for disk in daemon.show(vm.name)["disks"]}
    assert files == {str(image) for image in images}
    writes_go_on(vm, *names)
    for version in THERE_AND_BACK:
        vm.upgrade(version)
        writes_go_on(vm, *names)
        assert {disk["file"] for disk in daemon.show(vm.name)["disks"]} == files
    sizes = {f"/dev/{disk['name']}": disk["bytes"] >> 20 for disk in vm.console.status()["block"]}
    acked = acked_at_the_end(daemon, vm, *names)
    for name in names:
        number = sizes[name] - 8
        assert DiskImage(as_raw(images[number], kinds[number][0])).problems(acked[name]) == [], kinds[number]
    for image, (form, _) in zip(images, kinds):
        if form == "qcow2":
            run("qemu-img", "check", image)


def test_writes_as_fast_as_they_go_over_several_upgrades(daemon, start):
    image = new_image(daemon.dir / "disk", "qcow2", 64)
    vm = start(daemon, extra=["-drive", f"if=virtio,format=qcow2,cache=none,file={image}"],
               witness={"disk": "/dev/vda", "diskrate": 0, "diskmib": 32})
    for version in (*THERE_AND_BACK, "10.0", "7.2"):
        vm.upgrade(version)
        writes_go_on(vm, "/dev/vda")
    acked = acked_at_the_end(daemon, vm, "/dev/vda")
    assert DiskImage(as_raw(image, "qcow2"), 32).problems(acked["/dev/vda"]) == []
    run("qemu-img", "check", image)


def test_a_disk_with_a_backing_file_and_a_read_only_one(daemon, start):
    base, top, other = (daemon.dir / name for name in ("base", "top", "other"))
    new_image(base)
    new_image(top, "qcow2", backing=(base, "raw"))
    new_image(other)
    untouched = digest(base), digest(other)
    vm = start(daemon, witness={"disk": "/dev/vda"},
               extra=["-drive", f"if=virtio,format=qcow2,file={top}", "-drive",
                      f"if=virtio,format=raw,readonly=on,file={other}"])
    for version in THERE_AND_BACK:
        vm.upgrade(version)
        writes_go_on(vm, "/dev/vda")
    acked = acked_at_the_end(daemon, vm, "/dev/vda")
    assert DiskImage(as_raw(top, "qcow2")).problems(acked["/dev/vda"]) == []
    assert (digest(base), digest(other)) == untouched


def test_a_vm_started_with_snapshot_is_refused(daemon, start):
    """-snapshot writes into a temporary file that only this process has open."""
    image = new_image(daemon.dir / "disk")
    vm = start(daemon, extra=["-snapshot", "-drive", f"if=virtio,format=raw,file={image}"], witness={"disk": "/dev/vda"})
    pid = vm.pid
    writes_go_on(vm, "/dev/vda")
    error = daemon.refused("upgrade", vm.name, "--qemu", guest.qemu("10.0"))
    assert error["code"] == "refused" and error["remedy"]
    writes_go_on(vm, "/dev/vda")
    assert vm.pid == pid and not any(image.read_bytes())


# --- Flash ---


def ovmf():
    for code, variables in (("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd")):
        if (OVMF / code).exists() and (OVMF / variables).exists():
            return OVMF / code, OVMF / variables
    pytest.skip(f"no OVMF in {OVMF}")


def flash_of(daemon, name, size):
    """The last `size` bytes below 4 GiB, as the guest reads them."""
    path = daemon.dir / "flash"
    daemon.qmp(name, "pmemsave", {"val": (1 << 32) - size, "size": size, "filename": str(path)})
    return path.read_bytes()


@pytest.mark.parametrize("how", ["drive", "blockdev"])
def test_flash_keeps_the_variables_that_the_firmware_wrote(daemon, how):
    code, template = ovmf()
    variables = daemon.dir / "vars.fd"
    shutil.copyfile(template, variables)
    size = code.stat().st_size + variables.stat().st_size
    flash = {
        "drive": ["-drive", f"if=pflash,format=raw,readonly=on,file={code}", "-drive", f"if=pflash,format=raw,file={variables}"],
        "blockdev": ["-blockdev", f"driver=file,node-name=code,read-only=on,filename={code}", "-blockdev",
                     f"driver=file,node-name=vars,filename={variables}", "-machine", "pflash0=code,pflash1=vars"],
    }[how]
    daemon.run("run", "vm", "--", guest.qemu("7.2"), "-machine", "pc-q35-7.2", "-accel", "tcg", "-m", "131080k", "-nodefaults",
               "-display", "none", "-serial", f"file:{daemon.dir}/serial", *flash)
    # Its first start writes its variables.
    wait_until(lambda: digest(variables) != digest(template), 120, "the firmware to write a variable")
    for version in THERE_AND_BACK:
        daemon.upgrade("vm", guest.qemu(version))
        assert digest(variables) != digest(template)
        # In the middle of a write the flash answers with its state: until it is at rest.
        wait_until(lambda: flash_of(daemon, "vm", size) == variables.read_bytes() + code.read_bytes(), 60,
                   "the flash to read as the file is")
        assert daemon.state("vm") == "running"
    daemon.run("stop", "vm", "--force")


# --- Media ---


def drives(daemon, name):
    """Each drive's medium and tray, as QEMU has them."""
    return {entry["device"] or entry.get("qdev"): (entry["inserted"]["image"]["filename"] if entry.get("inserted") else None,
                                                   entry.get("tray_open", False), entry["inserted"]["ro"] if entry.get("inserted") else None)
            for entry in daemon.qmp(name, "query-block")}


@pytest.mark.parametrize("machine", ["pc-q35-7.2", "pc-i440fx-7.2"])
def test_cd_drives_have_the_medium_that_they_had(daemon, start, machine):
    first, second, third = (new_image(daemon.dir / name, mib=1) for name in ("first.iso", "second.iso", "third.iso"))
    vm = start(daemon, machine=machine,
               extra=["-cdrom", first, "-drive", "if=none,id=empty,media=cdrom", "-device", "ide-cd,drive=empty,id=cd1,bus=ide.0",
                      "-device", "virtio-scsi-pci,id=s0", "-drive", f"if=none,id=scsi,media=cdrom,readonly=on,format=raw,file={first}",
                      "-device", "scsi-cd,drive=scsi,bus=s0.0,id=cd2"])

    def hmp(line):
        return daemon.qmp(vm.name, "human-monitor-command", {"command-line": line})

    def same_over_an_upgrade(version):
        before = drives(daemon, vm.name)
        vm.upgrade(version)
        assert drives(daemon, vm.name) == before
        return before

    seen = same_over_an_upgrade("10.0")
    assert seen["ide2-cd0" if "q35" in machine else "ide1-cd0"][0] == str(first) and seen["empty"][0] is None
    # Another medium in one, a first one in the empty one, none in the third.
    for device, image in (("ide2-cd0" if "q35" in machine else "ide1-cd0", second), ("empty", third)):
        daemon.qmp(vm.name, "blockdev-change-medium", {"device": device, "filename": str(image), "format": "raw"})
    daemon.qmp(vm.name, "eject", {"id": "cd2", "force": True})
    seen = same_over_an_upgrade("7.2")
    assert seen["ide2-cd0" if "q35" in machine else "ide1-cd0"][0] == str(second) and seen["empty"][0] == str(third)
    assert seen["scsi"][0] is None
    same_over_an_upgrade("10.0")
    assert "pattern" not in hmp("qemu-io empty \"read -P 0 0 512\"").lower()


# --- Plugged in ---


def hot_pluggable(machine):
    """Options for a machine, and where a device goes on it."""
    if "q35" in machine:
        return [word for number in (1, 2, 3) for word in ("-device", f"pcie-root-port,id=rp{number},chassis={number}")], "rp{}"
    return [], "pci.0"


def plug_disk(daemon, vm, bus, image, form, name):
    daemon.qmp(vm.name, "blockdev-add", {"driver": form, "node-name": f"{name}-node", "file": {"driver": "file", "filename": str(image)}})
    daemon.qmp(vm.name, "device_add", {"driver": "virtio-blk-pci", "id": name, "drive": f"{name}-node", "bus": bus,
                                       "serial": name})


def forwarded(daemon, name):
    """The port that the host's UDP forward has got."""
    text = daemon.qmp(name, "human-monitor-command", {"command-line": "info usernet"})
    return int(re.search(r"UDP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", text)[1])


@pytest.mark.parametrize("machine", ["pc-q35-7.2", "pc-i440fx-7.2"])
def test_devices_plugged_in_stay_and_unplugged_ones_stay_away(daemon, start, machine):
    options, bus = hot_pluggable(machine)
    first, second = new_image(daemon.dir / "first"), new_image(daemon.dir / "second", "qcow2")
    vm = start(daemon, machine=machine, extra=options)
    plug_disk(daemon, vm, bus.format(1), first, "raw", "plugged1")
    plug_disk(daemon, vm, bus.format(2), second, "qcow2", "plugged2")
    daemon.qmp(vm.name, "netdev_add", {"type": "user", "id": "u1"})
    daemon.qmp(vm.name, "human-monitor-command", {"command-line": "hostfwd_add u1 udp:127.0.0.1:0-:7000"})
    daemon.qmp(vm.name, "device_add", {"driver": "virtio-net-pci", "id": "nic1", "netdev": "u1", "bus": bus.format(3),
                                       "mac": "52:54:00:d0:00:77", "romfile": ""})
    vm.console.command("disk /dev/vda")
    vm.console.command("disk /dev/vdb")
    wait_until(lambda: vm.console.status()["nics"], 30, "the guest to see its new NIC")
    vm.console.command("net eth0 10.0.2.15/24 10.0.2.2")
    port = forwarded(daemon, vm.name)

    def same_over_an_upgrade(version):
        before = daemon.qmp(vm.name, "query-pci")
        vm.upgrade(version)
        assert addresses(daemon.qmp(vm.name, "query-pci")) == addresses(before)
        writes_go_on(vm, "/dev/vda")

    for version in THERE_AND_BACK:
        same_over_an_upgrade(version)
        writes_go_on(vm, "/dev/vdb")
        status = vm.console.status()
        assert [nic["mac"] for nic in status["nics"] if nic["name"] == "eth0"] == ["52:54:00:d0:00:77"]
        assert {disk["name"]: disk["serial"] for disk in status["block"]} == {"vda": "plugged1", "vdb": "plugged2"}
        assert forwarded(daemon, vm.name) == port
        udp = guest.Udp("127.0.0.1", port)
        assert udp.status(timeout=20)["bootid"] == vm.bootid
        udp.close()
    # Out with the second disk and the NIC.
    vm.console.command("diskstop /dev/vdb")
    for name in ("plugged2", "nic1"):
        daemon.qmp(vm.name, "device_del", {"id": name})
        wait_until(lambda: f'"{name}"' not in daemon.run("qmp", vm.name, "qom-list", '{"path": "/machine/peripheral"}').stdout, 60,
                   f"the guest to let go of {name}")
    daemon.qmp(vm.name, "blockdev-del", {"node-name": "plugged2-node"})
    daemon.qmp(vm.name, "netdev_del", {"id": "u1"})
    same_over_an_upgrade("10.0")
    same_over_an_upgrade("7.2")
    running = " ".join(daemon.show(vm.name)["argv_running"])
    assert "plugged2" not in running and "nic1" not in running and "u1" not in running.split()
    assert [disk["serial"] for disk in vm.console.status()["block"]] == ["plugged1"]
    acked = acked_at_the_end(daemon, vm, "/dev/vda")
    assert DiskImage(first).problems(acked["/dev/vda"]) == []


def addresses(buses):
    """(bus, slot, function, vendor, device, id) of each PCI function, bridges' own buses too."""
    found = []
    for bus in buses:
        for device in bus["devices"]:
            found.append((device["bus"], device["slot"], device["function"], device["id"]["vendor"], device["id"]["device"],
                          device["qdev_id"]))
            found += addresses([device["pci_bridge"]]) if "devices" in device.get("pci_bridge", {}) else []
    return sorted(found)


def test_a_device_of_the_command_line_that_was_unplugged_is_not_back(daemon, start):
    options, bus = hot_pluggable("q35")
    image, other = new_image(daemon.dir / "disk"), new_image(daemon.dir / "other")
    vm = start(daemon, extra=[*options, "-drive", f"if=none,id=h0,format=raw,file={image}", "-device",
                              "virtio-blk-pci,drive=h0,id=d0,bus=rp1", "-drive", f"if=none,id=h1,format=raw,file={other}", "-device",
                              "virtio-blk-pci,drive=h1,id=d1,bus=rp2"], witness={"disk": "/dev/vda"})
    assert len(vm.console.status()["block"]) == 2
    daemon.qmp(vm.name, "device_del", {"id": "d1"})
    wait_until(lambda: len(vm.console.status()["block"]) == 1, 60, "the guest to let go of its second disk")
    for version in THERE_AND_BACK:
        vm.upgrade(version)
        assert [disk["name"] for disk in vm.console.status()["block"]] == ["vda"]
        writes_go_on(vm, "/dev/vda")
    assert "d1" not in [entry["name"] for entry in daemon.qmp(vm.name, "qom-list", {"path": "/machine/peripheral"})]


def test_a_tap_plugged_in_is_handed_over(start):
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces and taps")
    options, _ = hot_pluggable("q35")
    with hosts.Netns() as netns, hosts.Tap(netns=netns, address="192.0.2.1/24") as tap, drover.Daemon(netns=netns) as daemon:
        vm = start(daemon, extra=options)
        daemon.qmp(vm.name, "netdev_add", {"type": "tap", "id": "t1", "ifname": tap.name, "script": "no", "downscript": "no"})
        daemon.qmp(vm.name, "device_add", {"driver": "virtio-net-pci", "id": "nic1", "netdev": "t1", "bus": "rp1", "romfile": ""})
        wait_until(lambda: vm.console.status()["nics"], 30, "the guest to see its new NIC")
        vm.console.command("net eth0 192.0.2.2/24")
        before = peers.tap_state(vm.pid, netns)
        for version in (None, *THERE_AND_BACK):
            if version:
                vm.upgrade(version)
            udp = guest.Udp("192.0.2.2", netns=netns)
            assert udp.status(timeout=20)["bootid"] == vm.bootid
            udp.close()
            assert peers.tap_state(vm.pid, netns) == before
