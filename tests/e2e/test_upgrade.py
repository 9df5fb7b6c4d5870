# SPDX-License-Identifier: LGPL-2.1-or-later
"""Upgrades of real guests between real QEMUs: machine types, the ways that RAM goes, what is refused, long chains."""

import contextlib
import json
import os
import re
import uuid
from pathlib import Path

import pytest

from lib import drover, guest
from lib.procs import Unavailable, run, wait_until
from lib.vhostuser import Backend

MIB = 1 << 20
RAM = "131080k"  # N MiB + 8 KiB: see QEMU-NOTES on TCG before 9.0
RAM_BYTES = 131080 * 1024
IDLE = ["-machine", "pc-q35-7.2", "-nodefaults", "-display", "none", "-S"]  # a QEMU whose guest does not begin
NAMED_UUID = "6d9f0a5e-8d33-4c55-9d4c-6a2f7a3c1e01"
JOB = {"id", "kind", "vm", "state", "stage", "error", "result", "progress", "findings", "created_ms", "started_ms",
       "ended_ms"}
RESULT = {"memory_mode", "memory_reason", "pause_ms", "total_ms", "bytes_moved", "extra_memory_bytes", "qemu_before",
          "qemu_after", "pid_before", "pid_after"}
LISTED = {"name", "state", "pid", "qemu_version", "machine", "uuid", "memory_mode", "adopted", "job"}
SHOWN = LISTED | {"argv_given", "argv_running", "memory", "disks", "nics", "cwd", "qmp", "console", "log", "exit",
                  "upgrades", "note"}
REPORT = {"vm", "ok", "findings", "memory_mode", "memory_reason", "qemu_before", "qemu_after"}


@pytest.fixture
def witness(daemon):
    """Boots small guests that write 50 MiB/s, and lets go of their consoles at the end."""
    with contextlib.ExitStack() as stack:
        def boot(**options):
            booted = drover.Witness(daemon, **{"ram": RAM, "mem": 16, "rate": 50, **options})
            stack.callback(booted.close)
            return booted
        yield boot


def went(job, mode, before=None, after=None):
    """The job's result, after asserting that it went that way between those versions, and how a job says so."""
    result = job["result"]
    assert job["state"] == "succeeded" and job["error"] is None
    assert result["memory_mode"] == mode, result["memory_reason"]
    assert result["memory_reason"]
    assert result["pid_before"] != result["pid_after"]
    for key, version in (("qemu_before", before), ("qemu_after", after)):
        assert version is None or result[key].startswith(f"{version}."), result
    if mode == "shared":
        assert result["bytes_moved"] < MIB
    else:
        assert result["bytes_moved"] > 16 * MIB, "the witness alone has more than that"
    if mode != "copy":
        assert result["extra_memory_bytes"] < 64 * MIB
    return result


def texts(findings, severity="blocker"):
    return [finding["text"] for finding in findings if finding["severity"] == severity]


def without_free_memory(text):
    """How much there is changes from one look to the next."""
    return re.sub(r"\d+ MiB are free", "some MiB are free", text)


