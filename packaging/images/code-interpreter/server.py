"""The code interpreter of a sandbox: Python cells over HTTP, as E2B's code-interpreter SDKs run them.

It listens on 127.0.0.1:49999, once the default context is ready. A context is a Jupyter kernel of its own, and keeps what its cells
define.

    POST   /execute                 {code, context_id?, language?, env_vars?}: the cell's output, a JSON object on each line
    POST   /contexts                {language?, cwd?}: 201 and the new context, {id, language, cwd}, when it is ready
    GET    /contexts                all of them
    POST   /contexts/ID/restart     204 when a new kernel is in the old one's place
    DELETE /contexts/ID             204 when its kernel has ended
    GET    /health                  200

Lines of a cell, by their `type`, in the order in which it made them, each sent as soon as it is there:

    number_of_executions            execution_count
    stdout, stderr                  text, timestamp (nanoseconds since 1970)
    result                          is_main_result (of the last expression, not of a display), and its forms: text, html, markdown,
                                    svg, png, jpeg, pdf, latex, json, javascript, data (of a data frame), chart (of a figure of
                                    matplotlib), extra (others, by media type); what a display changes later is left out
    error                           name, value, traceback: of the exception, or, where the cell did not end by itself,
                                    OutputLimitExceeded, KernelDied, ContextRestarted, ContextRemoved, KernelNotStarted,
                                    InternalError
    keepalive                       nothing was said for KEEPALIVE_SECS
    end_of_execution                always the last

It promises:

- Cells of a context run one after the other; contexts run beside each other. Without `context_id` it is the default one, which is
  made anew where it was removed. `env_vars` are there for that cell alone.
- A client that goes away has its cell interrupted, or taken out of the queue. A deadline is the client's.
- A kernel that dies ends its cell with KernelDied and is started anew, without what was defined; where no cell ran, the next one
  says so on its stderr.
- What is asked for and what a cell may say is bounded by the constants below. A cell that says more is interrupted.
- A refusal is {code, message} with a status: 400 for what cannot be meant so, also languages other than Python; 404 for contexts
  and paths that there are not; 405; 413 for what is too large; 429 where there are too many; 503 for a kernel that does not start.
  The message says what to do.

It asks nobody who they are: only what runs in the sandbox reaches it, and those whom casemated has let in.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import zmq.asyncio
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

PORT = 49999
MAX_REQUEST_BYTES = 8 << 20
# Of one cell, as lines of JSON. So much may wait in memory, too, for each client that does not read.
MAX_OUTPUT_BYTES = 16 << 20
# Characters of output in one line.
PIECE = 64 << 10
MAX_CONTEXTS = 16
# Cells that wait in one context for the one that runs.
MAX_WAITING = 16
START_SECS = 60
# Longer than the 300 s after which the SDKs give up by themselves, shorter than the 600 s after which casemated does.
KEEPALIVE_SECS = 400
# A kernel that has answered and says nothing for so long has said all. It says so itself, but that can get lost among very much
# output.
LAST_WORD_SECS = 5
# What a kernel said before its end is still read for so long.
LAST_SAID_SECS = 0.1
# A kernel hears an interrupt only while it runs a cell, and a cell may ignore one: until it ends it is told again, at first after
# so long, then less and less often.
INTERRUPT_SECS = 1
MAX_INTERRUPT_SECS = 30

FORMS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}

log = logging.getLogger("code-interpreter")


class Refused(Exception):
    """An answer other than what was asked for."""

    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Cell:
    """What one client wants to have run, and the lines that come of it."""

    def __init__(self, code, env_vars):
        self.code, self.env_vars = code, env_vars
        self._lines = asyncio.Queue()
        self._read_all = False
        self.ended = asyncio.Event()
        # Its client went away.
        self.abandoned = asyncio.Event()
        self.too_much = asyncio.Event()
        self._size = 0

    def say(self, kind, **fields):
        """One line more, unless it has said enough."""
        if self.ended.is_set() or self.too_much.is_set() or self.abandoned.is_set():
            return
        line = encode({"type": kind, **fields})
        self._size += len(line)
        if self._size > MAX_OUTPUT_BYTES:
            much = f"the cell was interrupted, because its output is more than {MAX_OUTPUT_BYTES >> 20} MiB"
            self.fail("OutputLimitExceeded", f"{much}: show less of it, or write it to a file")
            self.too_much.set()
            return
        self._lines.put_nowait(line)

    def write(self, stream, text):
        # In pieces, so that it is heard to the bound.
        for at in range(0, len(text), PIECE):
            self.say(stream, text=text[at : at + PIECE], timestamp=time.time_ns())

    def fail(self, name, value):
        """It ends otherwise than by itself."""
        if not self.too_much.is_set():
            self._lines.put_nowait(encode({"type": "error", "name": name, "value": value, "traceback": f"{name}: {value}"}))

    def end(self):
        if not self.ended.is_set():
            self._lines.put_nowait(encode({"type": "end_of_execution"}))
            self._lines.put_nowait(None)
            self.ended.set()

    async def next_lines(self):
        """Waits for the next ones, those that are there at once; None after the last."""
        if self._read_all:
            return None
        try:
            lines = [await asyncio.wait_for(self._lines.get(), KEEPALIVE_SECS)]
        except TimeoutError:
            return encode({"type": "keepalive"})
        while not self._lines.empty():
            lines.append(self._lines.get_nowait())
        self._read_all = lines[-1] is None
        return b"".join(line for line in lines if line) or None


class Python(KernelSpecManager):
    """The one kind of kernel that there is."""

    def get_kernel_spec(self, kernel_name):
        return KernelSpec(
            display_name="Python 3",
            language="python",
            argv=[
                sys.executable,
                "-m",
                "ipykernel_launcher",
                "-f",
                "{connection_file}",
                "--ext=code_interpreter.kernel",
                "--InteractiveShell.colors=nocolor",
                "--HistoryManager.hist_file=:memory:",
            ],
        )


class Kernel:
    """A kernel's process, from its start to its end."""

    # Each waits for the end of a process. Some are ending while their successors begin.
    _waiters = ThreadPoolExecutor(max_workers=3 * MAX_CONTEXTS)

    @classmethod
    async def start(cls, place, cwd):
        """A kernel that is ready for its first cell; where it speaks is a file in the directory `place`."""
        kernel = cls(place)
        try:
            # What a cell's programs write is sent as output, and written there as well.
            await kernel._manager.start_kernel(cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            kernel._client = client = kernel._manager.client()
            client.start_channels(hb=False, stdin=False)
            await client.wait_for_ready(timeout=START_SECS)
        except (RuntimeError, OSError) as error:
            if kernel._client:
                kernel._client.stop_channels()
            await kernel._manager.shutdown_kernel(now=True)
            raise Refused(
                503,
                "kernel_not_started",
                f"the kernel did not start ({error}): end what takes memory or processes in the sandbox, and try again; what "
                "python3 -m ipykernel_launcher says there can help",
            ) from error
        kernel._tasks = [
            asyncio.create_task(kernel._read(client.get_iopub_msg, kernel._said)),
            asyncio.create_task(kernel._read(client.get_shell_msg, kernel._answered)),
            asyncio.create_task(kernel._watch()),
        ]
        return kernel

    def __init__(self, place):
        # By sockets in a directory rather than five ports, which would be shown as the session's own.
        context = zmq.asyncio.Context.instance()
        # By default a thousand messages wait, and others are lost.
        context.setsockopt(zmq.RCVHWM, 0)
        self._manager = AsyncKernelManager(
            context=context,
            kernel_spec_manager=Python(),
            transport="ipc",
            connection_file=os.path.join(place, f"{uuid.uuid4().hex}.json"),
        )
        self._client = None
        self._tasks = []
        # The cell that runs, by the message that asked for it.
        self._cell = None
        self._asked = None
        # Ends the cell without a last word; set with the kernel's answer.
        self._last_word = None
        # How it ended: the name of an error, and a sentence.
        self.end = asyncio.get_running_loop().create_future()
        # The sentence, where no cell ran that it was told.
        self.unnoticed = None

    async def run(self, cell):
        """Runs a cell until it, or the kernel, has ended."""
        content = {
            "code": cell.code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        request = self._client.session.msg("execute_request", content, metadata={"env_vars": cell.env_vars})
        self._cell, self._asked = cell, request["header"]["msg_id"]
        watch = asyncio.create_task(self._interrupt(cell))
        self._client.shell_channel.send(request)
        try:
            await first(cell.ended.wait(), asyncio.shield(self.end))
            if not cell.ended.is_set():
                cell.fail(*self.end.result())
        finally:
            self._cell = self._asked = None
            watch.cancel()
            if self._last_word:
                self._last_word.cancel()
                self._last_word = None

    async def close(self, why):
        """Ends it and all that it started; the cell that runs is told why."""
        if not self.end.done():
            self.end.set_result(why)
        for task in self._tasks:
            task.cancel()
        self._client.stop_channels()
        await self._manager.shutdown_kernel(now=True)

    async def _interrupt(self, cell):
        await first(cell.abandoned.wait(), cell.too_much.wait())
        pause = INTERRUPT_SECS
        while True:
            await self._manager.interrupt_kernel()
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_INTERRUPT_SECS)

    async def _watch(self):
        wait = self._manager.provisioner.process.wait
        status = await asyncio.get_running_loop().run_in_executor(self._waiters, wait)
        await asyncio.sleep(LAST_SAID_SECS)
        if status < 0:
            names = {number.value: number.name for number in signal.Signals}
            self._die(f"ended by signal {names.get(-status, -status)}")
        else:
            self._die(f"ended with exit code {status}")

    def _die(self, how):
        if self.end.done():
            return
        log.warning("a kernel %s", how)
        why = f"the kernel {how}, and another is started in its place: define and import again what is needed"
        self.unnoticed = None if self._cell else why
        self.end.set_result(("KernelDied", why))

    async def _read(self, next_message, heard):
        try:
            while True:
                message = await next_message()
                if self._cell and message["parent_header"].get("msg_id") == self._asked:
                    heard(self._cell, message["header"]["msg_type"], message["content"])
        except Exception:  # a cell can have its kernel say anything
            log.exception("a kernel's words cannot be read")
            self._die("said what cannot be read")

    def _answered(self, cell, kind, _content):
        if kind == "execute_reply":
            self._wait_for_more(cell)

    def _wait_for_more(self, cell):
        if self._last_word:
            self._last_word.cancel()
        self._last_word = asyncio.get_running_loop().call_later(LAST_WORD_SECS, cell.end)

    def _said(self, cell, kind, content):
        if self._last_word:
            self._wait_for_more(cell)
        match kind:
            case "stream":
                cell.write(content["name"], content["text"])
            case "execute_input":
                cell.say("number_of_executions", execution_count=content["execution_count"])
            case "execute_result" | "display_data":
                cell.say("result", **result(content["data"]), is_main_result=kind == "execute_result")
            case "error":
                cell.say("error", name=content["ename"], value=content["evalue"], traceback="\n".join(content["traceback"]))
            case "status" if content["execution_state"] == "idle":
                cell.end()


class Context:
    """A kernel, its successors where it dies, and the cells that wait for it."""

    def __init__(self, place, cwd):
        self.id = str(uuid.uuid4())
        self._place, self._cwd = place, cwd
        self._kernel = None
        # Held while a kernel begins or ends.
        self._changing = asyncio.Lock()
        self._removed = False
        self._waiting = []
        self._running = None
        # What the next cell is told of a kernel that died while none ran.
        self._lost = None

    def described(self):
        return {"id": self.id, "language": "python", "cwd": self._cwd}

    async def kernel(self):
        """Its kernel, which is started where there is none that lives."""
        async with self._changing:
            if self._removed:
                raise no_such_context(self.id)
            if self._kernel and self._kernel.end.done():
                self._lost = self._kernel.unnoticed
                await self._kernel.close(None)
                self._kernel = None
            if self._kernel is None:
                self._kernel = await Kernel.start(self._place, self._cwd)
                self._kernel.end.add_done_callback(lambda _: spawn(self._replace()))
            return self._kernel

    async def restart(self):
        await self._drop(("ContextRestarted", "the context was restarted: define and import again what is needed"))
        await self.kernel()

    async def remove(self):
        self._removed = True
        await self._drop(("ContextRemoved", "the context was removed: run this in another one"))

    def submit(self, cell):
        """Has a cell run when those before it have ended."""
        if len(self._waited_for()) == MAX_WAITING:
            message = f"{MAX_WAITING} cells wait in this context: try again when one has ended, or run this one in another context"
            raise Refused(429, "context_crowded", message)
        self._waiting.append(cell)
        if self._running is None or self._running.done():
            self._running = spawn(self._run())

    def _waited_for(self):
        """The cells that wait, without those whose clients went away."""
        self._waiting = [cell for cell in self._waiting if not cell.abandoned.is_set()]
        return self._waiting

    async def _run(self):
        while waiting := self._waited_for():
            cell = waiting.pop(0)
            try:
                kernel = await self.kernel()
                if self._lost:
                    cell.write("stderr", f"{self._lost}\n")
                    self._lost = None
                await kernel.run(cell)
            except Refused as refusal:
                cell.fail("ContextRemoved" if self._removed else "KernelNotStarted", refusal.message)
            except Exception:  # those that wait are to be run all the same
                log.exception("a cell could not be run")
                cell.fail("InternalError", "this is an error of the code interpreter's, whose log says more: restart the context")
            finally:
                cell.end()

    async def _replace(self):
        with contextlib.suppress(Refused):  # the next cell tries again, and is told
            await self.kernel()

    async def _drop(self, why):
        async with self._changing:
            kernel, self._kernel = self._kernel, None
            self._lost = None
            if kernel:
                await kernel.close(why)


class Contexts:
    """Those that there are, by their ids."""

    def __init__(self, place):
        self._place = place
        self._all = {}
        self._default = None

    def default(self):
        """The context of cells that name none."""
        if self._default not in self._all:
            self._default = self._add(os.path.expanduser("~")).id
        return self._all[self._default]

    async def create(self, cwd):
        context = self._add(cwd)
        try:
            await context.kernel()
        except Refused:
            self._all.pop(context.id, None)
            raise
        return context

    def all(self):
        return list(self._all.values())

    def get(self, context):
        if context not in self._all:
            raise no_such_context(context)
        return self._all[context]

    async def remove(self, context):
        found = self.get(context)
        del self._all[context]
        await found.remove()

    def _add(self, cwd):
        if len(self._all) >= MAX_CONTEXTS:
            raise Refused(429, "too_many_contexts", f"there are {MAX_CONTEXTS} contexts, and may be no more: remove one")
        context = Context(self._place, cwd)
        self._all[context.id] = context
        return context


@stream_request_body
class Handler(RequestHandler):
    """What all answers have in common."""

    def initialize(self, contexts=None):
        self.contexts = contexts

    def prepare(self):
        self.received = bytearray()
        self.too_large = False

    def data_received(self, chunk):
        # What is too large is read to its end: who still sends does not listen.
        self.too_large = self.too_large or len(self.received) + len(chunk) > MAX_REQUEST_BYTES
        if not self.too_large:
            self.received += chunk

    def asked(self, **kinds):
        """The members of the body by their names, None where they are missing or null; what has no name here is passed over."""
        if self.too_large:
            much = f"the body is larger than {MAX_REQUEST_BYTES >> 20} MiB"
            raise Refused(413, "too_large", f"{much}: write what is large to a file in the sandbox, and read it in the cell")
        try:
            body = json.loads(self.received or b"{}")
        except ValueError as error:
            raise Refused(400, "not_json", f"the body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise Refused(400, "bad_request", "the body is to be a JSON object")
        for name, kind in kinds.items():
            value = body.get(name)
            if value is not None and not (isinstance(value, kind) and is_text(value)):
                what = {str: "text", dict: "an object of texts"}[kind]
                raise Refused(400, "bad_request", f"{name} is to be {what}")
        return map(body.get, kinds)

    def answer(self, status, value=None):
        self.set_status(status)
        if value is not None:
            self.set_header("Content-Type", "application/json")
            self.write(encode(value))

    def write_error(self, status_code, exc_info=None, **_):
        error = exc_info[1] if exc_info else None
        if isinstance(error, Refused):
            if error.status in (429, 503):
                self.set_header("Retry-After", "1")
            self.answer(error.status, {"code": error.code, "message": error.message})
        elif status_code == 405:
            self.answer(405, {"code": "method_not_allowed", "message": f"{self.request.path} does not take {self.request.method}"})
        else:
            message = "this is an error of the code interpreter's: its log in the session says more"
            self.answer(status_code, {"code": "internal", "message": message})

    def log_exception(self, kind, value, trace):
        if not isinstance(value, (Refused, HTTPError)):
            super().log_exception(kind, value, trace)


class Execute(Handler):
    cell = None

    async def post(self):
        code, context_id, language, env_vars = self.asked(code=str, context_id=str, language=str, env_vars=dict)
        if code is None:
            raise Refused(400, "bad_request", "code is missing")
        if context_id and language:
            raise Refused(400, "bad_request", "context_id and language exclude each other: a context has its language")
        require_python(language)
        env_vars = env_vars or {}
        if any(not name or "=" in name or "\0" in name + value for name, value in env_vars.items()):
            raise Refused(400, "bad_request", "env_vars has a name that is empty or has an equals sign, or a null character")
        context = self.contexts.get(context_id) if context_id else self.contexts.default()
        cell = Cell(code, env_vars)
        context.submit(cell)
        self.cell = cell
        self.set_header("Content-Type", "application/x-ndjson")
        try:
            await self.flush()
            while (lines := await cell.next_lines()) is not None:
                self.write(lines)
                await self.flush()
        except StreamClosedError:
            cell.abandoned.set()

    def on_connection_close(self):
        if self.cell:
            self.cell.abandoned.set()


class AllContexts(Handler):
    def get(self):
        self.answer(200, [context.described() for context in self.contexts.all()])

    async def post(self):
        language, cwd = self.asked(language=str, cwd=str)
        require_python(language)
        cwd = cwd or os.path.expanduser("~")
        if not os.path.isabs(cwd) or "\0" in cwd or not os.path.isdir(cwd):
            raise Refused(400, "bad_cwd", f"cwd is to be the whole path of a directory: {cwd!r} is none")
        context = await self.contexts.create(cwd)
        self.answer(201, context.described())


class OneContext(Handler):
    async def delete(self, context):
        await self.contexts.remove(context)
        self.answer(204)


class Restart(Handler):
    async def post(self, context):
        await self.contexts.get(context).restart()
        self.answer(204)


class Health(Handler):
    def get(self):
        self.answer(200, {"status": "ok"})


class NoSuchPath(Handler):
    def refuse(self):
        raise Refused(404, "no_such_path", f"there is no {self.request.path}: /execute, /contexts and /health are there")

    # Not before the body was read: tornado would hang up, while whoever asked takes the connection for one that can be used again.
    get = head = post = put = patch = delete = options = refuse


def require_python(language):
    if language and language.strip().lower() != "python":
        raise Refused(400, "no_such_language", f"there is no kernel for {language!r} here: leave language out, or say python")


def no_such_context(context):
    return Refused(404, "no_such_context", f"there is no context {context!r}: make one, or run this without one")


def is_text(value):
    """Whether it is a text, or an object of texts: JSON can say halves of characters, which are none."""
    texts = [*value, *value.values()] if isinstance(value, dict) else [value]
    try:
        "".join(texts).encode()
    except (TypeError, UnicodeEncodeError):
        return False
    return True


def result(data):
    """The forms of what is shown, by the SDKs' names."""
    forms = {FORMS[media]: value for media, value in data.items() if media in FORMS}
    text = forms.get("text")
    # A text is shown as it is, not as Python writes it.
    if text and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        forms["text"] = text[1:-1]
    extra = {media: value for media, value in data.items() if media not in FORMS}
    return {**forms, "extra": extra} if extra else forms


def encode(value):
    """JSON as one line, in ASCII: the SDKs also take other characters for the end of a line than the one that is."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


async def first(*awaitables):
    """Waits until one of them is done, and for the others no more."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


_spawned = set()


def spawn(work):
    """A task that nobody waits for; what goes wrong in it is logged."""
    task = asyncio.ensure_future(work)
    _spawned.add(task)

    def done(task):
        _spawned.discard(task)
        if not task.cancelled() and task.exception():
            log.error("a task failed", exc_info=task.exception())

    task.add_done_callback(done)
    return task


async def serve(place):
    contexts = Contexts(place)
    await contexts.default().kernel()
    own = {"contexts": contexts}
    application = Application(
        [
            ("/execute", Execute, own),
            ("/contexts", AllContexts, own),
            ("/contexts/([^/]+)", OneContext, own),
            ("/contexts/([^/]+)/restart", Restart, own),
            ("/health", Health),
        ],
        default_handler_class=NoSuchPath,
        log_function=lambda _: None,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    # The bound is the handlers', whose answer says so.
    server = HTTPServer(application, max_body_size=1 << 62)
    server.listen(PORT, "127.0.0.1")
    log.info("ready")
    await stopped.wait()
    server.stop()
    await asyncio.gather(*(context.remove() for context in contexts.all()))


def main():
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    place = tempfile.mkdtemp(prefix="kernels.")
    try:
        asyncio.run(serve(place))
    except Refused as refusal:
        sys.exit(f"code-interpreter: {refusal.message}")
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
