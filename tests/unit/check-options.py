#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compares src/argv/options.c with real QEMU binaries.

usage: check-options.py DUMP [BINARY...]

DUMP is the test-argv program, whose --dump-options prints the table. Without BINARY: the installed
qemu-system-x86_64 and what tests/tools/fetch-qemu has put into build/qemu/VERSION. Exits with 77 (skipped)
if there is no binary, and passes over one that does not run or whose version has no column in the table.

A QEMU says what it knows without starting anything: it reads all options once before it acts on one, and
stops at the first that it does not know. So with `-NAME -probe1 -probe2` it complains about -probe2 if NAME
takes an argument, about -probe1 if it takes none, about NAME if there is no such option. The other way
round, what a binary has and the table lacks, is read from -help, which leaves a few hidden options out.
"""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COLUMNS = {"5.2": 1, "7.2": 2, "10.0": 4, "11.1": 8}


def run(words):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    return done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def version(binary):
    try:
        found = re.search(r"QEMU emulator version (\d+\.\d+)", run([binary, "--version"])[0])
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.group(1) if found else None


def probe(binary, name):
    """1: takes an argument, 0: takes none, None: is not known."""
    complaint = re.search(r"-(\S+): invalid option", run([binary, "-" + name, "-probe1", "-probe2"])[1])
    if not complaint:
        raise SystemExit(f"{binary} -{name}: no answer to the probe")
    return {"probe2": 1, "probe1": 0}.get(complaint.group(1))


def documented(binary):
    """Names in -help: a line that begins with a dash is an option's own ("-h or -help", "-fda/-fdb file")."""
    names = set()
    for line in run([binary, "-help"])[0].splitlines():
        if line.startswith("-"):
            head = line.split("  ")[0]
            names.add(re.match(r"--?([\w-]+)", head).group(1))
            names.update(re.findall(r"(?:/|or )-([\w-]+)", head.split(" file")[0].split(" or ,")[0]))
    return names


def check(binary, column, table):
    wrong = []
    with ThreadPoolExecutor(4) as pool:
        answers = dict(zip(table, pool.map(lambda name: probe(binary, name), table)))
    for name, (has_arg, versions) in table.items():
        expected = has_arg if versions & column else None
        if answers[name] != expected:
            wrong.append(f"-{name}: the table says {expected}, the binary {answers[name]}")
    wrong += [f"-{name}: in -help but not in the table" for name in sorted(documented(binary) - set(table))]
    return wrong


def default_binaries():
    root = Path(__file__).resolve().parents[2]
    fetched = sorted(root.glob("build/qemu/*/qemu-system-x86_64"))
    return ["qemu-system-x86_64", *map(str, fetched)]


def main():
    table = {}
    for line in run([sys.argv[1], "--dump-options"])[0].splitlines():
        name, has_arg, versions = line.split()
        table[name] = (int(has_arg), int(versions))
    checked = failed = 0
    for binary in sys.argv[2:] or default_binaries():
        found = version(binary)
        if found not in COLUMNS:
            print(f"# {binary}: version {found} is not one of the table's, passed over")
            continue
        wrong = check(binary, COLUMNS[found], table)
        print("\n".join(wrong) if wrong else f"# QEMU {found}: {len(table)} options agree")
        checked += 1
        failed += bool(wrong)
    return 77 if not checked else 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
