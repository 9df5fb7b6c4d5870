# SPDX-License-Identifier: LGPL-2.1-or-later
"""drover run --stream: guests that start on disks which live elsewhere, and whatever happens until these are here."""

import contextlib
import json
import os
import signal
import sqlite3
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from lib import drover, guest
from lib.disks import as_raw
from lib.guest import DiskImage
from lib.procs import Process, Unavailable, kill_pid, run, wait_until
from lib.sources import HttpSource, NbdSource

MIB = 1 << 20
USED = 16  # MiB that the guest reads at its start and writes to; behind them is what was there before
PATIENT = 90  # s; for what takes a second on an idle machine


# --- Images and VMs ---


def filled(path, mib=20, used=USED):
    """A raw image of which the guest has written a part before, all of which it reads and checks when it starts."""
    blocks = used * MIB // 4096
    with path.open("wb") as image:
        for block in range(blocks):
            page = struct.pack("<8sQQQI", DiskImage.MAGIC, block or blocks, block, 1, 0) + os.urandom(4060)
            image.write(page[:32] + struct.pack("<I", zlib.crc32(page)) + page[36:])
        image.write(os.urandom((mib - used) * MIB))
    return path


def info(path):
    return json.loads(run("qemu-img", "info", "-U", "--output=json", path).stdout)


def content(path):
    return as_raw(path, "qcow2").read_bytes()


