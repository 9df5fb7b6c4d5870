# SPDX-License-Identifier: LGPL-2.1-or-later
"""A droverd of its own for a test, and the drover command line against it."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from pathlib import Path

from . import guest
from .procs import BUILD, Process, Timeout, kill_pid, wait_until

BIN = Path(os.environ.get("DROVER_BUILD", BUILD / "main"))
DROVERD = BIN / "src" / "droverd"
DROVER = BIN / "src" / "cli" / "drover"


class Failed(Exception):
    """A drover command that did not exit with 0."""

    def __init__(self, result):
        super().__init__(f"{' '.join(result.args)} exited with {result.returncode}: {result.stderr.strip()} {result.stdout.strip()[-1500:]}")
        self.code, self.stderr, self.stdout = result.returncode, result.stderr, result.stdout

    @property
    def json(self):
        return json.loads(self.stdout)


class Daemon:
    """droverd with directories of its own. At the end of the with block every QEMU that it ever had is killed."""

    def __init__(self, netns=None, env=None, config=None, prefix=()):
        """config: the text of its configuration file. prefix: a command that runs another one in the namespaces of a host."""
        # Short: a unix socket's path has 107 bytes.
        self.dir = Path(tempfile.mkdtemp(prefix="dr-", dir="/tmp"))
        self.run_dir, self.state_dir = self.dir / "run", self.dir / "state"
        self.netns, self.env, self.config, self.prefix = netns, env or {}, config, list(prefix)
        self.pids = set()
        self.process = None

    def start(self, env=None, timeout=60):
        argv = [DROVERD, "--run-dir", self.run_dir, "--state-dir", self.state_dir]
        if self.config:
            (self.dir / "droverd.conf").write_text(self.config)
            argv += ["--config", self.dir / "droverd.conf"]
        self.process = Process(argv, self.dir / "log",
                               env={**self.env, **(env or {})}, netns=self.netns, prefix=self.prefix)
        wait_until(lambda: (self.run_dir / "api.sock").exists() and self._answers(), timeout,
                   lambda: f"droverd to answer; it said: {self.log()[-2000:]}")
        return self

    def _answers(self):
        if not self.process.alive():
            raise RuntimeError(f"droverd ended: {self.log()[-2000:]}")
        return self.run("list", check=False).returncode == 0

    def log(self):
        return (self.dir / "log").read_text(errors="replace") if (self.dir / "log").exists() else ""

    def kill(self, sig=signal.SIGKILL):
        """Ends droverd only; the VMs run on."""
        self._note_pids()
        self.process.kill(sig, timeout=40)
        if sig == signal.SIGKILL:
            (self.run_dir / "api.sock").unlink(missing_ok=True)

    def restart(self, env=None):
        self.kill()
        return self.start(env)

    # --- The command line ---

    def argv(self, *args):
        return [*self.prefix, str(DROVER), "--connect", f"unix:{self.run_dir}/api.sock", *map(str, args)]

    def run(self, *args, check=True, timeout=120, cwd=None, input=None):
        environ = {k: v for k, v in os.environ.items() if not k.startswith("DROVER_")}
        result = subprocess.run(self.argv(*args), capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environ,
                                input=input, stdin=subprocess.DEVNULL if input is None else None)
        if check and result.returncode:
            raise Failed(result)
        return result

    def json(self, *args, **options):
        return json.loads(self.run(*args, "--json", **options).stdout)

    def spawn(self, *args):
        """A command in the background."""
        return subprocess.Popen(self.argv(*args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def show(self, name):
        shown = self.json("show", name)
        if shown["pid"]:
            self.pids.add(shown["pid"])
        return shown

    def state(self, name):
        return next(vm["state"] for vm in self.json("list") if vm["name"] == name)

    def qmp(self, name, command, arguments=None):
        """A QMP command through `drover qmp`; returns what QEMU returned."""
        return self.json("qmp", name, command, *([json.dumps(arguments)] if arguments else []))["return"]

    def upgrade(self, name, qemu=None, *options, **kwargs):
        """Upgrades one VM; returns the job, whose state is succeeded."""
        job = self.json("upgrade", name, *(["--qemu", qemu] if qemu else []), *options, **kwargs)
        self.pids |= {job["result"]["pid_before"], job["result"]["pid_after"]}
        return job

    def fail_upgrade(self, name, qemu, meanwhile=lambda: None):
        """An upgrade whose new QEMU is killed while the state is moved. Needs DROVER_HOLD_AT=transfer in droverd's environment."""
        pid, hold = self.show(name)["pid"], self.run_dir / "hold"
        upgrade = self.spawn("upgrade", name, "--qemu", qemu)
        wait_until(lambda: hold.exists() or upgrade.poll() is not None, 60, "the upgrade to come to its transfer")
        assert upgrade.poll() is None, upgrade.communicate()
        meanwhile()
        destination, = set(self.qemus()) - {pid}
        kill_pid(destination)
        hold.unlink()
        said = upgrade.communicate(timeout=60)
        assert upgrade.returncode == 1, said

    def refused(self, *args, code=1, **options):
        """A command that must fail with that exit code; returns its error, {"code","message","remedy"}."""
        result = self.run("--json", *args, check=False, **options)
        assert result.returncode == code, f"exit {result.returncode}, not {code}: {result.stdout} {result.stderr}"
        answer = json.loads(result.stdout)
        return answer["error"]

    def journal(self, job):
        """The stages of a job, from a copy of the state file: droverd, which keeps others out of it, must not run."""
        with tempfile.TemporaryDirectory(dir=self.dir) as copy:
            for path in self.state_dir.glob("drover.db*"):
                shutil.copy(path, copy)
            with contextlib.closing(sqlite3.connect(Path(copy) / "drover.db")) as db:
                return [row[0] for row in db.execute("SELECT stage FROM journal WHERE job = ? ORDER BY seq", (int(job),))]

    def ended_job(self, job, timeout=90):
        """A job, once it has ended."""
        def ended():
            shown = self.json("job", job)
            return shown if shown["state"] not in ("queued", "running") else None

        return wait_until(ended, timeout, f"job {job} to end")

    def keepers(self, name=None):
        """The pids of the drover-keepers of a VM, or of all."""
        base = f"{self.state_dir}/vms/{name}/" if name else f"{self.state_dir}/vms/"
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if words[0] == b"drover-keeper" and words[1].startswith(base.encode()):
                    found.append(int(entry.name))
        return found

    # --- The end ---

    def _note_pids(self):
        try:
            self.pids |= {vm["pid"] for vm in self.json("list", timeout=10) if vm["pid"]}
        except (Failed, subprocess.TimeoutExpired, ValueError):
            pass

    def qemus(self):
        """The pids of all QEMUs that have this droverd's run directory on their command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if f"{self.run_dir}/vms/".encode() in words and b"drover-keeper" not in words.split(b"\0")[0]:
                    found.append(int(entry.name))
        return found

    def close(self):
        if self.process and self.process.alive():
            self._note_pids()
            try:
                self.process.kill(signal.SIGTERM, timeout=30)
            except Timeout:
                self.process.kill()
        for pid in self.qemus():
            kill_pid(pid)
        # A keeper that notes the end of its QEMU meanwhile would leave a file, and so the directory.
        for pid in self.keepers():
            kill_pid(pid)
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_):
        self.close()


class Witness:
    """A witness guest that drover runs: its console through a user's own unix socket, its health at the end."""

    def __init__(self, daemon, name="vm", version="7.2", machine="pc-q35-7.2", ram="262152k", mem=64, rate=100, extra=(),
                 options=(), witness=None, adopt=None, base=("-nodefaults", "-display", "none"), serial=None, console=None,
                 cwd=None):
        """base: how it begins; serial: another first serial port, for which `console(self)` opens the console."""
        self.daemon, self.name = daemon, name
        self.serial = daemon.dir / f"{name}.serial"
        if serial is None:
            serial = ["-chardev", f"socket,id=serial,path={self.serial},server=on,wait=off", "-serial", "chardev:serial"]
        self.argv = [guest.qemu(version), "-accel", "tcg", *base, "-no-reboot", "-machine", machine, "-m", ram, "-cpu",
                     "qemu64", *serial, *guest.kernel_args(mem=mem, rate=rate, **(witness or {})), *map(str, extra)]
        self.process = None
        if adopt:
            self._adopt(adopt, options)
        else:
            daemon.run("run", name, *options, "--", *self.argv, cwd=cwd)
        self.console = console(self) if console else guest.Console(self.serial)
        self.console.wait_ready()
        self.bootid = self.console.status()["bootid"]

    def _adopt(self, how, options):
        self.qmp = self.daemon.dir / f"{self.name}.qmp"
        self.process = Process([*self.argv, "-qmp", f"unix:{self.qmp},server=on,wait=off"], self.daemon.dir / f"{self.name}.out")
        wait_until(self.qmp.exists, 20, "QEMU's QMP socket")
        where = ("--pid", self.process.pid) if how == "pid" else ("--qmp", self.qmp)
        self.daemon.run("adopt", self.name, *where, *options)

    @property
    def pid(self):
        return self.daemon.show(self.name)["pid"]

    def upgrade(self, version, *options, **kwargs):
        """One upgrade, after which the console is followed to the new QEMU and the guest is checked."""
        job = self.daemon.upgrade(self.name, guest.qemu(version), *options, **kwargs)
        self.healthy()
        return job

    def upgrade_in_place(self, *options, **kwargs):
        """The same without --qemu."""
        job = self.daemon.upgrade(self.name, None, *options, **kwargs)
        self.healthy()
        return job

    def healthy(self, passes=1):
        """The guest lives, was not rebooted, and all of its memory is right."""
        self.console.follow(self.serial)
        self.console.wait_passes(passes)
        return self.console.check(bootid=self.bootid)

    def close(self):
        self.console.close()
        if self.process and self.process.alive():
            self.process.kill()
