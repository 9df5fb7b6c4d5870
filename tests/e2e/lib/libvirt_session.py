# SPDX-License-Identifier: LGPL-2.1-or-later
"""A libvirt host on which a user has a libvirt of his own (qemu:///session), started by his virsh."""

import os
import shutil

from . import libvirt
from .beneath import Beneath
from .drover import BIN
from .procs import run, wait_until

UID = 65534  # nobody: every Debian has it
HOME = "/run/home"
RUNTIME = f"/run/user/{UID}"


class SessionHost(libvirt.LibvirtHost):
    """.prefix leads to the user; root has no libvirt here."""

    connection = "qemu:///session"
    state, logs = f"{RUNTIME}/libvirt/qemu/run", f"{HOME}/.cache/libvirt/qemu/log"

    def __init__(self, **options):
        super().__init__(droverd=False, **options)

    def _fill(self):
        super()._fill()
        for path in (HOME, RUNTIME, self.logs, libvirt.IMAGES):
            self.path(path).mkdir(mode=0o755, parents=True, exist_ok=True)
        for top in (HOME, RUNTIME, libvirt.IMAGES):
            for path, _, _ in os.walk(self.path(top)):
                os.chown(path, UID, UID)
        self._copy_drover()

    def _copy_drover(self):
        """The build directory may be where only root can go."""
        self.drover = self.dir / "drover"
        self.drover.mkdir()
        for path in ("src/libvirt/drover-libvirt", "src/keeper/drover-keeper"):
            shutil.copy(BIN / path, self.drover)

    def _hold(self):
        super()._hold()
        self.root_prefix = self.prefix
        self.prefix = self.prefix + ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                        "LC_ALL=C.UTF-8", f"HOME={HOME}", f"XDG_RUNTIME_DIR={RUNTIME}", f"DROVER_KEEPER={self.drover / 'drover-keeper'}"]

    def as_root(self, *argv):
        return run(*self.root_prefix, *argv)

    def image(self, *args, **options):
        path = super().image(*args, **options)
        os.chown(self.path(path), UID, UID)
        return path

    def start_virtlogd(self):
        """libvirtd starts it."""

    def start_libvirtd(self, foreground=None, timeout=60):
        """So does virsh with libvirtd."""
        wait_until(self.answers, timeout, "libvirtd to answer")

    def libvirtd_pid(self):
        try:
            pid = int(self.path(f"{RUNTIME}/libvirt/libvirtd.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if pid in self.pids() else None


class SessionBeneath(Beneath):
    """drover-libvirt as the user."""

    def __init__(self, host):
        super().__init__(host)
        self.program = host.drover / "drover-libvirt"
        self.dir.mkdir(exist_ok=True)
        os.chown(self.dir, UID, UID)

    def check(self, **spec):
        return super().check(uri=self.host.connection, **spec)

    def upgrade(self, version=None, **spec):
        return super().upgrade(version, uri=self.host.connection, **spec)

    def start(self, *points, **spec):
        return super().start(*points, uri=self.host.connection, **spec)
