# SPDX-License-Identifier: LGPL-2.1-or-later
"""src/api/openapi.yaml is right: as a document, against the table of routes, and against what a droverd with real QEMUs answers."""

import base64
import contextlib
import json
import os
import re
import socket
import time

import pytest

from lib import drover, guest, openapi
from lib.disks import new_image
from lib.pair import Pair
from lib.procs import wait_until

SMALL = {"ram": "131080k", "mem": 32, "rate": 50}
# Operations that test_every_operation() sees only a problem of, and where they succeed.
ELSEWHERE = {("POST", "/v1/vms/{vm}/migrate/recover"): "needs a link that broke in post-copy: test_move_recovery.py"}


# --- The document ---


@pytest.fixture(scope="module")
def spec():
    return openapi.Spec()


def every_node(node, path="#"):
    yield path, node
    for key, one in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from every_node(one, f"{path}/{key}")


def test_the_document_is_well_formed(spec):
    document = spec.document
    assert document["openapi"].startswith("3.1.") and document["info"]["title"] and document["info"]["version"]
    used = set()
    for path, node in every_node(document):
        if isinstance(node, dict) and isinstance(node.get("$ref"), str):
            assert spec.at(node["$ref"]) is not None, path
            used.add(node["$ref"])
    parts = {f"#/components/{kind}/{name}" for kind, named in document["components"].items() if kind != "securitySchemes" for name in named}
    assert parts <= used, f"never referred to: {parts - used}"
    names = [operation["operationId"] for operation in spec.operations.values()]
    assert len(names) == len(set(names))
    tags = {tag["name"] for tag in document["tags"]}
    for (method, path), operation in spec.operations.items():
        where = f"{method} {path}"
        assert operation["summary"] and set(operation["tags"]) <= tags, where
        in_path = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert in_path == set(re.findall(r"\{(\w+)\}", path)) and all(one["required"] for one in operation["parameters"] if one["in"] == "path"), where
        assert "default" in operation["responses"] and len(operation["responses"]) == 2, where
        assert all(spec.resolve(answer)["description"] for answer in operation["responses"].values()), where


def test_every_schema_is_one(spec):
    for name in spec.document["components"]["schemas"]:
        schema = spec.schema({"$ref": f"#/components/schemas/{name}"})
        openapi.jsonschema.Draft202012Validator.check_schema(schema)
        if "properties" in schema:
            assert set(schema.get("required", [])) <= set(schema["properties"]), name


def test_it_has_the_routes_and_no_others(spec):
    described = {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in spec.operations}
    rows = openapi.routes()
    assert len(rows) == len(set(rows)) > 40
    assert set(rows) == described, set(rows) ^ described


def test_the_judge_can_fail(spec):
    """What is not described, of another type or missing is seen, also deep inside and behind allOf and anyOf."""
    vm = dict(name="a", state="running", pid=1, qemu_version="7.2", machine="q35", uuid="u", memory_mode="shared", adopted=False, job=None)
    spec.check(vm, {"$ref": "#/components/schemas/Vm"}, "a right one")
    more = dict(vm, argv_given=[], argv_running=[], cwd="/", qmp=None, console=None, log=None, exit=None, note=None, upgrades=0,
                memory=None, disks=None, nics=None)
    spec.check(more, {"$ref": "#/components/schemas/VmDetails"}, "a right one")
    for wrong, name in [(dict(vm, surplus=1), "Vm"), (dict(vm, pid="1"), "Vm"), (dict(vm, state="odd"), "Vm"),
                        ({k: v for k, v in vm.items() if k != "uuid"}, "Vm"), (more, "Vm"), (dict(more, surplus=1), "VmDetails"),
                        (vm, "VmDetails"), (dict(more, memory={"bytes": 1}), "VmDetails"),
                        (dict(more, nics=[{"id": "n", "odd": 1}]), "VmDetails")]:
        with pytest.raises(AssertionError):
            spec.check(wrong, {"$ref": f"#/components/schemas/{name}"}, "a wrong one")


# --- Against real ones ---


@pytest.fixture(scope="module")
def pair():
    with Pair() as both:
        yield both


