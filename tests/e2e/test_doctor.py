# SPDX-License-Identifier: LGPL-2.1-or-later
"""drover doctor: each bad finding is shown on a host that has it (a prepared tree of /proc, /sys, /dev and /etc, a real limit, another
user, a real droverd, real certificates), and a usual host gets none of them."""

import ctypes
import errno
import json
import os
import platform
import re
import resource
import shutil
import signal
import socketserver
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from lib import drover, guest, libvirt
from lib.pair import Pair
from lib.procs import BUILD, Unavailable, run, wait_until

SEVERITIES = {"ok", "note", "warning", "blocker"}

# Moves the wall clock of a program by SHIFT_S seconds.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) { const char *s = getenv("SHIFT_S"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
  int (*real)(clockid_t, struct timespec *) = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int r = real(id, t);
  if (id == CLOCK_REALTIME) t->tv_sec += shift();
  return r;
}
int gettimeofday(struct timeval *v, void *zone) {
  struct timespec t;
  int r = clock_gettime(CLOCK_REALTIME, &t);
  v->tv_sec = t.tv_sec, v->tv_usec = t.tv_nsec / 1000;
  return r;
}
time_t time(time_t *out) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); if (out) *out = t.tv_sec; return t.tv_sec; }
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """The environment of a program whose clock is ahead by so many seconds."""
    directory = tmp_path_factory.mktemp("clock")
    (directory / "shim.c").write_text(SHIM)
    run("gcc", "-shared", "-fPIC", "-o", directory / "shim.so", directory / "shim.c", "-ldl")
    if run(drover.DROVER, "--version", env={"LD_PRELOAD": str(directory / "shim.so")}, check=False).returncode:
        pytest.skip("a build with a sanitizer takes no library before its own")
    return lambda seconds: {"LD_PRELOAD": str(directory / "shim.so"), "SHIFT_S": str(seconds)}


