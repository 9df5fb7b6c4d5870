# SPDX-License-Identifier: LGPL-2.1-or-later
"""droverd as a service: its start and end, its files, its user mode, and what each verb but `upgrade` means."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from lib import api, drover, guest
from lib.procs import Process, kill_pid, run, wait_until
from lib.qmp import Qmp

SMALL = {"ram": "131080k", "mem": 8, "rate": 10}


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


def droverd(*args, **options):
    """A droverd that must end by itself."""
    return run(drover.DROVERD, *args, check=False, timeout=30, **options)


def directories(daemon):
    return "--run-dir", daemon.run_dir, "--state-dir", daemon.state_dir


# --- Configuration ---


CONFIGS = {
    "an unknown key": ("[daemon]\nrun-dri=/tmp/x\n", "unknown key 'run-dri' in [daemon]"),
    "an unknown group": ("[demon]\nrun-dir=/tmp/x\n", "[demon]"),
    "no group": ("run-dir=/tmp/x\n", "group"),
    "a relative directory": ("[daemon]\nrun-dir=x\n", "'x' is not an absolute path"),
    "a flag that is none": ("[daemon]\ndebug=perhaps\n", "debug"),
    "no UTF-8": (b"[daemon]\nrun-dir=/tmp/\xff\n", "run-dir"),
    "noise": (bytes(range(256)) * 10, "configuration"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_configuration_is_named(tmp_path, case):
    text, why = CONFIGS[case]
    path = tmp_path / "droverd.conf"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = droverd("--config", path, "--state-dir", tmp_path / "state")
    assert result.returncode == 2 and why in result.stderr, result
    assert "x" == why or result.stderr.startswith("droverd: ")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("args, code, why", [
    (("--config", "/no/such/file"), 2, "/no/such/file"), (("--config", "/tmp"), 2, "/tmp"), (("--odd",), 2, "--odd"),
    (("odd",), 2, "'odd'"), (("--run-dir",), 2, "--run-dir"), (("--run-dir", "odd"), 2, "'odd' is not an absolute path"),
    (("--state-dir", ""), 2, "absolute"), (("--run-dir", "/proc/odd"), 1, "/proc/odd"),
    (("--run-dir", "/etc/passwd"), 1, "/etc/passwd"),
])
def test_a_wrong_start_is_named(tmp_path, args, code, why):
    others = [arg for key in ("run", "state") if f"--{key}-dir" not in args for arg in (f"--{key}-dir", tmp_path / key)]
    result = droverd(*others, *args)
    assert result.returncode == code and why in result.stderr, result


def test_a_run_directory_must_leave_room_for_a_sockets_path(tmp_path):
    result = droverd("--run-dir", f"/tmp/{'x' * 110}", "--state-dir", tmp_path / "state")
    Path(f"/tmp/{'x' * 110}").rmdir()
    assert result.returncode == 1 and "107 bytes" in result.stderr and "remedy: " in result.stderr


def test_the_configuration_file_and_the_options_over_it(tmp_path):
    daemon = drover.Daemon()
    config = tmp_path / "droverd.conf"
    config.write_text(f"[daemon]\nrun-dir={daemon.dir}/odd\nstate-dir={daemon.state_dir}\ndebug=true\n")
    # The fixture's class starts it by its own options: here it is the file that says where, but for one.
    daemon.process = Process([drover.DROVERD, "--config", config, "--run-dir", daemon.run_dir], daemon.dir / "log")
    try:
        wait_until((daemon.run_dir / "api.sock").exists, 30, "droverd's socket")
        version = api.request(daemon.run_dir / "api.sock", "GET", "/v1/version").json
        assert (version["run_dir"], version["state_dir"]) == (str(daemon.run_dir), str(daemon.state_dir))
        assert not (daemon.dir / "odd").exists()
        for path, mode in ((daemon.run_dir, 0o700), (daemon.state_dir, 0o700), (daemon.run_dir / "api.sock", 0o600),
                           (daemon.state_dir / "drover.db", 0o600)):
            assert path.stat().st_mode & 0o777 == mode, path
    finally:
        daemon.close()


# --- Its files ---


def test_a_second_droverd_on_the_same_directories_does_not_start(daemon):
    daemon.run("run", "vm", "--", *guest.without_guest())
    other = daemon.dir / "other"
    for args in (directories(daemon), ("--run-dir", other, "--state-dir", daemon.state_dir),
                 ("--run-dir", daemon.run_dir, "--state-dir", other)):
        result = droverd(*args)
        assert result.returncode == 1 and "another droverd" in result.stderr and "remedy: " in result.stderr, result
    assert daemon.state("vm") == "running" and daemon.process.alive()


def test_a_stale_socket_is_replaced_and_another_file_is_not(daemon):
    daemon.process.kill()
    assert (daemon.run_dir / "api.sock").is_socket()
    daemon.start()
    daemon.kill(signal.SIGTERM)
    assert not (daemon.run_dir / "api.sock").exists()
    (daemon.run_dir / "api.sock").write_text("somebody's")
    result = droverd(*directories(daemon))
    assert result.returncode == 1 and "api.sock" in result.stderr and "is no socket" in result.stderr
    assert (daemon.run_dir / "api.sock").read_text() == "somebody's"


def test_vms_outlive_droverd_and_are_found_again(daemon, start):
    """One runs on, one is paused, one dies meanwhile, one had ended before."""
    vm = start(daemon)
    for name in ("paused", "doomed", "ended"):
        daemon.run("run", name, "--", *guest.without_guest())
    daemon.run("pause", "paused")
    daemon.run("stop", "ended", "--force")
    pids = {name: daemon.show(name)["pid"] for name in (vm.name, "paused", "doomed")}
    for sig in (signal.SIGTERM, signal.SIGKILL):
        daemon.kill(sig)
        if "doomed" in pids:
            kill_pid(pids.pop("doomed"))
        vm.healthy()
        daemon.start()
        assert {name: daemon.show(name)["pid"] for name in pids} == pids
        states = {each["name"]: each["state"] for each in daemon.json("list")}
        assert states == {vm.name: "running", "paused": "paused", "doomed": "stopped", "ended": "stopped"}
    doomed, ended = daemon.show("doomed"), daemon.show("ended")
    assert "signal 9" in doomed["exit"] and doomed["pid"] is None and Path(doomed["log"]).exists()
    assert "status 0" in ended["exit"]
    text = daemon.run("show", "doomed").stdout
    assert doomed["exit"] in text and doomed["log"] in text
    vm.upgrade("10.0")


def test_sigterm_ends_it_in_order_while_clients_are_connected(daemon):
    daemon.run("run", "vm", "--", *guest.without_guest())
    watcher = daemon.spawn("watch")
    idle = api.connect(daemon.run_dir / "api.sock")
    wait_until(lambda: daemon.run("pause", "vm") and daemon.run("resume", "vm"), 10, "something to watch")
    assert daemon.process.kill(signal.SIGTERM, timeout=20) == 0
    assert watcher.wait(10) == 1
    watcher.communicate()
    idle.close()
    assert len(daemon.qemus()) == 1 and "BUG" not in daemon.log()


def damage(db, how):
    if how == "a directory":
        db.unlink()
        db.mkdir()
    elif how == "noise":
        db.write_bytes(b"This is no database. " * 1000)
    else:
        good = db.read_bytes()
        db.write_bytes(good[:100] + bytes(len(good) - 100))


def test_a_damaged_state_file_is_named_kept_and_can_be_done_without(daemon, start):
    """The VM runs on; adopted again it is what it was, though its command line is not the one that it was given."""
    vm = start(daemon, extra=["-qmp", f"unix:{daemon.dir}/theirs,server=on,wait=off"])
    vm.upgrade("10.0")
    before = daemon.show(vm.name)
    db = daemon.state_dir / "drover.db"
    for how in ("noise", "torn", "a directory"):
        daemon.kill(signal.SIGTERM)
        damage(db, how)
        bad = None if db.is_dir() else db.read_bytes()
        result = droverd(*directories(daemon))
        assert result.returncode == 1 and str(db) in result.stderr, result
        if bad:
            assert db.read_bytes() == bad and "remedy: " in result.stderr
        vm.healthy()
        db.rename(daemon.dir / f"damaged by {how}")
        daemon.start()
        assert daemon.json("list") == []
        daemon.run("adopt", vm.name, "--pid", before["pid"])
        assert daemon.show(vm.name) == before
    vm.upgrade("7.2")
    with Qmp(daemon.dir / "theirs") as client:
        assert client.version[:2] == (7, 2)


@contextlib.contextmanager
def database(daemon):
    """The state file, while droverd does not run."""
    with contextlib.closing(sqlite3.connect(daemon.state_dir / "drover.db")) as db, db:
        yield db


def test_a_damaged_record_is_named(daemon):
    daemon.run("run", "vm", "--", *guest.without_guest())
    daemon.kill(signal.SIGTERM)
    with database(daemon) as db:
        record, = db.execute("SELECT record FROM vms").fetchone()
        db.execute("UPDATE vms SET record = '{odd'")
    result = droverd(*directories(daemon))
    assert result.returncode == 1 and "'vm'" in result.stderr and "drover.db" in result.stderr and "remedy: " in result.stderr
    with database(daemon) as db:
        db.execute("UPDATE vms SET record = ?", (record,))
    daemon.start()
    assert daemon.state("vm") == "running"


def test_a_vm_whose_start_was_not_seen_to_its_end_is_found(daemon):
    """As after a kill -9 of droverd between the start of a QEMU and the note of its process."""
    daemon.run("run", "vm", "--", *guest.without_guest())
    before = daemon.show("vm")
    daemon.kill()
    with database(daemon) as db:
        record = json.loads(db.execute("SELECT record FROM vms").fetchone()[0])
        record.update(pid=0, start_time=0, state="starting", machine=None, uuid=None, qemu_version=None)
        db.execute("UPDATE vms SET record = ?", (json.dumps(record),))
    daemon.start()
    assert daemon.show("vm") == before
    daemon.upgrade("vm", guest.qemu("10.0"))


# --- User mode ---


@pytest.fixture
def as_nobody(tmp_path):
    """Runs commands as an unprivileged user with XDG directories of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")
    home = Path("/tmp") / f"dr-user-{os.getpid()}"
    for name in ("run", "state"):
        (home / name).mkdir(parents=True, mode=0o700)
        os.chown(home / name, 65534, 65534)
    os.chown(home, 65534, 65534)
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i", f"PATH={os.environ['PATH']}",
              f"XDG_RUNTIME_DIR={home}/run", f"XDG_STATE_HOME={home}/state", "HOME=/nonexistent"]

    def command(*argv):
        return [*prefix, *map(str, argv)]

    if subprocess.run(command(drover.DROVERD, "--version"), capture_output=True).returncode:
        shutil.rmtree(home)
        pytest.skip("another user may not read the build directory")
    command.home = home
    yield command
    shutil.rmtree(home, ignore_errors=True)


