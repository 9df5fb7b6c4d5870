# SPDX-License-Identifier: LGPL-2.1-or-later
"""drover pki and drover peer: keys that other programs take, nothing that is ever overwritten, and bad input that leaves nothing
behind."""

import contextlib
import datetime
import json
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from lib import api, drover
from lib.procs import Process, Unavailable, run, wait_until

HOST_FILES = {"ca-cert.pem": 0o644, "server-cert.pem": 0o644, "client-cert.pem": 0o644, "server-key.pem": 0o600,
              "client-key.pem": 0o600}
KEY_ID = "8b9b001deb70bf6593f476d30b360d3fcf4de46cdea4135eb44c3ead78ab87cf"


class Pki:
    """`drover pki` with a CA's directory; no droverd."""

    def __init__(self, root):
        self.root, self.dir = root, root / "ca"

    def run(self, *args, check=True, **options):
        result = subprocess.run([str(drover.DROVER), "pki", *map(str, args)], capture_output=True, text=True, timeout=60,
                                stdin=subprocess.DEVNULL, **options)
        if check and result.returncode:
            raise drover.Failed(result)
        return result

    def init(self, *args):
        return json.loads(self.run("init", "--dir", self.dir, *args, "--json").stdout)

    def issue(self, host, *args):
        return json.loads(self.run("issue", host, "--dir", self.dir, *args, "--json").stdout)

    def show(self, path, code=0):
        result = self.run("show", path, "--json", check=False)
        assert result.returncode == code, result
        return {Path(cert["file"]).name: cert for cert in json.loads(result.stdout)}

    def refused(self, *args, code=1, **options):
        """Fails with that exit code; what it says is one line, and the same with --json. Returns the error."""
        plain = self.run(*args, check=False, **options)
        result = self.run("--json", *args, check=False, **options)
        assert (plain.returncode, result.returncode) == (code, code), (plain, result)
        error = json.loads(result.stdout)["error"]
        assert plain.stderr.splitlines()[0] == f"drover: {error['message']}" and plain.stdout == ""
        return error

    def host(self, name="host2"):
        return self.dir / "hosts" / name


@pytest.fixture
def pki(tmp_path):
    made = Pki(tmp_path)
    made.init()
    return made


@pytest.fixture
def bare(tmp_path):
    return Pki(tmp_path)


