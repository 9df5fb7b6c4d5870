# SPDX-License-Identifier: LGPL-2.1-or-later
"""drover ui: the dashboard in a real browser, where real upgrades and moves are begun by clicks; and who is let in."""

import json
import os
import re
import signal
import socket
import subprocess

import pytest

from lib import api, drover, guest
from lib.browser import Browser, Ui
from lib.pair import Pair
from lib.procs import wait_until

RAM = "131080k"
SMALL = {"ram": RAM, "mem": 16, "rate": 50}


@pytest.fixture
def ui(daemon):
    with Ui(daemon) as started:
        yield started


@pytest.fixture
def browser():
    with Browser() as window:
        yield window


@pytest.fixture
def pair():
    with Pair() as both:
        yield both


def opened(browser, ui):
    browser.open(ui.url)
    browser.find("#link[data-link=live]")
    assert browser.driver.current_url == f"{ui.origin}/ui/"


def verdict(browser, text, timeout=60):
    return browser.find(".verdict", text, timeout)


def ended(browser, job, state, timeout=120):
    row = browser.find(f"tr[data-job='{job}']", state, timeout)
    return row.text


def recorded(browser, daemon, job):
    """The flight recorder's part of the page, where droverd has one for this job."""
    answer = api.request(daemon.run_dir / "api.sock", "GET", f"/v1/jobs/{job}/report")
    if answer.status == 404:
        assert not any("pause went" in one.text for one in browser.all("h3"))
        return
    assert answer.status == 200, answer
    for part in (answer.json["pause"] or {"parts": []})["parts"]:
        browser.find(".stack-names li", part["name"])


def clean(browser, ui):
    assert browser.strange_requests(ui.origin) == []
    assert browser.errors() == []


# --- The page ---

def test_an_upgrade_by_clicks(daemon, ui, browser):
    vm = drover.Witness(daemon, "web1", extra=["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"], **SMALL)
    try:
        opened(browser, ui)
        assert browser.find("tr[data-vm=web1]", "running").text
        browser.shoot("overview")
        browser.click("tr[data-vm=web1] [data-do=upgrade]")
        verdict(browser, "Nothing stands in the way")

        # What is refused is told with its remedy, and cannot be begun.
        browser.type("dialog input[name=qemu]", "/bin/true\n")
        verdict(browser, "blocker")
        assert browser.find(".finding[data-severity=blocker] .remedy").text
        assert not browser.find("dialog button.main").is_enabled()
        browser.shoot("upgrade-blocked")

        # While it is being typed nothing is asked, and nothing can be begun.
        browser.type("dialog input[name=qemu]", guest.qemu("10.0")[:-3])
        verdict(browser, "Not checked yet")
        assert not browser.find("dialog button.main").is_enabled()
        browser.find("dialog input[name=qemu]").send_keys(guest.qemu("10.0")[-3:] + "\n")
        verdict(browser, "Nothing stands in the way")
        assert "7.2" in browser.find(".report").text and "10.0" in browser.find(".report").text
        assert browser.all(".finding[data-severity=note]")
        browser.shoot("upgrade-ready")
        browser.click("dialog button.main")
        browser.gone("dialog")
        told = ended(browser, 1, "succeeded")
        assert "10.0" in told and "paused" in told, told
        assert daemon.show("web1")["qemu_version"].startswith("10.0")
        browser.find("tr[data-vm=web1]", "10.0")
        assert "succeeded" in browser.run("return document.getElementById('said').textContent")
        vm.healthy()

        browser.type("input[type=search]", "web1 somethingelse")
        browser.find("section", "No job fits these words")
        browser.type("input[type=search]", "web1 upgr")
        browser.click("tr[data-job='1'] a")
        browser.find("article[data-job='1']", "took")
        recorded(browser, daemon, 1)
        browser.shoot("report-upgrade")
        browser.click("a.back")
        browser.click("tr[data-vm=web1] td.name a")
        browser.find("h3", "Network")
        assert "52:54:00" in browser.text()
        for one in browser.all("details summary"):
            one.click()
        browser.shoot("vm")
        clean(browser, ui)
    finally:
        vm.close()


def test_a_name_is_only_a_text(daemon, ui, browser):
    """Nothing of what droverd says becomes markup: here a message with an element in it."""
    daemon.run("run", "plain", "--", *guest.without_guest("-S"))
    opened(browser, ui)
    browser.click("tr[data-vm=plain] [data-do=upgrade]")
    verdict(browser, "Nothing stands in the way")
    browser.type("dialog input[name=qemu]", "/<img src=x onerror=document.title='bad'>\n")
    browser.find("dialog", "<img src=x")
    assert browser.all("dialog img") == [] and "bad" not in browser.driver.title
    clean(browser, ui)


