# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lists as people and shells read them: --output, --no-headers, colours."""

import json
import os
import pty
import re
import subprocess

import pytest

from lib import drover, guest
from lib.procs import run

# Each list: how it is called, its columns, those of -o wide, and which is its name.
LISTS = {
    "list": (["list"], "name state pid qemu machine ram job", "uuid adopted", "name"),
    "jobs": (["jobs"], "id kind vm state stage started took", "ended error", "id"),
    "peer": (["peer", "list"], "name host port key-id", "added", "name"),
    "disk": (["disk", "list", "web1"], "disk format size allocated backing flags job file", "device backend node", "disk"),
    "snapshot": (["snapshot", "list", "web1"], "snapshot created disks memory state description", "memory-file", "snapshot"),
    "bitmap": (["bitmap", "list", "web1"], "disk bitmap dirty granularity state image", "node", "bitmap"),
    "backup": (["backup", "list", "web1"], "disk bitmap made file", "format", "file"),
}
AWKWARD = "odd\tname\nof \x1b[31ma disk.qcow2"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A droverd with something in each list."""
    directory = tmp_path_factory.mktemp("images")
    run("qemu-img", "create", "-q", "-f", "qcow2", directory / "disk.qcow2", "8M")
    run("qemu-img", "create", "-q", "-f", "qcow2", directory / AWKWARD, "8M")
    with drover.Daemon() as daemon:
        daemon.run("run", "web1", "--", *guest.without_guest(), "-drive", f"file={directory}/disk.qcow2,if=none,id=root,format=qcow2", "-device",
                   "virtio-blk-pci,drive=root,id=vda", "-drive", f"file={directory}/{AWKWARD},if=none,id=odd,format=qcow2", "-device",
                   "virtio-blk-pci,drive=odd,id=vdb")
        daemon.run("run", "web2", "--", *guest.without_guest())
        daemon.run("pause", "web2")
        daemon.run("peer", "add", "host2", "192.0.2.7")
        daemon.run("backup", "web1", directory / "full.qcow2", "--disk", "vda", "--bitmap", "daily")
        daemon.run("snapshot", "create", "web1", "--name", "before", "--disk", "vda", "--description", "two\nlines")
        yield daemon


def titles(columns):
    return [column.upper().replace("-", " ") for column in columns.split()]


def split(line):
    return re.split(r" {2,}", line)


@pytest.mark.parametrize("name", LISTS)
def test_each_list(full, name):
    words, usual, wide, called = LISTS[name]
    rows = full.json(*words)
    assert rows, "there is nothing to list"
    plain = full.run(*words).stdout.splitlines()
    assert split(plain[0]) == titles(usual) and len(plain) == len(rows) + 1, plain
    assert split(full.run(*words, "-o", "wide").stdout.splitlines()[0]) == titles(f"{usual} {wide}")
    assert json.loads(full.run(*words, "--output=json").stdout) == rows
    # A row has a cell for each column, and a line of its own, whatever is in it.
    bare = full.run(*words, "--no-headers").stdout.splitlines()
    assert [len(line.split("\t")) for line in bare] == [len(usual.split())] * len(rows), bare
    # Names: what the row is called, and nothing else.
    names = full.run(*words, "-o", "name").stdout.splitlines()
    assert names == full.run(*words, "-o", called, "--no-headers").stdout.splitlines() and len(names) == len(rows)
    assert full.run(*words, "-o", f"name,{called}", "--no-headers").stdout.splitlines() == [f"{one}\t{one}" for one in names]
    # All columns, in another order.
    backwards = ",".join(reversed(f"{usual} {wide}".split()))
    assert full.run(*words, "-o", backwards).stdout.splitlines()[0].split() == " ".join(reversed(titles(f"{usual} {wide}"))).split() or "-" in backwards
    for output in ("nosuch", "name,nosuch", "", ",", "name,", "Name", "wide,name", "json,name"):
        error = full.refused(*words, "-o", output, code=2)
        assert "there is no column" in error["message"], error
        assert all(column in error["remedy"] for column in usual.split()), error
    assert "exclude each other" in full.refused(*words, "-o", "name", code=2)["message"]


def test_values(full):
    assert full.run("list", "-o", "state,name", "--no-headers").stdout == "running\tweb1\npaused\tweb2\n"
    assert full.run("list", "-o", "pid").stdout.split() == ["PID", *(str(vm["pid"]) for vm in full.json("list"))]
    assert full.run("peer", "list", "-o", "name,key-id").stdout.split("\n")[0].split() == ["NAME", "KEY", "ID"]
    file = full.run("disk", "list", "web1", "-o", "file", "--no-headers").stdout.splitlines()[1]
    assert file.endswith(r"/odd\tname\nof \033[31ma disk.qcow2") and "\x1b" not in file
    assert full.run("snapshot", "list", "web1", "-o", "description", "--no-headers").stdout == "two\\nlines\n"


def test_other_subverbs_take_no_columns(full):
    for words in (("disk", "show", "web1", "vda", "-o", "name"), ("peer", "test", "host2", "--no-headers")):
        assert "takes no --" in full.refused(*words, code=2)["message"]


def test_nothing_to_list(daemon):
    assert daemon.run("list").stdout == "" and "drover run" in daemon.run("list").stderr
    for args in (("-o", "name"), ("-o", "pid", "--no-headers"), ("--no-headers",)):
        result = daemon.run("list", *args)
        assert (result.stdout, result.stderr) == ("", ""), "a loop over it must see nothing"
    assert daemon.json("list") == [] and json.loads(daemon.run("jobs", "-o", "json").stdout) == []


def test_columns_are_looked_at_before_droverd_is(tmp_path):
    done = run(drover.DROVER, "--connect", "unix:/no/such", "list", "-o", "odd", check=False)
    assert done.returncode == 2 and "there is no column 'odd'" in done.stderr


# --- Colours ---


def on_terminal(daemon, *args, env):
    """What it prints to a terminal."""
    controller, terminal = pty.openpty()
    environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE")} | {"TERM": "xterm"} | env
    process = subprocess.Popen(daemon.argv(*args), stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, env=environ)
    os.close(terminal)
    said = b""
    while True:
        try:
            part = os.read(controller, 65536)
        except OSError:
            break
        if not part:
            break
        said += part
    os.close(controller)
    assert process.wait(30) == 0
    return said


@pytest.mark.parametrize("env, args, colored", [
    ({}, (), True), ({"NO_COLOR": "1"}, (), False), ({"NO_COLOR": ""}, (), True), ({"CLICOLOR": "0"}, (), False), ({"CLICOLOR": "1"}, (), True),
    ({"TERM": "dumb"}, (), False), ({}, ("--no-color",), False), ({"CLICOLOR_FORCE": "1"}, ("--no-color",), False),
    ({"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, (), False), ({"CLICOLOR_FORCE": "1", "CLICOLOR": "0"}, (), True), ({}, ("--no-headers",), False),
])
def test_colours_of_a_terminal(full, env, args, colored):
    assert (b"\x1b[32mrunning\x1b[0m" in on_terminal(full, "list", *args, env=env)) == colored


def test_colours_of_a_pipe(full):
    def said(env):
        return run(*full.argv("list"), env={**os.environ, "TERM": "xterm", **env}).stdout

    assert "\x1b" not in said({}) and "\x1b" in said({"CLICOLOR_FORCE": "1"}) and "\x1b" not in said({"CLICOLOR_FORCE": "0"})
