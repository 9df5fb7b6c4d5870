# SPDX-License-Identifier: LGPL-2.1-or-later
"""drover disk: disks of running VMs listed, copied and pulled, while the guest writes to them, and whatever can go wrong."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from lib import api, drover, guest
from lib.disks import as_raw, new_image
from lib.guest import DiskImage
from lib.held import SmallDisk
from lib.procs import Process, kill_pid, run, wait_until
from lib.qmp import Qmp

USED = 4 << 20  # the guest writes to this part of a disk; behind it is what was there before
SLOW = ("--bandwidth", 1, "--buf-size", 65536)  # QEMU goes on for a whole buffer before it looks at the limit
SECRET = ("--object", "secret,id=key,data=geheim")
PATIENT = 60  # s; for what takes a second on an idle machine


# --- Images ---


def filled(path, form="raw", mib=8, backing=None):
    """An image with something behind the guest's part, so that a copy of it takes its time and can be compared."""
    raw = Path(path) if form == "raw" else Path(f"{path}.made")
    raw.write_bytes(bytes(USED) + os.urandom((mib << 20) - USED))
    if form != "raw":
        run("qemu-img", "convert", "-f", "raw", "-O", form, raw, path)
        raw.unlink()
    return path


def chain(directory, name, relative=False):
    """base (raw) <- mid <- top, each with something of its own behind the guest's part; the top's path."""
    base, mid, top = (directory / f"{name}-{part}" for part in ("base", "mid", "top"))
    filled(base)
    for image, below, form, at in ((mid, base, "raw", 5), (top, mid, "qcow2", 6)):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", below.name if relative else below, "-F", form, image)
        run("qemu-io", "-f", "qcow2", "-c", f"write -q -P {at} {at}M 512k", image)
    return top


def backing_of(path):
    """The files below an image and their formats, as its header and theirs have them."""
    images = json.loads(run("qemu-img", "info", "-U", "--output=json", "--backing-chain", path).stdout)
    return [(image["filename"], image["format"]) for image in images[1:]]


def behind(path, form="raw"):
    """What stands behind the guest's part."""
    return as_raw(path, form).read_bytes()[USED:]


def check(path, form="qcow2"):
    if form == "qcow2":
        run("qemu-img", "check", "-U", "-f", form, path)


# --- The VMs ---


class Vm(drover.Witness):
    """paths: the guest's names of the disks it writes to, by drover's; cwd: where relative names of images begin."""

    def __init__(self, daemon, name, paths, cwd=None, diskrate=30, **options):
        self.paths, self.cwd = paths, cwd
        super().__init__(daemon, name, ram="131080k", mem=2, rate=4, cwd=cwd,
                         witness={"disk": ",".join(paths.values()), "diskrate": diskrate}, **options)
        self.tails = {name: behind(self.file(disk), disk["format"]) for name, disk in self.disks().items() if name in paths}

    def file(self, disk):
        return Path(self.cwd or "/") / disk["file"]

    def disks(self):
        return {disk["name"]: disk for disk in self.daemon.json("disk", "list", self.name)}

    def acked(self, name):
        return self.console.check().disk(self.paths[name])["acked"]

    def go_on(self, *names, more=5, timeout=PATIENT):
        """Waits until the guest has had some more writes to each of these disks acknowledged; none has had an error."""
        paths = [self.paths[name] for name in names or self.paths]

        def acked():
            status = self.console.check()
            return [status.disk(path)["acked"] for path in paths]

        before = acked()
        wait_until(lambda: all(now >= then + more for now, then in zip(acked(), before)), timeout,
                   f"{self.name}: the guest to go on writing", interval=0.05)

    def job(self):
        """The newest job of this VM."""
        return next(job for job in self.daemon.json("jobs") if job["vm"] == self.name)

    def comes_to(self, stage, timeout=PATIENT):
        """The job under way, once it is at that stage."""
        def there():
            job = self.job()
            assert job["state"] in ("queued", "running"), job
            return job if job["stage"] == stage else None

        return wait_until(there, timeout, f"{self.name}: stage {stage}")

    def is_copying(self):
        """The job, once it has copied a part."""
        self.comes_to("copy")
        return wait_until(lambda: ((job := self.job())["progress"] or {}).get("bytes_done", 0) > 0 and job, PATIENT, "some progress")

    def nothing_lost(self, *names):
        """What was acknowledged, and all that the guest never touched, is in the images that the disks are on now, read by
        another program. The guest stands still meanwhile, which also makes QEMU write out what it has."""
        status = self.console.check(bootid=self.bootid)
        self.daemon.run("pause", self.name)
        try:
            for name, disk in self.disks().items():
                if name in (names or self.paths):
                    raw = as_raw(self.file(disk), disk["format"])
                    assert DiskImage(raw).problems(status.disk(self.paths[name])["acked"]) == [], disk
                    assert raw.read_bytes()[USED:] == self.tails[name], disk
                    check(self.file(disk), disk["format"])
        finally:
            self.daemon.run("resume", self.name)

    def state_of_disks(self):
        """All that a command that was refused must leave as it was."""
        return [{key: disk.get(key) for key in ("name", "file", "format", "bytes", "node", "read_only")} for disk in
                self.disks().values()], sorted(node["node-name"] for node in self.daemon.qmp(self.name, "query-named-block-nodes"))

    def assert_sound(self):
        """The guest is well, and nothing of a job on its disks is left in QEMU."""
        shown = self.daemon.show(self.name)
        assert shown["job"] is None and shown["state"] == "running", shown
        assert self.daemon.qmp(self.name, "query-jobs") == []
        nodes = {node["node-name"] for node in self.daemon.qmp(self.name, "query-named-block-nodes")}
        used = {image["node"] for disk in self.disks().values() for image in disk.get("chain", [])}
        assert {node for node in nodes if node.endswith("-copy")} <= used
        self.go_on(more=1)
        self.console.check(bootid=self.bootid)


def make_many(daemon):
    """A VM with a disk of each kind."""
    images = {name: filled(daemon.dir / name, form, mib) for name, form, mib in (
        ("i0", "qcow2", 8), ("i1", "raw", 16), ("i2", "qcow2", 8), ("i3", "raw", 8), ("i4", "qcow2", 8), ("i5", "raw", 8),
        ("i6", "qcow2", 8), ("i7", "qcow2", 8), ("hda", "qcow2", 8), ("hot", "qcow2", 8))}
    extra = """
        -drive if=none,id=h0,format=qcow2,file={i0} -device virtio-blk-pci,drive=h0,id=d0
        -blockdev driver=raw,node-name=n1,file.driver=file,file.filename={i1} -device virtio-blk-pci,drive=n1,id=d1
        -drive if=none,id=h2,format=qcow2,file={i2},cache=none -device virtio-blk-pci,drive=h2
        -drive if=none,id=h3,format=raw,readonly=on,file={i3} -device virtio-blk-pci,drive=h3,id=d3
        -drive if=none,id=h4,format=qcow2,file={i4},iops=2000,bps=50000000 -device virtio-blk-pci,drive=h4,id=d4
        -object throttle-group,id=group,x-iops-total=2000
        -blockdev driver=raw,node-name=n5,file.driver=file,file.filename={i5}
        -blockdev driver=throttle,node-name=limit5,throttle-group=group,file=n5 -device virtio-blk-pci,drive=limit5,id=d5
        -object iothread,id=thread -drive if=none,id=h6,format=qcow2,file={i6}
        -device virtio-blk-pci,drive=h6,id=d6,iothread=thread -drive if=virtio,format=qcow2,file={i7} -hda {hda}
        -drive if=none,id=cd,media=cdrom -device ide-cd,drive=cd,id=cd1 -device pcie-root-port,id=rp1,chassis=1
        """.format(**images).split()
    paths = {"d0": "/dev/vda", "d1": "/dev/vdb", "h2": "/dev/vdc", "d4": "/dev/vde", "d5": "/dev/vdf", "d6": "/dev/vdg",
             "virtio0": "/dev/vdh"}
    vm = Vm(daemon, "many", paths, extra=extra)
    daemon.qmp(vm.name, "blockdev-add", {"driver": "qcow2", "node-name": "hot-node", "file": {"driver": "file", "filename":
                                                                                            str(images["hot"])}})
    daemon.qmp(vm.name, "device_add", {"driver": "virtio-blk-pci", "id": "hot", "drive": "hot-node", "bus": "rp1"})
    return vm


