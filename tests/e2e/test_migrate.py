# SPDX-License-Identifier: LGPL-2.1-or-later
"""Moves between two hosts: pre-copy, post-copy, both ways, with the guest's pages, ticks and connections checked."""

import itertools
import json
import time

import pytest

from lib import drover, guest, hosts, peers
from lib.disks import acked_at_the_end, new_image, writes_go_on
from lib.pair import PORT, Pair
from lib.procs import kill_pid, run, wait_until

serial = itertools.count(1)
TRANSPORTS = "[peers]\ntransports=tunnel;plain;handoff\n"
SMALL = {"ram": "131080k", "mem": 32, "rate": 50}


@pytest.fixture(scope="module")
def pair():
    with Pair(more=TRANSPORTS) as both:
        yield both


@pytest.fixture
def start(pair):
    started = []

    def start_one(**options):
        started.append(drover.Witness(pair.a, f"vm{next(serial)}", **{**SMALL, **options}))
        return started[-1]

    yield start_one
    for vm in started:
        vm.close()
    pair.clear()


def test_a_peer_is_reached(pair):
    found = pair.a.json("peer", "test", "b")
    assert found["version"] and found["certificate"] == "b" and found["round_trip_ms"] > 0, found
    assert found["send_mib"] > 1 and found["receive_mib"] > 1, found


def test_there_and_back(pair, start):
    vm = start()
    uuid = pair.a.show(vm.name)["uuid"]
    for _ in range(2):
        job = pair.migrate(vm)
        result = job["result"]
        assert job["state"] == "succeeded" and result["peer"] == pair.name_of(vm.daemon), job
        assert result["bytes_moved"] > 32 << 20 and result["transport"] == "tunnel", result
        assert vm.daemon.show(vm.name)["uuid"] == uuid
        vm.healthy()


def test_postcopy(pair, start):
    vm = start()
    for _ in range(2):
        result = pair.migrate(vm, "--postcopy-after-precopy")["result"]
        assert result["postcopy"] and result["memory_mode"] == "postcopy", result
        vm.healthy()


@pytest.mark.parametrize("options", [("--parallel",), ("--parallel", "4", "--compress", "zlib"), ("--compress", "xbzrle"),
                                     ("--auto-converge", "--no-postcopy"), ("--parallel", "2", "--compress", "zstd")], ids=" ".join)
def test_ways_to_move_ram(pair, start, options):
    vm = start(rate=10)
    for _ in range(2):
        assert not pair.migrate(vm, *options)["result"]["postcopy"]
        vm.healthy()


@pytest.mark.parametrize("transport, options", [("plain", ()), ("plain", ("--parallel", "2")), ("plain", ("--postcopy-after-precopy",)),
                                                ("handoff", ()), ("handoff", ("--postcopy-after-precopy",))])
def test_without_tls(pair, start, transport, options):
    vm = start()
    for _ in range(2):
        result = pair.migrate(vm, "--transport", transport, *options)["result"]
        assert result["transport"] == transport and result["pause_ms"] > 0, result
        vm.healthy()


def test_a_transport_that_is_not_allowed():
    """Both configurations must allow it."""
    with Pair(more={"a": TRANSPORTS}) as other:
        vm = drover.Witness(other.a, "vm", **SMALL)
        for transport in ("plain", "handoff"):
            error = other.a.refused("migrate", vm.name, "b", "--transport", transport)
            assert "other host does not allow" in error["message"] and "transports=" in error["remedy"], error
        other.migrate(vm)
        error = other.b.refused("migrate", vm.name, "a", "--transport", "plain")
        assert "this droverd's configuration" in error["message"], error
        assert "handed on" in other.b.refused("migrate", vm.name, "a", "--transport", "handoff", "--parallel", "2", code=2)["message"]
        vm.healthy()
        vm.close()


def test_another_name_and_another_qemu(pair, start):
    vm = start()
    job = pair.a.json("migrate", vm.name, "b", "--dname", "renamed", "--qemu", guest.qemu("10.0"))
    assert job["result"]["qemu_before"].startswith("7.2") and job["result"]["qemu_after"].startswith("10.0")
    vm.name = "renamed"
    pair.moved(vm)
    vm.healthy()
    job = pair.migrate(vm, "--qemu", guest.qemu("7.2"), "--postcopy-after-precopy")
    assert job["result"]["qemu_after"].startswith("7.2")
    vm.healthy()


def test_all_go(pair, start):
    names = {start().name for _ in range(3)}
    jobs = pair.a.json("migrate", "--all", "b", "--at-a-time", "2", timeout=200)
    assert {job["vm"] for job in jobs if job["state"] == "succeeded"} == names
    assert pair.a.json("list") == [] and {vm["name"] for vm in pair.b.json("list")} == names
    assert all(job["state"] == "succeeded" for job in pair.b.json("migrate", "--all", "a", timeout=200))


