# SPDX-License-Identifier: LGPL-2.1-or-later
"""What jobs have recorded of themselves: drover report, as text, JSON and page, and drover stats."""

import html.parser
import json
import os
import re
import signal

import pytest

from lib import drover, guest
from lib.disks import new_image
from lib.pair import Pair
from lib.procs import wait_until
from lib.storage import move, pair, start  # noqa: F401: two are fixtures

REPORT = {"job", "samples", "phases", "pause"}
SAMPLE = {"t_ms", "phase", "pass", "bytes_done", "remaining_bytes", "rate_mib", "dirty_mib", "expected_pause_ms",
          "disk_bytes_done", "disk_bytes_total", "expected_ms"}
VOID = {"meta", "br"}


class Page(html.parser.HTMLParser):
    """Notes what is in a page, and fails where tags do not close in their order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        self.text += data


def report(daemon, job):
    """The report of a job, after asserting what is so of each."""
    found = daemon.json("report", job["id"])
    assert set(found) == REPORT and found["job"]["id"] == job["id"] and found["job"]["state"] == job["state"]
    assert all(set(sample) == SAMPLE for sample in found["samples"])
    times = [sample["t_ms"] for sample in found["samples"]]
    assert times == sorted(times) and len(times) <= 1000
    end = 0
    for phase in found["phases"]:
        assert set(phase) == {"name", "begin_ms", "end_ms"} and end <= phase["begin_ms"] <= phase["end_ms"], found["phases"]
        end = phase["end_ms"]
    took = job["ended_ms"] - job["started_ms"]
    assert abs(end - took) < 200 + took * 0.05, (end, took)
    return found


def check_pause(found, *parts):
    """The parts of a pause add up to what the job's result says; the named ones are among them."""
    pause = found["pause"]
    assert pause["total_ms"] == pytest.approx(found["job"]["result"]["pause_ms"], abs=0.001)
    assert sum(part["ms"] for part in pause["parts"]) == pytest.approx(pause["total_ms"], abs=0.01), pause
    assert all(part["ms"] > 0 for part in pause["parts"])
    names = [part["name"] for part in pause["parts"]]
    assert len(set(names)) == len(names) and set(parts) <= set(names), names
    transfer = next(phase for phase in found["phases"] if phase["name"] in ("transfer", "postcopy", "memory"))
    assert transfer["begin_ms"] <= pause["begin_ms"], found


def page(daemon, job):
    path = daemon.dir / "page.html"
    assert daemon.run("report", job["id"], "--html", path).stdout == ""
    text = path.read_text()
    assert daemon.run("report", job["id"], "--html", "-").stdout == text
    assert not re.search(r"https?://|//[a-z]", text.replace("<!DOCTYPE", "")), "it is to be all in one file"
    assert "prefers-color-scheme:dark" in text and "<script" not in text
    parsed = Page(text)
    assert not any(name in ("src", "href") for name, _ in parsed.attributes)
    return parsed


def small(daemon, name="vm", **options):
    return drover.Witness(daemon, name, **{"ram": "262152k", "mem": 64, "rate": 60, **options})


def test_an_upgrade_without_and_with_a_copy_of_its_ram(daemon):
    vm = small(daemon, ram="1048584k", mem=512)  # a small one's first pass is over before QEMU answers
    job = vm.upgrade("10.0")
    found = report(daemon, job)
    assert [phase["name"] for phase in found["phases"]] == ["preflight", "start", "verify", "transfer", "commit"]
    check_pause(found, "transfer", "decide")
    job = vm.upgrade("7.2", "--memory", "copy")
    found = report(daemon, job)
    check_pause(found, "stop", "check", "transfer", "decide")
    samples = found["samples"]
    assert len(samples) > 1, samples
    assert samples[0]["pass"] == 1 and samples[0]["remaining_bytes"] > samples[-1]["remaining_bytes"]
    assert {sample["phase"] for sample in samples} == {"copying memory"}
    assert samples[-1]["bytes_done"] > 512 << 20 and all(sample["disk_bytes_total"] is None for sample in samples)
    assert any(sample["rate_mib"] > 0 for sample in samples)
    text = daemon.run("report", job["id"]).stdout
    assert re.search(rf"^job {job['id']}: upgrade of vm: succeeded after ", text) and "LEFT AT FIRST" in text, text
    for name in ("preflight", "commit", "copying memory", "transfer", "check"):
        assert re.search(rf"^{name} ", text, re.M), text
    seen = page(daemon, job)
    assert seen.tags.count("svg") >= 3 and "polyline" in seen.tags and "copying memory" in seen.text, seen.tags
    assert "The pause of" in seen.text and "Memory that is left" in seen.text
    # A droverd that comes later has it all from the state file.
    before = daemon.json("report", job["id"])
    daemon.kill(signal.SIGTERM)
    daemon.start()
    assert daemon.json("report", job["id"]) == before
    vm.close()


