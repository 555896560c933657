// Drives one headless Chromium over a pipe, with the DevTools protocol and nothing but Node.
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** The first browser of this machine that speaks the protocol; `CHROME` names another. */
export function findBrowser() {
  const names = [process.env.CHROME, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
  const found = names.filter(Boolean).find((name) => spawnSync(name, ["--version"]).status === 0);
  if (!found) throw new Error("no Chromium: install it (`apt-get install chromium`) or name it in CHROME");
  return found;
}

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio",
  "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
  "--autoplay-policy=no-user-gesture-required", "--hide-scrollbars", "--remote-debugging-pipe", "about:blank",
];
/** No answer takes longer, ms. */
const PATIENCE = 60_000;

export async function launch() {
  const profile = mkdtempSync(join(tmpdir(), "report-browser-"));
  const child = spawn(findBrowser(), [`--user-data-dir=${profile}`, ...FLAGS], { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
  const [, , , toBrowser, fromBrowser] = child.stdio;
  const waiting = new Map();
  const listeners = [];
  let last = 0;
  let rest = "";
  const fail = (why) => {
    for (const { reject } of waiting.values()) reject(new Error(why));
    waiting.clear();
  };
  child.on("error", (error) => fail(`the browser did not start: ${error.message}`));
  child.on("exit", () => fail("the browser has gone"));
  toBrowser.on("error", () => {});
  fromBrowser.setEncoding("utf8");
  fromBrowser.on("data", (text) => {
    const messages = (rest + text).split("\0");
    rest = messages.pop();
    for (const message of messages.map((one) => JSON.parse(one))) {
      const asked = waiting.get(message.id);
      waiting.delete(message.id);
      if (!asked) listeners.forEach((listener) => listener(message));
      else if (message.error) asked.reject(new Error(`${asked.method}: ${message.error.message}`));
      else asked.resolve(message.result);
    }
  });
  const send = (method, params = {}, sessionId = undefined) => new Promise((resolve, reject) => {
    const id = ++last;
    const timer = setTimeout(() => { waiting.delete(id); reject(new Error(`${method}: no answer`)); }, PATIENCE);
    const settle = (does) => (value) => { clearTimeout(timer); does(value); };
    waiting.set(id, { method, resolve: settle(resolve), reject: settle(reject) });
    toBrowser.write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
  });
  const close = async () => {
    const gone = new Promise((resolve) => child.once("exit", resolve));
    await send("Browser.close").catch(() => child.kill("SIGKILL"));
    await gone;
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  return { open: (options) => openPage(send, listeners, options), close };
}

/** A new page of its own. `errors` collects everything that a person would see in the console as a complaint. */
async function openPage(send, listeners, { url, width = 1280, height = 900, dark = false, phone = false, scale = 1 }) {
  const { browserContextId } = await send("Target.createBrowserContext");
  const { targetId } = await send("Target.createTarget", { url: "about:blank", browserContextId });
  const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
  const ask = (method, params) => send(method, params, sessionId);
  const [errors, requests, loaded] = [[], [], []];
  listeners.push((message) => {
    if (message.sessionId !== sessionId) return;
    const { method, params } = message;
    if (method === "Runtime.exceptionThrown") errors.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === "Runtime.consoleAPICalled" && ["error", "warning", "assert"].includes(params.type)) errors.push(JSON.stringify(params.args));
    if (method === "Log.entryAdded" && ["error", "warning"].includes(params.entry.level)) errors.push(`${params.entry.text} ${params.entry.url ?? ""}`);
    if (method === "Network.requestWillBeSent") requests.push(params.request.url);
    if (method === "Page.loadEventFired") loaded.forEach((done) => done());
  });
  for (const domain of ["Page", "Runtime", "Log", "Network"]) await ask(`${domain}.enable`);
  await ask("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: scale, mobile: phone });
  await ask("Emulation.setTouchEmulationEnabled", { enabled: phone });
  await ask("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }] });

  const page = { errors, requests, ask };
  page.goto = async (to) => {
    const load = new Promise((resolve) => loaded.push(resolve));
    const { errorText } = await ask("Page.navigate", { url: to });
    if (errorText) throw new Error(`${to}: ${errorText}`);
    await load;
  };
  /** The value of an expression in the page, awaited. */
  page.get = async (expression) => {
    const { result, exceptionDetails } = await ask("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  };
  page.until = async (expression, patience = 10_000) => {
    for (const end = Date.now() + patience; Date.now() < end;) {
      if (await page.get(`Boolean(${expression})`)) return;
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
    throw new Error(`never true: ${expression}`);
  };
  page.press = async (key, code = key, text = key.length === 1 ? key : undefined) => {
    const named = { Space: [" ", "Space", " "], Tab: ["Tab", "Tab", undefined], Enter: ["Enter", "Enter", "\r"] }[key];
    const [k, c, t] = named ?? [key, code, text];
    const keyCode = { Tab: 9, Enter: 13, Escape: 27, ArrowLeft: 37, ArrowUp: 38, ArrowRight: 39, ArrowDown: 40 }[k] ?? k.toUpperCase().charCodeAt(0);
    await ask("Input.dispatchKeyEvent", { type: t ? "keyDown" : "rawKeyDown", key: k, code: c, text: t, windowsVirtualKeyCode: keyCode });
    await ask("Input.dispatchKeyEvent", { type: "keyUp", key: k, code: c, windowsVirtualKeyCode: keyCode });
  };
  page.mouse = (type, x, y, more = {}) => ask("Input.dispatchMouseEvent", { type, x, y, ...more });
  page.click = async (x, y) => {
    await page.mouse("mousePressed", x, y, { button: "left", buttons: 1, clickCount: 1 });
    await page.mouse("mouseReleased", x, y, { button: "left", clickCount: 1 });
  };
  /** The middle of an element, after it was brought into view. */
  page.middle = (selector) => page.get(`(() => {
    const node = document.querySelector(${JSON.stringify(selector)});
    node.scrollIntoView({ block: "center", behavior: "instant" });
    const { left, top, width, height } = node.getBoundingClientRect();
    return [left + width / 2, top + height / 2];
  })()`);
  page.screenshot = async (file, whole = false) => {
    const { data } = await ask("Page.captureScreenshot", { format: "png", captureBeyondViewport: whole });
    writeFileSync(file, Buffer.from(data, "base64"));
  };
  page.close = () => send("Target.disposeBrowserContext", { browserContextId });
  if (url) await page.goto(url);
  return page;
}