def refusals(daemon, *args):
    """The findings of an upgrade that preflight refuses; the job of the same request ends the same way."""
    result = daemon.run("upgrade", *args, "--check", "--json", check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert set(report) == REPORT and report["ok"] is False
    blockers = [finding for finding in report["findings"] if finding["severity"] == "blocker"]
    assert blockers
    for finding in blockers:
        assert set(finding) == {"severity", "code", "text", "remedy"}
        assert finding["code"] and finding["text"] and finding["remedy"], finding
    error = daemon.refused("upgrade", *args)
    assert error["code"] == "refused"
    for finding in blockers:
        assert without_free_memory(finding["text"]) in without_free_memory(error["message"])
        assert finding["remedy"] in error["remedy"]
    return blockers


# --- RAM that stays where it is ---


@pytest.mark.parametrize("machine, versions", [
    ("pc-q35-7.2", ["7.2", "10.0", "7.2"]),
    ("pc", ["7.2", "10.0", "7.2"]),
    ("microvm", ["7.2", "10.0", "7.2"]),
    ("microvm", ["10.0", "7.2", "10.0"]),
    ("pc-q35-5.2", ["10.0", "5.2", "10.0"]),
], ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_shared_ram_stays_where_it_is_up_and_down(witness, daemon, machine, versions):
    vm = witness(version=versions[0], machine=machine)
    pinned = daemon.show("vm")["machine"]
    for before, after in zip(versions, versions[1:]):
        result = went(vm.upgrade(after), "shared", before, after)
        assert result["pause_ms"] > 0 and result["total_ms"] > result["pause_ms"]
        shown = daemon.show("vm")
        assert shown["machine"] == pinned and shown["memory_mode"] == "shared"
        assert shown["pid"] == result["pid_after"] and shown["qemu_version"] == result["qemu_after"]
    # What "pc" means is another machine in each QEMU: only the first one may say.
    assert re.fullmatch(r"pc-i440fx-7\.2" if machine == "pc" else re.escape(machine), pinned)


def test_a_microvm_keeps_its_devices_and_can_be_read_by_an_older_qemu(witness, daemon):
    """microvm has no version: its stream and firmware are drover's to keep, its disk and network QEMU's."""
    with open(daemon.dir / "disk", "wb") as image:
        image.truncate(16 * MIB)
    vm = witness(version="10.0", machine="microvm", witness={"disk": "/dev/vda", "ip": "10.0.2.15/24"}, extra=[
        "-drive", f"if=none,id=d,format=raw,file={daemon.dir}/disk,cache=none", "-device", "virtio-blk-device,drive=d",
        "-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n,mac=52:54:00:d0:00:07"])
    assert "migration.send-switchover-start=off" in daemon.show("vm")["argv_running"]
    for version in ("7.2", "10.0"):
        before = vm.console.status().disk("/dev/vda")["acked"]
        went(vm.upgrade(version), "shared")
        wait_until(lambda: vm.console.check().disk("/dev/vda")["acked"] > before, 30, "the disk writer to go on")
        argv = daemon.show("vm")["argv_running"]
        assert ("migration.send-switchover-start=off" in argv) == (version == "10.0")
    assert "-bios" not in daemon.show("vm")["argv_given"]
    assert [nic["mac"] for nic in vm.console.status()["nics"]] == ["52:54:00:d0:00:07"]


def test_a_microvm_whose_stream_an_older_qemu_cannot_read_is_refused(witness, daemon):
    vm = witness(version="10.0", machine="microvm", adopt="pid")
    found = refusals(daemon, "vm", "--qemu", guest.qemu("7.2"))
    assert [finding["code"] for finding in found] == ["switchover-start"]
    assert "microvm" in found[0]["text"]
    went(vm.upgrade("10.0"), "copy")  # that is its remedy
    went(vm.upgrade("7.2"), "shared", "10.0", "7.2")


def test_a_microvm_is_not_moved_onto_another_firmware(witness, daemon):
    """Its size is part of the stream. The guest's own file is named to the new QEMU, or the upgrade refused."""
    found = [Path(path) / "bios-microvm.bin" for path in ("/usr/share/seabios", "/usr/share/qemu")]
    ours = daemon.dir / "bios-microvm.bin"
    image = bytes(65536) + next(path for path in found if path.exists()).read_bytes()  # a size that no other has
    ours.write_bytes(image)
    vm = witness(machine="microvm", extra=["-L", daemon.dir])
    ours.unlink()
    blockers = refusals(daemon, "vm", "--qemu", guest.qemu("10.0"))
    assert [finding["code"] for finding in blockers] == ["firmware"] and str(len(image)) in blockers[0]["text"]
    ours.write_bytes(image)
    for version in ("10.0", "7.2"):
        went(vm.upgrade(version), "shared")
    ours.unlink()
    assert refusals(daemon, "vm")[0]["code"] == "firmware"


@pytest.mark.parametrize("versions, machine", [
    (["10.0", "11.1", "10.0"], "pc-q35-7.2"),
    (["5.2", "7.2", "5.2"], "pc-q35-5.2"),
], ids=["10.0-11.1", "5.2-7.2"])
def test_a_cpu_model_that_follows_the_version_stays_what_it_was(witness, daemon, versions, machine):
    """-cpu max is more in a newer QEMU: what the guest did not have is turned off, so that it can go back."""
    vm = witness(version=versions[0], machine=machine, extra=["-cpu", "max"])
    job = vm.upgrade(versions[1])
    went(job, "shared")
    note = next(finding for finding in job["findings"] if finding["code"] == "cpu-pinned")
    assert note["severity"] == "note" and "=off" in note["text"]
    assert any(word.startswith("max,") and "=off" in word for word in daemon.show("vm")["argv_running"])
    assert not [finding for finding in job["findings"] if finding["code"] == "cpu-features"]
    went(vm.upgrade(versions[2]), "shared")
    assert "max" in daemon.show("vm")["argv_given"]


# --- RAM that has to move ---


def test_private_ram_stays_private_however_it_goes(witness, daemon):
    vm = witness(options=["--memory", "private"])
    assert daemon.show("vm")["memory_mode"] == "private"
    found = refusals(daemon, "vm", "--qemu", guest.qemu("10.0"), "--memory", "shared")
    assert [finding["code"] for finding in found] == ["shared-ram"]
    assert "pc.ram" in found[0]["text"] and "private" in found[0]["text"]

    went(vm.upgrade("10.0", "--memory", "copy"), "copy", "7.2", "10.0")
    went(vm.upgrade("7.2", "--memory", "postcopy"), "postcopy", "10.0", "7.2")
    chosen = vm.upgrade("10.0", "--memory", "auto")
    went(chosen, "copy", "7.2", "10.0")
    reason = chosen["result"]["memory_reason"]
    assert re.search(r"pc\.ram' is private memory; \d+ MiB are free for a copy of \d+ MiB", reason)
    assert reason in texts(chosen["findings"], "note")[-1]

    daemon.run("pause", "vm")  # nobody then asks for a page: they come all the same
    job = daemon.upgrade("vm", guest.qemu("7.2"), "--memory", "postcopy")
    assert went(job, "postcopy", "10.0", "7.2")["pause_ms"] is None and daemon.state("vm") == "paused"
    daemon.run("resume", "vm")
    vm.healthy()
    shown = daemon.show("vm")
    assert shown["memory_mode"] == "private" and shown["upgrades"] == 4
    assert not any("memory-backend" in word for word in shown["argv_running"])


def test_auto_takes_postcopy_where_a_copy_has_no_room(daemon):
    """A guest of nearly all memory, which nothing touches: only asked about, not moved."""
    total = int(re.search(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[1])
    daemon.run("run", "vm", "--memory", "private", "--", guest.qemu("7.2"), *IDLE, "-m", f"{total // 1024 - 64}M")
    report = daemon.json("upgrade", "vm", "--qemu", guest.qemu("10.0"), "--check")
    assert report["ok"] and report["memory_mode"] == "postcopy"
    assert re.search(r"only \d+ MiB are free for a copy of \d+ MiB", report["memory_reason"])
    found = refusals(daemon, "vm", "--qemu", guest.qemu("10.0"), "--memory", "copy")
    assert [finding["code"] for finding in found] == ["memory"] and "--memory postcopy" in found[0]["remedy"]


# --- VMs that somebody else started ---


@pytest.mark.parametrize("how, mode", [("pid", "copy"), ("qmp", "postcopy")])
def test_the_first_upgrade_of_an_adopted_guest_makes_its_ram_shared(witness, daemon, how, mode):
    vm = witness(adopt=how)
    shown = daemon.show("vm")
    assert shown["adopted"] and shown["pid"] == vm.process.pid and shown["memory_mode"] == "private"
    went(vm.upgrade("10.0", "--memory", mode), mode, "7.2", "10.0")
    assert vm.process.wait() < 0, "the old QEMU was to be killed"
    assert daemon.show("vm")["memory_mode"] == "shared"
    went(vm.upgrade("7.2"), "shared", "10.0", "7.2")


def test_a_shared_ram_file_is_used_as_it_is(witness, daemon):
    path = Path(f"/dev/shm/drover-test-{os.getpid()}")
    try:
        vm = witness(machine="pc-q35-7.2,memory-backend=ram0", adopt="qmp", extra=[
            "-object", f"memory-backend-file,id=ram0,size={RAM_BYTES},mem-path={path},share=on"])
        assert daemon.show("vm")["memory_mode"] == "shared"
        inode = path.stat().st_ino
        for version in ("10.0", "7.2"):
            went(vm.upgrade(version), "shared")
            maps = Path(f"/proc/{vm.pid}/maps").read_text()
            assert any(line.split()[4:] == [str(inode), str(path)] for line in maps.splitlines())
    finally:
        path.unlink(missing_ok=True)


def test_a_shared_ram_file_that_was_replaced_is_not_taken_for_the_guests(witness, daemon):
    """The guest's memory is in the file that its QEMU has open, whatever lies under that name by now."""
    path = Path(f"/dev/shm/drover-test-{os.getpid()}")
    try:
        vm = witness(machine="pc-q35-7.2,memory-backend=ram0", adopt="qmp", extra=[
            "-object", f"memory-backend-file,id=ram0,size={RAM_BYTES},mem-path={path},share=on"])
        path.unlink()
        with open(path, "wb") as other:
            other.truncate(RAM_BYTES)
        for version in ("10.0", "7.2"):
            went(vm.upgrade(version), "shared")
        assert path.stat().st_blocks == 0, "nobody has written to the other one"
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("version, mode", [("7.2", "shared"), ("10.0", "copy")])
def test_a_memfd_is_used_where_qemu_lets_it(witness, daemon, version, mode):
    """QEMU before 8.1 leaves memory-backend-memfd out of the stream, newer ones send it: no one else's fault."""
    vm = witness(version=version, machine="pc-q35-7.2,memory-backend=ram0", adopt="pid", extra=[
        "-object", f"memory-backend-memfd,id=ram0,size={RAM_BYTES}"])
    other = {"7.2": "10.0", "10.0": "7.2"}[version]
    if mode == "copy":
        found = refusals(daemon, "vm", "--qemu", guest.qemu(other), "--memory", "shared")
        assert "memory-backend-memfd, which QEMU 8.1 and newer always send" in found[0]["text"]
    result = went(vm.upgrade(other), mode, version, other)
    if mode == "copy":
        assert "memory-backend-memfd, which QEMU 8.1 and newer always send" in result["memory_reason"]
    went(vm.upgrade(version), "shared", other, version)


def test_a_qemu_behind_its_own_dynamic_loader_needs_a_binary_to_go_to(witness, daemon):
    """5.2 runs through an ld.so here: /proc/PID/exe is no QEMU, and the command line cannot be asked what it can do."""
    vm = witness(version="5.2", machine="pc-q35-5.2", adopt="pid")
    assert "ld-" in os.readlink(f"/proc/{vm.pid}/exe")
    found = refusals(daemon, "vm")
    assert [finding["code"] for finding in found] == ["launcher"] and "--qemu" in found[0]["remedy"]
    went(vm.upgrade("7.2"), "copy", "5.2", "7.2")
    went(vm.upgrade("5.2"), "shared", "7.2", "5.2")


# --- Huge pages, KVM ---


@contextlib.contextmanager
def huge_pages(count):
    """So many free pages of 2 MiB; as many as before afterwards."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    size = re.search(r"Hugepagesize: +(\d+)", Path("/proc/meminfo").read_text())
    if not size or int(size[1]) != 2048 or not os.access(setting, os.W_OK):
        raise Unavailable("huge pages of 2 MiB cannot be reserved here")
    before = int(setting.read_text())
    try:
        try:
            setting.write_text(str(before + count))
        except OSError as error:
            raise Unavailable(f"{setting}: {error.strerror}") from None
        if int(setting.read_text()) < before + count:
            raise Unavailable(f"the kernel gives {int(setting.read_text())} of {before + count} huge pages")
        yield
    finally:
        with contextlib.suppress(OSError):
            setting.write_text(str(before))


def free_huge_pages():
    return int(re.search(r"HugePages_Free: +(\d+)", Path("/proc/meminfo").read_text())[1])


def test_huge_pages_are_handed_over(witness, daemon):
    # Whole huge pages: nothing is copied, so TCG's lost dirty bits do not matter here.
    with huge_pages(64):
        vm = witness(ram="128M", mem=8, options=["--hugetlb"])
        free = free_huge_pages()
        for version in ("10.0", "7.2"):
            went(vm.upgrade(version), "shared")
            smaps = Path(f"/proc/{vm.pid}/smaps").read_text()
            assert re.search(r"KernelPageSize: +2048 kB", smaps)
            assert free_huge_pages() == free, "a second set was taken"
        daemon.run("stop", "vm", "--force")


class Sector:
    """The boot sector guest, asked through drover's monitor; see tests/guest/bootsector.S."""

    def __init__(self, daemon, *options):
        self.daemon, self.file = daemon, daemon.dir / "sector"
        image = guest.build() / "kvm-boot.img"
        daemon.run("run", "vm", "--", guest.qemu("7.2"), *options, "-machine", "q35", "-m", "131072k", "-nodefaults",
                   "-display", "none", "-drive", f"if=none,id=d,format=raw,readonly=on,file={image}", "-device",
                   "virtio-blk-pci,drive=d")

    def passes(self):
        self.daemon.qmp("vm", "pmemsave", {"val": 0x600, "size": 12, "filename": str(self.file)})
        magic, passes, wrong = (int.from_bytes(self.file.read_bytes()[at:at + 4], "little") for at in (0, 4, 8))
        assert magic != 0x52565244 or wrong == 0
        return passes if magic == 0x52565244 else 0

    def wait_passes(self, more):
        first = self.passes()
        return wait_until(lambda: self.passes() >= first + more, 60, f"{more} passes of the boot sector")


def test_a_guest_under_kvm_goes_there_and_back(daemon):
    reason = guest.kvm_reason()
    if reason:
        pytest.skip(reason)
    sector = Sector(daemon, "-accel", "kvm", "-cpu", "host,-arch-capabilities")
    sector.wait_passes(3)
    assert daemon.qmp("vm", "query-kvm")["enabled"]
    for before, after in (("7.2", "10.0"), ("10.0", "7.2")):
        passes = sector.passes()
        job = daemon.upgrade("vm", guest.qemu(after))
        went(job, "shared", before, after)
        assert not [finding for finding in job["findings"] if finding["code"] == "cpu-features"]
        sector.wait_passes(3)
        assert sector.passes() > passes, "it began anew"


# --- The command ---


def test_what_a_job_and_a_vm_look_like(witness, daemon):
    """One guest: JSON shapes, name and UUID, --check, an upgrade without --qemu, and one of a paused guest."""
    with open(daemon.dir / "disk", "wb") as image:
        image.truncate(8 * MIB)
    vm = witness(extra=["-name", "inner", "-uuid", NAMED_UUID, "-netdev", "user,id=n", "-device",
                        "virtio-net-pci,netdev=n,mac=52:54:00:d0:00:08,romfile=", "-drive",
                        f"if=none,id=d,format=raw,file={daemon.dir}/disk", "-device", "virtio-blk-pci,drive=d"])
    before = daemon.show("vm")
    check_vm_members(daemon, before)

    # --check: nothing happens.
    ten = guest.qemu("10.0")
    report = daemon.json("upgrade", "vm", "--qemu", ten, "--check")
    assert set(report) == REPORT
    assert report["vm"] == "vm" and report["ok"] is True and report["memory_mode"] == "shared"
    assert report["qemu_before"].startswith("7.2.") and report["qemu_after"].startswith("10.0.")
    assert not texts(report["findings"])
    said = daemon.run("upgrade", "vm", "--qemu", ten, "--check").stdout
    assert re.fullmatch(r"vm: can be upgraded 7\.2\.\d+ -> 10\.0\.\d+ \(.*shared.*\)\n", said), said
    assert daemon.show("vm") == before and daemon.json("jobs") == []

    # The job, its shape, and what is the same after it.
    job = vm.upgrade("10.0")
    check_job_members(daemon, job)
    after = daemon.show("vm")
    check_vm_members(daemon, after)
    went(job, "shared", "7.2", "10.0")
    kept = ("name", "uuid", "machine", "state", "argv_given", "memory", "nics", "cwd", "console", "log")
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    # Each QEMU makes up a name for a node that has none ("#block115").
    assert [{**disk, "node": None} for disk in after["disks"]] == [{**disk, "node": None} for disk in before["disks"]]
    assert after["upgrades"] == before["upgrades"] + 1
    assert daemon.qmp("vm", "query-uuid")["UUID"] == NAMED_UUID
    assert daemon.qmp("vm", "query-name")["name"] == "inner"

    # Without --qemu: the binary that it runs by now, again.
    went(vm.upgrade_in_place(), "shared", "10.0", "10.0")

    # A paused guest stays paused, and there is no pause of its own to measure.
    daemon.run("pause", "vm")
    job = daemon.upgrade("vm", guest.qemu("7.2"))
    assert went(job, "shared", "10.0", "7.2")["pause_ms"] is None
    assert daemon.state("vm") == "paused" and daemon.qmp("vm", "query-status")["status"] == "paused"
    daemon.run("resume", "vm")
    vm.healthy()
    assert daemon.state("vm") == "running"


def check_vm_members(daemon, shown):
    listed = daemon.json("list")
    assert isinstance(listed, list) and [set(vm) for vm in listed] == [LISTED]
    assert {key: shown[key] for key in LISTED} == listed[0]
    assert set(shown) == SHOWN
    assert shown["name"] == "vm" and shown["state"] == "running" and shown["uuid"] == NAMED_UUID
    assert shown["machine"] == "pc-q35-7.2" and shown["adopted"] is False and shown["job"] is None
    assert uuid.UUID(shown["uuid"]) and os.path.exists(f"/proc/{shown['pid']}")
    assert all(isinstance(word, str) for word in shown["argv_given"] + shown["argv_running"])
    assert shown["memory"]["bytes"] == RAM_BYTES
    assert [disk["file"] for disk in shown["disks"]] == [str(daemon.dir / "disk")]
    assert [nic["mac"] for nic in shown["nics"]] == ["52:54:00:d0:00:08"]


def check_job_members(daemon, job):
    assert set(job) == JOB and set(job["result"]) == RESULT
    assert job["kind"] == "upgrade" and job["vm"] == "vm" and isinstance(job["id"], str)
    assert job["created_ms"] <= job["started_ms"] <= job["ended_ms"]
    result = job["result"]
    for key in ("pause_ms", "total_ms", "bytes_moved", "extra_memory_bytes", "pid_before", "pid_after"):
        assert isinstance(result[key], (int, float)) and result[key] >= 0, key
    assert daemon.json("job", job["id"]) == job
    assert daemon.json("jobs")[0] == job


def test_a_guest_that_has_not_begun_begins_when_it_is_told_to(daemon):
    """-S on the command line: the new QEMU waits as the old one did, then the guest boots under it."""
    serial = daemon.dir / "serial"
    daemon.run("run", "vm", "--", guest.qemu("7.2"), *IDLE, "-m", RAM, "-serial", f"unix:{serial},server=on,wait=off",
               *guest.kernel_args(mem=16, rate=50))
    for version in ("10.0", "7.2"):
        assert went(daemon.upgrade("vm", guest.qemu(version)), "shared")["pause_ms"] is None
        assert daemon.state("vm") == "paused"
    with guest.Console(serial) as console:
        daemon.run("resume", "vm")
        console.wait_ready()
        console.wait_passes(1)


def test_all_is_an_array_of_jobs_in_the_order_of_names(witness, daemon):
    vms = {name: witness(name=name, ram="98312k", mem=8, rate=20) for name in ("charlie", "alpha", "bravo")}
    report = daemon.json("upgrade", "--all", "--qemu", guest.qemu("10.0"), "--check")
    assert [(one["vm"], one["ok"]) for one in report] == [("alpha", True), ("bravo", True), ("charlie", True)]

    jobs = daemon.json("upgrade", "--all", "--qemu", guest.qemu("10.0"), "--parallel", "2")
    assert [job["vm"] for job in jobs] == ["alpha", "bravo", "charlie"]
    assert len({job["id"] for job in jobs}) == 3
    for job in jobs:
        went(job, "shared", "7.2", "10.0")
    # Two at a time: the third began when one of the others had ended.
    assert jobs[2]["started_ms"] >= min(jobs[0]["ended_ms"], jobs[1]["ended_ms"])

    # Some of them, in the order in which they are named.
    jobs = daemon.json("upgrade", "bravo", "alpha", "--qemu", guest.qemu("7.2"))
    assert [job["vm"] for job in jobs] == ["bravo", "alpha"]
    for vm in vms.values():
        vm.healthy()
    assert [vm["qemu_version"].rsplit(".", 1)[0] for vm in daemon.json("list")] == ["7.2", "7.2", "10.0"]


# --- What cannot be moved ---


def spice_is_there():
    """Debian has it in a package of its own."""
    return "addr=" in run(guest.qemu("7.2"), "-spice", "help", check=False).stdout


REFUSED = {  # what is started with it, and what of it the finding names
    "virtfs": (lambda d: ["-virtfs", f"local,path={d},mount_tag=t,security_model=none"], "virtio-9p-pci"),
    "fsdev": (lambda d: ["-fsdev", f"local,path={d},id=f,security_model=none",
                         "-device", "virtio-9p-pci,id=share,fsdev=f,mount_tag=t"], "share"),
    "usb-host": (lambda d: ["-device", "qemu-xhci",
                            "-device", "usb-host,id=stick,vendorid=0x1209,productid=0x1"], "stick"),
    "vhost-user": (lambda d: ["-chardev", f"socket,id=v,path={d}/vu", "-netdev", "vhost-user,id=fast,chardev=v",
                              "-device", "virtio-net-pci,netdev=fast,romfile="], "fast"),
    "ivshmem": (lambda d: ["-object", "memory-backend-ram,id=m,size=1M,share=on",
                           "-device", "ivshmem-plain,id=window,memdev=m"], "window"),
    "dgram": (lambda d: ["-netdev", f"dgram,id=wire,local.type=unix,local.path={d}/l,remote.type=unix,remote.path={d}/r",
                         "-device", "virtio-net-pci,netdev=wire,romfile="], "wire"),
    "snapshot": (lambda d: ["-snapshot", "-drive", f"file={d}/disk,format=raw,if=virtio"], "-snapshot"),
    "spice": (lambda d: ["-spice", f"unix=on,addr={d}/spice,disable-ticketing=on"], "spice"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_second_qemu_can_have_is_refused_by_name(daemon, what):
    options, name = REFUSED[what]
    if what == "spice" and not spice_is_there():
        pytest.skip("this QEMU build has no SPICE")
    with open(daemon.dir / "disk", "wb") as image:
        image.truncate(MIB)
    with Backend(daemon.dir / "vu"):
        daemon.run("run", "vm", "--", guest.qemu("7.2"), *IDLE, "-m", "64", *options(daemon.dir))
        found = refusals(daemon, "vm", "--qemu", guest.qemu("10.0"))
        assert any(name in finding["text"] for finding in found), found
        assert daemon.qmp("vm", "query-status")["status"] == "prelaunch"
        daemon.run("stop", "vm", "--force")


def test_all_findings_come_at_once_each_with_its_remedy(witness, daemon):
    """A guest of a newer machine type, with more than one thing in the way: it is told of all, and runs on."""
    share = daemon.dir / "share"
    share.mkdir()
    kernel = daemon.dir / "kernel"
    kernel.write_bytes((guest.build() / "vmlinuz").read_bytes())
    vm = witness(version="10.0", machine="pc-q35-10.0", extra=["-kernel", kernel, "-virtfs",
                                                               f"local,path={share},mount_tag=t,security_model=none"])
    kernel.unlink()
    pid = vm.pid
    found = refusals(daemon, "vm", "--qemu", guest.qemu("7.2"))
    codes = [finding["code"] for finding in found]
    assert "machine-type" in codes and "file" in codes and len(codes) >= 3
    said = next(finding["text"] for finding in found if finding["code"] == "machine-type")
    assert "pc-q35-10.0" in said and re.search(r"not known to \S+ 7\.2\.", said)

    result = daemon.run("upgrade", "vm", "--qemu", guest.qemu("7.2"), "--check", check=False)
    assert result.returncode == 1 and result.stdout == "vm: cannot be upgraded\n"
    assert result.stderr.count("vm: blocker: ") == len(found) and result.stderr.count("  remedy: ") >= len(found)
    result = daemon.run("upgrade", "vm", "--qemu", guest.qemu("7.2"), check=False)
    assert result.returncode == 1 and result.stderr.count("  blocker: ") == len(found)
    assert all(finding["remedy"] in result.stderr for finding in found)
    vm.healthy()
    assert vm.pid == pid and daemon.qemus() == [pid]


# --- The long ones ---


def test_one_guest_through_all_versions_without_a_reboot(witness, daemon):
    vm = witness(version="5.2", machine="pc-q35-5.2")
    versions = ["5.2", "7.2", "10.0", "11.1", "7.2"]
    for before, after in zip(versions, versions[1:]):
        went(vm.upgrade(after), "shared", before, after)
    assert daemon.show("vm")["upgrades"] == 4 and daemon.show("vm")["machine"] == "pc-q35-5.2"


def test_ten_upgrades_in_a_row_lose_no_page_and_no_write(witness, daemon):
    image = daemon.dir / "disk"
    with open(image, "wb") as file:
        file.truncate(16 * MIB)
    vm = witness(rate=100, mem=32, witness={"disk": "/dev/vda", "diskrate": 200}, extra=[
        "-drive", f"if=none,id=d,format=raw,file={image},cache=none", "-device", "virtio-blk-pci,drive=d"])
    for number in range(10):
        before = vm.console.status().disk("/dev/vda")["acked"]
        went(vm.upgrade(("10.0", "7.2")[number % 2]), "shared")
        wait_until(lambda: vm.console.check().disk("/dev/vda")["acked"] > before, 30, "the disk writer to go on")
    assert daemon.show("vm")["upgrades"] == 10
    acked = vm.console.check(bootid=vm.bootid).disk("/dev/vda")["acked"]
    daemon.run("stop", "vm", "--force")
    assert guest.DiskImage(image).problems(acked) == []
