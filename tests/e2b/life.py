"""Steps: pauses, copies and the end of a sandbox, and what is left of it."""

from e2b import Sandbox, SandboxState
from steps import LIFE_S, NOT_RUNNING, SANDBOX_NOT_FOUND, listed, raises, same, state_of, step


@step("pause", has=lambda: hasattr(Sandbox, "pause") or hasattr(Sandbox, "beta_pause"))
def pause(here):
    sandbox = here.sandbox
    sandbox.files.write("/home/user/before", "before the pause")
    handle = sandbox.commands.run("exec sleep 3600.25", background=True, timeout=0)
    handle.disconnect()
    stop = sandbox.pause if hasattr(Sandbox, "pause") else sandbox.beta_pause
    first, second = stop(), stop()
    # Older ones say nothing.
    assert (first, second) in ((True, False), (None, None)), (first, second)
    same(state_of(sandbox.get_info()), "paused")
    paused = listed(here.metadata, state=[SandboxState.PAUSED])
    same([one.sandbox_id for one in paused], [sandbox.sandbox_id])
    same(sandbox.is_running(), False)
    here.shared = Sandbox.connect(sandbox.sandbox_id, timeout=LIFE_S)
    same(here.shared.is_running(), True)
    same(here.shared.files.read("/home/user/before"), "before the pause")
    assert handle.pid in [one.pid for one in here.shared.commands.list()]
    same(here.shared.commands.kill(handle.pid), True)


@step("snapshot", has=lambda: hasattr(Sandbox, "create_snapshot"))
def snapshot(here):
    here.sandbox.files.write("/home/user/kept", "kept")
    made = here.sandbox.create_snapshot()
    pages, found = Sandbox.list_snapshots(sandbox_id=here.sandbox.sandbox_id), []
    while pages.has_next:
        found += [one.snapshot_id for one in pages.next_items()]
    assert made.snapshot_id in found, (made, found)
    again = here.new(made.snapshot_id)
    same(again.files.read("/home/user/kept"), "kept")
    same(again.kill(), True)
    same([Sandbox.delete_snapshot(made.snapshot_id) for _ in range(2)], [True, False])


@step("fork", has=lambda: hasattr(Sandbox, "fork"))
def fork(here):
    here.sandbox.files.write("/home/user/forked", "forked")
    forks = here.sandbox.fork(count=2, timeout=LIFE_S)
    for one in forks:
        assert isinstance(one, Sandbox), one
    for one in forks:
        here.stack.callback(one.kill)
    same(len({here.sandbox.sandbox_id, *(one.sandbox_id for one in forks)}), 3)
    for one in forks:
        same(one.files.read("/home/user/forked"), "forked")
        one.files.write("/home/user/forked", one.sandbox_id)
    same(here.sandbox.files.read("/home/user/forked"), "forked")
    same([one.kill() for one in forks], [True, True])


@step("network", has=lambda: hasattr(Sandbox, "update_network"))
def network(here):
    here.sandbox.update_network({"deny_out": ["0.0.0.0/0"]})
    here.sandbox.update_network({})


# --- the end of it ---


@step("kill")
def kill(here):
    here.gone = here.sandbox
    del here.shared
    same([here.gone.kill(), here.gone.kill()], [True, False])


@step("dead.running")
def dead_is_not_running(here):
    same(here.dead.is_running(), False)


@step("dead.info")
def dead_info(here):
    with raises(SANDBOX_NOT_FOUND, text=here.dead.sandbox_id):
        here.dead.get_info()
    assert here.dead.sandbox_id not in [one.sandbox_id for one in listed({"journey": here.mark})]


@step("dead.connect")
def dead_connect(here):
    for act in (lambda: Sandbox.connect(here.dead.sandbox_id), lambda: here.dead.set_timeout(60)):
        with raises(SANDBOX_NOT_FOUND, text=here.dead.sandbox_id):
            act()


@step("dead.commands")
def dead_commands(here):
    for act in (lambda: here.dead.commands.run("echo"), here.dead.commands.list, lambda: here.dead.files.list("/")):
        with raises(NOT_RUNNING):
            act()


@step("dead.files")
def dead_files(here):
    for act in (lambda: here.dead.files.read("/etc/hostname"), lambda: here.dead.files.write("/tmp/file", "")):
        with raises(NOT_RUNNING):
            act()
