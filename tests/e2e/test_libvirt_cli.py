# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's domains by drover's command line and API on real libvirt hosts, and how droverd looks after a run: what drover-libvirt itself does
with a domain is for other tests."""

import json
import os
import re
import signal

import pytest

from lib import libvirt, openapi
from lib.procs import kill_pid, wait_until

SPICE = "<graphics type='spice' autoport='yes'/>"
NEW = "/opt/qemu-10.0/qemu-system-x86_64"


@pytest.fixture(scope="module")
def host():
    with libvirt.LibvirtHost() as made:
        yield made


@pytest.fixture
def domain(host):
    with libvirt.domains(host, nic=False) as make:
        yield make


@pytest.fixture
def held():
    """A host whose drover-libvirt can be stopped at a state: held(STATE)."""
    made = []

    def make(state):
        host = libvirt.LibvirtHost(env={"DROVER_HOLD_AT": state})
        made.append(host)
        return host.__enter__()

    yield make
    for one in made:
        one.close()


def drover(host, *args, code=0, **options):
    done = host.daemon.run(*args, check=False, **options)
    assert done.returncode == code, f"exit {done.returncode}: {done.stdout} {done.stderr}"
    return done


def client(host):
    return openapi.Client.of(openapi.Spec(), host.daemon)


def runs_under(vm, version):
    """The guest is well, by libvirt and by itself."""
    vm.healthy()
    assert vm.state() == "running"
    assert vm.qmp("query-version")["qemu"]["major"] == int(version.split(".")[0])


# --- Looking ---


def test_check(host, domain):
    shared, private = domain("shared", memory="file"), domain("private", memory="plain", version="10.0")
    pids = shared.pid, private.pid
    done = drover(host, "adopt", "--libvirt", "shared", "--emulator", NEW)
    assert re.search(r"^shared: can be upgraded 7\.2\S* -> 10\.0\S* \(copies nothing\)$", done.stdout, re.M), done.stdout
    assert "stays libvirt's" in done.stdout
    done = drover(host, "upgrade", "--all-libvirt", "--check", "--emulator", NEW)
    assert re.search(r"^private: can be upgraded 10\.0\S* -> 10\.0\S* \(copies RAM once first\)$", done.stdout, re.M), done.stdout
    done = drover(host, "upgrade", "--libvirt", "shared", "--memory", "postcopy", "--check")
    assert "(copies RAM by post-copy)\n" in done.stdout and "as is asked for: it could be handed over" in done.stderr, done
    report = json.loads(drover(host, "adopt", "--libvirt", "--all", "--check", "--emulator", NEW, "--json").stdout)
    assert {one["name"]: (one["ok"], one["memory_mode"]) for one in report["domains"]} == {"shared": (True, "shared"), "private": (True, "copy")}
    assert (shared.pid, private.pid) == pids and sorted(host.qemus()) == sorted(pids)
    openapi.Spec().check(report, {"$ref": "#/components/schemas/DomainReports"}, "a report")


def test_a_refused_one_is_left_as_it_is(host, domain):
    good, bad = domain("good"), domain("bad", memory="file")
    bad.virsh("suspend")
    pids, daemon = (good.pid, bad.pid), host.libvirtd_pid()
    done = drover(host, "adopt", "--libvirt", "good", "bad", "--check", code=1)
    assert "bad: cannot be upgraded" in done.stdout and "virsh resume" in done.stderr
    assert "good: can be upgraded" in done.stdout
    done = drover(host, "upgrade", "good", "bad", "--emulator", NEW, code=1)
    assert "domain 'bad' was not upgraded and runs where it was: 1 blocker" in done.stderr and "nothing was changed" in done.stderr
    run = json.loads(drover(host, "upgrade", "--libvirt", "good", "bad", "--json", code=1).stdout)
    assert run["error"]["code"] == "refused" and {one["name"]: one["state"] for one in run["domains"]} == {"good": "waiting", "bad": "refused"}
    assert (good.pid, bad.pid) == pids and host.libvirtd_pid() == daemon


def test_names(host, domain):
    vm = domain("web1")
    daemon = host.daemon
    # Of no one: what both say of it.
    for more in ([], ["--check"]):
        error = daemon.refused("upgrade", "nobody", *more)
        assert error["code"] == "not-found" and "no VM called 'nobody'" in error["message"], error
        assert "libvirt has no running domain 'nobody'" in error["message"], error
    # Of drover: its own, also when libvirt has one of that name.
    daemon.run("run", "mine", "--", "qemu-system-x86_64", "-M", "q35,accel=tcg", "-display", "none", "-nodefaults", "-S")
    daemon.show("mine")
    error = daemon.refused("upgrade", "mine", "web1")
    assert "no VM called 'web1'" in error["message"] and "drover upgrade --libvirt web1" in error["remedy"], error
    error = daemon.refused("upgrade", "mine", "--emulator", NEW, code=2)
    assert "--emulator is for domains of libvirt's" in error["message"], error
    assert daemon.upgrade("mine")["kind"] == "upgrade"
    assert "no running domain 'mine'" in daemon.refused("upgrade", "mine", "--libvirt")["message"]
    daemon.run("stop", "mine", "--force")
    daemon.run("forget", "mine")
    for wrong in (["upgrade", "--all", "--all-libvirt"], ["upgrade", "web1", "--all-libvirt"], ["adopt", "--libvirt"],
                  ["adopt", "--libvirt", "--all", "web1"], ["adopt", "web1", "--check"], ["upgrade", "--all", "--emulator", NEW],
                  ["upgrade", "--libvirt", "--check"], ["upgrade", "web1", "--qemu", NEW, "--emulator", NEW]):
        daemon.refused(*wrong, code=2)
    runs_under(vm, "7.2")


# --- Upgrades ---


def test_upgrade_by_names(host, domain):
    vms = [domain(name, memory=memory) for name, memory in (("web1", "file"), ("web2", "memfd"))]
    pids = [vm.pid for vm in vms]
    done = drover(host, "upgrade", "web1", "web2", "--emulator", NEW)
    for vm in vms:
        assert re.search(rf"^{vm.name}: upgraded 7\.2\.\d+ -> 10\.0\.\d+, paused [\d.]+ ms \(copied nothing\)$", done.stdout, re.M), done.stdout
    assert "libvirt's view of 2 domains is QEMU's\n" in done.stdout
    assert re.search(r"^took .*; libvirtd.* was away for ", done.stdout, re.M), done.stdout
    # Each state that lasts is told once.
    assert "checking libvirt's domains\n" in done.stderr, done.stderr
    for vm, pid in zip(vms, pids):
        assert vm.pid != pid
        runs_under(vm, "10.0")
    # It can be looked at afterwards, by a reader of the API too.
    run = client(host).call("GET", "/v1/libvirt/upgrade")
    assert not run["active"] and run["state"] == "done" and {one["pid"] for one in run["domains"]} == {vm.pid for vm in vms}
    assert "environment" not in json.dumps(run) and "daemon" not in run
    again = drover(host, "upgrade", "--libvirt")
    assert again.stdout == done.stdout
    metrics = client(host).call("GET", "/metrics")
    assert re.search(r'^drover_libvirt_domains_total\{result="upgraded"\} [1-9]', metrics, re.M), metrics


def test_the_next_start_cannot_be_changed(host, domain):
    """That is told, and nothing more."""
    vm = domain("web1")
    config = f"/etc/libvirt/qemu/{vm.name}.xml"
    host.run("mount", "--bind", config, config)  # nobody replaces it
    try:
        done = drover(host, "upgrade", "--libvirt", "web1", "--emulator", NEW)
    finally:
        host.run("umount", config)
    assert "web1: warning: the next start of the domain is under" in done.stderr and "virsh edit" in done.stderr, done
    assert "libvirt's view of 1 domain is QEMU's" in done.stdout
    runs_under(vm, "10.0")


def test_all_but_one(host, domain):
    """All that can be are upgraded; the exit code tells of the one that cannot."""
    good, bad = domain("good", memory="file"), domain("bad")
    bad.virsh("suspend")
    pid = bad.pid
    lines = drover(host, "upgrade", "--all-libvirt", "--qemu", NEW, "--memory", "auto", "--parallel", "2", "--events", code=1).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert all(event["type"] == "libvirt" and event["run"]["started_ms"] == events[0]["run"]["started_ms"] for event in events)
    assert events[0]["run"]["active"] and not events[-1]["run"]["active"]
    domains = {one["name"]: one for one in events[-1]["run"]["domains"]}
    assert domains["good"]["state"] == "done" and domains["good"]["view_is_true"] and domains["good"]["result"]["memory_mode"] == "shared"
    assert domains["bad"]["state"] == "refused" and bad.pid == pid
    for event in events:
        openapi.Spec().check(event["run"], {"$ref": "#/components/schemas/LibvirtRun"}, "an event")
    runs_under(good, "10.0")
    bad.virsh("resume")
    bad.healthy()


def test_one_at_a_time(held):
    host = held("libvirt-stopped")
    with libvirt.Domain(host, "web1", nic=False) as vm:
        hold = host.daemon.run_dir / "libvirt" / "hold"
        run = json.loads(drover(host, "upgrade", "web1", "--libvirt", "--emulator", NEW, "--async", "--json").stdout)
        assert run["active"]
        wait_until(hold.exists, 60, "the run to be held")
        assert host.daemon.refused("upgrade", "--all-libvirt")["code"] == "busy"
        assert client(host).call("GET", "/v1/libvirt/upgrade?wait=100")["state"] == "stopping"
        follower = host.daemon.spawn("upgrade", "--libvirt")
        hold.unlink()
        out, err = follower.communicate(timeout=60)
        assert follower.returncode == 0 and "web1: upgraded 7.2" in out, (out, err)
        runs_under(vm, "10.0")


# --- Looking after it ---


def helpers(host):
    """The pids of drover-libvirts at work."""
    return [pid for pid in host.pids() if libvirt.read_bytes(f"/proc/{pid}/cmdline").startswith(b"drover-libvirt\0")]


def begin(host, vm, state):
    """Starts an upgrade by the command line and waits until it is held; returns the command and the hold file."""
    hold = host.daemon.run_dir / "libvirt" / "hold"
    command = host.daemon.spawn("upgrade", vm.name, "--libvirt", "--emulator", NEW)
    wait_until(lambda: hold.exists() or command.poll() is not None, 60, f"the run to come to {state}")
    assert hold.exists(), command.communicate()
    return command, hold


def end(command, *codes):
    out, err = command.communicate(timeout=120)
    assert command.returncode in codes, (command.returncode, out, err)
    return out, err


@pytest.mark.parametrize("state", ["libvirt-stopped", "libvirt-patched-one"])
def test_droverd_is_killed(held, state):
    """The helper lives on; the next droverd waits for it, and so does the command line."""
    host = held(state)
    with libvirt.Domain(host, "web1", nic=False) as vm:
        command, hold = begin(host, vm, state)
        helper, = helpers(host)
        host.daemon.kill()
        assert helpers(host) == [helper]
        host.daemon.start()
        assert client(host).call("GET", "/v1/libvirt/upgrade")["active"]
        hold.unlink()
        out, _ = end(command, 0)
        assert "web1: upgraded 7.2" in out and "libvirt's view of 1 domain is QEMU's" in out
        assert helpers(host) == []
        runs_under(vm, "10.0")


@pytest.mark.parametrize("state, version, code", [("libvirt-stopped", "7.2", 1), ("libvirt-moving", "7.2", 1), ("libvirt-patching", "10.0", 0)])
def test_the_helper_is_killed(held, state, version, code):
    """droverd recovers at once: libvirt's daemon is back, and knows where the domain is."""
    host = held(state)
    with libvirt.Domain(host, "web1", nic=False) as vm:
        command, hold = begin(host, vm, state)
        helper, = helpers(host)
        assert not host.answers()
        kill_pid(helper, sig=signal.SIGKILL)
        wait_until(lambda: not hold.exists() or command.poll() is not None or helpers(host), 30, "a recovery")
        wait_until(lambda: release(hold) and command.poll() is not None, 90, "the command to end", interval=0.05)
        out, err = end(command, code)
        wait_until(host.answers, 30, "libvirtd to answer")
        runs_under(vm, version)
        run = client(host).call("GET", "/v1/libvirt/upgrade")
        assert run["interrupted"] and run["state"] == "done" and not run["active"], run
        assert ("upgraded" in out) == (code == 0), (out, err)


