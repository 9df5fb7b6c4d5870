# SPDX-License-Identifier: LGPL-2.1-or-later
"""drover's own console over upgrades: it stays connected, nothing typed or printed is lost or comes twice."""

import socket
import subprocess

import pytest

from lib import consoles, drover, guest
from lib.procs import wait_until

SMALL = {"ram": "131080k", "mem": 16, "rate": 50}
THERE_AND_BACK = ("10.0", "7.2")
WITHOUT_SERIAL = {"base": ("-display", "none", "-nic", "none", "-vga", "none"), "serial": []}


def by_drover(vm):
    return consoles.DroverConsole(vm.daemon, vm.name)


@pytest.fixture
def vm(daemon):
    """A witness that says nothing of serial ports, so that its first one is drover's console."""
    started = drover.Witness(daemon, console=by_drover, **WITHOUT_SERIAL, **SMALL)
    yield started
    started.close()


def test_what_is_typed_and_printed_is_neither_lost_nor_doubled(daemon, vm):
    watcher = consoles.DroverConsole(daemon, vm.name)
    try:
        watcher.wait_ready()
        process = vm.console.process
        for round_, version in enumerate(THERE_AND_BACK):
            with consoles.Typist(vm.console, word=f"r{round_}x") as typist:
                wait_until(lambda: typist.typed > 20, 20, "lines typed before the upgrade")
                daemon.upgrade(vm.name, guest.qemu(version))
                typed = typist.typed
                wait_until(lambda: typist.typed > typed + 20, 20, "lines typed after the upgrade")
            typist.check()
            vm.healthy()
        assert vm.console.process is process and process.poll() is None, "it was never connected anew"
        # The second reader saw the same, byte for byte.
        vm.console.send("echo end-of-both")
        vm.console.wait_line("ECHO end-of-both")
        watcher.wait_line("ECHO end-of-both")
        assert echoes(watcher.log) == echoes(vm.console.log)
    finally:
        watcher.close()


def echoes(log):
    return [line for line in log.decode(errors="replace").splitlines() if "ECHO" in line]


def test_two_can_type(daemon, vm):
    with consoles.DroverConsole(daemon, vm.name) as other:
        for version in (None, *THERE_AND_BACK):
            if version:
                daemon.upgrade(vm.name, guest.qemu(version))
            for typing, reading in ((vm.console, other), (other, vm.console)):
                typing.send(f"echo {version} for both")
                typing.wait_line(f"ECHO {version} for both")
                reading.wait_line(f"ECHO {version} for both")


def test_a_person_at_a_terminal_stays_connected_and_leaves_with_a_key(daemon, vm):
    terminal = consoles.DroverTerminal(daemon, vm.name)
    try:
        terminal.wait_ready()
        assert terminal.is_raw()
        for version in (None, *THERE_AND_BACK):
            if version:
                daemon.upgrade(vm.name, guest.qemu(version))
            assert terminal.command("echo at the terminal") == "ECHO at the terminal"
        # Ctrl-C belongs to the guest, which takes it for a part of the line.
        terminal.sock.sendall(b"\x03")
        terminal.send("echo still here")
        terminal.wait_line("ERR \x03echo")
        assert terminal.leave() == 0
        assert not terminal.is_raw(), "the terminal is as it was"
    finally:
        terminal.close()
    vm.console.send("echo the other one stays")
    vm.console.wait_line("ECHO the other one stays")
    other = consoles.DroverTerminal(daemon, vm.name, "--escape", "^A")
    try:
        other.wait_ready()
        assert other.leave(key=b"\x01") == 0
    finally:
        other.close()


def test_a_reader_that_does_not_read_holds_nobody_up(daemon, vm):
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck = subprocess.Popen(daemon.argv("console", vm.name), stdin=subprocess.DEVNULL, stdout=theirs)
    try:
        text = "x" * 400
        for version in THERE_AND_BACK:
            for number in range(300):  # 120 KB: more than anybody buffers for it
                vm.console.send(f"echo {number}-{text}")
                vm.console.wait_line(f"ECHO {number}-{text}")
            vm.upgrade(version)
    finally:
        stuck.kill()
        stuck.wait()
        ours.close()
        theirs.close()


def test_the_console_ends_with_the_vm(daemon, vm):
    vm.upgrade("10.0")
    daemon.run("stop", vm.name, "--force")
    assert vm.console.process.wait(20) == 0