def doctor(*args, env=None, connect="unix:/no/such/api.sock", before=(), code=None, **options):
    """Its findings, [{"group","severity","code","text","remedy"}], which have the shape that they must have."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DROVER_")} | (env or {})
    done = subprocess.run([*map(str, before), str(drover.DROVER), "--connect", connect, "doctor", "--json", *map(str, args)], env=environ,
                          capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL, **options)
    findings = json.loads(done.stdout)
    blocked = any(finding["severity"] == "blocker" for finding in findings)
    assert done.returncode == (1 if blocked else 0) and (code is None or code == done.returncode), (done.returncode, findings)
    for finding in findings:
        assert set(finding) == {"group", "severity", "code", "text", "remedy"} and finding["severity"] in SEVERITIES, finding
        assert finding["text"] and not finding["text"].endswith(".") and "\n" not in finding["text"], finding
        assert finding["remedy"] or finding["severity"] in ("ok", "note"), finding
    return findings


def one(findings, code, severity):
    """The finding of that code and severity, which must be there."""
    found = [finding for finding in findings if (finding["code"], finding["severity"]) == (code, severity)]
    assert found, f"no {severity} '{code}' in {json.dumps([f for f in findings if f['severity'] != 'ok'], indent=1)}"
    return found[0]


class Host:
    """A host that has nothing wrong, as files; a test changes what it is about."""

    FILES = {
        "proc/sys/kernel/osrelease": "6.1.0-37-amd64\n",
        "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu svm nx\n",
        "proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\nCommitLimit: 8000000 kB\nCommitted_AS: 1000000 kB\n",
        "proc/mounts": "/dev/vda1 / ext4 rw 0 0\nhugetlbfs /dev/hugepages hugetlbfs rw 0 0\n",
        "proc/sys/vm/overcommit_memory": "0\n",
        "proc/sys/vm/unprivileged_userfaultfd": "1\n",
        "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size [advise] never deny force\n",
        "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "8\n",
        "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "8\n",
        "sys/module/kvm_amd/parameters/nested": "0\n",
        "sys/class/net/br0/bridge/bridge_id": "8000\n",
        "etc/systemd/system/droverd.service": "[Service]\nExecStart=/usr/sbin/droverd\nKillMode=process\n",
    }

    def __init__(self, directory):
        self.root, self.dir = directory / "root", directory
        for name, text in self.FILES.items():
            self.write(name, text)
        for device in ("kvm", "net/tun"):
            path = self.root / "dev" / device
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(f"/dev/{device}")
        (self.root / "tmp").mkdir()
        self.run_dir = Path(f"/tmp/dr-none-{os.getpid()}")  # short, and never made
        self.state_dir, self.tls = directory / "s", directory / "tls"
        self.config = directory / "droverd.conf"
        self.configure()

    def write(self, name, text):
        path = self.root / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def configure(self, listen="", more=""):
        self.config.write_text(f"[daemon]\nrun-dir={self.run_dir}\nstate-dir={self.state_dir}\n[listen]\n{listen}\n[tls]\ndir={self.tls}\n{more}\n")

    def keys(self, *options):
        run(drover.DROVER, "pki", "init", "--dir", self.dir / "ca")
        run(drover.DROVER, "pki", "issue", "here", "--dir", self.dir / "ca", "--out", self.tls, *options)

    def doctor(self, *args, env=None, **options):
        return doctor("--config", self.config, *args, env={"DROVER_DOCTOR_ROOT": str(self.root)} | (env or {}), **options)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


# --- Nothing wrong ---


def test_a_usual_host_and_droverd_have_no_blocker(daemon):
    daemon.run("run", "vm", "--", *guest.without_guest())
    findings = doctor(connect=f"unix:{daemon.run_dir}/api.sock", code=0)
    assert {f["group"] for f in findings} == {"host", "memory", "QEMU", "libvirt", "network", "keys", "room", "droverd"}
    assert "with 1 VMs" in one(findings, "droverd", "ok")["text"]
    one(findings, "version", "ok")
    assert str(daemon.state_dir) in one(findings, "room", "ok")["text"]
    one(findings, "memfd", "ok")
    version = run("qemu-system-x86_64", "-version").stdout.split()[3]
    assert any(version in f["text"] for f in findings if f["code"] == "qemu")
    libc = ctypes.CDLL(None)
    state = libc.adjtimex(ctypes.create_string_buffer(512))
    one(findings, "clock", "warning" if state == 5 else "ok")


def test_a_prepared_host_has_nothing_wrong(host):
    for device in ("/dev/kvm", "/dev/net/tun"):
        if not os.access(device, os.R_OK | os.W_OK):
            raise Unavailable(f"{device} does not open")
    host.keys()
    findings = host.doctor(code=0)
    wrong = {f["code"] for f in findings if f["severity"] != "ok"}
    assert wrong <= {"droverd", "port", "clock", "userfaultfd"}, findings


def test_it_says_that_droverd_is_not_running_and_works_without(host):
    finding = one(host.doctor(), "droverd", "warning")
    assert "not running" in finding["text"] and "start" in finding["remedy"]


# --- A prepared tree ---


GONE = None
TREES = {
    "an old kernel": ({"proc/sys/kernel/osrelease": "5.10.0-35-amd64\n"}, "kernel", "blocker", "5.10.0"),
    "no /proc": ({"proc/sys/kernel/osrelease": GONE}, "kernel", "warning", "cannot be read"),
    "no KVM": ({"dev/kvm": GONE}, "kvm", "warning", "no /dev/kvm"),
    "a file for KVM": ({"dev/kvm": ""}, "kvm", "warning", "no KVM device"),
    "nested guests": ({"sys/module/kvm_amd/parameters/nested": "1\n"}, "nested", "note", "guests of their own"),
    "nested guests on Intel": ({"sys/module/kvm_intel/parameters/nested": "Y\n"}, "nested", "note", "guests of their own"),
    "a virtual host": ({"proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu hypervisor\n"}, "virtual", "note", "itself a virtual machine"),
    "libvirt's socket": ({"run/libvirt/virtqemud-sock": ""}, "libvirt", "note", "no daemon has the domains of qemu:///system just now"),
    "libvirt's domains": ({"run/libvirt/qemu/web1.xml": "<domstatus state='running' pid='4711'>", "proc/4711/cmdline": "qemu\0-m\0001G\0"},
                          "libvirt-domains", "note", "1 of 1 running domain of qemu:///system would have RAM copied"),
    "an unfinished run": ({"../s/libvirt/run.json": '{"state": "moving"}'}, "libvirt-run", "warning", "ended at 'moving'"),
    "little memory": ({"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 100000 kB\n"}, "memory", "warning", "102.4 MB of 16.4 GB"),
    "unknown memory": ({"proc/meminfo": "nonsense\n"}, "memory", "warning", "cannot be read"),
    "strict overcommit": ({"proc/sys/vm/overcommit_memory": "2\n"}, "overcommit", "warning", "7.2 GB are left"),
    "no huge pages": ({"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "0\n"}, "hugepages", "note", "no huge pages"),
    "no huge pages left": ({"sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "0\n"}, "hugepages", "warning", "all 8 huge pages of 2048kB"),
    "no hugetlbfs": ({"proc/mounts": "/dev/vda1 / ext4 rw 0 0\n"}, "hugetlbfs", "note", "not mounted"),
    "no shared THP": ({"sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size advise [never] deny force\n"}, "shmem-thp", "note", "(never)"),
    "no THP at all": ({"sys/kernel/mm/transparent_hugepage/shmem_enabled": GONE}, "shmem-thp", "note", "no transparent huge pages"),
    "/tmp in memory": ({"proc/mounts": "tmpfs /tmp tmpfs rw 0 0\nhugetlbfs /dev/hugepages hugetlbfs rw 0 0\n"}, "tmp", "note", "tmpfs"),
    "no tap": ({"dev/net/tun": GONE}, "tun", "warning", "does not open"),
    "a file for tap": ({"dev/net/tun": ""}, "tun", "warning", "no such device"),
    "no bridge": ({"sys/class/net/br0/bridge/bridge_id": GONE, "sys/class/net/br0/bridge": GONE}, "bridge", "note", "no bridge"),
    "a unit that kills": ({"etc/systemd/system/droverd.service": "[Service]\nExecStart=/usr/sbin/droverd\n"}, "kill-mode", "blocker", "KillMode=control-group"),
    "a drop-in that kills": ({"etc/systemd/system/droverd.service.d/x.conf": "[Service]\nKillMode=mixed\n"}, "kill-mode", "blocker", "KillMode=mixed"),
}


@pytest.mark.parametrize("case", TREES)
def test_a_bad_host_is_told(host, case):
    changes, code, severity, text = TREES[case]
    good = [f for f in host.doctor() if f["code"] == code and f["severity"] == severity]
    for name, content in changes.items():
        path = host.root / name
        if content is not GONE:
            host.write(name, content)
        elif path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    finding = one(host.doctor(), code, severity)
    assert text in finding["text"], finding
    assert not good or code in ("kvm", "tun"), f"a good host has it, too: {good}"


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff\xfe\n", b"9" * 100000, b"[", b"[]", b": : :\n\n\t"])
def test_nonsense_in_every_file_does_no_harm(host, content):
    for name in Host.FILES:
        (host.root / name).write_bytes(content)
    host.doctor()


# --- Limits and users ---


def test_few_open_files(host):
    finding = one(host.doctor(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))), "nofile", "warning")
    assert "1000 open files" in finding["text"]


def test_the_limits_are_those_of_droverd(daemon):
    """And not those of the shell that asks."""
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (2000, 2000))
    assert "2000 open files" in one(doctor(connect=f"unix:{daemon.run_dir}/api.sock"), "nofile", "warning")["text"]


AS_NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")


def test_another_user(daemon, tmp_path):
    if os.geteuid() != 0:
        raise Unavailable("only root can become another user")
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))}
    findings = doctor(connect=f"unix:{daemon.run_dir}/api.sock", before=AS_NOBODY, env={"HOME": "/nonexistent", "XDG_RUNTIME_DIR": "/tmp"}, **limit)
    one(findings, "socket", "blocker")
    assert "8 MiB" in one(findings, "memlock", "note")["text"]
    one(findings, "directory", "blocker")
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "0":
        assert "unprivileged_userfaultfd=1" in one(findings, "userfaultfd", "warning")["remedy"]
    # Who may open it, and is not its user.
    for path in (daemon.dir, daemon.run_dir):
        path.chmod(0o711)
    (daemon.run_dir / "api.sock").chmod(0o666)
    findings = doctor(connect=f"unix:{daemon.run_dir}/api.sock", before=AS_NOBODY, env={"HOME": "/nonexistent", "XDG_RUNTIME_DIR": "/tmp"})
    one(findings, "socket-mode", "warning")
    if any(f["code"] == "version" for f in findings):
        one(findings, "user", "note")
    (daemon.run_dir / "api.sock").chmod(0o600)
    assert not [f for f in doctor(connect=f"unix:{daemon.run_dir}/api.sock") if f["code"] == "socket-mode"]


class Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction))]


LIBC = ctypes.CDLL(None, use_errno=True)
MEMFD_CREATE, USERFAULTFD = 319, 323  # of x86-64


def sandbox(call, error):
    """For preexec_fn: a system call fails from now on, as in a unit with SystemCallFilter=."""
    # If the call's number is that one, return its errno (SECCOMP_RET_ERRNO); else let it happen (SECCOMP_RET_ALLOW).
    rules = (Instruction * 4)((0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000))

    def enter():
        program = Program(4, rules)
        LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        if LIBC.prctl(22, 2, ctypes.byref(program), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
            raise OSError(ctypes.get_errno(), "seccomp")

    return enter


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are those of x86-64")
def test_a_sandbox_that_is_too_narrow(host):
    finding = one(host.doctor(preexec_fn=sandbox(MEMFD_CREATE, errno.EPERM), code=1), "memfd", "blocker")
    assert "Operation not permitted" in finding["text"] and "SystemCallFilter" in finding["remedy"]
    assert "sandbox" in one(host.doctor(preexec_fn=sandbox(USERFAULTFD, errno.EPERM)), "userfaultfd", "warning")["remedy"]
    assert "CONFIG_USERFAULTFD" in one(host.doctor(preexec_fn=sandbox(USERFAULTFD, errno.ENOSYS)), "userfaultfd", "warning")["remedy"]


# --- QEMU ---


def program(directory, name, text):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)


def test_no_qemu(host):
    (host.dir / "empty").mkdir()
    host.configure(more="[qemu]\nbinaries=/no/such/*")
    findings = host.doctor(env={"PATH": str(host.dir / "empty")}, code=1)
    assert "qemu-system-x86" in one(findings, "qemu", "blocker")["remedy"]
    one(findings, "qemu-img", "warning")
    one(findings, "qemu-storage-daemon", "note")


def test_qemus_of_all_kinds(host):
    """Those of PATH and those of the configuration; one is too old, one is none, one hangs and is ended."""
    other = host.dir / "bin"
    program(other, "qemu-system-old", 'echo "QEMU emulator version 4.2.1 (x)"')
    program(other, "qemu-system-none", 'echo "I am none"')
    program(other, "qemu-system-dead", 'echo "cannot load libx.so" >&2; exit 127')
    program(other, "qemu-system-hang", "exec sleep 1000")
    program(other, "odd", f"touch {host.dir}/was-run")
    host.configure(listen="port=7413", more=f"[qemu]\nbinaries={guest.qemu('10.0')};{other}/*")
    begun = time.monotonic()
    findings = host.doctor(env={"PATH": f"{other}:{os.environ['PATH']}"})
    assert time.monotonic() - begun < 40
    assert "4.2.1" in one(findings, "qemu-old", "warning")["text"]
    broken = [f["text"] for f in findings if f["code"] == "qemu-broken"]
    assert len(broken) == 3 and any("it is no QEMU" in text for text in broken) and any("libx.so" in text for text in broken), broken
    good = [f["text"] for f in findings if f["code"] == "qemu" and f["severity"] == "ok"]
    assert any("QEMU 10.0" in text for text in good) and any(text.startswith("/usr/bin/") for text in good), good
    assert "/usr/bin/" in one(findings, "qemu-not-allowed", "note")["text"]
    assert not (host.dir / "was-run").exists(), "a program that is none of QEMU's was run"


def test_very_many_qemus(host):
    for i in range(40):
        program(host.dir / "bin", f"qemu-system-{i}", 'echo "QEMU emulator version 7.2.0"')
    finding = one(host.doctor(env={"PATH": f"{host.dir / 'bin'}:{os.environ['PATH']}"}), "qemu-many", "note")
    assert "not asked" in finding["text"]


# --- libvirt ---


def test_without_libvirt_there_is_one_line_about_it(host):
    findings = [f for f in host.doctor() if f["group"] == "libvirt"]
    assert [(f["severity"], f["code"], f["text"]) for f in findings] == [("ok", "libvirt", "libvirt does not run")]


def helper():
    """drover-libvirt of the build that is tested; without, nothing of libvirt's can be upgraded."""
    found = Path(os.environ.get("DROVER_BUILD", BUILD / "main")) / "src" / "libvirt" / "drover-libvirt"
    if not found.exists():
        raise Unavailable(f"{found} is not built")
    return found


