// The report in a real browser: what a person who opens it would do, and what they must never see.
//
//   node tests/browser/report.mjs FAILING PASSING LARGE EMPTY REPLAYED [SCREENSHOTS]
//
// These are folders that `scn` wrote with `--report`: of failing calls, of good ones, of 200 and more, and of an
// exploration that found nothing. `tests/browser/run` makes them.
import assert from "node:assert/strict";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { launch } from "./devtools.mjs";

const [failing, passing, large, empty, replayed] = process.argv.slice(2, 7).map((folder) => pathToFileURL(resolve(folder, "index.html")).href);
const screenshots = process.argv[7];
assert(replayed, "five folders are needed: failing calls, good ones, many, none, and a replay");

/** A page of 200 calls is there after this long, ms: what is asked for, on a machine that may be busy. */
const OPENS_WITHIN = 2_000;

const browser = await launch();
const ready = "document.documentElement.dataset.ready !== undefined";
const range = (page) => page.get("(({ from, to }) => [Number(from), Number(to)])(document.querySelector('#chart').dataset)");
const length = async (page) => { const [from, to] = await range(page); return to - from; };
const text = (page, selector) => page.get(`document.querySelector(${JSON.stringify(selector)}).textContent`);
const chosen = (page) => page.get("document.querySelector('.moments [aria-selected=true]')?.id ?? ''");

const tests = {
  async "the failing call is shown first, with what was wrong and where"(page) {
    assert.equal(await text(page, "#run-verdict"), "failed");
    assert.equal(await page.get("document.querySelector('#list a').getAttribute('aria-current')"), "page");
    assert.match(await text(page, "#problems li"), /truncation_position.*was cut at \d+ ms, but the ear had \d+ ms/s);
    assert(await page.get("document.querySelectorAll('#chart .failed-line').length") > 0, "it is in the drawing");
    assert(await page.get("document.querySelectorAll('.moments .bad').length") > 0, "and in the list of messages");
    assert.match(await text(page, "#again"), /^cargo scn run \S+ --backend memory --seed 1 --fault/);
  },

  async "the problem leads to its place"(page) {
    const [x, y] = await page.middle("#problems button");
    await page.click(x, y);
    const [from, to] = await range(page);
    const at = await page.get("data('run-' + now.n).problems[0].at_ms");
    assert(from < at && at < to && to - from <= 4_001, `${from} to ${to} around ${at}`);
  },

  async "audio plays from the page alone, and the clock goes on"(page) {
    assert.match(await page.get("players.heard.src"), /^data:audio\/wav;base64,/);
    await page.press("0");
    await page.press("Space");
    await page.until("players.heard.currentTime > 0.3 && players.given.currentTime > 0.3");
    const [before, clock] = [await page.get("players.heard.currentTime"), await text(page, "#clock")];
    await page.until(`players.heard.currentTime > ${before} + 0.2`);
    assert.notEqual(await text(page, "#clock"), clock);
    assert(Math.abs(await page.get("players.heard.currentTime - players.given.currentTime")) < 0.15, "both ends keep together");
    await page.press("Space");
    assert(await page.get("players.heard.paused && players.given.paused"));
    assert(await page.get("Math.abs(players.heard.duration * 1000 - (now.call.to - now.call.from)) < 2"), "as long as the call");
  },

  async "keys and wheel zoom and move the axis"(page) {
    await page.press("0");
    const whole = await length(page);
    await page.press("+");
    const nearer = await length(page);
    assert(nearer < whole * 0.9, `${whole} to ${nearer} ms`);
    const [before] = await range(page);
    await page.press("ArrowRight");
    assert((await range(page))[0] > before);
    await page.press("-");
    assert(await length(page) > nearer);
    await page.press("0");
    assert(Math.abs(await length(page) - whole) < 1);

    const [x, y] = await page.middle("#chart");
    await page.mouse("mouseWheel", x, y, { deltaX: 0, deltaY: -120, modifiers: 2 });
    await page.until(`Number(document.querySelector('#chart').dataset.to) - Number(document.querySelector('#chart').dataset.from) < ${whole * 0.95}`);
    await page.press("0");
    // A drag moves a part, and never the whole.
    await page.press("+");
    const [from] = await range(page);
    await page.mouse("mousePressed", x, y, { button: "left", buttons: 1, clickCount: 1 });
    await page.mouse("mouseMoved", x - 60, y, { button: "left", buttons: 1 });
    await page.mouse("mouseMoved", x - 120, y, { button: "left", buttons: 1 });
    await page.mouse("mouseReleased", x - 120, y, { button: "left", clickCount: 1 });
    assert((await range(page))[0] > from);
    await page.press("0");
  },

  async "a wheel that only passes by scrolls the page"(page) {
    await page.get("document.activeElement.blur()");
    const [x, y] = await page.middle("#chart");
    const [before, scrolled] = [await length(page), await page.get("scrollY")];
    await page.mouse("mouseWheel", x, y, { deltaX: 0, deltaY: 200 });
    await page.until(`scrollY > ${scrolled}`);
    assert.equal(await length(page), before);
    await page.get("scrollTo({ top: 0, behavior: 'instant' })");
  },

  async "everything can be reached by keyboard"(page) {
    const first = await page.get("now.n");
    await page.press("n");
    await page.until(`now.n !== ${first}`);
    assert.equal(await page.get("document.querySelector('[aria-current]').dataset.n == now.n"), true);
    await page.press("p");
    await page.until(`now.n === ${first}`);
    const before = await chosen(page);
    await page.press("k");
    const after = await chosen(page);
    assert(after && after !== before, "k goes to another message");
    await page.press("j");
    assert.equal(await chosen(page), before);
    await page.press("v");
    assert(await page.get("document.querySelector('.moments .bad[aria-selected=true]') !== null"), "v goes to what was wrong");
    await page.press("?");
    assert(await page.get("byId('help').open"));
    await page.press("Escape");
    await page.until("!byId('help').open");
    await page.press("/");
    assert.equal(await page.get("document.activeElement.id"), "find");
    await page.press("Escape");
    const reached = new Set();
    await page.get("document.activeElement.blur()");
    // Every run of the list is on the way.
    const around = 60 + await page.get("document.querySelectorAll('a, button, input, select, [tabindex]').length");
    for (let n = 0; n < around; n += 1) {
      await page.press("Tab");
      reached.add(await page.get("document.activeElement.id"));
    }
    for (const id of ["find", "play", "zoom-in", "fit", "chart", "moments", "hear-heard"]) assert(reached.has(id), `Tab never comes to ${id}`);
    assert.equal(await page.get("getComputedStyle(document.querySelector('#chart')).outlineStyle") !== undefined, true);
  },

  async "runs are found by name, and an unknown name says so"(page) {
    const all = await page.get("document.querySelectorAll('#list a').length");
    const find = (words) => page.get(`byId('find').value = ${JSON.stringify(words)}, byId('find').dispatchEvent(new Event('input')), document.querySelectorAll('#list a').length`);
    assert.equal(await find("no such run"), 0);
    assert(await page.get("!byId('none-found').hidden"));
    assert.equal(await find(""), all);
  },

  async "a link leads to one run"(page) {
    await page.get("location.hash = 'run-1'");
    await page.until("now.n === 1");
    await page.get("location.hash = 'run-0'");
    await page.until("now.n === 0");
  },

  async "text is readable in both themes"(page) {
    for (const theme of ["light", "dark"]) {
      await page.get(`document.documentElement.dataset.theme = '${theme}'`);
      const poor = await page.get(`(${contrasts})()`);
      assert.deepEqual(poor, [], `${theme}: text on its ground below 4.5 to 1`);
    }
    await page.get("document.documentElement.dataset.theme = 'light'");
  },

  async "nothing on the page is the text of a mistake"(page) {
    for (const word of ["[object", "undefined", "NaN", "Infinity"]) assert(!(await text(page, "header")).includes(word) && !(await page.get("document.querySelector('.columns').textContent")).includes(word), `the page says ${word}`);
  },

  async "nothing is loaded from anywhere"(page) {
    const outside = page.requests.filter((url) => !url.startsWith("file:") && !url.startsWith("data:"));
    assert.deepEqual(outside, []);
  },
};