def test_a_paused_guest_stays_paused(pair, start):
    vm = start()
    pair.a.run("pause", vm.name)
    job = pair.a.json("migrate", vm.name, "b")
    assert job["result"]["pause_ms"] is None
    assert pair.b.state(vm.name) == "paused" and pair.a.json("list") == []
    vm.daemon = pair.b
    pair.b.run("resume", vm.name)
    vm.healthy()


def test_postcopy_at_the_users_word(pair, start):
    vm = start(ram="262152k", rate=300, mem=64)
    pair.link.limit(100)
    try:
        move = pair.a.spawn("migrate", vm.name, "b", "--postcopy", "--downtime", "1")
        wait_until(lambda: pair.job(vm)["stage"] == "transfer", 60, "the transfer")
        pair.a.run("migrate-setspeed", vm.name, "11")
        assert pair.a.json("migrate-getspeed", vm.name)["mib"] == 11
        pair.a.run("migrate-setmaxdowntime", vm.name, "2")
        pair.a.run("migrate-postcopy", vm.name)
        said = move.communicate(timeout=120)
        assert move.returncode == 0, said
    finally:
        pair.link.heal()
    assert pair.job(vm)["result"]["postcopy"]
    pair.moved(vm)
    vm.healthy()


def test_check_only_looks(pair, start):
    vm = start()
    report = pair.a.json("migrate", vm.name, "b", "--check")
    assert report["ok"] and report["expected_total_ms"] > 0 and report["qemu_after"].startswith("7.2"), report
    assert pair.b.json("list") == [] and pair.a.state(vm.name) == "running"
    pair.b.run("run", "taken", "--", *guest.without_guest())
    try:
        assert "taken" in pair.a.refused("migrate", vm.name, "b", "--dname", "taken")["message"]
    finally:
        pair.b.run("stop", "taken", "--force")
        pair.b.run("forget", "taken")
    report = json.loads(pair.a.run("migrate", vm.name, "b", "--check", "--json", "--qemu", "/bin/true", check=False).stdout)
    assert "binary" in [finding["code"] for finding in report["findings"]], report


def test_cancel_leaves_it_where_it_was(pair, start):
    vm = start(ram="262152k", rate=300, mem=64)
    pair.link.limit(50)
    try:
        job = pair.a.json("migrate", vm.name, "b", "--no-postcopy", "--async")
        wait_until(lambda: pair.job(vm)["stage"] == "transfer", 60, "the transfer")
        pair.a.run("cancel", job["id"])
        assert pair.a.ended_job(job["id"])["state"] == "cancelled"
    finally:
        pair.link.heal()
    assert pair.a.state(vm.name) == "running"
    wait_until(lambda: pair.b.json("list") == [] and pair.b.qemus() == [], 30, "nothing to be left over there")
    vm.healthy()


def test_a_guest_that_writes_faster_than_the_link_carries(pair, start):
    """Left to itself the policy goes into post-copy; without post-copy it gives up, and the guest runs on."""
    vm = start(ram="262152k", rate=300, mem=64)
    pair.link.limit(400)
    try:
        refused = pair.a.refused("migrate", vm.name, "b", "--no-postcopy", "--downtime", "20")
        assert "does not come to an end" in refused["message"]
        assert pair.a.state(vm.name) == "running"
        assert pair.migrate(vm)["result"]["postcopy"]
    finally:
        pair.link.heal()
    vm.healthy()


def pages_go(pair, vm):
    """The guest runs over there, and its pages follow. What was done is told each second: the first time it may be of before."""
    wait_until(lambda: pair.job(vm)["stage"] == "postcopy", 60, "post-copy")
    for _ in range(2):
        begun = pair.job(vm)["progress"]["bytes_done"]
        wait_until(lambda: pair.job(vm)["progress"]["bytes_done"] > begun + (2 << 20), 60, "pages to move")


@pytest.mark.parametrize("seconds, loud", [(1, False), (10, False), (1, True), (10, True)])
def test_postcopy_survives_a_cut(pair, start, seconds, loud):
    """Twice in one move. A loud cut takes the link away, a silent one drops what is sent."""
    vm = start(ram="262152k", mem=128, rate=100)
    move = pair.a.spawn("migrate", vm.name, "b", "--postcopy-after-precopy", "--postcopy-bandwidth", "20")
    pages_go(pair, vm)
    for _ in range(2):
        begun = time.monotonic()
        (pair.link.down if loud else pair.link.cut)()
        wait_until(lambda: time.monotonic() > begun + seconds, seconds + 5, "the cut to last")
        (pair.link.up if loud else pair.link.heal)()
    said = move.communicate(timeout=120)
    assert move.returncode == 0, said
    assert seconds < 5 or pair.job(vm)["result"]["recoveries"] >= 1
    pair.moved(vm)
    vm.healthy()


