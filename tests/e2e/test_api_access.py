# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may use the API: by group on the unix socket, by certificate over TLS; and what those who may not cannot do to others."""

import contextlib
import http.client
import json
import os
import select
import shutil
import socket
import ssl
import stat
import subprocess
import time

import pytest

from lib import drover, guest, openapi
from lib.procs import run, wait_until

OPERATE, READ, OTHER, USER = 64242, 64243, 64244, 64241  # ids that nobody has
GROUPS = f"[api]\noperate-group={OPERATE}\nread-group={READ}\n"
WHO = {"member": OPERATE, "reader": READ, "stranger": OTHER}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="other users are needed")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def bare(*more):
    return [str(word) for word in guest.without_guest("-accel", "tcg", "-serial", "stdio", *more)]


# --- Groups ---


class Shared(drover.Daemon):
    """A droverd that other users can get at, with a copy of drover for them, and a VM."""

    def start(self, *args, **options):
        self.dir.chmod(0o755)
        shutil.copy(drover.DROVER, self.dir / "drover")
        return super().start(*args, **options)

    def as_group(self, gid, *argv, groups=(), check=False):
        """A program as a user who has these groups; gid: the primary one."""
        listed = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
        return run("setpriv", "--reuid", USER, "--regid", gid, *listed, *argv, check=check, timeout=60, cwd="/",
                   env={"PATH": os.environ["PATH"], "HOME": "/"}, stdin=subprocess.DEVNULL)

    def drover_as(self, gid, *args, groups=()):
        return self.as_group(gid, self.dir / "drover", "--connect", f"unix:{self.run_dir}/api.sock", *args, groups=groups)


@pytest.fixture(scope="module")
def shared():
    with Shared(config=GROUPS) as daemon:
        daemon.run("run", "vm", "--", *bare())
        yield daemon


def test_modes(shared):
    assert stat.S_IMODE((shared.run_dir / "api.sock").stat().st_mode) == 0o666
    assert stat.S_IMODE(shared.run_dir.stat().st_mode) == 0o711
    for path in (shared.run_dir / "vms", shared.run_dir / "vms" / "vm", shared.state_dir):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


READS = [("list",), ("show", "vm"), ("jobs",), ("disk", "list", "vm"), ("snapshot", "list", "vm"), ("peer", "list")]
CHANGES = [("pause", "vm"), ("qmp", "vm", "query-status"), ("stop", "vm", "--force"), ("forget", "vm"), ("console", "vm"),
           ("upgrade", "vm"), ("upgrade", "vm", "--check"), ("cancel", "1"), ("peer", "add", "x", "192.0.2.1"),
           ("run", "other", "--", "/bin/true")]


@pytest.mark.parametrize("how", ["primary", "one of many"])
@pytest.mark.parametrize("who", WHO)
def test_what_groups_may(shared, who, how):
    gid, groups = (WHO[who], ()) if how == "primary" else (USER, (*range(65000, 65100), WHO[who]))
    for args in READS:
        result = shared.drover_as(gid, "--json", *args, groups=groups)
        assert result.returncode == (1 if who == "stranger" else 0), (args, result)
        if who == "stranger":
            error = json.loads(result.stdout)["error"]
            assert error["code"] == "denied" and f"uid {USER}" in error["message"] and str(OPERATE) in error["remedy"], error
    if who == "member":
        for verb, state in (("pause", "paused"), ("resume", "running")):
            assert shared.drover_as(gid, verb, "vm", groups=groups).returncode == 0 and shared.state("vm") == state
        assert json.loads(shared.drover_as(gid, "--json", "qmp", "vm", "query-status", groups=groups).stdout)["return"]["running"]
        return
    for args in CHANGES:
        result = shared.drover_as(gid, *args, groups=groups)
        assert result.returncode == 1 and f"uid {USER} may" in result.stderr and str(OPERATE) in result.stderr, (args, result)
    assert shared.state("vm") == "running"


CALLS = """
import http.client, json, socket, sys
for method, target in json.loads(sys.argv[2]):
    connection = http.client.HTTPConnection("droverd", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(sys.argv[1])
    connection.request(method, target)
    answer = connection.getresponse()
    print(json.dumps([answer.status, answer.getheader("Content-Type"), answer.read().decode() if method != "HEAD" else ""]))
"""


