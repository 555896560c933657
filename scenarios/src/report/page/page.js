// Draws the calls of a report. All data is in the page; text from it is only ever set as text.
// In this order: the data, small tools, the list, one run, the drawing, moving about, listening, keys, the beginning.
"use strict";

const byId = (id) => document.getElementById(id);
const data = (id) => JSON.parse(byId(id).textContent);
const index = data("index");

/** What is looked at: a run, a call of it, a stretch of time in ms, a moment, and where playing is. */
const now = { n: -1, run: null, call: null, from: 0, to: 1, chosen: -1, at: 0, playing: false, moments: [] };

// ------------------------------------------------------------------------------------------ small tools

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  for (const child of children.flat(9)) if (child != null && child !== false) node.append(child);
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const seconds = (ms, digits = 3) => `${ms < 0 ? "−" : "+"}${(Math.abs(ms) / 1000).toFixed(digits)} s`;
const rounded = (ms) => (Math.abs(ms - Math.round(ms)) < 0.05 ? String(Math.round(ms)) : ms.toFixed(1));
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const thousands = (n) => n.toLocaleString("en");
const clamp = (x, least, most) => Math.min(Math.max(x, least), most);
/** A name that may go on in the next line after a `/` or `_`. */
const breakable = (name) => name.split(/(?<=[/_])/).map((part, i) => [i > 0 && el("wbr"), part]);
const pill = (node, passed, words) => {
  node.className = `pill ${passed ? "passed" : "failed"}`;
  node.textContent = words;
};

// --------------------------------------------------------------------------------------------- the list

function showHead() {
  const sum = (what) => index.backends.reduce((all, backend) => all + backend[what], 0);
  const [runs, failed] = [sum("runs"), sum("failed")];
  pill(byId("verdict"), failed === 0, failed === 0 ? `all ${runs} passed` : `${failed} of ${runs} failed`);
  const backends = index.backends.map((s) => `${s.backend}: ${s.passed} of ${s.runs} passed`);
  byId("counts").textContent = [...backends, `${index.milestones.reached} of ${index.milestones.of} milestones`].join(" · ");
  byId("command").textContent = index.command;
  document.title = failed === 0 ? `All ${runs} passed` : `${failed} of ${runs} failed`;
  byId("figures-of").textContent = index.runs.length < runs ? "Figures of the runs drawn here" : "Figures of all runs";
  document.querySelector(".figures").hidden = index.runs.length === 0;
  byId("picker").hidden = index.runs.length === 0;
  byId("figures").replaceChildren(...index.backends.map((backend) =>
    el("table", {},
      el("caption", {}, backend.backend),
      el("thead", {}, el("tr", {}, ...["ms", "median", "95 %", "most"].map((t) => el("th", { scope: "col" }, t)))),
      el("tbody", {},
        backend.figures.map((f) => el("tr", { class: f.part ? "part" : null },
          el("th", { scope: "row" }, f.part ? f.what : `${f.what} (${f.count})`),
          [f.median_ms, f.p95_ms, f.most_ms].map((ms) => el("td", {}, rounded(ms))))),
        el("tr", {}, el("th", { scope: "row" }, "stale audio, bytes"), el("td", { colspan: 3 }, thousands(backend.stale_bytes)))))));
}

/** The runs in the order of the list: what failed comes first. */
function inOrder() {
  const numbers = index.runs.map((_, n) => n);
  return [...numbers.filter((n) => !index.runs[n].passed), ...numbers.filter((n) => index.runs[n].passed)];
}

function showList() {
  const wanted = byId("find").value.trim().toLowerCase();
  const onlyFailed = byId("only-failed").checked;
  const shown = inOrder().filter((n) => {
    const run = index.runs[n];
    return !(onlyFailed && run.passed) && `${run.name} ${run.backend} ${run.seed} ${run.purpose}`.toLowerCase().includes(wanted);
  });
  const link = (n) => {
    const run = index.runs[n];
    const words = run.passed ? "passed" : `failed, ${plural(run.problems, "problem")}`;
    return el("a", { href: `#run-${n}`, "data-n": n, class: run.passed ? null : "bad", "aria-label": `${run.name}, ${run.backend}, ${words}` },
      el("span", { class: "dot" }), el("span", { class: "name" }, breakable(run.name)), el("span", { class: "at" }, run.backend));
  };
  const group = (title, numbers) => numbers.length > 0 &&
    [el("h3", {}, `${title} (${numbers.length})`), ...numbers.map(link)];
  byId("list").replaceChildren(...[
    group("Failed", shown.filter((n) => !index.runs[n].passed)),
    group("Passed", shown.filter((n) => index.runs[n].passed)),
  ].flat().filter(Boolean));
  byId("none-found").hidden = shown.length > 0 || index.runs.length === 0;
  markCurrent();
}