def test_pause_and_resume(daemon, ui, browser):
    daemon.run("run", "plain", "--", *guest.without_guest())
    opened(browser, ui)
    browser.click("tr[data-vm=plain] [data-do=pause]")
    browser.click("dialog button.main")
    browser.find("tr[data-vm=plain]", "paused")
    assert daemon.state("plain") == "paused"
    browser.click("tr[data-vm=plain] [data-do=resume]")
    browser.find("tr[data-vm=plain]", "running")
    assert daemon.state("plain") == "running"
    # By others: the page hears of it.
    daemon.run("pause", "plain")
    browser.find("tr[data-vm=plain]", "paused")


def test_by_keyboard(daemon, ui, browser):
    """The first thing that Tab comes to leads past the header; a dialog opens by Enter, closes by Esc and gives the focus back."""
    from selenium.webdriver.common.keys import Keys

    daemon.run("run", "plain", "--", *guest.without_guest("-S"))
    opened(browser, ui)
    browser.find("tr[data-vm=plain]")
    browser.find("body").send_keys(Keys.TAB)
    assert "Skip" in browser.driver.switch_to.active_element.text
    button = browser.find("tr[data-vm=plain] [data-do=upgrade]")
    browser.run("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    browser.find("dialog[open]")
    assert browser.run("return document.querySelector('dialog').contains(document.activeElement)")
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.gone("dialog")
    assert browser.run("return document.activeElement === arguments[0]", button)
    for field in ("input", "select", "button"):
        assert all(one.accessible_name for one in browser.all(field) if one.is_displayed()), f"a {field} without a name"


def test_droverd_comes_back(daemon, ui, browser):
    daemon.run("run", "plain", "--", *guest.without_guest("-S"))
    opened(browser, ui)
    daemon.kill(signal.SIGTERM)
    browser.find("#link[data-link=away]", timeout=60)
    daemon.start()
    browser.find("#link[data-link=live]", timeout=60)
    daemon.run("resume", "plain")
    browser.find("tr[data-vm=plain]", "running")


# --- Moves ---

def move(browser, vm, peer, **choices):
    browser.click(f"tr[data-vm={vm.name}] [data-do=migrate]")
    browser.choose("dialog select[name=peer]", peer)
    verdict(browser, "Nothing stands in the way", 120)
    for name, value in choices.items():
        field = f"dialog [name={name}]"
        browser.choose(field, value) if name in ("postcopy", "storage") else browser.type(field, f"{value}\n")
    verdict(browser, "Nothing stands in the way", 120)


def test_a_move_by_clicks(pair, browser):
    """Cancelled once, then by post-copy at the user's word, then seen in the report: all of it from host a."""
    vm = drover.Witness(pair.a, "web1", ram="262152k", mem=64, rate=300)
    with Ui(pair.a) as ui:
        try:
            opened(browser, ui)
            browser.click("[data-peer=b] [data-do=test]")
            browser.find("[data-peer=b]", "round trip", 60)
            pair.link.limit(50)

            move(browser, vm, "b", postcopy="no_postcopy")
            browser.click("dialog button.main")
            browser.find("article.job .track [aria-current=step]", "transfer", 90)
            browser.find("article.job .bar-row", "MiB")
            browser.wait(lambda: browser.all("article.job .plot canvas"), 60, "the plots")
            browser.click("article.job [data-do=cancel]")
            browser.click("dialog button.danger")
            first = pair.job(vm)["id"]
            ended(browser, first, "cancelled")
            assert pair.a.state(vm.name) == "running"

            move(browser, vm, "b", postcopy="postcopy", downtime="1")
            browser.shoot("move-ready")
            browser.click("dialog button.main")
            browser.find("article.job .track [aria-current=step]", "transfer", 90)
            browser.wait(lambda: browser.all("article.job .plot canvas"), 60, "the plots")
            begun = pair.job(vm)["progress"]["bytes_done"]
            wait_until(lambda: pair.job(vm)["progress"]["bytes_done"] > begun + (8 << 20), 60, "something to be in the plots")
            browser.shoot("move-live")
            browser.click("article.job [data-do=postcopy]")
            browser.click("dialog button.main")
            browser.find("article.job .track", "postcopy", 60)
            assert not browser.find("article.job [data-do=cancel]").is_enabled()
            pair.link.heal()
            second = wait_until(lambda: next((job["id"] for job in pair.a.json("jobs") if job["id"] != first), None), 10, "the job")
            assert "moved to b" in ended(browser, second, "succeeded")
            browser.gone("tr[data-vm=web1]")
            assert pair.job(vm)["result"]["postcopy"]
            pair.moved(vm)
            vm.healthy()
            browser.shoot("after-move")
            browser.click(f"tr[data-job='{second}'] a")
            browser.find(f"article[data-job='{second}']", "post-copy")
            browser.shoot("report-move")
            recorded(browser, pair.a, second)
            clean(browser, ui)
        finally:
            pair.link.heal()
            vm.close()


# --- Who is let in ---

class Reply:
    def __init__(self, data):
        head, _, self.body = data.decode("utf-8", "replace").partition("\r\n\r\n")
        lines = head.split("\r\n")
        self.status = int(lines[0].split()[1]) if lines[0] else 0
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}


