# SPDX-License-Identifier: LGPL-2.1-or-later
"""What bench/upgrade prints: the machine, the table, the goals, the plot."""

import contextlib
import mmap
import os
import platform
import re
import statistics
import subprocess
from pathlib import Path

from lib import guest


def median(values):
    return statistics.median(values) if values else None


def percentile(values, percent):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * percent / 100))]


def of(runs, how, key):
    return [run[key] for run in runs if run["how"] == how and run.get(key) is not None]


# --- The machine ---

def _first(path, pattern):
    found = re.search(pattern, Path(path).read_text(), re.M)
    return found[1].strip() if found else "?"


def cpu_times():
    """(all, idle, stolen) ticks of all processors since boot."""
    fields = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    return sum(fields), fields[3] + fields[4], fields[7]


def machine(versions):
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return {
        "cpu": _first("/proc/cpuinfo", r"^model name\s*:(.*)"), "cpus": os.cpu_count(),
        "memory_mib": int(_first("/proc/meminfo", r"^MemTotal:\s*(\d+)")) // 1024, "kernel": platform.release(),
        "accelerator": "tcg",
        "qemu": {version: ".".join(map(str, guest.version(guest.qemu(version)))) for version in versions},
        "drover": commit.stdout.strip() or "?", "load": os.getloadavg(),
    }


def machine_lines(info):
    qemus = ", ".join(f"{version} ({full})" for version, full in info["qemu"].items())
    load = "load {:.1f} {:.1f} {:.1f} before".format(*info["load"])
    if "load_after" in info:
        load += ", {:.1f} {:.1f} {:.1f} after".format(*info["load_after"])
        load += f"; processors idle {info['idle']:.0%}, stolen by the host {info['stolen']:.0%} of the time"
    return [f"{info['cpus']} x {info['cpu']}, {info['memory_mib']} MiB, Linux {info['kernel']}, guests under TCG",
            f"QEMU {qemus}, in turn; drover {info['drover']}", load]


# --- The table ---

def _number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _spread(values):
    return f"{_number(median(values))} [{_number(min(values))}-{_number(max(values))}]" if values else "-"


def _pair(runs, key):
    return f"{_number(median(of(runs, 'drover', key)))} / {_number(median(of(runs, 'floor', key)))}"


def own_ms(runs):
    """Of each run under drover: the command's wall time less the median start-up of the same QEMU in this cell."""
    startup = {}
    for run in runs:
        if run.get("startup_ms"):
            startup.setdefault(run["to"], []).append(run["startup_ms"])
    return [run["wall_ms"] - median(startup[run["to"]]) for run in runs if run["how"] == "drover" and run["to"] in startup]


def ratio(runs):
    """drover's pause over its floor, a median for each direction, then their mean: 7.2 and 10.0 differ."""
    ratios = []
    for to in sorted({run["to"] for run in runs}):
        here = [run for run in runs if run["to"] == to]
        ours, floor = median(of(here, "drover", "s2r_ms")), median(of(here, "floor", "s2r_ms"))
        if ours and floor:
            ratios.append(ours / floor)
    return statistics.mean(ratios) if ratios else None


COLUMNS = ["machine", "RAM", "MB/s", "mode", "runs", "pause drover", "pause floor", "floor -S", "ratio", "gap d/f", "total d/f",
           "MB d/f", "extra MB d/f", "wall", "start-up", "own"]


def row(cell):
    runs = cell["runs"]
    memory = {entry["how"]: entry["extra_pss_mib"] for entry in cell.get("memory", [])}
    head = [cell["machine"], str(cell["ram"]), str(cell["rate"]), cell["mode"]]
    if cell.get("error"):
        return head + [f"failed: {cell['error']}"]
    startup = [run["startup_ms"] for run in runs if run.get("startup_ms")]
    found = ratio(runs)
    return head + [
        str(len(of(runs, "drover", "s2r_ms"))), _spread(of(runs, "drover", "s2r_ms")), _spread(of(runs, "floor", "s2r_ms")),
        _spread(of(runs, "floor-S", "s2r_ms")), f"{found:.2f}" if found else "-", _pair(runs, "gap_ms"), _pair(runs, "total_ms"),
        _pair(runs, "mb"), f"{_number(memory.get('drover'))} / {_number(memory.get('floor'))}",
        _spread(of(runs, "drover", "wall_ms")), _number(median(startup)), _number(median(own_ms(runs)))]


