# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bad input: each gets an error that names what and where, costs nothing, and leaves droverd and its VMs as they were."""

import concurrent.futures
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from lib import api, drover, guest
from lib.procs import Process, kill_pid, run, wait_until
from lib.qmp import Qmp

MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon():
    with drover.Daemon() as started:
        yield started


@pytest.fixture(scope="module")
def bystander(daemon):
    """A guest that all of this must not touch."""
    vm = drover.Witness(daemon, "bystander", ram="131080k", mem=8, rate=10)
    yield vm
    assert vm.healthy()["bootid"] == vm.bootid
    vm.close()


def processes_of(daemon):
    """Whatever has the daemon's directories on its command line, QEMUs and keepers, but for droverd itself."""
    found = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and str(daemon.dir).encode() in
             words_of(entry.name)}
    return found - {daemon.process.pid}


def words_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_libvirts_log(path):
    """A name that droverd does not know is looked for among libvirt's domains. That leaves a log, and no run."""
    return path.name == "libvirt" or path.parent.name == "libvirt" and path.name in ("lock", "log")


def world(daemon):
    """What a refused request must leave as it was. A VM's record is written anew when it is looked at; its content is
    in the list."""
    files = {str(path) for base in (daemon.run_dir, daemon.state_dir) for path in base.rglob("*")
             if "cache" not in path.parts and not path.name.startswith("drover.db") and not is_libvirts_log(path)}
    vms = [(vm["name"], vm["state"], vm["pid"], vm["job"]) for vm in daemon.json("list")]
    return {"vms": vms, "files": files, "processes": processes_of(daemon)}


def settled(daemon):
    """The world once nothing is on its way: a file that is being written has another name."""
    seen = [world(daemon)]

    def twice_the_same():
        seen.append(world(daemon))
        return seen[-1] == seen[-2]

    wait_until(twice_the_same, 20, lambda: f"the world to be the same twice: {seen[-2:]}", 0.05)
    return seen[-1]


@pytest.fixture(autouse=True)
def nothing_is_lost(daemon, bystander):
    before = settled(daemon)
    yield
    assert daemon.process.alive(), daemon.log()[-2000:]
    # A keeper, or a QEMU that was told to end, may take a moment.
    wait_until(lambda: world(daemon) == before, 20, lambda: f"all to be as before, {before}; now: {world(daemon)}", 0.1)
    assert "BUG" not in daemon.log()


@pytest.fixture
def qemu(daemon):
    """Starts QEMUs that drover has nothing to do with."""
    started = []

    def start(*extra, argv=None, env=None, wait_for=None):
        started.append(Process(argv or guest.without_guest(*extra), daemon.dir / "out", env=env))
        if wait_for:
            wait_until(wait_for.exists, 20, lambda: f"{wait_for}; QEMU said: {(daemon.dir / 'out').read_text()}")
        return started[-1]

    yield start
    for process in started:
        process.kill()
    for name in ("out", "qmp"):
        (daemon.dir / name).unlink(missing_ok=True)


def names(error, *words, remedy=True):
    """The message has these words, and there's a remedy."""
    for word in words:
        assert str(word) in error["message"], f"no {word!r} in {error}"
    if remedy:
        assert error["remedy"], error


# --- Binaries ---


def fake(path, text, mode=0o755):
    path.write_text(text)
    path.chmod(mode)
    return path


# What QEMU 4.2 answers to all that drover asks it before it looks at the version. (A real one: see tests/guest/README.md.)
OLD_QEMU = """#!/bin/sh
echo '{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 4}, "package": ""}, "capabilities": ["oob"]}}' >&3
read -r negotiation <&3
echo '{"return": {}, "id": 1}' >&3
exec sleep 1000
"""

BINARIES = {
    "absent": (lambda tmp: tmp / "no-such-qemu", "there is no such file"),
    "not in PATH": (lambda tmp: "no-such-qemu", "PATH"),
    "a directory": (lambda tmp: tmp, "is a directory"),
    "a text": (lambda tmp: fake(tmp / "text", "hello\n", 0o644), "Permission denied"),
    "no program": (lambda tmp: fake(tmp / "rubbish", "hello\n"), "neither a program"),
    "without its interpreter": (lambda tmp: fake(tmp / "script", "#!/no/such/shell\n"), "interpreter"),
    "another program": (lambda tmp: "/bin/true", "does not behave like a QEMU"),
    "one that talks": (lambda tmp: fake(tmp / "talker", "#!/bin/sh\necho 'who are you?'\nexit 1\n"), "who are you?"),
    "qemu-img": (lambda tmp: shutil.which("qemu-img"), "is not a system emulator"),
    "too old": (lambda tmp: fake(tmp / "old", OLD_QEMU), "is QEMU 4.2.1: drover works with 5.2 and newer"),
}