function markCurrent() {
  for (const link of byId("list").querySelectorAll("a")) {
    const current = Number(link.dataset.n) === now.n;
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const link = byId("list").querySelector("[aria-current]");
  const list = narrow() ? byId("list") : document.querySelector(".runs");
  if (link && list) {
    const [box, room] = [link.getBoundingClientRect(), list.getBoundingClientRect()];
    if (box.top < room.top || box.bottom > room.bottom) list.scrollTop += box.top - room.top - room.height / 3;
  }
}
const narrow = () => matchMedia("(max-width: 900px)").matches;

/** The links on the page, in the order they are shown. */
const listed = () => [...byId("list").querySelectorAll("a")].map((link) => Number(link.dataset.n));
function stepRun(by) {
  const all = listed();
  const next = all[clamp(all.indexOf(now.n) + by, 0, all.length - 1)];
  if (next !== undefined && next !== now.n) location.hash = `run-${next}`;
}

// ---------------------------------------------------------------------------------------------- one run

function showRun(n, callIndex) {
  stop();
  const [run, brief] = [data(`run-${n}`), index.runs[n]];
  Object.assign(now, { n, run });
  byId("run").hidden = false;
  byId("run-name").replaceChildren(...breakable(brief.name).flat().filter(Boolean));
  pill(byId("run-verdict"), brief.passed, brief.passed ? "passed" : "failed");
  byId("run-purpose").textContent = brief.purpose;
  byId("run-facts").textContent =
    `${brief.backend} backend · seed ${brief.seed} · ${(brief.ms / 1000).toFixed(1)} simulated seconds · ${plural(brief.calls, "call")}`;
  byId("picker-now").textContent = narrow() ? `${listed().indexOf(n) + 1} of ${listed().length}` : "";
  byId("problems").hidden = run.problems.length === 0;
  byId("problems").replaceChildren(...run.problems.map((problem) =>
    el("li", {},
      el("b", {}, problem.oracle || "run"),
      el("span", { class: "what" }, problem.what),
      problem.at_ms === undefined ? el("span") : el("span", { class: "where" },
        `${run.calls.length > 1 ? `call ${problem.call}, ` : ""}${seconds(problem.at_ms)} `,
        el("button", { type: "button", onclick: () => showProblem(problem) }, "Show")),
      problem.oracle && el("span", { class: "about" }, index.oracles[problem.oracle]))));
  const bad = (call) => run.problems.some((problem) => problem.call === call.index);
  byId("calls").hidden = run.calls.length < 2;
  byId("calls").replaceChildren("Call", ...run.calls.map((call, i) =>
    el("button", { type: "button", class: bad(call) ? "bad" : null, "aria-pressed": "false", "aria-label": `call ${call.index}${bad(call) ? ", failed" : ""}`, onclick: () => showCall(i) },
      `${call.index}${bad(call) ? " ✗" : ""}`)));
  byId("again").textContent = run.again;
  byId("milestones").textContent = run.milestones.length > 0 ? run.milestones.join(" · ") : "None.";
  byId("scenario").textContent = run.scenario;
  markCurrent();
  const first = run.calls.findIndex(bad);
  if (run.calls.length > 0) showCall(callIndex ?? Math.max(first, 0));
}

/** What the bridge said when the call was recorded, beside what it says now; only a replay has that. */
function showBeside(compared) {
  byId("beside").hidden = !compared;
  if (!compared) return;
  byId("beside-first").textContent = compared.what.replaceAll(/\s+/g, " ");
  byId("beside-first").className = compared.same ? "muted" : "parts";
  const words = { "=": "the same", "~": "not as much, or more", "-": "only then", "+": "only now" };
  byId("beside-rows").replaceChildren(...compared.rows.map((row) =>
    el("tr", { class: row.sign === "=" ? null : "other" },
      el("td", { title: words[row.sign], "aria-label": words[row.sign] }, row.sign === "=" ? "" : row.sign),
      el("td", {}, row.then ?? ""), el("td", {}, row.now ?? ""))));
  // The first difference, with two rows above it.
  const first = byId("beside-rows").querySelector(".other");
  byId("beside-scrolls").scrollTop = first ? first.offsetTop - 3 * first.offsetHeight : 0;
}

function showCall(i) {
  const call = now.run.calls[i];
  if (!call) return;
  stop();
  Object.assign(now, { call, chosen: -1, at: call.from });
  byId("ended").textContent = `of ${((call.to - call.from) / 1000).toFixed(1)} s, ended: ${call.end}`;
  [...byId("calls").children].forEach((tab, n) => tab.setAttribute("aria-pressed", String(n === i)));
  byId("explain").textContent = `${now.run.explains}${now.run.calls.length > 1 && !now.run.replayed ? ` --call ${call.index}` : ""}`;
  byId("files").replaceChildren("Listen to it elsewhere: ",
    el("a", { href: call.heard.file }, "what the caller heard"), " and ", el("a", { href: call.given.file }, "what the model heard"),
    ", beside this page.");
  showBeside(now.run.compared[call.index]);
  loadAudio();
  showWaits();
  showTranscript();
  fit();
  showMoments();
  const problem = problemsHere()[0];
  if (problem) {
    now.at = problem.at_ms;
    choose(momentAt(problem.at_ms), false);
  } else choose(-1, false);
  draw();
}

const problemsHere = () => now.run.problems.filter((problem) => problem.call === now.call.index);

function showProblem(problem) {
  const i = now.run.calls.findIndex((call) => call.index === problem.call);
  if (now.run.calls[i] !== now.call) showCall(i);
  look(problem.at_ms - 2000, problem.at_ms + 2000);
  seek(problem.at_ms);
  choose(momentAt(problem.at_ms), false);
  byId("chart").scrollIntoView({ block: "center" });
  byId("chart").focus({ preventScroll: true });
}
function stepProblem() {
  const all = now.run.problems.filter((problem) => problem.at_ms !== undefined);
  if (all.length === 0) return;
  stepProblem.next = stepProblem.of === now.run ? (stepProblem.next + 1) % all.length : 0;
  stepProblem.of = now.run;
  showProblem(all[stepProblem.next]);
}

const partClass = (name) => `part-${name.replaceAll(" ", "-")}`;
function showWaits() {
  const { waits } = now.call;
  const longest = Math.max(...waits.map((wait) => wait.total), 1);
  const budget = now.run.budget_ms;
  const words = { answer: "caller silent to answer heard", "first audio": "call open to first audio", "barge-in": "floor taken to last sample of the agent" };
  byId("waits").replaceChildren(...waits.map((wait) => {
    const share = (ms) => `${(100 * Math.max(ms, 0)) / longest}%`;
    const bar = el("span", { class: "bar" }, wait.parts.map(([name, ms]) => {
      const part = el("i", { class: partClass(name) });
      part.style.width = share(ms);
      return part;
    }));
    if (wait.what === "answer" && budget <= longest) {
      const line = el("i", { class: "budget", title: `budget ${budget} ms` });
      line.style.left = share(budget);
      bar.append(line);
    }
    return el("button", { type: "button", class: "wait", onclick: () => { look(wait.from - 400, wait.from + wait.total + 400); seek(wait.from); } },
      el("span", { class: "row" }, el("span", {}, `${words[wait.what]}, ${seconds(wait.from)}`), el("b", {}, `${rounded(wait.total)} ms`)),
      bar,
      el("span", { class: "parts" }, wait.parts.map(([name, ms]) =>
        el("span", {}, el("i", { class: partClass(name) }), `${name} ${rounded(ms)}`))));
  }), ...(waits.length === 0 ? [el("p", { class: "muted" }, "The caller waited for nothing that came.")] : []));
}

function showTranscript() {
  const lines = now.call.transcript;
  byId("transcript").replaceChildren(...lines.map((line) =>
    el("li", { class: line.who }, el("b", {}, line.who), el("span", {}, line.text, " ", line.cut && el("em", {}, "cut here")))),
  ...(lines.length === 0 ? [el("li", { class: "muted" }, "Nothing was written down.")] : []));
}

// --------------------------------------------------------------------------------------------- moments

const ends = { caller: "caller", model: "model", bridge: "bridge" };
/** Runs of messages that are alike: audio, played marks, pings, and what the model sends besides. */
const isRun = (m) => ["media", "append", "audio", "ping", "other"].includes(m.k) || (m.k === "mark" && !m.x.includes("flushed"));
/** The arrow points the way the message went in a timeline with the caller on the left. */
const arrow = (m) => m.e === "bridge" ? "──" : m.w === "here" ? "·" : (m.e === "caller") === (m.w === "sent") ? "→" : "←";
const said = (m) => `${arrow(m)} ${m.w === "here" ? "" : `${m.k}: `}${m.x}`;

function showMoments() {
  const all = byId("with-runs").checked;
  now.moments = now.call.moments.filter((m) => all || !isRun(m));
  const bad = new Set(problemsHere().map((problem) => momentAt(problem.at_ms)));
  byId("moments").replaceChildren(...now.moments.map((m, i) =>
    el("li", { role: "option", id: `moment-${i}`, "aria-selected": "false", class: bad.has(i) ? "bad" : null, onclick: () => choose(i, true) },
      el("span", { class: "t" }, seconds(m.t)), el("span", { class: `e ${m.e}` }, ends[m.e] + (m.n ? ` ${m.n}` : "")),
      el("span", { class: "x" }, said(m)))));
}

/** The last moment at or before this time. */
function momentAt(t) {
  let found = -1;
  now.moments.forEach((m, i) => { if (m.t <= t + 0.0005) found = i; });
  return found;
}

function choose(i, move) {
  const list = byId("moments");
  list.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
  now.chosen = i;
  const m = now.moments[i];
  if (!m) {
    list.removeAttribute("aria-activedescendant");
    byId("chosen").replaceChildren(el("span", { class: "muted" }, "Choose a sign in the drawing, or a line of the list below."));
    return;
  }
  const line = byId(`moment-${i}`);
  line.setAttribute("aria-selected", "true");
  list.setAttribute("aria-activedescendant", line.id);
  const [box, room] = [line.getBoundingClientRect(), list.getBoundingClientRect()];
  if (box.top < room.top || box.bottom > room.bottom) list.scrollTop += box.top - room.top - room.height / 2;
  byId("chosen").replaceChildren(
    el("span", { class: "t" }, seconds(m.t), m.u === undefined ? "" : ` to ${seconds(m.u)}`),
    el("b", { class: m.e === "bridge" ? null : `lane-${m.e}` }, `${m.e}${m.n ? ` (connection ${m.n})` : ""} `), said(m));
  if (move) {
    if (m.t < now.from || m.t > now.to) look(m.t - (now.to - now.from) / 2, m.t + (now.to - now.from) / 2);
    seek(m.t);
    draw();
  }
}
const stepMoment = (by) => choose(clamp(now.chosen + by, 0, now.moments.length - 1), true);

// --------------------------------------------------------------------------------------------- drawing

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const HEIGHT = { flags: 20, axis: 20, head: 18, speech: 14, wave: 54, items: 26, marks: 16, messages: 22, waits: 14, events: 20, spans: 18, pad: 8 };
/** Signs whose words are written first when there is not room for all. */
const IMPORTANT = ["clear", "truncate", "barge-in", "truncated", "response.cancel", "speech_started", "error", "refused", "timer", "notice", "ended", "dtmf", "function", "over", "stop"];

function draw() {
  if (!now.call) return;
  const chart = byId("chart");
  const width = Math.max(chart.clientWidth, 200);
  const roomy = width >= 700;
  const gutter = roomy ? 104 : 54;
  const view = { left: gutter, right: width - 1, from: now.from, to: now.to };
  view.x = (t) => view.left + ((t - view.from) / (view.to - view.from)) * (view.right - view.left);
  view.sees = (from, to) => to >= view.from && from <= view.to;
  const rows = [];
  let y = HEIGHT.flags;
  const { call, run } = now;
  /** Reserves a row and names it in the gutter. */
  const row = (name, height, does) => {
    rows.push(does(y, height));
    rows.push(svg("text", { x: gutter - (roomy ? 10 : 4), y: y + height / 2 + 4, "text-anchor": "end", class: roomy ? "dim" : "tiny" }, name));
    y += height;
  };
  const block = (who, title, conditions, fills) => {
    const top = y;
    const at = rows.length;
    rows.push(svg("text", { x: roomy ? 2 : view.left + 5, y: y + 13, class: `leg in-${who}` }, title));
    y += roomy ? 4 : HEIGHT.head;
    fills();
    y += 4;
    rows.splice(at, 0, svg("rect", { x: view.left + 0.5, y: top + 0.5, width: view.right - view.left, height: y - top - 1, rx: 4, class: "block" }),
      conditions ? outages(view, run.network[who], top, y - top) : null);
    y += HEIGHT.pad;
  };
  const messages = (end, way) => call.moments.filter((m) => m.e === end && m.w === way && m.k !== "mark");
  const top = y;
  block("caller", "CALLER", true, () => {
    row("speaks", HEIGHT.speech, (y, h) => spans(view, y, h, call.speech, "soft-caller edge"));
    row("hears", HEIGHT.wave, (y, h) => [wave(view, y, h, call.heard, "in-caller"), clears(view, y, h + HEIGHT.items)]);
    row("items", HEIGHT.items, (y, h) => items(view, y, h));
    row("marks", HEIGHT.marks, (y, h) => marks(view, y, h));
    row("sends", HEIGHT.messages, (y, h) => signs(view, y, h, messages("caller", "sent"), "caller", "down"));
    row("gets", HEIGHT.messages, (y, h) => signs(view, y, h, messages("caller", "got"), "caller", "up"));
    row("steps", HEIGHT.messages, (y, h) => signs(view, y, h, messages("caller", "here").filter((m) => !["speaks", "silent"].includes(m.k)), "caller", "dot"));
  });
  block("bridge", "BRIDGE", false, () => {
    row("waits", HEIGHT.waits, (y, h) => waits(view, y, h));
    row("says", HEIGHT.events, (y, h) => signs(view, y, h, call.moments.filter((m) => m.e === "bridge"), "bridge", "dot"));
  });
  block("model", "MODEL", true, () => {
    row("gets", HEIGHT.messages, (y, h) => signs(view, y, h, messages("model", "got"), "model", "down"));
    row("sends", HEIGHT.messages, (y, h) => signs(view, y, h, messages("model", "sent"), "model", "up"));
    row("responses", HEIGHT.spans, (y, h) => responses(view, y, h));
    row("makes", HEIGHT.spans, (y, h) => made(view, y, h));
    row("speech", HEIGHT.speech, (y, h) => spans(view, y, h, call.detected, "soft-model edge"));
    row("is given", HEIGHT.wave, (y, h) => wave(view, y, h, call.given, "in-model"));
  });
  const bottom = y - HEIGHT.pad;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${bottom + HEIGHT.axis}`, height: bottom + HEIGHT.axis, role: "img", "aria-label": inWords() },
    svg("defs", {}, hatch("hatch-model"), hatch("hatch-outage"),
      svg("clipPath", { id: "inside" }, svg("rect", { x: view.left, y: 0, width: view.right - view.left, height: bottom + HEIGHT.axis }))),
    grid(view, top, bottom), rows, chosenLine(view, top, bottom), flags(view, bottom),
    svg("line", { id: "cursor", class: "cursor", y1: top - 4, y2: bottom, x1: -9, x2: -9 }));
  chart.replaceChildren(picture);
  chart.dataset.from = now.from;
  chart.dataset.to = now.to;
  draw.view = view;
  drawCursor();
  drawOverview();
}

/** The call in one sentence, for who cannot see the drawing. */
function inWords() {
  const { call } = now;
  const problems = problemsHere().map((p) => `${p.oracle}: ${p.what} at ${seconds(p.at_ms)}`).join("; ");
  return `Call ${call.index}, ${seconds(call.from)} to ${seconds(call.to)}, ended ${call.end}. ${problems || "No oracle objects."}`;
}

const hatch = (id) => svg("pattern", { id, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
  svg("line", { x1: 0, y1: 0, x2: 0, y2: 6, "stroke-width": 4, class: id }));

/** Lines at round times, at least 64 pixels apart. */
function ticks(view) {
  const least = ((view.to - view.from) / (view.right - view.left)) * 76;
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 30000, 60000, 120000].find((s) => s >= least) || 300000;
  const found = [];
  for (let t = Math.ceil(view.from / step) * step; t <= view.to; t += step) found.push(t);
  return { found, digits: step >= 1000 ? 0 : step >= 100 ? 1 : step >= 10 ? 2 : 3 };
}
function grid(view, top, bottom) {
  const { found, digits } = ticks(view);
  return found.map((t) => {
    const x = view.x(t);
    const place = x > view.right - 24 ? "end" : x < view.left + 24 ? "start" : "middle";
    return [svg("line", { class: "grid", x1: x, x2: x, y1: top, y2: bottom }),
      svg("text", { x, y: bottom + 14, "text-anchor": place, class: "dim" }, `${(t / 1000).toFixed(digits)} s`)];
  });
}

const inside = (...children) => svg("g", { "clip-path": "url(#inside)" }, children);
function box(view, from, to, y, h, className, title) {
  const x = Math.max(view.x(from), view.left - 4);
  const end = Math.min(view.x(to), view.right + 4);
  return svg("rect", { x, y, width: Math.max(end - x, 1.5), height: h, rx: 2, class: className }, title && svg("title", {}, title));
}
/** Words within a span, if they fit in the part of it that can be seen. */
function within(view, from, to, y, words, className) {
  const x = Math.max(view.x(from), view.left) + 4;
  const room = Math.min(view.x(to), view.right) - x - 2;
  const fits = [words].flat().find((text) => wide(text) <= room);
  return fits && svg("text", { x, y, class: className, "pointer-events": "none" }, fits);
}
const ruler = document.createElement("canvas").getContext("2d");
function wide(text) {
  ruler.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  return (wide.known ??= new Map()).get(text) ?? wide.known.set(text, ruler.measureText(text).width + 2).get(text);
}

const spans = (view, y, h, all, className) => inside(all.filter(([from, to]) => view.sees(from, to)).map(([from, to]) => [
  box(view, from, to, y + 1, h - 2, className, `${seconds(from)} to ${seconds(to)}: ${rounded(to - from)} ms`),
  within(view, from, to, y + h - 3.5, [`${rounded(to - from)} ms`], ""),
]));

/** A letter stands for the square root of a peak; drawn is something between that and the peak. */
const level = (letter) => (letter / 63) ** 1.5;
const loudest = (track) => (track.loudest ??= level(Math.max(...[...new Set(track.peaks)].map((letter) => LETTERS.indexOf(letter)), 0)));

function wave(view, y, h, track, className) {
  const { call } = now;
  if (!/[^AB]/.test(track.peaks)) return svg("text", { x: view.left + 8, y: y + h / 2 + 4, class: "dim" }, "silence");
  const [middle, half] = [y + h / 2, h / 2 - 2];
  const heights = [];
  const scale = half / Math.max(...[call.heard, call.given].map(loudest), 0.2);
  const step = (view.to - view.from) / (view.right - view.left);
  for (let x = 0; x <= view.right - view.left; x += 1) {
    const t = view.from + x * step - call.from;
    const first = Math.floor(t / call.peak_ms);
    const last = Math.max(first, Math.ceil((t + step) / call.peak_ms) - 1);
    let peak = -1;
    for (let i = Math.max(first, 0); i <= last && i < track.peaks.length; i += 1) peak = Math.max(peak, LETTERS.indexOf(track.peaks[i]));
    heights.push(peak < 0 ? 0 : Math.max(level(peak) * scale, 0.5));
  }
  const up = heights.map((h, x) => `${view.left + x} ${(middle - h).toFixed(1)}`);
  const down = heights.map((h, x) => `${view.left + x} ${(middle + h).toFixed(1)}`).reverse();
  return svg("path", { d: `M${[...up, ...down].join("L")}Z`, class: className });
}

function clears(view, y, h) {
  return inside(now.call.moments.filter((m) => m.k === "clear" && view.sees(m.t, m.t)).map((m) => {
    const x = view.x(m.t);
    return svg("line", { x1: x, x2: x, y1: y, y2: y + h, class: "clear-line" }, svg("title", {}, `clear, ${seconds(m.t)}: ${m.x}`));
  }));
}

/** What was played of each item, solid; what was made and never heard, dashed; and where it was cut. */
function items(view, y, h) {
  const heard = now.call.items.filter((item) => item.played.length > 0);
  return inside(heard.map((item) => {
    const begins = item.played[0][0] - item.played[0][2];
    const last = item.played[item.played.length - 1];
    // What was never heard is drawn as far as nothing else was heard instead.
    const next = Math.min(...heard.map((other) => other.played[0][0]).filter((from) => from >= last[1]), Infinity);
    const ends = Math.min(last[1] + Math.max(item.made - item.heard, 0), next - 1);
    const words = `${item.id}: heard ${rounded(item.heard)} of ${rounded(item.made)} ms${item.text ? ` — ${item.text}` : ""}`;
    const cut = item.cut === null ? null : begins + item.cut;
    const whole = item.made - item.heard < 25;
    return [
      !whole && view.sees(last[1], ends) && box(view, last[1], ends, y + 6, h - 14, "ghost", words),
      item.played.filter(([from, to]) => view.sees(from, to)).map(([from, to]) => box(view, from, to, y + 4, h - 10, "soft-model edge", words)),
      view.sees(begins, last[1]) && within(view, begins, cut === null ? last[1] : Math.min(last[1], cut), y + h - 9,
        [`${short(item.id)} · ${whole ? "heard whole" : `heard ${rounded(item.heard)} of ${rounded(item.made)} ms`}`, `${rounded(item.heard)} ms`], ""),
    ];
  }), heard.filter((item) => item.cut !== null).map((item) => {
    const t = item.played[0][0] - item.played[0][2] + item.cut;
    const next = Math.min(...heard.map((other) => other.played[0][0]).filter((from) => from > t), view.to);
    const words = [`cut at ${item.cut} ms`, "cut"].find((text) => view.x(t) + 9 + wide(text) <= view.x(next));
    return view.sees(t, t) && [
      svg("line", { x1: view.x(t), x2: view.x(t), y1: y, y2: y + h - 2, class: "cut" }, svg("title", {}, `${item.id} was cut at ${item.cut} ms`)),
      words && svg("text", { x: view.x(t) + 5, y: y + h - 9, class: "cut-text", "pointer-events": "none" }, words)];
  }));
}
/** `item_0x3zrb6Y3jRSxqHAt5RvT` is `item …RvT`: the rest is in the list. */
const short = (id) => id.length > 14 ? `${id.split("_")[0]} …${id.slice(-4)}` : id;

/** From its arrival at the caller’s end to its echo: played, or flushed by a clear. */
function marks(view, y, h) {
  return inside(now.call.marks.filter((mark) => view.sees(mark.got, mark.back ?? mark.got)).map((mark) => {
    const [x, back, middle] = [view.x(mark.got), mark.back === null ? null : view.x(mark.back), y + h / 2];
    const how = mark.back === null ? "never came back" : `${mark.flushed ? "flushed" : "played"} ${seconds(mark.back)}`;
    const flushed = mark.flushed ? " flushed" : "";
    return svg("g", {}, svg("title", {}, `mark ${mark.name}: arrived ${seconds(mark.got)}, ${how}`),
      back !== null && back - x > 3 && svg("line", { x1: x, x2: back, y1: middle, y2: middle, class: `way${flushed}` }),
      svg("line", { x1: x, x2: x, y1: middle - 3, y2: middle + 3, class: "mark got" }),
      back !== null && svg("line", { x1: back, x2: back, y1: y + 2, y2: y + h - 2, class: `mark${flushed}` }));
  }));
}

function waits(view, y, h) {
  return inside(now.call.waits.filter((wait) => view.sees(wait.from, wait.from + wait.total)).map((wait) => {
    let t = wait.from;
    const parts = wait.parts.map(([name, ms]) => {
      const from = t;
      t += ms;
      return ms > 0 && box(view, from, t, y + 3, h - 6, partClass(name), `${wait.what}: ${name} ${rounded(ms)} ms of ${rounded(wait.total)} ms`);
    });
    return parts;
  }));
}

function responses(view, y, h) {
  return inside(now.call.responses.map((response) => {
    const to = response.to ?? now.call.to;
    return view.sees(response.from, to) && [
      box(view, response.from, to, y + 2, h - 4, response.status === "completed" ? "soft-model edge" : "cancelled",
        `${response.id} ${response.status}, ${seconds(response.from)} to ${seconds(to)}`),
      within(view, response.from, to, y + h - 5, [`${short(response.id)} ${response.status}`, response.status], "")];
  }));
}

const made = (view, y, h) => inside(now.call.items.filter((item) => item.sent && view.sees(...item.sent)).map((item) => [
  box(view, item.sent[0], item.sent[1], y + 4, h - 8, "in-model", `${item.id}: ${rounded(item.made)} ms of audio, made in ${rounded(item.sent[1] - item.sent[0])} ms`),
]));

/** Messages and events: runs of audio as bars, the rest as signs, with words where there is room for them. */
function signs(view, y, h, moments, who, shape) {
  const seen = moments.filter((m) => view.sees(m.t, m.u ?? m.t));
  const points = seen.filter((m) => !isRun(m));
  const taken = points.map((m) => [view.x(m.t) - 5, view.x(m.t) + 5]);
  const rank = (m) => { const at = IMPORTANT.indexOf(m.k); return at < 0 ? 99 : at; };
  const middle = y + 8;
  const words = [...points].sort((a, b) => rank(a) - rank(b) || a.t - b.t).map((m) => {
    const x = view.x(m.t) + 7;
    const text = m.k === "timer" ? m.x : m.w === "here" && m.e === "caller" ? m.x : m.k;
    const end = x + wide(text);
    if (end > view.right || x < view.left || taken.some(([from, to]) => from < end && to > x)) return null;
    taken.push([x - 2, end + 4]);
    return svg("text", { x, y: middle + 4, class: m.k === "clear" ? "clear-text" : "dim", "pointer-events": "none" }, text);
  });
  return inside(
    seen.filter(isRun).map((m) => box(view, m.t, m.u ?? m.t, y + h - 4, 2.5, `in-${who} faint`, `${seconds(m.t)}: ${m.k}, ${m.x}`)),
    words,
    points.map((m) => sign(view, y, m, who, shape)));
}
function sign(view, y, m, who, shape) {
  const [x, c] = [view.x(m.t), y + 8];
  const paint = m.k === "clear" || m.k === "truncate" ? "sign-clear" : `in-${who}`;
  const d = { down: `M${x - 5} ${c - 4}h10l-5 9z`, up: `M${x - 5} ${c + 4}h10l-5 -9z`, dot: m.k === "timer" ? `M${x - 4} ${c - 5}h8l-8 10h8z` : `M${x - 4} ${c}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z` }[shape];
  const i = now.moments.indexOf(m);
  return svg("g", { class: "sign", onclick: (event) => { event.stopPropagation(); choose(i, true); } },
    svg("title", {}, `${seconds(m.t)} ${said(m)}`), svg("path", { d, class: paint }),
    i >= 0 && i === now.chosen && svg("circle", { cx: x, cy: c, r: 9, class: "ring" }),
    svg("rect", { x: x - 9, y, width: 18, height: 18, class: "hit" }));
}

/** Outages over the whole leg, and when it was reset or blackholed. */
function outages(view, conditions, y, h) {
  const line = (t, words) => t !== null && view.sees(t, t) && [
    svg("line", { x1: view.x(t), x2: view.x(t), y1: y, y2: y + h, class: "outage-line" }),
    svg("text", { x: view.x(t) + 4, y: y + h - 5, class: "outage-text" }, words)];
  return inside(
    conditions.stalls.filter(([from, to]) => view.sees(from, to)).map(([from, to]) => [
      box(view, from, to, y, h, "outage", `nothing passes from ${seconds(from)} to ${seconds(to)}`),
      within(view, from, to, y + h - 5, [`stall ${to - from} ms`, "stall"], "outage-text")]),
    conditions.blackhole !== null && view.sees(conditions.blackhole, Infinity) && box(view, conditions.blackhole, view.to, y, h, "outage", "nothing passes any more"),
    line(conditions.cut, "reset"), line(conditions.blackhole, "blackhole"));
}

function chosenLine(view, top, bottom) {
  const m = now.moments[now.chosen];
  return m && view.sees(m.t, m.t) && svg("line", { class: "here", x1: view.x(m.t), x2: view.x(m.t), y1: top, y2: bottom });
}

/** What was wrong, over everything. Flags that would cover each other share a pole. */
function flags(view, bottom) {
  let free = -Infinity;
  return problemsHere().filter((p) => view.sees(p.at_ms, p.at_ms)).sort((a, b) => a.at_ms - b.at_ms).map((problem) => {
    const x = view.x(problem.at_ms);
    const width = wide(problem.oracle) + 14;
    const left = x + width > view.right ? x - width : x;
    const shown = left >= free;
    if (shown) free = left + width + 2;
    return svg("g", { class: "problem", onclick: () => showProblem(problem) }, svg("title", {}, `${problem.oracle}: ${problem.what}`),
      svg("rect", { x: x - 5, y: 16, width: 10, height: bottom - 16, class: "failed-glow" }),
      svg("line", { x1: x, x2: x, y1: 2, y2: bottom, class: "failed-line" }),
      shown && [svg("rect", { x: left, y: 1, width, height: 17, rx: 2, class: "flag" }),
        svg("text", { x: left + 6, y: 13.5, class: "flag-text" }, problem.oracle)]);
  });
}

function drawCursor() {
  const cursor = byId("cursor");
  byId("clock").textContent = seconds(now.at);
  if (!cursor) return;
  const seen = draw.view.sees(now.at, now.at);
  const x = seen ? draw.view.x(now.at) : -9;
  cursor.setAttribute("x1", x);
  cursor.setAttribute("x2", x);
}

/** The whole call, small, and which part of it is shown. */
function drawOverview() {
  const { call } = now;
  const width = Math.max(byId("overview").clientWidth, 200);
  const view = { left: 0, right: width, from: call.from, to: Math.max(call.to, call.from + 100) };
  view.x = (t) => ((t - view.from) / (view.to - view.from)) * width;
  drawOverview.view = view;
  byId("overview").replaceChildren(svg("svg", { viewBox: `0 0 ${width} 34`, height: 34 },
    wave(view, 0, 17, call.heard, "in-caller"), wave(view, 17, 17, call.given, "in-model"),
    problemsHere().map((p) => svg("line", { x1: view.x(p.at_ms), x2: view.x(p.at_ms), y1: 0, y2: 34, class: "failed-line" })),
    svg("rect", { x: view.x(now.from), y: 0.5, width: Math.max(view.x(now.to) - view.x(now.from), 3), height: 33, class: "window" })));
}

// ----------------------------------------------------------------------------------------- moving about

const SHORTEST = 20;
function look(from, to) {
  const { call } = now;
  const whole = Math.max(call.to - call.from, 100);
  const margin = whole * 0.02;
  const length = clamp(to - from, SHORTEST, whole + 2 * margin);
  now.from = clamp((from + to - length) / 2, call.from - margin, call.to + margin + Math.max(0, 100 - whole) - length);
  if (length >= whole + 2 * margin - 1e-6) now.from = call.from - margin;
  now.to = now.from + length;
  draw();
}
const fit = () => look(now.call.from - 1e9, now.call.to + 1e9);
/** Zooms so that the moment `about` stays where it is. */
function zoom(factor, about = clamp(now.at, now.from, now.to)) {
  look(about - (about - now.from) * factor, about + (now.to - about) * factor);
}
const pan = (share) => { const by = (now.to - now.from) * share; look(now.from + by, now.to + by); };
const timeAt = (view, node, clientX) => {
  const x = clientX - node.getBoundingClientRect().left;
  return view.from + ((x - view.left) / (view.right - view.left)) * (view.to - view.from);
};

function watchPointers() {
  const chart = byId("chart");
  const fingers = new Map();
  let moved = 0;
  chart.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event.clientX);
    moved = 0;
  });
  chart.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (before === undefined) return;
    const width = draw.view.right - draw.view.left;
    if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const [old, next] = [Math.max(Math.abs(before - other), 12), Math.max(Math.abs(event.clientX - other), 12)];
      zoom(old / next, timeAt(draw.view, chart, (event.clientX + other) / 2));
    } else {
      moved += Math.abs(event.clientX - before);
      if (moved < 4) return;
      // Only a drag is captured: a click belongs to the sign under it.
      if (!chart.hasPointerCapture(event.pointerId)) chart.setPointerCapture(event.pointerId);
      chart.classList.add("dragged");
      pan((before - event.clientX) / width);
    }
    fingers.set(event.pointerId, event.clientX);
  });
  for (const name of ["pointerup", "pointercancel"]) chart.addEventListener(name, (event) => {
    fingers.delete(event.pointerId);
    chart.classList.remove("dragged");
  });
  chart.addEventListener("click", (event) => {
    if (moved >= 4) return;
    seek(clamp(timeAt(draw.view, chart, event.clientX), now.call.from, now.call.to));
  });
  chart.addEventListener("wheel", (event) => {
    const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
    // The page scrolls under a wheel that only passes by.
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== chart) return;
    event.preventDefault();
    if (sideways) pan((event.deltaX || event.deltaY) / (draw.view.right - draw.view.left));
    else zoom(Math.exp(clamp(event.deltaY, -120, 120) * 0.002), timeAt(draw.view, chart, event.clientX));
  }, { passive: false });
  const overview = byId("overview");
  const jump = (event) => {
    if (event.type === "pointermove" && event.buttons === 0) return;
    const [t, half] = [timeAt(drawOverview.view, overview, event.clientX), (now.to - now.from) / 2];
    look(t - half, t + half);
  };
  overview.addEventListener("pointerdown", (event) => { overview.setPointerCapture(event.pointerId); jump(event); });
  overview.addEventListener("pointermove", jump);
  new ResizeObserver(() => draw()).observe(chart);
}

// -------------------------------------------------------------------------------------------- listening

const players = { heard: new Audio(), given: new Audio() };
function loadAudio() {
  byId("audio-trouble").hidden = true;
  for (const [end, player] of Object.entries(players)) {
    const held = byId(`wav-${now.n}-${now.call.index}-${end}`);
    player.preload = "none";
    player.src = held ? `data:audio/wav;base64,${held.textContent}` : now.call[end].file;
  }
}
function play() {
  if (now.playing) return stop();
  if (now.at >= now.call.to - 20) now.at = now.call.from;
  now.playing = true;
  byId("play").textContent = "Pause";
  hear();
  seek(now.at);
  Promise.all(Object.values(players).map((player) => player.play())).then(follow, (error) => {
    if (error.name === "AbortError") return;
    stop();
    const trouble = byId("audio-trouble");
    trouble.hidden = false;
    trouble.textContent = now.call.heard.embedded
      ? `This browser does not play it: ${error.message}`
      : `Cannot play ${now.call.heard.file}. It belongs beside this page: keep the folder together. (${error.message})`;
  });
}
function stop() {
  now.playing = false;
  byId("play").textContent = "Play";
  Object.values(players).forEach((player) => player.pause());
}
function seek(t) {
  now.at = t;
  Object.values(players).forEach((player) => { if (now.playing || player.readyState > 0) player.currentTime = (t - now.call.from) / 1000; });
  drawCursor();
}
function follow() {
  if (!now.playing) return;
  now.at = now.call.from + players.heard.currentTime * 1000;
  if (players.heard.ended) return stop();
  if (now.at > now.to || now.at < now.from) look(now.at, now.at + now.to - now.from);
  drawCursor();
  requestAnimationFrame(follow);
}
function hear() {
  players.heard.muted = !byId("hear-heard").checked;
  players.given.muted = !byId("hear-given").checked;
}

// ------------------------------------------------------------------------------------------------- keys

const KEYS = [
  ["n  p", "the next and the previous run"],
  ["c", "the next call of this run"],
  ["v", "to what was wrong, one after the other"],
  ["j  k", "the next and the previous message"],
  ["Space", "play and pause"],
  ["+  −", "zoom in and out"],
  ["←  →", "earlier and later"],
  ["0", "the whole call"],
  ["/", "find a run"],
  ["t", "light or dark"],
  ["?", "these keys"],
];
const actions = {
  n: () => stepRun(1), p: () => stepRun(-1),
  c: () => showCall((now.run.calls.indexOf(now.call) + 1) % now.run.calls.length),
  v: stepProblem, j: () => stepMoment(1), k: () => stepMoment(-1), " ": play,
  "+": () => zoom(1 / 1.5), "=": () => zoom(1 / 1.5), "-": () => zoom(1.5), 0: fit,
  ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2),
  "/": () => { byId("picker").open = true; byId("find").focus(); },
  t: turn, "?": () => byId("help").showModal(),
};
function watchKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const { target, key } = event;
    if (target.matches("input[type=search]")) {
      if (key === "Escape") target.blur();
      return;
    }
    if (key === " " && target.matches("button, input, summary, a")) return;
    if (target === byId("moments") && (key === "ArrowDown" || key === "ArrowUp")) {
      event.preventDefault();
      return stepMoment(key === "ArrowDown" ? 1 : -1);
    }
    const action = actions[key];
    if (!action || (now.call === null && !"/t?".includes(key))) return;
    event.preventDefault();
    action();
  });
  byId("keys").replaceChildren(...KEYS.map(([keys, does]) => [el("dt", {}, keys.split("  ").map((key) => [el("kbd", {}, key), " "])), el("dd", {}, does)]).flat());
  const press = { play, fit, "zoom-in": () => zoom(1 / 1.5), "zoom-out": () => zoom(1.5), theme: turn, "help-open": () => byId("help").showModal() };
  for (const [id, does] of Object.entries(press)) byId(id).addEventListener("click", does);
  for (const id of ["hear-heard", "hear-given"]) byId(id).addEventListener("change", hear);
  byId("with-runs").addEventListener("change", () => { showMoments(); choose(-1, false); draw(); });
  byId("find").addEventListener("input", showList);
  byId("only-failed").addEventListener("change", showList);
}

// ------------------------------------------------------------------------------------------ the beginning

function turn() {
  const dark = document.documentElement.dataset.theme !== "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

function showLegend() {
  const swatch = (words, ...shapes) => el("span", {}, svg("svg", { viewBox: "0 0 26 16" }, shapes), words);
  const line = (className) => svg("line", { x1: 13, x2: 13, y1: 1, y2: 15, class: className });
  const rect = (className) => svg("rect", { x: 1, y: 3, width: 24, height: 10, rx: 2, class: className });
  byId("legend").replaceChildren(
    swatch("message downwards: caller to bridge, bridge to model", svg("path", { d: "M8 4h10l-5 9z", class: "in-caller" })),
    swatch("message upwards", svg("path", { d: "M8 12h10l-5 -9z", class: "in-model" })),
    swatch("happened there", svg("circle", { cx: 13, cy: 8, r: 4, class: "in-bridge" })),
    swatch("a timer fired", svg("path", { d: "M9 3h8l-8 10h8z", class: "in-bridge" })),
    swatch("a run of audio messages", svg("rect", { x: 1, y: 7, width: 24, height: 2.5, class: "in-caller faint" })),
    swatch("heard by the caller", rect("soft-model edge")),
    swatch("made, never heard", rect("ghost")),
    swatch("cancelled or failed response", rect("cancelled")),
    swatch("where the model was told to cut", line("cut")),
    swatch("clear at the caller", line("clear-line")),
    swatch("mark arrived, came back played", svg("line", { x1: 5, x2: 20, y1: 8, y2: 8, class: "way" }), svg("line", { x1: 20, x2: 20, y1: 2, y2: 14, class: "mark" })),
    swatch("mark flushed", svg("line", { x1: 5, x2: 20, y1: 8, y2: 8, class: "way flushed" }), svg("line", { x1: 20, x2: 20, y1: 2, y2: 14, class: "mark flushed" })),
    swatch("nothing passes on this leg", rect("outage")),
    swatch("what was wrong", line("failed-line")),
    ...["detection", "model", "network", "bridge", "carrier", "dial and session"].map((name) => swatch(`wait: ${name}`, rect(partClass(name)))));
}

/** `#run-3`, or `#run-3-call-1`. */
function followHash() {
  const found = /^#run-(\d+)(?:-call-(\d+))?$/.exec(location.hash);
  const n = found ? Number(found[1]) : undefined;
  const known = n !== undefined && index.runs[n] !== undefined;
  const first = inOrder()[0];
  if (!known && first === undefined) return;
  showRun(known ? n : first, found?.[2] === undefined ? undefined : Number(found[2]));
  if (known && narrow()) byId("main").scrollIntoView();
}

if (matchMedia("(prefers-color-scheme: dark)").matches) turn();
if (narrow()) byId("picker").open = false;
showHead();
showList();
showLegend();
watchKeys();
watchPointers();
if (index.runs.length === 0) {
  byId("empty").hidden = false;
  const runs = index.backends.reduce((all, backend) => all + backend.runs, 0);
  byId("empty-why").textContent = runs === 0 ? "No run was played." : `All ${thousands(runs)} runs passed, and only failures are drawn here.`;
}
addEventListener("hashchange", followHash);
followHash();
document.documentElement.dataset.ready = "";
