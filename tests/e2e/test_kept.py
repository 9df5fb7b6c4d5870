# SPDX-License-Identifier: LGPL-2.1-or-later
"""What stays as it was over upgrades: monitors, serial ports, TCP listeners, VNC, the gdb stub, pidfile, arguments."""

import os
import shlex
import socket

import pytest

from lib import consoles, drover, guest, hosts, peers
from lib.procs import wait_until
from lib.qmp import Qmp

SMALL = {"ram": "131080k", "mem": 16, "rate": 50}
THERE_AND_BACK = ("10.0", "7.2")


@pytest.fixture
def netns():
    """Ports of our own."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a network namespace")
    with hosts.Netns() as made:
        yield made


@pytest.fixture
def netns_daemon(netns):
    with drover.Daemon(netns=netns) as started:
        yield started


@pytest.fixture
def start(request):
    """Starts witnesses that are closed at the test's end."""
    started = []

    def start_one(daemon, **options):
        started.append(drover.Witness(daemon, **{**SMALL, **options}))
        return started[-1]

    yield start_one
    for vm in started:
        vm.close()


def major(version):
    return int(version.split(".")[0])


# --- Sockets and files ---


def assert_bytes_count_up(path):
    """The guest's ticks: each byte is its predecessor plus one, so that nothing is missing and nothing came twice."""
    data = path.read_bytes()
    breaks = [at for at in range(1, len(data)) if data[at] != (data[at - 1] + 1) % 256]
    assert data and data[0] == 1 and not breaks, f"{len(data)} bytes, the first {data[:4]!r}, breaks at {breaks[:10]}"
    return len(data)


def test_sockets_files_and_pidfile_stay_where_they_were(daemon, start):
    qmp, hmp, serial, log = (daemon.dir / name for name in ("qmp", "hmp", "serial1", "log1"))
    vm = start(daemon, witness={"tick": "/dev/ttyS2", "tickus": 5000},
               extra=["-qmp", f"unix:{qmp},server=on,wait=off", "-monitor", f"unix:{hmp},server,nowait", "-serial",
                      f"unix:{serial},server=on,wait=off", "-serial", f"file:{log}", "-daemonize", "-pidfile",
                      daemon.dir / "pidfile"])
    sockets = (qmp, hmp, serial, vm.serial)
    assert (daemon.dir / "pidfile").read_text() == f"{vm.pid}\n"
    pids = {vm.pid}
    for version in THERE_AND_BACK:
        written = log.stat().st_size
        with peers.PathWatch(*sockets, log) as watch:
            vm.upgrade(version)
        assert not watch.missing
        pids.add(vm.pid)
        assert [peers.listener_pid(path) for path in sockets] == [vm.pid] * 4
        with Qmp(qmp) as client:
            assert client.version[0] == major(version)
            assert client.command("query-name") == {}
        with peers.Hmp(hmp) as monitor:
            assert monitor.version[0] == major(version)
            assert "running" in monitor.command("info status")
        assert (daemon.dir / "pidfile").read_text() == f"{vm.pid}\n"
        wait_until(lambda: log.stat().st_size > written + 100, 20, "the guest to go on writing into its serial log")
    assert len(pids) == 3, "each upgrade is another process"
    daemon.run("stop", vm.name, "--force")
    assert_bytes_count_up(log)
    assert not [path for path in daemon.dir.iterdir() if ".drover-" in path.name], "private sockets were left behind"


def test_a_guests_name_and_uuid_stay(daemon, start):
    uuid = "6b1f9c52-0d3c-4f0c-9a1d-3c1f5f0e7a11"
    vm = start(daemon, name="web-1.example", extra=["-name", "guest=web-1,debug-threads=on", "-uuid", uuid])
    for version in THERE_AND_BACK:
        vm.upgrade(version)
        assert daemon.show(vm.name)["uuid"] == uuid
        assert daemon.qmp(vm.name, "query-name") == {"name": "web-1"}
        assert daemon.qmp(vm.name, "query-uuid") == {"UUID": uuid}


# --- TCP ---


