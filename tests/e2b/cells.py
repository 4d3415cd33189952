"""Steps: code cells, with the SDK for them."""

import base64
import importlib.util

import e2b
from steps import LIFE_S, raises, same, step


def interprets():
    """Whether the SDK for code cells is there."""
    return importlib.util.find_spec("e2b_code_interpreter") is not None


@step("code.state", "code", has=interprets)
def code_state(here):
    same(here.coder.run_code("x = 41").results, [])
    done = here.coder.run_code("x += 1\nx")
    same((done.text, done.error), ("42", None))


@step("code.output", "code", has=interprets)
def code_output(here):
    told, errors = [], []
    done = here.coder.run_code(
        "import sys\nprint('out')\nprint('err', file=sys.stderr)",
        on_stdout=lambda message: told.append(message.line),
        on_stderr=lambda message: errors.append(message.line),
    )
    same(("".join(done.logs.stdout), "".join(done.logs.stderr)), ("out\n", "err\n"))
    same(("".join(told), "".join(errors)), ("out\n", "err\n"))


@step("code.plot", "code", has=interprets)
def code_plot(here):
    done = here.coder.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()")
    same(done.error, None)
    pictures = [one.png for one in done.results if one.png]
    same(len(pictures), 1)
    assert base64.b64decode(pictures[0]).startswith(b"\x89PNG\r\n")


@step("code.data_frame", "code", has=interprets)
def code_data_frame(here):
    done = here.coder.run_code("import pandas\npandas.DataFrame({'a': [1, 2], 'b': ['x', 'y']})")
    same(done.error, None)
    assert "<table" in done.results[0].html and "y" in done.results[0].text, done.results
    same(done.results[0].is_main_result, True)


@step("code.error", "code", has=interprets)
def code_error(here):
    held = []
    done = here.coder.run_code("def divide():\n    return 1 / 0\ndivide()", on_error=held.append)
    same((done.error.name, done.error.value), ("ZeroDivisionError", "division by zero"))
    assert "return 1 / 0" in done.error.traceback and "divide()" in done.error.traceback, done.error
    same([one.name for one in held], ["ZeroDivisionError"])


@step("code.envs", "code", has=interprets)
def code_envs(here):
    code = "import os\nos.environ.get('WORD')"
    same(here.coder.run_code(code, envs={"WORD": "said"}).text, "'said'")
    same(here.coder.run_code(code).text, None)


@step("code.contexts", "code", has=interprets)
def code_contexts(here):
    coder = here.coder
    made = coder.create_code_context(cwd="/tmp")
    coder.run_code("mine = 1")
    same(coder.run_code("import os\nos.getcwd()", context=made).text, "'/tmp'")
    same(coder.run_code("mine", context=made).error.name, "NameError")
    assert made.id in [one.id for one in coder.list_code_contexts()]
    coder.run_code("kept = 1", context=made)
    coder.restart_code_context(made)
    same(coder.run_code("kept", context=made).error.name, "NameError")
    coder.remove_code_context(made)
    assert made.id not in [one.id for one in coder.list_code_contexts()]
    with raises(e2b.NotFoundException):
        coder.run_code("1", context=made)


@step("code.timeout", "code", has=interprets)
def code_timeout(here):
    made = here.coder.create_code_context()
    with raises(e2b.TimeoutException):
        here.coder.run_code("while True: pass", context=made, timeout=2)
    same(here.coder.run_code("'still there'").text, "'still there'")
    here.coder.remove_code_context(made)


@step("code.async", "code", has=interprets)
def code_async(here):
    async def act():
        import e2b_code_interpreter

        sandbox = await e2b_code_interpreter.AsyncSandbox.create(here.code, timeout=LIFE_S)
        try:
            same((await sandbox.run_code("6 * 7")).text, "42")
        finally:
            await sandbox.kill()

    here.wait(act())
