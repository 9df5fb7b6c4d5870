#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command of the tutorials and how-tos is run as it stands there, on hosts of their own, and prints what is shown.

    tests/e2e/test_docs.py docs/tutorial/first-upgrade.md      # as a program: prints what a document's commands print today
"""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lib import drover, guest, transcript, world  # noqa: E402
from lib.procs import REPO  # noqa: E402

RUN = sorted(path.relative_to(REPO) for folder in ("tutorial", "howto") for path in (REPO / "docs" / folder).glob("*.md"))
ALL = sorted(path.relative_to(REPO) for path in [REPO / "README.md", *(REPO / "docs").rglob("*.md")])
NOT_RUN_AT_MOST = 4
STEP_S = 120


def read(path):
    return transcript.read((REPO / path).read_text())


def prepare(hosts, document):
    """What a document asks for itself. Its commands find the test guest's files in GUEST, as those of a tutorial would make them."""
    guest.qemu("10.0")
    for host in hosts.values():
        must(host, f"GUEST={guest.build()}")
    for step in document.prepare:
        must(hosts[step.host], step.command)


def must(host, command):
    code, output = host.run(command, STEP_S)
    assert code == 0, f"{host.name}$ {command}\nexit {code}: {output}"
    return output


def run(hosts, step):
    """Returns (exit status, output)."""
    host = hosts[step.host]
    if not step.typed:
        return host.run(step.command, STEP_S)
    steps, before = [], []
    for line in step.shown:
        if line in step.typed:
            steps.append([transcript.pattern_of(before) or ".", {"^]": "\x1d"}.get(line, line + "\r")])
            before = []
        else:
            before.append(line)
    (host.io / "steps").write_text(json.dumps(steps))
    command = step.command.replace("'", "'\\''")
    return host.run(f"/usr/bin/python3 {REPO}/tests/e2e/lib/typed.py /io/steps '{command}'", STEP_S)


def shown(step):
    """What is printed: the test guest does not echo what is typed."""
    return [line for line in step.shown if line not in step.typed]


def failure(path, step, code, output):
    return (f"{path}:{step.line}: {step.host}$ {step.command}\nexit status {code}; shown:\n" + "\n".join(step.shown) +
            f"\nprinted:\n{transcript.clean(output)}")


def plays(hosts, document, told):
    """Runs all of it; told(step, following, code, output) for each."""
    for step, following in zip(document.steps, [*document.steps[1:], None]):
        if not step.not_run:
            told(step, following, *run(hosts, step))


def guests_are_well(hosts):
    """None of the test's guests that still run has seen a wrong page, a wrong block or another boot."""
    for host in hosts.values():
        for name in host.run("drover list -o name")[1].split():
            said = host.run(f"timeout 2 drover console {name} </dev/null")[1]
            assert not guest.BAD_OUTPUT.search(said.encode()), said


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_every_command_of_a_document_does_what_is_shown(path):
    document = read(path)

    def told(step, following, code, output):
        # Whoever shows a command that fails shows its exit status, too.
        assert output.count("WITNESS READY") <= 1, f"the guest has booted again: {output}"
        expected_to_fail = following is not None and following.command == "echo $?"
        assert (code == 0 or expected_to_fail) and transcript.fits(shown(step), output), failure(path, step, code, output)

    with world.world(document.hosts) as hosts:
        prepare(hosts, document)
        plays(hosts, document, told)
        guests_are_well(hosts)


def test_few_commands_are_not_run_and_each_says_why():
    left_out = {f"{path}:{step.line}": step.not_run for path in RUN for step in read(path).steps if step.not_run}
    assert len(left_out) <= NOT_RUN_AT_MOST, left_out
    assert all(len(reason) > 20 for reason in left_out.values()), left_out


def test_each_document_has_commands():
    """A block in another language, or indented, would be shown and not run."""
    for path in RUN:
        assert read(path).steps, path
        for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", (REPO / path).read_text(), re.S | re.M):
            assert language == "console" or not re.search(r"^(host-[ab])?\$ ", body, re.M), f"{path}: {body}"


# --- That the comparison can fail ---


@pytest.mark.parametrize("shown, printed, fit", [
    (["web1: paused 4.1 ms, 0.6 MB moved"], "web1: paused 12 ms, 1,234 kB moved\n", True),
    (["web1: took 950 ms"], "web1: took 1.2 s\n", True),
    (["QEMU 7.2.22, pid 4711"], "QEMU 7.2.9, pid 58\n", True),
    (["web1  running  4711  7.2.22  pc-q35-7.2"], "web1  running  58   7.2.22  pc-q35-7.2\n", True),
    (["…", "last"], "one\ntwo\nlast\n", True),
    (["…", "last"], "last\n", True),
    (["made …"], "made in 2026-03-14 15:09:26\n", True),
    ([], "", True),
    (["web1: paused 4.1 ms"], "web2: paused 4.1 ms\n", False),
    (["QEMU 7.2.22"], "QEMU 10.0.2\n", False),
    (["web1: stopped"], "web1: stopped\nand more\n", False),
    (["web1: stopped", "and more"], "web1: stopped\n", False),
    (["…", "last"], "last\nbut not quite\n", False),
    (["pc-q35-7.2"], "pc-q35-10.0\n", False),
    (["1"], "2\n", False),
    ([], "something\n", False),
    (["192.0.2.1"], "192.0.2.2\n", False),
])
def test_what_is_shown_fits_what_is_printed(shown, printed, fit):
    assert transcript.fits(shown, printed) == fit


