#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo: a Linux guest under load is upgraded from QEMU 7.2 to 10.0 and back, and says what it noticed."""

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "e2e"))

from lib import drover, guest, hosts  # noqa: E402
from lib.procs import wait_until  # noqa: E402

COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
ADDRESS, GATEWAY = "192.0.2.2", "192.0.2.1"
WATCH_S = 2.0  # of pings before and after each upgrade


def paint(code, text):
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def bold(text):
    return paint("1", text)


def dim(text):
    return paint("2", text)


def good(text, fine=True):
    return paint("32" if fine else "31;1", text)


def say(text=""):
    print(text, flush=True)


def command(daemon, *words):
    """Shows a command as a user would type it, runs it, shows what it says."""
    say(bold("$ drover " + " ".join(str(word) for word in words)))
    result = subprocess.run(daemon.argv(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
                            stdin=subprocess.DEVNULL)
    say("\n".join("  " + line for line in result.stdout.strip().splitlines()))
    if result.returncode:
        sys.exit(f"drover exited with {result.returncode}; droverd said:\n{daemon.log()[-3000:]}")


def start(daemon, tap, observer):
    serial = daemon.dir / "serial"
    argv = [guest.qemu("7.2"), "-machine", "q35", "-cpu", "qemu64", "-m", "262152k", "-display", "none", "-nodefaults",
            "-chardev", f"socket,id=serial,path={serial},server=on,wait=off", "-serial", "chardev:serial",
            *tap.qemu_args(), "-device", "virtio-net-pci,netdev=net0,romfile=", *observer.qemu_args(),
            *guest.kernel_args(mem=96, rate=150, ip=f"{ADDRESS}/24", gw=GATEWAY, tick="port")]
    say(bold("$ drover run web1 -- qemu-system-x86_64 -machine q35 -m 262152k … -kernel vmlinuz"))
    daemon.run("run", "web1", "--", *argv)
    console = guest.Console(serial)
    console.wait_ready()
    status = console.wait_passes(1)
    say(f"  {bold('web1')} is up: Linux on QEMU {daemon.show('web1')['qemu_version']}, {status['mem_mib']} MiB of its memory "
        f"rewritten at {status['rate']} MiB/s, each page checked")
    return serial, console, status


def upgrade(daemon, serial, console, observer, before, qemu):
    """One upgrade under observation; prints what the guest saw and returns its status."""
    say()
    observer.reset()
    with guest.Pinger(ADDRESS, interval=0.003, netns=daemon.netns) as pinger:
        wait_until(lambda: pinger.report()["sent"] > WATCH_S / 0.003, 20, "the first pings")
        command(daemon, "upgrade", "web1", "--qemu", os.path.relpath(qemu) if str(qemu).startswith(os.getcwd()) else qemu)
        console.follow(serial)
        sent = pinger.report()["sent"]
        wait_until(lambda: pinger.report()["sent"] > sent + WATCH_S / 0.003, 20, "the last pings")
        pings = pinger.stop()
    ticks = observer.report()
    console.wait_passes(1)
    status = console.status()
    checked, bad = status["checked"] - before["checked"], status["bad"]
    say()
    say("  what the guest saw")
    say(f"    boot          {good('the same one') if status['bootid'] == before['bootid'] else good('ANOTHER ONE', False)}, "
        f"up for {status['up_ms'] / 1000:.1f} s")
    say(f"    memory        {checked:,} pages checked, {good(f'{bad} wrong', bad == 0)}")
    say("  what the network saw")
    say(f"    pings         {pings['sent']:,} sent, 3 ms apart, {good(str(pings['lost']) + ' lost', pings['lost'] <= 1)}")
    say(f"    longest gap   {ticks['longest_ms']:.1f} ms between two of the guest's 1 ms ticks "
        f"{dim('(a fresh QEMU without KVM translates its code anew)')}")
    return status


def main():
    say()
    say(bold("drover") + " puts a new QEMU under a running guest, without copying its memory.")
    say()
    with hosts.Netns() as netns, hosts.Tap(netns=netns, address=f"{GATEWAY}/24") as tap:
        daemon = drover.Daemon(netns=netns)
        with daemon, guest.GapObserver(unix=daemon.dir / "tick") as observer:
            begun = time.monotonic()
            serial, console, status = start(daemon, tap, observer)
            status = upgrade(daemon, serial, console, observer, status, guest.qemu("10.0"))
            status = upgrade(daemon, serial, console, observer, status, guest.qemu("7.2"))
            say()
            command(daemon, "list")
            say()
            problems = status.problems()
            say(good("All of it held.") if not problems else good(problems, False))
            say(dim(f"{time.monotonic() - begun:.0f} s. Next: ./check runs the tests; README.md says how to do this to your own VMs."))
            console.close()
            sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