def raw(ui, data, timeout=30):
    received = b""
    with socket.create_connection(("127.0.0.1", ui.port), timeout) as client:
        client.sendall(data)
        while more := client.recv(65536):
            received += more
    return Reply(received)


def ask(ui, method, target, cookie=None, body="", **headers):
    head = {"Host": f"127.0.0.1:{ui.port}", **({"Cookie": cookie} if cookie else {}),
            **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items() if value is not None)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return raw(ui, ("\r\n".join(lines) + "\r\n\r\n" + body).encode())


def session(ui):
    reply = ask(ui, "GET", ui.url[len(ui.origin):])
    assert reply.status == 200, reply.body
    cookie = reply.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; ")), cookie
    return cookie.split(";")[0]


def test_the_link_opens_once(daemon, ui):
    assert re.fullmatch(r"/\?token=[0-9a-f]{32}", ui.url[len(ui.origin):])
    assert ask(ui, "GET", "/?token=" + "0" * 32).status == 403
    cookie = session(ui)
    again = ask(ui, "GET", ui.url[len(ui.origin):])
    assert again.status == 403 and "has been used" in again.body and "set-cookie" not in again.headers
    assert "has been used" in ask(ui, "GET", ui.url[len(ui.origin):], cookie).body
    home = ask(ui, "GET", "/", cookie)
    assert home.status == 302 and home.headers["location"] == "/ui/"
    assert json.loads(ask(ui, "GET", "/v1/version", cookie).body)["run_dir"] == str(daemon.run_dir)
    code, said = ui.end()
    assert code == 0, said


@pytest.mark.parametrize("target", ["/", "/ui/", "/ui/app.js", "/v1/vms", "/v1/events", "/metrics", "/v1/vms/x/console"])
def test_nothing_without_the_cookie(ui, target):
    assert ask(ui, "GET", target).status == 403
    assert ask(ui, "GET", target, f"drover-{ui.port}=" + "0" * 32).status == 403
    assert ask(ui, "GET", target, f"drover-{ui.port}=").status == 403


def test_foreign_names_and_pages(ui):
    """A name that was made to lead here; a page of another port, which has the same site and so the cookie."""
    cookie, own = session(ui), ui.origin
    for host in ("evil.example", f"evil.example:{ui.port}", "127.0.0.1", f"127.0.0.1:{ui.port + 1}", "", None,
                 f"127.0.0.1:{ui.port}\r\nHost: evil.example"):
        assert ask(ui, "GET", "/v1/vms", cookie, Host=host).status == 403, host
    assert ask(ui, "GET", "/v1/vms", cookie, Host=f"localhost:{ui.port}").status == 200
    assert ask(ui, "GET", "/v1/vms", cookie, Sec_Fetch_Site="same-site").status == 403
    assert ask(ui, "GET", "/v1/vms", cookie, Sec_Fetch_Site="same-origin").status == 200
    for headers in ({}, {"X_Drover": "1"}, {"Origin": own}, {"Origin": "null", "X_Drover": "1"},
                    {"Origin": "http://127.0.0.1:1", "X_Drover": "1"}, {"Origin": f"http://localhost:{ui.port}", "X_Drover": "1"},
                    {"Origin": f"https://127.0.0.1:{ui.port}", "X_Drover": "1"}):
        for method in ("POST", "DELETE"):
            reply = ask(ui, method, "/v1/peers/none", cookie, **headers)
            assert reply.status == 403 and json.loads(reply.body)["remedy"], (method, headers, reply.body)
    reply = ask(ui, "DELETE", "/v1/peers/none", cookie, Origin=own, X_Drover="1")
    assert reply.status == 404 and json.loads(reply.body)["code"] == "not-found"
    assert ask(ui, "OPTIONS", "/v1/vms", cookie, Origin="http://evil.example", Access_Control_Request_Method="POST").status == 403


