# SPDX-License-Identifier: LGPL-2.1-or-later
"""A libvirt host whose QEMU driver has a daemon of its own, virtqemud, as Fedora, RHEL and SUSE have it."""

import shutil

from . import libvirt
from .libvirt_systemd import SystemdHost
from .procs import BUILD, tool

DIRECT = 'remote_mode = "direct"\n'  # Debian's library looks for libvirtd alone, unless it is told


def build():
    place = BUILD / "libvirt/virtqemud"
    tool("tests/tools/build-virtqemud", place)
    return place


class SplitHost(libvirt.LibvirtHost):
    service = "virtqemud"

    def __init__(self, **options):
        self.built = build()
        super().__init__(droverd=False, **options)

    def _fill(self):
        super()._fill()
        self.path("/etc/libvirt/libvirt.conf").write_text(DIRECT)
        self.path("/opt/sbin").mkdir()
        shutil.copy(self.built / "virtqemud", self.path("/opt/sbin"))

    def program(self):
        return "/opt/sbin/virtqemud"


class SplitSystemdHost(SystemdHost):
    """The same with virtqemud's own service and sockets."""

    service = "virtqemud"

    def __init__(self, **options):
        self.built = build()
        super().__init__(**options)

    def _fill(self):
        super()._fill()
        self.path("/etc/libvirt/libvirt.conf").write_text(DIRECT)
        shutil.copy(self.built / "virtqemud", self.path("/usr/sbin"))
        for unit in (self.built / "units").iterdir():
            shutil.copy(unit, self.path("/etc/systemd/system"))
        self.run("systemctl", "daemon-reload")
