# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images for bench/disk, what is to be in them after a run, and the floors: the bare QMP sequences, qemu-img convert and nbdcopy."""

import contextlib
import itertools
import os
import shutil
import time
from pathlib import Path

from lib import guest, peers
from lib.pair import ADDRESSES
from lib.procs import Process, run

GUEST_MIB = 4         # of a disk's start are the guest's, and empty at first; all the rest is random data
JOB_S = 600           # a job's deadline
PIECE = 16 << 20
RECONNECT_S = 40      # as drover has it
_serial = itertools.count(1)


# --- Images ---

def data_mb(gib):
    """What a copy of such a disk has to carry at least, in MB."""
    return ((gib << 30) - (GUEST_MIB << 20)) / 1e6


def new_template(path, gib):
    with open(path, "wb") as image:
        image.truncate(gib << 30)
        image.seek(GUEST_MIB << 20)
        while (left := (gib << 30) - image.tell()) > 0:
            image.write(os.urandom(min(PIECE, left)))
    return path


def copy_of(template, path, form="raw"):
    """An image with the same contents."""
    run("qemu-img", "convert", "-f", "raw", "-O", form, template, path, timeout=JOB_S)
    return path


def _part(path, form, offset, size):
    """QEMU's description of a part of what the guest sees."""
    return f"driver=raw,offset={offset},size={size},file.driver={form},file.file.driver=file,file.file.locking=off,file.file.filename={path}"


def lost(path, form, acked, template):
    """What is not in the image of a paused guest, as text lines: acknowledged writes, and the data that nobody wrote to."""
    mine, whole = GUEST_MIB << 20, os.stat(template).st_size
    with contextlib.ExitStack() as stack:
        part = Path(f"{path}.part")
        stack.callback(part.unlink, missing_ok=True)
        run("qemu-img", "convert", "--image-opts", _part(path, form, 0, mine), "-O", "raw", part)
        problems = guest.DiskImage(part, GUEST_MIB).problems(acked)
    same = run("qemu-img", "compare", "-U", "--image-opts", _part(path, form, mine, whole - mine), _part(template, "raw", mine, whole - mine),
               timeout=JOB_S, check=False)
    return problems + ([same.stdout.strip() or same.stderr.strip()] if same.returncode else [])


# --- Bare QMP on one host ---

def _disk_node(qmp):
    return next(entry["inserted"]["node-name"] for entry in qmp.command("query-block") if entry.get("inserted"))


def _ended(qmp, job, since):
    """Waits for a job's end; one that failed raises."""
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", JOB_S, lambda data: data["device"] == job, since)
    if event.data.get("error"):
        raise RuntimeError(f"{job}: {event.data['error']}")


def _mirror(qmp, job, target, since):
    qmp.command("blockdev-mirror", {"job-id": job, "device": _disk_node(qmp), "target": target, "sync": "full", "copy-mode": "background"})
    qmp.wait_event("BLOCK_JOB_READY", JOB_S, lambda data: data["device"] == job, since)


def bare_copy(qmp, target, size):
    """blockdev-mirror to a new raw file and the pivot, with drover's settings; returns ms."""
    name = f"copy{next(_serial)}"
    cache = {"direct": True, "no-flush": False}  # the disk's own
    since, begun = len(qmp.drain()), time.monotonic()
    qmp.command("blockdev-create", {"job-id": "create", "options": {"driver": "file", "filename": str(target), "size": size}})
    qmp.wait_event("JOB_STATUS_CHANGE", JOB_S, lambda data: data == {"id": "create", "status": "concluded"}, since)
    qmp.command("job-dismiss", {"id": "create"})
    qmp.command("blockdev-add", {"driver": "file", "node-name": f"{name}-file", "filename": str(target), "discard": "unmap", "cache": cache})
    qmp.command("blockdev-add", {"driver": "raw", "node-name": name, "file": f"{name}-file", "discard": "unmap", "cache": cache})
    _mirror(qmp, name, name, since)
    qmp.command("block-job-complete", {"device": name})
    _ended(qmp, name, since)
    return (time.monotonic() - begun) * 1000