@pytest.mark.parametrize("case", BINARIES)
def test_a_binary_that_is_no_qemu_of_use_is_named(daemon, tmp_path, case):
    make, why = BINARIES[case]
    binary = make(tmp_path)
    names(daemon.refused("run", "vm", "--", binary, "-m", "16"), "'vm'", binary, why)
    names(daemon.refused("upgrade", "bystander", "--qemu", binary), binary, why)
    if "/" in str(binary):
        report = json.loads(daemon.run("upgrade", "bystander", "--qemu", binary, "--check", "--json", check=False).stdout)
        blockers = [finding for finding in report["findings"] if finding["severity"] == "blocker"]
        assert not report["ok"] and why in blockers[0]["text"] and blockers[0]["remedy"]


def test_a_binary_that_is_no_qemu_is_named_with_private_memory_too(daemon):
    names(daemon.refused("run", "vm", "--memory", "private", "--", "/bin/true"), "'vm'", "exited with status 0", remedy=False)


# --- Names ---


@pytest.mark.parametrize("name", ["a/b", "/etc", "", ".", "..", "../x", ".hidden", "x" * 64, "a b", "a\nb", "ümlaut", "a\x1b[31m",
                                  "x" * 4000])
def test_a_name_that_cannot_be_one_is_refused(daemon, qemu, name):
    socket_path = daemon.dir / "qmp"
    other = qemu("-qmp", f"unix:{socket_path},server=on,wait=off", wait_for=socket_path)
    for command in (("run", name, "--", *guest.without_guest()), ("adopt", name, "--pid", other.pid)):
        error = daemon.refused(*command, code=2)
        names(error, "cannot be the name of a VM", name[:20] if name.isprintable() else "a?" if "\n" in name else "")
        assert "\n" not in error["message"] and len(error["message"]) < 300
    for verb in ("show", "pause", "resume", "stop", "forget", "upgrade", "console"):
        assert daemon.run(verb, name, check=False).returncode in (1, 2)


def test_a_name_that_looks_like_an_option_is_refused(daemon):
    names(daemon.refused("run", "-x", "--", *guest.without_guest(), code=2), "run", "-x")


@pytest.mark.parametrize("name", ["x" * 63, "a..b", "0", "A_b-c.9"])
def test_a_name_that_can_be_one_is_taken(daemon, name):
    daemon.run("run", name, "--", *guest.without_guest())
    daemon.run("stop", name, "--force")
    daemon.run("forget", name)


def test_a_name_that_is_taken_is_refused(daemon, qemu):
    socket_path = daemon.dir / "qmp"
    other = qemu("-qmp", f"unix:{socket_path},server=on,wait=off", wait_for=socket_path)
    for command in (("run", "bystander", "--", *guest.without_guest()), ("adopt", "bystander", "--pid", other.pid),
                    ("adopt", "bystander", "--qmp", socket_path)):
        error = daemon.refused(*command)
        names(error, "'bystander' is taken")
        assert error["code"] == "exists"
    with Qmp(socket_path) as untouched:
        assert untouched.command("query-status")["running"]


def at_once(commands):
    with concurrent.futures.ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda command: subprocess.run(command, capture_output=True, text=True, timeout=120), commands))


def test_of_many_that_want_a_name_at_once_one_gets_it(daemon):
    results = at_once([daemon.argv("run", "wanted", "--", *guest.without_guest())] * 6)
    assert sorted(result.returncode for result in results) == [0, 1, 1, 1, 1, 1]
    assert all("the name 'wanted' is taken" in result.stderr for result in results if result.returncode)
    daemon.run("stop", "wanted", "--force")
    daemon.run("forget", "wanted")


# --- Adopting ---


@pytest.mark.parametrize("pid, code, why", [
    ("self", 1, "is no QEMU"), ("1", 1, "pid 1 is no QEMU"), ("2", 1, "command line"), ("999999999", 1, "999999999"),
    ("0", 2, "'0' is no pid"), ("-1", 2, "'-1' is no pid"), ("4294967297", 2, "'4294967297' is no pid"),
    ("9" * 30, 2, "is no pid"), ("1.5", 2, "'1.5' is no pid"), ("", 2, "'' is no pid"), ("web1", 2, "'web1' is no pid"),
])
def test_a_pid_that_is_no_qemu_is_refused(daemon, pid, code, why):
    pid = os.getpid() if pid == "self" else pid
    names(daemon.refused("adopt", "vm", f"--pid={pid}", code=code), why, remedy=False)


def test_which_vm_is_meant_must_be_said_once(daemon):
    names(daemon.refused("adopt", "vm", code=2), "which VM")
    names(daemon.refused("adopt", "vm", "--pid", "1", "--qmp", "/x", code=2), "--pid and --qmp")


def make_socket(path, listen):
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    if listen:
        made.listen(1)
    return made


@pytest.mark.parametrize("case", ["absent", "a file", "a directory", "deserted", "silent", "talks", "too long", "empty",
                                  "relative", "droverd's own"])
