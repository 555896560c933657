// The live page in a real browser, while mock calls run: what a person who watches would see and do.
//
//   node tests/browser/live.mjs FOLDER [SCREENSHOTS]
//
// FOLDER holds the programs `bridge`, `mock-openai` and `mock-twilio`. `tests/browser/run` builds them.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { launch } from "./devtools.mjs";

const [folder, screenshots] = process.argv.slice(2).map((path) => resolve(path));
assert(folder, "the folder of the programs is needed");
const made = mkdtempSync(join(tmpdir(), "live-browser-"));
const running = [];

const freePort = () => new Promise((done) => {
  const server = createServer().listen(0, "127.0.0.1", () => { const { port } = server.address(); server.close(() => done(port)); });
});
const start = (name, args, env = {}) => {
  const child = spawn(join(folder, name), args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...env } });
  child.said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => { child.said += text; });
  running.push(child);
  return child;
};
const until = async (what, words, patience = 20_000) => {
  for (const end = Date.now() + patience; Date.now() < end;) {
    if (await what()) return;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error(`never: ${words}`);
};

// What a caller says, as the model writes it down: every watcher would get it.
const HOSTILE = `<img src=x onerror="document.title='broken'"><script>document.title='broken'</script> & "quotes"`;
const [phone, live, guarded, model] = [await freePort(), await freePort(), await freePort(), await freePort()];
const write = (name, text) => { const path = join(made, name); writeFileSync(path, text); return path; };
const script = write("model.toml", `
turns = [
  { says = "agent_greeting" }, { says = "agent_answer" }, { answers = 3000, transcript = "Of course. Which day would suit you better?" },
  { answers = 60000, transcript = "Then I will read you the whole list of our flowers." },
]
transcription = [{ text = "Hello, when are you open on Saturday?" }, { text = "Stop, please." }, { text = ${JSON.stringify(HOSTILE)} }]
`);
const caller = write("caller.toml", `
steps = ["hears_start", "hears_end", { plays = "caller_question" }, "hears_start", { hears_for = 1500 }, { plays = "caller_stop" },
  "hears_start", "hears_end", { plays = "caller_question" }, { waits = 60000 }, "hangs_up"]
patience_ms = 20000
`);
const config = (name, address) => write(name, `
listen = "127.0.0.1:${phone}"
live = { listen = "127.0.0.1:${address}" }
twilio = { insecure_no_signature = true }
openai = { url = "ws://127.0.0.1:${model}/v1/realtime", api_key = "any" }
call = { greeting = "Greet the caller.", transcription = { model = "gpt-realtime-whisper" } }
`);

const ask = (port, path, { method = "GET", headers = {} } = {}) => new Promise((done, failed) => {
  const asked = request({ host: "127.0.0.1", port, path, method, headers }, (answer) => {
    let body = "";
    answer.on("data", (text) => { body += text; });
    answer.on("end", () => done({ status: answer.statusCode, headers: answer.headers, body }));
  });
  asked.on("error", failed);
  asked.end();
});

const bridge = () => start("bridge", ["--config", config("bridge.toml", live)]);
const cards = "[...document.querySelectorAll('#now article')]";
const log = "document.querySelector('#now article .log').textContent";

const tests = {
  async "no call is active at first"(page) {
    await page.until("document.documentElement.dataset.ready !== undefined");
    assert.equal(await page.get("document.querySelector('#no-calls').hidden"), false);
    assert.match(await page.get("document.querySelector('#summary').textContent"), /^0 of 200 lines busy/);
  },

  async "a call appears, and says who speaks, with words and figures"(page) {
    start("mock-twilio", [`ws://127.0.0.1:${phone}/twilio`, "--script", caller]);
    await page.until(`${cards}.length === 1`);
    await page.until("document.querySelector('.floor .agent.speaks')");
    await page.until("document.querySelector('.floor .caller.speaks')");
    await page.until(`${log}.includes('when are you open on Saturday')`);
    await page.until("document.querySelector('#now dl').textContent.includes('ms (')");
    if (screenshots) await page.screenshot(join(screenshots, "live-early.png"));
  },

  async "an interrupted line says so, and the barge-in is counted"(page) {
    await page.until(`${log}.includes('interrupted')`);
    await page.until("document.querySelectorAll('#now dd')[1].textContent === '1'");
  },

  async "what a caller says is text and nothing else"(page) {
    await page.until(`${log}.includes('onerror')`, 30_000);
    assert((await page.get(log)).includes(HOSTILE), "to the letter");
    assert.equal(await page.get("document.querySelectorAll('.log img, .log script').length"), 0);
    assert.match(await page.get("document.title"), /Calls$/);
    if (screenshots) {
      await page.until("document.querySelector('.floor .agent.speaks')");
      await page.screenshot(join(screenshots, "live-light.png"));
    }
  },

  async "a phone shows all of it, without anything beside the screen"() {
    const page = await browser.open({ url: `http://127.0.0.1:${live}/`, width: 360, height: 740, phone: true, scale: 2 });
    await page.until(`${cards}.length === 1`);
    assert(await page.get("document.documentElement.scrollWidth <= innerWidth"), "nothing to scroll sideways");
    assert(await page.get("[...document.querySelectorAll('#now button')].every((b) => b.getBoundingClientRect().height >= 40)"), "thumbs meet the buttons");
    if (screenshots) await page.screenshot(join(screenshots, "live-phone.png"), true);
    assert.deepEqual(page.errors, []);
    await page.close();
    const dark = await browser.open({ url: `http://127.0.0.1:${live}/`, dark: true });
    await dark.until(`${cards}.length === 1`);
    assert.deepEqual(await dark.get(CONTRAST), [], "what can be read in the dark");
    assert.deepEqual(dark.errors, []);
    if (screenshots) await dark.screenshot(join(screenshots, "live-dark.png"));
    await dark.close();
  },

  async "everything that can be done can be done by keyboard, and everything has a name"(page) {
    assert.deepEqual(await page.get(CONTRAST), [], "what can be read by day");
    assert.deepEqual(await page.get("[...document.querySelectorAll('button, input, [tabindex]')].filter((n) => n.offsetParent && !(n.textContent || n.labels?.length || n.ariaLabel)).length"), 0);
    const reached = [];
    for (let n = 0; n < 2; n += 1) {
      await page.press("Tab");
      reached.push(await page.get("document.activeElement.className || document.activeElement.textContent"));
    }
    assert.deepEqual(reached, ["log", "Hang up"], "the transcript, then the buttons");
    assert(await page.get("document.querySelectorAll('#now button')[1].disabled"), "no carrier to ask for a transfer");
  },

  async "a call is ended by its button, after a question that can be declined"(page) {
    await page.get("document.querySelector('#now button').focus()");
    await page.press("Enter");
    await page.until("document.querySelector('#ask').open");
    await page.press("Escape");
    await page.until("!document.querySelector('#ask').open");
    assert.equal(await page.get("document.activeElement.textContent"), "Hang up", "back where one was");
    assert.equal(await page.get(`${cards}.length`), 1);
    await page.press("Enter");
    await page.until("document.querySelector('#ask').open");
    const [x, y] = await page.middle("#ask-yes");
    await page.click(x, y);
    await page.until("document.querySelector('#over article')");
    assert.match(await page.get("document.querySelector('#over .state').textContent"), /^Over · ended: hung up/);
    assert.equal(await page.get(`${cards}.length`), 0);
  },

  async "other sites, other names and other networks are refused"() {
    const own = `127.0.0.1:${live}`;
    assert.equal((await ask(live, "/live/calls")).status, 200);
    assert.equal((await ask(live, "/live/calls", { headers: { host: "evil.example" } })).status, 403, "another name that leads here");
    assert.equal((await ask(live, "/live/calls", { headers: { origin: "https://evil.example" } })).status, 403);
    assert.equal((await ask(live, "/live/calls", { headers: { "sec-fetch-site": "cross-site" } })).status, 403);
    assert.equal((await ask(live, "/live/calls/1/hangup", { method: "POST" })).status, 403, "no button of the page's");
    const button = { "x-bridge-live": "1", origin: `http://${own}` };
    assert.equal((await ask(live, "/live/calls/1/hangup", { method: "POST", headers: button })).status, 409, "over, but let in");
    const { headers } = await ask(live, "/");
    assert.match(headers["content-security-policy"], /default-src 'none'; script-src 'sha256-/);
  },

  async "with a token no request is let in without it"() {
    const env = { BRIDGE_OPERATOR_TOKEN: "0123456789abcdef0123", TWILIO_ACCOUNT_SID: `AC${"0".repeat(32)}`, TWILIO_AUTH_TOKEN: "any" };
    const other = await freePort();
    const child = start("bridge", ["--config", config("guarded.toml", guarded), "--listen", `127.0.0.1:${other}`], env);
    await until(() => ask(guarded, "/").then(() => true, () => false), `the guarded page: ${child.said}`);
    assert.equal((await ask(guarded, "/")).status, 401);
    const shown = (value) => ({ headers: { authorization: value } });
    assert.equal((await ask(guarded, "/", shown("Bearer 0123456789abcdef0124"))).status, 401);
    assert.equal((await ask(guarded, "/", shown("Bearer 0123456789abcdef0123"))).status, 200);
    assert.equal((await ask(guarded, "/", shown(`Basic ${Buffer.from("me:0123456789abcdef0123").toString("base64")}`))).status, 200);
    child.kill("SIGTERM");
  },

  async "a bridge that is gone is missed, and found again"(page) {
    const errors = page.errors.length;
    running.find((child) => child === first).kill("SIGKILL");
    await page.until("document.querySelector('#link').textContent.includes('does not answer')");
    first = bridge();
    await page.until("document.querySelector('#link').textContent === ''", 20_000);
    page.errors.length = errors; // the browser complains of the lost connection, as it should
  },
};

// Text whose colour stands out less than 4.5 to 1 from what is behind it.
const CONTRAST = `(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const lum = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll("h1, h2, h3, p, li, b, dt, dd, small, button:enabled")].filter((n) => n.offsetParent && n.textContent.trim()).map((n) => {
    const [a, b] = [lum(rgb(getComputedStyle(n).color)), lum(behind(n))].sort((x, y) => y - x);
    return [n.tagName + "." + n.className, Math.round((a + 0.05) / (b + 0.05) * 10) / 10];
  }).filter(([, ratio]) => ratio < 4.5);
})()`;

let first = null;
const browser = await launch();
let failed = 0;
try {
  start("mock-openai", ["--listen", `127.0.0.1:${model}`, "--script", script]);
  first = bridge();
  await until(() => ask(live, "/").then(({ status }) => status === 200, () => false), `the live page: ${first.said}`);
  const page = await browser.open({ url: `http://127.0.0.1:${live}/` });
  for (const [name, test] of Object.entries(tests)) {
    try {
      await test(page);
      assert.deepEqual(page.errors, [], "the console is clean");
      console.log(`ok      ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED  ${name}\n${error.stack}\n${running.map((child) => child.said.slice(-600)).join("\n--\n")}`);
      break;
    }
  }
  const own = page.requests.filter((url) => !url.startsWith(`http://127.0.0.1:${live}/`) && !url.startsWith("data:"));
  assert.deepEqual(own, [], "the page asks no other server");
} finally {
  await browser.close();
  running.forEach((child) => child.kill("SIGKILL"));
  rmSync(made, { recursive: true, force: true });
}
console.log(failed ? `${failed} failed` : `${Object.keys(tests).length} passed`);
process.exitCode = failed ? 1 : 0;
