# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 of droverd and of either QEMU at every stage of an upgrade, and all else that can go wrong in the middle of one."""

import contextlib
import os
import signal
import stat
import subprocess

import pytest

from lib import drover, guest, hosts, peers
from lib.held import NEW, NOT_JOURNALLED, OLD, PATIENT, Held, Scene, SmallDisk
from lib.procs import Process, kill_pid, wait_until


@pytest.fixture(scope="module")
def stage_of_the_tests():
    with contextlib.closing(Scene()) as made:
        yield made


@pytest.fixture
def scene(stage_of_the_tests):
    yield stage_of_the_tests
    stage_of_the_tests.tidy()


@pytest.fixture
def daemon(scene):
    return scene.daemon


# --- The table ---

# Where the guest is afterwards: under the OLD QEMU, under the NEW one, or nowhere, because its own QEMU was killed (in
# post-copy both are). "moving" is the middle of the copy; switchover: the old one has stopped for good and the new one has
# not been told to run; resume: it runs.
TABLE = """
mode      stage       droverd  old   new   droverd+old  droverd+new
shared    preflight   old      none  -     none         -
shared    start       old      none  -     none         -
shared    verify      old      none  old   none         old
shared    transfer    old      none  old   none         old
shared    switchover  old      new   old   new          old
shared    resume      new      new   none  new          none
shared    commit      new      new   none  new          none
copy      moving      old      none  old   none         old
postcopy  postcopy    old      none  old   none         old
postcopy  switchover  new      none  none  none         none
postcopy  resume      new      none  none  none         none
postcopy  commit      new      new   none  new          none
"""


def rows():
    head, *lines = [line.split() for line in TABLE.strip().splitlines()]
    return [pytest.param(mode, stage, killed.split("+"), ends, id=f"{mode}-{stage}-{killed}")
            for mode, stage, *cells in lines for killed, ends in zip(head[2:], cells) if ends != "-"]


@pytest.mark.parametrize("mode, stage, killed, ends", rows())
def test_after_kill_9_exactly_one_qemu_runs_and_the_journal_says_why(scene, daemon, mode, stage, killed, ends):
    held = Held.at(scene, mode, stage, slow_pages="old" in killed and stage in NOT_JOURNALLED)
    held.kill(*killed)
    if "droverd" in killed:
        in_the_journal = {"shared": "transfer", "copy": "transfer", "postcopy": "postcopy"}[mode]
        assert daemon.journal(held.job)[-1] == (in_the_journal if stage in (*NOT_JOURNALLED, "moving") else stage)
        held.recover()
    job, code = held.end()
    note = daemon.show(held.name)["note"]
    if (mode, stage, killed) == ("postcopy", "switchover", ["new"]) and job["state"] == "failed":
        ends = "old"  # it died so early that nothing of the guest had gone over
    assert job["state"] == {"old": "failed", "new": "succeeded", "none": "attention"}[ends], job
    assert (job["error"] is None) == (ends == "new"), job
    if "droverd" in killed:
        assert note and (ends == "none" or "droverd ended" in note)
    else:
        assert code == {"old": 1, "new": 0, "none": 3}[ends]
    if ends == "none":
        assert "killed by signal 9" in job["error"]["message"] and "killed by signal 9" in daemon.show(held.name)["exit"]
    scene.guest_is(ends, held)


# --- droverd again and again ---


@pytest.mark.parametrize("stage, holds, ends", [
    ("switchover", ["recover", "undo"], "old"),
    ("resume", ["recover", "commit", "commit"], "new"),
    ("commit", ["recover", "commit"], "new"),
])
def test_a_droverd_that_is_killed_in_the_middle_of_its_recovery_changes_nothing(scene, daemon, stage, holds, ends):
    held = Held(scene, stage)
    held.kill("droverd")
    for point in holds:
        held.recover(point)
        wait_until(lambda: held.marker.exists(), PATIENT, f"recovery at {point}")
        assert len(set(daemon.qemus()) & {held.old, held.new}) in (1, 2)
        daemon.kill()
    held.recover()
    job, _ = held.end()
    assert job["state"] == {"old": "failed", "new": "succeeded"}[ends], job
    scene.guest_is(ends, held)


