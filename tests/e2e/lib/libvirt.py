# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts with an unmodified libvirt of their own, and domains on them that run the witness guest.

A LibvirtHost is a set of namespaces (mounts, network, name, cgroups; not pids: a pid is the same inside and out) with a private /run,
/opt, /etc/libvirt, /var/lib/libvirt, /var/cache/libvirt and /var/log/libvirt, in which virtlogd, libvirtd and a droverd run. What is
started in there has its network namespace for ever, QEMUs too: by that it is found and killed at the end, never by a name.

`directory/in COMMAND...` runs a command in there, for somebody who looks at a test that is held by a debugger.
"""

import contextlib
import ctypes
import itertools
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from . import drover, guest, hosts
from .procs import Process, Timeout, Unavailable, die_with_parent, kill_pid, run, wait_until

_libc = ctypes.CDLL(None, use_errno=True)

GATEWAY, ADDRESS = "192.0.2.1", "192.0.2.2"  # of the bridge in each host, and of the guest
LINK = ("10.77.0.1", "10.77.0.2")            # of two hosts, to each other
IMAGES = "/var/lib/libvirt/images"
BOOT = "/var/lib/libvirt/boot"
LOGS = "/var/log/libvirt/qemu"
STATE = "/run/libvirt/qemu"
USER = "libvirt-qemu"
MODULES = "usr/lib/x86_64-linux-gnu/qemu"  # of a QEMU, below its root directory
CGROUPS = Path("/sys/fs/cgroup")
# What is private, by its directory of ours. /run whole: the pid files of the daemons are in /run itself, the machine's D-Bus is not seen.
PRIVATE = {"run": "/run", "opt": "/opt", "etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "cache": "/var/cache/libvirt",
           "log": "/var/log/libvirt"}

# The first process of a host: it makes the mounts and keeps the namespaces. Arguments: DIRECTORY NAME, then OUTSIDE:INSIDE of private
# directories and files, then MOUNTPOINT=TYPE=OPTIONS of what is mounted anew.
HOLDER = """
set -e
directory=$1 name=$2
shift 2
hostname "$name"
mount --make-rprivate /
# One that shows the interfaces of this network namespace: libvirt looks there.
mount -t sysfs sysfs /sys
for pair in "$@"; do
  case $pair in
  *=*=*)
    target=${pair%%=*} rest=${pair#*=}
    mkdir -p "$target"
    mount -t "${rest%%=*}" -o "${rest#*=}" cgroups "$target"
    ;;
  *)
    mkdir -p "${pair#*:}" 2>/dev/null || true
    mount --bind "${pair%%:*}" "${pair#*:}"
    case $pair in *:/opt/*) mount -o remount,bind,ro "${pair#*:}" ;; esac
    ;;
  esac
done
# libvirt's user may use it, or libvirtd probes each QEMU again for every call: it opens /dev/kvm as root and looks as that user.
if [ -c /dev/kvm ]; then
  mkdir "$directory/dev"
  mount -t tmpfs -o mode=755 dev "$directory/dev"
  cp -a /dev/kvm "$directory/dev/kvm"
  chmod 666 "$directory/dev/kvm"
  mount --bind "$directory/dev/kvm" /dev/kvm
fi
echo up >"$directory/up"
exec sleep infinity
"""

QEMU_CONF = """security_driver = "none"
"""
LIBVIRTD_CONF = """host_uuid = "{uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_level = 3
log_outputs = "1:file:/var/log/libvirt/libvirtd.log"
"""


class VirshError(Exception):
    """A virsh command that failed; .text is what it said."""

    def __init__(self, args, text):
        super().__init__(f"virsh {' '.join(args)}: {text}")
        self.text = text


def need():
    """Unavailable where libvirt's programs, or the right to make namespaces, are not there."""
    if os.geteuid() != 0:
        raise Unavailable("needs root: namespaces and libvirt's system daemon")
    for name in ("libvirtd", "virtlogd", "virsh"):
        if not program(name):
            raise Unavailable(f"{name} is not installed")
    if not list(Path("/usr/lib").glob("*/libvirt/connection-driver/libvirt_driver_qemu.so")):
        raise Unavailable("libvirt's QEMU driver is not installed")


def program(name):
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


