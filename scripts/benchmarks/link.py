"""The link to a guest: trips, programs, files and terminals."""

import base64
import concurrent.futures
import http.client
import json
import os
import re
import socket
import statistics
import time
import urllib.parse

from .common import DEV, GIB, Api, Bench, resident_kb, show_times, summary, timed

# Spawns `true` for each line that it is told, and says how many microseconds that took.
SPAWN = """
import os, sys, time
print('ready;', flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    os.waitpid(os.posix_spawn('/bin/true', ['true'], os.environ), 0)
    print('%d;' % round((time.perf_counter() - began) * 1e6), flush=True)
"""


class Terminal:
    """Just enough of a WebSocket (RFC 6455) to type on a terminal."""

    def __init__(self, bench, path):
        parts = urllib.parse.urlsplit(bench.url)
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        nonce = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1", f"Host: {parts.netloc}", f"Authorization: Bearer {bench.key}", "Connection: Upgrade",
            "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {nonce}",
            "Sec-WebSocket-Protocol: casemate.process.v1", "", "",
        ]
        self.socket.sendall("\r\n".join(lines).encode())
        if b" 101 " not in self.file.readline():
            sys.exit(f"bench: {path} is no WebSocket")
        while self.file.readline().strip():
            pass

    def send(self, data, opcode=2):
        # Masked with zeros, which a mask may be.
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        self.socket.sendall(bytes([0x80 | opcode]) + size + bytes(4) + data)

    def receive(self):
        head = self.file.read(2)
        length = head[1] & 0x7F
        if length == 126:
            length = int.from_bytes(self.file.read(2), "big")
        elif length == 127:
            length = int.from_bytes(self.file.read(8), "big")
        return self.file.read(length)

    def receive_until(self, wanted):
        seen = b""
        while wanted not in seen:
            seen += self.receive()
        return seen


