"""Sessions: how soon one is there, what many at once come to, and what they cost."""

import concurrent.futures
import glob
import http.client
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import threading
import time
import urllib.parse

from .common import DEV, HERE, Api, Bench, read, resident_kb, show_times, summary, timed

POOL = 4
STORED = 1000
AT_ONCE = 100
STAGGER_S = 0.2
# A stop takes no longer than the daemon's own deadlines.
PATIENCE_S = 90

# What a template warms up: about what a notebook or an agent imports at its start.
IMPORTS = ("import asyncio, json, sqlite3, email.message, http.client, http.server, unittest, unittest.mock, xml.dom.minidom,"
           " xml.sax, decimal, fractions, multiprocessing, concurrent.futures, logging.config, ssl, urllib.request, ctypes,"
           " tarfile, zipfile, csv, difflib, doctest, pdb, pydoc, statistics, uuid, xmlrpc.client, smtplib, ftplib, imaplib,"
           " curses, wsgiref.simple_server, socket, time;"
           " s = socket.create_server(('127.0.0.1', 8001)); time.sleep(1e9)")

# Runs `true` in a bundle for each line that it is told, as directly as it can be done: podman's user namespace, an overlay
# that podman mounted, and runsc with the flags that our sandboxes have.
RAW = r"""
set -e
container=$(podman create --network=none "$1" true)
root=$(podman mount "$container")
bundle=$(mktemp -d)
cleanup() { podman rm -f "$container" >/dev/null; rm -rf "$bundle"; }
trap cleanup EXIT
(cd "$bundle" && /usr/bin/runsc spec -- true)
sed -i 's|"path": "rootfs"|"path": "'"$root"'"|; s|"terminal": true|"terminal": false|; s|"readonly": true|"readonly": false|' "$bundle/config.json"
echo ready
while read -r word; do
    /usr/bin/runsc --root "$bundle/state" --platform=ptrace --ignore-cgroups --network=none --host-uds=open --directfs=false \
        --overlay2=root:self run --bundle "$bundle" "bench-$word" </dev/null
    echo "$?"
done
"""


