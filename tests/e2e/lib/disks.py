# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images for test guests, and what a guest has written to them."""

import hashlib
from pathlib import Path

from .procs import run, wait_until


def new_image(path, form="raw", mib=8, backing=None):
    """backing: (path, format)."""
    below = ["-b", backing[0], "-F", backing[1]] if backing else []
    run("qemu-img", "create", "-q", "-f", form, *below, path, *([] if backing else [f"{mib}M"]))
    return path


def as_raw(path, form):
    """What a guest would read from an image, as a raw file; form may also be QEMU's own description of a chain."""
    if form == "raw":
        return path
    raw = Path(f"{path}.raw")
    source = ["-f", form, path] if not form.startswith("json:") else [form]
    run("qemu-img", "convert", "-U", *source, "-O", "raw", raw)
    return raw


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def writes_go_on(vm, *disks, more=20):
    """Waits until each of the guest's disks has some more acknowledged writes; none has had an error."""
    before = {path: vm.console.status().disk(path)["acked"] for path in disks}
    wait_until(lambda: all(vm.console.check().disk(path)["acked"] >= before[path] + more for path in disks), 60,
               "the guest to go on writing to its disks", interval=0.1)
    for path in disks:
        disk = vm.console.check().disk(path)
        assert disk["errors"] == 0 and disk["bad"] == 0, disk


def acked_at_the_end(daemon, vm, *disks):
    """The numbers acknowledged last, after which the VM is killed: what was acknowledged must be in the images."""
    status = vm.console.check()
    acked = {path: status.disk(path)["acked"] for path in disks}
    daemon.run("stop", vm.name, "--force")
    return acked