def of_libvirt(host):
    findings = doctor(connect=f"unix:{host.daemon.run_dir}/api.sock", before=host.prefix)
    return [f for f in findings if f["group"] == "libvirt"]


@pytest.fixture(scope="module")
def libvirt_host():
    helper()
    with libvirt.LibvirtHost() as made:
        yield made


def test_libvirt_by_hand_and_its_domains(libvirt_host):
    host = libvirt_host
    pid = host.libvirtd_pid()
    findings = of_libvirt(host)
    assert [(f["severity"], f["code"]) for f in findings] == [("ok", code) for code in ("libvirt", "libvirt-version", "libvirt-helper")], findings
    assert findings[0]["text"] == f"libvirtd, pid {pid} has the domains of qemu:///system" and "libvirt 9.0" in findings[1]["text"]
    with libvirt.Domain(host, "shared", memory="file"), libvirt.Domain(host, "old", memory="memfd"):
        # A memfd is sent from QEMU 8.1 on; 7.2 leaves it out.
        assert "2 domains of qemu:///system: an upgrade would copy no RAM" in one(of_libvirt(host), "libvirt-domains", "ok")["text"]
        with libvirt.Domain(host, "new", version="10.0", memory="memfd"), libvirt.Domain(host, "plain", version="10.0", memory="plain"):
            finding = one(of_libvirt(host), "libvirt-domains", "note")
            assert finding["text"].startswith("2 of 4 running domains of qemu:///system would have RAM copied"), finding
            assert "<memoryBacking>" in finding["remedy"]
            # Another user sees the daemon, or why not, and says what he cannot see.
            seen = doctor(connect="unix:/no/such", before=[*host.prefix, *AS_NOBODY], env={"HOME": "/nonexistent", "XDG_RUNTIME_DIR": "/tmp"})
            assert "as root" in one(seen, "libvirt", "note")["remedy"] and "as root" in one(seen, "libvirt-domains", "note")["remedy"]
            # While the daemon is away the domains are seen.
            host.stop_libvirtd()
            findings = of_libvirt(host)
            assert "no daemon has the domains" in one(findings, "libvirt", "note")["text"]
            assert "2 of 4" in one(findings, "libvirt-domains", "note")["text"]
            host.start_libvirtd()


