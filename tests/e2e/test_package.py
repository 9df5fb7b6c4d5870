# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian package: what is in it, and its life under a real systemd with VMs that must not notice."""

import json
import re
import stat
from pathlib import Path

import pytest

from lib import drover, guest, package
from lib.container import Installed
from lib.procs import Unavailable, run, wait_until

HELPER = "/usr/libexec/drover/drover-libvirt"
SMALL = {"ram": "131080k", "mem": 8, "rate": 10}


@pytest.fixture(scope="module")
def built():
    return package.build()


@pytest.fixture(scope="module")
def daemon(built):
    """The package, installed in a container; its droverd runs."""
    with Installed() as installed:
        try:
            installed.install(built)
        except RuntimeError:
            print(installed.log()[-3000:])
            raise
        yield installed


@pytest.fixture
def vm(daemon):
    started = drover.Witness(daemon, **SMALL)
    yield started
    started.close()
    daemon.run("stop", "vm", "--force", check=False)
    daemon.run("forget", "vm", check=False)


@pytest.fixture
def set_up(daemon):
    """Changes droverd's unit for one test."""
    container, place = daemon.container, "/etc/systemd/system/droverd.service.d"

    def write(text):
        container.run("mkdir", "-p", place)
        container.run("sh", "-c", 'printf %s "$1" >"$0"', f"{place}/test.conf", text)
        container.run("systemctl", "daemon-reload")

    yield write
    container.run("rm", "-rf", place)
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "reset-failed", check=False)
    container.run("systemctl", "restart", "droverd.service")


def unit(daemon, *names):
    return daemon.container.show("droverd.service", *names)


def is_active(daemon, name="droverd.service"):
    return daemon.container.run("systemctl", "is-active", name, check=False).stdout.strip() == "active"


def new_main_pid(daemon, before):
    """Waits until another droverd answers than the one with that pid."""
    return wait_until(lambda: is_active(daemon) and daemon.main_pid() not in (0, before) and daemon.main_pid(), 60,
                      lambda: f"another droverd: {daemon.log()[-1500:]}", interval=0.1)


# --- What is in it ---


def test_lintian_finds_nothing(built):
    found = run("lintian", "-i", "-I", "--pedantic", "--fail-on", "none", "--allow-root", next(built.parent.glob("*.changes")),
                timeout=300).stdout
    tags = [line for line in found.splitlines() if re.match(r"[A-Z]: ", line)]
    print(*tags, sep="\n")  # that there is no init script is information: the units are for systemd
    assert [tag for tag in tags if tag.startswith(("E:", "W:"))] == [], found


def test_the_files_are_where_they_belong(built, tmp_path):
    root = package.unpack(built, tmp_path)
    for name, mode in (("usr/sbin/droverd", 0o755), ("usr/bin/drover", 0o755), ("usr/libexec/drover/drover-keeper", 0o755),
                       ("etc/drover/droverd.conf", 0o644), ("lib/systemd/system/droverd.service", 0o644),
                       ("lib/systemd/system/droverd.socket", 0o644), ("usr/share/man/man8/droverd.8.gz", 0o644)):
        assert stat.S_IMODE((root / name).stat().st_mode) == mode, name
    run("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", root / "usr/share/man/man8/droverd.8.gz")
    control = run("dpkg-deb", "-I", built, "conffiles").stdout
    assert control.strip() == "/etc/drover/droverd.conf"


def test_what_knows_libvirt_is_a_package_of_its_own(built, tmp_path):
    """drover does not drag in libvirt; its part for libvirt goes with the drover of the same version."""
    other = package.of_libvirt(built)
    root, of_drover = package.unpack(other, tmp_path / "libvirt"), package.unpack(built, tmp_path / "drover")
    programs = [path for path in root.rglob("*") if path.is_file() and not path.is_relative_to(root / "usr/share")]
    assert programs == [root / HELPER.lstrip("/")] and stat.S_IMODE(programs[0].stat().st_mode) == 0o755
    assert not (of_drover / HELPER.lstrip("/")).exists()
    depends, version = (run("dpkg-deb", "-f", other, field).stdout.strip() for field in ("Depends", "Version"))
    assert f"drover (= {version})" in depends and "libvirt0" in depends and "libxml2" in depends
    assert "libvirt0" not in run("dpkg-deb", "-f", built, "Depends").stdout


