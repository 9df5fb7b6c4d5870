# SPDX-License-Identifier: LGPL-2.1-or-later
"""Completion of the command line: a real bash and a real zsh on a terminal, a real droverd behind them, and a droverd that hangs."""

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import time

import pytest

from lib import drover, guest
from lib.procs import REPO, Unavailable, kill_pid, run, wait_until

COMPLETIONS = REPO / "packaging" / "completions"

BASH = r"""
PS1='READY> '
bind 'set completion-query-items 0' 'set page-completions off' 'set bell-style none' 2>/dev/null
bind 'set enable-bracketed-paste off'
[ -z "$LOADER" ] || . "$LOADER"
. "$COMPLETIONS/drover.bash"
probe() { _drover "$@"; printf '%s\n' "${COMPREPLY[@]}" >"$OUT.new"; mv "$OUT.new" "$OUT"; }
[ -n "$LOADER" ] || complete -F probe drover
show() { printf '%s' "$READLINE_LINE" >"$LINE.new"; mv "$LINE.new" "$LINE"; READLINE_LINE=; READLINE_POINT=0; }
bind -x '"\C-g": show'
"""

ZSH = r"""
PS1='READY> '
unsetopt beep
setopt no_list_beep interactive_comments
zstyle ':completion:*' list-prompt ''
fpath=("$COMPLETIONS" $fpath)
autoload -Uz compinit && compinit -u -D
bindkey '^I' complete-word
compadd() {
  local -a hits
  builtin compadd -A hits "$@"
  print -rl -- $hits >>"$OUT.new"
  builtin compadd "$@"
}
show() { [[ -e $OUT.new ]] && mv "$OUT.new" "$OUT"; print -rn -- "$BUFFER" >"$LINE.new"; mv "$LINE.new" "$LINE"; BUFFER=; }
zle -N show
bindkey '^G' show
"""


