# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's own daemon is found, stopped, kept away and started as it was: by hand, and under systemd."""

import os
import shutil
from pathlib import Path

import pytest

from lib.container import Container, cgroup_root
from lib.procs import Unavailable, wait_until
from lib.virtd import STATE, TRY, Place

HOLD = ("import fcntl, os, sys, time\n"
        "os.makedirs(sys.argv[1], exist_ok=True)\n"
        "file = open(sys.argv[1] + '/driver.pid', 'w')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)\n"
        "time.sleep(600)\n")


@pytest.fixture
def place(tmp_path):
    with Place(tmp_path) as made:
        yield made


def daemonized(place):
    place.run("libvirtd", "-d", "--verbose")
    return place.wait_holder()


def as_it_is(place, pid):
    """All that a new one must have like the old one."""
    limits = [line.split() for line in place.proc(pid, "limits").splitlines()]
    status = [line for line in place.proc(pid, "status").splitlines() if line.split(":")[0] in ("Umask", "Uid", "Gid", "Groups")]
    return {"words": place.proc(pid, "cmdline"), "environment": sorted(place.proc(pid, "environ").split("\0")), "cwd": place.link(pid, "cwd"),
            "limits": limits, "status": status, "oom": place.proc(pid, "oom_score_adj"), "cgroup": place.proc(pid, "cgroup"),
            "files": [place.link(pid, f"fd/{fd}") for fd in range(3)],
            "namespaces": [place.link(pid, f"ns/{name}") for name in ("mnt", "net", "ipc", "uts", "cgroup", "pid")]}


# --- By hand ---


def test_one_that_forked_itself(place):
    old = daemonized(place)
    before = as_it_is(place, old)
    with place.session("find", "stop", "wait", "start", "find", "stop", "stop", "start", "start") as session:
        assert session.line() == f"find: libvirtd, pid {old}"
        assert session.line().startswith("stop: ")
        assert not place.alive(old) and not place.answers()
        ours = place.holder()
        # Somebody starts it: it gets no driver, and ends as a whole.
        assert place.run("libvirtd", "-d").returncode == 0
        wait_until(lambda: not place.run("pgrep", "-x", "-r", "R,S,D", "libvirtd", check=False).stdout, 20, "the other one to end", interval=0.05)
        assert place.holder() == ours
        session.go_on()
        assert [session.line().split(":")[0] for _ in range(7)] == ["wait", "start", "find", "stop", "stop", "start", "start"]
    new = place.holder()
    assert new not in (0, old, ours) and place.answers()
    assert as_it_is(place, new) == before


def test_one_in_the_foreground_of_somebody(place, tmp_path):
    """With a directory, a log, limits and an environment of its own, which are not ours."""
    log, home = tmp_path / "libvirtd.log", tmp_path / "home"
    home.mkdir()
    start = (f"cd {home}; umask 027; ulimit -n 5000; ulimit -c 0; echo 77 >/proc/self/oom_score_adj; export ODD=$(printf 'a\\377b'); "
             f"exec unshare --uts --ipc libvirtd --verbose >>{log} 2>&1")
    popen = place.start("sh", "-c", start)
    old = place.wait_holder()
    before = as_it_is(place, old)
    assert before["files"][1] == str(log) and before["cwd"] == str(home) and before["oom"] == "77\n"
    size = log.stat().st_size
    said = place.attempt("find", "stop", "start")
    assert said.returncode == 0, said.stdout
    new = place.holder()
    assert as_it_is(place, new) == before and new != old and place.answers()
    assert log.stat().st_size > size
    popen.wait(10)
    # And from what was written, when its process is gone and its drover, too. Of the namespaces nothing is left then but what a person kept.
    said = place.attempt("find", "stop")
    assert said.returncode == 0, said.stdout
    said = place.attempt("read", "start")
    assert said.returncode == 1 and "error attention" in said.stdout and "namespace that libvirt's daemon was in does not exist" in said.stdout
    assert "(start it: /usr/sbin/libvirtd --verbose" in said.stdout.replace("'", "")


def test_namespaces_that_somebody_else_is_in(place):
    popen = place.start("unshare", "--uts", "--mount", "--net", "sh", "-c", "sleep 600 & exec libvirtd -d")
    popen.wait(20)
    old = place.wait_holder()
    before = as_it_is(place, old)
    assert place.attempt("find", "stop").returncode == 0
    assert place.holder() == 0
    said = place.attempt("read", "start")
    assert said.returncode == 0, said.stdout
    assert as_it_is(place, place.holder()) == before


@pytest.fixture
def group(tmp_path):
    """A control group of the machine's."""
    made = cgroup_root() / f"drover-virtd-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as error:
        raise Unavailable(f"no control group can be made: {error}") from None
    yield made
    made.rmdir()


