#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs every test suite and adds up what they say: N passed, N failed, N skipped.

    tests/run.py [--only unit,sanitized,format,pages,model,e2e] [--pytest ARGS...]
"""

import argparse
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"


class Total:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def add(self, suite, passed, failed, skipped, seconds):
        self.passed, self.failed, self.skipped = self.passed + passed, self.failed + failed, self.skipped + skipped
        print(f"  {suite:34} {passed:4} passed {failed:4} failed {skipped:4} skipped  {seconds:6.1f} s", flush=True)


def tap(output):
    """(passed, failed, skipped) of a TAP stream; nested subtests count through their parent."""
    lines = [line for line in output.splitlines() if re.match(r"(not )?ok\b", line)]
    skipped = [line for line in lines if re.search(r"#\s*skip", line, re.I)]
    failed = [line for line in lines if line.startswith("not ok")]
    return len(lines) - len(skipped) - len(failed), len(failed), len(skipped), skipped


def run_program(total, name, argv, timeout=300, env=None):
    """A test program that speaks TAP, or one that just succeeds or fails."""
    begun = time.monotonic()
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, env=env, cwd=ROOT,
                                errors="replace", stdin=subprocess.DEVNULL)
        output, code = result.stdout, result.returncode
        errors = result.stderr
    except subprocess.TimeoutExpired as error:
        output, errors, code = (error.stdout or b"").decode(errors="replace"), f"not done in {timeout} s", 1
    passed, failed, skipped, reasons = tap(output)
    if code == 77 and not passed + failed + skipped:
        skipped, reasons = 1, [(output + errors).strip()]
    elif code and not failed:
        failed = 1
    elif not passed + failed + skipped:
        passed = 1
    total.add(name, passed, failed, skipped, time.monotonic() - begun)
    for reason in reasons:
        print(f"      skipped: {reason.strip()}")
    if failed:
        print(output[-4000:], errors[-4000:], sep="\n")


def programs(build):
    return sorted(path for path in (build / "tests" / "unit").glob("test-*") if path.is_file() and path.stat().st_mode & 0o100)


def build_with(directory, sanitizer):
    # Detached stacks are not available for json-glib's threads; leaks are looked for in the address build.
    if not (directory / "build.ninja").exists():
        subprocess.run(["meson", "setup", directory, f"-Db_sanitize={sanitizer}", "-Db_lundef=false"], cwd=ROOT, check=True,
                       stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", directory], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def unit(total):
    for program in programs(BUILD / "main"):
        run_program(total, f"unit: {program.name[5:]}", [program, "--tap"])


def sanitized(total):
    build_with(BUILD / "asan", "address,undefined")
    env = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "ASAN_OPTIONS": "abort_on_error=0:detect_stack_use_after_return=1",
           "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1", "G_SLICE": "always-malloc", "DROVER_SANITIZED": "1",
           "LSAN_OPTIONS": f"suppressions={ROOT}/tests/lsan.supp:print_suppressions=0"}
    for program in programs(BUILD / "asan"):
        run_program(total, f"address, undefined: {program.name[5:]}", [program, "--tap"], timeout=600, env=env)


def sources():
    listed = subprocess.run(["git", "ls-files", "*.c", "*.h"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    return [name for name in listed if (ROOT / name).exists()]


def format_check(total):
    run_program(total, "format (clang-format)", ["clang-format", "--dry-run", "-Werror", *sources()])
    run_program(total, "SPDX line in every source", ["/usr/bin/python3", "tests/tools/check-spdx"])


def pages(total):
    run_program(total, "manual pages have every option", ["/usr/bin/python3", "tests/tools/check-pages"])


def model(total):
    run_program(total, "model of the switchover (spin)", ["/usr/bin/python3", "tests/tools/check-model"])


def pytest_run(report, words):
    report.unlink(missing_ok=True)
    code = subprocess.run(["/usr/bin/python3", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--tb=short",
                           "--durations=10", f"--junitxml={report}", *words], cwd=ROOT, stdin=subprocess.DEVNULL).returncode
    return code, ElementTree.parse(report).getroot().find("testsuite") if report.exists() else None


def failures(suite):
    """pytest's names of what failed: path::function[parameters]."""
    return [f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}" for case in suite.iter("testcase")
            if case.find("failure") is not None or case.find("error") is not None]


def side_by_side():
    """All of them: two files of tests at a time, as most wait for guests and not for the processor; those with the most in them first."""
    files = sorted((ROOT / "tests" / "e2e").glob("test_*.py"), key=lambda path: -path.stat().st_size)
    return ["-n", "2", "--dist", "loadfile", *(str(path.relative_to(ROOT)) for path in files)]


def e2e(total, extra):
    """These measure real processes on a machine that others may be using: a few that fail are run once more, alone, and both
    results are shown. What fails twice has failed."""
    begun = time.monotonic()
    code, suite = pytest_run(BUILD / "e2e.xml", extra or side_by_side())
    if suite is None:
        total.add("end to end (pytest)", 0, 1, 0, time.monotonic() - begun)
        return
    failed = failures(suite)
    count, skipped = int(suite.get("tests")), int(suite.get("skipped"))
    if 0 < len(failed) <= 12:
        print("once more, alone:", *failed, sep="\n  ", flush=True)
        code, again = pytest_run(BUILD / "e2e-again.xml", failed)
        if again is not None and int(again.get("tests")) >= len(failed):
            failed = failures(again)
    wrong = len(failed) or (1 if code > 1 else 0)
    total.add("end to end (pytest)", count - skipped - len(failed), wrong, skipped, time.monotonic() - begun)


def main():
    parser = argparse.ArgumentParser(description="Runs every test suite.")
    parser.add_argument("--only", default="format,unit,sanitized,pages,model,e2e")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    total = Total()
    for suite in options.only.split(","):
        if suite == "e2e":
            e2e(total, options.pytest)
        else:
            {"unit": unit, "sanitized": sanitized, "format": format_check, "pages": pages, "model": model}[suite](total)
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    sys.exit(1 if total.failed or not total.passed else 0)


if __name__ == "__main__":
    main()
