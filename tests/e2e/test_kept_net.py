# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest's network over upgrades: host forwards, taps with one and several queues, bridges; also after a failed one."""

import os
import shlex
import tempfile
from pathlib import Path

import pytest

from lib import drover, guest, hosts, peers
from lib.procs import wait_until

SMALL = {"ram": "131080k", "mem": 16, "rate": 50}
THERE_AND_BACK = ("10.0", "7.2")
GATEWAY, ADDRESS = "192.0.2.1", "192.0.2.2"
ON_TAP = {"ip": f"{ADDRESS}/24", "gw": GATEWAY}
ON_USER = {"ip": "10.0.2.15/24", "gw": "10.0.2.2"}
NIC = "virtio-net-pci,netdev=net0,romfile="
HELPER = Path("/usr/lib/qemu/qemu-bridge-helper")


@pytest.fixture
def netns():
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces and taps")
    with hosts.Netns() as made:
        yield made


@pytest.fixture
def daemon(netns):
    with drover.Daemon(netns=netns) as started:
        yield started


@pytest.fixture
def start():
    started = []

    def start_one(daemon, **options):
        started.append(drover.Witness(daemon, **{**SMALL, **options}))
        return started[-1]

    yield start_one
    for vm in started:
        vm.close()


# --- Host forwards ---


def answers_udp(netns, port):
    """The witness, through a forwarded UDP port."""
    udp = guest.Udp("127.0.0.1", port, netns)
    try:
        return udp.status(timeout=20)["bootid"]
    finally:
        udp.close()


def answers_tcp(netns, port):
    """The witness, through a forwarded TCP port."""
    with peers.connect(("127.0.0.1", port), netns) as sock:
        sock.sendall(b"echo over TCP\n")
        return peers.read_until(sock, b"\n", timeout=20) == b"ECHO over TCP\n"


def test_host_forwards_are_back_whoever_made_them(netns, daemon, start):
    vm = start(daemon, witness=ON_USER,
               extra=["-netdev", "user,id=net0,hostfwd=udp:127.0.0.1:7001-:7000,hostfwd=tcp:127.0.0.1:7002-:7000",
                      "-device", NIC])

    def hmp(line):
        return daemon.qmp(vm.name, "human-monitor-command", {"command-line": line})

    # Made and removed behind the command line's back.
    assert not hmp("hostfwd_add net0 tcp:127.0.0.1:7003-:7000") and not hmp("hostfwd_add net0 udp:127.0.0.1:7004-:7000")
    assert not hmp("hostfwd_add net0 tcp:127.0.0.1:7005-:7000")
    assert "removed" in hmp("hostfwd_remove net0 tcp:127.0.0.1:7005")
    for version in (None, *THERE_AND_BACK):
        if version:
            job = vm.upgrade(version)
            assert not [finding for finding in job["findings"] if finding["code"] == "hostfwd"]
        for port in (7001, 7004):
            assert answers_udp(netns, port) == vm.bootid
        for port in (7002, 7003):
            assert answers_tcp(netns, port)
            assert peers.has_socket(vm.pid, peers.tcp_listeners(netns, port))
        assert not peers.tcp_listeners(netns, 7005), "a rule that was removed is not back"


def test_host_forwards_of_nics_without_a_name_are_back(netns, daemon, start):
    """QEMU gives them names of its own, other ones in each process."""
    vm = start(daemon, witness={**ON_USER, "ip1": "10.0.3.15/24"},
               extra=["-nic", "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:7002-:7000", "-nic",
                      "user,model=virtio-net-pci,net=10.0.3.0/24,hostfwd=tcp:127.0.0.1:7003-:7000"])
    vm.upgrade("10.0")
    assert answers_tcp(netns, 7002) and answers_tcp(netns, 7003)
    # QEMU before 8.2 takes the state of the second for that of the first: said before the guest is stopped.
    assert "2 user-mode networks" in daemon.refused("upgrade", vm.name, "--qemu", guest.qemu("7.2"))["message"]
    assert answers_tcp(netns, 7002) and answers_tcp(netns, 7003)
    vm.healthy()


# --- Taps ---


# Of 1500. That it is one at most on an idle machine is bench/upgrade's to show; without the guard of src/qemu/tap.c it is
# 12 to 24.
FEW = 6


