"""What a program does with an unmodified E2B SDK for Python, step by step; each step prints one line of JSON:
{"step", "result": "ok" | "absent" | "refused" | "failed", "why", "ms"}.

    journey.py                          the whole journey        --group failures | many | code    what goes wrong; many at once; code cells
    journey.py --only files --only kill these steps, and those whose names begin with "files."
    journey.py --list                   names of the steps       --refused STEP=CLASS:TEXT         the server must refuse this step so

The server is where E2B_API_URL and E2B_SANDBOX_URL say (one address, where one port is both), and E2B_API_KEY is a key of it;
E2B_OTHER_API_KEY one of another team, whose sandboxes are not to be seen. "absent" is what the SDK of this version cannot do, which
is told by looking at it; what the server cannot do is "failed" unless it was said with --refused. Ends with 0 if nothing failed.
"""

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import os
import signal
import sys
import time
import traceback

from steps import STEP_S, STEPS, Here

# Where steps are, in their order.
for module in ("sandboxes", "commands", "files", "asynchronous", "life", "failures", "cells"):
    importlib.import_module(module)


@dataclasses.dataclass
class Refusal:
    """How the server must refuse a step."""

    kind: str
    text: str

    def of(self, error):
        """Whether it is this one."""
        return self.kind in [one.__name__ for one in type(error).__mro__] and self.text in str(error)


def told(error):
    """An error with what led to it, and where in the journey it was."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.path.dirname(frame.filename) == os.path.dirname(__file__)]
    where = " < ".join(f"{frame.name}, {os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames[1:]))
    chain = []
    while error is not None and len(chain) < 6:
        chain.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return f"{' <- '.join(chain)[:1500]} ({where})"


def is_late(*_):
    raise AssertionError(f"it takes longer than {STEP_S} s")


def go(here, one, refusal):
    """Goes a step: its result, and why."""
    if one.has is not None and not one.has():
        return "absent", "this SDK does not have it"
    signal.alarm(STEP_S)
    try:
        one.act(here)
    except Exception as error:
        if refusal is not None and refusal.of(error):
            return "refused", f"{type(error).__name__}: {error}"
        return "failed", told(error)
    finally:
        signal.alarm(0)
    if refusal is not None:
        return "failed", f"it was not refused with {refusal.kind}: {refusal.text}"
    return "ok", ""


def asked_for():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--list", action="store_true", help="only say which steps there are")
    options.add_argument("--only", action="append", default=[], metavar="STEP", help="go this step, or those below it")
    options.add_argument("--group", action="append", default=[], choices=["journey", "failures", "many", "code"])
    options.add_argument("--template", default="base", help="what sandboxes are made of")
    options.add_argument("--code", default="code-interpreter-v1", metavar="TEMPLATE", help="of what those for code cells are made")
    options.add_argument("--refused", action="append", default=[], metavar="STEP=CLASS:TEXT")
    return options.parse_args()


def main():
    asked = asked_for()
    refusals = {}
    for text in asked.refused:
        name, _, refusal = text.partition("=")
        refusals[name] = Refusal(*refusal.partition(":")[::2])
    unknown = [name for name in refusals if name not in {one.name for one in STEPS}]
    assert not unknown, f"there is no step {unknown}"
    if asked.only:
        steps = [one for one in STEPS if any(one.name == name or one.name.startswith(f"{name}.") for name in asked.only)]
    else:
        steps = [one for one in STEPS if one.group in (asked.group or ["journey"])]
    assert steps, f"there is no step {asked.only}"
    if asked.list:
        print("\n".join(one.name for one in steps))
        return 0
    print(f"e2b {importlib.metadata.version('e2b')} at {os.environ['E2B_API_URL']}", file=sys.stderr)
    signal.signal(signal.SIGALRM, is_late)
    here = Here(asked.template, asked.code)
    failed = False
    with here.stack:
        for one in steps:
            began = time.monotonic()
            result, why = go(here, one, refusals.get(one.name))
            failed |= result == "failed"
            took = round((time.monotonic() - began) * 1000)
            print(json.dumps({"step": one.name, "result": result, "why": why, "ms": took}, ensure_ascii=False), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