class Cgroups:
    """A cgroup of a host's own in each hierarchy, versions 1 and 2; without, where the machine gives none."""

    def __init__(self, name):
        self.name = name
        self.made = []  # (mount point, its type, its options, our directory there)

    def make(self):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, right = (part.split() for part in line.split(" - "))
            if right[0] in ("cgroup", "cgroup2") and left[4].startswith(str(CGROUPS)):
                self._make(Path(left[4]), right[0], [word for word in right[2].split(",") if word not in ("rw", "ro")])

    def _make(self, mount, kind, options):
        directory = mount / self.name
        try:
            directory.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):
                if kind == "cgroup" and (mount / name).exists():
                    (directory / name).write_text((mount / name).read_text())
            if kind == "cgroup2":
                (directory / "daemons").mkdir()
            if mount == CGROUPS:
                self._delegate(mount)
        except OSError:  # a read-only mount, or one that a container does not own
            return
        self.made.append((mount, kind, [word for word in options if "release_agent" not in word], directory))

    @staticmethod
    def _delegate(mount):
        """Version 2 alone. Ours has no process but in its leaf `daemons`, so that libvirt can pass the controllers on."""
        on = (mount / "cgroup.subtree_control").read_text().split()
        for controller in (mount / "cgroup.controllers").read_text().split():
            if controller not in on:
                with contextlib.suppress(OSError):
                    (mount / "cgroup.subtree_control").write_text(f"+{controller}")

    def mounts(self):
        """For HOLDER. A named hierarchy of version 1 (systemd's) has no controller."""
        if any(mount != CGROUPS for mount, *_ in self.made):
            yield f"{CGROUPS}=tmpfs=mode=755"
        for mount, kind, options, _ in self.made:
            words = ["none", *options] if any(word.startswith("name=") for word in options) else options
            yield f"{mount}={kind}={','.join(words if kind == 'cgroup' else ['rw'])}"

    def procs(self, leaf=True):
        """The files to write a pid to. leaf: where the daemons live; else where the namespace has its root."""
        return [directory / ("daemons" if leaf and kind == "cgroup2" else ".") / "cgroup.procs" for _, kind, _, directory in self.made]

    def remove(self):
        for *_, directory in self.made:
            for path, _, _ in os.walk(directory, topdown=False):
                # A process that has ended leaves its cgroup a moment later.
                wait_until(lambda: self._rmdir(path), 20, f"the cgroup {path} to be empty")
        self.made = []

    @staticmethod
    def _rmdir(path):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True