def test_an_unprivileged_user_runs_and_upgrades_a_guest(as_nobody):
    home = as_nobody.home
    # The files that the guest's command line names must be that user's to read.
    qemus = {version: guest.qemu(version) for version in ("7.2", "10.0")}
    serial = home / "run" / "serial"
    argv = [qemus["7.2"], "-accel", "tcg", "-nodefaults", "-display", "none", "-machine", "pc-q35-7.2", "-m", "131080k", "-cpu",
            "qemu64", "-chardev", f"socket,id=serial,path={serial},server=on,wait=off", "-serial", "chardev:serial",
            *guest.kernel_args(mem=8, rate=10)]

    def verb(*args):
        done = run(*as_nobody(drover.DROVER, *args), cwd="/", timeout=120, check=False)
        assert done.returncode == 0, f"{args}: {done.stderr} {done.stdout}"
        return done.stdout

    daemon = Process(as_nobody(drover.DROVERD), home / "log")
    pid = None
    try:
        wait_until((home / "run/drover/api.sock").exists, 30, lambda: f"droverd's socket; {daemon.output()}")
        verb("run", "vm", "--", *argv)
        shown = json.loads(verb("show", "vm", "--json"))
        pid = shown["pid"]
        assert Path(f"/proc/{pid}").stat().st_uid == 65534
        assert shown["qmp"].startswith(f"{home}/run/drover/") and shown["log"].startswith(f"{home}/state/drover/")
        console = guest.Console(serial)
        bootid = console.wait_ready()["bootid"]
        for version in ("10.0", "7.2"):
            job = json.loads(verb("upgrade", "vm", "--qemu", qemus[version], "--json"))
            pid = job["result"]["pid_after"]
            assert job["state"] == "succeeded" and job["result"]["memory_mode"] == "shared"
            console.follow(serial)
            console.wait_passes(1)
            console.check(bootid=bootid)
        console.close()
        assert "vm" in verb("list")
        refused = run(*as_nobody(drover.DROVER, "adopt", "other", "--pid", os.getpid()), cwd="/", check=False)
        assert refused.returncode == 1 and f"{os.getpid()}" in refused.stderr
        verb("stop", "vm", "--force")
        assert daemon.kill(signal.SIGTERM, timeout=30) == 0
    finally:
        daemon.kill()
        if pid:
            kill_pid(pid)