def make_chains(daemon):
    """A VM whose disks stand on backing images, one for each test; those of r0 and r1 are named from where it was started, and
    not from where they are."""
    cwd = daemon.dir / "chains"
    shutil.rmtree(cwd, ignore_errors=True)
    (cwd / "sub").mkdir(parents=True)
    extra = []
    for name in ("c0", "c1", "c2"):
        extra += ["-drive", f"if=none,id={name}h,format=qcow2,file={chain(cwd, name)}", "-device",
                  f"virtio-blk-pci,drive={name}h,id={name}"]
    for name in ("r0", "r1"):
        chain(cwd / "sub", name, relative=True)
        extra += ["-drive", f"if=none,id={name}h,format=qcow2,file=sub/{name}-top", "-device", f"virtio-blk-pci,drive={name}h,id={name}"]
    top = chain(cwd, "n0")
    extra += ["-blockdev", f"driver=raw,node-name=base0,file.driver=file,file.filename={cwd}/n0-base",
              "-blockdev", f"driver=file,node-name=mid0-file,filename={cwd}/n0-mid",
              "-blockdev", "driver=qcow2,node-name=mid0,file=mid0-file,backing=base0",
              "-blockdev", f"driver=qcow2,node-name=top0,file.driver=file,file.filename={top},backing=mid0",
              "-device", "virtio-blk-pci,drive=top0,id=n0"]
    paths = {name: f"/dev/vd{letter}" for name, letter in zip(("c0", "c1", "c2", "r0", "r1", "n0"), "abcdef")}
    return Vm(daemon, "chains", paths, cwd=cwd, extra=extra)


class Scene:
    """One droverd and VMs that several tests use, made when they are asked for first, and again after one has died."""

    def __init__(self):
        self.daemon = drover.Daemon()
        self.daemon.start()
        self.vms, self.numbers = {}, itertools.count(1)

    def get(self, make):
        if make not in self.vms:
            self.vms[make] = make(self.daemon)
        return self.vms[make]

    def target(self, name="copy"):
        """A name that nothing has."""
        return self.daemon.dir / f"{name}{next(self.numbers)}"

    def tidy(self, make):
        """After a test, which may have failed anywhere: what the next one would stumble over goes."""
        (self.daemon.run_dir / "hold").unlink(missing_ok=True)
        if not self.daemon.process.alive():
            self.daemon.start()
        try:
            self.vms[make].assert_sound()
        except BaseException:
            self.bury(make)
            raise

    def bury(self, make):
        vm = self.vms.pop(make)
        vm.close()
        shown = self.daemon.show(vm.name)
        if shown["pid"]:
            kill_pid(shown["pid"])
        wait_until(lambda: self.daemon.show(vm.name)["job"] is None, PATIENT, "the job to see that its VM has ended")
        self.daemon.run("forget", vm.name, "--force")

    def close(self):
        for vm in self.vms.values():
            vm.close()
        self.daemon.close()


@pytest.fixture(scope="module")
def scene_of_the_tests():
    with contextlib.closing(Scene()) as made:
        yield made


@pytest.fixture
def scene(scene_of_the_tests):
    return scene_of_the_tests


@pytest.fixture
def daemon(scene):
    return scene.daemon


@pytest.fixture
def target(scene):
    """A path at which nothing is."""
    path = scene.target()
    yield path
    path.unlink(missing_ok=True)
    Path(f"{path}.raw").unlink(missing_ok=True)


@pytest.fixture
def many(scene):
    yield scene.get(make_many)
    scene.tidy(make_many)


@pytest.fixture
def many_untouched(scene):
    """For a test of which nothing can be left."""
    return scene.get(make_many)


@pytest.fixture
def chains(scene):
    yield scene.get(make_chains)
    scene.tidy(make_chains)


@pytest.fixture
def bare(scene):
    """Starts VMs without a guest, which are there at once; they are gone after the test."""
    names = []

    def start(*extra, version="7.2"):
        name = scene.target("bare").name
        scene.daemon.run("run", name, "--", *guest.without_guest(*extra, version=version))
        names.append(name)
        return name

    yield start
    for name in names:
        scene.daemon.run("stop", name, "--force", check=False)
        wait_until(lambda name=name: scene.daemon.show(name)["job"] is None, PATIENT, "the job to see that its VM has ended")
        scene.daemon.run("forget", name, "--force")


@contextlib.contextmanager
def unchanged(vm):
    """The VM's disks are the same afterwards, and no file for a copy is there that was not before."""
    def look():
        return vm.state_of_disks(), sorted(vm.daemon.dir.glob("copy*[0-9]"))

    before = look()
    yield
    assert look() == before


# --- NBD ---


class Nbd:
    """A qemu-nbd on a unix socket or on loopback; url names its export."""

    def __init__(self, image, tcp=False, form="raw", port=0):
        self.image = Path(image)
        self.argv = ["qemu-nbd", "-f", form, "-t", "-x", "disk", "-e", "8"]
        if tcp:
            self.port = port or free_port()
            self.argv += ["-b", "127.0.0.1", "-p", str(self.port)]
            self.url = f"nbd://127.0.0.1:{self.port}/disk"
        else:
            self.socket = Path(f"{image}.sock")
            self.argv += ["-k", str(self.socket)]
            self.url = f"nbd+unix:///disk?socket={self.socket}"
        self.tcp = tcp

    def start(self):
        self.process = Process([*self.argv, self.image], f"{self.image}.log")
        wait_until(self.listens, 20, "qemu-nbd to listen")
        return self

    def listens(self):
        assert self.process.alive(), self.process.output()
        with socket.socket(socket.AF_INET if self.tcp else socket.AF_UNIX) as client:
            return client.connect_ex(("127.0.0.1", self.port) if self.tcp else str(self.socket)) == 0

    def stop(self):
        self.process.kill()
        if not self.tcp:
            self.socket.unlink(missing_ok=True)

    @contextlib.contextmanager
    def silent(self):
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