def test_a_qmp_socket_that_is_none_is_refused(daemon, tmp_path, case):
    # In a short directory: a socket's path has 107 bytes.
    path = daemon.dir / "other"
    made = None
    code, why = 1, f"'{path}'"
    if case == "a file":
        path.write_text("hello")
        why = "it is no socket"
    elif case == "a directory":
        path.mkdir()
        why = "it is no socket"
    elif case == "deserted":
        make_socket(path, listen=False).close()
        why = "nobody listens"
    elif case in ("silent", "talks"):
        made = make_socket(path, listen=True)
        why = "does not greet"
    elif case == "too long":
        path = Path("/tmp" + "/x" * 100)
        why = "too long"
    elif case == "empty":
        path, code, why = "", 2, "is empty"
    elif case == "relative":
        path, why = "no-such-directory/qmp", f"'{tmp_path}/no-such-directory/qmp'"
    elif case == "droverd's own":
        path, why = daemon.run_dir / "api.sock", "it is no QMP socket"
    try:
        if case == "talks":
            made.settimeout(60)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                answer = pool.submit(talk, made, b"220 mail.example ESMTP\r\n")
                error = daemon.refused("adopt", "vm", "--qmp", path)
                answer.result()
            why = "sent garbage"
        else:
            error = daemon.refused("adopt", "vm", "--qmp", path, code=code, cwd=tmp_path)
        names(error, why, remedy=False)
    finally:
        if made:
            made.close()
        if case == "a directory":
            path.rmdir()
        elif path and str(path).startswith(str(daemon.dir / "other")):
            path.unlink(missing_ok=True)


def talk(listener, text):
    client, _ = listener.accept()
    with client:
        client.sendall(text)
        client.recv(1000)


def test_a_qmp_socket_that_somebody_else_holds_is_refused_until_it_is_free(daemon, qemu):
    path = daemon.dir / "qmp"
    process = qemu("-qmp", f"unix:{path},server=on,wait=off", wait_for=path)
    with Qmp(path) as holder:
        for how in (("--pid", process.pid), ("--qmp", path)):
            error = daemon.refused("adopt", "vm", *how)
            names(error, path, "another client holds it")
            assert error["code"] == "busy"
        assert holder.command("query-status")["running"], "the holder was not disturbed"
    daemon.run("adopt", "vm", "--qmp", f"unix:{path}")
    for how in (("--pid", process.pid), ("--qmp", path)):
        names(daemon.refused("adopt", "again", *how), f"pid {process.pid} is under drover already, as VM 'vm'")
    daemon.run("forget", "vm")


def test_of_many_that_adopt_one_qemu_one_gets_it(daemon, qemu):
    path = daemon.dir / "qmp"
    process = qemu("-qmp", f"unix:{path},server=on,wait=off", wait_for=path)
    results = at_once([daemon.argv("adopt", f"vm{i}", "--pid", process.pid) for i in range(4)])
    assert sorted(result.returncode for result in results) == [0, 1, 1, 1]
    assert all("is under drover already" in result.stderr for result in results if result.returncode)
    winner, = [vm["name"] for vm in daemon.json("list") if vm["pid"] == process.pid]
    daemon.run("forget", winner)


def test_a_vm_that_drover_started_is_not_adopted_beside(daemon, bystander):
    for how in (("--pid", bystander.pid), ("--qmp", daemon.show("bystander")["qmp"])):
        names(daemon.refused("adopt", "again", *how), "is under drover already, as VM 'bystander'")


def test_a_qemu_without_a_qmp_socket_is_refused(daemon, qemu):
    process = qemu()
    wait_until(lambda: "-machine" in words_of(process.pid).decode(), 20, "QEMU's command line")
    names(daemon.refused("adopt", "vm", "--pid", process.pid), f"pid {process.pid} has no QMP socket")
    assert process.alive()


def test_a_command_line_that_is_no_utf8_is_refused_and_an_environment_is_not(daemon, qemu):
    path, image = daemon.dir / "qmp", os.fsencode(daemon.dir) + b"/\xff.img"
    qmp = ("-qmp", f"unix:{path},server=on,wait=off")
    open(image, "wb").write(bytes(MIB))
    try:
        process = qemu("-drive", f"if=none,format=raw,file={os.fsdecode(image)}", *qmp, wait_for=path)
        names(daemon.refused("adopt", "vm", "--pid", process.pid), f"pid {process.pid}", "is not UTF-8")
        names(daemon.refused("run", "vm", "--", *guest.without_guest("-fda", os.fsdecode(image)), code=2), "is not UTF-8",
              remedy=False)
        process.kill()
        path.unlink(missing_ok=True)
        process = qemu(*qmp, env={"ODD": os.fsdecode(b"\xff\xfe")}, wait_for=path)
        daemon.run("adopt", "vm", "--pid", process.pid)
        daemon.restart()  # whose state file must be readable
        assert daemon.state("vm") == "running"
        daemon.run("forget", "vm")
    finally:
        os.unlink(image)