class World:
    """A client of each host, and what both have seen."""

    def __init__(self, spec, pair):
        self.spec, self.pair = spec, pair
        self.a, self.b = (openapi.Client.of(spec, daemon) for daemon in (pair.a, pair.b))

    def ended(self, client, jobs, until=None):
        """The job, when it has ended well, or come to the stage `until`."""
        job, = jobs
        def there():
            shown = client.call("GET", f"/v1/jobs/{job['id']}?wait=1")
            assert shown["state"] in ("queued", "running", "succeeded"), shown
            return shown if shown["state"] == "succeeded" or (until and shown["stage"] == until) else None

        return wait_until(there, 90, f"job {job['id']} ({job['kind']}) to end")


@pytest.fixture
def world(spec, pair):
    yield World(spec, pair)
    pair.clear()


def argv_of(daemon, *more):
    disk = new_image(daemon.dir / "disk.qcow2", "qcow2", 8)
    return [str(word) for word in guest.without_guest(
        "-accel", "tcg", "-serial", "stdio", "-drive", f"if=none,id=d0,format=qcow2,file={disk}", "-device", "virtio-blk-pci,drive=d0,id=blk0",
        "-drive", "if=none,id=cd0,media=cdrom", "-device", "ide-cd,drive=cd0,id=cd", "-netdev", "user,id=net0",
        "-device", "virtio-net-pci,netdev=net0,romfile=", *more)]


def do_daemon(world):
    assert world.a.call("GET", "/v1/version")["vms"] == 0
    assert world.a.call("GET", "/v1/openapi.yaml") == openapi.PATH.read_text()
    assert "drover_vms" in world.a.call("GET", "/metrics")
    for page in ("/ui", "/ui/"):
        assert "<html" in world.a.call("GET", page)
    for file in ("app.css", "app.js", "icon.svg"):
        assert world.a.call("GET", f"/ui/{file}")
    assert world.a.call("GET", "/v1/vms") == [] == world.a.call("GET", "/v1/jobs")


def do_vm(world):
    a, argv = world.a, argv_of(world.pair.a)
    vm = a.call("POST", "/v1/vms", {"name": "vm", "argv": argv, "cwd": "/", "env": ["PATH=/usr/bin:/bin"], "memory": "shared"}, status=201)
    assert vm["state"] == "running" and [one["name"] for one in a.call("GET", "/v1/vms")] == ["vm"]
    shown = a.call("GET", "/v1/vms/vm")
    assert shown["argv_given"] == argv and shown["memory"]["bytes"] == 16 << 20 and len(shown["disks"]) == 2 and len(shown["nics"]) == 1
    assert a.call("POST", "/v1/vms/vm/pause")["state"] == "paused"
    assert a.call("POST", "/v1/vms/vm/resume")["state"] == "running"
    assert a.call("POST", "/v1/vms/vm/qmp", {"execute": "query-status"})["return"]["running"]
    assert "executed" not in a.call("POST", "/v1/vms/vm/qmp", {"execute": "query-name", "arguments": {}})["return"]