def test_the_console_stays_over_a_failed_upgrade():
    with drover.Daemon(env={"DROVER_HOLD_AT": "transfer"}) as daemon:
        vm = drover.Witness(daemon, console=by_drover, **WITHOUT_SERIAL, **SMALL)
        with consoles.Typist(vm.console) as typist:
            daemon.fail_upgrade(vm.name, guest.qemu("10.0"),
                                lambda: wait_until(lambda: typist.typed > 20, 20, "lines typed before"))
            typed = typist.typed
            wait_until(lambda: typist.typed > typed + 20, 20, "lines typed after")
        typist.check()
        vm.close()


def test_nographic_gives_a_console_with_the_monitor_beside_it(daemon):
    vm = drover.Witness(daemon, console=by_drover, base=("-nographic", "-nic", "none", "-vga", "none"), serial=[], **SMALL)
    try:
        for version in (None, *THERE_AND_BACK):
            if version:
                vm.upgrade(version)
            assert vm.console.command("echo guest") == "ECHO guest"
            vm.console.sock.sendall(b"\x01c")  # Ctrl-A c: to the monitor and back
            vm.console.sock.sendall(b"info name\ninfo version\n")
            assert vm.console.wait_line(version or "7.2").startswith(version or "7.2")
            vm.console.sock.sendall(b"\x01c")
    finally:
        vm.close()


def test_a_socket_of_the_users_own_is_read_through_upgrades_and_let_go(daemon):
    vm = drover.Witness(daemon, **SMALL)
    vm.console.close()
    try:
        with consoles.DroverConsole(daemon, vm.name) as console:
            for round_, version in enumerate(THERE_AND_BACK):
                with consoles.Typist(console, word=f"r{round_}x") as typist:
                    wait_until(lambda: typist.typed > 20, 20, "lines typed before the upgrade")
                    daemon.upgrade(vm.name, guest.qemu(version))
                    typed = typist.typed
                    wait_until(lambda: typist.typed > typed + 20, 20, "lines typed after the upgrade")
                typist.check()
        vm.healthy()  # over the socket itself
    finally:
        vm.close()


def test_a_reader_that_comes_in_the_middle_of_an_upgrade_is_taken_along():
    """The socket is the user's own, and was let go when the new QEMU was made ready: nobody read it then."""
    with drover.Daemon() as daemon:
        vm = drover.Witness(daemon, **SMALL)
        vm.console.close()
        daemon.restart(env={"DROVER_HOLD_AT": "transfer"})
        hold = daemon.run_dir / "hold"
        for version in THERE_AND_BACK:
            upgrade = daemon.spawn("upgrade", vm.name, "--qemu", guest.qemu(version))
            wait_until(lambda: hold.exists() or upgrade.poll() is not None, 60, "the upgrade to come to its transfer")
            with consoles.DroverConsole(daemon, vm.name) as console:
                before, after = f"before {version}", f"after {version}"  # a console begins with what was said before
                assert console.command(f"echo {before}", wanted=f"ECHO {before}")
                hold.unlink()
                assert upgrade.wait(60) == 0, upgrade.communicate()
                assert console.command(f"echo {after}", wanted=f"ECHO {after}")
            upgrade.communicate()
        daemon.restart()
        vm.healthy()  # over the socket itself: it was let go
        vm.close()


def test_typing_while_memory_is_copied(daemon):
    """The switch comes by itself then, in the middle of a copy that may take long."""
    vm = drover.Witness(daemon, console=by_drover, options=["--memory", "private"], **WITHOUT_SERIAL, **SMALL)
    try:
        for round_, (version, mode) in enumerate((("10.0", "copy"), ("7.2", "postcopy"))):
            with consoles.Typist(vm.console, word=f"r{round_}x") as typist:
                wait_until(lambda: typist.typed > 20, 20, "lines typed before the upgrade")
                assert daemon.upgrade(vm.name, guest.qemu(version), "--memory", mode)["result"]["memory_mode"] == mode
                typed = typist.typed
                wait_until(lambda: typist.typed > typed + 20, 20, "lines typed after the upgrade")
            typist.check()
            vm.healthy()
    finally:
        vm.close()


def test_stdio_in_any_spelling_is_the_console(daemon):
    for number, serial in enumerate((["-serial", "stdio"], ["-serial", "mon:stdio"],
                                     ["-chardev", "stdio,id=c0,signal=off", "-serial", "chardev:c0"])):
        vm = drover.Witness(daemon, name=f"vm{number}", console=by_drover, serial=serial, **SMALL)
        try:
            vm.upgrade("10.0")
        finally:
            vm.close()
        daemon.run("stop", vm.name, "--force")