# --- Command lines ---

# (exit code, words of the message, arguments). 2: drover itself cannot read it. 1: QEMU did not take it, and says why.
COMMAND_LINES = {
    "empty": (2, ["no program"], None),
    "an unknown option": (2, ["'-nosuchoption'", "word"], ["-nosuchoption"]),
    "a missing value": (2, ["'-drive'", "needs a value"], ["-drive"]),
    "a launcher": (1, ["through 'env'"], "env"),
    "no size": (1, ["'-m'", "'abc' is not a size"], ["-m", "abc"]),
    "a negative size": (1, ["'-5' is not a size"], ["-m", "-5"]),
    "a machine that is none": (1, ["machine type 'nosuch'", "7.2"], ["-machine", "nosuch"]),
    "a missing disk": (1, ["Could not open '/no/such/disk': No such file or directory"], ["-drive", "file=/no/such/disk,format=raw"]),
    "a missing kernel": (1, ["could not open kernel file '/no/such/kernel'"], ["-kernel", "/no/such/kernel"]),
    "an unknown device": (1, ["'nosuch' is not a valid device model name"], ["-device", "nosuch"]),
    "an unknown CPU": (1, ["unable to find CPU model 'nosuch'"], ["-cpu", "nosuch"]),
    "JSON without an end": (1, ["JSON parse error"], ["-device", '{"driver":']),
    "a socket in no directory": (1, ["/no/such/directory/s"], ["-chardev", "socket,id=c,path=/no/such/directory/s,server=on,wait=off"]),
    "a help text": (1, ["QEMU said"], ["-help"]),
    "no room in memory": (1, ["QEMU said"], ["-m", "1000000G"]),
}


@pytest.mark.parametrize("case", COMMAND_LINES)
def test_a_command_line_that_does_not_work_leaves_nothing_behind(daemon, case):
    code, words, arguments = COMMAND_LINES[case]
    argv = [""] if arguments is None else ["env", "A=b", *guest.without_guest()] if arguments == "env" else \
        guest.without_guest(*arguments)
    error = daemon.refused("run", "vm", "--", *argv, code=code)
    names(error, "cannot run VM 'vm'", *words, remedy=False)


def test_a_qemu_that_waits_for_somebody_is_not_waited_for_without_end(daemon):
    error = daemon.refused("run", "vm", "--", *guest.without_guest("-qmp", f"unix:{daemon.dir}/never,server=on,wait=on"))
    names(error, "waiting for connection")
    assert "wait=off" in error["remedy"]
    (daemon.dir / "never").unlink(missing_ok=True)


def test_what_is_odd_but_right_works(daemon, tmp_path):
    """UTF-8, spaces, 100 KB of arguments, a symbolic link, a command found in PATH."""
    disk = tmp_path / "größe und farbe.img"
    disk.write_bytes(bytes(MIB))
    link = tmp_path / "qemu-by-another-name"
    link.symlink_to(guest.qemu())
    argv = [link, *guest.without_guest()[1:], "-drive", f"if=virtio,format=raw,file={disk.name}", "-name", "n" * 100_000]
    daemon.run("run", "odd", "--", *argv, cwd=tmp_path)
    shown = daemon.show("odd")
    assert shown["argv_given"] == [str(word) for word in argv] and shown["cwd"] == str(tmp_path)
    daemon.upgrade("odd", guest.qemu("10.0"))
    assert disk.name in json.dumps(daemon.show("odd")["disks"], ensure_ascii=False)
    daemon.run("stop", "odd", "--force")
    daemon.run("forget", "odd")