def release(hold):
    hold.unlink(missing_ok=True)
    return True


def heard(command, text, timeout=60):
    """What a command has said on stderr until text was among it."""
    said = bytearray()
    os.set_blocking(command.stderr.fileno(), False)

    def there():
        try:
            said.extend(os.read(command.stderr.fileno(), 4096))
        except BlockingIOError:
            pass
        return text.encode() in said

    wait_until(there, timeout, lambda: f"'{text}' among {bytes(said)}", interval=0.05)
    os.set_blocking(command.stderr.fileno(), True)
    return said.decode()


def test_what_libvirts_daemon_is_away_for_is_said(held):
    """A recovery waits for a QEMU that does not answer; whoever follows is told which, and what to do."""
    host = held("switchover")
    with libvirt.Domain(host, "web1", nic=False) as vm:
        command, hold = begin(host, vm, "switchover")
        before, (helper,) = vm.pid, helpers(host)
        os.kill(before, signal.SIGSTOP)
        try:
            kill_pid(helper, sig=signal.SIGKILL)
            hold.unlink()
            assert "web1: the upgrade waits: " in heard(command, f"kill -9 {before}")
            run = client(host).call("GET", "/v1/libvirt/upgrade")
            assert run["active"] and "kill -9" in run["domains"][0]["note"], run
        finally:
            os.kill(before, signal.SIGCONT)
        end(command, 1)
        assert client(host).call("GET", "/v1/libvirt/upgrade")["domains"][0]["note"] is None
        assert vm.pid == before and host.answers()
        runs_under(vm, "7.2")


