# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whoever should not be at droverd's port: it stays up, its memory bounded, and the moves of others go on. And hosts that have no
room for what comes."""

import contextlib
import json
import resource
import socket
import ssl
import struct

import pytest

from lib import drover, guest, hosts, peers
from lib.held import SmallDisk
from lib.pair import ADDRESSES, PORT, Pair
from lib.procs import run, wait_until

SMALL = {"ram": "131080k", "mem": 32, "rate": 50}
B = (ADDRESSES["b"], PORT)
MEMORY = 128 << 20  # bytes that droverd may have, whoever knocks


@pytest.fixture(scope="module")
def pair():
    with Pair() as both:
        yield both


@pytest.fixture
def vm(pair):
    one = drover.Witness(pair.a, "vm", **SMALL)
    yield one
    one.close()
    pair.clear()


def memory_of(daemon):
    for line in open(f"/proc/{daemon.process.pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("droverd has ended")


def goes_on(pair, vm):
    """A move there, in spite of all."""
    pair.migrate(vm)
    vm.healthy()
    assert memory_of(pair.b) < MEMORY


def tls(pair, who=None, kind="client", ca=None):
    """A TLS client with the keys of a host, or with none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if who:
        keys = (ca or pair.keys) / who
        context.load_cert_chain(keys / f"{kind}-cert.pem", keys / f"{kind}-key.pem")
    return context.wrap_socket(peers.connect(B, pair.netns_a), server_hostname="b")


def is_closed(sock):
    """Ended without a word."""
    try:
        return sock.recv(100) == b""
    except (ConnectionResetError, ssl.SSLError):
        return True


def frame(message):
    text = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">I", len(text)) + text


def said_by(sock):
    length = struct.unpack(">I", sock.recv(4))[0]
    return json.loads(sock.recv(length))


@pytest.mark.parametrize("words", [b"", b"\n", b"GET / HTTP/1.0\r\n\r\n", b"SSH-2.0-scan\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 1000,
                                   b"DROVER1 " + b"0" * 64 + b"\n", b"\xff" * 100000], ids=lambda words: repr(words[:12]))
def test_a_scanner_is_told_nothing(pair, vm, words):
    with peers.connect(B, pair.netns_a) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(words)
            sock.shutdown(socket.SHUT_WR)
        assert is_closed(sock)
    goes_on(pair, vm)


def test_who_says_nothing_is_closed(pair):
    with peers.connect(B, pair.netns_a, timeout=20) as sock:
        assert is_closed(sock)  # within 5 s; the socket's own timeout would be an error


@pytest.mark.parametrize("who, kind, why", [(None, None, "certificate"), ("a", "server", "purpose|usage"), ("stranger", "client", "")],
                         ids=["none", "a server's", "another CA's"])
def test_a_certificate_that_is_not_right(pair, vm, tmp_path, who, kind, why):
    run(drover.DROVER, "pki", "init", "--dir", tmp_path / "ca")
    run(drover.DROVER, "pki", "issue", "stranger", "--dir", tmp_path / "ca", "--out", tmp_path / "stranger")
    before = len(pair.b.log())
    # In TLS 1.3 the client is done before the server has seen its certificate.
    with contextlib.suppress(ssl.SSLError, ConnectionResetError), tls(pair, who, kind, tmp_path if who == "stranger" else None) as sock:
        sock.sendall(frame({"drover": {"min": 1, "max": 1}, "kind": "control"}))
        assert is_closed(sock)
    wait_until(lambda: ADDRESSES["a"] in pair.b.log()[before:], 10, "the log to say who was refused")
    goes_on(pair, vm)


def test_a_peer_that_is_not_on_the_list(pair, vm):
    run(drover.DROVER, "pki", "issue", "other", "--dir", pair.keys / "ca", "--out", pair.keys / "other")
    with contextlib.suppress(ssl.SSLError, ConnectionResetError), tls(pair, "other") as sock:
        sock.sendall(frame({"drover": {"min": 1, "max": 1}, "kind": "control"}))
        assert is_closed(sock)
    wait_until(lambda: "'other' is not among the peers" in pair.b.log(), 10, "the log to say why")
    goes_on(pair, vm)


@pytest.mark.parametrize("header", [b"\xff\xff\xff\xff", b"\0\0\0\0", frame(b"garbage"), frame(b"[1,2]"), frame(b"{" * 60000),
                                    frame({"kind": "control"}), frame(b'{"drover":' * 100 + b"1" + b"}" * 100)],
                         ids=["long", "empty", "no JSON", "no object", "deep", "no version", "nested"])
