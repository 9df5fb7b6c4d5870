# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every end-to-end test gets: a droverd of its own, and a skip with its reason where a part cannot be had."""

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lib import drover, libvirt  # noqa: E402
from lib.procs import Unavailable  # noqa: E402


def pytest_configure(config):
    """A run that is told to end cleans up as one that is interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup(item):
    yield from skip_unavailable()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    yield from skip_unavailable()


def skip_unavailable():
    outcome = yield
    if outcome.excinfo and isinstance(outcome.excinfo[1], Unavailable):
        pytest.skip(str(outcome.excinfo[1]))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what droverd said, and libvirtd."""
    outcome = yield
    report = outcome.get_result()
    if not report.failed:
        return
    arguments = getattr(item, "funcargs", {})
    host = arguments.get("host")
    daemon = arguments.get("daemon") or getattr(host, "daemon", None)
    if daemon:
        report.sections.append(("droverd's log", daemon.log()[-6000:]))
    if isinstance(host, libvirt.LibvirtHost):
        report.sections.append(("libvirtd's log", host.log()))


@pytest.fixture
def daemon():
    with drover.Daemon() as started:
        yield started
