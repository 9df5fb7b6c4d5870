# SPDX-License-Identifier: LGPL-2.1-or-later
"""A libvirt host that has the /usr of a newer Debian: its libvirtd, its virsh, its QEMU. drover is the one that is built here."""

import shutil
from pathlib import Path

from . import libvirt
from .beneath import PROGRAM, Beneath
from .procs import BUILD, run, tool


class NewerHost(libvirt.LibvirtHost):
    own = None  # emulator() is the QEMU of that /usr, whatever its version is

    def __init__(self, version, **options):
        """version: of libvirt, as of tests/tools/fetch-libvirt."""
        place = BUILD / "libvirt" / version
        tool("tests/tools/fetch-libvirt", version, place)
        self.root = place.resolve() / "root"
        super().__init__(droverd=False, **options)

    def _binds(self):
        yield from super()._binds()
        yield self.root / "usr", "/usr"  # the last: what is mounted after it is mounted by the newer one's programs

    def _fill(self):
        super()._fill()
        self.libraries = self.dir / "libraries"
        self.libraries.mkdir()
        copy_libraries(PROGRAM, self.root, self.libraries)


def copy_libraries(program, root, to):
    """What a program of this machine uses and the other one has not. Of what both have, it uses the other one's."""
    for line in run("ldd", program).stdout.splitlines():
        words = line.split()
        if len(words) > 2 and words[1] == "=>" and not (root / "usr/lib/x86_64-linux-gnu" / words[0]).exists():
            shutil.copy(Path(words[2]).resolve(), to / words[0])


class NewerBeneath(Beneath):
    def __init__(self, host):
        super().__init__(host)
        self.prefix = [*host.prefix, "env", f"LD_LIBRARY_PATH={host.libraries}"]
