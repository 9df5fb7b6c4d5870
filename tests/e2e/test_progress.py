# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a user sees of a job under way: live lines on a terminal, plain lines without one, events as JSON."""

import contextlib
import json
import os
import re

import pytest

from lib import drover, guest
from lib.procs import wait_until
from lib.screen import Terminal

BAR = r"▕[█▏▎▍▌▋▊▉ ]+▏"
COPY = ("--memory", "copy")


@pytest.fixture
def start(daemon):
    with contextlib.ExitStack() as stack:
        def one(name="vm", **options):
            vm = drover.Witness(daemon, name, **{"ram": "524296k", "mem": 192, "rate": 60, **options})
            stack.callback(vm.close)
            return vm
        yield one


def with_disks(daemon, *names):
    extra = []
    for name in names:
        (daemon.dir / name).write_bytes(os.urandom(24 << 20))
        extra += ["-drive", f"if=none,id={name},format=raw,file={daemon.dir}/{name},cache=none", "-device",
                  f"virtio-blk-pci,drive={name},id=dev-{name}"]
    return extra


def copy_argv(daemon, disks, *options):
    words = [word for disk in disks for word in (disk, daemon.dir / f"copy-of-{disk}")]
    return daemon.argv("disk", "copy", "vm", *words, "--bandwidth", "8", "--buf-size", "65536", *options)


def names_of(daemon):
    return [disk["name"] for disk in daemon.json("disk", "list", "vm")]


def test_an_upgrade_on_a_terminal(daemon, start):
    vm = start()
    with Terminal(daemon.argv("upgrade", "vm", "--qemu", guest.qemu("10.0"), *COPY)) as terminal:
        assert terminal.wait() == 0, terminal.screen.text
    seen = "\n".join(terminal.seen)
    assert re.search(rf"^  memory {BAR} +\d+%  [\d.]+ [kMG]?B of [\d.]+ [MG]B, \d+ MiB/s, pass \d+$", seen, re.M), seen[-3000:]
    assert re.search(r"^vm: transfer: copying memory, [\d.]+ m?s", seen, re.M)
    assert re.search(r"^  left [\d.]+ [kMG]?B.*, end in [\d.]+ m?s$", seen, re.M)
    if any(sample["expected_pause_ms"] is not None for sample in daemon.json("report", "1")["samples"]):  # known from the second pass on
        assert re.search(r"the guest writes \d+ MiB/s, expected pause [\d.]+ ms", seen)
    # Nothing of it is left.
    assert re.fullmatch(r"(vm: (warning|note): .*\n|  remedy: .*\n)*vm: upgraded .*\n?.*", terminal.screen.text.strip()), terminal.screen.text
    assert terminal.screen.codes <= {"A", "J", "m"} and "A" in terminal.screen.codes
    vm.healthy()


def test_a_copy_of_two_disks_on_a_terminal(daemon, start):
    start(ram="131080k", mem=2, rate=4, extra=with_disks(daemon, "one", "two"))
    disks = names_of(daemon)
    with Terminal(copy_argv(daemon, disks, "--finish"), columns=100) as terminal:
        for disk in disks:
            terminal.expect(rf"^  {disk}\s+{BAR} +[1-9]\d*%  [\d.]+ MB of [\d.]+ MB$")
        terminal.expect(rf"^  all\s+{BAR} .* \d+ MiB/s$")
        terminal.expect(r"^  end in [\d.]+ m?s$")
        assert terminal.wait() == 0
    assert terminal.screen.text.strip().startswith("vm: copied "), terminal.screen.text


def test_other_terminals(daemon, start):
    """Without UTF-8, without colours, narrow, low, dumb."""
    start(ram="131080k", mem=2, rate=4, extra=with_disks(daemon, "one"))
    disk, = names_of(daemon)

    def copy(rows=24, columns=80, **env):
        (daemon.dir / f"copy-of-{disk}").unlink(missing_ok=True)
        with Terminal(copy_argv(daemon, [disk], "--finish"), rows, columns, env) as terminal:
            assert terminal.wait() == 0, terminal.screen.text
        live = [text for text in terminal.seen if "%" in text]
        assert all(len(line) < columns for text in live for line in text.splitlines() if "%" in line)
        return terminal, live

    terminal, live = copy(LC_ALL="C")
    assert terminal.raw.isascii() and any(re.search(r"^  \S+ +\[#+ +\] ", text, re.M) for text in live), live[-1]
    terminal, live = copy(columns=60, NO_COLOR="1")
    assert terminal.screen.codes == {"A", "J"} and any(re.search(BAR, text) for text in live)
    assert copy(columns=30)[1] and copy(rows=4)[1]
    terminal, live = copy(TERM="dumb")
    assert terminal.screen.codes == set() and not live
    assert re.findall(r"^vm: (\w+)$", terminal.screen.text, re.M)[-3:] == ["copy", "ready", "finish"], terminal.screen.text