def test_its_control_group(group, tmp_path):
    with Place(tmp_path) as place:
        place.start("sh", "-c", f"echo 0 >{group}/cgroup.procs; exec libvirtd -d").wait(20)
        before = as_it_is(place, place.wait_holder())
        assert f"/{group.name}\n" in before["cgroup"]
        said = place.attempt("find", "stop", "start")
        assert said.returncode == 0, said.stdout
        assert as_it_is(place, place.holder()) == before
    wait_until(lambda: not (group / "cgroup.procs").read_text(), 20, "the control group to be empty")


def test_one_that_was_killed(place):
    old = daemonized(place)
    assert place.attempt("find").returncode == 0
    place.kill(old)
    wait_until(lambda: not place.alive(old), 10, "its end")
    said = place.attempt("read", "stop", "start")
    assert said.returncode == 0, said.stdout
    assert place.holder() not in (0, old) and place.answers()
    place.kill(place.holder())
    wait_until(lambda: place.holder() == 0, 10, "its end")
    said = place.attempt("find")
    assert said.returncode == 1 and "error not-found" in said.stdout


def test_a_supervisor_starts_it_again_and_again(place, tmp_path):
    (tmp_path / "again").touch()
    popen = place.start("sh", "-c", f"while :; do libvirtd; echo >>{tmp_path}/again; sleep 0.1; done")
    old = place.wait_holder()
    with place.session("find", "stop", "wait", "start") as session:
        assert session.line() == f"find: libvirtd, pid {old}"
        assert session.line().startswith("stop: ")
        ours = place.holder()
        tries = len((tmp_path / "again").read_text())
        wait_until(lambda: len((tmp_path / "again").read_text()) >= tries + 3, 30, "three more attempts")
        assert place.holder() == ours
        session.go_on()
        assert session.line().startswith("wait: ") and session.line().startswith("start: ")
    new = place.holder()
    assert "sh" in place.run("cat", f"/proc/{place.proc(new, 'stat').split()[3]}/comm").stdout, "it is the supervisor's"
    assert place.answers()
    popen.kill()
    popen.wait()


def test_another_one_was_started_since_it_was_found(place):
    old = daemonized(place)
    assert place.attempt("find").returncode == 0
    place.kill(old, "TERM")
    wait_until(lambda: place.holder() == 0, 20, "its end")
    place.run("libvirtd", "-d", "--timeout", "600")
    other = place.wait_holder()
    with place.session("read", "stop", "wait", "start") as session:
        session.line()
        assert session.line().startswith("stop: ")
        assert not place.alive(other)
        session.go_on()
        session.line()
        assert session.line().startswith("start: ")
    assert "--verbose" in place.proc(place.holder(), "cmdline")


def test_drover_is_killed_while_it_is_away(place):
    old = daemonized(place)
    with place.session("find", "stop", "wait") as session:
        assert [session.line().split(":")[0] for _ in range(2)] == ["find", "stop"]
        place.kill(place.holder())
        session.popen.wait(10)
    assert place.holder() == 0
    with place.session("read", "stop", "stop", "wait", "start") as session:
        assert [session.line().split(":")[0] for _ in range(3)] == ["read", "stop", "stop"]
        said = place.attempt("find")
        assert "error busy: another drover" in said.stdout
        session.go_on()
        session.line()
        assert session.line().startswith("start: ")
    assert place.holder() not in (0, old)


def test_a_holder_that_is_no_daemon(place):
    popen = place.start("python3", "-c", HOLD, STATE)
    pid = place.wait_holder()
    said = place.attempt("find")
    assert said.returncode == 1 and "error refused" in said.stdout and f", pid {pid}, which is no daemon of libvirt's" in said.stdout
    assert place.alive(pid)
    popen.kill()
    popen.wait()


def test_a_holder_of_another_pid_namespace(place, tmp_path):
    """Of one that cannot be seen the kernel says nothing but that it is there."""
    daemonized(place)
    said = place.run("unshare", "--pid", "--fork", "--mount-proc", TRY, STATE, place.file, "find", check=False)
    assert said.returncode == 1 and "error unsupported" in said.stdout and "cannot be seen from here" in said.stdout
    assert place.answers()


def test_one_that_does_not_end(place):
    old = daemonized(place)
    place.kill(old, "STOP")
    said = place.attempt("find", "stop", "start", seconds=1)
    assert "does not end, and is killed" in said.stderr
    assert not place.alive(old)
    said = place.attempt("read", "start")
    assert said.returncode == 0, said.stdout
    assert place.answers()