def test_a_directory_that_was_removed_is_named(daemon, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    command = subprocess.run(["sh", "-c", 'cd "$1" && rmdir "$1" && shift && exec "$@"', "sh", gone,
                              *daemon.argv("run", "vm", "--", *guest.without_guest())], capture_output=True, text=True)
    assert command.returncode == 1 and "the current directory does not exist any more" in command.stderr


# --- The command line of drover itself ---

USAGE = {
    "": ["a verb is missing"],
    "nosuch": ["'nosuch'"],
    "help nosuch": ["'nosuch'"],
    "run": ["run", "NAME"], "run vm": ["the QEMU command is missing"], "run vm --": ["the QEMU command is missing"],
    "run a b -- qemu": ["'b'"], "run vm --memory odd -- qemu": ["'odd'"], "run vm --env ODD -- qemu": ["'ODD'"],
    "run vm qemu -nodefaults": ["-nodefaults"],
    "adopt": ["NAME"], "adopt a b --pid 1": ["'b'"],
    "list odd": ["'odd'"], "list -o odd": ["'odd'"],
    "show": ["NAME"], "show a odd": ["'odd'"],
    "console": ["NAME"], "console a --escape odd": ["'odd'"],
    "qmp": ["NAME"], "qmp vm": ["qmp"], "qmp vm {": ["JSON"], "qmp vm query-status [1]": ["'query-status'"],
    "qmp vm {} {}": ["arguments"], "qmp a b {} odd": ["'odd'"],
    "pause": ["NAME"], "resume": ["NAME"],
    "stop": ["NAME"], "stop vm --timeout 0": ["--timeout"], "stop vm --timeout -1": ["--timeout"], "stop vm --timeout odd": ["odd"],
    "forget": ["NAME"], "forget a odd": ["'odd'"],
    "upgrade": ["--all"], "upgrade --all vm": ["--all"], "upgrade vm --memory odd": ["'odd'"],
    "upgrade vm --parallel 0": ["--parallel"], "upgrade vm --parallel -1": ["--parallel"], "upgrade vm --parallel 65": ["--parallel"],
    "upgrade vm --parallel odd": ["odd"],
    "jobs odd": ["'odd'"], "job": ["ID"], "job 1 odd": ["'odd'"], "watch 1 odd": ["'odd'"], "cancel": ["JOB"],
    "cancel 1 odd": ["'odd'"],
    "list --connect odd": ["'odd'"], "list --connect unix:": ["'unix:'"], "list --connect tcp:1.2.3.4": ["'tcp:1.2.3.4'"],
}
VERBS = ["run", "adopt", "list", "show", "console", "qmp", "pause", "resume", "stop", "forget", "upgrade", "jobs", "job", "watch",
         "cancel", "peer", "pki"]
USAGE.update({f"{verb} --odd": [verb, "--odd"] for verb in VERBS})


@pytest.mark.parametrize("line", USAGE)
def test_wrong_usage_names_the_word(daemon, line):
    result = daemon.run(*line.split(), check=False)
    assert result.returncode == 2, result
    assert all(word in result.stderr for word in USAGE[line]), result.stderr
    assert result.stderr.startswith("drover: ") and not result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_option_leads_to_the_help_of_its_verb(daemon, verb):
    error = daemon.refused(verb, "--odd", code=2)
    assert f"drover help {verb}" in error["remedy"]
    assert verb in daemon.run("help", verb).stdout


def test_names_that_are_unknown_are_named_and_the_others_are_served(daemon):
    result = daemon.run("pause", "nosuch", "bystander", check=False)
    assert result.returncode == 1 and "'nosuch'" in result.stderr and "bystander: paused" in result.stdout
    daemon.run("resume", "bystander")
    for verb in ("show", "stop", "forget", "console", "upgrade"):
        assert "'nosuch'" in daemon.run(verb, "nosuch", check=False).stderr
    names(daemon.refused("upgrade", "bystander", "nosuch"), "'nosuch'")
    names(daemon.refused("upgrade", "bystander", "bystander", code=2), "'bystander' is named twice", remedy=False)
    for verb in ("job", "watch", "cancel"):
        for odd in ("999999", "0", "-1", "web1", "9" * 40):
            names(daemon.refused(verb, "--", odd), odd)


def test_a_name_of_100_kb_is_not_sent(daemon):
    error = daemon.refused("show", "x" * 100_000, code=2)
    assert "too long" in error["message"] and len(error["message"]) < 200


def test_connecting_to_nothing_says_how_to_start_droverd(daemon, tmp_path):
    (tmp_path / "file").write_text("")
    make_socket(tmp_path / "dead", listen=False).close()
    for name in ("absent", "file", "dead"):
        result = run(drover.DROVER, "--connect", f"unix:{tmp_path}/{name}", "list", check=False)
        assert result.returncode == 1
        assert f"cannot reach droverd at '{tmp_path}/{name}'" in result.stderr and "droverd" in result.stderr.partition("remedy:")[2]


# --- The API ---

GOOD_NAME = {"name": "vm"}
BODIES = {
    "nothing": (b"", "empty"),
    "10 MB in one string": (b'{"name": "' + b"x" * (10 * MIB) + b'"}', "larger than the limit"),
    "10 MB of blanks": (b" " * (10 * MIB), "larger than the limit"),
    "100,000 nested arrays": (b"[" * 100_000 + b"]" * 100_000, "nested deeper than 64"),
    "100,000 nested arrays without an end": (b"[" * 100_000, "nested deeper than 64"),
    "100,000 nested objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper than 64"),
    "100,000 nested arrays in an argument": (b'{"name": "vm", "argv": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper"),
    "no UTF-8": (b'{"name": "\xff\xfe"}', "UTF-8"),
    "half a surrogate": (b'{"name": "\\ud800"}', "not valid JSON"),
    "a NUL": (b'{"name": "a\0b"}', "NUL"),
    "an escaped NUL": (b'{"name": "vm\\u0000x", "argv": ["x"]}', "NUL"),
    "an array": (b"[1]", "not an object"),
    "no JSON": (b"name=vm&pid=1", "not valid JSON"),
    "XML": (b"<name>vm</name>", "not valid JSON"),
    "two documents": (b'{"name": "vm"}{"name": "vm"}', "behind its end"),
    "an unknown member": ({"name": "vm", "agrv": []}, "'agrv'"),
    "a number for a name": ({"name": 5}, "'name' must be a string"),
    "a string for words": ({**GOOD_NAME, "argv": "qemu"}, "'argv' must be an array of strings"),
    "numbers for words": ({**GOOD_NAME, "argv": [1, 2]}, "'argv' must be an array of strings"),
    "no words": ({**GOOD_NAME, "argv": []}, "no command line"),
    "an odd environment": ({**GOOD_NAME, "argv": ["x"], "env": ["ODD"]}, "'ODD'"),
    "a relative directory": ({**GOOD_NAME, "argv": ["x"], "cwd": "odd"}, "'odd'"),
    "an odd kind of memory": ({**GOOD_NAME, "argv": ["x"], "memory": "odd"}, "'odd'"),
    "a string for a flag": ({**GOOD_NAME, "argv": ["x"], "hugetlb": "no"}, "'hugetlb' must be true or false"),
}


def problem(daemon, method, target, body=b"", status=400, **options):
    answer = api.request(daemon.run_dir / "api.sock", method, target, body, **options)
    assert answer.status == status and answer.is_problem(), answer
    return answer.json["detail"]


@pytest.mark.parametrize("case", BODIES)
def test_a_body_that_is_wrong_is_a_problem(daemon, case):
    body, why = BODIES[case]
    assert why in problem(daemon, "POST", "/v1/vms", body, status=413 if "larger" in why else 400)


REQUESTS = [
    # method, target, body, status, words
    ("POST", "/v1/vms/adopt", {"name": "vm"}, 400, "by its pid or by its QMP socket"),
    ("POST", "/v1/vms/adopt", {"name": "vm", "pid": "1"}, 400, "'pid' must be a whole number"),
    ("POST", "/v1/vms/adopt", {"name": "vm", "pid": 1.5}, 400, "'pid' must be a whole number"),
    ("POST", "/v1/vms/adopt", {"name": "vm", "pid": -1}, 400, "'pid' must be"),
    ("POST", "/v1/vms/adopt", {"name": "vm", "pid": 10 ** 30}, 400, "'pid' must be"),
    ("POST", "/v1/vms/adopt", {"name": "vm", "qmp": "odd"}, 400, "'odd' is not an absolute path"),
    ("POST", "/v1/vms/adopt", {"name": "vm", "pid": 1, "qmp": "/x"}, 400, "one of them"),
    ("POST", "/v1/vms/bystander/stop", {"timeout": 0}, 400, "'timeout' must be 1 to"),
    ("POST", "/v1/vms/bystander/stop", {"force": "yes"}, 400, "'force' must be true or false"),
    ("POST", "/v1/vms/bystander/pause", {"odd": 1}, 400, "takes no body"),
    ("POST", "/v1/vms/bystander/qmp", {}, 400, "execute"),
    ("POST", "/v1/vms/bystander/qmp", {"execute": 5}, 400, "'execute' must be a string"),
    ("POST", "/v1/vms/bystander/qmp", {"execute": "query-status", "arguments": []}, 400, "'arguments' must be an object"),
    ("POST", "/v1/vms/bystander/qmp", {"execute": "no-such-command"}, 502, "no-such-command"),
    ("POST", "/v1/vms/bystander/qmp", {"execute": "quit"}, 409, "'quit' would take VM 'bystander' out of drover's hands"),
    ("DELETE", "/v1/vms/bystander", b"", 409, "runs"),
    ("DELETE", "/v1/vms/bystander?force=maybe", b"", 400, "'maybe'"),
    ("POST", "/v1/upgrade", {}, 400, "name the VMs"),
    ("POST", "/v1/upgrade", {"vms": []}, 400, "name the VMs"),
    ("POST", "/v1/upgrade", {"vms": ["bystander"], "all": True}, 400, "not both"),
    ("POST", "/v1/upgrade", {"vms": ["bystander", "bystander"]}, 400, "named twice"),
    ("POST", "/v1/upgrade", {"vms": ["bystander", "nosuch"]}, 404, "'nosuch'"),
    ("POST", "/v1/upgrade", {"vms": ["bystander"], "qemu": "odd"}, 400, "'odd' is not an absolute path"),
    ("POST", "/v1/upgrade", {"vms": ["bystander"], "memory": "odd"}, 400, "'odd'"),
    ("POST", "/v1/upgrade", {"vms": ["bystander"], "parallel": 0}, 400, "'parallel' must be 1 to 64"),
    ("POST", "/v1/upgrade/check", {"vms": ["bystander"], "parallel": -1}, 400, "'parallel'"),
    ("GET", "/", b"", 404, "'/'"), ("GET", "/v1/vms/", b"", 404, "'/v1/vms/'"), ("GET", "/v2/vms", b"", 404, "'/v2/vms'"),
    ("GET", "/v1/vms/nosuch", b"", 404, "'nosuch'"), ("GET", "/v1/vms/..%2f..%2fetc", b"", 404, "'../../etc'"),
    ("GET", "/v1/vms/%00", b"", 400, "escaped"), ("GET", "/v1/vms/%ff", b"", 404, ""),
    ("PUT", "/v1/vms", b"", 405, "PUT"), ("BREW", "/v1/vms", b"", 405, "BREW"), ("DELETE", "/v1/jobs/1", b"", 405, "DELETE"),
    ("GET", "/v1/jobs/odd", b"", 404, "'odd'"), ("GET", "/v1/jobs/-1", b"", 404, "'-1'"),
    ("GET", "/v1/jobs/99999999999999999999", b"", 404, "'99999999999999999999'"),
    ("POST", "/v1/jobs/999999/cancel", b"", 404, "999999"), ("GET", "/v1/events?job=999999", b"", 404, "999999"),
    ("GET", "/v1/vms/bystander/console", b"", 426, "WebSocket"),
]


def test_a_request_that_is_wrong_is_a_problem(daemon):
    for method, target, body, status, words in REQUESTS:
        detail = problem(daemon, method, target, body, status)
        assert words in detail, f"{method} {target} {body}: {detail}"


def test_content_types_are_not_trusted(daemon):
    """What counts is whether the body is JSON, so that curl's own default does no harm."""
    for kind in ("text/plain", "application/xml", "application/x-www-form-urlencoded", "odd", ""):
        headers = (f"Content-Type: {kind}",) if kind else ()
        assert "not valid JSON" in problem(daemon, "POST", "/v1/vms", b"<odd/>", headers=headers)
        answer = api.request(daemon.run_dir / "api.sock", "POST", "/v1/vms/bystander/qmp", {"execute": "query-status"}, headers)
        assert answer.status == 200 and answer.json["return"]["running"]


HEAD = b"POST /v1/vms HTTP/1.1\r\nHost: droverd\r\n"
# Bytes that are no request, or one that does not end. Any answer is a refusal; none (the connection is closed) will do.
RAW = {
    "TLS": b"\x16\x03\x01\x02\x00" * 100 + b"\r\n\r\n",
    "HTTP/0.9": b"GET /v1/vms\r\n\r\n",
    "no Host": b"GET /v1/vms HTTP/1.1\r\n\r\n",
    "a header of 2 MB": b"GET /v1/vms HTTP/1.1\r\nHost: d\r\nX: " + b"x" * (2 * MIB) + b"\r\n\r\n",
    "200,000 headers": b"GET /v1/vms HTTP/1.1\r\nHost: d\r\n" + b"X-A: b\r\n" * 200_000 + b"\r\n",
    "a header of 40 MB without an end": b"GET /v1/vms HTTP/1.1\r\nHost: d\r\nX: " + b"x" * (40 * MIB),
    "a path of 2 MB": b"GET /v1/vms/" + b"x" * (2 * MIB) + b" HTTP/1.1\r\nHost: d\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n{}",
    "a length beyond all": HEAD + b"Content-Length: 99999999999999999\r\n\r\n{}",
    "less than was said": HEAD + b"Content-Length: 50\r\n\r\n{}",
    "2 MB in chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + b"x" * MIB + b"\r\n") * 2 + b"0\r\n\r\n",
    "an odd chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nodd\r\n",
    "100 MB in chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + b"x" * MIB + b"\r\n") * 100,
}


@pytest.mark.parametrize("case", RAW)
def test_what_is_no_request_is_refused(daemon, case):
    answer = api.send(daemon.run_dir / "api.sock", RAW[case], end=True)
    assert answer.status == 0 or 400 <= answer.status < 500, answer


def high_water_mib(pid):
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if line.startswith("VmHWM:")) / 1024


