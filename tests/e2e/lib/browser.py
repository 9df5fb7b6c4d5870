# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real browser at the dashboard: Debian's chromium, driven as a user would."""

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from .procs import BUILD, Timeout, Unavailable, wait_until

SHOTS = BUILD / "ui"
DESKTOP, PHONE = (1280, 900), (375, 812)


class Ui:
    """drover ui as a process; .url is the link that it printed, .origin what it listens on."""

    def __init__(self, daemon, *options):
        self.process = daemon.spawn("ui", "--no-open", *options)
        self.url = self.process.stdout.readline().strip()
        parts = urlsplit(self.url)
        assert parts.hostname == "127.0.0.1" and parts.query.startswith("token="), self.url or self.process.communicate(timeout=10)
        self.port, self.origin = parts.port, f"http://{parts.netloc}"

    def end(self, timeout=15):
        """As Ctrl-C does; returns the exit code and what it said on stderr."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait(timeout)

    def wait(self, timeout):
        try:
            said = self.process.communicate(timeout=timeout)[1]
        except subprocess.TimeoutExpired:
            raise Timeout(f"drover ui still runs after {timeout} s") from None
        return self.process.returncode, said

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=10)


class Browser:
    """One window. At the end of the with block nothing of it is left."""

    def __init__(self):
        try:
            from selenium import webdriver
        except ImportError:
            raise Unavailable("python3-selenium is not installed") from None
        if not shutil.which("chromium") or not shutil.which("chromedriver"):
            raise Unavailable("chromium and chromium-driver are not installed")
        self.profile = tempfile.mkdtemp(prefix="dr-chromium-", dir="/tmp")
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for word in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", "disable-dev-shm-usage", "no-first-run",
                     "disable-background-networking", "disable-component-update", f"user-data-dir={self.profile}"):
            options.add_argument(f"--{word}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
                                       if hasattr(webdriver, "ChromeService") else _service(shutil.which("chromedriver")))
        self.driver.set_page_load_timeout(60)
        self.size(*DESKTOP)
        self.requests, self.complaints = [], []

    def open(self, url):
        self.driver.get(url)

    # --- What is on the page ---

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def wait(self, condition, timeout=30, what=None):
        """Calls condition() until it gives something; an element that is replaced meanwhile is looked for again."""
        from selenium.common.exceptions import WebDriverException

        def tried():
            try:
                return condition()
            except WebDriverException:
                return None

        return wait_until(tried, timeout, what or (lambda: self.text())(), interval=0.05)

    def find(self, css, text=None, timeout=30):
        """The first one that is shown, with a text in it."""
        def found():
            return next((one for one in self.all(css) if one.is_displayed() and (text is None or text in one.text)), None)

        try:
            return self.wait(found, timeout, f"{css} {text or ''}")
        except Timeout as late:
            raise Timeout(f"{late}; the page says: {self.text()[:2500]}") from None

    def click(self, css, text=None, timeout=30):
        """Clicks as soon as it can be clicked."""
        def ready():
            one = self.find(css, text, 1)
            return one if one.is_enabled() else None

        def tried():
            with contextlib.suppress(Timeout):
                return ready()

        self.wait(tried, timeout, f"{css} {text or ''} to be enabled").click()

    def type(self, css, text):
        field = self.find(css)
        field.clear()
        field.send_keys(text)

    def choose(self, css, value):
        from selenium.webdriver.support.ui import Select

        Select(self.find(css)).select_by_value(value)

    def text(self):
        return self.run("return document.body.innerText")

    def gone(self, css, timeout=30):
        self.wait(lambda: not any(one.is_displayed() for one in self.all(css)), timeout, f"{css} to go")

    def run(self, script, *args):
        return self.driver.execute_script(script, *args)

    # --- How it looks ---

    def size(self, width, height):
        """Of the page itself, as a phone's: a window is never as narrow."""
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})

    def scheme(self, name):
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": name}]})

    def shoot(self, name):
        """Pictures as a desktop and a phone show it, light and dark; nothing on the phone is wider than it."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        for device, (width, height) in (("desktop", DESKTOP), ("phone", PHONE)):
            self.size(width, height)
            for scheme in ("light", "dark"):
                self.scheme(scheme)
                # A plot is drawn anew for another size or scheme: two frames later it is.
                self.driver.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))")
                self._shot(SHOTS / f"{name}-{device}-{scheme}.png", width, height)
            wide = self.run("return [document.documentElement.scrollWidth, document.body.scrollWidth]")
            assert max(wide) <= width, f"{name}: {wide} is wider than {width}"
        self.scheme("light")
        self.size(*DESKTOP)

    def _shot(self, path: Path, width, height):
        """All of the page and not only what fits; a dialog stands in what does."""
        import base64

        full = self.run("return document.querySelector('dialog[open]') ? 0 : document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": max(height, min(full, 6000)), "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(shot["data"]))

    # --- What it did on the network ---

    def _read_logs(self):
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                params = message["params"]
                self.requests.append(params["request"]["url"] if "request" in params else params["url"])
        self.complaints += [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def strange_requests(self, origin):
        """What was asked of anybody but the page's own origin."""
        self._read_logs()
        assert len(self.requests) > 5, self.requests
        return [url for url in self.requests if not url.startswith((f"{origin}/", "data:", "blob:")) and url != "about:blank"
                and not re.match(r"(chrome|devtools)[a-z-]*:", url)]

    def errors(self):
        """What scripts failed at, and what the page's policy refused; not what a droverd does not have (404)."""
        self._read_logs()
        return [line for line in self.complaints if "status of 404" not in line]

    def close(self):
        with contextlib.suppress(Exception):  # a browser that has crashed
            self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _service(path):
    from selenium.webdriver.chrome.service import Service

    return Service(path)