# --- A QEMU that does not answer is not a dead one ---


@pytest.mark.parametrize("stage, silent, ends", [("switchover", "old", "old"), ("resume", "new", "new")])
def test_a_qemu_that_is_silent_is_waited_for_and_not_killed(scene, daemon, stage, silent, ends):
    held = Held(scene, stage)
    held.kill("droverd")
    pid = {"old": held.old, "new": held.new}[silent]
    os.kill(pid, signal.SIGSTOP)
    try:
        held.recover()
        wait_until(lambda: daemon.show(held.name)["state"] == "attention", PATIENT, "droverd to say that it waits")
        shown = daemon.show(held.name)
        assert f"kill -9 {pid}" in shown["note"] and shown["job"] == held.job
        assert set(daemon.qemus()) == {held.old, held.new}
        assert daemon.refused("upgrade", held.name)["code"] == "busy"
    finally:
        os.kill(pid, signal.SIGCONT)
    job, _ = held.end()
    assert job["state"] == {"old": "failed", "new": "succeeded"}[ends], job
    scene.guest_is(ends, held)


# --- What an earlier life has left ---


def test_a_mark_of_an_earlier_upgrade_means_nothing(scene, daemon):
    held = Held(scene, "start")
    held.kill("droverd")
    for number in range(1, 60):  # whatever the generation is
        (daemon.run_dir / "vms" / held.name / f"chosen.{number}").write_text("1 1\n")
    held.recover()
    job, _ = held.end()
    assert job["state"] == "failed", job
    # The next one clears them away.
    daemon.restart()
    upgraded = daemon.upgrade(held.name, guest.qemu(scene.other_version()))
    held.new = upgraded["result"]["pid_after"]
    scene.guest_is("new", held)


def test_a_process_that_got_the_pid_of_a_dead_qemu_is_left_alone(scene, daemon, tmp_path):
    held = Held(scene, "verify")
    held.kill("droverd", "old", "new")
    with Process(["sleep", "1000"], tmp_path / "innocent") as innocent:
        for what in ("UPDATE journal SET note = json_set(note, '$.pid', ?) WHERE job = ? AND stage = 'verify'",
                     "UPDATE journal SET note = json_set(note, '$.source_pid', ?) WHERE job = ? AND stage = 'start'"):
            scene.edit_state(what, (innocent.pid, int(held.job)))
        scene.edit_state("UPDATE vms SET record = json_set(record, '$.pid', ?) WHERE name = ?", (innocent.pid, held.name))
        held.recover()
        job, _ = held.end()
        assert job["state"] == "attention", job
        assert innocent.alive()
    scene.guest_is("none", held)


def test_after_a_reboot_of_the_host_no_pid_of_before_is_touched(scene, daemon):
    held = Held(scene, "switchover")
    held.kill("droverd")
    scene.edit_state("UPDATE vms SET record = json_set(record, '$.boot_id', 'another') WHERE name = ?", (held.name,))
    held.recover()
    job, _ = held.end()
    shown = daemon.show(held.name)
    assert job["state"] == "attention" and "rebooted" in job["error"]["message"], job
    assert shown["state"] == "stopped" and shown["pid"] is None and "rebooted" in shown["exit"]
    # They stand for processes of the new boot.
    assert set(daemon.qemus()) == {held.old, held.new}


# --- A state file that cannot be written ---


