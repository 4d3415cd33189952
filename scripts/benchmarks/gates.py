"""The two gates: a small server in a session through the endpoint, and what a session reaches outside, each beside shorter ways."""

import base64
import concurrent.futures
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

from .common import GIB, Bench, resident_kb, timed
from .sessions import PATIENCE_S, Casemated, until

PORT = 8000
CONNECTIONS = 8
# Of one session at most 192 connections at a time go through its link.
SESSIONS = 6
SECRET = "bench-secret-of-nobody"

# The same server in a session, in another sandbox and on the host: an answer of two bytes, one of a gibibyte, and WebSockets that echo.
SERVER = r"""
import asyncio, base64, hashlib, ssl, sys
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PIECE = b"x" * (1 << 20)
async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            if path == b"/ws":
                key = next(l.split(b": ", 1)[1] for l in head.split(b"\r\n") if l.lower().startswith(b"sec-websocket-key"))
                accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
                while True:
                    first, second = await reader.readexactly(2)
                    mask = await reader.readexactly(4)
                    data = await reader.readexactly(second & 127)
                    writer.write(bytes([0x81, len(data)]) + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))
            elif path == b"/big":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 30))
                for _ in range(1 << 10):
                    writer.write(PIECE)
                    await writer.drain()
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
            if b"connection: close" in head.lower():
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()
async def main(address, port, *paper):
    tls = None
    if paper:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*paper)
    server = await asyncio.start_server(serve, address, int(port), ssl=tls, backlog=1024)
    async with server:
        await server.serve_forever()
asyncio.run(main(*sys.argv[1:]))
"""

# Runs a program in gVisor with the host's network, without us and without podman's, until its standard input ends.
RAW = r"""
set -e
image=$1 words=$2
container=$(podman create --network=none "$image" true)
root=$(podman mount "$container")
bundle=$(mktemp -d)
cleanup() { runsc --root "$bundle/state" kill bench KILL 2>/dev/null; wait; podman rm -f "$container" >/dev/null; rm -rf "$bundle"; }
trap cleanup EXIT
(cd "$bundle" && runsc spec -- true)
jq --arg root "$root" --argjson words "$words" '.process.args = $words | .process.terminal = false | .root = {path: $root, readonly: false}
    | del(.linux.namespaces[] | select(.type == "network"))' "$bundle/config.json" > "$bundle/new"
mv "$bundle/new" "$bundle/config.json"
runsc --root "$bundle/state" --platform=ptrace --ignore-cgroups --network=host --overlay2=root:self run --bundle "$bundle" bench </dev/null &
cat >/dev/null
"""

# Asks one thing after the other over connections of their own, as programs do that know nothing of each other.
ASKER = r"""
import http.client, json, ssl, sys, time
way, host, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
def ask():
    target = "/"
    if way == "inside":
        connection = http.client.HTTPConnection(host, port)
    elif way == "tls":
        connection = http.client.HTTPSConnection("127.0.0.1", 3128, context=ssl.create_default_context(cafile="/tmp/ca.pem"))
        connection.set_tunnel(host, port)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", 3128)
        target = f"{'https' if way == 'added' else 'http'}://{host}:{port}/"
    connection.request("GET", target, headers={"Host": f"{host}:{port}"})
    assert connection.getresponse().read() == b"ok"
    connection.close()
times = []
for _ in range(count):
    began = time.perf_counter()
    ask()
    times.append((time.perf_counter() - began) * 1000)
print(json.dumps(times))
"""