class Reaper:
    """Whose parent has ended becomes a child of this process, and is reaped at once.

    libvirtd waits for a QEMU that it has killed until its pid is gone. The first process of a container may take seconds, or never reap.
    """

    users = 0
    PR_SET_CHILD_SUBREAPER = 36

    def __enter__(self):
        Reaper.users += 1
        if Reaper.users == 1:
            _libc.prctl(self.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            Reaper.stopping = threading.Event()
            Reaper.thread = threading.Thread(target=self._run, daemon=True)
            Reaper.thread.start()
        return self

    def __exit__(self, *_):
        Reaper.users -= 1
        if Reaper.users == 0:
            self.stopping.set()
            self.thread.join()
            _libc.prctl(self.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def _run(self):
        while not self.stopping.wait(0.02):
            self._reap()
        self._reap()

    @staticmethod
    def _reap():
        """Daemons have a session of their own; children of ours, which a Popen waits for, have our session."""
        for children in Path("/proc/self/task").glob("*/children"):
            for pid in map(int, read_bytes(children).split()):
                fields = read_bytes(f"/proc/{pid}/stat").rpartition(b")")[2].split()
                if fields and fields[0] == b"Z" and int(fields[3]) != os.getsid(0):
                    with contextlib.suppress(ChildProcessError):
                        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


class LibvirtHost:
    """One host: virsh() speaks to its libvirtd, .daemon is its droverd; on leaving nothing of it is left."""

    connection, state, logs = "qemu:///system", STATE, LOGS
    service = "libvirtd"
    own = "7.2"       # the version of the QEMU in its /usr
    root = Path("/")  # where that /usr is

    def __init__(self, name="host-a", emulators=("10.0",), images=None, droverd=True, env=None, config=None, foreground=False,
                 qemu_conf="", libvirtd_conf=""):
        """emulators: the QEMU versions beside 7.2 that it has, see emulator(). images: a directory that is its IMAGES, shared with
        another host. env, config: of droverd. foreground: libvirtd is our child, as a supervisor's; else it is started with -d."""
        self.name, self.emulators, self.images = name, emulators, images
        self.foreground = foreground
        self.droverd, self.env, self.config = droverd, env, config
        self.confs = {"qemu.conf": QEMU_CONF + qemu_conf, f"{self.service}.conf": LIBVIRTD_CONF.format(uuid=uuid.uuid4()) + libvirtd_conf}
        self.serial = itertools.count(1)
        self.holder = self.daemon = self.libvirtd = None
        self.address = None  # towards the other host, if there is one
        self.procs = Path("/proc")
        self.stack = contextlib.ExitStack()

    # --- Beginning and end ---

    def __enter__(self):
        need()
        try:
            self._make()
            self.start_virtlogd()
            self.start_libvirtd()
            if self.droverd:
                self.daemon = self.stack.enter_context(drover.Daemon(prefix=self.prefix, env=self.env, config=self.config))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def _make(self):
        # Short: libvirt puts unix sockets below it, whose paths have 107 bytes, and migration URIs name them by the path outside.
        self.dir = Path(tempfile.mkdtemp(prefix="lh-", dir="/tmp"))
        self.stack.callback(shutil.rmtree, self.dir, ignore_errors=True)
        self.dir.chmod(0o755)
        self.stack.enter_context(Reaper())
        self.cgroups = Cgroups(self.dir.name)
        self.stack.callback(self.cgroups.remove)
        self.cgroups.make()
        self.netns = self.stack.enter_context(hosts.Netns())
        self.stack.callback(self._kill_all)
        for name in PRIVATE:
            (self.dir / name).mkdir(mode=0o755)
        self._fill()
        self._hold()
        self.bridge = self.stack.enter_context(hosts.Bridge(self.netns, f"{GATEWAY}/24", "br0"))

    def _fill(self):
        """What the private directories hold at first."""
        for name, text in self.confs.items():
            self.path(f"/etc/libvirt/{name}").write_text(text)
        for path in (IMAGES, BOOT, LOGS):
            self.path(path).mkdir(mode=0o711, exist_ok=True)
        out = guest.build()
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(out / name, self.path(BOOT))
        for version in self.emulators:
            self.path(f"/opt/qemu-{version}").mkdir()
            self._wrap(version)

    def _wrap(self, version):
        """The starting script of an unpacked QEMU (it sets QEMU_MODULE_DIR and the paths) with the place that it has in here.

        The build directory may be where only root can go; QEMU runs as libvirt's user.
        """
        text, found = re.subn(r"^R=.*$", f"R='/opt/qemu-{version}/root'", Path(guest.qemu(version)).read_text(), flags=re.MULTILINE)
        assert found == 1, f"the starting script of QEMU {version} names no place"
        wrapper = self.dir / f"qemu-{version}"
        wrapper.write_text(text)
        wrapper.chmod(0o755)
        # libvirt asks for all types, and so has all modules loaded; for one that its directory lacks, QEMU takes the machine's own, of
        # another version, and 11.1 aborts over that. An empty file is found first, and is passed over.
        modules = self.dir / f"modules-{version}"
        if not (self._tree(version) / MODULES).exists():
            return
        shutil.copytree(self._tree(version) / MODULES, modules)
        for path in (self.root / MODULES).glob("*.so"):
            (modules / path.name).touch()

    @staticmethod
    def _tree(version):
        return Path(guest.qemu(version)).resolve().parent / "root"

    def _binds(self):
        yield from ((self.dir / ours, inside) for ours, inside in PRIVATE.items())
        if self.images:
            yield self.images, IMAGES
        for version in self.emulators:
            yield self._tree(version).parent, f"/opt/qemu-{version}"
            yield self.dir / f"qemu-{version}", f"/opt/qemu-{version}/qemu-system-x86_64"
            if (self.dir / f"modules-{version}").exists():
                yield self.dir / f"modules-{version}", f"/opt/qemu-{version}/root/{MODULES}"
        for path in self._accounts():
            yield path, f"/etc/{path.name}"

    def _accounts(self):
        """libvirt's user, for a machine that has libvirt's programs without its packages' set-up."""
        try:
            pwd.getpwnam(USER)
            return []
        except KeyError:
            pass
        (self.dir / "passwd").write_text(f"{Path('/etc/passwd').read_text()}{USER}:x:64055:64055:Libvirt Qemu:/var/lib/libvirt:/usr/sbin/nologin\n")
        (self.dir / "group").write_text(f"{Path('/etc/group').read_text()}{USER}:x:64055:{USER}\n")
        return [self.dir / "passwd", self.dir / "group"]

    def _hold(self):
        enter, script = self.dir / "in", self.dir / "holder"
        script.write_text(HOLDER)
        binds = [f"{outside}:{inside}" for outside, inside in self._binds()]
        argv = ["sh", "-c", join(self.cgroups.procs(leaf=False)) + 'exec "$@"', "sh", "nsenter", f"--net=/run/netns/{self.netns}", "unshare",
                "--mount", "--uts", "--cgroup", "sh", script, self.dir, self.name, *binds, *self.cgroups.mounts()]
        with open(self.dir / "holder.log", "wb") as log:
            self.holder = subprocess.Popen(list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                                           preexec_fn=die_with_parent)
        self.stack.callback(self._end_holder)
        wait_until(self._held, 20, "the namespaces of a libvirt host")
        enter.write_text(f"#!/bin/sh\n{join(self.cgroups.procs())}"
                         f'exec nsenter -t {self.holder.pid} --mount --net --uts --cgroup -- "$@"\n')
        enter.chmod(0o755)
        self.prefix = [str(enter)]

    def _held(self):
        if self.holder.poll() is not None:
            raise Unavailable(f"cannot make a libvirt host's namespaces: {(self.dir / 'holder.log').read_text().strip()[-500:]}")
        return (self.dir / "up").exists()

    def _end_holder(self):
        if self.holder.poll() is None:
            kill_pid(self.holder.pid)
        self.holder.wait()

    def pids(self):
        """All processes of this host but its first: those that are in its network namespace."""
        netns = os.stat(f"/run/netns/{self.netns}")
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in (os.getpid(), self.holder and self.holder.pid):
                with contextlib.suppress(OSError):
                    there = os.stat(entry / "ns" / "net")
                    if (there.st_dev, there.st_ino) == (netns.st_dev, netns.st_ino):
                        found.append(int(entry.name))
        return found

    def qemus(self):
        """The pids of its QEMUs, those of domains and those that somebody else left."""
        return [pid for pid in self.pids() if b"-name\0guest=" in self.proc(pid, "cmdline")]

    def proc(self, pid, name):
        """A file of /proc/PID; b"" if it is not there (any more)."""
        return read_bytes(self.procs / str(pid) / name)

    def pty(self, path):
        """The path outside of a pty."""
        return path

    @staticmethod
    def kill(pid, sig=signal.SIGKILL):
        kill_pid(pid, timeout=30, sig=sig)

    def _kill_all(self):
        """Daemons first: they could start something meanwhile."""
        for daemon in (self.service, "virtlogd"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                pid = int(self.path(f"/run/{daemon}.pid").read_text())
                if pid in self.pids():
                    kill_pid(pid)

        def none_left():
            left = self.pids()
            for pid in left:
                kill_pid(pid)
            return not left

        wait_until(none_left, 30, "the processes of a libvirt host to end")
        if isinstance(self.libvirtd, Process):
            self.libvirtd.wait()

    def close(self):
        self.stack.close()

    # --- Inside ---

    def path(self, inside):
        """The path outside of one that is private inside."""
        inside = Path(inside)
        if self.images and inside.is_relative_to(IMAGES):
            return Path(self.images) / inside.relative_to(IMAGES)
        for ours, private in PRIVATE.items():
            if inside.is_relative_to(private):
                return self.dir / ours / inside.relative_to(private)
        raise ValueError(f"{inside} is not private to a libvirt host")

    def run(self, *argv, **options):
        return run(*self.prefix, *argv, **options)

    def emulator(self, version=None):
        """The path inside of a QEMU. None: of the one in /usr."""
        return guest.qemu("7.2") if version in (None, self.own) else f"/opt/qemu-{version}/qemu-system-x86_64"

    def virsh(self, *args, timeout=60):
        """What a virsh command prints; raises VirshError with what it says, Timeout after timeout s."""
        args = [str(arg) for arg in args]
        try:
            done = self.run("virsh", "-q", "-c", self.connection, *args, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise Timeout(f"virsh {' '.join(args)}: has not ended after {timeout} s; libvirtd said: {self.log()}") from None
        if done.returncode:
            raise VirshError(args, done.stderr.strip() or done.stdout.strip())
        return done.stdout.strip()

    def log(self):
        """The end of what libvirtd logged, without debugging (which is for libvirtd_conf: log_filters = "1:qemu")."""
        return read_bytes(self.path("/var/log/libvirt/libvirtd.log")).decode(errors="replace")[-3000:]

    def start_virtlogd(self):
        self.run(program("virtlogd"), "-d")
        wait_until(self.path("/run/libvirt/virtlogd-sock").exists, 20, "virtlogd's socket")

    def program(self):
        """libvirt's daemon, inside."""
        return program("libvirtd")

    def start_libvirtd(self, foreground=None, timeout=60):
        """Starts it and waits until it answers. foreground: None for what the host was made with."""
        if self.foreground if foreground is None else foreground:
            self.libvirtd = Process([*self.prefix, self.program()], self.dir / "libvirtd.out")
        else:
            self.run(self.program(), "-d", timeout=timeout)
        wait_until(self.answers, timeout, "libvirtd to answer")

    def answers(self):
        """Whether libvirtd answers; it is asked for what the QEMU driver knows."""
        try:
            self.virsh("list", "--all", timeout=10)
        except VirshError:
            return False
        return True

    def libvirtd_pid(self):
        """None while none runs."""
        try:
            pid = int(self.path(f"/run/{self.service}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if pid in self.pids() else None

    def stop_libvirtd(self, sig=signal.SIGTERM):
        """Domains run on."""
        pid = self.libvirtd_pid()
        if pid is None:
            return
        kill_pid(pid, timeout=30, sig=sig)
        if isinstance(self.libvirtd, Process) and self.libvirtd.pid == pid:
            self.libvirtd.wait()

    def uri(self):
        """The URI by which the libvirt of another host reaches this one's."""
        return f"qemu+unix:///system?socket={self.path('/run/libvirt/libvirt-sock')}"

    def image(self, mib=64, name=None, kind="qcow2"):
        """Makes an empty image; returns its path inside."""
        path = f"{IMAGES}/{name or f'disk{next(self.serial)}.{kind}'}"
        run("qemu-img", "create", "-q", "-f", kind, self.path(path), f"{mib}M")
        self.path(path).chmod(0o666)  # where libvirt does not give it to QEMU's user: see two_hosts()
        return path

    def overlay(self, path, base):
        """Makes an image of everybody's on another one, for a libvirt that gives QEMU's user none."""
        info = json.loads(run("qemu-img", "info", "-U", "--output=json", self.path(base)).stdout)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", base, "-F", info["format"], self.path(path), info["virtual-size"])
        self.path(path).chmod(0o666)

    @property
    def gives_images(self):
        return "dynamic_ownership = 0" not in self.confs["qemu.conf"]

    def events(self):
        return Events(self)


class Events:
    """`virsh event --loop --all` in the background: .lines holds what it has said, one event a line."""

    PROBE = "<domain type='qemu'><name>{name}</name><memory>1024</memory><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os></domain>"

    def __init__(self, host):
        self.host, self.lines = host, []

    def __enter__(self):
        self.popen = subprocess.Popen([*self.host.prefix, "stdbuf", "-oL", "virsh", "-q", "-c", "qemu:///system", "event", "--loop", "--all"],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                      preexec_fn=die_with_parent)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        try:
            self._wait_registered()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _read(self):
        for line in self.popen.stdout:
            self.lines.append(line.strip())

    def _wait_registered(self):
        """virsh does not say when it has begun to listen: makes events until one comes."""
        names = []

        def heard():
            names.append(f"probe{next(self.host.serial)}")
            xml = self.host.dir / f"{names[-1]}.xml"
            xml.write_text(self.PROBE.format(name=names[-1]))
            self.host.virsh("define", xml)
            self.host.virsh("undefine", names[-1])
            return self.lines

        wait_until(heard, 30, "virsh to hear events", interval=0.1)
        self.wait(f"'{names[-1]}'", "Undefined")
        self.lines.clear()

    def wait(self, *texts, timeout=20, since=0):
        """The first line from index `since` on that has all the texts in it."""
        def found():
            return next((line for line in self.lines[since:] if all(text in line for text in texts)), None)

        try:
            return wait_until(found, timeout, "")
        except Timeout:
            raise Timeout(f"libvirt event with {texts}: not within {timeout} s; there were: {self.lines[since:]}") from None

    def __exit__(self, *_):
        self.popen.kill()
        self.popen.wait()
        self.thread.join()
        self.popen.stdout.close()


class Domain:
    """A domain that runs the witness guest. It is defined at once, unless transient, and started by start().

    memory: "memfd" and "file" are shared with whom it is given to, "plain" is anonymous. ram: MiB; TCG before QEMU 9.0 loses dirty pages
    of what libvirt can give, which are whole MiB: RAM that is to be copied wants version="10.0".
    version: of the QEMU, as of emulator(). disks: (MiB or a path of an image) of each, vda on; the witness writes to all of them.
    """

    BACKING = {"memfd": "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
               "file": "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>",
               "plain": ""}

    def __init__(self, host, name="vm", *, version=None, machine="pc-q35-7.2", memory="memfd", ram=192, mem=32, rate=50, vcpus=1, disks=(64,),
                 nic=True, agent=False, witness=None, devices="", more="", spare_ports=4, transient=False, start=True):
        """devices, more: XML to add in <devices> and <domain>. spare_ports: PCIe ports for what will be plugged in."""
        self.host, self.name, self.transient, self.agent = host, name, transient, agent
        self.emulator = host.emulator(version)
        self.machine, self.memory, self.ram, self.vcpus, self.nic = machine, memory, ram, vcpus, nic
        self.devices, self.more, self.spare_ports = devices, more, spare_ports
        self.disks = [disk if isinstance(disk, str) else host.image(disk, f"{name}-{next(host.serial)}.qcow2") for disk in disks]
        targets = ",".join(f"/dev/{target(number)}" for number in range(len(self.disks)))
        self.witness = {"mem": mem, "rate": rate, "disk": targets or None, "ip": f"{ADDRESS}/24" if nic else None, "gw": GATEWAY if nic else None,
                        "agent": 1 if agent else None, **(witness or {})}
        self.console = self.bootid = None
        self.serial_log = f"{host.logs}/{name}-serial.log"
        if agent:
            shutil.copy(guest.agent_initrd(), host.path(BOOT))
        if not transient:
            self.define()
        if start:
            self.start()

    # --- Its XML ---

    def xml(self):
        _, _, _, initrd, _, cmdline = guest.kernel_args(**self.witness)
        return f"""<domain type='qemu'>
  <name>{self.name}</name>
  <memory unit='MiB'>{self.ram}</memory>
  {self.BACKING[self.memory]}
  <vcpu>{self.vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='{self.machine}'>hvm</type>
    <kernel>{BOOT}/vmlinuz</kernel>
    <initrd>{BOOT}/{Path(initrd).name}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>{self.emulator}</emulator>
    {''.join(disk_xml(path, target(number)) for number, path in enumerate(self.disks))}
    {nic_xml(self.mac) if self.nic else ''}
    {self._ports()}
    <serial type='pty'><log file='{self.serial_log}' append='off'/><target port='0'/></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    {"<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>" if self.agent else ''}
    {self.devices}
  </devices>
  {self.more}
</domain>
"""

    mac = "52:54:00:77:00:01"

    def _ports(self):
        """libvirt adds no port that is free; of those that it is given it uses some for what is there, the balloon and USB too."""
        ports = len(self.disks) + self.nic + self.agent + 2 + self.spare_ports
        return "".join(f"<controller type='pci' index='{number}' model='pcie-root-port'/>" for number in range(1, ports + 1))

    def _xml_file(self, text, suffix=""):
        path = self.host.dir / f"{self.name}{suffix}.xml"
        path.write_text(text)
        return path

    def define(self):
        self.host.virsh("define", self._xml_file(self.xml()))

    # --- Its life ---

    def virsh(self, command, *args, **options):
        """A virsh command whose first argument is the domain."""
        return self.host.virsh(command, self.name, *args, **options)

    def start(self, timeout=90):
        """A cold start; returns when the guest is up."""
        log = self.host.path(self.serial_log)
        log.unlink(missing_ok=True)
        if self.transient:
            self.host.virsh("create", self._xml_file(self.xml()), timeout=timeout)
        else:
            self.virsh("start", timeout=timeout)
        # What the guest says while nobody has the pty open is lost; virtlogd's file has all of it.
        wait_until(lambda: b"WITNESS READY" in read_bytes(log), timeout, f"the guest of {self.name} to be up")
        self._open_console()
        self.bootid = self.console.status(timeout=20)["bootid"]
        return self

    def resume_saved(self, timeout=90):
        """Starts it after a managedsave: the same boot goes on."""
        self.virsh("start", timeout=timeout)

    def managedsave(self, timeout=120):
        self.virsh("managedsave", timeout=timeout)

    def destroy(self):
        self.virsh("destroy")

    def state(self):
        return self.virsh("domstate")

    def pid_file(self):
        return self.host.path(f"{self.host.state}/{self.name}.pid")

    @property
    def pid(self):
        return int(self.pid_file().read_text())

    def status_xml(self):
        """libvirt's status file, the root element of it: <domstatus>."""
        return ElementTree.fromstring(self.host.path(f"{self.host.state}/{self.name}.xml").read_text())

    def live_xml(self):
        """What libvirtd knows of the running domain."""
        return ElementTree.fromstring(self.virsh("dumpxml"))

    def argv(self):
        return [word.decode() for word in read_bytes(f"/proc/{self.pid}/cmdline").split(b"\0")[:-1]]

    def qmp(self, command, **arguments):
        """A QMP command behind libvirt's back: it marks the domain as tainted."""
        answer = json.loads(self.virsh("qemu-monitor-command", json.dumps({"execute": command, "arguments": arguments})))
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def agent_command(self, command, **arguments):
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        return json.loads(self.virsh("qemu-agent-command", json.dumps(request), timeout=30))["return"]

    # --- Its health ---

    def _open_console(self):
        """The pty that libvirt names now, opened again only if it is another one: QEMU looks for a reader of a pty once a second."""
        path = self.host.pty(self.virsh("ttyconsole"))
        if self.console is None:
            self.console = guest.Console(path)
        elif self.console.path != path or self.console.sock.hung_up():
            self.console.follow(path)

    def healthy(self, passes=1):
        """The guest lives, was not rebooted, all of its memory and of its disks is right; returns its status."""
        self._open_console()
        before = {disk["path"]: disk["acked"] for disk in self.console.status(timeout=20)["disks"]}
        self.console.wait_passes(passes)

        def written():
            status = self.console.check(bootid=self.bootid)
            return status if all(disk["acked"] > before.get(disk["path"], -1) for disk in status["disks"]) else None

        status = wait_until(written, 30, f"the guest of {self.name} to write to its disks", interval=0.05)
        said = guest.BAD_OUTPUT.search(read_bytes(self.host.path(self.serial_log)))
        if said:
            raise guest.WitnessError(f"{self.name}: its console has {said.group().decode()!r}")
        return status

    def udp(self):
        """The witness by its own network interface, from the bridge."""
        return guest.Udp(ADDRESS, netns=self.host.netns)

    def answers_network(self):
        """Asks the guest over its network interface; returns the bootid."""
        with contextlib.closing(self.udp()) as udp:
            return udp.status(timeout=20)["bootid"]

    def disk_problems(self, acked, number=0, path=None):
        """What the image of a disk lacks of the writes that the guest was told are done, up to number acked; the domain must not run.

        path: of the image now (after a snapshot it is another one).
        """
        raw = self.host.dir / f"{self.name}.raw"
        self.host.run("qemu-img", "convert", "-O", "raw", path or self.disks[number], raw)
        try:
            return guest.DiskImage(raw).problems(acked)
        finally:
            raw.unlink()

    # --- Its devices ---

    def attach_disk(self, mib=64, to="vdb", use=True):
        """Plugs in a disk; use: the witness writes to it. Returns the path of its image."""
        path = self.host.image(mib, f"{self.name}-{to}-{next(self.host.serial)}.qcow2")
        self.virsh("attach-device", self._xml_file(disk_xml(path, to), "-disk"), "--live")
        if use:
            self._open_console()
            self.console.command(f"disk /dev/{to}", timeout=30)
        return path

    def detach_disk(self, to="vdb"):
        self._open_console()
        self.console.command(f"diskstop /dev/{to}", timeout=30)
        self.virsh("detach-disk", to, "--live")

    def attach_nic(self, mac="52:54:00:77:00:02"):
        """Plugs in a NIC on the bridge; returns when the guest has it."""
        self.virsh("attach-device", self._xml_file(nic_xml(mac), "-nic"), "--live")
        self._open_console()
        wait_until(lambda: any(nic["mac"] == mac for nic in self.console.status()["nics"]), 30, f"the guest to see its NIC {mac}", interval=0.1)
        return mac

    def detach_nic(self, mac="52:54:00:77:00:02"):
        self.virsh("detach-interface", "bridge", "--mac", mac, "--live")

    def snapshot(self, to="vda"):
        """An external snapshot of one disk; returns the path of the overlay, which the guest writes to now."""
        number = next(self.host.serial)
        path = f"{IMAGES}/{self.name}-{to}-snap{number}.qcow2"
        others = [disk for disk in self.targets() if disk != to]
        reuse = () if self.host.gives_images else ("--reuse-external",)
        if reuse:
            self.host.overlay(path, self.source(to))
        self.virsh("snapshot-create-as", f"snap{number}", "--disk-only", *reuse, "--atomic", "--no-metadata", "--diskspec", f"{to},file={path}",
                   *(word for disk in others for word in ("--diskspec", f"{disk},snapshot=no")))
        return path

    def targets(self):
        return [line.split()[0] for line in self.virsh("domblklist").splitlines()]

    def source(self, to="vda"):
        """The image that libvirt says a disk has."""
        return next(line.split(maxsplit=1)[1] for line in self.virsh("domblklist").splitlines() if line.split()[0] == to)

    def blockcommit(self, to="vda"):
        """Back from the overlay to the base."""
        self.virsh("blockcommit", to, "--active", "--pivot", "--wait", timeout=120)

    # --- Moves ---

    def migrate(self, other, *options, p2p=False, timeout=180):
        """`virsh migrate` to another host; the domain is that one's afterwards."""
        persistent = () if self.transient else ("--persistent", "--undefinesource")
        self.virsh("migrate", "--live", "--unsafe", *(("--p2p",) if p2p else ()), *persistent, *options, other.uri(),
                   f"tcp://{other.address}", timeout=timeout)
        self.host = other

    # --- Its end ---

    def remove(self):
        """Destroyed and undefined, in whatever state; for several tests on one host."""
        self.close()
        for command in (("destroy",), ("undefine", "--nvram", "--managed-save", "--snapshots-metadata")):
            with contextlib.suppress(VirshError):
                self.virsh(*command)
        for path in self.host.path(IMAGES).glob(f"{self.name}-*"):
            path.unlink()

    def close(self):
        if self.console:
            self.console.close()
            self.console = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()


@contextlib.contextmanager
def domains(host, **defaults):
    """make(name="vm", where=host, ...) makes a Domain; at the end each is taken away again."""
    with contextlib.ExitStack() as made:
        def make(name="vm", where=host, **options):
            return made.enter_context(Domain(where, name, **{**defaults, **options}))

        yield make


def target(number):
    return f"vd{chr(ord('a') + number)}"


def disk_xml(path, to):
    return (f"<disk type='file' device='disk'><driver name='qemu' type='{'raw' if path.endswith('.raw') else 'qcow2'}'/>"
            f"<source file='{path}'/><target dev='{to}' bus='virtio'/></disk>")


def nic_xml(mac):
    return f"<interface type='bridge'><mac address='{mac}'/><source bridge='br0'/><model type='virtio'/></interface>"


def read_bytes(path):
    """b"" if it is not there (any more)."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def join(procs):
    """Shell lines that put the shell into cgroups."""
    return "".join(f"echo $$ >{path}\n" for path in procs)


@contextlib.contextmanager
def two_hosts(**options):
    """Two hosts on one wire, with one directory of images for both, as NFS would make it; yields (a, b)."""
    with contextlib.ExitStack() as stack:
        need()
        images = Path(tempfile.mkdtemp(prefix="li-", dir="/tmp"))
        stack.callback(shutil.rmtree, images, ignore_errors=True)
        images.chmod(0o711)
        # The host that a domain leaves would take its images from the other's QEMU, some time after the move.
        options.setdefault("qemu_conf", "dynamic_ownership = 0\n")
        a, b = (stack.enter_context(LibvirtHost(name, images=images, **options)) for name in ("host-a", "host-b"))
        stack.enter_context(hosts.Veth(a.netns, b.netns, *(f"{address}/24" for address in LINK)))
        a.address, b.address = LINK
        yield a, b
