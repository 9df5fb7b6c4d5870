#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo: a Linux guest under load is upgraded from QEMU 7.2 to 10.0 and back; then it moves between two hosts by post-copy
while their link is cut. It says what it noticed."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "e2e"))

from lib import drover, guest, hosts  # noqa: E402
from lib.pair import Pair  # noqa: E402
from lib.procs import wait_until  # noqa: E402

COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
ADDRESS, GATEWAY = "192.0.2.2", "192.0.2.1"
WATCH_S = 2.0  # of pings before and after each upgrade
CUT_S = 5


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


def command(daemon, *words, prompt="$"):
    """Shows a command as a user would type it, runs it, shows what it says."""
    say(bold(f"{prompt} drover " + " ".join(str(word) for word in words)))
    result = subprocess.run(daemon.argv(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
                            stdin=subprocess.DEVNULL)
    say("\n".join("  " + line for line in result.stdout.strip().splitlines()))
    if result.returncode:
        sys.exit(f"drover exited with {result.returncode}; droverd said:\n{daemon.log()[-3000:]}")


def start(daemon, tap, *extra, mem=96, rate=150, prompt="$"):
    serial = daemon.dir / "serial"
    argv = [guest.qemu("7.2"), "-machine", "q35", "-cpu", "qemu64", "-m", "262152k", "-display", "none", "-nodefaults",
            "-chardev", f"socket,id=serial,path={serial},server=on,wait=off", "-serial", "chardev:serial",
            *tap.qemu_args(), "-device", "virtio-net-pci,netdev=net0,romfile=", *extra,
            *guest.kernel_args(mem=mem, rate=rate, ip=f"{ADDRESS}/24", gw=GATEWAY, tick="port" if extra else None)]
    say(bold(f"{prompt} drover run web1 -- qemu-system-x86_64 -machine q35 -m 262152k … -kernel vmlinuz"))
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
    status = guest_says(console, before)
    say("  what the network saw")
    say(f"    pings         {pings['sent']:,} sent, 3 ms apart, {good(str(pings['lost']) + ' lost', pings['lost'] <= 1)}")
    say(f"    longest gap   {ticks['longest_ms']:.1f} ms between two of the guest's 1 ms ticks "
        f"{dim('(a fresh QEMU without KVM translates its code anew)')}")
    return status


def guest_says(console, before):
    console.wait_passes(1)
    status = console.status()
    checked, bad = status["checked"] - before["checked"], status["bad"]
    say()
    say("  what the guest saw")
    say(f"    boot          {good('the same one') if status['bootid'] == before['bootid'] else good('ANOTHER ONE', False)}, "
        f"up for {status['up_ms'] / 1000:.1f} s")
    say(f"    memory        {checked:,} pages checked, {good(f'{bad} wrong', bad == 0)}")
    return status


def first_act():
    with hosts.Netns() as netns, hosts.Tap(netns=netns, address=f"{GATEWAY}/24") as tap:
        daemon = drover.Daemon(netns=netns)
        with daemon, guest.GapObserver(unix=daemon.dir / "tick") as observer:
            serial, console, status = start(daemon, tap, *observer.qemu_args())
            status = upgrade(daemon, serial, console, observer, status, guest.qemu("10.0"))
            status = upgrade(daemon, serial, console, observer, status, guest.qemu("7.2"))
            say()
            command(daemon, "list")
            console.close()
            return status.problems()


@contextlib.contextmanager
def bridges(pair):
    """br0 on both hosts, and a wire between them which is not the one of the move."""
    with hosts.Bridge(pair.netns_a, f"{GATEWAY}/24", name="br0") as a, hosts.Bridge(pair.netns_b, name="br0") as b, \
            hosts.Veth(pair.netns_a, pair.netns_b) as wire:
        a.add(wire.names[0])
        b.add(wire.names[1])
        yield a


def cut_in_the_middle(pair, *words):
    """A move whose link is cut when pages are on their way."""
    say(bold("host-a$ drover " + " ".join(words)))
    move = pair.a.spawn(*words)

    def job():
        return next(iter(pair.a.json("jobs")), {"stage": None, "progress": None})

    def done():
        return (job()["progress"] or {"bytes_done": 0})["bytes_done"]

    wait_until(lambda: job()["stage"] == "postcopy" or move.poll() is not None, 60, "post-copy")
    for _ in range(2):  # told each second: the first time it may be of before
        begun = done()
        wait_until(lambda: done() > begun + (4 << 20) or move.poll() is not None, 60, "pages")
    pair.link.cut()
    cut = time.monotonic()
    say("  " + paint("33", f"the link between the hosts is cut: nothing gets through for {CUT_S} s, one half of web1 here, one there"))
    wait_until(lambda: time.monotonic() - cut > CUT_S, CUT_S + 5, "the cut to last")
    pair.link.heal()
    said, _ = move.communicate(timeout=120)
    say("  " + paint("33", "the link is back; nobody types anything"))
    say("\n".join("  " + line for line in said.strip().splitlines()))
    if move.returncode:
        sys.exit(f"drover exited with {move.returncode}; droverd said:\n{pair.a.log()[-3000:]}\n{pair.b.log()[-3000:]}")


def second_act():
    with Pair() as pair, bridges(pair) as bridge, hosts.Tap(netns=pair.netns_a, bridge=bridge, name="tap0") as tap:
        command(pair.a, "peer", "test", "b", prompt="host-a$")
        serial, console, status = start(pair.a, tap, mem=128, rate=60, prompt="host-a$")
        with guest.Pinger(ADDRESS, interval=0.05, netns=pair.netns_a) as pinger:
            wait_until(lambda: pinger.report()["sent"] > 20, 20, "the first pings")
            say()
            cut_in_the_middle(pair, "migrate", "web1", "b", "--postcopy-after-precopy", "--postcopy-bandwidth", "20")
            console.follow(serial)
            status = guest_says(console, status)
            say()
            command(pair.b, "migrate", "web1", "a", prompt="host-b$")
            console.follow(serial)
            status = guest_says(console, status)
            pings = pinger.stop()
        answered = pings["sent"] - pings["lost"]
        say(f"    pings         {answered:,} of {pings['sent']:,} answered, over both moves and the cut")
        say()
        command(pair.a, "list", prompt="host-a$")
        console.close()
        return status.problems()


def main():
    begun = time.monotonic()
    say()
    say(bold("drover") + " puts a new QEMU under a running guest, without copying its memory.")
    say()
    problems = first_act()
    say()
    say(bold("And it moves it to another host") + ", through one TLS port. Here are two: host-a and host-b.")
    say()
    problems = problems or second_act()
    say()
    say(good("All of it held.") if not problems else good(problems, False))
    say(dim(f"{time.monotonic() - begun:.0f} s. Next: ./check runs the tests; README.md says how to do this to your own VMs."))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