/** Runs in the page: every element with text of its own whose contrast with what is behind it is too low. */
const contrasts = `() => {
  const parse = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return { r, g, b, a }; };
  const over = (top, ground) => ({ a: 1, ...Object.fromEntries(["r", "g", "b"].map((c) => [c, top[c] * top.a + ground[c] * (1 - top.a)])) });
  const ground = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), { r: 255, g: 255, b: 255, a: 1 });
  };
  const light = ({ r, g, b }) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const poor = new Set();
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.matches("script, svg *") && !node.matches("svg text") || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const back = node.matches(".flag-text") ? parse(getComputedStyle(document.querySelector(".flag")).fill) : ground(node);
    const colour = { ...parse(node.matches("svg text") ? style.fill : style.color) };
    colour.a *= Number(style.opacity);
    const [a, b] = [light(over(colour, back)), light(back)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.add(node.tagName + "." + node.getAttribute("class") + "#" + node.id + " " + ratio.toFixed(2));
  }
  return [...poor];
}`;

let failed = 0;
async function check(name, does) {
  try {
    const note = await does();
    console.log(`ok    ${name}${note ? `: ${note}` : ""}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${name}\n      ${String(error.stack).replaceAll("\n", "\n      ")}`);
  }
}
const quiet = (page) => assert.deepEqual(page.errors, [], "the console has complaints");
const noSideways = async (page, width) => assert.equal(await page.get("document.documentElement.scrollWidth"), width, "it scrolls sideways");