def test_drover_connect_says_where(daemon):
    daemon.run("run", "vm", "--", *guest.without_guest())
    for where in (f"unix:{daemon.run_dir}/api.sock", f"{daemon.run_dir}/api.sock"):
        listed = subprocess.run([drover.DROVER, "list", "-o", "name"], env={**os.environ, "DROVER_CONNECT": where},
                                capture_output=True, text=True, timeout=60)
        assert (listed.returncode, listed.stdout) == (0, "vm\n")
    # The option goes before the variable.
    assert run(*daemon.argv("list", "-o", "name"), env={**os.environ, "DROVER_CONNECT": "unix:/no/such"}).stdout == "vm\n"


# --- Verbs ---


def test_list_and_show(daemon):
    empty = daemon.run("list")
    assert empty.stdout == "" and "drover run" in empty.stderr
    assert daemon.json("list") == [] and daemon.run("list", "-o", "name").stdout == ""
    argv = guest.without_guest("-uuid", "5c2b4a0e-0000-4000-8000-000000000001", "-name", "mine")
    for name in ("b", "a"):
        daemon.run("run", name, "--", *argv)
    assert daemon.run("list", "-o", "name").stdout == "a\nb\n"
    listed = daemon.json("list")[0]
    assert listed == {"name": "a", "state": "running", "pid": daemon.show("a")["pid"], "qemu_version": listed["qemu_version"],
                      "machine": "pc-q35-7.2", "uuid": "5c2b4a0e-0000-4000-8000-000000000001", "memory_mode": "shared",
                      "adopted": False, "job": None}
    assert re.fullmatch(r"7\.2\.\d+", listed["qemu_version"])
    shown = daemon.show("a")
    assert shown["argv_given"] == argv and shown["argv_running"][:len(argv)] == argv and len(shown["argv_running"]) > len(argv)
    assert shown["exit"] is None and shown["note"] is None and shown["upgrades"] == 0
    assert shown["memory"] and shown["disks"] == [] and shown["nics"] == []
    for name in ("a", "b"):
        daemon.run("stop", name, "--force")
        daemon.run("forget", name)


