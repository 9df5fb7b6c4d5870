# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian packages of the working tree, built once for what it is built from."""

import fcntl
import hashlib
import shutil
from pathlib import Path

from .procs import BUILD, REPO, Unavailable, run


def _state():
    """A number for all that goes into the package."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=REPO).stdout.splitlines()
    state = hashlib.sha256()
    for name in sorted(name for name in listed if not name.startswith(("tests/", "bench/"))):
        path = REPO / name
        if path.is_file():
            state.update(name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]


def build():
    """The path of drover's package."""
    if not shutil.which("dh"):
        raise Unavailable("debhelper is not installed")
    directory, new = BUILD / "deb" / _state(), BUILD / "deb" / "new"
    new.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "deb" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            run(REPO / "packaging" / "build-deb", "--out", new, timeout=1800)
            new.rename(directory)
    return next(directory.glob("drover_*.deb"))


def of_libvirt(package):
    """The path of drover-libvirt, which was built with it."""
    return next(package.parent.glob("drover-libvirt_*.deb"))


def next_version(package, directory):
    """The same package as a later version."""
    tree, later = directory / "tree", directory / "later.deb"
    run("dpkg-deb", "-R", package, tree)
    control = tree / "DEBIAN" / "control"
    before = run("dpkg-deb", "-f", package, "Version").stdout.strip()
    control.write_text(control.read_text().replace(f"\nVersion: {before}\n", f"\nVersion: {before}+later\n"))
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-b", tree, later)
    return later


def unpack(package, directory):
    run("dpkg-deb", "-x", package, directory)
    return Path(directory)
