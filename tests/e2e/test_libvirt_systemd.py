# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other QEMUs beneath the domains of a libvirtd that systemd has started, with its sockets, and machined's scopes."""

import pytest

from lib import libvirt
from lib.beneath import moved, nothing_left
from lib.libvirt_split import SplitSystemdHost
from lib.libvirt_systemd import BeneathService, SystemdHost
from lib.procs import wait_until


@pytest.fixture(scope="module")
def host():
    with SystemdHost() as made:
        yield made


@pytest.fixture
def beneath(host):
    return BeneathService(host)


@pytest.fixture(scope="module")
def vm(host):
    """One for all: each test leaves it as healthy as it was."""
    with libvirt.Domain(host, vcpus=2) as made:
        yield made


def other(vm):
    """The QEMU that it does not have now."""
    return "7.2" if "10.0" in vm.live_xml().find("devices/emulator").text else "10.0"


def group_of(host, pid, thread=None):
    """In the unified hierarchy."""
    text = host.proc(pid, f"task/{thread or pid}/cgroup").decode()
    return next(line for line in text.splitlines() if line.startswith("0::"))[len("0::"):]


def by_name(host, pid, thread):
    """What is to be the same of the old QEMU's threads and of the new one's: CPU 0 is in vcpu0."""
    return host.proc(pid, f"task/{thread}/comm").decode().strip(), group_of(host, pid, thread)


def threads(host, pid):
    return sorted({by_name(host, pid, path.name) for path in (host.procs / str(pid) / "task").iterdir()} - {("worker", group_of(host, pid))})


def split_vcpus(host, vm):
    """emulator and vcpuN below the domain's group, as libvirt makes them where version 2 has the controllers cpu or cpuset."""
    group = host.cgroup(vm.pid)
    if group.name == "emulator":
        return
    tasks = {host.proc(vm.pid, f"task/{path.name}/comm").decode().split("/")[0]: path.name for path in (host.procs / str(vm.pid) / "task").iterdir()}
    for name, file, tid in [("emulator", "cgroup.procs", vm.pid), *((f"vcpu{n}", "cgroup.threads", tasks[f"CPU {n}"]) for n in range(vm.vcpus))]:
        (group / name).mkdir()
        (group / name / "cgroup.type").write_text("threaded")
        host.run("sh", "-c", 'echo "$0" >"$1"', tid, host.inside(group / name / file))


@pytest.fixture(scope="module")
def split():
    with SplitSystemdHost() as made:
        yield made


def all_is_well(host, vm, beneath, pid=None):
    wait_until(host.answers, 60, "libvirtd to answer")
    assert host.active(*host.units) == ["active"] * 4
    assert vm.state() == "running" and host.qemus() == [vm.pid] and vm.status_xml().get("pid") == str(vm.pid)
    if pid:
        assert vm.pid == pid
    vm.healthy()
    assert vm.answers_network() == vm.bootid
    vm.virsh("suspend")
    assert vm.state() == "paused"
    vm.virsh("resume")
    vm.healthy()
    nothing_left(beneath)


def test_a_domain_of_the_service(host, vm, beneath):
    before, daemon = vm.pid, host.libvirtd_pid()
    group = group_of(host, before)
    assert "/machine.slice/machine-qemu" in group and ".scope/libvirt" in group
    for version in ("10.0", "7.2"):
        one = moved(beneath.upgrade(version, domains=[vm.name]))
        assert vm.pid == one["pid"] != before and host.libvirtd_pid() != daemon
        assert group_of(host, vm.pid) == group
        all_is_well(host, vm, beneath)


def test_each_vcpu_stays_in_its_control_group(host, vm, beneath):
    split_vcpus(host, vm)
    before = threads(host, vm.pid)
    assert {group.rsplit("/", 1)[1] for _, group in before} == {"emulator", "vcpu0", "vcpu1"}, before
    moved(beneath.upgrade(other(vm), domains=[vm.name]))
    after = threads(host, vm.pid)
    assert [thread for thread in before if thread[0].startswith("CPU")] == [thread for thread in after if thread[0].startswith("CPU")]
    assert {group.rsplit("/", 1)[1] for _, group in after} == {"emulator", "vcpu0", "vcpu1"}, after
    all_is_well(host, vm, beneath)


@pytest.mark.parametrize("point", ["libvirt-stopped", "transfer", "switchover", "commit", "libvirt-patching", "libvirt-starting"])
def test_drover_dies(host, vm, beneath, point):
    """With all that is in its control group."""
    before, version, group = vm.pid, other(vm), group_of(host, vm.pid)
    beneath.start(point, version=version, domains=[vm.name])
    beneath.held(point)
    beneath.kill()
    assert beneath.recover()["state"] == "done"
    stays = point in ("libvirt-stopped", "transfer", "switchover")
    assert (vm.pid == before) == stays and group_of(host, vm.pid) == group
    all_is_well(host, vm, beneath)


def test_a_client_starts_the_service_while_drover_is_dead(host, vm, beneath):
    before, version = vm.pid, other(vm)
    beneath.start("switchover", version=version, domains=[vm.name])
    beneath.held("switchover")
    assert host.active(*host.units) == ["inactive"] * 4
    beneath.kill()
    host.run("systemctl", "start", *host.sockets)
    assert host.answers()
    beneath.recover()
    all_is_well(host, vm, beneath, before)


def test_machined_and_the_end(host, vm, beneath):
    """The domain's machine is the same one, and ends with it."""
    unit = group_of(host, vm.pid).split("/libvirt")[0].rsplit("/", 1)[1]
    moved(beneath.upgrade(other(vm), domains=[vm.name]))
    assert vm.name in host.run("machinectl", "list", "--no-legend").stdout
    vm.destroy()
    assert vm.state() == "shut off" and not host.qemus()
    wait_until(lambda: host.active(unit) == ["inactive"], 20, "the scope to end", interval=0.05)
    vm.start()
    moved(beneath.upgrade(other(vm), domains=[vm.name]))
    all_is_well(host, vm, beneath)


def test_domains_in_the_group_of_the_service():
    """Where libvirt may use no control groups: the service's is left by none of them while it is away."""
    with SystemdHost(groups=False) as host, libvirt.Domain(host) as vm:
        assert group_of(host, vm.pid).endswith("/system.slice/libvirtd.service")
        beneath = BeneathService(host)
        moved(beneath.upgrade("10.0", domains=[vm.name]))
        assert group_of(host, vm.pid).endswith("/system.slice/libvirtd.service")
        all_is_well(host, vm, beneath)
        host.run("systemctl", "restart", "libvirtd.service")
        all_is_well(host, vm, beneath)


@pytest.mark.parametrize("point", [None, "transfer", "commit"])
def test_the_same_under_virtqemud(split, point):
    """Its service has other sockets, and ends by itself when it has nothing to do."""
    with libvirt.Domain(split, vcpus=2) as vm:
        beneath, before, group = BeneathService(split), vm.pid, group_of(split, vm.pid)
        if point:
            beneath.start(point, version="10.0", domains=[vm.name])
            beneath.held(point)
            assert split.active(*split.units) == ["inactive"] * 4
            beneath.kill()
            assert beneath.recover()["state"] == "done"
        else:
            split.run("systemctl", "stop", split.units[0])
            split.run("systemctl", "start", *split.sockets)
            moved(beneath.upgrade("10.0", domains=[vm.name]))
            assert beneath.run()["daemon_name"] == "virtqemud.service"
        assert (vm.pid == before) == (point == "transfer") and group_of(split, vm.pid) == group
        all_is_well(split, vm, beneath)