def test_pause_and_resume_say_what_became_of_it(daemon, start):
    vm = start(daemon)
    assert "paused" in daemon.run("pause", vm.name).stdout
    assert daemon.state(vm.name) == "paused"
    assert daemon.json("pause", vm.name)["state"] == "paused", "twice is once"
    daemon.run("resume", vm.name)
    vm.healthy()
    # Somebody else's stop and cont are seen, too.
    daemon.run("qmp", vm.name, "stop")
    wait_until(lambda: daemon.state(vm.name) == "paused", 10, "the stop to be seen")
    daemon.run("qmp", vm.name, "cont")
    wait_until(lambda: daemon.state(vm.name) == "running", 10, "the cont to be seen")


def test_qmp_passes_commands_and_refuses_what_takes_the_vm_away(daemon):
    daemon.run("run", "vm", "--", *guest.without_guest())
    pid = daemon.show("vm")["pid"]
    assert json.loads(daemon.run("qmp", "vm", "query-status").stdout)["return"]["running"] is True
    assert json.loads(daemon.run("qmp", "vm", '{"execute": "query-status", "id": 7}').stdout)["id"] == 7
    named = json.dumps({"command-line": "info name"})
    assert "return" in json.loads(daemon.run("qmp", "vm", "human-monitor-command", named).stdout)
    assert "no-such" in daemon.refused("qmp", "vm", "no-such")["message"]
    assert daemon.refused("qmp", "vm", "query-status", '{"odd": 1}')["code"] == "qmp"
    for command in ("quit", "migrate", "migrate-incoming", "migrate-set-capabilities", "migrate_cancel", "qmp_capabilities"):
        error = daemon.refused("qmp", "vm", command)
        assert command in error["message"] and error["code"] == "refused" and error["remedy"]
    for line in ("quit", " q", "migrate -d tcp:127.0.0.1:1"):
        error = daemon.refused("qmp", "vm", "human-monitor-command", json.dumps({"command-line": line}))
        assert error["code"] == "refused"
    assert daemon.show("vm")["pid"] == pid and daemon.state("vm") == "running"


