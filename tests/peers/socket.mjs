// A WebSocket client, of the package ws, told what to do by lines of JSON on standard input; each is answered by a line.
//
//   {"do": "open", "url", "at", "key", "protocols"}  to the name in the URL, which is at this address; {"protocol", "extensions"}
//   {"do": "text", "text"}                           {"text": what came back}
//   {"do": "bytes", "count"}                         as many random bytes; {"same": whether they came back}
//   {"do": "ping"}                                   {"pong"}
//   {"do": "close", "code", "reason"}                {"code": by which it is closed}
//   {"do": "bye"}                                    asks the other side to close; {"code", "reason"}
// One that may not be opened gives {"status"}.
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect } from "node:net";
import { createInterface } from "node:readline";
import { WebSocket } from "ws";

const deadline = () => ({ signal: AbortSignal.timeout(50_000) });
let socket;

async function heard() {
  const gone = once(socket, "close", deadline()).then(([code]) => { throw new Error(`it was closed: ${code}`); });
  gone.catch(() => {});
  const [data, isBinary] = await Promise.race([once(socket, "message", deadline()), gone]);
  return isBinary ? data : data.toString();
}

const commands = {
  async open({ url, at, key, protocols }) {
    const [host, port] = at.split(":");
    socket = new WebSocket(url, protocols ?? [], {
      headers: key ? { "x-api-key": key } : {},
      createConnection: () => connect(Number(port), host),
    });
    const refused = new Promise((done) => socket.once("unexpected-response", (_, answer) => done(answer.statusCode)));
    const status = await Promise.race([once(socket, "open", deadline()).then(() => undefined), refused]);
    return status ? { status } : { protocol: socket.protocol, extensions: socket.extensions };
  },
  async text({ text }) {
    socket.send(text);
    return { text: await heard() };
  },
  async bytes({ count }) {
    const sent = randomBytes(count);
    socket.send(sent);
    return { same: sent.equals(await heard()) };
  },
  async ping() {
    const pong = once(socket, "pong", deadline());
    socket.ping("are you there");
    return { pong: (await pong)[0].toString() };
  },
  async close({ code, reason }) {
    socket.close(code, reason);
    return { code: (await once(socket, "close", deadline()))[0] };
  },
  async bye() {
    socket.send("bye");
    const [code, reason] = await once(socket, "close", deadline());
    return { code, reason: reason.toString() };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  try {
    console.log(JSON.stringify(await commands[command.do](command)));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error?.stack ?? error) }));
  }
}
process.exit(0);