def test_one_that_cannot_start_any_more(place, tmp_path):
    program = tmp_path / "libvirtd"
    shutil.copy("/usr/sbin/libvirtd", program)
    place.run(program, "-d")
    place.wait_holder()
    assert place.attempt("find", "stop").returncode == 0
    program.unlink()
    said = place.attempt("read", "start", seconds=5)
    assert said.returncode == 1 and "error attention: cannot start libvirtd, pid" in said.stdout
    assert f"(start it: '{program}' '-d')" in said.stdout
    # One that has begun to fail is tried several times, and then left.
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    said = place.attempt("read", "start", seconds=5)
    assert said.returncode == 1 and "it ended without having taken the lock" in said.stdout


def test_the_daemon_of_a_user(place, tmp_path):
    state = "/run/user/64055/libvirt/qemu/run"
    place.run("sh", "-c", "mkdir -p /run/user/64055 /run/home; chown 64055 /run/user/64055 /run/home")
    place.run("setpriv", "--reuid=64055", "--regid=64055", "--groups=64055,12,20", "env", "-i", "PATH=/usr/sbin:/usr/bin", "HOME=/run/home",
              "XDG_RUNTIME_DIR=/run/user/64055", "libvirtd", "-d")
    old = place.wait_holder(state=state)
    before = as_it_is(place, old)
    said = place.attempt("find", "stop", "start", state=state)
    assert said.returncode == 0, said.stdout
    new = place.holder(state)
    assert new not in (0, old) and as_it_is(place, new) == before
    assert "64055 64055" in " ".join(place.proc(new, "status").split())


# --- Under systemd ---

SOCKETS = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
NEEDY = "[Unit]\nRequires=libvirtd.service\nAfter=libvirtd.service\n[Service]\nExecStart=/bin/sleep infinity\n"


class Host(Place):
    """The same with a systemd, which has the units of libvirt's package."""

    def __init__(self, directory):
        if not Path("/lib/systemd/system/libvirtd.service").exists():
            raise Unavailable("there is no libvirtd.service: the package libvirt-daemon-system is missing")
        self.directory = Path(directory)
        self.container = Container(directory)

    def begin(self):
        self.container.start()
        self.run("sh", "-c", "echo 'security_driver = \"none\"' >/etc/libvirt/qemu.conf; rm -rf /etc/libvirt/qemu/networks/autostart")
        self.run("sh", "-c", "printf '%s' \"$0\" >/etc/systemd/system/needy.service", NEEDY)
        self.run("systemctl", "daemon-reload")
        return self

    def argv(self, *args):
        return self.container.argv(*args)

    def active(self, *units):
        return self.run("systemctl", "is-active", *units, check=False).stdout.split()

    def close(self):
        self.container.close()


@pytest.fixture(scope="module")
def booted(tmp_path_factory):
    made = Host(tmp_path_factory.mktemp("host"))
    try:
        yield made.begin()
    finally:
        made.close()


@pytest.fixture
def host(booted):
    booted.run("systemctl", "start", *SOCKETS, "libvirtd.service", "needy.service")
    booted.wait_holder()
    yield booted
    booted.run("systemctl", "stop", "needy.service", *SOCKETS, "libvirtd.service")
    booted.run("systemctl", "reset-failed")


def test_a_service_and_its_sockets(host):
    old = host.holder()
    with host.session("find", "stop", "wait", "start", "find") as session:
        assert session.line() == "find: libvirtd.service"
        noted = host.noted()["systemd"]
        assert sorted(noted["sockets"]) == sorted(SOCKETS) and noted["others"] == ["needy.service"]
        assert session.line() == "stop: libvirtd.service"
        assert host.active(*SOCKETS, "libvirtd.service") == ["inactive"] * 4
        assert not host.alive(old) and not host.answers()
        ours = host.holder()
        # Started by somebody until systemd itself refuses: it never gets the driver.
        for _ in range(7):
            host.run("systemctl", "start", "libvirtd.service", check=False)
        print(host.run("systemctl", "status", "libvirtd.service", check=False).stdout)
        assert not host.answers() and host.holder() == ours
        session.go_on()
        assert [session.line() for _ in range(3)] == [f"{verb}: libvirtd.service" for verb in ("wait", "start", "find")]
    assert host.active(*SOCKETS, "libvirtd.service", "needy.service") == ["active"] * 5
    assert host.holder() not in (0, old, ours) and host.answers()
    assert host.active("libvirtd-tcp.socket") == ["inactive"]


