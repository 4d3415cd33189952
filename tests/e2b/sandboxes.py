"""Steps: making, finding and describing sandboxes."""

import datetime

import e2b
from e2b import Sandbox, SandboxQuery, SandboxState
from steps import GREETING, LIFE_S, listed, out, raises, same, seconds_left, state_of, step, takes, until


@step("create")
def create(here):
    assert here.sandbox.sandbox_id
    same(out(here.sandbox, 'printf %s "$GREETING"'), GREETING)


@step("create.offline")
def create_offline(here):
    sandbox = here.new(allow_internet_access=False)
    same(out(sandbox, "echo there"), "there\n")
    same(sandbox.kill(), True)


@step("create.unknown_template")
def create_of_an_unknown_template(here):
    with raises(e2b.SandboxException, text="no-such-template"):
        here.new("no-such-template")


@step("info")
def info(here):
    sandbox = here.sandbox
    for found in (sandbox.get_info(), Sandbox.get_info(sandbox.sandbox_id)):
        same(found.sandbox_id, sandbox.sandbox_id)
        same(found.metadata, here.metadata)
        same(state_of(found), "running")
        assert here.template in (found.name, found.template_id), found
        assert found.cpu_count > 0 and found.memory_mb > 0 and found.envd_version, found
        assert LIFE_S - 120 < seconds_left(found) <= LIFE_S, found
        assert found.started_at < found.end_at, found


@step("list")
def list_sandboxes(here):
    sandbox = here.sandbox
    found = listed(here.metadata)
    same([one.sandbox_id for one in found], [sandbox.sandbox_id])
    same((found[0].metadata, state_of(found[0])), (here.metadata, "running"))
    same(listed({"journey": here.mark, "note": "another"}), [])


@step("list.state")
def list_by_state(here):
    mine = {"journey": here.mark}
    running = listed(mine, state=[SandboxState.RUNNING])
    assert here.sandbox.sandbox_id in [one.sandbox_id for one in running], running
    same(listed(mine, state=[SandboxState.PAUSED]), [])


@step("list.pages")
def list_in_pages(here):
    mark = {"pages": here.mark}
    made = {here.new(metadata=mark).sandbox_id for _ in range(3)}
    pages, found = Sandbox.list(query=SandboxQuery(metadata=mark), limit=2), []
    sizes = []
    while pages.has_next:
        page = pages.next_items()
        sizes.append(len(page))
        found += [one.sandbox_id for one in page]
    same(sizes[0], 2)
    same(sorted(found), sorted(made))
    for identity in made:
        same(Sandbox.kill(identity), True)


@step("list.order", has=lambda: takes(Sandbox.list, "order"))
def list_in_order(here):
    mark = {"order": here.mark}
    made = [here.new(metadata=mark).sandbox_id for _ in range(2)]
    for order, wanted in (("asc", made), ("desc", made[::-1])):
        pages = Sandbox.list(query=SandboxQuery(metadata=mark), order=order)
        same([one.sandbox_id for one in pages.next_items()], wanted)
    for identity in made:
        same(Sandbox.kill(identity), True)


@step("connect")
def connect(here):
    other = Sandbox.connect(here.sandbox.sandbox_id)
    same(other.sandbox_id, here.sandbox.sandbox_id)
    here.sandbox.files.write("/tmp/met", "met here")
    same(out(other, "cat /tmp/met"), "met here")


@step("connect.never_shortens")
def connect_never_shortens(here):
    here.sandbox.set_timeout(LIFE_S)
    Sandbox.connect(here.sandbox.sandbox_id, timeout=30)
    assert seconds_left(here.sandbox.get_info()) > LIFE_S - 60


@step("timeout")
def timeout(here):
    for wanted in (200, LIFE_S):
        here.sandbox.set_timeout(wanted)
        left = seconds_left(here.sandbox.get_info())
        assert wanted - 30 < left <= wanted + 1, left


@step("running")
def is_running(here):
    same(here.sandbox.is_running(), True)


@step("metrics")
def metrics(here):
    found = until("metrics", here.sandbox.get_metrics)[-1]
    assert found.cpu_count > 0 and found.cpu_used_pct >= 0, found
    assert 0 < found.mem_used <= found.mem_total and 0 <= found.disk_used <= found.disk_total, found
    age = datetime.datetime.now(datetime.UTC) - found.timestamp
    assert abs(age.total_seconds()) < 300, found
