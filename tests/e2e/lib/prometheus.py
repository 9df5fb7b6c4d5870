# SPDX-License-Identifier: LGPL-2.1-or-later
"""GET /metrics as Prometheus sees it: scrapes, promtool, and a real Prometheus."""

import contextlib
import functools
import json
import re
import shutil
import socket
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from . import api
from .procs import BUILD, Process, run, tool, wait_until

SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')


@functools.cache
def programs():
    """The directory with prometheus and promtool, fetched when needed; Unavailable if they cannot be had."""
    out = BUILD / "prometheus"
    tool("tests/tools/fetch-prometheus", out)
    return out


def promtool(*args, **options):
    return run(programs() / "promtool", *args, check=False, **options)


def _labels(text):
    found = LABEL.findall(text or "")
    assert "".join(f'{name}="{value}",' for name, value in found) == (text + "," if text else ""), text
    return dict(found)


class Scrape:
    """One answer, of which every line was understood and promtool has nothing to say.

    .families: name -> (type, help); .samples: (name, labels as a frozenset of pairs) -> value.
    """

    def __init__(self, text):
        self.text = text
        self.families, self.samples = {}, {}
        for line in text.splitlines():
            self._read(line)
        checked = promtool("check", "metrics", input=text)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", ""), checked

    def _read(self, line):
        if line.startswith("# HELP "):
            name, text = line[7:].split(" ", 1)
            assert name not in self.families, f"{name} comes twice"
            self.families[name] = (None, text)
        elif line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            self.families[name] = (kind, self.families[name][1])
        else:
            name, labels, value = SAMPLE.fullmatch(line).groups()
            key = (name, frozenset(_labels(labels).items()))
            assert self.family(name) == list(self.families)[-1] and key not in self.samples, line
            self.samples[key] = float(value)

    def family(self, name):
        """The family that a sample belongs to."""
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        return base if self.families.get(base, ("",))[0] == "histogram" else name

    def value(self, name, **labels):
        return self.samples[name, frozenset((key, str(value)) for key, value in labels.items())]

    def labels(self, family):
        """The labels of a family's samples, but for a histogram's own."""
        return {key for name, pairs in self.samples if self.family(name) == family for key, _ in pairs} - {"le"}

    def counters(self):
        """What may only rise: counters and all parts of histograms."""
        return {key: value for key, value in self.samples.items() if self.families[self.family(key[0])][0] in ("counter", "histogram")}


def scrape(daemon):
    answer = api.request(daemon.run_dir / "api.sock", "GET", "/metrics")
    assert (answer.status, answer.type) == (200, "text/plain; version=0.0.4; charset=utf-8"), answer
    return Scrape(answer.body.decode())


# --- A real one ---


def _copy(source, to):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
    with contextlib.suppress(OSError):
        to.shutdown(socket.SHUT_WR)


class Forward:
    """A TCP port on loopback that leads to a unix socket: Prometheus speaks TCP only. .port is its number."""

    def __init__(self, path):
        self.path = path
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client, socket.socket(socket.AF_UNIX) as server:
            with contextlib.suppress(OSError):
                server.connect(str(self.path))
                threading.Thread(target=_copy, args=(client, server), daemon=True).start()
                _copy(server, client)

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Prometheus:
    """A Prometheus that scrapes a droverd each second, as the job "drover", under the rules of a file."""

    def __init__(self, daemon, rules):
        self.forward, self.rules = Forward(daemon.run_dir / "api.sock"), Path(rules)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.dir = Path(tempfile.mkdtemp(prefix="dr-prom-", dir="/tmp"))
            stack.callback(shutil.rmtree, self.dir, ignore_errors=True)
            stack.enter_context(self.forward)
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
            config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(self.rules)],
                      "scrape_configs": [{"job_name": "drover", "static_configs": [{"targets": [f"127.0.0.1:{self.forward.port}"]}]}]}
            (self.dir / "config.yml").write_text(json.dumps(config))  # JSON is YAML
            self.process = stack.enter_context(Process(
                [programs() / "prometheus", f"--config.file={self.dir}/config.yml", f"--storage.tsdb.path={self.dir}/data",
                 f"--web.listen-address=127.0.0.1:{self.port}"], self.dir / "log"))
            wait_until(lambda: self._up(), 60, lambda: f"Prometheus to scrape droverd; it said: {self.process.output()[-2000:]}")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *args):
        return self._stack.__exit__(*args)

    def _up(self):
        assert self.process.alive(), self.process.output()[-2000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=10).close()
        except OSError:  # not there, or 503
            return False
        return any(sample["value"][1] == "1" for sample in self.query('up{job="drover"}'))

    def get(self, path, **parameters):
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def query(self, expr):
        return self.get("/api/v1/query", query=expr)["result"]