def test_drover_is_killed_while_the_service_is_away(host):
    with host.session("find", "stop", "wait") as session:
        assert [session.line().split(":")[0] for _ in range(2)] == ["find", "stop"]
        host.kill(host.holder())
        session.popen.wait(10)
    # A client starts it by its socket meanwhile, or not: both are stopped, and started.
    host.run("systemctl", "start", "libvirtd.socket")
    assert host.answers()
    said = host.attempt("read", "stop", "start", "start")
    assert said.returncode == 0, said.stdout
    assert host.active(*SOCKETS, "libvirtd.service", "needy.service") == ["active"] * 5 and host.answers()


def test_nothing_is_found_while_only_the_sockets_wait(host):
    host.run("systemctl", "stop", "libvirtd.service")
    host.run("systemctl", "start", "libvirtd.socket")
    said = host.attempt("find")
    assert said.returncode == 1 and "error not-found" in said.stdout
    assert host.active("libvirtd.service") == ["inactive"]


def test_one_by_hand_where_there_is_a_systemd(host):
    host.run("systemctl", "stop", *SOCKETS, "libvirtd.service")
    host.run("libvirtd", "-d")
    pid = host.wait_holder()
    said = host.attempt("find", "stop", "start")
    assert said.stdout.splitlines()[0] == f"find: libvirtd, pid {pid}" and said.returncode == 0, said.stdout
    assert host.active("libvirtd.service") == ["inactive"] and host.answers()
    host.kill(host.holder(), "TERM")
    wait_until(lambda: host.holder() == 0, 20, "its end")


@pytest.fixture
def set_up(host):
    """Changes libvirtd's unit for one test."""
    place = "/etc/systemd/system/libvirtd.service.d"

    def write(text):
        host.run("mkdir", "-p", place)
        host.run("sh", "-c", 'printf %s "$1" >"$0"', f"{place}/test.conf", text)
        host.run("systemctl", "daemon-reload")

    def undo():
        host.run("rm", "-rf", place)
        host.run("systemctl", "daemon-reload")

    write.undo = undo
    yield write
    undo()


def test_a_service_that_systemd_does_not_stop_in_time(host, set_up):
    old = host.holder()
    set_up("[Service]\nExecStop=/bin/sleep 4\n")
    said = host.attempt("find", "stop", seconds=2)
    assert said.returncode == 0 and not host.alive(old), said
    said = host.attempt("read", "start")
    assert said.returncode == 0, said.stdout
    assert host.active(*SOCKETS, "libvirtd.service") == ["active"] * 4 and host.answers()


def test_a_service_that_cannot_start_any_more(host, set_up):
    assert host.attempt("find", "stop").returncode == 0
    set_up("[Service]\nExecStart=\nExecStart=/bin/false\n")
    said = host.attempt("read", "start", seconds=5)
    set_up.undo()
    assert said.returncode == 1 and "error attention: cannot start libvirtd.service again: systemctl: " in said.stdout
    assert "(start it: systemctl reset-failed " in said.stdout and "; systemctl start " in said.stdout
    command = said.stdout.split("(start it: ")[1].rsplit(")", 1)[0].strip()
    host.run("sh", "-c", command)
    assert host.answers()


# logind makes a user's runtime directory, and starts his systemd; there is none in the container.
USERS = """
set -eu
units=/run/systemd/system
mkdir -p "$units/user@$1.service.d" "$units/user-runtime-dir@$1.service.d" "/run/user/$1/systemd/user"
printf '[Service]\\nExecStart=\\nExecStart=/bin/true\\nExecStop=\\n' >"$units/user-runtime-dir@$1.service.d/test.conf"
printf '[Service]\\nPAMName=\\nEnvironment=XDG_RUNTIME_DIR=/run/user/%s HOME=/run/user/%s\\n' "$1" "$1" >"$units/user@$1.service.d/test.conf"
printf '[Service]\\nType=notify\\nExecStart=/usr/sbin/libvirtd\\n' >"/run/user/$1/systemd/user/virt.service"
chown -R "$1:$1" "/run/user/$1"
systemctl daemon-reload
systemctl start "user@$1.service"
"""


def test_a_service_of_a_user(host):
    user, state = "64055", "/run/user/64055/libvirt/qemu/run"
    host.run("sh", "-c", USERS, "users", user)
    systemctl = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "env", f"XDG_RUNTIME_DIR=/run/user/{user}", "systemctl", "--user")
    try:
        host.run(*systemctl, "start", "virt.service")
        old = host.wait_holder(state=state)
        said = host.attempt("find", "stop", "start", "find", state=state)
        assert said.stdout.splitlines() == [f"{verb}: virt.service of user {user}" for verb in ("find", "stop", "start", "find")], said.stdout
        assert host.holder(state) not in (0, old)
        assert host.run(*systemctl, "is-active", "virt.service").stdout.strip() == "active"
    finally:
        host.run("systemctl", "stop", f"user@{user}.service")