def test_problems_of_those_who_may_not(shared):
    """RFC 9457, also where there is no such path, so that a stranger learns nothing."""
    spec = openapi.Spec()
    targets = [("GET", "/v1/vms"), ("HEAD", "/v1/vms"), ("POST", "/v1/vms/vm/pause"), ("GET", "/nothing"), ("GET", "/v1/vms/none")]
    for who, statuses in (("stranger", [403] * 5), ("reader", [200, 200, 403, 404, 404])):
        result = shared.as_group(WHO[who], "/usr/bin/python3", "-c", CALLS, shared.run_dir / "api.sock", json.dumps(targets), check=True)
        answers = [json.loads(line) for line in result.stdout.splitlines()]
        assert [status for status, *_ in answers] == statuses, answers
        for status, kind, text in answers:
            if status == 403 and text:
                assert kind == "application/problem+json"
                spec.check(json.loads(text), {"$ref": "#/components/schemas/Problem"}, text)


HOLD = """
import socket, sys, time
socks = []
for _ in range(int(sys.argv[2])):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(1)
    try:
        sock.connect(sys.argv[1])
        sock.sendall(b"GET /v1/events HTTP/1.1\\r\\nHost: d\\r\\n" + (b"\\r\\n" if sys.argv[3] == "ask" else b""))
    except OSError:
        pass
    socks.append(sock)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("who, how", [("stranger", "wait"), ("stranger", "ask"), ("reader", "wait"), ("reader", "ask")])
def test_who_may_less_cannot_keep_others_out(shared, who, how):
    argv = ["setpriv", "--reuid", str(USER), "--regid", str(WHO[who]), "--clear-groups", "/usr/bin/python3", "-c", HOLD,
            str(shared.run_dir / "api.sock"), "200", how]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            began = time.monotonic()
            for _ in range(5):
                shared.run("list", timeout=10)
                assert shared.drover_as(OPERATE, "list").returncode == 0
            with contextlib.closing(open_stream(shared)) as stream:
                shared.run("pause", "vm")
                shared.run("resume", "vm")
                assert b"event: vm" in stream.recv(65536)
            assert time.monotonic() - began < 20
        finally:
            holder.stdin.close()
            holder.wait(20)


def open_stream(daemon):
    """An event stream, behind its first comment."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(str(daemon.run_dir / "api.sock"))
    sock.sendall(b"GET /v1/events HTTP/1.1\r\nHost: d\r\n\r\n")
    said = b""
    while b":\n\n" not in said:
        more = sock.recv(4096)
        assert more, said
        said += more
    assert said.startswith(b"HTTP/1.1 200"), said
    return sock


def test_one_group_only():
    """Without a read-group there are only two kinds."""
    with Shared(config=f"[api]\noperate-group={OPERATE}\n") as daemon:
        assert daemon.drover_as(OPERATE, "list").returncode == 0
        result = daemon.drover_as(READ, "list")
        assert result.returncode == 1 and f"the group '{OPERATE}'" in result.stderr, result
    with Shared(config=f"[api]\nread-group={READ}\n") as daemon:
        assert daemon.drover_as(READ, "list").returncode == 0
        result = daemon.drover_as(READ, "forget", "x")
        assert result.returncode == 1 and "as root" in result.stderr, result


def test_without_groups_only_the_owner():
    with Shared() as daemon:
        assert stat.S_IMODE((daemon.run_dir / "api.sock").stat().st_mode) == 0o600
        daemon.run_dir.chmod(0o711)  # or it would end there
        result = daemon.drover_as(OPERATE, "list")
        assert result.returncode == 1 and "ermission" in result.stderr and "[api]" in result.stderr, result


# --- TLS ---


