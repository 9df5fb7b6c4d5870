# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest under drover and its twin under bare QMP, each moved between the two hosts of a Pair: of bench/migrate and bench/disk."""

import contextlib
import os
import statistics
import time

from lib import bare, guest
from lib.pair import ADDRESSES
from lib.procs import cpu_seconds

MACHINES = {"q35": "pc-q35-7.2", "microvm": "microvm"}
OTHERS = ("postcopy-ram", "events", "multifd", "pause-before-switchover")


def say(*words):
    print(*words, flush=True)


def spread(values, width=8):
    values = [value for value in values if value is not None]
    return f"{statistics.median(values):{width}.2f} [{min(values):.2f}-{max(values):.2f}]" if values else f"{'-':>{width}}"


# --- The floor ---

def capabilities(qmp, *on):
    known = {item["capability"]: item["state"] for item in qmp.command("query-migrate-capabilities")}
    qmp.command("migrate-set-capabilities", {"capabilities": [{"capability": name, "state": name in ("events", *on)}
                                                              for name in known if name in OTHERS]})


def tls_client(qmp, keys, name):
    """Makes the object `name` of the keys in a directory, anew."""
    with contextlib.suppress(Exception):
        qmp.command("object-del", {"id": name})
    qmp.command("object-add", {"qom-type": "tls-creds-x509", "id": name, "endpoint": "client", "dir": str(keys), "verify-peer": True})


class Floor:
    """A guest that is moved between the two namespaces by the bare sequence: nothing is checked, and no crash survived."""

    def __init__(self, pair, spec, run_dir, version="7.2"):
        self.pair, self.spec, self.run_dir, self.at, self.port = pair, spec, run_dir, "a", 4440
        self.qemu = guest.qemu(version)
        self.vm = bare.Vm(spec, self.qemu, run_dir, netns=str(pair.netns["a"]))
        self.console.wait_ready()

    @property
    def console(self):
        return self.vm.console

    @property
    def there(self):
        return "b" if self.at == "a" else "a"

    def _start_there(self, tls):
        extra = list(self.spec.extra)
        self.spec.ram_fd = None  # new RAM, as it is on another host
        if tls:
            self.spec.extra = [*extra, "-object", f"tls-creds-x509,id=tls,endpoint=server,dir={self.pair.keys / self.there},verify-peer=yes"]
        new = bare.Vm(self.spec, self.qemu, self.run_dir, incoming=True, netns=str(self.pair.netns[self.there]))
        self.spec.extra = extra
        return new

    def _set_up(self, new, on, tls, streams):
        for qmp in (self.vm.qmp, new.qmp):
            capabilities(qmp, *on)
            parameters = {"max-bandwidth": 1 << 40, "downtime-limit": 20, "tls-creds": ""}
            if streams:
                parameters["multifd-channels"] = streams
            if tls and qmp is new.qmp:
                parameters["tls-creds"] = "tls"
            qmp.command("migrate-set-parameters", parameters)
        if tls:
            tls_client(self.vm.qmp, self.pair.keys / self.at, "tlsc")
            self.vm.qmp.command("migrate-set-parameters", {"tls-creds": "tlsc", "tls-hostname": ADDRESSES[self.there]})

    def move(self, how, tls=False, streams=0, storage=None, passes=1):
        """how: copy, postcopy. storage: takes the disk along, see storage.Mirror. passes: over the guest's memory that are waited for."""
        self.port += 1
        old_ram = self.spec.ram_fd
        if storage:
            self.spec.disks = storage.disks_there
        begun = time.monotonic()
        new = self._start_there(tls)
        startup = time.monotonic() - begun
        on = [*(["postcopy-ram"] if how == "postcopy" else ["multifd"] if streams else []), *(["pause-before-switchover"] if storage else [])]
        self._set_up(new, on, tls, streams)
        if storage:
            storage.begin(self.vm.qmp, new.qmp, ADDRESSES[self.there], tls)
        uri = f"tcp:{ADDRESSES[self.there]}:{self.port}"
        since = len(self.vm.qmp.drain())
        new.qmp.command("migrate-incoming", {"uri": uri})
        cpu = [cpu_seconds(self.vm.process.pid), cpu_seconds(new.process.pid)]
        begun = time.monotonic()
        self.vm.qmp.command("migrate", {"uri": uri})
        if how == "postcopy":
            self.vm.qmp.wait_event("MIGRATION_PASS", 60, lambda data: data["pass"] >= 2, since)  # the first one is over
            self.vm.qmp.command("migrate-start-postcopy")
        if storage:
            self.vm.qmp.wait_migration("pre-switchover", timeout=120, since=since)
            storage.end(self.vm.qmp, new.qmp)
            self.vm.qmp.command("migrate-continue", {"state": "pre-switchover"})
        stop = self.vm.qmp.wait_event("STOP", 120, since=since)
        resume = new.qmp.wait_event("RESUME", 120)
        self.vm.qmp.wait_migration("completed", timeout=120, since=since)
        new.qmp.wait_migration("completed", timeout=120)
        took = time.monotonic() - begun
        info = self.vm.qmp.command("query-migrate")
        used = cpu_seconds(self.vm.process.pid) + cpu_seconds(new.process.pid) - sum(cpu)
        moved = info["ram"]["transferred"]
        self.vm.__exit__(None, None, None)
        self.vm, self.at = new, self.there
        os.close(old_ram)
        self.console.wait_passes(passes)
        return {"mib_s": moved / 2**20 / (info["total-time"] / 1000), "pause_ms": (resume.time - stop.time) * 1000,
                "total_ms": took * 1000, "startup_ms": startup * 1000, "cpu": used / (moved / 1e9),
                "storage_ms": storage and storage.ms}

    def pause(self):
        self.vm.qmp.command("stop")

    def unpause(self):
        self.vm.qmp.command("cont")

    def close(self):
        self.vm.__exit__(None, None, None)


