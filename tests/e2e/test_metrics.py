# SPDX-License-Identifier: LGPL-2.1-or-later
"""GET /metrics held against what really happened; the alerts and the dashboard in packaging/ held against GET /metrics."""

import contextlib
import json
import re
import socket
import time

import pytest

from lib import drover, guest, prometheus
from lib.pair import ADDRESSES, PORT, Pair
from lib.prometheus import promtool, scrape
from lib.procs import REPO, run, wait_until

SMALL = {"ram": "131080k", "mem": 8, "rate": 10}
RULES = REPO / "packaging" / "prometheus" / "drover.rules.yml"
DASHBOARD = REPO / "packaging" / "grafana" / "drover.json"
PAGE = REPO / "docs" / "METRICS.md"
JOBS, PAUSE, DURATION = "drover_jobs_total", "drover_job_pause_seconds", "drover_job_duration_seconds"


def none_fell(before, after):
    fell = {key for key, value in before.counters().items() if after.samples[key] < value}
    assert not fell, fell


def steps(before, after, name, **labels):
    """What a family's values have risen by: (the labels but those given) -> step, of those that have."""
    found = {}
    for (sample, pairs), value in after.samples.items():
        rest = dict(pairs)
        if sample == name and all(rest.pop(key, None) == wanted for key, wanted in labels.items()):
            step = value - before.samples.get((sample, pairs), 0)
            found |= {tuple(sorted(rest.items())): step} if step else {}
    return found


def one_ended(before, after, kind, result):
    none_fell(before, after)
    assert steps(before, after, JOBS) == {(("kind", kind), ("result", result)): 1}
    assert after.value("drover_jobs_running", kind=kind) == 0


def same_seconds(scraped, seconds):
    """Both come out with 15 digits at least."""
    return abs(scraped - seconds) < 1e-9


# --- Upgrades ---


@pytest.fixture
def held():
    """A droverd whose upgrades wait where their state is moved."""
    with drover.Daemon(env={"DROVER_HOLD_AT": "transfer"}) as daemon:
        yield daemon


@pytest.fixture
def vm(held):
    witness = drover.Witness(held, **SMALL)
    yield witness
    witness.close()


def begin(daemon, vm):
    """An upgrade that waits there."""
    command = daemon.spawn("upgrade", vm.name, "--qemu", guest.qemu("10.0"))
    wait_until(lambda: (daemon.run_dir / "hold").exists() or command.poll() is not None, 60, "the upgrade to come to its transfer")
    assert command.poll() is None, command.communicate()
    return command


def last_job(daemon):
    return daemon.json("jobs")[0]


def fill_buckets(after, kind, seconds):
    """Whether the buckets of one observation are those that it belongs to."""
    for (name, pairs), value in after.samples.items():
        labels = dict(pairs)
        if name == f"{PAUSE}_bucket" and labels["kind"] == kind:
            assert value == (seconds <= float(labels["le"])), (labels, seconds)


def test_upgrades_are_counted(held, vm):
    """One that succeeds, one that fails, one that is cancelled: each once, with its pause, its time and its bytes."""
    begun = scrape(held)
    assert begun.value("drover_vms", state="running") == 1 and begun.value("drover_vms", state="attention") == 0
    assert not any(value for (name, _), value in begun.counters().items() if name.startswith("drover_"))

    command = begin(held, vm)
    during = scrape(held)
    assert during.value("drover_jobs_running", kind="upgrade") == 1 and not steps(begun, during, JOBS)
    (held.run_dir / "hold").unlink()
    assert command.wait(60) == 0, command.communicate()
    after, job = scrape(held), last_job(held)
    one_ended(during, after, "upgrade", "succeeded")
    pause, took = job["result"]["pause_ms"] / 1000, (job["ended_ms"] - job["started_ms"]) / 1000
    assert after.value(f"{PAUSE}_count", kind="upgrade") == 1 and pause > 0
    assert same_seconds(after.value(f"{PAUSE}_sum", kind="upgrade"), pause)
    fill_buckets(after, "upgrade", pause)
    assert after.value(f"{DURATION}_count", kind="upgrade") == 1
    assert same_seconds(after.value(f"{DURATION}_sum", kind="upgrade"), took)
    assert after.value("drover_job_bytes_total", kind="upgrade", what="memory") == job["result"]["bytes_moved"] > 0

    held.fail_upgrade(vm.name, guest.qemu("7.2"))
    failed = scrape(held)
    one_ended(after, failed, "upgrade", "failed")

    command = begin(held, vm)
    held.run("cancel", last_job(held)["id"])
    assert command.wait(60) == 1
    cancelled = scrape(held)
    one_ended(failed, cancelled, "upgrade", "cancelled")
    for name in (f"{PAUSE}_count", f"{DURATION}_count", "drover_job_bytes_total"):
        assert not steps(after, cancelled, name), name
    command.communicate()
    vm.healthy()

    # A restart of droverd is one of its counters, too, and Prometheus knows it by that.
    held.restart()
    again = scrape(held)
    assert again.value(JOBS, kind="upgrade", result="succeeded") == 0 and again.value("drover_vms", state="running") == 1
    assert again.value("process_start_time_seconds") > begun.value("process_start_time_seconds")


