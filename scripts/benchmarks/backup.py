"""What a backup of a database of 1 GiB costs 32 writers: tests/benchmarks/backup.rs measures, this shows."""

import json
import os
import statistics
import subprocess

from .common import REPO


def measure(rounds, mib):
    command = ["cargo", "bench", "--quiet", "--locked", "--profile", os.environ.get("CASEMATE_BENCH_PROFILE", "dev")]
    command += ["-p", "casemate", "--bench", "backup", "--", str(mib), "6", str(min(rounds, 5))]
    run = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True)
    figures = json.loads(run.stdout.strip().splitlines()[-1])
    without, during = figures["without_per_s"], figures["during_per_s"]
    # Each backup beside the spells before and after it.
    beside = [d / statistics.mean(pair) for d, *pair in zip(during, without, without[1:])]
    figures["slowdown"] = 1 - statistics.median(beside)
    return figures


def show(figures):
    gib = 1 << 30
    print(f"a database of {figures['database_bytes'] / gib:.2f} GiB, opened in {figures['opened_ms']:.0f} ms; {figures['writers']} writers")
    print(f"  without a backup  {statistics.median(figures['without_per_s']):8.0f} records/s")
    print(f"  during a backup   {statistics.median(figures['during_per_s']):8.0f} records/s")
    print(f"  slowdown          {figures['slowdown'] * 100:8.1f} %   (at most 20 %)")
    print(f"  a backup takes    {statistics.median(figures['backup_s']):8.1f} s and {figures['backup_bytes'] / gib:.2f} GiB")
