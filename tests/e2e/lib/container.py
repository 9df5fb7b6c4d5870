# SPDX-License-Identifier: LGPL-2.1-or-later
"""This machine once more, with a systemd of its own: a copy of its files that is gone afterwards, and nothing of the real one within reach."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .drover import Daemon
from .procs import REPO, Unavailable, kill_pid, run, wait_until

# What would reach beyond the container, or empty /tmp, or is of no use here.
MASKED = """systemd-sysctl.service systemd-binfmt.service systemd-modules-load.service systemd-tmpfiles-setup.service
systemd-tmpfiles-setup-dev.service systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket
systemd-remount-fs.service systemd-logind.service systemd-random-seed.service systemd-pstore.service timers.target getty.target
proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount
sys-kernel-config.mount sys-fs-fuse-connections.mount""".split()

NODES = "null zero full random urandom tty kvm vhost-net"

# Runs in namespaces of its own, $1 the scratch directory, $2 what is shared with the test, $3 the repository. Every mount is private.
SETUP = r"""
set -eu
scratch=$1 root=$1/root
mount --make-rprivate /
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/up" "$scratch/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/up,workdir=$scratch/work" "$root"
for shared in "$2" "$3"; do
  mkdir -p "$root$shared"
  mount --rbind "$shared" "$root$shared"
done
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in """ + NODES + r"""; do
  if [ -c "/dev/$node" ]; then cp -a "/dev/$node" "$root/dev/$node"; fi
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
find "$root/etc/systemd/system" -mindepth 1 -maxdepth 1 -name '*.wants' -exec rm -rf {} +
for unit in """ + " ".join(MASKED) + r"""; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
# An installation may start services here, and need not index the manual.
rm -f "$root/usr/sbin/policy-rc.d" "$root/var/lib/man-db/auto-update"
mkdir -p "$root/mnt/outside"
cd "$root"
pivot_root . mnt/outside
umount -l /mnt/outside
export container=drover-test
exec /lib/systemd/systemd --system --unit=basic.target
"""


def cgroup_root():
    """Where the unified hierarchy is mounted, with other hierarchies beside it or not."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    raise Unavailable("no cgroup2 file system is mounted")


class Container:
    def __init__(self, shared):
        """shared: a directory that both see under its name."""
        if os.geteuid() != 0 or not Path("/lib/systemd/systemd").exists():
            raise Unavailable("a container with systemd in it needs root and systemd")
        self.scratch = Path(tempfile.mkdtemp(prefix="drc-", dir="/tmp"))
        self.cgroup = cgroup_root() / self.scratch.name
        self.log = Path(shared) / "container.log"
        self.shared = Path(shared)
        self.outer = self.pid = None

    def start(self):
        try:
            self.cgroup.mkdir()
        except OSError as error:
            raise Unavailable(f"no control group can be made: {error}") from None
        with open(self.log, "ab") as log:
            self.outer = subprocess.Popen(
                ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', self.cgroup, "unshare", "--mount", "--pid", "--fork", "--cgroup",
                 "--uts", "--ipc", "--net", "--kill-child", "bash", "-c", SETUP, "setup", self.scratch, self.shared, REPO],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._booted, 90, lambda: f"systemd to start: {self.log.read_text(errors='replace')[-2000:]}", interval=0.1)
        self.run("ip", "link", "set", "lo", "up")
        return self

    def _booted(self):
        if self.outer.poll() is not None:
            raise Unavailable(f"no container can be made here: {self.log.read_text(errors='replace').strip()[-300:]}")
        children = Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children")
        words = children.read_text().split() if children.exists() else []
        self.pid = int(words[0]) if words else None
        if not self.pid or Path(f"/proc/{self.pid}/comm").read_text().strip() != "systemd":
            return False
        return self.run("systemctl", "is-active", "basic.target", check=False).stdout.strip() == "active"

    def argv(self, *args):
        return ["nsenter", "-t", str(self.pid), "-a", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8",
                "DEBIAN_FRONTEND=noninteractive", *map(str, args)]

    def run(self, *args, check=True, timeout=120, **options):
        return run(*self.argv(*args), check=check, timeout=timeout, **options)

    def show(self, unit, *properties):
        """Properties of a unit, by name."""
        said = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties)).stdout
        return dict(line.split("=", 1) for line in said.splitlines())

    def journal(self, unit):
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit, check=False).stdout

    def close(self):
        # The end of process 1 is that of all in its namespace.
        if self.pid:
            kill_pid(self.pid, timeout=30)
        if self.outer:
            if self.outer.poll() is None:
                try:
                    self.outer.wait(10)
                except subprocess.TimeoutExpired:
                    self.outer.kill()
                    self.outer.wait()
        if self.cgroup.exists():
            wait_until(self._remove_cgroup, 20, f"the control group {self.cgroup} to be empty", interval=0.1)
        self.scratch.rmdir()

    def _remove_cgroup(self):
        try:
            for path, _, _ in os.walk(self.cgroup, topdown=False):
                os.rmdir(path)
        except OSError:
            return False
        return True


class Installed(Daemon):
    """The packaged droverd in a container; the tools of a test's own droverd, for one that systemd starts."""

    def __init__(self):
        super().__init__()
        self.run_dir, self.state_dir = Path("/run/drover"), Path("/var/lib/drover")
        self.container = Container(self.dir)

    def start(self, env=None, timeout=60):
        self.container.start()
        return self

    def argv(self, *args):
        return self.container.argv("drover", *args)

    def log(self):
        return self.container.journal("droverd.service") if self.container.pid else ""

    def main_pid(self):
        """droverd's pid, as the container counts."""
        return int(self.container.show("droverd.service", "MainPID")["MainPID"])

    def install(self, *packages):
        return self.container.run("dpkg", "--force-unsafe-io", "-i", *packages, timeout=300)

    def close(self):
        self.container.close()
        shutil.rmtree(self.dir, ignore_errors=True)

