"""What the kernels of the code interpreter have beside IPython: an extension, which server.py has each kernel load.

- Environment variables that come with a cell are there while it runs, and then as they were before; one that the cell itself
  changed stays as it left it.
- What a cell writes to stdout and to stderr goes out in the order in which it was written. That of the programs that it runs is
  not kept beside its own.
- A data frame that is shown has its columns (`e2b/data`), a figure of matplotlib what is drawn in it (`e2b/chart`), unless they
  hold more than MAX_VALUES values, or cannot be read: then there are the other forms alone, as the picture or the table. The two
  names are those under which programs that are written for E2B's own kernels publish such things.
- exit() ends the cell.

None of its names are among the user's. Nothing is imported before it is needed: a kernel begins in a moment.
"""

import json
import math
import os
import sys
import warnings

from IPython.core.formatters import BaseFormatter
from traitlets import ObjectName, Unicode

# Of one data frame or figure. As JSON these are about 2 MB.
MAX_VALUES = 100_000
# Characters of output that go out at once.
MAX_GATHERED = 1 << 20


class Environment:
    """Variables for the time of one cell."""

    def __init__(self):
        self._given = {}
        self._earlier = {}

    def before(self, cell):
        # A cell that is run by another has none, and changes nothing.
        if given := (cell.cell_meta or {}).get("env_vars"):
            self._given, self._earlier = given, {name: os.environ.get(name) for name in given}
            os.environ.update(given)

    def after(self, result):
        if result and not (result.info.cell_meta or {}).get("env_vars"):
            return
        given, earlier, self._given, self._earlier = self._given, self._earlier, {}, {}
        for name, value in given.items():
            if os.environ.get(name) != value:
                continue
            if earlier[name] is None:
                del os.environ[name]
            else:
                os.environ[name] = earlier[name]


def keep_order(streams):
    """Has what was written to one stream go out before something is written to another, and before it is very much: each gathers
    for a while otherwise."""
    last, gathered = streams[0], 0

    def ordered(stream, write):
        def write_in_order(text):
            nonlocal last, gathered
            if last is not stream or gathered > MAX_GATHERED:
                last.flush()
                last, gathered = stream, 0
            gathered += len(text)
            return write(text)

        return write_in_order

    for stream in streams:
        stream.write = ordered(stream, stream.write)


class DataFormatter(BaseFormatter):
    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = dict


class ChartFormatter(BaseFormatter):
    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = dict

    def __call__(self, shown):
        # Not by its type: IPython removes figures from all formatters when matplotlib is set up.
        matplotlib = sys.modules.get("matplotlib.figure")
        if matplotlib and isinstance(shown, matplotlib.Figure):
            return chart(shown)
        return super().__call__(shown)


def columns(frame):
    """The columns of a data frame by name, as JSON has them: times are ISO 8601, what is missing is null."""
    if frame.size > MAX_VALUES:
        return None
    try:
        return {
            str(name): json.loads(
                frame.iloc[:, number].to_json(orient="values", date_format="iso", double_precision=15, default_handler=str)
            )
            for number, name in enumerate(frame.columns)
        }
    except Exception:  # what is in its cells can be anything, and the table is shown in any case
        return None


def chart(figure):
    """What is drawn in a figure, as E2B describes charts."""
    values = 0
    for axes in figure.axes:
        values += sum(len(line.get_xdata()) for line in axes.lines)
        values += sum(len(collection.get_offsets()) for collection in axes.collections)
        values += len(axes.patches)
    if values > MAX_VALUES:
        return None
    try:
        from e2b_charts import chart_figure_to_dict

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own, which would be among the cell's output
            return plain(chart_figure_to_dict(figure)) or None
    except Exception:  # it knows some kinds of charts, and the picture is shown in any case
        return None


def plain(value):
    """The same in what JSON has: numbers that are none are null."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if hasattr(value, "item"):  # of numpy
        return plain(value.item())
    return str(getattr(value, "value", value))  # a word of an enumeration


def leave():
    """What exit() does: it ends the cell, as sys.exit() does, and not the kernel, with all that was defined, a moment later."""
    raise SystemExit


def load_ipython_extension(shell):
    environment = Environment()
    shell.events.register("pre_run_cell", environment.before)
    shell.events.register("post_run_cell", environment.after)
    keep_order([sys.stdout, sys.stderr])
    formatters = shell.display_formatter.formatters
    formatters["e2b/data"] = data = DataFormatter(parent=shell.display_formatter)
    for module in ("pandas", "pandas.core.frame"):  # where it says that it is, since pandas 3 and before
        data.for_type_by_name(module, "DataFrame", columns)
    formatters["e2b/chart"] = ChartFormatter(parent=shell.display_formatter)
    shell.ask_exit = leave