def test_both_are_killed(held):
    """The next droverd recovers what is left."""
    host = held("libvirt-stopped")
    with libvirt.Domain(host, "web1", nic=False) as vm:
        command, hold = begin(host, vm, "libvirt-stopped")
        helper, = helpers(host)
        host.daemon.kill()
        kill_pid(helper, sig=signal.SIGKILL)
        hold.unlink()
        assert not host.answers()
        host.daemon.start()
        end(command, 1)
        wait_until(host.answers, 60, "libvirtd to answer")
        runs_under(vm, "7.2")
        drover(host, "upgrade", "web1", "--qemu", NEW, "--async")
        wait_until(lambda: release(hold) and not client(host).call("GET", "/v1/libvirt/upgrade")["active"], 60, "the upgrade", interval=0.05)
        runs_under(vm, "10.0")


def test_droverd_is_stopped_meanwhile(held):
    """It waits for the helper, so that libvirt's daemon is there when droverd has ended."""
    host = held("libvirt-stopped")
    with libvirt.Domain(host, "web1", nic=False) as vm:
        command, hold = begin(host, vm, "libvirt-stopped")
        host.daemon.process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: "droverd stops" in host.daemon.log(), 20, "droverd to see the signal")
        assert host.daemon.process.alive()
        hold.unlink()
        wait_until(lambda: not host.daemon.process.alive(), 30, "droverd to end")
        assert host.answers() and helpers(host) == []
        host.daemon.start()
        end(command, 0)
        runs_under(vm, "10.0")