def test_a_request_that_makes_no_job_counts_none(daemon):
    daemon.run("run", "vm", "--", *guest.without_guest())
    before = scrape(daemon)
    daemon.refused("upgrade", "nosuch")
    assert steps(before, scrape(daemon), JOBS) == {}


def test_the_process_is_shown(daemon):
    one = scrape(daemon)
    assert one.value("drover_build_info", version=run(drover.DROVERD, "--version").stdout.split()[-1]) == 1
    assert abs(one.value("process_start_time_seconds") - time.time()) < 120
    assert one.value("process_resident_memory_bytes") > 1 << 20 and one.value("process_max_fds") >= one.value("process_open_fds") > 5
    idle = [socket.socket(socket.AF_UNIX) for _ in range(10)]
    try:
        for client in idle:
            client.connect(str(daemon.run_dir / "api.sock"))
        wait_until(lambda: scrape(daemon).value("process_open_fds") >= one.value("process_open_fds") + 10, 10, "ten descriptors more")
    finally:
        for client in idle:
            client.close()
    two = scrape(daemon)
    assert two.value("process_start_time_seconds") == one.value("process_start_time_seconds")
    assert two.value("process_cpu_seconds_total") > one.value("process_cpu_seconds_total")
    none_fell(one, two)


def test_a_scrape_asks_nothing_of_a_qemu(daemon):
    """One that stands still does not keep Prometheus waiting."""
    daemon.run("run", "vm", "--", *guest.without_guest())
    pid = daemon.show("vm")["pid"]
    run("kill", "-STOP", pid)
    try:
        begun = time.monotonic()
        assert scrape(daemon).value("drover_vms", state="running") == 1
        assert time.monotonic() - begun < 4  # a monitor is waited for longer
    finally:
        run("kill", "-CONT", pid)


# --- Moves ---


@pytest.fixture(scope="module")
def pair():
    with Pair() as both:
        yield both


@pytest.fixture
def moving(pair):
    witness = drover.Witness(pair.a, "vm", **{**SMALL, "ram": "262152k", "mem": 128, "rate": 100})
    yield witness
    witness.close()
    pair.clear()