class Keys:
    """A CA and the keys of a host, of clients and of others."""

    def __init__(self, base):
        self.base = base
        for ca in ("ca", "other-ca"):
            run(drover.DROVER, "pki", "init", "--dir", base / ca)
        run(drover.DROVER, "pki", "issue", "localhost", "--address", "127.0.0.1", "--dir", base / "ca", "--out", base / "host")
        for name in ("alice", "bob", "eve", "revoked"):
            run(drover.DROVER, "pki", "issue", name, "--client", "--dir", base / "ca", "--out", base / name)
        run(drover.DROVER, "pki", "issue", "alice", "--client", "--dir", base / "other-ca", "--out", base / "impostor")
        shutil.copy(base / "ca" / "ca-cert.pem", base / "impostor")
        self._revoke("revoked")

    def _revoke(self, name):
        template = self.base / "crl.tmpl"
        template.write_text("crl_next_update = 100\ncrl_number = 1\n")
        run("certtool", "--generate-crl", "--load-ca-privkey", self.base / "ca" / "ca-key.pem", "--load-ca-certificate",
            self.base / "ca" / "ca-cert.pem", "--load-certificate", self.base / name / "client-cert.pem", "--template", template,
            "--outfile", self.base / "host" / "ca-crl.pem")

    def context(self, name=None, version=None):
        """For Python; name None: no certificate."""
        context = ssl.create_default_context(cafile=self.base / "ca" / "ca-cert.pem")
        if name:
            context.load_cert_chain(self.base / name / "client-cert.pem", self.base / name / "client-key.pem")
        if version:
            context.maximum_version = version
        return context


class Remote(drover.Daemon):
    """A droverd whose API is on TLS, too."""

    def __init__(self, keys, more="clients=alice;revoked;[0-9]*\nreaders=BOB\n"):
        self.keys, self.port = keys, free_port()
        super().__init__(config=f"[tls]\ndir={keys.base}/host\n[api]\naddress=127.0.0.1\nport={self.port}\n{more}")

    def remote(self, name, *args, host="127.0.0.1", env=None, **options):
        environ = {key: value for key, value in os.environ.items() if not key.startswith("DROVER_")}
        argv = [drover.DROVER, *(["--connect", f"tls://{host}:{self.port}", "--pki", self.keys.base / name] if not env else []), *args]
        return run(*argv, check=False, timeout=options.pop("timeout", 60), env={**environ, **(env or {})}, stdin=subprocess.DEVNULL)

    def http(self, name, timeout=20):
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=self.keys.context(name), timeout=timeout)

    def socket(self, name, timeout=20):
        return self.keys.context(name).wrap_socket(socket.create_connection(("127.0.0.1", self.port), timeout), server_hostname="127.0.0.1")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def remote(keys):
    with Remote(keys) as daemon:
        daemon.run("run", "vm", "--", *bare())
        yield daemon


def test_all_verbs_over_tls(remote):
    listed = remote.remote("alice", "--json", "list")
    assert [vm["name"] for vm in json.loads(listed.stdout)] == ["vm"], listed
    for verb in ("pause", "resume"):
        assert remote.remote("alice", verb, "vm", host="localhost").returncode == 0
    upgraded = remote.remote("alice", "--json", "upgrade", "vm", timeout=120)
    assert json.loads(upgraded.stdout)["state"] == "succeeded", upgraded
    by_environment = remote.remote("alice", "jobs", env={"DROVER_CONNECT": f"tls://localhost:{remote.port}", "DROVER_PKI": str(remote.keys.base / "alice")})
    assert by_environment.returncode == 0 and "upgrade" in by_environment.stdout, by_environment


def test_answers_over_tls_are_described(remote):
    client = openapi.Client(openapi.Spec(), lambda timeout: remote.http("alice", timeout))
    assert client.call("GET", "/v1/vms/vm")["name"] == "vm"
    assert client.call("GET", "/v1/openapi.yaml") == openapi.PATH.read_text()
    assert client.call("GET", "/v1/vms/none", status=404)["code"] == "not-found"
    assert client.call("POST", "/v1/vms", raw=json.dumps({"name": "x" * (2 << 20)}), status=413)["code"] == "invalid"
    reader = openapi.Client(client.spec, lambda timeout: remote.http("bob", timeout))
    assert reader.call("GET", "/v1/vms/vm")["name"] == "vm"
    denied = reader.call("POST", "/v1/vms/vm/pause", status=403)
    assert denied["code"] == "denied" and "'bob' may look" in denied["detail"] and "clients=" in denied["remedy"]


def read_pipe(pipe, wanted, timeout=90):
    """Until that comes."""
    said, end = b"", time.monotonic() + timeout
    while wanted not in said:
        assert select.select([pipe], [], [], max(0, end - time.monotonic()))[0], said[-500:]
        more = os.read(pipe.fileno(), 65536)
        assert more, said[-500:]
        said += more