class Shell:
    """An interactive shell on a terminal, whose line is typed into and read back."""

    def __init__(self, kind, directory, env, loader=""):
        self.kind, self.dir = kind, directory
        self.out, self.line = directory / "out", directory / "line"
        directory.mkdir(exist_ok=True)
        (directory / "rc").write_text(BASH if kind == "bash" else ZSH)
        program = shutil.which(kind)
        if not program:
            raise Unavailable(f"there is no {kind}")
        argv = [program, "--noprofile", "--norc", "-i"] if kind == "bash" else [program, "-f", "-i"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("DROVER_", "BASH", "ZSH"))}
        environ |= {"TERM": "vt100", "OUT": str(self.out), "LINE": str(self.line), "COMPLETIONS": str(COMPLETIONS), "LOADER": loader,
                    "PATH": f"{drover.DROVER.parent}:{os.environ['PATH']}", "HOME": str(directory), "LC_ALL": "C.UTF-8", "COLUMNS": "200"}
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(directory)
            os.execve(program, argv, environ | env)
        self.seen = b""
        self.type(". ./rc\r")
        self.wait_for(b"READY> ")

    def type(self, text):
        os.write(self.fd, text.encode())

    def wait_for(self, text, timeout=20):
        end = time.monotonic() + timeout
        while text not in self.seen:
            if not select.select([self.fd], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError(f"{self.kind} did not print {text}: {self.seen[-2000:]}")
            self.seen += os.read(self.fd, 65536)

    def complete(self, line, timeout=20):
        """What the shell offers for the last word, and the line as it is after one TAB."""
        for path in (self.out, self.line, self.out.with_name("out.new")):
            path.unlink(missing_ok=True)
        self.type(line + "\t")
        self.type("\x07")
        end = time.monotonic() + timeout
        while not self.line.exists():
            if select.select([self.fd], [], [], 0.02)[0]:
                self.seen += os.read(self.fd, 65536)
            assert time.monotonic() < end, f"{self.kind} did not complete '{line}': {self.seen[-2000:]}"
        words = self.out.read_text().splitlines() if self.out.exists() else []
        return [word for word in dict.fromkeys(words) if word], self.line.read_text()  # zsh adds some twice

    def close(self):
        kill_pid(self.pid, sig=signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture(params=["bash", "zsh"])
def shell(request, tmp_path):
    """Starts shells against a droverd (or any socket); closed at the end."""
    opened = []

    def start(where, **options):
        opened.append(Shell(request.param, tmp_path / request.param, {"DROVER_CONNECT": f"unix:{where}"}, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def api_socket(daemon):
    return daemon.run_dir / "api.sock"


def verbs():
    table = re.search(r"^Verbs:\n((?: .*\n)+)", run(drover.DROVER, "--help").stdout, re.M)[1]
    return [line.split()[0] for line in table.splitlines()]


# --- What drover offers ---


def offered(*words, env=None):
    """Candidates with what is said about them; ":files" and such among them."""
    done = subprocess.run([drover.DROVER, "__complete", *words], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL,
                          env={k: v for k, v in os.environ.items() if not k.startswith("DROVER_")} | (env or {"DROVER_CONNECT": "unix:/no/such"}))
    assert (done.returncode, done.stderr) == (0, ""), done
    return dict(line.split("\t", 1) if "\t" in line else (line, "") for line in done.stdout.splitlines())


def options_in(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(re.findall(r"^  +(-.*?)(?:  |$)", text, re.M))))


@pytest.mark.parametrize("verb", verbs())
def test_each_verb_and_each_of_its_options_is_offered(verb):
    assert verb in offered("") and verb in offered(verb[:-1])
    if verb == "help":
        assert set(verbs()) - {"help"} == set(offered("help", ""))
        return
    told = options_in(run(drover.DROVER, "help", verb).stdout)
    found = set(offered(verb, "--"))
    subverbs = [word for word in offered(verb, "") if word.islower() and not word.startswith(":")]
    for sub in subverbs:
        found |= set(offered(verb, sub, "--"))
    assert found == told, f"missing {told - found}, too many {found - told}"
    assert "--help" in found and all(word.startswith("--js") for word in offered(verb, "--js"))


@pytest.mark.parametrize("words, want", [
    (("lis",), {"list"}), (("--",), {"--connect", "--json", "--no-color", "--verbose", "--version", "--help"}),
    (("--json", "lis"), {"list"}), (("--connect", "unix:/x", "lis"), {"list"}), (("nosuch", ""), set()), (("help", "snap"), {"snapshot"}),
    (("disk", ""), {"list", "show", "copy", "pivot", "abort", "bandwidth", "pull"}), (("disk", "co"), {"copy"}),
    (("disk", "copy", "vm", "d", "t", "--sync="), {"--sync=full", "--sync=top"}), (("disk", "copy", "--sync", "f"), {"full"}),
    (("disk", "copy", "--sync", "full", "--sy"), {"--synchronous-writes"}), (("disk", "pull", "--sync"), set()),
    (("disk", "copy", "vm", "d", ""), {":files"}), (("disk", "copy", "--format", ""), {"qcow2", "raw"}),
    (("upgrade", "--memory", ""), {"auto", "shared", "copy", "postcopy"}), (("upgrade", "-m", "po"), {"postcopy"}),
    (("migrate", "--compress", "z"), {"zstd", "zlib"}), (("run", ""), set()), (("run", "vm", "--", "qemu", ""), {":files"}),
    (("peer", "add", ""), set()), (("pki", "issue", "--out", ""), {":dirs"}), (("pki", "show", ""), {":files"}),
    (("adopt", "vm", "--qmp", ""), {":files"}), (("list", "-o", "st"), {"state"}), (("list", "-o", "name,st"), {"name,state"}),
    (("list", "--output=js"), {"--output=json"}), (("snapshot", "list", "vm", "-o", "cr"), {"created"}), (("console", "--", "-"), set()),
])
def test_what_stands_where(words, want):
    assert set(offered(*words)) == want


@pytest.mark.parametrize("words", [(), ("",), ("\x1b[31m",), ("é" * 5000,), ("--connect",), ("--connect", ""), ("disk", "copy", "--", "--"),
                                   ("list", "-o", ","), ("qmp", "no/such\nname", ""), ("--", ""), ("help",), ("-",), ("run", "--", "--", "")])
def test_odd_lines_do_no_harm(words):
    offered(*words)


# --- In a shell ---


def test_a_shell_completes_words_of_the_table(shell, tmp_path):
    here = shell("/no/such")
    words, line = here.complete("drover snap")
    assert words == ["snapshot"] and line == "drover snapshot "
    words, line = here.complete("drover snapshot ")
    assert set(words) == {"create", "list", "show", "revert", "merge", "delete"} and line.rstrip() == "drover snapshot"
    words, line = here.complete("drover disk copy --sync=f")
    assert line == "drover disk copy --sync=full "
    words, line = here.complete("drover list -o name,sta")
    assert line == "drover list -o name,state "
    words, line = here.complete("drover upgrade --mem")
    assert line == "drover upgrade --memory "
    (here.dir / "image one.qcow2").touch()
    (here.dir / "directory").mkdir()
    _, line = here.complete("drover pki show ima")
    assert line == r"drover pki show image\ one.qcow2 "
    _, line = here.complete("drover adopt x --qmp=ima")
    assert line == r"drover adopt x --qmp=image\ one.qcow2 "
    _, line = here.complete("drover pki issue h --out d")
    assert line.rstrip() == "drover pki issue h --out directory/"


def test_a_shell_completes_what_droverd_has(daemon, shell, tmp_path):
    for name in ("disk.qcow2", "db.qcow2"):
        run("qemu-img", "create", "-q", "-f", "qcow2", tmp_path / name, "8M")
    for name, image in (("web1", "disk.qcow2"), ("web2", None), ("db", "db.qcow2")):
        disk = ("-drive", f"file={tmp_path / image},if=none,id=root,format=qcow2", "-device", "virtio-blk-pci,drive=root,id=vda") if image else ()
        daemon.run("run", name, "--", *guest.without_guest(), *disk)
    daemon.run("pause", "web2")
    daemon.run("peer", "add", "host2", "192.0.2.7")
    daemon.run("bitmap", "add", "web1", "vda", "daily")
    daemon.run("snapshot", "create", "db", "--name", "before", "--description", "before the change")
    here = shell(api_socket(daemon))

    words, line = here.complete("drover show w")
    assert set(words) == {"web1", "web2"} and line == "drover show web"
    assert here.complete("drover show d")[1] == "drover show db "
    assert set(here.complete("drover pause web1 ")[0]) == {"web2", "db"}
    assert set(here.complete("drover migrate web1 ")[0]) == {"web2", "db", "host2"}
    assert here.complete("drover peer test h")[1] == "drover peer test host2 "
    assert here.complete("drover disk show web1 ")[1] == "drover disk show web1 vda "
    assert here.complete("drover snapshot revert db ")[1] == "drover snapshot revert db before "
    assert here.complete("drover bitmap remove web1 vda d")[1] == "drover bitmap remove web1 vda daily "
    assert here.complete("drover qmp web1 query-stat")[0][0].startswith("query-stat")
    assert "query-status" in here.complete("drover qmp web1 query-st")[0]
    job = daemon.json("jobs")[0]["id"]
    assert job in here.complete("drover job ")[0] and here.complete("drover cancel ")[0] == []
    assert here.complete(f"drover --connect unix:{api_socket(daemon)} console we")[1].endswith("console web")
    assert str(daemon.show("web1")["pid"]) in here.complete("drover adopt x --pid ")[0]

    env = {"DROVER_CONNECT": f"unix:{api_socket(daemon)}"}
    assert offered("show", "web2", env=env)["web2"].startswith("paused, QEMU ")
    assert offered("snapshot", "show", "db", "", env=env) == {"before": "before the change"}
    assert offered("backup", "", env=env).keys() >= {"serve", "finish", "list", "web1", "db"}
    assert offered("--connect=unix:/no/such", "show", "", env=env) == {}


def test_bash_completion_loads_it_by_its_name(tmp_path, daemon):
    """As installed: below share/bash-completion/completions, found by the package bash-completion."""
    loader = "/usr/share/bash-completion/bash_completion"
    if not os.path.exists(loader):
        raise Unavailable("the package bash-completion is not installed")
    daemon.run("run", "web1", "--", *guest.without_guest())
    run("meson", "install", "-C", drover.BIN, "--destdir", tmp_path / "root", "--no-rebuild")
    there, = (tmp_path / "root").glob("usr*/**/bash-completion/completions/drover")
    zsh, = (tmp_path / "root").glob("usr*/**/site-functions/_drover")
    assert there.read_text() == (COMPLETIONS / "drover.bash").read_text() and zsh.read_text() == (COMPLETIONS / "_drover").read_text()
    script = (f'. {loader}; COMP_LINE="drover show w" COMP_POINT=13 COMP_WORDS=(drover show w) COMP_CWORD=2; _completion_loader drover; '
              '[[ $(complete -p drover) == *_drover* ]] && _drover drover w show; printf "%s\\n" "${COMPREPLY[@]}"')
    done = run("bash", "--norc", "-c", script, env={**os.environ, "BASH_COMPLETION_USER_DIR": str(there.parents[1]), "DROVER_CONNECT": f"unix:{api_socket(daemon)}",
                                                   "PATH": f"{drover.DROVER.parent}:{os.environ['PATH']}"})
    assert done.stdout == "web1\n", done


# --- droverd hangs ---


def in_time(call):
    begun = time.monotonic()
    result = call()
    assert time.monotonic() - begun < 3, "it took too long for one who types"  # 1 s, on a loaded machine
    return result


def test_a_droverd_that_hangs_does_not_hang_the_shell(daemon, shell):
    here = shell(api_socket(daemon))
    daemon.process.popen.send_signal(signal.SIGSTOP)
    try:
        assert in_time(lambda: here.complete("drover show "))[0] == []
        # What needs no droverd is there, although it is asked as well.
        assert set(in_time(lambda: here.complete("drover backup "))[0]) == {"serve", "finish", "list"}
    finally:
        daemon.process.popen.send_signal(signal.SIGCONT)


def test_a_socket_that_drips_ends_in_time(tmp_path):
    """Each byte comes soon enough for any timeout of one read."""
    path = tmp_path / "s"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        ask = subprocess.Popen([drover.DROVER, "__complete", "show", ""], env={**os.environ, "DROVER_CONNECT": f"unix:{path}"},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        begun = time.monotonic()
        connection, _ = listener.accept()
        with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n[")
            while ask.poll() is None and time.monotonic() - begun < 10:
                connection.sendall(b" ")
                time.sleep(0.05)
        assert ask.communicate(timeout=5) == (b"", b"") and ask.returncode == 0
        assert time.monotonic() - begun < 3


def test_what_is_no_droverd_says_nothing(tmp_path):
    for where in ("unix:/dev/null", "unix:/", "tcp:x", f"unix:{'x' * 200}"):
        assert offered("show", "", env={"DROVER_CONNECT": where}) == {}