def bare_snapshot(qmp, overlay):
    """A new qcow2 image on top of the disk's own."""
    node, name = _disk_node(qmp), f"top{next(_serial)}"
    info = next(entry["inserted"] for entry in qmp.command("query-block") if entry.get("inserted"))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", info["file"], "-F", info["drv"], overlay, f"{info['image']['virtual-size']}")
    qmp.command("blockdev-add", {"driver": "qcow2", "node-name": name, "backing": None, "discard": "unmap",
                                 "cache": {"direct": True, "no-flush": False},
                                 "file": {"driver": "file", "filename": str(overlay), "cache": {"direct": True, "no-flush": False}}})
    qmp.command("blockdev-snapshot", {"node": node, "overlay": name})


def bare_pull(qmp):
    """block-stream of all below the disk's own image; returns ms."""
    since, begun = len(qmp.drain()), time.monotonic()
    qmp.command("block-stream", {"job-id": "pull", "device": _disk_node(qmp), "on-error": "stop"})
    _ended(qmp, "pull", since)
    return (time.monotonic() - begun) * 1000


class Mirror:
    """Takes a raw disk along with a bare move: the destination's NBD server, blockdev-mirror, with drover's settings (see moves.Floor)."""

    PORT = 4400

    def __init__(self, target, size):
        run("qemu-img", "create", "-q", "-f", "raw", target, size)
        self.target, self.disks_there, self.ms = target, [(target, "raw")], None

    def begin(self, source, dest, address, tls):
        """Until the disk is in step."""
        where = {"type": "inet", "host": address, "port": str(self.PORT)}
        since, begun = len(source.drain()), time.monotonic()
        dest.command("nbd-server-start", {"addr": {"type": "inet", "data": {"host": address, "port": str(self.PORT)}},
                                          **({"tls-creds": "tls"} if tls else {})})
        dest.command("blockdev-add", {"driver": "file", "node-name": "in-file", "filename": str(self.target), "discard": "unmap"})
        dest.command("blockdev-add", {"driver": "raw", "node-name": "in", "file": "in-file", "discard": "unmap"})
        dest.command("block-export-add", {"type": "nbd", "id": "in", "node-name": "in", "name": "disk", "writable": True})
        source.command("blockdev-add", {"driver": "nbd", "node-name": "out", "export": "disk", "discard": "unmap",
                                        "reconnect-delay": RECONNECT_S, "server": where,
                                        **({"tls-creds": "tlsc", "tls-hostname": address} if tls else {})})
        _mirror(source, "move", "out", since)
        self.ms = (time.monotonic() - begun) * 1000

    def end(self, source, dest):
        """When the guest has stopped."""
        since = len(source.drain())
        source.command("block-job-cancel", {"device": "move"})
        _ended(source, "move", since)
        source.command("blockdev-del", {"node-name": "out"})
        dest.command("nbd-server-stop")
        for name in ("in", "in-file"):
            dest.command("blockdev-del", {"node-name": name})


# --- Without a guest ---

def convert(template, target):
    begun = time.monotonic()
    run("qemu-img", "convert", "-t", "none", "-T", "none", "-f", "raw", "-O", "raw", template, target, timeout=JOB_S)
    return (time.monotonic() - begun) * 1000


def have_nbdcopy():
    return shutil.which("nbdcopy") is not None


def nbdcopy(pair, template, target, run_dir):
    """From a qemu-nbd on host a to one on host b, over TCP; returns ms."""
    port, path = 4401, Path(run_dir) / "nbdcopy.sock"
    run("qemu-img", "create", "-q", "-f", "raw", target, os.stat(template).st_size)
    serve = ["qemu-nbd", "--persistent", "--shared=8", "--format=raw"]
    with Process([*serve, "--read-only", "--cache=none", "--socket", path, template], Path(run_dir) / "nbd-a.log", netns=str(pair.netns_a)), \
            Process([*serve, "--discard=unmap", "--bind", ADDRESSES["b"], "--port", port, target], Path(run_dir) / "nbd-b.log",
                    netns=str(pair.netns_b)):
        peers.connect(path).close()
        peers.connect((ADDRESSES["b"], port), netns=pair.netns_a).close()
        begun = time.monotonic()
        pair.netns_a.run("nbdcopy", "--flush", f"nbd+unix:///?socket={path}", f"nbd://{ADDRESSES['b']}:{port}", timeout=JOB_S)
        return (time.monotonic() - begun) * 1000