@pytest.fixture(scope="module")
def full_disk():
    """A scene whose state directory is on a small file system."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a file system")
    daemon = drover.Daemon()
    with SmallDisk(daemon.state_dir) as disk:
        with contextlib.closing(Scene(daemon)) as scene:
            yield scene, disk
            disk.free()


@pytest.mark.parametrize("mode, stage, fails, ends", [
    ("shared", "preflight", "start", "old"),
    ("shared", "start", "verify", "old"),
    ("shared", "verify", "transfer", "old"),
    ("postcopy", "transfer", "postcopy", "old"),
    ("shared", "resume", "commit", "new"),
])
def test_a_full_disk_in_the_middle_costs_no_guest_and_no_record(full_disk, mode, stage, fails, ends):
    scene, disk = full_disk
    daemon = scene.daemon
    try:
        # A clean start: the database's log is empty then, and has no room of its own.
        scene.living_guest()
        daemon.kill(signal.SIGTERM)
        daemon.start()
        held = Held(scene, stage, mode=mode)
        disk.fill()
        job, code = held.end()
        if ends == "old":
            assert (job["state"], job["error"]["code"], code) == ("failed", "io", 1), job
            assert str(daemon.state_dir) in job["error"]["message"] and "full" in job["error"]["message"]
            assert "room" in job["error"]["remedy"]
        else:
            assert (job["state"], code) == ("succeeded", 0), job
            assert {"journal", "record"} <= {finding["code"] for finding in job["findings"]}
            # The record names the old QEMU still: the next droverd has to know better, with a full disk and without.
            daemon.restart()
            assert daemon.ended_job(held.job)["state"] == "succeeded"
            assert daemon.show(held.name)["pid"] == held.new
        disk.free()
        wait_until(lambda: "is in the state file now" in daemon.log(), PATIENT, "the job's end to be written")
        daemon.restart()
        assert daemon.json("job", held.job)["state"] == job["state"]
        scene.guest_is(ends, held)
    finally:
        disk.free()
        (daemon.dir / "log").write_text("")
        scene.tidy()


# --- Cancel ---


@pytest.mark.parametrize("mode, stage", [("shared", "preflight"), ("shared", "start"), ("shared", "verify"),
                                         ("shared", "transfer"), ("copy", "moving"), ("postcopy", "postcopy")])
def test_cancel_before_the_point_of_no_return_leaves_the_guest_where_it_is(scene, daemon, mode, stage):
    held = Held.at(scene, mode, stage)
    daemon.run("cancel", held.job)
    job, code = held.end()
    assert (job["state"], job["error"]["code"], code) == ("cancelled", "cancelled", 1), job
    scene.guest_is("old", held)


@pytest.mark.parametrize("mode, stage", [("shared", "switchover"), ("shared", "resume"), ("shared", "commit"),
                                         ("postcopy", "switchover")])
def test_cancel_after_the_point_of_no_return_is_refused(scene, daemon, mode, stage):
    held = Held.at(scene, mode, stage)
    error = daemon.refused("cancel", held.job)
    assert error["code"] == "refused" and "point of no return" in error["message"] and error["remedy"]
    job, code = held.end()
    assert (job["state"], code) == ("succeeded", 0), job
    assert daemon.refused("cancel", held.job)["code"] == "refused"
    scene.guest_is("new", held)


# --- The guest does something of its own ---


@pytest.mark.parametrize("stage, where", [("preflight", "old"), ("transfer", "old"), ("resume", "new"), ("commit", "new")])
def test_a_guest_that_powers_off_in_the_middle_has_ended_with_status_0(scene, daemon, stage, where):
    held = Held(scene, stage)
    serial = next(daemon.dir.glob("*.serial.drover-*")) if where == "new" else scene.vm.serial
    scene.vm.console.follow(serial)
    scene.vm.console.send("poweroff")
    pid = {"old": held.old, "new": held.new}[where]
    wait_until(lambda: pid not in daemon.qemus(), PATIENT, "the guest to power off")
    job, code = held.end()
    assert (job["state"], code) == ("attention", 3), job
    assert "exited with status 0" in job["error"]["message"] and "exited with status 0" in daemon.show(held.name)["exit"]
    scene.guest_is("none", held)


def test_a_paused_guest_is_moved_and_brought_back_paused(scene, daemon):
    """No RESUME tells of its new QEMU: that it has all of the guest is to be asked for before the old one is killed."""
    vm = scene.living_guest()
    daemon.run("pause", vm.name)
    held = Held(scene, "switchover")
    held.kill("new")
    job, code = held.end()
    assert (job["state"], code) == ("failed", 1), job
    shown = daemon.show(vm.name)
    assert (shown["state"], shown["pid"]) == ("paused", held.old)
    daemon.run("resume", vm.name)
    daemon.run("pause", vm.name)
    held = Held(scene, "resume")
    held.kill("droverd")
    held.recover()
    job, _ = held.end()
    assert job["state"] == "succeeded", job
    assert daemon.state(vm.name) == "paused"
    daemon.run("resume", vm.name)
    scene.guest_is("new", held)


# --- VMs outlive droverd ---


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL], ids=lambda sig: sig.name)
def test_vms_outlive_droverd_and_what_happened_meanwhile_is_seen(scene, daemon, sig):
    vm = scene.living_guest()
    pid = vm.pid
    daemon.kill(sig)
    vm.healthy()
    with scene.user_monitor() as monitor:
        monitor.command("stop")
        daemon.start()
        shown = daemon.show(vm.name)
        assert (shown["state"], shown["pid"]) == ("paused", pid)
        monitor.command("cont")
    wait_until(lambda: daemon.state(vm.name) == "running", PATIENT, "droverd to see that the guest runs again")
    vm.healthy()
    assert daemon.upgrade(vm.name, guest.qemu(scene.other_version()))["result"]["pid_before"] == pid
    scene.version = scene.other_version()
    vm.healthy()


@pytest.mark.parametrize("away", [True, False], ids=["while-droverd-was-away", "under-its-eyes"])
def test_a_vm_that_died_is_shown_with_its_end_and_its_log(scene, daemon, away):
    vm = scene.living_guest()
    pid = vm.pid
    if away:
        daemon.kill()
    kill_pid(pid, sig=signal.SIGABRT)
    if away:
        daemon.start()
    wait_until(lambda: daemon.state(vm.name) == "stopped", PATIENT, "droverd to see its end")
    shown = daemon.show(vm.name)
    assert shown["pid"] is None and "killed by signal 6" in shown["exit"] and os.path.exists(shown["log"])
    assert daemon.refused("upgrade", vm.name)["code"] == "not-found"
    scene.nothing_is_left_behind(shown)
    scene.bury_guest()


# --- New QEMUs that do not do ---


def wrapper(path, *lines):
    """A script that becomes QEMU 10.0 when it is asked what it can do, and does something else as the destination."""
    path.write_text("\n".join(["#!/bin/sh", f"new={guest.qemu(NEW)}", 'case " $* " in *" -incoming "*) ;; *) exec "$new" "$@";; esac',
                               *lines, ""]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


FAULTY = {
    "a broken option": ('exec "$new" "$@" -device no-such-device', "no-such-device"),
    "an exit": ("echo not today >&2; exit 1", "not today"),
    "a crash": ("kill -SEGV $$", "ended before it was ready"),
    "a child": ('"$new" "$@"', "exec"),
    "another machine": ('exec "$new" "$@" -device virtio-rng-pci', "another machine"),
    "a state that cannot be loaded": ('exec "$new" "$@" -global migration.send-section-footer=off', "load of migration failed"),
}
GATEWAY, ADDRESS, PORT = "192.0.2.1", "192.0.2.2", 7001


def test_a_new_qemu_that_fails_leaves_the_old_one_with_all_that_it_had(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root: a network namespace and a tap")
    with hosts.Netns() as netns, hosts.Tap(netns=netns, address=f"{GATEWAY}/24") as tap, \
            drover.Daemon(netns=netns) as daemon:
        hanging = drover.Witness(daemon, "hanging", ram="131080k", mem=16, rate=20)
        hangs = daemon.spawn("upgrade", "hanging", "--qemu", wrapper(tmp_path / "hangs", "exec sleep 1000"), "--json")
        vm = drover.Witness(daemon, "vm", ram="131080k", mem=16, rate=50, witness={"ip": f"{ADDRESS}/24", "ip1": "10.0.2.15/24"},
                            extra=[*tap.qemu_args(), "-device", "virtio-net-pci,netdev=net0,romfile=",
                                   "-netdev", f"user,id=net1,hostfwd=udp:127.0.0.1:{PORT}-:7000",
                                   "-device", "virtio-net-pci,netdev=net1,romfile="])
        forwarded = guest.Udp("127.0.0.1", PORT, netns)
        forwarded.status(timeout=20)
        before, taps, serial = daemon.show("vm"), peers.tap_state(vm.pid, netns), os.stat(vm.serial)
        for number, (what, (line, said)) in enumerate(FAULTY.items()):
            with guest.Pinger(ADDRESS, interval=0.02, netns=netns) as pinger:
                error = daemon.refused("upgrade", "vm", "--qemu", wrapper(tmp_path / f"faulty{number}", line))
                pings = pinger.stop()
            assert said in f"{error['message']} {error['remedy']}", f"{what}: {error}"
            assert {**daemon.show("vm"), "note": None} == {**before, "note": None}, what
            assert peers.tap_state(vm.pid, netns) == taps, what
            assert pings["lost"] <= 2, f"{what}: {pings}"
            assert os.path.samestat(os.stat(vm.serial), serial), what
            vm.console.check(bootid=vm.bootid)  # on the connection there was
            forwarded.status(timeout=20)
            wait_until(lambda: len(daemon.keepers("vm")) == 1, PATIENT, f"{what}: one keeper")
            assert {path.name for path in (daemon.run_dir / "vms" / "vm").iterdir()} == {"qmp.1"}, what
            assert not list(daemon.dir.glob("*.drover-*")), what
        vm.healthy()
        # The one that hangs, by itself.
        said, _ = hangs.communicate(timeout=PATIENT)
        assert hangs.returncode == 1 and "cannot start the new QEMU" in said, said
        hanging.healthy()
        # And once more, cancelled while it hangs.
        hangs = daemon.spawn("upgrade", "hanging", "--qemu", tmp_path / "hangs", "--json")
        wait_until(lambda: len(daemon.keepers("hanging")) == 2, PATIENT, "the new QEMU to hang")
        daemon.run("cancel", daemon.json("jobs")[0]["id"])
        said, _ = hangs.communicate(timeout=PATIENT)
        assert hangs.returncode == 1 and '"cancelled"' in said, said
        hanging.healthy()
        assert len(daemon.keepers("hanging")) == 1 and len(daemon.qemus()) == 2
        for one in (vm, hanging):
            one.close()
        forwarded.close()


def test_a_tap_is_put_right_again_when_the_new_qemu_started_without_droverd(tmp_path):
    """A QEMU that starts on a tap changes its header size beneath the old one; droverd, which puts it back at once, is dead."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a network namespace and a tap")
    gate = tmp_path / "gate"
    slow = wrapper(tmp_path / "slow", f"until [ -e {gate} ]; do sleep 0.02; done", 'exec "$new" "$@"')
    with hosts.Netns() as netns, hosts.Tap(netns=netns, address=f"{GATEWAY}/24") as tap, \
            drover.Daemon(netns=netns, env={"DROVER_HOLD_AT": "verify"}) as daemon:
        vm = drover.Witness(daemon, "vm", ram="131080k", mem=16, rate=50, witness={"ip": f"{ADDRESS}/24"},
                            extra=[*tap.qemu_args(), "-device", "virtio-net-pci,netdev=net0,romfile="])
        pid = vm.pid
        before = peers.tap_state(pid, netns)
        upgrade = daemon.spawn("upgrade", "vm", "--qemu", slow, "--json")
        hold = daemon.run_dir / "hold"
        wait_until(lambda: hold.exists() or upgrade.poll() is not None, PATIENT, "the new QEMU to be started")
        assert hold.exists(), upgrade.communicate()
        daemon.kill()
        gate.touch()
        wait_until(lambda: peers.tap_state(pid, netns) != before, PATIENT, "the new QEMU to change the tap")
        hold.unlink()
        daemon.start(env={"DROVER_HOLD_AT": ""})
        upgrade.communicate(timeout=PATIENT)
        assert upgrade.returncode == 1 and daemon.qemus() == [pid]
        assert peers.tap_state(pid, netns) == before, daemon.log()
        with guest.Pinger(ADDRESS, interval=0.02, netns=netns) as pinger:
            wait_until(lambda: pinger.report()["sent"] > 50, PATIENT, "50 pings")
            assert pinger.stop()["lost"] <= 2
        vm.healthy()
        vm.close()