def test_tcp_listeners_are_handed_over(netns, netns_daemon, start):
    daemon, console, ticks = netns_daemon, ("127.0.0.1", 4001), ("127.0.0.1", 4002)
    vm = start(daemon, serial=["-serial", "tcp:127.0.0.1:4001,server=on,wait=off"],
               console=lambda _: consoles.TcpConsole(console, netns), witness={"tick": "/dev/ttyS1", "tickus": 5000},
               extra=["-serial", "telnet:127.0.0.1:4002,server=on,wait=off", "-monitor",
                      "telnet:127.0.0.1:4003,server,nowait"])
    listeners = [peers.tcp_listeners(netns, port) for port in (4001, 4002, 4003)]
    for version in THERE_AND_BACK:
        vm.upgrade(version)
        # The same sockets in another process: nobody was ever refused.
        assert [peers.tcp_listeners(netns, port) for port in (4001, 4002, 4003)] == listeners
        assert all(peers.has_socket(vm.pid, inodes) for inodes in listeners)
        with peers.connect(ticks, netns) as client:
            peers.read_until(client, bytes(range(65, 91)))
        with peers.connect(("127.0.0.1", 4003), netns) as client:
            assert f"QEMU {version}".encode() in peers.read_until(client, b"(qemu) ")


def test_the_gdb_stub_is_back_at_its_port(netns, netns_daemon, start):
    vm = start(netns_daemon, extra=["-s"])
    for version in (None, *THERE_AND_BACK):
        if version:
            vm.upgrade(version)
        assert b"$T" in peers.gdb_stop_reason(("127.0.0.1", 1234), netns)
        vm.healthy()


# --- VNC ---


def test_vnc_is_back_at_its_address(netns, netns_daemon, start):
    path = netns_daemon.dir / "vnc"
    vm = start(netns_daemon, base=("-nodefaults",), extra=["-vnc", "127.0.0.1:7", "-vnc", f"unix:{path},id=second"])
    for version in (None, *THERE_AND_BACK):
        if version:
            vm.upgrade(version)
        assert peers.rfb_banner(("127.0.0.1", 5907), netns) == peers.rfb_banner(path) == b"RFB 003.008\n"
        assert peers.has_socket(vm.pid, peers.tcp_listeners(netns, 5907))


def test_vnc_that_looked_for_a_free_port_keeps_the_one_it_found(netns, netns_daemon, start):
    with hosts.inside(netns):
        taken = socket.create_server(("0.0.0.0", 5903))
    with taken:
        vm = start(netns_daemon, base=("-nodefaults",), extra=["-vnc", ":3,to=9"])
    # The port that it would take if it looked again is free by now.
    for version in (None, *THERE_AND_BACK):
        if version:
            vm.upgrade(version)
        assert peers.rfb_banner(("127.0.0.1", 5904), netns) == b"RFB 003.008\n"
        assert peers.has_socket(vm.pid, peers.tcp_listeners(netns, 5904))
        assert peers.refuses(("127.0.0.1", 5903), netns)


def test_vnc_on_a_unix_socket_stays_there(daemon, start):
    path = daemon.dir / "vnc"
    vm = start(daemon, base=("-nodefaults",), extra=["-vnc", f"unix:{path}"])
    for version in (None, *THERE_AND_BACK):
        if version:
            with peers.PathWatch(path) as watch:
                vm.upgrade(version)
            assert not watch.missing
        assert peers.rfb_banner(path) == b"RFB 003.008\n"
        assert peers.listener_pid(path) == vm.pid


def test_vnc_is_back_under_qemu_5_2(netns, netns_daemon, start):
    """Which has no display-update: `change vnc` does it."""
    vm = start(netns_daemon, base=("-nodefaults",), version="5.2", machine="pc-q35-5.2", extra=["-vnc", "127.0.0.1:7"])
    for version in ("7.2", "5.2"):
        vm.upgrade(version)
        assert peers.rfb_banner(("127.0.0.1", 5907), netns) == b"RFB 003.008\n"
        assert peers.has_socket(vm.pid, peers.tcp_listeners(netns, 5907))


def test_a_second_vnc_server_on_a_port_is_refused(netns, netns_daemon, start):
    """QEMU can move only its first one to a port at run time; that is told before anything is started."""
    daemon = netns_daemon
    vm = start(daemon, base=("-nodefaults",), extra=["-vnc", f"unix:{daemon.dir}/vnc", "-vnc", "127.0.0.1:8,id=second"])
    pid = vm.pid
    error = daemon.refused("upgrade", vm.name, "--qemu", guest.qemu("10.0"))
    assert error["code"] == "refused" and "-vnc 127.0.0.1:8,id=second" in error["message"]
    assert vm.pid == pid and peers.rfb_banner(("127.0.0.1", 5908), netns) == b"RFB 003.008\n"


