"""The record: how fast it is written, beside a bare SQLite loop and one flush of the same disk, all in one run."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

from .common import REPO


def measure(seconds):
    return program("record", seconds)


def program(name, *arguments):
    """Lines of figures of one of the measuring programs, in a directory of its own."""
    # On a disk: what is in memory only is flushed at once.
    directory = tempfile.mkdtemp(prefix="casemate-record-", dir=os.environ.get("CASEMATE_BENCH_DIR", "/var/tmp"))
    try:
        command = ["cargo", "bench", "--quiet", "--locked", "--profile", "release", "-p", "casemate", "--bench", name, "--"]
        done = subprocess.run([*command, directory, *map(str, arguments)], cwd=REPO, stdout=subprocess.PIPE, check=False)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if done.returncode:
        sys.exit("bench: the measuring program failed; see above")
    return [json.loads(line) for line in done.stdout.splitlines()]


def show(figures):
    print(f"{'grade':<9}{'writers':>8}{'events/s':>10}{'batch':>8}{'bare/s':>10}{'of bare':>9}{'flush':>9}{'of flushes':>12}{'median':>9}{'p99':>9}   (ms)")
    for row in figures:
        of_flushes = f"{row['of_flushes']:.2f}" if row["grade"] == "power" else "-"
        print(
            f"{row['grade']:<9}{row['writers']:>8}{row['events_per_s']:>10.0f}{row['batch']:>8.1f}{row['bare_per_s']:>10.0f}{row['of_bare']:>9.2f}"
            f"{row['flush_ms']:>9.2f}{of_flushes:>12}{row['median_ms']:>9.2f}{row['p99_ms']:>9.2f}"
        )
    print("of bare: beside a loop that writes the same rows in batches as large as ours were, with the same flushes")
    print("of flushes: beside all writers' events in every flush, one flush after the other")