def test_without_a_terminal(daemon, start):
    start(ram="262152k", mem=64)
    upgrade = daemon.run("upgrade", "vm", "--qemu", guest.qemu("10.0"), *COPY)
    assert "\x1b" not in upgrade.stdout + upgrade.stderr
    assert re.findall(r"^vm: (\w+)$", upgrade.stderr, re.M)[-3:] == ["verify", "transfer", "commit"]
    assert re.fullmatch(r"vm: upgraded .*\n", upgrade.stdout)


def test_ctrl_c_leaves_the_job_alone(daemon, start):
    start(ram="131080k", mem=2, rate=4, extra=with_disks(daemon, "one"))
    with Terminal(copy_argv(daemon, names_of(daemon), "--finish"), columns=120) as terminal:
        terminal.expect(r"^  \S+\s+▕")
        terminal.type("\x03")
        assert terminal.wait() == 130
    said = re.search(r"detached: job (\d+) goes on. Come back with drover watch (\d+), stop it with drover cancel (\d+)",
                     terminal.screen.text)
    assert said and len(set(said.groups())) == 1, terminal.screen.text
    job = said[1]
    assert daemon.json("job", job)["state"] == "running"
    with Terminal(daemon.argv("watch", job)) as terminal:
        terminal.expect(r"^  \S+\s+▕")
        daemon.run("cancel", job)
        assert terminal.wait() == 1
    assert daemon.ended_job(job)["state"] == "cancelled"


def test_events_as_json(daemon, start):
    vm = start(ram="262152k", mem=64)
    said = daemon.run("upgrade", "vm", "--qemu", guest.qemu("10.0"), *COPY, "--events")
    events = [json.loads(line) for line in said.stdout.splitlines()]
    assert said.stderr == "" and all(set(event) == {"type", "time_ms", "job"} and event["type"] == "job" for event in events)
    jobs = [event["job"] for event in events]
    assert len({job["id"] for job in jobs}) == 1 and jobs[-1]["state"] == "succeeded" and jobs[-1]["result"]["pause_ms"] > 0
    stages = list(dict.fromkeys(job["stage"] for job in jobs))
    assert stages[-4:] == ["start", "verify", "transfer", "commit"], stages
    progress = [job["progress"] for job in jobs if job["progress"]]
    assert any(one["phase"] == "copying memory" and one["remaining_bytes"] > 0 for one in progress)
    assert all({"bytes_done", "bytes_total", "rate_mib", "pass", "disks"} <= set(one) for one in progress)
    # The same of one that is under way, and of one that is refused.
    upgrade = json.loads(daemon.run("upgrade", "vm", "--qemu", guest.qemu("7.2"), *COPY, "--async", "--json").stdout)
    watched = daemon.run("watch", upgrade["id"], "--json").stdout.splitlines()
    assert json.loads(watched[-1])["job"]["state"] == "succeeded" and len(watched) > 3
    failed = daemon.run("upgrade", "vm", "--qemu", "/bin/true", "--events", check=False)
    last = json.loads(failed.stdout.splitlines()[-1])
    assert failed.returncode == 1 and last["job"]["state"] == "failed" and last["job"]["error"]["message"]
    unknown = daemon.run("upgrade", "none", "--events", check=False)
    assert unknown.returncode == 1 and json.loads(unknown.stdout.strip())["error"]["code"] == "not-found"
    assert daemon.run("upgrade", "vm", "--events", "--async", check=False).returncode == 2
    wait_until(lambda: daemon.state("vm") == "running", 30, "the guest to run")
    vm.healthy()