try {
  const desk = await browser.open({ url: failing });
  await check("opens at 1280 px", async () => { await desk.until(ready); await noSideways(desk, 1280); quiet(desk); });
  for (const [name, does] of Object.entries(tests)) await check(name, () => does(desk));
  await check("no complaint in the console", () => quiet(desk));
  await desk.close();

  const phone = await browser.open({ url: failing, width: 390, height: 844, phone: true });
  await check("opens on a phone of 390 px, without scrolling sideways", async () => {
    await phone.until(ready);
    await noSideways(phone, 390);
    assert.equal(await text(phone, "#run-verdict"), "failed");
    const buttons = await phone.get("[...document.querySelectorAll('button')].filter((b) => b.checkVisibility() && b.getBoundingClientRect().height < 39).map((b) => b.id || b.textContent)");
    assert.deepEqual(buttons, [], "too small for a finger");
    for (const hash of ["run-1", "run-2"]) {
      await phone.get(`location.hash = '${hash}'`);
      await phone.until(`now.n === ${hash.slice(4)}`);
      await noSideways(phone, 390);
    }
    quiet(phone);
  });
  await check("a pinch zooms", async () => {
    const whole = await length(phone);
    const [x, y] = await phone.middle("#chart");
    const touch = (type, apart) => phone.ask("Input.dispatchTouchEvent", { type, touchPoints: apart === undefined ? [] : [{ x: x - apart, y, id: 1 }, { x: x + apart, y, id: 2 }] });
    await touch("touchStart", 30);
    for (const apart of [40, 60, 90]) await touch("touchMove", apart);
    await touch("touchEnd");
    assert(await length(phone) < whole * 0.7, `${whole} to ${await length(phone)} ms`);
    quiet(phone);
  });
  await phone.close();

  const dark = await browser.open({ url: failing, dark: true });
  await check("dark for who prefers it, and light by one key", async () => {
    await dark.until(ready);
    const ground = () => dark.get("getComputedStyle(document.body).backgroundColor");
    const before = await ground();
    assert(before.match(/\d+/g).every((part) => Number(part) < 60), before);
    await dark.press("t");
    assert((await ground()).match(/\d+/g).every((part) => Number(part) > 200), await ground());
    quiet(dark);
  });
  await dark.close();

  const good = await browser.open({ url: passing });
  await check("a report without failures says so and shows its first call, with its audio beside it", async () => {
    await good.until(ready);
    assert.match(await text(good, "#verdict"), /^all \d+ passed$/);
    assert.equal(await text(good, "#run-verdict"), "passed");
    assert.match(await good.get("players.heard.src"), /^file:.*\.wav$/);
    await good.press("Space");
    await good.until("players.heard.currentTime > 0.2");
    quiet(good);
  });
  await good.close();

  const none = await browser.open({ url: empty });
  await check("a report of nothing says why it is empty, and its keys do no harm", async () => {
    await none.until(ready);
    assert.match(await text(none, "#empty"), /All \d+ runs passed/);
    assert(await none.get("byId('empty').checkVisibility() && !byId('run').checkVisibility()"));
    for (const key of ["n", "c", "v", "j", "+", "Space", "/", "t", "?"]) await none.press(key);
    quiet(none);
  });
  await none.close();

  for (const options of [{}, { dark: true }, { width: 390, height: 844, phone: true }]) {
    const replay = await browser.open({ url: replayed, ...options });
    await check(`a replay shows then beside now, and plays (${JSON.stringify(options)})`, async () => {
      await replay.until(ready);
      assert(await replay.get("byId('beside').checkVisibility()"));
      assert.match(await text(replay, "#beside-first"), /^they part: /);
      assert.match(await text(replay, "#beside-rows .other"), /^\+.*clears$/);
      assert.match(await text(replay, "#again"), /^cargo scn replay \S+deaf\.ndjson --backend simulated --seed 1$/);
      assert.match(await text(replay, "#scenario"), /bytes of recorded audio/);
      assert(await replay.get("document.documentElement.scrollWidth <= innerWidth"), "nothing hangs over the side");
      await replay.press("Space");
      await replay.until("players.heard.currentTime > 0.2");
      quiet(replay);
    });
    await replay.close();
  }

  await check("a report of 200 calls opens in under two seconds", async () => {
    const times = [];
    for (let n = 0; n < 3; n += 1) {
      const page = await browser.open({});
      const begun = performance.now();
      await page.goto(large);
      await page.until(ready);
      // Until something is on the screen, not only in memory.
      await page.get("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))");
      times.push(Math.round(performance.now() - begun));
      const calls = await page.get("index.runs.reduce((all, run) => all + run.calls, 0)");
      assert(calls >= 200, `only ${calls} calls`);
      quiet(page);
      await page.close();
    }
    assert(Math.min(...times) < OPENS_WITHIN, `${times} ms`);
    return `${times.join(", ")} ms`;
  });

  if (screenshots) {
    await check("screenshots", async () => {
      const views = { light: {}, dark: { dark: true }, phone: { width: 390, height: 844, phone: true, scale: 2 } };
      for (const [name, options] of Object.entries(views)) {
        const page = await browser.open({ url: failing, height: 900, ...options });
        await page.until(ready);
        if (name === "dark") await page.get("document.querySelector('#problems button').click()");
        await new Promise((done) => setTimeout(done, 400));
        await page.screenshot(resolve(screenshots, `report-${name}.png`));
        await page.close();
      }
      return screenshots;
    });
  }
} finally {
  await browser.close();
}
console.log(failed === 0 ? "the report holds in a browser" : `${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