def test_the_console_over_tls(remote):
    """It is a WebSocket behind TLS, which stays up while the VM is upgraded."""
    remote.run("run", "talker", "--", guest.qemu(), "-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot", "-machine", "pc-q35-7.2",
               "-m", "131080k", "-cpu", "qemu64", "-serial", "stdio", *guest.kernel_args(mem=8, rate=10))
    with subprocess.Popen([drover.DROVER, "--connect", f"tls://127.0.0.1:{remote.port}", "--pki", remote.keys.base / "alice", "console", "talker"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as console:
        try:
            read_pipe(console.stdout, b"WITNESS READY")
            assert remote.json("upgrade", "talker")["state"] == "succeeded"
            console.stdin.write(b"status\n")
            console.stdin.flush()
            read_pipe(console.stdout, b"bootid")
            assert console.poll() is None
        finally:
            console.terminate()
            console.communicate(timeout=20)
            remote.run("stop", "talker", "--force")
            remote.run("forget", "talker")
    assert remote.remote("bob", "console", "vm").returncode == 1


def test_events_over_tls(remote):
    with contextlib.closing(remote.socket("bob")) as sock:
        sock.sendall(b"GET /v1/events HTTP/1.1\r\nHost: d\r\n\r\n")
        said = b""
        while b"event: vm" not in said:
            if b":\n\n" in said:
                remote.run("pause", "vm")
                remote.run("resume", "vm")
            said += sock.recv(65536)
        assert said.startswith(b"HTTP/1.1 200")


def test_readers_and_others(remote):
    assert remote.remote("bob", "list").returncode == 0
    for name, args, text in (("bob", ("pause", "vm"), "'bob' may look"), ("eve", ("list",), "'eve' may not use"), ("eve", ("pause", "vm"), "'eve' may not use")):
        result = remote.remote(name, *args)
        assert result.returncode == 1 and text in result.stderr and "[api]" in result.stderr, result


@pytest.mark.parametrize("name, why", [("impostor", "NOT trusted"), ("revoked", "evoked"), ("host-as-client", "purpose|usage"), (None, "certificate")])
def test_a_certificate_that_is_not_right(remote, keys, name, why):
    """Closed before a byte of HTTP; the log says why, and drover that it may be so."""
    if name == "host-as-client":
        shutil.copytree(keys.base / "host", keys.base / name, dirs_exist_ok=True)
        for kind in ("cert", "key"):
            shutil.copy(keys.base / "host" / f"server-{kind}.pem", keys.base / name / f"client-{kind}.pem")
    before = len(remote.log())
    with pytest.raises((OSError, http.client.HTTPException)):
        connection = remote.http(name)
        connection.request("GET", "/v1/vms")
        connection.getresponse()
    wait_until(lambda: any(part in remote.log()[before:] for part in why.split("|")), 20, f"'{why}' in the log")
    if name:
        result = remote.remote(name, "list")
        assert result.returncode == 1 and "broke the connection off" in result.stderr and "its log" in result.stderr, result


def test_a_host_that_is_not_the_right_one(remote, keys):
    """drover looks at the CA and at the name."""
    result = remote.remote("alice", "list", host=socket.gethostname())
    assert result.returncode == 1 and ("not for this name" in result.stderr or "cannot reach" in result.stderr), result
    shutil.copytree(keys.base / "alice", keys.base / "trusts-others", dirs_exist_ok=True)
    shutil.copy(keys.base / "other-ca" / "ca-cert.pem", keys.base / "trusts-others")
    result = remote.remote("trusts-others", "list")
    assert result.returncode == 1 and "not of the CA" in result.stderr, result


def test_only_tls_1_3(remote):
    with pytest.raises(OSError):
        raw = socket.create_connection(("127.0.0.1", remote.port), 20)
        remote.keys.context("alice", ssl.TLSVersion.TLSv1_2).wrap_socket(raw, server_hostname="127.0.0.1")


def closes(sock, timeout):
    sock.settimeout(timeout)
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\nHost: d\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 500, b"\xff" * 5000], ids=["HTTP", "half TLS", "noise"])
def test_what_is_no_tls_is_closed(remote, words):
    with socket.create_connection(("127.0.0.1", remote.port), 20) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(words)
        assert closes(sock, 15)
    assert remote.remote("alice", "list").returncode == 0


