"""What every benchmark needs: the running development daemon, podman beside it, and figures."""

import http.client
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
import urllib.parse

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REPO = os.path.dirname(HERE)
DEV = os.environ.get("CASEMATE_DEV_DIR", f"{REPO}/target/dev")
GIB = 1 << 30


def environment():
    """What `scripts/dev env` prints, as a dictionary."""
    text = subprocess.run([f"{HERE}/dev", "env"], check=True, capture_output=True, text=True).stdout
    words = shlex.split(text, comments=True)
    return dict(word.split("=", 1) for word in words if "=" in word)


def read(path):
    with open(path, encoding="ascii") as file:
        return file.read().strip()


class Api:
    """The HTTP API over one kept connection."""

    def __init__(self, url, key):
        parts = urllib.parse.urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def call(self, method, path, body=None, expect=(200, 201, 204)):
        data = None if body is None else json.dumps(body)
        try:
            self.connection.request(method, path, body=data, headers=self.headers)
            answer = self.connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError):
            # It was idle for longer than the daemon waits.
            self.connection.close()
            self.connection.request(method, path, body=data, headers=self.headers)
            answer = self.connection.getresponse()
        content = answer.read()
        if answer.status not in expect:
            sys.exit(f"bench: {method} {path} answered {answer.status}: {content.decode(errors='replace')}")
        return json.loads(content) if content else None


def timed(work):
    began = time.perf_counter()
    result = work()
    return (time.perf_counter() - began) * 1000, result


def summary(samples):
    ordered = sorted(samples)
    return {
        "median_ms": round(statistics.median(ordered), 2),
        "p10_ms": round(ordered[len(ordered) // 10], 2),
        "p90_ms": round(ordered[(len(ordered) * 9) // 10], 2),
        "p99_ms": round(ordered[(len(ordered) * 99) // 100], 2),
        "n": len(ordered),
    }


def resident_kb(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def show_times(figures, labels):
    print(f"{'what':<52}{'median':>9}{'p10':>9}{'p90':>9}{'p99':>9}{'n':>5}   (ms)")
    for label, key in labels:
        row = figures[key]
        print(f"{label:<52}{row['median_ms']:>9}{row['p10_ms']:>9}{row['p90_ms']:>9}{row['p99_ms']:>9}{row['n']:>5}")


class Bench:
    """The running development daemon, and podman beside it."""

    def __init__(self):
        env = environment()
        self.url, self.key = env["CASEMATE_URL"], env["CASEMATE_API_KEY"]
        self.api = Api(self.url, self.key)
        self.pid = read(f"{DEV}/casemated.pid")
        self.image = read(f"{REPO}/target/image/base.oci.tar.digest")
        self.podman = [f"{HERE}/podman-service", "podman", f"{DEV}/podman"]
        # The cost of reaching podman as its user, which a person at a shell does not pay: taken off podman's times.
        self.overhead = statistics.median(timed(lambda: self.ask_podman("--version"))[0] for _ in range(9))

    def ask_podman(self, *arguments, stdin=None, stdout=subprocess.PIPE):
        done = subprocess.run([*self.podman, *arguments], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            sys.exit(f"bench: podman {' '.join(arguments)} failed: {done.stderr.decode().strip()}")
        return (done.stdout or b"").decode().strip()

    def timed_podman(self, *arguments, **streams):
        return timed(lambda: self.ask_podman(*arguments, **streams))[0] - self.overhead

    def curl(self, *arguments):
        subprocess.run(["curl", "-sSf", "-o", "/dev/null", "-H", f"Authorization: Bearer {self.key}", *arguments], check=True)
