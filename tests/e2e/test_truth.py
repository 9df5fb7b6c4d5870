# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's command line is not its truth: what was done to its disks since is kept over upgrades, or refused by name."""

import json
import os

import pytest

from lib import drover, guest
from lib.disks import acked_at_the_end, as_raw, digest, new_image, writes_go_on
from lib.guest import DiskImage
from lib.procs import kill_pid, run, wait_until
from lib.qmp import Qmp

SMALL = {"ram": "131080k", "mem": 16, "rate": 20}
THERE_AND_BACK = ("10.0", "7.2")


class Vm(drover.Witness):
    """A witness that writes to /dev/vda; .do() tells its QEMU something, behind drover's back where it was adopted."""

    def __init__(self, daemon, extra, adopted):
        super().__init__(daemon, extra=extra, witness={"disk": "/dev/vda"}, adopt="pid" if adopted else None, **SMALL)
        self.adopted = adopted
        writes_go_on(self, "/dev/vda")

    def do(self, command, arguments=None):
        if not self.adopted:
            return self.daemon.qmp(self.name, command, arguments)
        with Qmp(self.qmp) as qmp:
            return qmp.command(command, arguments)

    def jobs(self):
        return self.do("query-block-jobs")

    def finish(self, job):
        """Waits until a mirror or an active commit is in step, and lets it pivot."""
        wait_until(lambda: all(entry["ready"] for entry in self.jobs()), 60, "the block job to be ready")
        self.do("block-job-complete", {"device": job})
        wait_until(lambda: not self.jobs(), 60, "the block job to end")

    def top(self, disk=0):
        """The image that the guest writes to."""
        return self.do("query-block")[disk]["inserted"]["image"]["filename"]

    def files(self, disk=0):
        """The chain of image files from the top down, by the block graph: QEMU's names for images may be JSON."""
        nodes = {node["node-name"]: node for node in self.do("query-named-block-nodes")}
        graph, edges = self.do("x-debug-query-block-graph"), {}
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        for edge in graph["edges"]:
            edges.setdefault(names[edge["parent"]], {})[edge["name"]] = names[edge["child"]]
        at, found = self.do("query-block")[disk]["inserted"]["node-name"], []
        while at:
            found.append(nodes[edges.get(at, {}).get("file", at)]["file"])
            at = edges.get(at, {}).get("backing")
        return found

    def is_used(self, node):
        """By a device, which lets go of it some time after it was unplugged."""
        graph = self.do("x-debug-query-block-graph")
        number = next(entry["id"] for entry in graph["nodes"] if entry["name"] == node)
        return any(edge["child"] == number for edge in graph["edges"])

    def upgrade(self, version, *options, **kwargs):
        before = self.files()
        job = super().upgrade(version, *options, **kwargs)
        assert self.files() == before
        writes_go_on(self, "/dev/vda")
        return job


@pytest.fixture(params=["run", "adopted"])
def start(request, daemon):
    started = []

    def start_one(*extra):
        started.append(Vm(daemon, extra, request.param == "adopted"))
        return started[-1]

    yield start_one
    for vm in started:
        vm.close()


def drive(path, form):
    return ["-drive", f"if=virtio,id=disk,format={form},file={path}"]


def blockdev(path, form):
    return ["-blockdev", f"driver={form},node-name=disk,file.driver=file,file.filename={path}", "-device",
            "virtio-blk-pci,drive=disk,id=vda"]


def snapshot(vm, overlay):
    vm.do("blockdev-snapshot-sync", {"device": "disk", "snapshot-file": str(overlay), "format": "qcow2"})
    assert vm.top() == str(overlay)


def has_all_that_was_acknowledged(daemon, vm, image, form="qcow2"):
    acked = acked_at_the_end(daemon, vm, "/dev/vda")
    assert DiskImage(as_raw(image, form)).problems(acked["/dev/vda"]) == []


# --- Snapshots ---


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_vm_with_a_live_snapshot_is_not_moved_onto_its_base_image(daemon, start, form):
    base, overlay = new_image(daemon.dir / "base", form), daemon.dir / "overlay"
    vm = start(*drive(base, form))
    snapshot(vm, overlay)
    writes_go_on(vm, "/dev/vda")
    untouched = digest(base)
    for version in THERE_AND_BACK:
        vm.upgrade(version)
        assert vm.top() == str(overlay)
        assert [disk["file"] for disk in daemon.show(vm.name)["disks"]] == [str(overlay)]
    assert digest(base) == untouched
    has_all_that_was_acknowledged(daemon, vm, overlay)
    assert digest(base) == untouched