def test_many_who_say_nothing(remote):
    """They wait, and lose their places in the end; who speaks is served meanwhile."""
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", remote.port), 20)) for _ in range(400)]
        for _ in range(3):
            assert remote.remote("alice", "list", timeout=20).returncode == 0
        end = time.monotonic() + 30
        assert all(closes(sock, max(0.1, end - time.monotonic())) for sock in silent)


def test_unfinished_handshakes(remote):
    """Half a hello each: threads look at them, and others are not kept waiting."""
    context = remote.keys.context("alice")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1").do_handshake()
    hello = outgoing.read()
    with contextlib.ExitStack() as stack:
        halves = [stack.enter_context(socket.create_connection(("127.0.0.1", remote.port), 20)) for _ in range(100)]
        for number, sock in enumerate(halves):
            with contextlib.suppress(OSError):
                sock.sendall(hello if number % 2 else hello[:len(hello) // 2])
        assert remote.remote("alice", "list", timeout=20).returncode == 0
        end = time.monotonic() + 30
        for sock in halves:
            sock.settimeout(max(0.1, end - time.monotonic()))
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(65536):
                    pass


def test_strangers_with_a_certificate_cannot_keep_others_out(remote):
    """One that the CA has issued for something else."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            with contextlib.suppress(OSError):
                sock = stack.enter_context(contextlib.closing(remote.socket("eve")))
                sock.sendall(b"GET /v1/vms HTTP/1.1\r\n")
        assert remote.remote("alice", "list", timeout=20).returncode == 0
        remote.run("list", timeout=10)


def test_droverd_ends_with_clients_connected(keys):
    with Remote(keys) as daemon:
        with contextlib.closing(daemon.socket("alice")) as sock:
            sock.sendall(b"GET /v1/events HTTP/1.1\r\nHost: d\r\n\r\n")
            assert sock.recv(100)
            began = time.monotonic()
            daemon.kill(15)
            assert time.monotonic() - began < 15
            with contextlib.suppress(OSError):
                while sock.recv(65536):
                    pass
        daemon.start()
        assert daemon.remote("alice", "list").returncode == 0


# --- Configuration ---


@pytest.mark.parametrize("text, code, why", [
    ("port=7414\n", 2, "neither clients= nor readers="), ("clients=alice\n", 2, "there is no port"), ("readers=alice\n", 2, "there is no port"),
    ("port=0\nclients=alice\n", 2, "there is no port"), ("address=127.0.0.1\n", 2, "there is no port"),
    ("port=70000\nclients=alice\n", 2, "0 to 65535"), ("port=7414\naddress=localhost\nclients=alice\n", 2, "not an IP address"),
    ("port=7414\nclients=a b\n", 2, "no pattern"), ("port=7414\nclients=alice\n", 1, "without keys"),
    ("read-group=no-such-group-1\n", 1, "no group 'no-such-group-1'"), ("operate-group=\n", 2, "empty"), ("odd=1\n", 2, "unknown key"),
])
def test_a_wrong_configuration_is_named(tmp_path, text, code, why):
    (tmp_path / "droverd.conf").write_text(f"[tls]\ndir={tmp_path}/none\n[api]\n{text}")
    result = run(drover.DROVERD, "--config", tmp_path / "droverd.conf", "--run-dir", tmp_path / "run", "--state-dir", tmp_path / "state",
                 check=False, timeout=30)
    assert result.returncode == code and why in result.stderr, result


@pytest.mark.parametrize("connect, pki, code, why", [
    ("tls://", None, 2, "tls://HOST"), ("tls://127.0.0.1:0", None, 2, "port"), ("tls://a b", None, 2, "a b"), ("tcp://127.0.0.1", None, 2, "tls://HOST"),
    ("tls://127.0.0.1", "/nonexistent", 1, "/nonexistent/ca-cert.pem"), ("tls://127.0.0.1:{port}", "{alice}", 1, "cannot reach"),
    ("tls://no-such-host.invalid", "{alice}", 1, "cannot reach"),
])
def test_a_wrong_connect_is_named(keys, connect, pki, code, why):
    options = ["--pki", pki.format(alice=keys.base / "alice")] if pki else []
    result = run(drover.DROVER, "--connect", connect.format(port=free_port()), *options, "list", check=False, timeout=60)
    assert result.returncode == code and why in result.stderr, result