def test_the_configuration_that_is_shipped_changes_nothing(built, tmp_path):
    """Each key in it is one that droverd knows, and none is set."""
    conf = package.unpack(built, tmp_path) / "etc/drover/droverd.conf"
    text = conf.read_text()
    assert not re.search(r"^[a-z]", text, re.M), "a value is set"
    keyed = re.sub(r"^#([a-z-]+=[^\n]+)$", r"\1", text, flags=re.M)
    assert keyed != text
    conf.write_text(keyed)
    state = tmp_path / "state"
    # It begins with the configuration, and ends at a directory that cannot be one.
    result = run(drover.DROVERD, "--config", conf, "--run-dir", "/proc/odd", "--state-dir", state, check=False)
    assert result.returncode == 1 and "/proc/odd" in result.stderr, result


def test_users_and_directories(built, tmp_path):
    root = package.unpack(built, tmp_path / "root")
    for name in ("etc", "run", "var/lib"):
        (root / name).mkdir(parents=True, exist_ok=True)
    run("systemd-sysusers", f"--root={root}", "drover.conf")
    groups = {line.split(":")[0]: line.split(":")[3] for line in (root / "etc/group").read_text().splitlines()}
    assert {"drover", "drover-read", "drover-qemu"} <= set(groups)
    assert "drover-qemu" in groups["kvm"], "its QEMUs may use KVM"
    run("systemd-tmpfiles", f"--root={root}", "--create", "drover.conf")
    for name, mode in (("run/drover", 0o755), ("var/lib/drover", 0o700)):
        found = (root / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, 0, 0), name


# --- Under systemd ---


def test_it_is_installed_and_runs(daemon):
    container = daemon.container
    assert is_active(daemon) and is_active(daemon, "droverd.socket")
    for name in ("droverd.service", "droverd.socket"):
        assert container.run("systemctl", "is-enabled", name).stdout.strip() == "enabled"
    assert daemon.json("list") == []
    # systemd's own look at the units says nothing at all.
    said = container.run("systemd-analyze", "verify", "droverd.service", "droverd.socket")
    assert (said.stdout + said.stderr).strip() == ""
    exposure = container.run("systemd-analyze", "security", "--offline=true", "/lib/systemd/system/droverd.service").stdout
    print(exposure.splitlines()[-1])
    assert re.search(r"Overall exposure level for droverd.service: \d", exposure)
    # The socket is systemd's, and for the operating group only.
    mode = container.run("stat", "-c", "%a %U %G", "/run/drover/api.sock", "/run/drover").stdout.split("\n")
    assert mode[:2] == ["660 root drover", "755 root root"]
    for user, code in (("drover", 0), ("drover-read", 1)):
        said = container.run("setpriv", "--reuid=nobody", f"--regid={user}", "--clear-groups", "drover", "list", check=False)
        assert said.returncode == code, said
    assert unit(daemon, "LimitNOFILE", "OOMScoreAdjust") == {"LimitNOFILE": "65536", "OOMScoreAdjust": "-900"}
    if may_raise_limits():
        assert re.search(r"Max open files +65536 +65536", container.run("cat", f"/proc/{daemon.main_pid()}/limits").stdout)


