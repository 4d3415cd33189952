// What a program does with E2B's unmodified SDK for JavaScript, step by step: the journey of journey.py, told in the same lines of JSON.
//
//   journey.mjs                        the whole journey               --group code               code cells
//   journey.mjs --only files           these steps, and those below    --refused STEP=CLASS:TEXT  the server must refuse this step so
//   journey.mjs --list                 names of the steps              --template T, --code T     what sandboxes are made of
//
// It lies beside the node_modules that it uses. E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY say where the server is and who asks.
import assert from "node:assert/strict";
import { createHash, randomBytes, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import * as e2b from "e2b";

const { Sandbox } = e2b;
const PATIENCE_MS = 30_000; // for what happens by and by
const STEP_MS = 60_000; // for a step, whatever it waits for
const LIFE_MS = 600_000; // of a sandbox, far longer than the journey
const GREETING = "grüß dich, 'you'\n\"all\"";
const NOTE = "a b&c=d/ü+%"; // what a metadata filter must carry
const BIG = randomBytes(8 << 20);
const EVERY_BYTE = Buffer.from(Array.from({ length: 2048 }, (_, n) => n % 256));

const { values: asked } = parseArgs({
  options: {
    list: { type: "boolean" },
    only: { type: "string", multiple: true, default: [] },
    group: { type: "string", multiple: true, default: ["journey"] },
    template: { type: "string", default: "base" },
    code: { type: "string", default: "code-interpreter-v1" },
    refused: { type: "string", multiple: true, default: [] },
  },
});

// --- what steps are ---

const steps = [];
// Adds a step to the table; `has` looks at the SDK and says whether it has what the step needs.
const step = (name, act, { group = "journey", has } = {}) => steps.push({ name, group, has, act });
const same = (found, wanted) => assert.deepEqual(found, wanted);
const sha256 = (data) => createHash("sha256").update(data).digest("hex");
const arrayBuffer = (data) => data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
const errorsAbove = (error) => {
  const names = [];
  for (let kind = error?.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) names.push(kind.name);
  return names;
};

// Makes sure that it fails with an error of this class, or one below it, which says this; gives the error.
async function raises(kind, act, text = "") {
  let held;
  try {
    await act();
  } catch (error) {
    held = error;
  }
  assert.ok(held, `nothing was thrown, ${kind.name} was wanted`);
  if (!(held instanceof kind)) throw new Error(`${kind.name} was wanted`, { cause: held });
  assert.ok(held.message.includes(text), `${held.name} does not say ${text}: ${held.message}`);
  return held;
}

// Looks until there is something, and gives that.
async function until(what, look) {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await look();
    if (found) return found;
    assert.ok(Date.now() < deadline, `waited in vain: ${what}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

const endings = [];
// A sandbox of one step; it is ended at the end where the step does not.
async function make(options = {}, template = asked.template) {
  const sandbox = await Sandbox.create(template, { timeoutMs: LIFE_MS, ...options });
  endings.push(() => sandbox.kill());
  return sandbox;
}

// What steps share, made when the first asks.
const here = {
  mark: randomUUID(),
  get metadata() { return { journey: this.mark, note: NOTE }; },
  async sandbox() { return (this.shared ??= await make({ metadata: this.metadata, envs: { GREETING } })); },
  async dead() {
    if (!this.gone) {
      this.gone = await make();
      same(await this.gone.kill(), true);
    }
    return this.gone;
  },
  // A directory of a step's own.
  async place(name) {
    const path = `/home/user/${name}`;
    await (await this.sandbox()).files.makeDir(path);
    return path;
  },
  async coder() {
    if (!this.interpreter) {
      const { Sandbox: Coder } = await import("@e2b/code-interpreter");
      this.interpreter = await Coder.create(asked.code, { timeoutMs: LIFE_MS });
      endings.push(() => this.interpreter.kill());
    }
    return this.interpreter;
  },
};

const out = async (sandbox, command, options) => (await sandbox.commands.run(command, options)).stdout;

// Every sandbox with this metadata, from all pages.
async function listed(metadata, more = {}) {
  const pages = Sandbox.list({ query: { metadata, ...more } });
  const found = [];
  while (pages.hasNext) found.push(...(await pages.nextItems()));
  return found;
}

const secondsLeft = (info) => (info.endAt.getTime() - Date.now()) / 1000;

// What a client without the SDK is answered.
async function plain(url, options = {}) {
  const answer = await fetch(url, { ...options, signal: AbortSignal.timeout(PATIENCE_MS) });
  return { status: answer.status, body: Buffer.from(await answer.arrayBuffer()) };
}

// --- a sandbox ---

step("create", async () => {
  const sandbox = await here.sandbox();
  assert.ok(sandbox.sandboxId);
  same(await out(sandbox, 'printf %s "$GREETING"'), GREETING);
});

step("create.offline", async () => {
  const sandbox = await make({ allowInternetAccess: false });
  same(await out(sandbox, "echo there"), "there\n");
  same(await sandbox.kill(), true);
});

step("create.unknown_template", async () => {
  await raises(e2b.SandboxError, () => make({}, "no-such-template"), "no-such-template");
});

step("info", async () => {
  const sandbox = await here.sandbox();
  for (const found of [await sandbox.getInfo(), await Sandbox.getInfo(sandbox.sandboxId)]) {
    same([found.sandboxId, found.metadata, found.state], [sandbox.sandboxId, here.metadata, "running"]);
    assert.ok([found.name, found.templateId].includes(asked.template));
    assert.ok(found.cpuCount > 0 && found.memoryMB > 0 && found.envdVersion && found.startedAt < found.endAt);
    assert.ok(LIFE_MS / 1000 - 120 < secondsLeft(found) && secondsLeft(found) <= LIFE_MS / 1000);
  }
});

step("list", async () => {
  const sandbox = await here.sandbox();
  const found = await listed(here.metadata);
  same(found.map((one) => [one.sandboxId, one.metadata, one.state]), [[sandbox.sandboxId, here.metadata, "running"]]);
  same(await listed({ journey: here.mark, note: "another" }), []);
});

step("list.state", async () => {
  const sandbox = await here.sandbox();
  const running = await listed({ journey: here.mark }, { state: ["running"] });
  assert.ok(running.some((one) => one.sandboxId === sandbox.sandboxId));
  same(await listed({ journey: here.mark }, { state: ["paused"] }), []);
});

step("list.pages", async () => {
  const metadata = { pages: here.mark };
  const made = [];
  for (let n = 0; n < 3; n++) made.push((await make({ metadata })).sandboxId);
  const pages = Sandbox.list({ query: { metadata }, limit: 2 });
  const sizes = [], found = [];
  while (pages.hasNext) {
    const page = await pages.nextItems();
    sizes.push(page.length);
    found.push(...page.map((one) => one.sandboxId));
  }
  same(sizes[0], 2);
  same(found.sort(), made.slice().sort());
  for (const id of made) same(await Sandbox.kill(id), true);
});

step("list.order", async () => {
  const metadata = { order: here.mark };
  const made = [(await make({ metadata })).sandboxId, (await make({ metadata })).sandboxId];
  for (const [order, wanted] of [["asc", made], ["desc", [made[1], made[0]]]]) {
    same((await Sandbox.list({ query: { metadata }, order }).nextItems()).map((one) => one.sandboxId), wanted);
  }
  for (const id of made) same(await Sandbox.kill(id), true);
});

step("connect", async () => {
  const sandbox = await here.sandbox();
  const other = await Sandbox.connect(sandbox.sandboxId);
  same(other.sandboxId, sandbox.sandboxId);
  await sandbox.files.write("/tmp/met", "met here");
  same(await out(other, "cat /tmp/met"), "met here");
});

step("connect.never_shortens", async () => {
  const sandbox = await here.sandbox();
  await sandbox.setTimeout(LIFE_MS);
  await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 30_000 });
  assert.ok(secondsLeft(await sandbox.getInfo()) > LIFE_MS / 1000 - 60);
});

step("timeout", async () => {
  const sandbox = await here.sandbox();
  for (const wanted of [200, LIFE_MS / 1000]) {
    await sandbox.setTimeout(wanted * 1000);
    const left = secondsLeft(await sandbox.getInfo());
    assert.ok(wanted - 30 < left && left <= wanted + 1, `${left}`);
  }
});

step("running", async () => same(await (await here.sandbox()).isRunning(), true));

step("metrics", async () => {
  const sandbox = await here.sandbox();
  const found = await until("metrics", async () => (await sandbox.getMetrics()).at(-1));
  assert.ok(found.cpuCount > 0 && found.cpuUsedPct >= 0 && found.memUsed > 0 && found.memUsed <= found.memTotal);
  assert.ok(found.diskUsed >= 0 && found.diskUsed <= found.diskTotal);
  assert.ok(Math.abs(Date.now() - found.timestamp.getTime()) < 300_000);
});

// --- commands ---

step("commands.run", async () => {
  const result = await (await here.sandbox()).commands.run("echo out; echo err >&2");
  same([result.stdout, result.stderr, result.exitCode], ["out\n", "err\n", 0]);
});

const counted = (n) => Array.from({ length: n }, (_, at) => `${at + 1}\n`).join("");

step("commands.output", async () => {
  const pieces = [], errors = [];
  const options = { onStdout: (piece) => { pieces.push(piece); }, onStderr: (piece) => { errors.push(piece); } };
  const result = await (await here.sandbox()).commands.run("seq 1 200000; seq 1 1000 >&2", options);
  assert.ok(result.stdout === counted(200_000) && result.stderr === counted(1000));
  assert.ok(pieces.join("") === result.stdout && errors.join("") === result.stderr && pieces.length > 1);
});

step("commands.unicode", async () => {
  const command = "python3 -c 'import sys; print(\"ü€😀\" * 50000); print(\"ü€\" * 50000, file=sys.stderr)'";
  const result = await (await here.sandbox()).commands.run(command);
  assert.ok(result.stdout === `${"ü€😀".repeat(50_000)}\n` && result.stderr === `${"ü€".repeat(50_000)}\n`);
});

step("commands.output_not_kept", async () => {
  const result = await (await here.sandbox()).commands.run("echo piece", { retainOutput: false });
  same(result.stdout, undefined);
}, { has: (sandbox) => /retainOutput/.test(sandbox.commands.constructor.toString()) });

step("commands.exit_code", async () => {
  const { commands } = await here.sandbox();
  const held = await raises(e2b.CommandExitError, () => commands.run("echo before; echo why >&2; exit 3"));
  same([held.exitCode, held.stdout, held.stderr], [3, "before\n", "why\n"]);
  const unknown = await raises(e2b.CommandExitError, () => commands.run("no-such-command"));
  same([unknown.exitCode, unknown.stderr.includes("not found")], [127, true]);
});

step("commands.cwd", async () => {
  const sandbox = await here.sandbox();
  same(await out(sandbox, "pwd"), "/home/user\n");
  same(await out(sandbox, "pwd", { cwd: "/tmp" }), "/tmp\n");
  await raises(e2b.InvalidArgumentError, () => sandbox.commands.run("pwd", { cwd: "/no/such/place" }));
});

step("commands.envs", async () => {
  const envs = { A: "one two", B: "dollar $HOME 'quote' \"double\"", GREETING: "its own" };
  same(await out(await here.sandbox(), 'printf "%s|%s|%s" "$A" "$B" "$GREETING"', { envs }), Object.values(envs).join("|"));
});

step("commands.user", async () => {
  const sandbox = await here.sandbox();
  same(await out(sandbox, "id -un; echo $HOME"), "user\n/home/user\n");
  same(await out(sandbox, "id -un; echo $HOME", { user: "root" }), "root\n/root\n");
  const held = await raises(Error, () => sandbox.commands.run("id", { user: "nobody-here" }));
  assert.ok(held instanceof e2b.AuthenticationError || held instanceof e2b.InvalidArgumentError, told(held));
});

step("commands.timeout", async () => {
  const { commands } = await here.sandbox();
  await raises(e2b.TimeoutError, () => commands.run("exec sleep 71.25", { timeoutMs: 1000 }));
  await until("it was ended", async () => (await commands.list()).every((one) => !one.args.join().includes("71.25")));
  const handle = await commands.run("exec sleep 72.25", { background: true, timeoutMs: 1000 });
  await raises(e2b.TimeoutError, () => handle.wait());
});

step("commands.background", async () => {
  const { commands } = await here.sandbox();
  const handle = await commands.run("for n in 1 2 3; do echo out $n; echo err $n >&2; done; exit 4", { background: true });
  assert.ok(handle.pid > 0);
  const held = await raises(e2b.CommandExitError, () => handle.wait());
  same([held.exitCode, held.stdout, held.stderr], [4, "out 1\nout 2\nout 3\n", "err 1\nerr 2\nerr 3\n"]);
});

step("commands.streams", async () => {
  const sandbox = await here.sandbox();
  const path = `${await here.place("streams")}/go`;
  const command = `echo first; until [ -e ${path} ]; do sleep 0.05; done; echo second`;
  const handle = await sandbox.commands.run(command, { background: true });
  await until("the first line", () => handle.stdout === "first\n");
  await sandbox.files.write(path, "");
  same((await handle.wait()).stdout, "first\nsecond\n");
});

step("commands.list", async () => {
  const { commands } = await here.sandbox();
  const handle = await commands.run("exec sleep 3600.5", { background: true, cwd: "/tmp" });
  const found = (await commands.list()).filter((one) => one.pid === handle.pid);
  same(found.map((one) => [one.cmd, one.args, one.cwd]), [["/bin/bash", ["-l", "-c", "exec sleep 3600.5"], "/tmp"]]);
  same(await commands.kill(handle.pid), true);
  await until("it is not listed", async () => (await commands.list()).every((one) => one.pid !== handle.pid));
});

step("commands.kill", async () => {
  const { commands } = await here.sandbox();
  const handle = await commands.run("echo started; exec sleep 3600", { background: true });
  await until("it runs", () => handle.stdout === "started\n");
  same(await handle.kill(), true);
  assert.notEqual((await raises(e2b.CommandExitError, () => handle.wait())).exitCode, 0);
  same(await commands.kill(handle.pid), false);
});

step("commands.connect", async () => {
  const sandbox = await here.sandbox();
  const path = `${await here.place("connected")}/go`;
  const first = await sandbox.commands.run(`until [ -e ${path} ]; do sleep 0.05; done; echo went; exit 5`, { background: true });
  await first.disconnect();
  const other = await (await Sandbox.connect(sandbox.sandboxId)).commands.connect(first.pid);
  same(other.pid, first.pid);
  await sandbox.files.write(path, "");
  const held = await raises(e2b.CommandExitError, () => other.wait());
  same([held.stdout, held.exitCode], ["went\n", 5]);
  await raises(e2b.NotFoundError, () => sandbox.commands.connect(999_999));
});

// --- input of commands ---

step("stdin.send", async () => {
  const { commands } = await here.sandbox();
  const handle = await commands.run('read -r one; read -r two; echo "$two, $one"', { background: true, stdin: true });
  await commands.sendStdin(handle.pid, "one\ntw");
  await commands.sendStdin(handle.pid, "ö\n");
  same((await handle.wait()).stdout, "twö, one\n");
  await raises(e2b.NotFoundError, () => commands.sendStdin(999_999, "nobody"));
});

step("stdin.none", async () => same(await out(await here.sandbox(), "cat; echo ended", { timeoutMs: 20_000 }), "ended\n"));

step("stdin.close", async () => {
  const { commands } = await here.sandbox();
  const handle = await commands.run("sha256sum", { background: true, stdin: true });
  await commands.sendStdin(handle.pid, "all of it");
  await commands.closeStdin(handle.pid);
  same((await handle.wait()).stdout, `${sha256("all of it")}  -\n`);
}, { has: (sandbox) => "closeStdin" in sandbox.commands });

step("stdin.handle", async () => {
  const handle = await (await here.sandbox()).commands.run("cat", { background: true, stdin: true });
  await handle.sendStdin(Buffer.from("by the handle"));
  await handle.closeStdin();
  same((await handle.wait()).stdout, "by the handle");
});

step("stdin.stream", async () => {
  const { commands } = await here.sandbox();
  const handle = await commands.run("sha256sum", { background: true, stdin: true });
  await commands.streamInput(handle.pid, ["one", "two"]);
  await commands.closeStdin(handle.pid);
  same((await handle.wait()).stdout, `${sha256("onetwo")}  -\n`);
}, { has: (sandbox) => "streamInput" in sandbox.commands });

// --- terminals ---

// A terminal, and what it shows.
async function terminal(options = {}) {
  const { pty } = await here.sandbox();
  const shown = [];
  const onData = (piece) => { shown.push(Buffer.from(piece)); };
  const handle = await pty.create({ rows: 24, cols: 80, timeoutMs: PATIENCE_MS, onData, ...options });
  const shows = (text) => until(`${text} is shown`, () => Buffer.concat(shown).includes(text));
  const type = (text) => pty.sendInput(handle.pid, Buffer.from(text));
  return { pty, handle, shows, type };
}

step("pty", async () => {
  const { pty, handle, shows, type } = await terminal({ cwd: "/tmp", envs: { MARK: "mark" } });
  await type("stty size; echo $PWD-$MARK-$TERM; tty\n");
  for (const text of ["24 80", "/tmp-mark-xterm-256color", "/dev/pts/"]) await shows(text);
  await pty.resize(handle.pid, { rows: 31, cols: 101 });
  await type("stty size\n");
  await shows("31 101");
  await type("exit 7\n");
  same((await raises(e2b.CommandExitError, () => handle.wait())).exitCode, 7);
});

step("pty.kill", async () => {
  const { pty, handle, shows, type } = await terminal({ user: "root" });
  await type("id -un; echo 'the' end\n");
  for (const text of ["root", "the end"]) await shows(text);
  same(await pty.kill(handle.pid), true);
  await until("it is not found", async () => (await pty.kill(handle.pid)) === false);
});

step("pty.connect", async () => {
  const { pty, handle, type } = await terminal();
  await handle.disconnect();
  let shown = "";
  await pty.connect(handle.pid, { onData: (piece) => { shown += Buffer.from(piece); }, timeoutMs: PATIENCE_MS });
  await type("echo 'still' there\n");
  await until("it is still there", () => shown.includes("still there"));
  same(await pty.kill(handle.pid), true);
}, { has: (sandbox) => "connect" in sandbox.pty });

step("pty.stream", async () => {
  const { pty, handle, shows } = await terminal();
  await pty.streamInput(handle.pid, ["echo 'by ", "stream'\n"]);
  await shows("by stream\r\n");
  same(await pty.kill(handle.pid), true);
}, { has: (sandbox) => "streamInput" in sandbox.pty });

// --- files ---

step("files.text", async () => {
  const { files } = await here.sandbox();
  const path = `${await here.place("text")}/deep/er/file.txt`;
  const written = await files.write(path, "grüße\r\nthere");
  same([written.name, written.path, written.type], ["file.txt", path, "file"]);
  same(await files.read(path), "grüße\r\nthere");
  await files.write(path, "shorter");
  same(await files.read(path), "shorter");
});

const bytesOf = async (path) => Buffer.from(await (await here.sandbox()).files.read(path, { format: "bytes" }));

step("files.bytes", async () => {
  const path = `${await here.place("bytes")}/file`;
  await (await here.sandbox()).files.write(path, arrayBuffer(EVERY_BYTE));
  assert.ok((await bytesOf(path)).equals(EVERY_BYTE));
});

step("files.empty", async () => {
  const { files } = await here.sandbox();
  const path = `${await here.place("empty")}/file`;
  await files.write(path, "");
  same([await files.read(path), (await files.getInfo(path)).size, (await bytesOf(path)).length], ["", 0, 0]);
});

step("files.home", async () => {
  const { files } = await here.sandbox();
  const written = await files.write("at/home.txt", "relative");
  same([written.path, await files.read("/home/user/at/home.txt")], ["/home/user/at/home.txt", "relative"]);
});

step("files.large", async () => {
  const sandbox = await here.sandbox();
  const path = `${await here.place("large")}/file`;
  await sandbox.files.write(path, arrayBuffer(BIG));
  same(await out(sandbox, `sha256sum <${path}`), `${sha256(BIG)}  -\n`);
  assert.ok((await bytesOf(path)).equals(BIG));
});

step("files.stream", async () => {
  const { files } = await here.sandbox();
  const path = `${await here.place("stream")}/file`;
  await files.write(path, new Blob([BIG]));
  same((await files.getInfo(path)).size, BIG.length);
  const pieces = [];
  for await (const piece of await files.read(path, { format: "stream" })) pieces.push(piece);
  assert.ok(Buffer.concat(pieces).equals(BIG));
});

step("files.iterable", async () => {
  const sandbox = await here.sandbox();
  const path = `${await here.place("iterable")}/file`;
  let at = 0;
  const stream = new ReadableStream({
    pull(into) {
      if (at < BIG.length) into.enqueue(new Uint8Array(BIG.subarray(at, (at += 1 << 20))));
      else into.close();
    },
  });
  await sandbox.files.write(path, stream);
  same(await out(sandbox, `sha256sum <${path}`), `${sha256(BIG)}  -\n`);
});

step("files.octets", async () => {
  const path = `${await here.place("octets")}/a ü?&+%20`;
  await (await here.sandbox()).files.write(path, arrayBuffer(EVERY_BYTE), { useOctetStream: true });
  assert.ok((await bytesOf(path)).equals(EVERY_BYTE));
});

step("files.gzip", async () => {
  const sandbox = await here.sandbox();
  const path = `${await here.place("gzip")}/file`, text = "again and again\n".repeat(100_000);
  await sandbox.files.write(path, text, { gzip: true });
  same(await out(sandbox, `wc -c <${path}`), `${text.length}\n`);
  assert.ok((await sandbox.files.read(path, { gzip: true })) === text);
});

step("files.many", async () => {
  const place = await here.place("many");
  const contents = { one: Buffer.from("1"), "two.bin": EVERY_BYTE, "new/three": Buffer.from(""), "grüße 😀": Buffer.from("four"), big: BIG.subarray(0, 1 << 20) };
  const entries = Object.entries(contents).map(([name, data]) => ({ path: `${place}/${name}`, data: arrayBuffer(data) }));
  const written = await (await here.sandbox()).files.writeFiles(entries);
  same(written.map((one) => one.path), entries.map((one) => one.path));
  for (const [name, data] of Object.entries(contents)) assert.ok((await bytesOf(`${place}/${name}`)).equals(data), name);
});

step("files.names", async () => {
  const { files } = await here.sandbox();
  const place = await here.place("names");
  const names = ["grüße 😀", "a+b c", "100%", "%41", "q?x=1&y", "hash#", "it's", 'say "so"', "back\\slash", "semi;colon", " spaces "];
  for (const name of names) await files.write(`${place}/${name}`, name);
  same((await files.list(place)).map((one) => one.name).sort(), names.slice().sort());
  for (const name of names) same(await files.read(`${place}/${name}`), name);
});

step("files.exists", async () => {
  const { files } = await here.sandbox();
  const place = await here.place("exists");
  await files.write(`${place}/file`, "");
  const found = [];
  for (const path of [`${place}/file`, place, `${place}/no`, `${place}/no/where`]) found.push(await files.exists(path));
  same(found, [true, true, false, false]);
});

step("files.info", async () => {
  const sandbox = await here.sandbox();
  const { files } = sandbox;
  const place = await here.place("info");
  await files.write(`${place}/file`, "12345");
  await out(sandbox, `chmod 640 ${place}/file && ln -s file ${place}/link`);
  const found = await files.getInfo(`${place}/file`);
  same([found.name, found.path, found.type, found.size], ["file", `${place}/file`, "file", 5]);
  same([found.owner, found.group, found.mode & 0o7777, found.symlinkTarget], ["user", "user", 0o640, undefined]);
  assert.ok(found.permissions.endsWith("rw-r-----"), found.permissions);
  assert.ok(Math.abs(Date.now() - found.modifiedTime.getTime()) < 600_000);
  same((await files.getInfo(place)).type, "dir");
  same((await files.getInfo(`${place}/link`)).symlinkTarget, `${place}/file`);
  await raises(e2b.FileNotFoundError, () => files.getInfo(`${place}/no`));
});

step("files.list", async () => {
  const { files } = await here.sandbox();
  const place = await here.place("list");
  for (const name of ["top", "a/mid", "a/b/low"]) await files.write(`${place}/${name}`, name);
  const found = async (depth) => (await files.list(place, { depth })).map((one) => `${one.path} ${one.type}`).sort();
  const wanted = [`${place}/a dir`, `${place}/top file`];
  same(await found(1), wanted);
  wanted.push(`${place}/a/b dir`, `${place}/a/mid file`);
  same(await found(2), wanted.sort());
  wanted.push(`${place}/a/b/low file`);
  same(await found(3), wanted.sort());
  await raises(e2b.FileNotFoundError, () => files.list(`${place}/no`));
  await raises(e2b.InvalidArgumentError, () => files.list(`${place}/top`));
});

step("files.rename", async () => {
  const { files } = await here.sandbox();
  const place = await here.place("rename");
  await files.write(`${place}/old`, "same");
  await files.makeDir(`${place}/dir`);
  same((await files.rename(`${place}/old`, `${place}/dir/new`)).path, `${place}/dir/new`);
  same([await files.exists(`${place}/old`), await files.read(`${place}/dir/new`)], [false, "same"]);
  await raises(e2b.FileNotFoundError, () => files.rename(`${place}/old`, `${place}/newer`));
});

step("files.make_dir", async () => {
  const { files } = await here.sandbox();
  const path = `${await here.place("made")}/a/b`;
  same([await files.makeDir(path), await files.makeDir(path)], [true, false]);
  same((await files.getInfo(path)).type, "dir");
});

step("files.remove", async () => {
  const { files } = await here.sandbox();
  const place = await here.place("remove");
  for (const name of ["file", "dir/deep/file"]) {
    await files.write(`${place}/${name}`, "");
    await files.remove(`${place}/${name.split("/")[0]}`);
  }
  same(await files.list(place), []);
  // What is not there is removed already.
  await files.remove(`${place}/no`);
});

step("files.errors", async () => {
  const { files } = await here.sandbox();
  const place = await here.place("errors");
  for (const format of ["text", "bytes", "blob", "stream"]) {
    await raises(e2b.FileNotFoundError, () => files.read(`${place}/no`, { format }));
  }
  await raises(e2b.InvalidArgumentError, () => files.read(place));
  await raises(e2b.InvalidArgumentError, () => files.write(place, "a directory"));
  await files.write(`${place}/file`, "");
  await raises(e2b.InvalidArgumentError, () => files.makeDir(`${place}/file`));
});

step("files.user", async () => {
  const { files } = await here.sandbox();
  await files.write("/root/secret/file", "root's", { user: "root" });
  same(await files.read("/root/secret/file", { user: "root" }), "root's");
  same((await files.getInfo("/root/secret/file", { user: "root" })).owner, "root");
  const held = await raises(Error, () => files.read("/home/user/.profile", { user: "nobody-here" }));
  assert.ok(held instanceof e2b.AuthenticationError || held instanceof e2b.InvalidArgumentError, told(held));
});

step("files.metadata", async () => {
  const { files } = await here.sandbox();
  const path = `${await here.place("metadata")}/file`, metadata = { author: "Ada", purpose: "a test: 100 %" };
  same((await files.write(path, "with words", { metadata })).metadata, metadata);
  same({ ...(await files.getInfo(path)).metadata }, metadata);
  await files.write(path, "without");
  same((await files.getInfo(path)).metadata, undefined);
}, { has: (sandbox) => /metadata/.test(sandbox.files.constructor.toString()) });

// --- watching ---

// Watches a directory, and waits for its events.
async function watching(path, options = {}) {
  const { files } = await here.sandbox();
  const events = [];
  const handle = await files.watchDir(path, (event) => { events.push(event); }, { timeoutMs: 0, ...options });
  const saw = (type, name) => until(`the event ${type} ${name}`, () => events.find((one) => one.type === type && one.name === name));
  return { files, handle, saw };
}

step("watch", async () => {
  const place = await here.place("watch");
  const { files, handle, saw } = await watching(place);
  await files.write(`${place}/new`, "first");
  await saw("create", "new");
  await files.write(`${place}/new`, "second");
  await saw("write", "new");
  await out(await here.sandbox(), `chmod 600 ${place}/new`);
  await saw("chmod", "new");
  await files.rename(`${place}/new`, `${place}/newer`);
  await saw("rename", "new");
  await saw("create", "newer");
  await files.remove(`${place}/newer`);
  await saw("remove", "newer");
  await handle.stop();
  await raises(e2b.NotFoundError, () => files.watchDir(`${place}/no`, () => {}));
});

step("watch.recursive", async () => {
  const place = await here.place("below");
  await (await here.sandbox()).files.makeDir(`${place}/a/b`);
  const { files, handle, saw } = await watching(place, { recursive: true });
  await files.write(`${place}/a/b/file`, "");
  await saw("create", "a/b/file");
  // Also in directories that were made since.
  await files.makeDir(`${place}/new`);
  await saw("create", "new");
  await files.write(`${place}/new/file`, "");
  await saw("create", "new/file");
  await handle.stop();
});

step("watch.entry", async () => {
  const place = await here.place("entries");
  const { files, handle, saw } = await watching(place, { includeEntry: true });
  await files.write(`${place}/file`, "12345");
  const event = await saw("create", "file");
  same([event.entry.path, event.entry.owner], [`${place}/file`, "user"]);
  await handle.stop();
}, { has: (sandbox) => /includeEntry/.test(sandbox.files.constructor.toString()) });

// --- without the SDK ---

step("url.download", async () => {
  const sandbox = await here.sandbox();
  const path = `${await here.place("url")}/ü file+&.bin`;
  await sandbox.files.write(path, arrayBuffer(EVERY_BYTE));
  for (const options of [{}, { useSignatureExpiration: 60 }, { user: "root" }]) {
    const { status, body } = await plain(await sandbox.downloadUrl(path, options));
    same([status, body.equals(EVERY_BYTE)], [200, true]);
  }
});

step("url.upload", async () => {
  const sandbox = await here.sandbox();
  const path = `${await here.place("url")}/up ü.bin`;
  const body = new FormData();
  body.append("file", new Blob([EVERY_BYTE]), "any");
  const answer = await plain(await sandbox.uploadUrl(path, { useSignatureExpiration: 60 }), { method: "POST", body });
  same([answer.status, JSON.parse(answer.body).map((one) => one.path)], [200, [path]]);
  assert.ok((await bytesOf(path)).equals(EVERY_BYTE));
});

step("url.refused", async () => {
  const sandbox = await here.sandbox();
  const path = `${await here.place("url")}/other`;
  await sandbox.files.write(path, "secret");
  const good = await sandbox.downloadUrl(path);
  for (const [name, value] of [["signature", `v1_${"A".repeat(43)}`], ["path", "/etc/passwd"], ["username", "root"]]) {
    const bad = new URL(good);
    bad.searchParams.set(name, value);
    same([name, value, (await plain(bad)).status], [name, value, 401]);
  }
  same((await plain(await sandbox.downloadUrl(path, { useSignatureExpiration: -10 }))).status, 401);
  same((await plain(await sandbox.uploadUrl(path))).status, 401);
});

step("port", async () => {
  const sandbox = await here.sandbox();
  const place = await here.place("port");
  await sandbox.files.write(`${place}/word`, "from inside");
  const handle = await sandbox.commands.run("exec python3 -m http.server 8000", { background: true, cwd: place, timeoutMs: 0 });
  const headers = { "E2b-Sandbox-Id": sandbox.sandboxId, "E2b-Sandbox-Port": "8000" };
  if (sandbox.trafficAccessToken) headers["E2b-Traffic-Access-Token"] = sandbox.trafficAccessToken;
  const ask = () => plain(`${process.env.E2B_SANDBOX_URL}/word`, { headers });
  await until("the port is open", async () => (await ask()).body.toString() === "from inside");
  await handle.kill();
  await handle.wait().catch(() => {});
  await until("the port is closed", async () => (await ask()).status !== 200);
  const { status, body } = await ask();
  same([status, body.includes("port is not open")], [502, true]);
});

// --- the life of a sandbox ---

step("pause", async () => {
  const sandbox = await here.sandbox();
  await sandbox.files.write("/home/user/before", "before the pause");
  const handle = await sandbox.commands.run("exec sleep 3600.25", { background: true, timeoutMs: 0 });
  await handle.disconnect();
  same([await sandbox.pause(), await sandbox.pause()], [true, false]);
  same((await sandbox.getInfo()).state, "paused");
  same((await listed(here.metadata, { state: ["paused"] })).map((one) => one.sandboxId), [sandbox.sandboxId]);
  same(await sandbox.isRunning(), false);
  here.shared = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: LIFE_MS });
  same(await here.shared.isRunning(), true);
  same(await here.shared.files.read("/home/user/before"), "before the pause");
  assert.ok((await here.shared.commands.list()).some((one) => one.pid === handle.pid));
  same(await here.shared.commands.kill(handle.pid), true);
});

step("snapshot", async () => {
  const sandbox = await here.sandbox();
  await sandbox.files.write("/home/user/kept", "kept");
  const made = await sandbox.createSnapshot();
  const pages = Sandbox.listSnapshots({ sandboxId: sandbox.sandboxId }), found = [];
  while (pages.hasNext) found.push(...(await pages.nextItems()).map((one) => one.snapshotId));
  assert.ok(found.includes(made.snapshotId), `${found}`);
  const again = await make({}, made.snapshotId);
  same(await again.files.read("/home/user/kept"), "kept");
  same(await again.kill(), true);
  same([await Sandbox.deleteSnapshot(made.snapshotId), await Sandbox.deleteSnapshot(made.snapshotId)], [true, false]);
}, { has: () => "createSnapshot" in Sandbox.prototype });

step("fork", async () => {
  const sandbox = await here.sandbox();
  await sandbox.files.write("/home/user/forked", "forked");
  const forks = await sandbox.fork({ count: 2, timeoutMs: LIFE_MS });
  for (const one of forks) {
    if (one instanceof Error) throw one;
    endings.push(() => one.kill());
  }
  same(new Set([sandbox.sandboxId, ...forks.map((one) => one.sandboxId)]).size, 3);
  for (const one of forks) {
    same(await one.files.read("/home/user/forked"), "forked");
    await one.files.write("/home/user/forked", one.sandboxId);
  }
  same(await sandbox.files.read("/home/user/forked"), "forked");
  for (const one of forks) same(await one.kill(), true);
}, { has: () => "fork" in Sandbox.prototype });

step("network", async () => {
  const sandbox = await here.sandbox();
  await sandbox.updateNetwork({ denyOut: ["0.0.0.0/0"] });
  await sandbox.updateNetwork({});
}, { has: () => "updateNetwork" in Sandbox.prototype });

// --- the end of it ---

step("kill", async () => {
  here.gone = await here.sandbox();
  here.shared = undefined;
  same([await here.gone.kill(), await here.gone.kill()], [true, false]);
});

step("dead.running", async () => same(await (await here.dead()).isRunning(), false));

step("dead.info", async () => {
  const dead = await here.dead();
  await raises(e2b.SandboxNotFoundError, () => dead.getInfo(), dead.sandboxId);
  same((await listed({ journey: here.mark })).filter((one) => one.sandboxId === dead.sandboxId), []);
});

step("dead.connect", async () => {
  const dead = await here.dead();
  for (const act of [() => Sandbox.connect(dead.sandboxId), () => dead.setTimeout(60_000)]) {
    await raises(e2b.SandboxNotFoundError, act, dead.sandboxId);
  }
});

step("dead.commands", async () => {
  const dead = await here.dead();
  await raises(e2b.SandboxNotFoundError, () => dead.commands.run("echo"));
  for (const act of [() => dead.commands.list(), () => dead.files.list("/")]) await raises(e2b.TimeoutError, act);
});

step("dead.files", async () => {
  const dead = await here.dead();
  for (const act of [() => dead.files.read("/etc/hostname"), () => dead.files.write("/tmp/file", "")]) {
    await raises(e2b.TimeoutError, act);
  }
});

// --- code cells ---

const cells = (name, act) => step(name, async () => act(await here.coder()), { group: "code" });

cells("code.state", async (coder) => {
  same((await coder.runCode("x = 41")).results, []);
  const done = await coder.runCode("x += 1\nx");
  same([done.text, done.error], ["42", undefined]);
});

cells("code.output", async (coder) => {
  const told = [];
  const done = await coder.runCode("import sys\nprint('out')\nprint('err', file=sys.stderr)", { onStdout: (one) => told.push(one.line) });
  same([done.logs.stdout.join(""), done.logs.stderr.join(""), told.join("")], ["out\n", "err\n", "out\n"]);
});

cells("code.plot", async (coder) => {
  const done = await coder.runCode("import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()");
  const pictures = done.results.filter((one) => one.png);
  same([done.error, pictures.length], [undefined, 1]);
  same(Buffer.from(pictures[0].png, "base64").subarray(1, 4).toString(), "PNG");
});

cells("code.data_frame", async (coder) => {
  const done = await coder.runCode("import pandas\npandas.DataFrame({'a': [1, 2], 'b': ['x', 'y']})");
  same([done.error, done.results[0].isMainResult], [undefined, true]);
  assert.ok(done.results[0].html.includes("<table") && done.results[0].text.includes("y"));
});

cells("code.error", async (coder) => {
  const done = await coder.runCode("def divide():\n    return 1 / 0\ndivide()");
  same([done.error.name, done.error.value], ["ZeroDivisionError", "division by zero"]);
  assert.ok(done.error.traceback.includes("return 1 / 0"), done.error.traceback);
});

cells("code.contexts", async (coder) => {
  const context = await coder.createCodeContext({ cwd: "/tmp" });
  await coder.runCode("mine = 1");
  same((await coder.runCode("import os\nos.getcwd()", { context })).text, "'/tmp'");
  same((await coder.runCode("mine", { context })).error.name, "NameError");
  assert.ok((await coder.listCodeContexts()).some((one) => one.id === context.id));
  await coder.removeCodeContext(context);
  assert.ok((await coder.listCodeContexts()).every((one) => one.id !== context.id));
});

// --- the journey ---

const refusals = new Map(asked.refused.map((text) => {
  const [, name, kind, says] = /^([^=]*)=([^:]*):(.*)$/s.exec(text);
  assert.ok(steps.some((one) => one.name === name), `there is no step ${name}`);
  return [name, { kind, says }];
}));

// An error with what led to it, and where in the journey it was.
function told(error) {
  const where = (error?.stack ?? "").split("\n").filter((line) => line.includes("journey.mjs")).map((line) => line.replace(/.*journey\.mjs/, "line").replace(/\)$/, ""));
  const chain = [];
  for (let one = error; one && chain.length < 6; one = one.cause) chain.push(`${one.constructor?.name}: ${one.message ?? one}`);
  return `${chain.join(" <- ").slice(0, 1500)} (${where.join(" < ")})`;
}

// Goes a step: its result, and why.
async function go({ name, has, act }) {
  const refusal = refusals.get(name);
  let timer;
  try {
    if (has && !has(await here.sandbox())) return ["absent", "this SDK does not have it"];
    const late = new Promise((_, fail) => { timer = setTimeout(() => fail(new Error(`it takes longer than ${STEP_MS} ms`)), STEP_MS); });
    await Promise.race([act(), late]);
  } catch (error) {
    if (refusal && errorsAbove(error).includes(refusal.kind) && error.message.includes(refusal.says)) {
      return ["refused", `${error.constructor.name}: ${error.message}`];
    }
    return ["failed", told(error)];
  } finally {
    clearTimeout(timer);
  }
  if (refusal) return ["failed", `it was not refused with ${refusal.kind}: ${refusal.says}`];
  return ["ok", ""];
}

const isAsked = ({ name, group }) =>
  asked.only.length ? asked.only.some((wanted) => name === wanted || name.startsWith(`${wanted}.`)) : asked.group.includes(group);
const wanted = steps.filter(isAsked);
assert.ok(wanted.length, "there are no such steps");
if (asked.list) {
  console.log(wanted.map((one) => one.name).join("\n"));
  process.exit(0);
}
const { version } = JSON.parse(readFileSync(new URL("node_modules/e2b/package.json", import.meta.url)));
console.error(`e2b ${version} at ${process.env.E2B_API_URL}`);
let failed = false;
for (const one of wanted) {
  const began = performance.now();
  const [result, why] = await go(one);
  failed ||= result === "failed";
  console.log(JSON.stringify({ step: one.name, result, why, ms: Math.round(performance.now() - began) }));
}
for (const end of endings.reverse()) await end();
process.exit(failed ? 1 : 0);