def test_a_run_over_libvirts_domains_is_seen(libvirt_host):
    """Held while libvirt's daemon is away, killed there, and brought to its end: a copied domain has its RAM in a shared file then."""
    host = libvirt_host
    state, run_dir = host.daemon.state_dir / "libvirt", host.dir / "run-of-helper"
    with libvirt.Domain(host, "new", version="10.0", memory="memfd"):
        def start(command, spec=b"", hold=""):
            popen = subprocess.Popen([*host.prefix, "env", f"DROVER_HOLD_AT={hold}", helper(), command, state, run_dir, host.dir / "cache-of-helper"],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            popen.stdin.write(spec)
            popen.stdin.close()
            return popen

        popen = start("upgrade", b'{"uri": "qemu:///system"}', "libvirt-stopped")
        try:
            wait_until(lambda: (run_dir / "hold").exists() or popen.poll() is not None, 30, "the run to be held")
            assert popen.poll() is None, popen.stdout.read()
            findings = of_libvirt(host)
            assert "another drover" in one(findings, "libvirt", "note")["text"]
            assert "just now (stopping)" in one(findings, "libvirt-run", "note")["text"]
        finally:
            popen.kill()
            popen.wait()
        finding = one(of_libvirt(host), "libvirt-run", "warning")
        assert "ended at 'stopping'" in finding["text"] and "start droverd" in finding["remedy"]
        (run_dir / "hold").unlink()
        for command in ("recover", "upgrade"):
            popen = start(command, b'{"uri": "qemu:///system"}')
            assert popen.wait(90) == 0, popen.stdout.read()
        findings = of_libvirt(host)
        assert not [f for f in findings if f["code"] == "libvirt-run"]
        assert "an upgrade would copy no RAM" in one(findings, "libvirt-domains", "ok")["text"]


# --- Keys ---


def test_no_keys(host):
    one(host.doctor(), "keys", "note")
    host.configure(listen="port=7413")
    assert "drover pki" in one(host.doctor(code=1), "keys", "blocker")["remedy"]


def test_certificates(host, clock):
    host.keys("--days", "10")
    findings = host.doctor()
    assert "ends in " in one(findings, "certificate-end", "warning")["text"]
    assert "days left" in one(findings, "certificate", "ok")["text"]  # the CA's
    one(findings, "key-mode", "ok")
    late = host.doctor(env=clock(20 * 86400))
    assert "server-cert.pem" in one(late, "certificate", "warning")["text"]
    host.configure(listen="port=7413")
    one(host.doctor(env=clock(20 * 86400), code=1), "certificate", "blocker")
    (host.tls / "server-key.pem").chmod(0o644)
    assert "0644" in one(host.doctor(), "key-mode", "warning")["text"]


def test_a_certificate_of_another_ca(host):
    host.keys()
    run(drover.DROVER, "pki", "init", "--dir", host.dir / "other")
    shutil.copy(host.dir / "other" / "ca-cert.pem", host.tls / "ca-cert.pem")
    one(host.doctor(), "certificate", "warning")


# --- Room ---


def test_a_full_file_system(host):
    if os.geteuid() != 0:
        raise Unavailable("only root can mount")
    host.state_dir.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=50M", "none", host.state_dir)
    try:
        assert "little room" in one(host.doctor(), "room", "warning")["text"]
        (host.state_dir / "fill").write_bytes(bytes(48 << 20))
        assert "no room" in one(host.doctor(code=1), "room", "blocker")["text"]
        run("mount", "-o", "remount,nr_inodes=2", host.state_dir)
        assert "no inode" in one(host.doctor(code=1), "room", "blocker")["text"]
    finally:
        run("umount", host.state_dir)


def test_directories(host):
    host.run_dir = Path("/tmp") / ("x" * 60)
    host.configure()
    assert f"names have {106 - len('/tmp//vms//migration.9999') - 60} characters" in one(host.doctor(), "run-path", "note")["text"]
    host.run_dir = Path("/tmp") / ("x" * 120)
    host.configure()
    one(host.doctor(code=1), "run-path", "blocker")
    host.run_dir = host.config / "below"
    host.configure()
    assert "is no directory" in one(host.doctor(code=1), "directory", "blocker")["text"]


# --- droverd ---


@pytest.mark.parametrize("text", ["[daemon]\nrun-dri=/x\n", "[listen]\nport=70000\n", "nonsense", ""])
def test_a_configuration_that_droverd_refuses(host, text):
    """Said as droverd says it, and the other checks go on."""
    host.config.write_text(text)
    refused = run(drover.DROVERD, "--config", host.config, "--version", check=False)
    findings = host.doctor()
    if refused.returncode:
        finding = one(findings, "config", "blocker")
        assert refused.stderr.splitlines()[0].removeprefix("droverd: ") in finding["text"]
    else:
        one(findings, "config", "ok")
    one(findings, "memfd", "ok")
    assert host.doctor("--config", "/no/such/file")[0] and one(host.doctor("--config", "/no/such/file"), "config", "blocker")


def test_it_finds_the_configuration_of_the_droverd_that_runs():
    with drover.Daemon(config="[listen]\nport=0\n") as daemon:
        findings = doctor(connect=f"unix:{daemon.run_dir}/api.sock")
        assert str(daemon.dir / "droverd.conf") in one(findings, "config", "ok")["text"]
        # What somebody has broken since it was started.
        (daemon.dir / "droverd.conf").write_text("[odd]\n")
        assert "[odd]" in one(doctor(connect=f"unix:{daemon.run_dir}/api.sock", code=1), "config", "blocker")["text"]


def test_a_droverd_that_hangs(daemon):
    daemon.process.popen.send_signal(signal.SIGSTOP)
    try:
        finding = one(doctor(connect=f"unix:{daemon.run_dir}/api.sock", code=1), "droverd", "blocker")
        assert "did not answer within 5 s" in finding["text"]
    finally:
        daemon.process.popen.send_signal(signal.SIGCONT)


def test_a_stale_socket(daemon):
    daemon.process.kill()
    assert "not running" in one(doctor(connect=f"unix:{daemon.run_dir}/api.sock"), "droverd", "warning")["text"]


class OtherDroverd(BaseHTTPRequestHandler):
    """A droverd of another version, with a VM that needs somebody and more peers than are asked."""

    ANSWERS = {"/v1/version": {"version": "0.0.1", "state_dir": "/tmp", "run_dir": "/tmp", "vms": 1}, "/v1/vms": [{"name": "sick", "state": "attention"}],
               "/v1/peers": [{"name": f"p{i}", "host": "192.0.2.1"} for i in range(33)]}

    def do_GET(self):
        self.answer(self.ANSWERS[self.path])

    def do_POST(self):
        self.answer({"version": "0.0.2", "round_trip_ms": 1, "send_mib": 1})

    def answer(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


def test_another_droverd(tmp_path):
    path = tmp_path / "s"
    with socketserver.ThreadingUnixStreamServer(str(path), OtherDroverd) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            findings = doctor(connect=f"unix:{path}")
        finally:
            server.shutdown()
    assert "0.0.1" in one(findings, "version", "warning")["text"]
    assert "'sick'" in one(findings, "attention", "warning")["text"]
    assert "0.0.2" in one(findings, "peer-version", "note")["text"]
    assert "1 more peers" in one(findings, "peers-many", "note")["text"]


def test_peers(clock):
    """Of two hosts; the clock of the other one is ahead, and then its droverd is gone."""
    with Pair(env_b=clock(30)) as pair:
        there = {"connect": f"unix:{pair.a.run_dir}/api.sock", "before": pair.netns_a.argv()}
        findings = doctor(**there)
        assert "'b' answers" in one(findings, "peer", "ok")["text"]
        late = one(findings, "peer-clock", "warning")["text"]
        assert "ahead of" in late and 29 < float(re.search(r"([\d.]+) s ahead", late)[1]) < 31, late
        one(findings, "port", "ok")
        one(findings, "certificate", "ok")
        behind = one(doctor(connect=f"unix:{pair.b.run_dir}/api.sock", before=pair.netns_b.argv()), "peer-clock", "warning")["text"]
        assert " behind " in behind
        pair.b.kill()
        one(doctor(**there), "peer", "warning")
        # It runs, and nobody can come in.
        pair.netns_a.ip("link", "set", "lo", "down")
        one(doctor(**there), "port", "warning")


# --- As people read it ---


def plain(*args, env=None):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DROVER_")} | (env or {})
    return subprocess.run([str(drover.DROVER), "--connect", "unix:/no/such", "doctor", *map(str, args)], capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, env=environ)


def test_text(host):
    env = {"DROVER_DOCTOR_ROOT": str(host.root), "NO_COLOR": ""}
    done = plain("--config", host.config, env=env)
    assert done.returncode == 0 and done.stderr == "", done
    lines = done.stdout.splitlines()
    assert lines[0] == "host" and lines[1].split() == ["ok", "kernel", "Linux", "6.1.0-37-amd64"] and "\x1b" not in done.stdout
    assert re.fullmatch(r"\d+ warnings?; nothing keeps drover from working", lines[-1]), lines[-1]
    assert "\x1b[32mok" in plain("--config", host.config, env=env | {"CLICOLOR_FORCE": "1"}).stdout
    for off in ({"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, {"CLICOLOR_FORCE": "0"}, {"CLICOLOR": "1"}):
        assert "\x1b" not in plain("--config", host.config, env=env | off).stdout
    quiet = plain("--config", host.config, "--quiet", env=env).stdout
    assert not re.search(r"^  ok ", quiet, re.M) and "remedy: " in quiet
    host.write("proc/sys/kernel/osrelease", "4.0.0\n")
    done = plain("--config", host.config, env=env)
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith("1 blocker, ")


@pytest.mark.parametrize("args, code", [(("extra",), 2), (("--odd",), 2), (("--config",), 2), (("--help",), 0)])
def test_usage(args, code):
    assert plain(*args).returncode == code