def test_a_move_and_what_came_of_it_on_the_other_host():
    with Pair() as both:
        vm = small(both.a, rate=10)
        job = both.migrate(vm, "--no-postcopy", "--downtime", "2000")
        found = report(both.a, job)
        check_pause(found, "transfer", "decide", "message")
        assert found["pause"]["expected_ms"] is not None and found["samples"][-1]["pass"] >= 1
        known = [sample for sample in found["samples"] if sample["expected_pause_ms"] is not None]
        assert known and found["samples"][-1]["expected_pause_ms"] is None and known[-1]["expected_pause_ms"] == found["pause"]["expected_ms"]
        arrival = next(one for one in both.b.json("jobs") if one["kind"] == "incoming")
        other = report(both.b, both.b.ended_job(arrival["id"]))
        assert other["pause"] is None and other["phases"][0]["name"] == "preflight"
        assert "expected" in page(both.a, job).text
        job = both.migrate(vm, "--postcopy-after-precopy")
        found = report(both.b, job)
        check_pause(found)
        assert "post-copy" in {sample["phase"] for sample in found["samples"]} or found["job"]["result"]["bytes_moved"] < 1 << 20
        kinds = {kind["kind"]: kind for kind in both.a.json("stats")["kinds"]}
        assert kinds["migrate"]["succeeded"] == 1 and kinds["incoming"]["jobs"] == 1
        assert kinds["migrate"]["pause_ms"]["p50"] > 0 and kinds["incoming"]["pause_ms"] is None
        vm.close()


def test_a_move_with_its_disks(pair, start):
    vm, disks = start()
    found = report(pair.a, move(pair, vm, disks))
    check_pause(found, "disks")
    before = [sample for sample in found["samples"] if sample["phase"] == "copying disks"]
    after = [sample for sample in found["samples"] if sample["phase"] == "copying memory"]
    assert before and before[-1]["remaining_bytes"] is None and before[-1]["disk_bytes_done"] > 0
    assert all(sample["remaining_bytes"] is not None and sample["disk_bytes_done"] for sample in after)
    told = [disk["disk"] for disk in found["job"]["progress"]["disks"]]
    assert len(told) == len(set(told)) == len(disks.names), told


def test_a_snapshot_with_memory_and_the_way_back(daemon):
    new_image(daemon.dir / "d.qcow2", "qcow2", 16)
    vm = small(daemon, mem=16, rate=10, ram="131080k", extra=[
        "-drive", f"if=none,id=d,format=qcow2,file={daemon.dir}/d.qcow2", "-device", "virtio-blk-pci,drive=d"])
    taken = daemon.json("snapshot", "create", "vm", "--name", "s1", "--memory")
    pause = report(daemon, taken)["pause"]
    assert pause["total_ms"] == pytest.approx(taken["result"]["memory"]["pause_ms"], abs=0.001)
    assert sum(part["ms"] for part in pause["parts"]) == pytest.approx(pause["total_ms"], abs=0.01), pause
    reverted = daemon.json("snapshot", "revert", "vm", "s1")
    check_pause(report(daemon, reverted), "load", "resume")
    vm.close()