def test_what_is_handed_on(daemon, ui):
    cookie = session(ui)
    page = ask(ui, "GET", "/ui/", cookie)
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "no-referrer"
    assert ask(ui, "GET", "/ui/", cookie, If_None_Match=page.headers["etag"]).status == 304
    head = ask(ui, "HEAD", "/ui/app.js", cookie)
    assert head.status == 200 and head.body == "" and int(head.headers["content-length"]) > 500
    assert head.headers["content-type"].startswith("text/javascript")
    for target in ("/ui/nothing", "/nothing", "/v2/vms", "//evil.example/v1/vms", "/v1/../../etc/passwd", "/ui/%2e%2e%2fapp.js"):
        assert ask(ui, "GET", target, cookie).status == 404, target
    assert "drover_vms" in ask(ui, "GET", "/metrics", cookie).body
    console = ask(ui, "GET", "/v1/vms/none/console", cookie, Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Version="13",
                  Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==")
    assert console.status != 101 and "upgrade" not in console.headers.get("connection", "").lower()
    refused = ask(ui, "POST", "/v1/upgrade", cookie, body="{}", Origin=ui.origin, X_Drover="1", Content_Type="application/json")
    assert refused.status == 400 and json.loads(refused.body)["code"] == "invalid"


def test_what_is_no_request(ui):
    cookie = session(ui)
    host = f"Host: 127.0.0.1:{ui.port}\r\nCookie: {cookie}\r\nOrigin: {ui.origin}\r\nX-Drover: 1\r\n"
    for data in ("nonsense\r\n\r\n", "GET http://evil.example/ HTTP/1.1\r\n\r\n", f"POST /v1/vms HTTP/1.1\r\n{host}Content-Length: 99999999\r\n\r\n",
                 f"POST /v1/vms HTTP/1.1\r\n{host}Content-Length: -1\r\n\r\n", f"POST /v1/vms HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                 "GET / HTTP/1.1\r\nX: " + "x" * 40000 + "\r\n\r\n"):
        try:
            assert raw(ui, data.encode()).status in (400, 403), data[:60]
        except ConnectionResetError:
            assert len(data) > 32768, "only what was not read to its end may be cut off"
    assert ask(ui, "GET", "/v1/version", cookie).status == 200


def test_a_stream_that_nobody_reads_any_more_is_let_go(daemon, ui):
    """More readers that come and go than droverd has streams, or the proxy threads."""
    cookie = session(ui)
    request = f"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{ui.port}\r\nCookie: {cookie}\r\n\r\n".encode()
    for _ in range(80):
        with socket.create_connection(("127.0.0.1", ui.port), 20) as client:
            client.sendall(request)
            received = b""
            while b"\r\n\r\n:" not in received:
                more = client.recv(4096)
                assert more, received
                received += more
            assert b"200 OK" in received and b"text/event-stream" in received, received
    assert ask(ui, "GET", "/v1/version", cookie).status == 200


# --- The command ---

def test_it_ends_when_droverd_does_not_come_back(daemon):
    with Ui(daemon, "--away", "1") as ui:
        cookie = session(ui)
        daemon.kill(signal.SIGTERM)
        reply = ask(ui, "GET", "/v1/version", cookie)
        assert reply.status == 502 and "not running" in json.loads(reply.body)["detail"]
        code, said = ui.wait(40)
        assert code == 1 and "has been away for 1 s" in said and "remedy" in said, said


def test_usage(daemon, ui):
    assert "port" in daemon.refused("ui", "--no-open", "--port", "70000", code=2)["message"]
    assert "away" in daemon.refused("ui", "--no-open", "--away", "0", code=2)["message"]
    taken = daemon.refused("ui", "--no-open", "--port", ui.port)
    assert "in use" in taken["message"] and "--port" in taken["remedy"]
    daemon.kill(signal.SIGTERM)
    assert "not running" in daemon.refused("ui", "--no-open")["message"]


def test_a_desktops_browser_gets_the_link_by_a_file(daemon, tmp_path):
    """Not by a command line, which every user of the machine sees."""
    opener, seen = tmp_path / "xdg-open", tmp_path / "seen"
    opener.write_text(f"#!/bin/sh\nstat -c %a \"$1\" >{seen}.part\necho \"$1\" >>{seen}.part\ncat \"$1\" >>{seen}.part\nmv {seen}.part {seen}\n")
    opener.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DISPLAY": ":0", "XDG_RUNTIME_DIR": str(tmp_path)}
    process = subprocess.Popen(daemon.argv("ui"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        url = process.stdout.readline().strip()
        wait_until(seen.exists, 20, "xdg-open to be called")
        mode, path, page = seen.read_text().split("\n", 2)
        assert mode == "600" and url in page and "token" not in path
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0 and not os.path.exists(path)