def contents(root):
    """All that is below, with what is in it."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def days_until(cert):
    until = datetime.datetime.fromtimestamp(cert["until_ms"] / 1000, datetime.timezone.utc)
    return round((until - datetime.datetime.now(datetime.timezone.utc)).total_seconds() / 86400)


def tool(name, *args, check=True):
    if not shutil.which(name):
        raise Unavailable(f"no {name}")
    return run(name, *args, check=check)


# --- Making ---


def test_a_ca_and_a_host_are_made_as_the_manual_says(bare):
    ca = bare.init("--name", "Zürich, 1", "--days", "100")
    assert ca["subject"] == "CN=Zürich\\, 1" and ca["for"] == ["ca"] and days_until(ca) == 100
    assert ca["file"] == str(bare.dir / "ca-cert.pem") and ca["key_file"] == str(bare.dir / "ca-key.pem")
    assert {path.name: mode(path) for path in bare.dir.iterdir()} == {"ca-cert.pem": 0o644, "ca-key.pem": 0o600}
    host = bare.issue("Host2.Example", "--address", "10.0.0.2", "--address", "2001:DB8:0::7", "--address", "host2.example", "--days", "9")
    assert host["names"] == ["host2.example", "10.0.0.2", "2001:db8::7"] and host["for"] == ["server"] and days_until(host) == 9
    out = bare.host("Host2.Example")
    assert host["dir"] == str(out) and {path.name: mode(path) for path in out.iterdir()} == HOST_FILES
    assert mode(bare.dir) == mode(out) == 0o700
    shown = bare.show(out)
    assert {name: (cert["for"], cert["problem"]) for name, cert in shown.items()} == {
        "ca-cert.pem": (["ca"], None), "server-cert.pem": (["server"], None), "client-cert.pem": (["client"], None)}
    assert shown["server-cert.pem"]["key_id"] == shown["client-cert.pem"]["key_id"] == host["key_id"] != ca["key_id"]
    assert (out / "ca-cert.pem").read_bytes() == (bare.dir / "ca-cert.pem").read_bytes()


def test_what_is_printed_says_what_to_do_next(bare):
    made = bare.run("init", "--dir", bare.dir).stdout
    assert str(bare.dir / "ca-key.pem") in made and "next, for each host: drover pki issue HOST" in made
    issued = bare.run("issue", "host2", "--dir", bare.dir).stdout
    assert f"{bare.host()}/" in issued and "key id " in issued
    copy = next(line for line in issued.splitlines() if line.startswith("  tar "))
    assert "ssh host2" in copy and str(bare.host()) in copy
    # That command does what it says, with another shell in the place of ssh's.
    there = bare.root / "there"
    subprocess.run(copy.replace("ssh host2", "sh -c").replace("/etc/drover/tls", str(there)), shell=True, check=True)
    assert contents(there) == contents(bare.host()) and mode(there / "server-key.pem") == 0o600


@pytest.fixture
def nobody():
    """A directory of a user who may write nothing else, with a drover in it that he may run; and how to run as him."""
    home = Path(tempfile.mkdtemp(prefix="dr-", dir="/tmp"))
    home.chmod(0o755)
    shutil.copy(drover.DROVER, home / "drover")
    if os.geteuid() == 0:
        os.chown(home, 65534, 65534)
    yield home, ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    shutil.rmtree(home)


def test_defaults_fit_the_user(nobody):
    """As root the default is /etc/drover/pki, which a test does not write to."""
    home, prefix = nobody
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")}
    made = run(*prefix, home / "drover", "pki", "init", "--json", env=env, cwd="/")
    assert json.loads(made.stdout)["file"] == str(home / "config/drover/pki/ca-cert.pem")
    issued = run(*prefix, home / "drover", "pki", "issue", "10.0.0.9", "--json", env=env, cwd="/")
    assert json.loads(issued.stdout)["dir"] == str(home / "config/drover/pki/hosts/10.0.0.9")


def test_a_directory_that_is_closed_to_the_user_is_named(nobody):
    home, prefix = nobody
    (home / "closed").mkdir(mode=0o555)
    for where in (home / "closed", home / "closed/below"):
        refused = run(*prefix, home / "drover", "pki", "init", "--dir", where, cwd="/", check=False)
        assert refused.returncode == 1 and "Permission denied" in refused.stderr and str(where) in refused.stderr
    assert list((home / "closed").iterdir()) == []


def test_a_host_ends_with_its_ca_and_not_later(bare):
    bare.init("--days", "10")
    assert days_until(bare.issue("host2")) == 10
    error = bare.refused("issue", "host3", "--dir", bare.dir, "--days", "11")
    assert "ends sooner than in 11 days" in error["message"] and not bare.host("host3").exists()
    assert days_until(bare.issue("host3", "--days", "9")) == 9


# --- Nothing is overwritten ---


def test_what_is_there_stays_without_force(pki):
    pki.issue("host2")
    before = contents(pki.root)
    error = pki.refused("init", "--dir", pki.dir)
    assert error["code"] == "exists" and "ca-key.pem" in error["message"]
    error = pki.refused("issue", "host2", "--dir", pki.dir)
    assert error["code"] == "exists" and all(name in error["message"] for name in HOST_FILES) and "--force" in error["remedy"]
    assert contents(pki.root) == before


@pytest.mark.parametrize("name", HOST_FILES)
def test_one_file_of_a_set_is_enough_to_refuse(pki, name):
    pki.host().mkdir(parents=True)
    (pki.host() / name).write_text("theirs")
    error = pki.refused("issue", "host2", "--dir", pki.dir)
    assert f"has {name} already" in error["message"]
    assert contents(pki.host()) == {name: b"theirs"}


def test_force_replaces_the_set_and_nothing_else(pki):
    old = pki.issue("host2")
    (pki.host() / "notes.txt").write_text("theirs")
    ca = contents(pki.dir)["ca-key.pem"]
    new = pki.issue("host2", "--force")
    assert new["key_id"] != old["key_id"] and (pki.host() / "notes.txt").read_text() == "theirs"
    assert {cert["problem"] for cert in pki.show(pki.host()).values()} == {None}
    assert {path.name: mode(path) for path in pki.host().iterdir() if path.suffix == ".pem"} == HOST_FILES
    assert contents(pki.dir)["ca-key.pem"] == ca


def test_a_disk_that_is_full_leaves_nothing(pki):
    small = pki.root / "small"
    small.mkdir()
    if run("mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=20", "tmpfs", small, check=False).returncode:
        raise Unavailable("no mount")
    try:
        error = pki.refused("issue", "host2", "--dir", pki.dir, "--out", small)
        assert "cannot write" in error["message"] and "No space left" in error["message"]
        assert contents(small) == {}
    finally:
        run("umount", small)


# --- Bad input ---


BAD = {
    "no subverb": (["--days", "3"], "is missing"),
    "another subverb": (["make"], "there is no 'make' in it"),
    "no host": (["issue"], "HOST is missing"),
    "two hosts": (["issue", "a", "b"], "unexpected argument 'b'"),
    "an argument of init": (["init", "x"], "unexpected argument 'x'"),
    "nothing to show": (["show"], "FILE|DIR is missing"),
    "an option of another": (["init", "--out", "/x"], "pki init takes no --out"),
    "an option of another, joined": (["show", "/", "--dir=/x"], "pki show takes no --dir"),
    "an option of none": (["init", "--frob"], "Unknown option --frob"),
    "days that are none": (["init", "--days", "many"], "many"),
    "no days": (["init", "--days", "0"], "1 to 36500 days, not 0"),
    "no days of a host": (["issue", "host2", "--days", "0"], "1 to 36500 days, not 0"),
    "too many days": (["issue", "host2", "--days", "36501"], "1 to 36500 days"),
    "an empty CN": (["init", "--name", ""], "1 to 64 printable characters"),
    "a long CN": (["init", "--name", "x" * 65], "1 to 64 printable characters"),
    "a CN of two lines": (["init", "--name", "a\nb"], "1 to 64 printable characters"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_usage_is_named_and_makes_nothing(bare, case):
    words, said = BAD[case]
    if words[0] in ("init", "issue") and "takes no" not in said and "Unknown" not in said:
        words = [words[0], "--dir", bare.dir, *words[1:]]
    error = bare.refused(*words, code=2)
    assert said in error["message"]
    assert contents(bare.root) == {}


@pytest.mark.parametrize("host", ["", "a/b", "../x", "/etc", ".", "..", ".a", "a.", "a b", "a\nb", "höst", "*", "*.example", "-x.y", "x" * 64,
                                  "a..b", "1.2.3", "256.1.1.1", "fe80::1%eth0", "[::1]", "host:1", "10.0.0.0/8", "a;b", "$(id)",
                                  "x" * 100_000, ".".join(["x" * 60] * 5)])
def test_a_host_that_cannot_be_is_refused(pki, host):
    before = contents(pki.root)
    for words in (["issue", "--", host], ["issue", "host2", f"--address={host}"]):
        error = pki.refused(*words[:1], "--dir", pki.dir, *words[1:], code=2)
        assert error["code"] == "invalid" and len(error["message"]) < 300 and "\n" not in error["message"]
    assert contents(pki.root) == before


def test_a_name_longer_than_a_cn_goes_as_an_address(pki):
    name = "x" * 60 + ".example.org"
    error = pki.refused("issue", name, "--dir", pki.dir, code=2)
    assert "64 characters" in error["message"] and "--address" in error["remedy"]
    assert pki.issue("host2", "--address", name)["names"] == ["host2", name]


def test_an_address_that_is_said_twice_is_in_it_once_and_there_may_be_64(pki):
    many = [f"--address=h{i}" for i in range(63)]
    assert pki.issue("host2", *many, "--address", "h1")["names"] == ["host2", *(f"h{i}" for i in range(63))]
    assert "at most 64" in pki.refused("issue", "host3", "--dir", pki.dir, *many, "--address=a", "--address=b", code=2)["message"]


def test_where_nothing_can_be_written_is_named(pki):
    file = pki.dir / "ca-cert.pem"
    for where in (file, file / "below", "/proc/self/drover", "/proc/self"):
        assert str(where) in pki.refused("issue", "host2", "--dir", pki.dir, "--out", where)["message"]
        assert str(where) in pki.refused("init", "--dir", where)["message"] or where == file


def test_a_ca_that_cannot_sign_is_refused(pki):
    pki.issue("host2")
    key, cert = pki.dir / "ca-key.pem", pki.dir / "ca-cert.pem"
    good_key = key.read_bytes()
    wrong = {"the key 'KEY' is not its own": lambda: shutil.copy(pki.host() / "server-key.pem", key),
             "has no private key": lambda: key.write_bytes(b"\0" * 1000),
             "has no certificate": lambda: (key.write_bytes(good_key), cert.write_text("x")),
             "it is not for a CA": lambda: shutil.copy(pki.host() / "server-cert.pem", cert),
             "larger than": lambda: cert.write_bytes(b"x" * (2 << 20)),
             "there is no CA": cert.unlink}
    for said, spoil in wrong.items():
        spoil()
        assert said.replace("KEY", str(key)) in pki.refused("issue", "host3", "--dir", pki.dir)["message"]
    assert not pki.host("host3").exists()
    assert "drover pki init" in pki.refused("issue", "host3", "--dir", pki.root / "nowhere")["remedy"]


def test_a_key_with_a_passphrase_is_said_to_have_one(pki):
    key = pki.dir / "ca-key.pem"
    tool("openssl", "pkcs8", "-topk8", "-in", key, "-out", pki.root / "locked", "-passout", "pass:x")
    shutil.move(pki.root / "locked", key)
    assert f"'{key}' has a passphrase" in pki.refused("issue", "host2", "--dir", pki.dir)["message"]


# --- Showing ---


def test_what_is_wrong_is_shown(pki):
    pki.issue("host2")
    other = Pki(pki.root / "other")
    other.root.mkdir()
    other.init()
    other.issue("host2")
    host = pki.host()

    def problem(name="server-cert.pem"):
        return pki.show(host, code=1)[name]["problem"]

    (host / "server-key.pem").chmod(0o644)
    assert "open to everybody (mode 0644)" in problem()
    shutil.copy(other.host() / "server-key.pem", host / "server-key.pem")
    assert "is not its own" in problem()
    (host / "server-key.pem").unlink()
    assert "server-key.pem" in problem() and "No such file" in problem()
    shutil.copy(other.host() / "client-cert.pem", host / "client-cert.pem")
    assert "it is not of the CA in" in problem("client-cert.pem")
    shutil.copy(host / "client-cert.pem", host / "server-cert.pem")
    assert "it is not for a server" in problem()
    (host / "ca-cert.pem").unlink()
    assert "ca-cert.pem" in pki.show(host, code=1)["client-cert.pem"]["problem"]
    assert "PROBLEM" in pki.run("show", host, check=False).stdout


def test_libvirts_layout_is_shown_as_well(pki):
    pki.issue("host2")
    root = pki.root / "pki"
    names = {"ca-cert.pem": "CA/cacert.pem", "server-cert.pem": "libvirt/servercert.pem", "server-key.pem": "libvirt/private/serverkey.pem",
             "client-cert.pem": "libvirt/clientcert.pem", "client-key.pem": "libvirt/private/clientkey.pem"}
    for ours, theirs in names.items():
        (root / theirs).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pki.host() / ours, root / theirs)
    assert {name: cert["problem"] for name, cert in pki.show(root).items()} == {"cacert.pem": None, "servercert.pem": None, "clientcert.pem": None}


def test_what_is_no_certificate_is_named(pki):
    empty = pki.root / "empty"
    empty.mkdir()
    (pki.root / "file").write_bytes(bytes(range(256)) * 40)
    for path in (empty, pki.root / "file", pki.dir / "ca-key.pem", pki.root / "nowhere", "/dev/zero", "/dev/null", ""):
        assert str(path) in pki.refused("show", path)["message"]


# --- What others say of them ---


def test_openssl_and_certtool_agree(pki):
    host = pki.issue("host2", "--address", "10.0.0.2")
    ca, server, client = pki.dir / "ca-cert.pem", pki.host() / "server-cert.pem", pki.host() / "client-cert.pem"
    for purpose, good, bad in (("sslserver", server, client), ("sslclient", client, server)):
        assert tool("openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca, good)
        assert tool("openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca, bad, check=False).returncode
    assert "does match" in tool("openssl", "x509", "-in", server, "-noout", "-checkip", "10.0.0.2").stdout
    assert "does match" in tool("openssl", "x509", "-in", server, "-noout", "-checkhost", "host2").stdout
    assert tool("certtool", "--key-id", "--hash=sha256", "--infile", server).stdout.strip() == host["key_id"]
    tool("certtool", "--verify", "--load-ca-certificate", ca, "--infile", server, "--verify-hostname", "host2")


def test_qemu_takes_the_directory(pki, tmp_path):
    """QEMU checks certificates more closely than TLS does, when it loads them."""
    pki.issue("host2")
    image, path = tmp_path / "image", tmp_path / "nbd"
    image.write_bytes(b"x" * 65536)

    def credentials(end):
        return "--object", f"tls-creds-x509,id=t,dir={pki.host()},endpoint={end},verify-peer=on"

    def info(name, credentials=credentials("client")):
        options = f"driver=nbd,server.type=unix,server.path={path},tls-creds=t,tls-hostname={name}"
        return run("qemu-img", "info", "--output=json", *credentials, "--image-opts", options, check=False)

    if not shutil.which("qemu-nbd"):
        raise Unavailable("no qemu-nbd")
    server = Process(["qemu-nbd", *credentials("server"), "--tls-creds", "t", "-k", path, "-t", "-f", "raw", "-r", image], tmp_path / "log")
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(server.kill)
        wait_until(lambda: path.exists() or not server.alive(), 20, "qemu-nbd to listen")
        assert server.alive(), (tmp_path / "log").read_text()
        good = info("host2")
        assert good.returncode == 0 and json.loads(good.stdout)["virtual-size"] == 65536, good.stderr
        assert info("host3").returncode == 1
        stranger = Pki(tmp_path / "stranger")
        stranger.root.mkdir()
        stranger.init()
        stranger.issue("host2")
        shutil.copy(pki.host() / "ca-cert.pem", stranger.host() / "ca-cert.pem")
        theirs = "--object", f"tls-creds-x509,id=t,dir={stranger.host()},endpoint=client,sanity-check=off"
        assert info("host2", theirs).returncode == 1
        assert info("host2").returncode == 0


# --- Peers ---


def test_peers_are_noted_listed_and_removed(daemon):
    pin = ":".join(KEY_ID[i:i + 2] for i in range(0, 64, 2)).upper()
    assert daemon.json("peer", "list") == []
    added = daemon.json("peer", "add", "host2", "Host2.Example")
    assert (added["name"], added["host"], added["port"], added["pin"]) == ("host2", "host2.example", 7413, None)
    assert daemon.json("peer", "add", "b", "[2001:DB8:0::7]:7000", "--pin", f"sha256:{pin}", "--pin", "f" * 64)["pin"] == f"{KEY_ID},{'f' * 64}"
    daemon.run("peer", "add", "a", "10.0.0.2:65535")
    daemon.restart()
    listed = daemon.json("peer", "list")
    assert [(peer["name"], peer["host"], peer["port"]) for peer in listed] == [
        ("a", "10.0.0.2", 65535), ("b", "2001:db8::7", 7000), ("host2", "host2.example", 7413)]
    table = daemon.run("peer", "list").stdout.splitlines()
    assert table[0].split() == ["NAME", "HOST", "PORT", "KEY", "ID"] and table[1].split() == ["a", "10.0.0.2", "65535", "-"]
    assert daemon.run("peer", "remove", "a").stdout == "a: removed\n"
    assert daemon.refused("peer", "remove", "a")["code"] == "not-found"
    assert [peer["name"] for peer in daemon.json("peer", "list")] == ["b", "host2"]


def test_a_peer_is_noted_once(daemon):
    daemon.run("peer", "add", "host2", "10.0.0.2")
    assert "there is a peer 'host2' already" in daemon.refused("peer", "add", "host2", "10.0.0.3")["message"]
    assert "is the peer 'host2' already" in daemon.refused("peer", "add", "other", "10.0.0.2:7413")["message"]
    daemon.run("peer", "add", "other", "10.0.0.2:7414")
    assert len(daemon.json("peer", "list")) == 2


BAD_PEERS = [("a/b", "h"), ("", "h"), (".a", "h"), ("x" * 64, "h"), ("a b", "h"), ("a\nb", "h"), ("a", ""), ("a", ":"), ("a", "h:"),
             ("a", "h:0"), ("a", "h:65536"), ("a", "h:-1"), ("a", "h:x"), ("a", "h:1:2"), ("a", "[::1]x"), ("a", "[::1"), ("a", "[h]:1"),
             ("a", "h/x"), ("a", "user@h"), ("a", "höst"), ("a", "x" * 70_000), ("a", "tcp://h:1")]


@pytest.mark.parametrize("name, address", BAD_PEERS)
def test_a_peer_that_cannot_be_is_refused(daemon, name, address):
    error = daemon.refused("peer", "add", "--", name, address, code=2)
    assert error["code"] == "invalid" and len(error["message"]) < 300 and "\n" not in error["message"]
    assert daemon.json("peer", "list") == []


def test_bad_pins_and_bodies_are_refused(daemon):
    for pin in ("", "abc", KEY_ID + "0", f"md5:{KEY_ID}", ",".join([KEY_ID] * 5), "x" * 64):
        assert "the pin is not" in daemon.refused("peer", "add", "a", "h", "--pin", pin, code=2)["message"]
    socket = daemon.run_dir / "api.sock"
    for body in ({}, {"name": "a"}, {"host": "h"}, {"name": "a", "host": "h", "port": 0}, {"name": "a", "host": "h", "port": "7"},
                 {"name": "a", "host": "h", "port": 65536}, {"name": "a", "host": "h", "pin": 1}, {"name": ["a"], "host": "h"},
                 {"name": "a", "host": "h", "extra": 1}, {"name": "../a", "host": "h"}, {"name": "a", "host": "h:1"}):
        answer = api.request(socket, "POST", "/v1/peers", body)
        assert answer.status == 400 and answer.is_problem(), (body, answer)
    assert api.request(socket, "DELETE", "/v1/peers/..%2Fx").status == 404
    assert daemon.json("peer", "list") == []
    assert api.request(socket, "POST", "/v1/peers", {"name": "a", "host": "h", "pin": None, "port": None}).status == 201
