"""Steps: what goes wrong, and many at once."""

import concurrent.futures
import hashlib
import json
import os
import random
import time

import e2b
from e2b import Sandbox, SandboxQuery
from steps import BIG, NOT_RUNNING, SANDBOX_NOT_FOUND, fetch, listed, out, raises, same, step, until


@step("fail.killed_while_it_streams", "failures")
def killed_while_it_streams(here):
    sandbox = here.new()
    handle = sandbox.commands.run("while true; do echo tick; sleep 0.05; done", background=True, timeout=0)
    pieces = iter(handle)
    same(next(pieces)[0].splitlines()[0], "tick")
    same(Sandbox.kill(sandbox.sandbox_id), True)
    with raises(NOT_RUNNING):
        for _ in pieces:
            pass


@step("fail.killed_while_it_waits", "failures")
def killed_while_it_waits(here):
    sandbox = here.new()
    handle = sandbox.commands.run("exec sleep 3600", background=True, timeout=0)
    same(Sandbox.kill(sandbox.sandbox_id), True)
    with raises(NOT_RUNNING):
        handle.wait()


@step("fail.sandbox_times_out", "failures")
def sandbox_times_out(here):
    sandbox = here.new(timeout=5)
    until("its time is over", lambda: not sandbox.is_running())
    with raises(NOT_RUNNING):
        sandbox.commands.run("echo")
    with raises(SANDBOX_NOT_FOUND):
        sandbox.get_info()
    same(sandbox.kill(), False)


@step("fail.no_such_sandbox", "failures")
def no_such_sandbox(here):
    # As one that was: of the same length, and of the same letters.
    identity = here.dead.sandbox_id[:-4] + "".join(reversed(here.dead.sandbox_id[-4:]))
    for name in (identity, "nothing", "i" * 200):
        with raises(SANDBOX_NOT_FOUND):
            Sandbox.connect(name)
        same(Sandbox.kill(name), False)


@step("fail.bad_key", "failures")
def bad_key(here):
    # None that is ours; one that nearly is, and one that is not of that kind.
    good = os.environ["E2B_API_KEY"]
    nearly = good[:-1] + ("0" if good[-1] != "0" else "1")
    for key in (f"e2b_{'0' * 40}", nearly, "e2b_00"):
        for act in (
            lambda key: Sandbox.create(here.template, api_key=key),
            lambda key: Sandbox.list(api_key=key).next_items(),
            lambda key: Sandbox.connect(here.sandbox.sandbox_id, api_key=key),
            lambda key: Sandbox.kill(here.sandbox.sandbox_id, api_key=key),
        ):
            with raises(e2b.AuthenticationException, text="401"):
                act(key)
    same(here.sandbox.is_running(), True)


@step("fail.bad_token", "failures")
def bad_token(here):
    sandbox = here.sandbox
    sandbox.files.write("/home/user/secret", "secret")
    where = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    base = os.environ["E2B_SANDBOX_URL"]
    stat = json.dumps({"path": "/home/user/secret"}).encode()
    for token in ({}, {"X-Access-Token": ""}, {"X-Access-Token": "0" * 64}):
        same(fetch(f"{base}/files?path=/home/user/secret", {**where, **token})[0], 401)
        answer = fetch(f"{base}/filesystem.Filesystem/Stat", {**where, **token, "Content-Type": "application/json"}, stat)
        same(answer[0], 401)


@step("fail.another_team", "failures")
def another_team(here):
    key = os.environ["E2B_OTHER_API_KEY"]
    identity = here.sandbox.sandbox_id
    same(Sandbox.list(query=SandboxQuery(metadata={"journey": here.mark}), api_key=key).next_items(), [])
    for act in (lambda: Sandbox.connect(identity, api_key=key), lambda: Sandbox.get_info(identity, api_key=key)):
        with raises(SANDBOX_NOT_FOUND):
            act()
    same(Sandbox.kill(identity, api_key=key), False)
    same(here.sandbox.is_running(), True)


@step("fail.full_disk", "failures")
def full_disk(here):
    sandbox = here.new()
    with raises(e2b.CommandExitException):
        sandbox.commands.run(f"for n in $(seq 16); do head -c {256 << 20} /dev/zero >/home/user/fill$n || exit; done", timeout=50)
    with raises(e2b.NotEnoughSpaceException):
        sandbox.files.write("/home/user/more", BIG)
    with raises(e2b.NotEnoughSpaceException):
        sandbox.files.write_files([{"path": f"/home/user/{n}", "data": BIG} for n in range(2)])
    same(sandbox.is_running(), True)
    out(sandbox, "rm -f /home/user/fill* /home/user/more /home/user/[01]")
    sandbox.files.write("/home/user/more", BIG)
    same(out(sandbox, "sha256sum </home/user/more"), f"{hashlib.sha256(BIG).hexdigest()}  -\n")


@step("fail.full_disk_stream", "failures")
def full_disk_by_a_stream(here):
    # More than there is room for, in one body that nobody knows the length of.
    sandbox = here.new()
    with raises(e2b.NotEnoughSpaceException):
        sandbox.files.write("/home/user/fill", (BIG for _ in range((4 << 30) // len(BIG))), request_timeout=120)
    same(sandbox.is_running(), True)


@step("fail.command_times_out", "failures")
def command_times_out(here):
    commands = here.sandbox.commands
    path = f"{here.place('times_out')}/alive"
    began = time.monotonic()
    with raises(e2b.TimeoutException, text="timeout"):
        commands.run(f"while true; do date >{path}; sleep 0.05; done", timeout=2)
    assert time.monotonic() - began < 15
    until("nothing of it is listed", lambda: not commands.list())

    def is_still():
        before = here.sandbox.files.get_info(path).modified_time
        out(here.sandbox, "sleep 0.5")
        return here.sandbox.files.get_info(path).modified_time == before

    until("it writes no more", is_still)


# --- many at once ---


def crowd(here):
    """The sandboxes that live at the same time."""
    if "crowded" not in here.__dict__:
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            here.crowded = list(pool.map(lambda n: here.new(metadata={"crowd": here.mark, "n": str(n)}, envs={"N": str(n)}), range(20)))
    return here.crowded


@step("many.create", "many")
def many_are_created(here):
    same(len({one.sandbox_id for one in crowd(here)}), 20)
    same(sorted(int(one.metadata["n"]) for one in listed({"crowd": here.mark})), list(range(20)))


@step("many.own", "many")
def many_have_their_own(here):
    def act(numbered):
        n, sandbox = numbered
        mine = random.Random(n).randbytes(1 << 20)
        sandbox.files.write("/home/user/mine", mine)
        handle = sandbox.commands.run('read -r line; echo "$line is $N"', background=True, stdin=True)
        sandbox.commands.send_stdin(handle.pid, "mine\n")
        same(handle.wait().stdout, f"mine is {n}\n")
        same(out(sandbox, "sha256sum </home/user/mine"), f"{hashlib.sha256(mine).hexdigest()}  -\n")
        assert bytes(sandbox.files.read("/home/user/mine", format="bytes")) == mine

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        list(pool.map(act, enumerate(crowd(here))))


@step("many.kill", "many")
def many_are_killed(here):
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        same(list(pool.map(lambda one: one.kill(), crowd(here))), [True] * 20)
    same(listed({"crowd": here.mark}), [])