def test_one_that_failed_and_one_on_a_disk(daemon):
    with open(daemon.dir / "disk", "wb") as image:
        image.write(os.urandom(24 << 20))
    vm = small(daemon, rate=4, mem=4, extra=["-drive", f"if=none,id=d,format=raw,file={daemon.dir}/disk,cache=none",
                                           "-device", "virtio-blk-pci,drive=d"])
    daemon.restart({"DROVER_HOLD_AT": "transfer"})
    daemon.fail_upgrade("vm", guest.qemu("10.0"))
    failed = daemon.json("jobs")[0]
    found = report(daemon, failed)
    assert found["pause"] is None and found["phases"][-1]["name"] == "transfer"
    assert "class=\"error\"" in daemon.run("report", failed["id"], "--html", "-").stdout
    assert "fail" in daemon.run("report", failed["id"]).stdout
    disk = daemon.json("disk", "list", "vm")[0]["name"]
    job = daemon.json("disk", "copy", "vm", disk, daemon.dir / "copy", "--finish", "--bandwidth", "8", "--buf-size", "65536")
    found = report(daemon, job)
    assert found["pause"] is None and len(found["samples"]) >= 3
    done = [sample["disk_bytes_done"] for sample in found["samples"]]
    assert done[-1] >= 24 << 20 and done == sorted(done) and done[0] < done[-1]
    assert all(sample["remaining_bytes"] is None for sample in found["samples"])
    assert "Disks" in page(daemon, job).text
    stats = {kind["kind"]: kind for kind in daemon.json("stats")["kinds"]}
    assert stats["upgrade"]["failed"] == 1 and stats["upgrade"]["pause_ms"] is None and stats["upgrade"]["total_ms"] is None
    assert stats["disk-copy"]["succeeded"] == 1 and stats["disk-copy"]["total_ms"]["p99"] == stats["disk-copy"]["total_ms"]["max"]
    assert [kind["kind"] for kind in daemon.json("stats", "--kind", "disk-copy")["kinds"]] == ["disk-copy"]
    assert re.search(r"^disk-copy +1 +1 +0 ", daemon.run("stats").stdout, re.M)
    vm.close()


def test_a_job_that_a_later_droverd_ends(daemon):
    """Its stages are those of both; when they were, the journal knows."""
    daemon.restart({"DROVER_HOLD_AT": "transfer"})
    vm = small(daemon, mem=4, rate=4)
    upgrade = daemon.spawn("upgrade", "vm", "--qemu", guest.qemu("10.0"))
    wait_until((daemon.run_dir / "hold").exists, 60, "the upgrade to come to its transfer")
    live = daemon.json("report", daemon.json("jobs")[0]["id"])
    assert live["job"]["state"] == "running" and live["phases"][-1]["name"] == "transfer"
    daemon.restart()
    upgrade.kill()
    upgrade.communicate()
    job = daemon.ended_job(daemon.json("jobs")[0]["id"])
    found = report(daemon, job)
    assert [phase["name"] for phase in found["phases"]][:4] == ["preflight", "start", "verify", "transfer"]
    assert found["pause"] is None
    vm.close()


def test_what_cannot_be_reported(daemon):
    assert daemon.refused("report", "77")["code"] == "not-found"
    assert daemon.refused("report", "x")["code"] == "not-found"
    assert daemon.refused("report", code=2)["code"] == "invalid"
    error = daemon.refused("stats", "--kind", "upgrades", code=2)
    assert error["code"] == "invalid" and "disk-copy" in error["remedy"]
    assert json.loads(daemon.run("stats", "--json").stdout) == {"kinds": []}
    assert "no jobs" in daemon.run("stats").stderr
    vm = small(daemon, mem=4, rate=4)
    job = daemon.run("upgrade", "vm", "--qemu", "/bin/true", "--json", check=False)
    number = json.loads(job.stdout)["id"]
    assert daemon.refused("report", number, "--html", "x.html", code=2)["code"] == "invalid", "with --json"
    result = daemon.run("report", number, "--html", "/nowhere/x.html", check=False)
    assert result.returncode == 1 and "/nowhere/x.html" in result.stderr, result.stderr
    assert report(daemon, json.loads(job.stdout))["samples"] == []
    assert "nothing to plot" in page(daemon, {"id": number}).text
    vm.close()
