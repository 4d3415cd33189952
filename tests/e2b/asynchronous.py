"""Steps: the same by the asynchronous client."""

import asyncio
import hashlib

import e2b
from e2b import AsyncSandbox, PtySize
from steps import BIG, FILE_NOT_FOUND, PATIENCE_S, part, raises, same, step


@step("async.create")
def async_create(here):
    async def act():
        sandbox = await here.async_sandbox()
        same((await sandbox.get_info()).sandbox_id, sandbox.sandbox_id)
        same(await sandbox.is_running(), True)

    here.wait(act())


@step("async.run")
def async_run(here):
    async def act():
        commands = (await here.async_sandbox()).commands
        pieces = []
        result = await commands.run("echo out; echo err >&2", on_stdout=pieces.append)
        same((result.stdout, result.stderr, result.exit_code, pieces), ("out\n", "err\n", 0, ["out\n"]))
        with raises(e2b.CommandExitException):
            await commands.run("exit 3")
        handle = await commands.run("read -r line; echo said $line", background=True, stdin=True)
        assert handle.pid in [one.pid for one in await commands.list()]
        await commands.send_stdin(handle.pid, "this\n")
        same((await handle.wait()).stdout, "said this\n")
        results = await asyncio.gather(*(commands.run(f"echo {n}") for n in range(10)))
        same([one.stdout for one in results], [f"{n}\n" for n in range(10)])

    here.wait(act())


@step("async.stream", has=lambda: hasattr(part("commands", AsyncSandbox), "stream_input"))
def async_stream_input(here):
    async def act():
        commands = (await here.async_sandbox()).commands
        handle = await commands.run("sha256sum", background=True, stdin=True)
        async with commands.stream_input(handle.pid) as line:
            for n in range(50):
                await line.send(f"line {n}\n")
        await commands.close_stdin(handle.pid)
        wanted = hashlib.sha256("".join(f"line {n}\n" for n in range(50)).encode()).hexdigest()
        same((await handle.wait()).stdout, f"{wanted}  -\n")

    here.wait(act())


@step("async.pty")
def async_pty(here):
    async def act():
        terminals = (await here.async_sandbox()).pty
        shown, arrived = bytearray(), asyncio.Event()

        def on_data(piece):
            shown.extend(piece)
            if b"24 80" in shown:
                arrived.set()

        handle = await terminals.create(PtySize(rows=24, cols=80), on_data)
        await terminals.send_stdin(handle.pid, b"stty size\n")
        await asyncio.wait_for(arrived.wait(), PATIENCE_S)
        same(await terminals.kill(handle.pid), True)

    here.wait(act())


@step("async.files")
def async_files(here):
    async def act():
        files = (await here.async_sandbox()).files
        place = "/home/user/files"
        await files.write(f"{place}/large", BIG)
        pieces = [piece async for piece in await files.read(f"{place}/large", format="stream")]
        assert b"".join(pieces) == BIG
        await files.write(f"{place}/text", "text")
        same(await files.read(f"{place}/text"), "text")
        same(sorted(one.name for one in await files.list(place)), ["large", "text"])
        with raises(FILE_NOT_FOUND):
            await files.read(f"{place}/no")

    here.wait(act())


@step("async.watch")
def async_watch(here):
    async def act():
        files = (await here.async_sandbox()).files
        await files.make_dir("/home/user/watched")
        events = asyncio.Queue()
        watching = await files.watch_dir("/home/user/watched", on_event=events.put_nowait, timeout=0)
        await files.write("/home/user/watched/file", "")
        await files.remove("/home/user/watched/file")
        left = {("create", "file"), ("remove", "file")}
        while left:
            event = await asyncio.wait_for(events.get(), PATIENCE_S)
            left.discard((event.type.value, event.name))
        await watching.stop()

    here.wait(act())


@step("async.kill")
def async_kill(here):
    async def act():
        sandbox = await here.async_sandbox()
        same([await sandbox.kill(), await sandbox.kill()], [True, False])
        same(await sandbox.is_running(), False)
        with raises(e2b.TimeoutException):
            await sandbox.commands.run("echo")

    here.wait(act())
