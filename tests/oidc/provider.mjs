// An OpenID provider on loopback, told what to do by lines of JSON on standard input; each is answered by a line.
//
//   {"do": "open"}                                     begins to listen, with a new key; {"issuer", "jwks"}
//   {"do": "client", "resource"}                       a token by client credentials for a resource; {"token"}
//   {"do": "login", "user"}                            an ID token by the authorization code flow; {"token"}
//   {"do": "impostor", "resource", "honest", "kid"}    a token of another provider, which calls itself the same unless it is
//                                                      honest, and its key as well if "kid" says so; {"token"}
//   {"do": "rotate"}                                   another key from now on
//   {"do": "requests"}                                 how often the keys were asked for; {"requests"}
//   {"do": "close"}                                    stops listening
import { createHash, generateKeyPairSync, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { Provider } from "oidc-provider";

const SECRET = randomBytes(32).toString("hex");
const BACK = "http://127.0.0.1:1/back";
const AUDIENCE = "https://casemate.example.com";
// Resources, and what the tokens for them are.
const RESOURCES = {
  "https://casemate.example.com": { audience: AUDIENCE, accessTokenTTL: 600 },
  "https://casemate.example.com/brief": { audience: AUDIENCE, accessTokenTTL: 2 },
  "https://elsewhere.example": { audience: "https://elsewhere.example", accessTokenTTL: 600 },
};

let generation = 0;
function key() {
  generation += 1;
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  return { ...privateKey.export({ format: "jwk" }), kid: `key-${generation}-${randomBytes(4).toString("hex")}`, use: "sig", alg: "RS256" };
}

function provider(issuer, keys) {
  const made = new Provider(issuer, {
    jwks: { keys },
    cookies: { keys: [SECRET] },
    clients: [
      {
        client_id: "agent", client_secret: SECRET, grant_types: ["client_credentials"],
        redirect_uris: [], response_types: [],
      },
      {
        client_id: "notebook", client_secret: SECRET, grant_types: ["authorization_code"],
        redirect_uris: [BACK], response_types: ["code"], application_type: "native",
      },
    ],
    claims: { openid: ["sub"], team: ["team"] },
    conformIdTokenClaims: false,
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, team: "research" }) }),
    extraTokenClaims: () => ({ team: "research" }),
    features: {
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: (_, __, one) => one,
        getResourceServerInfo: (_, resource) => ({
          scope: "", accessTokenFormat: "jwt", jwt: { sign: { alg: "RS256" } }, ...RESOURCES[resource],
        }),
      },
    },
  });
  made.on("server_error", (_, error) => console.error(error));
  return made;
}

let server, port = 0, keys = [key()], current, requests = 0;
const issuer = () => `http://127.0.0.1:${port}`;

async function listen(handler, at) {
  const made = createServer((request, answer) => handler(request, answer));
  await new Promise((done) => made.listen(at, "127.0.0.1", done));
  return made;
}

async function token(base, resource) {
  const answer = await fetch(`${base}/token`, {
    method: "POST",
    headers: { authorization: `Basic ${Buffer.from(`agent:${SECRET}`).toString("base64")}` },
    body: new URLSearchParams({ grant_type: "client_credentials", resource }),
  });
  const said = await answer.json();
  if (!said.access_token) throw new Error(JSON.stringify(said));
  return said;
}

// A browser with nothing but cookies.
async function login(user) {
  const cookies = new Map();
  const visit = async (url, form) => {
    const answer = await fetch(new URL(url, issuer()), {
      method: form ? "POST" : "GET", redirect: "manual",
      headers: { cookie: [...cookies].map(([name, value]) => `${name}=${value}`).join("; ") },
      body: form && new URLSearchParams(form),
    });
    for (const cookie of answer.headers.getSetCookie()) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(cookie);
      if (value) cookies.set(name, value); else cookies.delete(name);
    }
    return answer;
  };
  const verifier = randomBytes(32).toString("base64url");
  const challenge = createHash("sha256").update(verifier).digest("base64url");
  const wanted = new URLSearchParams({
    client_id: "notebook", response_type: "code", scope: "openid team", redirect_uri: BACK,
    code_challenge: challenge, code_challenge_method: "S256", state: "s",
  });
  let at = `/auth?${wanted}`, form;
  for (let step = 0; step < 20; step += 1) {
    const answer = await visit(at, form);
    form = undefined;
    const next = answer.headers.get("location");
    if (next?.startsWith(BACK)) {
      const code = new URL(next).searchParams.get("code");
      if (!code) throw new Error(next);
      const got = await fetch(`${issuer()}/token`, {
        method: "POST",
        headers: { authorization: `Basic ${Buffer.from(`notebook:${SECRET}`).toString("base64")}` },
        body: new URLSearchParams({ grant_type: "authorization_code", code, redirect_uri: BACK, code_verifier: verifier }),
      });
      return await got.json();
    }
    if (next) { at = next; continue; }
    // The page asks: who, and then whether the client may.
    const page = await answer.text();
    const prompt = /name="prompt" value="([a-z]+)"/.exec(page)?.[1];
    const action = /action="([^"]+)"/.exec(page)?.[1];
    if (!prompt || !action) throw new Error(`${answer.status} ${page.slice(0, 500)}`);
    at = action;
    form = prompt === "login" ? { prompt, login: user, password: "any" } : { prompt };
  }
  throw new Error("it never ends");
}

const commands = {
  async open() {
    const handler = (request, answer) => {
      if (request.url === "/jwks") requests += 1;
      return current.callback()(request, answer);
    };
    server = await listen(handler, port);
    port = server.address().port;
    current ??= provider(issuer(), keys);
    return { issuer: issuer(), jwks: `${issuer()}/jwks` };
  },
  async client({ resource }) {
    const said = await token(issuer(), resource);
    return { token: said.access_token };
  },
  async login({ user }) {
    const said = await login(user);
    if (!said.id_token) throw new Error(JSON.stringify(said));
    return { token: said.id_token };
  },
  async impostor({ resource, honest, kid }) {
    let other;
    const forged = kid ? { ...key(), kid: keys[0].kid } : key();
    const made = await listen((request, answer) => other.callback()(request, answer), 0);
    const base = `http://127.0.0.1:${made.address().port}`;
    // It says that it is somebody else, unless it is honest.
    other = provider(honest ? base : issuer(), [forged]);
    const said = await token(base, resource);
    made.close();
    made.closeAllConnections();
    return { token: said.access_token };
  },
  async rotate() {
    keys = [key(), ...keys];
    current = provider(issuer(), keys);
    return {};
  },
  async requests() {
    return { requests };
  },
  async close() {
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
    return {};
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