# --- drover ---

class Drover:
    def __init__(self, pair, spec, witness_dir, name, version="7.2"):
        self.pair, self.name, self.daemon = pair, name, pair.a
        self.console_path = witness_dir / f"{name}.serial"
        argv = spec.argv(guest.qemu(version))
        pair.a.run("run", name, "--", *argv, "-chardev", f"socket,id=serial,path={self.console_path},server=on,wait=off",
                   "-serial", "chardev:serial")
        self.console = guest.Console(self.console_path)
        self.console.wait_ready()

    def relays(self):
        """CPU seconds of both droverds."""
        return sum(cpu_seconds(one.process.pid) for one in (self.pair.a, self.pair.b))

    def move(self, *options, passes=1):
        there = self.pair.other(self.daemon)
        cpu = self.relays()
        begun = time.monotonic()
        job = self.daemon.json("migrate", self.name, self.pair.name_of(there), *options, timeout=600)
        wall = time.monotonic() - begun
        used = self.relays() - cpu
        result = job["result"]
        self.daemon = there
        there.show(self.name)
        self.console.follow(self.console_path)
        self.console.wait_passes(passes)
        return {"mib_s": None, "pause_ms": result["pause_ms"], "total_ms": result["total_ms"], "wall_ms": wall * 1000,
                "bytes": result["bytes_moved"], "cpu": used / (result["bytes_moved"] / 1e9), "postcopy": result["postcopy"],
                "transfer_ms": result.get("transfer_ms"), "storage_ms": result.get("storage_ms")}

    def pause(self):
        self.daemon.run("pause", self.name)

    def unpause(self):
        self.daemon.run("resume", self.name)

    def close(self):
        self.console.close()
        self.daemon.run("stop", self.name, "--force", check=False)
        self.daemon.run("forget", self.name, check=False)