class Raw:
    """runsc without us and without podman."""

    def __init__(self, bench):
        self.process = subprocess.Popen([*bench.podman, "unshare", "sh", "-c", RAW, "raw", bench.image],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.number = 0
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit("bench: raw runsc cannot be prepared")

    def run(self):
        self.number += 1
        self.process.stdin.write(f"{self.number}\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "0\n":
            raise SystemExit("bench: raw runsc failed")

    def close(self):
        self.process.stdin.close()
        self.process.wait(PATIENCE_S)


class Casemated:
    """A daemon of the benchmark's own, on podman's service of the development daemon."""

    def __init__(self, templates=None, settings="", **bounds):
        theirs = os.path.realpath(f"{DEV}/shared")
        text = read(f"{theirs}/casemate.yaml")
        self.program = f"{theirs}/bin/casemated"
        self.client = f"{theirs}/bin/casemate"
        self.files = f"{theirs}/bench"
        self.runtime = re.search(r"^runtime_dir: (.*)/daemon$", text, re.M).group(1) + "/bench"
        self.clear()
        user = pwd.getpwnam("casemate")
        group = os.stat(os.path.dirname(self.runtime) + "/daemon").st_gid
        for path, mode, gid in ((self.files, 0o755, user.pw_gid), (f"{self.files}/state", 0o700, user.pw_gid),
                                (f"{self.files}/templates", 0o755, user.pw_gid), (self.runtime, 0o750, group)):
            os.mkdir(path)
            os.chmod(path, mode)
            os.chown(path, user.pw_uid, gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = "127.0.0.1:%d" % free.getsockname()[1]
        self.url = f"http://{address}"
        text = re.sub(r"^state_dir: .*", f"state_dir: {self.files}/state", text, flags=re.M)
        text = re.sub(r"^runtime_dir: .*", f"runtime_dir: {self.runtime}", text, flags=re.M)
        text = re.sub(r"^  listen: .*", f"  listen: {address}", text, flags=re.M)
        text += f"\n{settings}sessions:\n" + "".join(f"  {name}: {value}\n" for name, value in bounds.items())
        self.config = f"{self.files}/casemate.yaml"
        self.write(self.config, text)
        base = read(f"{theirs}/templates/base.yaml")
        self.write(f"{self.files}/templates/base.yaml", base)
        self.write(f"{self.files}/templates/warm.yaml", f"{base}\npool: {POOL}\n")
        self.write(f"{self.files}/templates/imports.yaml", f"{base}\n" + IMPORTING)
        for name, more in (templates or {}).items():
            self.write(f"{self.files}/templates/{name}.yaml", f"{base}\n{more}")
        self.process = None
        self.start()
        self.key = self.admin("key", "create", "bench")

    @staticmethod
    def write(path, text):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o644)

    def clear(self):
        shutil.rmtree(self.files, ignore_errors=True)
        shutil.rmtree(self.runtime, ignore_errors=True)

    def admin(self, *arguments):
        environ = {"PATH": "/usr/bin:/bin", "CASEMATE_ADMIN_SOCKET": f"{self.runtime}/admin.sock"}
        return subprocess.run([self.client, "admin", *arguments], env=environ, check=True, capture_output=True,
                              text=True).stdout.strip()

    def start(self):
        """Starts it; how many milliseconds it took until it said that it is ready."""
        path = f"{self.runtime}/notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(path)
            os.chmod(path, 0o666)
            notify.settimeout(PATIENCE_S)
            with open(f"{self.files}/casemated.log", "ab") as log:
                began = time.perf_counter()
                self.process = subprocess.Popen([self.program, "--config", self.config], user="casemate", group="casemate",
                                                extra_groups=os.getgrouplist("casemate", pwd.getpwnam("casemate").pw_gid),
                                                env={"NOTIFY_SOCKET": path, "PATH": "/usr/bin:/bin"}, cwd="/",
                                                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            while b"READY=1" not in notify.recv(4096):
                pass
            took = (time.perf_counter() - began) * 1000
        os.remove(path)
        return took

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)

    def api(self):
        return Api(self.url, self.key)

    def standing(self, api):
        return next(one["pool_ready"] for one in api.call("GET", "/v1/templates")["items"] if one["name"] == "warm")

    def cpu_ms(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1000 // os.sysconf("SC_CLK_TCK")


# The session that asks for one file less than the template gives has its own warm-up.
IMPORTING = f"""
warm_up:
  argv: [python3, -c, {json.dumps(IMPORTS)}]
  ready:
    port: 8001
    interval_ms: 50
"""
LESS = {"open_files": 8191}


def until(what, look):
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: waited in vain: {what}")
        time.sleep(0.01)


def first_command(api, template, **wanted):
    session = api.call("POST", "/v1/sessions", {"template": template, **wanted})
    answer = api.call("POST", f"/v1/sessions/{session['id']}/run", {"argv": ["true"]})
    if answer["exit_code"] != 0:
        raise SystemExit(f"bench: true ended with {answer}")
    return session["id"]


def one_by_one(bench, daemon, rounds):
    api, raw = daemon.api(), Raw(bench)
    figures = {"runsc": [], "warm": [], "cold": [], "podman": []}
    try:
        for _ in range(rounds):
            figures["runsc"].append(timed(raw.run)[0])
            for kind, template in (("warm", "warm"), ("cold", "base")):
                until("the pool is full", lambda: daemon.standing(api) == POOL)
                took, session = timed(lambda: first_command(api, template))
                figures[kind].append(took)
                api.call("DELETE", f"/v1/sessions/{session}")
            until("the pool is full", lambda: daemon.standing(api) == POOL)
            figures["podman"].append(bench.timed_podman("run", "--rm", "--network=none", bench.image, "true"))
    finally:
        raw.close()
    return {name: summary(samples) for name, samples in figures.items()}


def warm_ups(bench, daemon, rounds):
    """A template that warms up: sessions that begin as its checkpoint, and sessions in which that is done."""
    api = daemon.api()
    api.call("DELETE", f"/v1/sessions/{first_command(api, 'imports')}")

    def checkpoint():
        return api.call("GET", "/v1/templates/imports")["checkpoint"]

    until("there is a checkpoint", lambda: checkpoint()["is_there"])
    figures, memory = {"restored": [], "live": []}, {"restored": [], "live": []}
    for _ in range(rounds):
        for kind, wanted in (("restored", {}), ("live", {"limits": LESS})):
            took, session = timed(lambda: first_command(api, "imports", **wanted))
            figures[kind].append(took)
            container = bench.ask_podman("ps", "--no-trunc", "--quiet", "--filter", f"name=casemate-{session}").strip()
            memory[kind].append(proportional_kb(container)["runsc"])
            api.call("DELETE", f"/v1/sessions/{session}")
    if not checkpoint()["is_there"]:
        raise SystemExit(f"bench: the checkpoint was lost: {checkpoint()}")
    figures = {name: summary(samples) for name, samples in figures.items()}
    figures["warm_up"] = {f"{kind}_kb": round(statistics.median(kb)) for kind, kb in memory.items()}
    figures["warm_up"]["checkpoint_kb"] = checkpoint()["size_bytes"] // 1024
    return figures


class Watch:
    """The most memory that the daemon has meanwhile."""

    def __init__(self, pid):
        self.pid, self.most, self.over = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while not self.over.wait(0.02):
            self.most = max(self.most, resident_kb(self.pid))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def many(daemon, pid, template, stagger_s):
    """So many clients, each of which creates a session, runs its first command and ends it."""
    barrier = threading.Barrier(AT_ONCE)
    parts = urllib.parse.urlsplit(daemon.url)
    refusals, samples = [], []

    def client(number):
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=300)
        headers = {"Authorization": f"Bearer {daemon.key}", "Content-Type": "application/json"}

        def call(method, path, body):
            connection.request(method, path, body=json.dumps(body), headers=headers)
            answer = connection.getresponse()
            content = answer.read()
            return answer, json.loads(content) if content else None

        barrier.wait()
        time.sleep(number * stagger_s)
        began = time.perf_counter()
        answer, session = call("POST", "/v1/sessions", {"template": template})
        if answer.status != 201:
            refusals.append((answer.status, session.get("code"), answer.headers.get("Retry-After") is not None))
            return
        here = f"/v1/sessions/{session['id']}"
        answer, outcome = call("POST", f"{here}/run", {"argv": ["true"]})
        if answer.status != 200 or outcome["exit_code"] != 0:
            refusals.append((answer.status, "run", False))
        samples.append((time.perf_counter() - began) * 1000)
        call("DELETE", here, None)

    with Watch(pid) as watch, concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        took, _ = timed(lambda: list(pool.map(client, range(AT_ONCE))))
    kinds = {" ".join(map(str, kind[:2])) + (" with Retry-After" if kind[2] else ""): refusals.count(kind)
             for kind in set(refusals)}
    return {**summary(samples), "refused": kinds, "all_ms": round(took), "daemon_most_kb": watch.most}


def proportional_kb(name):
    """The memory of each process whose command line has this in it, what is shared being shared out."""
    found = {}
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = file.read()
            if name.encode() not in words:
                continue
            with open(f"{os.path.dirname(path)}/smaps_rollup", encoding="ascii") as file:
                kb = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            continue
        kind = "conmon" if b"conmon" in words.split(b"\0")[0] else "runsc"
        found[kind] = found.get(kind, 0) + kb
    return found


def idle(bench, daemon, count):
    """So many sessions that do nothing."""
    apis = threading.local()

    def call(method, path, body=None):
        if not hasattr(apis, "own"):
            apis.own = daemon.api()
        return apis.own.call(method, path, body)

    api = daemon.api()
    before_kb = resident_kb(daemon.process.pid)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        took, ids = timed(lambda: list(pool.map(
            lambda _: call("POST", "/v1/sessions", {"template": "base"})["id"], range(count))))
        after_kb = resident_kb(daemon.process.pid)
        cpu, began = daemon.cpu_ms(), time.monotonic()
        beside = [timed(lambda: call("DELETE", f"/v1/sessions/{first_command(api, 'base')}"))[0] for _ in range(10)]
        cpu, seconds = daemon.cpu_ms() - cpu, time.monotonic() - began
        containers = bench.ask_podman("ps", "--no-trunc", "--quiet").split()
        memory = {}
        for container in containers:
            for kind, kb in proportional_kb(container).items():
                memory.setdefault(kind, []).append(kb)
        guests = [call("GET", f"/v1/sessions/{one}/usage")["now"]["guest_bytes"] // 1024 for one in ids[:20]]
        wrong = [one for one in ids if call("POST", f"/v1/sessions/{one}/run", {"argv": ["true"]})["exit_code"] != 0]
        list(pool.map(lambda one: call("DELETE", f"/v1/sessions/{one}"), ids))
    return {
        "sessions": count, "made_ms": round(took), "wrong": len(wrong), "create_beside_ms": round(statistics.median(beside), 2),
        "daemon_cpu_ms_per_s": round(cpu / seconds, 1),
        "daemon_kb_each": round((after_kb - before_kb) / count, 1), "daemon_kb": after_kb,
        "conmon_kb_each": round(statistics.mean(memory["conmon"])), "runsc_kb_each": round(statistics.mean(memory["runsc"])),
        "guest_kb_each": round(statistics.median(guests)),
    }


def starts(daemon, rounds):
    """Until it is ready: with what it has in its store, and with so many sessions more."""
    figures = {"start_few": [], "start_many": []}
    for name in figures:
        daemon.stop()
        if name == "start_many":
            multiply(f"{daemon.files}/state/state.db")
        for _ in range(rounds):
            figures[name].append(daemon.start())
            daemon.stop()
        daemon.start()
    return {name: summary(samples) for name, samples in figures.items()}


def multiply(path):
    """Copies sessions that have ended, as they are."""
    user = pwd.getpwnam("casemate")
    with sqlite3.connect(path) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(sessions)") if row[1] not in ("seq", "id")]
        names = ", ".join(columns)
        have = db.execute("SELECT count(*) FROM sessions").fetchone()[0]
        for _ in range(max(0, STORED - have)):
            number = "".join(secrets.choice("0123456789abcdefghjkmnpqrstvwxyz") for _ in range(25))
            db.execute(f"INSERT INTO sessions (id, {names}) SELECT ?, {names} FROM sessions WHERE ended_at IS NOT NULL LIMIT 1",
                       (f"ses_0{number}",))
        assert db.execute("SELECT count(*) FROM sessions").fetchone()[0] >= STORED
    for left in glob.glob(f"{path}*"):
        os.chown(left, user.pw_uid, user.pw_gid)


def measure(rounds, idle_count):
    bench = Bench()
    daemon = Casemated(max=idle_count + 56, max_of_team=idle_count + 56)
    try:
        figures = {"daemon_idle_kb": resident_kb(daemon.process.pid)}
        figures.update(one_by_one(bench, daemon, rounds))
        figures.update(warm_ups(bench, daemon, max(10, rounds // 4)))
        for name, template, stagger in (("staggered_warm", "warm", STAGGER_S), ("staggered_cold", "base", STAGGER_S),
                                        ("burst_warm", "warm", 0), ("burst_cold", "base", 0)):
            figures[name] = many(daemon, daemon.process.pid, template, stagger)
        figures["burst_64"] = many(bench, bench.pid, "base", 0)
        figures["idle"] = idle(bench, daemon, idle_count)
        figures.update(starts(daemon, 10))
    finally:
        daemon.stop()
        daemon.clear()

    def ratio(ours, theirs):
        return round(figures[ours]["median_ms"] / figures[theirs]["median_ms"], 3)

    figures["ratios"] = {
        "warm / raw runsc run true (<= 0.15)": ratio("warm", "runsc"),
        "cold / podman run (<= 1.10)": ratio("cold", "podman"),
        "begun as a checkpoint / warmed up live (<= 0.5)": ratio("restored", "live"),
    }
    return figures


def show(figures):
    show_times(figures, (
        ("create to first command, warm", "warm"),
        ("raw runsc run … true", "runsc"),
        ("create to first command, cold", "cold"),
        ("podman run --rm … true", "podman"),
        ("create to first command, begun as a checkpoint", "restored"),
        ("create to first command, warmed up live", "live"),
        (f"{AT_ONCE} creates, one every 200 ms, warm", "staggered_warm"),
        (f"{AT_ONCE} creates, one every 200 ms, cold", "staggered_cold"),
        (f"{AT_ONCE} creates at once, warm", "burst_warm"),
        (f"{AT_ONCE} creates at once, cold", "burst_cold"),
        (f"{AT_ONCE} creates at once, room for 64", "burst_64"),
        ("casemated's start until ready, few sessions stored", "start_few"),
        (f"casemated's start until ready, {STORED} stored", "start_many"),
    ))
    for label, value in figures["ratios"].items():
        print(f"{label:<52}{value:>9}")
    for name in ("staggered_warm", "staggered_cold", "burst_warm", "burst_cold", "burst_64"):
        row = figures[name]
        refused = ", ".join(f"{count} × {kind}" for kind, count in row["refused"].items()) or "none"
        print(f"{name}: {row['all_ms']} ms in all, refused: {refused}, daemon at most {row['daemon_most_kb']} kB")
    kept = figures["warm_up"]
    print(f"a checkpoint of {kept['checkpoint_kb']} kB; idle in gVisor: begun as it {kept['restored_kb']} kB, "
          f"warmed up live {kept['live_kb']} kB")
    quiet = figures["idle"]
    for label, value, unit in (
        ("daemon without sessions", figures["daemon_idle_kb"], "kB"),
        (f"{quiet['sessions']} idle sessions, all made", quiet["made_ms"], "ms"),
        ("  of which do not answer as they should", quiet["wrong"], ""),
        ("  a create to its first command and end beside them", quiet["create_beside_ms"], "ms"),
        ("  processor time of the daemon meanwhile", quiet["daemon_cpu_ms_per_s"], "ms/s"),
        ("  the daemon with all of them", quiet["daemon_kb"], "kB"),
        ("  each in the daemon", quiet["daemon_kb_each"], "kB"),
        ("  each in conmon", quiet["conmon_kb_each"], "kB"),
        ("  each in gVisor, with the guest", quiet["runsc_kb_each"], "kB"),
        ("  of which the guest", quiet["guest_kb_each"], "kB"),
    ):
        print(f"{label:<52}{value:>9} {unit}")
