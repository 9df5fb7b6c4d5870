#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A drover-libvirt that needs no libvirt (DROVER_LIBVIRT): does what the names of its domains say, and writes what the real one does.

A domain `bad` is refused. `nobody` is not there. `wait` waits until RUN_DIR/go is there. `die` ends the run in its middle, without a word, and
a recovery brings it to its end once RUN_DIR/well is there.
"""

import fcntl
import json
import os
import sys
import time
from pathlib import Path


def finding(code, severity="blocker"):
    return {"severity": severity, "code": code, "text": "a text", "remedy": "a remedy"}


def report(name):
    return {"name": name, "uuid": f"uuid-{name}", "pid": 4711, "ok": name != "bad", "findings": [finding("state")] if name == "bad" else [],
            "emulator_before": "/usr/bin/qemu-system-x86_64", "emulator": "/opt/qemu", "qemu_before": "7.2.22", "qemu_after": "10.0.2",
            "memory_mode": "shared", "start_time": 1, "monitor": "/secret", "log_file": "/log"}


class Failed(Exception):
    pass


class Fake:
    def __init__(self, directory, run_dir):
        self.dir, self.run_dir = Path(directory), Path(run_dir)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.dir / "lock", "a", encoding="utf-8")
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.run = None

    def save(self, state):
        self.run["state"] = state
        (self.dir / "run.new").write_text(json.dumps(self.run))
        os.replace(self.dir / "run.new", self.dir / "run.json")

    def fail(self, code, message):
        self.run["error"] = {"code": code, "message": message, "remedy": None}
        self.save("done")
        raise Failed(json.dumps({"error": self.run["error"]}))

    def finish(self):
        self.run.update(ended_ms=self.run["started_ms"] + 1300, away_ms=700.5, total_ms=1300.5)
        self.save("done")

    def upgrade(self, spec):
        self.run = {"boot_id": "b", "uri": spec.get("uri", "qemu:///system"), "qemu": spec.get("emulator"), "memory": spec.get("memory", "auto"),
                    "parallel": spec.get("parallel", 4), "started_ms": spec["started_ms"], "domains": []}
        names = spec.get("domains", ["one", "two"])
        self.save("checking")
        if "nobody" in names:
            self.fail("not-found", "libvirt has no running domain 'nobody'")
        self.run["domains"] = [{**report(name), "vm": name, "pid_before": 4711, "state": "refused" if name == "bad" else "waiting"} for name in names]
        self.run.update(daemon={"environment": ["SECRET=1"]}, daemon_name="libvirtd.service")
        self.save("stopping")
        if "die" in names:
            os.kill(os.getpid(), 9)
        end = time.monotonic() + 60  # of one that a test has left
        while "wait" in names and not (self.run_dir / "go").exists() and time.monotonic() < end:
            time.sleep(0.01)
        self.save("moving")
        for domain in self.run["domains"]:
            if domain["state"] == "waiting":
                result = {"memory_mode": "shared", "memory_reason": "RAM is in a shared file", "pause_ms": 17, "total_ms": 400.5, "bytes_moved": 200000,
                          "extra_memory_bytes": 0, "qemu_before": "7.2.22", "qemu_after": "10.0.2", "pid_before": 4711, "pid_after": 4712}
                domain.update(state="done", pid=4712, view_is_true=True, view=[], job={"result": result, "findings": [finding("ram", "note")]})
        self.finish()

    def recover(self):
        self.run = json.loads((self.dir / "run.json").read_text())
        if self.run["state"] == "done":
            return
        if not (self.run_dir / "well").exists():
            raise Failed('{"error": {"code": "io", "message": "no space left", "remedy": null}}')
        self.run["interrupted"] = True
        for domain in self.run["domains"]:
            domain["state"] = "stayed"
        self.finish()


def main():
    command, directory, run_dir, _ = sys.argv[1:]
    spec = json.loads(sys.stdin.read() or "{}")
    if command == "check":
        names = spec.get("domains", ["one", "two"])
        if "nobody" in names:
            raise Failed('{"error": {"code": "not-found", "message": "libvirt has no running domain", "remedy": "virsh list"}}')
        print(json.dumps({"uri": spec.get("uri", "qemu:///system"), "domains": [report(name) for name in names]}))
    elif command == "upgrade":
        Fake(directory, run_dir).upgrade(spec)
    else:
        Fake(directory, run_dir).recover()


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        print(failed)
        sys.exit(1)