def test_stop_asks_the_guest_and_says_what_to_do_when_it_does_not_listen(daemon, start):
    vm = start(daemon)
    error = daemon.refused("stop", vm.name, "--timeout", "1")
    assert error["code"] == "timeout" and "1 s" in error["message"] and f"drover stop {vm.name} --force" in error["remedy"]
    vm.healthy()
    daemon.run("pause", vm.name)
    error = daemon.refused("stop", vm.name)  # at once: it cannot listen
    assert "paused" in error["message"] and f"drover resume {vm.name}" in error["remedy"]
    daemon.run("resume", vm.name)
    stopped = daemon.json("stop", vm.name, "--force")
    assert stopped["state"] == "stopped" and stopped["pid"] is None
    assert daemon.qemus() == []
    shown = daemon.show(vm.name)
    assert "status 0" in shown["exit"] and Path(shown["log"]).exists()
    for command in (("stop", vm.name), ("pause", vm.name), ("qmp", vm.name, "query-status"), ("console", vm.name),
                    ("upgrade", vm.name)):
        error = daemon.refused(*command) if command[0] != "console" else None
        message = error["message"] if error else daemon.run(*command, check=False).stderr
        assert f"VM '{vm.name}' does not run: it exited with status 0" in message
    assert daemon.json("upgrade", "--all") == []
    daemon.run("forget", vm.name)
    assert daemon.json("list") == [] and not Path(shown["log"]).exists()


def test_stop_ends_a_qemu_that_stays_after_its_guest(daemon, start):
    vm = start(daemon, extra=["-no-shutdown"])
    vm.console.send("poweroff")
    status = lambda: json.loads(daemon.run("qmp", vm.name, "query-status").stdout)["return"]["status"]
    wait_until(lambda: status() == "shutdown", 30, "the guest to power off", 0.1)
    assert daemon.json("stop", vm.name)["state"] == "stopped"


def test_a_guest_that_ends_by_itself_is_seen(daemon, start):
    vm = start(daemon)
    vm.console.send("poweroff")
    wait_until(lambda: daemon.state(vm.name) == "stopped", 30, "the guest's end", 0.1)
    assert "status 0" in daemon.show(vm.name)["exit"]


def test_forget_lets_a_guest_run_on_and_adopt_takes_it_up_as_it_was(daemon, start):
    vm = start(daemon, extra=["-qmp", f"unix:{daemon.dir}/theirs,server=on,wait=off", "-vnc", f"unix:{daemon.dir}/vnc"])
    error = daemon.refused("forget", vm.name)
    assert "--force" in error["remedy"] and daemon.state(vm.name) == "running"
    for version, how in (("10.0", "pid"), ("7.2", "qmp")):
        vm.upgrade(version)
        before = daemon.show(vm.name)
        daemon.run("forget", vm.name, "--force")
        assert daemon.json("list") == []
        vm.healthy()
        error = daemon.refused("run", vm.name, "--", *guest.without_guest())
        assert error["code"] == "exists" and before["qmp"] in error["message"] and "drover adopt" in error["remedy"]
        daemon.run("adopt", vm.name, *(("--pid", before["pid"]) if how == "pid" else ("--qmp", daemon.dir / "theirs")))
        assert daemon.show(vm.name) == before
    daemon.run("forget", vm.name, "--force")
    daemon.run("adopt", "renamed", "--pid", before["pid"])
    daemon.upgrade("renamed", guest.qemu("10.0"))
    vm.healthy()
    for path in (daemon.dir / "theirs", daemon.dir / "vnc"):
        assert path.is_socket()


