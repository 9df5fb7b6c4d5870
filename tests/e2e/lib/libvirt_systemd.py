# SPDX-License-Identifier: LGPL-2.1-or-later
"""A libvirt host whose libvirt is systemd's: the services and sockets of its packages in a container (lib/container.py), with machined for the
domains' scopes."""

import shutil
import tempfile
from pathlib import Path

from . import hosts, libvirt
from .beneath import Beneath
from .container import Container
from .procs import Unavailable, run, wait_until

# What is not in the container by itself: a tun device, and the other QEMUs. $1: whether libvirt is to make control groups for its domains.
SETUP = r"""
set -eu
groups=$1
shift
mkdir -p /dev/net
mknod /dev/net/tun c 10 200
chmod 666 /dev/kvm 2>/dev/null || true
# libvirt leaves version 2 alone where it sees no controller there: version 1 has them all. One that it does not know lets it make its groups.
[ "$groups" = no ] || cat /sys/fs/cgroup/cgroup.controllers >/run/controllers
[ "$groups" = no ] || [ -s /run/controllers ] || echo misc >/run/controllers
touch /run/controllers
mount --bind /run/controllers /sys/fs/cgroup/cgroup.controllers
rm -rf /etc/libvirt/qemu/networks/autostart
for pair in "$@"; do
  inside=${pair#*:}
  [ -d "${pair%%:*}" ] && mkdir -p "$inside" || touch "$inside"
  mount --bind "${pair%%:*}" "$inside"
done
"""


class SystemdHost(libvirt.LibvirtHost):
    """Pids are those inside. Nothing of the machine's files is private to it by a name: all of them are its own copy."""

    def __init__(self, groups=True, **options):
        """groups: False: libvirt makes none for its domains, which then live in that of its service."""
        if not Path("/lib/systemd/system/libvirtd.service").exists():
            raise Unavailable("there is no libvirtd.service: the package libvirt-daemon-system is missing")
        self.groups = groups
        self.sockets = [f"{self.service}.socket", f"{self.service}-ro.socket", f"{self.service}-admin.socket"]
        self.units = [f"{self.service}.service", *self.sockets]
        super().__init__(droverd=False, **options)

    def _make(self):
        self.dir = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))
        self.stack.callback(shutil.rmtree, self.dir, ignore_errors=True)
        self.dir.chmod(0o755)
        self.container = Container(self.dir)
        self.stack.callback(self.container.close)
        self.container.start()
        self.prefix = self.container.argv()
        self.root = Path(f"/proc/{self.container.pid}/root")
        self.procs = self.root / "proc"
        self.netns = hosts.unique("ls")
        run("ip", "netns", "attach", self.netns, self.container.pid)
        self.stack.callback(run, "ip", "netns", "del", self.netns, check=False)
        self._fill()
        self.run("sh", "-c", SETUP, "setup", "yes" if self.groups else "no", *(f"{outside}:{inside}" for outside, inside in self._binds()))
        self.bridge = self.stack.enter_context(hosts.Bridge(self.netns, f"{libvirt.GATEWAY}/24", "br0"))

    def _binds(self):
        return ((outside, inside) for outside, inside in super()._binds() if str(inside) not in libvirt.PRIVATE.values())

    def path(self, inside):
        return self.root / str(inside).lstrip("/")

    def pty(self, path):
        return str(self.path(path))

    def pids(self):
        return [int(entry.name) for entry in self.procs.iterdir() if entry.name.isdigit() and entry.name != "1"]

    def kill(self, pid, sig=9):
        self.run("kill", f"-{int(sig)}", pid)
        wait_until(lambda: pid not in self.pids() or self.proc(pid, "stat").rpartition(b")")[2].split()[:1] == [b"Z"], 20, f"pid {pid} to end")

    def cgroup(self, pid):
        """The directory of a process's control group."""
        line = next(line for line in self.run("cat", f"/proc/{pid}/cgroup").stdout.splitlines() if line.startswith("0::"))
        return self.path(f"/sys/fs/cgroup{line[len('0::'):]}")

    def inside(self, path):
        return f"/{path.relative_to(self.root)}"

    # --- libvirt's daemons ---

    def start_virtlogd(self):
        self.run("systemctl", "start", "virtlogd.socket")

    def start_libvirtd(self, foreground=None, timeout=60):
        self.run("systemctl", "start", *self.sockets)
        self.run("systemctl", "start", self.units[0], timeout=timeout)
        wait_until(self.answers, timeout, "libvirtd to answer")

    def libvirtd_pid(self):
        return int(self.container.show(self.units[0], "MainPID")["MainPID"]) or None

    def active(self, *units):
        return self.run("systemctl", "is-active", *units, check=False).stdout.split()


class BeneathService(Beneath):
    """drover-libvirt in a service, as droverd has it: whatever it leaves in its control group ends with it."""

    def __init__(self, host):
        super().__init__(host)
        self.prefix = [*host.prefix, "systemd-run", "--pipe", "--wait", "--collect", "--quiet"]
