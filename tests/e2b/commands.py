"""Steps: commands, their input, and terminals."""

import hashlib
import importlib.util
import inspect

import e2b
from e2b import PtySize, Sandbox
from e2b.envd import rpc
from steps import BIG, PATIENCE_S, out, part, raises, same, shortened, step, takes, until


@step("commands.run")
def run(here):
    result = here.sandbox.commands.run("echo out; echo err >&2")
    same((result.stdout, result.stderr, result.exit_code), ("out\n", "err\n", 0))


@step("commands.output")
def run_with_output(here):
    pieces, errors = [], []
    command = "seq 1 200000; seq 1 1000 >&2"
    result = here.sandbox.commands.run(command, on_stdout=pieces.append, on_stderr=errors.append)
    same(result.stdout, "".join(f"{n}\n" for n in range(1, 200_001)))
    same(result.stderr, "".join(f"{n}\n" for n in range(1, 1001)))
    same(("".join(pieces), "".join(errors)), (result.stdout, result.stderr))
    assert len(pieces) > 1


# The oldest decode each piece by itself, wherever it was cut.
@step("commands.unicode", has=lambda: "incrementaldecoder" in inspect.getsource(e2b.CommandHandle))
def run_with_letters(here):
    result = here.sandbox.commands.run('python3 -c \'import sys; print("ü€😀" * 50000); print("ü€" * 50000, file=sys.stderr)\'')
    same((result.stdout, result.stderr), ("ü€😀" * 50_000 + "\n", "ü€" * 50_000 + "\n"))


@step("commands.output_not_kept", has=lambda: takes(part("commands").run, "retain_output"))
def run_without_keeping_output(here):
    pieces = []
    result = here.sandbox.commands.run("echo piece", on_stdout=pieces.append, retain_output=False)
    same((result.stdout, result.stderr, pieces), (None, None, ["piece\n"]))


@step("commands.exit_code")
def exit_code(here):
    with raises(e2b.CommandExitException) as held:
        here.sandbox.commands.run("echo before; echo why >&2; exit 3")
    same((held[0].exit_code, held[0].stdout, held[0].stderr), (3, "before\n", "why\n"))
    with raises(e2b.CommandExitException, text="not found") as held:
        here.sandbox.commands.run("no-such-command")
    same(held[0].exit_code, 127)


@step("commands.cwd")
def cwd(here):
    same(out(here.sandbox, "pwd"), "/home/user\n")
    same(out(here.sandbox, "pwd", cwd="/tmp"), "/tmp\n")
    with raises(e2b.InvalidArgumentException):
        here.sandbox.commands.run("pwd", cwd="/no/such/place")


@step("commands.envs")
def envs(here):
    given = {"A": "one two", "B": "dollar $HOME 'quote' \"double\"", "GREETING": "its own"}
    same(out(here.sandbox, 'printf "%s|%s|%s" "$A" "$B" "$GREETING"', envs=given), "|".join(given.values()))


@step("commands.user")
def user(here):
    same(out(here.sandbox, "id -un; echo $HOME"), "user\n/home/user\n")
    same(out(here.sandbox, "id -un; echo $HOME", user="root"), "root\n/root\n")
    with raises(e2b.AuthenticationException, e2b.InvalidArgumentException):
        here.sandbox.commands.run("id", user="nobody-here")


def timed_out():
    """What a command that takes too long is; the oldest pass on what their transport says if they give up before the server has."""
    if importlib.util.find_spec("e2b_connect") and "httpcore.TimeoutException" not in inspect.getsource(rpc):
        return e2b.TimeoutException, importlib.import_module("httpcore").TimeoutException
    return (e2b.TimeoutException,)


@step("commands.timeout")
def command_timeout(here):
    commands = here.sandbox.commands
    with raises(*timed_out()):
        commands.run("exec sleep 71.25", timeout=1)
    until("it was ended", lambda: all("71.25" not in str(one.args) for one in commands.list()))
    handle = commands.run("exec sleep 72.25", background=True, timeout=1)
    with raises(*timed_out()):
        handle.wait()


@step("commands.background")
def background(here):
    handle = here.sandbox.commands.run("for n in 1 2 3; do echo out $n; echo err $n >&2; done; exit 4", background=True)
    assert handle.pid > 0
    pieces, errors = "", ""
    for piece, error, _ in handle:
        pieces, errors = pieces + (piece or ""), errors + (error or "")
    same((pieces, errors), ("out 1\nout 2\nout 3\n", "err 1\nerr 2\nerr 3\n"))
    with raises(e2b.CommandExitException) as held:
        handle.wait()
    same(held[0].exit_code, 4)


@step("commands.streams")
def output_comes_while_it_runs(here):
    path = f"{here.place('streams')}/go"
    handle = here.sandbox.commands.run(f"echo first; until [ -e {path} ]; do sleep 0.05; done; echo second", background=True)
    pieces = iter(handle)
    same(next(pieces)[0], "first\n")
    here.sandbox.files.write(path, "")
    same("".join(piece or "" for piece, _, _ in pieces), "second\n")


@step("commands.list")
def list_commands(here):
    commands = here.sandbox.commands
    handle = commands.run("exec sleep 3600.5", background=True, cwd="/tmp")
    found = [one for one in commands.list() if one.pid == handle.pid]
    wanted = ("/bin/bash", ["-l", "-c", "exec sleep 3600.5"], "/tmp")
    same([(one.cmd, one.args, one.cwd) for one in found], [wanted])
    same(commands.kill(handle.pid), True)
    until("it is not listed", lambda: handle.pid not in [one.pid for one in commands.list()])


