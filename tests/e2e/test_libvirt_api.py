# SPDX-License-Identifier: LGPL-2.1-or-later
"""How droverd starts and looks after a drover-libvirt: with one that needs no libvirt (lib/fake_libvirt.py)."""

import json
import re
import signal
from pathlib import Path

import pytest

from lib import drover, openapi
from lib.procs import REPO, kill_pid, wait_until

FAKE = str(REPO / "tests" / "e2e" / "lib" / "fake_libvirt.py")


@pytest.fixture
def daemon():
    with drover.Daemon(env={"DROVER_LIBVIRT": FAKE}) as made:
        yield made
        # One that a test has left waits for its directory to have this file.
        (made.run_dir / "libvirt").mkdir(exist_ok=True)
        (made.run_dir / "libvirt" / "go").touch()


def client(daemon):
    return openapi.Client.of(openapi.Spec(), daemon)


def ended(daemon, timeout=60):
    def there():
        run = client(daemon).call("GET", "/v1/libvirt/upgrade?wait=1000")
        return None if run["active"] else run

    return wait_until(there, timeout, "the run to end")


def mark(daemon, name):
    (daemon.run_dir / "libvirt").mkdir(exist_ok=True)
    (daemon.run_dir / "libvirt" / name).touch()


def helper(daemon):
    """The pid of the one at work; None: there is none."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(daemon.state_dir / "libvirt").encode() in words:
            return int(entry.name)
    return None


def state(daemon):
    return client(daemon).call("GET", "/v1/libvirt/upgrade?wait=100")["state"]


def begin(daemon):
    """A run that waits; returns its process."""
    client(daemon).call("POST", "/v1/libvirt/upgrade", {"domains": ["wait"]}, status=202)
    wait_until(lambda: state(daemon) == "stopping", 30, "the run to go on")
    return helper(daemon)


def test_not_installed():
    with drover.Daemon(env={"DROVER_LIBVIRT": "/nonexistent"}) as daemon:
        assert client(daemon).call("GET", "/v1/version")["libvirt"] is False
        for path in ("check", "upgrade"):
            problem = client(daemon).call("POST", f"/v1/libvirt/{path}", {}, status=422)
            assert problem["code"] == "unsupported" and "drover-libvirt" in problem["remedy"], problem
        assert client(daemon).call("GET", "/v1/libvirt/upgrade", status=404)["code"] == "not-found"
        assert daemon.refused("upgrade", "web1")["message"] == "there is no VM called 'web1'"


def test_check(daemon):
    report = client(daemon).call("POST", "/v1/libvirt/check", {"uri": "qemu:///session", "domains": ["one", "bad"]})
    assert report["uri"] == "qemu:///session" and [one["ok"] for one in report["domains"]] == [True, False]
    assert client(daemon).call("POST", "/v1/libvirt/check", {"domains": ["nobody"]}, status=404)["remedy"] == "virsh list"
    for wrong in ({"domains": []}, {"emulator": "qemu"}, {"memory": "odd"}, {"parallel": 4}):
        client(daemon).call("POST", "/v1/libvirt/check", wrong, status=400)


def test_upgrade(daemon):
    a = client(daemon)
    run = a.call("POST", "/v1/libvirt/upgrade", {"domains": ["one", "bad", "wait"], "emulator": "/opt/qemu", "parallel": 2}, status=202)
    assert run["active"]
    wait_until(lambda: a.call("GET", "/v1/libvirt/upgrade?wait=100")["state"] == "stopping", 30, "the run to go on")
    assert a.call("POST", "/v1/libvirt/upgrade", {}, status=409)["code"] == "busy"
    mark(daemon, "go")
    run = ended(daemon)
    assert {one["name"]: one["state"] for one in run["domains"]} == {"one": "done", "bad": "refused", "wait": "done"}
    assert [finding["code"] for finding in run["domains"][0]["findings"]] == ["ram"]
    for internal in ("SECRET", "/secret", "boot_id"):
        assert internal not in json.dumps(run)
    assert len(re.findall(r'drover_libvirt_domains_total\{result="(?:upgraded"\} 2|refused"\} 1|failed"\} 0|attention"\} 0)$', a.call("GET", "/metrics"), re.M)) == 4
    # Another one afterwards is another one.
    assert a.call("POST", "/v1/libvirt/upgrade", {"domains": ["nobody"]}, status=202)["started_ms"] > run["started_ms"]
    assert ended(daemon)["error"]["code"] == "not-found"


def test_what_is_printed(daemon):
    mark(daemon, "go")
    done = daemon.run("upgrade", "one", "--emulator", "/opt/qemu")
    assert done.stdout == ("one: upgraded 7.2.22 -> 10.0.2, paused 17 ms (copied nothing)\nlibvirt's view of 1 domain is QEMU's\n"
                           "took 1300 ms; libvirtd.service was away for 700 ms\n"), done.stdout
    done = daemon.run("upgrade", "--all-libvirt")
    assert "one: upgraded" in done.stdout and "two: upgraded" in done.stdout and "libvirt's view of 2 domains" in done.stdout
    done = daemon.run("upgrade", "--libvirt", "bad", "one", check=False)
    assert done.returncode == 1 and "one: upgraded" in done.stdout and "blocker: a text\n    remedy: a remedy" in done.stderr
    assert daemon.refused("upgrade", "nobody")["code"] == "not-found"
    assert daemon.run("upgrade", "one", "--async").stdout.startswith("the upgrade of libvirt's domains has begun")
    ended(daemon)
    done = daemon.run("adopt", "--libvirt", "one", "bad", check=False)
    assert done.returncode == 1
    assert done.stdout == "one: can be upgraded 7.2.22 -> 10.0.2 (copies nothing)\nbad: cannot be upgraded\n"
    assert "bad: blocker: a text\n  remedy: a remedy\n" in done.stderr


def test_one_that_dies_is_followed_by_a_recovery(daemon):
    mark(daemon, "well")
    done = daemon.run("upgrade", "die", "--libvirt", check=False)
    assert done.returncode == 1 and "'die' was not upgraded and runs where it was" in done.stderr
    assert ended(daemon)["interrupted"]


def test_a_recovery_that_fails_again_and_again(daemon):
    """After five tries somebody is asked; the next droverd tries again."""
    done = daemon.run("upgrade", "die", "--libvirt", check=False)
    assert done.returncode == 3 and "5 tries: no space left" in done.stderr
    run = ended(daemon)
    assert run["state"] == "stopping" and run["error"]["code"] == "attention" and "do not start it" in run["error"]["remedy"]
    assert len(re.findall("try [1-5] of 5", daemon.log())) == 5
    assert 'result="attention"} 1' in client(daemon).call("GET", "/metrics")
    mark(daemon, "well")
    daemon.restart()
    run = ended(daemon)
    assert run["state"] == "done" and run["error"] is None and run["domains"][0]["state"] == "stayed"


def test_a_recovery_without_the_program():
    """A package that was removed in the wrong moment."""
    with drover.Daemon(env={"DROVER_LIBVIRT": FAKE}) as daemon:
        pid = begin(daemon)
        daemon.kill()
        kill_pid(pid)
        daemon.start({"DROVER_LIBVIRT": "/nonexistent"})
        assert "is not installed" in ended(daemon)["error"]["message"]
        mark(daemon, "well")
        daemon.restart()
        assert ended(daemon)["state"] == "done"


@pytest.mark.parametrize("ends_while_away", [False, True])
def test_it_survives_droverd(daemon, ends_while_away):
    pid = begin(daemon)
    daemon.kill()
    assert helper(daemon) == pid
    if ends_while_away:
        mark(daemon, "go")
        wait_until(lambda: helper(daemon) is None, 30, "the helper to end")
    daemon.start()
    assert client(daemon).call("GET", "/v1/libvirt/upgrade")["active"] is not ends_while_away
    mark(daemon, "go")
    run = ended(daemon)
    assert run["domains"][0]["state"] == "done" and not run["interrupted"]


def test_both_are_killed(daemon):
    pid = begin(daemon)
    daemon.kill()
    kill_pid(pid)
    mark(daemon, "well")
    daemon.start()
    assert ended(daemon)["domains"][0]["state"] == "stayed"


def test_the_end_of_droverd_waits_for_it(daemon):
    begin(daemon)
    daemon.process.popen.send_signal(signal.SIGTERM)
    wait_until(lambda: "droverd stops" in daemon.log(), 20, "droverd to see the signal")
    assert daemon.process.alive()
    mark(daemon, "go")
    wait_until(lambda: not daemon.process.alive(), 15, "droverd to end")
    assert json.loads((daemon.state_dir / "libvirt" / "run.json").read_text())["state"] == "done"
    daemon.start()