def pings_over(vm, netns, version, upgrade=None):
    """1500 pings 3 ms apart, an upgrade among them; returns how many had no answer."""
    with guest.Pinger(ADDRESS, interval=0.003, netns=netns) as pinger:
        wait_until(lambda: pinger.report()["sent"] >= 500, 60, "500 pings")
        (upgrade or vm.upgrade)(version)
        wait_until(lambda: pinger.report()["sent"] >= 1500, 60, "1500 pings")
        return pinger.stop(grace=3)


def test_a_tap_loses_next_to_no_ping(netns, daemon, start):
    with hosts.Tap(netns=netns, address=f"{GATEWAY}/24") as tap:
        vm = start(daemon, witness=ON_TAP, extra=[*tap.qemu_args(), "-device", NIC])
        before = peers.tap_state(vm.pid, netns)
        for version in (*THERE_AND_BACK, "10.0"):
            lost = pings_over(vm, netns, version)
            assert lost["lost"] <= FEW, lost
            assert peers.tap_state(vm.pid, netns) == before, "the tap's vnet header and offloads"
        assert before["queues"] == [(tap.name, 12)]


def test_the_network_works_after_a_failed_upgrade(netns, start):
    with hosts.Tap(netns=netns, address=f"{GATEWAY}/24") as tap, \
            drover.Daemon(netns=netns, env={"DROVER_HOLD_AT": "transfer"}) as daemon:
        vm = start(daemon, witness={**ON_TAP, "ip1": "10.0.2.15/24"},
                   extra=[*tap.qemu_args(), "-device", NIC, "-netdev", "user,id=u,hostfwd=tcp:127.0.0.1:7002-:7000",
                          "-device", "virtio-net-pci,netdev=u,romfile="])
        pid, before = vm.pid, peers.tap_state(vm.pid, netns)

        for version in ("10.0", "7.2"):
            lost = pings_over(vm, netns, version, lambda version: daemon.fail_upgrade(vm.name, guest.qemu(version)))
            assert lost["lost"] <= FEW, lost
            assert vm.pid == pid and peers.tap_state(pid, netns) == before
            assert answers_tcp(netns, 7002)
        vm.healthy()


@pytest.mark.parametrize("machine", ["pc-q35-7.2", "pc-i440fx-7.2"])
def test_a_tap_with_several_queues_keeps_all_of_them(netns, daemon, start, machine):
    with hosts.Tap(netns=netns, address=f"{GATEWAY}/24", multi_queue=True) as tap:
        vm = start(daemon, machine=machine, witness=ON_TAP,
                   extra=["-smp", "2", "-netdev", f"tap,id=net0,ifname={tap.name},script=no,downscript=no,queues=2",
                          "-device", f"{NIC},mq=on,vectors=6"])
        before = peers.tap_state(vm.pid, netns)
        assert before["queues"] == [(tap.name, 12)] * 2
        for version in THERE_AND_BACK:
            lost = pings_over(vm, netns, version)
            assert lost["lost"] <= 15, lost  # what waits in a queue that is detached is dropped by the kernel
            assert peers.tap_state(vm.pid, netns) == before


def test_nic_tap_and_a_downscript(netns, daemon, start):
    """-nic in one option, and a script that must not run while the guest goes on."""
    with hosts.Tap(netns=netns, address=f"{GATEWAY}/24") as tap:
        script = daemon.dir / "down"
        script.write_text(f"#!/bin/sh\ntouch {daemon.dir}/down-was-run\n")
        script.chmod(0o755)
        vm = start(daemon, witness=ON_TAP,
                   extra=["-nic", f"tap,model=virtio-net-pci,ifname={tap.name},script=no,downscript={script}"])
        for version in THERE_AND_BACK:
            lost = pings_over(vm, netns, version)
            assert lost["lost"] <= FEW, lost
        assert not (daemon.dir / "down-was-run").exists()


@pytest.fixture
def bridge_helper(netns):
    """Two bridges, and QEMU's setuid helper, which allows what its configuration does: one of our own, in a mount namespace of
    its own."""
    if not HELPER.exists():
        pytest.skip(f"{HELPER} is not installed")
    with tempfile.TemporaryDirectory(prefix="dr-etc-") as etc, hosts.Bridge(netns, f"{GATEWAY}/24") as bridge, \
            hosts.Bridge(netns, "198.51.100.1/24") as other:
        (Path(etc) / "qemu").mkdir()
        (Path(etc) / "qemu" / "bridge.conf").write_text(f"allow {bridge.name}\nallow {other.name}\n")
        script = Path(etc) / "helper"
        script.write_text(f"#!/bin/sh\nexec unshare -m sh -c 'mount --bind {shlex.quote(etc)} /etc && exec {HELPER} \"$@\"' "
                          "helper \"$@\"\n")
        script.chmod(0o755)
        yield bridge, other, script