def test_a_snapshot_over_a_blockdev_is_kept(daemon, start):
    base, overlay = new_image(daemon.dir / "base", "qcow2"), daemon.dir / "overlay"
    vm = start(*blockdev(base, "qcow2"))
    new_image(overlay, "qcow2", backing=(base, "qcow2"))
    vm.do("blockdev-add", {"driver": "qcow2", "node-name": "top", "backing": None,
                           "file": {"driver": "file", "filename": str(overlay)}})
    vm.do("blockdev-snapshot", {"node": "disk", "overlay": "top"})
    writes_go_on(vm, "/dev/vda")
    untouched = digest(base)
    for version in THERE_AND_BACK:
        vm.upgrade(version)
        assert vm.top() == str(overlay)
    has_all_that_was_acknowledged(daemon, vm, overlay)
    assert digest(base) == untouched


def test_an_overlay_whose_header_names_no_base_is_kept_on_its_base(daemon, start):
    """Only the running QEMU knows the chain then."""
    base, overlay = new_image(daemon.dir / "base", "qcow2"), new_image(daemon.dir / "overlay", "qcow2")
    vm = start(*blockdev(base, "qcow2"))
    vm.do("blockdev-add", {"driver": "qcow2", "node-name": "top", "backing": None,
                           "file": {"driver": "file", "filename": str(overlay)}})
    vm.do("blockdev-snapshot", {"node": "disk", "overlay": "top"})
    writes_go_on(vm, "/dev/vda")
    untouched = digest(base)
    for version in THERE_AND_BACK:
        vm.upgrade(version)
        assert vm.files() == [str(overlay), str(base)]
    chain = {"driver": "qcow2", "file": {"driver": "file", "filename": str(overlay)},
             "backing": {"driver": "qcow2", "file": {"driver": "file", "filename": str(base)}}}
    has_all_that_was_acknowledged(daemon, vm, overlay, f"json:{json.dumps(chain)}")
    assert digest(base) == untouched


def test_snapshots_taken_between_upgrades_are_kept_too(daemon, start):
    base = new_image(daemon.dir / "base", "qcow2")
    vm = start(*drive(base, "qcow2"))
    for number, version in enumerate((*THERE_AND_BACK, "10.0")):
        snapshot(vm, daemon.dir / f"overlay{number}")
        writes_go_on(vm, "/dev/vda")
        vm.upgrade(version)
        assert vm.files() == [str(daemon.dir / f"overlay{n}") for n in range(number, -1, -1)] + [str(base)]
    # Out with the middle.
    vm.do("block-commit", {"device": "disk", "top": str(daemon.dir / "overlay1"), "base": str(daemon.dir / "overlay0")})
    wait_until(lambda: not vm.jobs(), 60, "the commit to end")
    vm.upgrade("7.2")
    assert vm.files() == [str(daemon.dir / "overlay2"), str(daemon.dir / "overlay0"), str(base)]
    has_all_that_was_acknowledged(daemon, vm, daemon.dir / "overlay2")


# --- Pivots ---


def test_after_a_commit_the_base_is_the_top_again(daemon, start):
    base, overlay = new_image(daemon.dir / "base", "qcow2"), daemon.dir / "overlay"
    vm = start(*drive(base, "qcow2"))
    snapshot(vm, overlay)
    vm.upgrade("10.0")
    writes_go_on(vm, "/dev/vda")
    vm.do("block-commit", {"device": "disk", "job-id": "commit"})
    vm.finish("commit")
    assert vm.files() == [str(base)]
    os.unlink(overlay)
    for version in ("7.2", "10.0"):
        vm.upgrade(version)
        assert vm.top() == str(base)
    has_all_that_was_acknowledged(daemon, vm, base)


