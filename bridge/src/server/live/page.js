
"use strict";
// What people said is only ever put on the page as text.
const byId = (id) => document.getElementById(id);
const LINES_MAX = 200;
const STATES = { connecting: "Connecting", dialing: "Reaching the model", live: "In conversation", renewing: "Renewing the session", ending: "Saying that it has to end", over: "Over" };
const NAMES = { caller: "Caller", agent: "Agent", keypad: "Keypad" };
const calls = new Map();
let canTransfer = false;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function clock(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  const two = (n) => String(n).padStart(2, "0");
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

function card(call) {
  const view = { lines: new Map(), node: make("article") };
  const title = make("h3");
  title.id = `call-${call.key}`;
  view.node.setAttribute("aria-labelledby", title.id);
  view.node.dataset.key = call.key;
  const top = make("div", "top");
  view.title = title;
  view.clock = make("span", "clock");
  top.append(title, view.clock);
  view.state = make("p", "state");
  const floor = view.floor = make("ul", "floor");
  floor.setAttribute("aria-label", "Who is speaking");
  view.caller = make("li", "caller");
  view.agent = make("li", "agent");
  floor.append(view.caller, view.agent);
  const figures = make("dl");
  view.figures = {};
  for (const [name, label, about] of [
    ["answer", "Answer after", "From the end of the caller's turn to the first audio sent; the median of the call in brackets"],
    ["bargeIns", "Barge-ins", "How often the caller took the floor"],
    ["silenced", "Silent after", "From the last barge-in to the end of playback"],
    ["inside", "In the bridge", "How long a frame is inside the bridge; the median of the last second"],
  ]) {
    const group = make("div");
    group.title = about;
    view.figures[name] = make("dd");
    group.append(make("dt", "", label), view.figures[name]);
    figures.append(group);
  }
  view.log = make("ol", "log");
  view.log.tabIndex = 0;
  view.log.setAttribute("role", "log");
  view.log.setAttribute("aria-live", "off");
  view.log.setAttribute("aria-label", "Transcript");
  view.buttons = make("p", "buttons");
  view.hangUp = make("button", "", "Hang up");
  view.transfer = make("button", "", "Transfer");
  for (const button of [view.hangUp, view.transfer]) button.type = "button";
  view.hangUp.addEventListener("click", () => ask(view, "hangup"));
  view.transfer.addEventListener("click", () => ask(view, "transfer"));
  view.buttons.append(view.hangUp, view.transfer);
  view.node.append(top, view.state, floor, figures, view.log, view.buttons);
  return view;
}

function lit(node, who, speaks) {
  node.classList.toggle("speaks", speaks);
  const text = `${who} ${speaks ? "speaks" : "is silent"}`;
  if (node.textContent !== text) node.textContent = text;
}

function show(call) {
  let view = calls.get(call.key);
  if (!view) calls.set(call.key, view = card(call));
  view.call = call;
  view.since = performance.now() - call.lastedMs;
  view.title.textContent = call.callSid || `Call ${call.key}`;
  const over = call.state === "over";
  const more = [over && call.end ? `ended: ${call.end.replaceAll("_", " ")}` : "", call.functions.length ? `runs ${call.functions.join(", ")}` : "", call.errors ? `${call.errors} errors of the model` : ""];
  view.state.textContent = [STATES[call.state] ?? call.state, ...more.filter(Boolean)].join(" · ");
  lit(view.caller, "Caller", call.speaking.caller);
  lit(view.agent, "Agent", call.speaking.agent);
  const ms = (n) => (n === null ? "–" : `${n.toLocaleString("en")} ms`);
  const { last, median } = call.latencyMs;
  view.figures.answer.textContent = last === null ? "–" : `${ms(last)} (${median.toLocaleString("en")})`;
  view.figures.bargeIns.textContent = call.bargeIns;
  view.figures.silenced.textContent = ms(call.silencedMs);
  view.figures.inside.textContent = ms(call.insideMs);
  for (const line of call.lines) {
    if (line.text === "" && line.whole) view.lines.delete(line.item);
    else view.lines.set(line.item, line);
  }
  // On the page first: what is not there has no end to scroll to.
  const home = byId(over ? "over" : "now");
  if (view.node.parentNode !== home) home.prepend(view.node);
  if (call.lines.length) write(view);
  view.buttons.hidden = over;
  view.floor.hidden = over;
  view.transfer.disabled = !canTransfer;
  view.transfer.title = canTransfer ? "" : "Twilio transfers calls: set TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN";
}

function write(view) {
  const atEnd = view.log.scrollTop + view.log.clientHeight >= view.log.scrollHeight - 8;
  const lines = [...view.lines.values()].sort((a, b) => (a.place < b.place ? -1 : a.place > b.place ? 1 : 0));
  for (const old of lines.splice(0, Math.max(0, lines.length - LINES_MAX))) view.lines.delete(old.item);
  view.log.replaceChildren(...lines.map((line) => {
    const node = make("li", `${line.speaker}${line.whole ? "" : " growing"}`);
    node.append(make("b", "", NAMES[line.speaker] ?? line.speaker), document.createTextNode(line.text));
    if (line.cut) node.append(make("small", "", " — interrupted"));
    return node;
  }));
  if (atEnd) view.log.scrollTop = view.log.scrollHeight;
}

function news(told) {
  canTransfer = told.canTransfer;
  byId("people").replaceChildren(...told.people.map((name) => Object.assign(document.createElement("option"), { value: name })));
  byId("summary").textContent = `${told.active} of ${told.maxCalls} lines busy, ${told.total} ${told.total === 1 ? "call" : "calls"} since the start${told.draining ? ", draining: no new calls" : ""}`;
  told.calls.forEach(show);
  const present = new Set(told.present);
  for (const [key, view] of calls) {
    if (!present.has(key)) { view.node.remove(); calls.delete(key); }
  }
  const busy = byId("now").childElementCount;
  byId("no-calls").hidden = busy > 0;
  byId("past").hidden = byId("over").childElementCount === 0;
  document.title = busy ? `(${busy}) Calls` : "Calls";
}

let asked = null;
function ask(view, what) {
  const transfers = what === "transfer";
  asked = { view, what };
  byId("ask-title").textContent = transfers ? "Transfer this call?" : "Hang up this call?";
  byId("ask-words").textContent = transfers ? "The caller leaves the agent for a number, or for a listed person." : "The caller will be cut off.";
  byId("ask-whom").hidden = !transfers;
  byId("ask-problem").textContent = "";
  byId("ask-to").value = "";
  byId("ask-yes").textContent = transfers ? "Transfer" : "Hang up";
  byId("ask-yes").disabled = false;
  byId("ask").showModal();
  (transfers ? byId("ask-to") : byId("ask-no")).focus();
}

async function act() {
  const { view, what } = asked;
  byId("ask-yes").disabled = true;
  const body = what === "transfer" ? JSON.stringify({ to: byId("ask-to").value.trim() }) : "{}";
  const headers = { "content-type": "application/json", "x-bridge-live": "1" };
  try {
    const answer = await fetch(`/live/calls/${view.call.key}/${what}`, { method: "POST", headers, body });
    if (answer.ok) { byId("ask").close(); return; }
    const told = await answer.json().catch(() => ({}));
    byId("ask-problem").textContent = told.error ?? `refused with ${answer.status}`;
  } catch {
    byId("ask-problem").textContent = "The bridge does not answer.";
  }
  byId("ask-yes").disabled = false;
}
byId("ask-yes").addEventListener("click", act);
byId("ask-no").addEventListener("click", () => byId("ask").close());
byId("ask-to").addEventListener("keydown", (event) => { if (event.key === "Enter") act(); });
byId("ask").addEventListener("close", () => asked?.view.hangUp.focus());

setInterval(() => {
  for (const view of calls.values()) {
    const over = view.call.state === "over";
    view.clock.textContent = clock(over ? view.call.lastedMs : performance.now() - view.since);
  }
}, 250);

function link(words, bad) {
  byId("link").textContent = words;
  byId("link").classList.toggle("bad", bad);
}
let fresh = false;
const source = new EventSource("/live/events");
source.addEventListener("open", () => { fresh = true; link("", false); });
source.addEventListener("error", () => link("The bridge does not answer; trying again", true));
source.addEventListener("calls", (event) => {
  // Behind a lost connection everything is told anew, perhaps by another process.
  if (fresh) { for (const view of calls.values()) view.node.remove(); calls.clear(); fresh = false; }
  news(JSON.parse(event.data));
  document.documentElement.dataset.ready = "";
});