def test_a_move_is_counted_on_both_hosts(pair, moving):
    before_a, before_b = scrape(pair.a), scrape(pair.b)
    assert before_a.value("drover_peers") == before_b.value("drover_peers") == 1
    move = pair.a.spawn("migrate", moving.name, "b", "--bandwidth", "50")
    during = wait_until(lambda: (one := scrape(pair.a)).value("drover_relay_bytes_total", direction="out") > 8 << 20 and one, 60, "bytes")
    assert during.value("drover_relay_streams") >= 1 and during.value("drover_jobs_running", kind="migrate") == 1
    assert move.wait(120) == 0, move.communicate()
    move.communicate()
    after_a = scrape(pair.a)
    after_b = wait_until(lambda: (one := scrape(pair.b)).value(JOBS, kind="incoming", result="succeeded") and one, 30, "its end there")
    one_ended(before_a, after_a, "migrate", "succeeded")
    one_ended(before_b, after_b, "incoming", "succeeded")
    none_fell(during, after_a)
    result = pair.job(moving)["result"]
    assert same_seconds(after_a.value(f"{PAUSE}_sum", kind="migrate"), result["pause_ms"] / 1000)
    assert after_a.value("drover_job_bytes_total", kind="migrate", what="memory") == result["bytes_moved"] > 32 << 20
    sent = after_a.value("drover_relay_bytes_total", direction="out")
    received = after_b.value("drover_relay_bytes_total", direction="in")
    assert result["bytes_moved"] <= sent and sent == received, (result, sent, received)
    for one in (after_a, after_b):
        assert 0 < one.value("drover_relay_cpu_seconds_total") <= one.value("process_cpu_seconds_total")
        assert one.value("drover_relay_streams") == 0
    pair.moved(moving)
    moving.healthy()


def test_a_recovery_is_counted(pair, moving):
    before = scrape(pair.a)
    move = pair.a.spawn("migrate", moving.name, "b", "--postcopy-after-precopy", "--postcopy-bandwidth", "20")
    wait_until(lambda: pair.job(moving)["stage"] == "postcopy", 60, "post-copy")
    for _ in range(2):  # the guest runs over there, and its pages follow
        begun = pair.job(moving)["progress"]["bytes_done"]
        wait_until(lambda: pair.job(moving)["progress"]["bytes_done"] > begun + (2 << 20), 60, "pages to move")
    cut = time.monotonic()
    pair.link.down()
    wait_until(lambda: time.monotonic() > cut + 8, 12, "the cut to last")
    pair.link.up()
    assert move.wait(120) == 0, move.communicate()
    move.communicate()
    recoveries = pair.job(moving)["result"]["recoveries"]
    assert steps(before, scrape(pair.a), "drover_migration_recoveries_total") == {(): recoveries} and recoveries >= 1
    pair.moved(moving)
    moving.healthy()


def test_certificates_and_who_is_refused(pair):
    before = scrape(pair.a)
    shown = {entry["file"].rsplit("/", 1)[-1]: entry for entry in pair.a.json("pki", "show", pair.keys / "a")}
    for certificate in ("ca", "server", "client"):
        until = shown[f"{certificate}-cert.pem"]["until_ms"] / 1000
        assert before.value("drover_certificate_expiry_timestamp_seconds", certificate=certificate) == until
    with pair.netns_b.inside():
        with socket.create_connection((ADDRESSES["a"], PORT), timeout=10) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):  # a close with bytes unread
                assert stranger.recv(100) == b""
        with socket.create_connection((ADDRESSES["a"], PORT), timeout=20) as silent:
            assert silent.recv(100) == b""
    after = scrape(pair.a)
    assert steps(before, after, "drover_refused_connections_total") == {(("reason", "refused"),): 1, (("reason", "timeout"),): 1}


# --- What is made of them ---