def test_a_header_of_garbage(pair, vm, header):
    with tls(pair, "a") as sock:
        sock.sendall(header)
        with contextlib.suppress(OSError):
            said = sock.recv(65536)
            assert said == b"" or b"error" in said, said
    goes_on(pair, vm)


def test_an_older_and_a_newer_protocol(pair, vm):
    """Of one before the first there is none: tests/unit/test-conn.c plays a server that has left the first behind."""
    for versions, code in (({"min": 0, "max": 0}, "invalid"), ({"min": 7, "max": 9}, "unsupported")):
        with tls(pair, "a") as sock:
            sock.sendall(frame({"drover": versions, "kind": "control"}))
            error = said_by(sock)["error"]
            assert error["code"] == code and "version" in error["message"], error
    with tls(pair, "a") as sock:
        sock.sendall(frame({"drover": {"min": 1, "max": 9}, "kind": "control", "colour": "new"}))
        assert said_by(sock) == {"ok": True, "version": 1}
    goes_on(pair, vm)


def test_a_stream_for_a_job_that_nobody_knows(pair, vm):
    with tls(pair, "a") as sock:
        sock.sendall(frame({"drover": {"min": 1, "max": 1}, "kind": "stream", "move": "nobody's", "epoch": 0, "index": 0}))
        said_by(sock)
        assert is_closed(sock)
    with tls(pair, "a") as sock:
        sock.sendall(frame({"drover": {"min": 1, "max": 1}, "kind": "control"}) +
                     frame({"id": 1, "method": "move.accept", "params": {"move": "nobody's"}}) +
                     frame({"id": 2, "method": "move.qmp", "params": {"move": "nobody's", "execute": "quit"}}) +
                     frame({"id": 3, "method": "format-disk", "params": {}}))
        said_by(sock)
        answers = {}
        while len(answers) < 3:
            message = said_by(sock)
            answers[message.get("id")] = message
            answers.pop(None, None)
        assert answers[1]["result"]["state"] == "discarded"
        assert answers[2]["error"]["code"] == "not-found" and answers[3]["error"]["code"] == "invalid", answers
    goes_on(pair, vm)


def test_ten_thousand_connections(pair, vm):
    """From an address of their own, held open; one that is not theirs gets through."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 16000), max(hard, 16000)))
    pair.netns_a.ip("addr", "add", "10.77.0.9/24", "dev", pair.link.names[0])
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        stack.callback(pair.netns_a.ip, "addr", "del", "10.77.0.9/24", "dev", pair.link.names[0])
        with hosts.inside(pair.netns_a):
            for _ in range(10000):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.bind(("10.77.0.9", 0))
                sock.connect_ex(B)
        goes_on(pair, vm)
        fds = len(list(drover.Path(f"/proc/{pair.b.process.pid}/fd").iterdir()))
        assert fds < 1500, fds
    wait_until(lambda: len(list(drover.Path(f"/proc/{pair.b.process.pid}/fd").iterdir())) < 100, 30, "their descriptors to be closed")


# --- No room ---


def test_a_disk_that_is_full_over_there(pair, vm):
    """The state file cannot be written: the guest stays where it is, and the next try works."""
    pair.b.kill()
    try:
        with SmallDisk(pair.b.state_dir, "4m") as disk:
            pair.b.start()
            pair.b.run("peer", "add", "a", ADDRESSES["a"])
            disk.fill()
            refused = pair.a.refused("migrate", vm.name, "b")
            assert "full" in refused["message"], refused
            assert pair.a.state(vm.name) == "running" and pair.b.qemus() == []
            vm.healthy()
            disk.free()
            goes_on(pair, vm)
            pair.b.run("stop", vm.name, "--force")
            pair.b.kill()
    finally:
        pair.b.start()


def test_no_memory_over_there(pair):
    total = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemTotal:")) << 10
    pair.a.run("run", "big", "--", guest.qemu("7.2"), "-accel", "tcg", "-nodefaults", "-display", "none", "-machine", "pc-q35-7.2",
               "-m", f"{(total >> 20) + 4096}m", "-S")
    try:
        refused = pair.a.refused("migrate", "big", "b")
        assert "MiB" in refused["message"] or any("MiB" in finding["text"] for finding in refused.get("findings", [])), refused
        assert "big" in [one["name"] for one in pair.a.json("list")] and pair.b.json("list") == []
    finally:
        pair.a.run("stop", "big", "--force")
        pair.a.run("forget", "big", check=False)