def test_paths_are_those_of_the_directory_that_the_vm_was_started_in(daemon, start):
    directory = daemon.dir / "here"
    directory.mkdir()
    vm = start(daemon, cwd=directory, serial=["-serial", "unix:serial,server=on,wait=off"],
               console=lambda _: guest.Console(directory / "serial"),
               extra=["-qmp", "unix:qmp,server=on,wait=off", "-vnc", "unix:vnc", "-pidfile", "pid", "-serial", "file:log"])
    vm.serial = directory / "serial"
    for version in THERE_AND_BACK:
        vm.upgrade(version)
        assert [peers.listener_pid(directory / name) for name in ("serial", "qmp", "vnc")] == [vm.pid] * 3
        assert (directory / "pid").read_text() == f"{vm.pid}\n"
    assert sorted(path.name for path in directory.iterdir()) == ["log", "pid", "qmp", "serial", "vnc"]


# --- A failed upgrade ---


def test_after_a_failed_upgrade_all_is_where_it_was(netns, start):
    with drover.Daemon(netns=netns, env={"DROVER_HOLD_AT": "transfer"}) as daemon:
        qmp, vnc = daemon.dir / "qmp", daemon.dir / "vnc"
        vm = start(daemon, extra=["-qmp", f"unix:{qmp},server=on,wait=off", "-vnc", "127.0.0.1:7", "-vnc", f"unix:{vnc}",
                                  "-serial", "tcp:127.0.0.1:4002,server=on,wait=off", "-s", "-pidfile", daemon.dir / "pidfile"])
        pid, files = vm.pid, sorted(daemon.dir.rglob("*"))
        daemon.fail_upgrade(vm.name, guest.qemu("10.0"))
        vm.healthy()
        assert vm.pid == pid
        assert [peers.listener_pid(path) for path in (qmp, vnc, vm.serial)] == [pid] * 3
        for port in (4002, 5907, 1234):
            assert peers.has_socket(pid, peers.tcp_listeners(netns, port)), f"port {port}"
        assert (daemon.dir / "pidfile").read_text() == f"{pid}\n"
        assert {path for path in daemon.dir.rglob("*")} - set(files) <= {daemon.state_dir / "vms" / vm.name / "exit.2"}


# --- The arguments ---


def test_run_changes_nothing_but_what_the_manual_lists(daemon, start):
    """RAM, drover's monitor, and here -daemonize and -pidfile."""
    vm = start(daemon, extra=["-daemonize", "-pidfile", daemon.dir / "pidfile", "-smp", "1,maxcpus=2", "-boot",
                              "menu=off", "-rtc", "base=utc,clock=host", "-global", "kvm-pit.lost_tick_policy=delay",
                              "-device", "virtio-rng-pci,id=rng0", "-name", "a b,,c"])
    shown = daemon.show(vm.name)
    given, running = shown["argv_given"], shown["argv_running"]
    assert given == vm.argv
    left, added = list(given), []
    for word in running:
        if left and word == left[0]:
            left.pop(0)
        elif left and left[0] == "-daemonize" and left[1] == "-pidfile" and word == left[3]:
            left = left[4:]
        else:
            added.append(word)
    assert not left, f"missing {left} in {shlex.join(running)}"
    run = daemon.run_dir / "vms" / vm.name
    assert added == ["-chardev", f"socket,id=drover-qmp,path={run}/qmp.1,server=on,wait=off", "-mon",
                     "chardev=drover-qmp,mode=control", "-object",
                     "memory-backend-file,id=pc.ram,size=134225920,mem-path=/proc/self/fd/20,share=on", "-machine",
                     "memory-backend=pc.ram"]
    text = daemon.run("show", vm.name).stdout
    lines = {line[:15].strip(): shlex.split(line[15:]) for line in text.splitlines() if line.startswith("command ")}
    assert lines["command given"] == given
    assert lines["command now"] == running


def test_private_ram_is_left_as_it_was_given(daemon, start):
    vm = start(daemon, options=["--memory", "private"])
    running = daemon.show(vm.name)["argv_running"]
    run = daemon.run_dir / "vms" / vm.name
    assert running == [*vm.argv, "-chardev", f"socket,id=drover-qmp,path={run}/qmp.1,server=on,wait=off", "-mon",
                       "chardev=drover-qmp,mode=control"]