def test_many_connections_and_streams_are_bounded(daemon):
    """64 that say nothing; those beyond are told so, and when they have gone all is as before."""
    path = daemon.run_dir / "api.sock"
    before = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
    idle = [api.connect(path) for _ in range(64)]
    try:
        for client in idle:
            client.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n" + b" " * 100_000)
        def is_full():
            answer = api.request(path, "GET", "/v1/vms")
            return answer.status == 503 and answer.is_problem()
        wait_until(is_full, 30, "droverd to say that it has too many clients")
    finally:
        for client in idle:
            client.close()
    wait_until(lambda: daemon.run("list", check=False).returncode == 0, 30, "droverd to have room again")
    streams = [api.connect(path) for _ in range(40)]
    try:
        for client in streams:
            client.sendall(b"GET /v1/events HTTP/1.1\r\nHost: d\r\n\r\n")
        answers = [client.recv(15) for client in streams]
        assert answers.count(b"HTTP/1.1 200 OK") == 32 and answers.count(b"HTTP/1.1 503 Se") == 8
        for _ in range(20):  # none of them reads what happens
            daemon.run("pause", "bystander")
            daemon.run("resume", "bystander")
    finally:
        for client in streams:
            client.close()
    wait_until(lambda: len(os.listdir(f"/proc/{daemon.process.pid}/fd")) <= before + 2, 30, "droverd to let go of its clients")