def test_a_bridge_port_that_a_helper_made_stays(netns, daemon, start, bridge_helper):
    bridge, _, script = bridge_helper
    vm = start(daemon, witness=ON_TAP, extra=["-netdev", f"bridge,id=net0,br={bridge.name},helper={script}", "-device", NIC])
    before = peers.tap_state(vm.pid, netns)
    for version in THERE_AND_BACK:
        lost = pings_over(vm, netns, version)
        assert lost["lost"] <= FEW, lost
        assert peers.tap_state(vm.pid, netns) == before


def answers_at(netns, vm, *addresses):
    for address in addresses:
        udp = guest.Udp(address, netns=netns)
        try:
            assert udp.status(timeout=20)["bootid"] == vm.bootid, address
        finally:
            udp.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_bridge_ports_that_helpers_made_stay_in_their_bridges(netns, daemon, start, bridge_helper, order):
    """Nobody wrote down which tap is whose; a named one stands beside them."""
    *bridges, script = bridge_helper
    addresses = [ADDRESS, "198.51.100.2"]
    first, second = (bridges[number] for number in order)
    with hosts.Tap(netns=netns, address="203.0.113.1/24") as tap:
        vm = start(daemon, witness={"ip": f"{addresses[order[0]]}/24", "ip1": "203.0.113.2/24",
                                    "ip2": f"{addresses[order[1]]}/24"},
                   extra=["-netdev", f"bridge,id=net0,br={first.name},helper={script}", *tap.qemu_args("net1"),
                          "-netdev", f"tap,id=net2,br={second.name},helper={script}",
                          *[word for number in range(3) for word in ("-device", f"virtio-net-pci,netdev=net{number},romfile=")]])
        before = peers.tap_state(vm.pid, netns)
        assert len(before["queues"]) == 3
        for version in THERE_AND_BACK:
            vm.upgrade(version)
            assert sorted(peers.tap_state(vm.pid, netns)["queues"]) == sorted(before["queues"])
            answers_at(netns, vm, *addresses, "203.0.113.2")


def test_taps_that_cannot_be_told_apart_are_refused(netns, daemon, start, bridge_helper):
    bridge, other, script = bridge_helper
    vm = start(daemon, extra=["-netdev", f"bridge,id=net0,br={bridge.name},helper={script}", "-device", NIC,
                              "-netdev", f"bridge,id=net1,br={other.name},helper={script}",
                              "-device", "virtio-net-pci,netdev=net1,romfile="])
    for name, _ in peers.tap_state(vm.pid, netns)["queues"]:
        netns.ip("link", "set", name, "master", other.name)
    error = daemon.refused("upgrade", vm.name, "--qemu", guest.qemu("10.0"))
    assert "net0" in error["message"] and "net1" in error["message"] and "ifname" in error["remedy"], error
    vm.healthy()


def test_two_taps_keep_their_places(netns, daemon, start):
    with hosts.Tap(netns=netns, address=f"{GATEWAY}/24") as first, hosts.Tap(netns=netns, address="198.51.100.1/24") as second:
        vm = start(daemon, witness={**ON_TAP, "ip1": "198.51.100.2/24"},
                   extra=[*first.qemu_args("net0"), *second.qemu_args("net1"), "-device", f"{NIC},mac=52:54:00:d0:00:01",
                          "-device", "virtio-net-pci,netdev=net1,romfile=,mac=52:54:00:d0:00:02"])
        macs = [nic["mac"] for nic in vm.console.status()["nics"]]
        for version in THERE_AND_BACK:
            vm.upgrade(version)
            assert [nic["mac"] for nic in vm.console.status()["nics"]] == macs
            for address in (ADDRESS, "198.51.100.2"):
                udp = guest.Udp(address, netns=netns)
                assert udp.status(timeout=20)["bootid"] == vm.bootid
                udp.close()