def test_a_disk_that_was_copied_elsewhere_stays_there(daemon, start):
    base, copy = new_image(daemon.dir / "base", "raw"), daemon.dir / "copy"
    vm = start(*drive(base, "raw"))
    vm.do("drive-mirror", {"device": "disk", "target": str(copy), "format": "qcow2", "sync": "full", "job-id": "mirror"})
    vm.finish("mirror")
    untouched = digest(base)
    for version in THERE_AND_BACK:
        vm.upgrade(version)
        assert vm.files() == [str(copy)]
    has_all_that_was_acknowledged(daemon, vm, copy)
    assert digest(base) == untouched


def test_a_chain_that_was_streamed_is_short(daemon, start):
    base, overlay = new_image(daemon.dir / "base", "qcow2"), daemon.dir / "overlay"
    vm = start(*drive(base, "qcow2"))
    snapshot(vm, overlay)
    vm.do("block-stream", {"device": "disk"})
    wait_until(lambda: not vm.jobs(), 60, "the stream to end")
    base.unlink()
    for version in THERE_AND_BACK:
        vm.upgrade(version)
        assert vm.files() == [str(overlay)]
    has_all_that_was_acknowledged(daemon, vm, overlay)


# --- What cannot be rebuilt ---


def refused(daemon, vm, *named):
    """The upgrade is refused, naming what stands in the way, and nothing has changed."""
    pid, files, processes = vm.pid, sorted(daemon.dir.rglob("*")), daemon.qemus()
    checked = daemon.run("upgrade", vm.name, "--qemu", guest.qemu("10.0"), "--check", "--json", check=False)
    assert checked.returncode == 1
    blockers = [finding for finding in json.loads(checked.stdout)["findings"] if finding["severity"] == "blocker"]
    error = daemon.refused("upgrade", vm.name, "--qemu", guest.qemu("10.0"))
    assert error["code"] == "refused" and error["remedy"], error
    for name in named:
        assert any(name in finding["text"] for finding in blockers), (name, blockers)
    assert all(finding["remedy"] for finding in blockers)
    assert vm.pid == pid and daemon.qemus() == processes and sorted(daemon.dir.rglob("*")) == files
    assert daemon.state(vm.name) == "running"
    writes_go_on(vm, "/dev/vda")
    vm.healthy()


def test_a_block_job_that_runs_is_refused(daemon, start):
    base, copy = new_image(daemon.dir / "base", "raw"), daemon.dir / "copy"
    vm = start(*drive(base, "raw"))
    vm.do("drive-mirror", {"device": "disk", "target": str(copy), "format": "raw", "sync": "full", "job-id": "mirror"})
    wait_until(lambda: vm.jobs()[0]["ready"], 60, "the mirror to be in step")
    refused(daemon, vm, "mirror")
    # The remedy: let it end.
    vm.do("block-job-cancel", {"device": "mirror"})
    wait_until(lambda: not vm.jobs(), 60, "the mirror to end")
    vm.upgrade("10.0")
    assert vm.files() == [str(base)]
    has_all_that_was_acknowledged(daemon, vm, base, "raw")


def test_a_disk_behind_something_that_qemu_does_not_tell_is_refused(daemon, start):
    base, other = new_image(daemon.dir / "base", "raw"), new_image(daemon.dir / "other", "raw")
    vm = start(*drive(base, "raw"), "-object", "throttle-group,id=slow,x-iops-total=1000", "-device",
               "pcie-root-port,id=rp1,chassis=1")
    vm.do("blockdev-add", {"driver": "throttle", "node-name": "limited", "throttle-group": "slow",
                           "file": {"driver": "raw", "node-name": "below", "file": {"driver": "file", "filename": str(other)}}})
    vm.do("device_add", {"driver": "virtio-blk-pci", "id": "plugged", "drive": "limited", "bus": "rp1"})
    refused(daemon, vm, "limited")
    # The remedy: unplug it.
    vm.do("device_del", {"id": "plugged"})
    wait_until(lambda: "plugged" not in [entry["name"] for entry in vm.do("qom-list", {"path": "/machine/peripheral"})], 60,
               "the guest to let go of the disk")
    wait_until(lambda: not vm.is_used("limited"), 60, "QEMU to let go of it, too")
    vm.do("blockdev-del", {"node-name": "limited"})
    vm.upgrade("10.0")