def table(cells):
    rows = [COLUMNS] + [row(cell) for cell in cells]
    full = [entry for entry in rows if len(entry) == len(COLUMNS)]
    widths = [max(len(entry[i]) for entry in full) for i in range(len(COLUMNS))]
    for entry in rows:
        for i in range(min(4, len(entry))):
            widths[i] = max(widths[i], len(entry[i]))
    lines = ["  ".join(text.ljust(width) for text, width in zip(entry, widths)).rstrip() for entry in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


LEGEND = """\
Each figure is a median [smallest-largest]; d/f: drover / floor. The floor is the bare QMP sequence without drover (tests/e2e/lib/bare.py),
in the same run, in turn, on a twin of the guest; its destination starts by itself. "floor -S": with -S and cont, as a manager must do
that is to be safe. ratio: pause over floor, each direction for itself. All times in ms.
pause     source STOP to destination RESUME, by QEMU's own time stamps
gap       longest silence of the guest's ticks (1 ms apart), seen from outside: with TCG the new process translates all code anew
total     drover: the job from preflight to commit; floor: from spawning the new QEMU until the old one is gone
MB        what the source sent
extra MB  Pss of both QEMUs together (each page once), peak less before; one run of its own, for sampling takes time
wall      of the command `drover upgrade`; start-up: spawn of a new QEMU to its first QMP answer, in the floor's runs; own: wall less start-up"""


# --- The goals ---

def goals(cells):
    """(what, what was found, reached or None where it was not measured), in the order of the issue."""
    good = [cell for cell in cells if not cell.get("error")]
    shared = [cell for cell in good if cell["mode"] == "shared"]
    found = []

    def judge(what, values, limit, unit="", strict=False):
        """values: (figure, of which cell)."""
        values = [(value, name) for value, name in values if value is not None]
        if not values:
            found.append((what, "not measured", None))
            return
        over = [entry for entry in values if entry[0] > limit or (strict and entry[0] >= limit)]
        worst = max(values)
        found.append((what, f"worst {_number(worst[0])}{unit} ({worst[1]}), {len(values) - len(over)} of {len(values)} cells within",
                      not over))

    def name(cell):
        return f"{cell['machine']} {cell['ram']} MB {cell['rate']} MB/s {cell['mode']}"

    judge("shared: pause at most 1.25 x its floor", [(ratio(cell["runs"]), name(cell)) for cell in shared], 1.25)
    both = []
    for kind in sorted({cell["machine"] for cell in shared}):
        ends = {(cell["ram"], cell["rate"]): median(of(cell["runs"], "drover", "s2r_ms")) for cell in shared if cell["machine"] == kind}
        if ends.get((256, 0)) and ends.get((4096, 300)):
            both.append((ends[4096, 300] / ends[256, 0], f"{kind}: {_number(ends[256, 0])} to {_number(ends[4096, 300])} ms"))
    judge("shared: pause grows by less than a third, 256 MB idle to 4 GB at 300 MB/s", both, 4 / 3, " x", strict=True)
    for mode in ("shared", "postcopy"):
        judge(f"{mode}: extra memory below 64 MB",
              [(entry["extra_pss_mib"], name(cell)) for cell in good if cell["mode"] == mode
               for entry in cell.get("memory", []) if entry["how"] == "drover"], 64, " MB", strict=True)
    judge("shared: command's wall time at most start-up + 150 ms", [(median(own_ms(cell["runs"])), name(cell)) for cell in shared],
          150, " ms")
    return found


def goal_lines(found):
    marks = {True: "reached", False: "NOT REACHED", None: "-"}
    width = max(len(what) for what, _, _ in found)
    return [f"{what.ljust(width)}  {marks[reached]:11}  {text}" for what, text, reached in found]


# --- The plot ---

COLOURS = {"shared": "#1b7837", "postcopy": "#b35806", "copy": "#542788"}


def plot(cells, stem, caption):
    """Pauses of drover and its floor, a panel for each machine type; returns the paths written."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.ticker
    from matplotlib import pyplot

    good = [cell for cell in cells if not cell.get("error") and cell["runs"]]
    machines = list(dict.fromkeys(cell["machine"] for cell in good))
    if not machines:
        return []
    places = sorted({(cell["ram"], cell["rate"]) for cell in good})
    figure, axes = pyplot.subplots(1, len(machines), figsize=(1.5 + 4.2 * len(machines), 4.8), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], machines):
        for number, mode in enumerate(mode for mode in COLOURS if any(cell["mode"] == mode for cell in good)):
            chosen = [cell for cell in good if cell["machine"] == kind and cell["mode"] == mode]
            for how, fill, shift in (("drover", COLOURS[mode], -0.06), ("floor", "white", 0.06)):
                points = [(places.index((cell["ram"], cell["rate"])), of(cell["runs"], how, "s2r_ms")) for cell in chosen]
                points = [(x + shift + (number - 1) * 0.22, values) for x, values in points if values]
                if not points:
                    continue
                middle = [median(values) for _, values in points]
                axis.errorbar([x for x, _ in points], middle, fmt="o" if how == "drover" else "D", ms=6, mfc=fill, capsize=2,
                              yerr=[[m - min(values) for m, (_, values) in zip(middle, points)],
                                    [max(values) - m for m, (_, values) in zip(middle, points)]],
                              mec=COLOURS[mode], ecolor=COLOURS[mode], elinewidth=0.8, label=f"{mode}, {how}")
        axis.set_title(kind)
        axis.set_yscale("log")
        for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            which(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "125" else ""))
        axis.set_xlim(-0.6, len(places) - 0.4)
        axis.set_xticks(range(len(places)), [f"{ram // 1024} GB\n{rate}" if ram >= 1024 else f"{ram} MB\n{rate}" for ram, rate in places])
        axis.grid(axis="y", which="major", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_xlabel("RAM, MB/s dirtied")
    axes[0][0].set_ylabel("pause: source STOP to destination RESUME, ms")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncol=6, frameon=False, fontsize="small")
    figure.text(0.01, 0.01, caption, fontsize=6.5, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 0.93))
    paths = [Path(f"{stem}.svg"), Path(f"{stem}.png")]
    for path in paths:
        figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return paths


REPORTING = Path("/sys/module/page_reporting/parameters/page_reporting_order")


@contextlib.contextmanager
def kept_memory(size):
    """In a virtual machine that gives free pages back to its host, a page costs ten times as much the next time: a benchmark would measure
    who ran last. So nothing is given back meanwhile, and `size` bytes are had from the host before."""
    before = None
    if os.access(REPORTING, os.W_OK):
        before = REPORTING.read_text()
        for order in ("11", "10"):  # above the greatest there is; some kernels refuse that
            with contextlib.suppress(OSError):
                REPORTING.write_text(order)
                break
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass
    try:
        yield
    finally:
        if before is not None:
            REPORTING.write_text(before)