@step("commands.kill")
def kill_commands(here):
    commands = here.sandbox.commands
    handle = commands.run("echo started; exec sleep 3600", background=True)
    same(next(iter(handle))[0], "started\n")
    same(handle.kill(), True)
    with raises(e2b.CommandExitException) as held:
        handle.wait()
    assert held[0].exit_code != 0, held[0]
    same(commands.kill(handle.pid), False)


@step("commands.connect")
def connect_to_a_command(here):
    path = f"{here.place('connected')}/go"
    first = here.sandbox.commands.run(f"until [ -e {path} ]; do sleep 0.05; done; echo went; exit 5", background=True)
    first.disconnect()
    other = Sandbox.connect(here.sandbox.sandbox_id).commands.connect(first.pid)
    same(other.pid, first.pid)
    here.sandbox.files.write(path, "")
    with raises(e2b.CommandExitException) as held:
        other.wait()
    same((held[0].stdout, held[0].exit_code), ("went\n", 5))
    with raises(e2b.NotFoundException):
        here.sandbox.commands.connect(999_999)


# --- input of commands ---


@step("stdin.send")
def send_stdin(here):
    commands = here.sandbox.commands
    handle = commands.run('read -r one; read -r two; echo "$two, $one"', background=True, stdin=True)
    commands.send_stdin(handle.pid, "one\ntw")
    commands.send_stdin(handle.pid, "ö\n")
    same(handle.wait().stdout, "twö, one\n")
    with raises(e2b.NotFoundException):
        commands.send_stdin(999_999, "nobody")


@step("stdin.none")
def no_stdin(here):
    same(out(here.sandbox, "cat; echo ended", timeout=20), "ended\n")


@step("stdin.close", has=lambda: hasattr(part("commands"), "close_stdin"))
def close_stdin(here):
    commands = here.sandbox.commands
    handle = commands.run("sha256sum", background=True, stdin=True)
    commands.send_stdin(handle.pid, "all of it")
    commands.close_stdin(handle.pid)
    same(handle.wait().stdout, f"{hashlib.sha256(b'all of it').hexdigest()}  -\n")


@step("stdin.handle", has=lambda: hasattr(e2b.CommandHandle, "close_stdin"))
def stdin_of_a_handle(here):
    handle = here.sandbox.commands.run("cat", background=True, stdin=True)
    handle.send_stdin(b"by the handle")
    handle.close_stdin()
    same(handle.wait().stdout, "by the handle")


@step("stdin.stream", has=lambda: hasattr(part("commands"), "stream_input"))
def stream_input(here):
    commands = here.sandbox.commands
    handle = commands.run("sha256sum", background=True, stdin=True)
    pieces = [BIG[at : at + 50_000] for at in range(0, 1_000_000, 50_000)]
    commands.stream_input(handle.pid, iter(pieces + ["and text"]))
    commands.close_stdin(handle.pid)
    same(handle.wait().stdout, f"{hashlib.sha256(BIG[:1_000_000] + b'and text').hexdigest()}  -\n")
    with raises(e2b.NotFoundException):
        commands.stream_input(999_999, [b"nobody"])


# --- terminals ---


class Screen:
    """What a terminal showed so far."""

    def __init__(self, handle):
        self.pieces = iter(handle)
        self.shown = b""

    def shows(self, wanted):
        """Reads until this was shown."""
        while wanted not in self.shown:
            piece = next(self.pieces, None)
            assert piece is not None, f"it ended without {wanted!r}: {shortened(self.shown)}"
            self.shown += piece[2] or b""


@step("pty")
def pty(here):
    terminals = here.sandbox.pty
    handle = terminals.create(PtySize(rows=24, cols=80), cwd="/tmp", envs={"MARK": "mark"}, timeout=PATIENCE_S)
    screen = Screen(handle)
    terminals.send_stdin(handle.pid, b"stty size; echo $PWD-$MARK-$TERM; tty\n")
    for wanted in (b"24 80", b"/tmp-mark-xterm-256color", b"/dev/pts/"):
        screen.shows(wanted)
    terminals.resize(handle.pid, PtySize(rows=31, cols=101))
    terminals.send_stdin(handle.pid, b"stty size\n")
    screen.shows(b"31 101")
    terminals.send_stdin(handle.pid, b"exit 7\n")
    with raises(e2b.CommandExitException) as held:
        handle.wait()
    same(held[0].exit_code, 7)


@step("pty.kill")
def kill_a_pty(here):
    terminals = here.sandbox.pty
    handle = terminals.create(PtySize(rows=24, cols=80), user="root", timeout=PATIENCE_S)
    terminals.send_stdin(handle.pid, b"id -un; echo 'the' end\n")
    screen = Screen(handle)
    for wanted in (b"root", b"the end"):
        screen.shows(wanted)
    same(terminals.kill(handle.pid), True)
    until("it is not found", lambda: terminals.kill(handle.pid) is False)


@step("pty.connect", has=lambda: hasattr(part("pty"), "connect"))
def connect_to_a_pty(here):
    first = here.sandbox.pty.create(PtySize(rows=24, cols=80), timeout=PATIENCE_S)
    first.disconnect()
    second = here.sandbox.pty.connect(first.pid, timeout=PATIENCE_S)
    here.sandbox.pty.send_stdin(first.pid, b"echo 'still' there\n")
    Screen(second).shows(b"still there")
    same(here.sandbox.pty.kill(first.pid), True)


@step("pty.stream", has=lambda: hasattr(part("pty"), "stream_input"))
def stream_to_a_pty(here):
    handle = here.sandbox.pty.create(PtySize(rows=24, cols=80), timeout=PATIENCE_S)
    here.sandbox.pty.stream_input(handle.pid, [b"echo 'by ", "stream'\n"])
    Screen(handle).shows(b"by stream\r\n")
    same(here.sandbox.pty.kill(handle.pid), True)
