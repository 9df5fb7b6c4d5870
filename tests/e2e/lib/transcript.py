# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a document says one types and sees: its ```console blocks as steps, and whether what was printed is what it shows.

A line that begins with a prompt ("$ ", "host-a$ ") is a command, with what follows a "\\" at its end or belongs to its here
document; the lines behind it are what it prints. "…" stands for any text, on a line of its own for any lines. In comments:

    <!-- prepare: COMMANDS -->       run before the first block, by lines with prompts; nothing is compared
    <!-- typed: A, B -->             the next block's lines A and B are typed on a terminal, each when all before it is there
    <!-- not run: REASON -->         the next block is shown only

Numbers with a unit, of two or more digits that stand alone (pids), times, and the last part of a version stand for any.
"""

import dataclasses
import re

PROMPT = re.compile(r"(?:(host-[ab]))?\$ (.*)")
HERE = re.compile(r"<<-?'?(\w+)'?")
PIECE = re.compile(r"<!--\s*(prepare|typed|not run):(.*?)-->|^```(\w*)\n(.*?)^```$", re.S | re.M)
TIME, SIZE = r"(?:ms|s|min)", r"(?:bytes|B|kB|MB|GB)"
NUMBER = r"\d[\d,]*(?:\.\d+)?"
# The first that fits counts.
LOOSE = [(re.compile(pattern), to) for pattern, to in (
    (r"…", r".*"),
    (r"(?<=up_ms=)\d+", r"\\d+"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", r"[\\d:. -]+"),
    (r"\d{8}-\d{6}", r"\\d+-\\d+(?:-\\d+)?"),
    (r"\d\d:\d\d:\d\d(?:\.\d+)?", r"[\\d:.]+"),
    (rf"{NUMBER} {TIME}\b", rf"{NUMBER} {TIME}"),
    (rf"{NUMBER} {SIZE}\b", rf"{NUMBER} {SIZE}"),
    (rf"{NUMBER}(?= ?(?:MiB/s|%| days))", NUMBER),
    (r"(?<![\d.])(\d+\.\d+)\.\d+(?![\d.])", None),
    (r"(?<![^\s(])\d\d+(?=[\s,)]|$)", r"\\d+"),
    (r"\s+", r"\\s+"),
)]


@dataclasses.dataclass
class Step:
    """A command of a document, on a host, at a line of the file."""
    host: str
    command: str
    line: int
    shown: list
    typed: tuple = ()
    not_run: str = ""


@dataclasses.dataclass
class Document:
    prepare: list
    steps: list

    @property
    def hosts(self):
        return sorted({step.host for step in self.steps}) or ["host-a"]


def read(text):
    """A document's steps, in order."""
    document, about = Document([], []), {}
    for piece in PIECE.finditer(text):
        comment, words, language, body = piece.groups()
        line = text.count("\n", 0, piece.start()) + 1
        if comment == "prepare":
            document.prepare += steps_of(words.strip(), line)
        elif comment:
            about[comment] = words.strip()
        elif language == "console":
            typed = tuple(word.strip() for word in about.get("typed", "").split(",") if word.strip())
            document.steps += steps_of(body, line + 1, typed=typed, not_run=about.get("not run", ""))
            about = {}
    if about:
        raise ValueError(f"a comment without a block behind it: {about}")
    return document


def steps_of(body, line, **more):
    found, lines = [], body.splitlines()
    while lines:
        begun, first = line, lines.pop(0)
        line += 1
        prompt = PROMPT.match(first)
        if not prompt:
            if not found:
                raise ValueError(f"line {begun}: a block that begins without a prompt: {first!r}")
            found[-1].shown.append(first)
            continue
        command = [prompt[2]]
        here = HERE.search(prompt[2])
        while lines and (command[-1].endswith("\\") or here and command[-1] != here[1]):
            command.append(lines.pop(0))
            line += 1
            here = here or HERE.search(command[-1])
        found.append(Step(prompt[1] or "host-a", "\n".join(command), begun, [], **more))
    return found


def pattern(line):
    """The regular expression of one line of a document."""
    done, at = "", 0
    line = line.strip()
    while at < len(line):
        for loose, to in LOOSE:
            match = loose.match(line, at)
            # Look-behind and look-ahead see the whole line.
            if match and match.end() > at:
                done += re.escape(match[1]) + r"\.\d+" if to is None else to.replace("\\\\", "\\")
                at = match.end()
                break
        else:
            done += re.escape(line[at])
            at += 1
    return done


def pattern_of(lines):
    """That of what is shown behind a command."""
    return "".join(r"(?:.*\n)*?" if line.strip() == "…" else rf"\s*{pattern(line)}[ \t]*\n" for line in lines)


def clean(output):
    """What a terminal would show of it: no escape sequences, no carriage returns, no empty lines at the ends; nor what the shell itself says
    of a background job that was killed, which depends on when it looks."""
    output = re.sub(r"\x1b(?:\[[0-9;?]*[a-zA-Z]|c)", "", output).replace("\r", "")
    output = re.sub(r"^/io/\d+\.command: line \d+: +\d+ Killed.*\n", "", output, flags=re.M)
    return output.strip("\n") + "\n" if output.strip() else ""


def fits(shown, output):
    return re.fullmatch(pattern_of([line for line in shown if line.strip()]), re.sub(r"\n\s*\n+", "\n", clean(output))) is not None