def test_a_vm_has_a_place_of_its_own_and_outlives_every_end_of_droverd(daemon, vm):
    container, pid = daemon.container, vm.pid
    place = wait_until(lambda: scope_of(daemon, pid), 10, "the VM to be moved to its scope")
    assert place == f"drover.slice/drover-vms.slice/drover-vm-vm-{pid}.scope"
    keeper = int(container.run("ps", "-o", "ppid=", "-p", pid).stdout)
    assert scope_of(daemon, keeper) == place and "drover-keeper" in container.run("ps", "-o", "args=", "-p", keeper).stdout
    # It got none of droverd's protection from the out-of-memory killer, and what else is inherited does it no harm.
    scores = [container.run("cat", f"/proc/{each}/oom_score_adj").stdout.strip() for each in (daemon.main_pid(), pid)]
    assert scores == ["-900" if may_raise_limits() else "0", "0"]

    def still_there():
        vm.healthy()
        assert daemon.show("vm")["pid"] == pid and daemon.state("vm") == "running"

    before = daemon.main_pid()
    container.run("systemctl", "restart", "droverd.service")
    before = new_main_pid(daemon, before)
    still_there()
    container.run("kill", "-KILL", before)
    before = new_main_pid(daemon, before)
    still_there()
    # Stopped, it is started again by whoever asks: the socket is systemd's.
    container.run("systemctl", "stop", "droverd.service")
    assert not is_active(daemon) and unit(daemon, "Result")["Result"] == "success"
    vm.healthy()
    still_there()
    new_main_pid(daemon, before)
    assert "left-over" not in container.journal("droverd.service")
    # Its new QEMU is moved, too.
    job = daemon.upgrade("vm", guest.qemu("7.2"))
    still_new = job["result"]["pid_after"]
    wait_until(lambda: scope_of(daemon, still_new) == f"drover.slice/drover-vms.slice/drover-vm-vm-{still_new}.scope", 10, "its scope")
    vm.healthy()


def may_raise_limits():
    """CAP_SYS_RESOURCE: without it systemd leaves limits as they are, in silence."""
    bounding = re.search(r"^CapBnd:\t(\w+)$", Path("/proc/self/status").read_text(), re.M).group(1)
    return bool(int(bounding, 16) >> 24 & 1)


def scope_of(daemon, pid):
    """The control group of a process, or None while it is in droverd's."""
    name = daemon.container.run("cat", f"/proc/{pid}/cgroup").stdout.strip().split("::")[1].lstrip("/")
    return None if "droverd.service" in name else name


def test_a_droverd_that_hangs_is_replaced(daemon, vm, set_up):
    container = daemon.container
    set_up("[Service]\nWatchdogSec=5\n")
    container.run("systemctl", "restart", "droverd.service")
    pid = daemon.main_pid()
    # Idle or asked, it is not taken for dead ...
    with pytest.raises(Exception, match="not within"):
        wait_until(lambda: daemon.main_pid() != pid, 12, "nothing", interval=0.5)
    # ... until its main loop stands still.
    container.run("kill", "-STOP", pid)
    new_main_pid(daemon, pid)
    assert "watchdog" in container.journal("droverd.service").lower()
    vm.healthy()
    assert daemon.state("vm") == "running"


def test_a_socket_at_another_place_is_an_error(daemon, set_up):
    container = daemon.container
    set_up("[Service]\nExecStart=\nExecStart=/usr/sbin/droverd --run-dir /run/elsewhere\n")
    said = container.run("systemctl", "restart", "droverd.service", check=False)
    assert said.returncode != 0
    log = container.journal("droverd.service")
    assert "not '/run/elsewhere/api.sock'" in log and "remedy: have ListenStream=/run/elsewhere/api.sock" in log