# QEMU opens that stream at the beginning, or from machine types of 8.0 on when post-copy begins.
@pytest.mark.parametrize("version, machine", [("10.0", "pc-q35-7.2"), ("10.0", "pc-q35-9.0"), ("11.1", "pc-q35-9.0")])
def test_urgent_pages_have_a_stream_of_their_own(pair, start, version, machine):
    """And a move that has it survives cuts, too. What the guest waits for has no limit of bandwidth but the link's."""
    vm = start(ram="262152k", mem=128, rate=100, version=version, machine=machine)
    pair.link.limit(150)
    move = pair.a.spawn("migrate", vm.name, "b", "--postcopy-after-precopy", "--postcopy-preempt")
    pages_go(pair, vm)
    streams = run("ip", "netns", "exec", pair.netns_b, "ss", "-Htn", "state", "established", "sport", "=", f":{PORT}").stdout
    assert len(streams.splitlines()) == 3, streams  # the conversation, the main one, and theirs
    begun = time.monotonic()
    pair.link.cut()
    wait_until(lambda: time.monotonic() > begun + 6, 10, "the cut to last")
    for _ in range(8):  # wherever the recovery is by then
        pair.link.heal()
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() > begun + 0.15, 10, "a recovery to begin")
        pair.link.cut()
        wait_until(lambda: time.monotonic() > begun + 0.3, 10, "it to break")
    pair.link.heal()
    said = move.communicate(timeout=120)
    assert move.returncode == 0, said
    assert pair.job(vm)["result"]["recoveries"] >= 1
    pair.moved(vm)
    vm.healthy()


def test_urgent_pages_without_tls_long_after_the_beginning(pair, start):
    """Their stream's token is good for 10 s: it is used at once, not when post-copy begins."""
    vm = start(ram="262152k", mem=128, rate=100, version="10.0", machine="pc-q35-9.0")
    pair.link.limit(150)
    move = pair.a.spawn("migrate", vm.name, "b", "--postcopy", "--postcopy-preempt", "--transport", "plain")
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() > begun + 12, 20, "the token to be too old")
    pair.a.run("migrate-postcopy", vm.name)
    assert move.wait(timeout=120) == 0, move.communicate()
    assert pair.job(vm)["result"]["postcopy"]
    pair.moved(vm)
    vm.healthy()


def test_a_stream_for_urgent_pages_needs_a_newer_qemu(pair, start):
    vm = start()
    refused = pair.a.refused("migrate", vm.name, "b", "--postcopy-preempt")
    assert "8.0" in refused["message"] and pair.a.state(vm.name) == "running"
    assert "handed" in pair.a.refused("migrate", vm.name, "b", "--postcopy-preempt", "--transport", "handoff", code=2)["message"]
    assert "exclude" in pair.a.refused("migrate", vm.name, "b", "--postcopy-preempt", "--parallel", "2", code=2)["message"]


@pytest.mark.parametrize("who", ["a", "b", "ab"])
def test_postcopy_survives_a_droverd_that_is_killed(pair, start, who):
    vm = start(ram="262152k", mem=128, rate=100)
    move = pair.a.spawn("migrate", vm.name, "b", "--postcopy-after-precopy", "--postcopy-bandwidth", "20")
    pages_go(pair, vm)
    for name in who:
        (pair.a if name == "a" else pair.b).kill()
    for name in who:
        (pair.a if name == "a" else pair.b).start()
    move.communicate(timeout=120)
    wait_until(lambda: pair.job(vm)["state"] == "succeeded", 120, lambda: f"the move to end: {pair.job(vm)}")
    pair.moved(vm)
    vm.healthy()


def test_postcopy_cannot_be_cancelled_over_there(pair, start):
    vm = start(ram="262152k", mem=128, rate=100)
    move = pair.a.spawn("migrate", vm.name, "b", "--postcopy-after-precopy", "--postcopy-bandwidth", "15")
    pages_go(pair, vm)
    for daemon in (pair.a, pair.b):
        job = next(job for job in daemon.json("jobs") if job["vm"] == vm.name)
        assert daemon.run("cancel", job["id"], check=False).returncode == 1
    said = move.communicate(timeout=120)
    assert move.returncode == 0, said
    pair.moved(vm)
    vm.healthy()