def load(port, path, headers, seconds):
    """Requests a second of a few kept connections, and how long they took."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()
    times, stop = [], time.perf_counter() + seconds

    def one():
        own = []
        with socket.create_connection(("127.0.0.1", port), 30) as stream:
            while (began := time.perf_counter()) < stop:
                stream.sendall(request)
                answer = b""
                while not answer.endswith(b"\r\n\r\nok"):
                    piece = stream.recv(4096)
                    if not piece:
                        raise RuntimeError(f"an answer broke off: {answer!r}")
                    answer += piece
                own.append((time.perf_counter() - began) * 1000)
        times.extend(own)

    threads = [threading.Thread(target=one) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not times:
        raise SystemExit("bench: nobody answered")
    ordered = sorted(times)
    return {
        "per_s": round(len(ordered) / seconds),
        "p50_ms": round(statistics.median(ordered), 2),
        "p99_ms": round(ordered[len(ordered) * 99 // 100], 2),
    }


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Ground:
    """A daemon with a session that serves, the same server beside it, and nginx before both."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="casemate-bench-", dir="/var/tmp")
        os.chmod(self.directory, 0o755)
        self.ended, self.raw, self.daemon = [], None, None
        self.host, self.tls = free_port(), free_port()
        self.papers()
        rule = {"hosts": ["localhost"], "networks": ["127.0.0.0/8", "::1"]}
        templates = {
            "out": {"plain": {**rule, "ports": [self.host, self.tls]}},
            "added": {"secret": {**rule, "ports": [self.tls], "inject": {"credential": "token"}}},
        }
        templates = {name: f"egress: {json.dumps(rules)}\n" for name, rules in templates.items()}
        templates["in"] = f"ports: [{PORT}]\n"
        settings = f"egress:\n  ca_file: {self.directory}/ca.pem\n  requests_per_s: 0\n"
        self.bench = Bench()
        self.templates, self.settings, self.sessions = templates, settings, []

    def open(self):
        self.daemon = Casemated(templates=self.templates, settings=self.settings, max=16, max_of_team=16)
        self.api = self.daemon.api()
        self.daemon_port = urllib.parse.urlsplit(self.daemon.url).port
        for port, paper in ((self.host, []), (self.tls, [f"{self.directory}/{name}.pem" for name in ("server", "key")])):
            self.start([sys.executable, "-c", SERVER, "127.0.0.1", str(port), *paper])
            until("the server on the host listens", lambda port=port: listens(port))
        self.sessions = [self.serving() for _ in range(SESSIONS)]

    def papers(self):
        def openssl(*words):
            subprocess.run(["openssl", *words], cwd=self.directory, check=True, capture_output=True)
        new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        openssl(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=bench")
        openssl(*new, "-keyout", "key.pem", "-out", "server.pem", "-subj", "/CN=localhost", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE")

    def start(self, words):
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.ended.append(process)

    def nginx(self, port):
        """nginx before a server; its port. None where there is no nginx."""
        if not shutil.which("nginx", path="/usr/sbin:/usr/bin"):
            return None
        own = free_port()
        root = f"{self.directory}/nginx.{own}"
        os.mkdir(root)
        config = (f"daemon off; pid {root}/pid; error_log {root}/log; worker_processes 1; events {{ worker_connections 256; }}"
                  f" http {{ access_log off; client_body_temp_path {root}; proxy_temp_path {root}; fastcgi_temp_path {root};"
                  f" uwsgi_temp_path {root}; scgi_temp_path {root}; keepalive_requests 10000000;"
                  f" upstream there {{ server 127.0.0.1:{port}; keepalive 16; keepalive_requests 10000000; }}"
                  f" server {{ listen 127.0.0.1:{own}; location / {{ proxy_pass http://there; proxy_http_version 1.1;"
                  f" proxy_set_header Connection \"\"; }} }} }}")
        with open(f"{root}/nginx.conf", "w", encoding="utf-8") as file:
            file.write(config)
        self.start(["/usr/sbin/nginx", "-c", f"{root}/nginx.conf", "-e", f"{root}/log"])
        until("nginx listens", lambda: listens(own))
        return own

    def contained(self):
        """The same server in a gVisor sandbox of the same image whose network is the host's; its port."""
        port = free_port()
        words = ["python3", "-c", SERVER, "127.0.0.1", str(port)]
        self.raw = subprocess.Popen([*self.bench.podman, "unshare", "sh", "-c", RAW, "raw", self.bench.image, json.dumps(words)],
                                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        until("the server in a sandbox with the host's network listens", lambda: listens(port))
        return port

    def serving(self):
        session = self.api.call("POST", "/v1/sessions", {"template": "in"})["id"]
        self.api.call("POST", f"/v1/sessions/{session}/processes", {"argv": ["python3", "-c", SERVER, "127.0.0.1", str(PORT)]})
        until("the server in the session listens", lambda: any(
            one["port"] == PORT for one in self.api.call("GET", f"/v1/sessions/{session}/ports")["ports"]))
        return session

    def endpoint(self, session, path=""):
        return f"/v1/sessions/{session}/ports/{PORT}/{path}", {"Host": "127.0.0.1", "Authorization": f"Bearer {self.daemon.key}"}

    def run(self, session, *argv):
        wanted = {"argv": list(argv), "timeout_s": 600, "env": {"no_proxy": "", "NO_PROXY": ""}}
        answer = self.api.call("POST", f"/v1/sessions/{session}/run", wanted)
        if answer["exit_code"] != 0:
            raise SystemExit(f"bench: {argv[0]} ended with {answer}")
        return answer["stdout"]

    def close(self):
        for process in self.ended:
            process.terminate()
        for process in self.ended:
            process.wait(PATIENCE_S)
        if self.raw:
            self.raw.stdin.close()
            self.raw.wait(PATIENCE_S)
        if self.daemon:
            for session in self.daemon.api().call("GET", "/v1/sessions")["items"]:
                self.api.call("DELETE", f"/v1/sessions/{session['id']}")
            self.daemon.stop()
            self.daemon.clear()
        shutil.rmtree(self.directory)


def requests(ground, rounds):
    """Each way in turn, so that what else the machine does is the same for all."""
    ways = {"host": (ground.host, "/", {"Host": "x"})}
    if (port := ground.nginx(ground.host)) is not None:
        ways["nginx_host"] = (port, "/", {"Host": "x"})
    path, headers = ground.endpoint(ground.sessions[0])
    ways["endpoint"] = (ground.daemon_port, path, headers)
    port = ground.contained()
    ways["sandbox"] = (port, "/", {"Host": "x"})
    if (before := ground.nginx(port)) is not None:
        ways["nginx_sandbox"] = (before, "/", {"Host": "x"})
    figures = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            figures[name].append(load(*way, seconds=1))
    return {name: {key: round(statistics.median(one[key] for one in all_of_it), 2) for key in all_of_it[0]} for name, all_of_it in figures.items()}


def sockets(ground, count):
    """So many WebSockets at once, over a few sessions: what they cost, and whether each of them still answers."""
    def one(at):
        path, headers = ground.endpoint(ground.sessions[at % SESSIONS], "ws")
        headers = {**headers, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode()}
        stream = socket.create_connection(("127.0.0.1", ground.daemon_port), 60)
        stream.sendall(f"GET {path} HTTP/1.1\r\n{''.join(f'{k}: {v}' + chr(13) + chr(10) for k, v in headers.items())}\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = stream.recv(4096)
            if not piece:
                break
            answer += piece
        if not answer.startswith(b"HTTP/1.1 101"):
            raise SystemExit(f"bench: no WebSocket: {answer!r}")
        return stream

    def echo(stream):
        mask, text = os.urandom(4), b"hello"
        stream.sendall(bytes([0x81, 0x80 | len(text)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(text)))
        answer = b""
        while len(answer) < 7:
            piece = stream.recv(64)
            if not piece:
                return False
            answer += piece
        return answer == b"\x81\x05hello"

    pid = ground.daemon.process.pid
    before = resident_kb(pid)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        streams = list(pool.map(one, range(count)))
        opened = resident_kb(pid)
        answered = sum(pool.map(echo, streams))
    after = resident_kb(pid)
    for stream in streams:
        stream.close()
    return {"count": count, "answered": answered, "before_kb": before, "opened_kb": opened, "after_kb": after,
            "each_kb": round((after - before) / count, 1)}


def downloads(ground, out, rounds):
    """A gibibyte each way, in MB/s."""
    path, headers = ground.endpoint(ground.sessions[0], "big")
    auth = [f"-HAuthorization: {headers['Authorization']}"]
    curl = ["curl", "-sSf", "-o", "/dev/null"]
    ways = {
        "host": lambda: subprocess.run([*curl, f"http://127.0.0.1:{ground.host}/big"], check=True),
        "inside": lambda: ground.run(ground.sessions[0], *curl, "--noproxy", "*", f"http://127.0.0.1:{PORT}/big"),
        "endpoint": lambda: subprocess.run([*curl, *auth, f"{ground.daemon.url}{path}"], check=True),
        "egress": lambda: ground.run(out, *curl, f"http://localhost:{ground.host}/big"),
    }
    figures = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            figures[name].append(GIB / 1e6 / (timed(way)[0] / 1000))
    return {name: round(statistics.median(all_of_it), 1) for name, all_of_it in figures.items()}


def asked(ground, out, added, rounds):
    """One request after the other by a program in a session, each over a connection of its own; medians in milliseconds."""
    with open(f"{ground.directory}/ca.pem", encoding="ascii") as file:
        ca = file.read()
    ground.run(out, "python3", "-c", "import sys; open('/tmp/ca.pem', 'w').write(sys.argv[1])", ca)
    ways = {
        "inside": (ground.sessions[0], "127.0.0.1", PORT),
        "plain": (out, "localhost", ground.host),
        "tls": (out, "localhost", ground.tls),
        "added": (added, "localhost", ground.tls),
    }
    figures = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (session, host, port) in ways.items():
            figures[name] += json.loads(ground.run(session, "python3", "-c", ASKER, name, host, str(port), "20"))
    return {name: round(statistics.median(all_of_it), 2) for name, all_of_it in figures.items()}


def measure(rounds, count):
    ground = Ground()
    try:
        ground.open()
        admin = ground.daemon.admin("key", "create", "--role", "team-admin", "admin")
        session = http.client.HTTPConnection("127.0.0.1", ground.daemon_port)
        session.request("PUT", "/v1/credentials/token", json.dumps({"value": SECRET}),
                        {"Authorization": f"Bearer {admin}", "Content-Type": "application/json"})
        if (answer := session.getresponse()).status != 201:
            raise SystemExit(f"bench: a credential is refused: {answer.read()}")
        out, added = (ground.api.call("POST", "/v1/sessions", {"template": name})["id"] for name in ("out", "added"))
        figures = {}
        figures["requests"] = requests(ground, max(rounds // 10, 3))
        figures["asked_ms"] = asked(ground, out, added, max(rounds // 20, 2))
        figures["sockets"] = sockets(ground, count)
        figures["mb_per_s"] = downloads(ground, out, max(rounds // 20, 2))
        return figures
    finally:
        ground.close()


LABELS = {
    "host": "the server on the host",
    "nginx_host": "nginx before it",
    "endpoint": "the same server in a session, through its endpoint",
    "sandbox": "in a gVisor sandbox with the host's network",
    "nginx_sandbox": "nginx before that",
}


def show(figures):
    print(f"{'requests of 8 kept connections':<56}{'per s':>8}{'p50':>8}{'p99':>8}   (ms)")
    rows = figures["requests"]
    for name, row in rows.items():
        print(f"{LABELS[name]:<56}{row['per_s']:>8.0f}{row['p50_ms']:>8.2f}{row['p99_ms']:>8.2f}")
    for name in ("nginx_sandbox", "sandbox", "nginx_host", "host"):
        if name in rows:
            ratios = [rows["endpoint"][key] / rows[name][key] for key in ("per_s", "p50_ms", "p99_ms")]
            print(f"{'endpoint / ' + LABELS[name]:<56}{ratios[0]:>8.2f}{ratios[1]:>8.2f}{ratios[2]:>8.2f}")
    ms = figures["asked_ms"]
    print(f"\n{'one request after the other by a program in a session':<56}{'median':>8}   (ms)")
    for name, label in (("inside", "to the sandbox itself"), ("plain", "outside, in the clear"), ("tls", "outside, over TLS of the program's"),
                        ("added", "outside, with a credential added, over TLS of ours")):
        print(f"{label:<56}{ms[name]:>8}")
    print(f"{'with a credential / over TLS of the program' + chr(39) + 's':<56}{ms['added'] / ms['tls']:>8.2f}")
    print(f"{'outside / to the sandbox itself':<56}{ms['plain'] / ms['inside']:>8.2f}")
    one = figures["sockets"]
    print(f"\n{one['count']} WebSockets at once, of which answered {one['answered']}: the daemon {one['before_kb']} kB before,"
          f" {one['opened_kb']} kB with them, {one['after_kb']} kB after each was used: {one['each_kb']} kB each")
    speed = figures["mb_per_s"]
    print(f"\n{'1 GiB':<56}{'MB/s':>8}")
    for name, label in (("host", "on the host"), ("inside", "within the sandbox"), ("endpoint", "out of a session through its endpoint"),
                        ("egress", "into a session through the way out")):
        print(f"{label:<56}{speed[name]:>8}")
    print(f"{'endpoint / within the sandbox':<56}{speed['endpoint'] / speed['inside']:>8.2f}")
    print(f"{'way out / within the sandbox':<56}{speed['egress'] / speed['inside']:>8.2f}")