class Relay:
    """In front of an NBD server; takes `rate` bytes a second from its clients, so that each write is under way for a while."""

    def __init__(self, server, rate):
        self.server, self.rate = server, rate
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.sockets, self.threads = [], []
        self.url = f"nbd://127.0.0.1:{self.socket.getsockname()[1]}/disk"

    def go(self, function, *args):
        self.threads.append(threading.Thread(target=function, args=args, daemon=True))
        self.threads[-1].start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, other = self.socket.accept()[0], socket.socket(socket.AF_UNIX)
                self.sockets += [client, other]
                other.connect(str(self.server.socket))
                self.go(self.pump, client, other, True)
                self.go(self.pump, other, client, False)

    def pump(self, source, sink, limited):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if limited and self.rate:
                    time.sleep(len(data) / self.rate)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        self.go(self.serve)
        return self

    def __exit__(self, *_):
        for each in [self.socket, *self.sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        for each in [self.socket, *self.sockets]:
            each.close()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Impostor:
    """Something that listens where a server is expected: it sends random bytes, or nothing at all."""

    def __init__(self, talks):
        self.talks = talks
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.clients = []
        self.url = f"nbd://127.0.0.1:{self.socket.getsockname()[1]}/disk"
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                client = self.socket.accept()[0]
                self.clients.append(client)
                if self.talks:
                    with contextlib.suppress(OSError):
                        client.sendall(os.urandom(4096))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()
        for client in self.clients:
            client.close()


# --- Looking ---


def test_disks_of_every_kind_are_listed_by_name(many_untouched):
    many = many_untouched
    disks = many.disks()
    assert set(disks) == {"virtio0", "h2", "d0", "d1", "d3", "d4", "d5", "d6", "cd1", "ide0-hd0", "hot"}
    directory = str(many.daemon.dir)
    assert disks["d0"] | {"allocated_bytes": 0, "node": "", "root": "", "chain": [], "device": ""} == {
        "name": "d0", "device": "", "backend": "h0", "removable": False, "read_only": False, "node": "", "root": "", "file": f"{directory}/i0",
        "format": "qcow2", "bytes": 8 << 20, "allocated_bytes": 0, "encrypted": False, "bitmaps": [], "job": None, "chain": []}
    assert disks["d1"]["backend"] is None and disks["d1"]["node"] == "n1" and disks["d1"]["format"] == "raw"
    assert disks["d5"]["node"] == "n5" and disks["d5"]["file"] == f"{directory}/i5"  # below the throttle node
    assert disks["hot"]["node"] == "hot-node"
    assert [name for name, disk in disks.items() if disk["read_only"]] == ["d3"]
    assert [name for name, disk in disks.items() if disk["removable"]] == ["cd1"] and disks["cd1"]["file"] is None
    text = many.daemon.run("disk", "list", many.name).stdout
    assert len(text.splitlines()) == 1 + len(disks) and all(f"{directory}/i{number}" in text for number in range(8))


@pytest.mark.parametrize("called, name", [
    ("d0", "d0"), ("h0", "d0"), ("{}/i0", "d0"), ("d1", "d1"), ("n1", "d1"), ("n5", "d5"), ("limit5", "d5"), ("cd", "cd1"),
    ("hot-node", "hot"), ("virtio0", "virtio0"), ("ide0-hd0", "ide0-hd0")])
def test_a_disk_is_shown_by_whatever_it_is_called(many_untouched, called, name):
    many = many_untouched
    called = called.format(many.daemon.dir)
    assert many.daemon.json("disk", "show", many.name, called)["name"] == name
    assert many.daemon.run("disk", "show", many.name, called).stdout.split()[:2] == ["disk", name]


def test_a_chain_is_shown_with_all_of_its_images(chains):
    shown = chains.daemon.json("disk", "show", "chains", "n0")
    assert [(image["node"], image["format"]) for image in shown["chain"]] == [("top0", "qcow2"), ("mid0", "qcow2"), ("base0", "raw")]
    text = chains.daemon.run("disk", "show", "chains", "n0").stdout
    assert text.index("n0-top") < text.index("n0-mid") < text.index("n0-base")


# --- Copies ---


@pytest.mark.parametrize("disk, form", [("d0", "qcow2"), ("d0", "raw"), ("d1", "qcow2"), ("d5", "raw")])
def test_a_copy_that_is_aborted_when_ready_is_whole(many, target, disk, form):
    before = many.disks()[disk]
    job = many.daemon.json("disk", "copy", many.name, disk, target, "--format", form)
    assert (job["state"], job["stage"], job["error"]) == ("running", "ready", None)
    listed = many.disks()[disk]["job"]
    assert listed["type"] == "mirror" and listed["status"] == "ready"
    many.go_on(disk)
    acked = many.acked(disk)
    assert many.daemon.json("disk", "abort", many.name) == {"job": job["id"], "complete": True}
    job = many.daemon.ended_job(job["id"])
    assert job["state"] == "succeeded" and job["result"]["kept"] == "disk"
    assert DiskImage(as_raw(target, form)).problems(acked) == [] and behind(target, form) == many.tails[disk]
    check(target, form)
    assert many.disks()[disk]["file"] == before["file"]
    many.nothing_lost(disk)


@pytest.mark.parametrize("disk, form", [("d0", "raw"), ("d5", "qcow2"), ("virtio0", None)])
def test_a_pivot_puts_the_guest_on_the_copy(many, scene, disk, form):
    target, before = scene.target("pivot"), many.disks()[disk]
    text = many.daemon.run("disk", "copy", many.name, disk, target, *(["--format", form] if form else []))
    assert f"drover disk pivot {many.name}" in text.stdout and text.stdout.count("\n") == 1
    many.go_on(disk)
    acked = many.acked(disk)
    text = many.daemon.run("disk", "pivot", many.name)
    assert str(target) in text.stdout and "runs on the copy" in text.stdout
    after = many.disks()[disk]
    assert (after["file"], after["format"], after["bytes"]) == (str(target), form or before["format"], before["bytes"])
    assert before["file"] not in files_of(many.pid)
    assert DiskImage(as_raw(before["file"], before["format"])).problems(acked) == []
    many.go_on(disk)
    many.nothing_lost(disk)


def files_of(pid):
    """The files that a process has open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(entry))
    return found


@pytest.mark.parametrize("options", [("--finish",), ("--finish", "--synchronous-writes", "--granularity", 4096, "--buf-size", 1 << 20)])
def test_finish_keeps_the_disk_and_leaves_a_copy(many, target, options):
    acked, before = many.acked("d0"), many.disks()["d0"]["file"]
    job = many.daemon.json("disk", "copy", many.name, "d0", target, *options)
    assert job["state"] == "succeeded" and job["result"]["kept"] == "disk" and job["result"]["bytes_moved"] > 0
    form = many.disks()["d0"]["format"]
    assert job["result"]["copies"] == [{"disk": "d0", "target": str(target), "format": form,
                                        "write_blocking": "--synchronous-writes" in options}]
    assert many.disks()["d0"]["file"] == before
    assert DiskImage(as_raw(target, form)).problems(acked) == [] and behind(target, form) == many.tails["d0"]
    check(target, form)


def test_every_kind_of_disk_in_one_copy_and_then_upgrades(many, scene):
    """Limits stay with the disks, a throttle node stays in its place, and the next QEMUs find the new images."""
    names = [*many.paths, "hot", "ide0-hd0"]
    targets = {name: str(scene.target("all")) for name in names}
    old = {name: disk["file"] for name, disk in many.disks().items() if name in names}
    job = many.daemon.json("disk", "copy", many.name, *(word for pair in targets.items() for word in pair), "--pivot")
    assert job["result"]["kept"] == "copy" and len(job["result"]["copies"]) == len(names)

    def all_is_right():
        assert {name: disk["file"] for name, disk in many.disks().items() if name in names} == targets
        assert not set(old.values()) & files_of(many.pid)
        inserted = {entry["device"]: entry["inserted"] for entry in many.daemon.qmp(many.name, "query-block") if entry.get("inserted")}
        assert (inserted["h4"]["iops"], inserted["h4"]["bps"]) == (2000, 50000000)
        drivers = {node["node-name"]: node["drv"] for node in many.daemon.qmp(many.name, "query-named-block-nodes")}
        assert drivers.get("limit5") == "throttle"
        many.go_on()
        many.nothing_lost()

    all_is_right()
    many.upgrade("10.0")
    all_is_right()
    targets["d5"] = str(scene.target("all"))
    many.daemon.run("disk", "copy", many.name, "d5", targets["d5"], "--pivot")
    many.upgrade("7.2")
    all_is_right()


def test_the_limit_of_a_copy_can_be_changed(many, target):
    many.daemon.run("disk", "copy", many.name, "d1", target, *SLOW, "--async")
    first = many.is_copying()
    begun = time.monotonic()
    later = wait_until(lambda: (job := many.job())["progress"]["bytes_done"] >= first["progress"]["bytes_done"] + (1 << 20) and job,
                       PATIENT, "1 MiB")
    assert time.monotonic() - begun > 0.5 and later["stage"] == "copy"
    listed = many.disks()["d1"]["job"]
    assert listed["type"] == "mirror" and listed["bytes_done"] < listed["bytes_total"]
    assert "mirror" in many.daemon.run("disk", "list", many.name).stdout
    assert many.daemon.run("disk", "bandwidth", many.name, 0).stdout
    many.comes_to("ready", 20)
    many.daemon.run("disk", "bandwidth", many.name, 5)  # of one that is ready
    many.daemon.run("disk", "abort", many.name)
    assert many.daemon.ended_job(first["id"])["state"] == "succeeded"
    assert behind(target) == many.tails["d1"]


def test_a_copy_that_is_not_complete_in_time_is_aborted(many, target):
    with unchanged(many):
        error = many.daemon.refused("disk", "copy", many.name, "d1", target, *SLOW, "--timeout", 1)
    assert error["code"] == "timeout"


@pytest.mark.parametrize("how", ["abort", "cancel"])
@pytest.mark.parametrize("disk", ["d0", "d1"])
def test_one_that_is_ended_midway_leaves_nothing(many, target, how, disk):
    with unchanged(many):
        many.daemon.run("disk", "copy", many.name, disk, target, *SLOW, "--async")
        job = many.is_copying()
        follower = many.daemon.spawn("watch", job["id"])
        many.daemon.run(*(("disk", "abort", many.name) if how == "abort" else ("cancel", job["id"])))
        _, said = follower.communicate(timeout=20)
        assert follower.returncode == 1 and "cancelled" in said
        job = many.daemon.ended_job(job["id"])
        assert job["state"] == "cancelled" and job["error"]["code"] == "cancelled", job
    many.nothing_lost(disk)


def test_a_cancel_of_one_that_is_ready_leaves_nothing(many, target):
    with unchanged(many):
        job = many.daemon.json("disk", "copy", many.name, "d0", target)
        many.daemon.run("cancel", job["id"])
        assert many.daemon.ended_job(job["id"])["state"] == "cancelled"


def test_a_path_begins_where_the_client_is(many, scene):
    directory = scene.target("cwd")
    directory.mkdir()
    for name, path in (("rel", "rel"), ("a b,c:d=e%\u00e9", "./x/../a b,c:d=e%\u00e9")):
        job = many.daemon.json("disk", "copy", many.name, "d0", path, "--finish", cwd=directory)
        assert job["result"]["copies"][0]["target"] == str(directory / name)
        assert (directory / name).stat().st_size > 0
    shutil.rmtree(directory)


def test_while_one_is_under_way_the_vm_can_be_asked_and_no_other_job_begins(many, scene, target):
    many.daemon.run("disk", "copy", many.name, "d1", target, *SLOW, "--async")
    job = many.is_copying()
    with many.daemon.spawn("watch", job["id"]) as watch:
        for words in (("disk", "copy", many.name, "d0", scene.target()), ("disk", "pull", many.name, "d0"), ("upgrade", many.name),
                      ("forget", many.name, "--force")):
            error = many.daemon.refused(*words)
            assert error["code"] == "busy" and f"job {job['id']} under way" in error["message"], (words, error)
        error = many.daemon.refused("disk", "pivot", many.name)
        assert error["code"] == "busy" and "not complete" in error["message"] and f"drover watch {job['id']}" in error["remedy"]
        many.daemon.run("pause", many.name)
        assert many.daemon.state(many.name) == "paused"
        many.daemon.run("resume", many.name)
        assert many.daemon.qmp(many.name, "query-status")["running"]
        shown = many.daemon.show(many.name)
        assert shown["job"] == job["id"] and shown["state"] == "running"
        many.daemon.run("disk", "abort", many.name)
        watch.communicate(timeout=20)
    assert many.daemon.ended_job(job["id"])["state"] == "cancelled"


def test_a_copy_leaves_a_throttled_disk_to_its_guest(many, target):
    """It reads through the throttle node, and says so: by --bandwidth the guest keeps what it needs."""
    limits = {"path": "/objects/group", "property": "limits"}
    many.daemon.qmp(many.name, "qom-set", {**limits, "value": {"bps-total": 2 << 20}})
    try:
        many.go_on("d5")
        many.daemon.run("disk", "copy", many.name, "d5", target, "--async", "--bandwidth", "1")
        many.is_copying()
        assert "disk-throttle" in [finding["code"] for finding in many.job()["findings"]]
        many.go_on("d5", more=5, timeout=20)
    finally:
        many.daemon.qmp(many.name, "qom-set", {**limits, "value": {"bps-total": 0, "iops-total": 2000}})
        many.daemon.run("cancel", many.job()["id"], check=False)
        many.daemon.ended_job(many.job()["id"])


# --- Only the top image ---


def test_a_copy_of_the_top_stands_on_the_same_backing(chains, scene):
    target, before = scene.target("top"), chains.disks()["c0"]
    chains.daemon.run("disk", "copy", "chains", "c0", target, "--sync", "top", "--pivot")
    after = chains.disks()["c0"]
    assert [image["file"] for image in after["chain"]] == [str(target)] + [image["file"] for image in before["chain"]][1:]
    assert backing_of(target) == [(str(chains.cwd / "c0-mid"), "qcow2"), (str(chains.cwd / "c0-base"), "raw")]
    assert before["file"] not in files_of(chains.pid)
    chains.go_on("c0")
    chains.nothing_lost("c0")


def test_a_backing_image_with_a_relative_name_is_found_from_another_directory(chains, scene):
    """QEMU's name for it begins where QEMU was started; one in an image's header begins where the image is."""
    target = scene.target("top")
    chains.daemon.run("disk", "copy", "chains", "r0", target, "--sync", "top", "--pivot")
    chains.go_on("r0")
    chains.nothing_lost("r0")
    assert [Path(name).name for name, _ in backing_of(target)] == ["r0-mid", "r0-base"]


@pytest.mark.parametrize("below", ["nothing", "another"])
def test_a_copy_of_the_top_into_an_image_that_is_there_can_be_read_afterwards(chains, scene, target, below):
    """Either its header names the backing image then, or it is refused."""
    disk = chains.disks()["c1"]
    new_image(target, "qcow2", backing=(filled(scene.target("other")), "raw") if below == "another" else None)
    done = chains.daemon.run("disk", "copy", "chains", "c1", target, "--sync", "top", "--reuse-external", "--finish", check=False)
    if done.returncode == 0:
        assert backing_of(target) == backing_of(chains.file(disk))
        assert behind(target, "qcow2") == chains.tails["c1"]
    else:
        assert done.returncode == 1 and "blocker" in done.stderr, done.stderr


# --- Targets that are there ---


@pytest.mark.parametrize("disk, what", [("d0", "raw"), ("d0", "qcow2"), ("d0", "qcow2 on another"), ("h2", "old qcow2 on another"),
                                        ("d1", "raw")])
def test_nothing_shows_through_of_what_a_target_had(many, scene, target, disk, what):
    """Where it cannot be helped, it is refused."""
    junk = scene.target("junk")
    mib = many.disks()[disk]["bytes"] >> 20
    junk.write_bytes(b"\xff" * (mib << 20))
    if what == "raw":
        shutil.copy(junk, target)
    elif what == "qcow2":
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", junk, target)
    else:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10" if "old" in what else "compat=1.1", "-b", junk, "-F",
            "raw", target)
    form = what.split()[-1 if what == "raw" else 0].replace("old", "qcow2")
    acked = many.acked(disk)
    done = many.daemon.run("disk", "copy", many.name, disk, target, "--reuse-external", "--finish", check=False)
    if done.returncode == 0:
        image = DiskImage(as_raw(target, form))
        assert image.problems(acked) == []
        assert behind(target, form) == many.tails[disk]
    else:
        assert "another" in what and done.returncode == 1 and "blocker" in done.stderr, done.stderr


def test_one_that_fails_leaves_a_target_that_was_there(many, target):
    filled(target, mib=16)
    job = many.daemon.json("disk", "copy", many.name, "d1", target, "--reuse-external", *SLOW, "--async")
    many.is_copying()
    many.daemon.run("disk", "abort", many.name)
    assert many.daemon.ended_job(job["id"])["state"] == "cancelled" and target.exists()


@pytest.mark.parametrize("kind", ["file", "nbd", "device"])
def test_a_larger_target_does_not_make_the_disk_larger(many, scene, kind):
    """Block devices and exports are seldom of just the right size."""
    image = filled(scene.target("large"), mib=20)
    with contextlib.ExitStack() as stack:
        if kind == "nbd":
            where = stack.enter_context(Nbd(image)).url
        elif kind == "device":
            done = run("losetup", "-f", "--show", image, check=False)
            if done.returncode:
                pytest.skip(f"no loop devices: {done.stderr.strip()}")
            where = done.stdout.strip()
            stack.callback(run, "losetup", "-d", where)
        else:
            where = image
        back = scene.target("back")
        many.daemon.run("disk", "copy", many.name, "d1", where, "--reuse-external", "--format", "raw", "--pivot")
        try:
            assert many.disks()["d1"]["bytes"] == 16 << 20
            many.go_on("d1")
        finally:
            many.daemon.run("disk", "copy", many.name, "d1", back, "--pivot")
    many.nothing_lost("d1")


def test_a_block_device(many, scene):
    image = new_image(scene.target("loop"), mib=16)
    done = run("losetup", "-f", "--show", image, check=False)
    if done.returncode:
        pytest.skip(f"no loop devices: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        many.daemon.run("disk", "copy", many.name, "d1", device, "--pivot")
        assert many.disks()["d1"]["file"] == device
        many.go_on("d1")
        acked = many.acked("d1")
        many.daemon.run("disk", "copy", many.name, "d1", scene.target("back"), "--pivot")
    finally:
        run("losetup", "-d", device)
    assert DiskImage(image).problems(acked) == [] and behind(image) == many.tails["d1"]
    many.nothing_lost("d1")


# --- NBD ---


@pytest.mark.parametrize("tcp", [True, False], ids=["tcp", "unix"])
def test_a_copy_to_an_nbd_export_and_back(many, scene, tcp):
    with Nbd(new_image(scene.target("export"), mib=8), tcp) as server:
        many.daemon.run("disk", "copy", many.name, "d0", server.url, "--pivot")
        assert many.disks()["d0"]["format"] == "raw"
        many.go_on("d0")
        many.daemon.run("upgrade", many.name, "--qemu", guest.qemu("7.2"), check=False)
        many.console.follow(many.serial)
        many.go_on("d0")
        acked = many.acked("d0")
        many.daemon.run("disk", "copy", many.name, "d0", scene.target("back"), "--format", "qcow2", "--pivot")
        assert DiskImage(server.image).problems(acked) == [] and behind(server.image) == many.tails["d0"]
    many.go_on("d0")
    many.nothing_lost("d0")


def test_a_copy_to_nbdkit(many, scene, target):
    if not shutil.which("nbdkit"):
        pytest.skip("nbdkit is not installed")
    sock = scene.target("nbdkit")
    with Process(["nbdkit", "-f", "-U", sock, "memory", "8M"], scene.target("nbdkit-log")):
        wait_until(sock.exists, 20, "nbdkit to listen")
        url = f"nbd+unix:///?socket={sock}"
        many.daemon.run("disk", "copy", many.name, "d0", url, "--finish")
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", url, target)
    assert behind(target) == many.tails["d0"]


@pytest.mark.parametrize("when", ["copy", "ready"])
def test_a_server_that_goes_away_ends_the_copy(many, scene, when):
    with Nbd(new_image(scene.target("export"), mib=16)) as server, unchanged(many):
        job = many.daemon.json("disk", "copy", many.name, "d1", server.url, *SLOW if when == "copy" else (), "--async")
        many.is_copying() if when == "copy" else many.comes_to("ready")
        server.stop()
        job = many.daemon.ended_job(job["id"])
        assert job["state"] == "failed" and "d1" in job["error"]["message"], job
    many.nothing_lost("d1")


def make_lone(version):
    """A VM with one disk under that QEMU."""
    def make(daemon):
        image = filled(daemon.dir / f"lone-{version}", mib=5)
        return Vm(daemon, f"lone-{version}", {"d0": "/dev/vda"}, version=version, extra=[
            "-drive", f"if=none,id=h0,format=raw,file={image}", "-device", "virtio-blk-pci,drive=h0,id=d0"])

    return make


MAKE_LONE = [make_lone("7.2"), make_lone("10.0")]  # before and since QEMU 8.2, where a mirror's mode can be changed


@pytest.fixture
def lone(scene):
    """Runs a function for each of these VMs, at the same time."""
    def with_each(function):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for done in [pool.submit(function, vm) for vm in vms]:
                done.result()

    vms = [scene.get(make) for make in MAKE_LONE]
    with contextlib.ExitStack() as after:
        for make in MAKE_LONE:
            after.callback(scene.tidy, make)
        yield with_each


def test_a_copy_that_would_never_be_complete_is_brought_to_its_end(lone, scene):
    """While a piece is on its way, the guest always writes to some piece."""
    def copy(vm):
        with Nbd(new_image(scene.target("slow"), mib=5)) as server, Relay(server, 2 << 20) as relay:
            vm.console.command("diskrate 0")
            vm.daemon.run("disk", "copy", vm.name, "d0", relay.url, "--granularity", 1 << 20, "--buf-size", 1 << 20, "--async")
            job = vm.comes_to("ready", 90)
            assert [finding["code"] for finding in job["findings"]] == ["disk-write-blocking"], vm.name
            vm.console.command("diskrate 30")
            relay.rate = None
            vm.go_on()
            assert "runs on the copy" in vm.daemon.run("disk", "pivot", vm.name).stdout
            result = vm.job()["result"]
            assert result["copies"][0]["write_blocking"] and result["kept"] == "copy"
            vm.go_on()
            acked = vm.acked("d0")
            vm.daemon.run("disk", "copy", vm.name, "d0", scene.target("back"), "--pivot")
            assert DiskImage(server.image).problems(acked) == [] and behind(server.image) == vm.tails["d0"]
        vm.nothing_lost()

    lone(copy)


@pytest.fixture(scope="module")
def never_answered(scene_of_the_tests):
    """A copy to something that listens and says nothing, for the tests that follow: they wait for the same seconds."""
    daemon = scene_of_the_tests.daemon
    image = filled(scene_of_the_tests.target("never"))
    daemon.run("run", "never", "--", *guest.without_guest("-drive", f"if=none,id=h0,format=raw,file={image}", "-device",
                                                          "virtio-blk-pci,drive=h0,id=d0"))
    with Impostor(talks=False) as server:
        asked = daemon.spawn("disk", "copy", "never", "d0", server.url)
        wait_until(lambda: server.clients, 20, "droverd to connect")
        yield asked, server
        asked.kill()
        asked.communicate()
        daemon.run("stop", "never", "--force")


def test_while_a_server_is_waited_for_the_vm_can_be_asked(daemon, never_answered):
    daemon.run("pause", "never")
    daemon.run("resume", "never")
    assert daemon.json("disk", "list", "never")[0]["name"] == "d0" and never_answered[0].poll() is None


def test_a_server_that_falls_silent_does_not_hold_up_the_guest(lone, scene, never_answered):
    """Neither while it is silent, nor when the copy is aborted then: QEMU by itself would wait for the server for ever."""
    def copy(vm):
        with Nbd(new_image(scene.target("silent"), mib=5)) as server:
            vm.daemon.run("disk", "copy", vm.name, "d0", server.url, *SLOW, "--async")
            job = vm.is_copying()
            with server.silent():
                end = time.monotonic() + 15  # longer than drover waits for a copy to get closer
                while time.monotonic() < end:
                    vm.go_on(timeout=5)
                assert vm.daemon.json("job", job["id"])["findings"] == []
                vm.daemon.run("disk", "abort", vm.name)
                vm.go_on(timeout=5)
                job = vm.daemon.ended_job(job["id"], 20)
                assert job["state"] == "cancelled", job
                vm.assert_sound()
        vm.nothing_lost()

    lone(copy)


def test_a_server_that_never_says_a_word_is_given_up(daemon, never_answered):
    asked, server = never_answered
    _, said = asked.communicate(timeout=40)
    assert asked.returncode == 1 and server.url in said, said
    job = next(job for job in daemon.json("jobs") if job["vm"] == "never")
    assert job["ended_ms"] - job["started_ms"] < 20_000 and daemon.state("never") == "running", job


def test_something_that_is_no_nbd_server(many):
    with Impostor(talks=True) as server, unchanged(many):
        error = many.daemon.refused("disk", "copy", many.name, "d0", server.url)
        assert server.url in error["message"], error


# --- Another QEMU ---


def test_with_the_newest_qemu(scene):
    directory = scene.target("newest")
    directory.mkdir()
    images = filled(directory / "i0", "qcow2"), filled(directory / "i1")
    top = chain(directory, "c")
    extra = ["-drive", f"if=none,id=h0,format=qcow2,file={images[0]}", "-device", "virtio-blk-pci,drive=h0,id=d0",
             "-object", "throttle-group,id=group,x-iops-total=2000",
             "-blockdev", f"driver=raw,node-name=n1,file.driver=file,file.filename={images[1]},cache.direct=on",
             "-blockdev", "driver=throttle,node-name=limit1,throttle-group=group,file=n1",
             "-object", "iothread,id=thread", "-device", "virtio-blk-pci,drive=limit1,id=d1,iothread=thread",
             "-drive", f"if=none,id=h2,format=qcow2,file={top}", "-device", "virtio-blk-pci,drive=h2,id=d2"]
    paths = {"d0": "/dev/vda", "d1": "/dev/vdb", "d2": "/dev/vdc"}
    with contextlib.closing(Vm(scene.daemon, "newest", paths, version="11.1", extra=extra)) as vm:
        names = {name: str(directory / f"new-{name}") for name in paths}
        vm.daemon.run("disk", "copy", vm.name, "d0", names["d0"], "d1", names["d1"], "--format", "qcow2", "--pivot")
        vm.daemon.run("disk", "copy", vm.name, "d2", names["d2"], "--sync", "top", "--pivot")
        assert len(backing_of(names["d2"])) == 2
        vm.go_on()
        vm.nothing_lost()
        vm.daemon.run("disk", "pull", vm.name, "d2")
        assert {name: disk["file"] for name, disk in vm.disks().items()} == names and backing_of(names["d2"]) == []
        job = vm.daemon.json("disk", "copy", vm.name, "d1", directory / "left")
        acked = vm.acked("d1")
        vm.daemon.run("disk", "abort", vm.name)
        assert vm.daemon.ended_job(job["id"])["state"] == "succeeded"
        assert DiskImage(as_raw(directory / "left", "qcow2")).problems(acked) == []
        with Nbd(new_image(directory / "export"), tcp=True) as server:
            vm.daemon.run("disk", "copy", vm.name, "d0", server.url, "--finish")
        assert behind(server.image) == vm.tails["d0"]
        vm.assert_sound()
        vm.upgrade("7.2")
        vm.go_on()
        vm.nothing_lost()
        vm.daemon.run("stop", vm.name, "--force")
    scene.daemon.run("forget", "newest")


# --- Encrypted disks ---


def luks(path, form, mib=2):
    """qemu-img 7.2 may fail to measure how fast it is ("Unable to get accurate CPU usage")."""
    options = {"qcow2": "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10", "luks": "key-secret=key,iter-time=10"}[form]
    wait_until(lambda: run("qemu-img", "create", "-q", *SECRET, "-f", form, "-o", options, path, f"{mib}M", check=False).returncode == 0,
               PATIENT, "an encrypted image")
    return path


def test_the_copy_of_an_encrypted_disk_is_encrypted(scene, daemon, bare):
    image, target = luks(scene.target("luks"), "qcow2"), scene.target("luks")
    opened = "driver=qcow2,encrypt.key-secret=key,file.filename={}"
    run("qemu-io", *SECRET, "--image-opts", "-c", "write -q -P 7 0 1M", opened.format(image))
    vm = bare("-object", "secret,id=key,data=geheim", "-drive",
              f"if=none,id=h0,format=qcow2,file={image},encrypt.format=luks,encrypt.key-secret=key", "-device",
              "virtio-blk-pci,drive=h0,id=d0")
    assert daemon.json("disk", "show", vm, "d0")["encrypted"]
    error = daemon.refused("disk", "copy", vm, "d0", target, "--format", "raw")
    assert "encrypted" in error["message"] and not target.exists()
    daemon.run("disk", "copy", vm, "d0", target, "--pivot")
    shown = daemon.json("disk", "show", vm, "d0")
    assert shown["encrypted"] and shown["file"] == str(target)
    assert json.loads(run("qemu-img", "info", "-U", "--output=json", target).stdout)["encrypted"]
    # What cannot be rebuilt for the next QEMU is refused, and nothing has happened.
    done = daemon.run("upgrade", vm, "--qemu", guest.qemu("7.2"), check=False)
    assert done.returncode == 0 or "encrypted" in done.stderr, done.stderr
    assert daemon.state(vm) == "running" and daemon.json("disk", "show", vm, "d0")["file"] == str(target)
    daemon.run("stop", vm, "--force")
    assert "fail" not in run("qemu-io", *SECRET, "--image-opts", "-c", "read -P 7 0 1M", opened.format(target)).stdout


# --- droverd is killed ---


def test_a_droverd_that_is_killed_while_a_disk_is_copied(many, scene, daemon):
    """QEMU goes on with it; the next droverd takes it up under its number."""
    target = scene.target("killed")
    job = daemon.json("disk", "copy", many.name, "d1", target, *SLOW, "--async")
    many.is_copying()
    daemon.restart()
    again = many.comes_to("copy")
    assert again["id"] == job["id"] and daemon.show(many.name)["job"] == job["id"]
    daemon.run("disk", "bandwidth", many.name, 0)
    many.comes_to("ready", 20)
    many.go_on("d1")
    daemon.run("disk", "pivot", many.name)
    job = daemon.ended_job(job["id"])
    assert job["state"] == "succeeded" and job["result"]["kept"] == "copy"
    assert many.disks()["d1"]["file"] == str(target)
    many.nothing_lost("d1")


@pytest.mark.parametrize("word, sig", [("pivot", signal.SIGKILL), ("abort", signal.SIGKILL), ("cancel", signal.SIGKILL),
                                       ("pivot", signal.SIGTERM)])
def test_a_droverd_that_ends_while_a_copy_is_ready(many, scene, daemon, word, sig):
    target = scene.target("killed")
    job = daemon.json("disk", "copy", many.name, "d0", target)
    before = many.disks()["d0"]["file"]
    begun = time.monotonic()
    daemon.kill(sig)
    assert time.monotonic() - begun < 10  # one that is told to end does not wait for a copy, which may stay ready for days
    many.go_on("d0")
    acked = many.acked("d0")
    daemon.start()
    assert many.comes_to("ready")["id"] == job["id"]
    daemon.run(*(("cancel", job["id"]) if word == "cancel" else ("disk", word, many.name)))
    job = daemon.ended_job(job["id"])
    assert job["state"] == ("cancelled" if word == "cancel" else "succeeded"), job
    assert many.disks()["d0"]["file"] == (str(target) if word == "pivot" else before)
    if word == "abort":
        form = many.disks()["d0"]["format"]
        assert DiskImage(as_raw(target, form)).problems(acked) == []
    assert target.exists() == (word != "cancel")
    many.nothing_lost("d0")


@contextlib.contextmanager
def held_at(many, stage, *words):
    """A copy that is held at a stage, whose droverd is then killed; the next one runs afterwards, without holding."""
    daemon = many.daemon
    daemon.restart(env={"DROVER_HOLD_AT": stage})
    job = daemon.json("disk", *words, "--async")
    wait_until((daemon.run_dir / "hold").exists, PATIENT, f"the job to come to {stage}")
    daemon.kill()
    (daemon.run_dir / "hold").unlink()
    yield job
    if not daemon.process.alive():
        daemon.start()


@pytest.mark.parametrize("stage, option, kept", [("pivot", "--pivot", "copy"), ("finish", "--finish", "disk")])
def test_a_droverd_that_is_killed_at_the_end_of_a_copy(many, scene, daemon, stage, option, kept):
    targets = scene.target("killed"), scene.target("killed")
    before = {name: disk["file"] for name, disk in many.disks().items()}
    with held_at(many, stage, "copy", many.name, "d0", targets[0], "d1", targets[1], option) as job:
        acked = {name: many.acked(name) for name in ("d0", "d1")}
    job = daemon.ended_job(job["id"])
    assert job["state"] == "succeeded" and job["result"]["kept"] == kept, job
    now = many.disks()
    for name, target in zip(("d0", "d1"), targets):
        assert now[name]["file"] == (str(target) if kept == "copy" else before[name])
        assert kept == "copy" or DiskImage(as_raw(target, now[name]["format"])).problems(acked[name]) == []
        assert kept == "disk" or before[name] not in files_of(many.pid)
    many.nothing_lost("d0", "d1")


def test_a_droverd_that_is_killed_between_the_pivots_of_two_disks(many, scene, daemon):
    targets = scene.target("killed"), scene.target("killed")
    with held_at(many, "pivot", "copy", many.name, "d0", targets[0], "d1", targets[1], "--pivot") as job:
        with Qmp(user_monitor(many)) as monitor:  # what droverd would have done next
            mirror = monitor.command("query-block-jobs")[0]["device"]
            monitor.command("block-job-complete", {"device": mirror})
            wait_until(lambda: {entry["id"]: entry["status"] for entry in monitor.command("query-jobs")}[mirror] == "concluded", PATIENT,
                       "the first pivot")
    job = daemon.ended_job(job["id"])
    assert job["state"] == "succeeded", job
    assert [many.disks()[name]["file"] for name in ("d0", "d1")] == [str(target) for target in targets]
    many.nothing_lost("d0", "d1")


def user_monitor(vm):
    """drover's own monitor, which nobody has while droverd does not run."""
    directory = vm.daemon.run_dir / "vms" / vm.name
    return max(directory.glob("qmp.*"), key=lambda path: path.stat().st_mtime)


@pytest.mark.parametrize("stage", ["create", "copy"])
def test_a_droverd_that_is_killed_at_the_beginning_of_a_copy(many, scene, daemon, stage):
    """There is nothing to go on with: nothing is left of it, and it can be started again."""
    target = scene.target("killed")
    with held_at(many, stage, "copy", many.name, "d0", target, "--finish") as job:
        pass
    job = daemon.ended_job(job["id"])
    assert job["state"] == "failed" and job["error"]["remedy"], job
    assert not target.exists()
    many.assert_sound()
    daemon.run("disk", "copy", many.name, "d0", target, "--finish")


def test_a_file_that_comes_into_being_after_preflight_is_not_written_over(many, scene, daemon):
    target = scene.target("mine")
    daemon.restart(env={"DROVER_HOLD_AT": "create"})
    try:
        job = daemon.json("disk", "copy", many.name, "d0", target, "--finish", "--async")
        wait_until((daemon.run_dir / "hold").exists, PATIENT, "the job to come to its stage create")
        target.write_text("somebody's")
        (daemon.run_dir / "hold").unlink()
        job = daemon.ended_job(job["id"])
        assert target.exists() and target.read_text() == "somebody's"
        assert job["state"] == "failed" and "there already" in job["error"]["message"], job
    finally:
        daemon.restart()


# --- The VM ends ---


@pytest.mark.parametrize("when, how", [("copy", "kill"), ("copy", "kill both"), ("ready", "kill"), ("ready", "stop"),
                                       ("ready", "kill both")])
def test_a_qemu_that_ends_ends_the_job(scene, daemon, bare, when, how):
    """A copy that was not complete goes; one that was stays as far as it came."""
    image, target = filled(scene.target("doomed"), mib=12), scene.target("doomed")
    vm = bare("-drive", f"if=none,id=h0,format=raw,file={image}", "-device", "virtio-blk-pci,drive=h0,id=d0")
    content = image.read_bytes()
    job = daemon.json("disk", "copy", vm, "d0", target, *(SLOW if when == "copy" else ()), "--async")

    def is_there():
        now = daemon.json("job", job["id"])
        return now["stage"] == when and (when == "ready" or (now["progress"] or {}).get("bytes_done", 0) > 0)

    wait_until(is_there, PATIENT, f"stage {when}")
    pid = daemon.show(vm)["pid"]
    if how == "kill both":
        daemon.kill()
    if how == "stop":
        daemon.run("stop", vm, "--force")
    else:
        kill_pid(pid)
    if how == "kill both":
        daemon.start()
    job = daemon.ended_job(job["id"], 30)
    assert job["state"] == "failed" and vm in job["error"]["message"], job
    assert daemon.state(vm) == "stopped" and daemon.show(vm)["job"] is None
    assert target.exists() == (when == "ready") and image.read_bytes() == content


# --- Pull ---


def test_a_whole_chain_is_pulled(chains):
    top, below = chains.cwd / "c1-top", [chains.cwd / "c1-mid", chains.cwd / "c1-base"]
    assert {str(path) for path in below} <= files_of(chains.pid)
    job = chains.daemon.json("disk", "pull", "chains", "c1")
    assert job["kind"] == "disk-pull" and job["state"] == "succeeded" and job["result"]["disk"] == "c1"
    assert backing_of(top) == [] and len(chains.disks()["c1"]["chain"]) == 1
    assert not {str(path) for path in below} & files_of(chains.pid)
    for path in below:
        path.unlink()
    chains.go_on("c1")
    chains.nothing_lost("c1")
    error = chains.daemon.refused("disk", "pull", "chains", "c1")
    assert error["code"] == "refused" and "no backing image" in error["message"]


@pytest.mark.parametrize("disk, directory", [("c2", "{}/"), ("r1", "sub/")])
def test_a_chain_is_pulled_down_to_an_image_that_stays(chains, disk, directory):
    """Also where its images have names that begin where QEMU was started, as its command line has them."""
    top, mid = chains.file(chains.disks()[disk]), chains.cwd / directory.format(chains.cwd) / f"{disk}-mid"
    base = f"{directory.format(chains.cwd)}{disk}-base"
    api.request(chains.daemon.run_dir / "api.sock", "POST", "/v1/vms/chains/disks/pull", {"disk": disk, "base": base})
    job = chains.daemon.ended_job(chains.job()["id"])
    assert job["kind"] == "disk-pull" and job["state"] == "succeeded", job
    assert [os.path.realpath(top.parent / name) for name, _ in backing_of(top)] == [str(chains.cwd / base)]
    assert str(mid) not in files_of(chains.pid)
    mid.unlink()
    chains.go_on(disk)
    chains.nothing_lost(disk)
    error = chains.daemon.refused("disk", "pull", "chains", disk, "--base", chains.disks()[disk]["chain"][1]["node"])
    assert error["code"] == "refused" and "already" in error["message"]


def test_nodes_with_names_of_their_own_are_closed_and_the_next_qemu_does_without_them(chains):
    error = chains.daemon.refused("disk", "pull", "chains", "n0", "--base", "nothing")
    assert error["code"] == "not-found" and "n0-base" in error["remedy"]
    chains.daemon.run("disk", "pull", "chains", "n0", "--base", "base0")
    assert [image["node"] for image in chains.disks()["n0"]["chain"]] == ["top0", "base0"]
    chains.daemon.run("disk", "pull", "chains", "n0")
    nodes = {node["node-name"] for node in chains.daemon.qmp("chains", "query-named-block-nodes")}
    assert not nodes & {"mid0", "mid0-file", "base0"} and "top0" in nodes
    for version in ("10.0", "7.2"):
        chains.upgrade(version)
        assert [image["node"] for image in chains.disks()["n0"]["chain"]] == ["top0"]
        chains.go_on()
        chains.nothing_lost("n0")


@pytest.mark.parametrize("how", ["abort", "cancel", "kill", "kill at the end"])
def test_a_pull_that_is_ended_midway_loses_nothing(scene, daemon, bare, how):
    directory = scene.target("pull")
    directory.mkdir()
    base, top = filled(directory / "base", mib=8), new_image(directory / "top", "qcow2", backing=(directory / "base", "raw"))
    vm = bare("-drive", f"if=none,id=h0,format=qcow2,file={top}", "-device", "virtio-blk-pci,drive=h0,id=d0")
    content = base.read_bytes()
    if "at the end" in how:
        daemon.restart(env={"DROVER_HOLD_AT": "close"})
    job = daemon.json("disk", "pull", vm, "d0", *(() if " " in how else ("--bandwidth", 1)), "--async")
    if " " in how:
        wait_until((daemon.run_dir / "hold").exists, PATIENT, "the pull to come to its end")
    else:
        wait_until(lambda: (daemon.json("job", job["id"])["progress"] or {}).get("bytes_done", 0) > 0, PATIENT, "some progress")
    if how in ("abort", "cancel"):
        daemon.run(*(("cancel", job["id"]) if how == "cancel" else ("disk", "abort", vm)))
        assert daemon.ended_job(job["id"])["state"] == "cancelled"
        assert backing_of(top) == [(str(base), "raw")]
        assert as_raw(top, "qcow2").read_bytes() == content
        daemon.run("disk", "pull", vm, "d0")
    else:
        daemon.kill()
        (daemon.run_dir / "hold").unlink(missing_ok=True)
        daemon.start()
        if how == "kill":
            wait_until(lambda: daemon.run("disk", "bandwidth", vm, 0, check=False).returncode == 0, PATIENT, "the job to be asked")
        ended = daemon.ended_job(job["id"])
        assert ended["state"] == "succeeded", ended
    assert daemon.qmp(vm, "query-jobs") == [] and str(base) not in files_of(daemon.show(vm)["pid"])
    daemon.run("stop", vm, "--force")
    assert backing_of(top) == [] and as_raw(top, "qcow2").read_bytes() == content


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_pulled_image_is_whole_when_its_qemu_is_killed_at_once(scene, daemon, bare, version):
    """QEMU takes the backing file out of the header before it has written the tables of what it copied; and while an ended block-stream is
    on its list, query-named-block-nodes crashes it."""
    directory = scene.target("whole")
    directory.mkdir()
    base, top = filled(directory / "base", mib=8), new_image(directory / "top", "qcow2", backing=(directory / "base", "raw"))
    vm = bare("-drive", f"if=none,id=h0,format=qcow2,file={top}", "-device", "virtio-blk-pci,drive=h0,id=d0", version=version)
    job = daemon.json("disk", "pull", vm, "d0", "--async")
    while daemon.json("job", job["id"])["state"] == "running":  # ended by the job, which ended_job() waits for with a deadline
        daemon.json("disk", "list", vm)
    assert daemon.ended_job(job["id"])["state"] == "succeeded"
    kill_pid(daemon.show(vm)["pid"])
    assert backing_of(top) == [] and as_raw(top, "qcow2").read_bytes() == base.read_bytes()
    run("qemu-img", "check", top)


def test_a_pull_from_a_server_that_is_away_for_a_while_goes_on_by_itself(scene, daemon, bare):
    """An NBD client of QEMU's has reconnect-delay=0 where nobody says another: what it reads meanwhile fails."""
    server = Nbd(filled(scene.target("away"), mib=12), tcp=True).start()
    try:
        content, top = server.image.read_bytes(), scene.target("away")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", server.url, "-F", "raw", top)
        vm = bare("-drive", f"if=none,id=h0,format=qcow2,file={top}", "-device", "virtio-blk-pci,drive=h0,id=d0")
        job = daemon.json("disk", "pull", vm, "d0", "--bandwidth", 1, "--async")
        wait_until(lambda: (daemon.json("job", job["id"])["progress"] or {}).get("bytes_done", 0) > 0, PATIENT, "some progress")
        server.stop()
        told = wait_until(lambda: len((now := daemon.json("job", job["id"]))["findings"]) == 2 and now, PATIENT, "drover to tell that it waits")
        assert [finding["code"] for finding in told["findings"]] == ["disk-pull-remote", "disk-pull-waits"] and told["state"] == "running"
        server.start()
        daemon.run("disk", "bandwidth", vm, 0)
        job = daemon.ended_job(job["id"])
        assert job["state"] == "succeeded", job
        daemon.run("stop", vm, "--force")
    finally:
        server.stop()
    assert backing_of(top) == [] and as_raw(top, "qcow2").read_bytes() == content


# --- Bad input ---


@pytest.fixture(scope="module")
def props(scene_of_the_tests):
    """What the table below names."""
    directory = scene_of_the_tests.daemon.dir / "props"
    directory.mkdir()
    many = scene_of_the_tests.get(make_many)
    own = many.daemon.dir / "i3"  # a disk of the VM's that no test copies
    made = {"dir": directory, "there": filled(directory / "there"), "small": new_image(directory / "small", mib=6), "own": own,
            "link": directory / "link", "hard": directory / "hard", "fifo": directory / "fifo", "corrupt": directory / "corrupt",
            "marked": directory / "marked", "new": directory / "new", "new2": directory / "new2", "orphan": directory / "orphan"}
    made["link"].symlink_to(own)
    os.link(own, made["hard"])
    os.mkfifo(made["fifo"])
    for name in ("corrupt", "marked"):
        new_image(made[name], "qcow2")
    with open(made["corrupt"], "r+b") as image:
        image.seek(36)
        image.write(b"\xff" * 12)  # the size and the place of its first table
    with open(made["marked"], "r+b") as image:
        image.seek(79)
        image.write(b"\x02")  # incompatible feature: corrupt
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", directory / "gone", "-F", "raw", made["orphan"], "8M")
    return made | {"times": {path: path.stat().st_mtime_ns for path in directory.iterdir()},
                   "state": many.state_of_disks()}


BAD = """
1 | copy many nope {new}                            | there is no disk 'nope'
1 | copy nobody d0 {new}                            | there is no VM called 'nobody'
1 | copy many cd1 {new}                             | has no medium
1 | copy many d3 {new}                              | read-only
1 | copy many d0 {there}                            | is there already
1 | copy many d0 {own}                              | one of the VM's own images
1 | copy many d0 {own} --reuse-external             | one of the VM's own images
1 | copy many d0 {link} --reuse-external            | one of the VM's own images
1 | copy many d0 {hard} --reuse-external            | one of the VM's own images
1 | copy many d0 {dir}/none/x                       | there is no directory
1 | copy many d0 {dir}                              | is a directory
1 | copy many d0 {there}/x                          | target
1 | copy many d0 {fifo}                             | neither a file nor a block device
1 | copy many d0 {small} --reuse-external           | disk 'd0' 8388608
1 | copy many d0 {corrupt} --reuse-external         | cannot look at
1 | copy many d0 {marked} --reuse-external          | marked as corrupt
1 | copy many d0 {orphan} --reuse-external          | gone
1 | copy many d0 http://127.0.0.1:9/x               | http://127.0.0.1:9/x
1 | copy many d0 nbd://127.0.0.1:9/x                | Connection refused
1 | copy many d0 nbd+unix:///x?socket={dir}/none    | cannot look at
1 | copy many d0 nbd:///x                           | names no place
1 | copy many d0 nbd+unix:///x                      | names no place
1 | copy many d0 nbds://127.0.0.1/x                 | TLS
1 | copy many d0 ftp://127.0.0.1/x                  | names no place
1 | copy many d0 {new} --sync top                   | no backing image
1 | copy many d0 {new} --format nonsense            | 'nonsense' is no format
1 | copy many d0 {new} h0 {new2}                    | named twice
1 | copy many d0 {new} nope {new2}                  | there is no disk 'nope'
1 | copy many d0 {new} d1 {there}                   | is there already
2 | copy many d0 {new} d0 {new2}                    | named twice
2 | copy many d0 {new} d1 {new}                     | named twice
2 | copy many d0 {new} d1                           | disk 'd1' has no target
2 | copy many d0                                    | TARGET is missing
2 | copy many                                       | is missing
2 | copy many d0 {new} --sync middle                | 'middle'
2 | copy many d0 {new} --pivot --finish             | exclude each other
2 | copy many d0 {new} --bandwidth -1               | below 0
2 | copy many d0 {new} --bandwidth 1000001          | bandwidth
2 | copy many d0 {new} --bandwidth fast             | fast
2 | copy many d0 {new} --granularity 1000           | no power of 2
2 | copy many d0 {new} --granularity 256            | granularity
2 | copy many d0 {new} --granularity 134217728      | granularity
2 | copy many d0 {new} --buf-size 2000000000        | buf_size
2 | copy many d0 {new} --timeout -3                 | below 0
2 | copy many d0 {new} --timeout 99999999           | timeout
2 | copy many d0 {new} --base {own}                 | takes no --base
1 | pull many nope                                  | there is no disk 'nope'
1 | pull many d0                                    | no backing image
1 | pull many d3                                    | read-only
1 | pull many cd1                                   | has no medium
1 | pull many d0 --base {own}                       | is not below
2 | pull many d0 --pivot                            | takes no --pivot
2 | pull many d0 --bandwidth 1000001                | bandwidth
1 | pivot many                                      | no disk of VM 'many'
1 | abort many                                      | no disk of VM 'many'
1 | bandwidth many 5                                | no disk of VM 'many'
2 | bandwidth many x                                | 'x' is no number
2 | bandwidth many 1000001                          | is no number
2 | bandwidth many                                  | is missing
1 | pivot nobody                                    | there is no VM called 'nobody'
1 | list nobody                                     | there is no VM called 'nobody'
1 | show many nope                                  | has no disk 'nope'
2 | list                                            | is missing
2 | list many d0                                    | unexpected argument
2 | frobnicate many                                 | there is no 'frobnicate'
"""


@pytest.mark.parametrize("code, words, text", [pytest.param(*(part.strip() for part in line.split("|")), id=line.split("|")[1].strip())
                                               for line in BAD.strip().splitlines()])
def test_bad_input_is_refused_and_nothing_changes(many_untouched, props, code, words, text):
    error = many_untouched.daemon.refused("disk", *(word.format(**props) for word in words.split()), code=int(code))
    assert text in error["message"], error
    assert {path: path.stat().st_mtime_ns for path in props["dir"].iterdir()} == props["times"]
    assert many_untouched.state_of_disks() == props["state"]


@pytest.mark.parametrize("body, text", [
    ({}, "name 1 to 16 disks"), ({"copies": []}, "name 1 to 16 disks"), ({"copies": "d0"}, "name 1 to 16 disks"),
    ({"copies": ["d0"]}, "each copy is"), ({"copies": [{"disk": "d0"}]}, "each copy is"),
    ({"copies": [{"disk": "d0", "target": 5}]}, "each copy is"),
    ({"copies": [{"disk": "d0", "target": f"/tmp/{number}"} for number in range(17)]}, "name 1 to 16 disks"),
    ({"copies": [{"disk": "d0", "target": "/tmp/x"}], "then": "dance"}, "'pivot' or 'finish'"),
    ({"copies": [{"disk": "d0", "target": "/tmp/x"}], "bandwidth": "5"}, "a whole number"),
    ({"copies": [{"disk": "d0", "target": "/tmp/x"}], "speed": 5}, "speed")])
def test_a_bad_request_is_refused(many_untouched, body, text):
    many = many_untouched
    answer = api.request(many.daemon.run_dir / "api.sock", "POST", f"/v1/vms/{many.name}/disks/copy", body)
    assert answer.status == 400 and answer.is_problem() and answer.json["code"] == "invalid" and text in answer.json["detail"], answer
    assert many.daemon.show(many.name)["job"] is None


def test_a_relative_path_by_the_api_is_refused(many_untouched):
    """droverd does not know where a client is."""
    many = many_untouched
    with unchanged(many):
        answer = api.request(many.daemon.run_dir / "api.sock", "POST", f"/v1/vms/{many.name}/disks/copy",
                             {"copies": [{"disk": "d0", "target": "x"}]})
        assert answer.status == 202
        job = many.daemon.ended_job(answer.json[0]["id"])
        assert job["state"] == "failed" and "'x' names no place" in job["error"]["message"]


def test_a_target_that_another_qemu_has_open_is_refused(many, scene, bare):
    image = filled(scene.target("taken"))
    content = image.read_bytes()
    bare("-drive", f"if=none,id=h0,format=raw,file={image}", "-device", "virtio-blk-pci,drive=h0,id=d0")
    with unchanged(many):
        error = many.daemon.refused("disk", "copy", many.name, "d0", image, "--reuse-external", "--format", "raw")
        assert "lock" in error["message"] and str(image) in error["message"]
    assert image.read_bytes() == content


def test_two_disks_to_one_file_by_two_names(many, scene):
    """By a directory's other name."""
    real, other = scene.target("real"), scene.target("other")
    real.mkdir()
    other.symlink_to(real)
    with unchanged(many):
        many.daemon.refused("disk", "copy", many.name, "d0", real / "x", "h2", other / "x", "--finish")
        assert list(real.iterdir()) == []


def test_a_link_to_nothing_leaves_nothing_where_it_points(many, scene):
    link, where = scene.target("link"), scene.target("where")
    link.symlink_to(where)
    job = many.daemon.run("disk", "copy", many.name, "d1", link, *SLOW, "--timeout", 1, check=False)
    assert job.returncode == 1 and not where.exists()
    link.unlink(missing_ok=True)


# --- A file system that is full ---


@pytest.fixture
def small_disk(scene):
    if os.geteuid() != 0:
        pytest.skip("needs root: mount")
    with SmallDisk(scene.target("small")) as made:
        yield made


def test_a_file_system_without_room_is_found_before(many, small_disk):
    small_disk.fill()
    with unchanged(many):
        error = many.daemon.refused("disk", "copy", many.name, "d0", small_disk.path / "x")
        assert "MiB free" in error["message"] and error["remedy"]
    assert [path.name for path in small_disk.path.iterdir()] == ["ballast"]


def test_room_for_one_is_not_room_for_two(many, small_disk):
    takes = {disk["name"]: sum(image["allocated_bytes"] for image in disk["chain"])
             for disk in many.daemon.json("disk", "list", many.name) if disk["name"] in ("d0", "d1")}
    free = os.statvfs(small_disk.path)
    leave = max(takes["d0"], takes["d1"]) + min(takes["d0"], takes["d1"]) // 2
    assert min(takes["d0"], takes["d1"]) > 0 and free.f_bavail * free.f_frsize > leave
    with open(small_disk.path / "ballast", "wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_frsize - leave)
    with unchanged(many):
        error = many.daemon.refused("disk", "copy", many.name, "d0", small_disk.path / "x", "d1", small_disk.path / "y")
        assert "disk 'd1'" in error["message"] and "disk 'd0'" not in error["message"], error
        assert [path.name for path in small_disk.path.iterdir()] == ["ballast"]


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_file_system_that_becomes_full_does_not_disturb_the_guest(many, small_disk, form):
    with unchanged(many):
        job = many.daemon.json("disk", "copy", many.name, "d1", small_disk.path / "x", "--format", form, *SLOW, "--async")
        many.is_copying()
        small_disk.fill()
        job = many.daemon.ended_job(job["id"])
        assert job["state"] == "failed" and "No space left" in job["error"]["message"], job
        assert [path.name for path in small_disk.path.iterdir()] == ["ballast"]
    many.nothing_lost("d1")