def do_console(world):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(world.pair.a.run_dir / "api.sock"))
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall(f"GET /v1/vms/vm/console HTTP/1.1\r\nHost: d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                     "Sec-WebSocket-Version: 13\r\n\r\n".encode())
        status = int(sock.recv(4096).split()[1])
    assert str(status) in world.spec.operations["GET", "/v1/vms/{vm}/console"]["responses"]
    world.a.seen.add(("GET", "/v1/vms/{vm}/console"))


def do_upgrade(world):
    report, = world.a.call("POST", "/v1/upgrade/check", {"vms": ["vm"], "qemu": guest.qemu("7.2")})
    assert report["ok"], report
    jobs = world.a.call("POST", "/v1/upgrade", {"all": True, "memory": "auto", "parallel": 2}, status=202)
    job = world.ended(world.a, jobs)
    assert job["result"]["pid_after"] == world.a.call("GET", "/v1/vms/vm")["pid"]
    assert [one["id"] for one in world.a.call("GET", "/v1/jobs")] == [job["id"]]
    report = world.a.call("GET", f"/v1/jobs/{job['id']}/report")
    assert report["job"]["id"] == job["id"] and report["phases"] and report["pause"]["parts"], report
    assert [one["kind"] for one in world.a.call("GET", "/v1/stats?kind=upgrade")["kinds"]] == ["upgrade"]


def do_libvirt(world):
    """With a drover-libvirt that needs no libvirt; test_libvirt_cli.py has the real one."""
    with drover.Daemon(env={"DROVER_LIBVIRT": str(openapi.REPO / "tests" / "e2e" / "lib" / "fake_libvirt.py")}) as daemon:
        a = openapi.Client.of(world.spec, daemon)
        report = a.call("POST", "/v1/libvirt/check", {"uri": "qemu:///system", "domains": ["one", "bad"], "emulator": "/opt/qemu", "untested": True})
        assert [one["ok"] for one in report["domains"]] == [True, False]
        assert a.call("POST", "/v1/libvirt/upgrade", {"domains": ["one", "bad"], "memory": "auto", "parallel": 2}, status=202)["active"]
        run = wait_until(lambda: not (shown := a.call("GET", "/v1/libvirt/upgrade?wait=5000"))["active"] and shown, 30, "the run to end")
        assert [one["state"] for one in run["domains"]] == ["done", "refused"]
        world.a.seen |= a.seen


def do_disks(world):
    a, copy = world.a, str(world.pair.a.dir / "copy.qcow2")
    assert [disk["name"] for disk in a.call("GET", "/v1/vms/vm/disks")] == ["blk0", "cd"]
    jobs = a.call("POST", "/v1/vms/vm/disks/copy", {"copies": [{"disk": "blk0", "target": copy}], "format": "qcow2", "bandwidth": 100})
    world.ended(a, jobs, until="ready")
    assert a.call("GET", "/v1/vms/vm/disks")[0]["job"]["type"] == "mirror"
    a.call("POST", "/v1/vms/vm/disks/bandwidth", {"mib": 50})
    assert a.call("POST", "/v1/vms/vm/disks/pivot", {})["job"] == jobs[0]["id"]
    assert world.ended(a, jobs)["result"]["kept"] == "copy"
    jobs = a.call("POST", "/v1/vms/vm/disks/copy", {"copies": [{"disk": "blk0", "target": copy + "2"}], "sync": "full"})
    world.ended(a, jobs, until="ready")
    a.call("POST", "/v1/vms/vm/disks/abort")
    assert world.ended(a, jobs)["result"]["kept"] == "disk"


def do_bitmaps(world):
    a = world.a
    for name in ("one", "two"):
        assert a.call("POST", "/v1/vms/vm/bitmaps", {"disk": "blk0", "bitmap": name, "granularity": 65536}, status=201)["recording"]
    assert {one["name"] for one in a.call("GET", "/v1/vms/vm/bitmaps?disk=blk0")} == {"one", "two"}
    for verb, recording in (("disable", False), ("enable", True)):
        assert a.call("POST", f"/v1/vms/vm/bitmaps/{verb}", {"disk": "blk0", "bitmap": "one"})["recording"] == recording
    a.call("POST", "/v1/vms/vm/bitmaps/merge", {"disk": "blk0", "bitmap": "one", "from": ["two"]})
    assert a.call("GET", "/v1/vms/vm/disks")[0]["bitmaps"]
    for name in ("one", "two"):
        a.call("POST", "/v1/vms/vm/bitmaps/remove", {"disk": "blk0", "bitmap": name})
    assert a.call("GET", "/v1/vms/vm/bitmaps") == []


def do_backups(world):
    a, where = world.a, world.pair.a.dir
    jobs = a.call("POST", "/v1/vms/vm/backups", {"target": str(where / "backup.qcow2"), "disks": ["blk0"], "bitmap": "day", "format": "qcow2"})
    assert not world.ended(a, jobs)["result"]["incremental"]
    assert [one["bitmap"] for one in a.call("GET", "/v1/vms/vm/backups")] == ["day"]
    jobs = a.call("POST", "/v1/vms/vm/backups/serve", {"listen": f"unix:{where}/nbd.sock", "incremental": "day"})
    served = world.ended(a, jobs, until="serve")["result"]
    assert served["disks"][0]["context"], served
    assert a.call("POST", "/v1/vms/vm/backups/finish", {"success": True}) == {"job": jobs[0]["id"]}
    assert world.ended(a, jobs)["result"]["success"]


def do_snapshots(world):
    a = world.a
    job = world.ended(a, a.call("POST", "/v1/vms/vm/snapshots", {"name": "first", "description": "for a test"}))
    assert job["result"]["name"] == "first"
    assert world.ended(a, a.call("POST", "/v1/vms/vm/disks/pull", {"disk": "blk0", "bandwidth": 100}))["result"]["disk"] == "blk0"
    assert a.call("POST", "/v1/vms/vm/snapshots/forget", {"snapshot": "first"})["name"] == "first"
    world.ended(a, a.call("POST", "/v1/vms/vm/snapshots", {"name": "second", "memory": True}))
    assert a.call("GET", "/v1/vms/vm/snapshots")[0]["memory"]["bytes"] > 0
    job = world.ended(a, a.call("POST", "/v1/vms/vm/snapshots/revert", {"snapshot": "second", "discard": True}))
    assert job["result"]["memory"]
    job = world.ended(a, a.call("POST", "/v1/vms/vm/snapshots/merge", {"snapshot": "second", "delete": True}))
    assert job["result"]["snapshot"] == "second" and a.call("GET", "/v1/vms/vm/snapshots") == []


def do_adopt(world):
    a = world.a
    pid = a.call("GET", "/v1/vms/vm")["pid"]
    a.call("DELETE", "/v1/vms/vm?force=true", status=204)
    assert a.call("POST", "/v1/vms/adopt", {"name": "again", "pid": pid}, status=201)["pid"] == pid
    assert a.call("POST", "/v1/vms/again/stop", {"force": True, "timeout": 20})["state"] == "stopped"
    assert a.call("GET", "/v1/vms/again")["memory"] is None
    a.call("DELETE", "/v1/vms/again", status=204)


def do_peers(world):
    a = world.a
    a.call("POST", "/v1/peers", {"name": "c", "host": "192.0.2.7", "port": 7000, "pin": None}, status=201)
    assert [one["name"] for one in a.call("GET", "/v1/peers")] == ["b", "c"]
    a.call("DELETE", "/v1/peers/c", status=204)
    assert a.call("POST", "/v1/peers/b/test")["certificate"] == "b"


def do_migrate(world):
    """A guest with RAM to move, slowly, so that there is time to ask for things."""
    a, vm = world.a, drover.Witness(world.pair.a, "mover", **SMALL)
    with contextlib.closing(vm):
        report, = a.call("POST", "/v1/migrate/check", {"vms": [vm.name], "peer": "b"})
        assert report["ok"] and report["link_mib"] > 0, report
        jobs = a.call("POST", "/v1/migrate", {"vms": [vm.name], "peer": "b", "bandwidth": 2, "timeout": 300}, status=202)
        moving = wait_until(lambda: (shown := a.call("GET", f"/v1/jobs/{jobs[0]['id']}"))["progress"] and shown, 60, "the move to begin")
        assert moving["stage"] == "transfer", moving
        a.call("POST", f"/v1/vms/{vm.name}/migrate/downtime", {"ms": 200})
        a.call("POST", f"/v1/vms/{vm.name}/migrate/bandwidth", {"mib": 4})
        assert a.call("GET", f"/v1/vms/{vm.name}/migrate/bandwidth")["mib"] == 4
        a.call("POST", f"/v1/vms/{vm.name}/migrate/recover", status=409)
        a.call("POST", f"/v1/vms/{vm.name}/migrate/postcopy")
        result = world.ended(a, jobs)["result"]
        assert result["postcopy"] and result["peer"] == "b", result
        arrived, = world.b.call("GET", "/v1/jobs")
        assert arrived["kind"] == "incoming" and arrived["vm"] == vm.name
        jobs = world.b.call("POST", "/v1/migrate", {"all": True, "peer": "a", "bandwidth": 1, "at_a_time": 1}, status=202)
        world.b.call("POST", f"/v1/jobs/{jobs[0]['id']}/cancel")
        wait_until(lambda: world.b.call("GET", f"/v1/jobs/{jobs[0]['id']}?wait=5")["state"] == "cancelled", 60, "the cancel")


def read_events(sock, until, timeout=30):
    """The data of the events that come, up to the one for which until(data) is true."""
    sock.settimeout(timeout)
    events, text = [], ""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        more = sock.recv(65536).decode()
        assert more, f"the stream ended: {events}"
        text += more
        *blocks, text = text.split("\n\n")
        for block in blocks:
            found = re.search(r"event: (\w+)\ndata: (.*)$", block)
            if found:
                events.append(json.loads(found[2]))
                assert events[-1]["type"] == found[1]
                if until(events[-1]):
                    return events
    raise AssertionError(f"not within {timeout} s: {events}")


def open_events(daemon, query=""):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(daemon.run_dir / "api.sock"))
    sock.sendall(f"GET /v1/events{query} HTTP/1.1\r\nHost: d\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # and not a byte of the first event
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 200") and b"text/event-stream" in head
    return sock


def do_events(world):
    content = world.spec.operations["GET", "/v1/events"]["responses"]["200"]["content"]["text/event-stream"]
    with contextlib.closing(open_events(world.pair.a, "?vm=vm")) as sock:
        world.a.call("POST", "/v1/vms/vm/pause")
        world.a.call("POST", "/v1/vms/vm/resume")
        jobs = world.a.call("POST", "/v1/upgrade", {"vms": ["vm"]}, status=202)
        events = read_events(sock, lambda event: event["type"] == "job" and event["job"]["state"] == "succeeded")
    for event in events:
        world.spec.check(event, content["x-event-data"], "an event")
    assert {event["type"] for event in events} == {"vm", "job"}
    assert {event["vm"]["state"] for event in events if event["type"] == "vm"} >= {"paused", "running"}
    with contextlib.closing(open_events(world.pair.a, f"?job={jobs[0]['id']}")) as sock:
        event, = read_events(sock, lambda event: True)
        world.spec.check(event, content["x-event-data"], "an event")
        while sock.recv(4096):  # it ends by itself
            pass
    world.a.seen.add(("GET", "/v1/events"))


def do_refusals(world):
    """A member that is not described is refused, one that is described is known."""
    for (method, path), operation in world.spec.operations.items():
        if method != "POST" or path.startswith("/v1/vms/{vm}/migrate/"):  # those ask the job that is under way
            continue
        target = re.sub(r"\{vm\}", "vm", re.sub(r"\{(job|peer)\}", "1", path))
        body = world.spec.resolve(operation.get("requestBody"))
        problem = world.a.call(method, target, {"surplus": True}, status=400)
        assert problem["code"] == "invalid", problem
        properties = body["content"]["application/json"]["schema"] if body else {}
        for name in world.spec.schema(properties).get("properties", {}):
            if "/disks/" in path and "copy" not in path and "pull" not in path:
                continue  # these ask a job, too
            answer = world.a.call(method, target, {name: [[]]}, status=400)
            assert "unknown member" not in answer["detail"], (path, name, answer)


def test_every_operation(world):
    do_daemon(world)
    do_vm(world)
    do_console(world)
    do_upgrade(world)
    do_libvirt(world)
    do_events(world)
    do_refusals(world)
    do_disks(world)
    do_bitmaps(world)
    do_backups(world)
    do_snapshots(world)
    do_adopt(world)
    do_peers(world)
    do_migrate(world)
    seen = world.a.seen | world.b.seen
    assert seen | set(ELSEWHERE) == set(world.spec.operations), set(world.spec.operations) - seen - set(ELSEWHERE)
    assert not seen & set(ELSEWHERE), "no exception is needed any more"


# --- Problems ---


BIG = json.dumps({"name": "x" * (2 << 20)})
PROBLEMS = [
    ("POST", "/v1/vms", "{", 400, "invalid"), ("POST", "/v1/vms", "[]", 400, "invalid"), ("POST", "/v1/vms", None, 400, "invalid"),
    ("POST", "/v1/vms", '{"name":"a b","argv":["x"]}', 400, "invalid"), ("POST", "/v1/vms", '{"name":"x","argv":"q"}', 400, "invalid"),
    ("POST", "/v1/vms/vm/pause", '{"x":1}', 400, "invalid"), ("GET", "/v1/jobs/1?wait=61", None, 400, "invalid"),
    ("DELETE", "/v1/vms/vm?force=perhaps", None, 400, "invalid"),
    ("POST", "/v1/vms/adopt", '{"name":"x","pid":0}', 400, "invalid"),
    ("GET", "/", None, 404, "not-found"), ("GET", "/v1/vms/none", None, 404, "not-found"), ("GET", "/v1/jobs/999", None, 404, "not-found"),
    ("POST", "/v1/jobs/999/cancel", None, 404, "not-found"), ("GET", "/v1/events?job=999", None, 404, "not-found"),
    ("GET", "/v1/vms/none/disks", None, 404, "not-found"), ("POST", "/v1/upgrade", '{"vms":["none"]}', 404, "not-found"),
    ("DELETE", "/v1/peers/none", None, 404, "not-found"), ("POST", "/v1/peers/none/test", None, 404, "not-found"),
    ("PUT", "/v1/vms", None, 405, "invalid"), ("DELETE", "/v1/version", None, 405, "invalid"), ("GET", "/v1/upgrade", None, 405, "invalid"),
    ("POST", "/v1/vms", '{"name":"vm","argv":["x"]}', 409, "exists"), ("DELETE", "/v1/vms/vm", None, 409, "refused"),
    ("POST", "/v1/vms/vm/qmp", '{"execute":"quit"}', 409, "refused"), ("POST", "/v1/vms/vm/disks/pivot", None, 409, "refused"),
    ("POST", "/v1/vms", BIG, 413, "invalid"),
    ("POST", "/v1/vms", '{"name":"x","argv":["/bin/true"]}', 422, "unsupported"),
    ("POST", "/v1/vms/adopt", '{"name":"x","pid":1}', 422, "unsupported"),
    ("GET", "/v1/vms/vm/console", None, 426, "invalid"),
    ("POST", "/v1/vms/vm/qmp", '{"execute":"no-such-command"}', 502, "qmp"),
    ("POST", "/v1/vms/vm/stop", '{"timeout":1}', 504, "timeout"),
]


@pytest.fixture(scope="module")
def problems(spec):
    with drover.Daemon() as daemon:
        client = openapi.Client.of(spec, daemon)
        client.call("POST", "/v1/vms", {"name": "vm", "argv": [*guest.without_guest(), "-serial", "stdio"]}, status=201)
        yield client


@pytest.mark.parametrize("method, target, raw, status, code", PROBLEMS,
                         ids=lambda value: value[:40] if isinstance(value, str) else None)
def test_problems(problems, method, target, raw, status, code):
    problem = problems.call(method, target, raw=raw, status=status)
    assert problem["code"] == code and problem["detail"], problem


def test_every_status_of_a_problem_is_in_the_prose():
    """docs/API.md has the code and the status of each."""
    text = (openapi.REPO / "docs" / "API.md").read_text()
    statement = re.search(r"Codes to status: (.*?)\.\n", text, re.S)[1]
    prose = dict(re.findall(r"([a-z-]+) (\d{3})", statement))
    assert set(prose) == set(openapi.load()["components"]["schemas"]["Problem"]["properties"]["code"]["enum"])
    for *_, status, code in PROBLEMS:
        if status not in (405, 413, 426):  # what only HTTP knows of
            assert prose[code] == str(status), (code, status)


def test_head_is_get_without_a_body(problems):
    for path in ("/v1/version", "/v1/openapi.yaml", "/metrics", "/v1/vms/vm"):
        connection = problems.connect(20)
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read() == b"" and int(answer.headers["Content-Length"]) > 0
        connection.close()