def test_steps_are_read_from_a_document():
    document = transcript.read("<!-- prepare:\nhost-b$ one\n-->\ntext `$ no`\n```console\n$ a \\\n  b\nsaid\n$ cat <<'EOF'\n$ not a command\nEOF\n```\n"
                               "```ini\n$ no\n```\n<!-- not run: because -->\n```console\nhost-b$ c\n```\n")
    assert [(step.host, step.command) for step in document.prepare] == [("host-b", "one")]
    assert [(step.host, step.command, step.shown, step.not_run) for step in document.steps] == [
        ("host-a", "a \\\n  b", ["said"], ""), ("host-a", "cat <<'EOF'\n$ not a command\nEOF", [], ""), ("host-b", "c", [], "because")]
    assert document.steps[0].line == 6 and document.hosts == ["host-a", "host-b"]


# --- What is written in the text ---


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def code_spans(text):
    """Commands of drover in the text and in indented blocks, not those of console blocks, which are run."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    spans = re.findall(r"`([^`\n]+)`", text) + [line.strip() for line in re.findall(r"^ {4}.*$", text, re.M)]
    return [part.strip() for span in spans for part in re.split(r"&&|;|\||#", span) if re.match(r"drover [a-z]", part.strip())]


def known_options():
    """{verb: what `drover help VERB` prints}"""
    overview = subprocess.run([drover.DROVER, "--help"], capture_output=True, text=True, check=True).stdout
    table = re.search(r"^Verbs:\n((?: .*\n)+)", overview, re.M)[1]
    verbs = [line.split()[0] for line in table.splitlines()]
    return {verb: subprocess.run([drover.DROVER, "help", verb], capture_output=True, text=True).stdout for verb in verbs if verb != "help"}


def test_every_command_in_the_text_exists_with_its_options():
    helps = known_options()
    assert "upgrade" in helps and "--check" in helps["upgrade"]
    wrong, looked_at = [], 0
    for path in ALL:
        for span in code_spans((REPO / path).read_text()):
            own, _, _ = span.partition(" -- ")
            words = own.split()
            looked_at += 1
            if words[1] == "help":
                continue
            if words[1] not in helps:
                wrong.append(f"{path}: there is no verb in `{span}`")
                continue
            options = set(OPTION.findall(own)) - {"--json", "--connect", "--no-color", "--verbose", "--help"}
            wrong += [f"{path}: {option} is unknown: `{span}`" for option in options if option not in helps[words[1]]]
    assert not wrong, "\n".join(wrong)
    assert looked_at > 50


def anchors(text):
    """GitHub's names of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere():
    wrong = []
    for path in ALL:
        text = re.sub(r"^```.*?^```$", "", (REPO / path).read_text(), flags=re.S | re.M)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            there = (REPO / path).parent / name if name else REPO / path
            if not there.exists():
                wrong.append(f"{path}: {target} does not exist")
            elif anchor and anchor not in anchors(there.read_text()):
                wrong.append(f"{path}: {target} has no such heading")
    assert not wrong, "\n".join(wrong)


def test_the_index_has_every_document():
    index = (REPO / "docs" / "README.md").read_text()
    missing = [str(path) for path in ALL if path.parts[0] == "docs" and path != Path("docs/README.md") and
               f"({path.relative_to('docs')})" not in index and not any(f"({parent}/)" in index for parent in path.relative_to("docs").parents)]
    assert not missing, missing


# --- The reference ---


def test_the_reference_has_every_manual_page_and_its_links_lead_somewhere():
    pages = sorted((REPO / "man").glob("*.scd"))
    made = subprocess.run([REPO / "docs" / "reference" / "make", *pages], capture_output=True, text=True, check=True).stdout
    tree = ElementTree.fromstring(made.removeprefix("<!DOCTYPE html>\n"))
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert {path.stem for path in pages} <= set(ids)
    targets = {element.get("href") for element in tree.iter("a")}
    assert len(targets) >= len(pages) and not {target for target in targets if target[1:] not in ids}
    assert not re.search(r"(?:src|href)=\"(?!#)", made), "it refers to something outside itself"
    text = "".join(tree.itertext())
    for name, words in (("drover-upgrade", "--memory auto|shared|copy|postcopy"), ("droverd.conf", "transports=NAME;..."), ("drover", "drover-migrate-setspeed(1)")):
        assert words in text, f"{name}: {words}"
    assert not re.search(r"\*--|\\_", text), "markup was left"


def main():
    """For whoever writes: what the commands print today."""
    for name in sys.argv[1:]:
        document = read(Path(name).resolve().relative_to(REPO))

        def told(step, _, code, output):
            mark = "  " if transcript.fits(shown(step), output) else "! "
            print(f"{mark}{step.host}$ {step.command}\n{transcript.clean(output)}" + (f"-> exit status {code}\n" if code else ""), flush=True)

        with world.world(document.hosts) as hosts:
            prepare(hosts, document)
            plays(hosts, document, told)
            guests_are_well(hosts)


if __name__ == "__main__":
    main()