def expressions():
    """(where, PromQL) of the dashboard, Grafana's variables filled in."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "1m").replace("$window", "1d").replace("$instance", ".*")
            assert "$" not in expr, expr
            yield f"{panel['title']} {target['refId']}", expr


def metrics_of(expr):
    names = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(by|without|on|ignoring)\s*\([^)]*\)', lambda found: found[0][0] if found[0][0] == "{" else "", expr)
    return set(re.findall(r"\b((?:drover|process)_[a-z_]+)\b", names))


@pytest.fixture(scope="module")
def scraped(pair):
    """Of a droverd that has all there is: keys, a port, peers."""
    return scrape(pair.a)


def known(scraped):
    return {name for name, _ in scraped.samples} | set(scraped.families)


def test_the_alerts_are_good_rules(scraped, tmp_path):
    checked = promtool("check", "rules", RULES)
    assert checked.returncode == 0 and "SUCCESS" in checked.stdout, checked
    tested = promtool("test", "rules", RULES.with_name("drover.rules.test.yml"))
    assert tested.returncode == 0 and "SUCCESS" in tested.stdout, tested
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    tests = RULES.with_name("drover.rules.test.yml").read_text()
    for alert in alerts:  # each was seen to be raised, and not to be
        assert len(re.findall(rf"alertname: {alert}\b", tests)) >= 2, alert
    used = metrics_of(" ".join(re.findall(r"expr: (?:>-\n)?((?:.*\n)+?)\s+(?:for|labels):", RULES.read_text())))
    assert used and used <= known(scraped), used - known(scraped)


def test_the_dashboard(scraped, tmp_path):
    board = json.loads(DASHBOARD.read_text())
    assert board["title"] == "drover" and board["schemaVersion"] >= 38
    assert [one["name"] for one in board["templating"]["list"]] == ["datasource", "instance", "window"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) > 10
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}" and panel["targets"] and panel["title"], panel
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
    rules = {"groups": [{"name": "dashboard", "rules": [
        {"record": f"dashboard:{number}", "expr": expr} for number, (_, expr) in enumerate(expressions())]}]}
    (tmp_path / "rules.yml").write_text(json.dumps(rules))
    checked = promtool("check", "rules", tmp_path / "rules.yml")
    assert checked.returncode == 0, checked
    for where, expr in expressions():
        assert metrics_of(expr) and metrics_of(expr) <= known(scraped), (where, metrics_of(expr) - known(scraped))


# What shows something of a droverd that has moved nothing.
ALWAYS = {"VMs running", "VMs that need a person", "Jobs under way", "Jobs that failed ($window)", "VMs by state", "Jobs by result",
          "Recoveries ($window)", "Relay throughput", "droverd: memory", "droverd: CPU", "droverd: descriptors"}


def test_a_real_prometheus_takes_all_of_it(daemon):
    """It scrapes, knows the rules, and answers what the dashboard asks."""
    daemon.run("run", "vm", "--", *guest.without_guest())
    daemon.upgrade("vm", guest.qemu("10.0"))
    with prometheus.Prometheus(daemon, RULES) as server:
        group, = server.get("/api/v1/rules")["groups"]
        assert len(group["rules"]) == len(re.findall("alert:", RULES.read_text()))
        assert server.query('drover_vms{state="running"}')[0]["value"][1] == "1"
        # increase() and rate() take two samples.
        wait_until(lambda: server.query(f'increase({JOBS}{{kind="upgrade",result="succeeded"}}[1m])'), 30, "a second scrape")
        for where, expr in expressions():
            values = server.query(expr)
            assert values or where[:-2] not in ALWAYS, where
        wait_until(lambda: all(rule["health"] == "ok" for rule in server.get("/api/v1/rules")["groups"][0]["rules"]), 30, "the rules")
        assert not [rule["name"] for rule in server.get("/api/v1/rules")["groups"][0]["rules"] if rule["state"] == "firing"]
        types = {name: kinds[0]["type"] for name, kinds in server.get("/api/v1/metadata").items()}
        assert {name: kind for name, (kind, _) in scrape(daemon).families.items()} == types


# --- docs/METRICS.md ---


def test_the_page_has_each_metric_and_no_other(scraped):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    page = {name.strip("`"): (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    assert len(page) == len(rows)
    assert page == {name: (kind, scraped.labels(name)) for name, (kind, _) in scraped.families.items()}


def test_the_pages_script_makes_a_file_for_the_node_exporter(daemon, tmp_path):
    script, = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
    for what, here in (("/var/lib/prometheus/node-exporter", tmp_path), ("/run/drover/api.sock", daemon.run_dir / "api.sock")):
        assert what in script
        script = script.replace(what, str(here))
    run("sh", "-c", script)
    made = prometheus.Scrape((tmp_path / "drover.prom").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["drover.prom"]
    assert set(made.families) == {name for name in scrape(daemon).families if name.startswith("drover_")}


def test_the_pages_examples_are_good_configurations(tmp_path):
    """Each block of YAML of the page: what a scrape configuration would have it in, and a syntax that Prometheus takes."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)
    assert blocks
    for number, block in enumerate(blocks):
        config = tmp_path / f"{number}.yml"
        config.write_text(block)
        checked = promtool("check", "config", "--syntax-only", config)
        assert checked.returncode == 0, (block, checked)