def test_an_adopted_guest_is_forgotten_as_if_nothing_had_been(daemon, start):
    vm = start(daemon, adopt="pid")
    before = set(daemon.dir.rglob("*"))
    for _ in range(2):
        daemon.run("forget", vm.name)
        assert vm.process.alive() and daemon.json("list") == []
        assert not [path for path in (daemon.run_dir / "vms").iterdir()] and not [path for path in (daemon.state_dir / "vms").iterdir()]
        vm.healthy()
        daemon.run("adopt", vm.name, "--qmp", vm.qmp)
    assert set(daemon.dir.rglob("*")) == before
    vm.process.kill()
    wait_until(lambda: daemon.state(vm.name) == "stopped", 10, "its end to be seen")
    assert "ended" in daemon.show(vm.name)["exit"]


# --- Jobs ---


@pytest.fixture
def held():
    """A droverd whose upgrades wait at `start` and at `commit` until hold is removed."""
    with drover.Daemon(env={"DROVER_HOLD_AT": "start,commit"}) as daemon:
        yield daemon


def begin_upgrade(daemon, name):
    command = daemon.spawn("upgrade", name, "--qemu", guest.qemu("10.0"))
    return command, wait_held(daemon, "start")


def wait_held(daemon, stage):
    hold = daemon.run_dir / "hold"
    wait_until(lambda: hold.exists() and hold.read_text() == stage, 60, lambda: f"stage {stage}; droverd: {daemon.log()[-800:]}")
    return hold


def test_a_job_is_seen_followed_and_cancelled(held, start):
    vm = start(held)
    pid = vm.pid
    command, _ = begin_upgrade(held, vm.name)
    job, = held.json("jobs")
    assert (job["id"], job["kind"], job["vm"], job["state"], job["stage"]) == ("1", "upgrade", vm.name, "running", "start")
    assert held.json("job", "1") == job and held.json("list")[0]["job"] == "1"
    assert "start" in held.run("job", "1").stdout and "start" in held.run("jobs").stdout
    for verb in (("upgrade", vm.name), ("stop", vm.name, "--force"), ("forget", vm.name, "--force")):
        error = held.refused(*verb)
        assert error["code"] == "busy" and "1" in error["message"], (verb, error)
    watcher = held.spawn("watch", "1")
    assert "asked to stop" in held.run("cancel", "1").stdout
    assert command.wait(60) == 1 and watcher.wait(60) == 1
    assert "cancelled" in command.communicate()[1] and "cancelled" in watcher.communicate()[1]
    job = held.json("job", "1")
    assert job["state"] == "cancelled" and job["error"]["code"] == "cancelled" and job["result"] is None
    error = held.refused("cancel", "1")
    assert "has ended already (cancelled)" in error["message"]
    assert vm.pid == pid and held.qemus() == [pid]
    vm.healthy()


def test_a_job_past_its_point_of_no_return_is_not_cancelled(held, start):
    vm = start(held)
    old = vm.pid
    command, hold = begin_upgrade(held, vm.name)
    hold.unlink()
    hold = wait_held(held, "commit")
    error = held.refused("cancel", "1")
    assert error["code"] == "refused" and "point of no return" in error["message"] and error["remedy"]
    hold.unlink()
    assert command.wait(60) == 0
    out, _ = command.communicate()
    assert re.search(r"upgraded 7\.2\.\d+ -> 10\.0\.\d+, paused", out)
    assert vm.pid != old and held.json("job", "1")["state"] == "succeeded"
    assert held.run("watch", "1").returncode == 0, "a job that has ended is told, too"
    vm.healthy()


def test_watch_tells_what_happens(daemon):
    daemon.run("run", "vm", "--", *guest.without_guest())
    with Process(daemon.argv("watch", "--json"), daemon.dir / "watched") as watcher:

        def seen(state):
            """Until the watcher is connected, what happens is not for it."""
            daemon.run("pause" if state == "paused" else "resume", "vm")
            return f'"state":"{state}"' in watcher.output().replace(" ", "")

        # Both each time: a pause that nobody heard of must be ended for the next one to be an event.
        wait_until(lambda: all([seen("paused"), seen("running")]), 30, "both states to be told", 0.1)
        for line in watcher.output().splitlines():
            event = json.loads(line)
            assert event["type"] == "vm" and event["vm"]["name"] == "vm" and event["time_ms"] > 0
