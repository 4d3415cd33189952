// Chromium, as somebody sits before it, told what to do by lines of JSON on standard input; each is answered by a line.
//
//   {"do": "visit", "url", "lands"}     goes there, and waits until it is where that leads (none: there); {"status", "url": where it is}
//   {"do": "text"}                      what the page says; {"text"}
//   {"do": "run", "code", "shows"}      types code into the last cell of the notebook that is open (none: leaves it as it is), runs
//                                       it, and waits until "shows" is to be seen below it; {"output"}
//   {"do": "save"}                      saves the notebook, and waits until it is
//   {"do": "sockets"}                   addresses of the WebSockets that were opened; {"sockets"}
//   {"do": "cookies"}                   {"cookies"}
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const DEADLINE_MS = 50_000;

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    // It leaves this machine for nothing, whatever a page asks for.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE *.localhost, EXCLUDE 127.0.0.1",
  ],
});
const context = await browser.newContext();
context.setDefaultTimeout(DEADLINE_MS);
const page = await context.newPage();
const sockets = [], said = [];
page.on("websocket", (socket) => sockets.push(socket.url()));
page.on("console", (message) => { if (message.type() === "error") said.push(message.text()); });
page.on("pageerror", (error) => said.push(String(error)));

const commands = {
  async visit({ url, lands }) {
    const answer = await page.goto(url);
    if (lands) await page.waitForURL(lands);
    return { status: answer?.status(), url: page.url() };
  },
  async text() {
    return { text: await page.innerText("body") };
  },
  async run({ code, shows }) {
    // What is run before the kernel is there is forgotten; the bar below says when it is.
    await page.locator("#jp-main-statusbar", { hasText: /\| Idle/ }).waitFor();
    const cell = page.locator(".jp-Notebook .jp-CodeCell").last();
    await cell.locator(".cm-content").click();
    if (code) await page.keyboard.insertText(code);
    await page.keyboard.press("Shift+Enter");
    // A cell was added below, so that this one is no longer the last: its output is what comes now.
    const output = page.locator(".jp-Notebook .jp-OutputArea-output", { hasText: shows });
    await output.first().waitFor();
    return { output: (await output.first().innerText()).trimEnd() };
  },
  async save() {
    const saved = page.waitForResponse((answer) => answer.request().method() === "PUT" && answer.url().includes("/api/contents/"));
    await page.keyboard.press("Control+s");
    return { status: (await saved).status() };
  },
  async sockets() {
    return { sockets };
  },
  async cookies() {
    return { cookies: await context.cookies() };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  try {
    console.log(JSON.stringify(await commands[command.do](command)));
  } catch (error) {
    const shown = await page.innerText("body", { timeout: 1000 }).catch(() => "");
    console.log(JSON.stringify({ error: `${error?.stack ?? error}\nthe page: ${shown}\nits console: ${said.join("\n")}` }));
  }
}
await browser.close();
process.exit(0);
