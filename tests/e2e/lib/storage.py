# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests with disks of their own, to be moved with them. The two hosts are namespaces of one machine, so an image has another name over
there (--map)."""

import itertools
import json
import os

import pytest

from . import drover
from .disks import acked_at_the_end, as_raw, new_image, writes_go_on
from .guest import DiskImage
from .pair import Pair
from .procs import run

SMALL = {"ram": "131080k", "mem": 16, "rate": 20}
serial = itertools.count()


@pytest.fixture(scope="module")
def pair():
    with Pair(more="[peers]\ntransports=tunnel;plain;handoff\n") as both:
        yield both


class Disks:
    """Images of one VM at both hosts. Of different sizes, so that the guest tells which is which."""

    def __init__(self, pair, vm, forms=("qcow2", "raw")):
        self.dirs = {name: daemon.dir / vm for name, daemon in (("a", pair.a), ("b", pair.b))}
        for path in self.dirs.values():
            path.mkdir()
        self.forms = forms
        self.names = [f"disk{number}.{form}" for number, form in enumerate(forms)]
        for number, (name, form) in enumerate(zip(self.names, forms)):
            new_image(self.dirs["a"] / name, form, 16 + 8 * number)

    def maps(self, to):
        other = "a" if to == "b" else "b"
        return [word for name in self.names for word in ("--map", f"disk={self.dirs[other] / name}:{self.dirs[to] / name}")]

    def extra(self, options=""):
        return [word for name, form in zip(self.names, self.forms)
                for word in ("-drive", f"if=virtio,format={form},file={self.dirs['a'] / name}{options}")]

    def devices(self):
        return [f"/dev/vd{letter}" for letter in "abcdef"[:len(self.names)]]

    def files(self, host):
        return sorted(path.name for path in self.dirs[host].iterdir())


@pytest.fixture
def start(pair):
    started = []

    def start_one(forms=("qcow2", "raw"), options="", extra=(), witness=None, **more):
        name = f"st{next(serial)}"
        disks = Disks(pair, name, forms)
        vm = drover.Witness(pair.a, name, extra=[*disks.extra(options), *extra],
                            witness={"disk": ",".join(disks.devices()), "diskrate": 50, **(witness or {})}, **{**SMALL, **more})
        started.append(vm)
        writes_go_on(vm, *disks.devices())
        return vm, disks

    yield start_one
    for vm in started:
        vm.close()
    pair.clear()


def move(pair, vm, disks, *options, how="--copy-storage-all"):
    target = "b" if vm.daemon is pair.a else "a"
    job = pair.migrate(vm, how, *disks.maps(target), *options)
    vm.console.follow(vm.serial)
    return job


def check_images(daemon, vm, disks, host):
    """Each image on `host` has what the guest was told is written, in its format."""
    by_size = {f"/dev/{disk['name']}": disk["bytes"] >> 20 for disk in vm.console.status()["block"]}
    acked = acked_at_the_end(daemon, vm, *disks.devices())
    for device in disks.devices():
        number = (by_size[device] - 16) // 8
        image, form = disks.dirs[host] / disks.names[number], disks.forms[number]
        assert DiskImage(as_raw(image, form)).problems(acked[device]) == [], (device, image)
        info = json.loads(run("qemu-img", "info", "--output=json", image).stdout)
        assert info["format"] == form and info["virtual-size"] == (16 + 8 * number) << 20, info
        assert info["actual-size"] < 12 << 20, info  # as sparse as it was
        if form == "qcow2":
            run("qemu-img", "check", image)


def filled(pair, start, mib=16):
    """A VM with as much data on a disk that it does not write to: its copy takes a while on a slow link."""
    name = f"data{next(serial)}.raw"
    image = pair.a.dir / name
    image.write_bytes(os.urandom(mib << 20))
    vm, disks = start(("qcow2",), extra=["-drive", f"if=virtio,format=raw,file={image}"])
    there = pair.b.dir / name
    return vm, disks, [*disks.maps("b"), "--map", f"disk={image}:{there}"], image, there