def read_twice(reads, size):
    """The bytes of a source that were read more than once; its first sector is, to know the size's alignment at each opening."""
    times = bytearray(size // 512)
    for offset, count in reads:
        if count > 512:
            for sector in range(offset // 512, min((offset + count) // 512, len(times))):
                times[sector] += 1
    return sum(512 for count in times if count > 1)


def drive(name, path, *more):
    """As d0 of drive h0."""
    return ["-drive", ",".join([f"if=none,id=h{name[1:]},format=qcow2,file={path}", *more]),
            "-device", f"virtio-blk-pci,drive=h{name[1:]},id={name}"]


class Vm(drover.Witness):
    def __init__(self, daemon, name, paths, streams, extra, bandwidth=1, version="7.2", used=USED):
        self.paths = paths
        options = [word for one in streams for word in ("--stream", one)] + ["--bandwidth", bandwidth]
        super().__init__(daemon, name, version=version, ram="131080k", mem=2, rate=4, extra=extra, options=options,
                         witness={"disk": ",".join(paths), "diskrate": 30, "diskmib": used})

    def job(self):
        return next(job for job in self.daemon.json("jobs") if job["vm"] == self.name and job["kind"] == "disk-stream")

    def go_on(self, more=5):
        """Each of its disks takes more writes, and none has had an error."""
        def acked():
            return [self.console.check().disk(path)["acked"] for path in self.paths]

        before = acked()
        wait_until(lambda: all(now >= then + more for now, then in zip(acked(), before)), PATIENT, "the guest to go on writing",
                   interval=0.05)
        status = self.console.check()
        assert all(status.disk(path)["errors"] == 0 and status.disk(path)["bad"] == 0 for path in self.paths)

    def end(self):
        """Kills it; the last writes that it was told of."""
        status = self.console.check()
        acked = [status.disk(path)["acked"] for path in self.paths]
        self.close()
        self.daemon.run("stop", self.name, "--force")
        return acked


def assert_whole(image, tail, acked, used=USED):
    """It stands on nothing, is sound, has what the guest wrote last, and behind that what the source had."""
    assert "backing-filename" not in info(image)
    run("qemu-img", "check", "-f", "qcow2", image)
    raw = as_raw(image, "qcow2")
    assert DiskImage(raw, used).problems(acked) == []
    assert raw.read_bytes()[used * MIB:] == tail


def bare(daemon, name, *words, streams=(), **options):
    """A VM without a guest, there at once."""
    given = [word for one in streams for word in ("--stream", one)]
    return daemon.run("run", name, *given, *options.pop("more", ()), "--", *guest.without_guest(*words), **options)


def drop(daemon, name):
    daemon.run("stop", name, "--force", check=False)
    wait_until(lambda: daemon.show(name)["job"] is None, PATIENT, "the job to see that its VM has ended")
    daemon.run("forget", name, "--force")


def wait_for(daemon, job, condition, what):
    def there():
        shown = daemon.json("job", job)
        return shown if condition(shown) else None

    return wait_until(there, PATIENT, what)


def has_progress(job):
    return (job["progress"] or {}).get("bytes_done", 0) > 0


@pytest.fixture(scope="module")
def shared():
    with drover.Daemon() as started:
        yield started


# --- The whole of it ---


def test_a_guest_runs_at_once_on_disks_that_live_elsewhere(daemon):
    """Three disks, by NBD over TCP, NBD over a unix socket and a path, by -drive and -blockdev; each byte is fetched once, also those that
    the guest reads before the pull comes there."""
    sources = {name: filled(daemon.dir / name) for name in ("tcp", "unix", "path")}
    tails = {name: path.read_bytes()[USED * MIB:] for name, path in sources.items()}
    local = {name: daemon.dir / f"{name}.local" for name in sources}
    chain = daemon.dir / "chain"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", sources["path"], "-F", "raw", chain)
    served = daemon.dir / "served"
    run("qemu-img", "convert", "-O", "qcow2", sources["unix"], served)
    with NbdSource(sources["tcp"], tcp=True) as tcp, NbdSource(served) as unix:
        extra = [*drive("d0", local["tcp"]), "-blockdev", f"driver=file,node-name=f1,filename={local['unix']}", "-blockdev",
                 "driver=qcow2,node-name=n1,file=f1", "-device", "virtio-blk-pci,drive=n1,id=d1", *drive("d2", local["path"])]
        vm = Vm(daemon, "vm", ["/dev/vda", "/dev/vdb", "/dev/vdc"],
                [f"d0={tcp.url}", f"n1={unix.url},format=qcow2", f"{local['path']}={chain},format=qcow2"], extra)
        vm.go_on()
        job = vm.job()
        assert job["stage"] == "pull" and job["state"] == "running", job
        assert daemon.state("vm") == "running" and daemon.refused("upgrade", "vm")["code"] == "busy"
        assert {disk["name"]: len(disk["chain"]) for disk in daemon.json("disk", "list", "vm")} == {"d0": 2, "d1": 2, "d2": 3}
        assert tcp.clients() == 1 and unix.clients() == 1
        assert 65536 in [count for _, count in tcp.reads()], "the guest read nothing before the pull, which takes more at a time, came there"
        daemon.run("disk", "bandwidth", "vm", 0)
        job = daemon.ended_job(job["id"])
        assert job["state"] == "succeeded" and not job["findings"], job
        assert job["result"]["disks"] == ["d0", "n1", str(local["path"])] and job["result"]["bytes_moved"] > 0
        wait_until(lambda: tcp.clients() == 0 and unix.clients() == 0, PATIENT, "QEMU to leave the servers")
        assert read_twice(tcp.reads(), 20 * MIB) == 0
        vm.go_on()
    vm.upgrade("10.0")  # nothing leads to the servers any more
    vm.go_on()
    for name, acked in zip(sources, vm.end()):
        assert_whole(local[name], tails[name], acked)


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_server_that_goes_and_comes_back_costs_the_guest_nothing_but_time(daemon, version):
    """The guest's reads wait, also while no droverd is there, and what they bring is right (QEMU makes up data where its NBD client gives up)."""
    source, local = filled(daemon.dir / "source", 24, used=20), daemon.dir / "local"
    tail = source.read_bytes()[20 * MIB:]
    with NbdSource(source, tcp=True) as server:
        vm = Vm(daemon, "vm", ["/dev/vda"], [f"d0={server.url}"], drive("d0", local), version=version, used=20)
        number = vm.job()["id"]
        server.stop()  # while the guest reads what it wrote before
        told = wait_for(daemon, number, lambda job: job["findings"], "drover to tell that nothing comes")
        assert [finding["code"] for finding in told["findings"]] == ["stream-stalls"] and told["state"] == "running"
        daemon.kill()
        daemon.start()
        done = wait_for(daemon, number, lambda job: job["stage"] == "pull", "the next droverd")["progress"]["bytes_done"]
        assert vm.console.check(bootid=vm.bootid).disk("/dev/vda")["acked"] == 0
        server.start()
        wait_for(daemon, number, lambda job: job["progress"]["bytes_done"] > done, "the pull to go on")
        server.stop()
        server.start()
        vm.go_on()
        daemon.run("disk", "bandwidth", "vm", 0)
        job = daemon.ended_job(number)
        assert job["state"] == "succeeded", job
    vm.go_on()
    acked, = vm.end()
    assert_whole(local, tail, acked, used=20)


def needs_curl(version, url):
    """Unavailable where this QEMU cannot read by HTTP."""
    for argv in (["qemu-img", "info", url], [guest.qemu(version), "-machine", "none", "-display", "none", "-blockdev",
                                            f"driver=http,node-name=n,url={url}", "-device", "nothing"]):
        if "nknown driver" in run(*argv, check=False).stderr or "nknown protocol" in run(*argv, check=False).stderr:
            raise Unavailable(f"{argv[0]} has no curl block driver (qemu-block-extra)")


def stands_still(job):
    return "stream-waits" in [finding["code"] for finding in job["findings"] or []]


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_disk_comes_from_a_web_server_that_has_its_bad_moments(daemon, version):
    """Then the guest stands still, also while no droverd is there, and goes on by itself."""
    source, local = filled(daemon.dir / "source", 24, used=20), daemon.dir / "local"
    tail = source.read_bytes()[20 * MIB:]
    with HttpSource(daemon.dir) as server:
        needs_curl(version, server.url("source"))
        vm = Vm(daemon, "vm", ["/dev/vda"], [f"d0={server.url('source')},format=raw,sslverify=on"], drive("d0", local), version=version,
                used=20)
        number = vm.job()["id"]
        server.broken = True  # while the guest reads what it wrote before
        told = wait_for(daemon, number, stands_still, "the guest to stand still")
        assert told["state"] == "running"
        daemon.kill()
        daemon.start()
        wait_for(daemon, number, stands_still, "the next droverd to see that it stands still")
        server.broken = False
        wait_until(lambda: daemon.qmp("vm", "query-status")["running"], PATIENT, "the guest to go on")
        vm.go_on()
        daemon.run("disk", "bandwidth", "vm", 0)
        job = daemon.ended_job(number)
        assert job["state"] == "succeeded", job
    vm.go_on()
    acked, = vm.end()
    assert_whole(local, tail, acked, used=20)


# --- Beginning again ---


def test_a_vm_that_ended_before_all_was_here_goes_on_where_it_was(shared):
    source, local = filled(shared.dir / "again", used=0), shared.dir / "again.local"
    whole = source.read_bytes()
    with NbdSource(source) as server:
        words = drive("d0", local)
        bare(shared, "again", *words, streams=[f"d0={server.url}"], more=("--bandwidth", 1))
        number = shared.json("jobs")[0]["id"]
        wait_for(shared, number, has_progress, "some progress")
        kill_pid(shared.show("again")["pid"], sig=signal.SIGTERM)
        job = shared.ended_job(number)
        assert job["state"] == "failed" and "--stream" in job["error"]["remedy"], job
        assert "json:" in info(local)["backing-filename"]
        shared.run("forget", "again", "--force")
        before = len(server.reads())

        # By hand, in other words for the same source: they are set right, and what is here stays.
        run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", server.url, "-F", "raw", local)
        bare(shared, "again", *words, streams=[f"h0={server.url}"])
        job = shared.ended_job(shared.json("jobs")[0]["id"])
        assert job["state"] == "succeeded", job
        fetched = sum(count for _, count in server.reads()[before:])
        assert fetched < len(whole), "what was here was fetched again"
        drop(shared, "again")
        assert "backing-filename" not in info(local) and content(local) == whole

        # All of it is here: there is nothing to stream, and nothing is written over.
        error = refused(shared, *words, streams=[f"d0={server.url}"])
        assert error["code"] == "exists" and "stands on no other" in error["message"] and content(local) == whole


def test_an_abort_leaves_the_guest_on_its_source(shared):
    source, local = filled(shared.dir / "abort", used=0), shared.dir / "abort.local"
    whole = source.read_bytes()
    with NbdSource(source) as server:
        bare(shared, "abort", *drive("d0", local), streams=[f"d0={server.url}"], more=("--bandwidth", 1))
        number = shared.json("jobs")[0]["id"]
        wait_for(shared, number, has_progress, "some progress")
        shared.run("disk", "abort", "abort")
        job = shared.ended_job(number)
        assert job["state"] == "cancelled" and "disk pull" in job["error"]["remedy"], job
        assert shared.state("abort") == "running" and shared.qmp("abort", "query-jobs") == [] and server.clients() == 1
        shared.upgrade("abort", guest.qemu("10.0"))  # on the same source
        wait_until(lambda: server.clients() == 1, PATIENT, "the new QEMU alone to be at the server")
        shared.run("disk", "pull", "abort", "d0")
        wait_until(lambda: server.clients() == 0, PATIENT, "QEMU to leave the server")
        drop(shared, "abort")
    assert "backing-filename" not in info(local) and content(local) == whole


@pytest.mark.parametrize("stage", ["preflight", "begin", "pull", "close", "before the job"])
def test_a_droverd_that_is_killed_costs_nothing(shared, stage):
    """The guest runs at last, also where it had not begun, and its disks are pulled."""
    name = f"kill-{stage.replace(' ', '-')}"
    source, local = filled(shared.dir / name, 4, used=0), shared.dir / f"{name}.local"
    second, other = filled(shared.dir / f"{name}2", 4, used=0), shared.dir / f"{name}2.local"
    with NbdSource(source) as server, NbdSource(second, tcp=True) as tcp:
        shared.restart(env={"DROVER_HOLD_AT": stage if stage != "before the job" else "preflight"})
        asking = subprocess.Popen(shared.argv("run", name, "--stream", f"d0={server.url}", "--stream", f"d1={tcp.url}", "--",
                                              *guest.without_guest(*drive("d0", local), *drive("d1", other))),
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until((shared.run_dir / "hold").exists, PATIENT, f"the job to come to {stage}")
        shared.kill()
        asking.communicate(timeout=30)
        (shared.run_dir / "hold").unlink()
        if stage == "before the job":
            without_job(shared, name)
        shared.start()
        shown = wait_until(lambda: (now := [job for job in shared.json("jobs") if job["vm"] == name]) and now[0], PATIENT, "the job")
        job = shared.ended_job(shown["id"])
        assert job["state"] == "succeeded" and job["kind"] == "disk-stream", job
        assert shared.state(name) == "running" and shared.qmp(name, "query-jobs") == []
        wait_until(lambda: server.clients() == 0 and tcp.clients() == 0, PATIENT, "QEMU to leave the servers")
        drop(shared, name)
    assert content(local) == source.read_bytes() and content(other) == second.read_bytes()


def without_job(daemon, vm):
    """As if droverd had been killed when the VM was started and its job not made."""
    with contextlib.closing(sqlite3.connect(daemon.state_dir / "drover.db")) as db, db:
        job, record = db.execute("SELECT id, record FROM jobs WHERE vm = ? ORDER BY id DESC", (vm,)).fetchone()
        made, = db.execute("SELECT record FROM vms WHERE name = ?", (vm,)).fetchone()
        made = json.loads(made) | {"stream": json.dumps(json.loads(record)["request"])}
        db.execute("UPDATE vms SET record = ? WHERE name = ?", (json.dumps(made), vm))
        db.execute("DELETE FROM jobs WHERE id = ?", (job,))
        db.execute("DELETE FROM journal WHERE job = ?", (job,))


def test_a_guest_that_was_not_to_begin_does_not(shared):
    """-S of the user's own."""
    source, local = filled(shared.dir / "still", 4, used=0), shared.dir / "still.local"
    bare(shared, "still", "-S", *drive("d0", local), streams=[f"d0={source}"])
    assert shared.ended_job(shared.json("jobs")[0]["id"])["state"] == "succeeded"
    assert shared.qmp("still", "query-status")["status"] == "prelaunch"
    drop(shared, "still")
    assert content(local) == source.read_bytes()


# --- Disks that were put elsewhere meanwhile ---


def encrypted(path, form):
    """An empty image with the secret of below; qemu-img measures its key's strength, which a busy machine spoils."""
    options = {"luks": "key-secret=key,iter-time=10", "qcow2": "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"}[form]
    wait_until(lambda: run("qemu-img", "create", "-q", "-f", form, "--object", "secret,id=key,data=geheim", "-o", options, path,
                           f"{USED + 4}M", check=False).returncode == 0, PATIENT, "an encrypted image")


def mirror_to(daemon, vm, disk, *nodes):
    """By QMP: the disk is put onto the last of these nodes."""
    for node in nodes:
        daemon.qmp(vm, "blockdev-add", node)
    source = next(one["node"] for one in daemon.json("disk", "list", vm) if one["name"] == disk)
    daemon.qmp(vm, "blockdev-mirror", {"job-id": "mirror", "device": source, "target": nodes[-1]["node-name"], "sync": "full"})
    wait_until(lambda: daemon.qmp(vm, "query-block-jobs")[0]["ready"], PATIENT, "the mirror to be in step")
    daemon.qmp(vm, "block-job-complete", {"device": "mirror"})
    wait_until(lambda: not daemon.qmp(vm, "query-block-jobs"), PATIENT, "the disk to be on its copy")


def test_a_guest_whose_disks_were_put_onto_luks_and_nbd_is_upgraded(daemon):
    """Images that are encrypted as a whole or inside of qcow2, and an export, by -drive and -blockdev."""
    images = {name: filled(daemon.dir / name) for name in ("luks", "qcow2", "nbd")}
    tails = {name: path.read_bytes()[USED * MIB:] for name, path in images.items()}
    new = {name: daemon.dir / f"{name}.new" for name in images}
    encrypted(new["luks"], "luks")
    encrypted(new["qcow2"], "qcow2")
    extra = ["-object", "secret,id=key,data=geheim", "-drive", f"if=none,id=h0,format=raw,file={images['luks']}", "-device",
             "virtio-blk-pci,drive=h0,id=d0", "-blockdev", f"driver=raw,node-name=n1,file.driver=file,file.filename={images['qcow2']}",
             "-device", "virtio-blk-pci,drive=n1,id=d1", "-drive", f"if=none,id=h2,format=raw,file={images['nbd']}", "-device",
             "virtio-blk-pci,drive=h2,id=d2"]
    vm = drover.Witness(daemon, "vm", ram="131080k", mem=2, rate=4, extra=extra,
                        witness={"disk": "/dev/vda,/dev/vdb,/dev/vdc", "diskrate": 30, "diskmib": USED})
    vm.paths = ["/dev/vda", "/dev/vdb", "/dev/vdc"]
    mirror_to(daemon, "vm", "d0", {"driver": "file", "filename": str(new["luks"]), "node-name": "lf"},
              {"driver": "luks", "file": "lf", "node-name": "ln", "key-secret": "key"})
    mirror_to(daemon, "vm", "d1", {"driver": "file", "filename": str(new["qcow2"]), "node-name": "qf"},
              {"driver": "qcow2", "file": "qf", "node-name": "qn", "encrypt": {"format": "luks", "key-secret": "key"}})
    run("qemu-img", "create", "-q", "-f", "raw", new["nbd"], f"{USED + 4}M")
    sock = daemon.dir / "nbd.sock"
    with Process(["qemu-nbd", "-f", "raw", "-t", "-x", "disk", "-e", "2", "-k", sock, new["nbd"]], daemon.dir / "qemu-nbd.log"):
        wait_until(sock.exists, 20, "qemu-nbd to listen")
        daemon.run("disk", "copy", "vm", "d2", f"nbd+unix:///disk?socket={sock}", "--reuse-external", "--pivot")
        for version in ("10.0", "7.2"):
            job = vm.upgrade(version)
            assert "disk-nbd" in {finding["code"] for finding in job["findings"]}
            formats = {disk["name"]: disk["format"] for disk in daemon.json("disk", "list", "vm")}
            assert formats == {"d0": "luks", "d1": "qcow2", "d2": "raw"}
            Vm.go_on(vm)
        acked = Vm.end(vm)
    for (name, path), last in zip(new.items(), acked):
        raw = daemon.dir / f"{name}.out"
        options = {"luks": "driver=luks,key-secret=key,file.filename={}", "qcow2": "driver=qcow2,encrypt.key-secret=key,file.filename={}",
                   "nbd": "driver=raw,file.filename={}"}[name]
        run("qemu-img", "convert", "--object", "secret,id=key,data=geheim", "--image-opts", options.format(path), "-O", "raw", raw)
        assert DiskImage(raw, USED).problems(last) == [] and raw.read_bytes()[USED * MIB:] == tails[name], name


# --- Bad input ---


def refused(daemon, *words, streams, code=1, more=()):
    given = [word for one in streams for word in ("--stream", one)]
    error = daemon.refused("run", "bad", *given, *more, "--", *guest.without_guest(*words), code=code)
    assert daemon.json("list") == [] or "bad" not in [vm["name"] for vm in daemon.json("list")]
    return error


@pytest.fixture(scope="module")
def props(shared):
    directory = shared.dir / "props"
    directory.mkdir()
    made = {name: directory / name for name in ("source", "large", "looks", "other", "there", "ours", "encrypted", "standing", "data")}
    filled(made["source"], 4, used=0)
    filled(made["large"], 8, used=0)
    run("qemu-img", "create", "-q", "-f", "qcow2", made["looks"], "4M")
    made["there"].write_bytes(os.urandom(4096))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", made["large"], "-F", "raw", made["other"])
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", made["source"], "-F", "raw", made["ours"], "8M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/hostname", "-F", "raw", made["standing"], "4M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={made['data']},data_file_raw=on", directory / "outside", "4M")
    with NbdSource(made["standing"]) as standing, NbdSource(directory / "outside") as outside:
        yield made | {"dir": directory, "new": directory / "new", "standing": standing.url, "outside": outside.url}


BAD = """
1 | nope={source}                                     | no disk 'nope'
1 | d0=nbd://127.0.0.1:9/x                            | Connection refused
1 | d0=nbd+unix:///x?socket={dir}/none                | No such file
1 | d0={dir}/none                                     | No such file
2 | d0={dir}                                          | is a directory
2 | d0=ftp://127.0.0.1/x                              | names no place
1 | d0=nbds://127.0.0.1/x                             | TLS
2 | d0=nbd:///x                                       | names no place
2 | d0={source},format=nonsense                       | 'nonsense' is no format
1 | d0={looks}                                        | looks like a qcow2 image
1 | d0={source},format=qcow2                          | not in qcow2 format
1 | d0={standing},format=qcow2                        | stands on another image, '/etc/hostname'
1 | d0={outside},format=qcow2                         | another image
2 | d0=                                               | --stream takes
2 | d0                                                | --stream takes
2 | ={source}                                         | --stream takes
2 | d0={source},sslverify=perhaps                     | --stream takes
2 | d0={source} --bandwidth -1                        | MiB/s
2 | d0={source} --bandwidth 1000001                   | bandwidth
2 | d0={source} --stream h0={source}                  | named twice
1 | d0={source} --stream d1={source}                  | no disk 'd1'
"""
BAD_IMAGES = """
d0={source} | file={there},format=qcow2               | is there already
d0={source} | file={other},format=qcow2               | stands on '{large}'
d0={source} | file={ours},format=qcow2                | has 8388608 bytes
d0={source} | file={looks},format=qcow2               | stands on no other
d0={source} | file={dir},format=qcow2                 | is no file
d0={source} | file={new},format=raw                   | only a qcow2 image
d0={source} | file={dir}/none/x,format=qcow2          | cannot make
d0={source} | file={new},format=qcow2,readonly=on     | nothing can be written
d0={source} | file={new},format=qcow2,snapshot=on     | nothing can be written
d0={source} | file={new},backing.driver=raw           | what its image stands on
d0={source} | file=nbd:127.0.0.1:9                    | not a file of this host
"""


def rows(table):
    return [[part.strip() for part in line.split(" | ")] for line in table.strip().splitlines()]


@pytest.mark.parametrize("code, stream, said", rows(BAD))
def test_bad_sources_are_refused_and_nothing_is_left(shared, props, code, stream, said):
    before = sorted(path.stat().st_mtime_ns for path in props["dir"].iterdir() if not path.name.endswith((".requests", ".server")))
    first, *more = stream.format(**props).split()
    error = refused(shared, *drive("d0", props["new"]), streams=[first], more=more, code=int(code))
    assert said in error["message"], error
    assert before == sorted(path.stat().st_mtime_ns for path in props["dir"].iterdir() if not path.name.endswith((".requests", ".server")))


@pytest.mark.parametrize("stream, image, said", rows(BAD_IMAGES))
def test_images_that_cannot_take_a_disk_are_left_as_they_are(shared, props, stream, image, said):
    path = Path(image.format(**props).removeprefix("file=").split(",")[0])
    before = path.read_bytes() if path.is_file() else path.exists()
    error = refused(shared, "-drive", f"if=none,id=h0,{image.format(**props)}", "-device", "virtio-blk-pci,drive=h0,id=d0",
                    streams=[stream.format(**props)])
    assert said.format(**props) in error["message"], error
    assert before == (path.read_bytes() if path.is_file() else path.exists())


def test_what_a_failed_start_made_is_removed(shared, props):
    """QEMU itself refuses, when the image is there."""
    error = refused(shared, *drive("d0", props["new"]), "-device", "nothing-of-the-kind", streams=[f"d0={props['source']}"])
    assert "nothing-of-the-kind" in error["message"] and not props["new"].exists()
    error = refused(shared, *drive("d0", props["looks"]), streams=[f"d0={props['looks']},format=qcow2"], code=2)
    assert "own image" in error["message"]


def test_a_qemu_without_http_is_told_what_to_install(shared, props):
    fake = shared.dir / "bin"
    fake.mkdir()
    (fake / "qemu-img").write_text("#!/bin/sh\necho \"qemu-img: Could not open 'json:{}': Unknown driver 'http'\" >&2\nexit 1\n")
    (fake / "qemu-img").chmod(0o755)
    shared.restart(env={"PATH": f"{fake}:{os.environ['PATH']}"})
    error = refused(shared, *drive("d0", props["new"]), streams=["d0=http://127.0.0.1:9/x"])
    assert error["code"] == "unsupported" and "qemu-block-extra" in error["remedy"], error
    shared.restart()
    error = refused(shared, "-drive", f"if=none,id=h0,format=qcow2,file={props['new']}", "-device", "nvme,serial=1,drive=h0,id=d0",
                    streams=[f"d0={props['source']}", "d0=http://127.0.0.1:9/x"])
    assert not props["new"].exists()


def test_garbage_and_silence_from_a_server_are_errors_in_time(shared, props):
    import socket
    import threading
    with socket.create_server(("127.0.0.1", 0)) as server:
        clients = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    clients.append(server.accept()[0])
                    clients[-1].sendall(os.urandom(4096))

        threading.Thread(target=serve, daemon=True).start()
        error = refused(shared, *drive("d0", props["new"]), streams=[f"d0=nbd://127.0.0.1:{server.getsockname()[1]}/x"])
        assert "cannot look at" in error["message"] and not props["new"].exists()
        server.shutdown(socket.SHUT_RDWR)
    for client in clients:
        client.close()