def measure(rounds, giants):
    bench = Bench()
    api = bench.api
    figures = {}
    limits = {"disk_bytes": 4 * GIB}
    session = api.call("POST", "/v1/sessions", {"limits": limits, "timeout_s": 7200})
    here = f"/v1/sessions/{session['id']}"
    name = bench.ask_podman(
        "run", "-d", "--network=none", "--annotation", f"io.casemate.file-limit-bytes={4 * GIB}", bench.image, "sleep", "7200")
    try:
        trip, local, ours, spawn, theirs, echo = [], [], [], [], [], []
        run = {"argv": ["true"]}
        spawner = Terminal(bench, f"{here}/exec")
        spawner.send(json.dumps({"argv": ["python3", "-c", SPAWN], "stdin": True}).encode(), opcode=1)
        spawner.receive_until(b"ready;")
        for turn in range(rounds):
            local.append(timed(lambda: api.call("GET", here))[0])
            trip.append(timed(lambda: api.call("GET", f"{here}/ports"))[0])
            ours.append(timed(lambda: api.call("POST", f"{here}/run", run))[0])
            spawner.send(b"\n")
            spawn.append(int(re.search(rb"(\d+);", spawner.receive_until(b";")).group(1)) / 1000)
            theirs.append(bench.timed_podman("exec", name, "true"))
        figures.update(local=summary(local), trip=summary(trip), true=summary(ours), exec=summary(theirs), spawn=summary(spawn))

        terminal = Terminal(bench, f"{here}/exec")
        terminal.send(b'{"argv":["cat"],"pty":{"rows":24,"cols":80}}', opcode=1)
        terminal.receive_until(b"started")
        for turn in range(rounds):
            key = b"%c" % (97 + turn % 26)
            echo.append(timed(lambda: (terminal.send(key), terminal.receive_until(key)))[0])
        figures["echo"] = summary(echo)

        # Incompressible and not sparse, and the same for both.
        make = f"head -c {GIB} /dev/urandom > /var/tmp/giant"
        api.call("POST", f"{here}/run", {"argv": ["sh", "-c", make], "timeout_s": 600})
        bench.ask_podman("exec", name, "sh", "-c", make)
        url = f"{bench.url}{here}/files?path=/var/tmp/"
        giant = f"{DEV}/giant"
        with open(giant, "wb") as file:
            for _ in range(GIB >> 20):
                file.write(os.urandom(1 << 20))
        out, out_theirs, into, into_theirs, own = [], [], [], [], []
        write = ["dd", "if=/dev/zero", "of=/var/tmp/own", "bs=512K", f"count={GIB >> 19}"]
        for turn in range(giants):
            out.append(timed(lambda: bench.curl(f"{url}giant"))[0])
            with open(os.devnull, "wb") as null:
                out_theirs.append(bench.timed_podman("exec", name, "cat", "/var/tmp/giant", stdout=null))
            into.append(timed(lambda: bench.curl("-T", giant, "-H", "Expect:", f"{url}in"))[0])
            with open(giant, "rb") as file:
                into_theirs.append(bench.timed_podman("exec", "-i", name, "sh", "-c", "cat > /var/tmp/in", stdin=file))
            own.append(api.call("POST", f"{here}/run", {"argv": write, "timeout_s": 600})["duration_ms"])
            api.call("POST", f"{here}/run", {"argv": ["rm", "/var/tmp/own"]})
        os.remove(giant)
        figures.update(out=summary(out), out_exec=summary(out_theirs), into=summary(into), into_exec=summary(into_theirs),
                       own=summary(own))

        def one(number):
            body = {"argv": ["sh", "-c", f"sleep 1; exit {number % 7}"], "tag": f"many-{number}"}
            return Api(bench.url, bench.key).call("POST", f"{here}/processes", body, expect=(201,))

        def all_at_once():
            with concurrent.futures.ThreadPoolExecutor(200) as pool:
                list(pool.map(one, range(200)))
            while True:
                found = api.call("GET", f"{here}/processes")["processes"]
                many = [process for process in found if process.get("tag", "").startswith("many-")]
                if len(many) == 200 and not any(process["running"] for process in many):
                    return many

        took, many = timed(all_at_once)
        wrong = [process for process in many if process["exit"]["exit_code"] != int(process["tag"][5:]) % 7]
        figures["many"] = {"ms": round(took), "wrong": len(wrong)}
        # With everything that it keeps of them.
        figures["guest_kept_kb"] = api.call("GET", f"{here}/usage")["now"]["guest_bytes"] // 1024

        before = resident_kb(bench.pid)
        most = before
        parts = urllib.parse.urlsplit(bench.url)
        slow = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
        slow.request("GET", f"{here}/files?path=/var/tmp/giant", headers=api.headers)
        answer = slow.getresponse()
        while answer.read(1 << 20):
            most = max(most, resident_kb(bench.pid))
            # A reader that is slower than everything before it.
            time.sleep(0.002)
        figures["slow_reader_kb"] = {"before": before, "most": most}
    finally:
        bench.ask_podman("rm", "-f", "--time", "0", name)
        api.call("DELETE", here)
    resident = []
    for _ in range(9):
        session = api.call("POST", "/v1/sessions", {})
        here = f"/v1/sessions/{session['id']}"
        api.call("POST", f"{here}/run", {"argv": ["true"]})
        resident.append(api.call("GET", f"{here}/usage")["now"]["guest_bytes"] // 1024)
        api.call("DELETE", here)
    figures["guest_resident_kb"] = round(statistics.median(resident))
    figures["guest_program_kb"] = os.path.getsize(f"{DEV}/shared/bin/casemate-guest") // 1024

    def ratio(ours_, theirs_):
        return round(figures[ours_]["median_ms"] / figures[theirs_]["median_ms"], 3)

    figures["link_trip_ms"] = round(figures["trip"]["median_ms"] - figures["local"]["median_ms"], 2)
    figures["ratios"] = {
        "run `true` / a spawn in the sandbox (<= 1.25)": ratio("true", "spawn"),
        "run `true` / podman exec (<= 0.05)": ratio("true", "exec"),
        "1 GiB out: podman exec / ours (>= 3)": ratio("out_exec", "out"),
        "1 GiB in: podman exec / ours (>= 3)": ratio("into_exec", "into"),
        "1 GiB in: podman exec / a program's own writing": ratio("into_exec", "own"),
    }
    return figures


def show(figures):
    show_times(figures, (
        ("a request that the daemon answers", "local"),
        ("a request that the guest answers", "trip"),
        ("run `true` in a live session", "true"),
        ("a spawn by a program in the sandbox", "spawn"),
        ("podman exec … true", "exec"),
        ("a key typed on a terminal until it is shown", "echo"),
        ("1 GiB out over the API", "out"),
        ("1 GiB out through podman exec … cat", "out_exec"),
        ("1 GiB in over the API", "into"),
        ("1 GiB in through podman exec … cat", "into_exec"),
        ("1 GiB written by a program in the sandbox", "own"),
    ))
    for label, value in figures["ratios"].items():
        print(f"{label:<52}{value:>9}")
    slow = figures["slow_reader_kb"]
    for label, value, unit in (
        ("round trip over the link (difference of medians)", figures["link_trip_ms"], "ms"),
        ("200 processes at once, started and ended", figures["many"]["ms"], "ms"),
        ("  of which ended otherwise than they should", figures["many"]["wrong"], ""),
        ("daemon before a slow reader of 1 GiB", slow["before"], "kB"),
        ("daemon at most meanwhile", slow["most"], "kB"),
        ("guest, idle", figures["guest_resident_kb"], "kB"),
        ("guest, with 200 ended processes kept", figures["guest_kept_kb"], "kB"),
        ("guest's program", figures["guest_program_kb"], "kB"),
    ):
        print(f"{label:<52}{value:>9} {unit}")