def test_a_disk_whose_image_was_moved_away_is_refused(daemon, start):
    base = new_image(daemon.dir / "base", "raw")
    vm = start(*drive(base, "raw"))
    base.rename(daemon.dir / "moved")
    refused(daemon, vm, str(base))
    (daemon.dir / "moved").rename(base)
    vm.upgrade("10.0")


def test_another_image_at_the_same_path_is_not_taken(daemon, start):
    """QEMU has the old file open; a new one would open what lies there now."""
    base = new_image(daemon.dir / "base", "raw")
    vm = start(*drive(base, "raw"))
    base.rename(daemon.dir / "moved")
    new_image(base, "raw")
    untouched = digest(base)
    refused(daemon, vm, str(base))
    assert digest(base) == untouched
    (daemon.dir / "moved").rename(base)
    vm.upgrade("10.0")
    has_all_that_was_acknowledged(daemon, vm, base, "raw")


# --- What is done to the guest while its upgrade is under way ---


class Changing:
    """A VM whose user's own monitor is used while an upgrade of it is held; afterwards droverd holds nothing any more."""

    def __init__(self, daemon, stage, mode, extra):
        self.daemon, self.mode = daemon, mode
        self.monitor = daemon.dir / "user.qmp"
        self.vm = Vm(daemon, [*extra, "-qmp", f"unix:{self.monitor},server=on,wait=off"], False)
        self.pid, self.hold = self.vm.pid, daemon.run_dir / "hold"
        daemon.restart(env={"DROVER_HOLD_AT": "transfer" if stage == "moving" else stage})
        self.upgrade = daemon.spawn("upgrade", self.vm.name, "--qemu", guest.qemu("10.0"), "--memory", mode, "--json")
        wait_until(lambda: self.hold.exists() or self.upgrade.poll() is not None, 60, f"the upgrade at {stage}")
        assert self.upgrade.poll() is None, self.upgrade.communicate()
        if stage == "moving":
            self._move_slowly()

    def _move_slowly(self):
        self.do("migrate-set-parameters", {"max-bandwidth": 4 << 20})
        self.hold.unlink()
        wait_until(lambda: self.do("query-migrate").get("ram", {}).get("transferred", 0) > 1 << 20, 60, "pages on their way")
        assert self.do("query-migrate")["status"] == "active"

    def do(self, command, arguments=None):
        with Qmp(self.monitor) as qmp:
            return qmp.command(command, arguments)

    def end(self, code):
        """Lets it go, and returns the job."""
        if not self.hold.exists():
            self.do("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        self.hold.unlink(missing_ok=True)
        said = self.upgrade.communicate(timeout=90)
        assert self.upgrade.returncode == code, said
        self.daemon.restart()
        return json.loads(said[0])

    def is_where_it_was(self, job):
        assert job["state"] == "failed" and job["error"]["code"] == "refused", job["error"]
        assert [f for f in job["findings"] if f["severity"] == "blocker" and f["code"] == "changed" and f["remedy"]]
        assert self.vm.pid == self.pid and self.daemon.qemus() == [self.pid]
        assert not list(self.daemon.dir.rglob("*.drover-*")) and not list(self.daemon.run_dir.rglob("chosen*"))
        assert self.daemon.state(self.vm.name) == "running"
        self.vm.healthy()
        writes_go_on(self.vm, "/dev/vda")


@pytest.fixture
def changing(daemon):
    made = []

    def make(*args):
        made.append(Changing(daemon, *args))
        return made[-1]

    yield make
    for one in made:
        one.upgrade.kill()
        one.upgrade.communicate()
        one.vm.close()


DURING = [("verify", "shared"), ("transfer", "shared"), ("moving", "copy"), ("postcopy", "postcopy")]


@pytest.mark.parametrize("stage, mode", DURING)
def test_a_snapshot_during_an_upgrade_is_not_lost(daemon, changing, stage, mode):
    base, overlay = new_image(daemon.dir / "base", "qcow2"), daemon.dir / "overlay"
    held = changing(stage, mode, drive(base, "qcow2"))
    held.do("blockdev-snapshot-sync", {"device": "disk", "snapshot-file": str(overlay), "format": "qcow2"})
    untouched = digest(base)
    job = held.end(1)
    assert str(overlay) in job["error"]["message"], job["error"]
    held.is_where_it_was(job)
    assert held.vm.top() == str(overlay)
    # The remedy: again.
    held.vm.upgrade("10.0")
    assert held.vm.top() == str(overlay) and digest(base) == untouched
    has_all_that_was_acknowledged(daemon, held.vm, overlay)


@pytest.mark.parametrize("stage, mode", DURING)
def test_a_block_job_begun_during_an_upgrade_is_not_lost(daemon, changing, stage, mode):
    base, copy = new_image(daemon.dir / "base", "raw"), daemon.dir / "copy"
    held = changing(stage, mode, drive(base, "raw"))
    held.do("drive-mirror", {"device": "disk", "target": str(copy), "format": "raw", "sync": "full", "job-id": "mirror"})
    wait_until(lambda: held.do("query-block-jobs")[0]["ready"], 60, "the mirror to be in step")
    job = held.end(1)
    assert "mirror" in job["error"]["message"], job["error"]
    held.is_where_it_was(job)
    assert held.do("query-block-jobs")[0]["device"] == "mirror"


@pytest.mark.parametrize("stage, mode", DURING[:2])
def test_a_device_plugged_in_during_an_upgrade_is_not_lost(daemon, changing, stage, mode):
    held = changing(stage, mode, [*drive(new_image(daemon.dir / "base", "raw"), "raw"), "-device", "pcie-root-port,id=rp1,chassis=1"])
    held.do("device_add", {"driver": "virtio-balloon-pci", "id": "plugged", "bus": "rp1"})
    job = held.end(1)
    assert "plugged" in job["error"]["message"], job["error"]
    held.is_where_it_was(job)
    held.vm.upgrade("10.0")
    assert "plugged" in [entry["name"] for entry in held.do("qom-list", {"path": "/machine/peripheral"})]


@pytest.mark.parametrize("stage, mode", DURING)
def test_a_guest_that_its_owner_paused_during_an_upgrade_stays_paused(daemon, changing, stage, mode):
    held = changing(stage, mode, drive(new_image(daemon.dir / "base", "raw"), "raw"))
    held.do("stop")
    job = held.end(0)
    assert job["state"] == "succeeded" and job["result"]["pause_ms"] is None, job
    assert daemon.state(held.vm.name) == "paused"
    daemon.run("resume", held.vm.name)
    held.vm.healthy()
    writes_go_on(held.vm, "/dev/vda")


@pytest.mark.parametrize("stage, mode", DURING)
def test_a_guest_that_its_owner_resumed_during_an_upgrade_runs_on(daemon, changing, stage, mode):
    held = changing(stage, mode, drive(new_image(daemon.dir / "base", "raw"), "raw"))
    held.do("stop")
    held.do("cont")
    job = held.end(0)
    assert daemon.state(held.vm.name) == "running" and job["result"]["pause_ms"] < 5000, job
    held.vm.healthy()


@pytest.mark.parametrize("stage, mode", [("verify", "shared"), ("moving", "copy")])
def test_a_guest_that_its_owner_paused_stays_so_after_a_failed_upgrade(daemon, changing, stage, mode):
    held = changing(stage, mode, drive(new_image(daemon.dir / "base", "raw"), "raw"))
    held.do("stop")
    destination, = set(daemon.qemus()) - {held.pid}
    kill_pid(destination)
    job = held.end(1)
    assert job["state"] == "failed", job
    assert daemon.state(held.vm.name) == "paused" and held.vm.pid == held.pid
    daemon.run("resume", held.vm.name)
    held.vm.healthy()


def test_a_guest_that_its_owner_paused_stays_so_when_droverd_dies_too(daemon, changing):
    held = changing("moving", "copy", drive(new_image(daemon.dir / "base", "raw"), "raw"))
    held.do("stop")
    wait_until(lambda: not held.do("query-status")["running"], 20, "the guest to stand still")
    wait_until(lambda: held.do("query-migrate")["status"] == "completed" or daemon.json("list")[0]["state"] == "paused", 90,
               "droverd to have heard of it")
    daemon.restart()
    held.upgrade.communicate(timeout=90)
    daemon.ended_job(daemon.json("jobs")[0]["id"])
    assert daemon.state(held.vm.name) == "paused"