@pytest.mark.parametrize("who", ["old", "new"])
def test_a_qemu_that_ends_in_postcopy_takes_the_guest_with_it(pair, start, who):
    """A half is of no use: both hosts say so, and nothing of it is left."""
    vm = start(ram="262152k", mem=128, rate=100)
    old = vm.pid
    move = pair.a.spawn("migrate", vm.name, "b", "--postcopy-after-precopy", "--postcopy-bandwidth", "10")
    pages_go(pair, vm)
    kill_pid(old if who == "old" else next(iter(pair.b.qemus())))
    move.communicate(timeout=120)
    assert move.returncode == 3
    error = pair.job(vm)["error"]
    assert error["code"] == "attention" and "has ended" in error["message"] and error["remedy"], error
    wait_until(lambda: all(job["state"] == "attention" for job in pair.b.json("jobs") if job["vm"] == vm.name), 60, "the other job to end")
    assert pair.a.qemus() == pair.b.qemus() == []


def test_a_program_that_is_not_on_the_list_is_not_started(pair, start, tmp_path):
    """Also not to be asked what it can do."""
    vm = start()
    script = tmp_path / "qemu-system-x86_64"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    script.chmod(0o755)
    report = json.loads(pair.a.run("migrate", vm.name, "b", "--check", "--json", "--qemu", script, check=False).stdout)
    assert "binary" in [finding["code"] for finding in report["findings"]], report
    assert not (tmp_path / "started").exists()


# --- The guest's network ---


@pytest.fixture
def bridges(pair):
    """A bridge of the same name on both hosts, and a link between them that is not the one of the move."""
    with hosts.Bridge(pair.netns_a, "192.0.2.1/24", name="drbr") as a, hosts.Bridge(pair.netns_b, name="drbr") as b, \
            hosts.Veth(pair.netns_a, pair.netns_b) as wire:
        a.add(wire.names[0])
        b.add(wire.names[1])
        yield a


def test_connections_stay_up_over_ten_moves(pair, start, bridges):
    with hosts.Tap(netns=pair.netns_a, bridge=bridges, name="drtap") as tap:
        vm = start(witness={"ip": "192.0.2.2/24", "gw": "192.0.2.1"},
                   extra=[*tap.qemu_args(), "-device", "virtio-net-pci,netdev=net0,romfile="])
        udp = guest.Udp("192.0.2.2", netns=pair.netns_a)
        with peers.connect(("192.0.2.2", 7000), pair.netns_a) as stream:
            for number in range(10):
                pair.migrate(vm, *(("--postcopy-after-precopy",) if number % 2 else ()))
                stream.sendall(f"echo {number}\n".encode())
                assert peers.read_until(stream, b"\n", timeout=30) == f"ECHO {number}\n".encode()
                assert udp.status(timeout=20)["bootid"] == vm.bootid
        udp.close()
        vm.healthy()


# --- The guest's disks ---


def disk_guest(start, image):
    return start(witness={"disk": "/dev/vda"}, extra=["-drive", f"if=none,id=h0,format=raw,file={image}", "-device",
                                                      "virtio-blk-pci,drive=h0,serial=one"])


def test_a_disk_on_storage_of_both(pair, start, tmp_path):
    image = new_image(tmp_path / "disk")
    vm = disk_guest(start, image)
    for options in ((), ("--postcopy-after-precopy",)):
        pair.migrate(vm, *options)
        vm.healthy()
        writes_go_on(vm, "/dev/vda")
    acked = acked_at_the_end(vm.daemon, vm, "/dev/vda")
    assert guest.DiskImage(image).problems(acked["/dev/vda"]) == []


def test_a_disk_that_has_another_name_there(pair, start, tmp_path):
    """The same directory, by another path."""
    (tmp_path / "here").mkdir()
    image = new_image(tmp_path / "here" / "disk")
    (tmp_path / "there").symlink_to(tmp_path / "here")
    vm = disk_guest(start, image)
    error = pair.a.refused("migrate", vm.name, "b", "--map", f"disk={tmp_path}/nothing:{tmp_path}/there/disk")
    assert "has no image" in error["message"], error
    assert "no mapping" in pair.a.refused("migrate", vm.name, "b", "--map", "colour=red")["message"]
    pair.migrate(vm, "--map", f"disk={image}:{tmp_path}/there/disk")
    assert f"{tmp_path}/there/disk" in " ".join(vm.daemon.show(vm.name)["argv_running"])
    vm.healthy()
    writes_go_on(vm, "/dev/vda")
    pair.migrate(vm)
    vm.healthy()


def test_a_disk_that_is_not_there(pair, start, tmp_path):
    image, other = new_image(tmp_path / "disk"), tmp_path / "other"
    other.mkdir()
    new_image(other / "disk")
    vm = disk_guest(start, image)
    for there, code in ((other / "disk", "disk-not-shared"), (tmp_path / "no" / "disk", "disk-missing")):
        report = json.loads(pair.a.run("migrate", vm.name, "b", "--check", "--json", "--map", f"disk={image}:{there}", check=False).stdout)
        assert code in [finding["code"] for finding in report["findings"]], report
    assert pair.a.state(vm.name) == "running"