def test_memory_stayed_bounded_through_all_of_this(daemon):
    assert high_water_mib(daemon.process.pid) < 100


# --- A full disk ---


class SmallDisk:
    """A file system of a few MiB under the state directory, that can be filled and emptied; never left mounted."""

    def __init__(self, path):
        self.path, self.filler = path, path / "filler"

    def __enter__(self):
        self.path.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs", self.path)
        return self

    def fill(self):
        with open(self.filler, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass

    def empty(self):
        self.filler.unlink()

    def __exit__(self, *_):
        run("umount", "-l", self.path, check=False)


@pytest.fixture
def small():
    """A droverd whose state directory has little room: (daemon, disk)."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small file system")
    daemon = drover.Daemon(env={"DROVER_HOLD_AT": "start,resume"})
    try:
        with SmallDisk(daemon.state_dir) as disk, daemon:
            yield daemon, disk
    finally:
        shutil.rmtree(daemon.dir, ignore_errors=True)  # what the mount kept


FULL = "database or disk is full"


def test_on_a_full_disk_nothing_begins_and_nothing_is_lost(small):
    daemon, disk = small
    vm = drover.Witness(daemon, ram="131080k", mem=8, rate=10)
    daemon.run("run", "other", "--", *guest.without_guest("-qmp", f"unix:{daemon.dir}/theirs,server=on,wait=off"))
    before = world(daemon)
    disk.fill()
    full = world(daemon)["files"]
    for command in (("run", "new", "--", *guest.without_guest()), ("upgrade", vm.name, "--qemu", guest.qemu("10.0")),
                    ("forget", vm.name, "--force")):
        error = daemon.refused(*command)
        names(error, str(daemon.state_dir / "drover.db"), FULL)
        assert "room" in error["remedy"] and error["code"] == "io"
    assert world(daemon) == {**before, "files": full}, "nothing has come, nothing has gone"
    daemon.run("pause", vm.name)
    daemon.run("resume", vm.name)
    daemon.run("stop", "other", "--force")
    vm.healthy()
    disk.empty()
    daemon.run("forget", "other")
    daemon.run("run", "new", "--", *guest.without_guest())
    assert upgraded_through(daemon, vm)["state"] == "succeeded"
    vm.healthy()
    vm.close()


def held_upgrade(daemon, vm):
    return daemon.spawn("upgrade", vm.name, "--qemu", guest.qemu("10.0"), "--json")


def wait_held(daemon, stage):
    hold = daemon.run_dir / "hold"
    wait_until(lambda: hold.exists() and hold.read_text() == stage, 60, lambda: f"stage {stage}; droverd: {daemon.log()[-800:]}")
    return hold


def upgraded_through(daemon, vm):
    """The job of an upgrade that is let through each of its holds."""
    command = held_upgrade(daemon, vm)
    for stage in ("start", "resume"):
        wait_held(daemon, stage).unlink()
    return json.loads(command.communicate(timeout=120)[0])


def test_a_disk_that_fills_up_in_an_upgrade_costs_no_guest(small):
    """Before the point of no return the upgrade fails and the guest runs where it was; after it, it is brought to its end."""
    daemon, disk = small
    vm = drover.Witness(daemon, ram="131080k", mem=8, rate=10)
    old = vm.pid
    command = held_upgrade(daemon, vm)
    hold = wait_held(daemon, "start")
    disk.fill()
    hold.unlink()
    job = json.loads(command.communicate(timeout=120)[0])
    assert command.returncode == 1 and job["state"] == "failed" and FULL in job["error"]["message"]
    assert vm.pid == old and daemon.qemus() == [old]
    vm.healthy()
    disk.empty()
    command = held_upgrade(daemon, vm)
    wait_held(daemon, "start").unlink()
    hold = wait_held(daemon, "resume")
    disk.fill()
    hold.unlink()
    command.communicate(timeout=120)
    vm.healthy()
    new = vm.pid
    assert new != old and daemon.qemus() == [new], "one copy runs, under the new QEMU"
    disk.empty()
    daemon.restart()
    assert vm.pid == new and daemon.show(vm.name)["qemu_version"].startswith("10.0")
    vm.healthy()
    vm.close()