def test_drover_is_upgraded_beneath_vms_and_moves(daemon, vm, set_up, built, tmp_path):
    """One VM rests, another one is in the midst of an upgrade of its QEMU."""
    container = daemon.container
    container.run("sh", "-c", "echo '# mine' >>/etc/drover/droverd.conf")
    set_up("[Service]\nEnvironment=DROVER_HOLD_AT=transfer\n")
    container.run("systemctl", "restart", "droverd.service")
    moving = drover.Witness(daemon, name="moving", **SMALL)
    try:
        pids = {name: daemon.show(name)["pid"] for name in ("vm", "moving")}
        upgrade = daemon.spawn("upgrade", "moving")
        wait_until(lambda: upgrade.poll() is not None or container.run("test", "-e", "/run/drover/hold", check=False).returncode == 0, 60,
                   "the upgrade to be held")
        assert upgrade.poll() is None, upgrade.communicate()
        before, version = daemon.main_pid(), daemon.run("--version").stdout
        set_up("")  # holds good for the next one
        daemon.install(package.next_version(built, tmp_path))
        assert container.run("dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "drover").stdout.endswith("+later installed")
        new_main_pid(daemon, before)
        job, = [each for each in daemon.json("jobs") if each["vm"] == "moving"]
        job = daemon.ended_job(job["id"])
        assert job["state"] in ("failed", "cancelled", "succeeded"), job
        upgrade.communicate(timeout=60)
        # What matters is found by its priority.
        warnings = container.run("journalctl", "--no-pager", "-o", "cat", "-p", "warning", "-u", "droverd.service").stdout
        assert "jobs are still under way" in warnings and "listens on" not in warnings
        for each in (vm, moving):
            each.healthy()
            assert daemon.state(each.name) == "running"
        assert daemon.show("vm")["pid"] == pids["vm"]
        # And now it can be done.
        daemon.upgrade("moving", guest.qemu("7.2"))
        moving.healthy()
        assert "# mine" in container.run("cat", "/etc/drover/droverd.conf").stdout
        assert daemon.run("--version").stdout == version
    finally:
        moving.close()
        daemon.run("stop", "moving", "--force", check=False)
        daemon.run("forget", "moving", check=False)


# A domain for a libvirt with the usual set-up: another user, namespaces, control groups. No guest: the firmware waits for something to boot.
DOMAIN = """<domain type='qemu'><name>web1</name><memory unit='MiB'>64</memory>
<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking><vcpu>2</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><serial type='pty'/></devices></domain>
"""
SET_UP_LIBVIRT = """set -e
printf '%s\\n' 'security_driver = "none"' 'memory_backing_dir = "/dev/shm"' >/etc/libvirt/qemu.conf
rm -rf /etc/libvirt/qemu/networks/autostart
systemctl start virtlogd.socket libvirtd.socket libvirtd.service
printf %s "$0" >/root/web1.xml
virsh define /root/web1.xml
virsh start web1
"""
# As a child of droverd has it: droverd's unit, with another program.
AS_UNIT = r"""set -e
sed -e 's/^Type=.*/Type=oneshot/' -e '/^\(NotifyAccess\|WatchdogSec\|Restart\|RestartSec\|RestartPreventExitStatus\)=/d' \
  -e '/^\(Wants\|After\)=/d' -e "s|^ExecStart=.*|ExecStart=/bin/sh /root/helper|" /lib/systemd/system/droverd.service >/run/systemd/system/helper.service
echo 'echo "{\"uri\": \"qemu:///system\"}" | exec "$0" upgrade /root/lv/state /root/lv/run /root/lv/cache' | sed "s|\$0|$0|" >/root/helper
systemctl daemon-reload
systemctl start helper.service
"""


def test_a_qemu_without_roots_rights(daemon):
    """Of the package's user, upgraded as all others are."""
    container = daemon.container
    low = drover.Witness(daemon, name="low", extra=["-runas", "drover-qemu"], **SMALL)
    try:
        before = low.pid
        daemon.run("upgrade", "low")
        low.console.follow(low.serial)
        low.healthy()
        assert low.pid != before and container.run("ps", "-o", "user:20=", "-p", low.pid).stdout.strip() == "drover-qemu"
    finally:
        low.close()
        daemon.run("stop", "low", "--force", check=False)
        daemon.run("forget", "low", check=False)


def test_droverds_unit_lets_domains_of_libvirt_be_upgraded(daemon, built):
    """Nothing in it keeps drover-libvirt from systemctl, namespaces, other users, control groups or descriptors of others."""
    if not Path("/lib/systemd/system/libvirtd.service").exists():
        raise Unavailable("there is no libvirtd.service: the package libvirt-daemon-system is missing")
    container = daemon.container
    daemon.install(built, package.of_libvirt(built))  # a test before may have left a later drover, with which it does not go
    try:
        said = container.run("sh", "-c", SET_UP_LIBVIRT, DOMAIN, check=False)
        assert said.returncode == 0, said
        before = container.run("cat", "/run/libvirt/qemu/web1.pid").stdout
        doctor = json.loads(container.run("drover", "doctor", "--json", check=False).stdout)
        told = {f["code"]: (f["severity"], f["text"]) for f in doctor if f["group"] == "libvirt"}
        assert told["libvirt"] == ("ok", "libvirtd.service has the domains of qemu:///system"), told
        assert told["libvirt-helper"][0] == told["libvirt-domains"][0] == "ok", told
        world = world_of(container, before)
        assert world["Uid"] != ["0"] * 4
        said = container.run("sh", "-c", AS_UNIT, HELPER, check=False)
        assert said.returncode == 0, f"{said} {container.journal('helper.service')[-3000:]}"
        one, = json.loads(container.run("cat", "/root/lv/state/run.json").stdout)["domains"]
        assert (one["state"], one["view_is_true"], one["view"]) == ("done", True, []), one
        after = container.run("cat", "/run/libvirt/qemu/web1.pid").stdout
        assert after != before
        new = world_of(container, after)
        # droverd's unit takes some that libvirt leaves in the set of what could be had; neither QEMU has any.
        bounding = [int(each.pop("CapBnd")[0], 16) for each in (world, new)]
        assert new == world and world["CapEff"] == ["0" * 16] and bounding[1] & ~bounding[0] == 0
        assert container.run("virsh", "domstate", "web1").stdout.strip() == "running"
        assert is_active(daemon, "libvirtd.service") and is_active(daemon, "libvirtd.socket")
    finally:
        container.run("virsh", "destroy", "web1", check=False)
        container.run("systemctl", "stop", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd.service", check=False)
        container.run("dpkg", "-P", "drover-libvirt")


def world_of(container, pid):
    """With what rights and where a process lives."""
    pid = pid.strip()
    status = container.run("cat", f"/proc/{pid}/status").stdout
    fields = {line.split(":")[0]: line.split()[1:] for line in status.splitlines()}
    kept = ("Uid", "Gid", "Groups", "Umask", "CapBnd", "CapEff", "NoNewPrivs")
    return {**{name: fields[name] for name in kept}, "cgroup": container.run("cat", f"/proc/{pid}/cgroup").stdout,
            "limits": container.run("cat", f"/proc/{pid}/limits").stdout,
            "namespaces": [container.run("readlink", f"/proc/{pid}/ns/{name}").stdout for name in ("mnt", "net", "ipc", "uts")]}


def test_it_is_removed_and_purged_and_the_vm_lives(daemon, vm, built):
    container, pid = daemon.container, vm.pid
    # Somebody has put an image among droverd's files.
    container.run("sh", "-c", "touch /var/lib/drover/disk.qcow2 /var/lib/drover/vms/vm/disk.qcow2")
    container.run("dpkg", "-r", "drover", timeout=300)
    there = container.run("sh", "-c", "ls -d /usr/sbin/droverd /usr/bin/drover /lib/systemd/system/droverd.* /run/drover/api.sock", check=False)
    assert there.stdout == "", there
    assert not is_active(daemon) and not is_active(daemon, "droverd.socket")
    container.run("test", "-e", "/var/lib/drover/drover.db")
    vm.healthy()
    # Installed again it finds the VM again.
    daemon.install(built)
    assert (daemon.state("vm"), daemon.show("vm")["pid"]) == ("running", pid)
    container.run("dpkg", "-P", "drover", timeout=300)
    vm.healthy()
    container.run("test", "-d", f"/proc/{pid}")
    left = container.run("find", "/var/lib/drover", "/etc/drover", "-type", "f", check=False).stdout.split()
    assert sorted(left) == ["/var/lib/drover/disk.qcow2", "/var/lib/drover/vms/vm/disk.qcow2"]
    assert container.run("systemctl", "list-unit-files", "droverd*", "--no-legend", check=False).stdout.strip() == ""
    # Where nobody left anything, nothing is left.
    container.run("rm", *left)
    container.run("rmdir", "/var/lib/drover/vms/vm")
    daemon.install(built)
    assert daemon.json("list") == []
    assert "record" in daemon.refused("adopt", "vm", "--pid", pid)["message"]
    container.run("rm", "-rf", "/run/drover/vms/vm", "/run/drover/hold")  # the sockets of the VM that lives, and what a test above has left
    container.run("dpkg", "-P", "drover", timeout=300)
    left = container.run("sh", "-c", "find /var/lib/drover /run/drover /etc/drover /etc/systemd/system/*/droverd*", check=False)
    assert left.stdout == "", left
    container.run("test", "-d", f"/proc/{pid}")
    vm.healthy()


def test_what_build_deb_does_not_understand(tmp_path):
    tool = package.REPO / "packaging" / "build-deb"
    for words in (["--odd"], ["--version"], ["--version", "not a version"], ["--out", ""]):
        result = run(tool, *words, check=False)
        assert result.returncode == 2 and result.stderr, words
