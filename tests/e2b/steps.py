"""The table of steps, and what they are made of."""

import asyncio
import collections
import contextlib
import datetime
import inspect
import random
import time
import urllib.error
import urllib.request
import uuid

import e2b
from e2b import AsyncSandbox, Sandbox, SandboxQuery

PATIENCE_S = 30  # for what happens by and by
STEP_S = 60  # for a step, whatever it waits for
LIFE_S = 600  # of a sandbox, far longer than the journey
GREETING = "grüß dich, 'you'\n\"all\""
NOTE = "a b&c=d/ü+%"  # what a metadata filter must carry
BIG = random.Random(1).randbytes(8 << 20)
EVERY_BYTE = bytes(range(256)) * 8

# --- the table ---

Step = collections.namedtuple("Step", "name group has act")
STEPS = []


def step(name, group="journey", has=None):
    """Adds a step to the table; `has` looks at the SDK and says whether it has what the step needs."""

    def add(act):
        STEPS.append(Step(name, group, has, act))
        return act

    return add


def same(found, wanted):
    """Makes sure that they are equal."""
    assert found == wanted, f"found {shortened(found)}, wanted {shortened(wanted)}"


def shortened(value):
    text = repr(value)
    return text if len(text) < 400 else f"{text[:200]} … {text[-100:]} ({len(value)})"


@contextlib.contextmanager
def raises(*kinds, text=""):
    """Makes sure that it ends with an error of one of these classes, or of one below them, which says this."""
    wanted = " or ".join(kind.__name__ for kind in kinds)
    held = []
    try:
        yield held
    except kinds as error:
        held.append(error)
        assert text in str(error), f"{type(error).__name__} does not say {text!r}: {error}"
        return
    except Exception as error:
        raise AssertionError(f"{wanted} was wanted") from error
    raise AssertionError(f"nothing was raised, {wanted} was wanted")


def until(what, look, patience_s=PATIENCE_S):
    """Looks until there is something, and gives that."""
    deadline = time.monotonic() + patience_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


def takes(function, name):
    """Whether a function of the SDK has this parameter."""
    return name in inspect.signature(function).parameters


def part(name, of=Sandbox):
    """The class of a part of the SDK's sandboxes: commands, pty or files."""
    return getattr(of, name).fget.__annotations__["return"]


def kind(*names):
    """The first of these classes that the SDK has: older ones have fewer."""
    return next(getattr(e2b, name) for name in names if hasattr(e2b, name))


FILE_NOT_FOUND = kind("FileNotFoundException", "NotFoundException")
SANDBOX_NOT_FOUND = kind("SandboxNotFoundException", "NotFoundException")
NOT_RUNNING = kind("SandboxNotRunningException", "TimeoutException")


class Here:
    """Where the journey is: sandboxes that steps share, made when the first asks, and ended at the end."""

    def __init__(self, template, code):
        self.template = template
        self.code = code
        self.mark = uuid.uuid4().hex
        self.metadata = {"journey": self.mark, "note": NOTE}
        self.stack = contextlib.ExitStack()
        self.runner = None

    @property
    def sandbox(self):
        if "shared" not in self.__dict__:
            self.shared = self.new(metadata=self.metadata, envs={"GREETING": GREETING})
        return self.shared

    def new(self, template=None, **wanted):
        """A sandbox of one step; it is ended at the end where the step does not."""
        sandbox = Sandbox.create(template or self.template, timeout=wanted.pop("timeout", LIFE_S), **wanted)
        self.stack.callback(sandbox.kill)
        return sandbox

    @property
    def dead(self):
        """A sandbox that is no more."""
        if "gone" not in self.__dict__:
            self.gone = self.new()
            same(self.gone.kill(), True)
        return self.gone

    @property
    def coder(self):
        """A sandbox in which cells are run."""
        if "interpreter" not in self.__dict__:
            import e2b_code_interpreter

            self.interpreter = e2b_code_interpreter.Sandbox.create(self.code, timeout=LIFE_S)
            self.stack.callback(self.interpreter.kill)
        return self.interpreter

    def place(self, name):
        """A directory of a step's own."""
        path = f"/home/user/{name}"
        self.sandbox.files.make_dir(path)
        return path

    def wait(self, coroutine):
        """Runs what is asynchronous, in one loop for all steps."""
        if self.runner is None:
            self.runner = self.stack.enter_context(asyncio.Runner())
        return self.runner.run(coroutine)

    async def async_sandbox(self):
        if "asynchronous" not in self.__dict__:
            self.asynchronous = await AsyncSandbox.create(self.template, timeout=LIFE_S)
            identity = self.asynchronous.sandbox_id
            self.stack.callback(lambda: Sandbox.kill(identity))
        return self.asynchronous


def out(sandbox, command, **wanted):
    """What a command writes, which must end well."""
    return sandbox.commands.run(command, **wanted).stdout


def listed(wanted, **more):
    """Every sandbox with this metadata, from all pages."""
    pages, found = Sandbox.list(query=SandboxQuery(metadata=wanted, **more)), []
    while pages.has_next:
        found += pages.next_items()
    return found


def state_of(info):
    return getattr(info.state, "value", info.state)


def seconds_left(info):
    return (info.end_at - datetime.datetime.now(datetime.UTC)).total_seconds()


def fetch(url, headers=(), data=None):
    """What a client without the SDK is answered: status and body."""
    request = urllib.request.Request(url, data=data, headers=dict(headers))
    # Proxies of the environment are not for a server on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
